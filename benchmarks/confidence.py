"""Is the score a probability, and is the side found?  python benchmarks/confidence.py [--model M] [--plot FILE.svg]

Photos are drawn here with a seed of their own: hands (half of them mirrored, so left ones) and as many pictures without
a hand. Everything goes through the whole `Predictor` with `handedness="auto"`. A hand counts as found when its joints
are drawn, on average, within 0.15 of the longer side of their box: what the confidence head was trained to predict.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.hand import builtin_hand
from handmesh.learn.losses import FOUND_ERROR
from handmesh.predict import load_predictor
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
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, detector=None, passes=arguments.passes)
    renderer = SceneRenderer(builtin_hand(), SceneSettings(crop_share=tuple(arguments.share)), size=224)
    scores, found, present, sides = [], [], [], []
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
