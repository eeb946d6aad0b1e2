"""A photograph and whatever is known about the hand in it, and how both get into a square crop.

Left hands are mirrored on the way into the crop (`CropTransform.mirror`): what comes out is always a right hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.sample import JOINT_COUNT, HandLabels, HandSample, hand_labels
from handmesh.errors import DataError
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import HandArrays, Handedness, builtin_hand

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PhotoLabels:
    """What is known about the hand of a photograph, and about its camera; None = not known."""

    hand: HandLabels[NDArray[Any]] = field(default_factory=hand_labels)  # px and m, cam; float64
    box: Floats | None = None  # (4,) x0, y0, x1, y1 px
    intrinsics: Intrinsics | None = None

    @property
    def handedness(self) -> Handedness:
        return Handedness.RIGHT if self.hand.right else Handedness.LEFT

    def keypoints_or_projection(self) -> tuple[Floats, NDArray[np.bool_]] | None:
        """(21, 2) px and (21,) known: the given keypoints, and the joints seen by the camera where none is given.

        Not-a-number where neither is known, None when that is so of all.
        """
        given = self.hand.keypoints_known
        keypoints, known = np.full((JOINT_COUNT, 2), np.nan), np.zeros(JOINT_COUNT, bool)
        if self.hand.joints_known and self.intrinsics is not None:
            keypoints = self.intrinsics.project(self.hand.joints)
            known = np.asarray(np.isfinite(keypoints).all(axis=1), bool)
        elif not given.any():
            return None
        return np.where(given[:, None], self.hand.keypoints, keypoints), given | known

    def hand_box(self) -> Floats | None:
        """(4,) px: the given box, else the smallest around the known keypoints, else None."""
        if self.box is not None:
            return self.box
        seen = self.keypoints_or_projection()
        if seen is None or seen[1].sum() < 2:
            return None
        points = seen[0][seen[1]]
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


@dataclass(frozen=True)
class LabelledHand:
    """Whose vertices, poses and shapes a data set's labels are."""

    name: str
    sha256: str | None  # of `HandArrays`; None for MANO as FreiHAND was made with, of which several files are about

    def is_(self, hand: HandArrays) -> bool:
        """Whether this hand's vertices are in the same places, and its poses and shapes mean the same."""
        return hand.sha256 == self.sha256 or (self.sha256 is None and hand.sha256 != builtin_hand().sha256)

    def __str__(self) -> str:
        return self.name if self.sha256 is None else f"{self.name} ({self.sha256[:12]})"


@dataclass(frozen=True, eq=False)
class RawSample:
    """One photograph of one hand, not cropped yet."""

    name: str  # which one, for messages: a file name, or an id
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    labels: PhotoLabels
    for_scoring: bool = False  # its labels are the test set's: no crop may be made from them without saying so


class RawData(Protocol):
    """A set of photographs: what `FreiHand` and `JsonlData` are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample: ...


@dataclass(frozen=True)
class CropProtocol:
    """How the square around the hand is chosen. `FRAME`, `METRO` and `BOX` are the named ones."""

    name: str
    share: float | None  # of the image's longer side, around its middle; None: around the hand's box
    margin: float = 1.25  # crop side over the box's longer side
    from_test_labels: bool = False  # allowed to read the box from labels that scores are computed with

    @property
    def remark(self) -> str | None:
        """What every report of scores under this protocol has to say; None: nothing."""
        if not self.from_test_labels:
            return None
        return "Crops were made from the test set's own labels: not comparable with published scores."

    def crop(self, sample: RawSample) -> CropTransform:
        """The crop of a sample, without jitter. Raises DataError when it needs a box and none may be used."""
        mirror = sample.labels.handedness == Handedness.LEFT
        height, width = sample.image.shape[:2]
        if self.share is not None:
            return CropTransform(((width - 1) / 2, (height - 1) / 2), self.share * max(width, height), mirror=mirror)
        if sample.for_scoring and sample.labels.box is None and not self.from_test_labels:
            raise DataError(
                f"Protocol {self.name!r} would take the box of {sample.name} from the test set's own labels, which "
                f"makes scores incomparable. Use 'frame' or 'metro', or ask for it by name: {BOX_FROM_TEST_LABELS!r}."
            )
        box = sample.labels.hand_box()
        if box is None:
            raise DataError(f"{sample.name} has neither a box nor keypoints: protocol {self.name!r} needs one of them.")
        return CropTransform.around_box(box, self.margin, mirror=mirror)


BOX_FROM_TEST_LABELS = "box-from-test-labels"
# The whole image: how FreiHAND's authors and most demos feed it.
FRAME = CropProtocol("frame", share=1.0)
# METRO's (and Mesh Graphormer's) data: the central 180 of 224 px, in training and in testing (0.9 * 200 px around the
# image's middle in their tsv_demo_freihand.py).
METRO = CropProtocol("metro", share=180 / 224)
# A square around the hand, as a detector would give it.
BOX = CropProtocol("box", share=None)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (FRAME, METRO, BOX, CropProtocol(BOX_FROM_TEST_LABELS, share=None, from_test_labels=True))
}


def crop_protocol(name: str) -> CropProtocol:
    """Raises DataError for a name that is none of `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise DataError(f"Crop protocol {name!r}: wanted one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class CropJitter:
    """Random changes of a crop in training. The defaults are METRO's (its `augm_params`); it never shifts."""

    rotation: float = math.pi / 2  # radians, standard deviation; cut at half a turn
    unrotated: float = 0.6  # share of samples that are not turned
    scale: float = 0.25  # standard deviation of the side's factor, and where it is cut
    shift: float = 0.0  # of the crop's side: cut, standard deviation half of it

    def __call__(self, crop: CropTransform, rng: np.random.Generator) -> CropTransform:
        """The crop, turned, resized and shifted."""
        rotation = float(np.clip(self.rotation * rng.normal(), -math.pi, math.pi))
        if rng.random() < self.unrotated:
            rotation = 0.0
        size = crop.size * float(np.clip(1 + self.scale * rng.normal(), 1 - self.scale, 1 + self.scale))
        x, y = np.clip(rng.normal(0, 0.5, 2), -1, 1) * self.shift * size
        center = (crop.center[0] + float(x), crop.center[1] + float(y))
        return CropTransform(center, size, crop.rotation + rotation, crop.mirror)


def crop_sample(sample: RawSample, crop: CropTransform, resolution: int) -> HandSample[NDArray[Any]]:
    """The pixels and labels of `sample` in `crop`; black beyond the photograph.

    With known intrinsics, 3D labels are turned to a camera that faces the crop's centre: what a hand looks like in an
    off-centre crop depends on where the camera would have to look. For a crop around FreiHAND's principal point that
    turn is nothing but the half pixel between it and the image's middle.
    """
    labels, hand = sample.labels, sample.labels.hand
    assert crop.mirror == (labels.handedness == Handedness.LEFT), "a left hand has to be mirrored, a right one not"
    image = crop.warp(np.ascontiguousarray(sample.image), resolution, cv2.BORDER_CONSTANT)
    facing = np.eye(3) if labels.intrinsics is None else labels.intrinsics.facing_from_cam(crop.center)
    if (seen := labels.keypoints_or_projection()) is not None:
        points, known = seen
        points = np.where(known[:, None], crop.to_ndc(np.where(known[:, None], points, 0)), 0)
        hand = hand._replace(keypoints=points, keypoints_known=known)
    if hand.pose_known:
        hand = hand._replace(pose=crop.pose_to_crop(np.concatenate([facing @ hand.pose[:1], hand.pose[1:]])))
    if hand.joints_known:
        hand = hand._replace(joints=crop.vectors_to_crop(hand.joints @ facing.T))
    if hand.vertices_known:
        hand = hand._replace(vertices=crop.vectors_to_crop(hand.vertices @ facing.T))
    hand = hand._replace(right=np.asarray(hand.right != crop.mirror))
    return HandSample(image, hand.map(lambda value: value if value.dtype == bool else value.astype(np.float32)))
