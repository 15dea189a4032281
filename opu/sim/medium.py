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

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.counters import derive_key, philox, philox_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.parts import MirrorLayout

__all__ = ["CompiledMedium", "ExplicitMedium", "compile_with_numpy", "entries_with_numpy", "field_of", "numba_lock"]

MIN_ONES = 50
"""From this many lit mirrors on the contrast is within 0.01 of 1: sqrt(1 - 1 / 50) = 0.990."""

numba_lock = threading.Lock()
"""Parallel kernels run one at a time in a process: Numba's portable threading layer allows no more."""

_BLOCK = 64
_CHUNK = 256
_OUTPUT_BLOCK = 1024
_FEW_FEATURES = 128
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD = np.uint64(32)


@dataclass(frozen=True, eq=False)
class CompiledMedium:
    """The medium over the features of a session, and over all mirrors for the background.

    Parameters
    ----------
    real, imag : ndarray of float32, shape (n_features, n_outputs)
        Integer-valued parts of the matrix.
    background_real, background_imag : ndarray of float32, shape (n_outputs,)
        Sums over all mirrors: the field that finite DMD contrast scales.
    """

    real: NDArray[np.float32]
    imag: NDArray[np.float32]
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
    pixels: Any, n_features: Any, mirrors_per_feature: Any, n_mirrors: Any, k0: Any, k1: Any, real: Any, imag: Any
) -> None:  # pragma: no cover - compiled
    # real, imag: (n_features + 1, n_outputs); the last row is for the mirrors that show no feature.
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
                        real[feature, output] = sum_real
                        imag[feature, output] = sum_imag
                        sum_real = 0
                        sum_imag = 0
                        feature += 1
                        left = mirrors_per_feature if feature < n_features else n_mirrors
        if feature == n_features:
            real[n_features, output] = sum_real
            imag[n_features, output] = sum_imag


@njit(parallel=True, cache=True)
def _sum_lit(features: Any, matrix: Any, out: Any) -> None:  # pragma: no cover - compiled
    n_frames, n_features = features.shape
    n_blocks = (out.shape[1] + _OUTPUT_BLOCK - 1) // _OUTPUT_BLOCK
    for task in prange(n_frames * n_blocks):
        frame = task // n_blocks
        start = (task % n_blocks) * _OUTPUT_BLOCK
        stop = min(start + _OUTPUT_BLOCK, out.shape[1])
        out[frame, start:stop] = np.float32(0)
        for feature in range(n_features):
            if features[frame, feature]:
                for output in range(start, stop):
                    out[frame, output] += matrix[feature, output]


def field_of(compiled: CompiledMedium, features: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the field of the lit features: `features @ (real + 1j imag)`.

    Sums of integers below 2**24, so both engines give the same bits. Few features are summed up by a kernel: BLAS
    gains nothing there, and its waiting threads take the cores from everybody else (on two busy cores, 512 frames of
    2263 outputs took 68 ms with it and 28 ms without).

    Parameters
    ----------
    compiled : CompiledMedium
        The medium of the session.
    features : ndarray of uint8, shape (n_frames, n_features)
        Values 0 and 1.

    Returns
    -------
    tuple of two ndarray of float32, shape (n_frames, n_outputs)
        Real and imaginary parts.
    """
    if features.shape[1] > _FEW_FEATURES:
        lit = features.astype(np.float32)
        return lit @ compiled.real, lit @ compiled.imag
    real = np.empty((len(features), compiled.real.shape[1]), dtype=np.float32)
    imag = np.empty_like(real)
    with numba_lock:
        _sum_lit(features, compiled.real, real)
        _sum_lit(features, compiled.imag, imag)
    return real, imag


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
    sums, backgrounds = [], []
    used = layout.n_features * layout.mirrors_per_feature
    for part in entries_with_numpy(key, pixels, layout.n_mirrors):
        runs = part[:, :used].reshape(len(pixels), layout.n_features, layout.mirrors_per_feature)
        sums.append(np.ascontiguousarray(runs.sum(axis=2, dtype=np.int64).T.astype(np.float32)))
        backgrounds.append(part.sum(axis=1, dtype=np.int64).astype(np.float32))
    return CompiledMedium(sums[0], sums[1], backgrounds[0], backgrounds[1])


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
        """Memory of a compiled medium, in bytes: two float32 for each feature and output."""
        return 8 * (n_features + 1) * n_outputs

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
        shape = (layout.n_features + 1, len(pixels))
        real = np.zeros(shape, dtype=np.float32)
        imag = np.zeros(shape, dtype=np.float32)
        with numba_lock:
            _compile(
                pixels,
                layout.n_features,
                layout.mirrors_per_feature,
                layout.n_mirrors,
                self.key[0],
                self.key[1],
                real,
                imag,
            )
        # Sums of integers far below 2**24: exact in float32 in any order.
        return CompiledMedium(real[:-1], imag[:-1], real.sum(axis=0), imag.sum(axis=0))
