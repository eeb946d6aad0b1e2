"""Several sources in one run, each with its weight: which example comes next depends on (seed, number) only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
        if len(self.counts) == 1:
            return np.zeros(BLOCK, np.int64)
        sources = np.repeat(np.arange(len(self.counts)), self.block_counts)
        return np.random.default_rng((self.seed, 3, block)).permutation(sources)

    def _shuffled(self, source: int, epoch: int, position: int) -> int:
        """An affine walk over the samples: no permutation of the whole set is ever held."""
        count = self.counts[source]
        rng = np.random.default_rng((self.seed, 2, epoch, source))
        offset = int(rng.integers(count))
        while np.gcd(stride := int(rng.integers(1, count + 1)), count) != 1:
            pass
        return (offset + position * stride) % count
