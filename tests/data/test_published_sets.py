"""Published data sets, each read from a stand-in with its exact structure: every label in our conventions."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from published_sets import (
    HO3D_TIPS,
    MANOPTH_TIPS,
    K,
    KnownHand,
    known_hands,
    write_coco_wholebody,
    write_dexycb,
    write_hanco,
    write_hint,
    write_ho3d,
    write_interhand,
)

from handmesh.config.data import PhotoData
from handmesh.config.train import TrainConfig
from handmesh.data import formats
from handmesh.data.check import CheckRow, check
from handmesh.data.formats import dexycb, holds_photos, open_photos
from handmesh.data.formats.freihand import prepare
from handmesh.data.formats.records import LabelledPhotos
from handmesh.data.show import show
from handmesh.data.sources import photo_source
from handmesh.errors import DataError
from handmesh.evaluate.run import EvaluationRequest, run_evaluation
from handmesh.evaluate.sets import open_evaluation_set
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import JOINT_NAMES, HandArrays, Handedness, builtin_hand
from handmesh.hand.mano_file import add_mano, load_mano

COUNTS = {"images", "photographs with labels", "photographs of one hand and of two"}
COUNTS |= {"frames (version 2)", "frames (version 3)"}


def opened(path, kind: str, **options) -> LabelledPhotos:
    """Recognized by its own form and no other."""
    forms = [form for form in formats.FORMATS if form.recognizes(path)]
    assert forms[0].kind == kind
    data = open_photos(path, **options)
    assert data.kind == kind
    return data


def rows_of(path) -> dict[str, CheckRow]:
    """What `data check` says: only what is published of the size may fail for a stand-in."""
    rows = {row.subject: row for row in check(path, images=4)}
    assert not [row for row in rows.values() if row.passed is False and row.subject not in COUNTS], rows
    return rows


def is_used(path, data: LabelledPhotos, crop: str = "box") -> None:
    """Training, `data show`: what reads a data set takes it."""
    assert holds_photos(path)
    source, (watched,) = photo_source(PhotoData(path=path, crop=crop, validation=0.5), 0, TrainConfig(), builtin_hand())
    assert len(source) + len(watched) == len(data)
    # InterHand2.6M has MANO's poses, and joints that people pointed at.
    assert source.mano_joints == watched.mano_joints == (data.kind in ("DexYCB", "HanCo", "HO-3D"))
    sample = source.example(0, np.random.default_rng(0), 64)
    assert sample.labels.keypoints_known.any()
    assert show(path, count=2).shape[1] >= 2 * 224


def has_keypoints(data: LabelledPhotos, index: int, hand: KnownHand, atol: float = 1e-3) -> None:
    labels = data.labels(index)
    assert labels.handedness == hand.side
    np.testing.assert_allclose(labels.hand.keypoints, hand.keypoints, atol=atol)
    np.testing.assert_allclose(labels.box, hand.box, atol=atol)


@pytest.fixture
def mano_hands(stand_in_mano, tmp_path) -> dict[Handedness, HandArrays]:
    """Both of the user's MANO hands, made of ours, with a mean pose and components that are not the identity."""
    left = stand_in_mano.mirrored()
    rng = np.random.default_rng(1)
    left = replace(left, hands_components=left.hands_components[rng.permutation(45)])
    left.save(tmp_path / "MANO_LEFT.npz")
    add_mano(tmp_path / "MANO_LEFT.npz")
    return {Handedness.RIGHT: stand_in_mano, Handedness.LEFT: load_mano(Handedness.LEFT)}


def has_pose(data: LabelledPhotos, index: int, hand: KnownHand, rotation: NDArray[Any] | None = None) -> None:
    """The pose of a known hand; `rotation`: of the camera, where the set's axes are turned to it."""
    expected = matrix_from_vector(hand.vectors)
    if rotation is not None:
        expected[0] = rotation @ expected[0]
    labels = data.labels(index).hand
    assert labels.pose_known
    np.testing.assert_allclose(labels.pose, expected, atol=2e-6)


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
        (lambda root: next(root.rglob("*.json")).write_text("{"), "is no JSON, or not all of it .* download it again"),
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


def test_dexycb(mano_hands, tmp_path, monkeypatch):
    hands = known_hands(6, mano_hands[Handedness.RIGHT])
    known = write_dexycb(tmp_path / "dex-ycb", hands, mano_hands)
    path = tmp_path / "dex-ycb" / "s0_val"
    data = opened(path, "DexYCB")
    assert len(data) == len(known) == 2 * 20 * 8, "frames without a hand are left out"
    for index in range(0, len(data), 7):
        hand, labels = known[data.record(index)["image"]], data.labels(index)
        assert labels.handedness == hand.side
        np.testing.assert_allclose(labels.hand.joints, hand.chain_joints(MANOPTH_TIPS), atol=1e-6)
        np.testing.assert_allclose(labels.intrinsics.matrix, K)
        has_pose(data, index, hand)
        right = hand.side == Handedness.RIGHT
        assert labels.hand.betas_known == right, "the published left hand's shapes are not mirrored"
        if right:
            np.testing.assert_allclose(labels.hand.betas, hand.betas)
            # Decoded with MANO, up to where the hand lies, the mesh is the hand's own.
            posed = mano_hands[Handedness.RIGHT].shaped(labels.hand.betas).posed(labels.hand.pose).vertices
            np.testing.assert_allclose(posed + hand.translation, hand.vertices, atol=1e-5)
    assert data.labelled_hand.name == "mano"
    rows = rows_of(path)
    assert rows["sequences"].found == "10 with 100 to 100"
    assert rows["frames"].found == "480, 320 of them with a labelled hand"
    assert rows["joints seen by the camera, against keypoints"].passed
    is_used(path, data)
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "nothing"))
    without = open_photos(path).labels(0).hand
    assert without.joints_known
    assert not without.pose_known
    for missing, says in (
        ("calibration/intrinsics", "There is no .*480.yml"),
        ("20200709-a", "9 folders .*, wanted 10"),
    ):
        (path.parent / missing).rename(tmp_path / missing.replace("/", "-"))
        with pytest.raises(DataError, match=says):
            open_photos(path)


def test_splits_of_dexycb_are_those_of_its_toolkit():
    """Counted out by the conditions there: s0 every fifth sequence, s1 by subject, s2 by camera, s3 by object."""
    sizes = {name: (len(part.subjects), len(part.cameras), len(part.sequences)) for name, part in dexycb.PARTS.items()}
    assert sizes == {
        "s0_train": (10, 8, 80),
        "s0_val": (2, 8, 20),
        "s0_test": (8, 8, 20),
        "s1_train": (7, 8, 100),
        "s1_val": (1, 8, 100),
        "s1_test": (2, 8, 100),
        "s2_train": (10, 6, 100),
        "s2_val": (10, 1, 100),
        "s2_test": (10, 1, 100),
        "s3_train": (10, 8, 75),
        "s3_val": (10, 8, 10),
        "s3_test": (10, 8, 15),
    }
    for setup in range(4):  # what is trained on is not tested on
        parts = [dexycb.PARTS[f"s{setup}_{name}"] for name in ("train", "val", "test")]
        seen = [set(itertools.product(*part)) for part in parts]
        assert not any(a & b for a, b in itertools.combinations(seen, 2))
        assert len(set.union(*seen)) == 10 * 8 * 100


def test_interhand(mano_hands, tmp_path):
    right = mano_hands[Handedness.RIGHT]
    hands = known_hands(5, right)
    path = write_interhand(tmp_path / "InterHand2.6M", hands, right.hands_mean, JOINT_NAMES.index("ring_pip"))
    data = opened(path, "InterHand2.6M")
    assert len(data) == len(hands)
    for index, hand in enumerate(hands):
        labels = data.labels(index)
        assert labels.handedness == hand.side
        known = np.ones(21, bool)
        known[JOINT_NAMES.index("ring_pip")] = hand is not hands[-1]
        np.testing.assert_array_equal(labels.hand.keypoints_known, known)
        np.testing.assert_allclose(labels.hand.keypoints[known], hand.keypoints[known], atol=1e-6)
        assert labels.hand.joints_known == known.all(), "3D labels are of all joints"
        if known.all():
            np.testing.assert_allclose(labels.hand.joints, hand.joints, atol=1e-9)
        np.testing.assert_allclose(labels.intrinsics.matrix, K)
        np.testing.assert_allclose(labels.hand.betas, hand.betas)
        has_pose(data, index, hand)
    assert data.record(0)["image"] == data.record(1)["image"], "two hands of one photograph"
    rows = rows_of(path)
    assert rows["photographs of one hand and of two"].found == "3 and 1"
    assert rows["photographs of one hand and of two"].wanted.startswith("380,125: 234,183 and 145,942")
    assert rows["hands"].found == "5, 4 of them with all joints"
    is_used(path, data)
    scored = open_evaluation_set(path)
    assert len(scored) == 4, "hands with all joints"
    np.testing.assert_allclose(scored.truth.joints, [hand.joints for hand in hands[:4]], atol=1e-9)
    path.with_name("InterHand2.6M_val_MANO_NeuralAnnot.json").unlink()
    assert not open_photos(path).labels(0).hand.pose_known
    path.with_name("InterHand2.6M_val_camera.json").write_text("{}")
    with pytest.raises(DataError, match="capture 0, camera 400053, frame 100 is not in its camera and joint files"):
        open_photos(path).labels(0)
    shutil.rmtree(tmp_path / "InterHand2.6M" / "images")
    with pytest.raises(DataError, match="no images/val in a folder above it"):
        open_photos(path)


def test_hanco(stand_in_mano, tmp_path, monkeypatch):
    root = tmp_path / "HanCo"
    known = write_hanco(root, known_hands(4, stand_in_mano, sides="r"), stand_in_mano.hands_mean)
    train, test, merged = (opened(root / part, "HanCo") for part in ("train", "test", "rgb_merged"))
    assert len(train) == len(test) == len(merged) == 2 * 8, "frames without a fit are left out"
    assert {data.record(index)["image"] for data in (train, test) for index in range(len(data))} == known.keys()
    for data in (train, test):
        for index in range(0, len(data), 5):
            (hand, hundredths), labels = known[data.record(index)["image"]], data.labels(index)
            turn = matrix_from_vector(np.array([0, 0, 0.01 * hundredths]))
            np.testing.assert_allclose(labels.hand.joints, hand.joints @ turn.T, atol=1e-9)
            np.testing.assert_allclose(labels.intrinsics.matrix, K)
            np.testing.assert_allclose(labels.hand.betas, hand.betas)
            has_pose(data, index, hand, turn)
            # Decoded with MANO, up to where the hand lies, the mesh is the hand's own.
            posed = stand_in_mano.shaped(labels.hand.betas).posed(labels.hand.pose).vertices
            np.testing.assert_allclose(np.ptp(posed - hand.vertices @ turn.T, axis=0), 0, atol=1e-5)
    assert merged.record(5)["image"] == train.record(5)["image"].replace("rgb/", "rgb_merged/")
    rows = rows_of(root / "train")
    assert rows["sequences"].passed
    assert rows["frames with a MANO fit"].found == "2 in 1 sequences; the fits of 2 were looked at by their authors"
    is_used(root / "rgb_merged", merged)
    np.testing.assert_allclose(open_evaluation_set(root / "test").truth.joints[0], test.labels(0).hand.joints)
    with monkeypatch.context() as patch:
        patch.setenv("HANDMESH_MANO_DIR", str(tmp_path / "nothing"))
        without = open_photos(root / "train").labels(0).hand
        assert without.joints_known
        assert not without.pose_known
    shutil.rmtree(root / "rgb" / "0003")
    with pytest.raises(DataError, match="no frame with a MANO fit whose photographs are in rgb/"):
        open_photos(root / "train")
    (root / "xyz/1517/00000001.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"sequence 1517, frame 00000001, camera 0: no labels of HanCo \(ValueError"):
        test.labels(0)
    (root / "meta.json").write_text('{"has_fit": []}')
    with pytest.raises(DataError, match=r"meta\.json is not HanCo's \(KeyError: 'is_train'"):
        open_photos(root / "test")


@pytest.mark.parametrize(("version", "suffix", "protocol"), [(2, ".png", 0), (3, ".jpg", 2)])
def test_ho3d(version, suffix, protocol, stand_in_mano, tmp_path):
    hands = known_hands(4, stand_in_mano, sides="r")
    path = write_ho3d(tmp_path / "HO3D", hands, suffix, protocol)
    data = opened(path, "HO-3D")
    assert (len(data), data.version) == (4, version)
    for index, hand in enumerate(hands):
        labels = data.labels(index)
        np.testing.assert_allclose(labels.hand.joints, hand.chain_joints(HO3D_TIPS), atol=1e-9)
        np.testing.assert_allclose(labels.intrinsics.matrix, K)
        has_pose(data, index, hand)
        np.testing.assert_allclose(labels.hand.betas, hand.betas)
        posed = stand_in_mano.shaped(labels.hand.betas).posed(labels.hand.pose).vertices
        np.testing.assert_allclose(posed + hand.translation, hand.vertices, atol=1e-5)
    rows = rows_of(path)
    assert rows[f"frames (version {version})"].found == "4"
    is_used(path, data)
    scored = open_evaluation_set(path.with_name("evaluation"))
    np.testing.assert_allclose(scored.truth.joints, [hand.chain_joints(HO3D_TIPS) for hand in hands], atol=1e-9)
    np.testing.assert_allclose(scored.truth.vertices, [hand.vertices for hand in hands], atol=1e-9)
    np.testing.assert_allclose(scored.boxes, [hand.box for hand in hands], atol=1e-9)
    rows = rows_of(path.with_name("evaluation"))
    zero = 100 * np.linalg.norm([hand.chain_joints(HO3D_TIPS) for hand in hands], axis=-1).mean()
    assert rows["all-zero prediction"].found.startswith(f"{zero:.2f} / ")


def test_an_evaluation_split_of_ho3d_without_truth_is_looked_at_and_not_scored(tmp_path):
    path = write_ho3d(tmp_path, known_hands(2, sides="r"), ".jpg", 2).with_name("evaluation")
    (tmp_path / "evaluation_xyz.json").unlink()
    assert rows_of(path)["joints and vertices"].found == "missing"
    assert show(path, count=2).shape[1] >= 2 * 224
    with pytest.raises(DataError, match=r"no joints to score with: put evaluation_xyz\.json and evaluation_verts"):
        open_evaluation_set(path)


@pytest.mark.parametrize("protocol", [0, 2])
def test_annotations_of_ho3d_run_nothing(protocol, tmp_path):
    """They are pickles, and come from a download."""
    path = write_ho3d(tmp_path, known_hands(1, sides="r"), ".jpg", protocol)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    refused = r"\.pkl is refused: it names (posix|nt)\.system"
    for content, says in ((Evil(), refused), ({"camMat": Evil()}, refused), ({"camMat": K}, "has no handJoints3D")):
        next(path.rglob("*.pkl")).write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(DataError, match=says):
            open_photos(path).labels(0)
    assert not marker.exists()


def test_the_stand_ins_hands_are_where_a_camera_sees_them():
    for hand in known_hands(6):
        assert (hand.keypoints > 0).all()
        assert (hand.keypoints < (320, 240)).all()
        np.testing.assert_allclose(hand.keypoints[0] * hand.joints[0, 2], (hand.joints[0] @ K.T)[:2])


def written(kind: str, root, stand_in_mano) -> tuple[Any, list[str]]:
    """A stand-in of one set -> its folder, and paths in it that are not the set's own."""
    if kind == "COCO-WholeBody":
        write_coco_wholebody(root / "coco", known_hands(2))
        return root / "coco", [".", "annotations", "val2017"]
    if kind == "HInt":
        write_hint(root, known_hands(2), np.zeros((2, 21), bool))
        return root / "HInt_annotation_partial", [".", "TEST_newdays_img"]
    if kind == "InterHand2.6M":
        write_interhand(root / "IH", known_hands(2, stand_in_mano), stand_in_mano.hands_mean, 0)
        return root / "IH", [".", "annotations", "annotations/val", "images"]
    if kind == "HanCo":
        write_hanco(root / "HanCo", known_hands(2, stand_in_mano, sides="r"), stand_in_mano.hands_mean)
        return root / "HanCo", [".", "rgb", "validation"]
    if kind == "HO-3D":
        write_ho3d(root / "HO3D_v3", known_hands(2, sides="r"), ".jpg", 2)
        return root / "HO3D_v3", [".", "train/ABF10", "train/ABF10/rgb"]
    both = {Handedness.RIGHT: stand_in_mano, Handedness.LEFT: stand_in_mano.mirrored()}
    write_dexycb(root / "dex-ycb", known_hands(2, stand_in_mano), both)
    return root / "dex-ycb", [".", "20200709-a", "s4_test"]


@pytest.mark.parametrize("kind", [form.kind for form in formats.FORMATS if form.published])
def test_a_path_beside_a_set_is_answered_with_the_sets_own(kind, stand_in_mano, tmp_path):
    """It was taken for FreiHAND, to be prepared; HO-3D's folder was scored as FreiHAND's, whose images were missing."""
    root, others = written(kind, tmp_path, stand_in_mano)
    for path in [root / other for other in others]:
        says = rf"{kind} is read part by part: give the path of one \({root}"
        train = partial(photo_source, number=0, config=TrainConfig(), hand=builtin_hand())
        for use in (check, show, open_evaluation_set, prepare):
            with pytest.raises(DataError, match=says):
                use(path)
        with pytest.raises(DataError, match=says):
            train(PhotoData(path=path))
        assert not (path / "prepared").exists()


def test_what_is_read_as_it_is_is_not_prepared(tmp_path):
    path = write_hint(tmp_path, known_hands(1), np.zeros((1, 21), bool))
    with pytest.raises(DataError, match="is HInt, which is read as it is: there is nothing to prepare"):
        prepare(path)
    assert not (path / "prepared").exists()


def test_preparing_what_holds_no_freihand_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="No FreiHAND in"):
        prepare(tmp_path)
    assert not list(tmp_path.iterdir())
    (out := tmp_path / "disk").mkdir()  # where one was mounted, the answer was: Device or resource busy
    with pytest.raises(DataError, match="No FreiHAND in"):
        prepare(tmp_path, out)
    assert out.is_dir()


def with_annotation(path, **values) -> LabelledPhotos:
    """HO-3D, its first frame's annotation changed."""
    file = next(path.rglob("meta/0000.pkl"))
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | values, protocol=2))
    return open_photos(path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"handPose": np.zeros(45)}, r"0000\.pkl: handPose has 45 numbers, wanted 48"),
        ({"handJoints3D": np.zeros((20, 3))}, "handJoints3D has 60 numbers, wanted 63 or 3"),
        ({"camMat": None, "handJoints3D": None}, r"has no camMat: .* Frames without one do not belong in train\.txt"),
        ({"handJoints3D": "x"}, "handJoints3D is a str, wanted an array"),
    ],
)
def test_odd_annotations_of_ho3d_are_said(values, says, tmp_path):
    path = write_ho3d(tmp_path, known_hands(1, sides="r"), ".jpg", 2)
    with pytest.raises(DataError, match=says):
        with_annotation(path, **values).labels(0)


def test_boxes_of_ho3d_may_be_lists(tmp_path):
    """The authors' tool asks no more of a box than four numbers."""
    path = write_ho3d(tmp_path, known_hands(1, sides="r"), ".png", 0).with_name("evaluation")
    for box in ([10, 20, 30.5, 40], [np.int64(10), np.float32(20), 30.5, 40]):
        assert with_annotation(path, handBoundingBox=box).labels(0).box.tolist() == [10, 20, 30.5, 40]


def test_poses_that_are_not_those_of_the_joints_are_found(stand_in_mano, tmp_path):
    """A mean pose left out, axes not turned: on a download the check is all that would tell."""
    path = write_ho3d(tmp_path, known_hands(3, stand_in_mano, sides="r"), ".jpg", 2)
    subject = "joints of pose and shape, against joints"
    found = next(row for row in check(path) if row.subject == subject)
    assert found.passed
    assert found.found.endswith("of 3")
    for file in path.rglob("*.pkl"):
        file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | {"handPose": np.zeros(48)}, protocol=2))
    assert next(row for row in check(path) if row.subject == subject).passed is False


def test_the_version_of_ho3d_is_told_by_the_images_that_are_there(tmp_path):
    path = write_ho3d(tmp_path, known_hands(3, sides="r"), ".png", 0)
    for number in range(30):  # so that one of them is likely to be looked at first
        folder = path / f"SB{number}" / "rgb"
        folder.mkdir(parents=True)
        (folder / ".DS_Store").touch()
    (path / "ABF10/rgb/0000.png").unlink()
    assert open_photos(path).version == 2


def test_a_split_of_ho3d_without_its_list_is_known(tmp_path):
    path = write_ho3d(tmp_path, known_hands(1, sides="r"), ".jpg", 2)
    path.with_name("train.txt").unlink()
    with pytest.raises(DataError, match=r"There is no .*train\.txt: wanted the list of the split's frames"):
        check(path)


@pytest.mark.parametrize("name", ["data", "camera", "joint_3d", "MANO_NeuralAnnot"])
def test_a_cut_file_of_interhand_is_said_at_once(name, stand_in_mano, tmp_path):
    """It was read again, to its broken end, for each of a million photographs."""
    path = write_interhand(tmp_path, known_hands(2, stand_in_mano), stand_in_mano.hands_mean, 0)
    file = path.with_name(f"InterHand2.6M_val_{name}.json")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{name}\.json is no JSON, or not all of it"):
        open_photos(path)


def test_odd_labels_of_the_field_are_said(mano_hands, tmp_path):
    path = write_interhand(tmp_path / "ih", known_hands(1, mano_hands[Handedness.RIGHT]), np.zeros(45), 0)
    fits = path.with_name("InterHand2.6M_val_MANO_NeuralAnnot.json")
    fits.write_text(fits.read_text().replace('"pose": [', '"pose": [1.0, '))
    with pytest.raises(DataError, match=r"capture 0, frame 100, right: ValueError.*Wanted 48 numbers of 'pose'"):
        open_photos(path).labels(0)
    path = write_coco_wholebody(tmp_path / "coco", known_hands(1))
    path.write_text(path.read_text().replace('"righthand_box": [', '"righthand_box": [1, '))
    with pytest.raises(DataError, match=r"no annotation file of COCO-WholeBody \(ValueError"):
        open_photos(path)
    known = write_dexycb(tmp_path / "dex-ycb", known_hands(2, mano_hands[Handedness.RIGHT]), mano_hands)
    path, image = tmp_path / "dex-ycb" / "s0_val", tmp_path / "dex-ycb" / next(iter(known))
    labels = image.with_name("labels_000000.npz")
    np.savez(labels, **dict(np.load(labels)) | {"pose_m": np.zeros((1, 48))})
    with pytest.raises(DataError, match=r"labels_000000\.npz cannot be read \(cannot reshape array of size 48"):
        open_photos(path)
    (image.parent.parent / "meta.yml").write_text("num_frames: 1")
    with pytest.raises(DataError, match=r"meta\.yml or its mano\.yml is not DexYCB's \(KeyError: 'mano_calib'\)"):
        open_photos(path)
    shutil.rmtree(tmp_path / "dex-ycb" / "calibration")
    with pytest.raises(DataError, match=r"There is no .*mano\.yml|not DexYCB's"):
        open_photos(path)
