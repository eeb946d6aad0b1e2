"""The detector's answer: a grid of cells over a picture, each of which says whether the middle of a hand lies there.

A cell is `STRIDE` pixels wide; the centre of cell (row, column) is at `STRIDE * (column + 0.5) - 0.5` and so on, pixels
with centres at integers. Training writes such grids (`encode`), the detector reads them (`decode`), and both mean by
the eight channels:

0      logit: the middle of a hand's box, as far as it is in the picture, lies here
1..4   logarithms of the box's distances left, up, right and down of the cell's centre, in cells; the box may go on
       beyond the picture
5, 6   cosine and sine of `upright_rotation`: the turn after which the hand points up, of any length
7      logit: it is a right hand

One hand at a cell, as in CenterNet (Zhou et al., "Objects as Points", 2019), whose target for channel 0 this is; the
distances are FCOS's (Tian et al., ICCV 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.geometry.box import Box

STRIDE = 8
CHANNELS = 8
PICTURE_MULTIPLE = 16  # of a picture's sides
# The target of channel 0 around a hand's middle is a Gaussian of so many of the box's sides, and of at least so many
# cells; where it is above the third number the other channels are taught too.
SPREAD, LEAST_SPREAD, TAUGHT_ABOVE = 0.10, 0.55, 0.45


@dataclass(frozen=True)
class SeenHand:
    """A hand in a picture."""

    box: Box  # x0, y0, x1, y1 px around its keypoints, those beyond the picture too
    rotation: float  # radians, `upright_rotation`
    right: bool


class GridTarget(NamedTuple):
    """What a detector should answer to a picture of h x w cells."""

    center: NDArray[np.float32]  # (h, w) 0..1: channel 0 as a probability
    box: NDArray[np.float32]  # (4, h, w) channels 1 to 4
    direction: NDArray[np.float32]  # (2, h, w) channels 5 and 6, of length 1
    right: NDArray[np.float32]  # (h, w) channel 7 as a probability
    taught: NDArray[np.float32]  # (h, w) weight of channels 1 to 7; 0 where there is no hand


class FoundHand(NamedTuple):
    """A hand that a grid says."""

    box: Box
    rotation: float
    right: float  # probability
    score: float  # probability


def cell_centers(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X (w,) and y (h,) px of the cells of a picture of so many cells."""
    x, y = (np.arange(count, dtype=np.float64) for count in (width, height))
    return np.asarray(STRIDE * (x + 0.5) - 0.5), np.asarray(STRIDE * (y + 0.5) - 0.5)


def encode(hands: Sequence[SeenHand], height: int, width: int) -> GridTarget:
    """The grid of h x w cells that says these hands. A hand whose box lies outside the picture is not in it."""
    target = GridTarget(
        *(np.zeros(shape, np.float32) for shape in ((height, width), (4, height, width), (2, height, width))),
        *(np.zeros((height, width), np.float32) for _ in range(2)),
    )
    x, y = cell_centers(height, width)
    for hand in hands:
        x0, y0, x1, y1 = hand.box
        left, top = max(x0, -0.5), max(y0, -0.5)
        right, bottom = min(x1, width * STRIDE - 0.5), min(y1, height * STRIDE - 0.5)
        if left >= right or top >= bottom:
            continue
        column = int(np.abs(x - (left + right) / 2).argmin())
        row = int(np.abs(y - (top + bottom) / 2).argmin())
        spread_x, spread_y = (
            max(SPREAD * (high - low) / STRIDE, LEAST_SPREAD) for low, high in ((left, right), (top, bottom))
        )
        across = np.exp(-((np.arange(width) - column) ** 2) / (2 * spread_x**2))
        along = np.exp(-((np.arange(height) - row) ** 2) / (2 * spread_y**2))
        near = (along[:, None] * across).astype(np.float32)
        own = (near > TAUGHT_ABOVE) & (near > target.taught)
        sides = np.broadcast_arrays(x - x0, (y - y0)[:, None], x1 - x, (y1 - y)[:, None])
        target.box[:, own] = np.log(np.maximum(np.stack(sides)[:, own] / STRIDE, 0.05))
        target.direction[:, own] = np.array([[math.cos(hand.rotation)], [math.sin(hand.rotation)]])
        target.right[own] = hand.right
        target.taught[own] = near[own]
        np.maximum(target.center, near, out=target.center)
    return target


def decode(grid: NDArray[np.float32], min_score: float, most: int = 100) -> list[FoundHand]:
    """(8, h, w) as the detector answers -> the hands that it says, most certain first; one may be said twice.

    A hand is where the score is at least `min_score` and higher than in the eight cells around. Its box, side and turn
    are the means of those of these nine cells that are taught of it, each counted by its score: on photographs sides
    are right more often than by the highest cell alone (0.855 instead of 0.828), and turns nearer.
    """
    probability = _sigmoid(grid[0])
    highest = cv2.dilate(probability, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero((probability == highest) & (probability >= min_score))
    order = np.argsort(-probability[rows, columns], kind="stable")[:most]
    x, y = cell_centers(*grid.shape[1:])
    found = []
    for row, column in zip(rows[order], columns[order], strict=True):
        around = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        weight = probability[around].astype(np.float64)
        weight[weight < TAUGHT_ABOVE * probability[row, column]] = 0
        weight /= weight.sum()
        cells = grid[:, *around].astype(np.float64)
        left, up, right, down = STRIDE * np.exp(np.clip(cells[1:5], -3, 6))
        middle_x, middle_y = x[around[1]], y[around[0], None]
        edges = np.stack([middle_x - left, middle_y - up, middle_x + right, middle_y + down])
        x0, y0, x1, y1, cosine, sine, side = (
            np.concatenate([edges, cells[5:8]]).reshape(7, -1) @ weight.ravel()
        ).tolist()
        score = float(probability[row, column])
        found.append(FoundHand((x0, y0, x1, y1), math.atan2(sine, cosine), float(_sigmoid(side)), score))
    return found


def fitted(image: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], float]:
    """(H, W, 3) -> the picture that a detector sees, its longer side `side` px, and its pixels per pixel of the image.

    Sides are multiples of `PICTURE_MULTIPLE`: black on the right and below. x of the image is at
    `scale * (x + 0.5) - 0.5`.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    right, below = (-length % PICTURE_MULTIPLE for length in size)
    return np.asarray(cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT), np.uint8), scale


def in_image(box: Box, scale: float) -> Box:
    """A box of a picture that `fitted` made, in the image's pixels."""
    x0, y0, x1, y1 = ((edge + 0.5) / scale - 0.5 for edge in box)
    return x0, y0, x1, y1


def _sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
