// The grid of answers.
import { image } from "./api.js";
import { find, make } from "./dom.js";

// `actions` has searchFrom(id), why(answer), rate(id, "like" or "unlike").
export function showAnswers({ answers, collection, same }, query, actions) {
  const grid = find("grid");
  const place = [...grid.children].indexOf(document.activeElement.closest(".card"));
  grid.replaceChildren(...answers.map((answer) => card(answer, collection, same, query, actions)));
  // The card at the same place keeps the focus.
  if (place >= 0) grid.children[Math.min(place, answers.length - 1)]?.querySelector(".from").focus({ preventScroll: true });
  find("keys").hidden = !answers.length;
}

function picture(id, version, label, actions) {
  const button = make("button", { type: "button", className: "from", title: `search from ${label}`, onclick: () => actions.searchFrom(id) });
  const img = make("img", { src: image(id, 384, version), alt: label, loading: "lazy", decoding: "async" });
  img.onerror = () => { button.classList.add("gone"); button.replaceChildren("cannot be read"); };
  button.append(img);
  return button;
}

function remarks({ copies, duplicate_of: other }) {
  return [...(copies > 1 ? [`${copies} copies`] : []),
    ...(other === null ? [] : [`near-duplicate of ${other || "the query"}`])];
}

export const percent = (share) => share > 0.99 ? "over 99%" : share < 0.01 ? "under 1%" : `${(100 * share).toFixed(0)}%`;

function card(answer, version, same, query, actions) {
  const label = [answer.category, answer.item].filter(Boolean).join(", ") || answer.path;
  const isAnswer = Object.keys(answer.parts).length > 0;
  const distance = answer.distance !== null ? answer.distance.toFixed(3) : isAnswer ? "not defined" : "";
  const rated = (kind) => String(query[kind].includes(answer.id));
  const element = make("li", { className: "card" },
    picture(answer.id, version, `${answer.rank}: ${label}`, actions),
    make("div", { className: "about" },
      make("span", { className: "first" },
        make("span", { className: "rank" }, isAnswer ? String(answer.rank) : ""),
        make("span", { className: "distance", title: "distance: smaller is nearer" }, distance)),
      ...(answer.probability === null ? [] : [make("span", { className: answer.probability < 0.5 ? "sure" : "sure likely",
        title: `probability that it shows the query's ${same}, if the collection has it` }, `same ${same}: ${percent(answer.probability)}`)]),
      make("span", { title: answer.item ? `item ${answer.item}` : "" }, label,
        ...remarks(answer).map((text) => make("i", { className: "remark" }, text))),
      make("span", { className: "path", title: answer.path }, make("bdi", {}, answer.path))),
    ...(isAnswer ? [make("div", { className: "acts" },
      make("button", { type: "button", onclick: () => actions.why(answer) }, "Why"),
      make("button", { type: "button", ariaLabel: "more like this", title: "more like this", ariaPressed: rated("like"), onclick: () => actions.rate(answer.id, "like") }, "+"),
      make("button", { type: "button", ariaLabel: "less like this", title: "less like this", ariaPressed: rated("unlike"), onclick: () => actions.rate(answer.id, "unlike") }, "−"))] : []));
  if (isAnswer) element.answer = answer;
  return element;
}

// Arrows move from card to card; letters apply to the card in focus.
export function listenToKeys(actions) {
  find("grid").addEventListener("keydown", (event) => {
    const current = event.target.closest(".card");
    if (!current || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = [...find("grid").children];
    const across = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (step) cards[cards.indexOf(current) + step]?.querySelector(".from").focus();
    else if (!current.answer) return;
    else if (event.key === "w") actions.why(current.answer);
    else if (event.key === "+") actions.rate(current.answer.id, "like");
    else if (event.key === "-") actions.rate(current.answer.id, "unlike");
    else return;
    event.preventDefault();
  });
}
