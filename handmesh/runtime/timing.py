"""The clock of every measurement: whatever is compared takes turns, so that a busy machine disturbs all alike.

Threads are the exception: those of an engine that has just run stay awake for a while, waiting for more, on the cores
of the next. So where engines of several threads take turns, each runs untimed for `LEAD_IN_S` before it is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Clock = Literal["wall", "cpu"]
# Measured on FastViT-T8, two threads: each of six engines that take turns is then as fast as alone, otherwise up to 3.5
# times slower. After 0.03 s one still is not.
LEAD_IN_S = 0.1


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one task. The least is the steadiest on a busy machine; median and p95 are what a user gets."""

    median_ms: float
    p95_ms: float
    min_ms: float
    runs: int
    spread_ms: float  # 5th to 95th percentile


def time_in_turns(
    tasks: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    warm_up: int = 2,
    clock: Clock = "wall",
    lead_in_s: float = 0.0,
) -> dict[str, Timing]:
    """Time each task runs times, after warm_up untimed runs; the tasks take turns, each of which begins with untimed
    runs for lead_in_s seconds.

    The "cpu" clock stands still while other programs run: on a busy machine, it tells the time of a task of one
    thread. (With more threads it adds theirs up.)
    """
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    for task in tasks.values():
        for _ in range(warm_up):
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs):
        for name, task in tasks.items():
            begun = time.perf_counter()
            while time.perf_counter() - begun < lead_in_s:
                task()
            started = now()
            task()
            times[name].append(1000 * (now() - started))
    return {name: _timing(ms) for name, ms in times.items()}


def lead_in(threads: int) -> float:
    """`time_in_turns`'s lead_in_s for engines of so many threads each."""
    return LEAD_IN_S if threads > 1 else 0.0


def _timing(ms: list[float]) -> Timing:
    low, high = np.percentile(ms, [5, 95])
    return Timing(statistics.median(ms), float(high), min(ms), len(ms), float(high - low))
