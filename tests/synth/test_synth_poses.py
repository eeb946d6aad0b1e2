"""The pose prior: poses of a hand that could exist."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from handmesh.hand import MANO_JOINT_NAMES, builtin_hand
from handmesh.hand.anatomy import FINGER_ROOTS, JOINT_LIMITS, hand_angles, pose_from_angles
from handmesh.synth.pose_prior import (
    BASE_POSES,
    TOUCHING_POSES,
    PosePrior,
    PoseSettings,
    _detach,
    _segment_distance,
    bone_radii,
    forward_kinematics,
    limit_angles,
)


@pytest.fixture(scope="module")
def prior() -> PosePrior:
    return PosePrior(builtin_hand())


@pytest.mark.parametrize("name", BASE_POSES)
def test_base_poses_respect_the_joint_limits(name):
    """What the library says is what is drawn: clipping changes nothing but the sideways play of bent knuckles."""
    angles = BASE_POSES[name].angles
    np.testing.assert_allclose(limit_angles(angles)[:, 0], angles[:, 0], atol=np.radians(3))


def test_sampled_poses_are_rotations_within_limits_and_do_not_pass_through_themselves(prior):
    rng = np.random.default_rng(0)
    for _ in range(100):
        sampled = prior.sample(rng)
        R = sampled.rotations
        np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-9)
        np.testing.assert_array_equal(R[0], np.eye(3))
        assert prior.penetration(R) <= prior.settings.penetration
        # A finger's total curl stays below what its three joints can do together.
        angle = np.arccos(np.clip((np.trace(R, axis1=1, axis2=2) - 1) / 2, -1, 1))
        limit = np.linalg.norm(np.abs(JOINT_LIMITS).max(axis=-1), axis=-1)
        assert (angle <= limit + 1e-6).all()


def test_rotations_are_those_of_the_anatomy(prior):
    angles = limit_angles(np.random.default_rng(1).normal(0, 0.5, (16, 3)))
    angles[0] = 0
    np.testing.assert_allclose(prior.rotations(angles), pose_from_angles(builtin_hand(), angles), atol=1e-12)


def test_kinematics_agree_with_the_skinned_hand(prior):
    """The chain of joints that capsules hang on is the one that a posed hand is skinned with."""
    pose = prior.sample(np.random.default_rng(2)).rotations
    _, places = forward_kinematics(pose, builtin_hand().J)
    np.testing.assert_allclose(places, builtin_hand().shaped().posed(pose).tree_joints, atol=1e-6)


def test_a_straight_hand_is_free_and_folded_fingers_collide(prior):
    assert prior.penetration(prior.rotations(hand_angles())) == 0
    # The index finger swung sideways by 25 degrees lies in the middle one.
    through = hand_angles(index=(0, 0, 0, -25))
    assert prior.penetration(prior.rotations(through)) > 0.005


def test_capsules_are_as_thick_as_fingers():
    """Index middle phalanx: breadth of the PIP joint is 16 to 23 mm in adults (NASA-STD-3000)."""
    radius = bone_radii(builtin_hand())[MANO_JOINT_NAMES.index("index_pip")]
    assert 0.007 < radius < 0.0125


def test_segment_distance_is_the_smallest_distance_of_points_on_them():
    rng = np.random.default_rng(3)
    t = np.linspace(0, 1, 101)
    for _ in range(50):
        p, q, r, s = rng.normal(size=(4, 3))
        first, second = p + t[:, None] * (q - p), r + t[:, None] * (s - r)
        brute = np.linalg.norm(first[:, None] - second[None], axis=-1).min()
        assert _segment_distance(p, q, r, s) == pytest.approx(brute, abs=0.05)  # samples are up to 0.05 apart
        assert _segment_distance(p, q, r, s) <= brute + 1e-12
    parallel = _segment_distance(*np.array([[0, 0, 0], [1, 0, 0], [0.5, 2, 0], [3, 2, 0.0]]))
    assert parallel == pytest.approx(2)


def test_bent_knuckles_do_not_spread():
    spread = np.zeros((16, 3))
    spread[:, 1] = 0.3
    bent = spread.copy()
    for root in FINGER_ROOTS[1:]:
        bent[root, 0] = np.radians(90)
        assert limit_angles(bent)[root, 1] < 0.2 * limit_angles(spread)[root, 1]


def test_every_base_pose_turns_up():
    """The mix is wide: no pose dominates and fists, pinches, pointing and open hands all occur."""
    prior = PosePrior(builtin_hand(), PoseSettings(free=0))
    rng = np.random.default_rng(4)
    names = [prior.sample(rng).name for _ in range(900)]
    counts = {name: names.count(name) for name in BASE_POSES}
    assert max(counts.values()) < 100
    assert sum(count > 0 for count in counts.values()) >= 0.9 * len(BASE_POSES)


def test_fingers_move_on_their_own():
    """One finger stretched beside a folded one, in many poses; without detached fingers it comes from the library only.

    Curl: flexion of knuckle and middle joint together, 0 to about 190 degrees.
    """
    roots = FINGER_ROOTS[1:]

    def apart(settings: PoseSettings) -> float:
        prior, rng = PosePrior(builtin_hand(), settings), np.random.default_rng(5)
        count = 0
        for _ in range(300):
            R = prior.sample(rng).rotations
            turn = np.degrees(np.arccos(np.clip((np.trace(R, axis1=1, axis2=2) - 1) / 2, -1, 1)))
            curl = np.array([turn[root] + turn[root + 1] for root in roots])
            count += bool((np.abs(np.diff(curl)) > 70).any())
        return count / 300

    assert apart(PoseSettings(single_fingers=1)) > apart(PoseSettings(single_fingers=0)) + 0.15


def test_neighbours_of_a_single_finger_follow_a_little_and_the_ring_fingers_most():
    """Enslaving is weakest around the index and strongest around the ring finger (Haeger-Ross and Schieber 2000)."""
    followed: dict[int, list[float]] = {finger: [] for finger in range(4)}
    for seed in range(300):
        angles = hand_angles()
        _detach(np.random.default_rng(seed), angles)
        curl = [angles[root, 0] + angles[root + 1, 0] for root in FINGER_ROOTS[1:]]
        leader = int(np.argmax(curl))
        if sum(value > 0.35 * curl[leader] for value in curl) > 1:
            continue  # more than one finger was chosen
        neighbours = [curl[k] for k in (leader - 1, leader + 1) if 0 <= k < 4]
        followed[leader].append(float(np.mean(neighbours)) / curl[leader])
    mean = [np.mean(followed[finger]) for finger in range(4)]
    assert all(0 < value < 0.35 for value in mean)
    assert mean[2] == max(mean)
    assert mean[0] == min(mean)


def test_a_thumb_that_touches_truly_touches():
    """On the mesh: no further from the finger than vertices are from each other, and not through it."""
    hand = builtin_hand()
    prior, rng = PosePrior(hand, PoseSettings(touch=1.0)), np.random.default_rng(4)
    sampled = [pose for _ in range(24) if (pose := prior.sample_touching(rng)) is not None]
    assert len(sampled) >= 12
    fingers = {name: (finger, bone) for name, finger, bone in TOUCHING_POSES}
    assert len({pose.name for pose in sampled}) >= 6
    assert {pose.name for pose in sampled} <= fingers.keys()
    vertices = hand.shaped().posed(np.array([pose.rotations for pose in sampled])).vertices
    bone_of = hand.weights.argmax(axis=1)
    thumb = bone_of == FINGER_ROOTS[0] + 2
    others = np.isin(bone_of, [root + bone for root in FINGER_ROOTS[1:] for bone in range(3)])
    gaps = [cKDTree(mesh[others]).query(mesh[thumb])[0].min() for mesh in vertices]
    assert np.max(gaps) < 0.004
    for pose in sampled:
        assert prior.penetration(pose.rotations) <= prior.settings.penetration + 0.003


def test_without_touching_the_same_seed_gives_the_same_poses():
    """Packs of former versions stay what they were."""
    poses = [PosePrior(builtin_hand(), settings) for settings in (PoseSettings(), PoseSettings(touch=0.0))]
    first, second = (prior.sample(np.random.default_rng(1)).rotations for prior in poses)
    np.testing.assert_array_equal(first, second)
