"""A model's graph lies beside it, is made once, is never taken for that of other weights, and is never half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from handmesh.errors import AssetError, CheckpointError, MissingPackageError
from handmesh.hand import HandOutput
from handmesh.hand.layer import HandModel
from handmesh.model.bundled import bundled_model_path
from handmesh.model.checkpoint import save_model
from handmesh.model.file import sha256_of
from handmesh.model.network import HandMeshNet
from handmesh.runtime import graph
from handmesh.runtime.engine import open_engine
from handmesh.runtime.export import export_model
from handmesh.runtime.graph import cached_path, write_graph, write_with_graph


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def model(model_file, tmp_path) -> Path:
    """A model file alone in a folder, without its graph."""
    (tmp_path / "own").mkdir()
    return Path(shutil.copy(model_file, tmp_path / "own"))


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def vertices_of(path: Path) -> np.ndarray:
    return open_engine(path, threads=1)(np.full((1, 64, 64, 3), 7, np.uint8)).vertices


def said_by(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_model_without_a_graph_gets_one_beside_it_once(model, monkeypatch, caplog):
    open_engine(model)
    assert caplog.text.count("Making the graph of tiny.safetensors") == 1
    assert names_in(model.parent) == ["tiny.onnx", "tiny.safetensors"]
    monkeypatch.setattr(graph, "graph_of", lambda model: pytest.fail("made twice"))
    open_engine(model)


def test_a_graph_of_other_weights_is_named_and_made_anew(model, lively_network, caplog):
    """As after a training that went on: the file's name is the same."""
    write_graph(model)
    network = HandMeshNet(lively_network.config, lively_network.hand)
    save_model(model, network, training={})
    answered = vertices_of(model)
    assert f"{model.with_suffix('.onnx')} is of other weights than tiny.safetensors" in caplog.text
    by_torch = open_engine(model, engine="torch")(np.full((1, 64, 64, 3), 7, np.uint8)).vertices
    np.testing.assert_allclose(answered, by_torch, atol=1e-6)
    assert said_by(model.with_suffix(".onnx"))["checkpoint_sha256"] == sha256_of(model)


@pytest.mark.parametrize("of", ["another program", "an int8 export"])
def test_a_file_that_is_no_graph_of_a_model_is_left_alone(of, model, model_file, caplog):
    beside = model.with_suffix(".onnx")
    shutil.copy(model_file.with_suffix(".onnx"), beside)
    found = onnx.load(beside)
    said = said_by(beside)
    record = json.loads(said["handmesh_record"]) | {"precision": "int8"}
    onnx.helper.set_model_props(
        found, {} if of == "another program" else said | {"handmesh_record": json.dumps(record)}
    )
    onnx.save(found, beside)
    before = beside.read_bytes()
    assert "int8" not in open_engine(model).name
    assert "is left alone" in caplog.text
    assert beside.read_bytes() == before
    assert cached_path(model, sha256_of(model)).is_file()


def test_where_a_model_cannot_have_company_its_graph_is_in_the_cache(model, monkeypatch):
    beside = model.with_suffix(".onnx")
    write = graph.write_atomically

    def refuse(path, content, **options):
        if path == beside:
            raise graph.ExportError(f"Cannot write {path}: Read-only file system.")
        write(path, content, **options)

    monkeypatch.setattr(graph, "write_atomically", refuse)
    expected = vertices_of(model)
    assert names_in(model.parent) == ["tiny.safetensors"]
    monkeypatch.setattr(graph, "graph_of", lambda model: pytest.fail("made twice"))
    np.testing.assert_array_equal(vertices_of(model), expected)


def test_where_nothing_can_be_written_the_engine_still_opens(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANDMESH_CACHE_DIR", str(tmp_path / "file"))
    model.with_suffix(".onnx").mkdir()
    assert open_engine(model).resolution == 64
    assert "HANDMESH_CACHE_DIR" in caplog.text


def test_without_torch_one_line_says_what_to_do(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("handmesh.runtime.trace", "handmesh.model.checkpoint"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingPackageError, match=r'tiny.safetensors has no graph .* pip install -e "\.\[train\]"'):
        open_engine(model, "cpu")


def test_a_damaged_graph_is_made_anew(model, caplog):
    """The model itself is whole: it would be no help to be told to export it again."""
    whole = write_graph(model).read_bytes()
    model.with_suffix(".onnx").write_bytes(whole[: len(whole) // 2])
    assert open_engine(model).resolution == 64
    assert "is made anew" in caplog.text
    assert model.with_suffix(".onnx").read_bytes() == whole


def test_a_graph_that_is_whole_is_left_alone_whatever_else_goes_wrong(model):
    """Loading fails for lack of memory too, or in a runtime that is too old: of this one's graph nothing is known."""
    beside = write_graph(model)
    newer = onnx.load(beside)
    newer.opset_import[0].version = 99
    onnx.save(newer, beside)
    before = beside.read_bytes()
    with pytest.raises(CheckpointError, match=r"The graph .*tiny\.onnx cannot be run by ONNX Runtime: .*Opset 99"):
        open_engine(model)
    assert beside.read_bytes() == before
    assert names_in(model.parent) == ["tiny.onnx", "tiny.safetensors"]


def test_a_graph_is_replaced_only_by_one_that_loads(model):
    beside = write_graph(model)
    before = beside.read_bytes()

    def load(graph):
        raise RuntimeError("no more threads")

    with pytest.raises(CheckpointError, match=r"just made of .*tiny\.safetensors cannot be run by it: no more threads"):
        graph.open_graph(model, load, lambda loaded: {}, RuntimeError, "it")
    assert beside.read_bytes() == before


@pytest.mark.slow  # each of them traces
def test_processes_that_start_together_all_get_a_whole_graph(model):
    code = (
        "import sys, numpy as np; from handmesh.runtime.engine import open_engine; "
        "print(open_engine(sys.argv[1])(np.full((1, 64, 64, 3), 7, np.uint8)).vertices.sum())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(model)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in running]
    assert len({printed for printed, _ in answers}) == 1, answers
    assert answers[0][0]
    assert names_in(model.parent) == ["tiny.onnx", "tiny.safetensors"]
    onnx.checker.check_model(str(model.with_suffix(".onnx")))


def test_the_graph_says_what_it_is(model_file):
    said = said_by(model_file.with_suffix(".onnx"))
    assert json.loads(said["handmesh_record"])["training"] == {"steps": 0}
    assert said["checkpoint_sha256"] == sha256_of(model_file)
    assert said["hand"] == "builtin"
    assert "Apache-2.0" in said["hand_licence"]
    found = onnx.load(model_file.with_suffix(".onnx")).graph
    for kind, values in (("inputs", found.input), ("outputs", found.output)):
        described = json.loads(said[kind])
        assert list(described) == [value.name for value in values]
        for value in values:
            shape = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
            assert shape == described[value.name]["shape"]


def test_a_model_whose_hand_is_missing_is_refused_even_if_its_graph_is_there(
    lively_network, stand_in_mano, tmp_path, monkeypatch
):
    path = tmp_path / "mano.safetensors"
    config = lively_network.config.model_copy(update={"hand": "mano"})
    write_with_graph(path, HandMeshNet(config, HandModel(stand_in_mano)), training={})
    assert "MANO's licence" in said_by(path.with_suffix(".onnx"))["hand_licence"]
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "empty"))
    with pytest.raises(AssetError, match="handmesh mano add"):
        open_engine(path)


def test_a_damaged_model_is_refused(model):
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_engine(model)


def test_graphs_of_earlier_versions_keep_running(model_file, tmp_path):
    """One output had another name, and none said which joints were found, or where they are seen."""
    exported = export_model(model_file, "onnx", tmp_path / "hand.onnx")
    found = onnx.load(exported.path)
    for node in found.graph.node:
        node.output[:] = ["right" if name == "handedness" else name for name in node.output]
    del found.graph.output[-2:]
    found.graph.output[-1].name = "right"
    onnx.save(found, tmp_path / "old.onnx")
    crops = np.full((2, 64, 64, 3), 7, np.uint8)
    for name in ("onnx", "openvino"):
        if name == "openvino":
            pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
        old, new = (open_engine(tmp_path / file, engine=name)(crops) for file in ("old.onnx", "hand.onnx"))
        for field, a, b in zip(HandOutput._fields, old, new, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=field)  # of all joints 1, and 0: it cannot tell, as this model


def test_the_bundled_graph_is_of_the_bundled_weights():
    """Who changes the one without the other sends every user to torch."""
    path = bundled_model_path().with_suffix(".onnx")
    assert path.stat().st_size <= 8_000_000
    assert said_by(path)["checkpoint_sha256"] == sha256_of(bundled_model_path())
    assert [output.name for output in onnx.load(path).graph.output] == list(HandOutput._fields)
