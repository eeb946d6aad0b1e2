"""A run's stream of batches. Example g of a run depends on (seed, g) only: resuming is starting at another g."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from handmesh.config import Augmentation, SyntheticData, TrainConfig
from handmesh.data.augment import augment
from handmesh.data.sample import HandBatch, HandSample
from handmesh.synth import Backgrounds, Pack, SceneSettings, render_pack
from handmesh.synth.dataset import Progress

# Renders leave room around the hand, so that training can crop tightly or widely and turn without leaving the picture.
TRAINING_SCENES = SceneSettings(crop_share=(0.38, 0.72), off_center=0.04)
HELD_OUT_SEED = 1_000_003  # added to a set's seed for the images that training never sees


def training_pack(settings: SyntheticData, workers: int, progress: Progress | None = None) -> Pack:
    """The run's rendered set; rendered now if it is not there yet. DataError if another is in its place."""
    path = settings.directory / f"train-{settings.count}-{settings.size}px-seed{settings.seed}"
    return render_pack(path, settings.count, settings.seed, settings.size, TRAINING_SCENES, workers, progress)


def held_out_pack(settings: SyntheticData, count: int, workers: int, progress: Progress | None = None) -> Pack:
    """Scenes that training never sees."""
    path = settings.directory / f"heldout-{count}-{settings.size}px-seed{settings.seed}"
    seed = settings.seed + HELD_OUT_SEED
    return render_pack(path, count, seed, settings.size, TRAINING_SCENES, workers, progress)


class AugmentedPack(Dataset[HandSample]):
    """Example g of an endless, reshuffled stream over a pack. Safe to send to worker processes."""

    def __init__(self, pack: Pack, config: TrainConfig) -> None:
        self.pack = pack
        self.config = config

    @cached_property
    def backgrounds(self) -> Backgrounds:
        return Backgrounds(self.config.seed)

    def __getitem__(self, g: int) -> HandSample:
        epoch, position = divmod(g, len(self.pack))
        rng = np.random.default_rng((self.config.seed, 1, g))
        resolution = resolution_at(self.config, g // self.config.batch_size)
        index = _shuffled(position, len(self.pack), self.config.seed, epoch)
        return augment(self.pack[index], rng, self.config.augmentation, self.backgrounds, resolution)


def resolution_at(config: TrainConfig, step: int) -> int:
    """The crop's side at a step: lower in the first part of a run with an easy start."""
    easy = config.low_resolution is not None and step < config.low_resolution_share * config.steps
    return config.low_resolution if easy and config.low_resolution else config.model.resolution


def _shuffled(position: int, count: int, seed: int, epoch: int) -> int:
    """Place `position` in an epoch's order: an affine walk, so that no worker holds a permutation of the whole set."""
    rng = np.random.default_rng((seed, 2, epoch))
    offset = int(rng.integers(count))
    while np.gcd(stride := int(rng.integers(1, count + 1)), count) != 1:
        pass
    return (offset + position * stride) % count


def training_batches(pack: Pack, config: TrainConfig, first_step: int) -> Iterator[HandBatch]:
    """The batches of steps `first_step` to `config.steps`."""
    size = config.batch_size
    loader = DataLoader(
        AugmentedPack(pack, config),
        batch_size=size,
        sampler=range(first_step * size, config.steps * size),
        num_workers=config.loader_workers,
        prefetch_factor=6 if config.loader_workers else None,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from torch's own at every start, and resuming would differ
    )
    yield from loader


def held_out_samples(pack: Pack, resolution: int, upright: bool) -> Iterator[HandSample]:
    """Every render of a pack once, with fixed crops: turned anyhow, or the hand roughly upright."""
    settings = Augmentation(upright=1.0 if upright else 0.0)
    backgrounds = Backgrounds(HELD_OUT_SEED, count=64)
    for index in range(len(pack)):
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        yield augment(pack[index], rng, settings, backgrounds, resolution)


def collate(samples: list[HandSample]) -> HandBatch:
    """Stacked tensors; images stay uint8 (they are normalised inside the network)."""
    return HandBatch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        keypoints=torch.from_numpy(np.stack([sample.keypoints for sample in samples])),
        pose=torch.from_numpy(np.stack([sample.pose for sample in samples])),
        betas=torch.from_numpy(np.stack([sample.betas for sample in samples])),
    )


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
