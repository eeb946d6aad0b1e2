"""The live loop: a camera (or what stands in for one) in, the newest picture with hands drawn on it out.

Three threads, so that the network never waits: one takes pictures, one looks at the newest, the caller draws and shows.
`LivePipeline` is the first two; `run_window` is the desktop window; `benchmark` measures the loop against the bare
engine in one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.detect import Box
from handmesh.errors import ConfigError, HandMeshError
from handmesh.files.animation import encode_animation
from handmesh.files.image import encode_image
from handmesh.files.video import Capture, Codec, Frame, FrameSource, Image, VideoWriter
from handmesh.geometry.camera import Intrinsics
from handmesh.geometry.crop import CropTransform
from handmesh.hand import Handedness, both_sides
from handmesh.motion.clip import ANIMATION_NAME, LOG_NAME, OVERLAY_NAME, LiveHands, Tracked
from handmesh.motion.log import HandLog, LogHeader, read_tracks, record_of
from handmesh.predict import AUTO, HandPrediction, Predictor, overlay_hands, parse_side
from handmesh.system.atomic import write_atomically

WINDOW = "handmesh"
KEYS = "[h] which hand   [m] mesh/bones   [f] mirror   [c] record   [s] screenshot   [r] search again   [q] quit"


_SMALLEST_TEXT = 0.45  # of OpenCV's font, that can still be read


class Looked(NamedTuple):
    """A picture that was looked at."""

    frame: Frame
    hands: dict[int, HandPrediction]
    seconds: float  # that looking took, without smoothing


class LivePipeline:
    """Takes pictures from a source and looks at them, each in a thread of its own; `read` gives what was seen."""

    def __init__(
        self, source: FrameSource, live: LiveHands, *, newest: bool | None = None, paced: bool = False
    ) -> None:
        """`newest`, `paced`: as of `Capture`."""
        self.source = source
        live.warm_up()
        self.capture = Capture(source, newest=newest, paced=paced)
        self.newest = source.live if newest is None else newest
        self._live = live
        self._lock = threading.Lock()  # held while a picture is looked at
        self._changed = threading.Condition()
        self._results: deque[tuple[Frame, Tracked, float]] = deque()
        self._error: BaseException | None = None
        self._ended = self._stop = False
        self.looked = 0  # pictures
        self.looking_processor_seconds = 0.0  # of the network's thread
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def read(self, timeout: float = 10.0) -> Looked | None:
        """The next result; None at the end. Raises what went wrong in a thread, HandMeshError when nothing comes."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._results or self._ended, timeout):
                raise HandMeshError(f"{self.source.name} sent no picture for {timeout:g} s.")
            if not self._results:
                if self._error is not None:
                    raise self._error
                return None
            frame, tracked, seconds = self._results.popleft()
            self._changed.notify_all()
        # Smoothed here, in the thread that draws: the network's has enough to do.
        return Looked(frame, self._live.smooth(tracked), seconds)

    def choose(self, handedness: Handedness | str) -> None:
        """From now on hands are of this side ("auto": of that which they are found to be), and searched for anew."""
        with self._lock:
            self._live.tracker.handedness = parse_side(handedness)
            self._live.forget()

    def search_again(self) -> None:
        """Forget where hands were."""
        with self._lock:
            self._live.forget()

    def close(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self.capture.close()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            while not self._stop:
                frame = self.capture.read()
                if frame is None:
                    break
                before, processor = clock.perf_counter(), clock.thread_time()
                with self._lock:
                    tracked = self._live.track(frame.image, frame.time)
                seconds = clock.perf_counter() - before
                self.looking_processor_seconds += clock.thread_time() - processor
                self.looked += 1
                with self._changed:
                    if self.newest:
                        self._results.clear()
                    else:
                        self._changed.wait_for(lambda: len(self._results) < 2 or self._stop)
                    self._results.append((frame, tracked, seconds))
                    self._changed.notify_all()
        except Exception as error:  # handed to whoever reads
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@dataclass
class Hud:
    """What stands in the corner of the window."""

    engine: str
    fps: float = 0.0
    latency: float = 0.0  # seconds from the camera to the window
    _last: float | None = field(default=None, repr=False)

    def tick(self, captured: float) -> None:
        """A picture that arrived at `captured` is about to be shown; running means over about 20 of them."""
        now = clock.perf_counter()
        if self._last is not None and now > self._last:
            fps = 1 / (now - self._last)
            self.fps = fps if not self.fps else self.fps + 0.05 * (fps - self.fps)
        latency = now - captured
        self.latency = latency if not self.latency else self.latency + 0.05 * (latency - self.latency)
        self._last = now

    def draw(self, image: Image, lines: Sequence[str] = ()) -> None:
        """Into the image itself."""
        first = f"{self.fps:.1f} fps   {1000 * self.latency:.0f} ms   {self.engine}"
        scale = max(_SMALLEST_TEXT, min(image.shape[1] / 1280, 1.0) * 0.8)
        step = round(42 * scale + 4)
        margin = round(15 * scale)
        shown = [part for line in (first, *lines) for part in _broken(line, image.shape[1] - 2 * margin, scale)]
        for number, text in enumerate(shown):
            _write(image, text, (margin, round(step * (number + 0.9))), scale)


def draw_hands(image: Image, hands: Mapping[int, HandPrediction], *, skeleton: bool = False) -> Image:
    """Hands over a copy of their picture, with their ids when there are several."""
    drawn = overlay_hands(image, list(hands.values()), skeleton=skeleton)
    if len(hands) > 1:
        for id, hand in hands.items():
            _write(drawn, f"{id} {hand.handedness}", (round(hand.box[0]), round(hand.box[1]) - 6), 0.5)
    return drawn


def _broken(text: str, width: int, scale: float) -> list[str]:
    """A line as lines of at most `width` pixels, broken where it has three spaces."""
    lines = [""]
    for part in text.split("   "):
        longer = f"{lines[-1]}   {part}" if lines[-1] else part
        fits = cv2.getTextSize(longer, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] <= width
        lines = [*lines[:-1], longer] if fits or not lines[-1] else [*lines, part]
    return lines


def _write(image: Image, text: str, place: tuple[int, int], scale: float) -> None:
    """White on a dark rim: to be read on anything."""
    # The rim is the text itself, moved: a bolder one is wider in OpenCV 5, so that no letter would lie over its own.
    x, y = place
    rim = [((x + dx, y + dy), (20, 20, 20)) for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    for where, color in (*rim, (place, (255, 255, 255))):
        cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


class Recording:
    """What is seen, kept: overlay.mp4, hands.jsonl and hand.glb in a folder of its own."""

    def __init__(self, out: Path, frame: Frame, fps: float, predictor: Predictor, codec: Codec = "auto") -> None:
        number = 1
        while (folder := out / f"recording_{number:03d}").exists():
            number += 1
        folder.mkdir(parents=True)
        self.folder = folder
        height, width = frame.image.shape[:2]
        self._intrinsics = Intrinsics.default_for(width, height)
        self._models = both_sides(predictor.engine.hand)
        self._hand = predictor.engine.hand
        header = LogHeader("camera", "", width, height, round(fps, 2), self._intrinsics, predictor.engine.name, {})
        self._log = HandLog(folder / LOG_NAME, header, resume=False)
        self._writer = VideoWriter(folder / OVERLAY_NAME, (width, height), fps, codec)
        self._start: float | None = None

    def write(self, frame: Frame, drawn: Image, hands: Mapping[int, HandPrediction]) -> None:
        if self._start is None:
            self._start = frame.time
        time = frame.time - self._start
        records = [record_of(id, hand, self._models) for id, hand in hands.items()]
        self._log.append(self._log.frame_count, time, records, None)
        self._writer.write(drawn, time)

    def close(self) -> None:
        """Finish the files."""
        self._log.finish()
        self._log.close()
        self._writer.close()
        write_atomically(self.folder / ANIMATION_NAME, encode_animation(read_tracks(self._log.path), self._hand))


@dataclass(frozen=True)
class LiveOptions:
    """How the window starts, and where it writes."""

    out: Path = Path("handmesh_out")
    skeleton: bool = False
    mirror: bool = False
    guide: Box | None = None  # drawn while no hand is followed
    most_frames: int | None = None


def run_window(
    pipeline: LivePipeline,
    predictor: Predictor,
    options: LiveOptions,
    *,
    handedness: Handedness | str = AUTO,
    say: Callable[[str], None],
    show: Callable[[Image], int | None] | None = None,
) -> int:
    """Draw, show and obey keys until q is pressed, the window is closed or the pictures end. The frames shown.

    `show` puts a picture on the screen and returns the pressed key's code: None opens a window, after `check_display`.
    """
    shown = show or _window()
    hud = Hud(predictor.engine.name)
    skeleton, mirror = options.skeleton, options.mirror
    sides = (AUTO, str(Handedness.RIGHT), str(Handedness.LEFT))
    side = parse_side(handedness)
    recording: Recording | None = None
    count = 0
    try:
        while options.most_frames is None or count < options.most_frames:
            looked = pipeline.read()
            if looked is None:
                break
            count += 1
            drawn = draw_hands(looked.frame.image, looked.hands, skeleton=skeleton)
            if recording is not None:
                recording.write(looked.frame, drawn, looked.hands)
            if options.guide is not None and not looked.hands:
                x0, y0, x1, y1 = (round(edge) for edge in options.guide)
                cv2.rectangle(drawn, (x0, y0), (x1, y1), (255, 255, 255), 2, cv2.LINE_AA)
            picture = np.ascontiguousarray(drawn[:, ::-1]) if mirror else drawn
            hud.tick(looked.frame.captured)
            state = _state(side, looked.hands) + ("   recording" if recording else "")
            hud.draw(picture, [state, KEYS])
            key = shown(picture)
            if key is None or key in (ord("q"), 27):
                break
            if key == ord("h"):
                side = sides[(sides.index(side) + 1) % len(sides)]
                pipeline.choose(side)
            elif key == ord("r"):
                pipeline.search_again()
            elif key == ord("m"):
                skeleton = not skeleton
            elif key == ord("f"):
                mirror = not mirror
            elif key == ord("s"):
                say(f"{_screenshot(options.out, picture)}")
            elif key == ord("c") and recording is None:
                fps = min(max(hud.fps, 5.0), 60.0)
                recording = Recording(options.out, looked.frame, fps, predictor)
            elif key == ord("c") and recording is not None:
                recording.close()
                say(f"{recording.folder}/: {OVERLAY_NAME}, {LOG_NAME}, {ANIMATION_NAME}")
                recording = None
    finally:
        if recording is not None:
            recording.close()
            say(f"{recording.folder}/: {OVERLAY_NAME}, {LOG_NAME}, {ANIMATION_NAME}")
        pipeline.close()
        if show is None:
            cv2.destroyAllWindows()
    return count


def _state(side: str, hands: Mapping[int, HandPrediction]) -> str:
    """Which hands are meant, and which are seen."""
    meant = "either hand" if side == AUTO else f"{side} hand"
    seen = " and ".join(dict.fromkeys(str(hand.handedness) for hand in hands.values()))
    if not hands:
        return f"{meant}   searching"
    return f"{meant}: {seen}" if side == AUTO else meant


def _screenshot(out: Path, picture: Image) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := out / f"screenshot_{number:03d}.png").exists():
        number += 1
    write_atomically(path, encode_image(picture, "png"))
    return path


def check_display() -> None:
    """Raise ConfigError when no window can be opened. Qt, which OpenCV uses, would end the process instead."""
    advice = "Without one: --headless, or `handmesh video` for a clip."
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(f"There is no display: neither DISPLAY nor WAYLAND_DISPLAY is set. {advice}")
    # The only safe way to ask is a process that may die.
    probe = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"
    try:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"The display does not answer. {advice}") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise ConfigError(f"No window can be opened on this display ({said or 'it does not say why'}). {advice}")


def _window() -> Callable[[Image], int | None]:
    check_display()
    # Without Qt's buttons, which take the picture's place.
    cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    sized = False

    def show(picture: Image) -> int | None:
        nonlocal sized
        if not sized:
            cv2.resizeWindow(WINDOW, picture.shape[1], picture.shape[0])
            sized = True
        cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1)
        if cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
            return None
        return key & 0xFF if key >= 0 else 0

    return show


@dataclass(frozen=True)
class LiveBenchmark:
    """Milliseconds per frame of each stage, and rates of the loop and of the network alone, measured in turns."""

    frames: int
    followed: int  # frames with a hand
    looks_per_frame: float  # crops through the network; more than one while searching
    stages_ms: dict[str, float]
    loop_fps: float
    engine_fps: float
    # The same by processor time, which other programs do not disturb: the network's thread bounds the loop where each
    # thread has a core.
    thread_ms: float  # per frame, of the network's thread
    engine_ms: float  # per look, of the network alone


# Frames of each turn: the first are not counted, for they were ready when the turn began.
_TURN, _UNCOUNTED = 60, 8


def benchmark(source: FrameSource, live: LiveHands, predictor: Predictor, *, most_frames: int = 600) -> LiveBenchmark:
    """Run the loop without a window over every frame of a clip, in turns with the network alone on one crop.

    Both are timed in the same minute, so that other programs disturb both. Raises HandMeshError for a clip that is too
    short.
    """
    pipeline = LivePipeline(source, live, newest=False)
    hud = Hud(predictor.engine.name)
    seconds = {"draw": 0.0, "text": 0.0}
    frames = followed = timed = 0
    loop = bare = looking = bare_processor = 0.0
    bare_count = 0
    crop: NDArray[np.uint8] | None = None
    ended = False
    try:
        while not ended and frames < most_frames:
            started = None
            for number in range(_TURN):
                looked = pipeline.read()
                if looked is None:
                    ended = True
                    break
                before = clock.perf_counter()
                if number == _UNCOUNTED:
                    started = before
                drawn = draw_hands(looked.frame.image, looked.hands)
                middle = clock.perf_counter()
                hud.tick(looked.frame.captured)
                hud.draw(drawn, ["benchmark", KEYS])
                end = clock.perf_counter()
                seconds["draw"] += middle - before
                seconds["text"] += end - middle
                looking += looked.seconds
                frames += 1
                followed += bool(looked.hands)
                if started is not None and number > _UNCOUNTED:
                    loop += end - started
                    timed += 1
                    started = end
                if crop is None:
                    whole = CropTransform.whole_image(looked.frame.image.shape[1], looked.frame.image.shape[0])
                    crop = whole.warp(looked.frame.image, predictor.engine.resolution)[None]
                    predictor.engine(crop)
            if crop is None or ended:
                break
            clock.sleep(0.25)  # until the threads have filled their queues and rest
            for _ in range(_TURN // 2):
                before, processor = clock.perf_counter(), clock.thread_time()
                predictor.engine(crop)
                bare += clock.perf_counter() - before
                bare_processor += clock.thread_time() - processor
                bare_count += 1
    finally:
        pipeline.close()
    if not timed or not bare_count:
        raise HandMeshError(f"{source.name} is too short to measure: wanted at least {2 * _TURN} frames.")
    stages = {
        "read and decode": 1000 * pipeline.capture.seconds / max(frames, 1),
        "look and follow": 1000 * looking / frames,
        **{name: 1000 * value / frames for name, value in seconds.items()},
    }
    looks = live.tracker.looks / max(pipeline.looked, 1)
    return LiveBenchmark(
        frames=frames,
        followed=followed,
        looks_per_frame=looks,
        stages_ms=stages,
        loop_fps=timed / loop,
        engine_fps=bare_count / bare,
        thread_ms=1000 * pipeline.looking_processor_seconds / max(pipeline.looked, 1),
        engine_ms=1000 * bare_processor / bare_count,
    )


def run_headless(pipeline: LivePipeline, *, most_frames: int | None, seen: Callable[[Looked], None]) -> int:
    """Follow hands without a window; `seen` gets every result. The number of frames."""
    count = 0
    try:
        while (most_frames is None or count < most_frames) and (looked := pipeline.read()) is not None:
            seen(looked)
            count += 1
    finally:
        pipeline.close()
    return count
