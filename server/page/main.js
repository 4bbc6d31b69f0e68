// The page: what is asked, when it is asked, and what is told of the answer.
import * as api from "./api.js";
import { find, make, press } from "./dom.js";
import { CollectionMap } from "./map.js";
import { Asked } from "./query.js";
import { listenToKeys, showAnswers } from "./results.js";
import { why } from "./why.js";

const ENGINES = { exact: "exact", kmeans: "k-means", milvus: "Milvus" };
const STEPS = { reading: "reading", network: "network", ranking: "ranking" };
const START = 24; // pictures shown before anything is asked
const BUSY_AFTER = 150; // ms
const LOOK_AGAIN = 30000; // ms, whether the collection is a newer one

let collection = null;
let last = null; // options of the search whose answers are shown
let running = null;

const asked = new Asked(ask, complain);
const act = {
  from: (id) => {
    showView("search");
    window.scrollTo({ top: 0 });
    find("grid").querySelector(".from")?.focus({ preventScroll: true });
    asked.from(id);
  },
  why: (answer) => work(() => why(last, answer)),
  rate: (id, kind) => asked.rate(id, asked[kind]),
};
const map = new CollectionMap(act.from);

function complain(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

// Show that work goes on where it takes long, and what went wrong.
async function work(job) {
  const timer = setTimeout(() => { find("busy").hidden = false; }, BUSY_AFTER);
  try {
    complain("");
    return await job();
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
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
  };
  if (find("category").value) options.category = find("category").value;
  return options;
}

async function ask(remember = false) {
  running?.abort();
  if (asked.empty) {
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
  if (asked.files.length) asked.handle = found.query;
  last = { ...asked.request().options, ...settings() };
  if (remember) record();
  showAnswers(found.answers, found.collection, asked, act);
  tell(found);
  if (found.collection !== collection.version) await describe();
}

// Send the pictures once more where the server has forgotten them, and once more where it is busy.
async function send(signal, tries = 3) {
  const { files, options } = asked.request();
  try {
    return await api.search(files, { ...options, ...settings() }, signal);
  } catch (error) {
    if (!tries || ![404, 503].includes(error.status) || (error.status === 404 && !asked.handle)) throw error;
    if (error.status === 404) asked.handle = null;
    else await new Promise((resolve) => { setTimeout(resolve, 1000 * error.wait); });
    return send(signal, tries - 1);
  }
}

function tell(found) {
  const total = Object.values(found.seconds).reduce((sum, seconds) => sum + seconds, 0);
  const steps = Object.entries(found.seconds)
    .map(([step, seconds]) => `${STEPS[step] ?? step} ${(1000 * seconds).toFixed(0)} ms`).join(", ");
  const recall = found.engine === "exact" ? "" : found.recall === null
    ? ", recall not measured for this search"
    : `, expected recall ${(100 * found.recall).toFixed(1)}%`;
  const within = found.category ? ` in ${found.category}` : "";
  find("status").replaceChildren(
    make("b", {}, `${found.answers.length} answers${within} in ${(1000 * total).toFixed(0)} ms`),
    ` (${steps}). ${ENGINES[found.engine]}: ${found.searched.split(", ")[0]}${recall}.`);
}

// Before anything is asked: pictures to start from.
async function start() {
  last = null;
  const found = await work(() => api.search([], { ...settings(), count: START }));
  if (!found || !asked.empty) return;
  find("status").textContent = "Drop a picture, choose a colour, or start from one of these.";
  showAnswers(found.answers, found.collection, asked, act);
}

function record() {
  const address = asked.ids.length ? `?picture=${asked.ids[0]}` : location.pathname;
  history.pushState(step(), "", address);
}

const step = () => ({ ids: [...asked.ids], color: asked.color });

window.addEventListener("popstate", (event) => {
  if (!event.state) return; // a link within the page, as "Skip to the answers"
  asked.drop();
  asked.ids = event.state.ids;
  asked.color = event.state.color;
  asked.show();
  ask();
});

function balanceText() {
  const value = Number(find("balance").value);
  find("balancetext").textContent = value === 0.5 ? "Cut and colour, as the collection is set."
    : value === 0 ? "Cut and texture alone." : value === 1 ? "Colour alone."
      : value < 0.5 ? "Colour counts less." : "Cut counts less.";
}

async function describe() {
  collection = await api.collection();
  asked.version = collection.version;
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
    ENGINES[one.name] + (!one.ready ? " (not made yet)" : one.name === "exact" || one.recall === null ? ""
      : `, recall ${(100 * one.recall).toFixed(1)}%`))));
  find("engine").value = engine;
  find("peritem").closest("label").hidden = !collection.items;
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
    pending = setTimeout(ask, 60);
  };
  for (const id of ["othercolor", "peritem", "category", "count", "engine"]) find(id).onchange = () => ask();
  const looks = ["", "light", "dark"];
  find("theme").onclick = () => {
    const next = looks[(looks.indexOf(document.documentElement.dataset.theme ?? "") + 1) % 3];
    localStorage.setItem("theme", next);
    look(next);
  };
  listenToKeys(act);
}

function look(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").title = `Look: ${theme || "as the system"}`;
  find("theme").textContent = { light: "☀", dark: "☾" }[theme] ?? "◐";
  find("theme").setAttribute("aria-label", find("theme").title);
}

find("options").open = !matchMedia("(max-width: 820px)").matches; // there, the answers come first
look(localStorage.getItem("theme") ?? "");
balanceText();
listen();
await work(async () => {
  await describe();
  const picture = new URLSearchParams(location.search).get("picture");
  if (picture && Number(picture) < collection.pictures) {
    asked.ids = [Number(picture)];
    asked.show();
  }
  history.replaceState(step(), "");
  await ask();
});
document.documentElement.dataset.ready = "true";
setInterval(() => describe().catch(() => {}), LOOK_AGAIN);
