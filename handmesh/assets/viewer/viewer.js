// Hands on a canvas, and what pointers, wheel and keys do to the view of them. Used by the server's page and by .html files.

import { MeshView } from "./mesh.js";
import { View } from "./view.js";

export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const RADIANS_PER_PIXEL = 0.01;
const KEY_ROTATION = 0.12; // radians
const ZOOM_STEP = 1.25;
const MAX_RATIO = 2; // device pixels per CSS pixel: beyond, phones only get warm
const EVENTS = ["pointerdown", "pointermove", "pointerup", "pointercancel", "dblclick", "contextmenu", "wheel", "keydown"];

export class Viewer {
  /** As large as `root`; drawn on `canvas`; turned by what happens to `target`. `mesh` is null where there is no WebGL2. */
  constructor(root, canvas, target = canvas) {
    this.root = root;
    this.target = target;
    this.view = new View();
    this.hands = [];
    this.pointers = new Map();
    try {
      this.mesh = new MeshView(canvas);
      canvas.addEventListener("webglcontextrestored", () => this.redraw());
    } catch {
      this.mesh = null;
    }
    for (const name of EVENTS) target.addEventListener(name, (event) => this[name](event), { passive: false });
    new ResizeObserver(() => this.#resize()).observe(root);
    this.#resize();
  }

  get hasMesh() {
    return this.mesh !== null;
  }

  /** Device pixels per stage pixel. */
  get ratio() {
    return Math.min(MAX_RATIO, window.devicePixelRatio || 1);
  }

  /** As `MeshView.setHands` and `View.handMap` want them. */
  setHands(hands) {
    this.hands = hands;
    this.mesh?.setHands(hands);
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
    this.drawn ??= this.rested()
      .then(() => new Promise(requestAnimationFrame))
      .then(() => {
        this.drawn = null;
        this.draw();
      });
    return this.drawn;
  }

  /** Resolves when it may be drawn again. */
  async rested() {}

  draw() {
    this.mesh?.draw(this.view, this.ratio);
  }

  #resize() {
    const { width, height } = this.root.getBoundingClientRect();
    this.view.stage = { width: Math.max(1, width), height: Math.max(1, height) };
    this.redraw();
  }

  // Pointers and keys, by the names of their events

  pointerdown(event) {
    this.target.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { at: [event.offsetX, event.offsetY], panning: event.shiftKey || event.button > 0 });
  }

  pointermove(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [from, to] = [pointer.at, [event.offsetX, event.offsetY]];
    pointer.at = to;
    if (this.pointers.size === 2) this.#pinch(from, to, [...this.pointers].find(([id]) => id !== event.pointerId)[1].at);
    else this.drag(pointer, to[0] - from[0], to[1] - from[1]);
    this.redraw();
  }

  /** One finger moved while another rests. */
  #pinch(from, to, other) {
    const [before, now] = [from, to].map((at) => Math.hypot(at[0] - other[0], at[1] - other[1]));
    if (before > 0) this.view.zoomBy(now / before, (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
    this.#pan((to[0] - from[0]) / 2, (to[1] - from[1]) / 2);
  }

  #pan(dx, dy) {
    this.view.pan.x += dx;
    this.view.pan.y += dy;
  }

  /** A single pointer moved, by stage pixels. */
  drag(pointer, dx, dy) {
    if (pointer.panning) this.#pan(dx, dy);
    else this.view.rotate(dx * RADIANS_PER_PIXEL, dy * RADIANS_PER_PIXEL);
  }

  pointerup(event) {
    this.pointers.delete(event.pointerId);
  }

  pointercancel(event) {
    this.pointers.delete(event.pointerId);
  }

  dblclick() {
    this.reset();
  }

  contextmenu(event) {
    event.preventDefault();
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.view.zoomBy(Math.exp(-event.deltaY * lines * 0.0015), event.offsetX, event.offsetY);
    this.redraw();
  }

  keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) this.view.rotate(arrow[0] * KEY_ROTATION, arrow[1] * KEY_ROTATION);
    else if (event.key === "+" || event.key === "=") this.zoom(1);
    else if (event.key === "-") this.zoom(-1);
    else if (event.key === "0") this.view.reset();
    else return;
    event.preventDefault();
    this.redraw();
  }
}
