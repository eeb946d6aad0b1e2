"""A run that starts from a model is of its architecture, unless the settings say another."""

from __future__ import annotations

import pytest
import yaml

from handmesh.config.load import load_config
from handmesh.config.model import ModelConfig
from handmesh.errors import CheckpointError, ConfigError
from handmesh.learn.train import train, with_architecture
from handmesh.model.bundled import bundled_model_path
from handmesh.model.file import config_of, read_record

START = ["start_from=handmesh_t8"]


@pytest.fixture(scope="module")
def bundled() -> ModelConfig:
    path = bundled_model_path()
    return config_of(read_record(path), path)


def test_what_the_settings_do_not_say_is_as_in_the_model_that_a_run_starts_from(bundled):
    assert bundled != ModelConfig(), "or there is nothing to see here"
    assert with_architecture(load_config(None, START)).model == bundled
    alone = load_config(None)
    assert with_architecture(alone) == alone


def test_what_the_settings_say_wins(bundled):
    said = ["model.resolution=128", "model.handedness_head=false", "model.drop_path=0.1"]
    found = with_architecture(load_config(None, [*START, *said])).model
    assert (found.resolution, found.handedness_head, found.drop_path) == (128, False, 0.1)
    assert (found.backbone, found.confidence_head) == (bundled.backbone, bundled.confidence_head)


def test_drop_path_is_not_taken_over(bundled, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": bundled.model_dump() | {"drop_path": 0.3}}))
    assert with_architecture(load_config(None, START), tmp_path).model.drop_path == 0


def test_what_cannot_fit_is_refused_in_one_line_before_anything_is_done(tmp_path):
    data = f"data.synthetic.directory={tmp_path / 'packs'}"
    with pytest.raises(ConfigError, match="fastvit_ma36") as refused:
        train(load_config(None, [*START, data, "model.backbone=fastvit_ma36"]), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "packs").exists()


def test_a_run_goes_on_without_the_file_that_it_started_from(bundled, tmp_path):
    gone = load_config(None, [f"start_from={tmp_path / 'gone.safetensors'}"])
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        with_architecture(gone)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": bundled.model_dump()}))
    assert with_architecture(gone, tmp_path).model == bundled
