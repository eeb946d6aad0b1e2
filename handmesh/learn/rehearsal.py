"""A run of minutes on a borrowed machine, rehearsed in seconds on any: the same code at toy size, from end to end.

Two workers render while a few steps train, the run stops as if its time were over, is packed into parts, unpacked
elsewhere, and goes on. Whatever breaks, breaks here, and not while a GPU waits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from handmesh.config import TrainConfig, parse_config
from handmesh.errors import ConfigError
from handmesh.learn.carry import Packed, pack, unpack
from handmesh.learn.train import Progressed, train

logger = logging.getLogger(__name__)

FIRST_STEPS, MORE_STEPS = 20, 5
BUDGET_MB = 60  # what is carried in one trip: larger networks travel as weights alone


@dataclass(frozen=True)
class Rehearsal:
    packed: Packed
    step: int  # where the second run ended
    losses: list[float]  # total loss, every five steps


def toy_config(config: TrainConfig, directory: Path) -> TrainConfig:
    """The same run, but small: 64 px crops of 96 px renders, `FIRST_STEPS` + `MORE_STEPS` steps.

    Raises ConfigError for a run that does not render while it trains.
    """
    if config.data.live is None:
        raise ConfigError("Only runs with data.live can be rehearsed: for others there is configs/smoke.yaml.")
    tree = config.model_dump(mode="json")
    tree["model"]["resolution"] = 64
    tree["data"]["live"].update(
        directory=str(directory / "renders"), size=96, workers=2, capacity=48, start=8, reuse=16.0, backgrounds=4
    )
    tree["optimizer"]["warmup_steps"] = 5
    tree.update(
        steps=FIRST_STEPS + MORE_STEPS, batch_size=4, accumulation=1, low_resolution=None, low_resolution_share=0.0,
        compile=False, tensorboard=False, log_every=5, checkpoint_every=1000, evaluate_every=1000, evaluation_count=4,
    )  # fmt: skip
    return parse_config(tree, "rehearsal")


def rehearse(config: TrainConfig, directory: Path) -> Rehearsal:
    """All that a borrowed machine will do, in `directory`, which must be new. Raises what the run would raise."""
    toy = toy_config(config, directory)
    losses: list[float] = []

    def on_progress(now: Progressed) -> None:
        losses.append(now.losses["total"])

    asked = iter(range(1, FIRST_STEPS + 1))
    train(toy, directory / "there", on_progress=on_progress, stops=lambda: next(asked) == FIRST_STEPS)
    packed = pack(directory / "there", directory / "carried", budget_mb=BUDGET_MB)
    unpack(directory / "carried", directory / "here")
    train(toy, directory / "here", resume=True, on_progress=on_progress)
    return Rehearsal(packed, toy.steps, losses)
