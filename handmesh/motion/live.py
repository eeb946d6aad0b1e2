"""The live loop: a camera (or what stands in for one) in, the newest picture with its hands out.

Three threads, so that the network never waits: one takes pictures, one follows hands in the newest, the caller draws
and shows. `LivePipeline` is the first two.
"""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Callable
from typing import NamedTuple

from handmesh.errors import HandMeshError
from handmesh.files.video import Capture, Frame, FrameSource
from handmesh.hand import Handedness
from handmesh.motion.follow import HandFollower, Tracked
from handmesh.predict import HandPrediction, parse_handedness
from handmesh.system.read_ahead import ReadAhead


class LiveResult(NamedTuple):
    """A picture and what was followed in it."""

    frame: Frame
    hands: dict[int, HandPrediction]
    seconds: float  # that following took, without smoothing


class LivePipeline:
    """Takes pictures from a source and follows hands in them, each in a thread of its own; `read` gives the results."""

    def __init__(
        self, source: FrameSource, follower: HandFollower, *, newest: bool | None = None, paced: bool = False
    ) -> None:
        """`newest`, `paced`: as of `Capture`."""
        self.source = source
        follower.warm_up()
        self.capture = Capture(source, newest=newest, paced=paced)
        self.newest = source.live if newest is None else newest
        self._follower = follower
        self._lock = threading.Lock()  # held while hands are followed
        self.frame_count = 0  # frames that hands were followed in
        self.tracking_cpu_seconds = 0.0  # of the network's thread
        self._results = ReadAhead(self._follow, "network", max_items=None if self.newest else 2)

    def read(self, timeout: float = 10.0) -> LiveResult | None:
        """The next result; None at the end. Raises what went wrong in a thread, HandMeshError when nothing comes."""
        try:
            result = self._results.read(timeout)
        except TimeoutError:
            raise HandMeshError(f"{self.source.name} sent no picture for {timeout:g} s.") from None
        if result is None:
            return None
        frame, tracked, seconds = result
        # Smoothed here, in the thread that draws: the network's has enough to do.
        return LiveResult(frame, self._follower.smooth(tracked), seconds)

    def choose(self, handedness: Handedness | str) -> None:
        """From now on hands are of this side ("auto": of that which they are found to be), and searched for anew."""
        with self._lock:
            self._follower.tracker.handedness = parse_handedness(handedness)
            self._follower.forget()

    def search_again(self) -> None:
        """Forget where hands were."""
        with self._lock:
            self._follower.forget()

    def close(self) -> None:
        self.capture.close()
        self._results.stop(timeout=5.0)

    def _follow(self) -> tuple[Frame, Tracked, float] | None:
        frame = self.capture.read()
        if frame is None:
            return None
        before, cpu = clock.perf_counter(), clock.thread_time()
        with self._lock:
            tracked = self._follower.track(frame.image, frame.time)
        seconds = clock.perf_counter() - before
        self.tracking_cpu_seconds += clock.thread_time() - cpu
        self.frame_count += 1
        return frame, tracked, seconds


def run_headless(pipeline: LivePipeline, *, max_frames: int | None, seen: Callable[[LiveResult], None]) -> int:
    """Follow hands without a window; `seen` gets every result. The number of frames."""
    count = 0
    try:
        while (max_frames is None or count < max_frames) and (result := pipeline.read()) is not None:
            seen(result)
            count += 1
    finally:
        pipeline.close()
    return count
