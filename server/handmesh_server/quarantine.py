"""Which photos are in work, told to whoever watches this process, and those that are refused because they ended one.

A codec or a network that fails below Python takes its process along, and nothing in that process can say why. So each
photo is named to the supervisor (supervisor.py) before it is touched, and named again when the work on it has ended.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from handmesh_server.admission import RequestContext
from handmesh_server.errors import PhotoRefused


class PhotoInWork(NamedTuple):
    """A photo as it is named to the supervisor. Nothing of what it shows."""

    number: int  # of this process
    digest: str  # SHA-256 of its bytes
    size: int  # bytes
    thread: int  # which works on it
    request_id: str

    def __str__(self) -> str:
        return f"SHA-256 {self.digest[:16]}, {self.size:,} bytes, request {self.request_id}"


class Quarantine:
    """What one process knows of such photos. Safe from every thread."""

    def __init__(self) -> None:
        self.tell: Callable[[tuple[Any, ...]], None] | None = None  # the supervisor, if there is one
        self.refused: frozenset[str] = frozenset()
        # In work when a process died for an unknown reason. They are tried once more, one at a time: if it happens
        # again it is known which one it was.
        self.suspects: frozenset[str] = frozenset()
        self._numbers = itertools.count()
        self._one_suspect = threading.Lock()

    @contextmanager
    def work_on(self, encoded: bytes, context: RequestContext) -> Iterator[None]:
        """For as long as a thread works on a photo. Raises PhotoRefused, and what `context.check` raises."""
        if self.tell is None:
            yield
            return
        digest, size = hashlib.sha256(encoded).hexdigest(), len(encoded)
        del encoded  # its caller lets go of it when it is decoded
        if digest in self.refused:
            raise PhotoRefused(
                "The server failed on this photo before, and does not try it again. Send it in another format or size."
            )
        photo = PhotoInWork(next(self._numbers), digest, size, threading.get_ident(), context.request_id)
        suspected = digest in self.suspects
        while suspected and not self._one_suspect.acquire(timeout=min(context.remaining(), 0.25)):
            context.check()
            suspected = digest in self.suspects
        try:
            self.tell(("begin", photo))
            yield
        finally:
            if suspected:
                self._one_suspect.release()
            self.tell(("end", photo.number))
