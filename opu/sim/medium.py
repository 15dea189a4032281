"""The scattering medium: a random complex matrix from mirrors to pixels, defined by counters and never stored.

The field at pixel `m` is `E_m = sum_n t_mn s_n` over the mirrors `n`, `s_n` being 1 for a mirror that is on. The
entries are `t_mn = (+-1 +- 1j)`, four values with equal probability (QPSK), two bits of
`philox(counter=(n // 64, m), key)`: the mean of `|t|^2` is 2. Sums over many mirrors are circular complex Gaussian by
the central limit theorem (contrast of the intensity: sqrt(1 - 1 / n_on)), and they are integers: sums below 2**24 are
exact in float32, in any order, on any machine.

For a session the medium is *compiled* into a matrix over features; each entry is the sum over the mirrors that show
the feature.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.counters import derive_key, philox, philox_words
from opu.sim.engine import OUTPUTS, IntegerMatrix, block_shape
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.parts import MirrorLayout

__all__ = ["CompiledMedium", "ExplicitMedium", "compile_with_numpy", "entries_with_numpy"]

MIN_ONES = 50
"""From this many lit mirrors on the contrast is within 0.01 of 1: sqrt(1 - 1 / 50) = 0.990."""

_BLOCK = 64
_CHUNK = 256
_REAL = slice(0, OUTPUTS)
_IMAG = slice(OUTPUTS, 2 * OUTPUTS)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD = np.uint64(32)


@dataclass(frozen=True, eq=False)
class CompiledMedium:
    """The medium over the features of a session, and over all mirrors for the background.

    Parameters
    ----------
    matrix : IntegerMatrix, n_features by n_outputs
        The sums of the entries over the mirrors of each feature.
    background_real, background_imag : ndarray of float32, shape (n_outputs,)
        Sums over all mirrors: the field that finite DMD contrast scales.
    """

    matrix: IntegerMatrix
    background_real: NDArray[np.float32]
    background_imag: NDArray[np.float32]


@njit(inline="always", cache=True)
def _popcount(word: Any) -> Any:  # pragma: no cover - compiled
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(parallel=True, cache=True)
def _compile(
    pixels: Any, n_features: Any, mirrors_per_feature: Any, n_mirrors: Any, k0: Any, k1: Any, blocks: Any, rest: Any
) -> None:  # pragma: no cover - compiled
    # rest, shape (n_outputs, 2), receives the sums over the mirrors that show no feature. A feature of k mirrors sums
    # to about sqrt(k), so 16 bits hold it for every DMD there is.
    n_blocks = (n_mirrors + _BLOCK - 1) // _BLOCK
    for output in prange(len(pixels)):
        pixel = np.uint64(pixels[output])
        words_real = np.empty(_CHUNK, np.uint64)
        words_imag = np.empty(_CHUNK, np.uint64)
        feature = 0
        left = mirrors_per_feature
        sum_real = 0
        sum_imag = 0
        for start in range(0, n_blocks, _CHUNK):
            size = min(_CHUNK, n_blocks - start)
            for i in range(size):
                a, b, c, d = philox(np.uint64(start + i), pixel, _U0, _U0, k0, k1)
                words_real[i] = a | (b << _WORD)
                words_imag[i] = c | (d << _WORD)
            for i in range(size):
                position = 0
                valid = min(_BLOCK, n_mirrors - (start + i) * _BLOCK)
                while position < valid:
                    take = min(valid - position, left)
                    mask = (_ALL >> np.uint64(_BLOCK - take)) << np.uint64(position)
                    sum_real += take - 2 * _popcount(words_real[i] & mask)
                    sum_imag += take - 2 * _popcount(words_imag[i] & mask)
                    position += take
                    left -= take
                    if left == 0:
                        blocks[output // OUTPUTS, feature, output % OUTPUTS] = sum_real
                        blocks[output // OUTPUTS, feature, OUTPUTS + output % OUTPUTS] = sum_imag
                        sum_real = 0
                        sum_imag = 0
                        feature += 1
                        left = mirrors_per_feature if feature < n_features else n_mirrors
        rest[output, 0] = sum_real
        rest[output, 1] = sum_imag


def entries_with_numpy(
    key: tuple[np.uint64, np.uint64], pixels: NDArray[np.int64], n_mirrors: int
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return real and imaginary parts of every entry, each +1 or -1, shape (n_outputs, n_mirrors)."""
    blocks = np.arange(-(-n_mirrors // _BLOCK), dtype=np.uint64)
    words = philox_words((blocks, pixels.astype(np.uint64)[:, np.newaxis], 0, 0), key)
    parts = []
    for low, high in (words[:2], words[2:]):
        packed = np.ascontiguousarray(low | (high << _WORD)).astype("<u8").view(np.uint8)
        bits = np.unpackbits(packed, axis=1, bitorder="little", count=n_mirrors)
        parts.append(1 - 2 * bits.astype(np.int8))
    return parts[0], parts[1]


def compile_with_numpy(
    key: tuple[np.uint64, np.uint64], pixels: NDArray[np.int64], layout: MirrorLayout
) -> CompiledMedium:
    """Compile as `ExplicitMedium.compile`, slowly, in NumPy: the twin of the kernel."""
    n_features, used = layout.n_features, layout.n_features * layout.mirrors_per_feature
    blocks = np.zeros(block_shape(n_features, len(pixels)), dtype=np.int16)
    backgrounds = []
    for start, part in zip((0, OUTPUTS), entries_with_numpy(key, pixels, layout.n_mirrors), strict=True):
        runs = part[:, :used].reshape(len(pixels), n_features, layout.mirrors_per_feature)
        sums = runs.sum(axis=2, dtype=np.int64)
        for output, row in enumerate(sums):
            blocks[output // OUTPUTS, :n_features, start + output % OUTPUTS] = row
        backgrounds.append(part.sum(axis=1, dtype=np.int64).astype(np.float32))
    return CompiledMedium(IntegerMatrix(blocks, n_features, len(pixels)), backgrounds[0], backgrounds[1])


class ExplicitMedium:
    """A medium whose matrix over features is compiled and held in memory.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.key = derive_key("medium", seed)
        self._compiled: weakref.WeakValueDictionary[tuple[object, ...], CompiledMedium] = weakref.WeakValueDictionary()
        # The last one stays, so that sessions that differ in exposure or light alone do not compile again.
        self._last: CompiledMedium | None = None

    @property
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds."""
        return f"qpsk-{int(self.key[1]):08x}{int(self.key[0]):08x}"

    def compiled_bytes(self, n_features: int, n_outputs: int) -> int:
        """Memory of a compiled medium, in bytes: two 16-bit integers for each feature and output."""
        return 2 * math.prod(block_shape(n_features, n_outputs))

    def prepare(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> CompiledMedium:
        """Compile the medium for a session, or return what another open session has compiled.

        Parameters
        ----------
        layout : MirrorLayout
            Which mirrors show which feature.
        pixels : ndarray of int64, shape (n_outputs,)
            The camera pixels.

        Returns
        -------
        CompiledMedium
            Kept as long as somebody holds it.
        """
        identity = (layout, pixels.tobytes())
        compiled = self._compiled.get(identity)
        if compiled is None:
            compiled = self.compile(layout, pixels)
            self._compiled[identity] = compiled
        self._last = compiled
        return compiled

    def compile(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> CompiledMedium:
        """Compile the medium over the features of a layout."""
        blocks = np.zeros(block_shape(layout.n_features, len(pixels)), dtype=np.int16)
        rest = np.zeros((len(pixels), 2), dtype=np.int64)
        with numba_lock:
            _compile(
                pixels,
                layout.n_features,
                layout.mirrors_per_feature,
                layout.n_mirrors,
                self.key[0],
                self.key[1],
                blocks,
                rest,
            )
        everything = blocks.sum(axis=1, dtype=np.int64)
        real, imag = (everything[:, half].ravel()[: len(pixels)] for half in (_REAL, _IMAG))
        return CompiledMedium(
            IntegerMatrix(blocks, layout.n_features, len(pixels)),
            (real + rest[:, 0]).astype(np.float32),
            (imag + rest[:, 1]).astype(np.float32),
        )
