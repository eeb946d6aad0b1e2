"""From a reparameterized network back to one that can be trained: the same function, with branches and batch norms
again.

Folding is not one to one, so what comes out is not what was once trained, but it computes the same: every kernel sits
whole in its main branch, the other branches begin at zero, and every batch norm expects the statistics that real
images have, so that training, which normalises by each batch, goes on from there without a jump.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from handmesh.model.checkpoint import load_weights
from handmesh.model.fastvit import (
    Attention,
    AttentionBlock,
    ConvFFN,
    FastViT,
    MobileOneBlock,
    ReparameterizedAttentionBlock,
    ReparameterizedRepMixerBlock,
    ReparamLargeKernelConv,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    identity_kernel,
    pad_kernel,
)
from handmesh.model.network import DenseHead, HandMeshNet
from handmesh.model.surgery.norm_statistics import norm_statistics


@torch.no_grad()
def unreparameterize(reparameterized: HandMeshNet, images: Iterable[Tensor]) -> HandMeshNet:
    """A trainable network, in eval mode, that answers as `reparameterized` does, to rounding. `reparameterized` is left
    as it is.

    images: a few batches, (B, S, S, 3) uint8 RGB, like those to train on; batch-norm statistics are measured on them.
    Raises ValueError without any images, or for a network that is not reparameterized.
    """
    if not reparameterized.reparameterized:
        raise ValueError("the network is not reparameterized: train it as it is")
    device = reparameterized.camera_head.weight.device
    model = HandMeshNet(reparameterized.config, reparameterized.hand).to(device).eval()
    if not isinstance(reparameterized.backbone, FastViT):  # shipped as it is trained, or not to be trained again
        load_weights(model, reparameterized.state_dict(), f"A deployed {reparameterized.config.backbone}")
        return model
    own = dict(reparameterized.named_modules())
    for name, module in model.named_modules():
        _copy(module, own.get(name))
    if model.token_head is not None and reparameterized.token_head is not None:
        model.token_head.load_state_dict(reparameterized.token_head.state_dict())
    _measure_norms(model, images)
    return model


def _copy(module: nn.Module, reparameterized: nn.Module | None) -> None:
    """Give a module of the trainable network what its reparameterized counterpart, of the same name, knows."""
    if isinstance(module, RepMixerBlock):
        assert isinstance(reparameterized, ReparameterizedRepMixerBlock)
        module.layer_scale.fill_(1)
        _copy_convffn(module.convffn, reparameterized.convffn)
    elif isinstance(module, AttentionBlock):
        assert isinstance(reparameterized, ReparameterizedAttentionBlock)
        module.layer_scale_1.fill_(1)
        module.layer_scale_2.fill_(1)
        _copy_convffn(module.convffn, reparameterized.convffn)
        _copy_attention(module, reparameterized.token_mixer)
    elif isinstance(module, RepMixer):
        kernel, bias = _kernel_and_bias(reparameterized, "reparam_conv")
        module.layer_scale.fill_(1)
        identity = pad_kernel(identity_kernel(len(kernel), len(kernel), like=kernel), kernel.shape[-1])
        _into_main_branch(module.mixer, kernel - identity, bias)
        _silence(module.norm.rbr_skip)
    elif isinstance(module, RepCPE):
        kernel, bias = _kernel_and_bias(reparameterized, "reparam_conv")
        module.pe.weight.copy_(kernel - pad_kernel(identity_kernel(len(kernel), len(kernel), like=kernel), 7))
        assert module.pe.bias is not None
        module.pe.bias.copy_(bias)
    elif isinstance(module, ReparamLargeKernelConv):
        _into_conv_norm(module.lkb_origin, *_kernel_and_bias(reparameterized, "lkb_reparam"))
        _silence(module.small_conv.get_submodule("bn"))
    elif isinstance(module, MobileOneBlock) and reparameterized is not None:  # RepMixer's own two were done with it
        _into_main_branch(module, *_kernel_and_bias(reparameterized, "reparam_conv"))
        module.se.load_state_dict(reparameterized.get_submodule("se").state_dict())
    elif isinstance(module, DenseHead):
        assert isinstance(reparameterized, DenseHead)
        for part in ("laterals", "predict"):
            module.get_submodule(part).load_state_dict(reparameterized.get_submodule(part).state_dict())
        kernel, bias = _kernel_and_bias(reparameterized, "smooth.1")
        convolution, norm = module.smooth[1], module.smooth[2]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        convolution.weight.copy_(kernel)
        _pass_through(norm, bias)
    elif isinstance(module, nn.Linear) and module.bias is not None:  # the heads; attention did its own
        assert isinstance(reparameterized, nn.Linear)
        module.load_state_dict(reparameterized.state_dict())


def _kernel_and_bias(reparameterized: nn.Module | None, name: str) -> tuple[Tensor, Tensor]:
    assert reparameterized is not None
    conv = reparameterized.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight, conv.bias


def _into_main_branch(block: MobileOneBlock, kernel: Tensor, bias: Tensor) -> None:
    assert block.rbr_conv is not None
    _into_conv_norm(block.rbr_conv[0], kernel, bias)
    if block.rbr_scale is not None:
        _silence(block.rbr_scale.get_submodule("bn"))
    _silence(block.rbr_skip)


def _into_conv_norm(branch: nn.Module, kernel: Tensor, bias: Tensor) -> None:
    conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    conv.weight.copy_(kernel)
    _pass_through(norm, bias)


def _pass_through(norm: nn.BatchNorm2d, shift: Tensor) -> None:
    """Eval mode: x + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)
    norm.bias.copy_(shift)


def _silence(norm: nn.Module | None) -> None:
    """Eval mode: 0, but its scale can be learnt."""
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.zero_()
        norm.bias.zero_()


def _copy_convffn(convffn: ConvFFN, reparameterized: nn.Module) -> None:
    assert isinstance(reparameterized, ConvFFN)
    _into_conv_norm(convffn.conv, *_kernel_and_bias(reparameterized.conv, "conv"))
    convffn.fc1.load_state_dict(reparameterized.fc1.state_dict())
    convffn.fc2.load_state_dict(reparameterized.fc2.state_dict())


def _copy_attention(block: AttentionBlock, reparameterized: nn.Module) -> None:
    """The reparameterized qkv has a bias, which came from the batch norm's shift: solve for that."""
    assert isinstance(reparameterized, Attention)
    block.token_mixer.qkv.weight.copy_(reparameterized.qkv.weight)
    block.token_mixer.proj.load_state_dict(reparameterized.proj.state_dict())
    shift = torch.linalg.lstsq(
        reparameterized.qkv.weight.double(), reparameterized.qkv.bias.double()[:, None]
    ).solution[:, 0]
    _pass_through(block.norm, shift.to(reparameterized.qkv.bias))


@torch.no_grad()
def _measure_norms(model: HandMeshNet, images: Iterable[Tensor]) -> None:
    """Set every batch norm's statistics to those of the images, and its scale and shift so that its map stays."""
    measured = norm_statistics(model, images)
    for name, (mean, variance) in measured.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double().cpu() / torch.sqrt(norm.running_var.double().cpu() + norm.eps)
        shift = norm.bias.double().cpu() - norm.running_mean.double().cpu() * scale
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
        norm.bias.copy_(shift + mean * scale)
