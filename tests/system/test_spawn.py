"""A script that starts processes without a main guard is told so at once. It used to wait for ever: for a process that
had died of running the script again to take over its work.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
    from pathlib import Path
    import handmesh
    handmesh.train(handmesh.load_config("smoke"), Path("run"))
"""
FARM = """
    from handmesh.config.scenes import SceneSettings
    from handmesh.hand import builtin_hand
    from handmesh.synth.farm import RenderFarm
    with RenderFarm(builtin_hand(), SceneSettings(), 64, 0, workers=1) as farm:
        print(len(farm.take(1).indices))
"""
LOADERS = """
    import multiprocessing
    import handmesh
    from handmesh.data.stream import training_batches
    multiprocessing.set_start_method("spawn", force=True)  # as it is on macOS and Windows
    next(training_batches([], handmesh.load_config("smoke", ["loader_workers=1"]), 0))
"""


def run(folder: Path, first_line: str, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(f"{first_line}{code}")
    command = [sys.executable, "-W", "ignore", "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("code", [TRAIN, FARM, LOADERS], ids=["train", "farm", "loaders"])
def test_a_script_without_a_main_guard_is_told_so_once(code, tmp_path):
    ended = run(tmp_path, "if True:", code)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1, "of the script alone, not of processes that nobody asked for"
    assert ended.stderr.endswith(
        "handmesh.errors.ConfigError: This script starts processes, each of which would run the script again: put what "
        'it does under if __name__ == "__main__":\n'
    )


def test_a_script_that_cannot_be_run_twice_is_told_too(tmp_path):
    ended = run(tmp_path, 'open("once", "x")\nif True:', FARM)
    assert "FileExistsError" in ended.stderr
    assert "ended with exit code 1 before it did anything" in ended.stderr.splitlines()[-1]


def test_with_a_main_guard_it_runs(tmp_path):
    ended = run(tmp_path, 'if __name__ == "__main__":', FARM)
    assert int(ended.stdout) > 0, ended.stderr
