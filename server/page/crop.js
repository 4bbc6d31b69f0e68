// The box on the picture, drawn, moved and resized by pointer or keys; coordinates from 0 to 1.
import { find } from "./dom.js";

const MIN_SIDE = 0.04; // of the picture; a smaller box is an accidental click

export class Crop {
  constructor(onChange) {
    this.onChange = onChange;
    this.enabled = false;
    this.box = null; // x1, y1, x2, y2
    this.frame = find("picture");
    this.element = find("box");
    this.frame.addEventListener("pointerdown", (event) => this.begin(event));
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  set(box) {
    this.box = box;
    this.draw();
  }

  draw() {
    this.element.hidden = !this.box;
    find("whole").hidden = !this.box;
    if (!this.box) return;
    const [x1, y1, x2, y2] = this.box.map((value) => 100 * value);
    Object.assign(this.element.style, {
      left: `${x1}%`, top: `${y1}%`, width: `${x2 - x1}%`, height: `${y2 - y1}%`,
    });
  }

  // x1, y1, x2, y2 in px of the upright picture.
  pixels(width, height) {
    if (!this.box) return null;
    const [x1, y1, x2, y2] = this.box;
    const low = (value) => Math.floor(value + 1e-6), high = (value) => Math.ceil(value - 1e-6);
    return [low(x1 * width), low(y1 * height), high(x2 * width), high(y2 * height)];
  }

  place(event) {
    const frame = this.frame.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height]
      .map((value) => Math.min(1, Math.max(0, value)));
  }

  begin(event) {
    if (!this.enabled || event.button || event.target.closest("#garments")) return;
    event.preventDefault();
    this.frame.setPointerCapture(event.pointerId);
    const edge = event.target.dataset?.edge;
    const inside = event.target === this.element;
    const start = this.place(event);
    const before = this.box;
    const move = (moved) => {
      const now = this.place(moved);
      if (inside) this.set(shifted(before, now[0] - start[0], now[1] - start[1]));
      else this.set(spanned(edge ? opposite(before, edge) : start, now));
    };
    const end = () => {
      this.frame.removeEventListener("pointermove", move);
      this.frame.removeEventListener("pointerup", end);
      this.frame.removeEventListener("pointercancel", end);
      if (this.box && small(this.box)) this.set(before);
      if (this.box && !this.same(before)) this.onChange();
    };
    this.frame.addEventListener("pointermove", move);
    this.frame.addEventListener("pointerup", end);
    this.frame.addEventListener("pointercancel", end);
  }

  same(other) {
    return other && this.box.every((value, i) => value === other[i]);
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") this.set(null);
    else if (step && event.shiftKey) {
      const [x1, y1, x2, y2] = this.box;
      const grown = [x1, y1, Math.min(1, x2 + 0.02 * step[0]), Math.min(1, y2 + 0.02 * step[1])];
      if (!small(grown)) this.set(grown);
    } else if (step) this.set(shifted(this.box, 0.02 * step[0], 0.02 * step[1]));
    else return;
    event.preventDefault();
    this.onChange();
  }
}

const small = ([x1, y1, x2, y2]) => x2 - x1 < MIN_SIDE || y2 - y1 < MIN_SIDE;

function shifted([x1, y1, x2, y2], right, down) {
  right = Math.min(1 - x2, Math.max(-x1, right));
  down = Math.min(1 - y2, Math.max(-y1, down));
  return [x1 + right, y1 + down, x2 + right, y2 + down];
}

function spanned([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}

function opposite([x1, y1, x2, y2], edge) {
  return [edge.includes("w") ? x2 : x1, edge.includes("n") ? y2 : y1];
}
