"""The desktop window of the live loop: hands drawn over the camera's picture, keys, screenshots and recordings."""

from __future__ import annotations

import os
import subprocess
import sys
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from handmesh.detect import Box
from handmesh.errors import ConfigError
from handmesh.files.animation import encode_animation
from handmesh.files.image import encode_image
from handmesh.files.video import Codec, Frame, Image, VideoWriter
from handmesh.geometry.camera import Intrinsics
from handmesh.hand import Handedness, both_sides
from handmesh.motion.clip import ANIMATION_NAME, LOG_NAME, OVERLAY_NAME
from handmesh.motion.live import LivePipeline
from handmesh.motion.log import HandLog, LogHeader, read_tracks, record_of
from handmesh.predict import AUTO, HandPrediction, Predictor, overlay_hands, parse_handedness
from handmesh.system.atomic import write_atomically

WINDOW = "handmesh"
KEYS = "[h] which hand   [m] mesh/bones   [f] mirror   [c] record   [s] screenshot   [r] search again   [q] quit"

_MIN_TEXT_SCALE = 0.45  # of OpenCV's font, that can still be read


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
        scale = max(_MIN_TEXT_SCALE, min(image.shape[1] / 1280, 1.0) * 0.8)
        step = round(42 * scale + 4)
        margin = round(15 * scale)
        shown = [part for line in (first, *lines) for part in _wrapped(line, image.shape[1] - 2 * margin, scale)]
        for number, text in enumerate(shown):
            _write(image, text, (margin, round(step * (number + 0.9))), scale)


def with_ids(drawn: Image, hands: Mapping[int, HandPrediction], *, mirror: bool = False) -> Image:
    """A copy of a picture, mirrored or as it is, with the ids of its hands when there are several."""
    picture = np.array(drawn[:, ::-1] if mirror else drawn)
    if len(hands) > 1:
        for id, hand in hands.items():
            x0, y0, x1, _ = hand.box
            left = picture.shape[1] - 1 - x1 if mirror else x0
            _write(picture, f"{id} {hand.handedness}", (round(left), round(y0) - 6), 0.5)
    return picture


def _wrapped(text: str, width: int, scale: float) -> list[str]:
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
    max_frames: int | None = None


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
    side = parse_handedness(handedness)
    recording: Recording | None = None
    count = 0
    try:
        while options.max_frames is None or count < options.max_frames:
            result = pipeline.read()
            if result is None:
                break
            count += 1
            drawn = overlay_hands(result.frame.image, result.hands.values(), skeleton=skeleton)
            if recording is not None:
                recording.write(result.frame, with_ids(drawn, result.hands), result.hands)
            if options.guide is not None and not result.hands:
                x0, y0, x1, y1 = (round(edge) for edge in options.guide)
                cv2.rectangle(drawn, (x0, y0), (x1, y1), (255, 255, 255), 2, cv2.LINE_AA)
            picture = with_ids(drawn, result.hands, mirror=mirror)
            hud.tick(result.frame.captured)
            state = _state(side, result.hands) + ("   recording" if recording else "")
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
                recording = Recording(options.out, result.frame, fps, predictor)
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
        said = next((line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()), "").strip()
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
