"""How a process that loads training data lives: with one thread, and until the one that trains has no use for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import cv2
import torch


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
