"""The transmission matrix with a reference arm whose phase steps: no phase is left to guess.

Each pattern of a scrambled Hadamard matrix is shown once for each of three or four phases of the arm. The sum over the
phases `1/n sum_k exp(2 pi i k / n) I_k = z conj(r)` is linear in the field `z`, and the frames with all features off
tell the brightness `|r|^2` of the arm. A fit of the amplitudes then takes half of the photon noise away, and the
inverse of the Hadamard matrix gives the single features. (Popoff et al., PRL 104, 100601, 2010, with four phases.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.matrix.hadamard import ScrambledHadamard
from opu.calibration.matrix.retrieval import believed_rows, relative_residuals

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SteppedMatrix", "SteppingPlan"]

_OFF_PATTERNS = 8
_SINGLES = 8
_DARKEST_REFERENCE = 0.1
"""Relative to the median. The error of a row goes with the inverse of the arm's amplitude at its pixel."""
_PATTERNS_AT_ONCE = 64
_REFINEMENTS = 8
_TIE = 3e-3
"""Noise of an amplitude over the variance of the fields. From 1e-3 to 1e-2 rows correlate as well with the truth, at
10,000 electrons. What it takes of their size, 0.2 % here, is given back."""
_COMPLETE_VISIBILITY = 0.97
_DIM_SHARE = 0.1
_LARGEST_UNPROVEN_SHARE = 0.05
"""Of the patterns, for a row to be believed: with three steps, those of which a sample is saturated."""
_TINY = 1e-12


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
    patterns : ndarray of bool, shape (n_steps * n_patterns, n_features)
        What to show, each pattern `n_steps` times in a row.
    """

    def __init__(self, n_features: int, n_steps: int, *, seed: int = 0) -> None:
        self.n_steps = n_steps
        self._plan = ScrambledHadamard(n_features, n_singles=_SINGLES, seed=seed)
        off = np.zeros((_OFF_PATTERNS, n_features), np.bool_)
        self.patterns: NDArray[np.bool_] = np.concatenate([off, self._plan.patterns]).repeat(n_steps, axis=0)

    def recover(self, intensities: NDArray[Any], *, saturation: ArrayLike = math.inf) -> SteppedMatrix:
        """Return the matrix.

        Parameters
        ----------
        intensities : ndarray, shape (len(patterns), n_outputs)
            Counts above the dark level.
        saturation : array_like, a number or shape (n_outputs,)
            From which intensity on a sample is a lower bound.
        """
        n_outputs = intensities.shape[1]
        steps = intensities.reshape(-1, self.n_steps, n_outputs)
        phases = np.exp(2j * np.pi * np.arange(self.n_steps) / self.n_steps)[:, np.newaxis]
        off, shown = steps[:_OFF_PATTERNS], steps[_OFF_PATTERNS:]
        product = (off.mean(axis=0, dtype=np.float64) * phases).mean(axis=0)
        reference = _reference_power(off.mean(axis=(0, 1), dtype=np.float64), np.abs(product) ** 2)
        arm = _Arm(np.sqrt(reference), phases, _visibility(shown, phases, reference))
        parts = [slice(start, start + _PATTERNS_AT_ONCE) for start in range(0, len(shown), _PATTERNS_AT_ONCE)]
        fields = np.empty((len(shown), n_outputs), np.complex128)
        for part in parts:
            fields[part] = arm.linear_fields(shown[part])
        if arm.visibility >= _COMPLETE_VISIBILITY:
            fit = _Fit(arm, shown, fields, np.asarray(saturation))
            for part in parts:
                fields[part] = fit.refined(fields[part], shown[part])
        squares, powers, unproven = np.zeros(n_outputs), np.zeros(n_outputs), np.zeros(n_outputs)
        dim = _dim(shown)
        for part in parts:
            some = np.maximum(shown[part], 0).astype(np.float64)
            saturated = shown[part] >= saturation
            missing = np.sqrt(some) - np.sqrt(arm.intensities(fields[part]))
            squares += np.where(saturated & (missing < 0), 0, _weights(some, dim) * missing**2).sum(axis=(0, 1))
            powers += some.sum(axis=(0, 1))
            # A field has two parts: nothing contradicts it where only two samples tell.
            unproven += (self.n_steps - saturated.sum(axis=1) < 3).sum(axis=0)
        background = product * arm.scale
        n_frames = len(shown) * self.n_steps
        residuals, powers = np.sqrt(squares / n_frames).astype(np.float32), powers / n_frames
        bright = reference > _DARKEST_REFERENCE * np.median(reference)
        fields -= background
        return SteppedMatrix(
            self._plan.invert(fields.T).astype(np.complex64),
            background.astype(np.complex64),
            relative_residuals(residuals, powers),
            believed_rows(residuals, powers) & bright & (unproven <= _LARGEST_UNPROVEN_SHARE * len(shown)),
        )


@dataclass(frozen=True, eq=False)
class _Arm:
    """The reference arm: its amplitude at each pixel, its phases, and the visibility of the interference."""

    amplitude: NDArray[np.float64]
    phases: NDArray[np.complex128]
    visibility: float

    @property
    def scale(self) -> NDArray[np.float64]:
        """Return the field for a product `z conj(r)`, for each pixel; 0 where there is no light of the arm."""
        strength = self.amplitude * self.visibility
        found: NDArray[np.float64] = np.divide(1, strength, out=np.zeros(len(strength)), where=strength > 0)
        return found

    def intensities(self, fields: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return the intensities of fields with each phase of the arm, shape (n_patterns, n_steps, n_outputs)."""
        waves = self.amplitude * self.phases
        found = np.abs(fields[:, np.newaxis] + waves) ** 2
        found -= 2 * (1 - self.visibility) * (fields[:, np.newaxis] * waves.conj()).real
        bounded: NDArray[np.float64] = np.maximum(found, 0)
        return bounded

    def linear_fields(self, steps: NDArray[Any]) -> NDArray[np.complex128]:
        """Return the fields of patterns, shape (n_patterns, n_outputs), from counts of all phases."""
        found: NDArray[np.complex128] = (np.maximum(steps, 0) * self.phases).mean(axis=1) * self.scale
        return found


class _Fit:
    """The most likely fields: a weighted least-squares fit of the amplitudes, pattern by pattern.

    The linear solution has photon noise in proportion to `1 + |z|^2 / |r|^2`. Amplitudes have even photon noise, which
    halves the noise where a field is as bright as the arm; they are those of a sum of two fields only where the
    interference is complete. Saturated samples are lower bounds. Where few samples tell, the fit keeps to the normal
    distribution of the fields of a row: patterns of a row that is bright saturate with more than one phase.
    """

    def __init__(
        self, arm: _Arm, steps: NDArray[Any], fields: NDArray[np.complex128], saturation: NDArray[np.float32]
    ) -> None:
        self._waves = arm.amplitude * arm.phases
        self._saturation = saturation
        self._lit = arm.amplitude > 0
        self._dim = _dim(steps)
        self._mean = fields.mean(axis=0)

    def refined(self, fields: NDArray[np.complex128], steps: NDArray[Any]) -> NDArray[np.complex128]:
        """Return the fields of patterns after a few steps of Gauss and Newton, shape (n_patterns, n_outputs)."""
        powers = np.maximum(steps, 0).astype(np.float64)
        wanted = np.sqrt(powers)
        weights = _weights(powers, self._dim) * self._lit
        saturated = steps >= self._saturation
        for _ in range(_REFINEMENTS):
            total = fields[:, np.newaxis] + self._waves
            amplitudes = np.abs(total)
            missing = wanted - amplitudes
            weighing = np.where(saturated & (missing < 0), 0, weights)
            directions = total / np.maximum(amplitudes, _TINY)
            slope = (weighing * missing * directions).sum(axis=1) - _TIE * (fields - self._mean)
            # Each sample shows one direction of the plane. In complex numbers the 2 x 2 matrix of the curvature is
            # its trace and the sum of the squares of the directions.
            trace = weighing.sum(axis=1) + 2 * _TIE
            skew = (weighing * directions**2).sum(axis=1)
            fields = fields + 2 * (trace * slope - skew * slope.conj()) / (trace**2 - np.abs(skew) ** 2)
        # On average a sample shows half of the plane: a field of weights `w` keeps `1 / (1 + 2 _TIE / sum(w))` of it.
        strength = np.maximum(weights.sum(axis=1).mean(axis=0), _TINY)
        given_back: NDArray[np.complex128] = fields + np.where(self._lit, 2 * _TIE / strength, 0) * (
            fields - self._mean
        )
        return given_back


def _dim(steps: NDArray[Any]) -> float:
    """Return the intensity below which a sample is dark."""
    return _DIM_SHARE * max(float(steps.mean()), _TINY)


def _weights(powers: NDArray[np.float64], dim: float) -> NDArray[np.float64]:
    """Return the weights of amplitudes: read and quantisation noise weigh on those of dark samples."""
    found: NDArray[np.float64] = powers / (powers + dim)
    return found


def _visibility(steps: NDArray[Any], phases: NDArray[np.complex128], reference: NDArray[np.float64]) -> float:
    """Return how much of the interference shows: less than 1 where a pixel averages over fringes of a tilted arm.

    The power of the products `z conj(r)` against that of the field times that of the arm, median of the pixels.
    """
    products = np.zeros(len(reference))
    for start in range(0, len(steps), _PATTERNS_AT_ONCE):
        products += (np.abs((steps[start : start + _PATTERNS_AT_ONCE] * phases).mean(axis=1)) ** 2).sum(axis=0)
    powers = (steps.mean(axis=(0, 1), dtype=np.float64) - reference) * reference
    usable = (powers > 0) & (products > 0)
    if not usable.any():
        return 1.0
    return min(1.0, float(np.median(np.sqrt(products[usable] / len(steps) / powers[usable]))))


def _reference_power(total: NDArray[np.float64], product_power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `|r|^2` from `|r|^2 + |b|^2` and `|b conj(r)|^2`: the larger root, the arm outshines the background."""
    bright = np.maximum(total, 0)
    power: NDArray[np.float64] = (bright + np.sqrt(np.maximum(bright**2 - 4 * product_power, 0))) / 2
    return power
