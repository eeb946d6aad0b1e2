"""Reading MANO's own files, MANO_RIGHT.pkl and MANO_LEFT.pkl, without running anything that is in them.

A pickle is a program. The originals were written by Python 2 with chumpy classes inside, so `pickle.load` needs a
library that no longer installs, and would do whatever a tampered copy says. Here instead:

1. The file's size is limited, and its opcodes are scanned without executing any: only those that build plain values,
   bounded memo indices (CPython allocates its memo up to the largest index: nine bytes can ask for 16 GB,
   python/cpython#115952), and an exact list of class names.
2. It is unpickled with that list alone, and each name stands for an inert recorder, which keeps its arguments and does
   nothing. No function or class of numpy, scipy or chumpy can be reached.
3. Arrays are rebuilt from what the recorders hold: known dtypes only, and as many bytes as the shape needs, checked
   before anything is allocated. Then `HandArrays.from_mapping` checks names, shapes, values and the joint tree.

`add_mano` does this once and keeps the arrays as an .npz. `mano_directory` says where. Neither torch nor chumpy is
needed. Converted files are under MANO's licence, like the originals.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import AssetError, ExportError
from handmesh.hand import FINGER_ROTATION_COUNT, HandArrays, Handedness
from handmesh.hand.anatomy import palm_frame
from handmesh.system.atomic import write_atomically
from handmesh.system.paths import folder_in, user_data_folder

logger = logging.getLogger(__name__)

MANO_PAGE = "https://mano.is.tue.mpg.de"
MAX_FILE_BYTES = 64 << 20  # the originals have 3.8 MB
_LENGTHS = (0.05, 0.5)  # metres, the longest side at rest; MANO's has about 0.2
MAX_VALUES = 4_000_000  # numbers in one array; the largest there is, posedirs, has 315,090

# The files as they are published, for messages only: converted copies are common and welcome.
ORIGINAL_SHA256 = {
    "45d60aa3b27ef9107a7afd4e00808f307fd91111e1cfa35afd5c4a62de264767": Handedness.RIGHT,
    "c4022f7083f2ca7c78b2b3d595abbab52debd32b09d372b16923a801f0ea6a30": Handedness.LEFT,
}


# ---------------------------------------------------------------------------------------------------- where


def mano_directory() -> Path:
    r"""Where converted MANO files live: nobody has to say it twice.

    ``$HANDMESH_MANO_DIR`` when it is set; the checkout's ``mano_assets/`` when handmesh runs from one (git ignores what
    is in it); otherwise a folder of the user's, since an installed package's own may be read-only and is replaced by
    the next upgrade: ``~/.local/share/handmesh/mano`` (or under ``$XDG_DATA_HOME``), on macOS
    ``~/Library/Application Support/handmesh/mano``, on Windows ``%LOCALAPPDATA%\handmesh\mano``.
    """
    if given := folder_in("HANDMESH_MANO_DIR"):
        return given
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "mano_assets").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "mano_assets"
    return user_data_folder() / "mano"


def mano_file(handedness: Handedness = Handedness.RIGHT) -> Path:
    """Where `add_mano` puts one side."""
    return mano_directory() / f"MANO_{handedness.upper()}.npz"


def load_mano(handedness: Handedness = Handedness.RIGHT) -> HandArrays:
    """What `handmesh mano add` brought, or the .pkl beside it. Raises AssetError with instructions."""
    converted = mano_file(handedness)
    for path in (converted, converted.with_suffix(".pkl")):
        if path.is_file():
            arrays = read_mano(path)
            if handedness_of(arrays) != handedness:
                raise AssetError(f"{path} is not a {handedness} hand: add the right file with `handmesh mano add`.")
            return arrays
    raise AssetError(missing_mano(handedness))


def missing_mano(handedness: Handedness) -> str:
    """What to do when MANO is asked for and is not there: one page."""
    name = f"MANO_{handedness.upper()}.pkl"
    return (
        f"There is no MANO model of a {handedness} hand at {mano_file(handedness)}.\n"
        "MANO may not be shipped with handmesh; it is free for non-commercial research:\n"
        f"  1. Register at {MANO_PAGE} and accept the licence.\n"
        "  2. Download 'Models & Code' (mano_v1_2.zip) and unpack it.\n"
        f"  3. handmesh mano add mano_v1_2/models/{name}\n"
        "Or use the built-in hand, which needs no licence: --hand-model builtin."
    )


# ---------------------------------------------------------------------------------------------------- adding


@dataclass(frozen=True)
class AddedMano:
    """What `add_mano` did."""

    path: Path
    arrays: HandArrays
    handedness: Handedness
    original: bool  # the file is, byte for byte, the published one
    left_shape_bug: bool | None  # of the file that was read; None: cannot be told (or a right hand)
    left_shape_fixed: bool


def add_mano(path: Path, *, fix_left_shape: bool = False, directory: Path | None = None) -> AddedMano:
    """Read a MANO file safely, check it, and keep its arrays in `directory` (by default `mano_directory()`).

    In the published MANO_LEFT.pkl the shape directions are a copy of the right hand's: their x should have the other
    sign (vchoutas/smplx#48). Betas then do something else to a left hand than to a right one. `fix_left_shape` turns
    the sign. It is an option because data that was fitted with the file as published (DexYCB, ARCTIC, ...) has betas
    that fit that file only. Raises AssetError and writes nothing when the file is not a sound MANO model.
    """
    path = Path(path)
    content = _read_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    arrays = _parse(content, str(path))
    handedness = handedness_of(arrays)
    directory = mano_directory() if directory is None else Path(directory)
    bug: bool | None = None
    if handedness == Handedness.LEFT:
        bug = ORIGINAL_SHA256.get(sha256) == Handedness.LEFT or None
        if (right := _other_side(path, directory)) is not None:
            bug = has_left_shape_bug(arrays, right)
    if fix_left_shape:
        if handedness == Handedness.RIGHT:
            raise AssetError(f"{path} is a right hand: only left hands have shape directions to mend.")
        if bug is None:
            raise AssetError(
                f"Whether the shape directions of {path} are those of the right hand can only be told beside the right "
                "hand: run `handmesh mano add` on MANO_RIGHT.pkl first."
            )
        if bug:
            arrays = replace(arrays, shapedirs=arrays.shapedirs * np.array([-1.0, 1.0, 1.0])[:, None])
    provenance = {"source_sha256": sha256, "left_shape_fixed": bool(fix_left_shape and bug), "licence": "MANO"}
    target = directory / f"MANO_{handedness.upper()}.npz"
    called = [side for side in Handedness if side in re.split("[^a-z]+", path.name.lower())]
    if called and handedness not in called:
        logger.warning("%s is called a %s hand, but is a %s one: kept as %s", path, called[0], handedness, target.name)
    buffer = io.BytesIO()
    values = {item.name: getattr(arrays, item.name) for item in fields(arrays)}
    np.savez_compressed(buffer, **values, provenance=np.array(json.dumps(provenance)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
    except (OSError, ExportError) as error:
        raise AssetError(f"{target} cannot be written: {error}") from error
    return AddedMano(
        path=target,
        arrays=arrays,
        handedness=handedness,
        original=sha256 in ORIGINAL_SHA256,
        left_shape_bug=bug,
        left_shape_fixed=bool(fix_left_shape and bug),
    )


def handedness_of(arrays: HandArrays) -> Handedness:
    """Which hand a model is, from its geometry: file names lie. Raises AssetError when it has no palm.

    Dorsal is +y in MANO's rest frame.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        palm = palm_frame(arrays)
    if not np.isfinite([palm.distal, palm.radial]).all():
        raise AssetError("The joints of the hand model coincide: it has no palm. Is it a MANO file?")
    right = np.cross(palm.distal, palm.radial) @ palm.dorsal > 0
    return Handedness.RIGHT if right else Handedness.LEFT


def has_left_shape_bug(left: HandArrays, right: HandArrays) -> bool:
    """Whether the left hand's shape directions are the right hand's own instead of their mirror image.

    Those of the published files agree to a sum of 1 over 7,780 x components (the test of smplx#48); here: whichever of
    the two they are closer to.
    """
    copied = np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum()
    mirrored = np.abs(left.shapedirs[:, 0] + right.shapedirs[:, 0]).sum()
    return bool(copied < mirrored)


def _other_side(path: Path, directory: Path) -> HandArrays | None:
    """The right hand that belongs to a left one: already added, or lying beside it."""
    for candidate in (directory / "MANO_RIGHT.npz", path.with_name("MANO_RIGHT.pkl")):
        if candidate.is_file():
            arrays = read_mano(candidate)
            if handedness_of(arrays) == Handedness.RIGHT:
                return arrays
    return None


# ---------------------------------------------------------------------------------------------------- reading


def read_mano(path: str | os.PathLike[str]) -> HandArrays:
    """Read a MANO model: an original pickle, a chumpy-free copy of one, or an .npz. Executes nothing in it.

    Raises AssetError for a file that is missing, too large, damaged, hostile, or no hand model.
    """
    return _parse(_read_file(Path(path)), str(path))


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder or a device" if path.exists() else "does not exist"
            raise AssetError(f"{path} {what}: wanted MANO_RIGHT.pkl or MANO_LEFT.pkl of {MANO_PAGE}.")
        _check_no_archive(path)
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AssetError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > MAX_FILE_BYTES:
        raise AssetError(f"{path} has over {MAX_FILE_BYTES >> 20} MB; a MANO file has 3.8 MB. Is it another file?")
    return content


def _check_no_archive(path: Path) -> None:
    """What MANO's site gives is a zip with both hands in it."""
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        hands = [name for name in archive.namelist() if name.endswith(("MANO_RIGHT.pkl", "MANO_LEFT.pkl"))]
    if hands:
        raise AssetError(f"{path} is an archive: unpack it, and add {' and '.join(hands)} from it.")


def _parse(content: bytes, source: str) -> HandArrays:
    return _checked(HandArrays.from_mapping(_arrays_in(content, source), source), source)


def _checked(arrays: HandArrays, source: str) -> HandArrays:
    """Is it the size of a hand in metres? Some copies are in millimetres."""
    length = float(np.ptp(arrays.v_template, axis=0).max())
    if not _LENGTHS[0] < length < _LENGTHS[1]:
        raise AssetError(
            f"{source}: the hand at rest is {length:.3g} long, wanted metres, {_LENGTHS[0]} to {_LENGTHS[1]}. Is it a "
            "copy in millimetres, or of another thing?"
        )
    return arrays


def _arrays_in(content: bytes, source: str) -> dict[str, Any]:
    if content.startswith(b"PK"):
        return _read_npz(content, source)
    if content.startswith(b"version https://git-lfs"):
        raise AssetError(f"{source} is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from.")
    _scan(content, source)
    try:
        found = _InertUnpickler(io.BytesIO(content), fix_imports=False, encoding="latin1").load()
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, wanted a dictionary")
        arrays = {
            name: found[name] if name.startswith("bs_") else _array(found[name], name)
            for name in (item.name for item in fields(HandArrays))
            if name in found
        }
        for name in ("bs_type", "bs_style"):
            if not isinstance(arrays.get(name, ""), str):
                raise _RefusedError(f"{name} is no text")
    except _RefusedError as error:
        raise AssetError(f"{source} is refused: {error}.") from None
    except RecursionError:
        raise AssetError(f"{source} is refused: it is nested without end.") from None
    except Exception as error:  # what a damaged pickle makes the interpreter raise can be of any kind
        raise AssetError(
            f"{source} is damaged, or no MANO file: {type(error).__name__}: {str(error)[:200]}."
        ) from error
    if "hands_coeffs" not in arrays:  # some copies leave the training poses out
        arrays["hands_coeffs"] = np.empty((0, FINGER_ROTATION_COUNT))
    return arrays


def _read_npz(content: bytes, source: str) -> dict[str, Any]:
    wanted = {item.name for item in fields(HandArrays)}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            infos = {info.filename: info for info in archive.zip.infolist()}
            if sum(info.file_size for info in infos.values()) > MAX_FILE_BYTES:
                raise AssetError(f"{source} is refused: unpacked it would have over {MAX_FILE_BYTES >> 20} MB.")
            return {name: archive[name] for name in archive.files if name in wanted}
    except AssetError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on damaged bytes
        raise AssetError(f"{source} cannot be read as a hand model (.npz): {error}.") from error


class _RefusedError(Exception):
    """Why a pickle is not accepted; the file's name is added above."""


# Opcodes that push values, build containers, and call what `find_class` answers: what pickle protocols 2 to 5 write for
# dictionaries of arrays. Missing on purpose: INST, OBJ, NEWOBJ_EX, EXT1-4, PERSID, BINPERSID, DUP, LONG4, and all that
# only protocols 0 and 1 use.
_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"),
        *("SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ"),
    )
)
_MAX_OPCODES = 200_000  # the originals have about 500
_MAX_MEMO = 100_000


def _scan(content: bytes, source: str) -> None:
    """Look at every opcode before the first one is executed."""
    try:
        instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(content)
        for count, (opcode, argument, at) in enumerate(instructions):
            position = at or 0  # never None for bytes
            if opcode.name not in _OPCODES:
                raise _RefusedError(f"it uses {opcode.name} at byte {position}, which no MANO file needs")
            if count > _MAX_OPCODES:
                raise _RefusedError(f"it has over {_MAX_OPCODES} instructions")
            if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > _MAX_MEMO:
                raise _RefusedError(f"it asks for a memo of {argument} entries at byte {position}")
            if opcode.name == "FRAME" and argument > len(content):
                raise _RefusedError(f"it announces a frame of {argument} bytes at byte {position}")
            if opcode.name == "GLOBAL":
                module, _, name = argument.partition(" ")
                if (module, name) not in _RECORDERS:
                    raise _RefusedError(f"it names {module}.{name}, which no MANO file needs")
            if opcode.name == "STOP" and position != len(content) - 1:
                raise _RefusedError(f"{len(content) - 1 - position} bytes follow its end")
    except _RefusedError as error:
        raise AssetError(f"{source} is refused: {error}.") from None
    except Exception as error:  # pickletools raises ValueError, UnicodeDecodeError and others on damaged bytes
        raise AssetError(f"{source} is damaged, or no pickle: {error}.") from error


class _Recorder:
    """Stands for a class or function in a pickle: keeps what it is called with and does nothing."""

    stands_for: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Recorder:
        recorder = object.__new__(cls)
        recorder.arguments, recorder.state = arguments, None
        return recorder

    def __setstate__(self, state: Any) -> None:  # without it, pickle would set attributes that the file names
        self.state = state


class _Reconstructor(_Recorder):
    """copy_reg._reconstructor(class, base, state): protocol 2's way to make an object of some classes."""

    def __new__(cls, *arguments: Any) -> _Recorder:  # type: ignore[misc]  # it makes an object of another class
        if not (len(arguments) == 3 and isinstance(arguments[0], type) and issubclass(arguments[0], _Recorder)):
            raise _RefusedError("it reconstructs something other than an object")
        return _Recorder.__new__(arguments[0])


def _recorder(name: str) -> type[_Recorder]:
    base = _Reconstructor if name == "reconstructor" else _Recorder
    return type(f"_{name}", (base,), {"stands_for": name})


def _make_recorders() -> dict[tuple[str, str], type[_Recorder]]:
    names = {
        "ndarray": [("numpy", "ndarray")],
        "dtype": [("numpy", "dtype")],
        "reconstruct": [("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")],
        "frombuffer": [("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")],
        "csc_matrix": [("scipy.sparse.csc", "csc_matrix"), ("scipy.sparse._csc", "csc_matrix")],
        "Ch": [("chumpy.ch", "Ch")],
        "Select": [("chumpy.reordering", "Select")],
        "set": [("__builtin__", "set"), ("builtins", "set")],
        "object": [("__builtin__", "object"), ("builtins", "object")],
        "reconstructor": [("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")],
        "encode": [("_codecs", "encode")],
    }
    return {place: kind for name, places in names.items() for kind in [_recorder(name)] for place in places}


_RECORDERS = _make_recorders()


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        recorder = _RECORDERS.get((module, name))
        if recorder is None:
            raise _RefusedError(f"it names {module}.{name}, which no MANO file needs")
        return recorder

    def persistent_load(self, _: Any) -> Any:
        raise _RefusedError("it refers to something outside itself")


# ---------------------------------------------------------------------------------------------------- rebuilding

_DTYPES = frozenset({"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


def _array(value: Any, name: str) -> NDArray[Any]:
    """The numbers that a recorder stands for."""
    if not isinstance(value, _Recorder):
        raise _RefusedError(f"{name} is a {type(value).__name__}, wanted an array")
    rebuild = _REBUILD.get(value.stands_for)
    if rebuild is None:
        raise _RefusedError(f"{name} is a {value.stands_for}, wanted an array")
    return rebuild(value, name)


def _rebuild_ndarray(value: _Recorder, name: str) -> NDArray[Any]:
    """_reconstruct(ndarray, (0,), 'b') whose state is (version, shape, dtype, Fortran order, bytes)."""
    state = value.state
    if not (isinstance(state, tuple) and len(state) == 5):
        raise _RefusedError(f"{name} has no array in it")
    _, shape, dtype, fortran, raw = state
    return _numbers(raw, _dtype(dtype, name), shape, "F" if fortran is True else "C", name)


def _rebuild_frombuffer(value: _Recorder, name: str) -> NDArray[Any]:
    """_frombuffer(bytes, dtype, shape, order): protocol 5."""
    if len(value.arguments) != 4:
        raise _RefusedError(f"{name} has no array in it")
    raw, dtype, shape, order = value.arguments
    return _numbers(raw, _dtype(dtype, name), shape, "F" if order == "F" else "C", name)


def _numbers(raw: Any, dtype: np.dtype[Any], shape: Any, order: Literal["C", "F"], name: str) -> NDArray[Any]:
    if not (
        isinstance(shape, tuple)
        and len(shape) <= 4
        and all(type(length) is int and 0 <= length <= MAX_VALUES for length in shape)
    ):
        raise _RefusedError(f"{name} has no proper shape")
    count = 1
    for length in shape:
        count *= length
    content = _bytes(raw, name)
    if count > MAX_VALUES or len(content) != count * dtype.itemsize:
        raise _RefusedError(f"{name} has {len(content)} bytes for {shape} numbers of {dtype.itemsize} bytes")
    array = np.frombuffer(content, dtype).reshape(shape, order=order)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("=")))


def _dtype(value: Any, name: str) -> np.dtype[Any]:
    """dtype('f8', ...) whose state begins (version, byte order, ...)."""
    if not (isinstance(value, _Recorder) and value.stands_for == "dtype" and value.arguments):
        raise _RefusedError(f"{name} has no number type")
    code = value.arguments[0]
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    if code not in _DTYPES or order not in ("<", ">", "|", "="):
        raise _RefusedError(f"{name} has numbers of type {str(code)[:20]!r}")
    return np.dtype(code).newbyteorder("=" if order == "|" else order)


def _bytes(raw: Any, name: str) -> bytes:
    """Bytes, or the text that Python 2's strings and protocol 2's ``_codecs.encode(text, 'latin1')`` come as."""
    if isinstance(raw, _Recorder) and raw.stands_for == "encode" and len(raw.arguments) == 2:
        raw = raw.arguments[0] if raw.arguments[1] in ("latin1", "latin-1") else None
    if isinstance(raw, str):
        try:
            return raw.encode("latin-1")
        except UnicodeEncodeError:
            raise _RefusedError(f"{name} has text where its bytes should be") from None
    if isinstance(raw, bytes | bytearray):
        return bytes(raw)
    raise _RefusedError(f"{name} has no bytes")


def _state(value: _Recorder, name: str, wanted: tuple[str, ...]) -> list[Any]:
    if not isinstance(value.state, dict) or any(key not in value.state for key in wanted):
        raise _RefusedError(f"{name} is an incomplete {value.stands_for}")
    return [value.state[key] for key in wanted]


def _rebuild_ch(value: _Recorder, name: str) -> NDArray[Any]:
    """Chumpy's leaf: an array called x."""
    (x,) = _state(value, name, ("x",))
    if not (isinstance(x, _Recorder) and x.stands_for in ("reconstruct", "frombuffer")):
        raise _RefusedError(f"{name} is a Ch without an array")
    return _array(x, name)


def _rebuild_select(value: _Recorder, name: str) -> NDArray[Any]:
    """Chumpy's indexing: a.ravel()[idxs].reshape(preferred_shape), for a leaf a."""
    a, idxs, shape = _state(value, name, ("a", "idxs", "preferred_shape"))
    if not (isinstance(a, _Recorder) and a.stands_for in ("Ch", "reconstruct", "frombuffer")):
        raise _RefusedError(f"{name} selects from something other than an array")
    values, indices = _array(a, name).ravel(), _array(idxs, name).ravel()
    if indices.dtype.kind not in "iu" or not _all_within(indices, len(values)):
        raise _RefusedError(f"{name} selects numbers that are not there")
    if not (isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape)):
        raise _RefusedError(f"{name} has no proper shape")
    if _product(shape) != len(indices):
        raise _RefusedError(f"{name} selects {len(indices)} numbers for the shape {shape}")
    return values[indices].reshape(shape)


def _rebuild_csc(value: _Recorder, name: str) -> NDArray[Any]:
    """A sparse matrix by columns: column j has data[indptr[j] : indptr[j + 1]] in the rows indices[...]."""
    state = value.state if isinstance(value.state, dict) else {}
    shape = state.get("_shape", state.get("shape"))
    data, indices, indptr = (_array(part, name) for part in _state(value, name, ("data", "indices", "indptr")))
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(length) is int for length in shape)):
        raise _RefusedError(f"{name} has no proper shape")
    rows, columns = shape
    sound = (
        rows > 0
        and columns > 0
        and rows * columns <= MAX_VALUES
        and data.ndim == indices.ndim == indptr.ndim == 1
        and indices.dtype.kind in "iu"
        and indptr.dtype.kind in "iu"
        and len(indptr) == columns + 1
        and indptr[0] == 0
        and bool((np.diff(indptr.astype(np.int64)) >= 0).all())
        and int(indptr[-1]) == len(indices) == len(data)
        and _all_within(indices, rows)
    )
    if not sound:
        raise _RefusedError(f"{name} is no sound sparse matrix")
    dense = np.zeros((rows, columns), data.dtype)
    starts = indptr.astype(np.int64)
    # add.at: entries that occur twice are summed, as scipy does.
    np.add.at(dense, (indices, np.repeat(np.arange(columns), starts[1:] - starts[:-1])), data)
    return dense


_REBUILD: dict[str, Callable[[_Recorder, str], NDArray[Any]]] = {
    "reconstruct": _rebuild_ndarray,
    "frombuffer": _rebuild_frombuffer,
    "Ch": _rebuild_ch,
    "Select": _rebuild_select,
    "csc_matrix": _rebuild_csc,
}


def _all_within(indices: NDArray[Any], count: int) -> bool:
    return len(indices) == 0 or (int(indices.min()) >= 0 and int(indices.max()) < count)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
