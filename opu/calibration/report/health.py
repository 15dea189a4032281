"""What a complete calibration found, and the files in which it is kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.report.comparison import Change, compare
from opu.calibration.result import CalibrationResult
from opu.calibration.suite import calibrate
from opu.calibration.watch import MediumWatch
from opu.device import DeviceDescription
from opu.errors import DataFileError
from opu.files import check_writable, unwritable

if TYPE_CHECKING:
    from opu.calibration.matrix import TransmissionMatrix
    from opu.device import Device

__all__ = ["SCHEMA", "HealthReport", "check_health"]

SCHEMA = "openopu.calibrate/1"
PAGE_NAME, REPORT_NAME, DATA_FOLDER = "index.html", "report.json", "data"


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
    """

    uri: str
    device: DeviceDescription
    started_unix_s: float
    quick: bool
    results: tuple[CalibrationResult, ...]
    skipped: dict[str, str]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every routine passed."""
        return all(result.passed for result in self.results)

    @property
    def findings(self) -> tuple[str, ...]:
        """All faults in words, each once."""
        return tuple(dict.fromkeys(text for result in self.results for text in result.findings))

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
        }

    def save(self, folder: str | os.PathLike[str], *, earlier: dict[str, Any] | None = None) -> list[Change]:
        """Write the page, the numbers and the data.

        Parameters
        ----------
        folder : str or path
            Made if it does not exist. `index.html` needs nothing else; `report.json` holds the numbers, and
            `data/ROUTINE.npz` what they were computed from.
        earlier : dict, optional
            An earlier report, from `read_report`, to compare with.

        Returns
        -------
        list of Change
            What has changed since.

        Raises
        ------
        DataFileError
            A file cannot be written.
        MissingExtraError
            Matplotlib is missing.
        """
        from opu.calibration.report.page import page_of

        changes = [] if earlier is None else compare(earlier, self.as_json())
        page = page_of(self, changes, compared=earlier is not None)
        document = {"schema": SCHEMA, "ok": self.passed, "error": None, **self.as_json()}
        document["changes"] = msgspec.to_builtins(changes)
        text = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        target = Path(folder)
        aside = target / f".{os.getpid()}.part"
        try:
            (aside / DATA_FOLDER).mkdir(parents=True)
            for result in self.results:
                if result.data:
                    with (aside / DATA_FOLDER / f"{result.name}.npz").open("wb") as file:
                        np.savez_compressed(file, **result.data)  # type: ignore[arg-type]  # NumPy 2.0 has no other arguments
            (aside / REPORT_NAME).write_bytes(text)
            (aside / PAGE_NAME).write_text(page, encoding="utf-8")
            shutil.rmtree(target / DATA_FOLDER, ignore_errors=True)
            for name in (DATA_FOLDER, PAGE_NAME, REPORT_NAME):
                (aside / name).replace(target / name)
        except OSError as error:
            raise unwritable(error.filename or target, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return changes


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Make the folder of a report before the work whose result it gets.

    Raises
    ------
    DataFileError
        It cannot be made, or is no folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        check_writable(Path(folder) / REPORT_NAME)
    except OSError as error:
        raise DataFileError(
            f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.", "Name another folder."
        ) from error


def check_health(
    device: Device,
    names: list[str] | None = None,
    *,
    quick: bool = False,
    noise_key: int = 0,
    on_result: Callable[[CalibrationResult], None] = lambda _: None,
    on_matrix: Callable[[TransmissionMatrix], object] = lambda _: None,
) -> HealthReport:
    """Run the calibration routines that apply to a device, and report.

    Parameters
    ----------
    device : Device
        Any device.
    names : list of str, optional
        Which routines; default: all that apply.
    quick : bool
        Take as few frames as will do: under a minute for all.
    noise_key : int
        The noise of the frames.
    on_result : callable, optional
        Called with each result as soon as it is there.
    on_matrix : callable, optional
        Called with the transmission matrix, if one is measured, to keep it.

    Returns
    -------
    HealthReport
        Its `save` writes the files. Where all routines run, its last result is that of the medium watched meanwhile.

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
    skipped: dict[str, str] = {}
    watch = MediumWatch(device, noise_key=noise_key) if names is None else None

    def note(result: CalibrationResult) -> None:
        if watch:
            watch.look(result.name)
        on_result(result)

    results = calibrate(
        device,
        names,
        quick=quick,
        noise_key=noise_key,
        on_result=note,
        on_skip=skipped.__setitem__,
        on_matrix=on_matrix,
    )
    if watch:
        results.append(watch.result())
        on_result(results[-1])
    return HealthReport(
        uri=device.uri,
        device=device.describe(),
        started_unix_s=started_unix_s,
        quick=quick,
        results=tuple(results),
        skipped=skipped,
        versions={"python": python_version(), **{name: version(name) for name in ("openopu", "numpy")}},
    )
