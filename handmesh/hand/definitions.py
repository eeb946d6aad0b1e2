"""Where MANO has the 21 joints, and where our own hand has them.

Ours lie where bones meet (docs/explain/builtin_hand.md). MANO's were learnt with its skin (Romero et al. 2017): its
knuckles lie 10 to 12 mm nearer to the fingertips, the index finger's 2.5, its wrist 11 mm, and its outer joints 0 to 7
mm nearer to the wrist. So have the labels of FreiHAND, HO-3D, DexYCB and HanCo. Who compares our joints with those
measures it: our hand, fitted to five labels of FreiHAND's, is 3.5 mm off (PA-MPJPE), and 2.0 mm with `mano_joints`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import DataError
from handmesh.hand.skeleton import JOINT_NAMES

Floats = NDArray[np.float64]

# MANO's joint lies so much of a bone of ours from our joint towards another one: differences of the two hands' bones,
# added up from the fingertips, which both have on the skin. MANO's bones are those of its mean shape, whose joints many
# projects publish, and for the outermost ones FreiHAND's labels, brought to the same size.
_TOWARDS: Final = (
    ("wrist", "middle_mcp", 0.12),
    *(("thumb_cmc", "thumb_mcp", 0.25), ("thumb_mcp", "thumb_cmc", 0.06), ("thumb_ip", "thumb_mcp", 0.23)),
    *(("index_mcp", "index_pip", 0.06), ("index_pip", "index_mcp", 0.11), ("index_dip", "index_pip", 0.20)),
    *(("middle_mcp", "middle_pip", 0.26), ("middle_pip", "middle_mcp", 0.02), ("middle_dip", "middle_pip", 0.16)),
    *(("ring_mcp", "ring_pip", 0.25), ("ring_pip", "ring_mcp", 0.06), ("ring_dip", "ring_pip", 0.13)),
    *(("pinky_mcp", "pinky_pip", 0.33), ("pinky_pip", "pinky_mcp", 0.02)),
)
_NEGLIGIBLE: Final = 0.01  # of a joint's weight in another's place


def mano_joints(joints: ArrayLike) -> Floats:
    """Our own hand's joints, in space or in a picture -> where MANO has them: (*B, 21, D), in the order of both."""
    return _MANO_FROM_OURS @ _checked(joints)


def joints_from_mano(joints: ArrayLike) -> Floats:
    """The reverse of `mano_joints`. What needs a joint that is not known (not-a-number) is not-a-number, too."""
    points = _checked(joints)
    known = np.asarray(np.isfinite(points).all(axis=-1), bool)
    moved = _OURS_FROM_MANO @ np.where(known[..., None], points, 0.0)
    lacks = ((np.abs(_OURS_FROM_MANO) > _NEGLIGIBLE) & ~known[..., None, :]).any(axis=-1)
    return np.where(lacks[..., None], np.nan, moved)


def _checked(joints: ArrayLike) -> Floats:
    points = np.asarray(joints, np.float64)
    if points.ndim < 2 or points.shape[-2] != len(JOINT_NAMES):
        raise DataError(f"joints are {points.shape}, wanted (*B, {len(JOINT_NAMES)}, D).")
    return points


def _matrix() -> NDArray[Any]:
    moved = np.eye(len(JOINT_NAMES))
    for joint, other, share in _TOWARDS:
        row = JOINT_NAMES.index(joint)
        moved[row, row], moved[row, JOINT_NAMES.index(other)] = 1 - share, share
    return moved


_MANO_FROM_OURS: Final = _matrix()
_OURS_FROM_MANO: Final = np.linalg.inv(_MANO_FROM_OURS)
