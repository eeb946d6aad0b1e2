"""A network's answer, brought to where its keypoint head sees the joints.

The single layers after the pool say what the whole hand is like; heatmaps say where a finger is, but nothing of its
depth. So the answer is the start of a fit (`handmesh.hand.fit`) to the heatmaps' keypoints, each counting as much as
its heatmap is sure of it, that stays near: rotations may go 0.2 rad (standard deviation), and two steps are enough.

How sure a heatmap is also says best whether its joint was found: how much of its mass lies around its peak.
"""

from __future__ import annotations

import numpy as np

from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.geometry.rotation import nearest_rotation
from handmesh.hand import HandOutput
from handmesh.hand.arrays import HandArrays
from handmesh.hand.fit import FitSettings, FitStart, fit_hand
from handmesh.system.blas import one_blas_thread

_FIT = FitSettings(orientation_std=0.2, rotation_std=0.2, iterations=2)
_MIN_MASS = 0.02
# Log-odds that a refined joint is within `losses.JOINT_FOUND_ERROR` of where it is: this many times its mass's, and so
# much more. Fitted to photographs never learnt from; either half of them gives nearly the same (the model's card).
_JOINT_SCORE = (1.0, -1.6)
_MIN_EXTENT = 0.02  # NDC; of heatmaps that see a smaller hand nothing is to be learnt


@one_blas_thread()
def refined(output: HandOutput, hand: HandArrays) -> HandOutput:
    """Arrays of B right hands in their crops -> the same, fitted, and each joint's confidence that of its heatmap.

    `output` is of a network with a keypoint head.
    """
    output = HandOutput(*(np.asarray(values, np.float64) for values in output))
    points, mass = output.seen[..., :2], np.clip(output.seen[..., 2], _MIN_MASS, 0.999)
    drawn = WeakPerspectiveCamera.from_vector(output.camera).project(output.joints)
    points = np.where((np.ptp(points, axis=1).max(axis=-1) > _MIN_EXTENT)[:, None, None], points, drawn)
    fit = fit_hand(
        points,
        mass**2,
        start=FitStart(nearest_rotation(output.pose), output.betas),
        hand=hand,
        settings=_FIT,
    )
    slope, shift = _JOINT_SCORE
    fitted = output._replace(
        camera=fit.camera,
        pose=fit.pose,
        betas=fit.betas,
        vertices=fit.vertices(hand),
        joints=fit.joints,
        joint_confidence=1 / (1 + np.exp(-shift) * ((1 - mass) / mass) ** slope),
    )
    return HandOutput(*(values.astype(np.float32) for values in fitted))
