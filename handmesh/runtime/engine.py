"""Running a trained network: (B, S, S, 3) uint8 RGB crops in, `HandOutput` of numpy arrays out.

Everything above this line of the program (crops, photos, the server) sees only the `Engine` protocol. `open_engine`
takes the fastest correct engine of this machine: on a CPU ONNX Runtime, which loads no torch; on an NVIDIA GPU torch in
half precision with CUDA graphs; on Apple's GPU torch. What each costs and is worth: docs/performance.md.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import CheckpointError, ConfigError, HandMeshError
from handmesh.hand import HandArrays, HandOutput
from handmesh.model.file import config_of, hand_of, read_record
from handmesh.runtime.graph_cache import cached_graph, forget_graph
from handmesh.system.cpus import usable_cores

logger = logging.getLogger(__name__)

BUNDLED_MODEL = "handmesh_t8"

Device = Literal["auto", "cpu", "cuda", "mps"]
EngineName = Literal["auto", "onnx", "torch", "openvino"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]

# A CUDA graph is captured for each of these batch sizes; a batch in between is filled up, a larger one cut.
_GRAPH_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Engine(Protocol):
    """Safe to call from several threads at once."""

    name: str  # for people: what computes, in which precision
    resolution: int  # side S of the crops it wants, pixels
    hand: HandArrays  # the right hand that its answers are made of
    record: dict[str, Any]  # what the model file says about itself

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput: ...


def open_engine(
    model: str | Path | None = None,
    device: Device = "auto",
    *,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
) -> Engine:
    """The engine for a model: None or "handmesh_t8" for the bundled one, else the path of a model file (.safetensors),
    or of a graph that `handmesh export` made (.onnx, or OpenVINO's .xml).

    `device` "auto": a GPU that is there, else the CPU. `engine` "auto": the fastest one for the device. `precision`
    "auto": float32 on a CPU and Apple's GPU, float16 on CUDA. `threads` of the CPU: None takes `default_threads`.
    Raises CheckpointError when there is no such model; AssetError where its hand is MANO's and MANO was not added;
    ConfigError for a device, engine or precision that this machine or engine does not have.
    """
    path = find_model(model)
    threads = threads or default_threads()
    if path.suffix in (".onnx", ".xml") and engine == "torch":
        raise ConfigError(
            f"{path} is an exported file, which torch does not run: give the model file it was made from."
        )
    if path.suffix == ".xml":
        if engine == "onnx":
            raise ConfigError(f"{path} is OpenVINO's: take that engine, or export the model with --format onnx.")
        return OpenVinoEngine(path, threads=threads, precision=_only("openvino", precision, "float32", "bfloat16"))
    if path.suffix == ".onnx":
        if engine == "openvino":
            return OpenVinoEngine(path, threads=threads, precision=_only(engine, precision, "float32", "bfloat16"))
        _only("onnx", precision, "float32")
        return OnnxEngine(path, threads=threads, cuda=device == "cuda")
    if device == "auto":
        device = _best_device() if engine in ("auto", "torch") else "cpu"
    if engine == "auto":
        engine = "onnx" if device == "cpu" else "torch"
    if engine == "torch":
        return TorchEngine(path, device, precision=precision, threads=threads if device == "cpu" else None)
    if engine == "openvino":
        return OpenVinoEngine(path, threads=threads, precision=_only(engine, precision, "float32", "bfloat16"))
    _only("onnx", precision, "float32")
    return OnnxEngine(path, threads=threads, cuda=device == "cuda")


def find_model(model: str | Path | None) -> Path:
    """The file of a model by name or path. Raises CheckpointError when it is not there."""
    if model is None or str(model) == BUNDLED_MODEL:
        return bundled_model_path()
    path = Path(model)
    if not path.is_file():
        raise CheckpointError(
            f"No model at {path}. Give the path of a .safetensors file that `handmesh train` wrote, or "
            f"{BUNDLED_MODEL!r} for the one that ships with the package."
        )
    return path


def bundled_model_path() -> Path:
    """Where the model that ships with the package lies."""
    return Path(__file__).parents[1] / "assets" / f"{BUNDLED_MODEL}.safetensors"


def default_threads() -> int:
    """One for each processor core that this process may use, but no more than $OMP_NUM_THREADS."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    usable = usable_cores()
    return min(usable, int(limit)) if limit.isdecimal() and int(limit) > 0 else usable


class OnnxEngine:
    """ONNX Runtime, float32. The graph is made at first use of a model and kept (`handmesh.runtime.graph_cache`)."""

    def __init__(self, path: Path, *, threads: int | None = None, cuda: bool = False) -> None:
        """`path`: a model file, or an exported graph. Raises CheckpointError, AssetError or ConfigError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.log_severity_level = 3  # errors; what it warns of is nothing to act on
        providers = ["CPUExecutionProvider"]
        if cuda:
            available = onnxruntime.get_available_providers()
            if "CUDAExecutionProvider" not in available:
                raise ConfigError(
                    f"This ONNX Runtime has {', '.join(available)}, and no CUDA: install onnxruntime-gpu in the place "
                    "of onnxruntime, or take the torch engine."
                )
            providers.insert(0, "CUDAExecutionProvider")

        def session(graph: Path | bytes) -> Any:
            return onnxruntime.InferenceSession(_for_runtime(graph), options, providers=providers)

        self._session = _loaded(path, session, Exception, "ONNX Runtime")  # its own kinds have no common root
        if path.suffix == ".onnx":
            self.record = _record_in(self._session.get_modelmeta().custom_metadata_map, path)
        else:
            self.record = read_record(path)
        self.hand = hand_of(self.record, path)
        self.resolution = config_of(self.record, path).resolution
        device = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"
        self.name = f"onnxruntime {onnxruntime.__version__} {_precision_of(self.record)} on {device}"

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        return HandOutput(*self._session.run(HandOutput._fields, {"crops": np.ascontiguousarray(crops)}))


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
        settings = {"INFERENCE_NUM_THREADS": threads or default_threads(), "PERFORMANCE_HINT": "LATENCY"}
        # Never its own choice of precision: that is bfloat16 wherever the processor has it.
        exact, hinted = {"INFERENCE_PRECISION_HINT": "f32"}, {"INFERENCE_PRECISION_HINT": "bf16"}
        model = _loaded(path, core.read_model, RuntimeError, "OpenVINO")
        try:
            if precision == "float32":
                self._parts = [core.compile_model(model, "CPU", settings | exact)]
            else:  # rotations and lengths in bfloat16 would move vertices by millimetres
                backbone, geometry = _split_at_pooled(openvino, model)
                self._parts = [core.compile_model(backbone, "CPU", settings | hinted)]
                self._parts.append(core.compile_model(geometry, "CPU", settings | exact))
        except RuntimeError as error:
            raise CheckpointError(f"{path} cannot be run by OpenVINO: {error}. Export it again.") from error
        if path.suffix in (".onnx", ".xml"):
            # An ONNX file's metadata lies one level deeper.
            place = ["handmesh_record"] if path.suffix == ".xml" else ["framework", "handmesh_record"]
            metadata = {"handmesh_record": model.get_rt_info(place).astype(str)} if model.has_rt_info(place) else {}
            self.record = _record_in(metadata, path)
        else:
            self.record = read_record(path)
        self.hand = hand_of(self.record, path)
        self.resolution = config_of(self.record, path).resolution
        said = _precision_of(self.record)
        self.name = f"openvino {openvino.__version__.split('-')[0]} {precision if said == 'float32' else said} on cpu"
        self._idle: list[list[Any]] = []  # requests; one can run one batch at a time

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        try:
            requests = self._idle.pop()
        except IndexError:  # as many as threads ever called at once
            requests = [part.create_infer_request() for part in self._parts]
        *before, last = requests
        values = np.ascontiguousarray(crops)
        for request in before:
            values = request.infer([values])[0]
        answers = last.infer([values])
        output = HandOutput(*(np.array(answers[name]) for name in HandOutput._fields))
        self._idle.append(requests)
        return output


class TorchEngine:
    """PyTorch, train-time branches folded away, channels last.

    On CUDA the network runs in half precision (heads and hand model in float32) and from CUDA graphs: the first batch
    of each size is slow.
    """

    def __init__(
        self,
        path: Path,
        device: Device = "auto",
        *,
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> None:
        """Raises CheckpointError; AssetError where the model's hand is MANO's and MANO was not added; ConfigError for a
        device that is not there.

        `threads`: torch's intra-op threads for the whole process; None leaves them alone.
        """
        import torch

        from handmesh.model.checkpoint import load_model
        from handmesh.model.network import to_device

        if threads is not None:
            torch.set_num_threads(threads)
        model, self.record = load_model(path)
        self._torch = torch
        self._device = torch.device(_present_device(device))
        folded = model if model.folded else model.reparameterize()
        self._model = to_device(folded, self._device).eval()
        self.resolution = model.config.resolution
        self.hand = hand_of(self.record, path)
        if precision == "auto":
            precision = "float16" if self._device.type == "cuda" else "float32"
        if precision == "float16" and self._device.type == "cpu":
            raise ConfigError("torch on a CPU computes in float32 or bfloat16, not in float16.")
        self._half = None if precision == "float32" else getattr(torch, precision)
        self._graphs: dict[int, Any] = {}
        self._lock = threading.Lock()  # a captured graph has one place for its input
        self.name = f"torch {torch.__version__.split('+')[0]} {precision} on {self._device}"

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        with self._torch.inference_mode():
            if self._device.type == "cuda":
                return self._on_cuda(crops)
            output = self._network(self._torch.from_numpy(crops).to(self._device))
        return HandOutput(*(tensor.cpu().numpy() for tensor in output))

    def _network(self, crops: Any) -> HandOutput:
        kind, half = self._device.type, self._half
        with self._torch.autocast(kind, dtype=half, enabled=half is not None, cache_enabled=False):
            return self._model(crops)

    def _on_cuda(self, crops: NDArray[np.uint8]) -> HandOutput:
        parts = []
        with self._lock, self._torch.cuda.device(self._device):
            for start in range(0, len(crops), _GRAPH_BATCHES[-1]):
                part = crops[start : start + _GRAPH_BATCHES[-1]]
                size = next(size for size in _GRAPH_BATCHES if size >= len(part))
                if size not in self._graphs:
                    self._graphs[size] = self._captured(size)
                graph, inputs, outputs = self._graphs[size]
                inputs[: len(part)].copy_(self._torch.from_numpy(part))
                graph.replay()
                parts.append([tensor[: len(part)].cpu().numpy() for tensor in outputs])  # waits for the graph
        return HandOutput(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _captured(self, size: int) -> tuple[Any, Any, HandOutput]:
        """(graph, its input, its outputs). As torch's manual has it: warm up on another stream, then capture."""
        torch = self._torch
        inputs = torch.zeros(size, self.resolution, self.resolution, 3, dtype=torch.uint8, device=self._device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._network(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._network(inputs)
        return graph, inputs, outputs


# --- What this machine has --------------------------------------------------------------------------------------------


def _best_device() -> Literal["cpu", "cuda", "mps"]:
    """Asks torch only where there is a GPU: importing it takes longer than a prediction."""
    if _nvidia_driver():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        import torch

        if torch.backends.mps.is_available():
            return "mps"
    return "cpu"


def _nvidia_driver() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"))  # Linux, WSL, Jetson


def _present_device(device: Device) -> str:
    import torch

    if device == "auto":
        return _best_device()
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in present:
        raise ConfigError(f"There is no device {device!r}. Known: auto, {', '.join(present)}.")
    if not present[device]:
        raise ConfigError(f"torch finds no {device} device on this machine: take cpu, or auto.")
    return device


def import_openvino() -> Any:
    """OpenVINO, which reports home when it is imported, unless its telemetry cannot be: here it never can."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        import openvino
    except ImportError:
        raise ConfigError('OpenVINO is not installed: pip install "handmesh[openvino]".') from None
    return openvino


@cache
def openvino_core() -> Any:
    """One for the whole process. Where each engine had its own, a native thread crashed the process some seconds after
    the last engine was gone: its plugin seems to be unloaded from under its idle threads.
    """
    return import_openvino().Core()


def _split_at_pooled(openvino: Any, model: Any) -> tuple[Any, Any]:
    """The backbone, and all that follows the pooled features. `model` is used up."""
    (pooled,) = (operation for operation in model.get_ops() if operation.get_friendly_name() == "pooled")
    backbone = openvino.Model([pooled.output(0)], model.get_parameters(), "backbone")
    features = openvino.opset13.parameter([-1, pooled.get_output_partial_shape(0)[1].get_length()], np.float32)
    for consumer in pooled.output(0).get_target_inputs():
        if consumer.get_node().get_type_name() != "Result":
            consumer.replace_source_output(features.output(0))
    return backbone, openvino.Model(model.get_results(), [features], "geometry")


def _only(engine: str, precision: Precision, *known: Any) -> Any:
    if precision == "auto":
        return known[0]
    if precision not in known:
        raise ConfigError(f"The {engine} engine computes in {' or '.join(known)}, not in {precision}.")
    return precision


Loaded = TypeVar("Loaded")


def _loaded(path: Path, load: Callable[[Path | bytes], Loaded], kinds: type[Exception], runtime: str) -> Loaded:
    """What `load` makes of an exported file, or of a model's cached graph; one that cannot be read is made anew."""
    exported = path.suffix in (".onnx", ".xml")
    try:
        return load(path if exported else cached_graph(path))
    except HandMeshError:  # of ours, before any graph: a missing file, or another hand
        raise
    except kinds as error:
        if exported:
            raise CheckpointError(f"{path} cannot be run by {runtime}: {error}. Export it again.") from error
        logger.warning("The cached graph of %s cannot be read (%s): it is made anew.", path.name, error)
    forget_graph(path)
    try:
        return load(cached_graph(path))
    except kinds as error:
        raise CheckpointError(f"{path} cannot be run by {runtime}: {error}.") from error


def _for_runtime(graph: Path | bytes) -> str | bytes:
    return graph if isinstance(graph, bytes) else str(graph)


def _record_in(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(metadata["handmesh_record"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} has no handmesh record: it is no graph that `handmesh export` made.") from None
    return record


def _precision_of(record: dict[str, Any]) -> str:
    return str(record.get("precision", "float32"))
