"""Standard errors of few samples, and the quantities that state them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from opu.calibration.result import Quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.result import Limit

__all__ = ["jackknife_error", "quantity", "standard_error", "student_factor"]


def student_factor(n: float) -> float:
    """Return by how much to stretch the standard error of `n` samples, such that 1.96 of it cover 95 %.

    Few samples know their spread badly. Student's quantile over the normal one, to second order in the degrees of
    freedom (Abramowitz and Stegun 26.7.5).

    Examples
    --------
    >>> round(1.96 * student_factor(6), 2)  # the exact one is 2.57
    2.55
    """
    dof = n - 1
    return 1 + 1.21 / dof + 1.44 / dof**2 if dof > 0 else math.nan


def standard_error(samples: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of independent samples, stretched by `student_factor`.

    Parameters
    ----------
    samples : ndarray, shape (n,)
        NaN for fewer than two.
    """
    n = len(samples)
    return float(np.std(samples, ddof=1)) / math.sqrt(n) * student_factor(n) if n > 1 else math.nan


def jackknife_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of an estimate from its values with one sample left out each."""
    n = len(values)
    return standard_error(values) * (n - 1) if n > 1 else math.nan


def quantity(value: float, uncertainty: float, unit: str, summary: str, limit: Limit = (None, None)) -> Quantity:
    """Return a quantity of numbers of any kind."""
    return Quantity(value=float(value), unit=unit, uncertainty=float(uncertainty), summary=summary, limit=limit)
