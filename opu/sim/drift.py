r"""How the medium changes with time: slow decorrelation, sudden jumps, warm-up, vibration.

*Renewal.* Each block of 64 mirrors renews its entries (see `opu.sim.media.base`) at the events of a Poisson process of
its own, one event on average in a unit of *operational time*

    w(t) = t / tau + n (1 - exp(-t / T)),

the second term being a warm-up of time constant `T` that adds `n` renewals in all. A share `p` of the blocks never
renews. The field at a later time then keeps the share of the light whose blocks have not renewed, so its correlation is

    g1(t, t') = (1 - p) exp(-(w(t') - w(t))) + p,

between any two times: a stationary Ornstein-Uhlenbeck process with a plateau, as far as second moments go (and by the
central limit theorem beyond). The intensity has the correlation `g1**2`. All points share the renewals of a block, so
one realisation scatters around `g1` with the standard deviation `sqrt(g1 (1 - g1) / n)` for `n` lit blocks: 0.004 for
the 16,245 blocks of a full DMD of a million mirrors, and much for patterns on a few blocks (the layout `centred`).

Every event is drawn from counters: cell `c` of operational time and block `b` have a Poisson number of events at
uniform places, from `philox((b, c, j, 0), key)`. The state at a time is a function of that time; nothing has to be
lived through.

*Jumps* renew a share of all blocks at once. *Vibration* is reversible: the field is `cos(theta) E1 + sin(theta) E2`,
`E2` that of an independent medium, with the angle `theta(t)` a sum of sines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.errors import ConfigError
from opu.sim.counters import derive_key, philox_words
from opu.sim.media.base import EpochTrack, never_renewed

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DriftModel", "epochs_at", "track", "vibration_angle"]

_MOST_EVENTS = 11
# Poisson numbers of mean 1 beyond 11 have a probability of 8e-10, and count as 11.
_COUNT_LIMITS = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(_MOST_EVENTS)])
_EPOCHS_PER_CELL = 16
_FIRST_JUMP_EPOCH = 2**31
_WORD_RANGE = 2.0**-32
_N_SINES = 4
_CELL_STREAM, _PLATEAU_STREAM, _JUMP_STREAM = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class DriftModel:
    """How the medium changes with time.

    Parameters
    ----------
    correlation_time_s : float
        Time constant `tau` of the field correlation; infinite for a medium that keeps still. That of the intensity is
        half of it.
    plateau : float
        Share of the light that never decorrelates.
    warm_up_renewals, warm_up_s : float
        Renewals `n` that warming up adds in all, and its time constant `T`.
    jump_times_s : tuple of float
        When the medium jumps, in device time; increasing.
    jump_share : float
        Share of the blocks that a jump renews.
    vibration_rms_rad : float
        Root mean square of the angle of vibration; the correlation of the field with its mean falls by half its square.
    vibration_hz : tuple of two floats
        The band of its frequencies.
    """

    correlation_time_s: float = math.inf
    plateau: float = 0.0
    warm_up_renewals: float = 0.0
    warm_up_s: float = 3600.0
    jump_times_s: tuple[float, ...] = ()
    jump_share: float = 1.0
    vibration_rms_rad: float = 0.0
    vibration_hz: tuple[float, float] = (20.0, 200.0)

    def __post_init__(self) -> None:
        if not self.correlation_time_s > 0 or not self.warm_up_s > 0:
            raise ConfigError(
                f"The times of the drift are {self.correlation_time_s} s and {self.warm_up_s} s.", "Use positive times."
            )
        if self.warm_up_renewals < 0 or self.vibration_rms_rad < 0:
            raise ConfigError(
                f"The warm-up has {self.warm_up_renewals} renewals, the vibration {self.vibration_rms_rad} rad.",
                "Use numbers from 0 on.",
            )
        if not 0 <= self.plateau <= 1 or not 0 <= self.jump_share <= 1:
            raise ConfigError(f"The shares are {self.plateau} and {self.jump_share}.", "Use shares from 0 to 1.")
        if list(self.jump_times_s) != sorted(set(self.jump_times_s)):
            raise ConfigError(f"The jump times are {self.jump_times_s}.", "List them once each, in order.")

    @property
    def is_still(self) -> bool:
        """Whether no block ever renews."""
        return math.isinf(self.correlation_time_s) and self.warm_up_renewals == 0 and not self.jump_times_s

    def operational_time(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `w`, the mean number of renewals since time 0."""
        return time_s / self.correlation_time_s - self.warm_up_renewals * np.expm1(-time_s / self.warm_up_s)

    def correlation(self, earlier_s: float, later_s: float) -> float:
        """Return the correlation `g1` of the field at two times, without jumps."""
        lag = np.diff(self.operational_time(np.array([earlier_s, later_s])))[0]
        return float((1 - self.plateau) * np.exp(-lag) + self.plateau)


def _events(seed: int, blocks: NDArray[np.int64], cell: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many events blocks have in a cell, shape (n,), and their places in operational time, shape (11, n)."""
    key = derive_key("drift", seed)
    index = blocks.astype(np.uint64)
    words = np.zeros((_MOST_EVENTS + 1, len(blocks)), np.uint64)
    words[:4] = philox_words((index, cell, 0, _CELL_STREAM), key)
    counts: NDArray[np.int64] = np.searchsorted(_COUNT_LIMITS, words[0] * _WORD_RANGE)
    for j in (1, 2):  # few blocks have more than three events
        many = np.flatnonzero(counts >= 4 * j)
        words[4 * j : 4 * j + 4, many] = philox_words((index[many], cell, j, _CELL_STREAM), key)
    return counts, cell + (words[1:].astype(np.float64) + 0.5) * _WORD_RANGE


def _moving(model: DriftModel, seed: int, n_blocks: int) -> NDArray[np.int64]:
    """Return the blocks that renew."""
    blocks = np.arange(n_blocks)
    if model.plateau == 0:
        return blocks
    words = philox_words((blocks.astype(np.uint64), 0, 0, _PLATEAU_STREAM), derive_key("drift", seed))
    return blocks[words[0] * _WORD_RANGE >= model.plateau]


def _jumping(model: DriftModel, seed: int, n_blocks: int, jump: int) -> NDArray[np.int64]:
    """Return the blocks that a jump renews."""
    blocks = np.arange(n_blocks)
    words = philox_words((blocks.astype(np.uint64), jump, 0, _JUMP_STREAM), derive_key("drift", seed))
    return blocks[words[0] * _WORD_RANGE < model.jump_share]


def epochs_at(model: DriftModel, seed: int, n_blocks: int, time_s: float) -> NDArray[np.uint32]:
    """Return the epoch of every block at a device time: a name for its last event, 0 before any.

    Parameters
    ----------
    model : DriftModel
        How the medium drifts.
    seed : int
        Device seed.
    n_blocks : int
        Blocks of mirrors.
    time_s : float
        Device time in seconds.

    Returns
    -------
    ndarray of uint32, shape (n_blocks,)
    """
    epochs = np.zeros(n_blocks, np.uint32)
    last = np.full(n_blocks, -1.0)
    now = float(model.operational_time(np.array(max(time_s, 0.0))))
    waiting = _moving(model, seed, n_blocks)
    for cell in range(math.floor(now), -1, -1) if now > 0 else ():
        counts, places = _events(seed, waiting, cell)
        happened = (np.arange(_MOST_EVENTS)[:, np.newaxis] < counts) & (places <= now)
        places = np.where(happened, places, -1.0)
        which = places.argmax(axis=0)
        found = happened.any(axis=0)
        last[waiting[found]] = places.max(axis=0)[found]
        epochs[waiting[found]] = 1 + cell * _EPOCHS_PER_CELL + which[found]
        waiting = waiting[~found]
        if len(waiting) == 0:
            break
    for jump, jump_s in enumerate(model.jump_times_s):
        if jump_s <= time_s:
            place = float(model.operational_time(np.array(jump_s)))
            blocks = _jumping(model, seed, n_blocks, jump)
            blocks = blocks[last[blocks] <= place]
            epochs[blocks] = _FIRST_JUMP_EPOCH + jump
            last[blocks] = place
    return epochs


def track(model: DriftModel, seed: int, n_blocks: int, times_s: NDArray[np.float64]) -> EpochTrack:
    """Return the epochs of all blocks during a sequence of frames.

    Parameters
    ----------
    model, seed, n_blocks
        As `epochs_at`.
    times_s : ndarray of float64, shape (n_frames,)
        Device times of the frames, in seconds, increasing.

    Returns
    -------
    EpochTrack
        That of any part of the sequence is the part of this one.
    """
    n_frames = len(times_s)
    if model.is_still:
        return EpochTrack.still(n_frames, never_renewed(n_blocks))
    initial = epochs_at(model, seed, n_blocks, float(times_s[0]))
    clock = model.operational_time(np.maximum(times_s, 0.0))
    # Columns: frame, place in operational time, block, epoch.
    rows = [np.zeros((0, 4))]
    moving = _moving(model, seed, n_blocks)
    for cell in range(math.floor(clock[0]), math.floor(clock[-1]) + 1) if clock[-1] > clock[0] else ():
        counts, places = _events(seed, moving, cell)
        happens = (np.arange(_MOST_EVENTS)[:, np.newaxis] < counts) & (places > clock[0]) & (places <= clock[-1])
        event, which = np.nonzero(happens)
        place = places[event, which]
        epoch = 1 + cell * _EPOCHS_PER_CELL + event
        rows.append(np.stack([np.searchsorted(clock, place), place, moving[which], epoch], axis=1))
    for jump, jump_s in enumerate(model.jump_times_s):
        if times_s[0] < jump_s <= times_s[-1]:
            blocks = _jumping(model, seed, n_blocks, jump)
            jump_place = float(model.operational_time(np.array(jump_s)))
            columns = (np.searchsorted(times_s, jump_s), jump_place, blocks, _FIRST_JUMP_EPOCH + jump)
            rows.append(np.stack(np.broadcast_arrays(*columns), axis=1))
    events = np.concatenate(rows)
    events = events[np.lexsort((events[:, 1], events[:, 0]))]
    return EpochTrack(
        n_frames,
        initial,
        events[:, 0].astype(np.int64),
        events[:, 2].astype(np.int64),
        events[:, 3].astype(np.uint32),
    )


def vibration_angle(model: DriftModel, seed: int, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angle of vibration at device times, shape (n_frames,), in radians.

    Four sines with frequencies and phases of the device, together of the root mean square of the model.
    """
    words = philox_words((np.arange(_N_SINES), 0, 0, 0), derive_key("vibration", seed))
    low, high = model.vibration_hz
    frequency_hz = low + (high - low) * words[0] * _WORD_RANGE
    phase = 2 * np.pi * words[1] * _WORD_RANGE
    sines = np.sin(2 * np.pi * np.multiply.outer(times_s, frequency_hz) + phase)
    angle: NDArray[np.float64] = model.vibration_rms_rad * math.sqrt(2 / _N_SINES) * sines.sum(axis=-1)
    return angle
