"""Rotation vectors (axis times angle, radians) and 3x3 matrices that act on column vectors, ``target = R @ source``.

Any batch shape, float64, without torch; what a network learns is in ``handmesh.model.rotation``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def matrix_from_vector(vector: ArrayLike) -> NDArray[np.float64]:
    """(*B, 3) rotation vectors -> (*B, 3, 3) rotations: Rodrigues' formula, exact at zero."""
    v = np.asarray(vector, np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(v, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*v.shape, 3)
    # np.sinc(t / pi) = sin(t) / t, exact at zero; 1 - cos(t) = 2 sin(t / 2)^2.
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (cross @ cross)


def vector_from_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    """(*B, 3, 3) rotations -> (*B, 3) rotation vectors, angles in [0, pi]; at pi either axis is right.

    Slightly wrong input is taken as the nearest rotation.
    """
    from scipy.spatial.transform import Rotation  # on first use: it takes a tenth of a second to import

    R = np.asarray(matrix, np.float64)
    return Rotation.from_matrix(R.reshape(-1, 3, 3)).as_rotvec().reshape(R.shape[:-1])


def nearest_rotation(matrix: ArrayLike) -> NDArray[np.float64]:
    """(*B, 3, 3) of rotations that rounding has bent -> the rotations."""
    left, _, right = np.linalg.svd(np.asarray(matrix, np.float64))
    return np.asarray(left @ right)
