"""The joints of a hand: names, orders, parents, fingertips and sides.

Two joint orders meet here and nowhere else. A hand model file (MANO's format) has 16 joints: the wrist, then three per
finger in the order index, middle, pinky, ring, thumb. Everything a user sees has 21 joints in FreiHAND's order: the
wrist, then four per finger (three joints and the tip) in the order thumb, index, middle, ring, pinky.
"""

from __future__ import annotations

import difflib
import math
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from handmesh.errors import ConfigError

FINGER_NAMES = ("thumb", "index", "middle", "ring", "pinky")

MANO_JOINT_NAMES = (
    "wrist",
    *("index_mcp", "index_pip", "index_dip"),
    *("middle_mcp", "middle_pip", "middle_dip"),
    *("pinky_mcp", "pinky_pip", "pinky_dip"),
    *("ring_mcp", "ring_pip", "ring_dip"),
    *("thumb_cmc", "thumb_mcp", "thumb_ip"),
)
MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
# From the wrist outwards: joints of all fingers at once, and their parents.
MANO_LEVELS = (
    (slice(1, None, 3), slice(0, 1)),
    (slice(2, None, 3), slice(1, None, 3)),
    (slice(3, None, 3), slice(2, None, 3)),
)

FINGERTIP_NAMES = tuple(f"{finger}_tip" for finger in FINGER_NAMES)
# The ids of FreiHAND's own tools (utils/mano_utils.py); other projects' tables differ by up to 5 mm.
FINGERTIP_VERTICES = (744, 320, 443, 555, 672)

JOINT_NAMES = (
    "wrist",
    *("thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip"),
    *("index_mcp", "index_pip", "index_dip", "index_tip"),
    *("middle_mcp", "middle_pip", "middle_dip", "middle_tip"),
    *("ring_mcp", "ring_pip", "ring_dip", "ring_tip"),
    *("pinky_mcp", "pinky_pip", "pinky_dip", "pinky_tip"),
)
JOINT_PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
BONES = tuple((parent, joint) for joint, parent in enumerate(JOINT_PARENTS) if parent >= 0)

# joints21 = concatenate(16 regressed joints, 5 tip vertices)[JOINTS_FROM_MANO]
JOINTS_FROM_MANO = tuple((MANO_JOINT_NAMES + FINGERTIP_NAMES).index(name) for name in JOINT_NAMES)


def joint_index(name: str) -> int:
    """The place of a joint in `JOINT_NAMES`. Raises ConfigError for a name that is none of them."""
    if name in JOINT_NAMES:
        return JOINT_NAMES.index(name)
    near = difflib.get_close_matches(str(name), JOINT_NAMES, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"There is no joint {name!r}: {meant}Joints are {', '.join(JOINT_NAMES)}.")


class Handedness(StrEnum):
    """Which hand it is: equal to "right" or "left", and a name for it."""

    RIGHT = "right"
    LEFT = "left"

    @property
    def other(self) -> Handedness:
        """What its mirror image is."""
        return Handedness.LEFT if self == Handedness.RIGHT else Handedness.RIGHT

    @classmethod
    def parse(cls, text: str) -> Handedness:
        """Whatever the case of the letters. Raises ConfigError for anything but right and left."""
        for side in cls:
            if isinstance(text, str) and text.strip().lower() == side:
                return side
        raise ConfigError(f"Handedness {text!r}: wanted 'right' or 'left'.")


def upright_rotation(keypoints: ArrayLike) -> float:
    """The crop rotation in which the middle knuckle is straight above the wrist; `keypoints` (21, 2) image pixels.

    Mirroring comes after turning and leaves "up" alone, so this serves left hands too.
    """
    points = np.asarray(keypoints, dtype=np.float64)
    dx, dy = points[JOINT_NAMES.index("middle_mcp")] - points[JOINT_NAMES.index("wrist")]
    return -math.pi / 2 - math.atan2(dy, dx)
