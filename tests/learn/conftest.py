"""What tests of training share: runs that leave out what takes longer than the runs themselves."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small_runs(request, monkeypatch) -> None:
    """No graphs beside models, but where `graphs_too` is asked for. Statistics of batch norms that are put in anew are
    taken from 64 pictures in place of 512: answers are the same.
    """
    if "graphs_too" not in request.fixturenames:
        request.getfixturevalue("weights_alone")
    monkeypatch.setattr("handmesh.learn.train._NORM_BATCHES", 2)


@pytest.fixture
def graphs_too() -> None:
    """As in a user's run, every model that is written has its graph beside it."""
