"""A run's figures in Weights & Biases or MLflow, for who keeps runs there: `handmesh train ... --tracker wandb`.

A tracker is a function of a step and figures by name; `RunLog` hands it what it writes to metrics.jsonl. Neither
library is installed with handmesh, nor imported unless it is asked for: both can send what they are given elsewhere.
Where to, and under which account, is theirs to be told (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from handmesh.config.settings import flat_settings
from handmesh.config.train import TrainConfig
from handmesh.errors import ConfigError

logger = logging.getLogger(__name__)

Tracker = Callable[[int, Mapping[str, float]], None]  # (step, figures by name)


def find_tracker(name: str) -> Any:
    """Its library. Raises ConfigError where there is none."""
    if name not in _OPEN:
        raise ConfigError(f"--tracker {name}: wanted {' or '.join(_OPEN)}.")
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"--tracker {name} needs {name}, which is not installed: pip install {name}") from error


def open_tracker(name: str, config: TrainConfig, directory: Path) -> Tracker:
    """A run of the folder's name, which a run that is resumed goes on with. Raises ConfigError.

    What its service does not take later on is a warning: that it cannot be reached ends no training.
    """
    library = find_tracker(name)
    refusal: type[Exception] = getattr(library, _ERRORS[name])
    settings = {key: value for key, value in flat_settings(config.model_dump(mode="json")).items() if value is not None}
    try:
        tracker = _OPEN[name](library, settings, directory.resolve())  # `.` has no name
    except refusal as error:
        raise ConfigError(f"--tracker {name} cannot begin a run: {error}") from error

    def tell(step: int, figures: Mapping[str, float]) -> None:
        try:
            tracker(step, figures)
        except refusal as error:
            logger.warning("--tracker %s was not told of step %d, which is in metrics.jsonl: %s", name, step, error)

    return tell


def _open_wandb(wandb: Any, settings: dict[str, Any], directory: Path) -> Tracker:
    known = directory / "wandb_run"  # as below; a folder's name may be that of another run
    id = known.read_text(encoding="utf-8") if known.is_file() else None
    run = wandb.init(name=directory.name, id=id, dir=str(directory), config=settings, resume="allow")
    known.write_text(run.id, encoding="utf-8")
    return lambda step, figures: run.log(dict(figures), step=step)


def _open_mlflow(mlflow: Any, settings: dict[str, Any], directory: Path) -> Tracker:
    known = directory / "mlflow_run"  # of the run that this one goes on with
    run = mlflow.start_run(
        run_id=known.read_text(encoding="utf-8") if known.is_file() else None, run_name=directory.name
    )
    if not known.is_file():
        known.write_text(run.info.run_id, encoding="utf-8")
        mlflow.log_params(settings)
    return lambda step, figures: mlflow.log_metrics(dict(figures), step=step)


_ERRORS = {"wandb": "Error", "mlflow": "MlflowException"}  # of each, what its library raises
_OPEN: dict[str, Callable[[Any, dict[str, Any], Path], Tracker]] = {"wandb": _open_wandb, "mlflow": _open_mlflow}
