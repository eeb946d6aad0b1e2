"""One process at a time: a lock whose file goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, when_taken: Callable[[], None], patience: float = 0.0) -> Iterator[None]:
    """The lock of the file `path`. Another process has it, and still has after `patience` seconds: `when_taken`, and
    unless that raises, it is waited for.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        when_taken()
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # of Windows, which takes it away on release
            path.unlink()
        lock.release()
