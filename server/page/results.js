// The grid of answers.
import { image } from "./api.js";
import { find, make } from "./dom.js";

// `act` has from(id), why(answer), rate(id, "like" or "unlike").
export function showAnswers(answers, version, asked, act) {
  const grid = find("grid");
  const place = [...grid.children].indexOf(document.activeElement.closest(".card"));
  grid.replaceChildren(...answers.map((answer) => card(answer, version, asked, act)));
  // Who works by keys stays where they were.
  if (place >= 0) grid.children[Math.min(place, answers.length - 1)]?.querySelector(".from").focus({ preventScroll: true });
  find("keys").hidden = !answers.length;
}

function picture(id, version, words, act) {
  const button = make("button", { type: "button", className: "from", title: `search from ${words}`, onclick: () => act.from(id) });
  const img = make("img", { src: image(id, 384, version), alt: words, loading: "lazy", decoding: "async" });
  img.onerror = () => { button.classList.add("gone"); button.replaceChildren("cannot be read"); };
  button.append(img);
  return button;
}

function card(answer, version, asked, act) {
  const words = [answer.category, answer.item].filter(Boolean).join(", ") || answer.path;
  const asking = Object.keys(answer.parts).length > 0;
  const distance = answer.distance !== null ? answer.distance.toFixed(3) : asking ? "no distance" : "";
  const rated = (kind) => String(asked[kind].includes(answer.id));
  const element = make("li", { className: "card" },
    picture(answer.id, version, `${answer.rank}: ${words}`, act),
    make("div", { className: "about" },
      make("span", { className: "first" },
        make("span", { className: "rank" }, asking ? String(answer.rank) : ""),
        make("span", { className: "distance", title: "distance: smaller is nearer" }, distance)),
      make("span", { title: answer.item ? `item ${answer.item}` : "" }, words),
      make("span", { className: "path", title: answer.path }, make("bdi", {}, answer.path))),
    ...(asking ? [make("div", { className: "acts" },
      make("button", { type: "button", onclick: () => act.why(answer) }, "Why"),
      make("button", { type: "button", ariaLabel: "more like this", title: "more like this", ariaPressed: rated("like"), onclick: () => act.rate(answer.id, "like") }, "+"),
      make("button", { type: "button", ariaLabel: "less like this", title: "less like this", ariaPressed: rated("unlike"), onclick: () => act.rate(answer.id, "unlike") }, "−"))] : []));
  if (asking) element.answer = answer;
  return element;
}

// Arrows go from card to card, letters act on the one in focus.
export function listenToKeys(act) {
  find("grid").addEventListener("keydown", (event) => {
    const current = event.target.closest(".card");
    if (!current || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = [...find("grid").children];
    const across = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (step) cards[cards.indexOf(current) + step]?.querySelector(".from").focus();
    else if (!current.answer) return;
    else if (event.key === "w") act.why(current.answer);
    else if (event.key === "+") act.rate(current.answer.id, "like");
    else if (event.key === "-") act.rate(current.answer.id, "unlike");
    else return;
    event.preventDefault();
  });
}
