"""Posing a hand model with numpy alone: what `mano.HandModel` computes, for those who have no torch at hand.

Tracking smooths rotations and shapes, an animation bakes a shape and keeps the rotations; both then need the mesh that
belongs to them. Formulas as in mano.py: Romero, Tzionas, Black: "Embodied Hands" (SIGGRAPH Asia 2017), equations 1 to
4. Metres and radians; a rotation acts on column vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.hand import FINGERTIP_VERTICES, JOINTS_FROM_MANO, HandArrays

Array = NDArray[np.floating[Any]]


class PosedHand(NamedTuple):
    """One posed hand, metres, with the model's origin."""

    vertices: NDArray[np.float32]  # (778, 3)
    joints: NDArray[np.float32]  # (21, 3), regressed from the posed mesh, plus the five tips


class HandPoser:
    """(16, 3, 3) parent-relative rotations and (10,) shape coefficients -> a mesh. float32; thread safe."""

    def __init__(self, hand: HandArrays) -> None:
        self.hand = hand
        self._template = hand.v_template.astype(np.float32)
        self._shape_basis = hand.shapedirs.reshape(-1, hand.shapedirs.shape[-1]).astype(np.float32)
        self._pose_basis = hand.posedirs.reshape(-1, 135).astype(np.float32)
        self._weights = hand.weights.astype(np.float32)
        self._rest_joints = hand.J_regressor @ hand.v_template
        self._rest_joint_basis = np.einsum("jv,vck->jck", hand.J_regressor, hand.shapedirs)
        tips = np.eye(len(hand.v_template))[list(FINGERTIP_VERTICES)]
        self._regressor = np.concatenate([hand.J_regressor, tips])[list(JOINTS_FROM_MANO)].astype(np.float32)

    def rest_joints(self, betas: Array) -> NDArray[np.float64]:
        """(16, 3): the joints of the kinematic tree at rest, in MANO's order."""
        return self._rest_joints + self._rest_joint_basis @ np.asarray(betas, np.float64)

    def shaped(self, betas: Array) -> NDArray[np.float32]:
        """(778, 3): the mesh at rest, without pose correctives."""
        return self._template + (self._shape_basis @ np.asarray(betas, np.float32)).reshape(-1, 3)

    def correctives(self, pose: Array) -> NDArray[np.float32]:
        """(778, 3): what the pose adds to the mesh at rest before it is skinned."""
        return (self._pose_basis @ pose_feature(pose).astype(np.float32)).reshape(-1, 3)

    def __call__(self, pose: Array, betas: Array) -> PosedHand:
        rest = self.shaped(betas) + self.correctives(pose)
        turns, offsets = joint_transforms(self.hand.parents, pose, self.rest_joints(betas))
        transforms = np.concatenate([turns, offsets[..., None]], axis=-1).astype(np.float32).reshape(16, 12)
        blended = (self._weights @ transforms).reshape(-1, 3, 4)
        vertices = (blended[:, :, :3] @ rest[:, :, None])[:, :, 0] + blended[:, :, 3]
        return PosedHand(vertices, self._regressor @ vertices)


def pose_feature(pose: Array) -> NDArray[np.float64]:
    """(*B, 16, 3, 3) -> (*B, 135): rotations less the identity, without the root's."""
    finger = np.asarray(pose, np.float64)[..., 1:, :, :] - np.eye(3)
    return finger.reshape(*finger.shape[:-3], 135)


def joint_transforms(
    parents: tuple[int, ...], pose: Array, rest_joints: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each joint carries the mesh at rest: (16, 3, 3) turns R and (16, 3) offsets t, posed = R @ rest + t."""
    turns, offsets = np.empty((16, 3, 3)), np.empty((16, 3))
    turns[0] = pose[0]
    offsets[0] = rest_joints[0] - turns[0] @ rest_joints[0]
    for joint in range(1, 16):
        parent = parents[joint]
        turns[joint] = turns[parent] @ pose[joint]
        offsets[joint] = offsets[parent] + (turns[parent] - turns[joint]) @ rest_joints[joint]
    return turns, offsets
