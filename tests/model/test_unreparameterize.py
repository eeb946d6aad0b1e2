"""A reparameterized network, made trainable again: the same answers, and training that goes on without a jump."""

from __future__ import annotations

import pytest
import torch
from trained_networks import images, trained

from handmesh.model.surgery.unreparameterize import unreparameterize


@pytest.fixture(scope="module", params=["fastvit_t8", "fastvit_sa12"])
def pair(request):
    reparameterized = trained(request.param).reparameterize()
    return reparameterized, unreparameterize(reparameterized, [images(16, seed) for seed in range(100, 104)])


@torch.no_grad()
def test_the_unreparameterized_network_answers_the_same(pair):
    reparameterized, unreparameterized = pair
    batch = images(3, 50)
    for name, wanted, found in zip(
        reparameterized(batch)._fields, reparameterized(batch), unreparameterized(batch), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=name)
    refolded = unreparameterized.reparameterize()
    torch.testing.assert_close(refolded(batch).vertices, reparameterized(batch).vertices, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_training_goes_on_without_a_jump(pair):
    """In training mode batch statistics take the place of the running ones: it moves less than photos differ."""
    reparameterized, unreparameterized = pair
    batch = images(32, 60)
    wanted = reparameterized(batch).vertices
    spread = (wanted - wanted.mean(dim=0)).norm(dim=-1).mean()
    unreparameterized.train()
    jump = (unreparameterized(batch).vertices - wanted).norm(dim=-1).mean()
    unreparameterized.eval()
    assert jump < spread


def test_every_branch_can_learn(pair):
    """A branch that begins at zero gets a gradient on its scale; everything else gets one at once."""
    _, unreparameterized = pair
    unreparameterized.train().requires_grad_(True)
    answer = unreparameterized(images(8, 70))
    (answer.vertices.square().sum() + answer.confidence.sum() + answer.camera.sum() + answer.seen.sum()).backward()
    idle = [name for name, value in unreparameterized.named_parameters() if value.grad is None or not value.grad.any()]
    assert all(".conv.weight" in name for name in idle), idle
    unreparameterized.zero_grad()
    unreparameterized.eval()


def test_a_network_in_train_form_is_refused():
    with pytest.raises(ValueError, match="not reparameterized"):
        unreparameterize(trained("fastvit_t8"), [images(2, 0)])


def test_statistics_need_images(pair):
    with pytest.raises(ValueError, match="no images"):
        unreparameterize(pair[0], [])
