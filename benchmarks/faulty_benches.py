"""Whether a health report names what is wrong with a bench: `python -m benchmarks.faulty_benches --json`.

Each bench has one fault, and one has none. A report of all routines (`--quick` for few frames) must not pass, and one
of its findings must name the fault in words; that of the sound bench must pass and find nothing. The exit status is 1
otherwise.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace

from opu.calibration import check_health
from opu.console import Report, table, write_json
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
from opu.testing import Faults, FaultyDevice

AURORA = preset("aurora")
# Device time of the routine that watches the medium, which every bench begins with.
JUMP_S = 30.0


def bench(seed, **parts):
    """Return an aurora with other parts."""
    changed = {name: replace(getattr(AURORA, name), **fields) for name, fields in parts.items()}
    return SimulatedBench(replace(AURORA, **changed), seed=seed)


BENCHES = {
    "sound": (bench, None),
    "2 % saturated pixels": (
        lambda seed: FaultyDevice(bench(seed), Faults(saturated_fraction=0.02), seed=seed),
        r"saturated|full scale",
    ),
    "grain over several pixels": (lambda seed: bench(seed, speckle={"grain_area_px": 16.0}), r"grain|independent"),
    "dead laser": (lambda seed: bench(seed, laser={"electrons_per_mirror_us": 1e-12}), r"laser|no light"),
    "swapped frames": (
        lambda seed: FaultyDevice(bench(seed), Faults(swapped_fraction=0.05), seed=seed),
        r"swapped|changed places",
    ),
    "a medium that jumps": (
        lambda seed: bench(seed, drift={"jump_times_s": (JUMP_S,), "jump_share": 0.5}),
        r"jump|changed during",
    ),
    "all-dark camera": (
        lambda seed: FaultyDevice(bench(seed), Faults(dark_camera=True), seed=seed),
        r"camera.*(dark|same|constant)|every pixel",
    ),
}
"""What is wrong: how the bench is made, and what a finding that names it says, as a regular expression."""


def examine(name, seed, *, quick, routines=None):
    """Calibrate a bench, and return what its report says."""
    make, expected = BENCHES[name]
    started_s = time.perf_counter()
    with make(seed) as device:
        report = check_health(device, routines, quick=quick)
    named = [text for text in report.findings if expected and re.search(expected, text, re.IGNORECASE)]
    return {
        "bench": name,
        "expected": expected,
        "passed": report.passed,
        "named": named,
        "findings": list(report.findings),
        "missed": [result.name for result in report.results if not result.passed],
        "right": bool(named) and not report.passed if expected else report.passed,
        "seconds": time.perf_counter() - started_s,
    }


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.faulty_benches", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--seeds", type=int, default=1, help="how many devices of each (1)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of their seeds (1000)")
    parser.add_argument("--quick", action="store_true", help="few frames")
    options = parser.parse_args()
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in BENCHES:
            results.append({"seed": seed, **examine(name, seed, quick=options.quick)})
            print(f"{name}, seed {seed}: {'right' if results[-1]['right'] else 'WRONG'}", file=sys.stderr, flush=True)
    report = Report(Console(stderr=options.json == "-", emoji=False))
    report.ok = all(result["right"] for result in results)
    report.fields = {"quick": options.quick, "benches": results}
    rows = [
        (
            result["bench"],
            "yes" if result["right"] else "NO",
            f"{result['seconds']:.0f}",
            (result["named"] or result["findings"] or ["no finding"])[0],
        )
        for result in results
    ]
    report.console.print(table("What the reports say", ("Bench", "Right", "s", "Finding"), rows))
    if options.json is not None:
        write_json("benchmarks.faulty_benches", report, options.json)
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
