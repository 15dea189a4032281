"""Saturation in words, for routines whose own patterns say how much of it is usual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.light import saturated_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["saturation_finding"]

_AT_FULL_SCALE = 0.97


def saturation_finding(light_dn: NDArray[np.floating[Any]], range_dn: float, *, largest_share: float) -> list[str]:
    """Word that frames are saturated; nothing where few values are.

    Parameters
    ----------
    light_dn : ndarray, shape (n_patterns, n_pixels)
        Above the dark level, in DN; each pattern once.
    range_dn : float
        Full scale above the dark level.
    largest_share : float
        The share of saturated values that these patterns may have.

    Examples
    --------
    >>> speckle = 20 * np.random.default_rng(0).standard_exponential((4, 4096))
    >>> saturation_finding(speckle, 255, largest_share=0.01)
    []
    >>> [finding] = saturation_finding(np.minimum(speckle, 60), 255, largest_share=0.01)
    >>> "of the values are saturated, 60 DN above the dark level" in finding
    True
    """
    share, highest_dn = saturated_share(np.asarray(light_dn, np.float64)), float(light_dn.max(initial=0.0))
    if share <= largest_share:
        return []
    where = "at full scale" if highest_dn > _AT_FULL_SCALE * range_dn else "where the wells of the pixels are full"
    return [
        f"{share:.1%} of the values are saturated, {highest_dn:.3g} DN above the dark level, {where}. Use less light, "
        "a shorter exposure or a lower gain."
    ]
