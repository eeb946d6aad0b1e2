"""Contact sheets: pictures of one size side by side, each with a caption if it has one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def contact_sheet(tiles: Iterable[NDArray[np.uint8]], columns: int = 8) -> NDArray[np.uint8]:
    """(S, S, 3) uint8 RGB tiles in rows of at most `columns`; the last row is filled with black."""
    if columns < 1:
        raise ValueError(f"columns is {columns}, wanted at least 1")
    tiles = list(tiles)
    if not tiles:
        raise ValueError("no tiles to show")
    columns = min(columns, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])


def captioned(tile: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A copy with white text, edged in black, along its lower side."""
    import cv2  # on first use, as everywhere in draw

    tile = np.array(tile, order="C")
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(tile, text, (5, len(tile) - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, width, cv2.LINE_AA)
    return tile
