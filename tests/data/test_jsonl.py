"""Custom data: any subset of labels, every mistake named with its line; and mixtures of sources."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from handmesh.config.augmentation import PhotoAugmentation
from handmesh.config.data import PhotoData
from handmesh.config.load import parse_config
from handmesh.config.train import TrainConfig
from handmesh.data.augment import changed_photo, occluded
from handmesh.data.check import check
from handmesh.data.crops import BOX, FRAME, crop_sample
from handmesh.data.formats.jsonl import MAX_LINE_BYTES, JsonlData
from handmesh.data.show import show
from handmesh.data.sources import PhotoSource, files_sha256, photo_source
from handmesh.data.stream import BLOCK, Mixture, TrainingStream, training_batches
from handmesh.errors import ConfigError, DataError
from handmesh.hand import JOINT_NAMES, Handedness, builtin_hand
from handmesh.hand.definitions import mano_joints
from handmesh.hand.layer import HandModel
from handmesh.synth.dataset import write_dataset

COUNT = 5
LEFT = {"handedness": "left"}
K = [[200.0, 0, 60], [0, 201, 40], [0, 0, 1]]
KEYPOINTS = np.random.default_rng(0).uniform(20, 60, (21, 2)).tolist()
JOINTS = np.random.default_rng(1).uniform(0.3, 0.4, (21, 3)).tolist()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    """What `handmesh synth --out` writes."""
    folder = tmp_path_factory.mktemp("synth") / "hands"
    write_dataset(folder, COUNT, seed=0, size=96, background_count=2)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A photograph, 120 x 80 px, for lines to name."""
    gradient = np.linspace(0, 255, 120 * 80 * 3).reshape(80, 120, 3).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), gradient)
    cv2.imwrite(str(tmp_path / "small.png"), gradient[:10, :20])
    return tmp_path


def written(folder: Path, *records: Any) -> JsonlData:
    lines = [record if isinstance(record, str) else json.dumps({"image": "photo.png", **record}) for record in records]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return JsonlData(folder)


def test_what_synth_writes_is_read(synthetic):
    data = JsonlData(synthetic)
    assert len(data) == COUNT
    model = HandModel(builtin_hand()).double()
    for sample in data:
        labels = sample.labels
        assert sample.image.shape == (96, 96, 3)
        assert labels.handedness == Handedness.RIGHT
        np.testing.assert_allclose(labels.intrinsics.project(labels.hand.joints), labels.hand.keypoints, atol=0.01)
        _, joints = model(torch.tensor(labels.hand.pose), torch.tensor(labels.hand.betas))
        shift = labels.hand.joints - joints.numpy()
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-5)
        cropped = crop_sample(sample, BOX.crop(sample), 64)
        assert cropped.labels.pose_known
        assert not cropped.labels.vertices_known, "its vertices follow from pose and betas, and are not written"
    assert len(pickle.loads(pickle.dumps(data))) == COUNT


@pytest.mark.parametrize(
    ("record", "known"),
    [
        ({}, set()),
        ({"box": [1, 2, 30, 40]}, {"box"}),
        ({"keypoints": KEYPOINTS, "joints": None}, {"keypoints"}),
        ({"intrinsics": K, "joints": JOINTS}, {"intrinsics", "joints"}),
        ({"vertices": np.ones((778, 3)).tolist()}, {"vertices"}),
        ({"pose": np.zeros((16, 3)).tolist(), "betas": [0.0] * 10}, {"pose", "betas"}),
        ({"facts": {"camera": "phone"}, "mask": "mask.png"}, set()),
    ],
)
def test_any_subset_of_labels_will_do(record, known, folder):
    sample = written(folder, record)[0]
    labels = sample.labels
    found = {name for name in ("box", "intrinsics") if getattr(labels, name) is not None}
    names = ("keypoints", "joints", "vertices", "pose", "betas")
    assert found | {name for name in names if getattr(labels.hand, f"{name}_known").any()} == known
    cropped = crop_sample(sample, FRAME.crop(sample), 32)
    for name in ("joints", "vertices", "pose", "betas"):
        assert getattr(cropped.labels, f"{name}_known") == (name in known)
    assert cropped.labels.keypoints_known.all() == ("keypoints" in known or {"joints", "intrinsics"} <= known)


def test_keypoints_may_be_hidden_or_unknown(folder):
    keypoints: list[Any] = [[*point, 1] for point in KEYPOINTS]
    keypoints[3] = None
    keypoints[4] = [7.0, 7.0, 0]
    keypoints[5] = keypoints[5][:2]
    labels = written(folder, {"keypoints": keypoints})[0].labels
    assert np.flatnonzero(~labels.hand.keypoints_known).tolist() == [3, 4]
    points, known = labels.keypoints_or_projection()
    assert np.flatnonzero(~known).tolist() == [3, 4]
    np.testing.assert_array_equal(points[known], np.delete(KEYPOINTS, [3, 4], axis=0))

    # Where the joints and the camera are known, so are the hidden keypoints.
    labels = written(folder, {"keypoints": keypoints, "joints": JOINTS, "intrinsics": K})[0].labels
    points, known = labels.keypoints_or_projection()
    assert known.all()
    np.testing.assert_array_equal(np.delete(points, [3, 4], axis=0), np.delete(KEYPOINTS, [3, 4], axis=0))
    x, y, z = JOINTS[3]
    np.testing.assert_allclose(points[3], [200 * x / z + 60, 201 * y / z + 40])


def test_rotation_vectors_are_rotations(folder):
    vectors = np.random.default_rng(0).normal(0, 0.7, (16, 3))
    expected = np.stack([cv2.Rodrigues(vector)[0] for vector in vectors])
    data = written(folder, {"pose": vectors.tolist()}, {"pose": vectors.ravel().tolist()}, {"pose": expected.tolist()})
    for sample in data:
        np.testing.assert_allclose(sample.labels.hand.pose, expected, atol=1e-12)


def test_left_hands_arrive_mirrored(folder):
    sample = written(folder, {"handedness": "left", "keypoints": KEYPOINTS})[0]
    crop = FRAME.crop(sample)
    assert crop.mirror
    cropped = crop_sample(sample, crop, 120)
    flipped = np.array([119.0, 0]) + np.array([-1, 1]) * np.array(KEYPOINTS)  # in the mirror image, 120 px wide
    expected = (flipped + [0, 20] + 0.5) / 60 - 1  # the photograph lies in the middle of a square of 120 px
    np.testing.assert_allclose(cropped.labels.keypoints, expected, atol=1e-6)
    np.testing.assert_allclose(cropped.image[20:100].astype(int), sample.image[:, ::-1].astype(int), atol=1)
    assert (cropped.image[:20] == 0).all()


def test_blank_lines_count_in_messages_and_nowhere_else(folder):
    data = written(folder, {}, "", "  ", {"betas": [1.0]})
    assert len(data) == 2
    with pytest.raises(DataError, match=r"labels\.jsonl:4: 'betas' is \(1,\) numbers, wanted 10"):
        data[1]


NOT_ROTATIONS = (2 * np.broadcast_to(np.eye(3), (16, 3, 3))).tolist()
REFLECTIONS = (-np.broadcast_to(np.eye(3), (16, 3, 3))).tolist()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1, 2]", "holds a list"),
        ('{"image": 3}', "'image' is 3"),
        ("{}", "'image' is None"),
        ({"keypoint": []}, "'keypoint' is no label; did you mean 'keypoints'"),
        ({"camera": 1}, "'camera' is no label; known are image, handedness"),
        ({"handedness": "Left"}, "'handedness' is 'Left', wanted \"right\" or \"left\""),
        ({"box": [1, 2, 3]}, r"'box' is \(3,\) numbers"),
        ({"box": [30, 2, 3, 40]}, "'box' .* is empty"),
        ({"box": "all"}, "'box' is 'all'"),
        ({"intrinsics": [[1, 2, 3]] * 3}, "'intrinsics'"),
        ({"keypoints": KEYPOINTS[:20]}, "'keypoints'"),
        ({"keypoints": {"wrist": [1, 2]}}, "'keypoints' is {'wrist'"),
        ({"keypoints": [[1, 2, 3, 4]] * 21}, "'keypoints'"),
        ({"keypoints": [[1, "a"]] * 21}, "'keypoints'"),
        ({"joints": JOINTS[:16]}, r"'joints' is \(16, 3\) numbers"),
        ({"joints": [[float("nan")] * 3] * 21}, "all finite"),
        ({"joints": [[100.0, 200, 700]] * 21}, "Are they millimetres"),
        ({"vertices": [[1, 2]]}, "'vertices'"),
        ({"pose": NOT_ROTATIONS}, "no rotations"),
        ({"pose": REFLECTIONS}, "a reflection"),
        ({"betas": [[0.0] * 10]}, "'betas'"),
        ({"alpha": ["photo.png"]}, r"'alpha' is \['photo.png'\], wanted the path"),
    ],
)
def test_mistakes_are_named_with_their_line(record, message, folder):
    data = written(folder, {}, record)
    with pytest.raises(DataError, match=message) as caught:
        data[1]
    assert f"{folder / 'labels.jsonl'}:2" in str(caught.value)
    data[0]


@pytest.mark.parametrize(
    ("alpha", "message"),
    [("gone.png", r"gone\.png"), ("small.png", "'alpha' has 20 x 10 px, wanted the image's 120 x 80")],
)
def test_an_alpha_is_read_only_where_the_background_changes(alpha, message, folder):
    """Its mistakes are named with their line, or it is left out and said to be, as the run wishes."""
    data = written(folder, {"alpha": alpha})
    settings = PhotoAugmentation(rotation=0.0, scale=0.0, channel_gain=0.0, background_prob=1.0)
    source = PhotoSource("cut", data, FRAME, augmentation=settings)
    with pytest.raises(DataError, match=message) as caught:
        source.example(0, np.random.default_rng(0), 64)
    assert f"{folder / 'labels.jsonl'}:1" in str(caught.value)
    same = source.sample(0, 64)
    unchanged = replace(source, augmentation=settings.model_copy(update={"background_prob": 0.0}))
    np.testing.assert_array_equal(unchanged.example(0, np.random.default_rng(0), 64).image, same.image)
    lenient = replace(source, skip_bad_images=True)
    np.testing.assert_array_equal(lenient.example(0, np.random.default_rng(0), 64).image, same.image)
    assert [str(caught.value)] == lenient.take_skipped()


def test_images_that_cannot_be_read_are_named_with_their_line(folder):
    (folder / "text.jpg").write_text("not a picture")
    for name in ("none.jpg", "text.jpg"):
        with pytest.raises(DataError, match=r"labels\.jsonl:1: .*" + name.replace(".", r"\.")):
            written(folder, {"image": name})[0]


def test_files_that_are_no_jsonl_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no"):
        JsonlData(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        JsonlData(empty)
    long = tmp_path / "long.jsonl"
    long.write_text("[" + "1," * MAX_LINE_BYTES)
    with pytest.raises(DataError, match="one large JSON list"):
        JsonlData(long)


# ------------------------------------------------------------------ check and show


def test_a_sound_file_passes(synthetic):
    rows = check(synthetic)
    assert all(row.passed is not False for row in rows)
    assert check(synthetic / "labels.jsonl") == rows
    labels = next(row for row in rows if row.subject == "labels")
    assert f"keypoints {COUNT}" in labels.found


def test_what_is_wrong_is_listed(folder):
    off_image = [[500.0 + 3 * joint, 500.0] for joint in range(21)]
    written(folder, {"box": [1, 2, 3]}, {"image": "none.png"}, {"keypoints": off_image}, {"keypoint": 1}, LEFT)
    rows = {row.subject: row for row in check(folder)}
    assert rows["samples"].passed is False
    assert "2 of 5 are not" in rows["samples"].found
    assert "labels.jsonl:1" in rows["samples"].found
    assert "did you mean 'keypoints'" in rows["samples"].found
    decoded = rows["3 images decoded, 5 looked for"]
    assert decoded.passed is False
    assert "labels.jsonl:2" in decoded.found
    assert rows["known keypoints in the image"].passed is False
    assert "1 left hands of 5" in rows["labels"].found


@pytest.mark.parametrize(
    ("alpha", "row"), [("small.png", "samples"), ("gone.png", "2 images decoded, 2 looked for"), ("photo.png", None)]
)
def test_alphas_are_checked_with_their_photographs(alpha, row, folder):
    written(folder, {"alpha": "photo.png"}, {"alpha": alpha})
    failed = {row.subject: row.found for row in check(folder) if row.passed is False}
    assert list(failed) == ([] if row is None else [row])
    assert row is None or "labels.jsonl:2" in failed[row]


def test_boxes_that_no_hand_of_the_photo_can_be_in_are_listed(folder):
    """A box of a million pixels passed, and its crop took gigabytes."""
    written(folder, {"box": [10, 10, 70, 60]}, {"box": [-1e6, -1e6, 1e6, 1e6]}, {"box": [5000, 20, 5100, 90]})
    lines = next(row for row in check(folder) if row.subject == "samples")
    assert lines.passed is False
    assert "2 of 3 are not" in lines.found
    assert "larger than anything of the photo" in lines.found


def test_a_crop_around_such_a_box_is_never_made(folder):
    """In training and scoring: it took gigabytes, or ended in cv2.error."""
    (sample,) = written(folder, {"box": [-1e7, -1e7, 1e7, 1e7]})
    with pytest.raises(DataError, match=r"photo\.png: its box .*larger than anything of the photo"):
        BOX.crop(sample)


def test_crops_around_the_hand_need_a_box_or_keypoints_on_each_line(folder):
    """Either will do: half the lines with boxes and half with keypoints were no verdict."""
    box, points, camera = {"box": [10, 10, 70, 60]}, {"keypoints": KEYPOINTS}, {"joints": JOINTS, "intrinsics": K}
    for lines, verdict in (((box, points, camera), True), ((box, {}), None)):
        rows = {row.subject: row for row in check(written(folder, *lines).path)}
        assert rows["a box or keypoints"].passed is verdict
    assert "on 1 of 2" in rows["a box or keypoints"].found


def test_keypoints_in_one_line_make_no_box(folder):
    """Two of them in one column of pixels were said to make one, and the run ended when it came to that photograph."""
    line = {"keypoints": [[40, 20 + joint, int(joint in (3, 9))] for joint in range(21)]}
    data = written(folder, {"box": [10, 10, 70, 60]}, line)
    rows = {row.subject: row for row in check(data.path)}
    assert "on 1 of 2" in rows["a box or keypoints"].found
    with pytest.raises(DataError, match=r"labels\.jsonl:2 has no box, and no keypoints to make one from"):
        photo_source(PhotoData(path=data.path), 0, TrainConfig(), builtin_hand())
    with pytest.raises(DataError, match=r"photo\.png has no box, and no keypoints to make one from"):
        BOX.crop(data[1])
    assert show(data.path).shape[0] == 224, "the whole photograph"


def test_photographs_without_a_hand_need_no_box(folder):
    """One among a thousand, and `data check` said that crops around hands will not do, which a run makes."""
    data = written(folder, {"box": [10, 10, 70, 60]}, {"present": False}, {"present": False, "box": [10, 10, 70, 60]})
    rows = {row.subject: row for row in check(data.path)}
    assert rows["a box or keypoints"].passed
    assert rows["labels"].found == "box 2; 0 left hands of 1; 2 without a hand"


@pytest.mark.parametrize("with_camera", [False, True])
def test_3d_labels_behind_the_camera_fail_with_their_number_and_an_example(with_camera, folder):
    """Joints relative to the wrist, or in axes that look backwards, passed: nothing disagreed with unseen joints."""
    camera = {"intrinsics": K} if with_camera else {}
    backwards = {"joints": (np.array(JOINTS) * [1, -1, -1]).tolist(), **camera}
    one_vertex = np.array([[0.1, 0.1, 0.5]] * 777 + [[0.1, 0.1, 0.0]]).tolist()
    written(folder, {"joints": JOINTS, **camera}, backwards, {"vertices": one_vertex, "joints": JOINTS}, {})
    rows = {row.subject: row for row in check(folder)}
    assert rows["joints and vertices"].passed is False
    assert rows["joints and vertices"].found.startswith("2 of 3 are not, such as ")
    assert "labels.jsonl:2: 'joints' at -0." in rows["joints and vertices"].found

    written(folder, {"joints": JOINTS, **camera})
    assert {row.subject: row.passed for row in check(folder)}["joints and vertices"] is True


def test_joints_that_disagree_with_keypoints_are_noticed(folder):
    """A wrong camera, or keypoints in another order: each label alone would look fine."""
    written(folder, {"intrinsics": K, "joints": JOINTS, "keypoints": KEYPOINTS})
    rows = {row.subject: row for row in check(folder)}
    assert rows["joints seen by the camera, against keypoints"].passed is False


def test_a_photograph_is_held_out_with_all_its_hands(folder):
    """Lines were drawn one by one: one hand of a photograph was learnt, and the other was watched as if unseen."""
    for number in range(10):
        (folder / f"{number}.png").write_bytes((folder / "photo.png").read_bytes())
    box = [30, 20, 70, 60]
    data = written(folder, *({"image": f"{number}.png", "box": box} for number in range(10) for _ in range(2)))
    settings = PhotoData(path=data.path, validation=0.3)
    training, (watched,) = photo_source(settings, 0, TrainConfig(), builtin_hand())
    seen, unseen = ({data.image_path(int(index)).name for index in one.indices} for one in (training, watched))
    assert not seen & unseen
    assert (len(training), len(watched), len(unseen)) == (14, 6, 3)


def test_sheets_show_the_labels_in_the_crop(synthetic, folder):
    sheet = show(synthetic, 4, seed=0)
    assert sheet.shape == (224, 4 * 224, 3)
    written(folder, {}, {"handedness": "left", "box": [30, 20, 70, 60]})
    assert show(folder, 2).shape == (224, 2 * 224, 3), "without a box, the whole photograph"
    framed = show(folder, indices=[1], protocol="box")
    # The box's upper edge: 1.25 x 40 px across 224, so 4.48 times as large, 22.4 px from the tile's.
    assert (framed[21:25, 60:160].max(axis=0) > 200).all()
    with pytest.raises(DataError, match="has no 'evaluation' set: it is no FreiHAND"):
        show(folder, 2, split="evaluation")


# ------------------------------------------------------------------ mixtures


@pytest.mark.parametrize(
    ("counts", "weights"),
    [((10,), (1.0,)), ((7, 300, 40), (0.5, 0.3, 0.2)), ((1000, 3), (1.0, 1e-6)), ((5, 5), (2, 1))],
)
def test_shares_are_as_asked_and_every_source_is_walked_in_whole_epochs(counts, weights):
    mixture = Mixture(counts, weights, seed=3)
    drawn = [mixture[g] for g in range(2 * BLOCK)]
    shares = np.array(weights) / sum(weights)
    for source, count in enumerate(counts):
        visits = [index for chosen, index in drawn if chosen == source]
        assert abs(len(visits) / len(drawn) - shares[source]) <= 1.01 / BLOCK
        for start in range(0, len(visits) - count + 1, count):
            assert sorted(visits[start : start + count]) == list(range(count)), "each once per epoch"


def test_every_batch_is_spread_over_the_whole_set():
    """Neighbours in FreiHAND are neighbours in time: a batch must not come from one part of it.

    Of n random places the largest hole is over h mean spacings with a probability of about n * exp(-h): 1e-7 here. A
    walk in steps of one random length, as it was once, left a tenth of the set out in 2.6 % of all epochs.
    """
    count, batch = 12_800, 128
    mixture = Mixture([count], [1.0])
    for start in range(0, 20 * count, 5 * batch + 64):
        places = np.sort([mixture[g][1] for g in range(start, start + batch)])
        assert np.diff(places, append=places[0] + count).max() < 25 * count / batch


def test_an_example_depends_on_its_number_only():
    first, second = Mixture((50, 60), (1, 2), seed=1), Mixture((50, 60), (1, 2), seed=1)
    places = (3000, 5, 0, 1023, 1024)
    expected = {g: first[g] for g in range(3001)}
    assert [second[g] for g in places] == [expected[g] for g in places]
    other = Mixture((50, 60), (1, 2), seed=2)
    assert sum(other[g] == expected[g] for g in range(200)) < 100


def test_sources_are_spread_over_a_block_not_lined_up():
    mixture = Mixture((500, 500), (1, 1))
    counted = Counter(mixture[g][0] for g in range(64))
    assert min(counted[0], counted[1]) > 15


@pytest.mark.parametrize(
    ("counts", "weights"), [((), ()), ((5,), (1, 2)), ((5, 0), (1, 1)), ((5, 5), (1, 0)), ((5, 5), (1, float("nan")))]
)
def test_mixtures_that_make_no_sense_are_refused(counts, weights):
    with pytest.raises(ConfigError, match="mixture"):
        Mixture(counts, weights)


@pytest.fixture
def sources(synthetic, folder) -> list[PhotoSource]:
    """All labels, and next to none, some of left hands."""
    bare = written(folder, {"keypoints": KEYPOINTS}, {"handedness": "left", "box": [10, 10, 70, 60]})
    complete = PhotoSource("complete", JsonlData(synthetic), BOX, 3.0, indices=np.array([0, 2, 4]))
    return [complete, PhotoSource("bare", bare, FRAME)]


def stream_of(sources: list[PhotoSource], seed: int = 1) -> TrainingStream:
    return TrainingStream(sources, parse_config({"model": {"resolution": 64}, "seed": seed}, "test"))


def test_samples_of_all_sources_stack_into_one_batch(sources):
    stream = stream_of(sources)
    samples = [stream[g] for g in range(24)]
    labels = [sample.labels for sample in samples]
    for name, values in zip(labels[0]._fields, zip(*labels, strict=True), strict=True):
        assert np.stack(values).dtype == values[0].dtype, name
    share = np.mean([sample.labels.pose_known for sample in samples])
    assert 0.5 < share < 0.95, "three quarters come from the source that knows poses"


def test_a_stream_gives_the_same_bytes_in_any_order_and_any_process(sources):
    stream = stream_of(sources)
    expected = {g: stream[g] for g in range(6)}
    sent = pickle.loads(pickle.dumps(stream))
    for g in (5, 0, 3):
        np.testing.assert_array_equal(sent[g].image, expected[g].image)
        assert all(np.array_equal(a, b) for a, b in zip(sent[g].labels, expected[g].labels, strict=True))
    other = stream_of(sources, seed=2)
    assert not np.array_equal(other[0].image, expected[0].image)


def test_a_source_gives_only_its_own_part(sources):
    wanted = {tuple(sources[0].data[index].labels.hand.betas.astype(np.float32)) for index in (0, 2, 4)}
    stream = stream_of(sources[:1])
    assert {tuple(stream[g].labels.betas) for g in range(9)} == wanted
    still = [sources[0].sample(position, 64) for position in range(len(sources[0]))]
    assert [tuple(sample.labels.betas) in wanted for sample in still] == [True] * 3


def test_meshes_of_another_hand_are_left_out(sources):
    """Their joints and keypoints are as good as any."""
    theirs = replace(sources[0], same_hand=False)
    for sample in (theirs.sample(0, 64), theirs.example(0, np.random.default_rng(0), 64)):
        assert sample.labels.joints_known
        assert sample.labels.keypoints_known.all()
        labels = sample.labels
        assert not any((labels.vertices_known, labels.pose_known, labels.betas_known))
        assert not any((labels.vertices.any(), labels.betas.any()))


def test_labels_of_another_hand_are_known_from_their_record(synthetic, folder, stand_in_mano, monkeypatch, caplog):
    """A set that `handmesh synth` drew says whose hand it is; of others nothing is known but what the run trains."""
    settings, config = PhotoData(path=synthetic), TrainConfig()
    assert photo_source(settings, 0, config, builtin_hand())[0].same_hand
    assert not photo_source(settings, 0, config, stand_in_mano)[0].same_hand
    assert "are those of the hand builtin" in caplog.text
    assert "moved" not in caplog.text
    unnamed = written(folder, {"betas": [0.0] * 10, "box": [10, 10, 70, 60]})
    assert photo_source(PhotoData(path=unnamed.path), 0, config, stand_in_mano)[0].same_hand
    assert not photo_source(PhotoData(path=unnamed.path), 0, config, builtin_hand())[0].mano_joints
    of_mano = write_dataset(folder / "of_mano", 1, seed=0, size=96, background_count=2, hand=stand_in_mano)
    assert photo_source(PhotoData(path=of_mano), 0, config, builtin_hand())[0].mano_joints
    assert not photo_source(PhotoData(path=of_mano), 0, config, stand_in_mano)[0].mano_joints
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(folder / "none"))
    assert photo_source(PhotoData(path=of_mano), 0, config, builtin_hand())[0].mano_joints, "without MANO, too"


def test_keypoints_of_mano_are_brought_to_ours_where_all_that_is_needed_is_known(folder):
    """In the crop that the given ones make. Of a photograph without a hand there are none."""
    keypoints: list[Any] = mano_joints(KEYPOINTS).tolist()
    keypoints[JOINT_NAMES.index("ring_pip")] = None
    data = written(folder, {"keypoints": keypoints, **LEFT}, {"present": False, "box": [40, 20, 60, 50]})
    source = PhotoSource("photos", data, BOX, mano_joints=True)
    sample = source.sample(0, 64)
    unknown = {JOINT_NAMES[joint] for joint in np.flatnonzero(~sample.labels.keypoints_known)}
    assert unknown == {"ring_mcp", "ring_pip", "ring_dip"}
    known = sample.labels.keypoints_known
    expected = BOX.crop(data[0]).to_ndc(np.array(KEYPOINTS)[known])
    np.testing.assert_allclose(sample.labels.keypoints[known], expected, atol=1e-6)
    assert not sample.labels.keypoints[~known].any()
    np.testing.assert_array_equal(sample.image, replace(source, mano_joints=False).sample(0, 64).image)
    assert not source.example(1, np.random.default_rng(0), 64).labels.keypoints_known.any()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_training_is_one_clear_error(workers, folder):
    """From a worker process came the text of a traceback."""
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    data = written(folder, {"box": [10, 10, 70, 60], "image": "broken.png"})
    config = parse_config({"model": {"resolution": 64}, "batch_size": 2, "loader_workers": workers}, "test")
    with pytest.raises(DataError, match=r"labels\.jsonl:1: ") as caught:
        next(training_batches([PhotoSource("photos", data, BOX)], config, 0))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "crop", "message"),
    [
        ({}, "box", "jsonl:2 has no box, and no keypoints"),
        ({"image": "lost.png"}, "frame", "jsonl:2: there is no image .*lost.png"),
        ({"alpha": "lost.png"}, "frame", "jsonl:2: there is no image .*lost.png"),
        ({"alpha": 1}, "frame", "'alpha' is 1, wanted the path"),
        ({"keypoint": KEYPOINTS}, "frame", "did you mean 'keypoints'"),
    ],
)
def test_lines_that_a_run_would_stumble_over_are_named_before_it(line, crop, message, folder):
    data = written(folder, {"keypoints": KEYPOINTS}, line)
    with pytest.raises(DataError, match=message):
        photo_source(PhotoData(path=data.path, crop=crop), 0, TrainConfig(), builtin_hand())


def test_gains_change_colours_and_no_label(sources):
    colorful = PhotoAugmentation(rotation=0.0, scale=0.0, channel_gain=0.4)
    source = PhotoSource("still", sources[0].data, BOX, augmentation=colorful)
    ratios = []
    for seed in range(12):
        before, after = source.sample(seed % COUNT, 64), source.example(seed % COUNT, np.random.default_rng(seed), 64)
        for name in ("keypoints", "pose", "joints"):
            np.testing.assert_array_equal(getattr(after.labels, name), getattr(before.labels, name))
        middling = (before.image > 40) & (before.image < 160)
        for channel in range(3):
            chosen = middling[..., channel]
            if chosen.sum() > 20:
                gains = after.image[..., channel][chosen] / before.image[..., channel][chosen].astype(float)
                assert gains.std() < 0.02, "one gain for a whole channel"
                ratios.append(gains.mean())
    assert 0.59 < min(ratios) < 0.8
    assert 1.2 < max(ratios) < 1.41


def test_what_lies_in_front_leaves_most_of_the_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    before = image.copy()
    shares = []
    for seed in range(60):
        covered = occluded(np.random.default_rng(seed), image)
        shares.append((covered != image).any(axis=-1).mean())
    np.testing.assert_array_equal(image, before)
    assert 0.02 < np.mean(shares) < 0.25
    assert max(shares) < 0.5
    assert np.std(shares) > 0.01


def test_photos_change_as_often_as_asked_and_not_at_all_when_nothing_is_asked():
    image = np.full((64, 64, 3), 100, np.uint8)
    image[20:40, 20:40] = 200
    rng = np.random.default_rng(0)
    nothing = PhotoAugmentation(channel_gain=0.0)
    np.testing.assert_array_equal(changed_photo(rng, image, nothing), image)
    sometimes = PhotoAugmentation(channel_gain=0.0, occlusion=0.3)
    changed = [(changed_photo(rng, image, sometimes) != image).any() for _ in range(300)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.08)
    worse = [changed_photo(rng, image, PhotoAugmentation(channel_gain=0.0, effects=1.0)) for _ in range(40)]
    assert all(picture.shape == image.shape and picture.dtype == np.uint8 for picture in worse)
    assert np.mean([(picture != image).any() for picture in worse]) > 0.9


def test_a_hand_seen_in_a_mirror_has_the_other_side_and_its_keypoints_alone(sources):
    """The same pixels turned over; where a joint is drawn, the mirrored image shows it."""
    still = {"rotation": 0.0, "scale": 0.0, "channel_gain": 0.0}
    data = sources[0].data
    always = PhotoSource("mirrored", data, BOX, augmentation=PhotoAugmentation(**still, mirrored=1.0))
    for position in range(COUNT):
        plain, seen = always.sample(position, 64), always.example(position, np.random.default_rng(0), 64)
        np.testing.assert_allclose(seen.image[:, ::-1].astype(int), plain.image, atol=1)
        np.testing.assert_allclose(seen.labels.keypoints * (-1, 1), plain.labels.keypoints, atol=1e-5)
        assert plain.labels.right
        assert not seen.labels.right
        assert seen.labels.present
        assert not any(getattr(seen.labels, f"{name}_known") for name in ("pose", "betas", "joints", "vertices"))


@pytest.mark.parametrize("mirrored", [0.0, 0.3])
def test_sides_of_photographs_are_learnt_as_often_as_asked(mirrored, folder):
    """A left hand is mirrored on the way in, so in a mirror it is one that was not: half of either looks the same."""
    data = written(folder, {"keypoints": KEYPOINTS}, {"keypoints": KEYPOINTS, **LEFT})
    source = PhotoSource("sides", data, BOX, augmentation=PhotoAugmentation(mirrored=mirrored))
    right = [source.example(g % 2, np.random.default_rng(g), 64).labels.right for g in range(400)]
    assert np.mean(right) == pytest.approx(1 - mirrored, abs=0.06)


@pytest.mark.parametrize(("share", "noise"), [(1.0, 0.0), (0.5, 0.2)])
def test_photographs_are_turned_so_that_the_hand_points_up_as_often_as_asked(sources, share, noise):
    settings = PhotoAugmentation(rotation=0.0, scale=0.0, channel_gain=0.0, upright_prob=share, upright_noise=noise)
    source = PhotoSource("upright", sources[0].data, BOX, augmentation=settings)
    turns = []
    for g in range(60):
        position = g % COUNT
        plain = source.sample(position, 64).labels.keypoints
        seen = source.example(position, np.random.default_rng(g), 64).labels.keypoints
        if np.allclose(plain, seen, atol=1e-6):
            continue
        dx, dy = seen[9] - seen[0]  # wrist to middle knuckle
        turns.append(math.atan2(dx, -dy))
    assert len(turns) / 60 == pytest.approx(share, abs=0.15)
    assert np.mean(turns) == pytest.approx(0, abs=0.08)
    assert np.std(turns) == pytest.approx(noise, abs=0.08)


def test_small_photographs_are_soft_and_their_labels_unchanged(sources):
    settings = PhotoAugmentation(
        rotation=0.0, scale=0.0, channel_gain=0.0, downscale_prob=1.0, downscale_px=(16.0, 24.0)
    )
    source = PhotoSource("small", sources[0].data, BOX, augmentation=settings)
    details = []
    for position in range(COUNT):
        sharp, soft = source.sample(position, 96), source.example(position, np.random.default_rng(position), 96)
        assert soft.image.shape == sharp.image.shape
        for name in ("keypoints", "pose", "joints", "keypoints_known"):
            np.testing.assert_array_equal(getattr(soft.labels, name), getattr(sharp.labels, name))
        details.append([np.abs(cv2.Laplacian(image, cv2.CV_64F)).mean() for image in (sharp.image, soft.image)])
        assert details[-1][1] < 0.9 * details[-1][0], "one that was soft before is hardly softer"
        # The same picture in the same place: what a quarter of the pixels can tell is the same.
        coarse = [
            cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).astype(float) for image in (sharp.image, soft.image)
        ]
        assert np.abs(coarse[0] - coarse[1]).mean() < 8
    before, after = np.sum(details, axis=0)
    assert after < 0.6 * before


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hands_that_were_cut_out_are_put_on_other_backgrounds_as_often_as_asked(share, folder):
    """Of the photograph nothing is left but what alpha covers: here its left half."""
    alpha = np.zeros((80, 120), np.uint8)
    alpha[:, :60] = 255
    cv2.imwrite(str(folder / "alpha.png"), alpha)
    settings = PhotoAugmentation(rotation=0.0, scale=0.0, channel_gain=0.0, background_prob=share)
    source = PhotoSource("cut", written(folder, {"alpha": "alpha.png"}), FRAME, augmentation=settings)
    assert {path.name for path in source.files()} == {"labels.jsonl", "photo.png", "alpha.png"}
    same = source.sample(0, 120).image.astype(int)
    changed = 0
    for number in range(40):
        image = source.example(0, np.random.default_rng(number), 120).image.astype(int)
        different = np.abs(image - same).mean(axis=-1) > 40
        changed += different[:, 70:].mean() > 0.2
        assert different[20:100, :50].mean() < 0.05
    assert changed == pytest.approx(40 * share, abs=10 if 0 < share < 1 else 4)


def test_wide_crops_show_the_hand_smaller_by_the_factors_asked_for(folder):
    data = written(folder, {"keypoints": KEYPOINTS})
    settings = PhotoAugmentation(
        rotation=0.0, scale=0.0, channel_gain=0.0, context_scale_prob=0.4, context_scale=(1.5, 3.0)
    )
    source = PhotoSource("wide", data, BOX, augmentation=settings)
    usual = np.ptp(source.sample(0, 64).labels.keypoints, axis=0).max()
    factors = [
        float(usual / np.ptp(source.example(0, np.random.default_rng(g), 64).labels.keypoints, axis=0).max())
        for g in range(300)
    ]
    wide = np.array([factor for factor in factors if factor > 1.001])
    assert len(wide) / len(factors) == pytest.approx(0.4, abs=0.08)
    assert 1.5 <= wide.min() < 1.6
    assert 2.8 < wide.max() <= 3.0


@pytest.mark.parametrize("protocol", [BOX, FRAME])
def test_a_photograph_without_a_hand_is_an_example_of_that_and_of_nothing_else(protocol, folder):
    data = written(folder, {"present": False})
    source = PhotoSource(
        "empty",
        data,
        protocol,
        augmentation=PhotoAugmentation(mirrored=0.5, downscale_prob=0.5, context_scale_prob=0.5),
    )
    samples = [source.example(0, np.random.default_rng(g), 64) for g in range(20)] + [source.sample(0, 64)]
    for sample in samples:
        known = [getattr(sample.labels, name) for name in sample.labels._fields if name.endswith("_known")]
        assert not sample.labels.present
        assert not any(np.any(flag) for flag in known)
    assert len({sample.image.tobytes() for sample in samples}) == len(samples), "another part of it every time"
    photo_source(PhotoData(path=data.path), 0, TrainConfig(), builtin_hand())  # needs no box


def test_what_was_taken_for_a_hand_is_looked_at_as_a_hand_would_be(folder):
    source = PhotoSource("mistaken", written(folder, {"present": False, "box": [40, 20, 60, 50]}), BOX)
    image = np.zeros_like(source.data[0].image)
    image[20:50, 40:60] = 255
    samples = [
        replace(source, data=[replace(source.data[0], image=image)]).example(0, np.random.default_rng(seed), 64)
        for seed in range(20)
    ]
    for sample in samples:
        assert not sample.labels.present
        white = np.argwhere(sample.image.mean(axis=-1) > 127)
        extent = np.ptp(white, axis=0).max() / 64
        assert 1 / 2 < extent < 1, "the box is most of the crop, whichever way it is turned"
        assert np.abs(white.mean(axis=0) / 64 - 0.5).max() < 0.2
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"present": 0}, "'present' is 0, wanted false for"),
        ({"present": "no"}, "'present' is 'no'"),
        ({"present": False, "keypoints": KEYPOINTS}, "shows no hand .* but has keypoints"),
    ],
)
def test_whether_there_is_a_hand_is_said_clearly(record, message, folder):
    with pytest.raises(DataError, match=message):
        written(folder, record).labels(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downscale_px": [40, 20]}, "downscale_px is"),
        ({"downscale_px": [4, 20]}, "8 pixels"),
        ({"context_scale": [0, 2]}, "context_scale"),
    ],
)
def test_ranges_of_photographs_changes_are_checked(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"photo_augmentation": change}, "test")


# ------------------------------------------------------------------ photographs that cannot be read


@pytest.fixture
def torn(folder) -> JsonlData:
    """Six photographs, two of which were cut in half while they were copied."""
    rng = np.random.default_rng(0)
    for number in range(6):
        picture = cv2.resize(rng.integers(0, 256, (10, 10, 3), np.uint8), (120, 80))
        (folder / f"{number}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    for number in (1, 4):
        whole = (folder / f"{number}.jpg").read_bytes()
        (folder / f"{number}.jpg").write_bytes(whole[: len(whole) // 2])
    return written(folder, *({"image": f"{number}.jpg", "keypoints": KEYPOINTS} for number in range(6)))


def run_of(data: JsonlData, **settings: Any) -> TrainConfig:
    tree = {"photos": [{"path": str(data.path), "crop": "frame"}], **settings}
    small = {"model": {"resolution": 64}, "batch_size": 4, "steps": 6, "loader_workers": 0}
    return parse_config({"data": tree, **small}, "test")


def test_a_check_decodes_what_it_says_it_decodes(torn):
    """It once opened headers alone, which a file cut in half still has: "16 images opened ... all 16 sound"."""
    rows = {row.subject: row for row in check(torn.path, None)}
    decoded = rows["6 images decoded, 6 looked for"]
    assert decoded.passed is False
    assert decoded.found.startswith("2 of 6 are not")
    assert "1.jpg is a damaged or truncated JPEG" in decoded.found
    assert check(torn.path, 2)[2].passed, "the first and the last are whole"
    (torn.path.parent / "2.jpg").unlink()
    assert "No image at" in check(torn.path, 2)[2].found, "all are looked for"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_without_bad_images_if_it_is_told_to(torn, workers, caplog):
    """One of them once ended a run hours in, and again at every --resume. They are counted, and named at the end."""
    config = run_of(torn, skip_bad_images=True).model_copy(update={"loader_workers": workers})
    source, _ = photo_source(config.data.photos[0], 0, config, builtin_hand())
    batches = list(training_batches([source], config, 0))
    assert len(batches) == 6
    assert "2 images could not be read and were skipped: " in caplog.messages[-1]
    for number in (1, 4):
        assert f"{torn.path}:{number + 1}: " in caplog.messages[-1]
        assert sum(f"{number}.jpg" in message for message in caplog.messages) == 2, "when it is met, and at the end"
    later = list(training_batches([source], config, 3))  # as --resume goes on
    for whole, resumed in zip(batches[3:], later, strict=True):
        assert torch.equal(whole.image, resumed.image)

    before = files_sha256(source.files())
    (torn.path.parent / "2.jpg").unlink()  # since it began
    assert len(list(training_batches([source], config, 0))) == 6
    assert files_sha256(source.files()) != before, "a run that begins now ended in a traceback"


def test_bad_images_end_a_run_that_is_not_told_so(torn):
    config = run_of(torn)
    source, _ = photo_source(config.data.photos[0], 0, config, builtin_hand())
    with pytest.raises(DataError, match=r"labels\.jsonl:[25]: .*truncated"):
        list(training_batches([source], config, 0))


def test_a_folder_that_is_gone_is_not_skipped(torn):
    config = run_of(torn, skip_bad_images=True)
    source, _ = photo_source(config.data.photos[0], 0, config, builtin_hand())
    for number in range(6):
        (torn.path.parent / f"{number}.jpg").unlink()
    with pytest.raises(DataError, match="photos0: of 6 photographs, 6 in a row cannot be read"):
        source.example(0, np.random.default_rng(0), 64)


# MediaPipe's landmarks: x and y over the picture's sides, z about the wrist's depth.
NORMALISED = np.random.default_rng(2).uniform(0.2, 0.8, (21, 2))


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (NORMALISED.tolist(), r"'keypoints' all lie within 2 pixels. Are they normalised, as MediaPipe"),
        (np.column_stack([NORMALISED, np.linspace(-0.1, 0, 21)]).tolist(), "normalised"),
        (np.column_stack([100 * NORMALISED, np.linspace(-0.1, 0, 21)]).tolist(), r"third numbers below 0.*z\? Leave"),
    ],
)
def test_keypoints_as_mediapipe_gives_them_are_refused_with_the_reason(keypoints, message, folder):
    """They once passed: 21 points within a pixel, and the wrist's depth of 0 read as "not visible"."""
    with pytest.raises(DataError, match=message):
        written(folder, {"keypoints": keypoints}).labels(0)
    assert check(folder)[0].passed is False
