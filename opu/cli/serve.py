"""`opu serve`: share a device over the network."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

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
_WAITING_TEXTS = 1000
_FAREWELL_S = 1.0
_LOGGERS = ("opu.remote.server", "opu.remote.gate", "opu.remote.audit")


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
    json_to: JsonOption = None,
) -> None:
    """Serve a device to many clients, until SIGINT (Ctrl-C) or SIGTERM.

    Shows clients, queue and rate on a terminal, and a line for each event otherwise. When it stops, every accepted
    request is answered or refused; the same signal again ends it at once. Without keys it listens on the loopback
    interface alone; opu keygen makes them.

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind tcp://127.0.0.1:5755

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind 'tcp://*:5755' --keys keys
    """
    with reporting("serve", json_to) as report, _never_waiting(report.console), _stop_signals() as received:
        from opu.remote.gate import open_gate
        from opu.remote.server import OpuServer, parse_bind

        gate = open_gate(policy.value, keys, allow, insecure)
        parse_bind(bind, gate.beyond_loopback)
        with opu.open(uri) as device, OpuServer(device, bind, gate=gate) as server, _log_to(report.console):
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


class _PatientStream:
    """A stream of text that never makes its writer wait: while nobody reads, it leaves out what comes, and counts it.

    A thread writes to the descriptor, and not to the stream: what hangs there holds no lock that the end of the process
    needs.
    """

    def __init__(self, target: IO[str]) -> None:
        self.encoding = getattr(target, "encoding", "utf-8")
        self._descriptor = target.fileno()
        self._texts: deque[str] = deque()
        self._left_out = 0
        self._finished = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_out, name="opu-serve-console", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        with self._changed:
            if len(self._texts) < _WAITING_TEXTS:
                self._texts.append(self._tell_left_out() + text)
            else:
                self._left_out += 1
            self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: it may take a while."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def finish(self) -> None:
        """Wait for what has been written, but not long."""
        with self._changed:
            self._finished = True
            self._changed.notify()
        self._thread.join(_FAREWELL_S)

    def _tell_left_out(self) -> str:
        left_out, self._left_out = self._left_out, 0
        return f"... {left_out} lines left out: nobody read\n" if left_out else ""

    def _next(self) -> str | None:
        """Wait for a text. What was left out at the very end is told by a last one, and then there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts or self._finished)
            return self._texts.popleft() if self._texts else self._tell_left_out() or None

    def _write_out(self) -> None:
        while (text := self._next()) is not None:
            data = text.encode(self.encoding, errors="replace")
            try:
                while data:
                    data = data[self._write_some(data) :]
            except OSError:
                return  # the reader has gone

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody has set the descriptor to non-blocking
            select.select([], [self._descriptor], [])
            return 0


@contextmanager
def _never_waiting(console: Console) -> Iterator[None]:
    """Have the console never make anybody wait who prints."""
    target = console.file
    stream = _PatientStream(target)
    console.file = cast("IO[str]", stream)
    try:
        yield
    finally:
        stream.finish()
        console.file = target


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
    handler = _ConsoleHandler(console)
    with ExitStack() as stack:
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, handler)
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
        yield


def _watch(server: OpuServer, console: Console, received: list[int]) -> None:
    """Wait for a signal, show on a terminal what the server is doing, and give back the memory of clients that left."""
    from rich.live import Live

    from opu.remote.memory import return_free_memory

    n_clients = 0
    with Live(_picture(server.snapshot()), console=console, auto_refresh=False, transient=True) as live:
        looks = 0
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
            n_clients = len(status.clients)
            if console.is_terminal:
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
