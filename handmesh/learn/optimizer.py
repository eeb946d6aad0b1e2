"""The optimiser, its schedule, and the average of the weights that becomes the model."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from handmesh.config.detector import DetectorConfig
from handmesh.config.train import TrainConfig
from handmesh.runtime.device import cpu_gains_by_bfloat16

logger = logging.getLogger(__name__)


def takes_bfloat16(config: TrainConfig | DetectorConfig, device: torch.device) -> bool:
    """Whether the run computes in bfloat16: as it is set, but for a CPU that is slower in it than in float32."""
    if config.precision != "bfloat16":
        return False
    if device.type == "cpu" and not cpu_gains_by_bfloat16():
        logger.warning("precision: bfloat16 is slower than float32 on this processor, so float32 is taken.")
        return False
    return True


def make_optimizer(config: TrainConfig | DetectorConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """Fused Adam or AdamW; weight decay on kernels and matrices only, not on biases, norms and layer scales."""
    settings = config.optimizer
    parameters = [named for module in modules for named in module.named_parameters()]
    decayed = [value for name, value in parameters if value.ndim > 1 and "layer_scale" not in name]
    others = [value for name, value in parameters if value.ndim <= 1 or "layer_scale" in name]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0}]
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate, fused=True)


def learning_rate_at(config: TrainConfig | DetectorConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to the final rate, or steps down."""
    settings = config.optimizer
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "step":
        passed = sum(step >= share * config.steps for share in settings.decay_at)
        return settings.learning_rate * settings.decay_factor**passed
    done = (step - settings.warmup_steps) / max(config.steps - settings.warmup_steps, 1)
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: TrainConfig | DetectorConfig, step: int, warm_again_at: int | None = None
) -> None:
    """`warm_again_at`: a step at which the optimiser began anew, without its moments; after it a second warm-up."""
    rate = learning_rate_at(config, step)
    if warm_again_at is not None:
        rate *= min(1.0, (step - warm_again_at + 1) / max(config.optimizer.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of weights and batch-norm statistics; shorter at first, to forget the start."""
    decay = min(decay, (1 + step) / (10 + step))
    current = model.state_dict()
    floating = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floating], [current[name] for name in floating], 1 - decay)
    for name in average.keys() - floating:
        average[name].copy_(current[name])
