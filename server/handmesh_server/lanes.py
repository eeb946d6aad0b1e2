"""Threads for photos: in the order in which they were let in, as many at a time as pay off, and no photo holds them up.

A place that one photo has held for long (a slow decoder, memory that is not free) counts as free again, up to a limit:
the next one gets a thread beside it, and the system shares the processors among them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from handmesh_server.admission import PATIENCE

Result = TypeVar("Result")

_MOST_THREADS: Final = 4  # for each place


class Lanes:
    """A pool of threads. Close it when done."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy: dict[int, float] = {}  # thread -> since when
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._closed = False

    @property
    def depth(self) -> int:
        """How many wait for a thread."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """How many are in work."""
        return len(self._busy)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Call `work` in a thread, after those that were submitted before have begun."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the lanes are closed")
            self._waiting.append((work, future))
            if len(self._threads) < min(_MOST_THREADS * self.places, len(self._busy) + len(self._waiting)):
                thread = threading.Thread(target=self._run, name=f"handmesh-photo-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """When all that was submitted is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            work, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # whatever it is belongs to the caller
                future.set_exception(error)
                del error
            else:
                future.set_result(result)
                del result
            del work, future, job  # or this thread would hold a photo until its next one

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        me = threading.get_ident()
        with self._changed:
            self._busy.pop(me, None)
            if self._closed:
                self._changed.notify_all()
            while True:
                now = time.monotonic()
                recent = [since for since in self._busy.values() if now - since < PATIENCE]
                if self._waiting and len(recent) < self.places:
                    self._busy[me] = now
                    return self._waiting.popleft()
                if self._closed and not self._waiting:
                    return None
                self._changed.wait(min(recent) + PATIENCE - now if self._waiting else None)
