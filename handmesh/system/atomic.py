"""Files that are whole or not there: the one way in which handmesh writes them, and what identifies them (SHA-256)."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handmesh.errors import ExportError, HandMeshError

_NAME_BYTES = 100  # of the final name that a temporary one repeats; file systems allow 255 bytes


@contextmanager
def written_atomically(
    path: str | os.PathLike[str],
    *,
    error: type[HandMeshError] | None = ExportError,
    create_folder: bool = False,
    durable: bool = True,
) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes the name `path` only if nothing failed.

    A reader sees the old content or the whole new one, whatever happens meanwhile; `durable`: after a power cut, too.
    An OSError, inside the block too, becomes `error`; None lets it pass.
    """
    target = Path(path)
    if not target.name:  # ".", "..", "/"
        raise (error or ExportError)(f"Cannot write {target}: it is a folder or a device, wanted the name of a file.")
    name = os.fsencode(target.name)[:_NAME_BYTES].decode("utf-8", "ignore")
    temporary = target.with_name(f".{name}.{secrets.token_hex(6)}.partial")
    try:
        if target.exists() and not target.is_file():
            raise (error or ExportError)(
                f"Cannot write {target}: it is a folder or a device, wanted the name of a file."
            )
        if create_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        elif not target.parent.is_dir():
            raise (error or ExportError)(f"Cannot write {target}: there is no folder {target.parent}. Create it first.")
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as problem:
        if error is None:
            raise
        raise error(f"Cannot write {target}: {problem.strerror or problem}.") from problem
    finally:
        with suppress(OSError):  # the error that brought us here is the one to tell
            temporary.unlink(missing_ok=True)


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes,
    *,
    error: type[HandMeshError] | None = ExportError,
    durable: bool = False,
) -> None:
    """`written_atomically` for content that is at hand; into a folder that exists.

    Not the tempfile module: its files are private to the user (0600), and ours take the user's umask.
    """
    with written_atomically(path, error=error, durable=durable) as temporary, open(temporary, "xb") as file:
        file.write(content)


def sha256_of(content: bytes) -> str:
    """The hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
