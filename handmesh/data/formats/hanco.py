"""HanCo (Zimmermann et al., GCPR 2021): FreiHAND's recordings whole, as sequences of eight cameras.

    handmesh data check HanCo/train                      green screen; HanCo/test: other places
    handmesh data check HanCo/rgb_merged                 the same frames as train, on other backgrounds

A part is named as if it were a folder of the unpacked set, beside ``meta.json``: ``train`` and ``test`` (photographs in
``rgb/``), or one of the folders with another background, ``rgb_merged``, ``rgb_homo``, ``rgb_color_auto`` and
``rgb_color_sample``. Sequences whose photographs were not downloaded are left out, and frames without a MANO fit. Not
every fit was looked at by its authors: `data check` says how many were.

As show_dataset.py and utils/mano_utils.py of github.com/lmb-freiburg/contra-hand have it: joints of one moment in
``xyz/`` are metres in the world's axes, FreiHAND's definition and order; ``calib/`` has K and the map from world to
camera of all cameras; ``shape/<sequence>/cam<number>/`` FreiHAND's 61 numbers in the camera's axes, relative to MANO's
mean pose. All hands are right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.data.formats.mano_labels import MANO_LABELS, absolute_pose, mano_or_none
from handmesh.data.formats.records import Claim, LabelledPhotos, read_json
from handmesh.data.sample import LabelledHand
from handmesh.errors import DataError
from handmesh.hand import JOINT_COUNT, Handedness

SEQUENCE_COUNT, CAMERA_COUNT = 1518, 8
# Where the photographs of a part are, and whether its frames have the green screen.
PARTS = {"train": ("rgb", True), "test": ("rgb", False)}
PARTS |= {name: (name, True) for name in ("rgb_merged", "rgb_homo", "rgb_color_auto", "rgb_color_sample")}


class HanCo(LabelledPhotos):
    """One part: each frame as the eight cameras saw it."""

    kind = "HanCo"
    published = True
    paths = tuple(PARTS)

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """`path`: a part's name in the unpacked set's folder. Raises DataError for what is missing or unreadable."""
        super().__init__(path, for_scoring=for_scoring)  # images lie relative to the set's folder
        self.root = self.path.parent
        self.folder, green_screen = PARTS[self.path.name]
        meta = read_json(self.root / "meta.json")
        try:
            lists = zip(meta["is_train"], meta["has_fit"], meta["is_valid"], strict=True)
            frames = [
                (sequence, frame, valid)
                for sequence, of in enumerate(lists)
                if (self.root / self.folder / f"{sequence:04d}").is_dir()
                for frame, (train, fit, valid) in enumerate(zip(*of, strict=True))
                if fit and train == green_screen
            ]
            self.sequence_count = len(meta["has_fit"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.root / 'meta.json'} is not HanCo's ({type(error).__name__}: {error}): wanted is_train, has_fit "
                "and is_valid of each sequence's frames."
            ) from error
        self.frames = np.array(frames, np.int32).reshape(-1, 3)  # sequence, frame, was its fit looked at?
        if not frames:
            raise DataError(f"{self.path} has no frame with a MANO fit whose photographs are in {self.folder}/.")
        self.mano = mano_or_none(Handedness.RIGHT, self.kind)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.name in PARTS and sum(path.with_name(name).exists() for name in ("meta.json", "calib", "xyz")) > 1

    def __len__(self) -> int:
        return CAMERA_COUNT * len(self.frames)

    @property
    def labelled_hand(self) -> LabelledHand:
        return MANO_LABELS

    def where(self, index: int) -> str:
        sequence, frame, camera = self._place(index)
        return f"{self.path}, sequence {sequence:04d}, frame {frame:08d}, camera {camera}"

    def files(self) -> Iterator[Path]:
        """What says which frames there are; the labels of 100,000 of them are a file each."""
        yield self.root / "meta.json"

    def read(self, index: int) -> dict[str, Any]:
        sequence, frame, camera = self._place(index)
        place = f"{sequence:04d}/{frame:08d}.json"
        calibration, joints = read_json(self.root / "calib" / place), read_json(self.root / "xyz" / place)
        view = f"{sequence:04d}/cam{camera}/{frame:08d}"
        try:
            K, cam_from_world = (np.array(calibration[name][camera], np.float64) for name in ("K", "M"))
            world = np.array(joints, np.float64).reshape(JOINT_COUNT, 3)
            numbers = np.array(read_json(self.root / "shape" / f"{view}.json"), np.float64).reshape(61)
            joints_cam = world @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{self.where(index)}: no labels of HanCo ({type(error).__name__}: {error}).") from error
        record = {
            "image": f"{self.folder}/{view}.jpg",
            "intrinsics": K.tolist(),
            "joints": joints_cam.tolist(),
            "betas": numbers[48:58].tolist(),
        }
        if self.mano is not None:
            record["pose"] = absolute_pose(
                numbers[:3], numbers[3:48], self.mano, relative=True, principal=False
            ).tolist()
        return record

    def claims(self) -> Iterator[Claim]:
        count = self.sequence_count
        yield Claim("sequences", f"{SEQUENCE_COUNT:,}", f"{count:,}", count == SEQUENCE_COUNT)
        found = f"{len(self.frames):,} in {len(np.unique(self.frames[:, 0])):,} sequences"
        looked_at = f"the fits of {int(self.frames[:, 2].sum()):,} were looked at by their authors"
        yield Claim("frames with a MANO fit", "any number", f"{found}; {looked_at}", None)

    def _place(self, index: int) -> tuple[int, int, int]:
        frame, camera = divmod(index, CAMERA_COUNT)
        return int(self.frames[frame, 0]), int(self.frames[frame, 1]), camera
