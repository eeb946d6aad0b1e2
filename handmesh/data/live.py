"""Synthetic hands that are rendered while training runs: workers draw, a ring on the training device holds the newest.

Every batch picks from the ring and sees its renders anew (`augment_gpu`), so a render is used many times before the
next ones take its place. What a step's crops and cameras are depends on (seed, step) only; which renders there are by
then depends on the machine, so unlike with a set on disk two runs are not equal bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from handmesh.config import LiveData, TrainConfig
from handmesh.data.augment_gpu import BatchAugmenter, LabelledCrops, Renders, picture_bank
from handmesh.data.stream import HandBatch, resolution_at, training_scenes
from handmesh.hand import JOINT_NAMES, VERTEX_COUNT, HandArrays
from handmesh.synth.backgrounds import draw_distractors, procedural_background
from handmesh.synth.farm import Harvest, RenderFarm
from handmesh.system.cpus import usable_processors

logger = logging.getLogger(__name__)

_STREAM = 7  # of random numbers: (seed, this, step)
_BACKGROUND_STREAM = 8
# Renders of a session that begins at step s are numbered from s times this: none is drawn twice.
_RENDERS_PER_STEP = 1 << 24


class RenderRing:
    """The newest `capacity` renders, on a device. The oldest are overwritten."""

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.made = 0  # renders that were ever put in
        self.renders = Renders(
            image=torch.zeros(capacity, size, size, 4, dtype=torch.uint8, device=device),
            keypoints=torch.zeros(capacity, len(JOINT_NAMES), 2, device=device),
            pose=torch.zeros(capacity, 16, 3, 3, device=device),
            betas=torch.zeros(capacity, 10, device=device),
            intrinsics=torch.zeros(capacity, 3, 3, device=device),
        )

    def __len__(self) -> int:
        return min(self.made, self.capacity)

    def put(self, harvest: Harvest) -> None:
        """Renders in place of the oldest ones; of more than fit, the last."""
        if not len(harvest.indices):
            return
        new = {name: getattr(harvest, name)[-self.capacity :] for name in Renders._fields}
        self.made += len(harvest.indices) - len(new["image"])
        places = torch.arange(self.made, self.made + len(new["image"]), device=self.device) % self.capacity
        for name, values in new.items():
            getattr(self.renders, name)[places] = _sent(torch.from_numpy(values), self.device)
        self.made += len(new["image"])

    def pick(self, count: int, generator: torch.Generator) -> Renders:
        """`count` of them at random, each as likely as the others."""
        numbers = torch.rand(count, generator=generator, device=self.device)
        chosen = (numbers * len(self)).long().clamp(max=len(self) - 1)
        return Renders(*(values[chosen] for values in self.renders))


def live_batches(
    config: TrainConfig, hand: HandArrays, device: torch.device, first_step: int
) -> Generator[HandBatch, None, None]:
    """The batches of steps `first_step` to `config.steps`, on `device`. Closing the generator ends the workers.

    Raises DataError when no rendering process is left.
    """
    live = config.data.live
    assert live is not None
    ring = RenderRing(live.capacity, live.size, device)
    generator = torch.Generator(device)
    drawn = 0
    first_render, workers = first_step * _RENDERS_PER_STEP, live.workers or max(1, usable_processors() - 1)
    scenes = training_scenes(live.scenes)
    with RenderFarm(hand, scenes, live.size, live.seed, first=first_render, workers=workers) as farm:
        # The workers start while the backgrounds are drawn here.
        augment = BatchAugmenter(*_pictures(live, device), config.augmentation)
        ring.put(farm.take(at_least=live.start))
        logger.info("%d renders are there, %d processes go on drawing", ring.made, len(farm.workers))
        try:
            for step in range(first_step, config.steps):
                drawn += config.batch_size
                missing = int(np.ceil(drawn / live.reuse)) - ring.made
                ring.put(farm.take(at_least=max(missing, 0)))
                generator.manual_seed(_seed(config, step))
                renders = ring.pick(config.batch_size, generator)
                yield as_batch(augment(renders, resolution_at(config, step), generator))
        finally:
            logger.info("%d renders, each seen %.1f times on average", ring.made, drawn / max(ring.made, 1))


def as_batch(crops: LabelledCrops) -> HandBatch:
    """With the flags that the losses go by: of a mirrored hand only keypoints are known, and without one nothing."""
    batch, device = len(crops.image), crops.image.device
    answerable = crops.present & crops.right
    never = torch.zeros(batch, dtype=torch.bool, device=device)
    return HandBatch(
        image=crops.image,
        keypoints=crops.keypoints,
        keypoint_known=crops.present[:, None].expand(-1, len(JOINT_NAMES)),
        joints=torch.zeros(batch, len(JOINT_NAMES), 3, device=device),  # they follow from pose and betas
        vertices=torch.zeros(batch, VERTEX_COUNT, 3, device=device),
        pose=crops.pose,
        betas=crops.betas,
        joints_known=never,
        vertices_known=never,
        pose_known=answerable,
        betas_known=answerable,
        present=crops.present,
        right=crops.right,
    )


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


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory the copy does not wait for the work that is queued there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
