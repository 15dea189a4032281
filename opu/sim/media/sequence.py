"""What media that sum over mirrors anew for every sequence have in common: parts of bounded size, changes in order."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from opu.parts import UNUSED_MIRROR
from opu.sim.media.base import EpochTrack, Fields, PreparedMedium

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.sim.mirrors import MirrorMap

__all__ = ["Changes", "SummedMedium"]


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


class SummedMedium(PreparedMedium):
    """A medium that computes nothing before a sequence comes, and then works on a few frames at a time.

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
    """

    def __init__(
        self,
        key: tuple[np.uint64, np.uint64],
        mirrors: MirrorMap,
        points: NDArray[np.int64],
        frames_at_once: int,
    ) -> None:
        self.key = key
        self.mirrors = mirrors
        self.points = points
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
            self.sum_up(features[part], track.part(start, stop), out)
        if not moves:
            self._known = (track.initial.copy(), all_real[0].copy(), all_imag[0].copy())
        return Fields(real, imag, all_real, all_imag)

    @abstractmethod
    def sum_up(self, features: NDArray[np.uint8], track: EpochTrack, out: Fields) -> None:
        """Fill the fields of a part of a sequence.

        Parameters
        ----------
        features : ndarray of uint8, shape (n_frames, n_features)
            Patterns of 0 and 1.
        track : EpochTrack
            The epochs in this part.
        out : Fields
            Receives the fields. The field of all mirrors is wanted for all frames, for the first one, or for none:
            as many as there are rows.
        """
