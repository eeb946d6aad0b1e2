"""A newcomer's backbone: one file (tests/toy_backbone.py) and one line of a table, and everything takes it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.config.model import BACKBONES
from handmesh.errors import CheckpointError, ConfigError
from handmesh.learn.train import train
from handmesh.model.backbone import build_backbone
from handmesh.model.checkpoint import load_model
from handmesh.model.fastvit_weights import load_backbone_weights
from handmesh.model.surgery.grow import check_growth
from handmesh.model.surgery.unreparameterize import unreparameterize
from handmesh.predict import Predictor
from handmesh.runtime import export
from handmesh.runtime.engine import open_engine


@pytest.fixture
def toy(monkeypatch):
    """The one line."""
    monkeypatch.setitem(BACKBONES, "toy", "toy_backbone")


@pytest.fixture
def run(toy, tiny_config, tmp_path):
    """Four steps of training, with all that helps it, and a heads' model."""
    heads = {"confidence_head": True, "handedness_head": True}
    config = tiny_config(
        steps=4, evaluate_every=4, precision="bfloat16", model={"backbone": "toy", "resolution": 64, **heads}
    )
    train(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_backbone_of_ones_own_goes_all_the_way(run, tiny_config, scene, quick_scenes, tmp_path, monkeypatch):
    """Training, its scores, the default engine, predict, every export, evaluation, and further training."""
    assert {"model.onnx", "deploy.onnx", "deploy.safetensors", "scores.json"} <= {file.name for file in run.iterdir()}
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for name in ("model", "deploy"):
        network, _ = load_model(run / f"{name}.safetensors")
        with torch.no_grad():
            expected = network(torch.from_numpy(crops))
        answered = open_engine(run / f"{name}.safetensors", "cpu")(crops)
        np.testing.assert_allclose(answered.vertices, expected.vertices.numpy(), atol=1e-6)
        np.testing.assert_allclose(answered.handedness, expected.handedness.numpy(), atol=1e-6)
    (hand,) = Predictor(open_engine(run / "deploy.safetensors", "cpu"))(scene.image, handedness="right", min_score=0)[
        :1
    ]
    assert np.isfinite(hand.vertices).all()

    for name in ("GOLDEN_COUNT", "SCORED_COUNT", "CALIBRATION_COUNT"):
        monkeypatch.setattr(export, name, 4)
    monkeypatch.setattr(export, "MAX_INT8_COST_MM", 5.0)  # of a network that hardly was trained
    formats = [("onnx", "float32"), ("onnx", "int8"), ("torch-export", "float32")]
    formats += [("openvino", "float32"), ("openvino", "int8")] if find_spec("openvino") else []
    formats += [("coreml", "float32")] if find_spec("coremltools") else []
    for format, precision in formats:
        out = tmp_path / f"{precision}{export.SUFFIXES[format]}"
        exported = export.export_model(run / "deploy.safetensors", format, out, precision=precision)
        assert exported.error_mm is None or exported.error_mm < 0.01, (format, precision)
    quantised = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert quantised.count("DequantizeLinear") > 8  # the three 1x1 convolutions and the perceptron

    data = tmp_path / "data"
    drawn = CliRunner().invoke(app, ["synth", "--like-freihand", str(data), "--count", "2", "--evaluation", "2"])
    assert drawn.exit_code == 0, drawn.output
    ask = ["evaluate", "--model", str(run / "model.safetensors"), "--data", str(data), "--no-report"]
    scored = CliRunner().invoke(app, [*ask, "--out", str(tmp_path / "scores")])
    assert scored.exit_code == 0, scored.output

    small = {"backbone": "toy", "resolution": 64}
    config = tiny_config(steps=1, model=small, start_from=str(run / "deploy.safetensors"))
    assert load_model(train(config, tmp_path / "further"))[0].config.backbone == "toy"


def test_what_only_fastvit_can_is_refused(toy, run):
    with pytest.raises(ConfigError, match="toy cannot grow into fastvit_t8: FastViTs grow"):
        check_growth("toy", "fastvit_t8")
    with pytest.raises(CheckpointError, match="of FastViT, and this backbone is toy"):
        load_backbone_weights(build_backbone("toy"), {})
    network, _ = load_model(run / "deploy.safetensors")
    crops = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    torch.testing.assert_close(unreparameterize(network, [crops])(crops), network(crops))


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"no backbone 'resnet'.*fastvit_t8"):
        build_backbone("resnet")
