"""The exposure time and the gain that suit speckle.

Fully developed speckle has an exponential intensity distribution, so a fraction `exp(-full_scale / mean)` of the
pixels saturates. A mean of a ninth of full scale (a fraction of 1.2e-4) is where an 8-bit camera follows the true
intensity best: brighter loses the peaks to saturation, darker loses the rest to quantisation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from opu.device import Device, DeviceDescription, Projection, SessionConfig
    from opu.patterns import PackedPatterns

__all__ = ["TARGET_FRACTION", "choose_exposure"]

TARGET_FRACTION = 1 / 9
_MAX_ROUNDS = 6
_LARGEST_STEP = 16.0
# Within this factor of the target the answer is computed, and not measured again.
_CLOSE = 1.25
_SATURATED = 0.02


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

    Intensity above the black level is proportional to the exposure time, so one measurement near the target tells the
    answer. Where many pixels saturate, the mean follows from how many, as the intensity is exponentially distributed.
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
        The wanted mean above the black level, as a fraction of full scale.
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
    target_dn = target_fraction * (description.full_scale_dn - description.black_level_dn)
    start_gain_db = config.gain_db
    config = _brighter(config, 1.0, start_gain_db, description)
    n_frames = 0
    for _ in range(_MAX_ROUNDS):
        with device.open_session(config) as session:
            projection = session.project(patterns, first_frame_index=first_frame_index + n_frames)
        on_projection(projection)
        n_frames += len(patterns)
        factor = float(np.clip(target_dn / _mean_dn(projection.frames, description), 1 / _LARGEST_STEP, _LARGEST_STEP))
        before, config = config, _brighter(config, factor, start_gain_db, description)
        if config == before or 1 / _CLOSE <= factor <= _CLOSE:
            break
    return config, n_frames


def _mean_dn(frames: NDArray[Any], description: DeviceDescription) -> float:
    """Estimate the mean of the light above the black level, positive, from frames that may saturate."""
    full_scale, black = description.full_scale_dn, description.black_level_dn
    full = frames >= full_scale
    stuck = full.all(axis=0)
    if stuck.mean() > 0.5:
        return math.inf
    saturated = float(full[:, ~stuck].mean())
    if saturated > _SATURATED:
        return (full_scale - black) / -math.log(saturated)
    return max(float(frames[:, ~stuck].mean(dtype=np.float64)) - black, 1e-9)


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
