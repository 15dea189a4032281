"""How honest the stated uncertainties are: `python -m benchmarks.calibration.coverage --json`.

Each scalar estimator runs on a new bench for each seed, and one counts how often the truth of the simulator lies within
the 95 % interval that the estimator states. The exit status is 1 unless that is in 90 to 99 % of the seeds.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context

import numpy as np

from benchmarks.calibration import ESTIMATES
from benchmarks.calibration.worker import run_estimate
from opu.console import Report, table, write_json

FIRST_SEED, SEEDS = 2000, 200
LIMIT = (0.90, 0.99)
STANDARD_ERRORS = 1.96


def summary(found):
    """Return how often the intervals cover the truth, and how the errors compare with what was stated."""
    errors = np.array([each.value - each.truth for each in found])
    stated = np.array([each.uncertainty for each in found])
    covered = float((np.abs(errors) <= STANDARD_ERRORS * stated).mean())
    return {
        "covered": covered,
        "passed": LIMIT[0] <= covered <= LIMIT[1],
        "seeds": len(found),
        "mean_truth": float(np.mean([each.truth for each in found])),
        "mean_error": float(errors.mean()),
        "rms_error": float(np.sqrt((errors**2).mean())),
        "mean_uncertainty": float(stated.mean()),
    }


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration.coverage", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--estimators", default=",".join(ESTIMATES), metavar="NAMES", help="which, with commas (all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many seeds ({SEEDS})")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help=f"the first of them ({FIRST_SEED})")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (2)")
    options = parser.parse_args()
    names = options.estimators.split(",")
    unknown = [name for name in names if name not in ESTIMATES]
    if unknown:
        parser.error(f"unknown estimators {', '.join(unknown)}; there are {', '.join(ESTIMATES)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for name in names:
            results[name] = summary(list(pool.map(run_estimate, [name] * len(seeds), seeds)))
            print(f"{name}: {results[name]['covered']:.3f}", file=sys.stderr, flush=True)
    report = Report(Console(stderr=options.json == "-", emoji=False))
    report.ok = all(result["passed"] for result in results.values())
    report.fields = {
        "seeds": list(seeds),
        "limit": list(LIMIT),
        "estimators": results,
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba")},
    }
    rows = [
        (
            name,
            "yes" if result["passed"] else "NO",
            f"{result['covered']:.3f}",
            f"{result['mean_truth']:.5g}",
            f"{result['mean_error']:.2g}",
            f"{result['rms_error']:.2g}",
            f"{result['mean_uncertainty']:.2g}",
        )
        for name, result in results.items()
    ]
    columns = ("Estimator", "Passed", "Covered", "Truth", "Mean error", "RMS error", "Stated error")
    report.console.print(table(f"95 % intervals over {len(seeds)} seeds", columns, rows))
    if options.json is not None:
        write_json("benchmarks.calibration.coverage", report, options.json)
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
