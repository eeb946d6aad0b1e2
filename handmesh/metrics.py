"""How far a predicted hand is from the true one. Pure functions of numpy arrays, float64, any leading batch shape.

Lengths in metres in, metres out. Two alignments, never mixed up: `align_similarity` is the one of FreiHAND's official
evaluation (freihand/utils/eval_util.py, `align_w_scale`), which may mirror; `align_rigid_similarity` is the strict one
that most other code uses, rotations only. On sane predictions they agree.

The official figures and where they are defined here (errors of N frames with P points each, (N, P)):

* mean error: `point_errors(...).mean()`
* area under the curve: `auc(pck(errors))`, thresholds 0 to 50 mm in 100 steps, trapezoids
* F-score at 5 and 15 mm: `f_scores(...)`, nearest neighbours in both directions, mean over frames

`handmesh.evaluate.scores` puts them together for whole prediction files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.hand import JOINT_NAMES

Array = NDArray[np.float64]

# eval.py of FreiHAND: `get_measures(0.0, 0.05, 100)` and `[0.005, 0.015]`.
PCK_THRESHOLDS: Array = np.linspace(0.0, 0.05, 100)
F_THRESHOLDS = (0.005, 0.015)

_EPSILON = 1e-8  # added to both norms by the official tool

# Alignment


@dataclass(frozen=True, eq=False)
class Similarity:
    """A map from predicted points to the true ones: shift, scale and an orthogonal rotation."""

    rotation: Array  # (*B, 3, 3) orthogonal; determinant -1 where it mirrors
    scale: Array  # (*B, 1, 1) sum of the singular values, between the two clouds brought to unit size
    predicted_mean: Array  # (*B, 1, 3)
    predicted_norm: Array  # (*B, 1, 1)
    target_mean: Array  # (*B, 1, 3)
    target_norm: Array  # (*B, 1, 1)

    def apply(self, points: ArrayLike) -> Array:
        """(*B, N, 3) points of the predicted hand -> where they come to lie on the true one."""
        unit = (np.asarray(points, np.float64) - self.predicted_mean) / self.predicted_norm
        return unit @ np.swapaxes(self.rotation, -1, -2) * self.scale * self.target_norm + self.target_mean

    @property
    def mirrors(self) -> NDArray[np.bool_]:
        """(*B,) whether a right hand becomes a left one."""
        return np.linalg.det(self.rotation) < 0


def find_similarity(target: ArrayLike, predicted: ArrayLike) -> Similarity:
    """The official least-squares fit of (*B, N, 3) predicted points to the target: a reflection is allowed."""
    return _fit(target, predicted, allow_reflection=True)


def find_rigid_similarity(target: ArrayLike, predicted: ArrayLike) -> Similarity:
    """The same fit with a proper rotation, determinant +1 (Umeyama, 1991)."""
    return _fit(target, predicted, allow_reflection=False)


def align_similarity(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B, N, 3) predicted points moved, scaled and rotated (a reflection is allowed) to fit the target best."""
    return find_similarity(target, predicted).apply(predicted)


def align_rigid_similarity(target: ArrayLike, predicted: ArrayLike) -> Array:
    """The same with a proper rotation (determinant +1): a mirrored hand does not score as a right one."""
    return find_rigid_similarity(target, predicted).apply(predicted)


def _fit(target: ArrayLike, predicted: ArrayLike, *, allow_reflection: bool) -> Similarity:
    target, predicted = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    target_mean = target.mean(axis=-2, keepdims=True)
    predicted_mean = predicted.mean(axis=-2, keepdims=True)
    target_centered, predicted_centered = target - target_mean, predicted - predicted_mean
    target_norm = np.linalg.norm(target_centered, axis=(-2, -1), keepdims=True) + _EPSILON
    predicted_norm = np.linalg.norm(predicted_centered, axis=(-2, -1), keepdims=True) + _EPSILON
    # Orthogonal Procrustes (Schoenemann 1966): the singular vectors of the correlation give the rotation, the singular
    # values its scale.
    U, s, Vt = np.linalg.svd(np.swapaxes(target_centered / target_norm, -1, -2) @ (predicted_centered / predicted_norm))
    if not allow_reflection:
        sign = np.sign(np.linalg.det(U) * np.linalg.det(Vt))
        s = np.concatenate((s[..., :2], s[..., 2:] * sign[..., None]), axis=-1)
        U = np.concatenate((U[..., :2], U[..., 2:] * sign[..., None, None]), axis=-1)
    scale = s.sum(axis=-1)[..., None, None]
    return Similarity(U @ Vt, scale, predicted_mean, predicted_norm, target_mean, target_norm)


def mean_shape(shapes: ArrayLike, rounds: int = 4) -> Array:
    """(N, P, 3) -> (P, 3): what all shapes have in common once place, size and orientation are taken away.

    Generalised Procrustes analysis (Gower 1975) with rotations. As a constant answer to every frame it is the mean-pose
    baseline of an aligned score: no constant does noticeably better, and what does worse has no skill.
    """
    clouds = np.asarray(shapes, np.float64)
    mean = clouds[0]
    for _ in range(rounds):
        mean = align_rigid_similarity(mean, clouds).mean(axis=0)
    return mean


# Distances


def point_errors(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B, N, D), (*B, N, D) -> (*B, N) Euclidean distances."""
    return np.linalg.norm(np.asarray(target, np.float64) - np.asarray(predicted, np.float64), axis=-1)


def pa_mean_error(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B,) mean distance after the official alignment: PA-MPJPE for joints, PA-MPVPE for vertices."""
    return point_errors(target, align_similarity(target, predicted)).mean(axis=-1)


def pa_rigid_mean_error(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B,) mean distance after the rotation-only alignment."""
    return point_errors(target, align_rigid_similarity(target, predicted)).mean(axis=-1)


def root_relative(points: ArrayLike, joints: ArrayLike, root: str = "wrist") -> Array:
    """(*B, N, 3) points from the place of a joint, given the (*B, 21, 3) joints of the same hand."""
    joint = np.asarray(joints, np.float64)[..., JOINT_NAMES.index(root), None, :]
    return np.asarray(points, np.float64) - joint


def mpjpe(target: ArrayLike, predicted: ArrayLike, root: str = "wrist") -> Array:
    """(*B,) mean distance of (*B, 21, 3) joints once the roots lie on each other; orientation and size count."""
    errors = point_errors(root_relative(target, target, root), root_relative(predicted, predicted, root))
    return errors.mean(axis=-1)


def keypoint_box_error(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B,) mean 2D distance over the longer side of the target keypoints' box: 0.1 is a tenth of a hand."""
    return point_errors(target, predicted).mean(axis=-1) / _box_side(target)


def keypoint_box_errors(target: ArrayLike, predicted: ArrayLike) -> Array:
    """(*B, N) every 2D distance over that side; `pck` of them is PCK in 2D."""
    return point_errors(target, predicted) / _box_side(target)[..., None]


def _box_side(keypoints: ArrayLike) -> Array:
    return np.ptp(np.asarray(keypoints, np.float64), axis=-2).max(axis=-1)


# Curves


def pck(errors: ArrayLike, thresholds: ArrayLike = PCK_THRESHOLDS) -> Array:
    """(*B,) errors -> (T,) share of them that are at most each threshold (PCK); thresholds in increasing order."""
    return pck_counts(errors, thresholds) / max(np.size(errors), 1)


def pck_counts(errors: ArrayLike, thresholds: ArrayLike = PCK_THRESHOLDS) -> NDArray[np.int64]:
    """(*B,) errors -> (T,) how many are at most each threshold; sums over parts are the counts of the whole."""
    steps = np.asarray(thresholds, np.float64)
    first = np.searchsorted(steps, np.ravel(errors), side="left")  # the first threshold that is not below the error
    return np.cumsum(np.bincount(first, minlength=len(steps) + 1)[: len(steps)])


def auc(share: ArrayLike, thresholds: ArrayLike = PCK_THRESHOLDS) -> float:
    """Area under a PCK curve by trapezoids, over the area of a perfect one: 1 when every error is zero."""
    y, x = np.asarray(share, np.float64), np.asarray(thresholds, np.float64)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


# Surfaces


def f_scores(target: ArrayLike, predicted: ArrayLike, thresholds: Sequence[float] = F_THRESHOLDS) -> Array:
    """(*B, N, 3), (*B, M, 3) -> (*B, T): harmonic mean of precision and recall of points within each distance.

    Precision: the share of predicted points whose nearest true point is nearer than the threshold (strictly); recall
    the other way round (Knapitsch et al., "Tanks and Temples", 2017). Points need no correspondence, N and M may
    differ. 0 where nothing is within reach.
    """
    target, predicted = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    batch = np.broadcast_shapes(target.shape[:-2], predicted.shape[:-2])
    targets = np.broadcast_to(target, (*batch, *target.shape[-2:])).reshape(-1, *target.shape[-2:])
    clouds = np.broadcast_to(predicted, (*batch, *predicted.shape[-2:])).reshape(-1, *predicted.shape[-2:])
    limits = np.asarray(thresholds, np.float64)
    scores = [_f_scores_of(one, other, limits) for one, other in zip(targets, clouds, strict=True)]
    return np.reshape(scores, (*batch, len(limits)))


def _f_scores_of(target: Array, predicted: Array, limits: Array) -> Array:
    # Any pair of points bounds the distance to the nearest one from above: points with a partner within the smallest
    # threshold need no search. For a good prediction that is most of them.
    paired = point_errors(target, predicted) if target.shape == predicted.shape else None
    precision, recall = (
        (_nearest(points, cloud, paired, limits)[:, None] < limits).mean(axis=0)
        for points, cloud in ((predicted, target), (target, predicted))
    )
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def _nearest(points: Array, cloud: Array, paired: Array | None, limits: Array) -> Array:
    """(N,) distance to the nearest point of the cloud, as far as the limits can tell."""
    from scipy.spatial import cKDTree  # on first use: training reads this module and draws no surfaces

    distances = np.full(len(points), np.inf) if paired is None else paired.copy()
    far = np.flatnonzero(distances >= limits.min())
    if len(far):
        # The search ends a little beyond the largest limit, so that the caller's comparison decides.
        reach = float(limits.max()) * (1 + 1e-6)
        distances[far], _ = cKDTree(cloud).query(points[far], distance_upper_bound=reach)
    return distances


# Certainty


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of (N,) per-frame values.

    Give differences of two runs on the same frames for a paired comparison. Frames are drawn as if independent; where
    several show the same moment (FreiHAND has several cameras) the true interval is wider.
    """
    scores = np.asarray(values, np.float64).ravel()
    if len(scores) == 0:
        raise ValueError("No values: the mean of nothing has no interval.")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # bounds memory: 100 x N indices at a time
        part = means[start : start + 100]
        part[:] = scores[rng.integers(0, len(scores), (len(part), len(scores)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def match_boxes(
    truth: Sequence[Sequence[float]], answers: Sequence[Sequence[float]], min_iou: float
) -> list[tuple[int, int]]:
    """Pairs (true box, answer) whose intersection over union is at least `min_iou`, each box in one at most.

    Boxes are x0, y0, x1, y1. The assignment has the largest sum of overlaps (Hungarian algorithm).
    """
    if not len(truth) or not len(answers):
        return []
    first, second = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (truth, answers))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    overlap = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
    from scipy.optimize import linear_sum_assignment  # on first use: it takes a tenth of a second to import

    rows, columns = linear_sum_assignment(np.where(overlap >= min_iou, overlap, 0), maximize=True)
    return [(int(a), int(b)) for a, b in zip(rows, columns, strict=True) if overlap[a, b] >= min_iou]
