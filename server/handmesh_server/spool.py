"""Uploads that are too large for memory: written to a file as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import IO, Final

from handmesh_server.errors import StorageFull, UploadTooLarge, UploadTooSlow

_WRITTEN_AT_ONCE: Final = 1 << 20  # bytes


async def spool_body(
    stream: AsyncIterator[bytes],
    headers: Mapping[str, str],
    file: IO[bytes],
    *,
    limit: int,
    seconds: float,
    check_room: Callable[[int], None] = lambda _: None,
) -> int:
    """The whole body into `file`. -> its bytes.

    `check_room(count)` is asked, in a thread, before so many bytes more are written, and first for all that are
    declared; it raises StorageFull. Raises UploadTooLarge, UploadTooSlow and StorageFull.
    """
    too_large = f"The upload is larger than {limit:,} bytes, the limit. Send it in parts."
    declared = headers.get("content-length", "")
    if declared.isdigit():
        if int(declared) > limit:
            raise UploadTooLarge(too_large)
        await asyncio.to_thread(check_room, int(declared))
    count = 0

    def write(content: bytes) -> None:
        try:
            check_room(len(content))
            file.write(content)
        except OSError as error:
            raise StorageFull(f"The upload cannot be stored: {error.strerror or error}.") from error

    part = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in stream:
                count += len(chunk)
                if count > limit:
                    raise UploadTooLarge(too_large)
                part += chunk
                if len(part) >= _WRITTEN_AT_ONCE:
                    await asyncio.to_thread(write, bytes(part))
                    part.clear()
    except TimeoutError:
        raise UploadTooSlow(f"The upload took longer than {seconds:g} s, the limit ({count:,} bytes came).") from None
    await asyncio.to_thread(write, bytes(part))
    await asyncio.to_thread(_flush, file)
    return count


def _flush(file: IO[bytes]) -> None:
    try:
        file.flush()
    except OSError as error:
        raise StorageFull(f"The upload cannot be stored: {error.strerror or error}.") from error
