"""A photograph in, hands out: the one place where pixels, engine, crop and handedness meet.

The answer is refined in passes. Without a box the network first sees the whole photograph, then a crop around the hand
that it just found, rotated so that the hand points up, and so on; with a box only the rotation is refined. Of the
passes after the first, the most confident one counts. Where the whole photograph gives no good hand, overlapping tiles
of it are searched. What the network says in a crop (rotated, mirrored for a left hand) is turned back here and nowhere
else, for scores too: a `HandPrediction` is in the photo's own axes.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.detect import Detector, Source
from handmesh.detect.overlap import keypoint_agreement
from handmesh.errors import ConfigError
from handmesh.files.image import ImageSource, LargePhoto, Photo, read_photo
from handmesh.geometry.box import box_problem
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness, HandOutput, upright_rotation
from handmesh.hand.anatomy import flexion_axes
from handmesh.predict.arguments import AUTO, Boxes, parse_boxes, parse_camera, parse_sides
from handmesh.predict.prediction import Floats, HandednessSource, HandPrediction
from handmesh.runtime.engine import Engine, open_engine

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]  # (H, W, 3) RGB
OnePhoto = ImageSource | Photo | LargePhoto

# Crop side over the extent of the hand's keypoints, in the range that training draws (Augmentation.margin). A found
# hand gets more room than a given box: where the network is unsure it draws the hand too small, and a crop too tight
# cuts fingers off that the next pass would need. From the third pass on it is known better where the hand is (measured:
# docs/explain/bundled_model.md).
BOX_MARGIN = 1.5
SECOND_PASS_MARGIN, LATER_PASS_MARGIN = 1.8, 1.5
# Where the handedness is to be found, so many passes show the hand as a right and as a left one; the likelier goes on.
HANDEDNESS_PASSES = 2
# A photo whose hand has a score below the first is searched in tiles, and what is found there has to have the second:
# of many tiles the most confident is often a wrong one (measured: docs/explain/bundled_model.md).
TILED_SEARCH_BELOW, TILED_SEARCH_MIN_SCORE = 0.7, 0.9
# Without a box, a hand with a lower score is none: measured in the model card.
MIN_SCORE = 0.7
_TILE_SIZE = 0.34  # side of a tile over the longer side of the photo; neighbours overlap by half
_MIN_TILE_PX = 48.0
_TILES_REFINED = 3


class Predictor:
    """Built once, then only called. Safe to call from several threads when its engine is."""

    def __init__(self, engine: Engine, *, passes: int = 3, margin: float = BOX_MARGIN) -> None:
        """`passes`: crops of each hand that the network sees, the first of the box (or the whole photo), the others
        refined by what it said before them. Of those the most confident one is the answer.

        `margin`: side of the first crop over the longer side of a given box.
        """
        if passes < 1:
            raise ConfigError(f"passes is {passes}, wanted at least 1.")
        self.engine = engine
        self.passes = passes
        self.margin = margin
        heads = engine.record.get("model", {})
        # What the network has heads for.
        self.predicts_handedness = bool(heads.get("handedness_head"))
        self.predicts_confidence = bool(heads.get("confidence_head"))
        self.predicts_joint_confidence = bool(heads.get("joint_confidence_head"))
        self._hands = {Handedness.RIGHT: engine.hand, Handedness.LEFT: engine.hand.mirrored()}
        self._flexion_axes = {side: flexion_axes(hand).astype(np.float32) for side, hand in self._hands.items()}
        # The root joint at rest, as a function of the shape.
        regressor = engine.hand.J_regressor[0].astype(np.float64)
        self._root, self._root_from_betas = (
            np.tensordot(regressor, values, 1) for values in (engine.hand.v_template, engine.hand.shapedirs)
        )

    def with_engine(self, engine: Engine) -> Predictor:
        """The same predictor on another engine of the same model; takes no time."""
        other = copy.copy(self)
        other.engine = engine
        return other

    @overload
    def __call__(
        self,
        image: OnePhoto,
        *,
        boxes: Boxes | None = None,
        handedness: Handedness | str | Sequence[Handedness | str] = AUTO,
        intrinsics: Intrinsics | ArrayLike | None = None,
        focal: float | None = None,
        fov: float | None = None,
        search: bool = True,
        min_score: float = MIN_SCORE,
    ) -> list[HandPrediction]: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        handedness: Handedness | str = AUTO,
        intrinsics: Intrinsics | ArrayLike | None = None,
        focal: float | None = None,
        fov: float | None = None,
        search: bool = True,
        min_score: float = MIN_SCORE,
    ) -> list[list[HandPrediction]]: ...

    @overload
    def __call__(
        self,
        image: Iterator[OnePhoto],
        *,
        handedness: Handedness | str = AUTO,
        intrinsics: Intrinsics | ArrayLike | None = None,
        focal: float | None = None,
        fov: float | None = None,
        search: bool = True,
        min_score: float = MIN_SCORE,
    ) -> Iterator[list[HandPrediction]]: ...

    def __call__(
        self,
        image: OnePhoto | list[Any] | tuple[Any, ...] | Iterator[OnePhoto],
        *,
        boxes: Boxes | None = None,
        handedness: Handedness | str | Sequence[Handedness | str] = AUTO,
        intrinsics: Intrinsics | ArrayLike | None = None,
        focal: float | None = None,
        fov: float | None = None,
        search: bool = True,
        min_score: float = MIN_SCORE,
    ) -> list[HandPrediction] | list[list[HandPrediction]] | Iterator[list[HandPrediction]]:
        """The hands of one photograph: one per box, or none or one in the whole image. All boxes run as one batch.

        `image`: what `read_photo` takes (a path, the bytes of a file, an array, a PIL image), or a `Photo`. Of a list
        of them the answer is a list, of an iterator an iterator, which reads each photo when its hands are asked for;
        boxes are then not possible. `boxes` are x0, y0, x1, y1 in pixels of the upright photograph. `handedness` is one
        for all hands or one per box; "auto" finds out, if the network has that head, and takes a right one otherwise.

        `intrinsics` (an `Intrinsics` or K), `focal` (pixels) or `fov` (radians, of the longer side), if known; else the
        photo's EXIF focal length or the default lens is used, and only for positions in space. `search`: where the
        whole image gives no good hand, search tiles of it for a small one, which takes several times as long (networks
        with a confidence head only). `min_score`: a hand with a lower score is left out, so that a photograph without
        one gives an empty list; the hand in a given box always comes (networks with a confidence head only).

        Raises ImageError for an image that cannot be read, ConfigError for any other argument that cannot be meant.
        """
        if isinstance(image, list | tuple | Iterator):
            if boxes is not None:
                raise ConfigError("Boxes belong to one photo: give the photos with boxes one at a time.")
            many = (self._predict(one, None, handedness, intrinsics, focal, fov, search, min_score) for one in image)
            return many if isinstance(image, Iterator) else list(many)
        return self._predict(image, boxes, handedness, intrinsics, focal, fov, search, min_score)

    def _predict(
        self,
        image: OnePhoto,
        boxes: Boxes | None,
        handedness: Handedness | str | Sequence[Handedness | str],
        intrinsics: Intrinsics | ArrayLike | None,
        focal: float | None,
        fov: float | None,
        search: bool,
        min_score: float,
    ) -> list[HandPrediction]:
        photo = image if isinstance(image, Photo | LargePhoto) else read_photo(image)
        known = parse_camera(photo, intrinsics, focal, fov)
        if not (isinstance(min_score, int | float) and 0 <= min_score <= 1):
            raise ConfigError(f"min_score is {min_score!r}, wanted a number from 0 to 1.")
        if boxes is not None:
            places = parse_boxes(boxes, photo.size)
            sides = parse_sides(handedness, len(places))
            crops = [CropTransform.around_box(box, self.margin) for box in places]
            return self._refine(photo, self._queries(crops, sides), True, known, self.passes) if crops else []
        sides = parse_sides(handedness, 1)
        queries = self._queries([CropTransform.whole_image(*photo.size)], sides)
        hands = self._refine(photo, queries, False, known, self.passes)
        if search and self.predicts_confidence and self.passes > 1 and hands[0].score < TILED_SEARCH_BELOW:
            hands = self._search_tiles(photo, sides[0], known) or hands
        return [hand for hand in hands if hand.score >= min_score] if self.predicts_confidence else hands

    def predict_crops(
        self,
        image: Image | Sequence[Image],
        crops: Sequence[CropTransform],
        *,
        source: Source = "tracking",
        intrinsics: Intrinsics | Sequence[Intrinsics | None] | None = None,
    ) -> list[HandPrediction]:
        """The hand in each crop, one pass for all of them, for those who know where hands are and how they are rotated.

        `image` is (H, W, 3) uint8 RGB, one for all crops or one for each; so are `intrinsics`. A mirrored crop is of a
        left hand. `score` is the network's confidence, and `handedness_score` how probable it takes that side; 1 where
        it has no such heads, for nothing can be compared.
        """
        if not crops:
            return []
        images = [image] * len(crops) if isinstance(image, np.ndarray) else image
        cameras = [intrinsics] * len(crops) if intrinsics is None or isinstance(intrinsics, Intrinsics) else intrinsics
        pixels = [crop.warp(one, self.engine.resolution) for one, crop in zip(images, crops, strict=True)]
        output = self.engine(np.stack(pixels))
        hands = []
        for row, (one, crop, camera) in enumerate(zip(images, crops, cameras, strict=True)):
            side = Handedness.LEFT if crop.mirror else Handedness.RIGHT
            probable = float(output.handedness[row]) if self.predicts_handedness else 1.0
            answer = _CropAnswer(output, row, _CropQuery(row, side, "given", crop, probable), self._score(output, row))
            hands.append(self._prediction(answer, source, camera or Intrinsics.default_for(one.shape[1], one.shape[0])))
        return hands

    def _queries(self, crops: Sequence[CropTransform], sides: Sequence[str]) -> list[_CropQuery]:
        """One for each crop, or two where the handedness is to be found."""
        queries = []
        for index, (crop, side) in enumerate(zip(crops, sides, strict=True)):
            possible = tuple(Handedness) if side == AUTO and self.predicts_handedness else (side,)
            for one in possible:
                source: HandednessSource = (
                    "given" if side != AUTO else "found" if self.predicts_handedness else "assumed"
                )
                hand = Handedness.RIGHT if one == AUTO else Handedness(one)
                queries.append(_CropQuery(index, hand, source, replace(crop, mirror=hand == Handedness.LEFT)))
        return queries

    def _search_tiles(self, photo: Photo | LargePhoto, side: str, intrinsics: Intrinsics) -> list[HandPrediction]:
        """The hand of which the network is confident once it sees the photo in tiles; none or one."""
        tiles = _tiles(*photo.size)
        if not tiles:
            return []
        queries = self._queries(tiles, [side] * len(tiles))
        output = self.engine(np.stack([photo.warp(query.crop, self.engine.resolution) for query in queries]))
        places: list[NDArray[np.floating[Any]]] = []
        for row in np.argsort(-output.confidence, kind="stable"):
            points = _keypoints_image(output, int(row), queries[row].crop)
            if all(_apart(points, other) for other in places):
                places.append(points)
            if len(places) == _TILES_REFINED:
                break
        whole = CropTransform.whole_image(*photo.size)
        crops = [self._closer(whole, points, photo.size, SECOND_PASS_MARGIN) for points in places]
        hands = self._refine(photo, self._queries(crops, [side] * len(crops)), False, intrinsics, self.passes - 1)
        best = max(hands, key=attrgetter("score"))
        return [best] if best.score >= TILED_SEARCH_MIN_SCORE else []

    def _refine(
        self,
        photo: Photo | LargePhoto,
        queries: list[_CropQuery],
        box_is_given: bool,
        intrinsics: Intrinsics,
        passes: int,
    ) -> list[HandPrediction]:
        previous: list[NDArray[np.floating[Any]]] | None = None
        answers: list[_CropAnswer] = []
        for done in range(1, passes + 1):
            output = self.engine(np.stack([photo.warp(query.crop, self.engine.resolution) for query in queries]))
            if done in (HANDEDNESS_PASSES, passes):
                kept, queries = _likelier_sides(queries, output.handedness)
                output = HandOutput(*(values[kept] for values in output))
                previous = [previous[row] for row in kept] if previous is not None else None
            found = [_keypoints_image(output, row, query.crop) for row, query in enumerate(queries)]
            if done >= min(HANDEDNESS_PASSES, passes):  # from here on each hand has one side
                now = [_CropAnswer(output, row, query, self._score(output, row)) for row, query in enumerate(queries)]
                # Without a confidence the score is the same for all, and the latest answer stays.
                answers = [max(pair, key=attrgetter("score")) for pair in zip(now, answers or now, strict=True)]
            if done < passes:
                margin = SECOND_PASS_MARGIN if done == 1 else LATER_PASS_MARGIN
                queries = [
                    # A given box is trusted: only the rotation is new.
                    replace(query, crop=replace(query.crop, rotation=upright_rotation(points)))
                    if box_is_given
                    else replace(query, crop=self._closer(query.crop, points, photo.size, margin))
                    for query, points in zip(queries, found, strict=True)
                ]
                previous = found
        if not self.predicts_confidence and previous is not None:
            scores = [keypoint_agreement(before, now) for before, now in zip(previous, found, strict=True)]
            answers = [replace(answer, score=score) for answer, score in zip(answers, scores, strict=True)]
        source: Source = "given box" if box_is_given else "whole image"
        return [self._prediction(answer, source, intrinsics) for answer in answers]

    def _score(self, output: HandOutput, row: int) -> float:
        """The network's confidence; 1 where it has no such head, for nothing can be compared."""
        return float(output.confidence[row]) if self.predicts_confidence else 1.0

    def _closer(
        self, crop: CropTransform, keypoints: NDArray[np.floating[Any]], size: tuple[int, int], margin: float
    ) -> CropTransform:
        """The crop around the hand that was found, rotated so that it points up; or the old one if that is no place."""
        width, height = size
        x, y = keypoints.mean(axis=0)
        extent = float(np.ptp(keypoints, axis=0).max())
        if not (0 <= x < width and 0 <= y < height and 8 <= extent <= 2 * max(height, width)):
            return crop
        rotation = upright_rotation(keypoints)
        return CropTransform.around_points(keypoints, margin, rotation, crop.mirror)

    def _prediction(self, answer: _CropAnswer, source: Source, intrinsics: Intrinsics) -> HandPrediction:
        output, row, query = answer.output, answer.row, answer.query
        crop = query.crop
        root = self._root + self._root_from_betas @ output.betas[row]
        shift = _root_shift(root, crop)
        vertices = crop.vectors_to_image(output.vertices[row]) + shift
        joints = crop.vectors_to_image(output.joints[row]) + shift
        camera = WeakPerspectiveCamera.from_vector(output.camera[row])
        camera = replace(camera, translation=crop.vectors_to_image(camera.translation) - shift[:2])
        keypoints = crop.upright.to_image(camera.project(joints))
        (x0, y0), (x1, y1) = keypoints.min(axis=0), keypoints.max(axis=0)
        return HandPrediction(
            handedness=query.handedness,
            handedness_source=query.handedness_source,
            handedness_score=query.handedness_score,
            score=answer.score,
            joint_scores=np.asarray(output.joint_confidence[row], np.float32)
            if self.predicts_joint_confidence
            else None,
            box=(float(x0), float(y0), float(x1), float(y1)),
            crop=crop.upright,
            camera=WeakPerspectiveCamera(np.float32(camera.scale), camera.translation.astype(np.float32)),
            pose=crop.pose_to_image(output.pose[row]).astype(np.float32),
            betas=np.asarray(output.betas[row], np.float32),
            vertices=vertices.astype(np.float32),
            joints=joints.astype(np.float32),
            faces=self._hands[query.handedness].faces,
            source=source,
            intrinsics=intrinsics,
            flexion_axes=self._flexion_axes[query.handedness],
        )


@dataclass(frozen=True)
class _CropQuery:
    """What the network is shown next of a hand: while its handedness is open, two, as a right and as a left one."""

    hand: int
    handedness: Handedness
    handedness_source: HandednessSource
    crop: CropTransform
    handedness_score: float = 1.0


@dataclass(frozen=True)
class _CropAnswer:
    """What the network said to one query: a row of its output."""

    output: HandOutput
    row: int
    query: _CropQuery
    score: float


def _tiles(width: int, height: int) -> list[CropTransform]:
    """Overlapping squares that cover a photo of so many pixels; none of one so small that a tile shows nothing."""
    side = _TILE_SIZE * max(width, height)
    if side < _MIN_TILE_PX:
        return []

    def places(length: int) -> NDArray[np.float64]:
        if length <= side:
            return np.array([(length - 1) / 2])
        count = math.ceil((length - side) / (side / 2) - 1e-9) + 1
        return np.linspace(side / 2, length - side / 2, count) - 0.5

    return [CropTransform((float(x), float(y)), side) for y in places(height) for x in places(width)]


def _apart(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> bool:
    """Whether (21, 2) and (21, 2) keypoints are of two hands, by their middles."""
    return float(np.linalg.norm((first - second).mean(axis=0))) > 0.3 * float(np.ptp(second, axis=0).max())


def _likelier_sides(queries: list[_CropQuery], right: Floats) -> tuple[list[int], list[_CropQuery]]:
    """The rows to go on with, one for each hand, and their queries with `handedness_score` filled in.

    A left hand is shown mirrored, so `right` is the probability that the handedness was assumed rightly. Both answers
    count: the mean of their log-odds.
    """
    kept: list[int] = []
    chosen: list[_CropQuery] = []
    odds = np.log(np.clip(right, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(right, 1e-6, 1 - 1e-6))
    for hand in dict.fromkeys(query.hand for query in queries):
        rows = [row for row, query in enumerate(queries) if query.hand == hand]
        best = max(rows, key=lambda row: float(odds[row]))
        kept.append(best)
        if len(rows) > 1:
            margin = sum(float(odds[row]) * (1 if row == best else -1) for row in rows) / 2
            chosen.append(replace(queries[best], handedness_score=1 / (1 + math.exp(-margin))))
        else:
            chosen.append(queries[best])
    return kept, chosen


def predict_detected(
    predictor: Predictor,
    detector: Detector,
    photo: Photo,
    handedness: Handedness | str,
    intrinsics: Intrinsics | None = None,
) -> list[HandPrediction]:
    """The hands that a detector finds in a photograph, of the given side; with "auto" of the one that it says."""
    found = [item for item in detector(photo.image) if box_problem(item.box, photo.size) is None]
    sides = [item.handedness or AUTO if handedness == AUTO else handedness for item in found]
    hands = predictor(photo, boxes=[item.box for item in found], handedness=sides, intrinsics=intrinsics)
    answers = []
    for hand, item in zip(hands, found, strict=True):
        if handedness == AUTO and item.handedness is not None:
            hand = replace(hand, handedness_source="found", handedness_score=item.score)
        answers.append(replace(hand, source=item.source))
    return answers


def load_predictor(model: str | Path | None = None, *, passes: int = 3, threads: int | None = None) -> Predictor:
    """A predictor with the bundled model, or with a model file of your own. Raises CheckpointError."""
    return Predictor(open_engine(model, threads=threads), passes=passes)


def _keypoints_image(output: HandOutput, index: int, crop: CropTransform) -> NDArray[np.floating[Any]]:
    camera = WeakPerspectiveCamera.from_vector(output.camera[index])
    return crop.to_image(camera.project(output.joints[index]))


def _root_shift(root: NDArray[np.float64], crop: CropTransform) -> NDArray[np.float64]:
    """(3,) metres that bring the turned-back hand to where the hand model itself would put it.

    A model turns about its root joint, the turned-back hand turned about the origin; they differ by
    `M j - A^T j`, with j the root's rest position, M the mirror and A the crop's axes.
    """
    mirrored = root * (-1.0 if crop.mirror else 1.0, 1.0, 1.0)
    return mirrored - crop.vectors_to_image(root)
