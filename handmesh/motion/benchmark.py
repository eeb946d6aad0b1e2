"""The live loop without its window, timed against the bare engine in one run."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import HandMeshError
from handmesh.files.video import FrameSource
from handmesh.geometry.crop import CropTransform
from handmesh.motion.follow import HandFollower
from handmesh.motion.live import LivePipeline
from handmesh.motion.window import KEYS, Hud, with_ids
from handmesh.predict import Predictor, overlay_hands


@dataclass(frozen=True)
class LiveBenchmark:
    """Milliseconds per frame of each stage, and rates of the loop and of the network alone, measured in turns."""

    frames: int
    followed: int  # frames with a hand
    crops_per_frame: float  # crops through the network; more than one while searching
    stages_ms: dict[str, float]
    loop_fps: float
    engine_fps: float
    # The same by CPU time, which other programs do not disturb: the network's thread bounds the loop where each
    # thread has a core.
    thread_ms: float  # per frame, of the network's thread
    engine_ms: float  # per crop, of the network alone


# Frames of each turn: the first are not counted, for they were ready when the turn began.
_TURN, _UNCOUNTED = 60, 8


def benchmark(
    source: FrameSource, follower: HandFollower, predictor: Predictor, *, max_frames: int = 600
) -> LiveBenchmark:
    """Run the loop without a window over every frame of a clip, in turns with the network alone on one crop.

    Both are timed in the same minute, so that other programs disturb both. Raises HandMeshError for a clip that is too
    short.
    """
    pipeline = LivePipeline(source, follower, newest=False)
    hud = Hud(predictor.engine.name)
    seconds = {"draw": 0.0, "text": 0.0}
    frames = followed = timed = 0
    loop = bare = following = bare_cpu = 0.0
    bare_count = 0
    crop: NDArray[np.uint8] | None = None
    ended = False
    try:
        while not ended and frames < max_frames:
            started = None
            for number in range(_TURN):
                result = pipeline.read()
                if result is None:
                    ended = True
                    break
                before = clock.perf_counter()
                if number == _UNCOUNTED:
                    started = before
                drawn = with_ids(overlay_hands(result.frame.image, result.hands.values()), result.hands)
                middle = clock.perf_counter()
                hud.tick(result.frame.captured)
                hud.draw(drawn, ["benchmark", KEYS])
                end = clock.perf_counter()
                seconds["draw"] += middle - before
                seconds["text"] += end - middle
                following += result.seconds
                frames += 1
                followed += bool(result.hands)
                if started is not None and number > _UNCOUNTED:
                    loop += end - started
                    timed += 1
                    started = end
                if crop is None:
                    whole = CropTransform.whole_image(result.frame.image.shape[1], result.frame.image.shape[0])
                    crop = whole.warp(result.frame.image, predictor.engine.resolution)[None]
                    predictor.engine(crop)
            if crop is None or ended:
                break
            clock.sleep(0.25)  # until the threads have filled their queues and rest
            for _ in range(_TURN // 2):
                before, cpu = clock.perf_counter(), clock.thread_time()
                predictor.engine(crop)
                bare += clock.perf_counter() - before
                bare_cpu += clock.thread_time() - cpu
                bare_count += 1
    finally:
        pipeline.close()
    if not timed or not bare_count:
        raise HandMeshError(f"{source.name} is too short to measure: wanted at least {2 * _TURN} frames.")
    stages = {
        "read and decode": 1000 * pipeline.capture.seconds / max(frames, 1),
        "follow": 1000 * following / frames,
        **{name: 1000 * value / frames for name, value in seconds.items()},
    }
    crops = follower.tracker.crop_count / max(pipeline.frame_count, 1)
    return LiveBenchmark(
        frames=frames,
        followed=followed,
        crops_per_frame=crops,
        stages_ms=stages,
        loop_fps=timed / loop,
        engine_fps=bare_count / bare,
        thread_ms=1000 * pipeline.tracking_cpu_seconds / max(pipeline.frame_count, 1),
        engine_ms=1000 * bare_cpu / bare_count,
    )
