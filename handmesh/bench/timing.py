"""The machine that was measured, and how large a backbone is: what a reader needs to compare numbers.

A measurement is a row of plain values; `as_json` turns rows into the one shape that all of handmesh's benchmarks write:
``{"machine": {...}, "rows": [{"model": ..., "engine": ..., "network_ms": ..., ...}]}``.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handmesh.runtime.onnx import import_onnxruntime
from handmesh.system.cpus import usable_cores

if TYPE_CHECKING:
    from torch import nn

    from handmesh.model.backbone import Backbone


def has_torch() -> bool:
    """Whether torch is installed: the ONNX engine is measured without it."""
    return importlib.util.find_spec("torch") is not None


def describe_machine() -> dict[str, str | int | float | None]:
    """What a reader must know to compare: CPU, cores that this process may use, load, systems and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # before the measurement
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch") if has_torch() else None,
        "onnxruntime": import_onnxruntime().__version__,
    }


def as_json(machine: Mapping[str, Any], rows: Sequence[Any]) -> str:
    """Rows (dataclasses) and the machine as the JSON text that all benchmarks write."""
    return json.dumps({"machine": dict(machine), "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def count_parameters(module: nn.Module) -> int:
    """Numbers that are learnt; buffers such as running means are not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(backbone: Backbone, size: int) -> int:
    """Multiply-adds of one size x size image in convolutions, linear layers and attention, which is what papers count.

    Without a classifier. Nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shadow = copy.deepcopy(backbone).to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch, where it is installed, on this many threads, then on as many as before."""
    if not has_torch():
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
