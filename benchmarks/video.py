"""What following and smoothing do, on clips whose every motion is known (benchmarks/synthetic_clip.py).

    python benchmarks/video.py --work runs/video

Prints: how often the hand was followed, how it was lost and found behind the board, jitter (mean acceleration error)
and lag with and without smoothing, and whether the ids of two hands that pass each other stay. Docs:
docs/how_to/video.md.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import synthetic_clip

from handmesh.detect import Detection
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import Handedness
from handmesh.motion.smoothing import Smoother, Smoothing
from handmesh.motion.track import Tracker
from handmesh.predict import load_predictor


class Counted:
    """A predictor's engine that counts its crops."""

    def __init__(self, engine):
        self._engine, self.crop_count = engine, 0
        self.name, self.resolution, self.hand, self.record = engine.name, engine.resolution, engine.hand, engine.record

    def __call__(self, crops):
        self.crop_count += len(crops)
        return self._engine(crops)


class Oracle:
    """A detector as real ones are: jittering boxes in any order, a quarter of them missing, sides mostly right."""

    name, searches = "simulated detector", True

    def __init__(self, clip, seed=0):
        self._clip, self._rng, self.index = clip, np.random.default_rng(seed), 0

    def __call__(self, image):
        found = []
        for number, points in enumerate(self._clip[self.index].keypoints):
            if self._rng.random() < 0.25:
                continue
            extent = np.ptp(points, axis=0).max()
            low, high = points.min(axis=0), points.max(axis=0)
            box = np.concatenate([low, high]) + self._rng.normal(0, 0.05 * extent, 4)
            side = Handedness.LEFT if (number == 1) != (self._rng.random() < 0.1) else Handedness.RIGHT
            found.append(Detection(tuple(map(float, box)), side, 0.9, "mediapipe"))
        self._rng.shuffle(found)
        return found


def follow(clip, detector=None):
    """[{id: hand}] and [crops] for each frame."""
    predictor = load_predictor(threads=1)
    predictor.engine = Counted(predictor.engine)
    tracker = Tracker(predictor, detector=detector)
    size = synthetic_clip.SIZE
    camera = Intrinsics(synthetic_clip.FOCAL, synthetic_clip.FOCAL, (size - 1) / 2, (size - 1) / 2)
    hands, crops = [], []
    for index, frame in enumerate(clip):
        if detector is not None:
            detector.index = index
        before = predictor.engine.crop_count
        hands.append({item.id: item.hand for item in tracker(frame.image, frame.time, camera)})
        crops.append(predictor.engine.crop_count - before)
    return hands, crops


def error(hand, points):
    """Mean distance of the keypoints over the extent of the true ones."""
    return float(np.linalg.norm(hand.keypoints_image() - points, axis=1).mean() / np.ptp(points, axis=0).max())


def acceleration_error(values, truth):
    """Mean |second difference - true one| over frames whose neighbours are there; (T, N, D) with NaN where not."""
    difference = np.diff(values - truth, n=2, axis=0)
    return float(np.nanmean(np.linalg.norm(difference, axis=-1)))


def lag(values, truth, fps):
    """Seconds by which a signal follows the truth: the shift at which their changes agree best."""
    shifts = np.arange(-3, 9.01, 0.25)
    frames = np.arange(len(values))
    errors = []
    for shift in shifts:
        at = np.clip(frames - shift, 0, len(frames) - 1)
        low, share = np.floor(at).astype(int), (at % 1)[:, None, None]
        moved = truth[low] * (1 - share) + truth[np.minimum(low + 1, len(frames) - 1)] * share
        rest = values - moved
        rest = rest - np.nanmean(rest, axis=0)
        errors.append(np.nanmean(np.square(rest)))
    best = int(np.argmin(errors))
    if not 0 < best < len(shifts) - 1:
        return float(shifts[best] / fps)
    before, at, after = errors[best - 1 : best + 2]
    return float((shifts[best] + 0.125 * (before - after) / (before - 2 * at + after)) / fps)


def signals(hands, frames, settings):
    """Keypoints px (T, 21, 2) and joints from the wrist, mm (T, 21, 3), smoothed by `settings`; NaN without a hand."""
    smoother = None if settings is None else Smoother(load_predictor(threads=1).engine.hand, settings)
    keypoints = np.full((len(frames), 21, 2), np.nan)
    joints = np.full((len(frames), 21, 3), np.nan)
    for index, (found, frame) in enumerate(zip(hands, frames, strict=True)):
        for id, raw in list(found.items())[:1]:
            hand = raw if smoother is None else smoother(id, raw, frame.time)
            keypoints[index] = hand.keypoints_image()
            places = hand.joints_cam()
            joints[index] = 1000 * (places - places[0])
    return keypoints, joints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/video"), help="folder for the drawn clips")
    parser.add_argument("--keep", type=Path, help="keep what was found in this file, to try other smoothing faster")
    options = parser.parse_args()

    clip = synthetic_clip.cached(options.work)
    if options.keep is not None and options.keep.is_file():
        hands, crops = pickle.loads(options.keep.read_bytes())
    else:
        hands, crops = follow(clip)
        if options.keep is not None:
            options.keep.write_bytes(pickle.dumps((hands, crops)))
    fps = 1 / (clip[1].time - clip[0].time)
    seen = np.array([bool(found) for found in hands])
    hidden = np.array([frame.hidden for frame in clip])
    errors = [error(next(iter(f.values())), c.keypoints[0]) for f, c in zip(hands, clip, strict=True) if f]
    followed = [n for n, s, h in zip(crops, seen, hidden, strict=True) if s and not h]
    print(f"one hand, {len(clip)} frames: followed in {seen[~hidden].mean():.1%} of those that show it, ids ", end="")
    print(
        sorted({id for found in hands for id in found}),
        f"2D error {np.median(errors):.3f} of its box (median), ",
        end="",
    )
    print(f"{np.mean(followed):.2f} crops per followed frame")
    first = int(np.flatnonzero(hidden)[0])
    end = int(np.flatnonzero(hidden)[-1]) + 1
    gone = int(np.flatnonzero(~seen[first:])[0]) if (~seen[first:]).any() else -1
    back = int(np.flatnonzero(seen[end:])[0])
    print(
        f"behind the board for {end - first} frames: answers went on for {gone}, {seen[first:end].sum()} in all; found "
        f"again {back} frames after, as {sorted(hands[end + back])}"
    )

    rest = slice(5, int(2.9 * fps))
    moving = slice(int(3.2 * fps), first)
    print("smoothing        rest: px/f2  mm/f2   moving: px/f2  mm/f2   lag: place ms  joints ms   2D error px  mm")
    true_points = np.stack([frame.keypoints[0] for frame in clip]).astype(float)
    true_joints = 1000 * np.stack([frame.joints[0] - frame.joints[0][:1] for frame in clip]).astype(float)
    for name, settings in [("off", None)] + [(f"{s:g}", Smoothing.of_strength(s)) for s in (0.5, 1.0, 2.0)]:
        points, joints = signals(hands, clip, settings)
        row = []
        for part in (rest, moving):
            row += [
                acceleration_error(points[part], true_points[part]),
                acceleration_error(joints[part], true_joints[part]),
            ]
        late = [1000 * lag(v[moving], t[moving], fps) for v, t in ((points, true_points), (joints, true_joints))]
        miss = [
            float(np.nanmean(np.linalg.norm(v[moving] - t[moving], axis=-1)))
            for v, t in ((points, true_points), (joints, true_joints))
        ]
        print(f"{name:16s}      {row[0]:6.2f} {row[1]:6.2f}           {row[2]:6.2f} {row[3]:6.2f}         "
              f"{late[0]:7.0f}    {late[1]:7.0f}        {miss[0]:6.2f} {miss[1]:6.1f}")  # fmt: skip

    two = synthetic_clip.cached(options.work, two=True, seconds=8.0)
    hands, _ = follow(two, Oracle(two))
    ids: dict[int, list[int]] = {0: [], 1: []}
    for found, frame in zip(hands, two, strict=True):
        for number, points in enumerate(frame.keypoints):
            near = [id for id, hand in found.items() if error(hand, points) < 0.35]
            best = min(near, key=lambda id: error(found[id], points), default=0)
            ids[number].append(best)
    for number, side in enumerate(("right", "left")):
        used = [id for id in ids[number] if id]
        changes = int(np.count_nonzero(np.diff(used)))
        print(f"two hands, {side}: followed in {len(used) / len(two):.1%}, ids {sorted(set(used))}, {changes} changes")


if __name__ == "__main__":
    main()
