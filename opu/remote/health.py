"""Whether a server is well, judged by its signs of life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opu.remote.counters import Vitals

__all__ = ["HealthLimits", "find_fault"]


@dataclass(frozen=True)
class HealthLimits:
    """What still counts as well.

    Parameters
    ----------
    beat_s : float
        Seconds that the loop of the server may take to go round once. It takes a quarter of one at most, but for a
        machine that is short of processors.
    device_s : float
        Seconds that the device may work without an answer. It must be longer than the largest batch takes.
    """

    beat_s: float = 5.0
    device_s: float = 300.0


def find_fault(vitals: Vitals, limits: HealthLimits | None = None) -> str | None:
    """Tell why a server is not well.

    Parameters
    ----------
    vitals : Vitals
        Its signs of life.
    limits : HealthLimits, optional
        What still counts as well.

    Returns
    -------
    str or None
        The reason, in one line; None if it is well.

    Examples
    --------
    >>> from opu.remote.counters import Vitals
    >>> find_fault(Vitals(beat_age_s=0.1, device_s=None, draining=False)) is None
    True
    >>> find_fault(Vitals(beat_age_s=9.0, device_s=None, draining=False))
    'the loop of the server has not gone round for 9 s'
    """
    limits = limits or HealthLimits()
    if vitals.draining:
        return "the server is being stopped"
    if vitals.beat_age_s > limits.beat_s:
        return f"the loop of the server has not gone round for {vitals.beat_age_s:.0f} s"
    if vitals.device_s is not None and vitals.device_s > limits.device_s:
        return f"the device has not answered for {vitals.device_s:.0f} s"
    return None
