"""What sees the crop for the network: what every backbone offers, and how one is built by name.

FastViT is one (`handmesh.model.fastvit`). Another is a module with a subclass of `Backbone` and a function
``build_backbone(name, *, drop_path)``, and a line in `handmesh.config.model.BACKBONES`: training, scores, every
engine and every export then take it, for graphs are traced from the network itself.
"""

from __future__ import annotations

import copy
import importlib
from typing import Self

from torch import Tensor, nn

from handmesh.config.model import BACKBONES
from handmesh.errors import ConfigError

# Mean and standard deviation of ImageNet's RGB values (0 to 1): the published backbones were trained with these.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """(B, 3, H, W) normalised RGB -> features (B, channels, ceil(H / 32), ceil(W / 32))."""

    name: str
    channels: int
    pyramid_channels: tuple[int, int, int, int]  # of the maps that `forward_all` gives besides
    reparameterized: bool = False  # whether this is the form for inference

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_all(images)[0]

    def forward_all(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The features, and maps of strides 4, 8, 16 and 32, from which training learns where each joint is."""
        raise NotImplementedError

    def reparameterize(self) -> Self:
        """A copy for inference, in eval mode, that answers the same: here, as it was trained."""
        copied = copy.deepcopy(self).eval()
        copied.reparameterized = True
        return copied.requires_grad_(False)

    def train_perceptrons_in_bfloat16(self, enabled: bool = True) -> Self:
        """Compute coarsely in training on a CPU what gains by it: here, nothing. Returns this module."""
        return self


def build_backbone(name: str, *, drop_path: float | None = None) -> Backbone:
    """One of `config.BACKBONES`, with fresh weights. Raises ConfigError for another name, or an impossible number."""
    if name not in BACKBONES:
        raise ConfigError(f"There is no backbone {name!r}. Choose one of: {', '.join(BACKBONES)}.")
    built: Backbone = importlib.import_module(BACKBONES[name]).build_backbone(name, drop_path=drop_path)
    return built
