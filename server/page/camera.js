// A photograph as the query: by the camera app on phones, which makes better pictures; else here.
import { find } from "./dom.js";

const IDEAL_WIDTH = 1600; // px
const REFUSALS = {
  NotAllowedError: "The camera is not allowed for this page: allow it in the browser, or choose a file.",
  NotFoundError: "No camera was found: choose a file.",
  NotReadableError: "Another program uses the camera: close it, or choose a file.",
};

export class Camera {
  // `onPhotograph` is called with the photograph, a File; `showError` with a message.
  constructor(onPhotograph, showError) {
    this.onPhotograph = onPhotograph;
    this.showError = showError;
    this.video = find("viewfinder");
    find("photograph").onclick = () => this.open();
    find("shoot").onclick = () => this.shoot();
    find("camera").onclose = () => this.stop();
  }

  async open() {
    // Browsers give a camera to pages of this machine and of https only.
    if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
      find("capture").click();
      return;
    }
    this.showError("");
    find("photograph").disabled = true; // a second click would start the camera twice
    try {
      const video = { facingMode: "environment", width: { ideal: IDEAL_WIDTH } };
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video });
      find("camera").showModal();
      await this.video.play();
      find("shoot").disabled = false;
      find("shoot").focus();
    } catch (error) {
      // AbortError: the dialog was closed before the camera was ready.
      if (error.name !== "AbortError") this.showError(REFUSALS[error.name] ?? `The camera cannot be used: ${error.message}`);
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
      if (blob) this.onPhotograph(new File([blob], "photograph.jpg", { type: blob.type }));
    }, "image/jpeg", 0.92);
  }

  stop() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    find("shoot").disabled = true;
  }
}
