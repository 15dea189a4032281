"""What a calibration routine answers."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from numpy.typing import NDArray

from opu.device import Provenance

__all__ = ["CalibrationResult", "Limit", "Quantity", "is_within"]

Limit = tuple[float | None, float | None]
"""The range in which a value passes; None on either side is no limit."""

_STANDARD_ERRORS = 1.96


def is_within(value: float, limit: Limit) -> bool:
    """Whether a value is within a limit; NaN never is."""
    low, high = limit
    return not math.isnan(value) and (low is None or value >= low) and (high is None or value <= high)


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """A measured number.

    Parameters
    ----------
    value : float
        NaN where it could not be measured.
    unit : str
        Its unit, `1` for a number without.
    uncertainty : float
        One standard error, in the unit of the value; NaN where it is unknown.
    limit : tuple
        The range in which the value passes; None on either side is no limit.
    summary : str
        What it is, in a few words.
    is_setting : bool
        Whether it was set and not measured, as a gain: it has no standard error, and reports tell when it changes.
    """

    value: float
    unit: str
    uncertainty: float
    limit: Limit = (None, None)
    summary: str
    is_setting: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit. One without any limit informs and always passes."""
        return self.limit == (None, None) or is_within(self.value, self.limit)

    @property
    def interval(self) -> tuple[float, float]:
        """The range that covers the true value with a probability of 95 %: 1.96 standard errors on either side."""
        half = _STANDARD_ERRORS * self.uncertainty
        return (self.value - half, self.value + half)

    def as_json(self) -> dict[str, object]:
        """Return the fields and `passed`, as reports carry them. JSON knows no NaN: such a number is null."""
        numbers = {name: _json_number(getattr(self, name)) for name in ("value", "uncertainty")}
        return {
            **numbers,
            "unit": self.unit,
            "limit": self.limit,
            "passed": self.passed,
            "summary": self.summary,
            "is_setting": self.is_setting,
        }


class CalibrationResult(Quantity, frozen=True, kw_only=True):
    """What a routine found: one number that decides, further ones, and faults in words.

    Parameters
    ----------
    name : str
        The routine.
    quantities : dict of str to Quantity
        Further numbers by name.
    findings : tuple of str
        Faults of the device, each a sentence or two for people: what was seen, with its value, and what it points to.
        A device with a finding does not pass.
    frames : int
        Frames that it cost.
    seconds : float
        Wall-clock time that it cost.
    device_s : float
        Device time that it cost.
    data : dict of str to ndarray
        What the numbers were computed from, and curves that one would rather look at.
    provenance : tuple of Provenance
        Where the frames come from, one for each session.
    """

    name: str
    frames: int
    seconds: float
    device_s: float = 0.0
    quantities: dict[str, Quantity] = {}
    findings: tuple[str, ...] = ()
    data: dict[str, NDArray[Any]] = {}
    provenance: tuple[Provenance, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all values are within their limits and no fault was found."""
        return (
            is_within(self.value, self.limit)
            and all(quantity.passed for quantity in self.quantities.values())
            and not self.findings
        )

    def as_json(self) -> dict[str, object]:
        """Return what reports carry: everything but the data."""
        return {
            **Quantity.as_json(self),
            "frames": self.frames,
            "seconds": self.seconds,
            "device_s": self.device_s,
            "quantities": {name: quantity.as_json() for name, quantity in self.quantities.items()},
            "findings": list(self.findings),
            "provenance": msgspec.to_builtins(self.provenance),
        }


def _json_number(value: float) -> float | None:
    """Return a number, or None for one that JSON does not know."""
    return value if math.isfinite(value) else None
