"""MediaPipe's hand landmarker as a detector: the extra `handmesh[detect]`."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.detect.detector import Detection, Image
from handmesh.detect.overlap import deduplicate
from handmesh.errors import ConfigError
from handmesh.hand import Handedness
from handmesh.system.extras import install_command


class Landmarks(NamedTuple):
    """A hand's 21 points as MediaPipe defines them, in FreiHAND's order."""

    points: NDArray[np.float64]  # (21, 2) px, centres at integers
    handedness: Handedness
    score: float  # of the handedness


class MediaPipeHands:
    """MediaPipe's hand landmarker of the last versions that work offline and send nothing (0.10.14 to 0.10.29).

    Safe to call from several threads, one of which computes at a time.
    """

    name = "MediaPipe"
    searches = True

    def __init__(self, max_hands: int = 4, min_score: float = 0.5) -> None:
        """Raises ConfigError when MediaPipe is missing or too new."""
        try:
            import mediapipe  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ConfigError(
                f"MediaPipe cannot be imported ({error}). Install it with: {install_command('detect')} "
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
            static_image_mode=True, max_num_hands=max_hands, min_detection_confidence=min_score
        )
        self._lock = threading.Lock()  # its graph puts what it finds into one place

    def __call__(self, image: Image) -> list[Detection]:
        detections = []
        for points, side, score in self.landmarks(image):
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
            detections.append(Detection((x0, y0, x1, y1), side, score, "mediapipe"))
        return deduplicate(detections)

    def landmarks(self, image: Image) -> list[Landmarks]:
        """All hands that it sees, in no order, the same hand perhaps twice."""
        with self._lock:
            found = self._hands.process(image)
        height, width = image.shape[:2]
        hands = []
        for landmarks, sides in zip(found.multi_hand_landmarks or [], found.multi_handedness or [], strict=True):
            points = np.array([(mark.x, mark.y) for mark in landmarks.landmark]) * (width, height) - 0.5
            best = sides.classification[0]
            hands.append(Landmarks(points, handedness_from_mediapipe(best.label, self._version), float(best.score)))
        return hands


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
