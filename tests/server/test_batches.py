"""Many photos in one request: each gets its line, whatever the others are, and hostile archives cost little."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
import threading
import tracemalloc
import zipfile
import zlib

import httpx
import pytest
from handmesh_server.errors import UploadInvalid, UploadTooLarge
from handmesh_server.photos import opened_batch
from handmesh_server.schemas import BatchEnd, BatchLine
from server_harness import DOT, DotEngine, photo, running, settings, talk_to, wait_until


@pytest.fixture(scope="module")
def server():
    with running(settings(max_batch_photos=50, max_body_bytes=200_000, max_upload_bytes=2_000_000)) as started:
        yield started


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


EIGHT = zipped({f"{index}": photo() for index in range(8)})


def lines_of(response: httpx.Response) -> tuple[list[BatchLine], BatchEnd]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *lines, end = response.text.splitlines()
    return [BatchLine.model_validate_json(line) for line in lines], BatchEnd.model_validate_json(end)


def post(server, content: bytes, **options) -> tuple[list[BatchLine], BatchEnd]:
    return lines_of(server.client.post("/v1/batches", content=content, **options))


def opened(content: bytes, content_type: str = "", **limits) -> list[bytes | Exception]:
    """What of a batch can be read: the bytes of each photo, or why not."""
    limits = {"max_photos": 10, "max_photo_bytes": 1000, "max_bytes": 10_000} | limits

    def result(read):
        try:
            return read()
        except (UploadInvalid, UploadTooLarge) as error:
            return error

    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        with opened_batch(file, content_type, **limits) as photos:
            return [result(one.read) for one in photos]


def test_every_photo_of_a_zip_has_its_line(server):
    files = {"a.jpg": photo(), "folder/b.png": photo("PNG"), "notes.txt": b"not a photo", "c.jpg": photo()[:900]}
    lines, end = post(server, zipped(files))
    by_name = {line.name: line for line in lines}
    assert {name: by_name[name].status for name in files} == {
        "a.jpg": 200,
        "folder/b.png": 200,
        "notes.txt": 415,
        "c.jpg": 422,
    }
    assert [by_name[name].index for name in files] == [0, 1, 2, 3]
    assert (end.photos, end.answered) == (4, 2)
    wrist = by_name["folder/b.png"].answer.hands[0].keypoints_px[0]
    assert wrist == pytest.approx(DOT, abs=1.5)
    assert by_name["notes.txt"].problem.reason == "unsupported_image"


def test_a_form_of_many_photos_is_answered_as_a_zip_of_them_is(server):
    photos = [("image", (f"{index}.jpg", photo(), "image/jpeg")) for index in range(3)]
    lines, end = lines_of(server.client.post("/v1/batches", files=photos))
    assert sorted((line.index, line.name, line.status) for line in lines) == [
        (0, "0.jpg", 200),
        (1, "1.jpg", 200),
        (2, "2.jpg", 200),
    ]
    assert end.answered == 3
    from_zip, _ = post(server, zipped({"0.jpg": photo()}))
    same = next(line for line in lines if line.index == 0)
    assert same.answer.hands == from_zip[0].answer.hands


def test_what_is_asked_of_the_batch_is_asked_of_each_photo(server):
    lines, _ = post(server, zipped({"a": photo(), "b": photo()}), params={"hand": "left", "encoding": "base64"})
    for line in lines:
        hand = line.answer.hands[0]
        assert (hand.handedness, hand.handedness_source) == ("left", "given")
        assert hand.vertices.shape == [778, 3]
    refused = server.client.post("/v1/batches?box=1,2,30,40", content=zipped({"a": photo()}))
    assert refused.status_code == 422
    assert "box" in refused.json()["detail"]


class HeldAfter(DotEngine):
    """Answers so many calls, and no more until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.hold_after(10**9)

    def hold_after(self, calls: int) -> None:
        self.batches.clear()
        self.left, self.holds, self.let = threading.Semaphore(calls), threading.Event(), threading.Event()

    def __call__(self, crops):
        if not self.left.acquire(blocking=False):
            self.holds.set()
            self.let.wait()
        return super().__call__(crops)


def test_lines_come_while_others_are_in_work(monkeypatch):
    """The first line is there while the second photo is in work: also when it is compressed."""
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 1000)
    engine = HeldAfter()
    with running(settings(threads=1), engine) as server, talk_to(server.url) as client:
        for encoding in ("identity", "gzip"):
            engine.hold_after(2)  # the passes of one photo
            with client.stream("POST", "/v1/batches", content=EIGHT, headers={"Accept-Encoding": encoding}) as answer:
                assert answer.headers.get("content-encoding", "identity") == encoding
                lines = answer.iter_lines()
                assert json.loads(next(lines))["status"] == 200
                assert engine.holds.wait(90)
                assert len(engine.batches) == 2
                engine.let.set()
                assert json.loads(list(lines)[-1]) == {"end": True, "photos": 8, "answered": 8}


def test_a_client_that_leaves_takes_its_photos_with_it(monkeypatch):
    monkeypatch.setattr("handmesh_server.lanes.PATIENCE", 1000)
    engine = HeldAfter()
    with running(settings(max_batches=1, threads=1), engine) as server, talk_to(server.url) as client:
        engine.hold_after(2)
        with client.stream("POST", "/v1/batches", content=EIGHT) as answer:
            lines = answer.iter_lines()  # which hangs up when nobody keeps it
            next(lines)
            assert engine.holds.wait(90)
        ended = server.service.metrics.requests.labels("POST", "/v1/batches", "200")
        wait_until(lambda: ended._value.get())
        engine.let.set()
        assert client.post("/v1/batches", content=zipped({"a": photo()})).status_code == 200
        assert len(engine.batches) < 16
        wait_until(lambda: not server.service.control.in_flight)


def test_a_batch_waits_where_a_single_photo_is_refused():
    with running(settings(queue_size=1), DotEngine(delay=0.02)) as server:
        lines, end = post(server, zipped({f"{index}": photo() for index in range(5)}))
        assert {line.status for line in lines} == {200}
        assert end.answered == 5


def test_only_so_many_batches_at_a_time():
    with running(settings(max_batches=0)) as server:
        refused = server.client.post("/v1/batches", content=zipped({"a": photo()}))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1


def test_a_batch_has_the_token_to_show():
    with running(settings(token="t" * 24)) as server:
        assert server.client.post("/v1/batches", content=zipped({"a": photo()})).status_code == 401


@pytest.mark.parametrize(
    ("content", "type", "status", "says"),
    [
        (b"", "", 422, "empty"),
        (b"", "multipart/form-data; boundary=b", 422, "empty"),
        (b"just text", "application/zip", 422, "no zip and no form"),
        (photo(), "image/jpeg", 422, "no zip and no form"),
        (zipped({}), "", 422, "no files"),
        (zipped({"a": b"1"})[:-10], "", 422, "truncated"),
        (zipped({"a": b"1"})[:-22] + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 20, 5, 0), "", 422, "cannot be"),
        (zipped({str(index): b"x" for index in range(60)}), "", 413, "50 photos"),
        (b"x" * 2_000_001, "", 413, "2,000,000 bytes"),
        (b"--b\r\n\r\n", "multipart/form-data; boundary=b", 422, "truncated"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "no photos"),
        (
            b'--b\r\nContent-Disposition: form-data; name="hand"\r\n\r\nleft\r\n--b--',
            "multipart/form-data; boundary=b",
            422,
            "no field 'image'",
        ),
        (b"x", "multipart/form-data", 422, "boundary"),
    ],
    # A zip says when it was made, so two processes that collect the tests may have different bytes.
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_what_is_no_batch_is_one_clear_error(server, content, type, status, says):
    refused = server.client.post("/v1/batches", content=content, headers={"Content-Type": type} if type else {})
    assert refused.status_code == status, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert says in refused.json()["detail"]


def test_names_in_a_zip_are_repeated_and_never_used(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = tmp_path.parent / "outside.jpg"
    names = ["../outside.jpg", str(outside), "a" * 4000, "con:\u202e\x01.jpg", "a.jpg\n{}"]
    lines, _ = post(server, zipped({name: photo() for name in names}))
    found = {line.index: line.name for line in lines}
    assert [found[index] for index in range(len(names))] == [name[:255] for name in names]
    assert {line.status for line in lines} == {200}
    assert not outside.exists()
    assert not list(tmp_path.iterdir())
    skipped = {"__MACOSX/._a.jpg": b"x", "b/.DS_Store": b"x", "folder/": b"", ".git/a.jpg": b"x", "./a.jpg": photo()}
    assert [line.name for line in post(server, zipped(skipped))[0]] == ["./a.jpg"]


def test_a_zip_bomb_unpacks_to_its_limits_alone():
    """A gigabyte of zeros in a megabyte; and a file that says that it is small."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    bomb = _raw_zip([(b"a", packed, 10), (b"b", packed, 2**31)])  # lies, both ways
    tracemalloc.start()
    answers = opened(bomb, max_photo_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert [type(one) for one in answers] == [UploadInvalid, UploadTooLarge]  # the first is longer than it said
    many = opened(zipped({str(index): bytes(900) for index in range(10)}), max_bytes=2500)
    assert [isinstance(one, bytes) for one in many] == 3 * [True] + 7 * [False]


def _raw_zip(files: list[tuple[bytes, bytes, int]], **wrong: int) -> bytes:
    """A zip of names, deflated contents and whatever sizes are wanted; APPNOTE.TXT."""
    content, directory = b"", b""
    for name, packed, size in files:
        common = struct.pack(
            "<5H3I2H", 20, wrong.get("flags", 0), wrong.get("method", 8), 0, 0, 0, len(packed), size, len(name), 0
        )
        directory += (
            b"PK\1\2" + b"\x14\0" + common + struct.pack("<3H2I", 0, 0, 0, 0, wrong.get("offset", len(content)))
        )
        directory += name
        content += b"PK\3\4" + common + name + packed
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(files), len(files), len(directory), len(content), 0)
    return content + directory + end


def test_overlapping_files_of_a_zip_are_refused():
    """The bomb without recursion: many directory entries for one file."""
    packed = zlib.compress(bytes(500), wbits=-15)
    answers = opened(_raw_zip([(b"a", packed, 500)] * 5, offset=0), max_bytes=10**9)
    assert sum(isinstance(one, bytes) for one in answers) <= 1


@pytest.mark.parametrize(("wrong", "says"), [({"flags": 1}, "encrypted"), ({"method": 14}, "deflate"), ({}, "damaged")])
def test_a_file_of_a_zip_that_cannot_be_read_fails_alone(wrong, says):
    (error,) = opened(_raw_zip([(b"a", zlib.compress(b"wrong checksum", wbits=-15), 14)], **wrong))
    assert says in str(error)


def test_a_directory_of_millions_is_refused_before_it_is_read():
    names = b"".join(b"PK\1\2" + bytes(42) for _ in range(100_000))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(names), 4, 0)  # says that there is one
    with pytest.raises(UploadTooLarge, match="10 photos"):
        opened(b"PK\3\4" + names + end)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 4, 1)
    with pytest.raises(UploadInvalid, match="zip64"):
        opened(b"PK\3\4" + locator + end)


def test_a_full_disk_is_said_and_ends_nothing_else(server, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("handmesh_server.batches.tempfile.TemporaryFile", full)
        refused = server.client.post("/v1/batches", content=zipped({"a": photo()}))
    assert refused.status_code == 507
    assert "No space left" in refused.json()["detail"]
    assert refused.json()["reason"] == "storage_full"
    assert post(server, zipped({"a": photo()}))[1].answered == 1


def test_the_description_names_what_comes_back(server):
    """It named two kinds of lines that it did not describe, and JSON, which never comes."""
    document = server.client.get("/openapi.json").json()
    answer = document["paths"]["/v1/batches"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {"application/x-ndjson"}
    for kind in (BatchLine, BatchEnd):
        assert kind.__name__ in answer["description"]
        assert set(document["components"]["schemas"][kind.__name__]["properties"]) == set(kind.model_fields)
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document["components"]["schemas"])
