"""Our own detector: every hand of a photograph, its side and which way it points, from one look at 320 px.

What it is and how well it does: handmesh/assets/handmesh_detector.md. `handmesh.hand.grid` says how its answer is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handmesh.detect.detector import Detection, Image
from handmesh.detect.overlap import box_iou, deduplicate
from handmesh.errors import CheckpointError
from handmesh.files.image import LargePhoto, Photo
from handmesh.geometry.box import Box
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness
from handmesh.hand.grid import FoundHand, decode, fitted, in_image
from handmesh.runtime.detector_graph import FORMAT, INPUT, RECORD
from handmesh.runtime.onnx import metadata_in, session_of
from handmesh.system.cpus import checked_threads

BUNDLED_DETECTOR = Path(__file__).parents[1] / "assets" / "handmesh_detector.onnx"
SIDE = 320  # px, the longer side of the picture that it looks at
_PART_SHARE = 0.6  # of the photograph's sides: what a thorough search looks at by itself
# In a given box there is a hand: it is looked at in a square of so many of the box's longer sides, at so many pixels,
# and what has a little score and lies there is that hand.
_BOX_MARGIN, _BOX_SIDE, _BOX_MIN_SCORE, _BOX_IOU = 2.0, 192, 0.05, 0.3
MIN_SCORE = 0.02  # lower ones are not worth a second look (measured: its card)


class HandDetector:
    """Finds hands of 5 % of a photograph's longer side to larger than it. Safe to call from several threads."""

    name = "hand detector"
    searches = True

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        min_score: float = MIN_SCORE,
        threads: int | None = None,
        spinning: bool = True,
    ) -> None:
        """`path`: of a detector that `handmesh train` wrote; None: the bundled one. `spinning` as of an `OnnxEngine`.

        Raises CheckpointError, ConfigError.
        """
        file = BUNDLED_DETECTOR if path is None else Path(path)
        if not file.is_file():
            raise CheckpointError(f"No detector at {file}. Give the path of a .onnx file that `handmesh train` wrote.")
        count = checked_threads(threads)
        try:
            self._session = session_of(file, count, spinning=spinning)
            record = json.loads(metadata_in(self._session)[RECORD])
        except KeyError:
            raise CheckpointError(f"{file} is a graph, but not a detector of handmesh's.") from None
        except Exception as error:  # ONNX Runtime's own have no common root
            raise CheckpointError(f"{file} cannot be read as a detector: {str(error).splitlines()[0]}") from None
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{file} has detector format {record['format']}, this version reads {FORMAT}. Update handmesh."
            )
        self.record = record
        self.min_score = min_score

    def __call__(self, image: Image) -> list[Detection]:
        return self.find(image)

    def find(self, image: Image, *, thorough: bool = False) -> list[Detection]:
        """The hands of an (H, W, 3) uint8 RGB image, most certain first, each once.

        `thorough`: looks at four overlapping parts of it, too, for hands below a tenth of its longer side.
        """
        found = self._look(image, (0, 0))
        if thorough:
            for top, left, part in _parts(image):
                found += self._look(part, (left, top))
        return deduplicate([_detection(hand) for hand in found])

    def rotations(self, photo: Photo | LargePhoto, boxes: Sequence[Box]) -> list[float | None]:
        """For the hand in each box the crop rotation in which it points up; None where it sees no hand there."""
        if not boxes:
            return []
        crops = [CropTransform.around_box(box, _BOX_MARGIN) for box in boxes]
        pictures = np.stack([photo.warp(crop, _BOX_SIDE) for crop in crops])
        (grids,) = self._session.run(None, {INPUT: pictures})
        rotations: list[float | None] = []
        for grid, crop, box in zip(grids, crops, boxes, strict=True):
            found = []
            for hand in decode(grid, _BOX_MIN_SCORE):
                corners = (np.array(hand.box).reshape(2, 2) + 0.5) / _BOX_SIDE * 2 - 1
                found.append((box_iou(crop.to_image(corners).ravel().tolist(), box), hand.rotation))
            overlap, rotation = max(found, default=(0.0, 0.0))
            rotations.append(rotation if overlap >= _BOX_IOU else None)
        return rotations

    def _look(self, image: Image, corner: tuple[int, int]) -> list[FoundHand]:
        picture, scale = fitted(image, SIDE)
        (grid,) = self._session.run(None, {INPUT: picture[None]})
        hands = []
        for hand in decode(grid[0], self.min_score):
            x0, y0, x1, y1 = in_image(hand.box, scale)
            box = (x0 + corner[0], y0 + corner[1], x1 + corner[0], y1 + corner[1])
            hands.append(hand._replace(box=box))
        return hands


def is_detector(path: str | Path) -> bool:
    """Whether a file is a detector of ours, by the name of its record, which stands in the file as it is."""
    try:
        return RECORD.encode() in Path(path).read_bytes()
    except OSError:
        return False


def _detection(hand: FoundHand) -> Detection:
    side = Handedness.RIGHT if hand.right > 0.5 else Handedness.LEFT
    certain = max(hand.right, 1 - hand.right)
    return Detection(hand.box, side, hand.score, "hand detector", hand.rotation, certain, is_probability=True)


def _parts(image: NDArray[np.uint8]) -> list[tuple[int, int, NDArray[np.uint8]]]:
    """(top, left, pixels) of overlapping parts that together are the image."""
    height, width = image.shape[:2]
    size = (max(round(height * _PART_SHARE), 1), max(round(width * _PART_SHARE), 1))
    return [
        (top, left, image[top : top + size[0], left : left + size[1]])
        for top in (0, height - size[0])
        for left in (0, width - size[1])
    ]
