"""Training on photographs, as a user would: FreiHAND's layout on disk, several processes, kills, full disks.

The data are synthetic hands in FreiHAND's own layout, so everything runs on real files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from full_disk import disk_with
from published_sets import known_hands, write_coco_wholebody, write_dexycb, write_hint, write_ho3d, write_interhand
from training_runs import records, tensors_of

from handmesh.config.load import load_config, parse_config
from handmesh.data.check import check
from handmesh.data.formats.freihand import FreiHand, prepare
from handmesh.data.formats.like_freihand import write_like_freihand
from handmesh.data.sources import open_data
from handmesh.data.stream import training_batches
from handmesh.errors import AssetError, CheckpointError, ConfigError, DataError
from handmesh.evaluate.run import EvaluationRequest, run_evaluation
from handmesh.hand import HandArrays, Handedness, builtin_hand
from handmesh.learn.distributed import Ranks
from handmesh.learn.run_folder import RunLog
from handmesh.learn.train import _crops, train
from handmesh.model.checkpoint import load_latest_state, load_model
from handmesh.runtime.engine import open_engine
from handmesh.synth import Backgrounds

ROOT = Path(__file__).parents[2]
CONFIGS = [  # of hand mesh models; tests/learn/test_detector.py trains detectors
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if "detector" not in yaml.safe_load(path.read_text(encoding="utf-8"))
]
ANNOTATIONS, TEST_IMAGES = 60, 10


@pytest.fixture(scope="module")
def freihand(tmp_path_factory) -> Path:
    """240 training and 10 test images, not prepared yet."""
    folder = tmp_path_factory.mktemp("data") / "FreiHAND"
    return write_like_freihand(folder, ANNOTATIONS, TEST_IMAGES, backgrounds=Backgrounds(0, count=2))


@pytest.fixture(scope="module")
def prepared(freihand) -> Path:
    prepare(freihand)
    return freihand


@pytest.fixture(scope="module")
def settings(prepared) -> Callable[..., dict[str, Any]]:
    """make(key=value, ...) -> plain settings of a small run on it."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "model": {"backbone": "fastvit_t8", "resolution": 64},
            "data": {"freihand": {"directory": str(prepared), "validation": 0.1}},
            "batch_size": 4,
            "steps": 4,
            "log_every": 1,
            "checkpoint_every": 1,
            "evaluate_every": 100,
            "evaluation_count": 5,
            "loader_workers": 0,
            "tensorboard": False,
            **changes,
        }

    return make


def surroundings() -> dict[str, str]:
    """Subprocesses find this checkout first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server"), *sys.path])}


def test_the_journey_from_archives_to_scores(freihand, graphs_too, tmp_path):
    """Prepare, check, train, evaluate, and look at what is left: every file on the way is a real one."""
    prepare(freihand)
    rows = check(freihand)
    # The all-zero prediction scores as published on the real test set alone, and the set is smaller than FreiHAND.
    assert all(row.passed is not False for row in rows), [row for row in rows if row.passed is False]
    overrides = [
        "data={}",
        f"data.freihand.directory={freihand}",
        "data.freihand.validation=0.1",
        "batch_size=16",
        "tensorboard=true",
    ]
    config = load_config(ROOT / "configs" / "smoke.yaml", overrides)
    path = train(config, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["selected_by"] == "last evaluation"
    assert {name for name in scores["validation"] if name.endswith("pa_mpvpe_mm")} == {"freihand_pa_mpvpe_mm"}
    assert 0 < scores["validation"]["freihand_pa_mpjpe_mm"] < 60

    request = EvaluationRequest(data=freihand, model=str(path), protocol="metro", out=tmp_path / "scores", report=False)
    assert "trained on" not in run_evaluation(request).run
    other = replace(request, protocol="frame", limit=2, out=tmp_path / "other")
    assert "--crop metro" in run_evaluation(other).run["trained on"]
    official = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert 0 < official["xyz_al_mean3d"] < 6, "cm"

    if find_spec("tensorboard") is None:  # the train extra; the run went on without it
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/total")] == [5, 10, 15, 20]
    assert events.Scalars("validation/freihand_pa_mpjpe_mm")[0].value == pytest.approx(
        scores["validation"]["freihand_pa_mpjpe_mm"], rel=1e-5
    )
    assert [image.step for image in events.Images("freihand")] == [20]


def test_several_crops_are_seen_in_their_shares(settings, prepared):
    """Of the same photographs: the epoch is as long, and each crop is watched on its own."""
    crops = {"metro": 1, "box": 3}
    data = {"freihand": {"directory": str(prepared), "validation": 0.1, "crops": crops}}
    still = {"rotation": 0.0, "scale": 0.0, "channel_gain": 0.0}
    config = parse_config(settings(data=data, photo_augmentation=still), "test")
    opened = open_data(config, builtin_hand())
    (source,) = opened.sources
    assert len(source) == 4 * 54
    assert [watched.name for watched in opened.validation] == ["freihand", "freihand_box"]

    def extent(labels) -> float:  # of the hand over the crop's side
        return float(np.ptp(labels.keypoints, axis=0).max()) / 2

    wide, tight = (extent(watched.sample(0, 64).labels) for watched in opened.validation)
    assert tight == pytest.approx(1 / 1.25, rel=1e-6)
    assert wide < 0.7
    rng = np.random.default_rng(0)
    extents = [extent(source.example(position % len(source), rng, 64).labels) for position in range(200)]
    assert np.isclose(extents, 1 / 1.25).mean() == pytest.approx(0.75, abs=0.1)
    assert _crops(config) == {"freihand": "metro-then-box"}
    assert _crops(parse_config(settings(), "test")) == {"freihand": "metro"}


def test_no_photograph_is_on_both_sides(settings):
    """Neither the same image nor another version of it; and the test set is not touched."""
    data = open_data(parse_config(settings(), "test"), builtin_hand())
    (source,), (held_out,) = data.sources, data.validation
    assert len(source) == 4 * 54
    training = {int(index) % ANNOTATIONS for index in source.indices}
    watched = {int(index) % ANNOTATIONS for index in held_out.indices}
    assert not training & watched
    assert source.data.split == held_out.data.split == "training"
    again = open_data(parse_config(settings(seed=7), "test"), builtin_hand())
    np.testing.assert_array_equal(again.sources[0].indices, source.indices)


def test_processes_share_a_batch_without_a_sample_twice(settings):
    """Side by side, what three processes get is what one would, sample for sample."""
    config = parse_config(settings(batch_size=6, steps=3), "test")
    sources = open_data(config, builtin_hand()).sources
    alone = list(training_batches(sources, config, 1))
    shares = [list(training_batches(sources, config, 1, rank, 3)) for rank in range(3)]
    for step, whole in enumerate(alone):
        assert torch.equal(torch.cat([share[step].image for share in shares]), whole.image)
        for field, values in enumerate(whole.labels):
            together = torch.cat([share[step].labels[field] for share in shares])
            assert torch.equal(together, values), whole.labels._fields[field]


def test_loader_processes_need_no_shared_memory_where_there_is_little(settings, monkeypatch, caplog):
    """Docker gives 64 MB by default: two loader processes once ended there in a bare traceback."""
    config = parse_config(settings(steps=2, loader_workers=2), "test")
    sources = open_data(config, builtin_hand()).sources
    usual = list(training_batches(sources, config, 0))
    monkeypatch.setattr("handmesh.data.stream._free_shared_memory", lambda: 65536)

    def broken(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_storage", broken)
    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_tensor", broken)
    with caplog.at_level(logging.WARNING):
        small = list(training_batches(sources, config, 0))
    assert "batches come through pipes" in caplog.text
    for one, other in zip(usual, small, strict=True):
        assert torch.equal(one.image, other.image)
        assert all(map(torch.equal, one.labels, other.labels))


# Three runs one after the other in the same two processes: starting those takes longer than the runs.
IN_TWO_PROCESSES = """
import os, sys
import handmesh.learn.train as training
from handmesh.cli import run
from handmesh.errors import DataError
from handmesh.model.checkpoint import save_model

training.write_with_graph = save_model
rank, loss, steps, ports = os.environ["RANK"], training.hand_loss, [], sys.argv[1:]

def broken(*arguments):
    steps.append(1)
    if rank == "1" and len(steps) == 2:
        raise DataError("photos/7.jpg is broken")
    return loss(*arguments)

def attempt(name, out, port=None):
    if port is not None:  # torchrun's own store still holds where the processes met before
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{rank}.{stream}", os.O_CREAT | os.O_WRONLY), number)
    sys.argv = ["handmesh", "train", "two.yaml", "--out", out]
    try:
        run()
    except SystemExit as leaving:
        return leaving.code

if __name__ == "__main__":
    assert attempt("whole", "two") == 0
    assert attempt("again", "two", ports[0]) == 1
    training.hand_loss = broken
    sys.exit(attempt("broken", "other", ports[1]))
"""


@pytest.fixture(scope="module")
def two_processes(settings, tmp_path_factory) -> Path:
    """Where torchrun has been: two.yaml, the run `two`, and what each process said of each attempt."""
    folder = tmp_path_factory.mktemp("two")
    plain = settings(steps=3, evaluate_every=3, batch_size=4, checkpoint_every=3)
    (folder / "two.yaml").write_text(yaml.safe_dump(plain))
    (folder / "attempts.py").write_text(IN_TWO_PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ports = [str(free_port()) for _ in range(2)]
    outcome = subprocess.run(
        [*torchrun, "attempts.py", *ports], cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 1, outcome.stderr
    assert (folder / "broken-0.err").exists(), outcome.stderr + said(folder, "whole") + said(folder, "again")
    return folder


def free_port() -> int:
    """Below those that the system gives to whoever asks for any: other tests' servers do, before this one is used."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def said(folder: Path, attempt: str, stream: str = "err") -> str:
    """By both processes."""
    return "".join((folder / f"{attempt}-{rank}.{stream}").read_text() for rank in range(2))


def test_two_processes_make_the_run_of_one(two_processes, tmp_path):
    """torchrun against one process: losses, averaged weights, and scores of as many samples as do not divide by two.

    Batch norm is synced, so only rounding differs: sums over 4 samples against means of sums over 2.
    """
    assert "Warning" not in said(two_processes, "whole")
    assert said(two_processes, "whole", "out").count("Done") == 1
    train(load_config(two_processes / "two.yaml"), tmp_path / "one")

    runs = (tmp_path / "one", two_processes / "two")
    one, two = map(records, runs)
    assert [record["step"] for record in two] == [record["step"] for record in one] == [1, 2, 3, 3]
    for ours, theirs in zip(one, two, strict=True):
        for name, value in (ours | ours.get("validation", {})).items():
            if name != "validation":
                assert (theirs | theirs.get("validation", {}))[name] == pytest.approx(value, rel=2e-3, abs=1e-6), name
    assert two[0]["total"] == pytest.approx(one[0]["total"], rel=1e-5), "before any step, rounding alone"
    assert json.loads((two_processes / "two" / "environment.json").read_text())["processes"] == 2
    assert sorted(path.name for path in (two_processes / "two").glob("state-*")) == ["state-00000003.pt"]
    steps = [load_latest_state(run)["average"]["camera_head.bias"] - torch.tensor([6.5, 0, 0]) for run in runs]
    torch.testing.assert_close(steps[1], steps[0], rtol=0.02, atol=1e-6)


def test_what_one_process_refuses_ends_the_others_without_a_word(two_processes):
    assert said(two_processes, "again").count("already holds a run") == 1
    assert "handmesh/" not in said(two_processes, "again"), "the other process leaves without a traceback"


def test_an_error_in_one_process_ends_the_others_with_a_word(two_processes):
    """The other is in the middle of a step then, and waits for gradients that never come."""
    told = said(two_processes, "broken")
    assert told.count("error: photos/7.jpg is broken") == 1
    assert told.count("error: Another process of this run ended") <= 1  # torchrun may end it before
    assert "handmesh/learn/train.py" not in told, "neither with a traceback"


def test_batches_that_cannot_be_shared_are_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("handmesh.learn.train.joined_ranks", lambda: nullcontext(Ranks(torch.device("cpu"), 0, 3)))
    config = parse_config(settings(batch_size=8, accumulation=2), "test")
    with pytest.raises(ConfigError, match=r"batch_size 8 cannot be shared by 3 processes .* choose a multiple of 6"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_in_pieces_is_the_batch(settings, tmp_path):
    """Without dense losses nothing but batch norm sees the pieces: the first losses agree roughly, and it learns."""
    losses = {}
    for pieces in (1, 2):
        config = parse_config(settings(batch_size=8, steps=2, accumulation=pieces), "test")
        train(config, tmp_path / str(pieces))
        losses[pieces] = records(tmp_path / str(pieces))[0]
    assert losses[2]["total"] == pytest.approx(losses[1]["total"], rel=0.02)
    assert losses[2]["pose"] == pytest.approx(losses[1]["pose"], rel=0.02), "summed once, not twice"


def test_a_run_on_mano_needs_mano_and_names_it(settings, stand_in_mano, tmp_path, monkeypatch):
    """On data of the built-in hand: joints and keypoints teach MANO's hand, meshes of the other hand are left out."""
    config = parse_config(settings(steps=1, model={"backbone": "fastvit_t8", "resolution": 64, "hand": "mano"}), "test")
    (source,), _ = open_data(config, stand_in_mano)
    assert not source.same_hand
    path = train(config, tmp_path / "run")
    model, record = load_model(path)
    assert record["hand_sha256"] == model.hand.sha256 == stand_in_mano.sha256
    first = records(tmp_path / "run")[0]
    assert first["vertices"] == first["betas"] == first["pose"] == 0 < first["joints"]
    assert "vertex_mm" not in first, "none are labelled"
    assert 0 < first["keypoint_px"] < 64
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "nothing"))
    with pytest.raises(AssetError, match=r"(?s)no MANO model.*Register at https://mano"):
        train(config, tmp_path / "other")
    with pytest.raises(AssetError, match=r"^There is no MANO model"):  # not that some runtime cannot run it
        open_engine(str(path))


def test_photographs_of_ones_own_and_freihand_make_one_run(settings, prepared, tmp_path):
    """Lines that know next to nothing, and a left hand, beside samples that know everything."""
    image = sorted((prepared / "training" / "rgb").glob("*.jpg"))[0]
    lines = [
        {"image": str(image), "keypoints": [[60 + 4 * joint, 90 + joint] for joint in range(21)], "handedness": "left"},
        {"image": str(image), "box": [20, 20, 200, 200]},
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = settings()["data"] | {"photos": [{"path": str(tmp_path / "labels.jsonl"), "weight": 1.0}]}
    config = parse_config(settings(data=data, batch_size=8), "test")
    names = [source.name for source in open_data(config, builtin_hand()).sources]
    assert names == ["freihand", "photos0"]
    batch = next(training_batches(open_data(config, builtin_hand()).sources, config, 0))
    assert 0 < batch.labels.vertices_known.sum() < 8
    train(config, tmp_path / "run")
    assert all(np.isfinite(record["total"]) for record in records(tmp_path / "run") if "total" in record)


def test_the_best_weights_are_kept_where_that_is_asked_for(settings, tmp_path, monkeypatch):
    """By the validation set: scores 30, 20, 25 and a killed run in between leave the second evaluation's model."""
    given = {1: 30.0, 2: 20.0, 3: 25.0, 4: 26.0}
    seen: list[str] = []

    def scores(model: Any, sets: Any, ranks: Any) -> dict[str, float]:
        seen.extend(held_out.name for held_out in sets)
        step = 1 + len(list((tmp_path / "run").glob("state-*.pt")))
        return {"freihand_pa_mpjpe_mm": given[step], "test_set_pa_mpjpe_mm": -given[step]}

    monkeypatch.setattr("handmesh.learn.train.validate", scores)
    plain = settings(evaluate_every=1, keep_checkpoints=9, select="validation")

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parse_config(plain, "test"), tmp_path / "run", on_progress=stop)
    train(parse_config(plain, "test"), tmp_path / "run", resume=True)
    final = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (final["steps"], final["selected_by"], final["remark"]) == (2, "validation", None)
    assert set(seen) == {"freihand"}, "the test set is not even looked at"

    shutil.rmtree(tmp_path / "run")
    seen.clear()
    train(parse_config(plain | {"select": "test_set"}, "test"), tmp_path / "run")
    final = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (final["steps"], final["selected_by"]) == (1, "test set")
    assert "do not compare with published" in final["remark"]
    assert "test_set" in seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch's own old parts
def test_a_compiled_run_learns_the_same(settings, tmp_path):
    for name, compiled in (("eager", False), ("compiled", True)):
        train(parse_config(settings(steps=2, compile=compiled), "test"), tmp_path / name)
    eager, compiled_records = records(tmp_path / "eager"), records(tmp_path / "compiled")
    assert compiled_records[0]["total"] == pytest.approx(eager[0]["total"], rel=1e-4)


def test_killed_at_any_moment_it_goes_on_bit_for_bit(settings, tmp_path):
    """kill -9 while it runs, wherever that hits; then --resume gives what an uninterrupted run gives."""
    plain = settings(steps=8, model={"backbone": "fastvit_t8", "resolution": 64, "drop_path": 0.1})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain))
    command = [sys.executable, "-m", "handmesh", "train", "run.yaml", "--out", "broken"]
    process = subprocess.Popen(command, cwd=tmp_path, env=surroundings(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("state-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    before = load_latest_state(tmp_path / "broken")
    assert before is not None

    config = load_config(tmp_path / "run.yaml")
    train(config, tmp_path / "broken", resume=True)
    train(config, tmp_path / "whole")
    one, other = (tensors_of(load_latest_state(tmp_path / name)) for name in ("whole", "broken"))
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []
    assert records(tmp_path / "whole") == records(tmp_path / "broken")


def test_a_full_disk_stops_the_run_and_its_last_state_is_whole(settings, tmp_path):
    config = parse_config(settings(steps=4), "test")
    disk = disk_with(free=1_000_000)

    def fill_up(progress: Any) -> None:
        if progress.step == 3:
            disk.__enter__()

    try:
        with pytest.raises(CheckpointError, match=r"state-00000003\.pt cannot be written"):
            train(config, tmp_path / "run", on_progress=fill_up)
    finally:
        disk.__exit__(None, None, None)
    state = load_latest_state(tmp_path / "run")
    assert state is not None
    assert state["step"] == 2
    train(config, tmp_path / "run", resume=True)
    assert load_model(tmp_path / "run" / "model.safetensors")[1]["training"]["steps"] == 4


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs TensorBoard, of the train extra")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the thread that writes
def test_curves_that_a_full_disk_refuses_are_named(tmp_path):
    """The run ended with `[Errno 28] No space left on device` alone."""
    log = RunLog(tmp_path, 0, tensorboard=True)
    rng = np.random.default_rng(0)

    def draw_on() -> None:
        for step in range(1000):
            log.add_picture(step, "drawn", rng.integers(0, 255, (64, 64, 3), np.uint8))
            time.sleep(0.01)  # for the thread

    named = re.escape(str(tmp_path / "tensorboard"))
    with disk_with(free=20_000), pytest.raises(CheckpointError, match=f"{named} cannot be written: "):
        draw_on()


def small(path: Path, backbone: str, freihand: Path, packs: Path, mano: HandArrays, folder: Path) -> Any:
    """A shipped config, cut down to two steps on small data; the recipe stays as it is."""
    shipped = load_config(path)
    overrides = [f"model.backbone={backbone}", "model.resolution=64", "model.hand=builtin", "pretrained=null"]
    overrides += ["epochs=null", "steps=2", "batch_size=4", "loader_workers=0", "low_resolution=null"]
    overrides += ["low_resolution_share=0", "evaluate_every=2", "evaluation_count=8", "tensorboard=false"]
    if shipped.data.freihand is not None:
        overrides += [f"data.freihand.directory={freihand}", "data.freihand.validation=0.1"]
    if shipped.data.synthetic is not None:
        overrides += [f"data.synthetic.directory={packs}", "data.synthetic.count=16", "data.synthetic.size=96"]
        overrides += ["data.synthetic.seed=0"]  # of which there are renders
    sets: dict[str, Path] = published_stand_ins(folder, mano) if shipped.data.photos and shipped.data.freihand else {}
    if sets:
        overrides.append("batch_size=32")  # so that some of each are seen
    for number, photos in enumerate(shipped.data.photos):
        place = sets.get(photos.path.parts[0]) or _labelled(freihand)
        overrides.append(f"data.photos.{number}.path={place}")
    if shipped.data.live is not None:  # as shipped, its ring alone takes 10 GB
        overrides += [f"data.live.directory={packs}", "data.live.size=96", "data.live.capacity=32"]
        overrides += ["data.live.start=8", "data.live.backgrounds=4", "data.live.workers=1"]
    return load_config(path, overrides)


def published_stand_ins(root: Path, mano: HandArrays) -> dict[str, Path]:
    """By the first folder of its path in the mixed config, a stand-in of each data set."""
    hands = known_hands(8, mano)
    write_dexycb(root / "dex", hands, {Handedness.RIGHT: mano, Handedness.LEFT: mano.mirrored()})
    return {
        "InterHand2.6M": write_interhand(root / "interhand", hands, mano.hands_mean, 0),
        "coco": write_coco_wholebody(root / "coco", hands),
        "HO3D_v3": write_ho3d(root / "ho3d", known_hands(8, mano, sides="r"), ".jpg", 2),
        "dex-ycb": root / "dex" / "s0_val",
        "HInt_annotation_partial": write_hint(root / "hint", hands, np.zeros((8, 21), bool)),
    }


def _labelled(freihand: Path) -> Path:
    """Some of FreiHAND's photographs as somebody's own."""
    file = freihand / "own.jsonl"
    data = FreiHand(freihand, "training")
    lines = []
    for index in range(10):
        labels = data[index].labels
        assert labels.intrinsics is not None
        record = {"joints": labels.hand.joints.tolist(), "intrinsics": labels.intrinsics.matrix.tolist()}
        lines.append(json.dumps({"image": f"training/rgb/{index:08d}.jpg", **record}))
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_runs(path, prepared, tiny_pack_directory, few_backgrounds, stand_in_mano, tmp_path):
    """With the smallest network; `pytest -m slow` runs them with their own."""
    train(small(path, "fastvit_t8", prepared, tiny_pack_directory, stand_in_mano, tmp_path), tmp_path / "run")
    final = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert final["steps"] == 2
    assert all(np.isfinite(value) for value in final["validation"].values())


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_runs_with_its_own_network(
    path, prepared, tiny_pack_directory, few_backgrounds, stand_in_mano, tmp_path
):
    config = small(path, load_config(path).model.backbone, prepared, tiny_pack_directory, stand_in_mano, tmp_path)
    model, _ = load_model(train(config, tmp_path / "run"))
    assert model.config.backbone == load_config(path).model.backbone


@pytest.mark.parametrize("missing", [{"pretrained": "nothing"}, {"start_from": "nothing"}, {"data": "nothing"}])
def test_what_is_missing_is_said_before_anything_is_rendered(missing, settings, tmp_path, monkeypatch):
    """freihand_ma36_plus.yaml renders 60,000 hands first: hours, and then there were no weights to begin with."""
    monkeypatch.setenv("HANDMESH_WEIGHTS_DIR", str(tmp_path))
    data = settings()["data"] | {"synthetic": {"directory": str(tmp_path / "renders"), "count": 10**6}}
    if missing == {"data": "nothing"}:
        data, missing = data | {"freihand": {"directory": str(tmp_path / "nothing")}}, {}
    with pytest.raises((CheckpointError, DataError), match="nothing"):
        train(parse_config(settings(data=data, **missing), "test"), tmp_path / "run")
    assert not (tmp_path / "renders").exists()


def test_a_choice_needs_samples_to_choose_by(settings, prepared, tmp_path):
    without = {"freihand": {"directory": str(prepared), "validation": 0.0}}
    with pytest.raises(ConfigError, match="select: validation needs samples that are held out"):
        train(parse_config(settings(data=without, select="validation"), "test"), tmp_path / "run")
    boxes = {"freihand": {"directory": str(prepared), "crop": "box"}}
    with pytest.raises(ConfigError, match=r"^test: select: test_set goes with crop frame or metro: [^{]*$"):
        parse_config(settings(data=boxes, select="test_set"), "test")


@pytest.mark.parametrize("name", ["freihand_ma36", "freihand_ma36_plus", "freihand_ma36_two_crops"])
def test_missing_weights_are_answered_with_how_to_get_them(name, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDMESH_WEIGHTS_DIR", str(tmp_path / "weights"))
    data = ["data={}", f"data.freihand.directory={prepared}", "model.hand=builtin", "tensorboard=false"]
    config = load_config(ROOT / "configs" / f"{name}.yaml", data)
    with pytest.raises(CheckpointError, match=r"(?s)no weights named 'fastvit_ma36'.*handmesh weights add"):
        train(config, tmp_path / "run")


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for Linux: needs bash")
def test_the_slurm_script_starts_a_torchrun_on_each_machine_with_all_its_cores(tmp_path):
    """With SLURM's commands stood in for. The step had one core for all loaders, from SLURM 22.05 on; and `head`, which
    reads no more than the first name, could end the script with its writer's SIGPIPE.
    """
    for name, says in (("scontrol", "echo n7; sleep 0.1; echo n8"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{says}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "n[7-8]", "JOB_ID": "42", "NNODES": "2", "GPUS_ON_NODE": "4", "CPUS_PER_TASK": "48"}
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | {f"SLURM_{k}": v for k, v in slurm.items()}
    script = ["bash", str(ROOT / "docs" / "how_to" / "slurm.sh"), "freihand_ma36_plus", "--out", "runs/plus"]
    ran = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    step, run = ran.stdout.split(" torchrun ")
    assert step == "--cpus-per-task 48"
    assert run.strip() == (
        "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id 42 --rdzv-endpoint n7:29500 "
        "-m handmesh train freihand_ma36_plus --out runs/plus --resume"
    )


@pytest.mark.slow
def test_eight_photographs_can_be_learnt_by_heart(prepared, tmp_path, monkeypatch):
    """To under 2 mm PA-MPVPE: everything from labels to losses agrees, or it would not fit."""
    eight = np.arange(8)
    monkeypatch.setattr("handmesh.data.sources.split_by_annotation", lambda *_: (eight, eight))
    still = {"rotation": 0.0, "no_rotation_prob": 1.0, "scale": 0.0, "channel_gain": 0.0}
    config = parse_config(
        {
            "model": {"backbone": "fastvit_t8", "resolution": 64},
            "data": {"freihand": {"directory": str(prepared)}},
            "photo_augmentation": still,
            "optimizer": {"learning_rate": 2e-3, "warmup_steps": 50, "ema_decay": 0.99},
            "batch_size": 8,
            "steps": 600,
            "loader_workers": 0,
            "tensorboard": False,
            "checkpoint_every": 600,
            "evaluate_every": 200,
        },
        "test",
    )
    train(config, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["validation"]
    assert scores["freihand_pa_mpvpe_mm"] < 2, scores
