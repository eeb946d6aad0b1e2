// A photo or a camera in, the hand drawn over it: the bundled model with onnxruntime-web.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need a server that sends COOP and COEP headers
const session = await ort.InferenceSession.create("handmesh_t8.onnx");
const { faces, joints, bones } = await (await fetch("hand.json")).json();
const SIZE = session.inputMetadata[0].shape[1]; // px, the crop's side
const MARGIN = 1.5; // the crop's side over that of the keypoints' box
const [WRIST, KNUCKLE] = ["wrist", "middle_mcp"].map((name) => joints.indexOf(name));
const SEEN = 0.7; // a lower score, and no hand is shown

const canvas = document.querySelector("#picture");
const said = document.querySelector("#said");
const cropper = new OffscreenCanvas(SIZE, SIZE).getContext("2d", { willReadFrequently: true });

const wholeImage = (width, height) => ({ x: (width - 1) / 2, y: (height - 1) / 2, side: Math.max(width, height), turn: 0 });

/** A square around keypoints, turned so that the fingers point up. */
function around(points) {
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const turn = Math.atan2(points[KNUCKLE][0] - points[WRIST][0], points[WRIST][1] - points[KNUCKLE][1]);
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, side: MARGIN * Math.max(x1 - x0, y1 - y0), turn };
}

/** The network's answer for RGBA pixels of one crop. */
export async function run(pixels) {
  const rgb = new Uint8Array(SIZE * SIZE * 3);
  for (let i = 0; i < SIZE * SIZE; i++) rgb.set(pixels.subarray(4 * i, 4 * i + 3), 3 * i);
  return session.run({ crops: new ort.Tensor("uint8", rgb, [1, SIZE, SIZE, 3]) });
}

/** The hand in a square of an image: places in pixels, depths in metres. `left`: the crop is mirrored for the network. */
async function look(image, crop, left) {
  const flip = left ? -1 : 1;
  cropper.setTransform(1, 0, 0, 1, 0, 0);
  cropper.fillStyle = "black";
  cropper.fillRect(0, 0, SIZE, SIZE);
  cropper.imageSmoothingQuality = "high";
  cropper.translate(SIZE / 2, SIZE / 2);
  cropper.scale((flip * SIZE) / crop.side, SIZE / crop.side);
  cropper.rotate(-crop.turn);
  cropper.translate(-crop.x - 0.5, -crop.y - 0.5); // pixel centres are integers
  cropper.drawImage(image, 0, 0);
  const answer = await run(cropper.getImageData(0, 0, SIZE, SIZE).data);
  const [scale, tx, ty] = answer.camera.data;
  const [cos, sin] = [Math.cos(crop.turn), Math.sin(crop.turn)];
  const place = ({ data }) =>
    Array.from({ length: data.length / 3 }, (_, i) => {
      const x = (flip * scale * (data[3 * i] + tx) * crop.side) / 2, y = (scale * (data[3 * i + 1] + ty) * crop.side) / 2;
      return [crop.x + cos * x - sin * y, crop.y + sin * x + cos * y, data[3 * i + 2]];
    });
  const right = answer.handedness.data[0];
  return { left, score: answer.confidence.data[0], right: left ? 1 - right : right, pixelsPerMetre: (scale * crop.side) / 2, keypoints: place(answer.joints), vertices: place(answer.vertices) };
}

/** The whole image, then closer crops; or from `start`, where the hand was a moment ago. */
export async function find(image, start) {
  let hand = start ?? (await look(image, wholeImage(image.width, image.height), false));
  const passes = [];
  for (let pass = 0; pass < (start ? 1 : 2); pass++) {
    hand = await look(image, around(hand.keypoints), hand.right < 0.5);
    passes.push(hand);
  }
  return passes.reduce((best, one) => (one.score > best.score ? one : best));
}

/** The mesh over the image: triangles from far to near, lit from the viewer. */
function draw(image, hand) {
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true }); // drawn on the processor: many small triangles
  context.drawImage(image, 0, 0);
  if (!hand) return;
  const v = hand.vertices;
  const far = faces.map((face) => [face[0], face[1], face[2], v[face[0]][2] + v[face[1]][2] + v[face[2]][2]]).sort((a, b) => b[3] - a[3]);
  for (const [a, b, c] of far) {
    const [ux, uy, uz] = [v[b][0] - v[a][0], v[b][1] - v[a][1], (v[b][2] - v[a][2]) * hand.pixelsPerMetre];
    const [wx, wy, wz] = [v[c][0] - v[a][0], v[c][1] - v[a][1], (v[c][2] - v[a][2]) * hand.pixelsPerMetre];
    const [nx, ny, nz] = [uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx];
    const light = 0.35 + 0.65 * Math.abs(nz) / (Math.hypot(nx, ny, nz) || 1);
    context.fillStyle = context.strokeStyle = `rgb(${(hand.left ? [230, 170, 80] : [90, 150, 220]).map((one) => one * light)})`;
    context.beginPath();
    for (const corner of [a, b, c]) context.lineTo(v[corner][0], v[corner][1]);
    context.closePath();
    context.fill();
    context.stroke();
  }
}

function say(hand, ms) {
  said.textContent = hand
    ? `A ${hand.left ? "left" : "right"} hand, score ${hand.score.toFixed(2)}; ${ms.toFixed(0)} ms`
    : `No hand found; ${ms.toFixed(0)} ms`;
}

async function show(image, start) {
  const began = performance.now();
  const hand = await find(image, start);
  const shown = hand.score >= SEEN ? hand : null;
  draw(image, shown);
  say(shown, performance.now() - began);
  return shown;
}

document.querySelector("#photo").addEventListener("change", async ({ target }) => {
  if (target.files.length) await show(await createImageBitmap(target.files[0]));
});

document.querySelector("#camera").addEventListener("click", async ({ target }) => {
  const video = document.createElement("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    said.textContent = `No camera: ${error.message}`;
    return;
  }
  target.disabled = true;
  await video.play();
  const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight).getContext("2d", { willReadFrequently: true });
  let hand = null, last = performance.now(), rate = 0;
  for (;;) {
    await new Promise(requestAnimationFrame);
    frame.drawImage(video, 0, 0);
    hand = await show(frame.canvas, hand);
    const now = performance.now();
    rate = rate ? 0.9 * rate + 0.1 * (1000 / (now - last)) : 1000 / (now - last);
    last = now;
    said.textContent += `; ${rate.toFixed(0)} frames/s`;
  }
});

window.handmesh = { run, find, show };
said.textContent = "Choose a photo of one hand, or start the camera.";
