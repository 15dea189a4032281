"""The exposure time that suits speckle.

Fully developed speckle has an exponential intensity distribution, so a fraction `exp(-full_scale / mean)` of the
pixels saturates. A mean of a ninth of full scale (a fraction of 1.2e-4) is where an 8-bit camera follows the true
intensity best: brighter loses the peaks to saturation, darker loses the rest to quantisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from opu.device import Device, Projection, SessionConfig
    from opu.patterns import PackedPatterns

__all__ = ["TARGET_FRACTION", "choose_exposure"]

TARGET_FRACTION = 1 / 9
_MAX_ROUNDS = 6


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

    Intensity above the black level is proportional to the exposure time, so one measurement tells the answer,
    unless many pixels saturate: then the time is cut to a quarter and measured again.

    Parameters
    ----------
    device : Device
        The device.
    config : SessionConfig
        The session to tune; its own exposure is where the search starts.
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
        The configuration with the exposure set (at a limit of the device where the target is out of reach), and
        the number of frames that were measured, with consecutive frame numbers.
    """
    description = device.describe()
    limits = description.exposure_us
    target_dn = target_fraction * (description.full_scale_dn - description.black_level_dn)
    exposure_us = limits.default if config.exposure_us is None else config.exposure_us
    n_frames = 0
    for _ in range(_MAX_ROUNDS):
        config = msgspec.structs.replace(
            config, exposure_us=float(np.clip(exposure_us, limits.minimum, limits.maximum))
        )
        with device.open_session(config) as session:
            projection = session.project(patterns, first_frame_index=first_frame_index + n_frames)
        on_projection(projection)
        n_frames += len(patterns)
        mean_dn = float(projection.frames.mean(dtype=np.float64)) - description.black_level_dn
        exposure_us = float(config.exposure_us or limits.default)
        if projection.provenance.saturated_fraction > 0.02:
            exposure_us /= 4
        elif mean_dn <= 0.02 * target_dn:
            exposure_us *= 16
        elif abs(mean_dn / target_dn - 1) < 0.05:
            break
        else:
            exposure_us *= target_dn / mean_dn
        if not limits.minimum <= exposure_us <= limits.maximum and config.exposure_us in (
            limits.minimum,
            limits.maximum,
        ):
            break
    return config, n_frames
