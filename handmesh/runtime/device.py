"""What there is to compute on."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]


def best_device() -> Literal["cpu", "cuda", "mps"]:
    """The GPU, if there is one and torch to run on it. Asks torch only where there seems to be one: importing it takes
    longer than a prediction.
    """
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    if _nvidia_driver():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        import torch

        if torch.backends.mps.is_available():
            return "mps"
    return "cpu"


@cache
def cpu_gains_by_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX512-BF16, AMX, Arm's BF16), so that torch gains by it.

    Measured on a perceptron's product, for no interface of torch's says it. Where a processor does not, it takes up to
    70 times as long as in float32 (AVX2).
    """
    import torch

    cells, weights = torch.ones(512, 128), torch.ones(128, 384)

    def seconds(kind: torch.dtype) -> float:
        first, second, times = cells.to(kind), weights.to(kind), []
        for _ in range(4):  # the first is for the kernel's making
            started = time.perf_counter()
            torch.mm(first, second)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return seconds(torch.bfloat16) < seconds(torch.float32)


def _nvidia_driver() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"))  # Linux, WSL, Jetson
