"""`opu selftest`: whether a device keeps the contract, and whether several addresses of it agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import opu
from opu.console import JsonOption, Report, plain, progress, reporting, table

if TYPE_CHECKING:
    from opu.testing import CheckResult

__all__ = ["selftest"]


def selftest(
    uris: Annotated[list[str], typer.Argument(metavar="URI", help="One device, or several addresses of the same one.")],
    json_to: JsonOption = None,
) -> None:
    """Run the conformance suite on a device.

    Every promise of the device contract is tried: shapes, numbering of frames, pipelining, threads, bad input, light
    and exposure, linear projections. With several addresses, their frames must agree byte for byte as well: a device
    with repeatable noise gives the same ones in process and behind a server.

    What cannot be tried is skipped, with the reason: settings of the device that this client may not change, for one.
    The test succeeds if no check fails.

    Example: opu selftest 'sim:?preset=aurora&seed=7' tcp://127.0.0.1:5755
    """
    with reporting("selftest", json_to) as report:
        devices = [_test(report, uri) for uri in uris]
        fingerprints = {device["fingerprint"] for device in devices}
        same_bytes = len(fingerprints) == 1 and None not in fingerprints
        report.fields |= {"devices": devices, "same_bytes": same_bytes if len(uris) > 1 else None}
        report.ok = all(c["outcome"] != "failed" for device in devices for c in device["checks"]) and (
            len(uris) == 1 or same_bytes
        )
        if len(uris) > 1:
            report.console.print("The bytes agree." if same_bytes else "[bold red]The bytes differ.[/]")


def _test(report: Report, uri: str) -> dict[str, Any]:
    from opu.testing import CHECKS, fingerprint, run_checks

    with opu.open(uri) as device, progress(report.console, f"testing {uri}", len(CHECKS)) as advance:
        results = run_checks(device, on_result=lambda _: advance())
        repeatable = "repeatable_noise" in device.describe().capabilities
        digest = fingerprint(device) if repeatable else None
    rows = [(r.name, _words(r), f"{r.seconds:.2f}") for r in results]
    report.console.print(table(f"Conformance of {uri}", ("Check", "Result", "Seconds"), rows))
    report.console.print(_summary([result.outcome for result in results]))
    if digest:
        report.console.print(f"Frames of {plain(uri)}: SHA-256 {digest[:16]}")
    return {"uri": uri, "checks": [msgspec.to_builtins(result) for result in results], "fingerprint": digest}


def _words(result: CheckResult) -> str:
    shown = {"passed": "passed", "skipped": f"skipped: {result.message}", "failed": f"FAILED: {result.message}"}
    return shown[result.outcome]


def _summary(outcomes: Sequence[str]) -> str:
    skipped = outcomes.count("skipped")
    return f"{outcomes.count('passed')} of {len(outcomes)} checks passed" + (
        f", {skipped} skipped." if skipped else "."
    )
