"""How the C library gives out memory: what long computations on large arrays want otherwise than its default."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees for what it asks for next.

    glibc maps every large block anew and gives it back when it is freed (mallopt(3): M_MMAP_THRESHOLD), so that the
    system has to fill all its pages with zeros each time: in a training step, each of the network's maps. Nothing
    happens where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
