"""How much memory does training take, by calculation?  python benchmarks/memory.py freihand_ma36 freihand_ma36_plus

No GPU is needed, and none is measured: what autograd keeps of a forward pass is counted, tensor by tensor, each storage
once, on a CPU under the autocast that a GPU would run, for batches of two and three; the difference is one sample's
share. Beside it stand weights, gradients, Adam's two moments and the averaged weights, in float32. On top of the sum
come what kernels borrow and what the allocator wastes, which is not counted: leave a quarter of the card free.
`accumulation: n` computes a batch in n pieces and divides the samples' part by n.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from handmesh.config.load import load_config
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.train import TrainingModule, _wants_dense
from handmesh.model import fastvit
from handmesh.model.network import DenseHead, HandMeshNet

BATCHES = (32, 64, 128, 256)
_COPIES = 5  # of the weights: themselves, gradients, two moments, their average


def kept_bytes(module: TrainingModule, images: Tensor, low: torch.dtype | None) -> int:
    """What autograd keeps of a forward pass for the backward one, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = []  # so that no storage's address is given to another
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or count(tensor), lambda one: one),
        torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None),
    ):
        module(images)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names or paths of configurations")
    args = parser.parse_args()
    fastvit.can_train_fast = lambda *_: False  # branches as a GPU computes them, in float32 too
    print("| config | precision | weights and optimizer | a sample | " + " | ".join(map(str, BATCHES)) + " |")
    print("| --- |" + " --- |" * (3 + len(BATCHES)))
    for name in args.configs:
        config = load_config(name)
        model = HandMeshNet(config.model, HandModel(builtin_hand()))
        dense = DenseHead(model.backbone.pyramid_channels) if _wants_dense(config) else None
        module = TrainingModule(model, dense).train()
        low = None if config.precision == "float32" else getattr(torch, config.precision)
        side = config.model.resolution
        few, more = (kept_bytes(module, torch.zeros(count, side, side, 3, dtype=torch.uint8), low) for count in (2, 3))
        weights = 4 * _COPIES * sum(parameter.numel() for parameter in module.parameters())
        if low is not None:  # autocast's copies of the weights
            weights += 2 * sum(parameter.numel() for parameter in module.parameters())
        sample = more - few
        totals = [f"{(weights + batch * sample) / 1e9:.1f} GB" for batch in BATCHES]
        print(
            f"| {name} | {config.precision} | {weights / 1e9:.2f} GB | {sample / 1e6:.0f} MB | {' | '.join(totals)} |"
        )


if __name__ == "__main__":
    main()
