"""`opu settings`: what belongs to a device and not to a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

import opu
from opu.console import JsonOption, reporting, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opu.device import DeviceControl, DeviceSettings, Limits, SettingsChange

__all__ = ["settings"]


def settings(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The device.")],
    laser_power_mw: Annotated[
        float | None, typer.Option(metavar="MW", help="Set the power of the laser, in milliwatts.", show_default=False)
    ] = None,
    max_exposure_us: Annotated[
        float | None,
        typer.Option(metavar="US", help="Refuse longer exposures, in open sessions too.", show_default=False),
    ] = None,
    trigger_delay_us: Annotated[
        float | None,
        typer.Option(metavar="US", help="Start exposures so much after the mirrors' trigger.", show_default=False),
    ] = None,
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="What the change is for, for others of a served device to see.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Take the lease of a served device away from whoever has it.")
    ] = False,
    json_to: JsonOption = None,
) -> None:
    """Show the settings of a device, or change them for all its sessions.

    Pixels, exposure and gain belong to a session; the laser's power, the limit of exposures and the delay of the
    trigger to the device. Without options the settings are shown, with the ranges of those that can be changed. A
    change is made between two batches, with all its values or none. The settings of a device that this process opens
    itself, such as sim:, last as long as the command. A served device is changed by operators alone, one at a time:
    the command takes the lease of the device for the change, and gives it back.

    Example: opu settings 'sim:?preset=aurora'

    Example: opu settings 'sim:?preset=aurora' --laser-power-mw 5 --max-exposure-us 2000

    Example: opu settings 'tcp://127.0.0.1:5755?key=oona.key&server_key=server.pub' --laser-power-mw 5 --note aligning
    """
    with reporting("settings", json_to) as report, opu.open(uri) as device:
        control = device.capability(opu.DeviceControl)
        limits = control.limits()
        change = opu.SettingsChange(
            laser_power_mw=laser_power_mw, max_exposure_us=max_exposure_us, trigger_delay_us=trigger_delay_us
        )
        now = control.settings() if change == opu.SettingsChange() else _change(control, change, note, force)
        report.fields |= {"uri": uri, "settings": msgspec.to_builtins(now), "limits": msgspec.to_builtins(limits)}
        title = f"Settings of {uri}, revision {now.revision}"
        report.console.print(table(title, ("Setting", "Value", "Can be set to"), _rows(now, limits)))


def _change(control: DeviceControl, change: SettingsChange, note: str, force: bool) -> DeviceSettings:
    """Change settings, under a lease where the device is served."""
    from opu.remote.client import RemoteControl

    if not isinstance(control, RemoteControl):
        return control.change(change)
    with control.lease(note=note, force=force):
        return control.change(change)


def _rows(now: DeviceSettings, limits: dict[str, Limits]) -> Iterable[tuple[str, str, str]]:
    for name, value in msgspec.structs.asdict(now).items():
        if name == "revision":
            continue
        within = limits.get(name)
        ranged = "nothing else" if within is None else f"{within.minimum:g} to {within.maximum:g} {within.unit}"
        yield name, "unknown" if value is None else f"{value:g}", ranged
