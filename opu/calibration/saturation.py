"""How much of it counts as saturation, how it is seen, and saturation in words.

A camera that saturates shows a *plateau*: many values at the highest one, and few just below. Speckle that is not cut
off thins out towards its highest value. So a full well below full scale is seen as well as full scale itself. Here the
values are the means of frames that repeat, whatever their exposure. `opu.exposure.Saturation` looks at single frames,
where noise blurs a plateau, and at those of a search, most of which may be full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SATURATED_SHARE", "SATURATED_SPECKLE", "saturated_share", "saturation_finding"]

SATURATED_SHARE = 0.005
"""Where more of the values saturate, frames follow the true intensities with a correlation below 0.995."""

SATURATED_SPECKLE = 1e-3
"""What statistics of the speckle bear: its brightest values weigh most there, and 0.5 % of them take 2 % of the
contrast."""

_AT_FULL_SCALE = 0.97
_PLATEAU = 0.03
_FEWEST_ON_PLATEAU = 10
_DIMMEST_DN = 1.0


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
