"""The HTTP interface, spoken to through a socket: every kind of question and answer, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import html.parser
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml
from handmesh_server import service as service_module
from handmesh_server.answers import MEDIA_TYPES, negotiate
from handmesh_server.app import create_app
from handmesh_server.errors import NotAcceptable
from handmesh_server.schemas import Hand, HandsAnswer, ModelCard, Problem, Topology
from handmesh_server.server import make_server
from handmesh_server.settings import Settings
from marker_hands import MarkerEngine, draw, hand_at
from PIL import Image
from pygltflib import GLTF2
from server_harness import DOT, QUICK_JOBS, SIZE, DotEngine, dot_image, photo, running, settings, wait_until

from handmesh.detect import Detection
from handmesh.errors import CheckpointError
from handmesh.geometry.crop import CropTransform
from handmesh.hand import JOINT_NAMES, builtin_hand
from handmesh.predict import Predictor

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server():
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def closed():
    """A server that wants a token."""
    with running(settings(token=TOKEN, cors_origins=("https://page.example",))) as one:
        yield one


def post(server, content=None, query="", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/v1/hands{query}", content=photo() if content is None else content, headers=names)


def wrist(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(response.json()["hands"][0]["keypoints_px"][0])


# Questions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_wrist_is_on_the_dot_that_was_drawn(server, format, orientation):
    """Whatever the file's format and however the camera was held: pixels are those of the upright photo."""
    response = post(server, photo(format, orientation))
    np.testing.assert_allclose(wrist(response), DOT, atol=0.7)
    image = response.json()["image"]
    assert image == {"width": SIZE[0], "height": SIZE[1], "format": format, "orientation": orientation}


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_phone_photo_is_decoded_no_finer_than_its_crops_need(server, orientation, monkeypatch):
    """At an eighth for the whole photo, and never in full; its pixels are those of the whole photo all the same."""
    decoded = []
    decoding = server.service._decoding

    def counted(admission, decode_bytes, *rest):
        decoded.append(decode_bytes / service_module.DECODE_BYTES)
        return decoding(admission, decode_bytes, *rest)

    monkeypatch.setattr(server.service, "_decoding", counted)
    large = np.repeat(np.repeat(dot_image(), 10, axis=0), 10, axis=1)
    response = post(server, photo("JPEG", orientation, large))
    np.testing.assert_allclose(wrist(response), 10 * np.array(DOT) + 4.5, atol=8)
    image = response.json()["image"]
    assert (image["width"], image["height"], image["orientation"]) == (10 * SIZE[0], 10 * SIZE[1], orientation)
    assert sum(decoded) < 100 * SIZE[0] * SIZE[1] / 2
    control = server.service.control
    wait_until(lambda: not control.photos.used and not control.uploads.used)  # given back once the answer is sent


def test_all_answers_are_of_the_same_pixels(server, monkeypatch):
    """For a picture a large JPEG was decoded in full, for numbers as its crops need: some had another hand each."""
    seen = []

    def watched(predictor, photo, query):
        seen.append(photo.warp(CropTransform.whole_image(*photo.size), 64))
        return predicted(predictor, photo, query)

    predicted = service_module._predict
    monkeypatch.setattr(service_module, "_predict", watched)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1600, 3), np.uint8)
    for media_type in ("application/json", "image/png", "model/gltf-binary"):
        assert post(server, photo("JPEG", 1, noise), accept=media_type).status_code == 200
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], seen[0])
    picture = post(server, photo("JPEG", 1, noise), accept="image/png").content
    assert Image.open(io.BytesIO(picture)).size == (1600, 1500), "drawn on the photograph in full"


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "text/html", None],
)
def test_what_the_bytes_are_is_decided_by_the_bytes(server, content_type):
    """curl --data-binary calls everything a form."""
    headers = {"content_type": content_type} if content_type else {}
    np.testing.assert_allclose(wrist(post(server, **headers)), DOT, atol=0.7)


IMAGE = ("image", ("../../../etc/passwd\0.jpg", photo(), "text/x-shellscript"))


def form(*fields: tuple[str, str]) -> list:
    return [*((name, (None, value)) for name, value in fields), IMAGE]


def test_a_form_with_a_file(server):
    """The file's name is not used, wherever it would lead."""
    np.testing.assert_allclose(wrist(server.client.post("/v1/hands", files=[IMAGE])), DOT, atol=0.7)


@pytest.mark.parametrize("in_query", [(), ("hand",), ("hand", "box", "focal")])
def test_fields_beside_the_photo_are_taken(server, in_query):
    """`-F box=... -F hand=left -F focal=900` was answered 200, with another hand, side and focal length."""
    said = [("box", "100,40,200,140"), ("hand", "left"), ("focal", "900"), ("box", "120,60,180,120")]
    expected = server.client.post("/v1/hands", params=said, content=photo()).json()["hands"]
    assert [hand["handedness"] for hand in expected] == ["left", "left"]
    params = [item for item in said if item[0] in in_query]
    fields = [item for item in said if item[0] not in in_query]
    assert server.client.post("/v1/hands", params=params, files=form(*fields)).json()["hands"] == expected


@pytest.mark.parametrize(
    ("query", "files", "word"),
    [
        ("", form(("boxes", "1,2,3,4")), "'boxes'"),
        ("", form(("box", "1,2,3")), "box"),
        ("", form(("hand", "both")), "hand"),
        ("", form(("focal", "900"), ("focal", "900")), "focal is given twice"),
        ("?focal=900", form(("focal", "900")), "focal is given twice"),
        ("?focal=900", form(("fov", "60")), "two ways"),
        ("?box=40,30,210,200", form(("max_hands", "1")), "give one of them"),
        ("", form(("box", "40,30,210,200"), ("min_score", "0.5")), "give one of them"),
        ("?hand=left&hand=right", form(("box", "100,40,200,140")), "once for all"),
        ("", form(("focal", "9" * 300)), "no text of at most 256 bytes"),
        ("", [IMAGE, IMAGE], "second"),
    ],
)
def test_forms_that_cannot_be_right(server, query, files, word):
    response = server.client.post(f"/v1/hands{query}", files=files)
    assert response.status_code == 422
    assert word in problem(response).detail


def test_hands_that_only_the_form_has_need_room_too():
    with running(settings(queue_size=2)) as server:
        boxes = [("box", "100,40,200,140")] * 5
        assert len(server.client.post("/v1/hands", files=form(*boxes)).json()["hands"]) == 5
        assert server.service.control.in_flight == 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_boxes_and_sides(server, side):
    """One hand per box, each looked for around its own, on its own side of the mirror."""
    response = server.client.post(
        "/v1/hands", params={"box": ["100,40,200,140", "120.5,60,180,120"], "hand": side}, content=photo()
    )
    hands = response.json()["hands"]
    assert [hand["handedness"] for hand in hands] == [side, side]
    assert [hand["source"] for hand in hands] == ["given box", "given box"]
    for hand in hands:
        np.testing.assert_allclose(hand["keypoints_px"][0], DOT, atol=0.7)


def test_each_box_may_have_its_own_side(server):
    query = {"box": ["100,40,200,140", "120,60,180,120"], "hand": ["left", "auto"]}
    hands = server.client.post("/v1/hands", params=query, content=photo()).json()["hands"]
    assert [(hand["handedness"], hand["handedness_source"]) for hand in hands] == [
        ("left", "given"),
        ("right", "assumed"),
    ]


@pytest.mark.parametrize(("kept", "sources"), [([1], ["given"]), ([1, 0], ["given", "assumed"]), ([2], ["assumed"])])
def test_a_hand_keeps_its_own_side_when_others_are_not_found(kept, sources):
    """Of three boxes one or two give a hand, in any order. Sides were once paired by place in the list."""

    class Choosy(Predictor):
        def __call__(self, image, **asked):
            hands = super().__call__(image, **asked)
            return [hands[index] for index in kept] if len(hands) == 3 else hands

    query = {"box": ["100,40,200,140", "120,60,180,110", "20,20,90,90"], "hand": ["auto", "left", "auto"]}
    with running(predictor=Choosy(DotEngine())) as server:
        hands = server.client.post("/v1/hands", params=query, content=photo()).json()["hands"]
    assert [hand["handedness_source"] for hand in hands] == sources
    assert [hand["handedness"] for hand in hands] == ["left" if index == 1 else "right" for index in kept]


def test_one_side_for_all_is_of_all_the_hands_that_are_found():
    """A detector may find two where one was asked for."""

    class Generous(Predictor):
        def __call__(self, image, **asked):
            return super().__call__(image, **asked) * 2

    with running(predictor=Generous(DotEngine())) as server:
        hands = server.client.post("/v1/hands", params={"hand": "left"}, content=photo()).json()["hands"]
    assert [hand["handedness_source"] for hand in hands] == ["given", "given"]


def test_boxes_are_in_the_upright_photo(server):
    """A box beside the dot in the stored image of a turned photo, and around it in the upright one."""
    np.testing.assert_allclose(wrist(post(server, photo("PNG", 6), "?box=120,60,180,120")), DOT, atol=0.7)


@pytest.mark.parametrize(("query", "source"), [("?focal=500", "given"), ("?fov=60", "field of view"), ("", "default")])
def test_the_camera_both_ways(server, query, source):
    """The weak-perspective camera draws the keypoints exactly; the pinhole nearly, as it sees depth."""
    hand = post(server, photo("PNG"), query).json()["hands"][0]
    joints = np.asarray(hand["joints"])
    ndc = hand["camera_scale_ndc_per_m"] * (joints[:, :2] + hand["camera_translation_m"])
    drawn = hand["crop_center_px"] + hand["crop_size_px"] / 2 * ndc
    np.testing.assert_allclose(drawn, hand["keypoints_px"], atol=0.02)
    assert hand["intrinsics_source"] == source
    K = np.asarray(hand["intrinsics_px"])
    if source == "given":
        assert K[0, 0] == K[1, 1] == 500
    points = joints @ np.asarray(hand["cam_from_hand_axes"]).T + hand["translation"]
    seen = points @ K.T
    extent = np.ptp(np.asarray(hand["keypoints_px"]), axis=0).max()
    assert np.abs(seen[:, :2] / seen[:, 2:] - hand["keypoints_px"]).max() < 0.25 * extent


# Answers


def test_json_is_what_the_schema_says(server):
    answer = HandsAnswer.model_validate_json(post(server).content, strict=False)
    assert answer.request_id
    assert len(answer.hands) == 1


def test_base64_is_the_same_in_less(server):
    plain, packed = post(server, photo("PNG")), post(server, photo("PNG"), "?encoding=base64")
    assert len(packed.content) < 0.7 * len(plain.content)
    HandsAnswer.model_validate_json(packed.content)
    one, other = plain.json()["hands"][0], packed.json()["hands"][0]
    for name in ("vertices", "joints", "pose", "betas", "keypoints_px"):
        packed_array = other[name]
        array = np.frombuffer(base64.b64decode(packed_array["base64"]), "<f4").reshape(packed_array["shape"])
        np.testing.assert_allclose(array, one[name], atol=0.005 if name == "keypoints_px" else 1e-6)
    assert {name for name in one if one[name] != other[name]} <= set(Hand.model_fields)


def test_glb_holds_the_mesh(server):
    response = post(server, accept="model/gltf-binary")
    assert response.headers["content-type"] == "model/gltf-binary"
    scene = GLTF2.load_from_bytes(response.content)
    (mesh,) = scene.meshes
    assert scene.accessors[mesh.primitives[0].attributes.POSITION].count == 778


def test_obj_holds_the_mesh(server):
    response = post(server, accept="model/obj")
    assert response.headers["content-type"] == "model/obj"
    mesh = trimesh.load_mesh(io.BytesIO(response.content), "obj", process=False)
    assert (mesh.vertices.shape, mesh.faces.shape) == ((778, 3), (1538, 3))


def test_npz_holds_the_arrays(server):
    response = post(server, photo("PNG"), accept="application/x-npz")
    arrays = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert arrays["vertices"].shape == (1, 778, 3)
    np.testing.assert_allclose(arrays["keypoints_px"][0, 0], DOT, atol=0.7)


@pytest.mark.parametrize(("accept", "format"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_overlay_is_the_upright_photo_with_a_hand_on_it(server, accept, format, orientation):
    response = post(server, photo("PNG", orientation), accept=accept)
    assert response.headers["content-type"] == accept
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size) == (format, SIZE)
    changed = np.abs(np.asarray(picture.convert("RGB")).astype(int) - dot_image()).max(axis=-1) > 40
    assert 0.02 < changed.mean() < 0.8
    assert not changed[:4].any(), "the corner of the photo, where no hand is, was changed"


def test_no_hand_is_an_answer():
    """A detector may find none; then lists, scenes and arrays are empty and the picture is the photo."""

    class Nobody(Predictor):
        def __call__(self, image, **_):
            return []

    with running(predictor=Nobody(DotEngine())) as server:
        assert post(server).json()["hands"] == []
        assert np.load(io.BytesIO(post(server, accept="application/x-npz").content))["vertices"].shape == (0, 778, 3)
        assert GLTF2.load_from_bytes(post(server, accept="model/gltf-binary").content).meshes == []
        picture = Image.open(io.BytesIO(post(server, photo("PNG"), accept="image/png").content))
        np.testing.assert_array_equal(np.asarray(picture), dot_image())


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("image/*", "image/png"),
        ("image/jpeg;q=0.9, image/png;q=0.5", "image/jpeg"),
        ("application/json;q=0.2, model/gltf-binary", "model/gltf-binary"),
        ("*/*, application/json;q=0", "model/gltf-binary"),
        ("IMAGE/PNG", "image/png"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("image/png;q=nonsense", None),
        (",;=/", None),
    ],
)
def test_negotiation(accept, wanted):
    if wanted is None:
        with pytest.raises(NotAcceptable, match="image/png"):
            negotiate(accept)
    else:
        assert negotiate(accept) == wanted


def test_json_is_compressed_for_who_asks(server):
    """To less than half, and nothing else is."""
    for path, content in (("/v1/hands", photo("PNG")), ("/v1/topology", None)):
        answers = {}
        for coding in ("gzip", "gzip;q=0", "br, *;q=0.1", "identity"):
            method = "GET" if content is None else "POST"
            request = server.client.build_request(method, path, content=content, headers={"Accept-Encoding": coding})
            response = server.client.send(request, stream=True)
            raw = b"".join(response.iter_raw())
            assert ("content-encoding" in response.headers) == (coding in ("gzip", "br, *;q=0.1"))
            assert response.headers["vary"] == "Accept, Accept-Encoding"
            packed = "content-encoding" in response.headers
            answers[coding] = (len(raw), json.loads(gzip.decompress(raw) if packed else raw))
        (small, one), (large, other) = answers["gzip"], answers["identity"]
        assert small < 0.5 * large
        assert {**one, "request_id": ""} == {**other, "request_id": ""}
    overlay = post(server, accept="image/png")
    assert "content-encoding" not in overlay.headers


@pytest.mark.parametrize("accept", ["model/gltf-binary", "model/obj"])
def test_meshes_are_compressed_for_who_asks(server, accept):
    """What is unpacked is what comes unpacked."""
    found = {}
    for coding in ("gzip", "identity"):
        headers = {"Accept": accept, "Accept-Encoding": coding}
        request = server.client.build_request("POST", "/v1/hands", content=photo(), headers=headers)
        response = server.client.send(request, stream=True)
        found[coding] = b"".join(response.iter_raw())
        assert response.headers.get("content-encoding", "identity") == coding
    assert len(found["gzip"]) < 0.8 * len(found["identity"])
    assert gzip.decompress(found["gzip"]) == found["identity"]


@pytest.mark.parametrize("path", ["/", "/docs", "/livez", "/v1/model", "/v1/topology", "/static/page.json", "/v1/no"])
def test_head_is_get_without_the_body(server, path):
    got, head = server.client.get(path), server.client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["content-length"] == got.headers["content-length"]
    assert server.client.head("/v1/hands").status_code == 405


def test_a_server_for_this_machine_answers_to_its_own_names():
    """A page whose name was made to point to 127.0.0.1 (DNS rebinding) is of the server's own origin to a browser."""
    own, other = ("localhost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:8000", "page.localhost"), "evil.example:8000"
    with running() as server:
        assert [server.client.get("/v1/model", headers={"Host": name}).status_code for name in own] == [200] * len(own)
        refused = server.client.get("/v1/model", headers={"Host": other})
        assert problem(refused).reason == "forbidden_host"
        assert "--insecure" in refused.json()["detail"]
    for changes in ({"insecure": True}, {"token": "a" * 16}):
        with running(settings(**changes)) as server:
            assert server.client.get("/livez", headers={"Host": other}).status_code == 200


def test_it_is_announced_when_it_is_ready():
    """Once it was said that it serves while the model was being loaded."""
    engine = DotEngine(delay=0.1)
    app = create_app(settings(), Predictor(engine))
    states = []
    server = make_server(settings(), app, lambda _: states.append(app.state.service.state))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: states)
    finally:
        server.should_exit = True
        thread.join(90)
    assert states == ["ready"]


def test_topology_belongs_to_the_vertices(server):
    response = server.client.get("/v1/topology")
    topology = Topology.model_validate_json(response.content)
    assert topology.faces.right == builtin_hand().faces.tolist()
    assert topology.faces.left == builtin_hand().mirrored().faces.tolist()
    assert topology.joint_names == list(JOINT_NAMES)
    again = server.client.get("/v1/topology", headers={"If-None-Match": f'"other", {response.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert server.client.get("/v1/topology", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_model_card(server):
    card = ModelCard.model_validate_json(server.client.get("/v1/model").content)
    assert card.engine == "dot"
    assert card.hand.sha256 == builtin_hand().sha256
    assert card.hand.licence == "Apache-2.0"


# Refusals


def problem(response) -> Problem:
    assert response.headers["content-type"] == "application/problem+json"
    said = Problem.model_validate_json(response.content)
    assert said.status == response.status_code
    assert said.request_id == response.headers["x-request-id"]
    assert said.detail
    return said


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"", 422, "empty"),
        (b"hello", 415, "not an image"),
        (b"GIF89a" + bytes(40), 422, "GIF"),
        (b"%PDF-1.7\n" + b"\xff\xd8\xff", 415, "PDF"),
        (bytes(4) + b"ftypheic" + bytes(40), 415, "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "SVG"),
        (b"\xff\xd8\xff" + bytes(40), 422, "damaged"),
        (b"\x89PNG\r\n\x1a\n", 422, "damaged"),
        (photo("JPEG")[:1500], 422, "truncated"),
        (photo("PNG")[:500], 422, "truncated"),
        (photo("WEBP")[:200], 422, "truncated"),
    ],
)
def test_images_that_are_none(server, content, status, word, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)  # as where handmesh[heic] is not installed
    server.engine.batches.clear()
    response = post(server, content)
    assert response.status_code == status
    assert word in problem(response).detail
    assert server.engine.batches == [], "the model saw something that is no image"


def test_a_photo_with_something_behind_it_is_a_photo(server):
    """A polyglot: nothing of it is ever sent back but pixels."""
    response = post(server, photo() + b"<script>alert(1)</script>", accept="image/jpeg")
    assert response.status_code == 200
    assert b"script" not in response.content


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("box=1,2,3", "box"),
        ("box=5,5,2,9", "empty"),
        ("box=nan,0,1,1", "box"),
        ("box=0,0,1e9,1e9", "box"),
        ("box=0,0,2,2", "smaller"),
        ("box=500,0,600,90", "outside"),
        ("box=-2000,-2000,2000,2000", "larger"),
        ("&".join(["box=0,0,9,9"] * 17), "16"),
        ("hand=both", "hand"),
        ("hand=left&hand=right", "once"),
        ("focal=500&fov=60", "two ways"),
        ("focal=-1", "focal"),
        ("focal=inf", "focal"),
        ("fov=180", "fov"),
        ("encoding=hex", "encoding"),
        ("box=40,30,210,200&search=thorough", "give one of them"),
        ("box=40,30,210,200&max_hands=10", "max_hands is of hands that are found, and box says where they are"),
        ("box=40,30,210,200&min_score=0.5", "min_score is of hands that are found, and box says where they are"),
        ("boxes=1,2,3,4", "boxes"),
    ],
)
def test_queries_that_cannot_be_right(server, query, word):
    response = post(server, query=f"?{query}")
    assert response.status_code == 422
    assert word in problem(response).detail


@pytest.mark.parametrize(
    ("content_type", "body", "word"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--", "boundary"),
        ("multipart/form-data; boundary=x", b"", "end is missing"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\nabc", "end"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--',
            "field",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nno header--x--", "end is missing"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n" * 60 + b"--x--", "40"),
        ("multipart/mixed; boundary=x", b"--x--", "form-data"),
    ],
)
def test_forms_that_are_damaged(server, content_type, body, word):
    response = post(server, body, content_type=content_type)
    assert response.status_code == 422
    assert word in problem(response).detail


def test_what_is_not_there(server):
    assert problem(server.client.get("/v1/hands")).status == 405
    assert problem(server.client.get("/v1/nothing")).status == 404
    assert problem(post(server, accept="text/html")).status == 406


def test_an_engine_that_fails_is_our_fault(server, monkeypatch, caplog):
    """The client learns the request's id and nothing else; the log has the rest, under that id."""

    def broken(_):
        raise RuntimeError("secret path /srv/model")

    monkeypatch.setattr(server.service._engine, "_engine", broken)
    response = post(server)
    assert problem(response).status == 500
    assert "secret" not in response.text
    assert any(getattr(record, "request_id", None) == problem(response).request_id for record in caplog.records)


def test_an_engine_that_answers_nonsense_is_our_fault(server, monkeypatch):
    engine = DotEngine()
    engine.vertices = np.full_like(engine.vertices, np.nan)
    monkeypatch.setattr(server.service._engine, "_engine", engine)
    for accept in ("application/json", "model/gltf-binary"):
        assert problem(post(server, accept=accept)).status == 500


# Who may


def test_a_token_opens_what_it_protects(closed):
    for path in ("/v1/model", "/v1/topology", "/metrics"):
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic abc"},
            {"Authorization": "Bearer"},
        ):
            refused = closed.client.get(path, headers=header)
            assert problem(refused).status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert closed.client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert post(closed).status_code == 401
    assert post(closed, authorization=f"Bearer {TOKEN}").status_code == 200


def test_a_wrong_token_is_refused_before_the_upload(closed):
    """A client that waits for permission to send (Expect: 100-continue) never gets it."""
    with socket.create_connection(closed.address, timeout=60) as connection:
        connection.sendall(
            b"POST /v1/hands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_health_needs_no_token(closed):
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/handmesh/ready", "/v2"):
        assert closed.client.get(path).status_code == 200


def test_only_pages_that_were_named_may_call(server, closed):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.client.options("/v1/hands", headers=asked).headers
    allowed = closed.client.options("/v1/hands", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    other = closed.client.options("/v1/hands", headers=asked | {"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


# What it says about itself


def test_openapi_names_the_token_only_when_there_is_one(server, closed):
    assert "securitySchemes" not in server.client.get("/openapi.json").json().get("components", {})
    document = closed.client.get("/openapi.json").json()
    assert "HTTPBearer" in document["components"]["securitySchemes"]
    assert document["paths"]["/v1/hands"]["post"]["security"]
    assert "security" not in document["paths"]["/livez"]["get"]


def test_openapi_names_every_answer(server):
    operation = server.client.get("/openapi.json").json()["paths"]["/v1/hands"]["post"]
    assert set(operation["responses"]["200"]["content"]) == set(MEDIA_TYPES)
    assert {"413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    names = {one["name"] for one in operation["parameters"]}
    assert names == {"box", "hand", "focal", "fov", "encoding", "min_score", "max_hands", "search"}
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(form) == names | {"image"}, "what a form may say, too"


def test_the_manual_page_fetches_nothing(server):
    page = server.client.get("/docs")
    assert page.status_code == 200

    class Links(html.parser.HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href")]
            assert tag != "script"

    links = Links()
    links.feed(page.text)
    assert links.found == ["openapi.json"]
    assert "/v1/hands" in page.text
    assert f"{server.url}/v1/hands" in page.text, "its own port"
    assert ":8000" not in page.text


def test_metrics_count_what_happened():
    with running() as server:
        for content in (photo(), photo(), b"nonsense"):
            post(server, content)
        text = server.client.get("/metrics").text
    assert 'handmesh_requests_total{method="POST",route="/v1/hands",status="200"} 2.0' in text
    assert 'handmesh_requests_total{method="POST",route="/v1/hands",status="415"} 1.0' in text
    assert 'handmesh_rejected_total{reason="unsupported_image"} 1.0' in text
    for stage in ("read", "decode", "queue", "model", "predict", "encode"):
        assert f'handmesh_stage_seconds_count{{stage="{stage}"}} 2.0' in text
    assert "handmesh_in_flight 0.0" in text
    assert "handmesh_reserved_bytes 0.0" in text
    assert "handmesh_hands_total 2.0" in text


def test_request_ids_come_back(server, caplog):
    """The client's own, or the trace's; but nothing that would forge a line in the log."""
    caplog.set_level("INFO", "handmesh_server.access")
    assert post(server, x_request_id="order-66").headers["x-request-id"] == "order-66"
    # The line is written when the answer is out, in the server's thread; perhaps after that of another test's answer.
    wait_until(lambda: "order-66" in [getattr(record, "request_id", None) for record in caplog.records])
    trace = "0af7651916cd43dd8448eb211c80319c"
    assert post(server, traceparent=f"00-{trace}-b7ad6b7169203331-01").headers["x-request-id"] == trace
    forged = post(server, x_request_id='x" forged').headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", forged)


def test_where_the_time_went(server):
    timing = dict(part.split(";dur=") for part in post(server).headers["server-timing"].split(", "))
    assert set(timing) == {"read", "decode", "queue", "model", "predict", "encode"}
    assert all(float(value) >= 0 for value in timing.values())


def test_an_application_may_start_when_it_is_warm():
    """For who sends requests as soon as it has started, as Ray Serve does."""

    async def state(configuration: Settings, predictor: Predictor | None) -> str:
        app = create_app(configuration, predictor, ready_first=True)
        async with app.router.lifespan_context(app):
            return app.state.service.state

    assert asyncio.run(state(settings(), Predictor(DotEngine(), passes=2))) == "ready"
    with pytest.raises(CheckpointError):
        asyncio.run(state(settings(model="nothing.safetensors"), None))


def test_answers_are_neither_guessed_nor_kept(server):
    headers = post(server).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


# The pages "First server" and "Serve"


def page_blocks(language: str, page: str = "start/first_server.md") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if "127.0.0.1:8000" in block]


@pytest.fixture
def beside_a_photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Path("photo.jpg").write_bytes(photo())


def test_the_page_in_python(server, beside_a_photo):
    (block,) = page_blocks("python")
    namespace: dict[str, object] = {}
    exec(block.replace("http://127.0.0.1:8000", server.url), namespace)
    assert np.shape(namespace["vertices"]) == (778, 3)


def test_the_page_of_the_client(server, beside_a_photo, monkeypatch):
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("a.jpg", photo())
    Path("clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    monkeypatch.setattr(server.app.state.jobs.runner, "_command", QUICK_JOBS)
    (block,) = page_blocks("python", "how_to/serving.md")
    namespace: dict[str, Any] = {"frame": photo()}
    exec(block.replace("http://127.0.0.1:8000", server.url), namespace)
    assert namespace["answer"].hands[0].handedness == "left"
    assert namespace["line"].name == "a.jpg"
    assert Path("results", "hand.glb").is_file()
    assert (namespace["seen"].number, namespace["seen"].size) == (0, SIZE)


def test_the_page_with_curl(server, beside_a_photo):
    lines = [line for block in page_blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.strip().startswith("curl")]
    assert commands
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:8000", server.url), comments=True)
        done = subprocess.run([*words, "--fail", "--silent", "--show-error"], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
    with Image.open("overlay.png") as picture:
        assert picture.size == SIZE


def test_the_examples_of_the_description(server, beside_a_photo):
    description = server.client.get("/openapi.json").json()["info"]["description"]
    commands = [line.strip() for line in description.splitlines() if line.strip().startswith("curl")]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:8000", server.url), comments=True)
        done = subprocess.run([*words, "--fail", "--silent", "--show-error"], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        if "-o" not in words:
            assert json.loads(done.stdout)["hands"]


# The files beside the package


def test_what_deployments_ask_is_answered(server):
    deploy = ROOT / "server" / "deploy"
    (kserve,) = yaml.safe_load_all((deploy / "kserve.yaml").read_text(encoding="utf-8"))
    deployment = next(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text(encoding="utf-8")))
    for pod in (kserve["spec"]["predictor"], deployment["spec"]["template"]["spec"]):
        (container,) = pod["containers"]
        probes = [value["httpGet"]["path"] for name, value in container.items() if name.endswith("Probe")]
        assert len(probes) >= 2
        assert {server.client.get(path).status_code for path in probes} == {200}


def test_hands_are_found_sorted_and_counted():
    """The detector's, each once, the most certain first; a photograph in which it finds none has an empty list."""

    class Finder:
        name, searches = "finder", True

        def __call__(self, image):
            corner = image[10, 10, 0] > 200
            boxes = [] if corner else [((45, 70, 135, 180), 0.8), ((195, 70, 285, 180), 0.95)]
            return [
                Detection(box, None, score, "hand detector", 0.0, None, is_probability=True) for box, score in boxes
            ]

    engine = MarkerEngine(heads=True)
    engine.confidence = 0.9
    pair = draw([hand_at(90, 170, side="right"), hand_at(240, 170, side="left")], size=(320, 240))
    empty = np.full((240, 320, 3), 255, np.uint8)
    with running(settings(), predictor=Predictor(engine, detector=Finder())) as server:
        post = functools.partial(server.client.post, "/v1/hands")
        hands = post(content=photo(image=pair)).json()["hands"]
        assert [hand["handedness"] for hand in hands] == ["left", "right"]
        assert hands[0]["score"] > hands[1]["score"]
        assert {hand["source"] for hand in hands} == {"hand detector"}
        (one,) = server.client.post("/v1/hands?max_hands=1", content=photo(image=pair)).json()["hands"]
        assert one["handedness"] == "left"
        assert post(content=photo(image=empty)).json()["hands"] == []
        for wrong in ("max_hands=0", "max_hands=17", "search=tiles", "min_score=2"):
            assert server.client.post(f"/v1/hands?{wrong}", content=photo(image=pair)).status_code == 422
