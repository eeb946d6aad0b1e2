"""numba's door: compiled functions, and where their machine code is kept.

numba keeps it beside the source file; where that cannot be written we name handmesh's cache folder, for numba's own
second place is another folder of the user's, or without a home one called "~". Where nothing can be written numba
refuses to compile; then it is compiled anew in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba

from handmesh.errors import ConfigError
from handmesh.system.paths import can_be_written, user_cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(**options: Any) -> Callable[[Function], Function]:
    """A decorator: `numba.njit` with numpy's error model, without the interpreter's lock, with a cache if it can be.

    `options` are numba's own.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"} | options

    def compiled(function: Function) -> Function:
        try:
            with _cache_of(function):
                result: Function = numba.njit(cache=True, **settings)(function)
        except (RuntimeError, ConfigError):  # "cannot cache function: no locator available"; no folder at all
            result = numba.njit(**settings)(function)
        return result

    return compiled


@contextmanager
def _cache_of(function: Callable[..., Any]) -> Iterator[None]:
    """Where numba, which asks once for each function, is to keep its machine code."""
    config: Any = numba.config
    before = config.CACHE_DIR
    source = Path(function.__code__.co_filename).parent
    if not before and not can_be_written(source / "__pycache__"):
        config.CACHE_DIR = str(user_cache_folder() / "numba")
    try:
        yield
    finally:
        config.CACHE_DIR = before
