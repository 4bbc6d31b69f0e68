// A photograph to search by: on phones by the camera's own app, which is better at it; else here.
import { find } from "./dom.js";

const WIDEST = 1600; // px
const REFUSALS = {
  NotAllowedError: "The camera is not allowed for this page: allow it in the browser, or choose a file.",
  NotFoundError: "No camera was found: choose a file.",
  NotReadableError: "Another program has the camera: close that, or choose a file.",
};

export class Camera {
  // `taken` is called with the photograph, a File.
  constructor(taken, complain) {
    this.taken = taken;
    this.complain = complain;
    this.video = find("viewfinder");
    find("photograph").onclick = () => this.open();
    find("shoot").onclick = () => this.shoot();
    find("camera").onclose = () => this.stop();
  }

  async open() {
    // Without https, other hosts' pages get no camera from the browser.
    if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
      find("capture").click();
      return;
    }
    this.complain("");
    find("photograph").disabled = true; // a second click would switch on a second camera
    try {
      const video = { facingMode: "environment", width: { ideal: WIDEST } };
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video });
      find("camera").showModal();
      await this.video.play();
      find("shoot").disabled = false;
      find("shoot").focus();
    } catch (error) {
      // The dialog may be closed before there is a picture.
      if (error.name !== "AbortError") this.complain(REFUSALS[error.name] ?? `The camera cannot be used: ${error.message}`);
    }
    find("photograph").disabled = false;
  }

  shoot() {
    find("shoot").disabled = true;
    const { videoWidth: width, videoHeight: height } = this.video;
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    canvas.toBlob((blob) => {
      find("camera").close();
      if (blob) this.taken(new File([blob], "photograph.jpg", { type: blob.type }));
    }, "image/jpeg", 0.92);
  }

  stop() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    find("shoot").disabled = true;
  }
}
