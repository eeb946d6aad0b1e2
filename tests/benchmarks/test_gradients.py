"""What carries the gradient: shares add up, and squares of metres weigh next to nothing."""

import pytest
from gradients import gradient_shares

from handmesh.config.load import load_config


@pytest.mark.parametrize("name", ["freihand_ma36", "freihand_ma36_plus"])
def test_shares_add_up(name):
    for shares in gradient_shares(load_config(name), 1.0, count=8).values():
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0


def test_only_what_is_drawn_pulls_at_the_camera():
    camera = gradient_shares(load_config("freihand_ma36"), 1.0, count=8)["camera"]
    assert camera == pytest.approx({"vertices": 0, "joints": 0, "keypoints": 1})


def test_a_share_grows_with_its_weight():
    """The whole of three parts a, b, c with shares that add up to 1: doubling a makes it 2 a / (1 + a)."""
    plain = gradient_shares(load_config("freihand_ma36"), 1.0, count=8)["pose"]
    double = gradient_shares(load_config("freihand_ma36", ["loss.vertices=2.0"]), 1.0, count=8)["pose"]
    assert double["vertices"] == pytest.approx(2 * plain["vertices"] / (1 + plain["vertices"]), rel=1e-4)


def test_squares_of_metres_carry_little_and_absolute_values_as_much_as_vertices():
    """What the ablation config says."""
    squares = gradient_shares(load_config("freihand_ma36"), 1.0, count=16)["pose"]
    absolute = gradient_shares(load_config("freihand_ma36_l1_joints"), 1.0, count=16)["pose"]
    assert squares["joints"] < 0.03
    assert absolute["joints"] == pytest.approx(absolute["vertices"], rel=0.25)
