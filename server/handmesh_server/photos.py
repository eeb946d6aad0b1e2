"""The photographs of a batch, out of a file that somebody sent: a zip, a form of several files, or one photograph.

Names are only repeated, never used: nothing is unpacked to the disk. What a zip says about itself is not believed: its
directory is measured before it is read, and unpacking stops at the limits whatever sizes are declared.
"""

from __future__ import annotations

import mmap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Final, NamedTuple

from handmesh_server.errors import UploadInvalid, UploadTooLarge
from handmesh_server.input import IMAGE_FIELD, MAX_PART_HEADER, PartNames, delimiter_of, names_of

_MAX_NAME: Final = 255  # characters of a name that are repeated

# A directory entry has 46 bytes and a name; time stamps and rights of other systems take some dozens.
_DIRECTORY_BYTES: Final = 1024  # of each photo, on average
_END, _END_BYTES = b"PK\x05\x06", 22
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20  # of zip64
_MAX_COMMENT: Final = 65_535


class BatchPhoto(NamedTuple):
    """One of many. `read` gives its bytes, and raises UploadTooLarge or UploadInvalid for this one alone."""

    name: str
    read: Callable[[], bytes]


@contextmanager
def opened_batch(
    file: IO[bytes], content_type: str, *, max_photos: int, max_photo_bytes: int, max_bytes: int
) -> Iterator[list[BatchPhoto]]:
    """The photographs of a file. Raises UploadInvalid when there are none, UploadTooLarge when there are too many.

    `max_bytes`: of all that a zip unpacks to; those after it are refused.
    """
    file.seek(0)
    begins = file.read(4)
    if not begins:
        raise UploadInvalid("The body is empty: send a zip, or a form of photos.")
    if begins in (b"PK\x03\x04", b"PK\x05\x06"):
        _check_directory(file, max_photos)
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise UploadInvalid(f"The zip cannot be read: {error}.") from None
        with archive:
            photos = _of_zip(archive, max_photos, max_photo_bytes, max_bytes)
            if not photos:
                raise UploadInvalid("The zip has no files.")
            yield photos
    elif not content_type.lower().startswith("multipart/"):
        raise UploadInvalid(
            f"The body is no zip and no form. Send a zip, or photos as fields {IMAGE_FIELD!r} of a form: "
            f"curl -F {IMAGE_FIELD}=@one.jpg -F {IMAGE_FIELD}=@two.jpg URL"
        )
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            yield _of_form(body, delimiter_of(content_type), max_photos, max_photo_bytes)


def _check_directory(file: IO[bytes], max_photos: int) -> None:
    """A directory that zipfile would read into memory whole, whatever its length. Raises UploadTooLarge, UploadInvalid.

    Found as zipfile finds it: APPNOTE.TXT, section 4.3.16.
    """
    end = file.seek(0, 2)
    start = file.seek(max(0, end - _END_BYTES - _MAX_COMMENT - _LOCATOR_BYTES))
    tail = file.read(end - start)
    place = len(tail) - _END_BYTES
    if not (tail[place : place + 4] == _END and tail[-2:] == b"\0\0"):
        place = tail.rfind(_END)
    if place < 0 or place + _END_BYTES > len(tail):
        raise UploadInvalid("The zip is damaged or truncated: its end is missing.")
    if tail[max(0, place - _LOCATOR_BYTES) : place].startswith(_LOCATOR):
        raise UploadInvalid("The zip is a zip64 archive, which is not read. Send fewer photos, in several zips.")
    if int.from_bytes(tail[place + 12 : place + 16], "little") > _DIRECTORY_BYTES * max_photos:
        raise _too_many(max_photos)


def _too_many(max_photos: int) -> UploadTooLarge:
    return UploadTooLarge(f"The batch has more than {max_photos:,} photos, the limit. Send it in parts.")


def _of_zip(archive: zipfile.ZipFile, max_photos: int, max_photo_bytes: int, max_bytes: int) -> list[BatchPhoto]:
    unpacked = 0

    def read(entry: zipfile.ZipInfo) -> bytes:
        nonlocal unpacked
        if entry.flag_bits & 1:
            raise UploadInvalid("This file of the zip is encrypted.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UploadInvalid("This file of the zip is compressed with something else than deflate.")
        if unpacked >= max_bytes:
            raise UploadTooLarge(f"The zip unpacks to more than {max_bytes:,} bytes, the limit.")
        try:
            with archive.open(entry) as file:
                content = file.read(max_photo_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
            raise UploadInvalid(f"This file of the zip is damaged: {error}.") from None
        unpacked += len(content)
        return _checked(content, max_photo_bytes)

    entries = [entry for entry in archive.infolist() if _is_a_file(entry)]
    if len(entries) > max_photos:
        raise _too_many(max_photos)
    return [BatchPhoto(entry.filename[:_MAX_NAME], partial(read, entry)) for entry in entries]


def _is_a_file(entry: zipfile.ZipInfo) -> bool:
    """And none that systems add: macOS's resource forks, .DS_Store and others that are hidden or in hidden folders."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in entry.filename.split("/"))
    return not (entry.is_dir() or entry.filename.startswith("__MACOSX/") or hidden)


def _of_form(body: mmap.mmap, delimiter: bytes, max_photos: int, max_photo_bytes: int) -> list[BatchPhoto]:
    """RFC 7578. The body is looked through once; the photographs stay on the disk until they are read."""
    damaged = "The multipart body is damaged or truncated: its end is missing."
    photos: list[BatchPhoto] = []
    place = 0 if body[: len(delimiter) - 2] == delimiter[2:] else body.find(delimiter)
    if place < 0:
        raise UploadInvalid(damaged)
    place += len(delimiter) - (2 if place == 0 else 0)
    while body[place : place + 2] != b"--":
        end = body.find(delimiter, place)
        if end < 0:
            raise UploadInvalid(damaged)
        blank = body.find(b"\r\n\r\n", place, min(end, place + MAX_PART_HEADER))
        field, name = names_of(body[place:blank]) if blank >= 0 else PartNames(None, None)
        if field != IMAGE_FIELD:
            raise UploadInvalid(f"A part of the form is no field {IMAGE_FIELD!r}; in a batch each is a photo.")
        if len(photos) == max_photos:
            raise _too_many(max_photos)

        def read(start: int = blank + 4, end: int = end) -> bytes:
            return _checked(body[start : min(end, start + max_photo_bytes + 1)], max_photo_bytes)

        photos.append(BatchPhoto((name or f"{len(photos)}")[:_MAX_NAME], read))
        place = end + len(delimiter)
    if not photos:
        raise UploadInvalid("The form has no photos.")
    return photos


def _checked(content: bytes, max_photo_bytes: int) -> bytes:
    if len(content) > max_photo_bytes:
        raise UploadTooLarge(f"The photo is larger than {max_photo_bytes:,} bytes, the limit.")
    return content
