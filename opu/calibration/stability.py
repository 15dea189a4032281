r"""Whether the device stays what it is: the medium, the light, and a pattern's frame.

The field of the speckle at two times has the correlation `g1`, its intensity `g1^2`: *the intensity forgets twice as
fast as the field*. What is stated here is the field's, since it is the field that a transmission matrix describes::

    g1(t, t') = (1 - p) exp(-(w(t') - w(t))) + p,    w(t) = t / tau + n (1 - exp(-t / T))

with the correlation time `tau`, a plateau `p`, and a warm-up of `n` decays in all with the time constant `T`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.frames import take_dark
from opu.calibration.light import judge_light, probe_size, require_dark
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.speckle import (
    N_DARK,
    SIDE_PX,
    SPECKLE_FRACTION,
    central_region,
    disjoint_patterns,
    from_everywhere,
    without_light,
)
from opu.calibration.uncertainty import jackknife_error, quantity, standard_error, student_factor
from opu.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from opu.calibration.light import SeenLight
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, Projection, Session

__all__ = [
    "DriftEstimate",
    "Jump",
    "PowerEstimate",
    "correlations",
    "estimate_drift",
    "estimate_power",
    "find_jumps",
    "image_shift",
    "laser_power",
    "repeatability",
    "stability",
]

_PROBE_PATTERNS = 32
_PROBE_SIDE_PX = 32
_LONGEST_WAIT_US = 100_000.0
_SHORTEST_TIME_S = 150.0
_WARM_RATE_PER_S = 0.01 / 600
_LARGEST_SHIFT_PX = 0.5
_LARGEST_DRIFT = 0.05
# Vibration that moves a few hundred grains of speckle changes their sum by up to 0.003.
_LARGEST_RESIDUAL = 0.005
_LARGEST_NOISE = 0.01
_DIMMEST_DN = 1.0
_NO_VARIANCE_DN2 = 1e-3
_LONGEST_IN_RUNS = 1e4
_FORGOTTEN = 0.1


def correlations(once: NDArray[np.float64], again: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariances of speckles between all times, by pattern.

    The mean over the patterns is taken off each pixel at each time (light that no pattern changes says nothing about
    the medium), and the mean over the pixels off each frame. Two frames of a pattern at each time keep noise out of
    the diagonal.

    Parameters
    ----------
    once, again : ndarray, shape (n_times, n_patterns, n_pixels)
        Two frames of each pattern at each time.

    Returns
    -------
    ndarray of float64, shape (n_patterns, n_times, n_times)
        Divided by the square roots of their diagonals they are correlations.
    """
    deviations = []
    for frames in (once, again):
        deviation = frames - frames.mean(axis=1, keepdims=True)
        deviation -= deviation.mean(axis=2, keepdims=True)
        deviations.append(deviation.transpose(1, 0, 2))
    mean = (deviations[0] + deviations[1]) / 2
    covariance: NDArray[np.float64] = mean @ mean.transpose(0, 2, 1)
    diagonal = np.arange(covariance.shape[1])
    covariance[:, diagonal, diagonal] = np.einsum("ptx,ptx->pt", *deviations)
    covariance /= once.shape[2]
    return covariance


def _normalised(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return correlations, shape (..., n, n); 0 where there is nothing to correlate."""
    power = np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 1e-30)
    scale = np.sqrt(power[..., :, np.newaxis] * power[..., np.newaxis, :])
    found: NDArray[np.float64] = covariance / scale
    return found


@dataclass(frozen=True)
class Jump:
    """A sudden change of the medium.

    Parameters
    ----------
    last, first : int
        Numbers of the last probe before it and of the first probe after it: the next one, or the one after that if it
        happened during a probe.
    field_correlation : float
        Of the speckle before and after it.
    """

    last: int
    first: int
    field_correlation: float


def find_jumps(intensity: NDArray[np.float64], error: float = 0.0) -> list[Jump]:
    """Find sudden changes: neighbouring probes that are less alike than those before or after them suggest.

    What is expected of a pair follows from the line through the two pairs before it, or after it. A jump is known with
    the first probe after it.

    Parameters
    ----------
    intensity : ndarray, shape (n_times, n_times)
        Correlations of the intensity.
    error : float
        Standard error of those between neighbours. A jump is a lack of 0.1, or of twelve of them, about five times what
        a line through two pairs is off by chance.

    Examples
    --------
    >>> halves = np.arange(6) >= 3
    >>> find_jumps(np.where(halves[:, np.newaxis] == halves, 0.99, 0.0))
    [Jump(last=2, first=3, field_correlation=0.0)]
    """
    steps = np.diagonal(intensity, 1)
    if len(steps) < 3:
        return []
    from_before, from_after = _continued(steps), _continued(steps[::-1])[::-1]
    expected = np.fmax(from_before, from_after)
    lacking = expected - steps > max(0.1, 12 * error)
    jumps = []
    for start in np.flatnonzero(lacking & ~np.concatenate([[False], lacking[:-1]])):
        end = start
        while end < len(steps) and lacking[end]:
            end += 1
        without = float(expected[start:end].prod())
        across = max(float(intensity[start, end]), 0.0) / without
        jumps.append(Jump(int(start), int(end), math.sqrt(across)))
    return jumps


def _continued(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the two values before each suggest: the line through them, but no more than they were.

    NaN for the first two.
    """
    before, earlier = steps[1:-1], steps[:-2]
    line = np.minimum(2 * before - earlier, np.maximum(before, earlier))
    return np.concatenate([[math.nan, math.nan], line])


@dataclass(frozen=True, eq=False)
class DriftEstimate:
    """How a medium forgets.

    Parameters
    ----------
    time_s, time_error_s : float
        Correlation time `tau` of the field; where no decay was seen the shortest that cannot be excluded, with an error
        of NaN.
    is_bound : bool
        Whether that is all that can be said.
    plateau, plateau_error : float
        Share of the field that stays; NaN where the field was not followed to where it would show.
    warm_up_end_s, warm_up_end_error_s : float
        When the warm-up adds less than 1 % in ten minutes to the decay, from the first probe on; 0 where there is none.
    jumps : tuple of Jump
        Sudden changes; the rest is fitted between them.
    field : ndarray of float64, shape (n_times, n_times)
        Correlation of the field between all times.
    field_error : ndarray of float64, shape (n_times, n_times)
        Its standard error.
    model : ndarray of float64, shape (n_times, n_times)
        The fitted one, without jumps.
    """

    time_s: float
    time_error_s: float
    is_bound: bool
    plateau: float
    plateau_error: float
    warm_up_end_s: float
    warm_up_end_error_s: float
    jumps: tuple[Jump, ...]
    field: NDArray[np.float64]
    field_error: NDArray[np.float64]
    model: NDArray[np.float64]

    def time_to(self, correlation: float) -> float:
        """Return how long the field keeps a correlation after the warm-up, in seconds."""
        plateau = 0.0 if math.isnan(self.plateau) else self.plateau
        if plateau >= correlation:
            return math.inf
        return -self.time_s * math.log((correlation - plateau) / (1 - plateau))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of times without a jump between them, in units of the whole duration."""

    earlier: NDArray[np.float64]
    later: NDArray[np.float64]
    chosen: NDArray[np.bool_]

    def model(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the correlation of the *intensity* by rate, plateau, and size and log time constant of a warm-up."""
        rate, plateau, size, log_constant = parameters
        constant = math.exp(log_constant)
        warming = np.exp(-self.earlier / constant) - np.exp(-self.later / constant)
        decay = rate * (self.later - self.earlier) + size * warming
        square: NDArray[np.float64] = ((1 - plateau) * np.exp(-np.maximum(decay, -5.0)) + plateau) ** 2
        return square

    def slopes(self, parameters: NDArray[np.float64], free: list[int]) -> NDArray[np.float64]:
        """Return the derivatives by the free parameters, shape (n_pairs, n_free)."""
        steps = 1e-5 * np.eye(len(parameters))[free]
        return np.stack([(self.model(parameters + s) - self.model(parameters - s)) / 2e-5 for s in steps], axis=1)


def _fit(
    pairs: _Pairs, measured: NDArray[np.float64], parameters: NDArray[np.float64], free: list[int]
) -> tuple[NDArray[np.float64], float]:
    """Fit the free parameters by damped least squares (Levenberg and Marquardt), and return the sum of squares, too."""
    damping = 1e-3
    rest = measured - pairs.model(parameters)
    cost = float(rest @ rest)
    for _ in range(60):
        slopes = pairs.slopes(parameters, free)
        curvature = slopes.T @ slopes
        step = np.linalg.lstsq(curvature + damping * np.diag(np.diag(curvature) + 1e-12), slopes.T @ rest, rcond=None)[
            0
        ]
        tried = parameters.copy()
        tried[free] += step
        tried[1], tried[3] = np.clip(tried[1], -0.5, 0.95), np.clip(tried[3], -5.0, 2.0)
        tried_rest = measured - pairs.model(tried)
        tried_cost = float(tried_rest @ tried_rest)
        if tried_cost < cost:
            small = cost - tried_cost < 1e-10 * cost
            parameters, rest, cost, damping = tried, tried_rest, tried_cost, damping / 5
            if small:
                break
        else:
            damping *= 5
            if damping > 1e8:
                break
    return parameters, cost


_RATE, _PLATEAU, _SIZE, _CONSTANT = range(4)


def estimate_drift(covariance: NDArray[np.float64], times_s: NDArray[np.float64]) -> DriftEstimate:
    """Estimate how a medium forgets from the covariances of its speckles.

    Jumps are found first. Between them the law at the head of this module is fitted to the correlations of all pairs of
    times: the plateau where the field was followed below 0.6, the warm-up where the medium forgets more slowly at the
    end than at the beginning by four standard errors. Standard errors come from leaving out one pattern at a time;
    patterns that light other mirrors forget other things.

    Parameters
    ----------
    covariance : ndarray, shape (n_patterns, n_times, n_times)
        As `correlations` returns it.
    times_s : ndarray, shape (n_times,)
        Increasing.

    Returns
    -------
    DriftEstimate
        Of NaN where neighbouring times have nothing in common.
    """
    n = len(covariance)
    total = covariance.sum(axis=0)
    intensity, one_less = _normalised(total), _normalised(total - covariance)
    error = np.std(one_less, axis=0, ddof=1) * (n - 1) / math.sqrt(n) * student_factor(n)
    if np.median(np.diagonal(intensity, 1)) < _FORGOTTEN:
        return replace(_unknown_drift(len(times_s)), field=np.sqrt(np.maximum(intensity, 0.0)))
    # The usual error: during a jump, when some patterns are shown before it and some after, it is large.
    jumps = find_jumps(intensity, float(np.median(np.diagonal(error, 1))))
    duration_s = float(times_s[-1] - times_s[0])
    clock = (times_s - times_s[0]) / duration_s
    segment = np.searchsorted([jump.last + 0.5 for jump in jumps], np.arange(len(clock)))
    whole = np.array([not any(jump.last < i < jump.first for jump in jumps) for i in range(len(clock))])
    earlier, later = np.meshgrid(clock, clock, indexing="ij")
    chosen = (segment[:, np.newaxis] == segment) & (earlier < later) & whole & whole[:, np.newaxis]
    pairs = _Pairs(earlier[chosen], later[chosen], chosen)
    measured, left_out = intensity[chosen], one_less[:, chosen]
    free = [_RATE]
    lag = pairs.later - pairs.earlier
    longest = lag > 0.8 * lag.max()
    start = np.array([float(np.median(-np.log(np.clip(measured, 0.02, 1.0)) / (2 * lag))), 0.0, 0.0, 0.0])
    if measured[longest].mean() < 0.36:
        free.append(_PLATEAU)
    if _slows_down(pairs, measured, left_out):
        free += [_SIZE, _CONSTANT]
        starts = [start * 0.5 + [0, 0, 0.5, math.log(constant)] for constant in (0.05, 0.15, 0.4)]
    else:
        starts = [start]
    parameters = min((_fit(pairs, measured, one, free) for one in starts), key=lambda fit: fit[1])[0]
    one_less_each = np.stack([_fit(pairs, values, parameters, free)[0] for values in left_out])
    # Quenouille's correction: what leaving out one pattern changes on average is the bias of all but one.
    parameters = parameters - (n - 1) * (one_less_each.mean(axis=0) - parameters)
    # The mean over the patterns, taken off each, makes them a little alike: by the share 1 / n of all the others.
    changes = (one_less_each - one_less_each.mean(axis=0)) * (n - 1) / max(n - 2, 1)
    time_s, time_error_s = _correlation_time(parameters[_RATE], jackknife_error(changes[:, _RATE]), duration_s)
    end_s, end_error_s = _warm_up_end(parameters, changes, duration_s) if _SIZE in free else (0.0, math.nan)
    has_plateau = _PLATEAU in free
    between = _Pairs(np.minimum(earlier, later), np.maximum(earlier, later), chosen)
    field = np.sqrt(np.maximum(intensity, 0.0))
    return DriftEstimate(
        time_s=time_s,
        time_error_s=time_error_s,
        is_bound=math.isnan(time_error_s),
        plateau=float(parameters[_PLATEAU]) if has_plateau else math.nan,
        plateau_error=jackknife_error(changes[:, _PLATEAU]) if has_plateau else math.nan,
        warm_up_end_s=end_s,
        warm_up_end_error_s=end_error_s,
        jumps=tuple(jumps),
        field=field,
        field_error=error / (2 * np.maximum(field, 0.1)),
        model=np.sqrt(between.model(parameters)),
    )


def _correlation_time(rate: float, rate_error: float, duration_s: float) -> tuple[float, float]:
    """Return the correlation time and its error for a rate per duration; a lower bound and NaN if that may be 0."""
    if rate >= 3 * rate_error and rate * _LONGEST_IN_RUNS >= 1:
        return float(duration_s / rate), float(duration_s * rate_error / rate**2)
    fastest = max(rate, 0.0) + 1.96 * rate_error
    return float(duration_s / max(fastest, 1 / _LONGEST_IN_RUNS)), math.nan


def _warm_up_end(
    parameters: NDArray[np.float64], changes: NDArray[np.float64], duration_s: float
) -> tuple[float, float]:
    """Return when a warm-up adds no more than 1 % in ten minutes to the decay, and its error."""

    def end_s(size: float, log_constant: float) -> float:
        constant_s = duration_s * math.exp(log_constant)
        excess = size / constant_s / _WARM_RATE_PER_S
        return constant_s * math.log(excess) if excess > 1 else 0.0

    size, log_constant = parameters[_SIZE], parameters[_CONSTANT]
    ends_s = [end_s(size + change[_SIZE], log_constant + change[_CONSTANT]) for change in changes]
    return end_s(size, log_constant), jackknife_error(np.array(ends_s))


def _slows_down(pairs: _Pairs, measured: NDArray[np.float64], left_out: NDArray[np.float64]) -> bool:
    """Whether pairs of about the same lag are more alike at the end than at the beginning."""
    lag = pairs.later - pairs.earlier
    similar = np.abs(lag - 0.15) < 0.05
    early, late = similar & (pairs.later < 0.4), similar & (pairs.earlier > 0.6)
    if not early.any() or not late.any():
        return False
    gain = float(measured[late].mean() - measured[early].mean())
    gain_error = jackknife_error(left_out[:, late].mean(axis=1) - left_out[:, early].mean(axis=1))
    return gain > max(4 * gain_error, 0.01)


def image_shift(reference: NDArray[np.float64], frames: NDArray[np.float64]) -> tuple[float, float, float]:
    """Find by how much an image has moved: the peak of the correlation, by Fourier transforms.

    Parameters
    ----------
    reference, frames : ndarray, shape (n_patterns, height, width)
        Images of the same patterns; the correlations of the patterns are added.

    Returns
    -------
    tuple of (float, float, float)
        Rows and columns by which `frames` lie further on, to a fraction of a pixel by a parabola, up to a quarter of
        the image; and the correlation at the peak. NaN where nothing varies, or the image is less than 8 pixels high
        or wide.
    """
    height, width = reference.shape[1:]
    if min(height, width) < 8:
        return math.nan, math.nan, 0.0
    spectra, power = [], 1.0
    for images in (reference, frames):
        deviation = images - images.mean(axis=0)
        deviation = deviation - deviation.mean(axis=(1, 2), keepdims=True)
        power *= float((deviation**2).sum())
        spectra.append(np.fft.rfft2(deviation, (2 * height, 2 * width)))
    if power == 0:
        return math.nan, math.nan, 0.0
    surface = np.fft.irfft2((spectra[0].conj() * spectra[1]).sum(axis=0), (2 * height, 2 * width))
    row, column = np.arange(-(height // 4) - 1, height // 4 + 2), np.arange(-(width // 4) - 1, width // 4 + 2)
    pairs = np.multiply.outer(1 - np.abs(row) / height, 1 - np.abs(column) / width)
    surface = surface[row[:, np.newaxis], column] / pairs / math.sqrt(power)
    peak = np.unravel_index(surface[1:-1, 1:-1].argmax(), surface[1:-1, 1:-1].shape)
    i, j = int(peak[0]) + 1, int(peak[1]) + 1
    return (
        float(row[i]) + _vertex(surface[i - 1 : i + 2, j]),
        float(column[j]) + _vertex(surface[i, j - 1 : j + 2]),
        float(surface[i, j]),
    )


def _vertex(values: NDArray[np.float64]) -> float:
    """Return where the parabola through three values, the middle one the largest, has its top: from -0.5 to 0.5."""
    bend = 2 * values[1] - values[0] - values[2]
    return float((values[2] - values[0]) / (2 * bend)) if bend > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _Run:
    """The probes of a stability run: two frames of each pattern at each time, above the dark level.

    `seen` judges the brightest of them.
    """

    times_s: NDArray[np.float64]
    once: NDArray[np.float64]
    again: NDArray[np.float64]
    seen: SeenLight


def _probe(
    recorder: Recorder, *, duration_s: float, n_probes: int, n_patterns: int, side_px: int
) -> tuple[_Run, NDArray[np.float64]]:
    """Take probes over a time, and return them with the shape of an image."""
    if n_probes < 8 or not 0 < duration_s < math.inf:
        raise ConfigError(
            f"{n_probes} probes over {duration_s} s are asked for.", "Use at least 8, and a positive time."
        )
    require_dark(recorder.description)
    region = central_region(recorder.description, side_px)
    n_features, n_patterns = probe_size(recorder.description, n_patterns)
    patterns = disjoint_patterns(n_patterns, n_features)
    config = recorder.config(n_features, region.height * region.width, region=region)
    config = recorder.expose(config, from_everywhere(patterns), target_fraction=SPECKLE_FRACTION)
    dark = recorder.take(without_light(config), np.zeros((N_DARK, n_features), np.bool_)).frames
    exposure = recorder.description.exposure_us
    wait_us = max(min(_LONGEST_WAIT_US, exposure.maximum), exposure.minimum)
    # One output is the cheapest frame there is. It shows both halves in turn, so that mirrors land evenly.
    waiting = recorder.config(2, 1, exposure_us=wait_us)
    shown = patterns.repeat(2, axis=0)  # the two frames of a pattern follow each other: no drift between them
    frames: list[NDArray[np.float64]] = []
    times_s: list[float] = []
    now_s = 0.0
    with recorder.device.open_session(config) as session, recorder.device.open_session(waiting) as pause:
        for i in range(n_probes):
            if i:
                _wait_until(recorder, pause, now_s, times_s[0] + i * duration_s / (n_probes - 1))
            taken = recorder.take_from(session, shown)
            frames.append(taken.frames)
            now_s = _end_s(taken)
            times_s.append(now_s - len(shown) * taken.provenance.frame_us * 0.5e-6)
    brightest = max(frames, key=lambda probe: float(probe.mean())).astype(np.float64)
    seen = judge_light((brightest[::2] + brightest[1::2]) / 2, dark, recorder.description)
    above = np.stack(frames) - dark.mean(axis=0, dtype=np.float64)
    run = _Run(np.array(times_s), above[:, ::2], above[:, 1::2], seen)
    return run, np.array([region.height, region.width])


def _end_s(projection: Projection) -> float:
    """Return when the device was done with a batch, on its own clock."""
    provenance = projection.provenance
    return (provenance.device_start_us + provenance.device_us) * 1e-6


def _wait_until(recorder: Recorder, pause: Session, now_s: float, until_s: float) -> None:
    """Let device time pass, by frames: they take their time on a real device, and none but the booked on others."""
    n_frames = round((until_s - now_s) * 1e6 / pause.describe().frame_us)
    if n_frames > 0:
        recorder.take_from(pause, np.resize(np.eye(2, dtype=np.bool_), (n_frames, 2)))


def stability(
    device: Device,
    *,
    noise_key: int = 0,
    duration_s: float = 60.0,
    n_probes: int = 30,
    n_patterns: int = _PROBE_PATTERNS,
    side_px: int = _PROBE_SIDE_PX,
) -> CalibrationResult:
    """Measure how the medium forgets, whether it jumps, whether the image moves, and how the power drifts.

    The same patterns are shown at times spread evenly over a duration of *device time*, which passes by frames alone:
    between the probes the camera takes long exposures of a single pixel, as many as the time needs. A real device takes
    that long; one whose time is only booked does not.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    duration_s : float
        Device time from the first probe to the last.
    n_probes : int
        At least 8.
    n_patterns, side_px : int
        Patterns of a probe, each shown twice, and the side of the region in the middle of the camera.

    Returns
    -------
    CalibrationResult
        The correlation time of the *field* in seconds, that of the intensity being half of it; passes from 150 s on
        (two hundredths of it are what a matrix of a thousand features takes at 2 kHz). A lower bound, with an
        uncertainty of NaN, where no decay was seen. `quantities`: `intensity_time`, `plateau`, `time_to_99` and
        `time_to_95` (how long the field keeps these correlations; infinite above the plateau), `warm_up_end`,
        `jumps`, `image_shift`, `power_drift` (peak to peak), `end_correlation` (of the field, first and last probe).
        `data`: `time_s` from the first probe on, `device_time_s`, `field_correlation` between all probes with its
        `field_correlation_error` and its `model`, shape (n_probes, n_probes), `power` relative to its mean, and
        `shift_px`, shape (n_probes, 2). `frames` counts those of waiting, too.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.stability import stability
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = stability(device, duration_s=10.0, n_probes=8)
    >>> result.passed, result.quantities["jumps"].value
    (True, 0.0)
    """
    recorder = Recorder(device, noise_key=noise_key)
    run, shape = _probe(recorder, duration_s=duration_s, n_probes=n_probes, n_patterns=n_patterns, side_px=side_px)
    power, power_error = _power_of_probes(run)
    findings = list(run.seen.findings)
    if not run.seen.is_measurable:
        found, power, power_error = _unknown_drift(n_probes), np.full(n_probes, math.nan), math.nan
    elif math.isnan(power[0]):
        findings.append("The camera sees no light, so nothing can be said of the medium. Check laser and shutter.")
        found = _unknown_drift(n_probes)
    else:
        found = estimate_drift(correlations(run.once, run.again), run.times_s)
        findings += _drift_findings(found, run.times_s)
    images = run.once + run.again
    images = images.reshape(*images.shape[:2], *shape)
    shifts = np.array([image_shift(images[0], image) for image in images])
    shifts[shifts[:, 2] < 0.3] = math.nan
    distance = np.hypot(shifts[:, 0], shifts[:, 1])
    moved = float(np.nanmax(distance)) if np.isfinite(distance[1:]).any() else math.nan
    if moved > _LARGEST_SHIFT_PX:
        where = int(np.nanargmax(distance))
        findings.append(
            f"The image has moved on the camera by {shifts[where, 0]:.1f} rows and {shifts[where, 1]:.1f} columns "
            f"within {run.times_s[where] - run.times_s[0]:.3g} s: something in the beam tilts."
        )
    drift = float(np.ptp(power))
    drift_error = math.sqrt(2) * power_error
    drift_limit = _LARGEST_DRIFT + 4 * (0.0 if math.isnan(drift_error) else drift_error)
    if drift > drift_limit:
        findings.append(_power_finding(drift, float(np.ptp(run.times_s))))
    bound = ": at least this" if found.is_bound else ""
    relative = found.time_error_s / found.time_s
    quantities = {
        "intensity_time": quantity(
            found.time_s / 2, found.time_error_s / 2, "s", f"correlation time of the intensity{bound}"
        ),
        "plateau": quantity(found.plateau, found.plateau_error, "1", "share of the field that stays"),
        **{
            f"time_to_{round(100 * level)}": quantity(
                found.time_to(level),
                found.time_to(level) * relative if math.isfinite(found.time_to(level)) else math.nan,
                "s",
                f"how long the field keeps a correlation of {level}{bound}",
            )
            for level in (0.99, 0.95)
        },
        "warm_up_end": quantity(
            found.warm_up_end_s, found.warm_up_end_error_s, "s", "when the warm-up is over, from the first probe on"
        ),
        "jumps": quantity(len(found.jumps), math.nan, "1", "sudden changes of the medium", (None, 0.0)),
        "image_shift": quantity(moved, math.nan, "px", "largest shift of the image"),
        "power_drift": quantity(drift, drift_error, "1", "drift of the power, peak to peak", (None, drift_limit)),
        "end_correlation": quantity(
            found.field[0, -1], found.field_error[0, -1], "1", "correlation of the field, first and last probe"
        ),
    }
    return recorder.result(
        "stability",
        f"correlation time of the field{bound}",
        found.time_s,
        "s",
        found.time_error_s,
        limit=(_SHORTEST_TIME_S, None),
        quantities=quantities,
        findings=findings,
        data={
            "time_s": run.times_s - run.times_s[0],
            "device_time_s": run.times_s,
            "field_correlation": found.field,
            "field_correlation_error": found.field_error,
            "model": found.model,
            "power": power,
            "shift_px": shifts[:, :2],
        },
    )


def _power_of_probes(run: _Run) -> tuple[NDArray[np.float64], float]:
    """Return the power at each probe relative to its mean, and its error: of noise, and of speckle that changes.

    Each pattern has its own brightness, whose changes are its own as far as the medium changes.
    """
    light = (run.once + run.again).mean(axis=2) / 2
    if light.mean() < _DIMMEST_DN or not (light.mean(axis=0) > 0).all():
        return np.full(len(light), math.nan), math.nan
    relative = light / light.mean(axis=0)
    errors = [standard_error(probe) for probe in relative]
    return relative.mean(axis=1), float(np.mean(errors))


def _unknown_drift(n_probes: int) -> DriftEstimate:
    empty = np.full((n_probes, n_probes), math.nan)
    nan = math.nan
    return DriftEstimate(nan, nan, False, nan, nan, nan, nan, (), empty, empty, empty)


def _drift_findings(found: DriftEstimate, times_s: NDArray[np.float64]) -> Iterator[str]:
    since_s = times_s - times_s[0]
    for jump in found.jumps:
        yield (
            f"The medium jumped between {since_s[jump.last]:.4g} and {since_s[jump.first]:.4g} s after the first "
            f"probe: the field has a correlation of {jump.field_correlation:.2f} across it. Something moved, or the "
            "laser changed its mode; what was calibrated before no longer holds."
        )
    neighbours = float(np.median(np.diagonal(found.field, 1)))
    if math.isnan(found.time_s):
        yield (
            f"The speckle forgets itself from one probe to the next, {since_s[1]:.3g} s later (median correlation "
            f"{neighbours:.2f}): the medium moves, or the light is not coherent. Probe over a shorter duration."
        )
    elif not found.is_bound and found.time_s < _SHORTEST_TIME_S:
        yield (
            f"The field of the speckle forgets itself in {found.time_s:.3g} s, and the intensity in "
            f"{found.time_s / 2:.3g} s: a calibration of more than {0.02 * found.time_s:.2g} s is out of date when it "
            "is done."
        )
    elif found.time_s < _SHORTEST_TIME_S:
        yield (
            f"No decay was seen, but a correlation time of {found.time_s:.3g} s cannot be excluded: the noise is too "
            "large, or the time too short. Use more light, or probe over a longer duration."
        )


def _power_finding(drift: float, duration_s: float) -> str:
    return (
        f"The power drifted by {drift:.1%} within {duration_s:.3g} s: the laser is warming up or unstable. Let it warm "
        "up, and normalise frames by reference frames."
    )


@dataclass(frozen=True, eq=False)
class PowerEstimate:
    """What reference frames make of a drifting power.

    Parameters
    ----------
    residual, residual_error : float
        Root mean square of what is left of the changes after the correction, relative, without the noise from frame to
        frame: that of the frame that is corrected, and that of the references. And its standard error, by the spread
        between the intervals.
    drift, drift_error : float
        Peak to peak of the means over the intervals between references.
    noise, noise_error : float
        Root mean square from frame to frame: of the laser, and of this measurement of it.
    corrected : ndarray of float64, shape (n_frames,)
        The power after the correction, 1 on average; that of the references is 1.
    """

    residual: float
    residual_error: float
    drift: float
    drift_error: float
    noise: float
    noise_error: float
    corrected: NDArray[np.float64]


def estimate_power(powers: NDArray[np.float64], interval: int) -> PowerEstimate:
    """Correct powers by those of every so many frames, and say what is left.

    Between two reference frames the power is taken to be on a straight line.

    Parameters
    ----------
    powers : ndarray, shape (n_intervals * interval + 1,)
        Power of each frame, in any unit; numbers 0, `interval`, ... are the references.
    interval : int
        At least 2.

    Examples
    --------
    >>> drifting = 1 + 0.02 * np.linspace(0, 1, 501)
    >>> found = estimate_power(drifting, 50)
    >>> round(found.drift, 3), round(found.residual, 6)
    (0.018, 0.0)
    """
    number = np.arange(len(powers))
    references = number[::interval]
    corrected = powers / np.interp(number, references, powers[references])
    blocks = powers[:-1].reshape(-1, interval)
    mean = float(powers.mean())
    # Neighbours differ by noise alone; the frame after a reference is left out with it.
    steps = np.diff(blocks[:, 1:], axis=1) / mean
    noise_squares = (steps**2).mean(axis=1) / 2
    left = (corrected[:-1].reshape(-1, interval)[:, 1:] - 1) ** 2
    share = np.arange(1, interval) / interval
    of_references = float(((1 - share) ** 2 + share**2).mean())
    squares = left.mean(axis=1) - noise_squares * (1 + of_references)
    noise, residual = math.sqrt(float(noise_squares.mean())), math.sqrt(max(float(squares.mean()), 0.0))
    means = blocks.mean(axis=1) / mean
    return PowerEstimate(
        residual=residual,
        residual_error=_error_of_root(residual, _error_of_mean(squares)),
        drift=float(np.ptp(means)),
        drift_error=math.sqrt(2 / interval) * noise,
        noise=noise,
        noise_error=standard_error(noise_squares) / (2 * max(noise, 1e-12)),
        corrected=corrected,
    )


def _error_of_root(root: float, square_error: float) -> float:
    """Return the standard error of a root whose square has one, by the farther end of the 95 % interval."""
    reach = 1.96 * square_error
    return max(math.sqrt(root**2 + reach) - root, root - math.sqrt(max(root**2 - reach, 0.0))) / 1.96


def _error_of_mean(squares: NDArray[np.float64]) -> float:
    """Return the standard error of a mean over intervals, of which neighbours share a reference."""
    deviation = squares - squares.mean()
    alone = float((deviation**2).mean())
    shared = float((deviation[1:] * deviation[:-1]).mean())
    return standard_error(squares) * math.sqrt(1 + 2 * max(shared / alone, 0.0) if alone > 0 else 1.0)


def laser_power(
    device: Device, *, noise_key: int = 0, n_references: int = 40, interval: int = 50, side_px: int = SIDE_PX
) -> CalibrationResult:
    """Measure noise and drift of the power, and what is left after a correction by reference frames.

    One pattern is shown all the time, so that every frame measures the power; every fiftieth is used as the reference
    that a user would put there, and the others tell how well it serves.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    n_references : int
        Intervals between reference frames, at least 4.
    interval : int
        A reference frame comes every so many frames, at least 4.
    side_px : int
        Side of the region in the middle of the camera: its pixels together measure the power.

    Returns
    -------
    CalibrationResult
        The rest after the correction, relative root mean square without the noise from frame to frame; passes up to
        0.005. `quantities`: `power_drift` (peak to peak of means over 50 frames),
        `power_noise` (root mean square from frame to frame, camera included). `data`: `time_s`, `power` relative to its
        mean, and `corrected`.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.stability import laser_power
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = laser_power(device, n_references=10)
    >>> result.value < 0.002, result.passed
    (True, True)
    """
    if n_references < 4 or interval < 4:
        raise ConfigError(
            f"{n_references} references every {interval} frames are asked for.", "Use at least 4 of each."
        )
    recorder = Recorder(device, noise_key=noise_key)
    require_dark(recorder.description)
    region = central_region(recorder.description, side_px)
    n_features, _ = probe_size(recorder.description)
    pattern = random_halves(1, n_features)
    config = recorder.config(n_features, region.height * region.width, region=region)
    # Saturated pixels do not follow the power: at a ninth of full scale they would take 0.1 % off each change of it.
    config = recorder.expose(config, pattern.repeat(4, axis=0), target_fraction=SPECKLE_FRACTION)
    dark = recorder.take(without_light(config), np.zeros((N_DARK, n_features), np.bool_)).frames
    lit = recorder.take(config, pattern.repeat(n_references * interval + 1, axis=0))
    seen = judge_light(lit.frames.mean(axis=0, dtype=np.float64, keepdims=True), dark, recorder.description)
    powers = _mean_light(lit.frames, dark, seen.working)
    times_s = np.arange(len(powers)) * lit.provenance.frame_us * 1e-6
    findings = list(seen.findings)
    if not seen.is_measurable:
        found = _unknown_power(len(powers))
    elif powers.mean() < _DIMMEST_DN or not (powers > 0).all():
        findings.append("The camera sees no light, or not in every frame. Check laser and shutter.")
        found = _unknown_power(len(powers))
    else:
        found = estimate_power(powers, interval)
        findings += _laser_findings(found, float(times_s[-1]), interval)
    return recorder.result(
        "laser_power",
        f"what a correction by every {interval}th frame leaves of changes of the power",
        found.residual,
        "1",
        found.residual_error,
        limit=(None, _LARGEST_RESIDUAL),
        quantities={
            "power_drift": quantity(
                found.drift, found.drift_error, "1", "drift of the power, peak to peak", (None, _LARGEST_DRIFT)
            ),
            "power_noise": quantity(
                found.noise, found.noise_error, "1", "noise of the power from frame to frame", (None, _LARGEST_NOISE)
            ),
        },
        findings=findings,
        data={"time_s": times_s, "power": powers / max(powers.mean(), 1e-9), "corrected": found.corrected},
    )


def _mean_light(lit: NDArray[Any], dark: NDArray[Any], working: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the light of each frame, a mean over the pixels that work; 0 without any."""
    weights = working / max(int(working.sum()), 1)
    light: NDArray[np.float64] = lit @ weights - float(dark.mean(axis=0, dtype=np.float64) @ weights)
    return light


def _unknown_power(n_frames: int) -> PowerEstimate:
    nan = math.nan
    return PowerEstimate(nan, nan, nan, nan, nan, nan, np.full(n_frames, nan))


def _laser_findings(found: PowerEstimate, duration_s: float, interval: int) -> Iterator[str]:
    if found.drift > _LARGEST_DRIFT:
        yield _power_finding(found.drift, duration_s)
    if found.residual > _LARGEST_RESIDUAL:
        yield (
            f"The power changes faster than reference frames can follow: {found.residual:.2%} (give or take "
            f"{1.96 * found.residual_error:.2%}) remain after a correction by one in {interval}, or a frame was not "
            "like the others."
        )
    if found.noise > _LARGEST_NOISE:
        yield f"The power differs by {found.noise:.1%} from frame to frame: the laser is noisy, or light is missing."


def repeatability(
    device: Device, *, noise_key: int = 0, n_patterns: int = 16, side_px: int = SIDE_PX
) -> CalibrationResult:
    """Measure how well a frame repeats: the Pearson correlation of two frames of one pattern.

    The mean over the patterns is taken off each pixel, and stuck pixels are left out: what a camera shows of itself
    repeats, too, and is no signal.

    Everything that a device is asked to predict is limited by it.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_patterns : int
        Patterns without a common mirror, 2 to 64: independent speckles.
    side_px : int
        Side of the region in the middle of the camera.

    Returns
    -------
    CalibrationResult
        The mean over the patterns; passes from 0.99 on. `quantities`: `noise_to_signal`, the variance of the noise over
        that of the speckle, `1 / correlation - 1`. `data`: `correlation` by pattern.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.stability import repeatability
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = repeatability(device)
    >>> result.value > 0.99, result.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    region = central_region(recorder.description, side_px)
    n_features, n_patterns = probe_size(recorder.description, n_patterns)
    patterns = disjoint_patterns(n_patterns, n_features)
    config = recorder.config(n_features, region.height * region.width, region=region)
    config = recorder.expose(config, from_everywhere(patterns))
    dark = take_dark(recorder, config, N_DARK)
    frames = recorder.take(config, np.concatenate([patterns, patterns])).frames.astype(np.float64)
    once, again = np.split(frames, 2)
    seen = judge_light((once + again) / 2, dark, recorder.description)
    found = np.full(n_patterns, math.nan)
    if seen.is_measurable:
        found = _pearson(*(part[:, seen.working] - part[:, seen.working].mean(axis=0) for part in (once, again)))
    value, error = float(found.mean()), standard_error(found)
    findings = list(seen.findings)
    if not seen.is_measurable:
        pass
    elif math.isnan(value):
        findings.append("The frames are the same all over: the camera sees no light, or is saturated everywhere.")
    elif value < 0.5:
        findings.append(
            f"Two frames of one pattern have little in common (correlation {value:.2f}): the camera sees no light, or "
            "frames of other patterns."
        )
    elif value < 0.99:
        findings.append(
            f"Two frames of one pattern have a correlation of {value:.3f}: the noise is {1 / value - 1:.1%} of the "
            "signal. More light, less read noise, or a medium that keeps still are needed."
        )
    ratio = 1 / value - 1 if value > 0 else math.nan
    return recorder.result(
        "repeatability",
        "correlation of two frames of one pattern",
        value,
        "1",
        error,
        limit=(0.99, None),
        quantities={
            "noise_to_signal": quantity(
                ratio,
                error / value**2 if value > 0 else math.nan,
                "1",
                "variance of the noise over that of the speckle",
            )
        },
        findings=findings,
        data={"correlation": found},
    )


def _pearson(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of each row of one with that of the other, NaN where a row is constant."""
    one, two = (part - part.mean(axis=1, keepdims=True) for part in (one, two))
    power = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    varies = power > _NO_VARIANCE_DN2 * one.shape[1]
    found: NDArray[np.float64] = np.where(varies, (one * two).sum(axis=1) / np.where(varies, power, 1), math.nan)
    return found
