// What the stage shows of a camera, as a clip, and the hands in it as lines of JSON: in memory until it is stopped.

const MAX_SECONDS = 300;
const BACKGROUND = "#171a20";
const FORMATS = { mp4: "video/mp4;codecs=avc1.42E01E", webm: "video/webm;codecs=vp8" };

/** "mp4" or "webm", what this browser can record; undefined where it cannot. */
export function recordingFormat() {
  if (!window.MediaRecorder || !HTMLCanvasElement.prototype.captureStream) return undefined;
  return Object.keys(FORMATS).find((name) => MediaRecorder.isTypeSupported(FORMATS[name]));
}

export class Recording {
  /** `layers`: the canvases of the stage, lowest first. `onEnd(files)`: [{ name, bytes, open }], once. */
  constructor(layers, onEnd) {
    const [{ width, height }] = layers;
    this.layers = layers;
    // Codecs want even numbers.
    this.canvas = Object.assign(document.createElement("canvas"), { width: width & ~1, height: height & ~1 });
    this.lines = [];
    this.started = performance.now();
    const format = recordingFormat();
    const chunks = [];
    const stream = this.canvas.captureStream();
    this.recorder = new MediaRecorder(stream, { mimeType: FORMATS[format], videoBitsPerSecond: 4_000_000 });
    this.recorder.ondataavailable = ({ data }) => data.size && chunks.push(data);
    this.recorder.onstop = () => {
      for (const track of stream.getTracks()) track.stop();
      onEnd([file(`hands.${format}`, chunks, `video/${format}`), file("hands.jsonl", this.lines, "application/x-ndjson")]);
    };
    this.recorder.start(1000);
  }

  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** When something new was drawn. */
  draw() {
    if (this.seconds > MAX_SECONDS) this.stop();
    const { canvas } = this;
    const context = canvas.getContext("2d");
    context.fillStyle = BACKGROUND;
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const layer of this.layers) {
      context.globalAlpha = Number(layer.style.opacity || 1);
      context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    }
    context.globalAlpha = 1;
  }

  /** A line for each answer of the stream. */
  add(frame) {
    const hands = frame.hands.map((hand) => ({
      handedness: hand.handedness,
      handedness_source: hand.handednessSource,
      handedness_score: rounded(hand.handednessScore),
      score: rounded(hand.score),
      joint_scores: hand.jointScores && [...hand.jointScores].map(rounded), // none where the model cannot tell
      keypoints_px: points(hand.keypoints, 2),
      joints: points(hand.joints, 3),
      camera_scale_ndc_per_m: rounded(hand.scale),
      camera_translation_m: hand.translation.map(rounded),
      crop_center_px: hand.cropCenter.map(rounded),
      crop_size_px: rounded(hand.cropSize),
    }));
    this.lines.push(`${JSON.stringify({ time: rounded(this.seconds), width: frame.width, height: frame.height, hands })}\n`);
  }

  stop() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
  }
}

function file(name, parts, type) {
  const blob = new Blob(parts, { type });
  return { name, bytes: blob.size, open: async () => blob };
}

function points(flat, size) {
  return Array.from({ length: flat.length / size }, (_, index) => [...flat.slice(index * size, (index + 1) * size)].map(rounded));
}

const rounded = (value) => Math.round(value * 1e5) / 1e5;
