r"""Following the matrix of a medium that drifts, from probes between the frames of the work.

Each probe is a random pattern. It measures the modulus of every row's field, and the estimate lends the phase:

    e = (sqrt(I) - |f|) f / |f|,    f = a x + c

is what the row misses *along* its field; what it misses across is not seen this time. Recursive least squares turns it
into a correction of the row:

    k = P x / (x P x + r),    a <- a + w e k^T,    P <- P - k (P x)^T / 2 + q 1.

`P` is the covariance of the error of a row, shared by all rows because all see the same patterns, `r` the noise of the
modulus (twice its variance, as for a complex number), and `q` the variance that the drift adds between two probes. Two
things differ from the textbook. Only half of the variance along `x` is known after a probe that measures one of two
quadratures, hence the factor of 1/2. And the past is forgotten by *adding* to `P` (a random walk, which is what an
Ornstein-Uhlenbeck process is for times short of its own) instead of dividing it by a forgetting factor: this holds the
error of short memories lower, and no direction that probes have missed for a while blows up. The weight `w = |f|^2 /
(|f|^2 + x P x / 2)` trusts no phase of a field as small as its error.

How fast the medium drifts need not be known: `q` follows from the innovations, whose mean square must be
`(x P x + r) / 2`.

Rows are scaled to entries of unit variance, so that one `P` fits all. The background field is one feature more that is
always on.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.matrix.given import given_or_measured
from opu.calibration.matrix.validation import HeldOut, compare_intensities, faults_of_matrix
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding
from opu.errors import PatternShapeError
from opu.patterns import as_packed, unpack

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.calibration.matrix.matrix import TransmissionMatrix
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, DeviceDescription
    from opu.patterns import PackedPatterns

__all__ = ["PROBE_DUTY", "MatrixTracker", "tracking"]

PROBE_DUTY = 0.1
"""Share of the frames that are probes."""

_FIRST_DRIFT = 1e-6
_DRIFT_RANGE = (1e-12, 1e-1)
_DRIFT_GAIN = 0.01
_LARGEST_SURPRISE = 3.0
_BATCHES = 16
_FEATURES, _OUTPUTS = 64, 100
_LARGEST_LOSS = 0.002
_LEAST_CORRELATION = 0.5
_LARGEST_SATURATED_SHARE = 0.02
_NOISE = 2**61
_PROBE_SEED = 0x50524F42


class MatrixTracker:
    """Follows a transmission matrix by recursive least squares.

    Parameters
    ----------
    matrix : TransmissionMatrix
        Where it starts. Its `row_quality` tells the noise of the moduli. Rows that are not `kept` stay as they are.
    full_scale_dn : int or None
        The largest value of a pixel: pixels at it say nothing of their row. None where no pixel saturates.

    Attributes
    ----------
    n_probes_ : int
        How many probes it has seen.
    drift_per_probe_ : float
        The variance that the drift adds to an entry of unit variance from one probe to the next: 2 / tau for a
        correlation time of tau probes.

    Notes
    -----
    A probe costs `O(n_outputs n_features + n_features^2)`.
    """

    def __init__(self, matrix: TransmissionMatrix, *, full_scale_dn: int | None = None) -> None:
        self._start = matrix
        self._full_scale_dn = math.inf if full_scale_dn is None else full_scale_dn
        rows = np.concatenate([matrix.matrix, matrix.background[:, np.newaxis]], axis=1).astype(np.complex128)
        power = np.square(np.abs(rows[:, :-1])).mean(axis=1)
        self._followed = matrix.kept & (power > 0)
        self._scale = np.sqrt(np.where(self._followed, power, 1.0))
        scaled = rows / self._scale[:, np.newaxis]
        self._real, self._imag = scaled.real.copy(), scaled.imag.copy()
        background = np.square(np.abs(scaled[self._followed, -1])).mean() if self._followed.any() else 0.0
        self._walk = np.r_[np.ones(matrix.n_features), background]
        self._noise = self._amplitude_noise(background)
        spare = max(matrix.n_frames - 2 * matrix.n_features, matrix.n_features)
        self._covariance = np.diag(self._walk * 4 * self._noise / spare)
        self.n_probes_ = 0
        self.drift_per_probe_ = _FIRST_DRIFT

    def _amplitude_noise(self, background: float) -> float:
        """Return twice the variance of a scaled modulus, from the residuals of the fit."""
        if not self._followed.any():
            return 0.0
        mean_intensity = self._start.n_features / 2 + background
        return 2 * float(np.median(np.square(self._start.row_quality[self._followed]))) * mean_intensity

    @property
    def matrix_(self) -> TransmissionMatrix:
        """The matrix as it is now."""
        rows = ((self._real + 1j * self._imag) * self._scale[:, np.newaxis]).astype(np.complex64)
        return replace(
            self._start,
            matrix=rows[:, :-1].copy(),
            background=rows[:, -1].copy(),
            method=f"{self._start.method}, tracked",
            n_frames=self._start.n_frames + self.n_probes_,
        )

    def probes_for(self, n_frames: int) -> NDArray[np.bool_]:
        """Return new random probes that go with so many frames of work, at a duty of `PROBE_DUTY`.

        Parameters
        ----------
        n_frames : int
            Frames of work.

        Returns
        -------
        ndarray of bool, shape (n_probes, n_features)
            To be shown, and given to `partial_fit` with their frames.
        """
        n_probes = math.ceil(n_frames * PROBE_DUTY / (1 - PROBE_DUTY))
        return _random_probes(n_probes, self._start.n_features, _PROBE_SEED + self.n_probes_)

    def partial_fit(self, patterns: ArrayLike | PackedPatterns, frames: ArrayLike) -> MatrixTracker:
        """Learn from frames, in the order in which they were taken.

        Parameters
        ----------
        patterns : array_like or PackedPatterns, shape (batch, n_features)
            What was shown.
        frames : array_like, shape (batch, n_outputs)
            Raw counts of the session of the matrix.

        Returns
        -------
        MatrixTracker
            Itself.

        Raises
        ------
        PatternShapeError
            The shapes do not fit the matrix, or each other.
        """
        shown = unpack(as_packed(patterns, self._start.n_features))
        counts = np.asarray(frames)
        if counts.shape != (len(shown), self._start.n_outputs):
            raise PatternShapeError(
                f"The frames have the shape {counts.shape}.", f"Use ({len(shown)}, {self._start.n_outputs})."
            )
        usable = (counts < self._full_scale_dn) & self._followed
        amplitudes = np.sqrt(np.maximum(counts - self._start.dark_dn, 0.0)) / self._scale
        for pattern, amplitude, use in zip(shown, amplitudes, usable, strict=True):
            self._learn(np.r_[pattern, 1].astype(np.float64), amplitude, use)
        self.n_probes_ += len(shown)
        return self

    def _learn(self, pattern: NDArray[np.float64], amplitude: NDArray[np.float64], use: NDArray[np.bool_]) -> None:
        self._covariance.flat[:: len(pattern) + 1] += self.drift_per_probe_ * self._walk
        spread = self._covariance @ pattern
        variance = float(pattern @ spread)
        if variance + self._noise <= 0 or not use.any():
            return
        gain = spread / (variance + self._noise)
        real, imag = self._real @ pattern, self._imag @ pattern
        power = real**2 + imag**2
        modulus = np.sqrt(power)
        weight = np.where(use, power / (power + variance / 2 + np.finfo(np.float64).tiny), 0.0)
        innovation = amplitude - modulus
        self._learn_drift(float(np.square(innovation[use]).mean()), variance)
        step = weight * innovation / np.maximum(modulus, np.finfo(np.float64).tiny)
        self._real += np.multiply.outer(step * real, gain)
        self._imag += np.multiply.outer(step * imag, gain)
        self._covariance -= np.multiply.outer(gain, spread / 2)

    def _learn_drift(self, mean_square: float, variance: float) -> None:
        """Let the drift grow when the innovations are larger than expected, and shrink when they are smaller."""
        surprise = min(mean_square / ((variance + self._noise) / 2), _LARGEST_SURPRISE)
        drift = self.drift_per_probe_ * math.exp(_DRIFT_GAIN * (surprise - 1))
        self.drift_per_probe_ = min(max(drift, _DRIFT_RANGE[0]), _DRIFT_RANGE[1])


def _random_probes(n_probes: int, n_features: int, seed: int) -> NDArray[np.bool_]:
    """Return random patterns. With exactly half on, the background could not be told from the mean of the features."""
    return np.random.default_rng(seed).random((n_probes, n_features)) < 0.5


def tracking(
    device: Device, *, matrix: TransmissionMatrix | None = None, noise_key: int = 0, n_probes: int | None = None
) -> CalibrationResult:
    """Follow a matrix for a while, and compare it with the frozen one.

    Each probe is predicted before it is learned, by the matrix as it is followed and by the one that was measured. The
    value is by how much the correlation of predicted and measured intensities, over the second half of the probes, is
    higher with tracking; the limit is that it is not lower.

    Parameters
    ----------
    device : Device
        The device whose matrix it is.
    matrix : TransmissionMatrix, optional
        Where it starts; default one that is measured first.
    noise_key : int
        The noise of the frames.
    n_probes : int, optional
        How many frames; default four times the features, the least after which a drift shows.

    Returns
    -------
    CalibrationResult
        Quantities: `tracked` and `frozen`, the correlations, and `correlation_time_s`, that of the field as the
        innovations tell it. Data: `tracked` and `frozen`, the correlations along the probes, one for each batch, and
        `time_s`, the device time of each.
    """
    recorder = Recorder(device, noise_key=noise_key)
    matrix = given_or_measured(matrix, recorder, noise_key, *available_size(recorder.description, _FEATURES, _OUTPUTS))
    tracker = MatrixTracker(matrix, full_scale_dn=recorder.description.full_scale_dn)
    probes = _random_probes(n_probes or 4 * matrix.n_features, matrix.n_features, _PROBE_SEED + noise_key)
    batches = np.array_split(probes, max(1, min(_BATCHES, len(probes) // 2)))
    config = msgspec.structs.replace(matrix.config, noise_key=noise_key ^ _NOISE)
    kept = matrix.kept
    measured, tracked, times_s = [], [], []
    with device.open_session(config) as session:
        for batch in batches:
            projection = recorder.take_from(session, batch)
            tracked.append(tracker.matrix_.intensities(batch)[:, kept])
            measured.append(projection.frames[:, kept].astype(np.float32))
            times_s.append(projection.provenance.device_start_us * 1e-6)
            tracker.partial_fit(batch, projection.frames)
    frozen = [matrix.intensities(batch)[:, kept] for batch in batches]
    followed, stood = _agreement(tracked, measured), _agreement(frozen, measured)
    elapsed_s = times_s[-1] - times_s[0]
    probe_s = elapsed_s / max(1, len(probes) - len(batches[-1]))
    return recorder.result(
        "tracking",
        "gain in correlation by following the matrix",
        followed.pearson - stood.pearson,
        "1",
        math.hypot(followed.pearson_uncertainty, stood.pearson_uncertainty),
        limit=(-_LARGEST_LOSS, None),
        quantities={
            "tracked": _correlation(followed, "correlation with the matrix that is followed"),
            "frozen": _correlation(stood, "correlation with the matrix as it was measured"),
            "correlation_time_s": Quantity(
                value=2 / tracker.drift_per_probe_ * probe_s,
                unit="s",
                uncertainty=math.nan,
                summary="correlation time of the field, if nothing else makes frames differ",
            ),
        },
        findings=[
            *faults_of_matrix(matrix, projection.provenance.medium_id, projection.provenance.medium_epoch),
            *_faults(followed, stood, _saturation(measured, matrix, recorder.description)),
        ],
        data={
            "tracked": np.array([_pearson(*pair) for pair in zip(tracked, measured, strict=True)]),
            "frozen": np.array([_pearson(*pair) for pair in zip(frozen, measured, strict=True)]),
            "time_s": np.array(times_s),
        },
    )


def _saturation(
    measured: list[NDArray[np.float32]], matrix: TransmissionMatrix, description: DeviceDescription
) -> list[str]:
    dark_dn = matrix.dark_dn[matrix.kept]
    range_dn = description.full_scale_dn - float(np.median(matrix.dark_dn))
    return saturation_finding(np.concatenate(measured) - dark_dn, range_dn, largest_share=_LARGEST_SATURATED_SHARE)


def _faults(followed: HeldOut, stood: HeldOut, saturation: list[str]) -> list[str]:
    if saturation:
        return saturation
    gain = followed.pearson - stood.pearson
    if math.isnan(gain):
        return ["The frames do not follow the pattern: there is no light, or no row to be believed."]
    if followed.pearson < _LEAST_CORRELATION:
        return [
            f"Predictions correlate by only {followed.pearson:.3f} with the frames, and by {stood.pearson:.3f} with "
            "the matrix as it was measured: the medium moves too fast, the matrix is wrong, or the frames are not "
            "those of their patterns (measure `latency`)."
        ]
    if gain < -_LARGEST_LOSS:
        return [
            f"Following the matrix makes it worse: predictions correlate by {followed.pearson:.4f}, and by "
            f"{stood.pearson:.4f} with the matrix as it was measured. The frames are not those of their patterns "
            "(measure `latency`), or the light is unsteady."
        ]
    return []


def _agreement(predicted: list[NDArray[np.float32]], measured: list[NDArray[np.float32]]) -> HeldOut:
    """Compare the second half of the batches."""
    half = len(measured) // 2
    frames = np.concatenate(measured[half:])
    return compare_intensities(np.concatenate(predicted[half:]), np.stack([frames, frames]))


def _pearson(predicted: NDArray[np.float32], measured: NDArray[np.float32]) -> float:
    return compare_intensities(predicted, np.stack([measured, measured])).pearson


def _correlation(found: HeldOut, summary: str) -> Quantity:
    return Quantity(value=found.pearson, unit="1", uncertainty=found.pearson_uncertainty, summary=summary)
