"""Binary patterns that are rows of a scrambled Hadamard matrix, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opu.hadamard import walsh_hadamard

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ScrambledHadamard"]

_BYTES_AT_ONCE = 2**24


class ScrambledHadamard:
    """The patterns `x = (1 + h D) / 2`, `h` the rows of a Hadamard matrix `H` and `D` random signs.

    From the fields of all patterns follow those of single features, with the noise of the mean of all of them: for an
    invertible set of patterns there is no better one. Without the signs the first pattern would have all features on,
    twice as bright as the others, and saturate.

    The constant `1 / 2` of the patterns is a column of `H` too, the first, whose feature stands apart: where there are
    as many features as patterns, its field has half of the noise of all others in it, as much as that of one pattern.
    So the first feature is also shown alone, some times. With fewer features than patterns that column stays empty.

    Parameters
    ----------
    n_features : int
        The width of a pattern.
    n_singles : int
        How often the first feature is shown alone, where `n_features` is a power of two.
    seed : int
        Of the signs.

    Attributes
    ----------
    patterns : ndarray of bool, shape (n_patterns, n_features)
        As many as the next power of two, and the single features: where `n_features` is no power of two, up to twice
        as many as features.

    Examples
    --------
    >>> plan = ScrambledHadamard(5)
    >>> row = np.array([[1, 2j, 3, -1, 0.5]])
    >>> np.allclose(plan.invert(row @ plan.patterns.T), row)
    True
    """

    def __init__(self, n_features: int, *, n_singles: int = 0, seed: int = 0) -> None:
        self._order = 1 << max(1, (n_features - 1).bit_length())
        self._is_full = n_features == self._order
        self._n_singles = n_singles if self._is_full else 0
        self._signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), n_features)
        if self._is_full:
            # The inverse takes the sum of all features from the first one.
            self._signs[0] = 1.0
        self._columns = slice(0 if self._is_full else 1, None if self._is_full else n_features + 1)
        self.patterns: NDArray[np.bool_] = np.zeros((self._n_singles + self._order, n_features), np.bool_)
        self.patterns[: self._n_singles, 0] = True
        np.equal(_hadamard(self._order)[:, self._columns], self._signs > 0, out=self.patterns[self._n_singles :])

    def invert(self, fields: NDArray[Any]) -> NDArray[np.complex128]:
        """Return the fields of single features.

        Beside the result this takes a few ten megabytes.

        Parameters
        ----------
        fields : ndarray of complex, shape (n_outputs, n_patterns)
            The fields of the patterns, without that of all features off.

        Returns
        -------
        ndarray of complex128, shape (n_outputs, n_features)
        """
        found = np.empty((len(fields), self.patterns.shape[1]), np.complex128)
        step = max(1, _BYTES_AT_ONCE // (self._order * found.itemsize))
        for start in range(0, len(fields), step):
            some = fields[start : start + step, self._n_singles :]
            found[start : start + step] = walsh_hadamard(some)[:, self._columns]
        found *= (2 / self._order) * self._signs
        if self._is_full:
            # The constant 1/2 of the patterns adds the sum of all features to the first one.
            found[:, 0] -= found.sum(axis=1) / 2
            # This has the noise of the field of one pattern.
            found[:, 0] += fields[:, : self._n_singles].sum(axis=1)
            found[:, 0] /= 1 + self._n_singles
        return found


def _hadamard(order: int) -> NDArray[np.bool_]:
    """Return where the Hadamard matrix of Sylvester is positive."""
    positive = np.ones((order, order), np.bool_)
    width = 1
    while width < order:
        block = positive[:width, :width]
        positive[:width, width : 2 * width] = positive[width : 2 * width, :width] = block
        np.logical_not(block, out=positive[width : 2 * width, width : 2 * width])
        width *= 2
    return positive
