"""Entries `t = (+-1 +- 1j)`, four values with equal probability (QPSK), as words of random bits.

Mirror `n` and point `p` have bit `n % 64` of two words, for the real and the imaginary part, which are the four words
of
`philox((n // 64, p mod 2**32, epoch of the block n // 64, p // 2**32), key)`, two and two, the lower half first. A bit
that is set means -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from opu.sim.counters import WORD_BITS, WORD_MASK, philox, philox_words
from opu.sim.mirrors import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "QPSK_LAW",
    "QPSK_MIN_ONES",
    "QPSK_VARIANCE",
    "block_words",
    "entries_with_numpy",
    "popcount",
]

QPSK_LAW = "circular complex Gaussian (sums of QPSK)"
QPSK_MIN_ONES = 50
"""From this many lit mirrors on the contrast is within 0.01 of 1: sqrt(1 - 1 / 50) = 0.990."""
QPSK_VARIANCE = 2.0
"""Mean of `|t|^2`."""


@intrinsic
def popcount(typing_context: Any, word: Any) -> Any:  # noqa: ARG001 - the signature of an intrinsic
    """Count the bits of a 64-bit word, by the processor's own instruction where it has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(inline="always", cache=True)
def block_words(block: Any, point: Any, epoch: Any, k0: Any, k1: Any) -> Any:  # pragma: no cover - compiled
    """Return the words of the real and of the imaginary parts of a block."""
    a, b, c, d = philox(
        np.uint64(block), np.uint64(point) & WORD_MASK, np.uint64(epoch), np.uint64(point) >> WORD_BITS, k0, k1
    )
    return a | (b << WORD_BITS), c | (d << WORD_BITS)


def entries_with_numpy(
    key: tuple[np.uint64, np.uint64],
    points: NDArray[np.int64],
    mirrors: NDArray[np.int64],
    epochs: NDArray[np.uint32],
) -> NDArray[np.complex128]:
    """Return entries, slowly, in NumPy, shape (n_points, n_mirrors).

    Parameters
    ----------
    key : tuple of two numpy.uint64
        The key of the medium.
    points, mirrors : ndarray of int64
        Rows and columns.
    epochs : ndarray of uint32, shape (n_blocks,)
        The epochs of all blocks.
    """
    blocks, places = np.divmod(mirrors, BLOCK)
    used, which = np.unique(blocks, return_inverse=True)
    rows = points.astype(np.uint64)[:, np.newaxis]
    words = philox_words(
        (used.astype(np.uint64), rows & WORD_MASK, epochs[used].astype(np.uint64), rows >> WORD_BITS), key
    )
    signs = [
        1 - 2 * (((low | (high << WORD_BITS))[:, which] >> places.astype(np.uint64)) & np.uint64(1)).astype(np.float64)
        for low, high in (words[:2], words[2:])
    ]
    entries: NDArray[np.complex128] = signs[0] + 1j * signs[1]
    return entries
