"""Calibration and throughput: whether to believe a device, and how fast it is.

Everything here works through the device contract alone, so it runs unchanged on the simulator, over the link and on a
bench.
"""

from opu.calibration.applied import CalibratedDevice, Calibration, apply
from opu.calibration.camera import dark_frames, linearity, photon_transfer
from opu.calibration.exposures import exposure, ones_range
from opu.calibration.feedback import feedback
from opu.calibration.focusing import focusing
from opu.calibration.linear import linear_mode
from opu.calibration.matrix import (
    MatrixTracker,
    PhaseRetrieval,
    TransmissionMatrix,
    held_out,
    load,
    measure_transmission_matrix,
    save,
    singular_values,
    tracking,
    transmission_matrix,
)
from opu.calibration.mirrors import dmd_contrast
from opu.calibration.recorder import Recorder
from opu.calibration.report import Change, HealthReport, check_health, compare, read_report
from opu.calibration.result import CalibrationResult, Quantity
from opu.calibration.speckle import grain, speckle_statistics
from opu.calibration.stability import laser_power, repeatability, stability
from opu.calibration.suite import ROUTINES, calibrate
from opu.calibration.throughput import LinkCost, Service, Shape, Throughput, measure_in_turns, measure_throughput
from opu.calibration.trigger import latency, trigger_window

__all__ = [
    "ROUTINES",
    "CalibratedDevice",
    "Calibration",
    "CalibrationResult",
    "Change",
    "HealthReport",
    "LinkCost",
    "MatrixTracker",
    "PhaseRetrieval",
    "Quantity",
    "Recorder",
    "Service",
    "Shape",
    "Throughput",
    "TransmissionMatrix",
    "apply",
    "calibrate",
    "check_health",
    "compare",
    "dark_frames",
    "dmd_contrast",
    "exposure",
    "feedback",
    "focusing",
    "grain",
    "held_out",
    "laser_power",
    "latency",
    "linear_mode",
    "linearity",
    "load",
    "measure_in_turns",
    "measure_throughput",
    "measure_transmission_matrix",
    "ones_range",
    "photon_transfer",
    "read_report",
    "repeatability",
    "save",
    "singular_values",
    "speckle_statistics",
    "stability",
    "tracking",
    "transmission_matrix",
    "trigger_window",
]
