"""`opu scan`: which devices are there."""

from __future__ import annotations

from typing import Annotated

import typer

import opu
from opu.console import JsonOption, plain, reporting
from opu.errors import LinkError, MissingExtraError
from opu.registry import FoundDevice

__all__ = ["scan"]


def scan(
    network: Annotated[
        bool, typer.Option("--network", help="Also servers that announce themselves (opu serve --announce).")
    ] = False,
    json_to: JsonOption = None,
) -> None:
    """List the devices that the backends find, without opening any.

    Example: opu scan

    Example: opu scan --network
    """
    with reporting("scan", json_to) as report:
        found = {device.uri: device for device in opu.scan()}
        fault = None
        if network:
            announced, fault = _search_network()
            found = {device.uri: device for device in announced} | found
        report.fields["devices"] = [{"uri": device.uri, "summary": device.summary} for device in found.values()]
        report.fields["network_fault"] = fault
        for device in found.values():
            report.console.print(f"[bold]{plain(device.uri)}[/]  {plain(device.summary)}", highlight=False)
        if not found:
            report.console.print("No device found. A simulated one is always there: opu info 'sim:?preset=aurora'.")
        if fault:
            report.console.print(f"The network was not searched. {plain(fault)}", highlight=False)


def _search_network() -> tuple[list[FoundDevice], str | None]:
    """Return what is announced, or why that cannot be known: what else was found is worth telling all the same."""
    from opu.remote.announce import find_announced

    try:
        return find_announced(), None
    except (MissingExtraError, LinkError) as error:
        return [], str(error)
