"""How fast a device answers, by batch size."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opu.device import SessionConfig, check_frame_numbers
from opu.patterns import pack

if TYPE_CHECKING:
    from opu.device import Device, Session
    from opu.patterns import PackedPatterns

__all__ = ["DEFAULT_BATCHES", "Throughput", "measure_throughput"]

DEFAULT_BATCHES = (1, 16, 128, 512)
_IN_FLIGHT = 4
_MIN_CALLS = 5


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Rate and latency at one batch size.

    `where` is `in_process` or `link`. `frames_per_s` is measured with four batches in flight; `p50_us` and `p99_us` are
    the median and the 99th percentile of the time from call to answer with one. All are wall-clock times of this
    machine, not device time.
    """

    where: str
    batch: int
    n_features: int
    n_outputs: int
    frames_per_s: float
    p50_us: float
    p99_us: float


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
    config = SessionConfig(n_features=n_features, n_outputs=n_outputs)
    where = "in_process" if device.describe().backend != "tcp" else "link"
    generator = np.random.default_rng(0)
    rows = []
    with device.open_session(config) as session:
        for batch in batches:
            check_frame_numbers(0, batch, session.describe().max_batch)
        for batch in batches:
            patterns = pack(generator.random((batch, n_features)) < 0.5)
            session.project(patterns)
            latencies_us = 1e6 * np.array(_latencies_s(session, patterns, seconds))
            row = Throughput(
                where=where,
                batch=batch,
                n_features=n_features,
                n_outputs=n_outputs,
                frames_per_s=_rate(session, patterns, seconds),
                p50_us=float(np.percentile(latencies_us, 50)),
                p99_us=float(np.percentile(latencies_us, 99)),
            )
            rows.append(row)
            on_result(row)
    return rows


def _latencies_s(session: Session, patterns: PackedPatterns, seconds: float) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies) < _MIN_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        session.project(patterns)
        latencies.append(time.perf_counter() - started)
    return latencies


def _rate(session: Session, patterns: PackedPatterns, seconds: float) -> float:
    waiting = deque(session.submit(patterns) for _ in range(_IN_FLIGHT))
    started = time.perf_counter()
    done = 0
    while done < _MIN_CALLS or time.perf_counter() - started < seconds:
        waiting.popleft().result()
        done += 1
        waiting.append(session.submit(patterns))
    while waiting:
        waiting.popleft().result()
        done += 1
    return done * len(patterns) / (time.perf_counter() - started)
