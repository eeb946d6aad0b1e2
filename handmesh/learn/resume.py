"""A run's folder: claimed by a new run, or holding the state that one goes on from."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from handmesh.config.detector import DetectorConfig
from handmesh.config.load import parse_config, parse_detector_config
from handmesh.config.settings import flat_settings
from handmesh.config.train import TrainConfig
from handmesh.errors import CheckpointError, ConfigError
from handmesh.learn.distributed import Ranks
from handmesh.model.checkpoint import load_latest_state
from handmesh.system.lock import locked

# Settings with these names may differ when a run goes on: where its files lie now, and how it is watched and fed.
_MAY_CHANGE = frozenset(
    (
        "directory",
        "path",
        "workers",
        "threads",
        "skip_bad_images",
        "loader_workers",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
    )
)

_LOCK = ".run.lock"
# Loaders of a run that was killed hold its lock until they see that it is gone, for which they look every 5 seconds.
_LOADERS_END_S = 15.0

_MODELS = ("model.safetensors", "detector.onnx")  # what a run makes


def open_run(
    config: TrainConfig | DetectorConfig, directory: Path, resume: bool, ranks: Ranks, held: ExitStack
) -> dict[str, Any] | None:
    """The state to go on from, or None; the directory is there afterwards, and no other run's until `held` ends. The
    same in all processes.

    Raises ConfigError for a folder that another run is writing to, one that holds a run when none is to be resumed, or
    one with other settings; CheckpointError where no state can be read, or the processes find different ones.
    """
    lock = directory / _LOCK

    def refuse() -> None:
        raise ConfigError(
            f"Another run is writing to {directory}: wait for its end, or choose another --out. If none is, one that "
            f"was killed left {lock}, on a file system that cannot lock files: delete it."
        )

    def claim() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(lock, refuse, _LOADERS_END_S))
        if any(directory.glob("state-*.pt")) and not resume:
            raise ConfigError(
                f"{directory} already holds a run: add --resume to go on with it, or choose another --out."
            )
        if not resume and (models := [name for name in _MODELS if (directory / name).is_file()]):
            raise ConfigError(
                f"{directory} already holds {models[0]}, and no state of its run to go on from: choose another --out, "
                "or add --resume to begin anew and overwrite it."
            )
        for leftover in directory.glob(".*.partial"):  # of a process that was killed while it wrote: up to a state
            leftover.unlink(missing_ok=True)

    ranks.run_on_main(claim)
    state = load_latest_state(directory) if resume else None
    steps = ranks.gather(None if state is None else state["step"])
    if len(set(steps)) > 1:
        raise CheckpointError(f"The processes find different states in {directory} (steps {steps}): it must be shared.")
    if state is None:
        if resume and any(directory.glob("state-*.pt")):
            raise CheckpointError(f"No state in {directory} can be read: start again with another --out.")
        return None
    ranks.run_on_main(lambda: _check_settings(state["config"], config, directory))
    return state


def _check_settings(recorded: dict[str, Any], config: TrainConfig | DetectorConfig, directory: Path) -> None:
    where = f"the state in {directory}"
    if ("detector" in recorded) != isinstance(config, DetectorConfig):
        raise ConfigError(f"{directory} holds a run of {'a detector' if 'detector' in recorded else 'a mesh model'}.")
    before = parse_detector_config(recorded, where) if "detector" in recorded else parse_config(recorded, where)
    old, new = (flat_settings(settings.model_dump(mode="json")) for settings in (before, config))
    changes = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name.split(".")[-1] not in _MAY_CHANGE
    ]
    if changes:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise ConfigError(f"{directory} was started with other settings ({shown}): resume with those.")
