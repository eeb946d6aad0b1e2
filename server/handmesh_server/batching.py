"""Crops of many requests through one engine: a queue, one model thread, batches of whatever waits.

`BatchingEngine` is itself an `Engine`, so a `Predictor` uses it unchanged: each request runs in a thread of its own
through its several passes, and waits here for each of them. The model thread never waits for a batch to fill: it takes
what there is. A single client sees no delay, and under load batches grow by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from handmesh.hand import HandOutput
from handmesh.runtime.engine import Engine
from handmesh_server.errors import ClientGone, DeadlineExpired

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class RequestContext:
    """One request on its way through the threads: until when somebody waits for it, and where its time went."""

    deadline: float = float("inf")  # time.monotonic()
    gone: bool = False  # set by the event loop, read by the threads
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    def check(self) -> None:
        """Raises ClientGone or DeadlineExpired when nobody waits any more."""
        if self.gone:
            raise ClientGone("The client went away.")
        if time.monotonic() >= self.deadline:
            raise DeadlineExpired("The deadline passed before the answer was ready.")

    def remaining(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


# The Engine protocol knows crops only, and rightly; the context of the thread that calls travels beside it.
_context: ContextVar[RequestContext | None] = ContextVar("handmesh_ticket", default=None)


@contextmanager
def on_behalf_of(context: RequestContext) -> Iterator[None]:
    """Crops that this thread sends to a BatchingEngine meanwhile belong to `context`."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


@dataclass(eq=False)
class _Crop:
    pixels: NDArray[np.uint8]  # (S, S, 3)
    context: RequestContext
    answer: Future[HandOutput] = field(default_factory=Future)


class BatchingEngine:
    """An engine for many threads in front of one that is called by a single thread. Close it when done."""

    def __init__(self, engine: Engine, max_batch: int, *, on_batch: Callable[[int, float], None] | None = None) -> None:
        """`on_batch(crops, seconds)` is told about every batch that the engine answered."""
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

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        """(B, S, S, 3) uint8 RGB -> HandOutput. Blocks until the model was there.

        Raises what the engine raises for these crops alone, and ClientGone or DeadlineExpired instead of using the
        model for a request that nobody waits for.
        """
        context = _context.get() or RequestContext()
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
