"""Running a trained network: (B, S, S, 3) uint8 RGB crops in, `HandOutput` of numpy arrays out.

Everything above this line of the program (crops, photos, the server) sees only the `Engine` protocol. `open_engine`
takes the fastest correct engine of this machine: on a CPU ONNX Runtime, which loads no torch; on an NVIDIA GPU torch in
half precision with CUDA graphs; on Apple's GPU torch. What each costs and is worth: docs/how_to/performance.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError
from handmesh.hand import HandArrays, HandOutput
from handmesh.model.bundled import find_model
from handmesh.runtime.device import Device, Precision, best_device
from handmesh.system.cpus import checked_threads

EngineName = Literal["auto", "onnx", "torch", "openvino"]
_DEVICES = {"onnx": ("cpu", "cuda"), "torch": ("cpu", "cuda", "mps"), "openvino": ("cpu",)}  # of each engine


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
    if engine not in ("auto", *_DEVICES):
        raise ConfigError(f"There is no engine {engine!r}. Known: auto, {', '.join(_DEVICES)}.")
    path = find_model(model)
    threads = checked_threads(threads)
    if path.suffix in (".onnx", ".xml") and engine == "torch":
        raise ConfigError(
            f"{path} is an exported file, which torch does not run: give the model file it was made from."
        )
    if path.suffix == ".xml" and engine == "onnx":
        raise ConfigError(f"{path} is OpenVINO's: take that engine, or export the model with --format onnx.")
    if path.suffix in (".onnx", ".xml"):
        engine = "openvino" if path.suffix == ".xml" else "onnx" if engine == "auto" else engine
    elif device == "auto":
        device = best_device() if engine in ("auto", "torch") else "cpu"
    if engine == "auto":
        engine = "onnx" if device == "cpu" else "torch"
    if device not in ("auto", *_DEVICES[engine]):
        raise ConfigError(f"The {engine} engine runs on {' or '.join(_DEVICES[engine])}, not on {device!r}.")
    if engine == "torch":
        from handmesh.runtime.torch import TorchEngine

        return TorchEngine(path, device, precision=precision, threads=threads if device == "cpu" else None)
    if engine == "openvino":
        from handmesh.runtime.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads=threads, precision=_only(engine, precision, "float32", "bfloat16"))
    from handmesh.runtime.onnx import OnnxEngine

    _only("onnx", precision, "float32")
    return OnnxEngine(path, threads=threads, cuda=device == "cuda")


def _only(engine: str, precision: Precision, *known: Any) -> Any:
    if precision == "auto":
        return known[0]
    if precision not in known:
        raise ConfigError(f"The {engine} engine computes in {' or '.join(known)}, not in {precision}.")
    return precision
