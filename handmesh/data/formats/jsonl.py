"""Your own photographs: one JSON object per line, with any subset of labels.

    {"image": "photos/0001.jpg", "handedness": "left", "box": [40, 30, 210, 200], "keypoints": [[61.5, 180.2, 1], ...]}

Only `image` is required; a label that is missing (or null) switches its losses off for that sample. The keys, their
shapes and units are in `records.KEYS` and in docs/how_to/data.md. A key that is not known is an error, since a misspelt
label would be a silently missing one; keep what you like under "facts". `handmesh synth --out` writes this form.

The file is read once for the places of its lines; labels are parsed when a sample is asked for.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats.records import LabelledPhotos
from handmesh.data.sample import LabelledHand
from handmesh.errors import DataError
from handmesh.hand.models import name_of

LABELS_FILE = "labels.jsonl"
MAX_LINE_BYTES = 1 << 20  # all labels of a hand with vertices to 17 digits take 50 kB


class JsonlData(LabelledPhotos):
    """A JSONL file of photographs with labels."""

    kind = "JSONL"

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """`path` is the file, or a folder with a labels.jsonl in it. `for_scoring`: see `RawSample`.

        Raises DataError when there is no such file or it holds no lines.
        """
        path = Path(path)
        super().__init__(path / LABELS_FILE if path.is_dir() else path, for_scoring=for_scoring)
        if not len(self):
            raise DataError(f"{self.path} is empty: wanted one JSON object per line (see docs/how_to/data.md).")

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Any file, and a folder with a labels.jsonl."""
        return path.is_file() or (path / LABELS_FILE).is_file()

    @cached_property
    def _starts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each line that is not blank begins, and its number counted from 1."""
        starts, numbers, position = [], [], 0
        try:
            with open(self.path, "rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                    if len(line) > MAX_LINE_BYTES:
                        raise DataError(
                            f"{self.path}:{number} is longer than {MAX_LINE_BYTES >> 10} kB: wanted one JSON object "
                            "per line. Is it one large JSON list?"
                        )
                    if line.strip():
                        starts.append(position)
                        numbers.append(number)
                    position += len(line)
        except FileNotFoundError:
            raise DataError(f"There is no {self.path}: give a JSONL file, or a folder with {LABELS_FILE}.") from None
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        return np.array(starts, np.int64), np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._starts[0])

    @cached_property
    def labelled_hand(self) -> LabelledHand | None:
        """Whose vertices, poses and shapes the labels are, where the meta.json of `handmesh synth --out` says so.

        Of other files it is not known: they are taken for those of the hand that is trained or scored.
        """
        try:
            meta = json.loads((self.path.parent / "meta.json").read_text(encoding="utf-8"))
            sha256 = meta["hand_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(sha256, str):
            return None
        return LabelledHand(name_of(sha256) or "another hand", sha256)

    def where(self, index: int) -> str:
        """File and line of a sample, for messages."""
        return f"{self.path}:{self._starts[1][index]}"

    def read(self, index: int) -> Any:
        """The object on a line. Raises DataError."""
        with open(self.path, "rb") as file:
            file.seek(int(self._starts[0][index]))
            line = file.readline(MAX_LINE_BYTES)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where(index)} is no JSON: {error}.") from None
