// The query: uploaded pictures, pictures of the collection, a box, words, a colour.
import { image } from "./api.js";
import { Camera } from "./camera.js";
import { Crop } from "./crop.js";
import { find, make } from "./dom.js";

const MAX_PICTURES = 16;
const SWATCHES = {
  black: "#17171a", grey: "#8a8a8f", white: "#f7f7f5", beige: "#d8c3a5", brown: "#6f4a2f",
  red: "#b3202c", pink: "#f2a6c0", orange: "#e8772e", yellow: "#f2cc3d", olive: "#6b6b35",
  green: "#2f7d4f", teal: "#1f8a94", blue: "#2c5fa8", navy: "#1d2a4d", purple: "#6a3d8f",
};

export class Query {
  // `onChange` is called when the query has changed; `showError` with a message.
  constructor(onChange, showError) {
    this.onChange = onChange;
    this.showError = showError;
    this.files = []; // uploaded, each { file, address }
    this.ids = []; // of the collection
    this.handle = null; // the server's name for the uploaded pictures
    this.color = null;
    this.text = "";
    this.like = [];
    this.unlike = [];
    this.version = "";
    this.finds = false; // whether the server finds garments
    this.garments = []; // found in the picture: x1, y1, x2, y2 from 0 to 1
    this.untouched = true; // no box was chosen by hand: the server may find one
    this.crop = new Crop(() => this.choose(this.crop.box));
    this.camera = new Camera((photograph) => this.add([photograph]), showError);
    this.listen();
    this.swatches();
  }

  get empty() {
    return !this.files.length && !this.ids.length && !this.color && !this.text;
  }

  listen() {
    const file = find("file"), capture = find("capture"), drop = find("drop");
    find("choose").onclick = () => file.click();
    find("add").onclick = () => file.click();
    find("clear").onclick = () => this.clear();
    find("text").onchange = find("text").onsearch = () => {
      const text = find("text").value.trim();
      if (text === this.text) return; // Enter fires both events
      this.text = text;
      this.show();
      this.onChange();
    };
    find("whole").onclick = () => this.choose(null);
    for (const input of [file, capture]) {
      input.onchange = () => { this.add([...input.files]); input.value = ""; };
    }
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.add([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => this.add([...event.clipboardData.files]));
  }

  swatches() {
    const choose = (color) => {
      this.color = this.color === color ? null : color;
      this.show();
      this.onChange();
    };
    for (const [name, color] of Object.entries(SWATCHES)) {
      const button = make("button", { type: "button", title: name, ariaLabel: name, onclick: () => choose(color) });
      button.style.background = color;
      button.dataset.color = color;
      find("swatches").append(button);
    }
    const own = make("input", { type: "color", value: "#c2410c", ariaLabel: "another colour", title: "another colour" });
    own.onchange = () => { this.color = null; choose(own.value); };
    find("swatches").append(own);
  }

  add(files) {
    if (!files.length) return;
    const free = MAX_PICTURES - this.files.length;
    if (files.length > free) this.showError(`A query has at most ${MAX_PICTURES} pictures; the others are ignored.`);
    for (const file of files.slice(0, free)) {
      this.files.push({ file, address: URL.createObjectURL(file) });
    }
    this.ids = [];
    this.forgetBox();
    this.clearFeedback();
    this.uploadAgain();
  }

  searchFrom(id) {
    this.drop();
    this.ids = [id];
    this.show();
    this.onChange(true);
  }

  rate(id, list) {
    const other = list === this.like ? this.unlike : this.like;
    if (other.includes(id)) other.splice(other.indexOf(id), 1);
    if (list.includes(id)) list.splice(list.indexOf(id), 1);
    else list.push(id);
    this.show();
    this.onChange();
  }

  forgetBox() {
    this.crop.set(null);
    this.garments = [];
    this.untouched = true;
  }

  clearFeedback() {
    this.like.length = this.unlike.length = 0;
  }

  drop() {
    for (const one of this.files) URL.revokeObjectURL(one.address);
    this.files = [];
    this.ids = [];
    this.handle = null;
    this.text = "";
    this.forgetBox();
    this.clearFeedback();
  }

  clear() {
    this.drop();
    this.color = null;
    this.show();
    this.onChange(true);
  }

  choose(box) {
    this.untouched = false;
    this.crop.set(box);
    this.uploadAgain();
  }

  // The boxes that the server has found, in px; the picture was cut to the first one.
  async showGarments(boxes) {
    const preview = find("preview"), address = preview.src;
    await preview.decode().catch(() => {});
    if (!boxes.length || preview.src !== address) return;
    const sides = [preview.naturalWidth, preview.naturalHeight];
    this.garments = boxes.map((box) => box.map((value, i) => value / sides[i % 2]));
    this.untouched = false;
    this.crop.set(this.garments[0]);
    this.show();
  }

  // The uploaded pictures or their box have changed: the server must read them again.
  uploadAgain() {
    this.handle = null;
    this.show();
    this.onChange();
  }

  // The files and the options to send.
  request() {
    const preview = find("preview");
    const box = this.crop.pixels(preview.naturalWidth, preview.naturalHeight);
    const send = this.files.length && !this.handle;
    const options = { pictures: this.ids, like: this.like, unlike: this.unlike };
    if (this.color) options.color = this.color;
    if (this.text) options.text = this.text;
    if (this.handle) options.query = this.handle;
    if (send && box) options.box = box;
    else if (send && this.finds && this.untouched && this.files.length === 1) options.box = "auto";
    return { files: send ? this.files.map((one) => one.file) : [], options };
  }

  show() {
    const pictures = [
      ...this.files.map((one) => one.address),
      ...this.ids.map((id) => image(id, 512, this.version)),
    ];
    find("empty").hidden = pictures.length > 0;
    find("query").hidden = !pictures.length;
    this.crop.enabled = this.files.length === 1;
    find("picture").classList.toggle("fixed", !this.crop.enabled);
    find("boxhint").textContent = !this.files.length ? "A picture of the collection."
      : this.garments.length ? "Searched: the garment in the box. Move it, or draw another one."
        : this.crop.enabled ? "Draw a box around one garment to search for it only."
        : "All pictures make one query.";
    const preview = find("preview");
    if (pictures.length && preview.src !== pictures[0]) {
      preview.hidden = false;
      preview.src = pictures[0];
      preview.onerror = () => {
        preview.hidden = true;
        find("boxhint").textContent = "This picture cannot be shown.";
      };
    }
    find("pictures").replaceChildren(...(pictures.length > 1 ? this.files.map((one, i) => make("li", {},
      make("img", { src: one.address, alt: `picture ${i + 1}` }),
      make("button", { type: "button", ariaLabel: `remove picture ${i + 1}`, onclick: () => this.remove(i) }, "✕"),
    )) : []));
    find("text").value = this.text;
    find("wordshint").hidden = !this.text;
    for (const button of find("swatches").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.color === this.color));
    }
    const others = this.garments.filter((box) => box !== this.crop.box);
    find("garments").replaceChildren(...(this.crop.enabled ? others : []).map((box) => {
      const dot = make("button", { type: "button", ariaLabel: "search for this garment", onclick: () => this.choose(box) });
      Object.assign(dot.style, { left: `${50 * (box[0] + box[2])}%`, top: `${50 * (box[1] + box[3])}%` });
      return dot;
    }));
    this.showFeedback();
  }

  remove(place) {
    URL.revokeObjectURL(this.files.splice(place, 1)[0].address);
    this.uploadAgain();
  }

  showFeedback() {
    find("feedback").hidden = !this.like.length && !this.unlike.length;
    const chip = (id, list, kind, label) => make("li", { className: kind, title: label },
      make("img", { src: image(id, 128, this.version), alt: label }),
      make("button", { type: "button", ariaLabel: `remove: ${label}`, onclick: () => this.rate(id, list) }, "✕"));
    find("likes").replaceChildren(
      ...this.like.map((id) => chip(id, this.like, "like", "more like this")),
      ...this.unlike.map((id) => chip(id, this.unlike, "unlike", "less like this")));
  }
}
