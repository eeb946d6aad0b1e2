"""Jobs on the disk: one folder each, which several services may share.

What happened to a job is told by which files are there; each is written whole, by one process at a time:

    job.json       what was asked; the folder has its name only when this and the clip are complete
    clip.*         what was posted; removed when the job has ended
    attempt-N      somebody took it (created by one process alone), and is still at it (touched every second)
    progress.json  frames done, by the process that computes
    seconds.json   how long was worked on it so far, in all attempts
    cancelled      nobody wants it any more
    ended.json     how it ended
    results/       what came of it
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from handmesh.errors import ExportError
from handmesh.system.atomic import write_atomically
from handmesh_server.errors import QueueFull, StorageFull

logger = logging.getLogger(__name__)

RESULTS: Final = "results"

# Whoever works on a job says so every second; who was silent for this long is dead.
STALE_SECONDS: Final = 15.0
MAX_ATTEMPTS: Final = 3

_INCOMING, _TRASH = ".incoming-", ".trash-"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_USED_FOR_SECONDS: Final = 1.0  # that long a sum of all files is believed


@dataclass(frozen=True)
class JobState:
    """All that is known of a job."""

    id: str
    status: str  # queued, running, done or failed
    created: float  # time.time()
    attempts: int
    request: dict[str, Any]  # what was asked
    progress: dict[str, Any]  # {"frames_done": n, "frames": of or None}, or nothing yet
    ended: dict[str, Any] | None  # {"ended": time.time(), "result": {...} or "problem": {...}}


class JobStore:
    """The folder of all jobs. Safe from every thread, and beside other processes that use the same folder."""

    def __init__(self, folder: Path, *, max_bytes: int, max_jobs: int, keep_seconds: float) -> None:
        self.folder = folder
        self.max_bytes, self.max_jobs, self.keep_seconds = max_bytes, max_jobs, keep_seconds
        self._used, self._used_at = 0, -1e9
        self._lock = threading.Lock()

    def path(self, id: str) -> Path:
        return self.folder / id

    # Reading

    def ids(self) -> list[str]:
        """Of all jobs, in no order."""
        return [path.name for path in _entries(self.folder) if _ID.fullmatch(path.name)]

    def state(self, id: str) -> JobState | None:
        """None when there is no such job, or none any more."""
        if not _ID.fullmatch(id):
            return None
        folder = self.path(id)
        request = _read_json(folder / "job.json")
        if request is None or (folder / "cancelled").exists():
            return None
        ended = _read_json(folder / "ended.json")
        attempts = self._attempts(id)
        if ended is not None:
            status = "done" if "result" in ended else "failed"
        else:
            status = "running" if attempts and self._is_fresh(attempts[-1]) else "queued"
        return JobState(
            id=id,
            status=status,
            created=request["created"],
            attempts=len(attempts),
            request=request,
            progress=_read_json(folder / "progress.json") or {},
            ended=ended,
        )

    def unfinished(self) -> list[JobState]:
        """The oldest first."""
        states = [state for id in self.ids() if (state := self.state(id)) is not None and state.ended is None]
        return sorted(states, key=lambda state: state.created)

    def used(self) -> int:
        """Bytes of all files in the folder, as of a second ago."""
        with self._lock:
            if time.monotonic() - self._used_at > _USED_FOR_SECONDS:
                self._used, self._used_at = _size_of(self.folder), time.monotonic()
            return self._used

    # Coming

    def incoming(self) -> IncomingJob:
        """A place for a clip that is being posted. Raises QueueFull when too many jobs wait, StorageFull."""
        waiting = sum(1 for id in self.ids() if not (self.path(id) / "ended.json").exists())
        waiting += sum(1 for entry in _entries(self.folder) if entry.name.startswith(_INCOMING))
        if waiting >= self.max_jobs:
            raise QueueFull(f"{waiting} clips are being sent, waiting or in work, the limit. Try again later.", 60)
        id = secrets.token_hex(16)
        folder = self.folder / f"{_INCOMING}{id}"
        try:
            folder.mkdir(parents=True, mode=0o700)
            return IncomingJob(self, id, folder, open(folder / "clip", "wb+"))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _not_stored(error) from error

    def check_room(self, count: int) -> None:
        """Raises StorageFull when so many bytes more would be too many."""
        if self.used() + count > self.max_bytes:
            raise StorageFull(
                f"The clips and results kept here would take more than {self.max_bytes:,} bytes, the limit. Delete "
                "jobs that you do not need any more, or try again when some have expired."
            )

    # Working

    def claim(self, id: str) -> Path | None:
        """Take a job: the file of this attempt, which is to be touched. None: it is somebody else's, or over."""
        state = self.state(id)
        if state is None or state.status != "queued":
            return None
        if state.attempts >= MAX_ATTEMPTS:
            detail = f"The clip ended the process that worked on it {MAX_ATTEMPTS} times."
            self.end(id, problem={"reason": "crashed", "detail": detail})
            return None
        attempt = self.path(id) / f"attempt-{state.attempts + 1}"
        try:
            os.close(os.open(attempt, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError:  # another was faster, or the job was removed, or the disk is full
            return None
        return attempt

    def touch(self, attempt: Path) -> bool:
        """Still at it. False when the job was cancelled, or another took it over while we were not heard of."""
        try:
            os.utime(attempt)
        except OSError:
            return False
        folder = attempt.parent
        return self._attempts(folder.name)[-1:] == [attempt] and not (folder / "cancelled").exists()

    def seconds(self, id: str) -> float:
        """How long was worked on it so far."""
        return float((_read_json(self.path(id) / "seconds.json") or {}).get("seconds", 0.0))

    def note_seconds(self, id: str, seconds: float) -> None:
        """How long was worked on it so far, for who goes on with it."""
        with suppress(ExportError):  # on a full disk it has longer
            write_atomically(self.path(id) / "seconds.json", json.dumps({"seconds": round(seconds, 1)}).encode())

    def release(self, attempt: Path) -> None:
        """Give the job back, as if it had not been tried."""
        attempt.unlink(missing_ok=True)

    def abandon(self, attempt: Path) -> None:
        """It was tried, and did not work out: another attempt may begin at once."""
        with suppress(OSError):
            os.utime(attempt, (0, 0))

    def end(self, id: str, *, result: dict[str, Any] | None = None, problem: dict[str, Any] | None = None) -> None:
        """The last word on a job."""
        folder = self.path(id)
        last = {"result": result} if problem is None else {"problem": problem}
        content = json.dumps({"ended": time.time(), **last}).encode()
        try:  # before the clip goes, which takes a while: without either, who goes on could not read the clip
            write_atomically(folder / "ended.json", content)
        except ExportError:  # the disk is full, and what is not needed makes room; or the job was removed meanwhile
            self._drop_unneeded(folder, results=problem is not None)
            with suppress(ExportError):
                write_atomically(folder / "ended.json", content)
        self._drop_unneeded(folder, results=problem is not None)

    def _drop_unneeded(self, folder: Path, *, results: bool) -> None:
        """Of a job that is over: the clip, and half a result, which is none."""
        for path in _entries(folder):  # which may be removed meanwhile
            if path.name.startswith("clip"):
                path.unlink(missing_ok=True)
        if results:
            shutil.rmtree(folder / RESULTS, ignore_errors=True)

    # Going

    def cancel(self, id: str) -> bool:
        """Nobody wants the job or its results any more. False when there is none."""
        if self.state(id) is None:
            return False
        folder = self.path(id)
        (folder / "cancelled").touch()
        if not self._is_running(id):  # else whoever works on it removes it
            self.remove(id)
        return True

    def remove(self, id: str) -> None:
        """The folder is gone for everybody at once, then its files are deleted."""
        trash = self.folder / f"{_TRASH}{id}"
        with suppress(OSError):
            self.path(id).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self, *, incoming_seconds: float) -> list[str]:
        """Remove what expired, was cancelled, or was left behind. -> jobs that wait for somebody, the oldest first.

        `incoming_seconds`: how long an upload can take.
        """
        now = time.time()
        for entry in _entries(self.folder):
            left_behind = entry.name.startswith(_INCOMING) and _age(entry, now) > incoming_seconds
            if entry.name.startswith(_TRASH) or left_behind:
                shutil.rmtree(entry, ignore_errors=True)
        for id in self.ids():
            folder = self.path(id)
            ended = _read_json(folder / "ended.json")
            expired = ended is not None and now - ended["ended"] > self.keep_seconds
            if expired or ((folder / "cancelled").exists() and not self._is_running(id)):
                self.remove(id)
        return [state.id for state in self.unfinished() if state.status == "queued"]

    def _attempts(self, id: str) -> list[Path]:
        files = [path for path in _entries(self.path(id)) if path.name.startswith("attempt-")]
        return sorted(files, key=lambda path: int(path.name.removeprefix("attempt-")))

    def _is_running(self, id: str) -> bool:
        attempts = self._attempts(id)
        return bool(attempts) and self._is_fresh(attempts[-1]) and not (self.path(id) / "ended.json").exists()

    def _is_fresh(self, attempt: Path) -> bool:
        return _age(attempt, time.time()) < STALE_SECONDS


class IncomingJob:
    """A clip that is being posted, into `clip`; discard it in the end, accepted or not."""

    def __init__(self, store: JobStore, id: str, folder: Path, clip: IO[bytes]) -> None:
        self.id, self.clip = id, clip
        self._store, self._folder = store, folder

    def accept(self, suffix: str, request: dict[str, Any]) -> JobState:
        """It is a job from now on; `clip` is closed. Raises StorageFull."""
        request = {"created": time.time(), "clip": f"clip{suffix}", **request}
        try:
            self.clip.close()
            (self._folder / "clip").rename(self._folder / f"clip{suffix}")
            write_atomically(self._folder / "job.json", json.dumps(request).encode(), error=None, durable=True)
            self._folder.rename(self._store.path(self.id))
        except OSError as error:
            raise _not_stored(error) from error
        state = self._store.state(self.id)
        assert state is not None
        return state

    def discard(self) -> None:
        """What was not accepted is deleted."""
        self.clip.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _not_stored(error: OSError) -> StorageFull:
    return StorageFull(f"The clip cannot be stored: {error.strerror or error}.")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError:
        return []


def _age(path: Path, now: float) -> float:
    """Seconds since it was written; of one that is gone, for ever."""
    try:
        return now - path.stat().st_mtime
    except OSError:
        return float("inf")


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
