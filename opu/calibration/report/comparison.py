"""What has changed between two reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from opu.errors import DataFileError

if TYPE_CHECKING:
    import os

__all__ = ["Change", "compare", "read_report"]

_STANDARD_ERRORS = 4.0
_CHANGED_SETTING = 0.05  # the exposure that a search finds varies by less than 1 %
_MOST_BYTES = 2**26


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something that differs between two reports.

    Parameters
    ----------
    routine : str
        Whose it is; empty for what belongs to the device.
    text : str
        For people.
    standard_errors : float or None
        By how many standard errors a number has changed.
    """

    routine: str
    text: str
    standard_errors: float | None = None


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an earlier `report.json`, or the one of a report's folder.

    Raises
    ------
    DataFileError
        There is none, or it is damaged.
    """
    target = Path(path)
    if target.is_dir():
        target /= "report.json"
    remedy = "Name the folder or the report.json of an earlier report."
    try:
        if not target.is_file():
            raise DataFileError(f"There is no report {str(target)!r}.", remedy)
        with target.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataFileError(f"The report {str(target)!r} is larger than {_MOST_BYTES >> 20} MiB.", remedy)
        document = msgspec.json.decode(content)
    except OSError as error:
        raise DataFileError(f"The report {str(target)!r} cannot be read: {error.strerror}.", remedy) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataFileError(f"The report {str(target)!r} is damaged: {error}.", remedy) from error
    try:
        _check(document)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise DataFileError(f"The file {str(target)!r} is no calibration report: {error!r}.", remedy) from error
    found: dict[str, Any] = document
    return found


class _SavedQuantity(msgspec.Struct):
    value: float | None
    uncertainty: float | None
    unit: str
    passed: bool
    summary: str


class _SavedResult(_SavedQuantity):
    quantities: dict[str, _SavedQuantity]
    findings: list[str]


class _SavedMedium(msgspec.Struct):
    medium_id: str
    epoch: int


class _SavedDevice(msgspec.Struct):
    device_id: str
    medium: _SavedMedium


class _SavedReport(msgspec.Struct):
    schema: str
    device: _SavedDevice
    started_unix_s: float
    quick: bool
    calibration: dict[str, _SavedResult]
    versions: dict[str, str]


def _check(document: Any) -> None:
    saved = msgspec.convert(document, _SavedReport)
    if not saved.schema.startswith("openopu.calibrate/"):
        raise ValueError(f"its schema is {saved.schema!r}")


def compare(earlier: dict[str, Any], later: dict[str, Any]) -> list[Change]:
    """Say what has changed from one report to another.

    A number has changed where the difference is more than four standard errors of the difference: with some eighty
    numbers in a report, one in 200 comparisons of an unchanged device then says so without cause. A setting (gain,
    exposure, stride) has changed where it differs by more than 5 %. Of another number whose uncertainty is unknown (a
    bound, for example) only that it passes, or does not, can change. Many numbers depend
    on how much was measured: of a quick report and one that is not, settings are compared, and of all others only
    whether they pass.

    Parameters
    ----------
    earlier, later : dict
        From `read_report` or `HealthReport.as_json`.

    Returns
    -------
    list of Change
        The device's first, then those of the routines that both reports have. That only one of the reports is quick
        comes before all others.
    """
    of_one_size = earlier["quick"] == later["quick"]
    changes = [] if of_one_size else [Change(routine="", text=_sizes_text(earlier["quick"]))]
    changes += _device_changes(earlier, later)
    missing = [name for name in earlier["calibration"] if name not in later["calibration"]]
    if missing:
        changes.append(Change(routine="", text=f"Not measured this time: {', '.join(missing)}."))
    for name, after in later["calibration"].items():
        before = earlier["calibration"].get(name)
        if before is not None:
            changes += _routine_changes(name, before, after, of_one_size=of_one_size)
    return changes


def _sizes_text(earlier_is_quick: bool) -> str:
    which = "The earlier report is quick and this one is not" if earlier_is_quick else "Only this report is quick"
    return f"{which}: of numbers, which may depend on how much was measured, only verdicts are compared."


def _device_changes(earlier: dict[str, Any], later: dict[str, Any]) -> list[Change]:
    before, after = earlier["device"], later["device"]
    pairs = [
        ("The device", before["device_id"], after["device_id"]),
        ("The medium", before["medium"]["medium_id"], after["medium"]["medium_id"]),
        ("The epoch of the medium", before["medium"]["epoch"], after["medium"]["epoch"]),
        *(
            (f"The version of {name}", version, later["versions"][name])
            for name, version in earlier["versions"].items()
            if name in later["versions"]
        ),
    ]
    return [Change(routine="", text=f"{what} was {old} and is {new}.") for what, old, new in pairs if old != new]


def _routine_changes(name: str, before: dict[str, Any], after: dict[str, Any], *, of_one_size: bool) -> list[Change]:
    changes = []
    numbers = {"": (before, after)}
    numbers |= {
        key: (before["quantities"][key], quantity)
        for key, quantity in after["quantities"].items()
        if key in before["quantities"]
    }
    missing = [quantity["summary"] for key, quantity in before["quantities"].items() if key not in numbers]
    if missing:
        changes.append(Change(routine=name, text=f"Not measured this time: {'; '.join(missing)}."))
    for pair in numbers.values():
        change = _number_change(name, *pair, of_one_size=of_one_size)
        if change is not None:
            changes.append(change)
    changes += [
        Change(routine=name, text=f"New: {text}") for text in after["findings"] if text not in before["findings"]
    ]
    changes += [
        Change(routine=name, text=f"Gone: {text}") for text in before["findings"] if text not in after["findings"]
    ]
    return changes


def _number_change(name: str, old: dict[str, Any], new: dict[str, Any], *, of_one_size: bool) -> Change | None:
    what = new["summary"]
    verdict = (
        "" if old["passed"] == new["passed"] else (" It passes now." if new["passed"] else " It missed its limit.")
    )
    if old["value"] is None or new["value"] is None:
        if old["value"] is None and new["value"] is None:
            return None
        state = "could not be measured before" if old["value"] is None else "cannot be measured any more"
        return Change(routine=name, text=f"{what}: {state}.{verdict}")
    ratio = _standard_errors(old, new)
    if new.get("is_setting", False):
        has_changed = _setting_has_changed(old, new)
    else:
        has_changed = of_one_size and ratio > _STANDARD_ERRORS
    if not has_changed and not verdict:
        return None
    unit = "" if new["unit"] == "1" else f" {new['unit']}"
    text = f"{what}: {old['value']:.5g} before, {new['value']:.5g}{unit} now.{verdict}"
    return Change(routine=name, text=text, standard_errors=ratio if 0 < ratio < math.inf else None)


def _standard_errors(old: dict[str, Any], new: dict[str, Any]) -> float:
    """Return by how many standard errors two numbers differ; 0 where these are unknown."""
    if old["uncertainty"] is None or new["uncertainty"] is None:
        return 0.0
    errors = math.hypot(old["uncertainty"], new["uncertainty"])
    difference = abs(float(new["value"]) - float(old["value"]))
    return difference / errors if errors > 0 else (math.inf if difference else 0.0)


def _setting_has_changed(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return not math.isclose(old["value"], new["value"], rel_tol=_CHANGED_SETTING)
