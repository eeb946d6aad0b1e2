import numpy as np
import pytest

from handmesh.errors import ConfigError
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGERTIP_VERTICES, MANO_JOINT_NAMES, HandArrays, Handedness, anatomy, builtin_hand

MCPS = [MANO_JOINT_NAMES.index(f"{finger}_mcp") for finger in ("index", "middle", "ring", "pinky")]


@pytest.fixture(params=list(Handedness), scope="module")
def hand(request: pytest.FixtureRequest) -> HandArrays:
    return builtin_hand(request.param)


def tips(hand: HandArrays, pose: np.ndarray) -> np.ndarray:
    return hand.shaped().posed(pose).vertices[list(FINGERTIP_VERTICES)]


def test_palm_axes_are_those_of_the_rest_frame(hand):
    palm = anatomy.palm_frame(hand)
    frame = np.stack(palm)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert palm.dorsal[1] > 0.9
    assert palm.radial[2] > 0.9
    assert abs(palm.distal[0]) > 0.9


def test_axes_are_orthonormal(hand):
    axes = anatomy.flexion_axes(hand)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (16, 3, 3)), atol=1e-12)


@pytest.mark.parametrize("joint", range(1, 16))
def test_positive_flexion_brings_the_tip_to_the_palm_side(hand, joint):
    angles = np.zeros((16, 3))
    angles[joint, 0] = np.radians(40)
    finger = anatomy.FINGER_ROOTS.index(joint - (joint - 1) % 3)
    moved = tips(hand, anatomy.pose_from_angles(hand, angles))[finger] - anatomy.fingertips(hand)[finger]
    assert moved @ anatomy.palm_frame(hand).dorsal < -0.003


@pytest.mark.parametrize("joint", [*MCPS, MANO_JOINT_NAMES.index("thumb_cmc")])
def test_positive_abduction_swings_to_the_thumb_side(hand, joint):
    angles = np.zeros((16, 3))
    angles[joint, 1] = np.radians(15)
    finger = anatomy.FINGER_ROOTS.index(joint)
    moved = tips(hand, anatomy.pose_from_angles(hand, angles))[finger] - anatomy.fingertips(hand)[finger]
    assert moved @ anatomy.palm_frame(hand).radial > 0.01


def test_twist_leaves_the_bone_where_it_is(hand):
    angles = np.zeros((16, 3))
    angles[1:, 2] = 0.3
    frames = anatomy.bone_frames(hand)
    turned = (anatomy.pose_from_angles(hand, angles) @ frames.transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_allclose(turned[1:, 0], frames[1:, 0], atol=1e-12)
    assert (np.einsum("ji,ji->j", turned[1:, 2], frames[1:, 1]) > 0.29).all()  # dorsal went to the radial side


def test_mirrored_hand_makes_the_mirrored_gesture():
    right, left = builtin_hand(Handedness.RIGHT), builtin_hand(Handedness.LEFT)
    angles = anatomy.POSES["pinch"] + np.random.default_rng(2).normal(0, 0.1, (16, 3))
    posed_right = right.shaped().posed(anatomy.pose_from_angles(right, angles))
    posed_left = left.shaped().posed(anatomy.pose_from_angles(left, angles))
    np.testing.assert_allclose(posed_left.vertices, posed_right.vertices * [-1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(posed_left.tree_joints, posed_right.tree_joints * [-1, 1, 1], atol=1e-12)


def test_a_bent_joint_has_the_angle_asked_for(hand):
    """Measured on the posed bones, not on the rotations."""
    angles = anatomy.hand_angles(index=(50, 70, 30))
    joints = hand.shaped().posed(anatomy.pose_from_angles(hand, angles)).tree_joints
    tip = tips(hand, anatomy.pose_from_angles(hand, angles))[1]
    rest = np.vstack([hand.J[1:4], anatomy.fingertips(hand)[1]])
    posed = np.vstack([joints[1:4], tip])

    axis = anatomy.flexion_axes(hand)[1, 0]

    def bends(points: np.ndarray) -> np.ndarray:
        """Signed: a fingertip vertex may lie dorsally of its bone at rest."""
        bones = np.diff(points, axis=0)
        before, after = bones[:-1], bones[1:]
        return np.degrees(np.arctan2(np.cross(before, after) @ axis, (before * after).sum(axis=1)))

    np.testing.assert_allclose(bends(posed) - bends(rest), [70, 30], atol=2)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 4)])
def test_angles_are_read_from_a_pose_as_they_are_defined(hand, batch):
    """Flexion, then abduction about the axis that it carried along, then twist; fingers bend beyond 90 degrees."""
    rng = np.random.default_rng(7)
    angles = np.stack([rng.uniform(-low, low, (*batch, 16)) for low in (2.8, 1.4, 1.4)], axis=-1)
    axes = anatomy.flexion_axes(hand)
    flexion, abduction, twist = np.moveaxis(matrix_from_vector(angles[..., None] * axes), -3, 0)
    np.testing.assert_allclose(anatomy.angles_from_pose(axes, flexion @ abduction @ twist), angles, atol=1e-9)


def test_angles_of_the_fist_are_those_it_was_made_of(hand):
    angles = anatomy.POSES["fist"]
    read = anatomy.angles_from_pose(anatomy.flexion_axes(hand), anatomy.pose_from_angles(hand, angles))
    fingers = np.arange(16) < anatomy.FINGER_ROOTS[0]  # the thumb swings as well, before it flexes
    np.testing.assert_allclose(read[fingers], angles[fingers], atol=1e-12)
    assert np.degrees(read[MCPS, 0]).min() > 75


def test_angles_by_name_are_the_pose_that_they_were_measured_of(hand):
    """The names that `joint_angles()` gives were refused, and in an array the order of the turns is another."""
    angles = np.random.default_rng(7).uniform(-1.2, 1.2, (16, 3))
    pose = matrix_from_vector(angles)
    measured = anatomy.angles_from_pose(anatomy.flexion_axes(hand), pose)
    named = {name: anatomy.JointAngles(*one) for name, one in zip(MANO_JOINT_NAMES, measured, strict=True)}
    np.testing.assert_allclose(anatomy.pose_from_angles(hand, named), pose, atol=1e-12)
    bent = anatomy.pose_from_angles(hand, {"index_pip": (0.5, 0, 0)})
    index = MANO_JOINT_NAMES.index("index_pip")
    np.testing.assert_array_equal(np.delete(bent, index, axis=0), np.broadcast_to(np.eye(3), (15, 3, 3)))
    assert anatomy.angles_from_pose(anatomy.flexion_axes(hand), bent)[index, 0] == pytest.approx(0.5)
    with pytest.raises(ConfigError, match=r"No joint 'index_tip' bends\. Those that do are wrist, index_mcp"):
        anatomy.pose_from_angles(hand, {"index_tip": (0, 0, 0)})


def test_turning_the_wrist_turns_the_mesh_about_the_wrist(hand):
    pose = anatomy.pose_from_angles(hand, anatomy.POSES["point"])
    before = hand.shaped().posed(pose).vertices
    turn = matrix_from_vector([0.4, -1.1, 0.7])
    pose[0] = turn
    after = hand.shaped().posed(pose).vertices
    np.testing.assert_allclose(after, (before - hand.J[0]) @ turn.T + hand.J[0], atol=1e-12)


def test_the_pinch_and_the_ok_sign_close():
    hand = builtin_hand()
    for name in ("pinch", "ok"):
        thumb, index, *_ = tips(hand, anatomy.pose_from_angles(hand, anatomy.POSES[name]))
        assert np.linalg.norm(thumb - index) < 0.022  # pulps touch; the tip vertices lie at the ends of the fingers


def test_named_poses_keep_to_the_limits():
    slack = np.radians(3)
    for name, angles in anatomy.POSES.items():
        low, high = np.moveaxis(anatomy.JOINT_LIMITS, -1, 0)
        assert (angles >= low - slack).all(), name
        assert (angles <= high + slack).all(), name


def test_surface_coordinates_follow_the_fingers(hand):
    surface = anatomy.surface_anatomy(hand)
    for finger, tip in enumerate(FINGERTIP_VERTICES):
        assert surface.finger[tip] == finger
        assert surface.along[tip] > 2.9
    assert (surface.along[surface.finger < 0] == 0).all()
    assert surface.along.min() >= 0
    assert surface.along.max() <= 3
    back = hand.v_template[surface.dorsality > 0.7]
    front = hand.v_template[surface.dorsality < -0.7]
    dorsal = anatomy.palm_frame(hand).dorsal
    assert (back @ dorsal).mean() > (front @ dorsal).mean() + 0.01
    outward = (surface.normals * (hand.v_template - hand.v_template.mean(axis=0))).sum()
    assert outward > 0


def test_nails_lie_on_the_dorsal_skin_of_the_tips(hand):
    for finger, nail in enumerate(anatomy.surface_anatomy(hand).nails):
        distance = np.linalg.norm(hand.v_template - nail.centre, axis=1)
        assert distance.min() < 0.005
        assert anatomy.surface_anatomy(hand).finger[distance.argmin()] == finger
        assert 0.003 < nail.half_width < 0.010
        assert 0.003 < nail.half_length < 0.012


def test_boundary_loop_of_a_square_and_refusals():
    square = np.array([[0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(anatomy.boundary_loop(square), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="closed"):
        anatomy.boundary_loop(np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]]))
    with pytest.raises(ValueError, match="more than one"):
        anatomy.boundary_loop(np.array([[0, 1, 2], [3, 4, 5]]))
    # Two corners that touch: the walk went around the second one until memory was full.
    with pytest.raises(ValueError, match="meet at a vertex"):
        anatomy.boundary_loop(np.array([[0, 1, 2], [2, 3, 4]]))
    with pytest.raises(ValueError, match="not wound alike"):
        anatomy.boundary_loop(np.array([[0, 1, 2], [0, 3, 2]]))


def test_the_wrist_boundary_is_at_the_wrist(hand):
    loop = anatomy.surface_anatomy(hand).wrist_loop
    assert len(loop) == 16
    distal = anatomy.palm_frame(hand).distal
    assert (hand.v_template[loop] @ distal).max() < (hand.J[MCPS] @ distal).min() - 0.04


def test_wrong_angle_counts_are_refused(hand):
    with pytest.raises(ValueError, match="16, 3"):
        anatomy.pose_from_angles(hand, np.zeros((15, 3)))
    with pytest.raises(ValueError, match="at most 5"):
        anatomy.hand_angles(index=(1, 2, 3, 4, 5, 6))
    for angles in (0.5, (0.5, 0.1), "bent"):
        with pytest.raises(ConfigError, match=r"Angles of 'index_pip' are .*: wanted flexion, abduction, twist"):
            anatomy.pose_from_angles(hand, {"index_pip": angles})
