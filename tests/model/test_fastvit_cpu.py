"""The faster arithmetic is the plain one's function and gradient, to rounding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from handmesh.model import fastvit as backbone_module
from handmesh.model.fastvit import RepMixer
from handmesh.model.fastvit_cpu import depthwise_conv


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "multiplier", "kernel", "stride", "height", "width"),
    [
        (5, 1, 7, 1, 9, 6),
        (4, 1, 7, 2, 7, 8),
        (5, 2, 7, 2, 9, 6),
        (4, 2, 3, 2, 8, 8),
        (4, 2, 1, 2, 5, 6),
        (3, 2, 7, 2, 2, 1),  # smaller than the kernel
        (3, 1, 7, 1, 1, 1),
    ],
)
def test_depthwise_conv_is_conv2d(channels, multiplier, kernel, stride, height, width, channels_last, biased):
    torch.manual_seed(0)
    x = torch.randn(3, channels, height, width, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.randn(multiplier * channels, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(multiplier * channels, dtype=torch.float64, requires_grad=True) if biased else None
    expected = F.conv2d(x, weight, bias, stride=stride, padding=kernel // 2, groups=channels)
    output = depthwise_conv(x, weight, stride, bias)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(output, (x, weight) if bias is None else (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight) if bias is None else (x, weight, bias), grad),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("momentum", [0.1, None])
def test_mixing_tokens_by_shared_statistics_is_the_sum_of_the_branches(monkeypatch, momentum):
    torch.manual_seed(0)
    fast = RepMixer(6, 0.1).double().train()
    for parameter in fast.parameters():
        nn.init.uniform_(parameter, -1.0, 1.5)
    for module in fast.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    with torch.no_grad():  # a scale so small that batch norm's epsilon decides
        fast.mixer.get_parameter("rbr_scale.conv.weight")[0] = 1e-3
    plain = copy.deepcopy(fast)
    for _ in range(2):  # running statistics must stay equal
        x = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(3, 6, 5, 4, dtype=torch.float64)
        output = fast(x)
        assert output.grad_fn is not None
        assert "MixTokens" in output.grad_fn.name()
        with monkeypatch.context() as patch:
            patch.setattr(backbone_module, "can_train_fast", lambda *_: False)
            expected = plain(x)
        torch.testing.assert_close(output, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            torch.autograd.grad(output, [x, *fast.parameters()], grad),
            torch.autograd.grad(expected, [x, *plain.parameters()], grad),
            rtol=1e-10,
            atol=1e-11,
        )
    torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()), rtol=1e-12, atol=1e-12)


def test_frozen_batch_norms_are_not_updated():
    """Fine-tuning often keeps the running statistics: bn.eval() inside a model in training mode."""
    mixer = RepMixer(4, 0.1).train()
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = copy.deepcopy(dict(mixer.named_buffers()))
    mixer(torch.randn(2, 4, 3, 3, requires_grad=True)).sum().backward()
    torch.testing.assert_close(dict(mixer.named_buffers()), before, rtol=0.0, atol=0.0)
