"""How compiled kernels share a process, and when they share work between threads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from numba import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["kernel_turn", "numba_lock"]

numba_lock = threading.Lock()
"""Parallel kernels run one at a time in a process: Numba's portable threading layer allows no more."""

_WORTH_SHARING_NS = 200_000.0
"""Work that is shared: a parallel loop ends when its last thread does. Threads that are awake cost 3 us, sleeping ones
20 to 50 us; one whose core another process has costs that process's slice of time, some milliseconds."""


@contextmanager
def kernel_turn(work_ns: float) -> Iterator[None]:
    """Hold `numba_lock` for a kernel, which has one thread where its work is small.

    Parameters
    ----------
    work_ns : float
        About how long one thread takes, in nanoseconds.
    """
    with numba_lock:
        n_threads = get_num_threads()
        if work_ns >= _WORTH_SHARING_NS or n_threads == 1:
            yield
            return
        set_num_threads(1)
        try:
            yield
        finally:
            set_num_threads(n_threads)
