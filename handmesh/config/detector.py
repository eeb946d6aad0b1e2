"""Settings of the detector of hands: its network, what it learns from, and its run (`handmesh train detector_t8`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from handmesh.config.data import SyntheticData
from handmesh.config.loss import Weight
from handmesh.config.model import known_backbone
from handmesh.config.optimizer import OptimizerConfig
from handmesh.config.settings import Settings
from handmesh.system.cpus import MAX_THREADS


class DetectorModel(Settings):
    """What a detector's file needs to rebuild its network (`handmesh.model.detector`)."""

    backbone: Annotated[str, AfterValidator(known_backbone)] = "fastvit_t8"  # one of `BACKBONES`
    stages: int = Field(default=3, ge=2, le=4)  # of the backbone, from the first
    mlp_ratio: int = Field(default=1, ge=1, le=4)  # hidden channels of its perceptrons over their outer ones
    width: int = Field(default=48, ge=8, le=256)  # channels of the pyramid


class SceneSource(Settings):
    """Photographs with their hands: a JSONL file (docs/how_to/data.md)."""

    path: Path = Field(strict=False)  # relative to where training is started
    weight: float = Field(default=1.0, gt=0)  # how often it is drawn in comparison with the others


class DetectorData(Settings):
    """What a detector learns from; the first three are shares of the pictures."""

    crowds: float = Field(default=0.4, ge=0)  # several renders on one background
    photographs: float = Field(default=0.35, ge=0)  # one photograph, cropped anew
    mosaics: float = Field(default=0.25, ge=0)  # several photographs in one picture
    synthetic: SyntheticData | None = None  # whose renders make crowds
    # Labels with hands cut out (`handmesh label --cut-out`), which lie in crowds among the renders.
    cut_outs: tuple[Annotated[Path, Field(strict=False)], ...] = ()
    cut_out_share: float = Field(default=0.5, ge=0, le=1)  # of a crowd's hands, where there are any
    scenes: tuple[SceneSource, ...] = ()  # what photographs and mosaics are made of
    sizes: tuple[float, float] = (0.035, 1.3)  # the longer side of a rendered hand's box over the picture's
    real_backgrounds: float = Field(default=0.3, ge=0, le=1)  # share of backgrounds that are photographs without a hand
    effects: float = Field(default=0.6, ge=0)  # strength of blur, noise, JPEG and colour changes

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not 0 < self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes is (low, high), both above zero")
        if self.crowds and self.synthetic is None:
            raise ValueError("crowds are made of renders: give synthetic, or set crowds to 0")
        if (self.photographs or self.mosaics) and not self.scenes:
            raise ValueError("photographs and mosaics are made of scenes: give them, or set both to 0")
        if not self.crowds + self.photographs + self.mosaics:
            raise ValueError("crowds, photographs and mosaics are all 0: nothing to learn from")
        return self


class DetectorLoss(Settings):
    """Weights of the parts of `handmesh.learn.detector.detector_loss`."""

    center: Weight = 1.0  # focal loss of CenterNet's heatmap
    box: Weight = 1.0  # 1 minus the generalised IoU
    direction: Weight = 0.3  # 1 minus the cosine of the angle between
    handedness: Weight = 0.3  # cross-entropy


class DetectorConfig(Settings):
    """A run of the detector of hands (`handmesh.learn.detector`)."""

    detector: DetectorModel = DetectorModel()
    data: DetectorData  # what it learns from
    loss: DetectorLoss = DetectorLoss()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=0, ge=0)  # of the weights and of what is drawn
    # A hand mesh model with the same backbone, or a detector: its trunk, or all of it, is the beginning.
    start_from: str | None = None
    frozen_stem: bool = False  # the first convolutions stay as they began: on a CPU a sixth of the time of a step
    resolution: int = Field(default=256, ge=64, le=512, multiple_of=16)  # px, of the pictures to learn from
    steps: int = Field(default=10_000, ge=1)  # of the optimiser
    batch_size: int = Field(default=32, ge=1)  # pictures per step, in all processes together
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: of the perceptrons, on a CPU
    # Torch's intra-op threads on a CPU. None: one for each core, or what OMP_NUM_THREADS allows; torchrun sets it to 1.
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    loader_workers: int = Field(default=1, ge=0, le=MAX_THREADS)  # per process
    log_every: int = Field(default=50, ge=1)  # steps
    checkpoint_every: int = Field(default=500, ge=1)  # steps; what an interruption costs at most
    keep_checkpoints: int = Field(default=3, ge=1)  # the last so many states
    evaluate_every: int = Field(default=2_000, ge=1)  # steps
    validation: tuple[SceneSource, ...] = ()  # photographs to count found hands in; none: not watched
    validation_side: int = Field(default=320, ge=64, le=1024, multiple_of=16)  # px, the longer side of a photograph
