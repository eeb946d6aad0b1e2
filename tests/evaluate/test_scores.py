"""Scores beyond the twelve official ones: what is warned about, intervals, comparisons, files, and the command."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import norm
from scored_hands import hands, mapped, sane, some
from typer.testing import CliRunner

from handmesh import metrics
from handmesh.cli import app
from handmesh.errors import DataError, HandMeshError
from handmesh.evaluate.official_files import HandPoints, write_predictions
from handmesh.evaluate.scores import (
    FREIHAND_COUNT,
    JOINT_ORDERS,
    OFFICIAL_KEYS,
    check_zero_predictor,
    compare,
    evaluate,
    recognise_joint_order,
    score_joints,
    score_keypoints,
    score_views,
    scores_json,
    write_scores,
)
from handmesh.hand import JOINT_NAMES, builtin_hand

# What metrics knows beyond alignments (those are in test_metrics.py)


def test_f_scores_by_hand():
    """Four true points; three predicted at 1, 10 and 100 mm from them. At 5 mm: P 1/3, R 1/4; at 15 mm: 2/3, 2/4."""
    target = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    predicted = np.array([[0.0, 0.001, 0], [1, 0, 0.010], [2, 0.1, 0]])
    expected = [2 / 3 / 4 / (1 / 3 + 1 / 4), 2 * 2 / 3 / 2 / (2 / 3 + 1 / 2)]
    np.testing.assert_allclose(metrics.f_scores(target, predicted), expected)
    np.testing.assert_allclose(metrics.f_scores(predicted, target), expected)


def test_a_point_at_the_threshold_is_outside_for_f_and_inside_for_pck():
    """The official tool compares with < there and with <= here."""
    target, predicted = np.zeros((1, 3)), np.array([[0.25, 0, 0]])
    assert metrics.f_scores(target, predicted, (0.25, 0.26)).tolist() == [0, 1]
    assert metrics.pck([0.25], [0.24, 0.25]).tolist() == [0, 1]


def test_the_nearest_point_counts_where_the_partner_lies_at_the_threshold():
    """Partners spare the search for the nearest point only where they are inside, strictly."""
    target = np.array([[0.0, 0, 0], [2, 0, 0]])
    predicted = np.array([[0.25, 0, 0], [0.125, 0, 0]])  # the first point's partner is at 0.25, its neighbour nearer
    precision, recall = 1 / 2, 1 / 2
    expected = 2 * precision * recall / (precision + recall)
    assert metrics.f_scores(target, predicted, (0.25,)).tolist() == [expected]


def test_f_scores_of_batches_and_other_sizes():
    rng = np.random.default_rng(0)
    targets, predicted = rng.normal(0, 0.01, (2, 3, 40, 3)), rng.normal(0, 0.01, (2, 3, 50, 3))
    scores = metrics.f_scores(targets, predicted)
    assert scores.shape == (2, 3, 2)
    distance = np.linalg.norm(targets[1, 2][:, None] - predicted[1, 2], axis=-1)
    for index, limit in enumerate(metrics.F_THRESHOLDS):
        p, r = (distance.min(axis=0) < limit).mean(), (distance.min(axis=1) < limit).mean()
        assert scores[1, 2, index] == pytest.approx(2 * p * r / (p + r))


def test_the_curve_of_evenly_spread_errors_is_a_line():
    errors = (np.arange(100_000) + 0.5) / 100_000 * 0.05
    share = metrics.pck(errors)
    np.testing.assert_allclose(share, metrics.PCK_THRESHOLDS / 0.05, atol=1e-5)
    assert metrics.auc(share) == pytest.approx(0.5, abs=1e-5)


def test_counts_of_parts_add_up():
    errors = np.random.default_rng(0).exponential(0.02, (7, 21))
    parts = sum(metrics.pck_counts(errors[frame]) for frame in range(7))
    assert np.array_equal(parts, metrics.pck_counts(errors))
    assert metrics.pck_counts([1.0, math.inf]).tolist() == [0] * 100


def test_the_mean_shape_forgets_place_size_and_turn():
    truth = hands(1).joints[0]
    turns = Rotation.random(20, random_state=3).as_matrix()
    sizes = np.linspace(0.5, 2, 20)[:, None, None]
    shapes = sizes * (truth @ np.swapaxes(turns, 1, 2)) + np.random.default_rng(0).normal(size=(20, 1, 3))
    assert metrics.pa_rigid_mean_error(truth, metrics.mean_shape(shapes)) < 1e-6


def test_the_bootstrap_interval_is_the_textbook_one_for_many_values():
    values = np.random.default_rng(1).normal(5, 2, 4000)
    low, high = metrics.bootstrap_interval(values)
    half = norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert metrics.bootstrap_interval(values) == (low, high)  # the same seed
    assert metrics.bootstrap_interval([3.0]) == (3, 3)
    with pytest.raises(ValueError, match="mean of nothing"):
        metrics.bootstrap_interval([])


def test_root_relative_errors_forgive_place_alone():
    truth = hands(3).joints
    assert metrics.mpjpe(truth, np.add(truth, (0.3, -1, 2))) == pytest.approx(np.zeros(3), abs=1e-12)
    assert (metrics.mpjpe(truth, 1.1 * truth) > 0.005).all()


# Scoring


@pytest.fixture(scope="module")
def truth() -> HandPoints:
    return hands(40, seed=3)


@pytest.fixture(scope="module")
def predicted(truth) -> HandPoints:
    return sane(truth)


@pytest.fixture(scope="module")
def scored(truth, predicted):
    return evaluate(truth, predicted)


def test_any_similarity_is_removed(truth, predicted, scored):
    turns = Rotation.random(len(truth.joints), random_state=9).as_matrix()
    moved = mapped(predicted, lambda points: 0.7 * points @ np.swapaxes(turns, 1, 2) + 0.1)
    assert evaluate(truth, moved).paper == pytest.approx(scored.paper, abs=1e-4)
    assert evaluate(truth, moved).rigid == pytest.approx(scored.paper, abs=1e-4)


def test_a_reflection_is_removed_by_the_official_alignment_only(truth, predicted, scored):
    mirrored = mapped(predicted, some(lambda points: points * (-1, 1, 1)))
    evaluation = evaluate(truth, mirrored)
    assert evaluation.paper == pytest.approx(scored.paper, abs=1e-4)
    assert evaluation.rigid["pa_mpvpe_mm"] > scored.paper["pa_mpvpe_mm"] + 3
    assert evaluation.rigid["f_at_5"] < scored.paper["f_at_5"]
    (warning,) = evaluation.warnings
    assert "14 frames (0, 3, 6, 9, 12, ...)" in warning
    assert "mirror images" in warning


def test_the_order_of_frames_does_not_matter(truth, predicted, scored):
    order = np.random.default_rng(0).permutation(len(truth.joints))
    shuffled = evaluate(*(mapped(points, lambda array: array[order]) for points in (truth, predicted)), workers=3)
    assert shuffled.official == pytest.approx(scored.official, rel=1e-12)


def test_the_paper_figures_are_the_official_ones_in_millimetres(scored):
    assert scored.paper["pa_mpjpe_mm"] == pytest.approx(10 * scored.official["xyz_al_mean3d"])
    assert scored.paper["pa_mpvpe_mm"] == pytest.approx(10 * scored.official["mesh_al_mean3d"])
    assert scored.paper["f_at_5"] == pytest.approx(scored.official["f_al_score_5"])
    assert scored.paper["f_at_15"] == pytest.approx(scored.official["f_al_score_15"])
    for key, (low, high) in scored.intervals.items():
        assert low <= scored.paper[key] <= high


def test_the_floor_is_what_a_constant_scores(truth, scored):
    constant = mapped(truth, lambda points: np.broadcast_to(metrics.mean_shape(points), points.shape))
    assert scored.mean_pose_baseline == pytest.approx(evaluate(truth, constant).paper, rel=1e-9)


def test_of_left_and_right_hands_the_floor_is_that_of_right_ones():
    """The two were averaged as they are, to a hand flatter than any: a floor of 22 mm in place of 18."""
    truth = hands(12)
    left = np.arange(12) % 2 == 1
    both = mapped(truth, lambda points: np.where(left[:, None, None], points * (-1, 1, 1), points))
    floor = evaluate(truth, sane(truth)).mean_pose_baseline
    assert evaluate(both, sane(both), left=left).mean_pose_baseline == pytest.approx(floor, rel=1e-6)
    assert evaluate(both, sane(both)).mean_pose_baseline["pa_mpjpe_mm"] > 1.1 * floor["pa_mpjpe_mm"]


def test_the_hand_models_mean_hand_is_scored_where_the_model_is_known(truth, scored):
    """FreiHAND's paper: its "mean shape", here of the release at hand. MANO's mean pose is not the flat hand."""
    assert scored.mean_hand == {}
    hand = replace(builtin_hand(), hands_mean=np.full(45, 0.1))
    rotations = Rotation.from_rotvec([[0.0, 0, 0]] + [[0.1, 0.1, 0.1]] * 15).as_matrix()
    mean_hand = hand.shaped(np.zeros(10)).posed(rotations).vertices
    count = len(truth.joints)
    constant = HandPoints(np.stack([hand.joints_of(mean_hand)] * count), np.stack([mean_hand] * count))
    assert evaluate(truth, constant, hand=hand).mean_hand == pytest.approx(evaluate(truth, constant).paper, rel=1e-9)
    assert evaluate(HandPoints(truth.joints, None), constant, hand=hand).mean_hand == {}


def test_nothing_is_said_about_sane_predictions(scored):
    assert scored.warnings == ()
    assert scored.camera_coordinates


@pytest.mark.parametrize(("factor", "unit"), [(1000, "millimetres"), (100, "centimetres")])
def test_a_file_in_other_units_is_named(truth, predicted, scored, factor, unit):
    evaluation = evaluate(truth, mapped(predicted, lambda points: factor * points))
    assert [
        f"{name}: the whole file seems to be in {unit}" in text
        for name, text in zip(("xyz", "verts"), evaluation.warnings, strict=True)
    ] == [True, True]
    assert not evaluation.camera_coordinates
    assert evaluation.paper == pytest.approx(scored.paper, abs=1e-4)


def test_single_frames_in_other_units_are_named(truth, predicted):
    changed = predicted.joints.copy()
    changed[[4, 17]] *= 1000
    changed[20] = 0.3
    warnings = evaluate(truth, HandPoints(changed, predicted.vertices)).warnings
    assert any("xyz: 2 frames (4, 17) differ in size" in text and "1e+03" in text for text in warnings)
    assert any("all points are the same in frame 20" in text for text in warnings)


@pytest.mark.parametrize("name", JOINT_ORDERS)
def test_other_joint_orders_are_recognised(name, truth, predicted):
    order = JOINT_ORDERS[name]
    assert sorted(order) == list(range(21))
    assert recognise_joint_order(truth.joints, predicted.joints[:, list(order)]) == name
    warnings = evaluate(truth, HandPoints(predicted.joints[:, list(order)], predicted.vertices)).warnings
    assert any(name in text for text in warnings)


def test_joint_orders_stand_for_what_their_names_say():
    mano = next(order for name, order in JOINT_ORDERS.items() if name.startswith("MANO"))
    assert [JOINT_NAMES[joint] for joint in mano][:4] == ["wrist", "index_mcp", "index_pip", "index_dip"]
    assert [JOINT_NAMES[joint] for joint in mano][13:18] == [
        "thumb_cmc",
        "thumb_mcp",
        "thumb_ip",
        "thumb_tip",
        "index_tip",
    ]
    rhd = next(order for name, order in JOINT_ORDERS.items() if name.startswith("RHD"))
    assert [JOINT_NAMES[joint] for joint in rhd][:5] == ["wrist", "thumb_tip", "thumb_ip", "thumb_mcp", "thumb_cmc"]


def test_a_bad_but_well_ordered_prediction_is_not_taken_for_another_order(truth):
    assert recognise_joint_order(truth.joints, sane(truth, error=0.03).joints) is None
    assert recognise_joint_order(truth.joints, np.zeros_like(truth.joints)) is None


def test_predictions_about_the_wrist_hide_the_unaligned_figures(truth, predicted):
    wrist = predicted.joints[:, :1]
    evaluation = evaluate(truth, mapped(predicted, lambda points: points - wrist))
    assert not evaluation.camera_coordinates
    assert "relative to a joint" in evaluation.camera_note
    assert set(OFFICIAL_KEYS) <= scores_json(evaluation, {}).keys()  # all twelve are written whatever is shown


def test_joints_alone_can_be_scored(truth, predicted, scored):
    evaluation = evaluate(HandPoints(truth.joints, None), HandPoints(predicted.joints, None))
    assert evaluation.paper["pa_mpjpe_mm"] == scored.paper["pa_mpjpe_mm"]
    record = scores_json(evaluation, {})
    assert record["f_at_5"] is None
    assert record["pa_mpvpe_mm"] is None


def test_shapes_that_do_not_fit_are_refused(truth, predicted):
    with pytest.raises(DataError, match="39 predicted frames, wanted 40"):
        evaluate(truth, mapped(predicted, lambda points: points[:-1]))
    with pytest.raises(DataError, match="Frame 5 of the predicted hands"):
        evaluate(truth, mapped(predicted, lambda points: np.where(np.arange(40)[:, None, None] == 5, np.nan, points)))


def test_the_zero_predictor_tells_the_real_ground_truth():
    """Simulated hands with the published mean distances pass; others do not; other counts are not asked."""
    rng = np.random.default_rng(0)

    def cloud(points: int, distance: float, radius: float) -> np.ndarray:
        directions = rng.normal(size=(1, points // 2, 3))
        directions *= radius / np.linalg.norm(directions, axis=-1, keepdims=True)
        pairs = np.concatenate([directions, -directions], axis=1)  # their mean is zero
        if points % 2:
            pairs = np.concatenate([pairs, np.zeros((1, 1, 3))], axis=1) * points / (points - 1)
        # |p| for points on a sphere of radius r around a middle at depth d is about d + r^2 / (3 d) on average.
        return np.broadcast_to(pairs + (0, 0, 1) * np.array(distance), (FREIHAND_COUNT, points, 3))

    def mean_distance(points: np.ndarray) -> float:
        return float(np.linalg.norm(points[0], axis=-1).mean())

    def fitted(points: int, distance: float, radius: float) -> np.ndarray:
        made = cloud(points, distance, radius)
        return np.add(made, (0, 0, distance - mean_distance(made)))

    real = HandPoints(fitted(21, 0.7079, 0.0473), fitted(778, 0.7084, 0.0507))
    checked = check_zero_predictor(real)
    assert checked is not None
    assert checked[0], checked[1]
    other = check_zero_predictor(HandPoints(real.joints * 1.001, real.vertices))
    assert other is not None
    assert not other[0]
    assert "published 70.79" in other[1]
    assert check_zero_predictor(HandPoints(real.joints[:100], real.vertices[:100])) is None


def test_errors_in_the_cameras_space_are_what_they_are_called(truth):
    """Hands moved 30 mm away along the axis and 40 mm across, and hands too large by a tenth about their middles."""
    moved = mapped(truth, lambda points: points + np.array([0.024, -0.032, 0.03]))
    space = evaluate(truth, moved).camera_space
    assert space["cs_mpjpe_mm"] == pytest.approx(50)
    assert space["cs_mpvpe_mm"] == pytest.approx(50)
    assert (space["depth_error_mm"], space["lateral_error_mm"]) == pytest.approx((30, 40))
    assert (space["size_ratio"], space["size_error"]) == pytest.approx((1, 0), abs=1e-9)
    middle = truth.joints.mean(axis=1, keepdims=True)
    larger = HandPoints(*(middle + 1.1 * (points - middle) for points in truth))
    space = evaluate(truth, larger).camera_space
    assert (space["size_ratio"], space["size_error"]) == pytest.approx((1.1, 0.1))
    assert space["depth_error_mm"] == pytest.approx(0, abs=1e-6)
    assert evaluate(truth, larger).official["xyz_mean3d"] == pytest.approx(space["cs_mpjpe_mm"] / 10)
    assert evaluate(truth, mapped(truth, lambda points: points - points[:, :1])).camera_space == {}, "about the wrist"


def test_errors_by_joint_and_by_view_are_means_over_theirs(scored):
    joints = score_joints(scored.frames)
    assert list(joints) == list(JOINT_NAMES)
    errors = 1000 * scored.frames.joint_errors_aligned
    assert joints["index_tip"].mean_mm == pytest.approx(errors[:, JOINT_NAMES.index("index_tip")].mean())
    assert joints["wrist"].interval[0] < joints["wrist"].mean_mm < joints["wrist"].interval[1]
    angles = np.linspace(0, 100, len(errors))
    views = score_views(scored.frames, angles)
    assert list(views) == ["palm", "edge"], "no frame shows the back"
    assert sum(view.frames for view in views.values()) == len(errors)
    assert views["palm"].mean_mm == pytest.approx(errors[angles < 60].mean())


def test_2d_scores():
    truth = np.zeros((2, 21, 2))
    truth[:, 1] = (100, 50)
    predicted = np.add(truth, (6, 8))  # ten pixels, a tenth of the box
    visible = np.ones((2, 21), bool)
    visible[0] = False
    scores = score_keypoints(truth, predicted, visible)
    for name in ("box_error", "box_error_visible", "box_error_hidden"):
        assert scores[name] == pytest.approx(0.1), name
    assert (scores["pck_0.05"], scores["pck_0.2"]) == (0, 1)
    assert scores["auc_0_to_0.2"] == pytest.approx(0.5, abs=0.01)


def test_pck_is_the_mean_over_the_joints():
    """As HaMeR's and MMPose's tools have it. Here the tips are right, each joint but they wrong, and three of four tips
    are hidden: a share over all visible joints gives the tips 5 / 69 of the weight, not 5 / 21.
    """
    truth = np.random.default_rng(0).uniform(0, 100, (4, 21, 2))
    tips = [JOINT_NAMES.index(name) for name in JOINT_NAMES if name.endswith("tip")]
    predicted = truth + np.array([200, 0])
    predicted[:, tips] = truth[:, tips]
    visible = np.ones((4, 21), bool)
    visible[:3, tips] = False
    scores = score_keypoints(truth, predicted, visible)
    assert scores["pck_0.05_visible"] == pytest.approx(5 / 21)
    assert scores["pck_0.05_hidden"] == 1
    assert scores["pck_0.05"] == scores["auc_0_to_0.2"] == pytest.approx(5 / 21)


@pytest.mark.parametrize("joints", [[], [3], [3, 4]])
def test_an_image_whose_known_keypoints_have_no_box_is_not_scored(joints):
    """Two in one place made errors without end, of which no scores.json could be written."""
    truth = np.random.default_rng(0).uniform(0, 100, (2, 21, 2))
    truth[1, 3:5] = 50
    known = np.ones((2, 21), bool)
    known[1] = np.isin(np.arange(21), joints)
    scores = score_keypoints(truth, truth + 1, known, known)
    assert scores == score_keypoints(truth[:1], truth[:1] + 1, known[:1], known[:1])
    with pytest.raises(DataError, match="nothing to score"):
        score_keypoints(truth[1:], truth[1:], known=known[1:])


# Files and comparisons


def test_two_runs_are_compared_frame_by_frame(truth, predicted, scored, tmp_path):
    write_scores(tmp_path, scored, {})
    assert all((row.difference, row.verdict) == (0, "within chance") for row in compare(scored, tmp_path))
    better = evaluate(truth, sane(truth, error=0.005))
    rows = {row.name: row for row in compare(better, tmp_path)}
    row = rows["pa_mpvpe_mm"]
    assert row.difference == pytest.approx(better.paper["pa_mpvpe_mm"] - scored.paper["pa_mpvpe_mm"])
    assert {row.verdict for row in rows.values()} <= {"better", "within chance"}  # F grows, errors shrink
    assert row.verdict == rows["f_at_5"].verdict == "better"
    assert row.interval[0] < row.difference < row.interval[1] < 0
    other = evaluate(hands(40, seed=4), predicted)
    with pytest.raises(DataError, match="another ground truth"):
        compare(other, tmp_path)
    (tmp_path / "frames.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"no frames\.npz of an earlier run"):
        compare(scored, tmp_path)
    with pytest.raises(DataError, match=r"no frames\.npz of an earlier run"):
        compare(scored, tmp_path / "none")


def freihand_folder(path, truth: HandPoints):
    """FreiHAND's annotations for hands of ours: the same file names and nesting."""
    for name, array in (("xyz", truth.joints), ("verts", truth.vertices)):
        (path / f"evaluation_{name}.json").write_text(json.dumps(array.tolist()))
    K = [[480.0, 0, 112], [0, 480.0, 112], [0, 0, 1]]
    (path / "evaluation_K.json").write_text(json.dumps([K] * len(truth.joints)))
    return path


@pytest.fixture
def invoke():
    def run(*arguments: object):
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    return run


def test_the_command_scores_a_prediction_file(truth, predicted, scored, tmp_path, invoke):
    freihand_folder(tmp_path, truth)
    write_predictions(tmp_path / "pred.zip", *predicted)
    out = tmp_path / "out"
    result = invoke("--predictions", tmp_path / "pred.zip", "--ground-truth", tmp_path, "--out", out, "--no-report")
    assert result.exit_code == 0, result.output
    assert "Unaligned: xyz_mean3d" in result.output
    written = json.loads((out / "scores.json").read_text())
    for key in OFFICIAL_KEYS:  # the file has six decimals of a metre
        assert written[key] == pytest.approx(scored.official[key], abs=2e-4), key
    assert written["keypoints_2d"]["box_error"] > 0
    assert len(written["run"]["file SHA-256"]) == 64
    again = invoke(
        *("--predictions", tmp_path / "pred.zip", "--ground-truth", tmp_path, "--no-report"),
        *("--out", tmp_path / "second", "--against", out),
    )
    assert again.exit_code == 0, again.output
    assert "pa_mpvpe_mm:" in again.output
    assert "difference +0.0000" in again.output
    assert set(written["joints"]) == set(JOINT_NAMES)
    assert sum(view["frames"] for view in written["views"].values()) == len(truth.joints)
    assert written["camera_space"]["cs_mpjpe_mm"] == pytest.approx(10 * scored.official["xyz_mean3d"], abs=2e-3)
    third = invoke(
        *("--predictions", tmp_path / "pred.zip", "--ground-truth", tmp_path, "--out", tmp_path / "third"),
        *("--against", out, "--against", tmp_path / "second"),
    )
    assert third.exit_code == 0, third.output
    assert {"in out,", "in second,"} <= set(re.findall(r"in \w+,", third.output))
    rows = json.loads((tmp_path / "third" / "scores.json").read_text())["against"]  # a script's, too
    assert {row["run"] for row in rows} == {"out", "second"}
    assert {(row["difference"], *row["interval"], row["verdict"]) for row in rows} == {(0, 0, 0, "within chance")}
    page = (tmp_path / "third" / "report.html").read_text()
    assert "Against other runs" in page
    assert "Error by view" in page


def test_earlier_runs_in_folders_of_one_name_are_told_apart(truth, predicted, scored, tmp_path, invoke):
    """Both were called `scores`, as the folder in each run's own."""
    freihand_folder(tmp_path, truth)
    write_predictions(tmp_path / "pred.zip", *predicted)
    folders = [tmp_path / run / "scores" for run in ("first", "second")]
    for folder in folders:
        write_scores(folder, scored, {})
    arguments = "--predictions", tmp_path / "pred.zip", "--ground-truth", tmp_path, "--no-report", "--json"
    result = invoke(
        *arguments, "--out", tmp_path / "out", *(part for folder in folders for part in ("--against", folder))
    )
    assert result.exit_code == 0, result.output
    assert {row["run"] for row in json.loads(result.stdout)["against"]} == set(map(str, folders))


def test_the_command_hides_what_means_nothing(truth, predicted, tmp_path, invoke):
    freihand_folder(tmp_path, truth)
    about_wrist = mapped(predicted, lambda points: points - predicted.joints[:, :1])
    write_predictions(tmp_path / "pred.json", *about_wrist)
    result = invoke(
        "--predictions", tmp_path / "pred.json", "--ground-truth", tmp_path, "--out", tmp_path, "--no-report"
    )
    assert result.exit_code == 0, result.output
    assert "xyz_mean3d" not in result.output
    assert "Unaligned figures are not shown" in result.output
    assert json.loads((tmp_path / "scores.json").read_text())["xyz_mean3d"] > 10


FILE = ("--predictions", "pred.json", "--ground-truth", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give either --predictions"),
        (("--predictions", "pred.json"), "--predictions needs --ground-truth"),
        (("--predictions", "pred.json", "--ground-truth", "nowhere"), "nowhere is no test set"),
        (("--data", "nowhere"), "nowhere is no test set"),
        (("--data", "nowhere", "--ground-truth", "elsewhere"), "--data is a test set by itself"),
        ((*FILE, "--model", "handmesh_t8"), "go with --data"),
        ((*FILE, "--crop", "box"), "go with --data"),
        ((*FILE, "--margin", "1.5"), "go with --data"),
        ((*FILE, "--passes", "3"), "go with --data"),
        ((*FILE, "--tta", "metro"), "go with --data"),
    ],
)
def test_the_commands_refusals(arguments, message, invoke):
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, HandMeshError)
    assert message in str(result.exception)
