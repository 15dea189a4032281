"""Whether the calibration is right: every routine on simulated benches whose truth is known.

`python -m benchmarks.calibration --json` prints what each routine measured beside its limit, and
`python -m benchmarks.calibration.coverage --json` how often the stated intervals cover the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.calibration import camera, linear, matrix, matrix_use, report, speckle, timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.calibration.cases import Check, Estimate

__all__ = ["CASES", "ESTIMATES"]

_MODULES = (camera, speckle, timing, linear, matrix, matrix_use, report)

CASES: dict[str, Callable[[int], dict[str, Check]]] = {
    name: case for module in _MODULES for name, case in module.CASES.items()
}
"""The cases by name: each is a function of a seed."""

ESTIMATES: dict[str, Callable[[int], Estimate]] = {
    name: case for module in _MODULES for name, case in module.ESTIMATES.items()
}
"""The scalar estimators whose stated intervals are compared with the truth: each is a function of a seed."""
