r"""How dark the mirrors are that are off.

A mirror that is off throws the amplitude `eps = 1 / sqrt(CR)` of one that is on, with the contrast ratio `CR` of the
intensities. All mirrors together make a constant coherent background, which no pattern switches off: the field of the
pattern with all mirrors on, `eps` times. So both show *the same speckle*, and the ratio of their means is free of its
statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.calibration.light import judge_light, probe_size, require_dark
from opu.calibration.recorder import Recorder
from opu.calibration.speckle import (
    SIDE_PX,
    SPECKLE_FRACTION,
    central_region,
    without_light,
)
from opu.calibration.uncertainty import quantity, student_factor
from opu.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.result import CalibrationResult
    from opu.device import Device, SessionConfig

__all__ = ["MirrorContrastEstimate", "dmd_contrast", "estimate_mirror_contrast"]

_LOWEST_CONTRAST = 300.0
_DIMMEST_DN = 1.0
_HIDDEN_DN = 1 / math.sqrt(12)
_DITHER_DN = 0.4


@dataclass(frozen=True)
class MirrorContrastEstimate:
    """The contrast ratio of mirrors.

    Parameters
    ----------
    contrast, contrast_error : float
        Intensity of a mirror that is on over that of one that is off; where nothing was seen of those that are off a
        lower bound, with an error of NaN.
    is_bound : bool
        Whether that is all that can be said.
    coherence, coherence_error : float
        Correlation of the speckle of all mirrors off with that of all mirrors on, noise removed: 1 for the light of
        the mirrors, 0 for light that takes another way. NaN for a bound.
    """

    contrast: float
    contrast_error: float
    is_bound: bool
    coherence: float
    coherence_error: float


_UNKNOWN = MirrorContrastEstimate(math.nan, math.nan, False, math.nan, math.nan)


def estimate_mirror_contrast(
    on: NDArray[np.float64],
    on_dark: NDArray[np.float64],
    off: NDArray[np.float64],
    off_dark: NDArray[np.float64],
    *,
    exposure_ratio: float = 1.0,
) -> MirrorContrastEstimate:
    """Estimate the contrast ratio from frames with all mirrors on, all off, and their dark frames.

    Parameters
    ----------
    on, on_dark, off, off_dark : ndarray, shape (n_frames, n_pixels)
        Counts; the dark ones without light, at the exposure of the others. At least two frames each.
    exposure_ratio : float
        Exposure of the frames with all mirrors off over that of those with all on.

    Returns
    -------
    MirrorContrastEstimate
        Of NaN where the mirrors that are on give no light. A background below three standard errors is not seen.

    Notes
    -----
    Dark frames that are 0, or the same count all over, hide where within that count their mean lies. Then it is
    uncertain by `1 / sqrt(12)` DN beside what frames tell. Noise of 0.4 DN or more above a black level shows it.
    """
    bright = on.mean(axis=1) - on_dark.mean()
    faint = off.mean(axis=1) - off_dark.mean()
    bright_dn, faint_dn = float(bright.mean()), float(faint.mean())
    if bright_dn < _DIMMEST_DN:
        return _UNKNOWN
    bright_error = math.hypot(_joint_error(bright, on_dark.mean(axis=1)), _hidden_dn(on_dark))
    faint_error = math.hypot(_joint_error(faint, off_dark.mean(axis=1)), _hidden_dn(off_dark))
    if faint_dn <= 3 * faint_error:
        largest_dn = max(faint_dn, 0.0) + 1.96 * faint_error
        return MirrorContrastEstimate(exposure_ratio * bright_dn / largest_dn, math.nan, True, math.nan, math.nan)
    contrast = exposure_ratio * bright_dn / faint_dn
    error = contrast * math.hypot(bright_error / bright_dn, faint_error / faint_dn)
    coherence, coherence_error = _common_speckle(on - on_dark.mean(axis=0), off - off_dark.mean(axis=0))
    return MirrorContrastEstimate(contrast, error, False, coherence, coherence_error)


def _joint_error(lit: NDArray[np.float64], dark: NDArray[np.float64]) -> float:
    """Return the standard error of the difference of two means, for Student's factor of both together.

    Their degrees of freedom are those of Welch and Satterthwaite: to stretch each error by a factor of its own would be
    too much.
    """
    squares = [float(frames.var(ddof=1)) / len(frames) for frames in (lit, dark)]
    spread = sum(square**2 / (len(frames) - 1) for square, frames in zip(squares, (lit, dark), strict=True))
    if spread == 0:
        return 0.0
    return math.sqrt(sum(squares)) * student_factor(1 + sum(squares) ** 2 / spread)


def _hidden_dn(dark: NDArray[np.float64]) -> float:
    """Return what rounding and a black level of 0 hide of the mean of dark frames, as a standard deviation."""
    is_open = np.sqrt(dark.var(axis=0, ddof=1).mean()) >= _DITHER_DN and (dark == 0).mean() < 0.01
    return 0.0 if is_open else _HIDDEN_DN


def _common_speckle(on: NDArray[np.float64], off: NDArray[np.float64]) -> tuple[float, float]:
    """Return the correlation of two speckles, noise removed: each is taken from halves of its frames.

    The standard error is that of a correlation of as many values as there are pixels, at the most.
    """
    halves = [(frames[::2].mean(axis=0), frames[1::2].mean(axis=0)) for frames in (on, off)]
    halves = [(one - one.mean(), other - other.mean()) for one, other in halves]
    power = [float((one * other).mean()) for one, other in halves]
    if min(power) <= 0:
        return math.nan, math.nan
    (on_one, on_other), (off_one, off_other) = halves
    common = float(((on_one + on_other) * (off_one + off_other)).mean()) / 4
    coherence = common / math.sqrt(power[0] * power[1])
    return coherence, (1 - min(coherence**2, 1.0)) / math.sqrt(on.shape[1])


def dmd_contrast(
    device: Device, *, noise_key: int = 0, n_frames: int = 16, side_px: int = SIDE_PX
) -> CalibrationResult:
    """Measure the contrast ratio of the mirrors: light of those that are on over that of those that are off.

    Frames with all mirrors off and the light *on*, at an exposure that is as long as their light needs, are compared
    with frames with all mirrors on; both less dark frames of their exposure.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    n_frames : int
        Of each of the four kinds, at least 4.
    side_px : int
        Side of the region in the middle of the camera.

    Returns
    -------
    CalibrationResult
        The contrast ratio; passes from 300 on. A lower bound, with an uncertainty of NaN, where nothing was seen of
        mirrors that are off. `quantities`: `background`, the share of the light of all mirrors that is there when all
        are off, `1 / CR`; `background_coherence`, the correlation of its speckle with that of all mirrors on;
        `correlation_2_percent`, what remains of the correlation with ideal frames where 2 % of the mirrors are on.
        `data`: `on` and `off`, mean images in DN, and `exposure_us` of both. NaN without light, and with light that
        the camera cuts off.

    Raises
    ------
    UnsupportedError
        The device cannot switch its light off, or has fewer than 24 mirrors.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.mirrors import dmd_contrast
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = dmd_contrast(device)
    >>> result.value > 10_000, result.passed
    (True, True)
    """
    if n_frames < 4:
        raise ConfigError(f"{n_frames} frames of each kind are asked for.", "Use at least 4.")
    recorder = Recorder(device, noise_key=noise_key)
    require_dark(recorder.description)
    region = central_region(recorder.description, side_px)
    n_features, _ = probe_size(recorder.description)
    start = recorder.config(n_features, region.height * region.width, region=region)
    all_on, all_off = np.ones((n_frames, n_features), np.bool_), np.zeros((n_frames, n_features), np.bool_)
    bright = recorder.expose(start, all_on[:2], target_fraction=SPECKLE_FRACTION)
    faint = recorder.expose(bright, all_off[:2], target_fraction=SPECKLE_FRACTION)
    frames = [
        recorder.take(config, patterns).frames.astype(np.float64)
        for config, patterns in (
            (bright, all_on),
            (without_light(bright), all_off),
            (faint, all_off),
            (without_light(faint), all_off),
        )
    ]
    exposures_us = [_exposure_us(config) for config in (bright, faint)]
    gains = [10 ** (config.gain_db / 20) for config in (bright, faint)]
    ratio = exposures_us[1] * gains[1] / (exposures_us[0] * gains[0])
    seen = judge_light(frames[0].mean(axis=0, keepdims=True), frames[1], recorder.description)
    found = _UNKNOWN
    if seen.is_measurable:
        found = estimate_mirror_contrast(*(part[:, seen.working] for part in frames), exposure_ratio=ratio)
    images = [(lit - dark.mean(axis=0)).mean(axis=0) for lit, dark in (frames[:2], frames[2:])]
    share = 1 / found.contrast
    bound = ": at least this" if found.is_bound else ""
    return recorder.result(
        "dmd_contrast",
        f"contrast ratio of the mirrors{bound}",
        found.contrast,
        "1",
        found.contrast_error,
        limit=(_LOWEST_CONTRAST, None),
        quantities={
            "background": quantity(
                share,
                share * found.contrast_error / found.contrast,
                "1",
                f"light of all mirrors off over that of all on{': at most this' if bound else ''}",
            ),
            "background_coherence": quantity(
                found.coherence,
                found.coherence_error,
                "1",
                "correlation of the background with the light of all mirrors",
            ),
            "correlation_2_percent": quantity(
                _correlation(found.contrast, 0.02), math.nan, "1", f"with ideal frames at 2 % of mirrors on{bound}"
            ),
        },
        findings=[*seen.findings, *(_findings(found) if seen.is_measurable else ())],
        data={
            "on": images[0].reshape(region.height, region.width).astype(np.float32),
            "off": images[1].reshape(region.height, region.width).astype(np.float32),
            "exposure_us": np.array(exposures_us),
        },
    )


def _exposure_us(config: SessionConfig) -> float:
    if config.exposure_us is None:
        raise ValueError("the exposure was not chosen")
    return config.exposure_us


def _correlation(contrast: float, share_on: float) -> float:
    """Return the correlation of a frame with one of infinite contrast: `1 / (1 + (1 / f - 1) / CR)`."""
    return 1 / (1 + (1 / share_on - 1) / contrast)


def _findings(found: MirrorContrastEstimate) -> list[str]:
    if math.isnan(found.contrast):
        return ["The camera sees no light with all mirrors on. Check laser, shutter, mirrors and camera."]
    if found.contrast >= _LOWEST_CONTRAST:
        return []
    if found.is_bound:
        return [
            f"The light is too weak to tell: the contrast of the mirrors is at least {found.contrast:.0f}, and more "
            "cannot be seen at the longest exposure."
        ]
    origin = (
        "it has the speckle of the mirrors, which are off without being dark"
        if found.coherence > 0.5
        else "it has another speckle than the mirrors: stray light, which takes another way"
    )
    return [
        f"The contrast of the mirrors is low, {found.contrast:.0f}: with all of them off {1 / found.contrast:.2%} of "
        f"the light is left, and {origin}. Frames of sparse patterns have a correlation of "
        f"{_correlation(found.contrast, 0.02):.2f} with what they should be at 2 % of the mirrors on."
    ]
