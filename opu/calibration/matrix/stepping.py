"""The transmission matrix with a reference arm whose phase steps: no phase is left to guess.

Each pattern of a scrambled Hadamard matrix is shown once for each of three or four phases of the arm. The sum over the
phases `1/n sum_k exp(2 pi i k / n) I_k = z conj(r)` is linear in the field `z`, and the inverse of the Hadamard matrix
gives the single features. All patterns off tell the brightness `|r|^2` of the arm. (Popoff et al., PRL 104, 100601,
2010, with four phases.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.matrix.hadamard import ScrambledHadamard
from opu.calibration.matrix.retrieval import believed_rows, relative_residuals

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SteppedMatrix", "SteppingPlan"]

_OFF_PATTERNS = 16
_DARKEST_REFERENCE = 0.1
"""Relative to the median. The error of a row goes with the inverse of the arm's amplitude at its pixel."""
_PATTERNS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class SteppedMatrix:
    """What a stepped measurement gave; see `opu.calibration.matrix.TransmissionMatrix`.

    Parameters
    ----------
    matrix : ndarray of complex64, shape (n_outputs, n_features)
        In the square root of the unit of the intensities, but for the phase of the arm at each pixel.
    background : ndarray of complex64, shape (n_outputs,)
        The field with all features off.
    row_quality : ndarray of float32, shape (n_outputs,)
        Relative residual of the amplitudes.
    kept : ndarray of bool, shape (n_outputs,)
        Which rows to believe.
    """

    matrix: NDArray[np.complex64]
    background: NDArray[np.complex64]
    row_quality: NDArray[np.float32]
    kept: NDArray[np.bool_]


class SteppingPlan:
    """What to show, and how the matrix follows.

    Parameters
    ----------
    n_features : int
        The width of a pattern; cheapest are powers of two.
    n_steps : int
        Phases of the arm, three or four.
    seed : int
        Of the patterns.

    Attributes
    ----------
    patterns : ndarray of bool, shape (n_steps * (n_off + n_patterns), n_features)
        What to show, each pattern `n_steps` times in a row.
    """

    def __init__(self, n_features: int, n_steps: int, *, seed: int = 0) -> None:
        self.n_steps = n_steps
        self._plan = ScrambledHadamard(n_features, seed=seed)
        off = np.zeros((_OFF_PATTERNS, n_features), np.bool_)
        self.patterns: NDArray[np.bool_] = np.concatenate([off, self._plan.patterns]).repeat(n_steps, axis=0)

    def recover(self, intensities: NDArray[Any]) -> SteppedMatrix:
        """Return the matrix.

        Parameters
        ----------
        intensities : ndarray, shape (len(patterns), n_outputs)
            Counts above the dark level.
        """
        steps = intensities.reshape(-1, self.n_steps, intensities.shape[1])
        phases = np.exp(2j * np.pi * np.arange(self.n_steps) / self.n_steps)
        products = np.tensordot(phases / self.n_steps, steps, axes=(0, 1))
        dark = products[:_OFF_PATTERNS].mean(axis=0)
        reference = _reference_power(steps[:_OFF_PATTERNS].mean(axis=(0, 1), dtype=np.float64), np.abs(dark) ** 2)
        lit = reference > 0
        scale = np.divide(1, np.sqrt(reference), out=np.zeros(len(reference)), where=lit)
        found = self._plan.invert((products[_OFF_PATTERNS:] - dark).T) * scale[:, np.newaxis]
        background = dark * scale
        residuals, powers = self._residuals(steps[_OFF_PATTERNS:], found, background, np.sqrt(reference), phases)
        bright = reference > _DARKEST_REFERENCE * np.median(reference)
        return SteppedMatrix(
            found.astype(np.complex64),
            background.astype(np.complex64),
            relative_residuals(residuals, powers),
            believed_rows(residuals, powers) & bright,
        )

    def _residuals(
        self,
        steps: NDArray[Any],
        matrix: NDArray[np.complex128],
        background: NDArray[np.complex128],
        arm: NDArray[np.float64],
        phases: NDArray[np.complex128],
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return root mean square residuals of the amplitudes of all frames, and mean intensities, of the rows."""
        squares, powers = np.zeros(len(arm)), np.zeros(len(arm))
        for start in range(0, len(steps), _PATTERNS_AT_ONCE):
            some = np.maximum(steps[start : start + _PATTERNS_AT_ONCE], 0)
            fields = self._plan.patterns[start : start + _PATTERNS_AT_ONCE] @ matrix.T + background
            amplitudes = np.abs(fields[:, np.newaxis] + arm * phases[:, np.newaxis])
            squares += ((amplitudes - np.sqrt(some)) ** 2).sum(axis=(0, 1))
            powers += some.sum(axis=(0, 1), dtype=np.float64)
        n_frames = len(steps) * self.n_steps
        return np.sqrt(squares / n_frames).astype(np.float32), powers / n_frames


def _reference_power(total: NDArray[np.float64], product_power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `|r|^2` from `|r|^2 + |b|^2` and `|b conj(r)|^2`: the larger root, the arm outshines the background."""
    bright = np.maximum(total, 0)
    power: NDArray[np.float64] = (bright + np.sqrt(np.maximum(bright**2 - 4 * product_power, 0))) / 2
    return power
