"""`opu calibrate`: measure what decides whether to believe a device."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import opu
from opu.console import JsonOption, progress, reporting, table

__all__ = ["calibrate", "calibration_rows"]

COLUMNS = ("Routine", "Value", "Limit", "Result", "Frames", "s")


def calibrate(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The device.")],
    routines: Annotated[
        list[str] | None, typer.Argument(metavar="[ROUTINE ...]", help="Which routines; all of them without.")
    ] = None,
    noise_key: Annotated[
        int, typer.Option(metavar="KEY", min=0, help="The noise of the frames, on a device that can repeat it.")
    ] = 0,
    json_to: JsonOption = None,
) -> None:
    """Calibrate a device, and say whether it is within its limits.

    Routines: dark_level, exposure, speckle_contrast, linearity, repeat_correlation. The exit status is 1 when a limit
    is missed.

    Example: opu calibrate tcp://127.0.0.1:5755 dark_level speckle_contrast
    """
    with reporting("calibrate", json_to) as report:
        from opu.calibration import ROUTINES
        from opu.calibration import calibrate as run

        total = len(routines or ROUTINES)
        with opu.open(uri) as device, progress(report.console, "calibrating", total) as advance:
            results = run(device, routines, noise_key=noise_key, on_result=lambda _: advance())
            report.fields |= {"uri": uri, "device_id": device.describe().device_id}
        report.fields["calibration"] = {result.name: result.as_json() for result in results}
        report.ok = all(result.passed for result in results)
        title = f"Calibration of {uri}"
        report.console.print(table(title, COLUMNS, calibration_rows(report.fields["calibration"])))


def calibration_rows(calibration: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the calibration table, from the fields of the JSON."""
    rows: list[tuple[str, ...]] = []
    for name, result in calibration.items():
        unit = "" if result["unit"] == "1" else f" {result['unit']}"
        low, high = (f"{side:.4g}" if side is not None else "" for side in result["limit"])
        limit = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
        rows.append(
            (
                name,
                f"{result['value']:.4g} ± {result['uncertainty']:.1g}{unit}",
                f"{limit}{unit}",
                "passed" if result["passed"] else "MISSED",
                str(result["frames"]),
                f"{result['seconds']:.2f}",
            )
        )
    return rows
