"""What the tables of photographs split by: a hand's view, its tone, and how much of it is covered."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from confidence import OUTER, painted
from photographs import cover, tone_of, view_of

from handmesh.hand import FINGER_NAMES, JOINT_NAMES, Handedness, builtin_hand
from handmesh.hand.anatomy import palm_frame
from handmesh.hand.fit import HandFit, fit_hand
from handmesh.synth import Backgrounds

# Where the fingers, the thumb's side and the back point: x right, y down, z away from the camera.
SEEN_FROM = {
    "back": ((0, -1, 0), (0, 0, -1)),
    "palm": ((0.1, -1, 0.2), (0, 0, 1)),
    "side": ((0, -1, 0), (1, 0, 0.2)),
    "along": ((0, 0.3, -1), (0, -1, 0)),
}


def axes(first, second) -> np.ndarray:
    """(3, 3), in its columns: the first direction, the second as far as it is across it, and what is across both."""
    x = np.asarray(first, float) / np.linalg.norm(first)
    y = second - (second @ x) * x
    y /= np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def seen(fingers, back, side: Handedness = Handedness.RIGHT) -> HandFit:
    """A flat hand that points and faces so, in the middle of a picture of 300 px."""
    hand = builtin_hand(side)
    palm = palm_frame(hand)
    pose = np.tile(np.eye(3), (16, 1, 1))
    pose[0] = axes(fingers, np.array(back)) @ axes(palm.distal, palm.dorsal).T
    posed = hand.shaped(np.zeros(10)).posed(pose)
    keypoints = 150 + 1000 * (posed.joints[:, :2] - posed.joints[:, :2].mean(axis=0))
    return fit_hand(keypoints, joints=posed.joints, hand=hand)


@pytest.mark.parametrize("side", list(Handedness))
@pytest.mark.parametrize("view", SEEN_FROM)
def test_a_view_is_named_by_what_faces_the_camera(view, side):
    assert view_of(seen(*SEEN_FROM[view], side)) == view


@pytest.mark.parametrize(
    ("lightness", "yellow", "ita"), [(70, 20, 45.0), (50, 18, 0.0), (35, 15, -45.0), (60, 10, 45.0)]
)
def test_a_tone_is_the_angle_of_its_definition(lightness, yellow, ita):
    """arctan((L* - 50) / b*), of the palm: what lies around it does not matter."""
    fit = seen(*SEEN_FROM["palm"])
    color = cv2.cvtColor(np.float32([[[lightness, 12, yellow]]]), cv2.COLOR_LAB2RGB)[0, 0]
    image = np.zeros((300, 300, 3), np.uint8)
    x, y = fit.keypoints[[JOINT_NAMES.index("wrist"), JOINT_NAMES.index("middle_mcp")]].mean(axis=0)
    cv2.circle(image, (round(x), round(y)), 60, tuple(map(float, 255 * color)), -1)
    assert tone_of(image, fit) == pytest.approx(ita, abs=2)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_as_much_of_a_hand_is_covered_as_asked(share):
    hand, image = np.zeros((200, 240), np.uint8), np.full((200, 240, 3), 77, np.uint8)
    hand[40:150, 60:140] = 1
    for seed in range(8):
        changed, mask = cover(np.random.default_rng(seed), image, hand, share, Backgrounds(1, count=2))
        assert (mask & hand).sum() / hand.sum() == pytest.approx(share, abs=0.05)
        np.testing.assert_array_equal(changed[mask == 0], 77)


@pytest.mark.parametrize("over", [None, np.full((8, 8, 3), 200, np.uint8)])
@pytest.mark.parametrize("finger", FINGER_NAMES)
def test_of_a_finger_that_is_painted_over_nothing_is_seen(finger, over):
    """A white finger on grey; the others, spread out, stay."""
    keypoints = seen(*SEEN_FROM["palm"]).keypoints
    image = np.full((300, 300, 3), 77, np.uint8)
    for name in FINGER_NAMES:
        cv2.polylines(image, [keypoints[OUTER[name]].round().astype(np.int32)], False, (255, 255, 255), 3)
    changed = painted(image, keypoints, finger, over)
    for name in FINGER_NAMES:
        x, y = keypoints[OUTER[name][-1]].round().astype(int)
        assert (changed[y, x].max() == 255) == (name != finger)
