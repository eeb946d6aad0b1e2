"""Photographs with labels, one record for each: the keys of docs/how_to/data.md, in whatever form they lie on disk.

A form of your own is a class below `LabelledPhotos` that counts its photographs and reads one's record, and its place
in `handmesh.data.formats.FORMATS`. Training (`data.photos`), `handmesh data check`, `data show`, `evaluate` and `label`
then take it, by its path.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.data.sample import JOINT_COUNT, LabelledHand, PhotoLabels, RawSample, hand_labels
from handmesh.errors import ConfigError, DataError, ImageError
from handmesh.files.image import read_image
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.rotation import matrix_from_vector
from handmesh.hand import BETA_COUNT, MANO_JOINT_COUNT, VERTEX_COUNT, Handedness

Floats = NDArray[np.float64]

_MIN_SPREAD_PX = 2.0  # no hand is as small

# key -> what it has to be, as the messages say it
KEYS = {
    "image": "the photograph's path, relative to the JSONL file",
    "handedness": '"right" or "left" (default: right)',
    "box": "[x0, y0, x1, y1] pixels",
    "intrinsics": "3 x 3 camera matrix, pixels",
    "keypoints": "21 x [x, y] or [x, y, visible] pixels; null or visible = 0 for one that is not known",
    "joints": "21 x 3 metres, camera frame",
    "vertices": "778 x 3 metres, camera frame",
    "pose": "16 x 3 x 3 rotations or 16 x 3 rotation vectors, identity = flat hand",
    "betas": "10 shape coefficients",
    "present": "false for a photograph that shows no hand, in its box if it has one (default: true)",
    "alpha": "the path of a grey picture of the photograph's size: what is the hand, with its arm",
}
_KEYS_OF_NO_HAND = ("image", "present", "box")
# Written by `handmesh synth --out` or left to the user; not read here.
OTHER_KEYS = ("mask", "translation", "facts")


class Claim(NamedTuple):
    """Something that is said about a data set, and what is so of this copy of it: a row of `handmesh data check`."""

    subject: str
    wanted: str
    found: str
    passed: bool | None  # None: nothing to compare with


class LabelledPhotos(ABC):
    """N photographs with their labels. Opens files at use: cheap to send to worker processes."""

    kind: ClassVar[str]  # what the form is called
    # A data set as others published it, of up to millions of records: a run looks at some of them before it begins,
    # and its identity is that of the files with labels, not of every image. `data check` reads all.
    published: ClassVar[bool] = False
    # Where parts of a published set lie in its folder, as patterns: what a message about the folder can offer.
    paths: ClassVar[tuple[str, ...]] = ()
    path: Path  # the file that labels come from; images lie relative to its folder

    def __init__(self, path: Path, *, for_scoring: bool = False) -> None:
        """`for_scoring`: see `RawSample`. Raises DataError when there is nothing at `path`."""
        self.path, self.for_scoring = Path(path), for_scoring

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether there is a set of this form at `path`: told by names of files, without reading them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Any:
        """The record of one photograph, by the names of `KEYS`; it is checked by whoever asks. Raises DataError."""

    @property
    def labelled_hand(self) -> LabelledHand | None:
        """Whose vertices, poses and shapes the labels are. None: of the hand that is trained or scored."""
        return None

    @property
    def mano_joints(self) -> bool:
        """Whether joints and keypoints lie where MANO has them (`handmesh.hand.definitions`)."""
        return self.labelled_hand is not None and self.labelled_hand.mano_joints

    def claims(self) -> Iterable[Claim]:
        """What is published about the set, its counts for example, compared with this copy."""
        return ()

    def where(self, index: int) -> str:
        """A sample's place, for messages."""
        return f"{self.path}, sample {index}"

    def record(self, index: int) -> dict[str, Any]:
        """`read`'s, its keys known and its image named. Raises DataError."""
        record, where = self.read(index), self.where(index)
        if not isinstance(record, dict):
            raise DataError(f"{where} holds a {type(record).__name__}, wanted an object with the key 'image'.")
        for key in record:
            if key not in KEYS and key not in OTHER_KEYS:
                near = get_close_matches(key, KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}; others go under 'facts'"
                raise DataError(f"{where}: {key!r} is no label; {hint}")
        if not isinstance(record.get("image"), str) or not record["image"]:
            raise DataError(f"{where}: 'image' is {record.get('image')!r}, wanted {KEYS['image']}.")
        if (alpha := record.get("alpha")) is not None and not (isinstance(alpha, str) and alpha):
            raise DataError(f"{where}: 'alpha' is {alpha!r}, wanted {KEYS['alpha']}.")
        return record

    def image_path(self, index: int) -> Path:
        return self.path.parent / self.record(index)["image"]

    def picture_paths(self, index: int) -> list[Path]:
        """The photograph's, and its alpha's if it has one."""
        record = self.record(index)
        return [self.path.parent / record[key] for key in ("image", "alpha") if record.get(key) is not None]

    def files(self) -> Iterator[Path]:
        """Every file that a sample comes from; of a published set, those with labels."""
        yield self.path
        if not self.published:
            yield from (path for index in range(len(self)) for path in self.picture_paths(index))

    def labels(self, index: int) -> PhotoLabels:
        """Raises DataError that names place and key for a value of the wrong form."""
        return parse_labels(self.record(index), self.where(index))

    def __getitem__(self, index: int) -> RawSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        record, where = self.record(index), self.where(index)
        try:
            image = read_image(self.path.parent / record["image"])
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
        alpha = None
        if record.get("alpha") is not None:
            height, width = image.shape[:2]
            alpha = partial(read_alpha, self.path.parent / record["alpha"], (width, height), where)
        return RawSample(record["image"], image, parse_labels(record, where), alpha, for_scoring=self.for_scoring)

    def __iter__(self) -> Iterator[RawSample]:
        return (self[index] for index in range(len(self)))


def read_part(path: Path) -> bytes:
    """A file of a published set. Raises DataError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no {path}. Was all of the set unpacked?") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_json(path: Path) -> Any:
    """What a JSON file of a published set holds. Raises DataError."""
    content = read_part(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{path} is no JSON, or not all of it ({error}): copy or download it again.") from error


def read_alpha(path: Path, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """(H, W) of a photograph of this size (width, height). Raises DataError."""
    try:
        alpha = np.ascontiguousarray(read_image(path)[..., 0])
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error
    if (found := alpha.shape[::-1]) != size:
        raise DataError(f"{where}: 'alpha' has {found[0]} x {found[1]} px, wanted the image's {size[0]} x {size[1]}.")
    return alpha


def parse_labels(record: dict[str, Any], where: str) -> PhotoLabels:
    """The labels in one object. `where` is what a DataError calls it."""

    def array(key: str, *shapes: tuple[int, ...]) -> Floats | None:
        value = record.get(key)
        if value is None:
            return None
        try:
            numbers = np.array(value, np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.empty(0)
        if numbers.shape not in shapes or not np.isfinite(numbers).all():
            found = f"{numbers.shape} numbers" if numbers.size else repr(value)[:60]
            raise DataError(f"{where}: {key!r} is {found}, wanted {KEYS[key]}, all finite.")
        return numbers

    side = record.get("handedness") or Handedness.RIGHT
    if side not in tuple(Handedness):
        raise DataError(f"{where}: 'handedness' is {side!r}, wanted {KEYS['handedness']}.")
    box = array("box", (4,))
    if box is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise DataError(f"{where}: 'box' {box.tolist()} is empty, wanted x0 < x1 and y0 < y1.")
    K = array("intrinsics", (3, 3))
    try:
        intrinsics = None if K is None else Intrinsics.from_matrix(K)
    except ConfigError as error:
        raise DataError(f"{where}: 'intrinsics': {error}") from None
    keypoints, known = _keypoints(record.get("keypoints"), where)
    joints, vertices = array("joints", (JOINT_COUNT, 3)), array("vertices", (VERTEX_COUNT, 3))
    for key, points in (("joints", joints), ("vertices", vertices)):
        if points is not None and (np.abs(points) > 100).any():
            raise DataError(f"{where}: {key!r} reach {np.abs(points).max():.0f}: wanted metres. Are they millimetres?")
    pose = array("pose", (MANO_JOINT_COUNT, 3, 3), (MANO_JOINT_COUNT, 3), (3 * MANO_JOINT_COUNT,))
    if pose is not None and pose.ndim != 3:
        pose = matrix_from_vector(pose.reshape(MANO_JOINT_COUNT, 3))
    elif pose is not None and (off := float(np.abs(np.swapaxes(pose, -1, -2) @ pose - np.eye(3)).max())) > 1e-3:
        raise DataError(f"{where}: 'pose' holds matrices that are no rotations (off by {off:.2g}).")
    elif pose is not None and (np.linalg.det(pose) < 0).any():
        raise DataError(f"{where}: 'pose' holds a reflection: wanted rotations with determinant 1.")
    present = record.get("present")
    if present is not None and not isinstance(present, bool):
        raise DataError(f"{where}: 'present' is {present!r}, wanted {KEYS['present']}.")
    if present is False and (said := [key for key in KEYS if key not in _KEYS_OF_NO_HAND and record.get(key)]):
        raise DataError(f"{where} shows no hand ('present' is false), but has {', '.join(said)}: drop one of them.")
    hand = hand_labels(
        present=present is not False,
        keypoints=keypoints,
        keypoints_known=known,
        joints=joints,
        vertices=vertices,
        pose=pose,
        betas=array("betas", (BETA_COUNT,)),
        right=side == Handedness.RIGHT,
        dtype=np.float64,
    )
    return PhotoLabels(hand, box, intrinsics)


def _keypoints(value: Any, where: str) -> tuple[Floats | None, NDArray[np.bool_] | None]:
    """21 x [x, y], [x, y, visible] or null -> (21, 2) px, zeros where null; (21,) known."""
    if value is None:
        return None, None
    keypoints, known = np.zeros((JOINT_COUNT, 2)), np.zeros(JOINT_COUNT, bool)
    sound = isinstance(value, list) and len(value) == JOINT_COUNT
    for joint, point in enumerate(value if sound else ()):
        if point is None:
            continue
        try:
            numbers = np.array(point, np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.empty(0)
        sound = sound and numbers.shape in ((2,), (3,)) and bool(np.isfinite(numbers).all())
        if not sound:
            break
        keypoints[joint], known[joint] = numbers[:2], len(numbers) == 2 or numbers[2] > 0
    if not sound:
        raise DataError(f"{where}: 'keypoints' is {repr(value)[:60]}, wanted {KEYS['keypoints']}, all finite.")
    given = keypoints[[point is not None for point in value]]
    if len(given) > 1 and np.ptp(given, axis=0).max() < _MIN_SPREAD_PX:
        raise DataError(
            f"{where}: 'keypoints' all lie within {_MIN_SPREAD_PX:g} pixels. Are they normalised, as MediaPipe gives "
            "them? Multiply x by the picture's width and y by its height; its z is a depth: leave it out."
        )
    if any(point is not None and len(point) == 3 and point[2] < 0 for point in value):
        raise DataError(
            f"{where}: 'keypoints' have third numbers below 0, where whether one is visible belongs. Are they depths, "
            "such as MediaPipe's z? Leave them out."
        )
    return keypoints, known
