"""Score a model on real photos, beside the mean-pose baseline:  python benchmarks/real_photos.py PHOTOS [--model M]

PHOTOS is a folder with images and `labels.json`: a list of objects with "file", "handedness" ("right", "left" or
"unknown", taken as right), "keypoints" (21 x [x, y, visible], pixels, FreiHAND's order) and, where 3D is known,
"joints_m" (21 x 3). Such photos are usually licensed for research only; none are in this repository.

Two protocols: the whole photo (as a newcomer would use it) and the box of the labelled keypoints (as after a perfect
detector). 2D error is the mean distance over the visible joints, over the longer side of their box; PA-MPJPE aligns by
rotation, scale and shift. The labels of files that --mano names (shell patterns) are MANO's joints: with those ours are
compared as they are and, under "MANO", where MANO has them (`handmesh.hand.definitions`). "Each once": photographs of
one frame with exchanged backgrounds, which have the same labels, count as one. The mean-pose baseline is the
mean joint positions of our own synthetic poses (3D), and the mean of the labels' positions in the box (2D), which
already knows where the hand is.
"""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.draw.skeleton import draw_skeleton
from handmesh.files.image import encode_image, read_image
from handmesh.hand import builtin_hand
from handmesh.hand.definitions import mano_joints
from handmesh.predict import HandPrediction, load_predictor
from handmesh.synth import PosePrior
from handmesh.system.atomic import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--left", nargs="*", default=[], help="files whose hand of unknown side is a left one")
    parser.add_argument("--mano", nargs="*", default=["freihand*"], help="files whose labels are MANO's joints")
    parser.add_argument("--sheet", type=Path, help="draw overlays of the last setting into this picture")
    arguments = parser.parse_args()
    labels = json.loads((arguments.photos / "labels.json").read_text())
    mean_hand = mean_pose_hand()
    is_mano = [any(fnmatch(label["file"], pattern) for pattern in arguments.mano) for label in labels]
    titles = (
        f"{'2D / box':>9} {'MANO':>6} {'each once':>10} {'MANO':>6} {'under 0.2':>9} {'PA-MPJPE mm':>12} {'MANO':>6}"
    )
    print(f"{'protocol':12} {'passes':>6} {titles}")
    for protocol in ("whole", "box"):
        for passes in arguments.passes:
            predictor = load_predictor(arguments.model, detector=None, passes=passes)
            errors_2d, errors_3d, of_mano_2d, of_mano_3d, tiles = [], [], [], [], []
            for label, has_mano in zip(labels, is_mano, strict=True):
                image = read_image(arguments.photos / label["file"])
                keypoints = np.array(label["keypoints"])
                seen = keypoints[:, 2] > 0
                side = "left" if label["handedness"] == "left" or label["file"] in arguments.left else "right"
                boxes = [box_of(keypoints[seen, :2])] if protocol == "box" else None
                hand = predictor(image, boxes=boxes, handedness=side, min_score=0)[0]
                drawn, joints = hand.keypoints_image(), hand.joints
                errors_2d.append(metrics.keypoint_box_error(keypoints[seen, :2], drawn[seen]))
                if "joints_m" in label:
                    errors_3d.append(1000 * metrics.pa_rigid_mean_error(label["joints_m"], joints))
                if has_mano:
                    drawn, joints = mano_joints(drawn), mano_joints(joints)
                of_mano_2d.append(metrics.keypoint_box_error(keypoints[seen, :2], drawn[seen]))
                if "joints_m" in label:
                    of_mano_3d.append(1000 * metrics.pa_rigid_mean_error(label["joints_m"], joints))
                tiles.append(tile(image, hand, f"{errors_2d[-1]:.2f}"))
            good = np.mean(np.array(errors_2d) < 0.2)
            flat, spatial = f"{np.mean(errors_2d):9.3f} {np.mean(of_mano_2d):6.3f}", f"{np.mean(errors_3d):12.1f}"
            once = f"{each_once(labels, errors_2d):10.3f} {each_once(labels, of_mano_2d):6.3f}"
            print(f"{protocol:12} {passes:6} {flat} {once} {good:9.2f} {spatial} {np.mean(of_mano_3d):6.1f}")
            if others := [error for error, has_mano in zip(errors_2d, is_mano, strict=True) if not has_mano]:
                print(f"{'':19} {np.mean(others):9.3f} {'':6} of those whose labels are not MANO's")
    truths = [np.array(label["joints_m"]) for label in labels if "joints_m" in label]
    baseline_mm = np.mean([1000 * metrics.pa_rigid_mean_error(truth, mean_hand) for truth in truths])
    layout = f"{mean_layout_error(labels):9.3f} {'-':>6} {'-':>10} {'-':>6} {'-':>9}"
    print(f"{'mean pose':12} {'-':>6} {layout} {baseline_mm:12.1f}")
    if arguments.sheet:
        rows = [np.hstack(tiles[start : start + 6]) for start in range(0, len(tiles) - len(tiles) % 6, 6)]
        rest = tiles[len(rows) * 6 :]
        if rest:
            rows.append(np.hstack(rest + [np.zeros_like(tiles[0])] * (6 - len(rest))))
        write_atomically(arguments.sheet, encode_image(np.vstack(rows), arguments.sheet.suffix))


def box_of(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return x0, y0, x1, y1


def each_once(labels: list[dict[str, object]], errors: list[float]) -> float:
    """The mean over frames: one that is there several times, its background exchanged, has the same keypoints."""
    frames: dict[str, list[float]] = {}
    for label, error in zip(labels, errors, strict=True):
        frames.setdefault(json.dumps(label["keypoints"]), []).append(error)
    return float(np.mean([np.mean(same) for same in frames.values()]))


def mean_pose_hand(count: int = 2000) -> NDArray[np.float64]:
    """(21, 3) metres: the mean of the synthetic poses in the hand's own frame, wrist at the origin."""
    hand = builtin_hand()
    prior, rng = PosePrior(hand), np.random.default_rng(0)
    joints = []
    for _ in range(count):
        posed = hand.shaped().posed(prior.sample(rng).rotations)
        joints.append(posed.joints - posed.joints[0])
    return np.mean(joints, axis=0)


def mean_layout_error(labels: list[dict[str, object]]) -> float:
    """Mean 2D error of the labels' own mean layout in their boxes: what knowing the box alone is worth."""
    layouts, seen = [], []
    for label in labels:
        keypoints = np.array(label["keypoints"])
        visible = keypoints[:, 2] > 0
        x0, y0, x1, y1 = box_of(keypoints[visible, :2])
        layouts.append((keypoints[:, :2] - ((x0 + x1) / 2, (y0 + y1) / 2)) / max(x1 - x0, y1 - y0))
        seen.append(visible)
    weights = np.array(seen, float)[..., None]
    mean = (np.array(layouts) * weights).sum(axis=0) / weights.sum(axis=0)
    errors = [np.linalg.norm(layout - mean, axis=1)[shown].mean() for layout, shown in zip(layouts, seen, strict=True)]
    return float(np.mean(errors))


def tile(image: NDArray[np.uint8], hand: HandPrediction, text: str, side: int = 300) -> NDArray[np.uint8]:
    import cv2

    drawn = np.hstack([hand.overlay(image), draw_skeleton(image, hand.keypoints_image())])
    scale = side / drawn.shape[0]
    drawn = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:, : 2 * side]
    padded = np.zeros((side, 2 * side, 3), np.uint8)
    padded[:, : drawn.shape[1]] = drawn
    return cv2.putText(padded, text, (4, side - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()
