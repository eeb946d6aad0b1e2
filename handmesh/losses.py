"""What a prediction costs. Lengths in metres, 2D in NDC, rotations as matrices.

The parts, their weights and why they are balanced as they are: `config.LossWeights`. Each part is a plain mean, so a
part's value can be read on its own: `vertices` is the mean absolute error per coordinate in metres, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from handmesh.camera import WeakPerspectiveCamera
from handmesh.config import LossWeights
from handmesh.hand import HandOutput

HEATMAP_SIGMA = 0.8  # cells; a joint is one or two cells of the stride-8 map wide
_DECIMETRE = 0.1


@dataclass(frozen=True)
class HandTargets:
    """Labels of a batch, in the axes of its crops."""

    keypoints: Tensor  # (B, 21, 2)      NDC of the crop
    joints: Tensor  # (B, 21, 3)      metres, any origin: losses are relative to the wrist
    vertices: Tensor  # (B, 778, 3)     metres, same origin
    pose: Tensor  # (B, 16, 3, 3)
    betas: Tensor  # (B, 10)

    def to(self, device: torch.device) -> HandTargets:
        return HandTargets(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def hand_loss(
    output: HandOutput, dense: tuple[Tensor, Tensor] | None, targets: HandTargets, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """-> (total, its parts before weighting). `dense` is what `DenseHead` answered, or None to leave that part out."""
    camera = WeakPerspectiveCamera.from_vector(output.camera)
    wrist, target_wrist = output.joints[:, :1], targets.joints[:, :1]
    vertices, joints = output.vertices - wrist, output.joints - wrist
    target_vertices, target_joints = targets.vertices - target_wrist, targets.joints - target_wrist
    parts = {
        "vertices": functional.l1_loss(vertices, target_vertices),
        "joints": functional.l1_loss(joints, target_joints),
        # Row vectors times a rotation turn by its transpose: the orientation is taken out.
        "root_vertices": functional.l1_loss(vertices @ output.pose[:, 0], target_vertices @ targets.pose[:, 0]),
        "root_joints": functional.l1_loss(joints @ output.pose[:, 0], target_joints @ targets.pose[:, 0]),
        "keypoints": functional.l1_loss(camera.project(output.joints), targets.keypoints),
        "orientation": functional.l1_loss(output.pose[:, 0], targets.pose[:, 0]),
        "pose": functional.l1_loss(output.pose[:, 1:], targets.pose[:, 1:]),
        "betas": functional.l1_loss(output.betas, targets.betas),
    }
    if dense is not None:
        logits, depths = dense
        parts["heatmaps"] = heatmap_cross_entropy(logits, targets.keypoints)
        keypoints, joint_depths = read_heatmaps(logits, depths)
        parts["heatmap_keypoints"] = functional.l1_loss(keypoints, targets.keypoints.clamp(-1, 1))
        parts["heatmap_depths"] = functional.l1_loss(joint_depths, target_joints[..., 2] / _DECIMETRE)
    total = sum((getattr(weights, name) * part for name, part in parts.items()), start=torch.zeros_like(wrist[0, 0, 0]))
    return total, parts


def _cell_centers(count: int, like: Tensor) -> Tensor:
    """NDC of the centres of `count` cells across the crop."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * (2 / count) - 1


def heatmap_cross_entropy(logits: Tensor, keypoints: Tensor) -> Tensor:
    """Spatial softmax of (B, 21, h, w) against a Gaussian around each keypoint; joints outside it are left out."""
    height, width = logits.shape[-2:]
    across = ((_cell_centers(width, logits) - keypoints[..., :1]) * width / 2) ** 2
    down = ((_cell_centers(height, logits) - keypoints[..., 1:]) * height / 2) ** 2
    gaussian = -(down[..., :, None] + across[..., None, :]) / (2 * HEATMAP_SIGMA**2)
    target = gaussian.flatten(2).softmax(dim=-1)
    cross_entropy = -(target * logits.flatten(2).log_softmax(dim=-1)).sum(dim=-1)
    inside = (keypoints.abs() < 1).all(dim=-1).to(logits.dtype)
    return (cross_entropy * inside).sum() / inside.sum().clamp(min=1)


def read_heatmaps(logits: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """-> expected positions (B, 21, 2) in NDC and expected depths (B, 21), under each joint's spatial softmax."""
    height, width = logits.shape[-2:]
    probability = logits.flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x = (probability.sum(dim=-2) * _cell_centers(width, logits)).sum(dim=-1)
    y = (probability.sum(dim=-1) * _cell_centers(height, logits)).sum(dim=-1)
    return torch.stack((x, y), dim=-1), (probability * depths).sum(dim=(-2, -1))
