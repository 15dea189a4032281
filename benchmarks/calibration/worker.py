"""What the processes of the calibration benchmark run: a module that they can import by its name."""

from __future__ import annotations

import time

from benchmarks.calibration import CASES, ESTIMATES

__all__ = ["run_case", "run_estimate"]


def run_case(name, seed):
    """Run a case with a seed, and return its checks and how long it took."""
    started_s = time.perf_counter()
    checks = CASES[name](seed)
    return checks, time.perf_counter() - started_s


def run_estimate(name, seed):
    """Run an estimator with a seed."""
    return ESTIMATES[name](seed)
