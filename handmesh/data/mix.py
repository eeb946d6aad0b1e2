"""Several sources in one run, each with its weight: which example comes next depends on (seed, number) only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError

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
