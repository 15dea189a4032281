"""Alternating projections: Gerchberg-Saxton, and GGS2-1.

R. W. Gerchberg and W. O. Saxton: Optik 35, 237 (1972). GGS2-1 takes squared amplitudes for targets in the first two
thirds of the iterations, and amplitudes in the last: G. Huang et al., Photonics Research 9, 34 (2021).
"""

from __future__ import annotations

import numpy as np

__all__ = ["ITERATIONS", "gerchberg_saxton", "ggs21"]

ITERATIONS = 240
"""Of two products of matrices each."""


def alternating(patterns, counts, powers):
    """Return the matrix after an iteration for each power of the amplitudes, from a random matrix."""
    shown = patterns.astype(np.float32)
    inverse = np.linalg.pinv(shown)
    amplitudes = np.sqrt(counts.T)
    rng = np.random.default_rng(0)
    shape = (counts.shape[1], patterns.shape[1])
    matrix = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    for power in powers:
        fields = matrix.real @ shown.T + 1j * (matrix.imag @ shown.T)
        fields *= amplitudes**power / np.maximum(np.abs(fields), 1e-9)
        matrix = fields.real @ inverse.T + 1j * (fields.imag @ inverse.T)
    return matrix


def gerchberg_saxton(patterns, counts):
    """Return the matrix from counts, shape (n_patterns, n_outputs)."""
    return alternating(patterns, counts, [1] * ITERATIONS)


def ggs21(patterns, counts):
    """Return the matrix from counts, shape (n_patterns, n_outputs)."""
    squared = 2 * ITERATIONS // 3
    return alternating(patterns, counts, [2] * squared + [1] * (ITERATIONS - squared))
