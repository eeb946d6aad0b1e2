"""Why are real photos harder than synthetic ones?  python benchmarks/rerender.py PHOTOS [--model M]

Our hand is fitted to each photo's labels and rendered again in that pose and view, with eight random skins, lights,
backgrounds and cameras: the photo's re-rendered counterparts. What the model gets wrong on these too lies in pose and
view; what it gets wrong on the photo alone, in how the photo looks (and in how its labels define joints: the column
"fit" is what the fit leaves). Then they are corrupted in one way at a time, which tells what the model cannot bear.

PHOTOS: as for benchmarks/real_photos.py; photos with the same labels have the same counterparts, which count once. All
figures: 2D error over the keypoints' box, the box given. The fit is `handmesh.fit_hand`, under weak perspective.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from real_photos import box_of

from handmesh import metrics
from handmesh.files.image import read_image
from handmesh.hand import builtin_hand
from handmesh.hand.fit import fit_hand
from handmesh.predict import Predictor, load_predictor
from handmesh.synth import SceneRenderer, SceneSettings, SyntheticSample
from handmesh.synth.scene import Shot

SIDE = 224  # px of a render
FOCAL = 2.1  # of the photo's longer side, where labels have no camera matrix

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]


class Fit(NamedTuple):
    pose: Floats  # (16, 3, 3)
    betas: Floats  # (10,)
    translation: Floats  # (3,) m
    intrinsics: Floats  # (3, 3) px of a SIDE x SIDE picture
    seen: NDArray[np.bool_]  # (21,)
    error: float  # 2D, over the box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--left", nargs="*", default=[], help="files whose hand of unknown side is a left one")
    parser.add_argument("--renders", type=int, default=8, help="of each photo")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model)
    labels = json.loads((arguments.photos / "labels.json").read_text())
    renders: dict[bytes, tuple[Fit, list[SyntheticSample]]] = {}
    rows = []
    print(f"{'photo':28} {'fit':>6} {'photo':>6} {'again':>6}")
    for label in labels:
        image, keypoints = read_image(arguments.photos / label["file"]), np.array(label["keypoints"], float)
        left = label["handedness"] == "left" or label["file"] in arguments.left
        key = keypoints.tobytes()
        if key not in renders:
            fit = fit_to(label, image.shape[:2], left)
            renders[key] = fit, render_again(fit, arguments.renders)
        fit, samples = renders[key]
        seen = keypoints[:, 2] > 0
        hand = predictor(image, boxes=[box_of(keypoints[seen, :2])], handedness="left" if left else "right")[0]
        own = float(metrics.keypoint_box_error(keypoints[seen, :2], hand.keypoints_image()[seen]))
        rows.append((fit.error, own, error_on(predictor, fit, samples)))
        print(f"{label['file']:28} {rows[-1][0]:6.3f} {rows[-1][1]:6.3f} {rows[-1][2]:6.3f}")
    print(f"{'mean':28} " + " ".join(f"{value:6.3f}" for value in np.mean(rows, axis=0)))
    print("\nre-rendered (each once), corrupted")
    for name, corrupt in CORRUPTIONS.items():
        print(f"{name:28} {np.mean([error_on(predictor, *pair, corrupt) for pair in renders.values()]):6.3f}")


def blurred(sigma: float) -> Callable[[SyntheticSample], Image]:
    return lambda sample: cv2.GaussianBlur(sample.image, (0, 0), sigma)


def brighter(gain: float) -> Callable[[SyntheticSample], Image]:
    return lambda sample: np.clip(sample.image * gain, 0, 255).astype(np.uint8)


def camouflaged(sample: SyntheticSample) -> Image:
    """Before clouds of the hand's own mean colour."""
    alpha = sample.alpha[..., None] / 255.0
    color = (sample.image * alpha).sum(axis=(0, 1)) / alpha.sum()
    rng, clouds = np.random.default_rng(0), np.zeros((SIDE, SIDE))
    for octave, cells in enumerate((3, 6, 12, 40), start=1):
        clouds += cv2.resize(rng.normal(size=(cells, cells)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / octave
    background = np.clip(color * (1 + 0.12 * clouds[..., None]), 0, 255)
    return (sample.image * alpha + background * (1 - alpha)).astype(np.uint8)


def gray(sample: SyntheticSample) -> Image:
    return cv2.cvtColor(cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


CORRUPTIONS: dict[str, Callable[[SyntheticSample], Image]] = {
    "as they are": lambda sample: sample.image,
    "blurred, sigma 1.5 px": blurred(1.5),
    "blurred, sigma 2.5 px": blurred(2.5),
    "blurred, sigma 4 px": blurred(4),
    "1.5 times as bright": brighter(1.5),
    "2.2 times as bright": brighter(2.2),
    "on their own colour": camouflaged,
    "gray": gray,
}


def render_again(fit: Fit, count: int) -> list[SyntheticSample]:
    renderer = SceneRenderer(builtin_hand(), SceneSettings(second_hand=0, occluder=0), size=SIDE)
    still = Shot(np.tile(np.eye(3), (16, 1, 1)), np.zeros(10), np.eye(3), np.array([0, 0, 0.6]), fit.intrinsics)
    orientation = renderer.render_foreground(np.random.default_rng(0), still).pose[0]  # of a hand that is not turned
    vertices = builtin_hand().shaped(fit.betas).posed(fit.pose).vertices
    rotations = np.concatenate([np.eye(3)[None], fit.pose[1:]])
    place = vertices.mean(axis=0) + fit.translation
    shot = Shot(rotations, fit.betas, fit.pose[0] @ orientation.T, place, fit.intrinsics)
    return [renderer.render(np.random.default_rng(number), shot) for number in range(count)]


def error_on(
    predictor: Predictor,
    fit: Fit,
    samples: list[SyntheticSample],
    corrupt: Callable[[SyntheticSample], Image] = CORRUPTIONS["as they are"],
) -> float:
    errors = []
    for sample in samples:
        wanted = sample.keypoints[fit.seen].astype(float)
        hand = predictor(corrupt(sample), boxes=[box_of(wanted)], handedness="right")[0]
        errors.append(metrics.keypoint_box_error(wanted, hand.keypoints_image()[fit.seen]))
    return float(np.mean(errors))


def fit_to(label: dict[str, Any], shape: tuple[int, ...], left: bool) -> Fit:
    """Our right hand fitted to labels; a left one is mirrored."""
    keypoints, side = np.array(label["keypoints"], float), max(shape)
    if left:
        keypoints[:, 0] = shape[1] - 1 - keypoints[:, 0]
    seen = keypoints[:, 2] > 0
    K = np.array([[FOCAL * side, 0, shape[1] / 2], [0, FOCAL * side, shape[0] / 2], [0, 0, 1]])
    if "joints_m" in label:
        K = np.array(label["K"], float)
    fit = fit_hand(np.where(seen[:, None], keypoints[:, :2], np.nan), joints=label.get("joints_m"))
    scale, *origin = fit.camera
    place = np.linalg.inv(K) @ [scale * origin[0], scale * origin[1], 1] * K[0, 0] / scale
    intrinsics = K * SIDE / side
    intrinsics[2, 2] = 1
    return Fit(fit.pose, fit.betas, place, intrinsics, seen, float(fit.error))


if __name__ == "__main__":
    main()
