"""Worker processes under a supervisor, so that one bad photo cannot end the others' requests.

The supervisor accepts connections and hands each to the worker that has the fewest; it reads none of them, decodes
nothing and loads no model, so nothing that a client sends can end it. A worker that dies takes its own connections
along, which its clients notice at once, and another one starts. One that hangs or grows is replaced. uvicorn's own
supervisor restarts what died, but sees neither a hung network nor memory, shares connections by chance, and cannot say
which photo it was.

Which photos a worker had in work when it died is known (quarantine.py). Where the crash says which thread it was, that
photo is refused from then on; else all of them are suspected, tried once more one at a time, and refused if it happens
again before they were answered.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, NamedTuple

from handmesh.errors import HandMeshError
from handmesh_server.quarantine import PhotoInWork
from handmesh_server.settings import Settings, cannot_listen

logger = logging.getLogger(__name__)

APPLICATION: Final = "handmesh_server.app:create_app"

_TICK: Final = 0.1  # s between looks at the workers
_START_SECONDS: Final = 180.0  # until a worker has loaded its model, on a machine that has much else to do
_DOOR_SECONDS: Final = 5.0  # for a client to wait for a worker that answers, before it hears that there is none
# It hears so at once, and has so long to send the rest of its upload. A connection that is closed with bytes unread is
# reset, and its answer may be lost.
_UPLOAD_SECONDS: Final = 5.0
_MAX_REFUSED_CONNECTIONS: Final = 256  # kept open for that
_PATIENCE: Final = 5.0  # s in one photo with none finished, and new connections go to other workers
_ABORT_SECONDS: Final = 1.0  # for a hung worker to say where, before it is killed
_MAX_START_WAIT: Final = 30.0  # s, of a worker that dies at each start
_MAX_FAILED_STARTS: Final = 3  # in a row, before any worker was ready: then it will not get better
_MAX_REFUSED: Final = 1000
_REFUSE_SECONDS: Final = 24 * 3600.0
_NOBODY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Setup(NamedTuple):
    """The first message."""

    worker: int  # its number
    settings: Settings  # its part of what all may use
    application: str  # "module:function" of settings -> ASGI application
    refused: frozenset[str]
    suspects: frozenset[str]


class Report(NamedTuple):
    """What the supervisor hears regularly. That it comes says that the event loop turns."""

    state: str
    connections: int  # open
    received: int  # connections, since the start
    metrics: bytes


class _Worker:
    """A process and what is known of it."""

    def __init__(self, index: int, setup: Setup) -> None:
        self.index = index
        self.started = self.heard = self.finished = time.monotonic()
        self.report = Report("starting", 0, 0, b"")
        self.sent = 0  # connections handed over
        self.in_transit: deque[socket.socket] = deque()  # of these, which it has not received yet
        self.photos: dict[int, tuple[PhotoInWork, float]] = {}  # in work, and since when
        self.retiring = ""  # why it is to be replaced
        self.stopped: float | None = None  # when it was told to end
        self.killed: float | None = None
        self.failure = ""  # what it said of its model
        line, theirs = socket.socketpair()
        self.handover, their_handover = socket.socketpair()
        self.handover.setblocking(False)
        self._crashes, crashes = os.pipe()
        os.set_blocking(self._crashes, False)
        self.line = Connection(line.detach())
        descriptors = (theirs.fileno(), their_handover.fileno(), crashes)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from handmesh_server.worker import main; main()", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=_environment(index),
                process_group=0,  # Ctrl-C is for the supervisor, which says it on
            )
        finally:
            theirs.close()
            their_handover.close()
            os.close(crashes)
        self.tell(setup)

    @property
    def name(self) -> str:
        return f"worker {self.index} (process {self.process.pid})"

    @property
    def is_ready(self) -> bool:
        return self.report.state == "ready"

    @property
    def connections(self) -> int:
        """Open ones, and those on their way."""
        return self.report.connections + self.sent - self.report.received

    def is_stuck(self, now: float) -> bool:
        """No photo was finished for a while, though it works on some."""
        oldest = min((since for _, since in self.photos.values()), default=now)
        return now - max(oldest, self.finished) > _PATIENCE

    def tell(self, message: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # its end is noticed elsewhere
            self.line.send(message)

    def take(self, connection: socket.socket) -> bool:
        """False when it cannot. The connection is kept until the worker says that it has it, so that another can
        have it if this one dies before; nothing of it was read then.
        """
        try:
            socket.send_fds(self.handover, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.sent += 1
        self.in_transit.append(connection)
        return True

    def has_received(self) -> None:
        """The oldest of those that were handed over."""
        self.in_transit.popleft().close()

    def stop(self) -> None:
        if self.stopped is None:
            self.stopped = time.monotonic()
            self.tell(("stop",))

    def kill(self, why: str) -> None:
        """Asked to say where it is first, for the log."""
        if self.killed is None:
            logger.error("%s %s: killing it", self.name, why)
            self.killed = time.monotonic()
            self.process.send_signal(signal.SIGABRT)
        elif time.monotonic() - self.killed > _ABORT_SECONDS:
            self.process.kill()

    def last_words(self) -> str:
        """What faulthandler wrote."""
        with contextlib.suppress(OSError):
            return os.read(self._crashes, 2**16).decode(errors="replace")
        return ""

    def close(self) -> None:
        self.line.close()
        self.handover.close()
        os.close(self._crashes)


class Supervisor:
    """`run()` it in a main thread."""

    def __init__(
        self,
        settings: Settings,
        announce: Callable[[str], None] = lambda _: None,
        application: str = APPLICATION,
    ) -> None:
        """`announce` gets the address when the first worker is ready. `application`: "module:function" of settings."""
        self._settings = settings
        self._announce: Callable[[str], None] | None = announce
        self._application = application
        self._listeners: list[socket.socket] = []
        self._refused_connections: dict[socket.socket, float] = {}  # -> when to close it
        self._workers: list[_Worker] = []
        self._suspects: dict[str, int] = {}  # digest -> deaths since it was last answered
        self._refused: dict[str, float] = {}  # digest -> since when
        self._failed_starts = 0
        self._next_start = 0.0
        self._was_ready = False
        self._answered = -math.inf  # when a worker was last there that answers
        self._signals = 0
        self._failure: HandMeshError | None = None
        self._drain_until: float | None = None
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C. Raises ConfigError when it cannot listen, HandMeshError when nobody starts."""
        self._listen()
        with self._watching_signals() as wakeup:
            try:
                while not self._stopping or self._workers:
                    self._step(wakeup)
            finally:
                self._close_door()
                for connection in self._refused_connections:
                    connection.close()
                for worker in self._workers:
                    worker.process.kill()
                    worker.process.wait()
                    worker.close()
        if self._failure is not None:
            raise self._failure
        logger.info("ended")

    # The door

    def _listen(self) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                listener = socket.create_server((str(address[0]), port), family=family, backlog=2048)
                listener.setblocking(False)
                port = listener.getsockname()[1]
                self._listeners.append(listener)
        except OSError as error:
            self._close_door()
            raise cannot_listen(self._settings, error.strerror or str(error)) from None
        logger.info("running on %s (%d workers)", self._address(), self._settings.workers)

    def _address(self) -> str:
        host, port = self._listeners[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def _accept(self, listener: socket.socket) -> bool:
        """Hand the next connection to a worker; False when there is none."""
        try:
            connection, _ = listener.accept()
        except OSError:  # none there, or it is gone already
            return False
        self._hand_over(connection)
        return True

    def _hand_over(self, connection: socket.socket) -> None:
        if not any(worker.take(connection) for worker in self._takers()):
            self._refuse(connection)

    def _refuse(self, connection: socket.socket) -> None:
        """Tell the client that there is nobody."""
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.send(_NOBODY)
            connection.shutdown(socket.SHUT_WR)
        self._refused_connections[connection] = time.monotonic() + _UPLOAD_SECONDS
        if len(self._refused_connections) > _MAX_REFUSED_CONNECTIONS:
            self._let_go(next(iter(self._refused_connections)))

    def _discard(self, connection: socket.socket) -> None:
        """What somebody sends who was refused."""
        with contextlib.suppress(BlockingIOError):
            try:
                more = connection.recv(2**16)
            except ConnectionError:
                more = b""
            if not more:
                self._let_go(connection)

    def _let_go(self, connection: socket.socket) -> None:
        del self._refused_connections[connection]
        connection.close()

    def _takers(self) -> list[_Worker]:
        """Who is given the next connection, best first. Those that cannot answer now, only where nobody else can.

        Where all died, connections wait at the door for a while: the next worker is on its way.
        """
        now = time.monotonic()
        there = [one for one in self._workers if one.report.state != "starting" and one.stopped is None]
        answering = [one for one in there if one.report.state in ("ready", "draining") and one.killed is None]
        if answering:
            self._answered = now
        elif now - self._answered < _DOOR_SECONDS:
            return []
        return sorted(
            there,
            key=lambda one: (one not in answering or one.is_stuck(now), bool(one.retiring), one.connections),
        )

    def _is_deserted(self) -> bool:
        """No worker has answered for so long that nobody should wait for one."""
        return self._was_ready and time.monotonic() - self._answered >= _DOOR_SECONDS

    def _close_door(self) -> None:
        for listener in self._listeners:
            while self._workers and self._accept(listener):  # whoever is in the queue was promised an answer
                pass
            listener.close()
        self._listeners = []

    # The course of things

    @contextlib.contextmanager
    def _watching_signals(self) -> Iterator[socket.socket]:
        def on_signal(_: int, __: Any) -> None:
            self._signals += 1

        wakeup, write = socket.socketpair()
        wakeup.setblocking(False)
        write.setblocking(False)
        former = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
        former_wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        try:
            yield wakeup
        finally:
            signal.set_wakeup_fd(former_wakeup)
            for one, handler in former.items():
                signal.signal(one, handler)
            wakeup.close()
            write.close()

    def _step(self, wakeup: socket.socket) -> None:
        doors = self._listeners if self._takers() or self._is_deserted() else []
        lines = {worker.line: worker for worker in self._workers}
        for ready in wait([wakeup, *lines, *doors, *self._refused_connections], _TICK):
            if ready is wakeup:
                with contextlib.suppress(OSError):
                    wakeup.recv(4096)
            elif isinstance(ready, Connection):
                self._hear(lines[ready])
            elif ready in self._refused_connections:
                self._discard(ready)
            elif isinstance(ready, socket.socket):
                for _ in range(64):  # then somebody else has a turn
                    if not self._accept(ready):
                        break
        for worker in list(self._workers):
            if worker.process.poll() is not None:
                self._bury(worker)
        self._end_if_told()
        for worker in self._workers:
            self._check(worker)
        self._forgive()
        for connection, until in list(self._refused_connections.items()):
            if time.monotonic() >= until:
                self._let_go(connection)
        while not self._stopping and time.monotonic() >= self._next_start and self._missing():
            self._start()

    def _missing(self) -> bool:
        return sum(not worker.retiring for worker in self._workers) < self._settings.workers

    def _start(self) -> None:
        taken = {worker.index for worker in self._workers if not worker.retiring}
        index = next(number for number in range(self._settings.workers) if number not in taken)
        setup = Setup(index, self._settings.of_a_worker(index), self._application, *self._quarantine())
        self._workers.append(_Worker(index, setup))

    def _end_if_told(self) -> None:
        if not self._signals or self._stopping:
            return
        now = time.monotonic()
        if self._drain_until is None:
            logger.info("ending: no longer ready, and in %g s nobody is let in", self._settings.drain_seconds)
            self._drain_until = now + self._settings.drain_seconds
            for worker in self._workers:
                worker.tell(("drain",))
        if now >= self._drain_until or self._signals > 1:
            self._stop()

    def _stop(self) -> None:
        self._close_door()
        self._stopping = True
        for worker in self._workers:
            worker.stop()

    # The workers

    def _hear(self, worker: _Worker) -> None:
        try:
            while worker.line.poll():
                self._note(worker, *worker.line.recv())
        except (EOFError, OSError):  # it is ending
            pass

    def _note(self, worker: _Worker, kind: str, *arguments: Any) -> None:
        now = time.monotonic()
        if kind == "alive":
            worker.heard = now
            was_ready, worker.report = worker.is_ready, arguments[0]
            if worker.is_ready and not was_ready:
                self._on_ready(worker)
        elif kind == "received":
            worker.has_received()
        elif kind == "begin":
            photo = PhotoInWork(*arguments[0])
            worker.photos[photo.number] = photo, now
        elif kind == "end":
            photo, _ = worker.photos.pop(arguments[0])
            worker.finished = now
            if self._suspects.pop(photo.digest, None) is not None:
                self._tell_quarantine()
        elif kind == "metrics":
            worker.tell(("metrics", {one.index: one.report.metrics for one in self._workers if not one.retiring}))
        elif kind == "failed":
            worker.failure = arguments[0]

    def _on_ready(self, worker: _Worker) -> None:
        logger.info("%s is ready, after %.1f s", worker.name, time.monotonic() - worker.started)
        self._was_ready, self._failed_starts = True, 0
        if self._announce is not None:
            self._announce(self._address() + "/")
            self._announce = None
        for other in self._workers:
            if other.retiring and other.index == worker.index:
                other.stop()

    def _check(self, worker: _Worker) -> None:
        settings, now = self._settings, time.monotonic()
        if worker.killed is not None:
            worker.kill("")
        elif worker.stopped is not None:
            # A second signal, or its time is up; what it needs beside is for its own end.
            if self._signals > 1 or now - worker.stopped > settings.grace_seconds + 5:
                worker.kill("does not end")
        elif worker.report.state == "starting" and now - worker.started > _START_SECONDS:
            worker.kill(f"did not start within {_START_SECONDS:g} s")
        elif worker.report.state != "starting" and now - worker.heard > settings.hang_seconds:
            worker.kill(f"has not turned its event loop for {settings.hang_seconds:g} s")
        elif worker.report.state == "draining" and self._drain_until is None:
            self._retire(worker, "was told to end by somebody else")
        elif (memory := _memory(worker.process.pid)) > 2 * settings.worker_memory:
            worker.kill(f"grew to {memory / 2**30:.1f} GiB")
        elif memory > settings.worker_memory:
            self._retire(worker, f"grew to {memory / 2**30:.1f} GiB, of {settings.worker_memory / 2**30:.1f} allowed")
        else:
            photo, since = min(worker.photos.values(), key=lambda one: one[1], default=(None, now))
            if photo is not None and now - since > settings.hang_seconds:
                self._retire(worker, f"has worked for {settings.hang_seconds:g} s on a photo ({photo})")

    def _retire(self, worker: _Worker, why: str) -> None:
        """Its replacement starts first, and it goes on until that one is ready."""
        if not worker.retiring and not self._stopping:
            logger.error("%s %s: replacing it", worker.name, why)
            worker.retiring = why

    def _bury(self, worker: _Worker) -> None:
        self._hear(worker)
        words = worker.last_words()
        code = worker.process.returncode
        self._workers.remove(worker)
        worker.close()
        for connection in worker.in_transit:
            self._hand_over(connection)
        if code == 0 and worker.killed is None and not worker.photos:  # as it was told to, by us or by others
            logger.info("%s ended", worker.name)
            return
        cause = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        logger.error(
            "%s %s; %d connections and %d photos in work were lost%s",
            worker.name,
            worker.failure or cause,
            worker.report.connections,
            len(worker.photos),
            f"\n{words}" if words else "",
        )
        # Aborted by us, the thread that it names is the main one.
        self._blame(worker, "" if worker.killed is not None else words)
        if self._stopping:
            return
        if not self._was_ready:
            self._failed_starts += 1
            if worker.failure or self._failed_starts >= _MAX_FAILED_STARTS:
                self._failure = HandMeshError(worker.failure or f"No worker comes up: the last one {cause}.")
                self._stop()
        elif worker.report.state in ("starting", "loading", "failed"):
            self._failed_starts += 1
            pause = min(0.5 * 2**self._failed_starts, _MAX_START_WAIT)
            self._next_start = time.monotonic() + pause
            logger.error("the next worker starts in %g s", pause)

    # Photos

    def _blame(self, worker: _Worker, words: str) -> None:
        """For a worker's death."""
        found = re.search(r"^Current thread 0x([0-9a-f]+)", words, re.MULTILINE)
        photos = [photo for photo, _ in worker.photos.values()]
        guilty = [photo for photo in photos if found is not None and photo.thread == int(found.group(1), 16)]
        if not guilty and len(photos) == 1 and "Fatal Python error" in words:  # in a thread that worked for it
            guilty = photos
        for photo in guilty or photos:
            deaths = self._suspects.pop(photo.digest, 0) + 1
            if guilty or deaths > 1:
                logger.error("a photo ended %s and is refused from now on: %s", worker.name, photo)
                self._refused[photo.digest] = time.monotonic()
            else:
                logger.warning("a photo was in work when %s died, and is watched: %s", worker.name, photo)
                self._suspects[photo.digest] = deaths
        for known in (self._suspects, self._refused):
            while len(known) > _MAX_REFUSED:
                del known[next(iter(known))]
        if photos:
            self._tell_quarantine()

    def _forgive(self) -> None:
        """Not for ever: a later version may know how to read it."""
        oldest = next(iter(self._refused.items()), None)
        if oldest is not None and time.monotonic() - oldest[1] > _REFUSE_SECONDS:
            del self._refused[oldest[0]]
            self._tell_quarantine()

    def _quarantine(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(self._refused), frozenset(self._suspects)

    def _tell_quarantine(self) -> None:
        for worker in self._workers:
            worker.tell(("quarantine", *self._quarantine()))


def _environment(index: int) -> dict[str, str]:
    """Of several GPUs that were named each worker has one."""
    devices = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return os.environ | ({"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if len(devices) > 1 else {})


def _memory(process: int) -> int:
    """Bytes in use, as Linux reports it; 0 elsewhere."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
