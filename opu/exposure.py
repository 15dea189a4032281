"""The exposure time and the gain that suit speckle.

Fully developed speckle has an exponential intensity distribution, so a fraction `exp(-full_scale / mean)` of the
pixels saturates. A mean of a ninth of full scale (a fraction of 1.2e-4) is where an 8-bit camera follows the true
intensity best: brighter loses the peaks to saturation, darker loses the rest to quantisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.device import NO_REFERENCE
from opu.patterns import PackedPatterns

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from opu.device import Device, DeviceDescription, Projection, SessionConfig

__all__ = ["TARGET_FRACTION", "Saturation", "choose_exposure"]

TARGET_FRACTION = 1 / 9
_MAX_ROUNDS = 6
_LARGEST_STEP = 16.0
# Within this factor of the target the answer is computed, and not measured again.
_CLOSE = 1.25
_SATURATED = 0.02
# A full well shows as many values around one count, and few just below: exponential ones are the more, the darker.
_FULL_WELL_SHARE = 1e-3
_FULL_WELL_PIXELS = 64
_DIMMEST_FULL_WELL_DN = 20.0


def choose_exposure(
    device: Device,
    config: SessionConfig,
    patterns: PackedPatterns,
    *,
    target_fraction: float = TARGET_FRACTION,
    first_frame_index: int = 0,
    on_projection: Callable[[Projection], None] = lambda _: None,
) -> tuple[SessionConfig, int]:
    """Find the exposure time at which patterns give a wanted mean intensity.

    Intensity above darkness is proportional to the exposure time, so one measurement near the target tells the answer.
    Darkness is as many frames with the light off at the same exposure, or the black level that the device states where
    its light stays on. Where many pixels saturate, at full scale or below (see `Saturation`), the mean follows from how
    many, as the intensity is exponentially distributed.
    Pixels at full scale in every frame are stuck rather than bright, and are left out, unless they are the majority.
    Where the longest exposure is too dark, the gain is raised.

    Parameters
    ----------
    device : Device
        The device.
    config : SessionConfig
        The session to tune; its own exposure and gain are where the search starts.
    patterns : PackedPatterns
        Patterns as bright as the brightest that will be used.
    target_fraction : float
        The wanted mean above darkness, as a fraction of what is left to full scale.
    first_frame_index : int
        The number of the first frame that is measured.
    on_projection : callable, optional
        Called with everything that is measured.

    Returns
    -------
    tuple of (SessionConfig, int)
        The configuration with exposure and gain set (at a limit of the device where the target is out of reach), and
        the number of frames that were measured, with consecutive frame numbers.
    """
    description = device.describe()
    start_gain_db = config.gain_db
    config = _brighter(config, 1.0, start_gain_db, description)
    blank = PackedPatterns(np.zeros_like(patterns.bits), patterns.n_features)
    n_frames = 0
    for _ in range(_MAX_ROUNDS):
        takes = [(config, patterns)]
        if "off" in description.light:
            takes.append((msgspec.structs.replace(config, light="off", reference=NO_REFERENCE), blank))
        taken = []
        for exposed, shown in takes:
            with device.open_session(exposed) as session:
                projection = session.project(shown, first_frame_index=first_frame_index + n_frames)
            on_projection(projection)
            n_frames += len(shown)
            taken.append(projection.frames)
        dark_dn = _dark_dn(taken[1], description) if len(taken) > 1 else description.black_level_dn
        target_dn = target_fraction * (description.full_scale_dn - dark_dn)
        mean_dn = _mean_dn(taken[0], dark_dn, description.full_scale_dn)
        factor = float(np.clip(target_dn / mean_dn, 1 / _LARGEST_STEP, _LARGEST_STEP))
        before, config = config, _brighter(config, factor, start_gain_db, description)
        if config == before or 1 / _CLOSE <= factor <= _CLOSE:
            break
    return config, n_frames


@dataclass(frozen=True, eq=False)
class Saturation:
    """Where pixels are full: at full scale, or below it where the full well is smaller than the range of the counts.

    Parameters
    ----------
    count_dn : float
        The count of a full pixel.
    is_full : ndarray of bool
        Which values are there, of the shape of the frames.
    """

    count_dn: float
    is_full: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Share of the values that are full; NaN without any."""
        return float(self.is_full.mean()) if self.is_full.size else math.nan

    @classmethod
    def of(cls, frames: NDArray[Any], dark_dn: float, full_scale_dn: float) -> Saturation:
        """Find where the pixels of frames of speckle are full.

        The count that 0.1 % of the values reach is that of full wells, if at least 64 pixels, more than a few grains,
        are within 3 % of it, and twice as many values as between 90 and 97 %. Speckle that is not cut off has fewer.
        Below 20 DN above darkness a count is too coarse to say.

        Parameters
        ----------
        frames : ndarray, shape (n_frames, n_outputs)
            Counts, without stuck pixels.
        dark_dn, full_scale_dn : float
            Counts without light, and the largest count.

        Examples
        --------
        >>> speckle = np.random.default_rng(0).exponential(28, (4, 4000)).round()
        >>> Saturation.of(speckle, 0.0, 255).count_dn
        255.0
        >>> full = Saturation.of(speckle.clip(max=76), 0.0, 255)
        >>> full.count_dn, round(full.share, 3)
        (76.0, 0.072)
        """
        full_scale = cls(float(full_scale_dn), np.asarray(frames >= full_scale_dn))
        light_dn = float(np.quantile(frames, 1 - _FULL_WELL_SHARE)) - dark_dn if frames.size else 0.0
        if light_dn < _DIMMEST_FULL_WELL_DN:
            return full_scale
        is_full = frames >= dark_dn + 0.97 * light_dn
        is_top = is_full & (frames <= dark_dn + 1.03 * light_dn)
        n_below = np.count_nonzero(frames >= dark_dn + 0.9 * light_dn) - np.count_nonzero(is_full)
        if np.count_nonzero(is_top.any(axis=0)) < _FULL_WELL_PIXELS or np.count_nonzero(is_top) <= 2 * n_below:
            return full_scale
        count_dn = dark_dn + light_dn
        return full_scale if count_dn >= full_scale_dn else cls(count_dn, is_full)


def _dark_dn(dark: NDArray[Any], description: DeviceDescription) -> float:
    """Return the mean of dark frames, without values at full scale: stuck pixels."""
    seeing = dark[dark < description.full_scale_dn]
    return float(seeing.mean(dtype=np.float64)) if seeing.size else description.black_level_dn


def _mean_dn(frames: NDArray[Any], dark_dn: float, full_scale_dn: float) -> float:
    """Estimate the mean of the light above darkness, positive, from frames that may saturate."""
    stuck = (frames >= full_scale_dn).all(axis=0)
    if stuck.mean() > 0.5:
        return math.inf
    seeing = frames[:, ~stuck]
    saturation = Saturation.of(seeing, dark_dn, full_scale_dn)
    if saturation.share == 1:
        return math.inf
    if saturation.share > _SATURATED:
        return (saturation.count_dn - dark_dn) / -math.log(saturation.share)
    return max(float(seeing.mean(dtype=np.float64)) - dark_dn, 1e-9)


def _brighter(
    config: SessionConfig, factor: float, start_gain_db: float, description: DeviceDescription
) -> SessionConfig:
    """Return a configuration that is brighter by a factor: by the exposure, and by the gain beyond its limits."""
    limits, gains = description.exposure_us, description.gain_db
    now_us = limits.default if config.exposure_us is None else config.exposure_us
    wanted_us = now_us * factor * 10 ** ((config.gain_db - start_gain_db) / 20)
    exposure_us = float(np.clip(wanted_us, limits.minimum, limits.maximum))
    gain_db = start_gain_db + 20 * math.log10(wanted_us / exposure_us)
    return msgspec.structs.replace(
        config, exposure_us=exposure_us, gain_db=float(np.clip(gain_db, gains.minimum, gains.maximum))
    )
