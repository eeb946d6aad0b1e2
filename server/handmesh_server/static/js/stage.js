// The picture, the mesh and the lines over each other, and what pointers and keys do to them.

import { MeshView, prepared } from "../viewer/mesh.js";
import { View } from "../viewer/view.js";

const RADIANS_PER_PIXEL = 0.01;
const KEY_ROTATION = 0.12; // radians
const ZOOM_STEP = 1.25;
const MIN_BOX = 10; // stage pixels
const MAX_RATIO = 2; // device pixels per CSS pixel: beyond, phones only get warm

export class Stage {
  /** `handModel`: { bones, faces, colors, jointColors }. `onBox(box | null)`: a box was drawn or taken back. */
  constructor(root, handModel, { onBox }) {
    this.root = root;
    this.handModel = handModel;
    this.onBox = onBox;
    this.view = new View();
    this.picture = root.querySelector("#picture");
    this.lines = root.querySelector("#lines");
    this.show = { bones: false };
    this.hands = [];
    this.source = null;
    this.box = null; // image pixels
    this.boxing = false;
    this.drawing = null; // the box in the making, stage pixels
    this.pointers = new Map();
    this.frame = 0;
    try {
      this.mesh = new MeshView(root.querySelector("#mesh"), handModel);
      this.mesh.canvas.addEventListener("webglcontextrestored", () => this.redraw());
    } catch {
      this.mesh = null;
      this.show.bones = true;
    }
    new ResizeObserver(() => this.#resize()).observe(root);
    this.#listen();
    this.#resize();
  }

  get hasMesh() {
    return this.mesh !== null;
  }

  /** A bitmap, canvas or video frame, and the size in pixels of the image that the server saw. */
  setPicture(source, width, height) {
    this.source = source;
    this.view.image = { width, height };
    this.redraw();
  }

  setHands(hands) {
    this.hands = hands.map(prepared);
    this.mesh?.setHands(this.hands);
    this.redraw();
  }

  setBox(box) {
    this.box = box;
    this.redraw();
  }

  /** Whether a drag draws a box. */
  setBoxing(on) {
    this.boxing = on;
    this.root.dataset.boxing = String(on);
    this.drawing = null;
    this.redraw();
  }

  reset() {
    this.view.reset();
    this.redraw();
  }

  zoom(direction) {
    this.view.zoomBy(ZOOM_STEP ** direction);
    this.redraw();
  }

  /** Resolves when it is on the screen. */
  redraw() {
    this.drawn ??= new Promise((resolve) => {
      requestAnimationFrame(() => {
        this.drawn = null;
        this.#draw();
        resolve();
      });
    });
    return this.drawn;
  }

  #resize() {
    const { width, height } = this.root.getBoundingClientRect();
    this.view.stage = { width: Math.max(1, width), height: Math.max(1, height) };
    this.redraw();
  }

  #draw() {
    const view = this.view;
    const ratio = Math.min(MAX_RATIO, window.devicePixelRatio || 1);
    this.picture.style.opacity = view.rotated ? "0.25" : "1"; // turned, the hand is no longer over its picture
    this.mesh?.draw(view, ratio);
    const [picture, lines] = [this.picture, this.lines].map((canvas) => {
      const size = { width: Math.round(view.stage.width * ratio), height: Math.round(view.stage.height * ratio) };
      if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.scale(ratio, ratio);
      return context;
    });
    if (this.source) {
      const map = view.map;
      picture.imageSmoothingQuality = "high";
      picture.translate(map.x.offset, map.y.offset);
      picture.scale(map.x.factor, map.y.factor);
      picture.drawImage(this.source, -0.5, -0.5, view.image.width, view.image.height);
    }
    if (this.show.bones) for (const hand of this.hands) this.#drawBones(lines, hand);
    const box = this.drawing ?? (this.box && [...view.toStage(this.box.slice(0, 2)), ...view.toStage(this.box.slice(2))]);
    if (box) drawBox(lines, box);
    this.frame++;
    this.root.dataset.frame = String(this.frame);
  }

  #drawBones(context, hand) {
    const joints = this.view.project(hand, hand.joints);
    const [x, y] = [joints.map((joint) => joint[0]), joints.map((joint) => joint[1])];
    const extent = Math.max(Math.max(...x) - Math.min(...x), Math.max(...y) - Math.min(...y));
    const width = Math.max(2, Math.min(6, extent / 70));
    context.lineCap = "round";
    const bones = [...this.handModel.bones].sort(([, a], [, b]) => joints[b][2] - joints[a][2]); // far ones first
    for (const [stroke, extra] of [["#0009", 2], [null, 0]]) {
      for (const [parent, joint] of bones) {
        context.strokeStyle = stroke ?? this.handModel.jointColors[joint];
        context.lineWidth = width + extra;
        context.beginPath();
        context.moveTo(x[parent], y[parent]);
        context.lineTo(x[joint], y[joint]);
        context.stroke();
      }
    }
    joints.forEach((_, joint) => {
      context.beginPath();
      context.arc(x[joint], y[joint], width * 1.1, 0, 2 * Math.PI);
      context.fillStyle = this.handModel.jointColors[joint];
      context.fill();
      context.lineWidth = 1;
      context.strokeStyle = "#000a";
      context.stroke();
    });
  }

  // Pointers and keys

  #listen() {
    const canvas = this.lines;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("dblclick", () => this.boxing || this.reset());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #down(event) {
    this.lines.setPointerCapture(event.pointerId);
    const at = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, { at, panning: event.shiftKey || event.button > 0 });
    if (this.boxing && this.pointers.size === 1) this.drawing = [...at, ...at];
    if (this.pointers.size > 1) this.drawing = null;
  }

  #move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [x, y] = [event.offsetX, event.offsetY];
    const [dx, dy] = [x - pointer.at[0], y - pointer.at[1]];
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1].at;
      const [before, now] = [distance(pointer.at, other), distance([x, y], other)];
      if (before > 0) this.view.zoomBy(now / before, (x + other[0]) / 2, (y + other[1]) / 2);
      this.view.pan.x += dx / 2;
      this.view.pan.y += dy / 2;
    } else if (this.drawing) {
      this.drawing = [...this.drawing.slice(0, 2), x, y];
    } else if (pointer.panning) {
      this.view.pan.x += dx;
      this.view.pan.y += dy;
    } else if (!this.boxing) {
      this.view.rotate(dx * RADIANS_PER_PIXEL, dy * RADIANS_PER_PIXEL);
    }
    pointer.at = [x, y];
    this.redraw();
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.drawing && event.type === "pointerup") this.#finishBox(this.drawing);
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.view.zoomBy(Math.exp(-event.deltaY * lines * 0.0015), event.offsetX, event.offsetY);
    this.redraw();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const arrow = arrows[event.key];
    if (this.boxing && (arrow || event.key === "Enter")) this.#keyBox(event, arrow);
    else if (arrow) this.view.rotate(arrow[0] * KEY_ROTATION, arrow[1] * KEY_ROTATION);
    else if (event.key === "+" || event.key === "=") this.zoom(1);
    else if (event.key === "-") this.zoom(-1);
    else if (event.key === "0") this.view.reset();
    else return;
    event.preventDefault();
    this.redraw();
  }

  /** A box without a mouse: it starts in the middle; arrows move it, with Shift they move its corner, Enter takes it. */
  #keyBox(event, arrow) {
    const { width, height } = this.view.stage;
    if (!this.drawing) this.drawing = [width * 0.3, height * 0.3, width * 0.7, height * 0.7];
    else if (event.key === "Enter") this.#finishBox(this.drawing);
    else {
      const step = Math.max(4, Math.min(width, height) * 0.03);
      this.drawing = this.drawing.map((edge, index) => (event.shiftKey && index < 2 ? edge : edge + step * arrow[index % 2]));
    }
  }

  #finishBox(drawn) {
    this.drawing = null;
    const corners = [this.view.toImage(drawn.slice(0, 2)), this.view.toImage(drawn.slice(2))];
    const [x, y] = [0, 1].map((axis) => corners.map((corner) => corner[axis]).sort((a, b) => a - b));
    const { width, height } = this.view.image;
    const clip = (value, size) => Math.max(-0.5, Math.min(size - 0.5, value));
    const box = [clip(x[0], width), clip(y[0], height), clip(x[1], width), clip(y[1], height)];
    const large = (Math.min(box[2] - box[0], box[3] - box[1]) * this.view.scale) >= MIN_BOX;
    this.setBoxing(false);
    this.setBox(large ? box : null);
    this.onBox(this.box);
  }
}

function distance([x0, y0], [x1, y1]) {
  return Math.hypot(x1 - x0, y1 - y0);
}

function drawBox(context, [x0, y0, x1, y1]) {
  context.setLineDash([]);
  for (const [color, width] of [["#000a", 4], ["#fff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  }
}
