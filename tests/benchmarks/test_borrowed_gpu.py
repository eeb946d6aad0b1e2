"""A run on a borrowed GPU, rehearsed: the whole way at toy size, and which packages such a machine must have."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from borrowed_gpu import pack, rehearse, toy_config, unpack

from handmesh.config.load import load_config
from handmesh.errors import CheckpointError, ConfigError
from handmesh.model.checkpoint import load_latest_state, load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["synthetic_t8_gpu", pytest.param("synthetic_ma36_gpu", marks=pytest.mark.slow)])
def test_the_whole_way_at_toy_size(name, weights_alone, tmp_path):
    """Render, train, stop, pack, unpack, resume; then the same parts as they may arrive."""
    done = rehearse(load_config(ROOT / "configs" / f"{name}.yaml"), tmp_path)
    kind = "whole" if "t8" in name else "averaged weights"
    assert re.fullmatch(rf"25 steps, loss [\d.]+ to [\d.]+; carried: step 20, {kind}: [\d.]+ MB in \d+ parts", done)
    assert load_model(tmp_path / "here" / "deploy.safetensors")[1]["training"]["steps"] == 25
    with pytest.raises(CheckpointError, match="is at step 25 already"):
        unpack(tmp_path / "carried", tmp_path / "here")

    sent = load_latest_state(tmp_path / "there")
    assert "averaged weights" in pack(tmp_path / "there", tmp_path / "carried", part_mb=2, weights=True)
    unpack(tmp_path / "carried", tmp_path / "light")
    found = load_latest_state(tmp_path / "light")
    assert (found["optimizer"], found["warm_again_at"]) == (None, 20)
    for weight, value in sent["average"].items():
        torch.testing.assert_close(found["average"][weight], value, rtol=1e-3, atol=1e-6)

    first, second = tmp_path / "carried" / "part-000", tmp_path / "carried" / "part-001"
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    with pytest.raises(CheckpointError, match="part-000, part-001 missing or damaged"):
        unpack(tmp_path / "carried", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_only_runs_that_render_are_rehearsed(tmp_path):
    with pytest.raises(ConfigError, match=r"Only runs with data\.live"):
        toy_config(load_config(ROOT / "configs" / "smoke.yaml"), tmp_path)


def test_the_documents_name_every_package_that_training_needs():
    """What a machine without a network lacks must be carried there, so the list has to be complete."""
    code = (
        "import json, sys, sysconfig; import borrowed_gpu;"
        "site = sysconfig.get_paths()['purelib'];"
        "print(json.dumps(sorted({name.split('.')[0] for name, module in sys.modules.items()"
        " if (getattr(module, '__file__', None) or '').startswith(site)})))"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.append('benchmarks'); {code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    text = (ROOT / "docs" / "how_to" / "borrowed_gpu.md").read_text(encoding="utf-8")
    sentence = re.search(r"imports these packages and no others: (.*?)\.\n", text, re.DOTALL)[1]
    named = set(re.findall(r"`(\w+)`", sentence))
    # Parts of the others, and of pip; trimesh and torch take the last two where something else has brought them.
    own = {"_cyutility", "_distutils_hack", "torchgen", "charset_normalizer", "tqdm"}
    assert set(json.loads(done.stdout)) - own <= named
