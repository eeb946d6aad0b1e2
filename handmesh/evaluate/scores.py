"""FreiHAND's official scores, and what surrounds them: warnings, intervals, a baseline, comparisons.

    truth = HandPoints(joints, vertices)                 # (N, 21, 3) and (N, 778, 3), metres
    evaluation = evaluate(truth, read_predictions("pred.zip", len(truth.joints)))
    evaluation.official["mesh_al_mean3d"]                # cm, as the official scores.txt
    evaluation.paper["pa_mpvpe_mm"]                      # mm, as papers print it

The twelve official figures are those of freihand/eval.py (github.com/lmb-freiburg/freihand): joints and vertices each
aligned by their own similarity, reflections allowed; means in centimetres; areas under PCK curves from 0 to 50 mm; mean
F-scores at 5 and 15 mm. Where that tool's arithmetic goes wrong (meshes of another topology), ours is correct and says
so. Beside them stands, named "rigid", the same with rotations only.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.errors import DataError
from handmesh.evaluate.official_files import HandPoints
from handmesh.evaluate.sets import hand_lengths
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import BETA_COUNT, FINGER_NAMES, JOINT_NAMES, JOINTS_FROM_MANO, VERTEX_COUNT, HandArrays
from handmesh.system.atomic import write_atomically
from handmesh.system.cpus import usable_cpus

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]  # (frames done, frames in all)

FREIHAND_COUNT = 3960

OFFICIAL_KEYS = (
    *("xyz_mean3d", "xyz_auc3d", "xyz_al_mean3d", "xyz_al_auc3d"),
    *("mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d"),
    *("f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15"),
)
UNALIGNED_KEYS = ("xyz_mean3d", "xyz_auc3d", "mesh_mean3d", "mesh_auc3d", "f_score_5", "f_score_15")
PAPER_KEYS = ("pa_mpjpe_mm", "pa_mpvpe_mm", "f_at_5", "f_at_15")


class Published(NamedTuple):
    """A row of FreiHAND's table as somebody published it."""

    figures: tuple[float | None, ...]  # in the order of PAPER_KEYS
    source: str
    tta: str  # whether answers to several views were averaged
    crop: str  # what the network saw: only equal ones compare


PUBLISHED: dict[str, Published] = {
    "FastViT-MA36, paper": Published(
        (6.6, 6.7, 0.722, 0.981), "Vasu et al., ICCV 2023, table 8", "not said; METRO's figures without it", "not said"
    ),
    "METRO": Published((6.6, 6.7, 0.721, 0.981), "MeshTransformer, docs/EXP.md", "no", "metro"),
    "METRO, TTA": Published((6.2, 6.3, 0.743, 0.984), "MeshTransformer, docs/EXP.md", "95 views", "metro"),
    "Mesh Graphormer, TTA": Published((5.9, 6.0, 0.764, 0.986), "Lin et al., ICCV 2021", "95 views", "metro"),
    "simpleHand, FastViT-MA36": Published(
        (5.7, 6.0, 0.772, 0.986), "Zhou et al., CVPR 2024; F: its code's README", "no", "box-from-test-labels"
    ),
    # The first version of arXiv:1909.04349, on the data set's first release, which is not the one in use. Of the
    # release at hand the same is computed, where its hand model is (`Evaluation.mean_hand`).
    "mean hand, first release": Published(
        (None, 17.8, 0.300, 0.808), "Zimmermann et al., arXiv:1909.04349v1", "no", "none"
    ),
}

# What the official tool's README gives for all-zero predictions on the real annotations, cm.
ZERO_PREDICTOR_CM = {"xyz_mean3d": 70.79, "xyz_al_mean3d": 4.73, "mesh_mean3d": 70.84, "mesh_al_mean3d": 5.07}

_BASELINE_FRAMES = 400  # evenly spaced frames from which the set's own mean-pose baseline is made and scored
_CHUNK = 32  # frames that a thread scores at a time


@dataclass(frozen=True, eq=False)
class FrameScores:
    """Per frame, in the order of the images; metres. Fields of meshes are NaN where there are none.

    "aligned": by the official similarity, which may mirror; "rigid": rotations only.
    """

    joint_errors: Array  # (N, 21) where they are
    joint_errors_aligned: Array  # (N, 21)
    joint_errors_rigid: Array  # (N, 21)
    root_relative_error: Array  # (N,) mean over the joints with the wrists on each other
    vertex_error: Array  # (N,) mean over the vertices
    vertex_error_aligned: Array  # (N,)
    vertex_error_rigid: Array  # (N,)
    f: Array  # (N, 2) F-scores at 5 and 15 mm
    f_aligned: Array  # (N, 2)
    f_rigid: Array  # (N, 2)
    mirrored: NDArray[np.bool_]  # (N,) the official alignment of the joints is a reflection

    def __len__(self) -> int:
        return len(self.mirrored)


class Curves(NamedTuple):
    """Share of points within each of `metrics.PCK_THRESHOLDS`, (100,) each; None without comparable meshes."""

    joints: Array
    joints_aligned: Array
    vertices: Array | None
    vertices_aligned: Array | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that is known about how well one set of predictions fits."""

    official: Mapping[str, float]  # OFFICIAL_KEYS: means in cm, areas and F-scores from 0 to 1
    paper: Mapping[str, float]  # PAPER_KEYS, of the official alignment
    rigid: Mapping[str, float]  # PAPER_KEYS, of the alignment without reflections
    mean_pose_baseline: Mapping[str, float]  # PAPER_KEYS of this set's own mean hand, given as a constant answer
    root_relative_mpjpe_mm: float
    intervals: Mapping[str, tuple[float, float]]  # 95 % bootstrap intervals of PAPER_KEYS
    frames: FrameScores
    curves: Curves
    vertex_errors_aligned: Array | None  # (V,) metres, mean over the frames: where on the hand the error is
    camera_coordinates: bool  # whether the unaligned figures mean anything
    camera_note: str  # why (not)
    warnings: tuple[str, ...]
    truth_sha256: str
    predictions_sha256: str
    keypoints: Mapping[str, float] = field(default_factory=dict)  # 2D, see `score_keypoints`
    mean_hand: Mapping[str, float] = field(default_factory=dict)  # the same of the hand model's mean shape and pose
    joints: Mapping[str, GroupScore] = field(default_factory=dict)  # see `score_joints`
    views: Mapping[str, GroupScore] = field(default_factory=dict)  # see `score_views`
    camera_space: Mapping[str, float] = field(default_factory=dict)  # see `score_in_camera_space`
    first_iteration: Mapping[str, float] | None = None  # PAPER_KEYS of the first of two crops, where there were two


def evaluate(
    truth: HandPoints,
    predicted: HandPoints,
    *,
    same_hand: bool = True,
    hand: HandArrays | None = None,
    left: NDArray[np.bool_] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predictions. `workers`: threads; None takes the processors that this process may use, at most eight.

    `same_hand`: whether meshes of as many vertices have them in the same places. If not, only what needs no
    correspondence is scored of them: F-scores, aligned by the joints. `hand`: the model that the true meshes are of.
    `left` (N,): which frames show left hands; None: none does. Raises DataError when the shapes do not fit. What can be
    scored but looks wrong (other units, another joint order, mirrored hands) is scored as the official tool would, and
    named in `warnings`.
    """
    _check_shapes(truth, predicted)
    count = len(truth.joints)
    comparable = same_hand and _as_many_vertices(truth, predicted)
    threads = workers or min(8, usable_cpus())
    starts = range(0, count, _CHUNK)
    parts: list[_Part] = []
    with ThreadPoolExecutor(threads) as pool:  # numpy's SVD and scipy's trees run without Python's lock
        for part in pool.map(lambda start: _score(truth, predicted, start, comparable), starts):
            parts.append(part)
            if progress is not None:
                progress(min(len(parts) * _CHUNK, count), count)
        baseline = _constant_scores(truth, pool, left=left)
        mean_hand = {} if hand is None or truth.vertices is None else _constant_scores(truth, pool, hand=hand)
    frames = FrameScores(
        *(np.concatenate([getattr(part.frames, f.name) for part in parts]) for f in fields(FrameScores))
    )
    curves = _curves(frames, parts, comparable)
    per_frame = dict(zip(PAPER_KEYS, _per_frame_mm(frames, "aligned"), strict=True))
    rigid = dict(zip(PAPER_KEYS, _per_frame_mm(frames, "rigid"), strict=True))
    camera_coordinates, note = _camera_coordinates(truth, predicted)
    sums = [part.vertex_sum for part in parts if part.vertex_sum is not None]
    return Evaluation(
        official=_official(frames, curves),
        paper={name: float(values.mean()) for name, values in per_frame.items()},
        rigid={name: float(values.mean()) for name, values in rigid.items()},
        mean_pose_baseline=baseline,
        mean_hand=mean_hand,
        root_relative_mpjpe_mm=1000 * float(frames.root_relative_error.mean()),
        intervals={
            name: metrics.bootstrap_interval(values) for name, values in per_frame.items() if np.isfinite(values).all()
        },
        frames=frames,
        curves=curves,
        vertex_errors_aligned=np.sum(sums, axis=0) / count if sums else None,
        camera_coordinates=camera_coordinates,
        camera_note=note,
        warnings=(*_warnings(truth, predicted), *_mirror_warnings(frames)),
        truth_sha256=sha256_of_points(truth),
        predictions_sha256=sha256_of_points(predicted),
        camera_space=score_in_camera_space(truth, predicted, frames) if camera_coordinates else {},
    )


def score_in_camera_space(truth: HandPoints, predicted: HandPoints, frames: FrameScores) -> dict[str, float]:
    """Errors where the hands are, in the camera's frame, nothing aligned: of predictions in camera coordinates.

    CS-MPJPE and CS-MPVPE, mm; how far the joints' middle is off along the viewing axis and across it, mm; and how large
    hands are predicted, over the true ones (wrist over the middle finger's joints to its tip): mean and mean error.
    """
    off = predicted.joints.mean(axis=1) - truth.joints.mean(axis=1)
    sizes = hand_lengths(predicted.joints) / np.maximum(hand_lengths(truth.joints), 1e-12)
    scores = {
        "cs_mpjpe_mm": 1000 * float(frames.joint_errors.mean()),
        "depth_error_mm": 1000 * float(np.abs(off[:, 2]).mean()),
        "lateral_error_mm": 1000 * float(np.linalg.norm(off[:, :2], axis=1).mean()),
        "size_ratio": float(sizes.mean()),
        "size_error": float(np.abs(sizes - 1).mean()),
    }
    if np.isfinite(frames.vertex_error).all():
        scores["cs_mpvpe_mm"] = 1000 * float(frames.vertex_error.mean())
    return scores


class GroupScore(NamedTuple):
    """The aligned error of some joints or frames."""

    frames: int
    mean_mm: float
    interval: tuple[float, float]  # 95 %, bootstrap over frames


def score_joints(frames: FrameScores) -> dict[str, GroupScore]:
    """PA error of each joint, by its name."""
    errors = 1000 * frames.joint_errors_aligned
    return {name: _group_score(errors[:, joint]) for joint, name in enumerate(JOINT_NAMES)}


def score_views(frames: FrameScores, palm_angles: Array) -> dict[str, GroupScore]:
    """PA-MPJPE of the frames that show the palm, the edge or the back of the hand; of those that there are.

    `palm_angles` (N,) degrees, as of `handmesh.evaluate.sets`.
    """
    errors = 1000 * frames.joint_errors_aligned.mean(axis=1)
    bins = {"palm": palm_angles < 60, "edge": (palm_angles >= 60) & (palm_angles < 120), "back": palm_angles >= 120}
    return {name: _group_score(errors[chosen]) for name, chosen in bins.items() if chosen.any()}


def _group_score(errors: Array) -> GroupScore:
    return GroupScore(len(errors), float(errors.mean()), metrics.bootstrap_interval(errors))


def check_zero_predictor(truth: HandPoints) -> tuple[bool, str] | None:
    """Whether this is FreiHAND's published ground truth: does answering zeros score what its README says?

    None when the set has not FreiHAND's 3,960 frames, so cannot be it.
    """
    if len(truth.joints) != FREIHAND_COUNT or truth.vertices is None:
        return None
    found = {}
    for name, points in (("xyz", truth.joints), ("mesh", truth.vertices)):
        # Aligned, a point without size lands on the middle of the true hand.
        found[f"{name}_mean3d"] = 100 * float(np.linalg.norm(points, axis=-1).mean())
        centered = points - points.mean(axis=1, keepdims=True)
        found[f"{name}_al_mean3d"] = 100 * float(np.linalg.norm(centered, axis=-1).mean())
    text = ", ".join(f"{key} {found[key]:.2f} (published {ZERO_PREDICTOR_CM[key]:.2f})" for key in found)
    good = all(abs(found[key] - ZERO_PREDICTOR_CM[key]) < 0.0051 for key in found)
    return good, f"The all-zero predictor scores, in cm: {text}."


def score_keypoints(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    visible: NDArray[np.bool_] | None = None,
    known: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """2D scores of (N, 21, 2) pixels, over the longer side of the true keypoints' box.

    Mean error, PCK at 5, 10, 15 and 20 % of the box, and the area under PCK up to 20 %. PCK is the mean over the joints
    of each one's share, as in HaMeR's and MMPose's tools: of a share over all of them, joints that are mostly hidden
    would count less among the visible ones. With `visible` (N, 21), the error and PCK of visible and of hidden joints,
    too. `known` (N, 21): which are labelled at all; None: all are. Of the others nothing is scored, nor of images with
    fewer than two in different places, whose box has no side.
    """
    scored, errors = np.zeros(truth.shape[:2], bool), np.full(truth.shape[:2], np.nan)
    for index, joints in enumerate(np.ones_like(scored) if known is None else known):
        points = truth[index, joints]
        if len(points) and np.ptp(points, axis=0).any():
            scored[index] = joints
            errors[index, joints] = metrics.keypoint_box_errors(points, predicted[index, joints])
    if not scored.any():
        raise DataError("No image has two keypoints that are marked as visible: there is nothing to score.")
    steps = np.linspace(0, 0.2, 101)
    scores = {**_box_scores(errors, scored), "auc_0_to_0.2": metrics.auc(_pck_of_joints(errors, scored, steps), steps)}
    for name, chosen in (("visible", visible), ("hidden", None if visible is None else ~visible)):
        if chosen is not None and (chosen & scored).any():
            scores |= {f"{key}_{name}": value for key, value in _box_scores(errors, chosen & scored).items()}
    return scores


def _box_scores(errors: Array, chosen: NDArray[np.bool_]) -> dict[str, float]:
    shares = (0.05, 0.1, 0.15, 0.2)
    found = _pck_of_joints(errors, chosen, np.array(shares)).tolist()
    return {
        "box_error": float(errors[chosen].mean()),
        **{f"pck_{share}": value for share, value in zip(shares, found, strict=True)},
    }


def _pck_of_joints(errors: Array, chosen: NDArray[np.bool_], thresholds: Array) -> Array:
    """(T,) mean over the joints of the PCK of each, over the `chosen` (N, 21) of its errors."""
    joints = [joint for joint in range(chosen.shape[1]) if chosen[:, joint].any()]
    return np.mean([metrics.pck(errors[chosen[:, joint], joint], thresholds) for joint in joints], axis=0)


# Files


def scores_json(
    evaluation: Evaluation, run: Mapping[str, Any], comparisons: Sequence[Comparison] = ()
) -> dict[str, Any]:
    """What scores.json holds; a figure that does not exist is None. `run`: whatever identifies the run."""
    return {
        **{key: _number(value) for key, value in evaluation.official.items()},
        **{key: _number(value) for key, value in evaluation.paper.items()},
        "rigid": {key: _number(value) for key, value in evaluation.rigid.items()},
        "root_relative_mpjpe_mm": _number(evaluation.root_relative_mpjpe_mm),
        "joints": {name: of_joint._asdict() for name, of_joint in evaluation.joints.items()} or None,
        "views": {name: of_view._asdict() for name, of_view in evaluation.views.items()} or None,
        "camera_space": dict(evaluation.camera_space) or None,
        "keypoints_2d": dict(evaluation.keypoints) or None,
        "first_iteration": None
        if evaluation.first_iteration is None
        else {key: _number(value) for key, value in evaluation.first_iteration.items()},
        "intervals_95": {key: list(value) for key, value in evaluation.intervals.items()},
        "against": [{**row._asdict(), "verdict": row.verdict} for row in comparisons] or None,
        "mean_pose_baseline": {key: _number(value) for key, value in evaluation.mean_pose_baseline.items()},
        "mean_hand": {key: _number(value) for key, value in evaluation.mean_hand.items()} or None,
        "frames": len(evaluation.frames),
        "camera_coordinates": evaluation.camera_coordinates,
        "camera_note": evaluation.camera_note,
        "warnings": list(evaluation.warnings),
        "truth_sha256": evaluation.truth_sha256,
        "predictions_sha256": evaluation.predictions_sha256,
        "run": dict(run),
    }


def write_scores(
    directory: Path, evaluation: Evaluation, run: Mapping[str, Any], comparisons: Sequence[Comparison] = ()
) -> None:
    """Write scores.json and frames.npz (the fields of FrameScores) into a folder, made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(scores_json(evaluation, run, comparisons), indent=1, allow_nan=False)
    write_atomically(directory / "scores.json", text.encode())
    buffer = io.BytesIO()
    arrays = {f.name: getattr(evaluation.frames, f.name) for f in fields(FrameScores)}
    np.savez_compressed(buffer, truth_sha256=np.array(evaluation.truth_sha256), **arrays)
    write_atomically(directory / "frames.npz", buffer.getvalue())


class Comparison(NamedTuple):
    """One figure of two runs on the same frames."""

    name: str
    value: float  # of this run
    other: float
    difference: float  # value - other
    interval: tuple[float, float]  # 95 %, paired bootstrap
    run: str = "the other run"

    @property
    def verdict(self) -> str:
        """Whether this run is "better" or "worse"; "within chance" where the interval holds zero."""
        if self.interval[0] <= 0 <= self.interval[1]:
            return "within chance"
        smaller_is_better = self.name.endswith("_mm")
        return "better" if (self.difference < 0) == smaller_is_better else "worse"


def compare(evaluation: Evaluation, other: Path) -> list[Comparison]:
    """Paired comparison with an earlier run, given by its folder or its frames.npz. Raises what `read_frames` does."""
    earlier, run = read_frames(other, evaluation.truth_sha256)
    rows = []
    pairs = zip(PAPER_KEYS, _per_frame_mm(evaluation.frames, "aligned"), _per_frame_mm(earlier, "aligned"), strict=True)
    for name, ours, theirs in pairs:
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            interval = metrics.bootstrap_interval(ours - theirs)
            means = float(ours.mean()), float(theirs.mean())
            rows.append(Comparison(name, *means, means[0] - means[1], interval, run))
    return rows


def read_frames(other: Path, truth_sha256: str) -> tuple[FrameScores, str]:
    """The frames of an earlier run, given by its folder or its frames.npz, and what that run is called.

    Raises DataError when they are missing, damaged, or were scored against another ground truth.
    """
    path = other / "frames.npz" if other.is_dir() else other
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        truth = str(arrays.pop("truth_sha256"))
        earlier = FrameScores(**arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no frames.npz of an earlier run ({error}): give the folder that `handmesh evaluate --out` "
            "wrote."
        ) from error
    if truth != truth_sha256:
        raise DataError(f"{path} was scored against another ground truth: two runs are compared frame by frame.")
    return earlier, path.parent.name if path.name == "frames.npz" else path.stem


# Scoring


class _Part(NamedTuple):
    frames: FrameScores
    vertex_counts: NDArray[np.int64] | None  # (2, 100) unaligned and aligned
    vertex_sum: Array | None  # (V,)


def _as_many_vertices(truth: HandPoints, predicted: HandPoints) -> bool:
    """What the official tool takes for correspondence: it asks whether there are 778."""
    return (
        truth.vertices is not None
        and predicted.vertices is not None
        and predicted.vertices.shape[1] == truth.vertices.shape[1]
    )


def _score(truth: HandPoints, predicted: HandPoints, start: int, comparable: bool) -> _Part:
    chosen = slice(start, start + _CHUNK)
    joints, found = truth.joints[chosen], predicted.joints[chosen]
    similarity, rigid = metrics.find_similarity(joints, found), metrics.find_rigid_similarity(joints, found)
    count = len(joints)
    unknown, unknown_f = np.full(count, np.nan), np.full((count, 2), np.nan)
    scores: dict[str, Any] = {
        "joint_errors": metrics.point_errors(joints, found),
        "joint_errors_aligned": metrics.point_errors(joints, similarity.apply(found)),
        "joint_errors_rigid": metrics.point_errors(joints, rigid.apply(found)),
        "root_relative_error": metrics.mpjpe(joints, found),
        "mirrored": similarity.mirrors,
        **dict.fromkeys(("vertex_error", "vertex_error_aligned", "vertex_error_rigid"), unknown),
        **dict.fromkeys(("f", "f_aligned", "f_rigid"), unknown_f),
    }
    if truth.vertices is None or predicted.vertices is None:
        return _Part(FrameScores(**scores), None, None)
    vertices, mesh = truth.vertices[chosen], predicted.vertices[chosen]
    if comparable:
        similarity = metrics.find_similarity(vertices, mesh)
    aligned = similarity.apply(mesh)
    scores["f"], scores["f_aligned"] = metrics.f_scores(vertices, mesh), metrics.f_scores(vertices, aligned)
    # Without a reflection both alignments are the same.
    mirrored = similarity.mirrors
    straight = aligned.copy()
    scores["f_rigid"] = scores["f_aligned"].copy()
    if mirrored.any():
        basis = (vertices, mesh) if comparable else (joints, found)
        straight[mirrored] = metrics.find_rigid_similarity(basis[0][mirrored], basis[1][mirrored]).apply(mesh[mirrored])
        scores["f_rigid"][mirrored] = metrics.f_scores(vertices[mirrored], straight[mirrored])
    if not comparable:
        return _Part(FrameScores(**scores), None, None)
    errors, errors_aligned = metrics.point_errors(vertices, mesh), metrics.point_errors(vertices, aligned)
    scores["vertex_error"], scores["vertex_error_aligned"] = errors.mean(axis=1), errors_aligned.mean(axis=1)
    scores["vertex_error_rigid"] = metrics.point_errors(vertices, straight).mean(axis=1)
    counts = np.stack([metrics.pck_counts(errors), metrics.pck_counts(errors_aligned)])
    return _Part(FrameScores(**scores), counts, errors_aligned.sum(axis=0))


def _curves(frames: FrameScores, parts: Sequence[_Part], comparable: bool) -> Curves:
    joints, joints_aligned = map(metrics.pck, (frames.joint_errors, frames.joint_errors_aligned))
    if not comparable:
        return Curves(joints, joints_aligned, None, None)
    counts = [part.vertex_counts for part in parts if part.vertex_counts is not None]
    vertex_count = max(part.vertex_sum.size for part in parts if part.vertex_sum is not None)
    raw, aligned = np.sum(counts, axis=0) / (len(frames) * vertex_count)
    return Curves(joints, joints_aligned, raw, aligned)


def _official(frames: FrameScores, curves: Curves) -> dict[str, float]:
    """The official figures under the official names; the tool prints means in centimetres."""
    scores = {
        "xyz_mean3d": 100 * float(frames.joint_errors.mean()),
        "xyz_auc3d": metrics.auc(curves.joints),
        "xyz_al_mean3d": 100 * float(frames.joint_errors_aligned.mean()),
        "xyz_al_auc3d": metrics.auc(curves.joints_aligned),
    }
    if curves.vertices is not None and curves.vertices_aligned is not None:
        scores |= {
            "mesh_mean3d": 100 * float(frames.vertex_error.mean()),
            "mesh_auc3d": metrics.auc(curves.vertices),
            "mesh_al_mean3d": 100 * float(frames.vertex_error_aligned.mean()),
            "mesh_al_auc3d": metrics.auc(curves.vertices_aligned),
        }
    else:  # as the official tool prints the -1 that stands for "not a MANO mesh"
        scores |= {"mesh_mean3d": -100.0, "mesh_auc3d": -1.0, "mesh_al_mean3d": -100.0, "mesh_al_auc3d": -1.0}
    for index, name in enumerate(("5", "15")):
        scores[f"f_score_{name}"] = float(frames.f[:, index].mean())
        scores[f"f_al_score_{name}"] = float(frames.f_aligned[:, index].mean())
    return {key: scores[key] for key in OFFICIAL_KEYS}


def _per_frame_mm(frames: FrameScores, alignment: str) -> tuple[Array, Array, Array, Array]:
    """(N,) each, in the order of PAPER_KEYS."""
    joints = 1000 * getattr(frames, f"joint_errors_{alignment}").mean(axis=1)
    vertices = 1000 * getattr(frames, f"vertex_error_{alignment}")
    f = getattr(frames, f"f_{alignment}")
    return joints, vertices, f[:, 0], f[:, 1]


def _constant_scores(
    truth: HandPoints,
    pool: ThreadPoolExecutor,
    *,
    hand: HandArrays | None = None,
    left: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """PAPER_KEYS of one hand as the answer to every frame: the set's own mean, or `hand` in its mean shape and pose.

    The mean is of right hands and mirrored left ones; the official alignment mirrors it back.
    """
    chosen = np.unique(np.linspace(0, len(truth.joints) - 1, _BASELINE_FRAMES).round().astype(int))
    joints, vertices = truth.joints[chosen], None if truth.vertices is None else truth.vertices[chosen]
    if hand is None:
        flip = np.ones((len(chosen), 1, 3))
        if left is not None:
            flip[left[chosen], :, 0] = -1
        constant = metrics.mean_shape(flip * joints), None if vertices is None else metrics.mean_shape(flip * vertices)
    else:
        pose = matrix_from_vector(np.concatenate([np.zeros(3), hand.hands_mean]).reshape(-1, 3))
        mean_hand = hand.shaped(np.zeros(BETA_COUNT)).posed(pose).vertices
        constant = hand.joints_of(mean_hand), mean_hand
    scores = dict.fromkeys(PAPER_KEYS, float("nan"))
    scores["pa_mpjpe_mm"] = 1000 * float(metrics.pa_mean_error(joints, constant[0]).mean())
    if vertices is not None and constant[1] is not None:
        aligned = metrics.align_similarity(vertices, constant[1])
        scores["pa_mpvpe_mm"] = 1000 * float(metrics.point_errors(vertices, aligned).mean())
        parts = [slice(start, start + _CHUNK) for start in range(0, len(chosen), _CHUNK)]
        f = np.concatenate(list(pool.map(lambda part: metrics.f_scores(vertices[part], aligned[part]), parts)))
        scores["f_at_5"], scores["f_at_15"] = (float(value) for value in f.mean(axis=0))
    return scores


# What looks wrong

_UNITS = {1000.0: "millimetres", 100.0: "centimetres", 10.0: "decimetres", 0.001: "kilometres"}
_SAMPLE = 200  # frames that joint orders are tried on

_NAMES_MANO = tuple(np.argsort(JOINTS_FROM_MANO).tolist())  # 16 joints of MANO, then the five tips


def _fingers(order: Sequence[str], joints: Sequence[int]) -> list[int]:
    """Places in FreiHAND's order, finger by finger; joints 0..3 go from the base to the tip."""
    return [1 + 4 * FINGER_NAMES.index(name) + joint for name in order for joint in joints]


_BASE_TO_TIP, _TIP_TO_BASE = (0, 1, 2, 3), (3, 2, 1, 0)

# For each order, which of FreiHAND's joints stands in each place.
JOINT_ORDERS: dict[str, tuple[int, ...]] = {
    "MANO's (16 joints: wrist, index, middle, pinky, ring, thumb; then the tips from thumb to pinky)": _NAMES_MANO,
    "RHD's (wrist, then each finger from tip to base)": (0, *_fingers(FINGER_NAMES, _TIP_TO_BASE)),
    "InterHand2.6M's (each finger from tip to base, the wrist last)": (*_fingers(FINGER_NAMES, _TIP_TO_BASE), 0),
    "base to tip with the wrist last": (*_fingers(FINGER_NAMES, _BASE_TO_TIP), 0),
    "wrist, then pinky to thumb": (0, *_fingers(FINGER_NAMES[::-1], _BASE_TO_TIP)),
    "FPHA's (wrist, the five bases, then each finger)": (
        *(0, 1, 5, 9, 13, 17),
        *_fingers(FINGER_NAMES, (1, 2, 3)),
    ),
    "level by level (wrist, five bases, five second joints, ...)": (
        0,
        *(1 + 4 * finger + joint for joint in range(4) for finger in range(5)),
    ),
}


def recognise_joint_order(truth: NDArray[Any], predicted: NDArray[Any]) -> str | None:
    """The name of the joint order that explains (N, 21, 3) predictions much better than FreiHAND's, or None."""
    step = max(1, len(truth) // _SAMPLE)
    truth, predicted = np.asarray(truth)[::step], np.asarray(predicted)[::step]

    def error(joints: NDArray[Any]) -> float:
        return float(np.median(metrics.pa_rigid_mean_error(truth, joints)))

    as_given = error(predicted)
    errors = {name: error(predicted[:, np.argsort(order)]) for name, order in JOINT_ORDERS.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < 0.6 * as_given and as_given > 0.005 else None


def _warnings(truth: HandPoints, predicted: HandPoints) -> list[str]:
    found = []
    clouds = [("xyz", truth.joints, predicted.joints)]
    if truth.vertices is not None and predicted.vertices is not None:
        clouds.append(("verts", truth.vertices, predicted.vertices))
        if not _as_many_vertices(truth, predicted):
            found.append(
                f"The meshes have {predicted.vertices.shape[1]} vertices, the true ones {truth.vertices.shape[1]}: "
                "mesh errors do not exist (the official tool prints -100 and -1), and aligned F-scores use the "
                "alignment of the joints. The official tool's own aligned F-scores are too low for such meshes: it "
                "forgets to divide by the predicted size and turns about another point."
            )
    for name, true_points, points in clouds:
        found += _size_warnings(name, true_points, points)
    order = recognise_joint_order(truth.joints, predicted.joints)
    if order is not None:
        found.append(f"xyz: the joints seem to be in another order, {order}. Wanted: {', '.join(JOINT_NAMES)}.")
    return found


def _size_warnings(name: str, true_points: NDArray[Any], points: NDArray[Any]) -> list[str]:
    found = []
    ratio = _extent(points) / np.maximum(_extent(true_points), 1e-12)
    collapsed = ratio < 1e-9
    if collapsed.any():
        found.append(f"{name}: all points are the same in {_frames(collapsed)}.")
    if collapsed.all():
        return found
    typical = float(np.median(ratio[~collapsed]))
    unit = next((unit for factor, unit in _UNITS.items() if 1 / 3 < typical / factor < 3), None)
    if unit is not None:
        found.append(f"{name}: the whole file seems to be in {unit}, wanted metres; unaligned figures suffer.")
    elif not 1 / 3 < typical < 3:
        found.append(f"{name}: predicted hands are {typical:.3g} times as large as the true ones: wanted metres.")
    odd = ~collapsed & ((ratio > 5 * typical) | (ratio < typical / 5))
    if odd.any():
        factor = float(np.median(ratio[odd])) / typical
        found.append(f"{name}: {_frames(odd)} differ in size from the others, by about {factor:.3g}: other units?")
    return found


def _extent(points: NDArray[Any]) -> Array:
    """(N,) root mean square distance from the middle."""
    return np.sqrt(np.square(points - points.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1))


def _mirror_warnings(frames: FrameScores) -> list[str]:
    gain = frames.joint_errors_rigid.mean(axis=1) - frames.joint_errors_aligned.mean(axis=1)
    mirrored = frames.mirrored & (gain > 0.005)
    if not mirrored.any():
        return []
    return [
        f"xyz: {_frames(mirrored)} fit better as mirror images, which the official alignment allows: left hands, or an "
        'axis with the wrong sign? See the figures named "rigid".'
    ]


def _frames(chosen: NDArray[np.bool_]) -> str:
    indices = np.flatnonzero(chosen)
    if len(indices) == len(chosen):
        return "all frames" if len(chosen) > 1 else "the only frame"
    shown = ", ".join(map(str, indices[:5]))
    if len(indices) == 1:
        return f"frame {shown}"
    return f"{len(indices):,} frames ({shown}{', ...' if len(indices) > 5 else ''})"


def _camera_coordinates(truth: HandPoints, predicted: HandPoints) -> tuple[bool, str]:
    """Whether predictions are placed in the camera's frame at all; METRO and its kind give them about the wrist."""
    true_middle, middle = truth.joints.mean(axis=1), predicted.joints.mean(axis=1)
    distance, true_distance = (float(np.median(np.linalg.norm(m, axis=1))) for m in (middle, true_middle))
    if not 0.25 * true_distance < distance < 4 * true_distance:
        return False, (
            f"predicted hands lie {100 * distance:.0f} cm from the camera, the true ones {100 * true_distance:.0f} cm: "
            "the predictions are not in camera coordinates and metres (relative to a joint?), so unaligned errors mean "
            "nothing"
        )
    if np.median(middle[:, 2]) <= 0:
        return False, "predicted hands lie behind the camera, so unaligned errors mean nothing"
    return True, "predictions are in camera coordinates"


def _check_shapes(truth: HandPoints, predicted: HandPoints) -> None:
    for name, points in (("true", truth), ("predicted", predicted)):
        joints = np.asarray(points.joints)
        if joints.ndim != 3 or joints.shape[1:] != (len(JOINT_NAMES), 3) or not len(joints):
            raise DataError(f"The {name} joints are {joints.shape}, wanted (N, {len(JOINT_NAMES)}, 3).")
        if points.vertices is not None and (points.vertices.ndim != 3 or points.vertices.shape[2] != 3):
            raise DataError(f"The {name} vertices are {points.vertices.shape}, wanted (N, {VERTEX_COUNT}, 3).")
        for points_of in points:
            if points_of is not None:
                if len(points_of) != len(joints):
                    raise DataError(f"{len(joints)} frames of {name} joints and {len(points_of)} of vertices.")
                bad = np.flatnonzero(~np.isfinite(points_of).all(axis=(1, 2)))
                if len(bad):
                    raise DataError(f"Frame {bad[0]} of the {name} hands holds values that are not finite numbers.")
    if len(truth.joints) != len(predicted.joints):
        raise DataError(f"{len(predicted.joints):,} predicted frames, wanted {len(truth.joints):,}.")


def sha256_of_points(points: HandPoints) -> str:
    """What `Evaluation` names its hands by."""
    digest = hashlib.sha256()
    for array in points:
        if array is not None:
            digest.update(np.ascontiguousarray(array, np.float64).data)
    return digest.hexdigest()


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
