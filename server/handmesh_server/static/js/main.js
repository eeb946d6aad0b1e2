// The page: what it shows, and what happens when. Everything else is in the modules beside.

import { handsOf, onTokenWanted, postPhoto, Problem, request, timingOf } from "./api.js";
import { isClip, workOnClip } from "./clip.js";
import { fetchSample, listen, openPhoto } from "./input.js";
import { Live } from "./live.js";
import { Recording, recordingFormat } from "./record.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const UNSURE = 0.6; // scores below are not to be relied on

const state = {
  mode: "empty", // "empty", "photo", "live" or "clip"
  chosen: null, // the newest file, which another may replace before it is read
  photo: null, // { blob, bitmap, width, height, name }
  side: "auto",
  box: null, // image pixels
  turned: false, // a hand, once
  retry: null, // what "Try again" does
};
let page; // static/page.json: samples, colours, limits
let stage;
let live;
let asking = null; // AbortController of the question that is out
let recording = null;

// What is shown

function setMode(mode) {
  state.mode = mode;
  $("app").dataset.mode = mode;
  $("camera").setAttribute("aria-pressed", String(mode === "live"));
  $("camera-label").textContent = mode === "live" ? "Stop" : "Camera";
  $("cameras").hidden = mode !== "live" || $("cameras").options.length < 2;
  if (mode !== "live") recording?.stop();
  if (stage) {
    stage.live = mode === "live";
    if (mode !== "live") stage.view.mirrored = false;
  }
  $("found").hidden = $("results").hidden = true;
  $("job").hidden = mode !== "clip";
  if (mode !== "clip") closeClip();
}

function setStatus(text, busy = false) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").classList.toggle("busy", busy);
}

function showProblem(problem, retry = null) {
  state.retry = problem.retry === false ? null : retry;
  $("notice-title").textContent = problem.title ?? "Something went wrong";
  $("notice-text").textContent = problem.text ?? problem.message;
  $("notice-retry").hidden = !state.retry;
  $("notice").hidden = false;
  setStatus(problem.title ?? "Something went wrong");
  if (!(problem instanceof Problem)) console.error(problem);
}

function hideProblem() {
  $("notice").hidden = true;
}

function showTiming(rows) {
  $("timing").replaceChildren(
    ...rows.map(([name, value, total]) => {
      const [row, term, number] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = name;
      number.textContent = value;
      if (total) row.className = "total";
      row.append(term, number);
      return row;
    }),
  );
}

function setBoxLabel() {
  $("box-label").textContent = stage.boxing ? "Drag a box" : state.box ? "Clear box" : "Box";
  $("box").setAttribute("aria-pressed", String(stage.boxing || Boolean(state.box)));
}

function setSide(side) {
  state.side = side;
  document.querySelector(`#sides input[value="${side}"]`).checked = true;
}

function describe(hands) {
  $("side-note").hidden = !hands.some((hand) => hand.handednessSource === "assumed");
  const [assumed] = hands;
  if (assumed) $("side-note").textContent = `Taken for a ${assumed.handedness} hand. If it is the other one, say so.`;
  if (!hands.length) return "No hand found. If there is one, draw a box around it.";
  const names = hands.map((hand) => `${hand.score < UNSURE ? "perhaps a " : ""}${hand.handedness} hand`).join(", ");
  const found = hands.some((hand) => hand.score < UNSURE) ? ". A box around it would help" : " found";
  return `${names[0].toUpperCase()}${names.slice(1)}${found}.`;
}

let listed = []; // hands

/** Of several hands each can be hidden; beside it stands how sure the model is of it. */
function listHands(hands) {
  const sides = (list) => list.map((hand) => hand.handedness).join();
  const same = state.mode === "live" && sides(hands) === sides(listed); // those of the picture before
  listed = hands;
  $("found").hidden = hands.length < 2;
  if (!same) {
    $("hands").replaceChildren(
      ...hands.map(() => {
        const [label, box, text] = ["label", "input", "span"].map((tag) => document.createElement(tag));
        Object.assign(box, { type: "checkbox", checked: true });
        label.append(box, text);
        return label;
      }),
    );
  }
  showHands();
}

function showHands() {
  const labels = [...$("hands").children];
  const shown = listed.filter((_, index) => labels[index].firstChild.checked);
  stage.setHands(shown);
  $("hint").hidden = !shown.length || stage.view.rotated || state.turned;
}

/** As often as it can be read. */
function showScores() {
  [...$("hands").children].forEach((label, index) => {
    const { handedness, score } = listed[index];
    label.lastChild.textContent = `${handedness[0].toUpperCase()}${handedness.slice(1)} ${Math.round(100 * score)} %`;
  });
}

/** Once a hand was turned, nobody has to be told that it can be. */
function onDraw() {
  if (stage.view.rotated) {
    state.turned = true;
    $("hint").hidden = true;
  }
  recording?.draw();
}

/** `files`: [{ name, bytes, open() -> Blob }], to be kept. */
function listResults(files) {
  $("results").hidden = files.length === 0;
  $("files").replaceChildren(
    ...files.map(({ name, bytes, open }) => {
      const button = document.createElement("button");
      const size = bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} kB` : `${(bytes / 2 ** 20).toFixed(1)} MB`;
      button.type = "button";
      button.textContent = `${name}, ${size}`;
      button.addEventListener("click", async () => {
        try {
          save(await open(), name);
        } catch (problem) {
          showProblem(problem);
        }
      });
      return button;
    }),
  );
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  setStatus(`Saved ${name}.`);
}

const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

// Photos

async function takeFile(file, sample = "") {
  hideProblem();
  state.chosen = file;
  if (isClip(file)) return takeClip(file);
  try {
    const photo = await openPhoto(file, page.max_body_bytes);
    if (state.chosen !== file) return photo.bitmap.close();
    live.stop();
    state.photo?.bitmap.close();
    Object.assign(state, { photo, box: null });
    if (sample) setSide("auto"); // what was said of another hand
    markSample(sample);
    setMode("photo");
    stage.view.reset();
    stage.setBoxing(false);
    stage.setBox(null);
    listHands([]);
    stage.setPicture(photo.bitmap, photo.width, photo.height);
    setBoxLabel();
    await findHands();
  } catch (problem) {
    showProblem(problem);
  }
}

async function findHands() {
  const { photo, side, box } = state;
  asking?.abort();
  const { signal } = (asking = new AbortController());
  hideProblem();
  $("downloads").disabled = true;
  setStatus("Looking for hands …", true);
  const started = performance.now();
  try {
    const response = await postPhoto(photo.blob, { side, box, compact: true }, signal);
    const answer = await response.json();
    const arrived = performance.now();
    const hands = handsOf(answer);
    stage.setPicture(photo.bitmap, answer.image.width, answer.image.height);
    listHands(hands);
    showScores();
    await stage.redraw();
    if (signal.aborted) return; // something newer is shown
    const drawn = performance.now();
    const timing = timingOf(response);
    const server = Object.values(timing).reduce((sum, part) => sum + part, 0);
    setStatus(describe(hands));
    $("downloads").disabled = hands.length === 0;
    showTiming([
      ["Network and upload", ms(Math.max(0, arrived - started - server + (timing.read ?? 0)))],
      ["Decode", ms(timing.decode ?? 0)],
      ["Model", ms((timing.model ?? 0) + (timing.queue ?? 0))],
      ["Crops and answer", ms((timing.predict ?? 0) + (timing.encode ?? 0))],
      ["Draw", ms(drawn - arrived)],
      ["Photo to mesh", ms(drawn - started), true],
    ]);
  } catch (problem) {
    if (problem.name === "AbortError") return; // a newer question took its place
    showProblem(problem, findHands);
  }
}

async function download(format) {
  const { photo, side, box } = state;
  setStatus(`Preparing ${format.toUpperCase()} …`, true);
  try {
    const response = await postPhoto(photo.blob, { side, box, format });
    save(await response.blob(), `${photo.name}${format === "png" ? "_overlay" : ""}.${format}`);
  } catch (problem) {
    showProblem(problem, () => download(format));
  }
}

// Clips

async function takeClip(file) {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  live.stop();
  Object.assign(state, { photo: null, box: null });
  markSample("");
  listHands([]);
  setMode("clip");
  showClip(file);
  $("downloads").disabled = true;
  $("job-progress").removeAttribute("value");
  setStatus("Sending the clip …", true);
  try {
    const { job, files } = await workOnClip(file, { hand: state.side }, page.max_clip_bytes, { signal, onProgress: showProgress });
    $("job").hidden = true;
    listResults(files);
    setStatus(job.hands ? `Done: hands in ${job.frames_with_hands} of ${job.frames} pictures.` : "Done: no hand was found.");
    const overlay = files.find((one) => one.name === "overlay.mp4");
    const drawn = await overlay?.open();
    if (drawn && !signal.aborted) showClip(drawn);
  } catch (problem) {
    if (signal.aborted) return; // something else was chosen
    setMode("empty");
    showProblem(problem, () => takeClip(file));
  }
}

function showProgress({ status, frames_done: done, frames }) {
  if (status === "queued") return setStatus("Others' clips come first …", true);
  if (frames) Object.assign($("job-progress"), { max: frames, value: done });
  if (done === frames) return setStatus("Drawing and saving …", true);
  setStatus(frames ? `Picture ${done} of ${frames} …` : `${done} pictures done …`, true);
}

function showClip(blob) {
  closeClip();
  $("clip").src = URL.createObjectURL(blob);
}

function closeClip() {
  URL.revokeObjectURL($("clip").src);
  $("clip").removeAttribute("src");
  $("clip").load(); // else it plays on, unseen
}

// Live

async function startCamera(deviceId) {
  hideProblem();
  state.chosen = null;
  setStatus("Asking for the camera …", true);
  try {
    live.setOptions({ hand: state.side, box: null });
    const camera = await live.start(deviceId);
    if (!camera) return;
    asking?.abort(); // not before: where there is no camera, what is in work goes on
    Object.assign(state, { photo: null, box: null });
    $("downloads").disabled = true;
    setMode("live");
    stage.view.reset();
    stage.setBox(null);
    stage.setHands([]);
    setMirror(camera.facing !== "environment");
    setBoxLabel();
    $("record").hidden = !recordingFormat();
    setStatus("Hold a hand in front of the camera.", true);
    await listCameras(camera.deviceId);
  } catch (problem) {
    if (problem.name === "AbortError") return; // stopped, or started anew, as it began to play
    if (state.mode === "live") stopCamera();
    showProblem(problem, () => startCamera(deviceId));
  }
}

function stopCamera() {
  live.stop();
  stage.setPicture(null, 1, 1);
  stage.setHands([]);
  stage.setBox(null);
  setMode("empty");
  $("side-note").hidden = true;
  setStatus("Choose a photo to begin.");
}

async function listCameras(current) {
  const cameras = await live.cameras();
  $("cameras").replaceChildren(
    ...cameras.map((camera, index) => new Option(camera.label || `Camera ${index + 1}`, camera.deviceId, false, camera.deviceId === current)),
  );
  $("cameras").hidden = cameras.length < 2;
}

function setMirror(on) {
  stage.view.mirrored = on;
  $("mirror").setAttribute("aria-pressed", String(on));
  stage.redraw();
}

let timingShown = 0;

function onFrame(snapshot, frame, rates) {
  stage.setPicture(snapshot, frame.width, frame.height);
  listHands(frame.hands);
  recording?.add(frame);
  if (performance.now() - timingShown < 500) return; // numbers that can be read
  timingShown = performance.now();
  describe(frame.hands);
  showScores();
  setStatus(...liveStatus(frame.hands));
  const rate = rates.framesPerSecond;
  $("live-rate").textContent = rate ? `Live, ${rate.toFixed(rate < 10 ? 1 : 0)} frames/s` : "Live";
  showTiming([
    ["Model", ms(rates.median("model"))],
    ["Server", ms(rates.median("server"))],
    ["There and back", ms(rates.median("roundTrip"))],
    ["Frames", `${rate.toFixed(1)} /s`, true],
  ]);
}

/** What is said, and whether something is still being looked for. */
function liveStatus(hands) {
  if (recording) return [`Recording, ${Math.round(recording.seconds)} s.`, false];
  if (hands.length > 1) return [`Following ${hands.length} hands.`, false];
  if (hands.length) return [`Following the ${hands[0].handedness} hand.`, false];
  if (state.side === "auto") return ["Hold a hand in front of the camera.", true];
  return [`Looking for a ${state.side} hand. Is it the other one? Choose Auto.`, true];
}

function toggleRecording() {
  if (recording) return recording.stop();
  recording = new Recording(stage.layers, (files) => {
    recording = null;
    $("record").setAttribute("aria-pressed", "false");
    $("record-label").textContent = "Record";
    if (state.mode === "live") listResults(files);
    else for (const { open, name } of files) open().then((blob) => save(blob, name)); // the camera was switched off
  });
  listResults([]);
  $("record").setAttribute("aria-pressed", "true");
  $("record-label").textContent = "Stop";
}

async function shutter() {
  try {
    const blob = await live.takePhoto();
    await takeFile(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  } catch (problem) {
    showProblem(problem);
  }
}

// What people do

const actions = {
  choose: () => $("file").click(),
  camera: () => (state.mode === "live" ? stopCamera() : startCamera()),
  shutter,
  record: toggleRecording,
  cancel() {
    asking?.abort();
    setMode("empty");
    setStatus("Cancelled.");
  },
  reset: () => stage.reset(),
  "zoom-in": () => stage.zoom(1),
  "zoom-out": () => stage.zoom(-1),
  mirror: () => setMirror(!stage.view.mirrored),
  box() {
    if (stage.boxing) stage.setBoxing(false);
    else if (state.box) {
      stage.setBox(null);
      onBox(null);
    } else {
      stage.reset(); // a box is drawn on the picture, not on a hand that is turned away from it
      stage.setBoxing(true);
      stage.lines.focus();
      setStatus("Drag a box around the hand. Or move it with the arrow keys, Shift to resize, Enter to use it.");
    }
    setBoxLabel();
  },
  dismiss: hideProblem,
};

function onBox(box) {
  state.box = box;
  setBoxLabel();
  if (state.mode === "photo") findHands();
  else if (state.mode === "live") {
    live.setOptions({ box });
    setStatus(box ? "Looking in the box." : "Looking everywhere.");
  }
}

function askForToken(wasWrong) {
  const dialog = $("token");
  $("token-problem").hidden = !wasWrong;
  $("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const settle = (value) => {
      dialog.close();
      resolve(value);
    };
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const value = $("token-value").value.trim();
      if (/^[\x21-\x7e]+$/.test(value)) settle(value);
      else $("token-problem").hidden = false; // tokens are printable ASCII
    };
    $("token-cancel").onclick = () => settle(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      settle(null);
    };
  });
}

function connect() {
  for (const button of document.querySelectorAll("[data-action]")) {
    button.addEventListener("click", () => actions[button.dataset.action]());
  }
  for (const button of document.querySelectorAll("[data-format]")) {
    button.addEventListener("click", () => download(button.dataset.format));
  }
  $("notice-retry").addEventListener("click", () => {
    hideProblem();
    state.retry?.();
  });
  $("sides").addEventListener("change", (event) => {
    state.side = event.target.value;
    if (state.mode === "photo") findHands();
    else if (state.mode === "live") live.setOptions({ hand: state.side });
  });
  $("cameras").addEventListener("change", (event) => startCamera(event.target.value));
  $("show-mesh").addEventListener("change", (event) => setShown("mesh", event.target.checked));
  $("show-wires").addEventListener("change", (event) => setShown("wires", event.target.checked));
  $("show-bones").addEventListener("change", (event) => setShown("bones", event.target.checked));
  $("opacity").addEventListener("input", (event) => setOpacity(event.target.value));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, dialog *")) return;
    if (event.key === "Escape" && stage.boxing) actions.box();
    if (event.key.toLowerCase() === "b" && ["photo", "live"].includes(state.mode)) actions.box();
  });
}

function setShown(what, on) {
  if (what === "bones") stage.show.bones = on;
  else if (stage.mesh) stage.mesh.show[what] = on;
  stage.redraw();
}

function setOpacity(percent) {
  $("opacity-value").textContent = `${percent}%`;
  $("mesh").style.opacity = String(percent / 100);
}

function addSamples() {
  for (const list of document.querySelectorAll("[data-samples]")) {
    for (const sample of page.samples) {
      const [item, button, image] = ["li", "button", "img"].map((tag) => document.createElement(tag));
      Object.assign(button, { type: "button", ariaLabel: `Sample ${sample.name}`, title: `Sample: ${sample.name}` });
      Object.assign(image, { src: sample.src, alt: "", loading: "lazy", width: 76, height: 76 });
      button.dataset.sample = sample.name;
      button.addEventListener("click", () => openSample(sample));
      button.append(image);
      item.append(button);
      list.append(item);
    }
  }
}

function markSample(name) {
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.setAttribute("aria-current", String(button.dataset.sample === name));
  }
}

async function openSample(sample) {
  try {
    await takeFile(await fetchSample(sample), sample.name);
  } catch (problem) {
    showProblem(problem, () => openSample(sample));
  }
}

async function loadHandModel() {
  const topology = await (await request("v1/topology")).json();
  const faces = Object.fromEntries(Object.entries(topology.faces).map(([side, list]) => [side, Uint32Array.from(list.flat())]));
  const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
  return { faces, bones: topology.bones, colors: page.hand_colors, jointColors: page.joint_colors.map(css) };
}

async function showModel() {
  const card = await (await request("v1/model")).json();
  $("model").textContent = `${card.name}, ${card.resolution} px`;
  $("model").title = `${card.engine}; hand: ${card.hand.name}`;
}

async function start() {
  onTokenWanted(askForToken);
  if (stage) return showModel(); // the rest was done at the first try
  page ??= await (await request("static/page.json")).json();
  if (!document.querySelector("[data-sample]")) addSamples();
  const handModel = await loadHandModel();
  stage = new Stage($("stage"), handModel, { onBox, onDraw });
  live = new Live($("video"), {
    deadlineSeconds: page.deadline_seconds,
    onFrame,
    onMessage: (text) => setStatus(text, true),
    onEnd(problem) {
      stopCamera();
      showProblem(problem, () => startCamera());
    },
  });
  $("clip").addEventListener("error", closeClip); // of a kind that this browser does not play
  connect();
  setOpacity($("opacity").value);
  setShown("mesh", $("show-mesh").checked); // browsers keep what was chosen before a reload
  setShown("wires", $("show-wires").checked);
  listen({ page: document, drop: $("drop"), input: $("file"), onFile: takeFile, onProblem: showProblem });
  if (stage.hasMesh) setShown("bones", $("show-bones").checked);
  else {
    $("show-bones").checked = true;
    for (const id of ["show-mesh", "show-wires", "opacity"]) $(id).disabled = true;
    showProblem(
      new Problem(
        "This browser does not draw in 3D",
        "WebGL2 is missing or switched off, so the skeleton is drawn instead of the mesh. Downloads have everything.",
      ),
    );
  }
  setSide(document.querySelector("#sides input:checked").value);
  $("app").dataset.ready = "true";
  await showModel();
}

async function startOrSay() {
  hideProblem();
  try {
    await start();
  } catch (problem) {
    showProblem(problem, startOrSay);
    if (problem.status === 503) setTimeout(startOrSay, 2000); // the model is being loaded
  }
}

startOrSay();
