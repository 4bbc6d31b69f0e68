// The collection in two dimensions, and its clusters.
import * as api from "./api.js";
import { find, make } from "./dom.js";

const REFRESH = 2000; // ms, until t-SNE has finished
const PICTURE_ZOOM = 6; // from which on pictures are shown
const TILE = 56; // px

export class CollectionMap {
  constructor(searchFrom) {
    this.searchFrom = searchFrom;
    this.canvas = find("canvas");
    this.context = this.canvas.getContext("2d");
    this.points = [];
    this.tiles = new Map();
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.hovered = null;
    this.state = "";
    this.listen();
  }

  async open(version) {
    this.resize();
    if (this.version === version && this.state === "tsne") return;
    this.version = version;
    const map = await api.map();
    const begin = this.state !== map.state;
    this.state = map.state;
    this.points = map.points;
    this.colors = colorsOf(map.points);
    if (begin) this.showClusters(map);
    find("mapstatus").textContent = map.state === "pca"
      ? `Arranging ${map.points.length.toLocaleString("en")} pictures by similarity (t-SNE). Until it has finished, the map shows their first two principal components.`
      : `${map.points.length.toLocaleString("en")} pictures; similar ones are close. Drag to move, scroll to zoom, click to search from a picture.`;
    find("legend").replaceChildren(...Object.entries(this.colors).map(([name, color]) => {
      const dot = make("i");
      dot.style.background = color;
      return make("li", {}, dot, name || "unknown");
    }));
    this.draw();
    if (map.state === "pca") setTimeout(() => find("map").hidden || this.open(version), REFRESH);
  }

  showClusters(map) {
    find("clustershint").textContent = map.missing
      || `A k-means query searches the nearest of these ${map.clusters.length} clusters. Shown are their most typical pictures.`;
    find("clusters").replaceChildren(...map.clusters.map((cluster) => make("li", {},
      make("p", {}, `${cluster.size.toLocaleString("en")} pictures, ${Math.round(100 * cluster.share)}% ${cluster.category || "unknown"}`),
      make("div", {}, ...cluster.typical.map((item) => make("button", { type: "button", title: item.path, ariaLabel: `search from ${item.path}`, onclick: () => this.searchFrom(item.id) },
        make("img", { src: `${item.image}&size=128`, alt: "", loading: "lazy" })))))));
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    this.ratio = ratio;
    this.draw();
  }

  get scale() {
    return 0.94 * Math.min(this.canvas.width, this.canvas.height) * this.view.zoom;
  }

  at(point) {
    return [(point.x - this.view.x) * this.scale + this.canvas.width / 2, (point.y - this.view.y) * this.scale + this.canvas.height / 2];
  }

  draw() {
    const { context, canvas } = this;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const near = this.view.zoom >= PICTURE_ZOOM;
    const side = TILE * this.ratio;
    for (const point of this.points) {
      const [x, y] = this.at(point);
      if (x < -side || y < -side || x > canvas.width + side || y > canvas.height + side) continue;
      const tile = near ? this.tile(point) : null;
      if (tile?.complete && tile.naturalWidth) {
        const fit = side / Math.max(tile.naturalWidth, tile.naturalHeight);
        const width = tile.naturalWidth * fit, height = tile.naturalHeight * fit;
        context.drawImage(tile, x - width / 2, y - height / 2, width, height);
        context.strokeStyle = this.colors[point.category];
        context.lineWidth = 2 * this.ratio;
        context.strokeRect(x - width / 2, y - height / 2, width, height);
      } else {
        context.fillStyle = this.colors[point.category];
        context.beginPath();
        context.arc(x, y, 4 * this.ratio, 0, 7);
        context.fill();
      }
    }
    if (this.hovered) this.drawHovered();
  }

  drawHovered() {
    const tile = this.tile(this.hovered);
    const [x, y] = this.at(this.hovered);
    const side = 130 * this.ratio;
    this.context.lineWidth = 3 * this.ratio;
    this.context.strokeStyle = getComputedStyle(this.canvas).color;
    this.context.beginPath();
    this.context.arc(x, y, 8 * this.ratio, 0, 7);
    this.context.stroke();
    if (!tile.complete || !tile.naturalWidth) return;
    const fit = side / Math.max(tile.naturalWidth, tile.naturalHeight);
    const left = Math.min(x + 14 * this.ratio, this.canvas.width - tile.naturalWidth * fit - 4);
    const top = Math.min(y + 14 * this.ratio, this.canvas.height - tile.naturalHeight * fit - 4);
    this.context.drawImage(tile, left, top, tile.naturalWidth * fit, tile.naturalHeight * fit);
    this.context.strokeRect(left, top, tile.naturalWidth * fit, tile.naturalHeight * fit);
  }

  tile(point) {
    if (!this.tiles.has(point.image)) {
      const tile = new Image();
      tile.onload = () => this.drawSoon();
      tile.src = `${point.image}&size=128`;
      this.tiles.set(point.image, tile);
    }
    return this.tiles.get(point.image);
  }

  drawSoon() {
    this.waiting ??= requestAnimationFrame(() => { this.waiting = null; this.draw(); });
  }

  nearest(x, y, maxDistance) {
    let best = null, shortest = maxDistance;
    for (const point of this.points) {
      const [px, py] = this.at(point);
      const distance = Math.hypot(px - x, py - y);
      if (distance < shortest) [best, shortest] = [point, distance];
    }
    return best;
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const before = this.scale;
    this.view.zoom = Math.min(60, Math.max(0.7, this.view.zoom * factor));
    const [dx, dy] = [x - this.canvas.width / 2, y - this.canvas.height / 2];
    this.view.x += dx / before - dx / this.scale;
    this.view.y += dy / before - dy / this.scale;
    this.drawSoon();
  }

  listen() {
    const place = (event) => [event.offsetX * this.ratio, event.offsetY * this.ratio];
    const fingers = new Map();
    let moved = 0;
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 300), ...place(event));
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(event));
      moved = 0;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const now = place(event);
      const before = fingers.get(event.pointerId);
      if (!before) {
        this.hovered = this.nearest(...now, 24 * this.ratio);
        this.drawSoon();
        return;
      }
      const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
      const apart = fingers.size === 2 ? spread() : 0;
      fingers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (apart) this.zoom(spread() / apart, ...now);
      else {
        this.view.x -= (now[0] - before[0]) / this.scale;
        this.view.y -= (now[1] - before[1]) / this.scale;
      }
      this.drawSoon();
    });
    this.canvas.addEventListener("pointerup", (event) => {
      fingers.delete(event.pointerId);
      const hit = moved < 6 * this.ratio && this.nearest(...place(event), 30 * this.ratio);
      if (hit) this.searchFrom(hit.id);
    });
    this.canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => find("map").hidden || this.resize());
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const middle = [this.canvas.width / 2, this.canvas.height / 2];
    if (step) {
      this.view.x += (step[0] * 60 * this.ratio) / this.scale;
      this.view.y += (step[1] * 60 * this.ratio) / this.scale;
    } else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "Enter" && this.hovered) { this.searchFrom(this.hovered.id); return; } else return;
    event.preventDefault();
    this.hovered = this.nearest(...middle, Infinity);
    this.drawSoon();
  }
}

function colorsOf(points) {
  const names = [...new Set(points.map((point) => point.category))].sort();
  return Object.fromEntries(names.map((name, i) => [name, `hsl(${(i * 137.5) % 360} 62% ${i % 2 ? 42 : 58}%)`]));
}
