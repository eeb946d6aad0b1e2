"""Reading pickles without running anything that is in them, for files of arrays that were published as pickles.

A pickle is a program. Here:

1. Its opcodes are scanned without executing any: only those that build plain values, bounded memo indices (CPython
   allocates its memo up to the largest index: nine bytes can ask for 16 GB, python/cpython#115952), and an exact list
   of class names.
2. It is unpickled with that list alone, and each name stands for an inert recorder, which keeps its arguments and does
   nothing. No function or class of numpy, scipy or chumpy can be reached.
3. `array` rebuilds arrays from what the recorders hold: known dtypes only, and as many bytes as the shape needs,
   checked before anything is allocated.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 4_000_000  # numbers in one array; MANO's largest, posedirs, has 315,090


class InertPickleError(Exception):
    """Why a file is not read, to be said after its name: "is refused: ...", "is damaged, or no ...: ..."."""


class _RefusedError(Exception):
    """Why a pickle is not accepted."""


def read_pickle(
    content: bytes, kind: str, arrays: Collection[str], others: Collection[str] = (), *, text: bool = False
) -> dict[str, Any]:
    """Of the dictionary in a pickle, what stands under some names: `arrays` rebuilt, `others` (plain values) as it is.

    An array that is None is left out. `kind` is what messages call such a file. `text`: the text of protocols 0 and 1,
    which Python 2 wrote by default, is read, too. Raises InertPickleError for a file that is hostile, damaged, or
    something else.
    """
    try:
        _scan(content, kind, _OPCODES | _TEXT_OPCODES if text else _OPCODES)
        found = _InertUnpickler(io.BytesIO(content), fix_imports=False, encoding="latin1").load()
        if not isinstance(found, dict):
            raise _RefusedError(f"it holds a {type(found).__name__}, wanted a dictionary")
        rebuilt = {name: array(found[name], name) for name in arrays if found.get(name) is not None}
        return rebuilt | {name: found[name] for name in others if name in found}
    except _RefusedError as error:
        raise InertPickleError(f"is refused: {error}.") from None
    except RecursionError:
        raise InertPickleError("is refused: it is nested without end.") from None
    except Exception as error:  # what a damaged pickle makes the interpreter raise can be of any kind
        raise InertPickleError(f"is damaged, or no {kind}: {type(error).__name__}: {str(error)[:200]}.") from error


# Opcodes that push values, build containers, and call what `find_class` answers: what pickle protocols 2 to 5 write for
# dictionaries of arrays. Missing on purpose: INST, OBJ, NEWOBJ_EX, EXT1-4, PERSID, BINPERSID, DUP, LONG4.
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
# The same of protocols 0 and 1.
_TEXT_OPCODES = frozenset(("INT", "LONG", "FLOAT", "STRING", "UNICODE", "DICT", "LIST", "TUPLE", "PUT", "GET"))
_MAX_OPCODES = 200_000  # MANO's files have about 500
_MAX_MEMO = 100_000


def _scan(content: bytes, kind: str, allowed: frozenset[str]) -> None:
    """Look at every opcode before the first one is executed."""
    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(content)
    for count, (opcode, argument, at) in enumerate(instructions):
        position = at or 0  # never None for bytes
        if opcode.name not in allowed:
            raise _RefusedError(f"it uses {opcode.name} at byte {position}, which no {kind} needs")
        if count > _MAX_OPCODES:
            raise _RefusedError(f"it has over {_MAX_OPCODES} instructions")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > _MAX_MEMO:
            raise _RefusedError(f"it asks for a memo of {argument} entries at byte {position}")
        if opcode.name == "FRAME" and argument > len(content):
            raise _RefusedError(f"it announces a frame of {argument} bytes at byte {position}")
        if opcode.name == "GLOBAL":
            module, _, name = argument.partition(" ")
            if (module, name) not in _RECORDERS:
                raise _RefusedError(f"it names {module}.{name}, which no {kind} needs")
        if opcode.name == "STOP" and position != len(content) - 1:
            raise _RefusedError(f"{len(content) - 1 - position} bytes follow its end")


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
        "scalar": [("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")],
    }
    return {place: kind for name, places in names.items() for kind in [_recorder(name)] for place in places}


_RECORDERS = _make_recorders()


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        recorder = _RECORDERS.get((module, name))
        if recorder is None:
            raise _RefusedError(f"it names {module}.{name}, which is not needed")
        return recorder

    def persistent_load(self, _: Any) -> Any:
        raise _RefusedError("it refers to something outside itself")


# ---------------------------------------------------------------------------------------------------- rebuilding

_DTYPES = frozenset({"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


def array(value: Any, name: str) -> NDArray[Any]:
    """The numbers that a recorder, or a list of them and of plain numbers, stands for."""
    if isinstance(value, list | tuple):
        return np.array([one if type(one) in (int, float) else array(one, name).item() for one in value], np.float64)
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


def _rebuild_scalar(value: _Recorder, name: str) -> NDArray[Any]:
    """scalar(dtype, bytes)."""
    if len(value.arguments) != 2:
        raise _RefusedError(f"{name} has no number in it")
    return _numbers(value.arguments[1], _dtype(value.arguments[0], name), (), "C", name)


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
    return array(x, name)


def _rebuild_select(value: _Recorder, name: str) -> NDArray[Any]:
    """Chumpy's indexing: a.ravel()[idxs].reshape(preferred_shape), for a leaf a."""
    a, idxs, shape = _state(value, name, ("a", "idxs", "preferred_shape"))
    if not (isinstance(a, _Recorder) and a.stands_for in ("Ch", "reconstruct", "frombuffer")):
        raise _RefusedError(f"{name} selects from something other than an array")
    values, indices = array(a, name).ravel(), array(idxs, name).ravel()
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
    data, indices, indptr = (array(part, name) for part in _state(value, name, ("data", "indices", "indptr")))
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
    "scalar": _rebuild_scalar,
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
