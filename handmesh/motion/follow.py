"""Pictures in order of time in, hands with ids out: tracking and smoothing, for clips, cameras and streams alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from handmesh.detect import Detector
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import Handedness
from handmesh.motion.smoothing import Smoother, Smoothing
from handmesh.motion.track import Image, Tracker, Tracking
from handmesh.predict import AUTO, HandPrediction, Predictor


class Tracked(NamedTuple):
    """What was seen in one picture, not yet smoothed."""

    time: float
    hands: dict[int, HandPrediction]
    remembered: set[int]  # ids that may still come back


class HandFollower:
    """A tracker and, unless it is switched off, a smoother. One per camera or clip."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        detector: Detector | None = None,
        handedness: Handedness | str = AUTO,
        tracking: Tracking | None = None,
        smoothing: Smoothing | None = None,
    ) -> None:
        """`smoothing` None: what the network says, frame by frame."""
        self.tracker = Tracker(predictor, detector=detector, handedness=handedness, settings=tracking)
        self.smoother = None if smoothing is None else Smoother(predictor.engine.hand, smoothing)

    def __call__(
        self, image: Image, time: float, intrinsics: Intrinsics | ArrayLike | None = None
    ) -> dict[int, HandPrediction]:
        """The hands of one picture by id. Arguments and errors as of `Tracker`."""
        return self.smooth(self.track(image, time, intrinsics))

    def track(self, image: Image, time: float, intrinsics: Intrinsics | ArrayLike | None = None) -> Tracked:
        """The first half of the call: what takes a network."""
        hands = {item.id: item.hand for item in self.tracker(image, time, intrinsics)}
        return Tracked(time, hands, self.tracker.remembered)

    def smooth(self, tracked: Tracked) -> dict[int, HandPrediction]:
        """The other half, which another thread may do; in order of time."""
        if self.smoother is None:
            return tracked.hands
        hands = {id: self.smoother(id, hand, tracked.time) for id, hand in tracked.hands.items()}
        self.smoother.keep(tracked.remembered)
        return hands

    def warm_up(self) -> None:
        """The first pass of a network takes far longer than the others: have it before the first picture comes."""
        self.tracker.predictor.engine(np.zeros((1, *(self.tracker.predictor.engine.resolution,) * 2, 3), np.uint8))

    def forget(self) -> None:
        self.tracker.forget()

    def state(self) -> dict[str, Any]:
        """Plain values, from which `restore` goes on bit for bit."""
        return {
            "tracker": self.tracker.state(),
            "smoother": None if self.smoother is None else self.smoother.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tracker.restore(state["tracker"])
        if self.smoother is not None:
            self.smoother.restore(state["smoother"])
