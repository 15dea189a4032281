"""All calibration routines by name, and how they are run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from opu.calibration.camera import dark_frames, linearity, photon_transfer
from opu.calibration.exposures import exposure, ones_range
from opu.calibration.feedback import feedback
from opu.calibration.focusing import focusing
from opu.calibration.linear import linear_mode
from opu.calibration.matrix.measure import check_unfinished, transmission_matrix
from opu.calibration.matrix.spectrum import singular_values
from opu.calibration.matrix.tracking import tracking
from opu.calibration.mirrors import dmd_contrast
from opu.calibration.result import CalibrationResult
from opu.calibration.speckle import grain, speckle_statistics
from opu.calibration.stability import laser_power, repeatability, stability
from opu.calibration.trigger import latency, trigger_window
from opu.errors import ClosedError, ConfigError, DataFileError, OpuError, UnreachableError, UnsupportedError

if TYPE_CHECKING:
    from opu.calibration.matrix import TransmissionMatrix
    from opu.device import Device

__all__ = ["QUICK", "ROUTINES", "calibrate"]

ROUTINES: dict[str, Callable[..., CalibrationResult]] = {
    routine.__name__: routine
    for routine in (
        dark_frames,
        exposure,
        ones_range,
        photon_transfer,
        linearity,
        repeatability,
        grain,
        speckle_statistics,
        dmd_contrast,
        latency,
        trigger_window,
        stability,
        laser_power,
        linear_mode,
        feedback,
        transmission_matrix,
        singular_values,
        focusing,
        tracking,
    )
}
"""The routines by name, in the order in which they run: later ones lean on what earlier ones look after."""

QUICK: Mapping[str, Mapping[str, Any]] = {
    "dark_frames": {"n_outputs": 4096},
    "exposure": {"n_outputs": 4096},
    "ones_range": {"n_outputs": 4096},
    "photon_transfer": {"n_outputs": 8192, "n_repeats": 8},
    "linearity": {"n_outputs": 4096},
    "stability": {"duration_s": 20.0, "n_probes": 12},
    "laser_power": {"n_references": 12},
    "linear_mode": {"n_outputs": 256, "n_repeats": 32},
    "feedback": {"n_outputs": 256, "n_errors": 32},
    "transmission_matrix": {"n_features": 192},
    "focusing": {"n_targets": 200},
}
"""Arguments with which a routine takes as few frames as will do."""

_OF_A_MATRIX = ("singular_values", "focusing", "tracking")


def calibrate(
    device: Device,
    names: list[str] | None = None,
    *,
    quick: bool = False,
    noise_key: int = 0,
    on_result: Callable[[CalibrationResult], None] = lambda _: None,
    on_skip: Callable[[str, str], None] = lambda _name, _reason: None,
    on_matrix: Callable[[TransmissionMatrix], object] = lambda _: None,
    on_start: Callable[[str], object] = lambda _: None,
    on_progress: Callable[[str, int, int], object] = lambda _what, _done, _all: None,
    unfinished: str | os.PathLike[str] | None = None,
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
    on_matrix : callable, optional
        Called with the `TransmissionMatrix` of the routine of that name as soon as it is there, to keep it.
    on_start : callable, optional
        Called with the name of each routine before it runs.
    on_progress : callable, optional
        Called during `transmission_matrix` with ("frames" or "rows", how many are done, all).
    unfinished : str or path, optional
        A file for what `transmission_matrix` has done so far, to go on from there after an interruption: see
        `measure_transmission_matrix`.

    Returns
    -------
    list of CalibrationResult
        In the order of the names. A routine that the device fails has NaN and the failure as its finding.

    Raises
    ------
    ConfigError
        A name is unknown, and the message lists the known ones; or the names are no list.
    UnsupportedError
        A named routine does not apply to the device.
    UnreachableError, ClosedError
        The device is gone.
    DataFileError
        A file cannot be written, or the unfinished one is damaged.
    ConfigError, MediumChangedError
        Before anything is measured: the unfinished file is that of other settings, or of another device or medium.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration import calibrate
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     [dark] = calibrate(device, ["dark_frames"])
    >>> dark.passed, dark.unit
    (True, 'DN')
    """
    if isinstance(names, str):
        raise ConfigError(f"The names are {names!r}, one text.", f"Use a list: [{names!r}].")
    for name in names or ():
        if name not in ROUTINES:
            raise ConfigError(f"Unknown calibration routine {name!r}.", f"Routines: {', '.join(ROUTINES)}.")
    run = _Run(
        device,
        noise_key=noise_key,
        options=QUICK if quick else {},
        on_matrix=on_matrix,
        on_progress=on_progress,
        unfinished=unfinished,
    )
    if unfinished is not None and "transmission_matrix" in (names or ROUTINES):
        run.check_unfinished(unfinished)
    results: list[CalibrationResult] = []
    for name in names or ROUTINES:
        on_start(name)
        try:
            result = run.measure(name)
        except UnsupportedError as error:
            if names:
                raise
            on_skip(name, error.problem)
            continue
        results.append(result)
        on_result(result)
    return results


class _Run:
    """A run of several routines, which share the transmission matrix that one of them measures."""

    def __init__(
        self,
        device: Device,
        *,
        noise_key: int,
        options: Mapping[str, Mapping[str, Any]],
        on_matrix: Callable[[TransmissionMatrix], object],
        on_progress: Callable[[str, int, int], object],
        unfinished: str | os.PathLike[str] | None,
    ) -> None:
        self._device = device
        self._noise_key = noise_key
        self._options = options
        self._on_matrix = on_matrix
        self._on_progress = on_progress
        self._unfinished = unfinished
        self._matrix: TransmissionMatrix | None = None

    def check_unfinished(self, path: str | os.PathLike[str]) -> None:
        """Check that the matrix can go on from a file, before minutes of other work."""
        with suppress(UnsupportedError):  # told when its turn has come
            sizes = self._options.get("transmission_matrix", {})
            check_unfinished(self._device, path, noise_key=self._noise_key, **sizes)

    def measure(self, name: str) -> CalibrationResult:
        """Carry out a routine; what the device fails becomes a finding."""
        started_s = time.perf_counter()
        try:
            return self._routine(name)(self._device, noise_key=self._noise_key, **self._options.get(name, {}))
        except (UnsupportedError, UnreachableError, ClosedError, DataFileError):
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

    def _routine(self, name: str) -> Callable[..., CalibrationResult]:
        if name == "transmission_matrix":
            return partial(
                transmission_matrix,
                on_matrix=self._keep,
                on_progress=self._on_progress,
                unfinished=self._unfinished,
            )
        if name in _OF_A_MATRIX:
            return partial(ROUTINES[name], matrix=self._matrix)
        return ROUTINES[name]

    def _keep(self, matrix: TransmissionMatrix) -> None:
        self._matrix = matrix
        self._on_matrix(matrix)
