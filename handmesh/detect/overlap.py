"""Whether two answers are of one hand: by their boxes, and by their keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.detect.detector import Detection

# Two boxes are one hand when they share this much of their union; hands that cross share less. Of one side, half is
# enough, or that one lies within the other: it would take two right hands in the same place.
SAME_HAND_IOU = 0.7
SAME_SIDE_IOU = 0.5
SAME_SIDE_WITHIN = 0.8  # of the smaller box; MediaPipe takes fingers for a hand of their own


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
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
    """One detection for each hand, the most confident; best first. Hands that cross or touch stay two."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda item: -item.score):
        if not any(_same_hand(detection, other) for other in kept):
            kept.append(detection)
    return kept


def _same_hand(first: Detection, second: Detection) -> bool:
    shared = box_iou(first.box, second.box)
    if first.handedness is None or first.handedness != second.handedness:
        return shared > SAME_HAND_IOU
    within = _intersection(first.box, second.box) / max(min(_area(first.box), _area(second.box)), 1e-9)
    return shared > SAME_SIDE_IOU or within > SAME_SIDE_WITHIN


def keypoint_agreement(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """(21, 2), (21, 2) keypoints: 1 when both answers draw the same joints, 0 when they are half a hand apart."""
    extent = max(float(np.ptp(second, axis=0).max()), 1.0)
    distance = float(np.linalg.norm(first - second, axis=-1).mean())
    return max(0.0, 1.0 - 2.0 * distance / extent)
