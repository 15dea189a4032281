"""`opu calibrate`: measure what decides whether to believe a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import opu
from opu.console import JsonOption, plain, progress, reporting, table
from opu.errors import DataFileError

if TYPE_CHECKING:
    from opu.calibration import CalibrationResult

__all__ = ["calibrate", "calibration_rows"]

COLUMNS = ("Routine", "Value", "Limit", "Result", "Frames", "s")


def calibrate(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The device.")],
    routines: Annotated[
        list[str] | None, typer.Argument(metavar="ROUTINE", help="Which routines; all that apply without.")
    ] = None,
    report_to: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write a page, the numbers and the data there.")
    ] = None,
    compare_with: Annotated[
        Path | None,
        typer.Option("--compare", metavar="DIR", help="Say what has changed since an earlier report."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="As few frames as will do: under a minute.")] = False,
    noise_key: Annotated[
        int, typer.Option(metavar="KEY", min=0, help="The noise of the frames, on a device that can repeat it.")
    ] = 0,
    json_to: JsonOption = None,
) -> None:
    """Calibrate a device, and say whether to believe it.

    Each routine measures one thing, compares it with its limit, and names the faults that it finds. The exit status is
    1 when a limit is missed or a fault is found. A report in a directory holds index.html (a page with figures),
    report.json and data/ROUTINE.npz. A report that is there already is compared with before it is replaced.

    Routines: dark_frames, exposure, ones_range, photon_transfer, linearity, repeatability, grain, speckle_statistics,
    dmd_contrast, latency, trigger_window, stability, laser_power, linear_mode, feedback, transmission_matrix,
    singular_values, focusing, tracking.

    Example: opu calibrate tcp://127.0.0.1:5755 dark_frames speckle_statistics

    Example: opu calibrate 'sim:?preset=aurora' --quick --report health
    """
    with reporting("calibrate", json_to) as report:
        from opu.calibration import ROUTINES, check_health, compare, read_report
        from opu.calibration.report.health import REPORT_NAME, check_folder

        earlier = None if compare_with is None else read_report(compare_with)
        if report_to is not None:
            check_folder(report_to)
            if earlier is None and (report_to / REPORT_NAME).exists():
                earlier = _replaced(report_to)
        total = len(routines or ROUTINES)
        show = report.console.print
        with opu.open(uri) as device, progress(report.console, "calibrating", total) as advance:

            def tell(result: CalibrationResult) -> None:
                advance()
                show(f"{result.name}: {'passed' if result.passed else 'MISSED'}", highlight=False)

            health = check_health(device, routines, quick=quick, noise_key=noise_key, on_result=tell)
        report.fields = health.as_json()
        report.ok = health.passed
        if report_to is None:
            changes = [] if earlier is None else compare(earlier, report.fields)
        else:
            changes = health.save(report_to, earlier=earlier)
        show(table(f"Calibration of {uri}", COLUMNS, calibration_rows(report.fields["calibration"])))
        for name, reason in health.skipped.items():
            show(f"[dim]left out: {plain(name)}: {plain(reason)}[/]", highlight=False)
        for text in health.findings:
            show(f"[bold red]Fault:[/] {plain(text)}", highlight=False)
        report.fields["changes"] = [change.text for change in changes]
        if earlier is not None:
            rows = [(change.routine or "device", change.text) for change in changes]
            show(table("What has changed", ("Routine", "What"), rows or [("", "nothing beyond four standard errors")]))
        if report_to is not None:
            show(f"\nThe report: {plain(report_to / 'index.html')}", highlight=False)


def _replaced(folder: Path) -> dict[str, Any]:
    """Read the report that a new one replaces."""
    from opu.calibration import read_report

    try:
        return read_report(folder)
    except DataFileError as error:
        raise DataFileError(error.problem, "Delete it, or name another folder for the new report.") from error


def calibration_rows(calibration: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the calibration table, from the fields of the JSON."""
    from opu.calibration.report.page import limit_text, number_text

    return [
        (
            name,
            number_text(_number(result["value"]), _number(result["uncertainty"]), result["unit"]),
            limit_text(result["limit"], result["unit"]),
            "passed" if result["passed"] else "MISSED",
            str(result["frames"]),
            f"{result['seconds']:.2f}",
        )
        for name, result in calibration.items()
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
