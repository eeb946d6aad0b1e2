"""A model over a test set: an engine that knows the truth must come out with the truth, under every protocol."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from handmesh import metrics
from handmesh.data.crops import PROTOCOLS
from handmesh.data.formats.freihand import prepare
from handmesh.errors import ConfigError, DataError, ExportError
from handmesh.evaluate.inference import METRO_VIEWS, PLAIN, SINGLE, SMALL_VIEWS, Views, parse_views, predict_set
from handmesh.evaluate.official_files import read_predictions
from handmesh.evaluate.run import EvaluationRequest, _choose_protocol, print_evaluation, run_evaluation
from handmesh.evaluate.scores import evaluate
from handmesh.evaluate.sets import EvaluationSet, hand_lengths, match_hand, open_evaluation_set, palm_angles
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness, HandOutput, builtin_hand
from handmesh.hand.definitions import mano_joints
from handmesh.runtime.torch import TorchEngine
from handmesh.synth import write_dataset

COUNT = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "hands"
    write_dataset(path, COUNT, 3, size=96, background_count=2)
    return path


@pytest.fixture(scope="module")
def data(directory) -> EvaluationSet:
    return open_evaluation_set(directory)


class KnowingEngine:
    """Answers each crop of `predict_set` with the truth, in the axes of that crop."""

    name, resolution, record = "oracle", 64, {}
    hand = builtin_hand()

    def __init__(self, data: EvaluationSet, protocol: str, views: Views = SINGLE) -> None:
        crops = [PROTOCOLS[protocol].crop(data.sample(index)) for index in range(len(data))]
        others = [] if views is SINGLE else [one for one in views.augmentations() if one != PLAIN]
        self.answers = []
        for scale, rotation in [PLAIN, *others]:
            augmented = [
                type(crop)(crop.center, scale * crop.size, crop.rotation + rotation, crop.mirror) for crop in crops
            ]
            self.answers.append(self.answer(data, augmented))

    def answer(self, data: EvaluationSet, crops) -> HandOutput:
        camera, joints, vertices = [], [], []
        for index, crop in enumerate(crops):
            intrinsics = data.camera(index)
            facing = intrinsics.virtual_camera_rotation(crop.center)
            origin = data.truth.joints[index][0]
            points = [crop.vectors_to_crop((array[index] - origin) @ facing.T) for array in data.truth]
            # The weak-perspective camera that fits the true projection best: linear in scale and scale * translation.
            ndc = crop.to_ndc(intrinsics.project(data.truth.vertices[index]))
            xy = points[1][:, :2]
            zero, one = np.zeros(len(xy)), np.ones(len(xy))
            rows = np.concatenate([np.stack([xy[:, 0], one, zero], 1), np.stack([xy[:, 1], zero, one], 1)])
            scale, x, y = np.linalg.lstsq(rows, ndc.T.ravel(), rcond=None)[0]
            camera.append((scale, x / scale, y / scale))
            joints.append(points[0])
            vertices.append(points[1])
        pose, betas = np.tile(np.eye(3), (len(crops), 16, 1, 1)), np.zeros((len(crops), 10))  # not scored
        sure = np.ones(len(crops))
        shapes = np.stack(vertices), np.stack(joints)
        heads = sure, sure, np.ones((len(crops), 21)), np.zeros((len(crops), 21, 3))
        return HandOutput(np.array(camera), pose, betas, *shapes, *heads)

    def __call__(self, crops: np.ndarray) -> HandOutput:
        assert crops.shape == (COUNT, 64, 64, 3)
        return self.answers.pop(0)


def left_handed(data: EvaluationSet) -> EvaluationSet:
    return EvaluationSet(**{**vars(data), "handedness": (Handedness.LEFT,) * COUNT})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_truth_comes_out_where_it_is(data, protocol, side):
    asked = left_handed(data) if side == "left" else data
    answers = predict_set(asked, KnowingEngine(asked, protocol), protocol)
    evaluation = evaluate(asked.truth, answers.points)
    assert evaluation.paper["pa_mpvpe_mm"] < 1e-3
    assert evaluation.rigid["pa_mpvpe_mm"] < 1e-3  # not as mirror images
    assert evaluation.root_relative_mpjpe_mm < 1e-3  # orientation and size are right, too, to float32 half a metre away
    assert evaluation.camera_coordinates
    # What is left is the weak-perspective camera: a few pixels, and of the distance about the square of depth over
    # distance (6 % for a hand that reaches 0.1 m to both sides of its middle at 0.42 m, the nearest one here).
    distance = np.linalg.norm(asked.truth.joints.mean(axis=1), axis=1)
    middle = (answers.points.joints - asked.truth.joints).mean(axis=1)
    assert (np.linalg.norm(middle, axis=1) < 0.08 * distance).all()
    assert metrics.keypoint_box_error(asked.keypoints, answers.keypoints).max() < 0.08
    assert (answers.remark is not None) == (protocol == "box-from-test-labels")


def test_our_joints_are_scored_where_a_set_of_mano_has_them(data):
    """Their difference, 3.5 mm after alignment, was counted as the model's error."""
    of_mano = replace(
        data,
        truth=data.truth._replace(joints=mano_joints(data.truth.joints)),
        keypoints=mano_joints(data.keypoints),
        mano_joints=True,
    )
    answers = predict_set(of_mano, KnowingEngine(data, "metro"), "metro")
    assert answers.moved
    assert evaluate(of_mano.truth, answers.points).paper["pa_mpjpe_mm"] < 1e-3
    plain = predict_set(data, KnowingEngine(data, "metro"), "metro")
    assert not plain.moved
    np.testing.assert_allclose(answers.keypoints, mano_joints(plain.keypoints))
    assert evaluate(of_mano.truth, plain.points).paper["pa_mpjpe_mm"] > 2


def test_a_first_iteration_that_was_not_is_not_moved(data, monkeypatch):
    """Memory that nobody had written to was moved with the answers: where it held no numbers numpy warned of them."""
    moved = []
    monkeypatch.setattr("handmesh.evaluate.inference.mano_joints", lambda points: moved.append(points) or points)
    answers = predict_set(replace(data, mano_joints=True), KnowingEngine(data, "metro"), "metro")
    assert [points.shape for points in moved] == [answers.points.joints.shape, answers.keypoints.shape]


@pytest.mark.parametrize("margin", [None, 1.6])
def test_the_second_iteration_looks_where_the_first_one_found_the_hand(data, margin):
    """At a box around the first answer's keypoints, whatever the set's own labels say."""
    found = predict_set(data, KnowingEngine(data, "metro"), "metro")
    boxes = np.concatenate([found.keypoints.min(axis=1), found.keypoints.max(axis=1)], axis=1)
    crops = [CropTransform.around_box(box, margin or 1.25) for box in boxes]
    engine = KnowingEngine(data, "metro")
    seen: list[np.ndarray] = []
    engine.answers.append(engine.answer(data, crops))
    plain = KnowingEngine.__call__

    class Watched(KnowingEngine):
        def __call__(self, pixels):
            seen.append(pixels)
            return plain(self, pixels)

    engine.__class__ = Watched
    unlabelled = replace(data, keypoints=None, boxes=tuple(np.array([0, 0, 9, 9.0]) for _ in data.boxes))
    answers = predict_set(unlabelled, engine, "metro-then-box", margin=margin)
    assert evaluate(data.truth, answers.points).rigid["pa_mpvpe_mm"] < 1e-3
    assert answers.passes == 2
    assert answers.remark is None
    np.testing.assert_allclose(answers.first.joints, found.points.joints, atol=1e-9)
    for pixels, crop, index in zip(seen[1], crops, range(COUNT), strict=True):
        expected = crop.warp(data.sample(index).image, 64)
        np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=1)


def test_a_first_answer_that_is_nowhere_is_looked_at_again(data):
    """Of a model that knows nothing, boxes may lie outside the picture."""
    engine = KnowingEngine(data, "frame")
    far = engine.answers[0]._replace(camera=engine.answers[0].camera + np.array([0, 5.0, 0]))
    engine.answers = [far, engine.answer(data, [PROTOCOLS["frame"].crop(data.sample(i)) for i in range(COUNT)])]
    assert evaluate(data.truth, predict_set(data, engine, "frame-then-box").points).paper["pa_mpvpe_mm"] < 1e-3


def test_views_agree_when_each_is_right(data):
    views = Views("some", (0.8, 1.0, 1.2), (-0.5, 0.0, 1.0))
    answers = predict_set(data, KnowingEngine(data, "frame", views), "frame", views=views)
    assert answers.passes == 9
    assert evaluate(data.truth, answers.points).paper["pa_mpvpe_mm"] < 1e-3
    assert metrics.keypoint_box_error(data.keypoints, answers.keypoints).max() < 0.08


def test_views_average_independent_errors_away(data):
    """Random errors of single views shrink; the plain view counts twice, as in METRO's code."""

    class NoisyEngine(KnowingEngine):
        def __call__(self, crops: np.ndarray) -> HandOutput:
            output = super().__call__(crops)
            noise = np.random.default_rng(len(self.answers)).normal(0, 0.005, output.joints.shape)
            return output._replace(joints=output.joints + noise)

    views = Views("some", (0.9, 1.0, 1.1), (-0.2, 0.0, 0.2))
    single = predict_set(data, NoisyEngine(data, "frame"), "frame").points
    averaged = predict_set(data, NoisyEngine(data, "frame", views), "frame", views=views).points
    ratio = metrics.pa_mean_error(data.truth.joints, averaged.joints).mean()
    ratio /= metrics.pa_mean_error(data.truth.joints, single.joints).mean()
    # Ten answers, one of them twice among them: variance (4 + 8) / 100.
    assert ratio == pytest.approx(math.sqrt(0.12), rel=0.2)


def test_views_by_name():
    assert parse_views("none") is SINGLE
    assert parse_views("small") is SMALL_VIEWS
    assert METRO_VIEWS.passes == 95
    views = parse_views("0.9,1:-90,45")
    assert views.scales == (0.9, 1.0)
    assert views.rotations == pytest.approx((-math.pi / 2, math.pi / 4))
    assert views.passes == 5  # four, and the plain one to align them to
    for text in ("", "1", "1:", ":0", "a:b", "0:0", "1,2"):
        with pytest.raises(ConfigError, match="--tta"):
            parse_views(text)


def test_a_real_network_runs_under_every_protocol(data, model_file):
    engine = TorchEngine(model_file)
    joints = {}
    for protocol in (*PROTOCOLS, "predict"):
        answers = predict_set(data, engine, protocol, margin=1.5 if "box" in protocol else None)
        joints[protocol] = answers.points.joints
        assert np.isfinite(answers.points.vertices).all()
        assert answers.seconds_per_image > 0
    assert len({array.tobytes() for array in joints.values()}) == 4  # the two boxes are the same here
    with pytest.raises(DataError, match=r"'nonsense': wanted one of frame, metro, .*, predict"):
        predict_set(data, engine, "nonsense")
    with pytest.raises(ConfigError, match="its own crops"):
        predict_set(data, engine, "predict", views=SMALL_VIEWS)
    with pytest.raises(ConfigError, match=r'"frame" says itself how often .*: passes go with protocol "predict"'):
        predict_set(data, engine, "frame", passes=3)
    with pytest.raises(ConfigError, match='"metro" has no box'):
        predict_set(data, engine, "metro", margin=1.5)


# Sets


def test_a_jsonl_set_poses_its_meshes(data, directory):
    """Vertices follow from pose, shape and place; the joints regressed from them are the given ones."""
    assert len(data) == COUNT
    regressed = builtin_hand().J_regressor[0] @ data.truth.vertices
    np.testing.assert_allclose(regressed, data.truth.joints[:, 0], atol=2e-6)
    assert data.kind == "JSONL"
    assert data.has_images()
    first = data.first(2)
    assert len(first) == len(first.images) == len(first.truth.vertices) == 2


def rewritten(directory, tmp_path, change):
    lines = [json.loads(line) for line in (directory / "labels.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_labels_may_be_missing(directory, tmp_path):
    def without(record):
        for key in ("pose", "keypoints", "intrinsics", "box", "facts", "handedness"):
            del record[key]

    poor = open_evaluation_set(rewritten(directory, tmp_path, without))
    assert (poor.truth.vertices, poor.keypoints, poor.intrinsics, poor.visible) == (None,) * 4


def test_keypoints_are_projected_where_they_are_not_given(data, directory, tmp_path):
    opened = open_evaluation_set(rewritten(directory, tmp_path, lambda record: record.pop("keypoints")))
    np.testing.assert_allclose(opened.keypoints, data.keypoints, atol=1e-3)


def test_facts_say_which_joints_are_hidden_of_a_set_in_space_too(directory, tmp_path):
    """Scores of visible and of hidden joints were promised, and given of sets without 3D joints only."""
    hidden = np.arange(21) < 10

    def change(record):
        del record["keypoints"]
        record["facts"] = {"occluded": hidden.tolist()}

    opened = open_evaluation_set(rewritten(directory, tmp_path, change))
    assert opened.in_space
    np.testing.assert_array_equal(opened.shown, np.tile(~hidden, (len(opened), 1)))
    np.testing.assert_array_equal(open_evaluation_set(directory).shown, open_evaluation_set(directory).visible)


@pytest.mark.parametrize("facts", ["outdoors", [1, 2], 7, None, {"occluded": "a little", "ita_degrees": "dark"}])
def test_facts_are_whatever_one_likes(facts, data, directory, tmp_path):
    """As the page on data says; but what was no object ended in an AttributeError."""
    opened = open_evaluation_set(rewritten(directory, tmp_path, lambda record: record.update(facts=facts)))
    np.testing.assert_array_equal(opened.shown, data.visible)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"occluded": [[True, False]] * 21}, r"'occluded' in 'facts' is \[\[True.*each of the 21 joints"),
        ({"occluded": [True, [False]] + 19 * [True]}, "'occluded' in 'facts' is"),  # "inhomogeneous shape"
        ({"occluded": ["no"] * 21}, "'occluded' in 'facts' is"),  # counted as hidden
        ({"occluded": [True] * 20}, "'occluded' in 'facts' is"),
        ({"ita_degrees": math.inf}, "'ita_degrees' in 'facts' is inf, wanted degrees"),
        ({"ita_degrees": 10**400}, "'ita_degrees' in 'facts' is 1000"),
    ],
)
def test_facts_that_are_read_are_checked(facts, says, directory, tmp_path):
    """Nested ones ended in a traceback after all was predicted."""
    path = rewritten(directory, tmp_path, lambda record: record.update(facts=facts))
    with pytest.raises(DataError, match=rf"labels\.jsonl:1: {says}"):
        open_evaluation_set(path)


def test_poses_of_another_hand_are_not_taken_for_ours(directory, tmp_path, caplog):
    opened = open_evaluation_set(rewritten(directory, tmp_path, lambda record: record.update(betas=[2.0] * 10)))
    assert opened.truth.vertices is None
    assert "not those of the built-in hand (the joints are" in caplog.text
    assert opened.meshes in caplog.text


def test_meshes_are_posed_with_the_hand_that_has_the_given_joints(data, directory, stand_in_mano, tmp_path):
    """Once all poses were taken for the built-in hand's, and a model of MANO got no mesh scores."""
    other = write_dataset(tmp_path / "of_mano", 2, 3, size=96, background_count=2, hand=stand_in_mano)
    for hand, name in ((stand_in_mano, "the model's own hand"), (builtin_hand(), "MANO"), (None, "MANO")):
        opened = open_evaluation_set(other, hand)
        np.testing.assert_allclose(stand_in_mano.joints_of(opened.truth.vertices), opened.truth.joints, atol=2e-6)
        assert opened.labelled_hand.sha256 == stand_in_mano.sha256
        assert opened.meshes.startswith(f"posed with {name}, whose joints are")
        assert opened.mano_joints
    (other.parent / "meta.json").unlink()
    assert open_evaluation_set(other, builtin_hand()).mano_joints, "nobody says so, but the joints are MANO's"
    of_ours = open_evaluation_set(directory, stand_in_mano)
    assert of_ours.labelled_hand.matches(builtin_hand())
    np.testing.assert_array_equal(of_ours.truth.vertices, data.truth.vertices)


def test_without_places_meshes_hang_on_their_wrists(data, directory, tmp_path):
    def change(record):  # joints that were measured apart from the mesh, and a left hand
        del record["translation"]
        record["joints"] = [[-x, y + 0.002, z] for x, y, z in record["joints"]]
        mirror = np.array([-1.0, 1.0, 1.0])
        record["pose"] = (np.array(record["pose"]) * mirror[:, None] * mirror).tolist()
        record["handedness"] = "left"
        record["joints"][8][0] += 0.02

    moved = rewritten(directory, tmp_path, change)
    opened = open_evaluation_set(moved, builtin_hand())
    expected = data.truth.vertices * (-1, 1, 1) + (0, 0.002, 0)
    np.testing.assert_allclose(opened.truth.vertices, expected, atol=1e-5)
    assert "off the given ones" in opened.meshes
    assert open_evaluation_set(moved).truth.vertices is None  # nobody says that they are ours


def test_meshes_of_another_hand_are_not_compared_vertex_by_vertex(directory, model_file, stand_in_mano, tmp_path):
    """778 vertices on both sides are no correspondence: once they were compared all the same."""
    other = write_dataset(tmp_path / "of_mano", 3, 3, size=96, background_count=2, hand=stand_in_mano)
    freihand = tmp_path / "freihand"
    (freihand / "evaluation" / "rgb").mkdir(parents=True)
    data = open_evaluation_set(other)
    for index, image in enumerate(data.images):
        shutil.copy(image, freihand / "evaluation" / "rgb" / f"{index:08d}.jpg")
    for name, array in (("K", data.intrinsics), ("xyz", data.truth.joints), ("verts", data.truth.vertices)):
        (freihand / f"evaluation_{name}.json").write_text(json.dumps(array.tolist()))
    for path, comparable in ((directory, True), (other, False), (freihand, False)):
        request = EvaluationRequest(data=path, model=str(model_file), out=tmp_path / "scores")
        result = run_evaluation(request)
        scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
        assert (scores["pa_mpvpe_mm"] is not None) == comparable
        assert 0 < scores["f_at_15"] < 1
        assert ("other places" in result.run["true meshes"]) != comparable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: [record.pop(key) for key in ("joints", "keypoints")], "jsonl:1: neither 'joints' nor 'keyp"),
        (lambda record: record.update(joints=[[0, 0, 0]] * 20), "jsonl:1: 'joints' is"),
        (lambda record: record.update(handedness="both"), "jsonl:1: 'handedness' is 'both'"),
        (lambda record: record.update(translation=[1, 2]), "jsonl:1: 'translation' is"),
        (lambda record: record.update(image=3), "jsonl:1: 'image' is 3"),
    ],
)
def test_broken_labels_are_named(directory, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        open_evaluation_set(rewritten(directory, tmp_path, change))


@pytest.fixture(scope="module")
def freihand(data, directory, tmp_path_factory):
    """The same images and hands in FreiHAND's form, which are taken for MANO's."""
    path = tmp_path_factory.mktemp("freihand")
    (path / "evaluation" / "rgb").mkdir(parents=True)
    for index, image in enumerate(data.images):
        shutil.copy(image, path / "evaluation" / "rgb" / f"{index:08d}.jpg")
    for name, array in (("K", data.intrinsics), ("xyz", data.truth.joints), ("verts", data.truth.vertices)):
        (path / f"evaluation_{name}.json").write_text(json.dumps(array.tolist()))
    return path


def test_freihands_form_scores_as_jsonl_does(data, freihand, model_file, tmp_path):
    """Unpacked, and as `handmesh data prepare` packs it, with and without the images in one file."""
    engine = TorchEngine(model_file)
    expected = predict_set(data, engine, "metro")
    prepare(freihand, tmp_path / "plain")
    prepare(freihand, tmp_path / "packed", pack=True)
    for path in (freihand, tmp_path / "plain", tmp_path / "packed"):
        opened = open_evaluation_set(path)
        np.testing.assert_allclose(opened.truth.vertices, data.truth.vertices, atol=1e-7)
        np.testing.assert_allclose(opened.keypoints, data.keypoints, atol=1e-3)
        answers = predict_set(opened, engine, "metro")
        np.testing.assert_allclose(answers.points.joints, mano_joints(expected.points.joints), atol=1e-6)
        with pytest.raises(DataError, match="box-from-test-labels"):
            predict_set(opened, engine, "box")
        assert len(opened.first(2).sample(1).image) == 96


def test_what_is_written_has_manos_joints_too(data, freihand, model_file, tmp_path):
    """A prediction file is scored with the set's labels, and the report says what was moved."""
    file = tmp_path / "pred.json"
    request = EvaluationRequest(data=freihand, model=str(model_file), protocol="metro-then-box", out=tmp_path / "out")
    result = run_evaluation(replace(request, save_predictions=file))
    of_file = run_evaluation(EvaluationRequest(data=freihand, predictions=file, out=tmp_path / "of_file"))
    assert of_file.evaluation.paper["pa_mpjpe_mm"] == pytest.approx(result.evaluation.paper["pa_mpjpe_mm"], abs=1e-3)
    expected = predict_set(data, TorchEngine(model_file), "metro-then-box")
    np.testing.assert_allclose(read_predictions(file).joints, mano_joints(expected.points.joints), atol=1e-5)
    first = evaluate(data.truth, expected.first._replace(joints=mano_joints(expected.first.joints)))
    assert result.evaluation.first_iteration["pa_mpjpe_mm"] == pytest.approx(first.paper["pa_mpjpe_mm"], rel=1e-3)
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(result, console)
    for text in (console.file.getvalue(), (tmp_path / "out" / "report.html").read_text()):
        assert "moved to where MANO has them" in text
    assert "joints" not in of_file.run


def test_a_set_without_3d_labels_is_scored_in_the_picture(directory, model_file, tmp_path):
    """Photographs of one's own have keypoints at best. Those that are not visible are not scored."""
    out = tmp_path / "out"
    records = [json.loads(line) for line in (directory / "labels.jsonl").read_text().splitlines()]
    flat = []
    for record in records:
        kept = {key: record[key] for key in ("image", "handedness", "keypoints")}
        flat.append(kept | {"keypoints": [[*point[:2], 1] for point in record["keypoints"]]})
    some = [record | {"keypoints": [*record["keypoints"][:20], [9e3, 9e3, 0]]} for record in flat]
    boxes = {}
    for name, lines in (("all", flat), ("some", some)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "images").symlink_to(directory / "images")
        (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
        result = run_evaluation(EvaluationRequest(data=folder, model=str(model_file), out=out))
        assert result.evaluation is None
        assert [path.name for path in result.files] == ["scores.json"]
        boxes[name] = json.loads((out / "scores.json").read_text())["keypoints_2d"]["box_error"]
    data = open_evaluation_set(tmp_path / "all")
    answers = predict_set(data, TorchEngine(model_file)).keypoints
    assert boxes["all"] == pytest.approx(metrics.keypoint_box_error(data.keypoints, answers).mean(), rel=1e-3)
    expected = metrics.keypoint_box_error(data.keypoints[:, :20], answers[:, :20]).mean()
    assert boxes["some"] == pytest.approx(expected, rel=1e-3)
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(result, console)
    assert "In the image, over the box's side: box_error" in console.file.getvalue()
    with pytest.raises(ConfigError, match="--against and --save-predictions need"):
        run_evaluation(EvaluationRequest(data=folder, model=str(model_file), against=(out,), out=out))


def test_no_file_of_an_earlier_run_stays_beside_other_scores(directory, model_file, tmp_path):
    """--no-report left the old report, and a set without 3D labels the old frames, which --against would take."""
    out = tmp_path / "out"
    request = EvaluationRequest(data=directory, limit=2, model=str(model_file), out=out)
    out.mkdir()
    (out / "report.html").write_text("somebody's own: there are no scores beside it")
    run_evaluation(replace(request, report=False))
    assert {file.name for file in out.iterdir()} == {"scores.json", "frames.npz", "report.html"}
    run_evaluation(replace(request, report=False, against=(out,)))
    assert {file.name for file in out.iterdir()} == {"scores.json", "frames.npz"}
    flat = rewritten(directory, tmp_path, lambda record: record.pop("joints"))
    (flat / "images").symlink_to(directory / "images")
    run_evaluation(replace(request, data=flat))
    assert {file.name for file in out.iterdir()} == {"scores.json"}


def test_what_cannot_be_compared_or_written_is_refused_before_the_model_runs(directory, tmp_path):
    """It was known when the model had seen everything, for hours with --tta, and nothing of that was written."""

    def show(stage: str, done: int, total: int) -> None:
        raise AssertionError(stage)

    run_evaluation(EvaluationRequest(data=directory, limit=2, out=tmp_path / "of_two", report=False))
    for other, message in (("of_two", "another ground truth"), ("nowhere", "no frames.npz of an earlier run")):
        with pytest.raises(DataError, match=message):
            run_evaluation(EvaluationRequest(data=directory, against=(tmp_path / other,), out=tmp_path / "out"), show)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        run_evaluation(EvaluationRequest(data=directory, out=tmp_path / "file"), show)
    nowhere = tmp_path / "nowhere" / "pred.zip"
    with pytest.raises(ExportError, match=r"pred\.zip: there is no folder .*nowhere"):
        run_evaluation(EvaluationRequest(data=directory, out=tmp_path / "out", save_predictions=nowhere), show)
    flat = rewritten(directory, tmp_path, lambda record: record.pop("joints"))
    with pytest.raises(ConfigError, match="need a test set with 'joints'"):
        run_evaluation(EvaluationRequest(data=flat, save_predictions=tmp_path / "pred.zip"), show)
    run_evaluation(
        EvaluationRequest(data=directory, limit=2, out=tmp_path / "out", against=(tmp_path / "of_two",), report=False)
    )
    assert (tmp_path / "out" / "frames.npz").is_file()


@pytest.mark.parametrize(
    ("trained", "boxes", "wanted", "chosen", "said"),
    [
        ({}, False, None, "frame", None),
        ({"freihand": "metro"}, False, None, "metro", "which is why"),
        ({"freihand": "metro"}, False, "metro", "metro", None),
        ({"freihand": "metro"}, False, "frame", "frame", "--crop metro shows it"),
        ({"photos0": "box"}, True, None, "box", "which is why"),
        ({"photos0": "box"}, True, "box", "box", None),
        ({"photos0": "box"}, False, None, "frame", "no --crop shows it"),
        ({"photos0": "box"}, False, "predict", "predict", None),
        ({"photos0": "box", "photos1": "frame"}, True, None, "frame", None),
        ({"freihand": "metro-then-box"}, False, None, "metro-then-box", "which is why"),
        ({"freihand": "metro"}, False, "metro-then-box", "metro-then-box", "--crop metro shows it"),
        ({"freihand": "metro-then-box"}, False, "metro", "metro", "--crop metro-then-box shows it"),
        ({"freihand": "frame-then-metro"}, False, None, "frame", None),
    ],
)
def test_the_crop_is_that_of_the_training_where_the_set_allows_it(trained, boxes, wanted, chosen, said, data):
    """A model of boxes was once told to use --crop box on FreiHAND, which refuses that: it has none."""
    given = replace(data, boxes=tuple(np.array([0, 0, 9, 9.0]) if boxes else None for _ in data.boxes))
    protocol, hint = _choose_protocol(wanted, {"training": {"crops": trained}}, given)
    assert protocol == chosen
    assert hint is None if said is None else said in hint


def test_both_iterations_are_reported(directory, model_file, tmp_path):
    request = EvaluationRequest(data=directory, model=str(model_file), protocol="frame-then-box", out=tmp_path / "two")
    result = run_evaluation(request)
    scores = json.loads((tmp_path / "two" / "scores.json").read_text())
    alone = run_evaluation(replace(request, protocol="frame", out=tmp_path / "one", report=False)).evaluation
    assert scores["first_iteration"] == pytest.approx(dict(alone.paper))
    assert scores["pa_mpvpe_mm"] != pytest.approx(alone.paper["pa_mpvpe_mm"], rel=1e-3)
    assert json.loads((tmp_path / "one" / "scores.json").read_text())["first_iteration"] is None
    assert "this run, first iteration alone" in (tmp_path / "two" / "report.html").read_text()
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(result, console)
    assert "first iteration" in console.file.getvalue()


def test_folders_that_are_no_set_are_refused(tmp_path):
    with pytest.raises(DataError, match="no test set"):
        open_evaluation_set(tmp_path)
    (tmp_path / "evaluation_K.json").write_text("[]")
    with pytest.raises(DataError, match=r"FreiHAND_pub_v2_eval\.zip"):
        open_evaluation_set(tmp_path)
    (tmp_path / "labels.jsonl").write_text('{"image": "1.jpg"}\n{"im')
    with pytest.raises(DataError, match="jsonl:2 is no JSON"):
        open_evaluation_set(tmp_path)


def test_the_view_is_from_the_palm_or_the_back():
    """The built-in hand at rest: its palm looks towards -y."""
    hand = builtin_hand()
    for camera, expected in (((0, -1, 0), 0), ((0, 1, 0), 180), ((-1, 0, 0), 90)):
        z = -np.array(camera, float)
        x = np.array([0.0, 0, 1]) if abs(z[2]) < 0.5 else np.array([1.0, 0, 0])
        axes = np.stack([x, np.cross(z, x), z])
        joints = np.zeros((1, 21, 3))
        from handmesh.hand import FINGERTIP_VERTICES, JOINTS_FROM_MANO

        rest = np.concatenate([hand.J_regressor @ hand.v_template, hand.v_template[list(FINGERTIP_VERTICES)]])
        joints[0] = rest[list(JOINTS_FROM_MANO)] @ axes.T + (0, 0, 5)
        assert palm_angles(joints, [Handedness.RIGHT])[0] == pytest.approx(expected, abs=25)
        mirrored = joints * (-1, 1, 1)
        assert palm_angles(mirrored, [Handedness.LEFT])[0] == pytest.approx(palm_angles(joints, [Handedness.RIGHT])[0])
        assert 0.14 < hand_lengths(joints)[0] < 0.24


def test_faces_are_known_for_our_own_topology_only(data):
    assert match_hand(data.truth.vertices) is not None
    shuffled = data.truth.vertices[:, np.random.default_rng(0).permutation(778)]
    assert match_hand(shuffled) is None
    assert match_hand(data.truth.vertices[:, :700]) is None
    assert match_hand(None) is None
