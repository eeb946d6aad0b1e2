"""Processes that load training data: how they live, and what is said when one of them does not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from handmesh.errors import DataError


def start_loader(_: int) -> None:
    """To be a DataLoader's `worker_init_fn`.

    Who stops a run asks all of its processes: torchrun the whole group, batch systems whatever belongs to the job. The
    one that trains then finishes its step and writes it down, for which it needs its loaders. So they end only when
    that one asks them, or is gone (PyTorch has them look). Where the system does not say who asks (all but Linux),
    PyTorch's own handler stays.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # here, and in all threads to come
        threading.Thread(target=_end_for, args=(parent.pid,), daemon=True).start()


def _end_for(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


@contextmanager
def say_if_loader_is_killed() -> Iterator[None]:
    """Around training: PyTorch raises the end of a loader wherever training just is. Raises DataError for it."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "A loader process was killed: too little memory, or shared memory (/dev/shm; in Docker: --shm-size)? "
            "Go on with --resume and fewer loader_workers."
        ) from error
