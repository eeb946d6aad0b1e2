"""A run on a borrowed GPU, rehearsed: the whole way at toy size, and which packages such a machine must have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from handmesh.config import load_config
from handmesh.errors import ConfigError
from handmesh.learn.rehearsal import toy_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["synthetic_t8_gpu", pytest.param("synthetic_ma36_gpu", marks=pytest.mark.slow)])
def test_the_whole_way_at_toy_size(name, tmp_path):
    """As on the borrowed machine, in a process of its own: render, train, stop, pack, unpack, resume."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "handmesh", "train", f"configs/{name}.yaml", "--dry-run"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kind = "whole" if "t8" in name else "weights"
    assert re.search(rf"25 steps, loss [\d.]+ to [\d.]+, carried as {kind} in \d+ parts", done.stdout), done.stdout
    assert not list(tmp_path.glob("handmesh-*"))  # nothing of ours is left behind


def test_only_runs_that_render_are_rehearsed(tmp_path):
    with pytest.raises(ConfigError, match=r"Only runs with data\.live"):
        toy_config(load_config(ROOT / "configs" / "smoke.yaml"), tmp_path)


def test_the_documents_name_every_package_that_training_needs():
    """What a machine without a network lacks must be carried there, so the list has to be complete."""
    code = (
        "import json, sys, sysconfig; import handmesh.cli, handmesh.learn.rehearsal;"
        "site = sysconfig.get_paths()['purelib'];"
        "print(json.dumps(sorted({name.split('.')[0] for name, module in sys.modules.items()"
        " if (getattr(module, '__file__', None) or '').startswith(site)})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text = (ROOT / "docs" / "bundled_model.md").read_text(encoding="utf-8")
    sentence = re.search(r"imports these packages and no others: (.*?)\.\n", text, re.DOTALL)[1]
    named = set(re.findall(r"`(\w+)`", sentence))
    own = {"_cyutility", "_distutils_hack", "torchgen"}  # parts of the others, and of pip
    assert set(json.loads(done.stdout)) - own <= named
