"""Using a model needs no torch: its commands are run, for real, where torch, onnx and onnxscript cannot be found."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "handmesh" / "assets" / "samples"
NEEDED_FOR = {  # what needs torch, and how it calls itself when it says so
    "train smoke": "handmesh train",
    "export": "handmesh export",
    "weights list": "handmesh weights",
    "bench --model fastvit_t8": "onnx of fastvit_t8",
    "bench --engines onnx,onnx-int8": "onnx-int8 of the bundled model",
    "bench --engines torch": "torch of the bundled model",
}

# Commands one after the other, as from a shell, in a process where some packages are as if they were not installed.
# While `serve` runs, a client posts a photograph and then asks the process to end.
PROGRAM = """
import contextlib, io, json, os, signal, sys, threading, time, urllib.request
ABSENT = {"torch", "onnx", "onnxscript", "onnx_ir", "smplx", "tensorboard"}

class Absent:
    finders = sys.meta_path[:]

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return next((found for one in self.finders if (found := one.find_spec(name, path, target))), None)

    def find_distributions(self, *arguments, **options):
        for one in self.finders:
            for found in getattr(one, "find_distributions", lambda *_, **__: ())(*arguments, **options):
                if found.name not in ABSENT:
                    yield found

sys.meta_path[:] = [Absent()]
commands, photo = json.loads(sys.argv[1])

def client(port):
    for _ in range(600):
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/hands", photo_bytes)
            answers.append(json.load(urllib.request.urlopen(request, timeout=60)))
            break
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

from handmesh.cli import run
from handmesh.cli.shell import console, error_console
photo_bytes, answers, outcomes = open(photo, "rb").read(), [], {}
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    console.file, error_console.file = out, err
    sys.argv = ["handmesh", *command.split()]
    if command.startswith("serve"):
        threading.Thread(target=client, args=(command.split()[-1],), daemon=True).start()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    outcomes[command] = [code, out.getvalue(), err.getvalue()]
assert not ABSENT & set(sys.modules)
print(json.dumps([outcomes, answers]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three photographs, the same as frames, and a hand in MANO's format."""
    folder = tmp_path_factory.mktemp("without torch")
    (folder / "frames").mkdir()
    for index, name in enumerate(("palm.jpg", "palm.jpg", "palm.jpg")):
        shutil.copy(SAMPLES / name, folder / "frames" / f"{index}.jpg")
    shutil.copy(ROOT / "handmesh" / "assets" / "builtin_right.npz", folder / "MANO_RIGHT.npz")
    return folder


def run(commands: list[str], folder: Path) -> tuple[dict[str, list], list]:
    """Exit code, standard output and standard error of each, and what the server answered."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")]),
        "HOME": str(folder / "home"),
        "HANDMESH_CACHE_DIR": str(folder / "cache"),
        "HANDMESH_MANO_DIR": str(folder / "mano"),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([commands, str(SAMPLES / "palm.jpg")])],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_everything_that_uses_a_model_runs(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        serve = f"serve --threads 1 --port {free.getsockname()[1]}"
    commands = [
        "doctor",
        "demo",
        "predict frames --threads 1 --format json,glb",
        "video frames --out clip",
        "webcam --source frames --headless",
        "synth --like-freihand set --count 2 --evaluation 2",
        "data prepare set",
        "data check set",
        "data show set --out set.jpg --count 2",
        "evaluate --data set --out scores --save-predictions pred.zip --threads 1",
        "evaluate --predictions pred.zip --ground-truth set --out again --threads 1",
        "mano add MANO_RIGHT.npz",
        "bench --runs 2 --threads 1 --no-cold --out bench.json",
        serve,
    ]
    outcomes, answers = run(commands, folder)
    assert {command: (code, err) for command, (code, _, err) in outcomes.items() if code} == {}
    assert "torch" in outcomes["doctor"][1]
    assert "not installed" in outcomes["doctor"][1]
    assert "not compared with smplx" in outcomes["mano add MANO_RIGHT.npz"][1]
    assert len(answers[0]["hands"][0]["vertices"]) == 778
    (row,) = json.loads((folder / "bench.json").read_text())["rows"]
    assert (row["engine"], row["distance_mm"]) == ("onnx", 0), "of itself: there is nothing else to compare with"
    written = ["handmesh_out/demo/demo.jpg", "handmesh_out/2.glb", "clip/hand.glb", "set.jpg"]
    assert all((folder / name).stat().st_size > 100 for name in written)
    first, again = (json.loads((folder / name / "scores.json").read_text()) for name in ("scores", "again"))
    assert first["pa_mpjpe_mm"] == pytest.approx(again["pa_mpjpe_mm"], abs=1e-3)  # the file is rounded


def test_what_needs_torch_says_so_in_one_line(folder):
    outcomes, _ = run(list(NEEDED_FOR), folder)
    for command, name in NEEDED_FOR.items():
        code, out, err = outcomes[command]
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1, err
        assert name in err
        assert 'which is not installed: pip install -e ".[train]"' in err, "as this runs from the source tree"


def test_training_from_python_says_the_same():
    program = "import sys; sys.modules['torch'] = None; import handmesh; handmesh.load_config('smoke'); handmesh.train"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        "handmesh.errors.MissingPackageError: handmesh.train needs torch, which is not installed: "
        'pip install -e ".[train]"'
    )


def test_a_wrong_configuration_is_named_before_what_is_not_installed(folder):
    """Who mistypes a name should not install 2 GB to be told so."""
    commands = ["train synthetic_t9", "train smoke --set step=3"]
    outcomes, _ = run(commands, folder)
    for command, wanted in zip(commands, ("synthetic_t9", "step"), strict=True):
        code, _, err = outcomes[command]
        assert code == 1
        assert wanted in err
        assert "not installed" not in err
