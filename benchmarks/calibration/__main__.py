"""Run the cases: `python -m benchmarks.calibration --json`.

Each case runs once for each seed, on a simulated bench that the seed makes, and its numbers are compared with limits.
The exit status is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context

from benchmarks.calibration import CASES
from benchmarks.calibration.worker import run_case
from opu.calibration.result import is_within
from opu.console import Report, table, write_json

FIRST_SEED, SEEDS = 1000, 10


def judge(checks):
    """Compare what each seed gave for one number with its limit, and state the widest of the limits."""
    first = checks[0]
    values = [float(check.value) for check in checks]
    held = sum(is_within(value, check.limit) for value, check in zip(values, checks, strict=True))
    passed = is_within(statistics.mean(values), first.limit) if first.judged == "mean" else held == len(checks)
    return {
        "meaning": first.meaning,
        "limit": [widest(min, (check.limit[0] for check in checks)), widest(max, (check.limit[1] for check in checks))],
        "judged": first.judged,
        "mean": statistics.mean(values),
        "lowest": min(values),
        "highest": max(values),
        "uncertainty": statistics.mean(float(check.uncertainty) for check in checks),
        "held": held,
        "seeds": len(values),
        "passed": passed,
    }


def widest(farther, sides):
    """Return the one of the limits on a side that lets most pass; None is none."""
    sides = list(sides)
    return None if None in sides else float(farther(sides))


def run(names, seeds, workers):
    """Run cases in processes of their own, and return what came of each."""
    results = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {name: [pool.submit(run_case, name, seed) for seed in seeds] for name in names}
        for name, futures in waiting.items():
            found = [future.result() for future in futures]
            results[name] = {
                "seconds": statistics.mean(seconds for _, seconds in found),
                "checks": {key: judge([checks[key] for checks, _ in found]) for key in found[0][0]},
            }
            print(f"{name}: {results[name]['seconds']:.1f} s a seed", file=sys.stderr, flush=True)
    return results


def limit_text(lower, upper):
    """Word a limit."""
    if lower is not None and upper is not None:
        return f"{lower:g} to {upper:g}"
    return f"at least {lower:g}" if lower is not None else f"at most {upper:g}" if upper is not None else ""


def rows_of(results):
    """Return the cells of the table."""
    for name, result in results.items():
        for check in result["checks"].values():
            yield (
                name,
                "yes" if check["passed"] else "NO",
                f"{check['mean']:.5g}",
                f"{check['lowest']:.4g} to {check['highest']:.4g}",
                f"{limit_text(*check['limit'])}{' (mean)' if check['judged'] == 'mean' else ''}",
                f"{check['held']}/{check['seeds']}",
                check["meaning"],
            )


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--cases", default=",".join(CASES), metavar="NAMES", help="which, with commas (all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many seeds ({SEEDS})")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help=f"the first of them ({FIRST_SEED})")
    parser.add_argument("--workers", type=int, default=1, help="processes at once (1: times are those of one alone)")
    options = parser.parse_args()
    names = options.cases.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = run(names, seeds, options.workers)
    report = Report(Console(stderr=options.json == "-", emoji=False))
    report.ok = all(check["passed"] for result in results.values() for check in result["checks"].values())
    report.fields = {
        "seeds": list(seeds),
        "cases": results,
        "workers": options.workers,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba")},
    }
    columns = ("Case", "Passed", "Mean", "Range", "Limit", "Held", "What")
    report.console.print(table(f"Calibration over {len(seeds)} seeds", columns, list(rows_of(results))))
    if options.json is not None:
        write_json("benchmarks.calibration", report, options.json)
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
