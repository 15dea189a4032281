"""How alike two transmission matrices are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["row_correlations"]


def row_correlations(one: ArrayLike, two: ArrayLike) -> NDArray[np.float64]:
    """Return how well the rows of two matrices agree, up to the phase and the conjugation of each.

    Intensities of real patterns do not change when a row is replaced by its complex conjugate, so a perfect recovery
    has conjugated about half of the rows.

    Parameters
    ----------
    one, two : array_like of complex, shape (n_outputs, n_features)
        The matrices.

    Returns
    -------
    ndarray of float64, shape (n_outputs,)
        `max(|<a, b>|, |<conj a, b>|) / (|a| |b|)`, from 0 to 1; 0 for a row of zeros.

    Examples
    --------
    >>> row_correlations([[1, 1j]], [[1, -1j]])
    array([1.])
    """
    first, second = np.asarray(one, np.complex128), np.asarray(two, np.complex128)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.maximum(np.abs((first.conj() * second).sum(axis=1)), np.abs((first * second).sum(axis=1)))
    found: NDArray[np.float64] = np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
    return found
