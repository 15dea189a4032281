"""Calibration routines. Each takes a device, measures through the contract alone, and stands on its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.result import CalibrationResult
from opu.device import SessionConfig
from opu.exposure import TARGET_FRACTION, choose_exposure
from opu.linear import LinearProjector, fit_linear_map
from opu.patterns import PackedPatterns, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import Device

__all__ = [
    "ROUTINES",
    "dark_level",
    "exposure",
    "linearity",
    "repeat_correlation",
    "speckle_contrast",
]

N_FEATURES = 64
N_OUTPUTS = 2048


@dataclass(frozen=True)
class _Measurement:
    value: float
    uncertainty: float
    limit: tuple[float | None, float | None]
    frames: int


def _timed(name: str, summary: str, unit: str, measure: Callable[[], _Measurement]) -> CalibrationResult:
    started_s = time.perf_counter()
    measured = measure()
    return CalibrationResult(
        name=name,
        summary=summary,
        value=measured.value,
        unit=unit,
        uncertainty=measured.uncertainty,
        limit=measured.limit,
        frames=measured.frames,
        seconds=time.perf_counter() - started_s,
    )


def _project(
    device: Device, config: SessionConfig, patterns: NDArray[Any] | PackedPatterns, first_frame_index: int = 0
) -> NDArray[np.float64]:
    with device.open_session(config) as session:
        projection = session.project(patterns, first_frame_index=first_frame_index)
    return projection.frames.astype(np.float64)


def _random_halves(n_patterns: int) -> NDArray[np.bool_]:
    """Patterns with exactly half of the features on."""
    order = np.random.default_rng(0).random((n_patterns, N_FEATURES)).argsort(axis=1)
    return order < N_FEATURES // 2


def dark_level(device: Device, *, noise_key: int = 0) -> CalibrationResult:
    """Measure the mean count without light.

    The limit is half a count around the black level that the device states. The uncertainty is the standard error
    over frames of the frame mean.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.

    Returns
    -------
    CalibrationResult
        In DN, from 64 frames.
    """

    def measure() -> _Measurement:
        config = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, light="off", noise_key=noise_key)
        means = _project(device, config, np.zeros((64, N_FEATURES), dtype=np.bool_)).mean(axis=1)
        stated = device.describe().black_level_dn
        error = float(means.std(ddof=1)) / math.sqrt(len(means))
        return _Measurement(float(means.mean()), error, (stated - 0.5, stated + 0.5), len(means))

    return _timed("dark_level", "mean count with the light off", "DN", measure)


def exposure(device: Device, *, noise_key: int = 0) -> CalibrationResult:
    """Find the exposure time for a mean of a ninth of full scale with half of the features on.

    The limit is where, judged by a second measurement with other patterns, the mean would be within 5 % of its target.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Returns
    -------
    CalibrationResult
        In microseconds.
    """

    def measure() -> _Measurement:
        patterns = _random_halves(64)
        start = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, noise_key=noise_key)
        config, n_frames = choose_exposure(device, start, pack(patterns[:32]))
        means = _project(device, config, patterns[32:], n_frames).mean(axis=1)
        description = device.describe()
        above = float(means.mean()) - description.black_level_dn
        target = TARGET_FRACTION * (description.full_scale_dn - description.black_level_dn)
        exposure_us = float(config.exposure_us or description.exposure_us.default)
        best_us = exposure_us * target / above if above > 0 else math.inf
        error = best_us * float(means.std(ddof=1)) / math.sqrt(len(means)) / max(above, 1e-9)
        return _Measurement(exposure_us, error, (0.95 * best_us, 1.05 * best_us), n_frames + 32)

    return _timed("exposure", "exposure for a mean of full scale / 9, half of the features on", "us", measure)


def speckle_contrast(device: Device, *, noise_key: int = 0) -> CalibrationResult:
    """Measure the speckle contrast, standard deviation over mean of the intensity.

    Fully developed speckle has contrast 1. Thirty-two patterns light disjoint features: their speckles are independent
    and make 32 x 2048 samples; the standard error of the contrast of exponential data is 1 / sqrt(samples). Each is
    measured four times, and the *covariance* between different repeats replaces the variance: noise drops out.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Returns
    -------
    CalibrationResult
        Without unit; passes within 0.02 of 1.
    """

    def measure() -> _Measurement:
        n_patterns, n_repeats = 32, 4
        one_each = np.kron(np.eye(n_patterns, dtype=np.bool_), np.ones((1, N_FEATURES // n_patterns), dtype=np.bool_))
        start = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, noise_key=noise_key)
        config, n_frames = choose_exposure(device, start, pack(one_each))
        shown = np.tile(one_each, (n_repeats, 1))
        frames = _project(device, config, shown, n_frames) - device.describe().black_level_dn
        samples = frames.reshape(n_repeats, -1)
        mean = samples.mean()
        covariances = np.cov(samples)[np.triu_indices(n_repeats, 1)]
        contrast = math.sqrt(max(float(covariances.mean()), 0.0)) / mean if mean > 0 else math.nan
        error = 1 / math.sqrt(samples.shape[1])
        return _Measurement(float(contrast), error, (0.98, 1.02), n_frames + len(shown))

    return _timed("speckle_contrast", "standard deviation over mean of the speckle, noise removed", "1", measure)


def linearity(device: Device, *, noise_key: int = 0) -> CalibrationResult:
    """Measure how far the linear projection is from additive.

    For disjoint patterns `x1`, `x2` the outputs must satisfy `L(x1) + L(x2) = L(x1 + x2)`. The value is the rms of the
    difference over the rms of `L(x1 + x2)`. It is taken from the *product* of the differences in two halves of 64
    measurements, from which noise drops out and what saturation and non-linearity bend remains. The uncertainty is
    the noise of that product.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Returns
    -------
    CalibrationResult
        A fraction; passes up to 0.02.
    """

    def measure() -> _Measurement:
        n_repeats, n_pairs = 64, 4
        halves = _random_halves(n_pairs)
        first = halves & (np.arange(N_FEATURES) % 2 == 0)
        triples = np.stack([first, halves & ~first, halves])
        linear_map = fit_linear_map(device, N_FEATURES, N_OUTPUTS, noise_key=noise_key)
        shown = np.tile(triples.reshape(-1, N_FEATURES), (n_repeats, 1))
        with LinearProjector(device, linear_map) as projector:
            answer = projector.project(shown)
        outputs = answer.output.astype(np.float64).reshape(2, n_repeats // 2, 3, n_pairs, N_OUTPUTS).mean(axis=1)
        one, two, both = outputs[:, 0], outputs[:, 1], outputs[:, 2]
        products = (one + two - both).prod(axis=0)
        power = float(both.prod(axis=0).mean())
        error = math.sqrt(max(float(products.mean()), 0.0) / power)
        spread = float(products.std()) / math.sqrt(products.size) / power / (2 * max(error, 1e-3))
        return _Measurement(error, spread, (None, 0.02), linear_map.n_frames + len(answer.projection.frames))

    return _timed("linearity", "additivity error of the linear projection, noise removed", "1", measure)


def repeat_correlation(device: Device, *, noise_key: int = 0) -> CalibrationResult:
    """Measure how well a pattern's frame repeats: the Pearson correlation of two frames of it.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Returns
    -------
    CalibrationResult
        The mean over 16 patterns with half of the features on; passes from 0.99.
    """

    def measure() -> _Measurement:
        patterns = _random_halves(16)
        config = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, noise_key=noise_key)
        frames = _project(device, config, np.concatenate([patterns, patterns]))
        pairs = zip(frames[:16], frames[16:], strict=True)
        correlations = np.array([_pearson(one, two) for one, two in pairs])
        error = float(correlations.std(ddof=1)) / math.sqrt(len(correlations))
        return _Measurement(float(correlations.mean()), error, (0.99, None), len(frames))

    return _timed("repeat_correlation", "correlation of two frames of one pattern", "1", measure)


def _pearson(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    spread = one.std() * two.std()
    return float(((one - one.mean()) * (two - two.mean())).mean() / spread) if spread > 0 else math.nan


ROUTINES: dict[str, Callable[..., CalibrationResult]] = {
    routine.__name__: routine for routine in (dark_level, exposure, speckle_contrast, linearity, repeat_correlation)
}
"""The routines by name, in the order in which they run."""
