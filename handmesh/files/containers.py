"""What of an image file its decoder gets to see: the pixels and the little else that is used, after a bounded scan.

Pillow reads the parts of a file one by one in Python and keeps them all: 23 MB of fill bytes before a JPEG's frame, or
millions of empty segments, chunks or blocks, took it seconds to minutes in which nothing else ran. Here files are
stepped through with limits on the number of parts, and descriptions that nobody reads (profiles, thumbnails, comments,
editing history) are left out. What stays: pixels, EXIF and XMP (orientation, focal length), colour transforms,
transparency.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from handmesh.errors import ImageError

MAX_PARTS: Final = 2_000  # of a file before its pixels; photographs have about ten, with depth maps some hundreds
MAX_FILL_BYTES: Final = 65_536  # between the parts of a JPEG; encoders write none
MAX_PNG_CHUNKS: Final = 65_536  # in all: the pixels of large files come in chunks of 8 kB, which are 8,000
# A progressive JPEG repaints the whole image in every scan. Encoders write about ten, a hostile file thousands.
MAX_JPEG_SCANS: Final = 100

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")  # one byte is looked at a time: runs of 0xFF cost no more
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # restarts belong to a scan's data
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # without a length: TEM, RST, SOI, EOI
_JPEG_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these are tables, and reserved
_KEPT_SEGMENTS: Final = {  # marker, how it begins: how many are kept
    (0xE0, b"JFIF"): 1,
    (0xE1, b"Exif\0\0"): 4,  # long EXIF goes on in further segments
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"): 1,
    (0xEE, b"Adobe"): 1,
}
_KEPT_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
_KEPT_TEXTS: Final = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # where PNG writers put XMP and EXIF


def trimmed(encoded: bytes, format: str, name: str) -> bytes:
    """The file as its decoder should see it. Raises ImageError for one that is damaged, or hostile."""
    trim = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "TIFF": _tiff, "BMP": _bmp}.get(format)
    return encoded if trim is None else trim(encoded, name)


def jpeg_without_tail(encoded: bytes) -> bytes:
    """Of a JPEG file that lacks its end marker, all but what may be half of it."""
    return encoded[:-1] if encoded.endswith(b"\xff") else encoded


def jpeg_coefficients(encoded: bytes) -> int:
    """How many coefficients, of two bytes, are held at a time to decode a JPEG file as `trimmed` gives it.

    None (0) where one scan has all components: they are decoded as they come. Else, progressive or one component after
    the other, those of the whole picture, however small it is decoded.
    """
    position, kind, frame = 2, 0, b""
    while position + 4 < len(encoded) and encoded[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if encoded[position + 1] in _JPEG_FRAMES:
            kind, frame = encoded[position + 1], encoded[position + 4 : end]
        position = end
    if position + 4 >= len(encoded) or len(frame) < 9:  # a damaged one: its decoder says so
        return 0
    height, width, components = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]
    if kind not in _JPEG_PROGRESSIVE and encoded[position + 4] == components:
        return 0
    samplings = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * components : 3]]  # T.81, A.1.1
    across, down = (max(8, *(8 * sampling[axis] for sampling in samplings)) for axis in (0, 1))
    return 64 * sum(x * y for x, y in samplings) * -(-width // across) * -(-height // down)


def _jpeg(encoded: bytes, name: str) -> bytes:
    """ITU-T T.81, annex B: markers, fill bytes before them, and the length of most segments."""
    # A copy that broke off in a file of full size: to a decoder the zeros that follow are pixels, too.
    if encoded.endswith(b"\0") and not (body := encoded.rstrip(b"\0")).endswith(b"\xff\xd9"):
        encoded = body
    kept, counts = [encoded[:2]], dict.fromkeys(_KEPT_SEGMENTS, 0)
    position, filled = 2, 0
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(encoded, position)
        if found is None:
            break
        filled += found.start() - position
        kind, start = found.group(1)[0], found.start()
        if filled > MAX_FILL_BYTES or kind == 0xDA:
            break
        position = found.end()
        if kind in _JPEG_ALONE:
            continue
        length = int.from_bytes(encoded[position : position + 2], "big")
        end = position + max(length, 2)
        if end > len(encoded):
            raise _damaged(name, "JPEG", "its header ends early")
        if not 0xE0 <= kind <= 0xEF and kind != 0xFE:  # tables and the frame
            kept.append(encoded[start:end])
        for key, limit in _KEPT_SEGMENTS.items():
            if key[0] == kind and counts[key] < limit and encoded.startswith(key[1], position + 2):
                counts[key] += 1
                kept.append(encoded[start:end])
        position = end
    else:
        raise ImageError(
            f"{name} is a JPEG file of more than {MAX_PARTS:,} segments before its pixels: only attacks are."
        )
    if filled > MAX_FILL_BYTES:
        raise ImageError(
            f"{name} is a JPEG file with more than {MAX_FILL_BYTES:,} fill bytes in its header: only attacks have."
        )
    if found is None:  # no pixels: the decoder says so, once the size was looked at
        return b"".join(kept)
    _check_scans(encoded, found.start(), name)
    return b"".join((*kept, memoryview(encoded)[found.start() :]))


def _check_scans(encoded: bytes, position: int, name: str) -> None:
    """Of the first image in the file. Segments are stepped over, so markers inside a thumbnail do not count."""
    # The quick count is an upper bound; a video appended to a photograph can exceed it, so then count properly.
    if encoded.count(b"\xff\xda", position) <= MAX_JPEG_SCANS:
        return
    scans = 0
    for _ in range(20 * MAX_JPEG_SCANS):  # each with its tables
        found = _JPEG_MARKER_IN_SCAN.search(encoded, position)
        if found is None or found.group(1) == b"\xd9":  # end of image
            return
        scans += found.group(1) == b"\xda"
        if scans > MAX_JPEG_SCANS:
            break
        position = found.end()
        if found.group(1)[0] not in _JPEG_ALONE:
            position += max(int.from_bytes(encoded[position : position + 2], "big"), 2)
    raise ImageError(f"{name} is a JPEG file of more than {MAX_JPEG_SCANS} scans, which only attacks are.")


def _png(encoded: bytes, name: str) -> bytes:
    """PNG specification, section 5: length, type, content and checksum of each chunk."""
    before: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    view, position = memoryview(encoded), 8
    for _ in range(MAX_PNG_CHUNKS):
        length, kind = int.from_bytes(encoded[position : position + 4], "big"), encoded[position + 4 : position + 8]
        end = position + 12 + length
        if kind == b"IEND" or len(kind) < 4:
            break
        if kind == b"IDAT":
            pixels.append(view[position:end])  # of a file that was cut off, what is there
        elif end <= len(encoded):
            if kind in (b"iTXt", b"zTXt", b"tEXt"):
                kind = next((one for one in _KEPT_TEXTS if encoded.startswith(one, position + 8)), kind)
            if kind in _KEPT_CHUNKS or kind in _KEPT_TEXTS:
                before.setdefault(kind, encoded[position:end])
        position = end
    else:
        raise ImageError(f"{name} is a PNG file of more than {MAX_PNG_CHUNKS:,} chunks: only attacks are.")
    if b"IHDR" not in before:
        raise _damaged(name, "PNG", "it has no header")
    return b"".join((encoded[:8], *before.values(), *pixels, encoded[position : position + 12]))  # IEND, or nothing


def _gif(encoded: bytes, name: str) -> bytes:
    """GIF89a, sections 15 to 26: up to the first picture, with its graphic control extension (transparency)."""
    if len(encoded) < 13:
        raise _damaged(name, "GIF", "its header ends early")
    position = 13 + (3 << (encoded[10] & 7) + 1 if encoded[10] & 0x80 else 0)  # after the colour table
    kept = [encoded[:position]]
    control = b""
    for _ in range(MAX_PARTS):
        if encoded[position : position + 1] == b",":
            return b"".join((*kept, control, memoryview(encoded)[position:]))
        if encoded[position : position + 1] != b"!":
            break
        start, is_control = position, encoded[position + 1 : position + 2] == b"\xf9"
        position += 2
        for _ in range(MAX_PARTS):
            length = encoded[position] if position < len(encoded) else 0
            position += 1 + length
            if not length:
                break
        if is_control:
            control = encoded[start:position][:8]
    raise _damaged(name, "GIF", "no picture follows its header")


# Tag types and their bytes (TIFF 6.0, page 15).
_TIFF_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_MAX_TIFF_NUMBERS: Final = 262_144  # of one tag: tiles of 16 x 16 in the largest photograph


def _tiff(encoded: bytes, name: str) -> bytes:
    """The first directory: no tag is a list of millions of numbers, and the pixels are not in floating point."""
    order: Literal["little", "big"] = "little" if encoded.startswith(b"II") else "big"
    place = int.from_bytes(encoded[4:8], order)
    count = int.from_bytes(encoded[place : place + 2], order)
    if not 0 < count <= MAX_PARTS or place + 2 + 12 * count > len(encoded):
        raise _damaged(name, "TIFF", "it has no directory")
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind = (int.from_bytes(encoded[entry + at : entry + at + 2], order) for at in (0, 2))
        numbers = int.from_bytes(encoded[entry + 4 : entry + 8], order)
        if numbers > _MAX_TIFF_NUMBERS and _TIFF_BYTES.get(kind, 8) > 1:
            raise ImageError(f"{name} is a TIFF file whose tag {tag} has {numbers:,} numbers: only attacks are.")
    return encoded


def _bmp(encoded: bytes, name: str) -> bytes:
    """Run-length coded ones are unpacked byte by byte in Python, and nobody has any."""
    header = int.from_bytes(encoded[14:18], "little")
    compression = int.from_bytes(encoded[30:34], "little") if header >= 40 else 0
    if compression not in (0, 3, 6):
        raise ImageError(f"{name} is a compressed BMP image (kind {compression}); save it as PNG.")
    return encoded


def _damaged(name: str, format: str, why: str) -> ImageError:
    return ImageError(f"{name} is a damaged or truncated {format} file: {why}.")
