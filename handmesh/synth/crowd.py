"""Pictures of several hands, rendered or cut out of photographs, of any size and turn, on one background.

What a detector has to learn from them is where hands are, not what a finger does: so few things are drawn anew, and
one costs milliseconds. Foregrounds are laid one over another, the smaller ones first, each with its forearm drawn on
beyond the foreground's frame. Left hands are mirrored ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.synth.camera_effects import place_on_background

Image = NDArray[np.uint8]


class Foreground(Protocol):
    """A right hand with its forearm, and nothing around them: an entry of a pack, or cut out of a photograph."""

    @property
    def image(self) -> Image: ...  # (h, w, 4) RGB times alpha, then alpha

    @property
    def keypoints(self) -> NDArray[Any]: ...  # (21, 2) px


@dataclass(frozen=True)
class PlacedHand:
    """A hand of a crowd."""

    keypoints: NDArray[np.float64]  # (21, 2) px, those beyond the picture too
    right: bool
    seen: float  # share of its keypoints that lie in the picture with nothing of another hand in front


def draw_crowd(
    rng: np.random.Generator,
    background: Image,
    count: int,
    sizes: tuple[float, float],
    draw_hand: Callable[[np.random.Generator], Foreground],
) -> tuple[Image, list[PlacedHand]]:
    """`count` hands on a square (S, S, 3) background.

    `sizes`: the longer side of a hand's box as a share of the picture's, from and to, uniform in the logarithm; where
    there are many hands the largest are smaller. A third of the hands comes close to the one before: crossing, holding.
    """
    side = background.shape[0]
    largest = min(sizes[1], max(2.0 / math.sqrt(max(count, 1)) - 0.5, 2 * sizes[0]))
    shares = np.sort(np.exp(rng.uniform(math.log(sizes[0]), math.log(max(largest, sizes[0])), count)))
    image, hands, last, last_share = background, [], None, 0.0
    points: list[NDArray[np.float64]] = []
    sides: list[bool] = []
    hidden: list[NDArray[np.bool_]] = []
    for share in shares:
        near = last is not None and rng.random() < 0.35
        right = bool(rng.random() < 0.5)
        if near and rng.random() < 0.5:
            share = last_share * math.exp(rng.normal(0, 0.1))
            right = sides[-1] if rng.random() < 0.15 else not sides[-1]
        last_share = share
        foreground = draw_hand(rng)
        turn = rng.normal(0, math.radians(30)) if rng.random() < 0.5 else rng.uniform(-math.pi, math.pi)
        if last is not None and near:
            center = last + rng.normal(0, 0.45, 2) * share * side
        else:  # the larger the hand, the more of it may lie outside
            reach = 0.5 + 0.28 * min(share, 1.0)
            center = (0.5 + rng.uniform(-reach, reach, 2)) * side
        last = center
        to_image = placement(foreground.keypoints, share * side, center, turn, mirror=not right)
        layer = laid(foreground.image, to_image, side)
        alpha = np.array(layer[..., 3], np.uint8)
        image = place_on_background(rng, np.ascontiguousarray(layer[..., :3]), alpha, image)
        for before, covered in zip(points, hidden, strict=True):
            covered |= _is_covered(alpha, before)
        placed = foreground.keypoints @ to_image[:, :2].T + to_image[:, 2]
        points.append(placed)
        sides.append(right)
        hidden.append(~((placed >= 0) & (placed <= side - 1)).all(axis=1))
    hands = [
        PlacedHand(placed, right, float(1 - covered.mean()))
        for placed, right, covered in zip(points, sides, hidden, strict=True)
    ]
    return image, hands


def placement(
    keypoints: NDArray[Any], size: float, center: NDArray[np.float64], turn: float, *, mirror: bool
) -> NDArray[np.float64]:
    """(2, 3) by which a hand comes to `center` (2,) px, the longer side of its keypoints' box `size` px long.

    turn: radians, after the mirror.
    """
    low, high = keypoints.min(axis=0).astype(np.float64), keypoints.max(axis=0).astype(np.float64)
    scale = size / float((high - low).max())
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    matrix = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    return np.column_stack([matrix, center - matrix @ ((low + high) / 2)])


def laid(image: Image, to_image: NDArray[np.float64], side: int) -> Image:
    """(side, side, 4): a foreground moved by a similarity, what touches its frame going on straight beyond it."""
    rgba, warp = reduced(np.ascontiguousarray(image), to_image)
    height, width = rgba.shape[:2]
    pad = max(height, width)
    padded = cv2.copyMakeBorder(rgba, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    for rows in (slice(pad), slice(pad + height, None)):  # the corners would be filled by a single pixel
        for columns in (slice(pad), slice(pad + width, None)):
            padded[rows, columns] = 0
    warp = warp @ np.array([[1, 0, -pad], [0, 1, -pad], [0, 0, 1.0]])
    return np.asarray(cv2.warpAffine(padded, warp, (side, side), flags=cv2.INTER_LINEAR), np.uint8)


def reduced(image: Image, to_image: NDArray[np.float64]) -> tuple[Image, NDArray[np.float64]]:
    """An image and its similarity (2, 3); where several of its pixels come into one, the means of blocks of them."""
    scale = math.hypot(to_image[0, 0], to_image[1, 0])
    if scale >= 0.6:
        return image, to_image
    factor = max(int(0.9 / scale), 1)
    height, width = (max(length // factor, 1) for length in image.shape[:2])
    blocks = image[: height * factor, : width * factor]
    small = np.asarray(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return small, to_image @ np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1.0]])


def _is_covered(alpha: NDArray[np.uint8], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(21,) which points lie under something."""
    x, y = np.clip(np.rint(points).astype(int), 0, alpha.shape[0] - 1).T
    return np.asarray(alpha[y, x] > 127)
