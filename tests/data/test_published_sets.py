"""Published data sets, each read from a stand-in with its exact structure: every label in our conventions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from published_sets import K, KnownHand, known_hands, write_coco_wholebody, write_hint

from handmesh.config import PhotoData, TrainConfig
from handmesh.data import formats
from handmesh.data.check import CheckRow, check
from handmesh.data.formats import holds_photos, open_photos
from handmesh.data.formats.records import LabelledPhotos
from handmesh.data.show import show
from handmesh.data.sources import photo_source
from handmesh.errors import DataError
from handmesh.evaluate.run import EvaluationRequest, run_evaluation
from handmesh.hand import JOINT_NAMES, builtin_hand

COUNTS = {"annotations", "images", "photographs with labels"}  # claims that a stand-in cannot fulfil


def opened(path, kind: str, **options) -> LabelledPhotos:
    """Recognized by its own form and no other."""
    forms = [form for form in formats.FORMATS if form.recognizes(path)]
    assert forms[0].kind == kind
    data = open_photos(path, **options)
    assert data.kind == kind
    return data


def rows_of(path) -> dict[str, CheckRow]:
    """What `data check` says: only what is published of the size may fail for a stand-in."""
    rows = {row.subject: row for row in check(path, images=None)}
    assert not [row for row in rows.values() if row.passed is False and row.subject not in COUNTS], rows
    return rows


def is_used(path, data: LabelledPhotos, crop: str = "box") -> None:
    """Training, `data show`: what reads a data set takes it."""
    assert holds_photos(path)
    source, (watched,) = photo_source(PhotoData(path=path, crop=crop, validation=0.5), 0, TrainConfig(), builtin_hand())
    assert len(source) + len(watched) == len(data)
    sample = source.example(0, np.random.default_rng(0), 64)
    assert sample.labels.keypoints_known.any()
    assert show(path, count=2).shape[1] >= 2 * 224


def has_keypoints(data: LabelledPhotos, index: int, hand: KnownHand, atol: float = 1e-3) -> None:
    labels = data.labels(index)
    assert labels.handedness == hand.side
    np.testing.assert_allclose(labels.hand.keypoints, hand.keypoints, atol=atol)
    np.testing.assert_allclose(labels.box, hand.box, atol=atol)


def test_coco_wholebody(tmp_path):
    hands = known_hands(4)
    path = write_coco_wholebody(tmp_path / "coco", hands)
    data = opened(path, "COCO-WholeBody")
    assert len(data) == len(hands)
    for index, hand in enumerate(hands):
        has_keypoints(data, index, hand)
        assert data.labels(index).hand.keypoints_known.all()
        assert data.image_path(index).is_file()
    rows = rows_of(path)
    assert rows["images"].found == "5"
    assert rows["images"].wanted.startswith("5,000")
    assert rows["valid hands"].found == "5, 1 of them smaller than 8 px and left out"
    is_used(path, data)
    assert [file.name for file in data.files()] == [path.name], "not a hash of 118,287 photographs at each start"


def test_keypoints_that_coco_does_not_know_are_not_known(tmp_path):
    path = write_coco_wholebody(tmp_path, known_hands(1))
    content = json.loads(path.read_text())
    content["annotations"][0]["righthand_kpts"][3 * 7 : 3 * 8] = [0.0, 0.0, 0.0]
    path.write_text(json.dumps(content))
    known = open_photos(path).labels(0).hand.keypoints_known
    assert np.flatnonzero(~known).tolist() == [JOINT_NAMES.index("index_dip")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: (root / "val2017").rename(root / "elsewhere"), "no folder val2017 with COCO's images"),
        (lambda root: next(root.rglob("*.json")).write_text('{"images": []}'), "no annotation file of COCO-WholeBody"),
        (lambda root: next(root.rglob("*.json")).write_text("{"), "cannot be read"),
    ],
)
def test_what_is_no_coco_wholebody_is_said(change, says, tmp_path):
    path = write_coco_wholebody(tmp_path, known_hands(1))
    change(tmp_path)
    with pytest.raises(DataError, match=says):
        open_photos(path)


def test_hint(tmp_path, model_file):
    hands, hidden = known_hands(4), np.zeros((4, 21), bool)
    hidden[:, 16:] = True
    path = write_hint(tmp_path, hands, hidden)
    data = opened(path, "HInt")
    for index, hand in enumerate(hands):
        has_keypoints(data, index, hand)
        assert data.labels(index).hand.keypoints_known.all(), "hidden ones are labelled, too"
    rows = rows_of(path)
    assert (rows["photographs with labels"].wanted, rows["photographs with labels"].found) == ("550", "4")
    is_used(path, data)
    request = EvaluationRequest(data=path, model=str(model_file), protocol="box", out=tmp_path / "out")
    scores = run_evaluation(request).keypoints
    mean = (16 * scores["pck_0.15_visible"] + 5 * scores["pck_0.15_hidden"]) / 21
    assert scores["pck_0.15"] == pytest.approx(mean)
    assert scores["box_error_visible"] != scores["box_error_hidden"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([], "no annotation of HInt .*wanted a list of one hand"),
        ([{"bbox": [[0, 0, 9, 9]], "keypoints": []}], "no annotation of HInt .*occlusion"),
        ([{"bbox": [[0, 0, 9, 9]], "keypoints": [[1, 1]] * 21, "occlusion": [0] * 20}], "20 entries, wanted 21"),
    ],
)
def test_what_is_no_hint_is_said(labels, says, tmp_path):
    path = write_hint(tmp_path, known_hands(1), np.zeros((1, 21), bool))
    next(path.glob("*.json")).write_text(json.dumps(labels))
    with pytest.raises(DataError, match=says):
        open_photos(path).labels(0)


def test_the_stand_ins_hands_are_where_a_camera_sees_them():
    for hand in known_hands(6):
        assert (hand.keypoints > 0).all()
        assert (hand.keypoints < (320, 240)).all()
        np.testing.assert_allclose(hand.keypoints[0] * hand.joints[0, 2], (hand.joints[0] @ K.T)[:2])
