"""Our hand fitted to keypoints: pose, shape and camera of any hand model from 2D points, and 3D ones if there are any.

    fit = fit_hand(keypoints)                               # (21, 2), the points alone
    fit = fit_hand(keypoints, start=FitStart(pose, betas))  # near a network's answer
    fit.pose, fit.betas, fit.camera, fit.joints, fit.error

What is minimised, for each hand on its own: distances in the picture, with a loss that forgives single points that are
far off; how far the rotations and the shape go from where they began; joints bent beyond what hands can do
(`anatomy.JOINT_LIMITS`); and distances of 3D joints. All of it is a sum of squares with weights, so it takes a dozen
steps of Gauss and Newton's, damped as Levenberg and Marquardt do. The 21 joints are regressed from the posed mesh, but
no mesh is posed: regression, skinning and correctives are linear in each other, and what 778 vertices would be summed
to is one small tensor (`_JointModel`). Numpy alone; about 8 ms a hand on one core (AMD EPYC), 60 from nothing.

The picture's frame is whatever the keypoints are in: pixels, or NDC of a crop. The camera is a weak-perspective one in
that frame, ``keypoint = scale * (xy_hand + translation)`` (see `handmesh.geometry.camera`), so x goes right and y down.
A left hand is fitted with a left hand's arrays (``builtin_hand(Handedness.LEFT)``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.errors import DataError
from handmesh.geometry.rotation import matrix_from_vector, nearest_rotation
from handmesh.hand.anatomy import JOINT_LIMITS, flexion_axes
from handmesh.hand.arrays import (
    BETA_COUNT,
    JOINT_COUNT,
    MANO_JOINT_COUNT,
    VERTEX_COUNT,
    HandArrays,
    posed_tree,
)
from handmesh.hand.models import hand_arrays
from handmesh.hand.skeleton import FINGERTIP_VERTICES, JOINTS_FROM_MANO, MANO_LEVELS
from handmesh.system.blas import one_blas_thread

Floats = NDArray[np.float64]

MIN_KEYPOINTS = 4  # with fewer not even orientation and camera are determined
_FINGERS = MANO_JOINT_COUNT - 1  # joints that bend: all but the wrist
_ANGLES = 3 * MANO_JOINT_COUNT
_PARAMETERS = _ANGLES + BETA_COUNT + 3  # ... and log scale and the origin's place in the picture
_CHUNK = 128  # hands computed at a time: their matrices stay in a processor's cache
_VIEWS = 96  # directions that a hand of unknown orientation is looked at from
_POSES = 48  # example poses of the hand model that a fit from nothing may begin with
_BEGINNINGS = 6  # of them all, those that are refined
_DAMPING = (1e-3, 1e-7, 1e6)  # the first one, the least and the most


@dataclass(frozen=True)
class FitSettings:
    """How far what may go. Found on photographs with 3D labels, from a network's answers: between 0.2 and 0.35 rad and
    between 0.03 and 0.05 of the box all within 0.2 mm.
    """

    keypoint_std: float = 0.05  # of the longer side of the keypoints' box
    orientation_std: float = 0.35  # radians, of the whole hand's rotation from where it began
    rotation_std: float = 0.35  # radians, of each joint's
    betas_std: float = 0.5
    limit_std: float = 0.1  # radians beyond a joint's limit
    joint_std: float = 0.005  # metres, of 3D joints
    iterations: int = 16


class FitStart(NamedTuple):
    """Where a fit begins, and stays near to."""

    pose: Any  # (*B, 16, 3, 3) parent-relative rotations; [0] in the picture's axes
    betas: Any  # (*B, 10)


class HandFit(NamedTuple):
    """Fitted hands. Joints are in the hand frame of `handmesh.geometry.camera`."""

    pose: Floats  # (*B, 16, 3, 3)
    betas: Floats  # (*B, 10)
    camera: Floats  # (*B, 3) scale, t_x, t_y
    joints: Floats  # (*B, 21, 3) m
    keypoints: Floats  # (*B, 21, 2) where the joints are seen
    distances: Floats  # (*B, 21) from the given keypoints, over the longer side of their box; not-a-number if not given
    error: Floats  # (*B,) mean of the distances
    cost: Floats  # (*B,) what was minimised, over the number of keypoints: lower is likelier

    def vertices(self, hand: HandArrays | str | None = None) -> Floats:
        """(*B, 778, 3) m, of the hand that was fitted: `hand` as of `fit_hand`."""
        return hand_arrays(hand).shaped(self.betas).posed(self.pose).vertices


@one_blas_thread()
def fit_hand(
    keypoints: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    start: FitStart | None = None,
    joints: ArrayLike | None = None,
    hand: HandArrays | str | None = None,
    settings: FitSettings | None = None,
) -> HandFit:
    """(*B, 21, 2) keypoints -> the hands that are seen there. Not-a-number, or weight 0, is a keypoint not known.

    `weights`: (21,) or (*B, 21), from 0 on; those of points that somebody else defines otherwise should be low.
    `start`: where to begin; None tries the hand model's example poses from all sides, with the orientation free.
    `joints`: (*B, 21, 3) metres in the picture's axes, any origin, as far as known. `hand`: a hand model, or the
    name of one, whose right hand is meant; None is the built-in right hand.

    Raises DataError for arrays of other shapes, and for a hand with fewer than four known keypoints; what `load_hand`
    raises, and ConfigError for what is no hand model.
    """
    settings = FitSettings() if settings is None else settings
    model = _joint_model(hand_arrays(hand))
    points = _array(keypoints, "keypoints", (JOINT_COUNT, 2))
    batch = points.shape[:-2]
    known = np.isfinite(points).all(axis=-1)
    given = np.ones(JOINT_COUNT) if weights is None else _array(weights, "weights", (JOINT_COUNT,))
    if not (np.isfinite(given) & (given >= 0)).all():
        raise DataError("'weights' holds numbers that are negative or not finite: wanted 0 for a joint not to be used.")
    try:
        weight = np.where(known, np.broadcast_to(given, known.shape), 0.0)
    except ValueError:
        raise DataError(f"'weights' has the shape {given.shape}, the keypoints {points.shape}.") from None
    spatial = None if joints is None else _same_batch(_array(joints, "joints", (JOINT_COUNT, 3)), "joints", batch)
    beginning = None if start is None else _checked_start(start, batch)

    count = int(np.prod(batch, dtype=np.int64))
    points, weight = points.reshape(count, JOINT_COUNT, 2), weight.reshape(count, JOINT_COUNT)
    used = (weight > 0).sum(axis=-1)
    if (few := used < MIN_KEYPOINTS).any():
        raise DataError(
            f"Hand {int(few.argmax())} of {count} has {int(used[few][0])} known keypoints: a fit needs "
            f"{MIN_KEYPOINTS} or more."
        )
    center, side = _boxes(points, weight > 0)
    if not (side > 0).all():
        raise DataError(f"All keypoints of hand {int((side <= 0).argmax())} are in one place: nothing can be fitted.")
    spatial = None if spatial is None else spatial.reshape(count, JOINT_COUNT, 3)
    parts = [_State.none()]
    for first in range(0, count, _CHUNK):
        chosen = slice(first, first + _CHUNK)
        # Over the box: a fit is the same for any size and place of the photograph.
        normal = (np.where(weight[chosen, :, None] > 0, points[chosen], 0) - center[chosen, None]) / side[
            chosen, None, None
        ]
        problem = _Problem(
            model, normal, weight[chosen], None if spatial is None else spatial[chosen], settings, beginning is not None
        )
        if beginning is None:
            parts.append(_fit_from_nothing(problem))
        else:
            pose, betas = beginning
            parts.append(problem.solve(pose[chosen], betas[chosen]))
    state = _State(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    scale = state.scale * side
    translation = (state.origin * side[:, None] + center) / scale[:, None]
    seen = scale[:, None, None] * (state.joints[..., :2] + translation[:, None])
    distances = np.linalg.norm(seen - points, axis=-1) / side[:, None]
    distances[~(weight > 0)] = np.nan
    fitted = HandFit(
        pose=state.pose,
        betas=state.betas,
        camera=np.concatenate([scale[:, None], translation], axis=-1),
        joints=state.joints,
        keypoints=seen,
        distances=distances,
        error=np.nanmean(distances, axis=-1) if count else np.empty(0),
        cost=state.cost / np.maximum(used, 1),
    )
    return HandFit(*(value.reshape((*batch, *value.shape[1:])) for value in fitted))


# ---------------------------------------------------------------------------------------------------- what is checked


def _array(value: ArrayLike, name: str, shape: tuple[int, ...]) -> Floats:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name!r} is no array of numbers.") from None
    if array.shape[-len(shape) :] != shape:
        raise DataError(f"{name!r} has the shape {array.shape}, wanted (*B, {', '.join(map(str, shape))}).")
    return array


def _same_batch(array: Floats, name: str, batch: tuple[int, ...]) -> Floats:
    found = array.shape[: len(batch)]
    if found != batch or array.ndim < len(batch):
        raise DataError(f"{name!r} has the shape {array.shape}, the keypoints are those of {batch} hands.")
    return array


def _checked_start(start: FitStart, batch: tuple[int, ...]) -> tuple[Floats, Floats]:
    pose = _same_batch(_array(start.pose, "start.pose", (MANO_JOINT_COUNT, 3, 3)), "start.pose", batch)
    betas = _same_batch(_array(start.betas, "start.betas", (BETA_COUNT,)), "start.betas", batch)
    off = np.abs(np.swapaxes(pose, -1, -2) @ pose - np.eye(3)).max(initial=0.0)
    if not off < 1e-3 or not np.isfinite(betas).all():
        raise DataError(
            f"'start' holds matrices that are no rotations (off by {off:.2g}), or betas that are no numbers."
        )
    return pose.reshape(-1, MANO_JOINT_COUNT, 3, 3), betas.reshape(-1, BETA_COUNT)


def _boxes(points: Floats, used: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(B, 21, 2) -> (B, 2) centres and (B,) longer sides of the boxes around the used points."""
    low = np.where(used[..., None], points, np.inf).min(axis=1)
    high = np.where(used[..., None], points, -np.inf).max(axis=1)
    return (low + high) / 2, (high - low).max(axis=-1)


# ---------------------------------------------------------------------------------------------------- the joints


class _Posed(NamedTuple):
    """What the joints' derivatives are made of."""

    joints: Floats  # (B, 21, 3)
    orientations: Floats  # (B, 16, 3, 3) global rotations
    places: Floats  # (B, 16, 3) of the kinematic tree's joints
    parts: Floats  # (B, 16, 3, 21) what each bone contributes to each joint


class _JointModel:
    """The 21 joints of a posed mesh, in FreiHAND's order, exactly, and their derivatives, without the mesh.

    Joint j is the sum over vertices v and bones k of ``regressor[j, v] weights[v, k] (R_k rest_v + t_k)``, where rest_v
    is linear in betas and pose feature. Summed over v once: ``R_k moments[k, :, j, :] @ feature + shares[k, j] t_k``.
    """

    def __init__(self, hand: HandArrays) -> None:
        tips = np.eye(VERTEX_COUNT)[list(FINGERTIP_VERTICES)]
        regressor = np.concatenate([hand.J_regressor, tips])[list(JOINTS_FROM_MANO)]
        basis = np.concatenate([hand.v_template[..., None], hand.shapedirs, hand.posedirs], axis=-1)  # (778, 3, 146)
        moments = np.einsum("jv,vk,vcf->kcjf", regressor, hand.weights, basis, optimize=True)
        self.features = basis.shape[-1]
        self.moments = moments.reshape(3 * MANO_JOINT_COUNT, JOINT_COUNT, self.features)
        self.by_feature = np.ascontiguousarray(self.moments.reshape(-1, self.features).T)
        self.by_bone = self.moments[..., 1:].reshape(3 * MANO_JOINT_COUNT, -1)
        self.shares = (regressor @ hand.weights).T  # (16, 21)
        self.rest = hand.J_regressor @ hand.v_template
        self.rest_basis = np.einsum("jv,vcb->jcb", hand.J_regressor, hand.shapedirs)  # (16, 3, 10)
        below = np.eye(MANO_JOINT_COUNT)  # [p, k]: does bone k turn with joint p?
        for joint in range(MANO_JOINT_COUNT - 1, 0, -1):
            below[hand.parents[joint]] += below[joint]
        self.below = below
        self.axes = flexion_axes(hand)  # (16, 3, 3) rows flexion, abduction, twist
        self.limits = JOINT_LIMITS
        self.hand = hand

    def pose(self, rotations: Floats, betas: Floats) -> _Posed:
        """(B, 16, 3, 3), (B, 10)."""
        count = len(rotations)
        feature = np.concatenate(
            [np.ones((count, 1)), betas, (rotations[:, 1:] - np.eye(3)).reshape(count, -1)], axis=-1
        )
        local = (feature @ self.by_feature).reshape(count, MANO_JOINT_COUNT, 3, JOINT_COUNT)
        rest = self.rest + (self.rest_basis @ betas[:, None, :, None])[..., 0]
        orientations, places = posed_tree(rotations, rest)
        offsets = places - (orientations @ rest[..., None])[..., 0]
        parts = orientations @ local + offsets[..., None] * self.shares[:, None]
        return _Posed(np.swapaxes(parts.sum(axis=1), 1, 2), orientations, places, parts)

    def derivatives(self, rotations: Floats, posed: _Posed) -> Floats:
        """(B, 3, 21, 58): by a small turn of each joint about its own axes, ``R @ exp(e)``, and by betas."""
        count = len(rotations)
        orientations = posed.orientations
        # A joint's turn carries all that hangs on it about its place.
        arms = (self.below @ posed.parts.reshape(count, MANO_JOINT_COUNT, -1)).reshape(posed.parts.shape)
        arms = arms - posed.places[..., None] * (self.below @ self.shares)[:, None]  # (B, 16, 3, 21)
        axis = orientations[..., :, None, :]  # (B, 16, 3, 1, 3): columns are the turn's axes
        arm = arms[..., None]  # (B, 16, 3, 21, 1)
        carried = np.stack(
            [
                axis[:, :, (c + 1) % 3] * arm[:, :, (c + 2) % 3] - axis[:, :, (c + 2) % 3] * arm[:, :, (c + 1) % 3]
                for c in range(3)
            ],
            axis=1,
        )  # (B, 3, 16, 21, 3)
        # And it changes the correctives, and betas the mesh at rest.
        by_bone = np.ascontiguousarray(orientations.transpose(0, 2, 1, 3)).reshape(count * 3, 3 * MANO_JOINT_COUNT)
        moved = (by_bone @ self.by_bone).reshape(count, 3, JOINT_COUNT, self.features - 1)
        changed = rotations[:, 1:, None] @ _GENERATORS  # (B, 15, 3 angles, 3, 3)
        correctives = moved[..., BETA_COUNT:].reshape(count, 3 * JOINT_COUNT, _FINGERS, 9).transpose(0, 2, 1, 3)
        correctives = correctives @ np.swapaxes(changed.reshape(count, _FINGERS, 3, 9), -1, -2)  # (B, 15, 63, 3)
        carried[:, :, 1:] += correctives.reshape(count, _FINGERS, 3, JOINT_COUNT, 3).transpose(0, 2, 1, 3, 4)
        by_angles = carried.transpose(0, 1, 3, 2, 4).reshape(count, 3, JOINT_COUNT, _ANGLES)

        places = np.empty((count, MANO_JOINT_COUNT, 3, BETA_COUNT))
        places[:, 0] = self.rest_basis[0]
        for joints, parents in MANO_LEVELS:
            bones = self.rest_basis[joints] - self.rest_basis[parents]
            places[:, joints] = places[:, parents] + orientations[:, parents] @ bones
        offsets = places - orientations @ self.rest_basis
        by_betas = moved[..., :BETA_COUNT] + np.einsum("kj,bkcd->bcjd", self.shares, offsets)
        return np.concatenate([by_angles, by_betas], axis=-1)


def _generators() -> Floats:
    """(3, 3, 3): the cross product matrices of the three axes."""
    generators = np.zeros((3, 3, 3))
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        generators[a, c, b], generators[a, b, c] = 1, -1
    return generators


_GENERATORS = _generators()


# ---------------------------------------------------------------------------------------------------- the fit


class _State(NamedTuple):
    pose: Floats  # (B, 16, 3, 3)
    betas: Floats  # (B, 10)
    scale: Floats  # (B,) of the normalised picture
    origin: Floats  # (B, 2) where the hand's origin is seen
    joints: Floats  # (B, 21, 3)
    cost: Floats  # (B,)

    @classmethod
    def none(cls) -> _State:
        """Of no hands."""
        shapes = ((MANO_JOINT_COUNT, 3, 3), (BETA_COUNT,), (), (2,), (JOINT_COUNT, 3), ())
        return cls(*(np.empty((0, *shape)) for shape in shapes))


@dataclass(frozen=True)
class _Problem:
    """Some hands' keypoints, over their boxes."""

    model: _JointModel
    points: Floats  # (B, 21, 2), 0 where not known
    weight: Floats  # (B, 21), 0 where not known
    spatial: Floats | None  # (B, 21, 3)
    settings: FitSettings
    oriented: bool  # does the start know the orientation?

    def take(self, chosen: NDArray[np.int64]) -> _Problem:
        spatial = None if self.spatial is None else self.spatial[chosen]
        return _Problem(self.model, self.points[chosen], self.weight[chosen], spatial, self.settings, self.oriented)

    def solve(self, pose: Floats, betas: Floats) -> _State:
        """Damped Gauss-Newton steps, each hand with a damping of its own; a step that does not help is not taken."""
        first_pose, first_betas = pose, betas
        posed = self.model.pose(pose, betas)
        scale, origin = self._camera(posed.joints)
        cost = self._cost(pose, betas, scale, origin, posed.joints, first_pose, first_betas)
        damping, least, most = _DAMPING
        mu = np.full(len(pose), damping)
        for _ in range(self.settings.iterations):
            matrix, gradient = self._normal_equations(pose, betas, scale, origin, posed, first_pose, first_betas)
            diagonal = np.einsum("bii->bi", matrix)
            diagonal += mu[:, None] * diagonal
            step = -np.linalg.solve(matrix, gradient[..., None])[..., 0]
            rotations = matrix_from_vector(step[:, :_ANGLES].reshape(-1, MANO_JOINT_COUNT, 3))
            new_pose, new_betas = pose @ rotations, betas + step[:, _ANGLES : _ANGLES + BETA_COUNT]
            new_scale, new_origin = scale * np.exp(np.clip(step[:, -3], -1, 1)), origin + step[:, -2:]
            new_posed = self.model.pose(new_pose, new_betas)
            new_cost = self._cost(new_pose, new_betas, new_scale, new_origin, new_posed.joints, first_pose, first_betas)
            better = new_cost < cost
            mu = np.clip(np.where(better, mu / 5, mu * 8), least, most)
            pose, betas, scale, origin, cost = (
                np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in (
                    (new_pose, pose),
                    (new_betas, betas),
                    (new_scale, scale),
                    (new_origin, origin),
                    (new_cost, cost),
                )
            )
            posed = _Posed(
                *(
                    np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in zip(new_posed, posed, strict=True)
                )
            )
        return _State(nearest_rotation(pose), betas, scale, origin, posed.joints, cost)

    def _camera(self, joints: Floats) -> tuple[Floats, Floats]:
        """The scale and shift that bring the joints nearest to the points."""
        weight = self.weight[..., None] / self.weight.sum(axis=-1)[:, None, None]
        flat, middle = joints[..., :2], (weight * joints[..., :2]).sum(axis=1)
        wanted = (weight * self.points).sum(axis=1)
        own, other = flat - middle[:, None], self.points - wanted[:, None]
        scale = (weight * own * other).sum(axis=(1, 2)) / np.maximum((weight * own * own).sum(axis=(1, 2)), 1e-12)
        # Turned wholly away, none brings them nearer: then as large as they should be.
        size = np.sqrt((weight * other**2).sum(axis=(1, 2)) / np.maximum((weight * own**2).sum(axis=(1, 2)), 1e-12))
        scale = np.maximum(scale, 0.3 * size)
        return scale, wanted - scale[:, None] * middle

    def _residuals(self, scale: Floats, origin: Floats, joints: Floats) -> tuple[Floats, Floats, Floats | None]:
        """Of the keypoints, in standard deviations (B, 21, 2); their squares' sums (B, 21); of 3D joints (B, 21, 3)."""
        drawn = scale[:, None, None] * joints[..., :2] + origin[:, None]
        residual = (drawn - self.points) / self.settings.keypoint_std
        if self.spatial is None:
            return residual, (residual**2).sum(axis=-1), None
        return residual, (residual**2).sum(axis=-1), self._centred(joints - self._spatial) / self.settings.joint_std

    @property
    def _spatial(self) -> Floats:
        assert self.spatial is not None
        return np.where(np.isfinite(self.spatial), self.spatial, 0.0)

    def _centred(self, values: Floats) -> Floats:
        """(B, 21, ...) less the mean over the joints known in 3D, and 0 elsewhere: their origin does not matter."""
        assert self.spatial is not None
        known = np.isfinite(self.spatial).all(axis=-1).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        mean = (values * known).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
        return np.asarray((values - mean) * known)

    def _beyond(self, pose: Floats) -> tuple[Floats, Floats]:
        """(B, 15, 3) how far angles are beyond their limits, signed, and (B, 15, 3) the joints' rotation vectors.

        Angles are the parts of the rotation vector along flexion, abduction and twist.
        """
        vector = _vector_from_rotation(pose[:, 1:])
        angles = (self.model.axes[1:] @ vector[..., None])[..., 0]
        low, high = self.model.limits[1:, :, 0], self.model.limits[1:, :, 1]
        return angles - np.clip(angles, low, high), vector

    def _stds(self) -> Floats:
        settings = self.settings
        orientation = settings.orientation_std if self.oriented else 1e3
        return np.concatenate([np.full(3, orientation), np.full(_ANGLES - 3, settings.rotation_std)])

    def _cost(
        self,
        pose: Floats,
        betas: Floats,
        scale: Floats,
        origin: Floats,
        joints: Floats,
        pose_0: Floats,
        betas_0: Floats,
    ) -> Floats:
        _, squares, spatial = self._residuals(scale, origin, joints)
        cost = (self.weight * 4 * np.log1p(squares / 4)).sum(axis=-1)
        turned = _vector_from_rotation(np.swapaxes(pose_0, -1, -2) @ pose).reshape(len(pose), _ANGLES)
        cost = cost + ((turned / self._stds()) ** 2).sum(axis=-1)
        cost = cost + (((betas - betas_0) / self.settings.betas_std) ** 2).sum(axis=-1)
        beyond, _ = self._beyond(pose)
        cost = cost + ((beyond / self.settings.limit_std) ** 2).sum(axis=(1, 2))
        return np.asarray(cost if spatial is None else cost + (spatial**2).sum(axis=(1, 2)))

    def _normal_equations(
        self, pose: Floats, betas: Floats, scale: Floats, origin: Floats, posed: _Posed, pose_0: Floats, betas_0: Floats
    ) -> tuple[Floats, Floats]:
        """(B, 61, 61) and (B, 61), half of the cost's second and first derivatives."""
        count, inner = len(pose), _ANGLES + BETA_COUNT
        by_pose = self.model.derivatives(pose, posed)  # (B, 3, 21, 58)
        residual, squares, spatial = self._residuals(scale, origin, posed.joints)
        drawn = np.zeros((count, 2, JOINT_COUNT, _PARAMETERS))
        drawn[..., :inner] = scale[:, None, None, None] * by_pose[:, :2]
        drawn[..., inner] = scale[:, None, None] * np.swapaxes(posed.joints[..., :2], 1, 2)
        drawn[:, 0, :, inner + 1] = drawn[:, 1, :, inner + 2] = 1
        root = np.sqrt(self.weight / (1 + squares / 4))[:, None]  # the forgiving loss, as weights of squares
        jacobian = (drawn * (root / self.settings.keypoint_std)[..., None]).reshape(count, -1, _PARAMETERS)
        wanted = (np.swapaxes(residual, 1, 2) * root).reshape(count, -1)
        matrix = np.swapaxes(jacobian, -1, -2) @ jacobian
        gradient = (np.swapaxes(jacobian, -1, -2) @ wanted[..., None])[..., 0]

        if spatial is not None:
            in_space = self._centred(by_pose.transpose(0, 2, 1, 3)) / self.settings.joint_std
            in_space = in_space.reshape(count, -1, inner)
            matrix[:, :inner, :inner] += np.swapaxes(in_space, -1, -2) @ in_space
            gradient[:, :inner] += (np.swapaxes(in_space, -1, -2) @ spatial.reshape(count, -1, 1))[..., 0]

        # The turn from where it began has its own direction for an axis, so its derivative keeps it as it is.
        turned = _vector_from_rotation(np.swapaxes(pose_0, -1, -2) @ pose).reshape(count, _ANGLES)
        diagonal = np.einsum("bii->bi", matrix)
        precision = self._stds() ** -2
        diagonal[:, :_ANGLES] += precision
        diagonal[:, _ANGLES:inner] += self.settings.betas_std**-2
        gradient[:, :_ANGLES] += turned * precision
        gradient[:, _ANGLES:inner] += (betas - betas_0) * self.settings.betas_std**-2

        beyond, vector = self._beyond(pose)
        slopes = self.model.axes[1:] @ _inverse_right_jacobian(vector)
        slopes = np.where(beyond[..., None] != 0, slopes, 0) / self.settings.limit_std
        by_slope = np.swapaxes(slopes, -1, -2)
        own = np.arange(3, _ANGLES).reshape(_FINGERS, 3)  # each joint's own angles
        matrix[:, own[:, :, None], own[:, None]] += by_slope @ slopes
        gradient[:, 3:_ANGLES] += (by_slope @ (beyond / self.settings.limit_std)[..., None]).reshape(count, -1)
        return matrix, gradient


@lru_cache(maxsize=4)
def _joint_model(hand: HandArrays) -> _JointModel:
    return _JointModel(hand)


def _fit_from_nothing(problem: _Problem) -> _State:
    """The best of several fits, begun with the example poses and views that look most like the points."""
    model, count = problem.model, len(problem.points)
    hand = model.hand
    spread = np.linspace(0, len(hand.hands_coeffs) - 1, min(_POSES, len(hand.hands_coeffs))).round().astype(int)
    vectors = hand.hands_mean + hand.hands_coeffs[spread] @ hand.hands_components
    poses = np.tile(np.eye(3), (len(spread) + 1, MANO_JOINT_COUNT, 1, 1))
    poses[1:, 1:] = matrix_from_vector(vectors.reshape(-1, _FINGERS, 3))
    joints = model.pose(poses, np.zeros((len(poses), BETA_COUNT))).joints  # (P, 21, 3)
    views = _views()
    # As complex numbers: a factor is a scale and a turn in the picture, so views need not be turned.
    seen = joints[:, None] @ np.swapaxes(views, -1, -2)  # (P, V, 21, 3)
    flat = (seen[..., 0] + 1j * seen[..., 1]).reshape(-1, JOINT_COUNT)
    points = problem.points[..., 0] + 1j * problem.points[..., 1]
    weight = problem.weight / problem.weight.sum(axis=-1, keepdims=True)
    points = points - (weight * points).sum(axis=-1, keepdims=True)
    middle = weight @ flat.T  # (B, P * V)
    variance = weight @ (np.abs(flat) ** 2).T - np.abs(middle) ** 2
    # Sum of w p conj(f - m): the points' own mean is zero, so m drops out.
    likeness = (weight * points) @ flat.conj().T
    fits = np.abs(likeness) ** 2 / np.maximum(variance, 1e-12)
    best = np.argsort(-fits, axis=-1)[:, :_BEGINNINGS]

    states = []
    for rank in range(best.shape[1]):
        chosen = best[:, rank]
        factor = likeness[np.arange(count), chosen]
        start = poses[chosen // len(views)].copy()
        start[:, 0] = _turn_in_picture(np.angle(factor)) @ views[chosen % len(views)]
        states.append(problem.solve(start, np.zeros((count, BETA_COUNT))))
    winner = np.argmin([state.cost for state in states], axis=0)
    return _State(*(np.stack(values)[winner, np.arange(count)] for values in zip(*states, strict=True)))


def _views() -> Floats:
    """(V, 3, 3) rotations that show a hand from directions evenly spread over the sphere (a Fibonacci spiral)."""
    number = np.arange(_VIEWS) + 0.5
    height = 1 - 2 * number / _VIEWS
    around = math.pi * (1 + math.sqrt(5)) * number
    radius = np.sqrt(1 - height**2)
    z = np.stack([radius * np.cos(around), radius * np.sin(around), height], axis=-1)
    side = np.where(np.abs(z[:, :1]) < 0.9, [1.0, 0, 0], [0, 1.0, 0])
    x = np.cross(side, z)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=-2)


def _turn_in_picture(angle: Floats) -> Floats:
    """(B,) -> (B, 3, 3)"""
    return matrix_from_vector(angle[:, None] * np.array([0.0, 0.0, 1.0]))


def _vector_from_rotation(rotation: Floats) -> Floats:
    """(*B, 3, 3) -> (*B, 3), finite everywhere: at half a turn, where no axis is better than another, shorter."""
    rows = rotation.reshape(*rotation.shape[:-2], 9)
    twice_sine = rows[..., [7, 2, 3]] - rows[..., [5, 6, 1]]
    sine = np.sqrt((twice_sine**2).sum(axis=-1)) / 2
    angle = np.arctan2(sine, (rows[..., ::4].sum(axis=-1) - 1) / 2)
    factor = np.where(sine > 1e-9, angle / np.maximum(2 * sine, 1e-12), 0.5)
    return twice_sine * factor[..., None]


def _inverse_right_jacobian(vector: Floats) -> Floats:
    """(*B, 3) -> (*B, 3, 3): how the rotation vector of ``R @ exp(e)`` begins to change with e."""
    angle = np.sqrt((vector**2).sum(axis=-1))
    safe = np.maximum(angle, 1e-3)
    half = safe / 2
    bend = np.where(angle > 1e-3, (1 - half / np.tan(half)) / safe**2, 1 / 12)
    cross = np.einsum("...a,aij->...ij", vector, _GENERATORS)
    return np.eye(3) + cross / 2 + bend[..., None, None] * (cross @ cross)
