"""One training example: a crop and whatever is known about the hand in it.

Every label may be missing, for data sets differ in what they measured. A missing label is zeros (rotations: identities)
of the usual shape with a flag that is False, so that samples of all kinds stack into one batch, and each switches off
the losses that it cannot pay for (`handmesh.learn.losses`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.hand import BETA_COUNT, JOINT_NAMES, MANO_JOINT_NAMES, VERTEX_COUNT

Float32Array = NDArray[np.float32]
Flags = NDArray[np.bool_]


class HandSample(NamedTuple):
    """A right hand in a square crop of side R pixels; `hand_sample` makes one, `batches.collate` a batch.

    3D labels are in the crop's own axes: those of a virtual camera that looks at the crop's centre and is turned with
    the crop (x right, y down, z forward). So what the network is asked for depends on nothing but the pixels it sees.
    Joints and vertices have one origin, whichever; where they are missing, pose and betas can stand in for them.
    """

    image: NDArray[np.uint8]  # (R, R, 3) RGB
    keypoints: Float32Array  # (21, 2) NDC of the crop
    keypoint_known: Flags  # (21,)
    joints: Float32Array  # (21, 3) m
    vertices: Float32Array  # (778, 3) m
    pose: Float32Array  # (16, 3, 3) parent-relative rotations; [0] in the crop's axes
    betas: Float32Array  # (10,)
    joints_known: Flags  # ()
    vertices_known: Flags  # ()
    pose_known: Flags  # ()
    betas_known: Flags  # ()
    present: Flags  # () is there a hand? If not, nothing else is known
    right: Flags  # () a hand seen in a mirror is a left one: of that only keypoints are known


def hand_sample(
    image: NDArray[np.uint8],
    *,
    keypoints: ArrayLike | None = None,
    keypoint_known: ArrayLike | None = None,
    joints: ArrayLike | None = None,
    vertices: ArrayLike | None = None,
    pose: ArrayLike | None = None,
    betas: ArrayLike | None = None,
    present: bool = True,
    right: bool = True,
) -> HandSample:
    """A sample of the labels that are known; None = not known. `keypoint_known`: which of the keypoints; None = all."""
    seen = np.full(len(JOINT_NAMES), keypoints is not None)
    return HandSample(
        image=image,
        keypoints=_label(keypoints, np.zeros((len(JOINT_NAMES), 2))),
        keypoint_known=seen if keypoint_known is None else np.asarray(keypoint_known, bool),
        joints=_label(joints, np.zeros((len(JOINT_NAMES), 3))),
        vertices=_label(vertices, np.zeros((VERTEX_COUNT, 3))),
        pose=_label(pose, np.broadcast_to(np.eye(3), (len(MANO_JOINT_NAMES), 3, 3))),
        betas=_label(betas, np.zeros(BETA_COUNT)),
        joints_known=np.array(joints is not None),
        vertices_known=np.array(vertices is not None),
        pose_known=np.array(pose is not None),
        betas_known=np.array(betas is not None),
        present=np.array(present),
        right=np.array(right),
    )


def _label(value: ArrayLike | None, missing: NDArray[np.float64]) -> Float32Array:
    return np.asarray(missing if value is None else value, np.float32)
