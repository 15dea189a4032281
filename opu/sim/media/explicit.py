"""The explicit medium: compiled for a session into a matrix over features that is held in memory.

The entries are `t = (+-1 +- 1j)`, four values with equal probability (QPSK), see `opu.sim.media.qpsk`: the mean of
`|t|^2` is 2. Sums over many mirrors are circular complex Gaussian by the central limit theorem (contrast of the
intensity: sqrt(1 - 1 / n_on)), and they are integers: sums below 2**24 are exact in float32, in any order, on any
machine.

Compiling sums the entries over the mirrors of each feature. When the medium drifts, a sequence of frames is
computed with the matrix of its first frame and a correction: a matrix with one more row for every feature and frame
in which blocks of mirrors renewed. Before the rows become many, the compiled matrix itself is brought up to date.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.parts import UNUSED_MIRROR
from opu.sim.counters import WORD_BITS, WORD_MASK
from opu.sim.engine import OUTPUTS, IntegerMatrix, block_shape
from opu.sim.light import off_field, sight
from opu.sim.media.base import EpochTrack, Fields, PreparedMedium, never_renewed
from opu.sim.media.qpsk import QpskMedium, block_words, entries_with_numpy, popcount
from opu.sim.media.qpsk_vectors import CHUNK, N_SHARED, begin_words, end_words
from opu.sim.mirrors import BLOCK, STUCK_ON, MirrorMap, n_blocks
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CompiledMedium", "ExplicitMedium", "compile_with_numpy"]

_SAFE_DEVIATIONS = 7
_ENTRIES_AT_ONCE = 2**31
"""Compiled while other kernels wait: a quarter of a second."""

_CORRECTION_BYTES = 2**26
"""Memory that corrections for drift may take beside the compiled matrix."""

_ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_HIGH_WORD = np.uint64(0xFFFFFFFFFFFFFFFF)
_STUCK, _EVERYTHING = 0, 1


def _block_dtype(mirrors: MirrorMap) -> type[np.signedinteger[Any]]:
    """Return int16 where the entry of a feature, a sum of random signs, is seven deviations away from its range."""
    _, lengths, features, levels = mirrors.runs[mirrors.runs[:, 2] >= 0].T
    power = np.bincount(features, weights=lengths * levels.astype(np.float64) ** 2)
    largest = _SAFE_DEVIATIONS * math.sqrt(power.max(initial=0.0))
    return np.int16 if largest <= np.iinfo(np.int16).max else np.int32


@njit(inline="always", cache=True)
def _run_sum(words: Any, part: Any, low: Any, high: Any) -> Any:  # pragma: no cover - compiled
    """Sum the signs of the mirrors `low` to `high - 1`, counted from the first bit of `words[part]`."""
    first, last = low // BLOCK, (high - 1) // BLOCK
    head = _ALL_BITS << np.uint64(low - first * BLOCK)
    tail = _ALL_BITS >> np.uint64((last + 1) * BLOCK - high)
    if first == last:
        negative = popcount(words[part, first] & head & tail)
    else:
        negative = popcount(words[part, first] & head) + popcount(words[part, last] & tail)
        for i in range(first + 1, last):
            negative += popcount(words[part, i])
    return high - low - 2 * np.int64(negative)


@njit(cache=True)
def _add_runs(
    runs: Any, first: Any, start: Any, size: Any, words: Any, column: Any, block: Any, rest: Any
) -> None:  # pragma: no cover - compiled
    """Add what the runs of mirrors, from `first` on, sum up to in a chunk of words of one point."""
    chunk_low, chunk_high = start * BLOCK, (start + size) * BLOCK
    run = first
    while run < len(runs) and runs[run, 0] < chunk_high:
        low = max(runs[run, 0] - chunk_low, 0)
        high = min(runs[run, 0] + runs[run, 1], chunk_high) - chunk_low
        feature = runs[run, 2]
        for part in range(2):  # real and imaginary
            value = _run_sum(words, part, low, high) * runs[run, 3]
            if feature >= 0:
                block[feature, part * OUTPUTS + column] += value
            elif feature == STUCK_ON:
                rest[_STUCK, part] += value
            rest[_EVERYTHING, part] += value
        run += 1


@njit(parallel=True, cache=True)
def _compile(
    points: Any, runs: Any, firsts: Any, epochs: Any, k0: Any, k1: Any, blocks: Any, rest: Any
) -> None:  # pragma: no cover - compiled
    # firsts: the first run of mirrors that reaches into each chunk of words. rest, shape (n_points, 2, 2), receives the
    # sums over stuck and over all mirrors, real and imaginary.
    for block in prange(len(blocks)):
        shared = np.empty((N_SHARED, CHUNK), np.uint64)
        words = np.empty((2, CHUNK), np.uint64)
        for start in range(0, len(epochs), CHUNK):
            size = min(CHUNK, len(epochs) - start)
            shared_high = _NO_HIGH_WORD
            for output in range(block * OUTPUTS, min((block + 1) * OUTPUTS, len(points))):
                point = np.uint64(points[output])
                if point >> WORD_BITS != shared_high:
                    shared_high = point >> WORD_BITS
                    begin_words(start, shared_high, epochs[start : start + size], k0, k1, shared)
                end_words(size, point & WORD_MASK, shared, k0, k1, words)
                _add_runs(
                    runs, firsts[start // CHUNK], start, size, words, output % OUTPUTS, blocks[block], rest[output]
                )


@njit(cache=True)
def _block_words_of_points(
    block: Any, points: Any, epoch: Any, k0: Any, k1: Any, real: Any, imag: Any
) -> None:  # pragma: no cover - compiled
    for i in range(len(points)):
        real[i], imag[i] = block_words(block, points[i], epoch, k0, k1)


@njit(cache=True)
def _add_difference(new: Any, old: Any, mask: Any, level: Any, out: Any) -> None:  # pragma: no cover - compiled
    # The number of mirrors cancels in the difference of two sums of signs.
    for i in range(len(new)):
        out[i] += 2 * level * (np.int64(popcount(old[i] & mask)) - np.int64(popcount(new[i] & mask)))


@njit(parallel=True, cache=True)
def _add_changes(
    points: Any, changed: Any, old: Any, new: Any, bounds: Any, pieces: Any, k0: Any, k1: Any, blocks: Any, last: Any
) -> None:  # pragma: no cover - compiled
    # What renewing blocks of mirrors adds. pieces[bounds[i]:bounds[i + 1]] are the runs within the changed block i:
    # first # and last bit + 1, level, row of `blocks` (none if negative), row of `last`, which collects all mirrors.
    for block in prange(len(blocks)):
        mine = points[block * OUTPUTS : (block + 1) * OUTPUTS]
        size = len(mine)
        words = np.empty((4, size), np.uint64)  # real and imaginary parts, of the old epoch and of the new one
        for i in range(len(changed)):
            _block_words_of_points(changed[i], mine, old[i], k0, k1, words[0], words[1])
            _block_words_of_points(changed[i], mine, new[i], k0, k1, words[2], words[3])
            for piece in range(bounds[i], bounds[i + 1]):
                low, high, level, row, everything = pieces[piece]
                mask = (_ALL_BITS << np.uint64(low)) & (_ALL_BITS >> np.uint64(BLOCK - high))
                if row >= 0:
                    _add_difference(words[2], words[0], mask, level, blocks[block, row, :size])
                    _add_difference(words[3], words[1], mask, level, blocks[block, row, OUTPUTS : OUTPUTS + size])
                _add_difference(words[2], words[0], mask, level, last[block, everything, :size])
                _add_difference(words[3], words[1], mask, level, last[block, everything, OUTPUTS : OUTPUTS + size])


@dataclass(frozen=True, eq=False)
class _Changes:
    """Blocks of mirrors that renew, and the runs of mirrors within them.

    Parameters
    ----------
    frames, blocks : ndarray of int64, shape (n_changes,)
        When, and which block.
    old, new : ndarray of uint32, shape (n_changes,)
        The epochs before and after.
    bounds : ndarray of int64, shape (n_changes + 1,)
        The pieces of change `i` are `bounds[i]` to `bounds[i + 1] - 1`.
    low, high, features, levels : ndarray of int64, shape (n_pieces,)
        Bits of the block, and what its mirrors show.
    """

    frames: NDArray[np.int64]
    blocks: NDArray[np.int64]
    old: NDArray[np.uint32]
    new: NDArray[np.uint32]
    bounds: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    features: NDArray[np.int64]
    levels: NDArray[np.int64]

    @property
    def piece_frames(self) -> NDArray[np.int64]:
        """When each piece renews."""
        return np.repeat(self.frames, np.diff(self.bounds))

    @property
    def stuck(self) -> _Changes:
        """What stuck mirrors have of them."""
        chosen = self.features == STUCK_ON
        change_of_piece = np.repeat(np.arange(len(self.blocks)), np.diff(self.bounds))
        kept, counts = np.unique(change_of_piece[chosen], return_counts=True)
        return _Changes(
            self.frames[kept],
            self.blocks[kept],
            self.old[kept],
            self.new[kept],
            np.concatenate([[0], np.cumsum(counts)]),
            self.low[chosen],
            self.high[chosen],
            self.features[chosen],
            self.levels[chosen],
        )


def _find_changes(mirrors: MirrorMap, start: NDArray[np.uint32], track: EpochTrack) -> _Changes:
    """List what differs from the epochs `start`, at the first frame and later."""
    moved = np.flatnonzero(start != track.initial)
    frames = np.concatenate([np.zeros(len(moved), np.int64), track.frames])
    blocks = np.concatenate([moved, track.blocks])
    new = np.concatenate([track.initial[moved], track.epochs])
    old = np.empty_like(new)
    current = start.copy()
    for i, (block, epoch) in enumerate(zip(blocks, new, strict=True)):
        old[i], current[block] = current[block], epoch
    runs = mirrors.runs
    ends = runs[:, 0] + runs[:, 1]
    first = np.searchsorted(ends, blocks * BLOCK, side="right")
    last = np.searchsorted(runs[:, 0], (blocks + 1) * BLOCK)
    counts = last - first
    bounds = np.concatenate([[0], np.cumsum(counts)])
    which = np.arange(bounds[-1]) - np.repeat(bounds[:-1] - first, counts)
    origin = np.repeat(blocks * BLOCK, counts)
    return _Changes(
        frames,
        blocks,
        old,
        new,
        bounds,
        np.maximum(runs[which, 0] - origin, 0),
        np.minimum(ends[which] - origin, BLOCK),
        runs[which, 2],
        runs[which, 3],
    )


class CompiledMedium(PreparedMedium):
    """The medium over the features of a session.

    Parameters
    ----------
    medium : ExplicitMedium
        What it is compiled from.
    mirrors : MirrorMap
        What the mirrors show.
    points : ndarray of int64, shape (n_points,)
        Whose field is wanted.
    epochs : ndarray of uint32, shape (n_blocks,)
        The epochs to start with.
    """

    def __init__(
        self, medium: ExplicitMedium, mirrors: MirrorMap, points: NDArray[np.int64], epochs: NDArray[np.uint32]
    ) -> None:
        self.mirrors = mirrors
        self.points = points
        self._key = medium.key
        blocks = np.zeros(block_shape(mirrors.n_features, len(points)), dtype=_block_dtype(mirrors))
        self.matrix = IntegerMatrix(blocks, mirrors.n_features, len(points))
        self._compile(epochs)

    def _compile(self, epochs: NDArray[np.uint32]) -> None:
        """Compile the matrix for some epochs, in the memory of the one before."""
        self._is_valid = False  # until everything belongs to the same epochs
        self.matrix.blocks.fill(0)
        self.rest = np.zeros((len(self.points), 2, 2), dtype=np.int64)
        runs = self.mirrors.runs
        firsts = np.searchsorted(runs[:, 0] + runs[:, 1], np.arange(0, len(epochs), CHUNK) * BLOCK, side="right")
        # In slices, so that projections of other sessions come in between.
        step = max(1, _ENTRIES_AT_ONCE // (OUTPUTS * self.mirrors.n_mirrors))
        for start in range(0, len(self.matrix.blocks), step):
            some = slice(start, start + step)
            points = slice(start * OUTPUTS, (start + step) * OUTPUTS)
            with numba_lock:
                _compile(
                    self.points[points], runs, firsts, epochs, *self._key, self.matrix.blocks[some], self.rest[points]
                )
        self._settle(epochs)

    def _settle(self, epochs: NDArray[np.uint32]) -> None:
        """Note that matrix and rest belong to these epochs."""
        # A new matrix, because an IntegerMatrix knows the range of its entries.
        self.matrix = IntegerMatrix(self.matrix.blocks, self.mirrors.n_features, len(self.points))
        self.epochs = epochs
        self._off: tuple[complex, NDArray[np.complex64] | None] | None = None
        self._is_valid = True

    def fields(self, features: NDArray[np.uint8], track: EpochTrack) -> Fields:
        """Compute the fields of a sequence, see `PreparedMedium.fields`."""
        if not self._is_valid:
            self._compile(track.initial)
        changes = _find_changes(self.mirrors, self.epochs, track)
        if len(changes.frames) == 0:
            return self._still_fields(features)
        if len(changes.blocks) - len(track.blocks) > self._most_rows // 8:
            self._move_to(track.initial)
            return self.fields(features, track)
        if len(features) > 1 and len(changes.low) > self._most_rows:
            half = len(features) // 2
            parts = [
                self.fields(features[:half], track.part(0, half)),
                self.fields(features[half:], track.part(half, len(features))),
            ]
            return Fields(
                *(
                    np.concatenate([_rows(getattr(part, name), part.real) for part in parts])
                    for name in ("real", "imag", "all_real", "all_imag")
                )
            )
        return self._changing_fields(features, changes)

    def light_electrons(
        self,
        features: NDArray[np.uint8],
        track: EpochTrack,
        off_amplitude: complex,
        arm: NDArray[np.complex64] | None,
        electrons_per_intensity: float,
        out: NDArray[np.float32],
    ) -> None:
        """Compute photo-electrons, see `PreparedMedium.light_electrons`."""
        if not (self._is_valid and track.stays_at(self.epochs)) or self.mirrors.has_stuck_on:
            super().light_electrons(features, track, off_amplitude, arm, electrons_per_intensity, out)
            return
        seen = sight(off_amplitude, self._off_field(off_amplitude), arm, electrons_per_intensity)
        self.matrix.light_electrons(features, seen, out)

    def _off_field(self, off_amplitude: complex) -> NDArray[np.complex64] | None:
        """Return the `off_field`, which stays the same until the epochs change."""
        if self._off is None or self._off[0] != off_amplitude:
            self._off = off_amplitude, off_field(off_amplitude, *self._background())
        return self._off[1]

    def _background(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the field of all mirrors, real and imaginary parts, shape (1, n_points)."""
        real, imag = self.rest[np.newaxis, :, _EVERYTHING].astype(np.float32).transpose(2, 0, 1)
        return real, imag

    @property
    def _most_rows(self) -> int:
        """How many rows a correction may have: as many as the matrix itself has, and within bounds of memory."""
        return _most_rows(self.mirrors.n_features, len(self.points))

    def _still_fields(self, features: NDArray[np.uint8]) -> Fields:
        real, imag = self.matrix.multiply(features)
        if self.mirrors.has_stuck_on:
            stuck = self.rest[:, _STUCK].astype(np.float32)
            real += stuck[:, 0]
            imag += stuck[:, 1]
        return Fields(real, imag, *self._background())

    def _changing_fields(self, features: NDArray[np.uint8], changes: _Changes) -> Fields:
        # A row for every frame and feature that renews: it counts from that frame on, where the feature is lit.
        frames = changes.piece_frames
        shown = changes.features != UNUSED_MIRROR
        keys, rows = np.unique(np.stack([frames, changes.features])[:, shown], axis=1, return_inverse=True)
        row_of_piece = np.full(len(frames), -1, np.int64)
        row_of_piece[shown] = rows.ravel()
        when, everything = np.unique(frames, return_inverse=True)
        correction, correction_of_all = self._correction(changes, row_of_piece, everything, keys.shape[1], len(when))
        number = np.arange(len(features))[:, np.newaxis]
        lit = np.ones((len(features), keys.shape[1]), np.uint8)
        is_feature = keys[1] != STUCK_ON
        lit[:, is_feature] = features[:, keys[1, is_feature]]
        still = self._still_fields(features)
        if keys.shape[1] == 0:  # mirrors that show no feature
            real, imag = np.zeros((2, 1, 1), np.float32)
        else:
            real, imag = correction.multiply(lit * (number >= keys[0]))
        all_real, all_imag = correction_of_all.multiply((number >= when).astype(np.uint8))
        return Fields(still.real + real, still.imag + imag, still.all_real + all_real, still.all_imag + all_imag)

    def _correction(
        self,
        changes: _Changes,
        row_of_piece: NDArray[np.int64],
        everything: NDArray[np.int64],
        n_rows: int,
        n_frames: int,
    ) -> tuple[IntegerMatrix, IntegerMatrix]:
        n_points = len(self.points)
        most_pieces = int(np.bincount(row_of_piece[row_of_piece >= 0], minlength=1).max())
        largest = 2 * BLOCK * self.mirrors.full_level * most_pieces
        dtype = np.int16 if largest <= np.iinfo(np.int16).max else np.int32
        blocks = np.zeros(block_shape(n_rows, n_points), dtype)
        last = np.zeros(block_shape(n_frames, n_points), np.int32)
        self._add(changes, row_of_piece, everything, blocks, last)
        return IntegerMatrix(blocks, n_rows, n_points, largest), IntegerMatrix(last, n_frames, n_points)

    def _add(
        self,
        changes: _Changes,
        row_of_piece: NDArray[np.int64],
        everything: NDArray[np.int64],
        blocks: NDArray[Any],
        last: NDArray[np.int32],
    ) -> None:
        pieces = np.stack([changes.low, changes.high, changes.levels, row_of_piece, everything], axis=1)
        with numba_lock:
            _add_changes(
                self.points, changes.blocks, changes.old, changes.new, changes.bounds, pieces, *self._key, blocks, last
            )

    def _move_to(self, epochs: NDArray[np.uint32]) -> None:
        """Bring the compiled matrix up to date, block by block where few of them have changed."""
        if np.count_nonzero(self.epochs != epochs) > len(epochs) // 4:
            self._compile(epochs)
            return
        changes = _find_changes(self.mirrors, self.epochs, EpochTrack.still(1, epochs))
        self._is_valid = False
        self.rest[:, _EVERYTHING] += self._add_up(changes, self.matrix.blocks)
        if self.mirrors.has_stuck_on:  # they show no feature, so that the matrix stays as it is
            self.rest[:, _STUCK] += self._add_up(changes.stuck, self.matrix.blocks)
        self._settle(epochs)

    def _add_up(self, changes: _Changes, blocks: NDArray[Any]) -> NDArray[np.int64]:
        """Add changes to the rows of their features, and return what they add up to, shape (n_points, 2)."""
        last = np.zeros(block_shape(1, len(self.points)), np.int32)
        self._add(changes, changes.features, np.zeros(len(changes.low), np.int64), blocks, last)
        total = IntegerMatrix(last, 1, len(self.points))
        return np.stack([total.real[0], total.imag[0]], axis=1).astype(np.int64)

    def transmission_matrix(self) -> NDArray[np.complex64]:
        """Return the matrix over features, shape (n_points, n_features), at the epochs of the last sequence."""
        matrix: NDArray[np.complex64] = (self.matrix.real + 1j * self.matrix.imag).T.astype(np.complex64)
        return matrix


def _most_rows(n_features: int, n_points: int) -> int:
    return max(1, min(max(BLOCK, n_features), _CORRECTION_BYTES // (16 * n_points)))


def _rows(background: NDArray[np.float32], like: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.broadcast_to(background, like.shape)


def compile_with_numpy(
    key: tuple[np.uint64, np.uint64], mirrors: MirrorMap, points: NDArray[np.int64], epochs: NDArray[np.uint32]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128], NDArray[np.complex128]]:
    """Compile slowly, in NumPy: the twin of the kernel.

    Returns
    -------
    tuple of three ndarray of complex128
        The matrix over features, shape (n_points, n_features); the sums over stuck mirrors and over all mirrors,
        shape (n_points,).
    """
    entries = entries_with_numpy(key, points, np.arange(mirrors.n_mirrors), epochs) * mirrors.levels
    matrix = np.zeros((mirrors.n_features, len(points)), np.complex128)
    used = mirrors.features >= 0
    np.add.at(matrix, mirrors.features[used], entries[:, used].T)
    return matrix.T, entries[:, mirrors.features == STUCK_ON].sum(axis=1), entries.sum(axis=1)


class ExplicitMedium(QpskMedium):
    """A medium whose matrix over features is compiled and held in memory.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    """

    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory of a compiled medium: two integers of 16 or 32 bits for each feature and point."""
        rest = 4 * np.dtype(np.int64).itemsize * n_points
        return self.compiled_bytes(mirrors.n_features, n_points, _block_dtype(mirrors)) + rest

    def ends_in_light(self, mirrors: MirrorMap) -> bool:
        """Tell whether no fields are written, see `Medium.ends_in_light`."""
        return not mirrors.has_stuck_on

    def drift_bytes(self, n_features: int, n_points: int) -> int:
        """Return the memory of corrections: with 32-bit integers, and once more as a matrix over frames."""
        return 16 * _most_rows(n_features, n_points) * n_points + 2**20

    @staticmethod
    def compiled_bytes(n_features: int, n_points: int, dtype: type[np.signedinteger[Any]] = np.int16) -> int:
        """Return the memory of a compiled medium of a given size, in bytes."""
        return np.dtype(dtype).itemsize * math.prod(block_shape(n_features, n_points))

    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> CompiledMedium:
        """Compile the medium for a session."""
        return CompiledMedium(self, mirrors, points, never_renewed(n_blocks(mirrors.n_mirrors)))
