"""InterHand2.6M (Moon et al., ECCV 2020): one and two hands in a dome of cameras.

    handmesh data check InterHand2.6M/annotations/val/InterHand2.6M_val_data.json

The annotations of one split (mks0601.github.io/InterHand2.6M): the ``_data.json`` given here, with ``_camera.json``,
``_joint_3d.json`` and, where it was downloaded, ``_MANO_NeuralAnnot.json`` beside it; photographs are in
``images/<split>/`` in a folder above. Version 1.0 has ``annotations/<split>/``, version 0.0 ``annotations/all/``.

Every hand of a photograph is a sample: an "interacting" one gives two. World coordinates in millimetres are brought to
metres of the photograph's camera. Joints were triangulated from annotated points, not regressed from a mesh: 3D labels
are given where all 21 are valid, keypoints where they are. Their order is tip to base, finger by finger, the wrist
last. MANO's parameters, fitted to them to about 5 mm, are relative to its mean pose, in the world's axes; left hands'
shapes belong to a left hand whose shape directions were mended, so they mirror to those of a right one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats.mano_labels import MANO_LABELS, absolute_pose, mano_or_none, turned
from handmesh.data.formats.records import Claim, LabelledPhotos, read_json
from handmesh.data.sample import LabelledHand
from handmesh.errors import DataError
from handmesh.hand import FINGER_NAMES, JOINT_COUNT, JOINT_NAMES, Handedness

# Where each of our joints stands in theirs; the left hand's follow behind the right one's 21.
_WRIST = JOINT_COUNT - 1
_PLACES = np.array(
    [_WRIST if name == "wrist" else 4 * FINGER_NAMES.index(name.split("_")[0]) + 3 - (joint - 1) % 4
     for joint, name in enumerate(JOINT_NAMES)]
)  # fmt: skip
CAMERA_KEYS = ("campos", "camrot", "focal", "princpt")  # mm, world to camera, px, px
FIRST = {Handedness.RIGHT: 0, Handedness.LEFT: JOINT_COUNT}
SIDES = {"right": (Handedness.RIGHT,), "left": (Handedness.LEFT,), "interacting": tuple(Handedness)}
# Photographs of one hand and of two, H+M, in the whole set (both image rates) and at 5 frames a second.
COUNTS = {
    "train": ((687_548, 673_514), (371_800, 366_802)),
    "val": ((234_183, 145_942), (113_370, 70_917)),
    "test": ((488_968, 360_192), (197_992, 154_905)),
}

_NAME = re.compile(r"InterHand2\.6M_(train|val|test)_data\.json")


class _Hand(NamedTuple):
    image: int  # of `images`
    side: Handedness
    valid: NDArray[np.bool_]  # (21,) in our order


class _Image(NamedTuple):
    file: str
    capture: str
    camera: str
    frame: str


class InterHand(LabelledPhotos):
    """The hands of one split, photograph by photograph."""

    kind = "InterHand2.6M"
    published = True
    paths = ("annotations/*/InterHand2.6M_*_data.json", "*/InterHand2.6M_*_data.json", "InterHand2.6M_*_data.json")

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """`for_scoring`: only hands of which all joints are valid. Raises DataError for what is missing or damaged."""
        super().__init__(path, for_scoring=for_scoring)
        match = _NAME.fullmatch(self.path.name)
        if match is None:
            raise DataError(f"{self.path} is not called InterHand2.6M_train_data.json, or of val or test.")
        self.split = match[1]
        self.image_folder = self._find_images()
        self.images: list[_Image] = []
        self.hands: list[_Hand] = []
        content, self._cameras, self._joints = (self._json(name) for name in ("data", "camera", "joint_3d"))
        self._fits = self._json("MANO_NeuralAnnot") if self._file("MANO_NeuralAnnot").is_file() else {}
        self._right = mano_or_none(Handedness.RIGHT, self.kind)
        try:
            self._read_annotations(content)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path} is no annotation file of InterHand2.6M ({type(error).__name__}: {error}): wanted its "
                "images and annotations with image_id, joint_valid and hand_type (right, left or interacting)."
            ) from error
        if for_scoring:
            self.hands = [hand for hand in self.hands if hand.valid.all()]

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return _NAME.fullmatch(path.name) is not None

    def __len__(self) -> int:
        return len(self.hands)

    @property
    def labelled_hand(self) -> LabelledHand:
        return MANO_LABELS

    @property
    def mano_joints(self) -> bool:
        return False  # people pointed at them

    def files(self) -> Iterator[Path]:
        yield from sorted(self.path.parent.glob(f"InterHand2.6M_{self.split}_*.json"))

    def read(self, index: int) -> dict[str, Any]:
        hand = self.hands[index]
        image = self.images[hand.image]
        try:
            cameras = self._cameras[image.capture]
            camera = {name: np.array(cameras[name][image.camera], np.float64) for name in CAMERA_KEYS}
            world = np.array(self._joints[image.capture][image.frame]["world_coord"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.where(index)}: capture {image.capture}, camera {image.camera}, frame {image.frame} is not in "
                f"its camera and joint files ({type(error).__name__}: {error})."
            ) from error
        joints = (world[FIRST[hand.side] + _PLACES] - camera["campos"]) @ camera["camrot"].T / 1000
        (fx, fy), (cx, cy) = camera["focal"], camera["princpt"]
        pixels = joints[:, :2] / joints[:, 2:] * (fx, fy) + (cx, cy)
        visible = hand.valid & (joints[:, 2] > 0)
        record: dict[str, Any] = {
            "image": os.path.join(self.image_folder, image.file),
            "handedness": str(hand.side),
            "intrinsics": [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]],
            "keypoints": [point if known else None for point, known in zip(pixels.tolist(), visible, strict=True)],
        }
        if visible.all():
            record["joints"] = joints.tolist()
        return record | self._mano_labels(image, hand.side, camera["camrot"])

    def claims(self) -> Iterator[Claim]:
        whole, slow = COUNTS[self.split]
        found = self.image_counts["right"] + self.image_counts["left"], self.image_counts["interacting"]
        wanted = f"{sum(whole):,}: {whole[0]:,} and {whole[1]:,}, or {sum(slow):,} at 5 frames a second"
        shown = f"{found[0]:,} and {found[1]:,}"
        yield Claim("photographs of one hand and of two", wanted, shown, found in COUNTS[self.split])
        complete = sum(hand.valid.all() for hand in self.hands)
        yield Claim("hands", "any number", f"{len(self):,}, {complete:,} of them with all joints", None)

    def _read_annotations(self, content: Any) -> None:
        places: dict[Any, int] = {}
        for image in content["images"]:
            places[image["id"]] = len(self.images)
            parts = (image["file_name"], image["capture"], image["camera"], image["frame_idx"])
            self.images.append(_Image(*map(str, parts)))
        self.image_counts = dict.fromkeys(SIDES, 0)
        for annotation in content["annotations"]:
            self.image_counts[annotation["hand_type"]] += 1
            valid = np.array(annotation["joint_valid"], float).reshape(2 * JOINT_COUNT) > 0
            for side in SIDES[annotation["hand_type"]]:
                of_side = valid[FIRST[side] + _PLACES]
                if of_side.sum() > 1:
                    self.hands.append(_Hand(places[annotation["image_id"]], side, of_side))

    def _mano_labels(self, image: _Image, side: Handedness, camrot: NDArray[np.float64]) -> dict[str, Any]:
        fitted = self._fits.get(image.capture, {}).get(image.frame, {}).get(str(side))
        if fitted is None:
            return {}
        try:
            pose, labels = np.array(fitted["pose"], np.float64).reshape(48), {"betas": fitted["shape"]}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._file('MANO_NeuralAnnot')}: capture {image.capture}, frame {image.frame}, {side}: "
                f"{type(error).__name__}: {error}. Wanted 48 numbers of 'pose' and 'shape'."
            ) from error
        if self._right is not None:
            hand = self._right if side == Handedness.RIGHT else self._right.mirrored()
            absolute = absolute_pose(pose[:3], pose[3:], hand, relative=True, principal=False)
            labels["pose"] = turned(absolute, camrot).tolist()
        return labels

    def _file(self, name: str) -> Path:
        return self.path.with_name(f"InterHand2.6M_{self.split}_{name}.json")

    def _json(self, name: str) -> Any:
        content = read_json(self._file(name))
        if not isinstance(content, dict):
            raise DataError(f"{self._file(name)} holds a {type(content).__name__}, wanted InterHand2.6M's dictionary.")
        return content

    def _find_images(self) -> str:
        """The folder of the photographs, relative to the annotation file's. Raises DataError."""
        for above in self.path.parents[:4]:
            folder = above / "images" / self.split
            if folder.is_dir():
                return os.path.relpath(folder, self.path.parent)
        raise DataError(f"{self.path}: there is no images/{self.split} in a folder above it.")
