"""Is the score a probability, is the side found, and what does a lost finger cost?

    python benchmarks/confidence.py [--model M] [--plot FILE.svg] [--photos LABELS.jsonl]

Photos are drawn here with a seed of their own: hands (half of them mirrored, so left ones) and as many pictures without
a hand. Everything goes through the whole `Predictor` with `handedness="auto"`. A hand counts as found when its joints
are drawn, on average, within 0.15 of the longer side of their box: what the confidence head was trained to predict.

Fingers are then painted over, one at a time, from the first joint beyond the knuckle to the tip: with what is around
them, and with a piece of another picture. Side and box are given. A finger is lost when its three outer joints are
drawn 0.2 of the hand's box away on average, or farther; a joint is misplaced from 0.1 on. --photos: hands of
photographs, too (lines as in `photographs.py`, keypoints by MediaPipe).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from photographs import spread_rows

from handmesh import metrics
from handmesh.files.image import read_image
from handmesh.hand import FINGER_NAMES, JOINT_NAMES, builtin_hand
from handmesh.label import MEDIAPIPE
from handmesh.learn.losses import FOUND_ERROR
from handmesh.predict import Predictor, load_predictor
from handmesh.synth import Backgrounds, SceneRenderer, SceneSettings, camera_effects, sample_generator
from handmesh.system.atomic import write_atomically

SEED = 9_100_003  # neither trained on nor chosen with
EDGES = np.linspace(0, 1, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--count", type=int, default=300, help="photos with a hand, and as many without")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--share", type=float, nargs=2, default=(0.3, 0.95), help="hand's box over the photo's side")
    parser.add_argument("--plot", type=Path, help="draw the reliability curve into this SVG file")
    parser.add_argument(
        "--painted", type=int, default=100, help="renders whose fingers are painted over, and photos of each source"
    )
    parser.add_argument("--photos", type=Path, help="labels of photographs whose fingers are painted over, too")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, detector=None, passes=arguments.passes, threads=1)
    renderer = SceneRenderer(builtin_hand(), SceneSettings(crop_share=tuple(arguments.share)), size=224)
    scores, found, present, sides = [], [], [], []
    rendered: list[LabelledHand] = []
    for index in range(arguments.count):
        sample = renderer.render(sample_generator(SEED, index))
        left = index % 2 == 1
        image = np.ascontiguousarray(sample.image[:, ::-1]) if left else sample.image
        truth = sample.keypoints.copy()
        if left:
            truth[:, 0] = image.shape[1] - 1 - truth[:, 0]
        (hand,) = predictor(image, handedness="auto", min_score=0)
        scores.append(hand.score)
        found.append(float(metrics.keypoint_box_error(truth, hand.keypoints_image())) < FOUND_ERROR)
        present.append(True)
        sides.append((hand.handedness == ("left" if left else "right"), hand.handedness_score))
        if len(rendered) < arguments.painted:
            rendered.append(LabelledHand(image, truth, truth, "left" if left else "right"))
    for index in range(arguments.count):
        rng = sample_generator(SEED + 1, index)
        (hand,) = predictor(without_hand(rng, renderer.backgrounds), handedness="auto", min_score=0)
        scores.append(hand.score)
        found.append(False)
        present.append(False)
    probability, truth, hands = np.array(scores), np.array(found, float), np.array(present)
    right, confidence = np.array(sides, float).T
    print(f"hands found: {truth[hands].mean():.3f} of {hands.sum()}; side right: {right.mean():.3f}")
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 1.01)):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            print(f"  side, confidence {low:.2f} to {high:.2f}: right {right[inside].mean():.3f} of {inside.sum()}")
    print(f"hand against no hand by the score: area under ROC {roc_area(probability[hands], probability[~hands]):.3f}")
    rows = reliability(probability, truth)
    print(f"expected calibration error {calibration_error(rows, len(truth)):.3f}")
    print(f"{'score':>12} {'mean':>6} {'found':>6} {'photos':>7}")
    for low, high, mean, share, count in rows:
        print(f"{low:5.1f} ..{high:4.1f} {mean:7.2f} {share:6.2f} {count:7.0f}")
    for limit in (0.3, 0.5, 0.7):
        print(
            f"  score under {limit}: {np.mean(probability[hands] < limit):.3f} of the hands, "
            f"{np.mean(probability[~hands] < limit):.3f} of the pictures without one"
        )
    if arguments.plot:
        write_atomically(arguments.plot, curve(rows).encode())
    print("renders with a finger painted over")
    paint_fingers(predictor, rendered, renderer.backgrounds)
    if arguments.photos:
        print(f"{arguments.photos.name} with a finger painted over")
        # With the detector, which says which way the hand in a box points.
        paint_fingers(
            load_predictor(arguments.model), given_photos(arguments.photos, arguments.painted), renderer.backgrounds
        )


class LabelledHand(NamedTuple):
    image: NDArray[np.uint8]
    keypoints: NDArray[np.float64]  # (21, 2) px, whose box is given
    truth: NDArray[np.float64]  # (21, 2) px, what answers are compared with
    handedness: str


class Answer(NamedTuple):
    score: float
    joint_scores: NDArray[np.float32]
    errors: NDArray[np.float64]  # (21,) over the hand's box

    def of(self, finger: str) -> tuple[float, float]:
        """The mean score and the mean error of a finger's outer joints."""
        return float(self.joint_scores[OUTER[finger]].mean()), float(self.errors[OUTER[finger]].mean())


OUTER = {finger: [JOINT_NAMES.index(f"{finger}_tip") - k for k in (2, 1, 0)] for finger in FINGER_NAMES}
LOST, MISPLACED = 0.2, 0.1


def given_photos(labels: Path, count: int) -> list[LabelledHand]:
    rows = [row for chosen in spread_rows(labels, count).values() for row in chosen]
    points = [np.array(row["keypoints"], float)[:, :2] for row in rows]
    return [
        LabelledHand(read_image(labels.parent / row["image"]), seen, MEDIAPIPE.apply(seen), row["handedness"])
        for row, seen in zip(rows, points, strict=True)
    ]


def painted(
    image: NDArray[np.uint8], keypoints: NDArray[np.float64], finger: str, over: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """A finger's outer bones and tip covered by a picture of any size, or (None) by what is around them."""
    line = keypoints[OUTER[finger]]
    line = np.vstack([line, line[-1] + 0.35 * (line[-1] - line[-2])])
    width = max(round(0.15 * float(np.ptp(keypoints, axis=0).max())), 3)
    mask = cv2.polylines(np.zeros(image.shape[:2], np.uint8), [line.round().astype(np.int32)], False, 255, width)
    if over is None:
        return np.asarray(cv2.inpaint(image, mask, 3, cv2.INPAINT_TELEA), np.uint8)
    return np.where(mask[..., None] > 0, cv2.resize(over, image.shape[1::-1]), image)


def paint_fingers(predictor: Predictor, hands: Iterable[LabelledHand], backgrounds: Backgrounds) -> None:
    """Print what it does to scores."""
    before: list[Answer] = []
    after: dict[str, dict[str, list[Answer]]] = {over: {f: [] for f in FINGER_NAMES} for over in ("around", "picture")}
    for index, (image, keypoints, truth, side) in enumerate(hands):
        box = (*keypoints.min(axis=0), *keypoints.max(axis=0))
        size = float(np.ptp(keypoints, axis=0).max())

        def ask(image: NDArray[np.uint8], box=box, side=side, truth=truth, size=size) -> Answer:
            (hand,) = predictor(image, boxes=[box], handedness=side)
            if hand.joint_scores is None:
                raise SystemExit("this model has no scores of joints")
            errors = np.linalg.norm(hand.keypoints_image() - truth, axis=1) / size
            return Answer(hand.score, hand.joint_scores, errors)

        before.append(ask(image))
        picture = backgrounds.sample(sample_generator(SEED + 2, index), 224)
        for over, answers in after.items():
            for finger in FINGER_NAMES:
                answers[finger].append(ask(painted(image, keypoints, finger, picture if over == "picture" else None)))
    joint_scores, errors = (np.stack([getattr(one, name) for one in before]) for name in ("joint_scores", "errors"))
    right = errors < MISPLACED
    areas = [f"{finger} {roc_area(joint_scores[:, j][right[:, j]], joint_scores[:, j][~right[:, j]]):.2f}"
             for finger, j in OUTER.items()]  # fmt: skip
    print(f"  misplaced joints told by their scores, area under ROC: {', '.join(areas)}")
    print(f"  {'':16} score        lower in   its joints   told apart   its error    score where it is lost")
    for over, answers in after.items():
        for finger, changed in answers.items():
            scores, own, errors = (
                np.array([[value(one) for one in group] for group in (before, changed)])
                for value in (
                    lambda one: one.score,
                    lambda one, finger=finger: one.of(finger)[0],
                    lambda one, finger=finger: one.of(finger)[1],
                )
            )
            lost = errors[1] > LOST
            at_lost = f"{scores[1][lost].mean():.2f} of {lost.sum()}" if lost.any() else "-"
            (s0, s1), (j0, j1), (e0, e1) = (pair.mean(axis=1) for pair in (scores, own, errors))
            print(
                f"  {over:8} {finger:7} {s0:.2f} -> {s1:.2f}   {np.mean(scores[1] < scores[0]):.2f}   "
                f"{j0:.2f} -> {j1:.2f}   {roc_area(own[0], own[1]):.2f}   {e0:.3f} -> {e1:.3f}   {at_lost}"
            )
    everything = before + [one for answers in after.values() for changed in answers.values() for one in changed]
    worst = np.array([max(one.of(finger)[1] for finger in FINGER_NAMES) for one in everything])
    scores = np.array([one.score for one in everything])
    for name, chosen in (("all fingers within 0.12", worst < 0.12), (f"one farther off than {LOST}", worst > LOST)):
        print(f"  score, {name}: {scores[chosen].mean():.2f}, from 0.9 on {np.mean(scores[chosen] >= 0.9):.2f}; "
              f"{chosen.sum()} answers")  # fmt: skip


def without_hand(rng: np.random.Generator, backgrounds: Backgrounds) -> NDArray[np.uint8]:
    return camera_effects(rng, backgrounds.sample(rng, 224))


def reliability(probability: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of (low, high, mean probability, share that is true, count), for tenths that have any."""
    place = np.clip(np.digitize(probability, EDGES) - 1, 0, len(EDGES) - 2)
    rows = [
        (EDGES[bin], EDGES[bin + 1], probability[place == bin].mean(), truth[place == bin].mean(), (place == bin).sum())
        for bin in np.unique(place)
    ]
    return np.array(rows)


def calibration_error(rows: NDArray[np.float64], count: int) -> float:
    """Guo et al. 2017, equation 3: mean distance of the two columns, weighted by count."""
    return float((np.abs(rows[:, 2] - rows[:, 3]) * rows[:, 4]).sum() / count)


def roc_area(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The share of pairs in which the positive has the higher score; ties count half."""
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def curve(rows: NDArray[np.float64], side: int = 320, margin: int = 44) -> str:
    """The reliability diagram as SVG: dots are as large as they hold photos."""
    span = side - 2 * margin

    def at(x: float, y: float) -> str:
        return f"{margin + x * span:.1f},{side - margin - y * span:.1f}"

    largest = rows[:, 4].max()
    dots = "".join(
        f'<circle cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="{3 + 7 * np.sqrt(count / largest):.1f}"/>'
        for point, count in ((at(mean, share), count) for _, _, mean, share, count in rows)
    )
    line = " ".join(at(mean, share) for _, _, mean, share, _ in rows)
    ticks = "".join(
        f'<text x="{margin + v * span}" y="{side - margin + 16}" text-anchor="middle">{v:g}</text>'
        f'<text x="{margin - 8}" y="{side - margin - v * span + 4}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" font-family="sans-serif" font-size="12">'
        f'<rect width="{side}" height="{side}" fill="#fff"/><g stroke="#999" fill="none">'
        f'<rect x="{margin}" y="{margin}" width="{span}" height="{span}"/>'
        f'<path d="M{at(0, 0)} L{at(1, 1)}" stroke-dasharray="4"/></g>'
        f'<polyline points="{line}" fill="none" stroke="#3567b8" stroke-width="2"/><g fill="#3567b8">{dots}</g>{ticks}'
        f'<text x="{side / 2}" y="{side - 8}" text-anchor="middle">score</text>'
        f'<text x="14" y="{side / 2}" text-anchor="middle" transform="rotate(-90 14 {side / 2})">'
        "share found</text></svg>\n"
    )


if __name__ == "__main__":
    main()
