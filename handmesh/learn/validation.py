"""Scores while training: one pass over samples that the run never learns from, shared among all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmesh import metrics
from handmesh.data.sample import HandLabels
from handmesh.data.sources import ValidationSet
from handmesh.data.stream import batch_to_device, collate
from handmesh.draw.render import overlay
from handmesh.draw.sheet import contact_sheet
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import HandOutput
from handmesh.learn.distributed import Ranks
from handmesh.learn.targets import make_targets
from handmesh.model.network import HandMeshNet

Floats = NDArray[np.float64]

_BATCH = 32
_BASELINE = "_mean_pose_baseline"  # in the names of scores that no model got
TEST_SET = "test_set"  # the name of the one validation set that no choice may be made on, unless asked for by name


def validate(model: HandMeshNet, sets: Sequence[ValidationSet], ranks: Ranks) -> dict[str, float]:
    """Scores by name, the set's name first: PA-MPJPE and PA-MPVPE (rotations only), 2D error, flipped palms.

    The mean-pose baseline is scored beside them: what all true hands of the set have in common. What a set has no
    labels for is left out. Every process computes its share and returns the scores of all.
    """
    scores: dict[str, float] = {}
    for validation_set in sets:
        mine = range(ranks.index, len(validation_set), ranks.count)
        # Samples come back in their own order, so that the means are the same for any number of processes.
        rows = sorted(pair for part in ranks.gather(_score_samples(model, validation_set, mine)) for pair in part)
        for name in ("pa_mpjpe_mm", "pa_mpvpe_mm", "keypoint_box_error", "palm_flipped_share"):
            if values := [row[name] for _, row in rows if name in row]:
                scores[f"{validation_set.name}_{name}"] = float(np.mean(values))
        if truths := [row["joints"] for _, row in rows if "joints" in row]:
            errors = metrics.pa_rigid_mean_error(np.stack(truths), metrics.mean_shape(np.stack(truths)))
            scores[f"{validation_set.name}{_BASELINE}_pa_mpjpe_mm"] = 1000 * float(errors.mean())
    return scores


def selection_score(scores: dict[str, float], by: str) -> float:
    """What a run that keeps its best weights compares, in mm, lower is better: joints on the sets it may look at."""
    ending = "_pa_mpjpe_mm"
    sets = [name.removesuffix(ending) for name in scores if name.endswith(ending) and _BASELINE not in name]
    chosen = [name for name in sets if (name == TEST_SET) == (by == TEST_SET)]
    return float(np.mean([scores[name + ending] for name in chosen])) if chosen else float("nan")


def relative_error(scores: dict[str, float], start: dict[str, float]) -> float:
    """The mean, over all sets, of the joints' errors in 3D and in the picture, each over that of the model that a run
    started from; lower is better, 1 where there is nothing to compare.
    """
    endings = ("_pa_mpjpe_mm", "_keypoint_box_error")
    errors = [name for name in start if name.endswith(endings) and _BASELINE not in name and start[name] > 0]
    return float(np.mean([scores[name] / start[name] for name in errors])) if errors else 1.0


def _score_samples(
    model: HandMeshNet, validation_set: ValidationSet, positions: Sequence[int]
) -> list[tuple[int, dict]]:
    found = []
    for start in range(0, len(positions), _BATCH):
        chosen = positions[start : start + _BATCH]
        output, targets = predict_samples(model, validation_set, chosen)
        found += list(zip(chosen, score_batch(output, targets), strict=True))
    return found


@torch.no_grad()
def predict_samples(
    model: HandMeshNet, validation_set: ValidationSet, positions: Sequence[int]
) -> tuple[HandOutput, HandLabels[Tensor]]:
    """(predictions, truths) of some samples of a set."""
    device = model.camera_head.weight.device
    samples = [validation_set.sample(position, model.config.resolution) for position in positions]
    batch = batch_to_device(collate(samples), device)
    return model(batch.image), make_targets(batch.labels, model.hand)


def score_batch(output: HandOutput, targets: HandLabels[Tensor]) -> list[dict]:
    """One row per sample: its errors by name, as far as they are known, and "joints", the true ones (21, 3) m."""
    prediction = HandOutput(*(value.cpu().numpy() for value in output))
    truth = targets.map(lambda value: value.cpu().numpy())
    keypoints = WeakPerspectiveCamera.from_vector(prediction.camera).project(prediction.joints)
    rows = []
    for i in range(len(prediction.betas)):
        row: dict = {}
        if truth.joints_known[i]:
            row["joints"] = truth.joints[i]
            row["pa_mpjpe_mm"] = 1000 * float(metrics.pa_rigid_mean_error(truth.joints[i], prediction.joints[i]))
        if truth.vertices_known[i]:
            row["pa_mpvpe_mm"] = 1000 * float(metrics.pa_rigid_mean_error(truth.vertices[i], prediction.vertices[i]))
        known = truth.keypoints_known[i]
        if known.sum() > 1:
            row["keypoint_box_error"] = float(
                metrics.keypoint_box_error(truth.keypoints[i][known], keypoints[i][known])
            )
        if truth.pose_known[i]:
            # The palm's normal is the hand's own -y axis: does it face the right way?
            row["palm_flipped_share"] = float(prediction.pose[i, 0, :, 1] @ truth.pose[i, 0, :, 1] < 0)
        rows.append(row)
    return rows


def draw_samples(model: HandMeshNet, validation_set: ValidationSet, count: int = 4) -> NDArray[np.uint8]:
    """(S, count * S, 3): evenly spread samples of a set with the predicted meshes over them."""
    positions = sorted({int(position) for position in np.linspace(0, len(validation_set) - 1, count)})
    output, _ = predict_samples(model, validation_set, positions)
    side = model.config.resolution
    tiles = []
    for i, position in enumerate(positions):
        vertices = output.vertices[i].cpu().numpy().astype(np.float64)
        camera = WeakPerspectiveCamera.from_vector(output.camera[i].cpu().numpy())
        pixels = (camera.project(vertices) + 1) * side / 2 - 0.5
        depths = vertices[:, 2:] * float(camera.scale) * side / 2
        normals = vertex_normals(vertices, model.hand.faces)
        image = validation_set.sample(position, side).image
        tiles.append(overlay(image, np.hstack([pixels, depths]), model.hand.faces, normals=normals))
    return contact_sheet(tiles)
