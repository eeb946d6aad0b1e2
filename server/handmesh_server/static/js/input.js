// Ways for a photo or a clip to come in: dropped, pasted, chosen, or a sample; and what makes a file a photo.

import { Problem, request } from "./api.js";

const SENT_AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp"];
const MAX_SHOWN = 2560; // pixels of the longer side on the screen; the server gets all of them

/** Calls `onFile(file)` for what is dropped on the page, pasted, or chosen. */
export function listen({ page, drop, input, onFile, onProblem }) {
  let depth = 0; // dragenter and dragleave come for every element on the way
  const showDrop = (over) => drop.classList.toggle("over", over);
  page.addEventListener("dragenter", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    depth++;
    showDrop(true);
  });
  page.addEventListener("dragleave", () => showDrop((depth = Math.max(0, depth - 1)) > 0));
  page.addEventListener("dragover", (event) => event.preventDefault());
  page.addEventListener("drop", (event) => {
    event.preventDefault();
    showDrop((depth = 0) > 0);
    const [file] = event.dataTransfer.files;
    if (file) onFile(file);
    else onProblem(new Problem("That was no file", "Drag a photo from a folder, or save it from the other page first."));
  });
  page.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) {
      event.preventDefault();
      onFile(file);
    }
  });
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // the same file may be chosen again
    if (file) onFile(file);
  });
}

/** A file -> { blob, bitmap, width, height, name }, what to send and what to show. Throws a Problem. */
export async function openPhoto(file, mostBytes) {
  let full;
  try {
    full = await createImageBitmap(file);
  } catch {
    const name = file.name ? `“${file.name}”` : "It";
    throw new Problem("This is not a picture", `${name} cannot be read as one. JPEG, PNG and WebP are welcome, and clips as MP4, MOV or WebM.`);
  }
  const { width, height } = full;
  // What only browsers read (HEIC in Safari, AVIF, GIF) is sent as a JPEG.
  const blob = SENT_AS_THEY_ARE.includes(file.type) ? file : await asJpeg(full);
  if (blob.size > mostBytes) {
    full.close();
    const [size, most] = [blob.size, mostBytes].map((bytes) => (bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0));
    throw new Problem("This photo is too large", `It has ${size} MB; the server takes ${most} MB. Save it smaller and try again.`);
  }
  let bitmap = full;
  if (Math.max(width, height) > MAX_SHOWN) {
    const scale = MAX_SHOWN / Math.max(width, height);
    bitmap = await createImageBitmap(full, {
      resizeWidth: Math.round(width * scale),
      resizeHeight: Math.round(height * scale),
      resizeQuality: "high",
    });
    full.close();
  }
  const name = (file.name || "hand").replace(/\.[^.]*$/, "") || "hand";
  return { blob, bitmap, width, height, name };
}

/** A sample of the package as a file. */
export async function fetchSample({ name, src }) {
  const response = await request(src);
  return new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" });
}

async function asJpeg(bitmap) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.93));
}
