"""The traced graph is the torch network, however it is stored; its parts are found by the modules they come from."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import onnx
import pytest
import torch

from handmesh.config.model import ModelConfig
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.model.fastvit import VARIANTS
from handmesh.model.network import HandMeshNet
from handmesh.runtime.export import quantisable
from handmesh.runtime.onnx import metadata_in, session_of
from handmesh.runtime.openvino import _split_after_backbone, import_openvino, openvino_core
from handmesh.runtime.trace import INPUT, build_graph, quiet, with_plain_weights

DEFAULT = ("fastvit_t8", "fastvit_sa12")  # without and with attention


def lively(name: str) -> HandMeshNet:
    """Random, but alive: layer scales that let every block speak, batch norms with the statistics of real activations.

    Freshly made, all blocks are near zero and would hide any mistake in them.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        heads = name == "fastvit_sa12"
        config = ModelConfig(backbone=name, resolution=64, confidence_head=heads, handedness_head=heads)
        network = HandMeshNet(config, HandModel(builtin_hand())).train()
        for parameter_name, parameter in network.named_parameters():
            if "layer_scale" in parameter_name:
                parameter.uniform_(0.1, 0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over the batches seen
        network(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8))
        network.eval()
        network.pose_head.weight.normal_(std=0.05)
        network.betas_head.weight.normal_(std=0.05)
    return network.reparameterize()


def largest_differences(graph: bytes, network: HandMeshNet) -> dict[str, float]:
    """Of each output, over batches of one and of three."""
    session = session_of(graph, threads=1)
    assert [output.name for output in session.get_outputs()] == list(HandOutput._fields)
    found: dict[str, float] = {}
    for count in (1, 3):
        crops = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        answers = session.run(None, {INPUT: crops})
        with torch.no_grad():
            expected = network(torch.from_numpy(crops))
        for field, answer, wanted in zip(HandOutput._fields, answers, expected, strict=True):
            assert answer.shape == tuple(wanted.shape), field
            found[field] = max(found.get(field, 0), float(np.abs(answer - wanted.numpy()).max()))
    assert np.ptp(expected.vertices.numpy(), axis=0).max() > 1e-3, "answers that never change prove nothing"
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow) for name in VARIANTS]
)
def test_the_graph_is_the_network(name):
    network = lively(name)
    graph = build_graph(network, {"note": "kept"}, half=False)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    assert metadata_in(session_of(graph, threads=1))["note"] == "kept"
    assert max(largest_differences(graph, network).values()) < 2e-5


def test_half_the_bytes_are_the_same_network():
    """Of weights that are float16 anyway; only the hand's tables are rounded, to less than 0.001 mm of a vertex."""
    network = lively("fastvit_t8")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    exact, half = (build_graph(network, {}, half=half) for half in (False, True))
    assert len(half) < 0.52 * len(exact)
    assert largest_differences(half, network)["vertices"] < 1e-6
    plain = with_plain_weights(onnx.load_from_string(half))
    assert len(plain) == pytest.approx(len(exact), rel=0.001)
    assert largest_differences(plain, network)["vertices"] < 1e-6
    stored = {constant.name: constant.data_type for constant in onnx.load_from_string(half).graph.initializer}
    assert stored["backbone.network.0.0.convffn.fc1.weight.stored"] == onnx.TensorProto.FLOAT16


def test_weights_are_filled_in_not_traced_again():
    """Tracing is slow, and the second network of the same settings must not answer as the first."""
    for seed in (1, 2):
        network = lively("fastvit_t8")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in network.parameters():
                parameter.mul_(1 + 0.1 * torch.randn(()))
        assert largest_differences(build_graph(network, {}, half=False), network)["vertices"] < 1e-5


@pytest.mark.parametrize("name", DEFAULT)
def test_int8_finds_every_perceptron_and_projection(name):
    """As many as the network has modules of that kind, squeeze-and-excitation's aside."""
    network = lively(name)
    wanted = [
        module_name
        for module_name, module in network.backbone.named_modules()
        if (isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1) and ".se." not in module_name)
        or isinstance(module, torch.nn.Linear)
    ]
    parts = quantisable(with_plain_weights(onnx.load_from_string(build_graph(network, {}, half=True))))
    assert sum(map(len, parts.values())) == len(wanted) > 20
    assert {"patch_embed.2", "network.0", "network.1"} <= parts.keys()
    assert all(node.startswith(f"backbone.{part}") for part, nodes in parts.items() for node in nodes)


def test_openvino_is_split_after_the_backbone():
    """Where features become geometry; in two parts it computes what it does in one."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    network = lively("fastvit_sa12")
    core, exact = openvino_core(), {"INFERENCE_PRECISION_HINT": "f32"}
    model = core.read_model(build_graph(network, {}, half=True))
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    whole = core.compile_model(model.clone(), "CPU", exact)([crops])
    backbone, geometry = (
        core.compile_model(part, "CPU", exact) for part in _split_after_backbone(import_openvino(), model)
    )
    features = backbone([crops])[0]
    assert features.shape == (3, network.backbone.channels, 2, 2)
    answers = geometry([features])
    for field in HandOutput._fields:
        np.testing.assert_allclose(answers[field], whole[field], atol=1e-5, err_msg=field)


def test_threads_that_export_at_a_time_leave_the_log_as_it_was():
    """The one that came later found warnings off, and put that back when it left."""
    before, first_has_left = logging.root.manager.disable, threading.Event()

    def come_later():
        with quiet():
            first_has_left.wait(5)

    later = threading.Thread(target=come_later)
    with quiet():
        later.start()
        time.sleep(0.1)
    first_has_left.set()
    later.join()
    assert logging.root.manager.disable == before


def test_rows_without_a_direction_become_the_same_rotations():
    """Zero rows, parallel rows, rows of one direction: all answers of the pose head, here through its bias alone."""
    network = lively("fastvit_t8")
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
    differences = largest_differences_of_constant(build_graph(network, {}, half=False), network)
    assert differences["pose"] < 2e-6
    assert differences["vertices"] < 1e-6


def largest_differences_of_constant(graph: bytes, network: HandMeshNet) -> dict[str, float]:
    crops = np.zeros((1, 64, 64, 3), np.uint8)
    answers = session_of(graph, threads=1).run(None, {INPUT: crops})
    with torch.no_grad():
        expected = network(torch.from_numpy(crops))
    return {
        field: float(np.abs(answer - wanted.numpy()).max())
        for field, answer, wanted in zip(HandOutput._fields, answers, expected, strict=True)
    }
