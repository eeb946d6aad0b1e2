"""PyTorch as an engine: for GPUs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError
from handmesh.hand import HandOutput
from handmesh.model.file import hand_of
from handmesh.runtime.device import Device, Precision, best_device, cpu_gains_by_bfloat16
from handmesh.system.extras import extra

# A CUDA graph is captured for each of these batch sizes; a batch in between is filled up, a larger one cut.
_GRAPH_BATCHES = (1, 2, 4, 8, 16, 32, 64)


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
        with extra("train", "the torch engine"):
            import torch

            from handmesh.model.checkpoint import load_model
            from handmesh.model.network import to_device

        if threads is not None:
            torch.set_num_threads(threads)
        model, self.record = load_model(path)
        self._torch = torch
        self._device = torch.device(_present_device(device))
        reparameterized = model if model.reparameterized else model.reparameterize()
        self._model = to_device(reparameterized, self._device).eval()
        self.resolution = model.config.resolution
        self.hand = hand_of(self.record, path)
        if precision == "auto":
            precision = "float16" if self._device.type == "cuda" else "float32"
        if precision == "float16" and self._device.type == "cpu":
            raise ConfigError("torch on a CPU computes in float32 or bfloat16, not in float16.")
        if precision == "bfloat16" and self._device.type == "cpu" and not cpu_gains_by_bfloat16():
            raise ConfigError("This processor does not multiply bfloat16: take float32.")
        self._half = None if precision == "float32" else getattr(torch, precision)
        self._graphs: dict[int, Any] = {}
        self._lock = threading.Lock()  # a captured graph has one place for its input
        self.name = f"torch {torch.__version__.split('+')[0]} {precision} on {self._device}"

    def __call__(self, crops: NDArray[np.uint8]) -> HandOutput:
        crops = np.require(
            crops, requirements=("C", "W")
        )  # torch takes no mirrored view, and warns of what is read-only
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


def _present_device(device: Device) -> str:
    import torch

    if device == "auto":
        return best_device()
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in present:
        raise ConfigError(f"There is no device {device!r}. Known: auto, {', '.join(present)}.")
    if not present[device]:
        raise ConfigError(f"torch finds no {device} device on this machine: take cpu, or auto.")
    return device
