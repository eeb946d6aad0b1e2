"""Where the hands are: one small protocol, and those who answer it.

A `Detector` takes a picture and says boxes. Two kinds: those that search (`HandDetector`, `MediaPipeHands`,
`PalmDetector`) find hands and may find none; those that know (`GivenBoxes`, `WholeImage`) always say the same places,
whether there is a hand or not. `HandDetector` is our own and comes with the package; MediaPipe is the extra
`handmesh[detect]`, the palm detector a file of OpenCV's model zoo that you fetch.
"""

from __future__ import annotations

from handmesh.detect.detector import Detection, Detector, GivenBoxes, Source, WholeImage
from handmesh.detect.hands import HandDetector, is_detector
from handmesh.detect.mediapipe import MediaPipeHands
from handmesh.detect.overlap import box_iou, deduplicate
from handmesh.detect.palm import PalmDetector
from handmesh.errors import ConfigError
from handmesh.geometry.box import Box

__all__ = [
    "Box",
    "Detection",
    "Detector",
    "GivenBoxes",
    "HandDetector",
    "MediaPipeHands",
    "PalmDetector",
    "Source",
    "WholeImage",
    "box_iou",
    "deduplicate",
    "open_detector",
]


def open_detector(choice: str, max_hands: int = 4, *, threads: int | None = None) -> Detector | None:
    """What `--detector` names: "handmesh", "none", "mediapipe", or a path: the palm detector's or one of our own kind.

    None for "none". Raises ConfigError, AssetError and CheckpointError, which say what to install or fetch.
    """
    if choice == "handmesh":
        return HandDetector(threads=threads)
    if choice == "none":
        return None
    if choice == "mediapipe":
        return MediaPipeHands(max_hands)
    if choice.lower().endswith(".onnx"):
        return HandDetector(choice, threads=threads) if is_detector(choice) else PalmDetector(choice)
    raise ConfigError(
        f"--detector {choice!r}: wanted handmesh, none, mediapipe, or the path of an .onnx detector, ours or the palm "
        "detector."
    )
