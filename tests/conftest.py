"""What several test files share: a few renders, a small network in a file, and photographs whose hand is known."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before numpy and torch are imported: tests measure nothing, so they leave the other cores to others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
from filelock import FileLock

RESOLUTION = 64  # px, the smallest crop a network takes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes; none for files or tests that are named: they would have to start first."""
    return 0 if any(".py" in argument for argument in config.args) else 2


@pytest.fixture(scope="session", autouse=True)
def cache_of_these_tests(tmp_path_factory) -> Iterator[None]:
    """What would go into the user's cache goes elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDMESH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make) -> the file or folder that `make(path)` wrote, in one of pytest's processes for all of them."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        path, half = folder / name, folder / f"half-{name}"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(half)
                half.rename(path)
        return path

    return made_once


@pytest.fixture(scope="session", autouse=True)
def traced_once(once) -> Iterator[None]:
    """Tracing takes seconds: what one of pytest's processes has traced the others read."""
    from handmesh.runtime import trace

    traced = trace._traced

    @functools.cache
    def found_or_traced(config: Any) -> bytes:
        name = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        return once(f"{name}.onnx", lambda path: path.write_bytes(traced(config))).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_traced", found_or_traced)
        yield


@pytest.fixture(scope="session")
def tiny_pack_directory(once) -> Path:
    """Where a run with `data.synthetic: {count: 16, size: 96}` and 8 held-out images finds its renders."""
    from handmesh.config.data import SyntheticData
    from handmesh.data.sources import training_pack, validation_pack

    def render(directory: Path) -> None:
        settings = SyntheticData(directory=directory, count=16, size=96, workers=1)
        with pytest.MonkeyPatch.context() as patch:  # hundreds of backgrounds that texture objects take seconds to draw
            patch.setattr("handmesh.synth.dataset.Backgrounds", lambda seed, *_: _two_backgrounds(seed))
            training_pack(settings)
            validation_pack(settings, 8)

    return once("packs", render)


@pytest.fixture(scope="session")
def tiny_pack(tiny_pack_directory):
    """16 foregrounds of 96 px."""
    from handmesh.synth import Pack

    return Pack(tiny_pack_directory / "train-16-96px-seed0")


@pytest.fixture
def tiny_config(tiny_pack_directory, few_backgrounds) -> Callable[..., Any]:
    """make(key=value, ...) -> a TrainConfig on the renders above, small enough for a test."""
    from handmesh.config.load import parse_config

    def make(**changes: Any) -> Any:
        settings = {
            "model": {"backbone": "fastvit_t8", "resolution": RESOLUTION},
            "data": {"synthetic": {"directory": str(tiny_pack_directory), "count": 16, "size": 96, "workers": 1}},
            "batch_size": 2,
            "loader_workers": 0,
            "evaluation_count": 8,
            "tensorboard": False,
            **changes,
        }
        return parse_config(settings, "test")

    return make


@pytest.fixture
def weights_alone(monkeypatch) -> None:
    """Training without the graphs that it writes beside its models: tracing takes longer than the runs of tests."""
    from handmesh.model.checkpoint import save_model

    monkeypatch.setattr("handmesh.learn.train.write_with_graph", save_model)


@pytest.fixture
def few_backgrounds(monkeypatch) -> None:
    """Training keeps hundreds of backgrounds in memory; here two, drawn once."""
    monkeypatch.setattr("handmesh.data.sources.Backgrounds", _two_backgrounds)


@pytest.fixture
def quick_scenes(monkeypatch) -> None:
    """Commands and packs draw 256 backgrounds before the first scene; here two."""
    from handmesh.synth import Backgrounds

    def few(seed: int = 0, count: int = 2, folder: Path | None = None) -> Backgrounds:
        return Backgrounds(seed, 2, folder)

    monkeypatch.setattr("handmesh.synth.Backgrounds", few)
    monkeypatch.setattr("handmesh.synth.dataset.Backgrounds", few)


@functools.cache
def _two_backgrounds(seed: int, count: int = 2) -> Any:
    from handmesh.synth import Backgrounds

    return Backgrounds(seed, count=2)


@pytest.fixture(scope="session")
def lively_network() -> Any:
    """A T8 that was never trained, yet answers every crop differently: wide heads, batch-norm statistics of images."""
    import torch

    from handmesh.config.model import ModelConfig
    from handmesh.hand import builtin_hand
    from handmesh.hand.layer import HandModel
    from handmesh.model.network import HandMeshNet

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = HandMeshNet(ModelConfig(backbone="fastvit_t8", resolution=RESOLUTION), HandModel(builtin_hand()))
        model.train()
        for _ in range(4):
            model(torch.randint(0, 256, (4, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8))
        model.eval()
        model.pose_head.weight.normal_(std=0.05)
        model.pose_head.bias += 0.4 * torch.randn(96)
        model.betas_head.weight.normal_(std=0.05)
        model.camera_head.weight.normal_(std=1e-3)
        model.camera_head.bias.copy_(torch.tensor([6.5, 0.08, -0.01]))  # the rest hand reaches towards -x
    return model


@pytest.fixture(scope="session")
def model_file(once, lively_network) -> Path:
    """`lively_network` as a model file, with its graph beside it."""
    from handmesh.runtime.graph import write_with_graph

    def write(folder: Path) -> None:
        folder.mkdir()
        write_with_graph(folder / "tiny.safetensors", lively_network, training={"steps": 0})

    return once("model", write) / "tiny.safetensors"


@pytest.fixture
def stand_in_mano(tmp_path, monkeypatch) -> Any:
    """A hand in MANO's format, added as MANO: ours, a little larger and with a mean pose. -> its arrays."""
    from dataclasses import replace

    from handmesh.hand import builtin_hand
    from handmesh.hand.mano_file import add_mano
    from handmesh.hand.models import load_hand

    ours = builtin_hand()
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "mano"))
    larger = {name: getattr(ours, name) * 1.06 for name in ("v_template", "J", "shapedirs", "posedirs")}
    replace(ours, **larger, hands_mean=ours.hands_mean + 0.1).save(tmp_path / "MANO_RIGHT.npz")
    add_mano(tmp_path / "MANO_RIGHT.npz")
    return load_hand("mano")


@pytest.fixture(scope="session")
def scene():
    """A synthetic photograph of 160 px whose hand is known: image, keypoints, vertices, intrinsics, ..."""
    from handmesh.hand import builtin_hand
    from handmesh.synth import Backgrounds, SceneRenderer, sample_generator

    renderer = SceneRenderer(builtin_hand(), size=160, backgrounds=Backgrounds(0, count=2))
    return renderer.render(sample_generator(3, 1))
