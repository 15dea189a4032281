"""All calibration routines by name, and how they are run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opu.calibration.result import CalibrationResult
from opu.calibration.routines import ROUTINES
from opu.errors import ClosedError, ConfigError, OpuError, UnreachableError, UnsupportedError

if TYPE_CHECKING:
    from opu.device import Device

__all__ = ["QUICK", "ROUTINES", "calibrate"]

QUICK: Mapping[str, Mapping[str, Any]] = {}
"""Arguments with which a routine takes as few frames as will do."""


def calibrate(
    device: Device,
    names: list[str] | None = None,
    *,
    quick: bool = False,
    noise_key: int = 0,
    on_result: Callable[[CalibrationResult], None] = lambda _: None,
    on_skip: Callable[[str, str], None] = lambda _name, _reason: None,
) -> list[CalibrationResult]:
    """Run calibration routines.

    Parameters
    ----------
    device : Device
        Any device.
    names : list of str, optional
        Which routines; default: all that apply to the device.
    quick : bool
        Take as few frames as will do.
    noise_key : int
        The noise of the frames.
    on_result : callable, optional
        Called with each result as soon as it is there.
    on_skip : callable, optional
        Called with name and reason of a routine that does not apply to the device, unless it was named.

    Returns
    -------
    list of CalibrationResult
        In the order of the names. A routine that the device fails has NaN and the failure as its finding.

    Raises
    ------
    ConfigError
        A name is unknown; the message lists the known ones.
    UnsupportedError
        A named routine does not apply to the device.
    UnreachableError, ClosedError
        The device is gone.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration import calibrate
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     [dark] = calibrate(device, ["dark_frames"])
    >>> dark.passed, dark.unit
    (True, 'DN')
    """
    for name in names or ():
        if name not in ROUTINES:
            raise ConfigError(f"Unknown calibration routine {name!r}.", f"Routines: {', '.join(ROUTINES)}.")
    results: list[CalibrationResult] = []
    for name in names or ROUTINES:
        options = QUICK.get(name, {}) if quick else {}
        try:
            result = _run(device, name, noise_key, options)
        except UnsupportedError as error:
            if names:
                raise
            on_skip(name, error.problem)
            continue
        results.append(result)
        on_result(result)
    return results


def _run(device: Device, name: str, noise_key: int, options: Mapping[str, Any]) -> CalibrationResult:
    started_s = time.perf_counter()
    try:
        return ROUTINES[name](device, noise_key=noise_key, **options)
    except (UnsupportedError, UnreachableError, ClosedError):
        raise
    except OpuError as error:
        return CalibrationResult(
            name=name,
            summary="the routine could not be carried out",
            value=math.nan,
            unit="1",
            uncertainty=math.nan,
            frames=0,
            seconds=time.perf_counter() - started_s,
            findings=(f"{error.problem} {error.remedy}",),
        )
