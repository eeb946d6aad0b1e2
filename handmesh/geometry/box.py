"""Boxes around hands: x0, y0, x1, y1 in image pixels, centres at integers; and the one check of boxes from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from handmesh.errors import ConfigError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# A box may reach beyond the photo by this many times the photo's longer side: a hand that is cut off by the edge.
# What it may be larger than that would cost memory, and show nothing.
MAX_REACH = 1.0
MIN_SIDE_PX = 4.0  # of the longer side: less shows no hand


def checked_box(box: Sequence[float] | NDArray[Any], size: tuple[int, int], name: str = "Box") -> Box:
    """The box as four floats. `size` is the photo's width and height; `name` is what the message calls the box.

    Raises ConfigError for what is no box, or none that a hand of this photo can be in.
    """
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} {box!r} is no box: wanted four numbers, x0, y0, x1, y1 in pixels.") from None
    checked = x0, y0, x1, y1
    if (problem := box_problem(checked, size)) is not None:
        raise ConfigError(f"{name} ({x0:g}, {y0:g}, {x1:g}, {y1:g}) {problem}")
    return checked


def box_problem(box: Box, size: tuple[int, int]) -> str | None:
    """Why no hand of a photo of this width and height can be in the box, to be said after its name; None: one can."""
    x0, y0, x1, y1 = box
    width, height = size
    reach = MAX_REACH * max(size)
    photo = f"of the photo, which is {width} x {height} pixels when upright."
    if not all(map(math.isfinite, box)):
        return "is not finite: wanted x0, y0, x1, y1 in pixels."
    if not (x1 > x0 and y1 > y0):
        return "is empty: wanted x0 < x1 and y0 < y1, in pixels."
    if max(x1 - x0, y1 - y0) < MIN_SIDE_PX:
        return f"is smaller than {MIN_SIDE_PX:g} pixels {photo}"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return f"is outside {photo}"
    if min(x0, y0) < -reach or max(x1 - width, y1 - height) > reach:
        return f"is larger than anything {photo}"
    return None
