"""The graph that is written without torch is the torch network: every variant, every head, rows without direction."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from handmesh.config import ModelConfig
from handmesh.errors import CheckpointError
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.model.fastvit import VARIANTS
from handmesh.model.network import HandMeshNet
from handmesh.runtime.onnx_graph import INPUT, build_graph

DEFAULT = ("fastvit_t8", "fastvit_sa12")  # without and with attention


def folded_network(name: str, resolution: int = 64) -> HandMeshNet:
    """Random, but alive: layer scales that let every block speak, batch norms with the statistics of real activations.

    Freshly made, all blocks are near zero and would hide any mistake in them.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        heads = name == "fastvit_sa12"
        config = ModelConfig(backbone=name, resolution=resolution, confidence_head=heads, handedness_head=heads)
        network = HandMeshNet(config, HandModel(builtin_hand())).train()
        for parameter_name, parameter in network.named_parameters():
            if "layer_scale" in parameter_name:
                parameter.uniform_(0.1, 0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over the batches seen
        network(torch.randint(0, 256, (8, resolution, resolution, 3), dtype=torch.uint8))
        network.eval()
        network.pose_head.weight.normal_(std=0.05)
        network.betas_head.weight.normal_(std=0.05)
    return network.reparameterize()


def weights_of(network: HandMeshNet) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in VARIANTS]
)
def test_the_graph_is_the_network(name):
    network = folded_network(name)
    graph = build_graph(network.config, weights_of(network), builtin_hand(), {"note": "kept"})
    onnx.checker.check_model(graph, full_check=True)
    session = session_of(graph)
    assert [output.name for output in session.get_outputs()] == list(HandOutput._fields)
    assert session.get_modelmeta().custom_metadata_map["note"] == "kept"
    for count in (1, 3):
        crops = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        answers = session.run(None, {INPUT: crops})
        with torch.no_grad():
            expected = network(torch.from_numpy(crops))
        for field, answer, wanted in zip(HandOutput._fields, answers, expected, strict=True):
            assert answer.shape == tuple(wanted.shape), field
            np.testing.assert_allclose(answer, wanted.numpy(), atol=2e-5, err_msg=field)
    assert np.ptp(expected.vertices.numpy(), axis=0).max() > 1e-3, "answers that never change prove nothing"


def test_rows_without_a_direction_become_the_same_rotations():
    """Zero rows, parallel rows, rows of one direction: all answers of the pose head, here through its bias alone."""
    network = folded_network("fastvit_t8")
    awkward = torch.zeros(16, 6)
    awkward[0] = torch.tensor([0, 0, 0, 0, 1, 0])
    awkward[1] = torch.tensor([1, 2, 3, 2, 4, 6])
    awkward[2] = torch.tensor([1, 0, 0, 3, 0, 0])
    awkward[3] = torch.tensor([0, 1, 0, 0, 0, 0])
    awkward[4] = torch.tensor([1e-5, 0, 0, 0, 1, 0])
    awkward[5] = torch.tensor([1e20, 0, 0, 0, 1e-3, 0])
    awkward[7:] = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.pose_head.weight.zero_()
        network.pose_head.bias.copy_(awkward.flatten())
        crops = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
        expected = network(crops)
    session = session_of(build_graph(network.config, weights_of(network), builtin_hand()))
    pose, vertices = session.run(["pose", "vertices"], {INPUT: crops.numpy()})
    np.testing.assert_allclose(pose, expected.pose.numpy(), atol=2e-6)
    np.testing.assert_allclose(vertices, expected.vertices.numpy(), atol=1e-6)


def test_weights_that_do_not_fit_are_refused():
    network = folded_network("fastvit_t8")
    weights = weights_of(network)

    def build(weights):
        return build_graph(network.config, weights, builtin_hand())

    missing = {name: value for name, value in weights.items() if name != "camera_head.bias"}
    with pytest.raises(CheckpointError, match=r"missing camera_head\.bias"):
        build(missing)
    with pytest.raises(CheckpointError, match=r"unknown backbone\.network\.0\.0\.extra"):
        build(weights | {"backbone.network.0.0.extra": np.zeros(1, np.float32)})
    without_a_block = {name: value for name, value in weights.items() if not name.startswith("backbone.network.4.1.")}
    with pytest.raises(CheckpointError, match=r"come \[0, 2, 3\], with a gap"):
        build(without_a_block)
