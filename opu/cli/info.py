"""`opu info`: what is installed, or what a device is."""

from __future__ import annotations

import re
import time
from importlib.metadata import PackageNotFoundError, requires, version
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import opu
from opu.console import JsonOption, Report, reporting, table
from opu.registry import UnavailableBackend, backends

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opu.device import DeviceDescription, Limits

__all__ = ["info"]

_AGES = ((86_400, "days"), (3600, "h"), (60, "min"))
_REQUIREMENT = re.compile(r"""(?P<package>[A-Za-z0-9._-]+)(?P<rest>[^;]*)(;.*extra == ["'](?P<extra>[^"']+)["'])?""")


def info(
    uri: Annotated[
        str | None, typer.Argument(metavar="URI", help="A device to describe. Without it: what is installed.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show what is installed, or what a device is.

    Without an address: the backends, with the reason where one cannot be used, the extras, and versions.
    With an address: opens the device and shows its sizes, limits, timing, medium and capabilities.

    Example: opu info 'sim:?preset=aurora'
    """
    with reporting("info", json_to) as report:
        if uri is None:
            _show_installation(report)
        else:
            with opu.open(uri) as device:
                _show_device(report, uri, device.describe())


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements() -> dict[str | None, list[str]]:
    """Names of the packages that this distribution asks for, by extra; None is the core."""
    names: dict[str | None, list[str]] = {}
    for requirement in requires("openopu") or []:
        match = _REQUIREMENT.match(requirement)
        if match:
            names.setdefault(match["extra"], []).append(match["package"])
    return names


def _list_backends() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for backend in backends():
        if isinstance(backend, UnavailableBackend):
            rows.append({"scheme": backend.scheme, "available": False, "reason": backend.reason})
        else:
            options = [{"name": o.name, "default": o.default, "summary": o.summary} for o in backend.options]
            rows.append(
                {
                    "scheme": backend.scheme,
                    "available": True,
                    "reason": None,
                    "summary": backend.summary,
                    "syntax": backend.syntax,
                    "options": options,
                }
            )
    return rows


def _backend_rows(rows: list[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for row in rows:
        if row["available"]:
            yield row["syntax"], row["summary"]
            yield from ((f"    {option['name']}", option["summary"]) for option in row["options"])
        else:
            yield f"{row['scheme']}:", f"cannot be used: {row['reason']}"


def _show_installation(report: Report) -> None:
    requirements = _requirements()
    extras = [
        {"name": extra, "missing": [name for name in names if _installed_version(name) is None]}
        for extra, names in requirements.items()
        if extra is not None
    ]
    versions = {"openopu": opu.__version__, "python": python_version()}
    versions |= {name: _installed_version(name) or "missing" for name in requirements[None]}
    report.fields |= {"backends": _list_backends(), "extras": extras, "versions": versions}

    report.console.print(table("Backends", ("Address", "What it is"), _backend_rows(report.fields["backends"])))
    report.console.print(
        table(
            "Extras",
            ("Extra", "State"),
            (
                (extra["name"], f"missing {', '.join(extra['missing'])}" if extra["missing"] else "installed")
                for extra in extras
            ),
        )
    )
    report.console.print(table("Versions", ("Package", "Version"), versions.items()))


def _show_device(report: Report, uri: str, description: DeviceDescription) -> None:
    report.fields |= {"uri": uri, "description": msgspec.to_builtins(description)}
    report.console.print(table(f"Device {uri}", ("What", "Value"), _describe_rows(description)))


def _describe_limits(limits: Limits) -> str:
    return f"{limits.minimum:g} to {limits.maximum:g} {limits.unit}, default {limits.default:g}"


def _describe_calibration(description: DeviceDescription) -> str:
    """Word which calibration is applied, and how old it is by this machine's clock."""
    if description.calibration_id is None:
        return "none"
    made_unix_s = description.calibrated_unix_s
    if made_unix_s is None:
        return f"{description.calibration_id}, of unknown age"
    age_s = max(0.0, time.time() - made_unix_s)
    size, unit = next(((size, unit) for size, unit in _AGES if age_s >= 2 * size), (1, "s"))
    return f"{description.calibration_id}, {age_s / size:.0f} {unit} old"


def _describe_rows(description: DeviceDescription) -> Iterable[tuple[str, str]]:
    timing, medium = description.timing, description.medium
    contrast, memory = description.dmd_contrast, description.max_session_bytes
    yield "model", description.model
    yield "device id", description.device_id
    yield "backend", f"{description.backend} (contract version {description.contract_version})"
    yield "mirrors", f"{description.mirrors[0]} x {description.mirrors[1]} = {description.n_mirrors}"
    yield "DMD contrast", "infinite or unknown" if contrast is None else f"{contrast:g}"
    yield "pixels", f"{description.pixels[0]} x {description.pixels[1]}"
    yield "frames", f"{description.frame_dtype}, {description.bit_depth} bits, full scale {description.full_scale_dn}"
    yield "black level", f"{description.black_level_dn:g} counts"
    yield "layouts", ", ".join(description.layouts)
    yield "light", ", ".join(description.light)
    yield "exposure", _describe_limits(description.exposure_us)
    yield "gain", _describe_limits(description.gain_db)
    yield "frame time", f"{description.frame_us:g} us at the default exposure"
    yield "call overhead", f"{timing.call_overhead_us:g} us"
    yield "latency", f"{timing.latency_us:g} us"
    yield "reconfiguration", f"{timing.reconfigure_us:g} us"
    yield "largest batch", f"{description.max_batch} patterns"
    yield "session memory", "no limit" if memory is None else f"{memory / 2**20:g} MiB"
    yield "medium", f"{medium.medium_id}, epoch {medium.epoch}, {medium.law}, from {medium.min_ones} lit mirrors on"
    yield "calibration", _describe_calibration(description)
    yield "capabilities", ", ".join(description.capabilities) or "none"
    for name, number in description.versions.items():
        yield f"version of {name}", number
