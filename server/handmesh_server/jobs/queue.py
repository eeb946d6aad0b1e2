"""The order in which jobs are done: SQLite beside them, or Redis where several machines share the work; both by huey.

Of huey its storages are used, not its tasks: those are pickled, and who can write to the queue could then run code.
What lies in ours are names of folders.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any, Final, Protocol

from handmesh.errors import ConfigError
from handmesh.system.extras import missing

logger = logging.getLogger(__name__)

_NAME: Final = "handmesh-clips"


class JobQueue(Protocol):
    """First in, first out. Its methods raise what the database raises."""

    def enqueue(self, data: bytes) -> None: ...

    def dequeue(self) -> bytes | None: ...

    def enqueued_items(self) -> list[bytes]: ...


def open_queue(folder: Path, redis: str | None) -> JobQueue:
    """SQLite in `folder`, which is made, or the Redis at an address (redis://host:port/database).

    Raises ConfigError and MissingPackageError; whether Redis answers shows when it is used.
    """
    if redis is not None:
        return _Queue(_redis(redis))
    from huey.storage import SqliteStorage

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "queue.sqlite"
    try:
        return _Queue(SqliteStorage(_NAME, filename=str(file), strict_fifo=True))
    except sqlite3.OperationalError as error:
        raise ConfigError(f"The queue {file} cannot be opened: {error}. Choose another jobs_dir.") from error
    except sqlite3.DatabaseError as error:  # what was in it is in the folders, too
        logger.warning("the queue %s is damaged (%s) and is made anew", file, error)
        for path in folder.glob(f"{file.name}*"):
            path.unlink()
        return _Queue(SqliteStorage(_NAME, filename=str(file), strict_fifo=True))


def _redis(address: str) -> Any:
    try:
        from redis import ConnectionPool
    except ImportError:
        raise missing("redis", "redis", "a queue in Redis") from None
    from huey.storage import RedisStorage

    try:
        pool = ConnectionPool.from_url(address, socket_timeout=5, socket_connect_timeout=5)
    except ValueError as error:
        raise ConfigError(f"Setting jobs_redis: {error}.") from None
    return RedisStorage(_NAME, blocking=False, connection_pool=pool)


class _Queue:
    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def enqueue(self, data: bytes) -> None:
        self._storage.enqueue(data)

    def dequeue(self) -> bytes | None:
        found = self._storage.dequeue()
        return None if found is None else bytes(found)

    def enqueued_items(self) -> list[bytes]:
        return [bytes(item) for item in self._storage.enqueued_items()]
