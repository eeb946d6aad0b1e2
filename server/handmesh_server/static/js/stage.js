// The picture, the mesh and the lines over each other; beside turning the hand, a pointer may draw a box.

import { HAND_DEPTH } from "../viewer/mesh.js";
import { middle } from "../viewer/view.js";
import { ARROWS, Viewer } from "../viewer/viewer.js";

const MIN_BOX = 10; // stage pixels
const DRAW_MS = 40; // from one of a camera's pictures to the next, where the processor draws them

export class Stage extends Viewer {
  /**
   * `handModel`: { bones, faces, colors, jointColors }. `onBox(box | null)`: a box was drawn or taken back; `onDraw()`: the
   * canvases have something new.
   */
  constructor(root, handModel, { onBox, onDraw }) {
    const [picture, mesh, lines] = ["#picture", "#mesh", "#lines"].map((name) => root.querySelector(name));
    super(root, mesh, lines);
    Object.assign(this, { handModel, onBox, onDraw, picture, lines });
    this.layers = [picture, mesh, lines];
    this.live = false; // pictures follow each other
    this.show = { bones: !this.hasMesh };
    this.source = null;
    this.box = null; // image pixels
    this.boxing = false;
    this.drawing = null; // the box in the making, stage pixels
  }

  /** A camera's picture is enlarged, so nothing over it is drawn finer than its pixels: that costs most of a frame's time. */
  get ratio() {
    return this.live ? Math.min(super.ratio, this.view.zoom / this.view.scale) : super.ratio;
  }

  /** A bitmap, canvas or video frame, and the size in pixels of the image that the server saw. */
  setPicture(source, width, height) {
    this.source = source;
    this.view.image = { width, height };
    this.redraw();
  }

  /** Of the server's answers, after their picture: far ones first, so that near ones hide them. */
  setHands(hands) {
    const { faces, colors } = this.handModel;
    const { width, height } = this.view.image;
    // Metres from the camera. Where nothing is known of it, the server takes its focal length for the diagonal, too.
    const distance = ({ focal, cropSize, scale }) => (focal ?? Math.hypot(width, height)) / ((cropSize / 2) * scale);
    const distances = hands.map(distance);
    const [near, far] = [Math.min(...distances), Math.max(...distances)];
    if (this.mesh) this.mesh.depthRange = HAND_DEPTH + (hands.length ? far - near : 0);
    const placed = hands.map((hand, index) => ({
      ...hand,
      pivot: middle(hand.vertices),
      depth: distances[index] - (near + far) / 2,
      faces: faces[hand.handedness],
      colors: colors[hand.handedness],
    }));
    super.setHands(placed.sort((one, other) => other.depth - one.depth));
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

  /** Where the processor draws a camera's pictures, it is needed for what is in them, too. */
  async rested() {
    const wait = this.live && this.mesh?.isSoftware ? this.drawnAt + DRAW_MS - performance.now() : 0;
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
  }

  draw() {
    this.drawnAt = performance.now();
    super.draw();
    const { view, ratio } = this;
    this.picture.style.opacity = view.rotated ? "0.25" : "1"; // turned, the hand is no longer over its picture
    const box = this.drawing ?? (this.box && [...view.toStage(this.box.slice(0, 2)), ...view.toStage(this.box.slice(2))]);
    const cleared = (canvas) => {
      const size = { width: Math.round(view.stage.width * ratio), height: Math.round(view.stage.height * ratio) };
      if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.scale(ratio, ratio);
      return context;
    };
    const picture = cleared(this.picture);
    if (this.source) {
      const map = view.map;
      picture.imageSmoothingQuality = this.live ? "low" : "high";
      picture.translate(map.x.offset, map.y.offset);
      picture.scale(map.x.factor, map.y.factor);
      picture.drawImage(this.source, -0.5, -0.5, view.image.width, view.image.height);
    }
    const lined = Boolean(box) || (this.show.bones && this.hands.length > 0);
    if (lined || this.lined) {
      const lines = cleared(this.lines);
      if (this.show.bones) for (const hand of this.hands) this.#drawBones(lines, hand);
      if (box) drawBox(lines, box);
    }
    this.lined = lined;
    this.onDraw();
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

  pointerdown(event) {
    super.pointerdown(event);
    const at = [event.offsetX, event.offsetY];
    if (this.boxing && this.pointers.size === 1) this.drawing = [...at, ...at];
    if (this.pointers.size > 1) this.drawing = null;
  }

  drag(pointer, dx, dy) {
    if (this.drawing) this.drawing = [...this.drawing.slice(0, 2), ...pointer.at];
    else if (!this.boxing || pointer.panning) super.drag(pointer, dx, dy);
  }

  pointerup(event) {
    super.pointerup(event);
    if (this.drawing) this.#finishBox(this.drawing);
  }

  dblclick() {
    if (!this.boxing) super.dblclick();
  }

  keydown(event) {
    const arrow = ARROWS[event.key];
    const other = event.ctrlKey || event.metaKey || event.altKey || !(arrow || event.key === "Enter");
    if (!this.boxing || other) return super.keydown(event);
    this.#keyBox(event, arrow);
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

function drawBox(context, [x0, y0, x1, y1]) {
  context.setLineDash([]);
  for (const [color, width] of [["#000a", 4], ["#fff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  }
}
