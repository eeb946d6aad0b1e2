"""Pictures with all their hands, as the detector learns from them: records, and pictures made of them.

A record is a line of a JSONL file (docs/how_to/data.md): a photograph, the hands that are known in it, and how far that
list can be trusted. `hands` may be all there are (`complete`), or those that somebody found: then a place without one
is no sure background, and teaches `UNLISTED` as much. `doubtful` boxes teach nothing, `background` boxes (a face, say)
are known to have no hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.detector import DetectorData, SceneSource
from handmesh.data.augment import scaled_effects
from handmesh.data.cut_outs import CutOut, CutOuts
from handmesh.data.formats.jsonl import JsonlData
from handmesh.errors import DataError
from handmesh.files.image import read_image
from handmesh.geometry.box import Box
from handmesh.hand import Handedness, upright_rotation
from handmesh.hand.grid import STRIDE, GridTarget, SeenHand, cell_centers, encode, in_image
from handmesh.synth.backgrounds import Backgrounds
from handmesh.synth.camera_effects import camera_effects
from handmesh.synth.crowd import draw_crowd, reduced
from handmesh.synth.dataset import Pack, PackedSample

Image = NDArray[np.uint8]

# Weight of a place where an incomplete list has no hand, and where such a list is empty: who found none missed some.
UNLISTED, UNLISTED_AT_ALL = 0.2, 0.05
# A hand of which less is in the picture is neither a hand nor background; so is one of fewer pixels.
LEAST_SEEN, LEAST_PX = 0.4, 9.0


@dataclass(frozen=True)
class SceneRecord:
    """A photograph and its hands. Coordinates are pixels, centres at integers."""

    image: Path
    hands: tuple[tuple[NDArray[np.float64], Handedness], ...]  # (21, 2) keypoints
    doubtful: tuple[Box, ...] = ()
    background: tuple[Box, ...] = ()
    complete: bool = False

    def resized(self, scale: float) -> SceneRecord:
        """The same of the photograph with `scale` times as many pixels along each side."""
        hands = tuple(((keypoints + 0.5) * scale - 0.5, side) for keypoints, side in self.hands)
        doubtful, background = (
            tuple(in_image(box, 1 / scale) for box in boxes) for boxes in (self.doubtful, self.background)
        )
        return replace(self, hands=hands, doubtful=doubtful, background=background)


class DetectorSample(NamedTuple):
    """One picture to learn from."""

    image: Image  # (S, S, 3) RGB
    target: GridTarget
    weight: NDArray[np.float32]  # (S / 8, S / 8) how much each cell's score teaches


def read_scenes(path: Path) -> list[SceneRecord]:
    """The records of a JSONL file; images are beside it. Raises DataError, which names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(_record(json.loads(line), path.parent))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(f"{path}, line {number}: {error}, wanted a photograph with its hands.") from None
    if not records:
        raise DataError(f"{path} holds no photograph.")
    return records


def _record(row: dict[str, Any], folder: Path) -> SceneRecord:
    hands = []
    for hand in row.get("hands") or []:
        keypoints = np.asarray(hand["keypoints"], np.float64)[:, :2]
        if keypoints.shape != (21, 2) or not np.isfinite(keypoints).all():
            raise ValueError(f"keypoints of shape {keypoints.shape}")
        hands.append((keypoints, Handedness(hand["handedness"])))
    doubtful, background = (
        tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in row.get(name) or [])
        for name in ("doubtful", "background")
    )
    complete = bool(row.get("complete") or row.get("no_hand"))
    return SceneRecord(folder / row["image"], tuple(hands), doubtful, background, complete)


@dataclass
class SceneMixture:
    """Random pictures for a detector: crowds of renders and cut-out hands, photographs, several of them side by side.

    Sample g depends on (seed, g) alone. Opens files at first use, so it can be sent to worker processes.
    """

    data: DetectorData
    resolution: int  # S, a multiple of 16
    seed: int
    pack: Pack | None
    sources: tuple[tuple[SceneSource, list[SceneRecord]], ...]
    _photos: dict[Path, tuple[NDArray[np.uint8], float]] = field(default_factory=dict, init=False)  # JPEG, and scale

    @cached_property
    def _cut_outs(self) -> CutOuts:
        return CutOuts(self.data.cut_outs)

    def files(self) -> Iterator[tuple[str, int, list[Path]]]:
        """What the pictures are made of: name, how many, and the files."""
        if self.pack is not None:
            yield "synthetic", len(self.pack), sorted(self.pack.path.glob("*.npy"))
        for number, (source, records) in enumerate(self.sources):
            yield f"scenes{number}", len(records), [source.path, *(record.image for record in records)]
        for number, path in enumerate(self.data.cut_outs):
            labels = JsonlData(path)
            yield f"cut_outs{number}", len(labels), list(labels.files())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_photos": {}}

    def __getitem__(self, g: int) -> DetectorSample:
        rng = np.random.default_rng((self.seed, g))
        shares = np.array([self.data.crowds if self.pack else 0.0, self.data.photographs, self.data.mosaics])
        kind = rng.choice(3, p=shares / shares.sum())
        image, hands, weight = (self._crowd, self._photograph, self._mosaic)[kind](rng)
        if self.data.effects:
            image = camera_effects(rng, image, scaled_effects(self.data.effects))
        return DetectorSample(np.ascontiguousarray(image), *self._target(hands, weight))

    def _target(self, hands: Sequence[_Placed], weight: NDArray[np.float32]) -> tuple[GridTarget, NDArray[np.float32]]:
        cells = self.resolution // STRIDE
        taught = []
        for hand in hands:
            box = _box(hand.keypoints)
            if hand.seen < LEAST_SEEN or max(box[2] - box[0], box[3] - box[1]) < LEAST_PX:
                _set(weight, box, 0.0)
            else:
                taught.append(SeenHand(box, upright_rotation(hand.keypoints), hand.right))
        target = encode(taught, cells, cells)
        weight[target.center > 0.05] = 1.0
        return target, weight

    # --------------------------------------------------------------------------------------------------------- kinds

    def _crowd(self, rng: np.random.Generator) -> tuple[Image, list[_Placed], NDArray[np.float32]]:
        count = int(rng.choice([0, 1, 2, 3, 4, 6, 9], p=[0.1, 0.3, 0.27, 0.13, 0.1, 0.06, 0.04]))
        image, hands = draw_crowd(rng, self._background(rng), count, self.data.sizes, self._foreground)
        return image, [_Placed(hand.keypoints, hand.right, hand.seen) for hand in hands], self._everywhere()

    def _foreground(self, rng: np.random.Generator) -> PackedSample | CutOut:
        assert self.pack is not None
        if self.data.cut_outs and rng.random() < self.data.cut_out_share:
            return self._cut_outs.draw(rng)
        return self.pack[int(rng.integers(len(self.pack)))]

    def _photograph(self, rng: np.random.Generator) -> tuple[Image, list[_Placed], NDArray[np.float32]]:
        photo, record = self._photo(self._draw(rng))
        height, width = photo.shape[:2]
        zoom = math.exp(rng.uniform(math.log(0.45), math.log(1.7))) * self.resolution / max(height, width)
        if record.hands and rng.random() < 0.7:  # look at one of its hands, of any size
            keypoints, _ = record.hands[rng.integers(len(record.hands))]
            focus = (keypoints.min(axis=0) + keypoints.max(axis=0)) / 2
            share = math.exp(rng.uniform(math.log(self.data.sizes[0] * 1.5), math.log(0.9)))
            wanted = share * self.resolution / max(float(np.ptp(keypoints, axis=0).max()), 8.0)
            # No sharper than 1.6 times the photograph, and no smaller than a quarter of the picture.
            zoom = float(np.clip(wanted, 0.25 * self.resolution / max(height, width), 1.6))
            spot = rng.uniform(0.1, 0.9, 2) * self.resolution
        else:
            focus, spot = rng.uniform(0.2, 0.8, 2) * (width, height), np.full(2, self.resolution / 2)
        image = self._background(rng, plain=0.5)
        weight = self._everywhere()
        hands = self._lay(rng, image, weight, record, photo, zoom, focus, spot)
        return image, hands, weight

    def _mosaic(self, rng: np.random.Generator) -> tuple[Image, list[_Placed], NDArray[np.float32]]:
        image, weight = self._background(rng), self._everywhere()
        hands: list[_Placed] = []
        for _ in range(int(rng.integers(2, 6))):
            photo, record = self._photo(self._draw(rng))
            share = math.exp(rng.uniform(math.log(0.12), math.log(0.75)))
            zoom = min(share * self.resolution / max(photo.shape[:2]), 1.6)
            focus = np.array([photo.shape[1], photo.shape[0]]) / 2
            spot = rng.uniform(0.05, 0.95, 2) * self.resolution
            hands += self._lay(rng, image, weight, record, photo, zoom, focus, spot, hands)
        return image, hands, weight

    def _lay(
        self,
        rng: np.random.Generator,
        image: Image,
        weight: NDArray[np.float32],
        record: SceneRecord,
        photo: Image,
        zoom: float,
        focus: NDArray[np.float64],
        spot: NDArray[np.float64],
        below: list[_Placed] | None = None,
    ) -> list[_Placed]:
        """Lay a photograph into the picture, in place, so that its point `focus` comes to `spot`. -> its hands."""
        side = self.resolution
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        turn = rng.normal(0, math.radians(12)) if rng.random() < 0.75 else rng.uniform(-math.pi, math.pi)
        c, s = zoom * math.cos(turn), zoom * math.sin(turn)
        matrix = np.array([[c, -s], [s, c]]) @ np.diag([mirror, 1.0])
        to_image = np.column_stack([matrix, spot - matrix @ focus])
        height, width = photo.shape[:2]
        source, warp = reduced(photo, to_image)
        laid = cv2.warpAffine(source, warp, (side, side), flags=cv2.INTER_LINEAR)
        corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]) @ matrix.T
        mask = np.zeros((side, side), np.uint8)
        cv2.fillConvexPoly(mask, np.rint(corners + to_image[:, 2]).astype(np.int32), 255)
        inside = mask > 0
        image[inside] = laid[inside]
        for hand in below or []:
            covered = [0 <= x < side and 0 <= y < side and inside[int(y), int(x)] for x, y in hand.keypoints]
            hand.seen -= float(np.mean(covered))
        cells = inside[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        weight[cells] = 1.0 if record.complete else UNLISTED if record.hands else UNLISTED_AT_ALL
        for boxes, value in ((record.background, 1.0), (record.doubtful, 0.0)):
            for x0, y0, x1, y1 in boxes:
                box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) @ matrix.T + to_image[:, 2]
                _set(weight, _box(box), value)
        hands = []
        for keypoints, handedness in record.hands:
            placed = keypoints @ matrix.T + to_image[:, 2]
            seen = float(((placed >= 0) & (placed <= side - 1)).all(axis=1).mean())
            hands.append(_Placed(placed, (handedness == Handedness.RIGHT) == (mirror > 0), seen))
        return hands

    # ------------------------------------------------------------------------------------------------------- sources

    def _everywhere(self) -> NDArray[np.float32]:
        return np.ones((self.resolution // STRIDE,) * 2, np.float32)

    def _draw(self, rng: np.random.Generator) -> SceneRecord:
        weights = np.array([source.weight for source, _ in self.sources])
        records = self.sources[rng.choice(len(weights), p=weights / weights.sum())][1]
        return records[rng.integers(len(records))]

    def _photo(self, record: SceneRecord) -> tuple[Image, SceneRecord]:
        """(H, W, 3) RGB of at most 512 px a side, kept in memory, compressed; and the record, in its pixels."""
        if record.image not in self._photos:
            photo = read_image(record.image)
            scale = min(512 / max(photo.shape[:2]), 1.0)
            if scale < 1:
                photo = np.asarray(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
            encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            self._photos[record.image] = encoded, scale
        encoded, scale = self._photos[record.image]
        photo = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), np.uint8)
        return photo, record if scale == 1 else record.resized(scale)

    def _background(self, rng: np.random.Generator, plain: float = 0.0) -> Image:
        """(S, S, 3): a procedural one, clutter, a photograph without a hand, or one colour."""
        side = self.resolution
        if rng.random() < plain:
            return np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (side, side, 3)).copy()
        empty = [record for _, records in self.sources for record in records if record.complete and not record.hands]
        if empty and rng.random() < self.data.real_backgrounds:
            photo, _ = self._photo(empty[rng.integers(len(empty))])
            height, width = photo.shape[:2]
            size = int(min(height, width) * rng.uniform(0.5, 1.0))
            y, x = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
            square = cv2.resize(photo[y : y + size, x : x + size], (side, side), interpolation=cv2.INTER_AREA)
            return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)
        backgrounds = _backgrounds()
        draw = backgrounds.sample_distractor if rng.random() < 0.5 else backgrounds.sample
        return np.asarray(draw(rng, side), np.uint8)


@cache
def _backgrounds() -> Backgrounds:
    """The same in every process."""
    return Backgrounds()


@dataclass
class _Placed:
    keypoints: NDArray[np.float64]  # (21, 2) px of the picture
    right: bool
    seen: float  # share of its keypoints


def _box(points: NDArray[np.float64]) -> Box:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def _set(weight: NDArray[np.float32], box: Box, value: float) -> None:
    """The cells within the box, in place."""
    x, y = cell_centers(*weight.shape)
    half = STRIDE / 2
    rows, columns = (y >= box[1] - half) & (y <= box[3] + half), (x >= box[0] - half) & (x <= box[2] + half)
    weight[np.ix_(rows, columns)] = value
