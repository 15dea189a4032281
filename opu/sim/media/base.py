"""What every medium is: a transmission matrix from mirrors to points, exact at any entry, made ready for sessions.

A *point* is a sample of the field in the camera plane, named by a number below 2**62; without speckle grain point `p`
is pixel `p`. The field at a point is

    E_p = sum_n t_pn a_n s_n

over the mirrors `n`, with `a_n` the level of the light on the mirror and `s_n` 1 where it is on.

The medium drifts by *renewal*: a block of 64 mirrors has an epoch, and its entries belong to that epoch. When a
block's epoch changes, its entries are drawn anew, independent of the old ones. The field keeps its law, and its
correlation with an earlier one is the share of the light whose blocks have not changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from opu.sim.light import light_electrons
from opu.sim.mirrors import n_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from opu.sim.mirrors import MirrorMap

__all__ = ["EpochTrack", "Fields", "Medium", "PreparedMedium", "first_epochs", "never_renewed"]


def first_epochs(mirrors: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return epochs 0 for the blocks up to that of the last of some mirrors."""
    return np.zeros(n_blocks(int(mirrors.max(initial=0)) + 1), np.uint32)


_NOTHING, _NO_EPOCHS = np.zeros(0, np.int64), np.zeros(0, np.uint32)


@lru_cache(maxsize=8)
def never_renewed(n_blocks: int) -> NDArray[np.uint32]:
    """Return epochs 0 for all blocks, always the same array."""
    return np.zeros(n_blocks, np.uint32)


@dataclass(frozen=True, eq=False)
class EpochTrack:
    """The epochs of all blocks of mirrors during a sequence of frames. Nobody changes its arrays.

    Parameters
    ----------
    n_frames : int
        Frames of the sequence.
    initial : ndarray of uint32, shape (n_blocks,)
        The epochs at the first frame.
    frames, blocks : ndarray of int64, shape (n_changes,)
        A change is seen from frame `frames[i]` on (at least 1), by block `blocks[i]`; frames do not decrease.
    epochs : ndarray of uint32, shape (n_changes,)
        The new epoch.
    """

    n_frames: int
    initial: NDArray[np.uint32]
    frames: NDArray[np.int64]
    blocks: NDArray[np.int64]
    epochs: NDArray[np.uint32]

    @classmethod
    def still(cls, n_frames: int, initial: NDArray[np.uint32]) -> EpochTrack:
        """Return a track without changes."""
        return cls(n_frames, initial, _NOTHING, _NOTHING, _NO_EPOCHS)

    def stays_at(self, epochs: NDArray[np.uint32]) -> bool:
        """Tell whether all blocks have these epochs in every frame."""
        return len(self.frames) == 0 and (self.initial is epochs or np.array_equal(self.initial, epochs))

    def by_frame(self) -> Iterator[NDArray[np.uint32]]:
        """Yield the epochs of all blocks for each frame; the array is reused."""
        current = self.initial.copy()
        bounds = np.searchsorted(self.frames, np.arange(self.n_frames + 1))
        for frame in range(self.n_frames):
            changes = slice(bounds[frame], bounds[frame + 1])
            current[self.blocks[changes]] = self.epochs[changes]
            yield current

    def part(self, start: int, stop: int) -> EpochTrack:
        """Return the track of frames `start` to `stop - 1`."""
        initial = self.initial.copy()
        first, last = np.searchsorted(self.frames, (start + 1, stop))
        initial[self.blocks[:first]] = self.epochs[:first]
        inside = slice(first, last)
        return EpochTrack(stop - start, initial, self.frames[inside] - start, self.blocks[inside], self.epochs[inside])


@dataclass(frozen=True, eq=False)
class Fields:
    """The fields of a sequence, in units in which one mirror of level 1 adds `Medium.variance` to the mean of `|E|^2`.

    Parameters
    ----------
    real, imag : ndarray of float32, shape (n_frames, n_points)
        The field of the mirrors that are on, stuck ones included.
    all_real, all_imag : ndarray of float32, shape (n_frames or 1, n_points)
        The field of all mirrors: what finite DMD contrast scales. One row where it does not change.
    """

    real: NDArray[np.float32]
    imag: NDArray[np.float32]
    all_real: NDArray[np.float32]
    all_imag: NDArray[np.float32]


class PreparedMedium(ABC):
    """A medium made ready for a session: a map of mirrors, and the points whose field is wanted."""

    @abstractmethod
    def fields(self, features: NDArray[np.uint8], track: EpochTrack) -> Fields:
        """Compute the fields of a sequence.

        Parameters
        ----------
        features : ndarray of uint8, shape (n_frames, n_features)
            Patterns of 0 and 1.
        track : EpochTrack
            The epochs of the blocks of mirrors, frame by frame.

        Returns
        -------
        Fields
            The same values whatever the split of the sequence and the number of threads.
        """

    def light_electrons(
        self,
        features: NDArray[np.uint8],
        track: EpochTrack,
        off_amplitude: complex,
        arm: NDArray[np.complex64] | None,
        electrons_per_intensity: float,
        out: NDArray[np.float32],
    ) -> None:
        """Compute the mean photo-electrons of every point: `opu.sim.light.light_electrons` of the fields.

        A medium that can do both at once saves the memory traffic of the fields.
        """
        light_electrons(self.fields(features, track), off_amplitude, arm, electrons_per_intensity, out)


class Medium(ABC):
    """A scattering medium.

    Attributes
    ----------
    law : str
        The law of its entries, for people.
    min_ones : int
        From this many lit mirrors on, the field is circular complex Gaussian as far as its contrast can tell (1 %).
    variance : float
        Mean of `|t|^2` in the units of `Fields`, for level 1.
    has_grain : bool
        Whether neighbouring points are correlated, so that a pupil in front of the camera must not be added.
    """

    law: ClassVar[str]
    min_ones: ClassVar[int]
    variance: ClassVar[float]
    has_grain: ClassVar[bool] = False

    @property
    @abstractmethod
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds and sizes."""

    @abstractmethod
    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory that preparing a session takes, in bytes, without taking it."""

    def drift_bytes(self, n_features: int, n_points: int) -> int:  # noqa: ARG002 - for media that must
        """Return the memory that following a drift takes beside it at the most, in bytes."""
        return 0

    def ends_in_light(self, mirrors: MirrorMap) -> bool:  # noqa: ARG002 - for media that can
        """Tell whether photo-electrons of a medium that stands still are computed without writing fields."""
        return False

    @abstractmethod
    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> PreparedMedium:
        """Make ready for a session.

        Parameters
        ----------
        mirrors : MirrorMap
            What the mirrors show.
        points : ndarray of int64, shape (n_points,)
            Whose field is wanted.
        """

    @abstractmethod
    def entries(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32] | None = None
    ) -> NDArray[np.complex64]:
        """Return a block of the transmission matrix, exactly, in the units of `Fields`: ground truth.

        Parameters
        ----------
        mirrors : ndarray of int64, shape (n,)
            Columns.
        points : ndarray of int64, shape (m,)
            Rows.
        epochs : ndarray of uint32, shape (n_blocks,), optional
            The epochs of all blocks; default 0.

        Returns
        -------
        ndarray of complex64, shape (m, n)
        """
