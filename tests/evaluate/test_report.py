"""The report: one page that needs nothing else, says what is known, and shows what happened."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, chromium
from scored_hands import hands, mapped, sane

from handmesh.evaluate.official_files import HandPoints
from handmesh.evaluate.report import ReportInput, format_figure, render_report, write_report
from handmesh.evaluate.scores import Comparison, evaluate
from handmesh.evaluate.sets import EvaluationSet, open_evaluation_set
from handmesh.geometry.normals import vertex_normals
from handmesh.hand import Handedness, builtin_hand
from handmesh.synth import write_dataset

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every element is closed by its own kind, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # nothing is fetched
    assert re.findall(r"\b(?:nan|inf)\b", re.sub(r"base64,[^\"]*", "", page.lower())) == []
    return checker


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EvaluationSet:
    path = tmp_path_factory.mktemp("set") / "hands"
    write_dataset(path, 6, 3, size=96, background_count=2)
    return open_evaluation_set(path)


@pytest.fixture(scope="module")
def report(data) -> ReportInput:
    predicted = sane(data.truth)
    return ReportInput(
        evaluate(data.truth, predicted), predicted, data, {"subject": "a <model> & more", "protocol": "frame"}
    )


def test_the_page_is_whole_and_says_the_scores(report, tmp_path):
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    checker = checked(page)
    text = " ".join(checker.texts)
    for key, value in report.evaluation.paper.items():
        assert format_figure(key, value) in text
    assert "a <model> & more" in text
    assert "<model>" not in page.replace("&lt;model&gt;", "")
    for told in (
        "against the view",
        "against occlusion",
        "skin tone",
        "size of the hand",
        "Worst frames",
        "Random frames",
    ):
        assert told in text
    assert report.evaluation.truth_sha256 in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_sources_of_published_figures_are_seen_without_scrolling(report, tmp_path):
    """The table was wider than the page, and whether a figure averages views stood beyond its edge."""
    write_report(tmp_path / "report.html", report)
    with chromium(tmp_path / "profile") as page:
        page.resize(1000, 800)
        page.open((tmp_path / "report.html").as_uri(), "document.readyState === 'complete'")
        table = "document.querySelector('.scroll')"
        assert page.run(f"{table}.scrollWidth") == page.run(f"{table}.clientWidth")
        assert "TTA: 95 views" in page.run(f"{table}.innerText")


def test_the_published_mean_hand_is_said_to_be_of_another_release(report, tmp_path):
    """Its 17.8 mm are of FreiHAND's first release; that of the set at hand is computed, and stands before it."""
    write_report(tmp_path / "report.html", report)
    texts = checked((tmp_path / "report.html").read_text()).texts
    (published,) = (text for text in texts if "mean hand" in text and "own mean hand" not in text)
    assert published == "mean hand, first release"
    place = texts.index("mean-pose baseline: this set's own mean hand")
    assert place < texts.index(published)
    assert format_figure("pa_mpvpe_mm", report.evaluation.mean_pose_baseline["pa_mpvpe_mm"]) in texts[place : place + 6]
    assert format_figure("pa_mpvpe_mm", 17.8) in texts[texts.index(published) :]


def test_pictures_show_the_prediction_on_the_photograph(report, data):
    """Left the photograph as it is, right the same with something drawn where the hand is."""
    checker = checked(render_report(report))
    jpegs = [url for url in checker.images if url.startswith("data:image/jpeg")]
    assert len(jpegs) == 2 * len(data)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(jpegs[0].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    side = picture.shape[0]
    photo, placed, moved = (picture[:, side * k : side * (k + 1)].astype(int) for k in range(3))
    for drawn in (placed, moved):
        changed = np.abs(drawn - photo).max(axis=2) > 40
        assert 0.05 < changed.mean() < 0.7
        assert changed[side // 4 : -side // 4, side // 4 : -side // 4].mean() > changed.mean()


def test_the_map_of_errors_shows_the_palm_and_then_the_back(report):
    """Its axes were left-handed: both sides were seen from inside, each in the other's place."""
    hand = builtin_hand()
    on_the_back = vertex_normals(hand.v_template, hand.faces)[:, 1] > 0
    evaluation = replace(report.evaluation, vertex_errors_aligned=np.where(on_the_back, 0.03, 0.0))
    checker = checked(render_report(replace(report, evaluation=evaluation)))
    (url,) = (url for url in checker.images if url.startswith("data:image/png"))
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8), cv2.IMREAD_COLOR_RGB)
    bright = picture[..., 1] > 120
    palm, back = np.hsplit(bright, 2)
    assert back.mean() > 0.2 > 5 * palm.mean()


def without_images(truth: HandPoints, **changes) -> EvaluationSet:
    count = len(truth.joints)
    nothing: dict = dict.fromkeys(("intrinsics", "keypoints", "visible"))
    return EvaluationSet(
        path=changes.pop("path"), kind="FreiHAND", truth=truth, handedness=(Handedness.RIGHT,) * count, images=(),
        boxes=(None,) * count, facts=({},) * count, **(nothing | changes),
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["joints only", "other topology", "another true topology", "no cameras", "wrong units", "one frame"]
)
def test_poor_sets_make_a_page_too(kind, tmp_path):
    truth = hands(1 if kind == "one frame" else 4)
    predicted = sane(truth)
    if kind == "joints only":
        truth, predicted = HandPoints(truth.joints, None), HandPoints(predicted.joints, None)
    if kind == "other topology":
        predicted = HandPoints(predicted.joints, predicted.vertices[:, ::2])
    if kind == "another true topology":  # was drawn with the predicted hand's triangles
        truth = HandPoints(truth.joints, truth.vertices[:, ::2])
    if kind == "wrong units":
        predicted = mapped(predicted, lambda points: 1000 * points)
    changes: dict = {"path": tmp_path}
    if kind != "no cameras":
        K = np.array([[480.0, 0, 112], [0, 480, 112], [0, 0, 1]])
        projected = truth.joints @ K.T
        changes |= {
            "intrinsics": np.stack([K] * len(truth.joints)),
            "keypoints": projected[..., :2] / projected[..., 2:],
        }
    evaluation = evaluate(truth, predicted)
    page = render_report(ReportInput(evaluation, predicted, without_images(truth, **changes), {}))
    text = " ".join(checked(page).texts)
    assert ("millimetres" in text) == (kind == "wrong units")
    assert ("xyz_mean3d" in text) == evaluation.camera_coordinates == (kind != "wrong units")


@pytest.mark.parametrize("missing", ["intrinsics", "keypoints"])
def test_photographs_whose_hands_are_not_placed_in_them_make_a_page_too(missing, report):
    """Joints are all that a test set needs; without keypoints, or a camera to see them by, no report was written."""
    unknown = {"intrinsics": None, "keypoints": None if missing == "keypoints" else report.data.keypoints}
    data = replace(report.data, **unknown)
    evaluation = replace(report.evaluation, camera_coordinates=False)
    page = render_report(replace(report, evaluation=evaluation, data=data, keypoints=report.data.keypoints))
    text = " ".join(checked(page).texts)
    assert "The true hand (its place in the photograph is not known)" in text
    assert ("the prediction where it was placed" in text) == (missing == "intrinsics")


def test_a_comparison_is_told(report):
    row = Comparison("pa_mpvpe_mm", 6.5, 6.7, -0.2, (-0.3, -0.1))
    changed = ReportInput(report.evaluation, report.predicted, report.data, report.run, comparisons=[row])
    text = " ".join(checked(render_report(changed)).texts)
    assert "-0.200" in text
    assert "better" in text
