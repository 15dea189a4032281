"""RAF2-1: reweighted amplitude flow, in its form for transmission matrices.

G. Wang, G. B. Giannakis, Y. Saad and J. Chen: "Phase retrieval via reweighted amplitude flow", IEEE Trans. Signal
Process. 66, 2818 (2018): a spectral start, and gradient steps whose weights trust samples less where the field is much
darker than measured. S. Cheng et al.: "Nonconvex optimization for optimum retrieval of the transmission matrix of a
multimode fiber", Adv. Photonics Nexus 2, 066005 (2023): squared amplitudes as targets of the first steps, here two
thirds as for GGS2-1.

Complex patterns of mean 0 are behind both. Binary ones are real and have much in common, so the steps are made in an
orthonormal basis of the patterns here, and the start is of the two leading vectors: real samples of a complex row show
its real and its imaginary part.
"""

from __future__ import annotations

import numpy as np

from benchmarks.retrieval.alternating import ITERATIONS

__all__ = ["raf21"]

POWER_ITERATIONS = 30
STEP = 4.0
"""Six, as for complex patterns, diverges."""
CAUTION = 5.0
BRIGHT_SHARE = 3 / 13


def raf21(patterns, counts):
    """Return the matrix from counts, shape (n_patterns, n_outputs)."""
    basis, triangle = np.linalg.qr(patterns.astype(np.float32))
    amplitudes = np.sqrt(counts.T)
    amplitudes = amplitudes / np.maximum(np.linalg.norm(amplitudes, axis=1, keepdims=True), 1e-9)
    scale = np.sqrt(counts.sum(axis=0))[:, np.newaxis]
    fields = spectral_start(basis, amplitudes)
    squares = amplitudes**2
    squares /= np.maximum(np.linalg.norm(squares, axis=1, keepdims=True), 1e-9)
    n_squared = 2 * ITERATIONS // 3
    for targets in [squares] * n_squared + [amplitudes] * (ITERATIONS - n_squared):
        shown = times(fields, basis.T)
        seen = np.maximum(np.abs(shown), 1e-9)
        weights = seen / (seen + CAUTION * targets)
        fields = fields - STEP * times(weights * (1 - targets / seen) * shown, basis)
    return scale * times(fields, np.linalg.inv(triangle).T)


def times(rows, matrix):
    """Return the product of complex rows and a real matrix."""
    return rows.real @ matrix + 1j * (rows.imag @ matrix)


def spectral_start(basis, amplitudes):
    """Return the fields in the basis, of weighted maximal correlation with the brightest samples of each row."""
    n_bright = max(1, int(BRIGHT_SHARE * amplitudes.shape[1]))
    bright = amplitudes >= np.partition(amplitudes, -n_bright, axis=1)[:, -n_bright, np.newaxis]
    weights = np.where(bright, np.sqrt(amplitudes), 0)[:, np.newaxis]
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((len(amplitudes), 2, basis.shape[1])).astype(np.float32)
    for _ in range(POWER_ITERATIONS):
        planes = (planes @ basis.T * weights) @ basis
        planes = np.linalg.qr(planes.swapaxes(1, 2))[0].swapaxes(1, 2)
    return (planes[:, 0] + 1j * planes[:, 1]) / np.sqrt(2)
