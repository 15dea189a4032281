"""A server of our own, in a process of its own, for the commands that need one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from opu.errors import DeviceError

__all__ = ["serving", "start_command"]

_START_TIMEOUT_S = 60
_LOOK_S = 0.05


@contextmanager
def serving(device_uri: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Serve a device on a free port of the loopback interface.

    Parameters
    ----------
    device_uri : str
        The device.
    folder : Path
        Where the server's log and report go.

    Yields
    ------
    dict
        `pid`, `uri`, and when the context has ended `frames`, how many the server took.

    Raises
    ------
    DeviceError
        The server does not start.
    """
    report, log = folder / "server.json", folder / "server.log"
    with log.open("w") as stream:  # a pipe that nobody reads would stop the server when it is full
        process = start_command(
            "opu.cli", ["serve", device_uri, "--bind", "tcp://127.0.0.1:0", f"--json={report}"], stdout=stream
        )
    try:
        server: dict[str, Any] = {"pid": process.pid, "uri": _served_uri(process, log, device_uri), "frames": 0}
        yield server
        process.terminate()
        process.wait(_START_TIMEOUT_S)
        server["frames"] = msgspec.json.decode(report.read_bytes())["frames"]
    finally:
        process.kill()
        process.wait()


def _served_uri(process: subprocess.Popen[str], log: Path, device_uri: str) -> str:
    """Wait for the line that the server prints when it is ready, and read the address from it."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        ready = re.search(r"^Serving .* at (tcp://\S+)\n", log.read_text(encoding="utf-8"), re.MULTILINE)
        if ready:
            return ready[1]
        time.sleep(_LOOK_S)
    status = process.poll()
    fault = f"was not ready within {_START_TIMEOUT_S} s" if status is None else f"ended with status {status}"
    raise DeviceError(f"The server {fault}.", f"Try it alone: opu serve '{device_uri}'.")


def start_command(module: str, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start one of our commands in a process of its own.

    Parameters
    ----------
    module : str
        The module whose `main` runs it.
    arguments : list of str
        Its command line.
    **options : object
        For `subprocess.Popen`.
    """
    command = [sys.executable, "-c", f"from {module} import main; main()", *arguments]
    return subprocess.Popen(command, text=True, **options)  # noqa: S603 - our own commands
