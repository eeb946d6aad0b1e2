"""Training FastViT on a CPU in less time: the same functions and gradients as the plain code, other arithmetic.

*Depthwise convolution.* oneDNN has fast depthwise loops only where every input channel has one output channel and, for
the weights' gradient, where the kernel is at most three columns wide. FastViT uses 7x7 kernels everywhere, and two
outputs per input between stages; there oneDNN takes 3 to 20 times as long. Both can be written as several convolutions
of the fast kind.

*RepMixer.* Of its four batch norms, three see the input itself or a per-channel multiple of it, whose mean and variance
follow from the input's. So two sets of statistics and one weighted sum replace four batch norms and five passes.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST_COLUMNS = 3  # widest kernel for which oneDNN has a fast gradient of depthwise weights


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1, bias: Tensor | None = None) -> Tensor:
    """(B, C, H, W), (m C, 1, k, k) with odd k, (m C,) -> (B, m C, ceil(H / stride), ceil(W / stride)), "same" padding.

    Output channels [m c, m c + m) see input channel c, as in conv2d with groups=C. First derivatives only when this
    takes its own path: training on a CPU, outside autocast and torch.compile.
    """
    channels = x.shape[1]
    multiplier = len(weight) // channels
    fast_already = multiplier == 1 and weight.shape[-1] <= FAST_COLUMNS
    learning = weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if fast_already or not learning or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=channels)
    if multiplier == 1:
        return _DepthwiseConv.apply(x, weight, bias, stride)
    outputs = [
        _DepthwiseConv.apply(x, weight[i::multiplier], None if bias is None else bias[i::multiplier], stride)
        for i in range(multiplier)
    ]
    # Interleave where channels are innermost in memory: the result is channels-last, like everything in fast training.
    return torch.stack([output.permute(0, 2, 3, 1) for output in outputs], dim=-1).flatten(3).permute(0, 3, 1, 2)


class _DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution with one output channel per input channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            padding = weight.shape[-1] // 2
            grad_x, _ = _convolution_backward(grad, x, weight, ctx.stride, padding, of_input=True)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad, x, weight, ctx.stride)
        if ctx.needs_input_grad[2]:
            rows = _rows(grad)
            grad_bias = (rows.new_ones(1, len(rows)) @ rows).flatten()  # faster than sum(dim=0)
        return grad_x, grad_weight, grad_bias, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """d/d weight of sum(grad * conv(x, weight)), `FAST_COLUMNS` columns of the kernel at a time."""
    size = weight.shape[-1]
    margin = size // 2
    if size <= FAST_COLUMNS:
        return _convolution_backward(grad, x, weight, stride, margin, of_input=False)[1]
    padded = F.pad(x, [margin] * 4)  # not by the convolution: with a stride, oneDNN is slow at padded rows
    rows = stride * (grad.shape[-2] - 1) + size  # that any window sees
    reach = stride * (grad.shape[-1] - 1)  # columns from the first to the last window
    columns: list[Tensor] = []
    for first in range(0, size, FAST_COLUMNS):
        kernel = weight[..., first : first + FAST_COLUMNS]
        seen = padded[..., :rows, first : first + reach + kernel.shape[-1]]
        seen = seen.contiguous(memory_format=torch.channels_last)
        columns.append(_convolution_backward(grad, seen, kernel.contiguous(), stride, 0, of_input=False)[1])
    return torch.cat(columns, dim=-1)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, of_input: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of x, None) or (None, gradient of weight)."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride, stride], [padding, padding], [1, 1], False, [0, 0], x.shape[1],
        [of_input, not of_input, False],
    )  # fmt: skip
    return grad_x, grad_weight


class RepMixerNorms(NamedTuple):
    """The batch norms of RepMixer's branches."""

    conv: nn.BatchNorm2d
    scale: nn.BatchNorm2d
    skip: nn.BatchNorm2d
    subtracted: nn.BatchNorm2d


def can_train_fast(x: Tensor, norms: RepMixerNorms) -> bool:
    """Whether `mix_tokens` may replace the branches: plain batch norms in training mode, eagerly, on a CPU."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > x.shape[1]  # one value per channel has no variance: batch norm refuses it
        and all(type(norm) is nn.BatchNorm2d and norm.training and norm.track_running_stats for norm in norms)
    )


def mix_tokens(x: Tensor, convolved: Tensor, layer_scale: Tensor, scale: Tensor, norms: RepMixerNorms) -> Tensor:
    """RepMixer: x + layer_scale * (norms.conv(convolved) + norms.scale(scale x) + norms.skip(x) - norms.subtracted(x)).

    x, convolved: (B, C, h, w), depthwise so that channels match. layer_scale, scale: C numbers. The norms are in
    training mode: they normalise by the batch's statistics, and their running statistics are updated.
    """
    count = x.numel() // x.shape[1]
    s = scale.flatten()
    with torch.no_grad():
        mean_x, var_x = _channel_statistics(x)
        mean_y, var_y = _channel_statistics(convolved)
        _update_running(norms.conv, mean_y, var_y, count)
        _update_running(norms.scale, s * mean_x, s * s * var_x, count)
        _update_running(norms.skip, mean_x, var_x, count)
        _update_running(norms.subtracted, mean_x, var_x, count)
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    eps = tuple(norm.eps for norm in norms)
    return _MixTokens.apply(x, convolved, mean_x, var_x, mean_y, var_y, eps, layer_scale.flatten(), s, *affine)


def _coefficients(
    eps: tuple[float, ...],
    mean_x: Tensor,
    var_x: Tensor,
    mean_y: Tensor,
    var_y: Tensor,
    layer_scale: Tensor,
    scale: Tensor,
    *affine: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The (C,) numbers such that `mix_tokens` is of_x * x + of_y * convolved + constant."""
    conv_w, conv_b, scale_w, scale_b, skip_w, skip_b, subtracted_w, subtracted_b = affine
    of_y = conv_w * torch.rsqrt(var_y + eps[0])
    of_x = (
        scale_w * scale * torch.rsqrt(scale * scale * var_x + eps[1])
        + skip_w * torch.rsqrt(var_x + eps[2])
        - subtracted_w * torch.rsqrt(var_x + eps[3])
    )
    constant = conv_b + scale_b + skip_b - subtracted_b - of_x * mean_x - of_y * mean_y
    return 1 + layer_scale * of_x, layer_scale * of_y, layer_scale * constant


class _MixTokens(torch.autograd.Function):
    """The weighted sum of `mix_tokens`, differentiated through the batch statistics too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        mean_x: Tensor,
        var_x: Tensor,
        mean_y: Tensor,
        var_y: Tensor,
        eps: tuple[float, ...],
        *parameters: Tensor,
    ) -> Tensor:
        of_x, of_y, constant = _coefficients(eps, mean_x, var_x, mean_y, var_y, *parameters)
        ctx.save_for_backward(x, y, mean_x, var_x, mean_y, var_y, *parameters)
        ctx.eps = eps
        return torch.addcmul(_along_channels(constant), x, _along_channels(of_x)).addcmul_(y, _along_channels(of_y))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *rest = ctx.saved_tensors
        rows_grad, rows_x, rows_y = _rows(grad), _rows(x), _rows(y)
        count = len(rows_grad)
        ones = rows_grad.new_ones(1, count)  # sums over rows as matrix products: faster than sum(dim=0)
        sums = [(ones @ rows).flatten() for rows in (rows_grad * rows_x, rows_grad * rows_y, rows_grad)]
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in rest]
            coefficients = _coefficients(ctx.eps, *inputs)
            small = torch.autograd.grad(coefficients, inputs, sums)
        of_x, of_y = coefficients[0].detach(), coefficients[1].detach()
        mean_x, _, mean_y, _ = rest[:4]
        grad_mean_x, grad_var_x, grad_mean_y, grad_var_y = small[:4]
        # d mean / d x = 1 / count; d variance / d x = 2 (x - mean) / count.
        grad_x = _through_statistics(x, mean_x, grad_mean_x, grad_var_x, count).addcmul_(grad, _along_channels(of_x))
        grad_y = _through_statistics(y, mean_y, grad_mean_y, grad_var_y, count).addcmul_(grad, _along_channels(of_y))
        return grad_x, grad_y, None, None, None, None, None, *small[4:]


def _through_statistics(x: Tensor, mean: Tensor, grad_mean: Tensor, grad_var: Tensor, count: int) -> Tensor:
    slope = 2 * grad_var / count
    return torch.addcmul(_along_channels(grad_mean / count - slope * mean), x, _along_channels(slope))


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: (C,), (C,)."""
    mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, variance


def _update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """As nn.BatchNorm2d does in training: the running variance is of the unbiased estimate."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, weight)
    norm.running_var.lerp_(variance * (count / (count - 1)), weight)


def _along_channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C), without a copy if x is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
