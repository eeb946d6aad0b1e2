"""Hands cut out of photographs: where they are laid, their keypoints are."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from handmesh.config.augmentation import PhotoAugmentation
from handmesh.data.crops import BOX
from handmesh.data.cut_outs import CutOuts, cut_out
from handmesh.data.formats.jsonl import JsonlData
from handmesh.data.sources import PhotoSource
from handmesh.errors import DataError
from handmesh.synth.crowd import draw_crowd

BACK = np.full((256, 256, 3), 40, np.uint8)
HAND = np.array([[100, 120], *[(90 + 3 * i, 60 + (7 * i) % 50) for i in range(20)]], float)  # its wrist below


@pytest.fixture
def labels(tmp_path):
    """Two photographs of a red square with a green dot at the wrist and a blue one at the middle knuckle: the hand of
    the second is a left one, and nothing is cut out of a third.
    """
    image, alpha = np.full((160, 200, 3), 230, np.uint8), np.zeros((160, 200), np.uint8)
    alpha[50:160, 80:160] = 255
    image[alpha > 0] = (200, 0, 0)
    for joint, color in ((0, (0, 200, 0)), (9, (0, 0, 200))):
        cv2.circle(image, tuple(np.rint(HAND[joint]).astype(int).tolist()), 4, color, -1)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    row = {"image": "a.png", "keypoints": HAND.tolist(), "alpha": "alpha.png"}
    rows = [row, row | {"handedness": "left"}, {key: row[key] for key in ("image", "keypoints")}]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "labels.jsonl"


def color_at(image, point):
    x, y = np.rint(point).astype(int)
    return image[y, x, :3].argmax()


def test_the_hand_is_a_right_one_and_alone(labels):
    data = JsonlData(labels)
    right, left = cut_out(data[0]), cut_out(data[1])
    assert right is not None
    assert left is not None
    for hand in (right, left):
        # 2 px around what is cut out, but for the side where the photograph ends.
        assert hand.image.shape == (112, 84, 4)
        assert (hand.image[..., :3][hand.image[..., 3] == 0] == 0).all()
        assert color_at(hand.image, hand.keypoints[0]) == 1
        assert color_at(hand.image, hand.keypoints[9]) == 2
    np.testing.assert_array_equal(left.image, right.image[:, ::-1])
    assert cut_out(data[2]) is None


def test_a_crowd_of_cut_outs_has_them_where_it_says(labels):
    rng, hands = np.random.default_rng(4), CutOuts([labels])
    checked = 0
    for _ in range(40):
        image, placed = draw_crowd(rng, BACK, 2, (0.2, 0.4), hands.draw)
        for hand in placed:
            if hand.seen == 1:
                assert [color_at(image, hand.keypoints[joint]) for joint in (0, 9)] == [1, 2]
                checked += 1
    assert checked > 15


def test_what_the_photograph_cuts_goes_on_beyond_it(labels):
    """The red square ends at the photograph's lower edge: an arm does not end in the middle of a picture."""
    rng, hands, checked = np.random.default_rng(0), CutOuts([labels]), 0
    for _ in range(20):
        image, (hand,) = draw_crowd(rng, BACK, 1, (0.2, 0.3), hands.draw)
        wrist, knuckle = hand.keypoints[0], hand.keypoints[9]
        beyond = wrist + (wrist - knuckle)  # 14 px of the photograph below its edge
        if ((beyond > 2) & (beyond < 253)).all():
            assert color_at(image, beyond) == 0
            assert image[tuple(np.rint(beyond).astype(int)[::-1])].max() > 100
            checked += 1
    assert checked > 5


def test_labels_with_nothing_cut_out_are_refused(labels):
    row = {"image": "a.png", "keypoints": HAND.tolist()}
    labels.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="no hand has an alpha; make them with label --cut-out"):
        CutOuts([labels]).draw(np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_second_hand_meets_as_many_as_asked_and_hides_little(share, labels):
    settings = PhotoAugmentation(
        rotation=0.0, scale=0.0, channel_gain=0.0, second_hand=share, context_scale_prob=1.0, context_scale=(2.0, 2.5)
    )
    source = PhotoSource("cut", JsonlData(labels), BOX, augmentation=settings, indices=np.array([0]))
    without = replace(source, augmentation=settings.model_copy(update={"second_hand": 0.0}))
    met = 0
    for number in range(40):
        alone, seen = (some.example(0, np.random.default_rng(number), 128) for some in (without, source))
        np.testing.assert_array_equal(seen.labels.keypoints, alone.labels.keypoints)
        different = np.abs(seen.image.astype(int) - alone.image).mean(axis=-1) > 40
        met += different.mean() > 0.03
        x, y = np.rint((alone.labels.keypoints + 1) * 64 - 0.5).astype(int).T
        assert different[y, x].mean() < 0.45
    assert met == pytest.approx(40 * share, abs=10 if 0 < share < 1 else 4)
