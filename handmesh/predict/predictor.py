"""A photograph in, hands out: the one place where pixels, engine, crop and handedness meet.

A detector says where hands are, of which side, and which way they point: one crop of each, turned so that the hand
points up, is then enough. Where a box is given it is trusted, and the direction is found in passes: each turns the crop
by what the one before it said. Without a detector the whole photograph is taken for the first crop of its one hand, and
each pass comes closer. Of several passes the most confident one counts. What the network says in a crop (rotated,
mirrored for a left hand) is turned back here and nowhere else, for scores too: a `HandPrediction` is in the photo's own
axes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import IOBase
from numbers import Real
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.detect import Detection, Detector, HandDetector, Source
from handmesh.detect.hands import SIDE
from handmesh.detect.overlap import box_iou, keypoint_agreement
from handmesh.errors import ConfigError, ImageError
from handmesh.files.image import ImageSource, LargePhoto, Photo, open_photo
from handmesh.geometry.box import box_problem
from handmesh.geometry.camera import Intrinsics, WeakPerspectiveCamera
from handmesh.geometry.crop import CropTransform
from handmesh.hand import FINGER_NAMES, Handedness, HandOutput, upright_rotation
from handmesh.hand.anatomy import flexion_axes
from handmesh.predict.arguments import (
    AUTO,
    Boxes,
    check_count,
    parse_boxes,
    parse_camera,
    parse_handedness,
    parse_sides,
)
from handmesh.predict.prediction import Floats, HandednessSource, HandPrediction
from handmesh.predict.refine import refined
from handmesh.runtime.engine import Engine, open_engine

Image = NDArray[np.uint8]  # (H, W, 3) RGB
OnePhoto = ImageSource | Photo | LargePhoto

# Crop side over the extent of the hand's keypoints, in the range that training draws (Augmentation.margin). A found
# hand gets more room than a given box: where the network is unsure it draws the hand too small, and a crop too tight
# cuts fingers off that the next pass would need. From the third pass on it is known better where the hand is (measured:
# docs/explain/bundled_model.md).
BOX_MARGIN = 1.5
SECOND_PASS_MARGIN, LATER_PASS_MARGIN = 1.8, 1.5
# A second look at what a detector found is closer: its box may have taken in another hand, or a part of this one
# (measured: the detector's card).
SECOND_LOOK_MARGIN = 1.45
# Where the handedness is to be found, so many passes show the hand as a right and as a left one; the likelier goes on.
HANDEDNESS_PASSES = 2
# Without a box, a hand with a lower score is none: measured in the detector's card.
MIN_SCORE = 0.5
MAX_HANDS = 10
# Below this probability of a side, the detector's and the network's together, the other side is looked at, too; not of
# what is no hand by this score.
CERTAIN_SIDE, PLAUSIBLE = 0.85, 0.1
# Between these scores it is open whether there is a hand: it is looked at once more (the detector's card).
OPEN = (0.01, 0.9)
# Detector and network look at the same pixels: two opinions on a side count for this much of independent ones.
INDEPENDENCE = 0.8
# That there is a hand: what the detector's log-odds count for, the network's, and how much more is asked. Fitted to
# photographs never learnt from, with and without hands (the detector's card).
SCORE_OF_BOTH = (0.6, 0.95, -0.85)
# That no finger is lost, its outer joints drawn 0.2 of the hand's size away on average or farther: log-odds of the mean
# score of the least sure finger's, times this, and so much more. Fitted to photographs never learnt from and to renders
# whose fingers were painted over; either half of either gives nearly the same (the model's card).
_FINGER_SCORE = (1.6, 2.3)
MOST_SAID = 2.0  # log-odds that a detector's word on the side counts for at most: the network sees more of the hand
# Two answers are of one hand when their boxes share so much of their union and their keypoints are so near, over the
# larger one's extent.
SAME_HAND_IOU, SAME_HAND_DISTANCE = 0.6, 0.12

Search = Literal["fast", "thorough"]


class Predictor:
    """Built once, then only called. Safe to call from several threads when its engine is."""

    def __init__(
        self,
        engine: Engine,
        *,
        detector: Detector | None = None,
        passes: int = 3,
        margin: float = BOX_MARGIN,
        refine: bool = True,
    ) -> None:
        """`detector` finds the hands of a photograph without boxes; None takes the whole photograph for one hand's.

        `passes`: crops of each hand that the network sees, the first of the box (or the whole photo), the others
        refined by what it said before them. Of those the most confident one is the answer. A hand of which the detector
        says which way it points needs one.

        `margin`: side of the first crop over the longer side of a box.

        `refine`: bring the answer to where a keypoint head sees the joints (`handmesh.predict.refine`), where the
        network has one.
        """
        check_count(passes, "passes")
        if detector is not None and not callable(detector):
            raise ConfigError(
                f"{detector!r} is no detector: wanted what `handmesh.detect.open_detector` gives, or None for the "
                "whole photograph."
            )
        self.engine = engine
        self.detector = detector
        self.passes = passes
        self.margin = margin
        heads = engine.record.get("model", {})
        # What the network has heads for.
        self.predicts_handedness = bool(heads.get("handedness_head"))
        self.predicts_confidence = bool(heads.get("confidence_head"))
        self.refines = refine and bool(heads.get("keypoint_head"))
        self.predicts_joint_confidence = self.refines or bool(heads.get("joint_confidence_head"))
        self._hands = {Handedness.RIGHT: engine.hand, Handedness.LEFT: engine.hand.mirrored()}
        self._flexion_axes = {side: flexion_axes(hand).astype(np.float32) for side, hand in self._hands.items()}
        # The root joint at rest, as a function of the shape.
        regressor = engine.hand.J_regressor[0].astype(np.float64)
        self._root, self._root_from_betas = (
            np.tensordot(regressor, values, 1) for values in (engine.hand.v_template, engine.hand.shapedirs)
        )

    def with_engine(self, engine: Engine, detector: Detector | None = None) -> Predictor:
        """The same predictor on another engine of the same model, and with another detector if one is given.

        Takes no time.
        """
        other = copy.copy(self)
        other.engine = engine
        other.detector = detector or self.detector
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
        search: Search = "fast",
        min_score: float = MIN_SCORE,
        max_hands: int = MAX_HANDS,
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
        search: Search = "fast",
        min_score: float = MIN_SCORE,
        max_hands: int = MAX_HANDS,
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
        search: Search = "fast",
        min_score: float = MIN_SCORE,
        max_hands: int = MAX_HANDS,
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
        search: Search = "fast",
        min_score: float = MIN_SCORE,
        max_hands: int = MAX_HANDS,
    ) -> list[HandPrediction] | list[list[HandPrediction]] | Iterator[list[HandPrediction]]:
        """The hands of one photograph, most certain first; of given boxes, one for each, in their order.

        `image`: what `open_photo` takes (a path, the bytes of a file, an array, a PIL image), or a `Photo`. Of a list
        of them the answer is a list, of an iterator an iterator, which reads each photo when its hands are asked for;
        boxes are then not possible. `boxes` are x0, y0, x1, y1 in pixels of the upright photograph. `handedness` is one
        for all hands or one per box; "auto" finds out, if the network has that head, and takes a right one otherwise.

        `intrinsics` (an `Intrinsics` or K), `focal` (pixels) or `fov` (radians, of the longer side), if known; else the
        photo's EXIF focal length or the default lens is used, and only for positions in space. `search`: "thorough"
        looks for small hands in parts of the photo, too, which takes five times as long; not with boxes. `min_score`: a
        hand with a lower score is left out, so that a photograph without one gives an empty list; `max_hands`: of the
        others, so many at most. The hand in a given box always comes.

        Raises ImageError for an image that cannot be read, ConfigError for any other argument that cannot be meant.
        """
        options = (handedness, intrinsics, focal, fov, search, min_score, max_hands)
        if isinstance(image, IOBase):  # to Python an iterator, of lines
            raise ImageError("Cannot read an image from an open file; give its path, or file.read().")
        if isinstance(image, list | tuple | Iterator):
            if boxes is not None:
                raise ConfigError("Boxes belong to one photo: give the photos with boxes one at a time.")
            many = (self._predict(one, None, *options) for one in image)
            return many if isinstance(image, Iterator) else list(many)
        return self._predict(image, boxes, *options)

    def _predict(
        self,
        image: OnePhoto,
        boxes: Boxes | None,
        handedness: Handedness | str | Sequence[Handedness | str],
        intrinsics: Intrinsics | ArrayLike | None,
        focal: float | None,
        fov: float | None,
        search: Search,
        min_score: float,
        max_hands: int,
    ) -> list[HandPrediction]:
        photo = image if isinstance(image, Photo | LargePhoto) else open_photo(image)
        known = parse_camera(photo, intrinsics, focal, fov)
        asked: Any = min_score  # to mypy no float is a Real, and it would check nothing below
        if not (isinstance(asked, Real) and 0 <= float(asked) <= 1):
            raise ConfigError(f"min_score is {min_score!r}, wanted a number from 0 to 1.")
        check_count(max_hands, "max_hands")
        if search not in ("fast", "thorough"):
            raise ConfigError(f"search is {search!r}, wanted 'fast' or 'thorough'.")
        if search == "thorough" and (boxes is not None or self.detector is None):
            raise ConfigError("search='thorough' is the hand detector's, which has nothing to do here: leave it out.")
        if boxes is not None:
            places = parse_boxes(boxes, photo.size)
            sides = parse_sides(handedness, len(places))
            turns: list[float | None] = [None] * len(places)
            if isinstance(self.detector, HandDetector):
                turns = self.detector.rotations(photo, places)
            crops = [
                CropTransform.around_box(box, self.margin, turn or 0.0) for box, turn in zip(places, turns, strict=True)
            ]
            passes = 1 if None not in turns else self.passes
            answers = self._refine(photo, self._queries(crops, sides), True, passes) if crops else []
            return self._predictions(answers, ["given box"] * len(answers), [known] * len(answers))
        (side,) = parse_sides(handedness, 1)
        if self.detector is None:
            hands = [self.predict_whole(photo, side, known)]
        else:
            found = _detections(photo, self.detector, search)[: 2 * max_hands]
            hands = _each_once(self.predict_detections(photo, found, side, known, min_score))
        if self.predicts_confidence:
            hands = [hand for hand in hands if hand.score >= min_score]
        return sorted(hands, key=lambda hand: -hand.score)[:max_hands]

    def predict_detections(
        self,
        photo: Photo | LargePhoto,
        found: Sequence[Detection],
        handedness: Handedness | str = AUTO,
        intrinsics: Intrinsics | None = None,
        min_score: float = 0.0,
    ) -> list[HandPrediction]:
        """The hand of each detection, in their order; `handedness` "auto" goes by what the detector says, too.

        A detection that says which way the hand points takes one pass, and another where the first leaves it open
        whether there is a hand. What is sure to have a score below `min_score` is left out, and not fitted.
        """
        if not found:
            return []
        side = parse_handedness(handedness)
        one_pass = all(item.rotation is not None for item in found)
        crops = [CropTransform.around_box(item.box, self.margin, item.rotation or 0.0) for item in found]
        sides = [side if side != AUTO else item.handedness or AUTO for item in found]
        answers = self._refine(photo, self._queries(crops, sides), True, 1 if one_pass else self.passes)
        if one_pass and self.predicts_confidence:
            answers = self._second_look(photo, answers, found)
        if side == AUTO:
            answers = self._with_sides(photo, answers, found, crops)
        answers = [
            replace(answer, score=_joined(item, answer.score))
            if self.predicts_confidence
            else replace(answer, score=item.score if item.is_probability else answer.score)
            for answer, item in zip(answers, found, strict=True)
        ]
        known = parse_camera(photo, intrinsics, None, None)
        likely = [
            (answer, item.source)
            for answer, item in zip(answers, found, strict=True)
            if answer.score >= min_score or not self.predicts_confidence  # fingers can only lower it
        ]
        return self._predictions(
            [answer for answer, _ in likely], [source for _, source in likely], [known] * len(likely)
        )

    def predict_whole(
        self, photo: Photo | LargePhoto, handedness: Handedness | str = AUTO, intrinsics: Intrinsics | None = None
    ) -> HandPrediction:
        """The whole photograph taken for the first crop of its one hand; each pass comes closer."""
        queries = self._queries([CropTransform.whole_image(*photo.size)], [parse_handedness(handedness)])
        answers = self._refine(photo, queries, False, self.passes)
        (hand,) = self._predictions(answers, ["whole image"], [parse_camera(photo, intrinsics, None, None)])
        return hand

    def _second_look(
        self, photo: Photo | LargePhoto, answers: list[_CropAnswer], found: Sequence[Detection]
    ) -> list[_CropAnswer]:
        """The answers; where one leaves it open whether there is a hand, the more confident of it and a second one.

        That sees what the first one took for the hand, closer, and turned as it says that the hand points.
        """
        answers = list(answers)
        scores = [_joined(item, answer.score) for item, answer in zip(found, answers, strict=True)]
        again = [index for index, score in enumerate(scores) if OPEN[0] <= score < OPEN[1]]
        queries = []
        for row, index in enumerate(again):
            answer = answers[index]
            points = _keypoints_image(answer.output, answer.row, answer.query.crop)
            crop = self._closer(answer.query.crop, points, photo.size, SECOND_LOOK_MARGIN)
            queries.append(replace(answer.query, hand=row, crop=crop))
        seen = self._refine(photo, queries, True, 1) if queries else []
        for index, second in zip(again, seen, strict=True):
            answers[index] = max(answers[index], second, key=attrgetter("score"))
        return answers

    def _with_sides(
        self,
        photo: Photo | LargePhoto,
        answers: list[_CropAnswer],
        found: Sequence[Detection],
        crops: Sequence[CropTransform],
    ) -> list[_CropAnswer]:
        """The answers with how their sides are known: what the detector said, until the network finds it unlikely.

        Where both together are not certain, the network sees the hand as one of the other side, too; the likelier one
        stays. It is shown the detector's crop, for the wrong side's answer may have led closer to a part of the hand.
        """
        answers, doubted = list(answers), []
        said = [
            min(_log_odds(item.score if item.handedness_score is None else item.handedness_score), MOST_SAID)
            for item in found
        ]
        for index, answer in enumerate(answers):
            if answer.query.handedness_source != "given":  # the detector did not say, so both were seen
                continue
            odds = said[index] + (self._side_odds(answer) if self.predicts_handedness else 0.0)
            answers[index] = answer.with_side(_probability(INDEPENDENCE * odds))
            plausible = _joined(found[index], answer.score) >= PLAUSIBLE
            if self.predicts_handedness and plausible and answers[index].sure < CERTAIN_SIDE:
                doubted.append(index)
        if not doubted:
            return answers
        mirrored = []
        for row, index in enumerate(doubted):
            query = answers[index].query
            crop = replace(crops[index], rotation=query.crop.rotation, mirror=not query.crop.mirror)
            mirrored.append(replace(query, hand=row, handedness=query.handedness.other, crop=crop))
        for index, other in zip(doubted, self._refine(photo, mirrored, True, 1), strict=True):
            odds = INDEPENDENCE * (said[index] + (self._side_odds(answers[index]) - self._side_odds(other)) / 2)
            likelier = answers[index] if odds >= 0 else other
            answers[index] = likelier.with_side(_probability(abs(odds)))
        return answers

    def _side_odds(self, answer: _CropAnswer) -> float:
        """The network's log-odds that the hand has the side it was shown as."""
        return _log_odds(float(answer.output.handedness[answer.row]))

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
        answers = []
        for row, crop in enumerate(crops):
            side = Handedness.LEFT if crop.mirror else Handedness.RIGHT
            probable = float(output.handedness[row]) if self.predicts_handedness else 1.0
            query = _CropQuery(row, side, "given", crop, probable)
            answers.append(_CropAnswer(output, row, query, self._score(output, row)))
        known = [
            camera or Intrinsics.default_for(one.shape[1], one.shape[0])
            for one, camera in zip(images, cameras, strict=True)
        ]
        return self._predictions(answers, [source] * len(crops), known)

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

    def _refine(
        self,
        photo: Photo | LargePhoto,
        queries: list[_CropQuery],
        box_is_given: bool,
        passes: int,
    ) -> list[_CropAnswer]:
        """What the network says in the last passes; one answer for each hand of the queries."""
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
        return answers

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

    def _predictions(
        self, answers: Sequence[_CropAnswer], sources: Sequence[Source], cameras: Sequence[Intrinsics]
    ) -> list[HandPrediction]:
        if self.refines and answers:
            rows = zip(*([values[one.row] for values in one.output] for one in answers), strict=True)
            output = refined(HandOutput(*map(np.stack, rows)), self.engine.hand)
            answers = [replace(answer, output=output, row=row) for row, answer in enumerate(answers)]
        return [self._prediction(*hand) for hand in zip(answers, sources, cameras, strict=True)]

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
        joint_scores = np.asarray(output.joint_confidence[row], np.float32) if self.predicts_joint_confidence else None
        return HandPrediction(
            handedness=query.handedness,
            handedness_source=query.handedness_source,
            handedness_score=query.handedness_score,
            score=answer.score if joint_scores is None else _with_fingers(answer.score, joint_scores),
            joint_scores=joint_scores,
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

    @property
    def sure(self) -> float:
        """How probable its side is."""
        return self.query.handedness_score

    def with_side(self, probability: float) -> _CropAnswer:
        """The same, its side found, and so probable."""
        return replace(self, query=replace(self.query, handedness_source="found", handedness_score=probability))


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


def _detections(photo: Photo | LargePhoto, detector: Detector, search: Search) -> list[Detection]:
    """What a detector finds, in pixels of the photograph; boxes that no hand can be in are left out."""
    if isinstance(detector, HandDetector):
        thorough = search == "thorough"
        image, scale, (x, y) = photo.overview((2 if thorough else 1) * SIDE)
        found = detector.find(image, thorough=thorough)
    elif search == "thorough":
        raise ConfigError(f"{detector.name} has no thorough search: take the hand detector, or search='fast'.")
    else:
        found, scale, x, y = detector(photo.image), 1.0, 0, 0
    placed = []
    for item in found:
        x0, y0, x1, y1 = ((edge + 0.5) * scale - 0.5 for edge in item.box)
        box = (x0 + x, y0 + y, x1 + x, y1 + y)
        if box_problem(box, photo.size) is None:
            placed.append(replace(item, box=box))
    return placed


def _each_once(hands: list[HandPrediction]) -> list[HandPrediction]:
    """Of several answers about one hand the most certain."""
    kept: list[HandPrediction] = []
    for hand in sorted(hands, key=lambda hand: -hand.score):
        if not any(_is_one_hand(hand, other) for other in kept):
            kept.append(hand)
    return kept


def _is_one_hand(first: HandPrediction, second: HandPrediction) -> bool:
    points = first.keypoints_image(), second.keypoints_image()
    extent = max(float(np.ptp(one, axis=0).max()) for one in points)
    near = float(np.linalg.norm(points[0] - points[1], axis=1).mean()) < SAME_HAND_DISTANCE * extent
    return near or (box_iou(first.box, second.box) > SAME_HAND_IOU and first.handedness == second.handedness)


def _joined(item: Detection, score: float) -> float:
    """The network's score of a detection, joined with the detector's where that is a probability, too."""
    if not item.is_probability:
        return score
    detector, network, more = SCORE_OF_BOTH
    return _probability(detector * _log_odds(item.score) + network * _log_odds(score) + more)


def _with_fingers(score: float, joint_scores: Floats) -> float:
    """What is above `MIN_SCORE`, as far as no finger is likely lost: the hand stays, but is not called sure."""
    fingers = joint_scores[1:].reshape(len(FINGER_NAMES), -1)
    slope, shift = _FINGER_SCORE
    none_lost = _probability(slope * _log_odds(float(fingers[:, 1:].mean(axis=1).min())) + shift)
    return min(score, MIN_SCORE) + max(score - MIN_SCORE, 0.0) * none_lost


def _log_odds(probability: float) -> float:
    likely = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(likely / (1 - likely))


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def load_predictor(
    model: str | Path | None = None,
    *,
    detector: Detector | Literal["handmesh"] | None = "handmesh",
    passes: int = 3,
    refine: bool = True,
    threads: int | None = None,
) -> Predictor:
    """A predictor with the bundled model, or with a model file of your own, and the bundled detector, another or none.

    `passes` and `refine` as for `Predictor`. Raises CheckpointError, ConfigError.
    """
    finder = HandDetector(threads=threads) if detector == "handmesh" else detector
    return Predictor(open_engine(model, threads=threads), detector=finder, passes=passes, refine=refine)


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
