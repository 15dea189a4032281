"""The mirrors of a session: which feature each one shows, and how brightly it is lit.

Illumination is a whole number of levels for each mirror, so that the field, a sum over mirrors of level times a
small-integer entry of the medium, stays an exact integer. Mirrors are numbered row by row. `BLOCK` of them share a
word of random bits, and change together when the medium drifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "FULL_LEVEL", "STUCK_ON", "MirrorMap", "n_blocks"]

BLOCK = 64
"""Mirrors that share a word of random bits."""

FULL_LEVEL = 15
"""The level of a mirror in full light where there is an illumination profile; without one every mirror has level 1."""

STUCK_ON = -2
"""In `MirrorMap.features`: the mirror is on, whatever the pattern."""


def n_blocks(n_mirrors: int) -> int:
    """Return how many blocks of `BLOCK` mirrors there are, the last one perhaps incomplete."""
    return -(-n_mirrors // BLOCK)


@dataclass(frozen=True, eq=False)
class MirrorMap:
    """What a session needs to know of the mirrors.

    Parameters
    ----------
    n_features : int
        Features in a pattern.
    features : ndarray of int32, shape (n_mirrors,)
        The feature that each mirror shows; `UNUSED_MIRROR` (-1) for one that is always off, among them those that are
        stuck off, and `STUCK_ON` (-2) for one that is always on.
    levels : ndarray of uint8, shape (n_mirrors,)
        Field amplitude of the light on each mirror, in units of `1 / full_level`.
    full_level : int
        The level of a mirror in full light: 1, or `FULL_LEVEL` with an illumination profile.
    """

    n_features: int
    features: NDArray[np.int32]
    levels: NDArray[np.uint8]
    full_level: int = 1

    @property
    def n_mirrors(self) -> int:
        """Mirrors of the DMD."""
        return len(self.features)

    @cached_property
    def has_stuck_on(self) -> bool:
        """Whether a mirror is on, whatever the pattern."""
        return bool((self.features == STUCK_ON).any())

    @cached_property
    def runs(self) -> NDArray[np.int64]:
        """Consecutive mirrors with equal feature and level, shape (n_runs, 4): start, length, feature, level.

        In the order of the mirrors, without mirrors of level 0.
        """
        changes = (np.diff(self.features) != 0) | (np.diff(self.levels) != 0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        lengths = np.diff(np.append(starts, self.n_mirrors))
        runs = np.stack([starts, lengths, self.features[starts], self.levels[starts]], axis=1).astype(np.int64)
        return np.ascontiguousarray(runs[runs[:, 3] > 0])

    @cached_property
    def level_planes(self) -> NDArray[np.uint64]:
        """Bit planes of the levels, shape (n_planes, n_blocks): bit `n % 64` of word `n // 64` belongs to mirror `n`.

        The level of a mirror is the sum over the planes `p` of its bit times `2**p`.
        """
        n_planes = max(1, int(self.full_level).bit_length())
        return np.stack([_words((self.levels >> np.uint8(plane)) & np.uint8(1)) for plane in range(n_planes)])

    def states(self, features: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the state of every mirror, 1 for on, shape (n_frames, n_mirrors).

        Parameters
        ----------
        features : ndarray of uint8, shape (n_frames, n_features)
            Patterns of 0 and 1.
        """
        extended = np.zeros((len(features), self.n_features + 2), dtype=np.uint8)
        extended[:, : self.n_features] = features
        extended[:, STUCK_ON] = 1
        return extended[:, self.features]

    def state_words(self, features: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Return the state of every mirror as bits, shape (n_frames, n_blocks), bits ordered as in `level_planes`."""
        return np.stack([_words(self.states(frame[np.newaxis])[0]) for frame in features])


def _words(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Pack bits, shape (n,), into 64-bit words, the lowest bit first."""
    padded = np.zeros(n_blocks(len(bits)) * BLOCK, dtype=np.uint8)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
