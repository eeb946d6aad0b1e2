// The camera, and its frames on their way to the server. While the server works on one the next is there already, so that
// it never waits for the page. Answers are drawn when the page is (stage.js), and only the newest.

import { openStream, Problem, request } from "./api.js";
import { decodeFrame } from "./wire.js";

const LONG_SIDE = 640; // pixels sent; the network sees a part of it, much smaller still
const JPEG_QUALITY = 0.8;
const IN_FLIGHT = 2; // frames: the server keeps one while it works on another
const SLACK_SECONDS = 2; // on the way, beyond the server's own deadline
const PICTURE_MS = 50; // a new one is said to be there only when the page is drawn, which may be seldom
const RETRY_SECONDS = [1, 2, 4, 8];
const REMEMBERED = 30; // answers, for the rates that are shown

// Close codes of the server: docs/reference/live_stream.md.
const [POLICY, TOO_LARGE, FAILED, IDLE] = [1008, 1009, 1011, 4408];

export class Live {
  /**
   * `onFrame(snapshot, frame, rates)` for each answer, `onMessage(text)`, `onEnd(problem | null)` when it is over.
   * `deadlineSeconds`: the server answers a frame within.
   */
  constructor(video, { deadlineSeconds, onFrame, onMessage, onEnd }) {
    Object.assign(this, { video, deadlineSeconds, onFrame, onMessage, onEnd });
    this.options = { hand: "auto", box: null };
    this.running = false;
    this.asked = 0; // times for the camera
    // On the screen, in flight, made ready.
    this.canvases = Array.from({ length: IN_FLIGHT + 2 }, () => document.createElement("canvas"));
    document.addEventListener("visibilitychange", () => this.running && !document.hidden && this.wake?.());
  }

  /** Asks for the camera. Throws a Problem when there is none to be had; null when it was asked for again meanwhile. */
  async start(deviceId) {
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) {
      throw new Problem(
        "The camera needs https",
        "Browsers give the camera only to pages on https or localhost. Open this page that way, or choose a photo.",
      );
    }
    const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 60 } };
    const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "user" } };
    const asked = ++this.asked;
    const stream = await openCamera({ audio: false, video: { ...size, ...which } });
    try {
      await request("v1/model"); // a WebSocket cannot say that it wants a token, nor why it was refused
    } catch (problem) {
      stopTracks(stream);
      throw problem;
    }
    if (asked !== this.asked) {
      stopTracks(stream);
      return null;
    }
    this.stop();
    this.stream = stream;
    this.video.srcObject = stream;
    const [track] = stream.getVideoTracks();
    track.addEventListener("ended", () => this.#end(new Problem("The camera was unplugged or taken away")));
    await this.video.play();
    // In browsers that have it, pictures come as the camera takes them; of a video only as often as the page is drawn.
    this.frames = window.MediaStreamTrackProcessor && new MediaStreamTrackProcessor({ track, maxBufferSize: 1 }).readable.getReader();
    this.encoder ??= new Encoder();
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
    const rates = new Rates();
    let answered = 0;
    let pause = Promise.resolve();
    const inFlight = new InFlight(socket, ({ canvas, sent }, answer) => {
      if (!ours()) return;
      if (answer.type === "error") {
        this.onMessage(answer.status === 429 ? "The server is busy …" : answer.detail);
        pause = sleep(1000 * Math.max(0.25, answer.retry_after ?? 0));
        return;
      }
      answered++;
      rates.add({ roundTrip: performance.now() - sent, server: answer.serverMs, model: answer.modelMs });
      this.onFrame(canvas, answer, rates);
    });
    if (await inFlight.opened) {
      socket.send(JSON.stringify(this.options));
      for (let number = 0; await inFlight.hasRoom(this.deadlineSeconds + SLACK_SECONDS); number++) {
        await pause;
        const canvas = await this.#nextPicture(number);
        if (!canvas) break;
        const blob = await this.encoder.encode(canvas);
        if (!ours() || socket.readyState !== WebSocket.OPEN) break;
        socket.send(blob);
        inFlight.add(number, { canvas, sent: performance.now() });
      }
    }
    socket.close();
    const { code, reason } = await inFlight.closed;
    return { answered, code, reason };
  }

  /** A picture that was not sent yet, when somebody is looking, on the canvases in turn; null when there are no more. */
  async #nextPicture(number) {
    while (document.hidden && this.running) await new Promise((resolve) => (this.wake = resolve));
    if (this.frames) {
      const { value: frame } = await this.frames.read();
      if (!frame) return null;
      const canvas = this.#snapshot(frame, frame.displayWidth, frame.displayHeight, number);
      frame.close();
      return canvas;
    }
    const video = this.video;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, PICTURE_MS);
      const done = () => (clearTimeout(timer), resolve());
      this.wake = done;
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(done);
      else requestAnimationFrame(done);
    });
    return this.#snapshot(video, video.videoWidth, video.videoHeight, number);
  }

  #snapshot(picture, pictureWidth, pictureHeight, number) {
    const scale = Math.min(1, LONG_SIDE / Math.max(pictureWidth, pictureHeight, 1));
    const canvas = this.canvases[number % this.canvases.length];
    const size = { width: Math.max(1, Math.round(pictureWidth * scale)), height: Math.max(1, Math.round(pictureHeight * scale)) };
    if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
    // To be read again at once, which a graphics card does slowly.
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(picture, 0, 0, size.width, size.height);
    return canvas;
  }
}

/** Canvases to JPEGs, in a worker where the browser has what that takes. */
class Encoder {
  constructor() {
    if (!window.OffscreenCanvas) return;
    const url = new URL("encoder.js", import.meta.url).href;
    // The page's policy (page.py) wants scripts' addresses to be known as such.
    const policy = window.trustedTypes?.createPolicy("handmesh", { createScriptURL: (address) => address });
    this.worker = new Worker(policy ? policy.createScriptURL(url) : url);
    this.failed = new Promise((resolve) => {
      this.worker.onerror = () => resolve((this.worker = null));
    });
  }

  async encode(canvas) {
    if (!this.worker) return toJpeg(canvas, JPEG_QUALITY);
    const bitmap = await createImageBitmap(canvas);
    const { port1, port2 } = new MessageChannel();
    const encoded = new Promise((resolve) => {
      port1.onmessage = ({ data }) => (port1.close(), resolve(data));
    });
    this.worker?.postMessage({ bitmap, quality: JPEG_QUALITY }, [bitmap, port2]);
    return (await Promise.race([encoded, this.failed])) ?? toJpeg(canvas, JPEG_QUALITY);
  }
}

/** What was sent by a socket and is not answered yet. */
class InFlight {
  /** `onAnswer(frame, answer)`, for what was added. */
  constructor(socket, onAnswer) {
    this.frames = new Map(); // by number
    this.opened = new Promise((resolve) => {
      socket.addEventListener("open", () => resolve(true));
      socket.addEventListener("close", () => resolve(false));
    });
    this.closed = new Promise((resolve) => socket.addEventListener("close", resolve));
    socket.addEventListener("message", ({ data }) => {
      const answer = typeof data === "string" ? JSON.parse(data) : decodeFrame(data);
      const number = answer.number ?? answer.frame;
      const frame = this.frames.get(number);
      if (!frame) return;
      for (const older of this.frames.keys()) if (older <= number) this.frames.delete(older); // others are answered no more
      this.onRoom?.();
      onAnswer(frame, answer);
    });
  }

  add(number, frame) {
    this.frames.set(number, frame);
  }

  /** Resolves when one more may be sent; to false when the connection is closed before, or nothing comes for so long. */
  async hasRoom(seconds) {
    if (this.frames.size < IN_FLIGHT) return true;
    const room = new Promise((resolve) => (this.onRoom = () => resolve(true)));
    const late = sleep(1000 * seconds).then(() => false);
    return Promise.race([room, late, this.closed.then(() => false)]);
  }
}

class Rates {
  answers = []; // { at, roundTrip, server, model }: milliseconds

  add(answer) {
    this.answers.push({ at: performance.now(), ...answer });
    if (this.answers.length > REMEMBERED) this.answers.shift();
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
