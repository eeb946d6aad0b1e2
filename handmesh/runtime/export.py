"""A trained model as a file for other runtimes: ONNX, OpenVINO, torch.export, Core ML.

Every file takes uint8 RGB crops and answers with what `HandOutput` names; normalisation and the hand model are inside
(with MANO's hand, MANO's licence: the metadata says so). It is run on golden crops, synthetic hands drawn here, before
anybody gets it: a file whose vertices are further from PyTorch's than rounding explains is deleted, and the ExportError
has the number. Core ML files run on macOS only; elsewhere their specification is checked, and the report says that.

int8 (ONNX) is static: weights per channel, activations by their range on synthetic crops, and only where processors
gain, in the 1x1 convolutions and in attention's projections. What it costs is measured against the known truth of other
synthetic crops; parts of the network that cost too much stay in float32.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ExportError
from handmesh.geometry.crop import CropTransform
from handmesh.hand import HandOutput, builtin_hand
from handmesh.metrics import pa_mean_error
from handmesh.model.bundled import find_model
from handmesh.runtime.engine import Engine
from handmesh.runtime.graph import metadata_of, open_graph, scope_of
from handmesh.runtime.onnx import OnnxEngine, import_onnxruntime
from handmesh.runtime.openvino import OpenVinoEngine, import_openvino, openvino_core
from handmesh.runtime.timing import time_in_turns
from handmesh.runtime.torch import TorchEngine
from handmesh.runtime.trace import properties_of, quiet, with_metadata, with_plain_weights
from handmesh.system.extras import extra, install_command

logger = logging.getLogger(__name__)

Format = Literal["onnx", "openvino", "torch-export", "coreml"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino", "torch-export", "coreml")
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "coreml": ".mlpackage"}

MAX_ERROR_MM = 0.01  # of any vertex of any golden crop, float32: rounding alone stays below a tenth of it
MAX_INT8_COST_MM = 0.2  # of the mean PA-MPVPE on synthetic crops

GOLDEN_COUNT = 8
SCORED_COUNT = 64
CALIBRATION_COUNT = 32
_GOLDEN_SEED, _SCORED_SEED, _CALIBRATION_SEED = 801, 802, 803  # no set that a network was trained or scored on


class Crops(NamedTuple):
    """Synthetic hands and what they are."""

    images: NDArray[np.uint8]  # (N, S, S, 3)
    vertices: NDArray[np.float32]  # (N, 778, 3) metres, of the built-in hand


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from PyTorch."""

    path: Path
    format: Format
    precision: str
    megabytes: float
    error_mm: float | None  # the largest distance of a vertex from PyTorch's, over the golden crops; None: not run
    cost_mm: float | None = None  # int8: by how much the mean PA-MPVPE on synthetic crops is worse than float32's
    distance_mm: float | None = None  # int8: mean PA-MPVPE from the float32 answers
    speed: float | None = None  # int8: time of one crop over float32's, on this machine, one thread
    kept: tuple[str, ...] = ()  # int8: parts that stayed in float32


def export_model(
    model: str | Path | None,
    format: Format,
    out: Path | None = None,
    *,
    precision: Literal["float32", "int8"] = "float32",
) -> Exported:
    """Write and check a file; `out` is by default the model's name in the working folder.

    Raises ExportError for a file that disagrees with PyTorch (it is then gone), a format or precision that cannot be
    had here; CheckpointError and AssetError for the model.
    """
    path = find_model(model)
    if path.suffix != ".safetensors":
        raise ExportError(f"{path} is an exported file already: give the model file it was made from.")
    if precision == "int8" and format not in ("onnx", "openvino"):
        raise ExportError(f"int8 is for onnx and openvino; a {format} file is float32.")
    suffix = SUFFIXES[format]
    target = out or Path(path.stem + (".int8" if precision == "int8" else "") + suffix)
    if target.suffix != suffix:
        raise ExportError(f"{target}: a file for {format} ends in {suffix}.")
    if not target.parent.is_dir():
        raise ExportError(f"Cannot write {target}: there is no folder {target.parent}. Create it first.")
    if target.is_dir() and not (format == "coreml" and (target / "Manifest.json").is_file()):
        raise ExportError(f"Cannot write {target}: it is a folder that no export made. Give another name.")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            written = Path(folder) / target.name  # beside the target: moving it there is one step
            if precision == "int8":
                exported = _write_int8(path, format, written)
            else:
                exported = {
                    "onnx": _write_onnx,
                    "openvino": _write_openvino,
                    "torch-export": _write_torch_export,
                    "coreml": _write_coreml,
                }[format](path, written)
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == written):  # weights, then the graph
                final = target.parent / part.name
                if final.is_dir():
                    shutil.rmtree(final)
                part.replace(final)
    except OSError as error:
        raise ExportError(f"Cannot write {target}: {error.strerror or error}.") from error
    size = sum(file.stat().st_size for file in _files(target))
    return Exported(**(exported | {"path": target, "format": format, "precision": precision, "megabytes": size / 1e6}))


def _files(target: Path) -> list[Path]:
    if target.is_dir():
        return [file for file in target.rglob("*") if file.is_file()]
    return [target, target.with_suffix(".bin")] if target.suffix == SUFFIXES["openvino"] else [target]


# --- Golden crops -----------------------------------------------------------------------------------------------------


@cache
def synthetic_crops(resolution: int, count: int, seed: int) -> Crops:
    """The same crops at every call: as training crops hands, 1.2 to 2 times as large as their keypoints' box."""
    from handmesh.synth import Backgrounds, SceneRenderer, sample_generator

    renderer = SceneRenderer(
        builtin_hand(), size=min(max(160, resolution), 512), backgrounds=Backgrounds(seed, count=4)
    )
    images, vertices = [], []
    for index in range(count):
        generator = sample_generator(seed, index)
        sample = renderer.render(generator)
        rotation = generator.uniform(-0.5, 0.5)
        crop = CropTransform.around_points(sample.keypoints, generator.uniform(1.2, 2.0), rotation)
        images.append(crop.warp(sample.image, resolution))
        vertices.append(sample.vertices)
    return Crops(np.stack(images), np.stack(vertices))


def error_mm(run: Callable[[NDArray[np.uint8]], HandOutput], reference: Engine) -> float:
    """The largest distance in millimetres of a vertex from the reference's, on the golden crops, alone and together.

    Raises ExportError when another output differs though the vertices agree.
    """
    crops = synthetic_crops(reference.resolution, GOLDEN_COUNT, _GOLDEN_SEED).images
    expected = reference(crops)
    largest = 0.0
    for batch in (slice(0, 1), slice(1, 3), slice(0, None)):  # the batch is free: one, two, all
        answered = run(crops[batch])
        for field, answer, wanted in zip(HandOutput._fields, answered, expected, strict=True):
            if answer.shape != wanted[batch].shape or not np.isfinite(answer).all():
                raise ExportError(f"It answers {field} as {answer.shape}, wanted {wanted[batch].shape} finite numbers.")
            if field != "vertices" and (difference := float(np.abs(answer - wanted[batch]).max())) > 1e-3:
                raise ExportError(f"Its {field} is {difference:.2g} away from PyTorch's.")
        distances = np.linalg.norm(answered.vertices - expected.vertices[batch], axis=-1)
        largest = max(largest, 1000 * float(distances.max()))
    return largest


def checked_error_mm(run: Callable[[NDArray[np.uint8]], HandOutput], reference: Engine, what: str) -> float:
    """`error_mm`, refused above `MAX_ERROR_MM`."""
    try:
        error = error_mm(run, reference)
    except ExportError as problem:
        raise ExportError(f"The {what} file disagrees with PyTorch and was deleted. {problem}") from None
    if not error <= MAX_ERROR_MM:
        raise ExportError(
            f"The {what} file disagrees with PyTorch by {error:.3g} mm at a vertex (rounding explains less than "
            f"{MAX_ERROR_MM} mm) and was deleted."
        )
    return error


# --- Formats ----------------------------------------------------------------------------------------------------------


def _reference(path: Path) -> Engine:
    return TorchEngine(path, "cpu")  # on as many threads as torch has: they are the whole process's


def plain_graph(path: Path) -> bytes:
    """The graph of a model file with float32 weights: not every runtime has the casts and the 16-bit numbers that make
    the one beside it small.
    """
    with extra("train", "handmesh export"):
        import onnx
        from google.protobuf.message import DecodeError

    def load(graph: Path | bytes) -> Any:
        return onnx.load_from_string(graph if isinstance(graph, bytes) else graph.read_bytes())

    return with_plain_weights(open_graph(path, load, properties_of, DecodeError, "ONNX"))


def _write_onnx(path: Path, written: Path) -> dict[str, Any]:
    graph = plain_graph(path)
    written.write_bytes(graph)
    error = checked_error_mm(OnnxEngine(written, threads=1), _reference(path), "ONNX")
    # The graph beside a model may be of an earlier version, which said less of itself.
    written.write_bytes(with_metadata(graph, metadata_of(path) | {"error_mm": f"{error:.2g}"}))
    return {"error_mm": error}


def _write_openvino(path: Path, written: Path) -> dict[str, Any]:
    graph = plain_graph(path)
    _save_openvino(graph, written, metadata_of(path))
    error = checked_error_mm(OpenVinoEngine(written, threads=1), _reference(path), "OpenVINO")
    _save_openvino(graph, written, metadata_of(path) | {"error_mm": f"{error:.2g}"})
    return {"error_mm": error}


def _save_openvino(graph: bytes, written: Path, metadata: Mapping[str, str]) -> None:
    openvino = import_openvino()
    model = openvino_core().read_model(graph)
    for name, value in metadata.items():
        model.set_rt_info(value, name)
    try:
        openvino.save_model(model, written, compress_to_fp16=False)
    except RuntimeError as error:  # its only words for any trouble with a file
        raise ExportError(f"Cannot write {written.name}: {error}. Is the disk full?") from error


def _reparameterized_network(path: Path) -> Any:
    from handmesh.model.checkpoint import load_model

    network, _ = load_model(path)
    return network if network.reparameterized else network.reparameterize()


def _write_torch_export(path: Path, written: Path) -> dict[str, Any]:
    import torch

    network = _reparameterized_network(path)

    class Named(torch.nn.Module):
        """A named tuple of ours could be loaded only where handmesh is; a dictionary can be anywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, crops: torch.Tensor) -> dict[str, torch.Tensor]:
            output: HandOutput = self.network(crops)
            return output._asdict()

    side = network.config.resolution
    example = (torch.zeros(2, side, side, 3, dtype=torch.uint8),)  # two: one would be taken for a constant
    program = torch.export.export(Named(), example, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))

    def save(extra: Mapping[str, str]) -> None:
        # Not straight into the file: on a full disk torch ends the process.
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"handmesh.json": json.dumps(metadata_of(path) | dict(extra))})
        written.write_bytes(content.getvalue())

    def run(crops: NDArray[np.uint8]) -> HandOutput:
        with torch.inference_mode():
            answers = module(torch.from_numpy(crops))
        return HandOutput(*(answers[field].numpy() for field in HandOutput._fields))

    with quiet():
        save({})
        module = torch.export.load(written).module()
        error = checked_error_mm(run, _reference(path), "torch.export")
        save({"error_mm": f"{error:.2g}"})
    return {"error_mm": error}


def _write_coreml(path: Path, written: Path) -> dict[str, Any]:
    """An image in, one crop at a time: that is what Core ML's vision tools feed. Its specification is checked; it can
    be run, and then is compared, on macOS only.
    """
    try:
        with quiet():
            import coremltools
    except ImportError:
        raise ExportError(f"Core ML files need coremltools: {install_command('coreml')}.") from None
    import torch

    network = _reparameterized_network(path)
    side = network.config.resolution

    cross = torch.ops.aten.linalg_cross.default

    class OneImage(torch.nn.Module):
        """(1, 3, S, S) float, 0 to 255, as Core ML passes images."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.network(image.permute(0, 2, 3, 1)))

    with quiet():
        program = torch.export.export(OneImage().eval(), (torch.zeros(1, 3, side, side),)).run_decompositions(
            {cross: torch.export.default_decompositions()[cross]}  # the one operator that coremltools 9 has not
        )
        package = coremltools.convert(
            program,
            inputs=[
                coremltools.ImageType(name="image", shape=(1, 3, side, side), color_layout=coremltools.colorlayout.RGB)
            ],
            outputs=[coremltools.TensorType(name=name) for name in HandOutput._fields],
            compute_precision=coremltools.precision.FLOAT32,  # half precision moves vertices by millimetres
            minimum_deployment_target=coremltools.target.iOS16,
        )
        package.short_description = "handmesh: a right hand's crop -> camera, pose, shape, mesh, joints"
        image = {"shape": [side, side], "dtype": "RGB image", "meaning": "one hand; normalisation is inside the graph"}
        for name, value in (metadata_of(path) | {"inputs": json.dumps({"image": image})}).items():
            package.user_defined_metadata[name] = value
        package.save(str(written))
        spec = coremltools.utils.load_spec(str(written))
    outputs = [output.name for output in spec.description.output]
    picture = spec.description.input[0].type.imageType
    if sorted(outputs) != sorted(HandOutput._fields) or (picture.width, picture.height) != (side, side):
        raise ExportError(f"Core ML's specification has outputs {outputs} and an image of {picture.width} px: deleted.")
    return {"error_mm": None}


# --- int8 -------------------------------------------------------------------------------------------------------------


def _write_int8(path: Path, format: Format, written: Path) -> dict[str, Any]:
    exact = plain_graph(path)
    reference = _reference(path)
    resolution = reference.resolution
    scored = synthetic_crops(resolution, SCORED_COUNT, _SCORED_SEED)
    float32 = reference(scored.images)
    with tempfile.TemporaryDirectory() as scratch:
        coarse, kept, cost, distance = _within_cost(exact, float32, scored, resolution, Path(scratch))
        fast, slow = Path(scratch) / "fast.onnx", Path(scratch) / "slow.onnx"
        fast.write_bytes(coarse)
        slow.write_bytes(exact)
        crop = scored.images[:1]
        times = time_in_turns(
            {name: _one_thread(graph, crop) for name, graph in (("int8", fast), ("float32", slow))},
            runs=10,
            clock="cpu",
        )
    speed = times["int8"].median_ms / times["float32"].median_ms
    if speed >= 1:
        logger.warning("int8 takes %.2f of float32's time on this processor: it is for processors with VNNI.", speed)
    record = json.loads(metadata_of(path)["handmesh_record"]) | {"precision": "int8"}
    metadata = {
        "handmesh_record": json.dumps(record),
        "int8_cost_mm": f"{cost:.3f}",
        "int8_distance_mm": f"{distance:.3f}",
        "int8_kept_in_float32": ", ".join(kept) or "nothing",
    }
    if format == "onnx":
        written.write_bytes(with_metadata(coarse, metadata_of(path) | metadata))
        OnnxEngine(written, threads=1)(scored.images[:2])
    else:
        _save_openvino(coarse, written, metadata_of(path) | metadata)
        OpenVinoEngine(written, threads=1)(scored.images[:2])
    return {"error_mm": None, "cost_mm": cost, "distance_mm": distance, "speed": speed, "kept": tuple(kept)}


def _one_thread(graph: Path, crop: NDArray[np.uint8]) -> Callable[[], HandOutput]:
    engine = OnnxEngine(graph, threads=1)
    return lambda: engine(crop)


def _within_cost(
    exact: bytes, float32: HandOutput, scored: Crops, resolution: int, scratch: Path
) -> tuple[bytes, list[str], float, float]:
    """Quantise, and keep the part that hurts most in float32 until the cost is small -> graph, parts, cost, distance.

    The parts are the stem, the stages and what lies between them.
    """
    exact_path = scratch / "exact.onnx"
    exact_path.write_bytes(exact)
    parts = quantisable(exact)
    calibration = synthetic_crops(resolution, CALIBRATION_COUNT, _CALIBRATION_SEED).images

    def attempt(kept: Sequence[str]) -> tuple[float, float, bytes]:
        nodes = [node for part, inside in parts.items() if part not in kept for node in inside]
        graph = quantised(exact_path, nodes, calibration, scratch)
        path = scratch / "attempt.onnx"
        path.write_bytes(graph)
        answered = OnnxEngine(path, threads=1)(scored.images)
        cost = pa_mean_error(scored.vertices, answered.vertices) - pa_mean_error(scored.vertices, float32.vertices)
        distance = pa_mean_error(float32.vertices, answered.vertices)
        return 1000 * float(cost.mean()), 1000 * float(distance.mean()), graph

    kept: list[str] = []
    cost, distance, graph = attempt(kept)
    while cost > MAX_INT8_COST_MM and len(kept) < len(parts) - 1:
        tried = {part: attempt([*kept, part]) for part in parts if part not in kept}
        best = min(tried, key=lambda part: tried[part][0])
        kept.append(best)
        cost, distance, graph = tried[best]
    if cost > MAX_INT8_COST_MM:
        raise ExportError(
            f"int8 costs {cost:.2f} mm of PA-MPVPE, more than {MAX_INT8_COST_MM} mm, whatever part stays in float32: "
            "nothing was written. Export float32."
        )
    return graph, kept, cost, distance


def quantisable(graph: bytes) -> dict[str, list[str]]:
    """Part of the backbone -> names of its 1x1 convolutions and of products with a weight, as attention's projections.

    Not those of squeeze-and-excitation, which are of one pixel.
    """
    import onnx

    model = onnx.load_from_string(graph)
    weights = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    parts: dict[str, list[str]] = {}
    for node in model.graph.node:
        scope = scope_of(node.name).split(".")
        if scope[0] != "backbone" or "se" in scope:
            continue
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        if shape and ((node.op_type == "Conv" and shape[2:] == (1, 1)) or node.op_type in ("MatMul", "Gemm")):
            parts.setdefault(_part(scope), []).append(node.name)
    return parts


def _part(scope: Sequence[str]) -> str:
    """backbone, network, 4, 2, convffn -> network.4: a module of the backbone, or one in a list of it."""
    return ".".join(scope[1:3] if len(scope) > 2 and scope[2].isdecimal() else scope[1:2])


def quantised(graph: Path, nodes: list[str], calibration: NDArray[np.uint8], scratch: Path) -> bytes:
    """The graph with these nodes in int8, ranges taken from `calibration`, (N, S, S, 3) uint8; scratch: a folder."""
    quantization = import_onnxruntime("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self._crops: Iterator[NDArray[np.uint8]] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            crop = next(self._crops, None)
            return None if crop is None else {"crops": crop[None]}

    result = scratch / "quantised.onnx"
    with quiet():
        quantization.quantize_static(
            graph,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return result.read_bytes()
