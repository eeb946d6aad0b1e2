"""Hands followed from picture to picture: one crop each, where the last picture says the hand will be.

A tracked hand takes one pass of the network per picture, on a crop around its last keypoints, moved on by its speed and
rotated upright, instead of the several that finding it took. That is only right while there is a hand, and a network
shown a wall draws a hand there all the same. So every answer is judged:

* by itself: its size in the crop, its jump, how much of it lies outside the picture, the network's own score;
* by a check crop, when something surprises and every 0.8 s in any case: one that is moved, rotated and larger.
  A real hand stays where it is, a false positive moves with the crop. (The bundled model's two answers agree to 0.88 in
  the median on hands and 0.33 on backgrounds; see docs/how_to/video.md.)

A hand that fails is kept in mind for a moment, its crop waiting where it was, then given up and searched for: by the
detector if there is one, else where it was last seen and in the places that were given (a box, the whole picture).
Found again soon enough, it keeps its id.

Which hand it is may be given. Else all that was ever said about it counts: each answer of a network that predicts
handedness, and each detection, is an observation (the log-odds that it is a right hand) that stands for some time, and
their mean decides. It has to be clear before a hand changes its side, and the answer to the mirrored crop has to agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handmesh.detect import Box, Detection, Detector, WholeImage, box_iou
from handmesh.detect.overlap import keypoint_agreement
from handmesh.errors import ConfigError
from handmesh.files.image import read_photo
from handmesh.geometry.box import box_problem
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness, upright_rotation
from handmesh.motion.smoothing import OneEuro
from handmesh.predict import AUTO, HANDEDNESS_PASSES, HandPrediction, Predictor, parse_handedness

Image = NDArray[np.uint8]
Keypoints = NDArray[np.float64]  # (21, 2) px


@dataclass(frozen=True)
class Tracking:
    """What is worth changing. Times in seconds, lengths as shares of the hand's own extent in the picture."""

    margin: float = 1.6  # crop side over the extent of the keypoints; training draws 1.2 to 2
    check_every: float = 0.8  # a check crop, even when nothing surprises
    detect_every: float = 0.5  # the detector searches for further hands; more often costs more than it finds
    patience: float = 0.2  # how long a hand may look wrong before it is given up
    memory: float = 3.0  # found again within this, a hand keeps its id
    min_agreement: float = 0.6  # of two crops of a tracked hand
    min_score: float = 0.3  # of the network at a tracked hand, where it says one
    # Of a hand that is newly found: the network's score, where it says one, else the agreement of crops. A false find
    # costs more than a late one.
    min_found_score: float = 0.5
    min_found_agreement: float = 0.7
    min_detection_score: float = 0.15  # of the detector, where that is a probability: lower ones are not looked at
    max_hands: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.margin <= 3 and self.max_hands >= 1):
            raise ConfigError(
                f"Tracking with a margin of {self.margin:g} and at most {self.max_hands} hands: wanted a margin from "
                "1 to 3 and at least one hand."
            )


class TrackedHand(NamedTuple):
    """One hand in one picture."""

    id: int  # from 1 on; never used again for another hand
    hand: HandPrediction
    found: bool  # True in the picture where it was found, or found again


# The check crop: moved by a share of the crop's side, larger, turned. Far enough that a hand drawn in the
# middle of nowhere would have to move by a quarter of itself, near enough that training has seen as much.
_CHECK_SHIFT = 0.12
_CHECK_SIZE = 1.15
_CHECK_ROTATION = 0.35
# What an answer may be before it is wrong, and before it is worth a check. Backgrounds shrink a hand to 0.6 of
# the extent that the crop was made for, in the median; real hands stay within 0.95 to 1.07.
_EXTENT_POSSIBLE = (0.62, 1.7)
_EXTENT_USUAL = (0.85, 1.2)
_JUMP_POSSIBLE = 0.8
_JUMP_USUAL = 0.3
_MIN_INSIDE = 0.4  # of the keypoints within the picture
_MIN_EXTENT_PX = 10.0
_SIZE_KEPT = (0.6, 1.7)  # of a hand that was lost and is found again

# Observations of handedness, as log-odds that a hand is a right one. No single one counts for more than this, however
# confident it is: a network is wrong about a pose for as long as the pose lasts.
_MAX_LOG_ODDS = 4.0
_DETECTOR_LOG_ODDS = 2.0
# Seconds that an observation stands for: those of the crops that found the hand (as a right and as a left one), and of
# a detector. An answer about a tracked hand stands for the time since the one before it.
_FOUND_SECONDS, _DETECTION_SECONDS = 0.2, 0.3
_OTHER_HANDEDNESS = 0.25  # what a detection of the other side is farther from a track, see `_distance`
_HANDEDNESS_MEMORY = 5.0  # s; the mean is of so much time
_HANDEDNESS_SWITCH = 0.5  # the mean log-odds at which a hand takes the other side: 0.62 to 0.38
# Seconds of observations, and their mean, from which on a lost hand is searched for as what it was.
_HANDEDNESS_SETTLED = (1.0, 1.5)


@dataclass
class _Track:
    id: int
    handedness: Handedness
    keypoints: Keypoints  # of the last plausible answer
    crop_filter: OneEuro  # of the crop's log size, and cosine and sine of its rotation
    velocity: NDArray[np.float64]  # (2,) px/s of their middle
    seen: float  # when that was
    checked: float  # when a check last agreed
    since: float  # when it was first found
    mean_extent: float  # px, over about the last second: what a moment's wrong answers do not change
    right_log_odds: float = 0.0  # mean log-odds that it is a right hand
    handedness_seconds: float = 0.0  # of how much time; 0: nobody said anything

    @property
    def extent(self) -> float:
        return float(np.ptp(self.keypoints, axis=0).max())

    @property
    def box(self) -> Box:
        (x0, y0), (x1, y1) = self.keypoints.min(axis=0), self.keypoints.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def mirror(self) -> bool:
        return self.handedness == Handedness.LEFT

    @property
    def handedness_log_odds(self) -> float:
        """That the hand has the side it is taken to have."""
        return -self.right_log_odds if self.mirror else self.right_log_odds

    def update_handedness(self, side: Handedness, odds: float, seconds: float) -> None:
        """An observation that stands for some seconds: the log-odds that the hand is of a side."""
        right = min(max(odds if side == Handedness.RIGHT else -odds, -_MAX_LOG_ODDS), _MAX_LOG_ODDS)
        self.handedness_seconds = min(self.handedness_seconds + seconds, _HANDEDNESS_MEMORY)
        if self.handedness_seconds > 0:
            self.right_log_odds += (right - self.right_log_odds) * min(1.0, seconds / self.handedness_seconds)

    def update_with(self, detection: Detection) -> None:
        """What a detector says of it, if it names a side: as certain as it is of that, but never very."""
        if detection.handedness is not None:
            score = detection.handedness_score
            odds = _DETECTOR_LOG_ODDS if score is None else min(_log_odds(score), _DETECTOR_LOG_ODDS)
            self.update_handedness(detection.handedness, odds, _DETECTION_SECONDS)


class Tracker:
    """Follows hands through pictures in order of time. One per camera or clip; not for several threads at once."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        detector: Detector | None = None,
        handedness: Handedness | str = AUTO,
        settings: Tracking | None = None,
    ) -> None:
        """`detector` says where new hands are; None: the predictor's, or where it has none the whole picture.

        `handedness` is that of all hands; "auto" finds out what each is, and takes right ones where neither network nor
        detector can tell. It may be set anew, followed by `forget`; so may `predictor`, to another engine's.
        """
        self.settings = settings or Tracking()
        self.detector: Detector = detector or predictor.detector or WholeImage()
        self.handedness = parse_handedness(handedness)
        self.predictor = predictor
        self._tracks: list[_Track] = []
        self._lost: list[_Track] = []
        self._next_id = 1
        self._expected: dict[int, Handedness] = {}
        self._time = -math.inf
        self._detected = -math.inf
        self.crop_count = 0  # crops that the network was shown

    # ---------------------------------------------------------------------------------------------------- public

    def __call__(
        self, image: Image, time: float, intrinsics: Intrinsics | ArrayLike | None = None
    ) -> list[TrackedHand]:
        """The hands of one picture, by id. `image` (H, W, 3) uint8 RGB, `time` in seconds, later than the last one.

        `intrinsics`: an `Intrinsics` or K. Raises ValueError when time runs backwards.
        """
        if time <= self._time and self._tracks:
            raise ValueError(f"A picture at {time:g} s after one at {self._time:g} s: wanted them in order of time.")
        self._time = time
        height, width = image.shape[:2]
        known = Intrinsics.default_for(width, height) if intrinsics is None else Intrinsics.of(intrinsics)
        hands = self._follow(image, time, known)
        self._drop_doubles(hands)
        hands |= self._find(image, time, known)
        self._drop_doubles(hands)
        return [hands[id] for id in sorted(hands)]

    def forget(self) -> None:
        """Start anew, with new ids: the camera was moved, or the other hand is meant now."""
        self._tracks, self._lost = [], []

    def expect(self, id: int, side: Handedness) -> None:
        """A hand that will have this id will be of this side: for those who have seen what comes, and went back."""
        self._expected[id] = side

    @property
    def next_id(self) -> int:
        """Of the next hand that is new; hands that were there have smaller ones."""
        return self._next_id

    @property
    def remembered(self) -> set[int]:
        """Ids that may still come back."""
        return {track.id for track in (*self._tracks, *self._lost)}

    def state(self) -> dict[str, Any]:
        """Plain values, from which `restore` goes on bit for bit."""
        return {
            "tracks": [_state(track) for track in self._tracks],
            "lost": [_state(track) for track in self._lost],
            "next_id": self._next_id,
            "expected": {str(id): str(side) for id, side in self._expected.items()},
            "time": self._time,
            "detected": self._detected,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._tracks = [_restored(track) for track in state["tracks"]]
        self._lost = [_restored(track) for track in state["lost"]]
        self._next_id, self._time, self._detected = state["next_id"], state["time"], state["detected"]
        self._expected = {int(id): Handedness(side) for id, side in state["expected"].items()}

    # --------------------------------------------------------------------------------------------------- following

    def _follow(self, image: Image, time: float, intrinsics: Intrinsics) -> dict[int, TrackedHand]:
        """One crop of each hand, and a check where it is due."""
        crops = [self._next_crop(track, time) for track in self._tracks]
        answers = self.predictor.predict_crops(image, crops, intrinsics=intrinsics)
        self.crop_count += len(crops)
        points = [answer.keypoints_image().astype(np.float64) for answer in answers]
        wrong, due = set(), []
        for index, (track, answer) in enumerate(zip(self._tracks, answers, strict=True)):
            judged = self._judge(track, answer, points[index], crops[index], image.shape)
            if judged == "wrong":
                wrong.add(index)
            elif judged == "odd" or time - track.checked >= self.settings.check_every or time > track.seen + 0.1:
                due.append(index)
        agreements = self._check(image, [(points[i], self._tracks[i].mirror) for i in due], time)
        for index, found in zip(due, agreements, strict=True):
            if found >= self.settings.min_agreement:
                self._tracks[index].checked = time
            else:
                wrong.add(index)
        self._weigh_handedness(image, crops, answers, points, wrong, time, intrinsics)
        hands, kept = {}, []
        for index, (track, answer) in enumerate(zip(self._tracks, answers, strict=True)):
            if index not in wrong:
                self._advance(track, points[index], time)
                hands[track.id] = TrackedHand(track.id, self._with_handedness(answer, track), False)
            if time - track.seen <= self.settings.patience:
                kept.append(track)
            else:
                self._lost.append(track)
        self._tracks = kept
        self._lost = [track for track in self._lost if time - track.seen <= self.settings.memory]
        return hands

    def _weigh_handedness(
        self,
        image: Image,
        crops: list[CropTransform],
        answers: list[HandPrediction],
        points: list[Keypoints],
        wrong: set[int],
        time: float,
        intrinsics: Intrinsics,
    ) -> None:
        """Count what was not wrong. A hand that turns out to be the other one gets an answer as that one."""
        if self.handedness != AUTO:
            return
        doubted = []
        for index, (track, answer) in enumerate(zip(self._tracks, answers, strict=True)):
            if index not in wrong:
                if self.predictor.predicts_handedness:
                    track.update_handedness(
                        track.handedness, _log_odds(answer.handedness_score), min(time - track.seen, 0.1)
                    )
                if track.handedness_log_odds < -_HANDEDNESS_SWITCH:
                    doubted.append(index)
        mirrored = [replace(crops[index], mirror=not crops[index].mirror) for index in doubted]
        others = self.predictor.predict_crops(image, mirrored, intrinsics=intrinsics)
        self.crop_count += len(mirrored)
        for index, other in zip(doubted, others, strict=True):
            track = self._tracks[index]
            there = other.keypoints_image().astype(np.float64)
            agrees = other.handedness_score >= answers[index].handedness_score
            if agrees and self._judge(track, other, there, crops[index], image.shape) != "wrong":
                track.handedness, answers[index], points[index] = other.handedness, other, there
            else:
                track.right_log_odds = 0.0

    def _with_handedness(self, hand: HandPrediction, track: _Track) -> HandPrediction:
        """The answer with how its side is known."""
        if self.handedness != AUTO:
            return replace(hand, handedness_source="given", handedness_score=1.0)
        if not track.handedness_seconds:
            return replace(hand, handedness_source="assumed", handedness_score=1.0)
        return replace(hand, handedness_source="found", handedness_score=1 / (1 + math.exp(-track.handedness_log_odds)))

    def _next_crop(self, track: _Track, time: float) -> CropTransform:
        """Around the keypoints, turned upright and moved on by their speed, without their jitter."""
        dt = time - track.seen
        fitted = CropTransform.around_points(
            track.keypoints, self.settings.margin, upright_rotation(track.keypoints), track.mirror
        )
        assert track.crop_filter.value is not None
        log_size, cosine, sine = track.crop_filter.value
        step = track.velocity * min(dt, 0.1)
        center = (fitted.center[0] + float(step[0]), fitted.center[1] + float(step[1]))
        return replace(fitted, center=center, size=math.exp(log_size), rotation=math.atan2(sine, cosine))

    def _judge(
        self, track: _Track, answer: HandPrediction, points: Keypoints, crop: CropTransform, shape: tuple[int, ...]
    ) -> Literal["wrong", "odd", "fine"]:
        """What to think of an answer; an odd one is worth a check."""
        if not np.isfinite(points).all() or answer.score < self.settings.min_score:
            return "wrong"
        # Extents along the crop's axes: those in the picture change when a hand turns.
        there, there_before = crop.to_ndc(points), crop.to_ndc(track.keypoints)
        now, before = (float((p.max(axis=0) - p.min(axis=0)).max()) for p in (there, there_before))
        expected = 2 / self.settings.margin
        size, growth = now / expected, now / max(before, 1e-6)
        jump = math.hypot(*(there.mean(axis=0) - there_before.mean(axis=0))) / expected
        height, width = shape[:2]
        inside = ((points >= -0.5) & (points <= (width - 0.5, height - 0.5))).all(axis=1).mean()
        low, high = _EXTENT_POSSIBLE
        extent_px = float(np.ptp(points, axis=0).max())
        if not (low <= size <= high and jump <= _JUMP_POSSIBLE and inside >= _MIN_INSIDE):
            return "wrong"
        if extent_px < _MIN_EXTENT_PX:
            return "wrong"
        low, high = _EXTENT_USUAL
        return "fine" if low <= growth <= high and low <= size <= high and jump <= _JUMP_USUAL else "odd"

    def _check(self, image: Image, hands: list[tuple[Keypoints, bool]], time: float, both: bool = False) -> list[float]:
        """How well the answer to a check crop agrees, for each hand; with `both`, the worse of two, opposite ones."""
        # Another direction every time, but the same for the same picture.
        angle = 2.4 * round(time * 1000)
        ways = [1.0, -1.0] if both else [1.0 if math.cos(2.7 * angle) > 0 else -1.0]
        crops = []
        for points, mirror in hands:
            crop = CropTransform.around_points(points, self.settings.margin, upright_rotation(points), mirror)
            for way in ways:
                shift = way * _CHECK_SHIFT * crop.size
                center = (crop.center[0] + shift * math.cos(angle), crop.center[1] + shift * math.sin(angle))
                size, rotation = crop.size * _CHECK_SIZE**way, crop.rotation + way * _CHECK_ROTATION
                crops.append(replace(crop, center=center, size=size, rotation=rotation))
        answers = self.predictor.predict_crops(image, crops)
        self.crop_count += len(crops)
        owners = [points for points, _ in hands for _ in ways]
        found = [
            keypoint_agreement(points, answer.keypoints_image().astype(np.float64))
            for points, answer in zip(owners, answers, strict=True)
        ]
        return [min(found[first : first + len(ways)]) for first in range(0, len(found), len(ways))]

    def _advance(self, track: _Track, points: Keypoints, time: float) -> None:
        dt = time - track.seen
        velocity = (points.mean(axis=0) - track.keypoints.mean(axis=0)) / dt
        track.velocity = track.velocity + 0.5 * (velocity - track.velocity)
        track.keypoints, track.seen = points, time
        track.mean_extent += min(dt, 1.0) * (track.extent - track.mean_extent)
        track.crop_filter(self._crop_values(points), dt)

    def _crop_values(self, points: Keypoints) -> list[float]:
        rotation = upright_rotation(points)
        crop = CropTransform.around_points(points, self.settings.margin, rotation)
        return [math.log(crop.size), math.cos(rotation), math.sin(rotation)]

    # ----------------------------------------------------------------------------------------------------- finding

    def _find(self, image: Image, time: float, intrinsics: Intrinsics) -> dict[int, TrackedHand]:
        """New hands, and lost ones that are there again."""
        room = self.settings.max_hands - len(self._tracks)
        if self.detector.searches:
            pause = self.settings.detect_every / (5 if self._lost else 1)
            if self._tracks and time - self._detected < pause:
                return {}
            self._detected = time
            places = self._unmatched(self.detector(image))
        else:
            places = self.detector(image)
            room = min(room, len(places) - len(self._tracks))
            places = [place for place in places if all(box_iou(place.box, t.box) < 0.3 for t in self._tracks)]
            # A lost hand is most likely still where it was.
            again = [Detection(_grown(t.box, 1.2), t.handedness, 1.0, "tracking") for t in reversed(self._lost)]
            places = [*again[:room], *places] if room > 0 else []
        size = image.shape[1], image.shape[0]
        places = [
            place
            for place in places
            if box_problem(place.box, size) is None
            and (place.score >= self.settings.min_detection_score or not place.is_probability)
        ]
        hands: dict[int, TrackedHand] = {}
        for place in places:
            if len(hands) >= room:
                break
            found = self._find_at(image, place, time, intrinsics)
            if found is not None and not any(box_iou(found.hand.box, other.hand.box) > 0.7 for other in hands.values()):
                hands[found.id] = found
        return hands

    def _unmatched(self, detections: list[Detection]) -> list[Detection]:
        """Detections of no tracked hand. Those of tracked hands say their sides."""
        if not (detections and self._tracks):
            return detections
        from scipy.optimize import linear_sum_assignment  # on first use: it takes a tenth of a second to import

        cost = np.array(
            [
                [
                    _distance(track.box, item.box)
                    + (_OTHER_HANDEDNESS if item.handedness not in (None, track.handedness) else 0.0)
                    for item in detections
                ]
                for track in self._tracks
            ]
        )
        matched = set()
        for row, column in zip(*linear_sum_assignment(np.minimum(cost, 10.0)), strict=True):
            if cost[row, column] < 1:
                matched.add(column)
                self._tracks[row].update_with(detections[column])
        return [item for index, item in enumerate(detections) if index not in matched]

    def _find_at(self, image: Image, place: Detection, time: float, intrinsics: Intrinsics) -> TrackedHand | None:
        """The hand at a place, if there is one."""
        side = self._handedness_to_try(place)
        photo = read_photo(image)
        if place.source == "whole image":
            hand = self.predictor.predict_whole(photo, side, intrinsics)
        else:
            (hand,) = self.predictor.predict_detections(photo, [place], side, intrinsics)
        passes = self.predictor.passes if place.rotation is None else 1
        both = side == AUTO and place.handedness is None and self.predictor.predicts_handedness
        self.crop_count += passes + (min(HANDEDNESS_PASSES, passes) if both else 0)
        points = hand.keypoints_image().astype(np.float64)
        extent = float(np.ptp(points, axis=0).max())
        height, width = image.shape[:2]
        inside = ((points >= -0.5) & (points <= (width - 0.5, height - 0.5))).all(axis=1).mean()
        # What imagines a hand, imagines it in any size; the one that was lost a moment ago has the size it had.
        lost_extents = [track.mean_extent for track in self._lost] if not self.detector.searches else []
        says = self.predictor.predicts_confidence
        min_agreement = self.settings.min_agreement if says else self.settings.min_found_agreement
        # Without that head `score` is the agreement of the last two passes; with a single one it says nothing.
        if not (
            np.isfinite(points).all()
            and hand.score >= (self.settings.min_found_score if says else min_agreement)
            and _MIN_EXTENT_PX <= extent <= 2 * max(height, width)
            and inside >= _MIN_INSIDE
            and (not lost_extents or any(_SIZE_KEPT[0] < extent / size < _SIZE_KEPT[1] for size in lost_extents))
        ):
            return None
        mirror = hand.handedness == Handedness.LEFT
        if self._check(image, [(points, mirror)], time, both=True)[0] < min_agreement:
            return None
        track = self._started(hand.handedness, points, time)
        if hand.handedness_source == "found":  # by network and detector together
            track.update_handedness(hand.handedness, _log_odds(hand.handedness_score), _FOUND_SECONDS)
        elif self.handedness == AUTO:
            track.update_with(place)
        self._tracks.append(track)
        return TrackedHand(track.id, self._with_handedness(replace(hand, source=place.source), track), True)

    def _handedness_to_try(self, place: Detection) -> str:
        """What is given; else what a lost hand that was near was; else it is found out, the detector heard too."""
        if self.handedness != AUTO:
            return self.handedness
        seconds, odds = _HANDEDNESS_SETTLED
        for track in reversed(self._lost):
            if (
                _distance(track.box, place.box) < 1
                and track.handedness_seconds >= seconds
                and track.handedness_log_odds >= odds
            ):
                return track.handedness
        return self._expected.get(self._next_id) or AUTO

    def _started(self, side: Handedness, points: Keypoints, time: float) -> _Track:
        """A track for a hand that was found: that of a lost one, or a new one."""
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        box = (float(x0), float(y0), float(x1), float(y1))
        # Slower than this is jitter of the crop, which would become jitter of the answer.
        crop_filter = OneEuro(cutoff=2.0, speed=4.0)
        crop_filter(self._crop_values(points), 0.0)
        extent = float(np.ptp(points, axis=0).max())
        # The nearest of its side; or one just here, whose side was mistaken then or is mistaken now.
        costs = {
            index: _distance(track.box, box) + (track.handedness != side) for index, track in enumerate(self._lost)
        }
        likely = [i for i, cost in costs.items() if self._lost[i].handedness == side or cost < 2]
        if likely:
            lost = self._lost.pop(min(likely, key=lambda index: costs[index]))
            track = _Track(lost.id, side, points, crop_filter, np.zeros(2), time, time, lost.since, extent)
            track.right_log_odds, track.handedness_seconds = lost.right_log_odds, lost.handedness_seconds
            return track
        track = _Track(self._next_id, side, points, crop_filter, np.zeros(2), time, time, time, extent)
        self._next_id += 1
        if (expected := self._expected.pop(track.id, None)) is not None:
            track.update_handedness(expected, _MAX_LOG_ODDS, _DETECTION_SECONDS)
        return track

    def _drop_doubles(self, hands: dict[int, TrackedHand]) -> None:
        """Two tracks of one hand become the older one."""
        for track in sorted(self._tracks, key=lambda track: (-track.since, -track.id)):
            older = [t for t in self._tracks if t is not track and (t.since, t.id) < (track.since, track.id)]
            if any(_is_one_hand(track, other) for other in older):
                self._tracks.remove(track)
                self._lost.append(track)  # it was another hand once, and may be seen apart again
                hands.pop(track.id, None)


def _distance(first: Box, second: Box) -> float:
    """Between boxes: 0 for equal ones, above 1 for those that cannot be of one hand.

    The distance of the centres over the larger side, less a bonus for overlap.
    """
    size = max(first[2] - first[0], first[3] - first[1], second[2] - second[0], second[3] - second[1], 1e-6)
    centers = [np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) for box in (first, second)]
    return float(np.linalg.norm(centers[0] - centers[1])) / size + 0.5 * (1 - box_iou(first, second))


def _is_one_hand(first: _Track, second: _Track) -> bool:
    apart = float(np.linalg.norm(first.keypoints - second.keypoints, axis=1).mean())
    near = apart < 0.25 * max(first.extent, second.extent)
    return near or box_iou(first.box, second.box) > 0.7


def _log_odds(probability: float) -> float:
    likely = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(likely / (1 - likely))


def _grown(box: Box, factor: float) -> Box:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = factor * max(box[2] - box[0], box[3] - box[1]) / 2
    return x - half, y - half, x + half, y + half


def _state(track: _Track) -> dict[str, Any]:
    return {
        "id": track.id,
        "handedness": str(track.handedness),
        "keypoints": track.keypoints.tolist(),
        "velocity": track.velocity.tolist(),
        "seen": track.seen,
        "checked": track.checked,
        "since": track.since,
        "mean_extent": track.mean_extent,
        "right_log_odds": track.right_log_odds,
        "handedness_seconds": track.handedness_seconds,
        "crop_filter": track.crop_filter.state(),
    }


def _restored(state: Mapping[str, Any]) -> _Track:
    crop_filter = OneEuro(cutoff=2.0, speed=4.0)
    crop_filter.restore(state["crop_filter"])
    return _Track(
        id=state["id"],
        handedness=Handedness(state["handedness"]),
        keypoints=np.array(state["keypoints"], np.float64),
        velocity=np.array(state["velocity"], np.float64),
        seen=state["seen"],
        checked=state["checked"],
        since=state["since"],
        mean_extent=state["mean_extent"],
        right_log_odds=state["right_log_odds"],
        handedness_seconds=state["handedness_seconds"],
        crop_filter=crop_filter,
    )
