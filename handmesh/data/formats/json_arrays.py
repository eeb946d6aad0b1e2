"""Large JSON files of numbers, read as a stream: FreiHAND's vertices are 1.7 GB of text and 76 million numbers.

A list of frames of one shape, ``[[[x, y, z], ...], ...]``, is read in pieces of a few megabytes. The brackets and
commas of each piece are compared with what the shape demands, and the numbers between them are parsed by numpy: exact
to the last bit, and never a value in the wrong place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import DataError

Floats = NDArray[np.float64]

PIECE_BYTES = 1 << 22
_SPACE = b" \t\r\n"
_NUMBERS = b"0123456789+-.eE" + _SPACE + b"NaInfinity"  # Python's json writes NaN and Infinity
_TO_SPACES = bytes.maketrans(b"[],", b"   ")
_LONGEST_NUMBER = 64  # characters; more between two commas is no number


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_json_array(path: str | os.PathLike[str], shape: tuple[int, ...]) -> Floats:
    """Read a JSON list of frames of `shape` -> (N, *shape) float64. NaN and Infinity are passed on.

    Peak memory is about twice the result. Raises DataError when the file is missing, cut off, or holds anything but
    frames of that shape; the message names the first frame that does not fit.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            blocks = list(iterate_json_array(file, shape, str(path)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return np.concatenate(blocks) if blocks else np.empty((0, *shape))


def iterate_json_array(
    file: ByteStream, shape: tuple[int, ...], name: str, on_bytes: Callable[[int], None] | None = None
) -> Iterator[Floats]:
    """The frames of an open file in blocks (n, *shape) of a few megabytes. `name` is what a DataError calls the file.

    `on_bytes` is told how many bytes each piece had.
    """
    return _Frames(shape, name).read(file, on_bytes)


class _Frames:
    """After the first ``[`` the structure is one period per frame: the frame's brackets and commas, then a comma.

    The last comma is a ``]`` instead.
    """

    def __init__(self, shape: tuple[int, ...], name: str) -> None:
        self.shape, self.name = shape, name
        self.period = _structure(shape) + b","
        self.frame_numbers = int(np.prod(shape, dtype=int))
        # Numbers complete after each character of a period: one ends wherever a bracket did not just close.
        ends = [before != ord("]") and after != ord("[") for before, after in pairwise(b"," + self.period)]
        self.numbers_after = np.concatenate([[0], np.cumsum(ends)]).tolist()
        self.expected = self.period * (PIECE_BYTES // len(self.period) + 2)
        self.position = 0  # structural characters consumed after the opening bracket
        self.numbers = 0

    def read(self, file: ByteStream, on_bytes: Callable[[int], None] | None) -> Iterator[Floats]:
        left_bytes, left_numbers = b"", np.empty(0)
        opened = closed = False
        while piece := file.read(PIECE_BYTES):
            if on_bytes is not None:
                on_bytes(len(piece))
            text = left_bytes + piece
            if not opened:
                text = text.lstrip(_SPACE)
                if not text:
                    continue
                if text[:1] != b"[":
                    raise self._error(f"starts with {_shown(text)}")
                text, opened = text[1:], True
            # The number at the end may go on in the next piece.
            cut = max(text.rfind(b","), text.rfind(b"]"), text.rfind(b"[")) + 1
            text, left_bytes = text[:cut], text[cut:]
            if len(left_bytes) > _LONGEST_NUMBER and left_bytes.strip(_SPACE):
                raise self._error(f"has {_shown(left_bytes)} where a number should be")
            if closed and text:
                raise self._error("goes on after its end")
            closed = closed or self._check_structure(text)
            values = np.concatenate([left_numbers, self._parse(text)])
            whole = len(values) // self.frame_numbers
            if whole:
                yield values[: whole * self.frame_numbers].reshape(whole, *self.shape)
            left_numbers = values[whole * self.frame_numbers :]
        if not closed:
            what = "is empty" if not opened else f"ends in the middle, at frame {self.position // len(self.period)}"
            raise DataError(f"{self.name} {what}: was it copied or downloaded completely?")
        if left_bytes.strip(_SPACE):
            raise self._error("goes on after its end")

    def _check_structure(self, text: bytes) -> bool:
        """Consume the structure of `text`; True when the list ended with it."""
        found = text.translate(None, _NUMBERS)
        if not found:
            return False
        offset = self.position % len(self.period)
        wanted = self.expected[offset : offset + len(found)]
        if found == wanted:
            self.position += len(found)
            return False
        at = int((np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8)).argmax())
        self.position += at
        ends = found[at : at + 1] == b"]" and (self.position + 1) % len(self.period) == 0
        if ends or (found[at:] == b"]" and self.position == 0):  # the last frame, or an empty list
            if len(found) > at + 1:
                raise self._error("goes on after its end")
            self.position += 1
            return True
        raise self._error(f"has {found[at : at + 1].decode('latin-1')!r} where {chr(wanted[at])!r} belongs")

    def _parse(self, text: bytes) -> Floats:
        """The numbers of `text`, whose structure is right."""
        dense = text.translate(None, _SPACE)
        missing = any(pair in dense for pair in (b",,", b"[,", b",]"))
        try:
            values = np.fromstring(text.translate(_TO_SPACES), sep=" ") if dense.strip(b"[],") else np.empty(0)
        except (ValueError, DeprecationWarning):  # numpy's answer to text that is no number has changed
            missing, values = True, np.empty(0)
        periods, rest = divmod(self.position, len(self.period))
        wanted = periods * self.frame_numbers + self.numbers_after[rest]
        if self.position == 1 and not self.numbers and not len(values) and not missing:  # an empty list
            return values
        if missing or self.numbers + len(values) != wanted:
            self._refuse_numbers(text)
        self.numbers += len(values)
        return values

    def _refuse_numbers(self, text: bytes) -> None:
        """Say which number is none: slow, and only for text that is known to have one."""
        for index, token in enumerate(re.findall(rb"(?<=[,\[])[^][,]*(?=[],])", b"," + text)):
            try:
                float(token)
            except ValueError:
                frame = (self.numbers + index) // self.frame_numbers
                raise self._error(f"has {_shown(token)} where a number should be", frame) from None
        raise self._error("has something that is no number")

    def _error(self, what: str, frame: int | None = None) -> DataError:
        frame = self.position // len(self.period) if frame is None else frame
        size = " x ".join(map(str, self.shape)) or "1"
        return DataError(
            f"{self.name} {what} (frame {frame}): wanted a JSON list of frames of {size} numbers. Is it another "
            "file, or a damaged one?"
        )


def _structure(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of one frame."""
    if not shape:
        return b""
    return b"[" + b",".join([_structure(shape[1:])] * shape[0]) + b"]"


def _shown(text: bytes) -> str:
    return repr(text[:12].decode("latin-1"))
