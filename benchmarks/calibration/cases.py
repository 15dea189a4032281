"""What a case of the calibration benchmark is."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Check", "Estimate"]


@dataclass(frozen=True)
class Check:
    """A number that one seed gave, and its limit.

    A case is a function of a seed that returns such checks by name.

    Parameters
    ----------
    value : float
        What was measured, usually an error against the truth of the simulator.
    limit : tuple
        The range in which it passes; None on either side is no limit.
    meaning : str
        What it is.
    uncertainty : float
        One standard error where the routine states one.
    judged : str
        `each`: every seed must pass. `mean`: the mean over the seeds must, for shares and rates.
    """

    value: float
    limit: tuple[float | None, float | None]
    meaning: str
    uncertainty: float = math.nan
    judged: str = "each"


@dataclass(frozen=True)
class Estimate:
    """What a routine stated for one seed, and the truth."""

    value: float
    uncertainty: float
    truth: float
