"""Calibration and throughput: whether to believe a device, and how fast it is.

Everything here works through the device contract alone, so it runs unchanged on the simulator, over the link and on a
bench.
"""

from opu.calibration.report import Change, HealthReport, check_health, compare, read_report
from opu.calibration.result import CalibrationResult, Quantity
from opu.calibration.routines import (
    dark_level,
    exposure,
    linearity,
    repeat_correlation,
    speckle_contrast,
)
from opu.calibration.suite import ROUTINES, calibrate
from opu.calibration.throughput import LinkCost, Shape, Throughput, measure_in_turns, measure_throughput

__all__ = [
    "ROUTINES",
    "CalibrationResult",
    "Change",
    "HealthReport",
    "LinkCost",
    "Quantity",
    "Shape",
    "Throughput",
    "calibrate",
    "check_health",
    "compare",
    "dark_level",
    "exposure",
    "linearity",
    "measure_in_turns",
    "measure_throughput",
    "read_report",
    "repeat_correlation",
    "speckle_contrast",
]
