"""How compiled kernels share a process, and when they share work between threads."""

from __future__ import annotations

import threading

from numba import get_num_threads, set_num_threads

__all__ = ["KernelTurn", "numba_lock"]

numba_lock = threading.Lock()
"""Parallel kernels run one at a time in a process: Numba's portable threading layer allows no more."""

_WORTH_SHARING_NS = 300_000.0
"""Work that is shared. A parallel loop ends when its last thread does: one that is awake costs some microseconds, one
that sleeps tens of them, and one whose core another process has a slice of time, milliseconds. Measured on two cores,
idle and busy ones: batches of 8 patterns of 1,000 features and outputs, a quarter of a millisecond of work, are quicker
on one thread, and those of 16 on two."""


class KernelTurn:
    """Holds `numba_lock` for a kernel, which has one thread where its work is small. A context manager.

    Parameters
    ----------
    work_ns : float
        About how long one thread takes, in nanoseconds.
    """

    def __init__(self, work_ns: float) -> None:
        self._is_small = work_ns < _WORTH_SHARING_NS
        self._n_threads = 1

    def __enter__(self) -> None:
        numba_lock.acquire()
        self._n_threads = get_num_threads()
        if self._is_small and self._n_threads > 1:
            set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._is_small and self._n_threads > 1:
            set_num_threads(self._n_threads)
        numba_lock.release()
