"""`handmesh evaluate` from end to end: read or predict, score, write, report, and say it in a terminal."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from handmesh import __version__
from handmesh.errors import ConfigError, DataError, ExportError
from handmesh.evaluate.inference import PREDICT, PROTOCOL_NAMES, ModelAnswers, parse_views, predict_set
from handmesh.evaluate.official_files import Array, HandPoints, read_predictions, write_predictions
from handmesh.evaluate.report import ReportInput, format_figure, write_report
from handmesh.evaluate.scores import (
    PAPER_KEYS,
    PUBLISHED,
    UNALIGNED_KEYS,
    Comparison,
    Evaluation,
    check_zero_predictor,
    compare,
    evaluate,
    read_frames,
    score_joints,
    score_keypoints,
    score_views,
    sha256_of_points,
    write_scores,
)
from handmesh.evaluate.sets import EvaluationSet, match_hand, open_evaluation_set, palm_angles
from handmesh.hand import Handedness
from handmesh.runtime.engine import Engine
from handmesh.system.atomic import sha256_of_file, write_atomically

logger = logging.getLogger(__name__)

Show = Callable[[str, int, int], None]  # (stage, done, in all)


@dataclass(frozen=True)
class EvaluationRequest:
    """What is wanted: the options of `handmesh evaluate`. Either `predictions` or a model is scored on `data`."""

    data: Path | None
    predictions: Path | None = None
    model: str | None = None  # a file or a name; None: the bundled model
    protocol: str | None = None  # None: the one that the model's file names, if the set allows it, else "frame"
    margin: float | None = None
    passes: int | None = None  # of protocol "predict"; None: 3
    tta: str = "none"
    limit: int | None = None
    out: Path = Path("evaluation")
    against: tuple[Path, ...] = ()  # folders of earlier runs
    save_predictions: Path | None = None
    report: bool = True
    workers: int | None = None
    threads: int | None = None


class EvaluationResult(NamedTuple):
    """What came of it."""

    evaluation: Evaluation | None  # None of a set without 3D labels
    keypoints: Mapping[str, float]  # 2D scores, where there are any
    comparisons: tuple[Comparison, ...]
    run: dict[str, Any]  # what identifies the run
    files: tuple[Path, ...]


def run_evaluation(request: EvaluationRequest, show: Show = lambda stage, done, total: None) -> EvaluationResult:
    """Do it all and write scores.json, frames.npz and report.html into `request.out`.

    Raises DataError, ImageError, CheckpointError, ConfigError and ExportError, each with one clear message.
    """
    assert request.data is not None
    if request.predictions is not None:
        _check_of_predictions(request)
    engine = None
    if request.predictions is None:
        from handmesh.runtime.engine import open_engine

        engine = open_engine(request.model, threads=request.threads)
    data = open_evaluation_set(request.data, None if engine is None else engine.hand)
    run: dict[str, Any] = {"handmesh": __version__, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    run |= {"test set": str(data.path), "frames": len(data), "machine": f"{platform.system()} {platform.machine()}"}
    if engine is None:
        points, keypoints, facts = _read(request, data, show)
        first = None
    else:
        if request.limit is not None and request.limit < len(data):
            run["frames"] = f"the first {request.limit} of {len(data)}"
            data = data.first(request.limit)
        _check_before_predicting(request, data)
        answers, facts = _predict(request, data, engine, show)
        points, keypoints, first = answers.points, answers.keypoints, answers.first
    run = {"subject": facts.pop("subject"), **facts, **run}
    note = _ground_truth_note(data)
    if note is not None:
        run["ground truth"] = note

    def scored(done: int, total: int) -> None:
        show("scoring", done, total)

    same_hand = engine is None or data.labelled_hand is None or data.labelled_hand.matches(engine.hand)
    if not same_hand:
        run["true meshes"] = (
            f"those of {data.labelled_hand}, whose vertices are in other places than the model's: mesh errors do not "
            "exist, and aligned F-scores use the alignment of the joints"
        )
    elif data.meshes is not None:
        run["true meshes"] = data.meshes
    if not data.in_space:
        return _score_in_2d(request, data, keypoints, run)
    hand = match_hand(data.truth.vertices)
    left = np.array([side == Handedness.LEFT for side in data.handedness])
    evaluation = evaluate(
        data.truth, points, same_hand=same_hand, hand=hand, left=left, workers=request.workers, progress=scored
    )
    if first is not None:
        of_first = evaluate(data.truth, first, same_hand=same_hand, workers=request.workers)
        evaluation = replace(evaluation, first_iteration=of_first.paper)
    if keypoints is None and evaluation.camera_coordinates and data.intrinsics is not None:
        keypoints = _projected(points, data)
    if keypoints is not None and data.keypoints is not None and np.isfinite(keypoints).all():
        evaluation = replace(evaluation, keypoints=score_keypoints(data.keypoints, keypoints, data.shown))
    angles = palm_angles(data.truth.joints, data.handedness)
    evaluation = replace(
        evaluation, joints=score_joints(evaluation.frames), views=score_views(evaluation.frames, angles)
    )
    compared = [(other, compare(evaluation, other)) for other in request.against]
    names = [row.run for _, rows in compared for row in rows[:1]]
    comparisons = tuple(  # folders of one name are told apart by their paths
        row._replace(run=str(other)) if names.count(row.run) > 1 else row for other, rows in compared for row in rows
    )
    if request.against:
        run["compared with"] = ", ".join(map(str, request.against))
    _clear(request.out)
    write_scores(request.out, evaluation, run, comparisons)
    files = [request.out / "scores.json", request.out / "frames.npz"]
    if request.report:
        path = request.out / "report.html"
        show("report", 0, 1)
        write_report(path, ReportInput(evaluation, points, data, run, keypoints, comparisons))
        show("report", 1, 1)
        files.append(path)
    if request.save_predictions is not None:
        assert points.vertices is not None
        write_predictions(request.save_predictions, points.joints, points.vertices)
        files.append(request.save_predictions)
    return EvaluationResult(evaluation, evaluation.keypoints, comparisons, run, tuple(files))


def _score_in_2d(
    request: EvaluationRequest, data: EvaluationSet, keypoints: Array | None, run: dict[str, Any]
) -> EvaluationResult:
    """Of a set that says where the joints are in the pictures, and nothing about space: scores.json alone."""
    if keypoints is None:
        raise DataError(f"{data.path} has no 'joints' that predictions in space could be compared with.")
    assert data.keypoints is not None
    scores = score_keypoints(data.keypoints, keypoints, data.shown, known=data.visible)
    path = request.out / "scores.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(request.out)
    content = {"keypoints_2d": scores, "frames": len(data), "run": run}
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())
    return EvaluationResult(None, scores, (), run, (path,))


def _clear(folder: Path) -> None:
    """Away with what an earlier run wrote beside its scores, and this one may not: it would belong to no scores."""
    if (folder / "scores.json").is_file():
        for name in ("frames.npz", "report.html"):
            (folder / name).unlink(missing_ok=True)


def _check_of_predictions(request: EvaluationRequest) -> None:
    """Nothing is asked of a model, where none is run. Raises ConfigError."""
    if request.limit is not None or request.save_predictions is not None or request.model is not None:
        raise ConfigError("--count, --model and --save-predictions go with --data, where a model is run.")
    if (request.protocol, request.margin, request.passes, request.tta) != (None, None, None, "none"):
        raise ConfigError(
            "--crop, --margin, --passes and --tta say what a model sees: they go with --data, where one is run."
        )


def _check_before_predicting(request: EvaluationRequest, data: EvaluationSet) -> None:
    """What would else be known when all is predicted, which would be lost.

    Raises ConfigError, DataError, ExportError, and OSError where the folder of results cannot be made.
    """
    if not data.in_space and (request.against or request.save_predictions is not None):
        raise ConfigError("--against and --save-predictions need a test set with 'joints'.")
    if request.against:
        truth = sha256_of_points(data.truth)
        for other in request.against:
            read_frames(other, truth)
    request.out.mkdir(parents=True, exist_ok=True)
    target = request.save_predictions
    if target is not None and not target.parent.is_dir():
        raise ExportError(f"Cannot write {target}: there is no folder {target.parent}. Create it first.")


def _read(
    request: EvaluationRequest, data: EvaluationSet, show: Show
) -> tuple[HandPoints, Array | None, dict[str, Any]]:
    path = request.predictions
    assert path is not None
    points = read_predictions(path, len(data), lambda done, total: show("reading", done, total))
    return points, None, {"subject": path.name, "predictions": str(path), "file SHA-256": sha256_of_file(path)}


def _predict(
    request: EvaluationRequest, data: EvaluationSet, engine: Engine, show: Show
) -> tuple[ModelAnswers, dict[str, Any]]:
    from handmesh.model.bundled import BUNDLED_MODEL, bundled_model_path

    views = parse_views(request.tta)
    path = bundled_model_path() if request.model in (None, BUNDLED_MODEL) else Path(str(request.model))
    protocol, hint = _choose_protocol(request.protocol, engine.record, data)
    answers = predict_set(
        data,
        engine,
        protocol,
        margin=request.margin,
        views=views,
        passes=request.passes,
        progress=lambda done, total: show("predicting", done, total),
    )
    facts: dict[str, Any] = {
        "subject": path.stem,
        "model": str(path),
        "model SHA-256": sha256_of_file(path),
        "engine": engine.name,
        "protocol": protocol,
        "passes of the network per image": answers.passes,
        "time per image": f"{1000 * answers.seconds_per_image:.1f} ms",
    }
    if request.margin is not None:
        facts["margin"] = request.margin
    if protocol != PREDICT and views.passes > 1:
        facts["tta"] = f"{views.name}, {views.passes} passes"
    if hint is not None:
        facts["trained on"] = hint
    if answers.moved:
        facts["joints"] = "the model's are moved to where MANO has them, as the set's labels are MANO's"
    if answers.remark:
        facts["remark"] = answers.remark
    return answers, facts


def _choose_protocol(wanted: str | None, record: Mapping[str, Any], data: EvaluationSet) -> tuple[str, str | None]:
    """(the protocol to score under, what is to be said about it): scores are to be had under that of the training."""
    crops: Mapping[str, str] = record.get("training", {}).get("crops", {})
    trained = crops.get("freihand") if data.kind == "FreiHAND" else None
    if trained is None and len(set(crops.values())) == 1:
        trained = next(iter(crops.values()))
    if trained not in PROTOCOL_NAMES:
        return wanted or "frame", None
    if trained == "box" and any(box is None for box in data.boxes):
        hint = (
            "crops around given boxes, which this set has not: no --crop shows it what it knows (predict looks for the "
            "hand first; box-from-test-labels is an oracle)"
        )
        return wanted or "frame", None if wanted in (PREDICT, "box-from-test-labels") else hint
    if wanted is None:
        return trained, f"crops of protocol {trained!r}, which is why it is scored under it"
    if wanted == trained or (trained, wanted) == ("box", "box-from-test-labels"):
        return wanted, None
    return wanted, f"crops of protocol {trained!r}: --crop {trained} shows it what it knows"


def _projected(points: HandPoints, data: EvaluationSet) -> Array | None:
    """(N, 21, 2) px: predicted joints through the set's cameras; None when some lie behind them."""
    assert data.intrinsics is not None
    projected = points.joints @ np.swapaxes(data.intrinsics, 1, 2)
    if (projected[..., 2] <= 1e-3).any():
        return None
    return projected[..., :2] / projected[..., 2:]


def _ground_truth_note(data: EvaluationSet) -> str | None:
    checked = check_zero_predictor(data.truth) if data.kind == "FreiHAND" else None
    if checked is None:
        return None
    good, text = checked
    if good:
        return f"FreiHAND's published one. {text}"
    return f"not FreiHAND's published one, so scores compare with no paper. {text}"


def print_evaluation(result: EvaluationResult, console: Console) -> None:
    """Tables and notes for people."""
    if result.evaluation is not None:
        _print_scores(result, result.evaluation, console)
    if result.keypoints:
        listed = ", ".join(f"{key} {value:.3f}" for key, value in result.keypoints.items())
        console.print(f"In the image, over the box's side: {listed}", highlight=False, soft_wrap=True)
    for comparison in result.comparisons:
        low, high = comparison.interval
        console.print(
            f"{comparison.name}: {comparison.value:.4f} here, {comparison.other:.4f} in {comparison.run}, difference "
            f"{comparison.difference:+.4f} [{low:+.4f}, {high:+.4f}]: {comparison.verdict}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for key in ("protocol", "trained on", "tta", "remark", "joints", "true meshes", "time per image", "ground truth"):
        if key in result.run:
            console.print(f"{key}: {result.run[key]}", markup=False, highlight=False, soft_wrap=True)
    console.print("Written: " + ", ".join(map(str, result.files)), markup=False, highlight=False, soft_wrap=True)


def _print_scores(result: EvaluationResult, evaluation: Evaluation, console: Console) -> None:
    for text in evaluation.warnings:
        console.print(f"[bold yellow]warning:[/] {_plain(text)}", highlight=False, soft_wrap=True)
    table = Table(title=f"{_plain(str(result.run['subject']))}, {len(evaluation.frames):,} frames")
    table.caption = "mm; F-scores at 5 and 15 mm; papers: on FreiHAND's evaluation set"
    table.add_column("", no_wrap=True)
    for title in ("PA-MPJPE", "PA-MPVPE", "F@5", "F@15"):
        table.add_column(title, justify="right", no_wrap=True)

    def row(name: str, values: Any, style: str | None = None) -> None:
        table.add_row(name, *(format_figure(key, values.get(key)) for key in PAPER_KEYS), style=style)

    row("this run", evaluation.paper, "bold")
    ends = ((format_figure(key, end) for end in evaluation.intervals.get(key, ())) for key in PAPER_KEYS)
    table.add_row("  95 % interval", *map("-".join, ends), style="dim")
    row("  rotations only", evaluation.rigid)
    if evaluation.first_iteration is not None:
        row("  first iteration", evaluation.first_iteration)
    row("mean-pose baseline", evaluation.mean_pose_baseline)
    if evaluation.mean_hand:
        row("hand model's mean hand", evaluation.mean_hand)
    for name, published in PUBLISHED.items():
        row(name, dict(zip(PAPER_KEYS, published.figures, strict=True)), "dim")
    console.print(table)
    if evaluation.camera_space:
        listed = ", ".join(f"{key} {value:.3f}" for key, value in evaluation.camera_space.items())
        console.print(f"In the camera's space: {listed}", highlight=False, soft_wrap=True)

    unaligned = {
        key: evaluation.official[key]
        for key in UNALIGNED_KEYS
        if not key.startswith("mesh") or evaluation.curves.vertices is not None  # not the official -1 for "none"
    }
    if evaluation.camera_coordinates:
        listed = ", ".join(f"{key} {value:.4f}{' cm' if 'mean' in key else ''}" for key, value in unaligned.items())
        console.print(f"Unaligned: {listed}", highlight=False, soft_wrap=True)
    else:
        console.print(f"Unaligned figures are not shown: {evaluation.camera_note}.", highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Brackets in it are no markup."""
    return text.replace("[", "\\[")
