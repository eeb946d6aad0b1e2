"""Labels for photographs: right where the keypoints are right, and none where they are not."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from handmesh import metrics
from handmesh.cli import app
from handmesh.config.scenes import CameraEffects, TrainingScenes
from handmesh.data.check import check
from handmesh.data.formats.jsonl import JsonlData
from handmesh.files.image import encode_image
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import JOINT_NAMES, Handedness, builtin_hand
from handmesh.hand.definitions import mano_joints
from handmesh.label import FREIHAND, MEDIAPIPE, OWN, SeenHand, keypoint_definition, label_hands, seen_twice
from handmesh.predict import load_predictor
from handmesh.synth import Backgrounds
from handmesh.synth.scene import SceneRenderer

SIZE = 200  # px
COUNT = 12


class Drawn:
    """Renders on disk, and what is true of them."""

    def __init__(self, folder: Path) -> None:
        settings = TrainingScenes(effects=CameraEffects.none(), occluder=0, second_hand=0, object=0)
        renderer = SceneRenderer(builtin_hand(), settings, SIZE, backgrounds=Backgrounds(count=4))
        self.samples = [renderer.render(np.random.default_rng((5, index))) for index in range(COUNT)]
        self.paths = []
        for index, sample in enumerate(self.samples):
            self.paths.append(folder / f"{index}.png")
            self.paths[-1].write_bytes(encode_image(sample.image, ".png"))
            (folder / f"mirrored_{index}.png").write_bytes(
                encode_image(np.ascontiguousarray(sample.image[:, ::-1]), ".png")
            )

    def seen(self, index: int) -> SeenHand:
        return SeenHand(self.samples[index].keypoints.astype(float), Handedness.RIGHT)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def predictor():
    return load_predictor(threads=1)


def joints_of(record: dict, side: Handedness = Handedness.RIGHT) -> np.ndarray:
    pose = matrix_from_vector(np.array(record["pose"]))
    return builtin_hand(side).shaped(record["betas"]).posed(pose).joints


def test_exact_keypoints_give_labels_nearer_than_the_network(drawn, predictor):
    """In 3D, too: that is what the fit is for."""
    labels = list(label_hands(((path, drawn.seen(i)) for i, path in enumerate(drawn.paths)), predictor))
    complete = [(i, label) for i, label in enumerate(labels) if label.record and not label.reason]
    assert len(complete) >= 0.7 * COUNT
    before, after = [], []
    for i, label in complete:
        truth = drawn.samples[i]
        given = np.array(label.record["keypoints"])[:, :2]
        np.testing.assert_allclose(given, truth.keypoints, atol=0.01)  # all count in full: they stay as they are
        before.append(1000 * metrics.pa_rigid_mean_error(truth.joints, label.prediction.joints))
        after.append(1000 * metrics.pa_rigid_mean_error(truth.joints, joints_of(label.record)))
    assert np.mean(after) < 0.75 * np.mean(before)
    assert np.mean(after) < 9


def test_the_mirrored_photograph_gets_the_mirrored_label(drawn, predictor):
    path = drawn.paths[0]
    seen = drawn.seen(0)
    mirrored = np.column_stack([SIZE - 1 - seen.keypoints[:, 0], seen.keypoints[:, 1]])
    hands = [(path, seen), (path.with_name("mirrored_0.png"), SeenHand(mirrored, Handedness.LEFT))]
    right, left = label_hands(hands, predictor)
    assert right.record is not None
    assert left.record is not None
    assert left.record["handedness"] == "left"
    flip = np.diag([-1.0, 1, 1])
    np.testing.assert_allclose(joints_of(left.record, Handedness.LEFT) @ flip, joints_of(right.record), atol=0.002)


def test_scrambled_keypoints_give_no_label(drawn, predictor):
    shuffled = drawn.seen(0).keypoints[np.random.default_rng(0).permutation(21)]
    (label,) = label_hands([(drawn.paths[0], SeenHand(shuffled, Handedness.RIGHT))], predictor)
    assert label.record is None
    assert "no hand fits" in label.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda seen: seen._replace(keypoints=np.full((21, 2), np.nan)), "0 keypoints are known"),
        (lambda seen: seen._replace(keypoints=seen.keypoints * 0.05), "px, labels need"),
        (
            lambda seen: seen._replace(keypoints=seen.keypoints + np.array([SIZE, 0])),
            "0 of its 21 keypoints are in the picture",
        ),
        (lambda seen: seen._replace(keypoints=seen.keypoints * 1e9), "are in the picture"),
        (lambda seen: seen._replace(keypoints=np.vstack([seen.keypoints[:20], [[1e12, 0]]])), "times the picture"),
        (lambda seen: seen._replace(disagreement=0.2), "0.200 of its box elsewhere"),
        (lambda seen: seen._replace(disagreement=np.inf), "not seen"),
    ],
)
def test_what_cannot_be_labelled_is_left_out_with_the_reason(drawn, predictor, change, reason):
    labels = list(label_hands([(drawn.paths[0], change(drawn.seen(0))), (drawn.paths[1], drawn.seen(1))], predictor))
    assert labels[0].record is None
    assert reason in labels[0].reason
    assert labels[1].record is not None  # the others go on


def test_a_photograph_that_cannot_be_read_is_left_out(drawn, predictor, tmp_path):
    (tmp_path / "torn.png").write_bytes(drawn.paths[0].read_bytes()[:300])
    (label,) = label_hands([(tmp_path / "torn.png", drawn.seen(0))], predictor)
    assert label.record is None
    assert "torn.png" in label.reason


def test_keypoints_that_lack_are_filled_in_by_the_fit(drawn, predictor):
    keypoints = drawn.seen(2).keypoints.copy()
    keypoints[[3, 8]] = np.nan
    (label,) = label_hands([(drawn.paths[2], SeenHand(keypoints, Handedness.RIGHT))], predictor)
    assert label.record is not None
    filled = np.array([[np.nan] * 3 if point is None else point for point in label.record["keypoints"]])[[3, 8], :2]
    truth = drawn.samples[2].keypoints
    assert np.linalg.norm(filled - truth[[3, 8]], axis=1).max() < 0.1 * np.ptp(truth, axis=0).max()


def test_mediapipes_tips_lie_further_in_and_its_wrist_elsewhere():
    line = np.column_stack([np.arange(21.0), np.zeros(21)])
    moved = MEDIAPIPE.apply(line)
    tips = [index for index, name in enumerate(JOINT_NAMES) if name.endswith("_tip")]
    np.testing.assert_allclose(moved[tips, 0], line[tips, 0] + 0.22)  # along the last bone, which is 1 long
    others = [index for index in range(1, 21) if index not in tips]
    np.testing.assert_array_equal(moved[others], line[others])
    np.testing.assert_allclose(moved[0], [-0.9, 0])  # away from the middle finger's knuckle, 9 away
    assert MEDIAPIPE.weights[JOINT_NAMES.index("wrist")] < 0.5
    assert MEDIAPIPE.weights[JOINT_NAMES.index("index_pip")] == 1
    np.testing.assert_array_equal(OWN.weights, np.ones(21))


@pytest.mark.parametrize("definition", [OWN, MEDIAPIPE])
@pytest.mark.parametrize("name", ["middle_mcp", "ring_dip"])
def test_a_keypoint_that_is_not_known_takes_no_other_with_it(definition, name):
    keypoints = np.column_stack([np.arange(21.0), np.zeros(21)])
    keypoints[JOINT_NAMES.index(name)] = np.nan
    moved = definition.apply(keypoints)
    assert [JOINT_NAMES[joint] for joint in np.flatnonzero(np.isnan(moved).any(axis=1))] == [name]
    if definition is OWN:
        np.testing.assert_array_equal(moved, keypoints)


def test_freihands_keypoints_fit_our_hand_once_they_are_brought_to_it(drawn, predictor):
    truths = [sample.keypoints for sample in drawn.samples[:4]]
    seen = [SeenHand(mano_joints(truth), Handedness.RIGHT) for truth in truths]

    def error(name: str) -> float:
        definition = keypoint_definition(name, predictor.engine.hand)
        labels = label_hands(zip(drawn.paths, seen, strict=False), predictor, definition)
        return np.mean([np.abs(one.fit.keypoints - truth).mean() for one, truth in zip(labels, truths, strict=True)])

    assert error("freihand") < 0.7 * error("handmesh")


@pytest.mark.parametrize(
    ("definition", "reason"), [(FREIHAND, "0 joints of ours follow"), (MEDIAPIPE, "could not be judged")]
)
def test_a_hand_whose_keypoints_say_too_little_of_ours_is_left_out_alone(drawn, predictor, definition, reason):
    """Four knuckles: the first ended the whole run, the second was a complete label with an error of not-a-number."""
    knuckles = np.array([name.endswith("_mcp") and name != "thumb_mcp" for name in JOINT_NAMES])
    known = np.where(knuckles[:, None], drawn.seen(0).keypoints, np.nan)
    whole = drawn.seen(1)._replace(keypoints=mano_joints(drawn.seen(1).keypoints))
    hands = [(drawn.paths[0], SeenHand(known, Handedness.RIGHT)), (drawn.paths[1], whole)]
    alone, other = label_hands(hands, predictor, definition)
    assert alone.record is None
    assert reason in alone.reason
    assert np.isfinite(other.fit.error)


def test_of_manos_own_hand_freihands_keypoints_are_taken_as_they_are():
    other = replace(builtin_hand(), shapedirs=1.1 * builtin_hand().shapedirs)
    assert keypoint_definition("freihand", other) == OWN
    assert keypoint_definition("freihand", builtin_hand()).mano


HAND = np.random.default_rng(0).uniform(20, 80, (21, 2))


def landmarks_of(answers: list[list]):
    """Somebody who says one thing after the other."""
    left = iter(answers)
    return lambda image: next(left)


def test_what_is_seen_alike_in_the_mirror_agrees():
    image = np.zeros((100, 120, 3), np.uint8)
    mirrored = np.column_stack([119 - HAND[:, 0], HAND[:, 1]])
    answers = [[(mirrored, Handedness.LEFT, 0.9)], [(HAND, Handedness.RIGHT, 0.9), (HAND + 1, Handedness.RIGHT, 0.8)]]
    (hand,) = seen_twice(image, landmarks_of(answers))  # seen twice in one picture: once
    assert hand.handedness == Handedness.RIGHT
    np.testing.assert_allclose(hand.keypoints, HAND)
    assert hand.disagreement == pytest.approx(0)


@pytest.mark.parametrize("answer", [[], [(HAND, Handedness.RIGHT, 0.9)]])
def test_a_hand_that_the_mirror_lacks_or_calls_by_the_same_side_disagrees(answer):
    (hand,) = seen_twice(np.zeros((100, 120, 3), np.uint8), landmarks_of([answer, [(HAND, Handedness.RIGHT, 0.9)]]))
    assert hand.disagreement == np.inf


def write_keypoints(drawn: Drawn, folder: Path) -> Path:
    lines = [
        {"image": str(path), "handedness": "right", "keypoints": sample.keypoints.tolist()}
        for path, sample in zip(drawn.paths, drawn.samples, strict=True)
    ]
    lines.append({"image": str(drawn.paths[0]), "keypoints": lines[0]["keypoints"][::-1]})
    file = folder / "keypoints.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_keypoints_of_ones_own_become_labels_that_training_reads(drawn, tmp_path):
    out = tmp_path / "labels" / "labels.jsonl"
    arguments = ["label", str(write_keypoints(drawn, tmp_path)), "--out", str(out)]
    more = ["--sheet", str(tmp_path / "sheet.png"), "--dropped", str(tmp_path / "dropped.jsonl")]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert "left out" in result.output
    assert len(JsonlData(out)) == COUNT
    assert not [row for row in check(out) if row.passed is False]
    assert json.loads((tmp_path / "dropped.jsonl").read_text())["reason"].startswith("no hand fits")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_hands_are_cut_out_where_they_are(drawn, tmp_path):
    """With the arm, which looks like them; a set with such pictures trains on other backgrounds."""
    out, folder = tmp_path / "labels" / "labels.jsonl", tmp_path / "alphas"
    arguments = ["label", str(write_keypoints(drawn, tmp_path)), "--out", str(out), "--cut-out", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    hit, missed = [], []
    data = JsonlData(out)
    for index in range(len(data)):
        if (read_alpha := data[index].alpha) is None:
            continue
        alpha = read_alpha()
        truth = drawn.samples[drawn.paths.index(data.image_path(index).resolve())]
        hit.append((alpha[truth.mask > 127] > 127).mean())
        missed.append((alpha[truth.alpha < 128] > 127).mean())
    assert f"{len(hit)} of them cut out" in result.output.replace("\n", " ")
    assert len(hit) >= COUNT / 2
    assert np.median(hit) > 0.9
    assert np.median(missed) < 0.1


def test_the_counts_are_json_for_scripts(drawn, tmp_path):
    out = tmp_path / "labels.jsonl"
    result = CliRunner().invoke(app, ["label", str(write_keypoints(drawn, tmp_path)), "--out", str(out), "--json"])
    told = json.loads(result.stdout)
    assert (told["labels"], told["hands"]["left out"], told["cut_out"]) == (str(out), 1, 0)
    assert told["hands"]["complete labels"] + told["hands"].get("keypoints alone", 0) == len(JsonlData(out)) == COUNT


def test_an_interrupted_run_keeps_what_it_has_done(drawn, tmp_path, monkeypatch):
    """Ctrl-C lost all of it. What an earlier run finished stays as it is."""
    path, out = write_keypoints(drawn, tmp_path), tmp_path / "labels.jsonl"
    out.write_text("of an earlier run")
    pressed, before = [], signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have left out

    def press_once(*_):
        if not pressed:
            pressed.append(signal.raise_signal(signal.SIGINT))
        return ""

    monkeypatch.setattr("handmesh.label._CHUNK", 4)
    monkeypatch.setattr("handmesh.label._unusable", press_once)
    more = ["--out", str(out), "--dropped", str(tmp_path / "dropped.jsonl"), "--sheet", str(tmp_path / "sheet.png")]
    try:
        result = CliRunner().invoke(app, ["label", str(path), *more])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as it was"
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert f"4 of {COUNT + 1} hands are done" in result.output
    assert len(JsonlData(tmp_path / "labels.interrupted.jsonl")) == 4
    assert f"4 hands in {tmp_path / 'labels.interrupted.jsonl'}" in result.output.replace("\n", "")
    assert out.read_text() == "of an earlier run"
    assert not (tmp_path / "sheet.png").exists()


def test_what_an_interrupted_run_kept_is_not_written_over_while_it_is_read(drawn, tmp_path):
    kept = write_keypoints(drawn, tmp_path).rename(tmp_path / "labels.interrupted.jsonl")
    result = CliRunner().invoke(app, ["label", str(kept), "--out", str(tmp_path / "labels.jsonl")])
    assert f"{kept} is what is to be read: it would be lost" in str(result.exception)


@pytest.mark.parametrize("option", ["--cut-out", "--sheet"])
def test_no_picture_is_written_among_the_photographs(option, tmp_path, monkeypatch):
    """The next run labelled the alphas of the one before."""
    monkeypatch.setattr("handmesh.label._label_chunk", lambda *_: pytest.fail("began"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    result = CliRunner().invoke(app, ["label", "photos", option, "photos/alphas/x.png"])
    assert f"{option} photos/alphas/x.png is in photos, and would be taken for" in str(result.exception)
    try:
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "trip").symlink_to("../photos", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links can be made here: {error}")
    result = CliRunner().invoke(app, ["label", "links", option, "photos/alphas/x.png"])
    assert f"{option} photos/alphas/x.png is in links/trip, and would be taken for" in str(result.exception)


def test_photographs_without_mediapipe_say_how_to_get_it(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    result = CliRunner().invoke(app, ["label", str(drawn.paths[0]), "--out", str(tmp_path / "labels.jsonl")])
    assert 'pip install -e ".[detect]"' in str(result.exception)
    assert not (tmp_path / "labels.jsonl").exists()


def test_where_no_hand_becomes_a_label_the_old_labels_stay(drawn, tmp_path):
    """An empty file, which no run reads, took their place; lines without keypoints were not counted."""
    lines = [{"image": str(drawn.paths[0])}, {"image": str(drawn.paths[1]), "present": False}, {"image": "gone.png"}]
    (tmp_path / "keypoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "labels.jsonl").write_text("old")
    arguments = ["--out", str(tmp_path / "labels.jsonl"), "--dropped", str(tmp_path / "new" / "dropped.jsonl")]
    result = CliRunner().invoke(app, ["label", str(tmp_path / "keypoints.jsonl"), *arguments])
    assert "No hand became a label" in str(result.exception)
    assert (tmp_path / "labels.jsonl").read_text() == "old"
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "new" / "dropped.jsonl").read_text().splitlines()]
    assert ["0 keypoints" in reason for reason in reasons] == [True, True, False]
    assert "gone.png" in reasons[2]


def test_ones_own_keypoints_are_not_overwritten(drawn, tmp_path, monkeypatch):
    """With the default --out, too."""
    monkeypatch.chdir(tmp_path)
    path = write_keypoints(drawn, tmp_path).rename(tmp_path / "labels.jsonl")
    before = path.read_bytes()
    assert "another name" in str(CliRunner().invoke(app, ["label", str(path)]).exception)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("photos", "option", "message"),
    [
        ("own.jsonl", ["--dropped", "own.jsonl"], "--dropped own.jsonl is what is to be read"),
        ("0.png", ["--sheet", "here/../0.png"], "is what is to be read"),
        ("own.jsonl", ["--dropped", "labels.jsonl"], "--dropped labels.jsonl is the file of --out, too"),
        ("own.jsonl", ["--out", "a.png", "--sheet", "a.png"], "--sheet a.png is the file of --out, too"),
    ],
)
def test_no_file_is_written_over_another(photos, option, message, tmp_path, monkeypatch):
    """A list of what was left out took the place of the keypoints, or of the labels; a sheet that of its photograph."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / photos).write_text("{}")
    assert message in str(CliRunner().invoke(app, ["label", photos, *option]).exception)
    assert (tmp_path / photos).read_text() == "{}"


def test_a_photograph_of_a_folder_or_of_a_jsonl_is_not_written_over(tmp_path, monkeypatch):
    """Those that were named alone were safe from a sheet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a photograph")
    (tmp_path / "own.jsonl").write_text('{"image": "photos/a.png"}')
    for read in ("photos", "own.jsonl"):
        result = CliRunner().invoke(app, ["label", read, "--sheet", "photos/a.png"])
        assert "--sheet photos/a.png is what is to be read" in str(result.exception)
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"a photograph"


def test_what_is_wrong_at_the_end_is_said_before_the_first_hand(drawn, tmp_path, monkeypatch):
    """A slip in the last line, or a last folder without photographs, lost the labels of all that came before."""
    monkeypatch.setattr("handmesh.label._label_chunk", lambda *_: pytest.fail("began"))
    path = write_keypoints(drawn, tmp_path)
    path.write_text(path.read_text() + '{"image": "a.png", "keypoints": 3}\n')
    (tmp_path / "empty").mkdir()
    for read, message in (([path], f"{path}:"), ([drawn.paths[0], tmp_path / "empty"], "No images in")):
        arguments = [*map(str, read), "--out", str(tmp_path / "labels.jsonl")]
        assert message in str(CliRunner().invoke(app, ["label", *arguments]).exception)


def test_a_photograph_that_cannot_be_read_is_among_the_dropped(tmp_path, monkeypatch):
    """With somebody in MediaPipe's place."""
    monkeypatch.setattr("handmesh.detect.mediapipe.MediaPipeHands", lambda max_hands: SimpleNamespace(landmarks=None))
    (tmp_path / "torn.png").write_bytes(b"no picture")
    dropped = tmp_path / "dropped.jsonl"
    CliRunner().invoke(
        app, ["label", str(tmp_path), "--out", str(tmp_path / "labels.jsonl"), "--dropped", str(dropped)]
    )
    assert [Path(json.loads(line)["image"]).name for line in dropped.read_text().splitlines()] == ["torn.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "b.jpg"], "at once"),
        (["a.jsonl", "--sheet", "sheet.txt"], "sheet.txt"),
        (["a.jsonl", "--keypoints-by", "somebody"], "somebody"),
        (["a.jsonl", "--max-hands", "4"], "--max-hands is of photographs"),
        (["a.jpg", "--keypoints-by", "freihand"], "--keypoints-by is of a JSONL's keypoints"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["a.jsonl", "--out", "."], "folder"),
        (["a.jsonl", "--dropped", ".."], "folder"),
        (["a.jsonl", "--cut-out", "picture.png"], "wanted a folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").touch()
    result = CliRunner().invoke(app, ["label", *arguments])
    assert message in str(result.exception)
    assert not (tmp_path / "labels.jsonl").exists()
