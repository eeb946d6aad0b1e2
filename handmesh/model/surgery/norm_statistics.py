"""What a network's batch norms see on real images, for networks that are made from others (`unreparameterize`,
`grow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handmesh.model.network import HandMeshNet


class Statistics(NamedTuple):
    """Of one batch norm's input, over all images and pixels; (C,) each, float64, on the CPU."""

    mean: Tensor
    variance: Tensor


@torch.no_grad()
def norm_statistics(
    model: HandMeshNet,
    images: Iterable[Tensor],
    seen: Callable[[str, nn.BatchNorm2d, Statistics], None] = lambda name, norm, statistics: None,
) -> dict[str, Statistics]:
    """Each batch norm's name and what comes into it when `model` looks at these images.

    model: in eval mode. images: batches, (B, S, S, 3) uint8 RGB. seen: told of each norm what has come so far, in every
    batch just before the norm computes; what it changes there the layers behind see. Raises ValueError without images.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sums = {name: torch.zeros(3, norm.num_features, dtype=torch.float64) for name, norm in norms.items()}

    def so_far(name: str) -> Statistics:
        count, total, squares = sums[name]
        return Statistics(total / count, (squares / count - (total / count) ** 2).clamp(min=0))

    def add(name: str, norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        values = inputs[0].double()
        total, squares = values.sum(dim=(0, 2, 3)).cpu(), (values**2).sum(dim=(0, 2, 3)).cpu()
        sums[name] += torch.stack([torch.full_like(total, values[:, 0].numel()), total, squares])
        seen(name, norm, so_far(name))

    hooks = [norm.register_forward_pre_hook(partial(add, name)) for name, norm in norms.items()]
    looked_at = 0
    for batch in images:
        model(batch.to(model.camera_head.weight.device))
        looked_at += len(batch)
    for hook in hooks:
        hook.remove()
    if looked_at == 0:
        raise ValueError("no images to measure batch-norm statistics on")
    return {name: so_far(name) for name in norms}
