"""What a prediction costs: nothing when it is right, and each part only for what it names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from handmesh.config.loss import LossNorms, LossWeights
from handmesh.data.sample import HandLabels
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.losses import (
    HEATMAP_SIGMA,
    distance_sums,
    found,
    hand_loss,
    heatmap_cross_entropies,
    joints_found,
    label_counts,
    read_heatmaps,
    triangle_errors,
)
from handmesh.learn.targets import complete_targets

HAND = HandModel(builtin_hand())
CELLS = 24  # of a heatmap's side
CAMERA_PARTS = {"keypoints"}
ORIENTATION_PARTS = {"vertices", "joints", "keypoints", "orientation", "normals"}
SHAPE_PARTS = {"vertices", "joints", "root_vertices", "root_joints", "keypoints", "betas", "normals", "edges"}
FINGER_PARTS = {"vertices", "joints", "root_vertices", "root_joints", "keypoints", "pose", "normals", "edges"}
FACES = torch.from_numpy(HAND.faces).long()
ALL = LossWeights(normals=0.1, edges=1.0)  # those that are off by default, too


def random_hands(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = 0.3 * torch.randn(count, 16, 3, generator=generator)
    vectors[:, 0] *= 5
    camera = torch.tensor([6.0, 0.02, -0.03]) + 0.05 * torch.randn(count, 3, generator=generator)
    pose = torch.from_numpy(matrix_from_vector(vectors)).float()
    return camera, pose, torch.randn(count, 10, generator=generator)


def answer(camera: Tensor, pose: Tensor, betas: Tensor) -> HandOutput:
    likely = torch.full((len(camera),), 0.8)
    said = {"confidence": likely, "handedness": likely, "joint_confidence": likely[:, None].expand(-1, 21)}
    said["seen"] = torch.zeros(len(camera), 21, 3)
    return HandOutput(camera, pose, betas, *HAND(pose, betas), **said)


def truth_of(output: HandOutput) -> HandLabels:
    scale, translation = output.camera[:, 0], output.camera[:, 1:]
    keypoints = scale[:, None, None] * (output.joints[..., :2] + translation[:, None])
    return complete_targets(keypoints, output.joints, output.vertices, output.pose, output.betas)


def parts_of(output: HandOutput, targets: HandLabels) -> dict[str, float]:
    return {name: part.item() for name, part in hand_loss(output, None, targets, ALL, faces=FACES)[1].items()}


def gaussian_logits(keypoints: Tensor, cells: int = CELLS) -> Tensor:
    """(B, 21, 2) NDC -> (B, 21, cells, cells), written cell by cell."""
    logits = torch.empty(*keypoints.shape[:2], cells, cells)
    for row in range(cells):
        for column in range(cells):
            centre = torch.tensor([(column + 0.5) / cells * 2 - 1, (row + 0.5) / cells * 2 - 1])
            squared = ((centre - keypoints) * cells / 2).square().sum(-1)
            logits[..., row, column] = -squared / (2 * HEATMAP_SIGMA**2)
    return logits


@pytest.fixture
def output() -> HandOutput:
    return answer(*random_hands())


def test_a_perfect_prediction_costs_nothing_but_the_blur_of_the_heatmaps():
    camera, pose, betas = random_hands()
    output = answer(camera * torch.tensor([0.4, 1, 1]), pose, betas)  # so small that no heatmap meets the crop's edge
    targets = truth_of(output)
    depths = (output.joints - output.joints[:, :1])[..., 2] / 0.1
    dense = gaussian_logits(targets.keypoints), depths[..., None, None].expand(-1, -1, CELLS, CELLS)
    _, parts = hand_loss(output, dense, targets, LossWeights())
    entropy_of_a_gaussian = math.log(2 * math.pi * math.e * HEATMAP_SIGMA**2)  # nats, in two dimensions
    assert parts.pop("heatmaps").item() == pytest.approx(entropy_of_a_gaussian, abs=0.01)
    for name, part in parts.items():
        assert part.item() < 1e-3 if name == "heatmap_keypoints" else part.item() < 2e-6, name


def test_the_wrist_is_where_positions_are_measured_from(output):
    """Labels may have any origin: the camera carries the position, in the image only."""
    targets = truth_of(output)
    shift = torch.tensor([0.1, -0.2, 0.7])
    moved = targets._replace(joints=targets.joints + shift, vertices=targets.vertices + shift)
    found = parts_of(output, moved)
    assert found.pop("normals") < 1e-4  # rounding, seen from edges of millimetres
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize(
    ("change", "parts"),
    [("camera", CAMERA_PARTS), ("orientation", ORIENTATION_PARTS), ("betas", SHAPE_PARTS), ("finger", FINGER_PARTS)],
)
def test_each_mistake_costs_in_its_own_parts_only(change, parts):
    camera, pose, betas = random_hands()
    targets = truth_of(answer(camera, pose, betas))
    turn = torch.from_numpy(matrix_from_vector([0.2, -0.3, 0.1])).float()
    camera, pose, betas = camera.clone(), pose.clone(), betas.clone()
    if change == "camera":
        camera += 0.1
    elif change == "orientation":
        pose[:, 0] = turn @ pose[:, 0]
    elif change == "betas":
        betas += 0.5
    else:
        pose[:, 5] = pose[:, 5] @ turn
    found = parts_of(answer(camera, pose, betas), targets)
    assert {name for name, value in found.items() if value > 1e-5} == parts
    assert all(value < 2e-6 for name, value in found.items() if name not in parts)


def test_the_hands_own_frame_knows_no_orientation():
    """Turning the prediction and the truth, each its own way, leaves the root-frame parts as they were."""
    camera, pose, betas = random_hands(seed=1)
    other_camera, other_pose, other_betas = random_hands(seed=2)
    before = parts_of(answer(camera, pose, betas), truth_of(answer(other_camera, other_pose, other_betas)))
    vectors = np.random.default_rng(3).normal(size=(2, 3, 3))
    turns = torch.from_numpy(matrix_from_vector(vectors)).float()
    pose[:, 0], other_pose[:, 0] = turns[0] @ pose[:, 0], turns[1] @ other_pose[:, 0]
    after = parts_of(answer(camera, pose, betas), truth_of(answer(other_camera, other_pose, other_betas)))
    for name in ("root_vertices", "root_joints", "pose", "betas"):
        assert after[name] == pytest.approx(before[name], rel=1e-4), name
    assert after["vertices"] != pytest.approx(before["vertices"], rel=1e-2)


def test_parts_are_mean_absolute_errors(output):
    """In the units of config.LossWeights, against numpy."""
    camera, pose, betas = random_hands(seed=4)
    other = answer(camera, pose, betas)
    targets = truth_of(other)
    found = parts_of(output, targets)
    ours, theirs = (output.vertices - output.joints[:, :1]).numpy(), (other.vertices - other.joints[:, :1]).numpy()
    assert found["vertices"] == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-5)
    own_frame = [
        np.einsum("bvc,bck->bvk", points, R) for points, R in ((ours, output.pose[:, 0]), (theirs, other.pose[:, 0]))
    ]
    assert found["root_vertices"] == pytest.approx(np.abs(own_frame[0] - own_frame[1]).mean(), rel=1e-5)
    assert found["betas"] == pytest.approx((output.betas - other.betas).abs().mean().item(), rel=1e-6)


def test_triangles_are_compared_as_they_are_drawn(output):
    """Edges in metres; normals by the sine of the angle that a mesh is turned out of its own planes."""
    truth = truth_of(output)
    larger = output._replace(vertices=1.1 * output.vertices)
    found = parts_of(larger, truth)
    assert found["normals"] < 1e-5
    pairs = [(output.vertices[:, FACES[:, i]], output.vertices[:, FACES[:, j]]) for i, j in ((0, 1), (1, 2), (2, 0))]
    lengths = torch.stack([(a - b).norm(dim=-1) for a, b in pairs])
    assert found["edges"] == pytest.approx(0.1 * lengths.mean().item(), rel=1e-4)
    flat = torch.tensor([[[0.0, 0, 0], [0.01, 0, 0], [0, 0.01, 0]]])
    turned = flat @ torch.from_numpy(matrix_from_vector([math.pi / 6, 0, 0])).float().T  # about the first edge
    cosines, lengths = triangle_errors(turned, flat, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(cosines[0, 0], torch.tensor([0.0, 0.5 / math.sqrt(2), 0.5]))
    assert lengths.max() < 1e-8


def test_the_total_is_the_weighted_sum(output):
    targets = truth_of(answer(*random_hands(seed=5)))
    dense = torch.randn(3, 21, 8, 8), torch.randn(3, 21, 8, 8)
    weights = ALL
    output = with_heads(output, [0.9, 0.8, 0.7], [0.6, 0.7, 0.8])
    total, parts = hand_loss(output, dense, targets, weights, faces=FACES)
    assert set(parts) == set(LossWeights.model_fields), "every weight has its part, every part its weight"
    expected = sum(getattr(weights, name) * part.item() for name, part in parts.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert hand_loss(output, None, targets, weights)[0] < total


def dense_answer(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 21, 8, 8, generator=generator), torch.randn(count, 21, 8, 8, generator=generator)


LABEL_PARTS = {
    "joints_known": {"joints", "root_joints", "heatmap_depths"},
    "vertices_known": {"vertices", "root_vertices", "normals", "edges"},
    "pose_known": {"orientation", "pose", "root_vertices", "root_joints"},
    "betas_known": {"betas"},
    "keypoints_known": {"keypoints", "heatmaps", "heatmap_keypoints", "confidence"},
}


@pytest.mark.parametrize("label", LABEL_PARTS)
def test_a_missing_label_switches_its_losses_off_for_that_sample_alone(label, output):
    """The parts it feeds become the mean over the other samples; no other part changes; nothing pulls at the sample."""
    targets, dense = truth_of(answer(*random_hands(seed=5))), dense_answer(0)
    missing = getattr(targets, label).clone()
    missing[1] = False
    name = label.removesuffix("_known")
    garbage = getattr(targets, name).clone()
    garbage[1] = 1e3
    without = targets._replace(**{label: missing, name: garbage})
    if label == "joints_known":  # never vertices without joints: they are measured from the wrist
        without = without._replace(vertices_known=missing)
    output = HandOutput(*(value.clone().requires_grad_() for value in output))
    _, parts = hand_loss(output, dense, without, ALL, faces=FACES)
    _, whole = hand_loss(output, dense, targets, ALL, faces=FACES)
    others = [0, 2]
    kept = targets.map(lambda value: value[others])
    _, of_others = hand_loss(
        HandOutput(*(value[others] for value in output)),
        tuple(value[others] for value in dense),
        kept,
        ALL,
        faces=FACES,
    )
    changed = LABEL_PARTS[label] | (LABEL_PARTS["vertices_known"] if label == "joints_known" else set())
    for part, value in parts.items():
        expected = of_others[part] if part in changed else whole[part]
        assert value.item() == pytest.approx(expected.item(), rel=1e-5), part
    gradients = torch.autograd.grad(sum(parts[part] for part in changed - {"heatmaps"}), output, allow_unused=True)
    touched = [gradient for gradient in gradients if gradient is not None]
    assert all((gradient[1] == 0).all() for gradient in touched)
    assert label == "keypoints_known" or any(gradient.abs().sum() > 0 for gradient in touched)


def with_heads(output: HandOutput, confidence: list[float], right: list[float]) -> HandOutput:
    joints = [[likely] * 21 for likely in confidence]
    values = (torch.tensor(numbers, requires_grad=True) for numbers in (confidence, right, joints))
    return output._replace(**dict(zip(("confidence", "handedness", "joint_confidence"), values, strict=True)))


def test_confidence_learns_what_is_found():
    """There is a hand and its joints are drawn within 0.15 of its box: a shift across that line changes the truth."""
    output = answer(*random_hands(4))
    targets = truth_of(output)
    side = (targets.keypoints.amax(dim=1) - targets.keypoints.amin(dim=1)).amax(dim=-1)
    shift = torch.tensor([0.0, 0.149, 0.151, 0.0]) * side
    moved = targets.keypoints + torch.stack([0.6 * shift, 0.8 * shift], dim=-1)[:, None]
    targets = targets._replace(keypoints=moved, present=torch.tensor([True, True, True, False]))
    assert found(output, targets).tolist() == [True, True, False, False]
    headed = with_heads(output, [0.9, 0.8, 0.7, 0.6], [0.5] * 4)
    _, parts = hand_loss(headed, None, targets, LossWeights())
    expected = -np.mean(np.log([0.9, 0.8, 1 - 0.7, 1 - 0.6]))
    assert parts["confidence"].item() == pytest.approx(expected, rel=1e-5)


def test_each_joints_confidence_learns_whether_that_joint_is_found():
    """A joint beyond 0.06 of the box is missed, the others are not; of a joint nobody labelled nothing is learnt; where
    there is no hand none is found.
    """
    output = answer(*random_hands(2))
    targets = truth_of(output)
    side = (targets.keypoints.amax(dim=1) - targets.keypoints.amin(dim=1)).amax(dim=-1)
    tip, wrist = 8, 0
    keypoints = targets.keypoints.clone()
    middle = keypoints.mean(dim=1)
    inward = (middle - keypoints[:, tip]) / (middle - keypoints[:, tip]).norm(dim=-1, keepdim=True)
    keypoints[:, tip] += 0.062 * side[:, None] * inward  # inward, or the box would change
    known = torch.ones(2, 21, dtype=torch.bool)
    known[0, wrist] = False
    targets = targets._replace(keypoints=keypoints, keypoints_known=known, present=torch.tensor([True, False]))
    expected_found = torch.ones(21, dtype=torch.bool)
    expected_found[tip] = False
    assert joints_found(output, targets)[0, 1:].tolist() == expected_found[1:].tolist()
    assert not joints_found(output, targets)[1].any()
    said = torch.full((2, 21), 0.8, requires_grad=True)
    _, parts = hand_loss(output._replace(joint_confidence=said), None, targets, LossWeights())
    expected = -(19 * np.log(0.8) + np.log(0.2) + 21 * np.log(0.2)) / 41
    assert parts["joint_confidence"].item() == pytest.approx(expected, rel=1e-5)


def test_a_single_keypoint_teaches_no_confidence():
    """It has no box that errors could be measured by: a perfect answer was taught as one that found nothing."""
    output = answer(*random_hands(3))
    known = torch.ones(3, 21, dtype=torch.bool)
    known[0, 1:] = known[1, 2:] = False
    targets = truth_of(output)._replace(keypoints_known=known)
    assert found(output, targets)[1:].all()
    headed = with_heads(output, [0.1, 0.8, 0.7], [0.5] * 3)
    _, parts = hand_loss(headed, None, targets, LossWeights())
    assert parts["confidence"].item() == pytest.approx(-np.mean(np.log([0.8, 0.7])), rel=1e-5)
    of_joints = -(2 * np.log(0.8) + 21 * np.log(0.7)) / 23
    assert parts["joint_confidence"].item() == pytest.approx(of_joints, rel=1e-5)


def test_a_left_hand_teaches_its_side_and_its_heatmaps_only():
    """No right hand's pose, camera or confidence is true of it; and what shows no hand has no side."""
    output, dense = answer(*random_hands(3)), dense_answer(0)
    side = torch.tensor([True, False, True])
    targets = truth_of(answer(*random_hands(3, seed=5)))._replace(right=side)
    unknown = torch.tensor([True, False, True])
    targets = targets._replace(pose_known=unknown, betas_known=unknown, joints_known=unknown, vertices_known=unknown)
    headed = with_heads(output, [0.9, 0.8, 0.7], [0.6, 0.7, 0.8])
    _, parts = hand_loss(headed, dense, targets, LossWeights())
    others = [0, 2]
    kept = targets.map(lambda value: value[others])
    of_others = hand_loss(
        HandOutput(*(value[others] for value in headed)), tuple(value[others] for value in dense), kept, LossWeights()
    )[1]
    alone = {
        name for name in parts if abs(parts[name].item() - of_others[name].item()) > 1e-6 * abs(parts[name].item())
    }
    assert alone == {"handedness", "heatmaps", "heatmap_keypoints"}
    assert parts["handedness"].item() == pytest.approx(-np.mean(np.log([0.6, 1 - 0.7, 0.8])), rel=1e-5)
    nothing = kept._replace(present=torch.tensor([True, False]))
    assert hand_loss(HandOutput(*(value[others] for value in headed)), None, nothing, LossWeights())[1][
        "handedness"
    ].item() == pytest.approx(-np.log(0.6), rel=1e-5)


def test_heads_that_a_network_lacks_cost_nothing(output):
    _, parts = hand_loss(output, None, truth_of(output), LossWeights())
    assert not {"confidence", "handedness"} & set(parts)


def test_without_any_label_there_is_no_loss(output):
    targets = truth_of(answer(*random_hands(seed=5)))
    nothing = {name: torch.zeros_like(value) for name, value in targets._asdict().items() if name.endswith("known")}
    total, parts = hand_loss(output, dense_answer(0), targets._replace(**nothing), LossWeights())
    assert total == 0
    assert all(part == 0 for part in parts.values())


def test_pieces_of_a_batch_add_up_to_the_whole():
    """With uneven labels, too: what accumulation and several processes rely on."""
    camera, pose, betas = random_hands(6)
    targets = truth_of(answer(*random_hands(6, seed=5)))
    known = torch.tensor([True, False, True, True, True, False])
    targets = targets._replace(pose_known=known, keypoints_known=targets.keypoints_known & (torch.arange(21) % 4 > 0))
    dense = dense_answer(1, 6)
    output = answer(camera, pose, betas)
    whole, parts = hand_loss(output, dense, targets, LossWeights())
    pieces = [
        hand_loss(
            HandOutput(*(value[start : start + 2] for value in output)),
            tuple(value[start : start + 2] for value in dense),
            piece,
            LossWeights(),
            counts=label_counts(targets),
        )
        for start, piece in ((at, targets.map(lambda value, at=at: value[at : at + 2])) for at in (0, 2, 4))
    ]
    assert sum(total for total, _ in pieces).item() == pytest.approx(whole.item(), rel=1e-5)
    for name, part in parts.items():
        assert sum(one[name] for _, one in pieces).item() == pytest.approx(part.item(), rel=1e-5), name


def test_reported_distances_are_distances_of_what_is_labelled():
    """Not means per coordinate, which are half as long, and not diluted by samples without labels."""
    output = answer(*random_hands(3))
    targets = truth_of(output)
    known = torch.tensor([True, False, True])
    moved = targets._replace(
        keypoints=targets.keypoints + torch.tensor([0.03, 0.04]),
        vertices=targets.vertices + torch.tensor([0.002, 0.003, 0.006]),
        vertices_known=known,
        keypoints_known=targets.keypoints_known & known[:, None] & (torch.arange(21) < 4),
    )
    sums = {name: value.item() for name, value in distance_sums(output, moved, side=200).items()}
    assert (sums["keypoints"], sums["vertices"]) == (8, 2)
    assert sums["keypoint_px"] / 8 == pytest.approx(0.05 * 100, rel=1e-4)
    assert sums["vertex_mm"] / 2 == pytest.approx(7, rel=1e-4)
    nothing = moved._replace(vertices_known=~targets.present, keypoints_known=torch.zeros(3, 21, dtype=torch.bool))
    assert not any(distance_sums(output, nothing, side=200).values())


def test_norms_are_metros_when_asked_for(output):
    """Joints and keypoints by squares (METRO), against numpy; vertices stay absolute."""
    targets = truth_of(answer(*random_hands(seed=4)))
    norms = LossNorms(joints="mse", keypoints="mse")
    _, parts = hand_loss(output, None, targets, LossWeights(), norms)
    ours, theirs = ((hand.joints - hand.joints[:, :1]).numpy() for hand in (output, targets))
    assert parts["joints"].item() == pytest.approx(np.square(ours - theirs).mean(), rel=1e-5)
    keypoints = output.camera[:, :1, None] * (output.joints[..., :2] + output.camera[:, None, 1:])
    expected = (keypoints - targets.keypoints).square().mean()
    assert parts["keypoints"].item() == pytest.approx(expected.item(), rel=1e-5)
    plain = hand_loss(output, None, targets, LossWeights())[1]
    assert parts["vertices"] == plain["vertices"]


def test_gradients_are_finite_even_at_the_truth():
    camera, pose, betas = (value.requires_grad_() for value in random_hands())
    logits, depths = (torch.zeros(3, 21, 8, 8, requires_grad=True) for _ in range(2))
    output = answer(camera, pose, betas)
    targets = truth_of(HandOutput(*(value.detach() for value in output)))
    outside = targets._replace(keypoints=targets.keypoints + 5)  # all of them beyond the crop
    for wanted in (targets, outside):
        total, _ = hand_loss(answer(camera, pose, betas), (logits, depths), wanted, LossWeights())
        total.backward()
    for value in (camera, pose, betas, logits, depths):
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()


def test_the_heatmap_cross_entropy_is_least_at_its_own_gaussian():
    keypoints = torch.rand(2, 21, 2, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    logits = gaussian_logits(keypoints).requires_grad_()
    loss = heatmap_cross_entropies(logits, keypoints).mean()
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7, "no direction leads further down"
    for seed in range(3):
        noise = 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        assert heatmap_cross_entropies(logits + noise, keypoints).mean() > loss


def test_joints_outside_the_crop_train_no_heatmap():
    keypoints = torch.zeros(1, 21, 2)
    keypoints[0, 4], keypoints[0, 5] = torch.tensor([1.2, 0.0]), torch.tensor([0.0, -1.01])
    logits = torch.zeros(1, 21, 8, 8, requires_grad=True)
    output = answer(*random_hands(1))
    targets = truth_of(output)._replace(keypoints=keypoints)
    dense = logits, torch.zeros(1, 21, 8, 8)
    hand_loss(output, dense, targets, LossWeights())[1]["heatmaps"].backward()
    assert logits.grad is not None
    silent = logits.grad.abs().amax(dim=(0, 2, 3)) == 0
    assert silent.nonzero().flatten().tolist() == [4, 5]
    _, parts = hand_loss(output, dense, targets._replace(keypoints=keypoints + 9), LossWeights())
    assert parts["heatmaps"] == 0, "none inside: nothing, not 0 / 0"


def test_a_joint_outside_the_crop_pulls_its_heatmap_to_the_edge_and_no_further():
    """A map's expected position cannot leave the crop: beyond the edge there is nothing to be learnt."""
    output = answer(*random_hands(1))
    truth = truth_of(output)
    dense = torch.zeros(1, 21, 8, 8), torch.zeros(1, 21, 8, 8)  # read: the middle
    errors = {}
    for place in (1.0, 1.5, 40.0):
        keypoints = torch.full_like(truth.keypoints, 0.25)
        keypoints[0, 4] = torch.tensor([place, -place])
        targets = complete_targets(keypoints, truth.joints, truth.vertices, truth.pose, truth.betas)
        errors[place] = hand_loss(output, dense, targets, LossWeights())[1]["heatmap_keypoints"].item()
    assert errors[1.5] == errors[40.0] == errors[1.0] == pytest.approx((20 * 0.25 + 1) / 21)


@pytest.mark.parametrize("shape", [(7, 7), (12, 20)])
def test_heatmaps_read_where_their_weight_is(shape):
    """A single bright cell answers with its centre and its depth; two equal ones with the middle."""
    height, width = shape
    logits, depths = torch.full((1, 21, height, width), -60.0), torch.zeros(1, 21, height, width)
    logits[..., 2, 5], depths[..., 2, 5] = 60.0, 0.4
    keypoints, found = read_heatmaps(logits, depths)
    expected = torch.tensor([(5 + 0.5) / width * 2 - 1, (2 + 0.5) / height * 2 - 1])
    torch.testing.assert_close(keypoints, expected.expand(1, 21, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, torch.full((1, 21), 0.4), atol=1e-5, rtol=0)
    logits[..., 2, 1], depths[..., 2, 1] = 60.0, 0.0
    keypoints, found = read_heatmaps(logits, depths)
    assert keypoints[0, 0, 0].item() == pytest.approx((3 + 0.5) / width * 2 - 1, abs=1e-5)
    torch.testing.assert_close(found, torch.full((1, 21), 0.2), atol=1e-5, rtol=0)


def test_a_gaussian_reads_back_to_a_fraction_of_a_cell():
    keypoints = torch.rand(2, 21, 2, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.7
    found, _ = read_heatmaps(gaussian_logits(keypoints), torch.zeros(2, 21, CELLS, CELLS))
    assert (found - keypoints).abs().max() < 0.01 * 2 / CELLS
