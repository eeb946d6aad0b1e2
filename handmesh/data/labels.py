"""A photograph and whatever is known about the hand in it, and the same in a square crop.

Every label may be missing: data sets differ in what they measured. In a crop a missing label becomes zeros of the usual
shape with a flag that is False, so that samples of all kinds stack into one batch and each switches off the losses
that it cannot pay for.

Left hands are mirrored on the way into the crop (`CropTransform.mirror`): what comes out is always a right hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.camera import Intrinsics
from handmesh.crop import CropTransform
from handmesh.errors import DataError
from handmesh.hand import BETA_COUNT, JOINT_NAMES, VERTEX_COUNT, Handedness

Floats = NDArray[np.float64]
Float32Array = NDArray[np.float32]

JOINT_COUNT = len(JOINT_NAMES)


@dataclass(frozen=True, eq=False)
class HandLabels:
    """What is known about one hand; None = not known. Frames and units as everywhere (`handmesh.camera`)."""

    handedness: Handedness = Handedness.RIGHT
    box: Floats | None = None  # (4,) x0, y0, x1, y1 px
    intrinsics: Intrinsics | None = None
    keypoints: Floats | None = None  # (21, 2) px, pixel centres at integers
    visible: NDArray[np.bool_] | None = None  # (21,) whether a keypoint is known; None = all of them
    joints: Floats | None = None  # (21, 3) m, cam
    vertices: Floats | None = None  # (778, 3) m, cam
    pose: Floats | None = None  # (16, 3, 3) parent-relative rotations; [0] is the orientation in the camera's axes
    betas: Floats | None = None  # (10,)

    def keypoints_or_projection(self) -> tuple[Floats, NDArray[np.bool_]] | None:
        """(21, 2) px and (21,) known: the given keypoints, and the joints seen by the camera where none is given.

        None when neither is known.
        """
        if self.keypoints is None and (self.joints is None or self.intrinsics is None):
            return None
        keypoints, known = np.full((JOINT_COUNT, 2), np.nan), np.zeros(JOINT_COUNT, bool)
        if self.joints is not None and self.intrinsics is not None:
            keypoints = self.intrinsics.project(self.joints)
            known = _finite_rows(keypoints)
        if self.keypoints is not None:
            given = _finite_rows(self.keypoints) & (True if self.visible is None else self.visible)
            keypoints, known = np.where(given[:, None], self.keypoints, keypoints), given | known
        return keypoints, known

    def hand_box(self) -> Floats | None:
        """(4,) px: the given box, else the smallest around the known keypoints, else None."""
        if self.box is not None:
            return self.box
        seen = self.keypoints_or_projection()
        if seen is None or seen[1].sum() < 2:
            return None
        points = seen[0][seen[1]]
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _finite_rows(points: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(points).all(axis=1), bool)


@dataclass(frozen=True, eq=False)
class RawSample:
    """One photograph of one hand, not cropped yet."""

    name: str  # which one, for messages: a file name, or an id
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    labels: HandLabels
    for_scoring: bool = False  # its labels are the test set's: no crop may be made from them without saying so


class RawData(Protocol):
    """A set of photographs: what `FreiHand` and `JsonlData` are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample: ...


class CropSample(NamedTuple):
    """A right hand in a square crop of side R px, with flags for what is known. Stacks into batches field by field.

    3D labels are in the axes of a camera that faces the crop's centre and is turned (and mirrored) with the crop.
    """

    image: NDArray[np.uint8]  # (R, R, 3) RGB
    keypoints: Float32Array  # (21, 2) NDC of the crop
    keypoint_known: NDArray[np.bool_]  # (21,)
    joints: Float32Array  # (21, 3) m, origin at the camera
    vertices: Float32Array  # (778, 3) m, origin at the camera
    pose: Float32Array  # (16, 3, 3); [0] in the crop's axes; identities where unknown
    betas: Float32Array  # (10,)
    joints_known: NDArray[np.bool_]  # ()
    vertices_known: NDArray[np.bool_]  # ()
    pose_known: NDArray[np.bool_]  # ()
    betas_known: NDArray[np.bool_]  # ()


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


def crop_sample(sample: RawSample, crop: CropTransform, resolution: int) -> CropSample:
    """The pixels and labels of `sample` in `crop`; black beyond the photograph.

    With known intrinsics, 3D labels are turned to a camera that faces the crop's centre: what a hand looks like in an
    off-centre crop depends on where the camera would have to look. For a crop around FreiHAND's principal point that
    turn is nothing but the half pixel between it and the image's middle.
    """
    labels = sample.labels
    assert crop.mirror == (labels.handedness == Handedness.LEFT), "a left hand has to be mirrored, a right one not"
    image = crop.warp(np.ascontiguousarray(sample.image), resolution, cv2.BORDER_CONSTANT)
    facing = np.eye(3) if labels.intrinsics is None else labels.intrinsics.facing_from_cam(crop.center)
    keypoints, known = np.zeros((JOINT_COUNT, 2)), np.zeros(JOINT_COUNT, bool)
    if (seen := labels.keypoints_or_projection()) is not None:
        known = seen[1]
        keypoints[known] = crop.to_ndc(seen[0][known])
    pose: NDArray[np.floating[Any]] = np.broadcast_to(np.eye(3), (16, 3, 3))
    if labels.pose is not None:
        pose = crop.pose_to_crop(np.concatenate([facing @ labels.pose[:1], labels.pose[1:]]))

    def turned(points: Floats | None, count: int) -> Float32Array:
        if points is None:
            return np.zeros((count, 3), np.float32)
        return crop.vectors_to_crop(points @ facing.T).astype(np.float32)

    def known_flag(label: Any) -> NDArray[np.bool_]:
        return np.array(label is not None)

    return CropSample(
        image=image,
        keypoints=keypoints.astype(np.float32),
        keypoint_known=known,
        joints=turned(labels.joints, JOINT_COUNT),
        vertices=turned(labels.vertices, VERTEX_COUNT),
        pose=pose.astype(np.float32),
        betas=np.zeros(BETA_COUNT, np.float32) if labels.betas is None else labels.betas.astype(np.float32),
        joints_known=known_flag(labels.joints),
        vertices_known=known_flag(labels.vertices),
        pose_known=known_flag(labels.pose),
        betas_known=known_flag(labels.betas),
    )
