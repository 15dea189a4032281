"""`opu stress`: many clients at once, some of them badly behaved, and whether the server kept its promises."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
import typer

import opu
from opu.console import JsonOption, Report, plain, progress, reporting, table
from opu.errors import ConfigError

if TYPE_CHECKING:
    from opu.remote.client import RemoteDevice
    from opu.remote.protocol import ServerStatus
    from opu.remote.stress import Answers

__all__ = ["stress"]

DEFAULT_DEVICE = "sim:?preset=aurora&seed=7"
ALL_KINDS = "greedy,slow,vanishing,garbage,reconnecting,severed"
_TICK_S = 0.1
_WARM_UP_S = 20.0
_REST_S = 2.5  # within two seconds the server has given back the memory of clients that left
_PATIENCE_S = 20.0  # a server forgets a silent client after 15 s


def stress(
    uri: Annotated[
        str | None, typer.Argument(metavar="URI", help="The server, tcp://HOST:PORT. Without it one is started.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long clients begin anything new.")] = 10.0,
    clients: Annotated[
        int, typer.Option(min=1, max=1000, help="Honest clients; of each kind of others there are a quarter as many.")
    ] = 8,
    kinds: Annotated[
        str, typer.Option(metavar="KIND,KIND,...", help="Who misbehaves beside the honest clients; may be empty.")
    ] = ALL_KINDS,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The device that is served, so that the right answers are computed here. For a server that was not "
            "started here the default is what it answers itself before the storm.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Chooses what is sent.")] = 0,
    json_to: JsonOption = None,
) -> None:
    """Beset a server with clients of all kinds, and check every answer bit for bit.

    Honest clients come, project, and leave. Beside them, greedy ones send more than they may; slow ones ask for much
    and read nothing; vanishing ones end their connection in the middle of a message or while an answer is due; garbage
    is random bytes and damaged messages; reconnecting ones come in crowds; severed ones are honest, and their
    connections are cut off again and again. The device must give the same frames for the same frame numbers.

    Lost are requests that got neither an answer nor an error, wrong are answers with other bytes than the right ones:
    either makes the exit status 1. A server started here serves sim:?preset=aurora&seed=7, or --device, and its memory
    is measured before and after, both times when the clients have gone, and before means after a warm-up of the same
    kind, so that compiling and threads are not counted. That takes up to a minute more.

    Example: opu stress --seconds 60 --json
    """
    with reporting("stress", json_to) as report, contextlib.ExitStack() as stack:
        from opu.remote.client import RemoteDevice

        chosen = [kind for kind in kinds.split(",") if kind]
        pid = None
        if uri is None:
            device = device or DEFAULT_DEVICE
            server = stack.enter_context(_own_server(device))
            uri, pid = server["uri"], server["pid"]
        served = stack.enter_context(opu.open(uri))
        if not isinstance(served, RemoteDevice):
            raise ConfigError(f"{uri!r} is no server.", "Name one, tcp://HOST:PORT, or none.")
        logging.getLogger("opu.remote.client").setLevel(logging.ERROR)  # of connections that are cut off on purpose
        report.console.print(f"Besetting {plain(uri)}", highlight=False, soft_wrap=True)
        _beset(report, served, uri, _answers(device, served, seed), seconds, clients, chosen, seed, pid)
        _show(report)


@contextmanager
def _own_server(device_uri: str) -> Iterator[dict[str, Any]]:
    from opu.cli.served import serving

    with tempfile.TemporaryDirectory(prefix="openopu-stress-") as folder, serving(device_uri, Path(folder)) as server:
        yield server


def _answers(device_uri: str | None, served: RemoteDevice, seed: int) -> list[Answers]:
    from opu.remote.stress import Answers

    if device_uri is None:
        return Answers.of(served, seed)
    with opu.open(device_uri) as device:
        here, there = device.describe().device_id, served.describe().device_id
        if here != there:
            raise ConfigError(f"The server serves {there!r}, and --device is {here!r}.", "Name the same device.")
        return Answers.of(device, seed)


def _beset(
    report: Report,
    served: RemoteDevice,
    uri: str,
    answers: list[Answers],
    seconds: float,
    clients: int,
    kinds: list[str],
    seed: int,
    pid: int | None,
) -> None:
    """Run the storm and fill the report's fields."""
    from opu.remote.stress import Storm

    storm = Storm(uri, answers, clients=clients, kinds=kinds, seed=seed)
    warm_up_s = min(seconds, _WARM_UP_S) if pid is not None else 0.0
    rss_mib: list[float | None] = [None, None]
    with progress(report.console, "stress", round((warm_up_s + seconds) / _TICK_S)) as advance:
        if pid is not None:
            storm.run(warm_up_s, advance, _TICK_S)
            _, rss_mib[0] = _memory_at_rest(served, pid)
        counts = storm.run(seconds, advance, _TICK_S)
        if pid is not None:
            status, rss_mib[1] = _memory_at_rest(served, pid)
        else:
            status = served.server_status()
    report.ok = counts.lost == counts.wrong == 0
    report.fields |= cast("dict[str, Any]", msgspec.to_builtins(counts)) | {
        "rss_start_mib": rss_mib[0],
        "rss_end_mib": rss_mib[1],
        "uri": uri,
        "device_id": served.describe().device_id,
        "seconds": seconds,
        "clients": clients,
        "seed": seed,
        "server": {name: getattr(status.counters, name) for name in _SERVER_COUNTS},
    }


def _memory_at_rest(served: RemoteDevice, pid: int) -> tuple[ServerStatus, float | None]:
    from opu.remote.stress import resident_mib, wait_until_alone

    status = wait_until_alone(served, _PATIENCE_S)
    time.sleep(_REST_S)
    return status, resident_mib(pid)


_SERVER_COUNTS = (
    "frames",
    "welcomed",
    "resumed",
    "repeated",
    "merged",
    "refusals",
    "malformed",
    "evicted",
    "cut_off",
    "expired",
)


def _show(report: Report) -> None:
    fields = report.fields
    refused = ", ".join(f"{code} {count}" for code, count in fields["refused"].items()) or "none"
    start, end = fields["rss_start_mib"], fields["rss_end_mib"]
    rows = [
        ("sent", fields["sent"]),
        ("answered", fields["answered"]),
        ("refused", refused),
        ("lost", fields["lost"]),
        ("wrong", fields["wrong"]),
    ]
    if fields["p50_ms"] is not None:
        rows.append(("honest round trip", f"median {fields['p50_ms']:.1f} ms, 99 % {fields['p99_ms']:.1f} ms"))
    if start is not None and end is not None:
        rows.append(("memory of the server", f"{start:.1f} MiB before, {end:.1f} MiB after ({end / start - 1:+.1%})"))
    report.console.print(table("Requests", ("What", "How many"), rows))
    report.console.print(table("Misbehaviour", ("Kind", "How often"), fields["misbehaviour"].items()))
    report.console.print(table("Counts of the server", ("What", "How many"), fields["server"].items()))
