// Where things are on the screen: image pixels -> stage pixels, and how the hand is turned. No drawing here.
//
// Pixel centres are at integers, so an image spans -0.5 to width - 0.5. The hand's camera is weak perspective and exact:
// a point p of the hand frame (metres; x right, y down, z away) is at
// cropCenter + cropSize / 2 * scale * (p.xy + translation).

const MIN_ZOOM = 0.5;
const MAX_ZOOM = 16;
const MAX_PITCH = 1.5; // radians

export class View {
  image = { width: 1, height: 1 };
  stage = { width: 1, height: 1 };
  mirrored = false; // the picture left to right, as in a mirror
  yaw = 0;
  pitch = 0;
  zoom = 1;
  pan = { x: 0, y: 0 }; // stage pixels

  get rotated() {
    return this.yaw !== 0 || this.pitch !== 0;
  }

  reset() {
    this.yaw = this.pitch = 0;
    this.zoom = 1;
    this.pan = { x: 0, y: 0 };
  }

  rotate(dx, dy) {
    this.yaw += (this.mirrored ? -1 : 1) * dx;
    this.pitch = Math.max(-MAX_PITCH, Math.min(MAX_PITCH, this.pitch + dy));
  }

  /** Zoom so that what is at stage point (x, y) stays there. */
  zoomBy(factor, x = this.stage.width / 2, y = this.stage.height / 2) {
    const zoom = Math.max(MIN_ZOOM, Math.min(MAX_ZOOM, this.zoom * factor));
    const ratio = zoom / this.zoom;
    this.pan.x = x - this.stage.width / 2 - (x - this.stage.width / 2 - this.pan.x) * ratio;
    this.pan.y = y - this.stage.height / 2 - (y - this.stage.height / 2 - this.pan.y) * ratio;
    this.zoom = zoom;
  }

  /** Stage pixels per image pixel. */
  get scale() {
    return this.zoom * Math.min(this.stage.width / this.image.width, this.stage.height / this.image.height);
  }

  /** stage = offset + factor * image, for each axis; the factor of x is negative in a mirror. */
  get map() {
    const scale = this.scale;
    const left = (this.stage.width - scale * this.image.width) / 2 + this.pan.x;
    const top = (this.stage.height - scale * this.image.height) / 2 + this.pan.y;
    const y = { offset: top + 0.5 * scale, factor: scale };
    if (!this.mirrored) return { x: { offset: left + 0.5 * scale, factor: scale }, y };
    return { x: { offset: left + scale * (this.image.width - 0.5), factor: -scale }, y };
  }

  toStage([x, y]) {
    const map = this.map;
    return [map.x.offset + map.x.factor * x, map.y.offset + map.y.factor * y];
  }

  toImage([x, y]) {
    const map = this.map;
    return [(x - map.x.offset) / map.x.factor, (y - map.y.offset) / map.y.factor];
  }

  /** Rows of the rotation that turns the hand, about the camera's axes. */
  get rotation() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    return [
      [cy, 0, -sy],
      [-sp * sy, cp, -sp * cy],
      [cp * sy, sp, cp * cy],
    ];
  }

  /** Of a hand: stage = offset + factor * xy, for points that are turned already. */
  handMap({ cropCenter, cropSize, scale, translation }) {
    const map = this.map;
    const perMetre = (cropSize / 2) * scale;
    return {
      x: { offset: map.x.offset + map.x.factor * (cropCenter[0] + perMetre * translation[0]), factor: map.x.factor * perMetre },
      y: { offset: map.y.offset + map.y.factor * (cropCenter[1] + perMetre * translation[1]), factor: map.y.factor * perMetre },
    };
  }

  /** Points of a hand (flat x, y, z), turned about its pivot -> [[x, y, z], ...] stage pixels, and z in metres. */
  project(hand, points) {
    const R = this.rotation;
    const map = this.handMap(hand);
    const pivot = hand.pivot;
    const drawn = [];
    for (let at = 0; at < points.length; at += 3) {
      const d = [points[at] - pivot[0], points[at + 1] - pivot[1], points[at + 2] - pivot[2]];
      const [x, y, z] = R.map((row, axis) => row[0] * d[0] + row[1] * d[1] + row[2] * d[2] + pivot[axis]);
      drawn.push([map.x.offset + map.x.factor * x, map.y.offset + map.y.factor * y, z]);
    }
    return drawn;
  }
}

/** (flat x, y, z) -> their middle. */
export function middle(points) {
  const sum = [0, 0, 0];
  for (let at = 0; at < points.length; at++) sum[at % 3] += points[at];
  return sum.map((total) => (3 * total) / points.length);
}
