"""`opu health`: whether a server is well, for scripts and for whatever restarts servers."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from opu.cli.watched import watching, with_default
from opu.console import JsonOption, plain, reporting
from opu.errors import BusyError, ServerFailureError
from opu.remote.health import HealthLimits, find_fault

__all__ = ["health"]


def health(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The server, tcp://HOST:PORT with the keys that it wants.")],
    stuck_after: Annotated[
        float, typer.Option(metavar="SECONDS", min=1.0, help="How long the device may work on a call.")
    ] = HealthLimits.device_s,
    json_to: JsonOption = None,
) -> None:
    """Ask a server whether it is well. Exit status 0: it is; 3: nobody answers, or it is not; 4: it refuses to tell.

    It connects as an observer and asks for the status, within the `timeout_s` of the address (5 s), and does not try
    again. A server that has as many clients as it takes, and no place for observers left, is well.

    Example: opu health tcp://127.0.0.1:5755

    Example: opu health 'tcp://127.0.0.1:5755?timeout_s=2&key=probe.key&server_key=server.pub'
    """
    with reporting("health", json_to) as report:
        report.fields |= {"uri": uri, "answered_in_s": None, "is_full": False}
        started_s = time.monotonic()
        try:
            with watching(with_default(uri, "reconnect_s", "0")) as device:
                status = device.server_status()
                report.fields["answered_in_s"] = time.monotonic() - started_s
        except BusyError:
            report.fields["is_full"] = True
            report.console.print(f"{plain(uri)} is well, and has as many clients as it takes.", highlight=False)
            return
        fault = find_fault(status, HealthLimits(device_s=stuck_after))
        if fault is not None:
            raise ServerFailureError(f"The server at {uri} is not well: {fault}.", "Its log tells more.")
        report.console.print(
            f"{plain(uri)} is well; it answered in {report.fields['answered_in_s']:.2f} s.", highlight=False
        )
