import argparse
import copy
import functools
import logging
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from handmesh.errors import CheckpointError
from handmesh.model.fastvit import FastViT, build_backbone, fold_branches
from handmesh.model.fastvit_weights import load_backbone_weights, read_weights


@functools.cache
def published(name: str) -> FastViT:
    """Stands in for a published network: a classifier, and no weight at its initial value."""
    torch.manual_seed(0)
    backbone = build_backbone(name, num_classes=10, drop_path=0.0)
    for parameter in backbone.parameters():
        if parameter.dim() < 4:
            nn.init.uniform_(parameter, 0.1, 0.9)
    with torch.no_grad():
        for _ in range(3):
            backbone.train()(torch.randn(2, 3, 32, 64))
    return backbone.eval()


def apple_reparameterized(backbone: FastViT) -> dict[str, Tensor]:
    reparameterized = copy.deepcopy(backbone)
    with torch.no_grad():
        fold_branches(reparameterized)
    return reparameterized.state_dict()


def timm_name(key: str, last_stage: str) -> str:
    """timm's name of Apple's key, written from timm's side."""
    stages = {"0": "stages.0.blocks", "2": "stages.1.blocks", "4": "stages.2.blocks", last_stage: "stages.3.blocks"}
    embeddings = {"1": "stages.1.downsample", "3": "stages.2.downsample", "5": "stages.3.downsample"}
    first, index, rest = key.split(".", 2) if key.startswith("network.") else (key.split(".")[0], "", "")
    if first == "network":
        key = f"{ {**stages, **embeddings}.get(index, 'stages.3.pos_emb') }.{rest}"
    for ours, theirs in {
        "patch_embed": "stem", "rbr_conv": "conv_kxk", "rbr_scale": "conv_scale", "rbr_skip": "identity",
        "lkb_origin": "large_conv", "pe": "pos_enc", "convffn": "mlp", "conv_exp": "final_conv", "reduce": "fc1",
        "expand": "fc2", "head": "head.fc",
    }.items():  # fmt: skip
        key = ".".join(theirs if part == ours else part for part in key.split("."))
    return re.sub(r"(layer_scale(_[12])?)$", r"\1.gamma", key)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("fastvit_t8", "apple"),
        ("fastvit_t8", "apple in parallel"),
        ("fastvit_t8", "timm safetensors"),
        ("fastvit_sa12", "timm pth"),
    ],
)
def test_published_weights_give_the_published_network(name, form, tmp_path):
    original = published(name)
    weights = original.state_dict()
    path = tmp_path / f"{name}.pth.tar"
    if form.startswith("timm"):
        weights = {timm_name(key, "7" if "network.6.pe.bias" in weights else "6"): v for key, v in weights.items()}
        assert "stages.3.blocks.1.mlp.fc1.weight" in weights
    if form == "timm safetensors":
        path = tmp_path / "model.safetensors"
        save_file(weights, path)
    elif form == "timm pth":
        torch.save(weights, path)
    else:
        prefix = "module." if form == "apple in parallel" else ""
        weights = {prefix + key: value for key, value in weights.items()}
        torch.save({"state_dict": weights, "epoch": 300, "args": argparse.Namespace(lr=1e-3)}, path)

    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        headless = build_backbone(name).eval()
        load_backbone_weights(headless, path)
        torch.testing.assert_close(headless(images), original(images), rtol=0.0, atol=0.0)
        classifier = build_backbone(name, num_classes=10).eval()
        load_backbone_weights(classifier, path)
        torch.testing.assert_close(classifier.classify(images), original.classify(images), rtol=0.0, atol=0.0)


def test_reparameterized_weights_load_into_a_reparameterized_backbone(tmp_path):
    original = published("fastvit_sa12")
    path = tmp_path / "fastvit_sa12_reparam.pth.tar"
    torch.save({"state_dict": apple_reparameterized(original)}, path)
    reparameterized = build_backbone("fastvit_sa12").reparameterize()
    load_backbone_weights(reparameterized, path)
    again = build_backbone("fastvit_sa12").reparameterize()
    load_backbone_weights(again, reparameterized.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = original(images)
        torch.testing.assert_close(
            reparameterized(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )
        torch.testing.assert_close(again(images), reparameterized(images), rtol=0.0, atol=0.0)


def test_the_other_form_is_refused_with_the_way_out():
    original = published("fastvit_t8")
    with pytest.raises(CheckpointError, match=r"for inference only.*image_classification_models/fastvit_t8\.pth\.tar"):
        load_backbone_weights(build_backbone("fastvit_t8"), apple_reparameterized(original))
    with pytest.raises(CheckpointError, match=r"train-time form.*then call reparameterize"):
        load_backbone_weights(build_backbone("fastvit_t8").reparameterize(), original.state_dict())


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded():
    weights = published("fastvit_t8").state_dict()
    backbone = build_backbone("fastvit_t8")
    before = copy.deepcopy(backbone.state_dict())
    del weights["network.2.1.layer_scale"]
    weights["network.9.surprise"] = torch.zeros(1)
    weights["conv_exp.se.reduce.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as raised:
        load_backbone_weights(backbone, weights)
    for part in ("network.2.1.layer_scale", "network.9.surprise", "conv_exp.se.reduce.bias (5,) for (48,)"):
        assert part in str(raised.value)
    torch.testing.assert_close(dict(backbone.state_dict()), dict(before), rtol=0.0, atol=0.0)


def test_another_variants_weights_are_recognised():
    """In one line: it once listed 2,500 characters of keys."""
    with pytest.raises(CheckpointError, match=r"does not fit fastvit_t8.*They fit fastvit_sa12") as raised:
        load_backbone_weights(build_backbone("fastvit_t8"), published("fastvit_sa12").state_dict())
    assert len(str(raised.value)) < 120


def test_a_file_with_averaged_weights_too_says_which_are_taken(tmp_path, caplog):
    """Training scripts with an average save both; evaluation of such runs is usually of the average."""
    weights = published("fastvit_t8").state_dict()
    averaged = {key: torch.zeros_like(value) for key, value in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, tmp_path / "both.pth")
    with caplog.at_level(logging.WARNING):
        found = read_weights(tmp_path / "both.pth", "fastvit_t8")
    assert "holds 'state_dict' and its average 'state_dict_ema': the first is taken" in caplog.text
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_a_classifier_of_other_classes_is_refused():
    with pytest.raises(CheckpointError, match=r"head\.weight \(10, 768\) for \(4, 768\).*num_classes=0"):
        load_backbone_weights(build_backbone("fastvit_t8", num_classes=4), published("fastvit_t8").state_dict())


def test_a_missing_file_is_answered_by_a_manual_page(tmp_path):
    path = tmp_path / "fastvit_ma36.pth.tar"
    with pytest.raises(CheckpointError) as raised:
        load_backbone_weights(build_backbone("fastvit_ma36"), path)
    for part in (
        str(path),
        "image_classification_models/fastvit_ma36.pth.tar",
        "image_classification_distilled_models/",
        "fastvit_ma36_reparam.pth.tar",
        "https://huggingface.co/timm/fastvit_ma36.apple_in1k",
        f"curl -L -o {path} https://",
    ):
        assert part in str(raised.value)


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_runs_nothing(zipped, tmp_path):
    mark = tmp_path / "it-ran"
    path = tmp_path / "weights.pth"
    if zipped:
        torch.save({"state_dict": Hostile(f"touch {mark}")}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Hostile(f"touch {mark}")}, protocol=2))
    with pytest.raises(CheckpointError, match="was refused"):
        load_backbone_weights(build_backbone("fastvit_t8"), path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"PK\x03\x04 cut off", b"\x00" * 100])
def test_damaged_files_are_one_clear_error(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_backbone_weights(build_backbone("fastvit_t8"), path)


def test_files_without_weights_are_refused(tmp_path):
    torch.save({"epoch": 3, "metric": 0.5}, tmp_path / "log.pth")
    with pytest.raises(CheckpointError, match=r"holds no weights .*epoch, metric"):
        load_backbone_weights(build_backbone("fastvit_t8"), tmp_path / "log.pth")
    weights = published("fastvit_t8").state_dict()
    weights["head.bias"] = torch.full((10,), float("nan"))
    with pytest.raises(CheckpointError, match=r"'head\.bias' has values that are not finite"):
        load_backbone_weights(build_backbone("fastvit_t8"), weights)
