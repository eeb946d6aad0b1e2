"""Exported files: each is run and is the torch network, says what it is, and is gone when it is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from full_disk import disk_with
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.errors import CheckpointError, ConfigError, ExportError
from handmesh.hand import Handedness, HandOutput, builtin_hand
from handmesh.metrics import pa_mean_error
from handmesh.model.checkpoint import load_model
from handmesh.predict import Predictor
from handmesh.runtime import export
from handmesh.runtime.engine import open_engine
from handmesh.runtime.export import SUFFIXES, export_model, synthetic_crops
from handmesh.runtime.trace import OPSET

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    for name in ("GOLDEN_COUNT", "SCORED_COUNT", "CALIBRATION_COUNT"):
        monkeypatch.setattr(export, name, 4)


def crops(count: int = 3) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def vertex_error_mm(model_file, answer) -> float:
    network, _ = load_model(model_file)
    with torch.no_grad():
        expected = network(torch.from_numpy(crops()))
    return 1000 * float(np.linalg.norm(answer - expected.vertices.numpy(), axis=-1).max())


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_a_file_is_an_engine_that_answers_as_torch_does(format, suffix, model_file, tmp_path):
    if format == "openvino":
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    exported = export_model(model_file, format, tmp_path / f"hand{suffix}")
    assert exported.error_mm < 0.01
    engine = open_engine(exported.path)
    assert vertex_error_mm(model_file, engine(crops()).vertices) < 0.01
    assert (engine.record["training"], engine.resolution) == ({"steps": 0}, 64)
    assert {file.stem for file in tmp_path.iterdir()} == {"hand"}
    if format == "openvino":  # which reads ONNX files too
        export_model(model_file, "onnx", tmp_path / "hand.onnx")
        engine = open_engine(tmp_path / "hand.onnx", engine="openvino")
        assert vertex_error_mm(model_file, engine(crops()).vertices) < 0.01
        assert engine.record["training"] == {"steps": 0}


def test_the_onnx_file_says_what_it_is(model_file, tmp_path):
    exported = export_model(model_file, "onnx", tmp_path / "hand.onnx")
    graph = onnx.load(exported.path)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert float(said["error_mm"]) == pytest.approx(exported.error_mm, rel=0.1)
    assert json.loads(said["handmesh_record"])["model"]["backbone"] == "fastvit_t8"
    assert said.keys() >= {"checkpoint_sha256", "hand", "hand_licence", "hand_sha256"}
    (given,) = graph.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in graph.graph.output] == list(HandOutput._fields)


def test_megabytes_are_of_the_files_of_this_export_alone(model_file, tmp_path):
    """An OpenVINO export of that name beside it was counted, too: a .pt2 of 16 MB had 31."""
    (tmp_path / "hand.bin").write_bytes(bytes(5_000_000))
    exported = export_model(model_file, "onnx", tmp_path / "hand.onnx")
    assert exported.megabytes == pytest.approx((tmp_path / "hand.onnx").stat().st_size / 1e6)


def test_a_torch_export_file_needs_nothing_of_ours(model_file, tmp_path):
    exported = export_model(model_file, "torch-export", tmp_path / "hand.pt2")
    extra = {"handmesh.json": ""}
    answers = torch.export.load(exported.path, extra_files=extra).module()(torch.from_numpy(crops()))
    assert vertex_error_mm(model_file, answers["vertices"].numpy()) < 0.01
    assert list(answers) == list(HandOutput._fields)
    assert json.loads(extra["handmesh.json"])["hand"] == "builtin"


def test_int8_costs_little_and_its_metadata_says_how_much(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_INT8_COST_MM", 2.0)  # of a network that was never trained
    exported = export_model(model_file, "onnx", tmp_path / "hand.onnx", precision="int8")
    coarse, exact = open_engine(exported.path), open_engine(model_file)
    assert "int8" in coarse.name
    assert exported.megabytes < 0.6 * export_model(model_file, "onnx", tmp_path / "exact.onnx").megabytes
    scored = synthetic_crops(64, 4, 802)
    distance = 1000 * pa_mean_error(exact(scored.images).vertices, coarse(scored.images).vertices).mean()
    assert 0 < distance == pytest.approx(exported.distance_mm, rel=0.05)
    said = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert float(said["int8_cost_mm"]) == pytest.approx(exported.cost_mm, abs=1e-3)


def test_int8_that_costs_too_much_is_not_written(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_INT8_COST_MM", -100.0)
    monkeypatch.setattr(export, "quantisable", lambda graph: {"stem": ["backbone.patch_embed.2.reparam_conv/Conv"]})
    with pytest.raises(ExportError, match=r"int8 costs -?\d+\.\d+ mm of PA-MPVPE"):
        export_model(model_file, "onnx", tmp_path / "hand.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_parts_that_hurt_stay_in_float32(model_file, tmp_path, monkeypatch):
    """Whatever is quantised costs a millimetre here, the first stage two: it goes first, then the others."""
    names = {"stem": ["a"], "0.0": ["b"], "2.0": ["c"]}
    prices = {"a": 1.0, "b": 2.0, "c": 0.1}
    monkeypatch.setattr(export, "quantisable", lambda graph: names)
    monkeypatch.setattr(export, "quantised", lambda graph, nodes, *_: json.dumps(nodes).encode())

    class Priced:
        def __init__(self, path, threads):
            self.nodes = json.loads(path.read_bytes())

        def __call__(self, images):
            return HandOutput(*[sum(prices[node] for node in self.nodes)] * len(HandOutput._fields))

    monkeypatch.setattr(export, "OnnxEngine", Priced)
    monkeypatch.setattr(export, "pa_mean_error", lambda truth, answer: np.array([answer / 1000]))
    nothing = HandOutput(*[0.0] * len(HandOutput._fields))
    scored = synthetic_crops(64, 4, 802)
    graph, kept, cost, _ = export._within_cost(b"", nothing, scored, 64, tmp_path)
    assert kept == ["0.0", "stem"]
    assert cost == pytest.approx(0.1)
    assert json.loads(graph) == ["c"]


def test_a_file_that_disagrees_is_deleted_and_the_error_has_the_number(model_file, tmp_path, monkeypatch):
    """A graph whose template is a millimetre off."""
    right = export.plain_graph

    def wrong(path):
        graph = onnx.load_from_string(right(path))
        (template,) = (one for one in graph.graph.initializer if one.name == "hand.template")
        template.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(template) + 1e-3 / 3**0.5, template.name)
        )
        return graph.SerializeToString()

    monkeypatch.setattr(export, "plain_graph", wrong)
    with pytest.raises(ExportError, match=r"ONNX file disagrees with PyTorch by 1 mm at a vertex.*deleted"):
        export_model(model_file, "onnx", tmp_path / "hand.onnx")
    assert list(tmp_path.iterdir()) == []


def test_core_ml_files_have_the_right_specification(model_file, tmp_path):
    pytest.importorskip("coremltools", reason='needs coremltools: pip install -e ".[coreml]"')
    exported = export_model(model_file, "coreml", tmp_path / "hand.mlpackage")  # which checks names and the image
    assert exported.error_mm is None
    assert exported.megabytes > 10


def test_without_coremltools_the_error_says_what_to_install(model_file, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(ExportError, match=r'pip install -e "\.\[coreml\]"'):
        export_model(model_file, "coreml", tmp_path / "hand.mlpackage")


def test_torchs_threads_stay_as_they_are(model_file, tmp_path):
    """They are the whole process's: who exported while training went on with one."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        export_model(model_file, "onnx", tmp_path / "hand.onnx")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_largest_crops_are_drawn_smaller():
    """Scenes end at 512 px, networks at 1024: a model of 544 could not be exported."""
    assert synthetic_crops(1024, 1, 801).images.shape == (1, 1024, 1024, 3)


def test_what_cannot_be_written_is_refused_first(model_file, tmp_path):
    with pytest.raises(ExportError, match=r"a file for onnx ends in \.onnx"):
        export_model(model_file, "onnx", tmp_path / "hand.xml")
    with pytest.raises(ExportError, match="there is no folder"):
        export_model(model_file, "onnx", tmp_path / "none" / "hand.onnx")
    with pytest.raises(ExportError, match="int8 is for onnx and openvino"):
        export_model(model_file, "coreml", precision="int8")
    (tmp_path / "hand.onnx").write_bytes(b"")
    with pytest.raises(ExportError, match="exported file already"):
        export_model(tmp_path / "hand.onnx", "onnx")
    with pytest.raises(CheckpointError, match="cannot be run by ONNX Runtime"):
        open_engine(tmp_path / "hand.onnx")


def test_on_the_command_line(model_file, tmp_path):
    arguments = ["export", "--model", str(model_file), "--out", str(tmp_path / "hand.onnx")]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "mm from PyTorch at any vertex" in run.stdout
    assert isinstance(CliRunner().invoke(app, ["export", "--format", "tflite"]).exception, ConfigError)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch-export"])
def test_a_full_disk_is_one_line_that_names_the_file(format, model_file, tmp_path):
    """It was "[Errno 28] No space left on device" alone."""
    if format == "openvino":
        pytest.importorskip("openvino", reason='openvino is not installed: pip install -e ".[openvino]"')
    target = tmp_path / f"hand{SUFFIXES[format]}"
    with disk_with(free=50_000), pytest.raises(ExportError, match=f"Cannot write .*{target.name}: "):
        export_model(model_file, format, target)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_users_is_not_replaced(model_file, tmp_path):
    folder = tmp_path / "keep.onnx"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="a folder that no export made"):
        export_model(model_file, "onnx", folder)
    assert (folder / "thesis.txt").read_text() == "precious"


# -------------------------------------------------------------------------------------------- what it says of itself


@pytest.fixture(scope="module")
def described(model_file, tmp_path_factory):
    """An exported file and its metadata, as onnxruntime reads it."""
    from handmesh.runtime.onnx import import_onnxruntime

    path = tmp_path_factory.mktemp("described") / "hand.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "GOLDEN_COUNT", 2)
        export_model(model_file, "onnx", path)
    session = import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def test_the_shapes_it_says_are_those_it_has(described):
    session, said = described
    inputs, outputs = json.loads(said["inputs"]), json.loads(said["outputs"])
    assert {one.name: one.shape for one in session.get_inputs()} == {k: v["shape"] for k, v in inputs.items()}
    answers = session.run(None, {"crops": crops()})
    for one, answer in zip(session.get_outputs(), answers, strict=True):
        wanted = outputs[one.name]
        assert answer.shape == (3, *wanted["shape"][1:])
        assert answer.dtype == wanted["dtype"] == "float32"
        if "order" in wanted:
            assert len(wanted["order"]) == answer.shape[1]
    assert outputs["confidence"]["meaning"] == "1: this model cannot tell"  # it has no such head
    np.testing.assert_array_equal(json.loads(said["faces"]), builtin_hand().faces)


@pytest.mark.parametrize("side", list(Handedness))
def test_who_follows_what_it_says_gets_the_hand_that_handmesh_has(side, described, model_file):
    """The rules of the page and of the metadata, followed without any code of ours, lead to the same hand."""
    session, _ = described
    photo = np.random.default_rng(3).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    photo = cv2.GaussianBlur(photo, (0, 0), 3)
    x0, y0, x1, y1 = box = (20.0, 30.0, 58.0, 66.0)
    c, b = np.array([x0 + x1, y0 + y1]) / 2, 1.5 * max(x1 - x0, y1 - y0)
    size = session.get_inputs()[0].shape[1]
    step = b / size  # px of the photo: the centre of crop pixel i is (i - (size - 1) / 2) * step from the centre
    photo_from_crop = np.array([[step, 0, c[0] - step * (size - 1) / 2], [0, step, c[1] - step * (size - 1) / 2]])
    crop = cv2.warpAffine(photo, photo_from_crop, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    M = np.diag([-1.0, 1.0, 1.0]) if side == Handedness.LEFT else np.eye(3)
    shown = crop[:, ::-1] if side == Handedness.LEFT else crop
    names = [output.name for output in session.get_outputs()]
    answer = dict(zip(names, session.run(None, {"crops": np.ascontiguousarray(shown)[None]}), strict=True))
    (scale, x, y), joints, vertices = answer["camera"][0], answer["joints"][0] @ M, answer["vertices"][0] @ M
    keypoints = c + b / 2 * scale * (joints[:, :2] + (M[0, 0] * x, y))

    (hand,) = Predictor(open_engine(model_file), passes=1)(photo, boxes=box, handedness=side)
    np.testing.assert_allclose(vertices, hand.vertices, atol=1e-5)
    np.testing.assert_allclose(M @ answer["pose"][0] @ M, hand.pose, atol=1e-4)
    np.testing.assert_allclose(keypoints, hand.keypoints_image(), atol=0.02)


def test_the_page_says_what_the_file_says(described):
    _, said = described
    page = (ROOT / "docs" / "reference" / "exported_models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\(B.*?\)) \|", page, re.MULTILINE))
    outputs = json.loads(said["outputs"])
    assert list(rows) == list(outputs)
    for name, shape in rows.items():
        sizes = outputs[name]["shape"][1:]
        assert shape == f"(B, {', '.join(map(str, sizes))})".replace("(B, )", "(B,)")
    named = set(re.findall(r"`(\w+)`", page.partition("## What else")[2]))
    assert set(said) <= named
    assert ("average" in page, "means where it shrinks" in said["crop_rule"]) == (True, True)
    assert f"opset {OPSET} " in page
