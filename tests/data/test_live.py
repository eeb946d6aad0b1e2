"""Renders that arrive while training runs: a ring of the newest, and batches that never use one too often."""

from __future__ import annotations

import logging
import multiprocessing
import re
from itertools import islice

import numpy as np
import pytest
import torch

from handmesh.config import parse_config
from handmesh.data.augment_gpu import LabelledCrops
from handmesh.data.live import RenderRing, as_batch, live_batches
from handmesh.data.stream import HeldOutPack, RunData
from handmesh.errors import ConfigError
from handmesh.hand import builtin_hand
from handmesh.learn.train import _pictures, train
from handmesh.synth.farm import Harvest

CPU = torch.device("cpu")


def harvest(*numbers: int) -> Harvest:
    """Renders that can be told apart by their betas."""
    count = len(numbers)
    return Harvest(
        indices=np.array(numbers),
        image=np.full((count, 4, 4, 4), 7, np.uint8),
        keypoints=np.zeros((count, 21, 2), np.float32),
        pose=np.zeros((count, 16, 3, 3), np.float32),
        betas=np.repeat(np.array(numbers, np.float32)[:, None], 10, axis=1),
        intrinsics=np.zeros((count, 3, 3), np.float32),
    )


def test_a_ring_holds_the_newest_renders_and_hands_out_all_of_them():
    ring, generator = RenderRing(5, 4, CPU), torch.Generator().manual_seed(0)
    held = []
    for new in ((0, 1, 2), (), (3, 4, 5, 6), tuple(range(7, 20))):
        ring.put(harvest(*new))
        held = [*held, *new][-5:]
        assert len(ring) == len(held)
        picked = ring.pick(200, generator)
        assert sorted(set(picked.betas[:, 0].int().tolist())) == held
        assert (picked.image == 7).all()
    assert ring.made == 20
    share = (ring.pick(5000, generator).betas[:, 0] == 15).float().mean()
    assert share == pytest.approx(1 / 5, abs=0.03)


def live_config(tmp_path, **live):
    return parse_config(
        {
            "model": {"backbone": "fastvit_t8", "resolution": 64},
            "data": {"live": {"directory": str(tmp_path), "size": 64, "workers": 1, "backgrounds": 2, **live}},
            "augmentation": {"absent": 0.2, "mirrored": 0.3, "wide": 0.2},
            "batch_size": 6,
            "steps": 1000,
        },
        "test",
    )


def test_batches_come_while_renders_are_made_and_none_is_seen_too_often(tmp_path, caplog):
    """Training waits rather than see a render more than `reuse` times on average; who stops taking ends the workers."""
    caplog.set_level(logging.INFO, "handmesh")
    config = live_config(tmp_path, capacity=8, start=3, reuse=2.0)
    batches = live_batches(config, builtin_hand(), CPU, first_step=7)
    taken = list(islice(batches, 4))
    batches.close()
    assert not multiprocessing.active_children()
    made, seen = re.search(r"(\d+) renders, each seen ([\d.]+) times", caplog.text).groups()
    assert float(seen) <= 2.0
    assert int(made) >= 12
    assert all(batch.image.shape == (6, 64, 64, 3) and batch.image.dtype == torch.uint8 for batch in taken)
    assert not torch.equal(taken[0].image, taken[1].image)


def test_a_batch_says_what_is_known():
    """Of a mirrored hand its keypoints alone, and of no hand nothing at all."""
    crops = LabelledCrops(
        image=torch.zeros(3, 64, 64, 3, dtype=torch.uint8),
        keypoints=torch.zeros(3, 21, 2),
        pose=torch.eye(3).expand(3, 16, 3, 3),
        betas=torch.zeros(3, 10),
        present=torch.tensor([True, True, False]),
        right=torch.tensor([True, False, True]),
    )
    batch = as_batch(crops)
    assert batch.keypoint_known.all(dim=1).tolist() == [True, True, False]
    assert batch.pose_known.tolist() == batch.betas_known.tolist() == [True, False, False]
    assert not (batch.joints_known | batch.vertices_known).any()


def test_a_folded_model_is_unfolded_with_held_out_pictures(tiny_pack, few_backgrounds, tmp_path):
    """`start_from` needs pictures before there is a render: every held-out one, in batches."""
    data = RunData(sources=[], held_out=[HeldOutPack(tiny_pack, upright=False)])
    shown = list(_pictures(live_config(tmp_path), data))
    assert [tuple(images.shape) for images in shown] == [(16, 64, 64, 3)]
    assert shown[0].float().std() > 20


def test_what_cannot_be_live_is_refused():
    with pytest.raises(ConfigError, match="live is a source for itself"):
        parse_config({"data": {"live": {}, "synthetic": {}}}, "test")
    with pytest.raises(ConfigError, match="epochs count what a source holds"):
        parse_config({"data": {"live": {}}, "epochs": 3.0}, "test")
    with pytest.raises(ConfigError, match=r"wide_margin is \(low, high\)"):
        parse_config({"augmentation": {"wide_margin": [3.0, 2.0]}}, "test")


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("handmesh.learn.train.joined_ranks", lambda: _TwoRanks())
    with pytest.raises(ConfigError, match="without torchrun"):
        train(live_config(tmp_path), tmp_path / "run")


class _TwoRanks:
    """As torchrun would start it, but nobody to talk to."""

    def __enter__(self):
        from handmesh.learn.distributed import Ranks

        class Lonely(Ranks):
            def wait(self) -> None:
                pass

            def gather(self, value):
                return [value]

        return Lonely(CPU, index=0, count=2)

    def __exit__(self, *_):
        pass
