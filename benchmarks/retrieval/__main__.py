"""How transmission matrices are recovered, side by side: `python -m benchmarks.retrieval --json`.

In one run, on the same simulated benches (8 bits, 10,000 electrons, 7 electrons of read noise), with the same frames
for each feature, the same mean count and the same camera:

openopu
    `opu.calibration.matrix.retrieval.PhaseRetrieval`.
gerchberg-saxton
    Alternating projections from a random start (Gerchberg and Saxton, Optik 35, 237, 1972).
ggs2-1
    The same with squared amplitudes as targets for the first two thirds of the iterations, and amplitudes for the last
    (GGS2-1; Huang et al., Photonics Research 9, 34, 2021). On the patterns of `openopu`.
anchors
    Numerical interferometry (Gupta et al., NeurIPS 2019 and ICASSP 2020): nested anchors around every pattern, their
    positions in the complex plane by multidimensional scaling, the fields of patterns by multilateration, the matrix by
    least squares. Once with the frames of the others, and once in its published design, with 20 anchors, 1.5 patterns
    a feature and each frame twice, ten times as many frames.

Mean and median are of the rows' correlations with the truth; rows with 0.99 or more are good. Held out is the
correlation of predicted and measured frames.

Each is written after its paper. Frames for the exposure and the dark level are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.metadata import version

import numpy as np

import opu
from benchmarks.calibration.matrix import bench
from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.retrieval import PhaseRetrieval, frame_correlations, retrieval_patterns
from opu.calibration.recorder import Recorder
from opu.console import Report, table, write_json

FULL_SCALE = 255
ITERATIONS = 240
"""Of the alternating projections: as many products of matrices as ours makes, restarts left out."""
HELD_OUT = 50
PUBLISHED = {"n_anchors": 20, "patterns_per_feature": 1.5, "repeats": 2}
SMALL_ANCHORS = 4
SMALL_GAUGE = SMALL_ANCHORS * (SMALL_ANCHORS + 1)
"""Frames of the distances between the anchors and the origin, two each."""


def frames_of(recorder, patterns):
    """Show patterns at the exposure for a ninth of full scale; return the counts and the configuration."""
    n_features = patterns.shape[1]
    config = recorder.expose(recorder.config(n_features, recorder.n_outputs), patterns[-32:])
    return recorder.take(config, patterns).frames.astype(np.float32), config


def ours(patterns, counts):
    return PhaseRetrieval().fit(patterns, counts, saturation=FULL_SCALE).matrix_


def alternating(patterns, counts, powers):
    """Return the matrix after alternating projections with a power of the amplitudes for each iteration."""
    shown = patterns.astype(np.float32)
    inverse = np.linalg.pinv(shown)
    amplitudes = np.sqrt(counts.T)
    rng = np.random.default_rng(0)
    shape = (counts.shape[1], patterns.shape[1])
    matrix = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    for power in powers:
        fields = matrix.real @ shown.T + 1j * (matrix.imag @ shown.T)
        fields *= amplitudes**power / np.maximum(np.abs(fields), 1e-9)
        matrix = fields.real @ inverse.T + 1j * (fields.imag @ inverse.T)
    return matrix


def gerchberg_saxton(patterns, counts):
    return alternating(patterns, counts, [1] * ITERATIONS)


def ggs21(patterns, counts):
    squared = 2 * ITERATIONS // 3
    return alternating(patterns, counts, [2] * squared + [1] * (ITERATIONS - squared))


def nested_anchors(n_features, n_anchors):
    """Return anchors that contain all features and each its predecessor, on as many mirrors beside the features.

    Then anchor minus pattern, and anchor minus anchor, are binary, as the method needs them.
    """
    rows = np.zeros((n_anchors, 2 * n_features), np.bool_)
    rows[:, :n_features] = True
    for k, row in enumerate(rows):
        row[n_features : n_features + k * n_features // (n_anchors - 1)] = True
    return rows


def positions(squares):
    """Return points of the complex plane from their squared distances, shape (n_outputs, n, n), the first at 0."""
    n = squares.shape[1]
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ squares @ centring)
    planes = vectors[:, :, -2:] * np.sqrt(np.maximum(values[:, np.newaxis, -2:], 0))
    points = planes[:, :, 1] + 1j * planes[:, :, 0]
    return points - points[:, :1]


def multilaterate(anchors, squares):
    """Return points from their squared distances to the anchors.

    `anchors` have the shape (n_outputs, n), `squares` (n_outputs, n, n_patterns): the linear system in the real and
    imaginary part of a point and its square.
    """
    ones = np.ones_like(anchors.real)
    system = np.stack([-2 * anchors.real, -2 * anchors.imag, ones], axis=2)
    solved = np.linalg.pinv(system) @ (squares - (np.abs(anchors) ** 2)[:, :, np.newaxis])
    return solved[:, 0] + 1j * solved[:, 1]


def interferometry(recorder, n_features, n_anchors, patterns_per_feature, repeats):
    """Measure a matrix by numerical interferometry; return it, the frames and the computing time in seconds."""
    rng = np.random.default_rng(0)
    n_patterns = int(patterns_per_feature * n_features)
    patterns = np.zeros((n_patterns, 2 * n_features), np.bool_)
    patterns[:, :n_features] = rng.random((n_patterns, n_features)) < 0.5
    anchors = nested_anchors(n_features, n_anchors)
    origin = np.zeros((1, 2 * n_features), np.bool_)
    points = np.concatenate([origin, anchors])
    first, second = np.triu_indices(len(points), 1)
    # The origin is a point too: distances to it are the intensities themselves.
    shown = np.concatenate([patterns, *(anchor ^ patterns for anchor in anchors)])
    counts, config = frames_of(recorder, np.tile(shown, (repeats, 1)))
    between = np.tile(points[first] ^ points[second], (2 * repeats, 1))
    # Anchors are brighter than their differences with patterns: an exposure of their own, in the same units.
    dimmer = recorder.expose(config, points[-8:])
    distances = recorder.take(dimmer, between).frames.astype(np.float64) * config.exposure_us / dimmer.exposure_us
    started_s = time.perf_counter()
    squares = np.zeros((counts.shape[1], len(points), len(points)))
    mean = distances.reshape(2 * repeats, len(first), -1).mean(axis=0).T
    squares[:, first, second] = squares[:, second, first] = mean
    known = positions(squares)
    measured = counts.reshape(repeats, len(points), n_patterns, -1).mean(axis=0).transpose(2, 0, 1)
    fields = multilaterate(known, measured.astype(np.float64))
    matrix = fields @ np.linalg.pinv(patterns[:, :n_features].astype(np.float64)).T
    return matrix, len(shown) * repeats + len(between), time.perf_counter() - started_s


def judge(device, recorder, n_features, matrix, config):
    """Return row correlations with the truth, and the mean correlation of predicted with measured frames."""
    truth = device.capability(opu.GroundTruth).transmission_matrix(config)[:, :n_features]
    held_out = np.zeros((HELD_OUT, config.n_features), np.bool_)
    held_out[:, :n_features] = retrieval_patterns(HELD_OUT, n_features, seed=5)
    exposed = recorder.expose(config, held_out)
    frames = recorder.take(exposed, held_out).frames
    predicted = np.abs(held_out[:, :n_features] @ matrix.T) ** 2
    return row_correlations(matrix, truth), float(frame_correlations(predicted, frames).mean())


class CountingRecorder(Recorder):
    """A recorder for sessions of a fixed number of outputs."""

    def __init__(self, device, n_outputs):
        super().__init__(device)
        self.n_outputs = n_outputs


def run(seed, n_features, n_outputs, frames_per_feature):
    """Run all methods on the bench of a seed."""
    found = {}
    with bench(seed) as device:
        recorder = CountingRecorder(device, n_outputs)
        patterns = retrieval_patterns(int(frames_per_feature * n_features), n_features, seed=seed)
        counts, config = frames_of(recorder, patterns)
        for name, method in (("openopu", ours), ("gerchberg-saxton", gerchberg_saxton), ("ggs2-1", ggs21)):
            started_s = time.perf_counter()
            matrix = method(patterns, counts)
            seconds = time.perf_counter() - started_s
            found[name] = (len(patterns), seconds, *judge(device, recorder, n_features, matrix, config))
        same = {
            "n_anchors": SMALL_ANCHORS,
            "patterns_per_feature": (frames_per_feature - SMALL_GAUGE / n_features) / (SMALL_ANCHORS + 1),
            "repeats": 1,
        }
        wide = recorder.config(2 * n_features, n_outputs)
        for name, design in (("anchors", same), ("anchors, published", PUBLISHED)):
            matrix, n_frames, seconds = interferometry(recorder, n_features, **design)
            found[name] = (n_frames, seconds, *judge(device, recorder, n_features, matrix, wide))
    return found


def summary(runs, n_features):
    """Return the numbers of a method over the seeds."""
    rows = np.concatenate([run[2] for run in runs])
    return {
        "frames_per_feature": runs[0][0] / n_features,
        "seconds": statistics.mean(run[1] for run in runs),
        "mean": float(rows.mean()),
        "median": float(np.median(rows)),
        "share_of_0.99": float((rows >= 0.99).mean()),
        "share_of_0.95": float((rows >= 0.95).mean()),
        "held_out": statistics.mean(run[3] for run in runs),
    }


def draw(runs, results, path):
    """Draw the share of rows below a correlation, for each method."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "openopu"
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, found in runs.items():
        errors = np.sort(1 - np.concatenate([run[2] for run in found]))[::-1]
        label = f"{name}, {results[name]['frames_per_feature']:.0f} N frames"
        # A few hundred points draw the same curve.
        chosen = np.unique(np.linspace(0, len(errors) - 1, 300).astype(int))
        axes.plot(errors[chosen], (chosen + 1) / len(errors), label=label)
    axes.set(xscale="log", xlabel="1 - row correlation with the truth", ylabel="share of rows that are worse")
    axes.axvline(0.01, color="0.7", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--figure", metavar="FILE", help="draw the rows' correlations into an SVG file")
    parser.add_argument("--features", type=int, default=256, help="features, and outputs (256)")
    parser.add_argument("--frames", type=float, default=6.0, help="frames for each feature (6)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (3)")
    parser.add_argument("--first-seed", type=int, default=1000, help="the first of them (1000)")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = {}
    for seed in seeds:
        for name, found in run(seed, options.features, options.features, options.frames).items():
            runs.setdefault(name, []).append(found)
    results = {name: summary(found, options.features) for name, found in runs.items()}
    report = Report(Console(stderr=options.json == "-", emoji=False))
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
        draw(runs, results, options.figure)
    if options.json is not None:
        write_json("benchmarks.retrieval", report, options.json)


if __name__ == "__main__":
    main()
