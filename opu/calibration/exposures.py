"""How bright frames should be: exposure and gain, and how many features may be lit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.faults import light_faults, stuck_pixels
from opu.calibration.frames import available_size, take_dark
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.result import CalibrationResult, Quantity, is_within
from opu.calibration.saturation import SATURATED_SHARE
from opu.exposure import TARGET_FRACTION, Saturation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import Device, DeviceDescription

__all__ = [
    "Brightness",
    "OnesRange",
    "estimate_brightness",
    "estimate_ones_range",
    "exposure",
    "ones_range",
    "predicted_saturation",
]

# Where the noise is more than this share of the speckle's standard deviation, frames follow the true intensities with a
# correlation below 0.995.
_LARGEST_NOISE = 0.1
_TOLERANCE = 0.05
# Times 1.96: the 3 events, -log(0.05), that are not seen in one of twenty times.
_UNSEEN_CLUSTERS = 1.53
# A half and its complement, with as many dark frames: three measurements take 12 frames.
_SEARCH_PATTERNS = 2


@dataclass(frozen=True)
class Brightness:
    """The mean of speckle over patterns and pixels.

    Parameters
    ----------
    mean_dn, error_dn : float
        Above darkness, and the standard error for other patterns and other pixels.
    saturated, saturated_error : float
        Share of the values at full scale, or where full wells are below it (`opu.exposure.Saturation`), and its
        standard error.
    """

    mean_dn: float
    error_dn: float
    saturated: float
    saturated_error: float


def estimate_brightness(frames: NDArray[Any], dark_dn: float, full_scale_dn: float) -> Brightness:
    """Estimate the mean of speckle from frames of different patterns.

    Patterns that share features have similar speckles, so the frames are not independent. With `s_f` the standard
    deviation of the frame means and `s_p` that of the pixels' part, which all patterns share, the squared error is

        s_f^2 / n_frames + g^2 s_p^2 / n_outputs,

    with `g` the number of neighbours in a row that speckle grain makes alike: the variance of the mean of 16 over what
    it would be if they were independent.

    Saturated values come in clusters: a pixel that is bright in one pattern often is in others, and so are its
    neighbours. With `K` saturated values, `k` of them in a pixel, a cluster has `D = g^2 n_outputs var(k) / K` of
    them, and the squared error of `K` is `D K + (1.53 D)^2`. The second part is for few clusters, which say little of
    their spread: with none seen the interval ends at the three clusters that are missed once in twenty times.

    Parameters
    ----------
    frames : ndarray, shape (n_frames, n_outputs)
        Counts, without stuck pixels; at least two patterns.
    dark_dn, full_scale_dn : float
        Counts without light, and the largest count.

    Returns
    -------
    Brightness
        NaN without frames.

    Examples
    --------
    >>> speckle = np.random.default_rng(0).exponential(28, (32, 4000)).round()
    >>> bright = estimate_brightness(speckle, 0.0, 255.0)
    >>> abs(bright.mean_dn - 28) < 4 * bright.error_dn, round(bright.error_dn, 1)
    (True, 0.1)
    """
    n_frames, n_outputs = frames.shape
    if n_outputs < 2 or n_frames < 2:
        return Brightness(math.nan, math.nan, math.nan, math.nan)
    pixels = frames.mean(axis=0, dtype=np.float64)
    within = float(frames.var(axis=0, ddof=1, dtype=np.float64).mean())
    alike = _grain_factor(pixels) ** 2
    shared = max(float(pixels.var(ddof=1)) - within / n_frames, 0.0) * alike
    of_frames = float(frames.mean(axis=1, dtype=np.float64).var(ddof=1)) / n_frames
    by_pixel = Saturation.of(frames, dark_dn, full_scale_dn).is_full.sum(axis=0)
    saturated = int(by_pixel.sum())
    cluster = alike * max(n_outputs * float(by_pixel.var(ddof=1)) / max(saturated, 1), 1.0)
    return Brightness(
        mean_dn=float(pixels.mean()) - dark_dn,
        error_dn=math.sqrt(of_frames + shared / n_outputs),
        saturated=saturated / frames.size,
        saturated_error=math.sqrt(cluster * saturated + (_UNSEEN_CLUSTERS * cluster) ** 2) / frames.size,
    )


def _grain_factor(pixels: NDArray[np.float64]) -> float:
    """How many neighbours in a row are alike."""
    n_blocks = len(pixels) // 16
    variance = float(pixels.var())
    if n_blocks < 16 or variance == 0:
        return 1.0
    return max(16 * float(pixels[: 16 * n_blocks].reshape(-1, 16).mean(axis=1).var(ddof=1)) / variance, 1.0)


def _halves(n_patterns: int, n_features: int) -> NDArray[np.bool_]:
    """Return patterns with half of the features on, each followed by its complement: together they light all alike."""
    halves = random_halves(n_patterns // 2, n_features)
    return np.stack([halves, ~halves], axis=1).reshape(-1, n_features)


def exposure(device: Device, *, noise_key: int = 0, n_outputs: int = 16384, n_patterns: int = 32) -> CalibrationResult:
    """Find the exposure, and the gain where needed, for a mean of a ninth of full scale with half of the features on.

    `opu.exposure.choose_exposure` searches, with two patterns. Then other patterns are measured as it found, and the
    stated exposure is corrected by what they show.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_outputs : int
        Pixels, at most those of the camera.
    n_patterns : int
        Patterns of the second measurement, an even number.

    Returns
    -------
    CalibrationResult
        In microseconds; passes within the exposures of the device, and is at the nearest of them where the mean passes
        there. Quantities: `gain` (dB), `mean_fraction` (what the search came to: the mean as a fraction of full scale,
        passes within 5 % of a ninth), `saturated_fraction` (passes up to 0.005; fully developed speckle has 0.00012),
        `rounds` (measurements of the search) and `search_frames`. Exposure and mean are NaN where more of the values
        saturate. Data: `histogram`, how many values are in each of 256 bins, and `edges_dn`, shape (257,).

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     found = exposure(device, n_outputs=4096)
    >>> 500 < found.value < 580, found.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    description = recorder.description
    n_features, n_outputs = available_size(description, 64, n_outputs)
    patterns = _halves(_SEARCH_PATTERNS + n_patterns, n_features)
    searched, measured = patterns[:_SEARCH_PATTERNS], patterns[_SEARCH_PATTERNS:]
    config = recorder.expose(recorder.config(n_features, n_outputs), searched)
    takes = 2 if "off" in description.light else 1
    search_frames = recorder.frames
    rounds = search_frames / (takes * len(searched))
    dark = take_dark(recorder, config, 8)
    frames = recorder.take(config, measured).frames
    full_scale = description.full_scale_dn
    seeing = ~stuck_pixels(frames, full_scale)
    dark_dn = description.black_level_dn if dark is None else _mean(dark[:, seeing])
    range_dn = full_scale - dark_dn
    found = estimate_brightness(frames[:, seeing], dark_dn, full_scale)
    is_saturated = found.saturated > SATURATED_SHARE
    fraction = math.nan if is_saturated else found.mean_dn / range_dn
    error = math.nan if is_saturated else found.error_dn / range_dn
    limits = description.exposure_us
    used_us = limits.default if config.exposure_us is None else config.exposure_us
    best_us = used_us * TARGET_FRACTION / fraction if fraction > 0 else math.nan
    best_error_us = best_us * error / fraction if fraction > 0 else math.nan
    mean_limit = ((1 - _TOLERANCE) * TARGET_FRACTION, (1 + _TOLERANCE) * TARGET_FRACTION)
    if is_within(fraction, mean_limit):
        best_us = min(max(best_us, limits.minimum), limits.maximum)
    where = f"At {used_us:g} us and {config.gain_db:.3g} dB"
    faults = light_faults(frames, dark, description, target_dn=TARGET_FRACTION * range_dn)
    counts, edges = np.histogram(frames, bins=256, range=(0, full_scale + 1))
    return recorder.result(
        "exposure",
        "exposure for a mean of full scale / 9 with half of the features on",
        best_us,
        "us",
        best_error_us,
        limit=(limits.minimum, limits.maximum),
        quantities={
            "gain": _setting(config.gain_db, "dB", "gain setting"),
            "mean_fraction": Quantity(
                value=fraction,
                unit="1",
                uncertainty=error,
                limit=mean_limit,
                summary="mean above darkness that the search came to, as a fraction of full scale",
            ),
            "saturated_fraction": Quantity(
                value=found.saturated,
                unit="1",
                uncertainty=found.saturated_error,
                limit=(None, SATURATED_SHARE),
                summary="share of the values at which pixels are full, without stuck ones",
            ),
            "rounds": Quantity(value=rounds, unit="1", uncertainty=math.nan, summary="measurements of the search"),
            "search_frames": Quantity(
                value=search_frames, unit="1", uncertainty=math.nan, summary="frames that they took, dark ones included"
            ),
        },
        findings=faults + _exposure_findings(found, range_dn, used_us, where, description)
        if is_saturated
        else faults or _exposure_findings(found, range_dn, used_us, where, description),
        data={"histogram": counts, "edges_dn": edges},
    )


def _setting(value: float, unit: str, summary: str) -> Quantity:
    return Quantity(value=value, unit=unit, uncertainty=math.nan, summary=summary, is_setting=True)


def _exposure_findings(
    found: Brightness, range_dn: float, exposure_us: float, where: str, description: DeviceDescription
) -> list[str]:
    """Name why the mean is not the wanted one; a mean of saturated values is a lower bound."""
    if math.isnan(found.mean_dn):
        return ["Fewer than two pixels that are not stuck were looked at: how bright speckle is they do not show."]
    fraction = found.mean_dn / range_dn
    is_saturated = found.saturated > SATURATED_SHARE
    is_bright = fraction > (1 + _TOLERANCE) * TARGET_FRACTION
    if not is_bright and (is_saturated or fraction >= (1 - _TOLERANCE) * TARGET_FRACTION):
        return []
    more = "more than " if is_saturated else ""
    share = f"the mean is {more}{100 * fraction:.2g} % of full scale, where {100 * TARGET_FRACTION:.2g} % were wanted"
    limits = description.exposure_us
    if is_bright and exposure_us <= limits.minimum:
        return [f"{where}, the shortest exposure, {share}: lower the laser power."]
    if not is_bright and exposure_us >= limits.maximum:
        return [f"{where}, the longest exposure, {share}: raise the laser power."]
    return [f"{where} {share}: the light is not proportional to the exposure, or is not steady."]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


# --- ones range -------------------------------------------------------------------------------------------------------


def predicted_saturation(mean_dn: float, contrast: float, range_dn: float) -> float:
    """Return the share of speckle above a count, for intensities of the gamma distribution.

    Speckle that a pixel averages over has about this distribution, of the shape `1 / contrast^2` (Goodman, Speckle
    Phenomena in Optics); with the contrast 1 it is the exponential one, and the share `exp(-range / mean)`.

    Parameters
    ----------
    mean_dn : float
        Mean above darkness, positive.
    contrast : float
        Standard deviation over mean, positive.
    range_dn : float
        From darkness to full scale.

    Examples
    --------
    >>> round(predicted_saturation(28.0, 1.0, 252.0) * 1e4, 3)
    1.234
    """
    shape = 1 / contrast**2
    start = shape * range_dn / mean_dn
    # Relative to its value at the start the density falls by e^-40 at the end.
    beyond = np.linspace(0.0, 40.0 + 4 * shape, 4001)
    density = np.exp((shape - 1) * np.log1p(beyond / start) - beyond)
    log_scale = (shape - 1) * math.log(start) - start - math.lgamma(shape)
    return min(math.exp(log_scale) * float(np.trapezoid(density, beyond)), 1.0)


def _mean_at_share(share: float, contrast: float, range_dn: float) -> float:
    """Return the mean at which a share of the speckle is above a count."""
    low, high = range_dn / 1000, range_dn
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if predicted_saturation(middle, contrast, range_dn) > share else (middle, high)
    return math.sqrt(low * high)


@dataclass(frozen=True)
class OnesRange:
    """How many features may be lit, and what is predicted for any number.

    Parameters
    ----------
    largest, largest_error : float
        With more of them 0.5 % of the pixels saturate.
    smallest, smallest_error : float
        With fewer the noise is more than a tenth of the speckle's standard deviation.
    dn_per_feature, dn_per_feature_error, background_dn, background_error_dn : float
        Mean above darkness: background plus this for each lit feature.
    contrast, contrast_error : float
        Of the speckle, without noise.
    """

    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    dn_per_feature: float
    dn_per_feature_error: float
    background_dn: float
    background_error_dn: float
    contrast: float
    contrast_error: float

    def mean_dn(self, n_on: float) -> float:
        """Return the predicted mean above darkness with so many features on."""
        return self.background_dn + self.dn_per_feature * n_on


def estimate_ones_range(n_on: NDArray[np.float64], frames: NDArray[Any], dark_dn: float, range_dn: float) -> OnesRange:
    """Estimate how many features may be lit from repeats of a few patterns.

    The mean is a line over the number of lit features. The noise of the counts from repeat to repeat is a line over
    the mean. Means of speckle over `n` pixels have the relative error `g contrast / sqrt(n)`, its contrast about the
    same, with `g` the number of alike neighbours as in `estimate_brightness`.

    Parameters
    ----------
    n_on : ndarray of float64, shape (n_patterns,)
        Lit features of each pattern, which share none; at least three numbers.
    frames : ndarray, shape (n_patterns, n_repeats, n_outputs)
        Counts, without stuck pixels; at least two repeats.
    dark_dn, range_dn : float
        Counts without light, and from there to full scale.

    Returns
    -------
    OnesRange
        NaN where the light does not grow with the lit features, and where more than 0.5 % of the values saturate.
    """
    if frames.shape[2] < 2:
        return OnesRange(*[math.nan] * 10)
    saturation = Saturation.of(frames.reshape(-1, frames.shape[2]), dark_dn, dark_dn + range_dn)
    if saturation.share > SATURATED_SHARE:
        return OnesRange(*[math.nan] * 10)
    pixels = frames.mean(axis=1, dtype=np.float64) - dark_dn
    means = pixels.mean(axis=1)
    noises = frames.var(axis=1, ddof=1, dtype=np.float64).mean(axis=1)
    signals = pixels.var(axis=1, ddof=1) - noises / frames.shape[1]
    if not (means > 0).all() or not (signals > 0).all():
        return OnesRange(*[math.nan] * 10)
    contrast = float(np.sqrt(signals / means**2).mean())
    error = contrast * max(_grain_factor(each) for each in pixels) / math.sqrt(pixels.shape[1])
    design = np.vander(n_on, 2)
    solve = np.linalg.pinv(design / means[:, np.newaxis]) / means
    slope, background = (float(number) for number in solve @ means)
    slope_error, background_error = np.linalg.norm(solve * means, axis=1) * error
    noise_slope, noise_dark = np.linalg.lstsq(np.vander(means, 2), noises, rcond=None)[0]
    if slope <= 0:
        return OnesRange(*[math.nan] * 10)

    def features(mean_dn: float) -> float:
        return (mean_dn - background) / slope

    def features_error(n: float, mean_error_dn: float) -> float:
        influence = np.array([n, 1.0]) @ solve
        return math.hypot(float(np.linalg.norm(influence * means)) * error, mean_error_dn) / slope

    # (contrast * mean)^2 = 100 (dark noise + slope * mean)
    a, b = contrast**2, float(noise_slope) / _LARGEST_NOISE**2
    darkest_dn = (b + math.sqrt(max(b**2 + 4 * a * float(noise_dark) / _LARGEST_NOISE**2, 0.0))) / (2 * a)
    brightest_dn = _mean_at_share(SATURATED_SHARE, contrast, range_dn)
    contrast_error = error / math.sqrt(len(n_on))
    higher_dn = _mean_at_share(SATURATED_SHARE, contrast + contrast_error, range_dn)
    largest, smallest = features(brightest_dn), features(darkest_dn)
    return OnesRange(
        largest=largest,
        largest_error=features_error(largest, higher_dn - brightest_dn),
        smallest=smallest,
        smallest_error=features_error(smallest, 2 * darkest_dn * contrast_error / contrast),
        dn_per_feature=slope,
        dn_per_feature_error=float(slope_error),
        background_dn=background,
        background_error_dn=float(background_error),
        contrast=contrast,
        contrast_error=contrast_error,
    )


def ones_range(
    device: Device, *, noise_key: int = 0, n_features: int = 64, n_outputs: int = 16384, n_repeats: int = 4
) -> CalibrationResult:
    """Find how few and how many features may be lit, at the exposure that suits half of them.

    Three patterns with an eighth, a quarter and half of the features on, evenly spread and with none in common, tell
    the mean, the contrast and the noise for any number: see `estimate_ones_range`. At either end of the range frames
    follow the true intensities with a correlation of about 0.995.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_features : int
        The width of a pattern, at least 8.
    n_outputs : int
        Pixels, at most those of the camera.
    n_repeats : int
        Frames of each pattern, at least 2.

    Returns
    -------
    CalibrationResult
        The largest number of lit features, at most all of them; passes from the smallest on. Quantities: `smallest`,
        `dn_per_feature` and `background` (DN), `contrast`, `exposure` (us) and `gain` (dB) at which all this holds.
        Data: of the patterns `n_on` and `mean_dn`; for numbers over the whole width `predicted_n_on`,
        `predicted_mean_dn` and `predicted_saturated`.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     ones = ones_range(device, n_outputs=4096)
    >>> 50 < ones.value < 60, 4 < ones.quantities["smallest"].value < 8, ones.passed
    (True, True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    description = recorder.description
    n_features, n_outputs = available_size(description, n_features, n_outputs)
    config = recorder.expose(recorder.config(n_features, n_outputs), _halves(_SEARCH_PATTERNS, n_features))
    dark = take_dark(recorder, config, 8)
    place = np.arange(n_features) % 8
    patterns = np.stack([place == 0, place % 4 == 1, place % 4 >= 2])
    frames = recorder.take(config, np.repeat(patterns, n_repeats, axis=0)).frames
    full_scale = description.full_scale_dn
    seeing = ~stuck_pixels(frames if dark is None else dark, full_scale)
    dark_dn = description.black_level_dn if dark is None else _mean(dark[:, seeing])
    range_dn = full_scale - dark_dn
    faults = light_faults(frames, dark, description, target_dn=TARGET_FRACTION * range_dn)
    n_on = patterns.sum(axis=1).astype(np.float64)
    repeats = frames.reshape(len(patterns), n_repeats, n_outputs)[:, :, seeing]
    found = estimate_ones_range(n_on, repeats, dark_dn, range_dn)
    numbers = np.linspace(1, n_features, 64)
    predicted_dn = found.background_dn + found.dn_per_feature * numbers
    is_known = found.contrast > 0
    shares = [
        predicted_saturation(mean, found.contrast, range_dn) if is_known and mean > 0 else 0.0 for mean in predicted_dn
    ]
    largest = min(found.largest, n_features)
    limit = (found.smallest if found.smallest > 1 else 1.0, None)
    return recorder.result(
        "ones_range",
        "largest number of lit features: 0.5 % of the pixels saturate",
        largest,
        "1",
        found.largest_error,
        limit=limit,
        quantities={
            "smallest": Quantity(
                value=found.smallest,
                unit="1",
                uncertainty=found.smallest_error,
                summary="smallest number of lit features: the noise is a tenth of the speckle",
            ),
            "dn_per_feature": Quantity(
                value=found.dn_per_feature,
                unit="DN",
                uncertainty=found.dn_per_feature_error,
                summary="mean that a lit feature adds",
            ),
            "background": Quantity(
                value=found.background_dn,
                unit="DN",
                uncertainty=found.background_error_dn,
                summary="mean above darkness with no feature lit",
            ),
            "contrast": Quantity(
                value=found.contrast,
                unit="1",
                uncertainty=found.contrast_error,
                summary="standard deviation over mean of the speckle, without noise",
            ),
            "exposure": _setting(
                config.exposure_us or description.exposure_us.default, "us", "exposure at which this holds"
            ),
            "gain": _setting(config.gain_db, "dB", "gain at which this holds"),
        },
        findings=faults or ([] if is_within(largest, limit) else _ones_findings(found, n_features)),
        data={
            "n_on": n_on,
            "mean_dn": repeats.mean(axis=(1, 2)) - dark_dn if seeing.any() else np.full(len(n_on), math.nan),
            "predicted_n_on": numbers,
            "predicted_mean_dn": predicted_dn,
            "predicted_saturated": np.array(shares),
        },
    )


def _ones_findings(found: OnesRange, n_features: int) -> list[str]:
    """Name why no number of features may be lit."""
    if math.isnan(found.largest):
        return [
            "The light on the camera does not grow with the number of lit features, or fewer than two pixels see it."
        ]
    if found.largest < max(found.smallest, 1.0):
        return [
            f"From {max(found.largest, 0.0):.3g} lit features on pixels saturate, and below {found.smallest:.3g} noise "
            "is too large: no number of features suits this exposure. The camera is too noisy, or the contrast of the "
            "DMD is too low."
        ]
    return [
        f"Below {found.smallest:.3g} lit features noise is too large, and a pattern has {n_features}: no number of "
        "features suits this exposure. There is too little light, or the camera is too noisy."
    ]
