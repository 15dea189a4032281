"""The fast Walsh-Hadamard transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["walsh_hadamard"]


def walsh_hadamard(values: NDArray[Any], *, descending: bool = True) -> NDArray[Any]:
    """Return the products of rows and the Hadamard matrix of Sylvester, by `n log2 n` additions a row.

    Parameters
    ----------
    values : ndarray, shape (n_rows, n)
        `n` a power of two.
    descending : bool
        Whether the first stage is that of the largest stride: the order tells how floats are rounded.

    Returns
    -------
    ndarray, of the same shape and dtype
        `values @ H`, with `H[i, j] = (-1)**popcount(i & j)`.

    Examples
    --------
    >>> walsh_hadamard(np.array([[1, 2, 3, 4]]))
    array([[10, -2, -4,  0]])
    """
    n_rows, n = values.shape
    found = np.array(values, order="C")
    strides = [2**stage for stage in range(n.bit_length() - 1)]
    for stride in reversed(strides) if descending else strides:
        pairs = found.reshape(n_rows, -1, 2, stride)
        sums = pairs[:, :, 0] + pairs[:, :, 1]
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=pairs[:, :, 1])
        pairs[:, :, 0] = sums
    return found
