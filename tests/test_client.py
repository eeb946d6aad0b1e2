"""The Python client against a running service: what it sends arrives, what comes back is what the service found."""

from __future__ import annotations

import json
import re
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from handmesh_server.schemas import Job
from handmesh_server.stream import decode_frame
from server_harness import DOT, QUICK_JOBS, DotEngine, photo, running, settings
from websockets.sync.server import ServerConnection, serve

import handmesh
from handmesh.client import Client, ServiceError
from handmesh.errors import ConfigError, DataError, ImageError
from handmesh.files.image import read_image
from handmesh.runtime.engine import open_engine

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handmesh_server.jobs.runner.COMMAND", QUICK_JOBS)
        jobs = tmp_path_factory.mktemp("client") / "jobs"
        with running(settings(token=TOKEN, jobs_dir=jobs, max_body_bytes=200_000)) as started:
            yield started


@pytest.fixture
def client(server):
    with Client(server.url, token=TOKEN, patience=0) as one:
        yield one


def test_a_photo_is_answered_with_its_hand(client, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo())
    answers = [
        client.hands(tmp_path / "photo.jpg"),
        client.hands(photo(), encoding="numbers"),
        client.hands(photo(), box=[(40, 30, 210, 200)], hand="right", focal=300),
        client.hands(read_image(photo())),
    ]
    for answer in answers:
        (hand,) = answer.hands
        assert hand.array("keypoints_px")[0] == pytest.approx(DOT, abs=1.5)
        assert hand.array("vertices").shape == (778, 3)
    for other in (answers[1], answers[3]):
        np.testing.assert_allclose(*(one.hands[0].array("vertices") for one in (answers[0], other)), atol=1e-6)
    assert answers[2].hands[0].intrinsics_source == "given"
    assert client.rendered(photo(), "model/gltf-binary").startswith(b"glTF")
    assert client.model().name == "given"
    assert len(client.topology().joint_names) == 21


def test_refusals_say_what_the_service_says(client, server):
    with pytest.raises(ServiceError) as refused:
        client.hands(b"no photo")
    assert (refused.value.status, refused.value.reason) == (415, "unsupported_image")
    assert len(refused.value.request_id) == 32
    with pytest.raises(ServiceError, match="limit") as refused:
        client.hands(bytes(5_000_000))  # refused before its end
    assert refused.value.status == 413
    with pytest.raises(ServiceError, match="unknown") as refused:
        client.hands(photo(), unknown=1)
    assert refused.value.status == 422
    with Client(server.url, token="wrong") as stranger, pytest.raises(ServiceError) as refused:
        stranger.hands(photo())
    assert refused.value.status == 401
    with pytest.raises(ImageError, match=r"nothing\.jpg"):
        client.hands("nothing.jpg")
    assert client.hands(photo()).hands  # and goes on


def test_where_there_is_no_service_it_says_so():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with Client(url) as client:
            for ask in (client.model, client.stream):
                with pytest.raises(ServiceError, match="reached") as refused:
                    ask()
                assert refused.value.status == 0
    for wrong in ("localhost:8000", "ftp://host", "http://", "http://host?x=1", "http://host:99999", "http://[::1"):
        with pytest.raises(ConfigError, match="http://host:port"):
            Client(wrong)


def test_a_token_may_come_out_of_a_file(server):
    """With its line's end it raised ValueError from inside of http.client."""
    with Client(server.url, token=f"{TOKEN}\n") as client:
        assert client.model().name == "given"
    for wrong in ("", "\n", "two\nlines", "schlüssel"):
        with pytest.raises(ConfigError, match="token"):
            Client(server.url, token=wrong)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A service that gives these answers, each on a connection of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    came = b""
                    while b"\r\n\r\n" not in came:
                        came += connection.recv(65536)
                    head, _, body = came.partition(b"\r\n\r\n")
                    length = re.search(rb"content-length: (\d+)", head.lower())
                    while length and len(body) < int(length[1]):
                        body += connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(20)


def answer_of(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CARD = {
    "name": "m",
    "engine": "e",
    "backbone": None,
    "resolution": 1,
    "passes": 1,
    "max_batch": 1,
    "hand": {"name": "h", "sha256": "", "licence": ""},
    "licences": {},
    "version": "1",
}


def test_a_busy_service_is_asked_again_when_it_says_so():
    busy = answer_of("429 Too Many Requests", b"{}", "Retry-After: 0", "Connection: close")
    good = answer_of("200 OK", json.dumps(CARD).encode(), "Connection: close")
    with answering(busy, busy, good) as url, Client(url) as client:
        assert client.model().name == "m"
    with answering(busy) as url, Client(url, patience=-1) as client, pytest.raises(ServiceError) as refused:
        client.model()
    assert refused.value.status == 429


def test_a_connection_that_was_closed_meanwhile_is_made_anew():
    good = answer_of("200 OK", json.dumps(CARD).encode())  # says nothing of closing, and closes
    with answering(good, good) as url, Client(url) as client:
        assert client.model() == client.model()


def test_an_answer_that_is_cut_off_is_a_refusal_and_leaves_what_was_there(tmp_path):
    """IncompleteRead escaped; half a file took its name, over a whole one of before, and then it was said."""
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nglTF"
    for ask in (Client.model, Client.topology, lambda client: client.hands(b"photo"), lambda client: client.job("1")):
        with answering(cut) as url, Client(url) as client, pytest.raises(ServiceError, match="cut off") as refused:
            ask(client)
        assert refused.value.reason == "cut_off"
    file = {"name": "hand.glb", "media_type": "model/gltf-binary", "bytes": 500, "url": "/v1/videos/1/hand.glb"}
    known = {"created": 0, "expires": None, "frames_done": 1, "frames": 1, "files": [file]}
    job = Job(format="handmesh.job", version=1, id="1", status="done", **known)
    (tmp_path / "hand.glb").write_bytes(b"whole")
    for answer in (cut, answer_of("200 OK", b"glTF", "Connection: close")):
        with answering(answer) as url, Client(url) as client, pytest.raises(ServiceError, match="cut off"):
            client.download(job, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["hand.glb"]
        assert (tmp_path / "hand.glb").read_bytes() == b"whole"


@pytest.mark.parametrize(
    "box",
    [
        (40.000125, 30, 210, 200),
        [40.000125, 30, 210, 200],
        [[40.000125, 30, 210, 200]],
        ((40.000125, 30, 210, 200),),
        np.array([40.000125, 30, 210, 200]),
        np.float32([[40.000125, 30, 210, 200]]),
        "40.000125,30,210,200",
    ],
    ids=["tuple", "list", "list in list", "tuple in tuple", "array", "rows", "text"],
)
def test_a_box_may_come_in_any_form(box, client):
    """A list of four was sent as four boxes, an array as what numpy prints of it, and digits after the sixth not."""
    (hand,) = client.hands(photo(), box=box, hand=("right",)).hands
    assert hand.source == "given box"
    assert hand.array("crop_center_px") == pytest.approx([125.0000625, 115], abs=1e-5)


def test_boxes_far_from_one_another_in_size_are_written_out(client):
    """1e-05 and 1.23457e+06 are numbers of Python's, not of the service's."""
    (hand,) = client.hands(photo(), box=(1e-5, 30, 210, 200)).hands
    assert hand.array("crop_center_px")[0] == pytest.approx(105, abs=1e-4)
    with pytest.raises(ServiceError, match="outside"):
        client.hands(photo(), box=(1234567.5, 30, 1234570, 200))


def test_a_batch_that_is_cut_off_is_no_whole_one():
    line = json.dumps({"index": 0, "name": "0", "status": 415, "problem": None}).encode() + b"\n"
    whole = answer_of("200 OK", line, "Connection: close")  # its last line is missing
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n50\r\n{" % (len(line), line)
    for answer in (whole, cut):
        with answering(answer) as url, Client(url) as client:
            lines = client.batch([b"photo"])
            assert next(lines).status == 415
            with pytest.raises(ServiceError, match="cut off"):
                next(lines)


def test_a_batch_comes_back_under_its_own_names(client, tmp_path):
    (tmp_path / ".hidden.jpg").write_bytes(photo())
    (tmp_path / "b.txt").write_bytes(b"no photo")
    photos = [tmp_path / ".hidden.jpg", tmp_path / "b.txt", photo(), read_image(photo())]
    lines = {line.index: line for line in client.batch(photos)}
    assert [(lines[index].name, lines[index].status) for index in range(4)] == [
        (".hidden.jpg", 200),
        ("b.txt", 415),
        ("2", 200),
        ("3", 200),
    ]
    assert lines[2].answer.hands[0].array("joints").shape == (21, 3)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/it.jpg", photo())
    assert [line.name for line in client.batch(tmp_path / "photos.zip", hand="left")] == ["in/it.jpg"]


def test_a_clip_is_posted_waited_for_and_fetched(client, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    told = []
    job = client.wait(client.post_video(tmp_path / "clip.mp4", bvh=True), progress=told.append)
    assert (job.status, job.frames, told[-1]) == ("done", 2, job)
    (path,) = client.download(job, tmp_path / "results")
    assert path == tmp_path / "results" / "hand.glb"
    assert path.read_bytes() == b"glTF" * 1000
    client.delete(job)
    with pytest.raises(ServiceError) as refused:
        client.job(job.id)
    assert refused.value.status == 404
    with pytest.raises(ServiceError, match="as asked"):
        client.wait(client.post_video(tmp_path / "clip.mp4", hand="left"))


def test_a_stream_follows_the_hand():
    sample = Path(handmesh.__file__).parent / "assets" / "samples" / "left_gun.jpg"
    image = read_image(sample)
    with running(settings(token=TOKEN), open_engine()) as server, Client(server.url, token=TOKEN) as client:
        (known,) = client.hands(sample).hands
        with client.stream(hand="left", vertices="float32") as stream:
            seen = stream(image)
            assert (seen.number, seen.size) == (0, (image.shape[1], image.shape[0]))
            (hand,) = seen.hands
            assert (str(hand.handedness), hand.handedness_source, hand.handedness_score) == ("left", "given", 1)
            size = np.ptp(known.array("keypoints_px"), axis=0).max()
            np.testing.assert_allclose(hand.keypoints, known.array("keypoints_px"), atol=0.1 * size)
            drawn = hand.crop_center + hand.crop_size / 2 * hand.camera_scale * (
                hand.joints[:, :2] + hand.camera_translation
            )
            np.testing.assert_allclose(drawn, hand.keypoints, atol=0.01)
            assert hand.vertices.shape == (778, 3)
            np.testing.assert_allclose(hand.joint_scores, known.array("joint_scores"), atol=0.1)
            with pytest.raises(ServiceError, match="image"):
                stream(b"no photo")
            stream.send(sample.read_bytes())
            assert stream.receive().number == 2
        with pytest.raises(ServiceError, match=r"lost|closed") as refused:
            stream(image)
        assert refused.value.status == 0
        with Client(server.url, token="wrong") as stranger, pytest.raises(ServiceError) as refused:
            stranger.stream()
        assert refused.value.status == 401
        with client.stream(hand="both") as stream, pytest.raises(ServiceError, match="hand"):
            stream(image)


@pytest.mark.parametrize("answer", [b"", b"HMF2", bytes(28), b"HMF2" + bytes(12) + b"\x01\x00\x02\x01" + bytes(8)])
def test_what_is_no_answer_of_a_stream_is_said(answer):
    with pytest.raises(DataError, match="no answer of a stream"):
        decode_frame(answer)


@contextmanager
def streaming(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A service whose streams are `handler`'s."""
    with serve(handler, "127.0.0.1", 0, subprotocols=["handmesh.v1"]) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.socket.getsockname()[1]}"
        one.shutdown()
        thread.join(20)


def test_a_stream_that_does_not_begin_is_closed():
    """Its connection stayed open; and one that ended before it was said what is wanted was an error of websockets'."""
    ended: Queue[str] = Queue()
    closed = threading.Event()

    def silent(connection: ServerConnection) -> None:
        try:
            connection.recv(timeout=20)
        except Exception as error:
            ended.put(type(error).__name__)

    def busy(connection: ServerConnection) -> None:
        connection.send('{"type": "ready"}')
        connection.close(1013, "busy")
        closed.set()

    class LateBox:
        def __array__(self, *_, **__):
            closed.wait(20)
            return np.zeros(4)

    with streaming(silent) as url, pytest.raises(ServiceError, match="did not answer"):
        Client(url, timeout=0.5).stream()
    assert ended.get(timeout=20) == "ConnectionClosedOK"
    with streaming(busy) as url, pytest.raises(ServiceError, match="busy"):
        Client(url).stream(box=LateBox())


def test_a_refusal_without_end_is_not_read_to_its_end():
    """A page of a proxy, say: the first 64 KB were looked at, and all of it was read."""
    sent = 0
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            nonlocal sent
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 999999999\r\n\r\n")
                while sent < 2**28:
                    sent += connection.send(bytes(2**20))

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServiceError, match="500"):
            client.model()
        thread.join(20)
    assert sent < 2**27


def test_an_engine_that_is_slow_is_waited_for():
    with (
        running(settings(), DotEngine(delay=0.3)) as server,
        Client(server.url, timeout=0.2) as impatient,
        pytest.raises(ServiceError, match="timed out"),
    ):
        impatient.hands(photo())
