"""Prediction files in FreiHAND's official form, and its annotation files: hundreds of megabytes of JSON numbers.

A prediction file is ``pred.json``, or a zip with it: ``[xyz, verts]``, first the joints of all images (N x 21 x 3, in
the order of `hand.JOINT_NAMES`), then their vertices (N x 778 x 3), metres, in the order of the images. Joints first.

Reading goes through the file once, a few megabytes at a time, straight into float64 arrays (`json_arrays`); `json.load`
would take a gigabyte more. Anything but the expected nesting of lists is a DataError that names the frame.
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

from handmesh.data.formats.json_arrays import iterate_json_lists
from handmesh.errors import DataError
from handmesh.hand import FINGERTIP_VERTICES, JOINT_NAMES
from handmesh.system.atomic import write_atomically

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]  # (bytes read, bytes in all)

JOINT_COUNT = len(JOINT_NAMES)

_MAX_FRAME_NUMBERS = 37_500  # twelve thousand vertices and the joints
_MAX_NUMBERS = 150_000_000  # 1.2 GB: so many for each of FreiHAND's 3,960 frames


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
        most = _MAX_NUMBERS if count is None else min(_MAX_NUMBERS, _MAX_FRAME_NUMBERS * count)
        numbers = _read_numbers(file, size, 4, str(path), progress, most)
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
    frame_sizes: NDArray[np.int64]  # (frames,) points in each frame
    point_sizes: NDArray[np.int64]  # (points,) numbers in each point
    part_sizes: NDArray[np.int64]  # (parts,) frames in each part

    @property
    def parts(self) -> list[NDArray[np.int64]]:
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


def _read_numbers(
    file: Any, size: int, depth: int, name: str, progress: Progress | None, most: int = _MAX_NUMBERS
) -> _Numbers:
    """All numbers of a JSON file of lists that are nested `depth` deep (3: frames; 4: parts of frames)."""
    form = "[xyz, verts]: lists of frames of points of three numbers" if depth == 4 else "a list of frames of points"
    values: list[Array] = []
    lengths: list[list[NDArray[np.int64]]] = []
    done, total = 0, 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, size)

    try:
        for piece in iterate_json_lists(file, depth, name, form, frame_depth=depth - 1, on_bytes=on_bytes):
            values.append(piece.values)
            lengths.append(piece.lengths)
            total += len(piece.values)
            if total > most:
                whose = "hands" if most == _MAX_NUMBERS else f"the hands of {most // _MAX_FRAME_NUMBERS:,} frames"
                raise DataError(f"{name} holds more than {most:,} numbers: too many for {whose}.")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{name} breaks off or is damaged after {done:,} bytes ({error}).") from error
    parts, frames, points = (np.concatenate(level) for level in list(zip(*lengths, strict=True))[-3:])
    return _Numbers(np.concatenate(values), frames, points, parts)
