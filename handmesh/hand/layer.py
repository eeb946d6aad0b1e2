"""The hand model: rotations and shape in, vertices and joints out (linear blend skinning with pose correctives).

``HandModel`` computes what MANO defines (Romero, Tzionas, Black: "Embodied Hands", SIGGRAPH Asia 2017, equations 1 to
4; Loper et al.: "SMPL", 2015) for any arrays in MANO's format. Its 21 joints are FreiHAND's: 16 regressed from the
**posed** vertices, plus five tip vertices. They differ from the joints of the kinematic chain by up to a few
millimetres, and FreiHAND's labels were made this way.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from handmesh.hand import FINGERTIP_VERTICES, JOINTS_FROM_MANO, MANO_JOINT_COUNT, VERTEX_COUNT, HandArrays


class HandModel(nn.Module):
    """A hand as a differentiable function. Metres and radians; float32, or float64 after ``.double()``.

    ``model(rotations, betas)`` takes parent-relative rotations (*B, 16, 3, 3), the first being the orientation of the
    whole hand, in MANO's joint order, and shape coefficients (*B, 10). It returns vertices (*B, 778, 3) and joints
    (*B, 21, 3) in FreiHAND's order. All rotations the identity is the flat rest pose (the mean pose is not added). The
    orientation turns the hand about its root joint, not about the origin, as in MANO.

    Input of another precision is converted to the model's own, and autocast is switched off inside: bfloat16 would
    move vertices by millimetres. The arrays are buffers that no state dict contains, so a checkpoint never holds MANO.
    """

    faces: NDArray[np.int32]  # (1538, 3), counter-clockwise seen from outside
    sha256: str  # identity of the arrays, see HandArrays.sha256

    template: Tensor
    shape_and_pose_basis: Tensor
    rest_joints: Tensor
    rest_joint_basis: Tensor
    weights: Tensor
    joint_regressor: Tensor

    def __init__(self, arrays: HandArrays) -> None:
        super().__init__()
        self.faces = arrays.faces
        self.sha256 = arrays.sha256

        # Vertices are kept coordinate-major, (3, 778), until the very end: each product and sum then runs over long
        # contiguous rows.
        def coordinate_major(basis: NDArray[np.float64]) -> NDArray[np.float64]:  # (778, 3, N) -> (N, 3 * 778)
            return basis.transpose(2, 1, 0).reshape(basis.shape[2], 3 * VERTEX_COUNT)

        regressor = arrays.J_regressor
        tips = np.eye(VERTEX_COUNT)[list(FINGERTIP_VERTICES)]
        buffers = {
            "template": coordinate_major(arrays.v_template[..., None])[0],
            "shape_and_pose_basis": np.concatenate(
                [coordinate_major(arrays.shapedirs), coordinate_major(arrays.posedirs)]
            ),  # (10 + 135, 3 * 778)
            "rest_joints": regressor @ arrays.v_template,  # (16, 3)
            "rest_joint_basis": np.einsum("jv,vck->kjc", regressor, arrays.shapedirs).reshape(-1, 3 * MANO_JOINT_COUNT),
            "weights": arrays.weights.T,  # (16, 778)
            "joint_regressor": np.concatenate([regressor, tips])[list(JOINTS_FROM_MANO)],  # (21, 778)
        }
        for name, array in buffers.items():
            tensor = torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """(*B, 16, 3, 3), (*B, 10) -> vertices (*B, 778, 3), joints (*B, 21, 3). See the class."""
        with torch.autocast(device_type=rotations.device.type, enabled=False):
            return self._forward(rotations.to(self.template.dtype), betas.to(self.template.dtype))

    def _forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        pose_feature = (rotations[..., 1:, :, :] - identity).flatten(start_dim=-3)
        rest_vertices = self.template + torch.cat((betas, pose_feature), dim=-1) @ self.shape_and_pose_basis
        rest_joints = self.rest_joints + (betas @ self.rest_joint_basis).unflatten(-1, (MANO_JOINT_COUNT, 3))

        transforms = _skinning_transforms(rotations, rest_joints)  # (*B, 16, 3, 4)
        # (*B, 12, 16) @ (16, 778): the blended transform of every vertex.
        blended = (transforms.flatten(start_dim=-2).mT @ self.weights).unflatten(-2, (3, 4))
        rest_vertices = rest_vertices.unflatten(-1, (1, 3, VERTEX_COUNT))
        posed = (blended[..., :3, :] * rest_vertices).sum(dim=-2) + blended[..., 3, :]
        vertices = posed.mT
        return vertices, self.joints_of(vertices)

    def joints_of(self, vertices: Tensor) -> Tensor:
        """(*B, 778, 3) posed vertices -> (*B, 21, 3) joints."""
        return self.joint_regressor @ vertices


def _skinning_transforms(rotations: Tensor, rest_joints: Tensor) -> Tensor:
    """Where each joint carries the rest pose: (*B, 16, 3, 3), (*B, 16, 3) -> (*B, 16, 3, 4), posed = R @ rest + t.

    A hand is a root and five chains of three joints, stored chain after chain (MANO_PARENTS), so the walk along the
    kinematic tree is three products over all five fingers at once. A joint keeps its own position under its own and
    its parent's transform, ``R_joint @ rest + t_joint = R_parent @ rest + t_parent``; hence the running sum.
    """
    root, root_rest = rotations[..., :1, :, :], rest_joints[..., :1, :]
    fingers = rotations[..., 1:, :, :].unflatten(-3, (5, 3))
    fingers_rest = rest_joints[..., 1:, :].unflatten(-2, (5, 3))

    first = root @ fingers[..., 0, :, :]
    second = first @ fingers[..., 1, :, :]
    third = second @ fingers[..., 2, :, :]
    chain = torch.stack((root.expand_as(first), first, second, third), dim=-3)  # (*B, 5, 4, 3, 3)

    root_offset = root_rest - _rotate(root, root_rest)  # (*B, 1, 3)
    steps = _rotate(chain[..., :-1, :, :] - chain[..., 1:, :, :], fingers_rest)
    along_finger = steps.dim() - 2  # not -2: Core ML's converter wants it so
    finger_offsets = root_offset[..., None, :] + steps.cumsum(dim=along_finger)  # (*B, 5, 3, 3)

    turned = torch.cat((root, chain[..., 1:, :, :].flatten(start_dim=-4, end_dim=-3)), dim=-3)
    offsets = torch.cat((root_offset, finger_offsets.flatten(start_dim=-3, end_dim=-2)), dim=-2)
    return torch.cat((turned, offsets[..., None]), dim=-1)


def _rotate(matrices: Tensor, points: Tensor) -> Tensor:
    """(*B, 3, 3), (*B, 3) -> (*B, 3)."""
    return (matrices @ points[..., None])[..., 0]
