"""Whose turn it is, and how large batches are cut so that others need not wait for the whole of them.

Requests wait in a queue for each client. The device is kept busy with two at a time, taken from the clients in turns. A
frame has an identity, so a batch may be projected in parts: while several clients have sessions, the device is given
parts that take about a *quantum*; a client alone keeps its batches whole, which a device does fastest.

For the same reason small batches of several clients may share a call. The client whose turn it is *leads*, and others
*ride along* whose sessions differ in nothing but the noise: a call costs more than some frames do.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.device import Batch, Projection, failed_future
from opu.errors import BusyError, DeadlineError, ServerFailureError
from opu.patterns import PackedPatterns
from opu.remote import protocol
from opu.remote.clients import Client, ProjectionJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from opu.device import Device, Provenance, Session, Timing
    from opu.remote.counters import Counters
    from opu.remote.limits import ServerLimits

__all__ = ["Pace", "Turns", "merge"]

_log = logging.getLogger("opu.remote.server")  # it works for the server, whose log `opu serve` shows

_DRIVER_AT_FAULT = "Its driver is at fault."
_DEVICE_DEPTH = 2
_AHEAD_S = 0.002
_SHORTEST_WAIT_S = 0.001
_LONGEST_WAIT_S = 10.0
_FIRST_FRAMES = 16
_SMOOTHING = 0.3
_LARGEST_OVERHEAD = 0.1
_MOST_REQUESTS = 64
_LONGEST_SHARED_CALL = 1.5
_BRIEF_S = 0.001
_FEW_FRAMES = 64
_SHARE_OF_PART = 0.8  # of a quantum; the rest goes to what is around a part: hand-overs, and answers


class Pace:
    """What is known of how fast a device works with a setting, for whichever session.

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
    >>> pace.part_of(100, quantum_s=0.005)  # nothing is known
    17
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._taken_s = 0.0
        self._frames = 0.0
        self._frame_us = 0.0
        self._spends = False
        self._last_s: dict[int, float] = {}  # of a few frames, by their number

    def learn(self, provenance: Provenance) -> None:
        """Note how long a call took, whose frames the provenance is of, whichever sessions had them."""
        taken_s = max(provenance.finished_unix_s - provenance.started_unix_s, 0.0)
        # Sums, because a mean of ratios would take short calls, which cost more for each frame, for the rule.
        self._taken_s += taken_s - _SMOOTHING * self._taken_s
        self._frames += provenance.n_frames - _SMOOTHING * self._frames
        self._frame_us = provenance.frame_us
        if provenance.n_frames <= _FEW_FRAMES:
            self._last_s[provenance.n_frames] = taken_s
        self._spends = taken_s >= 0.9 * provenance.device_us * 1e-6

    def part_of(self, n_frames: int, quantum_s: float, *, alternates: bool = False) -> int:
        """Return how many of so many frames take about a time.

        At least so many that calls do not cost more than a tenth, and so that the parts of a batch are of one size.

        Parameters
        ----------
        n_frames : int
            Those that are left of a batch.
        quantum_s : float
            The time.
        alternates : bool
            Whether a call with another setting comes in between, so that the device is configured anew for each part.
        """
        within = self.frames_within(quantum_s, alternates=alternates)
        return n_frames if n_frames <= within else math.ceil(n_frames / max(1, round(n_frames / within)))

    def seconds_of(self, n_frames: int) -> float:
        """Return about how long frames take; 0 while nothing is known."""
        return n_frames * self._taken_s / self._frames if self._frames else 0.0

    def is_brief(self, n_frames: int) -> bool:
        """Return whether the last call of just so many frames took less than a millisecond.

        The mean of all calls does not tell: a frame of a small one costs more, and the first one of a size may compile.
        """
        return self._last_s.get(n_frames, math.inf) < _BRIEF_S

    def frames_within(self, quantum_s: float, *, alternates: bool = False) -> float:
        """Return how many frames take about a time; infinite where frames take none."""
        if not self._frames:
            return _FIRST_FRAMES
        if self._taken_s <= 0:
            return math.inf
        return max(self._worthwhile(alternates=alternates), int(quantum_s * self._frames / self._taken_s), 1)

    def _worthwhile(self, *, alternates: bool) -> int:
        """Return for how many frames what comes before them is a tenth of their time.

        A device that spends in earnest what it books for that would do little else if the parts were short.
        """
        if not self._spends:
            return 1
        lead_us = self._timing.call_overhead_us + (self._timing.reconfigure_us if alternates else 0.0)
        return math.ceil(lead_us / (_LARGEST_OVERHEAD * self._frame_us))


def merge(parts: Sequence[Provenance]) -> Provenance:
    """Return where the frames of a batch come from that was projected in parts."""
    return parts[0] if len(parts) == 1 else _add(sorted(parts, key=lambda part: part.first_frame_index))


def _add(parts: Sequence[Provenance]) -> Provenance:
    """Return where all frames come from that were projected one part after the other.

    The epoch of the medium is the last one, so that who relies on an earlier one notices.
    """
    if len(parts) == 1:
        return parts[0]
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


@dataclass(eq=False)
class _Call:
    """A call of the device.

    `expected_s` is about how long it takes, and `is_part` says that it is for a part of a batch. `n_left` counts the
    requests that have no outcome yet, `parts` tells where the frames of the others come from.
    """

    pace: Pace
    expected_s: float
    is_part: bool
    n_left: int
    parts: list[Provenance] = field(default_factory=list)


class Turns:
    """Gives the device work, one client after the other.

    Parameters
    ----------
    device : Device
        Projects.
    limits : ServerLimits
        How much may wait.
    counters : Counters
        Told of the calls of the device.
    post : callable
        Has the server call a function soon, from any thread.
    clock : callable
        Returns the time in seconds, and never less than before.
    projected : callable
        Called with a client, its job, and the frames or the error that came of it.
    reached : callable
        Called with a client and a job that is no projection, when everything before it is done.
    """

    def __init__(
        self,
        device: Device,
        limits: ServerLimits,
        counters: Counters,
        post: Callable[..., None],
        *,
        clock: Callable[[], float],
        projected: Callable[[Client, ProjectionJob, Projection | Exception], None],
        reached: Callable[[Client, protocol.CloseSession | protocol.Bye], None],
    ) -> None:
        self._device = device
        self._limits = limits
        self._counters = counters
        self._post = post
        self._clock = clock
        self._projected = projected
        self._reached = reached
        self._order: deque[Client] = deque()
        self._in_flight: deque[_Call] = deque()
        self._begun_s = 0.0  # when the device began with the first of them, as far as one knows
        self._waiting_bytes = 0
        self._call_s = 0.0
        self._next_due_s = math.inf
        self._interludes: deque[Callable[[], Future[Any]]] = deque()
        self._in_interlude = False
        self.has_worked_here = False
        self.queued = 0

    def join(self, client: Client) -> None:
        """Give a client its place."""
        self._order.append(client)

    def leave(self, client: Client) -> None:
        """Forget a client and its jobs. What the device is working at comes to nothing."""
        self._order.remove(client)
        self.queued -= len(client.projections)
        client.projections.clear()
        self._waiting_bytes -= sum(job.request.payload_bytes for job in client.jobs if isinstance(job, ProjectionJob))
        client.jobs.clear()

    def add(self, client: Client, job: ProjectionJob) -> None:
        """Queue a projection.

        Raises
        ------
        BusyError
            A queue is full; nothing was queued.
        """
        if len(client.projections) >= self._limits.max_queued:
            raise BusyError(
                f"This client has {len(client.projections)} unanswered requests, as many as a client may have.",
                "Wait for an answer, then send the request again.",
                self._wait_s(1),
            )
        full = self._waiting_bytes + job.request.payload_bytes > self._limits.max_queued_bytes
        if full or self.queued >= self._limits.max_queued_total:
            wait_s = self._wait_s(max(1, self.queued // 2))
            raise BusyError(
                f"The queue of the server is full: {self.queued} requests wait.",
                f"Send the request again in {wait_s:.3f} s.",
                wait_s,
            )
        client.jobs.append(job)
        client.projections[job.request.request_id] = job
        self.queued += 1
        self._waiting_bytes += job.request.payload_bytes
        if job.due_s is not None:
            self._next_due_s = min(self._next_due_s, job.due_s)

    def give(self, now_s: float) -> None:
        """Take up jobs as long as the device has room, or until this thread has done the work of one."""
        if now_s >= self._next_due_s:
            self._give_up_overdue(now_s)
        idle = 0
        self.has_worked_here = False
        while self.wait_s(now_s) == 0 and idle < len(self._order) and not self.has_worked_here:
            client = self._order[0]
            self._order.rotate(-1)
            idle = 0 if self._take_job(client, now_s) else idle + 1
        if self._interludes and not self._in_interlude and self._is_between_batches():
            self._in_interlude = True
            self._interludes[0]().add_done_callback(lambda _: self._post(self._end_interlude))

    @property
    def has_work(self) -> bool:
        """Whether a client waits for its turn."""
        return any(client.jobs for client in self._order)

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until the device is given another call; infinite until it has answered one.

        It has two at a time, so that it need not wait for the next one. Behind a part of a batch the second one is
        given when that part is nearly done: whoever comes until then is served next.
        """
        if not self._in_flight:
            return 0.0
        if len(self._in_flight) >= _DEVICE_DEPTH:
            return math.inf
        if not self._in_flight[0].is_part:
            return 0.0
        return max(0.0, self._begun_s + self._in_flight[0].expected_s - _AHEAD_S - now_s)

    def interrupt(self, begin: Callable[[], Future[Any]]) -> None:
        """Have something done between two batches, none of which is half done.

        Parameters
        ----------
        begin : callable
            Begins it, and returns a future that is done when it is.
        """
        self._interludes.append(begin)

    def withdraw(self, client: Client, job: ProjectionJob) -> None:
        """End a job, whether the device has done all of it or not."""
        del client.projections[job.request.request_id]
        self.queued -= 1
        if job.n_left:
            client.jobs.remove(job)
            self._waiting_bytes -= job.request.payload_bytes

    def _is_between_batches(self) -> bool:
        begun = (isinstance(c.jobs[0], ProjectionJob) and c.jobs[0].n_given > 0 for c in self._order if c.jobs)
        return not self._in_flight and not any(begun)

    def _end_interlude(self) -> None:
        self._interludes.popleft()
        self._in_interlude = False

    def _wait_s(self, n_requests: int) -> float:
        """Guess when so many requests are done."""
        return min(max(n_requests * self._call_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)

    def _give_up_overdue(self, now_s: float) -> None:
        self._next_due_s = math.inf
        for client in list(self._order):
            for job in list(client.jobs):
                if not isinstance(job, ProjectionJob) or job.due_s is None or job.n_given:
                    continue
                if job.due_s > now_s:
                    self._next_due_s = min(self._next_due_s, job.due_s)
                    continue
                self.withdraw(client, job)
                error = DeadlineError(
                    f"The device had not begun with the batch {now_s - job.arrived_s:.3f} s after it came, and its "
                    f"deadline was {job.request.deadline_s:g} s.",
                    "Grant more time, or send fewer and smaller batches.",
                )
                self._projected(client, job, error)
                if client.gone:
                    break  # it could not be told, and its other jobs went with it

    def _take_job(self, client: Client, now_s: float) -> bool:
        if not client.jobs:
            return False
        job = client.jobs[0]
        is_begun = isinstance(job, ProjectionJob) and job.n_given > 0
        if not is_begun and not self._may_begin(client):
            return False
        if isinstance(job, ProjectionJob):
            self._project(client, job, now_s)
            return True
        if client.in_flight:
            return False
        if isinstance(job, protocol.Bye) and (len(client.unanswered) > 1 or client.outbox.count_on_the_way()):
            return False  # a client that leaves counts as one until it has read what it asked for
        client.jobs.popleft()
        self._reached(client, job)
        return True

    def _may_begin(self, client: Client) -> bool:
        """Whether a job of a client may be begun: it is there, reads its answers, and nobody wants an interlude."""
        return not (client.outbox or client.route is None or self._interludes)

    def _project(self, client: Client, job: ProjectionJob, now_s: float) -> None:
        """Give the device a call: a batch, or the next part of one, and what rides along."""
        n_frames = self._frames_in_turn(client, job)
        requests = [(client, job, n_frames), *self._riders(client, job, n_frames)]
        pace = job.session.pace
        expected_s = pace.seconds_of(sum(n for _, _, n in requests))
        call = _Call(pace, expected_s, n_frames < job.request.batch, len(requests))
        self._counters.call_began()
        if not self._in_flight:
            self._begun_s = now_s
        self._in_flight.append(call)
        parts = [_as_request(its_job, self._begin(sender, its_job, n, now_s)) for sender, its_job, n in requests]
        outcomes = self._try_here(call, parts)
        if outcomes is not None:
            for (sender, its_job, _), outcome in zip(requests, outcomes, strict=True):
                self._try_part_done(call, sender, its_job, outcome)
            return
        for (sender, its_job, _), future in zip(requests, self._submit(parts), strict=True):
            future.add_done_callback(partial(self._post, self._future_done, call, sender, its_job))

    def _frames_in_turn(self, client: Client, job: ProjectionJob) -> int:
        """Return how many frames of a batch the device is given now: all, unless others could want their turn."""
        if not any(other.sessions for other in self._order if other is not client):
            return job.n_left
        pace = job.session.pace
        first_jobs = (other.jobs[0] for other in self._order if other.jobs and other is not client)
        alternates = any(isinstance(first, ProjectionJob) and first.session.pace is not pace for first in first_jobs)
        return pace.part_of(job.n_left, _SHARE_OF_PART * self._limits.quantum_s, alternates=alternates)

    def _riders(self, lead: Client, job: ProjectionJob, n_frames: int) -> list[tuple[Client, ProjectionJob, int]]:
        """Return the batches of others that ride along with frames of a job, which uses up the turns of their clients.

        They come in turn order, and together with the frames take a quantum, or up to half of one more.
        """
        session = job.session
        if len(self._order) == 1 or not session.device_session.can_share:
            return []
        within = session.pace.frames_within(self._limits.quantum_s)
        room = min(_LONGEST_SHARED_CALL * within, session.description.max_batch) - n_frames
        riders: list[tuple[Client, ProjectionJob, int]] = []
        for client in list(self._order):
            first = client.jobs[0] if client.jobs and client is not lead and self._may_begin(client) else None
            if not isinstance(first, ProjectionJob) or first.n_given or first.session.pace is not session.pace:
                continue  # there is one pace for each setting
            if first.n_left <= room and len(riders) + 1 < _MOST_REQUESTS:
                riders.append((client, first, first.n_left))
                room -= first.n_left
                self._order.remove(client)
                self._order.append(client)
        return riders

    def _begin(self, client: Client, job: ProjectionJob, n_frames: int, now_s: float) -> slice:
        """Note that the device is given frames of a client's first job, and return which."""
        client.in_flight += 1
        if job.n_given == 0:
            job.begun_s = now_s
        rows = slice(job.n_given, job.n_given + n_frames)
        job.n_given = rows.stop
        if job.n_left == 0:
            client.jobs.popleft()
            self._waiting_bytes -= job.request.payload_bytes
        return rows

    def _try_here(self, call: _Call, parts: list[tuple[Session, Batch]]) -> list[Projection | Exception] | None:
        """Do the work of a brief call in this thread, where the device allows that: see `Device.project_here`.

        One call in a turn of the server, which hears nobody meanwhile.
        """
        n_frames = sum(len(batch.patterns) for _, batch in parts)
        if call.is_part or len(self._in_flight) > 1 or not call.pace.is_brief(n_frames):
            return None
        outcomes: list[Projection | Exception] | None
        try:
            outcomes = self._device.project_here(parts)
            if outcomes is not None and len(outcomes) != len(parts):
                raise ServerFailureError("The device answered other requests than it was given.", _DRIVER_AT_FAULT)
        except Exception as error:  # noqa: BLE001 - whatever it was, the clients must hear of it
            outcomes = [error] * len(parts)
        self.has_worked_here = outcomes is not None
        return outcomes

    def _submit(self, parts: list[tuple[Session, Batch]]) -> list[Future[Projection]]:
        try:
            return self._device.submit_together(parts)
        except Exception as error:  # noqa: BLE001 - whatever it was, the clients must hear of it
            return [failed_future(error) for _ in parts]

    def _future_done(self, call: _Call, client: Client, job: ProjectionJob, done: Future[Projection]) -> None:
        try:
            part: Projection | Exception = done.result()
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            part = error
        self._part_done(call, client, job, part)

    def _try_part_done(self, call: _Call, client: Client, job: ProjectionJob, part: Projection | Exception) -> None:
        """See to one outcome of several, of which the others are not at fault."""
        try:
            self._part_done(call, client, job, part)
        except Exception:  # noqa: BLE001 - whatever it was
            _log.exception("an answer to client %s failed", client.label)

    def _part_done(self, call: _Call, client: Client, job: ProjectionJob, part: Projection | Exception) -> None:
        client.in_flight -= 1
        call.n_left -= 1
        if isinstance(part, Projection):
            call.parts.append(part.provenance)
        if call.n_left == 0:
            self._call_done(call)
        if client.projections.get(job.request.request_id) is not job:
            return  # it has been cancelled or has failed before, or the client has gone
        outcome: Projection | Exception | None
        try:
            outcome = self._join_parts(job, part) if isinstance(part, Projection) else part
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            outcome = error
        if outcome is not None:
            self.withdraw(client, job)
            self._projected(client, job, outcome)

    def _call_done(self, call: _Call) -> None:
        """Learn from a call of which every request has an outcome."""
        self._in_flight.remove(call)
        self._begun_s = self._clock()
        if not call.parts:
            self._counters.call_failed()
            return
        whole = _add(call.parts)
        self._counters.called(whole, len(call.parts))
        call.pace.learn(whole)
        taken_s = max(whole.finished_unix_s - whole.started_unix_s, 0.0)
        self._call_s += _SMOOTHING * (taken_s / len(call.parts) - self._call_s)

    def _join_parts(self, job: ProjectionJob, part: Projection) -> Projection | None:
        """Note a part, and return the whole when it was the last one."""
        job.parts.append(part.provenance)
        job.n_done += part.provenance.n_frames
        if job.frames is not None and not np.may_share_memory(part.frames, job.frames):
            raise ServerFailureError("The device left the buffer that it was given empty.", _DRIVER_AT_FAULT)
        if job.n_done < job.request.batch:
            return None
        return Projection(part.frames if job.frames is None else job.frames, merge(job.parts))


def _as_request(job: ProjectionJob, rows: slice) -> tuple[Session, Batch]:
    """Return a part of a batch in the form that the device takes."""
    patterns = job.patterns
    if rows.stop - rows.start < len(patterns):
        patterns = PackedPatterns(patterns.bits[rows], patterns.n_features)
    batch = Batch(patterns, job.request.first_frame_index + rows.start, _part_of(job, rows))
    return job.session.device_session, batch


def _part_of(job: ProjectionJob, rows: slice) -> NDArray[Any] | None:
    """Return where the frames of a part of a batch go; None leaves that to the device, for whole batches."""
    if rows.stop - rows.start == job.request.batch:
        return None
    if job.frames is None:
        description = job.session.description
        job.frames = np.empty((job.request.batch, description.config.n_outputs), description.frame_dtype)
    return job.frames[rows]
