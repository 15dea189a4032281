r"""The laser: its power, and how it changes.

    P(t, i) = P0 [1 + slow(t) + rin z_i + a exp(-t / T)],    never below 0

with the power `P0` that it is set to.
`slow` is a stationary Gaussian process of device time with the correlation `exp(-|t - t'| / tau)`
(Ornstein-Uhlenbeck), as a sum of cosines whose frequencies follow its Lorentzian spectrum:

    slow(t) = rms sqrt(2 / n) sum_k cos(tan(pi (k + 1/2) / n - pi / 2) t / tau + phi_k)

`z_i` is the relative intensity noise of frame `i`: normal, from the frame's number, so that a frame repeated is the
same. The last term is the warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.errors import ConfigError
from opu.sim.counters import derive_key, frame_words, philox_words
from opu.sim.variates import normal_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LaserModel", "power_factors"]

_N_COSINES = 256
_WORD_RANGE = 2.0**-32


@dataclass(frozen=True, kw_only=True)
class LaserModel:
    """The light, with everything that weakens it on its way.

    Parameters
    ----------
    electrons_per_mirror_us : float
        Photo-electrons that one lit mirror adds to the mean of a pixel in a microsecond: power, losses and quantum
        efficiency in one number, as a bench measures it at the nominal power.
    power_mw : float
        The nominal power in milliwatts, with which a bench starts. Photo-electrons are proportional to the power.
    min_power_mw, max_power_mw : float
        What it can be set to.
    drift_rms, drift_time_s : float
        Relative root mean square of the slow drift of the power, and its correlation time.
    rin : float
        Relative root mean square of the noise from frame to frame.
    warm_up_share, warm_up_s : float
        Relative excess of the power when switched on, and the time constant with which it vanishes.
    """

    electrons_per_mirror_us: float
    power_mw: float = 10.0
    min_power_mw: float = 1.0
    max_power_mw: float = 20.0
    drift_rms: float = 0.0
    drift_time_s: float = 600.0
    rin: float = 0.0
    warm_up_share: float = 0.0
    warm_up_s: float = 900.0

    @property
    def is_constant(self) -> bool:
        """Whether the power is what it is set to in every frame."""
        return self.drift_rms == self.rin == self.warm_up_share == 0

    def __post_init__(self) -> None:
        if not 0 < self.electrons_per_mirror_us < math.inf:
            raise ConfigError(
                f"A mirror adds {self.electrons_per_mirror_us} electrons in a microsecond.",
                "Use a positive number, and light='off' for darkness.",
            )
        if not 0 <= self.min_power_mw <= self.power_mw <= self.max_power_mw < math.inf or self.power_mw == 0:
            raise ConfigError(
                f"The nominal power is {self.power_mw} mW, from {self.min_power_mw} to {self.max_power_mw} mW.",
                "Use a positive nominal power within its range.",
            )
        if not self.drift_time_s > 0 or not self.warm_up_s > 0:
            raise ConfigError(
                f"The times of the laser are {self.drift_time_s} s and {self.warm_up_s} s.", "Use positive times."
            )


def _slow_drift(model: LaserModel, seed: int, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    number = np.arange(_N_COSINES)
    frequency = np.tan(np.pi * (number + 0.5) / _N_COSINES - np.pi / 2) / model.drift_time_s
    phase = 2 * np.pi * philox_words((number, 0, 0, 0), derive_key("laser drift", seed))[0] * _WORD_RANGE
    cosines = np.cos(np.multiply.outer(times_s, frequency) + phase)
    slow: NDArray[np.float64] = model.drift_rms * np.sqrt(2 / _N_COSINES) * cosines.sum(axis=-1)
    return slow


def power_factors(
    model: LaserModel, seed: int, noise_key: int, first_frame_index: int, times_s: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the power of every frame, relative to the one that is set, shape (n_frames,).

    Parameters
    ----------
    model : LaserModel
        The laser.
    seed, noise_key, first_frame_index : int
        The device and the frames.
    times_s : ndarray of float64, shape (n_frames,)
        Device times in seconds.
    """
    factors = np.ones(len(times_s))
    if model.drift_rms > 0:
        factors += _slow_drift(model, seed, times_s)
    if model.rin > 0:
        words = frame_words(derive_key("laser noise", seed, noise_key), first_frame_index, len(times_s))
        factors += model.rin * normal_pairs(words[0], words[1])[0].astype(np.float64)
    if model.warm_up_share:
        factors += model.warm_up_share * np.exp(-times_s / model.warm_up_s)
    return np.maximum(factors, 0).astype(np.float32)
