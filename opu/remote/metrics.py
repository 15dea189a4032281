"""The status of a server as Prometheus reads it: the text exposition format, version 0.0.4.

`METRICS` is the one list of what there is; the renderer, the documentation and its test read it.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import opu
from opu.console import visible
from opu.remote.counters import Histogram
from opu.remote.protocol import PROTOCOL_VERSION, ClientStatus, ServerStatus

__all__ = ["CONTENT_TYPE", "METRICS", "Metric", "list_metrics", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MOST_CLIENTS = 64
_MOST_NAME = 64

Number: TypeAlias = int | float
Labels: TypeAlias = Mapping[str, str]
Reading: TypeAlias = Number | Histogram | Iterable[tuple[Labels, Number]] | None


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    name : str
        With its unit; counters end in `_total`.
    kind : str
        `counter`, `gauge` or `histogram`.
    summary : str
        One line for people.
    read : callable
        Takes it from the status of a server: a number, a histogram, pairs of labels and number, or None if the server
        does not know.
    labels : tuple of str
        The names of its labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    summary: str
    read: Callable[[ServerStatus], Reading]
    labels: tuple[str, ...] = ()


def _each_client(read: Callable[[ClientStatus], Number]) -> Callable[[ServerStatus], Reading]:
    """Read from each client, but not from so many that they would flood who collects them."""

    def read_clients(status: ServerStatus) -> Reading:
        return [
            ({"client_id": str(client.client_id), "name": client.name[:_MOST_NAME]}, read(client))
            for client in status.clients[:_MOST_CLIENTS]
        ]

    return read_clients


def _build(_: ServerStatus) -> Reading:
    protocol = ".".join(map(str, PROTOCOL_VERSION))
    return [({"version": opu.__version__, "protocol": protocol}, 1)]


def _refused(status: ServerStatus) -> Reading:
    return [({"code": code}, count) for code, count in sorted(status.counters.refused.items())]


def _turned_away(status: ServerStatus) -> Reading:
    return [({"reason": reason}, count) for reason, count in status.counters.turned_away.items()]


_CLIENT_LABELS = ("client_id", "name")

METRICS = (
    Metric("openopu_build_info", "gauge", "Always 1; its labels say what runs.", _build, ("version", "protocol")),
    Metric("openopu_uptime_seconds", "gauge", "Time since the server started.", lambda s: s.uptime_s),
    Metric(
        "openopu_draining",
        "gauge",
        "1 while the server is being stopped, otherwise 0.",
        lambda s: int(s.draining),
    ),
    Metric(
        "openopu_loop_age_seconds",
        "gauge",
        "Time since the loop of the server last went round; some tenths of a second at rest.",
        lambda s: s.counters.vitals.beat_age_s,
    ),
    Metric(
        "openopu_resident_memory_bytes",
        "gauge",
        "Resident memory of the server's process.",
        lambda s: s.counters.resident_bytes,
    ),
    Metric(
        "openopu_requests_accepted_total",
        "counter",
        "Projections that were put in the queue.",
        lambda s: s.counters.accepted,
    ),
    Metric(
        "openopu_requests_answered_total", "counter", "Projections that were answered.", lambda s: s.counters.answered
    ),
    Metric(
        "openopu_requests_refused_total",
        "counter",
        "Requests of any kind that were answered with an error, by the code of the error.",
        _refused,
        ("code",),
    ),
    Metric(
        "openopu_requests_repeated_total",
        "counter",
        "Answers that were sent again without the device, because a client asked again.",
        lambda s: s.counters.repeated,
    ),
    Metric(
        "openopu_requests_cancelled_total",
        "counter",
        "Requests that clients took back.",
        lambda s: s.counters.cancelled,
    ),
    Metric(
        "openopu_requests_merged_total",
        "counter",
        "Projections that went to the device within the call of another one.",
        lambda s: s.counters.merged,
    ),
    Metric(
        "openopu_requests_late_total",
        "counter",
        "Projections whose deadline passed before the device began with them.",
        lambda s: s.counters.late,
    ),
    Metric(
        "openopu_messages_malformed_total",
        "counter",
        "Messages that did not follow the protocol.",
        lambda s: s.counters.malformed,
    ),
    Metric("openopu_queued_requests", "gauge", "Projections that are not answered yet.", lambda s: s.queued),
    Metric(
        "openopu_request_wait_seconds",
        "histogram",
        "Time of a projection from its arrival until the device was given the first of it.",
        lambda s: s.counters.waited,
    ),
    Metric(
        "openopu_request_duration_seconds",
        "histogram",
        "Time of a projection from its arrival to its answer.",
        lambda s: s.counters.took,
    ),
    Metric("openopu_frames_total", "counter", "Camera frames in the answers.", lambda s: s.counters.frames),
    Metric(
        "openopu_pattern_bytes_total",
        "counter",
        "Bytes of patterns that were taken in.",
        lambda s: s.counters.pattern_bytes,
    ),
    Metric("openopu_frame_bytes_total", "counter", "Bytes of frames in the answers.", lambda s: s.counters.frame_bytes),
    Metric("openopu_device_calls_total", "counter", "Calls that the device answered.", lambda s: s.counters.calls),
    Metric(
        "openopu_device_calls_failed_total",
        "counter",
        "Calls in which the device failed.",
        lambda s: s.counters.failed_calls,
    ),
    Metric(
        "openopu_device_busy_seconds_total",
        "counter",
        "Time in which the device worked; its rate is how busy the device is, from 0 to 1.",
        lambda s: s.counters.busy_s,
    ),
    Metric(
        "openopu_device_pending_seconds",
        "gauge",
        "For how long the device has been working without an answer; 0 if it has nothing to do.",
        lambda s: s.counters.vitals.device_s or 0.0,
    ),
    Metric(
        "openopu_medium_epoch",
        "gauge",
        "Epoch of the medium in the last frames; it rises when the medium has become another one.",
        lambda s: s.counters.medium_epoch,
    ),
    Metric(
        "openopu_saturated_ratio",
        "gauge",
        "Fraction of saturated pixels, averaged over about the last thousand frames.",
        lambda s: s.counters.saturated_fraction,
    ),
    Metric("openopu_clients", "gauge", "Clients that are known.", lambda s: len(s.clients)),
    Metric(
        "openopu_clients_disconnected",
        "gauge",
        "Those of them whose connection has ended and that may come back.",
        lambda s: sum(not client.connected for client in s.clients),
    ),
    Metric(
        "openopu_lease_held", "gauge", "1 while somebody holds the device's lease.", lambda s: int(s.lease is not None)
    ),
    Metric(
        "openopu_sessions", "gauge", "Sessions that are open.", lambda s: sum(client.sessions for client in s.clients)
    ),
    Metric("openopu_clients_welcomed_total", "counter", "Clients that came.", lambda s: s.counters.welcomed),
    Metric(
        "openopu_clients_resumed_total",
        "counter",
        "Clients that came back over a new connection and went on.",
        lambda s: s.counters.resumed,
    ),
    Metric(
        "openopu_clients_evicted_total",
        "counter",
        "Clients that were put out because they did not read.",
        lambda s: s.counters.evicted,
    ),
    Metric("openopu_clients_expired_total", "counter", "Clients that fell silent.", lambda s: s.counters.expired),
    Metric(
        "openopu_connections_cut_off_total",
        "counter",
        "Connections that were ended because they sent too much.",
        lambda s: s.counters.cut_off,
    ),
    Metric(
        "openopu_admissions_refused_total",
        "counter",
        "Connections and greetings that were turned away, by the reason.",
        _turned_away,
        ("reason",),
    ),
    Metric(
        "openopu_client_sessions",
        "gauge",
        f"Open sessions of a client. Of this and the next ones the first {_MOST_CLIENTS} clients are told.",
        _each_client(lambda client: client.sessions),
        _CLIENT_LABELS,
    ),
    Metric(
        "openopu_client_queued_requests",
        "gauge",
        "Projections of a client that are not answered yet.",
        _each_client(lambda client: client.queued),
        _CLIENT_LABELS,
    ),
    Metric(
        "openopu_client_frames_total",
        "counter",
        "Camera frames in the answers to a client.",
        _each_client(lambda client: client.frames),
        _CLIENT_LABELS,
    ),
    Metric(
        "openopu_client_refused_total",
        "counter",
        "Requests of a client that were answered with an error.",
        _each_client(lambda client: client.refused),
        _CLIENT_LABELS,
    ),
)


def render(status: ServerStatus) -> str:
    """Write the metrics of a server.

    Parameters
    ----------
    status : ServerStatus
        Of a server; metrics that it does not know are left out.

    Returns
    -------
    str
        Lines that end in a line feed; the media type is `CONTENT_TYPE`.

    Examples
    --------
    >>> import opu
    >>> from opu.remote.server import OpuServer
    >>> with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
    ...     text = render(server.snapshot())
    >>> "openopu_frames_total 0" in text.splitlines()
    True
    """
    return "".join(f"{line}\n" for metric in METRICS for line in _lines(metric, metric.read(status)))


def list_metrics() -> str:
    """Return the table of the documentation, in Markdown."""
    rows = (
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.summary} |"
        for metric in METRICS
    )
    return "\n".join(("| Name | Type | Labels | Meaning |", "|---|---|---|---|", *rows))


def _lines(metric: Metric, reading: Reading) -> Iterator[str]:
    samples = list(_samples(metric.name, reading))
    if samples:
        yield f"# HELP {metric.name} {_escape(metric.summary)}"
        yield f"# TYPE {metric.name} {metric.kind}"
        yield from samples


def _samples(name: str, reading: Reading) -> Iterator[str]:
    if reading is None:
        return
    if isinstance(reading, Histogram):
        for bound, count in zip([*map(str, reading.bounds_s), "+Inf"], reading.counts, strict=True):
            yield _sample(f"{name}_bucket", {"le": bound}, count)
        yield _sample(f"{name}_sum", {}, reading.sum_s)
        yield _sample(f"{name}_count", {}, reading.total)
    elif isinstance(reading, (int, float)):
        yield _sample(name, {}, reading)
    else:
        for labels, number in reading:
            yield _sample(name, labels, number)


def _sample(name: str, labels: Labels, number: Number) -> str:
    inside = ",".join(f'{label}="{_escape(visible(text), quote=True)}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
