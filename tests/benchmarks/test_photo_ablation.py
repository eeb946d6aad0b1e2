"""Variants of the ablation on photographs."""

import json
from argparse import Namespace

from photo_ablation import labels


def test_labels_that_lack_something_are_written_into_a_new_folder(tmp_path):
    """`--only "class B"` with an OUT that was not there ended in FileNotFoundError."""
    rows = [{"image": f"{name}.jpg", "pose": [], "keypoints": [[1, 2]] * 21} for name in ("rf_one", "own")]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = Namespace(out=tmp_path / "new" / "out", labels=tmp_path / "labels.jsonl")
    (own,) = map(json.loads, labels("class A", arguments).read_text().splitlines())
    assert own["image"] == str((tmp_path / "own.jpg").resolve())
    plain = list(map(json.loads, labels("keypoints", arguments).read_text().splitlines()))
    assert [sorted(row) for row in plain] == [["image", "keypoints"]] * 2
