"""What is known about a hand: one record of labels, of a photograph or a crop, of one sample or a batch.

Every label may be missing, for data sets differ in what they measured. A missing label is zeros (rotations: identities)
of the usual shape with a flag that is False, so that samples of all kinds stack into one batch, and each switches off
the losses that it cannot pay for (`handmesh.learn.losses`). Another kind of label is a field here, with its flag, and
what reads it and pays for it; all that lies between hands it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from handmesh.geometry.camera import Intrinsics
from handmesh.hand import (
    BETA_COUNT,
    JOINT_NAMES,
    MANO_JOINT_NAMES,
    VERTEX_COUNT,
    HandArrays,
    Handedness,
)
from handmesh.hand.models import has_mano_joints, name_of

Floats = NDArray[np.float64]

Array = TypeVar("Array")  # NDArray or torch's Tensor
Other = TypeVar("Other")
JOINT_COUNT = len(JOINT_NAMES)


class HandLabels(NamedTuple, Generic[Array]):
    """Labels and which of them are known; `hand_labels` makes one of what there is. B is nothing, or a batch.

    Of a photograph: keypoints in pixels, the rest in the camera's frame. Of a crop, which shows a right hand: keypoints
    in NDC; 3D labels in the crop's own axes, those of a virtual camera that looks at the crop's centre and is turned
    with the crop (x right, y down, z forward), so that what the network is asked for depends on nothing but the pixels
    it sees. There joints and vertices have one origin, whichever; where they are missing, pose and betas can stand in.
    """

    keypoints: Array  # (*B, 21, 2)
    joints: Array  # (*B, 21, 3) m
    vertices: Array  # (*B, 778, 3) m
    pose: Array  # (*B, 16, 3, 3) parent-relative rotations; [0] is the orientation in the camera's or the crop's axes
    betas: Array  # (*B, 10)
    keypoints_known: Array  # (*B, 21) bool, and so are the following
    joints_known: Array  # (*B)
    vertices_known: Array  # (*B)
    pose_known: Array  # (*B)
    betas_known: Array  # (*B)
    present: Array  # (*B) is there a hand? If not, nothing else is known
    right: Array  # (*B) is what is seen a right hand? Of a crop with a left one only keypoints are known

    def map(self, function: Callable[[Array], Other]) -> HandLabels[Other]:
        """The same of every array."""
        return HandLabels(*(function(value) for value in self))


class HandSample(NamedTuple, Generic[Array]):
    """A square crop of side R pixels with its labels, or a batch of them: what training goes through."""

    image: Array  # (*B, R, R, 3) uint8 RGB
    labels: HandLabels[Array]

    def map(self, function: Callable[[Array], Other]) -> HandSample[Other]:
        """The same of every array."""
        return HandSample(function(self.image), self.labels.map(function))


def hand_labels(
    *,
    keypoints: ArrayLike | None = None,
    keypoints_known: ArrayLike | None = None,
    joints: ArrayLike | None = None,
    vertices: ArrayLike | None = None,
    pose: ArrayLike | None = None,
    betas: ArrayLike | None = None,
    present: bool = True,
    right: bool = True,
    dtype: DTypeLike = np.float32,
) -> HandLabels[NDArray[Any]]:
    """The labels of one hand; None = not known. `keypoints_known`: which of the keypoints; None = all."""

    def label(value: ArrayLike | None, missing: NDArray[np.float64]) -> NDArray[Any]:
        return np.asarray(missing if value is None else value, dtype)

    seen = np.full(JOINT_COUNT, keypoints is not None)
    return HandLabels(
        keypoints=label(keypoints, np.zeros((JOINT_COUNT, 2))),
        joints=label(joints, np.zeros((JOINT_COUNT, 3))),
        vertices=label(vertices, np.zeros((VERTEX_COUNT, 3))),
        pose=label(pose, np.broadcast_to(np.eye(3), (len(MANO_JOINT_NAMES), 3, 3))),
        betas=label(betas, np.zeros(BETA_COUNT)),
        keypoints_known=seen if keypoints_known is None else np.asarray(keypoints_known, bool),
        joints_known=np.array(joints is not None),
        vertices_known=np.array(vertices is not None),
        pose_known=np.array(pose is not None),
        betas_known=np.array(betas is not None),
        present=np.array(present),
        right=np.array(right),
    )


def without(labels: HandLabels[NDArray[Any]], *names: str) -> HandLabels[NDArray[Any]]:
    """The labels of one hand, those of these names not known."""
    unknown = hand_labels(dtype=labels.keypoints.dtype)
    return labels._replace(**{field: getattr(unknown, field) for name in names for field in (name, f"{name}_known")})


# ------------------------------------------------------------------------------------------------------ photographs


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
        """(4,) px: the given box, else the smallest around the known keypoints, else None: of fewer than two, and of
        some in one row or column of pixels, there is none.
        """
        if self.box is not None:
            return self.box
        seen = self.keypoints_or_projection()
        if seen is None or seen[1].sum() < 2:
            return None
        points = seen[0][seen[1]]
        low, high = points.min(axis=0), points.max(axis=0)
        return np.concatenate([low, high]) if (low < high).all() else None


@dataclass(frozen=True)
class LabelledHand:
    """Whose vertices, poses and shapes a data set's labels are."""

    name: str
    sha256: str | None  # of `HandArrays`; None for MANO as FreiHAND was made with, of which several files are about

    def matches(self, hand: HandArrays) -> bool:
        """Whether this hand's vertices are in the same places, and its poses and shapes mean the same."""
        return hand.sha256 == self.sha256 or (self.sha256 is None and name_of(hand.sha256) in (self.name, None))

    @property
    def mano_joints(self) -> bool:
        """Whether its joints lie where MANO has them (`handmesh.hand.definitions`)."""
        return has_mano_joints(self.sha256, self.name)

    def __str__(self) -> str:
        return self.name if self.sha256 is None else f"{self.name} ({self.sha256[:12]})"


@dataclass(frozen=True, eq=False)
class RawSample:
    """One photograph of one hand, not cropped yet."""

    name: str  # which one, for messages: a file name, or an id
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    labels: PhotoLabels
    # Reads (H, W) how much of a pixel is the hand with its arm, 255: all; None: not known. Raises DataError.
    alpha: Callable[[], NDArray[np.uint8]] | None = None
    for_scoring: bool = False  # its labels are the test set's: no crop may be made from them without saying so


class RawData(Protocol):
    """A set of photographs: what `FreiHand` and `LabelledPhotos` are."""

    def files(self) -> Iterable[Path]:
        """Those that say what is in it: all, or a record of their SHA-256."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample: ...
