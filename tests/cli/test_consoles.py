"""Consoles that cannot show every name, and readers that leave early: no traceback, and the exit code of the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "handmesh" / "assets" / "samples" / "palm.jpg"


def handmesh(folder: Path, *words: str, encoding: str = "utf-8", read: bool = True):
    """The command in a process of its own; where nobody reads, every write to standard output fails."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'server'}", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "handmesh", *words]
    options = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "timeout": 120}
    if read:
        return subprocess.run(command, stdout=subprocess.PIPE, check=False, **options)
    reader, write = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(command, stdout=write, check=False, **options)
    finally:
        os.close(write)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_names_that_the_console_cannot_show(encoding, tmp_path):
    """The files were there, and then a traceback and exit code 1: the path could not be printed."""
    shutil.copy(SAMPLE, tmp_path / "手.jpg")
    done = handmesh(tmp_path, "predict", "手.jpg", "缺.jpg", "--out", "手", "--format", "json", encoding=encoding)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 1  # for the file that is not there
    assert rb"\u624b.jpg: 1 hand: right" in done.stdout
    assert rb"\u7f3a.jpg" in done.stderr
    assert (tmp_path / "手" / "手.json").is_file()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(SAMPLE, tmp_path / name)
    done = handmesh(tmp_path, "predict", ".", "--out", "out", "--format", "json")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"caf\xe9.json"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_json_has_every_name_on_every_console(tmp_path):
    """A name that is no text ended the run with a traceback; one that the console cannot show made no JSON."""
    names = [os.fsdecode(b"caf\xe9.jpg"), "café 手 👋.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"no photo")
    done = handmesh(tmp_path, "predict", ".", "--json", encoding="ascii")
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    assert sorted(json.loads(line)["image"] for line in done.stdout.splitlines()) == sorted(names)


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path):
    """As with `| head -1`: the exit code is that of the work."""
    done = handmesh(tmp_path, "predict", str(SAMPLE), "--out", "out", "--format", "json", read=False)
    assert (done.returncode, done.stderr.count(b"Error")) == (0, 0), done.stderr
    assert (tmp_path / "out" / "palm.json").is_file()
