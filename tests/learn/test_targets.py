"""Labels that follow from other labels, for every combination of what a data set gives."""

from __future__ import annotations

import itertools

import pytest
import torch

from handmesh.data.sample import HandLabels
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.targets import complete_targets, make_targets

HAND = HandModel(builtin_hand())
ORIGIN = torch.tensor([0.3, -0.2, 0.6])  # where a data set has its hands; the posed hand lies about its own origin


@pytest.fixture(scope="module")
def truth() -> HandLabels:
    """Two hands, all that can be known of them, in the data set's frame."""
    generator = torch.Generator().manual_seed(0)
    pose = torch.from_numpy(matrix_from_vector(0.3 * torch.randn(2, 16, 3, generator=generator))).float()
    betas = torch.randn(2, 10, generator=generator)
    vertices, joints = HAND(pose, betas)
    return complete_targets(joints[..., :2], joints + ORIGIN, vertices + ORIGIN, pose, betas)


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)), ids=str)
def test_what_is_not_given_follows_from_what_is(given, truth):
    """Joints and vertices of one sample have one origin: where only joints are given, posed vertices are moved there.

    Losses are relative to the wrist, so a mesh that was left about its own origin would be wrong by half a metre.
    """
    joints, vertices, posed = given
    known = truth._replace(
        joints=truth.joints if joints else torch.zeros_like(truth.joints),
        vertices=truth.vertices if vertices else torch.zeros_like(truth.vertices),
        pose=truth.pose if posed else torch.eye(3).expand_as(truth.pose),
        betas=truth.betas if posed else torch.zeros_like(truth.betas),
        joints_known=torch.full((2,), joints),
        vertices_known=torch.full((2,), vertices),
        pose_known=torch.full((2,), posed),
        betas_known=torch.full((2,), posed),
    )
    targets = make_targets(known, HAND)
    assert targets.joints_known.tolist() == [any(given)] * 2
    assert targets.vertices_known.tolist() == [vertices or posed] * 2
    if any(given):
        origin = torch.zeros(3) if given == (False, False, True) else ORIGIN
        torch.testing.assert_close(targets.joints, truth.joints - ORIGIN + origin, rtol=0, atol=1e-5)
        if vertices or posed:
            torch.testing.assert_close(targets.vertices, truth.vertices - ORIGIN + origin, rtol=0, atol=1e-5)
