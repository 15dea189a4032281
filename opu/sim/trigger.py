r"""When the camera looks, compared with when the mirrors stand still; and frames that are lost on the way to the host.

A pattern's own time begins with its trigger. Its mirrors stand still from `settle_us` on, until the next trigger a
frame time later; the camera integrates from `latency_us` plus jitter on, for the exposure time. What falls outside the
pattern's own window is light of the pattern before or after, or none while mirrors move:

    light_i = sum_j overlap(exposure window of i, still window of j) / exposure * light of pattern j

over the patterns `j` that the exposure can meet: a latency of more than a frame time makes a camera look at later ones.
Before the first pattern of a sequence all mirrors are off; the last one is shown again until the exposures are over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from opu.errors import ConfigError
from opu.sim.counters import derive_key, frame_words
from opu.sim.variates import normal_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLANK", "Delivery", "TriggerModel", "Windows", "delivery", "window_shares"]

BLANK = -1
"""In `Delivery.sources`: the camera had no frame left to deliver."""

_DROP_WORD, _DUPLICATE_WORD, _JITTER_WORDS = 0, 1, slice(2, 4)


@dataclass(frozen=True, kw_only=True)
class TriggerModel:
    """The trigger line between DMD and camera, and the line from camera to host.

    Parameters
    ----------
    latency_us : float
        From a pattern's trigger to the start of the exposure.
    jitter_us : float
        Standard deviation of that start, normal, from frame to frame.
    dropped_fraction : float
        Share of frames that the camera takes and the host never gets: later frames of the sequence move up, and blank
        ones fill its end. The camera counts them (`CameraReport.skipped_frames`).
    duplicated_fraction : float
        Share of frames that the host gets twice: later ones move down. Nobody counts them.
    """

    latency_us: float = 0.0
    jitter_us: float = 0.0
    dropped_fraction: float = 0.0
    duplicated_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropped_fraction", "duplicated_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Use a share from 0 to 1.")
        if not (self.jitter_us >= 0 and math.isfinite(self.latency_us)):
            raise ConfigError(
                f"The latency is {self.latency_us} us and its jitter {self.jitter_us} us.",
                "Use a finite latency and a jitter of at least 0.",
            )


@dataclass(frozen=True, eq=False)
class Delivery:
    """What the host gets.

    Parameters
    ----------
    sources : ndarray of int64, shape (n_frames,)
        Which frame of the sequence stands at each place, `BLANK` for none.
    n_dropped : int
        Frames that were lost.
    """

    sources: NDArray[np.int64]
    n_dropped: int


@dataclass(frozen=True, eq=False)
class Windows:
    """What each exposure sees.

    Parameters
    ----------
    shift : int
        Whole frames by which the camera lags behind: frame `i` looks at pattern `i + shift` and its neighbours.
    shares : ndarray of float32, shape (n_frames, 3)
        Shares of the exposure that fall on the pattern before that one, on it, and on the one after.
    """

    shift: int
    shares: NDArray[np.float32]


def delivery(model: TriggerModel, seed: int, noise_key: int, first_frame_index: int, n_frames: int) -> Delivery | None:
    """Say which frames of a sequence arrive, as a function of their numbers.

    Parameters
    ----------
    model : TriggerModel
        How often frames are lost or doubled.
    seed, noise_key, first_frame_index, n_frames : int
        The device and the frames.

    Returns
    -------
    Delivery or None
        In order, as many places as frames; None where every frame arrives once, always.
    """
    if model.dropped_fraction == 0 and model.duplicated_fraction == 0:
        return None
    uniform = frame_words(derive_key("trigger", seed, noise_key), first_frame_index, n_frames) * 2.0**-32
    dropped = uniform[_DROP_WORD] < model.dropped_fraction
    copies = np.where(dropped, 0, 1 + (uniform[_DUPLICATE_WORD] < model.duplicated_fraction))
    arrived = np.repeat(np.arange(n_frames, dtype=np.int64), copies)[:n_frames]
    sources = np.full(n_frames, BLANK, dtype=np.int64)
    sources[: len(arrived)] = arrived
    return Delivery(sources, int(dropped.sum()))


def window_shares(
    model: TriggerModel,
    *,
    settle_us: float,
    frame_us: float,
    exposure_us: float,
    seed: int,
    noise_key: int,
    first_frame_index: int,
    n_frames: int,
) -> Windows | None:
    """Return which share of each exposure falls on which patterns.

    Parameters
    ----------
    model : TriggerModel
        Latency and jitter.
    settle_us, frame_us, exposure_us : float
        How long mirrors move, from trigger to trigger, and the exposure, in microseconds.
    seed, noise_key, first_frame_index, n_frames : int
        The device and the frames, for the jitter.

    Returns
    -------
    Windows or None
        None where every exposure falls on its own pattern alone.
    """
    if model.jitter_us == 0:
        steady = _steady_window(model.latency_us, settle_us, frame_us, exposure_us)
        return steady and Windows(steady.shift, np.broadcast_to(steady.shares, (n_frames, 3)))
    words = frame_words(derive_key("trigger", seed, noise_key), first_frame_index, n_frames)
    jitter_us = model.jitter_us * normal_pairs(*words[_JITTER_WORDS])[0].astype(np.float64)
    return _windows(model.latency_us, jitter_us, settle_us, frame_us, exposure_us)


@lru_cache(maxsize=64)
def _steady_window(latency_us: float, settle_us: float, frame_us: float, exposure_us: float) -> Windows | None:
    """Return what any exposure sees without jitter: as `window_shares`, for one frame."""
    return _windows(latency_us, np.zeros(1), settle_us, frame_us, exposure_us)


def _windows(
    latency_us: float, jitter_us: NDArray[np.float64], settle_us: float, frame_us: float, exposure_us: float
) -> Windows | None:
    shift = math.floor(latency_us / frame_us)
    start_us = latency_us - shift * frame_us + jitter_us
    pattern_us = frame_us * np.array([-1.0, 0.0, 1.0])
    opened = np.maximum(start_us[:, np.newaxis], pattern_us + settle_us)
    closed = np.minimum(start_us[:, np.newaxis] + exposure_us, pattern_us + frame_us)
    shares: NDArray[np.float32] = (np.maximum(closed - opened, 0.0) / exposure_us).astype(np.float32)
    return None if shift == 0 and (shares == [0, 1, 0]).all() else Windows(shift, shares)
