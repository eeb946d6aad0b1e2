"""Who works on jobs: threads that take one after the other from the queue, each with a process of its own for it.

The process may crash, hang, fill the disk or be cancelled, and takes nobody with it; it ends when its service does.
What it had done is gone on with by whoever takes the job next, on any machine.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from handmesh.errors import ConfigError
from handmesh_server.jobs.queue import JobQueue
from handmesh_server.jobs.store import MAX_ATTEMPTS, JobStore

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
_TOUCH_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 10.0
_SLOT_SECONDS: Final = 60.0  # a machine that has not swept for so long has none of our services any more

# What a process says with its exit status: done (result.json), or not for this clip (problem.json). Else it crashed.
DONE, REFUSED = 0, 3

COMMAND: Final = (sys.executable, "-m", "handmesh_server.jobs.clip")


class JobRunner:
    """Start it, tell it of new jobs, stop it."""

    def __init__(
        self,
        store: JobStore,
        open_queue: Callable[[], JobQueue],
        *,
        workers: int,
        seconds: float,
        incoming_seconds: float,
        arguments: dict[str, Any],
        on_end: Callable[[str], None] = lambda _: None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`workers`: jobs at a time, of all services on this machine that share the folder. `seconds`: for a job, in
        all attempts together.

        `arguments` of every process; `on_end(status)` is told how each job that ended here ended.
        """
        self._store, self._open_queue = store, open_queue
        self._workers, self._seconds, self._incoming_seconds = workers, seconds, incoming_seconds
        self._arguments, self._on_end, self._command = arguments, on_end, command or COMMAND
        self._queue: JobQueue | None = None
        self._opening = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._complained = False

    def start(self) -> None:
        """Begin with what an earlier service left, in threads."""
        if self._threads or self._stopping.is_set():
            return
        targets = [self._sweep_often, *[self._work] * self._workers]
        self._threads = [threading.Thread(target=one, name="handmesh-jobs", daemon=True) for one in targets]
        for thread in self._threads:
            thread.start()

    def submit(self, id: str) -> None:
        """A new job. Where the queue cannot be reached it is queued when that can."""
        self._with_queue(lambda queue: queue.enqueue(id.encode()))
        self.start()
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """End the processes; their jobs are gone on with when a service starts again. Returns when all is quiet."""
        self._stopping.set()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _with_queue(self, ask: Callable[[JobQueue], Any]) -> Any:
        """What the queue says; None when it cannot be asked, which is logged once."""
        try:
            with self._opening:
                if self._queue is None:
                    self._queue = self._open_queue()
            answer = ask(self._queue)
        except Exception as error:  # SQLite's and Redis's have no common root
            if not self._complained:
                logger.warning("the queue of jobs cannot be used: %s: %s", type(error).__name__, error)
            self._complained = True
            return None
        if self._complained:
            logger.info("the queue of jobs can be used again")
        self._complained = False
        return answer

    def _sweep_often(self) -> None:
        while True:
            try:
                _sweep_slots(self._store.folder)
                waiting = self._store.sweep(incoming_seconds=self._incoming_seconds)
                self._with_queue(lambda queue, waiting=waiting: _enqueue_missing(queue, waiting))  # type: ignore[misc]
            except Exception:  # whatever it is, there is a next time
                logger.exception("jobs cannot be swept")
            if self._stopping.wait(_SWEEP_SECONDS):
                return

    def _work(self) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                worked = self._work_on_one()
                said = ""
            except ConfigError as error:  # a folder that is not ours: once, not with each look into it
                if str(error) != said:
                    logger.warning("no clip is worked on: %s", error)
                said, worked = str(error), False
            except Exception:
                logger.exception("a job failed")
                worked = False
            if not worked:
                with self._wake:
                    self._wake.wait(_POLL_SECONDS)

    def _work_on_one(self) -> bool:
        """False when there was nothing to do."""
        with _slot(self._store.folder, self._workers) as ours:
            id = self._with_queue(lambda queue: queue.dequeue()) if ours else None
            if id is None:
                return False
            attempt = self._store.claim(id.decode("ascii", "replace"))
            if attempt is not None:
                self._run(attempt)
            return True

    def _run(self, attempt: Path) -> None:
        folder = attempt.parent
        id = folder.name
        number = int(attempt.name.removeprefix("attempt-"))
        arguments = {**self._arguments, "last_attempt": number >= MAX_ATTEMPTS}
        started = time.monotonic() - self._store.seconds(id)  # of all attempts, one after the other
        for name in ("result.json", "problem.json"):
            (folder / name).unlink(missing_ok=True)
        with _process([*self._command, str(folder), json.dumps(arguments)]) as process:
            problem = self._watch(process, attempt, started)
        extra = {"job": id, "seconds": round(time.monotonic() - started, 3)}
        if problem == _OURS_NO_MORE:
            logger.info("job cancelled, or taken over", extra=extra)
            if self._store.state(id) is None:
                self._store.remove(id)
        elif problem == _STOPPING:
            self._store.release(attempt)
            self._with_queue(lambda queue: queue.enqueue(id.encode()))
            logger.info("job put back", extra=extra)
        elif problem is not None:
            self._end(id, extra, problem=problem)
        elif process.returncode == DONE:
            self._end(id, extra, result=json.loads((folder / "result.json").read_text(encoding="utf-8")))
        elif process.returncode == REFUSED:
            self._end(id, extra, problem=json.loads((folder / "problem.json").read_text(encoding="utf-8")))
        else:
            logger.error("the process of a job ended with %d, attempt %d", process.returncode, number, extra=extra)
            if number < MAX_ATTEMPTS:
                self._store.abandon(attempt)
                self._with_queue(lambda queue: queue.enqueue(id.encode()))
            else:
                detail = f"The clip ended the process that worked on it {MAX_ATTEMPTS} times."
                self._end(id, extra, problem={"reason": "crashed", "detail": detail})

    def _watch(self, process: subprocess.Popen[bytes], attempt: Path, started: float) -> Any:
        """Until it ends by itself: None. Else why it must end: a problem, _OURS_NO_MORE or _STOPPING."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TOUCH_SECONDS if not self._stopping.is_set() else 0.01)
                return None
            if not self._store.touch(attempt):
                return _OURS_NO_MORE
            seconds = time.monotonic() - started
            self._store.note_seconds(attempt.parent.name, seconds)
            if self._stopping.is_set():
                return _STOPPING
            if seconds > self._seconds:
                return {"reason": "timeout", "detail": f"The clip took longer than {self._seconds:g} s, the limit."}
            if self._store.used() > self._store.max_bytes:
                detail = f"What is kept here took more than {self._store.max_bytes:,} bytes, the limit."
                return {"reason": "storage_full", "detail": detail}

    def _end(self, id: str, extra: dict[str, Any], **last: Any) -> None:
        self._store.end(id, **last)
        status = "done" if "result" in last else last["problem"]["reason"]
        logger.info("job ended: %s", status, extra={**extra, "reason": status})
        self._on_end(status)


_OURS_NO_MORE, _STOPPING = "ours no more", "stopping"


def _enqueue_missing(queue: JobQueue, waiting: list[str]) -> None:
    """Jobs whose worker was killed, and all where the queue was lost. One too many does no harm: it is claimed once."""
    known = set(queue.enqueued_items())
    for id in waiting:
        if id.encode() not in known:
            queue.enqueue(id.encode())


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts: ended at the end. It ends itself when its standard input does, with us."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def _slot(folder: Path, count: int) -> Iterator[bool]:
    """One of `count` places on this machine, of all processes that share the folder; False when none is free.

    The system gives it back when its holder dies. Raises ConfigError where the folder cannot be written.
    """
    if sys.platform == "win32":  # no flock: as many in each process
        yield True
        return
    held: IO[bytes] | None = None
    for number in range(count):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = _locked(folder / f"{_our_slots()}-{number}")
        except OSError as error:
            raise ConfigError(
                f"The folder {folder} cannot be written by user {os.getuid()}: {error.strerror or error}. "
                "Give it to that user, or choose another jobs_dir."
            ) from error
        if held is not None:
            break
    try:
        yield held is not None
    finally:
        if held is not None:
            held.close()


def _our_slots() -> str:
    """What the names of this machine's files begin with."""
    return f"slot-{socket.gethostname()}"


def _locked(path: Path) -> IO[bytes] | None:
    """The file, made where it was not; None when another has it. Raises OSError where it cannot be opened."""
    import fcntl

    file = open(path, "ab")  # noqa: SIM115 (held by the caller)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except OSError:
        pass
    file.close()  # locked by another, or removed since it was opened, when the lock would keep nobody out
    return None


def _sweep_slots(folder: Path) -> None:
    """Remove the files of machines that are gone, as containers are, each of which has a name of its own.

    Ours are touched, for the others. A file is removed by who has its lock alone, so that its holder keeps it.
    """
    if sys.platform == "win32":
        return
    for path in folder.glob("slot-*"):
        with suppress(OSError):
            if path.name.rpartition("-")[0] == _our_slots():
                os.utime(path)
            elif time.time() - path.stat().st_mtime > _SLOT_SECONDS and (held := _locked(path)) is not None:
                with held:
                    path.unlink()
