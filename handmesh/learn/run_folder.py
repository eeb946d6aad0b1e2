"""What a training run leaves to be read: its settings and surroundings, its figures, its pictures, its final scores.

config.yaml, environment.json     every setting, resolved; versions, hardware, git commit, command line
metrics.jsonl                     losses and speed every `log_every` steps, scores at every evaluation
tensorboard/                      the same as curves, and overlays; where TensorBoard is installed
scores.json                       the scores of the model that the run has written
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from handmesh.config.detector import DetectorConfig
from handmesh.config.train import TrainConfig
from handmesh.data.sources import files_sha256
from handmesh.errors import CheckpointError
from handmesh.hand import HandArrays
from handmesh.learn.trackers import Tracker
from handmesh.model.bundled import find_model
from handmesh.model.pretrained import find_backbone_weights
from handmesh.system.atomic import sha256_of_file, written_atomically
from handmesh.system.extras import install_command

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


def describe_data(sources: Iterable[tuple[str, int, Iterable[Path]]]) -> dict[str, Any]:
    """What a run learns from, by name, of (name, samples, files): where it lies, and the SHA-256 of all of it."""
    described = {}
    for name, samples, paths in sources:
        files = list(paths)
        described[name] = {"samples": samples, "path": str(files[0] if files else name), "sha256": files_sha256(files)}
    return described


def describe_start(config: TrainConfig, hand: HandArrays) -> dict[str, Any]:
    """What a run starts from, each with its SHA-256: the hand and the weights."""
    inputs: dict[str, Any] = {"hand": {"name": config.model.hand, "sha256": hand.sha256}}
    if config.pretrained is not None:
        inputs["pretrained"] = describe_weights(config.pretrained, find_backbone_weights(config.pretrained))
    if config.start_from is not None:
        inputs["start_from"] = describe_weights(config.start_from, find_model(config.start_from))
    return inputs


def describe_weights(name: str, path: Path) -> dict[str, str]:
    """What a setting calls `name`: where it lies, and its SHA-256."""
    return {"name": name, "path": str(path), "sha256": sha256_of_file(path)}


def write_run_record(
    config: TrainConfig | DetectorConfig,
    directory: Path,
    processes: int,
    data: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
) -> None:
    """`config.yaml` with every setting, and `environment.json`: what ran this, what it started from, and `data`.

    Without `start`, for a run that goes on, what its beginning said stays, and a warning names `data` that are others.
    """
    with written_atomically(directory / "config.yaml", error=CheckpointError, create_folder=True) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    environment: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "commit": git_commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": processes,
        "inputs": _former_inputs(directory, data) if start is None else {**start, "data": data},
    }
    write_json(directory / "environment.json", environment)


def _former_inputs(directory: Path, data: Mapping[str, Any]) -> Any:
    """None for a run of a version that did not record them, or whose record is damaged."""
    try:
        inputs = json.loads((directory / "environment.json").read_text(encoding="utf-8")).get("inputs")
    except (OSError, ValueError):
        return None
    former = (inputs or {}).get("data", {})
    for name, now in data.items():
        if name in former and former[name]["sha256"] != now["sha256"]:
            counts = f"{now['samples']} samples, {former[name]['samples']} then"
            logger.warning("%s: %s is not what this run began with (%s); it goes on so", name, now["path"], counts)
    return inputs


def git_commit() -> str | None:
    """The commit this package runs from, "-dirty" after it where files were changed; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git on this machine
    return commit.stdout.strip() + ("-dirty" if changes.returncode else "")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Atomic. Raises CheckpointError when it cannot be written."""
    with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class RunLog:
    """Figures and pictures of a run, step by step. `step`: where it starts or goes on; later records are dropped."""

    def __init__(self, directory: Path, step: int, *, tensorboard: bool, tracker: Tracker | None = None) -> None:
        self._tracker = tracker
        self._file = directory / METRICS
        _rewind(self._file, step)
        self._curves = directory / "tensorboard"
        self._writer = _tensorboard_writer(self._curves, step) if tensorboard else None

    def add(self, step: int, record: Mapping[str, Any], group: str) -> None:
        """One line of metrics.jsonl, and a point on each curve of `group`. Raises CheckpointError on a full disk."""
        with _writing(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")
        figures = {f"{group}/{name}": float(value) for name, value in record.get(group, record).items()}
        if self._writer is not None:
            with _writing(self._curves):
                for name, value in figures.items():
                    self._writer.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker(step, figures)

    def draws(self) -> bool:
        """Whether somebody will see pictures."""
        return self._writer is not None

    def add_picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """(H, W, 3) RGB."""
        if self._writer is not None:
            with _writing(self._curves):
                self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            with _writing(self._curves):
                self._writer.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Within, what the disk refuses is a CheckpointError that names the path. TensorBoard says of an earlier figure, at
    a later one, that there was no space, and not for what.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}.") from error


def _tensorboard_writer(directory: Path, step: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own imports are not ours to mend
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard here: curves are in %s alone (%s)", METRICS, install_command("train"))
        return None
    return SummaryWriter(str(directory), purge_step=step)


def _rewind(path: Path, step: int) -> None:
    """Drop the records after `step`, and half a line at the end: a run that goes on from there writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            logger.warning("%s: a damaged line is dropped", path)
    with written_atomically(path, error=CheckpointError, create_folder=True) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
