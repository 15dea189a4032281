"""Whether a server is well, judged by its signs of life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opu.remote.protocol import ServerStatus

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


def find_fault(status: ServerStatus, limits: HealthLimits | None = None) -> str | None:
    """Tell why a server is not well.

    Parameters
    ----------
    status : ServerStatus
        What it is doing. Of one that does not count, no more is known than that it answers.
    limits : HealthLimits, optional
        What still counts as well.

    Returns
    -------
    str or None
        The reason, in one line; None if it is well.

    Examples
    --------
    >>> import opu
    >>> from opu.remote.server import OpuServer
    >>> with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
    ...     find_fault(server.snapshot()) is None
    True
    >>> find_fault(server.snapshot())
    'the server is being stopped'
    """
    limits = limits or HealthLimits()
    if status.draining:
        return "the server is being stopped"
    vitals = status.counters.vitals
    beat_age_s, device_s = vitals.beat_age_s, vitals.device_s
    if beat_age_s > limits.beat_s:
        return f"the loop of the server has not gone round for {beat_age_s:.0f} s"
    if device_s is not None and device_s > limits.device_s:
        return f"the device has not answered for {device_s:.0f} s"
    return None
