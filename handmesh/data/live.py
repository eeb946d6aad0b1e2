"""Synthetic hands that are rendered while training runs: workers draw, a ring on the training device holds the newest.

Every batch samples the ring and sees its renders anew (`augment_gpu`), so a render is used many times before the
next ones take its place. What a step's crops and cameras are depends on (seed, step) only; which renders there are by
then depends on the machine, so unlike with a set on disk two runs are not equal bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmesh.config.data import LiveData
from handmesh.config.train import TrainConfig
from handmesh.data.augment_gpu import BatchAugmenter, picture_bank
from handmesh.data.stream import HandBatch, resolution_at
from handmesh.hand import HandArrays
from handmesh.synth.backgrounds import draw_distractors, procedural_background
from handmesh.synth.farm import RenderBatch, RenderFarm, no_renders
from handmesh.system.cpus import usable_cpus

logger = logging.getLogger(__name__)

_STREAM = 7  # of random numbers: (seed, this, step)
_BACKGROUND_STREAM = 8
# Renders of a session that begins at step s are numbered from s times this: none is drawn twice.
_RENDERS_PER_STEP = 1 << 24


class RenderBuffer:
    """A ring of the newest `capacity` renders, on a device: the oldest are overwritten."""

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.added = 0  # renders that were ever added
        self.renders = no_renders(size).map(
            lambda like: torch.zeros(capacity, *like.shape[1:], dtype=torch.from_numpy(like).dtype, device=device)
        )

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, renders: RenderBatch[NDArray[Any]]) -> None:
        """Renders in place of the oldest ones; of more than fit, the last."""
        if not len(renders.indices):
            return
        new = renders.map(lambda values: values[-self.capacity :])
        self.added += len(renders.indices) - len(new.indices)
        places = torch.arange(self.added, self.added + len(new.indices), device=self.device) % self.capacity
        for stored, values in zip(self.renders, new, strict=True):
            stored[places] = _to_device(torch.from_numpy(values), self.device)
        self.added += len(new.indices)

    def sample(self, count: int, generator: torch.Generator) -> RenderBatch[Tensor]:
        """`count` of them at random, each as likely as the others."""
        numbers = torch.rand(count, generator=generator, device=self.device)
        chosen = (numbers * len(self)).long().clamp(max=len(self) - 1)
        return self.renders.map(lambda values: values[chosen])


def live_batches(
    config: TrainConfig, hand: HandArrays, device: torch.device, first_step: int
) -> Generator[HandBatch, None, None]:
    """The batches of steps `first_step` to `config.steps`, on `device`. Closing the generator ends the workers.

    Raises DataError when no rendering process is left.
    """
    live = config.data.live
    assert live is not None
    buffer = RenderBuffer(live.capacity, live.size, device)
    generator = torch.Generator(device)
    drawn = 0
    first_render, workers = first_step * _RENDERS_PER_STEP, live.workers or max(1, usable_cpus() - 1)
    with RenderFarm(hand, live.scenes, live.size, live.seed, first=first_render, workers=workers) as farm:
        # The workers start while the backgrounds are drawn here.
        augment = BatchAugmenter(*_pictures(live, device), config.augmentation)
        buffer.add(farm.take(at_least=live.start))
        logger.info("%d renders are there, %d processes go on drawing", buffer.added, len(farm.workers))
        try:
            for step in range(first_step, config.steps):
                drawn += config.batch_size
                missing = int(np.ceil(drawn / live.reuse)) - buffer.added
                buffer.add(farm.take(at_least=max(missing, 0)))
                generator.manual_seed(_seed(config, step))
                renders = buffer.sample(config.batch_size, generator)
                yield augment(renders, resolution_at(config, step), generator)
        finally:
            logger.info("%d renders, each seen %.1f times on average", buffer.added, drawn / max(buffer.added, 1))


def _pictures(live: LiveData, device: torch.device) -> tuple[Tensor, Tensor]:
    """Backgrounds, and a quarter as many with distractors."""
    drawn = []
    for number in range(live.backgrounds):
        rng = np.random.default_rng((live.seed, _BACKGROUND_STREAM, number))
        background = procedural_background(rng, 2 * live.size)
        drawn.append((background, draw_distractors(rng, background) if number % 4 == 0 else None))
    distractors = [cluttered for _, cluttered in drawn if cluttered is not None]
    return picture_bank([background for background, _ in drawn], device), picture_bank(distractors, device)


def _seed(config: TrainConfig, step: int) -> int:
    return int(np.random.SeedSequence((config.seed, _STREAM, step)).generate_state(1)[0])


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory the copy does not wait for the work that is queued there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
