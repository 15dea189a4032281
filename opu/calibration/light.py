"""What routines that measure light ask first: a light that can be switched off, and frames that are not cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.faults import stuck_finding, stuck_pixels
from opu.calibration.saturation import SATURATED_SPECKLE, saturated_share
from opu.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import DeviceDescription

__all__ = [
    "FEWEST_LIT",
    "PROBE_FEATURES",
    "SeenLight",
    "judge_light",
    "probe_size",
    "require_dark",
]

PROBE_FEATURES = 64
FEWEST_LIT = 64
"""Lit mirrors from which on speckle is fully developed, whatever the medium."""

_FEWEST_PATTERNS = 3
_FEWEST_MIRRORS = 24


def require_dark(description: DeviceDescription) -> None:
    """Refuse a device whose light stays on.

    Raises
    ------
    UnsupportedError
        The device cannot switch its light off, or has no light that could be on.
    """
    if "off" not in description.light:
        raise UnsupportedError(
            f"The device {description.device_id} cannot switch its light off.", "Measure its dark frames by hand."
        )


def probe_size(description: DeviceDescription, n_patterns: int = _FEWEST_PATTERNS) -> tuple[int, int]:
    """Return the number of features of a probe and of its disjoint patterns, as far as the mirrors go.

    There is a pattern for every 64 mirrors at most, so that its speckle is fully developed, and three at least. There
    are 64 features, or one for each mirror.

    Raises
    ------
    UnsupportedError
        The device has fewer than 24 mirrors.
    """
    if description.n_mirrors < _FEWEST_MIRRORS:
        raise UnsupportedError(
            f"The device {description.device_id} has {description.n_mirrors} mirrors: too few to make speckle.",
            f"Use a device of at least {_FEWEST_MIRRORS} mirrors.",
        )
    most = max(description.n_mirrors // FEWEST_LIT, _FEWEST_PATTERNS)
    return min(PROBE_FEATURES, description.n_mirrors), min(n_patterns, most)


@dataclass(frozen=True, eq=False)
class SeenLight:
    """What is wrong with light and camera, before anything is computed.

    Parameters
    ----------
    working : ndarray of bool, shape (n_pixels,)
        The pixels that are not stuck at full scale.
    saturated_share : float
        Share of the values of these that are saturated, of the counts or of the full well.
    highest_dn : float
        The highest value of these.
    findings : tuple of str
        Stuck pixels and saturation in words.
    """

    working: NDArray[np.bool_]
    saturated_share: float
    highest_dn: float
    findings: tuple[str, ...]

    @property
    def is_measurable(self) -> bool:
        """Whether pixels are left, and the light is not cut off."""
        return bool(self.working.any()) and self.saturated_share <= SATURATED_SPECKLE


def judge_light(lit: NDArray[Any], dark: NDArray[Any] | None, description: DeviceDescription) -> SeenLight:
    """Look for stuck pixels and saturation.

    Parameters
    ----------
    lit : ndarray, shape (n_speckles, n_pixels)
        Counts, each speckle once: the mean of its frames.
    dark : ndarray, shape (n_dark, n_pixels), or None
        Counts without light; None on a device whose light stays on, which needs several independent speckles.
    description : DeviceDescription
        Of the device.
    """
    full_scale_dn = description.full_scale_dn
    working = ~stuck_pixels(lit if dark is None else dark, full_scale_dn)
    findings = stuck_finding(1.0 - float(working.mean()))
    if not working.any():
        return SeenLight(working, 1.0, full_scale_dn, tuple(findings))
    seen = np.asarray(lit, np.float64)[:, working]
    dark_dn = description.black_level_dn if dark is None else float(dark[:, working].mean(dtype=np.float64))
    share, highest_dn = saturated_share(seen - dark_dn), float(seen.max())
    if share > SATURATED_SPECKLE:
        where = "full scale" if highest_dn >= full_scale_dn - 1 else "where their wells are full"
        findings.append(
            f"{share:.1%} of the values are at {highest_dn:.4g} DN, {where}: the frames are saturated. Use less light, "
            "a shorter exposure or a lower gain."
        )
    return SeenLight(working, share, highest_dn, tuple(findings))
