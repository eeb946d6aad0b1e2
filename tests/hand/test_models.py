"""A hand model in MANO's format is one entry of a table."""

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

from handmesh.cli import app
from handmesh.config.model import ModelConfig
from handmesh.data.check import check
from handmesh.data.sample import LabelledHand
from handmesh.doctor import examine
from handmesh.errors import AssetError, ConfigError
from handmesh.evaluate.sets import match_hand
from handmesh.hand import FINGERTIP_VERTICES, VERTEX_COUNT, HandArrays, Handedness, builtin_hand
from handmesh.hand.anatomy import POSES, pose_from_angles
from handmesh.hand.fit import fit_hand
from handmesh.hand.models import HAND_MODELS, HandModelSource, hands_at_hand, has_mano_joints, load_hand, name_of


@pytest.fixture
def third_hand(monkeypatch: pytest.MonkeyPatch) -> HandArrays:
    """The built-in hand with its vertices in another order, but for the fingertips."""
    hand = builtin_hand()
    others = np.setdiff1d(np.arange(VERTEX_COUNT), FINGERTIP_VERTICES)
    order = np.arange(VERTEX_COUNT)
    order[others] = np.random.default_rng(0).permutation(others)
    by_vertex = {name: getattr(hand, name)[order] for name in ("v_template", "shapedirs", "posedirs", "weights")}
    faces = np.argsort(order)[hand.f].astype(np.uint32)
    arrays = dataclasses.replace(hand, **by_vertex, J_regressor=hand.J_regressor[:, order], f=faces)
    source = HandModelSource(
        "shuffled",
        "the shuffled hand",
        "CC0",
        lambda side: arrays if side == Handedness.RIGHT else arrays.mirrored(),
        how_to_match="take the old one",
    )
    monkeypatch.setitem(HAND_MODELS, "shuffled", source)
    return arrays


def test_a_third_hand_is_one_entry(third_hand, monkeypatch, tmp_path):
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path))
    assert ModelConfig(hand="shuffled").hand == "shuffled"
    assert load_hand("shuffled") is third_hand
    assert [source.name for source, _ in hands_at_hand()] == ["builtin", "shuffled"], "MANO was not added here"
    assert name_of(third_hand.sha256) == "shuffled"
    assert any(finding.subject == "hand 'shuffled'" and finding.good for finding in examine())
    assert match_hand(third_hand.shaped(np.ones(10)).vertices[None]) is third_hand
    assert not LabelledHand("mano", None).matches(third_hand), "FreiHAND's meshes are not of another known hand"
    result = CliRunner().invoke(
        app, ["synth", "--like-freihand", str(tmp_path / "set"), "--count", "1", "--hand-model", "shuffled"]
    )
    assert result.exit_code == 0, result.output
    assert third_hand.sha256 in (tmp_path / "set" / "handmesh.json").read_text()
    sheet = ["data", "prepare", str(tmp_path / "set")]
    assert CliRunner().invoke(app, sheet).exit_code == 0
    rows = [row for row in check(tmp_path / "set") if "MANO parameters" in row.subject]
    assert [row.passed for row in rows] == [True, True], rows


def test_a_hand_is_given_by_its_name_or_as_it_is(third_hand, monkeypatch, tmp_path):
    """`fit_hand(keypoints, hand="builtin")` ended in AttributeError."""
    monkeypatch.setenv("HANDMESH_MANO_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"The hand is of type str, wanted what load_hand\(name, side\) gives"):
        pose_from_angles("shuffled", POSES["pinch"])
    keypoints = third_hand.shaped().posed(pose_from_angles(third_hand, POSES["pinch"])).joints[:, :2] * 1000
    fit = fit_hand(keypoints, hand="shuffled")
    np.testing.assert_array_equal(fit.pose, fit_hand(keypoints, hand=third_hand).pose)
    np.testing.assert_array_equal(fit.vertices("shuffled"), fit.vertices(third_hand))
    assert (fit.vertices() != fit.vertices("shuffled")).any()
    with pytest.raises(ConfigError, match="Hand model 'left': wanted builtin or mano"):
        fit_hand(keypoints, hand="left")
    with pytest.raises(ConfigError, match="The hand is of type ndarray, wanted a name or what load_hand"):
        fit_hand(keypoints, hand=keypoints)
    with pytest.raises(AssetError, match="MANO"):
        fit_hand(keypoints, hand="mano")


def test_whose_joints_lie_where_mano_has_them(third_hand, stand_in_mano, monkeypatch):
    """It was told by the name "mano" alone: a copy of MANO had its joints taken for the built-in hand's."""
    copy = dataclasses.replace(stand_in_mano, shapedirs=1.1 * stand_in_mano.shapedirs)
    assert not has_mano_joints(builtin_hand().sha256)
    assert has_mano_joints(stand_in_mano.sha256)
    assert has_mano_joints(copy.sha256), "MANO from another file, or nobody's that is here"
    assert has_mano_joints(third_hand.sha256)
    ours = dataclasses.replace(HAND_MODELS["shuffled"], mano_joints=False)
    monkeypatch.setitem(HAND_MODELS, "shuffled", ours)
    assert not has_mano_joints(third_hand.sha256)
    assert LabelledHand("mano", None).mano_joints, "as published"
    assert not LabelledHand("builtin", copy.sha256).mano_joints, "the built-in hand of another version"
    assert LabelledHand("builtin", stand_in_mano.sha256).mano_joints, "a hand that is here is known better"


def test_a_hand_that_nobody_knows_is_named_in_the_settings():
    with pytest.raises(ValueError, match="there is no hand model 'nimble', only builtin and mano"):
        ModelConfig(hand="nimble")
