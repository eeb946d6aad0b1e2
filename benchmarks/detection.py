"""Which hands are found in photographs whose hands are known, and what is taken for one where there is none:

    python benchmarks/detection.py SCENES.jsonl [--source NAME ...] [--by detector|predictor] [--detector NAME|FILE]

Lines of SCENES need "image" and "hands" ("handedness" and "keypoints", 21 x [x, y] pixels); "no_hand": true says that
the photograph shows none, "source" splits the tables. A hand is found when an answer's box shares half of the union
with the keypoints' (IoU 0.5); hands whose longer side is below --least pixels are left out. A listed hand is one that a
teacher saw: hands that it missed count as nothing, so precision is not to be had from such lists, and false hands are
counted on hand-free photographs alone. Labels by MediaPipe favour MediaPipe (--detector mediapipe).

--by predictor: the boxes of the meshes that `predictor(photo)` answers with, and its scores. --curve draws how many
answers of a score are listed hands (IoU 0.3), those on photographs without a hand among them; places that the list
calls "doubtful" do not count, and hands that it misses count as none, so the curve lies lower than the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from confidence import calibration_error, curve, reliability

from handmesh.detect import open_detector
from handmesh.detect.overlap import box_iou
from handmesh.draw.sheet import contact_sheet
from handmesh.files.image import read_image, read_photo
from handmesh.metrics import match_boxes
from handmesh.predict import load_predictor

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.9)
SIZES = ((0, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 9))  # of the photo's longer side


class Answer(NamedTuple):
    box: tuple[float, ...]
    side: str | None
    score: float


class Hand(NamedTuple):
    source: str
    share: float  # of the photo's longer side
    several: bool  # in a photograph of several
    score: float  # of the answer that found it; 0: not found
    side_is_right: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--source", nargs="*", help="of these sources alone")
    parser.add_argument("--count", type=int, default=10_000, help="photographs at most, spread over the file")
    parser.add_argument("--by", choices=("detector", "predictor"), default="detector")
    parser.add_argument("--detector", default="handmesh")
    parser.add_argument("--model")
    parser.add_argument("--search", choices=("fast", "thorough"), default="fast")
    parser.add_argument("--least", type=float, default=24.0, help="pixels of a hand's longer side")
    parser.add_argument("--sheet", type=Path, help="a picture of the photographs with the worst answers")
    parser.add_argument("--curve", type=Path, metavar="SVG", help="a picture of what scores are worth")
    arguments = parser.parse_args()
    rows = [
        (path.parent, row)
        for path in arguments.scenes
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if not arguments.source or row.get("source") in arguments.source
    ]
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(arguments.count, len(rows))).astype(int)]
    detector = open_detector(arguments.detector)
    if arguments.by == "detector" and hasattr(detector, "min_score"):
        detector.min_score = 0.05
    predictor = load_predictor(arguments.model, detector=detector, threads=1) if arguments.by == "predictor" else None

    def ask(path: Path) -> list[Answer]:
        if predictor is None:
            image = read_image(path)
            found = detector.find(image, thorough=True) if arguments.search == "thorough" else detector(image)
            return [Answer(one.box, one.handedness, one.score) for one in found]
        hands = predictor(read_photo(path), min_score=0, search=arguments.search, max_hands=20)
        return [Answer(hand.box, hand.handedness, hand.score) for hand in hands]

    hands: list[Hand] = []
    false: list[list[float]] = []  # scores of the answers on each photograph without a hand
    pictures: list[tuple[float, Path, dict, list[Answer]]] = []
    said: list[tuple[float, bool]] = []  # each answer's score, and whether it is a listed hand
    started = time.process_time()
    for folder, row in rows:
        path = folder / row["image"]
        answers = ask(path)
        known = [np.array(hand["keypoints"], float)[:, :2] for hand in row.get("hands", [])]
        boxes = [(*points.min(axis=0), *points.max(axis=0)) for points in known]
        pairs = dict(match_boxes(boxes, [answer.box for answer in answers], 0.5))
        size = max(cv2.imread(str(path)).shape[:2])
        worst = 0.0
        for index, (points, hand) in enumerate(zip(known, row.get("hands", []), strict=True)):
            longer = float(np.ptp(points, axis=0).max())
            if longer < arguments.least:
                continue
            answer = answers[pairs[index]] if index in pairs else None
            score = answer.score if answer else 0.0
            right = answer is not None and answer.side == hand["handedness"]
            hands.append(Hand(row.get("source", "all"), longer / size, len(known) > 1, score, right))
            worst = max(worst, 1 - score, 0.8 * (answer is not None and not right))
        listed = {answer for _, answer in match_boxes(boxes, [answer.box for answer in answers], 0.3)}
        for index, answer in enumerate(answers):
            if index in listed or all(box_iou(answer.box, box) < 0.1 for box in row.get("doubtful", [])):
                said.append((answer.score, index in listed))
        if row.get("no_hand"):
            false.append([answer.score for answer in answers])
            worst = max([worst, *false[-1]])
        pictures.append((worst, path, row, answers))
    seconds = (time.process_time() - started) / max(len(rows), 1)
    what = f"{arguments.by}, {arguments.detector}, {arguments.search}"
    print(f"{what}: {len(rows)} photographs, {1e3 * seconds:.1f} ms of CPU each")
    print(f"{'':26} {'hands':>5}  found from {'  '.join(f'{t:5.2f}' for t in THRESHOLDS)}   side right, from 0.5")
    groups: dict[str, list[Hand]] = defaultdict(list)
    for hand in hands:
        groups["all"].append(hand)
        groups["photos of several" if hand.several else "photos of one"].append(hand)
        low, high = next((low, high) for low, high in SIZES if low <= hand.share < high)
        groups[f"size {low:.0%} to {high:.0%}" if high < 9 else f"size from {low:.0%}"].append(hand)
        groups[hand.source].append(hand)
    for name in ("all", *sorted(groups.keys() - {"all"})):
        group = groups[name]
        if not group:
            continue
        found = [np.mean([hand.score >= t for hand in group]) for t in THRESHOLDS]
        sides = [hand.side_is_right for hand in group if hand.score >= 0.5]
        side = f"{np.mean(sides):.3f}" if sides else "-"
        print(f"{name:26} {len(group):5}             {'  '.join(f'{value:5.3f}' for value in found)}   {side}")
    if false:
        counts = [sum(score >= t for scores in false for score in scores) for t in THRESHOLDS]
        print(f"hands in {len(false)} photographs without one, by threshold: {counts}")
    if arguments.curve:
        rows = reliability(*np.array(said, float).T)
        print(f"expected calibration error of {len(said)} answers: {calibration_error(rows, len(said)):.3f}")
        arguments.curve.write_text(curve(rows), encoding="utf-8")
    if arguments.sheet:
        worst = sorted(pictures, key=lambda item: -item[0])[:60]
        tiles = [draw(path, row, answers) for _, path, row, answers in worst]
        arguments.sheet.write_bytes(cv2.imencode(".png", contact_sheet(tiles, 10)[..., ::-1])[1].tobytes())


def draw(path: Path, row: dict, answers: list[Answer], side: int = 200) -> np.ndarray:
    """White: known; red a right hand, blue a left one, as strong as its score."""
    image = read_image(path).copy()
    for hand in row.get("hands", []):
        points = np.array(hand["keypoints"])[:, :2]
        cv2.rectangle(image, *(tuple(map(int, edge)) for edge in (points.min(0), points.max(0))), (255, 255, 255), 2)
    for box, handedness, score in answers:
        if score >= 0.3:
            x0, y0, x1, y1 = map(int, box)
            color = (int(255 * score), 60, 0) if handedness == "right" else (0, 60, int(255 * score))
            cv2.rectangle(image, (x0, y0), (x1, y1), color, 2)
            cv2.putText(image, f"{score:.2f}", (max(x0, 0), max(y0 - 3, 10)), 0, 0.4, color, 1, cv2.LINE_AA)
    scale = side / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile = np.zeros((side, side, 3), np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small[:side, :side]
    return tile


if __name__ == "__main__":
    main()
