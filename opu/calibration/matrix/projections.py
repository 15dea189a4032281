"""The steps of phase retrieval between its matrix products, on fields of many rows at a time.

Fields are two planes of real numbers, shape (2, n_rows, n_patterns): real and imaginary parts. Targets are the measured
amplitudes, shape (n_rows, n_patterns); one below zero is a saturated sample, whose amplitude is known to be at least
the target's absolute value.

Each function passes over the memory once and uses one thread; NumPy alone would pass six to ten times. The twins with
`_with_numpy` in their names say the same in NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Fields = NDArray[np.float32]

__all__ = [
    "correct",
    "correct_with_numpy",
    "mismatch",
    "mismatch_with_numpy",
    "reflect",
    "reflect_with_numpy",
    "relax",
    "relax_with_numpy",
]

_F = np.float32
_TINY = _F(1e-12)
_ONE = _F(1.0)
_TWO = _F(2.0)
_compiled: Any = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _wanted(amplitude, target):  # type: ignore[no-untyped-def]
    """Return the amplitude that a sample asks for."""
    return target if target >= _F(0.0) else max(amplitude, -target)


@_compiled
def reflect(fields: Fields, targets: Fields, out: Fields) -> None:
    """Write the fields reflected at the measured amplitudes: twice the projection minus the fields."""
    for row in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            real, imaginary = fields[0, row, i], fields[1, row, i]
            amplitude = np.sqrt(real * real + imaginary * imaginary)
            factor = _TWO * _wanted(amplitude, targets[row, i]) / max(amplitude, _TINY) - _ONE
            out[0, row, i] = factor * real
            out[1, row, i] = factor * imaginary


@_compiled
def relax(fields: Fields, linear: Fields, targets: Fields, beta: float) -> None:
    """Make the averaged step in place: `beta (fields + linear) + (1 - 2 beta) projection(fields)`."""
    weight = _F(beta)
    other = _ONE - _TWO * weight
    for row in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            real, imaginary = fields[0, row, i], fields[1, row, i]
            amplitude = np.sqrt(real * real + imaginary * imaginary)
            factor = weight + other * _wanted(amplitude, targets[row, i]) / max(amplitude, _TINY)
            fields[0, row, i] = factor * real + weight * linear[0, row, i]
            fields[1, row, i] = factor * imaginary + weight * linear[1, row, i]


@_compiled
def correct(fields: Fields, targets: Fields, dim: float) -> None:
    """Replace fields by what they lack, each sample with the weight `I / (I + dim)` of its intensity `I`."""
    floor = _F(dim)
    for row in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            real, imaginary = fields[0, row, i], fields[1, row, i]
            amplitude = np.sqrt(real * real + imaginary * imaginary)
            target = targets[row, i]
            intensity = target * target
            weight = intensity / max(intensity + floor, _TINY)
            factor = weight * (_wanted(amplitude, target) / max(amplitude, _TINY) - _ONE)
            fields[0, row, i] = factor * real
            fields[1, row, i] = factor * imaginary


@_compiled
def mismatch(fields: Fields, targets: Fields) -> NDArray[np.float64]:
    """Return the mean square difference between amplitudes and targets, shape (n_rows,)."""
    squares = np.zeros(targets.shape[0])
    for row in range(targets.shape[0]):
        for i in range(targets.shape[1]):
            real, imaginary = fields[0, row, i], fields[1, row, i]
            amplitude = np.sqrt(real * real + imaginary * imaginary)
            difference = np.float64(_wanted(amplitude, targets[row, i]) - amplitude)
            squares[row] += difference * difference
    mean: NDArray[np.float64] = squares / targets.shape[1]
    return mean


def _amplitudes(fields: Fields, targets: Fields) -> tuple[Fields, Fields]:
    """Return the amplitudes of fields, and those that are asked for."""
    amplitudes = np.sqrt(fields[0] ** 2 + fields[1] ** 2)
    wanted: Fields = np.where(targets >= 0, targets, np.maximum(amplitudes, -targets))
    return amplitudes, wanted


def _scales(fields: Fields, targets: Fields) -> Fields:
    """Return by what to multiply the fields to project them."""
    amplitudes, wanted = _amplitudes(fields, targets)
    scales: Fields = (wanted / np.maximum(amplitudes, _TINY)).astype(np.float32)
    return scales


def reflect_with_numpy(fields: Fields, targets: Fields, out: Fields) -> None:
    """Do what `reflect` does."""
    out[:] = (2 * _scales(fields, targets) - 1) * fields


def relax_with_numpy(fields: Fields, linear: Fields, targets: Fields, beta: float) -> None:
    """Do what `relax` does."""
    fields[:] = (beta + (1 - 2 * beta) * _scales(fields, targets)) * fields + beta * linear


def correct_with_numpy(fields: Fields, targets: Fields, dim: float) -> None:
    """Do what `correct` does."""
    intensities = targets**2
    weights = intensities / np.maximum(intensities + dim, _TINY)
    fields *= weights * (_scales(fields, targets) - 1)


def mismatch_with_numpy(fields: Fields, targets: Fields) -> NDArray[np.float64]:
    """Do what `mismatch` does."""
    amplitudes, wanted = _amplitudes(fields, targets)
    squares: NDArray[np.float64] = (wanted - amplitudes).astype(np.float64) ** 2
    mean: NDArray[np.float64] = squares.mean(axis=1)
    return mean
