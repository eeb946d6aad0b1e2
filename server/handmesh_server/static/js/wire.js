// The bytes of an answer of /v1/stream; docs/reference/live_stream.md has the table, and tests decode the same bytes in Python.

const MAGIC = 0x32464d48; // "HMF2", little-endian
const HEADER_BYTES = 28;
const HAND_BYTES = 52;
const JOINTS = 21;
const HANDEDNESS = ["right", "left"];
const HANDEDNESS_SOURCES = ["given", "assumed", "found"];

export function decodeFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC) throw new Error("not an answer of a stream");
  const frame = {
    number: view.getUint32(4, true),
    width: view.getUint32(8, true),
    height: view.getUint32(12, true),
    serverMs: view.getFloat32(20, true),
    modelMs: view.getFloat32(24, true),
    hands: [],
  };
  const vertexCount = view.getUint16(16, true);
  const vertexBytes = view.getUint8(18);
  let at = HEADER_BYTES;
  for (let index = view.getUint8(19); index > 0; index--) {
    const float = (offset) => view.getFloat32(at + offset, true);
    const hand = {
      handedness: HANDEDNESS[view.getUint8(at)],
      handednessSource: HANDEDNESS_SOURCES[view.getUint8(at + 1)],
      score: float(4),
      cropCenter: [float(24), float(28)],
      cropSize: float(32),
      scale: float(36),
      translation: [float(40), float(44)],
      handednessScore: float(48),
    };
    const scored = view.getUint8(at + 3) !== 0;
    at += HAND_BYTES;
    hand.keypoints = floats(view, at, 2 * JOINTS);
    hand.joints = floats(view, (at += 8 * JOINTS), 3 * JOINTS);
    at += 12 * JOINTS;
    if (scored) {
      hand.jointScores = floats(view, at, JOINTS);
      at += 4 * JOINTS;
    }
    hand.vertices = (vertexBytes === 2 ? halves : floats)(view, at, 3 * vertexCount);
    at += 3 * vertexCount * vertexBytes;
    frame.hands.push(hand);
  }
  return frame;
}

function floats(view, offset, count) {
  return Float32Array.from({ length: count }, (_, index) => view.getFloat32(offset + 4 * index, true));
}

function halves(view, offset, count) {
  return Float32Array.from({ length: count }, (_, index) => halfFloat(view.getUint16(offset + 2 * index, true)));
}

/** IEEE 754 binary16 -> number. DataView.getFloat16 is not in every browser yet. */
export function halfFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
