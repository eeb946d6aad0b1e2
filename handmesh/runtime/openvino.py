"""OpenVINO: its door, and the engine that runs on it."""

from __future__ import annotations

import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import CheckpointError, ConfigError
from handmesh.hand import HandOutput
from handmesh.model.file import config_of, hand_of, read_record
from handmesh.runtime.graph import (
    RECORD,
    WEIGHTS_SHA256,
    hand_output,
    is_exported,
    open_graph,
    outputs_in,
    precision_of,
    record_in,
    scope_of,
)
from handmesh.system.cpus import checked_threads
from handmesh.system.extras import install_command

_one_thread = threading.Lock()


def import_openvino() -> Any:
    """OpenVINO, which reports home when it is imported, unless its telemetry cannot be: here it never can."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        import openvino
    except ImportError:
        raise ConfigError(f"OpenVINO is not installed: {install_command('openvino')}.") from None
    return openvino


def openvino_core() -> Any:
    """One for the whole process. Where each engine had its own, a native thread crashed the process some seconds after
    the last engine was gone: its plugin seems to be unloaded from under its idle threads.
    """
    with _one_thread:
        return _core()


@cache  # alone, it lets threads that come first together make one each
def _core() -> Any:
    return import_openvino().Core()


def _metadata_in(model: Any) -> dict[str, str]:
    """What a graph says about itself; an ONNX file's metadata lies one level deeper than that of OpenVINO's own."""
    for place in ([], ["framework"]):
        if model.has_rt_info([*place, RECORD]):
            keys = (RECORD, WEIGHTS_SHA256)
            return {key: model.get_rt_info([*place, key]).astype(str) for key in keys}
    return {}


def _split_after_backbone(openvino: Any, model: Any) -> tuple[Any, Any]:
    """The backbone, and all that follows its features. `model` is used up."""
    front = model.clone()
    backbone = openvino.Model(_features(front), front.get_parameters(), "backbone")
    given = []
    for features in _features(model):
        shape = [-1, *(side.get_length() for side in list(features.get_partial_shape())[1:])]
        given.append(openvino.opset13.parameter(shape, np.float32))
        for consumer in features.get_target_inputs():
            if not _of_backbone(consumer.get_node()):
                consumer.replace_source_output(given[-1].output(0))
    for consumer in model.get_parameters()[0].output(0).get_target_inputs():
        if consumer.get_node().get_type_name() == "ShapeOf":  # how many crops there are: as many as features
            consumer.replace_source_output(given[0].output(0))
    return backbone, openvino.Model(model.get_results(), given, "geometry")


def _features(model: Any) -> list[Any]:
    """What the backbone gives: the values that go from its modules to what is computed after them, by name."""
    if old := [operation for operation in model.get_ops() if operation.get_friendly_name() == "pooled"]:
        return [old[0].output(0)]  # so graphs of earlier versions called it
    found = {
        given.get_node().get_friendly_name(): given
        for operation in model.get_ops()
        if "/" in operation.get_friendly_name() and not _of_backbone(operation)  # without: a helper of OpenVINO's own
        for given in operation.input_values()
        if _of_backbone(given.get_node())
    }
    return [found[name] for name in sorted(found)]


def _of_backbone(operation: Any) -> bool:
    return bool(scope_of(operation.get_friendly_name()).split(".")[0] == "backbone")


class OpenVinoEngine:
    """OpenVINO on the CPU. bfloat16 pays where the processor multiplies it (AVX512-BF16, AMX)."""

    def __init__(
        self, path: Path, *, threads: int | None = None, precision: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        """`path`: a model file, or an exported graph (.onnx or .xml). Raises CheckpointError, AssetError or
        ConfigError.
        """
        openvino = import_openvino()
        core = openvino_core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("This processor does not multiply bfloat16: take float32.")
        settings = {"INFERENCE_NUM_THREADS": checked_threads(threads), "PERFORMANCE_HINT": "LATENCY"}
        # Never its own choice of precision: that is bfloat16 wherever the processor has it.
        exact, hinted = {"INFERENCE_PRECISION_HINT": "f32"}, {"INFERENCE_PRECISION_HINT": "bf16"}
        model = open_graph(path, core.read_model, _metadata_in, RuntimeError, "OpenVINO")
        try:
            if precision == "float32":
                self._parts = [core.compile_model(model, "CPU", settings | exact)]
            else:  # rotations and lengths in bfloat16 would move vertices by millimetres
                backbone, geometry = _split_after_backbone(openvino, model)
                self._parts = [core.compile_model(backbone, "CPU", settings | hinted)]
                self._parts.append(core.compile_model(geometry, "CPU", settings | exact))
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be run by OpenVINO: {error}. Export it again.") from error
        self.record = record_in(_metadata_in(model), path) if is_exported(path) else read_record(path)
        self.hand = hand_of(self.record, path)
        self.resolution = config_of(self.record, path).resolution
        said = precision_of(self.record)
        self.name = f"openvino {openvino.__version__.split('-')[0]} {precision if said == 'float32' else said} on cpu"
        self._outputs = outputs_in(output.get_any_name() for output in model.outputs)
        self._idle: list[list[Any]] = []  # requests; one can run one batch at a time

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        try:
            requests = self._idle.pop()
        except IndexError:  # as many as threads ever called at once
            requests = [part.create_infer_request() for part in self._parts]
        *before, last = requests
        values = [np.ascontiguousarray(crops)]
        for request in before:
            found = request.infer(values)
            values = [found[number] for number in range(len(found))]
        answers = last.infer(values)
        output = hand_output([np.array(answers[name]) for name in self._outputs])
        self._idle.append(requests)
        return output
