"""How compiled kernels share a process."""

import threading

__all__ = ["numba_lock"]

numba_lock = threading.Lock()
"""Parallel kernels run one at a time in a process: Numba's portable threading layer allows no more."""
