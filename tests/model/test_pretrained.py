"""Weights that a user brings: stored once, unchanged, with their record; found by name; refused if they are not it."""

import argparse
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.errors import CheckpointError
from handmesh.model.fastvit import build_backbone, fold_branches
from handmesh.model.fastvit_weights import load_backbone_weights
from handmesh.model.pretrained import (
    add_backbone_weights,
    find_backbone_weights,
    list_backbone_weights,
    read_stored_weights,
    weights_folder,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HANDMESH_WEIGHTS_DIR", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A file as Apple publishes them, with a classifier of ten classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("download") / "fastvit_t8.pth.tar"
    weights = build_backbone("fastvit_t8", num_classes=10).state_dict()
    torch.save({"state_dict": weights, "epoch": 300, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


# --- Adding and finding -----------------------------------------------------------------------------------------------


def test_added_weights_are_the_published_ones_and_say_where_they_come_from(checkpoint, folder):
    stored = add_backbone_weights(checkpoint)
    path = find_backbone_weights("fastvit_t8")
    assert path == stored.path == folder / "fastvit_t8.safetensors"
    assert [file.name for file in folder.iterdir()] == ["fastvit_t8.safetensors"]
    torch.testing.assert_close(load_file(path), dict(weights_in(checkpoint)), rtol=0.0, atol=0.0)
    assert read_stored_weights("fastvit_t8") == stored
    assert (stored.variant, stored.reparameterized, stored.num_classes, stored.naming) == (
        "fastvit_t8",
        False,
        10,
        "Apple",
    )
    assert stored.source == str(checkpoint)
    assert "github.com/apple/ml-fastvit" in stored.licence

    backbone = build_backbone("fastvit_t8")
    load_backbone_weights(backbone, path)
    key = "network.2.1.convffn.fc1.weight"
    assert torch.equal(backbone.get_parameter(key), weights_in(checkpoint)[key])


def test_timms_names_become_apples(checkpoint, tmp_path):
    timm = {}
    for key, value in weights_in(checkpoint).items():
        key = key.replace("patch_embed.", "stem.").replace("conv_exp.", "final_conv.").replace("head.", "head.fc.")
        key = re.sub(r"^network\.([0246])\.", lambda stage: f"stages.{int(stage[1]) // 2}.blocks.", key)
        key = re.sub(r"^network\.([135])\.", lambda stage: f"stages.{(int(stage[1]) + 1) // 2}.downsample.", key)
        for apple, theirs in (("rbr_conv", "conv_kxk"), ("rbr_scale", "conv_scale"), ("rbr_skip", "identity")):
            key = key.replace(apple, theirs)
        key = key.replace("lkb_origin", "large_conv").replace("convffn", "mlp")
        timm[re.sub(r"(layer_scale)$", r"\1.gamma", key).replace("reduce", "fc1").replace("expand", "fc2")] = value
    save_file(timm, tmp_path / "model.safetensors")
    stored = add_backbone_weights(tmp_path / "model.safetensors", "fastvit_t8_distilled", licence="mine", source="here")
    assert (stored.naming, stored.licence, stored.source) == ("timm", "mine", "here")
    stored_weights = load_file(find_backbone_weights("fastvit_t8_distilled"))
    torch.testing.assert_close(stored_weights, dict(weights_in(checkpoint)), rtol=0.0, atol=0.0)


def test_the_reparameterized_form_is_told_apart(checkpoint, tmp_path):
    """Who asks for fastvit_t8 to train must never get the form that cannot be trained."""
    backbone = build_backbone("fastvit_t8", num_classes=10).eval()
    backbone.load_state_dict(weights_in(checkpoint))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone.classify(images)
        fold_branches(backbone)
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "fastvit_t8_reparam.pth.tar")
    stored = add_backbone_weights(tmp_path / "fastvit_t8_reparam.pth.tar")
    assert (stored.name, stored.reparameterized) == ("fastvit_t8_reparameterized", True)
    with pytest.raises(CheckpointError, match="for inference only"):
        load_backbone_weights(build_backbone("fastvit_t8"), stored.path)
    reparameterized = build_backbone("fastvit_t8", num_classes=10).reparameterize()
    load_backbone_weights(reparameterized, stored.path)
    torch.testing.assert_close(reparameterized.classify(images), expected, rtol=1e-4, atol=1e-6)


def test_the_same_file_again_is_fine_and_another_one_is_not(checkpoint, tmp_path):
    first = add_backbone_weights(checkpoint)
    assert add_backbone_weights(checkpoint) == first
    other = tmp_path / "other.pth"
    torch.save(build_backbone("fastvit_t8").state_dict(), other)
    with pytest.raises(CheckpointError, match=r"already are weights named 'fastvit_t8'.*--name.*--replace"):
        add_backbone_weights(other)
    assert read_stored_weights("fastvit_t8") == first
    assert add_backbone_weights(other, replace=True).num_classes == 0
    assert "head.weight" not in load_file(find_backbone_weights("fastvit_t8"))


def test_a_failed_write_leaves_what_was_there(checkpoint, folder, tmp_path, monkeypatch):
    first = add_backbone_weights(checkpoint)
    torch.save(build_backbone("fastvit_t8").state_dict(), tmp_path / "other.pth")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            add_backbone_weights(tmp_path / "other.pth", replace=True)
    assert read_stored_weights("fastvit_t8") == first
    assert [file.name for file in folder.iterdir()] == ["fastvit_t8.safetensors"]


# --- Refusals ---------------------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_file_runs_nothing_and_stores_nothing(folder, tmp_path):
    torch.save({"state_dict": Hostile(tmp_path / "it-ran")}, tmp_path / "fastvit_t8.pth.tar")
    with pytest.raises(CheckpointError, match="was refused"):
        add_backbone_weights(tmp_path / "fastvit_t8.pth.tar")
    assert not (tmp_path / "it-ran").exists()
    assert not folder.exists()


def test_weights_of_no_variant_are_refused_by_their_keys(checkpoint, folder, tmp_path):
    weights = weights_in(checkpoint)
    weights["network.9.surprise"] = torch.zeros(3)
    del weights["network.1.proj.0.small_conv.bn.bias"]
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as raised:
        add_backbone_weights(tmp_path / "odd.pth")
    for part in ("odd.pth does not fit fastvit_t8", "network.1.proj.0.small_conv.bn.bias", "network.9.surprise"):
        assert part in str(raised.value)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x.safetensors", "a\\b"])
def test_names_are_not_paths(name, checkpoint):
    with pytest.raises(CheckpointError, match="cannot name weights"):
        add_backbone_weights(checkpoint, name)
    with pytest.raises(CheckpointError, match="cannot name weights"):
        find_backbone_weights(name)


@pytest.mark.parametrize(
    ("name", "variant", "command"),
    [
        ("fastvit_ma36", "fastvit_ma36", "handmesh weights add fastvit_ma36.pth.tar"),
        ("fastvit_t8_distilled", "fastvit_t8", "add fastvit_t8.pth.tar --name fastvit_t8_distilled"),
        ("fastvit_t12", "fastvit_t12", "handmesh weights add fastvit_t12.pth.tar"),
        ("mine", "fastvit_ma36", "add fastvit_ma36.pth.tar --name mine"),
    ],
)
def test_a_missing_name_is_answered_by_a_manual_page(name, variant, command, checkpoint, folder):
    add_backbone_weights(checkpoint)
    with pytest.raises(CheckpointError) as raised:
        find_backbone_weights(name)
    for part in (
        f"no weights named {name!r} in {folder} (there are: fastvit_t8)",
        f"image_classification_models/{variant}.pth.tar",
        f"https://huggingface.co/timm/{variant}.apple_in1k",
        "https://github.com/apple/ml-fastvit/blob/main/LICENSE",
        command,
    ):
        assert part in str(raised.value)


def test_a_missing_file_is_answered_by_a_manual_page(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no file .*fastvit_sa24\.pth\.tar"):
        add_backbone_weights(tmp_path / "fastvit_sa24.pth.tar")


# --- Where they live --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "chosen/handmesh/weights"),
        ("linux", None, "home/.local/share/handmesh/weights"),
        ("darwin", None, "home/Library/Application Support/handmesh/weights"),
        ("win32", "LOCALAPPDATA", "chosen/handmesh/weights"),
        ("win32", "HANDMESH_WEIGHTS_DIR", "chosen"),
    ],
)
def test_the_folder_follows_the_platforms_convention(platform, variable, expected, tmp_path, monkeypatch):
    for name in ("HANDMESH_WEIGHTS_DIR", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "chosen"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert weights_folder() == tmp_path / expected


def test_a_damaged_file_does_not_hide_the_others(checkpoint, folder):
    stored = add_backbone_weights(checkpoint)
    (folder / "broken.safetensors").write_bytes(b"not safetensors")
    save_file({"a": torch.zeros(1)}, folder / "nameless.safetensors")
    broken, good, nameless = list_backbone_weights()
    assert good == stored
    assert "broken.safetensors cannot be read" in str(broken)
    assert "nameless.safetensors has no readable record" in str(nameless)


# --- On the command line ----------------------------------------------------------------------------------------------


def test_add_and_list_on_the_command_line(checkpoint, folder):
    runner = CliRunner()
    empty = runner.invoke(app, ["weights", "list"])
    assert (empty.exit_code, empty.stdout) == (0, f"No weights in {folder} yet.\n")
    added = runner.invoke(app, ["weights", "add", str(checkpoint), "--name", "mine", "--licence", "CC0"])
    assert added.exit_code == 0, added.output
    assert f"file: {folder / 'mine.safetensors'}\nlicence: CC0\n" in added.stdout
    listed = runner.invoke(app, ["weights", "list"])
    assert listed.exit_code == 0
    for word in ("mine", "CC0", "fastvit"):
        assert word in listed.stdout
    (folder / "broken.safetensors").write_bytes(b"")
    assert runner.invoke(app, ["weights", "list"]).exit_code == 1
