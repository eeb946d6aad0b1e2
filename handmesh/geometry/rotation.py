"""Rotations: 3x3 matrices, the 6D representation of Zhou et al. (CVPR 2019, arXiv:1812.07035), rotation vectors.

A matrix acts on column vectors, ``target = R @ source``. Angles are radians. The 6D layout is PyTorch3D's: the six
numbers are the first two **rows** of the matrix, one after the other. (Zhou's own code, HaMeR and manopth store the
first two columns; both layouts write the identity as 1 0 0 0 1 0, so a mix-up inverts every rotation unseen.)

All functions take any batch shape, have finite gradients everywhere, contain no data-dependent control flow (they
compile as one graph and export), and compute in float32 or better: half-precision input is widened first, and there is
no matrix product for autocast to narrow.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A row of six numbers whose largest component is below this carries no direction. It also bounds the gradient, which
# grows as 1 / length.
_SHORTEST_ROW = 1e-4
# Two rows whose angle has a sine below this (within a factor of sqrt 3) are taken as parallel.
_SMALLEST_SINE = 1e-3


def matrix_from_6d(sixd: Tensor) -> Tensor:
    """(*B, 6) -> (*B, 3, 3): Gram-Schmidt on the first two rows, the third is their cross product.

    Every finite input gives a proper rotation. A row too short to have a direction is replaced by an axis, and so is a
    second row parallel to the first; the gradient stays below about 1e7 in the worst corner, and is about
    1 / length of the rows elsewhere. Not-a-number goes through, so that a broken network is noticed.
    """
    sixd = _at_least_float32(sixd)
    axis_x, axis_y, _ = torch.eye(3, dtype=sixd.dtype, device=sixd.device).unbind(dim=0)

    first, has_direction = _scaled(sixd[..., :3])
    x = functional.normalize(torch.where(has_direction, first, axis_x), dim=-1)

    second, has_direction = _scaled(sixd[..., 3:])
    independent = torch.linalg.vector_norm(_reject(second, x).detach(), dim=-1, keepdim=True) > _SMALLEST_SINE
    other_axis = torch.where(x[..., :1].abs() < 0.9, axis_x, axis_y)
    second = torch.where(torch.logical_and(has_direction, independent), second, other_axis)
    # The part of the second row across x, through a cross product: that is orthogonal to x to the last bit even where
    # the rows are nearly parallel. Always name the dimension: torch.cross without one picks the batch when it is 3.
    z = functional.normalize(torch.linalg.cross(x, _reject(second, x), dim=-1), dim=-1)
    y = torch.linalg.cross(z, x, dim=-1)
    return torch.stack((x, y, z), dim=-2)


def sixd_from_matrix(matrix: Tensor) -> Tensor:
    """(*B, 3, 3) -> (*B, 6): the first two rows."""
    return matrix[..., :2, :].flatten(start_dim=-2)


def matrix_from_vector(vector: Tensor) -> Tensor:
    """(*B, 3) -> (*B, 3, 3). The vector is axis times angle; Rodrigues' formula, exact at zero.

    ``R = I + sin(a) / a * K + (1 - cos(a)) / a^2 * K @ K`` with ``K`` the cross product matrix and
    ``K @ K = v v^T - a^2 I``.
    """
    vector = _at_least_float32(vector)
    angle_squared = vector.square().sum(dim=-1)
    # Below this the series are exact to float64's last bit. The angle is kept away from zero in the branch that is not
    # taken as well: where() would multiply its infinite gradient by zero.
    small = angle_squared < 1e-4
    angle = torch.where(small, 1.0, angle_squared).sqrt()
    series_sine = 1 - angle_squared / 6 * (1 - angle_squared / 20)
    series_cosine = 0.5 - angle_squared / 24 * (1 - angle_squared / 30)
    sine_over_angle = torch.where(small, series_sine, angle.sin() / angle)
    versine_over_square = torch.where(small, series_cosine, 2 * ((angle / 2).sin() / angle).square())

    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross_matrix = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    cross_matrix_squared = vector[..., :, None] * vector[..., None, :] - angle_squared[..., None, None] * identity
    return (
        identity
        + sine_over_angle[..., None, None] * cross_matrix
        + versine_over_square[..., None, None] * cross_matrix_squared
    )


def vector_from_matrix(matrix: Tensor) -> Tensor:
    """(*B, 3, 3) rotations -> (*B, 3) axis times angle, the angle in [0, pi]. Accurate near zero and near pi.

    Through the unit quaternion q: every row of 4 q q^T is linear in the matrix, and the one with the largest diagonal
    is never short (Bar-Itzhack's and Shepperd's idea). At an angle of exactly pi either of the two axes is right.
    """
    R = _at_least_float32(matrix)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = R.flatten(start_dim=-2).unbind(dim=-1)
    rows = (
        *(1 + r00 + r11 + r22, r21 - r12, r02 - r20, r10 - r01),
        *(r21 - r12, 1 + r00 - r11 - r22, r01 + r10, r02 + r20),
        *(r02 - r20, r01 + r10, 1 - r00 + r11 - r22, r12 + r21),
        *(r10 - r01, r02 + r20, r12 + r21, 1 - r00 - r11 + r22),
    )
    outer = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))  # 4 q q^T, q = (w, x, y, z)
    longest = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = outer.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4)).squeeze(-2)
    row = torch.where(row[..., :1] < 0, -row, row)
    quaternion = functional.normalize(row, dim=-1)
    cosine_half, axis_sine_half = quaternion[..., 0], quaternion[..., 1:]

    sine_squared = axis_sine_half.square().sum(dim=-1)
    small = sine_squared < 1e-5
    sine_half = torch.where(small, 1.0, sine_squared).sqrt()
    series = 2 + sine_squared * (1 / 3 + sine_squared * (3 / 20))  # 2 asin(s) / s
    angle_over_sine = torch.where(small, series, 2 * torch.atan2(sine_half, cosine_half) / sine_half)
    return angle_over_sine[..., None] * axis_sine_half


def geodesic_angle(first: Tensor, second: Tensor) -> Tensor:
    """(*B, 3, 3), (*B, 3, 3) -> (*B): the angle in [0, pi] of the rotation between two rotations.

    From sine and cosine together: the arc cosine of the trace alone loses half the digits near 0 and near pi and has no
    finite gradient there. The gradient at equal rotations is zero.
    """
    first, second = _at_least_float32(first), _at_least_float32(second)
    relative = (first[..., :, :, None] * second[..., :, None, :]).sum(dim=-3)  # first^T @ second
    twice_sine = torch.stack(
        (
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ),
        dim=-1,
    )
    squared = twice_sine.square().sum(dim=-1)
    positive = squared > 0
    length = torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
    return torch.atan2(length, relative.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _scaled(row: Tensor) -> tuple[Tensor, Tensor]:
    """The row with its largest component brought to 1 (so that no square over- or underflows), and whether it had one.

    The scale is a constant for the gradient: directions do not depend on it, so nothing is lost.
    """
    largest = row.detach().abs().amax(dim=-1, keepdim=True)
    return row / largest.clamp(min=_SHORTEST_ROW), ~(largest < _SHORTEST_ROW)


def _reject(vector: Tensor, unit: Tensor) -> Tensor:
    """The part of `vector` across `unit`."""
    return vector - (vector * unit).sum(dim=-1, keepdim=True) * unit
