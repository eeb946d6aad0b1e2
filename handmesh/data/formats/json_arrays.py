"""Large JSON files of numbers, read as a stream: FreiHAND's vertices are 1.7 GB of text and 76 million numbers.

Nested lists, ``[[[x, y, z], ...], ...]``, are read in pieces of a few megabytes. Of each piece the brackets and commas
are checked, and the numbers between them are parsed by numpy: exact to the last bit, and never a value in the wrong
place. NaN and Infinity, which Python's json writes, are passed on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import DataError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

PIECE_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it
_SPACE = b" \t\r\n"
_IN_NUMBERS = b"0123456789+-.eE" + b"NaInfinity"
_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_LONGEST_NUMBER = 64  # characters; more between two commas is no number
_MAX_SPREAD = 1_000  # bytes for each number, ten times what indentation takes: 1 MB of zip has a GB of blanks

# Marks: the characters between numbers.
_START, _OPEN, _CLOSE, _COMMA = range(4)
_MARKS = np.zeros(256, np.uint8)
_MARKS[list(b"[],")] = (_OPEN, _CLOSE, _COMMA)
# [mark before, whether something stands between, mark]
_ALLOWED = np.zeros((4, 2, 4), bool)
_ALLOWED[_START, 0, _OPEN] = True
_ALLOWED[_OPEN, 0, [_OPEN, _CLOSE]] = True
_ALLOWED[_OPEN, 1, [_COMMA, _CLOSE]] = True
_ALLOWED[_COMMA, 0, _OPEN] = True
_ALLOWED[_COMMA, 1, [_COMMA, _CLOSE]] = True
_ALLOWED[_CLOSE, 0, [_COMMA, _CLOSE]] = True


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Piece(NamedTuple):
    """What a piece of a file adds."""

    values: Floats
    lengths: list[Counts]  # by depth, from the outermost: of each list that ended, in order


def read_json_array(path: str | os.PathLike[str], shape: tuple[int, ...]) -> Floats:
    """Read a JSON list of frames of `shape` -> (N, *shape) float64.

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
    form = f"a JSON list of frames of {' x '.join(map(str, shape)) or '1'} numbers"
    frame_numbers, left, ended = int(np.prod(shape, dtype=int)), np.empty(0), [0] * len(shape)
    for piece in iterate_json_lists(file, 1 + len(shape), name, form, on_bytes=on_bytes):
        for depth, (wanted, lengths) in enumerate(zip(shape, piece.lengths[1:], strict=True)):
            wrong = np.flatnonzero(lengths != wanted)
            if len(wrong):
                frame = (ended[depth] + int(wrong[0])) // int(np.prod(shape[:depth], dtype=int))
                what = f"has a list of {lengths[wrong[0]]} where one of {wanted} belongs"
                raise _refusal(name, what, frame, form)
            ended[depth] += len(lengths)
        values = np.concatenate([left, piece.values])
        whole = len(values) // frame_numbers
        if whole:
            yield values[: whole * frame_numbers].reshape(whole, *shape)
        left = values[whole * frame_numbers :]


def iterate_json_lists(
    file: ByteStream,
    depth: int,
    name: str,
    form: str,
    *,
    frame_depth: int = 2,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Piece]:
    """A file of numbers in lists that are nested `depth` deep, of any lengths, piece by piece.

    Raises DataError for anything else, naming the frame: which of the lists nested `frame_depth` deep. `form` is what
    the message says was wanted.
    """
    scanner = _Scanner(depth, name, form, frame_depth)
    left = b""
    while piece := file.read(PIECE_BYTES):
        if on_bytes is not None:
            on_bytes(len(piece))
        text = left + piece
        if scanner.last == _START:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                left = text
                continue
            text = text.removeprefix(_BOM).lstrip(_SPACE)
            if text and text[:1] != b"[":
                what = "holds a dict where lists are wanted" if text[:1] == b"{" else f"starts with {_shown(text)}"
                raise scanner.refusal(what, 0)
        # The number at the end may go on in the next piece.
        cut = max(text.rfind(b","), text.rfind(b"]"), text.rfind(b"[")) + 1
        text, left = text[:cut], text[cut:] if text[cut:].strip(_SPACE) else b""
        numbers = 0
        if text:
            scanned = scanner.scan(text)
            numbers = len(scanned.values)
            yield scanned
        if len(piece) == PIECE_BYTES and numbers < len(piece) // _MAX_SPREAD:
            raise scanner.refusal(f"has {len(piece):,} bytes with hardly a number in them", scanner.frames)
        if len(left) > _LONGEST_NUMBER:
            raise scanner.refusal(f"has {_shown(left)} where a number should be", scanner.frames)
    if scanner.last == _START:
        raise DataError(f"{name} is empty: was it copied or downloaded completely?")
    if scanner.depth:
        raise DataError(
            f"{name} ends in the middle, after {scanner.frames:,} whole frames: was it copied or downloaded completely?"
        )
    if left:
        raise scanner.refusal("goes on after its end", scanner.frames)


class _Scanner:
    """Checks nested lists piece by piece. A piece ends behind a mark."""

    def __init__(self, wanted_depth: int, name: str, form: str, frame_depth: int) -> None:
        self.wanted_depth, self.name, self.form, self.frame_depth = wanted_depth, name, form, frame_depth
        self.last, self.depth, self.frames = _START, 0, 0
        self.commas = [0] * wanted_depth  # so far, in the list that is open at each depth

    def scan(self, text: bytes) -> Piece:
        marks = _MARKS[np.frombuffer(text.translate(None, _IN_NUMBERS + _SPACE), np.uint8)]
        if marks.all():
            before = np.concatenate([np.array([self.last], np.uint8), marks[:-1]])
            # Where the marks are right, so are these: a list that closes as it opens holds one number.
            filled = (before != _CLOSE) & (marks != _OPEN)
            values = _numbers(text)
            if len(values) == np.count_nonzero(filled):
                return self._checked(values, marks, before, filled, text)
        # Something is no number, there are empty lists, or marks are wrong.
        dense = text.translate(None, _SPACE)
        marks = _MARKS[np.frombuffer(dense, np.uint8)]
        at = np.flatnonzero(marks)
        marks, filled = marks[at], np.diff(at, prepend=-1) > 1
        before = np.concatenate([np.array([self.last], np.uint8), marks[:-1]])
        return self._checked(None, marks, before, filled, text)

    def _checked(
        self,
        values: Floats | None,
        marks: NDArray[np.uint8],
        before: NDArray[np.uint8],
        filled: NDArray[np.bool_],
        text: bytes,
    ) -> Piece:
        """`filled`: whether something stands before a mark. `values`: None where they have to be read one by one."""
        opens, closes, commas = marks == _OPEN, marks == _CLOSE, marks == _COMMA
        after = self.depth + np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32)
        depth = after + closes - opens  # of the list in which a mark stands, for ] the one that it ends
        wrong = ~_ALLOWED[before, filled.view(np.int8), marks] | (after > self.wanted_depth)
        wrong |= ((depth == 0) & (before != _START)) | (filled & (depth != self.wanted_depth))
        ends = [closes & (depth == level) for level in range(1, self.wanted_depth + 1)]
        if wrong.any():
            i = int(wrong.argmax())
            ended = depth[i] == 0 and before[i] != _START
            self._refuse(text, i, int(marks[i]), int(max(depth[i], after[i])), ended, self._frame(ends, filled, i))
        lengths = []
        for level, ending in enumerate(ends):
            counts = np.cumsum(commas & (depth == level + 1))
            at_ends = counts[ending]
            empty = (before[ending] == _OPEN) & ~filled[ending]
            lengths.append(np.where(empty, 0, np.diff(at_ends, prepend=-self.commas[level]) + 1))
            self.commas[level] = int(counts[-1]) + (-int(at_ends[-1]) if len(at_ends) else self.commas[level])
        if values is None:
            values = self._numbers_one_by_one(text, ends, filled)
        self.last, self.depth, self.frames = int(marks[-1]), int(after[-1]), self._frame(ends, filled, len(marks))
        return Piece(values, lengths)

    def _frame(self, ends: list[NDArray[np.bool_]], filled: NDArray[np.bool_], mark: int) -> int:
        """How many frames are whole before a mark. Frames that are no lists are numbers."""
        whole = ends[self.frame_depth - 1] if self.frame_depth <= self.wanted_depth else filled
        return self.frames + int(whole[:mark].sum())

    def _numbers_one_by_one(self, text: bytes, ends: list[NDArray[np.bool_]], filled: NDArray[np.bool_]) -> Floats:
        """Slow: for text that has something else, or empty lists."""
        where = np.flatnonzero(filled)
        values = np.empty(len(where))
        for i, token in enumerate(re.findall(rb"[^][,\s][^][,]*", text)):
            try:
                values[i] = float("no number" if token.translate(None, _IN_NUMBERS + _SPACE) else token)
            except ValueError:
                what = f"has {_shown(token.strip(_SPACE))} where a number should be"
                raise self.refusal(what, self._frame(ends, filled, int(where[i]))) from None
        return values

    def _refuse(self, text: bytes, number: int, mark: int, depth: int, ended: bool, frame: int) -> None:
        """Say what is wrong about a mark of `text`, counted from 0."""
        between = re.split(rb"[][,]", text, maxsplit=number + 1)[number].translate(None, _SPACE)
        if ended:
            raise self.refusal("goes on after its end", frame)
        if between[:1] == b"{":
            raise self.refusal("holds a dict where lists are wanted", frame)
        if between.translate(None, _IN_NUMBERS):
            raise self.refusal(f"has {_shown(between)} where a number should be", frame)
        if depth > self.wanted_depth or (between and depth != self.wanted_depth):
            what = f"has lists nested {depth} deep around a number, wanted {self.wanted_depth}"
            raise self.refusal(what, frame)
        if mark == _OPEN:
            raise self.refusal("has '[' where ',' or ']' belongs", frame)
        raise self.refusal(f"has {_shown(between)} where a number should be", frame)

    def refusal(self, what: str, frame: int) -> DataError:
        return _refusal(self.name, what, frame, self.form)


def _numbers(text: bytes) -> Floats:
    """The numbers of a sound piece; fewer or none of another."""
    try:
        return np.fromstring(text.translate(_TO_SPACES).strip(_SPACE + b","), sep=",")
    except (ValueError, DeprecationWarning):  # numpy's answer to text that is no number has changed
        return np.empty(0)


def _refusal(name: str, what: str, frame: int, form: str) -> DataError:
    return DataError(f"{name} {what} (frame {frame}): wanted {form}. Is it another file, or a damaged one?")


def _shown(text: bytes) -> str:
    return repr(text[:12].decode("latin-1"))
