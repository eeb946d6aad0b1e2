"""Fitting the hand to keypoints: error against noise, points that lack or lie, awkward views, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handmesh import metrics
from handmesh.errors import DataError
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import JOINT_NAMES, MANO_JOINT_NAMES, Handedness, builtin_hand
from handmesh.hand.anatomy import JOINT_LIMITS, flexion_axes, hand_angles, pose_from_angles
from handmesh.hand.fit import FitSettings, FitStart, HandFit, _JointModel, fit_hand
from handmesh.synth import PosePrior

HAND = builtin_hand()
PIXELS_PER_METRE = 900.0
BOX = 150.0  # px, about: a hand of 17 cm
COUNT = 48


class Truth:
    """Hands of our prior, seen from anywhere: what they are, and where an independent function puts their joints."""

    def __init__(self, count: int = COUNT, seed: int = 0) -> None:
        rng, prior = np.random.default_rng(seed), PosePrior(HAND)
        self.pose = np.stack([prior.sample(rng).rotations for _ in range(count)])
        self.pose[:, 0] = Rotation.random(count, random_state=seed).as_matrix()
        self.betas = 0.5 * rng.normal(size=(count, 10))
        self.joints = HAND.shaped(self.betas).posed(self.pose).joints
        self.keypoints = PIXELS_PER_METRE * self.joints[..., :2] + (320.0, 240.0)

    def start(self, std: float = 0.2, seed: int = 1) -> FitStart:
        """What a network might have answered: rotations off by `std` radians about each axis, a mean shape."""
        off = np.random.default_rng(seed).normal(size=(*self.pose.shape[:2], 3)) * std
        return FitStart(self.pose @ matrix_from_vector(off), np.zeros_like(self.betas))

    def errors_mm(self, fit: HandFit | FitStart) -> np.ndarray:
        found_joints = HAND.shaped(fit.betas).posed(fit.pose).joints
        pairs = zip(self.joints, found_joints, strict=True)
        return np.array([1000 * metrics.pa_rigid_mean_error(true, found) for true, found in pairs])


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


def test_joints_are_those_of_the_posed_mesh(truth):
    posed = _JointModel(HAND).pose(truth.pose, truth.betas)
    np.testing.assert_allclose(posed.joints, truth.joints, atol=1e-12)


def test_derivatives_are_what_differences_say(truth):
    model, step = _JointModel(HAND), 1e-6
    derivatives = model.derivatives(truth.pose, model.pose(truth.pose, truth.betas))
    for parameter in range(derivatives.shape[-1]):
        ends = []
        for sign in (-1, 1):
            change = np.zeros(derivatives.shape[-1])
            change[parameter] = sign * step
            pose = truth.pose @ matrix_from_vector(change[:48].reshape(16, 3))
            ends.append(model.pose(pose, truth.betas + change[48:]).joints)
        slopes = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(derivatives[..., parameter].swapaxes(1, 2), slopes, atol=1e-7)


@pytest.mark.parametrize(
    ("noise_px", "worst_2d", "worst_share"), [(0.0, 0.015, 0.45), (2.0, 0.025, 0.5), (6.0, 0.06, 0.8)]
)
def test_a_fit_is_as_good_as_its_points(truth, noise_px, worst_2d, worst_share):
    """Hands begin 11 mm off. From exact points less than half of that is left, from noisy ones more; and the joints
    are never drawn farther from their true places than the noise put the points there.
    """
    start = truth.start()
    noise = noise_px * np.random.default_rng(2).normal(size=truth.keypoints.shape)
    fit = fit_hand(truth.keypoints + noise, start=start)
    drawn = np.linalg.norm(fit.keypoints - truth.keypoints, axis=-1).mean()
    assert drawn < max(np.linalg.norm(noise, axis=-1).mean(), worst_2d * BOX)
    assert fit.error.mean() < worst_2d
    assert truth.errors_mm(fit).mean() < worst_share * truth.errors_mm(start).mean()
    errors_mm = [truth.errors_mm(fit_hand(truth.keypoints + more * noise, start=start)).mean() for more in (1, 2, 4)]
    assert errors_mm == sorted(errors_mm) or noise_px == 0


def test_3d_joints_say_what_the_picture_does_not(truth):
    noise = 1e-3 * np.random.default_rng(3).normal(size=truth.joints.shape)
    somewhere = np.array([0.1, -0.2, 0.7])
    fit = fit_hand(truth.keypoints, start=truth.start(), joints=truth.joints + noise + somewhere)
    assert truth.errors_mm(fit).mean() < 1.2
    assert np.quantile(np.abs(fit.joints - truth.joints), 0.9) < 3e-3, "in place too, not only in shape"
    known = truth.joints.copy()
    known[:, 5:] = np.nan  # wrist and thumb alone are known in 3D
    some = fit_hand(truth.keypoints, start=truth.start(), joints=known)
    thumb = np.linalg.norm((some.joints - some.joints[:, :1] - truth.joints + truth.joints[:, :1])[:, 1:5], axis=-1)
    assert thumb.mean() < 3e-3


def test_from_nothing_but_the_points():
    """No start, any view: nearly all hands are found to lie on their points, most of them near the truth in 3D. That a
    hand and its mirror image in depth look alike in 2D is why not all are.
    """
    truth = Truth(32, seed=5)
    fit = fit_hand(truth.keypoints)
    assert np.quantile(fit.error, 0.9) < 0.025
    assert np.median(truth.errors_mm(fit)) < 5.5
    assert np.median(truth.errors_mm(FitStart(np.tile(np.eye(3), (32, 16, 1, 1)), np.zeros((32, 10))))) > 11


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_views_along_fingers_and_onto_edges(axis):
    """Fingers that point at the camera or away from it, and hands seen from all sides of a fist and a flat hand."""
    poses = pose_from_angles(HAND, np.stack([hand_angles(), hand_angles((21, 45, 52), *[(80, 100, 65)] * 4)]))
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    turns = Rotation.from_euler(axis, angles[:, None]).as_matrix() @ Rotation.from_euler("y", np.pi / 2).as_matrix()
    pose = np.repeat(poses, len(turns), axis=0)
    pose[:, 0] = np.tile(turns, (2, 1, 1))
    joints = HAND.shaped(np.zeros(10)).posed(pose).joints
    off = 0.15 * np.random.default_rng(4).normal(size=(*pose.shape[:2], 3))
    fit = fit_hand(joints[..., :2], start=FitStart(pose @ matrix_from_vector(off), np.zeros((len(pose), 10))))
    assert np.isfinite(fit.pose).all()
    assert fit.error.max() < 0.03, "a hand along the line of sight has a small box"
    assert max(metrics.pa_rigid_mean_error(true, found) for true, found in zip(joints, fit.joints, strict=True)) < 0.012


def test_points_that_lack_are_filled_in_from_where_the_fit_began(truth):
    """A finger that is not known stays as it began; the others are fitted as if it were known."""
    ring = [JOINT_NAMES.index(name) for name in JOINT_NAMES if name.startswith("ring")]
    keypoints = truth.keypoints.copy()
    keypoints[:, ring] = np.nan
    start = truth.start()
    free = FitSettings(limit_std=1e3)  # where they began lies beyond the limits at times
    fit = fit_hand(keypoints, start=start, settings=free)
    full = fit_hand(truth.keypoints, start=start, settings=free)
    assert np.isnan(fit.distances[:, ring]).all()
    assert np.isfinite(fit.keypoints).all()
    others = [joint for joint in range(21) if joint not in ring]
    assert fit.error.mean() == pytest.approx(np.nanmean(full.distances[:, others]), abs=0.004)
    own = [MANO_JOINT_NAMES.index(f"ring_{part}") for part in ("pip", "dip")]
    kept = Rotation.from_matrix((np.swapaxes(start.pose, -1, -2) @ fit.pose)[:, own].reshape(-1, 3, 3)).magnitude()
    moved = Rotation.from_matrix((np.swapaxes(start.pose, -1, -2) @ full.pose)[:, own].reshape(-1, 3, 3)).magnitude()
    assert np.median(kept) < 0.5 * np.median(moved)
    weights = np.ones(21)
    weights[ring] = 0
    by_weight = fit_hand(truth.keypoints, weights, start=start, settings=free)
    np.testing.assert_allclose(by_weight.pose, fit.pose, atol=1e-9)


def test_a_point_that_lies_is_forgiven(truth):
    """One fingertip is said to be half a box away: the others are still met, and it is not."""
    tip = JOINT_NAMES.index("index_tip")
    keypoints = truth.keypoints.copy()
    keypoints[:, tip] += 0.5 * BOX
    fit = fit_hand(keypoints, start=truth.start())
    others = [joint for joint in range(21) if not JOINT_NAMES[joint].startswith("index")]
    assert np.nanmean(fit.distances[:, others]) < 0.03
    assert np.median(fit.distances[:, tip]) > 0.2


def test_place_size_and_turn_in_the_picture_change_nothing_else(truth):
    turn = Rotation.from_euler("z", 0.8).as_matrix()
    start = truth.start()
    turned = FitStart(np.concatenate([turn @ start.pose[:, :1], start.pose[:, 1:]], axis=1), start.betas)
    one = fit_hand(truth.keypoints, start=start)
    other = fit_hand(truth.keypoints / 100 - 5, start=start)
    np.testing.assert_allclose(other.pose, one.pose, atol=1e-6)
    np.testing.assert_allclose(other.keypoints, one.keypoints / 100 - 5, atol=1e-6)
    np.testing.assert_allclose(other.camera[:, 0] * 100, one.camera[:, 0], rtol=1e-6)
    # A box is upright, so a turned hand is fitted to another size of it; only nearly the same.
    third = fit_hand(truth.keypoints @ turn[:2, :2].T, start=turned)
    np.testing.assert_allclose(third.pose[:, 1:], one.pose[:, 1:], atol=0.2)
    assert np.median(np.abs(third.pose[:, 0] - turn @ one.pose[:, 0])) < 0.01


def test_the_camera_draws_the_joints_where_it_says(truth):
    fit = fit_hand(truth.keypoints, start=truth.start())
    scale, translation = fit.camera[:, :1, None], fit.camera[:, None, 1:]
    np.testing.assert_allclose(scale * (fit.joints[..., :2] + translation), fit.keypoints, atol=1e-9)
    np.testing.assert_allclose(HAND.joints_of(fit.vertices()), fit.joints, atol=1e-9)
    np.testing.assert_allclose(
        np.swapaxes(fit.pose, -1, -2) @ fit.pose, np.broadcast_to(np.eye(3), fit.pose.shape), atol=1e-9
    )


def test_a_left_hand_is_a_right_one_in_a_mirror(truth):
    flip = np.diag([-1.0, 1, 1])
    start = truth.start()
    mirrored = FitStart(flip @ start.pose @ flip, start.betas)
    right = fit_hand(truth.keypoints, start=start)
    left = fit_hand(truth.keypoints * (-1, 1), start=mirrored, hand=builtin_hand(Handedness.LEFT))
    np.testing.assert_allclose(left.joints, right.joints * (-1, 1, 1), atol=1e-7)
    np.testing.assert_allclose(left.betas, right.betas, atol=1e-5)


def test_no_finger_bends_backwards_to_please_a_point():
    """The points ask for an index finger that is bent back by 70 degrees; hands do 20 at its knuckle."""
    angles = hand_angles()
    index = MANO_JOINT_NAMES.index("index_mcp")
    angles[index + 1, 0] = np.radians(-70)
    pose = pose_from_angles(HAND, angles)  # at rest the thumb's side faces the camera
    joints = HAND.shaped(np.zeros(10)).posed(pose).joints
    flat = pose.copy()
    flat[1:] = np.eye(3)
    start = FitStart(flat, np.zeros(10))
    bent = {}
    for name, std in (("limits", 0.1), ("no limits", 1e3)):
        fit = fit_hand(joints[:, :2], start=start, settings=FitSettings(rotation_std=1.0, limit_std=std))
        vector = Rotation.from_matrix(fit.pose[index + 1]).as_rotvec()
        bent[name] = float(flexion_axes(HAND)[index + 1, 0] @ vector)
    lowest = JOINT_LIMITS[index + 1, 0, 0]
    assert bent["limits"] > lowest - 0.2
    assert bent["no limits"] < lowest - 0.5


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (0,)])
def test_any_batch_gives_what_each_hand_alone_gives(batch, truth):
    count = int(np.prod(batch))
    start = truth.start()
    some = FitStart(start.pose[:count].reshape(*batch, 16, 3, 3), start.betas[:count].reshape(*batch, 10))
    fit = fit_hand(truth.keypoints[:count].reshape(*batch, 21, 2), start=some)
    assert fit.pose.shape == (*batch, 16, 3, 3)
    assert fit.error.shape == batch
    for number in range(count):
        alone = fit_hand(truth.keypoints[number], start=FitStart(start.pose[number], start.betas[number]))
        # Where a sum is least is known to the root of what it is rounded by, and batches are rounded differently.
        np.testing.assert_allclose(fit.pose.reshape(count, 16, 3, 3)[number], alone.pose, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": np.zeros((3, 20, 2))}, r"'keypoints' has the shape \(3, 20, 2\), wanted \(\*B, 21, 2\)"),
        ({"keypoints": "many"}, "'keypoints' is no array of numbers"),
        ({"weights": np.ones(20)}, "'weights' has the shape"),
        ({"weights": np.ones((5, 21))}, "'weights' has the shape"),
        ({"weights": -np.ones(21)}, "'weights' holds numbers that are negative"),
        ({"weights": np.r_[np.ones(3), np.zeros(18)]}, "Hand 0 of 2 has 3 known keypoints: a fit needs 4"),
        ({"keypoints": np.ones((2, 21, 2))}, "All keypoints of hand 0 are in one place"),
        ({"joints": np.ones((3, 21, 3))}, "'joints' has the shape"),
        ({"start": FitStart(np.ones((2, 16, 3, 3)), np.zeros((2, 10)))}, "no rotations"),
        ({"start": FitStart(np.tile(np.eye(3), (16, 1, 1)), np.zeros(10))}, "'start.pose' has the shape"),
    ],
)
def test_what_cannot_be_fitted_is_said(arguments, message, truth):
    given = {"keypoints": truth.keypoints[:2], **arguments}
    with pytest.raises(DataError, match=message):
        fit_hand(given.pop("keypoints"), given.pop("weights", None), **given)
