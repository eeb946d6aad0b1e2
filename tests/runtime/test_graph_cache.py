"""Graphs are made once, found by what they were made from, and never seen half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest

from handmesh.errors import AssetError, CheckpointError
from handmesh.model.checkpoint import save_model
from handmesh.runtime import graph_cache
from handmesh.runtime.engine import open_engine
from handmesh.runtime.graph_cache import cached_graph, graph_folder
from handmesh.system.paths import user_cache_folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "cache"))


def test_a_graph_is_made_once_for_a_file_and_again_for_another(model_file, lively_network, tmp_path, monkeypatch):
    path = cached_graph(model_file)
    assert path.parent == graph_folder()
    monkeypatch.setattr(graph_cache, "graph_of", lambda model: pytest.fail("made twice"))
    assert cached_graph(model_file) == path
    monkeypatch.undo()
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "cache"))
    other = tmp_path / model_file.name
    save_model(other, lively_network, training={"steps": 1})
    assert cached_graph(other) != path
    assert {file.suffix for file in graph_folder().iterdir()} == {".onnx"}


def test_the_graph_says_what_it_is(model_file):
    properties = {entry.key: entry.value for entry in onnx.load(cached_graph(model_file)).metadata_props}
    assert json.loads(properties["handmesh_record"])["training"] == {"steps": 0}
    assert properties["checkpoint_sha256"] == graph_cache.sha256_of(model_file)
    assert properties["hand"] == "builtin"
    assert "Apache-2.0" in properties["hand_licence"]


def test_processes_that_start_together_all_get_a_whole_graph(lively_network, tmp_path):
    model_file = tmp_path / "folded.safetensors"  # which needs no torch
    save_model(model_file, lively_network.reparameterize(), training={})
    code = (
        "import sys, numpy as np; from handmesh.runtime.engine import open_engine; "
        "print(open_engine(sys.argv[1])(np.full((1, 64, 64, 3), 7, np.uint8)).vertices.sum())"
    )
    command = [sys.executable, "-c", code, str(model_file)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in running]
    assert {error for _, error in answers} == {""}
    assert len({printed for printed, _ in answers}) == 1
    (only,) = graph_folder().iterdir()
    onnx.checker.check_model(str(only))


def test_where_nothing_can_be_written_the_engine_still_opens(model_file, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "file"))
    assert isinstance(cached_graph(model_file), bytes)
    assert "HANDMESH_CACHE_DIR" in caplog.text
    assert open_engine(model_file).resolution == 64


def test_the_folder_stays_below_its_limit(model_file, lively_network, tmp_path, monkeypatch):
    """What was used longest ago goes first."""
    first = cached_graph(model_file)
    size = first.stat().st_size
    monkeypatch.setattr(graph_cache, "MAX_BYTES", 2.5 * size)
    models = []
    for steps in (1, 2):
        models.append(tmp_path / f"{steps}.safetensors")
        save_model(models[-1], lively_network, training={"steps": steps})
    second = cached_graph(models[0])
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    cached_graph(model_file)  # used: now the second is the oldest
    third = cached_graph(models[1])
    assert sorted(graph_folder().iterdir()) == sorted([first, third])


def test_a_model_whose_hand_is_missing_is_refused_even_if_its_graph_is_there(
    lively_network, stand_in_mano, tmp_path, monkeypatch
):
    from handmesh.hand.layer import HandModel
    from handmesh.model.network import HandMeshNet

    path = tmp_path / "mano.safetensors"
    config = lively_network.config.model_copy(update={"hand": "mano"})
    save_model(path, HandMeshNet(config, HandModel(stand_in_mano)), training={})
    properties = {entry.key: entry.value for entry in onnx.load(cached_graph(path)).metadata_props}
    assert "MANO's licence" in properties["hand_licence"]
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "empty"))
    with pytest.raises(AssetError, match="handmesh mano add"):
        cached_graph(path)


def test_a_damaged_model_is_refused(model_file, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(model_file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        cached_graph(damaged)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "HOME", ".cache/handmesh"),
        ("linux", "XDG_CACHE_HOME", "handmesh"),
        ("darwin", "HOME", "Library/Caches/handmesh"),
        ("win32", "LOCALAPPDATA", "handmesh/cache"),
    ],
)
def test_the_cache_is_where_each_system_wants_it(platform, variable, expected, tmp_path, monkeypatch):
    for name in ("HANDMESH_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert user_cache_folder() == tmp_path / expected


def test_a_graph_that_a_disk_damaged_is_made_anew(model_file, caplog):
    """The model itself is whole: it would be no help to be told to export it again."""
    path = cached_graph(model_file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert open_engine(model_file).resolution == 64
    assert "is made anew" in caplog.text
    assert path.read_bytes() == whole
