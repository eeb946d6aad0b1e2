"""HO-3D, versions 2 and 3 (Hampali et al., CVPR 2020): right hands that hold objects of the YCB set.

    handmesh data check HO3D_v3/train
    handmesh evaluate --data HO3D_v3/evaluation --crop box

A split is the folder ``train`` or ``evaluation`` of the unpacked set, with the list of its frames, ``train.txt`` or
``evaluation.txt``, beside it (github.com/shreyashampali/ho3d). Photographs are PNG files in version 2 and JPEG files in
version 3. Annotations are pickles, which are read without executing anything.

They are in OpenGL's axes (y up, looking along -z) and are turned to ours here; joints are in MANO's order, those of its
kinematic chain and vertices 744, 333, 444, 555 and 672 as tips. Poses are absolute (``flat_hand_mean=True`` in the
authors' tool), metres throughout. Of the evaluation split the annotations have the wrist and a box alone. Where
``evaluation_xyz.json`` and ``evaluation_verts.json`` lie beside the list, in the form and the axes of the authors' own
scoring, they are its joints and vertices; otherwise the split can be looked at, and not scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh import metrics
from handmesh.data.formats.json_arrays import read_json_array
from handmesh.data.formats.mano_labels import MANO_LABELS, turned
from handmesh.data.formats.records import Claim, LabelledPhotos, read_part
from handmesh.data.sample import LabelledHand
from handmesh.errors import DataError
from handmesh.hand import JOINT_COUNT, JOINTS_FROM_MANO, VERTEX_COUNT
from handmesh.system.inert_pickle import InertPickleError, read_pickle

# Frames of each split: db_size of the authors' tool. Its number for training in version 3, 78,297, is not what the same
# page says of the set: 103,462 in all, 20,137 of them for evaluation.
COUNTS = {("train", 2): 66_034, ("train", 3): 83_325, ("evaluation", 2): 11_524, ("evaluation", 3): 20_137}
# What the authors' page gives for a prediction of zeros: joints, plain and aligned, vertices, plain and aligned, in cm.
# It stood there before version 3 came.
ZERO_SCORES_CM = (56.87, 5.19, 57.12, 5.47)

_CV_FROM_GL = np.diag([1.0, -1.0, -1.0])
# How many numbers each may hold. Of the evaluation split `handJoints3D` has the wrist alone.
_SIZES = {"camMat": (9,), "handJoints3D": (3 * JOINT_COUNT, 3), "handPose": (48,), "handBeta": (10,)}
_SIZES |= {"handBoundingBox": (4,)}
_TRUTH = ("evaluation_xyz.json", "evaluation_verts.json")
_CHUNK = 512  # frames


class HO3D(LabelledPhotos):
    """The frames of one split, in the order of its list."""

    kind = "HO-3D"
    published = True
    paths = ("train", "evaluation")

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """Raises DataError for what is missing or unreadable."""
        super().__init__(path, for_scoring=for_scoring)  # images lie relative to the set's folder
        self.root, self.split = self.path.parent, self.path.name
        list_file = self.root / f"{self.split}.txt"
        try:
            self.frames = [line.strip() for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise DataError(
                f"There is no {list_file}: wanted the list of the split's frames, which HO-3D has beside the folder."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{list_file} cannot be read: {error}") from error
        if not self.frames or any(frame.count("/") != 1 for frame in self.frames):
            raise DataError(f"{list_file} is no list of frames such as ABF10/0000.")
        first = next(self.path.glob("*/rgb/[0-9]*.*"), None)
        self.suffix = ".png" if first is not None and first.suffix == ".png" else ".jpg"
        if for_scoring and self.split == "evaluation" and self._truth is None:
            raise DataError(
                f"{self.path} has no joints to score with: put {' and '.join(_TRUTH)}, as its authors' scoring takes "
                f"them, into {self.root}."
            )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.name not in ("train", "evaluation") or not path.is_dir():
            return False
        return path.with_name(f"{path.name}.txt").is_file() or any(path.glob("*/meta"))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def version(self) -> int:
        return 2 if self.suffix == ".png" else 3

    @property
    def labelled_hand(self) -> LabelledHand:
        return MANO_LABELS

    def where(self, index: int) -> str:
        return str(self._meta(index))

    def files(self) -> Iterator[Path]:
        yield self.root / f"{self.split}.txt"
        yield from (self._meta(index) for index in range(len(self)))

    def read(self, index: int) -> dict[str, Any]:
        found = self._annotation(index)
        record: dict[str, Any] = {
            "image": str(self._image(index, self.suffix).relative_to(self.root)),
            "intrinsics": found["camMat"].reshape(3, 3).tolist(),
        }
        if "handBoundingBox" in found:
            record["box"] = found["handBoundingBox"].ravel().tolist()
        if found["handJoints3D"].size == 3 * JOINT_COUNT:
            joints = found["handJoints3D"].reshape(JOINT_COUNT, 3)[list(JOINTS_FROM_MANO)] @ _CV_FROM_GL
            record["joints"] = joints.tolist()
        elif self._truth is not None:
            record["joints"], record["vertices"] = (points[index].tolist() for points in self._truth)
        if "handPose" in found:
            record["pose"] = turned(found["handPose"].reshape(16, 3), _CV_FROM_GL).tolist()
        if "handBeta" in found:
            record["betas"] = found["handBeta"].ravel().tolist()
        return record

    def claims(self) -> Iterator[Claim]:
        count = COUNTS[self.split, self.version]
        subject = f"frames (version {self.version})"
        yield Claim(subject, f"{count:,}", f"{len(self):,}", len(self) == count)
        if self.split != "evaluation":
            return
        if self._truth is None:
            yield Claim("joints and vertices", ", ".join(_TRUTH), "missing", None)
            return
        scores = [score for points in self._truth for score in _zero_scores_cm(points)]
        shown = "{:.2f} / {:.2f} cm joints, {:.2f} / {:.2f} cm vertices".format
        same = bool(np.abs(np.subtract(scores, ZERO_SCORES_CM)).max() < 0.006)
        real = len(self) == count and self.version == 2
        wanted = f"{shown(*ZERO_SCORES_CM)} (published)"
        yield Claim("all-zero prediction", wanted, shown(*scores), same if real else None)

    @cached_property
    def _truth(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(N, 21, 3) and (N, 778, 3) m in our axes and order, of the evaluation split where they are there."""
        files = [self.root / name for name in _TRUTH]
        if self.split != "evaluation" or not all(file.is_file() for file in files):
            return None
        joints, vertices = (
            read_json_array(file, (count, 3)) @ _CV_FROM_GL
            for file, count in zip(files, (JOINT_COUNT, VERTEX_COUNT), strict=True)
        )
        for file, points in zip(files, (joints, vertices), strict=True):
            if len(points) != len(self):
                raise DataError(f"{file} has {len(points):,} frames, and evaluation.txt lists {len(self):,}.")
        return joints[:, list(JOINTS_FROM_MANO)], vertices

    def _image(self, index: int, suffix: str) -> Path:
        sequence, frame = self.frames[index].split("/")
        return self.path / sequence / "rgb" / f"{frame}{suffix}"

    def _meta(self, index: int) -> Path:
        sequence, frame = self.frames[index].split("/")
        return self.path / sequence / "meta" / f"{frame}.pkl"

    def _annotation(self, index: int) -> dict[str, NDArray[np.float64]]:
        file = self._meta(index)
        content = read_part(file)
        try:
            found = read_pickle(content, "annotation of HO-3D", _SIZES, text=True)
        except InertPickleError as error:
            raise DataError(f"{file} {error}") from error
        if missing := [name for name in ("camMat", "handJoints3D") if name not in found]:
            raise DataError(
                f"{file} has no {missing[0]}: wanted an annotation of HO-3D. Frames without one do not belong in "
                f"{self.split}.txt."
            )
        for name, value in found.items():
            if value.size not in _SIZES[name]:
                wanted = " or ".join(map(str, _SIZES[name]))
                raise DataError(f"{file}: {name} has {value.size} numbers, wanted {wanted}.")
        return {name: np.asarray(value, np.float64) for name, value in found.items()}


def _zero_scores_cm(points: NDArray[np.float64]) -> tuple[float, float]:
    """What a prediction of zeros scores on (N, P, 3), plain and aligned."""
    parts = [points[start : start + _CHUNK] for start in range(0, len(points), _CHUNK)]
    plain = [np.linalg.norm(part, axis=-1).mean(axis=-1) for part in parts]
    aligned = [metrics.pa_mean_error(part, np.zeros_like(part)) for part in parts]
    return 100 * float(np.concatenate(plain).mean()), 100 * float(np.concatenate(aligned).mean())
