"""MANO's parameters as data sets give them, brought to ours: absolute rotation vectors, zeros = flat hand.

Sets differ in whether MANO's mean pose is to be added, in how many principal components stand for the fingers, and in
whose axes the orientation is. All of that needs the user's own MANO files; without them poses are left out.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.data.sample import LabelledHand
from handmesh.errors import AssetError
from handmesh.geometry.rotation import matrix_from_vector, vector_from_matrix
from handmesh.hand import HandArrays, Handedness
from handmesh.hand.mano_file import load_mano

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

MANO_LABELS = LabelledHand("mano", None)


def mano_or_none(side: Handedness, kind: str) -> HandArrays | None:
    """One of the user's MANO hands; None, said once, where it was not added."""
    try:
        return load_mano(side)
    except AssetError:
        _say_missing(side, kind)
        return None


@cache
def _say_missing(side: Handedness, kind: str) -> None:
    logger.warning("%s: poses of %s hands are left out without MANO (handmesh mano add).", kind, side)


def absolute_pose(orientation: Any, fingers: Any, hand: HandArrays, *, relative: bool, principal: bool) -> Floats:
    """-> (16, 3) rotation vectors. `orientation` (3,), `fingers` (45,): rotation vectors of 15 joints, or with
    `principal` as many principal components of `hand`; with `relative`, to which its mean pose is added.
    """
    numbers = np.asarray(fingers, np.float64)
    if principal:
        numbers = numbers @ hand.hands_components[: len(numbers)]
    if relative:
        numbers = numbers + hand.hands_mean
    return np.concatenate([np.asarray(orientation, np.float64), numbers]).reshape(16, 3)


def turned(vectors: Floats, rotation: Floats) -> Floats:
    """(16, 3) rotation vectors of the hand seen in axes that `rotation` (3, 3) leads to."""
    orientation = vector_from_matrix(rotation @ matrix_from_vector(vectors[0]))
    return np.concatenate([orientation[None], vectors[1:]])
