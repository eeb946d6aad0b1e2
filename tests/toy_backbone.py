"""A backbone of somebody else's: small, of strided convolutions, a batch norm and a perceptron over channels."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from handmesh.model.backbone import Backbone

WIDTHS = (8, 16, 24, 32)


class Toy(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.name, self.channels, self.pyramid_channels = "toy", WIDTHS[-1], WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 4), nn.GELU())
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 2, 2), nn.BatchNorm2d(after), nn.GELU(), nn.Conv2d(after, after, 1))
            for before, after in pairwise(WIDTHS)
        )
        self.perceptron = nn.Linear(self.channels, self.channels)

    def forward_all(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        first = self.stem(images)
        second = self.stages[0](first)
        third = self.stages[1](second)
        fourth = self.stages[2](third)
        features = fourth + self.perceptron(fourth.movedim(1, -1)).movedim(-1, 1)
        return features, (first, second, third, fourth)


def build_backbone(name: str, *, drop_path: float | None = None) -> Toy:
    return Toy()
