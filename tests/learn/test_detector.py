"""Training the detector: the loss knows better from worse, a run goes on where it stopped, its file is the network."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack

import cv2
import numpy as np
import pytest
import torch

from handmesh.config.detector import DetectorModel
from handmesh.config.load import parse_config, parse_detector_config
from handmesh.data.scenes import read_scenes
from handmesh.detect import HandDetector
from handmesh.detect.hands import is_detector
from handmesh.errors import CheckpointError, ConfigError, DataError
from handmesh.hand.grid import GridTarget, SeenHand, encode
from handmesh.learn.detector import detection_scores, detector_loss, label_counts, train_detector
from handmesh.learn.distributed import Ranks
from handmesh.learn.resume import open_run
from handmesh.model.checkpoint import load_latest_state
from handmesh.model.detector import HandDetectorNet
from handmesh.runtime.detector_graph import weights_in, write_detector
from handmesh.runtime.onnx import session_of


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """One photograph with a listed hand and one without."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 255, (120, 160, 3), np.uint8))
    points = rng.uniform(30, 90, (21, 2)).tolist()
    rows = [
        {"image": "a.png", "hands": [{"handedness": "left", "keypoints": points}]},
        {"image": "b.png", "no_hand": True},
    ]
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "scenes.jsonl"


def config(scenes, **changes):
    tree = {
        "detector": {"width": 8},
        "data": {"crowds": 0, "scenes": [{"path": str(scenes)}], "effects": 0.0},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "resolution": 64,
        "batch_size": 2,
        "steps": 4,
        "loader_workers": 0,
        "checkpoint_every": 2,
        "evaluate_every": 4,
        "log_every": 1,
        "validation": [{"path": str(scenes)}],
        "validation_side": 64,
    }
    return parse_detector_config(tree | changes, "test")


def batch_of(hands, cells=12):
    target = encode(hands, cells, cells)
    return GridTarget(*(torch.from_numpy(part)[None] for part in target))


def grid_of(target, certain=9.0):
    center = (target.center > 0.999).float() * 2 * certain - certain
    right = certain * (2 * target.right - 1)
    return torch.cat([center[:, None], target.box, target.direction, right[:, None]], dim=1)


HANDS = [SeenHand((10.0, 20.0, 50.0, 60.0), 0.5, True), SeenHand((60.0, 60.0, 90.0, 95.0), -1.0, False)]


def test_the_right_answer_costs_nothing_and_each_wrong_one_its_own_part():
    target, weight = batch_of(HANDS), torch.ones(1, 12, 12)
    right = grid_of(target)
    best = detector_loss(right, target, weight)
    assert all(value < 1e-3 for value in best.values())
    for part, channels in (("center", [0]), ("direction", [5, 6]), ("handedness", [7])):
        wrong = right.clone()
        wrong[:, channels] *= -1
        losses = detector_loss(wrong, target, weight)
        assert losses[part] > 0.5
        assert all(losses[name] < 1e-3 for name in losses if name != part)
    wrong = right.clone()
    wrong[:, 1:5] += 1
    losses = detector_loss(wrong, target, weight)
    assert losses["box"] > 0.3
    assert losses["center"] < 1e-3


@pytest.mark.parametrize("hands", [HANDS, []])
def test_the_losses_of_pieces_average_to_that_of_the_batch(hands):
    """Each process divided by its own hands, so that those of one with few counted more than another's."""
    pieces = [(batch_of(hands), torch.ones(1, 12, 12)), (batch_of(hands[:1]), torch.full((1, 12, 12), 0.5))]
    grids = torch.randn(2, 1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    both = GridTarget(*map(torch.cat, zip(*(target for target, _ in pieces), strict=True)))
    whole = detector_loss(torch.cat([*grids]), both, torch.cat([weight for _, weight in pieces]))
    counts = [label_counts(*piece) for piece in pieces]
    mean = {name: (counts[0][name] + counts[1][name]) / 2 for name in counts[0]}
    parts = [detector_loss(grid, *piece, mean, 2) for grid, piece in zip(grids, pieces, strict=True)]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)


def test_what_has_no_weight_teaches_nothing():
    target, weight = batch_of([]), torch.ones(1, 12, 12)
    grid = grid_of(target)
    grid[:, 0, 5, 5] = 4.0  # a hand where there is none
    grid.requires_grad_(True)
    assert detector_loss(grid, target, weight)["center"] > 1
    weight[:, 5, 5] = 0
    loss = detector_loss(grid, target, weight)
    assert loss["center"] < 0.01
    sum(loss.values()).backward()
    assert grid.grad[0, :, 5, 5].abs().max() == 0


def test_a_run_stopped_and_resumed_ends_as_one_that_was_not(scenes, tmp_path):
    lengths = {"steps": 20, "checkpoint_every": 20, "evaluate_every": 20}
    settings = config(scenes, **lengths)
    whole = train_detector(settings, tmp_path / "whole")
    parts = tmp_path / "parts"
    train_detector(settings, parts, should_stop=lambda: True)  # asked every ten steps
    with pytest.raises(ConfigError, match="--resume"):
        train_detector(settings, parts)
    for changed in ({"detector": {"width": 16}}, {"batch_size": 4}):
        with pytest.raises(ConfigError, match=r"other settings \((detector.width|batch_size) was .*resume with those"):
            train_detector(config(scenes, **lengths | changed), parts, resume=True)
    resumed = train_detector(settings.model_copy(update={"log_every": 2}), parts, resume=True)
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "total" in line] == [*range(1, 11), *range(12, 21, 2)]
    assert set(lines[-1]["validation"]) == {"recall", "sides_right", "false_per_photo"}
    for name, value in weights_in(whole).items():
        assert np.array_equal(value, weights_in(resumed)[name]), name
    assert HandDetector(resumed, min_score=0.0)(np.zeros((50, 70, 3), np.uint8))


def test_a_run_records_the_weights_that_it_started_from(scenes, tmp_path):
    """It noted their name alone: which weights had it been?"""
    start = tmp_path / "start.onnx"
    write_detector(start, HandDetectorNet(DetectorModel(width=8)), {})
    sha256 = hashlib.sha256(start.read_bytes()).hexdigest()
    settings = config(scenes, start_from=str(start), steps=20, checkpoint_every=20, evaluate_every=20)
    train_detector(settings, tmp_path / "run", should_stop=lambda: True)
    start.unlink()
    train_detector(settings, tmp_path / "run", resume=True)  # needs it no more, and knows what it was
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["inputs"]
    assert recorded["start_from"] == {"name": str(start), "path": str(start), "sha256": sha256}
    assert recorded["data"]["scenes0"]["samples"] == 2


def test_labels_that_changed_since_a_run_began_are_told(scenes, tmp_path, caplog):
    """It went on with them without a word, though it says that it ends as one that was never stopped."""
    folder = shutil.copytree(scenes.parent, tmp_path / "scenes")
    settings = config(folder / scenes.name, steps=20, checkpoint_every=20, evaluate_every=20)
    train_detector(settings, tmp_path / "run", should_stop=lambda: True)
    (folder / scenes.name).write_text(scenes.read_text().splitlines()[0] + "\n")
    train_detector(settings, tmp_path / "run", resume=True)
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert f"{folder / scenes.name} is not what this run began with (1 samples, 2 then)" in said


def test_a_stopped_run_is_saved_before_it_is_scored(scenes, tmp_path, monkeypatch):
    """torchrun gives its processes 30 seconds."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("handmesh.learn.detector.detection_scores", killed)
    settings = config(scenes, steps=20, checkpoint_every=20, evaluate_every=20)
    with pytest.raises(KeyboardInterrupt):
        train_detector(settings, tmp_path, should_stop=lambda: True)
    assert load_latest_state(tmp_path)["step"] == 10
    with ExitStack() as held, pytest.raises(ConfigError, match="holds a run of a detector"):
        open_run(parse_config({}, "test"), tmp_path, resume=True, ranks=Ranks(torch.device("cpu")), held=held)


def test_missing_photographs_are_said_before_anything_is_rendered(scenes, tmp_path):
    """Cut-out hands that were not there ended the run in a worker, after minutes of rendering; so did a wrong start."""
    synthetic = {"directory": str(tmp_path / "renders"), "count": 10**6}
    data = {"crowds": 1, "photographs": 0, "mosaics": 0, "synthetic": synthetic}
    for missing in ({"cut_outs": [str(tmp_path / "none.jsonl")]}, {"scenes": [{"path": str(tmp_path / "none.jsonl")}]}):
        with pytest.raises(DataError, match=r"none\.jsonl"):
            train_detector(config(scenes, data=data | missing), tmp_path / "run")
        assert not (tmp_path / "renders").exists()
    for wrong in (
        {"validation": [{"path": str(tmp_path / "none.jsonl")}]},
        {"start_from": str(tmp_path / "none.onnx")},
    ):
        with pytest.raises((DataError, CheckpointError), match=r"none\."):
            train_detector(config(scenes, data=data, **wrong), tmp_path / "run")
        assert not (tmp_path / "renders").exists()


def test_renders_are_drawn_by_as_many_processes_as_their_settings_say(scenes, tmp_path, monkeypatch):
    """They were drawn by as many as the network has threads, which is one."""
    asked = []

    def render(path, count, seed, size, settings, workers, progress, *, hand):
        asked.append(workers)
        raise DataError("enough")

    monkeypatch.setattr("handmesh.data.sources.render_pack", render)
    synthetic = {"directory": str(tmp_path / "renders"), "workers": 3}
    with pytest.raises(DataError, match="enough"):
        train_detector(
            config(scenes, data={"crowds": 1, "scenes": [{"path": str(scenes)}], "synthetic": synthetic}),
            tmp_path / "run",
        )
    assert asked == [3]


def test_the_file_answers_as_the_network_for_pictures_of_any_shape(tmp_path):
    torch.manual_seed(0)
    network = HandDetectorNet(DetectorModel(width=8, stages=4)).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(value.half().float())
    path = tmp_path / "one.onnx"
    write_detector(path, network, {"steps": 3})
    assert is_detector(path)
    session = session_of(path, 1)
    for shape in ((1, 64, 96, 3), (2, 240, 320, 3), (1, 80, 112, 3)):
        pictures = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
        (grid,) = session.run(None, {"pictures": pictures})
        with torch.no_grad():
            wanted = network(torch.from_numpy(pictures)).numpy()
        assert grid.shape == (shape[0], 8, shape[1] // 8, shape[2] // 8)
        np.testing.assert_allclose(grid, wanted, atol=2e-4)
    for name, value in weights_in(path).items():
        np.testing.assert_array_equal(value, dict(network.named_parameters())[name].detach().numpy())
    detector = HandDetector(path)
    assert detector.record["training"] == {"steps": 3}


def test_a_trunk_begins_as_the_hand_mesh_models_and_keeps_its_widest_channels():
    wide, narrow = (HandDetectorNet(DetectorModel(mlp_ratio=ratio)) for ratio in (3, 1))
    state = wide.state_dict()
    narrow.start_from(state)
    taken = narrow.state_dict()
    name = "network.0.0.convffn.fc1.weight"
    rows = {tuple(row.flatten().tolist()) for row in state[name]}
    assert all(tuple(row.flatten().tolist()) in rows for row in taken[name])
    assert torch.equal(taken["patch_embed.0.reparam_conv.weight"], state["patch_embed.0.reparam_conv.weight"])
    with pytest.raises(CheckpointError, match="another backbone"):
        narrow.start_from({})
    with pytest.raises(CheckpointError, match=r"convffn\.fc1\.weight is .* wanted"):  # it was a traceback of torch's
        wide.start_from(narrow.state_dict())


def test_scores_count_what_was_found_and_what_was_imagined(scenes, monkeypatch):
    records = read_scenes(scenes)
    points, _ = records[0].hands[0]
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)

    class Oracle(torch.nn.Module):
        def forward(self, pictures):
            target = encode([SeenHand((x0, y0, x1, y1), 0.0, False)], pictures.shape[1] // 8, pictures.shape[2] // 8)
            return grid_of(GridTarget(*(torch.from_numpy(part)[None] for part in target)))

    scores = detection_scores(Oracle(), records, side=160)
    assert scores == {"recall": 1.0, "sides_right": 1.0, "false_per_photo": 1.0}


def test_files_that_are_no_detector_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No detector"):
        HandDetector(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="cannot be read"):
        HandDetector(tmp_path / "bad.onnx")
    assert not is_detector(tmp_path / "bad.onnx")
    assert not is_detector(tmp_path / "none.onnx")
    from handmesh.model.bundled import bundled_model_path

    with pytest.raises(CheckpointError, match="not a detector"):
        HandDetector(bundled_model_path().with_suffix(".onnx"))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"data": {"crowds": 1.0}}, "synthetic"), ({"data": {"photographs": 1.0, "crowds": 0}}, "scenes"),
     ({"data": {"crowds": 0, "photographs": 0, "mosaics": 0}}, "nothing to learn"), ({"stepps": 3}, "did you mean"),
     ({"detector": {"stages": 7}}, "stages")],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(scenes, change, word):
    with pytest.raises(ConfigError, match=word):
        config(scenes, **change)
