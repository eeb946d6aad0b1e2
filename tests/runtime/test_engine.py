"""Engines: what leaves them is the network's own answer, as numpy arrays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from handmesh.bench.engines import bench_engines
from handmesh.errors import CheckpointError, ConfigError
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.model.bundled import BUNDLED_MODEL, bundled_model_path
from handmesh.model.checkpoint import save_model
from handmesh.model.network import HandMeshNet
from handmesh.predict import Predictor
from handmesh.runtime import openvino
from handmesh.runtime.engine import Engine, open_engine
from handmesh.runtime.onnx import OnnxEngine
from handmesh.runtime.openvino import openvino_core
from handmesh.runtime.torch import TorchEngine

needs_bundled_model = pytest.mark.skipif(
    not bundled_model_path().is_file(), reason="no bundled model: `handmesh train` makes one"
)


# Every engine that is installed gives the same answers; what follows is true of each.
@pytest.fixture(scope="module", params=["onnx", "torch", "openvino"])
def engine(model_file, request) -> Engine:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    return open_engine(model_file, "cpu", engine=request.param, threads=1)


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def largest_difference(first: HandOutput, second: HandOutput) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def test_the_engine_answers_as_the_trained_network_does(engine, lively_network):
    """They run the reparameterized copy; the file holds the unreparameterized one."""
    images = crops(3)
    with torch.no_grad():
        expected = HandOutput(*(value.numpy() for value in lively_network.eval()(torch.from_numpy(images))))
    answered = engine(images)
    assert all(isinstance(value, np.ndarray) and value.dtype == np.float32 for value in answered)
    assert largest_difference(answered, expected) < 1e-4


def test_a_reparameterized_file_is_the_same_engine(engine, lively_network, tmp_path):
    save_model(tmp_path / "reparameterized.safetensors", lively_network.reparameterize(), training={})
    reparameterized = open_engine(tmp_path / "reparameterized.safetensors")
    assert largest_difference(reparameterized(crops(2)), engine(crops(2))) < 1e-4


def test_the_engine_says_what_it_is(engine, model_file):
    assert engine.resolution == 64
    assert engine.hand is builtin_hand()
    assert engine.record["training"] == {"steps": 0}
    package = engine.name.split()[0]
    assert engine.name == f"{package} {metadata.version(package).split('+')[0]} float32 on cpu"


def test_a_model_of_mano_answers_with_manos_hand(lively_network, stand_in_mano, tmp_path):
    """From the file to left hands in a photograph: faces, sizes and mirroring are those of the hand in the record."""
    config = lively_network.config.model_copy(update={"hand": "mano"})
    save_model(tmp_path / "mano.safetensors", HandMeshNet(config, HandModel(stand_in_mano)), training={})
    engine, torch_engine = (open_engine(tmp_path / "mano.safetensors", engine=name) for name in ("onnx", "torch"))
    assert largest_difference(engine(crops(2)), torch_engine(crops(2))) < 1e-5
    assert engine.hand.sha256 == stand_in_mano.sha256
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    (left,) = Predictor(engine)(photo, handedness="left")
    np.testing.assert_array_equal(left.faces, stand_in_mano.mirrored().faces)


def test_threads_may_share_an_engine(engine):
    images = [crops(1, seed) for seed in range(8)]
    alone = [engine(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine, images))
    assert max(largest_difference(a, b) for a, b in zip(alone, together, strict=True)) < 1e-6


def test_the_engine_leaves_gradients_and_crops_alone(engine):
    images = crops(2)
    before = images.copy()
    engine(images)
    np.testing.assert_array_equal(images, before)
    assert torch.is_grad_enabled()


def test_answers_do_not_depend_on_the_batch_nor_the_memory_layout(engine):
    images = crops(5)
    apart = [engine(image[None]) for image in images]
    together = HandOutput(*(np.concatenate(parts) for parts in zip(*apart, strict=True)))
    assert largest_difference(engine(images), together) < 1e-5
    assert largest_difference(engine(np.asfortranarray(images)), together) < 1e-5
    mirrored = images[:, :, ::-1]
    assert largest_difference(engine(mirrored), engine(mirrored.copy())) < 1e-5
    images.flags.writeable = False
    assert largest_difference(engine(images), together) < 1e-5


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_the_optional_heads_come_through(name, lively_network, tmp_path):
    if name == "openvino":
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = lively_network.config.model_copy(update={"confidence_head": True, "handedness_head": True})
        network = HandMeshNet(config, HandModel(builtin_hand())).eval()
    save_model(tmp_path / "heads.safetensors", network, training={})
    with torch.no_grad():
        expected = HandOutput(*(value.numpy() for value in network(torch.from_numpy(crops(3)))))
    answered = open_engine(tmp_path / "heads.safetensors", engine=name)(crops(3))
    assert not np.allclose(answered.confidence, answered.handedness)
    assert largest_difference(answered, expected) < 1e-4


def test_bfloat16_leaves_the_geometry_in_float32(model_file):
    """Only the features are coarse: rotations stay rotations, and the mesh is the hand model's of pose and shape."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not multiply bfloat16")
    coarse = open_engine(model_file, engine="openvino", precision="bfloat16")(crops(3))
    exact = open_engine(model_file)(crops(3))
    assert 0 < np.linalg.norm(coarse.pose - exact.pose) < 0.1 * np.linalg.norm(exact.pose)
    np.testing.assert_allclose(
        coarse.pose @ coarse.pose.swapaxes(-1, -2), np.broadcast_to(np.eye(3), (3, 16, 3, 3)), atol=1e-5
    )
    vertices, joints = HandModel(builtin_hand())(torch.from_numpy(coarse.pose), torch.from_numpy(coarse.betas))
    np.testing.assert_allclose(coarse.vertices, vertices, atol=1e-6)
    np.testing.assert_allclose(coarse.joints, joints, atol=1e-6)


RUN_WITHOUT_TORCH = """
import sys
import numpy as np
from handmesh.runtime.engine import open_engine
engine = open_engine()
engine(np.zeros((1, engine.resolution, engine.resolution, 3), np.uint8))
print(engine.name, "torch" in sys.modules, "onnx" in sys.modules)
"""


@needs_bundled_model
def test_the_default_engine_needs_no_torch_and_writes_nothing(tmp_path):
    """Importing torch takes longer than everything else together."""
    environment = os.environ | {"HANDMESH_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", RUN_WITHOUT_TORCH]
    run = subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.split()[0] == "onnxruntime"
    assert run.stdout.split()[-2:] == ["False", "False"]
    assert list(tmp_path.iterdir()) == []


LOOK_FOR_TELEMETRY = """
import socket, sys
looked_up = []
def refuse(name, *arguments, **options):
    looked_up.append(name)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = lambda self, address: refuse(address)
import numpy as np
from handmesh.runtime.engine import open_engine
engine = open_engine(engine="openvino")
engine(np.zeros((1, engine.resolution, engine.resolution, 3), np.uint8))
import threading, time
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(2)
print(looked_up, [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module])
"""


@needs_bundled_model
def test_openvino_is_kept_from_reporting_home(tmp_path):
    """Importing it asks for an address of a statistics server, and leaves a file in the user's home."""
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOOK_FOR_TELEMETRY]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("[] []\n", "")
    assert list(tmp_path.iterdir()) == []


def test_threads_that_come_first_together_share_one_core(monkeypatch):
    """Each got a core of its own, with which the process may crash when one of them is gone."""
    made = []

    def core() -> str:
        time.sleep(0.05)
        made.append("core")
        return made[-1]

    monkeypatch.setattr(openvino, "import_openvino", lambda: SimpleNamespace(Core=core))
    monkeypatch.setattr(openvino, "_core", cache(openvino._core.__wrapped__))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: openvino.openvino_core(), range(3)))
    assert made == ["core"]


def test_a_cpu_gets_onnxruntime_unless_told_otherwise(model_file, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("sys.platform", "linux")
    assert isinstance(open_engine(model_file), OnnxEngine)
    assert isinstance(open_engine(model_file, "cpu"), OnnxEngine)
    assert isinstance(open_engine(model_file, engine="torch"), TorchEngine)


def test_what_an_engine_cannot_do_is_refused(model_file, monkeypatch):
    monkeypatch.setattr("handmesh.runtime.torch.cpu_gains_by_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="does not multiply bfloat16: take float32"):
        open_engine(model_file, "cpu", engine="torch", precision="bfloat16")
    with pytest.raises(ConfigError, match=r"onnx engine computes in float32, not in bfloat16"):
        open_engine(model_file, "cpu", precision="bfloat16")
    with pytest.raises(ConfigError, match="not in float16"):
        open_engine(model_file, "cpu", engine="torch", precision="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no cuda device"):
            open_engine(model_file, "cuda", engine="torch")
        with pytest.raises(ConfigError, match=r"no CUDA: install onnxruntime-gpu"):
            open_engine(model_file, "cuda", engine="onnx")


@pytest.mark.parametrize(
    ("engine", "device", "said"),
    [
        ("onnx", "mps", "The onnx engine runs on cpu or cuda, not on 'mps'"),
        ("openvino", "cuda", "The openvino engine runs on cpu, not on 'cuda'"),
        ("auto", "tpu", "The torch engine runs on cpu or cuda or mps, not on 'tpu'"),
        ("tensorrt", "auto", "no engine 'tensorrt'. Known: auto, onnx, torch, openvino"),
    ],
)
def test_no_other_engine_or_device_is_taken_in_silence(engine, device, said, model_file):
    """Each of these was ONNX Runtime, or OpenVINO, on the CPU."""
    with pytest.raises(ConfigError, match=said):
        open_engine(model_file, device, engine=engine)


def test_an_exported_file_runs_on_its_own_engine_only(model_file, tmp_path):
    graph = shutil.copy(model_file.with_suffix(".onnx"), tmp_path)
    assert open_engine(graph).name.startswith("onnxruntime")
    with pytest.raises(ConfigError, match="which torch does not run"):
        open_engine(graph, engine="torch")
    with pytest.raises(ConfigError, match="no engine 'tensorrt'"):
        open_engine(tmp_path / "graph.xml", engine="tensorrt")  # it was OpenVINO, whatever was asked for
    with pytest.raises(ConfigError, match="computes in float32, not in bfloat16"):
        open_engine(graph, precision="bfloat16")
    with pytest.raises(ConfigError, match="for one engine"):
        bench_engines(graph)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_graphs_answer_as_the_network_does(model_file):  # every batch size, filled up or cut
    exact = open_engine(model_file, "cpu")
    for precision, tolerance in (("float32", 1e-3), ("float16", 2e-2)):
        on_gpu = open_engine(model_file, "cuda", precision=precision)
        for count in (1, 3, 70, 1):
            assert largest_difference(on_gpu(crops(count)), exact(crops(count))) < tolerance


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")
def test_apples_gpu_answers_as_the_network_does(model_file):
    assert largest_difference(open_engine(model_file, "mps")(crops(3)), open_engine(model_file, "cpu")(crops(3))) < 1e-3


def test_threads_of_torch_are_set_for_a_cpu(model_file):
    before = torch.get_num_threads()
    try:
        open_engine(model_file, "cpu", engine="torch", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_model_that_is_not_there_is_refused_with_advice(tmp_path):
    with pytest.raises(CheckpointError, match=rf"No model at .*absent.*'{BUNDLED_MODEL}'"):
        open_engine(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="No model at"):
        open_engine(tmp_path)


@needs_bundled_model
def test_the_bundled_model_opens_by_default_and_by_name():
    default, named = open_engine(), open_engine(BUNDLED_MODEL)
    images = np.full((1, default.resolution, default.resolution, 3), 90, np.uint8)
    assert largest_difference(default(images), named(images)) == 0
