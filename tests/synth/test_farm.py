"""Rendering ahead in other processes: the same samples as in this one, and no silence when a process is gone."""

from __future__ import annotations

import logging
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from handmesh.errors import DataError
from handmesh.hand import builtin_hand
from handmesh.synth import Backgrounds, SceneRenderer, SceneSettings, sample_generator
from handmesh.synth.farm import RenderFarm

SIZE = 64
SCENES = SceneSettings(crop_share=(0.4, 0.7))


def test_a_farm_delivers_the_samples_of_its_seed_and_survives_a_worker(caplog):
    """Every sample arrives once and is what this process would draw; when one worker is killed, the other goes on."""
    caplog.set_level(logging.WARNING, "handmesh")
    with RenderFarm(builtin_hand(), SCENES, SIZE, seed=3, first=100, workers=2, background_count=2) as farm:
        harvest = farm.take(at_least=24)
        assert len(harvest.indices) == len(set(harvest.indices.tolist())) >= 24
        # Of the first ones a slow worker may still be drawing some: which are there is a matter of time.
        assert harvest.indices.min() >= 100
        assert harvest.image.shape[1:] == (SIZE, SIZE, 4)
        renderer = SceneRenderer(builtin_hand(), SCENES, SIZE, backgrounds=Backgrounds(3, count=2))
        for row in (0, 23):
            wanted = renderer.render_foreground(sample_generator(3, int(harvest.indices[row])))
            np.testing.assert_array_equal(harvest.image[row], np.dstack([wanted.image, wanted.alpha]))
            for name in ("keypoints", "pose", "betas", "intrinsics"):
                np.testing.assert_array_equal(getattr(harvest, name)[row], getattr(wanted, name))

        before = harvest.image.copy()
        victim = farm.workers[0].process
        os.kill(victim.pid, signal.SIGKILL)
        more = farm.take(at_least=40)  # more than both can have had ready
        assert not set(more.indices.tolist()) & set(harvest.indices.tolist())
        np.testing.assert_array_equal(harvest.image, before)  # copies: slots are filled anew behind them
        assert "rendering process 0 ended with signal SIGKILL while it drew" in caplog.text
        assert "the other 1 go on" in caplog.text

        os.kill(farm.workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"No rendering process is left\..*rendering process 1 ended with signal"):
            farm.take(at_least=1000)


def test_a_scene_that_cannot_be_drawn_is_named(capfd):
    with (
        RenderFarm(builtin_hand().mirrored(), SCENES, SIZE, seed=0, workers=1, background_count=1) as farm,
        pytest.raises(DataError, match="the hand is a left one"),
    ):
        farm.take(at_least=1)
    assert "ValueError" in capfd.readouterr().err  # the whole story, for whoever has to mend it


def test_a_closed_farm_leaves_nothing_behind():
    farm = RenderFarm(builtin_hand(), SCENES, SIZE, seed=0, workers=1, background_count=1)
    process, name = farm.workers[0].process, farm._memory.name
    started = time.monotonic()
    empty = farm.take(timeout=0.0)
    assert len(empty.indices) <= 16
    assert time.monotonic() - started < 30
    farm.close()
    farm.close()
    assert not process.is_alive()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
