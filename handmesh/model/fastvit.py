"""FastViT, the network that looks at the crop: all seven variants of its Table 2, in train-time and reparameterized
form.

Vasu et al., "FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization", ICCV 2023,
https://arxiv.org/abs/2303.14189. An image passes a stem of stride 4, four stages at strides 4, 8, 16 and 32, and a last
3x3 depthwise expansion with squeeze-and-excitation. Images are (B, 3, H, W), RGB, normalised.

*Train-time form*: convolutions are sums of parallel branches, each with its own batch norm. Parameters carry the names
of Apple's released code (https://github.com/apple/ml-fastvit), so its checkpoints load with ``strict=True``
(`handmesh.model.fastvit_weights`). *Reparameterized form*: `FastViT.reparameterize()` turns every such sum into one
convolution, and also folds what the released code leaves behind: the batch norms of ConvFFN and attention, and all
layer scales.

The published weights were trained with the released code, so where it departs from the paper, we follow the code:

* the large-kernel convolution between stages has no activation (the code computes a GELU and discards it);
* RepMixer normalises after its convolutions, not before (the paper's equation 2 has batch norm first).
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmesh.errors import ConfigError
from handmesh.model.backbone import Backbone
from handmesh.model.fastvit_cpu import RepMixerNorms, can_train_fast, depthwise_conv, mix_tokens


@dataclass(frozen=True)
class Variant:
    """One row of the paper's Table 2, with the training settings of the released code."""

    blocks: tuple[int, int, int, int]  # per stage
    channels: tuple[int, int, int, int]  # per stage
    mlp_ratio: int
    attention: bool  # the last stage: self-attention after a positional encoding, instead of RepMixer
    layer_scale: float  # its value before training
    drop_path: float  # of the last block; earlier blocks proportionally less


VARIANTS: dict[str, Variant] = {
    "fastvit_t8": Variant((2, 2, 4, 2), (48, 96, 192, 384), 3, False, 1e-5, 0.0),
    "fastvit_t12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 3, False, 1e-5, 0.0),
    "fastvit_s12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 4, False, 1e-5, 0.0),
    "fastvit_sa12": Variant((2, 2, 6, 2), (64, 128, 256, 512), 4, True, 1e-5, 0.1),
    "fastvit_sa24": Variant((4, 4, 12, 4), (64, 128, 256, 512), 4, True, 1e-5, 0.1),
    "fastvit_sa36": Variant((6, 6, 18, 6), (64, 128, 256, 512), 4, True, 1e-6, 0.2),
    "fastvit_ma36": Variant((6, 6, 18, 6), (76, 152, 304, 608), 4, True, 1e-6, 0.35),
}

EXPANSION = 2  # of the final convolution's channels
SQUEEZE = 16  # squeeze-and-excitation squeezes to 1/16 of the channels
STRIDE = 32  # of the last stage
ATTENTION_HEAD_CHANNELS = 32


def build_backbone(name: str, *, num_classes: int = 0, drop_path: float | None = None) -> "FastViT":
    """A FastViT with fresh weights, in train-time form.

    name: one of `VARIANTS`. num_classes: outputs of `FastViT.classify`; 0 builds no classifier. drop_path: probability
    of skipping the last block's residuals in training (earlier blocks proportionally less, Huang et al. 2016); None
    takes the released training recipe's. Raises ConfigError for an unknown name or an impossible number.
    """
    if name not in VARIANTS:
        raise ConfigError(f"There is no backbone {name!r}. Choose one of: {', '.join(VARIANTS)}.")
    if num_classes < 0:
        raise ConfigError(f"num_classes is {num_classes}; give 0 (no classifier) or the number of classes.")
    variant = VARIANTS[name]
    rate = variant.drop_path if drop_path is None else drop_path
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"drop_path is {rate}; it is a probability in [0, 1).")
    return FastViT(name, variant, num_classes=num_classes, drop_path=rate)


class FastViT(Backbone):
    """The backbone. Build one with `build_backbone`.

    name: its row in `VARIANTS`. channels: of `forward`'s map. pyramid_channels: of `forward_pyramid`'s four maps.
    reparameterized: whether this is the reparameterized form.
    """

    def __init__(self, name: str, variant: Variant, *, num_classes: int, drop_path: float) -> None:
        super().__init__()
        self.name = name
        self.channels: int = EXPANSION * variant.channels[-1]
        self.pyramid_channels = variant.channels
        self.num_classes = num_classes
        self.reparameterized = False

        width = variant.channels[0]
        self.patch_embed = nn.Sequential(
            MobileOneBlock(3, width, kernel_size=3, stride=2),
            MobileOneBlock(width, width, kernel_size=3, stride=2, groups=width),
            MobileOneBlock(width, width, kernel_size=1),
        )

        # One flat list, as in the released code: stage, patch embedding, stage, ..., positional encoding, stage.
        network: list[nn.Module] = []
        stage_ends: list[int] = []
        total = sum(variant.blocks)
        drop_rates = iter([drop_path * index / (total - 1) for index in range(total)])
        for stage, (depth, width) in enumerate(zip(variant.blocks, variant.channels, strict=True)):
            attention = variant.attention and stage == 3
            if stage > 0:
                network.append(PatchEmbed(variant.channels[stage - 1], width))
            if attention:
                network.append(RepCPE(width))
            block = AttentionBlock if attention else RepMixerBlock
            network.append(
                nn.Sequential(
                    *(block(width, variant.mlp_ratio, variant.layer_scale, next(drop_rates)) for _ in range(depth))
                )
            )
            stage_ends.append(len(network) - 1)
        self.network = nn.ModuleList(network)
        self._stage_ends = tuple(stage_ends)

        width = variant.channels[-1]
        self.conv_exp = MobileOneBlock(width, self.channels, kernel_size=3, groups=width, squeeze_excite=True)
        self.head = nn.Linear(self.channels, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised RGB -> (B, channels, ceil(H / 32), ceil(W / 32)), after the final expansion.

        Sides need not be equal nor multiples of 32, but at least 32. Raises ValueError for any other shape.
        """
        return self.forward_all(images)[0]

    def forward_pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> the outputs of the four stages, (B, pyramid_channels[i], H / s, W / s), s = 4, 8, 16, 32."""
        _check_images(images)
        x = self.patch_embed(images)
        stages: list[Tensor] = []
        for index, module in enumerate(self.network):
            x = module(x)
            if index in self._stage_ends:
                stages.append(x)
        first, second, third, fourth = stages
        return first, second, third, fourth

    def forward_all(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(B, 3, H, W) -> `forward`'s map and `forward_pyramid`'s maps, in one pass."""
        pyramid = self.forward_pyramid(images)
        return self.conv_exp(pyramid[-1]), pyramid

    def classify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes) logits. Raises ValueError where the backbone has no classifier."""
        if self.num_classes == 0:
            raise ValueError("This backbone has no classifier; build it with num_classes=1000 (ImageNet) to classify.")
        return self.head(self.forward(images).mean(dim=(2, 3)))

    def train_perceptrons_in_bfloat16(self, enabled: bool = True) -> Self:
        """From now on, compute the perceptrons of `ConvFFN` in bfloat16 in training mode, all else as before.

        Faster on CPUs that multiply bfloat16 (AVX512-BF16, AMX), where autocast of everything is slower than float32:
        depthwise convolutions and batch norms gain nothing. Eval mode is unaffected. Returns this module.
        """
        for module in self.modules():
            if isinstance(module, ConvFFN):
                module.train_in_bfloat16 = enabled
        return self

    def reparameterize(self) -> Self:
        """A copy in reparameterized form, in eval mode; this module is left as it is.

        In eval mode the copy computes the same function, to rounding. Folding a reparameterized backbone gives an equal
        copy. The copy is for inference: batch norms and branches are gone, so do not fine-tune it.
        """
        deployed = copy.deepcopy(self).eval()
        if not deployed.reparameterized:
            with torch.no_grad():
                fold_branches(deployed)
                fold_residuals(deployed)
            deployed.reparameterized = True
        return deployed.requires_grad_(False)


def fold_branches(backbone: nn.Module) -> None:
    """Replace, in place, every sum of branches by one convolution: exactly the released code's reparameterized form
    and keys.
    """
    _replace(backbone, lambda module: module.reparameterized() if isinstance(module, BranchedConv) else None)


def fold_residuals(backbone: nn.Module) -> None:
    """After `fold_branches`: fold, in place, the batch norms and layer scales that remain."""
    _replace(backbone, lambda module: module.reparameterized() if isinstance(module, ResidualBlock) else None)


def _replace(module: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, child in module.named_children():
        new = replacement(child)
        if new is None:
            _replace(child, replacement)
        else:
            setattr(module, name, new)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; a batch of RGB images has shape (B, 3, H, W).")
    if images.shape[2] < STRIDE or images.shape[3] < STRIDE:
        raise ValueError(
            f"images are {images.shape[2]} x {images.shape[3]} pixels; both sides must be at least {STRIDE}: "
            f"the last stage sees one cell per {STRIDE} pixels."
        )


# --- Sums of branches -------------------------------------------------------------------------------------------------


class BranchedConv(nn.Module):
    """A linear map that trains as a sum of branches and folds into one convolution."""

    def reparameterized(self) -> nn.Module:
        """The same map, eval mode, with one convolution and the released code's reparameterized names."""
        raise NotImplementedError


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one group per channel and "same" padding, which trains fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.stride[0], self.bias)


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int) -> nn.Sequential:
    """A convolution without bias, then batch norm; "same" padding."""
    convolution = DepthwiseConv2d if groups == in_channels else nn.Conv2d
    conv = convolution(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


class MobileOneBlock(BranchedConv):
    """Batch-normed convolution + batch-normed 1x1 convolution + batch-normed identity -> squeeze-excite -> GELU.

    Vasu et al., "MobileOne", CVPR 2023. The 1x1 branch exists beside larger kernels, the identity branch where input
    and output have the same shape. Without convolutions it is the bare batch norm that RepMixer subtracts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        squeeze_excite: bool = False,
        activation: bool = True,
        convolutions: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups
        self.rbr_skip = nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        self.rbr_conv: nn.ModuleList | None = None
        self.rbr_scale: nn.Sequential | None = None
        if convolutions:
            self.rbr_conv = nn.ModuleList([conv_norm(in_channels, out_channels, kernel_size, stride, groups)])
            if kernel_size > 1:
                self.rbr_scale = conv_norm(in_channels, out_channels, 1, stride, groups)
        self.se = SqueezeExcite(out_channels) if squeeze_excite else nn.Identity()
        self.activation = nn.GELU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.se(self.sum_of_branches(x)))

    def sum_of_branches(self, x: Tensor) -> Tensor:
        branches: list[Tensor] = []
        if self.rbr_conv is not None:
            branches += [branch(x) for branch in self.rbr_conv]
        if self.rbr_scale is not None:
            branches.append(self.scale_branch(x))
        if self.rbr_skip is not None:
            branches.append(self.rbr_skip(x))
        total = branches[0]
        for branch in branches[1:]:
            total = total + branch
        return total

    def scale_branch(self, x: Tensor) -> Tensor:
        assert self.rbr_scale is not None
        if self.stride == 1 or self.groups > 1:
            return self.rbr_scale(x)
        # oneDNN's dense strided 1x1 convolution of few channels writes past its workspace in float32 channels-last
        # training: a crash or silently wrong gradients (https://github.com/uxlfoundation/oneDNN/issues/6035).
        # Dropping the pixels that the stride skips is the same function. (Not so for depthwise ones, which are safe:
        # the gradient of a slice loses the channels-last layout, and mixed layouts slow the whole stem down.)
        conv, norm = self.rbr_scale.get_submodule("conv"), self.rbr_scale.get_submodule("bn")
        assert isinstance(conv, nn.Conv2d)
        return norm(F.conv2d(x[:, :, :: self.stride, :: self.stride], conv.weight))

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The convolution that equals the sum of branches in eval mode: (out, in / groups, k, k) and (out,)."""
        terms: list[tuple[Tensor, Tensor]] = []
        if self.rbr_conv is not None:
            terms += [fold_conv_norm(branch) for branch in self.rbr_conv]
        if self.rbr_scale is not None:
            terms.append(fold_conv_norm(self.rbr_scale))
        if self.rbr_skip is not None:
            identity = identity_kernel(self.in_channels, self.groups, like=self.rbr_skip.weight)
            terms.append(fold_norm(identity, self.rbr_skip))
        kernel = torch.stack([pad_kernel(kernel, self.kernel_size) for kernel, _ in terms]).sum(dim=0)
        return kernel, torch.stack([bias for _, bias in terms]).sum(dim=0)

    def reparameterized(self) -> nn.Module:
        conv = conv_from(*self.kernel_and_bias(), stride=self.stride, groups=self.groups)
        return nn.Sequential(OrderedDict(reparam_conv=conv, se=self.se, activation=self.activation))


class RepMixer(BranchedConv):
    """Mixes neighbouring tokens: x + layer_scale * (branches(x) - norm(x)), which folds into one depthwise 3x3."""

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = MobileOneBlock(
            channels, channels, kernel_size=3, groups=channels, activation=False, convolutions=False
        )
        self.mixer = MobileOneBlock(channels, channels, kernel_size=3, groups=channels, activation=False)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        norms = self._norms()
        if can_train_fast(x, norms):
            conv, scale = self.mixer.get_submodule("rbr_conv.0.conv"), self.mixer.get_submodule("rbr_scale.conv")
            assert isinstance(scale, nn.Conv2d)
            return mix_tokens(x, conv(x), self.layer_scale, scale.weight, norms)
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))

    def _norms(self) -> RepMixerNorms:
        """Of the convolution, the 1x1 and the identity branch, and the one that is subtracted."""
        names = "mixer.rbr_conv.0.bn", "mixer.rbr_scale.bn", "mixer.rbr_skip", "norm.rbr_skip"
        return RepMixerNorms(*(cast(nn.BatchNorm2d, self.get_submodule(name)) for name in names))

    def reparameterized(self) -> nn.Module:
        mixer_kernel, mixer_bias = self.mixer.kernel_and_bias()
        norm_kernel, norm_bias = self.norm.kernel_and_bias()
        channels = len(mixer_bias)
        identity = pad_kernel(identity_kernel(channels, channels, like=mixer_kernel), 3)
        kernel = identity + self.layer_scale[..., None] * (mixer_kernel - norm_kernel)
        bias = self.layer_scale.flatten() * (mixer_bias - norm_bias)
        return nn.Sequential(OrderedDict(reparam_conv=conv_from(kernel, bias, groups=channels)))


class ReparamLargeKernelConv(BranchedConv):
    """Depthwise 7x7 + depthwise 3x3 of stride 2, each batch-normed (Ding et al., "RepLKNet", CVPR 2022).

    No activation follows: the released code computes one and discards it, and its weights were trained so.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lkb_origin = conv_norm(in_channels, out_channels, 7, stride=2, groups=in_channels)
        self.small_conv = conv_norm(in_channels, out_channels, 3, stride=2, groups=in_channels)
        self.groups = in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)

    def reparameterized(self) -> nn.Module:
        large_kernel, large_bias = fold_conv_norm(self.lkb_origin)
        small_kernel, small_bias = fold_conv_norm(self.small_conv)
        kernel = large_kernel + pad_kernel(small_kernel, 7)
        conv = conv_from(kernel, large_bias + small_bias, stride=2, groups=self.groups)
        return nn.Sequential(OrderedDict(lkb_reparam=conv))


class RepCPE(BranchedConv):
    """Conditional positional encoding, x + depthwise 7x7 (Chu et al., https://arxiv.org/abs/2102.10882)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pe = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe(x)

    def reparameterized(self) -> nn.Module:
        assert self.pe.bias is not None
        identity = pad_kernel(identity_kernel(self.pe.groups, self.pe.groups, like=self.pe.weight), 7)
        conv = conv_from(self.pe.weight + identity, self.pe.bias, groups=self.pe.groups)
        return nn.Sequential(OrderedDict(reparam_conv=conv))


class PatchEmbed(nn.Module):
    """Between stages: halve the resolution, widen the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            ReparamLargeKernelConv(in_channels, out_channels), MobileOneBlock(out_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // SQUEEZE, 1)
        self.expand = nn.Conv2d(channels // SQUEEZE, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


# --- Residual blocks --------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """A block of a stage; once its branches are folded, its batch norms and layer scales fold into their neighbours."""

    def reparameterized(self) -> nn.Module:
        raise NotImplementedError


class RepMixerBlock(ResidualBlock):
    """Token mixing by `RepMixer`, then channel mixing by `ConvFFN`."""

    def __init__(self, channels: int, mlp_ratio: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, layer_scale)
        self.convffn = ConvFFN(channels, mlp_ratio)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.convffn(x, self.layer_scale))

    def reparameterized(self) -> nn.Module:
        return ReparameterizedRepMixerBlock(self.token_mixer, self.convffn.reparameterized(self.layer_scale))


class AttentionBlock(ResidualBlock):
    """Self-attention over all cells, then channel mixing by `ConvFFN`."""

    def __init__(self, channels: int, mlp_ratio: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = Attention(channels)
        self.convffn = ConvFFN(channels, mlp_ratio)
        self.layer_scale_1 = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(self.norm(x)))
        return x + self.drop_path(self.convffn(x, self.layer_scale_2))

    def reparameterized(self) -> nn.Module:
        return ReparameterizedAttentionBlock(
            self.token_mixer.reparameterized(self.norm, self.layer_scale_1),
            self.convffn.reparameterized(self.layer_scale_2),
        )


class ReparameterizedRepMixerBlock(nn.Module):
    """`RepMixerBlock` without batch norm and layer scales; its token mixer holds the residual connection."""

    def __init__(self, token_mixer: nn.Module, convffn: nn.Module) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.convffn = convffn

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.convffn(x)


class ReparameterizedAttentionBlock(nn.Module):
    """`AttentionBlock` without batch norms and layer scales."""

    def __init__(self, token_mixer: nn.Module, convffn: nn.Module) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.convffn = convffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(x)
        return x + self.convffn(x)


class ConvFFN(nn.Module):
    """Depthwise 7x7 and batch norm, then a two-layer perceptron in every cell."""

    def __init__(self, channels: int, mlp_ratio: int) -> None:
        super().__init__()
        self.train_in_bfloat16 = False
        self.conv = conv_norm(channels, channels, 7, stride=1, groups=channels)
        self.fc1 = nn.Conv2d(channels, channels * mlp_ratio, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(channels * mlp_ratio, channels, 1)
        for conv in (self.conv.get_submodule("conv"), self.fc1, self.fc2):
            assert isinstance(conv, nn.Conv2d)
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, layer_scale: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> the same shape, times layer_scale (C, 1, 1), which is cheaper to apply to the weights."""
        x = self.conv(x)
        weight, bias = self.fc2.weight, self.fc2.bias
        assert bias is not None
        if layer_scale is not None:
            weight, bias = weight * layer_scale[..., None], bias * layer_scale.flatten()
        if self.training and self.train_in_bfloat16:
            low = torch.bfloat16
            assert self.fc1.bias is not None
            cells = x.permute(0, 2, 3, 1).to(low)
            hidden = self.act(F.linear(cells, self.fc1.weight.flatten(1).to(low), self.fc1.bias.to(low)))
            return F.linear(hidden, weight.flatten(1).to(low), bias.to(low)).permute(0, 3, 1, 2).to(x.dtype)
        return F.conv2d(self.act(self.fc1(x)), weight, bias)

    def reparameterized(self, layer_scale: Tensor) -> Self:
        """The same map times layer_scale, with no batch norm and no layer scale."""
        copied = copy.deepcopy(self)
        kernel, bias = fold_conv_norm(self.conv)
        copied.conv = nn.Sequential(OrderedDict(conv=conv_from(kernel, bias, groups=len(bias))))
        assert copied.fc2.bias is not None
        copied.fc2.weight.mul_(layer_scale[..., None])
        copied.fc2.bias.mul_(layer_scale.flatten())
        return copied


class Attention(nn.Module):
    """Multi-head self-attention over the cells of a map; heads of `ATTENTION_HEAD_CHANNELS` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, h, w = x.shape
        tokens = x.flatten(2).mT
        # Rows of qkv's output: (query, key, value) x head x channel of the head.
        q, k, v = (
            self.qkv(tokens)
            .reshape(B, h * w, 3, C // ATTENTION_HEAD_CHANNELS, ATTENTION_HEAD_CHANNELS)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # scaled by ATTENTION_HEAD_CHANNELS ** -0.5
        return self.proj(mixed.transpose(1, 2).reshape(B, h * w, C)).mT.reshape(B, C, h, w)

    def reparameterized(self, norm: nn.BatchNorm2d, layer_scale: Tensor) -> Self:
        """layer_scale * self(norm(x)), with no batch norm and no layer scale: qkv gains a bias."""
        copied = copy.deepcopy(self)
        scale, shift = norm_as_affine(norm)
        channels = len(scale)
        copied.qkv = nn.Linear(channels, 3 * channels).to(self.qkv.weight)
        copied.qkv.weight.copy_(self.qkv.weight * scale)
        copied.qkv.bias.copy_(self.qkv.weight @ shift)
        copied.proj.weight.mul_(layer_scale.flatten()[:, None])
        copied.proj.bias.mul_(layer_scale.flatten())
        return copied


class DropPath(nn.Module):
    """Stochastic depth: in training, zero a sample's residual with this probability and scale the others up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, residual: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return residual
        kept = 1.0 - self.probability
        mask = residual.new_empty(len(residual), 1, 1, 1).bernoulli_(kept)
        return residual * (mask / kept)


# --- Folding arithmetic -----------------------------------------------------------------------------------------------


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Eval-mode batch norm as scale * x + shift: (C,), (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def fold_norm(kernel: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The convolution's kernel and bias that equal convolving with kernel, then eval-mode norm."""
    scale, shift = norm_as_affine(norm)
    return kernel * scale[:, None, None, None], shift


def fold_conv_norm(branch: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a `conv_norm` in eval mode."""
    conv, norm = branch.get_submodule("conv"), branch.get_submodule("bn")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fold_norm(conv.weight, norm)


def identity_kernel(channels: int, groups: int, like: Tensor) -> Tensor:
    """The 1x1 kernel, (channels, channels / groups, 1, 1), that changes nothing."""
    per_group = channels // groups
    identity = torch.eye(per_group, dtype=like.dtype, device=like.device).repeat(groups, 1)
    return identity[:, :, None, None]


def pad_kernel(kernel: Tensor, size: int) -> Tensor:
    """The kernel in the middle of a size x size one."""
    margin = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, [margin] * 4)


def conv_from(kernel: Tensor, bias: Tensor, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with this kernel and bias and "same" padding."""
    out_channels, per_group, size, _ = kernel.shape
    convolution = DepthwiseConv2d if per_group == 1 and groups > 1 else nn.Conv2d
    conv = convolution(per_group * groups, out_channels, size, stride, padding=size // 2, groups=groups, bias=True)
    conv = conv.to(kernel)
    assert conv.bias is not None
    conv.weight.copy_(kernel)
    conv.bias.copy_(bias)
    return conv
