"""The rotations that a network learns: six numbers each, as Zhou et al. (CVPR 2019, arXiv:1812.07035) have them.

A matrix acts on column vectors, ``target = R @ source``. The layout is PyTorch3D's: the six numbers are the first two
**rows** of the matrix, one after the other. (Zhou's own code, HaMeR and manopth store the first two columns; both
layouts write the identity as 1 0 0 0 1 0, so a mix-up inverts every rotation unseen.) Rotation vectors and everything
that needs no gradient: ``handmesh.geometry.rotation``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A row of six numbers whose largest component is below this carries no direction. It also bounds the gradient, which
# grows as 1 / length.
_SHORTEST_ROW = 1e-4
# Two rows whose angle has a sine below this (within a factor of sqrt 3) are taken as parallel.
_MIN_SINE = 1e-3


def matrix_from_6d(sixd: Tensor) -> Tensor:
    """(*B, 6) -> (*B, 3, 3): Gram-Schmidt on the first two rows, the third is their cross product.

    Without data-dependent control flow (it compiles as one graph and exports) and in float32 or better: half-precision
    input is widened first, and there is no matrix product for autocast to narrow.

    Every finite input gives a proper rotation. A row too short to have a direction is replaced by an axis, and so is a
    second row parallel to the first; the gradient stays below about 1e7 in the worst corner, and is about
    1 / length of the rows elsewhere. Not-a-number goes through, so that a broken network is noticed.
    """
    sixd = sixd.to(torch.promote_types(sixd.dtype, torch.float32))
    axis_x, axis_y, _ = torch.eye(3, dtype=sixd.dtype, device=sixd.device).unbind(dim=0)

    first, has_direction = _scaled(sixd[..., :3])
    x = functional.normalize(torch.where(has_direction, first, axis_x), dim=-1)

    second, has_direction = _scaled(sixd[..., 3:])
    independent = torch.linalg.vector_norm(_reject(second, x).detach(), dim=-1, keepdim=True) > _MIN_SINE
    other_axis = torch.where(x[..., :1].abs() < 0.9, axis_x, axis_y)
    second = torch.where(torch.logical_and(has_direction, independent), second, other_axis)
    # The part of the second row across x, through a cross product: that is orthogonal to x to the last bit even where
    # the rows are nearly parallel. Always name the dimension: torch.cross without one picks the batch when it is 3.
    z = functional.normalize(torch.linalg.cross(x, _reject(second, x), dim=-1), dim=-1)
    y = torch.linalg.cross(z, x, dim=-1)
    return torch.stack((x, y, z), dim=-2)


def _scaled(row: Tensor) -> tuple[Tensor, Tensor]:
    """The row with its largest component brought to 1 (so that no square over- or underflows), and whether it had one.

    The scale is a constant for the gradient: directions do not depend on it, so nothing is lost.
    """
    largest = row.detach().abs().amax(dim=-1, keepdim=True)
    return row / largest.clamp(min=_SHORTEST_ROW), ~(largest < _SHORTEST_ROW)


def _reject(vector: Tensor, unit: Tensor) -> Tensor:
    """The part of `vector` across `unit`."""
    return vector - (vector * unit).sum(dim=-1, keepdim=True) * unit
