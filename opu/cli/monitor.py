"""`opu monitor`: watch a server from anywhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from opu.cli.watched import watching
from opu.console import JsonOption, Report, reporting

if TYPE_CHECKING:
    from opu.cli.monitor_picture import Look
    from opu.remote.client import RemoteDevice

__all__ = ["monitor"]


def monitor(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The server, tcp://HOST:PORT with the keys that it wants.")],
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600.0, help="Time from one picture to the next.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one picture and end.")] = False,
    json_to: JsonOption = None,
) -> None:
    """Show what a server is doing: clients, queue, rates, latencies, saturation, refusals. Ctrl-C ends it.

    It connects as an observer, for whom a full server keeps some places, and is a client in the picture. Rates and
    latencies are those between two pictures. With --json, --once, or where there is no terminal, it shows one picture,
    for which it looks twice.

    Example: opu monitor tcp://127.0.0.1:5755

    Example: opu monitor 'tcp://optics.example:5755?key=anna.key&server_key=server.pub' --interval 5

    Example: opu monitor tcp://127.0.0.1:5755 --json
    """
    with reporting("monitor", json_to) as report, watching(uri) as device:
        if once or json_to is not None or not report.console.is_terminal:
            _show_once(report, device, interval)
        else:
            _show_until_interrupted(report, device, interval)


def _look(device: RemoteDevice) -> Look:
    from opu.cli.monitor_picture import Look

    return Look(time.monotonic(), device.server_status())


def _show_once(report: Report, device: RemoteDevice, interval_s: float) -> None:
    from opu.cli.monitor_picture import draw, summarise

    earlier = _look(device)
    time.sleep(interval_s)
    look = _look(device)
    report.console.print(draw(device.uri, device.describe(), look, earlier))
    report.fields |= {
        "uri": device.uri,
        "device_id": device.describe().device_id,
        "rates": summarise(look, earlier),
        "status": msgspec.to_builtins(look.status),
    }


def _show_until_interrupted(report: Report, device: RemoteDevice, interval_s: float) -> None:
    from rich.live import Live

    from opu.cli.monitor_picture import draw

    earlier = look = _look(device)
    console = report.console
    try:
        with Live(
            draw(device.uri, device.describe(), look, earlier), console=console, auto_refresh=False, screen=True
        ) as live:
            while True:
                time.sleep(interval_s)
                earlier, look = look, _look(device)
                live.update(draw(device.uri, device.describe(), look, earlier), refresh=True)
    except KeyboardInterrupt:
        console.print(draw(device.uri, device.describe(), look, earlier))
