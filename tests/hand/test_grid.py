"""The detector's grid: what is written into it is what is read from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handmesh.hand.grid import STRIDE, SeenHand, cell_centers, decode, encode, fitted, in_image


def answer(target, certain: float = 8.0):
    """The grid of a detector that answers exactly what it should."""
    center = np.log(np.clip(target.center, 1e-4, 1 - 1e-4) / (1 - np.clip(target.center, 1e-4, 1 - 1e-4)))
    right = certain * (2 * target.right[None] - 1)
    return np.concatenate([center[None], target.box, target.direction, right]).astype(np.float32)


HANDS = [
    SeenHand((30.0, 40.0, 90.0, 120.0), 0.4, True),
    SeenHand((150.0, 20.0, 170.0, 35.0), -2.0, False),
    SeenHand((100.0, 130.0, 330.0, 300.0), 3.0, True),  # goes on beyond the picture
]


def test_what_is_encoded_is_decoded():
    found = decode(answer(encode(HANDS, 24, 24)), 0.5)
    assert len(found) == 3
    for hand in HANDS:
        nearest = min(found, key=lambda one: abs(one.box[0] - hand.box[0]))
        np.testing.assert_allclose(nearest.box, hand.box, atol=0.01)
        assert math.cos(nearest.rotation - hand.rotation) > 0.9999
        assert (nearest.right > 0.5) == hand.right


def test_the_cells_around_the_middle_have_a_say():
    """One cell that errs is outvoted; one that sees nothing is not asked."""
    grid = answer(encode(HANDS[:1], 24, 24))
    row, column = np.unravel_index(np.argmax(grid[0]), grid[0].shape)
    grid[7, row, column] = -2.0
    grid[5:7, row, column] *= -0.5
    assert grid[0, row - 1, column] > -1 > grid[0, row - 3, column]
    (found,) = decode(grid, 0.5)
    assert found.right > 0.5
    assert math.cos(found.rotation - HANDS[0].rotation) > 0.999
    grid[1:5, row, column - 1 : column + 2] += 0.2
    grid[0, row - 1 : row + 2, [column - 1, column + 1]] = -9.0
    grid[0, [row - 1, row + 1], column] = -9.0
    (found,) = decode(grid, 0.5)
    np.testing.assert_allclose(
        np.diff(np.reshape(found.box, (2, 2)), axis=0)[0], (60 * math.exp(0.2), 80 * math.exp(0.2))
    )


def test_cells_near_the_middle_are_taught_the_same_box():
    target = encode(HANDS[:1], 24, 24)
    rows, columns = np.nonzero(target.taught)
    assert len(rows) >= 3
    x, y = cell_centers(24, 24)
    left, up, right, down = STRIDE * np.exp(target.box[:, rows, columns])
    boxes = np.stack([x[columns] - left, y[rows] - up, x[columns] + right, y[rows] + down], axis=1)
    np.testing.assert_allclose(boxes, np.tile(HANDS[0].box, (len(rows), 1)), atol=0.01)


def test_a_hand_outside_is_no_hand_and_none_is_none():
    assert encode([SeenHand((-60.0, 10.0, -5.0, 60.0), 0.0, True)], 8, 8).center.max() == 0
    assert decode(answer(encode([], 8, 8)), 0.3) == []


def test_the_most_certain_come_first_and_no_more_than_asked_for():
    grid = answer(encode(HANDS, 24, 24))
    grid[0] -= 6
    rows, columns = np.unravel_index(np.argsort(grid[0], axis=None)[-1], grid[0].shape)
    grid[0, rows, columns] += 3
    found = decode(grid, 0.0, most=2)
    assert len(found) == 2
    assert found[0].score > found[1].score


@pytest.mark.parametrize(("height", "width"), [(480, 640), (90, 33), (1, 700), (1000, 1000)])
def test_a_picture_has_the_shape_that_the_network_wants_and_boxes_come_back(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    picture, scale = fitted(image, 320)
    assert picture.shape[0] % 16 == picture.shape[1] % 16 == 0
    assert max(picture.shape) == 320
    corner = in_image((-0.5, -0.5, scale * width - 0.5, scale * height - 0.5), scale)
    np.testing.assert_allclose(corner, (-0.5, -0.5, width - 0.5, height - 0.5), atol=1e-6)
