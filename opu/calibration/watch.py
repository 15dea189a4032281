"""Whether the medium keeps still while it is calibrated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.stability import correlations, find_jumps
from opu.errors import ClosedError, OpuError, UnreachableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.result import CalibrationResult
    from opu.calibration.stability import Jump
    from opu.device import Device

__all__ = ["MediumWatch"]

_N_PATTERNS, _N_FEATURES, _N_OUTPUTS = 16, 64, 1024
_NOISE = 0x57A7C4
"""The watch has noise of its own: its frames are none of a routine's."""


class MediumWatch:
    """Shows the same patterns before and after every routine: what a routine measured holds only as long as the medium.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     watch = MediumWatch(device)
    ...     for name in ("dark_frames", "exposure", "grain"):
    ...         watch.look(name)
    ...     result = watch.result()
    >>> result.passed, round(result.value, 2), result.frames
    (True, 1.0, 192)
    """

    def __init__(self, device: Device, *, noise_key: int = 0) -> None:
        started_s = time.perf_counter()
        self._recorder = Recorder(device, noise_key=noise_key ^ _NOISE)
        n_features, n_outputs = available_size(self._recorder.description, _N_FEATURES, _N_OUTPUTS)
        self._patterns = random_halves(_N_PATTERNS, n_features)
        self._config = self._recorder.config(n_features, n_outputs)
        self._seconds = 0.0
        self._failure: OpuError | None = None
        self._names: list[str] = []
        self._probes: list[NDArray[np.float32]] = []
        self._guarded(self._expose)
        self._guarded(self._look, "")
        self._seconds = time.perf_counter() - started_s

    def look(self, name: str) -> None:
        """Take the frames, after the routine of this name."""
        started_s = time.perf_counter()
        self._guarded(self._look, name)
        self._seconds += time.perf_counter() - started_s

    def result(self) -> CalibrationResult:
        """Say how much of the field is left, and after which routines the medium jumped.

        Returns
        -------
        CalibrationResult
            The correlation of the field before the first routine and after the last one, without a limit: how long a
            medium should keep still is for the routine `stability` to judge. Data: `intensity_correlation` between all
            looks.
        """
        field, error, data, findings = math.nan, math.nan, {}, []
        if self._failure is not None:
            findings = [f"{self._failure.problem} {self._failure.remedy}"]
        else:
            intensity, intensity_error = _intensity_correlation(np.array(self._probes, np.float64))
            data = {"intensity_correlation": intensity}
            findings = [self._worded(jump) for jump in find_jumps(intensity, intensity_error)]
            if intensity[0, -1] > 0:
                field = math.sqrt(intensity[0, -1])
                error = intensity_error / (2 * field)
            elif not findings:
                findings = [
                    "The frames of a pattern before and after the routines have nothing in common: the medium has "
                    "changed, or the frames are not those of their patterns (measure `latency`)."
                ]
        result = self._recorder.result(
            "medium_watch",
            "correlation of the field before and after all routines",
            field,
            "1",
            error,
            findings=findings,
            data=data,
        )
        return msgspec.structs.replace(result, seconds=self._seconds)

    def _guarded(self, work: Callable[..., None], *arguments: str) -> None:
        """Do something unless the device has failed before; what it fails is told at the end."""
        if self._failure is None:
            try:
                work(*arguments)
            except (UnreachableError, ClosedError):
                raise
            except OpuError as error:
                self._failure = error

    def _expose(self) -> None:
        self._config = self._recorder.expose(self._config, self._patterns)

    def _look(self, name: str) -> None:
        shown = np.concatenate([self._patterns, self._patterns])
        frames = self._recorder.take(self._config, shown).frames.astype(np.float32)
        self._names.append(name)
        self._probes.append(frames.reshape(2, _N_PATTERNS, -1))

    def _worded(self, jump: Jump) -> str:
        during = " and ".join(self._names[jump.last + 1 : jump.first + 1])
        return (
            f"The medium jumped while {during} ran. The field correlates to {jump.field_correlation:.2f} with "
            "what it was: what was measured before holds no longer. Look for what has moved, and calibrate again."
        )


def _intensity_correlation(probes: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the correlations of the intensity between all looks, and the standard error of those of neighbours.

    Parameters
    ----------
    probes : ndarray, shape (n_looks, 2, n_patterns, n_pixels)
        Two frames of each pattern.
    """
    covariance = correlations(probes[:, 0], probes[:, 1])
    power = np.diagonal(covariance, axis1=1, axis2=2)
    if not (power > 0).all():
        return np.full(covariance.shape[1:], math.nan), math.nan
    each = covariance / np.sqrt(power[:, :, np.newaxis] * power[:, np.newaxis, :])
    neighbours = np.diagonal(each, 1, axis1=1, axis2=2)
    error = float(neighbours.std(axis=0, ddof=1).mean()) / math.sqrt(len(each)) if neighbours.size else 0.0
    mean: NDArray[np.float64] = each.mean(axis=0)
    return mean, error
