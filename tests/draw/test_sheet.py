"""Contact sheets: every tile where it belongs, captions at the bottom, hidden joints told from visible ones."""

import numpy as np
import pytest

from handmesh.draw.sheet import captioned, contact_sheet
from handmesh.draw.skeleton import draw_skeleton


def test_tiles_fill_rows_and_the_rest_is_black():
    tiles = [np.full((8, 6, 3), 10 * (number + 1), np.uint8) for number in range(5)]
    sheet = contact_sheet(iter(tiles), columns=3)
    assert sheet.shape == (16, 18, 3)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(sheet[8 * row : 8 * row + 8, 6 * column : 6 * column + 6], tile)
    assert (sheet[8:, 12:] == 0).all()
    assert contact_sheet(tiles[:2]).shape == (8, 12, 3), "no empty columns"
    with pytest.raises(ValueError, match="no tiles"):
        contact_sheet([])
    with pytest.raises(ValueError, match="columns is 0"):
        contact_sheet(tiles, 0)


def test_a_caption_covers_the_lower_edge_only():
    tile = np.full((64, 96, 3), 128, np.uint8)
    changed = (captioned(tile, "00000012") != 128).any(axis=(1, 2))
    assert changed[45:60].any()
    assert not changed[:40].any()
    assert (tile == 128).all(), "a copy"


def test_an_occluded_joint_is_a_ring():
    x, y = np.meshgrid(np.arange(7) * 40 + 30, np.arange(3) * 40 + 30)
    keypoints = np.column_stack([x.ravel(), y.ravel()])
    drawn = draw_skeleton(np.zeros((140, 310, 3), np.uint8), keypoints, occluded=np.arange(21) == 5, width=6)
    middles = drawn[keypoints[:, 1], keypoints[:, 0]].max(axis=1)
    assert middles[5] < 60
    assert (np.delete(middles, 5) > 150).all()
