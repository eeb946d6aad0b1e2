// Talking to the server: requests, the token, and what went wrong in plain words. All addresses are relative to the page.

/** Something a person should read. `retry`: doing the same again may help. */
export class Problem extends Error {
  constructor(title, text = "", { retry = false, status = 0 } = {}) {
    super(title);
    this.title = title;
    this.text = text;
    this.retry = retry;
    this.status = status;
  }
}

const TOKEN_KEY = "handmesh.token";
let token = sessionStorage.getItem(TOKEN_KEY) ?? "";
let askForToken = async () => null; // set by whoever can show a dialog

export function onTokenWanted(ask) {
  askForToken = ask;
}

export const ACCEPT = {
  json: "application/json",
  glb: "model/gltf-binary",
  obj: "model/obj",
  png: "image/png",
};

/** fetch() that shows the token, asks for one when there is none or a wrong one, and throws only Problems. */
export async function request(path, options = {}) {
  for (let wrong = false; ; wrong = true) {
    let response;
    try {
      const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
      response = await fetch(new URL(path, document.baseURI), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer", "Is it still running, and is this device still connected?", { retry: true });
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await problemOf(response);
    const given = await askForToken(wrong && token !== "");
    if (given === null) throw new Problem("This server wants a token", "Without it no photo is looked at.", { retry: true, status: 401 });
    token = given;
    sessionStorage.setItem(TOKEN_KEY, token);
  }
}

/** The same hand on the same photo, in any format. */
export function postPhoto(blob, { side, box, format = "json", compact = false }, signal) {
  const query = new URLSearchParams({ hand: side });
  if (box) query.set("box", box.map((edge) => edge.toFixed(1)).join(","));
  if (compact) query.set("encoding", "base64");
  return request(`v1/hands?${query}`, {
    method: "POST",
    body: blob,
    signal,
    headers: { Accept: ACCEPT[format], "Content-Type": blob.type || "application/octet-stream" },
  });
}

/** A WebSocket to /v1/stream. Its subprotocols carry the token: a page can set no other header of a WebSocket. */
export function openStream() {
  const address = new URL("v1/stream", document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const protocols = ["handmesh.v1"];
  if (token) protocols.push(`handmesh.bearer.${base64url(token)}`);
  const socket = new WebSocket(address, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

const TITLES = {
  408: "The upload took too long",
  413: "This photo is too large",
  415: "This is not a photo that can be read",
  422: "This photo cannot be used",
  429: "The server is busy",
  503: "The server is not ready",
  504: "The server took too long",
};

async function problemOf(response) {
  let detail = "";
  try {
    detail = (await response.json()).detail;
  } catch {
    // a proxy's page, or nothing
  }
  const status = response.status;
  const wait = Number(response.headers.get("Retry-After"));
  if (status === 429 || status === 503) detail += wait ? ` About ${wait} s from now there may be room.` : "";
  const title = TITLES[status] ?? (status >= 500 ? "The server failed" : "The server refused");
  return new Problem(title, detail || `It answered ${status}.`, { retry: [408, 429, 500, 502, 503, 504].includes(status), status });
}

/** The hands of a JSON answer with base64 arrays, as the viewer wants them: flat Float32Arrays. */
export function handsOf(answer) {
  return answer.hands.map((hand) => ({
    handedness: hand.handedness,
    handednessSource: hand.handedness_source,
    score: hand.score,
    cropCenter: [...array(hand.crop_center_px)],
    cropSize: hand.crop_size_px,
    scale: hand.camera_scale_ndc_per_m,
    focal: array(hand.intrinsics_px)[0],
    translation: [...array(hand.camera_translation_m)],
    keypoints: array(hand.keypoints_px),
    joints: array(hand.joints),
    vertices: array(hand.vertices),
  }));
}

function array({ base64 }) {
  return new Float32Array(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer);
}

/** Server-Timing -> milliseconds by name. */
export function timingOf(response) {
  const parts = (response.headers.get("Server-Timing") ?? "").split(",").map((part) => part.trim().split(";dur="));
  return Object.fromEntries(parts.filter((part) => part.length === 2).map(([name, ms]) => [name, Number(ms)]));
}
