"""Answers brought to where heatmaps see the joints."""

from __future__ import annotations

import numpy as np
import pytest

from handmesh import metrics
from handmesh.geometry.camera import WeakPerspectiveCamera
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandOutput, builtin_hand
from handmesh.predict import Predictor
from handmesh.predict.refine import refined

COUNT = 12
HAND = builtin_hand()


def answers(vectors: np.ndarray, seen: np.ndarray | None = None) -> HandOutput:
    """Of hands in these poses (COUNT, 16, 3); `seen` None: exactly where they are drawn."""
    pose = matrix_from_vector(vectors)
    posed = HAND.shaped(np.zeros((len(pose), 10))).posed(pose)
    camera = np.tile([7.0, 0.01, -0.02], (len(pose), 1))
    if seen is None:
        drawn = WeakPerspectiveCamera.from_vector(camera).project(posed.joints)
        seen = np.concatenate([drawn, np.full((len(pose), 21, 1), 0.9)], axis=-1)
    sure = np.ones(len(pose))
    values = camera, pose, np.zeros((len(pose), 10)), posed.vertices, posed.joints, sure, sure, np.ones((len(pose), 21))
    return HandOutput(*(value.astype(np.float32) for value in (*values, seen)))


@pytest.fixture
def vectors() -> np.ndarray:
    rng = np.random.default_rng(3)
    examples = rng.choice(len(HAND.hands_coeffs), COUNT, replace=False)
    fingers = HAND.hands_mean + HAND.hands_coeffs[examples] @ HAND.hands_components
    return np.concatenate([rng.normal(0, 0.5, (COUNT, 1, 3)), fingers.reshape(COUNT, 15, 3)], axis=1)


def drawn(output: HandOutput) -> np.ndarray:
    return WeakPerspectiveCamera.from_vector(output.camera).project(output.joints)


def test_what_is_seen_where_it_is_drawn_stays(vectors):
    before = answers(vectors)
    after = refined(before, HAND)
    np.testing.assert_allclose(after.joints, before.joints, atol=2e-4)
    np.testing.assert_allclose(drawn(after), drawn(before), atol=2e-3)
    assert {values.dtype for values in after} == {np.dtype(np.float32)}


def test_fingers_go_to_where_they_are_seen_and_become_truer(vectors):
    """In the picture and in space, of wrong answers with the truth seen; the mesh is the pose's."""
    truth = answers(vectors)
    wrong = answers(vectors + np.random.default_rng(4).normal(0, 0.2, vectors.shape), truth.seen)
    after = refined(wrong, HAND)
    assert np.abs(drawn(after) - drawn(truth)).mean() < 0.35 * np.abs(drawn(wrong) - drawn(truth)).mean()
    errors = [
        np.mean([metrics.pa_rigid_mean_error(*pair) for pair in zip(truth.joints, one.joints, strict=True)])
        for one in (wrong, after)
    ]
    assert errors[1] < 0.8 * errors[0]
    np.testing.assert_allclose(HAND.joints_of(after.vertices.astype(float)), after.joints, atol=1e-5)
    np.testing.assert_allclose(HAND.shaped(after.betas).posed(after.pose).vertices, after.vertices, atol=1e-5)


def test_a_joint_that_is_hardly_seen_moves_nothing_and_is_said_to_be_unsure(vectors):
    before = answers(vectors)
    before.seen[:, 8] = [0.9, 0.9, 0.03]
    after = refined(before, HAND)
    np.testing.assert_allclose(after.joints, before.joints, atol=1e-3)
    others = np.delete(after.joint_confidence, 8, axis=1)
    assert after.joint_confidence[:, 8].max() < 0.02
    assert others.min() > 0.5
    assert others.max() < 1


def test_joints_are_said_to_be_unsure_by_what_is_known_of_them(vectors):
    """A faint heatmap, one that sees the joint where the hand cannot reach, and a network that doubts it."""
    before = answers(vectors)
    sure = refined(before, HAND).joint_confidence[:, 8]
    doubts = {"seen": [0.0, 0.0, -0.6], "elsewhere": [0.4, 0.4, 0.0], "said": None}
    for name, change in doubts.items():
        changed = answers(vectors)
        if change is None:
            changed.joint_confidence[:] = 0.8
            sure = refined(changed, HAND).joint_confidence[:, 8]
            changed.joint_confidence[:, 8] = 0.2
        else:
            changed.seen[:, 8] += change
        unsure = refined(changed, HAND).joint_confidence
        assert (unsure[:, 8] < sure - 0.1).all(), name
        assert (unsure[:, 8] == unsure.min(axis=1)).all(), name


@pytest.mark.parametrize("seen", [0.0, np.full((COUNT, 21, 3), 0.3)])
def test_where_heatmaps_see_no_hand_the_answer_stays(vectors, seen):
    before = answers(vectors, np.zeros((COUNT, 21, 3)) + seen)
    np.testing.assert_allclose(refined(before, HAND).joints, before.joints, atol=2e-4)


class OneAnswer:
    name, resolution, hand = "one answer", 64, HAND

    def __init__(self, output: HandOutput, *, keypoint_head: bool) -> None:
        self.output = output
        self.record = {"model": {"keypoint_head": keypoint_head}}

    def __call__(self, crops: np.ndarray) -> HandOutput:
        return HandOutput(*(values[: len(crops)] for values in self.output))


def test_a_predictor_refines_what_a_network_with_that_head_says(vectors):
    truth = answers(vectors)
    wrong = answers(vectors + np.random.default_rng(4).normal(0, 0.2, vectors.shape), truth.seen)
    image = np.zeros((64, 64, 3), np.uint8)
    hands = [
        Predictor(OneAnswer(wrong, keypoint_head=head), passes=1)(image, boxes=[4, 4, 60, 60], handedness="right")[0]
        for head in (False, True)
    ]
    assert hands[0].joint_scores is None
    assert hands[1].joint_scores.shape == (21,)
    crop = hands[0].crop
    off = [np.abs(crop.to_ndc(hand.keypoints_image()) - truth.seen[0, :, :2]).mean() for hand in hands]
    assert off[1] < 0.5 * off[0]
