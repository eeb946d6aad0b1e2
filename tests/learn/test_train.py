"""The loop: it learns, it can be killed at any time, and it never writes over somebody's run."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training_runs import KilledError, killed_after, records, tensors_of

from handmesh.cli.train import _until_sigterm
from handmesh.config.load import parse_config
from handmesh.data.sources import PackSource, RunData, open_data
from handmesh.errors import CheckpointError, ConfigError, DataError
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import HandOutput, builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.distributed import Ranks, joined_ranks
from handmesh.learn.optimizer import learning_rate_at, make_optimizer, set_learning_rate, update_average
from handmesh.learn.run_folder import describe_data, describe_start, write_run_record
from handmesh.learn.targets import complete_targets
from handmesh.learn.train import _check_precision, build_network, count_steps, start_weights, train
from handmesh.learn.validation import relative_error, validate
from handmesh.model.checkpoint import load_latest_state, load_model, save_model, save_state
from handmesh.model.fastvit import FastViT, build_backbone
from handmesh.model.network import DenseHead, HandMeshNet
from handmesh.model.pretrained import add_backbone_weights

ALONE = Ranks(torch.device("cpu"))


@dataclass
class SixHands:
    """A set whose answers are given elsewhere."""

    name: str

    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_four_images_overfit(tiny_config, tiny_pack, tmp_path, monkeypatch, precision):
    """If it cannot overfit four pictures it learns nothing: loss and 2D error fall clearly."""

    class FourRenders(list[Any]):
        path = tiny_pack.path  # whose SHA-256 the run records

    four = FourRenders(tiny_pack[index] for index in range(4))
    monkeypatch.setattr("handmesh.data.sources.training_pack", lambda *_: four)
    monkeypatch.setattr("handmesh.data.sources.validation_pack", lambda *_: four)
    config = tiny_config(
        steps=30,
        batch_size=4,
        log_every=5,
        precision=precision,
        augmentation={
            "upright_prob": 1.0,
            "upright_noise": 0.0,
            "margin": [1.4, 1.4],
            "center_jitter": 0.0,
            "effects": 0.0,
        },
        optimizer={"warmup_steps": 5, "learning_rate": 2e-3},
    )
    reports: list[Any] = []
    train(config, tmp_path / "run", on_progress=reports.append)
    first, last = reports[0].losses, reports[-1].losses
    assert last["total"] < 0.7 * first["total"]
    assert last["keypoints"] < 0.75 * first["keypoints"]
    assert last["heatmap_keypoints"] < 0.7 * first["heatmap_keypoints"]
    assert reports[-1].vertex_mm < reports[0].vertex_mm
    assert reports[-1].keypoint_px < reports[0].keypoint_px < 64
    assert [report.step for report in reports] == list(range(5, 31, 5))
    assert all(0 <= report.data_wait_fraction <= 1 for report in reports)


def test_float16_scales_the_loss_and_leaves_out_what_overflows(tiny_config, tmp_path, monkeypatch):
    """At a scale far too large the first gradients are infinite: those steps are counted, each halves the scale, and a
    run that goes on knows it.
    """
    first_scale = 2.0**30
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=first_scale))
    config = tiny_config(steps=2, log_every=1, checkpoint_every=1, evaluate_every=2, precision="float16")
    with pytest.raises(KilledError):
        train(config, tmp_path, on_progress=killed_after(2))
    train(config, tmp_path, resume=True)
    assert [record["skipped_steps"] for record in records(tmp_path) if "skipped_steps" in record] == [1, 1]
    assert load_latest_state(tmp_path)["scaler"]["scale"] == first_scale / 4


def test_bfloat16_is_refused_by_cards_that_have_none(tiny_config, monkeypatch):
    """PyTorch would emulate it. The paper's RTX 2080 Ti is of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 2080 Ti")
    for capability, refused in (((7, 5), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        says = "RTX 2080 Ti is older: --set precision=float16"
        with pytest.raises(ConfigError, match=says) if refused else nullcontext():
            _check_precision(tiny_config(precision="bfloat16"), torch.device("cuda"))
        _check_precision(tiny_config(precision="float16"), torch.device("cuda"))


def test_more_processes_than_gpus_are_told_how_many_to_start(monkeypatch):
    """It was `CUDA error: invalid device ordinal`, with a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (("WORLD_SIZE", "8"), ("LOCAL_RANK", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"Process 5 of .* 4 GPUs: wanted --nproc-per-node 4"), joined_ranks():
        pass


@pytest.mark.parametrize("gains", [True, False])
def test_bfloat16_gives_way_to_float32_on_processors_that_are_slower_in_it(
    tiny_config, tmp_path, monkeypatch, caplog, gains
):
    """The recipes ask for it; a laptop with AVX2 alone would take 70 times as long for each product."""
    taken = []
    monkeypatch.setattr("handmesh.learn.optimizer.cpu_gains_by_bfloat16", lambda: gains)
    monkeypatch.setattr(FastViT, "train_perceptrons_in_bfloat16", lambda _, enabled: taken.append(enabled))
    train(tiny_config(steps=1, evaluate_every=1, precision="bfloat16"), tmp_path / "run")
    assert taken == [gains]
    assert ("bfloat16 is slower than float32 on this processor" in caplog.text) is not gains


@pytest.mark.filterwarnings("error")
def test_a_run_takes_its_folder_by_name_and_no_name_for_its_settings(tiny_config, tmp_path):
    """`handmesh.train(config, "runs/mine")` ended in an AttributeError, and so did `train("smoke", ...)`."""
    assert train(tiny_config(steps=1), f"{tmp_path}/run") == tmp_path / "run" / "model.safetensors"
    with pytest.raises(ConfigError, match="of type str, wanted what load_config gives"):
        train("smoke", tmp_path / "other")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny_config, tmp_path, caplog):
    """Bit for bit on a CPU: weights, averages, optimiser and records, with drop path drawing random numbers.

    Killed after step 5: after records that its newest state (step 4) does not know of, and with half a line written.
    """
    settings = {
        "model": {"backbone": "fastvit_t8", "resolution": 64, "drop_path": 0.2},
        "steps": 6,
        "log_every": 1,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "keep_checkpoints": 2,
    }
    config = tiny_config(**settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, whole)
    with pytest.raises(KilledError):
        train(config, broken, on_progress=killed_after(5))
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "los')
    with caplog.at_level(logging.INFO):
        path = train(config, broken, resume=True)
    assert "resuming at step 4 of 6" in caplog.text

    one, other = load_latest_state(whole), load_latest_state(broken)
    assert one is not None
    assert other is not None
    assert one["step"] == other["step"] == 6
    assert tensors_of(one).keys() == tensors_of(other).keys()
    different = [name for name, tensor in tensors_of(one).items() if not torch.equal(tensor, tensors_of(other)[name])]
    assert different == []
    assert records(whole) == records(broken)
    assert path.read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(file.name for file in broken.glob("state-*")) == ["state-00000004.pt", "state-00000006.pt"]


def test_a_run_killed_while_it_finishes_still_gets_its_model(tiny_config, tmp_path, monkeypatch):
    """The last state was once written before the model: resuming found nothing to do and no model."""
    config, run = tiny_config(steps=2, checkpoint_every=1), tmp_path / "run"

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("handmesh.learn.train.validate", killed)
        with pytest.raises(KilledError):
            train(config, run)
    path = train(config, run, resume=True)
    assert load_model(path)[1]["training"]["steps"] == 2
    assert train(config, run, resume=True) == path, "a finished run has nothing left to do"


def test_a_run_that_is_told_to_stop_scores_and_saves_and_goes_on_bit_for_bit(tiny_config, tmp_path):
    """In the middle, where neither an evaluation nor a state is due."""
    config = tiny_config(
        steps=5, evaluate_every=100, checkpoint_every=100,
        model={"backbone": "fastvit_t8", "resolution": 64, "drop_path": 0.1},
    )  # fmt: skip
    path = train(config, tmp_path / "stopped", should_stop=iter([False, False, True]).__next__)
    assert load_latest_state(tmp_path / "stopped")["step"] == 3
    assert load_model(path)[1]["training"]["steps"] == 3
    train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", resume=True)
    wanted, found = (tensors_of(load_latest_state(tmp_path / name)) for name in ("whole", "stopped"))
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_a_run_that_is_killed_while_it_scores_for_the_last_time_has_its_state(tiny_config, tmp_path, monkeypatch):
    """torchrun gives its processes 30 seconds."""
    config = tiny_config(steps=5, evaluate_every=100, checkpoint_every=100)
    monkeypatch.setattr("handmesh.learn.train.validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, should_stop=iter([False, False, True]).__next__)
    assert load_latest_state(tmp_path)["step"] == 3


def test_a_loader_that_is_killed_is_an_error_wherever_training_then_is(tiny_config, tmp_path):
    def kill_loader() -> bool:
        (loader,) = multiprocessing.active_children()
        loader.kill()
        time.sleep(10)  # PyTorch raises what became of it as soon as it hears
        return False

    with pytest.raises(DataError, match=r"loader process was killed.*Go on with --resume"):
        train(tiny_config(steps=50, loader_workers=1), tmp_path, should_stop=kill_loader)


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_process_that_is_asked_to_end_stops_training_and_lives():
    before = signal.getsignal(signal.SIGTERM)
    with _until_sigterm() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_state_without_moments_goes_on_from_its_average_with_another_warm_up(tiny_config, tmp_path):
    """What benchmarks/borrowed_gpu.py carries of a run that is too large to be carried whole."""
    config = tiny_config(steps=4, log_every=1, checkpoint_every=2, optimizer={"warmup_steps": 2})
    train(config, tmp_path / "whole", should_stop=iter([False, True]).__next__)
    state = load_latest_state(tmp_path / "whole")
    bare = state | {"model": state["average"], "optimizer": None, "warm_again_at": 2}
    save_state(tmp_path / "bare", 2, bare, keep=1)
    for run in ("whole", "bare"):
        train(config, tmp_path / run, resume=True)
    usual, warm = ([r["learning_rate"] for r in records(tmp_path / run) if "total" in r] for run in ("whole", "bare"))
    assert warm == pytest.approx([usual[2] / 2, usual[3]])
    assert load_latest_state(tmp_path / "bare")["warm_again_at"] == 2


def test_a_run_leaves_a_record_of_itself(tiny_config, tmp_path):
    config = tiny_config(steps=2, log_every=1, evaluate_every=2)
    path = train(config, tmp_path / "run")
    assert parse_config(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()), "run") == config
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    inputs = environment["inputs"]
    assert inputs["hand"] == {"name": "builtin", "sha256": builtin_hand().sha256}
    assert inputs["data"]["synthetic"]["samples"] == 16
    assert re.fullmatch(r"[0-9a-f]{64}", inputs["data"]["synthetic"]["sha256"])
    steps = [record["step"] for record in records(tmp_path / "run")]
    assert steps == [1, 2, 2]
    scores = records(tmp_path / "run")[-1]["validation"]
    model, record = load_model(path)
    told = {"steps": 2, "samples": 4, "validation": scores, "crops": {}, "selected_by": "last evaluation"}
    assert record["training"] == told
    assert not model.reparameterized
    final = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert final["validation"] == scores
    assert (final["steps"], final["of_steps"], final["remark"]) == (2, 2, None)
    assert final["hand"] == {"name": "builtin", "sha256": builtin_hand().sha256}
    assert all(np.isfinite(value) for value in scores.values())


def inputs_of(config: Any) -> dict[str, Any]:
    sources = open_data(config, builtin_hand()).sources
    data = describe_data((source.name, len(source), source.files()) for source in sources)
    return {**describe_start(config, builtin_hand()), "data": data}


def test_data_of_no_file_are_named_by_their_source():
    """A form of one's own may have none; the list of what a run learns from ended in an IndexError."""
    assert describe_data([("own", 3, [])])["own"]["path"] == "own"


def test_a_run_says_which_weights_and_data_it_started_from(tiny_config, tiny_pack_directory, tmp_path, caplog):
    """By their SHA-256, which a name is not; a run that goes on keeps what its beginning said, and tells other data."""
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"weights")
    config = tiny_config(start_from=str(start))
    before = inputs_of(config)
    assert before["start_from"] == {
        "name": str(start), "path": str(start), "sha256": hashlib.sha256(b"weights").hexdigest()
    }  # fmt: skip
    write_run_record(config, tmp_path, 1, before["data"], before)
    copy = tmp_path / "packs"
    shutil.copytree(tiny_pack_directory, copy)
    betas = copy / "train-16-96px-seed0" / "betas.npy"
    content = bytearray(betas.read_bytes())
    content[-1] ^= 1
    betas.write_bytes(content)
    start.write_bytes(b"other weights")
    synthetic = {"directory": str(copy), "count": 16, "size": 96, "workers": 1}
    moved = tiny_config(start_from=str(start), data={"synthetic": synthetic})
    after = inputs_of(moved)
    assert after["start_from"]["sha256"] != before["start_from"]["sha256"]
    assert after["data"]["synthetic"]["sha256"] != before["data"]["synthetic"]["sha256"]
    write_run_record(moved, tmp_path, 1, before["data"])
    assert not caplog.messages
    write_run_record(moved, tmp_path, 1, after["data"])
    assert [str(copy) in said and "not what this run began with" in said for said in caplog.messages] == [True]
    assert json.loads((tmp_path / "environment.json").read_text())["inputs"] == before


def test_nothing_is_overwritten_by_accident(tiny_config, tmp_path):
    config, run = tiny_config(steps=1), tmp_path / "run"
    train(config, run)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(ConfigError, match=r"run already holds a run: add --resume"):
        train(config, run)
    with pytest.raises(ConfigError, match=r"run was started with other settings \(steps was 1, now 2\)"):
        train(tiny_config(steps=2), run, resume=True)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    for state in run.glob("state-*.pt"):  # a gigabyte that nobody needs any more: the model was taken for nothing
        state.unlink()
    with pytest.raises(ConfigError, match=r"run already holds model\.safetensors, and no state"):
        train(config, run)
    assert (run / "model.safetensors").read_bytes() == before["model.safetensors"]


@pytest.mark.parametrize(("given", "wanted"), [(None, 1), (3, 3)])
def test_a_run_takes_the_threads_it_is_given_or_those_that_pay_off(given, wanted, tiny_config, monkeypatch, tmp_path):
    """It took one, whatever the machine had. In the tests OMP_NUM_THREADS asks for one."""
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train(tiny_config(steps=1, threads=given), tmp_path / "run")
    assert taken[0] == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr("handmesh.system.cpus.usable_cores", lambda: 7)
    train(tiny_config(steps=1, threads=given), tmp_path / "another")
    assert taken[-1] == (given or 7)


def test_two_runs_do_not_write_to_one_folder(tiny_config, tmp_path, monkeypatch):
    """Both went on from one state: steps stood in metrics.jsonl twice, and one began by deleting the state that the
    other was writing.
    """
    monkeypatch.setattr("handmesh.learn.resume._LOADERS_END_S", 0.0)
    config, refused = tiny_config(steps=4, log_every=1, checkpoint_every=2), []

    def begin_another(progress):
        for resume in (False, True):
            with pytest.raises(ConfigError, match=r"Another run is writing to .*run: wait for its end"):
                train(config, tmp_path / "run", resume=resume)
            refused.append(progress.step)

    train(config, tmp_path / "run", on_progress=begin_another)
    assert refused == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [record["step"] for record in records(tmp_path / "run") if "total" in record] == [1, 2, 3, 4]
    assert not list((tmp_path / "run").glob(".*")), "no lock is left"


def test_what_no_number_depends_on_may_change_when_a_run_goes_on(tiny_config, tmp_path):
    """Another machine has its data elsewhere and another number of cores; what is half written there goes away."""
    run, half = tmp_path / "run", tmp_path / "run" / ".state-00000002.pt.99.partial"
    train(tiny_config(steps=2, checkpoint_every=1), run)
    (run / "state-00000002.pt").unlink()
    half.write_bytes(b"half a state")
    moved = tmp_path / "moved"
    changed = tiny_config(steps=2, checkpoint_every=2, loader_workers=1, keep_checkpoints=1, log_every=2)
    moved.symlink_to(changed.data.synthetic.directory)
    tree = changed.model_dump(mode="json")
    tree["data"]["synthetic"]["directory"] = str(moved)
    train(parse_config(tree, "test"), run, resume=True)
    assert [path.name for path in sorted(run.glob("state-*"))] == ["state-00000002.pt"]
    assert not half.exists()


def test_a_run_goes_on_with_its_own_hand_only(tiny_config, tmp_path):
    """A state names its hand as a model file does: a MANO file that was replaced since would spoil the run unseen."""
    config = tiny_config(steps=1)
    train(config, tmp_path)
    state = load_latest_state(tmp_path)
    assert state["hand_sha256"] == builtin_hand().sha256
    save_state(tmp_path, 1, state | {"hand_sha256": "0" * 64}, keep=1)
    with pytest.raises(CheckpointError, match=r"another hand \(sha256 000000000000\.\.\.\) than the one .* 'builtin'"):
        train(config, tmp_path, resume=True)


def test_a_run_without_a_readable_state_is_not_started_over(tiny_config, tmp_path, caplog):
    (tmp_path / "state-00000004.pt").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match=r"No state in .* can be read"):
        train(tiny_config(steps=1), tmp_path, resume=True)
    assert "state-00000004.pt cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("changes", "broken_at"),
    [
        # A step so long that the next loss is no number.
        ({"optimizer": {"learning_rate": 1e30, "warmup_steps": 0}}, 1),
        # A finite loss whose gradient is not: it would poison the weights, and the next state with them.
        ({"loss": {"vertices": 3e38, "keypoints": 1e37}, "optimizer": {"warmup_steps": 0}}, 0),
    ],
)
def test_a_diverged_run_stops_and_its_states_are_from_before(changes, broken_at, tiny_config, tmp_path):
    config = tiny_config(steps=4, checkpoint_every=1, evaluate_every=4, **changes)
    with pytest.raises(DataError, match=rf"The loss is .* at step {broken_at}\..*lower optimizer\.learning_rate"):
        train(config, tmp_path / "run")
    state = load_latest_state(tmp_path / "run")
    assert (0 if state is None else state["step"]) == broken_at
    if state is not None:
        assert all(torch.isfinite(value).all() for value in tensors_of(state["model"]).values())


def test_the_learning_rate_warms_up_and_comes_down(tiny_config):
    config = tiny_config(steps=110, optimizer={"warmup_steps": 10, "learning_rate": 1e-3, "final_learning_rate": 1e-5})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in range(110):
        set_learning_rate(optimizer, config, step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2), "half-way down the cosine"
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)


def test_the_learning_rate_steps_down_where_it_is_told(tiny_config):
    """METRO's: a tenth from the middle of the run on, no warm-up."""
    settings = {"schedule": "step", "warmup_steps": 0, "learning_rate": 1e-4, "decay_at": [0.5, 0.9]}
    config = tiny_config(steps=200, optimizer=settings)
    rates = [learning_rate_at(config, step) for step in range(200)]
    assert rates[:100] == [1e-4] * 100
    assert rates[100:180] == pytest.approx([1e-5] * 80)
    assert rates[180:] == pytest.approx([1e-6] * 20)


def test_epochs_are_counted_in_samples_of_all_sources(tiny_config, tiny_pack):
    config = tiny_config(epochs=2.5, batch_size=6)
    sources = [PackSource(tiny_pack, config.augmentation, 0)] * 2
    assert count_steps(config, RunData(sources, [])) == 14, "2.5 times 32 samples in sixes"
    assert count_steps(tiny_config(steps=9), RunData(sources, [])) == 9


def test_weight_decay_is_for_kernels_only(tiny_config, lively_network):
    dense = DenseHead(lively_network.backbone.pyramid_channels)
    decayed, others = make_optimizer(tiny_config(), lively_network, dense).param_groups
    names = {id(value): name for module in (lively_network, dense) for name, value in module.named_parameters()}
    assert decayed["weight_decay"] > 0 == others["weight_decay"]
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert not [name for value in decayed["params"] if "bias" in (name := names[id(value)]) or "layer_scale" in name]
    assert {value.ndim for value in decayed["params"]} == {2, 4}


@pytest.mark.parametrize(("rate", "averages"), [(0.02, True), (1e-6, False)])
def test_what_forgets_comes_half_way_back(rate, averages, tiny_config, lively_network, tmp_path, caplog):
    """A run that ruins the model it started from gives the mean of both, one that does not its own weights; what the
    start scores is said first.
    """
    start = tmp_path / "start.safetensors"
    save_model(start, lively_network.reparameterize(), training={})
    optimizer = {"learning_rate": rate, "final_learning_rate": rate / 2, "warmup_steps": 0, "ema_decay": 0.0}
    settings = {"model": lively_network.config.model_dump(), "optimizer": optimizer, "start_from": str(start)}
    config = tiny_config(steps=3, log_every=1, reparameterized=True, average_with_start=True, **settings)
    with caplog.at_level(logging.INFO):
        result, _ = load_model(train(config, tmp_path / "run"))
    state = load_latest_state(tmp_path / "run")
    assert state is not None
    tuned, before = state["average"]["camera_head.weight"], lively_network.camera_head.weight
    assert (tuned - before).abs().max() > 0
    wanted = (tuned + before) / 2 if averages else tuned
    torch.testing.assert_close(result.camera_head.weight, wanted)
    assert ("the mean becomes the model" in caplog.text) == averages
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "validation" in line]
    assert [line["step"] for line in validations] == [0, 3]
    first, last = (line["validation"]["upright_keypoint_box_error"] for line in validations)
    assert last != first


def test_a_start_that_the_end_needs_is_asked_for_when_a_run_goes_on(tiny_config, lively_network, tmp_path):
    """It was missed after the last step, which was then lost."""
    start = tmp_path / "start.safetensors"
    save_model(start, lively_network.reparameterize(), training={})
    settings = {"model": lively_network.config.model_dump(), "start_from": str(start), "checkpoint_every": 1}
    config = tiny_config(steps=2, log_every=1, reparameterized=True, average_with_start=True, **settings)
    train(config, tmp_path / "run")
    (tmp_path / "run" / "state-00000002.pt").unlink()
    start.unlink()
    steps: list[int] = []
    with pytest.raises(CheckpointError, match=r"start\.safetensors"):
        train(config, tmp_path / "run", resume=True, on_progress=lambda now: steps.append(now.step))
    assert not steps


def test_errors_are_compared_with_the_starts_set_by_set():
    """A set in millimetres does not outweigh one in shares, and what the mean pose scores is nobody's merit."""
    start = {"a_pa_mpjpe_mm": 10.0, "b_keypoint_box_error": 0.1, "a_pa_mpvpe_mm": 9.0}
    start["a_mean_pose_baseline_pa_mpjpe_mm"] = 16.0
    found = {**start, "a_pa_mpjpe_mm": 12.0, "b_keypoint_box_error": 0.06}
    assert relative_error(found, start) == pytest.approx((1.2 + 0.6) / 2)
    assert relative_error({}, {}) == 1


def test_a_mean_with_the_start_needs_the_form_that_can_be_averaged(tiny_config):
    with pytest.raises(ConfigError, match="average_with_start goes with reparameterized"):
        tiny_config(average_with_start=True, start_from="handmesh_t8")


def test_the_average_forgets_the_start_and_follows():
    layer, average = torch.nn.BatchNorm1d(2), {}
    average = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        layer.weight.fill_(3.0)
    layer.num_batches_tracked.fill_(7)
    update_average(average, layer, step=0, decay=0.9)  # young: (1 + 0) / (10 + 0) of the old
    assert average["weight"].tolist() == pytest.approx([0.1 * 1 + 0.9 * 3] * 2)
    update_average(average, layer, step=10_000, decay=0.9)
    assert average["weight"].tolist() == pytest.approx([0.9 * 2.8 + 0.1 * 3] * 2)
    assert average["num_batches_tracked"] == 7, "counts are taken over, not averaged"


def test_the_scores_of_a_run_are_its_errors(monkeypatch, lively_network):
    """The truth itself scores zero; turned, shifted and scaled it still does in 3D; its palm flipped is told."""
    generator = torch.Generator().manual_seed(0)
    pose = torch.from_numpy(matrix_from_vector(0.3 * torch.randn(6, 16, 3, generator=generator))).float()
    betas = torch.randn(6, 10, generator=generator)
    vertices, joints = HandModel(builtin_hand())(pose, betas)
    camera = torch.tensor([6.0, 0.1, -0.1]).expand(6, 3)
    keypoints = 6.0 * (joints[..., :2] + torch.tensor([0.1, -0.1]))
    targets = complete_targets(keypoints, joints, vertices, pose, betas)

    heads = torch.ones(6), torch.ones(6), torch.ones(6, 21), torch.zeros(6, 21, 3)

    def scores(output: HandOutput) -> dict[str, float]:
        monkeypatch.setattr("handmesh.learn.validation.predict_samples", lambda *_: (output, targets))
        return validate(lively_network, [SixHands("upright"), SixHands("any_rotation")], ALONE)

    perfect = scores(HandOutput(camera, pose, betas, vertices, joints, *heads))
    for name in ("upright", "any_rotation"):
        assert perfect[f"{name}_pa_mpjpe_mm"] < 1e-3
        assert perfect[f"{name}_pa_mpvpe_mm"] < 1e-3
        assert perfect[f"{name}_keypoint_box_error"] < 1e-6
        assert perfect[f"{name}_palm_flipped_share"] == 0
    assert 2 < perfect["upright_mean_pose_baseline_pa_mpjpe_mm"] < 40

    flipped = pose.clone()
    flipped[:2, 0] = pose[:2, 0] @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    turned = 2 * vertices @ torch.from_numpy(matrix_from_vector([0.3, 1.0, 0.2])).float() + 1
    found = scores(HandOutput(camera + torch.tensor([0.0, 0.01, 0.0]), flipped, betas, turned, joints, *heads))
    assert found["upright_pa_mpvpe_mm"] < 1e-2
    assert found["upright_palm_flipped_share"] == pytest.approx(2 / 6)
    sides = (keypoints.amax(1) - keypoints.amin(1)).amax(-1)
    assert found["upright_keypoint_box_error"] == pytest.approx((0.06 / sides).mean().item(), rel=1e-4)
    mirrored = scores(HandOutput(camera, pose, betas, vertices * torch.tensor([-1.0, 1, 1]), joints, *heads))
    assert mirrored["upright_pa_mpvpe_mm"] > 5, "a mirrored hand is wrong here"


def test_training_starts_from_weights_that_were_added(tiny_config, tmp_path, monkeypatch):
    """`pretrained` names backbone weights; a name that nobody added is answered before anything is rendered."""
    monkeypatch.setenv("HANDMESH_WEIGHTS_DIR", str(tmp_path / "weights"))
    torch.manual_seed(7)
    weights = build_backbone("fastvit_t8").state_dict()
    torch.save({"state_dict": weights}, tmp_path / "fastvit_t8.pth.tar")
    add_backbone_weights(tmp_path / "fastvit_t8.pth.tar", "mine")
    slow = {"learning_rate": 1e-12, "final_learning_rate": 0.0, "warmup_steps": 0}
    config = tiny_config(steps=1, evaluate_every=1, pretrained="mine", optimizer=slow)
    model, _ = load_model(train(config, tmp_path / "run"))
    kernels = {name for name, value in weights.items() if value.ndim == 4}
    trained = model.backbone.state_dict()
    for name in kernels:
        torch.testing.assert_close(trained[name], weights[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(CheckpointError, match="no weights named 'absent'"):
        train(tiny_config(pretrained="absent"), tmp_path / "other")


HEADS = {"backbone": "fastvit_t8", "resolution": 64, "confidence_head": True, "handedness_head": True}


def assert_begins_as(config: Any, start: Any) -> None:
    """A run of `config` begins with the answers of the model at `start`."""
    data = open_data(config, builtin_hand())
    network = build_network(config, builtin_hand())
    start_weights(network, config, data)
    other, _ = load_model(start)
    image = torch.from_numpy(data.validation[0].sample(0, 64).image[None])
    with torch.no_grad():
        ours, theirs = (one.eval()(image).vertices for one in (network, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_model_to_start_from_brings_its_network(model_file, tiny_config, tmp_path):
    """Without a backbone in the settings it was "fastvit_t8 cannot grow into fastvit_ma36", the default one."""
    start = load_model(model_file)[0].config
    path = train(tiny_config(steps=1, model={"confidence_head": True}, start_from=str(model_file)), tmp_path / "run")
    assert start != type(start)()
    assert load_model(path)[0].config == start.model_copy(update={"confidence_head": True})


@pytest.mark.parametrize("name", ["model.safetensors", "deploy.safetensors"])
def test_training_goes_on_from_another_runs_model(name, tiny_config, tmp_path):
    """As trained, or reparameterized for shipping (then it is unreparameterized); a head that the other lacks starts
    anew.
    """
    train(tiny_config(steps=2, evaluate_every=2), tmp_path / "first")
    start = tmp_path / "first" / name
    second = tiny_config(steps=2, log_every=1, model=HEADS, start_from=str(start))
    assert_begins_as(second, start)
    train(second, tmp_path / "second")
    losses = [line for line in records(tmp_path / "second") if "total" in line]
    assert all(np.isfinite(line["confidence"] + line["handedness"]) for line in losses)


def test_heads_that_are_not_wanted_are_left_behind(tiny_config, tmp_path):
    train(tiny_config(steps=1, model=HEADS), tmp_path / "headed")
    plain = tiny_config(start_from=str(tmp_path / "headed" / "model.safetensors"))
    network = HandMeshNet(plain.model, HandModel(builtin_hand()))
    start_weights(network, plain, open_data(plain, builtin_hand()))
    assert network.confidence_head is None


@pytest.mark.parametrize("name", ["model.safetensors", "deploy.safetensors"])
def test_a_reparameterized_network_is_trained_as_it_will_be_shipped(name, tiny_config, tmp_path):
    """No branches, no batch norms: in training it computes what the model that it started from does, and it learns."""
    train(tiny_config(steps=2, evaluate_every=2), tmp_path / "first")
    start = tmp_path / "first" / name
    config = tiny_config(steps=8, log_every=4, start_from=str(start), reparameterized=True, precision="bfloat16")
    data = open_data(config, builtin_hand())
    network = build_network(config, builtin_hand())
    start_weights(network, config, data)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    small, _ = load_model(start)
    image = torch.from_numpy(data.validation[0].sample(0, 64).image[None])
    torch.testing.assert_close(network.train()(image).vertices, small(image).vertices, rtol=1e-4, atol=1e-6)
    path = train(config, tmp_path / "reparameterized")
    trained, record = load_model(path)
    assert record["reparameterized"]
    before, after = network.state_dict(), trained.state_dict()
    unchanged = [key for key, value in after.items() if torch.equal(before[key], value)]
    assert unchanged == []
    deployed, _ = load_model(path.with_name("deploy.safetensors"))
    torch.testing.assert_close(deployed(image).vertices, trained(image).vertices, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_keypoint_head_is_part_of_the_model_that_it_trains(reparameterized, tiny_config, tmp_path, weights_alone):
    """And goes on with it: no second head learns beside it, and all of it learns."""
    first = tiny_config(steps=2, checkpoint_every=2, model={**HEADS, "keypoint_head": True})
    start = train(first, tmp_path / "first")
    assert load_latest_state(tmp_path / "first")["dense"] == {}
    config = tiny_config(steps=2, start_from=str(start), reparameterized=reparameterized)
    before = load_model(start)[0]
    before = before.reparameterize() if reparameterized else before
    after, record = load_model(train(config, tmp_path / "second"))
    assert record["model"]["keypoint_head"]
    weights = dict(after.keypoint_head.named_parameters())
    assert all(not torch.equal(weights[name], value) for name, value in before.keypoint_head.named_parameters())
    with torch.no_grad():
        assert (after(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).seen[..., 2] > 0).all()


def test_a_reparameterized_run_goes_on(tiny_config, tmp_path):
    """As any other: bit for bit."""
    train(tiny_config(steps=1), tmp_path / "first")
    start = str(tmp_path / "first" / "model.safetensors")
    config = tiny_config(steps=4, checkpoint_every=2, log_every=1, start_from=start, reparameterized=True)
    train(config, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(config, tmp_path / "broken", on_progress=killed_after(3))
    train(config, tmp_path / "broken", resume=True)
    one, other = (tensors_of(load_latest_state(tmp_path / run)) for run in ("whole", "broken"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_small_network_grows_into_a_larger_one(reparameterized, tiny_config, tmp_path):
    """Reparameterized or not, before and after, it begins with the small one's answers; what is new learns along."""
    train(tiny_config(steps=2, evaluate_every=2), tmp_path / "t8")
    start = tmp_path / "t8" / "deploy.safetensors"
    model = {"backbone": "fastvit_t12", "resolution": 64}
    larger = tiny_config(steps=1, model=model, start_from=str(start), reparameterized=reparameterized)
    assert_begins_as(larger, start)
    train(larger, tmp_path / "t12")
    assert load_model(tmp_path / "t12" / "model.safetensors")[0].config.backbone == "fastvit_t12"


def test_a_network_cannot_grow_into_one_of_another_kind(tiny_config, tmp_path):
    """Said before anything is rendered, with what it could grow into."""
    train(tiny_config(steps=1), tmp_path / "t8")
    start = str(tmp_path / "t8" / "model.safetensors")
    other = tiny_config(model={"backbone": "fastvit_sa12", "resolution": 64}, start_from=start)
    with pytest.raises(ConfigError, match=r"attention\. It can into: fastvit_t12, fastvit_s12"):
        train(other, tmp_path / "sa12")
