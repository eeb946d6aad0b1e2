"""Settings of a run that learns the hand mesh model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from handmesh.config.augmentation import Augmentation, PhotoAugmentation
from handmesh.config.data import DataConfig, SyntheticData
from handmesh.config.loss import LossNorms, LossWeights
from handmesh.config.model import ModelConfig
from handmesh.config.optimizer import OptimizerConfig
from handmesh.config.settings import Settings
from handmesh.system.cpus import MAX_THREADS


class TrainConfig(Settings):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig(synthetic=SyntheticData())
    augmentation: Augmentation = Augmentation()  # of synthetic hands
    photo_augmentation: PhotoAugmentation = PhotoAugmentation()  # of FreiHAND's and your own photographs
    loss: LossWeights = LossWeights()
    loss_norms: LossNorms = LossNorms()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=0, ge=0)  # of the weights, the order of samples and their augmentation
    # Name under which `handmesh weights add` stored ImageNet weights of this backbone; None starts from random ones.
    pretrained: str | None = None
    # A model file, or the name of the bundled model, to start from instead. What `model` does not say is as that
    # model's, but for its drop path; a reparameterized one is unreparameterized, and one with a smaller backbone grows:
    # fastvit_t8 into fastvit_t12 or fastvit_s12, fastvit_sa12 into sa24, sa36 or ma36.
    start_from: str | None = None
    # The result: where the mean of the tuned weights and of those it started from is better over all validation sets
    # taken together, that mean (Wortsman et al., "Robust fine-tuning", CVPR 2022). A run on few photographs forgets.
    average_with_start: bool = False
    # Train the network as it is shipped, its branches and batch norms folded away: 1.5 times as fast on a CPU, and
    # without the noise of small batches' statistics. To go on from a trained model, at a low learning rate.
    reparameterized: bool = False
    steps: int = Field(default=30_000, ge=1)  # of the optimiser
    epochs: float | None = Field(default=None, gt=0)  # takes the place of steps: so many times all sources' samples
    # Samples per step, in all processes together. Batch norm sees batch_size / accumulation of them at a time.
    batch_size: int = Field(default=16, ge=2)
    accumulation: int = Field(default=1, ge=1)  # pieces that a batch is computed in, where memory is short
    # Optional easy start: this share of the steps runs at a lower resolution (fewer pixels, more samples per second).
    low_resolution: int | None = Field(default=None, ge=64, multiple_of=32)
    low_resolution_share: float = Field(default=0.0, ge=0, lt=1)  # of the steps; 0: none
    # bfloat16: autocast on a GPU; on a CPU that multiplies it the backbone's perceptrons alone, because nothing else
    # gains. float16: autocast with a scaled loss, for GPUs before Ampere, which have no bfloat16 (the paper's RTX 2080
    # Ti; V100, T4).
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False  # torch.compile: minutes at the start, fewer of them later; worth it for hours on a GPU
    # Torch's intra-op threads on a CPU. None: one for each core, or what OMP_NUM_THREADS allows; torchrun sets it to 1.
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    loader_workers: int = Field(default=1, ge=0, le=MAX_THREADS)  # per process
    log_every: int = Field(default=50, ge=1)  # steps
    tensorboard: bool = True  # scalars and overlays too, where it is installed
    checkpoint_every: int = Field(default=500, ge=1)  # steps; what an interruption costs at most
    keep_checkpoints: int = Field(default=3, ge=1)  # the last so many states
    evaluate_every: int = Field(default=2_000, ge=1)  # steps
    evaluation_count: int = Field(default=512, ge=1)  # images at most of each validation set
    # Which evaluation's weights become the model: the last one's, or those with the best joints on the validation sets.
    # test_set chooses by FreiHAND's test set: such scores do not compare with published ones, and the report says so.
    select: Literal["last", "validation", "test_set"] = "last"

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.low_resolution_share > 0 and self.low_resolution is None:
            raise ValueError("low_resolution_share needs low_resolution")
        lowered = self.low_resolution if self.low_resolution_share > 0 else None
        # Of a model to start from the resolution may not be known yet.
        if lowered is not None and self.start_from is None and lowered > self.model.resolution:
            raise ValueError(f"low_resolution {lowered} is above model.resolution {self.model.resolution}")
        ranges = {
            "augmentation.margin": self.augmentation.margin,
            "augmentation.context_scale": self.augmentation.context_scale,
            "photo_augmentation.context_scale": self.photo_augmentation.context_scale,
            "photo_augmentation.downscale_px": self.photo_augmentation.downscale_px,
        }
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} is (low, high), both above zero")
        if self.photo_augmentation.downscale_px[0] < 8:
            raise ValueError("photo_augmentation.downscale_px begins below 8 pixels: nothing of a hand is left")
        drawn = self.data.synthetic is not None and self.augmentation.effects > 0
        if self.model.resolution > 512 and (drawn or self.photo_augmentation.effects > 0):  # `camera_effects`' limit
            raise ValueError(
                "augmentation.effects and photo_augmentation.effects are made for crops of at most 512 px, and "
                f"model.resolution is {self.model.resolution}: set them to 0, or take a smaller crop"
            )
        if self.data.live is not None and self.epochs is not None:
            raise ValueError("epochs count what a source holds, and data.live has no end: give steps")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}")
        decay_at = self.optimizer.decay_at
        if not all(0 < share < 1 for share in decay_at) or list(decay_at) != sorted(decay_at):
            raise ValueError("optimizer.decay_at holds shares of the run, between 0 and 1, in increasing order")
        if self.pretrained is not None and self.start_from is not None:
            raise ValueError("pretrained and start_from are two beginnings: give one of them")
        if self.reparameterized and self.start_from is None:
            raise ValueError("reparameterized goes on from a trained model: give start_from")
        if self.average_with_start and not (self.reparameterized and self.select == "last"):
            raise ValueError("average_with_start goes with reparameterized: true and select: last")
        if self.reparameterized and self.model.drop_path > 0:
            raise ValueError(
                "a reparameterized network has no drop path: set model.drop_path to 0, or reparameterized to false"
            )
        if self.select == "test_set" and self.data.freihand is None:
            raise ValueError("select: test_set means FreiHAND's, and there is no data.freihand")
        if (
            self.select == "test_set"
            and self.data.freihand is not None
            and self.data.freihand.crop_shares.keys() == {"box"}
        ):
            raise ValueError("select: test_set goes with crop frame or metro: FreiHAND's test set gives no boxes")
        return self
