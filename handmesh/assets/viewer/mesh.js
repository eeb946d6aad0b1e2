// The mesh on the graphics card: WebGL2, one draw call for each hand, no library.

import { middle } from "./view.js";

const VERTEX = `#version 300 es
in vec3 position, normal;
uniform mat3 rotation;
uniform vec3 pivot;
uniform vec4 map;          // clip = map.xy + map.zw * hand
uniform float depthRange;  // metres, nearest to farthest
out vec3 facing;
void main() {
  vec3 rotated = rotation * (position - pivot);
  facing = rotation * normal;
  gl_Position = vec4(map.xy + map.zw * (rotated.xy + pivot.xy), 2.0 * rotated.z / depthRange, 1.0);
}`;

// x right, y down, z away: the eye looks along +z. A key light from the upper left, the sky, a rim, a soft highlight.
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 facing;
uniform vec3 color;
uniform float flat_;
out vec4 pixel;
const vec3 EYE = vec3(0.0, 0.0, -1.0);
const vec3 KEY = normalize(vec3(-0.45, -0.75, -0.75));
const vec3 FILL = normalize(vec3(0.8, 0.1, -0.5));
void main() {
  vec3 n = normalize(facing);
  if (dot(n, EYE) < 0.0) n = -n;   // the wrist is open: one can look inside
  float light = 0.26 + 0.16 * (0.5 - 0.5 * n.y) + 0.62 * max(dot(n, KEY), 0.0) + 0.16 * max(dot(n, FILL), 0.0);
  float gloss = 0.20 * pow(max(dot(n, normalize(KEY + EYE)), 0.0), 36.0);
  float rim = 0.16 * pow(1.0 - max(dot(n, EYE), 0.0), 3.0);
  vec3 linear = pow(color, vec3(2.2)) * light + gloss + rim;
  pixel = vec4(mix(pow(linear, vec3(1.0 / 2.2)), color, flat_), 1.0);
}`;

const DEPTH_RANGE = 1.2; // metres: a hand is 0.2 m long, whatever way it is turned

export class MeshView {
  /** Throws when the browser has no WebGL2. `faces` by handedness: flat Uint16Arrays. */
  constructor(canvas, { faces, colors }) {
    this.canvas = canvas;
    this.topology = Object.fromEntries(Object.entries(faces).map(([side, list]) => [side, { faces: list, edges: edgesOf(list) }]));
    this.colors = colors;
    this.hands = [];
    this.show = { mesh: true, wires: false };
    this.gl = canvas.getContext("webgl2", { alpha: true, antialias: true, powerPreference: "low-power" });
    if (!this.gl) throw new Error("WebGL2 is not available");
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.#prepare());
    this.#prepare();
  }

  #prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "WebGL2 failed");
    gl.useProgram(program);
    this.uniform = {};
    for (const name of ["rotation", "pivot", "map", "depthRange", "color", "flat_"]) this.uniform[name] = gl.getUniformLocation(program, name);
    this.attribute = { position: gl.getAttribLocation(program, "position"), normal: gl.getAttribLocation(program, "normal") };
    for (const name of Object.values(this.attribute)) gl.enableVertexAttribArray(name);
    this.buffers = [];
    for (const topology of Object.values(this.topology)) {
      topology.faceBuffer = indexBuffer(gl, topology.faces);
      topology.edgeBuffer = indexBuffer(gl, topology.edges);
    }
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.clearColor(0, 0, 0, 0);
    this.setHands(this.hands);
  }

  setHands(hands) {
    const gl = this.gl;
    this.hands = hands;
    hands.forEach((hand, index) => {
      this.buffers[index] ??= { position: gl.createBuffer(), normal: gl.createBuffer() };
      const normals = normalsOf(hand.vertices, this.topology[hand.handedness].faces);
      for (const [name, values] of [["position", hand.vertices], ["normal", normals]]) {
        gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[index][name]);
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
      }
    });
  }

  draw(view, ratio) {
    const gl = this.gl;
    const [width, height] = [Math.round(view.stage.width * ratio), Math.round(view.stage.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!this.show.mesh && !this.show.wires) return;
    const R = view.rotation;
    gl.uniformMatrix3fv(this.uniform.rotation, true, R.flat());
    gl.uniform1f(this.uniform.depthRange, DEPTH_RANGE);
    this.hands.forEach((hand, index) => {
      const { faceBuffer, edgeBuffer, faces, edges } = this.topology[hand.handedness];
      for (const name of ["position", "normal"]) {
        gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[index][name]);
        gl.vertexAttribPointer(this.attribute[name], 3, gl.FLOAT, false, 0, 0);
      }
      const map = view.handMap(hand);
      gl.uniform4f(
        this.uniform.map,
        (2 * map.x.offset) / view.stage.width - 1,
        1 - (2 * map.y.offset) / view.stage.height,
        (2 * map.x.factor) / view.stage.width,
        (-2 * map.y.factor) / view.stage.height,
      );
      gl.uniform3fv(this.uniform.pivot, hand.pivot);
      const color = this.colors[hand.handedness].map((value) => value / 255);
      // Without the mesh its faces still hide the lines behind them.
      gl.colorMask(this.show.mesh, this.show.mesh, this.show.mesh, this.show.mesh);
      gl.enable(gl.POLYGON_OFFSET_FILL);
      gl.polygonOffset(1, 1);
      gl.uniform3fv(this.uniform.color, color);
      gl.uniform1f(this.uniform.flat_, 0);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faceBuffer);
      gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_SHORT, 0);
      gl.colorMask(true, true, true, true);
      gl.disable(gl.POLYGON_OFFSET_FILL);
      if (!this.show.wires) return;
      gl.uniform3fv(this.uniform.color, this.show.mesh ? color.map((value) => value * 0.35) : color);
      gl.uniform1f(this.uniform.flat_, 1);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edgeBuffer);
      gl.drawElements(gl.LINES, edges.length, gl.UNSIGNED_SHORT, 0);
    });
  }
}

/** What drawing needs to know about a hand beside the server's numbers. */
export function prepared(hand) {
  return { ...hand, pivot: middle(hand.vertices) };
}

function indexBuffer(gl, indices) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
  return buffer;
}

function edgesOf(faces) {
  const seen = new Set();
  for (let at = 0; at < faces.length; at += 3) {
    for (const [from, to] of [[0, 1], [1, 2], [2, 0]]) {
      const [a, b] = [faces[at + from], faces[at + to]];
      seen.add(a < b ? a * 65536 + b : b * 65536 + a);
    }
  }
  return Uint16Array.from([...seen].flatMap((edge) => [Math.floor(edge / 65536), edge % 65536]));
}

/** Outward, weighted by area; faces are counter-clockwise seen from outside. The shader makes them unit length. */
function normalsOf(vertices, faces) {
  const normals = new Float32Array(vertices.length);
  for (let at = 0; at < faces.length; at += 3) {
    const [a, b, c] = [3 * faces[at], 3 * faces[at + 1], 3 * faces[at + 2]];
    const [ux, uy, uz] = [vertices[b] - vertices[a], vertices[b + 1] - vertices[a + 1], vertices[b + 2] - vertices[a + 2]];
    const [vx, vy, vz] = [vertices[c] - vertices[a], vertices[c + 1] - vertices[a + 1], vertices[c + 2] - vertices[a + 2]];
    const [nx, ny, nz] = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    for (const corner of [a, b, c]) {
      normals[corner] += nx;
      normals[corner + 1] += ny;
      normals[corner + 2] += nz;
    }
  }
  return normals;
}
