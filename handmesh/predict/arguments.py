"""What callers may say about a photograph: boxes, handedness and camera, in the forms that people have them in.

Everything raises ConfigError for what it cannot mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import ConfigError
from handmesh.files.image import LargePhoto, Photo
from handmesh.geometry.box import Box, checked_box
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import Handedness

AUTO = "auto"  # as a handedness: find out

Boxes = Sequence[Sequence[float]] | Sequence[float] | NDArray[Any]


def parse_boxes(boxes: Boxes, size: tuple[int, int]) -> list[Box]:
    """Rows of x0, y0, x1, y1, or one box. A fifth number, a detector's score, is not used. `size`: of the photo."""
    try:
        rows = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError):
        rows = np.zeros(())
    if rows.ndim == 1 and rows.size:
        rows = rows[None]
    if rows.size and not (rows.ndim == 2 and rows.shape[1] in (4, 5)):
        raise ConfigError(f"Boxes {boxes!r}: wanted x0, y0, x1, y1 in pixels, once or for each hand.")
    if rows.size and rows.shape[1] == 5 and not ((rows[:, 4] >= 0) & (rows[:, 4] <= 1)).all():
        raise ConfigError(f"Boxes {boxes!r}: of five numbers the last is a score from 0 to 1.")
    return [checked_box(row[:4], size) for row in rows] if rows.size else []


def parse_handedness(handedness: Handedness | str) -> str:
    """Handedness.RIGHT, Handedness.LEFT or "auto", whatever the case of the letters."""
    text = handedness.strip().lower() if isinstance(handedness, str) else handedness
    if text not in (*Handedness, AUTO):
        raise ConfigError(f"Handedness {handedness!r}: wanted 'right', 'left' or 'auto'.")
    return AUTO if text == AUTO else Handedness(text)


def parse_sides(handedness: Handedness | str | Sequence[Handedness | str], count: int) -> list[str]:
    """For each hand "right", "left" or "auto"; given once for all, or once for each."""
    if isinstance(handedness, str) or not isinstance(handedness, Sequence | np.ndarray):
        return [parse_handedness(handedness)] * count
    if len(handedness) != count:
        raise ConfigError(
            f"Handedness is a list of {len(handedness)}: wanted one for all hands, or with boxes one for each of them."
        )
    return [parse_handedness(side) for side in handedness]


def parse_camera(
    photo: Photo | LargePhoto, intrinsics: Intrinsics | ArrayLike | None, focal: float | None, fov: float | None
) -> Intrinsics:
    """The camera of a photograph: as given, else by its EXIF focal length, else a default lens."""
    if sum(value is not None for value in (intrinsics, focal, fov)) > 1:
        raise ConfigError("intrinsics, focal and fov say the same thing in several ways: give one of them.")
    width, height = photo.size
    if intrinsics is not None:
        return Intrinsics.of(intrinsics)
    if focal is not None:
        return Intrinsics(_number(focal, "focal"), _number(focal, "focal"), (width - 1) / 2, (height - 1) / 2)
    if fov is not None:
        return Intrinsics.from_fov(_number(fov, "fov"), width, height)
    if photo.focal_35mm:
        return Intrinsics.from_exif_focal_35mm(photo.focal_35mm, width, height)
    return Intrinsics.default_for(width, height)


def check_count(value: Any, name: str) -> None:
    if not isinstance(value, Integral) or int(value) < 1:
        raise ConfigError(f"{name} is {value!r}, wanted a whole number from 1 on.")


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {value!r}, wanted a number.") from None
