"""The memory of a server: how much it holds, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["resident_bytes", "return_free_memory"]


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
