"""The bytes of a photograph out of a request: limits first, then multipart or not.

What the bytes are is decided by the bytes (handmesh.files.image); declared types and file names are not believed or
used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple

from handmesh_server.admission import Reservation
from handmesh_server.errors import QueueFull, UploadInvalid, UploadTooLarge, UploadTooSlow

IMAGE_FIELD: Final = "image"

# The photo and what the query can say, with a box and a hand for each of 16; more is nobody's form.
_MAX_PARTS: Final = 40
_MAX_FIELD: Final = 256  # bytes
MAX_PART_HEADER: Final = 4096


async def read_body(
    stream: AsyncIterator[bytes], headers: Mapping[str, str], limit: int, seconds: float, memory: Reservation
) -> bytes:
    """The whole body. Raises UploadTooLarge, UploadTooSlow, and QueueFull when `memory` does not suffice."""
    too_large = f"The upload is larger than {limit:,} bytes, the limit. Send a smaller photo."
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise UploadTooLarge(too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in stream:
                if len(body) + len(chunk) > limit:
                    raise UploadTooLarge(too_large)
                # Twice: a bytearray that grows has up to that, and so has the copy at the end.
                if not memory.grow(2 * len(chunk)):
                    raise QueueFull("Too many uploads at a time. Try again soon.", 1)
                body += chunk
    except TimeoutError:
        raise UploadTooSlow(
            f"The upload took longer than {seconds:g} s, the limit ({len(body):,} bytes came)."
        ) from None
    return bytes(body)


class Form(NamedTuple):
    """What was posted: the photograph, and the fields beside it."""

    image: bytes
    fields: list[tuple[str, str]]  # (name, value), in their order


def read_form(body: bytes, content_type: str) -> Form:
    """The body itself is the photograph, or the field `image` of a multipart form. Raises UploadInvalid."""
    if not content_type.lower().startswith("multipart/"):
        return Form(body, [])
    delimiter = delimiter_of(content_type)
    # The first delimiter may be at the very start, without the line break that belongs to it.
    parts = (b"\r\n" + body).split(delimiter, _MAX_PARTS + 2)
    if len(parts) > _MAX_PARTS + 2:
        raise UploadInvalid(f"The form has more than {_MAX_PARTS} fields.")
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise UploadInvalid("The multipart body is damaged or truncated: its end is missing.")
    image: bytes | None = None
    fields = []
    for part in parts[1:-1]:
        blank = part.find(b"\r\n\r\n", 0, MAX_PART_HEADER)
        name = names_of(part[:blank]).field if blank >= 0 else None
        if name is None:
            raise UploadInvalid("A part of the form has no name.")
        if name != IMAGE_FIELD:
            fields.append((name, _text(name, part[blank + 4 :])))
        elif image is not None:
            raise UploadInvalid(f"The form has a second {IMAGE_FIELD!r}: send each photo in a request of its own.")
        else:
            image = part[blank + 4 :]
    if image is None:
        raise UploadInvalid(f"The form has no field {IMAGE_FIELD!r}; for example: curl -F {IMAGE_FIELD}=@photo.jpg URL")
    return Form(image, fields)


def delimiter_of(content_type: str) -> bytes:
    """What stands before each part of a multipart/form-data body, line break included. Raises UploadInvalid."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise UploadInvalid("Of multipart bodies only multipart/form-data is read.")
    # RFC 2046, section 5.1.1: up to 70 characters, quoted when they are not a token.
    found = re.search(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', content_type, re.IGNORECASE)
    if found is None:
        raise UploadInvalid("The multipart Content-Type names no boundary.")
    return b"\r\n--" + (found.group(1) or found.group(2)).encode("latin-1")


def _text(name: str, value: bytes) -> str:
    try:
        if len(value) <= _MAX_FIELD:
            return value.decode()
    except UnicodeDecodeError:
        pass
    raise UploadInvalid(f"The form's field {name[:100]!r} is no text of at most {_MAX_FIELD} bytes.")


class PartNames(NamedTuple):
    """What a part of a form is called; None where it is not said."""

    field: str | None
    file: str | None


def names_of(part_header: bytes) -> PartNames:
    """Of its Content-Disposition (RFC 7578, section 4.2)."""
    for line in part_header.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            found = (
                re.search(rb";\s*" + name + rb'=(?:"([^"]*)"|([^\s;"]+))', value, re.IGNORECASE)
                for name in (b"name", b"filename")
            )
            return PartNames(*(one and (one[1] or one[2] or b"").decode("utf-8", "replace") for one in found))
    return PartNames(None, None)
