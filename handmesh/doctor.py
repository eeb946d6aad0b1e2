"""What `handmesh doctor` looks at. Each finding says what is there, and what to do where something is missing."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from handmesh import __version__
from handmesh.detect.hands import BUNDLED_DETECTOR
from handmesh.errors import ConfigError, HandMeshError
from handmesh.hand import Handedness
from handmesh.hand.models import HAND_MODELS, HandModelSource
from handmesh.model.bundled import bundled_model_path
from handmesh.runtime.device import best_device
from handmesh.runtime.engine import open_engine
from handmesh.runtime.onnx import import_onnxruntime
from handmesh.system.cpus import default_threads, usable_cpus
from handmesh.system.extras import install_command
from handmesh.system.paths import CACHE_VARIABLE, can_be_written, user_cache_folder, user_data_folder

PACKAGES = ("numpy", "numba", "trimesh", "onnxruntime", "safetensors", "pillow", "fastapi")
# The same module, with windows or without, with further modules or without: any of them will do.
OPENCV_PACKAGES = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
OPTIONAL_PACKAGES = {
    "torch": f"for training and export: {install_command('train')}",
    "smplx": install_command("mano"),
    "pytorch3d": "see its INSTALL.md; it has no wheels",
    "tensorboard": install_command("train"),
    "mediapipe": install_command("detect"),
    "openvino": install_command("openvino"),
}


class Finding(NamedTuple):
    subject: str
    fact: str
    good: bool | None  # None: optional and absent


def examine() -> Iterator[Finding]:
    """One finding after the other; nothing raises."""
    yield Finding("handmesh", __version__, True)
    yield Finding(
        "Python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        sys.version_info >= (3, 11),
    )
    yield Finding("cpu", f"{usable_cpus()} of {os.cpu_count()} cores usable", True)
    for name in PACKAGES:
        yield _package(name, None)
    opencv = [_package(name, None) for name in OPENCV_PACKAGES]
    yield from [finding for finding in opencv if finding.good] or opencv[:1]
    for name, advice in OPTIONAL_PACKAGES.items():
        yield _package(name, advice)
    yield _guarded("device", _device)
    for hand in HAND_MODELS.values():
        for side in (Handedness.RIGHT,) if hand.file is None else Handedness:
            yield _hand(hand, side)
    yield _guarded("folder for what you add", lambda: _folder(user_data_folder()))
    yield _guarded("folder for caches", lambda: _folder(user_cache_folder()))
    yield _guarded("bundled model", lambda: _file(bundled_model_path()))
    yield _guarded("bundled detector", lambda: _file(BUNDLED_DETECTOR))
    yield _guarded("inference", _inference)


def _package(name: str, advice: str | None) -> Finding:
    try:
        return Finding(name, metadata.version(name), True)
    except metadata.PackageNotFoundError:
        return Finding(
            name,
            f"not installed ({advice})" if advice else "missing: install handmesh again",
            False if advice is None else None,
        )


def _guarded(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, look(), True)
    except (HandMeshError, ImportError, OSError, RuntimeError) as error:
        return Finding(subject, f"{type(error).__name__}: {error}", False)


def _device() -> str:
    """What the default engine runs on, or would."""
    try:
        import torch
    except ModuleNotFoundError:
        providers = import_onnxruntime().get_available_providers()
        names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
        return f"CPU, {default_threads()} threads (ONNX Runtime has {names})"
    device = best_device()
    if device == "cuda":
        return f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name()}"
    if device == "mps":
        return "MPS: Apple's GPU"
    return f"CPU, {default_threads()} threads"


def _hand(hand: HandModelSource, side: Handedness) -> Finding:
    """Absent is fine, where the user brings it; there and damaged is not."""
    subject = f"hand {hand.name!r}" if hand.file is None else f"hand {hand.name!r}, {side}"
    if not hand.is_there(side):
        return Finding(subject, f"not added (optional): {hand.how_to_add}", None)
    where = "ships with handmesh" if hand.file is None else str(hand.file(side).parent)
    return _guarded(subject, lambda: f"sha256 {hand.load(side).sha256[:12]}, {where}")


def _folder(folder: Path) -> str:
    if not can_be_written(folder):
        raise ConfigError(f"{folder} cannot be written: make it so, or name another by HOME or {CACHE_VARIABLE}.")
    # What stands in for a home lies beside other temporary files; a HOME there is its owner's choice.
    stands_in = folder.parent.parent == Path(tempfile.gettempdir()) and folder.parent.name.startswith("handmesh-")
    return f"{folder}{', which the system empties: set HOME to a folder that can be written' if stands_in else ''}"


def _file(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB, sha256 {digest[:12]}"


def _inference() -> str:
    engine = open_engine(threads=1)
    crops = np.full((1, engine.resolution, engine.resolution, 3), 128, np.uint8)
    engine(crops)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        output = engine(crops)
        times.append(time.perf_counter() - started)
    if not all(np.isfinite(part).all() for part in output):
        raise RuntimeError("the model answered with numbers that are not finite")
    return f"{engine.name}: {1000 * sorted(times)[2]:.1f} ms per {engine.resolution} px crop"
