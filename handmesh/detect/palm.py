"""The palm detector of OpenCV's model zoo: a file of 3.9 MB that you fetch, run by OpenCV itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.detect.detector import Detection, Image
from handmesh.detect.overlap import box_iou, deduplicate
from handmesh.errors import AssetError
from handmesh.geometry.box import Box

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

    It says no side. Safe to call from several threads, one of which computes at a time.
    """

    name = "palm detector"
    searches = True

    def __init__(self, path: str | os.PathLike[str], min_score: float = 0.5) -> None:
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
        self._path, self._min_score = file, min_score
        self._outputs = self._network.getUnconnectedOutLayersNames()
        self._lock = threading.Lock()  # a network has one place for its input

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
        with self._lock:
            self._network.setInput(canvas)
            outputs = {array.shape[-1]: np.array(array) for array in self._network.forward(self._outputs)}
        count = len(palm_anchors())
        if set(outputs) != {1, _PALM_VALUES} or any(array.size != count * last for last, array in outputs.items()):
            raise AssetError(
                f"{self._path} answers with {[array.shape for array in outputs.values()]}, wanted (1, {count}, "
                f"{_PALM_VALUES}) and (1, {count}, 1): it is another network."
            )
        palms = decode_palms(outputs[_PALM_VALUES].reshape(count, -1), outputs[1].reshape(count), self._min_score)
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
    values: NDArray[Any], logits: NDArray[Any], min_score: float
) -> list[tuple[NDArray[np.float64], float]]:
    """(2016, 18) and (2016,) as the network answers -> hand boxes in input pixels with their scores, best first.

    Overlapping palms are suppressed (intersection over union above 0.3), and each palm's box becomes that of its hand.
    """
    scores = 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -100, 100)))
    likely = np.flatnonzero(scores >= min_score)
    likely = likely[np.argsort(-scores[likely], kind="stable")]
    anchors = palm_anchors()
    kept: list[Box] = []
    hands = []
    for index in likely:
        anchor, answer = anchors[index], np.asarray(values[index], np.float64)
        x, y = anchor + answer[:2]
        width, height = answer[2:4]
        palm = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if any(box_iou(palm, other) > 0.3 for other in kept):
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
