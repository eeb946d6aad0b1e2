// The camera, and its frames on their way to the server. While one is in flight the next is made ready; it is sent as soon
// as the answer is there, before that is drawn.

import { openStream, Problem, request } from "./api.js";
import { decodeFrame } from "./wire.js";

const LONG_SIDE = 640; // pixels sent; the network sees a part of it, much smaller still
const JPEG_QUALITY = 0.8;
const ANSWER_SECONDS = 12; // the server's own deadline is 10
const PICTURE_MS = 50; // a new one is said to be there only when the page is drawn, which may be seldom
const RETRY_SECONDS = [1, 2, 4, 8];
const REMEMBERED = 30; // answers, for the rates that are shown

// Close codes of the server: docs/how_to/serving.md.
const [POLICY, TOO_LARGE, FAILED, IDLE] = [1008, 1009, 1011, 4408];

export class Live {
  /** `onFrame(snapshot, frame, rates)` for each answer, `onMessage(text)`, `onEnd(problem | null)` when it is over. */
  constructor(video, { onFrame, onMessage, onEnd }) {
    Object.assign(this, { video, onFrame, onMessage, onEnd });
    this.options = { hand: "auto", box: null };
    this.running = false;
    this.canvases = [1, 2, 3].map(() => document.createElement("canvas")); // on the screen, in flight, made ready
    document.addEventListener("visibilitychange", () => this.running && !document.hidden && this.wake?.());
  }

  /** Asks for the camera. Throws a Problem when there is none to be had. */
  async start(deviceId) {
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) {
      throw new Problem(
        "The camera needs https",
        "Browsers give the camera only to pages on https or localhost. Open this page that way, or choose a photo.",
      );
    }
    const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
    const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "user" } };
    const stream = await openCamera({ audio: false, video: { ...size, ...which } });
    try {
      await request("v1/model"); // a WebSocket cannot say that it wants a token, nor why it was refused
    } catch (problem) {
      stopTracks(stream);
      throw problem;
    }
    this.stop();
    this.stream = stream;
    this.video.srcObject = stream;
    const [track] = stream.getVideoTracks();
    track.addEventListener("ended", () => this.#end(new Problem("The camera was unplugged or taken away")));
    await this.video.play();
    this.running = true;
    this.#run(stream);
    const settings = track.getSettings();
    return { deviceId: settings.deviceId, facing: settings.facingMode ?? "user" };
  }

  stop() {
    this.running = false;
    stopTracks(this.stream);
    this.stream = null;
    this.video.srcObject = null;
    this.socket?.close(1000);
    this.socket = null;
    this.wake?.();
  }

  /** Which hand, and where to look for it. */
  setOptions(options) {
    this.options = { ...this.options, ...options };
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(this.options));
  }

  /** The camera's picture now, in full size, as a JPEG. */
  async takePhoto() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    return toJpeg(canvas, 0.93);
  }

  async cameras() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter((device) => device.kind === "videoinput" && device.deviceId);
  }

  #end(problem) {
    if (!this.running) return;
    this.stop();
    this.onEnd(problem);
  }

  /** Until stopped: connect, send frames, and connect again when the server was gone for a moment. */
  async #run(stream) {
    const ours = () => this.running && this.stream === stream;
    for (let failures = 0; ours(); ) {
      const { answered, code, reason } = await this.#talk(ours);
      if (!ours()) return;
      failures = answered > 0 ? 0 : failures + 1;
      if (code === POLICY || code === TOO_LARGE || code === FAILED) return this.#end(new Problem("The server refused the camera", reason));
      if (code === IDLE) continue;
      if (failures > RETRY_SECONDS.length) {
        return this.#end(new Problem(reason || "The server does not answer", "The camera was switched off.", { retry: true }));
      }
      this.onMessage(reason || "The server does not answer. Trying again …");
      await sleep(1000 * RETRY_SECONDS[Math.max(0, failures - 1)]);
    }
  }

  /** One connection. Resolves when it is closed. */
  async #talk(ours) {
    const socket = (this.socket = openStream());
    const inbox = new Inbox(socket);
    const open = () => ours() && socket.readyState === WebSocket.OPEN;
    let answered = 0;
    if (await inbox.opened) {
      socket.send(JSON.stringify(this.options));
      const rates = new Rates();
      let next = this.#nextFrame(0);
      let show = () => {};
      for (let number = 0; ; number++) {
        if (next.ready) setTimeout(show); // after sending
        else show();
        const { canvas, blob } = await next.frame;
        if (!open()) break;
        socket.send(blob);
        const sent = performance.now();
        // Made ready when the answer is expected, so that it is not older than it must be.
        next = this.#nextFrame(number + 1, rates.count ? rates.median("roundTrip") - 2 * rates.median("preparing") : 0);
        const answer = await inbox.answerTo(number);
        if (answer === null || !ours()) break;
        show = () => {};
        if (answer.type === "error") {
          this.onMessage(answer.status === 429 ? "The server is busy …" : answer.detail);
          await sleep(1000 * Math.max(0.25, answer.retry_after ?? 0));
          continue;
        }
        answered++;
        rates.add({ roundTrip: performance.now() - sent, server: answer.serverMs, model: answer.modelMs, preparing: this.preparing });
        show = () => ours() && this.onFrame(canvas, answer, rates);
      }
    }
    socket.close();
    const { code, reason } = await inbox.closed;
    return { answered, code, reason };
  }

  /** -> { frame, ready }: a promise of the camera's next picture as canvas and JPEG, and whether it is kept already. */
  #nextFrame(number, waitMs = 0) {
    const next = { ready: false };
    next.frame = (async () => {
      if (waitMs > 0) await sleep(waitMs);
      const started = performance.now();
      await this.#nextPicture();
      const canvas = this.#snapshot(number);
      const blob = await toJpeg(canvas, JPEG_QUALITY);
      this.preparing = performance.now() - started;
      next.ready = true;
      return { canvas, blob };
    })();
    return next;
  }

  /** Resolves when the camera should have a picture that was not sent yet, and somebody is looking. */
  async #nextPicture() {
    while (document.hidden && this.running) await new Promise((resolve) => (this.wake = resolve));
    const video = this.video;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, PICTURE_MS);
      const done = () => (clearTimeout(timer), resolve());
      this.wake = done;
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(done);
      else requestAnimationFrame(done);
    });
  }

  /** On the canvases in turn. */
  #snapshot(number) {
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, LONG_SIDE / Math.max(videoWidth, videoHeight, 1));
    const canvas = this.canvases[number % this.canvases.length];
    const size = { width: Math.max(1, Math.round(videoWidth * scale)), height: Math.max(1, Math.round(videoHeight * scale)) };
    if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
    // To be read again at once, which a graphics card does slowly.
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(this.video, 0, 0, size.width, size.height);
    return canvas;
  }
}

/** Messages of a socket as promises. */
class Inbox {
  constructor(socket) {
    this.waiting = null;
    this.opened = new Promise((resolve) => {
      socket.addEventListener("open", () => resolve(true));
      socket.addEventListener("close", () => resolve(false));
    });
    this.closed = new Promise((resolve) => {
      socket.addEventListener("close", (event) => {
        this.waiting?.resolve(null);
        resolve(event);
      });
    });
    socket.addEventListener("message", ({ data }) => {
      const answer = typeof data === "string" ? JSON.parse(data) : decodeFrame(data);
      if (this.waiting && (answer.number ?? answer.frame) === this.waiting.number) this.waiting.resolve(answer);
    });
  }

  /** null when the connection is closed before, or nothing comes for too long. */
  async answerTo(number) {
    const answer = new Promise((resolve) => (this.waiting = { number, resolve }));
    const late = sleep(1000 * ANSWER_SECONDS).then(() => null);
    return Promise.race([answer, late, this.closed.then(() => null)]);
  }
}

class Rates {
  answers = []; // { at, roundTrip, server, model, preparing }: milliseconds

  add(answer) {
    this.answers.push({ at: performance.now(), ...answer });
    if (this.answers.length > REMEMBERED) this.answers.shift();
  }

  get count() {
    return this.answers.length;
  }

  get framesPerSecond() {
    const [first, last] = [this.answers[0], this.answers.at(-1)];
    return this.answers.length < 2 ? 0 : (1000 * (this.answers.length - 1)) / (last.at - first.at);
  }

  /** The middle one of the last, in milliseconds. */
  median(name) {
    const sorted = this.answers.map((answer) => answer[name]).sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)];
  }
}

async function openCamera(constraints) {
  try {
    return await navigator.mediaDevices.getUserMedia(constraints);
  } catch (error) {
    switch (error.name) {
      case "NotAllowedError":
      case "SecurityError":
        throw new Problem(
          "The camera was not allowed",
          "Allow it for this page: the symbol beside the address shows how. Then try again.",
          { retry: true },
        );
      case "NotFoundError":
      case "OverconstrainedError":
        throw new Problem("No camera was found", "Plug one in and try again, or choose a photo.", { retry: true });
      case "NotReadableError":
      case "AbortError":
        throw new Problem("The camera cannot be read", "Another program may be using it. Close that one and try again.", { retry: true });
      default:
        throw new Problem("The camera does not work", error.message, { retry: true });
    }
  }
}

function stopTracks(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function toJpeg(canvas, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no JPEG"))), "image/jpeg", quality);
  });
}

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
