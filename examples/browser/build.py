"""Gather the page, the networks and onnxruntime-web in dist/, which any web server can show:  npm run build"""

import json
import shutil
from pathlib import Path

from handmesh.detect import hands as detector
from handmesh.hand import JOINT_NAMES, builtin_hand, grid
from handmesh.model.bundled import bundled_model_path
from handmesh.predict import predictor

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
    detector.BUNDLED_DETECTOR,
    runtime / "ort.wasm.min.mjs",
    runtime / "ort-wasm-simd-threaded.mjs",
    runtime / "ort-wasm-simd-threaded.wasm",
):
    shutil.copy(file, dist)
detector_share, network_share, more = predictor.SCORE_OF_BOTH
numbers = {
    "picture": detector.SIDE,
    "multiple": grid.PICTURE_MULTIPLE,
    "stride": grid.STRIDE,
    "taught": grid.TAUGHT_ABOVE,
    "candidate": detector.MIN_SCORE,
    "margin": predictor.BOX_MARGIN,
    "closer": predictor.SECOND_LOOK_MARGIN,
    "open": predictor.OPEN,
    "detector": detector_share,
    "network": network_share,
    "more": more,
    "said": predictor.MOST_SAID,
    "independence": predictor.INDEPENDENCE,
    "certain": predictor.CERTAIN_SIDE,
    "plausible": predictor.PLAUSIBLE,
    "shared": predictor.SAME_HAND_IOU,
    "near": predictor.SAME_HAND_DISTANCE,
    "score": predictor.MIN_SCORE,
    "most": predictor.MAX_HANDS,
}
hand = {"faces": builtin_hand().faces.tolist(), "joints": JOINT_NAMES, "numbers": numbers}
(dist / "hand.json").write_text(json.dumps(hand, separators=(",", ":")))
print(dist / "index.html")
