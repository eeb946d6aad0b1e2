"""A stream's hand, followed from frame to frame, and the bytes that say where it is.

The first frame is searched like a photo, with all the Predictor's looks. From then on one look is enough: where the
last frame's hand was, turned as it was turned. `next_crop` says where that is, or that the hand was lost; then the same
frame is searched again. docs/serving.md describes the bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from handmesh.crop import CropTransform, upright_rotation
from handmesh.errors import ExportError
from handmesh.hand import Handedness
from handmesh.image import Photo
from handmesh.predict import FOUND_MARGIN, HandPrediction, Predictor, SideSource

# What an answer may be before the hand counts as lost. A network that is shown no hand draws one all the same, about
# 0.6 times as large as the crop was made for; hands that move stay well within these.
_EXTENT_POSSIBLE: Final = (0.6, 1.7)  # of the keypoints, over the extent that the crop was made for
_JUMP_POSSIBLE: Final = 0.8  # of their middle from the crop's, over the same
_LEAST_INSIDE: Final = 0.4  # share of the keypoints within the frame
_SMALLEST_EXTENT: Final = 12.0  # px
_LEAST_SCORE: Final = 0.3  # of a hand that was searched for; synthetic: 5 % of hands are below, 96 % of no hands

# Share of the new place in the next crop: a crop that follows every tremble would add its own to the hand's.
_CROP_SMOOTHING: Final = 0.7


class Wishes(BaseModel):
    """A text message of the client: all of what it wants, not only what changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hand: Literal["auto", "right", "left"] = "auto"
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None  # x0, y0, x1, y1 in pixels
    vertices: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _check_box(self) -> Wishes:
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x1 - x0 >= 1 and y1 - y0 >= 1 and max(map(abs, self.box)) <= 1e5):
                raise ValueError(f"box {self.box} is empty or out of reach: x0 < x1 and y0 < y1, in pixels")
        return self


class Track:
    """One stream's hand. Called with frame after frame, by one thread at a time."""

    def __init__(self, wishes: Wishes | None = None) -> None:
        self.wishes = wishes or Wishes()
        self._crop: CropTransform | None = None
        self._size = (0, 0)
        self._side_source: SideSource = "given"
        self._side_score = 1.0

    def follow_wishes(self, wishes: Wishes) -> None:
        """From the next frame on; the hand is searched for anew when it is another one."""
        if (wishes.hand, wishes.box) != (self.wishes.hand, self.wishes.box):
            self._crop = None
        self.wishes = wishes

    def __call__(self, predictor: Predictor, photo: Photo) -> list[HandPrediction]:
        """The hand in this frame, or none. Raises what the predictor raises."""
        height, width = photo.image.shape[:2]
        if self._size != (width, height):  # another camera, or the phone was turned
            self._crop, self._size = None, (width, height)
        if self._crop is not None:
            (look,) = predictor.look_once(photo.image, [self._crop])  # of the side that the search told
            hands = [replace(look, handedness_source=self._side_source, handedness_score=self._side_score)]
            self._crop = next_crop(hands[0], self._crop, width, height)
            if self._crop is not None:
                return hands
        for hand in self._search(predictor, photo):
            self._crop = next_crop(hand, None, width, height)
            if self._crop is not None and hand.score >= _LEAST_SCORE:
                self._side_source, self._side_score = hand.handedness_source, hand.handedness_score
                return [hand]
        self._crop = None
        return []

    def _search(self, predictor: Predictor, photo: Photo) -> list[HandPrediction]:
        boxes = None if self.wishes.box is None else [self.wishes.box]
        return predictor(photo, boxes=boxes, handedness=self.wishes.hand)


def next_crop(hand: HandPrediction, crop: CropTransform | None, width: int, height: int) -> CropTransform | None:
    """Where to look for this hand in the next frame; None when what was found here is no hand.

    `crop` is where this frame was looked at, None when the hand was searched for. The new one is the square around the
    hand, turned so that it points up, and a little of the old one.
    """
    keypoints = hand.keypoints_image().astype(np.float64)
    extent = float(np.ptp(keypoints, axis=0).max())
    inside = ((keypoints >= 0) & (keypoints < (width, height))).all(axis=-1).mean()
    if not (np.isfinite(keypoints).all() and extent >= _SMALLEST_EXTENT and inside >= _LEAST_INSIDE):
        return None
    mirror = hand.handedness == Handedness.LEFT
    new = CropTransform.around_points(keypoints, FOUND_MARGIN, upright_rotation(keypoints), mirror)
    if crop is None:
        return new
    jump = math.dist(new.center, crop.center)
    smallest, largest = _EXTENT_POSSIBLE
    if not (smallest <= new.size / crop.size <= largest and jump <= _JUMP_POSSIBLE * crop.size / FOUND_MARGIN):
        return None
    share = _CROP_SMOOTHING
    turn = math.remainder(new.rotation - crop.rotation, 2 * math.pi)
    x, y = (now * share + before * (1 - share) for now, before in zip(new.center, crop.center, strict=True))
    return CropTransform((x, y), new.size**share * crop.size ** (1 - share), crop.rotation + share * turn, mirror)


# The bytes of an answer: little-endian, a header, then each hand's numbers and arrays. docs/serving.md has the table.

MAGIC: Final = b"HMF1"
HEADER: Final = struct.Struct("<4sIIIHBBff")  # magic, frame, width, height, vertices, bytes of each, hands, ms, ms
HAND: Final = struct.Struct("<BBBxf4f2fff2f")
HANDEDNESS: Final = (Handedness.RIGHT, Handedness.LEFT)
HANDEDNESS_SOURCES: Final = ("given", "assumed", "found")
SOURCES: Final = ("whole image", "given box", "tracking", "mediapipe", "palm detector")


@dataclass(frozen=True)
class Frame:
    """Which frame an answer belongs to, and what it took."""

    number: int  # of the binary messages of the connection, from 0
    width: int
    height: int
    server_ms: float
    model_ms: float


def encode_frame(frame: Frame, hands: Sequence[HandPrediction], wishes: Wishes) -> bytes:
    """Raises ExportError when a number is not finite."""
    dtype = np.dtype("<f2" if wishes.vertices == "float16" else "<f4")
    vertex_count = len(hands[0].vertices) if hands else 0
    parts = [
        HEADER.pack(
            MAGIC,
            frame.number & 0xFFFFFFFF,
            frame.width,
            frame.height,
            vertex_count,
            dtype.itemsize,
            len(hands),
            frame.server_ms,
            frame.model_ms,
        )
    ]
    for hand in hands:
        numbers = (
            hand.score,
            *hand.box,
            *hand.crop.center,
            hand.crop.size,
            float(hand.camera.scale),
            *map(float, hand.camera.translation),
        )
        arrays: list[tuple[NDArray[np.float32], np.dtype[np.floating]]] = [
            (hand.keypoints_image(), np.dtype("<f4")),
            (hand.joints, np.dtype("<f4")),
            (hand.vertices, dtype),
        ]
        if not (np.isfinite(numbers).all() and all(np.isfinite(array).all() for array, _ in arrays)):
            raise ExportError("The model answered with numbers that are not finite.")
        parts.append(
            HAND.pack(
                HANDEDNESS.index(hand.handedness),
                HANDEDNESS_SOURCES.index(hand.handedness_source),
                SOURCES.index(hand.source),
                *numbers,
            )
        )
        parts += [np.ascontiguousarray(array, kind).tobytes() for array, kind in arrays]
    return b"".join(parts)
