"""DexYCB (Chao et al., CVPR 2021): hands that grasp objects, seen by eight cameras.

    handmesh data check dex-ycb/s0_test                  the splits s0 to s3 (unseen: nothing, subjects, views, objects)
    handmesh evaluate --data dex-ycb/s1_test --crop box-from-test-labels

A split is named as if it were a folder of the unpacked set: ``s0_train``, ``s0_val``, ``s0_test``, and so on to ``s3``,
by the authors' own lists (dex_ycb_toolkit/dex_ycb.py of github.com/NVlabs/dex-ycb-toolkit). Frames without a labelled
hand are left out, as their evaluation does; which these are is looked up once and kept in the cache folder.

Joints are metres in the camera's frame, in our order; they are joints of MANO's kinematic chain with manopth's tips, so
they lie 1 to 4 mm from those regressed from the mesh. Poses are 45 principal components and need MANO; shapes of left
hands belong to the published MANO_LEFT, whose shape directions are not mirrored, and are left out.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from handmesh.data.formats.mano_labels import MANO_LABELS, absolute_pose, mano_or_none
from handmesh.data.formats.records import Claim, LabelledPhotos, read_part
from handmesh.data.sample import LabelledHand
from handmesh.errors import DataError
from handmesh.hand import JOINT_COUNT, Handedness
from handmesh.system.atomic import sha256_of, write_atomically
from handmesh.system.paths import user_cache_folder

logger = logging.getLogger(__name__)

SUBJECT_COUNT, SEQUENCES_EACH = 10, 100
CAMERAS = (  # in the order of their toolkit, which the splits count in
    *("836212060125", "839512060362", "840412060917", "841412060263"),
    *("932122060857", "932122060861", "932122061900", "932122062010"),
)
# Of one hand: its joints, m and px, and MANO's orientation, principal components and place.
_SHAPES = {"joint_3d": (JOINT_COUNT, 3), "joint_2d": (JOINT_COUNT, 2), "pose_m": (51,)}
_SUBJECTS = "2020????-*"  # folders
_SPLIT = re.compile(r"s([0-3])_(train|val|test)")


class _Part(NamedTuple):
    """Which subjects, cameras and sequences of each subject a split has."""

    subjects: tuple[int, ...]
    cameras: tuple[int, ...]
    sequences: tuple[int, ...]


def _parts() -> dict[str, _Part]:
    people, cameras, sequences = tuple(range(SUBJECT_COUNT)), tuple(range(8)), tuple(range(SEQUENCES_EACH))
    fifth = tuple(index for index in sequences if index % 5 == 4)
    objects = {  # five sequences in a row show one object
        name: tuple(index for index in sequences if index // 5 in chosen)
        for name, chosen in (("val", (3, 19)), ("test", (7, 11, 15)))
    }
    rest = tuple(index for index in sequences if index not in (*objects["val"], *objects["test"]))
    return {
        "s0_train": _Part(people, cameras, tuple(index for index in sequences if index not in fifth)),
        "s0_val": _Part((0, 1), cameras, fifth),
        "s0_test": _Part(people[2:], cameras, fifth),
        "s1_train": _Part((0, 1, 2, 3, 4, 5, 9), cameras, sequences),
        "s1_val": _Part((6,), cameras, sequences),
        "s1_test": _Part((7, 8), cameras, sequences),
        "s2_train": _Part(people, cameras[:6], sequences),
        "s2_val": _Part(people, (6,), sequences),
        "s2_test": _Part(people, (7,), sequences),
        "s3_train": _Part(people, cameras, rest),
        **{f"s3_{name}": _Part(people, cameras, chosen) for name, chosen in objects.items()},
    }


PARTS = _parts()


class _Sequence(NamedTuple):
    folder: str  # subject/sequence
    frames: int
    side: Handedness
    betas: list[float]


class DexYCB(LabelledPhotos):
    """One split: every frame of it with a labelled hand, sequence by sequence, camera by camera."""

    kind = "DexYCB"
    published = True
    paths = tuple(PARTS)

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """`path`: a split's name in the unpacked set's folder. Raises DataError for what is missing or unreadable."""
        super().__init__(path, for_scoring=for_scoring)  # images lie relative to the set's folder
        self.root, self.part = self.path.parent, PARTS[self.path.name]
        self.subjects = sorted(folder.name for folder in self.root.glob(_SUBJECTS) if folder.is_dir())
        if len(self.subjects) != SUBJECT_COUNT:
            raise DataError(
                f"{self.root} has {len(self.subjects)} folders of subjects, wanted {SUBJECT_COUNT}: splits are told by "
                "their order, so all of them have to be there."
            )
        self.sequences = [
            sequence for subject in self.part.subjects for sequence in self._sequences_of(self.subjects[subject])
        ]
        self.intrinsics = [self._camera(CAMERAS[camera]) for camera in self.part.cameras]
        self.frames = self._labelled_frames()
        self.mano = {side: mano_or_none(side, self.kind) for side in {one.side for one in self.sequences}}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if _SPLIT.fullmatch(path.name) is None:
            return False
        return (path.parent / "calibration").is_dir() or any(path.parent.glob(_SUBJECTS))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def labelled_hand(self) -> LabelledHand:
        return MANO_LABELS

    def where(self, index: int) -> str:
        return str(self._file("labels_{:06d}.npz", *self.frames[index]))

    def files(self) -> Iterator[Path]:
        """What calibrates and describes the sequences; the labels of half a million frames lie beside their images."""
        yield from sorted((self.root / "calibration").rglob("*.yml"))
        yield from (self.root / sequence.folder / "meta.yml" for sequence in self.sequences)

    def read(self, index: int) -> dict[str, Any]:
        sequence, camera, frame = map(int, self.frames[index])
        labels = self._labels(sequence, camera, frame)
        of = self.sequences[sequence]
        record = {
            "image": str(self._file("color_{:06d}.jpg", sequence, camera, frame).relative_to(self.root)),
            "handedness": str(of.side),
            "intrinsics": self.intrinsics[camera],
            "joints": labels["joint_3d"].tolist(),
            "keypoints": labels["joint_2d"].tolist(),
        }
        hand = self.mano[of.side]
        if hand is not None:
            numbers = labels["pose_m"]
            pose = absolute_pose(numbers[:3], numbers[3:48], hand, relative=True, principal=True)
            record["pose"] = pose.tolist()
        if of.side == Handedness.RIGHT:
            record["betas"] = of.betas
        return record

    def claims(self) -> Iterator[Claim]:
        counts = [len(self._names_of(subject)) for subject in self.subjects]
        wanted = f"{SUBJECT_COUNT} subjects with {SEQUENCES_EACH} each"
        found = f"{len(counts)} with {min(counts)} to {max(counts)}"
        yield Claim("sequences", wanted, found, set(counts) == {SEQUENCES_EACH})
        total = sum(sequence.frames for sequence in self.sequences) * len(self.part.cameras)
        yield Claim("frames", "any number", f"{total:,}, {len(self):,} of them with a labelled hand", None)

    def _names_of(self, subject: str) -> list[str]:
        return sorted(folder.name for folder in (self.root / subject).iterdir() if folder.is_dir())

    def _sequences_of(self, subject: str) -> Iterator[_Sequence]:
        names = self._names_of(subject)
        if len(names) != SEQUENCES_EACH:
            raise DataError(
                f"{self.root / subject} has {len(names)} sequences, wanted {SEQUENCES_EACH}: splits are told by their "
                "numbers, so all of a subject's have to be there."
            )
        return (self._sequence(f"{subject}/{names[index]}") for index in self.part.sequences)

    def _sequence(self, folder: str) -> _Sequence:
        meta = _yaml(self.root / folder / "meta.yml")
        try:
            calibration = _yaml(self.root / "calibration" / f"mano_{meta['mano_calib'][0]}" / "mano.yml")
            betas = [float(number) for number in calibration["betas"]]
            return _Sequence(folder, int(meta["num_frames"]), Handedness(meta["mano_sides"][0]), betas)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.root / folder / 'meta.yml'} or its mano.yml is not DexYCB's ({type(error).__name__}: {error}): "
                "wanted num_frames, mano_sides and mano_calib, and betas."
            ) from error

    def _camera(self, serial: str) -> list[list[float]]:
        file = self.root / "calibration" / "intrinsics" / f"{serial}_640x480.yml"
        try:
            fx, fy, cx, cy = (float(_yaml(file)["color"][name]) for name in ("fx", "fy", "ppx", "ppy"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is no camera of DexYCB ({type(error).__name__}: {error}).") from error
        return [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]

    def _file(self, name: str, sequence: int, camera: int, frame: int) -> Path:
        return self.root / self.sequences[sequence].folder / CAMERAS[self.part.cameras[camera]] / name.format(frame)

    def _labels(self, sequence: int, camera: int, frame: int) -> Any:
        file = self._file("labels_{:06d}.npz", sequence, camera, frame)
        content = io.BytesIO(read_part(file))
        try:
            with np.load(content, allow_pickle=False) as archive:
                return {name: np.asarray(archive[name], np.float64).reshape(shape) for name, shape in _SHAPES.items()}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{file} cannot be read ({error}): copy it again.") from error

    def _labelled_frames(self) -> NDArray[np.int32]:
        """(N, 3) sequence, camera, frame of those whose joints are not all -1: their mark for "no hand"."""
        listed = [sequence[:2] for sequence in self.sequences]
        identity = sha256_of(json.dumps([str(self.root.resolve()), self.path.name, listed]).encode())
        kept = user_cache_folder() / f"dexycb-{identity[:16]}.npy"
        if kept.is_file():
            return np.load(kept)
        logger.info("%s: looking up which frames show a labelled hand, once", self.path)
        found = [
            (sequence, camera, frame)
            for sequence, of in enumerate(self.sequences)
            for camera in range(len(self.part.cameras))
            for frame in range(of.frames)
            if not (self._labels(sequence, camera, frame)["joint_3d"] == -1).all()
        ]
        frames = np.array(found, np.int32).reshape(-1, 3)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, _npy(frames), error=None)
        return frames


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _yaml(path: Path) -> Any:
    text = read_part(path)
    try:
        content = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, wanted settings as DexYCB has them.")
    return content
