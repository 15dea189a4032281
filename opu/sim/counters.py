"""Random numbers that are functions of a counter: Philox4x32-10.

Every random number of the simulator is a pure function of what it is for - mirror and pixel for the medium; noise key,
frame number and pixel for the camera - so no order of evaluation, batch size or thread count can change it.

Source: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. `philox` is compiled by Numba and
runs in plain Python as well: on NumPy arrays it is the reference against which the compiled kernels are tested.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MULTIPLIER_0",
    "MULTIPLIER_1",
    "WEYL_0",
    "WEYL_1",
    "WORD_BITS",
    "WORD_MASK",
    "derive_key",
    "frame_words",
    "philox",
    "philox_words",
]

# Of the ten rounds; and a word is the low half of 64 bits, in which the products of two words fit.
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)
WORD_MASK = np.uint64(0xFFFFFFFF)
WORD_BITS = np.uint64(32)


@lru_cache(maxsize=256)
def derive_key(purpose: str, *numbers: int) -> tuple[np.uint64, np.uint64]:
    """Derive a Philox key from what the numbers are for.

    Parameters
    ----------
    purpose : str
        Keeps streams for different purposes apart.
    *numbers : int
        For example the device seed and the noise key, each from 0 to 2**64 - 1.

    Returns
    -------
    tuple of two numpy.uint64
        The key's two 32-bit words.
    """
    content = purpose.encode() + b"\0" + struct.pack(f"<{len(numbers)}Q", *numbers)
    low, high = struct.unpack("<II", hashlib.blake2b(content, digest_size=8).digest())
    return np.uint64(low), np.uint64(high)


@njit(inline="always", cache=True)
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:  # pragma: no cover - compiled
    """Return four 32-bit words, held in uint64, for a counter of four 32-bit words and a key of two."""
    for _ in range(10):
        product_0 = MULTIPLIER_0 * c0
        product_1 = MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> WORD_BITS) ^ c1 ^ k0,
            product_1 & WORD_MASK,
            (product_0 >> WORD_BITS) ^ c3 ^ k1,
            product_0 & WORD_MASK,
        )
        k0 = (k0 + WEYL_0) & WORD_MASK
        k1 = (k1 + WEYL_1) & WORD_MASK
    return c0, c1, c2, c3


def philox_words(
    counter: tuple[Any, Any, Any, Any], key: tuple[np.uint64, np.uint64]
) -> tuple[NDArray[np.uint64], ...]:
    """Run Philox in NumPy: the reference for the compiled kernels.

    Parameters
    ----------
    counter : tuple of four uint64 arrays or numbers below 2**32
        They are broadcast together.
    key : tuple of two numpy.uint64
        As from `derive_key`.

    Returns
    -------
    tuple of four ndarray of uint64
        Words below 2**32.
    """
    words = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    result: tuple[NDArray[np.uint64], ...] = philox.py_func(*words, *key)
    return result


def frame_words(key: tuple[np.uint64, np.uint64], first_frame_index: int, n_frames: int) -> NDArray[np.uint64]:
    """Return four words for every frame, a function of its number: `philox((frame, frame >> 32, 0, 0), key)`.

    Returns
    -------
    ndarray of uint64, shape (4, n_frames)
        Words below 2**32.
    """
    numbers = np.arange(first_frame_index, first_frame_index + n_frames, dtype=np.uint64)
    return np.stack(philox_words((numbers & WORD_MASK, numbers >> WORD_BITS, 0, 0), key))
