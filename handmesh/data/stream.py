"""A run's stream of batches. Example g of a run depends on (seed, g) only: resuming is starting at another g.

Step s is made of the examples s * batch_size to (s + 1) * batch_size - 1, whichever process computes them.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import pickle
import shutil
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handmesh.config.train import TrainConfig
from handmesh.data.loader import start_loader
from handmesh.data.sample import HandLabels, HandSample, hand_labels
from handmesh.data.sources import Source
from handmesh.errors import ConfigError, HandMeshError
from handmesh.system.spawn import check_main_guard

logger = logging.getLogger(__name__)

_LOADED_AHEAD = 6  # batches, by each loader process
BLOCK = 1024  # examples over which the shares are exact (to one example)


class Mixture:
    """Example g of an endless stream over sources of `counts` samples, in shares `weights`.

    Within each source every sample is visited once per epoch, in an order of its own. That depends on nothing that was
    asked before, so a stream can be resumed anywhere and dealt out to any number of workers.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int = 0) -> None:
        """Weights are relative. Raises ConfigError for counts below 1 and weights that are not above zero."""
        if not counts or len(counts) != len(weights):
            raise ConfigError(f"A mixture needs as many weights as sources: found {len(weights)} and {len(counts)}.")
        shares = np.asarray(weights, np.float64)
        if min(counts) < 1 or not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ConfigError(f"A mixture of {list(counts)} samples with weights {list(weights)}: wanted all above 0.")
        self.counts, self.seed = tuple(counts), seed
        # Largest remainders: whole examples per block that add up, each source at least one.
        exact = shares / shares.sum() * BLOCK
        self.block_counts = np.maximum(np.floor(exact).astype(int), 1)
        for source in np.argsort(np.floor(exact) - exact, kind="stable")[: max(BLOCK - self.block_counts.sum(), 0)]:
            self.block_counts[source] += 1
        while self.block_counts.sum() > BLOCK:  # very small weights were rounded up
            self.block_counts[self.block_counts.argmax()] -= 1

    def __getitem__(self, g: int) -> tuple[int, int]:
        """(source, index of the sample in it)."""
        block, place = divmod(g, BLOCK)
        order = self._order(block)
        source = int(order[place])
        visit = block * int(self.block_counts[source]) + int((order[:place] == source).sum())
        epoch, position = divmod(visit, self.counts[source])
        return source, int(_shuffled(self.seed, epoch, source, self.counts[source])[position])

    def _order(self, block: int) -> NDArray[np.int64]:
        if len(self.counts) == 1:
            return np.zeros(BLOCK, np.int64)
        sources = np.repeat(np.arange(len(self.counts)), self.block_counts)
        return np.random.default_rng((self.seed, 3, block)).permutation(sources)


@lru_cache(maxsize=16)  # of each source the epoch that is under way, and the next while both are being dealt out
def _shuffled(seed: int, epoch: int, source: int, count: int) -> NDArray[np.uint32]:
    return np.random.default_rng((seed, 2, epoch, source)).permutation(count).astype(np.uint32)


class TrainingStream(Dataset[HandSample[NDArray[Any]]]):
    """Example g of an endless, reshuffled stream over a run's sources. Safe to send to worker processes."""

    def __init__(self, sources: Sequence[Source], config: TrainConfig) -> None:
        """Raises ConfigError for weights and counts that make no mixture."""
        self.sources, self.config = list(sources), config
        counts, weights = [len(source) for source in sources], [source.weight for source in sources]
        self.mixture = Mixture(counts, weights, config.seed)

    def __getitem__(self, g: int) -> HandSample[NDArray[Any]]:
        number, position = self.mixture[g]
        rng = np.random.default_rng((self.config.seed, 1, g))
        resolution = resolution_at(self.config, g // self.config.batch_size)
        return self.sources[number].example(position, rng, resolution)


def resolution_at(config: TrainConfig, step: int) -> int:
    """The crop's side at a step: lower in the first part of a run with an easy start."""
    easy = config.low_resolution is not None and step < config.low_resolution_share * config.steps
    return config.low_resolution if easy and config.low_resolution else config.model.resolution


HandBatch = HandSample[Tensor]


def collate(samples: Sequence[HandSample[NDArray[Any]]]) -> HandBatch:
    """Stacked tensors; images stay uint8 (they are normalised inside the network, on its device)."""
    labels = HandLabels(*map(_stacked, zip(*(sample.labels for sample in samples), strict=True)))
    return HandSample(_stacked([sample.image for sample in samples]), labels)


def _stacked(values: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(values))


def batch_to_device(batch: HandBatch, device: torch.device) -> HandBatch:
    """From pinned memory the copies overlap with computing."""
    return batch.map(lambda value: value.to(device, non_blocking=True))


def split(batch: HandBatch, count: int) -> list[HandBatch]:
    """`count` equal pieces, in order."""
    size = len(batch.image) // count
    return [batch.map(itemgetter(slice(size * number, size * (number + 1)))) for number in range(count)]


def training_batches(
    sources: Sequence[Source], config: TrainConfig, first_step: int, rank: int = 0, ranks: int = 1
) -> Generator[HandBatch, None, None]:
    """Of the batches of steps `first_step` to `config.steps`, the part of process `rank` of `ranks`.

    Raises DataError or ImageError for a sample that cannot be read, in whichever process that was found out; or names
    those that sources skipped, each when it is met first and all at the end. Where shared memory is too small for what
    loaders load ahead, batches come through pipes.
    """
    share = config.batch_size // ranks
    if config.loader_workers and multiprocessing.get_context().get_start_method() != "fork":
        check_main_guard()
    wanted = config.loader_workers * (_LOADED_AHEAD + 1) * share * _sample_bytes(config)
    through_pipes = wanted > _free_shared_memory()
    if through_pipes:
        logger.warning(
            "/dev/shm has %.1f MB left, and %d loader processes want %.1f: batches come through pipes, which is slower "
            "(in Docker, give --shm-size).",
            _free_shared_memory() / 1e6,
            config.loader_workers,
            wanted / 1e6,
        )
    loader = DataLoader(
        _Answers(TrainingStream(sources, config)),
        batch_size=share,
        sampler=_Share(config.batch_size, range(first_step, config.steps), rank, ranks),
        num_workers=config.loader_workers,
        prefetch_factor=_LOADED_AHEAD if config.loader_workers else None,
        collate_fn=_collate_into_bytes if through_pipes else _collate_answers,
        worker_init_fn=start_loader,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from torch's own at every start, and resuming would differ
    )
    skipped: dict[str, None] = {}
    try:
        for batch, reasons in loader:
            for reason in reasons:
                if reason not in skipped:
                    logger.warning("skipped: %s", reason)
                    skipped[reason] = None
            if isinstance(batch, HandMeshError):
                raise batch
            yield pickle.loads(batch).map(torch.from_numpy) if isinstance(batch, bytes) else batch
    finally:
        if skipped:
            logger.warning("%d images could not be read and were skipped: %s", len(skipped), "; ".join(skipped))


class _Answer(NamedTuple):
    """An example or the error in its place: what a worker process raises arrives as the text of its traceback."""

    sample: HandSample[NDArray[Any]] | HandMeshError
    skipped: list[str]  # why, of photographs in whose place it is


class _Answers(Dataset[_Answer]):
    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream

    def __getitem__(self, g: int) -> _Answer:
        sample: HandSample[NDArray[Any]] | HandMeshError
        try:
            sample = self.stream[g]
        except HandMeshError as error:
            sample = error
        return _Answer(sample, [reason for source in self.stream.sources for reason in source.take_skipped()])


def _collate_answers(answers: Sequence[_Answer]) -> tuple[HandBatch | HandMeshError, list[str]]:
    skipped = [reason for answer in answers for reason in answer.skipped]
    samples = [answer.sample for answer in answers if not isinstance(answer.sample, HandMeshError)]
    if len(samples) == len(answers):
        return collate(samples), skipped
    return next(answer.sample for answer in answers if isinstance(answer.sample, HandMeshError)), skipped


def _collate_into_bytes(answers: Sequence[_Answer]) -> tuple[bytes | HandMeshError, list[str]]:
    """Tensors would be put into shared memory; bytes are sent as they are."""
    batch, skipped = _collate_answers(answers)
    return batch if isinstance(batch, HandMeshError) else pickle.dumps(batch.map(Tensor.numpy), protocol=5), skipped


def _free_shared_memory() -> float:
    """Bytes; without end where shared memory is no file system."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf


def _sample_bytes(config: TrainConfig) -> int:
    return 3 * config.model.resolution**2 + sum(value.nbytes for value in hand_labels())


class _Share:
    """The numbers of the examples that one process computes, step after step."""

    def __init__(self, batch_size: int, steps: range, rank: int, ranks: int) -> None:
        self.batch_size, self.steps, self.rank, self.ranks = batch_size, steps, rank, ranks

    def __iter__(self) -> Iterator[int]:
        size = self.batch_size // self.ranks
        for step in self.steps:
            first = step * self.batch_size + self.rank * size
            yield from range(first, first + size)

    def __len__(self) -> int:
        return len(self.steps) * (self.batch_size // self.ranks)
