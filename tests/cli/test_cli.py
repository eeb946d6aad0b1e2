"""The command: what it writes, what it says of mistakes, and its exit code. Run through its own entry point."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from handmesh import __version__
from handmesh.cli import run
from handmesh.cli.shell import FORMATS
from handmesh.model.bundled import bundled_model_path

ROOT = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def handmesh(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """handmesh("predict", ...) in an empty folder, as from a shell."""
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("handmesh").level

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["handmesh", *map(str, arguments)])
        capsys.readouterr()
        try:
            run()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Outcome(code, *capsys.readouterr())

    yield call
    logging.getLogger("handmesh").setLevel(level)


@pytest.fixture
def predict(handmesh, model_file) -> Callable[..., Outcome]:
    return lambda *arguments: handmesh("predict", "--model", model_file, "--passes", 1, *arguments)


@pytest.fixture
def photos(scene, tmp_path) -> Path:
    """photos/a.jpg, photos/b.png, photos/trip/a.jpg, a note that is no photo, and a system's thumbnail of one."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "b.png", "trip/a.jpg")):
        Image.fromarray(np.roll(scene.image, 20 * index, axis=1)).save(folder / name)
    (folder / "notes.txt").write_text("not a photo")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    return folder


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_one_line(outcome: Outcome, *says: str) -> None:
    """A user's mistake: exit code 1, one line on standard error, no traceback, nothing on standard output."""
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert outcome.err.lstrip().startswith("error: ")  # a progress bar that was cut short leaves an empty line
    assert all(text in outcome.err for text in says), outcome.err
    assert outcome.out == ""


def test_help_and_version(handmesh):
    outcome = handmesh("--help")
    assert outcome.code == 0
    for command in ("predict", "demo", "train", "synth", "doctor"):
        assert command in outcome.out
        shown = handmesh(command, "--help")
        assert shown.code == 0
        assert "Example" in shown.out
    assert handmesh("--version").out == f"handmesh {__version__}\n"
    assert handmesh("nonsense").code == 2
    assert handmesh("predict", "photo.jpg", "--colour", "red").code == 2


def test_help_does_not_wait_for_torch(tmp_path):
    """Importing torch takes seconds; `--help` must not."""
    program = (
        "import sys\nsys.argv = ['handmesh', '--help']\nfrom handmesh.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print([name for name in ('torch', 'numba', 'cv2') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert answer.stdout.rstrip().endswith("[]")


def test_it_is_a_module_too(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-m", "handmesh", "predict", "absent.jpg", "--format", "fbx"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert_one_line(Outcome(answer.returncode, answer.stdout, answer.stderr), "fbx", "glb")


def test_completion_is_the_commands_however_it_was_started(tmp_path):
    """As a module it was "python -m handmesh", for which no shell completes anything."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_HANDMESH_COMPLETE": "source_bash"}
    answer = subprocess.run(
        [sys.executable, "-m", "handmesh"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert "complete -o default -F _handmesh_completion handmesh" in answer.stdout


def test_an_interruption_is_said(handmesh, monkeypatch):
    """Ctrl-C ended a command with 130 and without a word."""

    def press() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("handmesh.doctor.examine", press)
    assert handmesh("doctor") == (130, "", "interrupted\n")


# ------------------------------------------------------------------------------------------------- predict


def test_a_photo_becomes_an_overlay_a_mesh_and_numbers(predict, photos, tmp_path):
    outcome = predict(photos / "a.jpg", "--detector", "none", "--min-score", 0, "--hand", "right")
    assert outcome.code == 0
    assert "1 of 1 images done: png, glb, json in handmesh_out/" in outcome.out
    assert written(tmp_path / "handmesh_out") == ["a.glb", "a.json", "a.png"]
    with Image.open(tmp_path / "handmesh_out" / "a.png") as overlay:
        assert overlay.size == (160, 160)
    (hand,) = json.loads((tmp_path / "handmesh_out" / "a.json").read_text())["hands"]
    assert hand["handedness"] == "right"


def test_every_format_can_be_asked_for(predict, photos, tmp_path):
    assert predict(photos / "b.png", "--out", "out", "--format", ",".join(FORMATS)).code == 0
    assert written(tmp_path / "out") == sorted(f"b.{name}" for name in FORMATS)


def test_a_folder_keeps_its_shape_and_a_glob_does_not_need_one(predict, photos, tmp_path):
    assert predict(photos, "--format", "json", "--out", "deep").code == 0
    assert written(tmp_path / "deep") == ["a.json", "b.json", "trip/a.json"]
    assert predict("photos/*.jpg", "photos/b.png", "--format", "json", "--out", "flat").code == 0
    assert written(tmp_path / "flat") == ["a.json", "b.json"]
    assert predict("photos/**/a.jpg", "--format", "json", "--out", "both").code == 0
    assert len(written(tmp_path / "both")) == 2


def test_results_never_collide_whatever_the_photos_are_called(predict, photos, tmp_path, scene):
    """a.jpg and a.png became a_1 and a_2; a photo that was called a_1 all along was written over.

    On some systems so was the result of b.png, by that of B.jpg.
    """
    for name in ("a.png", "a_1.png", "a_2.png", "B.jpg"):
        Image.fromarray(scene.image).save(photos / name)
    outcome = predict(photos / "trip" / "a.jpg", photos, "--format", "json", "--out", "out")
    assert outcome.code == 0
    assert "8 of 8 images done" in outcome.out
    assert len({name.casefold() for name in written(tmp_path / "out")}) == 8


def test_photos_are_never_written_over(predict, photos):
    """--out in the photos' own folder with a picture format: b.png would become its own overlay."""
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert_one_line(predict(photos, "--out", photos), "b.png", "would replace a photograph", "--out")
    assert_one_line(predict("photos/b.png", "--out", "photos", "--format", "png"), "would replace")
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert predict("photos/b.png", "--out", "photos", "--format", "json").code == 0, "other formats do no harm"


def test_results_are_not_taken_for_photos_the_next_time(predict, photos, tmp_path):
    """A folder that holds its own results: yesterday's overlays once became today's photos."""
    for _ in range(2):
        assert "3 of 3 images" in predict(photos, "--out", photos / "results", "--format", "png").out
    assert written(photos / "results") == ["a.png", "b.png", "trip/a.png"]


def test_nor_are_those_in_a_linked_folder(predict, photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (photos / "trip").rename(elsewhere)
    try:
        (photos / "trip").symlink_to(elsewhere, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links can be made here: {error}")
    for _ in range(2):
        assert "3 of 3 images" in predict(photos, "--out", elsewhere / "results", "--format", "png").out
    assert written(elsewhere / "results") == ["a.png", "b.png", "trip/a.png"]


def test_a_photo_named_with_dots_alone_has_a_result(predict, photos, tmp_path):
    """To Python the name without its suffix is the folder itself, and the command ended in a traceback."""
    shutil.copy(photos / "a.jpg", "..jpg")
    assert predict("..jpg", "--out", "out", "--format", "json").code == 0
    assert written(tmp_path / "out") == ["..jpg.json"]


def test_a_bad_file_is_reported_and_the_rest_goes_on(predict, photos, tmp_path):
    (photos / "aa.jpg").write_bytes((photos / "a.jpg").read_bytes()[:500])
    outcome = predict(photos, "absent.jpg", "--format", "json", "--out", "out")
    assert outcome.code == 1
    assert "3 of 5 images done" in outcome.out
    assert written(tmp_path / "out") == ["a.json", "b.json", "trip/a.json"]
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "aa.jpg" in errors[0]
    assert "absent.jpg" in errors[1]
    assert "Traceback" not in outcome.err


def test_names_with_brackets_are_names(predict, photos, tmp_path):
    """rich takes [/x] for markup: a photo called so once ended the program with a traceback."""
    (photos / "[b]odd[").mkdir()
    shutil.copy(photos / "a.jpg", photos / "[b]odd[" / "x.jpg")
    outcome = predict("photos/[b]odd[/x.jpg", "--format", "json", "--out", "[/out]")
    assert outcome.code == 0
    assert "in [/out]/" in outcome.out
    assert (tmp_path / "[/out]" / "x.json").is_file()
    assert_one_line(predict("a.jpg", "--format", "[/x]"), "[/x]")
    (tmp_path / "[bold]broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert "[bold]broken.jpg" in predict("[bold]broken.jpg").err


def test_skip_existing_goes_on_where_a_run_stopped(predict, photos, tmp_path):
    arguments = (photos, "--format", "json,glb", "--out", "out", "--skip-existing")
    assert "3 of 3" in predict(*arguments).out
    assert "Nothing to do" in predict(*arguments).out
    kept = (tmp_path / "out" / "a.json").stat().st_mtime_ns
    (tmp_path / "out" / "b.glb").unlink()
    outcome = predict(*arguments)
    assert outcome.code == 0
    assert "1 of 1" in outcome.out
    assert len(written(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "a.json").stat().st_mtime_ns == kept


def test_skip_existing_takes_no_result_for_another_photos(predict, photos, tmp_path):
    """Of photos that share a stem names go by position: one that came later was taken for done, with another's hand."""
    options = ("--format", "json", "--hand", "right", "--detector", "none", "--min-score", 0)
    assert predict(*options, "photos/trip/a.jpg", "photos/b.png", "--out", "out").code == 0
    now = ("photos/a.jpg", "photos/trip/a.jpg", "photos/b.png")
    outcome = predict(*options, *now, "--out", "out", "--skip-existing", "--json")
    assert [json.loads(line)["image"] for line in outcome.out.splitlines()] == ["photos/a.jpg", "photos/trip/a.jpg"]
    assert predict(*options, *now, "--out", "fresh").code == 0
    for name in ("a.json", "a_2.json", "b.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


def test_shards_share_the_work_without_gap_or_overlap(predict, photos, tmp_path):
    found = []
    for part in (1, 2):
        assert predict(photos, "--format", "json", "--out", f"part{part}", "--shard", f"{part}/2").code == 0
        found += written(tmp_path / f"part{part}")
    assert sorted(found) == ["a.json", "b.json", "trip/a.json"]


def test_a_shard_without_photos_is_done(predict, photos):
    """Where there were fewer photos than parts the last ones ended with a traceback, and their tasks as failed."""
    outcome = predict(photos, "--shard", "4/4")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "Nothing to do: --shard 4/4 of so few photos has none."


def test_boxes_sides_and_lenses_reach_the_result(predict, photos, tmp_path):
    options = ("--box", "10,20,80,90", "--box", "60.5,40,150,150", "--hand", "left", "--focal", "300")
    assert predict(photos / "a.jpg", *options, "--format", "json,png", "--skeleton").code == 0
    hands = json.loads((tmp_path / "handmesh_out" / "a.json").read_text())["hands"]
    assert [hand["handedness"] for hand in hands] == ["left", "left"]
    assert {hand["source"] for hand in hands} == {"given box"}
    assert hands[0]["intrinsics_px"][0][0] == 300
    assert hands[0]["crop_center_px"] == [45, 55]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--box", "1,2,3"], ["--box '1,2,3'", "four numbers"]),
        (["--box", "5,5,1,9"], ["empty"]),
        (["--box", "0,0,nan,5"], ["finite"]),
        (["--format", "fbx,glb"], ["fbx", "glb, obj"]),
        (["--format", ","], ["nothing"]),
        (["--hand", "both"], ["'both'", "right, left or auto"]),
        (["--shard", "3/2"], ["3/2", "i/n"]),
        (["--shard", "0/2"], ["0/2"]),
        (["--shard", "²/3"], ["i/n"]),
        (["--focal", "300", "--fov", "60"], ["--focal", "--fov"]),
        (["--fov", "200"], ["--fov 200", "degrees"]),
        (["--focal", "-3"], ["focal"]),
        (["--search", "thorough", "--box", "1,2,30,40"], ["--box", "give one of them"]),
        (["--search", "thorough", "--detector", "none"], ["--detector none", "give one of them"]),
        (["--max-hands", "2", "--box", "1,2,30,40"], ["--max-hands", "--box", "give one of them"]),
        (["--max-hands", "2", "--detector", "none"], ["--max-hands", "--detector none", "give one of them"]),
        (["--min-score", "0.3", "--box", "1,2,30,40"], ["--min-score", "--box", "give one of them"]),
        (["--skeleton", "--format", "json,obj"], ["--skeleton", "--format json,obj", "give one of them"]),
        (["--model", "absent.safetensors"], ["No model at absent.safetensors"]),
        (["--model", "photos/notes.txt"], ["notes.txt", "cannot be read as a model"]),
        (["empty"], ["No images in empty", ".jpg"]),
        (["nothing/*.jpg"], ["Nothing matches nothing/*.jpg"]),
    ],
)
def test_mistakes_are_one_line(arguments, says, predict, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line(predict(photos / "a.jpg", *arguments), *says)
    assert not (tmp_path / "handmesh_out").exists()


def test_a_detector_without_a_thorough_search_is_refused_once(predict, photos, tmp_path, monkeypatch):
    """Each photo failed by itself, after the model was loaded."""
    mediapipe = SimpleNamespace(__version__="0.10.21", solutions=SimpleNamespace(hands=SimpleNamespace(Hands=Mock)))
    monkeypatch.setitem(sys.modules, "mediapipe", mediapipe)
    outcome = predict(photos / "a.jpg", photos / "b.png", "--search", "thorough", "--detector", "mediapipe")
    assert_one_line(outcome, "--search thorough", "--detector mediapipe", "give one of them")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("export --int8 --precision float32", ["--precision is float32 here", "give one of them"]),
        ("data check labels.jsonl --all --count 200", ["--count is some of the pictures", "give one of them"]),
        ("data show labels.jsonl --split training", ["--split is of FreiHAND, and labels.jsonl has no parts"]),
        ("data show labels.jsonl --hand-model mano", ["--hand-model is of meshes", "give --mesh"]),
        ("data show FreiHAND --mesh --hand-model mano", ["--hand-model is of a JSONL"]),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(command, says, handmesh, tmp_path):
    (tmp_path / "labels.jsonl").touch()
    (tmp_path / "FreiHAND").mkdir()
    assert_one_line(handmesh(*command.split()), *says)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.jsonl", "FreiHAND"}


@pytest.mark.parametrize("out", ["file", "file/below"])
@pytest.mark.parametrize(
    "command",
    [
        "predict photos --out",
        "demo --out",
        "video photos --out",
        "synth --out",
        "synth --like-freihand",
        "evaluate --data photos --out",
        "weights average a.safetensors b.safetensors --out",
        "train smoke --out",
        "data prepare photos --out",
        "label labels.jsonl --cut-out",
    ],
)
def test_a_folder_that_cannot_be_is_said_before_the_work(command, out, handmesh, photos, monkeypatch, tmp_path):
    """`predict` said so of each photo, after the model had seen it; `synth`, that the file held no meta.json; `data
    prepare`, that room had to be made.
    """
    monkeypatch.setattr("handmesh.predict.load_predictor", lambda *_, **more: pytest.fail("began"))
    (tmp_path / "file").touch()
    (tmp_path / "labels.jsonl").touch()
    option = command.split()[-1]
    assert_one_line(handmesh(*command.split(), out), f"{option} {out}: file is a file, wanted a folder")


@pytest.mark.parametrize(
    "command",
    [
        "bench --out",
        "evaluate --data photos --save-predictions",
        "label labels.jsonl --out",
        "label labels.jsonl --dropped",
    ],
)
def test_a_file_that_cannot_be_is_said_before_the_work(command, handmesh, photos, monkeypatch, tmp_path):
    """`bench` and `evaluate --save-predictions` measured, and scored, first."""
    for began in ("bench.engines.bench_engines", "evaluate.run.run_evaluation", "predict.load_predictor"):
        monkeypatch.setattr(f"handmesh.{began}", lambda *_, **more: pytest.fail("began"))
    (tmp_path / "labels.jsonl").touch()
    option = command.split()[-1]
    assert_one_line(handmesh(*command.split(), "photos"), f"{option} photos is a folder: wanted the name of a file")


@pytest.mark.parametrize("command", ["predict photos --out", "label labels.jsonl --out"])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(command, handmesh, photos, monkeypatch, tmp_path):
    """`label` said so when all was labelled, and kept nothing. The superuser may write to any, so the system lies."""
    monkeypatch.setattr("handmesh.predict.load_predictor", lambda *_, **more: pytest.fail("began"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != Path("locked"))
    (tmp_path / "labels.jsonl").touch()
    (tmp_path / "locked").mkdir()
    assert_one_line(handmesh(*command.split(), "locked/new"), "--out locked", "locked cannot be written to")


# ------------------------------------------------------------------------------------------------- the others


def test_a_contact_sheet_is_its_seeds(handmesh, quick_scenes, tmp_path):
    def sheet(name: str, *arguments: object) -> bytes:
        assert handmesh("synth", "--sheet", f"new/{name}.png", "--count", 3, "--size", 64, *arguments).code == 0
        return (tmp_path / "new" / f"{name}.png").read_bytes()

    first = sheet("first", "--seed", 1)
    assert sheet("again", "--seed", 1) == first
    assert sheet("other", "--seed", 2) != first
    labelled = sheet("labelled", "--seed", 1, "--labels")
    assert labelled != first
    with Image.open(tmp_path / "new" / "first.png") as picture:
        assert picture.size == (128, 128)


def test_a_data_set_is_written(handmesh, quick_scenes, tmp_path):
    assert handmesh("synth", "--out", "hands", "--count", 2, "--size", 64, "--seed", 1).code == 0
    lines = (tmp_path / "hands" / "labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["images/00000000.jpg", "images/00000001.jpg"]
    refused = handmesh("synth", "--out", "hands", "--count", 3, "--size", 64, "--seed", 1)
    assert refused.code == 1
    assert "made with other arguments" in refused.err


def test_synths_mistakes_are_one_line(handmesh, tmp_path):
    assert_one_line(handmesh("synth"), "--sheet", "--out")
    assert_one_line(handmesh("synth", "--sheet", "a.png", "--out", "b"), "either")
    assert_one_line(handmesh("synth", "--sheet", "a.gif"), "a.gif", ".png")
    assert_one_line(handmesh("synth", "--out", "b", "--labels"), "--labels", "--sheet")
    assert_one_line(handmesh("synth", "--sheet", "a.png", "--workers", 2), "--workers", "--out")
    assert handmesh("synth", "--sheet", "a.png", "--count", 0).code == 2
    assert written(tmp_path) == []


def test_training_from_the_command_line(handmesh, tiny_config, tmp_path):
    """Start, refuse to start over, go on; then predict with the model it made."""
    settings = tiny_config(steps=2, log_every=1).model_dump(mode="json")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    started = handmesh("train", "tiny.yaml", "--set", "seed=3")
    assert started.code == 0, started.err
    assert "runs/tiny/model.safetensors" in started.out
    assert_one_line(handmesh("train", "tiny.yaml", "--set", "seed=3"), "already holds a run", "--resume")
    assert handmesh("train", "tiny.yaml", "--set", "seed=3", "--resume").code == 0
    assert_one_line(handmesh("train", "tiny.yaml", "--resume"), "other settings")
    Image.new("RGB", (80, 60), (120, 90, 80)).save("photo.jpg")
    assert handmesh("predict", "photo.jpg", "--model", "runs/tiny/model.safetensors", "--format", "glb").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "stepz=3"], ["stepz is not a setting", "'steps'"]),
        (["--set", "steps"], ["key.path=value"]),
        (["--set", "steps=[/b]"], ["steps"]),
        (["--set", "model.backbone=resnet"], ["fastvit_t8"]),
    ],
)
def test_trainings_mistakes_are_one_line(arguments, says, handmesh, tmp_path):
    (tmp_path / "tiny.yaml").write_text("steps: 1\n")
    assert_one_line(handmesh("train", "tiny.yaml", *arguments), *says)
    assert_one_line(handmesh("train", "absent.yaml"), "No configuration at absent.yaml")
    assert not (tmp_path / "runs").exists()


def test_a_run_where_nothing_can_be_written_is_one_line(handmesh, tmp_path):
    (tmp_path / "tiny.yaml").write_text("steps: 1\n")
    (tmp_path / "runs").write_text("")
    assert_one_line(handmesh("train", "tiny.yaml"), "runs/tiny: Not a directory")


def test_doctor_says_what_is_missing(handmesh, monkeypatch, model_file):
    """Also in brackets: the advice `pip install "handmesh[mano]"` once lost its [mano], which rich took for markup."""
    from handmesh.runtime.engine import open_engine

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("handmesh.doctor.OPTIONAL_PACKAGES", {"no-such-package": 'pip install "handmesh[mano]"'})
    monkeypatch.setattr("handmesh.doctor.bundled_model_path", lambda: model_file)
    monkeypatch.setattr("handmesh.doctor.open_engine", lambda **_: open_engine(model_file))
    outcome = handmesh("doctor")
    assert outcome.code == 0, outcome.out
    assert 'not installed (pip install "handmesh[mano]")' in outcome.out
    monkeypatch.setattr("handmesh.doctor.bundled_model_path", lambda: model_file.with_name("absent.safetensors"))
    outcome = handmesh("doctor")
    assert outcome.code == 1
    assert "bad" in outcome.out
    told = [line.split("│")[3].strip() for line in outcome.out.splitlines() if line.startswith("│")]
    assert "absent.safetensors" in "".join(told), "a long path goes over several lines of the table"


def test_the_demo_needs_nothing(handmesh, model_file, tmp_path):
    """With a model of ours in place of the bundled one: a picture, and a mesh and numbers for every sample."""
    samples = sorted((ROOT / "handmesh" / "assets" / "samples").glob("*.jpg"))
    if not samples:
        pytest.skip("this source tree has no sample images yet")
    outcome = handmesh("demo", "--model", model_file)
    assert outcome.code == 0, outcome.err
    expected = [f"{sample.stem}{suffix}" for sample in samples for suffix in (".glb", ".json")]
    assert written(tmp_path / "handmesh_out" / "demo") == sorted(["demo.jpg", *expected])
    sides = {
        sample.stem: json.loads((tmp_path / "handmesh_out" / "demo" / f"{sample.stem}.json").read_text())["hands"][0][
            "handedness"
        ]
        for sample in samples
    }
    assert all(side == ("left" if "left" in name else "right") for name, side in sides.items())


needs_bundled_model = pytest.mark.skipif(
    not bundled_model_path().is_file(), reason="no bundled model: `handmesh train` makes one"
)


@needs_bundled_model
def test_every_hand_of_a_photo_is_found_and_said(handmesh, tmp_path):
    """Two samples side by side on grey, one mirrored, and a grey photo without any."""
    canvas = Image.new("RGB", (900, 500), (110, 110, 110))
    with Image.open(bundled_model_path().parent / "samples" / "spread.jpg") as sample:
        canvas.paste(sample.resize((320, 320)), (60, 90))
        canvas.paste(ImageOps.mirror(sample.resize((300, 300))), (520, 100))
    canvas.save(tmp_path / "pair.png")
    Image.new("RGB", (640, 480), (110, 110, 110)).save(tmp_path / "empty.png")
    ran = handmesh("predict", "pair.png", "empty.png", "--format", "json,png", "--out", "found")
    assert ran.code == 0
    assert re.search(r"pair\.png: 2 hands: (right|left) \d\.\d\d, (right|left) \d\.\d\d", ran.out)
    assert "empty.png: no hand" in ran.out
    hands = json.loads((tmp_path / "found" / "pair.json").read_text())["hands"]
    assert {hand["handedness"] for hand in hands} == {"right", "left"}
    assert hands[0]["score"] >= hands[1]["score"] >= 0.5
    places = sorted((hand["box_px"][0], hand["box_px"][2]) for hand in hands)
    assert 60 < places[0][0] < places[0][1] < 380
    assert 520 < places[1][0] < places[1][1] < 820
    assert json.loads((tmp_path / "found" / "empty.json").read_text())["hands"] == []
    assert handmesh("predict", "pair.png", "--format", "json", "--out", "one", "--max-hands", "1").code == 0
    assert len(json.loads((tmp_path / "one" / "pair.json").read_text())["hands"]) == 1


@needs_bundled_model
def test_the_demo_and_doctor_run_with_what_is_bundled(handmesh, tmp_path):
    assert handmesh("demo", "--out", "shown").code == 0
    assert (tmp_path / "shown" / "demo.jpg").stat().st_size > 10_000
    assert handmesh("doctor").code == 0


@needs_bundled_model
def test_a_photo_without_a_hand_has_none(handmesh, tmp_path):
    """A black one was "1 of 1 images done", with a mesh and no word of a score of 0.0007."""
    Image.new("RGB", (300, 200)).save(tmp_path / "black.png")
    shutil.copy(bundled_model_path().parent / "samples" / "palm.jpg", tmp_path)
    outcome = handmesh("predict", "black.png", "palm.jpg", "--format", ",".join(FORMATS), "--out", "out")
    assert outcome.code == 0
    assert len([*(tmp_path / "out").iterdir()]) == 2 * len(FORMATS)
    told = outcome.out
    lines = {line.partition(":")[0]: line for line in told.splitlines()}
    assert "no hand" in lines["black.png"]
    assert "no hand" not in lines["palm.jpg"]
    assert json.loads((tmp_path / "out" / "black.json").read_text())["hands"] == []
    assert len(json.loads((tmp_path / "out" / "palm.json").read_text())["hands"]) == 1


# ------------------------------------------------------------------------------------------------- for scripts


def test_predict_says_in_json_what_became_of_each_photo(predict, photos):
    (photos / "broken.jpg").write_bytes(b"no photo")
    outcome = predict(
        "photos", "--out", "o", "--format", "json", "--json", "--detector", "none", "--min-score", 0, "--hand", "Left"
    )
    assert outcome.code == 1
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["image"] for line in lines] == [
        f"photos/{name}" for name in ("a.jpg", "b.png", "broken.jpg", "trip/a.jpg")
    ]
    assert "broken.jpg" in lines[2]["error"]
    for line in (lines[0], lines[1], lines[3]):
        (file,) = line["files"]
        (told,) = line["hands"]
        (written_there,) = json.loads(Path(file).read_text())["hands"]
        assert told["handedness"] == written_there["handedness"] == "left"
        np.testing.assert_allclose(told["box_px"], written_there["box_px"], rtol=1e-5)
        np.testing.assert_allclose(told["score"], written_there["score"], rtol=1e-5)


def test_tables_are_json_for_scripts(handmesh, monkeypatch, model_file, tmp_path):
    """One document on standard output and nothing beside it; the exit code is that of the table."""
    from handmesh.doctor import Finding

    findings = [Finding("torch", "2.6", True), Finding("smplx", "not installed", None)]
    monkeypatch.setattr("handmesh.doctor.examine", lambda: iter(findings))
    outcome = handmesh("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == [finding._asdict() for finding in findings]
    findings.append(Finding("inference", 'a "quoted" [red]fault[/] :smile:', False))
    outcome = handmesh("doctor", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)[2]["fact"] == 'a "quoted" [red]fault[/] :smile:'

    exported = json.loads(handmesh("export", "--model", model_file, "--out", "hand.onnx", "--json").out)
    assert (exported["path"], exported["format"]) == ("hand.onnx", "onnx")
    assert exported["megabytes"] == pytest.approx((tmp_path / "hand.onnx").stat().st_size / 1e6)


def test_a_set_is_checked_and_scored_in_json(handmesh, model_file, quick_scenes):
    assert handmesh("synth", "--like-freihand", "set", "--count", 2, "--evaluation", 2, "--seed", 1).code == 0
    assert handmesh("data", "prepare", "set").code == 0
    outcome = handmesh("data", "check", "set", "--json")
    claims = json.loads(outcome.out)["claims"]
    assert outcome.code == int(any(claim["passed"] is False for claim in claims))
    assert {"subject", "wanted", "found", "passed"} == set(claims[0])
    outcome = handmesh("evaluate", "--data", "set", "--model", model_file, "--out", "scores", "--no-report", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == json.loads(Path("scores/scores.json").read_text())


def test_brackets_in_a_name_are_no_markup(predict, photos):
    """What a folder's own name says of it was read as Rich's markup: lost, or a traceback."""
    for name in ("a [bold] one", "in [/x]"):
        folder = Path(name)
        folder.mkdir(parents=True)
        shutil.copy(photos / "a.jpg", folder)
        shutil.copy(photos / "notes.txt", folder)
        outcome = predict(name, "--format", "json")
        assert outcome.code == 0, outcome.err
        assert f"{folder}: files of kinds that are not read are left out: 1 (.txt)" in outcome.out


@pytest.mark.parametrize("clip", [".", "..", "../photos/trip/.."])
def test_results_of_a_clip_stay_in_their_folder(clip, handmesh, model_file, photos, monkeypatch):
    """Those of ".." were written into the folder in which the command ran, over whatever had their names."""
    here = photos / "trip" if clip == ".." else photos
    monkeypatch.chdir(here)
    before = written(here)
    outcome = handmesh("video", clip, "--model", model_file, "--no-overlay", "--no-glb")
    assert outcome.code == 0, outcome.err
    new = set(written(here)) - set(before)
    assert new == {"handmesh_out/photos/hands.jsonl", "handmesh_out/photos/.hands.jsonl.resume"}


@pytest.mark.parametrize("command", ["webcam", "video"])
def test_a_clip_is_told_in_json(command, handmesh, model_file, photos):
    if command == "video":
        outcome = handmesh("video", "photos", "--model", model_file, "--no-overlay", "--out", "clip", "--json")
        assert json.loads(outcome.out)["files"] == ["clip/hands.jsonl", "clip/hand.glb"]
        return
    outcome = handmesh("webcam", "--source", "photos", "--model", model_file, "--headless", "--json", "--frames", 2)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1]
    for hand in (hand for line in lines for hand in line["hands"]):
        assert {"id", "handedness", "score", "source", "box_px", "keypoints_px", "joints"} <= hand.keys()
    assert_one_line(handmesh("webcam", "--source", "photos", "--json"), "--json goes with --headless")
