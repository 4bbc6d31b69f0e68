// Why an answer has its rank: the parts of its distance, and both pictures as the network sees them.
import { explain } from "./api.js";
import { find, make, press } from "./dom.js";

const SIGNALS = { deep: "Cut and texture", color: "Colour of the strongest cells", palette: "Palette" };
const HINTS = {
  regions: "Warm regions are similar to the other picture. Point at a region of one picture to see the similar ones of the other.",
  cells: "The cells with the strongest response of the network, in their mean colour.",
};

let explanation = null;
let mode = "regions";
let pointed = null; // { side, cell }

// `weights` are those of the signals.
export async function why(search, answer, weights) {
  explanation = await explain(search, answer.id);
  pointed = null;
  find("whyhead").textContent = `Why answer ${answer.rank} has its rank`;
  find("bars").replaceChildren(...bars(answer, weights));
  const views = [["query", explanation.query], ["answer", explanation.answer]].filter(([, view]) => view);
  await Promise.all(views.map(async ([, view]) => {
    view.picture = new Image();
    view.picture.src = view.image;
    await view.picture.decode();
  }));
  find("views").replaceChildren(...views.map(([side, view]) => figure(side, view)));
  for (const button of find("why").querySelectorAll("[data-show]")) {
    button.onclick = () => { mode = button.dataset.show; draw(); };
  }
  draw();
  if (!find("why").open) find("why").showModal();
}

function bars(answer, weights) {
  const parts = Object.entries(answer.parts).map(([signal, value]) => ({ signal, value: value ?? 0, weight: weights[signal] }));
  const largest = Math.max(...parts.map((part) => part.weight * part.value), 1e-9);
  const rows = parts.map(({ signal, value, weight }) => {
    const name = SIGNALS[signal] ?? signal.replace(/^deep_/, "Cut and texture, network ");
    const bar = make("i");
    bar.style.width = `${(100 * weight * value) / largest}%`;
    return make("div", { className: "bar" }, make("b", {}, name), make("div", {}, bar),
      make("span", {}, `${value.toFixed(3)} × ${Number(weight.toPrecision(3))} = ${(weight * value).toFixed(3)}`));
  });
  const sum = answer.distance === null ? "none" : answer.distance.toFixed(3);
  return [...rows, make("p", { className: "hint" }, `Distance: ${sum}. A short bar means similar.`)];
}

function figure(side, view) {
  const canvas = make("canvas", { width: 448, height: 448, ariaLabel: `the ${side} as the network sees it` });
  canvas.setAttribute("role", "img");
  canvas.dataset.side = side;
  canvas.onpointermove = (event) => {
    const row = Math.floor((event.offsetY / canvas.clientHeight) * view.rows);
    const column = Math.floor((event.offsetX / canvas.clientWidth) * view.columns);
    if (row < 0 || column < 0 || row >= view.rows || column >= view.columns) return;
    pointed = { side, cell: row * view.columns + column };
    draw();
  };
  canvas.onpointerleave = () => { pointed = null; draw(); };
  const label = side === "query" ? "Query" : "Answer";
  return make("figure", {}, make("figcaption", {}, label), canvas);
}

function draw() {
  press(find("why").querySelectorAll("[data-show]"), find("why").querySelector(`[data-show="${mode}"]`));
  find("whyhint").textContent = HINTS[mode];
  for (const canvas of find("views").querySelectorAll("canvas")) {
    const view = explanation[canvas.dataset.side];
    const context = canvas.getContext("2d");
    context.drawImage(view.picture, 0, 0, canvas.width, canvas.height);
    if (mode === "cells") drawCells(context, view);
    else if (explanation.query) drawHeat(context, view, canvas.dataset.side);
  }
}

function drawCells(context, view) {
  const width = context.canvas.width / view.columns, height = context.canvas.height / view.rows;
  context.fillStyle = "#0009";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.font = "bold 16px system-ui";
  view.cells.forEach((cell, i) => {
    const x = cell.column * width, y = cell.row * height;
    context.fillStyle = cell.color;
    context.fillRect(x + 2, y + 2, width - 4, height - 4);
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    context.strokeRect(x + 2, y + 2, width - 4, height - 4);
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(i + 1, x + 9, y + 22);
    context.fillStyle = "#fff";
    context.fillText(i + 1, x + 9, y + 22);
  });
}

// The similarity of each cell of a picture to the other one: to its best match, or to the cell pointed at.
function similarity(side) {
  const line = (cell) => side === "answer" ? explanation.similar.map((row) => row[cell]) : explanation.similar[cell];
  const count = side === "answer" ? explanation.similar[0].length : explanation.similar.length;
  const values = Array.from({ length: count }, (_, cell) =>
    pointed ? line(cell)[pointed.cell] : Math.max(...line(cell)));
  const low = Math.min(...values), high = Math.max(...values);
  return values.map((value) => (value - low) / Math.max(high - low, 1e-6));
}

function drawHeat(context, view, side) {
  if (pointed?.side === side) {
    const width = context.canvas.width / view.columns, height = context.canvas.height / view.rows;
    context.strokeStyle = "#fff";
    context.lineWidth = 4;
    context.strokeRect((pointed.cell % view.columns) * width, Math.floor(pointed.cell / view.columns) * height, width, height);
    return;
  }
  const small = make("canvas", { width: view.columns, height: view.rows });
  const inner = small.getContext("2d");
  const pixels = inner.createImageData(view.columns, view.rows);
  similarity(side).forEach((value, i) => pixels.data.set(heat(value), 4 * i));
  inner.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}

function heat(value) {
  return [255, 190 * (1 - value) + 40, 0, 190 * value * value];
}
