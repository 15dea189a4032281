"""Faults of a camera and its light that any routine may meet, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.saturation import SATURATED_SHARE
from opu.exposure import Saturation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import DeviceDescription

__all__ = ["STUCK_SHARE", "full_well_finding", "light_faults", "stuck_finding", "stuck_pixels"]

STUCK_SHARE = 1e-3
"""The share of stuck pixels from which on they are a fault."""

# Light that reaches less than this share of the wanted mean, at the longest exposure, is none.
_NO_LIGHT_SHARE = 0.01


def stuck_pixels(frames: NDArray[Any], full_scale_dn: float) -> NDArray[np.bool_]:
    """Return which pixels are at full scale in every frame, shape (n_outputs,).

    Parameters
    ----------
    frames : ndarray, shape (n_frames, n_outputs)
        Dark frames, or frames of so many patterns that no pixel is bright in all of them.
    full_scale_dn : float
        The largest count.

    Examples
    --------
    >>> stuck_pixels(np.array([[255, 3, 255], [255, 4, 9]]), 255)
    array([ True, False, False])
    """
    return np.asarray((frames >= full_scale_dn).all(axis=0))


def stuck_finding(share: float) -> list[str]:
    """Word that a share of the pixels is stuck; nothing where it is small.

    Examples
    --------
    >>> stuck_finding(0.021)
    ['2.1 % of the pixels are at full scale in every frame, whatever is shown: saturated (stuck or hot) pixels.']
    """
    if share <= STUCK_SHARE:
        return []
    return [
        f"{100 * share:.2g} % of the pixels are at full scale in every frame, whatever is shown: saturated (stuck or "
        "hot) pixels."
    ]


def full_well_finding(count_dn: float, full_scale_dn: float) -> list[str]:
    """Word that pixels are full below full scale; nothing where that is within 5 % of it.

    Examples
    --------
    >>> full_well_finding(250, 255)
    []
    """
    if count_dn >= 0.95 * full_scale_dn:
        return []
    return [
        f"Pixels are full at {count_dn:.3g} DN and do not reach full scale, {full_scale_dn:g} DN: the full well is "
        "smaller than the range of the counts. Raise the gain of the camera."
    ]


def _saturation_finding(saturation: Saturation, full_scale_dn: float) -> list[str]:
    if not saturation.share > SATURATED_SHARE:
        return []
    return full_well_finding(saturation.count_dn, full_scale_dn) or [
        f"{100 * saturation.share:.2g} % of the values with the light on are at {saturation.count_dn:.4g} DN, where "
        "pixels are full: the frames are overexposed. Use less light, a shorter exposure or a lower gain."
    ]


def light_faults(
    lit: NDArray[Any], dark: NDArray[Any] | None, description: DeviceDescription, *, target_dn: float
) -> list[str]:
    """Name what keeps the camera from seeing light, or from counting it.

    Parameters
    ----------
    lit : ndarray, shape (n_frames, n_outputs)
        Frames with light.
    dark : ndarray, shape (n_dark, n_outputs), or None
        Frames without, at the same exposure; None where the light cannot be switched off.
    description : DeviceDescription
        Of the device.
    target_dn : float
        The mean above darkness that the exposure was chosen for.

    Returns
    -------
    list of str
        Nothing for a camera that sees light, and at most half a percent of whose values saturate.
    """
    full_scale = description.full_scale_dn
    lowest, highest = int(lit.min()), int(lit.max())
    if lowest == highest:
        cause = (
            "The camera is far overexposed, or delivers no picture."
            if highest >= full_scale
            else "The camera delivers no picture, is covered, or no light reaches it: it is dark whatever is shown."
        )
        return [f"Every pixel of {len(lit)} frames with the light on reads {highest} DN. {cause}"]
    sees = lit if dark is None else dark
    stuck = stuck_pixels(sees, full_scale)
    if stuck.all():
        return stuck_finding(1.0)
    faults = stuck_finding(float(stuck.mean())) if dark is not None or len(lit) > 1 else []
    light_dn = float(lit[:, ~stuck].mean(dtype=np.float64))
    dark_dn = description.black_level_dn if dark is None else float(dark[:, ~stuck].mean(dtype=np.float64))
    noise_dn = 0.0 if dark is None else float(dark[:, ~stuck].std(dtype=np.float64)) / math.sqrt(dark[:, ~stuck].size)
    if light_dn - dark_dn < max(_NO_LIGHT_SHARE * target_dn, 5 * noise_dn):
        faults.append(
            f"With the light on the mean is {light_dn:.3g} DN, without light it is {dark_dn:.3g} DN: the light makes "
            "no difference. The laser is off, dead or blocked."
        )
    return faults + _saturation_finding(Saturation.of(lit[:, ~stuck], dark_dn, full_scale), full_scale)
