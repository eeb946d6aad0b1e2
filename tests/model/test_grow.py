"""A network that grew answers as the small one did, and all of it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from trained_networks import images, trained

from handmesh.errors import ConfigError
from handmesh.model.fastvit import VARIANTS
from handmesh.model.surgery.grow import check_growth, grow

PAIRS = [
    ("fastvit_t8", "fastvit_s12"),  # wider, deeper and with a larger perceptron
    ("fastvit_sa12", "fastvit_ma36"),  # wider and deeper, with attention, whose heads get more
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    small, name = request.param
    torch.manual_seed(3)
    model = trained(small)
    return model, grow(model, name, [images(16, seed) for seed in range(100, 104)])


@torch.no_grad()
def test_the_larger_network_answers_the_same(pair):
    small, large = pair
    batch = images(3, 50)
    assert sum(p.numel() for p in large.parameters()) > 2 * sum(p.numel() for p in small.parameters())
    for name, wanted, found in zip(small(batch)._fields, small(batch), large(batch), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-4, msg=name)


def test_new_weights_change_the_answer_and_can_learn(pair):
    """Old channels ignore new ones at first, but can learn to listen: their weights have gradients."""
    small, large = pair[0], copy.deepcopy(pair[1])  # a training step changes batch norms' statistics
    large.train().requires_grad_(True)
    answer = large(images(8, 70))
    (answer.vertices.square().sum() + answer.camera.sum()).backward()
    known = dict(small.named_parameters())
    listening = large.pose_head.weight.grad
    assert listening[:, known["pose_head.weight"].shape[1] :].any(dim=0).all()
    for name, value in large.named_parameters():
        if name.endswith("fc2.weight") and name in known:
            old_outputs, old_inputs = known[name].shape[:2]
            assert value.grad[:old_outputs, old_inputs:].any(), name


def test_what_is_new_begins_at_random(pair):
    """Copies of old channels would learn the same as those; random ones do not."""
    small, large = pair
    name = "backbone.network.0.0.convffn.fc1.weight"
    new = large.state_dict()[name][small.state_dict()[name].shape[0] :]
    assert len(new.flatten(1).unique(dim=0)) == len(new)


@torch.no_grad()
def test_new_channels_are_as_lively_as_in_training(pair):
    """In eval mode, too, which is what folding keeps: they once left the stem with a tenth of what they should.

    A spread of 1, less where channels that hardly vary give way to a norm's epsilon (the least mean is 0.76).
    """
    small, large = pair[0], copy.deepcopy(pair[1])
    old = {name: norm.num_features for name, norm in small.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    spreads = {}

    def look(name):
        def keep(norm, inputs, output):
            if norm.num_features > old.get(name, 0):  # of a keypoint head there are no more
                spreads[name] = output[:, old.get(name, 0) :].std(dim=(0, 2, 3))

        return keep

    for name, norm in large.named_modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.register_forward_hook(look(name))
    large(images(32, 60))
    assert len(spreads) > len(old)
    for name, spread in spreads.items():
        assert spread.mean() == pytest.approx(1, abs=0.3), name


@torch.no_grad()
def test_channels_may_stay_as_many():
    """There is nothing to measure then, but in new blocks."""
    torch.manual_seed(3)
    model = trained("fastvit_t12")
    large = grow(model, "fastvit_s12", [images(8, 100)])
    batch = images(3, 50)
    torch.testing.assert_close(large(batch).vertices, model(batch).vertices, rtol=1e-3, atol=2e-4)


def test_growth_needs_images(pair):
    with pytest.raises(ValueError, match="no images"):
        grow(pair[0], pair[1].config.backbone, [])


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        ("fastvit_t8", "fastvit_sa12", "the last stage of the one has RepMixer, of the other attention"),
        ("fastvit_s12", "fastvit_t12", "which has fewer mlp_ratio. It is the largest of its kind"),
        ("fastvit_ma36", "fastvit_sa36", "which has fewer channels. It is the largest of its kind"),
        ("fastvit_t12", "fastvit_t8", "which has fewer blocks. It can into: fastvit_s12"),
    ],
)
def test_a_network_does_not_shrink_or_change_its_kind(small, large, message):
    with pytest.raises(ConfigError, match=message):
        check_growth(small, large)


def test_what_can_grow_is_what_contains_the_other():
    for small in VARIANTS:
        check_growth(small, small)


def test_a_reparameterized_network_is_refused(pair):
    with pytest.raises(ValueError, match="reparameterized"):
        grow(pair[0].reparameterize(), pair[1].config.backbone, [])
