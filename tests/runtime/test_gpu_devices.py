"""Training on a GPU, on a machine without one: tensors that have a device and a shape, but no values.

PyTorch refuses operations on tensors of two devices before it looks at values, and so do its fake ones. What is asked
here is therefore whether everything that a step on a GPU needs lies there, in kinds and shapes that fit. What comes out
is for the other tests, which run the same code on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from handmesh.config.load import parse_config
from handmesh.config.loss import LossWeights
from handmesh.data import augment_gpu, live
from handmesh.data.augment_gpu import BatchAugmenter
from handmesh.data.live import RenderBuffer
from handmesh.data.stream import HandBatch
from handmesh.hand import builtin_hand
from handmesh.hand.layer import HandModel
from handmesh.learn.losses import hand_loss, label_counts
from handmesh.learn.targets import make_targets
from handmesh.learn.train import TrainingModule
from handmesh.model.network import DenseHead, HandMeshNet, to_device
from handmesh.synth.farm import RenderBatch

GPU = torch.device("cuda", 0)
SIZE = 96

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="fake tensors are no public interface of PyTorch, and were tried with 2.13 only: pip install 'torch>=2.13'",
)


class _WithoutCuda(TorchFunctionMode):
    """Some things ask for CUDA itself, even where tensors have no values: `x[...]` and `~x`, unlike the operations that
    they stand for, and random generators, which are the CPU's here and taken for the GPU's.
    """

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in (torch.rand, torch.randn):
            keywords = {**keywords, "device": GPU}
            del keywords["generator"]
        if function is torch.nn.functional.grid_sample:
            image, grid = arguments
            assert image.device == grid.device
            return image.new_empty(*image.shape[:2], *grid.shape[1:3])
        if function is torch.Tensor.__invert__:
            return torch.logical_not(*arguments)
        if function is torch.Tensor.contiguous:
            return torch.clone(*arguments, memory_format=torch.contiguous_format)
        if function is torch.Tensor.__getitem__:
            return _part(*arguments)
        if function is torch.Tensor.__setitem__:
            whole, key, value = arguments
            part = _part(whole, key)
            if isinstance(value, torch.Tensor):
                assert value.device == whole.device
                value.expand_as(part)
            return None
        return function(*arguments, **(keywords or {}))


def _part(whole: torch.Tensor, key: Any) -> torch.Tensor:
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(one is Ellipsis for one in keys):
        at = next(number for number, one in enumerate(keys) if one is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (whole.ndim - sum(one is not None for one in keys) + 1)
    dim = 0
    for one in keys:
        if one is None:
            whole = whole.unsqueeze(dim)
        elif isinstance(one, int):
            whole, dim = whole.select(dim, one), dim - 1
        elif isinstance(one, slice):
            whole = torch.ops.aten.slice(whole, dim, one.start, one.stop, one.step or 1)
        else:
            indices = [None] * dim + [torch.as_tensor(one)]
            whole = torch.ops.aten.index(whole, indices)
        dim += 1
    return whole


@contextmanager
def without_values() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), _WithoutCuda():
        yield
    augment_gpu._on_device.cache_clear()


def live_batch() -> HandBatch:
    """Four samples, as `data.live.live_batches` makes them."""
    config = parse_config(
        {"augmentation": {"negative_ratio": 0.2, "context_scale_prob": 0.2, "mirrored": 0.2, "fda_prob": 0.1}}, "test"
    )
    buffer, generator = RenderBuffer(6, SIZE, GPU), torch.Generator()
    buffer.add(
        RenderBatch(
            indices=np.arange(4),
            image=np.zeros((4, SIZE, SIZE, 4), np.uint8),
            keypoints=np.zeros((4, 21, 2), np.float32),
            pose=np.zeros((4, 16, 3, 3), np.float32),
            betas=np.zeros((4, 10), np.float32),
            intrinsics=np.zeros((4, 3, 3), np.float32),
        )
    )
    pictures = torch.zeros(3, 3, 2 * SIZE, 2 * SIZE, dtype=torch.uint8, device=GPU)
    augment = BatchAugmenter(pictures, pictures, config.augmentation)
    return augment(buffer.sample(4, generator), 64, generator)


@pytest.fixture(autouse=True)
def no_pinning(monkeypatch):
    """Memory is pinned by CUDA alone."""
    monkeypatch.setattr(live, "_to_device", lambda values, device: values.to(device))


def test_tensors_of_two_devices_do_not_mix():
    """Otherwise the other tests would say nothing."""
    with without_values(), pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device=GPU) + torch.zeros(2)


def test_a_live_batch_is_made_on_the_gpu():
    with without_values():
        batch = live_batch()
        assert {value.device for value in (batch.image, *batch.labels)} == {GPU}
        assert batch.image.shape == (4, 64, 64, 3)
        assert batch.image.dtype == torch.uint8


@pytest.mark.parametrize("backbone", ["fastvit_t8", "fastvit_sa12"])  # without and with attention
def test_answers_and_losses_stay_on_the_gpu(backbone):
    """Gradients and batch statistics are left out: PyTorch makes them in ways that need CUDA."""
    settings = {"backbone": backbone, "resolution": 64, "confidence_head": True, "handedness_head": True}
    config = parse_config({"model": settings}, "test")
    model = HandMeshNet(config.model, HandModel(builtin_hand()))
    module = TrainingModule(model, DenseHead(model.backbone.pyramid_channels)).eval()
    with without_values(), torch.no_grad():
        to_device(module, GPU)
        batch = live_batch()
        targets = make_targets(batch.labels, model.hand)
        output, heatmaps = module(batch.image)
        loss, parts = hand_loss(output, None, targets, config.loss, config.loss_norms, label_counts(targets))
        on_gpu = [loss, *parts.values(), *output, *heatmaps, *targets]
        assert {value.device for value in on_gpu} == {GPU}
        # Those of heatmaps use a softmax that is not to be had here, and the optional heads' look for gradients.
        left_out = {"heatmaps", "heatmap_keypoints", "heatmap_depths"}
        left_out |= {"confidence", "handedness", "joint_confidence", "normals", "edges"}  # the last two are off
        assert set(parts) == set(LossWeights.model_fields) - left_out
