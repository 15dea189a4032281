"""What a complete calibration found, and the files in which it is kept."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.report.comparison import compare, read_report
from opu.calibration.result import CalibrationResult
from opu.calibration.suite import calibrate
from opu.calibration.watch import MediumWatch
from opu.device import DeviceDescription
from opu.errors import DataFileError, OpuError
from opu.files import check_writable, sync_folder, unwritable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.matrix import TransmissionMatrix
    from opu.device import Device

__all__ = ["SCHEMA", "HealthReport", "check_folder", "check_health"]

SCHEMA = "openopu.calibrate/1"
PAGE_NAME, REPORT_NAME, DATA_FOLDER = "index.html", "report.json", "data"
INTERRUPTED_FOLDER = "interrupted"
_DATA_NAME = re.compile(rf"{DATA_FOLDER}/[a-z][a-z0-9_]*\.npz")
_ASIDE = (".report-", ".part")
_NUMBER = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete calibration found.

    Parameters
    ----------
    uri : str
        The address of the device.
    device : DeviceDescription
        What it says of itself.
    started_unix_s : float
        When the first routine began.
    quick : bool
        Whether the routines took as few frames as they can do with.
    results : tuple of CalibrationResult
        In the order in which they ran.
    skipped : dict of str to str
        Routines that do not apply to this device, and why.
    versions : dict of str to str
        Of the software on this side.
    interrupted : str, optional
        Why not all routines have run; None where they have.
    """

    uri: str
    device: DeviceDescription
    started_unix_s: float
    quick: bool
    results: tuple[CalibrationResult, ...]
    skipped: dict[str, str]
    versions: dict[str, str]
    interrupted: str | None = None

    def __repr__(self) -> str:
        n_passed = sum(result.passed for result in self.results)
        state = "" if self.interrupted is None else ", interrupted"
        counts = f"{n_passed} of {len(self.results)} routines passed, faults: {len(self.faults)}"
        return f"HealthReport({self.uri}: {counts}{state})"

    @property
    def passed(self) -> bool:
        """Whether every routine has run and passed."""
        return self.interrupted is None and all(result.passed for result in self.results)

    @property
    def findings(self) -> tuple[str, ...]:
        """All faults in words, each once."""
        return tuple(dict.fromkeys(text for result in self.results for text in result.findings))

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """The faults, and for each the routines that found it; of sentences that differ in numbers alone, the first."""
        alike: dict[str, dict[str, str]] = {}
        for result in self.results:
            for text in result.findings:
                alike.setdefault(_NUMBER.sub("#", text), {}).setdefault(result.name, text)
        return {next(iter(found.values())): tuple(found) for found in alike.values()}

    @property
    def frames(self) -> int:
        """The frames that it cost."""
        return sum(result.frames for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json` beside `schema`, `ok` and `error`."""
        return {
            "uri": self.uri,
            "device_id": self.device.device_id,
            "device": msgspec.to_builtins(self.device),
            "started_unix_s": self.started_unix_s,
            "quick": self.quick,
            "frames": self.frames,
            "seconds": sum(result.seconds for result in self.results),
            "findings": list(self.findings),
            "calibration": {result.name: result.as_json() for result in self.results},
            "skipped": self.skipped,
            "versions": self.versions,
            "interrupted": self.interrupted,
        }

    def save(self, folder: str | os.PathLike[str], *, earlier: dict[str, Any] | None = None) -> Path:
        """Write the page, the numbers and the data.

        Parameters
        ----------
        folder : str or path
            Made if it does not exist. `index.html` needs nothing else; its figures are drawn with the extra `plots`.
            `report.json` holds the numbers, and `data/ROUTINE.npz` what they were computed from. An earlier report
            there is replaced: the files that it lists, and no others. Where this report was interrupted, and the
            earlier one has routines that this one lacks, the earlier one stays, and this one goes to the folder
            `interrupted` in it.
        earlier : dict, optional
            An earlier report, from `read_report`, to compare with.

        Returns
        -------
        Path
            The folder where the report is.

        Raises
        ------
        DataFileError
            A file cannot be written, or the folder holds other files than those of a report.
        """
        from opu.calibration.report.page import page_of

        changes = [] if earlier is None else compare(earlier, self.as_json())
        page = page_of(self, changes, compared=earlier is not None)
        document = {"schema": SCHEMA, "ok": self.passed, "error": None, **self.as_json()}
        document["changes"] = msgspec.to_builtins(changes)
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            if self.interrupted is not None and self._lacks_some_of(target):
                target = _checked_interrupted_folder(target)
                target.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_ASIDE[0], suffix=_ASIDE[1], dir=target) as aside:
                _write(Path(aside), document, page, {result.name: result.data for result in self.results})
                _replace(target, Path(aside), document["files"])
        except OSError as error:
            raise unwritable(error.filename or target, error) from error
        return target

    def _lacks_some_of(self, folder: Path) -> bool:
        """Whether the report in a folder has routines that this one lacks."""
        if not (folder / REPORT_NAME).exists():
            return False
        return not set(read_report(folder)["calibration"]) <= {result.name for result in self.results}


def _checked_interrupted_folder(folder: Path) -> Path:
    """Return where an interrupted report goes beside a whole one; raise DataFileError where that is no folder."""
    path = folder / INTERRUPTED_FOLDER
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataFileError(
            f"{str(path)!r} is no folder, and interrupted reports go there.",
            "Name another folder for the report, or move it away.",
        )
    return path


def _write(aside: Path, document: dict[str, Any], page: str, data: dict[str, dict[str, NDArray[Any]]]) -> None:
    """Write the files of a report, and list them in it."""
    (aside / DATA_FOLDER).mkdir()
    document["files"] = [PAGE_NAME]
    for routine, arrays in data.items():
        if arrays:
            document["files"].append(f"{DATA_FOLDER}/{routine}.npz")
            with (aside / document["files"][-1]).open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # NumPy 2.0 has no other arguments
                _have_on_the_disk(file)
    text = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    for name, content in ((PAGE_NAME, page.encode()), (REPORT_NAME, text)):
        with (aside / name).open("wb") as file:
            file.write(content)
            _have_on_the_disk(file)


def _have_on_the_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(target: Path, aside: Path, names: list[str]) -> None:
    """Put the files of a new report in the place of those of the one before.

    At no moment is there a file of ours that report.json does not list: an interrupted replacement can be repeated.
    """
    listed = _listed(target)
    _check_foreign(target, listed, names)
    for name in set(listed) - set(names):
        (target / name).unlink(missing_ok=True)
    (target / DATA_FOLDER).mkdir(exist_ok=True)
    for name in (REPORT_NAME, *names):
        (aside / name).replace(target / name)
    sync_folder(target / DATA_FOLDER)
    sync_folder(target)


def _listed(folder: Path) -> list[str]:
    """Return the files of the report in a folder beside report.json; nothing where the folder is empty.

    Raises
    ------
    DataFileError
        It has files, and no report of ours.
    """
    remedy = f"Name another folder for the report, or move the files of {str(folder)!r} away."
    names = [path.name for path in folder.iterdir()]
    if all(name.startswith(_ASIDE[0]) and name.endswith(_ASIDE[1]) for name in names):
        return []
    try:
        files = read_report(folder).get("files")
    except DataFileError as error:
        problem = f"The folder {str(folder)!r} has files, and they are no report: {error.problem}"
        raise DataFileError(problem, remedy) from error
    if not (isinstance(files, list) and all(name == PAGE_NAME or _is_data(name) for name in files)):
        raise DataFileError(f"The report in the folder {str(folder)!r} does not list its files.", remedy)
    return files


def _is_data(name: object) -> bool:
    return isinstance(name, str) and _DATA_NAME.fullmatch(name) is not None


def _check_foreign(folder: Path, listed: list[str], names: Iterable[str]) -> None:
    """Check that no file of a new report takes the place of one that the earlier report does not list."""
    foreign = [name for name in names if name not in listed and os.path.lexists(folder / name)]
    data = folder / DATA_FOLDER
    if data.is_symlink() or (data.exists() and not data.is_dir()):
        foreign.append(DATA_FOLDER)
    if foreign:
        raise DataFileError(
            f"The folder {str(folder)!r} has files that no report has written: {', '.join(foreign)}.",
            "Name another folder for the report, or move these files away.",
        )


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Check the folder of a report before the work whose result it gets, and leave everything as it is.

    Raises
    ------
    DataFileError
        It cannot be made, is no folder, or has files other than those of an earlier report in the places of those of
        the new one, or of an interrupted one.
    """
    target = Path(folder)
    new = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        _check_places(target)
        if _checked_interrupted_folder(target).exists():
            _check_places(target / INTERRUPTED_FOLDER)
    except OSError as error:
        raise DataFileError(
            f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.", "Name another folder."
        ) from error
    finally:
        with suppress(OSError):  # the first that was not made, or in which somebody else has begun
            for path in new:
                path.rmdir()


def _check_places(folder: Path) -> None:
    """Check that nothing foreign is where files of a report would go."""
    names = (PAGE_NAME, *(f"{DATA_FOLDER}/{path.name}" for path in (folder / DATA_FOLDER).glob("*.npz")))
    _check_foreign(folder, _listed(folder), names)
    check_writable(folder / REPORT_NAME)


def check_health(
    device: Device,
    names: list[str] | None = None,
    *,
    quick: bool = False,
    noise_key: int = 0,
    on_result: Callable[[CalibrationResult], None] = lambda _: None,
    on_matrix: Callable[[TransmissionMatrix], object] = lambda _: None,
    on_start: Callable[[str], object] = lambda _: None,
    on_progress: Callable[[str, int, int], object] = lambda _what, _done, _all: None,
    on_interruption: Callable[[HealthReport], object] = lambda _: None,
    unfinished: str | os.PathLike[str] | None = None,
) -> HealthReport:
    """Run the calibration routines that apply to a device, and report.

    Parameters
    ----------
    device : Device
        Any device.
    names : list of str, optional
        Which routines; default: all that apply.
    quick : bool
        Take as few frames as will do: under a minute for all on the simulated `aurora`; a simulated bench whose medium
        shakes takes minutes.
    noise_key : int
        The noise of the frames.
    on_result, on_matrix, on_start, on_progress, unfinished
        As for `opu.calibration.calibrate`.
    on_interruption : callable, optional
        Called with the report of the routines that are finished when an error, or Ctrl-C, ends the work before the
        others have run.

    Returns
    -------
    HealthReport
        Its `save` writes the files. Where all routines run, its last result is that of the medium watched meanwhile.

    Raises
    ------
    OpuError
        As `opu.calibration.calibrate`.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration import check_health
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     report = check_health(device, ["dark_frames"], quick=True)
    >>> report.passed, report.findings
    (True, ())
    """
    started_unix_s = time.time()
    description = device.describe()
    skipped: dict[str, str] = {}
    results: list[CalibrationResult] = []

    def report(interrupted: str | None = None) -> HealthReport:
        return HealthReport(
            uri=device.uri,
            device=description,
            started_unix_s=started_unix_s,
            quick=quick,
            results=tuple(results),
            skipped=skipped,
            versions={"python": python_version(), **{name: version(name) for name in ("openopu", "numpy")}},
            interrupted=interrupted,
        )

    def note(result: CalibrationResult) -> None:
        results.append(result)
        on_result(result)
        if watch:
            watch.look(result.name)

    try:
        watch = MediumWatch(device, noise_key=noise_key) if names is None else None
        calibrate(
            device,
            names,
            quick=quick,
            noise_key=noise_key,
            on_result=note,
            on_skip=skipped.__setitem__,
            on_matrix=on_matrix,
            on_start=on_start,
            on_progress=on_progress,
            unfinished=unfinished,
        )
    except (KeyboardInterrupt, OpuError) as error:
        on_interruption(report(error.problem if isinstance(error, OpuError) else "It was stopped by hand."))
        raise
    if watch:
        results.append(watch.result())
        on_result(results[-1])
    return report()
