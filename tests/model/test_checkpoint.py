"""Model files and training states: what is read is what was written, and half a file is nobody's model."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import disk_with
from safetensors.torch import load, save
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.errors import AssetError, CheckpointError
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.hand.mano_file import add_mano
from handmesh.model.checkpoint import (
    average_models,
    load_latest_state,
    load_model,
    load_weights,
    read_record,
    save_model,
    save_state,
)
from handmesh.model.network import HandMeshNet

CROPS = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rewritten(path: Path, target: Path, record: object = None, **weights: torch.Tensor) -> Path:
    """A copy of a model file with another record, or with weights added or replaced."""
    tensors = load(path.read_bytes())
    text = json.dumps(read_record(path) if record is None else record)
    target.write_bytes(save({**tensors, **weights}, metadata={"handmesh": text}))
    return target


def only_file(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_model_file_gives_the_same_network_back(reparameterized, lively_network, tmp_path):
    model = lively_network.reparameterize() if reparameterized else lively_network
    path = tmp_path / "deeper" / "model.safetensors"
    save_model(path, model, training={"steps": 3, "note": "é"})
    loaded, record = load_model(path)
    assert record["training"] == {"steps": 3, "note": "é"}
    assert loaded.config == model.config
    assert loaded.reparameterized is reparameterized
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        for first, second in zip(model.eval()(CROPS), loaded(CROPS), strict=True):
            assert torch.equal(first, second)


def test_float16_halves_the_file_and_hardly_moves_the_hand(lively_network, model_file, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(path, lively_network, training={}, half=True)
    assert path.stat().st_size < 0.52 * model_file.stat().st_size
    loaded, _ = load_model(path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        assert (loaded(CROPS).vertices - lively_network(CROPS).vertices).abs().max() < 1e-3


@pytest.mark.parametrize(("value", "half"), [(1e5, True), (float("nan"), False), (float("inf"), False)])
def test_weights_that_the_file_cannot_hold_are_refused(value, half, model_file, tmp_path):
    """1e5 is infinite in float16: the model would load, and answer with nonsense."""
    model, _ = load_model(model_file)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old one")
    with torch.no_grad():
        model.betas_head.bias[3] = value
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not written: betas_head\.bias is not finite"):
        save_model(path, model, training={}, half=half)
    assert path.read_bytes() == b"the old one"


def test_the_file_holds_no_hand_and_names_the_one_it_needs(model_file):
    assert read_record(model_file)["hand_sha256"] == builtin_hand().sha256
    assert not [name for name in load(model_file.read_bytes()) if name.startswith("hand")]


def test_a_model_of_another_hand_is_refused(lively_network, tmp_path):
    arrays = builtin_hand()
    other = HandMeshNet(lively_network.config, HandModel(replace(arrays, v_template=arrays.v_template * 1.01)))
    save_model(tmp_path / "other.safetensors", other, training={})
    with pytest.raises(CheckpointError, match=r"other\.safetensors was trained with another hand model"):
        load_model(tmp_path / "other.safetensors")


def test_a_model_of_mano_comes_back_with_mano_and_nowhere_else(lively_network, stand_in_mano, tmp_path, monkeypatch):
    """The file names the hand; it loads where the same files were added, and says what is missing where not."""
    config = lively_network.config.model_copy(update={"hand": "mano"})
    path = tmp_path / "of_mano.safetensors"
    save_model(path, HandMeshNet(config, HandModel(stand_in_mano)), training={})
    model, record = load_model(path)
    assert model.hand.sha256 == record["hand_sha256"] == stand_in_mano.sha256 != builtin_hand().sha256
    with torch.no_grad():
        rest, _ = model.hand(torch.eye(3).expand(1, 16, 3, 3), torch.zeros(1, 10))
    np.testing.assert_allclose(rest[0], stand_in_mano.v_template, atol=1e-6)

    replace(stand_in_mano, v_template=stand_in_mano.v_template * 1.01).save(tmp_path / "other.npz")
    add_mano(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match=r"of_mano\.safetensors was trained with another hand.*handmesh mano add"):
        load_model(path)
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "nothing"))
    with pytest.raises(AssetError, match=r"(?s)no MANO model of a right hand.*Register at https://mano"):
        load_model(path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_half_a_file_is_refused_by_name(share, model_file, tmp_path):
    whole = model_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read"):
        load_model(path)


def test_what_is_no_model_is_refused_by_name(model_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"No model at .*absent"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path)
    path = tmp_path / "x.safetensors"
    for content in (b"PK\x03\x04" + bytes(100), b"just text, no tensors", bytes(64)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            load_model(path)
    path.write_bytes(save({"weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="no handmesh record"):
        load_model(path)
    path.write_bytes(save({"weight": torch.zeros(3)}, metadata={"handmesh": "{"}))
    with pytest.raises(CheckpointError, match="record is damaged"):
        load_model(path)
    for record in ([], {}, {"format": 1}):
        with pytest.raises(CheckpointError, match="record is damaged"):
            load_model(rewritten(model_file, path, record))


def test_records_of_other_versions_are_refused_by_name(model_file, tmp_path):
    record, path = read_record(model_file), tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="model format 99, this version reads 1"):
        load_model(rewritten(model_file, path, {**record, "format": 99}))
    settings = {**record["model"], "colour": "blue", "resolution": 65}
    with pytest.raises(CheckpointError, match=r"resolution: .*; colour: ") as raised:
        load_model(rewritten(model_file, path, {**record, "model": settings}))
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="does not fit the network: missing"):
        load_model(rewritten(model_file, path, {**record, "model": {**record["model"], "backbone": "fastvit_t12"}}))


def test_weights_keep_loading_by_their_old_names(lively_network, tmp_path):
    """Heads were called otherwise: model files and training states of that time are read as what they are."""
    config = lively_network.config.model_copy(update={"handedness_head": True})
    network = HandMeshNet(config, HandModel(builtin_hand()))
    weights = network.state_dict()
    old = {name.replace("handedness_head.", "right_head."): tensor for name, tensor in weights.items()}
    assert old.keys() != weights.keys()
    save_model(tmp_path / "new.safetensors", network, training={})
    record = read_record(tmp_path / "new.safetensors")
    record = json.dumps({"folded" if key == "reparameterized" else key: value for key, value in record.items()})
    (tmp_path / "old.safetensors").write_bytes(save(old, metadata={"handmesh": record}))
    loaded, _ = load_model(tmp_path / "old.safetensors")
    torch.testing.assert_close(loaded.state_dict(), weights, rtol=0, atol=0)
    save_state(tmp_path, 1, {"model": old, "average": old, "step": 1}, keep=1)
    state = load_latest_state(tmp_path)
    assert state["model"].keys() == state["average"].keys() == weights.keys()


def test_loading_is_strict(model_file, tmp_path):
    path = rewritten(model_file, tmp_path / "x.safetensors", extra=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"x\.safetensors does not fit the network: unknown extra"):
        load_model(path)
    path = rewritten(model_file, path, **{"camera_head.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"camera_head\.bias is \(4,\), wanted \(3,\)"):
        load_model(path)
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"here does not fit the network: missing weight; missing bias\."):
        load_weights(layer, {}, "here")


@pytest.mark.parametrize("write", ["model", "state"])
def test_a_full_disk_leaves_the_old_file_whole(write, lively_network, tmp_path):
    """torch.save raises RuntimeError, not OSError, when the disk is full: it once came out as a traceback."""

    def save_it() -> None:
        if write == "model":
            save_model(tmp_path / "model.safetensors", lively_network, training={})
        else:
            save_state(tmp_path, 1, {"weights": torch.ones(100_000)}, keep=3)

    save_it()
    path = only_file(tmp_path)
    before = path.read_bytes()
    with disk_with(free=50_000), pytest.raises(CheckpointError, match=r"Cannot write .*too large|disk full"):
        save_it()
    assert path.read_bytes() == before
    assert only_file(tmp_path) == path, "nothing is left lying about"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/state-00000001\.pt"):
        save_state(tmp_path / "file", 1, {}, keep=1)


def test_states_round_trip_and_only_the_newest_are_kept(tmp_path):
    assert load_latest_state(tmp_path) is None
    assert load_latest_state(tmp_path / "absent") is None
    for step in (8, 9, 10, 100):
        state = {"step": step, "weights": {"a": torch.arange(5) * step}, "config": {"name": "x", "rates": [0.1, None]}}
        save_state(tmp_path, step, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000010.pt", "state-00000100.pt"]
    loaded = load_latest_state(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded["weights"].pop("a"), torch.arange(5) * 100)
    assert loaded == {"step": 100, "weights": {}, "config": {"name": "x", "rates": [0.1, None]}}


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zeros", "flipped"])
def test_a_damaged_newest_state_is_skipped_with_a_warning(damage, tmp_path, caplog):
    for step in (1, 2):
        path = save_state(tmp_path, step, {"step": step, "weights": torch.randn(1000)}, keep=2)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"not a state\n",
        "zeros": bytes(len(whole)),
        "flipped": whole[:middle] + bytes(value ^ 0xFF for value in whole[middle : middle + 64]) + whole[middle + 64 :],
    }
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        state = load_latest_state(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert "state-00000002.pt cannot be read" in caplog.text
    assert len(caplog.records) == 1


def test_a_state_cannot_run_code(tmp_path, caplog):
    """A state from a stranger is data: a pickle that calls a function is refused."""

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "pwned"), "w")

    torch.save({"step": Hostile()}, tmp_path / "state-00000001.pt")
    with caplog.at_level(logging.WARNING):
        assert load_latest_state(tmp_path) is None
    assert not (tmp_path / "pwned").exists()


def other_network(network: HandMeshNet, change: float) -> HandMeshNet:
    """The same network with every weight moved by something of its own."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for number, tensor in enumerate(other.state_dict().values()):
            if tensor.is_floating_point():
                tensor.mul_(1 + change * (1 + number % 3))
    return other


@pytest.mark.parametrize("reparameterized", [False, True])
def test_the_mean_of_models_has_the_mean_of_every_weight(reparameterized, lively_network, tmp_path):
    """Of models as trained; or reparameterized, as those of reparameterized runs are."""
    network = lively_network.reparameterize() if reparameterized else lively_network
    crops = {"synthetic": "augmented"}
    paths = []
    for number, change in enumerate((0.0, 0.02, -0.05)):
        paths.append(tmp_path / f"{number}.safetensors")
        training = {"steps": 10 + number, "samples": 80, "crops": crops, "validation": {"any": 1.0}}
        save_model(paths[-1], other_network(network, change), training=training)
    model, training = average_models(paths)
    assert model.reparameterized == reparameterized
    stored = [load(path.read_bytes()) for path in paths]
    for name, tensor in model.state_dict().items():
        values = torch.stack([one[name].double() for one in stored])
        wanted = values.mean(dim=0) if tensor.is_floating_point() else values[0]
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-7)
    each = [{"steps": 10 + n, "samples": 80} for n in range(3)]
    assert training == {"steps": 33, "samples": 240, "mean_of": each, "crops": crops}
    assert not model.training


def test_models_that_have_no_mean_are_refused_by_name(lively_network, model_file, tmp_path):
    reparameterized = tmp_path / "reparameterized.safetensors"
    save_model(reparameterized, lively_network.reparameterize(), training={})
    for pair in ([model_file, reparameterized], [reparameterized, model_file]):
        with pytest.raises(
            CheckpointError, match=rf"reparameterized.safetensors is reparameterized, {model_file} is not"
        ):
            average_models(pair)
    other = tmp_path / "other.safetensors"
    config = lively_network.config.model_copy(update={"resolution": 96})
    save_model(other, HandMeshNet(config, HandModel(builtin_hand())), training={})
    with pytest.raises(CheckpointError, match=r"other.safetensors and .* are of other networks"):
        average_models([model_file, other])


def test_runs_are_averaged_on_the_command_line(lively_network, model_file, tmp_path):
    second = tmp_path / "second.safetensors"
    save_model(second, other_network(lively_network, 0.02), training={"steps": 4})
    out = tmp_path / "mean"
    arguments = ["weights", "average", str(model_file), str(second), "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    as_trained, _ = load_model(out / "model.safetensors")
    deployed, record = load_model(out / "deploy.safetensors")
    assert record["reparameterized"]
    with torch.no_grad():
        difference = (as_trained(CROPS).vertices - deployed(CROPS).vertices).abs().max()
    assert float(difference) < 1e-3  # float16, in metres
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in again.output
    alone = CliRunner().invoke(app, ["weights", "average", str(model_file), "--out", str(tmp_path / "x")])
    assert alone.exit_code == 2
    assert "at least two" in alone.output


def test_a_run_and_the_bundled_model_are_averaged_by_their_names(lively_network, model_file, monkeypatch, tmp_path):
    """A folder and a name were both "No model"."""
    monkeypatch.setattr("handmesh.model.bundled.bundled_model_path", lambda: model_file)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model.safetensors", other_network(lively_network, 0.02), training={"steps": 4})
    arguments = ["weights", "average", str(tmp_path / "run"), "handmesh_t8", "--out", str(tmp_path / "mean")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    mean, record = load_model(tmp_path / "mean" / "model.safetensors")
    assert [part["steps"] for part in record["training"]["mean_of"]] == [4, 0]
    one, other, found = (
        network.camera_head.weight for network in (lively_network, other_network(lively_network, 0.02), mean)
    )
    torch.testing.assert_close(found, (one + other) / 2)
    missing = CliRunner().invoke(app, [*arguments[:2], str(tmp_path / "no run"), *arguments[3:5], str(tmp_path / "x")])
    assert isinstance(missing.exception, CheckpointError)
    assert "no run" in str(missing.exception)
