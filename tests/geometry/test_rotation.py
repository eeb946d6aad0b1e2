"""Oracle: scipy's Rotation, at every angle and over odd batch shapes."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh.geometry.rotation import matrix_from_vector, nearest_rotation, vector_from_matrix

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 1.0, np.pi / 2, 3.0, np.pi - 1e-4, np.pi - 1e-8, np.pi]


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 4), (0,)])
def test_rotation_vectors_agree_with_scipy_both_ways(batch):
    rng = np.random.default_rng(1)
    axes = rng.normal(size=(*batch, 3))
    vectors = axes / np.linalg.norm(axes, axis=-1, keepdims=True) * rng.uniform(0, 3.1, (*batch, 1))
    R = matrix_from_vector(vectors)
    expected = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*batch, 3, 3)
    np.testing.assert_allclose(R, expected, atol=1e-14)
    np.testing.assert_allclose(vector_from_matrix(R), vectors, atol=1e-9)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 2, -3), (-1, 1e-3, 0)])
def test_they_are_exact_at_every_angle(axis, angle):
    vector = np.array(axis) * angle / np.linalg.norm(axis)
    R = matrix_from_vector(vector)
    np.testing.assert_allclose(R, Rotation.from_rotvec(vector).as_matrix(), rtol=0, atol=1e-15)
    back = vector_from_matrix(R)
    sign = -1 if angle > 3.1415 and back @ vector < 0 else 1  # at half a turn both axes are right
    np.testing.assert_allclose(sign * back, vector, rtol=1e-14, atol=2e-8 if angle > 3.1415 else 1e-14)


@pytest.mark.parametrize("vector", [(0, 0, 0), (1e-30, 0, 0), (-1e-8, -1e-8, -1e-8), (1e-9, -1e-9, 0)])
def test_tiny_rotations_are_exact(vector):
    """smplx adds 1e-8 to the vector before dividing by its length, and divides by zero at (-1e-8, -1e-8, -1e-8)."""
    np.testing.assert_allclose(vector_from_matrix(matrix_from_vector(vector)), vector, atol=1e-16)


def test_more_than_half_a_turn_comes_back_as_less_the_other_way():
    np.testing.assert_allclose(
        vector_from_matrix(matrix_from_vector([0, 0, 1.5 * np.pi])), [0, 0, -np.pi / 2], atol=1e-14
    )


def test_what_a_network_answers_in_float32_is_taken_as_the_nearest_rotation():
    R = matrix_from_vector([0.3, -1.0, 2.0])
    rough = (R + np.random.default_rng(0).normal(0, 1e-6, (3, 3))).astype(np.float32)
    np.testing.assert_allclose(vector_from_matrix(rough), [0.3, -1.0, 2.0], atol=1e-5)


def test_the_nearest_rotation_takes_rounding_out():
    exact = Rotation.random(5, random_state=0).as_matrix()
    bent = exact.astype(np.float32) + np.random.default_rng(0).normal(0, 1e-4, exact.shape)
    found = nearest_rotation(bent.reshape(5, 1, 3, 3))[:, 0]
    np.testing.assert_allclose(found @ np.swapaxes(found, -1, -2), np.broadcast_to(np.eye(3), exact.shape), atol=1e-12)
    np.testing.assert_allclose(found, exact, atol=1e-3)
