"""The laws that a scattering medium must obey, whatever it is made of: statistics of a block of its matrix.

A matrix is (points, mirrors) or (points, features), of any scale; real parts may be given as well as complex matrices.
The same functions judge a simulated medium and a transmission matrix that was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Matrix = NDArray[Any]

__all__ = [
    "circularity",
    "contrasts",
    "kernel_error_ratio",
    "kurtosis",
    "pseudo_correlations",
    "row_correlations",
    "singular_value_distance",
    "stacked",
]


def singular_value_distance(matrix: Matrix) -> float:
    """Return the largest distance between the distribution of the squared singular values and Marchenko-Pastur's.

    For independent entries of mean square 1 in M >= N rows and columns, the eigenvalues of `A^H A / M` have the density
    `sqrt((b - x) (x - a)) / (2 pi r x)` between a and b, `(1 -+ sqrt(r))**2`, with r = N / M.
    """
    wide = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    ratio = wide.shape[1] / wide.shape[0]
    with threadpool_limits(1, user_api="blas"):  # the threads of a busy machine's BLAS wait for each other, for seconds
        found = np.linalg.eigvalsh(wide.conj().T @ wide) / (wide.shape[0] * np.mean(np.abs(wide) ** 2))
    middle, radius = 1 + ratio, 2 * np.sqrt(ratio)
    angle = np.linspace(0, np.pi, 20_001)
    centre = (angle[1:] + angle[:-1]) / 2
    density = (radius * np.sin(centre)) ** 2 / (2 * np.pi * ratio * (middle - radius * np.cos(centre)))
    distribution = np.append(0, np.cumsum(density)) * (angle[1] - angle[0])
    expected = np.interp(found, middle - radius * np.cos(angle), distribution)
    steps = np.arange(len(found) + 1) / len(found)
    return float(max(np.max(steps[1:] - expected), np.max(expected - steps[:-1])))


def stacked(matrix: Matrix) -> Matrix:
    """Return real parts above imaginary parts: the matrix as a map of real patterns, with a law of its own shape."""
    return np.concatenate([matrix.real, matrix.imag])


def kurtosis(matrix: Matrix) -> float:
    """Return the mean fourth power over the square of the mean second: 2 for complex Gaussian entries."""
    square = np.abs(matrix) ** 2
    return float(np.mean(square**2) / np.mean(square) ** 2)


def circularity(matrix: Matrix) -> float:
    """Return the mean square, not of the modulus, over the mean squared modulus: about `sqrt(2 / n)` for n entries."""
    return float(abs(np.mean(matrix**2)) / np.mean(np.abs(matrix) ** 2))


def row_correlations(matrix: Matrix) -> NDArray[np.float64]:
    """Return the moduli of the correlations of all pairs of rows.

    Of N independent circular entries they have the root mean square 1 / sqrt(N), and exceed 3 / sqrt(N) with
    probability exp(-9).
    """
    rows = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    correlations: NDArray[np.float64] = np.abs(rows @ rows.conj().T)[np.triu_indices(len(rows), 1)]
    return correlations


def pseudo_correlations(matrix: Matrix) -> NDArray[np.float64]:
    """Return the moduli of the correlations of all pairs of a row and a conjugated one; laws as `row_correlations`."""
    rows = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    correlations: NDArray[np.float64] = np.abs(rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return correlations


def contrasts(matrix: Matrix, patterns: Matrix) -> NDArray[np.float64]:
    """Return the contrast over the points, standard deviation over mean of the intensity, of each pattern (a row)."""
    intensity = np.abs(patterns @ matrix.T) ** 2
    contrast: NDArray[np.float64] = intensity.std(axis=1) / intensity.mean(axis=1)
    return contrast


def kernel_error_ratio(matrices: Iterable[Matrix], n_patterns: int = 50, seed: int = 0) -> float:
    """Return how far the kernel of intensities is from its mean, in root mean square over what it is for Gaussians.

    The kernel of two patterns x, z is the mean over M points of the product of their intensities; for complex Gaussian
    entries of mean square 1 its mean is `|x|^2 |z|^2 + (x z)^2` and its variance, by the moments of Gaussian variables,
    `(3 |x|^4 |z|^4 + 14 |x|^2 |z|^2 (x z)^2 + 3 (x z)^4) / M`. Patterns are random halves of the columns, drawn anew
    for each matrix. Most of the error is common to a matrix, so that it takes hundreds of matrices.
    """
    generator = np.random.default_rng(seed)
    found = expected = 0.0
    for matrix in matrices:
        n_points, n_columns = matrix.shape
        patterns = generator.integers(0, 2, (n_patterns, n_columns)).astype(np.float64)
        intensity = np.abs(patterns @ matrix.T) ** 2
        overlap = patterns @ patterns.T
        sizes = np.outer(np.diag(overlap), np.diag(overlap))
        mean = sizes + overlap**2
        found += np.sum((intensity @ intensity.T / n_points - mean) ** 2) / np.sum(mean**2)
        variance = (3 * sizes**2 + 14 * sizes * overlap**2 + 3 * overlap**4) / n_points
        expected += np.sum(variance) / np.sum(mean**2)
    return float(np.sqrt(found / expected))
