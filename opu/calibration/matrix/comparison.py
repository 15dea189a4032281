"""How alike two transmission matrices are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["row_correlation"]


def row_correlation(found: ArrayLike, truth: ArrayLike, *, conjugates: bool = True) -> NDArray[np.float64]:
    """Return the absolute correlation of the rows of two matrices, whatever the phase of a row.

    Intensities of real patterns do not change when a row is replaced by its complex conjugate, so a perfect recovery
    has conjugated about half of the rows: the larger one of both correlations counts.

    Parameters
    ----------
    found, truth : array_like of complex, shape (n_outputs, n_features)
        The matrices.
    conjugates : bool
        Whether a conjugated row is as good; no, where a reference arm has measured phases.

    Returns
    -------
    ndarray of float64, shape (n_outputs,)
        From 0 to 1; 0 for a row of zeros.

    Examples
    --------
    >>> row_correlation([[1, 1j]], [[1, -1j]])
    array([1.])
    >>> row_correlation([[1, 1j]], [[1, -1j]], conjugates=False)
    array([0.])
    """
    one, other = np.asarray(found, np.complex128), np.asarray(truth, np.complex128)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.abs((other.conj() * one).sum(axis=1))
    if conjugates:
        products = np.maximum(products, np.abs((other * one).sum(axis=1)))
    return np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
