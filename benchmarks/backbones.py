"""What the train-time branches of FastViT cost in a training step (for latency: `handmesh bench --backbones`).

    OMP_NUM_THREADS=1 python benchmarks/backbones.py
    OMP_NUM_THREADS=1 python benchmarks/backbones.py --names fastvit_t8 fastvit_sa12 --size 128 --batch 16

A step is forward, backward and AdamW, float32, channels-last, through the final map and all four stages:

* "fast" as handmesh trains, "plain" without the arithmetic of handmesh.model.fastvit_cpu, "bfloat16" with
  `FastViT.train_perceptrons_in_bfloat16`;
* "reparameterized" trains the network without branches (one convolution per sum, no batch norm), as handmesh does, and
  "plain reparameterized" without that arithmetic; "branches" is what branches and batch norms cost.

Times are CPU milliseconds, the least and the median of several rounds in which the kinds of step take turns:
other programs disturb them less than a wall clock, and all alike.
"""

import argparse
import copy
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from handmesh.bench.timing import describe_machine
from handmesh.model.fastvit import VARIANTS, FastViT, build_backbone
from handmesh.model.network import to_device
from handmesh.runtime.timing import time_in_turns


def training_step(backbone: FastViT, images: Tensor) -> Callable[[], None]:
    """One optimisation step of an arbitrary smooth loss."""
    backbone = to_device(backbone, images.device).train().requires_grad_()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        final, pyramid = backbone.forward_all(images)
        loss = torch.stack([feature_map.square().mean() for feature_map in (final, *pyramid)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plainly(step: Callable[[], None]) -> Callable[[], None]:
    """The step without the arithmetic of handmesh.model.fastvit_cpu."""

    def conv(x: Tensor, weight: Tensor, stride: int = 1, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])

    def run() -> None:
        with (
            mock.patch("handmesh.model.fastvit.depthwise_conv", conv),
            mock.patch("handmesh.model.fastvit.can_train_fast", return_value=False),
        ):
            step()

    return run


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="rounds (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is a step's time only on one thread
    images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    machine = describe_machine()
    print(f"{machine['cpu']}, load {machine['load']}, torch {machine['torch']}, 1 thread")
    print(f"{options.size} px, batch {options.batch}, CPU ms: least (median) of {options.runs} steps")
    for name in options.names:
        backbone = build_backbone(name)
        low = copy.deepcopy(backbone).train_perceptrons_in_bfloat16()
        step = training_step(backbone, images)
        tasks: dict[str, Callable[[], object]] = {
            "plain": plainly(step),
            "fast": step,
            "bfloat16": training_step(low, images),
            "reparameterized": training_step(backbone.reparameterize(), images),
            "plain reparameterized": plainly(training_step(backbone.reparameterize(), images)),
        }
        times = time_in_turns(tasks, runs=options.runs, clock="cpu")
        columns = "  ".join(f"{key} {timing.min_ms:.0f} ({timing.median_ms:.0f})" for key, timing in times.items())
        print(f"{name:13} {columns}")
        for kind, without in (("fast", "reparameterized"), ("plain", "plain reparameterized")):
            least = times[kind].min_ms / times[without].min_ms - 1
            median = times[kind].median_ms / times[without].median_ms - 1
            print(f"{'':13} branches, {kind}: +{least:.0%} (+{median:.0%})", flush=True)


if __name__ == "__main__":
    main()
