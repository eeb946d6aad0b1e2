"""Runs in other people's trackers: told what metrics.jsonl is, and gone on with when a run is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training_runs import records

from handmesh.errors import ConfigError
from handmesh.learn.trackers import open_tracker
from handmesh.learn.train import train


class RefusalError(Exception):
    pass


class FakeWandb(ModuleType):
    Error = RefusalError

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []

    def init(self, **arguments: Any) -> Any:
        self.started.append(arguments)
        log = lambda figures, step: self.logged.append((step, figures))  # noqa: E731
        return SimpleNamespace(log=log, id=arguments["id"] or f"{len(self.started)}th")


class FakeMlflow(ModuleType):
    MlflowException = RefusalError

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.started: list[str | None] = []
        self.params: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []

    def start_run(self, run_id: str | None, run_name: str) -> Any:
        self.started.append(run_id)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"id of {run_name}"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.params.append(params)

    def log_metrics(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))


def test_wandb_is_told_what_the_record_says(tiny_config, tmp_path, monkeypatch):
    library = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", library)
    config = tiny_config(steps=2, log_every=1, evaluate_every=2)
    train(config, tmp_path / "mine", tracker="wandb")
    lines = records(tmp_path / "mine")
    assert [step for step, _ in library.logged] == [line["step"] for line in lines]
    first, last = library.logged[0][1], library.logged[-1][1]
    assert first["training/total"] == lines[0]["total"]
    assert last["validation/upright_pa_mpjpe_mm"] == lines[-1]["validation"]["upright_pa_mpjpe_mm"]
    assert (library.started[0]["name"], library.started[0]["id"]) == ("mine", None)
    assert library.started[0]["config"]["model.backbone"] == "fastvit_t8"


def test_wandb_goes_on_with_the_run_of_the_folder_and_of_no_other_of_its_name(tiny_config, tmp_path, monkeypatch):
    """Its id was the folder's name: a run in another place went on with the curves of the first."""
    library = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", library)
    for place in ("here", "here", "there"):
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        open_tracker("wandb", tiny_config(steps=2), Path())
    assert [started["id"] for started in library.started] == [None, "1th", None]
    assert {started["name"] for started in library.started} == {"mine"}


def test_mlflow_goes_on_with_the_run_of_the_folder(tiny_config, tmp_path, monkeypatch):
    library = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    folder = tmp_path / "mine"
    folder.mkdir()
    for step in (1, 2):  # the second one as if resumed
        open_tracker("mlflow", tiny_config(steps=2), folder)(step, {"training/total": 0.5})
    assert library.started == [None, "id of mine"]
    assert [params["steps"] for params in library.params] == [2]
    assert library.logged == [(1, {"training/total": 0.5}), (2, {"training/total": 0.5})]


def test_a_service_that_refuses_to_begin_is_said_in_one_line(tiny_config, tmp_path, monkeypatch):
    """No API key of W&B was a traceback."""

    def init(**_: Any) -> Any:
        raise RefusalError("No API key configured.")

    library = FakeWandb()
    monkeypatch.setattr(library, "init", init)
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(ConfigError, match=r"^--tracker wandb cannot begin a run: No API key configured\.$"):
        open_tracker("wandb", tiny_config(steps=2), tmp_path)


def test_a_service_that_is_gone_ends_no_training(tiny_config, tmp_path, monkeypatch, caplog):
    def log_metrics(figures: dict[str, float], step: int) -> None:
        if step == 1:
            raise RefusalError("Connection refused")
        library.logged.append((step, figures))

    library = FakeMlflow()
    monkeypatch.setattr(library, "log_metrics", log_metrics)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    train(tiny_config(steps=2, log_every=1, evaluate_every=2), tmp_path / "run", tracker="mlflow")
    assert {line["step"] for line in records(tmp_path / "run")} == {1, 2}
    assert {step for step, _ in library.logged} == {2}
    assert "mlflow was not told of step 1, which is in metrics.jsonl: Connection refused" in caplog.text


@pytest.mark.parametrize(
    ("name", "says"), [("excel", "wanted wandb or mlflow"), ("wandb", "not installed: pip install wandb")]
)
def test_a_tracker_that_is_not_there_is_said(name, says, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("handmesh.learn.train.open_data", None)  # what may render for hours is not begun
    with pytest.raises(ConfigError, match=says):
        train(tiny_config(steps=1), tmp_path, tracker=name)
