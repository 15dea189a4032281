"""`opu serve`: share a device over the network."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

import opu
from opu.console import JsonOption, plain, reporting, table
from opu.errors import ServerFailureError
from opu.remote import DEFAULT_BIND

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from opu.remote.protocol import ServerStatus
    from opu.remote.server import OpuServer

__all__ = ["serve"]

COLUMNS = ("Client", "Name", "Sessions", "Frames", "In queue", "Refused")
_LOOK_S = 0.1
_LOOKS_PER_PICTURE = 5


def serve(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The device to serve.")],
    bind: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="Where to listen; the port 0 is any free one.")
    ] = DEFAULT_BIND,
    json_to: JsonOption = None,
) -> None:
    """Serve a device to many clients, until SIGINT (Ctrl-C) or SIGTERM.

    Shows clients, queue and rate on a terminal, and a line for each event otherwise. When it stops, every accepted
    request is answered or refused. This version has no keys and listens on the loopback interface alone.

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind tcp://127.0.0.1:5755
    """
    with reporting("serve", json_to) as report, _stop_signals() as received:
        from opu.remote.server import OpuServer, parse_bind

        parse_bind(bind)
        with opu.open(uri) as device, OpuServer(device, bind) as server, _log_to(report.console):
            report.console.print(f"Serving {plain(uri)} at {server.uri}", highlight=False, soft_wrap=True)
            report.fields |= {"uri": server.uri, "device": uri, "pid": os.getpid()}
            _watch(server, report.console, received)
            server.stop()
            status = server.snapshot()
        report.fields |= {name: value for name, value in msgspec.to_builtins(status).items() if name != "clients"}
        report.console.print(
            f"Stopped after {status.uptime_s:.0f} s. Frames: {status.frames}, clients: {status.clients_total}, "
            f"refused requests: {status.refused}.",
            highlight=False,
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda caught, _: received.append(caught)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._console.print(plain(line), highlight=False, soft_wrap=True)


@contextmanager
def _log_to(console: Console) -> Iterator[None]:
    logger = logging.getLogger("opu.remote.server")
    handler = _ConsoleHandler(console)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _watch(server: OpuServer, console: Console, received: list[int]) -> None:
    """Wait for a signal, and show on a terminal what the server is doing."""
    from rich.live import Live

    with Live(_picture(server.snapshot()), console=console, auto_refresh=False, transient=True) as live:
        looks = 0
        while not received:
            if not server.is_running:
                raise ServerFailureError("The server's loop has ended.", "The log above tells why.")
            time.sleep(_LOOK_S)
            looks += 1
            if console.is_terminal and looks % _LOOKS_PER_PICTURE == 0:
                live.update(_picture(server.snapshot()), refresh=True)


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
