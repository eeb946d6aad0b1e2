"""The live stream: frames in, the hand's bytes out, over a real socket; strangers and rubbish are turned away."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_connection

import numpy as np
import pytest
from handmesh_server.sockets import BEARER, PROTOCOL
from handmesh_server.stream import HAND, HEADER, MAGIC, StreamFollower, StreamOptions
from marker_hands import MarkerEngine, draw, hand_at
from server_harness import running, settings, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import handmesh
from handmesh.files.image import encode_image, read_photo
from handmesh.predict import Predictor
from handmesh.runtime.engine import open_engine

TOKEN = "correct-horse-battery-staple"
SHOWN = BEARER + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")


@pytest.fixture(scope="module")
def server():
    with running(settings(token=TOKEN, stream_frame_bytes=200_000, max_streams=2), open_engine()) as one:
        yield one


@pytest.fixture(autouse=True)
def all_streams_are_over(server):
    """A client has closed before the server has noticed, and the next test's would find no place."""
    yield
    wait_until(lambda: b"handmesh_streams 0.0" in server.service.metrics.text())


def photo() -> bytes:
    """Of a left hand."""
    return (Path(handmesh.__file__).parent / "assets" / "samples" / "left_gun.jpg").read_bytes()


@contextmanager
def stream(server, *, shown: str = SHOWN, origin: str | None = None) -> Iterator[ClientConnection]:
    """A connection that has said that it is ready."""
    url = str(server.client.base_url).replace("http", "ws", 1).rstrip("/") + "/v1/stream"
    with connect(url, subprotocols=[PROTOCOL, shown], origin=origin, proxy=None) as socket:
        assert json.loads(socket.recv(timeout=90))["type"] == "ready"
        yield socket


def decoded(answer: bytes) -> tuple[tuple, list[tuple[tuple, np.ndarray, np.ndarray]]]:
    """The header, and of each hand its numbers, keypoints and vertices, as docs/reference/live_stream.md says."""
    header = HEADER.unpack_from(answer)
    count, size, hands = header[4:7]
    at, found = HEADER.size, []
    for _ in range(hands):
        numbers = HAND.unpack_from(answer, at)
        at += HAND.size
        keypoints = np.frombuffer(answer, "<f4", 42, at).reshape(21, 2)
        at += 42 * 4 + 63 * 4 + 21 * 4 * numbers[3]
        vertices = np.frombuffer(answer, f"<f{size}", 3 * count, at).reshape(count, 3)
        at += 3 * count * size
        found.append((numbers, keypoints, vertices))
    assert at == len(answer)
    return header, found


def test_frames_are_answered_with_the_hand_in_them(server):
    """The same hand as the HTTP answer to the same picture, in the first frame, and followed in the next."""
    wanted = server.client.post(
        "/v1/hands", params={"hand": "left"}, content=photo(), headers={"Authorization": f"Bearer {TOKEN}"}
    ).json()["hands"][0]
    with stream(server) as socket:
        socket.send(json.dumps({"hand": "left", "vertices": "float32"}))
        for number in range(3):
            socket.send(photo())
            header, [(numbers, keypoints, vertices)] = decoded(socket.recv(timeout=90))
            assert header[:2] == (MAGIC, number)
            assert numbers[:2] == (1, 0), "a left hand, as given"
            if number == 0:
                np.testing.assert_allclose(keypoints, wanted["keypoints_px"], atol=0.01)
                np.testing.assert_allclose(vertices, wanted["vertices"], atol=1e-5)
            distances = np.linalg.norm(keypoints - wanted["keypoints_px"], axis=-1)
            assert distances.mean() < 0.15 * np.ptp(wanted["keypoints_px"], axis=0).max(), "it is followed"


def test_the_side_is_found_and_kept(server):
    """Half precision, the default, too: a millimetre or two of a hand."""
    with stream(server) as socket:
        socket.send(json.dumps({"smooth": 0}))
        for _ in range(2):
            socket.send(photo())
            _, [(numbers, _, halves)] = decoded(socket.recv(timeout=90))
            assert numbers[:2] == (1, 2), "a left hand, found"
    assert halves.dtype == np.float16
    with stream(server) as socket:
        socket.send(json.dumps({"smooth": 0, "vertices": "float32"}))
        for _ in range(2):
            socket.send(photo())
            _, [(_, _, floats)] = decoded(socket.recv(timeout=90))
    np.testing.assert_allclose(halves, floats, atol=2e-3)


def seen_in(socket, frames):
    """How many hands each frame is answered with."""
    seen = []
    for frame in frames:
        socket.send(frame)
        seen.append(len(decoded(socket.recv(timeout=90))[1]))
    return seen


def test_a_hand_that_is_gone_is_not_drawn_any_more(server):
    """The network draws a hand on a wall, too, but is not sure of it: not one frame shows that hand."""
    wall = np.random.default_rng(0).normal(120, 8, read_photo(photo()).image.shape).clip(0, 255).astype(np.uint8)
    empty = encode_image(wall, "jpeg")
    with stream(server) as socket:
        assert seen_in(socket, [photo()] * 3 + [empty] * 3 + [photo()] * 2) == [1] * 3 + [0] * 3 + [1] * 2


def test_a_hand_that_the_network_doubts_is_lost():
    """Its answer does not change, and is in the right place: its confidence alone says that this is no hand."""
    engine = MarkerEngine(heads=True)
    hand = encode_image(draw([hand_at(160, 170, 48, 0, "left")]), "png")
    with running(settings(), engine) as server, stream(server) as socket:
        assert seen_in(socket, [hand] * 2) == [1, 1]
        engine.confidence = 0.2
        assert seen_in(socket, [hand] * 2) == [0, 0]
        engine.confidence = 0.9
        assert seen_in(socket, [hand] * 2) == [1, 1]


def test_what_is_tracked_is_smoothed_as_asked():
    """A hand that jumps by a tenth of itself: shown at once unsmoothed, else later; by the clock of the frames."""
    moved = {}
    for smooth in (0.0, 2.0):
        follower = StreamFollower()
        follower.options = StreamOptions(smooth=smooth)
        middles = [
            follower(Predictor(MarkerEngine()), read_photo(draw([hand_at(x, 170)])), 5 + index / 30)[0]
            .keypoints_image()
            .mean(axis=0)[0]
            for index, x in enumerate((160, 160, 165))
        ]
        moved[smooth] = middles[2] - middles[1]
    assert moved[0] == pytest.approx(5, abs=0.5)
    assert moved[2] < 0.8 * moved[0]


def test_clocks_that_stand_still_are_no_reason_to_fail():
    follower = StreamFollower()
    for arrived in (3.0, 3.0, 2.0):
        assert len(follower(Predictor(MarkerEngine()), read_photo(draw([hand_at(160, 170)])), arrived)) == 1


STRANGERS = [("nothing", None, 401), (SHOWN, "http://elsewhere.example", 403)]


@pytest.mark.parametrize(("shown", "origin", "status"), STRANGERS)
def test_strangers_get_no_connection(server, shown, origin, status):
    with pytest.raises(InvalidStatus) as refusal, stream(server, shown=shown, origin=origin):
        pass
    assert refusal.value.response.status_code == status


def test_a_frame_that_is_no_picture_is_answered_in_words(server):
    with stream(server) as socket:
        socket.send(b"no picture")
        assert json.loads(socket.recv(timeout=90))["type"] != "ready"
        socket.send(photo())
        assert decoded(socket.recv(timeout=90))[1]


def test_ten_frames_in_a_row_that_are_no_pictures_end_the_stream(server):
    """Nine do not, however often they come between pictures."""
    with stream(server) as socket:
        for _ in range(2):
            for _ in range(9):
                socket.send(b"no picture")
                assert json.loads(socket.recv(timeout=90))["type"] == "error"
            socket.send(photo())
            assert decoded(socket.recv(timeout=90))[1]
        for _ in range(10):
            socket.send(b"no picture")
            assert json.loads(socket.recv(timeout=90))["type"] == "error"
        with pytest.raises(ConnectionClosed, match="10 frames in a row") as end:
            socket.recv(timeout=90)
    assert end.value.rcvd.code == 1008


@pytest.mark.parametrize("text", ["no json", json.dumps({"hand": "both"}), json.dumps({"smooth": 0.01})])
def test_options_that_are_none_end_the_stream_and_says_why(server, text):
    with stream(server) as socket:
        socket.send(text)
        with pytest.raises(ConnectionClosed, match="as JSON") as end:
            socket.recv(timeout=90)
    assert end.value.rcvd.code == 1008


def test_a_count_of_hands_beside_a_box_ends_the_stream_and_says_why(server):
    """It was ignored: one hand was followed, from the box on."""
    with stream(server) as socket:
        socket.send(json.dumps({"box": [0, 0, 90, 90], "max_hands": 2}))
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(timeout=90)
    assert end.value.rcvd.reason.endswith("max_hands is of hands that are found, and box gives one")


def test_a_frame_that_is_too_large_ends_the_stream(server):
    with stream(server) as socket:
        socket.send(b"x" * 300_000)
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(timeout=90)
    assert end.value.rcvd.code in (1008, 1009)


def test_no_more_streams_than_allowed(server, monkeypatch):
    monkeypatch.setattr("handmesh_server.sockets._QUIET_SECONDS", 60)
    with stream(server) as first, stream(server) as second:
        for socket in (first, second):
            socket.send(photo())
            socket.recv(timeout=90)
        with pytest.raises(ConnectionClosed) as refusal, stream(server):
            pass
    assert refusal.value.rcvd.code == 1013


def test_a_quiet_stream_makes_room_for_another(server, monkeypatch):
    """Sixteen sockets that never sent a frame once kept every camera out for half a minute."""
    monkeypatch.setattr("handmesh_server.sockets._QUIET_SECONDS", 0.2)
    monkeypatch.setattr("handmesh_server.sockets._LEAVE_SECONDS", 60)
    with stream(server) as quiet, stream(server) as busy:
        time.sleep(0.3)
        busy.send(photo())
        busy.recv(timeout=90)
        with stream(server) as third:
            with pytest.raises(ConnectionClosed) as end:
                quiet.recv(timeout=90)
            for socket in (busy, third):
                socket.send(photo())
                assert decoded(socket.recv(timeout=90))[1]
    assert end.value.rcvd.code == 4408


def test_a_box_that_no_hand_can_be_in_is_answered_in_words(server):
    with stream(server) as socket:
        socket.send(json.dumps({"box": [-90000, -90000, 90000, 90000]}))
        socket.send(photo())
        answer = json.loads(socket.recv(timeout=90))
        assert (answer["type"], answer["status"]) == ("error", 422)
        assert "larger than anything of the photo" in answer["detail"]


def test_a_page_whose_name_was_made_to_point_here_gets_no_stream():
    """To its browser, Origin and Host agree."""
    with running(settings()) as one, create_connection(one.address) as socket:
        url = "ws://evil.example/v1/stream"
        with pytest.raises(InvalidStatus) as refusal:
            connect(url, sock=socket, subprotocols=[PROTOCOL], origin="http://evil.example", proxy=None)
    assert refusal.value.response.status_code == 403


def test_no_client_with_a_name_has_all_cameras(tmp_path):
    """Of two clients with names one has at most three of four, and is told so; the other finds a place."""
    tokens = {"app": "a-token-of-the-app", "robot": "a-token-of-the-robot"}
    (tmp_path / "tokens").write_text("".join(f"{name}: {token}\n" for name, token in tokens.items()))
    shown = {name: BEARER + base64.urlsafe_b64encode(one.encode()).decode().rstrip("=") for name, one in tokens.items()}
    with running(settings(token_file=tmp_path / "tokens", max_streams=4)) as server, ExitStack() as held:
        for _ in range(3):
            held.enter_context(stream(server, shown=shown["app"]))
        url = server.url.replace("http", "ws", 1) + "/v1/stream"
        with connect(url, subprotocols=[PROTOCOL, shown["app"]], proxy=None) as refused:
            with pytest.raises(ConnectionClosed) as closed:
                refused.recv(timeout=90)
            assert (closed.value.rcvd.code, closed.value.rcvd.reason[:20]) == (1013, "3 cameras of yours a")
        held.enter_context(stream(server, shown=shown["robot"]))


def test_a_client_that_has_its_part_makes_room_for_itself_alone(tmp_path, monkeypatch):
    """Another's quiet camera was ended for it, in vain; its own quiet ones kept it out."""
    monkeypatch.setattr("handmesh_server.sockets._QUIET_SECONDS", 0.2)
    monkeypatch.setattr("handmesh_server.sockets._LEAVE_SECONDS", 60)
    tokens = {"app": "a-token-of-the-app", "robot": "a-token-of-the-robot"}
    (tmp_path / "tokens").write_text("".join(f"{name}: {token}\n" for name, token in tokens.items()))
    shown = {name: BEARER + base64.urlsafe_b64encode(one.encode()).decode().rstrip("=") for name, one in tokens.items()}
    with running(settings(token_file=tmp_path / "tokens", max_streams=4)) as server, ExitStack() as held:
        quietest = held.enter_context(stream(server, shown=shown["robot"]))
        first, *_ = [held.enter_context(stream(server, shown=shown["app"])) for _ in range(3)]
        time.sleep(0.3)
        fourth = held.enter_context(stream(server, shown=shown["app"]))
        with pytest.raises(ConnectionClosed) as end:
            first.recv(timeout=90)
        assert end.value.rcvd.code == 4408
        for socket in (quietest, fourth):
            socket.send(photo())
            assert decoded(socket.recv(timeout=90))[0][1] == 0, "its first frame"
