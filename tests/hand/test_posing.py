"""The numpy hand is the torch hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.hand.posing import HandPoser


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_poses_as_the_network_does(mirrored):
    hand = builtin_hand().mirrored() if mirrored else builtin_hand()
    rng = np.random.default_rng(0)
    pose = Rotation.from_rotvec(rng.normal(0, 0.6, (16, 3))).as_matrix()
    betas = rng.normal(size=10)
    vertices, joints = HandModel(hand).double()(torch.tensor(pose), torch.tensor(betas))
    posed = HandPoser(hand)(pose, betas)
    np.testing.assert_allclose(posed.vertices, vertices.numpy(), atol=1e-6)
    np.testing.assert_allclose(posed.joints, joints.numpy(), atol=1e-6)
