"""The protocol of all detectors, and the two that need no network.

A box is x0, y0, x1, y1 in pixels around the 21 keypoints, without margin, centres of pixels at integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.geometry.box import Box, checked_box
from handmesh.hand import Handedness

# How a box was found.
Source = Literal["given box", "whole image", "tracking", "mediapipe", "palm detector", "hand detector"]

Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Detection:
    """Where a hand is, or may be."""

    box: Box
    handedness: Handedness | None  # None: it does not say
    score: float  # 0..1, as its source means it
    source: Source
    rotation: float | None = None  # radians: the crop rotation in which the hand points up (`upright_rotation`)
    handedness_score: float | None = None  # how probable it takes that side
    is_probability: bool = False  # whether `score` is how probable a hand is there, measured on photographs


class Detector(Protocol):
    """Safe to call from several threads at once."""

    name: str  # for people
    searches: bool  # False: it says places without looking whether there is a hand

    def __call__(self, image: Image) -> list[Detection]: ...


class GivenBoxes:
    """Boxes that a person gave, the same for every picture."""

    name = "given boxes"
    searches = False

    def __init__(self, boxes: Sequence[Box], handedness: Handedness | None = None) -> None:
        self._detections = [Detection(box, handedness, 1.0, "given box") for box in boxes]

    def __call__(self, image: Image) -> list[Detection]:
        """Raises ConfigError for a box that no hand of this picture can be in."""
        for detection in self._detections:
            checked_box(detection.box, (image.shape[1], image.shape[0]))
        return list(self._detections)


class WholeImage:
    """One hand, anywhere."""

    name = "whole image"
    searches = False

    def __init__(self, handedness: Handedness | None = None) -> None:
        self._handedness = handedness

    def __call__(self, image: Image) -> list[Detection]:
        height, width = image.shape[:2]
        return [Detection((-0.5, -0.5, width - 0.5, height - 0.5), self._handedness, 1.0, "whole image")]
