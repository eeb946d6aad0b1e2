"""What there is to compute on."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
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


def _nvidia_driver() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"))  # Linux, WSL, Jetson
