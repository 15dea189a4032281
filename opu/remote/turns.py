"""How large batches are cut, so that others need not wait for the whole of them.

A frame has an identity, so a batch may be projected in parts. While several clients have sessions, the server gives the
device parts that take about a *quantum*; a client alone keeps its batches whole, which a device does fastest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opu.device import Provenance, Timing

__all__ = ["Pace", "merge"]

_FIRST_FRAMES = 16
_SMOOTHING = 0.3
_LARGEST_OVERHEAD = 0.1
_MOST_FRAMES = 2**20


class Pace:
    """What is known of how fast a device works for a session.

    Parameters
    ----------
    timing : Timing
        What the device books for a call and a frame.

    Examples
    --------
    >>> from opu.device import Timing
    >>> timing = Timing(
    ...     readout_us=100.0, frame_overhead_us=0.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0
    ... )
    >>> pace = Pace(timing)
    >>> pace.frames_within(0.005)  # nothing is known
    16
    """

    def __init__(self, timing: Timing) -> None:
        self._call_s = timing.call_overhead_us * 1e-6
        self._frame_s: float | None = None
        self._least = 1

    def learn(self, part: Provenance) -> None:
        """Note how long a part took."""
        taken_s = part.finished_unix_s - part.started_unix_s
        frame_s = max(taken_s, 0.0) / part.n_frames
        known_s = self._frame_s
        self._frame_s = frame_s if known_s is None else known_s + _SMOOTHING * (frame_s - known_s)
        # A device that spends in earnest what it books for a call would do little else if the parts were short.
        spends = taken_s >= 0.9 * part.device_us * 1e-6
        worth = self._call_s / (_LARGEST_OVERHEAD * part.frame_us * 1e-6)
        self._least = max(1, math.ceil(worth)) if spends else 1

    def frames_within(self, quantum_s: float) -> int:
        """Return how many frames fit into a time: at least 1, and so many that calls do not cost more than a tenth."""
        if self._frame_s is None:
            return _FIRST_FRAMES
        if self._frame_s * _MOST_FRAMES <= quantum_s:
            return _MOST_FRAMES
        return max(self._least, int(quantum_s / self._frame_s))


def merge(parts: Sequence[Provenance]) -> Provenance:
    """Return where the frames of a batch come from that was projected in parts.

    The epoch of the medium is the last one, so that who relies on an earlier one notices.
    """
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.first_frame_index)
    n_frames = sum(part.n_frames for part in parts)
    return msgspec.structs.replace(
        parts[0],
        n_frames=n_frames,
        medium_epoch=parts[-1].medium_epoch,
        device_us=sum(part.device_us for part in parts),
        finished_unix_s=parts[-1].finished_unix_s,
        saturated_fraction=sum(part.saturated_fraction * part.n_frames for part in parts) / n_frames,
        skipped_frames=sum(part.skipped_frames for part in parts),
    )
