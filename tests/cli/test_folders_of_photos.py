"""Folders of photographs, several at a time: the same files as one after the other, and errors that stay apart."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.cli.predict import side_by_side
from handmesh.files.image import encode_image
from handmesh.system.atomic import write_atomically


def test_several_at_a_time_write_what_one_after_the_other_writes(model_file, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 256, (60 + index, 80, 3), dtype=np.uint8)
        write_atomically(photos / f"{index}.png", encode_image(image))
    (photos / "2b.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    (photos / "3b.jpg").write_bytes(b"no image")
    outputs = []
    for threads in ("1", "3"):
        out = tmp_path / f"out{threads}"
        arguments = ["predict", str(photos), "--out", str(out), "--format", "json,npz,png", "--passes", "2"]
        run = CliRunner().invoke(app, [*arguments, "--threads", threads, "--model", str(model_file)])
        assert run.exit_code == 1, run.output
        assert "5 of 7 images done" in run.stdout
        errors = [line for line in run.output.splitlines() if "error:" in line]
        assert ["2b.png" in errors[0], "3b.jpg" in errors[1], len(errors)] == [True, True, 2]
        outputs.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert len(outputs[0]) == 15
    assert outputs[0].keys() == outputs[1].keys()
    assert [name for name in outputs[0] if outputs[0][name] != outputs[1][name]] == []


def test_answers_keep_the_order_of_the_jobs_and_few_are_in_work():
    started = []

    def work(job: int) -> int:
        started.append(job)
        time.sleep(0.002 * (7 - job % 7))
        return 10 * job

    answers = []
    for answer in side_by_side(work, range(40), 3):
        answers.append(answer)
        assert len(started) <= len(answers) + 2 * 3 + 1
    assert answers == [10 * job for job in range(40)]


@pytest.mark.parametrize("where", ["in the loop", "in the work"])
def test_an_interruption_drops_what_has_not_begun(where):
    """Ctrl-C arrives in the main thread; what is in work is finished, so that no file is left half-written."""
    began, ended = [], []

    def work(job: int) -> None:
        began.append(job)
        time.sleep(0.01)
        ended.append(job)
        if where == "in the work" and job == 3:
            raise KeyboardInterrupt

    def loop() -> None:
        for index, _ in enumerate(side_by_side(work, range(1000), 2)):
            if where == "in the loop" and index == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    time.sleep(0.05)
    if where == "in the work":
        assert sorted(began) == sorted(ended)
    assert len(began) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("handmesh-photo")]
