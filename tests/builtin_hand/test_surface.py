import numpy as np
import pytest

from handmesh.builtin_hand import surface as hand_surface
from handmesh.builtin_hand.generate import ORIGIN_FROM_WRIST
from handmesh.hand import builtin_hand


def modelling_frame(points: np.ndarray) -> np.ndarray:
    """Rest frame, metres -> distal, radial, dorsal from the wrist, millimetres."""
    from_wrist = 1000 * (points - ORIGIN_FROM_WRIST)
    return np.stack([-from_wrist[:, 0], from_wrist[:, 2], from_wrist[:, 1]], axis=1)


def test_the_shipped_vertices_lie_on_the_skin():
    """The file belongs to this source: whoever changes a solid must generate the hand again."""
    distance = hand_surface.signed_distance(modelling_frame(builtin_hand().v_template))
    np.testing.assert_allclose(distance, 0, atol=1e-3)


def test_the_shipped_joints_are_the_skeletons():
    np.testing.assert_allclose(modelling_frame(builtin_hand().J), hand_surface.rest_joints(), atol=1e-9)


def test_joints_are_inside_and_the_far_field_is_outside():
    assert (hand_surface.signed_distance(hand_surface.rest_joints()) < -3).all()
    corners = np.array([[u, v, w] for u in (-100.0, 300) for v in (-150.0, 150) for w in (-100.0, 100)])
    assert (hand_surface.signed_distance(corners) > 30).all()


def test_bones_have_the_published_lengths():
    """Buryanov & Kotiuk 2010, millimetres: proximal, middle and distal bones."""
    published = {
        "thumb": (31.6, 21.7),
        "index": (39.8, 22.4, 15.8),
        "middle": (44.6, 26.3, 17.4),
        "ring": (41.4, 25.7, 17.3),
        "pinky": (32.7, 18.1, 16.0),
    }
    for name, lengths in published.items():
        finger = hand_surface.FINGERS[name]
        bones = np.linalg.norm(np.diff(finger.joints, axis=0), axis=1)
        bones[-1] -= finger.lengths[3]
        np.testing.assert_allclose(bones[-len(lengths) :], lengths, atol=1e-9)


@pytest.mark.parametrize(("radius_a", "radius_b"), [(4.0, 2.0), (2.0, 4.0), (3.0, 3.0)])
def test_a_round_cone_is_the_hull_of_its_balls(radius_a, radius_b):
    """Oracle: the union of many balls between the two; balls in between have radii in between."""
    a, b = np.array([0.0, 1, 0]), np.array([9.0, -2, 3])
    points = np.random.default_rng(0).uniform(-8, 15, (300, 3))
    t = np.linspace(0, 1, 4001)[:, None]
    centres, radii = a + t * (b - a), radius_a + t[:, 0] * (radius_b - radius_a)
    balls = (np.linalg.norm(points[:, None] - centres, axis=-1) - radii).min(axis=1)
    distance = hand_surface._round_cone(points, a, b, radius_a, radius_b)
    outside = balls > 0
    np.testing.assert_allclose(distance[outside], balls[outside], atol=1e-3)
    assert (np.sign(distance) == np.sign(balls)).mean() > 0.99


def test_blending_adds_flesh_only_near_both():
    a, b = np.array([5.0, 0.2, -1.0]), np.array([0.0, 0.1, 9.0])
    blended = hand_surface._union(a, b, 2.0)
    assert (blended <= np.minimum(a, b)).all()
    np.testing.assert_allclose(blended[[0, 2]], [0.0, -1.0])
    assert blended[1] < 0.1
