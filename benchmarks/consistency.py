"""Does the same hand come out of the same photo, mirrored, turned or rescaled?  python benchmarks/consistency.py

Synthetic photos (those of `synthetic_photos.py`, or --photos for a folder of images with one hand each) are predicted
as they are and changed, with the side given, and the answer to the changed photo is brought back. Distances are
between the two answers, not from the truth: mean over the 21 joints in mm, relative to the wrist, as they are and
after alignment by rotation, scale and shift; and in the picture, over the longer side of the keypoints' box.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from synthetic_photos import SEED

from handmesh import metrics
from handmesh.cli.shell import IMAGE_SUFFIXES
from handmesh.files.image import read_image
from handmesh.hand import Handedness, builtin_hand
from handmesh.predict import load_predictor
from handmesh.synth import SceneRenderer, SceneSettings, sample_generator

Image = NDArray[np.uint8]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A photo made another, and an answer to that one brought back: `linear` (2, 2) and a shift in pixels."""

    name: str
    linear: Points
    mirrored: bool = False

    def apply(self, image: Image) -> tuple[Image, Points]:
        """-> the changed photo, whole, and the (2, 3) map from the old pixels to the new ones (centres at .0)."""
        height, width = image.shape[:2]
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ self.linear.T
        low, size = corners.min(axis=0), np.ceil(np.ptp(corners, axis=0) - 1e-9).astype(int)
        half = np.array([0.5, 0.5])  # a pixel's corner to its centre
        centers = np.column_stack([self.linear, self.linear @ half - low - half])
        if np.linalg.norm(self.linear, 2) < 1:  # area averaging, as a camera of fewer pixels would
            changed = cv2.resize(image, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
        else:
            changed = cv2.warpAffine(image, centers, (int(size[0]), int(size[1])), flags=cv2.INTER_CUBIC)
        return np.asarray(changed, np.uint8), centers

    def back(self, joints: Points, keypoints: Points, centers: Points) -> tuple[Points, Points]:
        scale = np.sqrt(abs(np.linalg.det(self.linear)))
        turn = np.eye(3)
        turn[:2, :2] = self.linear / scale
        return joints @ turn, (keypoints - centers[:, 2]) @ np.linalg.inv(self.linear).T


def turned(degrees: float) -> Points:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


CHANGES = (
    Change("mirrored", np.diag([-1.0, 1.0]), mirrored=True),
    Change("turned by 90", turned(90)),
    Change("turned by 180", turned(180)),
    Change("turned by 30", turned(30)),
    Change("half the size", np.eye(2) / 2),
    Change("1.5 times the size", np.eye(2) * 1.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--photos", type=Path, help="a folder of photos of right hands, in place of synthetic ones")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    photos = given_photos(arguments.photos) if arguments.photos else synthetic_photos(arguments.count)
    predictor = load_predictor(arguments.model, detector=None, passes=arguments.passes)

    def answer(image: Image, side: str, box: Points | None) -> tuple[Points, Points]:
        boxes = None if box is None else [(*box.min(axis=0), *box.max(axis=0))]
        hand = predictor(image, handedness=side, boxes=boxes, min_score=0)[0]
        return hand.joints.astype(np.float64), hand.keypoints_image().astype(np.float64)

    print(f"{'':20} {'protocol':9} {'mm':>6} {'median':>7} {'aligned':>8} {'2D / box':>9}")
    for protocol in ("whole",) if arguments.photos else ("whole", "box"):
        first = [answer(image, "right", keypoints if protocol == "box" else None) for image, keypoints in photos]
        for change in CHANGES:
            pairs = zip(photos, first, strict=True)
            rows = [compare(answer, change, *photo, before, protocol) for photo, before in pairs]
            (apart, aligned, keypoints), middle = np.mean(rows, axis=0), np.median(rows, axis=0)[0]
            print(f"{change.name:20} {protocol:9} {apart:6.2f} {middle:7.2f} {aligned:8.2f} {keypoints:9.4f}")


def compare(
    answer: Callable[[Image, str, Points | None], tuple[Points, Points]],
    change: Change,
    image: Image,
    keypoints: Points | None,
    before: tuple[Points, Points],
    protocol: str,
    side: Handedness = Handedness.RIGHT,
) -> tuple[float, float, float]:
    """(mm relative to the wrist, mm aligned, 2D over box) between the answers before and after the change."""
    changed, centers = change.apply(image)
    box = None
    if protocol == "box" and keypoints is not None:
        box = keypoints @ centers[:, :2].T + centers[:, 2]
    joints, points = answer(changed, side.other if change.mirrored else side, box)
    joints, points = change.back(joints, points, centers)
    return (
        1000 * float(metrics.mpjpe(before[0], joints)),
        1000 * float(metrics.pa_rigid_mean_error(before[0], joints)),
        float(metrics.keypoint_box_error(before[1], points)),
    )


def given_photos(folder: Path) -> list[tuple[Image, Points | None]]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [(read_image(path), None) for path in files]


def synthetic_photos(count: int) -> list[tuple[Image, Points | None]]:
    renderer = SceneRenderer(builtin_hand(), SceneSettings(crop_share=(0.45, 0.95)), size=224)
    samples = [renderer.render(sample_generator(SEED, index)) for index in range(count)]
    return [(sample.image, sample.keypoints.astype(np.float64)) for sample in samples]


if __name__ == "__main__":
    main()
