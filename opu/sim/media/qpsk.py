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

from opu.sim.counters import WORD_BITS, WORD_MASK, derive_key, philox, philox_words
from opu.sim.media.base import Medium, first_epochs
from opu.sim.mirrors import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QpskMedium", "block_words", "entries_with_numpy", "popcount"]


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


class QpskMedium(Medium):
    """A medium of these entries, whatever way its fields are computed.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    """

    law = "circular complex Gaussian (sums of QPSK)"
    min_ones = 50  # sqrt(1 - 1 / 50) = 0.990
    variance = 2.0

    def __init__(self, seed: int) -> None:
        self.key = derive_key("medium", seed)

    @property
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds, however fields are computed."""
        return f"qpsk-{int(self.key[1]):08x}{int(self.key[0]):08x}"

    def entries(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32] | None = None
    ) -> NDArray[np.complex64]:
        """Return a block of the transmission matrix, see `Medium.entries`."""
        if epochs is None:
            epochs = first_epochs(mirrors)
        return entries_with_numpy(self.key, points, mirrors, epochs).astype(np.complex64)
