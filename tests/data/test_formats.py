"""A data set in a form of its own: its reader and its place in the table, and everything takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handmesh.config.data import PhotoData
from handmesh.config.train import TrainConfig
from handmesh.data import formats
from handmesh.data.check import check
from handmesh.data.formats.jsonl import JsonlData
from handmesh.data.formats.records import LabelledPhotos
from handmesh.data.show import show
from handmesh.data.sources import files_sha256, photo_source
from handmesh.errors import DataError
from handmesh.evaluate.sets import open_evaluation_set
from handmesh.hand import builtin_hand
from handmesh.synth.dataset import write_dataset

COUNT = 4


class OneTable(LabelledPhotos):
    """All labels in one JSON file of columns, as many data sets have them."""

    kind = "one table"

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        super().__init__(path / "table.json", for_scoring=for_scoring)
        self.columns = json.loads(self.path.read_text())

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return (path / "table.json").is_file()

    def __len__(self) -> int:
        return len(self.columns["files"])

    def read(self, index: int) -> dict[str, Any]:
        return {
            "image": self.columns["files"][index],
            "joints": (np.array(self.columns["xyz_mm"][index]) / 1000).tolist(),
            "intrinsics": self.columns["camera"],
        }


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The same photographs as `JSONL`, and in a table of millimetres."""
    labels = write_dataset(tmp_path / "set", COUNT, 3, 64, background_count=2)
    data = JsonlData(labels)
    records = [data.record(index) for index in range(COUNT)]
    table = {
        "files": [record["image"] for record in records],
        "xyz_mm": [(1000 * np.array(record["joints"])).tolist() for record in records],
        "camera": records[0]["intrinsics"],
    }
    (labels.parent / "table.json").write_text(json.dumps(table))
    monkeypatch.setattr(formats, "FORMATS", (OneTable, *formats.FORMATS))
    return labels.parent


def test_a_form_of_ones_own_is_trained_scored_checked_and_shown(folder):
    joints = np.array([JsonlData(folder).labels(index).hand.joints for index in range(COUNT)])
    source, (watched,) = photo_source(PhotoData(path=folder, validation=0.5), 0, TrainConfig(), builtin_hand())
    assert (len(source), len(watched)) == (COUNT // 2, COUNT // 2)
    sample = source.example(0, np.random.default_rng(0), 64)
    assert bool(sample.labels.joints_known)
    assert not bool(sample.labels.pose_known)
    before = files_sha256(source.files())
    scored = open_evaluation_set(folder)
    assert scored.kind == "one table"
    np.testing.assert_allclose(scored.truth.joints, joints, atol=1e-9)
    assert scored.sample(0).for_scoring
    rows = {row.subject: row for row in check(folder)}
    assert rows["samples"].passed
    assert rows["labels"].found.startswith(f"intrinsics {COUNT}, joints {COUNT};")
    assert show(folder, count=2).shape[1] >= 2 * 224
    table = json.loads((folder / "table.json").read_text())
    table["xyz_mm"][1].pop()
    (folder / "table.json").write_text(json.dumps(table))
    assert files_sha256(source.files()) != before, "the record of a run tells other labels"
    with pytest.raises(DataError, match=r"table\.json, sample 1: 'joints'"):
        photo_source(PhotoData(path=folder), 0, TrainConfig(), builtin_hand())
