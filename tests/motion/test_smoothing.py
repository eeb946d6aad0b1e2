"""One-Euro filters: as published, on rotations too, and on whole hands."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from marker_hands import MarkerEngine, draw, hand_at
from scipy.spatial.transform import Rotation

from handmesh.errors import ConfigError
from handmesh.motion.smoothing import OneEuro, RotationOneEuro, Smoother, Smoothing
from handmesh.predict import Predictor


def published(values, steps, cutoff, speed):
    """The filter as Casiez et al. write it (their algorithm 1, with the speed taken from the filtered value)."""

    def alpha(frequency, dt):
        tau = 1 / (2 * math.pi * frequency)
        return 1 / (1 + tau / dt)

    x, dx, out = values[0], 0.0, [values[0]]
    for value, dt in zip(values[1:], steps, strict=True):
        a = alpha(1.0, dt)
        dx = a * (value - x) / dt + (1 - a) * dx
        a = alpha(cutoff + speed * abs(dx), dt)
        x = a * value + (1 - a) * x
        out.append(x)
    return np.array(out)


@pytest.fixture
def uneven():
    """A random walk and its uneven steps in time."""
    rng = np.random.default_rng(0)
    return np.cumsum(rng.normal(0, 0.05, 60)), rng.uniform(0.01, 0.08, 59)


def test_it_is_the_published_filter(uneven):
    values, steps = uneven
    smooth = OneEuro(1.2, 0.7)
    found = [smooth([value], dt)[0] for value, dt in zip(values, [0, *steps], strict=True)]
    np.testing.assert_allclose(found, published(values, steps, 1.2, 0.7), atol=1e-12)


def test_about_one_axis_rotations_are_angles(uneven):
    """On SO(3) the filter runs along geodesics; those about one axis are numbers."""
    values, steps = uneven
    axis = np.array([2.0, -1, 2]) / 3
    smooth = RotationOneEuro(1.2, 0.7)
    found = []
    for value, dt in zip(values, [0, *steps], strict=True):
        R = Rotation.from_rotvec(value * axis).as_matrix()
        found.append(Rotation.from_matrix(smooth(R[None], dt)[0]).as_rotvec() @ axis)
    np.testing.assert_allclose(found, published(values, steps, 1.2, 0.7), atol=1e-9)


def test_turning_all_input_turns_the_output(uneven):
    rng = np.random.default_rng(1)
    inputs = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.1, (20, 3)), axis=0)).as_matrix()
    A = Rotation.from_rotvec([0.3, 2.0, -1]).as_matrix()
    one, other = RotationOneEuro(1, 1), RotationOneEuro(1, 1)
    for R in inputs:
        np.testing.assert_allclose(other((A @ R)[None], 0.03), A @ one(R[None], 0.03), atol=1e-9)


@pytest.fixture(scope="module")
def hand():
    (found,) = Predictor(MarkerEngine())(draw([hand_at(150, 150, 50, 0.4)]), handedness="left")
    return found


def test_a_hand_that_rests_is_left_alone(hand):
    smooth = Smoother(MarkerEngine().hand)
    for index in range(4):
        found = smooth(1, hand, index / 30)
    np.testing.assert_allclose(found.keypoints_image(), hand.keypoints_image(), atol=1e-3)
    np.testing.assert_allclose(found.vertices, hand.vertices, atol=1e-6)
    np.testing.assert_allclose(found.origin_cam(), hand.origin_cam(), atol=1e-5)


def test_jitter_shrinks_and_the_shape_settles(hand):
    rng = np.random.default_rng(0)
    smooth = Smoother(MarkerEngine().hand, Smoothing(shape_seconds=0.5))
    raw, kept, shapes = [], [], []
    for index in range(40):
        turns = Rotation.from_rotvec(rng.normal(0, 0.05, (16, 3))).as_matrix()
        noisy = replace(hand, pose=(hand.pose @ turns).astype(np.float32), betas=rng.normal(1, 0.5, 10).astype("f4"))
        found = smooth(1, noisy, index / 30)
        raw.append(noisy.pose)
        kept.append(found.pose)
        shapes.append(found.betas)
    jitter = [np.abs(np.diff(values, n=2, axis=0)).mean() for values in (raw, kept)]
    assert jitter[1] < 0.3 * jitter[0]
    np.testing.assert_allclose(kept[-1] @ kept[-1].swapaxes(-1, -2), np.tile(np.eye(3), (16, 1, 1)), atol=1e-5)
    assert np.ptp(shapes[20:], axis=0).max() == 0, "after its half second the shape is kept"
    np.testing.assert_allclose(shapes[-1], 1, atol=0.6)


def test_it_goes_on_from_its_state_bit_for_bit(hand):
    smooth = Smoother(MarkerEngine().hand)
    turned = [
        replace(hand, pose=(Rotation.from_rotvec([0, 0, 0.05 * i]).as_matrix() @ hand.pose).astype("f4"))
        for i in range(6)
    ]
    for index in range(3):
        smooth(1, turned[index], 0.03 * index)
    other = Smoother(MarkerEngine().hand)
    other.restore(json.loads(json.dumps(smooth.state())))
    for index in range(3, 6):
        one, two = (s(1, turned[index], 0.03 * index) for s in (smooth, other))
        assert (one.vertices == two.vertices).all()
        assert (one.camera.to_vector() == two.camera.to_vector()).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Smoothing.of_strength(0.001),
        lambda: Smoothing(place_cutoff=-1),
        lambda: Smoothing(place_speed=-1),  # may be zero
    ],
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(ConfigError, match=r"found 0\.001|_cutoff is -1, .* above zero|_speed is -1, .* from zero on"):
        make()
