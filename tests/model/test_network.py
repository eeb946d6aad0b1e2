"""The network: folding changes nothing, geometry stays exact, and a checkpoint of it holds no hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from handmesh.config.loss import LossWeights
from handmesh.config.model import ModelConfig
from handmesh.data.sample import HandLabels
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.losses import hand_loss
from handmesh.learn.targets import complete_targets
from handmesh.model.network import DenseHead, HandMeshNet, seen_keypoints, to_device

SHAPES = {"camera": (3,), "pose": (16, 3, 3), "betas": (10,), "vertices": (778, 3), "joints": (21, 3)}
SHAPES |= {"confidence": (), "handedness": (), "joint_confidence": (21,), "seen": (21, 3)}


def crops(count: int, resolution: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, resolution, resolution, 3), dtype=torch.uint8, generator=generator)


def network(backbone: str, **settings: object) -> HandMeshNet:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": backbone, "resolution": 64, **settings})
    return HandMeshNet(config, HandModel(builtin_hand()))


def some_targets(count: int) -> HandLabels:
    pose = torch.from_numpy(matrix_from_vector(0.4 * torch.randn(count, 16, 3))).float()
    betas = torch.randn(count, 10)
    vertices, joints = HandModel(builtin_hand())(pose, betas)
    return complete_targets(joints[..., :2] * 5, joints, vertices, pose, betas)


def largest_difference(first: HandOutput, second: HandOutput) -> float:
    """Over all outputs, each relative to its own scale."""
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("backbone", "steps"), [("fastvit_t8", 3), ("fastvit_ma36", 2)])
def test_trains_and_folds(backbone, steps):
    """The smallest and the largest: a loss comes down, and the reparameterized copy answers as the trained one does.

    Trained for some steps first, so that statistics, scales and branches are none of them at their initial values.
    """
    model = to_device(network(backbone), torch.device("cpu"))
    dense = to_device(DenseHead(model.backbone.pyramid_channels), torch.device("cpu"))
    optimizer = torch.optim.AdamW([*model.parameters(), *dense.parameters()], lr=2e-4)
    images, targets = crops(2), some_targets(2)
    losses = []
    for _ in range(steps):
        output, maps = model.train().forward_with_maps(images, dense)
        loss, _ = hand_loss(output, maps, targets, LossWeights())
        optimizer.zero_grad()
        loss.backward()
        unused = [name for name, value in model.named_parameters() if value.grad is None]
        assert not unused, "every parameter learns"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    with torch.no_grad():
        model.pose_head.weight.normal_(std=0.05)  # answers that depend on the image, or folding would be easy to pass
        images = crops(3, seed=1)
        trained, reparameterized = model.eval()(images), model.reparameterize()
        answered = reparameterized(images)
    spread = (trained.vertices[0] - trained.vertices[1]).abs().max()
    assert spread > 1e-3
    assert largest_difference(trained, answered) < 1e-4
    assert reparameterized.reparameterized
    assert sum(p.numel() for p in reparameterized.parameters()) < sum(p.numel() for p in model.parameters())
    assert not reparameterized.training
    assert not model.reparameterized, "the trained one is left as it was"


def test_folding_twice_is_folding_once(lively_network):
    """Folding a reparameterized copy once made a network whose heads had never been trained."""
    images = crops(2)
    once = lively_network.reparameterize()
    with torch.no_grad():
        assert largest_difference(once(images), once.reparameterize()(images)) == 0


def test_both_forwards_answer_alike(lively_network):
    images = crops(3)
    with torch.no_grad():
        alone = lively_network(images)
        output, maps = lively_network.forward_with_maps(images)
    assert maps is None
    for first, second in zip(alone, output, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("resolution", [64, 96])
def test_answers_have_the_documented_shapes(batch, resolution, lively_network):
    with torch.no_grad():
        output = lively_network(crops(batch, resolution))
    assert {name: tuple(value.shape[1:]) for name, value in output._asdict().items()} == SHAPES
    assert {value.shape[0] for value in output} == {batch}
    assert {value.dtype for value in output} == {torch.float32}
    identity = torch.eye(3).expand_as(output.pose)
    torch.testing.assert_close(output.pose @ output.pose.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(output.pose), torch.ones(batch, 16), atol=1e-5, rtol=0)


def test_an_answer_is_one_hand(lively_network):
    """Vertices and joints are what the hand model gives for the pose and the shape beside them."""
    with torch.no_grad():
        output = lively_network(crops(2))
        vertices, joints = HandModel(builtin_hand())(output.pose, output.betas)
    torch.testing.assert_close(output.vertices, vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.joints, joints, atol=1e-6, rtol=0)


def test_images_do_not_see_each_other(lively_network):
    """In evaluation a crop's answer does not depend on its batch."""
    images = crops(3)
    with torch.no_grad():
        together = lively_network(images)
        alone = [lively_network(image[None]) for image in images]
    for name in SHAPES:
        torch.testing.assert_close(
            getattr(together, name), torch.cat([getattr(one, name) for one in alone]), atol=1e-5, rtol=1e-5
        )


def test_the_backbone_sees_imagenet_normalised_colours(lively_network):
    """Red, green, blue in this order, (value / 255 - mean) / std: written out in numpy."""
    seen = []
    hook = lively_network.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = crops(2)
    try:
        with torch.no_grad():
            lively_network(images)
    finally:
        hook.remove()
    expected = (images.numpy() / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_before_training_every_photo_gets_the_hand_at_rest():
    model = network("fastvit_t8").eval()
    with torch.no_grad():
        output = model(crops(2))
    rest, _ = HandModel(builtin_hand())(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10))
    assert (output.vertices - rest).abs().max() < 0.005
    assert output.camera[:, 0].tolist() == pytest.approx([6.5, 6.5], abs=0.3)


def test_geometry_is_float32_under_autocast(lively_network):
    """bfloat16 has 8 bits: a mesh computed in it would be off by half a millimetre and its rotations no rotations."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = lively_network(crops(2))
        vertices, _ = HandModel(builtin_hand())(output.pose, output.betas)
    assert {value.dtype for value in output} == {torch.float32}
    identity = torch.eye(3).expand_as(output.pose)
    torch.testing.assert_close(output.pose @ output.pose.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.vertices, vertices, atol=1e-6, rtol=0)


def test_the_state_holds_no_hand(lively_network):
    """A checkpoint must never contain MANO: no array of the hand, in any shape, and no constant of ours."""
    hand = builtin_hand()
    sizes = {hand.v_template.size, hand.shapedirs.size, hand.posedirs.size, hand.weights.size, hand.J_regressor.size}
    state = lively_network.state_dict()
    assert not [name for name in state if name.startswith(("hand.", "image_"))]
    assert not [name for name, value in state.items() if value.numel() in sizes]


def test_the_dense_head_answers_at_stride_8_in_float32(lively_network):
    dense = DenseHead(lively_network.backbone.pyramid_channels).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, maps = lively_network.forward_with_maps(crops(2, 96), dense)
    assert maps is not None
    logits, depths = maps
    assert logits.shape == depths.shape == (2, 21, 12, 12)
    assert logits.dtype == depths.dtype == torch.float32


def test_a_keypoint_head_changes_nothing_but_what_is_seen():
    plain, headed = network("fastvit_t8").eval(), network("fastvit_t8", keypoint_head=True).eval()
    assert not headed.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    with torch.no_grad():
        headed.keypoint_head.smooth[2].running_var.uniform_(0.5, 2)
        headed.keypoint_head.smooth[2].running_mean.normal_()
        headed.keypoint_head.predict.weight.normal_(std=3)
        images = crops(3, 96)
        without, answer, folded = plain(images), headed(images), headed.reparameterize()(images)
        answered, maps = headed.forward_with_maps(images)
    for name in HandOutput._fields[:-1]:
        torch.testing.assert_close(getattr(answer, name), getattr(without, name), rtol=0, atol=0)
    assert (without.seen == 0).all()
    assert ((answer.seen[..., :2].abs() < 1) & (answer.seen[..., 2:] > 0) & (answer.seen[..., 2:] <= 1)).all()
    assert answer.seen[..., :2].std(dim=0).min() > 0, "it depends on the picture"
    assert maps is not None
    torch.testing.assert_close(seen_keypoints(maps[0]), answered.seen)
    torch.testing.assert_close(folded.seen, answer.seen, atol=1e-3, rtol=0)
    assert not [module for module in headed.reparameterize().keypoint_head.modules() if hasattr(module, "running_var")]


def test_a_joint_is_seen_where_its_heatmap_has_its_peak():
    """And with half of the mass, if it may be in two places as well; no place is between them."""
    logits = torch.full((1, 21, 10, 20), -20.0)
    logits[0, :, 2, 5] = 5.0
    logits[0, 1, 2, 6] = 5.0  # between two cells
    logits[0, 2, 8, 18] = 4.9
    seen = seen_keypoints(logits)[0]
    at = torch.tensor([(5 + 0.5) / 10 - 1, (2 + 0.5) / 5 - 1])
    torch.testing.assert_close(seen[0], torch.tensor([*at, 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[1], torch.tensor([at[0] + 0.05, at[1], 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[2, :2], at, atol=1e-4, rtol=0)
    assert seen[2, 2].item() == pytest.approx(1 / (1 + math.exp(-0.1)), abs=1e-3)


@pytest.mark.parametrize(
    ("confidence", "handedness", "joints"), [(True, False, True), (False, True, True), (True, True, False)]
)
def test_optional_heads_answer_probabilities_and_change_nothing_else(confidence, handedness, joints):
    """Each has its own layer: the hand is the same with and without it, and a network without it answers 1."""
    plain = network("fastvit_t8").eval()
    heads = {"confidence_head": confidence, "handedness_head": handedness, "joint_confidence_head": joints}
    headed = network("fastvit_t8", **heads).eval()
    unknown = headed.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown.unexpected_keys
    with torch.no_grad():
        for head in (headed.confidence_head, headed.handedness_head, headed.joint_confidence_head):
            if head is not None:
                head.weight.normal_(std=10)
        images = crops(5)
        without, answer = plain(images), headed(images)
    for name in ("camera", "pose", "betas", "vertices", "joints"):
        torch.testing.assert_close(getattr(answer, name), getattr(without, name), rtol=0, atol=0)
    assert answer.joint_confidence.shape == (5, 21)
    said = ((answer.confidence, confidence), (answer.handedness, handedness), (answer.joint_confidence, joints))
    for values, there in said:
        assert values.shape[0] == 5
        assert ((values > 0) & (values < 1)).all() if there else (values == 1).all()
