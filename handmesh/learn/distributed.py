"""Training in several processes: `torchrun --nproc-per-node N -m handmesh train ...`, on one machine or many.

The promise: a step's loss and gradient are those of one process with the same global batch. Three things make it true.
Samples are dealt out by number (`data.stream`), so that none is seen twice. Losses are divided by what is known in
the whole batch (`losses.label_counts`), and gradients are averaged by DistributedDataParallel. Batch norm takes its
statistics over all processes: torch's SyncBatchNorm on GPUs, `SyncedBatchNorm2d` on CPUs, where torch has none.

Only what drop path draws differs: each process has random numbers of its own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from handmesh.errors import ConfigError, HandMeshError

T = TypeVar("T")

# The first process may render a synthetic set while the others wait.
_PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is, and what it computes on."""

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """The one that writes files and reports."""
        return self.index == 0

    def barrier(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """`work`, done by the first process while the others wait; None in those.

        What it raises of ours ends them all: the first process with that error, the others without a word.
        """
        result: T | None = None
        error: HandMeshError | None = None
        if self.is_main:
            try:
                result = work()
            except HandMeshError as caught:
                error = caught
        failed = any(self.gather(error is not None))
        if error is not None:
            raise error
        if failed:
            raise SystemExit(1)
        return result

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of scalars with the same names everywhere: their means over all processes, in one message."""
        if self.count == 1:
            return dict(values)
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.count, strict=True))

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order, everywhere."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """As torchrun started this process: one of several, joined by NCCL or Gloo; or the only one.

    Raises ConfigError for more processes on a machine than it has GPUs.
    """
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(torch.device("cuda" if cuda else "cpu"))
        return
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and local >= (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"Process {local + 1} of this machine, which shows {gpus} GPUs: wanted --nproc-per-node {gpus}."
        )
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(device, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # Gloo's own have no type
            raise HandMeshError(
                "Another process of this run ended, and this one cannot go on alone: what the other says is why. Start "
                "again with --resume to go on from the last state."
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def parallel(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module with gradients averaged over all processes; itself if there is only one."""
    if ranks.count == 1:
        return module
    # Synced batch norms agree already. torch 2.13 renamed the setting, and warns about the old name.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    # Kernels of one input channel: two strides say the same there, and torch warns that they differ.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    unsynced: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **unsynced,
    )


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Within, gradients add up in this process and are not averaged yet: for all pieces of a batch but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def sync_batch_norms(module: nn.Module, ranks: Ranks) -> None:
    """From now on the batch norms inside `module` see the batches of all processes. Names and weights stay."""
    if ranks.count == 1:
        return
    if ranks.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncedBatchNorm2d  # the same state, another forward


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equal batches in all processes, in plain operations that run anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean = _mean_over_ranks(x.mean(dim=(0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _mean_over_ranks(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return centred * (self.weight * torch.rsqrt(variance + self.eps))[:, None, None] + self.bias[:, None, None]


class _MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over all processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _reduced(grad)


def _mean_over_ranks(x: Tensor) -> Tensor:
    mean: Tensor = _MeanOverRanks.apply(x)
    return mean


def _reduced(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()
