"""Renders on many cores into shared memory, for as long as somebody takes them out.

    with RenderFarm(builtin_hand(), SceneSettings(), size=160, seed=0, workers=15) as farm:
        renders = farm.take(at_least=1000)          # waits; without a number: what is ready now

Sample i depends on (seed, i) and the settings only; in which order samples arrive depends on the machine. Every worker
has a few slots of the shared memory and a pipe of its own: when one dies, the others do not notice, and go on.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import SceneSettings
from handmesh.errors import DataError
from handmesh.hand import BETA_COUNT, JOINT_COUNT, MANO_JOINT_COUNT, HandArrays
from handmesh.synth.backgrounds import Backgrounds
from handmesh.synth.dataset import sample_generator
from handmesh.synth.scene import SceneRenderer
from handmesh.system.spawn import check_main_guard

logger = logging.getLogger(__name__)

Array = TypeVar("Array")
Other = TypeVar("Other")

# Per worker: finished renders that wait to be taken, 0.1 MB each at 160 px. Enough for the longest step of a training
# run, and for 15 workers at 256 px they still fit into the 64 MB of shared memory that containers have by default.
_SLOTS = 16
_PATIENCE = 5.0  # seconds for a worker to end by itself: a render takes a hundredth
_NICENESS = 5  # whoever feeds a GPU must never wait for a core


class RenderBatch(NamedTuple, Generic[Array]):
    """N finished renders, of numpy arrays or of tensors on a device; labels as in `PackedSample`."""

    indices: Array  # (N,) which sample of the seed
    image: Array  # (N, S, S, 4) uint8: RGB times alpha, then alpha
    keypoints: Array  # (N, 21, 2) px
    pose: Array  # (N, 16, 3, 3)
    betas: Array  # (N, 10)
    intrinsics: Array  # (N, 3, 3) px

    def map(self, function: Callable[[Array], Other]) -> RenderBatch[Other]:
        """The same of every array."""
        return RenderBatch(*(function(value) for value in self))


def _fields(size: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Type and shape of one sample, by name in `RenderBatch`."""
    return {
        "indices": (np.int64, ()),
        "image": (np.uint8, (size, size, 4)),
        "keypoints": (np.float32, (JOINT_COUNT, 2)),
        "pose": (np.float32, (MANO_JOINT_COUNT, 3, 3)),
        "betas": (np.float32, (BETA_COUNT,)),
        "intrinsics": (np.float32, (3, 3)),
    }


def no_renders(size: int) -> RenderBatch[NDArray[Any]]:
    """A batch of none, which tells what each array of one is like."""
    return RenderBatch(**{name: np.empty((0, *shape), dtype) for name, (dtype, shape) in _fields(size).items()})


@dataclass(frozen=True)
class _Scenes:
    """What a worker needs to draw."""

    hand: HandArrays
    settings: SceneSettings
    size: int
    seed: int
    background_count: int

    def renderer(self) -> SceneRenderer:
        backgrounds = Backgrounds(self.seed, self.background_count)
        return SceneRenderer(self.hand, self.settings, self.size, backgrounds=backgrounds)


@dataclass
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    jobs: deque[tuple[int, int]] = field(default_factory=deque)  # (slot, index), in the order they are done


class RenderFarm:
    """Worker processes that render ahead of whoever takes. A context manager; not for several threads."""

    def __init__(
        self,
        hand: HandArrays,
        settings: SceneSettings,
        size: int,
        seed: int,
        *,
        first: int = 0,
        workers: int,
        background_count: int = 64,
    ) -> None:
        """Renders samples `first`, `first` + 1, ... of `seed`.

        The backgrounds only texture the things in front of a hand. Processes are spawned: scripts need the usual
        `if __name__ == "__main__":`. Raises ConfigError where it lacks.
        """
        check_main_guard()
        self.seed, self.next_index, self._size = seed, first, size
        layout = _Layout(size, _SLOTS * workers)
        # Megabytes as a process's argument would make each start wait until that process reads them.
        scenes = pickle.dumps(_Scenes(hand, settings, size, seed, background_count))
        self._memory = SharedMemory(create=True, size=layout.size + len(scenes))
        assert self._memory.buf is not None
        self._memory.buf[layout.size : layout.size + len(scenes)] = scenes
        self._slots = layout.views(self._memory)
        self._ready: deque[int] = deque()  # slots
        self._owner: dict[int, _Worker] = {}
        self.workers: list[_Worker] = []
        self._failures: list[str] = []
        context = multiprocessing.get_context("spawn")
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._memory.name, layout), daemon=True)
            process.start()
            theirs.close()  # or the end of the worker would never be seen
            worker = _Worker(number, process, ours)
            self.workers.append(worker)
            for slot in range(number * _SLOTS, (number + 1) * _SLOTS):
                self._owner[slot] = worker
        for slot in range(_SLOTS):  # the first samples to all workers alike
            for worker in list(self.workers):
                self._give(worker, worker.number * _SLOTS + slot)

    def __enter__(self) -> RenderFarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def take(self, at_least: int = 0, timeout: float | None = None) -> RenderBatch[NDArray[Any]]:
        """All renders that are ready, copied out; their slots are filled anew. Waits until there are `at_least`.

        After `timeout` seconds it returns what there is. Raises DataError when no worker is left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        parts: list[RenderBatch[NDArray[Any]]] = []
        count = 0
        while True:
            self._receive(0.0)
            if self._ready:
                slots = list(self._ready)
                self._ready.clear()
                parts.append(RenderBatch(**{name: values[slots] for name, values in self._slots.items()}))
                count += len(slots)
                for slot in slots:
                    if (worker := self._owner[slot]) in self.workers:
                        self._give(worker, slot)
            left = None if deadline is None else deadline - time.monotonic()
            if count >= at_least or (left is not None and left <= 0):
                break
            self._receive(1.0 if left is None else min(left, 1.0))
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return no_renders(self._size)
        return RenderBatch(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def close(self) -> None:
        """End all workers and free the memory. Batches stay valid."""
        for worker in self.workers:
            worker.pipe.close()  # they see the end of it when the render in hand is done
        ends = time.monotonic() + _PATIENCE
        for worker in self.workers:
            worker.process.join(max(0.0, ends - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers = []
        if self._slots:
            self._slots = {}
            self._memory.close()
            self._memory.unlink()

    def _give(self, worker: _Worker, slot: int) -> None:
        index, self.next_index = self.next_index, self.next_index + 1
        worker.jobs.append((slot, index))
        try:
            worker.pipe.send((slot, index))
        except OSError:
            self._lose(worker, "")

    def _receive(self, timeout: float) -> None:
        """Note which renders are finished, and which workers are gone."""
        pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes), timeout):
            worker = pipes[pipe]
            if worker not in self.workers:
                continue
            try:
                while worker.pipe.poll():
                    answer = worker.pipe.recv()
                    if isinstance(answer, str):
                        self._lose(worker, answer)
                        break
                    worker.jobs.popleft()
                    self._ready.append(answer)
            except (EOFError, OSError):
                self._lose(worker, "")

    def _lose(self, worker: _Worker, error: str) -> None:
        """Go on without it, or stop when it was the last one."""
        worker.process.join(_PATIENCE)
        worker.pipe.close()
        self.workers.remove(worker)
        doing = f"sample {worker.jobs[0][1]} of seed {self.seed}" if worker.jobs else "nothing"
        failure = f"rendering process {worker.number} ended with {_reason(worker.process)} while it drew {doing}"
        self._failures.append(f"{failure}: {error}" if error else failure)
        if not self.workers:
            raise DataError(f"No rendering process is left. The last one: {self._failures[-1]}.")
        logger.warning("%s; the other %d go on", self._failures[-1], len(self.workers))


def _reason(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


@dataclass(frozen=True)
class _Layout:
    """Where the fields of finished renders lie in the shared memory; after them, how to draw more."""

    image_size: int
    slots: int

    @property
    def size(self) -> int:
        return sum(self._bytes(dtype, shape) for dtype, shape in _fields(self.image_size).values())

    def views(self, memory: SharedMemory) -> dict[str, NDArray[Any]]:
        views, offset = {}, 0
        for name, (dtype, shape) in _fields(self.image_size).items():
            views[name] = np.ndarray((self.slots, *shape), dtype, buffer=memory.buf, offset=offset)
            offset += self._bytes(dtype, shape)
        return views

    def _bytes(self, dtype: type, shape: tuple[int, ...]) -> int:
        """Of one field, rounded up so that the next one is aligned."""
        return -(-self.slots * np.dtype(dtype).itemsize * math.prod(shape) // 64) * 64


def _work(pipe: Connection, memory_name: str, layout: _Layout) -> None:
    """Draw what the pipe asks for until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: whoever takes decides
    os.nice(_NICENESS)
    cv2.setNumThreads(1)
    memory = SharedMemory(memory_name)
    views = layout.views(memory)
    assert memory.buf is not None
    scenes: _Scenes = pickle.loads(memory.buf[layout.size :])
    try:
        renderer = scenes.renderer()
        while True:
            slot, index = pipe.recv()
            sample = renderer.render_foreground(sample_generator(scenes.seed, index))
            views["indices"][slot] = index
            views["image"][slot, ..., :3], views["image"][slot, ..., 3] = sample.image, sample.alpha
            for name in ("keypoints", "pose", "betas", "intrinsics"):
                views[name][slot] = getattr(sample, name)
            pipe.send(slot)
    except (EOFError, ConnectionError):
        pass  # nobody takes any more
    except Exception as error:
        with suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
        raise
    finally:
        views.clear()
        memory.close()
