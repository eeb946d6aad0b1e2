// The mesh on the graphics card: WebGL2, one draw call for each hand, no library.

const VERTEX = `#version 300 es
in vec3 position, normal, color;
uniform mat3 rotation;
uniform vec3 pivot;
uniform vec4 map;          // clip = map.xy + map.zw * hand
uniform float depth;       // metres that the pivot is farther than the middle of all
uniform float depthRange;  // metres, nearest to farthest
out vec3 facing, skin;
void main() {
  skin = color;
  vec3 rotated = rotation * (position - pivot);
  facing = rotation * normal;
  gl_Position = vec4(map.xy + map.zw * (rotated.xy + pivot.xy), 2.0 * (rotated.z + depth) / depthRange, 1.0);
}`;

// x right, y down, z away: the eye looks along +z. A key light from the upper left, the sky, a rim, a soft highlight.
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 facing, skin;
uniform bool lit;
uniform float dimmed;  // of lines, which no light falls on
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
  vec3 linear = pow(skin, vec3(2.2)) * light + gloss + rim;
  pixel = vec4(lit ? pow(linear, vec3(1.0 / 2.2)) : skin * dimmed, 1.0);
}`;

// Of renderers that draw on the processor; `failIfMajorPerformanceCaveat` lets Chromium's through.
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

const NAMES = { attributes: ["position", "normal", "color"], uniforms: ["rotation", "pivot", "map", "depth", "depthRange", "lit", "dimmed"] };

export const HAND_DEPTH = 1.2; // metres: a hand is 0.2 m long, whatever way it is turned

export class MeshView {
  depthRange = HAND_DEPTH;

  /** Throws when the browser has no WebGL2. */
  constructor(canvas) {
    this.canvas = canvas;
    this.hands = [];
    this.show = { mesh: true, wires: false };
    this.gl = canvas.getContext("webgl2", { alpha: true, antialias: true, powerPreference: "low-power" });
    if (!this.gl) throw new Error("WebGL2 is not available");
    const names = this.gl.getExtension("WEBGL_debug_renderer_info");
    this.isSoftware = SOFTWARE.test(this.gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : this.gl.RENDERER));
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
    this.uniform = Object.fromEntries(NAMES.uniforms.map((name) => [name, gl.getUniformLocation(program, name)]));
    this.attribute = Object.fromEntries(NAMES.attributes.map((name) => [name, gl.getAttribLocation(program, name)]));
    this.buffers = []; // of each hand
    this.topologies = new Map(); // by faces
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.clearColor(0, 0, 0, 0);
    this.setHands(this.hands);
  }

  /**
   * Each with vertices (flat x, y, z; metres), faces (flat Uint32Array; the same array for the same topology), colors (sRGB
   * bytes, of all or of each vertex), and what `View.handMap` and `pivot` want; of several, `depth` (metres; 0 without it).
   */
  setHands(hands) {
    this.hands = hands;
    this.isLoaded = false;
  }

  #load() {
    const gl = this.gl;
    this.isLoaded = true;
    this.hands.forEach(({ vertices, faces, colors }, index) => {
      const buffers = (this.buffers[index] ??= Object.fromEntries(NAMES.attributes.map((name) => [name, gl.createBuffer()])));
      if (!this.topologies.has(faces)) this.topologies.set(faces, topologyOf(gl, faces));
      for (const [name, values] of Object.entries({ position: vertices, normal: normalsOf(vertices, faces), color: colors })) {
        gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
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
    if (!this.isLoaded) this.#load();
    const R = view.rotation;
    gl.uniformMatrix3fv(this.uniform.rotation, true, R.flat());
    gl.uniform1f(this.uniform.depthRange, this.depthRange);
    this.hands.forEach((hand, index) => {
      const { faces, edges } = this.topologies.get(hand.faces);
      for (const name of NAMES.attributes) this.#connect(name, this.buffers[index][name], hand);
      const map = view.handMap(hand);
      gl.uniform4f(
        this.uniform.map,
        (2 * map.x.offset) / view.stage.width - 1,
        1 - (2 * map.y.offset) / view.stage.height,
        (2 * map.x.factor) / view.stage.width,
        (-2 * map.y.factor) / view.stage.height,
      );
      gl.uniform3fv(this.uniform.pivot, hand.pivot);
      gl.uniform1f(this.uniform.depth, hand.depth ?? 0);
      // Without the mesh its faces still hide the lines behind them.
      gl.colorMask(this.show.mesh, this.show.mesh, this.show.mesh, this.show.mesh);
      gl.enable(gl.POLYGON_OFFSET_FILL);
      gl.polygonOffset(1, 1);
      gl.uniform1i(this.uniform.lit, 1);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, faces.buffer);
      gl.drawElements(gl.TRIANGLES, faces.count, gl.UNSIGNED_INT, 0);
      gl.colorMask(true, true, true, true);
      gl.disable(gl.POLYGON_OFFSET_FILL);
      if (!this.show.wires) return;
      gl.uniform1i(this.uniform.lit, 0);
      gl.uniform1f(this.uniform.dimmed, this.show.mesh ? 0.35 : 1);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, edges.buffer);
      gl.drawElements(gl.LINES, edges.count, gl.UNSIGNED_INT, 0);
    });
  }

  #connect(name, buffer, { colors }) {
    const [gl, at, isColor] = [this.gl, this.attribute[name], name === "color"];
    if (isColor && colors.length === 3) {
      gl.disableVertexAttribArray(at);
      gl.vertexAttrib3fv(at, Array.from(colors, (value) => value / 255));
    } else {
      gl.enableVertexAttribArray(at);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.vertexAttribPointer(at, 3, isColor ? gl.UNSIGNED_BYTE : gl.FLOAT, isColor, 0, 0);
    }
  }
}

function topologyOf(gl, faces) {
  const [drawnFaces, drawnEdges] = [faces, edgesOf(faces)].map((indices) => {
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    return { buffer, count: indices.length };
  });
  return { faces: drawnFaces, edges: drawnEdges };
}

function edgesOf(faces) {
  const seen = new Map();
  for (let at = 0; at < faces.length; at += 3) {
    for (const [from, to] of [[0, 1], [1, 2], [2, 0]]) {
      const [a, b] = [faces[at + from], faces[at + to]].sort((one, other) => one - other);
      seen.set(a * 2 ** 26 + b, [a, b]);
    }
  }
  return Uint32Array.from([...seen.values()].flat());
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
