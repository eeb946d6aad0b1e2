"""Where files of the user's lie, on each system: what was added stays in the data folder, what can be made again in
the cache folder. Nothing is created here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "HANDMESH_CACHE_DIR"


def user_data_folder() -> Path:
    r"""For what the user added: ``~/.local/share/handmesh`` (or under ``$XDG_DATA_HOME``), on macOS
    ``~/Library/Application Support/handmesh``, on Windows ``%LOCALAPPDATA%\handmesh``.
    """
    if sys.platform == "win32":
        return _windows_folder()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "handmesh"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "handmesh"


def user_cache_folder() -> Path:
    r"""For what can be made again: ``$HANDMESH_CACHE_DIR``, or ``~/.cache/handmesh`` (or under ``$XDG_CACHE_HOME``), on
    macOS ``~/Library/Caches/handmesh``, on Windows ``%LOCALAPPDATA%\handmesh\cache``.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return _windows_folder() / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "handmesh"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handmesh"


def _windows_folder() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "handmesh"
