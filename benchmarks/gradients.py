"""How much of the gradient does each part of a loss carry?

    python benchmarks/gradients.py freihand_ma36 freihand_ma36_plus

Hands of random pose and shape are answered with mistakes as a network makes them: orientation, fingers, shape and
camera are off by normal numbers, all of them scaled by `--mistake` (1: 15 degrees in the orientation, 12 in each joint,
half a shape's standard deviation, 5 % and 8 mm of the camera; 2 stands for the start of a training, 0.3 for its end).
Of each part, times its weight, the gradient with respect to the pose (small turns of its 16 rotations, radians), the
shape and the camera is taken, per hand; its share is its mean length over the sum of all parts' lengths. Heads that are
there in training only are left out, and so are parts of weight zero. No data, no weights, half a minute on a core.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from handmesh.config.load import load_config
from handmesh.config.train import TrainConfig
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.losses import hand_loss
from handmesh.learn.targets import complete_targets

ORIENTATION_MISTAKE, JOINT_MISTAKE = math.radians(15), math.radians(12)
BETAS_MISTAKE, SCALE_MISTAKE, SHIFT_MISTAKE = 0.5, 0.05, 0.008  # the camera's scale, relative; its translation, metres
VARIABLES = ("pose", "betas", "camera")


def rotations(vectors: Tensor) -> Tensor:
    """(*B, 3) -> (*B, 3, 3), with gradients."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


def gradient_shares(config: TrainConfig, mistake: float, count: int = 64, seed: int = 0) -> dict[str, dict[str, float]]:
    """Of each variable, each part's share of the gradient."""
    hand, generator = HandModel(builtin_hand()), torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.tensor([1.5] + [0.25] * 15)[:, None]
    pose, betas = rotations(spread * normal(count, 16, 3)), normal(count, 10)
    camera = torch.tensor([6.5, 0.0, 0.0]) + torch.tensor([0.6, 0.03, 0.03]) * normal(count, 3)
    vertices, joints = hand(pose, betas)
    truth = complete_targets(WeakPerspectiveCamera.from_vector(camera).project(joints), joints, vertices, pose, betas)
    sizes = torch.tensor([ORIENTATION_MISTAKE] + [JOINT_MISTAKE] * 15)[:, None]
    wrong_pose = rotations(mistake * sizes * normal(count, 16, 3)) @ pose
    turns, shapes, cameras = (torch.zeros(count, *shape, requires_grad=True) for shape in ((16, 3), (10,), (3,)))
    relative = torch.cat([1 + mistake * SCALE_MISTAKE * normal(count, 1), torch.ones(count, 2)], dim=1)
    moved = torch.cat([torch.zeros(count, 1), mistake * SHIFT_MISTAKE * normal(count, 2)], dim=1)
    answered = rotations(turns) @ wrong_pose, betas + mistake * BETAS_MISTAKE * normal(count, 10) + shapes
    likely = torch.ones(count)
    heads = likely, likely, likely[:, None].expand(-1, 21), torch.zeros(count, 21, 3)
    output = HandOutput(camera * relative + moved + cameras, *answered, *hand(*answered), *heads)
    faces = torch.from_numpy(hand.faces).long()
    _, parts = hand_loss(output, None, truth, config.loss, config.loss_norms, faces=faces)
    lengths: dict[str, dict[str, float]] = {name: {} for name in VARIABLES}
    for part, value in parts.items():
        weighted = getattr(config.loss, part) * value * count
        if not weighted.requires_grad or not getattr(config.loss, part):
            continue
        gradients = torch.autograd.grad(weighted, (turns, shapes, cameras), retain_graph=True, materialize_grads=True)
        for name, gradient in zip(VARIABLES, gradients, strict=True):
            lengths[name][part] = float(gradient.flatten(1).norm(dim=1).mean())
    return {
        name: {part: length / max(sum(of_parts.values()), 1e-30) for part, length in of_parts.items()}
        for name, of_parts in lengths.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names or paths of configurations")
    parser.add_argument("--mistake", type=float, nargs="+", default=[2.0, 1.0, 0.3])
    args = parser.parse_args()
    for name in args.configs:
        config = load_config(name)
        print(
            f"\n{name}: share of the gradient, %\n| part | "
            + " | ".join(f"{variable} ({mistake:g})" for variable in VARIABLES for mistake in args.mistake)
            + " |"
        )
        print("| --- |" + " --- |" * (len(VARIABLES) * len(args.mistake)))
        shares = [gradient_shares(config, mistake) for mistake in args.mistake]
        for part in shares[0]["pose"]:
            cells = [100 * one[variable][part] for variable in VARIABLES for one in shares]
            print(f"| {part} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
