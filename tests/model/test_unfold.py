"""A folded network, made trainable again: the same answers, and training that goes on without a jump."""

from __future__ import annotations

import pytest
import torch
from trained_networks import images, trained

from handmesh.model.surgery.unfold import unfold


@pytest.fixture(scope="module", params=["fastvit_t8", "fastvit_sa12"])
def pair(request):
    folded = trained(request.param).reparameterize()
    return folded, unfold(folded, [images(16, seed) for seed in range(100, 104)])


@torch.no_grad()
def test_the_unfolded_network_answers_the_same(pair):
    folded, unfolded = pair
    batch = images(3, 50)
    for name, wanted, found in zip(folded(batch)._fields, folded(batch), unfolded(batch), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=name)
    refolded = unfolded.reparameterize()
    torch.testing.assert_close(refolded(batch).vertices, folded(batch).vertices, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_training_goes_on_without_a_jump(pair):
    """In training mode batch statistics take the place of the running ones: it moves less than photos differ."""
    folded, unfolded = pair
    batch = images(32, 60)
    wanted = folded(batch).vertices
    spread = (wanted - wanted.mean(dim=0)).norm(dim=-1).mean()
    unfolded.train()
    jump = (unfolded(batch).vertices - wanted).norm(dim=-1).mean()
    unfolded.eval()
    assert jump < spread


def test_every_branch_can_learn(pair):
    """A branch that begins at zero gets a gradient on its scale; everything else gets one at once."""
    _, unfolded = pair
    unfolded.train().requires_grad_(True)
    answer = unfolded(images(8, 70))
    (answer.vertices.square().sum() + answer.confidence.sum() + answer.camera.sum()).backward()
    idle = [name for name, value in unfolded.named_parameters() if value.grad is None or not value.grad.any()]
    assert all(".conv.weight" in name for name in idle), idle
    unfolded.zero_grad()
    unfolded.eval()


def test_a_network_in_train_form_is_refused():
    with pytest.raises(ValueError, match="not folded"):
        unfold(trained("fastvit_t8"), [images(2, 0)])


def test_statistics_need_images(pair):
    with pytest.raises(ValueError, match="no images"):
        unfold(pair[0], [])
