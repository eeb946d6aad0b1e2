"""Moving pictures in and out: clips, streams, cameras and folders of photographs; overlay videos.

Frames come as (H, W, 3) uint8 RGB, upright (a phone's turned video is turned back) and with the time at which they are
shown, so that clips of uneven frame rate play, smooth and animate at the right speed.

Videos are written by what is there, best first: ffmpeg with x264, the operating system's H.264 encoder through OpenCV,
VP9 through OpenCV. All three play in browsers. MPEG-4 Part 2 ("mp4v") is the fastest and plays in none: it is for who
asks for it, and for where nothing else opens.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ConfigError, ExportError, ImageError
from handmesh.files.image import MAX_PIXELS, PHOTO_SUFFIXES, photos_in, read_image
from handmesh.system.extras import install_command
from handmesh.system.read_ahead import ReadAhead

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Codec = Literal["auto", "h264", "vp9", "mp4v"]
CODECS: Final[tuple[Codec, ...]] = ("auto", "h264", "vp9", "mp4v")

# A picture is shown for no longer than this: time stamps that jump by an hour would be an hour of overlay.
MAX_GAP_SECONDS: Final = 5.0
_MAX_BAD_FRAMES: Final = 100  # in a row, after which a clip is taken to have ended

_DIGESTED_BYTES = 1_000_000  # at each end of a file
_COMPARED_FRAMES, _MOST_COMPARED = 5, 250  # to tell whether pictures are decoded at all; where they are of one colour
_PROBED_FRAMES = 200  # whose times tell the frame rate


@dataclass(frozen=True, eq=False)
class Frame:
    index: int  # from 0 on
    time: float  # seconds; of a clip from its start, of a camera from its first picture
    image: Image  # (H, W, 3) RGB, upright
    captured: float  # `time.perf_counter()` when it arrived


class FrameSource(Protocol):
    """Pictures in order. `read` returns None at the end; `close` may be called twice."""

    name: str
    live: bool  # a camera or stream: pictures that are not taken are lost
    fps: float  # nominal
    frame_count: int | None  # None: not known
    digest: str  # of the clip's content: another one of the same name has another. Empty where there is no end

    @property
    def remarks(self) -> list[str]:
        """What people should know about the pictures read so far, as sentences."""
        ...

    def read(self) -> Frame | None: ...

    def close(self) -> None: ...


class ClipSource:
    """A video file."""

    live: bool = False
    frame_count: int | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ImageError when there is no file, or no video in it."""
        file = Path(path)
        if not file.is_file():
            raise ImageError(f"No video at {file}.")
        file = file.resolve()  # to FFmpeg a relative name with a colon is an address
        self.name = _printable(Path(path).name)
        self.digest = _digest_of([file])
        self.fps = _steady_fps(file)
        self._capture: Any = _open_clip(file) if _frames_are_decoded(file) else _Deinterlaced(file, self.fps)
        import cv2

        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = int(count) if 0 < count < 1e9 else None
        self._index = 0
        self._time = -1.0
        self._gaps = self._bad = 0
        self._cut_seconds = 0.0

    def read(self) -> Frame | None:
        import cv2

        done, bgr = self._capture.read()
        if not done:
            bad = 1
            while self.frame_count and self._index + self._bad + bad < self.frame_count and bad <= _MAX_BAD_FRAMES:
                done, bgr = self._capture.read()
                if done:
                    break
                bad += 1
            if not done:
                return None
            self._bad += bad
        time = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - self._cut_seconds
        if not time > self._time:  # damaged or missing time stamps
            time = self._time + 1 / self.fps if self._index else 0.0
        elif self._index and time > self._time + MAX_GAP_SECONDS:
            self._gaps += 1
            self._cut_seconds += time - self._time - MAX_GAP_SECONDS
            time = self._time + MAX_GAP_SECONDS
        frame = Frame(self._index, time, _rgb(bgr), clock.perf_counter())
        self._index, self._time = self._index + 1, time
        return frame

    @property
    def remarks(self) -> list[str]:
        said = []
        if self._gaps:
            said.append(
                f"{self.name}: time stamps jumped by more than {MAX_GAP_SECONDS:g} s, {self._gaps} times; "
                f"{self._cut_seconds:.1f} s were cut."
            )
        if self._bad:
            said.append(f"{self.name}: damaged frames that were left out: {self._bad}.")
        return said

    def close(self) -> None:
        self._capture.release()


class FolderSource:
    """The photographs of a folder in the order of their names, as if taken at an even rate."""

    live: bool = False
    frame_count: int | None

    def __init__(self, path: str | os.PathLike[str], fps: float = 30.0) -> None:
        """Raises ImageError when there are no photographs, ConfigError for a rate that is none."""
        if not 0 < fps < math.inf:
            raise ConfigError(f"A folder of photographs at fps={fps:g}: wanted a rate above 0 in frames/s.")
        folder = Path(path)
        self._files, self._left_out = photos_in(folder)
        if not self._files:
            raise ImageError(f"No images in {folder}: wanted files that end in {', '.join(PHOTO_SUFFIXES)}.")
        self.name, self.fps = _printable(Path(os.path.abspath(folder)).name), fps  # of "." and "..", too
        self.frame_count = len(self._files)
        self.digest = _digest_of(self._files)
        self._next = self._index = 0
        self._bad: list[ImageError] = []

    def read(self) -> Frame | None:
        """Raises ImageError when not one of the photographs can be read."""
        while self._next < len(self._files):
            place, self._next = self._next, self._next + 1
            try:
                image = read_image(self._files[place])
            except ImageError as error:
                self._bad.append(error)
                continue
            frame = Frame(self._index, place / self.fps, image, clock.perf_counter())
            self._index += 1
            return frame
        if not self._index:
            raise self._bad[0]
        return None

    @property
    def remarks(self) -> list[str]:
        said = [f"{self.name}: {self._left_out}"] if self._left_out else []
        if self._bad:
            said.append(f"{self.name}: images that were left out: {len(self._bad)}, the first because: {self._bad[0]}")
        return said

    def close(self) -> None:
        pass


class CameraSource:
    """A camera by its number, or a network stream by its address."""

    live: bool = True
    frame_count: int | None = None
    digest: str = ""

    def __init__(self, source: int | str, size: tuple[int, int] | None = None) -> None:
        """`size`: width and height to ask the camera for. Raises ImageError, which says what may be wrong."""
        import cv2

        self.name = f"camera {source}" if isinstance(source, int) else source
        if isinstance(source, int):
            _check_camera(source)
        with _quiet_opencv():
            self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise ImageError(_camera_help(source))
        if isinstance(source, int):
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if size is not None:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 1 <= fps <= 240 else 30.0
        self._index = 0
        self._start = 0.0

    def read(self) -> Frame | None:
        done, bgr = self._capture.read()
        now = clock.perf_counter()
        if not done:
            if self._index == 0:
                raise ImageError(f"{self.name} opened, but sends no pictures. Is another program using it?")
            return None
        if self._index == 0:
            self._start = now
        frame = Frame(self._index, now - self._start, _rgb(bgr), now)
        self._index += 1
        return frame

    @property
    def remarks(self) -> list[str]:
        return []

    def close(self) -> None:
        self._capture.release()


def _digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of names, sizes, and the first and last megabyte of each: large clips are not read in full for it.

    A video's tables of frames lie at one of its ends, so another one of the same size differs there.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(os.fsencode(path.name) + f"\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_DIGESTED_BYTES))
            file.seek(max(0, size - _DIGESTED_BYTES))
            digest.update(file.read(_DIGESTED_BYTES))
    return digest.hexdigest()


def open_source(source: str, fps: float = 30.0) -> FrameSource:
    """A camera's number, a stream's address (rtsp://, http://), a video file or a folder of photographs.

    `fps` is for folders. Raises ImageError, and ConfigError for a rate that is none.
    """
    if source.isdecimal():
        return CameraSource(int(source))
    if "://" in source:
        return CameraSource(source)
    return FolderSource(source, fps) if Path(source).is_dir() else ClipSource(source)


class Capture:
    """Reads a source in a thread of its own.

    From a live source, or with `newest`, `read` gives the newest frame and those before it are dropped: what is shown
    is never older than it must be. Otherwise every frame comes, a few are read ahead.
    """

    def __init__(self, source: FrameSource, *, newest: bool | None = None, paced: bool = False) -> None:
        """`paced`: a clip's frames come when it would show them, as from a camera."""
        self._source = source
        self._paced = paced and not source.live
        self._start = clock.perf_counter()
        self.seconds = 0.0  # spent reading and decoding
        keeps_all = not (source.live if newest is None else newest)
        self._frames = ReadAhead(self._take, "capture", max_items=4 if keeps_all else None)

    @property
    def dropped(self) -> int:
        return self._frames.dropped

    def read(self, timeout: float | None = None) -> Frame | None:
        """The next frame; None at the end. Raises what the source raised, TimeoutError when nothing came in time."""
        try:
            return self._frames.read(timeout)
        except TimeoutError:
            raise TimeoutError(f"{self._source.name} sent no picture for {timeout:g} s.") from None

    def close(self) -> None:
        if self._frames.stop(timeout=2.0):
            self._source.close()

    def _take(self) -> Frame | None:
        before = clock.perf_counter()
        frame = self._source.read()
        self.seconds += clock.perf_counter() - before
        if frame is not None and self._paced and (early := frame.time - (clock.perf_counter() - self._start)) > 0:
            clock.sleep(early)
            return Frame(frame.index, frame.time, frame.image, clock.perf_counter())
        return frame


class VideoWriter:
    """An overlay video in the making; the file has its name only when it is whole.

    Encoders here know one even frame rate, so a frame is shown from the tick nearest to its time until the next one.
    """

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int], fps: float, codec: Codec = "auto") -> None:
        """`size` (width, height) of the frames. Raises ExportError when no encoder works."""
        self.path = Path(path)
        self.size, self.fps = size, fps
        # Always the same: what a killed run left is overwritten by the next.
        self._temporary = self.path.with_name(f".{self.path.stem[:64]}.part{self.path.suffix}")
        self._encoder, self.codec = _open_encoder(self._temporary, size, fps, codec)
        self._waiting: Image | None = None
        self._start: float | None = None
        self._ticks = 0

    def write(self, image: Image, time: float) -> None:
        """A frame at `time` seconds; times grow. Raises ExportError when the encoder fails."""
        if image.shape[:2] != self.size[::-1]:
            raise ExportError(
                f"A frame of {image.shape[1]} x {image.shape[0]} in a video of {self.size[0]} x {self.size[1]}: the "
                "clip changes its size midway."
            )
        if self._start is None:
            self._start = time
        self._emit_until(round((time - self._start) * self.fps))
        self._waiting = image

    def _emit_until(self, tick: int) -> None:
        while self._waiting is not None and self._ticks < tick:
            self._encoder.write(self._waiting)
            self._ticks += 1

    def close(self) -> None:
        """The last frame, and the file takes its name."""
        if self._waiting is not None:
            self._emit_until(self._ticks + 1)
        self._encoder.close()
        if not self._temporary.is_file() or not self._temporary.stat().st_size:
            raise ExportError(f"The encoder wrote nothing for {self.path}. Is the disk full?")
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Leave no trace."""
        with suppress(ExportError):
            self._encoder.close()
        self._temporary.unlink(missing_ok=True)


class _Encoder(Protocol):
    def write(self, image: Image) -> None: ...

    def close(self) -> None: ...


class _OpenCvEncoder:
    def __init__(self, path: Path, size: tuple[int, int], fps: float, fourcc: str) -> None:
        import cv2

        with _quiet_opencv():  # absolute: in a relative name FFmpeg takes what stands before a colon for a protocol
            self._writer = cv2.VideoWriter(str(path.absolute()), cv2.VideoWriter.fourcc(*fourcc), fps, size)
        if not self._writer.isOpened():
            path.unlink(missing_ok=True)
            raise ExportError(f"OpenCV has no encoder for {fourcc} that takes pictures of {size[0]} x {size[1]} here.")

    def write(self, image: Image) -> None:
        import cv2

        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


class _FfmpegEncoder:
    """H.264 through ffmpeg."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float, program: str) -> None:
        command = [
            *(program, "-hide_banner", "-loglevel", "error", "-y"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6f}", "-i", "-"),
            # Players want 4:2:0, which wants even sides; an odd one gets a black row.
            *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-preset", "veryfast", "-crf", "21"),
            *("-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path.resolve())),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def write(self, image: Image) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(image).data)
        except OSError:
            self._fail()

    def close(self) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stderr is not None
        if process.returncode is not None:
            return
        try:
            process.stdin.close()
        except OSError:
            self._fail()
        said = process.stderr.read()
        process.stderr.close()
        if process.wait():
            raise ExportError(f"ffmpeg failed: {said.decode(errors='replace').strip()[-300:]}")

    def _fail(self) -> None:
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip()
        self._process.stderr.close()
        self._process.wait()
        raise ExportError(f"ffmpeg stopped: {said[-300:] or 'it does not say why'}")


def _open_encoder(path: Path, size: tuple[int, int], fps: float, codec: Codec) -> tuple[_Encoder, str]:
    """An encoder, and what it is for people."""
    if codec not in CODECS:
        raise ConfigError(f"Codec {codec!r}: wanted one of {', '.join(CODECS)}.")
    if codec in ("auto", "h264"):
        program = _ffmpeg()
        if program is not None and _ffmpeg_has_x264(program):
            return _FfmpegEncoder(path, size, fps, program), "H.264 (ffmpeg's x264)"
        if sys.platform in ("darwin", "win32"):  # elsewhere OpenCV only asks for hardware, noisily
            try:
                return _OpenCvEncoder(path, size, fps, "avc1"), "H.264 (of the operating system)"
            except ExportError:
                logger.info("the operating system's H.264 encoder does not open")
        if codec == "h264":
            raise ExportError(
                f"No H.264 encoder here. Install ffmpeg ({install_command('ffmpeg')}), or choose the codec vp9 or mp4v."
            )
    if codec in ("auto", "vp9"):
        try:
            faster = f"install ffmpeg for a faster one: {install_command('ffmpeg')}"
            return _OpenCvEncoder(path, size, fps, "vp09"), f"VP9 (OpenCV's; {faster})"
        except ExportError:
            if codec == "vp9":
                raise
    return _OpenCvEncoder(path, size, fps, "mp4v"), "MPEG-4 Part 2 (OpenCV's; does not play in browsers)"


def _ffmpeg() -> str | None:
    """The `ffmpeg` on the path, or that of imageio-ffmpeg, of the `ffmpeg` extra."""
    if (program := shutil.which("ffmpeg")) is not None:
        return program
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # the latter: not for this system
        return None


@functools.cache
def _ffmpeg_has_x264(program: str) -> bool:
    try:
        listed = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"libx264 " in listed.stdout


def _open_clip(file: Path, parameters: Sequence[int] = ()) -> Any:
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: it prints a line for each damaged picture

    with _quiet_opencv(), tempfile.TemporaryDirectory() as folder:
        name = file
        if _printable(str(file)) != str(file):  # OpenCV takes UTF-8 alone; what is open may lose its name
            name = Path(folder) / f"clip{_printable(file.suffix)}"
            name.symlink_to(file)
        for backend in (cv2.CAP_FFMPEG, cv2.CAP_ANY):
            capture = cv2.VideoCapture(str(name), backend, list(parameters))
            if capture.isOpened():
                return capture
    raise ImageError(f"{_printable(str(file))} cannot be read as a video.")


class _Deinterlaced:
    """A clip's pictures by ffmpeg, made whole and evenly spaced; to `ClipSource` as OpenCV's capture.

    They come as PPM files one after the other, each with its size: raw pictures would not say how a turned clip lies.
    """

    def __init__(self, file: Path, fps: float) -> None:
        """Raises ImageError where there is no ffmpeg, or it makes no picture of the clip."""
        program = _ffmpeg()
        name = _printable(str(file))
        if program is None:
            raise ImageError(
                f"{name}: its pictures cannot be decoded here, most likely because they are interlaced. Install "
                f'ffmpeg, which will be used then, or make them whole: ffmpeg -i "{_printable(file.name)}" -vf bwdif '
                "out.mp4"
            )
        command: list[str | Path] = [
            *(program, "-nostdin", "-hide_banner", "-loglevel", "error"),
            *("-protocol_whitelist", "file,pipe", "-i", file),  # a playlist in disguise opens nothing else
            *("-an", "-sn", "-dn", "-vf", "bwdif=mode=send_frame,setpts=N/FRAME_RATE/TB"),
            *("-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"),
        ]
        self._name, self._fps, self._count = name, fps, 0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, closed in `release`; a pipe that nobody reads would block
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said, bufsize=1 << 20
        )
        try:
            self._next = self._picture()
            if self._next is None:
                raise ImageError(f"{name}: ffmpeg cannot decode it: {self._words()}")
        except ImageError:
            self.release()
            raise

    def read(self) -> tuple[bool, Image | None]:
        """(whether there is one, the next picture in BGR)."""
        picture = self._next
        if picture is None:
            return False, None
        self._count += 1
        self._next = self._picture()
        if self._next is None and self._process.wait():
            logger.warning("%s: ffmpeg stopped after %d pictures: %s", self._name, self._count, self._words())
        return True, np.ascontiguousarray(picture[..., ::-1])

    def get(self, what: int) -> float:
        """Of OpenCV's properties: when the last picture is shown, ms. How many there are is not known: 0."""
        import cv2

        return 1000 * (self._count - 1) / self._fps if what == cv2.CAP_PROP_POS_MSEC else 0.0

    def release(self) -> None:
        self._process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()
        self._said.close()

    def _picture(self) -> Image | None:
        """None at the end. Raises ImageError for one that is larger than a photograph may be."""
        assert self._process.stdout is not None
        head = b"".join(self._process.stdout.readline(32) for _ in range(3)).split()  # P6, width and height, 255
        if len(head) != 4 or head[0] != b"P6" or not (head[1] + head[2]).isdigit():
            return None
        width, height = int(head[1]), int(head[2])
        if width * height > MAX_PIXELS:
            raise ImageError(f"{self._name} has pictures of {width} x {height}; the limit is {MAX_PIXELS:,} pixels.")
        pixels = self._process.stdout.read(3 * width * height)
        whole = 0 < len(pixels) == 3 * width * height
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if whole else None

    def _words(self) -> str:
        self._said.seek(0)
        return self._said.read(10_000).decode(errors="replace").strip()[-300:] or "it does not say why"


def _frames_are_decoded(file: Path) -> bool:
    """Some builds of FFmpeg do not convert interlaced pictures, and OpenCV then hands out memory nobody wrote to.

    Told by pictures that are equal to the last bit though their encoded data say that much changes. So they do where
    nothing moves and each picture is encoded by itself. But a picture is the same when it is decoded anew, which memory
    that nobody wrote to is not, unless it is all zeros: then it is waited for one that differs.
    """
    import cv2

    capture, packets = _open_clip(file), _open_clip(file, [cv2.CAP_PROP_FORMAT, -1])  # packets: as they are in the file
    try:
        (done, first), (there, key) = capture.read(), packets.read()
        sizes: list[int] = []
        while len(sizes) < _MOST_COMPARED:
            done, image = capture.read()
            there, packet = packets.read()
            if not (done and there):
                return len(sizes) < _COMPARED_FRAMES
            if not np.array_equal(image, first) or np.array_equal(packet, key):
                return True
            sizes.append(packet.size)
            # Where nothing moves, an encoded picture says "as before" for each block of 16 x 16, in a few dozen bytes.
            if len(sizes) == _COMPARED_FRAMES and max(sizes) <= max(100, first.shape[0] * first.shape[1] / 1000):
                return True
            if len(sizes) == _COMPARED_FRAMES and first.min() < first.max():
                return _is_decoded_anew(file, first)
    finally:
        capture.release()
        packets.release()
    return False


def _is_decoded_anew(file: Path, first: Image) -> bool:
    """Whether a clip, opened once more, begins with the same picture; the capture that gave it is still open."""
    # Memory that nobody writes to may hold another copy of the picture: what the allocator will give is filled first.
    filled = [np.full(first.size, value, np.uint8) for value in range(8)]
    del filled
    capture = _open_clip(file)
    try:
        done, image = capture.read()
        return bool(done) and np.array_equal(image, first)
    finally:
        capture.release()


def _printable(text: str) -> str:
    """File names need not be UTF-8: their other bytes as escapes, for people and for what takes UTF-8 alone."""
    return text.encode("utf-8", "backslashreplace").decode()


def _steady_fps(file: Path) -> float:
    """The frame rate an even copy needs: the usual one, or that of the fast parts of an uneven clip, at most 60."""
    import cv2

    capture = _open_clip(file)
    nominal = capture.get(cv2.CAP_PROP_FPS)
    times: list[float] = []
    while len(times) < _PROBED_FRAMES and capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    if not times:
        raise ImageError(f"{file} has no pictures that can be decoded.")
    steps = np.diff(times)
    steps = steps[steps > 1e-4]
    if not 1 <= nominal <= 240:
        nominal = 1 / float(np.median(steps)) if len(steps) else 30.0
    fast = 1 / float(np.percentile(steps, 20)) if len(steps) else nominal
    if fast > 1.1 * nominal:  # uneven
        return min(60.0, fast)
    return float(nominal)


def _rgb(bgr: NDArray[Any]) -> Image:
    import cv2

    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV prints its own guesses when something does not open; our errors say what to do instead."""
    import cv2

    levels: Any = cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2  # OpenCV 5 moved them, 4 has them on top
    before = levels.getLogLevel()
    levels.setLogLevel(0)
    try:
        yield
    finally:
        levels.setLogLevel(before)


def _check_camera(number: int) -> None:
    """On Linux cameras are files, which say more than OpenCV does. Raises ImageError."""
    if not sys.platform.startswith("linux"):
        return
    device = Path(f"/dev/video{number}")
    if not device.exists():
        there = sorted(str(path) for path in Path("/dev").glob("video*"))
        raise ImageError(
            f"No camera {number}: there is no {device}. "
            + (f"There are {', '.join(there)}." if there else "This machine has no camera that Linux knows of.")
            + " A clip can stand in: --source clip.mp4."
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise ImageError(f"No permission for {device}. Add yourself to its group: sudo usermod -aG video $USER")


def _camera_help(source: int | str) -> str:
    if isinstance(source, str):
        return f"{source} does not open as a stream. Is the address right, and does it answer?"
    hint = "Is it plugged in, and does no other program use it?"
    if sys.platform == "darwin":
        hint = "Allow it under System Settings, Privacy & Security, Camera, for the terminal you use."
    if sys.platform == "win32":
        hint = "Allow it under Settings, Privacy, Camera; and close other programs that use it."
    return f"Camera {source} does not open. {hint}"
