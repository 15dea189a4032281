"""What one would rather look at: a figure for each routine that has something to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opu.calibration.result import CalibrationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

FIGURES: dict[str, Callable[[CalibrationResult], Figure]] = {}
"""How the data of a routine are drawn, by its name."""
