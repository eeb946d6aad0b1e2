"""Boxes from outside: whatever the numbers, what is taken can be cut out of the photo in little memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handmesh.errors import ConfigError
from handmesh.geometry.box import checked_box
from handmesh.geometry.crop import CropTransform

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
NEAR = st.floats(-8000, 8000)
ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(SIZES, st.tuples(*[st.one_of(NEAR, ANY)] * 4))
@hypothesis_settings(max_examples=400, deadline=None)
def test_what_is_taken_shows_some_of_the_photo_and_little_else(size, edges):
    width, height = size
    try:
        x0, y0, x1, y1 = checked_box(edges, size)
    except ConfigError:
        return
    assert (x0, y0, x1, y1) == edges
    longer = max(size)
    assert 4 <= max(x1 - x0, y1 - y0) <= 3 * longer
    assert min(x1, width) > max(x0, 0), "some columns of the photo are within"
    assert min(y1, height) > max(y0, 0)
    crop = CropTransform.around_box((x0, y0, x1, y1), 1.5, rotation=1.0)
    assert crop.size <= 4.5 * longer


@given(st.tuples(st.integers(8, 4000), st.integers(8, 4000)), st.data())
@hypothesis_settings(max_examples=200, deadline=None)
def test_every_box_within_the_photo_is_taken(size, data):
    width, height = size
    x0, y0 = data.draw(st.floats(-0.5, width - 5.0)), data.draw(st.floats(-0.5, height - 5.0))
    x1, y1 = data.draw(st.floats(x0 + 4.1, width - 0.5)), data.draw(st.floats(y0 + 4.1, height - 0.5))
    for box in ((x0, y0, x1, y1), [x0, y0, x1, y1], np.array([x0, y0, x1, y1])):
        assert checked_box(box, size) == (x0, y0, x1, y1)


def test_the_limits_themselves():
    """A photo of 100 x 50: four pixels, and once its longer side beyond each edge."""
    for box in ((0, 0, 4, 0.1), (-100, -100, 200, 150), (99, 49, 103, 53), (-3, -3, 1, 1)):
        checked_box(box, (100, 50))
    for box, word in (
        ((0, 0, 3.9, 3.9), "smaller"),
        ((-100.1, 0, 10, 10), "larger"),
        ((0, 0, 200.1, 10), "larger"),
        ((0, 0, 10, 150.1), "larger"),
        ((100, 0, 110, 10), "outside"),
        ((-10, 0, 0, 10), "outside"),
        ((5, 5, 5, 50), "empty"),
        ((0, 0, math.inf, 10), "not finite"),
        ("12", "no box"),
        (None, "no box"),
        ((1, 2, 3), "no box"),
        ((1, 2, 3, 10**400), "no box"),
    ):
        with pytest.raises(ConfigError, match=word):
            checked_box(box, (100, 50))
