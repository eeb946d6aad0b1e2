"""Something that takes time, done ahead in a thread of its own: reading a camera, following hands in its pictures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `take` in a thread until it gives None; `read` hands out what it gave, in order."""

    def __init__(self, take: Callable[[], Item | None], name: str, *, max_items: int | None) -> None:
        """`max_items`: taken ahead, before `take` waits; None: it never does, and only the newest is kept."""
        self.dropped = 0  # newer ones came before they were read
        self._take, self._max_items = take, max_items
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._stop = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def read(self, timeout: float | None = None) -> Item | None:
        """The next one; None at the end. Raises what `take` raised, TimeoutError when nothing comes in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._ended, timeout):
                raise TimeoutError
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            return None

    def stop(self, timeout: float) -> bool:
        """Whether the thread has ended; one that hangs is left to itself: it is a daemon."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop and (item := self._take()) is not None:
                with self._changed:
                    if self._max_items is None:
                        self.dropped += len(self._items)
                        self._items.clear()
                    self._changed.wait_for(self._has_room)
                    self._items.append(item)
                    self._changed.notify_all()
        except Exception as error:  # handed to whoever reads
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._stop or self._max_items is None or len(self._items) < self._max_items
