"""The health report: all routines, what they found in words and pictures, and what has changed since an earlier one."""

from opu.calibration.report.comparison import Change, compare, read_report
from opu.calibration.report.health import HealthReport, check_health

__all__ = ["Change", "HealthReport", "check_health", "compare", "read_report"]
