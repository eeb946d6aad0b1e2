"""Several sources in one run, each with its weight: which example comes next depends on (seed, number) only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.labels import CropJitter, CropProtocol, CropSample, RawData, crop_sample
from handmesh.errors import ConfigError

BLOCK = 1024  # examples over which the shares are exact (to one example)


class Mixture:
    """Example g of an endless stream over sources of `counts` samples, in shares `weights`.

    Within each source every sample is visited once per epoch, in an order of its own. Nothing is remembered between
    calls, so a stream can be resumed anywhere and dealt out to any number of workers.
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
        return source, self._shuffled(source, epoch, position)

    def _order(self, block: int) -> NDArray[np.int64]:
        sources = np.repeat(np.arange(len(self.counts)), self.block_counts)
        return np.random.default_rng((self.seed, 3, block)).permutation(sources)

    def _shuffled(self, source: int, epoch: int, position: int) -> int:
        """An affine walk over the samples: no permutation of the whole set is ever held."""
        count = self.counts[source]
        rng = np.random.default_rng((self.seed, 4, source, epoch))
        offset = int(rng.integers(count))
        while np.gcd(stride := int(rng.integers(1, count + 1)), count) != 1:
            pass
        return (offset + position * stride) % count


@dataclass(frozen=True, eq=False)
class CropSource:
    """Photographs, how they are cropped, and how often they are drawn in comparison with other sources."""

    data: RawData
    protocol: CropProtocol
    weight: float = 1.0
    indices: NDArray[np.int64] | None = None  # the samples to use, for example one side of a split; None = all
    jitter: CropJitter = field(default_factory=CropJitter)

    def __len__(self) -> int:
        return len(self.data) if self.indices is None else len(self.indices)

    def number(self, position: int) -> int:
        """The sample at a position of `indices`."""
        return position if self.indices is None else int(self.indices[position])


class CropStream:
    """Example g of an endless stream of jittered crops from several sources, for a torch DataLoader with any sampler.

    It depends on (seed, g) only. `channel_gain` multiplies each colour by a number between 1 - it and 1 + it (METRO:
    0.4). Data sets open their files at first use, so the stream can be sent to worker processes.
    """

    def __init__(
        self, sources: Sequence[CropSource], resolution: int, seed: int = 0, channel_gain: float = 0.0
    ) -> None:
        """Raises ConfigError for weights and counts that make no mixture."""
        self.sources, self.resolution = tuple(sources), resolution
        self.seed, self.channel_gain = seed, channel_gain
        self.mixture = Mixture([len(source) for source in sources], [source.weight for source in sources], seed)

    def __getitem__(self, g: int) -> CropSample:
        number, position = self.mixture[g]
        source = self.sources[number]
        rng = np.random.default_rng((self.seed, 5, g))
        sample = source.data[source.number(position)]
        cropped = crop_sample(sample, source.jitter(source.protocol.crop(sample), rng), self.resolution)
        if not self.channel_gain:
            return cropped
        gains = rng.uniform(1 - self.channel_gain, 1 + self.channel_gain, 3)
        return cropped._replace(image=np.asarray(cv2.multiply(cropped.image, np.array([*gains, 1.0])), np.uint8))


def fixed_crops(source: CropSource, resolution: int) -> Iterator[CropSample]:
    """Every sample of a source once, as its protocol crops it, without jitter: what scores are computed on."""
    for position in range(len(source)):
        sample = source.data[source.number(position)]
        yield crop_sample(sample, source.protocol.crop(sample), resolution)
