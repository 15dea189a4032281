"""How transmission matrices are recovered, side by side: `python -m benchmarks.retrieval --json`.

In one run, on the same simulated benches (8 bits, 10,000 electrons, 7 electrons of read noise), with the same frames
for each feature, the same mean count of a ninth of full scale, and the same camera:

openopu
    `opu.calibration.matrix.retrieval.PhaseRetrieval`: 210 products of matrices, and some for rows that start again.
gerchberg-saxton
    Alternating projections from a random start, on the same frames: 240 iterations, 480 products.
ggs2-1
    The same with squared amplitudes as targets for the first two thirds of the iterations.
raf2-1
    Reweighted amplitude flow from a spectral start, the squares as before: 240 steps, adapted to binary patterns.
anchors
    Numerical interferometry with Hadamard patterns as probes, and an exposure for each anchor.
anchors, published
    The design of a published run: 20 anchors, 1.5 random probes a feature, each frame twice. Ten times as many frames.

Mean and median are of the rows' correlations with the truth; rows with 0.99 or more are good. Held out is the
correlation of predicted and measured frames.

Each is written after its paper, but for the refinement of the anchors by gradient descent, which is left out.
Frames for the exposure and the dark level are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

import opu
from benchmarks.calibration.matrix import bench
from benchmarks.retrieval import interferometry
from benchmarks.retrieval.alternating import gerchberg_saxton, ggs21
from benchmarks.retrieval.amplitude_flow import raf21
from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.retrieval import PhaseRetrieval, frame_correlations, retrieval_patterns
from opu.calibration.recorder import Recorder
from opu.console import Report, table, write_json

FULL_SCALE = 255
HELD_OUT = 50
COLOURS = {
    "openopu": "#1e3a8a",
    "raf2-1": "#059669",
    "ggs2-1": "#93c5fd",
    "gerchberg-saxton": "#6b7280",
    "anchors": "#dc2626",
    "anchors, published": "#fca5a5",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method did on a bench: `rows` are the correlations of the rows with the truth."""

    n_frames: int
    seconds: float
    rows: np.ndarray
    held_out: float


def ours(patterns, counts):
    return PhaseRetrieval().fit(patterns, counts, saturation=FULL_SCALE).matrix_


METHODS = {"openopu": ours, "gerchberg-saxton": gerchberg_saxton, "ggs2-1": ggs21, "raf2-1": raf21}
"""What works on the same frames."""


def judged(device, recorder, matrix, config):
    """Return row correlations with the truth, and the mean correlation of predicted with measured frames."""
    n_features = matrix.shape[1]
    truth = device.capability(opu.GroundTruth).transmission_matrix(config)[:, :n_features]
    held_out = np.zeros((HELD_OUT, config.n_features), np.bool_)
    held_out[:, :n_features] = retrieval_patterns(HELD_OUT, n_features, seed=5)
    frames = recorder.take(recorder.expose(config, held_out), held_out).frames
    predicted = np.abs(held_out[:, :n_features] @ matrix.T) ** 2
    return row_correlations(matrix, truth), float(frame_correlations(predicted, frames).mean())


def run(seed, n_features, frames_per_feature):
    """Run all methods on the bench of a seed, with as many outputs as features."""
    n_frames = int(frames_per_feature * n_features)
    designs = {
        "anchors": interferometry.equal_frames(n_features, n_frames),
        "anchors, published": interferometry.published(n_features),
    }
    found = {}
    with bench(seed) as device:
        recorder = Recorder(device)
        patterns = retrieval_patterns(n_frames, n_features, seed=seed)
        config = recorder.expose(recorder.config(n_features, n_features), patterns[-32:])
        counts = recorder.take(config, patterns).frames.astype(np.float32)
        for name, method in METHODS.items():
            started_s = time.perf_counter()
            matrix = method(patterns, counts)
            seconds = time.perf_counter() - started_s
            found[name] = Outcome(n_frames, seconds, *judged(device, recorder, matrix, config))
        for name, design in designs.items():
            wide = recorder.config(design.width, n_features)
            matrix, seconds = interferometry.measured(recorder, wide, design)
            found[name] = Outcome(design.n_frames, seconds, *judged(device, recorder, matrix, wide))
    return found


def summary(outcomes, n_features):
    """Return the numbers of a method over the seeds."""
    rows = np.concatenate([outcome.rows for outcome in outcomes])
    return {
        "frames_per_feature": outcomes[0].n_frames / n_features,
        "seconds": statistics.mean(outcome.seconds for outcome in outcomes),
        "mean": float(rows.mean()),
        "lowest_mean_of_a_seed": min(float(outcome.rows.mean()) for outcome in outcomes),
        "median": float(np.median(rows)),
        "share_of_0.99": float((rows >= 0.99).mean()),
        "share_of_0.95": float((rows >= 0.95).mean()),
        "held_out": statistics.mean(outcome.held_out for outcome in outcomes),
    }


def draw(outcomes, results, path):
    """Draw the share of rows that are worse than a correlation, for each method."""
    import matplotlib as mpl

    from opu.page import new_figure

    figure, axes = new_figure(7.5, 3.4)
    for name, found in outcomes.items():
        errors = np.sort(1 - np.concatenate([outcome.rows for outcome in found]))[::-1]
        # A few hundred points draw the same curve.
        chosen = np.unique(np.linspace(0, len(errors) - 1, 300).astype(int))
        label = f"{name}, {results[name]['frames_per_feature']:.0f} N frames"
        axes.plot(errors[chosen], (chosen + 1) / len(errors), label=label, color=COLOURS[name])
    axes.axvline(0.01, color="0.7", linewidth=0.8)
    axes.set(xscale="log", xlabel="1 - row correlation with the truth", ylabel="share of rows that are worse")
    axes.legend(frameon=False)
    with mpl.rc_context({"svg.hashsalt": "openopu"}):
        figure.savefig(path, metadata={"Date": None})


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--figure", metavar="FILE", help="draw the rows' correlations into an SVG file")
    parser.add_argument("--features", type=int, default=256, help="features, and outputs (256)")
    parser.add_argument("--frames", type=float, default=6.0, help="frames for each feature (6)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (3)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them (1000)")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    report = Report(Console(stderr=options.json == "-", emoji=False))
    outcomes = {}
    for seed in seeds:
        started_s = time.perf_counter()
        for name, found in run(seed, options.features, options.frames).items():
            outcomes.setdefault(name, []).append(found)
        report.console.print(f"seed {seed}: {time.perf_counter() - started_s:.0f} s")
    results = {name: summary(found, options.features) for name, found in outcomes.items()}
    report.fields = {
        "seeds": list(seeds),
        "n_features": options.features,
        "n_outputs": options.features,
        "methods": results,
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba")},
    }
    columns = ("Method", "Frames", "Mean", "Median", "Good", "Held out", "Time")
    rows = [
        (
            name,
            f"{found['frames_per_feature']:.1f} N",
            f"{found['mean']:.4f}",
            f"{found['median']:.4f}",
            f"{found['share_of_0.99']:.3f}",
            f"{found['held_out']:.4f}",
            f"{found['seconds']:.1f} s",
        )
        for name, found in results.items()
    ]
    report.console.print(table(f"{options.features} x {options.features}, {len(seeds)} seeds", columns, rows))
    if options.figure is not None:
        draw(outcomes, results, options.figure)
    if options.json is not None:
        write_json("benchmarks.retrieval", report, options.json)


if __name__ == "__main__":
    main()
