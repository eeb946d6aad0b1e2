"""Clips as jobs: who works on them dies, hangs or meets another, and each job still ends once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from handmesh_server.errors import QueueFull, StorageFull
from handmesh_server.jobs import store as store_module
from handmesh_server.jobs.queue import open_queue
from handmesh_server.jobs.runner import JobRunner, _slot
from handmesh_server.jobs.store import JobState, JobStore

from handmesh.errors import ConfigError, ExportError, MissingPackageError

# In the place of the process that works on a clip: does what the job asks for, and writes down that it did.
WORKER = """
import json, os, signal, sys, threading, time
from pathlib import Path
folder = Path(sys.argv[1])
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
with open(folder.parent / "worked", "a") as file:
    file.write(f"{folder.name} {os.getpid()}\\n")
what = json.loads((folder / "job.json").read_text())["what"]
(folder / "results").mkdir(exist_ok=True)
if what == "crash" or (what == "crash once" and not (folder / "results" / "half").exists()):
    (folder / "results" / "half").touch()
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "refuse":
    (folder / "problem.json").write_text(json.dumps({"reason": "unreadable_clip", "detail": "no clip"}))
    sys.exit(3)
if what == "fill":
    (folder / "results" / "large").write_bytes(bytes(3_000_000))
    time.sleep(600)
if what == "hang":
    time.sleep(600)
(folder / "results" / "overlay.mp4").write_bytes(b"video")
(folder / "result.json").write_text(json.dumps({"frames": 1, "files": ["overlay.mp4"]}))
"""


def store_in(folder: Path, **changes: Any) -> JobStore:
    return JobStore(folder, **({"max_bytes": 2_000_000, "max_jobs": 20, "keep_seconds": 60} | changes))


def runner_of(store: JobStore, *, queue=None, **changes: Any) -> JobRunner:
    options = {"workers": 1, "seconds": 30.0, "incoming_seconds": 60.0, "arguments": {}}
    command = (sys.executable, "-S", "-c", WORKER)
    opener = queue or partial(open_queue, store.folder, None)
    return JobRunner(store, opener, command=command, **(options | changes))


def post(store: JobStore, what: str, clip: bytes = b"clip") -> JobState:
    incoming = store.incoming()
    try:
        incoming.clip.write(clip)
        return incoming.accept(".mp4", {"what": what})
    finally:
        incoming.discard()


def until(condition, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def ended(store: JobStore, id: str) -> JobState:
    return until(lambda: state if (state := store.state(id)) and state.ended else None)


def worked(store: JobStore) -> list[str]:
    """The jobs that a process began to work on, each time."""
    file = store.folder / "worked"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def store(tmp_path):
    return store_in(tmp_path / "jobs")


@pytest.fixture
def running(store):
    runner = runner_of(store)
    runner.start()
    yield runner
    runner.stop()


def test_a_folder_that_cannot_be_written_is_said_once_and_used_when_it_can(tmp_path, caplog):
    """A folder of the host's that belongs to root: two tracebacks a second, for as long as the service ran."""
    store = store_in(tmp_path / "mounted" / "jobs")
    (tmp_path / "mounted").touch()
    runner = runner_of(store, queue=partial(open_queue, tmp_path / "queue", None))
    runner.start()
    try:
        time.sleep(1.8)  # three looks
        (warning,) = caplog.records
        assert (warning.levelname, warning.exc_info) == ("WARNING", None)
        assert f"{store.folder} cannot be written by user {os.getuid()}" in warning.message
        (tmp_path / "mounted").unlink()
        job = post(store, "work")
        runner.submit(job.id)
        assert ended(store, job.id).status == "done"
    finally:
        runner.stop()


def test_jobs_are_done_in_their_order(store, running):
    jobs = [post(store, "work") for _ in range(3)]
    for job in jobs:
        running.submit(job.id)
    for job in jobs:
        state = ended(store, job.id)
        assert (state.status, state.attempts, state.ended["result"]["files"]) == ("done", 1, ["overlay.mp4"])
        until(lambda id=job.id: not list(store.path(id).glob("clip*")))  # room for others
    assert worked(store) == [job.id for job in jobs]


def test_a_clip_that_cannot_be_read_fails_with_its_reason(store, running):
    job = post(store, "refuse")
    running.submit(job.id)
    state = ended(store, job.id)
    assert (state.status, state.ended["problem"]) == ("failed", {"reason": "unreadable_clip", "detail": "no clip"})
    assert not (store.path(job.id) / "results").exists()


def test_a_clip_that_kills_its_process_is_tried_three_times_and_holds_nobody_up(store, running):
    poison, cured, good = (post(store, what) for what in ("crash", "crash once", "work"))
    for job in (poison, cured, good):
        running.submit(job.id)
    assert ended(store, good.id).status == "done"
    assert (ended(store, cured.id).status, ended(store, cured.id).attempts) == ("done", 2)
    state = ended(store, poison.id)
    assert (state.status, state.ended["problem"]["reason"]) == ("failed", "crashed")
    assert worked(store).count(poison.id) == 3


def test_a_job_that_takes_too_long_is_ended(store):
    runner = runner_of(store, seconds=0.5)
    job = post(store, "hang")
    runner.submit(job.id)
    try:
        assert ended(store, job.id).ended["problem"]["reason"] == "timeout"
    finally:
        runner.stop()


def test_a_job_that_is_gone_on_with_has_the_rest_of_its_time(store):
    """Each attempt had all of `job_seconds`: what ends its process three times had it three times."""
    job = post(store, "hang")
    for seconds, left in ((30.0, 30.0), (3600.0, 0.5)):
        runner = runner_of(store, seconds=seconds)
        store.note_seconds(job.id, seconds - left)
        runner.submit(job.id)
        until(lambda: store.state(job.id).status == "running")
        until(lambda spent=seconds - left: store.seconds(job.id) > spent)
        if left > 1:
            runner.stop()
            assert store.state(job.id).status == "queued"
    try:
        assert ended(store, job.id).ended["problem"]["reason"] == "timeout"
    finally:
        runner.stop()


def test_results_that_take_all_the_room_end_their_job(store, running):
    job = post(store, "fill")
    running.submit(job.id)
    state = ended(store, job.id)
    assert state.ended["problem"]["reason"] == "storage_full"
    until(lambda: store.used() < 1_000_000)
    after = post(store, "work")
    running.submit(after.id)
    assert ended(store, after.id).status == "done"


def test_cancelled_work_ends_and_leaves_nothing(store, running):
    job, waiting = post(store, "hang"), post(store, "work")
    running.submit(job.id)
    running.submit(waiting.id)
    until(lambda: store.state(job.id).status == "running")
    assert store.cancel(job.id)
    assert store.state(job.id) is None  # at once, for who asks
    assert not store.cancel(job.id)
    assert ended(store, waiting.id).status == "done"  # its place is free
    until(lambda: not store.path(job.id).exists())
    assert store.cancel(waiting.id)  # deletes results, too
    assert not store.path(waiting.id).exists()


def test_a_service_that_ends_puts_its_work_back_and_the_next_goes_on(store):
    first = runner_of(store)
    job = post(store, "hang")
    first.submit(job.id)
    until(lambda: store.state(job.id).status == "running")
    first.stop()
    assert (store.state(job.id).status, store.state(job.id).attempts) == ("queued", 0)
    (store.path(job.id) / "job.json").write_text(json.dumps({"created": 0, "what": "work"}))
    second = runner_of(store_in(store.folder))
    second.start()
    try:
        assert ended(store, job.id).status == "done"
    finally:
        second.stop()


SERVICE = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[2])
from pathlib import Path
from test_jobs import post, runner_of, store_in
store = store_in(Path(sys.argv[1]))
runner = runner_of(store)
runner.submit(post(store, "hang").id)
time.sleep(600)
"""


def test_work_of_a_killed_service_is_taken_over(store, monkeypatch):
    """kill -9 of a service: the process that it had for the clip ends with it, and another service takes the job."""
    paths = [str(Path(__file__).parent), *sys.path]
    service = subprocess.Popen([sys.executable, "-c", SERVICE, str(store.folder), json.dumps(paths)])
    try:
        until(lambda: worked(store))
        id = worked(store)[0]
        until(lambda: store.state(id).status == "running")
    finally:
        service.kill()
        service.wait()
    child = int((store.folder / "worked").read_text().split()[1])
    until(lambda: _is_over(child))
    monkeypatch.setattr(store_module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr("handmesh_server.jobs.runner._SWEEP_SECONDS", 0.2)
    (store.path(id) / "job.json").write_text(json.dumps({"created": 0, "what": "work"}))
    runner = runner_of(store)
    runner.start()
    try:
        state = ended(store, id)
        assert (state.status, state.attempts) == ("done", 2)
    finally:
        runner.stop()


def _is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_two_services_on_one_folder_do_each_job_once(store):
    """And as many at a time as one of them would."""
    runners = [runner_of(store_in(store.folder), workers=2) for _ in range(2)]
    jobs = [post(store, "work") for _ in range(8)]
    hanging = [post(store, "hang") for _ in range(3)]
    try:
        for index, job in enumerate([*jobs, *hanging]):
            for runner in {runners[index % 2], runners[0]}:  # some are queued twice
                runner.submit(job.id)
        for job in jobs:
            assert (ended(store, job.id).status, ended(store, job.id).attempts) == ("done", 1)
        until(lambda: len(worked(store)) == 10)
        time.sleep(1.0)
        assert sum(store.state(job.id).status == "running" for job in hanging) == 2
        assert sorted(set(worked(store))) == sorted(worked(store))
    finally:
        for runner in runners:
            runner.stop()


def test_places_of_machines_that_are_gone_go_too(store):
    """Every container has a name of its own, and left its files in the folder for ever."""
    fcntl = pytest.importorskip("fcntl", reason="needs flock, which Windows has not")
    store.folder.mkdir()
    long_ago = time.time() - 3600
    ours = f"slot-{socket.gethostname()}-0"
    for name in ("slot-gone-0", "slot-gone-1", "slot-busy-0", "slot-idle-0", ours):
        (store.folder / name).touch()
        if name != "slot-idle-0":  # whose service touched it
            os.utime(store.folder / name, (long_ago, long_ago))
    with open(store.folder / "slot-busy-0") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        runner = runner_of(store)
        runner.start()
        try:
            until(lambda: not list(store.folder.glob("slot-gone-*")))
        finally:
            runner.stop()
    assert {path.name for path in store.folder.glob("slot-*")} == {"slot-busy-0", "slot-idle-0", ours}
    assert (store.folder / ours).stat().st_mtime > long_ago + 60, "other machines see that we are there"


def test_a_place_that_is_removed_while_it_is_taken_is_not_taken(store, monkeypatch):
    """Its lock would be on a file that nobody finds, and another could take the same place."""
    fcntl = pytest.importorskip("fcntl", reason="needs flock, which Windows has not")
    store.folder.mkdir()
    lock = fcntl.flock

    def removed_before(file, how):
        (path,) = store.folder.glob("slot-*")
        path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with _slot(store.folder, 1) as ours:
        assert not ours
    monkeypatch.undo()
    with _slot(store.folder, 1) as ours, _slot(store.folder, 1) as another:
        assert (ours, another) == (True, False)


def test_a_worker_that_was_not_heard_of_for_long_yields_to_the_one_that_took_over(store, monkeypatch):
    job = post(store, "work")
    first = store.claim(job.id)
    assert store.claim(job.id) is None  # somebody is at it
    monkeypatch.setattr(store_module, "STALE_SECONDS", 0.0)
    second = store.claim(job.id)
    assert second is not None
    monkeypatch.undo()
    assert not store.touch(first)
    assert store.touch(second)


def test_only_one_of_many_gets_a_job(store):
    job = post(store, "work")
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: store.claim(job.id), range(32)))
    assert sum(claim is not None for claim in claims) == 1


def test_a_lost_or_damaged_queue_is_made_of_the_folders(store, caplog):
    job = post(store, "work")  # never queued, as by a service that was killed in that moment
    (store.folder / "queue.sqlite").write_bytes(b"no database" * 1000)
    runner = runner_of(store)
    runner.start()
    try:
        assert ended(store, job.id).status == "done"
    finally:
        runner.stop()
    assert "damaged" in caplog.text


def test_a_queue_that_cannot_be_asked_keeps_jobs_until_it_can(store, monkeypatch):
    monkeypatch.setattr("handmesh_server.jobs.runner._SWEEP_SECONDS", 0.1)
    away = threading.Event()
    away.set()

    def opened():
        if away.is_set():
            raise sqlite3.OperationalError("away")
        return open_queue(store.folder, None)

    runner = runner_of(store, queue=opened)
    job = post(store, "work")
    runner.submit(job.id)
    try:
        time.sleep(0.3)
        assert store.state(job.id).status == "queued"
        away.clear()
        assert ended(store, job.id).status == "done"
    finally:
        runner.stop()


def test_the_folder_is_bounded_and_expires(store):
    with pytest.raises(StorageFull, match="2,000,000 bytes"):
        store.check_room(3_000_000)
    few = store_in(store.folder, max_jobs=2)
    jobs = [post(few, "work") for _ in range(2)]
    with pytest.raises(QueueFull):
        few.incoming()
    few.end(jobs[0].id, result={"files": []})
    coming = few.incoming()
    with pytest.raises(QueueFull, match="being sent"):
        few.incoming()  # as many as were being sent at a time were taken, however many those were
    coming.discard()
    assert set(few.ids()) == {job.id for job in jobs}
    few.sweep(incoming_seconds=60)
    assert set(few.ids()) == {job.id for job in jobs}
    half = few.incoming()  # of a service that was killed during the upload
    assert store_in(store.folder, keep_seconds=-1).sweep(incoming_seconds=-1) == [jobs[1].id]
    assert few.ids() == [jobs[1].id]  # what waits does not expire
    assert [path.name for path in store.folder.iterdir()] == [jobs[1].id]
    half.clip.close()


def test_a_full_disk_refuses_the_clip_and_keeps_what_was_there(store, tmp_path):
    from full_disk import disk_with

    incoming = store.incoming()
    with disk_with(0), pytest.raises(StorageFull, match="large"):
        incoming.accept(".mp4", {"what": "work"})
    incoming.discard()
    assert store.ids() == []
    assert list(store.folder.iterdir()) == []
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageFull):
        store_in(file).incoming()


def test_a_job_has_ended_before_its_clip_goes(store, monkeypatch):
    """A service that was killed while it deleted the clip had not said that the job is done: the next one tried it
    again, could not read it, and deleted the results. A full disk still gets the room first.
    """
    job = post(store, "done")
    assert store.claim(job.id)
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("clip"):
            raise SystemExit
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(SystemExit):
            store.end(job.id, result={"files": []})
    assert store.state(job.id).status == "done"

    full = post(store, "done")
    write = store_module.write_atomically

    def into_what_is_left(path: Path, content: bytes) -> None:
        if list(path.parent.glob("clip*")):
            raise ExportError("No space left on device.")
        write(path, content)

    monkeypatch.setattr(store_module, "write_atomically", into_what_is_left)
    store.end(full.id, problem={"reason": "storage_full", "detail": "full"})
    assert store.state(full.id).status == "failed"


@pytest.mark.parametrize("id", ["", "..", "../jobs", "a" * 31, "a" * 33, "A" * 32, "queue.sqlite", "a" * 32])
def test_a_name_that_is_no_job_is_none(store, id):
    post(store, "work")
    assert store.state(id) is None
    assert not store.cancel(id)
    assert store.claim(id) is None


def test_a_queue_is_first_in_first_out(tmp_path):
    check_order(open_queue(tmp_path / "new", None))


def check_order(queue) -> None:
    for item in (b"1", b"2", b"3"):
        queue.enqueue(item)
    assert queue.enqueued_items() == [b"1", b"2", b"3"]
    assert [queue.dequeue() for _ in range(4)] == [b"1", b"2", b"3", None]


def test_a_folder_that_cannot_hold_a_queue_is_said(tmp_path):
    (tmp_path / "queue.sqlite").mkdir()
    with pytest.raises(ConfigError, match="jobs_dir"):
        open_queue(tmp_path, None)


@pytest.fixture
def redis_address(tmp_path):
    import shutil

    pytest.importorskip("redis", reason='needs redis-py: pip install "handmesh[redis]"')
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server: apt install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(partial(_listens, port))
    yield f"redis://127.0.0.1:{port}/3", server, command
    server.kill()
    server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_redis_is_the_queue_of_several_machines(store, redis_address, monkeypatch):
    """Two services with one Redis; it ends in between, and comes back with nothing: no job is lost."""
    monkeypatch.setattr("handmesh_server.jobs.runner._SWEEP_SECONDS", 0.2)
    address, server, command = redis_address
    check_order(open_queue(store.folder, address))
    runners = [runner_of(store_in(store.folder), queue=partial(open_queue, store.folder, address)) for _ in range(2)]
    try:
        jobs = [post(store, "work") for _ in range(6)]
        for index, job in enumerate(jobs[:3]):
            runners[index % 2].submit(job.id)
        for job in jobs[:3]:
            assert (ended(store, job.id).status, ended(store, job.id).attempts) == ("done", 1)
        server.kill()
        server.wait()
        for job in jobs[3:]:
            runners[0].submit(job.id)
        again = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            for job in jobs[3:]:
                assert (ended(store, job.id).status, ended(store, job.id).attempts) == ("done", 1)
        finally:
            again.send_signal(signal.SIGKILL)
            again.wait()
    finally:
        for runner in runners:
            runner.stop()
    assert not (store.folder / "queue.sqlite").exists()


def test_an_address_that_is_none_is_said(tmp_path):
    pytest.importorskip("redis", reason='needs redis-py: pip install "handmesh[redis]"')
    with pytest.raises(ConfigError, match="jobs_redis"):
        open_queue(tmp_path, "http://elsewhere")


def test_without_its_package_the_command_that_installs_it_is_said(tmp_path, monkeypatch):
    """From a checkout, as tests run, too: it said what only works from an index."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingPackageError, match=r'Redis needs redis, .*pip install -e "\.\[redis\]"'):
        open_queue(tmp_path, "redis://elsewhere")


def test_nobody_else_reads_clips(store):
    post(store, "work")
    assert all(os.stat(store.path(id)).st_mode & 0o077 == 0 for id in store.ids())
