"""The transmission matrix in closed form: anchors on the same mirrors as reference light.

For two disjoint patterns `x` and `r` the intensities of `x`, of `r` and of both together tell
`2 Re(conj(r) x) = I(x + r) - I(x) - I(r)`, with the letters for their fields too. With two or more *anchors* `r_k` of
different phases, whose fields are known, `x` follows by least squares. So half of the features are shown in patterns of
a scrambled Hadamard matrix, each alone and with each of K anchors out of the other half; then the halves change their
roles, with anchors whose fields are known by then. The first anchors' own fields follow, but for the phase and the
conjugation of the row, from their Gram matrix: `Re(conj(r_j) r_k)` has rank two.

A row whose anchors are dark, or have the same phase, is found badly: its residual tells. The closed form should be
polished by `PhaseRetrieval.fit(..., initial=...)` on all the frames.

After: Gupta et al., NeurIPS 2019 and ICASSP 2020 (anchors and their distances), Popoff et al., PRL 104, 100601 (2010)
(Hadamard patterns).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.matrix.hadamard import ScrambledHadamard
from opu.device import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST_SPREAD", "AnchorPlan", "AnchoredMatrix"]

LEAST_SPREAD = 0.12

_GAUGE_SHARE = 0.18
"""Frames for the anchors' own fields, relative to the number of features: noise there is an error of the whole row."""
_DIMMEST_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class AnchoredMatrix:
    """What anchors gave.

    Parameters
    ----------
    matrix : ndarray of complex128, shape (n_outputs, n_features)
        In the square root of the unit of the intensities.
    spread : ndarray of float64, shape (n_outputs,)
        How well the anchors span the complex plane: the smaller of their two singular values relative to the larger,
        in the worse half. The noise of the field across the anchors goes with its inverse. Rows below
        `LEAST_SPREAD` are not to be believed.
    """

    matrix: NDArray[np.complex128]
    spread: NDArray[np.float64]


class AnchorPlan:
    """What to show, and how the matrix follows.

    Parameters
    ----------
    n_features : int
        The width of a pattern; cheapest are powers of two: `(n_anchors + 1.2) n_features` frames.
    n_anchors : int
        Anchors of each half, two or more. With two, a tenth of the rows have them in nearly the same phase.
    seed : int
        Of the patterns.

    Attributes
    ----------
    patterns : ndarray of bool, shape (n_patterns, n_features)
        What to show, a frame each.

    Examples
    --------
    >>> from opu.calibration.matrix.comparison import row_correlations
    >>> plan = AnchorPlan(32)
    >>> rng = np.random.default_rng(0)
    >>> matrix = rng.standard_normal((4, 32)) + 1j * rng.standard_normal((4, 32))
    >>> found = plan.recover(np.abs(plan.patterns @ matrix.T) ** 2).matrix
    >>> row_correlations(found, matrix).round(6)
    array([1., 1., 1., 1.])
    """

    def __init__(self, n_features: int, *, n_anchors: int = 3, seed: int = 0) -> None:
        self.n_anchors = check_whole("n_anchors", n_anchors, 2, 65)
        self.n_features = check_whole("n_features", n_features, 4 * self.n_anchors, 2**31)
        halves = np.array_split(np.random.default_rng(seed).permutation(n_features), 2)
        self._halves = [np.sort(half) for half in halves]
        self._plans = [ScrambledHadamard(len(half), seed=seed + 1 + i) for i, half in enumerate(self._halves)]
        # The anchors with which each half is shown: parts of the other one.
        self._anchors = [
            np.stack([_mask(n_features, part) for part in np.array_split(other, self.n_anchors)])
            for other in reversed(halves)
        ]
        self._pairs = list(itertools.combinations(range(self.n_anchors), 2))
        own = [*self._anchors[0], *(self._anchors[0][j] | self._anchors[0][k] for j, k in self._pairs)]
        self._repeats = max(1, int(_GAUGE_SHARE * n_features) // len(own))
        shown = [np.tile(np.stack(own), (self._repeats, 1))]
        for half, plan, anchors in zip(self._halves, self._plans, self._anchors, strict=True):
            alone = np.zeros((len(plan.patterns), n_features), np.bool_)
            alone[:, half] = plan.patterns
            shown += [alone, *(alone | anchor for anchor in anchors)]
        self.patterns: NDArray[np.bool_] = np.concatenate(shown)

    def recover(self, intensities: NDArray[Any]) -> AnchoredMatrix:
        """Return the matrix in closed form.

        Parameters
        ----------
        intensities : ndarray, shape (n_patterns, n_outputs)
            Counts above the dark level, of `patterns`.
        """
        n_own = self.n_anchors + len(self._pairs)
        split = self._repeats * n_own
        own = intensities[:split].reshape(self._repeats, n_own, -1).mean(axis=0, dtype=np.float64)
        anchors = self._first_anchors(own)
        matrix = np.zeros((intensities.shape[1], self.n_features), np.complex128)
        spread = np.full(len(matrix), np.inf)
        for i, (half, plan) in enumerate(zip(self._halves, self._plans, strict=True)):
            n_frames = (self.n_anchors + 1) * len(plan.patterns)
            frames = intensities[split : split + n_frames].reshape(self.n_anchors + 1, len(plan.patterns), -1)
            split += n_frames
            if i == 1:
                anchors = matrix @ self._anchors[1].T
            spread = np.minimum(spread, _spread(anchors))
            matrix[:, half] = plan.invert(_fields(frames.astype(np.float64), anchors))
        return AnchoredMatrix(matrix, spread)

    def _first_anchors(self, own: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Return the fields of the first anchors from their Gram matrix, shape (n_outputs, n_anchors)."""
        gram = np.zeros((own.shape[1], self.n_anchors, self.n_anchors))
        for k in range(self.n_anchors):
            gram[:, k, k] = own[k]
        for (j, k), both in zip(self._pairs, own[self.n_anchors :], strict=True):
            gram[:, j, k] = gram[:, k, j] = (both - own[j] - own[k]) / 2
        values, vectors = np.linalg.eigh(gram)
        planes = vectors[:, :, -2:] * np.sqrt(np.maximum(values[:, np.newaxis, -2:], 0))
        fields: NDArray[np.complex128] = planes[:, :, 1] + 1j * planes[:, :, 0]
        return fields


def _spread(anchors: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return the smaller singular value of the anchors of each pixel relative to the larger, 0 without light."""
    power, square = (np.abs(anchors) ** 2).sum(axis=1), np.abs((anchors**2).sum(axis=1))
    small, large = np.maximum(power - square, 0), power + square
    found: NDArray[np.float64] = np.sqrt(np.divide(small, large, out=np.zeros(len(power)), where=large > 0))
    return found


def _mask(n_features: int, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    mask = np.zeros(n_features, np.bool_)
    mask[chosen] = True
    return mask


def _fields(frames: NDArray[np.float64], anchors: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the fields of patterns, shape (n_outputs, n_patterns), by least squares.

    `frames`, shape (n_anchors + 1, n_patterns, n_outputs), are those of the patterns alone and with each anchor.
    """
    products = (frames[1:] - frames[0] - (np.abs(anchors.T) ** 2)[:, np.newaxis]) / 2
    planes = np.stack([anchors.real, anchors.imag], axis=2)
    inverse = np.linalg.pinv(planes, rcond=_DIMMEST_DIRECTION)
    solved = np.matmul(inverse, products.transpose(2, 0, 1))
    fields: NDArray[np.complex128] = solved[:, 0] + 1j * solved[:, 1]
    return fields
