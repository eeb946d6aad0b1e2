"""What a run leaves behind: in a fresh home nothing but handmesh's own, and without a home it works all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "handmesh" / "assets" / "samples" / "palm.jpg"
OWN = (".cache/handmesh", ".local/share/handmesh")

COMMANDS = """
import contextlib, os, signal, socket, sys, threading, time
from pathlib import Path
looked_up, answers = [], []
def refuse(name, *arguments, **options):
    looked_up.append(name)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse

from typer.testing import CliRunner
from handmesh.cli import app

sample, out, *commands = sys.argv[1:]

def client(port):  # posts a photograph, and then asks the process to end
    photo = open(sample, "rb").read()
    head = f"POST /v1/hands HTTP/1.1\\nHost: 127.0.0.1\\nConnection: close\\nContent-Length: {len(photo)}\\n\\n"
    for _ in range(600):
        time.sleep(0.1)
        with contextlib.suppress(OSError), socket.socket() as connection:
            connection.connect(("127.0.0.1", port))
            connection.sendall(head.replace("\\n", "\\r\\n").encode() + photo)
            answer = connection.recv(12).decode()
            if not answer.endswith("503"):  # it is there, and warming up
                answers.append(answer)
                break
    os.kill(os.getpid(), signal.SIGTERM)

for command in commands:
    arguments = command.replace("SAMPLE", sample).replace("OUT", out).split()
    if arguments[0] == "serve":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            arguments += ["--port", str(free.getsockname()[1])]
        threading.Thread(target=client, args=(int(arguments[-1]),), daemon=True).start()
    result = CliRunner().invoke(app, arguments)
    print(arguments[0], result.exit_code)
    if result.exit_code:
        print(result.output, repr(result.exception))
    if answers:
        print("answered", answers.pop())
print("looked up", looked_up)
"""

PREDICT = "predict SAMPLE --out OUT/hands --format json"
KEEPING = (PREDICT, "synth --sheet OUT/sheet.png --count 2", "weights list", "doctor")  # all that look for folders
USING = (
    *KEEPING,
    "demo --out OUT/demo",
    "bench --engines onnx --runs 1 --no-cold",
    "video OUT/clip --out OUT/clip_out",
)
MAKING = (
    "serve --threads 1",
    "synth --like-freihand OUT/set --count 4 --evaluation 2",
    "data prepare OUT/set",
    "data check OUT/set",
    "evaluate --data OUT/set --out OUT/scores --save-predictions OUT/pred.zip",
    "evaluate --predictions OUT/pred.zip --ground-truth OUT/set --out OUT/again",
    "train smoke --out OUT/run --set steps=2 --set data.synthetic.count=8 --set evaluation_count=4 "
    "--set data.synthetic.directory=OUT/packs",
    "predict SAMPLE --out OUT/mine --format json --model OUT/run/model.safetensors",
    "weights average OUT/run OUT/run --out OUT/mean",
    "export --format onnx --out OUT/hand.onnx",
    "bench --engines torch,onnx --runs 1",
    *(["bench --engines openvino --runs 1 --no-cold"] if find_spec("openvino") else []),
)


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
    wanted = []
    for command in commands:
        wanted += [f"{command.split()[0]} 0", *(["answered HTTP/1.1 200"] if command.startswith("serve") else [])]
    wanted += ["looked up []"]
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


@pytest.mark.parametrize(
    "commands",
    [KEEPING, *(pytest.param(commands, marks=pytest.mark.slow) for commands in (USING, MAKING))],
    ids=["keeping", "using", "making"],
)
def test_without_a_home_everything_works(commands, tmp_path):
    """A container's numeric user: HOME is a place where nothing can be made. (Below a file, for root can write in
    every folder.)
    """
    (tmp_path / "file").write_text("")
    result = run(tmp_path, commands, HOME=str(tmp_path / "file" / "home"))
    assert_all_worked(result, commands)
    assert files_below(tmp_path / "work") == []


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0 or which("setpriv") is None,
    reason="only root can become an unknown user, with util-linux's setpriv",
)
@pytest.mark.parametrize(
    "commands",
    [
        (PREDICT.replace("json", "json,png"), "weights list", "doctor"),
        pytest.param(MAKING, marks=pytest.mark.slow),
    ],
    ids=["using", "making"],
)
def test_an_unknown_user_without_home_gets_a_hand(commands):
    """As `docker run --user 54321`: no name, no home, an installation that can be read and not written."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where nobody else may look
        os.chmod(folder, 0o755)
        run_as_unknown_user(Path(folder), commands)


def run_as_unknown_user(folder: Path, commands: tuple[str, ...]) -> None:
    for name in ("out", "temporary", "work"):
        (folder / name).mkdir()
        os.chown(folder / name, 54321, 54321)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HANDMESH_", "HOME"))}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")]), "TMPDIR": str(folder / "temporary")}
    # Python itself may lie where only root can look: so it may look, and not write.
    become = "setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps +dac_read_search"
    command = [*become.split(), "--ambient-caps", "+dac_read_search", sys.executable, "-W", "ignore", "-c", COMMANDS]
    arguments = [str(SAMPLE), str(folder / "out"), *commands]
    result = subprocess.run(
        [*command, *arguments], env=own, cwd=folder / "work", capture_output=True, text=True, timeout=600
    )
    assert_all_worked(result, commands)
    assert not list((folder / "work").iterdir()), "numba would make a folder called ~ there"
    kept = files_below(folder / "temporary")
    assert kept
    assert all(name.startswith("handmesh-54321/cache/numba/") for name in kept)
