"""Moving pictures: the right picture at the right time, the right way up, and nothing lost or half written."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from handmesh.errors import ConfigError, ExportError, ImageError
from handmesh.files import video
from handmesh.files.image import encode_image
from handmesh.files.video import Capture, ClipSource, FolderSource, VideoWriter, open_source
from handmesh.system.atomic import write_atomically

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg on the path to make the clip")


def level(index):
    """The grey of a frame, by which it is known again after compression."""
    return 20 + 8 * index


def number(image):
    """The frame's number, from its grey."""
    return round((float(image.mean()) - 20) / 8)


def frames(count, size=(64, 48)):
    return [np.full((size[1], size[0], 3), level(index), np.uint8) for index in range(count)]


def write(path, count=12, fps=10.0, codec="mp4v"):
    writer = VideoWriter(path, (64, 48), fps, codec)
    for index, image in enumerate(frames(count)):
        writer.write(image, index / fps)
    writer.close()
    return path


def read_all(source):
    return list(iter(source.read, None))


def test_a_clip_is_read_in_order_with_its_times(tmp_path):
    source = open_source(str(write(tmp_path / "clip.mp4")))
    assert (source.frame_count, source.live) == (12, False)
    assert source.fps == pytest.approx(10)
    found = read_all(source)
    assert [number(frame.image) for frame in found] == list(range(12))
    np.testing.assert_allclose([frame.time for frame in found], np.arange(12) / 10, atol=1e-3)


@needs_ffmpeg
def test_uneven_rates_keep_their_times(tmp_path):
    """Ten frames at 20 Hz, then ten at 5 Hz: times, not numbers, say when a frame is shown."""
    even, uneven = write(tmp_path / "even.mp4", 20, 20.0), tmp_path / "uneven.mp4"
    slow = "setpts='if(lt(N,10),N/20,0.5+(N-10)/5)/TB'"
    command = ["ffmpeg", "-v", "error", "-i", even, "-vf", slow, "-c:v", "mpeg4", "-q:v", "2", uneven]
    subprocess.run(command, check=True)
    source = ClipSource(uneven)
    wanted = [index / 20 if index < 10 else 0.5 + (index - 10) / 5 for index in range(20)]
    np.testing.assert_allclose([frame.time for frame in read_all(source)], wanted, atol=2e-3)
    assert source.fps == pytest.approx(20, rel=0.02), "an even copy needs the rate of the fast part"


def turn_quarter(path):
    """Say in the track header that the picture is to be shown turned clockwise, as phones do (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = np.array(
        [0, 0x10000, 0, -0x10000, 0, 0, 64 * 0x10000, 0, 0x40000000], ">i4"
    ).tobytes()
    path.write_bytes(content)


def test_a_phone_held_upright_is_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255  # the stored corner at the left top is shown at the right top
    writer = VideoWriter(path, (64, 48), 10.0, "mp4v")
    for index in range(3):
        writer.write(image, index / 10)
    writer.close()
    turn_quarter(path)
    frame = ClipSource(path).read()
    assert frame.image.shape == (64, 48, 3)
    assert frame.image[4:10, -10:-4].mean() > 200
    assert frame.image[4:10, 4:10].mean() < 50


def test_frames_are_shown_when_they_were(tmp_path):
    """Encoders know one even rate: a late frame leaves the one before standing."""
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, (64, 48), 10.0, "mp4v")
    for image, when in zip(frames(4), (2.0, 2.1, 2.42, 2.5), strict=True):
        writer.write(image, when)
    writer.close()
    assert [number(frame.image) for frame in read_all(ClipSource(path))] == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("codec", ["auto", "mp4v"])
def test_a_video_has_its_name_only_when_it_is_whole(tmp_path, codec):
    writer = VideoWriter(tmp_path / "clip.mp4", (64, 48), 10.0, codec)
    writer.write(frames(1)[0], 0.0)
    assert not (tmp_path / "clip.mp4").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "clip.mp4", codec=codec)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert [number(frame.image) for frame in read_all(ClipSource(tmp_path / "clip.mp4"))] == list(range(12))


def test_odd_sides_are_fine(tmp_path):
    writer = VideoWriter(tmp_path / "odd.mp4", (63, 47), 10.0)
    for image in frames(3, (63, 47)):
        writer.write(image, 0.1 * number(image))
    writer.close()
    assert len(read_all(ClipSource(tmp_path / "odd.mp4"))) == 3


def test_a_folder_is_a_clip(tmp_path):
    for index, image in enumerate(frames(3)):
        write_atomically(tmp_path / f"{index:03d}.png", encode_image(image))
    (tmp_path / "notes.txt").write_text("no photograph")
    source = open_source(str(tmp_path), fps=5.0)
    assert [(number(f.image), f.time) for f in read_all(source)] == [(0, 0.0), (1, 0.2), (2, 0.4)]


def test_from_a_live_source_comes_the_newest(tmp_path):
    for index, image in enumerate(frames(9)):
        write_atomically(tmp_path / f"{index:03d}.png", encode_image(image))
    source = FolderSource(tmp_path, fps=20.0)
    capture = Capture(source, newest=True, paced=True)
    first = capture.read()
    capture._frames._thread.join(timeout=20)  # all frames have passed by now
    assert first.index < 8  # 0, where nobody else uses the processor
    assert capture.read().index == 8
    assert capture.dropped == 7
    assert capture.read() is None
    capture.close()


def test_from_a_clip_comes_every_frame_and_no_thread_stays(tmp_path):
    for index, image in enumerate(frames(9)):
        write_atomically(tmp_path / f"{index:03d}.png", encode_image(image))
    capture = Capture(FolderSource(tmp_path))
    assert [frame.index for frame in iter(capture.read, None)] == list(range(9))
    capture = Capture(FolderSource(tmp_path))
    capture.close()
    assert not capture._frames._thread.is_alive()


def test_what_breaks_in_the_thread_is_told_to_the_reader(tmp_path):
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    capture = Capture(FolderSource(tmp_path))
    with pytest.raises(ImageError, match="damaged"):
        capture.read(timeout=20)


def test_a_source_that_hangs_is_not_waited_for_without_end():
    class Hanging:
        name, live, fps, frame_count, digest = "hanging", True, 30.0, None, ""

        def read(self):
            time.sleep(0.5)

        def close(self):
            pass

    with pytest.raises(TimeoutError, match="hanging sent no picture"):
        Capture(Hanging()).read(timeout=0.05)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match="No video at"):
        open_source(str(tmp_path / "missing.mp4"))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageError, match="cannot be read as a video"):
        open_source(str(tmp_path / "text.mp4"))
    with pytest.raises(ImageError, match="No images in"):
        open_source(str(tmp_path / "empty") if (tmp_path / "empty").mkdir() is None else "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cameras are files on Linux only")
def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(ImageError, match="there is no /dev/video87"):
        open_source("87")


def test_codecs_and_sizes_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="wanted one of auto, h264"):
        VideoWriter(tmp_path / "a.mp4", (64, 48), 10.0, "divx")
    writer = VideoWriter(tmp_path / "a.mp4", (64, 48), 10.0, "mp4v")
    with pytest.raises(ExportError, match="changes its size"):
        writer.write(np.zeros((10, 10, 3), np.uint8), 0.0)
    writer.discard()


def test_opencv_is_as_talkative_as_before():
    levels = cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2  # OpenCV 5, OpenCV 4
    before = levels.getLogLevel()
    with pytest.raises(ImageError):
        open_source("rtsp://127.0.0.1:1/nothing")
    assert levels.getLogLevel() == before


def test_a_colon_in_a_name_is_no_address(tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon in a relative name for a protocol."""
    monkeypatch.chdir(tmp_path)
    Path("take:1").mkdir()
    writer = VideoWriter(Path("take:1/10:30.mp4"), (64, 48), 10.0)
    writer.write(np.full((48, 64, 3), 90, np.uint8), 0.0)
    writer.close()
    frame = ClipSource(Path("take:1/10:30.mp4")).read()
    assert frame is not None
    assert frame.image.shape == (48, 64, 3)


# Clips and folders that people have


class OneBuffer:
    """What OpenCV gives for an interlaced clip where FFmpeg does not convert it: one buffer, whatever the packets."""

    def __init__(self, buffer, packets):
        self.buffer, self.packets = buffer, packets

    def read(self):
        if self.packets is None:
            return True, self.buffer.copy()
        return (True, np.zeros((1, self.packets.pop(0)), np.uint8)) if self.packets else (False, None)

    def release(self):
        pass


MUCH_CHANGES, NOTHING_CHANGES = [9000, 900, 700, 30, 500, 800], [9000, 36, 30, 32, 31, 30]


@pytest.mark.parametrize(
    ("sizes", "memory", "decoded"),
    [
        pytest.param(MUCH_CHANGES, "other", False, id="interlaced"),
        pytest.param(MUCH_CHANGES, "zeros", False, id="interlaced, in memory that was never used"),
        pytest.param(MUCH_CHANGES, "same", True, id="still, of keyframes"),
        pytest.param(NOTHING_CHANGES, "zeros", True, id="still"),
    ],
)
def test_pictures_that_nobody_decoded_are_found(sizes, memory, decoded, monkeypatch, tmp_path):
    """An interlaced clip became a video of the process's own memory, exit code 0: "15 frames, a hand in 0".

    A clip of keyframes in which nothing moved was taken for one.
    """
    rng = np.random.default_rng(0)
    written = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)

    def opened(_, parameters=()):
        buffer = {"other": rng.permutation(written), "zeros": np.zeros_like(written), "same": written}[memory]
        return OneBuffer(buffer, list(sizes) if parameters else None)

    monkeypatch.setattr(video, "_open_clip", opened)
    assert video._frames_are_decoded(tmp_path / "clip.mts") == decoded


@pytest.fixture
def undecoded_clip(monkeypatch, tmp_path) -> Path:
    """A clip at 10 pictures a second, which OpenCV is said not to decode."""
    monkeypatch.setattr(video, "_frames_are_decoded", lambda _: False)
    return write(tmp_path / "clip.mp4", 4)


def ffmpeg_that(does: str, monkeypatch, folder: Path) -> None:
    """A stand-in on the path: `does`, in Python, with `picture(width, height, red)` to write one."""
    program = folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "def picture(width, height, red):\n"
        "    sys.stdout.buffer.write(b'P6\\n%d %d\\n255\\n' % (width, height) + bytes([red, 0, 9]) * width * height)\n"
        f"{does}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_without_ffmpeg_they_are_refused_with_what_mends_them(undecoded_clip, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImageError, match=r'interlaced. Install ffmpeg.*ffmpeg -i "clip.mp4" -vf bwdif out.mp4'):
        ClipSource(undecoded_clip)


@pytest.mark.parametrize("on_the_path", [True, False])
def test_the_extra_brings_an_ffmpeg_where_none_is_on_the_path(on_the_path, undecoded_clip, monkeypatch, tmp_path):
    ffmpeg_that("picture(300, 200, 1)", monkeypatch, tmp_path)
    brought = tmp_path / "ffmpeg-of-the-extra"
    brought.write_text((tmp_path / "bin" / "ffmpeg").read_text().replace("200, 1)", "200, 2)"))
    brought.chmod(0o755)
    extra = types.SimpleNamespace(get_ffmpeg_exe=lambda: str(brought))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", extra)
    if not on_the_path:
        monkeypatch.setenv("PATH", str(tmp_path))
    with contextlib.closing(ClipSource(undecoded_clip)) as source:
        assert source.read().image[0, 0, 0] == (1 if on_the_path else 2)


def test_with_ffmpeg_its_pictures_are_read_evenly_spaced(undecoded_clip, monkeypatch, tmp_path):
    """More of them than a pipe holds, and what it says on the way does not stop it."""
    does = "for red in range(40, 60): picture(300, 200, red); print('a remark ' * 1000, file=sys.stderr)"
    ffmpeg_that(does, monkeypatch, tmp_path)
    with contextlib.closing(ClipSource(undecoded_clip)) as source:
        read = read_all(source)
    assert [frame.image[100, 100].tolist() for frame in read] == [[red, 0, 9] for red in range(40, 60)]
    assert all(frame.image.shape == (200, 300, 3) for frame in read)
    np.testing.assert_allclose([frame.time for frame in read], np.arange(20) / source.fps)
    source.close()


def test_a_clip_that_is_left_early_leaves_no_process(undecoded_clip, monkeypatch, tmp_path):
    ffmpeg_that("while True: picture(300, 200, 1)", monkeypatch, tmp_path)
    source = ClipSource(undecoded_clip)
    assert source.read() is not None
    source.close()
    assert source._capture._process.poll() is not None


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("sys.exit('moov atom not found')", "clip.mp4: ffmpeg cannot decode it: moov atom not found"),
        ("sys.exit(1)", "it does not say why"),
        ("print('Hello')", "ffmpeg cannot decode it"),
        ("picture(0, 0, 1)", "ffmpeg cannot decode it"),
        ("sys.stdout.write('P6\\n-3 2\\n255\\n')", "ffmpeg cannot decode it"),
        ("sys.stdout.write('P6\\n100000 100000\\n255\\n')", "100000 x 100000; the limit is 64,000,000 pixels"),
    ],
)
def test_what_ffmpeg_makes_nothing_of_is_refused(does, message, undecoded_clip, monkeypatch, tmp_path):
    ffmpeg_that(does, monkeypatch, tmp_path)
    with pytest.raises(ImageError, match=message):
        ClipSource(undecoded_clip)


def test_a_clip_that_ffmpeg_breaks_off_is_read_so_far_and_that_is_said(undecoded_clip, monkeypatch, tmp_path, caplog):
    ffmpeg_that("picture(30, 20, 1); picture(30, 20, 2); sys.exit('no space')", monkeypatch, tmp_path)
    with contextlib.closing(ClipSource(undecoded_clip)) as source:
        assert len(read_all(source)) == 2
    assert "ffmpeg stopped after 2 pictures: no space" in caplog.text


@needs_ffmpeg
def test_an_interlaced_clip_is_read_whole(tmp_path):
    """A square that jumps sideways in every field: half pictures laid in each other would show a comb of both."""
    clip = tmp_path / "interlaced.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=50:duration=1", "-vf", "tinterlace=4,fieldorder=tff"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-c:v", "libx264", "-flags", "+ilme+ildct", clip], check=True)
    with contextlib.closing(ClipSource(clip)) as opened:
        read = read_all(opened)
    assert len(read) == 25
    assert min(frame.image.std() for frame in read) > 30


def test_a_clip_in_which_nothing_moves_is_read(tmp_path):
    still = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    writer = VideoWriter(tmp_path / "still.mp4", (640, 480), 25.0, "mp4v")
    for index in range(9):
        writer.write(still, index / 25)
    writer.close()
    assert ClipSource(tmp_path / "still.mp4").read() is not None


def test_a_clip_that_begins_still_is_read(tmp_path):
    """Of a codec that encodes each picture by itself it was refused as interlaced."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)
    writer = cv2.VideoWriter(str(tmp_path / "still.mkv"), cv2.VideoWriter.fourcc(*"FFV1"), 25.0, (160, 120))
    if not writer.isOpened():
        pytest.skip("this OpenCV does not write FFV1")
    for index in range(14):
        writer.write(noise[index // 12])
    writer.release()
    with contextlib.closing(ClipSource(tmp_path / "still.mkv")) as source:
        read = read_all(source)
    assert len(read) == 14
    assert all(np.array_equal(frame.image[..., ::-1], noise[frame.index // 12]) for frame in read)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not UTF-8")
def test_a_clip_with_a_latin_1_name_is_read(tmp_path):
    """It ended in a UnicodeEncodeError."""
    plain = write(tmp_path / "clip.mp4")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/h\xe4nde.mp4"))
    plain.rename(odd)
    source = ClipSource(odd)
    assert number(source.read().image) == 0
    assert source.name == "h\\udce4nde.mp4"


def test_photographs_of_a_folder_come_in_natural_order(tmp_path):
    """fr_1, fr_10, fr_11, ..., fr_2; and what else is there is said, in one line."""
    for index in range(12):
        write_atomically(tmp_path / f"fr_{index}.png", encode_image(frames(12)[index], "png"))
    for name in ("._fr_1.png", "notes.txt", "clip.MOV", "README", "fr_12.avif"):
        (tmp_path / name).write_bytes(b"?")
    source = FolderSource(tmp_path)
    seen = []
    while (frame := source.read()) is not None:
        seen.append(number(frame.image))
    assert seen == list(range(12))
    assert source.remarks == [
        f"{tmp_path.name}: files of kinds that are not read are left out: 4 (.avif, .mov, .txt, without suffix)"
    ]
