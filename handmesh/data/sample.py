"""One training example, and a batch of them: a crop and the labels of the hand in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class HandSample(NamedTuple):
    """A right hand in a square crop of side R pixels.

    3D labels are in the crop's own axes: those of a virtual camera that looks at the crop's centre and is turned with
    the crop (x right, y down, z forward). So what the network is asked for depends on nothing but the pixels it sees.
    """

    image: NDArray[np.uint8]  # (R, R, 3) RGB
    keypoints: NDArray[np.float32]  # (21, 2) NDC of the crop
    pose: NDArray[np.float32]  # (16, 3, 3) parent-relative rotations; [0] in the crop's axes
    betas: NDArray[np.float32]  # (10,)


class HandBatch(NamedTuple):
    """Samples stacked along a first dimension."""

    image: Tensor  # (B, R, R, 3) uint8
    keypoints: Tensor  # (B, 21, 2)
    pose: Tensor  # (B, 16, 3, 3)
    betas: Tensor  # (B, 10)
