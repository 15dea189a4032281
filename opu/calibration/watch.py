"""Whether the medium keeps still while it is calibrated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.stability import correlations, find_jumps

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
    ...     for name in ("start", "dark_frames", "exposure", "grain"):
    ...         watch.look(name)
    ...     result = watch.result()
    >>> result.passed, round(result.value, 2), result.frames
    (True, 1.0, 160)
    """

    def __init__(self, device: Device, *, noise_key: int = 0) -> None:
        self._recorder = Recorder(device, noise_key=noise_key ^ _NOISE)
        self._patterns = random_halves(_N_PATTERNS, _N_FEATURES)
        config = self._recorder.config(_N_FEATURES, _N_OUTPUTS)
        self._config = self._recorder.expose(config, self._patterns)
        self._names: list[str] = []
        self._probes: list[NDArray[np.float32]] = []

    def look(self, name: str) -> None:
        """Take the frames, after the routine of this name."""
        shown = np.concatenate([self._patterns, self._patterns])
        frames = self._recorder.take(self._config, shown).frames.astype(np.float32)
        self._names.append(name)
        self._probes.append(frames.reshape(2, _N_PATTERNS, -1))

    def result(self) -> CalibrationResult:
        """Say how much of the field is left, and after which routines the medium jumped.

        Returns
        -------
        CalibrationResult
            The correlation of the field before the first routine and after the last one, without a limit: how long a
            medium should keep still is for the routine `stability` to judge. Data: `intensity_correlation` between all
            looks.
        """
        intensity, error = _intensity_correlation(np.array(self._probes, np.float64))
        ends = float(intensity[0, -1])
        field = math.sqrt(ends) if ends > 0 else math.nan
        return self._recorder.result(
            "medium_watch",
            "correlation of the field before and after all routines",
            field,
            "1",
            error / (2 * field),
            findings=[self._worded(jump) for jump in find_jumps(intensity, error)],
            data={"intensity_correlation": intensity},
        )

    def _worded(self, jump: Jump) -> str:
        during = ", ".join(self._names[jump.last + 1 : jump.first + 1])
        return (
            f"The medium jumped while this ran: {during}. The field correlates to {jump.field_correlation:.2f} with "
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
