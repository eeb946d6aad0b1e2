"""How near synthetic hands come to real ones:  python benchmarks/pose_coverage.py labels.jsonl [--real-poses SHARE]

For each labelled pose (JSONL with `pose`, from photographs that gave none to `real_poses.npz`), the nearest of N hands
that `synth` would draw: root mean square distance of the 21 joints in millimetres, wrists on each other and turned
upright in the picture, so both pose and view count; and of the pose alone, both in the palm's own axes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from handmesh.config.scenes import TrainingScenes
from handmesh.data.formats.jsonl import JsonlData
from handmesh.hand import Handedness, builtin_hand, upright_rotation
from handmesh.synth.real_poses import RealPoses, palm_axes
from handmesh.synth.scene import PosePrior, sample_view

Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--real-poses", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--count", type=int, default=10_000, help="synthetic hands")
    arguments = parser.parse_args()
    hand = builtin_hand().shaped()
    axes = palm_axes(builtin_hand())
    real = []
    data = JsonlData(arguments.labels)
    for labels in map(data.labels, range(len(data))):
        if labels.hand.pose_known:
            pose = labels.hand.pose
            if labels.handedness == Handedness.LEFT:
                pose = np.diag([-1.0, 1, 1]) @ pose @ np.diag([-1.0, 1, 1])
            real.append(pose)
    print(f"{len(real)} real poses, {arguments.count} synthetic hands; mm to the nearest: mean, median, 90 %")
    for share in arguments.real_poses:
        settings = TrainingScenes(real_poses=share)
        rng, prior = np.random.default_rng(0), PosePrior(builtin_hand(), settings.pose)
        source = RealPoses(prior, builtin_hand())
        poses = []
        for _ in range(arguments.count):
            if rng.random() < share:
                sampled, rotation = source.sample(rng)
            else:
                sampled, rotation = prior.sample(rng), sample_view(rng, settings).rotation
            poses.append(np.concatenate([(rotation @ axes)[None], sampled.rotations[1:]]))
        for name, seen in (("pose and view", True), ("pose", False)):
            tree = cKDTree(layouts(hand, np.array(poses), seen))
            distances, _ = tree.query(layouts(hand, np.array(real), seen))
            mm = 1000 * distances / np.sqrt(21)
            print(
                f"real_poses {share:.2f}  {name:14} {mm.mean():5.1f} {np.median(mm):5.1f} {np.percentile(mm, 90):5.1f}"
            )


def layouts(hand, poses: Floats, seen: bool) -> Floats:
    """(N, 63) metres: joints about the wrist, upright in the picture; or, not `seen`, in the hand's own frame."""
    poses = poses.copy()
    if not seen:
        poses[:, 0] = np.eye(3)
    joints = np.concatenate([hand.posed(chunk).joints for chunk in np.array_split(poses, -(-len(poses) // 500))])
    joints = joints - joints[:, :1]
    if seen:
        angles = np.array([upright_rotation(points[:, :2]) for points in joints])
        c, s, zero, one = np.cos(angles), np.sin(angles), np.zeros_like(angles), np.ones_like(angles)
        turn = np.moveaxis(np.array([[c, -s, zero], [s, c, zero], [zero, zero, one]]), -1, 0)
        joints = joints @ np.swapaxes(turn, 1, 2)
    return joints.reshape(len(joints), -1)


if __name__ == "__main__":
    main()
