r"""The singular values of a transmission matrix, on the law of random matrices.

The squares of the singular values of a matrix of `m` rows and `n <= m` columns, with independent entries of zero mean
and variance `1 / m`, follow for large sizes the law of Marchenko and Pastur (Math. USSR Sb. 1, 457, 1967),

    rho(l) = sqrt((l_+ - l)(l - l_-)) / (2 pi beta l),    l_+- = (1 +- sqrt(beta))^2,    beta = n / m,

which for square matrices makes the singular values a quarter circle. Whatever is not random shows: a rank that is too
low as a heap at zero, neighbouring pixels that share a grain as values that are too small and too large.

Rows are divided by their root mean square first, because a matrix that was measured against a speckle reference has
rows of its brightness (Popoff et al., Phys. Rev. Lett. 104, 100601, 2010), and so are columns after that: a beam that
is brighter in the middle is no fault of the medium.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.matrix.given import given_or_measured
from opu.calibration.matrix.validation import faults_of_matrix
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.matrix.matrix import TransmissionMatrix
    from opu.calibration.result import CalibrationResult
    from opu.device import Device

__all__ = [
    "LARGEST_DISTANCE",
    "Spectrum",
    "marchenko_pastur_distribution",
    "neighbour_correlation",
    "random_matrix_law",
    "singular_values",
    "spectrum_of",
]

LARGEST_DISTANCE = 0.02
_DARK_COLUMN = 0.01
_LARGEST_NEIGHBOUR_CORRELATION = 0.05
_LOW_QUANTILE = 0.02
_LARGEST_LOW_SHARE = 0.05
_STEPS = 4096
_FEATURES, _OUTPUTS = 160, 320
_POINTS_OF_FIGURE = 200
# Truly random matrices with n singular values have a distance of 2 / n with a standard deviation of 0.25 / n: measured
# from 64 x 32 to 512 x 512.
_LARGEST_CHANCE = 3.0
_DISTANCE_SPREAD = 0.25


def random_matrix_law(s: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Return the density of singular values of random matrices, `rho(s^2) 2 s` of Marchenko and Pastur.

    Parameters
    ----------
    s : ndarray of float64
        Singular values, of a matrix whose columns have unit power.
    beta : float
        Columns over rows, above 0 and at most 1.

    Examples
    --------
    >>> float(random_matrix_law(np.array([1.0]), 1.0)[0])  # the quarter circle: sqrt(4 - s^2) / pi
    0.551...
    """
    squares = np.square(s)
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    inside = np.maximum((high - squares) * (squares - low), 0.0)
    density: NDArray[np.float64] = np.sqrt(inside) / (math.pi * beta * np.maximum(s, np.finfo(np.float64).tiny))
    return density


def marchenko_pastur_distribution(s: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Return the share of singular values up to `s`, the integral of `random_matrix_law`.

    Parameters
    ----------
    s, beta : ndarray of float64, float
        As there.
    """
    # Between the edges s = middle - half cos(angle): the roots at the edges become smooth.
    angles = (np.arange(_STEPS) + 0.5) * (math.pi / _STEPS)
    middle, half = 1.0, math.sqrt(beta)
    places = middle - half * np.cos(angles)
    mass = random_matrix_law(places, beta) * half * np.sin(angles)
    total = np.concatenate([[0.0], np.cumsum(mass)])
    edges = middle - half * np.cos(np.arange(_STEPS + 1) * (math.pi / _STEPS))
    share: NDArray[np.float64] = np.interp(s, edges, total / total[-1])
    return share


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of a matrix, and how far they are from the law of random matrices.

    Parameters
    ----------
    values : ndarray of float64, shape (min(n_rows, n_columns),)
        Ascending, scaled so that the law's edges are `1 -+ sqrt(beta)`.
    beta : float
        Its shorter side over its longer one.
    distance : float
        Largest difference of the shares up to a value (Kolmogorov and Smirnov).
    uncertainty : float
        Standard deviation of the distance among random matrices of that size.
    low_share : float
        Share of the values below the law's 2 % quantile: 0.02 for a random matrix.
    dark_columns : int
        Columns with less than a hundredth of the mean power, which count as zeros.
    effective_columns : float
        `(sum p)^2 / sum p^2` over the powers of the columns: how many would do the same if all were equally bright.
    """

    values: NDArray[np.float64]
    beta: float
    distance: float
    uncertainty: float
    low_share: float
    dark_columns: int
    effective_columns: float


def spectrum_of(matrix: NDArray[np.complex64]) -> Spectrum:
    """Return the singular values of a matrix with rows, and then columns, of equal power.

    Parameters
    ----------
    matrix : ndarray of complex, shape (n_rows, n_columns)
        Rows of zeros are left out.

    Returns
    -------
    Spectrum
        NaN in all numbers where less than two rows or columns are left.
    """
    powers = np.square(np.abs(matrix)).mean(axis=1, dtype=np.float64)
    rows = matrix[powers > 0] / np.sqrt(powers[powers > 0])[:, np.newaxis]
    if min(rows.shape) < 2:
        return Spectrum(np.zeros(0), math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    columns = np.square(np.abs(rows)).mean(axis=0, dtype=np.float64)
    dark = columns < _DARK_COLUMN * columns.mean()
    # A dark column stays dark: scaled up it would be as good as any.
    rows = rows / np.sqrt(np.where(dark, 1.0, columns))
    short, long = sorted(rows.shape)
    beta = short / long
    values = np.sort(np.linalg.svd(rows, compute_uv=False).astype(np.float64)) / math.sqrt(long)
    expected = marchenko_pastur_distribution(values, beta)
    steps = np.arange(len(values) + 1) / len(values)
    distance = float(np.maximum(np.abs(steps[1:] - expected), np.abs(steps[:-1] - expected)).max())
    low_share = float((expected < _LOW_QUANTILE).mean())
    effective = float(columns.sum() ** 2 / np.square(columns).sum())
    return Spectrum(values, beta, distance, _DISTANCE_SPREAD / short, low_share, int(dark.sum()), effective)


def neighbour_correlation(matrix: TransmissionMatrix) -> tuple[float, float]:
    """Return how much the rows of neighbouring pixels have in common: `mean |<a, b>|^2 / (|a| |b|)^2`, less `1 / n`.

    Independent rows of `n` columns have `1 / n`, which is taken off. Phases and conjugation of the rows are not known:
    the larger of the products with the neighbour and with its conjugate is taken, and that of independent rows, which
    is `1.5 / n`, taken off.

    Parameters
    ----------
    matrix : TransmissionMatrix
        Pixels side by side in a row of the region are neighbours.

    Returns
    -------
    tuple of (float, float)
        The correlation, and its standard error; NaN where there are no neighbours.
    """
    region, n_features = matrix.config.region, matrix.n_features
    per_row = -(-region.width // matrix.config.stride) if region is not None else matrix.n_outputs
    first = np.arange(matrix.n_outputs - 1)
    pairs = first[((first + 1) % per_row != 0) & matrix.kept[:-1] & matrix.kept[1:]]
    powers = np.square(np.abs(matrix.matrix)).sum(axis=1, dtype=np.float64)
    pairs = pairs[(powers[pairs] > 0) & (powers[pairs + 1] > 0)]
    if len(pairs) < 2:
        return math.nan, math.nan
    one, two = matrix.matrix[pairs], matrix.matrix[pairs + 1]
    direct, conjugate = np.einsum("ij,ij->i", one.conj(), two), np.einsum("ij,ij->i", one, two)
    shared = np.square(np.maximum(np.abs(direct), np.abs(conjugate))) / (powers[pairs] * powers[pairs + 1])
    error = float(shared.std(ddof=1)) / math.sqrt(len(pairs))
    return float(shared.mean()) - 1.5 / n_features, error


def singular_values(
    device: Device, *, matrix: TransmissionMatrix | None = None, noise_key: int = 0
) -> CalibrationResult:
    """Compare the singular values of a measured matrix with the law of random matrices. No frame is taken.

    Parameters
    ----------
    device : Device
        The device whose matrix it is.
    matrix : TransmissionMatrix, optional
        What was measured; the rows to be believed are used. Default one that is measured first.
    noise_key : int
        The noise of the frames of that measurement.

    Returns
    -------
    CalibrationResult
        The distance of Kolmogorov and Smirnov; the limit is 0.02, and `3 / n` where less than 150 singular values make
        chance larger than that. Quantities: `neighbour_correlation`, `low_share`,
        `effective_features`. Data: `singular_values`, and `law_value` and `law_density`, the curve of the law.
    """
    recorder = Recorder(device, noise_key=noise_key)
    matrix = given_or_measured(matrix, recorder, noise_key, *available_size(recorder.description, _FEATURES, _OUTPUTS))
    medium = recorder.description.medium
    found = spectrum_of(matrix.matrix[matrix.kept])
    shared, shared_error = neighbour_correlation(matrix)
    limit = _largest_distance(found)
    edge = math.sqrt(found.beta) if not math.isnan(found.beta) else 0.0
    places = np.linspace(1 - edge, 1 + edge, _POINTS_OF_FIGURE)
    return recorder.result(
        "singular_values",
        "distance of the singular values from the law of random matrices",
        found.distance,
        "1",
        found.uncertainty,
        limit=(None, limit),
        quantities={
            "neighbour_correlation": Quantity(
                value=shared, unit="1", uncertainty=shared_error, summary="power that neighbouring rows share"
            ),
            "low_share": Quantity(
                value=found.low_share,
                unit="1",
                uncertainty=found.uncertainty,
                summary=f"share of the values in the law's lowest {_LOW_QUANTILE:.0%}",
            ),
            "effective_features": Quantity(
                value=found.effective_columns, unit="1", uncertainty=math.nan, summary="effective number of features"
            ),
        },
        findings=[*faults_of_matrix(matrix, medium.medium_id, medium.epoch), *_faults(matrix, found, shared)],
        data={
            "singular_values": found.values,
            "law_value": places,
            "law_density": random_matrix_law(places, found.beta) if edge else np.zeros(_POINTS_OF_FIGURE),
        },
    )


def _largest_distance(found: Spectrum) -> float:
    """Return the limit of the distance: for few singular values chance alone makes it larger."""
    return max(LARGEST_DISTANCE, _LARGEST_CHANCE / max(1, len(found.values)))


def _faults(matrix: TransmissionMatrix, found: Spectrum, shared: float) -> list[str]:
    """Word what the singular values point to."""
    faults = []
    if math.isnan(found.distance):
        return ["The matrix has less than two rows to be believed: its singular values say nothing."]
    if found.dark_columns:
        faults.append(
            f"{found.dark_columns} of {matrix.n_features} features hardly change the field: their mirrors are stuck, "
            "or lie outside the beam."
        )
    if shared > _LARGEST_NEIGHBOUR_CORRELATION:
        faults.append(
            f"Neighbouring rows share {shared:.0%} of their power: the grain of the speckle spans several pixels. "
            "Use a larger stride."
        )
    elif found.low_share > _LARGEST_LOW_SHARE:
        n_values = len(found.values)
        faults.append(
            f"{found.low_share:.1%} of the singular values are as small as the lowest {_LOW_QUANTILE:.0%} of a random "
            f"matrix: about {round(found.low_share * n_values)} of {n_values} dimensions are missing. Features or "
            "pixels depend on each other, or the medium mixes too little."
        )
    elif found.distance > _largest_distance(found):
        faults.append(
            f"The singular values are {found.distance:.3f} away from the law of random matrices, more than "
            f"{_largest_distance(found):.3f}: the matrix has a structure, or its estimate is poor."
        )
    return faults
