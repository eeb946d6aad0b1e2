"""Drawing 21 joints and their bones on photographs, one colour per finger."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.draw.colors import FINGER_COLORS, WRIST_COLOR, Color
from handmesh.draw.render import MAX_COORDINATE, check_image
from handmesh.hand import BONES, FINGER_NAMES, JOINT_COUNT, JOINT_NAMES


def draw_skeleton(
    image: NDArray[np.uint8],
    keypoints: NDArray[np.floating[Any]],
    *,
    visible: NDArray[np.bool_] | None = None,
    occluded: NDArray[np.bool_] | None = None,
    width: float | None = None,
) -> NDArray[np.uint8]:
    """Draw 21 joints and their bones over a copy of an (H, W, 3) uint8 RGB image, one colour per finger.

    `keypoints` is (21, 2): x, y in pixels in the order of `hand.JOINT_NAMES`; further columns are ignored. Joints that
    are not `visible` (21,) or not finite are left out with their bones; those that are `occluded` (21,) are rings.
    `width` is the bones' in pixels; None fits it to the hand's size. Raises ImageError for an array that is no image,
    ValueError for keypoints of other shapes.
    """
    import cv2  # on first use: meshes are drawn without it

    check_image(image)
    points = np.asarray(keypoints, dtype=np.float64)
    if points.ndim != 2 or points.shape[0] != JOINT_COUNT or points.shape[1] < 2:
        raise ValueError(f"Keypoints are ({JOINT_COUNT}, 2), found {points.shape}.")
    points = points[:, :2]
    shown: NDArray[np.bool_] = np.all(np.abs(points) < MAX_COORDINATE, axis=1)  # false for what is not finite
    if visible is not None:
        shown = shown & np.asarray(visible, dtype=bool).reshape(JOINT_COUNT)
    drawn = np.array(image, order="C")
    if not shown.any():
        return drawn
    if width is None:
        width = float(np.clip(0.016 * np.ptp(points[shown], axis=0).max(), 1.0, 0.01 * max(image.shape[:2]) + 2))

    # A dark edge makes every colour legible on any skin. OpenCV's coordinates are integers: here sixteenths of a pixel.
    shift = 4
    fixed = [(round(x * 2**shift), round(y * 2**shift)) for x, y in np.where(shown[:, None], points, 0.0)]
    edge = max(1.0, 0.35 * width)
    for grow, dark in ((2 * edge, True), (0.0, False)):
        for parent, joint in BONES:
            if shown[parent] and shown[joint]:
                bone_color = (24, 24, 24) if dark else _joint_color(joint)
                thickness = min(max(1, round(width + grow)), 32767)  # OpenCV draws no wider
                cv2.line(drawn, fixed[parent], fixed[joint], bone_color, thickness, cv2.LINE_AA, shift)
    for joint in np.flatnonzero(shown).tolist():
        dots = [(1.1 * width + edge, (24, 24, 24)), (1.1 * width, _joint_color(joint))]
        if occluded is not None and occluded[joint]:
            dots.append((0.6 * width, (24, 24, 24)))
        for radius, dot_color in dots:
            cv2.circle(drawn, fixed[joint], round(radius * 2**shift), dot_color, cv2.FILLED, cv2.LINE_AA, shift)
    return drawn


def _joint_color(joint: int) -> Color:
    finger = JOINT_NAMES[joint].split("_")[0]
    return FINGER_COLORS[finger] if finger in FINGER_NAMES else WRIST_COLOR
