"""FreiHAND (Zimmermann et al., ICCV 2019): from the official archives to memory maps, and from there to samples.

    python -m handmesh data prepare FreiHAND/        # the two zips, or the unpacked folder
    data = FreiHand(Path("FreiHAND"), "training")
    data[40_000].labels.hand.joints                   # (21, 3) metres, camera frame

The 32,560 annotations of the training set belong to four versions of each photograph: image ``i`` has annotation
``i % 32560`` and version ``i // 32560`` (gs, hom, sample, auto). Counts come from the files, so smaller sets in the
same form work. Lengths are metres in the camera's frame; the mask is the annotation's, too.

`prepare` writes into one folder: ``<split>_<name>.npy``, optionally ``<split>_<rgb|mask>.bin`` with an index (all JPEG
files, byte for byte, one after the other), and ``meta.json``, written last. Every file appears under its name only when
it is complete, so a run that was killed or met a full disk is completed by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats import FORMATS, sets_near
from handmesh.data.formats.json_arrays import iterate_json_array, read_json_array
from handmesh.data.sample import LabelledHand, PhotoLabels, RawSample, hand_labels
from handmesh.errors import DataError, ImageError
from handmesh.files.image import read_image
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import FINGERTIP_VERTICES, JOINT_COUNT, VERTEX_COUNT, HandArrays
from handmesh.system.atomic import write_atomically, written_atomically

__all__ = [
    "FreiHand",
    "available_splits",
    "find_prepared",
    "iterate_json_array",
    "prepare",
    "read_json_array",
    "split_by_annotation",
]

logger = logging.getLogger(__name__)

Split = Literal["training", "evaluation"]
SPLITS: tuple[Split, ...] = ("training", "evaluation")
VERSIONS = ("gs", "hom", "sample", "auto")  # green screen, and three ways of replacing it
OFFICIAL_COUNTS = {"training": 32_560, "evaluation": 3_960}  # annotations
IMAGE_SIZE = 224  # px

FORMAT = 1  # of the prepared folder; raised when files or their meaning change
PREPARED = "prepared"  # the folder's name inside the data set's own
ABOUT = "handmesh.json"  # names the hand of a synthetic set in FreiHAND's form; the real one does not have it
PUBLISHED_HAND = LabelledHand("mano", None)  # the real one's

# name -> (shape of one annotation, dtype on disk). Vertices are float32: 0.06 micrometres at a metre.
ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "K": ((3, 3), "<f8"),
    "scale": ((), "<f8"),
    "xyz": ((JOINT_COUNT, 3), "<f8"),
    "mano": ((1, 61), "<f8"),
    "verts": ((VERTEX_COUNT, 3), "<f4"),
}
# Converted copies drop or add a level of brackets around these; the numbers are the same.
_OTHER_SHAPES: dict[str, tuple[int, ...]] = {"mano": (61,), "scale": (1,)}
IMAGE_KINDS = ("rgb", "mask")
_MEMBER = re.compile(
    r"(?:.*/)?(handmesh\.json|(?:training|evaluation)_(?:K|scale|xyz|mano|verts)\.json"
    r"|(?:training|evaluation)/(?:rgb|mask)/\d{8}\.jpg)"
)
_IMAGE_NAME = re.compile(r"\d{8}\.jpg")  # not what macOS and others leave beside: ._00000000.jpg
_MAX_JPEG_BYTES = 4 << 20  # a FreiHAND photograph has some 20 kB
_PACK_BATCH = 500  # images between two marks that an interrupted run can go on from

Progress = Callable[[str, int, int], None]  # (what, done, total): bytes of a JSON file, or images


# ---------------------------------------------------------------------------------------------------- prepare


def prepare(directory: Path, out: Path | None = None, *, pack: bool = False, progress: Progress | None = None) -> Path:
    """Convert the archives or the unpacked folder in `directory` and return the prepared folder.

    `out` is by default ``directory/prepared``. With `pack` all JPEG files are joined into one file per split, which
    network disks like better than 170,000 small ones; from zips that always happens, since nothing is unpacked. Running
    it again does only what is missing or whose source has changed. Memory stays under 0.5 GB.

    Raises DataError for anything that is missing, damaged or inconsistent, and when the disk is full; what was finished
    is then kept. One run at a time: two into the same folder would disturb each other.
    """
    directory = Path(directory)
    if (form := next((form for form in FORMATS if form.published and form.recognizes(directory)), None)) is not None:
        raise DataError(f"{directory} is {form.kind}, which is read as it is: there is nothing to prepare.")
    report = progress or (lambda what, done, total: None)
    base = directory.parent if directory.is_file() else directory
    out = Path(out) if out is not None else base / PREPARED
    was_there = out.exists()
    with _Sources(directory) as sources:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return _prepare(sources, out, pack, report)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            why = "the disk is full" if full else f"{error.strerror or error}"
            raise DataError(
                f"{out} cannot be written: {why}. What is finished is kept: make room (a full FreiHAND takes 0.4 GB, "
                "and 3.5 GB more with packed images) and run the same command again."
            ) from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"An archive in {directory} is damaged ({error}): download it again.") from error
        except DataError:
            if not was_there and not any(out.iterdir()):
                out.rmdir()
            raise


def _prepare(sources: _Sources, out: Path, pack: bool, report: Progress) -> Path:
    meta_file = out / "meta.json"
    before = _read_meta(out) if meta_file.exists() else None
    if before is not None and before.get("format") != FORMAT:
        logger.warning("%s is of format %s, now it is %d: prepared anew", out, before.get("format"), FORMAT)
        before = None
    # What an earlier run finished, and after it one that was interrupted.
    done: dict[str, Any] = {**({} if before is None else before["files"]), **_read_marks(out)}
    _check_space(sources, out, pack, done)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        found = [name for name in ARRAYS if sources.has(f"{split}_{name}.json")]
        if not found:
            if before is not None and split in before["splits"]:  # its source was deleted after it was prepared
                splits[split] = before["splits"][split]
            continue
        if "K" not in found:
            raise DataError(
                sets_near(sources.path)
                or f"{sources.path} has {split}_{found[0]}.json but not {split}_K.json: copy all of them."
            )
        counts: dict[str, int] = {}
        for name in found:
            counts[name] = _prepare_array(sources, out, split, name, done, report)
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"The {split} annotations do not belong together: {listed} frames. Copy them again.")
        if not counts["K"]:
            raise DataError(f"{sources.where(f'{split}_K.json')} is an empty list: copy it again.")
        splits[split] = {"annotations": counts["K"], "arrays": found, "images": {}}
        earlier = before["splits"].get(split, {}).get("images", {}) if before is not None else {}
        for kind in IMAGE_KINDS:
            store = earlier.get(kind, {})
            if sources.image_count(f"{split}/{kind}") or not (out / store.get("packed", "none")).is_file():
                store = _prepare_images(sources, out, split, kind, counts["K"], pack, done, report)
            # else: they were packed, and then deleted where they came from
            if store is not None:
                splits[split]["images"][kind] = store
    if not splits:
        raise DataError(
            sets_near(sources.path)
            or f"No FreiHAND in {sources.path}: wanted FreiHAND_pub_v2.zip and FreiHAND_pub_v2_eval.zip, or the folder "
            "that they unpack to (training/, evaluation/, training_K.json, ...). They can be downloaded from "
            "https://lmb.informatik.uni-freiburg.de/resources/datasets/FreihandDataset.en.html "
            "(see docs/how_to/data.md)."
        )
    # Where all of it is from here, another set may have lain there before.
    kept = any(not sources.has(f"{split}_K.json") for split in splits)
    meta = {
        "format": FORMAT,
        "kind": "freihand",
        "splits": splits,
        "fingertip_vertices": list(FINGERTIP_VERTICES),
        "hand": sources.about(before if kept else None),
        "files": dict(sorted(done.items())),
    }
    if meta != before:
        _write_json(meta_file, meta)
    shutil.rmtree(out / "marks", ignore_errors=True)
    for leftover in out.glob("*.partial*"):
        leftover.unlink()
    return out


def _prepare_array(sources: _Sources, out: Path, split: str, name: str, done: dict[str, Any], report: Progress) -> int:
    """Stream one JSON file into one .npy; returns the number of its frames."""
    member, target = f"{split}_{name}.json", out / f"{split}_{name}.npy"
    source = sources.fingerprint(member)
    record = done.get(target.name)
    if record is not None and target.exists() and record["source"] == source:
        return int(record["count"])
    shape, dtype = ARRAYS[name]
    found_shape = _shape_in(sources, member, name)
    digest = hashlib.sha256()
    total, so_far = int(source["size"]), 0

    def on_bytes(count: int) -> None:
        nonlocal so_far
        so_far += count
        report(member, so_far, total)

    count = 0
    with sources.open(member) as file, written_atomically(target, error=None) as partial, open(partial, "wb") as array:
        _write_header(array, 0, shape, dtype)
        for block in iterate_json_array(_Hashed(file, digest), found_shape, sources.where(member), on_bytes):
            array.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
            count += len(block)
        array.seek(0)
        _write_header(array, count, shape, dtype)
    done[target.name] = {"source": source, "sha256": digest.hexdigest(), "count": count}
    _write_mark(out, target.name, done[target.name])
    logger.info("%s: %d frames", target.name, count)
    return count


def _shape_in(sources: _Sources, member: str, name: str) -> tuple[int, ...]:
    """The shape of a frame, told by the brackets that the file begins with."""
    shape, _ = ARRAYS[name]
    other = _OTHER_SHAPES.get(name, shape)
    with sources.open(member) as file:
        start = b"".join(file.read(64).split())
    depth = len(start) - len(start.lstrip(b"["))
    return other if depth == len(other) + 1 else shape


def _write_header(file: BinaryIO, count: int, shape: tuple[int, ...], dtype: str) -> None:
    """An .npy header. numpy leaves room for the first number to grow, so it can be written again in place."""
    header = {"descr": dtype, "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() % 64 == 0


def _prepare_images(
    sources: _Sources,
    out: Path,
    split: str,
    kind: str,
    annotations: int,
    pack: bool,
    done: dict[str, Any],
    report: Progress,
) -> dict[str, Any] | None:
    """Check that the images are all there, and pack them when asked to or when they are in a zip."""
    folder = f"{split}/{kind}"
    count = sources.image_count(folder)
    if count == 0:
        if kind == "rgb":
            raise DataError(
                f"{sources.path} has labels of the {split} set but no {folder}/: unpack or copy the images, too."
            )
        return None
    _check_image_count(sources, folder, count, annotations, split, kind)
    unpacked = sources.folder_of(folder)
    data_file, index_file = out / f"{split}_{kind}.bin", out / f"{split}_{kind}.index.npy"
    source = sources.fingerprint_of_images(folder, count)
    record = done.get(data_file.name)
    packed = record is not None and record["source"] == source and data_file.exists() and index_file.exists()
    if unpacked is not None and not pack and not packed:
        # Between the places themselves: one of them may be a link to another disk.
        return {"count": count, "folder": os.path.relpath(unpacked.resolve(), out.resolve())}
    if not packed:
        _pack_images(sources, folder, count, data_file, index_file, source, report)
        done[data_file.name] = {"source": source, "count": count}
        _write_mark(out, data_file.name, done[data_file.name])
        logger.info("%s: %d images", data_file.name, count)
    return {"count": count, "packed": data_file.name, "index": index_file.name}


def _check_image_count(sources: _Sources, folder: str, count: int, annotations: int, split: str, kind: str) -> None:
    versions = 1 if kind == "mask" or split == "evaluation" else len(VERSIONS)
    if count % annotations == 0 and count // annotations <= versions:
        missing = next((i for i in (0, annotations - 1, count - 1) if not sources.has_image(folder, i)), None)
        if missing is None:
            return
        what = f"{missing:08d}.jpg is missing"
    else:
        what = f"{count} images"
    raise DataError(
        f"{sources.path}/{folder}: {what}, wanted {versions * annotations} (00000000.jpg to "
        f"{versions * annotations - 1:08d}.jpg) for {annotations} annotations. Was it unpacked completely?"
    )


def _pack_images(
    sources: _Sources,
    folder: str,
    count: int,
    data_file: Path,
    index_file: Path,
    source: dict[str, Any],
    report: Progress,
) -> None:
    """Join JPEG files. The ends of finished ones are on disk after their bytes: an interrupted run goes on there."""
    data_partial = data_file.with_name(f"{data_file.name}.partial")
    ends_partial = data_file.with_name(f"{data_file.name}.partial-ends")
    source_partial = data_file.with_name(f"{data_file.name}.partial-source")
    try:
        same = json.loads(source_partial.read_text(encoding="utf-8")) == source
    except (OSError, ValueError):
        same = False
    ends: list[int] = []
    if same and data_partial.exists() and ends_partial.exists():
        stored = ends_partial.read_bytes()
        ends = np.frombuffer(stored[: len(stored) // 8 * 8], "<i8").tolist()
        size = data_partial.stat().st_size
        while ends and ends[-1] > size:
            ends.pop()
    else:
        data_partial.write_bytes(b"")
        _write_json(source_partial, source)
    ends_partial.write_bytes(np.array(ends, "<i8").tobytes())
    with open(data_partial, "r+b") as data, open(ends_partial, "ab") as index:
        data.truncate(ends[-1] if ends else 0)
        data.seek(0, os.SEEK_END)
        while len(ends) < count:
            batch = range(len(ends), min(len(ends) + _PACK_BATCH, count))
            position = ends[-1] if ends else 0
            for image in batch:
                encoded = sources.read_image(folder, image)
                data.write(encoded)
                position += len(encoded)
                ends.append(position)
            _sync(data)
            index.write(np.array(ends[batch.start :], "<i8").tobytes())
            _sync(index)
            report(folder, len(ends), count)
    with written_atomically(index_file, error=None) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array([0, *ends], np.int64))
    data_partial.replace(data_file)
    ends_partial.unlink()
    source_partial.unlink()


def _check_space(sources: _Sources, out: Path, pack: bool, done: dict[str, Any]) -> None:
    """Before an hour of work: is there room? JSON text shrinks to about a fifth."""
    wanted = 0
    for split in SPLITS:
        for name in ARRAYS:
            member = f"{split}_{name}.json"
            if sources.has(member):
                fingerprint = sources.fingerprint(member)
                record = done.get(f"{split}_{name}.npy")
                if record is None or record["source"] != fingerprint:
                    wanted += int(fingerprint["size"]) // 5 + 1024
    free = shutil.disk_usage(out).free
    if wanted > free:
        raise DataError(
            f"The disk of {out} has {free / 1e9:.1f} GB left, the arrays take about {wanted / 1e9:.1f} GB"
            f"{' and the packed images more' if pack else ''}: make room, or choose another folder with --out."
        )


class _Hashed:
    """A file whose bytes go through a digest as they are read."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file, self.digest = file, digest

    def read(self, size: int, /) -> bytes:
        piece = self.file.read(size)
        self.digest.update(piece)
        return piece


# ---------------------------------------------------------------------------------------------------- sources


@dataclass
class _Archive:
    path: Path
    zip: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo] = field(default_factory=dict)


class _Sources:
    """The official archives, the folder they unpack to, or any mix of them: members by their names in the archive.

    A file in a folder is preferred to the same one in a zip. Nothing is ever unpacked to a path that an archive names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.roots: list[Path] = []
        self.archives: list[_Archive] = []
        if path.is_file():
            zips = [path]
        elif path.is_dir():
            zips = sorted(path.glob("*.zip"))
            inner = [child for child in sorted(path.iterdir()) if child.is_dir() and child.name != PREPARED]
            self.roots = [root for root in (path, *inner) if _looks_unpacked(root)]
        else:
            raise DataError(
                sets_near(path)
                or f"There is nothing at {path}: give the folder with FreiHAND's zips, or the unpacked one."
            )
        try:
            for file in zips:
                self._open_zip(file)
        except BaseException:
            self.close()
            raise

    def _open_zip(self, path: Path) -> None:
        try:
            archive = _Archive(path, zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path} cannot be read as a zip archive ({error}). Was it downloaded completely? FreiHAND_pub_v2.zip "
                "has 3.7 GB, FreiHAND_pub_v2_eval.zip 0.7 GB."
            ) from error
        self.archives.append(archive)
        for info in archive.zip.infolist():
            if match := _MEMBER.fullmatch(info.filename):
                archive.members[match[1]] = info

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for archive in self.archives:
            archive.zip.close()

    def _file(self, member: str) -> Path | None:
        return next((root / member for root in self.roots if (root / member).is_file()), None)

    def _zipped(self, member: str) -> tuple[_Archive, zipfile.ZipInfo] | None:
        for archive in self.archives:
            if (info := archive.members.get(member)) is not None:
                return archive, info
        return None

    def has(self, member: str) -> bool:
        return self._file(member) is not None or self._zipped(member) is not None

    def where(self, member: str) -> str:
        if (path := self._file(member)) is not None:
            return str(path)
        zipped = self._zipped(member)
        return f"{zipped[0].path}:{zipped[1].filename}" if zipped else member

    def open(self, member: str) -> BinaryIO:
        if (path := self._file(member)) is not None:
            return open(path, "rb")
        zipped = self._zipped(member)
        assert zipped is not None, member
        return zipped[0].zip.open(zipped[1])  # type: ignore[return-value]

    def fingerprint(self, member: str) -> dict[str, Any]:
        """What tells that a source has changed."""
        if (path := self._file(member)) is not None:
            status = path.stat()
            return {"name": member, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        zipped = self._zipped(member)
        assert zipped is not None, member
        return {"name": member, "size": zipped[1].file_size, "crc": zipped[1].CRC, "zip": zipped[0].path.name}

    def folder_of(self, folder: str) -> Path | None:
        return next((root / folder for root in self.roots if (root / folder).is_dir()), None)

    @cached_property
    def _image_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split in SPLITS:
            for kind in IMAGE_KINDS:
                folder = f"{split}/{kind}"
                if (unpacked := self.folder_of(folder)) is not None:
                    with os.scandir(unpacked) as entries:
                        counts[folder] = sum(_IMAGE_NAME.fullmatch(entry.name) is not None for entry in entries)
                else:
                    named = {name for archive in self.archives for name in archive.members}
                    counts[folder] = sum(name.startswith(f"{folder}/") for name in named)
        return counts

    def image_count(self, folder: str) -> int:
        return self._image_counts[folder]

    def has_image(self, folder: str, index: int) -> bool:
        return self.has(f"{folder}/{index:08d}.jpg")

    def read_image(self, folder: str, index: int) -> bytes:
        member = f"{folder}/{index:08d}.jpg"
        if not self.has(member):
            raise DataError(f"{self.path} has no {member}, though it has later ones: unpack or copy it again.")
        with self.open(member) as file:
            encoded = file.read(_MAX_JPEG_BYTES + 1)
        if not encoded.startswith(b"\xff\xd8") or len(encoded) > _MAX_JPEG_BYTES:
            raise DataError(f"{self.where(member)} is no JPEG image of usual size: copy it again.")
        return encoded

    def fingerprint_of_images(self, folder: str, count: int) -> dict[str, Any]:
        first, last = (self.fingerprint(f"{folder}/{index:08d}.jpg") for index in (0, count - 1))
        return {"folder": folder, "count": count, "first": first, "last": last}

    def about(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """Which hand the labels belong to: MANO, unless the set says otherwise."""
        if self.has(ABOUT):
            with self.open(ABOUT) as file:
                return dict(vars(_read_about(file.read(1 << 16), self.where(ABOUT))))
        return dict(vars(PUBLISHED_HAND)) if before is None else dict(before["hand"])


def _read_about(content: bytes, where: str) -> LabelledHand:
    try:
        about = json.loads(content)
        return LabelledHand(str(about["hand"]), str(about["hand_sha256"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} cannot be read ({error!r}).") from error


def labelled_hand_of(folder: Path) -> LabelledHand:
    """Whose hand an unpacked FreiHAND's labels are: MANO's, unless its `ABOUT` says otherwise. Raises DataError."""
    file = folder / ABOUT
    return _read_about(file.read_bytes(), str(file)) if file.is_file() else PUBLISHED_HAND


def _looks_unpacked(root: Path) -> bool:
    return any((root / name).exists() for split in SPLITS for name in (split, f"{split}_K.json"))


# ---------------------------------------------------------------------------------------------------- reading


def find_prepared(directory: Path) -> Path:
    """The prepared folder at `directory` or inside it. Raises DataError when there is none."""
    for candidate in (Path(directory), Path(directory) / PREPARED):
        if (candidate / "meta.json").is_file() and _read_meta(candidate).get("kind") == "freihand":
            return candidate
    if (found := sets_near(Path(directory))) is not None:
        raise DataError(found)
    if not Path(directory).exists():
        raise DataError(f"There is nothing at {directory}: check its name.")
    raise DataError(f"No prepared FreiHAND in {directory}: run `handmesh data prepare {directory}` first.")


def available_splits(directory: Path) -> tuple[Split, ...]:
    """What a prepared folder holds, training first. Raises DataError when it is none."""
    path = find_prepared(directory)
    return tuple(split for split in SPLITS if split in _read_meta(path).get("splits", {}))


class FreiHand:
    """One split of a prepared FreiHAND. Opens its files at first use: cheap to send to worker processes.

    Index i is FreiHAND's own image number. With `hand`, the MANO parameters become pose labels (they are stored
    relative to the hand model's mean pose); without it there are none.
    """

    def __init__(self, directory: Path, split: Split = "training", hand: HandArrays | None = None) -> None:
        """Raises DataError when `directory` was not prepared, has no such split, or belongs to another hand."""
        self.path = find_prepared(directory)
        self.meta = _read_meta(self.path)
        if self.meta.get("format") != FORMAT:
            raise DataError(
                f"{self.path} is of format {self.meta.get('format')}, wanted {FORMAT}: "
                "run `handmesh data prepare` again."
            )
        if split not in self.meta["splits"]:
            raise DataError(f"{self.path} has no {split} set, only {', '.join(self.meta['splits'])}.")
        wanted = self.meta["hand"]["sha256"]
        if hand is not None and wanted is not None and hand.sha256 != wanted:
            raise DataError(
                f"The labels of {self.path} belong to the hand {self.meta['hand']['name']!r} ({wanted[:12]}), not to "
                f"the given one ({hand.sha256[:12]}): use that hand, or leave pose labels out."
            )
        self.split: Split = split
        self.hands_mean = None if hand is None else hand.hands_mean

    def files(self) -> list[Path]:
        """meta.json, which has the SHA-256 of all that `handmesh data prepare` wrote: of photographs where packed."""
        return [self.path / "meta.json"]

    @property
    def labelled_hand(self) -> LabelledHand:
        """Whose vertices, poses and shapes it holds. The published data are MANO's."""
        return LabelledHand(self.meta["hand"]["name"], self.meta["hand"]["sha256"])

    @property
    def mano_joints(self) -> bool:
        """Whether joints lie where MANO has them (`handmesh.hand.definitions`)."""
        return self.labelled_hand.mano_joints

    @property
    def annotation_count(self) -> int:
        return int(self.meta["splits"][self.split]["annotations"])

    @property
    def versions(self) -> tuple[str, ...]:
        """Those present, in the order of the image numbers."""
        return VERSIONS[: len(self) // self.annotation_count]

    def __len__(self) -> int:
        return int(self.meta["splits"][self.split]["images"]["rgb"]["count"])

    def annotation_of(self, index: int) -> int:
        """The annotation (and mask) of an image."""
        return index % self.annotation_count

    def version_of(self, index: int) -> str:
        return VERSIONS[index // self.annotation_count]

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Read-only memory maps by FreiHAND's names: K (N, 3, 3) px, scale (N,) m, xyz (N, 21, 3) m, mano (N, 1, 61),
        verts (N, 778, 3) m. Some may be absent.
        """
        maps = {}
        for name in self.meta["splits"][self.split]["arrays"]:
            file = self.path / f"{self.split}_{name}.npy"
            try:
                maps[name] = np.load(file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read ({error}): run `handmesh data prepare` again.") from error
            if maps[name].shape != (self.annotation_count, *ARRAYS[name][0]):
                raise DataError(
                    f"{file} is {maps[name].shape}, wanted {(self.annotation_count, *ARRAYS[name][0])}: delete "
                    f"{self.path} and run `handmesh data prepare` again."
                )
        return maps

    def image_bytes(self, index: int, kind: str = "rgb") -> bytes:
        """The JPEG file of an image, or of a mask with ``kind="mask"`` (then `index` is an annotation)."""
        store = self.meta["splits"][self.split]["images"].get(kind)
        if store is None or not 0 <= index < store["count"]:
            raise DataError(f"{self.path} has no {self.split}/{kind}/{index:08d}.jpg.")
        try:
            if "packed" in store:
                ends = self._index(kind)
                with open(self.path / store["packed"], "rb") as file:
                    file.seek(int(ends[index]))
                    return file.read(int(ends[index + 1] - ends[index]))
            return (self.path / store["folder"] / f"{index:08d}.jpg").read_bytes()
        except OSError as error:
            raise DataError(
                f"{error.filename or self.path} cannot be read ({error.strerror or error}): was it moved? Run "
                "`handmesh data prepare` again."
            ) from error

    @cached_property
    def _indices(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def _index(self, kind: str) -> NDArray[np.int64]:
        if kind not in self._indices:
            store = self.meta["splits"][self.split]["images"][kind]
            self._indices[kind] = np.load(self.path / store["index"], mmap_mode="r")
        return self._indices[kind]

    def image(self, index: int) -> NDArray[np.uint8]:
        """(224, 224, 3) RGB."""
        return self._decoded(index, "rgb")

    def mask(self, index: int) -> NDArray[np.bool_]:
        """(224, 224): where the hand is. JPEG blurs its edge; half of full white counts as hand."""
        return self._decoded(self.annotation_of(index), "mask")[..., 0] > 127

    def _decoded(self, index: int, kind: str) -> NDArray[np.uint8]:
        # Not by OpenCV, which fills up with grey what a file cut in half lacks, and says nothing.
        try:
            return read_image(self.image_bytes(index, kind))
        except ImageError as error:
            name = f"{self.path}: {self.split}/{kind}/{index:08d}.jpg"
            raise DataError(f"{name} is damaged: copy it again. {error}") from error

    def labels(self, index: int) -> PhotoLabels:
        """All that is known about the hand of image `index`; boxes are not, keypoints follow from joints and K."""
        annotation, arrays = self.annotation_of(index), self.arrays
        pose = betas = None
        if self.hands_mean is not None and "mano" in arrays:
            pose, betas = decode_mano(arrays["mano"][annotation], self.hands_mean)[:2]
        hand = hand_labels(
            joints=np.array(arrays["xyz"][annotation]) if "xyz" in arrays else None,
            vertices=arrays["verts"][annotation] if "verts" in arrays else None,
            pose=pose,
            betas=betas,
            dtype=np.float64,
        )
        return PhotoLabels(hand, intrinsics=Intrinsics.from_matrix(arrays["K"][annotation]))

    def __getitem__(self, index: int) -> RawSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        name = f"{self.split}/rgb/{index:08d}.jpg"
        return RawSample(name, self.image(index), self.labels(index), for_scoring=self.split == "evaluation")

    def __iter__(self) -> Iterator[RawSample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:  # a worker opens the files anew
        return {name: value for name, value in self.__dict__.items() if name not in ("arrays", "_indices")}


def decode_mano(
    parameters: NDArray[np.float64], hands_mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """FreiHAND's (*B, 1, 61) -> pose (*B, 16, 3, 3), betas (*B, 10), root keypoint (*B, 2) px, scale (*B) px per metre.

    The 61 numbers are the orientation in the camera's axes, 15 joint rotations (axis-angle, to which the model's mean
    pose is added), betas, where the root (the middle finger's knuckle) is seen, and its focal length over depth
    (freihand/utils/model.py, `split_theta` and `recover_root`).
    """
    numbers = np.asarray(parameters, np.float64)[..., 0, :]
    vectors = numbers[..., :48].copy()
    vectors[..., 3:] += hands_mean
    pose = matrix_from_vector(vectors.reshape(*vectors.shape[:-1], 16, 3))
    return pose, numbers[..., 48:58], numbers[..., 58:60], numbers[..., 60]


def encode_mano(
    vectors: NDArray[np.float64],
    betas: NDArray[np.float64],
    root: NDArray[np.float64],
    K: NDArray[np.float64],
    hands_mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The inverse of `decode_mano`: 16 rotation vectors, betas, the root joint (3,) m in the camera, K -> (1, 61)."""
    flat = np.asarray(vectors, np.float64).reshape(48).copy()
    flat[3:] -= hands_mean
    focal = (K[0, 0] + K[1, 1]) / 2
    scale = focal / root[2]
    # xyz_root = ((u - cx), (v - cy), focal) / scale, so u follows from the mean focal length, not from fx.
    u, v = scale * root[:2] + K[:2, 2]
    return np.concatenate([flat, betas, [u, v, scale]])[None]


def root_from_mano(
    root_keypoint: NDArray[np.float64], scale: NDArray[np.float64], K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(*B, 3) m: where the middle finger's knuckle is, from `decode_mano`'s last two and K (*B, 3, 3)."""
    focal = (K[..., 0, 0] + K[..., 1, 1]) / 2
    return np.concatenate([root_keypoint - K[..., :2, 2], focal[..., None]], axis=-1) / scale[..., None]


def split_by_annotation(
    data: FreiHand, validation: float = 0.05, seed: int = 0, versions: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Image numbers to train on and to validate with, all versions of one photograph on the same side.

    `validation` is the share of the annotations held out; `versions` to use, default all. Sorted, and the same for the
    same seed. FreiHAND does not say which photographs show the same moment from other cameras, so a held-out hand may
    have been seen from another side: validation scores are a little too good. Raises DataError for an unknown version.
    """
    wanted = data.versions if versions is None else tuple(versions)
    if unknown := [version for version in wanted if version not in data.versions]:
        raise DataError(f"{data.path} has no version {unknown[0]!r}, only {', '.join(data.versions)}.")
    if not 0 <= validation < 1:
        raise DataError(f"A share of {validation} cannot be held out: wanted at least 0 and below 1.")
    count = data.annotation_count
    order = np.random.default_rng((seed, 0x46524549)).permutation(count)
    held_out = np.sort(order[: round(validation * count)])
    kept = np.sort(order[round(validation * count) :])
    offsets = count * np.array([VERSIONS.index(version) for version in wanted], np.int64)[:, None]
    return (offsets + kept).ravel(), (offsets + held_out).ravel()


# ---------------------------------------------------------------------------------------------------- files


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'meta.json'} cannot be read ({error}): delete it and prepare again.") from error
    if not isinstance(meta, dict):
        raise DataError(f"{folder / 'meta.json'} is not what `handmesh data prepare` writes: delete it, prepare again.")
    return meta


def _write_mark(out: Path, name: str, record: dict[str, Any]) -> None:
    """Remember that a file is finished, for a run that goes on after this one was interrupted."""
    (out / "marks").mkdir(exist_ok=True)
    _write_json(out / "marks" / f"{name}.json", record)


def _read_marks(out: Path) -> dict[str, Any]:
    return {
        path.name.removesuffix(".json"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / "marks").glob("*.json"))
    }


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode(), error=None, durable=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
