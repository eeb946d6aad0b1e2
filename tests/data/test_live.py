"""Renders that arrive while training runs: a ring of the newest, and batches that never use one too often."""

from __future__ import annotations

import logging
import multiprocessing
import re
from itertools import islice

import numpy as np
import pytest
import torch

from handmesh.config.augmentation import Augmentation
from handmesh.config.load import parse_config
from handmesh.data.augment_gpu import BatchAugmenter
from handmesh.data.live import RenderBuffer, live_batches
from handmesh.data.sources import RunData, ValidationPack
from handmesh.errors import ConfigError
from handmesh.hand import builtin_hand
from handmesh.learn.train import _pictures, train
from handmesh.synth.farm import RenderBatch

CPU = torch.device("cpu")


def renders(*numbers: int) -> RenderBatch:
    """Renders that can be told apart by their betas."""
    count = len(numbers)
    return RenderBatch(
        indices=np.array(numbers),
        image=np.full((count, 4, 4, 4), 7, np.uint8),
        keypoints=np.zeros((count, 21, 2), np.float32),
        pose=np.zeros((count, 16, 3, 3), np.float32),
        betas=np.repeat(np.array(numbers, np.float32)[:, None], 10, axis=1),
        intrinsics=np.zeros((count, 3, 3), np.float32),
    )


def test_a_ring_holds_the_newest_renders_and_hands_out_all_of_them():
    buffer, generator = RenderBuffer(5, 4, CPU), torch.Generator().manual_seed(0)
    held = []
    for new in ((0, 1, 2), (), (3, 4, 5, 6), tuple(range(7, 20))):
        buffer.add(renders(*new))
        held = [*held, *new][-5:]
        assert len(buffer) == len(held)
        sampled = buffer.sample(200, generator)
        assert sorted(set(sampled.betas[:, 0].int().tolist())) == held
        assert (sampled.image == 7).all()
    assert buffer.added == 20
    share = (buffer.sample(5000, generator).betas[:, 0] == 15).float().mean()
    assert share == pytest.approx(1 / 5, abs=0.03)


def live_config(tmp_path, **live):
    return parse_config(
        {
            "model": {"backbone": "fastvit_t8", "resolution": 64},
            "data": {"live": {"directory": str(tmp_path), "size": 64, "workers": 1, "backgrounds": 2, **live}},
            "augmentation": {"negative_ratio": 0.2, "mirrored": 0.3, "context_scale_prob": 0.2},
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
    pictures = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    augment = BatchAugmenter(pictures, pictures, Augmentation(mirrored=0.4, negative_ratio=0.4))
    stored = RenderBatch(*(torch.from_numpy(np.array(values)) for values in renders(*range(40))))
    stored = stored._replace(keypoints=torch.rand(40, 21, 2) * 4, intrinsics=torch.eye(3).expand(40, 3, 3))
    labels = augment(stored, 64, torch.Generator().manual_seed(0)).labels
    assert 0 < (labels.present & ~labels.right).sum() < labels.present.sum() < 40
    assert torch.equal(labels.keypoints_known, labels.present[:, None].expand(-1, 21))
    assert torch.equal(labels.pose_known, labels.present & labels.right)
    assert torch.equal(labels.betas_known, labels.pose_known)
    assert not (labels.joints_known | labels.vertices_known).any()
    assert (labels.keypoints[~labels.present] == 0).all()
    assert (labels.betas[~labels.pose_known] == 0).all()
    assert labels.vertices.shape == (40, 778, 3)


def test_a_reparameterized_model_is_unreparameterized_with_held_out_pictures(tiny_pack, few_backgrounds, tmp_path):
    """`start_from` needs pictures before there is a render: every held-out one, in batches."""
    data = RunData(sources=[], validation=[ValidationPack(tiny_pack, upright=False)])
    shown = list(_pictures(live_config(tmp_path), data))
    assert [tuple(images.shape) for images in shown] == [(16, 64, 64, 3)]
    assert shown[0].float().std() > 20


def test_what_cannot_be_live_is_refused():
    with pytest.raises(ConfigError, match="live is a source for itself"):
        parse_config({"data": {"live": {}, "synthetic": {}}}, "test")
    with pytest.raises(ConfigError, match="epochs count what a source holds"):
        parse_config({"data": {"live": {}}, "epochs": 3.0}, "test")
    with pytest.raises(ConfigError, match=r"context_scale is \(low, high\)"):
        parse_config({"augmentation": {"context_scale": [3.0, 2.0]}}, "test")


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
