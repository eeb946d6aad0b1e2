"""2D error and sides on photographs whose keypoints are known:

    python benchmarks/photographs.py LABELS.jsonl [--model M]

Lines of LABELS need "image", "handedness" and "keypoints" (21 x [x, y], pixels, FreiHAND's order); "source" splits the
tables, and so does the size of the hand's box. Keypoints by MediaPipe are compared as they are and (`--keypoints-by
mediapipe`, the default) also with the tips where its definition and ours agree (`handmesh.label.MEDIAPIPE`). Errors are
mean distances over the longer side of the keypoints' box: mean, median, share of hands under 0.1; with the box and the
side given, with the box alone, and with nothing but the photograph. PA errors are not to be had: nobody measured these
hands.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from handmesh.files.image import read_image
from handmesh.hand import FINGER_NAMES, JOINT_NAMES
from handmesh.label import MEDIAPIPE, OWN
from handmesh.predict import load_predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--source", nargs="*", help="of these sources alone")
    parser.add_argument("--count", type=int, default=300, help="hands of each source at most")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--keypoints-by", choices=("mediapipe", "freihand"), default="mediapipe")
    parser.add_argument("--worst", type=int, default=0, help="name so many of the worst")
    arguments = parser.parse_args()
    definition = MEDIAPIPE if arguments.keypoints_by == "mediapipe" else OWN
    by_source: dict[str, list[dict]] = defaultdict(list)
    with open(arguments.labels, encoding="utf-8") as file:
        for row in map(json.loads, file):
            by_source[str(row.get("source", "all"))].append(row)
    predictor = load_predictor(arguments.model, passes=arguments.passes, threads=1)
    print(f"{'source':18} {'hands':>5}  box and side: mean median <0.1 (ours)   sides   whole: mean median")
    rows_of_all, joint_errors, joint_scores, sizes = [], [], [], []
    for source in arguments.source or sorted(by_source):
        rows = by_source[source]
        rows = [rows[index] for index in np.linspace(0, len(rows) - 1, min(arguments.count, len(rows))).astype(int)]
        found = []
        for row in rows:
            path = arguments.labels.parent / row["image"]
            image, truth = read_image(path), np.array(row["keypoints"], float)[:, :2]
            low, high = truth.min(axis=0), truth.max(axis=0)
            side, box = float((high - low).max()), (*low, *high)

            def errors(hand, truth=truth, side=side):
                return np.linalg.norm(hand.keypoints_image() - truth, axis=1) / side

            known = predictor(image, boxes=[box], handedness=row["handedness"])[0]
            free = predictor(image, boxes=[box])[0]
            whole = predictor(image, handedness=row["handedness"], min_score=0, max_hands=1)
            lost = errors(whole[0]).mean() if whole else 1.0  # not found: as far off as the hand is large
            ours = np.linalg.norm(known.keypoints_image() - definition.apply(truth), axis=1) / side
            found.append((errors(known).mean(), ours.mean(), free.handedness == row["handedness"], lost, path))
            sizes.append(side)
            joint_errors.append(ours)
            if known.joint_scores is not None:
                joint_scores.append(known.joint_scores)
        rows_of_all += found
        show(source, found)
    show("all", rows_of_all)
    for low, high in itertools.pairwise((0, 60, 80, 110, 150, 10_000)):
        chosen = [row for row, size in zip(rows_of_all, sizes, strict=True) if low <= size < high]
        if chosen:
            show(f"box from {low} px" if high == 10_000 else f"box {low} to {high} px", chosen)
    per_joint = np.mean(joint_errors, axis=0)
    fingers = {
        name: np.mean([per_joint[joint] for joint, full in enumerate(JOINT_NAMES) if full.startswith(name)])
        for name in ("wrist", *FINGER_NAMES)
    }
    print("by finger (ours): " + ", ".join(f"{name} {value:.3f}" for name, value in fingers.items()))
    print(f"tips {np.mean([per_joint[j] for j, name in enumerate(JOINT_NAMES) if name.endswith('tip')]):.3f}")
    if joint_scores:
        scores, good = np.concatenate(joint_scores), np.concatenate(joint_errors) < 0.06
        print("joint scores: share found by score")
        for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.01)):
            chosen = (scores >= low) & (scores < high)
            if chosen.any():
                print(f"  {low:.1f} to {min(high, 1):.1f}: {good[chosen].mean():.2f} of {chosen.sum()}")
    for error, *_, path in sorted(rows_of_all, key=lambda row: -row[0])[: arguments.worst]:
        print(f"{error:.3f} {path}")


def show(source: str, found: list[tuple]) -> None:
    raw, ours, sides, whole = (np.array(column) for column in list(zip(*found, strict=True))[:4])
    print(
        f"{source:18} {len(found):5}   {raw.mean():.3f} {np.median(raw):.3f} {(raw < 0.1).mean():.2f} "
        f"({ours.mean():.3f} {np.median(ours):.3f})   {sides.mean():.3f}   {whole.mean():.3f} {np.median(whole):.3f}"
    )


if __name__ == "__main__":
    main()
