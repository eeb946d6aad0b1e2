"""Steps of training that are timed against each other."""

import pytest
import torch
from backbones import plainly, training_step

from handmesh.model import fastvit_cpu
from handmesh.model.fastvit import build_backbone


@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_plain_step_has_nothing_of_the_fast_arithmetic(reparameterized, monkeypatch):
    """It crashed since convolutions have a bias, and reparameterized networks were fast in their plain steps, too."""
    backbone = build_backbone("fastvit_t8")
    step = training_step(backbone.reparameterize() if reparameterized else backbone, torch.randn(2, 3, 64, 64))

    def refuse(*_):
        raise InterruptedError

    for fast in (fastvit_cpu._DepthwiseConv, fastvit_cpu._MixTokens):
        monkeypatch.setattr(fast, "apply", refuse)
    plainly(step)()
    with pytest.raises(InterruptedError):
        step()
