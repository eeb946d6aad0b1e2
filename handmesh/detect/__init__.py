"""Where the hands are: one small protocol, and those who answer it.

A `Detector` takes a picture and says boxes. Two kinds: those that look (`MediaPipeHands`, `PalmDetector`) find hands
and may find none; those that know (`GivenBoxes`, `WholeImage`) always say the same places, whether there is a hand or
not. Nothing here is needed for photos of one hand, nothing is downloaded, and neither kind of detector comes with the
package: MediaPipe is the extra `handmesh[detect]`, the palm detector a file of OpenCV's model zoo that you fetch.

A box is x0, y0, x1, y1 in pixels around the 21 keypoints, without margin, centres of pixels at integers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import AssetError, ConfigError
from handmesh.hand import Handedness

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Source = Literal["given box", "whole image", "tracking", "mediapipe", "palm detector"]  # how a box was found

Image = NDArray[np.uint8]  # (H, W, 3) RGB

# Two boxes are one hand when they share this much of their union; hands that cross share less. Of one side, half is
# enough, or that one lies within the other: it would take two right hands in the same place.
SAME_HAND_OVERLAP = 0.7
SAME_SIDE_OVERLAP = 0.5
SAME_SIDE_WITHIN = 0.8  # of the smaller box; MediaPipe takes fingers for a hand of their own


@dataclass(frozen=True)
class Detection:
    """Where a hand is, or may be."""

    box: Box
    handedness: Handedness | None  # None: it does not say
    score: float  # 0..1, as its source means it
    source: Source


class Detector(Protocol):
    name: str  # for people
    looks: bool  # False: it says places without looking whether there is a hand

    def __call__(self, image: Image) -> list[Detection]: ...


class GivenBoxes:
    """Boxes that a person gave, the same for every picture."""

    name = "given boxes"
    looks = False

    def __init__(self, boxes: Sequence[Box], handedness: Handedness | None = None) -> None:
        self._detections = [Detection(box, handedness, 1.0, "given box") for box in boxes]

    def __call__(self, image: Image) -> list[Detection]:
        return list(self._detections)


class WholeImage:
    """One hand, anywhere."""

    name = "whole image"
    looks = False

    def __init__(self, handedness: Handedness | None = None) -> None:
        self._handedness = handedness

    def __call__(self, image: Image) -> list[Detection]:
        height, width = image.shape[:2]
        return [Detection((-0.5, -0.5, width - 0.5, height - 0.5), self._handedness, 1.0, "whole image")]


class MediaPipeHands:
    """MediaPipe's hand landmarker of the last versions that work offline and send nothing (0.10.14 to 0.10.29)."""

    name = "MediaPipe"
    looks = True

    def __init__(self, most: int = 4, least_score: float = 0.5) -> None:
        """At most `most` hands. Raises ConfigError when MediaPipe is missing or too new."""
        try:
            import mediapipe  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ConfigError(
                f"MediaPipe cannot be imported ({error}). Install it with: pip install 'handmesh[detect]' "
                "(Python 3.12 or older; it needs numpy below 2, so best in an environment of its own)."
            ) from None
        self._version = str(mediapipe.__version__)
        solutions = getattr(mediapipe, "solutions", None)
        if solutions is None:
            raise ConfigError(
                f"MediaPipe {self._version} has no hand model of its own and reports usage to its maker. "
                "Install the last one without: pip install 'mediapipe<0.10.30'."
            )
        # Every picture by itself: following hands is what our tracker does.
        self._hands = solutions.hands.Hands(
            static_image_mode=True, max_num_hands=most, min_detection_confidence=least_score
        )

    def __call__(self, image: Image) -> list[Detection]:
        found = self._hands.process(image)
        height, width = image.shape[:2]
        detections = []
        for landmarks, sides in zip(found.multi_hand_landmarks or [], found.multi_handedness or [], strict=True):
            points = np.array([(mark.x, mark.y) for mark in landmarks.landmark]) * (width, height) - 0.5
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
            best = sides.classification[0]
            side = handedness_from_mediapipe(best.label, self._version)
            detections.append(Detection((x0, y0, x1, y1), side, float(best.score), "mediapipe"))
        return deduplicate(detections)


def handedness_from_mediapipe(label: str, version: str) -> Handedness:
    """MediaPipe's "Left" or "Right" for a picture that is not mirrored.

    Up to 0.10.29 it assumes a mirrored selfie, so a right hand is called "Left"; from 0.10.30 on the label is the hand
    itself. (The same picture through the same weights gives opposite labels in 0.10.21 and in later versions.)
    """
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:3]]
    said = Handedness(label.lower())
    if tuple(numbers) >= (0, 10, 30):
        return said
    return Handedness.LEFT if said == Handedness.RIGHT else Handedness.RIGHT


# OpenCV zoo's palm_detection_mediapipe: side of its input in pixels, and its two grids of anchors as (cells per side,
# anchors per cell). They follow from MediaPipe's SsdAnchorsCalculator with strides 8, 16, 16, 16 and two anchors each.
_PALM_INPUT = 192
_PALM_GRIDS = ((24, 2), (12, 6))
_PALM_VALUES = 18  # centre, size, then seven points, all in input pixels from the anchor
_PALM_WRIST, _PALM_MIDDLE_MCP = 0, 2
# From a palm's box to the hand's: half its side along wrist to middle knuckle, then 2.6 times its side (MediaPipe's
# hand_landmark_tracking graph), less the margin of 1.5 that its landmark model, like ours, wants around the keypoints.
_HAND_SHIFT = 0.5
_HAND_SIZE = 2.6 / 1.5


class PalmDetector:
    """The palm detector of OpenCV's model zoo, `palm_detection_mediapipe_2023feb.onnx` (Apache-2.0), run by OpenCV.

    It says no side.
    """

    name = "palm detector"
    looks = True

    def __init__(self, path: str | os.PathLike[str], least_score: float = 0.5) -> None:
        """Raises AssetError when the file is missing, unreadable or another network."""
        import cv2

        file = Path(path)
        if not file.is_file():
            raise AssetError(
                f"No palm detector at {file}. Fetch palm_detection_mediapipe_2023feb.onnx (3.9 MB) from OpenCV's model "
                "zoo, github.com/opencv/opencv_zoo, and give its path."
            )
        try:
            self._network = cv2.dnn.readNetFromONNX(str(file))
        except cv2.error as error:
            raise AssetError(f"{file} cannot be read as a network: {error}.") from None
        self._path, self._least_score = file, least_score
        self._outputs = self._network.getUnconnectedOutLayersNames()

    def __call__(self, image: Image) -> list[Detection]:
        import cv2

        height, width = image.shape[:2]
        scale = _PALM_INPUT / max(height, width)  # input pixels per image pixel; centred, black around
        shift = ((_PALM_INPUT - width * scale) / 2, (_PALM_INPUT - height * scale) / 2)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        left, top = round(shift[0]), round(shift[1])
        canvas = np.zeros((1, _PALM_INPUT, _PALM_INPUT, 3), np.float32)
        scaled = cv2.resize(image, size, interpolation=interpolation)
        canvas[0, top : top + size[1], left : left + size[0]] = scaled / np.float32(255)
        self._network.setInput(canvas)
        outputs = {array.shape[-1]: array for array in map(np.asarray, self._network.forward(self._outputs))}
        count = len(palm_anchors())
        if set(outputs) != {1, _PALM_VALUES} or any(array.size != count * last for last, array in outputs.items()):
            raise AssetError(
                f"{self._path} answers with {[array.shape for array in outputs.values()]}, wanted (1, {count}, "
                f"{_PALM_VALUES}) and (1, {count}, 1): it is another network."
            )
        palms = decode_palms(outputs[_PALM_VALUES].reshape(count, -1), outputs[1].reshape(count), self._least_score)
        detections = []
        for box, score in palms:
            x0, y0, x1, y1 = (float((edge - shift[axis % 2]) / scale - 0.5) for axis, edge in enumerate(box))
            detections.append(Detection((x0, y0, x1, y1), None, score, "palm detector"))
        return deduplicate(detections)


def palm_anchors() -> NDArray[np.float64]:
    """(2016, 2): centres of the anchors in input pixels, row by row, the fine grid first."""
    grids = []
    for cells, each in _PALM_GRIDS:
        centers = (np.arange(cells) + 0.5) * (_PALM_INPUT / cells)
        y, x = np.meshgrid(centers, centers, indexing="ij")
        grids.append(np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), each, axis=0))
    return np.concatenate(grids)


def decode_palms(
    values: NDArray[Any], logits: NDArray[Any], least_score: float
) -> list[tuple[NDArray[np.float64], float]]:
    """(2016, 18) and (2016,) as the network answers -> hand boxes in input pixels with their scores, best first.

    Overlapping palms are suppressed (intersection over union above 0.3), and each palm's box becomes that of its hand.
    """
    scores = 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -100, 100)))
    likely = np.flatnonzero(scores >= least_score)
    likely = likely[np.argsort(-scores[likely], kind="stable")]
    anchors = palm_anchors()
    kept: list[Box] = []
    hands = []
    for index in likely:
        anchor, answer = anchors[index], np.asarray(values[index], np.float64)
        x, y = anchor + answer[:2]
        width, height = answer[2:4]
        palm = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if any(overlap(palm, other) > 0.3 for other in kept):
            continue
        kept.append(palm)
        points = anchor + answer[4:].reshape(7, 2)
        along = points[_PALM_MIDDLE_MCP] - points[_PALM_WRIST]
        along = along / max(float(np.linalg.norm(along)), 1e-6)
        side = max(width, height)
        center = np.array([x, y]) + _HAND_SHIFT * side * along
        half = _HAND_SIZE * side / 2
        hands.append((np.concatenate([center - half, center + half]), float(scores[index])))
    return hands


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 when one is empty."""
    shared = _intersection(first, second)
    return shared / (_area(first) + _area(second) - shared) if shared else 0.0


def _intersection(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def deduplicate(detections: Sequence[Detection]) -> list[Detection]:
    """One detection for each hand, the surest; best first. Hands that cross or touch stay two."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda item: -item.score):
        if not any(_same_hand(detection, other) for other in kept):
            kept.append(detection)
    return kept


def _same_hand(first: Detection, second: Detection) -> bool:
    shared = overlap(first.box, second.box)
    if first.handedness is None or first.handedness != second.handedness:
        return shared > SAME_HAND_OVERLAP
    within = _intersection(first.box, second.box) / max(min(_area(first.box), _area(second.box)), 1e-9)
    return shared > SAME_SIDE_OVERLAP or within > SAME_SIDE_WITHIN


def open_detector(choice: str, most: int = 4) -> Detector | None:
    """What `--detector` names: "none", "mediapipe", or the path of the palm detector's .onnx file.

    None for "none". Raises ConfigError and AssetError, which say what to install or fetch.
    """
    if choice == "none":
        return None
    if choice == "mediapipe":
        return MediaPipeHands(most)
    if choice.lower().endswith(".onnx"):
        return PalmDetector(choice)
    raise ConfigError(f"--detector {choice!r}: wanted none, mediapipe, or the path of an .onnx palm detector.")
