"""A stream's hand, followed from frame to frame, and the bytes that say where it is.

Following is handmesh.motion's: the first frame is searched like a photo, with all the Predictor's passes; from then on
one is enough, and each answer is judged, by the network's own confidence among other things. Then it is smoothed.
docs/reference/live_stream.md describes the bytes.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from handmesh.detect import GivenBoxes
from handmesh.errors import DataError, ExportError
from handmesh.files.image import LargePhoto, Photo
from handmesh.hand import JOINT_COUNT, Handedness
from handmesh.motion.follow import HandFollower
from handmesh.motion.smoothing import Smoothing
from handmesh.motion.track import Tracking
from handmesh.predict import HandPrediction, Predictor

_MIN_STEP: Final = 1e-3  # s between frames, for clocks that stand still


class StreamOptions(BaseModel):
    """A text message of the client: all of what it wants, not only what changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hand: Literal["auto", "right", "left"] = "auto"
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None  # x0, y0, x1, y1 in pixels
    max_hands: int = Field(default=2, ge=1, le=10)
    vertices: Literal["float16", "float32"] = "float16"
    smooth: float = Field(default=1.0, ge=0, le=20, allow_inf_nan=False)  # 0 not at all, 1 normal, 2 twice as steady

    @model_validator(mode="after")
    def _check_box(self) -> StreamOptions:
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x1 - x0 >= 1 and y1 - y0 >= 1 and max(map(abs, self.box)) <= 1e5):
                raise ValueError(f"box {self.box} is empty or out of reach: x0 < x1 and y0 < y1, in pixels")
            if "max_hands" in self.model_fields_set:
                raise ValueError("max_hands is of hands that are found, and box gives one")
        return self

    @model_validator(mode="after")
    def _check_smooth(self) -> StreamOptions:
        if 0 < self.smooth < 0.05:
            raise ValueError(f"smooth is {self.smooth:g}: 0, or from 0.05 to 20")
        return self


class StreamFollower:
    """One stream's hand, followed and smoothed. Called with frame after frame, from any thread."""

    def __init__(self) -> None:
        self.options = StreamOptions()  # may be set at any time, and hold from the next frame on
        self._follower: HandFollower | None = None
        self._made_for: object = None  # options and frame size; the hand is searched for anew when they change
        self._time = -math.inf
        # A frame whose deadline passed may still be in work when the next one comes.
        self._lock = threading.Lock()

    def __call__(self, predictor: Predictor, photo: Photo | LargePhoto, time: float) -> list[HandPrediction]:
        """The hand in a frame that came at `time` seconds, or none. Raises what the predictor raises."""
        with self._lock:
            options = self.options
            made_for = (options.hand, options.box, options.max_hands, options.smooth, photo.size)
            if self._follower is None or made_for != self._made_for:
                self._follower, self._made_for = _follower(predictor, options), made_for
            self._follower.tracker.predictor = predictor  # it knows for which request it works
            self._time = max(time, self._time + _MIN_STEP)
            return list(self._follower(photo.image, self._time).values())


def _follower(predictor: Predictor, options: StreamOptions) -> HandFollower:
    return HandFollower(
        predictor,
        detector=None if options.box is None else GivenBoxes([options.box]),
        handedness=options.hand,
        tracking=Tracking(max_hands=options.max_hands),
        smoothing=Smoothing.of_strength(options.smooth) if options.smooth else None,
    )


# The bytes of an answer: little-endian, a header, then each hand's numbers and arrays (docs/reference/live_stream.md).

MAGIC: Final = b"HMF2"
HEADER: Final = struct.Struct("<4sIIIHBBff")  # magic, frame, width, height, vertices, bytes of each, hands, ms, ms
HAND: Final = struct.Struct("<BBBBf4f2fff2ff")
HANDEDNESS: Final = (Handedness.RIGHT, Handedness.LEFT)
HANDEDNESS_SOURCES: Final = ("given", "assumed", "found")
SOURCES: Final = ("whole image", "given box", "tracking", "mediapipe", "palm detector", "hand detector")


@dataclass(frozen=True)
class Frame:
    """Which frame an answer belongs to, and what it took."""

    number: int  # of the binary messages of the connection, from 0
    width: int
    height: int
    server_ms: float
    model_ms: float


def encode_frame(frame: Frame, hands: Sequence[HandPrediction], options: StreamOptions) -> bytes:
    """Raises ExportError when a number is not finite."""
    dtype = np.dtype("<f2" if options.vertices == "float16" else "<f4")
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
            hand.handedness_score,
        )
        arrays: list[tuple[NDArray[np.float32], np.dtype[np.floating]]] = [
            (hand.keypoints_image(), np.dtype("<f4")),
            (hand.joints, np.dtype("<f4")),
            *([] if hand.joint_scores is None else [(hand.joint_scores, np.dtype("<f4"))]),
            (hand.vertices, dtype),
        ]
        if not (np.isfinite(numbers).all() and all(np.isfinite(array).all() for array, _ in arrays)):
            raise ExportError("The model answered with numbers that are not finite.")
        parts.append(
            HAND.pack(
                HANDEDNESS.index(hand.handedness),
                HANDEDNESS_SOURCES.index(hand.handedness_source),
                SOURCES.index(hand.source),
                hand.joint_scores is not None,
                *numbers,
            )
        )
        parts += [np.ascontiguousarray(array, kind).tobytes() for array, kind in arrays]
    return b"".join(parts)


class DecodedHand(NamedTuple):
    """A hand of a stream's answer."""

    handedness: Handedness
    handedness_source: str  # given, assumed or found
    handedness_score: float  # 0..1: that this is the side; 1 if given
    source: str  # how the box was found
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in px
    crop_center: tuple[float, float]  # px
    crop_size: float  # px
    camera_scale: float  # ndc per metre
    camera_translation: tuple[float, float]  # metres
    keypoints: NDArray[np.float32]  # (21, 2) px
    joints: NDArray[np.float32]  # (21, 3) metres, hand frame
    joint_scores: NDArray[np.float32] | None  # (21,) 0..1; None: the model cannot tell
    vertices: NDArray[np.float32]  # (V, 3) metres, hand frame


def decode_frame(answer: bytes) -> tuple[Frame, list[DecodedHand]]:
    """The inverse of `encode_frame`, for clients. Raises DataError for what is no answer of a stream."""
    hands = []
    try:
        magic, number, width, height, vertex_count, itemsize, hand_count, *times = HEADER.unpack_from(answer)
        at = HEADER.size
        if magic != MAGIC:
            raise ValueError("its first bytes are others")
        for _ in range(hand_count):
            side, known, found, scored, score, *numbers = HAND.unpack_from(answer, at)
            at += HAND.size
            arrays = []
            shapes = ((JOINT_COUNT, 2), (JOINT_COUNT, 3), (JOINT_COUNT * bool(scored),), (vertex_count, 3))
            for shape, kind in zip(shapes, ("<f4", "<f4", "<f4", f"<f{itemsize}"), strict=True):
                array = np.frombuffer(answer, kind, math.prod(shape), at)
                at += array.nbytes
                arrays.append(array.reshape(shape).astype(np.float32))
            keypoints, joints, joint_scores, vertices = arrays
            x0, y0, x1, y1, center_x, center_y, size, scale, shift_x, shift_y, sure = numbers
            hands.append(
                DecodedHand(
                    HANDEDNESS[side],
                    HANDEDNESS_SOURCES[known],
                    sure,
                    SOURCES[found],
                    score,
                    (x0, y0, x1, y1),
                    (center_x, center_y),
                    size,
                    scale,
                    (shift_x, shift_y),
                    keypoints,
                    joints,
                    joint_scores if scored else None,
                    vertices,
                )
            )
    except (struct.error, ValueError, IndexError, TypeError) as error:
        raise DataError(f"This is no answer of a stream: {error}.") from None
    return Frame(number, width, height, *times), hands
