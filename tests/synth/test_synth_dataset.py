"""Packs and data sets on disk: resumable, independent of the number of workers, never half there."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmesh.errors import DataError
from handmesh.hand import builtin_hand
from handmesh.synth import (
    Backgrounds,
    CameraEffects,
    Pack,
    PoseSettings,
    SceneRenderer,
    SceneSettings,
    render_pack,
    sample_generator,
    write_dataset,
)

COUNT, SEED, SIZE = 70, 5, 48  # more than one chunk of 64


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return render_pack(tmp_path_factory.mktemp("pack") / "p", COUNT, SEED, SIZE, background_count=2)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_pack_holds_the_samples_of_its_seed(pack):
    """Sample i depends on (seed, i) only: rendering one alone gives what the pack holds."""
    renderer = SceneRenderer(builtin_hand(), SceneSettings(), SIZE, backgrounds=Backgrounds(SEED, 2))
    assert len(pack) == COUNT
    assert pack.size == SIZE
    for index in (0, 63, 64, COUNT - 1):
        alone, packed = renderer.render_foreground(sample_generator(SEED, index)), pack[index]
        np.testing.assert_array_equal(packed.image, np.dstack([alone.image, alone.alpha]))
        for name in ("keypoints", "visible", "joints", "pose", "betas", "translation", "intrinsics"):
            np.testing.assert_array_equal(getattr(packed, name), getattr(alone, name))
        assert packed.ita_degrees == pytest.approx(alone.facts["ita_degrees"], rel=1e-6)
    np.testing.assert_array_equal(pack[-1].keypoints, pack[COUNT - 1].keypoints)
    with pytest.raises(IndexError):
        pack[COUNT]


def test_a_pack_survives_pickling_without_its_images(pack):
    assert pack[0].image.any()
    sent = pickle.dumps(pack)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent)[3].image, pack[3].image)


def test_of_two_that_want_a_pack_one_renders_it(pack, tmp_path):
    """As two training runs of a sweep that begin together."""
    path, began, rendered = tmp_path / "p", threading.Event(), []

    def wait_for_the_other(done: int, total: int) -> None:
        rendered.append(done)
        began.set()
        time.sleep(0.2)

    def ask() -> Pack:
        return render_pack(path, COUNT, SEED, SIZE, background_count=2, progress=wait_for_the_other)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask)
        assert began.wait(60)
        second = pool.submit(ask)
        for made in (first.result(120), second.result(120)):
            for index in (0, 63, COUNT - 1):
                np.testing.assert_array_equal(made[index].image, pack[index].image)
    assert rendered == [0, 64, COUNT], "once"
    assert [file.name for file in tmp_path.iterdir()] == ["p"], "and nothing is left beside it"


@pytest.mark.parametrize("changed", [{"real_poses": 0.5}, {"pose": PoseSettings(touch=0.2)}])
def test_a_pack_of_other_poses_is_another(tmp_path, changed):
    other = SceneSettings(**changed)
    path = tmp_path / "p"
    render_pack(path, 2, SEED, SIZE, other, background_count=2)
    with pytest.raises(DataError, match=r"wanted 0\.0"):
        render_pack(path, 2, SEED, SIZE, background_count=2)
    meta = json.loads((path / "meta.json").read_text())
    del meta["settings"]["real_poses"], meta["settings"]["pose"]["touch"]  # as former versions wrote it
    (path / "meta.json").write_text(json.dumps(meta))
    render_pack(path, 2, SEED, SIZE, background_count=2)
    with pytest.raises(DataError, match=r"is 0\.0"):
        render_pack(path, 2, SEED, SIZE, other, background_count=2)


def test_an_interrupted_pack_goes_on_where_it_was(pack, tmp_path):
    """Stop after the first chunk, start again: the same bytes as in one go, and the first chunk is not redone."""

    class Stop(Exception):
        pass

    def stop_after_first_chunk(done: int, total: int) -> None:
        if done:
            raise Stop

    path = tmp_path / "p"
    with pytest.raises(Stop):
        render_pack(path, COUNT, SEED, SIZE, background_count=2, progress=stop_after_first_chunk)
    assert not path.exists()  # never half there
    seen: list[int] = []
    render_pack(path, COUNT, SEED, SIZE, background_count=2, progress=lambda done, total: seen.append(done))
    assert seen == [64, COUNT]
    assert files_of(path) == files_of(pack.path)


def test_a_killed_run_goes_on_with_two_workers(pack, tmp_path):
    """kill -9 in the middle, then two processes instead of one: still the same bytes."""
    path = tmp_path / "p"
    code = (
        "from pathlib import Path; from handmesh.synth import render_pack; "
        f"render_pack(Path({str(path)!r}), {COUNT}, {SEED}, {SIZE}, background_count=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    flags = path.with_name("p.partial") / "done.npy"
    deadline = time.monotonic() + 60
    while not flags.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    render_pack(path, COUNT, SEED, SIZE, background_count=2, workers=2)
    assert files_of(path) == files_of(pack.path)
    assert not flags.parent.exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to find the processes")
def test_the_workers_of_a_killed_run_end(tmp_path):
    """Nobody is left who could stop them: they finish the chunk in hand, not the hundred that were left."""
    script = tmp_path / "render.py"
    script.write_text(
        "from pathlib import Path\nfrom handmesh.synth import render_pack\nif __name__ == '__main__':\n"
        f"    render_pack(Path({str(tmp_path / 'p')!r}), 6400, {SEED}, {SIZE}, background_count=2, workers=2)\n"
    )
    run = subprocess.Popen([sys.executable, script])
    flags = tmp_path / "p.partial" / "done.npy"
    try:
        wait_until(lambda: flags.exists() and np.load(flags).any())
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not any(is_running(child) for child in children))
    assert len(children) >= 2
    assert np.load(flags).sum() < 50


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_asking_again_returns_the_finished_pack_and_other_arguments_are_refused(pack):
    again = render_pack(pack.path, COUNT, SEED, SIZE, background_count=2)
    assert len(again) == COUNT
    with pytest.raises(DataError, match="seed is 5, wanted 6"):
        render_pack(pack.path, COUNT, SEED + 1, SIZE, background_count=2)
    with pytest.raises(DataError, match=r"arguments: settings\.sleeve is 0\.4, wanted 0\.1\. Choose"):
        render_pack(pack.path, COUNT, SEED, SIZE, SceneSettings(sleeve=0.1), background_count=2)


def test_a_pack_stays_valid_when_another_camera_is_wanted(pack, tmp_path):
    """Its images are clean: another version's camera effects are none of its business, though its record has them."""
    other = SceneSettings(effects=CameraEffects(defocus=0.9), shadow=0.1)
    assert len(render_pack(pack.path, COUNT, SEED, SIZE, other, background_count=2)) == COUNT
    older = tmp_path / "p"
    older.mkdir()
    for file in pack.path.iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    meta = json.loads((older / "meta.json").read_text())
    meta["settings"]["effects"] = {"defocus": 0.28}
    (older / "meta.json").write_text(json.dumps(meta))
    assert len(render_pack(older, COUNT, SEED, SIZE, background_count=2)) == COUNT


def test_an_empty_folder_is_a_place_for_a_set(tmp_path, monkeypatch):
    """It was refused as "not a finished set"."""
    (tmp_path / "made").mkdir()
    labels = write_dataset(tmp_path / "made", 1, SEED, SIZE, background_count=2)
    assert len(labels.read_text().splitlines()) == 1
    monkeypatch.chdir(tmp_path / "made")  # whose place would be lost
    with pytest.raises(DataError, match=r"^\. was made with other arguments: count is 1, wanted 2"):
        write_dataset(Path(), 2, SEED, SIZE, background_count=2)
    (tmp_path / "full").mkdir()
    for content in ("", "[1]"):
        (tmp_path / "full" / "meta.json").write_text(content)
        with pytest.raises(DataError, match=r"full.meta\.json"):
            write_dataset(tmp_path / "full", 1, SEED, SIZE, background_count=2)


def test_wrong_backgrounds_are_said_once_and_leave_nothing(tmp_path):
    """Each worker said so in a traceback; then the same command was to be started again, and another one refused."""
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="No background image in"):
            write_dataset(tmp_path / "set", COUNT, SEED, SIZE, workers=2, background_folder=folder)
    assert [file.name for file in tmp_path.iterdir()] == ["torn.jpg"]


def test_a_folder_that_is_no_pack_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no meta\.json"):
        Pack(tmp_path)


def test_a_damaged_pack_names_the_file(pack, tmp_path):
    for file in pack.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pose.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"pose\.npy"):
        Pack(tmp_path)[0]


def test_a_data_set_on_disk_says_what_was_rendered(tmp_path):
    labels = write_dataset(tmp_path / "set", 5, SEED, SIZE, background_count=2)
    renderer = SceneRenderer(builtin_hand(), SceneSettings(), SIZE, backgrounds=Backgrounds(SEED, 2))
    records = [json.loads(line) for line in labels.read_text().splitlines()]
    assert [record["image"] for record in records] == [f"images/{i:08d}.jpg" for i in range(5)]
    for index, record in enumerate(records):
        sample = renderer.render(sample_generator(SEED, index))
        assert record["handedness"] == "right"
        np.testing.assert_array_equal(np.array(record["keypoints"], np.float32)[:, :2], sample.keypoints)
        np.testing.assert_array_equal(np.array(record["keypoints"])[:, 2] == 1, sample.visible)
        for name in ("joints", "pose", "betas", "translation", "intrinsics"):
            np.testing.assert_array_equal(np.array(record[name], np.float32), getattr(sample, name))
        _, encoded = cv2.imencode(".jpg", sample.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert (labels.parent / record["image"]).read_bytes() == encoded.tobytes()
        np.testing.assert_array_equal(cv2.imread(str(labels.parent / record["mask"]), 0), sample.mask)
        np.testing.assert_array_equal(cv2.imread(str(labels.parent / record["alpha"]), 0), sample.alpha)
    assert write_dataset(tmp_path / "set", 5, SEED, SIZE, background_count=2) == labels  # nothing to do
