// The page: runs a search when the query or a setting changes, and shows its answers.
import * as api from "./api.js";
import { find, make, press } from "./dom.js";
import { CollectionMap } from "./map.js";
import { Query } from "./query.js";
import { listenToKeys, percent, showAnswers } from "./results.js";
import { why } from "./why.js";

const ENGINES = { exact: "exact", kmeans: "k-means", milvus: "Milvus" };
const START_PICTURES = 24; // shown before the first query
const BUSY_AFTER = 150; // ms, until the progress bar is shown
const REFRESH = 30000; // ms, between checks whether the collection has changed

let collection = null;
let last = null; // the search whose answers are shown: its options, and the weights of the signals
let running = null;

const query = new Query(search, showError);
const actions = {
  searchFrom: (id) => {
    showView("search");
    window.scrollTo({ top: 0 });
    find("grid").querySelector(".from")?.focus({ preventScroll: true });
    query.searchFrom(id);
  },
  why: (answer) => work(() => why(last.options, answer, last.weights)),
  rate: (id, kind) => query.rate(id, query[kind]),
};
const map = new CollectionMap(actions.searchFrom);

function showError(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

// Run a job; show the progress bar when it takes long, and its error.
async function work(job) {
  const timer = setTimeout(() => { find("busy").hidden = false; }, BUSY_AFTER);
  try {
    showError("");
    return await job();
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
    return null;
  } finally {
    clearTimeout(timer);
    find("busy").hidden = true;
  }
}

function settings() {
  const options = {
    balance: Number(find("balance").value),
    other_color: find("othercolor").checked,
    engine: find("engine").value || "exact",
    count: Number(find("count").value),
    per_item: find("peritem").checked,
    collapse_duplicates: find("collapse").checked,
  };
  if (find("category").value) options.category = find("category").value;
  return options;
}

async function search(remember = false) {
  running?.abort();
  if (query.empty) {
    if (remember) record();
    await start();
    return;
  }
  const control = running = new AbortController();
  find("status").textContent = "Searching …";
  const found = await work(() => send(control.signal));
  if (running !== control) return;
  running = null;
  if (!found) {
    find("status").textContent = "";
    return;
  }
  if (query.files.length) {
    query.handle = found.query;
    query.showGarments(found.garments);
  }
  last = { options: { ...query.request().options, ...settings() }, weights: found.weights };
  if (remember) record();
  showAnswers(found, query, actions);
  showStatus(found);
  if (found.collection !== collection.version) await describe();
}

// Sends the pictures again when the server does not have them any more, and later when it is busy.
async function send(signal, tries = 3) {
  const { files, options } = query.request();
  try {
    return await api.search(files, { ...options, ...settings() }, signal);
  } catch (error) {
    if (!tries || ![404, 503].includes(error.status) || (error.status === 404 && !query.handle)) throw error;
    if (error.status === 404) query.handle = null;
    else await new Promise((resolve) => { setTimeout(resolve, 1000 * error.wait); });
    return send(signal, tries - 1);
  }
}

function showStatus(found) {
  const total = Object.values(found.seconds).reduce((sum, seconds) => sum + seconds, 0);
  const steps = Object.entries(found.seconds)
    .map(([step, seconds]) => `${step} ${(1000 * seconds).toFixed(0)} ms`).join(", ");
  const recall = found.engine === "exact" ? "" : found.recall === null
    ? ", recall not measured for this search"
    : `, expected recall ${(100 * found.recall).toFixed(1)}%`;
  const within = found.category ? ` in ${found.category}` : "";
  const how = found.present < 1 / 3 ? "Probably not" : found.present > 2 / 3 ? "Probably" : "Perhaps";
  const there = found.present === null ? [] : [make("strong", { className: "present" },
    `${how} in this collection (${percent(found.present)}).`)];
  find("status").replaceChildren(...there,
    make("b", {}, `${found.answers.length} answers${within} in ${(1000 * total).toFixed(0)} ms`),
    ` (${steps}). ${ENGINES[found.engine]}: ${found.searched.split(", ")[0]}${recall}.`,
    found.left_out.length ? ` Left out, as the query itself: ${found.left_out.join(", ")}.` : "");
}

// Before the first query: pictures to start from.
async function start() {
  last = null;
  const found = await work(() => api.search([], { ...settings(), count: START_PICTURES }));
  if (!found || !query.empty) return;
  find("status").textContent = "Drop a picture, choose a colour, or start from one of these.";
  showAnswers(found, query, actions);
}

function record() {
  const address = query.ids.length ? `?picture=${query.ids[0]}` : location.pathname;
  history.pushState(step(), "", address);
}

const step = () => ({ ids: [...query.ids], color: query.color, text: query.text });

window.addEventListener("popstate", (event) => {
  if (!event.state) return; // a link within the page, such as "Skip to the answers"
  query.drop();
  query.ids = event.state.ids;
  query.color = event.state.color;
  query.text = event.state.text ?? "";
  query.show();
  search();
});

function balanceText() {
  const value = Number(find("balance").value);
  find("balancetext").textContent = value === 0.5 ? "Cut and colour, with the weights of the settings."
    : value === 0 ? "Cut and texture only." : value === 1 ? "Colour only."
      : value < 0.5 ? "More cut, less colour." : "More colour, less cut.";
}

async function describe() {
  collection = await api.collection();
  query.version = collection.version;
  query.finds = collection.cut;
  find("collection").textContent = `${collection.name}: ${collection.pictures.toLocaleString("en")} pictures`
    + (collection.items ? `, ${collection.items.toLocaleString("en")} items` : "");
  const chosen = find("category").value;
  find("category").replaceChildren(make("option", { value: "" }, "all"),
    ...Object.entries(collection.categories).map(([name, count]) =>
      make("option", { value: name }, `${name} (${count.toLocaleString("en")})`)));
  find("category").value = chosen in collection.categories ? chosen : "";
  const engine = find("engine").value || "exact";
  find("engine").replaceChildren(...collection.engines.map((one) => make("option",
    { value: one.name, disabled: !one.ready, title: one.reason },
    ENGINES[one.name] + (!one.ready ? " (not set up)" : one.name === "exact" || one.recall === null ? ""
      : `, recall ${(100 * one.recall).toFixed(1)}%`))));
  find("engine").value = engine;
  find("peritem").closest("label").hidden = !collection.items;
  find("words").hidden = !collection.words;
}

function showView(name) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== name;
  press(document.querySelectorAll("[data-view]"), document.querySelector(`[data-view="${name}"]`));
  if (name === "map") work(() => map.open(collection.version));
}

function listen() {
  for (const button of document.querySelectorAll("[data-view]")) {
    button.onclick = () => showView(button.dataset.view);
  }
  let pending = null;
  find("balance").oninput = () => {
    balanceText();
    clearTimeout(pending);
    pending = setTimeout(search, 60);
  };
  for (const id of ["othercolor", "peritem", "collapse", "category", "count", "engine"]) find(id).onchange = () => search();
  const themes = ["", "light", "dark"];
  find("theme").onclick = () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "") + 1) % 3];
    localStorage.setItem("theme", next);
    setTheme(next);
  };
  listenToKeys(actions);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").title = `Theme: ${theme || "system"}`;
  find("theme").textContent = { light: "☀", dark: "☾" }[theme] ?? "◐";
  find("theme").setAttribute("aria-label", find("theme").title);
}

find("options").open = !matchMedia("(max-width: 820px)").matches; // on a narrow screen the answers come first
setTheme(localStorage.getItem("theme") ?? "");
balanceText();
listen();
await work(async () => {
  await describe();
  const picture = new URLSearchParams(location.search).get("picture");
  if (picture) {
    query.ids = [picture];
    query.show();
  }
  history.replaceState(step(), "");
  await search();
});
document.documentElement.dataset.ready = "true";
setInterval(() => describe().catch(() => {}), REFRESH);
