"""One engine for many requests: side by side on a CPU, in batches on a GPU.

What `for_request` gives is an `Engine`, so a `Predictor` uses it unchanged: each request runs in a thread of its own
through its several passes. A CPU computes them best beside each other, each on one thread (`SharedEngine`). For a GPU
crops of all requests wait in one queue for one model thread (`BatchingEngine`), which never waits for a batch to fill:
it takes what there is. A single client sees no delay, and under load batches grow by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.detect import Detector
from handmesh.hand import HandOutput
from handmesh.runtime.engine import Engine
from handmesh_server.admission import RequestContext
from handmesh_server.errors import ClientGone, DeadlineExpired

logger = logging.getLogger(__name__)


OnBatch = Callable[[int, float], None]  # is told about every call that an engine answered: crops, seconds


class RequestEngine:
    """An `Engine` whose crops all belong to one request."""

    def __init__(self, shared: SharedEngine | BatchingEngine, context: RequestContext) -> None:
        self.name, self.resolution = shared.name, shared.resolution
        self.hand, self.record = shared.hand, shared.record
        self._shared, self._context = shared, context

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        return self._shared.run(crops, self._context)


class Alone(NamedTuple):
    """What a request has that is alone on a CPU."""

    engine: Engine  # the same model, on all threads
    detector: Detector | None  # so is this; None: that of all
    threads: int
    now: Callable[[], bool]  # whether a request is


class SharedEngine:
    """An engine that is called by the requests' own threads."""

    max_batch = 1

    def __init__(
        self,
        engine: Engine,
        *,
        alone: Alone | None = None,
        on_batch: OnBatch | None = None,
    ) -> None:
        self.name, self.resolution, self.hand, self.record = engine.name, engine.resolution, engine.hand, engine.record
        self._engine = engine
        self._alone = alone
        self._on_batch = on_batch
        self._others = ThreadPoolExecutor(alone.threads - 1, thread_name_prefix="handmesh-crops") if alone else None

    @property
    def depth(self) -> int:
        """Crops that wait: none does."""
        return 0

    def for_request(self, context: RequestContext) -> RequestEngine:
        """The engine as one request sees it."""
        return RequestEngine(self, context)

    @property
    def detector(self) -> Detector | None:
        """Another one than that of all, for the request that begins now."""
        return self._alone.detector if self._alone is not None and self._alone.now() else None

    def run(self, crops: NDArray[np.uint8], context: RequestContext) -> HandOutput:
        """(B, S, S, 3) uint8 RGB -> HandOutput. Raises what the engine raises, and ClientGone or DeadlineExpired."""
        context.check()
        started = time.monotonic()
        output = self._engine(crops) if self._alone is None or not self._alone.now() else self._on_all_threads(crops)
        seconds = time.monotonic() - started
        context.add("model", seconds)
        if self._on_batch is not None:
            self._on_batch(len(crops), seconds)
        return output

    def _on_all_threads(self, crops: NDArray[np.uint8]) -> HandOutput:
        """Several crops have a thread each, which wait for each other once; one has all, which wait at each layer."""
        assert self._alone is not None
        assert self._others is not None
        if len(crops) == 1:
            return self._alone.engine(crops)
        first, *rest = np.array_split(crops, min(self._alone.threads, len(crops)))
        others = [self._others.submit(self._engine, part) for part in rest]
        outputs = [self._engine(first), *(other.result() for other in others)]
        return HandOutput(*(np.concatenate(values) for values in zip(*outputs, strict=True)))

    def close(self) -> None:
        """When nobody calls it any more."""
        if self._others is not None:
            self._others.shutdown()


@dataclass(eq=False)
class _Crop:
    pixels: NDArray[np.uint8]  # (S, S, 3)
    context: RequestContext
    answer: Future[HandOutput] = field(default_factory=Future)


class BatchingEngine:
    """An engine for many threads in front of one that is called by a single thread. Close it when done."""

    detector = None  # no other than that of all

    def __init__(self, engine: Engine, max_batch: int, *, on_batch: OnBatch | None = None) -> None:
        self.name, self.resolution, self.hand, self.record = engine.name, engine.resolution, engine.hand, engine.record
        self.max_batch = max_batch
        self._engine = engine
        self._on_batch = on_batch
        self._waiting: deque[_Crop] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="handmesh-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Crops that wait for the model now."""
        return len(self._waiting)

    def for_request(self, context: RequestContext) -> RequestEngine:
        """The engine as one request sees it."""
        return RequestEngine(self, context)

    def run(self, crops: NDArray[np.uint8], context: RequestContext) -> HandOutput:
        """(B, S, S, 3) uint8 RGB -> HandOutput. Blocks until the model was there.

        Raises what the engine raises for these crops alone, and ClientGone or DeadlineExpired instead of using the
        model for a request that nobody waits for.
        """
        now = time.monotonic()
        entries = [_Crop(crop, context) for crop in crops]
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._waiting.extend(entries)
            self._changed.notify()
        in_model = context.seconds.get("model", 0.0)
        answers = [entry.answer.result() for entry in entries]
        context.add("queue", time.monotonic() - now - (context.seconds.get("model", 0.0) - in_model))
        return HandOutput(*(np.stack(parts) for parts in zip(*answers, strict=True)))

    def close(self) -> None:
        """Answer what waits, then end the model thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[_Crop] | None:
        """Up to `max_batch` crops that somebody still waits for, as soon as there is one; None: closed and empty."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            batch: list[_Crop] = []
            while self._waiting and len(batch) < self.max_batch:
                entry = self._waiting.popleft()
                try:
                    entry.context.check()
                except (ClientGone, DeadlineExpired) as error:
                    entry.answer.set_exception(error)
                else:
                    batch.append(entry)
            return batch

    def _answer(self, batch: list[_Crop]) -> None:
        started = time.monotonic()
        try:
            output = self._engine(np.stack([entry.pixels for entry in batch]))
            answers = [HandOutput(*parts) for parts in zip(*output, strict=True)]
            if len(answers) != len(batch):
                raise RuntimeError(f"the engine answered {len(answers)} of {len(batch)} crops")
        except Exception as error:  # whatever an engine raises belongs to its caller, and must not end this thread
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            logger.warning(
                "a batch of %d crops failed (%s: %s): trying them one by one", len(batch), type(error).__name__, error
            )
            for entry in batch:
                self._answer([entry])
            return
        seconds = time.monotonic() - started
        if self._on_batch is not None:
            self._on_batch(len(batch), seconds)
        for context in {id(entry.context): entry.context for entry in batch}.values():
            context.add("model", seconds)
        for entry, answer in zip(batch, answers, strict=True):
            entry.answer.set_result(answer)
