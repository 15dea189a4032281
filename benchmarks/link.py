"""How fast and how fair the link is: `python -m benchmarks.link --json`.

A server of our own serves the preset `aurora`, or another device, and every client is a process of its own. In each
round:

fairness
    one client alone, then many at once, which all send batches of 128 x 1000 -> 1000.
quantum
    a client that sends single patterns 1000 -> 1000 alone, one that sends batches of 3,000 alone, then both at once.

Then, as `opu bench --device` does it, the link beside the device in this process and beside a bare ZeroMQ echo, in
turns. Numbers are medians over the rounds. The exit status is 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import msgspec

import opu
from opu.calibration import Shape
from opu.cli.bench import COLUMNS, COST_COLUMNS, compare_link, link_cost_rows, throughput_rows
from opu.cli.served import serving
from opu.console import Report, table, write_json

SEED = 7
DEVICE = f"sim:?preset=aurora&seed={SEED}"
SINGLE, LARGE, FAIR = "1x1000x1000", "3000x1000x1000", "128x1000x1000"
COMPARED = (SINGLE, "512x1000x10000")
IN_FLIGHT = 4
CLIENTS, ROUNDS, SECONDS = 16, 5, 2.0
LEAD_S = 0.3
TIMEOUT_S = 120
QUANTUM_MS = 5.0
LIMITS = {
    "fairness_total_ratio": (0.95, None),
    "fairness_min_over_mean": (0.8, None),
    "single_p99_added_ms": (None, 2 * QUANTUM_MS),
    "large_batches_share": (0.9, None),
    "throughput_ratio": (0.9, None),
    "round_trip_ratio": (None, 1.5),
}
MEANINGS = {
    "fairness_total_ratio": "frames/s of all clients at once, over those of one alone",
    "fairness_min_over_mean": "frames/s of the slowest of them, over their mean",
    "single_p99_added_ms": "single patterns: 99 % beside large batches, less 99 % alone",
    "large_batches_share": "large batches: frames/s beside single patterns, over those alone",
    "throughput_ratio": f"{COMPARED[1]}: frames/s of the link, over the device's here",
    "round_trip_ratio": f"{COMPARED[0]}: median of the link, over echo's + device's here",
}


class Client:
    """A process of `benchmarks.link_client`."""

    def __init__(self, process):
        self._process = process

    def tell(self, message):
        """Send a line."""
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def hear(self):
        """Wait for the answer to it."""
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise SystemExit(f"A client has ended, or has not answered within {TIMEOUT_S} s.")
        return json.loads(line)


@contextmanager
def client(uri, shape, in_flight):
    """Start a client, and end it."""
    command = [sys.executable, "-m", "benchmarks.link_client", uri, shape, str(in_flight)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=Path(__file__).parents[1], **pipes) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def at_once(clients, seconds):
    """Have clients connect, work during the same window and leave, and return what each of them saw."""

    def ask(message):
        for one in clients:
            one.tell(message)
        return [one.hear() for one in clients]

    ask("connect")
    results = ask([time.monotonic() + LEAD_S, seconds])
    ask("leave")
    return results


def measure_clients(uri, n_clients, rounds, seconds):
    """Measure fairness and quantum in turns, and return the values of every round."""
    with ExitStack() as stack:
        fair = [stack.enter_context(client(uri, FAIR, IN_FLIGHT)) for _ in range(n_clients)]
        single = stack.enter_context(client(uri, SINGLE, 1))
        large = stack.enter_context(client(uri, LARGE, IN_FLIGHT))
        results = []
        for number in range(rounds):
            [one] = at_once([fair[number % n_clients]], seconds)
            many = [each["frames_per_s"] for each in at_once(fair, seconds)]
            [single_alone] = at_once([single], seconds)
            [large_alone] = at_once([large], seconds)
            single_beside, large_beside = at_once([single, large], seconds)
            results.append(
                {
                    "one_frames_per_s": one["frames_per_s"],
                    "many_frames_per_s": many,
                    "single_alone_p50_ms": single_alone["p50_us"] / 1e3,
                    "single_alone_p99_ms": single_alone["p99_us"] / 1e3,
                    "single_beside_p50_ms": single_beside["p50_us"] / 1e3,
                    "single_beside_p99_ms": single_beside["p99_us"] / 1e3,
                    "single_beside_frames_per_s": single_beside["frames_per_s"],
                    "large_alone_frames_per_s": large_alone["frames_per_s"],
                    "large_beside_frames_per_s": large_beside["frames_per_s"],
                }
            )
        return results


def values_of(round_result):
    """Return the numbers of one round that have limits."""
    many = round_result["many_frames_per_s"]
    return {
        "fairness_total_ratio": sum(many) / round_result["one_frames_per_s"],
        "fairness_min_over_mean": min(many) / statistics.mean(many),
        "single_p99_added_ms": round_result["single_beside_p99_ms"] - round_result["single_alone_p99_ms"],
        "large_batches_share": round_result["large_beside_frames_per_s"] / round_result["large_alone_frames_per_s"],
    }


def compare(uri, served, rounds, seconds):
    """Measure the link beside its device and a bare echo, and return the rows and what follows from them."""
    rows, costs = [], []
    with opu.open(uri) as remote, opu.open(served) as device:
        for text in COMPARED:
            measured, cost = compare_link(remote, device, Shape.parse(text), seconds=seconds * rounds, rounds=rounds)
            rows += measured
            costs.append(cost)
    return rows, costs


def judge(name, value):
    """Compare a value with its limit."""
    lower, upper = LIMITS[name]
    passed = (lower is None or value >= lower) and (upper is None or value <= upper)
    return {"value": value, "limit": [lower, upper], "passed": passed}


def measure(served, n_clients, rounds, seconds):
    """Measure everything."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="openopu-link-") as folder, serving(served, Path(folder)) as server:
        round_results = measure_clients(server["uri"], n_clients, rounds, seconds)
        rows, costs = compare(server["uri"], served, rounds, seconds)
    each = [values_of(result) for result in round_results]
    values = {name: statistics.median(one[name] for one in each) for name in each[0]}
    values |= {"throughput_ratio": costs[1].throughput_ratio, "round_trip_ratio": costs[0].round_trip_ratio}
    return {
        "seed": SEED,
        "device": served,
        "clients": n_clients,
        "rounds": round_results,
        "seconds": seconds,
        "load_before": load,
        "limits": {name: judge(name, value) for name, value in values.items()},
        "throughput": msgspec.to_builtins(rows),
        "link_cost": msgspec.to_builtins(costs),
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba", "pyzmq")},
    }


def limit_text(lower, upper):
    """Word a limit."""
    return f"at least {lower:g}" if upper is None else f"at most {upper:g}"


def show(console, fields):
    """Print the result for people."""
    console.print(table("The link beside its device and a bare echo", COLUMNS, throughput_rows(fields["throughput"])))
    console.print(table("Cost of the link", COST_COLUMNS, link_cost_rows(fields["link_cost"])))
    names = [name for name in fields["rounds"][0] if name != "many_frames_per_s"]
    medians = [(name, f"{statistics.median(one[name] for one in fields['rounds']):,.2f}") for name in names]
    console.print(table("Clients: medians over the rounds", ("What", "Value"), medians))
    rows = [
        ("yes" if found["passed"] else "NO", f"{found['value']:.2f}", limit_text(*found["limit"]), MEANINGS[name])
        for name, found in fields["limits"].items()
    ]
    console.print(table("Limits", ("Passed", "Value", "Limit", "What"), rows))


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"clients at once ({CLIENTS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measurements of each number ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long each of them takes ({SECONDS:g})")
    parser.add_argument("--device", default=DEVICE, metavar="URI", help=f"what is served ({DEVICE})")
    options = parser.parse_args()
    report = Report(Console(stderr=options.json == "-", emoji=False))
    report.fields = measure(options.device, options.clients, options.rounds, options.seconds)
    report.ok = all(found["passed"] for found in report.fields["limits"].values())
    show(report.console, report.fields)
    if options.json is not None:
        write_json("benchmarks.link", report, options.json)
    sys.exit(not report.ok)


if __name__ == "__main__":
    main()
