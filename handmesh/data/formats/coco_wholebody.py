"""COCO-WholeBody (Jin et al., ECCV 2020): hands of people in COCO's photographs, 21 keypoints each, in 2D.

    handmesh data check coco/annotations/coco_wholebody_val_v1.0.json

The annotation file of one split (data_format.md of github.com/jin-s13/COCO-WholeBody), with COCO 2017's images as COCO
lays them out, in ``train2017/`` or ``val2017/`` beside the file's folder. Joints are in our order; "left" is the
person's own left. A hand is a sample where the file says that it is valid; keypoints with v = 0 are not known. Hands
smaller than `MIN_SIDE_PX`, of which nothing can be learnt, are left out. Boxes are the smallest around the keypoints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats.records import Claim, LabelledPhotos, read_json
from handmesh.errors import DataError
from handmesh.hand import JOINT_COUNT, Handedness

MIN_SIDE_PX = 8.0  # of the box's longer side
IMAGE_COUNTS = {"train": 118_287, "val": 5_000}  # COCO 2017's

_NAME = re.compile(r"coco_wholebody_(train|val)_v[\d.]+\.json")


class CocoWholeBody(LabelledPhotos):
    """The hands of one annotation file."""

    kind = "COCO-WholeBody"
    published = True
    paths = ("annotations/coco_wholebody_*.json", "coco_wholebody_*.json")

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """Raises DataError when the file cannot be read, or has not the published form."""
        super().__init__(path, for_scoring=for_scoring)
        self.split = _split_of(self.path)
        self.image_folder = self._find_images()
        content = read_json(self.path)
        try:
            names = {image["id"]: str(image["file_name"]) for image in content["images"]}
            hands = [hand for person in content["annotations"] for hand in _hands(person)]
            self.image_count = len(names)
            self.names = [names[image] for image, *_ in hands]
            self.boxes = np.array([box for *_, box, _ in hands], np.float32).reshape(-1, 4)
            self.keypoints = np.array([points for *_, points in hands], np.float32).reshape(-1, JOINT_COUNT, 3)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self.path} is no annotation file of COCO-WholeBody ({type(error).__name__}: {error}): wanted its "
                "images and annotations with lefthand_kpts, lefthand_box, lefthand_valid and the same of the right."
            ) from error
        self.sides = [side for _, side, *_ in hands]
        large = (self.boxes[:, 2:].max(axis=1, initial=0) >= MIN_SIDE_PX) & (self.boxes[:, 2:].min(axis=1) > 0)
        self.chosen: NDArray[np.int64] = np.flatnonzero(large)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return _NAME.fullmatch(path.name) is not None

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> dict[str, Any]:
        hand = int(self.chosen[index])
        x, y, width, height = self.boxes[hand].tolist()
        return {
            "image": os.path.join(self.image_folder, self.names[hand]),
            "handedness": str(self.sides[hand]),
            "box": [x, y, x + width, y + height],
            "keypoints": self.keypoints[hand].tolist(),
        }

    def claims(self) -> Iterator[Claim]:
        wanted = IMAGE_COUNTS[self.split]
        yield Claim("images", f"{wanted:,} (COCO 2017)", f"{self.image_count:,}", self.image_count == wanted)
        small = len(self.sides) - len(self)
        found = f"{len(self.sides):,}, {small:,} of them smaller than {MIN_SIDE_PX:g} px and left out"
        yield Claim("valid hands", "any number", found, None)

    def _find_images(self) -> str:
        """The folder of the photographs, relative to the annotation file's. Raises DataError."""
        folder = f"{self.split}2017"
        places = [f"../{folder}", folder, f"../images/{folder}", f"images/{folder}"]
        for place in places:
            if (self.path.parent / place).is_dir():
                return place
        raise DataError(f"{self.path}: there is no folder {folder} with COCO's images: wanted in {', '.join(places)}.")


def _split_of(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path} is not called coco_wholebody_train_v1.0.json or coco_wholebody_val_v1.0.json.")
    return match[1]


def _hands(person: dict[str, Any]) -> Iterator[tuple[Any, Handedness, list[float], list[float]]]:
    """(image, side, box x y width height, 63 numbers) of the valid hands of one annotation."""
    for side in Handedness:
        if person[f"{side}hand_valid"]:
            yield person["image_id"], side, person[f"{side}hand_box"], person[f"{side}hand_kpts"]
