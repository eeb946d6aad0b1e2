"""HInt (Pavlakos et al., "Reconstructing Hands in 3D with Transformers", CVPR 2024): hands in use, in 2D.

    handmesh data check HInt_annotation_partial/VAL_newdays_img
    handmesh evaluate --data HInt_annotation_partial/TEST_newdays_img --crop box

A subset is a folder of pairs, a photograph and a JSON file of the same name (github.com/ddshan/hint): one hand with
its box, 21 keypoints in our order, and of each whether it is hidden. Hidden keypoints are labelled, too, where
annotators took them to be: they are known here, and scores are given of visible and of hidden ones. The side is the
end of the file's name, ``_l`` or ``_r``; in a photograph with two hands the other one is not labelled. The frames of
Ego4D have to be fetched with the authors' own scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from handmesh.data.formats.records import Claim, LabelledPhotos, read_json
from handmesh.errors import DataError
from handmesh.hand import JOINT_COUNT, Handedness

# Photographs, each with its JSON file: half of the files that prep_HInt/prep_ego4d.py of the authors counts.
COUNTS = {
    "TRAIN_newdays_img": 9666,
    "VAL_newdays_img": 550,
    "TEST_newdays_img": 1754,
    "TRAIN_epick_img": 2780,
    "VAL_epick_img": 625,
    "TEST_epick_img": 1906,
    "TRAIN_ego4d_img": 11652,
    "VAL_ego4d_img": 514,
    "TEST_ego4d_img": 1714,
    "VAL_ego4d_seq": 2320,
    "TEST_ego4d_seq": 6953,
}
_SIDES = {"l": Handedness.LEFT, "r": Handedness.RIGHT}


class HInt(LabelledPhotos):
    """One subset, by the order of its names."""

    kind = "HInt"
    published = True
    paths = tuple(COUNTS)

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """Raises DataError when the folder holds no pairs."""
        super().__init__(Path(path) / "labels", for_scoring=for_scoring)  # images lie relative to the path's folder
        self.folder = self.path.parent
        if not self._names:
            raise DataError(f"{self.folder} holds no JSON files: wanted pairs such as NAME_r.jpg and NAME_r.json.")

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_dir() and path.name in COUNTS

    @cached_property
    def _names(self) -> list[str]:
        return sorted(file.stem for file in self.folder.glob("*.json"))

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        return str(self.folder / f"{self._names[index]}.json")

    def files(self) -> Iterator[Path]:
        yield from (self.folder / f"{name}.json" for name in self._names)

    def read(self, index: int) -> dict[str, Any]:
        name, where = self._names[index], self.where(index)
        side = re.fullmatch(r".*_([lr])", name)
        if side is None:
            raise DataError(f"{where}: its name does not end in _l or _r, which says the hand's side.")
        content = read_json(self.folder / f"{name}.json")
        try:
            (hand,) = content
            hidden = [bool(occluded) for occluded in hand["occlusion"]]
            keypoints, box = [point[:2] for point in hand["keypoints"]], hand["bbox"][0]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{where} is no annotation of HInt ({type(error).__name__}: {error}): wanted a list of one hand with "
                "bbox, keypoints and occlusion."
            ) from error
        if len(hidden) != JOINT_COUNT:
            raise DataError(f"{where}: 'occlusion' has {len(hidden)} entries, wanted {JOINT_COUNT}.")
        return {
            "image": f"{name}.jpg",
            "handedness": str(_SIDES[side[1]]),
            "box": box,
            "keypoints": keypoints,
            "facts": {"occluded": hidden},
        }

    def claims(self) -> Iterator[Claim]:
        wanted = COUNTS[self.folder.name]
        yield Claim("photographs with labels", f"{wanted:,}", f"{len(self):,}", len(self) == wanted)
