"""The Gaussian medium: independent circular complex Gaussian entries, the field right from the first mirror on: truth.

Sums of QPSK entries become Gaussian with many mirrors; here every entry is Gaussian, at a hundredth of the speed.
Nothing is stored. The entries of a block come from half as many Philox calls: its mirrors `i` and `i + 32` share

    philox((32 block + i, point mod 2**32, epoch of the block, point // 2**32), key)

and have two words each, the lower mirror the first two. `opu.sim.variates` makes of them a pair of normal numbers of
variance 1, the real and the imaginary part. They are rounded to multiples of 2**-12, with an rms error of 7e-5; so
sums are sums of whole numbers, independent of their order, and rounded once, to float32.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.counters import WORD_BITS, WORD_MASK, derive_key, philox, philox_words
from opu.sim.kernels import address_of
from opu.sim.media.base import Medium, first_epochs
from opu.sim.media.sequence import SUM_GROUP, Light, SummedMedium
from opu.sim.mirrors import BLOCK, STUCK_ON, MirrorMap, n_blocks
from opu.sim.variates import fill_normal_pairs, normal_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GaussianMedium", "gaussian_entries_with_numpy"]

_HALF_BLOCK = BLOCK // 2
_CHUNK = 8
"""Blocks whose entries are made together. Their sum, levels included, stays within 32 bits."""

_LIT_BYTES = 2**25
_MOST_FRAMES = 256
_STEPS_PER_UNIT = np.float32(4096.0)
_UNITS_PER_STEP = np.float32(1 / 4096)
_HALF = np.float32(0.5)


@njit(cache=True)
def _draw_half_blocks(
    block: Any, epoch: Any, point: Any, k0: Any, k1: Any, radii: Any, angles: Any
) -> None:  # pragma: no cover - compiled
    for i in range(_HALF_BLOCK):
        counter = np.uint64(block * _HALF_BLOCK + i) & WORD_MASK
        a, b, c, d = philox(
            counter, point & WORD_MASK, np.uint64(epoch), point >> WORD_BITS, k0 & WORD_MASK, k1 & WORD_MASK
        )
        radii[i] = a
        angles[i] = b
        radii[_HALF_BLOCK + i] = c
        angles[_HALF_BLOCK + i] = d


@njit(cache=True)
def _draw(
    first: Any, epochs: Any, point: Any, k0: Any, k1: Any, words: Any, normals: Any, entries: Any
) -> None:  # pragma: no cover - compiled
    """Draw the entries of some blocks from `first` on, as whole numbers, int16, shape (2, n_mirrors).

    `words`, uint32, shape (2, n_mirrors), and `normals`, float32, shape (2, n_mirrors), are scratch.
    """
    size = len(epochs) * BLOCK
    for i in range(len(epochs)):
        places = slice(i * BLOCK, (i + 1) * BLOCK)
        _draw_half_blocks(first + i, epochs[i], point, k0, k1, words[0, places], words[1, places])
    fill_normal_pairs(words[0], words[1], np.uint64(0), normals[0], normals[1], np.uint64(size))
    for part in range(2):
        for i in range(size):
            entries[part, i] = np.int16(np.floor(normals[part, i] * _STEPS_PER_UNIT + _HALF))


@njit(cache=True)
def _light_frame(pattern: Any, runs: Any, levels: Any, lit: Any) -> None:  # pragma: no cover - compiled
    for run in range(len(runs)):
        start, end, feature = runs[run]
        if feature == STUCK_ON or pattern[feature] == 1:
            for i in range(start, end):
                lit[i] = levels[i]


@njit(parallel=True, cache=True)
def _light_frames(patterns: Any, runs: Any, levels: Any, lit: Any) -> None:  # pragma: no cover - compiled
    """Write the levels of the mirrors that are on to `lit`, shape (n_frames, n_mirrors rounded up), zeros."""
    for frame in prange(len(patterns)):
        _light_frame(patterns[frame], runs, levels, lit[frame])


@njit(cache=True)
def _add_levels(lit: Any, start: Any, size: Any, entries: Any, sums: Any) -> None:  # pragma: no cover - compiled
    """Add levels times entries to the sums of the frames, shape (n_frames, 2)."""
    for frame in range(len(lit)):
        levels = lit[frame, start * BLOCK : (start + size) * BLOCK]
        real = np.int32(0)
        imag = np.int32(0)
        for i in range(len(levels)):
            level = np.int32(levels[i])
            real = np.int32(real + np.int32(level * np.int32(entries[0, i])))
            imag = np.int32(imag + np.int32(level * np.int32(entries[1, i])))
        sums[frame, 0] += real
        sums[frame, 1] += imag


@address_of(SUM_GROUP)
def _sum_group(
    points: Any,
    epochs: Any,
    bounds: Any,
    frames: Any,
    blocks: Any,
    new_epochs: Any,
    lit: Any,
    everything: Any,
    k0: Any,
    k1: Any,
    sums: Any,
    all_sums: Any,
) -> Any:  # pragma: no cover - compiled
    """Add up levels times entries, see `SUM_GROUP`; words of light are eight levels."""
    lit_levels, all_levels = lit.view(np.uint8), everything.view(np.uint8)
    n_frames = len(lit)
    words = np.empty((2, _CHUNK * BLOCK), np.uint32)
    normals = np.empty((2, _CHUNK * BLOCK), np.float32)
    entries = np.empty((2, _CHUNK * BLOCK), np.int16)
    total = np.empty((1, 2), np.int64)
    for start in range(0, len(epochs), _CHUNK):
        size = min(_CHUNK, len(epochs) - start)
        last_change = bounds[start // _CHUNK + 1]
        for i in range(len(points)):
            point = np.uint64(points[i])
            _draw(start, epochs[start : start + size], point, k0, k1, words, normals, entries)
            change = bounds[start // _CHUNK]
            frame = 0
            while frame < n_frames:
                stop = frames[change] if change < last_change else n_frames
                _add_levels(lit_levels[frame:stop], start, size, entries, sums[i, frame:stop])
                if frame < all_sums.shape[1]:
                    total[0, 0] = 0
                    total[0, 1] = 0
                    _add_levels(all_levels, start, size, entries, total)
                    for j in range(frame, min(stop, all_sums.shape[1])):
                        all_sums[i, j, 0] += total[0, 0]
                        all_sums[i, j, 1] += total[0, 1]
                while change < last_change and frames[change] == stop:
                    block = blocks[change]
                    place = (block - start) * BLOCK
                    renewed = entries[:, place : place + BLOCK]
                    _draw(block, new_epochs[change : change + 1], point, k0, k1, words, normals, renewed)
                    change += 1
                frame = stop
    return 0


def gaussian_entries_with_numpy(
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
    rows = points.astype(np.uint64)[:, np.newaxis]
    counters = (blocks * _HALF_BLOCK + places % _HALF_BLOCK).astype(np.uint64)
    a, b, c, d = philox_words((counters, rows & WORD_MASK, epochs[blocks].astype(np.uint64), rows >> WORD_BITS), key)
    is_first = places < _HALF_BLOCK
    pair = normal_pairs(np.where(is_first, a, c), np.where(is_first, b, d))
    real, imag = (np.floor(part * _STEPS_PER_UNIT + _HALF) * _UNITS_PER_STEP for part in pair)
    entries: NDArray[np.complex128] = real.astype(np.float64) + 1j * imag.astype(np.float64)
    return entries


def _frames_at_once(mirrors: MirrorMap) -> int:
    return max(1, min(_MOST_FRAMES, _LIT_BYTES // (n_blocks(mirrors.n_mirrors) * BLOCK)))


class _GaussianFields(SummedMedium):
    """The medium for a session, see `GaussianMedium.prepare`."""

    chunk = _CHUNK
    unit = _UNITS_PER_STEP
    sum_group = staticmethod(_sum_group)

    def light(self, features: NDArray[np.uint8]) -> Light:
        """Light the mirrors of some patterns, see `SummedMedium.light`."""
        lit = np.zeros((len(features), n_blocks(self.mirrors.n_mirrors) * BLOCK), np.uint8)
        _light_frames(features, self.runs, self.mirrors.levels, lit)
        return Light(lit.view(np.uint64), np.zeros(len(features), np.int64))

    @cached_property
    def everything(self) -> Light:
        """The light on all mirrors, see `SummedMedium.everything`."""
        levels = np.zeros((1, n_blocks(self.mirrors.n_mirrors) * BLOCK), np.uint8)
        levels[0, : self.mirrors.n_mirrors] = self.mirrors.levels
        return Light(levels.view(np.uint64), np.zeros(1, np.int64))


class GaussianMedium(Medium):
    """A medium with independent circular complex Gaussian entries, made when they are used.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    """

    law = "circular complex Gaussian"
    min_ones = 1
    variance = 2.0

    def __init__(self, seed: int) -> None:
        self.key = derive_key("gaussian medium", seed)

    @property
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds."""
        return f"gaussian-{int(self.key[1]):08x}{int(self.key[0]):08x}"

    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory of a session: the levels of some frames, and the field of all mirrors at each point."""
        return (_frames_at_once(mirrors) + 1) * n_blocks(mirrors.n_mirrors) * BLOCK + 16 * n_points

    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> SummedMedium:
        """Make ready for a session, see `Medium.prepare`; this takes no time."""
        return _GaussianFields(self.key, mirrors, points, _frames_at_once(mirrors))

    def entries(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32] | None = None
    ) -> NDArray[np.complex64]:
        """Return a block of the transmission matrix, see `Medium.entries`."""
        if epochs is None:
            epochs = first_epochs(mirrors)
        entries = np.empty((len(points), len(mirrors)), np.complex64)
        for row in range(len(points)):  # the words of one row at a time, for they take more memory than the entries
            entries[row] = gaussian_entries_with_numpy(self.key, points[row : row + 1], mirrors, epochs)[0]
        return entries
