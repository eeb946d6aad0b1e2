"""The report of an evaluation: one HTML file with everything inside, which needs no network and follows dark mode.

Plots are SVG drawn here, pictures of frames are JPEG inside the page. What was run, on what, and by which version
stands at its end.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.draw.render import overlay, render_mesh
from handmesh.draw.skeleton import draw_skeleton
from handmesh.errors import DataError, ImageError
from handmesh.evaluate.official_files import HandPoints
from handmesh.evaluate.scores import PAPER_KEYS, PUBLISHED, UNALIGNED_KEYS, Comparison, Evaluation
from handmesh.evaluate.sets import EvaluationSet, hand_lengths, match_hand, palm_angles
from handmesh.files.image import encode_image
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import FINGER_NAMES, JOINT_NAMES, Handedness
from handmesh.system.atomic import write_atomically

Array = NDArray[np.float64]

PICTURE_FRAMES = 24  # worst ones, and as many random ones
_TILE = 144  # px, side of each of a frame's three pictures
_WORST_SHOWN_MM = 20.0  # where the colours of errors end

# Matplotlib's viridis (CC0) at five places: dark is right, bright is wrong, and legible without colour vision.
_ERROR_COLORS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)

_PAPER_TITLES = {
    "pa_mpjpe_mm": "PA-MPJPE <small>mm</small>",
    "pa_mpvpe_mm": "PA-MPVPE <small>mm</small>",
    "f_at_5": "F <small>at 5 mm</small>",
    "f_at_15": "F <small>at 15 mm</small>",
}


@dataclass(frozen=True, eq=False)
class ReportInput:
    """Everything a report is made of."""

    evaluation: Evaluation
    predicted: HandPoints
    data: EvaluationSet
    run: Mapping[str, Any]  # what identifies the run
    keypoints: Array | None = None  # (N, 21, 2) px, where the model itself put the joints in the image
    comparisons: Sequence[Comparison] = ()
    seed: int = 0  # of the random frames


def write_report(path: Path, report: ReportInput) -> None:
    """Write the report. Raises ExportError when the file cannot be written."""
    write_atomically(path, render_report(report).encode())


def render_report(report: ReportInput) -> str:
    """The whole page."""
    evaluation = report.evaluation
    sections = [
        _header(report),
        _warnings_box(evaluation),
        _scores(evaluation),
        _comparison_table(report.comparisons),
        _group_tables(evaluation),
        _official_table(evaluation),
        _plots(report),
        _frame_sections(report),
        _identity(report),
    ]
    title = html.escape(f"handmesh evaluation: {report.run.get('subject', 'predictions')}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


# Tables


def _header(report: ReportInput) -> str:
    subject = html.escape(str(report.run.get("subject", "predictions")))
    facts = [f"{len(report.data):,} frames of {html.escape(str(report.data.path))} ({report.data.kind})"]
    facts += [html.escape(f"{key}: {report.run[key]}") for key in ("protocol", "tta", "remark") if report.run.get(key)]
    return f"<h1>{subject}</h1><p class=lead>{' · '.join(facts)}</p>"


def _warnings_box(evaluation: Evaluation) -> str:
    if not evaluation.warnings:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in evaluation.warnings)
    return f"<div class=warning role=alert><strong>Look at this first</strong><ul>{items}</ul></div>"


def _scores(evaluation: Evaluation) -> str:
    head = "".join(f"<th>{title}</th>" for title in _PAPER_TITLES.values())
    rows = [_score_row("this run", evaluation.paper, evaluation.intervals, strong=True)]
    rows.append(_score_row("this run, aligned by rotations only", evaluation.rigid))
    if evaluation.first_iteration is not None:
        rows.append(_score_row("this run, first iteration alone", evaluation.first_iteration))
    rows.append(_score_row("mean-pose baseline: this set's own mean hand", evaluation.mean_pose_baseline))
    if evaluation.mean_hand:
        rows.append(_score_row("the hand model's mean shape and pose, on this set", evaluation.mean_hand))
    for name, published in PUBLISHED.items():
        told = f"{published.source}; TTA: {published.tta}; crop: {published.crop}"
        rows.append(_score_row(name, dict(zip(PAPER_KEYS, published.figures, strict=True)), dim=True, source=told))
    head += "<th class=source>source</th>"
    note = (
        "Aligned frame by frame as the official tool does (similarity, reflections allowed; joints and vertices each "
        "on their own). Brackets: 95 % bootstrap interval over frames. Published rows are on FreiHAND's evaluation set "
        "and compare with nothing else."
    )
    space = ""
    if evaluation.camera_space:
        listed = ", ".join(f"{key} {value:.3f}" for key, value in evaluation.camera_space.items())
        space = f"<p class=note>In the camera's space, nothing aligned: {listed}.</p>"
    return f"<h2>Scores</h2>{_table(head, rows)}<p class=note>{note}</p>{space}"


def _score_row(
    name: str,
    values: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    *,
    strong: bool = False,
    dim: bool = False,
    source: str = "",
) -> str:
    cells = []
    for key in PAPER_KEYS:
        text = format_figure(key, values.get(key))
        if intervals and key in intervals:
            low, high = (format_figure(key, end) for end in intervals[key])
            text += f" <small>[{low}, {high}]</small>"
        cells.append(f"<td>{text}</td>")
    cells.append(f"<td class=source>{html.escape(source)}</td>")
    kind = " class=strong" if strong else " class=dim" if dim else ""
    return f"<tr{kind}><th scope=row>{html.escape(name)}</th>{''.join(cells)}</tr>"


def format_figure(key: str, value: float | None) -> str:
    """A figure as papers print it; a dash for one that does not exist."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if key.endswith("_mm") else f"{value:.3f}"


def _table(head: str, rows: Iterable[str]) -> str:
    body = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>"


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    rows = []
    for row in comparisons:
        low, high = (format_figure(row.name, end) for end in row.interval)
        value, other = (format_figure(row.name, figure) for figure in (row.value, row.other))
        rows.append(
            f"<tr><th scope=row>{html.escape(row.run)}: {_PAPER_TITLES[row.name]}</th><td>{value}</td><td>{other}</td>"
            f"<td>{row.difference:+.3f} <small>[{low}, {high}]</small></td><td>{row.verdict}</td></tr>"
        )
    head = "<th>this run</th><th>the other</th><th>difference</th><th></th>"
    return f"<h2>Against other runs</h2>{_table(head, rows)}<p class=note>Paired over frames, 95 % interval.</p>"


def _group_tables(evaluation: Evaluation) -> str:
    """Errors by view and by joint."""
    parts = []
    for title, groups in (("view", evaluation.views), ("joint", evaluation.joints)):
        rows = [
            f"<tr><th scope=row>{name}</th><td>{of.mean_mm:.2f} <small>[{of.interval[0]:.2f}, {of.interval[1]:.2f}]"
            f"</small></td><td>{of.frames:,}</td></tr>"
            for name, of in groups.items()
        ]
        if rows:
            table = _table("<th>PA, <small>mm</small></th><th>frames</th>", rows)
            parts.append(f"<details><summary>Error by {title}</summary>{table}</details>")
    return "".join(parts)


def _official_table(evaluation: Evaluation) -> str:
    keys = [key for key in evaluation.official if evaluation.camera_coordinates or key not in UNALIGNED_KEYS]
    rows = []
    for key in keys:
        unit = "cm" if "mean3d" in key else ""
        value = evaluation.official[key]
        shown = f"{value:.6f}" if math.isfinite(value) else "–"
        rows.append(f"<tr><th scope=row><code>{key}</code></th><td>{shown}</td><td>{unit}</td></tr>")
    hidden = ""
    if not evaluation.camera_coordinates:
        hidden = f"Unaligned figures are left out: {evaluation.camera_note}. "
    keypoints = ""
    if evaluation.keypoints:
        listed = ", ".join(f"{key} {value:.4f}" for key, value in evaluation.keypoints.items())
        keypoints = f"<p class=note>In the image, over the longer side of the true keypoints' box: {listed}.</p>"
    relative = f"Root-relative MPJPE (wrists on each other): {evaluation.root_relative_mpjpe_mm:.2f} mm."
    return (
        "<details><summary>The official figures</summary>"
        f"{_table('<th></th><th></th>', rows)}</details><p class=note>{html.escape(hidden)}{relative}</p>{keypoints}"
    )


def _identity(report: ReportInput) -> str:
    evaluation = report.evaluation
    facts = {
        **report.run,
        "true hands, SHA-256": evaluation.truth_sha256,
        "predictions, SHA-256": evaluation.predictions_sha256,
    }
    rows = "".join(
        f"<tr><th scope=row>{html.escape(key)}</th><td>{html.escape(str(v))}</td></tr>" for key, v in facts.items()
    )
    return f"<h2>This run</h2><div class=scroll><table class=facts><tbody>{rows}</tbody></table></div>"


# Plots


def _plots(report: ReportInput) -> str:
    evaluation = report.evaluation
    frames, curves = evaluation.frames, evaluation.curves
    millimetres = 1000 * metrics.PCK_THRESHOLDS
    lines = [("joints", curves.joints_aligned)]
    if curves.vertices_aligned is not None:
        lines.append(("vertices", curves.vertices_aligned))
    if evaluation.camera_coordinates:
        lines.append(("joints, unaligned", curves.joints))
        if curves.vertices is not None:
            lines.append(("vertices, unaligned", curves.vertices))
    name, error = _frame_error(evaluation)
    figures = [
        _figure("Share of points within a distance (PCK)", _line_plot(millimetres, lines, "distance, mm")),
        _figure("Error per joint, PA, mm", _joint_bars(1000 * frames.joint_errors_aligned.mean(axis=0))),
        _figure("Error per finger, PA, mm", _finger_bars(1000 * frames.joint_errors_aligned)),
        _figure(f"Frames by {name}, mm", _histogram(error)),
    ]
    for title, unit, values in _conditions(report):
        figures.append(_figure(f"{name} against {title}", _binned(values, error, unit)))
    hand_map = _hand_map(evaluation, report.data)
    if hand_map:
        figures.append(hand_map)
    return f"<h2>Where the error is</h2><div class=grid>{''.join(figures)}</div>"


def _frame_error(evaluation: Evaluation) -> tuple[str, Array]:
    """The error that frames are sorted by: of the vertices, or of the joints where there are no meshes."""
    if np.isfinite(evaluation.frames.vertex_error_aligned).all():
        return "PA-MPVPE", 1000 * evaluation.frames.vertex_error_aligned
    return "PA-MPJPE", 1000 * evaluation.frames.joint_errors_aligned.mean(axis=1)


def _conditions(report: ReportInput) -> list[tuple[str, str, Array]]:
    """(what, unit, (N,) values) for everything about a frame that is known and may explain its error."""
    data, joints = report.data, report.data.truth.joints
    found = [("the view", "degrees: 0 palm, 90 edge, 180 back of the hand", palm_angles(joints, data.handedness))]
    if data.shown is not None:
        found.append(("occlusion", "% of the joints hidden", 100 * (1 - data.shown.mean(axis=1))))
    if data.keypoints is not None:
        found.append(
            ("size in the image", "px, longer side of the keypoints' box", np.ptp(data.keypoints, axis=1).max(1))
        )
    found.append(("the size of the hand", "mm, wrist to middle fingertip", 1000 * hand_lengths(joints)))
    for key, unit in (("ita_degrees", "degrees ITA: dark to light skin"),):
        if all(isinstance(facts.get(key), int | float) for facts in data.facts):
            found.append(("skin tone", unit, np.array([float(facts[key]) for facts in data.facts])))
    return [(title, unit, values) for title, unit, values in found if np.ptp(values) > 1e-9]


def _figure(title: str, picture: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}</figure>"


_WIDTH, _HEIGHT = 380, 230  # of a plot, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 8, 36


class _Axes:
    """Places of values in a plot, and its frame."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y
        self.parts: list[str] = []

    def px(self, value: float) -> float:
        share = (value - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def add(self, text: str) -> None:
        self.parts.append(text)

    def text(self, x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> None:
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>')

    def line(self, x: tuple[float, float], y: tuple[float, float], kind: str) -> None:
        self.add(f'<line x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}" class="{kind}" />')

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> None:
        bottom = _HEIGHT - _BOTTOM
        for tick in y_ticks:
            y = self.py(tick)
            self.line((_LEFT, _WIDTH - _RIGHT), (y, y), "grid-line")
            self.text(_LEFT - 5, y + 3.5, f"{tick:g}", "end")
        for tick in x_ticks:
            self.text(self.px(tick), bottom + 13, f"{tick:g}")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label)

    def svg(self, label: str) -> str:
        body = "".join(self.parts)
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">{body}</svg>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range."""
    if not high > low:
        high = low + 1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * tick, 10) for tick in range(first, last + 1)]


def _line_plot(x: Array, lines: Sequence[tuple[str, Array]], x_label: str) -> str:
    axes = _Axes((float(x[0]), float(x[-1])), (0.0, 1.0))
    axes.grid(_ticks(x[0], x[-1]), (0, 0.25, 0.5, 0.75, 1), x_label)
    for index, (_, y) in enumerate(lines):
        points = " ".join(f"{axes.px(a):.1f},{axes.py(b):.1f}" for a, b in zip(x, y, strict=True))
        axes.add(f'<polyline points="{points}" class="line c{index + 1}" />')
    areas = [f"{name}, area {metrics.auc(y, x):.3f}" for name, y in lines]
    key = "".join(f'<span><i class="c{index + 1}"></i>{text}</span>' for index, text in enumerate(areas))
    return f"{axes.svg('PCK curves: ' + '; '.join(areas))}<div class=legend>{key}</div>"


def _joint_bars(errors: Array) -> str:
    ticks = _ticks(0, float(errors.max()))
    axes = _Axes((-0.7, len(errors) - 0.3), (0.0, ticks[-1]))
    axes.grid((), ticks, "")
    width = (axes.px(1) - axes.px(0)) * 0.72
    for joint, error in enumerate(errors):
        x, y = axes.px(joint) - width / 2, axes.py(float(error))
        finger = (joint - 1) // 4
        kind = "bar c0" if joint == 0 else f"bar f{finger}"
        title = f"<title>{JOINT_NAMES[joint]}: {error:.2f} mm</title>"
        axes.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_HEIGHT - _BOTTOM - y:.1f}" class="{kind}">'
            f"{title}</rect>"
        )
    for finger, name in enumerate(FINGER_NAMES):
        axes.text(axes.px(2.5 + 4 * finger), _HEIGHT - _BOTTOM + 13, name)
    axes.text(axes.px(0) + 2, _HEIGHT - _BOTTOM + 26, "wrist")
    axes.text(axes.px(10.5), _HEIGHT - 6, "base to tip", kind="dim")
    return axes.svg(
        "Mean error per joint: " + ", ".join(f"{n} {e:.1f}" for n, e in zip(JOINT_NAMES, errors, strict=True))
    )


def _finger_bars(errors: Array) -> str:
    """Median, middle half and 95th percentile of each finger's mean error over the frames."""
    groups = {"wrist": errors[:, 0]} | {
        name: errors[:, 1 + 4 * finger : 5 + 4 * finger].mean(axis=1) for finger, name in enumerate(FINGER_NAMES)
    }
    return _boxes(list(groups.values()), list(groups), "line: median, box: middle half, whisker: 95 %")


def _binned(values: Array, errors: Array, unit: str) -> str:
    """Errors in up to eight bins of about as many frames each."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 9 if len(values) >= 80 else 5)))
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    groups, labels = [], []
    for index in range(len(edges) - 1):
        chosen = errors[bins == index]
        if len(chosen):
            groups.append(chosen)
            labels.append(str(round(float(values[bins == index].mean()))))
    return _boxes(groups, labels, unit)


def _boxes(groups: Sequence[Array], labels: Sequence[str], x_label: str) -> str:
    quantiles = [np.quantile(group, [0.25, 0.5, 0.75, 0.95]) for group in groups]
    ticks = _ticks(0, max(float(q[3]) for q in quantiles))
    axes = _Axes((-0.6, len(groups) - 0.4), (0.0, ticks[-1]))
    axes.grid((), ticks, x_label)
    half = (axes.px(1) - axes.px(0)) * 0.3
    for index, (q, label, group) in enumerate(zip(quantiles, labels, groups, strict=True)):
        x = axes.px(index)
        low, middle, high, most = (axes.py(float(value)) for value in q)
        text = f"median {q[1]:.2f}, middle half {q[0]:.2f} to {q[2]:.2f}, 95 % {q[3]:.2f} ({len(group)} frames)"
        axes.add(f"<g><title>{label}: {text}</title>")
        axes.line((x, x), (high, most), "whisker")
        size = f'width="{2 * half:.1f}" height="{max(low - high, 0.5):.1f}"'
        axes.add(f'<rect x="{x - half:.1f}" y="{high:.1f}" {size} class=box />')
        axes.line((x - half, x + half), (middle, middle), "median")
        axes.add("</g>")
        axes.text(x, _HEIGHT - _BOTTOM + 13, label)
    return axes.svg(x_label + ": " + ", ".join(f"{n} {q[1]:.1f}" for n, q in zip(labels, quantiles, strict=True)))


def _histogram(errors: Array) -> str:
    top = float(np.quantile(errors, 0.995)) * 1.05 + 1e-9
    counts, edges = np.histogram(np.minimum(errors, top), bins=36, range=(0, top))
    ticks = _ticks(0, float(counts.max()), 4)
    axes = _Axes((0.0, top), (0.0, ticks[-1]))
    mean, median = float(errors.mean()), float(np.median(errors))
    axes.grid([tick for tick in _ticks(0, top) if tick <= top], ticks, f"mean {mean:.2f}, median {median:.2f} mm")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = axes.px(float(left)), axes.py(float(count))
        width = axes.px(float(right)) - x - 1
        axes.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_HEIGHT - _BOTTOM - y:.1f}" class="bar c1">'
            f"<title>{left:.1f} to {right:.1f} mm: {count} frames</title></rect>"
        )
    x = axes.px(min(mean, top))
    axes.line((x, x), (_TOP, _HEIGHT - _BOTTOM), "median")
    return axes.svg(f"Histogram of errors, mean {mean:.2f} mm, median {median:.2f} mm")


def _error_colors(errors_mm: Array) -> Array:
    """(N,) mm -> (N, 3) RGB."""
    places = np.clip(errors_mm / _WORST_SHOWN_MM, 0, 1) * (len(_ERROR_COLORS) - 1)
    return np.column_stack([np.interp(places, range(len(_ERROR_COLORS)), channel) for channel in _ERROR_COLORS.T])


def _hand_map(evaluation: Evaluation, data: EvaluationSet) -> str:
    """The hand from both sides, coloured by each vertex's mean error."""
    hand = match_hand(data.truth.vertices)
    if evaluation.vertex_errors_aligned is None or hand is None:
        return ""
    errors = 1000 * evaluation.vertex_errors_aligned
    sides = []
    # Fingers up, once seen from the palm's side (the palm faces -y), once from the back.
    for axes in (np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])):
        turned = hand.v_template @ axes.T
        middle = (turned.max(axis=0) + turned.min(axis=0)) / 2
        points = (turned - middle) * (210 / np.ptp(turned, axis=0)[:2].max()) + (110, 115, 0)
        normals = vertex_normals(turned, hand.faces)
        sides.append(render_mesh(points, hand.faces, (220, 230), normals=normals, color=_error_colors(errors)))
    picture = _data_url(np.hstack(sides), "png")
    text = f"Mean error per vertex, PA, {errors.min():.1f} to {errors.max():.1f} mm"
    return _figure(text, f'<img class=map src="{picture}" alt="{text}">{_color_key()}')


def _color_key() -> str:
    stops = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in _ERROR_COLORS)
    return (
        f'<div class=key><span>0</span><span class=ramp style="background: linear-gradient(90deg, {stops})"></span>'
        f"<span>{_WORST_SHOWN_MM:g} mm or more</span></div>"
    )


# Frames


def _frame_sections(report: ReportInput) -> str:
    name, errors = _frame_error(report.evaluation)
    worst = np.argsort(-errors, kind="stable")[:PICTURE_FRAMES]
    rng = np.random.default_rng(report.seed)
    chosen = np.sort(rng.choice(len(errors), min(PICTURE_FRAMES, len(errors)), replace=False))
    painter = _Painter(report)
    note = f"{painter.legend} {_color_key()}"
    parts = []
    for title, indices in (("Worst frames", worst), ("Random frames", chosen)):
        tiles = "".join(_tile(painter, int(index), name, float(errors[index])) for index in indices)
        parts.append(f"<h2>{title}</h2><div class=note>{note}</div><div class=tiles>{tiles}</div>")
    return "".join(parts)


def _tile(painter: _Painter, index: int, name: str, error: float) -> str:
    picture = _data_url(painter.draw(index), "jpg")
    text = f"frame {index}: {name} {error:.1f} mm"
    return f'<figure><img loading=lazy src="{picture}" alt="{text}"><figcaption>{text}</figcaption></figure>'


class _Painter:
    """Three pictures of a frame: the photograph, the prediction on it, and the prediction moved onto the truth."""

    def __init__(self, report: ReportInput) -> None:
        self.data, self.predicted, self.evaluation = report.data, report.predicted, report.evaluation
        self.keypoints = report.keypoints
        vertices = report.predicted.vertices
        # Whose triangles the meshes are drawn with.
        self.true_hand, self.hand = match_hand(report.data.truth.vertices), match_hand(vertices)
        self.comparable = (
            self.hand is not None
            and vertices is not None
            and report.data.truth.vertices is not None
            and report.data.truth.vertices.shape == vertices.shape
            and report.evaluation.vertex_errors_aligned is not None
        )
        seen, camera = self.data.keypoints is not None, self.data.intrinsics is not None
        self.placed = (self.keypoints is not None and seen) or (self.evaluation.camera_coordinates and camera)
        self.on_photograph = self.data.has_images() and seen and camera
        why = "its place in the photograph is not known" if self.data.has_images() else "its photograph is not there"
        first = "The photograph" if self.on_photograph else f"The true hand ({why})"
        second = "the prediction where it was placed" if self.placed else "the true joints"
        third = (
            "the prediction moved onto the true hand (similarity), coloured by the error of each vertex:"
            if self.comparable
            else "the predicted joints moved onto the true hand (similarity). Colours of errors:"
        )
        self.legend = f"{first}; {second}; {third}"

    def draw(self, index: int) -> NDArray[np.uint8]:
        """(TILE, 3 * TILE, 3) RGB."""
        truth = self.data.truth.joints[index]
        predicted = self.predicted.joints[index]
        project, image = self._view(index)
        pictures = [image, image, image]
        if not self.on_photograph:
            pictures[0] = self._drawn(image, self.data.truth, index, lambda points: points, project)
        if self.placed:
            if self.keypoints is not None and not self.evaluation.camera_coordinates:
                pictures[1] = draw_skeleton(image, self._in_tile(index, self.keypoints[index]))
            else:
                pictures[1] = self._drawn(image, self.predicted, index, lambda points: points, project)
        else:
            pictures[1] = draw_skeleton(image, project(truth)[:, :2])
        move = metrics.find_rigid_similarity(truth, predicted).apply
        colors = None
        if self.comparable:
            true_meshes, meshes = self.data.truth.vertices, self.predicted.vertices
            assert true_meshes is not None
            assert meshes is not None
            true_mesh, mesh = true_meshes[index], meshes[index]
            move = metrics.find_rigid_similarity(true_mesh, mesh).apply
            colors = _error_colors(1000 * metrics.point_errors(true_mesh, move(mesh)))
        pictures[2] = self._drawn(image, self.predicted, index, move, project, colors)
        return np.hstack(pictures)

    def _drawn(
        self,
        image: NDArray[np.uint8],
        hands: HandPoints,
        index: int,
        move: Any,
        project: Any,
        colors: Array | None = None,
    ) -> NDArray[np.uint8]:
        """A mesh where its faces are known, else a skeleton."""
        hand = self.true_hand if hands is self.data.truth else self.hand
        if hand is None or hands.vertices is None:
            return draw_skeleton(image, project(move(hands.joints[index]))[:, :2])
        left = self.data.handedness[index] == Handedness.LEFT
        faces = hand.faces[:, ::-1] if left else hand.faces
        points = move(hands.vertices[index])
        if colors is None:
            return overlay(image, project(points), faces, normals=vertex_normals(points, faces))
        return overlay(image, project(points), faces, normals=vertex_normals(points, faces), color=colors, opacity=1.0)

    def _square(self, index: int) -> tuple[Array, float]:
        """Middle and side in pixels of the part of the image that is shown."""
        assert self.data.keypoints is not None
        low, high = self.data.keypoints[index].min(axis=0), self.data.keypoints[index].max(axis=0)
        return (low + high) / 2, 1.5 * float((high - low).max())

    def _in_tile(self, index: int, points: Array) -> Array:
        middle, side = self._square(index)
        return (points - middle) * (_TILE / side) + (_TILE - 1) / 2

    def _view(self, index: int) -> tuple[Any, NDArray[np.uint8]]:
        """How (N, 3) points of the cam frame come to lie in the picture, and the picture."""
        camera = self.data.camera(index)
        empty = np.full((_TILE, _TILE, 3), 58, np.uint8)
        if camera is None or self.data.keypoints is None:
            joints = self.data.truth.joints[index]
            low, high = joints.min(axis=0), joints.max(axis=0)
            scale = _TILE / (1.5 * float((high - low)[:2].max()))

            def flat(points: Array) -> Array:
                return (points - (low + high) / 2) * scale + ((_TILE - 1) / 2, (_TILE - 1) / 2, 0)

            return flat, empty

        def pinhole(points: Array) -> Array:
            pixels = self._in_tile(index, camera.project(points))
            return np.column_stack([pixels, points[:, 2]])

        if not self.on_photograph:
            return pinhole, empty
        from handmesh.geometry.crop import CropTransform

        middle, side = self._square(index)
        try:
            image = self.data.sample(index).image
        except (ImageError, DataError):
            return pinhole, empty
        return pinhole, CropTransform((float(middle[0]), float(middle[1])), side).warp(image, _TILE)


def _data_url(image: NDArray[np.uint8], kind: str) -> str:
    encoded = encode_image(np.ascontiguousarray(image), kind, quality=84)
    return f"data:image/{'jpeg' if kind == 'jpg' else kind};base64,{base64.b64encode(encoded).decode()}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --dim: #636c76; --paper: #fdfdfc; --card: #ffffff; --line: #dde1e5;
  --c0: #7b858f; --c1: #2f6fd0; --c2: #d2691e; --c3: #7aa6e6; --c4: #e8ab7c; --warn: #fff4d6; --warn-line: #d9a400;
  --f0: #d55e00; --f1: #c79000; --f2: #009e73; --f3: #2f86c8; --f4: #b5629a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #98a2ad; --paper: #14171a; --card: #1b1f24;
  --line: #333a42; --c0: #8a949e; --c1: #6ba3f5; --c2: #f0954f; --c3: #3f6fb0; --c4: #a8683a; --warn: #3a2f10;
  --warn-line: #d9a400; --f0: #f07f36; --f1: #e6b32e; --f2: #35c79a; --f3: #63b0ee; --f4: #dc8cc4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.5rem; margin: 0.3em 0 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2em 0 0.5em; }
.lead, .note { color: var(--dim); overflow-wrap: anywhere; } .note { font-size: 0.88rem; max-width: 78ch; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: 10px 14px; border-radius: 4px; }
.warning ul { margin: 0.3em 0 0; padding-left: 1.2em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th[scope=row], .facts td { text-align: left; font-weight: normal; }
th[scope=row] { white-space: normal; min-width: 8.5em; }
thead th { font-weight: 600; }
.facts td { white-space: normal; overflow-wrap: anywhere; } .strong > * { font-weight: 650; }
td.source, th.source { text-align: left; white-space: normal; min-width: 15em; }
  .dim > * { color: var(--dim); }
small { display: block; font-weight: normal; color: var(--dim); } summary { cursor: pointer; margin: 0.8em 0; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 8px; }
figcaption { font-size: 0.85rem; color: var(--dim); padding: 0 2px 4px; }
.tiles figure img { width: 100%; display: block; border-radius: 3px; } .tiles figcaption { padding: 4px 2px 0; }
svg, .map { width: 100%; height: auto; display: block; } svg text { font: 10.5px system-ui, sans-serif;
  fill: var(--dim); }
.grid-line { stroke: var(--line); } .line { fill: none; stroke-width: 2; } .median { stroke: var(--ink);
  stroke-width: 2; }
.whisker { stroke: var(--c1); } .box { fill: var(--c1); opacity: 0.55; }
.line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); } .line.c3 { stroke: var(--c3); stroke-dasharray: 5 3; }
.line.c4 { stroke: var(--c4); stroke-dasharray: 5 3; } .bar.c0 { fill: var(--c0); } .bar.c1 { fill: var(--c1); }
.bar.f0 { fill: var(--f0); } .bar.f1 { fill: var(--f1); } .bar.f2 { fill: var(--f2); } .bar.f3 { fill: var(--f3); }
.bar.f4 { fill: var(--f4); } .key { display: flex; gap: 8px; align-items: center; font-size: 0.8rem;
  color: var(--dim); }
.tiles { margin-top: 10px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 0.78rem; color: var(--dim); padding: 2px 4px; }
.legend i { display: inline-block; width: 18px; margin-right: 5px; vertical-align: middle; border-top: 2px solid; }
i.c1 { border-color: var(--c1); } i.c2 { border-color: var(--c2); }
i.c3 { border-color: var(--c3); border-style: dashed; } i.c4 { border-color: var(--c4); border-style: dashed; }
 .ramp { width: 120px; height: 9px; border-radius: 3px; display: inline-block; }
"""
