"""What media that sum over mirrors anew for every sequence have in common.

The parts of a sequence have a bounded size, points share tasks, and changes of epochs come in order. A medium adds one
compiled function, that sums up some points: `SUM_GROUP` says what it is given.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numba import njit, prange

from opu.parts import UNUSED_MIRROR
from opu.sim.kernels import caller
from opu.sim.media.base import EpochTrack, Fields, PreparedMedium
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.sim.mirrors import MirrorMap

__all__ = ["SUM_GROUP", "Changes", "Light", "SummedMedium"]

SUM_GROUP = (
    "int64(int64[::1], uint32[::1], int64[::1], int64[::1], int64[::1], uint32[::1], uint64[:, ::1], uint64[:, ::1],"
    "uint64, uint64, int64[:, :, ::1], int64[:, :, ::1])"
)
"""Points, epochs at the first frame, `Changes`, words of the light of the frames and of all mirrors (`Light`), the key.

It adds up the field of all frames, shape (n_points, n_frames, 2), and that of all mirrors, of which all frames, the
first one or none are wanted. The result means nothing.
"""

_call_sum_group = caller(SUM_GROUP)

_GROUP = 16
"""Points that share a task: enough that what they share costs little, and a whole cache line of results."""


@njit(cache=True)
def _write_fields(
    sums: Any, levels: Any, factor: Any, unit: Any, real: Any, imag: Any
) -> None:  # pragma: no cover - compiled
    for frame in range(len(real)):
        for i in range(real.shape[1]):
            real[frame, i] = np.float32(levels[frame] + factor * sums[i, frame, 0]) * unit
            imag[frame, i] = np.float32(levels[frame] + factor * sums[i, frame, 1]) * unit


@njit(parallel=True, cache=True)
def _sum_up(
    address: Any,
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
    lit_levels: Any,
    all_levels: Any,
    factor: Any,
    unit: Any,
    real: Any,
    imag: Any,
    all_real: Any,
    all_imag: Any,
) -> None:  # pragma: no cover - compiled
    # all_real has a row for each frame, for the first one, or none.
    n_points = len(points)
    for group in prange((n_points + _GROUP - 1) // _GROUP):
        low = group * _GROUP
        high = min(low + _GROUP, n_points)
        sums = np.zeros((_GROUP, len(real), 2), np.int64)
        all_sums = np.zeros((_GROUP, len(all_real), 2), np.int64)
        arguments = (
            points[low:high],
            epochs,
            bounds,
            frames,
            blocks,
            new_epochs,
            lit,
            everything,
            k0,
            k1,
            sums,
            all_sums,
        )
        _call_sum_group(address, arguments)
        _write_fields(sums, lit_levels, factor, unit, real[:, low:high], imag[:, low:high])
        _write_fields(all_sums, all_levels, factor, unit, all_real[:, low:high], all_imag[:, low:high])


class Changes(NamedTuple):
    """The changes of epochs in a sequence, sorted by chunk of consecutive blocks, then by frame.

    Parameters
    ----------
    bounds : ndarray of int64, shape (n_chunks + 1,)
        The changes in chunk `c` are `bounds[c]` to `bounds[c + 1] - 1`.
    frames, blocks : ndarray of int64, shape (n_changes,)
        When, and which block.
    epochs : ndarray of uint32, shape (n_changes,)
        The new epoch.
    """

    bounds: NDArray[np.int64]
    frames: NDArray[np.int64]
    blocks: NDArray[np.int64]
    epochs: NDArray[np.uint32]

    @classmethod
    def of(cls, track: EpochTrack, chunk: int) -> Changes:
        """Sort the changes of a track by chunks of `chunk` blocks."""
        order = np.argsort(track.blocks // chunk, kind="stable")
        blocks = track.blocks[order]
        n_chunks = -(-len(track.initial) // chunk)
        bounds = np.searchsorted(blocks // chunk, np.arange(n_chunks + 1))
        return cls(bounds, track.frames[order], blocks, track.epochs[order])


def _feature_runs(features: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the runs of mirrors that show the same feature, or are stuck on, see `SummedMedium.runs`."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(features)) + 1])
    runs = np.stack([starts, np.append(starts[1:], len(features)), features[starts]], axis=1)
    return np.ascontiguousarray(runs[runs[:, 2] != UNUSED_MIRROR], dtype=np.int64)


class Light(NamedTuple):
    """The light on the mirrors in some frames.

    Parameters
    ----------
    words : ndarray of uint64, shape (n_frames, n_words)
        In the form that the medium sums up.
    levels : ndarray of int64, shape (n_frames,)
        What the sums are added to.
    """

    words: NDArray[np.uint64]
    levels: NDArray[np.int64]


class SummedMedium(PreparedMedium):
    """A medium that computes nothing before a sequence comes, and then works on a few frames at a time.

    A field is `unit * (level + factor * sum)`, rounded to float32 before it is multiplied.

    Parameters
    ----------
    key : tuple of two numpy.uint64
        The key of its entries.
    mirrors : MirrorMap
        What the mirrors show.
    points : ndarray of int64, shape (n_points,)
        Whose field is wanted.
    frames_at_once : int
        Frames in a part of a sequence.

    Attributes
    ----------
    runs : ndarray of int64, shape (n_runs, 3)
        The runs of mirrors that show the same feature, or are stuck on: start, end, feature.
    chunk : int
        Blocks of mirrors that are worked on together: the order of `Changes`.
    factor, unit : int, numpy.float32
        From sums to fields.
    """

    chunk: ClassVar[int]
    factor: ClassVar[int] = 1
    unit: ClassVar[np.float32] = np.float32(1)

    def __init__(
        self,
        key: tuple[np.uint64, np.uint64],
        mirrors: MirrorMap,
        points: NDArray[np.int64],
        frames_at_once: int,
    ) -> None:
        self.key = key
        self.mirrors = mirrors
        self.points = np.require(points, np.int64, ["C", "W"])  # what compiled functions take
        self.runs = _feature_runs(mirrors.features)
        self._frames_at_once = frames_at_once
        # The field of all mirrors, with its epochs: it stays from call to call until one of them changes.
        self._known: tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32]] | None = None

    def fields(self, features: NDArray[np.uint8], track: EpochTrack) -> Fields:
        """Compute the fields of a sequence, see `PreparedMedium.fields`."""
        n_frames, n_points = len(features), len(self.points)
        real, imag = np.empty((2, n_frames, n_points), np.float32)
        moves = len(track.frames) > 0
        all_real, all_imag = np.empty((2, n_frames if moves else 1, n_points), np.float32)
        n_known = 0
        if not moves and self._known is not None and np.array_equal(self._known[0], track.initial):
            _, all_real[0], all_imag[0] = self._known
            n_known = 1
        for start in range(0, n_frames, self._frames_at_once):
            stop = min(start + self._frames_at_once, n_frames)
            part, wanted = slice(start, stop), slice(max(start, n_known), stop)
            out = Fields(real[part], imag[part], all_real[wanted], all_imag[wanted])
            self._fill(features[part], track.part(start, stop), out)
        if not moves:
            self._known = (track.initial.copy(), all_real[0].copy(), all_imag[0].copy())
        return Fields(real, imag, all_real, all_imag)

    def _fill(self, features: NDArray[np.uint8], track: EpochTrack, out: Fields) -> None:
        """Fill the fields of a part of a sequence; that of all mirrors for as many frames as it has rows."""
        with numba_lock:
            light, everything = self.light(features), self.everything
            _sum_up(
                self.sum_group(),
                self.points,
                track.initial,
                *Changes.of(track, self.chunk),
                light.words,
                everything.words,
                *self.key,
                light.levels,
                np.full(len(out.all_real), everything.levels[0]),
                self.factor,
                self.unit,
                out.real,
                out.imag,
                out.all_real,
                out.all_imag,
            )

    @abstractmethod
    def light(self, features: NDArray[np.uint8]) -> Light:
        """Light the mirrors of some patterns, shape (n_frames, n_features)."""

    @property
    @abstractmethod
    def everything(self) -> Light:
        """The light on all mirrors: one frame."""

    @staticmethod
    @abstractmethod
    def sum_group() -> int:
        """Return the address of the function that sums up some points, see `SUM_GROUP`."""
