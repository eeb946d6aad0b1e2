"""Why are real photos harder than synthetic ones?  python benchmarks/rerender.py PHOTOS [--model M]

Our hand is fitted to each photo's labels and rendered again in that pose and view, with eight random skins, lights,
backgrounds and cameras: the photo's re-rendered counterparts. What the model gets wrong on these too lies in pose and
view; what it gets wrong on the photo alone, in how the photo looks (and in how its labels define joints: the column
"fit" is what the fit leaves). Then they are corrupted in one way at a time, which tells what the model cannot bear.

PHOTOS: as for benchmarks/real_photos.py; photos with the same labels have the same counterparts, which count once. All
figures: 2D error over the keypoints' box, the box given. Takes about four minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from real_photos import box_of
from scipy.spatial.transform import Rotation

from handmesh import metrics
from handmesh.files.image import read_image
from handmesh.geometry.rotation import vector_from_matrix
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.predict import Predictor, load_predictor
from handmesh.synth import PosePrior, SceneRenderer, SceneSettings, SyntheticSample
from handmesh.synth.scene import Shot

SIDE = 224  # px of a render
CANDIDATES = 4000  # poses of our prior that a fit chooses its beginning from
FIRST_GUESSES = 10  # that are refined; the best counts
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
    torch.set_num_threads(1)
    predictor = load_predictor(arguments.model)
    labels = json.loads((arguments.photos / "labels.json").read_text())
    fitter = Fitter()
    renders: dict[bytes, tuple[Fit, list[SyntheticSample]]] = {}
    rows = []
    print(f"{'photo':28} {'fit':>6} {'photo':>6} {'again':>6}")
    for label in labels:
        image, keypoints = read_image(arguments.photos / label["file"]), np.array(label["keypoints"], float)
        left = label["handedness"] == "left" or label["file"] in arguments.left
        key = keypoints.tobytes()
        if key not in renders:
            fit = fitter.fit(label, image.shape[:2], left)
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


class Fitter:
    """Fits pose, shape and place of our hand to labels, near a pose that our prior knows."""

    def __init__(self) -> None:
        self.hand = HandModel(builtin_hand())
        prior, rng = PosePrior(builtin_hand()), np.random.default_rng(0)
        self.poses = torch.tensor(np.stack([prior.sample(rng).rotations for _ in range(CANDIDATES)])).float()
        with torch.no_grad():
            self.joints = self.hand(self.poses, torch.zeros(CANDIDATES, 10))[1].numpy().astype(float)

    def fit(self, label: dict[str, Any], shape: tuple[int, ...], left: bool) -> Fit:
        keypoints, side = np.array(label["keypoints"], float), max(shape)
        if left:
            keypoints[:, 0] = shape[1] - 1 - keypoints[:, 0]
        seen, points = keypoints[:, 2] > 0, keypoints[:, :2]
        K = np.array([[FOCAL * side, 0, shape[1] / 2], [0, FOCAL * side, shape[0] / 2], [0, 0, 1]])
        known = np.array(label["joints_m"]) if "joints_m" in label else None
        if known is None:
            guesses = self._from_keypoints(points[seen], seen, K)
        else:
            K, guesses = np.array(label["K"], float), self._from_joints(known)
        refined = [self._refine(guess, points, seen, K, known, side) for guess in guesses]
        _, pose, betas, translation, error = min(refined, key=lambda result: result[0])
        intrinsics = K * SIDE / side
        intrinsics[2, 2] = 1
        return Fit(pose, betas, translation, intrinsics, seen, error)

    def _from_joints(self, joints: Floats) -> list[tuple[int, Floats, Floats]]:
        """(number of the pose, orientation, middle) of those that lie nearest once turned."""
        found = []
        for number, own in enumerate(self.joints):
            turn, _ = Rotation.align_vectors(joints - joints.mean(axis=0), own - own.mean(axis=0))
            distance = np.linalg.norm(turn.apply(own - own.mean(axis=0)) - (joints - joints.mean(axis=0)), axis=-1)
            found.append((distance.mean(), number, turn.as_matrix()))
        found.sort(key=lambda row: row[0])
        return [(number, R, joints.mean(axis=0)) for _, number, R in found[:FIRST_GUESSES]]

    def _from_keypoints(self, points: Floats, seen: NDArray[np.bool_], K: Floats) -> list[tuple[int, Floats, Floats]]:
        """The same from 2D, among random orientations and under weak perspective."""
        middle = points.mean(axis=0)
        wanted = points - middle
        turns = Rotation.random(600, random_state=1).as_matrix()
        found = []
        for number in range(0, CANDIDATES, 4):
            own = self.joints[number][seen]
            flat = (turns @ (own - own.mean(axis=0)).T)[:, :2].transpose(0, 2, 1)
            scale = (flat * wanted).sum(axis=(1, 2)) / (flat**2).sum(axis=(1, 2))
            error = ((scale[:, None, None] * flat - wanted) ** 2).sum(axis=(1, 2))
            error[scale <= 0] = np.inf
            best = int(error.argmin())
            found.append((error[best], number, turns[best], K[0, 0] / scale[best]))
        found.sort(key=lambda row: row[0])
        ray = np.array([*((middle - K[:2, 2]) / K[[0, 1], [0, 1]]), 1.0])
        return [(number, R, ray * depth) for _, number, R, depth in found[:FIRST_GUESSES]]

    def _refine(
        self,
        guess: tuple[int, Floats, Floats],
        points: Floats,
        seen: NDArray[np.bool_],
        K: Floats,
        joints: Floats | None,
        side: int,
    ) -> tuple[float, Floats, Floats, Floats, float]:
        number, R, middle = guess
        first = torch.tensor(vector_from_matrix(self.poses[number, 1:].numpy())).float()
        fingers, turn = first.clone().requires_grad_(), torch.tensor(vector_from_matrix(R)).float().requires_grad_()
        betas = torch.zeros(10, requires_grad=True)
        place = torch.tensor(middle - R @ self.joints[number].mean(axis=0)).float().requires_grad_()
        optimizer = torch.optim.Adam([{"params": [fingers, turn, betas]}, {"params": [place], "lr": 0.003}], lr=0.02)
        wanted, camera, mask = torch.tensor(points).float(), torch.tensor(K).float(), torch.tensor(seen)
        for _ in range(250):
            pose = torch.linalg.matrix_exp(cross_matrix(torch.cat([turn[None], fingers])))
            found = self.hand(pose[None], betas[None])[1][0] + place
            projected = found @ camera.T
            drawn = projected[:, :2] / projected[:, 2:]
            # In tenths of the photo's side, centimetres and radians; pose and shape stay near what is likely.
            loss = ((10 * (drawn - wanted) / side) ** 2).sum(dim=1)[mask].mean()
            loss = loss + 0.3 * ((fingers - first) ** 2).mean() + 0.005 * (betas**2).mean()
            if joints is not None:
                loss = loss + ((100 * (found - torch.tensor(joints).float())) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = metrics.keypoint_box_error(points[seen], drawn.detach().numpy()[seen])
        parts = (part.detach().numpy().astype(float) for part in (pose, betas, place))
        return (float(loss.detach()), *parts, float(error))


def cross_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """(N, 3) -> (N, 3, 3); their matrix exponentials are the rotations, with gradients."""
    return torch.linalg.cross(torch.eye(3)[None], vectors[:, None], dim=-1)


if __name__ == "__main__":
    main()
