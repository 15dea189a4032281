"""What routines that measure light ask first: of the device a light to switch off, of its frames that none are cut off.

A camera that saturates shows a *plateau*: many values at the highest one, and few just below. Speckle that is not cut
off thins out towards its highest value. So a full well below full scale is seen as well as full scale itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.faults import stuck_finding, stuck_pixels
from opu.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import DeviceDescription

__all__ = [
    "FEWEST_LIT",
    "PROBE_FEATURES",
    "SATURATED",
    "SeenLight",
    "judge_light",
    "probe_size",
    "require_dark",
    "saturated_share",
]

SATURATED = 1e-3
"""The share of saturated values from which on they are a fault."""

PROBE_FEATURES = 64
FEWEST_LIT = 64
"""Lit mirrors from which on speckle is fully developed, whatever the medium."""

_FEWEST_PATTERNS = 3
_FEWEST_MIRRORS = 24
_PLATEAU = 0.03
_FEWEST_ON_PLATEAU = 10
_DIMMEST_DN = 1.0


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


def saturated_share(light_dn: NDArray[np.float64]) -> float:
    """Return the share of the values on a plateau at the highest one; 0 where there is none, or no light.

    Parameters
    ----------
    light_dn : ndarray, shape (n_speckles, n_pixels)
        Each speckle once: frames that repeat are averaged before. Above the dark level, in DN.

    Notes
    -----
    A plateau has at least 10 values, within 3 % of the highest or a count of it, and more than the band twice as wide
    below. Of exponential intensities with a mean of a ninth of the highest one, a fifth as many are there as below.

    Examples
    --------
    >>> speckle = 20 * np.random.default_rng(0).standard_exponential((4, 4096))
    >>> saturated_share(speckle), round(saturated_share(np.minimum(speckle, 60)), 2)
    (0.0, 0.05)
    """
    if light_dn.size == 0 or light_dn.mean() < _DIMMEST_DN:
        return 0.0
    highest = float(light_dn.max())
    width = max(_PLATEAU * highest, 1.0)
    on_plateau = int((light_dn > highest - width).sum())
    below = int((light_dn > highest - 3 * width).sum()) - on_plateau
    return on_plateau / light_dn.size if on_plateau >= _FEWEST_ON_PLATEAU and on_plateau > below else 0.0


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
        return bool(self.working.any()) and self.saturated_share <= SATURATED


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
    if share > SATURATED:
        where = "full scale" if highest_dn >= full_scale_dn - 1 else "where their wells are full"
        findings.append(
            f"{share:.1%} of the values are at {highest_dn:.4g} DN, {where}: the frames are saturated. Use less light, "
            "a shorter exposure or a lower gain."
        )
    return SeenLight(working, share, highest_dn, tuple(findings))
