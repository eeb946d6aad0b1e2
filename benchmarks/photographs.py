"""2D error and sides on photographs whose keypoints are known:

    python benchmarks/photographs.py LABELS.jsonl [--model M] [--covered] [--changed]

Lines of LABELS need "image", "handedness" and "keypoints" (21 x [x, y], pixels, FreiHAND's order); "source" splits the
tables, and so do the size of the hand's box, the view and the tone of the skin. Keypoints by MediaPipe are compared as
they are and (`--keypoints-by mediapipe`, the default) also with the tips where its definition and ours agree
(`handmesh.label.MEDIAPIPE`). Errors are mean distances over the longer side of the keypoints' box: mean, median, share
of hands under 0.1; with the box and the side given, with the box alone, and with nothing but the photograph. The
constant hand is the labels' own mean layout in their boxes, the side known. PA errors are not to be had: nobody
measured these hands.

View and palm are those of the hand fitted to the keypoints. View: which of the hand's axes is nearest to the line of
sight; "along" is that of a flat hand's fingers. Tone: the individual typology angle (Chardon, Cretois, Hourseau 1991),
degrees, of the median colour inside the palm's outline, split where its authors split skin. It is the tone in the
picture, under its light, where one person's hands go from one end to the other: no measurement of anybody's skin.

--covered: pieces of other pictures over a share of the mesh. --changed: how far the answer is from itself when the
photograph is mirrored, turned or rescaled (`consistency.py`), box and side given.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from consistency import CHANGES, Change, compare
from numpy.typing import NDArray
from real_photos import mean_layout_error

from handmesh.files.image import read_image
from handmesh.hand import FINGER_NAMES, JOINT_NAMES, HandArrays, Handedness
from handmesh.hand.arrays import both_sides
from handmesh.hand.fit import FitStart, HandFit, fit_hand
from handmesh.label import KeypointDefinition, keypoint_definition
from handmesh.predict import HandPrediction, Predictor, load_predictor
from handmesh.synth import Backgrounds

Image = NDArray[np.uint8]
Points = NDArray[np.float64]

TONES = (-90, -30, 10, 28, 41, 55, 90)  # ITA, degrees, dark to light
COVERED = (0.1, 0.25, 0.4)
_PALM = ("wrist", "thumb_cmc", "index_mcp", "middle_mcp", "ring_mcp", "pinky_mcp")


@dataclass
class Measured:
    """One hand."""

    path: Path
    truth: Points  # (21, 2) px, as the labels have it
    size: float  # px, longer side of its box
    handedness: str
    errors: Points  # (21,) over the size, side and box given
    ours: Points  # ... with the keypoints brought to our definition
    joint_scores: NDArray[np.float32] | None
    side_is_right: bool  # with the box alone
    lost: float  # error in the whole photograph; not found: as far off as the hand is large
    view: str
    tone: float  # ITA, degrees
    hand: HandPrediction

    @property
    def box(self) -> tuple[float, ...]:
        return (*self.truth.min(axis=0), *self.truth.max(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--source", nargs="*", help="of these sources alone")
    parser.add_argument("--count", type=int, default=300, help="hands of each source at most")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--keypoints-by", choices=("handmesh", "freihand", "mediapipe"), default="mediapipe")
    parser.add_argument("--covered", action="store_true")
    parser.add_argument("--changed", action="store_true")
    parser.add_argument("--worst", type=int, default=0, help="name so many of the worst")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, passes=arguments.passes, threads=1)
    definition = keypoint_definition(arguments.keypoints_by, predictor.engine.hand)
    models = both_sides(predictor.engine.hand)
    print(f"{'source':24} {'hands':>5}  box and side: mean median <0.1 (ours)   sides   whole: mean median")
    hands: list[Measured] = []
    for source, rows in spread_rows(arguments.labels, arguments.count, arguments.source).items():
        found = [measure(predictor, arguments.labels.parent / row["image"], row, definition, models) for row in rows]
        show(source, found)
        hands += found
    show("all", hands)
    print(f"{'constant hand':24} {len(hands):5}   {mean_layout_error([as_right(hand) for hand in hands]):.3f}")
    for low, high in itertools.pairwise((0, 60, 80, 110, 150, 10_000)):
        name = f"box from {low} px" if high == 10_000 else f"box {low} to {high} px"
        show(name, [hand for hand in hands if low <= hand.size < high])
    for view in ("palm", "back", "side", "along"):
        show(f"view: {view}", [hand for hand in hands if hand.view == view])
    for low, high in itertools.pairwise(TONES):
        show(f"tone: {low} to {high}", [hand for hand in hands if low <= hand.tone < high])
    per_joint = np.mean([hand.ours for hand in hands], axis=0)
    fingers = {
        name: np.mean([per_joint[joint] for joint, full in enumerate(JOINT_NAMES) if full.startswith(name)])
        for name in ("wrist", *FINGER_NAMES)
    }
    print("by finger (ours): " + ", ".join(f"{name} {value:.3f}" for name, value in fingers.items()))
    print(f"tips {np.mean([per_joint[j] for j, name in enumerate(JOINT_NAMES) if name.endswith('tip')]):.3f}")
    scored = [hand for hand in hands if hand.joint_scores is not None]
    if scored:
        scores = np.concatenate([hand.joint_scores for hand in scored])
        good = np.concatenate([hand.ours for hand in scored]) < 0.06
        print("joint scores: share found by score")
        for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.01)):
            chosen = (scores >= low) & (scores < high)
            if chosen.any():
                print(f"  {low:.1f} to {min(high, 1):.1f}: {good[chosen].mean():.2f} of {chosen.sum()}")
    if arguments.covered:
        show_covered(predictor, hands)
    if arguments.changed:
        show_changed(predictor, hands)
    for hand in sorted(hands, key=lambda hand: -hand.errors.mean())[: arguments.worst]:
        print(f"{hand.errors.mean():.3f} {hand.path}")


def spread_rows(labels: Path, count: int, sources: list[str] | None = None) -> dict[str, list[dict]]:
    """Lines by source, at most `count` of each, spread over the file."""
    by_source: dict[str, list[dict]] = defaultdict(list)
    with open(labels, encoding="utf-8") as file:
        for row in map(json.loads, file):
            by_source[str(row.get("source", "all"))].append(row)
    return {
        source: [rows[index] for index in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
        for source in sources or sorted(by_source)
        for rows in (by_source[source],)
    }


def measure(
    predictor: Predictor,
    path: Path,
    row: dict,
    definition: KeypointDefinition,
    models: dict[Handedness, HandArrays],
) -> Measured:
    image, truth = read_image(path), np.array(row["keypoints"], float)[:, :2]
    low, high = truth.min(axis=0), truth.max(axis=0)
    size, box = float((high - low).max()), (*low, *high)

    def errors(hand: HandPrediction, points: Points = truth) -> Points:
        return np.linalg.norm(hand.keypoints_image() - points, axis=1) / size

    known = predictor(image, boxes=[box], handedness=row["handedness"])[0]
    free = predictor(image, boxes=[box])[0]
    whole = predictor(image, handedness=row["handedness"], min_score=0, max_hands=1)
    points = definition.apply(truth)
    start = FitStart(known.pose, known.betas)
    fit = fit_hand(points, definition.weights, start=start, hand=models[Handedness(row["handedness"])])
    return Measured(
        path=path,
        truth=truth,
        size=size,
        handedness=row["handedness"],
        errors=errors(known),
        ours=errors(known, points),
        joint_scores=known.joint_scores,
        side_is_right=free.handedness == row["handedness"],
        lost=float(errors(whole[0]).mean()) if whole else 1.0,
        view=view_of(fit),
        tone=tone_of(image, fit),
        hand=known,
    )


def as_right(one: Measured) -> dict[str, object]:
    """The label of a right hand; a left one's is mirrored."""
    x, y = one.truth.T
    return {"keypoints": np.column_stack([-x if one.handedness == "left" else x, y, np.ones(len(x))])}


def view_of(fit: HandFit) -> str:
    """At rest fingers lie along x and the back looks to y."""
    along, back, side = fit.pose[0][2]  # towards -z is towards the camera
    if abs(back) >= max(abs(along), abs(side)):
        return "back" if back < 0 else "palm"
    return "along" if abs(along) > abs(side) else "side"


def tone_of(image: Image, fit: HandFit) -> float:
    """ITA of the palm's outline as it is seen, drawn in by a fifth; not-a-number where nothing is inside."""
    outline = fit.keypoints[[JOINT_NAMES.index(name) for name in _PALM]]
    outline = outline.mean(axis=0) + 0.8 * (outline - outline.mean(axis=0))
    mask = cv2.fillConvexPoly(np.zeros(image.shape[:2], np.uint8), cv2.convexHull(outline.round().astype(np.int32)), 1)
    if not mask.any():
        return float("nan")
    lab = np.median(cv2.cvtColor(image[mask > 0][None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0], axis=0)
    return float(np.degrees(np.arctan2(lab[0] - 50, max(float(lab[2]), 1e-6))))


def show(source: str, found: list[Measured]) -> None:
    if not found:
        return
    raw, ours = (
        np.array([values.mean() for values in column])
        for column in ([h.errors for h in found], [h.ours for h in found])
    )
    sides, whole = np.array([h.side_is_right for h in found]), np.array([h.lost for h in found])
    print(
        f"{source:24} {len(found):5}   {raw.mean():.3f} {np.median(raw):.3f} {(raw < 0.1).mean():.2f} "
        f"({ours.mean():.3f} {np.median(ours):.3f})   {sides.mean():.3f}   {whole.mean():.3f} {np.median(whole):.3f}"
    )


def show_covered(predictor: Predictor, hands: list[Measured]) -> None:
    """Error and score with a share of each mesh, as it was found before, under one ellipse of another picture."""
    backgrounds = Backgrounds(7, count=64)
    print("covered: error mean median <0.1, score; of joints that are covered, of the others")
    for share in COVERED:
        rows, under, others = [], [], []
        for index, one in enumerate(hands):
            rng = np.random.default_rng((7, index))
            covered, mask = cover(rng, read_image(one.path), silhouette(one), share, backgrounds)
            (hand,) = predictor(covered, boxes=[one.box], handedness=one.handedness)
            errors = np.linalg.norm(hand.keypoints_image() - one.truth, axis=1) / one.size
            x, y = np.clip(one.truth.round().astype(int), 0, np.array(mask.shape[::-1]) - 1).T
            rows.append((errors.mean(), hand.score))
            under += errors[mask[y, x] > 0].tolist()
            others += errors[mask[y, x] == 0].tolist()
        errors, scores = np.array(rows).T
        print(
            f"  {share:.2f}   {errors.mean():.3f} {np.median(errors):.3f} {(errors < 0.1).mean():.2f}   "
            f"{scores.mean():.2f}   {np.mean(under):.3f} {np.mean(others):.3f}"
        )


def silhouette(one: Measured) -> NDArray[np.uint8]:
    """(H, W) of the mesh, 1 inside."""
    mask = np.zeros(cv2.imread(str(one.path)).shape[:2], np.uint8)
    triangles = one.hand.vertices_image()[:, :2][one.hand.faces].round().astype(np.int32)
    for triangle in triangles:
        cv2.fillConvexPoly(mask, triangle, 1)
    return mask


def cover(
    rng: np.random.Generator, image: Image, hand: NDArray[np.uint8], share: float, backgrounds: Backgrounds
) -> tuple[Image, NDArray[np.uint8]]:
    """-> the picture and (H, W) where it was changed: an ellipse about a point of the hand, as large as need be."""
    rows, columns = np.nonzero(hand)
    place = int(rng.integers(len(rows)))
    middle, angle, ratio = (int(columns[place]), int(rows[place])), rng.uniform(0, 180), rng.uniform(0.5, 1)
    mask = np.zeros_like(hand)
    for radius in range(2, 2 * max(hand.shape)):
        mask = cv2.ellipse(np.zeros_like(hand), middle, (radius, round(radius * ratio)), angle, 0, 360, 1, -1)
        if (mask & hand).sum() >= share * len(rows):
            break
    other = cv2.resize(backgrounds.sample(rng, 224), image.shape[1::-1])
    return np.where(mask[..., None] > 0, other, image), mask


def show_changed(predictor: Predictor, hands: list[Measured]) -> None:
    """Between the answers to a photograph and to a changed one, brought back."""

    def answer(image: Image, side: str, box: Points | None) -> tuple[Points, Points]:
        assert box is not None
        (hand,) = predictor(image, handedness=side, boxes=[(*box.min(axis=0), *box.max(axis=0))])
        return hand.joints.astype(np.float64), hand.keypoints_image().astype(np.float64)

    print("changed: mm from the answer before, median; aligned; in the picture, over its box")
    for change in CHANGES:
        rows = [compared(answer, change, one) for one in hands]
        (apart, aligned, keypoints), middle = np.mean(rows, axis=0), np.median(rows, axis=0)[0]
        print(f"  {change.name:20} {apart:6.2f} {middle:6.2f} {aligned:6.2f} {keypoints:7.4f}")


def compared(answer, change: Change, one: Measured) -> tuple[float, float, float]:
    before = one.hand.joints.astype(np.float64), one.hand.keypoints_image().astype(np.float64)
    return compare(answer, change, read_image(one.path), one.truth, before, "box", Handedness(one.handedness))


if __name__ == "__main__":
    main()
