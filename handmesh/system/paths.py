"""Where files of the user's lie, on each system: what was added stays in the data folder, what can be made again in
the cache folder.

Where there is no home (a container with a numeric user), or it cannot be written, both lie in a folder for this user
among the temporary files, which is the one thing that is created here.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

from handmesh.errors import ConfigError

CACHE_VARIABLE = "HANDMESH_CACHE_DIR"


def user_data_folder() -> Path:
    r"""For what the user added: ``~/.local/share/handmesh`` (or under ``$XDG_DATA_HOME``), on macOS
    ``~/Library/Application Support/handmesh``, on Windows ``%LOCALAPPDATA%\handmesh``.
    """
    usual = _windows_folder() if sys.platform == "win32" else _in_home("XDG_DATA_HOME", ".local/share", _MAC_DATA)
    if usual is not None and (usual.is_dir() or can_be_written(usual)):  # one that is there may hold what was added
        return usual
    return temporary_folder() / "data"


def user_cache_folder() -> Path:
    r"""For what can be made again: ``$HANDMESH_CACHE_DIR``, or ``~/.cache/handmesh`` (or under ``$XDG_CACHE_HOME``), on
    macOS ``~/Library/Caches/handmesh``, on Windows ``%LOCALAPPDATA%\handmesh\cache``.
    """
    if chosen := folder_in(CACHE_VARIABLE):
        return chosen
    if sys.platform == "win32":
        folder = _windows_folder()
        usual = None if folder is None else folder / "cache"
    else:
        usual = _in_home("XDG_CACHE_HOME", ".cache", "Library/Caches")
    return usual if usual is not None and can_be_written(usual) else temporary_folder() / "cache"


def folder_in(variable: str) -> Path | None:
    """The folder that an environment variable names, if it does. Raises ConfigError for a ``~`` without a home."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{variable}={text}: there is no home folder for ~. Give the whole path.") from None


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, or it can be made."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@cache
def temporary_folder() -> Path:
    """A folder of this user's alone, the same for all processes; where somebody else made one of its name, a new one.

    Raises ConfigError where there is no place for temporary files.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"handmesh-{_user()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        ours = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        if stat.S_ISDIR(status.st_mode) and ours:
            return folder
        return Path(tempfile.mkdtemp(prefix="handmesh-"))
    except OSError as error:
        raise ConfigError(
            "There is no folder to write to: no home, and none for temporary files "
            f"({error.strerror or error}). Set HOME or TMPDIR."
        ) from None


_MAC_DATA = "Library/Application Support"


def _in_home(variable: str, usual: str, on_a_mac: str) -> Path | None:
    """None without a home."""
    if sys.platform != "darwin" and (given := os.environ.get(variable)):
        return Path(given) / "handmesh"
    home = _home()
    return None if home is None else home / (on_a_mac if sys.platform == "darwin" else usual) / "handmesh"


def _windows_folder() -> Path | None:
    if given := os.environ.get("LOCALAPPDATA"):
        return Path(given) / "handmesh"
    home = _home()
    return None if home is None else home / "AppData" / "Local" / "handmesh"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
