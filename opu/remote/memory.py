"""Memory that a server no longer needs."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["return_free_memory"]


def return_free_memory() -> bool:
    """Give freed memory back to the system, where the C library is glibc, and say whether there was any.

    glibc keeps what threads have freed for their next use, so that a server would stay as large as in its busiest
    minute. It takes some milliseconds, during which allocations wait.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
