"""The page of a health report: what a person wants to know first comes first."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING

from opu.calibration.report.figures import FIGURES
from opu.calibration.result import number_text, short_text
from opu.page import NO_FIGURES, can_draw, html_page, html_table, svg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opu.calibration.report.comparison import Change
    from opu.calibration.report.health import HealthReport
    from opu.calibration.result import CalibrationResult, Limit, Quantity

__all__ = ["NO_LIMIT", "limit_text", "page_of"]

NO_LIMIT = "no fault"
"""What a routine without a limit is judged by."""

_COLUMNS = ("Routine", "What", "Value", "Limit", "Result", "Frames", "s")


def limit_text(limit: Limit, unit: str) -> str:
    """Word a limit.

    Examples
    --------
    >>> limit_text((None, 0.5), "DN"), limit_text((0.98, 1.02), "1"), limit_text((None, None), "1")
    ('at most 0.5 DN', '0.98 to 1.02', '')
    """
    low, high = (None if side is None else short_text(side) for side in limit)
    text = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
    return f"{text}{'' if unit == '1' or not text else f' {unit}'}"


def page_of(report: HealthReport, changes: list[Change], *, compared: bool) -> str:
    """Return the page.

    Parameters
    ----------
    report : HealthReport
        What was found.
    changes : list of Change
        What has changed since an earlier report.
    compared : bool
        Whether there was one.

    Returns
    -------
    str
        HTML; without Matplotlib it has no figures, and says so.
    """
    n_passed = sum(result.passed for result in report.results)
    numbers = {
        "routines passed": f"{n_passed} of {len(report.results)}",
        "faults found": str(len(report.faults)),
        "frames": f"{report.frames:,}",
        "device time": f"{sum(result.device_s for result in report.results):,.1f} s",
        "at the bench": f"{sum(result.seconds for result in report.results):,.1f} s",
    }
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in numbers.items())
    sections = [f'<div class="numbers">{boxes}</div>', _interruption(report), _findings(report)]
    if compared:
        sections.append(_changes(changes))
    if not can_draw():
        sections.append(f"<p>{escape(NO_FIGURES)}</p>")
    sections += [
        "<h2>All routines</h2>",
        html_table(_COLUMNS, [_row(result) for result in report.results]),
        *(_section(result) for result in report.results),
        _device(report),
    ]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.started_unix_s))
    verdict = "The device can be believed" if report.passed else "Do not believe the device yet"
    return html_page(
        f"Calibration of {report.device.device_id}",
        verdict,
        f"Calibration of {report.device.model} ({report.device.device_id}) at {report.uri}, begun on {made}"
        f"{', with as few frames as will do' if report.quick else ''}.",
        sections,
        "Made by <code>opu calibrate</code>. The numbers are in report.json, what they were computed from in data/.",
    )


def _interruption(report: HealthReport) -> str:
    if report.interrupted is None:
        return ""
    text = f"The calibration was interrupted, and this is what was finished. {report.interrupted}"
    return f'<p class="finding">{escape(text)}</p>'


def _findings(report: HealthReport) -> str:
    if not report.faults:
        return "<p>No fault was found.</p>"
    return "<h2>What is wrong</h2>" + "".join(
        f'<p class="finding">{escape(text)} <small>({escape(", ".join(names))})</small></p>'
        for text, names in report.faults.items()
    )


def _changes(changes: list[Change]) -> str:
    if not changes:
        return "<h2>What has changed</h2><p>Nothing beyond four standard errors.</p>"
    rows = [
        (
            change.routine or "device",
            change.text,
            "" if change.standard_errors is None else f"{change.standard_errors:.1f}",
        )
        for change in changes
    ]
    return "<h2>What has changed</h2>" + html_table(("Routine", "What", "Standard errors"), rows)


def _row(result: CalibrationResult) -> tuple[str, ...]:
    return (
        result.name,
        result.summary,
        number_text(result.value, result.uncertainty, result.unit),
        limit_text(result.limit, result.unit) or NO_LIMIT,
        "passed" if result.passed else "MISSED",
        f"{result.frames:,}",
        f"{result.seconds:.1f}",
    )


def _section(result: CalibrationResult) -> str:
    """Return what there is to see of one routine: nothing, where the table says all."""
    if not result.quantities and not result.findings and result.name not in FIGURES:
        return ""
    parts = [f'<h3 id="{escape(result.name)}">{escape(result.name)}: {escape(result.summary)}</h3>']
    parts += [f'<p class="finding">{escape(text)}</p>' for text in result.findings]
    figure = _figure(result)
    if figure:
        parts.append(f"<figure>{figure}</figure>")
    if result.quantities:
        parts.append(html_table(("What", "Value", "Limit", "Result"), _quantity_rows(result.quantities.values())))
    return "\n".join(parts)


def _quantity_rows(quantities: Iterable[Quantity]) -> list[tuple[str, ...]]:
    return [
        (
            quantity.summary,
            number_text(quantity.value, quantity.uncertainty, quantity.unit),
            limit_text(quantity.limit, quantity.unit),
            "" if quantity.limit == (None, None) else "passed" if quantity.passed else "MISSED",
        )
        for quantity in quantities
    ]


def _figure(result: CalibrationResult) -> str:
    draw = FIGURES.get(result.name)
    if draw is None or not result.data or not can_draw():
        return ""
    try:
        return svg(draw(result), result.name)
    except (KeyError, IndexError, ValueError):
        # A routine that the device failed has not all data, and the page must say so all the same.
        return "<p>What is needed for the figure could not be measured.</p>"


def _device(report: HealthReport) -> str:
    device = report.device
    rows = [
        ("device", f"{device.model}, {device.device_id}"),
        ("mirrors", f"{device.mirrors[0]} x {device.mirrors[1]}"),
        ("pixels", f"{device.pixels[0]} x {device.pixels[1]}, {device.bit_depth} bits"),
        ("medium", f"{device.medium.medium_id}, epoch {device.medium.epoch}"),
        ("calibration", device.calibration_id or "none applied"),
        *((f"version of {name}", text) for name, text in report.versions.items()),
        *((f"left out: {name}", reason) for name, reason in report.skipped.items()),
    ]
    return "<h2>What was measured</h2>" + html_table(("What", "Value"), rows)
