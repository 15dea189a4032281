r"""Whether a transmission matrix is right: against another one, and against frames that it has not seen.

A camera sees the moduli of a row's products with real patterns, so a measured row `a` is one of the family
`exp(i phi) a, exp(i phi) conj(a)`. Every comparison here is over that family: a score that forgets the conjugates
finds a perfect recovery wrong in half of its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.given import given_or_measured
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.matrix.matrix import TransmissionMatrix
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, Provenance

__all__ = [
    "LARGEST_SATURATED_SHARE",
    "HeldOut",
    "compare_intensities",
    "faults_of_matrix",
    "held_out",
    "normalised_error",
    "row_correlations",
]

LOWEST_CORRELATION = 0.99
LARGEST_SATURATED_SHARE = 0.02
"""Of the values of random halves. Those that are left out are the brightest, about which nothing is said then."""
# Pixels that see more than one field, as of grains smaller than a pixel, do not agree better than that with any row.
_FAULTY_CORRELATION = 0.95
_LEAST_REPEATABILITY = 0.5
_LEAST_KEPT = 0.5
_FEATURES, _OUTPUTS = 128, 256
# Neither the patterns nor the noise of the frames that a matrix was fitted to.
_PATTERN_SEED = 0x48454C44
_NOISE = 2**62
_ROWS_OF_FIGURE = 64


def normalised_error(truth: NDArray[np.complex64], estimate: NDArray[np.complex64]) -> float:
    """Return the normalised mean square error of a matrix, with the best scalar for the whole of it.

    Each row of the estimate is first turned, and conjugated where that is better, as it fits best; what is left of
    the complex scalar is its modulus: `min_g sum |A - g B|^2 / sum |A|^2`.

    Parameters
    ----------
    truth, estimate : ndarray of complex, shape (n_rows, n_columns)
        A and B.

    Returns
    -------
    float
        From 0 to 1.

    Examples
    --------
    >>> normalised_error(np.array([[1, 1j], [2, 1]]), 3 * np.array([[1, -1j], [-2, -1]]))
    0.0
    """
    powers = [float(np.square(np.abs(matrix)).sum(dtype=np.float64)) for matrix in (truth, estimate)]
    if min(powers) == 0:
        return 1.0
    return max(0.0, 1 - float(_agreement(truth, estimate).sum()) ** 2 / (powers[0] * powers[1]))


def _agreement(one: NDArray[np.complex64], two: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Return `max(|<a, b>|, |<conj a, b>|)` of each row."""
    direct = np.abs(np.einsum("ij,ij->i", one.conj(), two))
    conjugate = np.abs(np.einsum("ij,ij->i", one, two))
    found: NDArray[np.float64] = np.maximum(direct, conjugate).astype(np.float64)
    return found


@dataclass(frozen=True)
class HeldOut:
    """How predicted intensities agree with measured ones.

    Parameters
    ----------
    pearson : float
        Correlation of predicted and measured intensities.
    repeatability : float
        Correlation of two measurements.
    disattenuated : float
        `pearson / sqrt(repeatability)`: what a camera without noise would have seen.
    slope : float
        Of measured over predicted intensities, with the mean of each pixel removed: noise does not change it.
    left_out_share : float
        Share of the values that were left out because they are at full scale.
    uncertainty, pearson_uncertainty, repeatability_uncertainty, slope_uncertainty, left_out_uncertainty : float
        Standard errors of `disattenuated` and of the others.
    """

    pearson: float
    repeatability: float
    disattenuated: float
    slope: float
    left_out_share: float
    uncertainty: float
    pearson_uncertainty: float
    repeatability_uncertainty: float
    slope_uncertainty: float
    left_out_uncertainty: float


def compare_intensities(
    predicted: NDArray[np.floating[Any]],
    measured: NDArray[np.floating[Any]],
    full_dn: float = math.inf,
) -> HeldOut:
    """Compare predicted with measured intensities, and correct for the noise of the measurement.

    The correlations are over patterns, with the mean of each pixel removed, pooled over pixels. Noise lowers the
    correlation of a perfect prediction with one measurement to the square root of that of two measurements (Spearman,
    Am. J. Psychol. 15, 72, 1904), by which it is divided here. The standard errors are those of the jackknife over
    patterns.

    Parameters
    ----------
    predicted : ndarray, shape (n_patterns, n_outputs)
        Intensities, in any unit.
    measured : ndarray, shape (2, n_patterns, n_outputs)
        Two measurements of each.
    full_dn : float
        Where counts end. Values that are there in either measurement are left out, as the fit of a matrix does: they
        say only that the intensity is at least this. They are counted in `left_out_share`.

    Returns
    -------
    HeldOut
        NaN where an intensity does not vary.
    """
    arrays = [np.asarray(array, np.float64) for array in (predicted, *measured)]
    counted = np.asarray(np.asarray(measured).max(axis=0) < full_dn)
    sums = np.stack([_sums_by_pattern(one, two) for one, two in _pairs(arrays, counted)])
    values = _correlations(sums.sum(axis=1))
    n = len(arrays[0])
    without = _correlations(sums.sum(axis=1, keepdims=True) - sums)
    errors = np.sqrt((n - 1) / n * np.square(without - without.mean(axis=1, keepdims=True)).sum(axis=1))
    pearson, repeatability, disattenuated, slope = (float(value) for value in values)
    pearson_error, repeatability_error, error, slope_error = (float(value) for value in errors)
    left_out = 1 - counted.sum(axis=1) / max(1, counted.shape[1])
    return HeldOut(
        pearson=pearson,
        repeatability=repeatability,
        disattenuated=disattenuated,
        slope=slope,
        left_out_share=float(left_out.mean()),
        uncertainty=error,
        pearson_uncertainty=pearson_error,
        repeatability_uncertainty=repeatability_error,
        slope_uncertainty=slope_error,
        left_out_uncertainty=float(left_out.std()) / math.sqrt(n),
    )


def _pairs(
    arrays: list[NDArray[np.float64]], counted: NDArray[np.bool_]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the factors of the five moments: prediction and measurements with themselves and each other."""
    n = np.maximum(counted.sum(axis=0), 1)
    predicted, first, second = (
        np.where(counted, array - np.where(counted, array, 0.0).sum(axis=0) / n, 0.0) for array in arrays
    )
    mean = (first + second) / 2
    return [(predicted, predicted), (predicted, mean), (first, first), (second, second), (first, second)]


def _sums_by_pattern(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum("ij,ij->i", one, two)
    return found


def _correlations(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson correlation, repeatability, their disattenuated ratio, and the slope from the five moments."""
    predicted, across, first, second, repeat = moments
    measured = (first + second) / 2

    def ratio(numerator: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        usable = square > 0
        safe: NDArray[np.float64] = np.where(usable, numerator / np.sqrt(np.where(usable, square, 1.0)), np.nan)
        return safe

    return np.stack(
        [
            ratio(across, predicted * measured),
            ratio(repeat, first * second),
            ratio(across, predicted * repeat),
            ratio(across, predicted * predicted),
        ]
    )


def held_out(
    device: Device, *, matrix: TransmissionMatrix | None = None, noise_key: int = 0, n_patterns: int = 50
) -> CalibrationResult:
    """Compare the intensities that a matrix predicts with frames that it was not fitted to.

    Random patterns with half of the features on are shown twice each. The value is the Pearson correlation of
    predicted and measured intensities over the rows to be believed, divided by the square root of the correlation of
    the two measurements: 1 for a perfect matrix behind any noise. (Some divide by that correlation itself, which
    flatters the matrix; it is the quantity `pearson_over_repeatability`.) For a field correlation `c` of the matrix
    with the medium as it is, the value is `c ** 2`.

    Values at full scale are no measurement and are left out. Their share has a limit of 2 %.

    Parameters
    ----------
    device : Device
        The device whose matrix it is.
    matrix : TransmissionMatrix, optional
        What to check; default one that is measured first.
    noise_key : int
        The noise of the frames.
    n_patterns : int
        How many patterns, each for two frames.

    Returns
    -------
    CalibrationResult
        Quantities: `pearson`, `repeatability`, `pearson_over_repeatability`, `kept`, `left_out_share`. Data:
        `predicted_dn` and `measured_dn`, shape (n_patterns, up to 64 rows), in DN above the dark level.
    """
    recorder = Recorder(device, noise_key=noise_key)
    matrix = given_or_measured(matrix, recorder, noise_key, *available_size(recorder.description, _FEATURES, _OUTPUTS))
    config = msgspec.structs.replace(matrix.config, noise_key=noise_key ^ _NOISE)
    patterns = random_halves(n_patterns, matrix.n_features, seed=_PATTERN_SEED + noise_key)
    projection = recorder.take(config, np.concatenate([patterns, patterns]))
    provenance = projection.provenance
    frames = projection.frames.reshape(2, n_patterns, -1)[..., matrix.kept].astype(np.float32)
    predicted = matrix.intensities(patterns)[:, matrix.kept]
    full_dn = recorder.description.full_scale_dn
    found = compare_intensities(predicted, frames, full_dn)
    light_dn = frames - matrix.dark_dn[matrix.kept]
    ratio = found.pearson / found.repeatability if found.repeatability > 0 else math.nan
    share = float(matrix.kept.mean())
    return recorder.result(
        "held_out",
        "correlation of predicted and measured intensities without the noise of the camera",
        found.disattenuated,
        "1",
        found.uncertainty,
        limit=(LOWEST_CORRELATION, None),
        quantities={
            "pearson": _plain_quantity(found.pearson, found.pearson_uncertainty, "correlation with one frame"),
            "repeatability": _plain_quantity(
                found.repeatability, found.repeatability_uncertainty, "correlation of two frames of a pattern"
            ),
            "pearson_over_repeatability": _plain_quantity(ratio, math.nan, "the two divided"),
            "kept": _plain_quantity(share, 0.0, "share of the rows to be believed"),
            "left_out_share": Quantity(
                value=found.left_out_share,
                unit="1",
                uncertainty=found.left_out_uncertainty,
                limit=(None, LARGEST_SATURATED_SHARE),
                summary="share of the values at full scale, which are left out",
            ),
        },
        findings=[
            *faults_of_matrix(matrix, provenance.medium_id, provenance.medium_epoch),
            *saturation_finding(
                light_dn[0], full_dn - float(np.median(matrix.dark_dn)), largest_share=LARGEST_SATURATED_SHARE
            ),
            *_faults_of_agreement(found, matrix, provenance),
        ],
        data={
            "predicted_dn": predicted[:, :_ROWS_OF_FIGURE],
            "measured_dn": light_dn.mean(axis=0)[:, :_ROWS_OF_FIGURE],
        },
    )


def _plain_quantity(value: float, uncertainty: float, summary: str) -> Quantity:
    return Quantity(value=value, unit="1", uncertainty=uncertainty, summary=summary)


def faults_of_matrix(matrix: TransmissionMatrix, medium_id: str, medium_epoch: int) -> list[str]:
    """Return what is wrong with a matrix in words, given the medium that the device has now."""
    faults = []
    if (medium_id, medium_epoch) != (matrix.medium_id, matrix.medium_epoch):
        faults.append(
            f"The matrix was measured through the medium {matrix.medium_id}, epoch {matrix.medium_epoch}, and the "
            f"device has {medium_id}, epoch {medium_epoch}: measure it again."
        )
    share = float(matrix.kept.mean())
    if share < _LEAST_KEPT:
        faults.append(
            f"Only {share:.1%} of the rows of the matrix are to be believed: too few or too noisy frames, "
            "a medium that moves, or saturated pixels."
        )
    return faults


def _faults_of_agreement(found: HeldOut, matrix: TransmissionMatrix, provenance: Provenance) -> list[str]:
    if not matrix.kept.any():
        return []
    if math.isnan(found.repeatability) or math.isnan(found.disattenuated):
        return ["The frames do not follow the pattern: no light reaches the camera, or all pixels are saturated."]
    if found.repeatability < _LEAST_REPEATABILITY:
        return [
            f"Two frames of one pattern correlate at only {found.repeatability:.3f}: too little light, "
            "or frames that are lost or swapped."
        ]
    if found.disattenuated < _FAULTY_CORRELATION:
        age_s = provenance.finished_unix_s - matrix.measured_unix_s
        return [
            f"The matrix predicts new frames at a correlation of only {found.disattenuated:.4f}, while frames "
            f"repeat at {found.repeatability:.4f}: the medium moved since then, {age_s:.0f} s ago, or it is wrong."
        ]
    if found.disattenuated < LOWEST_CORRELATION:
        return [
            f"The matrix predicts new frames at a correlation of {found.disattenuated:.4f}, below "
            f"{LOWEST_CORRELATION:g}: noise is in its rows, the medium has moved a little, or pixels see more than one "
            "field (grains as small as a pixel, or light of two polarisations)."
        ]
    return []
