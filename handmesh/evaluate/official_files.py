"""Prediction files in FreiHAND's official form, and its annotation files: hundreds of megabytes of JSON numbers.

A prediction file is ``pred.json``, or a zip with it: ``[xyz, verts]``, first the joints of all images (N x 21 x 3, in
the order of `hand.JOINT_NAMES`), then their vertices (N x 778 x 3), metres, in the order of the images. Joints first.

Reading goes through the file once, a few megabytes at a time, straight into float64 arrays; `json.load` takes ten times
as long, since it makes a Python object of every number, and a gigabyte more. Anything but the expected nesting of
lists is a DataError that names the frame. Numbers are what `float` would make of them, to the last bit from 10
micrometres up (17 digits), to the last but one below.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import DataError
from handmesh.hand import FINGERTIP_VERTICES, JOINT_NAMES
from handmesh.system.atomic import write_atomically
from handmesh.system.kernels import kernel

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]  # (bytes read, bytes in all)

JOINT_COUNT = len(JOINT_NAMES)

_CHUNK = 4 << 20  # bytes read at a time
_MAX_NUMBERS = 150_000_000  # 1.2 GB: twelve thousand vertices for each of FreiHAND's 3,960 frames


class HandPoints(NamedTuple):
    """The hands of N frames, metres, float64. A set without meshes has no vertices."""

    joints: Array  # (N, 21, 3)
    vertices: Array | None  # (N, V, 3); V is 778 for MANO's mesh and the built-in hand's


def read_predictions(path: Path, count: int | None = None, progress: Progress | None = None) -> HandPoints:
    """Read pred.json or a zip with it. `count`: how many frames there must be.

    Raises DataError for everything that the official tool cannot score: another number of frames or joints, xyz and
    verts swapped, values that are not finite, another structure, a damaged file.
    """
    with ExitStack() as stack:
        file, size = _open_predictions(Path(path), stack)
        numbers = _read_numbers(file, size, 4, str(path), progress)
    if len(numbers.parts) != 2:
        raise DataError(
            f"{path} is a list of {len(numbers.parts):,}, wanted [xyz, verts]: all frames' joints, then their vertices."
        )
    sizes = [int(part[0]) if len(part) else 0 for part in numbers.parts]
    if sizes[1] == JOINT_COUNT and sizes[0] > JOINT_COUNT:
        raise DataError(
            f"{path} has {sizes[0]} points per frame first and {sizes[1]} second: xyz and verts are swapped. "
            "Write [xyz, verts], joints first."
        )
    for name, part in zip(("xyz", "verts"), numbers.parts, strict=True):
        _check_count(f"{path}, {name}", len(part), count)
    joints, vertices = numbers.clouds(0, f"{path}, xyz"), numbers.clouds(1, f"{path}, verts")
    if joints.shape[1] != JOINT_COUNT:
        raise DataError(f"{path}: {joints.shape[1]} joints per frame, wanted {JOINT_COUNT}. {_joints_advice(joints)}")
    for name, points in (("xyz", joints), ("verts", vertices)):
        _check_finite(points, f"{path}, {name}")
    return HandPoints(joints, vertices)


def read_points(path: Path, points: int | None = None, progress: Progress | None = None) -> Array:
    """(N, P, D) from an annotation file such as evaluation_xyz.json or evaluation_K.json: a list of lists of lists.

    `points` is the P that is wanted. Raises DataError.
    """
    with ExitStack() as stack:
        file, size = _open_file(Path(path), stack)
        numbers = _read_numbers(file, size, 3, str(path), progress)
    clouds = numbers.clouds(0, str(path))
    if points is not None and clouds.shape[1] != points:
        raise DataError(f"{path}: {clouds.shape[1]} points per frame, wanted {points}.")
    _check_finite(clouds, str(path))
    return clouds


def write_predictions(path: Path, joints: ArrayLike, vertices: ArrayLike) -> None:
    """Write (N, 21, 3) joints and (N, V, 3) vertices, metres, as the official pred.json, or zipped for a .zip.

    Six decimals: a micrometre. Raises DataError for other shapes and values that are not finite, ExportError when the
    file cannot be written.
    """
    clouds = [np.asarray(joints, np.float64), np.asarray(vertices, np.float64)]
    for name, points, wanted in (("joints", clouds[0], JOINT_COUNT), ("vertices", clouds[1], None)):
        if points.ndim != 3 or points.shape[2] != 3 or wanted not in (None, points.shape[1]):
            raise DataError(f"Predicted {name} are (N, {wanted or 'V'}, 3), found {points.shape}.")
        if len(points) != len(clouds[0]):
            raise DataError(f"{len(clouds[0])} frames of joints and {len(points)} of vertices: wanted as many of both.")
        _check_finite(points, f"predicted {name}")
    pieces = (piece for cloud in (b"[", clouds[0], b", ", clouds[1], b"]") for piece in _json_pieces(cloud))
    target = Path(path)
    buffer = io.BytesIO()
    if target.suffix.lower() == ".zip":
        with (
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive,
            archive.open("pred.json", "w", force_zip64=True) as member,
        ):
            for piece in pieces:
                member.write(piece)
    else:
        for piece in pieces:
            buffer.write(piece)
    write_atomically(target, buffer.getvalue())


def _json_pieces(part: bytes | Array) -> Iterable[bytes]:
    if isinstance(part, bytes):
        yield part
        return
    frame_format = "[" + ", ".join(["[%.6f, %.6f, %.6f]"] * part.shape[1]) + "]"
    for index, frame in enumerate(part):
        text = frame_format % tuple(frame.ravel().tolist())
        yield f"{'[' if index == 0 else ', '}{text}".encode("ascii")
    yield b"]" if len(part) else b"[]"


# Opening


def _open_file(path: Path, stack: ExitStack) -> tuple[BinaryIO, int]:
    try:
        return stack.enter_context(path.open("rb")), path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _open_predictions(path: Path, stack: ExitStack) -> tuple[BinaryIO, int]:
    file, size = _open_file(path, stack)
    if path.suffix.lower() != ".zip" and file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return file, size
    file.seek(0)
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = [info for info in archive.infolist() if info.filename.endswith(".json")]
        # The official tool takes pred.json, or whatever single .json there is.
        chosen = [info for info in members if Path(info.filename).name == "pred.json"] or members
        if len(chosen) != 1:
            names = ", ".join(info.filename for info in members[:5]) or "none"
            raise DataError(f"{path} holds {len(chosen)} candidates ({names}), wanted one pred.json (zip -j).")
        return stack.enter_context(archive.open(chosen[0])), chosen[0].file_size  # type: ignore[return-value]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is no whole zip file ({error}): was its download or upload cut short?") from error


# Checking


def _check_count(name: str, found: int, wanted: int | None) -> None:
    if wanted is None or found == wanted:
        return
    advice = "Give one entry for every image, in the order of the images."
    if found and wanted % found == 0:
        shares = wanted // found
        advice = (
            f"That is exactly 1/{shares}: probably each of {shares} processes wrote the part that it predicted. "
            "Put the parts together in the order of the images."
        )
    raise DataError(f"{name}: {found:,} frames, wanted {wanted:,}. {advice}")


def _check_finite(points: Array, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
    if len(bad):
        more = f" ({len(bad):,} such frames)" if len(bad) > 1 else ""
        raise DataError(
            f"{name}: frame {bad[0]} holds values that are not finite numbers{more}. The official tool stops at them, "
            "too: write zeros for a hand that was not found."
        )


def _joints_advice(joints: Array) -> str:
    if joints.shape[1] == 16:
        tips = ", ".join(map(str, FINGERTIP_VERTICES))
        return f"16 are MANO's own joints: append vertices {tips} (the tips) and put them into FreiHAND's order."
    if joints.shape[1] == 20:
        return "20 often lack the wrist: FreiHAND's order starts with it."
    return f"Their order is {', '.join(JOINT_NAMES[:6])}, ..."


# Reading numbers


class _Numbers(NamedTuple):
    values: Array  # all numbers of the file
    frame_sizes: NDArray[np.int32]  # (frames,) points in each frame
    point_sizes: NDArray[np.int32]  # (points,) numbers in each point
    part_sizes: NDArray[np.int32]  # (parts,) frames in each part

    @property
    def parts(self) -> list[NDArray[np.int32]]:
        """For each part of the file, the number of points in each of its frames."""
        return np.split(self.frame_sizes, np.cumsum(self.part_sizes)[:-1]) if len(self.part_sizes) else []

    def clouds(self, part: int, name: str) -> Array:
        """(N, P, D): one part as an array. Raises DataError naming the frame that differs from the first."""
        before = self.parts[:part]
        first_frame, first_point = sum(map(len, before)), sum(int(sizes.sum()) for sizes in before)
        sizes = self.parts[part]
        if len(sizes) == 0:
            raise DataError(f"{name} holds no frames.")
        odd = np.flatnonzero(sizes != sizes[0])
        if len(odd):
            raise DataError(
                f"{name}: frame {odd[0]} has {sizes[odd[0]]} points and frame 0 has {sizes[0]}: wanted as many in all."
            )
        points = self.point_sizes[first_point : first_point + int(sizes.sum())]
        if len(points) == 0:
            raise DataError(f"{name}: frame 0 has no points.")
        # Intrinsics are 3 x 3, so all of FreiHAND's points have three numbers.
        odd = np.flatnonzero(points != 3)
        if len(odd):
            frame, point = divmod(int(odd[0]), int(sizes[0]))
            raise DataError(f"{name}: point {point} of frame {frame} has {points[odd[0]]} numbers, wanted 3.")
        start = 3 * first_point if first_frame else 0
        return self.values[start : start + 3 * len(points)].reshape(len(sizes), int(sizes[0]), 3)


def _read_numbers(file: Any, size: int, depth: int, name: str, progress: Progress | None) -> _Numbers:
    """All numbers of a JSON file of lists that are nested `depth` deep (3: frames; 4: parts of frames)."""
    state = np.zeros(_STATE, np.int64)
    values: list[Array] = []
    closed: list[NDArray[np.int32]] = []
    rest, done, total = b"", 0, 0
    while True:
        try:
            piece = file.read(_CHUNK)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{name} breaks off or is damaged after {done:,} bytes ({error}).") from error
        text = rest + piece
        # A number is never cut: what follows the last separator waits for the next piece.
        end = 1 + max(text.rfind(b","), text.rfind(b"]"), text.rfind(b"[")) if piece else len(text)
        if piece and end == 0 and len(text) > _CHUNK:
            raise DataError(f"{name} is not JSON: no list within {len(text):,} bytes.")
        rest = text[end:]
        found = np.empty(end // 2 + 1)
        lists = np.empty((end // 2 + 1, 2), np.int32)
        _scan(np.frombuffer(text[:end], np.uint8), depth, state, found, lists)
        if state[_FAILED]:
            raise DataError(_explain(text, state, depth, name, closed, lists))
        values.append(found[: state[_FOUND]].copy())
        closed.append(lists[: state[_CLOSED]].copy())
        total += int(state[_FOUND])
        if total > _MAX_NUMBERS:
            raise DataError(f"{name} holds more than {_MAX_NUMBERS:,} numbers: too many for hands.")
        done += len(piece)
        if progress is not None:
            progress(done, size)
        if not piece:
            break
    if state[_DEPTH] or not state[_ENDED]:
        frames = sum(int((part[:, 0] == depth - 1).sum()) for part in closed)
        raise DataError(f"{name} ends in the middle, after {frames:,} whole frames: it was not written to its end.")
    events = np.concatenate(closed)
    by_depth = [events[events[:, 0] == level, 1] for level in range(depth + 1)]
    part_sizes = by_depth[depth - 2] if depth > 3 else by_depth[1]
    return _Numbers(np.concatenate(values), by_depth[depth - 1], by_depth[depth], part_sizes)


def _explain(
    text: bytes, state: NDArray[np.int64], depth: int, name: str, closed: list[NDArray[np.int32]], lists: Any
) -> str:
    frames = sum(int((part[:, 0] == depth - 1).sum()) for part in [*closed, lists[: state[_CLOSED]]])
    position, found_depth = int(state[_POSITION]), int(state[_DEPTH])
    form = "[xyz, verts]: lists of frames of points of three numbers" if depth == 4 else "a list of frames"
    byte = text[position : position + 1]
    if byte == b"{":
        return f"{name} holds a dict {'' if found_depth == 0 else f'in frame {frames} '}where lists are wanted: {form}."
    if state[_FAILED] == _WRONG_DEPTH:
        return f"{name}: frame {frames}: lists are nested {found_depth} deep around a number, wanted {depth}: {form}."
    excerpt = text[position : position + 12].decode("ascii", "replace").split("\n")[0]
    return f"{name} is not JSON of numbers alone: {excerpt!r} in frame {frames}; wanted {form}."


# Where things are in `state`, which goes from piece to piece: counts of children by depth, then these.
_MAX_DEPTH = 8
_DEPTH, _AFTER, _ENDED, _FOUND, _CLOSED, _FAILED, _POSITION = range(_MAX_DEPTH, _MAX_DEPTH + 7)
_STATE = _MAX_DEPTH + 7
_OPENED, _VALUE, _COMMA = 1, 2, 3  # what stood before; 0 at the start
_UNEXPECTED, _WRONG_DEPTH = 1, 2


@kernel()
def _decimal(mantissa: Any, exponent: Any) -> Any:
    """The float64 nearest to mantissa * 10**exponent, for the exponents that hands have.

    Up to 10**22 powers of ten are exact. The mantissa is split into two floats, divided, and the division's remainder
    (Dekker's product) corrects the last bit.
    """
    high = float(mantissa)
    if exponent == 0:
        return high
    if exponent > 22 or exponent < -22:
        return high * 10.0**exponent
    power = 1.0
    for _ in range(abs(exponent)):
        power *= 10.0
    if exponent > 0:
        return high * power
    low = float(np.int64(mantissa - np.uint64(high)))
    quotient = high / power
    a = quotient * 134217729.0  # 2**27 + 1
    a1 = a - (a - quotient)
    a2 = quotient - a1
    b = power * 134217729.0
    b1 = b - (b - power)
    b2 = power - b1
    product = quotient * power
    rounding = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    return quotient + ((high - product) - rounding + low) / power


@kernel()
def _scan(text: Any, wanted_depth: Any, state: Any, values: Any, lists: Any) -> None:
    """Read one piece of JSON that ends behind a separator; numbers into `values`, (depth, length) of closed lists."""
    depth, after, ended = state[_DEPTH], state[_AFTER], state[_ENDED]
    found, closed, failed, i, n = 0, 0, 0, 0, len(text)
    while i < n:
        c = text[i]
        if c == 32 or c == 10 or c == 13 or c == 9:
            i += 1
        elif c == 91:  # [
            if ended or after == _VALUE or (after == 0 and depth > 0):
                failed = _UNEXPECTED
                break
            if depth == wanted_depth:
                failed = _WRONG_DEPTH
                depth += 1
                break
            state[depth] += 1
            depth += 1
            state[depth] = 0
            after = _OPENED
            i += 1
        elif c == 93:  # ]
            if depth == 0 or after == _COMMA:
                failed = _UNEXPECTED
                break
            lists[closed, 0] = depth
            lists[closed, 1] = state[depth]
            closed += 1
            depth -= 1
            after = _VALUE
            ended = depth == 0
            i += 1
        elif c == 44:  # ,
            if after != _VALUE or depth == 0:
                failed = _UNEXPECTED
                break
            after = _COMMA
            i += 1
        else:
            start = i
            if depth == 0 or after == _VALUE:
                failed = _UNEXPECTED
                break
            negative = c == 45
            if negative:
                i += 1
            value = 0.0
            if i < n and text[i] == 78:  # NaN
                value = np.nan
                i += 3
            elif i < n and text[i] == 73:  # Infinity
                value = np.inf
                i += 8
            else:
                mantissa: Any = np.uint64(0)
                digits, exponent, any_digit, point = 0, 0, False, False
                while i < n:
                    c = text[i]
                    if 48 <= c <= 57:
                        any_digit = True
                        if digits < 18:
                            mantissa = mantissa * np.uint64(10) + np.uint64(c - 48)
                            digits += 1 if mantissa > 0 else 0
                            exponent -= point
                        else:
                            exponent += not point
                    elif c == 46 and not point:
                        point = True
                    else:
                        break
                    i += 1
                if i < n and any_digit and (text[i] == 101 or text[i] == 69):
                    i += 1
                    down = i < n and text[i] == 45
                    if i < n and (text[i] == 45 or text[i] == 43):
                        i += 1
                    power, any_digit = 0, False
                    while i < n and 48 <= text[i] <= 57:
                        power = min(power * 10 + (text[i] - 48), 100000)
                        any_digit = True
                        i += 1
                    exponent += -power if down else power
                if not any_digit:
                    i = start
                    failed = _UNEXPECTED
                    break
                value = _decimal(mantissa, exponent)
            if depth != wanted_depth:
                i = start
                failed = _WRONG_DEPTH
                break
            values[found] = -value if negative else value
            found += 1
            state[depth] += 1
            after = _VALUE
    state[_DEPTH], state[_AFTER], state[_ENDED] = depth, after, ended
    state[_FOUND], state[_CLOSED], state[_FAILED], state[_POSITION] = found, closed, failed, i
