// A worker: pictures as JPEGs. On the page itself browsers encode only when nothing else is to be done.

const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext("2d", { willReadFrequently: true });

/** { bitmap, quality } and a port -> a Blob, to that port; null when it cannot be made. */
onmessage = async ({ data: { bitmap, quality }, ports: [reply] }) => {
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  reply.postMessage(await canvas.convertToBlob({ type: "image/jpeg", quality }).catch(() => null));
};
