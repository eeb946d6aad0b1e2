"""Workers under a supervisor: real processes, which crash, hang, grow and are killed while others are served.

The network is a toy that photos of certain colours crash, hold up or fatten (dangerous_app.py).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from dangerous_app import CRASHES, GROWS, HANGS, plain
from handmesh_server.admission import RequestContext
from handmesh_server.errors import PhotoRefused
from handmesh_server.lanes import Lanes
from handmesh_server.metrics import Metrics, merged
from handmesh_server.quarantine import PhotoInWork, Quarantine
from handmesh_server.settings import Settings
from handmesh_server.supervisor import Report, Supervisor, _Worker
from prometheus_client.parser import text_string_to_metric_families
from server_harness import photo, talk_to, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has one process: docs/explain/service.md")

TESTS = Path(__file__).parents[1]
PATIENCE = 90.0  # s; a worker that starts beside other work takes its time


class Service:
    """`handmesh serve` with that network, its log, and its workers."""

    def __init__(self, **settings: object) -> None:
        chosen = {"port": 0, "passes": 1, "workers": 2, "hang_seconds": 6, "drain_seconds": 0.2, "grace_seconds": 3}
        environment = {f"HANDMESH_{name.upper()}": str(value) for name, value in (chosen | settings).items()}
        paths = os.pathsep.join([str(TESTS), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from dangerous_app import main; main()"],
            env=os.environ | environment | {"PYTHONPATH": paths, "HANDMESH_HOST": "127.0.0.1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self.log += self.process.stderr  # line by line, until its end

    def said(self, pattern: str, times: int = 1) -> list[str]:
        """Waits until the log has it so often. -> what the pattern's group found."""
        until = time.monotonic() + PATIENCE
        while len(found := re.findall(pattern, "".join(self.log))) < times:
            assert time.monotonic() < until, f"{pattern} is not in: {''.join(self.log)}"
            time.sleep(0.02)
        return found

    @property
    def url(self) -> str:
        return self.said(r"running on (http://\S+) ")[0]

    def workers(self) -> list[int]:
        """Their process ids, when all of them are ready."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            started = re.findall(r"\(process (\d+)\) is ready", "".join(self.log))
            alive = [int(one) for one in started if Path(f"/proc/{one}/stat").exists() and not is_zombie(int(one))]
            if len(alive) == 2:
                return alive
            time.sleep(0.02)
        raise AssertionError("".join(self.log))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        self.process.stderr.close()


def is_zombie(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def ends(process: int) -> bool:
    until = time.monotonic() + PATIENCE
    while not is_zombie(process) and time.monotonic() < until:
        time.sleep(0.02)
    return is_zombie(process)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks for processes the way Linux shows them")
    one = Service(worker_memory_bytes=450 * 2**20, deadline_seconds=5)
    try:
        one.workers()
        yield one
    finally:
        one.end()


def test_a_photo_that_crashes_its_worker_is_named_and_refused(service):
    """Its own client gets a closed connection at once; whoever is with the other worker hears nothing of it."""
    service.workers()
    crash = plain(CRASHES)
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(talk_to(service.url)) for _ in range(4)]
        for client in clients:  # two with each worker, which keep their connections
            assert client.post("/v1/hands", content=photo()).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):  # and no timeout
            clients[0].post("/v1/hands", content=crash)
        others = []
        for client in clients[1:]:
            with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                others.append(client.post("/v1/hands", content=photo()).status_code)
        assert others.count(200) >= 2
    assert service.said(r"a photo ended worker \d .*? is refused from now on: SHA-256 (\w{16}), (\d+) bytes")
    assert service.said(r"Segmentation fault"), "and where it was is in the log"
    service.workers()
    with talk_to(service.url) as client:
        for size in (64, 64):
            answer = client.post("/v1/hands", content=plain(CRASHES, size))
            assert (answer.status_code, answer.json()["reason"]) == (422, "photo_refused")
        assert client.post("/v1/hands", content=photo()).status_code == 200


def test_kill_9_of_a_worker_loses_its_own_requests_and_no_others(service):
    """Each of them ends by a closed connection; later ones are answered, by the other worker and then by a new one."""
    first, _ = service.workers()
    lost: list[type[Exception]] = []
    outcomes: Counter = Counter()
    done = threading.Event()

    def hammer() -> None:
        with talk_to(service.url) as client:
            while not done.is_set():
                try:
                    outcomes[client.post("/v1/hands", content=photo()).status_code] += 1
                except httpx.HTTPError as error:
                    lost.append(type(error))

    clients = [threading.Thread(target=hammer) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: sum(outcomes.values()) >= 8)
    os.kill(first, signal.SIGKILL)
    service.said(rf"\(process {first}\) was killed by SIGKILL")
    answered = sum(outcomes.values())
    wait_until(lambda: sum(outcomes.values()) >= answered + 20)
    done.set()
    for client in clients:
        client.join(PATIENCE)
    assert set(outcomes) <= {200, 503}
    assert len(lost) <= 2, "of four connections it had two"
    assert not [error for error in lost if issubclass(error, httpx.TimeoutException)]
    assert len(service.workers()) == 2


def test_a_photo_that_was_there_when_a_worker_was_killed_is_not_held_against_it(service):
    """Only if it happens again before it was answered: an operator's kill -9 must not make photos unwelcome."""
    service.workers()
    with talk_to(service.url) as client:
        for _ in range(3):
            assert client.post("/v1/hands", content=photo()).status_code == 200


def test_a_photo_that_hangs_gets_504_and_its_worker_is_replaced(service):
    before = set(service.workers())
    with talk_to(service.url) as client:
        assert client.post("/v1/hands", content=plain(HANGS)).status_code == 504
        for _ in range(5):
            assert client.post("/v1/hands", content=photo()).status_code == 200, "nobody waits behind it"
        assert client.get("/readyz").status_code == 200
    service.said(r"has worked for 6 s on a photo \(SHA-256 \w{16}")
    wait_until(lambda: [one for one in before if is_zombie(one)], PATIENCE)
    assert len([one for one in before if is_zombie(one)]) == 1
    with talk_to(service.url) as client:
        assert client.post("/v1/hands", content=photo()).status_code == 200


def test_a_worker_that_grows_is_replaced(service):
    service.workers()
    with talk_to(service.url) as client:
        assert client.post("/v1/hands", content=plain(GROWS)).status_code in (200, 504)  # as fast as memory comes
        service.said(r"grew to \d\.\d GiB, of 0\.4 allowed: replacing it")
        assert client.post("/v1/hands", content=photo()).status_code == 200
    assert len(service.workers()) == 2


def test_metrics_are_those_of_all_workers(service):
    wanted = {'handmesh_ready{worker="0"} 1.0', 'handmesh_ready{worker="1"} 1.0'}
    with talk_to(service.url) as client:  # one may still be on its way
        wait_until(lambda: wanted <= set(client.get("/metrics").text.splitlines()), PATIENCE)


def test_without_their_supervisor_workers_end(service):
    workers = service.workers()
    service.process.kill()
    assert all(ends(worker) for worker in workers)


def test_workers_share_what_is_set_for_all():
    whole = Settings(workers=3, queue_size=64, memory_bytes=3 * 2**30, threads=7, max_connections=1000, max_streams=16)
    part = whole.of_a_worker(0)
    assert (part.queue_size, part.memory_bytes, part.threads) == (22, 2**30, 2)
    assert (part.max_connections, part.max_streams) == (334, 6)
    clips = [Settings(workers=3, job_workers=4).of_a_worker(index).job_workers for index in range(3)]
    assert clips == [2, 1, 1]
    assert whole.worker_memory == 2**31 + 2**30


# Their parts, without processes


def worker(state: str, connections: int = 0, **changes: object) -> SimpleNamespace:
    report = Report(state, connections, 0, b"")
    known = {"report": report, "connections": connections, "stopped": None, "killed": None, "retiring": ""}
    return SimpleNamespace(**known | {"is_stuck": lambda _: False} | changes)


def test_connections_go_to_the_worker_with_the_fewest_that_answers(monkeypatch):
    supervisor, now = Supervisor(Settings()), time.monotonic()
    loading, many, few = worker("loading"), worker("ready", 5), worker("ready", 2)
    retiring, stuck = worker("ready", retiring="grew"), worker("ready", is_stuck=lambda _: True)
    ended = worker("ready", stopped=1.0)
    supervisor._workers = [loading]
    assert supervisor._takers() == [loading], "at the start it says that it is loading"
    supervisor._workers = [worker("starting"), loading, ended, stuck, retiring, many, few]
    assert supervisor._takers()[:3] == [few, many, retiring]
    assert ended not in supervisor._takers()
    supervisor._workers = [loading]
    assert supervisor._takers() == [], "where the others died, clients wait for it"
    monkeypatch.setattr("handmesh_server.supervisor.time", SimpleNamespace(monotonic=lambda: now + 60))
    assert supervisor._takers() == [loading], "but not for ever"


def test_who_finds_no_worker_is_told_so_and_not_reset():
    """The door was closed with the upload unread, and of the answer the client saw that its connection was reset."""
    supervisor = Supervisor(Settings(port=0))
    supervisor._listen()
    supervisor._workers = [worker("ready", take=lambda _: False)]  # it has died this moment
    (listener,) = supervisor._listeners
    client = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=90)

    def post() -> tuple[int, str | None, bytes]:
        client.request("POST", "/v1/hands", bytes(20_000_000))
        answer = client.getresponse()
        return answer.status, answer.headers["Retry-After"], answer.read()

    with contextlib.closing(listener), contextlib.closing(client), ThreadPoolExecutor(1) as pool:
        posting = pool.submit(post)
        wait_until(lambda: supervisor._accept(listener))
        while supervisor._refused_connections:
            supervisor._discard(next(iter(supervisor._refused_connections)))
        assert posting.result() == (503, "2", b"")


class Handed(_Worker):
    """A worker without a process."""

    def __init__(self) -> None:
        self.handover, self.theirs = socket.socketpair()
        self.report, self.photos, self.retiring = Report("ready", 0, 0, b""), {}, ""
        self.started = self.heard = self.finished = time.monotonic()
        self.stopped = self.killed = None
        self.sent, self.in_transit = 0, deque()
        self.process = SimpleNamespace(pid=0, returncode=-signal.SIGKILL, poll=lambda: -signal.SIGKILL)
        self.index, self.failure = 0, ""

    def received(self) -> socket.socket:
        _, (descriptor,), _, _ = socket.recv_fds(self.theirs, 1, 1)
        return socket.socket(fileno=descriptor)

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.handover.close()
        self.theirs.close()


def test_a_connection_on_its_way_to_a_worker_that_dies_is_another_workers():
    """It was reset: the worker was killed, and had not yet closed its end."""
    supervisor = Supervisor(Settings(port=0))
    supervisor._listen()
    (listener,) = supervisor._listeners
    dying, other = Handed(), Handed()
    supervisor._workers = [dying]
    supervisor._hear = lambda _: None
    with contextlib.closing(listener), socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"POST")
        wait_until(lambda: supervisor._accept(listener))
        supervisor._workers.append(other)
        supervisor._bury(dying)
        with other.received() as connection:
            assert connection.recv(10) == b"POST"
        assert len(other.in_transit) == 1
        supervisor._note(other, "received")
        assert not other.in_transit
        client.settimeout(90)
        assert client.recv(10) == b"", "and nobody keeps it open"
    other.close()


def test_nobody_waits_where_workers_do_not_come_back(monkeypatch):
    """While they start they were neither let in nor refused."""
    supervisor, now = Supervisor(Settings()), time.monotonic()
    supervisor._workers = [worker("starting")]
    assert not supervisor._is_deserted(), "at the start they wait for the first"
    supervisor._was_ready, supervisor._answered = True, now
    assert not supervisor._is_deserted()
    monkeypatch.setattr("handmesh_server.supervisor.time", SimpleNamespace(monotonic=lambda: now + 6))
    assert supervisor._takers() == []
    assert supervisor._is_deserted()


@pytest.mark.parametrize("state", ["starting", "loading", "failed"])
def test_after_a_start_that_failed_the_next_one_waits_longer_each_time(state):
    """Not after one that said that its model cannot be loaded before it ended."""
    supervisor = Supervisor(Settings())
    supervisor._was_ready, supervisor._hear = True, lambda _: None
    pauses = []
    for _ in range(3):
        dying = Handed()
        dying.report, dying.failure = Report(state, 0, 0, b""), "The model cannot be loaded."
        supervisor._workers = [dying]
        supervisor._bury(dying)
        pauses.append(round(supervisor._next_start - time.monotonic()))
    assert pauses == [1, 2, 4]


def test_merged_metrics_are_those_that_were_merged():
    one, other = Metrics(), Metrics()
    one.hands.inc(3)
    other.hands.inc(4)
    other.stages.labels("decode").observe(0.02)
    families = {
        one.name: one for one in text_string_to_metric_families(merged({0: one.text(), 5: other.text()}).decode())
    }
    hands = [sample for sample in families["handmesh_hands"].samples if sample.name.endswith("_total")]
    assert {sample.labels["worker"]: sample.value for sample in hands} == {"0": 3, "5": 4}
    assert families["handmesh_stage_seconds"].type == "histogram"
    counts = [one for one in families["handmesh_stage_seconds"].samples if one.name.endswith("_count")]
    assert sum(one.value for one in counts if one.labels["worker"] == "5") == 1


def test_suspects_are_tried_one_at_a_time_and_refused_ones_not_at_all():
    quarantine, told = Quarantine(), []
    quarantine.tell = told.append
    with quarantine.work_on(b"one", RequestContext()), quarantine.work_on(b"other", RequestContext()):
        digests = [message[1].digest for message in told]
    assert [message[0] for message in told] == ["begin", "begin", "end", "end"]
    assert all(isinstance(message[1], PhotoInWork) for message in told[:2])
    quarantine.suspects = frozenset(digests)
    at_once = most = 0
    lock = threading.Lock()

    def work(content: bytes) -> None:
        nonlocal at_once, most
        with quarantine.work_on(content, RequestContext()):
            with lock:
                at_once, most = at_once + 1, max(most, at_once + 1)
            time.sleep(0.02)
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=work, args=(content,)) for content in (b"one", b"other") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    quarantine.refused = frozenset(digests[:1])
    with pytest.raises(PhotoRefused), quarantine.work_on(b"one", RequestContext()):
        pass


@pytest.mark.parametrize("places", [1, 2])
def test_lanes_keep_the_order_and_their_number(monkeypatch, places):
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 1000)
    lanes, begun, at_once, most = Lanes(places), [], 0, 0
    lock, all_there = threading.Lock(), threading.Barrier(places)

    def work(number: int) -> int:
        nonlocal at_once, most
        with lock:
            begun.append(number)
            at_once, most = at_once + 1, max(most, at_once + 1)
        all_there.wait(90)
        with lock:
            at_once -= 1
        return number

    futures = [lanes.submit(lambda number=number: work(number)) for number in range(40)]
    assert [future.result(90) for future in futures] == list(range(40))
    # Those that begin together are there in any order.
    assert [sorted(begun[at : at + places]) for at in range(0, 40, places)] == [
        list(range(at, at + places)) for at in range(0, 40, places)
    ]
    assert most == places
    lanes.close()


def test_a_photo_that_takes_long_does_not_hold_a_place(monkeypatch):
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 0.1)
    lanes, end = Lanes(1), threading.Event()
    slow = lanes.submit(end.wait)
    assert lanes.submit(lambda: "answered").result(90) == "answered"
    end.set()
    assert slow.result(90)
    lanes.close()


def test_lanes_hand_on_errors_and_go_on():
    lanes = Lanes(1)
    failed = lanes.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(90)
    assert lanes.submit(lambda: 1).result(90) == 1
    lanes.close()
    with pytest.raises(RuntimeError, match="closed"):
        lanes.submit(lambda: 1)
