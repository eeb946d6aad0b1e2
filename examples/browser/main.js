// A photo or a camera in, its hands drawn over it: the bundled networks with onnxruntime-web. What is done with their answers is
// what handmesh does, but the fit to heatmaps: handmesh/hand/grid.py, handmesh/predict/predictor.py.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need a server that sends COOP and COEP headers
const [mesh, finder] = await Promise.all(["handmesh_t8.onnx", "handmesh_detector.onnx"].map((file) => ort.InferenceSession.create(file)));
const { faces, joints, numbers } = await (await fetch("hand.json")).json();
const SIZE = mesh.inputMetadata[0].shape[1]; // px, the crop's side
const [WRIST, KNUCKLE] = ["wrist", "middle_mcp"].map((name) => joints.indexOf(name));
const LIVE_HANDS = 2, SEARCH_EVERY = 500; // ms, while fewer hands than that are followed

const canvas = document.querySelector("#picture");
const said = document.querySelector("#said");
const pixelsOf = (width, height) => new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
const cropper = pixelsOf(SIZE, SIZE);
const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
const within = (value, low, high) => Math.min(Math.max(value, low), high);
const logOdds = (probability) => {
  const likely = within(probability, 1e-4, 1 - 1e-4);
  return Math.log(likely / (1 - likely));
};

/** RGBA pixels -> what a network takes. */
function tensor(pixels, width, height) {
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) rgb.set(pixels.subarray(4 * i, 4 * i + 3), 3 * i);
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}

/** Where hands may be: box, turn, side and score of each, from one look at the whole picture. */
async function candidates(image) {
  const scale = numbers.picture / Math.max(image.width, image.height);
  const [width, height] = [image.width, image.height].map((side) => Math.max(Math.round(side * scale), 1));
  const [across, along] = [width, height].map((side) => numbers.multiple * Math.ceil(side / numbers.multiple));
  const picture = pixelsOf(across, along); // black where the photo does not reach
  picture.fillRect(0, 0, across, along);
  picture.imageSmoothingQuality = "high";
  picture.drawImage(image, 0, 0, width, height);
  const { grid } = await finder.run({ pictures: tensor(picture.getImageData(0, 0, across, along).data, across, along) });
  const [, , rows, columns] = grid.dims;
  const channel = (number) => grid.data.subarray(number * rows * columns, (number + 1) * rows * columns);
  const probability = Array.from(channel(0), sigmoid);
  const found = [];
  for (let cell = 0; cell < rows * columns; cell++) {
    const best = probability[cell];
    if (best < numbers.candidate) continue;
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const near = [];
    for (let y = Math.max(row - 1, 0); y <= Math.min(row + 1, rows - 1); y++)
      for (let x = Math.max(column - 1, 0); x <= Math.min(column + 1, columns - 1); x++) near.push([x, y, y * columns + x]);
    if (near.some(([, , i]) => probability[i] > best)) continue;
    const own = near.filter(([, , i]) => probability[i] >= numbers.taught * best);
    const total = own.reduce((sum, [, , i]) => sum + probability[i], 0);
    const mean = (value) => own.reduce((sum, [x, y, i]) => sum + (probability[i] / total) * value(i, x, y), 0);
    const edge = (number, sign, axis) => {
      const place = mean((i, ...at) => numbers.stride * (at[axis] + 0.5 + sign * Math.exp(within(channel(number)[i], -3, 6))));
      return place / scale - 0.5;
    };
    const turn = -Math.atan2(mean((i) => channel(6)[i]), mean((i) => channel(5)[i]));
    const box = [edge(1, -1, 0), edge(2, -1, 1), edge(3, 1, 0), edge(4, 1, 1)];
    found.push({ box, turn, right: sigmoid(mean((i) => channel(7)[i])), score: best });
  }
  return found.sort((a, b) => b.score - a.score).slice(0, 2 * numbers.most);
}

const boxOf = (points) => [Math.min, Math.max].flatMap((end) => [0, 1].map((axis) => end(...points.map((p) => p[axis]))));

/** A square around keypoints, turned so that the fingers point up. */
function around(points, margin) {
  const turn = Math.atan2(points[KNUCKLE][0] - points[WRIST][0], points[WRIST][1] - points[KNUCKLE][1]);
  const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
  const [x0, y0, x1, y1] = boxOf(points.map(([x, y]) => [cos * x + sin * y, cos * y - sin * x]));
  const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2];
  return { x: cos * x - sin * y, y: sin * x + cos * y, side: margin * Math.max(x1 - x0, y1 - y0), turn };
}

/** The network's answer for RGBA pixels of one crop. */
export const run = (pixels) => mesh.run({ crops: tensor(pixels, SIZE, SIZE) });

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
  const odds = logOdds(answer.handedness.data[0]); // that it is of the side that it was shown as
  return { left, crop, score: answer.confidence.data[0], odds, pixelsPerMetre: (scale * crop.side) / 2, keypoints: place(answer.joints), vertices: place(answer.vertices) };
}

/** The hand of a candidate: looked at closer where it is open whether there is one, and mirrored where its side is. */
async function handAt(image, { box: [x0, y0, x1, y1], turn, right, score }) {
  const joined = (hand) => ({ ...hand, score: sigmoid(numbers.detector * logOdds(score) + numbers.network * logOdds(hand.score) + numbers.more) });
  const crop = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, side: numbers.margin * Math.max(x1 - x0, y1 - y0), turn };
  const left = right <= 0.5;
  let hand = await look(image, crop, left);
  const open = joined(hand).score;
  if (numbers.open[0] <= open && open < numbers.open[1]) {
    const second = await look(image, around(hand.keypoints, numbers.closer), left);
    if (second.score > hand.score) hand = second;
  }
  const said = Math.min(logOdds(Math.max(right, 1 - right)), numbers.said);
  if (joined(hand).score >= numbers.plausible && sigmoid(numbers.independence * (said + hand.odds)) < numbers.certain) {
    const other = await look(image, { ...crop, turn: hand.crop.turn }, !left);
    if (said + (hand.odds - other.odds) / 2 < 0) hand = other;
  }
  return joined(hand);
}

/** Whether two answers are about one hand. */
function same(first, second) {
  const boxes = [boxOf(first.keypoints), boxOf(second.keypoints)];
  const [a, b] = boxes;
  const area = ([x0, y0, x1, y1]) => Math.max(x1 - x0, 0) * Math.max(y1 - y0, 0);
  const shared = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  const extent = Math.max(...boxes.map(([x0, y0, x1, y1]) => Math.max(x1 - x0, y1 - y0)));
  const apart = first.keypoints.reduce((sum, [x, y], i) => sum + Math.hypot(x - second.keypoints[i][0], y - second.keypoints[i][1]), 0);
  return apart / joints.length < numbers.near * extent || (first.left === second.left && shared > numbers.shared * (area(a) + area(b) - shared));
}

const once = (hands) => hands.reduce((kept, hand) => (kept.some((other) => same(hand, other)) ? kept : [...kept, hand]), []);

/** Every hand of a photo, the most certain first. */
export async function find(image) {
  const hands = [];
  for (const candidate of await candidates(image)) hands.push(await handAt(image, candidate));
  return once(hands.filter((hand) => hand.score >= numbers.score).sort((a, b) => b.score - a.score)).slice(0, numbers.most);
}

/** The meshes over the image: the smaller hand first, its triangles from far to near, lit from the viewer. */
function draw(image, hands) {
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true }); // drawn on the processor: many small triangles
  context.drawImage(image, 0, 0);
  for (const { vertices: v, left, pixelsPerMetre } of [...hands].sort((a, b) => a.pixelsPerMetre - b.pixelsPerMetre)) {
    const far = faces.map((face) => [face[0], face[1], face[2], v[face[0]][2] + v[face[1]][2] + v[face[2]][2]]).sort((a, b) => b[3] - a[3]);
    for (const [a, b, c] of far) {
      const [ux, uy, uz] = [v[b][0] - v[a][0], v[b][1] - v[a][1], (v[b][2] - v[a][2]) * pixelsPerMetre];
      const [wx, wy, wz] = [v[c][0] - v[a][0], v[c][1] - v[a][1], (v[c][2] - v[a][2]) * pixelsPerMetre];
      const [nx, ny, nz] = [uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx];
      const light = 0.35 + (0.65 * Math.abs(nz)) / (Math.hypot(nx, ny, nz) || 1);
      context.fillStyle = context.strokeStyle = `rgb(${(left ? [230, 170, 80] : [90, 150, 220]).map((one) => one * light)})`;
      context.beginPath();
      for (const corner of [a, b, c]) context.lineTo(v[corner][0], v[corner][1]);
      context.closePath();
      context.fill();
      context.stroke();
    }
  }
}

function say(hands, ms) {
  const each = hands.map((hand) => `${hand.left ? "left" : "right"} ${hand.score.toFixed(2)}`).join(", ");
  const found = hands.length ? `${hands.length} ${hands.length > 1 ? "hands" : "hand"}: ${each}` : "No hand found";
  said.textContent = `${found}; ${ms.toFixed(0)} ms`;
}

let asked = 0; // pictures so far: what is asked for last is shown, though an earlier one may take longer
/** Finds hands, or those that `find` is given to do, and draws them. */
async function show(image, found = find(image), number = ++asked) {
  const began = performance.now();
  const hands = await found;
  if (number === asked) {
    draw(image, hands);
    say(hands, performance.now() - began);
  }
  return hands;
}

let searched = 0;
/** The hands of the next picture of a camera: one crop each where they were; now and then a search for more. */
async function follow(image, before) {
  const hands = [];
  for (const { keypoints, left, odds } of before) hands.push(await look(image, around(keypoints, numbers.margin), odds < 0 ? !left : left));
  const kept = once(hands.filter((hand) => hand.score >= numbers.score));
  if (kept.length === LIVE_HANDS || performance.now() - searched < SEARCH_EVERY) return kept;
  searched = performance.now();
  return once([...kept, ...(await find(image))]).slice(0, LIVE_HANDS);
}

let camera = null; // its track

document.querySelector("#photo").addEventListener("change", async ({ target }) => {
  if (!target.files.length) return;
  camera?.stop();
  const number = ++asked, [file] = target.files;
  try {
    await show(await createImageBitmap(file), undefined, number);
  } catch (error) {
    if (number === asked) said.textContent = `${file.name}: ${error.message}`;
  }
});

document.querySelector("#camera").addEventListener("click", async ({ target }) => {
  const video = document.createElement("video");
  target.disabled = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  } catch (error) {
    said.textContent = `No camera: ${error.message}`;
    target.disabled = false;
    return;
  }
  [camera] = video.srcObject.getTracks();
  camera.addEventListener("ended", () => { // by itself: a photo that stops it fires nothing
    asked++;
    said.textContent = "The camera has ended.";
  });
  await video.play();
  const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight).getContext("2d", { willReadFrequently: true });
  let hands = [], last = performance.now(), rate = 0;
  for (;;) {
    await new Promise(requestAnimationFrame);
    if (camera.readyState === "ended") break;
    frame.drawImage(video, 0, 0);
    hands = await show(frame.canvas, follow(frame.canvas, hands));
    if (camera.readyState === "ended") break;
    const now = performance.now();
    rate = rate ? 0.9 * rate + 0.1 * (1000 / (now - last)) : 1000 / (now - last);
    last = now;
    said.textContent += `; ${rate.toFixed(0)} frames/s`;
  }
  target.disabled = false;
});

window.handmesh = { run, find, follow, show };
said.textContent = "Choose a photo, or start the camera.";
