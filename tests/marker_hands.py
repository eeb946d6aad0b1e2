"""Pictures of hands that a computer can read exactly, and the network that reads them.

A hand is a red dot at its wrist and a blue one at its middle knuckle, and may have a green one for a thumb: on the left
of a right hand that points up. `MarkerEngine` answers as an ideal network would:
it finds the dots nearest to the middle of the crop and puts a flat hand on them; where there are none it imagines a
hand in the middle of the crop, as real networks do. So tests of tracking know every answer, and take no time.
"""

from __future__ import annotations

import cv2
import numpy as np

from handmesh.hand import JOINT_NAMES, HandOutput, builtin_hand

WRIST, MIDDLE = JOINT_NAMES.index("wrist"), JOINT_NAMES.index("middle_mcp")
# Fingers up, palm to the camera: the model at rest points along -x, its palm along -y.
UPRIGHT = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])


def draw(hands, size=(320, 240)):
    """(H, W, 3) grey picture with hands, each ((x, y) of wrist, of middle knuckle[, of thumb]) in pixels."""
    image = np.full((size[1], size[0], 3), 96, np.uint8)
    for hand in hands:
        for dot, color in zip(hand, ((255, 0, 0), (0, 0, 255), (0, 255, 0)), strict=False):
            cv2.circle(image, tuple(round(16 * v) for v in dot), 16 * 6, color, -1, cv2.LINE_AA, 4)
    return image


def hand_at(x, y, length=50.0, angle=0.0, side=None):
    """A hand with its wrist at (x, y), pointing up, turned clockwise by `angle`; with a thumb if it has a `side`."""
    up = length * np.array([np.sin(angle), -np.cos(angle)])
    wrist = np.array([x, y])
    if side is None:
        return (x, y), tuple(wrist + up)
    left = np.array([up[1], -up[0]])
    return (x, y), tuple(wrist + up), tuple(wrist + 0.6 * up + (0.5 if side == "right" else -0.5) * left)


class MarkerEngine:
    name, resolution = "marker reader", 128

    def __init__(self, noise=0.0, *, heads=False):
        """`noise`: radians of jitter of every joint, to be smoothed. `heads`: says handedness and confidence.

        The confidence is `confidence` where there are dots, and 0.05 where there are none.
        """
        self.record = {"model": {"backbone": "markers", "handedness_head": heads, "confidence_head": heads}}
        self.confidence = 0.9
        self.hand = builtin_hand()
        self._heads = heads
        self.crop_count = 0
        self._mean_hand = self.hand.shaped()
        self._rng, self._noise = np.random.default_rng(0), noise

    def __call__(self, crops):
        self.crop_count += len(crops)
        answers = [self._answer(crop) for crop in crops]
        return HandOutput(*(np.stack(column).astype(np.float32) for column in zip(*answers, strict=True)))

    def _answer(self, crop):
        wrist, knuckle = self._dot(crop, 0), self._dot(crop, 2)
        thumb, imagined = self._dot(crop, 1), wrist is None or knuckle is None
        if imagined:
            wrist, knuckle = np.array([0.0, 0.5]), np.array([0.0, -0.1])
        pose = np.tile(np.eye(3), (16, 1, 1))
        if self._noise:
            from scipy.spatial.transform import Rotation

            pose = Rotation.from_rotvec(self._rng.normal(0, self._noise, (16, 3))).as_matrix()
        pose[0] = UPRIGHT
        flat = self._mean_hand.posed(pose).joints
        was, now = flat[MIDDLE, :2] - flat[WRIST, :2], knuckle - wrist
        turn = np.arctan2(now[1], now[0]) - np.arctan2(was[1], was[0])
        c, s = np.cos(turn), np.sin(turn)
        pose[0] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ UPRIGHT
        posed = self._mean_hand.posed(pose)
        scale = np.linalg.norm(now) / np.linalg.norm(was)
        camera = np.array([scale, *(wrist / scale - posed.joints[WRIST, :2])])
        confidence, right = 1.0, 1.0
        if self._heads:
            confidence, right = 0.05 if imagined else self.confidence, 0.5
            if thumb is not None and not imagined:
                (x, y), (u, v) = knuckle - wrist, thumb - wrist
                right = 0.95 if x * v - y * u < 0 else 0.05
        said = np.float32(confidence), np.float32(right), np.full(21, confidence, np.float32), np.zeros((21, 3))
        return camera, pose, np.zeros(10), posed.vertices, posed.joints, *said

    def _dot(self, crop, channel):
        """(2,) ndc of the dot of a colour that is nearest to the middle, weighted by how much it is that colour."""
        pixels = crop.astype(np.float64)
        others = pixels[..., [c for c in range(3) if c != channel]].max(axis=-1)
        strength = np.clip((pixels[..., channel] - others) / 255, 0, 1) * (others < 90)
        count, labels = cv2.connectedComponents((strength > 0.25).astype(np.uint8))
        best = None
        for label in range(1, count):
            weight = np.where(cv2.dilate((labels == label).astype(np.uint8), np.ones((3, 3))) > 0, strength, 0)
            rows, columns = np.mgrid[: len(crop), : len(crop)]
            center = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
            ndc = (2 * center + 1) / len(crop) - 1
            if best is None or np.linalg.norm(ndc) < np.linalg.norm(best):
                best = ndc
        return best
