"""Networks as training leaves them, without training."""

from __future__ import annotations

import torch

from handmesh.config.model import ModelConfig
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.model.network import HandMeshNet


def trained(backbone: str) -> HandMeshNet:
    """Weights and statistics as training leaves them: no branch, norm or layer scale at its first value."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, resolution=64, confidence_head=True, keypoint_head=True)
    model = HandMeshNet(config, HandModel(builtin_hand()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(0.1, 0.5, generator=generator)
            elif parameter.ndim == 1 and "head" not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.pose_head.weight.normal_(std=0.05, generator=generator)
    model.train()
    for seed in range(8):
        model(images(16, seed))
    return model.eval()


def images(count: int, seed: int) -> torch.Tensor:
    """Smooth colours with noise: batch-norm statistics of these are no extreme."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")
    noisy = 255 * (0.8 * smooth + 0.2 * torch.rand(count, 3, 64, 64, generator=generator))
    return noisy.permute(0, 2, 3, 1).to(torch.uint8)
