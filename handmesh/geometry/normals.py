"""Which way a surface faces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def vertex_normals(vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """(V, 3), (F, 3) -> (V, 3) outward unit normals, the mean of the faces around a vertex weighted by their area.

    Zero where a vertex has no face, or faces without area. Values that are not finite spread no further than the
    faces that hold them.
    """
    first, second, third = np.ascontiguousarray(vertices.T, np.float64)[:, faces.T].swapaxes(0, 1)  # (3, F) each
    indices = faces.ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        (ax, ay, az), (bx, by, bz) = second - first, third - first
        across = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)  # np.cross, which takes twice as long
        normals = np.stack(
            [np.bincount(indices, weights=np.repeat(along, 3), minlength=len(vertices)) for along in across], axis=-1
        )
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        normals = np.divide(normals, length, out=np.zeros(normals.shape), where=length > 0)
    return normals.astype(vertices.dtype if vertices.dtype.kind == "f" else np.float64)
