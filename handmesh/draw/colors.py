"""What hands and fingers are drawn in: RGB, 0 to 255."""

from __future__ import annotations

from typing import Final

from handmesh.hand import Handedness

Color = tuple[int, int, int]

# Blue and amber: far from every skin tone and from each other, also for eyes that do not tell red from green.
HAND_COLORS: Final[dict[Handedness, Color]] = {Handedness.RIGHT: (128, 176, 246), Handedness.LEFT: (250, 186, 104)}

# Five hues of the Okabe-Ito palette for colour-blind readers, brightened for dark photographs; grey for the wrist.
FINGER_COLORS: Final[dict[str, Color]] = {
    "thumb": (255, 92, 66),
    "index": (255, 190, 40),
    "middle": (46, 214, 134),
    "ring": (74, 176, 255),
    "pinky": (232, 120, 222),
}
WRIST_COLOR: Final[Color] = (236, 236, 236)
