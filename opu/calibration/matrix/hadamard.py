"""Binary patterns that are rows of a scrambled Hadamard matrix, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ScrambledHadamard"]


class ScrambledHadamard:
    """The patterns `x = (1 + h D) / 2`, `h` the rows of a Hadamard matrix `H` and `D` random signs.

    From the fields of all patterns follow those of single features, with the noise of the mean of all of them: for an
    invertible set of patterns there is no better one. Without the signs the first pattern would have all features on,
    twice as bright as the others, and saturate.

    Parameters
    ----------
    n_features : int
        The width of a pattern.
    seed : int
        Of the signs.

    Attributes
    ----------
    patterns : ndarray of bool, shape (n_patterns, n_features)
        As many as the next power of two: where `n_features` is none itself, up to twice as many as features.

    Examples
    --------
    >>> plan = ScrambledHadamard(5)
    >>> row = np.array([[1, 2j, 3, -1, 0.5]])
    >>> np.allclose(plan.invert(row @ plan.patterns.T), row)
    True
    """

    def __init__(self, n_features: int, *, seed: int = 0) -> None:
        order = 1 << max(1, (n_features - 1).bit_length())
        signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), n_features)
        # The inverse takes the sum of all features from the first one.
        signs[0] = 1.0
        self._hadamard = np.ones((1, 1))
        while len(self._hadamard) < order:
            self._hadamard = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), self._hadamard)
        self._signs = signs
        self.patterns: NDArray[np.bool_] = self._hadamard[:, :n_features] * signs > 0

    def invert(self, fields: NDArray[Any]) -> NDArray[np.complex128]:
        """Return the fields of single features.

        Parameters
        ----------
        fields : ndarray of complex, shape (n_outputs, n_patterns)
            The fields of the patterns, without that of all features off.

        Returns
        -------
        ndarray of complex128, shape (n_outputs, n_features)
        """
        n_patterns, n_features = self.patterns.shape
        sums = (2 / n_patterns) * (fields @ self._hadamard[:, :n_features])
        found: NDArray[np.complex128] = sums * self._signs
        # The constant 1/2 of the patterns adds the sum of all features to the first one.
        found[:, 0] -= found.sum(axis=1) / 2
        return found
