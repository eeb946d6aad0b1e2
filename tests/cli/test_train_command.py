"""What `handmesh train` says while it runs."""

from __future__ import annotations

from handmesh.cli.train import _in_words
from handmesh.learn.train import Progressed


def test_progress_is_said_in_distances_and_a_dash_where_there_is_nothing_to_measure():
    """It once said "vertices 0.0 mm" of photographs that have none, and half the distance of those that have."""
    now = Progressed(5, 10, {"total": 1.234}, 12.34, None, 250.0, 0.03)
    assert _in_words(now) == "loss 1.23: keypoints 12.3 px, vertices -; 250 images/s, 3% waiting"
    now = Progressed(5, 10, {"total": 1.234}, None, 7.04, 250.0, 0.03)
    assert _in_words(now) == "loss 1.23: keypoints -, vertices 7.0 mm; 250 images/s, 3% waiting"
