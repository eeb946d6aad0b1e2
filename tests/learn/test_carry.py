"""Runs that stop when their time is over, and travel in parts: what arrives is what was sent, or an error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from handmesh.cli.train import _over_after
from handmesh.errors import CheckpointError, ConfigError
from handmesh.learn.carry import MANIFEST, pack, unpack
from handmesh.learn.train import train
from handmesh.model.checkpoint import load_latest_state, load_model

STEPS, STOP = 5, 3


@pytest.fixture
def config(tiny_config):
    return tiny_config(
        steps=STEPS, log_every=1, evaluate_every=100, evaluation_count=8, checkpoint_every=100,
        model={"backbone": "fastvit_t8", "resolution": 64, "drop_path": 0.1}, tensorboard=False,
        optimizer={"warmup_steps": 2},
    )  # fmt: skip


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory) -> list[Path]:
    """Filled by the first test that needs it: a run of five steps whose time was over after three."""
    return [tmp_path_factory.mktemp("stopped") / "run"]


@pytest.fixture
def stopped(stopped_run, config) -> Path:
    if not stopped_run[0].exists():
        train(config, stopped_run[0], stops=iter([False, False, True]).__next__)
    return stopped_run[0]


def tensors(tree, name="") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {path: value for key, part in items for path, value in tensors(part, f"{name}.{key}").items()}


def rates(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


def test_a_run_whose_time_was_over_goes_on_as_if_it_never_had_stopped(config, stopped, tmp_path):
    """Bit for bit. Stopping scored and saved: the model is there."""
    assert load_latest_state(stopped)["step"] == STOP
    assert load_model(stopped / "model.safetensors")[1]["training"]["steps"] == STOP
    train(config, tmp_path / "whole")
    shutil.copytree(stopped, tmp_path / "resumed")
    train(config, tmp_path / "resumed", resume=True)
    wanted, found = (tensors(load_latest_state(tmp_path / name)) for name in ("whole", "resumed"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_whole_run_arrives_with_all_it_knew(config, stopped, tmp_path):
    """Weights, average and records bit for bit, moments to 0.4 %; in parts no larger than asked for."""
    packed = pack(stopped, tmp_path / "carried", part_mb=9, budget_mb=1000)
    assert packed.kind == "whole"
    assert len(packed.parts) > 2
    assert all(part.stat().st_size <= 9_000_000 for part in packed.parts)
    assert sum(part.stat().st_size for part in packed.parts) == packed.size
    unpacked = unpack(tmp_path / "carried", tmp_path / "run")
    assert (unpacked.kind, unpacked.step) == ("whole", STOP)
    sent, found = (tensors(load_latest_state(run)) for run in (stopped, tmp_path / "run"))
    assert sent.keys() == found.keys()
    for name, value in sent.items():
        if name.startswith(".optimizer"):
            torch.testing.assert_close(found[name], value, rtol=4e-3, atol=0)
        else:
            assert torch.equal(found[name], value), name
    for record in ("config.yaml", "metrics.jsonl", "environment.json"):
        assert (tmp_path / "run" / record).read_bytes() == (stopped / record).read_bytes()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    models = [load_model(run / "model.safetensors")[0] for run in (stopped, tmp_path / "run")]
    assert torch.equal(models[0](images).vertices, models[1](images).vertices)
    assert load_model(tmp_path / "run" / "deploy.safetensors")[1]["training"]["held_out"]

    train(config, tmp_path / "run", resume=True)
    assert load_latest_state(tmp_path / "run")["step"] == STEPS
    with pytest.raises(CheckpointError, match=r"is at step 5 already.*holds step 3"):
        unpack(tmp_path / "carried", tmp_path / "run")


def test_weights_alone_go_on_with_another_warm_up(config, stopped, tmp_path):
    """What does not fit travels as the averaged weights in float16; training goes on from them, gently at first."""
    packed = pack(stopped, tmp_path / "carried", budget_mb=20)
    assert packed.kind == "weights"
    assert packed.size < 20e6
    unpack(tmp_path / "carried", tmp_path / "run")
    sent, found = load_latest_state(stopped), load_latest_state(tmp_path / "run")
    for name, value in sent["average"].items():
        torch.testing.assert_close(found["average"][name], value, rtol=1e-3, atol=1e-6)
        assert torch.equal(found["model"][name], found["average"][name])
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "again", stops=lambda: False)
    usual, warm = rates(tmp_path / "again")[STOP:], rates(tmp_path / "run")[STOP:]
    assert warm == pytest.approx([usual[0] / 2, usual[1]])
    state = load_latest_state(tmp_path / "run")
    assert (state["step"], state["warm_again_at"]) == (STEPS, STOP)


def test_parts_that_are_missing_or_damaged_are_named(stopped, tmp_path):
    """They may come in several trips: until the last is there, and whole, nothing is written."""
    carried = tmp_path / "carried"
    with pytest.raises(CheckpointError, match=r"No carried\.json in"):
        unpack(carried, tmp_path / "run")
    packed = pack(stopped, carried, part_mb=9)
    packed.parts[1].rename(tmp_path / "elsewhere")
    content = bytearray(packed.parts[0].read_bytes())
    content[1000] ^= 1
    packed.parts[0].write_bytes(content)
    with pytest.raises(CheckpointError, match="missing: part-001; damaged: part-000"):
        unpack(carried, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    content[1000] ^= 1
    packed.parts[0].write_bytes(content)
    (tmp_path / "elsewhere").rename(packed.parts[1])
    manifest = json.loads((carried / MANIFEST).read_text())
    (carried / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="not of format 1"):
        unpack(carried, tmp_path / "run")
    (carried / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        unpack(carried, tmp_path / "run")


def test_what_cannot_be_carried_is_refused(config, stopped, tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        pack(tmp_path, tmp_path / "carried")
    state = load_latest_state(stopped)
    run = tmp_path / "run"
    run.mkdir()
    torch.save({**state, "config": {**state["config"], "select": "validation"}}, run / "state-00000003.pt")
    with pytest.raises(ConfigError, match="use select: last"):
        pack(run, tmp_path / "carried")
    state["average"]["camera_head.weight"][0, 0] = 1e6
    torch.save(state, run / "state-00000003.pt")
    with pytest.raises(CheckpointError, match="not finite in float16"):
        pack(run, tmp_path / "carried", kind="weights")


def test_time_is_over_when_it_is_over_or_when_somebody_asks():
    before = signal.getsignal(signal.SIGTERM)
    now = time.monotonic()
    with _over_after(1.0, began=now - 61) as stops:
        assert stops()
    with _over_after(10.0, began=now) as stops:
        assert not stops()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops()
    with _over_after(None, began=now - 1e6) as stops:
        assert not stops()
    assert signal.getsignal(signal.SIGTERM) == before
