"""`opu calibrate`: measure what decides whether to believe a device."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import opu
from opu.console import JsonOption, plain, reporting, table
from opu.errors import ClosedError, ConfigError, OpuError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from opu.calibration import CalibrationResult, Change, HealthReport, TransmissionMatrix
    from opu.console import Report

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
    quick: Annotated[bool, typer.Option("--quick", help="As few frames as will do: under a minute on aurora.")] = False,
    noise_key: Annotated[
        int, typer.Option(metavar="KEY", min=0, help="The noise of the frames, on a device that can repeat it.")
    ] = 0,
    json_to: JsonOption = None,
) -> None:
    """Calibrate a device, and say whether to believe it.

    Each routine measures one thing, compares it with its limit, and names the faults that it finds. The exit status is
    1 when a limit is missed or a fault is found. A report in a directory holds index.html (a page; its figures need the
    extra "plots"), report.json and data/ROUTINE.npz. A report that is there already is compared with before it is
    replaced; a directory with files of something else is refused. A run that was interrupted replaces no report with
    more routines: it goes to the directory "interrupted" beside it.

    With --save the hot pixels and dark levels in the middle of the sensor (dark_frames), the exposure and the stride
    between independent pixels (grain) go to a file for opu serve --calibration. Results that did not pass are left out
    of it, and named. Files of something else are not replaced, but refused before the work. A matrix goes to its file
    whether or not it passed: it holds which of its rows to believe.

    Ctrl-C, or a device that is lost, loses nothing that is finished: it is reported and saved, and the exit status is
    not 0. The frames and rows of an unfinished matrix are kept beside its file, in FILE.part: the same command goes on
    with them, and deletes them at the end. Delete them yourself to begin anew.

    All routines with --quick take under a minute on the simulated aurora; a simulated bench whose medium shakes, as
    laboratory, takes minutes.

    Routines: dark_frames, exposure, ones_range, photon_transfer, linearity, repeatability, grain, speckle_statistics,
    dmd_contrast, latency, trigger_window, stability, laser_power, linear_mode, feedback, transmission_matrix,
    singular_values, focusing, tracking.

    Example: opu calibrate tcp://127.0.0.1:5755 dark_frames speckle_statistics

    Example: opu calibrate 'sim:?preset=aurora' --quick --report health

    Example: opu calibrate 'sim:?preset=aurora' dark_frames exposure grain --save calibration.h5

    Example: opu calibrate 'sim:?preset=aurora' transmission_matrix --save-matrix matrix.h5
    """
    with reporting("calibrate", json_to) as report:
        from opu.calibration import ROUTINES, compare, read_report
        from opu.calibration.report.health import REPORT_NAME, check_folder
        from opu.page import NO_FIGURES, can_draw

        _check_files(routines, save_to, save_matrix_to)
        earlier = None if compare_with is None else read_report(compare_with)
        if report_to is not None:
            check_folder(report_to)
            if earlier is None and (report_to / REPORT_NAME).exists():
                earlier = read_report(report_to)
            if not can_draw():
                report.console.print(f"The report will be without figures. {plain(NO_FIGURES)}", highlight=False)
        files = _Files(save_to, save_matrix_to)
        if files.unfinished is not None and files.unfinished.exists():
            report.console.print(f"There is an unfinished matrix: {plain(files.unfinished)}", highlight=False)
        with opu.open(uri) as device, _bars(report.console, routines or list(ROUTINES), json_to) as bars:
            if save_to is not None:
                _check_without_calibration(device)
            tell = None if routines else report.console.print
            health, failure = _run(device, routines, files, bars, tell, quick=quick, noise_key=noise_key)
        files.save(health, report_to, earlier)
        report.fields = {**health.as_json(), "saved": files.saved, "left_out": files.left_out}
        report.ok = health.passed and files.are_complete
        changes = [] if earlier is None else compare(earlier, report.fields)
        report.fields["changes"] = [change.text for change in changes]
        _tell(report, health, files, None if earlier is None else changes)
        errors = [error for error in (failure, *files.failures) if isinstance(error, OpuError)]
        for error in errors[1:]:
            report.console.print(f"[bold red]Not saved:[/] {plain(error.problem)}", highlight=False)
        if errors:
            raise errors[0]


def _run(
    device: opu.Device,
    routines: list[str] | None,
    files: _Files,
    bars: _Bars,
    tell: Callable[..., object] | None,
    *,
    quick: bool,
    noise_key: int,
) -> tuple[HealthReport, BaseException | None]:
    """Run the routines; return what was found, and what has ended the work early."""
    from opu.calibration import check_health

    def on_result(result: CalibrationResult) -> None:
        if tell is not None:
            tell(f"{result.name}: {'passed' if result.passed else 'MISSED'}", highlight=False)

    stopped: list[HealthReport] = []
    try:
        health = check_health(
            device,
            routines,
            quick=quick,
            noise_key=noise_key,
            on_result=on_result,
            on_matrix=files.save_matrix,
            on_start=bars.start,
            on_progress=bars.show,
            on_interruption=stopped.append,
            unfinished=files.unfinished,
        )
    except (KeyboardInterrupt, UnreachableError, ClosedError) as error:
        if not stopped:
            raise
        return stopped[0], error
    except OpuError as error:
        if not stopped or not stopped[0].results:
            raise
        return stopped[0], error
    return health, None


def _tell(report: Report, health: HealthReport, files: _Files, changes: list[Change] | None) -> None:
    """Tell people what was found; the changes are None without an earlier report."""

    def show(text: object) -> None:
        report.console.print(text, highlight=False)

    if health.results:
        show(table(f"Calibration of {health.uri}", COLUMNS, calibration_rows(report.fields["calibration"])))
    for name, reason in health.skipped.items():
        show(f"[dim]left out: {plain(name)}: {plain(reason)}[/]")
    for text, names in health.faults.items():
        show(f"[bold red]Fault:[/] {plain(text)} [dim]({plain(', '.join(names))})[/]")
    if changes is not None:
        rows = [(change.routine or "device", change.text) for change in changes]
        show(table("What has changed", ("Routine", "What"), rows or [("", "nothing beyond four standard errors")]))
    if files.saved_report is not None:
        show(f"\nThe report: {plain(files.saved_report)}")
        if files.kept_report is not None:
            show(f"The earlier report stays, as it has more routines: {plain(files.kept_report)}")
    for what, path in files.saved.items():
        show(f"The {what}: {plain(path)}")
    for name, reason in files.left_out.items():
        show(f"[bold red]Not saved:[/] {plain(name)}: {plain(reason)}")
    if health.interrupted is not None:
        show(f"[bold red]Interrupted:[/] {plain(health.interrupted)}")
        if files.unfinished is not None and files.unfinished.exists():
            show(f"The same command goes on with the matrix in {plain(files.unfinished)}")


class _Bars:
    """What is being done, as bars: one for the routines, and one for the frames or the rows of a matrix."""

    def __init__(self, bars: Progress, names: Sequence[str]) -> None:
        self._bars = bars
        self._names = list(names)
        self._all = bars.add_task("calibrating", total=len(self._names))
        self._part: TaskID | None = None

    def start(self, name: str) -> None:
        """Show that a routine begins."""
        self._end_part()
        self._bars.update(self._all, completed=self._names.index(name), description=name)

    def show(self, what: str, done: int, total: int) -> None:
        """Show how far the routine is."""
        if done == 0 or self._part is None:
            self._end_part()
            self._part = self._bars.add_task(what, total=total)
        self._bars.update(self._part, completed=done, total=total, description=what)

    def _end_part(self) -> None:
        if self._part is not None:
            self._bars.remove_task(self._part)
            self._part = None


@contextmanager
def _bars(console: Console, names: Sequence[str], json_to: str | None) -> Iterator[_Bars]:
    """Show bars while a calibration runs, on a terminal and not beside JSON."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    is_off = json_to == "-" or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_off) as bars:
        yield _Bars(bars, names)


class _Files:
    """The files of a calibration: what is in them, and what was left out and why."""

    def __init__(self, save_to: Path | None, save_matrix_to: Path | None) -> None:
        self._save_to = save_to
        self._save_matrix_to = save_matrix_to
        self._matrix_left_out = None if save_matrix_to is None else "It was not measured."
        self._results_left_out: dict[str, str] = {}
        self.saved: dict[str, str] = {}
        self.saved_report: Path | None = None
        self.kept_report: Path | None = None
        self.failures: list[OpuError] = []

    @property
    def unfinished(self) -> Path | None:
        """Where an unfinished matrix is kept."""
        return None if self._save_matrix_to is None else _unfinished(self._save_matrix_to)

    @property
    def left_out(self) -> dict[str, str]:
        """What is in no file, and why."""
        matrix = {} if self._matrix_left_out is None else {"transmission_matrix": self._matrix_left_out}
        return self._results_left_out | matrix

    @property
    def are_complete(self) -> bool:
        """Whether all files that were asked for are there."""
        return len(self.saved) == sum(path is not None for path in (self._save_to, self._save_matrix_to))

    def save_matrix(self, matrix: TransmissionMatrix) -> None:
        """Save a matrix as soon as it is there: whatever comes later cannot lose it."""
        from opu.calibration import save

        if self._save_matrix_to is None:
            return
        if not matrix.kept.any():
            self._matrix_left_out = "No row of it is to be believed."
            return
        save(matrix, self._save_matrix_to)
        self._matrix_left_out = None
        self.saved["matrix"] = str(self._save_matrix_to)

    def save(self, health: HealthReport, report_to: Path | None, earlier: dict[str, Any] | None) -> None:
        """Save the calibration and the report: one that fails does not cost the other."""
        try:
            self._save_calibration(health)
        except OpuError as error:
            self.failures.append(error)
        if report_to is None or (health.interrupted is not None and not health.results):
            return
        try:
            self._save_report(health, report_to, earlier)
        except OpuError as error:
            self.failures.append(error)

    def _save_report(self, health: HealthReport, report_to: Path, earlier: dict[str, Any] | None) -> None:
        from opu.calibration.report.health import PAGE_NAME

        folder = health.save(report_to, earlier=earlier)
        self.saved_report = folder / PAGE_NAME
        self.kept_report = None if folder == report_to else report_to / PAGE_NAME

    def _save_calibration(self, health: HealthReport) -> None:
        """Save what passed."""
        from opu.calibration import Calibration
        from opu.calibration.applied import APPLIED, left_out

        if self._save_to is None:
            return
        self._results_left_out = left_out(health.results)
        if health.interrupted is not None and self._results_left_out and self._save_to.exists():
            return  # a part of a calibration does not replace a whole one
        if len(self._results_left_out) < len(APPLIED):
            Calibration.from_results(health.results).save(self._save_to)
            self.saved["calibration"] = str(self._save_to)


def _unfinished(target: Path) -> Path:
    """Return where a matrix is kept while it is not finished."""
    return target.with_name(f"{target.name}.part")


def _check_files(routines: list[str] | None, save_to: Path | None, save_matrix_to: Path | None) -> None:
    """Check before the work that the files can be written, and that there will be something to write."""
    from opu.calibration import applied
    from opu.calibration.hdf5 import check_target
    from opu.calibration.matrix import storage, unfinished

    for option, path, sources, form, what in (
        ("--save", save_to, applied.APPLIED, applied.FORMAT, "calibration"),
        ("--save-matrix", save_matrix_to, ("transmission_matrix",), storage.FORMAT, "transmission matrix"),
    ):
        if path is None:
            continue
        check_target(path, form, what)
        if routines and not set(routines) & set(sources):
            raise ConfigError(
                f"The routines {', '.join(routines)} measure nothing that {option} could save.",
                f"Name {' and '.join(sources)} as well, or no routines.",
            )
    if save_matrix_to is not None:
        check_target(_unfinished(save_matrix_to), unfinished.FORMAT, "unfinished matrix")
    if save_to is not None and save_matrix_to is not None:
        taken = (save_matrix_to, _unfinished(save_matrix_to))
        if save_to.resolve() in [path.resolve() for path in taken]:
            raise ConfigError(f"--save and --save-matrix both name {str(save_to)!r}.", "Name two files.")


def _check_without_calibration(device: opu.Device) -> None:
    calibration_id = device.describe().calibration_id
    if calibration_id is not None:
        raise ConfigError(
            f"The calibration {calibration_id} is applied to the device {device.uri}: its hot pixels cannot be seen.",
            "Calibrate the device without it, as its server opens it, or leave out --save.",
        )


def calibration_rows(calibration: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the calibration table, from the fields of the JSON."""
    from opu.calibration.report.page import NO_LIMIT, limit_text
    from opu.calibration.result import number_text

    return [
        (
            name,
            number_text(_number(result["value"]), _number(result["uncertainty"]), result["unit"]),
            limit_text(result["limit"], result["unit"]) or NO_LIMIT,
            "passed" if result["passed"] else "MISSED",
            str(result["frames"]),
            f"{result['seconds']:.2f}",
        )
        for name, result in calibration.items()
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
