"""A second head, off unless asked for: looks again at the places where the first answer draws the joints.

The idea is simpleHand's (Zhou et al., "A Simple Baseline for Efficient Hand Mesh Reconstruction", CVPR 2024): features
sampled at predicted 2D keypoints are tokens, one for each joint, and attention blocks make the mesh of them. There a
linear layer on the pooled features predicts the keypoints, the tokens come from the backbone's last map, enlarged, and
are split in stages into hundreds that become 778 free vertices. Here the keypoints are those of the hand that the three
single layers answer with, tokens come from that map and from the one at stride 8, one block attends, and what comes out
are corrections to camera, rotations and shape: the answer stays a posed hand model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from handmesh.hand import JOINT_COUNT

_WIDTH, _ATTENTION_HEADS = 128, 4
_SUMMARY = 16  # numbers of each token that corrections are made of: with all, Adam's first steps would be leaps


class TokenHead(nn.Module):
    """Maps of the crop and where the joints are in it -> corrections, zero before training."""

    def __init__(self, channels: tuple[int, ...], answers: int) -> None:
        """channels: of each map. answers: how many numbers to correct."""
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(count, _WIDTH) for count in channels)
        self.places = nn.Linear(2, _WIDTH)
        self.joints = nn.Embedding(JOINT_COUNT, _WIDTH)
        nn.init.normal_(self.joints.weight, std=0.02)
        self.attention_norm = nn.LayerNorm(_WIDTH)
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.attended = nn.Linear(_WIDTH, _WIDTH)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 2 * _WIDTH), nn.GELU(), nn.Linear(2 * _WIDTH, _WIDTH)
        )
        self.summary = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _SUMMARY))
        self.corrections = nn.Linear(JOINT_COUNT * _SUMMARY, answers)
        nn.init.zeros_(self.corrections.weight)
        nn.init.zeros_(self.corrections.bias)

    def forward(self, maps: tuple[Tensor, ...], keypoints: Tensor) -> Tensor:
        """(B, C, h, w) each, (B, 21, 2) in NDC -> (B, answers)."""
        tokens = self.joints.weight + self.places(keypoints)
        for projection, values in zip(self.projections, maps, strict=True):
            tokens = tokens + projection(sampled(values, keypoints))
        queries, keys, values = (
            part.unflatten(-1, (_ATTENTION_HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        attended = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        tokens = tokens + self.attended(attended)
        tokens = tokens + self.perceptron(tokens)
        corrections: Tensor = self.corrections(self.summary(tokens).flatten(1))
        return corrections


def sampled(values: Tensor, points: Tensor) -> Tensor:
    """(B, C, h, w) at (B, P, 2) in NDC -> (B, P, C), bilinear; beyond the outer cells' centres, as there.

    As `grid_sample` gives it, by a product of matrices that every runtime has.
    """

    def shares(along: Tensor, count: int) -> Tensor:
        """(B, P) -> (B, P, count): how much each of the cells counts."""
        place = (((along + 1) * count - 1) / 2).clamp(0, count - 1)
        cells = torch.arange(count, device=along.device, dtype=along.dtype)
        return (1 - (place[..., None] - cells).abs()).clamp(min=0)

    across, down = shares(points[..., 0], values.shape[-1]), shares(points[..., 1], values.shape[-2])
    return (down[..., :, None] * across[..., None, :]).flatten(2) @ values.flatten(2).mT
