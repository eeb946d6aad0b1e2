"""numba's door: compiled functions, and where their machine code is kept.

numba keeps it beside the source file, or where that cannot be written in the user's cache folder, and refuses to
compile at all where neither can be (a read-only install under a user without a home). Then it is compiled anew in
every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(**options: Any) -> Callable[[Function], Function]:
    """A decorator: `numba.njit` with numpy's error model, without the interpreter's lock, with a cache if it can be.

    `options` are numba's own.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"} | options

    def compiled(function: Function) -> Function:
        try:
            result: Function = numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            result = numba.njit(**settings)(function)
        return result

    return compiled
