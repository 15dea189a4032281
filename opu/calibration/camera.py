"""The camera: what it counts without light, its gain and noise, and how straight it counts.

Each routine takes frames and hands them to an estimator, which knows arrays alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.faults import STUCK_SHARE, full_well_finding, light_faults, stuck_finding, stuck_pixels
from opu.calibration.frames import available_size, take_dark
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.result import CalibrationResult, Quantity
from opu.errors import UnsupportedError
from opu.exposure import TARGET_FRACTION, Saturation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from opu.device import Device, DeviceDescription, Region, SessionConfig

__all__ = [
    "DarkFrames",
    "DarkPixels",
    "Linearity",
    "PhotonTransfer",
    "dark_frames",
    "estimate_dark_pixels",
    "estimate_linearity",
    "estimate_photon_transfer",
    "linearity",
    "photon_transfer",
]

QUANTISATION_VARIANCE = 1 / 12
"""Variance of rounding to whole counts, in DN^2."""

# From this noise on, in DN before rounding, counts of many different means have on average the variance of the noise
# and 1/12 more, to 0.1 %.
_SMOOTH_NOISE_DN = 0.4
# Counts of one and the same mean, as without light, need more: rounding biases this mean by 0.001 DN, and the variance
# by 1 %, at most.
_SMOOTH_DARK_NOISE_DN = 0.55
_IDENTIFIABLE_NOISE_DN = 0.3
_LARGEST_GAIN_ERROR = 0.05


@dataclass(frozen=True, eq=False)
class DarkFrames:
    """Frames without light at one exposure, summed up.

    Parameters
    ----------
    exposure_us : float
        The exposure.
    mean, variance : ndarray of float64, shape (n_outputs,)
        Of each pixel over the frames, in DN and DN^2.
    frame_means : ndarray of float64, shape (n_frames,)
        Of each frame over the pixels.
    """

    exposure_us: float
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    frame_means: NDArray[np.float64]

    @classmethod
    def of(cls, exposure_us: float, frames: NDArray[Any]) -> DarkFrames:
        """Sum up frames of shape (n_frames, n_outputs), at least two.

        Examples
        --------
        >>> dark = DarkFrames.of(400.0, np.array([[1, 2], [3, 2]], np.uint8))
        >>> dark.mean, dark.variance
        (array([2., 2.]), array([2., 0.]))
        """
        n = len(frames)
        mean = frames.mean(axis=0, dtype=np.float64)
        squares = np.zeros(frames.shape[1])
        for frame in frames:  # one at a time: a full sensor has millions of pixels
            squares += np.square(frame - mean)
        return cls(exposure_us, mean, squares / (n - 1), frames.mean(axis=1, dtype=np.float64))

    @property
    def n_frames(self) -> int:
        """How many frames there were."""
        return len(self.frame_means)

    @property
    def mean_error(self) -> float:
        """Standard error of the mean over pixels and frames, in DN."""
        return float(self.frame_means.std(ddof=1)) / math.sqrt(self.n_frames)


@dataclass(frozen=True, eq=False)
class DarkPixels:
    """What the pixels count without light.

    Parameters
    ----------
    offset_dn, offset_error_dn : float
        Mean over the pixels that are neither stuck nor hot, at the middle exposure, and its standard error.
    current_dn_per_s, current_error_dn_per_s : float
        How the mean grows with the exposure.
    noise_dn, noise_error_dn : float
        Temporal noise: root mean square over these pixels of their standard deviation over the frames.
    stuck, hot : ndarray of bool, shape (n_outputs,)
        Pixels at full scale, and others with a dark current or an offset far from all others.
    """

    offset_dn: float
    offset_error_dn: float
    current_dn_per_s: float
    current_error_dn_per_s: float
    noise_dn: float
    noise_error_dn: float
    stuck: NDArray[np.bool_]
    hot: NDArray[np.bool_]


def estimate_dark_pixels(dark: Sequence[DarkFrames], full_scale_dn: float) -> DarkPixels:
    """Estimate offset, dark current and noise, and find hot pixels.

    A pixel is hot if its mean rises, from the shorter exposures to the longest, by 6 standard deviations more than the
    median pixel's. The standard deviation is that of its temporal noise, or the robust one of all pixels if that is
    more; and three sixteenths of a count at least, as the noise of an 8-bit camera can be below what its counts
    resolve. Differences between the constant offsets of the pixels play no part. An offset that is 8 robust standard
    deviations and a count off is a defect, too.

    Parameters
    ----------
    dark : sequence of DarkFrames
        At two or three exposures that increase, at most the last of them long.
    full_scale_dn : float
        The largest count.

    Returns
    -------
    DarkPixels
        NaN where no pixel is left. Where the noise is too small for the mean count to follow the mean, all errors hold
        one of rounding, of the variance 1/12, at each exposure; and the noise itself where it is cut off at 0.
    """
    stuck = np.asarray(dark[0].mean >= full_scale_dn - 0.5)
    hot = _hot_pixels(dark) & ~stuck
    good = ~stuck & ~hot
    middle = dark[len(dark) // 2]
    if not good.any():
        return DarkPixels(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, stuck, hot)
    means = np.array([each.mean[good].mean() for each in dark])
    errors = np.array([each.mean_error for each in dark])
    times_s = np.array([each.exposure_us * 1e-6 for each in dark])
    lever = times_s - times_s.mean()
    varies = times_s[-1] > times_s[0]
    weights = lever / np.square(lever).sum() if varies else np.full(len(dark), math.nan)
    variance = float(middle.variance[good].mean())
    hidden_dn = _hidden_dn(variance, float(middle.mean[good].mean()))
    hidden_current = math.sqrt(2) * hidden_dn / float(times_s[-1] - times_s[0]) if varies else math.nan
    noise_dn = math.sqrt(variance)
    variance_error = float(middle.variance[good].std()) / math.sqrt(good.sum())
    noise_error_dn = variance_error / (2 * noise_dn) if noise_dn > 0 else 0.0
    return DarkPixels(
        offset_dn=float(means[len(dark) // 2]),
        offset_error_dn=math.hypot(middle.mean_error, hidden_dn),
        current_dn_per_s=float(weights @ means),
        current_error_dn_per_s=math.hypot(float(np.linalg.norm(weights * errors)), hidden_current),
        noise_dn=noise_dn,
        noise_error_dn=math.hypot(noise_error_dn, hidden_dn),
        stuck=stuck,
        hot=hot,
    )


def _noise_resolves(variance: float, level_dn: float, smooth_noise_dn: float) -> bool:
    """Whether the noise of counts is wide enough to be measured through rounding, and not cut off at 0."""
    return variance - QUANTISATION_VARIANCE >= smooth_noise_dn**2 and not _is_cut_off(variance, level_dn)


def _is_cut_off(variance: float, level_dn: float) -> bool:
    return level_dn < 4 * math.sqrt(variance)


def _hidden_dn(variance: float, level_dn: float) -> float:
    """Return the standard error of the mean and of the noise of dark counts by what no number of frames shows."""
    if _noise_resolves(variance, level_dn, _SMOOTH_DARK_NOISE_DN):
        return 0.0
    cut_off = variance if _is_cut_off(variance, level_dn) else 0.0
    return math.sqrt(QUANTISATION_VARIANCE + cut_off)


def _hot_pixels(dark: Sequence[DarkFrames]) -> NDArray[np.bool_]:
    short = np.mean([each.mean for each in dark[:-1]], axis=0)
    pooled = np.mean([each.variance.mean() for each in dark[:-1]])
    noise = (
        np.maximum(np.mean([each.variance for each in dark], axis=0), pooled)
        * (1 + 1 / len(dark[:-1]))
        / dark[0].n_frames
    )
    rise = dark[-1].mean - short
    rise -= np.median(rise)
    offset = np.abs(short - np.median(short))
    spread = np.sqrt(np.maximum(noise, _robust_deviation(rise) ** 2))
    hot: NDArray[np.bool_] = (rise > np.maximum(6 * spread, 3 / 16)) | (
        offset > max(8 * _robust_deviation(offset), 1.0)
    )
    return hot


def _robust_deviation(centred: NDArray[np.float64]) -> float:
    """Return the standard deviation of normal numbers around 0, from the median of their moduli."""
    return float(np.median(np.abs(centred))) / NormalDist().inv_cdf(0.75)


def dark_frames(
    device: Device,
    *,
    noise_key: int = 0,
    n_outputs: int = 16384,
    n_frames: int = 64,
    region: Region | None = None,
) -> CalibrationResult:
    """Measure what the camera counts without light: offset, dark current, temporal noise, hot pixels.

    Frames with the light off are taken at the shortest, the default and a long exposure (250 times the default, or the
    longest there is). See `estimate_dark_pixels`.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    n_outputs : int
        Pixels, at most those of the camera: in whole rows in the middle of the sensor.
    n_frames : int
        Frames at each exposure, at least 2.
    region : Region, optional
        Look at all pixels of this region instead.

    Returns
    -------
    CalibrationResult
        The mean count at the default exposure, in DN, which passes within half a count of the black level that the
        device states. Its error is about 0.3 DN where the noise is below 0.55 DN, as rounding hides the rest (see
        `estimate_dark_pixels`). Quantities: `dark_current` (DN/s), `temporal_noise` (DN), `hot_fraction` (passes up to
        0.001). Data, by pixel: `offset_map` (DN, at the default exposure), `noise_map` (DN), `current_map` (DN/s),
        float32, shape (n_outputs,); `hot_pixels` and `stuck_pixels`, numbers of outputs, int64; and `exposures_us` and
        `mean_dn`, a number for each exposure.

    Raises
    ------
    UnsupportedError
        The device cannot switch its light off.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=ideal&seed=7") as device:
    ...     dark = dark_frames(device, n_outputs=500, n_frames=8)
    >>> dark.value, dark.passed, dark.data["hot_pixels"].size
    (0.0, True, 0)
    """
    recorder = Recorder(device, noise_key=noise_key)
    description = recorder.description
    if "off" not in description.light:
        raise UnsupportedError(
            f"The device {description.device_id} cannot switch its light off.", "Cover the camera, and measure by hand."
        )
    wanted = n_outputs if region is None else region.height * region.width
    n_features, n_outputs = available_size(description, 64, wanted)
    shown = np.zeros((n_frames, n_features), np.bool_)
    dark = []
    for exposure_us in _dark_exposures_us(description):
        config = recorder.config(n_features, n_outputs, light="off", exposure_us=exposure_us, region=region)
        dark.append(DarkFrames.of(exposure_us, recorder.take(config, shown).frames))
    found = estimate_dark_pixels(dark, description.full_scale_dn)
    middle = dark[len(dark) // 2]
    black_dn = description.black_level_dn
    hot_fraction = float(found.hot.mean())
    longer_s = (dark[-1].exposure_us - dark[0].exposure_us) * 1e-6
    current_map = (dark[-1].mean - dark[0].mean) / (longer_s or math.nan)
    return recorder.result(
        "dark_frames",
        "mean count without light at the default exposure",
        found.offset_dn,
        "DN",
        found.offset_error_dn,
        limit=(black_dn - 0.5, black_dn + 0.5),
        quantities={
            "dark_current": Quantity(
                value=found.current_dn_per_s,
                unit="DN/s",
                uncertainty=found.current_error_dn_per_s,
                summary="growth of the mean count with the exposure, without light",
            ),
            "temporal_noise": Quantity(
                value=found.noise_dn,
                unit="DN",
                uncertainty=found.noise_error_dn,
                summary="noise of the counts from frame to frame, without light",
            ),
            "hot_fraction": Quantity(
                value=hot_fraction,
                unit="1",
                uncertainty=math.sqrt(hot_fraction * (1 - hot_fraction) / n_outputs),
                limit=(None, 1e-3),
                summary="share of the pixels with a dark current or an offset far from all others",
            ),
        },
        findings=_dark_findings(found, description, middle.exposure_us),
        data={
            "offset_map": middle.mean.astype(np.float32),
            "noise_map": np.sqrt(middle.variance).astype(np.float32),
            "current_map": current_map.astype(np.float32),
            "hot_pixels": np.flatnonzero(found.hot),
            "stuck_pixels": np.flatnonzero(found.stuck),
            "exposures_us": np.array([each.exposure_us for each in dark]),
            "mean_dn": np.array([each.mean.mean() for each in dark]),
        },
    )


def _dark_exposures_us(description: DeviceDescription) -> list[float]:
    limits = description.exposure_us
    longest_us = min(limits.maximum, 250 * limits.default)
    return [limits.minimum, limits.default, longest_us]


def _dark_findings(found: DarkPixels, description: DeviceDescription, exposure_us: float) -> list[str]:
    findings = stuck_finding(float(found.stuck.mean()))
    hot_fraction = float(found.hot.mean())
    if hot_fraction > STUCK_SHARE:
        findings.append(
            f"{100 * hot_fraction:.2g} % of the pixels have a dark current or an offset far from all others: too many "
            "hot pixels. The sensor is too warm, worn or damaged; leave these pixels out."
        )
    black_dn = description.black_level_dn
    if abs(found.offset_dn - black_dn) > 0.5:
        current_dn = found.current_dn_per_s * exposure_us * 1e-6
        cause = (
            "dark current or stray light adds to it"
            if current_dn > 0.5
            else "the black level is not the one stated, or is so low that noise is cut off at 0"
        )
        findings.append(
            f"Without light the mean is {found.offset_dn:.3g} DN, and the device states a black level of {black_dn:g} "
            f"DN: {cause}."
        )
    return findings


# --- photon transfer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PhotonTransfer:
    """The temporal noise of a camera against its mean count.

    Parameters
    ----------
    gain_dn_per_e : float
        System gain K; 0 where frames repeat exactly, NaN where the variance follows no line.
    dark_variance : float
        Variance before rounding without light, in DN^2: of the read noise and of the dark current.
    covariance : ndarray of float64, shape (2, 2)
        Of the errors of the two.
    is_resolved : bool
        Whether the dark variance is wide enough to be told from rounding, and dark counts are not cut off at 0.
    mean_dn, variance, variance_error : ndarray of float64, shape (n_bins,)
        Bins of pixels: mean count above darkness, mean variance over the frames, and the standard error of that. The
        first one may be that of the dark frames.
    used : ndarray of bool, shape (n_bins,)
        The bins that the line was fitted to.
    """

    gain_dn_per_e: float
    dark_variance: float
    covariance: NDArray[np.float64]
    is_resolved: bool
    mean_dn: NDArray[np.float64]
    variance: NDArray[np.float64]
    variance_error: NDArray[np.float64]
    used: NDArray[np.bool_]

    @property
    def gain_error_dn_per_e(self) -> float:
        """Standard error of the gain."""
        return math.sqrt(self.covariance[0, 0])

    @property
    def read_noise_e(self) -> float:
        """Noise without light in electrons, NaN where it is not resolved."""
        return math.sqrt(self.dark_variance) / self.gain_dn_per_e if self.is_resolved else math.nan

    @property
    def read_noise_error_e(self) -> float:
        """Standard error of the read noise, NaN where it is not resolved."""
        if not self.is_resolved:
            return math.nan
        slopes = np.array([-1 / self.gain_dn_per_e, 0.5 / self.dark_variance])
        return self.read_noise_e * math.sqrt(slopes @ self.covariance @ slopes)

    @property
    def read_noise_bound_e(self) -> float:
        """What the noise without light is below in 95 % of the cases, in electrons; NaN without a gain."""
        if not self.gain_dn_per_e > 0:
            return math.nan
        highest = max(self.dark_variance, 0.0) + 1.645 * math.sqrt(self.covariance[1, 1])
        return math.sqrt(highest) / self.gain_dn_per_e


def estimate_photon_transfer(
    frames: NDArray[Any], dark: NDArray[Any] | float, saturation_dn: float, *, n_bins: int = 40
) -> PhotonTransfer:
    """Estimate gain and noise from repeated frames of one speckle.

    Fully developed speckle has pixels of every brightness, so that one pattern is enough. Frames are scaled to the
    same power by the ratio of their sums over pixels below saturation. The variance of a pixel is a twentieth of the
    mean square of its third differences, `y[j] - 3 y[j + 1] + 3 y[j + 2] - y[j + 3]`: vibrations of the bench, slower
    than the frames, change the speckle, and add to the ordinary variance in proportion to the mean, as photons do.
    Pixels come in bins of equal mean, up to 70 % of saturation: there no frame is saturated, and nothing is left out
    by its noise. Through the bins goes the line

        variance = K mean + dark variance + 1/12,

    weighted by the variance that it gives. Bins in which rounding or the cut at 0 distorts the variance are not used,
    the dark frames are if it does not there.

    Parameters
    ----------
    frames : ndarray, shape (n_frames, n_outputs)
        Counts of one pattern, at least four frames.
    dark : ndarray, shape (n_dark, n_outputs), or float
        Counts without light; or the black level, where there are none.
    saturation_dn : float
        The count at which pixels are full.
    n_bins : int
        Bins of equally many pixels.

    Returns
    -------
    PhotonTransfer
        NaN, and a variance that is not resolved, where there is no light or no line.
    """
    dark_map = np.mean(dark, axis=0) if isinstance(dark, np.ndarray) else np.full(frames.shape[1], float(dark))
    level_dn = float(np.median(dark_map))
    good = (dark_map < 0.7 * saturation_dn) & (frames.mean(axis=0) < level_dn + 0.7 * (saturation_dn - level_dn))
    light = frames[:, good].astype(np.float64) - dark_map[good]
    powers = light.sum(axis=1)
    if len(powers) < 4 or good.sum() < 10 * n_bins or not powers.min() > 0:
        empty = np.zeros(0)
        nothing = np.full((2, 2), math.nan)
        return PhotonTransfer(math.nan, math.nan, nothing, False, empty, empty, empty, np.zeros(0, np.bool_))
    # Scaled to the power p, the photon noise of a frame is p / power times what it is at p. Third differences weigh the
    # frames unevenly, by the squares of their coefficients, and this p makes the weighted mean of p / power 1.
    weights = np.convolve(np.ones(len(powers) - 3), np.array([1, 9, 9, 1]) / 20) / (len(powers) - 3)
    light /= powers[:, np.newaxis] * (weights / powers).sum()
    order = np.argsort(light.mean(axis=0))
    bins = np.array_split(order, n_bins)
    means = light.mean(axis=0)
    variances = np.square(np.diff(light, n=3, axis=0)).mean(axis=0) / 20
    x = np.array([means[b].mean() for b in bins])
    y = np.array([variances[b].mean() for b in bins])
    # The variance grows within a bin, which is no error of its mean.
    slope = float((y[-1] - y[0]) / (x[-1] - x[0]))
    y_error = np.array([(variances[b] - slope * means[b]).std(ddof=1) / math.sqrt(len(b)) for b in bins])
    sizes = np.array([len(b) for b in bins])
    if isinstance(dark, np.ndarray) and len(dark) > 2:
        dark_variances = dark[:, good].var(axis=0, ddof=1, dtype=np.float64)
        x, y = np.append(0.0, x), np.append(dark_variances.mean(), y)
        y_error = np.append(dark_variances.std(ddof=1) / math.sqrt(good.sum()), y_error)
        sizes = np.append(good.sum(), sizes)
    smooth = np.where(x > 0, _SMOOTH_NOISE_DN, _SMOOTH_DARK_NOISE_DN)
    used = np.array([_noise_resolves(v, m + level_dn, s) for v, m, s in zip(y, x, smooth, strict=True)])
    # Where dark counts are cut off at 0 their mean is not that of the dark signal, and shifts the line.
    is_cut = isinstance(dark, np.ndarray) and bool(np.mean(dark[:, good] == 0) > 0.01)
    return _fit_transfer(x, y, y_error, sizes, used, is_cut=is_cut)


def _fit_transfer(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    y_error: NDArray[np.float64],
    sizes: NDArray[np.float64],
    used: NDArray[np.bool_],
    *,
    is_cut: bool,
) -> PhotonTransfer:
    """Fit the line to the bins that are used.

    The line itself weighs them: weights from the measured variances would prefer those that are low by chance.
    """
    if not y.any():  # frames that repeat exactly: no photon noise at all
        return PhotonTransfer(0.0, 0.0, np.zeros((2, 2)), False, x, y, y_error, used)
    if used.sum() < 5:
        return PhotonTransfer(math.nan, math.nan, np.full((2, 2), math.nan), False, x, y, y_error, used)
    design = np.column_stack([x[used], np.ones(used.sum())])
    weights = sizes[used] / np.square(x[used] + x[used].mean())
    for _ in range(4):
        solve = np.linalg.inv(design.T * weights @ design) @ (design.T * weights)
        slope, intercept = solve @ (y[used] - QUANTISATION_VARIANCE)
        weights = sizes[used] / np.square(np.maximum(design @ (slope, intercept), 0.0) + QUANTISATION_VARIANCE)
    covariance = (solve * np.square(y_error[used])) @ solve.T
    resolved = not is_cut and intercept >= max(_IDENTIFIABLE_NOISE_DN**2, 3 * math.sqrt(covariance[1, 1])) and slope > 0
    return PhotonTransfer(float(slope), float(intercept), covariance, bool(resolved), x, y, y_error, used)


def photon_transfer(
    device: Device, *, noise_key: int = 0, n_outputs: int = 16384, n_repeats: int = 16
) -> CalibrationResult:
    """Measure gain, read noise and saturation of the camera with one static speckle: its photon transfer.

    See `estimate_photon_transfer`. Two frames ten times as bright, or as bright as the device can, show where pixels
    are full.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_outputs : int
        Pixels, at most those of the camera.
    n_repeats : int
        Frames of the pattern, at least 4, and as many without light.

    Returns
    -------
    CalibrationResult
        The system gain K at the gain setting of its session, in DN per electron; passes from 0 on, which is a camera
        whose frames repeat exactly. Quantities: `relative_error` of it (passes up to 5 %), `read_noise` (electrons; NaN
        below 0.3 DN, where rounding hides it), `read_noise_bound` (its upper bound of 95 %), `saturation_capacity`
        (electrons that fill a pixel, or the range of the counts), `snr_max` (the square root of that). Data, by bin of
        pixels: `mean_dn`, `variance`, `variance_error`, `used`; and `fit`, gain and variance at no light.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     transfer = photon_transfer(device, n_outputs=4096)
    >>> abs(transfer.value - 0.0255) < 4 * transfer.uncertainty, transfer.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    description = recorder.description
    n_features, n_outputs = available_size(description, 64, n_outputs)
    config = recorder.expose(recorder.config(n_features, n_outputs), random_halves(8, n_features))
    dark = take_dark(recorder, config, n_repeats)
    pattern = random_halves(1, n_features)
    frames = recorder.take(config, np.repeat(pattern, n_repeats, axis=0)).frames
    level = description.black_level_dn if dark is None else dark
    saturation_dn = _saturation_dn(recorder, config, pattern, dark)
    found = estimate_photon_transfer(frames, level, saturation_dn)
    gain, gain_error = found.gain_dn_per_e, found.gain_error_dn_per_e
    dark_dn = float(np.mean(level))
    capacity = (saturation_dn - dark_dn) / gain if gain > 0 else math.nan
    capacity_error = capacity * gain_error / gain if gain > 0 else math.nan
    snr = math.sqrt(max(capacity, 0.0)) if gain > 0 else math.nan
    findings = light_faults(
        frames, dark, description, target_dn=TARGET_FRACTION * (description.full_scale_dn - dark_dn)
    )
    if not findings:
        findings = _transfer_findings(found, saturation_dn, description)
    return recorder.result(
        "photon_transfer",
        "system gain of the camera",
        gain,
        "DN/e",
        gain_error,
        limit=(0.0, None),
        quantities={
            "relative_error": Quantity(
                value=gain_error / gain if gain > 0 else 0.0 * gain,
                unit="1",
                uncertainty=math.nan,
                limit=(None, _LARGEST_GAIN_ERROR),
                summary="standard error of the gain over the gain",
            ),
            "read_noise": Quantity(
                value=found.read_noise_e,
                unit="e",
                uncertainty=found.read_noise_error_e,
                summary="temporal noise without light, where it is not hidden by rounding",
            ),
            "read_noise_bound": Quantity(
                value=found.read_noise_bound_e,
                unit="e",
                uncertainty=math.nan,
                summary="upper bound of the temporal noise without light (95 %)",
            ),
            "saturation_capacity": Quantity(
                value=capacity,
                unit="e",
                uncertainty=capacity_error,
                summary="electrons that fill a pixel or its counts",
            ),
            "snr_max": Quantity(
                value=snr,
                unit="1",
                uncertainty=capacity_error / (2 * snr) if snr > 0 else math.nan,
                summary="signal-to-noise ratio of a full pixel",
            ),
        },
        findings=findings,
        data={
            "mean_dn": found.mean_dn,
            "variance": found.variance,
            "variance_error": found.variance_error,
            "used": found.used,
            "fit": np.array([gain, found.dark_variance]),
        },
    )


def _saturation_dn(
    recorder: Recorder, config: SessionConfig, pattern: NDArray[np.bool_], dark: NDArray[Any] | None
) -> float:
    """Return the count at which pixels are full, from two bright frames; full scale where too few pixels get there."""
    description = recorder.description
    limits = description.exposure_us
    exposure_us = min(limits.maximum, 10 * (config.exposure_us or limits.default))
    bright = msgspec.structs.replace(config, exposure_us=exposure_us)
    frames = recorder.take(bright, np.repeat(pattern, 2, axis=0)).frames
    if dark is not None:
        frames = frames[:, ~stuck_pixels(dark, description.full_scale_dn)]
    dark_dn = description.black_level_dn if dark is None else float(np.median(dark))
    return Saturation.of(frames, dark_dn, description.full_scale_dn).count_dn


def _transfer_findings(found: PhotonTransfer, saturation_dn: float, description: DeviceDescription) -> list[str]:
    findings = full_well_finding(saturation_dn, description.full_scale_dn)
    if not found.gain_dn_per_e >= 0:
        findings.append(
            "The variance of the counts does not grow with their mean as photons make it grow: there is too little "
            "light, or the camera processes its frames."
        )
    elif found.gain_error_dn_per_e > _LARGEST_GAIN_ERROR * found.gain_dn_per_e:
        relative = found.gain_error_dn_per_e / found.gain_dn_per_e
        findings.append(
            f"The gain is known to {relative:.0%} only, and {_LARGEST_GAIN_ERROR:.0%} are wanted: there is too little "
            "light, noise covers that of the photons, or something else than photons changes from frame to frame."
        )
    return findings


# --- linearity --------------------------------------------------------------------------------------------------------

# Levels of a sweep, relative to saturation. The pixels of a level differ by 5 %: none of them is above 95 %.
_LEVELS = np.linspace(0.05, 0.9, 10)
_FEWEST_LEVELS = 5


@dataclass(frozen=True, eq=False)
class Linearity:
    """How straight counts follow the exposure.

    Parameters
    ----------
    error, error_uncertainty : float
        Mean of the absolute relative deviations from the line, and its standard error.
    curvature, curvature_uncertainty : float
        Relative deviation at the top of the range, by a term of second order, from the line that continues the darkest
        counts; positive where counts grow too fast.
    deviations : ndarray of float64, shape (n_levels,)
        Relative deviations from the line.
    """

    error: float
    error_uncertainty: float
    curvature: float
    curvature_uncertainty: float
    deviations: NDArray[np.float64]


def estimate_linearity(
    exposures: NDArray[np.float64], levels: NDArray[np.float64], errors: NDArray[np.float64], range_dn: float
) -> Linearity:
    """Fit a line to counts against exposure, as EMVA 1288 (release 4.0) does, and describe what deviates from it.

    The fit minimises the squares of *relative* deviations, so that dark counts weigh as much as bright ones. The error
    is the mean of the absolute relative deviations.

    Parameters
    ----------
    exposures : ndarray of float64, shape (n_levels,)
        Exposure times, in any unit.
    levels, errors : ndarray of float64, shape (n_levels,)
        Mean counts above darkness, positive, and their standard errors.
    range_dn : float
        Counts from darkness to full scale, at which the curvature is stated.

    Returns
    -------
    Linearity
        NaN for fewer than five different exposures.

    Examples
    --------
    >>> exposures = np.linspace(1, 19, 10)
    >>> straight = estimate_linearity(exposures, 12 * exposures, np.full(10, 0.1), 255)
    >>> bent = estimate_linearity(exposures, 12 * exposures * (1 + 0.03 * 12 * exposures / 255), np.full(10, 0.1), 255)
    >>> round(straight.error, 6), round(bent.curvature, 3)
    (0.0, 0.03)
    """
    if len(np.unique(exposures)) < _FEWEST_LEVELS or not (levels > 0).all():
        return Linearity(math.nan, math.nan, math.nan, math.nan, np.full(len(levels), math.nan))
    times = exposures / exposures.max()
    straight = np.vander(times, 2)
    solve = np.linalg.pinv(straight / levels[:, np.newaxis]) / levels
    fitted = straight @ solve @ levels
    deviations = levels / fitted - 1
    # Errors of the levels move the line, too.
    influence = (np.eye(len(levels)) - straight @ solve) / fitted[:, np.newaxis]
    mean_influence = np.sign(deviations) @ influence / len(levels)
    solve_bent = np.linalg.pinv(np.vander(times, 3) / levels[:, np.newaxis]) / levels
    square, slope, _ = solve_bent @ levels
    scale = range_dn / slope**2
    # Square and slope err in opposite directions, and the slope counts twice.
    curvature_influence = scale * (solve_bent[0] - 2 * square / slope * solve_bent[1])
    return Linearity(
        error=float(np.abs(deviations).mean()),
        error_uncertainty=float(np.linalg.norm(mean_influence * errors)),
        curvature=float(square * scale),
        curvature_uncertainty=float(np.linalg.norm(curvature_influence * errors)),
        deviations=deviations,
    )


def linearity(device: Device, *, noise_key: int = 0, n_outputs: int = 16384, n_frames: int = 4) -> CalibrationResult:
    """Measure how straight counts follow the exposure.

    Pixels of nearly the same brightness in one speckle, about 2.2 times the mean, are the detector. Their mean count is
    taken at ten exposures at which it goes from 5 to 90 % of full scale, so that the brightest of them stay below 95 %,
    in increasing and then in decreasing order: a drift of the power drops out. See `estimate_linearity`.

    Parameters
    ----------
    device : Device
        Any device whose exposure can be changed.
    noise_key : int
        The noise of the frames.
    n_outputs : int
        Pixels, at most those of the camera; one in forty is used.
    n_frames : int
        Frames at each exposure, an even number.

    Returns
    -------
    CalibrationResult
        The linearity error, a fraction; passes up to 0.01. It is never negative, so a straight camera has what noise
        leaves of it. Quantity: `curvature` (a fraction; passes within 0.02).
        Data: `exposures_us`, `mean_dn` (above darkness), `error_dn`, `deviation` (relative, from the line).

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     straight = linearity(device, n_outputs=4096)
    >>> straight.value < 0.005, straight.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    description = recorder.description
    n_features, n_outputs = available_size(description, 64, n_outputs)
    config = recorder.expose(recorder.config(n_features, n_outputs), random_halves(8, n_features))
    dark = take_dark(recorder, config, 2 * n_frames)
    pattern = random_halves(1, n_features)
    frames = recorder.take(config, np.repeat(pattern, 2 * n_frames, axis=0)).frames
    dark_map = np.full(n_outputs, description.black_level_dn) if dark is None else dark.mean(axis=0)
    range_dn = description.full_scale_dn - float(np.median(dark_map))
    faults = light_faults(frames, dark, description, target_dn=TARGET_FRACTION * range_dn)
    stuck = stuck_pixels(frames, description.full_scale_dn)
    chosen = _similar_pixels(frames.mean(axis=0) - dark_map, stuck)
    level_dn = float((frames.mean(axis=0) - dark_map)[chosen].mean()) if len(chosen) else 0.0
    limits = description.exposure_us
    exposed_us = config.exposure_us or limits.default
    exposures_us = np.clip(exposed_us * _LEVELS * range_dn / max(level_dn, 1e-9), limits.minimum, limits.maximum)
    levels, errors = (np.full(len(_LEVELS), math.nan) for _ in range(2))
    if len(np.unique(exposures_us)) >= _FEWEST_LEVELS:
        shown = np.repeat(pattern, max(n_frames // 2, 1), axis=0)
        counts = _sweep(recorder, config, shown, exposures_us, chosen) - dark_map[chosen].mean()
        levels, errors = counts.mean(axis=(1, 2)), _level_errors(counts)
    found = estimate_linearity(exposures_us, levels, errors, range_dn)
    return recorder.result(
        "linearity",
        "mean relative deviation of the counts from a straight line over the exposure",
        found.error,
        "1",
        found.error_uncertainty,
        limit=(None, 0.01),
        quantities={
            "curvature": Quantity(
                value=found.curvature,
                unit="1",
                uncertainty=found.curvature_uncertainty,
                limit=(-0.02, 0.02),
                summary="relative deviation at full scale from the line of the darkest counts",
            )
        },
        findings=faults or _linearity_findings(found),
        data={"exposures_us": exposures_us, "mean_dn": levels, "error_dn": errors, "deviation": found.deviations},
    )


def _similar_pixels(brightness: NDArray[np.float64], stuck: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the pixels between 87 and 89.5 % of all, from dark to bright: 2.04 to 2.25 times the mean of a speckle."""
    order = np.argsort(np.where(stuck, -np.inf, brightness), kind="stable")
    order = order[int(stuck.sum()) :]
    first = int(0.87 * len(order))
    return order[first : max(int(0.895 * len(order)), first + 1)]


def _sweep(
    recorder: Recorder,
    config: SessionConfig,
    shown: NDArray[np.bool_],
    exposures_us: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return chosen pixels at each exposure, on the way up and down, shape (n_levels, n_frames, n_chosen)."""
    n_levels = len(exposures_us)
    frames: list[list[NDArray[Any]]] = [[] for _ in range(n_levels)]
    for level in (*range(n_levels), *reversed(range(n_levels))):
        exposed = msgspec.structs.replace(config, exposure_us=float(exposures_us[level]))
        frames[level].extend(recorder.take(exposed, shown).frames[:, chosen])
    return np.array(frames)


def _level_errors(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standard errors of levels: counts above darkness, shape (n_levels, n_frames, n_pixels).

    The pixels' own noise is known well from all of them. What the frame means vary by beyond it is the light's, which
    all pixels share. It is proportional to the level, and is taken from all levels together: few frames of a single
    level say little of it.
    """
    n_frames, n_pixels = counts.shape[1:]
    own = counts.var(axis=1, ddof=1).mean(axis=1) / n_pixels
    of_means = counts.mean(axis=2).var(axis=1, ddof=1)
    squares = counts.mean(axis=(1, 2)) ** 2
    shared = max(float((of_means - own).sum()), 0.0) / max(float(squares.sum()), 1e-9)
    return np.asarray(np.sqrt((own + shared * squares) / n_frames))


def _linearity_findings(found: Linearity) -> list[str]:
    if math.isnan(found.error):
        return [
            "The exposure of the device cannot be varied enough, or there is too little light, to measure how straight "
            "its camera counts."
        ]
    if found.error <= 0.01 and abs(found.curvature) <= 0.02:
        return []
    return [
        "The camera is not linear: its counts deviate from a straight line over the exposure by "
        f"{100 * found.error:.2g} % on average, and bend by {100 * found.curvature:+.2g} % between darkness and full "
        "scale. Saturation, a gamma curve or a failing exposure control do that."
    ]
