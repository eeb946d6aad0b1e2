"""From a trained network to a larger one that begins as the same function, and goes on learning from there.

Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016, widen and deepen a network without a jump. Where they copy channels,
ours are new: they start with random weights, and everything that is old starts by not listening to them. So every
channel of the small network keeps its number and its values, and the new ones have gradients from the first step on.
New blocks are at the end of their stage, with the layer scale of fresh ones, so nearly the identity. New channels'
batch norms know the statistics of real images, so that a grown network can be reparameterized, and trained in that
form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields

import torch
from torch import Tensor, nn

from handmesh.config.model import ModelConfig
from handmesh.errors import ConfigError
from handmesh.model.fastvit import VARIANTS, Variant
from handmesh.model.network import HandMeshNet
from handmesh.model.surgery.norm_statistics import Statistics, norm_statistics

_QKV = re.compile(r"\.qkv\.(weight|bias)$")


@torch.no_grad()
def grow(model: HandMeshNet, backbone: str, images: Iterable[Tensor]) -> HandMeshNet:
    """A network with this larger backbone, in eval mode, that answers as `model` does, to new blocks' layer scale.

    model: in train-time form; left as it is. backbone: one of `VARIANTS` with at least as many blocks and channels in
    every stage and the same kind of last stage. images: a few batches, (B, S, S, 3) uint8 RGB, like those to train on;
    new channels' batch-norm statistics are measured on them. New weights are random, from torch's generator. Raises
    ConfigError for a backbone that does not contain the other, ValueError for a reparameterized network or without any
    images.
    """
    if model.reparameterized:
        raise ValueError("the network is reparameterized: unreparameterize it first")
    check_growth(model.config.backbone, backbone)
    config: ModelConfig = model.config.model_copy(update={"backbone": backbone})
    larger = HandMeshNet(config, model.hand).to(model.camera_head.weight.device).eval()
    own = larger.state_dict()
    for name, known in model.state_dict().items():
        _put(own[name], known, name)
    _measure_new_channels(larger, model, images)
    return larger


def _measure_new_channels(larger: HandMeshNet, model: HandMeshNet, images: Iterable[Tensor]) -> None:
    """Give new channels' batch norms these images' statistics, every layer on what the one before now gives."""
    old = {name: norm.num_features for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}

    def keep(name: str, norm: nn.BatchNorm2d, statistics: Statistics) -> None:
        new = slice(old.get(name, 0), None)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean[new] = statistics.mean[new]
        norm.running_var[new] = statistics.variance[new]

    norm_statistics(larger, images, keep)


def check_growth(small: str, large: str) -> None:
    """Raises ConfigError, with those that would do, where `large` does not contain `small`."""
    if not {small, large} <= VARIANTS.keys():
        raise ConfigError(f"{small} cannot grow into {large}: FastViTs grow, other backbones do not.")
    before, after = VARIANTS[small], VARIANTS[large]
    if before.attention != after.attention:
        kinds = {True: "attention", False: "RepMixer"}
        raise ConfigError(
            f"{small} cannot grow into {large}: the last stage of the one has {kinds[before.attention]}, of the other "
            f"{kinds[after.attention]}. {_choices(small)}"
        )
    smaller = [name for name in ("blocks", "channels", "mlp_ratio") if not _at_least(after, before, name)]
    if smaller:
        raise ConfigError(f"{small} cannot grow into {large}, which has fewer {smaller[0]}. {_choices(small)}")


def _put(new: Tensor, known: Tensor, name: str) -> None:
    """Copy `known` into the beginning of `new`, along every axis; its outputs ignore inputs that are new."""
    if _QKV.search(name):  # outputs are (query, key, value) x channel: each of the three begins anew
        new, known = new.unflatten(0, (3, -1)), known.unflatten(0, (3, -1))
        for mine, theirs in zip(new, known, strict=True):
            _put(mine, theirs, "")
        return
    if known.ndim > 1:
        new[: known.shape[0]] = 0
    new[tuple(slice(size) for size in known.shape)] = known


def _choices(small: str) -> str:
    before = VARIANTS[small]
    names = [
        name
        for name, after in VARIANTS.items()
        if name != small
        and after.attention == before.attention
        and all(_at_least(after, before, field.name) for field in fields(Variant)[:3])
    ]
    return f"It can into: {', '.join(names)}." if names else "It is the largest of its kind."


def _at_least(large: Variant, small: Variant, name: str) -> bool:
    values, others = getattr(large, name), getattr(small, name)
    if isinstance(values, tuple):
        return all(value >= other for value, other in zip(values, others, strict=True))
    return bool(values >= others)
