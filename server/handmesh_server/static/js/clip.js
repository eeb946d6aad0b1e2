// A clip becomes a job of the server: sent, asked about until it has ended, and what came of it.

import { Problem, request } from "./api.js";

const CLIP_NAME = /\.(mp4|m4v|mov|webm|mkv|avi)$/i;
const POLL_MS = 500;
const PATIENCE_MS = 60_000; // with a server that is started anew: jobs survive that

export function isClip(file) {
  return file.type.startsWith("video/") || CLIP_NAME.test(file.name ?? "");
}

/**
 * Resolves with { job, files: [{ name, bytes, open }] } when it is done; `onProgress(job)` until then. Throws
 * Problems, and AbortError when `signal` says so: the job is then cancelled.
 */
export async function workOnClip(file, query, maxBytes, { signal, onProgress }) {
  if (file.size > maxBytes) {
    throw new Problem("This clip is too large", `The server takes ${Math.floor(maxBytes / 2 ** 20)} MB. Cut it, or save it smaller.`);
  }
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const posted = await request(`v1/videos?${new URLSearchParams(query)}`, { method: "POST", body: file, headers, signal });
  const path = `v1/videos/${posted.headers.get("Location").split("/").at(-1)}`;
  const cancel = () => request(path, { method: "DELETE", keepalive: true }).catch(() => {});
  signal.addEventListener("abort", cancel); // before the answer is read: the job is there
  let job;
  try {
    job = await posted.json();
    for (let heard = performance.now(); job.status === "queued" || job.status === "running"; ) {
      onProgress(job);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      signal.throwIfAborted();
      try {
        job = await (await request(path, { signal })).json();
        heard = performance.now();
      } catch (problem) {
        if (!problem.retry || performance.now() - heard > PATIENCE_MS) throw problem;
      }
    }
  } finally {
    signal.removeEventListener("abort", cancel);
  }
  if (job.status === "failed") throw new Problem("This clip could not be worked on", job.problem.detail);
  const open = (one) => async () => (await request(`${path}/${one.name}`)).blob();
  return { job, files: job.files.map((one) => ({ name: one.name, bytes: one.bytes, open: open(one) })) };
}
