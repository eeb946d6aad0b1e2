"""ONNX Runtime: its door, and the engine that runs on it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError
from handmesh.hand import HandOutput
from handmesh.model.file import config_of, hand_of, read_record
from handmesh.runtime.graph import hand_output, is_exported, open_graph, outputs_in, precision_of, record_in
from handmesh.system.cpus import checked_threads


def import_onnxruntime(module: str = "onnxruntime") -> Any:
    """ONNX Runtime, or a module of it. From 1.29 on it reports to its maker and leaves files in the user's home, unless
    it is told not to before it is imported: here it always is.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module(module)


def session_of(graph: Path | bytes, threads: int, providers: tuple[str, ...] = (), *, spinning: bool = True) -> Any:
    """An onnxruntime.InferenceSession on `threads` threads of the CPU, or on one of `providers`."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; what it warns of is nothing to act on
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=[*providers, "CPUExecutionProvider"])


def metadata_in(session: Any) -> dict[str, str]:
    """What a session's graph says about itself."""
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return metadata


def _of_a_damaged_file() -> tuple[type[Exception], ...]:
    """What is raised about a file that is not a whole graph. Memory, threads, a GPU, or a version of ONNX that this
    runtime does not know (`Fail`, `RuntimeException`, ...) are no fault of the file.
    """
    errors = import_onnxruntime("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoModel")
    return (*(getattr(errors, name) for name in names), UnicodeDecodeError)


class OnnxEngine:
    """ONNX Runtime, float32, on the graph that lies beside a model file (`handmesh.runtime.graph`)."""

    def __init__(self, path: Path, *, threads: int | None = None, cuda: bool = False, spinning: bool = True) -> None:
        """`path`: a model file, or an exported graph. Raises CheckpointError, AssetError or ConfigError.

        `spinning`: threads wait for each other in a loop, which is faster where nobody else wants the processors, and
        takes twice the processor time where somebody does (docs/explain/service.md has the measurement).
        """
        count = checked_threads(threads)
        wanted: tuple[str, ...] = ()
        if cuda:
            available = import_onnxruntime().get_available_providers()
            if "CUDAExecutionProvider" not in available:
                raise ConfigError(
                    f"This ONNX Runtime has {', '.join(available)}, and no CUDA: install onnxruntime-gpu in the place "
                    "of onnxruntime, or take the torch engine."
                )
            wanted = ("CUDAExecutionProvider",)

        def load(graph: Path | bytes) -> Any:
            return session_of(graph, count, wanted, spinning=spinning)

        kinds = Exception  # its own have no common root
        self._session = open_graph(path, load, metadata_in, kinds, "ONNX Runtime", _of_a_damaged_file())
        self.record = record_in(metadata_in(self._session), path) if is_exported(path) else read_record(path)
        self.hand = hand_of(self.record, path)
        self.resolution = config_of(self.record, path).resolution
        self._outputs = outputs_in(output.name for output in self._session.get_outputs())
        device = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"
        version = import_onnxruntime().__version__
        self.name = f"onnxruntime {version} {precision_of(self.record)} on {device}"

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        return hand_output(self._session.run(self._outputs, {"crops": np.ascontiguousarray(crops)}))
