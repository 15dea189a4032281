"""`opu calibrate`: measure what decides whether to believe a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import opu
from opu.console import JsonOption, plain, progress, reporting, table
from opu.errors import ConfigError, DataFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opu.calibration import CalibrationResult, TransmissionMatrix

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
    save_to: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Save there what opu serve --calibration applies."),
    ] = None,
    save_matrix_to: Annotated[
        Path | None, typer.Option("--save-matrix", metavar="FILE", help="Save the transmission matrix there.")
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

    With --save the hot pixels and dark levels in the middle of the sensor (dark_frames), the exposure and the stride
    between independent pixels (grain) go to a file for opu serve --calibration. Results that did not pass are left out
    of it, and named. A matrix goes to its file whether or not it passed: it holds which of its rows to believe.

    Routines: dark_frames, exposure, ones_range, photon_transfer, linearity, repeatability, grain, speckle_statistics,
    dmd_contrast, latency, trigger_window, stability, laser_power, linear_mode, feedback, transmission_matrix,
    singular_values, focusing, tracking.

    Example: opu calibrate tcp://127.0.0.1:5755 dark_frames speckle_statistics

    Example: opu calibrate 'sim:?preset=aurora' --quick --report health

    Example: opu calibrate 'sim:?preset=aurora' dark_frames exposure grain --save calibration.h5

    Example: opu calibrate 'sim:?preset=aurora' transmission_matrix --save-matrix matrix.h5
    """
    with reporting("calibrate", json_to) as report:
        from opu.calibration import ROUTINES, check_health, compare, read_report
        from opu.calibration.report.health import REPORT_NAME, check_folder

        earlier = None if compare_with is None else read_report(compare_with)
        if report_to is not None:
            check_folder(report_to)
            if earlier is None and (report_to / REPORT_NAME).exists():
                earlier = _replaced(report_to)
        _check_files(routines, save_to, save_matrix_to)
        matrices: list[TransmissionMatrix] = []
        total = len(routines or ROUTINES)
        show = report.console.print
        with opu.open(uri) as device, progress(report.console, "calibrating", total) as advance:
            if save_to is not None:
                _check_without_calibration(device)

            def tell(result: CalibrationResult) -> None:
                advance()
                if not routines:
                    show(f"{result.name}: {'passed' if result.passed else 'MISSED'}", highlight=False)

            health = check_health(
                device, routines, quick=quick, noise_key=noise_key, on_result=tell, on_matrix=matrices.append
            )
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
        saved, missing = _save(health.results, save_to, matrices, save_matrix_to)
        report.fields |= {"saved": saved, "left_out": missing}
        report.ok &= len(saved) == sum(path is not None for path in (save_to, save_matrix_to))
        for what, path in saved.items():
            show(f"The {what}: {plain(path)}", highlight=False)
        for name, reason in missing.items():
            show(f"[bold red]Not saved:[/] {plain(name)}: {plain(reason)}", highlight=False)


def _check_files(routines: list[str] | None, save_to: Path | None, save_matrix_to: Path | None) -> None:
    """Check before the work that the files can be written, and that there will be something to write."""
    from opu.calibration.applied import APPLIED
    from opu.calibration.hdf5 import check_target

    for option, path, sources in (
        ("--save", save_to, APPLIED),
        ("--save-matrix", save_matrix_to, ("transmission_matrix",)),
    ):
        if path is None:
            continue
        check_target(path)
        if routines and not set(routines) & set(sources):
            raise ConfigError(
                f"The routines {', '.join(routines)} measure nothing that {option} could save.",
                f"Name {' and '.join(sources)} as well, or no routines.",
            )
    if save_to is not None and save_matrix_to is not None and save_to.resolve() == save_matrix_to.resolve():
        raise ConfigError(f"--save and --save-matrix both name {str(save_to)!r}.", "Name two files.")


def _check_without_calibration(device: opu.Device) -> None:
    calibration_id = device.describe().calibration_id
    if calibration_id is not None:
        raise ConfigError(
            f"The calibration {calibration_id} is applied to the device {device.uri}: its hot pixels cannot be seen.",
            "Calibrate the device without it, as its server opens it, or leave out --save.",
        )


def _save(
    results: Sequence[CalibrationResult],
    save_to: Path | None,
    matrices: Sequence[TransmissionMatrix],
    save_matrix_to: Path | None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Save what was asked for; return where it is, and what was left out and why."""
    from opu.calibration import Calibration, save
    from opu.calibration.applied import APPLIED, left_out

    saved: dict[str, str] = {}
    missing: dict[str, str] = {}
    if save_to is not None:
        missing |= left_out(results)
        if len(missing) < len(APPLIED):
            Calibration.from_results(results).save(save_to)
            saved["calibration"] = str(save_to)
    if save_matrix_to is not None:
        if matrices and matrices[-1].kept.any():
            save(matrices[-1], save_matrix_to)
            saved["matrix"] = str(save_matrix_to)
        else:
            missing["transmission_matrix"] = "No row of it is to be believed." if matrices else "It was not measured."
    return saved, missing


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
