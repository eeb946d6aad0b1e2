"""Synthetic hands on disk: a pack of memory-mapped arrays to train from, and a data set of files to look at or share.

Sample i depends on (seed, i) and the settings only, never on the number of workers or on where a run was interrupted.
Both writers work in "<path>.partial" and rename it when all is done, so `path` either does not exist or is complete; a
run that was killed goes on where it stopped when it is started again with the same arguments. Of several processes with
the same path one works, and the others wait for what it makes.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import queue
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import RENAMED_SCENE_KEYS, SceneSettings
from handmesh.config.settings import flat_settings
from handmesh.errors import DataError
from handmesh.hand import BETA_COUNT, JOINT_COUNT, MANO_JOINT_COUNT, HandArrays, builtin_hand
from handmesh.synth.backgrounds import Backgrounds, check_folder
from handmesh.synth.scene import SceneRenderer, SyntheticSample
from handmesh.system.atomic import write_atomically, written_atomically
from handmesh.system.lock import locked
from handmesh.system.spawn import check_main_guard

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # (samples done, samples in all)

PACK_FORMAT = 3  # raised when the same seed would give other images or other files
# Settings that a pack, whose images are clean, does not depend on: it stays valid when they change.
_AFTER_THE_FOREGROUND = ("shadow", "fda_prob", "effects")
# What the records of former versions lack, and what was so in them.
_NEWER_SETTINGS = {"settings.real_poses": 0.0, "settings.pose.touch": 0.0, "settings.steeple": 0.0}
BACKGROUND_COUNT = 256  # that texture things, by default
_PARTIAL = ".partial"  # the suffix of a set that is being written
_CHUNK = 64  # samples a worker writes at a time; at most this many are lost when a run is killed

# name -> (dtype, shape of one sample); the image comes on top, its shape depends on the size
_LABELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "keypoints": ("float32", (JOINT_COUNT, 2)),
    "visible": ("bool", (JOINT_COUNT,)),
    "joints": ("float32", (JOINT_COUNT, 3)),
    "pose": ("float32", (MANO_JOINT_COUNT, 3, 3)),
    "betas": ("float32", (BETA_COUNT,)),
    "translation": ("float32", (3,)),
    "intrinsics": ("float32", (3, 3)),
    "ita_degrees": ("float32", ()),
    "hidden_share": ("float32", ()),
}


class PackedSample(NamedTuple):
    """One entry of a pack: views into the memory maps. Labels as in `SyntheticSample`."""

    image: NDArray[np.uint8]  # (S, S, 4) RGB times alpha, then alpha: see `camera_effects.composite`
    keypoints: NDArray[np.float32]  # (21, 2) px
    visible: NDArray[np.bool_]  # (21,)
    joints: NDArray[np.float32]  # (21, 3) m, cam
    pose: NDArray[np.float32]  # (16, 3, 3)
    betas: NDArray[np.float32]  # (10,)
    translation: NDArray[np.float32]  # (3,) m
    intrinsics: NDArray[np.float32]  # (3, 3) px
    ita_degrees: NDArray[np.float32]  # () skin tone
    hidden_share: NDArray[np.float32]  # () share of joints that are not visible


class Pack:
    """A finished pack. Opens its files at first use, so it can be sent to worker processes, forked or spawned."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when `path` is not a finished pack of this version's format."""
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        if self.meta.get("format") != PACK_FORMAT:
            raise DataError(
                f"{path} is a pack of format {self.meta.get('format')}, wanted {PACK_FORMAT}: render it again."
            )

    def __len__(self) -> int:
        return int(self.meta["count"])

    @property
    def size(self) -> int:
        """Side of the images in px."""
        return int(self.meta["size"])

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Read-only memory maps by field name of `PackedSample`; the image's is (N, S, S, 4)."""
        maps = {}
        for name in PackedSample._fields:
            file = self.path / f"{'images' if name == 'image' else name}.npy"
            try:
                maps[name] = np.load(file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read ({error}): render the pack again.") from error
            if len(maps[name]) != len(self):
                raise DataError(f"{file} holds {len(maps[name])} samples, wanted {len(self)}: render the pack again.")
        return maps

    def __getitem__(self, index: int) -> PackedSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a pack of {len(self)}")
        return PackedSample(*(self.arrays[name][index] for name in PackedSample._fields))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self.meta}  # a worker opens the files anew


def render_pack(
    path: Path,
    count: int,
    seed: int,
    size: int = 160,
    settings: SceneSettings | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    *,
    hand: HandArrays | None = None,
    background_folder: Path | None = None,
    background_count: int = BACKGROUND_COUNT,
) -> Pack:
    """Render `count` foregrounds of `size` px into the pack `path`; about 1 GB per 10,000 at 160 px.

    Images are clean (no background, no camera effects): see `camera_effects.place_on_background`. Backgrounds given
    here only texture the things in front of a hand. With `workers` > 1 processes are spawned: scripts need the usual
    `if __name__ == "__main__":`, ConfigError where it lacks. Raises DataError when `path` holds something else, or a
    run was started there with other arguments.
    """
    job = _Job(Path(path), count, seed, size, settings, hand, background_folder, background_count)
    with _alone(job.path):
        if _is_free(job.path):
            _write_pack(job, workers, progress)
            logger.info("pack %s: %d samples of %d px", path, count, size)
    pack = Pack(path)
    _check_same(pack.meta, job.meta("pack"), path)
    return pack


def _write_pack(job: _Job, workers: int, progress: Progress | None) -> None:
    partial = job.open_partial("pack")
    for name, dtype, shape in _pack_files(job.size):
        file = partial / f"{name}.npy"
        if not file.exists():
            _allocate(file, dtype, (job.count, *shape))
    done = partial / "done.npy"  # one byte per chunk, set after the chunk is on disk
    if not done.exists():
        _allocate(done, "uint8", (job.chunk_count,))
    finished = np.load(done)
    pending = [chunk for chunk in range(job.chunk_count) if not finished[chunk]]
    _run(job, pending, _write_pack_chunk, workers, progress)
    done.unlink()
    job.finish()


def same_pack(
    paths: Iterable[Path], count: int, seed: int, size: int, settings: SceneSettings, *, hand: HandArrays | None = None
) -> Path | None:
    """The first of these that `render_pack` with these arguments would find finished."""
    for path in paths:
        job = _Job(path, count, seed, size, settings, hand, None, BACKGROUND_COUNT)
        finished = path.suffix != _PARTIAL and (path / "meta.json").is_file()
        if finished and not _differences(_read_meta(path), job.meta("pack")):
            return path
    return None


def write_dataset(
    directory: Path,
    count: int,
    seed: int,
    size: int = 224,
    settings: SceneSettings | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    *,
    hand: HandArrays | None = None,
    background_folder: Path | None = None,
    background_count: int = BACKGROUND_COUNT,
) -> Path:
    """Write `count` finished photographs as files and return the path of labels.jsonl (format: docs/explain/synth.md).

    images/00000000.jpg (quality 95), masks/00000000.png (the hand), alphas/00000000.png (all in front of the
    background), labels.jsonl with one line per image, meta.json. Interruption and errors as in `render_pack`.
    """
    job = _Job(Path(directory), count, seed, size, settings, hand, background_folder, background_count)
    with _alone(job.path):
        if _is_free(job.path):
            _write_files(job, workers, progress)
            logger.info("data set %s: %d images of %d px", directory, count, size)
    _check_same(_read_meta(directory), job.meta("jsonl"), directory)
    return directory / "labels.jsonl"


def _write_files(job: _Job, workers: int, progress: Progress | None) -> None:
    partial = job.open_partial("jsonl")
    for name in ("images", "masks", "alphas", "chunks"):
        (partial / name).mkdir(exist_ok=True)
    pending = [chunk for chunk in range(job.chunk_count) if not _chunk_labels(partial, chunk).exists()]
    _run(job, pending, _write_files_chunk, workers, progress)
    chunks = [_chunk_labels(partial, chunk) for chunk in range(job.chunk_count)]
    lines = b"".join(chunk.read_bytes() for chunk in chunks)
    write_atomically(partial / "labels.jsonl", lines, error=None, durable=True)
    for chunk in chunks:
        chunk.unlink()
    (partial / "chunks").rmdir()
    job.finish()


def _is_free(path: Path) -> bool:
    """Nothing is there, or an empty folder, whose place another can take; not that of who calls."""
    if not path.exists():
        return True
    bound = path.is_symlink() or path.is_mount() or path.resolve() == Path.cwd()
    return path.is_dir() and not bound and not any(path.iterdir())


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, by a lock beside `path` while nothing is there."""
    if not _is_free(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(
        path.with_name(path.name + ".lock"),
        lambda: logger.info("another process makes %s: waiting for it", path),
    ):
        yield


def sample_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample `index` of the set `seed`."""
    return np.random.default_rng((seed, index))


# ------------------------------------------------------------------------------------------------------------- workers


class _Job:
    """Everything a worker needs; small enough to send to another process."""

    def __init__(
        self,
        path: Path,
        count: int,
        seed: int,
        size: int,
        settings: SceneSettings | None,
        hand: HandArrays | None,
        background_folder: Path | None,
        background_count: int,
    ) -> None:
        if count < 1 or seed < 0:
            raise ValueError(f"count is {count} and seed {seed}: wanted at least one sample and a seed of 0 or more")
        self.path = path if path.name else path.absolute()  # `.` has none
        self.partial = self.path.with_name(self.path.name + _PARTIAL)
        self.count, self.seed, self.size = count, seed, size
        self.settings = SceneSettings() if settings is None else settings
        self.hand = builtin_hand() if hand is None else hand
        self.background_folder, self.background_count = background_folder, background_count

    @property
    def chunk_count(self) -> int:
        return -(-self.count // _CHUNK)

    def indices(self, chunk: int) -> range:
        return range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.count))

    def renderer(self) -> SceneRenderer:
        backgrounds = Backgrounds(self.seed, self.background_count, self.background_folder)
        return SceneRenderer(self.hand, self.settings, self.size, backgrounds=backgrounds)

    def meta(self, kind: str) -> dict[str, Any]:
        """What the result depends on, and the versions that made it."""
        settings = self.settings.model_dump(mode="json")
        if kind == "pack":  # holds foregrounds alone
            settings = {name: value for name, value in settings.items() if name not in _AFTER_THE_FOREGROUND}
        return {
            "format": PACK_FORMAT,
            "kind": kind,
            "count": self.count,
            "seed": self.seed,
            "size": self.size,
            "settings": settings,
            "hand_sha256": self.hand.sha256,
            "background_folder": str(self.background_folder) if self.background_folder else None,
            "background_count": self.background_count,
            "versions": {"numpy": np.__version__, "numba": numba.__version__, "opencv": cv2.__version__},
        }

    def open_partial(self, kind: str) -> Path:
        """The directory to work in, new or left by an interrupted run with the same arguments."""
        meta_file = self.partial / "meta.json"
        if meta_file.exists():
            _check_same(_read_meta(self.partial), self.meta(kind), self.partial)
        else:
            if self.background_folder is not None:
                check_folder(self.background_folder)  # not in each worker, beside a folder of nothing
            self.partial.mkdir(parents=True, exist_ok=True)
            write_atomically(meta_file, json.dumps(self.meta(kind), indent=1).encode(), error=None, durable=True)
        return self.partial

    def finish(self) -> None:
        """All is done: it gets its name."""
        if self.path.is_dir():  # and empty; Windows does not rename over it
            self.path.rmdir()
        self.partial.rename(self.path)


def _run(
    job: _Job,
    pending: list[int],
    write_chunk: Callable[[_Job, SceneRenderer, int], None],
    workers: int,
    progress: Progress | None,
) -> None:
    """Write all pending chunks, here or in `workers` processes."""
    done = job.count - sum(len(job.indices(chunk)) for chunk in pending)
    if progress is not None:
        progress(done, job.count)
    if not pending:
        return
    if workers <= 1:
        renderer = job.renderer()
        for chunk in pending:
            write_chunk(job, renderer, chunk)
            done += len(job.indices(chunk))
            if progress is not None:
                progress(done, job.count)
        return
    check_main_guard()
    context = multiprocessing.get_context("spawn")
    finished: Any = context.Queue()
    processes = [
        context.Process(target=_work, args=(job, pending[worker::workers], write_chunk, finished), daemon=True)
        for worker in range(min(workers, len(pending)))
    ]
    for process in processes:
        process.start()
    remaining = len(pending)
    try:
        while remaining:
            try:
                chunk = finished.get(timeout=1.0)
            except queue.Empty:
                failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
                if failed:
                    raise DataError(
                        f"a rendering process ended with exit code {failed[0]}; what is done is kept in {job.partial}: "
                        "start the same command again to go on."
                    ) from None
                continue
            remaining -= 1
            done += len(job.indices(chunk))
            if progress is not None:
                progress(done, job.count)
    finally:
        for process in processes:
            if remaining:
                process.terminate()
            process.join()


def _work(job: _Job, chunks: list[int], write_chunk: Callable[[_Job, SceneRenderer, int], None], finished: Any) -> None:
    cv2.setNumThreads(1)
    renderer = job.renderer()
    parent = multiprocessing.parent_process()
    for chunk in chunks:
        if parent is not None and not parent.is_alive():  # it was killed: nobody wants these any more
            return
        write_chunk(job, renderer, chunk)
        finished.put(chunk)


def _pack_files(size: int) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        ("images", "uint8", (size, size, 4)),
        *((name, dtype, shape) for name, (dtype, shape) in _LABELS.items()),
    ]


def _write_pack_chunk(job: _Job, renderer: SceneRenderer, chunk: int) -> None:
    indices = job.indices(chunk)
    block: dict[str, NDArray[Any]] = {
        name: np.empty((len(indices), *shape), dtype) for name, dtype, shape in _pack_files(job.size)
    }
    for row, index in enumerate(indices):
        sample = renderer.render_foreground(sample_generator(job.seed, index))
        block["images"][row, ..., :3], block["images"][row, ..., 3] = sample.image, sample.alpha
        for name in _LABELS:
            block[name][row] = getattr(sample, name) if hasattr(sample, name) else sample.facts[name]
    for name, values in block.items():
        file = np.load(job.partial / f"{name}.npy", mmap_mode="r+")
        file[indices.start : indices.stop] = values
        file.flush()
    flags = np.load(job.partial / "done.npy", mmap_mode="r+")
    flags[chunk] = 1
    flags.flush()


def _write_files_chunk(job: _Job, renderer: SceneRenderer, chunk: int) -> None:
    lines = []
    for index in job.indices(chunk):
        sample = renderer.render(sample_generator(job.seed, index))
        name = f"{index:08d}"
        _write_image(job.partial / "images" / f"{name}.jpg", sample.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write_image(job.partial / "masks" / f"{name}.png", sample.mask, [])
        _write_image(job.partial / "alphas" / f"{name}.png", sample.alpha, [])
        lines.append(json.dumps(_record(name, sample)) + "\n")
    write_atomically(_chunk_labels(job.partial, chunk), "".join(lines).encode(), error=None, durable=True)


def _record(name: str, sample: SyntheticSample) -> dict[str, Any]:
    keypoints = np.column_stack([sample.keypoints, sample.visible])
    low, high = sample.keypoints.min(axis=0), sample.keypoints.max(axis=0)
    return {
        "image": f"images/{name}.jpg",
        "mask": f"masks/{name}.png",
        "alpha": f"alphas/{name}.png",
        "handedness": "right",
        "box": _numbers(np.concatenate([low, high])),
        "intrinsics": _numbers(sample.intrinsics),
        "keypoints": _numbers(keypoints),
        "joints": _numbers(sample.joints),
        "pose": _numbers(sample.pose),
        "betas": _numbers(sample.betas),
        "translation": _numbers(sample.translation),
        "facts": dict(sample.facts),
    }


def _numbers(array: NDArray[Any]) -> Any:
    """Nested lists with the shortest decimals that give the same float32 back."""
    return [_numbers(row) for row in array] if array.ndim > 1 else [float(str(np.float32(value))) for value in array]


def _write_image(path: Path, image: NDArray[np.uint8], options: list[int]) -> None:
    if not cv2.imwrite(str(path), image, options):
        raise DataError(f"{path} cannot be written: is the disk full?")


def _chunk_labels(partial: Path, chunk: int) -> Path:
    return partial / "chunks" / f"{chunk:06d}.jsonl"


def _allocate(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """A zeroed .npy of its final size."""
    with written_atomically(path, error=None, durable=False) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape).flush()


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is not a finished set of synthetic hands: it has no meta.json. Choose another path."
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path / 'meta.json'} cannot be read ({error}).") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path / 'meta.json'} is of something else than synthetic hands. Choose another path.")
    meta["settings"] = {RENAMED_SCENE_KEYS.get(name, name): value for name, value in meta.get("settings", {}).items()}
    return meta


def _check_same(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if differing := _differences(found, wanted):
        raise DataError(
            f"{path} was made with other arguments: {'; '.join(differing[:3])}. Choose another path or delete it."
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Other versions of the libraries are fine to go on with, other arguments are not."""
    known = {**_NEWER_SETTINGS, **flat_settings(found)}
    return [
        f"{name} is {known.get(name)!r}, wanted {value!r}"
        for name, value in flat_settings(wanted).items()
        if not name.startswith("versions.") and known.get(name) != value
    ]
