"""What a calibration routine answers."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from numpy.typing import NDArray

from opu.device import Provenance

__all__ = ["CalibrationResult", "Limit", "Quantity", "is_within", "number_text", "short_text"]

Limit = tuple[float | None, float | None]
"""The range in which a value passes; None on either side is no limit."""

_STANDARD_ERRORS = 1.96
_MOST_DECIMALS = 6


def is_within(value: float, limit: Limit) -> bool:
    """Whether a value is within a limit; NaN never is."""
    low, high = limit
    return not math.isnan(value) and (low is None or value >= low) and (high is None or value <= high)


def number_text(value: float, uncertainty: float, unit: str) -> str:
    """Word a number with its standard error, of which two digits are given, and its unit.

    Examples
    --------
    >>> number_text(21.034, 0.02, "DN"), number_text(0.5, float("nan"), "1"), number_text(2047.0, 31.7, "1")
    ('21.034 ± 0.020 DN', '0.5', '2047 ± 32')
    """
    if math.isnan(value):
        return "not measured"
    text = short_text(value)
    if math.isfinite(value) and math.isfinite(uncertainty) and uncertainty > 0:
        decimals = max(0, 1 - math.floor(math.log10(uncertainty)))
        if decimals > _MOST_DECIMALS or abs(value) >= 10**_MOST_DECIMALS:
            text = f"{text} ± {uncertainty:.1g}"
        else:
            text = f"{value:.{decimals}f} ± {uncertainty:.{decimals}f}"
    return f"{text}{'' if unit == '1' else f' {unit}'}"


def short_text(value: float) -> str:
    """Word a number with four digits, and no powers of ten where one can do without.

    Examples
    --------
    >>> short_text(0.123456), short_text(123456.0)
    ('0.1235', '123,456')
    """
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


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

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else f"missed, faults: {len(self.findings)}"
        return f"CalibrationResult({self.name}: {number_text(self.value, self.uncertainty, self.unit)}, {verdict})"

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
