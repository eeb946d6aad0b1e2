"""Photographs in, pictures out: bytes -> (H, W, 3) uint8 RGB, and back.

A photograph is JPEG, PNG, WebP, GIF, BMP or TIFF, and with the extra `heic` HEIC. Its size is read from the header and
checked before a pixel is allocated; it is decoded once, turned upright by its EXIF orientation, and made plain 8-bit
RGB:

* grey and palette images become RGB, CMYK is converted without a colour profile;
* of 16-bit samples the upper eight bits are kept, of 32-bit ones as of 16-bit ones, or as of 8-bit ones where none is
  above 255;
* transparent pixels are laid on white, the page most pictures are seen on;
* of an animation, the first frame.

Arrays mean the same: (H, W) is grey, (H, W, 4) has alpha, uint16 has 16 bits. So do PIL's images.

Everything downstream (boxes, keypoints, overlays) is in the pixels of this upright image.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from handmesh.errors import ExportError, ImageError, ImageFormatError, ImageTooLargeError
from handmesh.files.containers import jpeg_coefficients, jpeg_without_tail, trimmed
from handmesh.system.extras import install_command

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    from handmesh.geometry.crop import CropTransform

logger = logging.getLogger(__name__)

ImageSource = Union[str, os.PathLike[str], bytes, bytearray, memoryview, NDArray[Any], "PilImage"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF"]
FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC"
PHOTO_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp"),
    *(".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif"),
)

# A 48-megapixel phone photograph (8064 x 6048) fits both limits; decoded, it takes 146 MB.
MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # pixels, the longest there is in a JPEG
MAX_ASPECT = 100  # longer side over shorter: no photograph is longer, and buffers for a row are sized by its length

LARGE_PIXELS = 2_000_000  # from here on, decoding at reduced scale saves more than opening the file again costs

_EXIF_IFD = 0x8769
_ORIENTATION = 0x0112
_FOCAL_LENGTH_35MM = 0xA405


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say. Size in pixels as stored, before any EXIF turn."""

    format: ImageFormat
    width: int
    height: int
    coefficients: int = 0  # of a JPEG, that its decoder holds at a time: `jpeg_coefficients`


class Decoding(Protocol):
    """Whoever sets memory aside for decoding."""

    def __call__(self, pixels: int, decoder_bytes: int, forget: Callable[[], None]) -> AbstractContextManager[Any]:
        """Entered for as long as so many pixels are decoded, by a decoder that holds so much besides them.

        `forget` lets go of what was decoded of this photo before; what is needed of it again is decoded again.
        """
        ...


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright photograph and what its file says about how it was taken."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB, upright
    format: ImageFormat | None  # None: it came as an array
    orientation: int  # the EXIF orientation that was undone, 1 to 8; 1 = it was stored upright
    focal_35mm: float | None  # EXIF FocalLengthIn35mmFilm in millimetres, None when the file does not say

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.image.shape[1], self.image.shape[0]

    def warp(self, crop: CropTransform, resolution: int) -> NDArray[np.uint8]:
        """The crop's pixels, (resolution, resolution, 3)."""
        return crop.warp(self.image, resolution)

    def overview(self, min_side: int) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
        """The whole photograph: (H, W, 3), how many of the photo's pixels one of its is wide, and where in the photo
        its corner is.
        """
        return self.image, 1.0, (0, 0)


class LargePhoto:
    """A JPEG photograph that is decoded no finer than its crops need; a `Photo` to whoever cuts crops from it.

    JPEG can be decoded at 1/2, 1/4 and 1/8 of its size, in a fraction of the time. Boxes and keypoints are in the
    pixels of the whole photograph all the same. Not for several threads at once.
    """

    def __init__(self, encoded: bytes, name: str, header: ImageHeader, file: PilImage, decoding: Decoding) -> None:
        self._encoded, self._name, self._decoding = encoded, name, decoding
        self._stored, self._coefficients = file.size, header.coefficients
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self.format: ImageFormat = "JPEG"
        self.orientation, self.focal_35mm = _exif(file, name)
        self.size = self._stored if self.orientation < 5 else self._stored[::-1]

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB, upright, in full."""
        return self.reduced(1)

    def warp(self, crop: CropTransform, resolution: int) -> NDArray[np.uint8]:
        """The crop's pixels, (resolution, resolution, 3), from the coarsest decoding that still has them all."""
        reduced, factor, (x, y) = self._at_least(resolution / crop.size)
        center = ((crop.center[0] - x + 0.5) / factor - 0.5, (crop.center[1] - y + 0.5) / factor - 0.5)
        return replace(crop, center=center, size=crop.size / factor).warp(reduced, resolution)

    def overview(self, min_side: int) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
        """As `Photo.overview`, the longer side at least so many pixels where the photograph has them."""
        return self._at_least(min_side / max(self.size))

    def _at_least(self, scale: float) -> tuple[NDArray[np.uint8], int, tuple[int, int]]:
        """The coarsest decoding with so many pixels per pixel of the photo, its factor, and where its corner is."""
        factor = next(factor for factor in (8, 4, 2, 1) if factor == 1 or factor * scale <= 1)
        # Decoded blocks are counted from the stored image's corner, which may now be another one.
        width, height = (factor * side for side in self.reduced(factor).shape[1::-1])
        x = self.size[0] - width if self.orientation in (2, 3, 6, 7) else 0
        y = self.size[1] - height if self.orientation in (3, 4, 7, 8) else 0
        return self.reduced(factor), factor, (x, y)

    def reduced(self, factor: int) -> NDArray[np.uint8]:
        """Upright, every pixel for `factor` x `factor` of the photograph's; the last ones for what is left."""
        if factor not in self._decoded:
            wanted = self._stored[0] // factor, self._stored[1] // factor
            # In full the decoder's part is small beside that of the pixels.
            decoder_bytes = 2 * self._coefficients if factor > 1 else 0
            with self._decoding(wanted[0] * wanted[1], decoder_bytes, self._decoded.clear):
                _, file = _open(self._encoded, self._name, len(self._encoded), self._stored[0] * self._stored[1])
                rgb = _pixels(file, self._encoded, "JPEG", self._name, wanted)
                # A kind without such scales.
                if rgb.shape[:2] != tuple(-(-side // factor) for side in self._stored[::-1]):
                    rgb = _block_means(rgb, factor)
                self._decoded[factor] = _upright(rgb, self.orientation)
        return self._decoded[factor]


def _block_means(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Of whole blocks; the last ones repeat the edge."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def read_image(source: ImageSource, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a photograph as (H, W, 3) uint8 RGB. The image of `read_photo`, which says what is accepted and raised."""
    return read_photo(source, max_bytes=max_bytes, max_pixels=max_pixels).image


def read_photo(source: ImageSource, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photograph from a path, the bytes of a file, an array or a PIL image.

    An (H, W, 3) uint8 array is passed on, not copied (unless its memory is not contiguous). A PIL image is what its
    file would be: turned upright by the EXIF that it carries. Raises ImageError; of its kinds, ImageTooLargeError for
    more than `max_bytes` bytes or `max_pixels` pixels and ImageFormatError for anything that is no image.
    """
    if isinstance(source, np.ndarray):
        return Photo(_checked_array(source, max_pixels), format=None, orientation=1, focal_35mm=None)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), "The image", max_bytes, max_pixels)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _decode(_read_file(path, max_bytes), str(path), max_bytes, max_pixels)
    # Where nobody has imported it, or another thread is about to, this is none of its images.
    if isinstance(source, getattr(sys.modules.get("PIL.Image"), "Image", ())):
        return _from_pil(source, max_pixels)
    raise ImageError(f"Cannot read an image from {type(source).__name__}; give a path, bytes, an array or a PIL image.")


def open_photo(
    source: ImageSource,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    decoding: Decoding = lambda pixels, decoder_bytes, forget: nullcontext(),
) -> Photo | LargePhoto:
    """As `read_photo`, for who needs crops: a large JPEG file is not decoded before they are cut, nor in full.

    `decoding` is asked for memory. Raises ImageError as `read_photo` does; damage to the pixels of a large JPEG, when a
    crop is cut.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        encoded, name = bytes(source), "The image"
    elif isinstance(source, str | os.PathLike):
        encoded, name = _read_file(Path(source), max_bytes), str(source)
    else:
        return read_photo(source, max_bytes=max_bytes, max_pixels=max_pixels)
    header, file = _open(encoded, name, max_bytes, max_pixels)
    if header.format == "JPEG" and header.width * header.height >= LARGE_PIXELS:
        return LargePhoto(encoded, name, header, file, decoding)
    with decoding(header.width * header.height, 0, lambda: None):
        return _decode(encoded, name, max_bytes, max_pixels)


def photos_in(folder: str | os.PathLike[str], *, recursive: bool = False) -> tuple[list[Path], str]:
    """The photographs of a folder in natural order (2 before 10), and what was left out in one line, or nothing.

    By their suffix. A Mac's companions ("._photo.jpg") are no photographs, and hidden files, or what lies in hidden
    folders, nobody's concern. With `recursive`, folders that are links are read, too, each once. Raises ImageError for
    what is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"{folder} is no folder: wanted one of photographs.")
    found, left = [], Counter[str]()
    for file in _files_below(root) if recursive else root.iterdir():
        if file.name.startswith("."):
            continue
        if file.is_file() and file.suffix.lower() in PHOTO_SUFFIXES:
            found.append(file)
        elif file.is_file():
            left[file.suffix.lower() or "without suffix"] += 1
        elif not file.exists():
            left["broken link"] += 1
        elif recursive and file.is_dir():
            left["link to a folder above"] += 1
    found.sort(key=lambda file: [natural_order(part) for part in file.relative_to(root).parts])
    kinds = ", ".join(sorted(left))
    return found, f"files of kinds that are not read are left out: {left.total()} ({kinds})" if left else ""


def _files_below(root: Path) -> Iterator[Path]:
    """Those of folders that are links, too, each folder once; and links to what holds the folder that they are in."""
    top = Path(os.path.realpath(root))
    read = {top}  # and what links lead to
    for place, folders, names in os.walk(root, followlinks=True):
        yield from (Path(place, name) for name in names)
        here = Path(os.path.realpath(place))
        seen, folders[:] = sorted(name for name in folders if not name.startswith(".")), []
        for name in seen:
            target = Path(os.path.realpath(here / name))
            if target == here / name:  # no link
                if target not in read:
                    folders.append(name)
            elif here.is_relative_to(target) or top.is_relative_to(target):
                yield Path(place, name)
            elif not any(_holds(other, target) for other in read):
                read.add(target)
                folders.append(name)


def _holds(folder: Path, target: Path) -> bool:
    """Whether one who reads all of a folder but what is hidden reads the target."""
    return target.is_relative_to(folder) and not any(part.startswith(".") for part in target.relative_to(folder).parts)


def natural_order(name: str) -> list[tuple[str, int]]:
    """A key that sorts fr_2 before fr_10."""
    parts = re.split(r"([0-9]+)", name)
    return [(text, int(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)]


def read_header(
    encoded: bytes, *, name: str = "The image", max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> ImageHeader:
    """Check an image file's type and size from its header, in microseconds and without allocating pixels.

    Raises what `read_photo` raises; `name` is what the messages call the image.
    """
    return _open(encoded, name, max_bytes, max_pixels)[0]


def encode_image(image: NDArray[np.uint8], format: str = "png", *, quality: int = 92) -> bytes:
    """Encode (H, W, 3) RGB or (H, W, 4) RGBA uint8 as "png", "jpeg"/"jpg" or "webp"; a leading dot is fine.

    `quality` (1 to 100) is for JPEG and WebP; PNG is lossless. JPEG has no alpha. Raises ExportError.
    """
    kind = format.lower().removeprefix(".")
    if kind not in ("png", "jpeg", "jpg", "webp"):
        raise ExportError(f"Cannot write an image as {format!r}; wanted png, jpeg or webp.")
    channels = (3,) if kind in ("jpeg", "jpg") else (3, 4)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] not in channels
    ):
        wanted = " or ".join(f"(H, W, {count})" for count in channels)
        raise ExportError(f"Cannot write {_describe(image)} as {kind}; wanted {wanted} uint8.")
    if not 1 <= quality <= 100:
        raise ExportError(f"The quality of an image is from 1 to 100, found {quality}.")

    import cv2  # on first use: it takes 0.2 s to import, and reading does not need it

    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    parameters = {
        "png": [],
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }[kind]
    try:
        done, encoded = cv2.imencode(f".{kind}", bgr, parameters)
    except cv2.error as error:
        raise ExportError(f"Cannot write a {image.shape[1]} x {image.shape[0]} image as {kind}: {error}.") from error
    if not done:  # each format has its own largest size: 65,535 pixels a side for JPEG, 16,383 for WebP
        raise ExportError(
            f"Cannot write a {image.shape[1]} x {image.shape[0]} image as {kind}: too large for the format."
        )
    return bytes(encoded)


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        # Asked before opening: opening a pipe would wait for ever, and a device never ends.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a file"
            raise ImageError(f"{path} is {kind}; wanted a {FORMATS_TEXT} file.")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"No image at {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ImageError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _checked_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    """Grey, RGB or RGBA of 8 or 16 bits -> (H, W, 3) uint8 RGB, as files of such pixels are read."""
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4):
        hint = ""
        if array.dtype.kind == "f":
            hint = " Floating point in 0..1 becomes uint8 by (255 * image).round().astype(numpy.uint8)."
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = " Channels first becomes channels last by image.transpose(1, 2, 0)."
        raise ImageError(
            f"An image array is (H, W), (H, W, 3) or (H, W, 4) uint8 or uint16, found {_describe(array)}.{hint}"
        )
    _check_size("The image", array.shape[1], array.shape[0], max_pixels)
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=-1)
    return np.ascontiguousarray(array) if channels == 3 else _on_white(array)


def _from_pil(image: PilImage, max_pixels: int) -> Photo:
    _check_size("The image", *image.size, max_pixels)
    try:
        rgb = _rgb(image, "The image")
    except ImageError:
        raise
    except Exception as error:  # as in _pixels; it may not have been decoded yet
        raise ImageError(f"The image cannot be decoded: {error}.") from error
    orientation, focal_35mm = _exif(image, "The image")
    return Photo(_upright(rgb, orientation), None, orientation, focal_35mm)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: it is {width} x {height}.")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} = {width * height:,} pixels; "
            f"the limit is {max_pixels:,}. Scale it down first."
        )
    longer, shorter = max(width, height), min(width, height)
    if longer > MAX_SIDE:
        raise ImageTooLargeError(f"{name} is {width} x {height} pixels; the limit of a side is {MAX_SIDE:,}.")
    if longer > MAX_ASPECT * shorter:
        raise ImageError(
            f"{name} is {width} x {height} pixels: no photograph is more than {MAX_ASPECT} times as long as wide."
        )


def _describe(image: object) -> str:
    return f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__


def _decode(encoded: bytes, name: str, max_bytes: int, max_pixels: int) -> Photo:
    header, file = _open(encoded, name, max_bytes, max_pixels)
    rgb = _pixels(file, encoded, header.format, name)
    orientation, focal_35mm = _exif(file, name)
    if header.format == "HEIF":  # libheif has turned it
        orientation = 1
    return Photo(_upright(rgb, orientation), header.format, orientation, focal_35mm)


def _pixels(
    file: PilImage, encoded: bytes, format: ImageFormat, name: str, draft: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode to (H, W, 3) uint8 RGB, as stored; a JPEG at the reduced scale that is nearest to `draft`."""
    try:
        if draft is not None:
            file.draft(file.mode, draft)
        return _rgb(file, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow and the codecs below it raise many kinds on damaged bytes
        rgb = _jpeg_that_lacks_its_end(encoded, name, draft) if format == "JPEG" else None
        if rgb is None:
            raise ImageError(f"{name} is a damaged or truncated {format} file: {error}.") from error
        logger.warning("%s lacks the end of a JPEG file, but no pixels: it was read", name)
        return rgb


def _jpeg_that_lacks_its_end(encoded: bytes, name: str, draft: tuple[int, int] | None) -> NDArray[np.uint8] | None:
    """Its pixels, if all of them are there: then it makes no difference what else would follow before the end."""
    from PIL.JpegImagePlugin import JpegImageFile

    body, found = jpeg_without_tail(trimmed(encoded, "JPEG", name)), []
    for rest in (b"", b"\x2a\xd5" * 64):
        try:
            file = JpegImageFile(io.BytesIO(body + rest + b"\xff\xd9"))
            if draft is not None:
                file.draft(file.mode, draft)
            found.append(_rgb(file, name))
        except Exception:  # as in _pixels
            return None
    return found[0] if np.array_equal(found[0], found[1]) else None


def _open(encoded: bytes, name: str, max_bytes: int, max_pixels: int) -> tuple[ImageHeader, PilImage]:
    """Everything that can be checked before pixels are allocated."""
    if len(encoded) > max_bytes:
        raise ImageTooLargeError(f"{name} has more than {max_bytes:,} bytes, the limit. Scale it down first.")
    if not encoded:
        raise ImageError(f"{name} is empty.")

    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    # The readers by name, not Image.open: that one warns or raises by its own process-wide pixel limit, opens a
    # phone's multi-picture JPEG as another format, and asks no questions before it allocates a WebP's canvas.
    readers: dict[ImageFormat, Callable[[io.BytesIO], PilImage]] = {
        "JPEG": JpegImageFile,
        "PNG": PngImageFile,
        "WEBP": WebPImageFile,
        "GIF": GifImageFile,
        "BMP": BmpImageFile,
        "TIFF": TiffImageFile,
        "HEIF": lambda file: _open_heif(file, name),
    }
    format = _format(encoded, name)
    if format == "WEBP":
        _check_size(name, *_webp_canvas(encoded, name), max_pixels)
    try:
        kept = trimmed(encoded, format, name)
        file = readers[format](io.BytesIO(kept))
        coefficients = jpeg_coefficients(kept) if format == "JPEG" else 0
    except ImageError:
        raise
    except Exception as error:  # as in _decode
        raise ImageError(f"{name} is a damaged or truncated {format} file: {error}.") from error
    width, height = file.size
    _check_size(name, width, height, max_pixels)
    return ImageHeader(format, width, height, coefficients), file


def _format(encoded: bytes, name: str) -> ImageFormat:
    if encoded.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    if encoded.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if encoded.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if encoded.startswith(b"BM") and encoded[6:10] == b"\0\0\0\0":
        return "BMP"
    if encoded[4:8] == b"ftyp":
        brand, others = encoded[8:12], encoded[16 : min(256, int.from_bytes(encoded[:4], "big"))]
        general = brand in (b"mif1", b"msf1") and b"avif" not in others and b"avis" not in others
        if general or brand in (b"heic", b"heix", b"heim", b"heis"):
            return "HEIF"
    raise ImageFormatError(f"{name} is {_guess(encoded)}; wanted a {FORMATS_TEXT} image.")


def _guess(encoded: bytes) -> str:
    if encoded[4:8] == b"ftyp":
        # Not read, though Pillow has a decoder: what one takes is not bounded by the size in the file's header.
        return "an AVIF image" if encoded[8:12] in (b"avif", b"avis", b"mif1", b"msf1") else "a video"
    known = {
        b"%PDF": "a PDF document",
        b"<": "a text (HTML, SVG or XML) file",
    }
    return next((what for start, what in known.items() if encoded.startswith(start)), "not an image we know")


def _webp_canvas(encoded: bytes, name: str) -> tuple[int, int]:
    """Width and height of a WebP file (container: RFC 9649 section 2; lossy frame header: RFC 6386 section 9.1)."""
    chunk, body = encoded[12:16], encoded[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":
            return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 ":
            return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ImageError(f"{name} is a damaged or truncated WEBP file: it has no frame header.")


def _rgb(file: PilImage, name: str) -> NDArray[np.uint8]:
    file.load()
    if file.mode == "F":
        raise ImageError(f"{name} is in floating point, which has no certain white: save it with 8 or 16 bits.")
    if file.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        samples = np.asarray(file)
        lowest, highest = int(samples.min()), int(samples.max())
        if not 0 <= lowest <= highest <= 0xFFFF:
            raise ImageError(
                f"{name} has samples from {lowest:,} to {highest:,}, which have no certain white: save it with 8 or 16 "
                "bits."
            )
        # Mode I has 32 bits and says not how many of them are meant: of a picture of 8, Pillow made it with as many.
        grey = samples if file.mode == "I" and highest <= 0xFF else samples >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if file.mode in ("LA", "PA", "RGBA") or "transparency" in file.info:
        if file.format == "BMP":  # where the fourth byte is most often nothing, and then zero
            return np.asarray(file.convert("RGB"))
        return _on_white(np.asarray(file.convert("RGBA")))
    return np.asarray(file if file.mode == "RGB" else file.convert("RGB"))


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _open_heif(file: io.BytesIO, name: str) -> PilImage:
    """By pi-heif, which decodes only: BSD, with libheif and libde265 (LGPL)."""
    try:
        from pi_heif.as_plugin import HeifImageFile
    except ImportError:
        raise ImageFormatError(
            f"{name} is a HEIC photo: {install_command('heic')} reads them, or export it as JPEG."
        ) from None
    image: PilImage = HeifImageFile(file)
    return image


def _exif(file: PilImage, name: str) -> tuple[int, float | None]:
    """(orientation, 35 mm equivalent focal length in mm). A photograph with damaged EXIF is still a photograph."""
    try:
        exif = file.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        value = exif.get_ifd(_EXIF_IFD).get(_FOCAL_LENGTH_35MM)
    except Exception as error:  # many kinds, as in _decode
        logger.warning("%s: ignored damaged EXIF data (%s)", name, error)
        return 1, None
    focal_35mm = float(value) if isinstance(value, Real) else 0.0
    return (
        orientation if orientation in range(1, 9) else 1,
        focal_35mm if math.isfinite(focal_35mm) and focal_35mm > 0 else None,  # 0 means unknown (EXIF 2.32, 4.6.5)
    )


def _upright(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation: where row 0 and column 0 of the stored image lie in the scene (EXIF 2.32, 4.6.4).

    1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top, 7 right bottom, 8 left bottom.
    """
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):  # the scene's rows run the other way
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):  # and its columns
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)
