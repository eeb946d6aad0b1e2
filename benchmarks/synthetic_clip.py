"""A clip of a hand whose every motion is known, drawn by handmesh.synth.

The hand rests, opens and closes, turns and moves along smooth paths, before one background, with one skin, forearm and
light; every frame has its own sensor noise. Part of the clip a board hides the hand. The truth of each frame is kept.

    python benchmarks/synthetic_clip.py clip.mp4                  a video and clip.npz with its truth
    python benchmarks/synthetic_clip.py two.mp4 --two             two hands that pass each other
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.files.video import VideoWriter
from handmesh.hand import builtin_hand
from handmesh.synth import Backgrounds, SceneRenderer, SceneSettings, Shot, view_rotation
from handmesh.synth.camera_effects import composite
from handmesh.synth.pose_prior import BASE_POSES

SIZE = 448
FOCAL = 1.1 * SIZE
POSES = ("relaxed", "relaxed", "point", "fist", "relaxed", "pinch", "relaxed")


@dataclass(frozen=True)
class ClipFrame:
    """One frame and its truth."""

    time: float
    image: Any  # (S, S, 3) uint8
    keypoints: Any  # (H, 21, 2) px of H hands
    joints: Any  # (H, 21, 3) m, camera frame
    pose: Any  # (H, 16, 3, 3)
    hidden: bool  # behind the board


@dataclass(frozen=True)
class Motion:
    """What a hand does: seconds of rest first, then it moves; `phase` makes two hands differ."""

    rest: float = 3.0
    phase: float = 0.0
    reach: tuple[float, float] = (0.09, 0.06)  # metres from the middle, x and y
    distance: float = 0.55
    middle: tuple[float, float] = (0.0, 0.0)
    pace: float = 1.0

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(16, 3) joint angles, (3, 3) view and (3,) place in the camera at a time."""
        moving = max(0.0, time - self.rest)
        eased = (moving if moving > 1 else moving**2 * (2 - moving)) * self.pace  # speed starts at zero
        step = eased / 0.9 + self.phase
        index, share = int(step) % (len(POSES) - 1), step % 1
        share = share * share * (3 - 2 * share)
        angles = (1 - share) * BASE_POSES[POSES[index]].angles + share * BASE_POSES[POSES[index + 1]].angles
        toward = np.array([0.5 * np.sin(1.1 * eased + self.phase), 0.35 * np.sin(0.8 * eased), -1.0])
        view = view_rotation(toward, 0.5 * np.sin(0.9 * eased) + 0.2 * np.sin(2.1 * eased))
        place = np.array(
            [
                self.middle[0] + self.reach[0] * np.sin(1.3 * eased),
                self.middle[1] + self.reach[1] * np.sin(1.9 * eased),
                self.distance * (1 + 0.12 * np.sin(0.7 * eased)),
            ]
        )
        return angles, view, place


def shot(renderer: SceneRenderer, motion: Motion, time: float) -> Shot:
    """The hand of a moment before the clip's camera; its shape is the same at all times."""
    angles, view, place = motion.at(time)
    middle = (SIZE - 1) / 2
    camera = np.array([[FOCAL, 0, middle], [0, FOCAL, middle], [0, 0, 1.0]])
    betas = np.clip(np.random.default_rng(1).normal(0, renderer.settings.beta_scale, 10), -3, 3)
    return Shot(renderer.prior.rotations(angles), betas, view, place, camera)


def frames(
    seconds: float = 14.0,
    fps: float = 30.0,
    *,
    seed: int = 3,
    hidden: tuple[float, float] | None = (9.0, 9.8),
    two: bool = False,
    noise: float = 2.0,
) -> Iterator[ClipFrame]:
    """The clip, frame by frame. `two`: a left hand comes from the other side, and they pass each other."""
    settings = SceneSettings(
        sleeve=1.0, occluder=0.0, stray_object=0.0, second_hand=0.0, min_unoccluded=0.0, min_visible=0.0
    )
    renderer = SceneRenderer(builtin_hand(), settings, SIZE, 2, Backgrounds(count=8))
    background = renderer.backgrounds.sample(np.random.default_rng(seed), SIZE)
    one = Motion()
    motions = [one]
    if two:
        motions = [
            Motion(rest=0.5, reach=(0.17, 0.02), distance=0.8, middle=(0, -0.08), pace=0.8),
            Motion(rest=0.5, reach=(0.17, 0.02), distance=0.8, middle=(0, -0.08), pace=0.8, phase=0.5),
        ]
    for index in range(round(seconds * fps)):
        time = index / fps
        image, keypoints, joints, poses = background.copy(), [], [], []
        for number, motion in enumerate(motions):
            # All but the shot is random by one seed for all frames, so the same throughout.
            sample = renderer.render_foreground(np.random.default_rng(seed + number), shot(renderer, motion, time))
            picture, alpha = sample.image, sample.alpha
            points, places, pose = sample.keypoints.copy(), sample.joints.copy(), sample.pose.copy()
            if number == 1:  # a left hand is a right one in a mirror
                picture, alpha = picture[:, ::-1], alpha[:, ::-1]
                points[:, 0] = SIZE - 1 - points[:, 0]
                places[:, 0] *= -1
                mirror = np.diag([-1.0, 1, 1])
                pose = mirror @ pose @ mirror
                shift = 75  # px lower, so that they pass without hiding each other wholly
                picture, alpha = np.roll(picture, shift, axis=0), np.roll(alpha, shift, axis=0)
                picture[:shift], alpha[:shift] = 0, 0
                points[:, 1] += shift
            image = composite(np.ascontiguousarray(picture), np.ascontiguousarray(alpha), image)
            keypoints.append(points)
            joints.append(places)
            poses.append(pose)
        is_hidden = hidden is not None and not two and hidden[0] <= time < hidden[1]
        if is_hidden:
            image[:] = (0.25 * image + 0.75 * np.array([116, 104, 92])).astype(np.uint8)
            image[40:-40, 20:-20] = (116, 104, 92)
        grain = np.random.default_rng([seed, index]).normal(0, noise, image.shape)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
        yield ClipFrame(time, image, np.stack(keypoints), np.stack(joints), np.stack(poses), is_hidden)


def cached(folder: Path, **arguments: Any) -> list[ClipFrame]:
    """The clip from a file in `folder`, drawn first if it is not there."""
    import cv2

    key = "_".join(f"{name}-{value}" for name, value in sorted(arguments.items())) or "default"
    path = folder / f"clip_{key}.npz"
    if not path.is_file():
        drawn = list(frames(**arguments))
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [cv2.imencode(".png", frame.image)[1] for frame in drawn]
        np.savez(
            path,
            pictures=np.concatenate(pictures),
            lengths=[len(p) for p in pictures],
            **{
                name: np.stack([getattr(frame, name) for frame in drawn])
                for name in ("time", "keypoints", "joints", "pose", "hidden")
            },
        )
    with np.load(path) as stored:
        ends = np.cumsum(stored["lengths"])
        pictures = [cv2.imdecode(part, cv2.IMREAD_COLOR) for part in np.split(stored["pictures"], ends[:-1])]
        columns = [stored[name] for name in ("time", "keypoints", "joints", "pose", "hidden")]
    return [
        ClipFrame(float(time), picture, keypoints, joints, pose, bool(hidden))
        for picture, time, keypoints, joints, pose, hidden in zip(pictures, *columns, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=14.0)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--two", action="store_true")
    options = parser.parse_args()
    writer = VideoWriter(options.out, (SIZE, SIZE), options.fps)
    truth = []
    for frame in frames(options.seconds, options.fps, seed=options.seed, two=options.two):
        writer.write(frame.image, frame.time)
        truth.append(frame)
    writer.close()
    names = ("time", "keypoints", "joints", "pose", "hidden")
    np.savez(options.out.with_suffix(".npz"), **{name: np.stack([getattr(f, name) for f in truth]) for name in names})
    print(f"{len(truth)} frames, {writer.codec}: {options.out}")


if __name__ == "__main__":
    main()
