"""What a calibration routine answers."""

from __future__ import annotations

import msgspec

__all__ = ["CalibrationResult"]


class CalibrationResult(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number and whether it is good enough.

    `uncertainty` is one standard error, in the unit of the value. `limit` is the range in which the value passes;
    None on either side is no limit. `frames` and `seconds` (wall clock) are what it cost.
    """

    name: str
    summary: str
    value: float
    unit: str
    uncertainty: float
    limit: tuple[float | None, float | None]
    frames: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN never is."""
        low, high = self.limit
        return (low is None or self.value >= low) and (high is None or self.value <= high) and self.value == self.value

    def as_json(self) -> dict[str, object]:
        """Return the fields that reports carry, `passed` among them."""
        fields = {name: getattr(self, name) for name in ("value", "unit", "uncertainty", "limit", "frames", "seconds")}
        return {**fields, "passed": self.passed, "summary": self.summary}
