"""The matrix-free medium: the matrix of the explicit medium, made anew from its counters whenever it is used.

Nothing is stored, so that a session may have as many features and points as DMD and camera allow. The field of a
pattern is a sum over words of 64 mirrors. With `s` the states of the mirrors as bits and `w` the word of signs, a set
bit for -1,

    sum = popcount(s) - 2 popcount(s & w),

and where the light has levels, the same for each bit plane of the levels, times its power of two. The words of a
point are made once for all frames of a part of the sequence, and drawn anew for a block from the frame on in which its
epoch changes. Sums are whole numbers, exact in float32 below 2**24, and so independent of their order.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.counters import WORD_BITS, WORD_MASK
from opu.sim.kernels import address_of
from opu.sim.media.qpsk import QpskMedium, block_words, popcount
from opu.sim.media.qpsk_vectors import CHUNK, N_SHARED, begin_words, end_words
from opu.sim.media.sequence import SUM_GROUP, Light, SummedMedium
from opu.sim.mirrors import BLOCK, STUCK_ON, MirrorMap, n_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MatrixFreeMedium"]

_ROWS = 128
"""Rows of words, one for each frame and level plane, that are worked on together: those of a chunk fit a cache."""

_ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_BITS = np.uint64(0)
_BLOCK = np.uint64(BLOCK)
_NO_HIGH_WORD = np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(cache=True)
def _set_bits(words: Any, low: Any, high: Any, on: Any) -> None:  # pragma: no cover - compiled
    """Set the bits `low` to `high - 1`, counted from the first of `words`, if `on` is 1."""
    first, last = np.uint64(low) // _BLOCK, np.uint64(high - 1) // _BLOCK
    head = _ALL_BITS << (np.uint64(low) % _BLOCK)
    tail = _ALL_BITS >> (_BLOCK * (last + np.uint64(1)) - np.uint64(high))
    if first == last:
        words[first] |= head & tail & (_NO_BITS - np.uint64(on))  # a processor cannot foresee a branch on `on`
        return
    if on == 0:
        return
    words[first] |= head
    for i in range(first + np.uint64(1), last):
        words[i] = _ALL_BITS
    words[last] |= tail


@njit(cache=True)
def _light_frame(pattern: Any, runs: Any, planes: Any, lit: Any) -> Any:  # pragma: no cover - compiled
    """Set the level planes of the mirrors that are on, in zeros, and return the sum of their levels."""
    for run in range(len(runs)):
        start, end, feature = runs[run]
        _set_bits(lit[0], start, end, 1 if feature == STUCK_ON else pattern[feature])
    levels = np.int64(0)
    for plane in range(len(planes) - 1, -1, -1):
        count = np.uint64(0)
        for i in range(planes.shape[1]):
            word = lit[0, i] & planes[plane, i]
            lit[plane, i] = word
            count += popcount(word)
        levels += np.int64(count) << plane
    return levels


@njit(parallel=True, cache=True)
def _light_frames(patterns: Any, runs: Any, planes: Any, lit: Any, levels: Any) -> None:  # pragma: no cover - compiled
    for frame in prange(len(patterns)):
        levels[frame] = _light_frame(patterns[frame], runs, planes, lit[frame])


@njit(cache=True)
def _add_negative_levels(
    lit: Any, n_planes: Any, n_blocks: Any, start: Any, size: Any, words: Any, sums: Any
) -> None:  # pragma: no cover - compiled
    """Add the levels of the lit mirrors of a chunk whose sign is -1 to the sums of the frames, shape (n_frames, 2)."""
    for frame in range(len(lit)):
        for plane in range(n_planes):
            first = plane * n_blocks + start
            states = lit[frame, first : first + size]
            real = np.uint64(0)
            imag = np.uint64(0)
            for i in range(len(states)):
                real += popcount(states[i] & words[0, i])
                imag += popcount(states[i] & words[1, i])
            sums[frame, 0] += np.int64(real) << plane
            sums[frame, 1] += np.int64(imag) << plane


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
    """Add up the levels whose sign is -1, see `SUM_GROUP`; words of light are level planes, one after the other."""
    n_frames, n_blocks = len(lit), len(epochs)
    n_planes = lit.shape[1] // n_blocks
    shared = np.empty((N_SHARED, CHUNK), np.uint64)
    words = np.empty((2, CHUNK), np.uint64)
    negative = np.empty((1, 2), np.int64)
    for start in range(0, n_blocks, CHUNK):
        size = min(CHUNK, n_blocks - start)
        last_change = bounds[start // CHUNK + 1]
        shared_high = _NO_HIGH_WORD
        for i in range(len(points)):
            point = np.uint64(points[i])
            if point >> WORD_BITS != shared_high:
                shared_high = point >> WORD_BITS
                begin_words(start, shared_high, epochs[start : start + size], k0, k1, shared)
            end_words(size, point & WORD_MASK, shared, k0, k1, words)
            change = bounds[start // CHUNK]
            frame = 0
            while frame < n_frames:
                stop = frames[change] if change < last_change else n_frames
                _add_negative_levels(lit[frame:stop], n_planes, n_blocks, start, size, words, sums[i, frame:stop])
                if frame < all_sums.shape[1]:
                    negative[0, 0] = 0
                    negative[0, 1] = 0
                    _add_negative_levels(everything, n_planes, n_blocks, start, size, words, negative)
                    for j in range(frame, min(stop, all_sums.shape[1])):
                        all_sums[i, j, 0] += negative[0, 0]
                        all_sums[i, j, 1] += negative[0, 1]
                while change < last_change and frames[change] == stop:
                    block = blocks[change]
                    real, imag = block_words(block, point, new_epochs[change], k0, k1)
                    words[0, block - start] = real
                    words[1, block - start] = imag
                    change += 1
                frame = stop
    return 0


def _frames_at_once(mirrors: MirrorMap) -> int:
    return max(1, _ROWS // len(mirrors.level_planes))


class _MatrixFreeFields(SummedMedium):
    """The medium for a session, see `MatrixFreeMedium.prepare`."""

    chunk = CHUNK
    factor = -2
    sum_group = staticmethod(_sum_group)

    def light(self, features: NDArray[np.uint8]) -> Light:
        """Light the mirrors of some patterns, see `SummedMedium.light`."""
        planes = self.mirrors.level_planes
        lit = np.zeros((len(features), *planes.shape), np.uint64)
        levels = np.empty(len(features), np.int64)
        _light_frames(features, self.runs, planes, lit, levels)
        return Light(lit.reshape(len(features), -1), levels)

    @cached_property
    def everything(self) -> Light:
        """The light on all mirrors, see `SummedMedium.everything`."""
        levels = self.mirrors.levels.sum(dtype=np.int64, keepdims=True)
        return Light(self.mirrors.level_planes.reshape(1, -1), levels)


class MatrixFreeMedium(QpskMedium):
    """A medium whose entries are made when they are used: the matrix of `ExplicitMedium`, without its memory.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    """

    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory of a session: the words of some frames, and the field of all mirrors at each point."""
        n_words = _frames_at_once(mirrors) * len(mirrors.level_planes) * n_blocks(mirrors.n_mirrors)
        return 8 * n_words + 16 * n_points

    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> SummedMedium:
        """Make ready for a session, see `Medium.prepare`; this takes no time."""
        return _MatrixFreeFields(self.key, mirrors, points, _frames_at_once(mirrors))
