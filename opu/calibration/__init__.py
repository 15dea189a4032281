"""Calibration and throughput: whether to believe a device, and how fast it is.

Everything here works through the device contract alone, so it runs unchanged on the simulator, over the link and on a
bench.
"""

from opu.calibration.result import CalibrationResult
from opu.calibration.routines import (
    ROUTINES,
    calibrate,
    dark_level,
    exposure,
    linearity,
    repeat_correlation,
    speckle_contrast,
)
from opu.calibration.throughput import LinkCost, Shape, Throughput, measure_in_turns, measure_throughput

__all__ = [
    "ROUTINES",
    "CalibrationResult",
    "LinkCost",
    "Shape",
    "Throughput",
    "calibrate",
    "dark_level",
    "exposure",
    "linearity",
    "measure_in_turns",
    "measure_throughput",
    "repeat_correlation",
    "speckle_contrast",
]
