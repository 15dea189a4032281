"""Memory for large arrays: aligned with cache lines, and used again."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Recycler", "aligned", "aligned_empty"]

_ALIGNMENT = 64
_LARGEST_KEPT_BYTES = 2**27


def aligned(memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an array in memory that has 64 bytes to spare, from the first cache line on."""
    start = -memory.ctypes.data % _ALIGNMENT
    stop = start + math.prod(shape) * np.dtype(dtype).itemsize
    array: NDArray[Any] = memory[start:stop].view(dtype).reshape(shape)
    return array


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return a new array that starts at a cache line."""
    return aligned(np.empty(math.prod(shape) * np.dtype(dtype).itemsize + _ALIGNMENT, np.uint8), shape, dtype)


class Recycler:
    """The memory of an array that nobody holds any more is used for the next one.

    Pages that are fresh from the operating system cost as much time as the computation that fills them.
    Up to 128 MiB stay until the recycler goes. Not for several threads at a time.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)
        self._n_references_alone = sys.getrefcount(self._memory)

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array that starts at a cache line."""
        n_bytes = 4 * math.prod(shape) + _ALIGNMENT
        # Every view, and every view of a view, holds a reference to the array that owns the memory.
        if self._memory.nbytes < n_bytes or sys.getrefcount(self._memory) > self._n_references_alone:
            memory = np.empty(n_bytes, dtype=np.uint8)
            if n_bytes > _LARGEST_KEPT_BYTES:
                return aligned(memory, shape, np.float32)
            self._memory = memory
            del memory
        return aligned(self._memory, shape, np.float32)
