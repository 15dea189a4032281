"""`opu scan`: which devices are there."""

from __future__ import annotations

import opu
from opu.console import JsonOption, plain, reporting

__all__ = ["scan"]


def scan(json_to: JsonOption = None) -> None:
    """List the devices that the backends find, without opening any.

    Example: opu scan
    """
    with reporting("scan", json_to) as report:
        found = opu.scan()
        report.fields["devices"] = [{"uri": device.uri, "summary": device.summary} for device in found]
        for device in found:
            report.console.print(f"[bold]{plain(device.uri)}[/]  {plain(device.summary)}", highlight=False)
        if not found:
            report.console.print("No device found. A simulated one is always there: opu info 'sim:?preset=aurora'.")
