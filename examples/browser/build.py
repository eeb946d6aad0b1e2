"""Gather the page, the model and onnxruntime-web in dist/, which any web server can show:  npm run build"""

import json
import shutil
from pathlib import Path

from handmesh.hand import BONES, JOINT_NAMES, builtin_hand
from handmesh.model.bundled import bundled_model_path

here = Path(__file__).resolve().parent
dist = here / "dist"
runtime = here / "node_modules" / "onnxruntime-web" / "dist"
if not runtime.is_dir():
    raise SystemExit("No onnxruntime-web here: run `npm install` first.")
dist.mkdir(exist_ok=True)
for file in (
    here / "index.html",
    here / "main.js",
    bundled_model_path().with_suffix(".onnx"),
    runtime / "ort.wasm.min.mjs",
    runtime / "ort-wasm-simd-threaded.mjs",
    runtime / "ort-wasm-simd-threaded.wasm",
):
    shutil.copy(file, dist)
hand = {"faces": builtin_hand().faces.tolist(), "joints": JOINT_NAMES, "bones": BONES}
(dist / "hand.json").write_text(json.dumps(hand, separators=(",", ":")))
print(dist / "index.html")
