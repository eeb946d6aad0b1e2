"""The network that finds hands: FastViT's first stages, a light pyramid, and a grid of answers (`handmesh.hand.grid`).

It sees a picture of any size, (B, H, W, 3) uint8 RGB with sides that are multiples of `PICTURE_MULTIPLE`. Its trunk is
FastViT in reparameterized form, with narrower perceptrons: without batch norm, so a batch may be as small as a CPU
wants it. It starts from a hand mesh model of the same backbone, of which it keeps the widest hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from handmesh.config.detector import DetectorModel
from handmesh.errors import CheckpointError
from handmesh.hand.grid import CHANNELS
from handmesh.model.backbone import IMAGE_MEAN, IMAGE_STD
from handmesh.model.fastvit import VARIANTS, ConvFFN, DepthwiseConv2d, FastViT

_RARE = -4.6  # logit of 1 %: most cells see no hand (Lin et al., "Focal loss", ICCV 2017, section 3.3)


class HandDetectorNet(nn.Module):
    """(B, H, W, 3) uint8 RGB -> (B, 8, H / 8, W / 8) float32."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: DetectorModel) -> None:
        super().__init__()
        self.config = config
        variant = replace(VARIANTS[config.backbone], mlp_ratio=config.mlp_ratio)
        trunk = FastViT(config.backbone, variant, num_classes=0, drop_path=0.0).reparameterize()
        self.patch_embed = trunk.patch_embed
        self.network = trunk.network[: 2 * config.stages - 1]  # stage, patch embedding, stage, ...
        width = config.width
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in variant.channels[1 : config.stages])
        self.mixers = nn.ModuleList(_Mixer(width) for _ in self.laterals)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.predict = nn.Conv2d(width, CHANNELS, 1)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        nn.init.normal_(self.predict.weight, std=1e-2)
        # A hand is rare; its box is of five or six cells.
        self.predict.bias = nn.Parameter(torch.tensor([_RARE, *[1.0] * 4, *[0.0] * (CHANNELS - 5)]))
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.permute(0, 3, 1, 2) / 255.0 - self.image_mean) / self.image_std
        x = self.patch_embed(x)
        maps = []
        for index, part in enumerate(self.network):
            x = part(x)
            if index % 2 == 0:
                maps.append(x)
        merged = None
        for lateral, mixer, stage in reversed(list(zip(self.laterals, self.mixers, maps[1:], strict=True))):
            own = lateral(stage)
            merged = mixer(own if merged is None else own + _twice_as_fine(merged, own))
        assert merged is not None
        answers: Tensor = self.predict(torch.relu(self.smooth(torch.relu(merged))))
        return answers.float()

    def train_perceptrons_in_bfloat16(self) -> None:
        """As `Backbone.train_perceptrons_in_bfloat16`."""
        for module in self.modules():
            if isinstance(module, ConvFFN):
                module.train_in_bfloat16 = True

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the trunk of a reparameterized `FastViT` of the same channels, by its own names.

        Of a perceptron with more hidden channels those stay that carry most: by the product of the norms of their
        weights before and after. Raises CheckpointError for another backbone, or fewer hidden channels.
        """
        kept: dict[str, Tensor] = {}
        for name, own in self.state_dict().items():
            if not name.startswith(("patch_embed.", "network.")):
                continue
            value = weights.get(name)
            if value is None:
                raise CheckpointError(f"The model to start from has no {name}: it has another backbone.")
            if value.shape != own.shape:
                block, _, layer = name.rpartition("convffn.")
                if not block or value.numel() < own.numel():
                    raise CheckpointError(f"{name} is {tuple(value.shape)}, wanted {tuple(own.shape)}.")
                first, second = (weights[f"{block}convffn.{fc}.weight"].flatten(1) for fc in ("fc1", "fc2"))
                chosen = (
                    (first.norm(dim=1) * second.norm(dim=0))
                    .topk(self.state_dict()[f"{block}convffn.fc1.bias"].numel())
                    .indices
                )
                value = value[:, chosen] if layer == "fc2.weight" else value[chosen]
            kept[name] = value
        self.load_state_dict(kept, strict=False)


class _Mixer(nn.Module):
    """What a cell of the pyramid learns of the cells around it: a hand's fingers lie in others than its middle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = DepthwiseConv2d(width, width, 7, padding=3, groups=width)
        self.mix = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.mix.weight)  # begins as no change

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.mix(nn.functional.gelu(self.around(x)))
        return mixed


def _twice_as_fine(coarse: Tensor, fine: Tensor) -> Tensor:
    """Each cell as four; the last ones left out where the finer map has an odd number."""
    height, width = fine.shape[-2:]
    return nn.functional.interpolate(coarse, scale_factor=2.0)[..., :height, :width]
