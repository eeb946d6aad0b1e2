"""What a run leaves behind: in a fresh home nothing but handmesh's own, and without a home it works all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "handmesh" / "assets" / "samples" / "palm.jpg"
OWN = (".cache/handmesh", ".local/share/handmesh")

COMMANDS = """
import socket, sys, threading
from pathlib import Path
looked_up = []
def refuse(name, *arguments, **options):
    looked_up.append(name)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse

from typer.testing import CliRunner
from handmesh.cli import app

sample, out, *commands = sys.argv[1:]
for command in commands:
    arguments = command.replace("SAMPLE", sample).replace("OUT", out).split()
    result = CliRunner().invoke(app, arguments)
    print(arguments[0], result.exit_code)
    if result.exit_code:
        print(result.output, repr(result.exception))
print("looked up", looked_up)
"""

PREDICT = "predict SAMPLE --out OUT/hands --format json"
USING = (
    PREDICT,
    "demo --out OUT/demo",
    "bench --engines onnx --runs 1 --no-cold",
    "video OUT/clip --out OUT/clip_out",
    "synth --sheet OUT/sheet.png --count 2",
    "weights list",
    "doctor",
)
MAKING = ("export --format onnx --out OUT/hand.onnx", "bench --engines torch,onnx --runs 1")


def run(folder: Path, commands: tuple[str, ...], **environment: str | None) -> subprocess.CompletedProcess[str]:
    """These commands in a process of their own; None takes a variable away."""
    clip = folder / "out" / "clip"
    clip.mkdir(parents=True)
    for number in range(3):
        (clip / f"{number}.jpg").write_bytes(SAMPLE.read_bytes())
    own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HANDMESH_", "CI"))}
    own |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "server"), *sys.path]))}
    own |= {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir()
    for name, value in environment.items():
        own.pop(name, None)
        if value is not None:
            own[name] = value
    command = [sys.executable, "-W", "ignore", "-c", COMMANDS, str(SAMPLE), str(folder / "out"), *commands]
    (folder / "work").mkdir()
    return subprocess.run(command, env=own, cwd=folder / "work", capture_output=True, text=True, timeout=600)


def assert_all_worked(result: subprocess.CompletedProcess[str], commands: tuple[str, ...]) -> None:
    wanted = [f"{command.split()[0]} 0" for command in commands] + ["looked up []"]
    assert result.stdout.splitlines() == wanted, result.stdout + result.stderr


def files_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("commands", [USING, pytest.param(MAKING, marks=pytest.mark.slow)], ids=["using", "making"])
def test_a_run_leaves_nothing_of_others_in_a_fresh_home(commands, tmp_path):
    """ONNX Runtime would leave a device id and an event data base, and OpenVINO a client id: both report to their
    makers unless kept from it. What they leave is the trace of what they send.
    """
    home = tmp_path / "home"
    home.mkdir()
    result = run(tmp_path, commands, HOME=str(home))
    assert_all_worked(result, commands)
    assert [name for name in files_below(home) if not name.startswith(OWN)] == []
    assert files_below(tmp_path / "work") == []


def test_without_a_home_everything_works(tmp_path):
    """A container's numeric user: HOME is a place where nothing can be made. (Below a file, for root can write in
    every folder.)
    """
    (tmp_path / "file").write_text("")
    result = run(tmp_path, USING, HOME=str(tmp_path / "file" / "home"))
    assert_all_worked(result, USING)
    assert files_below(tmp_path / "work") == []


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0 or which("setpriv") is None,
    reason="only root can become an unknown user, with util-linux's setpriv",
)
def test_an_unknown_user_without_home_gets_a_hand(tmp_path):
    """As `docker run --user 54321`: no name, no home, an installation that can be read and not written."""
    for name in ("out", "temporary", "work"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 54321, 54321)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HANDMESH_", "HOME"))}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")]), "TMPDIR": str(tmp_path / "temporary")}
    # Python itself, and pytest's folder, may lie where only root can look: so it may look, and not write.
    become = "setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps +dac_read_search"
    command = [*become.split(), "--ambient-caps", "+dac_read_search", sys.executable, "-W", "ignore", "-c", COMMANDS]
    commands = (PREDICT, "weights list", "synth --sheet OUT/sheet.png --count 2", "doctor")
    arguments = [str(SAMPLE), str(tmp_path / "out"), *commands]
    result = subprocess.run(
        [*command, *arguments], env=own, cwd=tmp_path / "work", capture_output=True, text=True, timeout=600
    )
    assert_all_worked(result, commands)
    assert not list((tmp_path / "work").iterdir()), "numba would make a folder called ~ there"
    assert all(name.startswith("handmesh-54321/cache/numba/") for name in files_below(tmp_path / "temporary"))
