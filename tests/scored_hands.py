"""Hands to be scored, right and wrong."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from handmesh.evaluate.official_files import HandPoints
from handmesh.hand import FINGERTIP_VERTICES, JOINTS_FROM_MANO, builtin_hand

FRAMES = 7


def hands(count: int = FRAMES, seed: int = 0) -> HandPoints:
    """The built-in hand in different shapes, turned anyhow, half a metre from the camera."""
    rng = np.random.default_rng(seed)
    hand = builtin_hand()
    shapes = hand.v_template + np.einsum("vck,nk->nvc", hand.shapedirs, rng.normal(size=(count, 10)))
    turns = Rotation.random(count, random_state=seed).as_matrix()
    vertices = shapes @ np.swapaxes(turns, 1, 2) + rng.normal((0, 0, 0.6), 0.1, (count, 1, 3))
    joints = np.concatenate([hand.J_regressor @ vertices, vertices[:, FINGERTIP_VERTICES]], axis=1)
    return HandPoints(joints[:, JOINTS_FROM_MANO], vertices)


def sane(truth: HandPoints, error: float = 0.006, seed: int = 1) -> HandPoints:
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, 0.01, (len(truth.joints), 1, 3))
    return HandPoints(*(points + shift + rng.normal(0, error / 2, points.shape) for points in truth))


def mapped(points: HandPoints, change) -> HandPoints:
    return HandPoints(change(points.joints), change(points.vertices))


def some(change):
    """The change in every third frame, as a broken program does it."""

    def partly(points: np.ndarray) -> np.ndarray:
        changed = points.copy()
        changed[::3] = change(points)[::3]
        return changed

    return partly
