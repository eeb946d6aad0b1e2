"""What users have, and what nobody should have, through every door:  python benchmarks/hostile.py [--only predict ...]

Some 200 files are made (photos, clips, labels, predictions, pickles, model files), each with its story, and given to
the command or service that reads such files, in processes with limits of memory and time: one process per door, which
takes file after file and is started again when it dies. A table says what came of each:

refused   one line that says why, exit code 1 (the service: a 4xx); right, if the story says so
answered  exit code 0 (a 2xx); right, if the story says so
wrong     anything else: the other of the two, a traceback, a 5xx, a killed process, more than 2 s of CPU time or
          300 MB above what an ordinary file of that door takes (unless the story says that it is honest and large)

Exit code 1 if anything is wrong. Linux; about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECONDS, MEGABYTES = 2.0, 300.0  # above an ordinary file's
PATIENCE = 30.0  # seconds of a processor, or five times as many by the clock, after which a process counts as hung
MEMORY_LIMIT = 6 << 30  # bytes of address space: what is killed here would take the machine with it
DOORS = ("predict", "check", "video", "evaluate", "mano", "model", "serve")


class Case(NamedTuple):
    """A file, and what should come of it: "refused", "answered", or "either" where both are fair."""

    door: str
    name: str
    story: str
    expected: str
    write: Callable[[Path], object]
    large: bool = False


class Outcome(NamedTuple):
    came: str  # refused, answered, or what went wrong
    seconds: float  # of CPU time
    megabytes: float  # the most that was resident, above what was before
    says: str


# ------------------------------------------------------------------------------------------------ photos


def png(
    width: int, height: int, *, pixels: bytes | None = None, kind: int = 2, depth: int = 8, extra: bytes = b""
) -> bytes:
    """A PNG, chunk by chunk; `pixels`: compressed rows, by default as many zeros as the header says."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    if pixels is None:
        pixels = zlib.compress(bytes(height * (1 + (width * channels * depth + 7) // 8)), 1)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def zeros(width: int, height: int) -> bytes:
    """Compressed rows of a black RGB picture, without ever holding them."""
    packer, row, parts = zlib.compressobj(1), bytes(1 + 3 * width), []
    for _ in range(height):
        parts.append(packer.compress(row))
    return b"".join(parts) + packer.flush()


def picture(width: int = 320, height: int = 240) -> Any:
    """Soft colours with something like a hand: an ordinary photo, for a decoder."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(60, 200, (12, 16, 3), np.uint8)).resize((width, height))
    ImageDraw.Draw(image).ellipse((width * 0.3, height * 0.3, width * 0.6, height * 0.8), fill=(220, 170, 150))
    return image


def encoded(kind: str, image: Any = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (picture() if image is None else image).save(stream, kind, **options)
    return stream.getvalue()


def with_exif(changes: dict[int, Any]) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    for tag, value in changes.items():
        exif[tag] = value
    return encoded("JPEG", exif=exif)


def photos() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    """(name, story, expected, content)."""
    from PIL import Image

    jpeg, image = encoded("JPEG"), picture()
    yield "ordinary.jpg", "an ordinary photo", "answered", jpeg
    yield "ordinary.png", "a screenshot", "answered", encoded("PNG")
    yield "ordinary.webp", "as browsers save them", "answered", encoded("WEBP")
    yield "upper.JPE", "an old suffix in capitals", "answered", jpeg
    yield "one.jfif", "as Windows saves from the web", "answered", jpeg
    yield "two.bmp", "from Paint", "answered", encoded("BMP")
    yield "two.tiff", "from a scanner", "answered", encoded("TIFF")
    yield "two.gif", "one frame", "answered", encoded("GIF")
    yield "wrong_suffix.png", "a JPEG called .png", "answered", jpeg
    yield "grey.jpg", "grey", "answered", encoded("JPEG", image.convert("L"))
    yield "grey.png", "grey", "answered", encoded("PNG", image.convert("L"))
    yield "grey_alpha.png", "grey with transparency", "answered", encoded("PNG", image.convert("LA"))
    yield "rgba.png", "with transparency", "answered", encoded("PNG", image.convert("RGBA"))
    yield "palette.png", "256 colours", "answered", encoded("PNG", image.quantize(256))
    yield "one_bit.png", "black and white", "answered", encoded("PNG", image.convert("1"))
    yield (
        "sixteen_bit.png",
        "grey, 16 bit",
        "answered",
        encoded("PNG", Image.fromarray(np.full((50, 60), 9000, np.uint16))),
    )
    yield "cmyk.jpg", "from a print shop", "answered", encoded("JPEG", image.convert("CMYK"))
    yield "progressive.jpg", "progressive", "answered", encoded("JPEG", progressive=True)
    yield "animated.webp", "two frames", "answered", encoded("WEBP", save_all=True, append_images=[image])
    yield "animated.gif", "two frames", "answered", encoded("GIF", save_all=True, append_images=[image.rotate(9)])
    yield "two_pages.tiff", "two pages", "answered", encoded("TIFF", save_all=True, append_images=[image])
    for orientation in (1, 6, 8, 99):
        yield (
            f"turned_{orientation}.jpg",
            f"EXIF orientation {orientation}",
            "answered",
            with_exif({0x0112: orientation}),
        )
    yield "zero_focal.jpg", "EXIF focal length 0/0", "answered", with_exif({0x920A: (0, 0), 0xA405: 0})
    yield "huge_focal.jpg", "EXIF focal length 65535 mm", "answered", with_exif({0xA405: 65535})
    yield (
        "exif_cut.jpg",
        "EXIF that ends early",
        "answered",
        jpeg[:2] + b"\xff\xe1\x00\x10Exif\x00\x00II*\x00\xff\xff\xff\xff" + jpeg[2:],
    )
    yield "icc_junk.png", "a colour profile of noise", "answered", encoded("PNG", icc_profile=os.urandom(3000))
    yield (
        "text_chunk.png",
        "50 MB of zeros in a text chunk of 50 kB",
        "either",
        made(lambda: png(60, 50, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20), 9)))),
    )
    yield "no_end.jpg", "lacks its last two bytes", "answered", jpeg[:-2]
    yield "half.jpg", "a copy that broke off", "refused", jpeg[: len(jpeg) // 2]
    yield (
        "zeros.jpg",
        "a copy that broke off, in a file of full size",
        "refused",
        jpeg[: len(jpeg) // 2].ljust(len(jpeg), b"\0"),
    )
    yield "half.png", "a copy that broke off", "refused", encoded("PNG")[:2000]
    yield "bad_crc.png", "one flipped bit in the pixels", "either", flipped(encoded("PNG"), 0.5)
    yield "flipped.jpg", "one flipped bit in the pixels", "either", flipped(jpeg, 0.5)
    yield "empty.jpg", "no bytes", "refused", b""
    yield "text.jpg", "a text", "refused", b"hello, this is not a photo\n" * 20
    yield "page.png", "a web page that was saved instead", "refused", b"<!doctype html><title>404</title>"
    yield "archive.jpg", "an archive", "refused", zipped({"a.txt": b"a"})
    yield "vector.png", "SVG", "refused", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "document.jpg", "PDF", "refused", b"%PDF-1.4\n%\xe2\xe3\n1 0 obj\n<<>>\nendobj\n"
    yield (
        "phone.heic",
        "HEIC, without the extra that reads it",
        "refused",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    )
    yield (
        "phone.avif",
        "only the beginning of an AVIF",
        "refused",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    )
    yield "pixel.png", "1 x 1", "answered", png(1, 1)
    yield "prime.png", "sides that are prime", "answered", png(521, 389)
    yield "thin.png", "1 x 2000", "either", png(1, 2000)
    yield "flat.png", "2000 x 1", "either", png(2000, 1)
    yield "line_100000.png", "100,000 x 1 in 92 bytes", "refused", png(100_000, 1)
    yield "line_400000.png", "400,000 x 1 in 128 bytes: it once killed the server", "refused", png(400_000, 1)
    yield "column_400000.png", "1 x 400,000", "refused", png(1, 400_000)
    yield "line_49000000.png", "49,000,000 x 1", "refused", made(lambda: png(49_000_000, 1))
    yield "largest_side.png", "65,535 x 2", "either", png(65_535, 2)
    yield (
        "bomb.png",
        "30,000 x 30,000 black in 12 MB",
        "refused",
        made(lambda: png(30_000, 30_000, pixels=zeros(30_000, 30_000))),
    )
    yield "says_large.png", "says 60,000 x 60,000 and has nothing", "refused", png(60_000, 60_000, pixels=b"x")
    yield "says_2_31.png", "says 2^31 - 1 wide", "refused", png(2**31 - 1, 1, pixels=b"x")
    yield "says_zero.png", "says 0 x 0", "refused", png(0, 0, pixels=zlib.compress(b""))
    yield "short_rows.png", "fewer rows than it says", "either", png(200, 200, pixels=zeros(200, 20))
    yield (
        "negative.bmp",
        "a height of -2^31",
        "refused",
        b"BM" + struct.pack("<IIIIiiHH", 80, 0, 54, 40, 50, -(2**31), 1, 24) + bytes(80),
    )
    yield (
        "says_large.bmp",
        "says 2^30 wide",
        "refused",
        b"BM" + struct.pack("<IIIIiiHH", 80, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(80),
    )
    yield "says_large.gif", "says 65,535 x 65,535", "refused", b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30)
    yield "loop.tiff", "a directory that points at itself", "refused", b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0"
    yield (
        "fill.jpg",
        "23 MB of fill bytes before the picture",
        "either",
        made(lambda: b"\xff\xd8" + b"\xff" * 23_000_000 + jpeg[2:]),
    )
    yield (
        "segments.jpg",
        "two million empty segments",
        "either",
        made(lambda: b"\xff\xd8" + b"\xff\xe5\x00\x02" * 2_000_000 + jpeg[2:]),
    )
    yield (
        "comments.jpg",
        "300 comments of 64 kB",
        "either",
        made(lambda: b"\xff\xd8" + (b"\xff\xfe\xff\xff" + bytes(65533)) * 300 + jpeg[2:]),
    )
    yield "black.png", "nothing to see", "answered", png(300, 300)
    yield (
        "noise.png",
        "noise",
        "answered",
        encoded("PNG", Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))),
    )
    yield "folder.jpg", "a folder with a photo's name, empty", "refused", lambda path: path.mkdir()
    yield "loop.jpg", "a link to itself", "refused", lambda path: path.symlink_to(path)
    yield "pipe.jpg", "a pipe that nobody writes to", "refused", lambda path: os.mkfifo(path)
    yield "device.jpg", "a link to /dev/zero", "refused", lambda path: path.symlink_to("/dev/zero")
    yield "ä ö 手 🖐.jpg", "a name in several scripts", "answered", jpeg
    yield "new\nline.jpg", "a line break in its name", "answered", jpeg
    yield "[bold]x.jpg", "markup in its name", "answered", jpeg
    yield "\udce9t\udce9.jpg", "a Latin-1 name, which is no UTF-8", "answered", jpeg
    yield "手" * 80 + ".jpg", "a name of 244 bytes", "answered", jpeg
    yield (
        "._photo.jpg",
        "a Mac's resource fork beside the photo",
        "refused",
        b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(50),
    )


def made(content: Callable[[], bytes]) -> Callable[[Path], object]:
    """For what takes a moment to make: only where it is wanted."""
    return lambda path: path.write_bytes(content())


def flipped(content: bytes, place: float) -> bytes:
    damaged = bytearray(content)
    damaged[int(place * len(damaged))] ^= 0x10
    return bytes(damaged)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ clips


def clip(
    path: Path, frames: int = 4, size: tuple[int, int] = (160, 120), fourcc: str = "MJPG", fps: float = 10
) -> None:
    import cv2

    writer = cv2.VideoWriter(os.fspath(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    for number in range(frames):
        frame = np.asarray(picture(*size))[..., ::-1].copy()
        frame[:, : 10 + 5 * number] //= 2
        writer.write(frame)
    writer.release()


def changed_clip(change: Callable[[bytearray], bytes | bytearray], **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        clip(path, **options)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return write


def with_rate(content: bytearray, scale: int, rate: int) -> bytearray:
    """An AVI that says another frame rate."""
    place = content.index(b"strh") + 8 + 20
    content[place : place + 8] = struct.pack("<II", scale, rate)
    return content


def frames_folder(*names: str, broken: str = "") -> Callable[[Path], object]:
    def write(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"broken" if name == broken else encoded("JPEG", picture(160, 120)))

    return write


def clips() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    yield "ordinary.avi", "an ordinary clip", "answered", clip
    yield "ordinary.mp4", "an ordinary clip", "answered", lambda path: clip(path, fourcc="mp4v")
    yield "one.avi", "one frame", "answered", lambda path: clip(path, frames=1)
    yield "two.mp4", "two frames", "answered", lambda path: clip(path, frames=2, fourcc="mp4v")
    yield "odd.avi", "sides that are odd", "answered", lambda path: clip(path, size=(161, 121))
    yield "tiny.avi", "2 x 2", "answered", lambda path: clip(path, size=(2, 2))
    yield "flat.avi", "4000 x 8", "either", lambda path: clip(path, size=(4000, 8))
    yield "none.avi", "no frame at all", "refused", lambda path: clip(path, frames=0)
    yield (
        "half.mp4",
        "a copy that broke off: its index is gone",
        "refused",
        changed_clip(lambda c: c[: len(c) // 2], fourcc="mp4v"),
    )
    yield "half.avi", "a copy that broke off", "either", changed_clip(lambda c: c[: len(c) // 2], frames=8)
    yield "flipped.avi", "a frame with a flipped bit", "either", changed_clip(lambda c: flipped(c, 0.6), frames=6)
    yield "still.avi", "says 0 frames a second", "either", changed_clip(lambda c: with_rate(c, 1, 0))
    yield (
        "fast.avi",
        "says 4 thousand million frames a second",
        "either",
        changed_clip(lambda c: with_rate(c, 1, 2**32 - 1)),
    )
    yield "slow.avi", "says a frame takes 136 years", "either", changed_clip(lambda c: with_rate(c, 2**32 - 1, 1))
    yield "empty.mp4", "no bytes", "refused", b""
    yield "text.mp4", "a text", "refused", b"no clip\n" * 100
    yield (
        "header.mp4",
        "a header and noise",
        "refused",
        b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + os.urandom(9000),
    )
    yield (
        "sound.wav",
        "sound alone",
        "refused",
        b"RIFF"
        + struct.pack("<I", 2036)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
        + b"data"
        + struct.pack("<I", 2000)
        + bytes(2000),
    )
    yield "photo.jpg", "a photo", "either", encoded("JPEG")
    yield "frames", "a folder of frames", "answered", frames_folder("fr_1.jpg", "fr_2.jpg", "fr_10.jpg")
    yield (
        "frames_broken",
        "a broken frame among good ones",
        "either",
        frames_folder("a.jpg", "b.jpg", "c.jpg", broken="b.jpg"),
    )
    yield (
        "frames_mac",
        "frames with a Mac's resource forks",
        "answered",
        frames_folder("a.jpg", "._a.jpg", "b.jpg", broken="._a.jpg"),
    )
    yield "frames_none", "an empty folder", "refused", frames_folder()


# ------------------------------------------------------------------------------------------------ labels


def labels() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    """Lines of a labels.jsonl beside a photo.jpg."""
    points = [[100 + 4 * i, 80 + 3 * (i % 5)] for i in range(21)]
    good = {"image": "photo.jpg", "keypoints": points, "handedness": "right"}
    space = [[0.01 * i, 0.005 * (i % 5), 0.5] for i in range(21)]

    def line(**changes: Any) -> bytes:
        return json.dumps({k: v for k, v in (good | changes).items() if v is not ...}).encode() + b"\n"

    def raw(key: str, text: str) -> bytes:
        return line()[:-2] + f', "{key}": {text}}}\n'.encode()

    yield "ordinary", "an ordinary line", "answered", line()
    yield (
        "all",
        "all labels there are",
        "answered",
        line(
            joints=space,
            keypoints=[[600 * x + 160, 600 * y + 120] for x, y, _ in space],
            box=[140, 110, 300, 160],
            intrinsics=[[300, 0, 160], [0, 300, 120], [0, 0, 1]],
        ),
    )
    yield "bom", "a byte order mark first", "either", b"\xef\xbb\xbf" + line()
    yield "utf16", "saved as UTF-16", "refused", line().decode().encode("utf-16")
    yield "crlf", "Windows line ends", "answered", line().replace(b"\n", b"\r\n") * 3
    yield "empty", "no lines", "refused", b""
    yield "list", "one large list", "refused", json.dumps([good] * 30_000).encode()
    yield "not_json", "CSV", "refused", b"image,x,y\nphoto.jpg,1,2\n"
    yield "deep", "lists nested 100,000 deep", "refused", raw("facts", "[" * 100_000 + "]" * 100_000)
    yield "long_line", "one line of 17 MB", "refused", raw("facts", '{"a": "' + "x" * (17 << 20) + '"}')
    yield "no_image", "names no image", "refused", line(image=...)
    yield "lost_image", "the image is not there", "refused", line(image="elsewhere.jpg")
    yield "folder_image", "the image is a folder", "refused", line(image=".")
    yield "device_image", "the image is /dev/zero", "refused", line(image="/dev/zero")
    yield "pipe_image", "the image is a number", "refused", line(image=7)
    yield "nan", "NaN", "refused", raw("box", "[NaN, 0, 10, 10]")
    yield "infinite", "1e999", "refused", raw("box", "[0, 0, 1e999, 10]")
    yield "huge_int", "a number of 10,000 digits", "refused", raw("box", f"[0, 0, {'9' * 10_000}, 10]")
    yield "text_numbers", "numbers as text", "refused", line(keypoints=[["1", "2"]] * 21)
    yield "twenty", "20 points", "refused", line(keypoints=points[:20])
    yield "ragged", "one point with a coordinate too few", "refused", line(keypoints=[*points[:20], [1]])
    yield (
        "normalised",
        "MediaPipe's: between 0 and 1",
        "refused",
        line(keypoints=[[x / 320, y / 240, 0.0] for x, y in points]),
    )
    yield "none_seen", "every point invisible", "either", line(keypoints=[[x, y, 0] for x, y in points])
    yield "reversed_box", "a box whose corners are exchanged", "refused", line(box=[200, 150, 90, 70])
    yield "far_box", "a box a million times the photo", "refused", line(box=[-1e8, -1e8, 1e8, 1e8])
    yield "zero_camera", "a camera of zeros", "refused", line(joints=space, intrinsics=[[0, 0, 0]] * 3)
    yield "millimetres", "joints in millimetres", "refused", line(joints=[[1000 * v for v in p] for p in space])
    yield (
        "behind",
        "joints behind the camera",
        "refused",
        line(
            joints=[[x, y, -z] for x, y, z in space],
            keypoints=...,
            intrinsics=[[300, 0, 160], [0, 300, 120], [0, 0, 1]],
        ),
    )
    yield (
        "sheared_pose",
        "rotations that are none",
        "refused",
        line(pose=[[[1, 2, 0], [0, 1, 0], [0, 0, 1]]] * 16, betas=[0] * 10),
    )
    yield (
        "mirrored_pose",
        "rotations that mirror",
        "refused",
        line(pose=[[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 16, betas=[0] * 10),
    )
    yield "side", "handedness: 'Links'", "refused", line(handedness="Links")
    yield "surrogate", "half a surrogate pair in a name", "refused", raw("image", '"\\ud800.jpg"')


def write_labels(content: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "photo.jpg").write_bytes(encoded("JPEG"))
        (folder / "labels.jsonl").write_bytes(content)

    return write


# ------------------------------------------------------------------------------------------- predictions


FRAMES = 3


def truth() -> tuple[list[Any], list[Any]]:
    from handmesh.hand import builtin_hand

    hand = builtin_hand()
    vertices = np.stack([hand.v_template + np.array([0, 0.01 * frame, 0.6]) for frame in range(FRAMES)])
    return hand.joints_of(vertices).round(6).tolist(), vertices.round(6).tolist()


def predictions() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    joints, vertices = truth()
    text = json.dumps([joints, vertices]).encode()
    yield "ordinary.json", "the truth itself", "answered", text
    yield "ordinary.zip", "in an archive", "answered", zipped({"pred.json": text})
    yield "bom.json", "a byte order mark first", "answered", b"\xef\xbb\xbf" + text
    yield "bom.zip", "a byte order mark, in an archive", "answered", zipped({"pred.json": b"\xef\xbb\xbf" + text})
    yield "utf16.json", "saved as UTF-16", "refused", text.decode().encode("utf-16")
    yield (
        "spaces.json",
        "5 MB of blanks in between",
        "either",
        text.replace(b"], [", b"]," + b" " * 5_000_000 + b"[", 1),
    )
    yield "half.json", "a copy that broke off", "refused", text[: len(text) // 2]
    yield "rest.json", "text after the end", "refused", text + b"}"
    yield "empty.json", "no bytes", "refused", b""
    yield "swapped.json", "vertices first", "refused", json.dumps([vertices, joints]).encode()
    yield "few.json", "a frame too few", "refused", json.dumps([joints[1:], vertices[1:]]).encode()
    yield (
        "ragged.json",
        "a frame with 20 joints",
        "refused",
        json.dumps([[joints[0][:20], *joints[1:]], vertices]).encode(),
    )
    yield "nan.json", "NaN", "refused", text.replace(b"0.", b"NaN, 0.", 1)
    yield "not_a_number.json", "NaN in place of a number", "refused", re.sub(rb"-?\d\.\d+", b"NaN", text, count=1)
    yield "infinite.json", "1e999", "refused", re.sub(rb"-?\d\.\d+", b"1e999", text, count=1)
    yield (
        "digits.json",
        "a number of a million digits",
        "either",
        re.sub(rb"-?\d\.\d+", b"0." + b"1" * 1_000_000, text, count=1),
    )
    yield "text.json", "a text among the numbers", "refused", re.sub(rb"-?\d\.\d+", b'"x"', text, count=1)
    yield "dict.json", "a dict", "refused", json.dumps({"xyz": joints, "verts": vertices}).encode()
    yield "deep.json", "lists nested a million deep", "refused", b"[" * 1_000_000
    yield "flat.json", "numbers alone", "refused", json.dumps(np.arange(9000).tolist()).encode()
    yield "null.json", "null", "refused", b"null"
    yield "bomb.zip", "1 GB of blanks in 1 MB", "refused", zip_bomb(b"", b" ")
    yield "zeros.zip", "1 GB of zeros in 1.5 MB", "refused", zip_bomb(b"[[[", b"[0,0,0],")
    yield "nothing.zip", "1 GB of empty lists in 1 MB", "refused", zip_bomb(b"[[[", b"[],")
    yield "two.zip", "two JSON files", "refused", zipped({"a.json": text, "b.json": text})
    yield "other.zip", "no JSON file", "refused", zipped({"readme.txt": b"hello"})
    yield "broken.zip", "an archive with a flipped bit", "refused", flipped(zipped({"pred.json": text}), 0.5)
    yield "half.zip", "an archive that broke off", "refused", zipped({"pred.json": text})[:-200]
    yield "folder.json", "a folder", "refused", lambda path: path.mkdir()


def zip_bomb(start: bytes, again: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("pred.json", "w") as file:
            file.write(start)
            for _ in range(1000):
                file.write(again * (1_000_000 // len(again)))

    return write


# ---------------------------------------------------------------------------------------------- pickles


def pickles() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    from handmesh.hand import builtin_hand

    hand = builtin_hand()
    names = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "J", "weights", "kintree_table")
    arrays = {name: getattr(hand, name) for name in (*names, "hands_components", "hands_coeffs", "hands_mean")}
    sound = pickle.dumps(arrays | {"bs_type": "lrotmin", "bs_style": "lbs"}, protocol=2)

    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch /tmp/handmesh-hostile-was-here",)

    itself: list[Any] = []
    itself.append(itself)
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    yield "ordinary.pkl", "a hand in MANO's form", "answered", sound
    yield "command.pkl", "runs a command when loaded", "refused", pickle.dumps(Command())
    yield (
        "hidden.pkl",
        "a sound hand, and a command",
        "refused",
        pickle.dumps(arrays | {"extra": Command()}, protocol=2),
    )
    yield "half.pkl", "a copy that broke off", "refused", sound[: len(sound) // 2]
    yield "flipped.pkl", "a flipped bit", "either", flipped(sound, 0.01)
    yield "empty.pkl", "no bytes", "refused", b""
    yield "text.pkl", "a web page that was saved instead", "refused", b"<!doctype html><title>Log in</title>"
    yield "archive.pkl", "the archive it came in", "refused", zipped({"mano_v1_2/models/MANO_RIGHT.pkl": sound})
    yield "itself.pkl", "a list that holds itself", "refused", pickle.dumps(itself)
    yield "deep.pkl", "lists in lists", "refused", pickle.dumps(deep)
    yield "deeper.pkl", "a million opened lists", "refused", b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."
    yield (
        "says_large.pkl",
        "says that a terabyte follows",
        "refused",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    )
    yield (
        "memo.pkl",
        "doubles a list 60 times",
        "refused",
        b"\x80\x02]q\0"
        + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60))
        + b".",
    )
    yield "persistent.pkl", "asks for something outside", "refused", b"\x80\x02X\x01\0\0\0aQ."
    yield "list.pkl", "a list", "refused", pickle.dumps([1, 2, 3])
    yield (
        "nan.pkl",
        "vertices that are not numbers",
        "refused",
        pickle.dumps(arrays | {"v_template": np.full((778, 3), np.nan)}, protocol=2),
    )
    yield (
        "few.pkl",
        "777 vertices",
        "refused",
        pickle.dumps(arrays | {"v_template": arrays["v_template"][:777]}, protocol=2),
    )
    yield (
        "faces.pkl",
        "faces that name vertices which are not there",
        "refused",
        pickle.dumps(arrays | {"f": arrays["f"] + 1000}, protocol=2),
    )


# ------------------------------------------------------------------------------------------ model files


def models() -> Iterator[tuple[str, str, str, bytes | Callable[[Path], object]]]:
    from handmesh.model.bundled import bundled_model_path

    bundled = bundled_model_path().read_bytes()
    size = int.from_bytes(bundled[:8], "little")
    header = json.loads(bundled[8 : 8 + size])
    body = bundled[8 + size :]

    def with_header(changed: Any) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + body

    def with_record(**changes: Any) -> bytes:
        (name, text), *_ = header["__metadata__"].items()
        record = json.loads(text)
        for key, value in changes.items():
            section, _, leaf = key.rpartition("__")
            (record[section] if section else record)[leaf] = value
        return with_header(header | {"__metadata__": header["__metadata__"] | {name: json.dumps(record)}})

    first = next(name for name in header if name != "__metadata__")
    yield "empty.safetensors", "no bytes", "refused", b""
    yield "text.safetensors", "a text", "refused", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "half.safetensors", "a copy that broke off", "refused", bundled[: len(bundled) // 2]
    yield "flipped.safetensors", "a flipped bit in its header", "refused", flipped(bundled, 100 / len(bundled))
    yield "header.safetensors", "says a header of 2^60 bytes", "refused", (1 << 60).to_bytes(8, "little") + b"{}"
    yield (
        "deep.safetensors",
        "a header nested 100,000 deep",
        "refused",
        (200_000).to_bytes(8, "little") + b"[" * 100_000 + b"]" * 100_000,
    )
    yield (
        "no_record.safetensors",
        "weights of something else",
        "refused",
        with_header({k: v for k, v in header.items() if k != "__metadata__"}),
    )
    yield (
        "lost_weight.safetensors",
        "a weight is missing",
        "refused",
        with_header({k: v for k, v in header.items() if k != first}),
    )
    yield "large.safetensors", "a resolution of 2^30", "refused", with_record(model__resolution=1 << 30)
    yield "other_hand.safetensors", "trained with another hand", "refused", with_record(hand_sha256="0" * 64)
    yield "newer.safetensors", "of a version to come", "refused", with_record(format=99)
    yield "unknown.safetensors", "a backbone that nobody knows", "refused", with_record(model__backbone="resnet50")
    yield "noise.onnx", "noise", "refused", os.urandom(4000)
    yield "command.pt", "a pickle that runs a command", "refused", pickle.dumps({"a": 1})
    yield "folder.safetensors", "a folder", "refused", lambda path: path.mkdir()


# ------------------------------------------------------------------------------------------ all of them


MADE = {
    "predict": photos, "check": labels, "video": clips, "evaluate": predictions, "mano": pickles, "model": models,
    "serve": photos,
}  # fmt: skip
NO_UPLOADS = ("folder.jpg", "loop.jpg", "pipe.jpg", "device.jpg")


def all_cases(*doors: str) -> Iterator[Case]:
    for door in doors or DOORS:
        for name, story, expected, content in MADE[door]():
            if door == "check":
                assert isinstance(content, bytes)
                yield Case(door, name, story, expected, write_labels(content))
            elif door != "serve" or name not in NO_UPLOADS:
                yield Case(door, name, story, expected, content if callable(content) else writer(content))


def writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


# --------------------------------------------------------------------------------------------- a door's process


def serve_door(door: str) -> None:
    """Reads a path per line and answers with a line of JSON: what the door said to that file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    through = service() if door == "serve" else lambda path: command(door, path)
    for line in sys.stdin:
        reset_peak()
        before, started = resident("VmRSS"), time.process_time()
        code, said = through(Path(json.loads(line)))
        seconds, grown = time.process_time() - started, resident("VmHWM") - before
        answers.write(json.dumps({"code": code, "said": said[-4000:], "seconds": seconds, "megabytes": grown}) + "\n")
        answers.flush()


def command(door: str, path: Path) -> tuple[int, str]:
    """A command line, in this process."""
    from handmesh.cli import run

    file, out = os.fspath(path), tempfile.mkdtemp(prefix="out-", dir=path.parent)
    arguments = {
        "predict": ["predict", file, "--out", out, "--format", "json,png"],
        "check": ["data", "check", file],
        "video": ["video", file, "--out", out],
        "evaluate": [
            "evaluate",
            "--predictions",
            file,
            "--ground-truth",
            os.fspath(path.parent / "truth"),
            "--out",
            out,
        ],
        "mano": ["mano", "add", file],
        "model": ["predict", os.fspath(path.parent / "ordinary.jpg"), "--out", out, "--model", file],
    }[door]
    said = io.StringIO()
    sys.argv = ["handmesh", *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        except BaseException as error:
            import traceback

            traceback.print_exc(file=said)
            code = 70 if isinstance(error, Exception) else 71
    return code, said.getvalue()


def service() -> Callable[[Path], tuple[int, str]]:
    """The HTTP service, in this process."""
    from handmesh_server.app import create_app
    from handmesh_server.settings import Settings
    from starlette.testclient import TestClient

    client = TestClient(create_app(Settings()), raise_server_exceptions=False)
    client.__enter__()
    while client.get("/readyz").status_code != 200:
        time.sleep(0.1)

    def post(path: Path) -> tuple[int, str]:
        answer = client.post("/v1/hands", content=path.read_bytes(), headers={"Accept": "application/json"})
        return (0 if answer.is_success else 1 if answer.is_client_error else 70), answer.text

    return post


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident(what: str) -> float:
    """MB: VmRSS now, VmHWM at most since `reset_peak`."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


class Door:
    """The process of one door, started again when it dies."""

    def __init__(self, door: str, home: Path) -> None:
        self.door, self.process = door, None
        mano, cache = os.fspath(home / "mano"), os.environ.get("HANDMESH_CACHE_DIR", os.fspath(home / "cache"))
        self.environment = os.environ | {"HANDMESH_MANO_DIR": mano, "HANDMESH_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}

    def give(self, path: Path, patience: float = PATIENCE) -> Outcome:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--door", self.door],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment,
            )  # fmt: skip
        self.process.stdin.write(json.dumps(os.fspath(path)).encode() + b"\n")
        self.process.stdin.flush()
        if not self.answers_within(patience):
            self.close()
            return Outcome("hung", patience, 0, "")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.close()
            return Outcome(f"killed ({code})", 0, 0, "")
        answer = json.loads(line)
        said, code = answer["said"], answer["code"]
        came = {0: "answered", 1: "refused", 2: "refused"}.get(code, "crashed")
        if "Traceback (most recent call last)" in said:
            came = "crashed"
        lines = [text for text in said.splitlines() if text.strip()]
        told = next((text for text in lines if "error" in text.lower()), lines[-1] if lines else "")
        return Outcome(came, answer["seconds"], answer["megabytes"], lines[-1] if came == "crashed" else told)

    def answers_within(self, patience: float) -> bool:
        def spent() -> float:
            ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

        before, started = spent(), time.monotonic()
        while not select.select([self.process.stdout], [], [], 1.0)[0]:
            if spent() - before > patience or time.monotonic() - started > 5 * patience:
                return False
        return True

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def verdict(case: Case, outcome: Outcome, ordinary: Outcome) -> str:
    """What is wrong, or that it is "right"."""
    if outcome.came not in ("refused", "answered"):
        return outcome.came
    if case.expected not in ("either", outcome.came):
        return f"{outcome.came}, not {case.expected}"
    if not case.large and outcome.seconds > ordinary.seconds + SECONDS:
        return f"{outcome.seconds:.1f} s"
    if not case.large and outcome.megabytes > ordinary.megabytes + MEGABYTES:
        return f"{outcome.megabytes:.0f} MB"
    return "right"


def run_cases(cases: list[Case], folder: Path) -> Iterator[tuple[Case, Outcome, str]]:
    """Each case with what came of it and the verdict. Each door's first case is an ordinary file, to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    for door in dict.fromkeys(case.door for case in cases):
        place = folder / door
        place.mkdir()
        if door == "evaluate":
            joints, vertices = truth()
            (place / "truth").mkdir()
            (place / "truth" / "evaluation_xyz.json").write_text(json.dumps(joints))
            (place / "truth" / "evaluation_verts.json").write_text(json.dumps(vertices))
        process = Door(door, folder)
        (place / "ordinary.jpg").write_bytes(encoded("JPEG"))
        first = next((c for c in cases if c.door == door and c.name.startswith("ordinary")), None)
        ordinary = Outcome("answered", 0.5, 100, "")
        if first is not None:
            (place / "first").mkdir()
            if door == "evaluate":
                (place / "first" / "truth").symlink_to(place / "truth")
            first.write(place / "first" / first.name)
            process.give(place / "first" / first.name, 4 * PATIENCE)  # imports and compiled kernels are not its doing
            ordinary = process.give(place / "first" / first.name)
        for case in (case for case in cases if case.door == door):
            path = place / os.fsencode(case.name).decode("utf-8", "surrogateescape")
            if not path.exists():
                case.write(path)
            outcome = process.give(path)
            yield case, outcome, verdict(case, outcome, ordinary)
        process.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DOORS, help="these doors alone")
    parser.add_argument("--wrong", action="store_true", help="print only what is wrong")
    parser.add_argument("--door", choices=DOORS, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.door:
        serve_door(wanted.door)
        return 0
    cases = list(all_cases(*wanted.only or ()))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory(prefix="handmesh-hostile-") as folder:
        for case, outcome, judged in run_cases(cases, Path(folder)):
            counts[case.door].update([_column(outcome.came), "right" if judged == "right" else "wrong"])
            if judged != "right" or not wanted.wrong:
                name = ascii(case.name)[1:-1]
                print(
                    f"{case.door:9}{name[:28]:30}{outcome.came:10}{outcome.seconds:6.2f} s{outcome.megabytes:6.0f} MB  "
                    f"{'' if judged == 'right' else 'WRONG: ' + judged + '  '}{case.story}: {outcome.says[:150]}",
                    flush=True,
                )
    print_table(counts)
    return 1 if any(count["wrong"] for count in counts.values()) else 0


def _column(came: str) -> str:
    return came if came in ("refused", "answered", "crashed", "hung") else "killed"


def print_table(counts: dict[str, Counter[str]]) -> None:
    """How many came to what, by door, and how many of those are as their stories say."""
    columns = ("answered", "refused", "crashed", "killed", "hung", "right", "wrong")
    print(f"{'door':9}{'files':>10}" + "".join(f"{column:>10}" for column in columns))
    for door, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        numbers = (count["right"] + count["wrong"], *(count[column] for column in columns))
        print(f"{door:9}" + "".join(f"{number:10}" for number in numbers))


if __name__ == "__main__":
    sys.exit(main())
