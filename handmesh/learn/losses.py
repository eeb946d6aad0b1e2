"""What a prediction costs. Lengths in metres, 2D in NDC, rotations as matrices.

The parts, their weights and why they are balanced as they are: `config.LossWeights`. Each part is a plain mean over
what is known of it in the batch, so its value can be read on its own: `vertices` is the mean absolute error per
coordinate in metres, and so on. A sample without a label takes no part in that label's mean.

The batch may be spread over several processes or computed in several pieces: then `label_counts` of all of it are
summed first, and the pieces' losses and gradients add up to those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, normalize

from handmesh.config.loss import LossNorms, LossWeights
from handmesh.data.sample import HandLabels
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.hand import HandOutput

HEATMAP_SIGMA = 0.8  # cells; a joint is one or two cells of the stride-8 map wide
_DECIMETRE = 0.1
# What the confidence head calls found: the joints' mean error in the picture, over the longer side of their box.
FOUND_ERROR = 0.15
# ... and what the joints' confidence does, of each: true of half of the joints on photographs never learnt from.
JOINT_FOUND_ERROR = 0.06


def label_masks(targets: HandLabels[Tensor]) -> dict[str, Tensor]:
    """For every part of the loss, what of it can be computed: (B,) samples, or (B, 21) joints."""
    inside = (targets.keypoints.abs() < 1).all(dim=-1)
    # A single keypoint has no box, over whose side `found` and `joints_found` measure.
    measured = targets.right & (targets.keypoints_known.sum(dim=-1) > 1)
    return {
        "vertices": targets.vertices_known,
        "joints": targets.joints_known,
        "root_vertices": targets.vertices_known & targets.pose_known,
        "root_joints": targets.joints_known & targets.pose_known,
        "keypoints": targets.keypoints_known & targets.right[:, None],
        "orientation": targets.pose_known,
        "pose": targets.pose_known,
        "betas": targets.betas_known,
        "normals": targets.vertices_known,
        "edges": targets.vertices_known,
        "heatmaps": targets.keypoints_known & inside,
        "heatmap_keypoints": targets.keypoints_known,
        "heatmap_depths": targets.joints_known,
        "confidence": ~targets.present | measured,
        "handedness": targets.present,
        "joint_confidence": ~targets.present[:, None] | (measured[:, None] & targets.keypoints_known),
    }


def label_counts(targets: HandLabels[Tensor]) -> dict[str, Tensor]:
    """For every part of the loss, how many samples or joints of the batch it can be computed for; float32."""
    return {name: mask.sum(dtype=torch.float32) for name, mask in label_masks(targets).items()}


def hand_loss(
    output: HandOutput,
    dense: tuple[Tensor, Tensor] | None,
    targets: HandLabels[Tensor],
    weights: LossWeights,
    norms: LossNorms | None = None,
    counts: Mapping[str, Tensor] | None = None,
    faces: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-> (total, its parts before weighting). `dense` is what `DenseHead` answered, or None to leave that part out.

    `counts`: what to divide by, when this is a piece of a larger batch; None for `label_counts(targets)`.
    `faces` (F, 3), integers: the hand's triangles; None leaves their parts out, as weights of zero do.
    """
    norms = LossNorms() if norms is None else norms
    divisors = label_counts(targets) if counts is None else counts
    masks = label_masks(targets)

    def mean(name: str, errors: Tensor) -> Tensor:
        return _known_mean(errors, masks[name], divisors[name])

    camera = WeakPerspectiveCamera.from_vector(output.camera)
    wrist, target_wrist = output.joints[:, :1], targets.joints[:, :1]
    vertices, joints = output.vertices - wrist, output.joints - wrist
    target_vertices, target_joints = targets.vertices - target_wrist, targets.joints - target_wrist
    # Row vectors times a rotation turn by its transpose: the orientation is taken out.
    orientation, target_orientation = output.pose[:, 0], targets.pose[:, 0]
    errors = {
        "vertices": _errors(vertices, target_vertices, norms.vertices),
        "joints": _errors(joints, target_joints, norms.joints),
        "root_vertices": _errors(vertices @ orientation, target_vertices @ target_orientation, norms.vertices),
        "root_joints": _errors(joints @ orientation, target_joints @ target_orientation, norms.joints),
        "keypoints": _errors(camera.project(output.joints), targets.keypoints, norms.keypoints),
        "orientation": _errors(orientation, target_orientation),
        "pose": _errors(output.pose[:, 1:], targets.pose[:, 1:]),
        "betas": _errors(output.betas, targets.betas),
    }
    if faces is not None and (weights.normals or weights.edges):
        errors["normals"], errors["edges"] = triangle_errors(output.vertices, targets.vertices, faces)
    if dense is not None:
        logits, depths = dense
        keypoints, joint_depths = read_heatmaps(logits, depths)
        errors["heatmaps"] = heatmap_cross_entropies(logits, targets.keypoints)
        errors["heatmap_keypoints"] = _errors(keypoints, targets.keypoints.clamp(-1, 1))
        errors["heatmap_depths"] = _errors(joint_depths, target_joints[..., 2] / _DECIMETRE)
    if output.confidence.requires_grad:  # the network has that head
        truth = found(output, targets).to(output.confidence.dtype)
        errors["confidence"] = binary_cross_entropy(output.confidence, truth, reduction="none")
    if output.handedness.requires_grad:
        truth = targets.right.to(output.handedness.dtype)
        errors["handedness"] = binary_cross_entropy(output.handedness, truth, reduction="none")
    if output.joint_confidence.requires_grad:
        truth = joints_found(output, targets).to(output.joint_confidence.dtype)
        errors["joint_confidence"] = binary_cross_entropy(output.joint_confidence, truth, reduction="none")
    parts = {name: mean(name, values) for name, values in errors.items()}
    total = sum((getattr(weights, name) * part for name, part in parts.items()), start=torch.zeros_like(wrist[0, 0, 0]))
    return total, parts


@torch.no_grad()
def found(output: HandOutput, targets: HandLabels[Tensor]) -> Tensor:
    """(B,) bool: there is a hand, and its joints are drawn within `FOUND_ERROR` of where they are, on average."""
    distances, known = _box_distances(output, targets), targets.keypoints_known
    mean = (distances * known).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
    return targets.present & (mean < FOUND_ERROR)


@torch.no_grad()
def joints_found(output: HandOutput, targets: HandLabels[Tensor]) -> Tensor:
    """(B, 21) bool: there is a hand, and this joint is drawn within `JOINT_FOUND_ERROR` of where it is."""
    return targets.present[:, None] & (_box_distances(output, targets) < JOINT_FOUND_ERROR)


def _box_distances(output: HandOutput, targets: HandLabels[Tensor]) -> Tensor:
    """(B, 21) of the joints in the picture, over the longer side of the box of those that are known; 0 if none is."""
    known = targets.keypoints_known[..., None]
    low = torch.where(known, targets.keypoints, torch.inf).amin(dim=1)
    high = torch.where(known, targets.keypoints, -torch.inf).amax(dim=1)
    keypoints = WeakPerspectiveCamera.from_vector(output.camera).project(output.joints)
    return (keypoints - targets.keypoints).norm(dim=-1) / (high - low).amax(dim=-1, keepdim=True)


@torch.no_grad()
def distance_sums(output: HandOutput, targets: HandLabels[Tensor], side: int) -> dict[str, Tensor]:
    """Distances for people, whatever the loss compares, with what they are to be divided by; scalars that add up.

    "keypoint_px" over "keypoints": in the picture, whose side is `side` px. "vertex_mm" over "vertices": in space,
    wrists on each other. Each over the samples that have those labels.
    """
    masks = label_masks(targets)
    drawn = WeakPerspectiveCamera.from_vector(output.camera).project(output.joints)
    in_picture = (drawn - targets.keypoints).norm(dim=-1) * side / 2
    difference = (output.vertices - output.joints[:, :1]) - (targets.vertices - targets.joints[:, :1])
    in_space = 1000 * difference.norm(dim=-1).mean(dim=-1)
    return {
        "keypoint_px": (in_picture * masks["keypoints"]).sum(),
        "keypoints": masks["keypoints"].sum(dtype=torch.float32),
        "vertex_mm": (in_space * masks["vertices"]).sum(),
        "vertices": masks["vertices"].sum(dtype=torch.float32),
    }


def _errors(predicted: Tensor, target: Tensor, norm: Literal["l1", "mse"] = "l1") -> Tensor:
    difference = predicted - target
    return difference.abs() if norm == "l1" else difference.square()


def triangle_errors(vertices: Tensor, target_vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """(B, V, 3) twice and (F, 3) -> (B, F, 3) each: absolute cosines of the triangles' edges with the normals of the
    true triangles, and absolute differences of the edges' lengths, metres.
    """
    corners, target_corners = vertices[:, faces], target_vertices[:, faces]  # (B, F, 3, 3)
    sides = corners.roll(-1, dims=2) - corners
    target_sides = target_corners.roll(-1, dims=2) - target_corners
    normals = normalize(torch.linalg.cross(target_sides[:, :, 0], target_sides[:, :, 1], dim=-1), dim=-1)
    cosines = (normalize(sides, dim=-1) * normals[:, :, None]).sum(dim=-1)
    return cosines.abs(), (sides.norm(dim=-1) - target_sides.norm(dim=-1)).abs()


def _known_mean(errors: Tensor, known: Tensor, count: Tensor) -> Tensor:
    """Mean of (B, ...) errors over what (B,) or (B, 21) `known` lets through; 0 when that is nothing."""
    mask = known.to(errors.dtype).view(*known.shape, *[1] * (errors.ndim - known.ndim))
    numbers = errors[(0,) * known.ndim].numel()  # per sample or joint
    return (errors * mask).sum() / (torch.where(count > 0, count, 1.0) * numbers)


def _cell_centers(count: int, like: Tensor) -> Tensor:
    """NDC of the centres of `count` cells across the crop."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * (2 / count) - 1


def heatmap_cross_entropies(logits: Tensor, keypoints: Tensor) -> Tensor:
    """(B, 21): spatial softmax of (B, 21, h, w) against a Gaussian around each keypoint. For keypoints in the crop."""
    height, width = logits.shape[-2:]
    across = ((_cell_centers(width, logits) - keypoints[..., :1]) * width / 2) ** 2
    down = ((_cell_centers(height, logits) - keypoints[..., 1:]) * height / 2) ** 2
    gaussian = -(down[..., :, None] + across[..., None, :]) / (2 * HEATMAP_SIGMA**2)
    target = gaussian.flatten(2).softmax(dim=-1)
    return -(target * logits.flatten(2).log_softmax(dim=-1)).sum(dim=-1)


def read_heatmaps(logits: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """-> expected positions (B, 21, 2) in NDC and expected depths (B, 21), under each joint's spatial softmax."""
    height, width = logits.shape[-2:]
    probability = logits.flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x = (probability.sum(dim=-2) * _cell_centers(width, logits)).sum(dim=-1)
    y = (probability.sum(dim=-1) * _cell_centers(height, logits)).sum(dim=-1)
    return torch.stack((x, y), dim=-1), (probability * depths).sum(dim=(-2, -1))
