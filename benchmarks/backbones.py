"""The FastViT family on this machine: size, latency folded against unfolded, and the cost of a training step.

    python benchmarks/backbones.py                                  # all seven, 256 px, batch 1
    python benchmarks/backbones.py --train --names fastvit_t8 --size 128 --batch 16

Latency is the least of several rounds in milliseconds, eager PyTorch, float32, channels-last. A training step is
forward, backward and AdamW, through the final map and all four stages: "fast" as handmesh trains, "plain" without the
arithmetic of handmesh.backbone_training, "bfloat16" with `FastViT.train_perceptrons_in_bfloat16`. "folded" trains the
folded network (one convolution per sum, no batch norm), and "branches" is what the branches cost beyond it. The kinds
of step take turns, so that a busy machine disturbs all alike.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from handmesh.backbone import VARIANTS, FastViT, build_backbone, fold_branches

PAPER = {  # Table 2: millions of parameters, billions of multiply-adds at 256 px
    "fastvit_t8": (3.6, 0.7),
    "fastvit_t12": (6.8, 1.4),
    "fastvit_s12": (8.8, 1.8),
    "fastvit_sa12": (10.9, 1.9),
    "fastvit_sa24": (20.6, 3.8),
    "fastvit_sa36": (30.4, 5.6),
    "fastvit_ma36": (42.7, 7.9),
}


def sizes(name: str, size: int) -> tuple[float, float, float]:
    """Millions of parameters in train-time and released folded form with 1000 classes; billions of multiply-adds."""
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(name, num_classes=1000).eval()
        train = sum(parameter.numel() for parameter in backbone.parameters())
        fold_branches(backbone)
        counter = FlopCounterMode(display=False)
        with counter:
            backbone.classify(torch.empty(1, 3, size, size))
    return train / 1e6, sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, (
        counter.get_total_flops() / 2e9
    )  # fmt: skip


def least_milliseconds(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least time of each task; the tasks take turns."""
    seconds = dict.fromkeys(tasks, float("inf"))
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: 1000 * value for name, value in seconds.items()}


def training_step(backbone: FastViT, images: Tensor) -> Callable[[], None]:
    """One optimisation step of an arbitrary smooth loss."""
    backbone = backbone.to(memory_format=torch.channels_last).train().requires_grad_()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        final, pyramid = backbone.forward_all(images)
        loss = torch.stack([feature_map.square().mean() for feature_map in (final, *pyramid)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plainly(step: Callable[[], None]) -> Callable[[], None]:
    """The step without the arithmetic of handmesh.backbone_training."""

    def conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])

    def run() -> None:
        with (
            mock.patch("handmesh.backbone.depthwise_conv", conv),
            mock.patch("handmesh.backbone.can_train_fast", return_value=False),
        ):
            step()

    return run


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--train", action="store_true", help="time training steps instead of predictions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.size} px, batch {options.batch}, ms")
    for name in options.names:
        if options.train:
            backbone = build_backbone(name)
            low = copy.deepcopy(backbone).train_perceptrons_in_bfloat16()
            step = training_step(backbone, images)
            tasks: dict[str, Callable[[], object]] = {
                "plain": plainly(step),
                "fast": step,
                "bfloat16": training_step(low, images),
                "folded": training_step(backbone.reparameterize(), images),
            }
            times = least_milliseconds(tasks, options.rounds)
            rates = "  ".join(f"{key} {ms:7.1f} ({1000 * options.batch / ms:6.1f}/s)" for key, ms in times.items())
            print(f"{name:13} {rates}  branches +{100 * (times['fast'] / times['folded'] - 1):.0f}%")
        else:
            train, folded, macs = sizes(name, 256)
            backbone = build_backbone(name).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            reparameterized = backbone.reparameterize()
            with torch.inference_mode():
                times = least_milliseconds(
                    {"unfolded": partial(backbone, images), "folded": partial(reparameterized, images)},
                    options.rounds,
                )
            paper_params, paper_macs = PAPER[name]
            print(
                f"{name:13} {train:6.2f} M / {folded:6.2f} M folded (paper {paper_params} M)"
                f"  {macs:5.2f} G (paper {paper_macs} G)"
                f"  unfolded {times['unfolded']:7.1f}  folded {times['folded']:7.1f}"
            )


if __name__ == "__main__":
    main()
