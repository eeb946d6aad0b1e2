"""What a batch is compared with: its labels, completed as far as some follow from others."""

from __future__ import annotations

import torch
from torch import Tensor

from handmesh.data.sample import JOINT_COUNT, HandLabels, hand_labels
from handmesh.hand.layer import HandModel


@torch.no_grad()
def make_targets(labels: HandLabels[Tensor], hand: HandModel) -> HandLabels[Tensor]:
    """Labels of a batch. Vertices and joints that were not given follow from pose and betas, joints from vertices.

    For synthetic hands that is exactly how the labels' own renders were made.
    """
    posed = labels.pose_known & labels.betas_known
    vertices, joints = hand(labels.pose, labels.betas)
    # The posed hand lies about its own origin: where joints are given, it is moved to their wrist.
    shift = torch.where((labels.joints_known & posed)[:, None, None], labels.joints[:, :1] - joints[:, :1], 0.0)
    given = labels.vertices_known[:, None, None]
    vertices = torch.where(given, labels.vertices, vertices + shift)
    joints = torch.where(given, hand.joints_of(labels.vertices), joints)
    return labels._replace(
        joints=torch.where(labels.joints_known[:, None, None], labels.joints, joints),
        vertices=vertices,
        joints_known=labels.joints_known | labels.vertices_known | posed,
        vertices_known=labels.vertices_known | posed,
    )


def complete_targets(
    keypoints: Tensor, joints: Tensor, vertices: Tensor, pose: Tensor, betas: Tensor
) -> HandLabels[Tensor]:
    """Targets of right hands of which these are known."""
    yes = torch.ones(len(betas), dtype=torch.bool, device=betas.device)
    others = hand_labels().map(lambda value: torch.from_numpy(value).to(betas.device).expand(len(betas), *value.shape))
    return others._replace(
        keypoints=keypoints,
        joints=joints,
        vertices=vertices,
        pose=pose,
        betas=betas,
        keypoints_known=yes[:, None].expand(-1, JOINT_COUNT),
        **{f"{name}_known": yes for name in ("joints", "vertices", "pose", "betas")},
    )
