"""Settings of the optimiser, of every kind of run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handmesh.config.settings import Settings


class OptimizerConfig(Settings):
    name: Literal["adamw", "adam"] = "adamw"  # the paper of the backbone: AdamW; METRO: Adam
    learning_rate: float = Field(default=1e-3, gt=0)  # at its highest, after the warm-up
    # cosine: half a cosine from learning_rate to final_learning_rate. step: times decay_factor at each of decay_at.
    schedule: Literal["cosine", "step"] = "cosine"
    final_learning_rate: float = Field(default=1e-5, ge=0)  # of a cosine, at the last step
    decay_at: tuple[float, ...] = (0.5,)  # shares of the run, in increasing order
    decay_factor: float = Field(default=0.1, gt=0, le=1)  # of a step schedule
    weight_decay: float = Field(default=0.02, ge=0)  # on kernels and matrices only
    warmup_steps: int = Field(default=500, ge=0)  # linear, from zero: batch norm and Adam need some
    clip_norm: float | None = Field(default=5.0, gt=0)  # of all gradients together; None: no limit
    ema_decay: float = Field(default=0.998, ge=0, lt=1)  # of the averaged weights, which are the result; 0: no average
