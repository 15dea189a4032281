"""`opu serve`: share a device over the network."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

import opu
from opu.cli.server_log import LogFormat, open_log
from opu.console import JsonOption, reporting, table
from opu.errors import ConfigError, ServerFailureError
from opu.remote import DEFAULT_BIND
from opu.remote.health import HealthLimits, find_fault

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from opu.remote.protocol import ServerStatus
    from opu.remote.server import OpuServer

__all__ = ["serve"]

COLUMNS = ("Client", "Name", "Sessions", "Frames", "In queue", "Refused")
_QUANTUM_MS = 5.0  # that of ServerLimits, which loads the protocol
_LOOK_S = 0.1
_LOOKS_PER_PICTURE = 5
_LOOKS_TO_REST = 2  # sessions and connections of a client that has left end later than it does


class _Policy(StrEnum):
    off = "off"
    auto = "auto"
    required = "required"


def serve(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The device to serve.")],
    bind: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="Where to listen; the port 0 is any free one.")
    ] = DEFAULT_BIND,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIRECTORY",
            help="The secret key of the server (opu keygen server), or a directory with server.key and allow.toml.",
        ),
    ] = None,
    allow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The clients that may come in: the NAME.pub of each.")
    ] = None,
    policy: Annotated[
        _Policy,
        typer.Option(
            help="auto: keys if given, and always beyond the loopback interface; required: always; off: never."
        ),
    ] = _Policy.auto,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen without keys where other machines reach it.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics (for Prometheus) and /health over HTTP there."),
    ] = None,
    metrics_beyond_loopback: Annotated[
        bool,
        typer.Option(
            "--metrics-beyond-loopback", help="Let other machines read the metrics: without keys, in the open."
        ),
    ] = False,
    stuck_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=1.0, help="How long the device may work on a call until /health finds that ill."
        ),
    ] = HealthLimits.device_s,
    announce: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Announce the server on its network under this name (extra: discovery)."),
    ] = None,
    quantum_ms: Annotated[
        float,
        typer.Option(
            metavar="MILLISECONDS",
            min=0.1,
            max=60000.0,
            help="About how long the device works for a client before another one's turn, while several have sessions. "
            "Less: small requests wait less. More: large batches are cut into fewer calls.",
        ),
    ] = _QUANTUM_MS,
    log: Annotated[
        LogFormat, typer.Option(help="text: lines for people; json: one JSON object a line.")
    ] = LogFormat.text,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Apply a calibration that opu calibrate --save has written: every client has it, and sees its id and "
            "its age.",
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Serve a device to many clients, until SIGINT (Ctrl-C) or SIGTERM.

    Shows clients, queue and rate on a terminal, and a line for each event otherwise. When it stops, every accepted
    request is answered or refused, or asked again by a client that comes back; the same signal again ends it at once.
    Without keys it listens on the loopback interface alone; opu keygen makes them.

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind tcp://127.0.0.1:5755

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind 'tcp://*:5755' --keys keys

    Example: opu serve 'sim:?preset=aurora&seed=7' --metrics 127.0.0.1:9755 --log json

    Example: opu serve 'sim:?preset=aurora&seed=7' --calibration calibration.h5
    """
    from opu.remote.memory import use_one_arena

    use_one_arena()  # before any other thread has one
    with (
        reporting("serve", json_to) as report,
        open_log(report.console, log) as server_log,
        _stop_signals() as received,
    ):
        from opu.remote.gate import open_gate
        from opu.remote.limits import ServerLimits
        from opu.remote.metrics_server import parse_listen
        from opu.remote.server import OpuServer, parse_bind

        metrics_at = None if metrics is None else parse_listen(metrics, beyond_loopback=metrics_beyond_loopback)
        gate = open_gate(policy.value, keys, allow, insecure)
        parse_bind(bind, gate.beyond_loopback)
        with (
            opu.open(uri) as opened,
            _calibrated(opened, calibration) as device,
            OpuServer(device, bind, ServerLimits(quantum_s=quantum_ms / 1000), gate) as server,
            _telling_metrics(server, metrics_at, stuck_after) as metrics_url,
            server_log.collect(),
        ):
            report.fields |= {"uri": server.uri, "device": uri, "pid": os.getpid()}
            server_log.say(f"Serving {uri} at {server.uri}", **report.fields)
            if calibration is not None:
                calibration_id = device.describe().calibration_id
                server_log.say(f"Calibration {calibration_id} applied", calibration_id=calibration_id)
            if metrics_url is not None:
                server_log.say(f"Metrics at {metrics_url}/metrics, health at {metrics_url}/health", url=metrics_url)
            with _announcing(server, announce, device.describe().model, has_keys=keys is not None):
                if announce is not None:
                    server_log.say(f"Announced as {announce}")
                shows = report.console.is_terminal and log is LogFormat.text
                _watch(server, report.console, received, shows=shows)
            server.stop()
            status = server.snapshot()
        counters = status.counters
        report.fields |= {"uptime_s": status.uptime_s} | msgspec.to_builtins(counters)
        server_log.say(
            f"Stopped after {status.uptime_s:.0f} s. Frames: {counters.frames}, clients: {counters.welcomed}, "
            f"refused requests: {counters.refusals}.",
            frames=counters.frames,
            clients=counters.welcomed,
            refused=counters.refusals,
        )


def _calibrated(device: opu.Device, path: Path | None) -> AbstractContextManager[opu.Device]:
    """Apply the calibration in a file, if one is given."""
    if path is None:
        return nullcontext(device)
    from opu.calibration.applied import Calibration, apply

    calibration = Calibration.load(path)
    if device.describe().backend == "tcp":
        raise ConfigError(
            f"{device.uri} is a device that another server serves.",
            "Have that server apply the calibration: all its clients need the same.",
        )
    return apply(device, calibration)


@contextmanager
def _telling_metrics(server: OpuServer, address: tuple[str, int] | None, stuck_after_s: float) -> Iterator[str | None]:
    """Serve metrics and health over HTTP, if an address for them is given, and yield where."""
    if address is None:
        yield None
        return
    from opu.remote.metrics_server import MetricsServer

    limits = HealthLimits(device_s=stuck_after_s)

    def find() -> str | None:
        if not server.is_running:
            return "the loop of the server has ended"
        return find_fault(server.snapshot(), limits)

    with MetricsServer(address, server.snapshot, find) as metrics:
        yield metrics.url


def _announcing(server: OpuServer, name: str | None, model: str, *, has_keys: bool) -> AbstractContextManager[object]:
    """Announce the server on its network, if that is wanted."""
    if name is None:
        return nullcontext()
    from opu.remote.announce import Announcement

    return Announcement(name, server.uri, model=model, has_keys=has_keys)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them, each once."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = [signal.signal(number, receive) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _watch(server: OpuServer, console: Console, received: list[int], *, shows: bool) -> None:
    """Wait for a signal, show on a terminal what the server is doing, and give back the memory of clients that left."""
    from rich.live import Live

    from opu.remote.memory import return_free_memory

    live = Live(_picture(server.snapshot()), console=console, auto_refresh=False, transient=True) if shows else None
    n_clients = looks = looks_to_rest = 0
    with live or nullcontext():
        while not received:
            if not server.is_running:
                raise ServerFailureError("The server's loop has ended.", "The log above tells why.")
            time.sleep(_LOOK_S)
            looks += 1
            if looks % _LOOKS_PER_PICTURE:
                continue
            status = server.snapshot()
            if len(status.clients) < n_clients:
                return_free_memory()
                looks_to_rest = _LOOKS_TO_REST
            elif looks_to_rest:
                looks_to_rest -= 1
                if not looks_to_rest:
                    return_free_memory()
            n_clients = len(status.clients)
            if live is not None:
                live.update(_picture(status), refresh=True)


def _picture(status: ServerStatus) -> RenderableType:
    rows = [
        (str(c.client_id), c.name, str(c.sessions), str(c.frames), str(c.queued), str(c.refused))
        for c in status.clients
    ]
    return table(
        f"Clients: {len(status.clients)}, queue: {status.queued} requests, rate: {status.frames_per_s:.0f} frames/s, "
        f"up {status.uptime_s:.0f} s",
        COLUMNS,
        rows,
    )
