"""What the service does when there is too much: of requests, of bytes, of pixels, of patience; and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from handmesh_server import run
from handmesh_server.admission import AdmissionControl
from handmesh_server.errors import QueueFull, UploadInvalid
from handmesh_server.input import read_form
from handmesh_server.metrics import Metrics
from handmesh_server.middleware import CLIENT_GONE
from handmesh_server.settings import Settings
from handmesh_server.tokens import Tokens
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from python_multipart.multipart import parse_form
from server_harness import DotEngine, photo, running, settings, talk_to, wait_until

from handmesh.errors import ConfigError
from handmesh.files.image import encode_image


def flood(server, count: int, threads: int, content: bytes | None = None, **options) -> Counter:
    """Status codes of `count` requests, `threads` at a time."""
    content = content or photo()

    def one(_: int) -> int:
        response = clients[threading.get_ident() % len(clients)].post("/v1/hands", content=content, **options)
        if response.status_code == 429:
            assert 1 <= int(response.headers["retry-after"]) <= 60
        return response.status_code

    clients = [talk_to(server.url) for _ in range(threads)]
    try:
        with ThreadPoolExecutor(threads) as pool:
            return Counter(pool.map(one, range(count)))
    finally:
        for client in clients:
            client.close()


# Too many requests


def test_overload_is_200_or_429_and_nothing_else(monkeypatch):
    """More clients than places: some are told to come back, none fails, and never are more in work than allowed."""
    in_flight = []
    enter = AdmissionControl._enter

    def counted(control: AdmissionControl, *arguments: Any) -> None:
        enter(control, *arguments)
        in_flight.append(control.in_flight)

    monkeypatch.setattr(AdmissionControl, "_enter", counted)
    with running(settings(queue_size=4, passes=1, max_batch=2)) as server, ThreadPoolExecutor(1) as pool:
        with server.engine.held():
            flooding = pool.submit(flood, server, 100, 10)
            wait_until(lambda: counted_requests(server, 429) and server.service.control.in_flight == 4)
        statuses = flooding.result()
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 4, "the first find room; how many later ones do is a matter of speed"
        assert max(in_flight) == 4
        assert server.client.post("/v1/hands", content=photo()).status_code == 200, "and afterwards there is room"
        assert server.service.control.in_flight == 0
        wait_until(lambda: server.service.control.photos.used == server.service.control.uploads.used == 0)


def counted_requests(server, status: int) -> float:
    """How many photos were answered so, or are about to be."""
    requests = server.service.metrics.requests
    return requests.labels("POST", "/v1/hands", str(status))._value.get()


def test_photos_are_finished_in_the_order_in_which_they_came(monkeypatch):
    """They once shared one queue crop by crop, and all were finished together at the end."""
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 1000)
    with running(settings(passes=3, max_batch=1, threads=2)) as server, ThreadPoolExecutor(1) as pool:
        asked, run = [], server.service._engine.run
        monkeypatch.setattr(
            server.service._engine, "run", lambda crops, context: (asked.append(id(context)), run(crops, context))[1]
        )
        with server.engine.held():
            flooding = pool.submit(flood, server, 12, 12)
            wait_until(lambda: server.service.control.in_flight == 12)
        assert flooding.result() == {200: 12}
    begun = {one: asked.index(one) for one in asked}
    ended = {one: index for index, one in enumerate(asked)}
    at_once = [sum(begun[one] <= now <= ended[one] for one in begun) for now in range(len(asked))]
    assert (len(begun), len(asked)) == (12, 36)
    assert max(at_once) == 2, "each of the two threads finishes one photo before it begins another"


def test_who_would_wait_longer_than_the_deadline_is_told_at_once():
    """429 before the upload is read, with the time after which it makes sense; once most of them ended in 504."""
    with running(settings(passes=1, max_batch=1, threads=2), DotEngine(delay=0.1)) as server:
        control = server.service.control
        assert server.client.post("/v1/hands", content=photo()).status_code == 200
        assert control.seconds_per_hand() >= 0.1
        control._seconds_per_hand = 10.0  # each two wait for so long: the eighth for 40 s, of 50 allowed
        with server.engine.held(), ThreadPoolExecutor(1) as pool:
            flooding = pool.submit(flood, server, 30, 30)
            wait_until(lambda: counted_requests(server, 429) == 22)
            assert control.in_flight == 8
            server.engine.open.set()
            assert flooding.result() == {200: 8, 429: 22}
        wait_until(lambda: not control.in_flight)
        assert server.client.post("/v1/hands", content=photo()).status_code == 200


def test_the_expected_wait_is_that_of_what_is_in_work():
    control = AdmissionControl(queue_size=64, memory_bytes=400, deadline_seconds=1.0)
    control.places = 2
    started = time.monotonic()
    with control.working(1):
        time.sleep(0.05)
    assert 0.05 <= control.seconds_per_hand() <= time.monotonic() - started
    control._seconds_per_hand = 0.1
    with contextlib.ExitStack() as held:
        for _ in range(15):  # 0.8 s, at 0.05 s each
            held.enter_context(control.admission()).enter_queue(1)
        with pytest.raises(QueueFull, match="deadline") as refusal:
            control.admission().enter_queue(2)
        assert (refusal.value.reason, refusal.value.retry_after) == ("wait_too_long", 1)


def test_no_client_takes_all_places():
    control = AdmissionControl(queue_size=4, memory_bytes=400, client_queue_size=lambda: 3)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(control.admission(client="greedy")).enter_queue(1)
        with pytest.raises(QueueFull, match="of yours") as refusal:
            held.enter_context(control.admission(client="greedy")).enter_queue(1)
        assert refusal.value.reason == "client_queue_full"
        held.enter_context(control.admission(client="modest")).enter_queue(1)
    held.enter_context(control.admission(client="greedy")).enter_queue(1)
    held.close()
    assert (control.in_flight, control._of_client) == (0, {})


def test_ready_means_that_a_photo_is_answered_now(monkeypatch):
    """A network that hangs once left /readyz at 200 while nobody was answered."""
    with running(settings(passes=1)) as server:

        def answered_long_ago(probe_seconds: float) -> None:
            monkeypatch.setattr("handmesh_server.service._RECENT_SECONDS", probe_seconds)
            server.service._last_answer = -math.inf

        answered_long_ago(60)
        assert server.client.get("/readyz").status_code == 200
        assert server.engine.batches == [1], "it was asked"
        with server.engine.held():
            answered_long_ago(0.3)
            for path in ("/readyz", "/v2/health/ready"):
                answer = server.client.get(path)
                assert (answer.status_code, answer.json()) == (503, {"status": "stalled"})
            assert server.client.get("/livez").status_code == 200
        answered_long_ago(60)
        assert server.client.get("/readyz").status_code == 200


def test_waiting_requests_share_batches():
    with running(settings(passes=1, max_batch=8)) as server, ThreadPoolExecutor(1) as pool:
        with server.engine.held():
            flooding = pool.submit(flood, server, 24, 8)
            wait_until(lambda: server.service._engine.depth + sum(server.engine.batches) == 8)
        assert flooding.result() == {200: 24}
        assert sum(server.engine.batches) == 24
        assert max(server.engine.batches) >= 4, "at most four waited and were not taken together at first"


def test_more_hands_than_the_queue_has_places_wait_for_an_empty_one():
    with running(settings(queue_size=2)) as server:
        query = {"box": ["100,40,200,140"] * 5}
        assert len(server.client.post("/v1/hands", params=query, content=photo()).json()["hands"]) == 5


def test_the_deadline_is_kept_and_the_model_spared():
    """504 comes on time, whatever the model does, and a request that expired in the queue never reaches the model."""
    with running(settings(deadline_seconds=0.8, passes=1, max_batch=1, threads=2)) as server:
        with server.engine.held():
            assert flood(server, 6, 6) == {504: 6}
        server.service._lanes.close()  # returns when nothing waits
        assert len(server.engine.batches) <= 2, "work was done for requests that had expired"


def test_a_client_that_goes_away_leaves_the_queue(monkeypatch):
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 1000)
    with running(settings(passes=1, max_batch=1, threads=2)) as server:
        head = f"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photo())}\r\n\r\n".encode()
        with server.engine.held():
            with contextlib.ExitStack() as clients:
                for _ in range(8):
                    connection = clients.enter_context(socket.create_connection(server.address))
                    connection.sendall(head + photo())
                wait_until(lambda: server.service.control.in_flight == 8)
            wait_until(lambda: counted_requests(server, CLIENT_GONE) == 8)
        wait_until(lambda: not server.service.control.in_flight)
        assert len(server.engine.batches) <= 2, "those that were asked already"
        wait_until(lambda: not server.service.control.photos.used)


# Too many bytes and pixels


def png(width: int, height: int) -> bytes:
    """A PNG of nothing, of any size, in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (1 + (width + 7) // 8), 10_000_000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scans(count: int) -> bytes:
    """A progressive JPEG that repaints itself `count` times."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((600, 600, 3), np.uint8)).save(file, "JPEG", progressive=True)
    encoded = file.getvalue()
    start = encoded.rindex(b"\xff\xda")
    return encoded[:start] + encoded[start:-2] * count + b"\xff\xd9"


BOMBS = {
    "20,000 x 10,000 PNG": (lambda: png(20_000, 10_000), 413),
    "2**31 - 1 squared PNG": (lambda: png(2**31 - 1, 2**31 - 1), 413),
    "wide and flat PNG": (lambda: png(2**31 - 1, 1), 413),
    "65,535 squared JPEG header": (
        lambda: b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + bytes(100),
        413,
    ),
    "JPEG of 3,000 scans": (lambda: scans(3000), 422),
    "16,777,216 squared WebP": (
        lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(8),
        413,
    ),
    "PNG that says 4 pixels and holds 10 MB: the rest is never unpacked": (
        lambda: (
            png(2, 2)[:33]
            + struct.pack(">I", len(zlib.compress(bytes(10_000_000))))
            + b"IDAT"
            + zlib.compress(bytes(10_000_000))
        ),
        200,
    ),
}


@pytest.fixture(scope="module")
def server():
    with running() as one:
        flood(one, 4, 2)
        yield one


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads memory the way Linux reports it")


@needs_linux
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_milliseconds(server, name):
    """Of a processor: the server is a thread of this process."""
    content, wanted = BOMBS[name][0](), BOMBS[name][1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    response = server.client.post("/v1/hands", content=content)
    seconds = time.process_time() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert response.status_code == wanted, response.text
    assert seconds < 0.5
    assert grown < 64 * 1024, f"{grown} KB more"


@pytest.mark.parametrize("chunked", [False, True])
def test_too_many_bytes(chunked):
    with running(settings(max_body_bytes=50_000)) as server:
        body = bytes(200_000)
        content = iter([body[:40_000], body[40_000:]]) if chunked else body
        response = server.client.post("/v1/hands", content=content)
        assert response.status_code == 413
        assert "50,000" in response.json()["detail"]
        wait_until(lambda: not server.service.control.uploads.used)


@pytest.mark.parametrize("chunked", [False, True])
def test_as_many_bytes_as_allowed(chunked):
    """The limit itself is allowed, one byte more is not."""
    content = photo()
    with running(settings(max_body_bytes=len(content))) as server:
        for sent, status in ((content, 200), (content + b"\0", 413)):
            body = iter([sent[:1000], sent[1000:]]) if chunked else sent
            assert server.client.post("/v1/hands", content=body).status_code == status


def test_uploads_share_a_limit_too():
    """Slow uploads that together would fill the memory: the next is told to come back."""
    with running(settings(memory_bytes=6 * 2**20, max_body_bytes=2**20)) as server:
        head = b"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        with socket.create_connection(server.address) as slow:
            slow.sendall(head + bytes(600_000))
            wait_until(lambda: server.service.control.uploads.used >= 1_200_000)
            assert server.client.post("/v1/hands", content=bytes(300_000)).status_code == 429
        wait_until(lambda: not server.service.control.uploads.used)
        assert server.client.post("/v1/hands", content=photo()).status_code == 200


def test_photos_wait_for_memory_and_are_not_lost():
    """Memory for the pixels of three photos being decoded, and twelve come: all are answered."""
    width, height = 240, 200
    with running(settings(memory_bytes=2**20 * 4, passes=1)) as server:
        server.service.control.photos.total = 3 * 30 * width * height
        assert flood(server, 12, 12) == {200: 12}
        wait_until(lambda: not server.service.control.photos.used)
        server.service.control.photos.total = 29 * width * height
        assert server.client.post("/v1/hands", content=photo()).status_code == 413


def test_large_photos_do_not_wait_for_what_they_hold_themselves():
    """Decoded at 1/8 for one box, each kept that and waited, until its deadline, for memory to be decoded in full."""
    width, height = 1600, 1300
    content = encode_image(np.full((height, width, 3), 90, np.uint8), "jpeg")
    boxes = {"box": ["0,0,1600,1300", "100,100,160,160"]}
    with running(settings(passes=1)) as server:
        server.service.control.photos.total = 30 * width * height
        assert flood(server, 4, 4, content, params=boxes) == {200: 4}
        wait_until(lambda: not server.service.control.photos.used)


def test_memory_is_taken_and_given_back():
    control = AdmissionControl(queue_size=1, memory_bytes=400)
    budget = control.uploads
    with control.admission() as one, control.admission() as other:
        assert one.upload.grow(60)
        assert not other.upload.grow(50)
        assert other.upload.grow(40)
        one.upload.shrink_to(10)
        assert budget.used == 50
        one.upload.shrink_to(90)
        assert budget.used == 50, "shrinking never grows"
    assert budget.used == 0


def test_what_a_request_takes_is_given_back_by_the_last_who_works_for_it():
    """The deadline passes and the answer is sent, while its thread still decodes: its bytes are still there."""
    control = AdmissionControl(queue_size=1, memory_bytes=400)
    with control.admission() as thread:
        with thread:
            thread.enter_queue(1)
            assert thread.photo.grow(200)
        assert (control.in_flight, control.photos.used) == (1, 200)
        with pytest.raises(QueueFull):
            control.admission().enter_queue(1)
    assert (control.in_flight, control.photos.used) == (0, 0)


@needs_linux
def test_memory_stays_flat():
    """Of requests of every kind, nothing is left behind."""
    with running(settings(passes=1)) as server:
        big = encode_image(np.zeros((600, 800, 3), np.uint8), "png")
        after = []
        for _ in range(3):
            flood(server, 20, 2, headers={"Accept": "image/png"})
            flood(server, 20, 2, content=big[:-100])
            after.append(memory_kb())
        assert after[-1] - after[0] < 16 * 1024


def memory_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


# Too little patience, or too much


def test_slow_and_silent_clients_are_hung_up_on():
    """One never speaks, one dribbles its headers, one its photo: the timers do not start again with every byte."""
    with running(settings(header_seconds=0.4, body_seconds=0.4)) as server:
        openings = {
            "silent": b"",
            "headers": b"GET / HTTP/1.1\r\nX: ",
            "body": b"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
        }
        sockets = {name: socket.create_connection(server.address, timeout=60) for name in openings}
        for name, connection in sockets.items():
            connection.sendall(openings[name])
        ended: set[str] = set()
        answers: dict[str, bytes] = {}
        until = time.monotonic() + 60
        while len(ended) < 3 and time.monotonic() < until:
            for name, connection in sockets.items():
                if name in ended:
                    continue
                try:
                    if name != "silent":
                        connection.sendall(b"a")
                    connection.settimeout(0.02)
                    answer = connection.recv(4096)
                    answers[name] = answers.get(name, b"") + answer
                    if not answer or b"408" in answer:
                        ended.add(name)
                except TimeoutError:
                    pass
                except OSError:
                    ended.add(name)
            time.sleep(0.02)
        for connection in sockets.values():
            connection.close()
        assert ended == set(openings)
        assert answers["body"].startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_hung_up_on():
    """Its answer would stay in memory for as long as it likes."""
    large = encode_image(np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), np.uint8), "png")
    with running(settings(write_seconds=0.4, passes=1)) as server, socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(server.address)
        lazy.sendall(
            b"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nAccept: image/png\r\n"
            + f"Content-Length: {len(large)}\r\n\r\n".encode()
            + large
        )
        wait_until(lambda: counted_requests(server, 200))
        wait_until(lambda: not server.service.control.photos.used)
        lazy.settimeout(60)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := lazy.recv(2**20):
                answer += part
        (length,) = re.findall(rb"content-length: (\d+)", answer)
        assert len(answer) < int(length), "the rest of it is lost"


def test_headers_have_the_limit_that_is_promised(server):
    """20 kB in one piece once passed where 16 are promised."""
    for size, status in ((15_000, 200), (20_000, 431)):
        response = server.client.get("/livez", headers={"X-Long": "a" * size})
        assert response.status_code == status
    assert response.json()["reason"] == "headers_too_large"


def test_giant_headers_are_refused(server):
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)  # more would come in pieces, and be reset
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_connections_have_a_limit_and_those_within_it_are_served(monkeypatch):
    monkeypatch.setattr("handmesh_server.server._KEEP_ALIVE_SECONDS", 60)
    with running(settings(max_connections=20)) as server, contextlib.ExitStack() as crowd:
        assert server.client.get("/livez").status_code == 200
        many = [crowd.enter_context(socket.create_connection(server.address, timeout=60)) for _ in range(120)]
        assert all(one.recv(100).startswith(b"HTTP/1.1 503 ") for one in many[20:])
        assert server.client.get("/livez").status_code == 200, "who was there before is served on"


def posted(address: tuple[str, int], **headers: str) -> tuple[int, http.client.HTTPMessage]:
    """Of a client that looks for an answer only when all of its 20 MB are sent."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=90)) as client:
        client.request("POST", "/v1/hands", bytes(20_000_000), headers)
        answer = client.getresponse()
        answer.read()
        return answer.status, answer.headers


def test_one_connection_too_many_is_told_so_and_not_reset(monkeypatch):
    """It was closed with the upload unread."""
    monkeypatch.setattr("handmesh_server.server._UPLOAD_SECONDS", 60)
    monkeypatch.setattr("handmesh_server.server._KEEP_ALIVE_SECONDS", 60)
    with running(settings(max_connections=1)) as server:
        assert server.client.get("/livez").status_code == 200
        status, headers = posted(server.address)
        assert (status, headers["retry-after"]) == (503, "5")


def test_an_early_refusal_reaches_who_wants_the_connection_closed(monkeypatch):
    """nginx does so by default; it saw a reset where 401, 413 or 429 was the answer."""
    monkeypatch.setattr("handmesh_server.middleware._DISCARD_SECONDS", 60)
    with running(settings(token="correct-horse-battery-staple")) as server:
        assert posted(server.address, Connection="close")[0] == 401
        assert posted(server.address)[0] == 401


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this machine has no address 127.0.0.2")
def test_idle_connections_of_one_client_leave_room_for_others():
    """127.0.0.2 is another address to the server; a connection whose request is in work is not idle."""
    limits = settings(max_connections=40, client_connections=8, header_seconds=60)
    with running(limits, DotEngine()) as server, contextlib.ExitStack() as crowd:
        server.client.close()
        many = [crowd.enter_context(socket.create_connection(server.address, timeout=60)) for _ in range(30)]
        other = ("127.0.0.2", 0)
        with socket.create_connection(server.address, timeout=60, source_address=other) as honest:
            honest.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert honest.recv(100).startswith(b"HTTP/1.1 200 ")
        answered = 0  # before it was, for they came before it
        for one in many:
            with contextlib.suppress(BlockingIOError):
                answered += one.recv(100, socket.MSG_DONTWAIT).startswith(b"HTTP/1.1 503 ")
        assert 30 - 8 <= answered <= 30 - 7, "its own first connection is perhaps still there"
        for one in many:
            one.close()
        wait_until(lambda: reaches(server.address))


def reaches(address: tuple[str, int]) -> bool:
    with talk_to(f"http://{address[0]}:{address[1]}") as client:
        return client.get("/livez").status_code == 200


def test_a_client_that_sends_byte_by_byte_is_refused(server):
    """8 connections with chunks of one byte, at 1 MB/s each, once kept everybody waiting for 20 s."""
    head = b"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(server.address, timeout=60) as petty:
        with contextlib.suppress(ConnectionError):  # it hangs up before all of it is there
            petty.sendall(head + b"1\r\na\r\n" * 100_000)
        with contextlib.suppress(ConnectionError):
            assert petty.recv(4096).startswith(b"HTTP/1.1 400 ")
    content = photo()
    pieces = [content[start : start + 64] for start in range(0, len(content), 64)]
    assert server.client.post("/v1/hands", content=iter(pieces)).status_code == 200, "small ones are fine"


# What the uploads of strangers may look like


@given(st.binary(max_size=300), st.sampled_from(["", "image/jpeg", "multipart/form-data; boundary=x", "multipart/"]))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_it_fail(server, content, content_type):
    prefixes = (b"", b"\xff\xd8\xff", b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n")
    for prefix in prefixes:
        headers = {"Content-Type": content_type} if content_type else {}
        assert server.client.post("/v1/hands", content=prefix + content, headers=headers).status_code in (415, 422)


@given(
    st.lists(st.tuples(st.sampled_from(["image", "note", "b c"]), st.binary(max_size=60)), max_size=5),
    st.text(alphabet="abcXYZ0189'-_.", min_size=1, max_size=70),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_forms_are_read_as_others_read_them(fields, boundary):
    """The oracle is python-multipart. Contents that hold the delimiter are no valid form, and left out."""
    if any(b"--" + boundary.encode() in content for _, content in fields):
        return
    body = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\nContent-Type: a/b\r\n\r\n%b\r\n'
        % (boundary.encode(), name.encode(), content)
        for name, content in fields
    )
    body += b"--%b--\r\n" % boundary.encode()
    content_type = f'multipart/form-data; boundary="{boundary}"'
    found = []

    def on_file(file) -> None:
        file.file_object.seek(0)
        found.append((file.field_name.decode(), file.file_object.read()))

    headers = {"Content-Type": content_type.encode(), "Content-Length": str(len(body)).encode()}
    parse_form(headers, io.BytesIO(body), None, on_file)
    images = [content for name, content in found if name == "image"]
    others = [(name, content) for name, content in found if name != "image"]
    if len(images) == 1 and all(is_text(content) for _, content in others):
        form = read_form(body, content_type)
        assert form.image == images[0]
        assert form.fields == [(name, content.decode()) for name, content in others]
    else:
        with pytest.raises(UploadInvalid):
            read_form(body, content_type)


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_hostile_form_is_read_in_linear_time():
    """24 MB of what looks like the beginning of a delimiter; a parser in Python would hold the lock for seconds."""
    started = time.process_time()
    with pytest.raises(UploadInvalid):
        read_form(b"\r\n--" * 6_000_000, "multipart/form-data; boundary=" + "-" * 70)
    assert time.process_time() - started < 1


# Settings


def test_only_variables_that_are_no_settings_are_warned_of(monkeypatch, caplog):
    """The documented HANDMESH_CACHE_DIR was one of them."""
    for name in list(os.environ):
        if name.startswith("HANDMESH_"):
            monkeypatch.delenv(name)
    for name in ("HANDMESH_CACHE_DIR", "HANDMESH_MANO_DIR", "HANDMESH_PORT"):
        monkeypatch.setenv(name, "1")
    run._warn_about_misspelt_variables()
    assert caplog.text == ""
    monkeypatch.setenv("HANDMESH_QUEUE_SIZ", "1")
    run._warn_about_misspelt_variables()
    assert "HANDMESH_QUEUE_SIZ" in caplog.text
    assert "CACHE" not in caplog.text


def test_settings_come_from_the_environment():
    found = Settings.from_environment(
        {"HANDMESH_QUEUE_SIZE": "7", "HANDMESH_INSECURE": "1", "HANDMESH_CORS_ORIGINS": "https://a, https://b,"}, port=9
    )
    assert (found.queue_size, found.insecure, found.cors_origins, found.port) == (
        7,
        True,
        ("https://a", "https://b"),
        9,
    )


def test_the_manual_names_every_setting():
    manual = (Path(__file__).parents[2] / "docs" / "how_to" / "serving.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"`{name}`" not in manual] == []


def test_the_manual_and_the_dashboard_name_every_metric():
    """The streams', the frames' and the hands' were not in the manual."""
    root = Path(__file__).parents[2]
    families = re.findall(r"^# HELP (handmesh_\w+) ", Metrics().text().decode(), re.MULTILINE)
    names = [name for name in families if not name.endswith("_created")]
    assert "handmesh_frames_total" in names
    for page in ("docs/how_to/serving.md", "server/deploy/grafana.json"):
        text = (root / page).read_text(encoding="utf-8")
        assert [name for name in names if not re.search(rf"{name}(_bucket|_sum|_count)?\b", text)] == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HANDMESH_QUEUE_SIZE": "many"}, ["HANDMESH_QUEUE_SIZE", "many"]),
        ({"HANDMESH_QUEUE_SIZE": "0"}, ["HANDMESH_QUEUE_SIZE"]),
        ({"HANDMESH_PORT": "tcp://10.0.0.1:8000"}, ["Kubernetes", "enableServiceLinks"]),
        ({"HANDMESH_TOKEN": "short"}, ["5 characters", "openssl"]),
        ({"HANDMESH_TOKEN": "x" * 16, "HANDMESH_TOKEN_FILE": "f"}, ["two ways"]),
        ({"HANDMESH_TOKEN_FILE": "/does/not/exist"}, ["/does/not/exist"]),
        (
            {"HANDMESH_CORS_ORIGINS": "*,https://a.example/"},
            ["HANDMESH_CORS_ORIGINS", "'https://a.example/'", "no browser"],
        ),
        ({"HANDMESH_CORS_ORIGINS": "a.example"}, ["'a.example'"]),
        ({"HANDMESH_CORS_ORIGINS": "https://A.example"}, ["small letters"]),
    ],
)
def test_wrong_settings_say_what_and_where(variables, words):
    with pytest.raises(ConfigError) as refusal:
        Settings.from_environment(variables)
    assert all(word in str(refusal.value) for word in words)


def test_a_token_has_sixteen_characters_or_more():
    assert Settings.from_environment({"HANDMESH_TOKEN": "x" * 16}).token.get_secret_value() == "x" * 16
    with pytest.raises(ConfigError, match="15 characters"):
        Settings.from_environment({"HANDMESH_TOKEN": "x" * 15})


def test_a_token_never_shows(tmp_path):
    (tmp_path / "token").write_text("correct-horse-battery\n")
    found = Settings.from_environment({"HANDMESH_TOKEN_FILE": str(tmp_path / "token")})
    assert Tokens(found.token, found.token_file).name_of([b"correct-horse-battery"]) == "token"
    found = Settings.from_environment({"HANDMESH_TOKEN": " correct-horse-battery\n"})
    assert found.token.get_secret_value() == "correct-horse-battery"
    assert "horse" not in repr(found)


def test_tokens_have_names_and_change_while_the_server_runs(tmp_path, monkeypatch, caplog):
    """The old one of a name holds beside the new one until it is taken out; a file that is none changes nothing."""
    monkeypatch.setattr("handmesh_server.tokens._LOOK_SECONDS", 0.0)
    file = tmp_path / "tokens"
    first, second, other = "first-of-the-app-token", "second-of-the-app-token", "token-of-the-robot"
    file.write_text(f"# who: token\napp: {first}\n\nrobot: {other}\n")

    def change(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").rename(file)  # as a mounted secret changes: all at once

    with running(settings(token_file=file, queue_size=4)) as server:

        def status(token: str) -> int:
            return server.client.get("/v1/model", headers={"Authorization": f"Bearer {token}"}).status_code

        assert [status(one) for one in (first, other, second, "anything")] == [200, 200, 401, 401]
        assert server.service.control.client_queue_size() == 3, "where clients have names, none has all places"
        with caplog.at_level("INFO", logger="handmesh_server.access"):
            status(other)
            # The line is written once the answer is sent.
            wait_until(lambda: [one.token for one in caplog.records if getattr(one, "status", 0) == 200] == ["robot"])
        change(f"app: {first}\napp: {second}\n")
        assert [status(one) for one in (first, other, second)] == [200, 401, 200]
        change("short")
        assert [status(one) for one in (first, other, second)] == [200, 401, 200]
        assert "line 1 has 5 characters" in caplog.text
        change(f"app: {second}\n")
        assert [status(one) for one in (first, second)] == [401, 200]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no token"),
        ("# nothing\n", "no token"),
        (": " + "x" * 20, "no name"),
        ("a: b c", "line 1"),
        (f"a: {'x' * 20}\nb:\n", "line 2 has no token after its colon"),
    ],
)
def test_a_file_without_tokens_is_refused(tmp_path, content, words):
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=words):
        Settings.from_environment({"HANDMESH_TOKEN_FILE": str(tmp_path / "tokens")})


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        *[(host, True) for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1")],
        *[(host, False) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org")],
    ],
)
def test_strangers_need_a_token(host, safe):
    for extra, fine in (({}, safe), ({"token": "correct-horse-battery"}, True), ({"insecure": True}, True)):
        if fine:
            Settings(host=host, **extra).check_exposure()
        else:
            with pytest.raises(ConfigError, match="token"):
                Settings(host=host, **extra).check_exposure()


# The end


def test_sigterm_under_load_loses_no_request(model_file):
    """As a container runs it: clients hammer it, it is told to end, and every request that finds it is answered whole.

    Until the door is closed they are answered with hands, though a balancer hears that it should look elsewhere.
    """
    environment = os.environ | {
        "HANDMESH_MODEL": str(model_file),
        "HANDMESH_PORT": "0",
        "HANDMESH_THREADS": "1",
        "HANDMESH_DRAIN_SECONDS": "10",
        "HANDMESH_HOST": "127.0.0.1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "handmesh_server"], env=environment, stderr=subprocess.PIPE, text=True
    )
    log: list[str] = []
    listening = threading.Event()

    def read() -> None:
        for line in process.stderr:
            log.append(line)
            if "ready in" in line:
                listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(300), log
        (url,) = [line.split("running on ")[1].split(" ")[0] for line in log if "running on " in line]
        outcomes: Counter = Counter()
        lock = threading.Lock()

        def hammer() -> None:
            with talk_to(url) as client:
                while True:
                    try:
                        response = client.post("/v1/hands?box=8,8,200,180", content=photo())
                        complete = response.status_code != 200 or len(response.json()["hands"]) == 1
                        outcome = str(response.status_code) if complete else "cut off"
                    except httpx.HTTPError as error:
                        outcome = type(error).__name__
                    with lock:
                        outcomes[outcome] += 1
                    if outcome != "200":
                        return
                    time.sleep(0.1)  # the processors are others', too

        clients = [threading.Thread(target=hammer) for _ in range(6)]
        for client in clients:
            client.start()
        wait_until(lambda: outcomes["200"] >= 6)
        with talk_to(url) as balancer:
            assert balancer.get("/readyz").status_code == 200
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: balancer.get("/readyz").status_code == 503)
            assert balancer.get("/livez").status_code == 200
        for client in clients:
            client.join(90)
        assert process.wait(90) in (0, -signal.SIGTERM)
        assert set(outcomes) <= {"200", "503", "ConnectError"}
        assert outcomes["503"] + outcomes["ConnectError"] == 6
    finally:
        process.kill()
        reader.join(10)
        process.stderr.close()
        process.wait()


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path):
    environment = os.environ | {"HANDMESH_MODEL": str(tmp_path / "none.safetensors"), "HANDMESH_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "handmesh_server"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "error: No model at" in done.stderr
    assert "Traceback" not in done.stderr
