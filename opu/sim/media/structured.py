r"""The structured medium: a million mirrors to a million points, by fast transforms instead of a stored matrix.

The matrix from mirrors to points is

    A = c H D4 H S D3 H D2 H D1

with `H` the Walsh-Hadamard transform of size P, a power of two from 4096 on that is not below the number of mirrors;
`D1` random signs, `D2` to `D4` random quarter turns (1, i, -1, -i), those of `D2` imaginary together for indices equal
modulo 4096; `S` the quantiles of the quarter-circle law in random order, to 15 bits; `c` a constant that makes the mean
of `|a|^2` exactly 1 over all P x P entries. Mirrors are the first columns, points any rows. Point `p` belongs to the
point block `p // P`, and every point block has a matrix of its own. All that is random are words of Philox4x32-10, so
any entry can be computed anywhere.

Why this is what light through a scattering medium does
-------------------------------------------------------
Products of random signs and Hadamard transforms alone are not enough: they look Gaussian entry by entry, but they are
multiples of unitary matrices, and a large block of them has singular values far from those of a random matrix. Here two
such products stand left and right of `S`. They act on diagonal matrices as independent Haar unitary matrices do
("asymptotically liberating": Anderson and Farrell, Advances in Mathematics 255, 2014), so that, for large P, A behaves
as U S V with Haar unitaries U and V and singular values after the quarter-circle law. That is the polar decomposition
of a *circular element*, the limit of square matrices of independent complex Gaussian entries (Voiculescu; Nica and
Speicher, Lectures on the Combinatorics of Free Probability, 2006). It is free from the diagonal matrices, and hence a
block of M rows and N columns, or of sums of columns (features of many mirrors), has the law that the same block of a
Gaussian matrix has: Marchenko-Pastur of its own ratio N / M. No other `S` is needed for another shape of block.

The quarter turns of `D2` are needed, too. With signs there the complex matrix has the right singular values, but its
real part has not, and linear projections are made of that.

Drift
-----
The signs `D1` of a block of 64 mirrors belong to its epoch. A renewed block gets independent signs: the field of many
mirrors changes as if its entries were drawn anew, while a single column keeps its modulus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numba
import numpy as np

from opu.errors import ConfigError
from opu.parts import UNUSED_MIRROR
from opu.sim.counters import derive_key, philox_words
from opu.sim.hadamard import LARGEST_INPUT, ROW, Cascade, Readout, Scratch, Source
from opu.sim.light import BLIND, Sight, off_field, sight
from opu.sim.media.base import EpochTrack, Fields, Medium, PreparedMedium
from opu.sim.memory import Recycler, aligned_empty
from opu.sim.mirrors import BLOCK, MirrorMap, n_blocks
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["StructuredMedium"]

_SIGNS, _TURNS_2, _TURNS_3, _TURNS_4, _ORDER = range(5)  # the third word of a counter: what the number is for
_LARGEST_GAIN = 2**15 - 1
_WORD = np.uint64(32)
_VERSIONS = 16  # states of the epochs that are worked on together
_COLUMNS = 64  # columns of the matrix that are computed together
_ROW_COST = 20  # a row of the matrix takes as long as this many columns


class StructuredMedium(Medium):
    """A medium of fast transforms, for sizes whose matrix would fit nowhere.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    n_mirrors : int
        Mirrors of the DMD.
    """

    law: ClassVar[str] = (
        "structured: complex Gaussian entries and Marchenko-Pastur singular values in the limit of size"
    )
    min_ones: ClassVar[int] = 1
    variance: ClassVar[float] = 1.0

    def __init__(self, seed: int, n_mirrors: int) -> None:
        self.seed = seed
        self.n_mirrors = n_mirrors
        self.size = max(ROW, 1 << (n_mirrors - 1).bit_length())
        self._scratch: Scratch | None = None

    @property
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds and sizes."""
        low, high = _key(self.seed, self.size, 0)
        return f"structured-{int(high):08x}{int(low):08x}-{self.size}"

    def ends_in_light(self, mirrors: MirrorMap) -> bool:  # noqa: ARG002 - it always does
        """Tell whether no fields are written, see `Medium.ends_in_light`."""
        return True

    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory that preparing a session takes, in bytes.

        At most: it counts the pieces that features and points scattered at random would need, and the temporary arrays
        of the first preparation.
        """
        chains = -(-n_points // self.size)
        diagonals, temporary = 4 * self.size, 100 * self.size
        scratch = Scratch.n_bytes(self.size, numba.get_num_threads())
        return chains * (diagonals + self.size) + 16 * mirrors.n_mirrors + 24 * n_points + scratch + temporary

    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> PreparedMedium:
        """Make ready for a session: draw the diagonals of the points' blocks, unless they are at hand.

        Parameters
        ----------
        mirrors : MirrorMap
            What the mirrors show; as many as the medium has.
        points : ndarray of int64, shape (n_points,)
            In any order. Every block of `size` points among them costs transforms of its own.
        """
        if mirrors.n_mirrors != self.n_mirrors:
            raise ConfigError(
                f"The map is of {mirrors.n_mirrors} mirrors, the medium of {self.n_mirrors}.",
                "Make the medium for the DMD that it is used with.",
            )
        return _PreparedStructured(self, mirrors, points)

    def entries(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32] | None = None
    ) -> NDArray[np.complex64]:
        """Return a block of the transmission matrix, shape (n_points, n_mirrors), exact to the rounding of float32.

        By transforms of unit vectors, column by column, or row by row where the block is much wider than high; the two
        agree to about 1e-6 of the root mean square of an entry. Parameters as in `Medium.entries`.
        """
        if epochs is None:
            epochs = np.zeros(n_blocks(self.n_mirrors), dtype=np.uint32)
        if len(mirrors) > _ROW_COST * len(points):
            return self._rows(mirrors, points, epochs)
        return self._columns(mirrors, points, epochs)

    def _columns(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32]
    ) -> NDArray[np.complex64]:
        chosen, columns = np.unique(mirrors, return_inverse=True)
        features = np.full(self.n_mirrors, UNUSED_MIRROR, dtype=np.int32)
        features[chosen] = np.arange(len(chosen))
        alone = MirrorMap(len(chosen), features, np.ones(self.n_mirrors, dtype=np.uint8))
        prepared = self.prepare(alone, points)
        block = np.empty((len(points), len(chosen)), dtype=np.complex64)
        for start in range(0, len(chosen), _COLUMNS):
            part = block[:, start : start + _COLUMNS]
            n_columns = part.shape[1]
            units = np.eye(n_columns, len(chosen), start, dtype=np.uint8)
            fields = prepared.fields(units, EpochTrack.still(n_columns, epochs))
            part.real, part.imag = fields.real.T, fields.imag.T
        return block[:, columns]

    def _rows(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32]
    ) -> NDArray[np.complex64]:
        block = np.empty((len(points), len(mirrors)), dtype=np.complex64)
        for row, point in zip(block, points.tolist(), strict=True):
            number, position = divmod(point, self.size)
            key = _key(self.seed, self.size, number)
            signs = _signs(key, np.arange(len(epochs)), epochs).ravel()[mirrors]
            row[:] = _cascade(self.seed, self.size, number).row(position)[mirrors] * signs
        return block

    def scratch(self, n_threads: int) -> Scratch:
        """Return working memory, the same for all sessions: the caller holds `numba_lock`."""
        if self._scratch is None or len(self._scratch.work) < n_threads:
            self._scratch = Scratch.make(self.size, n_threads)
        return Scratch(self._scratch.shorts[:n_threads], self._scratch.work[:n_threads])


def _key(seed: int, size: int, point_block: int) -> tuple[np.uint64, np.uint64]:
    return derive_key("structured medium", seed, size, point_block)


@lru_cache(maxsize=8)
def _cascade(seed: int, size: int, point_block: int) -> Cascade:
    """Draw all of a point block's matrix but `D1`; what was drawn last stays, 4 bytes for each mirror and block."""
    key = _key(seed, size, point_block)
    signs, turns_3, turns_4 = (
        [bits.ravel() for bits in _bits(philox_words((np.arange(size // BLOCK), 0, stream, 0), key))]
        for stream in (_TURNS_2, _TURNS_3, _TURNS_4)
    )
    words = np.stack(philox_words((np.arange(size // 4), 0, _ORDER, 0), key), axis=1).ravel()
    order = np.sort((words << _WORD) | np.arange(size, dtype=np.uint64)) & np.uint64(0xFFFFFFFF)
    quantiles = _quarter_circle(size)
    return Cascade.pack(
        (signs[0], signs[1][:ROW]),
        2 * turns_3[0] + turns_3[1],
        2 * turns_4[0] + turns_4[1],
        quantiles[order.astype(np.int64)],
        np.float32(1 / (size * math.sqrt(int((quantiles.astype(np.int64) ** 2).sum())))),
    )


def _bits(words: tuple[NDArray[np.uint64], ...]) -> list[NDArray[np.uint8]]:
    """Turn the words of n counters into two arrays of bits, shape (n, 64): words 0 and 1, words 2 and 3."""
    pairs = [words[low] | (words[low + 1] << _WORD) for low in (0, 2)]
    return [
        np.unpackbits(pair.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little") for pair in pairs
    ]


def _signs(key: tuple[np.uint64, np.uint64], blocks: NDArray[np.int64], epochs: NDArray[np.uint32]) -> NDArray[np.int8]:
    """Return `D1` of blocks of mirrors in their epochs, shape (n, 64)."""
    negated = _bits(philox_words((blocks, epochs, _SIGNS, 0), key))[0]
    return 1 - 2 * negated.view(np.int8)


def _quarter_circle(size: int) -> NDArray[np.int16]:
    """Return the quantiles of the quarter-circle law at (j + 1/2) / size, in units of 2 / 32767, to whole numbers.

    The law has the density sqrt(4 - s^2) / pi and the distribution function (s sqrt(4 - s^2) / 2 + 2 asin(s / 2)) / pi.
    Only its values half-way between the whole numbers are computed, and none is so near to a quantile that the rounding
    of an arc sine could matter: every machine finds the same numbers.
    """
    s = (2 * np.arange(_LARGEST_GAIN) + 1) / _LARGEST_GAIN
    distribution = (s * np.sqrt(4 - s * s) / 2 + 2 * np.arcsin(s / 2)) / np.pi
    return np.searchsorted(distribution, (np.arange(size) + 0.5) / size).astype(np.int16)


@dataclass(eq=False)
class _Chain:
    """The matrix of one point block, in a session.

    Parameters
    ----------
    key : tuple of two numpy.uint64
        For the signs of the mirrors.
    cascade : Cascade
        The matrix but for the signs.
    levels : ndarray of int8, shape (P / 64, 64)
        Levels of the mirrors, then zeros.
    readout : Readout
        The points that are wanted.
    """

    key: tuple[np.uint64, np.uint64]
    cascade: Cascade
    levels: NDArray[np.int8]
    readout: Readout

    def __post_init__(self) -> None:
        self._epochs = np.zeros(0, dtype=np.uint32)
        self._amplitudes = np.zeros_like(self.levels)

    def amplitudes(self, versions: list[NDArray[np.uint32]]) -> NDArray[np.int8]:
        """Return the levels with the signs of several states of the epochs, shape (n_versions, P)."""
        amplitudes = np.empty((len(versions), *self.levels.shape), dtype=np.int8)
        for version, epochs in zip(amplitudes, versions, strict=True):
            known = len(self._epochs) > 0
            changed = np.flatnonzero(self._epochs != epochs) if known else np.arange(len(epochs))
            self._amplitudes[changed] = self.levels[changed] * _signs(self.key, changed, epochs[changed])
            self._epochs = epochs.copy()
            version[:] = self._amplitudes
        return amplitudes.reshape(len(versions), -1)


class _PreparedStructured(PreparedMedium):
    def __init__(self, medium: StructuredMedium, mirrors: MirrorMap, points: NDArray[np.int64]) -> None:
        if mirrors.levels.max(initial=0) > LARGEST_INPUT:
            raise ConfigError(
                f"A mirror has the level {mirrors.levels.max()}.", f"Levels are whole numbers up to {LARGEST_INPUT}."
            )
        size = medium.size
        self._medium = medium
        self._n_points = len(points)
        self._source = Source.of(mirrors.features, size)
        self._everything = Source.everything(size)
        levels = np.zeros((size // BLOCK, BLOCK), dtype=np.int8)
        levels.ravel()[: mirrors.n_mirrors] = mirrors.levels
        self._chains = []
        numbers = points // size
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            readout = Readout.of(points[places] % size, places, size)
            cascade = _cascade(medium.seed, size, number)
            key = _key(medium.seed, size, number)
            self._chains.append(_Chain(key, cascade, levels, readout))
        self._recycler = Recycler()
        self._all: tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32]] | None = None
        self._off: tuple[complex, NDArray[np.float32], NDArray[np.complex64] | None] | None = None

    def fields(self, features: NDArray[np.uint8], track: EpochTrack) -> Fields:
        """Compute the fields of a sequence; parameters as in `PreparedMedium.fields`."""
        features = np.ascontiguousarray(features, dtype=np.uint8)
        n_frames = len(features)
        with numba_lock:
            real, imag = self._recycler.empty((2, n_frames, self._n_points))
            if len(track.frames) == 0:
                self._multiply(features, self._source, [track.initial], np.zeros(n_frames, np.int64), (real, imag))
                return Fields(real, imag, *self._field_of_all(track.initial))
            all_real, all_imag = self._empty(n_frames), self._empty(n_frames)
            spans = _spans(track)
            while group := list(islice(spans, _VERSIONS)):
                frames = slice(group[0].frames.start, group[-1].frames.stop)
                epochs = [span.epochs for span in group]
                versions = np.repeat(np.arange(len(group)), [span.frames.stop - span.frames.start for span in group])
                self._multiply(features[frames], self._source, epochs, versions, (real[frames], imag[frames]))
                rows_real, rows_imag = self._fields_of_all(epochs)
                all_real[frames], all_imag[frames] = rows_real[versions], rows_imag[versions]
            return Fields(real, imag, all_real, all_imag)

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
        if len(track.frames) > 0:
            super().light_electrons(features, track, off_amplitude, arm, electrons_per_intensity, out)
            return
        with numba_lock:
            off = self._off_field(off_amplitude, track.initial)
            seen = sight(off_amplitude, off, arm, electrons_per_intensity)
            features = np.ascontiguousarray(features, dtype=np.uint8)
            self._multiply(features, self._source, [track.initial], np.zeros(len(features), np.int64), (out, out), seen)

    def _off_field(self, off_amplitude: complex, epochs: NDArray[np.uint32]) -> NDArray[np.complex64] | None:
        """Return the field of mirrors that are off, shape (1, n_points), from the last call if nothing changed."""
        if off_amplitude == 0:
            return None
        everything = self._field_of_all(epochs)
        if self._off is None or self._off[0] != off_amplitude or self._off[1] is not everything[0]:
            self._off = off_amplitude, everything[0], off_field(off_amplitude, *everything)
        return self._off[2]

    def _empty(self, n_frames: int) -> NDArray[np.float32]:
        return aligned_empty((n_frames, self._n_points), np.float32)

    def _field_of_all(self, epochs: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the field of all mirrors, two arrays of shape (1, n_points), from the last call if nothing changed."""
        if self._all is None or not np.array_equal(self._all[0], epochs):
            self._all = (epochs.copy(), *self._fields_of_all([epochs]))
        return self._all[1], self._all[2]

    def _fields_of_all(self, versions: list[NDArray[np.uint32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        out = self._empty(len(versions)), self._empty(len(versions))
        nothing = np.zeros((len(versions), 1), np.uint8)
        self._multiply(nothing, self._everything, versions, np.arange(len(versions)), out)
        return out

    def _multiply(
        self,
        features: NDArray[np.uint8],
        source: Source,
        epochs: list[NDArray[np.uint32]],
        versions: NDArray[np.int64],
        out: tuple[NDArray[np.float32], NDArray[np.float32]],
        seen: Sight = BLIND,
    ) -> None:
        scratch = self._medium.scratch(max(1, min(len(features), numba.get_num_threads())))
        for chain in self._chains:
            chain.cascade.apply(features, source, chain.amplitudes(epochs), versions, chain.readout, out, scratch, seen)


class _Span(NamedTuple):
    """Frames between changes, and their epochs."""

    frames: slice
    epochs: NDArray[np.uint32]


def _spans(track: EpochTrack) -> Iterator[_Span]:
    edges = np.unique(np.append(track.frames, [0, track.n_frames])).tolist()
    stops = dict(pairwise(edges))
    for frame, epochs in enumerate(track.by_frame()):
        if frame in stops:
            yield _Span(slice(frame, stops[frame]), epochs.copy())
