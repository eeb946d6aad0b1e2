"""The second head: it begins as no head, sees what lies at the joints, learns, and goes wherever a model goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample
from trained_networks import images

from handmesh.config.loss import LossWeights
from handmesh.config.model import ModelConfig
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandOutput
from handmesh.learn.losses import hand_loss
from handmesh.learn.targets import complete_targets
from handmesh.learn.train import start_weights
from handmesh.model.checkpoint import load_model, save_model
from handmesh.model.network import HandMeshNet
from handmesh.model.surgery.grow import grow
from handmesh.model.surgery.unreparameterize import unreparameterize
from handmesh.model.token_head import TokenHead, sampled
from handmesh.runtime.engine import open_engine
from handmesh.runtime.graph import write_with_graph
from handmesh.runtime.openvino import openvino_core


def with_token_head(plain: HandMeshNet, seed: int = 0) -> HandMeshNet:
    """The same network with the head, as it begins."""
    torch.manual_seed(seed)
    model = HandMeshNet(plain.config.model_copy(update={"token_head": True}), plain.hand)
    model.load_state_dict(model.state_dict() | plain.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def lively(lively_network) -> HandMeshNet:
    """One whose corrections are as large as answers differ."""
    model = with_token_head(lively_network)
    with torch.no_grad():
        model.token_head.corrections.weight.normal_(std=0.01)
    return model


@torch.no_grad()
def answers(model: HandMeshNet, crops: torch.Tensor) -> HandOutput:
    return HandOutput(*(value.numpy() for value in model(crops)))


def same(found: HandOutput, wanted: HandOutput, atol: float) -> None:
    for name, one, other in zip(HandOutput._fields, found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=atol, err_msg=name)


def test_without_it_a_network_is_what_it_was(lively_network):
    assert not ModelConfig().token_head
    assert not [name for name in lively_network.state_dict() if name.startswith("token_head")]


def test_it_begins_as_if_it_were_not_there(lively_network):
    crops = images(3, 0)
    plain, found = answers(lively_network, crops), answers(with_token_head(lively_network), crops)
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (2, 5), (28, 28)])
def test_sampling_is_bilinear(height, width):
    torch.manual_seed(0)
    values, points = torch.randn(3, 4, height, width), 3 * torch.rand(3, 21, 2) - 1.5  # beyond the crop too
    wanted = grid_sample(values, points[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
    torch.testing.assert_close(sampled(values, points), wanted, atol=2e-6, rtol=1e-5)


def test_it_sees_what_lies_at_the_joints_and_nothing_else():
    torch.manual_seed(0)
    head = TokenHead((6, 9), 109)
    torch.nn.init.normal_(head.corrections.weight)
    maps = tuple(torch.randn(2, *shape).requires_grad_() for shape in ((6, 16, 16), (9, 4, 4)))
    keypoints = torch.full((2, 21, 2), -0.5)
    keypoints[0, 4] = torch.tensor([0.75, 0.3125])  # cells 13 and 14 across, 10 down
    head(maps, keypoints)[0].square().sum().backward()
    seen = maps[0].grad.abs().sum(dim=1) > 0
    cells = {(3, 3), (3, 4), (4, 3), (4, 4), (10, 13), (10, 14)}
    assert {tuple(cell) for cell in seen[0].nonzero().tolist()} == cells
    assert not seen[1].any(), "another crop's"


def test_all_of_it_learns(lively_network):
    """With the backbone as it is: what falls is this head's doing, and the three layers learn beside it."""
    torch.manual_seed(0)
    model = with_token_head(lively_network).train()
    model.backbone.requires_grad_(False).eval()
    crops, pose = images(8, 0), torch.from_numpy(matrix_from_vector(0.4 * torch.randn(8, 16, 3))).float()
    betas = torch.randn(8, 10)
    vertices, joints = model.hand(pose, betas)
    targets = complete_targets(joints[..., :2] * 5, joints, vertices, pose, betas)
    optimizer = torch.optim.Adam(model.token_head.parameters(), lr=5e-4)
    losses = []
    for _ in range(30):
        loss, _ = hand_loss(model(crops), None, targets, LossWeights())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    heads = (model.token_head, model.camera_head, model.pose_head, model.betas_head)
    assert all(value.grad.any() for head in heads for name, value in head.named_parameters() if name != "qkv.bias")
    by_part = model.token_head.qkv.bias.grad.abs().reshape(3, -1).amax(dim=1)
    assert by_part[1] < 1e-3 * by_part[2], "softmax does not see what is added to all keys"


@pytest.mark.parametrize("engine", ["onnx", "torch", "openvino", "openvino bfloat16"])
def test_engines_answer_as_the_network_does(engine, lively, once):
    def write(folder):
        folder.mkdir()
        write_with_graph(folder / "tokens.safetensors", lively, training={})

    path = once("tokens", write) / "tokens.safetensors"
    name, _, precision = engine.partition(" ")
    if name == "openvino":
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
        if precision and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor does not multiply bfloat16")
    opened = open_engine(path, "cpu", engine=name, precision=precision or "auto", threads=1)
    for count in (1, 3):
        crops = images(count, count)
        found, wanted = opened(crops.numpy()), answers(lively, crops)
        # A network with random weights makes 8 bits of bfloat16 to a hundredth of its answers.
        same(found, wanted, 0.06 if precision else 1e-4)
        assert np.abs(np.linalg.det(found.pose) - 1).max() < 1e-5, "geometry is never coarse"


def test_it_is_saved_and_loaded(lively, tmp_path):
    save_model(tmp_path / "tokens.safetensors", lively, training={})
    loaded, record = load_model(tmp_path / "tokens.safetensors")
    assert record["model"]["token_head"]
    for one, other in zip(answers(loaded, images(2, 0)), answers(lively, images(2, 0)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_can_add_it_to_a_model_and_leave_it_out_again(lively_network, tiny_config, tmp_path):
    crops = images(2, 0)
    save_model(tmp_path / "plain.safetensors", lively_network, training={})
    for start, on in (("plain", True), ("tokens", False), ("tokens", True)):
        config = tiny_config(start_from=str(tmp_path / f"{start}.safetensors"))
        model = (
            with_token_head(lively_network, seed=1) if on else HandMeshNet(lively_network.config, lively_network.hand)
        )
        torch.nn.init.normal_(model.pose_head.weight)
        start_weights(model, config, None)
        same(answers(model.eval(), crops), answers(lively_network, crops), 1e-6)
        if start == "plain":
            save_model(tmp_path / "tokens.safetensors", model, training={})


def test_it_is_carried_through_surgery(lively):
    crops, some = images(2, 0), [images(16, seed) for seed in range(100, 102)]
    wanted = answers(lively, crops)
    same(answers(unreparameterize(lively.reparameterize(), some), crops), wanted, 2e-4)
    same(answers(grow(lively, "fastvit_s12", some), crops), wanted, 2e-4)
