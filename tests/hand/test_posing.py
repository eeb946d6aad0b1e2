"""A hand in stages: the torch layer, smplx's own skinning and the single hand are the oracles."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch

from handmesh.errors import DataError
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGERTIP_VERTICES, JOINT_NAMES, Handedness, builtin_hand, pose_features
from handmesh.hand.layer import HandModel

BATCHES = [(), (1,), (3,), (2, 4), (16,), (0,)]


def random_hands(*batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return matrix_from_vector(rng.normal(0, 0.6, (*batch, 16, 3))), rng.normal(size=(*batch, 10))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("side", list(Handedness))
def test_it_poses_as_the_torch_layer_does(side, batch):
    rotations, betas = random_hands(*batch)
    posed = builtin_hand(side).shaped(betas).posed(rotations)
    vertices, joints = HandModel(builtin_hand(side)).double()(torch.from_numpy(rotations), torch.from_numpy(betas))
    assert posed.vertices.shape == (*batch, 778, 3)
    np.testing.assert_allclose(posed.vertices, vertices.numpy(), atol=1e-6)
    np.testing.assert_allclose(posed.joints, joints.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch", [(1,), (3,), (2, 4)])
def test_it_poses_as_smplx_does(batch):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of smplx's own making
        lbs = pytest.importorskip("smplx.lbs", reason='smplx is not installed: pip install -e ".[test]"')
    hand, (rotations, betas) = builtin_hand(), random_hands(*batch)
    tensors = (hand.v_template[None], hand.shapedirs, hand.posedirs.reshape(-1, 135).T, hand.J_regressor)
    vertices, joints = lbs.lbs(
        torch.from_numpy(betas.reshape(-1, 10)),
        torch.from_numpy(rotations.reshape(-1, 16, 3, 3)),
        *(torch.from_numpy(np.ascontiguousarray(array)) for array in tensors),
        torch.tensor(hand.parents),
        torch.from_numpy(hand.weights),
        pose2rot=False,
    )
    posed = hand.shaped(betas).posed(rotations)
    np.testing.assert_allclose(posed.vertices.reshape(-1, 778, 3), vertices.numpy(), atol=1e-12)
    np.testing.assert_allclose(posed.tree_joints.reshape(-1, 16, 3), joints.numpy(), atol=1e-12)


def test_one_shape_takes_many_poses_and_one_pose_many_shapes():
    hand, (rotations, betas) = builtin_hand(), random_hands(2, 3)
    person = hand.shaped(betas[0, 0])
    assert person.posed(rotations).joints.shape == (2, 3, 21, 3)
    many = hand.shaped(betas).posed(rotations[1, 2])
    for at in np.ndindex(2, 3):
        np.testing.assert_allclose(person.posed(rotations).joints[at], person.posed(rotations[at]).joints, atol=1e-12)
        alone = hand.shaped(betas[at]).posed(rotations[1, 2])
        np.testing.assert_allclose(many.vertices[at], alone.vertices, atol=1e-12)
        np.testing.assert_allclose(many.joint_rotations[at], alone.joint_rotations, atol=1e-12)


def test_joints_that_do_not_turn_leave_the_person_at_rest():
    person = builtin_hand().shaped(np.linspace(-2, 2, 10))
    posed = person.posed(np.tile(np.eye(3), (16, 1, 1)))
    np.testing.assert_allclose(posed.vertices, person.vertices, atol=1e-12)
    np.testing.assert_allclose(posed.tree_joints, person.joints, atol=1e-12)
    tips = [JOINT_NAMES.index(f"{finger}_tip") for finger in ("thumb", "index", "middle", "ring", "pinky")]
    np.testing.assert_allclose(posed.joints[tips], person.vertices[list(FINGERTIP_VERTICES)], atol=1e-12)


def test_each_joint_is_turned_by_all_above_it():
    """The index finger's last joint: wrist, then its three joints one after the other."""
    (rotations, betas), hand = random_hands(), builtin_hand()
    posed = hand.shaped(betas).posed(rotations)
    along = rotations[0] @ rotations[1] @ rotations[2]
    np.testing.assert_allclose(posed.joint_rotations[3], along @ rotations[3], atol=1e-12)
    bone = hand.shaped(betas).joints[3] - hand.shaped(betas).joints[2]
    np.testing.assert_allclose(posed.tree_joints[3], posed.tree_joints[2] + along @ bone, atol=1e-12)


def test_features_of_the_rest_pose_are_zero_and_leave_out_the_wrist():
    rotations, _ = random_hands(2)
    turned = rotations.copy()
    turned[:, 0] = np.eye(3)
    np.testing.assert_array_equal(pose_features(rotations), pose_features(turned))
    assert not pose_features(np.tile(np.eye(3), (16, 1, 1))).any()


def test_parameters_of_another_shape_are_refused():
    """numpy spoke of gufuncs and of axes that were remapped."""
    hand = builtin_hand()
    with pytest.raises(DataError, match=r"betas are \(9,\), wanted \(\*B, 10\)"):
        hand.shaped(np.zeros(9))
    for rotations in (np.zeros((15, 3, 3)), np.zeros((16, 3)), np.zeros(48)):
        with pytest.raises(DataError, match=r"wanted matrices, \(\*B, 16, 3, 3\)"):
            hand.shaped().posed(rotations)
