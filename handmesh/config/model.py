"""Settings of the network: which backbone, which resolution, whose hand, which heads."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from handmesh.config.settings import Settings
from handmesh.hand.models import HAND_MODELS

# Backbones by name, and the module that builds each. A further one is a line here and a module of its own, and nothing
# else: handmesh.model.backbone says what it offers.
BACKBONES = {
    "fastvit_t8": "handmesh.model.fastvit",
    "fastvit_t12": "handmesh.model.fastvit",
    "fastvit_s12": "handmesh.model.fastvit",
    "fastvit_sa12": "handmesh.model.fastvit",
    "fastvit_sa24": "handmesh.model.fastvit",
    "fastvit_sa36": "handmesh.model.fastvit",
    "fastvit_ma36": "handmesh.model.fastvit",
}


def _known_hand(name: str) -> str:
    if name not in HAND_MODELS:
        raise ValueError(f"there is no hand model {name!r}, only {' and '.join(HAND_MODELS)}")
    return name


def known_backbone(name: str) -> str:
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}, only {', '.join(BACKBONES)}")
    return name


class ModelConfig(Settings):
    """What a checkpoint needs to rebuild its own network."""

    backbone: Annotated[str, AfterValidator(known_backbone)] = "fastvit_ma36"  # one of `BACKBONES`; the paper: MA36
    resolution: int = Field(default=224, ge=64, le=1024, multiple_of=32)  # px, the crop; the paper: 224
    # Share of residual branches left out in training, growing with depth to this.
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    # Whose hand it answers with: ours, or the MANO files that `handmesh mano add` brought. Part of the network.
    hand: Annotated[str, AfterValidator(_known_hand)] = "builtin"
    # Two more single layers on the pooled features; the paper has neither.
    confidence_head: bool = False  # a hand, and well found?
    handedness_head: bool = False  # does the crop show a right hand, or (unmirrored) a left one?
    joint_confidence_head: bool = False  # which of the joints are well found?
    # A second head, on features at the joints that the first draws (`handmesh.model.token_head`). The paper has none.
    token_head: bool = False
    # Where each joint is seen, from heatmaps at stride 8: what an answer can be fitted to (`handmesh.predict.refine`).
    keypoint_head: bool = False
    # The camera's first guess: 2 f / (r z) for a median FreiHAND frame, f = 730 px-metres per metre, r = 224 px.
    initial_scale: float = Field(default=6.5, gt=0)
