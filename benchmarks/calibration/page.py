"""The page of what was measured, made of the result files: `python -m benchmarks.calibration.page`."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "calibration" / "measured.md"

CASES = """# What the routines were measured to do

On simulated benches whose truth is known, on two cores of a virtual machine. What misses its limit is in bold. None of
it is a comparison with a real device. This page is made of the result files by `python -m benchmarks.calibration.page`.

Every seed must hold, unless the limit is one of the mean. Limits were set before, but for two that were chosen after
looking: where the noise is much below a count, rounding to 8 bits hides an offset, of which C1 allows 0.3 DN; and how
many rows of stepped matrices (C16) are kept, and how good the worst of them is.

| command | seeds | file |
|---|---|---|
{files}

| case | what | limit | mean | range | seeds that hold |
|---|---|---|---|---|---|
{checks}
"""
COVERAGE = """
## Are the stated uncertainties honest?

`python -m benchmarks.calibration.coverage --first-seed {first} --json`, seeds {first} to {last}
([file](../results/coverage.json)): how often the stated 95 % interval holds the truth. 90 to 99 % are wanted.

| estimator | covered | error, root mean square, over the stated one |
|---|---|---|
{estimators}
"""
FAULTS = """
## Are faults named?

`python -m benchmarks.faulty_benches --quick --first-seed {seed} --json`, seed {seed}
([file](../results/faulty_benches.json)): which finding of the report names the fault first. The others are of what the
fault does to the numbers.

| bench | which | finding |
|---|---|---|
{benches}
"""
RESULTS = ("calibration", "calibration_latency", "calibration_matrix", "calibration_timed", "calibration_1024")


def result(name):
    """Read a result file."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def limit_text(limit):
    """Word a limit."""
    lower, upper = (None if end is None else f"{end:.6g}" for end in limit)
    if lower is None:
        return f"at most {upper}"
    return f"at least {lower}" if upper is None else f"{lower} to {upper}"


def emphasised(text, *, misses):
    """Put what misses its limit in bold."""
    return f"**{text}**" if misses else text


def check_row(case, check):
    """Return the row of a check."""
    what = check["meaning"].replace("|", r"\|")
    limit = limit_text(check["limit"]) + (" (mean)" if check["judged"] == "mean" else "")
    measured = f"{check['mean']:.4g} | {check['lowest']:.4g} to {check['highest']:.4g}"
    held = emphasised(f"{check['held']}/{check['seeds']}", misses=not check["passed"])
    return f"| {case} | {what} | {limit} | {measured} | {held} |"


def file_row(name):
    """Return the row of a file: the command that made it, and its seeds."""
    found = result(name)
    seeds = found["seeds"]
    command = f"python -m benchmarks.calibration --cases {','.join(found['cases'])} --first-seed {seeds[0]}"
    command += f" --seeds {len(seeds)} --workers {found['workers']} --json"
    return f"| `{command}` | {seeds[0]} to {seeds[-1]} | [{name}](../results/{name}.json) |"


def number(case):
    """Order cases by their number."""
    return int(case[1:].partition("-")[0]), case


def page():
    """Return the page."""
    checks = [(case, check) for name in RESULTS for case, check in cases_of(result(name))]
    checks.sort(key=lambda item: number(item[0]))
    coverage, benches = result("coverage"), result("faulty_benches")["benches"]
    return (
        CASES.format(
            files="\n".join(file_row(name) for name in RESULTS),
            checks="\n".join(check_row(case, check) for case, check in checks),
        )
        + COVERAGE.format(
            first=coverage["seeds"][0],
            last=coverage["seeds"][-1],
            estimators="\n".join(estimator_row(*item) for item in coverage["estimators"].items()),
        )
        + FAULTS.format(seed=benches[0]["seed"], benches="\n".join(bench_row(bench) for bench in benches))
    )


def cases_of(found):
    """Return the checks of a file with the cases that they belong to."""
    return [(name, check) for name, case in found["cases"].items() for check in case["checks"].values()]


def estimator_row(name, found):
    """Return the row of an estimator."""
    covered = emphasised(f"{found['covered']:.3f}", misses=not found["passed"])
    return f"| `{name}` | {covered} | {found['rms_error'] / found['mean_uncertainty']:.2f} |"


def bench_row(bench):
    """Return the row of a bench."""
    findings = bench["findings"]
    first = bench["named"][0] if bench["named"] else findings[0] if findings else "no fault"
    which = f"{findings.index(first) + 1} of {len(findings)}" if findings else ""
    return f"| {bench['bench']} | {which} | {emphasised(first, misses=not bench['right'])} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
