"""Poses and views that real hands took: the numbers that were fitted to photographs, without the photographs.

The file that ships was made by `benchmarks/real_poses.py`. `RealPoses.sample` draws one of them,
varied, together with the view it was seen from, for pose and view belong together: a fist is shown to the camera in
other ways than an open hand. Left hands are mirrored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import HandArrays, Handedness, builtin_hand
from handmesh.hand.anatomy import FINGER_ROOTS, flexion_axes, palm_frame
from handmesh.synth.pose_prior import PosePrior, SampledPose

Floats = NDArray[np.float64]

_ATTEMPTS = 3
_NOISE = np.array([0.09, 0.05, 0.03])  # radians, standard deviations of each joint's flexion, abduction and twist
_VIEW_NOISE = 0.15  # radians, about each axis
_SWAPPED_FINGER = 0.2  # probability that one finger comes from another of the poses


class RealPoseArrays(NamedTuple):
    """N poses of right hands, in anatomical axes: they serve any hand model."""

    fingers: Floats  # (N, 15, 3) rotation vectors about each joint's flexion, abduction and twist axes, radians
    views: Floats  # (N, 3) rotation vectors, cam from (lateral, distal, dorsal) of the palm
    sources: tuple[str, ...]  # where they come from, under which licences

    @classmethod
    def load(cls, path: Path | None = None) -> RealPoseArrays:
        """None: the ones that ship with handmesh."""
        shipped = resources.as_file(resources.files("handmesh") / "assets" / "real_poses.npz")
        with shipped as file, np.load(file if path is None else path) as arrays:
            return cls(arrays["fingers"].astype(float), arrays["views"].astype(float), tuple(arrays["sources"]))


def palm_axes(hand: HandArrays) -> Floats:
    """(3, 3) rows lateral (away from the thumb), distal, dorsal of a right hand's palm, in the hand's rest frame."""
    palm = palm_frame(hand)
    return np.stack([-palm.radial, palm.distal, palm.dorsal])


class RealPoses:
    """Samples them for one hand model, which is a right one."""

    def __init__(self, prior: PosePrior, hand: HandArrays, arrays: RealPoseArrays | None = None) -> None:
        self.prior = prior
        self.arrays = RealPoseArrays.load() if arrays is None else arrays
        self._axes = flexion_axes(hand)

    def sample(self, rng: np.random.Generator) -> tuple[SampledPose, Floats]:
        """A pose and its view, (3, 3) cam from (lateral, distal, dorsal). Always returns: where variations pass through
        themselves the pose is taken as it is.
        """
        fingers, views, _ = self.arrays
        index = int(rng.integers(len(fingers)))
        angles = fingers[index]
        rotations = self._rotations(angles)
        limit = max(self.prior.penetration(rotations), self.prior.settings.penetration)
        for _ in range(_ATTEMPTS):
            varied = angles + rng.normal(size=angles.shape) * _NOISE
            if rng.random() < _SWAPPED_FINGER:
                root = FINGER_ROOTS[rng.integers(len(FINGER_ROOTS))] - 1  # the wrist is not among the fingers' joints
                varied[root : root + 3] = fingers[rng.integers(len(fingers)), root : root + 3]
            changed = self._rotations(varied)
            if self.prior.penetration(changed) <= limit:
                rotations = changed
                break
        noise = matrix_from_vector(rng.normal(0, _VIEW_NOISE, 3))
        return SampledPose(rotations, "real", ""), noise @ matrix_from_vector(views[index])

    def _rotations(self, angles: Floats) -> Floats:
        """(15, 3) about the anatomical axes -> (16, 3, 3), the wrist's the identity."""
        vectors = np.einsum("ja,jac->jc", angles, self._axes[1:])
        return np.concatenate([np.eye(3)[None], matrix_from_vector(vectors)])


def real_pose_arrays(
    records: Iterable[tuple[Any, Handedness]], hand: HandArrays | None = None, sources: Sequence[str] = ()
) -> RealPoseArrays:
    """(16, 3, 3) parent-relative rotations in the picture's axes, of hands of either side -> poses of right hands."""
    hand = builtin_hand() if hand is None else hand
    axes, palm = flexion_axes(hand), palm_axes(hand)
    mirror = np.diag([-1.0, 1.0, 1.0])
    fingers, views = [], []
    for pose, side in records:
        rotations = np.asarray(pose, float)
        if side == Handedness.LEFT:
            rotations = mirror @ rotations @ mirror
        vectors = vector_from_matrix(rotations)
        fingers.append(np.einsum("jc,jac->ja", vectors[1:], axes[1:]))
        views.append(vector_from_matrix(rotations[0] @ palm.T))
    return RealPoseArrays(np.array(fingers).reshape(-1, 15, 3), np.array(views).reshape(-1, 3), tuple(sources))


def thinned(arrays: RealPoseArrays, count: int, seed: int = 0) -> RealPoseArrays:
    """At most `count` of them, none much like another: what many people did counts hardly more than what one did.

    The radius within which only one is kept is found by bisection. Poses are compared by their joints' angles, views
    with the roll in the picture taken out, since crops are turned upright.
    """
    rolled = matrix_from_vector(arrays.views)
    angle = np.arctan2(rolled[:, 0, 1], -rolled[:, 1, 1])  # where distal points in the picture
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    upright = np.moveaxis(np.array([[c, s, zero], [-s, c, zero], [zero, zero, one]]), -1, 0) @ rolled
    features = np.concatenate([arrays.fingers.reshape(-1, 45), upright.reshape(-1, 9)], axis=1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(features))
    low, high, kept = 0.0, 10.0, order
    for _ in range(12):
        radius = (low + high) / 2
        chosen: list[int] = []
        for index in order:
            if not chosen or np.linalg.norm(features[chosen] - features[index], axis=1).min() > radius:
                chosen.append(int(index))
                if len(chosen) > count:
                    break
        if len(chosen) > count:
            low = radius
        else:
            high, kept = radius, np.array(chosen)
    kept = np.sort(kept[:count])
    return RealPoseArrays(arrays.fingers[kept], arrays.views[kept], arrays.sources)
