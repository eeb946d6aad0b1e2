"""Which poses hands take: a library of everyday hand shapes, mixed, varied, held to joint limits and kept from
passing through themselves.

Poses are (16, 3) anatomical angles in radians (flexion, abduction, twist per joint; `handmesh.hand.anatomy`), MANO's
joint order. `PosePrior.sample` returns rotations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import PoseSettings
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGER_NAMES, MANO_PARENTS, HandArrays
from handmesh.hand.anatomy import (
    FINGER_ROOTS,
    JOINT_LIMITS,
    bone_ends,
    flexion_axes,
    hand_angles,
)
from handmesh.system.kernels import kernel

Floats = NDArray[np.float64]


class BasePose(NamedTuple):
    angles: Floats  # (16, 3) radians
    holds: str  # what such a hand may hold: "cylinder", "ball", "pen", "plate", "phone", "tool", "tray" or ""
    weight: float  # how often, relative to the others


def _base(weight: float, holds: str, *fingers: tuple[float, ...]) -> BasePose:
    """Fingers in the order thumb, index, middle, ring, pinky, degrees as in `handmesh.hand.anatomy.hand_angles`."""
    return BasePose(hand_angles(*fingers), holds, weight)


# Curls that recur below: flexion of MCP, PIP, DIP.
_FIST = (80.0, 98.0, 60.0)
_HOOK = (10.0, 90.0, 55.0)
_STRAIGHT = (0.0, 3.0, 2.0)
# The thumb: CMC flexion, MCP, IP, CMC abduction (away from the index finger), CMC twist (towards opposition).
_OVER_FINGERS = (5.0, 41.0, 41.0, 0.0, 25.0)
_ASIDE = (0.0, 5.0, 2.0, 4.0, 0.0)
_OUT = (-10.0, -4.0, -8.0, 16.0, -5.0)
_ACROSS_PALM = (24.0, 45.0, 35.0, -8.0, 25.0)
_OPPOSED = (18.0, 14.0, 18.0, -16.0, 0.0)

# Chosen by eye on the built-in hand, after: the grasp taxonomy of Feix et al. 2016 (power, precision and lateral
# grasps), counting, pointing and emblem gestures, letters of manual alphabets, and hands at rest.
BASE_POSES: dict[str, BasePose] = {
    # at rest and open
    "flat": _base(1.5, "", _ASIDE, _STRAIGHT, _STRAIGHT, _STRAIGHT, _STRAIGHT),
    "flat_closed": _base(1.0, "", (10, 8, 5, -20, 5), (2, 4, 3, -4), (2, 4, 3), (2, 4, 3, 3), (2, 5, 3, 7)),
    "relaxed": _base(3.0, "", (6, 10, 10, -6), (14, 22, 12), (20, 26, 14), (24, 28, 15), (26, 27, 14)),
    "relaxed_curled": _base(2.5, "", (10, 16, 18, -8, 8), (28, 42, 22), (36, 48, 26), (42, 50, 28), (44, 46, 26)),
    "spread": _base(1.5, "", _OUT, (-6, 2, 2, 13), (-6, 0, 0, 2), (-6, 1, 1, -10), (-6, 2, 2, -18)),
    "claw": _base(1.0, "ball", (0, 12, 25, 2, 10), (-5, 50, 35, 9), (-5, 52, 36), (-5, 50, 35, -8), (-5, 46, 32, -14)),
    "wave": _base(1.0, "", (-4, 2, 0, 8), (4, 12, 6, 6), (2, 9, 5), (4, 10, 6, -5), (2, 14, 7, -11)),
    "cupped": _base(1.0, "", (16, 12, 12, -16, 12), (30, 18, 10, -3), (34, 20, 10), (36, 20, 10, 3), (36, 22, 12, 6)),
    "beak": _base(0.7, "", (26, 12, 4, -16, 14), (58, 22, 10), (60, 24, 12), (60, 24, 12, 3), (62, 22, 10, 8)),
    "pressing": _base(0.8, "", (0, 4, -10, 6), (-8, 14, -5, 5), (-8, 14, -5), (-8, 14, -5, -4), (-8, 14, -5, -9)),
    # fists
    "fist": _base(2.0, "", _OVER_FINGERS, (76, 98, 58), (80, 100, 62), (82, 100, 60), (80, 96, 56)),
    "fist_thumb_aside": _base(1.0, "", (12, 14, 8, -22, 0), _FIST, _FIST, _FIST, (80, 96, 56)),
    "loose_fist": _base(1.5, "cylinder", (10, 30, 25, -8, 18), (55, 75, 40), (60, 78, 42), (64, 78, 42), (64, 72, 40)),
    "thumb_up": _base(1.2, "", (-12, -6, -12, 12), (76, 98, 58), (80, 100, 62), (82, 100, 60), (80, 96, 56)),
    # pointing and counting
    "point": _base(2.0, "", (13, 50, 20, -8, 25), (2, 4, 2), (80, 98, 58), (84, 98, 58), (82, 94, 55)),
    "point_thumb_out": _base(1.2, "", _OUT, (2, 4, 2), _FIST, _FIST, (80, 94, 55)),
    "point_loose": _base(1.0, "", (10, 20, 15, -8, 15), (8, 12, 6), (48, 60, 32), (54, 62, 34), (56, 58, 32)),
    "touch_screen": _base(0.8, "", (12, 18, 14, -8, 12), (30, 26, 8), (52, 62, 34), (58, 66, 36), (60, 60, 34)),
    "two": _base(1.2, "", (14, 50, 30, -4, 25), (0, 2, 2, 12), (0, 2, 2, -8), (82, 98, 58), (80, 94, 55)),
    "two_closed": _base(0.6, "", (14, 50, 30, -4, 25), (2, 4, 3, -3), (2, 4, 3, 2), (82, 98, 58), (80, 94, 55)),
    "two_thumb": _base(0.8, "", _OUT, (0, 2, 2, 10), (0, 2, 2, -6), _FIST, (80, 94, 55)),
    "three": _base(1.0, "", (16, 50, 40, -6, 25), (0, 2, 2, 8), (-2, 2, 2), (0, 2, 2, -8), (80, 94, 55)),
    "four": _base(1.0, "", _ACROSS_PALM, (0, 2, 2, 7), (-2, 2, 2, 1), (0, 2, 2, -6), (0, 2, 2, -12)),
    "horns": _base(0.7, "", (16, 48, 35, -6, 25), (0, 2, 2, 4), _FIST, _FIST, (0, 2, 2, -10)),
    "love": _base(0.6, "", _OUT, (0, 2, 2, 6), _FIST, _FIST, (0, 2, 2, -12)),
    "phone": _base(0.7, "", _OUT, _FIST, _FIST, _FIST, (0, 2, 2, -14)),
    "pinky": _base(0.5, "", (14, 45, 35, -6, 25), _FIST, _FIST, _FIST, (2, 4, 2, -6)),
    "crossed": _base(0.4, "", (16, 48, 35, -6, 25), (4, 8, 4, -8), (-2, 4, 3, 7), _FIST, (80, 94, 55)),
    "snap": _base(0.5, "", (20, 18, 10, -14, 12), (34, 26, 12), (58, 36, 18), (76, 90, 55), (78, 88, 52)),
    "scissors": _base(0.5, "", _OPPOSED, (10, 24, 12, 8), (14, 28, 14, -4), (70, 88, 52), (72, 86, 50)),
    # pinches and precision grasps
    "pinch": _base(2.0, "pen", (19, 13, 19.5, -18, -10), (47, 43, 23), (24, 24, 12), (18, 18, 10), (12, 14, 8)),
    "pinch_curled": _base(1.5, "pen", (19, 13, 20, -18, -10), (47, 43, 23), (62, 70, 40), (70, 80, 46), (72, 78, 44)),
    "ok": _base(1.2, "", (19, 13, 19.5, -18, -10), (47, 43, 23), (8, 10, 6, 2), (2, 6, 4, -4), (-4, 4, 3, -10)),
    "pinch_middle": _base(0.8, "pen", (22, 14, 20, -14, -2), (22, 24, 12), (52, 44, 24), (24, 26, 14), (20, 22, 12)),
    "pinch_ring": _base(0.5, "", (27, 16, 18, -10, 10), (12, 14, 8), (18, 20, 10), (56, 46, 24), (30, 30, 16)),
    "pinch_pinky": _base(0.4, "", (34, 20, 18, -6, 22), (8, 10, 5), (10, 14, 8), (24, 28, 14), (56, 44, 24)),
    "tripod": _base(1.5, "pen", (17, 18, 18, -14, 2), (44, 40, 16), (50, 50, 26), (56, 62, 34), (58, 60, 34)),
    "writing": _base(1.5, "pen", (14, 20, 22, -14, 6), (40, 46, 18), (46, 58, 30), (52, 70, 38), (54, 66, 36)),
    "quadpod": _base(0.8, "ball", (20, 14, 16, -14, 6), (46, 38, 18, 3), (48, 40, 20), (52, 42, 22, -2), (52, 50, 28)),
    "key": _base(1.2, "plate", (14, 14, 14, -24, 5), (52, 62, 30), (66, 78, 42), (72, 84, 46), (74, 80, 44)),
    "plate": _base(1.2, "plate", (26, 6, -4, -14, 14), (54, 8, 4, 2), (54, 10, 5), (55, 10, 5, -2), (54, 10, 5, -4)),
    "chopsticks": _base(0.5, "pen", (14, 16, 16, -16, 4), (42, 44, 18), (38, 42, 20), (46, 58, 30), (50, 62, 34)),
    # power grasps
    "grasp": _base(2.0, "cylinder", (16, 8, 14, -4, 16), (38, 44, 24, 4), (42, 46, 26), (44, 46, 26), (42, 42, 24, -5)),
    "grasp_tight": _base(1.5, "cylinder", (18, 24, 22, -4, 20), (54, 62, 34), (58, 66, 38), (60, 66, 38), (60, 62, 36)),
    "grasp_large": _base(1.2, "cylinder", (4, 6, 10, 6, 16), (22, 32, 18, 6),
        (24, 34, 20), (26, 34, 20), (24, 32, 18, -8)),
    "ball_grasp": _base(1.2, "ball", (10, 8, 12, 2, 14), (26, 34, 20, 11),
        (30, 36, 22), (30, 36, 22, -8), (28, 34, 20, -15)),
    "small_ball": _base(0.8, "ball", (20, 16, 18, -8, 10), (40, 44, 24, 8),
        (44, 48, 26), (46, 48, 26, -5), (46, 46, 24, -9)),
    "bottle": _base(1.2, "cylinder", (12, 12, 14, 0, 18), (34, 42, 24), (38, 44, 26), (40, 46, 26), (40, 44, 24)),
    "hook": _base(1.0, "cylinder", (4, 10, 8, -6, 4), _HOOK, _HOOK, _HOOK, (12, 86, 50)),
    "bag_handle": _base(0.7, "cylinder", (6, 16, 14, -8, 8), (24, 84, 46), (28, 86, 48), (30, 86, 48), (32, 80, 44)),
    "holding_phone": _base(1.2, "phone", (2, 10, 8, 2, 6), (16, 32, 16), (20, 36, 18), (22, 38, 20), (24, 36, 18)),
    "tool": _base(0.8, "tool", (10, 8, 4, -10, 4), (48, 40, 12), (62, 70, 38), (66, 74, 42), (66, 70, 40)),
    "steering": _base(0.6, "cylinder", (4, 14, 20, 0, 8), (58, 56, 30), (62, 58, 32), (64, 58, 32), (64, 54, 30)),
    # letters and the like
    "letter_c": _base(0.7, "", (8, 8, 16, 0, 14), (34, 38, 22), (36, 38, 22), (38, 38, 22), (38, 36, 20)),
    "letter_e": _base(0.5, "", (24, 42, 45, -6, 22), (30, 95, 58), (32, 96, 60), (34, 96, 60), (36, 92, 56)),
    "letter_l": _base(0.8, "", (-12, -4, -8, 20), _STRAIGHT, _FIST, _FIST, (80, 94, 55)),
    "right_angle": _base(0.7, "", (12, 8, 6, -14, 4), (82, 5, 3), (84, 5, 3), (84, 6, 3), (82, 8, 4)),
    "letter_o": _base(0.6, "", (22, 16, 18, -14, 6), (48, 46, 24), (52, 48, 26), (54, 50, 28), (56, 48, 26)),
    "tickle": _base(0.4, "", (2, 10, 14, 2, 6), (10, 60, 36, 5), (-8, 22, 10), (22, 64, 38, -4), (0, 30, 15, -10)),
    "letter_d": _base(0.7, "", (24, 16, 18, -8, 8), (0, 3, 2), (58, 46, 24), (60, 50, 28), (62, 50, 28)),
    "letter_f": _base(0.6, "", (19, 13, 19.5, -18, -10), (47, 43, 23), (0, 3, 2), (0, 3, 2), (0, 4, 2, 2)),
    "letter_g": _base(0.7, "", (4, 2, -4, -22, 0), (30, 5, 3), (80, 96, 56), (82, 98, 58), (80, 94, 55)),
    "letter_h": _base(0.5, "", (14, 40, 30, -10, 22), (28, 5, 3, -2), (28, 5, 3, 2), (82, 98, 58), (80, 94, 55)),
    "letter_k": _base(0.6, "", (16, 10, 8, -20, 4), (-4, 3, 2, 8), (34, 6, 4, -4), (80, 96, 58), (80, 94, 55)),
    "letter_m": _base(0.5, "", (26, 30, 30, -14, 30), (70, 78, 46), (72, 80, 48), (72, 80, 48), (80, 94, 55)),
    "letter_s": _base(0.6, "", (14, 44, 38, -8, 26), _FIST, _FIST, _FIST, (80, 96, 56)),
    "letter_t": _base(0.5, "", (12, 22, 30, -20, 8), (66, 84, 50), _FIST, _FIST, (80, 96, 56)),
    "letter_x": _base(0.7, "", (14, 44, 30, -8, 24), (8, 72, 44), (80, 98, 58), (82, 98, 58), (80, 94, 55)),
    "bent_two": _base(0.5, "", (14, 48, 30, -4, 25), (6, 70, 42, 8), (6, 72, 44, -6), (82, 98, 58), (80, 94, 55)),
    "bent_three": _base(0.4, "", _OUT, (6, 66, 40, 8), (6, 68, 42, -4), (78, 96, 58), (80, 94, 55)),
    "open_eight": _base(0.5, "", (10, 8, 6, 2, 10), (-2, 4, 2, 9), (52, 12, 8), (-2, 6, 4, -7), (-4, 4, 3, -14)),
    "ring_down": _base(0.4, "", (4, 6, 8, 0, 8), (2, 6, 4, 6), (6, 12, 8, 2), (54, 50, 28), (12, 14, 8, -10)),
    "middle_up": _base(0.5, "", (14, 40, 30, -8, 22), (72, 94, 54), (0, 4, 3), (74, 94, 54), (78, 92, 54)),
    "three_little": _base(0.5, "", (22, 40, 30, -8, 24), (76, 94, 56), (8, 10, 6, 4), (2, 4, 3, -3), (-2, 3, 2, -11)),
    "gun": _base(0.6, "", (-10, -6, -10, 12), (4, 4, 2, 1), (6, 6, 3, -1), _FIST, (80, 94, 55)),
    "salute": _base(0.8, "", (4, 6, 4, -16, 0), (2, 4, 3, -2), (0, 4, 3), (1, 4, 3, 2), (2, 5, 3, 5)),
    "stop": _base(1.0, "", (-6, 0, 0, 6), (-12, 3, 2, 3), (-12, 2, 2), (-12, 3, 2, -3), (-12, 4, 2, -7)),
    "chin_rest": _base(0.6, "", (8, 6, 4, -4, 6), (24, 56, 30), (34, 64, 36), (40, 66, 38), (44, 62, 34)),
    "typing": _base(0.9, "", (8, 8, 6, -4, 10), (24, 40, 16, 3), (22, 44, 18), (24, 42, 18, -4), (22, 38, 16, -9)),
    "key_press": _base(0.6, "", (6, 8, 6, -2, 10), (46, 34, 10, 2), (16, 40, 18), (22, 44, 20, -3), (20, 40, 18, -8)),
    "mouse": _base(0.7, "", (4, 4, 6, 2, 10), (12, 22, 8, 3), (12, 24, 8, -1), (22, 38, 18, -4), (22, 36, 16, -8)),
    # grasps of the taxonomy that the ones above leave out
    "disk": _base(0.6, "ball", (2, 6, 18, 4, 12), (4, 40, 26, 14), (8, 42, 28, 4), (8, 42, 28, -8), (6, 40, 26, -16)),
    "prismatic": _base(0.8, "pen", (26, 8, 6, -10, 10), (54, 22, 12, 2), (54, 24, 12), (56, 24, 12), (58, 22, 12, -2)),
    "index_extension": _base(0.8, "tool", (12, 14, 10, -16, 6),
        (22, 12, 6), (62, 72, 40), (66, 76, 44), (66, 72, 42)),
    "cigarette": _base(0.5, "", (8, 14, 12, -6, 8), (14, 14, 8, -3), (14, 16, 8, 3), (28, 34, 18), (34, 38, 20)),
    "platform": _base(0.7, "tray", (4, 6, 4, 8, 4), (-6, 10, 6, 8), (-6, 10, 6, 1), (-4, 12, 7, -6), (-4, 14, 8, -12)),
    "lateral_tripod": _base(0.7, "pen", (14, 18, 20, -18, 2), (50, 56, 22), (58, 66, 34), (64, 74, 42), (66, 72, 40)),
    "ring_grasp": _base(0.7, "cylinder", (12, 10, 16, -2, 12), (32, 40, 26), (44, 48, 28), (16, 22, 12), (12, 18, 10)),
    "sphere_3": _base(0.6, "ball", (14, 12, 16, -6, 10), (32, 40, 24, 6), (34, 42, 26, -3), (62, 70, 40), (66, 70, 40)),
    "handle": _base(0.8, "tool", (14, 28, 20, -8, 18), (68, 78, 44), (72, 82, 48), (74, 82, 48), (74, 78, 46)),
    "light_tool": _base(0.7, "pen", (8, 16, 14, -14, 6), (50, 70, 36), (60, 78, 42), (66, 80, 44), (68, 76, 42)),
    "cup_handle": _base(0.7, "plate", (14, 12, 14, -18, 4), (48, 70, 36), (52, 72, 38), (62, 74, 40), (66, 72, 40)),
    "spoon": _base(0.8, "pen", (16, 18, 20, -18, 0), (46, 58, 24), (56, 66, 32), (64, 74, 42), (66, 72, 40)),
    "camera": _base(0.6, "phone", (14, 10, 12, -8, 10), (34, 40, 22, 2), (48, 48, 26), (52, 50, 28), (54, 48, 28)),
}  # fmt: skip


_TIP_TAPER = 0.8  # a fingertip's half thickness over that of its whole last bone

# How a thumb gets out of the way of the fingers: away from the index finger, and straighter; radians per step.
_THUMB_STEP = np.zeros((3, 3))
_THUMB_STEP[0, :2] = -0.06, 0.10
_THUMB_STEP[1, 0] = -0.12
_THUMB_STEP[2, 0] = -0.05


# Poses in which the thumb can touch: the finger, and which of its bones (0 next to the palm, 2 the last).
TOUCHING_POSES: tuple[tuple[str, str, int], ...] = (
    *(("ok", "index", 2), ("pinch", "index", 2), ("pinch_curled", "index", 2), ("letter_f", "index", 2)),
    *(("pinch_middle", "middle", 2), ("pinch_ring", "ring", 2), ("pinch_pinky", "pinky", 2)),
    *(("tripod", "index", 2), ("tripod", "middle", 2), ("letter_o", "index", 2), ("letter_o", "middle", 2)),
    *(("letter_d", "middle", 2), ("beak", "index", 2), ("key", "index", 1), ("fist_thumb_aside", "index", 1)),
    *(("fist", "middle", 1), ("letter_s", "index", 1), ("three", "pinky", 1), ("two", "ring", 1)),
)
_TOUCHES = 0.0006  # metres between skins that touch
_PRESSED = 0.003  # metres: soft fingertips give so much
_TOUCH_STEPS = 8
_STEP = 1e-3  # radians


class SampledPose(NamedTuple):
    rotations: Floats  # (16, 3, 3); [0] is the identity
    name: str  # of the base pose that counts most, or "free"
    holds: str


class PosePrior:
    """Samples poses for one hand model."""

    def __init__(self, hand: HandArrays, settings: PoseSettings | None = None) -> None:
        self.settings = PoseSettings() if settings is None else settings
        self.names = tuple(BASE_POSES)
        poses = BASE_POSES.values()
        weights = np.array([pose.weight * (self.settings.grasps if pose.holds else 1) for pose in poses])
        self._weights = weights / weights.sum()
        self._axes = flexion_axes(hand)
        self._rest = hand.J.copy()
        self.radii = bone_radii(hand)
        self._ends = bone_ends(hand)
        for tip in (root + 2 for root in FINGER_ROOTS):  # a capsule's round end is the fingertip: stop short of it
            bone = self._ends[tip] - hand.J[tip]
            self.radii[tip] *= _TIP_TAPER
            self._ends[tip] -= 0.9 * self.radii[tip] * bone / np.linalg.norm(bone)
        self._pairs = _capsule_pairs()

    def rotations(self, angles: Floats) -> Floats:
        """(16, 3) angles -> (16, 3, 3) rotations; the same as `anatomy.pose_from_angles`, with the axes at hand."""
        rotations = matrix_from_vector(angles[:, :, None] * self._axes)
        return rotations[:, 1] @ rotations[:, 0] @ rotations[:, 2]

    def penetration(self, rotations: Floats) -> float:
        """How deep the hand's bones, thickened to its width, pass through each other, metres (0 or more)."""
        orientations, places = forward_kinematics(rotations, self._rest)
        return float(_deepest(orientations, places, self._rest, self._ends, self.radii, self._pairs))

    def sample(self, rng: np.random.Generator) -> SampledPose:
        """A random pose. Always returns: when a pose passes through itself the thumb gives way first, then another
        pose is drawn, and at last the hand is opened up step by step.
        """
        if self.settings.touch and rng.random() < self.settings.touch:
            touching = self.sample_touching(rng)
            if touching is not None:
                return touching
        thumb = slice(FINGER_ROOTS[0], FINGER_ROOTS[0] + 3)
        for _ in range(3):
            angles, name, holds = self._draw(rng)
            for _ in range(4):
                rotations = self.rotations(angles)
                if self.penetration(rotations) <= self.settings.penetration:
                    return SampledPose(rotations, name, holds)
                angles[thumb] += _THUMB_STEP
                angles = limit_angles(angles)
        relaxed = BASE_POSES["relaxed"].angles
        for share in (0.15, 0.3, 0.5, 0.75):
            rotations = self.rotations(angles + share * (relaxed - angles))
            if self.penetration(rotations) <= self.settings.penetration:
                return SampledPose(rotations, name, holds)
        return SampledPose(self.rotations(relaxed), "relaxed", "")

    def sample_touching(self, rng: np.random.Generator) -> SampledPose | None:
        """A pose whose thumb touches a finger, on its tip or its side: from one of `TOUCHING_POSES`, varied, thumb and

        finger closed until skin meets skin. None where they do not meet, or pass through something else.
        """
        name, finger, bone = TOUCHING_POSES[rng.integers(len(TOUCHING_POSES))]
        angles = BASE_POSES[name].angles.copy()
        _vary(rng, angles, self.settings)
        angles = limit_angles(angles)
        thumb, root = FINGER_ROOTS[0], FINGER_ROOTS[FINGER_NAMES.index(finger)]
        moved = [(thumb, 0), (thumb, 1), (thumb, 2), (thumb + 1, 0), (thumb + 2, 0)]
        moved += [(root, 0), (root, 1), (root + 1, 0), (root + 2, 0)]
        index = tuple(np.array(moved).T)
        target = root + bone
        press = rng.uniform(0.0, _PRESSED)

        def gap(values: Floats) -> float:
            angles[index] = values
            turns, places = forward_kinematics(self.rotations(angles), self._rest)
            segments = bone_segments(turns, places, self._rest, self._ends)
            tip = segments[thumb + 2, 1]
            distance = _segment_distance(tip, tip + 1e-9, segments[target, 0], segments[target, 1])
            return float(distance - self.radii[thumb + 2] - self.radii[target] + press)

        low, high = JOINT_LIMITS[index][:, 0], JOINT_LIMITS[index][:, 1]
        values = angles[index]
        found = gap(values)
        for _ in range(_TOUCH_STEPS):
            if abs(found) < _TOUCHES:
                break
            slope = np.array([(gap(values + step) - found) / _STEP for step in _STEP * np.eye(len(moved))])
            # The smallest change that closes the gap, as far as it grows evenly with the angles.
            change = -found * slope / max(float(slope @ slope), 1e-8)
            values = np.clip(values + np.clip(change, -0.35, 0.35), low, high)
            found = gap(values)
        rotations = self.rotations(angles)
        if abs(found) >= 2 * _TOUCHES or self.penetration(rotations) > self.settings.penetration + press:
            return None
        return SampledPose(rotations, name, BASE_POSES[name].holds if rng.random() < 0.3 else "")

    def _draw(self, rng: np.random.Generator) -> tuple[Floats, str, str]:
        settings = self.settings
        if rng.random() < settings.free:
            return limit_angles(_free_pose(rng)), "free", ""
        name = self.names[rng.choice(len(self.names), p=self._weights)]
        angles, holds = BASE_POSES[name].angles.copy(), BASE_POSES[name].holds
        if rng.random() < settings.blend:
            other = BASE_POSES[self.names[rng.choice(len(self.names), p=self._weights)]].angles
            angles += rng.uniform(0.1, 0.5) * (other - angles)
        if rng.random() < settings.swap_fingers:
            other = BASE_POSES[self.names[rng.choice(len(self.names), p=self._weights)]].angles
            for root in FINGER_ROOTS:
                if rng.random() < 0.4:
                    angles[root : root + 3] = other[root : root + 3]
            holds = ""
        if rng.random() < settings.single_fingers * (0.4 if holds else 1):  # it lets go of what is held
            _detach(rng, angles)
            holds = ""
        _vary(rng, angles, settings)
        return limit_angles(angles), name, holds


# How much a finger's neighbours follow when it moves alone, index to little: the index finger is the most independent,
# then the little one; the ring finger the least (Haeger-Ross and Schieber 2000; Zatsiorsky, Li and Latash 2000).
_FOLLOWS = {"index": 0.08, "middle": 0.22, "ring": 0.30, "pinky": 0.16}
_FAN = {"index": 1.0, "middle": 0.15, "ring": -0.7, "pinky": -1.5}  # abduction when fingers spread, index 1


def _detach(rng: np.random.Generator, angles: Floats) -> None:
    """In place: one to three fingers take a curl of their own, anything between stretched and folded, and their

    neighbours are drawn along a little. Without this nearly all variety of a mixed pose is one common curl, the first
    synergy (Santello, Flanders and Soechting 1998), and a network learns no more than that.
    """
    order = [FINGER_ROOTS[1], FINGER_ROOTS[2], FINGER_ROOTS[3], FINGER_ROOTS[4]]
    for finger in rng.permutation(4)[: 1 + rng.integers(3)]:
        root, follows = order[finger], list(_FOLLOWS.values())[finger]
        curl = rng.beta(0.7, 0.7)
        # Knuckle and finger bend apart: hooks (straight knuckle), flat bends (straight finger), and both together.
        mcp, pip = np.clip(curl + rng.normal(0, 0.22, 2), 0, 1) * np.radians([85, 98])
        change = np.array([mcp - angles[root, 0], pip - angles[root + 1, 0]])
        angles[root, 0], angles[root + 1, 0] = mcp, pip
        angles[root + 2, 0] = 0.62 * pip
        for neighbour in (finger - 1, finger + 1):
            if 0 <= neighbour < 4:
                angles[order[neighbour], 0] += follows * change[0]
                angles[order[neighbour] + 1, 0] += follows * change[1]
                angles[order[neighbour] + 2, 0] += 0.67 * follows * change[1]


def _vary(rng: np.random.Generator, angles: Floats, settings: PoseSettings) -> None:
    """Noise in place: a common curl, then each finger's own, then each joint's; DIP follows PIP, as tendons make it."""
    common, fan = rng.normal(0, settings.joint_noise), rng.normal(0, settings.fan_noise)
    for root, share in zip(FINGER_ROOTS[1:], _FAN.values(), strict=True):
        own = rng.normal(0, settings.joint_noise)
        mcp, pip = rng.normal(0, settings.joint_noise, 2)
        angles[root, 0] += 0.7 * common + 0.7 * own + mcp
        bend = common + own + pip
        angles[root + 1, 0] += bend
        angles[root + 2, 0] += 0.67 * bend + rng.normal(0, 0.5 * settings.joint_noise)
        angles[root, 1] += share * fan + rng.normal(0, settings.spread_noise)
    thumb = FINGER_ROOTS[0]
    angles[thumb, 0] += rng.normal(0, settings.joint_noise)
    angles[thumb, 1] += rng.normal(0, settings.joint_noise)
    angles[thumb, 2] += rng.normal(0, settings.joint_noise)
    angles[thumb + 1, 0] += rng.normal(0, 1.2 * settings.joint_noise)
    angles[thumb + 2, 0] += rng.normal(0, 1.5 * settings.joint_noise)


def _free_pose(rng: np.random.Generator) -> Floats:
    """Curls of four fingers with a shared part, a thumb anywhere within its range."""
    angles = np.zeros((16, 3))
    common = rng.beta(1.1, 1.5) * 1.5
    independence = rng.uniform(0.1, 0.8)
    for root in FINGER_ROOTS[1:]:
        curl = np.clip(common + rng.normal(0, independence), -0.1, 1.6)
        angles[root, 0] = curl * rng.uniform(0.5, 1.0) + rng.normal(-0.05, 0.12)
        angles[root + 1, 0] = curl * rng.uniform(0.8, 1.15)
        angles[root + 2, 0] = angles[root + 1, 0] * rng.uniform(0.45, 0.75)
        angles[root, 1] = rng.normal(0, 0.10)
    thumb = FINGER_ROOTS[0]
    low, high = np.moveaxis(JOINT_LIMITS[thumb : thumb + 3], -1, 0)
    angles[thumb : thumb + 3] = low + (high - low) * rng.beta(1.6, 1.6, (3, 3))
    return angles


def limit_angles(angles: Floats) -> Floats:
    """(16, 3) angles held to `JOINT_LIMITS`; sideways play shrinks as a knuckle bends (its ligaments tighten: about

    nothing is left at 90 degrees, Landsmeer 1955), and a DIP joint cannot bend far when its PIP joint is straight.
    """
    held = np.clip(angles, JOINT_LIMITS[..., 0], JOINT_LIMITS[..., 1])
    for root in FINGER_ROOTS[1:]:
        held[root, 1] *= 1 - 0.85 * np.clip(held[root, 0] / np.radians(90), 0, 1)
        held[root + 2, 0] = min(held[root + 2, 0], held[root + 1, 0] * 0.9 + np.radians(15))
    return held


# ----------------------------------------------------------------------------------------------------- capsules


def bone_radii(hand: HandArrays) -> Floats:
    """(16,) metres: how thick the flesh around each bone is; the median distance of the skin that follows the bone."""
    ends, radii = bone_ends(hand), np.empty(16)
    follows = hand.weights.argmax(axis=1)
    for joint in range(16):
        skin = hand.v_template[follows == joint]
        bone = ends[joint] - hand.J[joint]
        t = np.clip((skin - hand.J[joint]) @ bone / (bone @ bone), 0, 1)
        distance = np.linalg.norm(skin - hand.J[joint] - t[:, None] * bone, axis=1)
        radii[joint] = np.median(distance)
    return radii


def _capsule_pairs() -> NDArray[np.int32]:
    """Pairs of bones that should not pass through each other, by joint number; 16 to 19 are the four metacarpals."""
    pairs = []
    fingers = [tuple(range(root, root + 3)) for root in FINGER_ROOTS]
    for i, first in enumerate(fingers):
        for second in fingers[i + 1 :]:
            for a in first:
                for b in second:
                    both_roots = a == first[0] or b == second[0]
                    if not (both_roots and (i == 0 or (a == first[0] and b == second[0]))):
                        pairs.append((a, b))
    for finger in fingers:  # tips against the palm
        pairs += [(finger[2], 16 + metacarpal) for metacarpal in range(4)]
    return np.array(pairs, np.int32)


@kernel()
def forward_kinematics(rotations, rest):  # type: ignore[no-untyped-def]
    """(16, 3, 3) parent-relative rotations, (16, 3) rest joints -> global rotations (16, 3, 3), joints (16, 3).

    The root joint stays where it rests. Same float type in and out.
    """
    orientations, places = np.empty_like(rotations), np.empty_like(rest)
    orientations[0], places[0] = rotations[0], rest[0]
    for j in range(1, 16):
        p = MANO_PARENTS[j]
        for a in range(3):
            places[j, a] = places[p, a]
            for b in range(3):
                places[j, a] += orientations[p, a, b] * (rest[j, b] - rest[p, b])
                total = orientations[p, a, 0] * rotations[j, 0, b]
                total += orientations[p, a, 1] * rotations[j, 1, b]
                total += orientations[p, a, 2] * rotations[j, 2, b]
                orientations[j, a, b] = total
    return orientations, places


@kernel()
def _segment_distance(p, q, r, s):  # type: ignore[no-untyped-def]
    """Distance between segments p-q and r-s, each point (3,) (Ericson, Real-Time Collision Detection, 5.1.9)."""
    d1, d2, w = q - p, s - r, p - r
    a, e, f = (d1 * d1).sum(), (d2 * d2).sum(), (d2 * w).sum()
    c, b = (d1 * w).sum(), (d1 * d2).sum()
    denominator = a * e - b * b
    u = min(max((b * f - c * e) / denominator, 0.0), 1.0) if denominator > 1e-14 else 0.0
    v = (b * u + f) / e
    if v < 0.0:
        v = 0.0
        u = min(max(-c / a, 0.0), 1.0)
    elif v > 1.0:
        v = 1.0
        u = min(max((b - c) / a, 0.0), 1.0)
    gap = w + d1 * u - d2 * v
    return np.sqrt((gap * gap).sum())


@kernel()
def bone_segments(orientations, places, rest, ends):  # type: ignore[no-untyped-def]
    """(20, 2, 3) posed ends of the 16 bones and of the four metacarpals (wrist to knuckle), in joint order."""
    segments = np.empty((20, 2, 3))
    for j in range(16):
        segments[j, 0] = places[j]
        for a in range(3):
            total = places[j, a]
            for b in range(3):
                total += orientations[j, a, b] * (ends[j, b] - rest[j, b])
            segments[j, 1, a] = total
    for k in range(4):
        segments[16 + k, 0] = places[0]
        segments[16 + k, 1] = places[1 + 3 * k]
    return segments


@kernel()
def _deepest(orientations, places, rest, ends, radii, pairs):  # type: ignore[no-untyped-def]
    segments = bone_segments(orientations, places, rest, ends)
    deepest = 0.0
    for n in range(pairs.shape[0]):
        a, b = pairs[n, 0], pairs[n, 1]
        radius_b = radii[b] if b < 16 else 0.009  # half a palm's thickness, less what flesh gives way
        gap = _segment_distance(segments[a, 0], segments[a, 1], segments[b, 0], segments[b, 1]) - radii[a] - radius_b
        deepest = max(deepest, -gap)
    return deepest
