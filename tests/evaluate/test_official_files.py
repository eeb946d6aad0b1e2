"""Prediction files: every number as `float` reads it, and every broken file refused by one message that says where."""

from __future__ import annotations

import io
import json
import random
import zipfile

import numpy as np
import pytest

from handmesh.data.formats import json_arrays
from handmesh.errors import DataError, ExportError
from handmesh.evaluate.official_files import read_points, read_predictions, write_predictions

N, V = 6, 10


@pytest.fixture
def hands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.2, (N, 21, 3)), rng.normal(0, 0.2, (N, V, 3))


def saved(tmp_path, content, name="pred.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lists(hands) -> list:
    return [points.tolist() for points in hands]


def test_numbers_are_read_as_python_reads_them(tmp_path):
    rng = np.random.default_rng(1)
    numbers = np.concatenate(
        [
            rng.normal(0, 0.3, 3006),
            rng.normal(0, 0.3, 900).round(6),
            rng.uniform(-1, 1, 900) * 10.0 ** rng.integers(-4, 6, 900),
            [0.0, -0.0, 1.0, -1.0, 123456789.0, 1e22, 2.0**53, 0.1, 1 / 3],
        ]
    )
    clouds = numbers.reshape(-1, 3, 3)
    for indent in (None, 1):
        read = read_points(saved(tmp_path, json.dumps(clouds.tolist(), indent=indent)))
        assert np.array_equal(read, clouds)
        assert np.array_equal(np.signbit(read), np.signbit(clouds))


def test_very_small_and_large_numbers_are_exact_too(tmp_path):
    numbers = np.random.default_rng(2).normal(size=540) * 10.0 ** np.arange(-30, 30).repeat(9)
    clouds = numbers.reshape(-1, 3, 3)
    np.testing.assert_array_equal(read_points(saved(tmp_path, clouds.tolist())), clouds)


class Endless:
    """A file that begins, and then says the same again and again, as a megabyte of zip can for a gigabyte."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.left, self.again, self.given = start, again, 0

    def read(self, size: int) -> bytes:
        assert self.given < 4 * json_arrays.PIECE_BYTES, "it should have been refused by now"
        text = self.left + self.again * (size // len(self.again) + 1)
        self.left, self.given = text[size:], self.given + size
        return text[:size]


@pytest.mark.parametrize("again", [b" ", b"\n\t"])
@pytest.mark.parametrize("start", [b"", b"[[[[1, 2, 3], ", b"[[[[1, 2", b"[[[[1, 2, 3]]]]"])
def test_blanks_without_end_are_refused_at_once(start, again):
    """A gigabyte of them in 1 MB of zip was read to its end before it was refused."""
    with pytest.raises(DataError, match=r"pred\.zip has [0-9,]+ bytes with hardly a number in them"):
        list(json_arrays.iterate_json_lists(Endless(start, again), 4, "pred.zip", "[xyz, verts]"))


@pytest.mark.parametrize("start", [b"[[[", b"[[", b"["])
def test_so_are_lists_of_nothing(start):
    with pytest.raises(DataError, match="hardly a number"):
        list(json_arrays.iterate_json_lists(Endless(start, b"[],"), 4, "pred.zip", "[xyz, verts]"))


def test_more_numbers_than_the_frames_can_have_are_refused_before_all_are_read(tmp_path, monkeypatch):
    """The zeros in 1.5 MB of zip took half a minute and 1.7 GB."""
    read = []
    monkeypatch.setattr(json_arrays, "PIECE_BYTES", 1 << 16)
    path = saved(tmp_path, "[[[" + "[0,0,0]," * 300_000 + "[0,0,0]]],[]]")
    with pytest.raises(DataError, match=r"holds more than 75,000 numbers: too many for the hands of 2 frames"):
        read_predictions(path, 2, lambda done, total: read.append(done))
    assert read[-1] < 400_000


def test_wide_indentation_is_read(tmp_path):
    clouds = np.random.default_rng(3).normal(size=(400, 21, 3))
    text = json.dumps(clouds.tolist(), indent=40)
    assert len(text) > json_arrays.PIECE_BYTES
    assert np.array_equal(read_points(saved(tmp_path, text)), clouds)


def test_a_byte_order_mark_is_no_content(tmp_path, hands):
    """Editors and PowerShell on Windows begin a UTF-8 file with it; such predictions were refused as no JSON."""
    text = "\ufeff" + json.dumps(lists(hands))
    (tmp_path / "pred.json").write_text(text, encoding="utf-8")
    (tmp_path / "pred.zip").write_bytes(zipped(pred_json=text))
    for name in ("pred.json", "pred.zip"):
        np.testing.assert_array_equal(read_predictions(tmp_path / name, N).vertices, hands[1])


def test_other_ways_to_write_numbers(tmp_path):
    strange = "0.0000000000000000000000012, 1.00000000000000000000000001, 1234567890123456789012"
    text = f"[[[1, -2, 3e2], [4.5E-1, 6e+0, 1E0], [{strange}]]]"
    assert np.array_equal(read_points(saved(tmp_path, text)), np.array(json.loads(text), float))


def test_where_the_pieces_end_does_not_matter(tmp_path, hands, monkeypatch):
    """Pieces of 4 MB are shrunk to a few bytes, so that every kind of place is cut."""
    path = saved(tmp_path, json.dumps(lists(hands), indent=2))
    for size in (64, 101, 997):
        monkeypatch.setattr(json_arrays, "PIECE_BYTES", size)
        read = read_predictions(path, N)
        assert np.array_equal(read.joints, hands[0])
        assert np.array_equal(read.vertices, hands[1])


@pytest.mark.parametrize("name", ["pred.json", "pred.zip"])
def test_what_is_written_is_read_back_to_a_micrometre(tmp_path, hands, name):
    path = tmp_path / name
    write_predictions(path, *hands)
    for read, written in zip(read_predictions(path, N), hands, strict=True):
        np.testing.assert_allclose(read, written, atol=0.5001e-6)


def test_the_official_tool_can_read_what_is_written(tmp_path, hands):
    """It calls json.load on the file and takes the first list for joints."""
    write_predictions(tmp_path / "pred.zip", *hands)
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, verts = json.loads(archive.read("pred.json"))
    assert np.shape(xyz) == (N, 21, 3)
    assert np.shape(verts) == (N, V, 3)


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_json", ".json"), text)
    return buffer.getvalue()


def test_the_file_in_a_zip_is_chosen_as_the_official_tool_does(tmp_path, hands):
    text = json.dumps(lists(hands))
    path = tmp_path / "x.zip"
    for content in (
        zipped(results_json=text),
        zipped(sub__pred_json=text, other_json="[]"),
        zipped(readme="x", pred_json=text),
    ):
        path.write_bytes(content)
        assert len(read_predictions(path, N).joints) == N
    path.write_bytes(zipped(a_json=text, b_json=text))
    with pytest.raises(DataError, match=r"2 candidates.*a\.json, b\.json"):
        read_predictions(path, N)


def test_truncated_files_are_refused(tmp_path, hands):
    write_predictions(tmp_path / "pred.zip", *hands)
    whole = (tmp_path / "pred.zip").read_bytes()
    text = json.dumps(lists(hands))
    for cut in (len(whole) // 2, len(whole) - 30, 10):
        (tmp_path / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="no whole zip file"):
            read_predictions(tmp_path / "cut.zip")
    damaged = bytearray(whole)
    damaged[200:260] = b"\0" * 60
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read_predictions(tmp_path / "damaged.zip")
    for cut in (len(text) // 2, len(text) - 1, 1, 0):
        with pytest.raises(DataError, match=r"ends in the middle, after \d+ whole frames|is empty"):
            read_predictions(saved(tmp_path, text[:cut]))


def with_frame(points: np.ndarray, frame: int, value) -> list:
    changed = points.tolist()
    changed[frame] = value
    return changed


def refusals(joints: np.ndarray, vertices: np.ndarray) -> dict[str, tuple[object, str]]:
    j, v = joints.tolist(), vertices.tolist()
    nan = joints.copy()
    nan[3, 5, 1] = np.nan
    infinite = vertices.copy()
    infinite[4, 0, 0] = -np.inf
    return {
        "half of the frames": (
            [j[: N // 2], v[: N // 2]],
            r"xyz: 3 frames, wanted 6.*exactly 1/2.*each of 2 processes",
        ),
        "one frame too few": ([j[:-1], v[:-1]], r"xyz: 5 frames, wanted 6\. Give one entry"),
        "fewer meshes": ([j, v[:-1]], "verts: 5 frames, wanted 6"),
        "swapped": (
            [with_frame(vertices, 0, j[0] + v[0]), j],
            "xyz and verts are swapped",
        ),
        "a NaN": ([nan.tolist(), v], "xyz: frame 3 holds values that are not finite"),
        "an infinity": ([j, infinite.tolist()], "verts: frame 4 holds values that are not finite"),
        "20 joints": ([joints[:, :20].tolist(), v], "20 joints per frame, wanted 21.*wrist"),
        "16 joints": ([joints[:, :16].tolist(), v], "16 joints per frame, wanted 21.*744"),
        "a dict": ({"xyz": j, "verts": v}, "holds a dict where lists are wanted"),
        "dicts inside": ([[{"xyz": j[0]}], v], r"holds a dict .*\(frame 0\)"),
        "only joints": (j, "nested 3 deep.*wanted 4"),
        "one list too deep": ([[[[j[0]]]], v], "nested 5 deep"),
        "three lists": ([j, v, v], "a list of 3, wanted"),
        "a frame with other points": (
            [with_frame(joints, 2, j[2][:-1]), v],
            "xyz: frame 2 has 20 points and frame 0 has 21",
        ),
        "two coordinates": (
            [with_frame(joints, 1, [p[:2] for p in j[1]]), v],
            "point 0 of frame 1 has 2 numbers, wanted 3",
        ),
        "text": ([with_frame(joints, 2, "none"), v], "'\"none\"' where a number should be .frame 2"),
        "null": ([with_frame(joints, 2, None), v], "'null' where a number should be .frame 2"),
        "nothing": ([[], []], "0 frames"),
    }


@pytest.mark.parametrize("kind", refusals(np.zeros((N, 21, 3)), np.zeros((N, V, 3))))
def test_what_cannot_be_scored_is_refused_with_the_place(kind, tmp_path, hands):
    content, message = refusals(*hands)[kind]
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(saved(tmp_path, content), N)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[[[1, 2 3]]]",
        "[[[1,, 2]]]",
        "[[[1, 2, 3]]] 4",
        "[[[1, 2, 3]]]]",
        "[[[1, 2, -]]]",
        "[[[1, 2, 1e]]]",
        "]",
        "1",
    ],
)
def test_what_is_no_json_is_refused(text, tmp_path):
    with pytest.raises(DataError):
        read_points(saved(tmp_path, text))


def test_mutated_files_are_refused_or_read_like_json(tmp_path, hands):
    """Whatever a few changed bytes make of a file: one DataError, or exactly the numbers that json finds."""
    text = json.dumps(hands[1][:2, :3].round(3).tolist())
    random.seed(4)
    read = 0
    for _ in range(400):
        changed = list(text)
        for _ in range(random.randint(1, 2)):
            changed[random.randrange(len(changed))] = random.choice('[]{},.-+e0123456789 "nN')
        path = saved(tmp_path, "".join(changed))
        try:
            ours = read_points(path)
        except DataError:
            continue
        read += 1
        try:
            theirs = np.array(json.loads("".join(changed)), float)
        except ValueError:
            # JSON knows no leading zeros, no "+1" and no "1."; numbers they are all the same.
            assert np.isfinite(ours).all()
            continue
        assert np.array_equal(ours, theirs)
    assert read > 50


def test_missing_files_and_folders_are_named(tmp_path, hands):
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        read_predictions(tmp_path / "none.json")
    with pytest.raises(ExportError, match="no folder"):
        write_predictions(tmp_path / "none" / "pred.json", *hands)
    with pytest.raises(DataError, match=r"\(N, 21, 3\)"):
        write_predictions(tmp_path / "pred.json", hands[0][:, :20], hands[1])
    with pytest.raises(DataError, match="as many of both"):
        write_predictions(tmp_path / "pred.json", hands[0], hands[1][:-1])
