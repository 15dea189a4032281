"""How fast a device answers, by batch size, and what a link to it costs."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

import msgspec
import numpy as np

from opu.device import SessionConfig, check_frame_numbers
from opu.errors import ConfigError
from opu.patterns import pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import Device, Session
    from opu.patterns import PackedPatterns

__all__ = [
    "DEFAULT_BATCHES",
    "LinkCost",
    "Service",
    "Shape",
    "Submit",
    "Throughput",
    "Waiting",
    "measure_in_turns",
    "measure_throughput",
]

DEFAULT_BATCHES = (1, 16, 128, 512)
_IN_FLIGHT = 4
_MIN_CALLS = 5


class Waiting(Protocol):
    """A call whose answer is on its way, such as a `Future`."""

    def result(self) -> object:
        """Wait for the answer."""


Submit: TypeAlias = Callable[[], Waiting]
"""Sends a batch and returns at once."""


@dataclass(frozen=True)
class Service:
    """What is measured.

    Parameters
    ----------
    submit : callable
        Sends a batch and returns at once.
    project : callable
        Sends a batch and waits for the answer.
    """

    submit: Submit
    project: Callable[[], object]

    @classmethod
    def of(cls, session: Session, patterns: PackedPatterns) -> Self:
        """Return the service of a session that projects patterns."""
        return cls(partial(session.submit, patterns), partial(session.project, patterns))


class Shape(msgspec.Struct, frozen=True):
    """The sizes of a call: patterns, the width of each, and the width of a frame.

    Examples
    --------
    >>> Shape.parse("512x1000x10000")
    Shape(batch=512, n_features=1000, n_outputs=10000)
    """

    batch: int
    n_features: int
    n_outputs: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `BATCHxFEATURESxOUTPUTS`.

        Raises
        ------
        ConfigError
            The text has another form.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", text, re.ASCII)
        if found is None:
            raise ConfigError(
                f"The shape {text!r} is none.", "Write three positive whole numbers, BATCHxFEATURESxOUTPUTS."
            )
        return cls(*map(int, found.groups()))

    @property
    def config(self) -> SessionConfig:
        """The session for such calls."""
        return SessionConfig(n_features=self.n_features, n_outputs=self.n_outputs)

    def patterns(self) -> PackedPatterns:
        """Return a batch of random patterns, the same ones each time, half of the features on."""
        return pack(np.random.default_rng(0).random((self.batch, self.n_features)) < 0.5)


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Rate and latency at one batch size.

    `where` is `in_process`, `link` or `echo` (of a bare ZeroMQ echo with messages of the same sizes).
    `frames_per_s` is measured with four batches in flight, the median over the rounds; `p50_us` and `p99_us` are the
    median (again the median over the rounds) and the 99th percentile (of all rounds) of the time of a call that waits
    for its answer, with no other batch in flight. All are wall-clock times of this machine, not device time.
    """

    where: str
    batch: int
    n_features: int
    n_outputs: int
    frames_per_s: float
    p50_us: float
    p99_us: float


class LinkCost(msgspec.Struct, frozen=True, kw_only=True):
    """A link beside the device that is served, and beside a bare echo of the same messages.

    `throughput_ratio` is the link's rate over the device's. `round_trip_ratio` is the link's median time over the sum
    of the echo's and the device's. `added_ratio` is what the link adds to the device's median time, over the echo's.
    """

    batch: int
    n_features: int
    n_outputs: int
    throughput_ratio: float
    round_trip_ratio: float
    added_ratio: float

    @classmethod
    def of(cls, device: Throughput, link: Throughput, echo: Throughput) -> Self:
        """Compare three measurements of a shape.

        Examples
        --------
        >>> shape = {"batch": 1, "n_features": 1000, "n_outputs": 1000, "p99_us": 9e3}
        >>> LinkCost.of(
        ...     Throughput(where="in_process", frames_per_s=1000.0, p50_us=1200.0, **shape),
        ...     Throughput(where="link", frames_per_s=900.0, p50_us=1650.0, **shape),
        ...     Throughput(where="echo", frames_per_s=9000.0, p50_us=300.0, **shape),
        ... )
        LinkCost(batch=1, n_features=1000, n_outputs=1000, throughput_ratio=0.9, round_trip_ratio=1.1, added_ratio=1.5)
        """
        return cls(
            batch=link.batch,
            n_features=link.n_features,
            n_outputs=link.n_outputs,
            throughput_ratio=link.frames_per_s / device.frames_per_s,
            round_trip_ratio=link.p50_us / (echo.p50_us + device.p50_us),
            added_ratio=(link.p50_us - device.p50_us) / echo.p50_us,
        )


def measure_throughput(
    device: Device,
    *,
    batches: tuple[int, ...] = DEFAULT_BATCHES,
    n_features: int = 1000,
    n_outputs: int = 1000,
    seconds: float = 1.0,
    on_result: Callable[[Throughput], None] = lambda _: None,
) -> list[Throughput]:
    """Measure projections per second and latency.

    Parameters
    ----------
    device : Device
        Any device.
    batches : tuple of int
        Patterns in a call.
    n_features, n_outputs : int
        The session.
    seconds : float
        How long to measure each number, after one call that does not count.
    on_result : callable, optional
        Called with each row as soon as it is there.

    Returns
    -------
    list of Throughput
        A row for each batch size.

    Raises
    ------
    ConfigError, CapacityError
        The device does not offer such a session, or it does not take such a batch; nothing was measured.
    """
    where = "in_process" if device.describe().backend != "tcp" else "link"
    shapes = [Shape(batch, n_features, n_outputs) for batch in batches]
    rows = []
    with device.open_session(SessionConfig(n_features=n_features, n_outputs=n_outputs)) as session:
        for batch in batches:
            check_frame_numbers(0, batch, session.describe().max_batch)
        for shape in shapes:
            patterns = shape.patterns()
            [row] = measure_in_turns({where: Service.of(session, patterns)}, shape, seconds=seconds)
            rows.append(row)
            on_result(row)
    return rows


def measure_in_turns(
    services: Mapping[str, Service], shape: Shape, *, seconds: float = 1.0, rounds: int = 1
) -> list[Throughput]:
    """Measure several services of a shape in turns, so that a busy machine is busy for all.

    Parameters
    ----------
    services : mapping of str to Service
        What is measured, by the `where` of its row: each sends a batch of that shape.
    shape : Shape
        For the rows.
    seconds : float
        How long to measure each number, over all rounds.
    rounds : int
        How often each service has its turn. Each turn begins with a call that does not count.

    Returns
    -------
    list of Throughput
        A row for each service.

    Examples
    --------
    >>> import opu
    >>> shape = Shape(4, 100, 50)
    >>> with opu.open("sim:?preset=ideal") as device, device.open_session(shape.config) as session:
    ...     patterns = shape.patterns()
    ...     rows = measure_in_turns({"in_process": Service.of(session, patterns)}, shape, seconds=0.01)
    >>> rows[0].where, rows[0].n_outputs
    ('in_process', 50)
    """
    latencies_us: dict[str, list[NDArray[np.float64]]] = {where: [] for where in services}
    rates: dict[str, list[float]] = {where: [] for where in services}
    for _ in range(rounds):
        for where, service in services.items():
            service.project()
            latencies_us[where].append(1e6 * np.array(_latencies_s(service.project, seconds / rounds)))
            rates[where].append(shape.batch * _calls_per_s(service.submit, seconds / rounds))
    return [
        Throughput(
            where=where,
            batch=shape.batch,
            n_features=shape.n_features,
            n_outputs=shape.n_outputs,
            frames_per_s=float(np.median(rates[where])),
            p50_us=float(np.median([np.median(one_round) for one_round in latencies_us[where]])),
            p99_us=float(np.percentile(np.concatenate(latencies_us[where]), 99)),
        )
        for where in services
    ]


def _latencies_s(project: Callable[[], object], seconds: float) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies) < _MIN_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        project()
        latencies.append(time.perf_counter() - started)
    return latencies


def _calls_per_s(submit: Submit, seconds: float) -> float:
    waiting = deque(submit() for _ in range(_IN_FLIGHT))
    started = time.perf_counter()
    done = 0
    while done < _MIN_CALLS or time.perf_counter() - started < seconds:
        waiting.popleft().result()
        done += 1
        waiting.append(submit())
    while waiting:
        waiting.popleft().result()
        done += 1
    return done / (time.perf_counter() - started)
