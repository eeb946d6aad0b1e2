"""A network's answer, brought to where its keypoint head sees the joints.

The single layers after the pool say what the whole hand is like; heatmaps say where a finger is, but nothing of its
depth. So the answer is the start of a fit (`handmesh.hand.fit`) to the heatmaps' keypoints, each counting as much as
its heatmap is sure of it, that stays near: rotations may go 0.2 rad (standard deviation), and two steps are enough.

Whether a joint was found is said by three together: how much of its heatmap's mass lies around the peak, how far from
there the fitted hand has it, and the layer that learnt to say so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.geometry.rotation import nearest_rotation
from handmesh.hand import HandOutput
from handmesh.hand.arrays import HandArrays
from handmesh.hand.fit import FitSettings, FitStart, fit_hand
from handmesh.system.blas import one_blas_thread

_FIT = FitSettings(orientation_std=0.2, rotation_std=0.2, iterations=2)
_MIN_MASS = 0.02
# Log-odds that a refined joint is within `losses.JOINT_FOUND_ERROR` of where it is: so many times the log-odds of its
# mass, the logarithm of its distance from the peak (over the hand's size, and a hundredth more), the log-odds of its
# confidence, and so much more. Fitted to photographs never learnt from; either half of them gives nearly the same (the
# model's card).
_JOINT_SCORE = (0.42, -0.97, 0.29, -3.93)
_UNSAID = 0.79  # the confidence of a network that says none: the mean of one that does
_MIN_EXTENT = 0.02  # NDC; of heatmaps that see a smaller hand nothing is to be learnt


@one_blas_thread()
def refined(output: HandOutput, hand: HandArrays) -> HandOutput:
    """Arrays of B right hands in their crops -> the same, fitted, and how likely each joint was found.

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
    size = np.ptp(fit.keypoints, axis=1).max(axis=-1)[:, None]
    distance = np.linalg.norm(fit.keypoints - output.seen[..., :2], axis=-1) / size
    said = np.where(output.joint_confidence < 1, output.joint_confidence, _UNSAID)
    of_mass, of_distance, of_said, more = _JOINT_SCORE
    log_odds = of_mass * _log_odds(mass) + of_distance * np.log(distance + 0.01) + of_said * _log_odds(said) + more
    fitted = output._replace(
        camera=fit.camera,
        pose=fit.pose,
        betas=fit.betas,
        vertices=fit.vertices(hand),
        joints=fit.joints,
        joint_confidence=1 / (1 + np.exp(-log_odds)),
    )
    return HandOutput(*(values.astype(np.float32) for values in fitted))


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    likely = np.clip(probability, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(likely / (1 - likely)))
