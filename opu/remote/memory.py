"""The memory of a server: how much it holds, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["resident_bytes", "return_free_memory", "use_one_arena"]

_M_ARENA_MAX = -8  # of malloc.h


def use_one_arena() -> bool:
    """Have all threads that start from now on allocate from one arena, where the C library is glibc.

    With one for each thread, as is usual, `return_free_memory` cannot give back what is free at the end of theirs: the
    memory of a server at rest differed by 20 MiB by chance.

    Returns
    -------
    bool
        Whether the C library does so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, 1))


def return_free_memory() -> bool:
    """Give freed memory back to the system, where the C library is glibc, and say whether there was any.

    glibc keeps what threads have freed for their next use, so that a server would stay as large as in its busiest
    minute. It takes some milliseconds, during which allocations wait.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes, None where the system does not tell.

    Examples
    --------
    >>> resident_bytes() is None or resident_bytes() > 2**20
    True
    """
    try:
        n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return n_pages * os.sysconf("SC_PAGE_SIZE")
