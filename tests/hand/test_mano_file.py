"""MANO files are built here, in the originals' form, from the built-in hand: no licensed file is needed.

The oracle for what is read is what was written; the oracle for safety is that nothing a hostile pickle names ever runs.
"""

from __future__ import annotations

import functools
import io
import pickle
import pickletools
import struct
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handmesh.errors import AssetError, ConfigError
from handmesh.hand import HandArrays, Handedness, builtin_hand, mano_file
from handmesh.hand.layer import HandModel
from handmesh.hand.mano_file import add_mano, handedness_of, has_left_shape_bug, mano_directory, read_mano
from handmesh.hand.models import load_hand
from handmesh.system.inert_pickle import read_pickle

RIGHT, LEFT = builtin_hand(), builtin_hand(Handedness.LEFT)


# ------------------------------------------------------------------ writing pickles by hand, opcode by opcode


class Global:
    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """callable(*arguments), then __setstate__(state). `new` writes NEWOBJ, as protocol 2 does for objects."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None, new: bool = False) -> None:
        self.function, self.arguments, self.state, self.new = function, arguments, state, new


def write(value: Any, python2: bool = True) -> bytes:
    """A protocol 2 pickle of plain values, Globals and Calls; with `python2` text and bytes are both byte strings."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    emit(out, value, python2)
    out.write(b".")
    return out.getvalue()


def emit(out: io.BytesIO, value: Any, python2: bool) -> None:
    again = functools.partial(emit, out, python2=python2)
    if value is None:
        out.write(b"N")
    elif isinstance(value, bool):
        out.write(b"\x88" if value else b"\x89")
    elif isinstance(value, int):
        if -(2**31) <= value < 2**31:
            out.write(b"J" + struct.pack("<i", value))
        else:
            out.write(b"\x8a\x08" + struct.pack("<q", value))
    elif isinstance(value, float):
        out.write(b"G" + struct.pack(">d", value))
    elif isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        if isinstance(value, str) and not python2:
            out.write(b"X" + struct.pack("<I", len(raw)) + raw)
        else:
            out.write(b"T" + struct.pack("<I", len(raw)) + raw)
    elif isinstance(value, tuple):
        out.write(b"(")
        for item in value:
            again(item)
        out.write(b"t")
    elif isinstance(value, list):
        out.write(b"](")
        for item in value:
            again(item)
        out.write(b"e")
    elif isinstance(value, dict):
        out.write(b"}(")
        for key, item in value.items():
            again(key)
            again(item)
        out.write(b"u")
    elif isinstance(value, Global):
        out.write(f"c{value.module}\n{value.name}\n".encode())
    elif isinstance(value, Call):
        again(value.function)
        again(value.arguments)
        out.write(b"\x81" if value.new else b"R")
        if value.state is not None:
            again(value.state)
            out.write(b"b")
    else:
        raise TypeError(type(value))


def pickled_array(array: np.ndarray, *, fortran: bool = False, order: str = "<", **changes: Any) -> Call:
    """numpy's own form; `changes`: code, shape, raw."""
    array = np.asarray(array)
    code = changes.get("code", array.dtype.str[1:])
    raw = array.astype(array.dtype.newbyteorder(order)).tobytes("F" if fortran else "C")
    dtype = Call(Global("numpy", "dtype"), (code, 0, 1), (3, order, None, None, None, -1, -1, 0))
    state = (1, changes.get("shape", array.shape), dtype, fortran, changes.get("raw", raw))
    return Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"), state)


def chumpy(kind: str, state: dict[str, Any]) -> Call:
    module = {"Ch": "chumpy.ch", "Select": "chumpy.reordering"}[kind]
    return Call(Global(module, kind), (), state, new=True)


def original_form(hand: HandArrays) -> dict[str, Any]:
    """What the published files hold: 20 shape directions of which chumpy selects 10, a sparse regressor, ..."""
    twenty = np.concatenate([hand.shapedirs, np.full((778, 3, 10), 7.0)], axis=-1)
    select = np.arange(twenty.size).reshape(778, 3, 20)[..., :10].ravel()
    dirty = Call(Global("__builtin__", "set"), (["x"],))
    return {
        "v_template": pickled_array(hand.v_template),
        "f": pickled_array(hand.f),
        "shapedirs": chumpy(
            "Select",
            {
                "a": chumpy("Ch", {"x": pickled_array(twenty), "_dirty_vars": dirty, "_itr": None}),
                "idxs": pickled_array(select),
                "preferred_shape": (778, 3, 10),
            },
        ),
        "posedirs": pickled_array(hand.posedirs, fortran=True),
        "J_regressor": sparse(hand.J_regressor),
        "J": pickled_array(hand.J),
        "weights": pickled_array(hand.weights),
        "kintree_table": pickled_array(hand.kintree_table),
        "hands_components": pickled_array(hand.hands_components),
        "hands_coeffs": pickled_array(hand.hands_coeffs),
        "hands_mean": pickled_array(hand.hands_mean),
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }


def sparse(dense: np.ndarray, **changes: Any) -> Call:
    """By columns. `changes` replace parts of the state."""
    columns, rows = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=0))]).astype(np.int32)
    state = {
        "_shape": dense.shape,
        "maxprint": 50,
        "data": pickled_array(dense.T[columns, rows]),
        "indices": pickled_array(rows.astype(np.int32)),
        "indptr": pickled_array(starts),
        **changes,
    }
    return Call(Global("scipy.sparse.csc", "csc_matrix"), (), state, new=True)


@pytest.fixture(scope="module")
def right_bytes() -> bytes:
    return write(original_form(RIGHT))


@pytest.fixture
def right_file(right_bytes, tmp_path) -> Path:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(right_bytes)
    return path


def same(first: HandArrays, second: HandArrays) -> bool:
    return all(np.array_equal(getattr(first, item.name), getattr(second, item.name)) for item in fields(HandArrays))


def refused(tmp_path: Path, content: bytes) -> str:
    """The message; and nothing was written."""
    source, target = tmp_path / "bad.pkl", tmp_path / "assets"
    source.write_bytes(content)
    with pytest.raises(AssetError) as caught:
        add_mano(source, directory=target)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ reading


def test_the_originals_form_is_read_to_the_last_bit(right_file):
    arrays = read_mano(right_file)
    assert same(arrays, RIGHT)
    assert arrays.sha256 == RIGHT.sha256
    assert (arrays.bs_type, arrays.bs_style) == ("lrotmin", "lbs")
    assert arrays.f.dtype == np.uint32


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_chumpy_free_copies_are_read(protocol, tmp_path):
    """People convert MANO to plain arrays, on today's Python and numpy, with any protocol."""
    content = {item.name: getattr(RIGHT, item.name) for item in fields(HandArrays)}
    path = tmp_path / "MANO_RIGHT_np.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert same(read_mano(path), RIGHT)


def test_a_sparse_regressor_of_todays_scipy_is_read(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    content = {item.name: getattr(RIGHT, item.name) for item in fields(HandArrays)}
    content["J_regressor"] = scipy_sparse.csc_matrix(RIGHT.J_regressor)
    path = tmp_path / "copy.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    assert same(read_mano(path), RIGHT)


def test_other_byte_orders_and_precisions_are_read(tmp_path):
    content = original_form(RIGHT)
    content["v_template"] = pickled_array(RIGHT.v_template, order=">")
    content["weights"] = pickled_array(RIGHT.weights.astype(np.float32))
    content["f"] = pickled_array(RIGHT.f.astype(np.int64))
    path = tmp_path / "other.pkl"
    path.write_bytes(write(content))
    arrays = read_mano(path)
    np.testing.assert_array_equal(arrays.v_template, RIGHT.v_template)
    np.testing.assert_allclose(arrays.weights, RIGHT.weights, atol=1e-7)
    np.testing.assert_array_equal(arrays.f, RIGHT.f)


def test_training_poses_may_be_left_out(tmp_path):
    content = original_form(RIGHT)
    del content["hands_coeffs"]
    path = tmp_path / "lean.pkl"
    path.write_bytes(write(content))
    assert read_mano(path).hands_coeffs.shape == (0, 45)


def test_objects_that_python_2_reconstructs_are_read(tmp_path):
    """Old-style pickling of the same classes: copy_reg._reconstructor(class, object, None)."""
    content = original_form(RIGHT)
    call = content["J_regressor"]
    reconstructor = Global("copy_reg", "_reconstructor")
    arguments = (call.function, Global("__builtin__", "object"), None)
    content["J_regressor"] = Call(reconstructor, arguments, call.state)
    path = tmp_path / "old.pkl"
    path.write_bytes(write(content))
    np.testing.assert_array_equal(read_mano(path).J_regressor, RIGHT.J_regressor)


def test_repeated_entries_of_a_sparse_matrix_add_up_as_in_scipy(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    starts = np.sort(np.concatenate([[0, 40], rng.integers(0, 40, 777)])).astype(np.int32)
    rows, data = rng.integers(0, 16, 40).astype(np.int32), rng.normal(size=40)
    expected = scipy_sparse.csc_matrix((data, rows, starts), shape=(16, 778)).toarray()
    matrix = sparse(
        RIGHT.J_regressor, data=pickled_array(data), indices=pickled_array(rows), indptr=pickled_array(starts)
    )
    found = read_pickle(write({"J_regressor": matrix}), "matrix", ["J_regressor"])
    np.testing.assert_allclose(found["J_regressor"], expected, atol=1e-15)


def test_reading_needs_no_chumpy_and_leaves_no_module_behind(right_file):
    before = set(sys.modules)
    read_mano(right_file)
    assert not {name for name in set(sys.modules) - before if name.startswith(("chumpy", "scipy", "numpy"))}


# ------------------------------------------------------------------ hostile files


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.testing._private.utils", "runstring"),
        ("scipy.sparse.csc", "__class__"),
        ("chumpy.utils", "timer"),
        ("chumpy.ch", "Ch.__init__"),
        ("handmesh.system.inert_pickle", "_Recorder"),
    ],
)
def test_nothing_a_pickle_names_is_ever_called(module, name, tmp_path):
    marker = tmp_path / "ran"
    call = Call(Global(module, name), (f"touch {marker}",))
    for content in (write(call), write({**original_form(RIGHT), "extra": call})):
        assert f"{module}.{name}" in refused(tmp_path, content)
    # The same through STACK_GLOBAL, which the scan cannot resolve.
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    assert f"{module}.{name}" in refused(tmp_path, b"\x80\x04" + names + b"\x93)R.")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo of 2147483647"),  # nine bytes that once took 16 GB
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "frame"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "damaged"),  # a string of 2 GB in a short file
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02(i" + b"os\nsystem\n.", "INST"),
        (b"\x80\x02Pid\n.", "PERSID"),
        (b"\x80\x02NQ.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02]" + b"2" * 1000 + b".", "DUP"),
        (b"\x80\x02\x8b\x00\x00\x00\x10" + b"\x01" * 100 + b".", "damaged"),
        (b"\x80\x02" + b"N0" * 150_000 + b"N.", "instructions"),
        (b"\x80\x02}N.", "dictionary"),
        (b"\x80\x02].", "list"),
        (b"\x80\x02}.trailing", "follow"),
        (b"\x80\x02}(N.", "damaged"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "damaged"),  # __setstate__ of the class itself
        (b"\x80\x02cnumpy\ndtype\n)\x81N}(U\x09__class__Nu\x86b.", "wanted a dictionary"),
        (b"", "damaged"),
        (b"not a pickle at all", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:45d6\n", "LFS"),
        (b"PK\x03\x04 rubbish", "cannot be read"),
    ],
)
def test_hostile_and_damaged_files_are_refused(content, message, tmp_path):
    assert message in refused(tmp_path, content)


def test_every_truncation_is_refused(right_bytes, tmp_path):
    for share in (0.0001, 0.01, 0.3, 0.7, 0.999):
        refused(tmp_path, right_bytes[: int(share * len(right_bytes))])
    refused(tmp_path, right_bytes[:-1])


def test_no_flipped_byte_gets_through_as_an_exception_of_another_kind(right_bytes, tmp_path):
    """A file damaged anywhere is read, or refused with an AssetError: nothing else is ever raised."""
    structure = [position for *_, position in pickletools.genops(right_bytes)][:-3]
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.pkl"
    messages = []
    for position in rng.choice(structure, 60):
        damaged = bytearray(right_bytes)
        damaged[position + int(rng.integers(0, 3))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            read_mano(path)
        except AssetError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message for message in messages)


def with_array(name: str, array: np.ndarray | None = None, **changes: Any) -> bytes:
    value = getattr(RIGHT, name) if array is None else array
    return write({**original_form(RIGHT), name: pickled_array(value, **changes)})


NAN = np.where(np.arange(16)[:, None] == 3, np.nan, RIGHT.J)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: with_array("J", NAN), "J holds values that are not finite"),
        (lambda: with_array("J", RIGHT.J[:15]), "J is float64 (15, 3), wanted (16, 3)"),
        (lambda: with_array("v_template", shape=(778, 4)), "18672 bytes for (778, 4)"),
        (lambda: with_array("v_template", shape=(10**9, 10**9)), "no proper shape"),
        (lambda: with_array("v_template", shape=(-778, -3)), "no proper shape"),
        (lambda: with_array("v_template", shape=(778, True)), "no proper shape"),
        (lambda: with_array("v_template", code="O8"), "type 'O8'"),
        (lambda: with_array("v_template", code="V8"), "type 'V8'"),
        (lambda: with_array("v_template", raw=None), "no bytes"),
        (lambda: with_array("f", np.where(RIGHT.f == 5, 778, RIGHT.f)), "a face names vertex 778"),
        (lambda: with_array("f", RIGHT.f.astype(float)), "f is float64"),
        (lambda: with_array("weights", 2 * RIGHT.weights), "rows of weights sum to one"),
        (lambda: with_array("kintree_table", np.zeros((2, 16), int)), "joint tree"),
        (lambda: with_array("v_template", 1000 * RIGHT.v_template), "201 long, wanted metres"),
        (lambda: write({"v_template": pickled_array(RIGHT.v_template)}), "missing f, shapedirs"),
        (lambda: write({**original_form(RIGHT), "J": "text"}), "J is a str"),
        (lambda: write({**original_form(RIGHT), "J": Global("numpy", "ndarray")}), "J is a type"),
        (lambda: write({**original_form(RIGHT), "J": Call(Global("numpy", "dtype"), ("f8",))}), "J is a dtype"),
        (lambda: write({**original_form(RIGHT), "bs_type": 3}), "bs_type is no text"),
        (lambda: write({**original_form(RIGHT), "J": chumpy("Ch", {})}), "J is an incomplete Ch"),
    ],
)
def test_wrong_models_are_refused(content, message, tmp_path):
    assert message in refused(tmp_path, content())


def test_a_chumpy_leaf_may_not_hold_itself(tmp_path):
    """x = Ch(x): following it would never end."""
    loop = b"\x80\x02}(U\x01Jcchumpy.ch\nCh\n)\x81q\x01}U\x01xh\x01sbu."
    assert "Ch without an array" in refused(tmp_path, loop)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_shape": (16, 777)}, "no sound sparse"),
        ({"_shape": (10**9, 10**9)}, "no sound sparse"),
        ({"_shape": "wide"}, "no proper shape"),
        ({"indices": pickled_array(np.full(4, 16, np.int32)), "data": pickled_array(np.ones(4))}, "no sound sparse"),
        ({"indptr": pickled_array(np.arange(779, dtype=np.int32)[::-1])}, "no sound sparse"),
        ({"data": pickled_array(np.ones(3))}, "no sound sparse"),
    ],
)
def test_unsound_sparse_matrices_are_refused(changes, message, tmp_path):
    content = {**original_form(RIGHT), "J_regressor": sparse(RIGHT.J_regressor, **changes)}
    assert message in refused(tmp_path, write(content))


@pytest.mark.parametrize("index", [-1, 778 * 3 * 20])
def test_a_selection_outside_its_array_is_refused(index, tmp_path):
    content = original_form(RIGHT)
    state = content["shapedirs"].state
    state["idxs"] = pickled_array(np.full(23340, index))
    assert "selects numbers that are not there" in refused(tmp_path, write(content))


def test_sizes_are_limited_before_anything_is_read(tmp_path, monkeypatch, right_file):
    monkeypatch.setattr(mano_file, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(AssetError, match="over 1 MB"):
        read_mano(right_file)
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, v_template=np.zeros(10_000_000))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(AssetError, match="unpacked it would have over"):
        read_mano(bomb)


def test_missing_files_and_folders_are_said_to_be_so(tmp_path):
    with pytest.raises(AssetError, match="does not exist"):
        read_mano(tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(AssetError, match="is a folder"):
        read_mano(tmp_path)


# ------------------------------------------------------------------ adding


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


def test_adding_keeps_the_arrays_where_load_hand_finds_them(right_file, home):
    added = add_mano(right_file)
    assert added.path == home / "MANO_RIGHT.npz"
    assert (added.handedness, added.original, added.left_shape_bug) == (Handedness.RIGHT, False, None)
    assert same(load_hand("mano"), RIGHT)
    assert same(read_mano(added.path), RIGHT)
    assert [path.name for path in home.iterdir()] == ["MANO_RIGHT.npz"]
    before = added.path.read_bytes()
    add_mano(right_file)  # again: the same, and no second file
    assert HandArrays.load(added.path).sha256 == RIGHT.sha256
    assert len(before) == added.path.stat().st_size


def test_a_pickle_laid_beside_needs_no_adding(right_bytes, home):
    home.mkdir()
    (home / "MANO_RIGHT.pkl").write_bytes(right_bytes)
    assert same(load_hand("mano"), RIGHT)


def test_the_side_comes_from_the_geometry_not_from_the_name(tmp_path, home, caplog):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(write(original_form(LEFT)))
    assert add_mano(path).path.name == "MANO_LEFT.npz"
    assert "MANO_RIGHT.pkl is called a right hand, but is a left one: kept as MANO_LEFT.npz" in caplog.text
    home.joinpath("MANO_LEFT.npz").rename(home / "MANO_RIGHT.npz")
    with pytest.raises(AssetError, match="is not a right hand"):
        load_hand("mano")


@pytest.mark.parametrize("hand", [RIGHT, LEFT])
def test_mirroring_changes_the_side(hand):
    assert handedness_of(hand) != handedness_of(hand.mirrored())
    assert handedness_of(RIGHT) == Handedness.RIGHT


def test_a_hand_without_a_palm_has_no_side():
    with pytest.raises(AssetError, match="coincide"):
        handedness_of(replace(RIGHT, J=np.zeros((16, 3))))


def test_the_left_hands_shape_bug_is_found_and_mended_when_asked(tmp_path, home):
    """The published left file has the right hand's shape directions; mended, betas mirror as they should."""
    buggy = replace(LEFT, shapedirs=RIGHT.shapedirs)
    left_file = tmp_path / "MANO_LEFT.pkl"
    left_file.write_bytes(write(original_form(buggy)))
    with pytest.raises(AssetError, match=r"add` on MANO_RIGHT\.pkl first"):
        add_mano(left_file, fix_left_shape=True)
    assert add_mano(left_file).left_shape_bug is None, "nothing to compare with"
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(write(original_form(RIGHT)))

    as_published = add_mano(left_file)
    assert (as_published.left_shape_bug, as_published.left_shape_fixed) == (True, False)
    assert same(load_hand("mano", Handedness.LEFT), buggy)

    mended = add_mano(left_file, fix_left_shape=True)
    assert (mended.left_shape_bug, mended.left_shape_fixed) == (True, True)
    assert same(load_hand("mano", Handedness.LEFT), LEFT)
    betas = np.linspace(-2, 2, 10)
    bent = RIGHT.v_template + RIGHT.shapedirs @ betas
    np.testing.assert_allclose(LEFT.v_template + mended.arrays.shapedirs @ betas, bent * [-1, 1, 1], atol=1e-12)

    sound = tmp_path / "sound.pkl"
    sound.write_bytes(write(original_form(LEFT)))
    again = add_mano(sound, fix_left_shape=True)
    assert (again.left_shape_bug, again.left_shape_fixed) == (False, False), "what is right is not turned wrong"
    assert same(again.arrays, LEFT)


def test_the_bug_is_told_from_its_absence():
    assert has_left_shape_bug(replace(LEFT, shapedirs=RIGHT.shapedirs), RIGHT)
    assert not has_left_shape_bug(LEFT, RIGHT)


def test_right_hands_have_nothing_to_mend(right_file, home):
    with pytest.raises(AssetError, match="is a right hand"):
        add_mano(right_file, fix_left_shape=True)
    assert not home.exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(right_file, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(AssetError, match="cannot be written"):
        add_mano(right_file, directory=blocker)


def test_a_missing_mano_is_answered_by_a_manual(home):
    with pytest.raises(AssetError) as caught:
        load_hand("mano", Handedness.LEFT)
    message = str(caught.value)
    for wanted in ("mano.is.tue.mpg.de", "mano_v1_2.zip", "handmesh mano add", "MANO_LEFT.pkl", str(home), "builtin"):
        assert wanted in message


def test_hands_by_name():
    assert same(load_hand("builtin"), RIGHT)
    assert handedness_of(load_hand("builtin", Handedness.LEFT)) == Handedness.LEFT
    with pytest.raises(ConfigError, match="'smplx': wanted builtin or mano"):
        load_hand("smplx")


def test_where_files_live(monkeypatch, tmp_path):
    monkeypatch.delenv("HANDMESH_MANO_DIR", raising=False)
    assert mano_directory() == Path(__file__).resolve().parents[2] / "mano_assets", "a checkout's own folder"
    monkeypatch.setattr(mano_file, "__file__", str(tmp_path / "site-packages" / "handmesh" / "hand" / "mano_file.py"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert mano_directory() == tmp_path / "share" / "handmesh" / "mano", "a user's, for an installed package"


def test_git_ignores_whatever_is_put_there():
    rules = (Path(__file__).parents[2] / "mano_assets" / ".gitignore").read_text().split("\n")
    assert "*" in rules
    assert {rule for rule in rules if rule.startswith("!")} == {"!.gitignore", "!README.md"}


def test_no_archive_of_ours_takes_them_along():
    """Build tools do not read a folder's own .gitignore."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    found = {name.lstrip("/") for name in included if "mano_assets" in name}
    assert found == {"mano_assets/README.md", "mano_assets/.gitignore"}


def test_what_was_read_is_the_same_function_as_smplxs(right_file):
    pytest.importorskip("smplx", reason='smplx is not installed: pip install -e ".[mano]"')
    from handmesh.hand.mano_check import difference_from_smplx

    arrays = read_mano(right_file)
    difference = difference_from_smplx(arrays, count=4)
    assert difference is not None
    assert difference < 1e-6
    assert HandModel(arrays).sha256 == RIGHT.sha256


# ------------------------------------------------------------------ the command


def run(*arguments: Any) -> Any:
    from typer.testing import CliRunner

    from handmesh.cli import app

    return CliRunner().invoke(app, ["mano", "add", *map(str, arguments)])


def test_the_command_adds_both_sides_and_says_what_it_found(right_file, home, tmp_path):
    left_file = tmp_path / "left" / "MANO_LEFT.pkl"
    left_file.parent.mkdir()
    left_file.write_bytes(write(original_form(replace(LEFT, shapedirs=RIGHT.shapedirs))))
    told = run(left_file, right_file)
    assert told.exit_code == 0, told.output
    assert "--fix-left-shape mends it" in told.output
    mended = run(left_file, right_file, "--fix-left-shape")
    assert "mended" in mended.output
    assert sorted(path.name for path in home.iterdir()) == ["MANO_LEFT.npz", "MANO_RIGHT.npz"]
    assert same(load_hand("mano", Handedness.LEFT), LEFT)


def test_the_command_takes_no_side_twice(right_file, home, tmp_path):
    """The second took the first one's place, without a word."""
    other = tmp_path / "MANO_LEFT.pkl"
    other.write_bytes(right_file.read_bytes())
    error = run(right_file, other).exception
    assert isinstance(error, ConfigError)
    assert "are both right hands" in str(error)
    assert not home.exists()


def test_the_command_keeps_nothing_when_one_file_is_bad(right_file, home, tmp_path):
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"not a pickle")
    assert isinstance(run(right_file, bad).exception, AssetError)
    assert not home.exists()


def test_the_archive_as_downloaded_is_named_for_what_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "mano_v1_2.zip", "w") as archive:
        archive.writestr("mano_v1_2/models/MANO_RIGHT.pkl", b"")
        archive.writestr("mano_v1_2/models/MANO_LEFT.pkl", b"")
    with pytest.raises(AssetError, match=r"unpack it, and add mano_v1_2/models/MANO_RIGHT\.pkl and "):
        read_mano(tmp_path / "mano_v1_2.zip")


@pytest.mark.parametrize(("at", "byte"), [(0, 0), (6, 255)])  # the signature of its list of files, the version it needs
def test_a_damaged_archive_is_an_error_of_its_own(tmp_path, at, byte):
    """It was a traceback: what zipfile takes for an archive it may not be able to read."""
    path = tmp_path / "mano_v1_2.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mano_v1_2/models/MANO_RIGHT.pkl", b"")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + at] = byte
    path.write_bytes(content)
    with pytest.raises(AssetError, match=r"mano_v1_2\.zip is a damaged archive"):
        read_mano(path)
