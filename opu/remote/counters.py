"""What a server counts for the people who run it.

One thread, the loop of the server, tells `Counters` what happens; any thread may ask for a `CountersStatus`. Nothing
here opens a socket: the structures are part of the protocol's `server_status`.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from opu.remote.memory import resident_bytes

if TYPE_CHECKING:
    from opu.device import Provenance

__all__ = ["BOUNDS_S", "REASONS", "Counters", "CountersStatus", "Histogram", "Reason", "TurnedAway", "Vitals"]

BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of all histograms, in seconds: from a request on a fast device to one that waits for many
others. They are part of the names that dashboards use, and do not change within a version of the protocol."""

_SMOOTHED_FRAMES = 1000.0
_MOST_BUCKETS = 64
_MOST_CODES = 256

Reason = Literal[
    "key_unknown",
    "key_revoked",
    "no_allow_list",
    "mechanism",
    "server_key",
    "handshake_timeout",
    "handshake_ended",
    "version",
    "role",
    "token",
    "too_many_clients",
    "too_many_clients_of_key",
    "too_many_requests",
    "stopping",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Why a server turns somebody away; `docs/reference/metrics.md` explains each."""

Natural = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Code = Annotated[str, Meta(max_length=64)]


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How often a time was how long, with the cumulative buckets of Prometheus.

    Parameters
    ----------
    bounds_s : tuple of float
        Upper bounds of the buckets in seconds, ascending.
    counts : tuple of int
        How many times were at most as long as each bound, and as the last item how many there were at all.
    sum_s : float
        Their sum in seconds.

    Examples
    --------
    >>> histogram = Histogram(bounds_s=(0.1, 0.2), counts=(0, 10, 10), sum_s=1.5)
    >>> histogram.total, round(histogram.quantile(0.5), 3)
    (10, 0.15)
    """

    bounds_s: Annotated[tuple[Amount, ...], Meta(min_length=1, max_length=_MOST_BUCKETS)]
    counts: Annotated[tuple[Natural, ...], Meta(max_length=_MOST_BUCKETS + 1)]
    sum_s: Amount

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds_s) + 1:
            raise ValueError(f"{len(self.bounds_s)} bounds need one count more, not {len(self.counts)}")
        if any(low >= high for low, high in pairwise(self.bounds_s)):
            raise ValueError("bounds_s must ascend")
        if any(low > high for low, high in pairwise(self.counts)):
            raise ValueError("counts are cumulative and never fall")

    @property
    def total(self) -> int:
        """How many times there were."""
        return self.counts[-1]

    def quantile(self, q: float) -> float | None:
        """Estimate a quantile as Prometheus does: evenly spread within a bucket.

        Parameters
        ----------
        q : float
            0 to 1.

        Returns
        -------
        float or None
            Seconds; the last bound stands for everything beyond it. None if there was nothing.
        """
        rank = q * self.total
        if not self.total:
            return None
        below, low_s = 0, 0.0
        for bound_s, count in zip(self.bounds_s, self.counts, strict=False):
            if count >= rank and count > below:
                return low_s + (bound_s - low_s) * (rank - below) / (count - below)
            below, low_s = count, bound_s
        return low_s

    def since(self, earlier: Histogram) -> Histogram:
        """Return what came after an earlier state of this histogram, or all of it if that was another one's."""
        counts = [now - then for now, then in zip(self.counts, earlier.counts, strict=False)]
        if self.bounds_s != earlier.bounds_s or any(low > high for low, high in pairwise([0, *counts])):
            return self
        return Histogram(bounds_s=self.bounds_s, counts=tuple(counts), sum_s=max(0.0, self.sum_s - earlier.sum_s))


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """Signs of life of a server.

    Parameters
    ----------
    beat_age_s : float
        Seconds since its loop last went round.
    device_s : float or None
        For how long something has been with the device without an answer. None: the device has nothing to do.
    """

    beat_age_s: Amount
    device_s: Amount | None


class CountersStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a server has counted since it started. `docs/reference/metrics.md` says what each number means."""

    accepted: Natural
    answered: Natural
    refused: Annotated[dict[Code, Natural], Meta(max_length=_MOST_CODES)]
    malformed: Natural
    repeated: Natural
    cancelled: Natural
    late: Natural
    welcomed: Natural
    resumed: Natural
    evicted: Natural
    expired: Natural
    cut_off: Natural
    frames: Natural
    calls: Natural
    failed_calls: Natural
    merged: Natural
    busy_s: Amount
    pattern_bytes: Natural
    frame_bytes: Natural
    waited: Histogram
    took: Histogram
    medium_epoch: int | None
    saturated_fraction: Amount | None
    resident_bytes: Natural | None
    vitals: Vitals
    turned_away: Annotated[dict[Code, Natural], Meta(max_length=_MOST_CODES)] = {}

    @property
    def refusals(self) -> int:
        """Requests answered with an error, whatever the code."""
        return sum(self.refused.values())


class _Tally:
    """A histogram that is being filled."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def snapshot(self) -> Histogram:
        return Histogram(bounds_s=BOUNDS_S, counts=tuple(accumulate(list(self._counts))), sum_s=self._sum_s)


class TurnedAway:
    """Counts those who were not let in, by reason. Any thread may tell, and any may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(REASONS, 0)

    def count(self, reason: Reason) -> None:
        """Count a connection or a greeting that was turned away."""
        with self._lock:
            self._counts[reason] += 1

    def snapshot(self) -> dict[str, int]:
        """Return how many there were for each reason, also where there were none."""
        with self._lock:
            return self._counts.copy()


class Counters:
    """Counts what happens in a server. Its methods are named after the events.

    One thread tells the events. `snapshot` may be called from any thread: each number is right, and those that belong
    together may differ by the event that is just being counted.

    Parameters
    ----------
    clock : callable
        Seconds on a clock that never goes back.
    turned_away : TurnedAway, optional
        Those who were not let in, whom others count.

    Examples
    --------
    >>> counters = Counters()
    >>> counters.accepted(n_bytes=125)
    >>> counters.answered(waited_s=0.001, took_s=0.004, n_frames=1, n_bytes=2000)
    >>> counters.refused("busy")
    >>> status = counters.snapshot()
    >>> status.accepted, status.answered, status.refused
    (1, 1, {'busy': 1})
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, turned_away: TurnedAway | None = None) -> None:
        self._clock = clock
        self._turned_away = turned_away or TurnedAway()
        self._accepted = 0
        self._answered = 0
        self._refused: dict[str, int] = {}
        self._malformed = 0
        self._repeated = 0
        self._cancelled = 0
        self._late = 0
        self._welcomed = 0
        self._resumed = 0
        self._evicted = 0
        self._expired = 0
        self._cut_off = 0
        self.frames = 0
        """Frames answered so far."""
        self._calls = 0
        self._failed_calls = 0
        self._merged = 0
        self._busy_s = 0.0
        self._busy_until_unix_s = 0.0
        self._pattern_bytes = 0
        self._frame_bytes = 0
        self._waited = _Tally()
        self._took = _Tally()
        self._medium_epoch: int | None = None
        self._saturated_fraction: float | None = None
        self._in_flight = 0
        self._device_since_s: float | None = None
        self._beat_s = clock()

    # The loop

    def beat(self) -> None:
        """Note that the loop goes round."""
        self._beat_s = self._clock()

    # Requests

    def accepted(self, n_bytes: int) -> None:
        """Count a projection that was put in the queue, and the bytes of its patterns."""
        self._accepted += 1
        self._pattern_bytes += n_bytes

    def answered(self, *, waited_s: float, took_s: float, n_frames: int, n_bytes: int) -> None:
        """Count a projection that was answered.

        Parameters
        ----------
        waited_s : float
            Seconds from its arrival until the device was given the first of it.
        took_s : float
            Seconds from its arrival to its answer.
        n_frames : int
            Frames in the answer.
        n_bytes : int
            Bytes of those frames.
        """
        self._answered += 1
        self.frames += n_frames
        self._frame_bytes += n_bytes
        self._waited.add(waited_s)
        self._took.add(took_s)

    def refused(self, code: str) -> None:
        """Count a request that was answered with an error, by the code of the error."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def malformed(self) -> None:
        """Count a message that did not follow the protocol, whether it is answered or not."""
        self._malformed += 1

    def repeated(self) -> None:
        """Count an answer that was sent again, without the device, because the client asked again."""
        self._repeated += 1

    def cancelled(self) -> None:
        """Count a request that its client took back."""
        self._cancelled += 1

    def late(self) -> None:
        """Count a projection whose deadline passed before the device began with it."""
        self._late += 1

    # Clients

    def welcomed(self) -> None:
        """Count a new client."""
        self._welcomed += 1

    def resumed(self) -> None:
        """Count a client that came back over a new connection and went on."""
        self._resumed += 1

    def evicted(self) -> None:
        """Count a client that was put out because it did not read."""
        self._evicted += 1

    def expired(self) -> None:
        """Count a client that fell silent."""
        self._expired += 1

    def cut_off(self) -> None:
        """Count a connection that was ended because it sent too much."""
        self._cut_off += 1

    # The device

    def call_began(self) -> None:
        """Note that the device was given a call. `called` or `call_failed` must follow."""
        if self._in_flight == 0:
            self._device_since_s = self._clock()
        self._in_flight += 1

    def called(self, provenance: Provenance, n_requests: int = 1) -> None:
        """Count a call that the device has answered.

        Parameters
        ----------
        provenance : Provenance
            Of all frames of the call.
        n_requests : int
            How many requests it served; all but the first were merged into it.
        """
        self._call_ended()
        self._calls += 1
        self._merged += n_requests - 1
        # Calls may overlap, so that a sum of their times would say that the device is more than busy.
        begun_s = max(provenance.started_unix_s, self._busy_until_unix_s)
        self._busy_s += max(0.0, provenance.finished_unix_s - begun_s)
        self._busy_until_unix_s = provenance.finished_unix_s
        self._medium_epoch = provenance.medium_epoch
        self._smooth_saturation(provenance.saturated_fraction, provenance.n_frames)

    def call_failed(self) -> None:
        """Count a call in which the device failed."""
        self._call_ended()
        self._failed_calls += 1

    def _call_ended(self) -> None:
        self._in_flight -= 1
        self._device_since_s = self._clock() if self._in_flight else None

    def _smooth_saturation(self, fraction: float, n_frames: int) -> None:
        """Average exponentially over about a thousand frames, however they are cut into calls."""
        if not 0.0 <= fraction <= 1.0:
            return  # a driver that does not know what it says
        known = self._saturated_fraction
        weight = 1.0 if known is None else -math.expm1(-n_frames / _SMOOTHED_FRAMES)
        self._saturated_fraction = (known or 0.0) + weight * (fraction - (known or 0.0))

    # Readers

    def snapshot(self) -> CountersStatus:
        """Return everything counted so far."""
        return CountersStatus(
            accepted=self._accepted,
            answered=self._answered,
            refused=self._refused.copy(),
            malformed=self._malformed,
            repeated=self._repeated,
            cancelled=self._cancelled,
            late=self._late,
            welcomed=self._welcomed,
            resumed=self._resumed,
            evicted=self._evicted,
            expired=self._expired,
            cut_off=self._cut_off,
            frames=self.frames,
            calls=self._calls,
            failed_calls=self._failed_calls,
            merged=self._merged,
            busy_s=self._busy_s,
            pattern_bytes=self._pattern_bytes,
            frame_bytes=self._frame_bytes,
            waited=self._waited.snapshot(),
            took=self._took.snapshot(),
            medium_epoch=self._medium_epoch,
            saturated_fraction=self._saturated_fraction,
            resident_bytes=resident_bytes(),
            vitals=self._vitals(),
            turned_away=self._turned_away.snapshot(),
        )

    def _vitals(self) -> Vitals:
        now_s, since_s = self._clock(), self._device_since_s
        return Vitals(
            beat_age_s=max(0.0, now_s - self._beat_s),
            device_s=None if since_s is None else max(0.0, now_s - since_s),
        )
