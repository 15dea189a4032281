"""How fast the simulator is, beside what it replaces: `python -m benchmarks.simulator --json`.

In one run, side by side and in turns, so that a busy machine is busy for all:

openopu
    patterns in, 8-bit camera frames out, of the preset `aurora`: photon and read noise, full well, quantisation.
blas
    two float32 products and the sum of their squares, in NumPy; no camera.
abs2
    `abs(X @ R)**2` in complex64, what the simulated device of the incumbent library does; no camera.
sklearn
    scikit-learn's GaussianRandomProjection; no camera.

Then small calls: batches of one pattern beside the two products, and a large batch in parts of some milliseconds, as a
server cuts it, beside the whole. Then the structured medium at 2**20 mirrors and pixels with its camera, and the
matrix-free one. Numbers are medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import numba
import numpy as np
from sklearn.random_projection import GaussianRandomProjection

import opu
from opu.sim.device import SimulatedBench
from opu.sim.media.base import EpochTrack
from opu.sim.mirrors import MirrorMap, n_blocks
from opu.sim.models import preset
from opu.testing import media_laws

SHAPES = ((512, 1000, 10_000), (128, 10_000, 10_000))
SMALL = (1000, 1000)
SMALL_CALLS = 50
WHOLE, PART = 3000, 350
SEED = 7
ROUNDS = 9
PAUSE_S = 0.3
"""Before each measurement: threads of a BLAS spin for a while after their work, on cores that the next one needs."""
MEGA = 2**20


def median_s(function, rounds):
    """Return the median time of a call, after one that does not count."""
    function()
    return statistics.median(timed(function) for _ in range(rounds))


def timed(function):
    """Return the time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compare(batch, n_features, n_outputs, rounds):
    """Measure the four variants of a shape in turns."""
    generator = np.random.default_rng(SEED)
    patterns = generator.integers(0, 2, (batch, n_features), dtype=np.uint8)
    real = patterns.astype(np.float32)
    parts = generator.standard_normal((2, n_features, n_outputs), dtype=np.float32)
    matrix = parts[0] + 1j * parts[1]
    complex_patterns = patterns.astype(np.complex64)
    projection = GaussianRandomProjection(n_outputs, random_state=SEED).fit(real)

    def blas():
        first, second = real @ parts[0], real @ parts[1]
        return first * first + second * second

    with opu.open(f"sim:?preset=aurora&seed={SEED}") as device:
        config = opu.SessionConfig(n_features=n_features, n_outputs=n_outputs)
        device.open_session(replace_outputs(config, 64)).close()  # kernels are loaded
        started = time.perf_counter()
        with device.open_session(config) as session:
            compile_s = time.perf_counter() - started
            packed = opu.pack(patterns)
            out = np.empty((batch, n_outputs), np.uint8)
            variants = {
                "openopu": lambda: session.project(packed, out=out),
                "blas": blas,
                "abs2": lambda: np.abs(complex_patterns @ matrix) ** 2,
                "sklearn": lambda: projection.transform(real),
            }
            for function in variants.values():
                function()
            times = {name: [] for name in variants}
            for _ in range(rounds):
                for name, function in variants.items():
                    time.sleep(PAUSE_S)
                    times[name].append(timed(function))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "name": "projection",
            "shape": [batch, n_features, n_outputs],
            "variant": name,
            "seconds": value,
            "ratio_blas": seconds["blas"] / value,
            "ratio_abs2": seconds["abs2"] / value,
            **({"compile_seconds": compile_s} if name == "openopu" else {}),
        }
        for name, value in seconds.items()
    ]


def small_calls(rounds):
    """Measure calls with one pattern, in turns with two products, and what cutting a large batch costs."""
    n_features, n_outputs = SMALL
    generator = np.random.default_rng(SEED)
    patterns = generator.integers(0, 2, (WHOLE, n_features), dtype=np.uint8)
    real = patterns[:1].astype(np.float32)
    first, second = generator.standard_normal((2, *SMALL), dtype=np.float32)
    whole, one = opu.pack(patterns), opu.pack(patterns[:1])
    parts = [opu.pack(patterns[start : start + PART]) for start in range(0, WHOLE, PART)]
    worker_s, project_s, blas_s, whole_s, parts_s = [], [], [], [], []
    config = opu.SessionConfig(n_features=n_features, n_outputs=n_outputs)
    with opu.open(f"sim:?preset=aurora&seed={SEED}") as device, device.open_session(config) as session:
        for patterns in (whole, one):
            session.project(patterns)  # kernels are loaded
        for _ in range(rounds):
            time.sleep(PAUSE_S)
            for _ in range(SMALL_CALLS):
                started = time.perf_counter()
                provenance = session.project(one).provenance
                project_s.append(time.perf_counter() - started)
                worker_s.append(provenance.finished_unix_s - provenance.started_unix_s)
            blas_s.extend(timed(lambda: (real @ first) ** 2 + (real @ second) ** 2) for _ in range(SMALL_CALLS))
            time.sleep(PAUSE_S)
            whole_s.append(timed(lambda: session.project(whole)))
            parts_s.append(timed(lambda: [session.project(part) for part in parts]))
    seconds = {
        name: statistics.median(values)
        for name, values in (("project", project_s), ("worker", worker_s), ("blas", blas_s))
    }
    return {
        "shape": [1, n_features, n_outputs],
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "ratio_blas": seconds["blas"] / seconds["project"],
        "part": [PART, WHOLE],
        "part_overhead": statistics.median(parts_s) / statistics.median(whole_s) - 1,
    }


def replace_outputs(config, n_outputs):
    """Return the configuration with another number of outputs."""
    return opu.SessionConfig(n_features=config.n_features, n_outputs=n_outputs)


def mega_bench():
    """Make a bench after `aurora` with 2**20 mirrors and pixels and the structured medium."""
    aurora = preset("aurora")
    side = 1024
    model = replace(
        aurora,
        name="mega",
        dmd=replace(aurora.dmd, rows=side, columns=side),
        camera=replace(aurora.camera, rows=side, columns=side),
    )
    return SimulatedBench(model, seed=SEED, medium="structured")


def structured_frames_per_s(rounds, batch=32):
    """Measure frames of 2**20 mirrors and pixels, and the largest memory of the process."""
    patterns = np.random.default_rng(SEED).integers(0, 2, (batch, MEGA), dtype=np.uint8)
    packed = opu.pack(patterns)
    out = np.empty((batch, MEGA), np.uint8)
    with mega_bench() as bench, bench.open_session(opu.SessionConfig(n_features=MEGA, n_outputs=MEGA)) as session:
        return batch / median_s(lambda: session.project(packed, out=out), rounds)


def qpsk_entries_per_s(rounds, n_mirrors=MEGA, n_points=2048):
    """Measure entries of the matrix-free medium, made and used for one frame, on one thread."""
    from opu.sim.media.matrix_free import MatrixFreeMedium

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        mirrors = MirrorMap(n_mirrors, np.arange(n_mirrors, dtype=np.int32), np.ones(n_mirrors, np.uint8))
        prepared = MatrixFreeMedium(SEED).prepare(mirrors, np.arange(n_points, dtype=np.int64))
        features = np.random.default_rng(SEED).integers(0, 2, (1, n_mirrors), dtype=np.uint8)
        still = EpochTrack.still(1, np.zeros(n_blocks(n_mirrors), np.uint32))
        return n_mirrors * n_points / median_s(lambda: prepared.fields(features, still), rounds)
    finally:
        numba.set_num_threads(threads)


def laws_of_the_benchmarked_medium():
    """Measure the laws of the medium of `compare`: contrast with few and many inputs on, and acceptance A3 to A5."""
    with opu.open(f"sim:?preset=aurora&seed={SEED}") as device:
        truth = device.capability(opu.GroundTruth)
        config = opu.SessionConfig(n_features=1000, n_outputs=10_000)
        generator = np.random.default_rng(SEED)
        contrast = {}
        for ones in (5, 20, 500):
            patterns = generator.random((10, 1000)).argsort(axis=1) < ones
            electrons = truth.photoelectrons(config, patterns)
            contrast[ones] = float((electrons.std(axis=1) / electrons.mean(axis=1)).mean())
        matrix = truth.transmission_matrix(opu.SessionConfig(n_features=512, n_outputs=8192))
    matrix /= np.sqrt(np.mean(np.abs(matrix) ** 2))
    return {
        "contrast": contrast,
        "singular_value_distance": media_laws.singular_value_distance(matrix[:1024]),
        "kurtosis": media_laws.kurtosis(matrix),
        "circularity_sqrt_n": media_laws.circularity(matrix) * float(np.sqrt(matrix.size)),
        "kernel_error_ratio": media_laws.kernel_error_ratio(np.split(matrix, 256)),
    }


def measure(rounds):
    """Measure everything; the structured medium first, so that its memory is seen alone."""
    structured = structured_frames_per_s(rounds)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "schema": "openopu.benchmarks.simulator/1",
        "ok": True,
        "error": None,
        "seed": SEED,
        "threads": numba.get_num_threads(),
        "cases": [case for shape in SHAPES for case in compare(*shape, rounds)],
        "small_calls": small_calls(rounds),
        "structured_frames_per_s": structured,
        "structured_peak_mib": peak_mib,
        "qpsk_entries_per_s": qpsk_entries_per_s(rounds),
        "laws": laws_of_the_benchmarked_medium(),
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba", "scikit-learn")},
    }


def show(result):
    """Print the result for people."""
    print(f"{'shape':>24}  {'variant':8} {'ms':>8} {'x blas':>7} {'x abs2':>7}")
    for case in result["cases"]:
        batch, n_features, n_outputs = case["shape"]
        shape = f"{batch} x {n_features} -> {n_outputs}"
        ratios = f"{case['ratio_blas']:7.2f} {case['ratio_abs2']:7.2f}"
        print(f"{shape:>24}  {case['variant']:8} {case['seconds'] * 1e3:8.1f} {ratios}")
        if "compile_seconds" in case:
            print(f"{'':>24}  opening the session compiled for {case['compile_seconds']:.2f} s")
    small = result["small_calls"]
    times_us = [small[f"{name}_seconds"] * 1e6 for name in ("project", "worker", "blas")]
    print("one pattern of {1} -> {2}: ".format(*small["shape"]), end="")
    print("{:.0f} us, {:.0f} of them in the device's thread; two products {:.0f} us".format(*times_us))
    print("    {1} patterns in parts of {0} take ".format(*small["part"]), end="")
    print(f"{small['part_overhead']:+.0%} beside the whole")
    print(
        f"structured 2**20 -> 2**20: {result['structured_frames_per_s']:.0f} frames/s on {result['threads']} threads,"
    )
    print(f"    {result['structured_peak_mib']:.0f} MiB at most")
    print(f"matrix-free QPSK: {result['qpsk_entries_per_s'] / 1e9:.1f} G entries/s on one thread")
    laws = result["laws"]
    print(
        "contrast "
        + ", ".join(f"{value:.3f} with {ones}" for ones, value in laws["contrast"].items())
        + " of 1,000 on;"
    )
    print(f"    distance from Marchenko-Pastur {laws['singular_value_distance']:.4f}, kurtosis {laws['kurtosis']:.3f},")
    print(f"    error of the kernel {laws['kernel_error_ratio']:.2f} of a Gaussian matrix's")


def main():
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measurements of each number ({ROUNDS})")
    options = parser.parse_args()
    result = measure(options.rounds)
    if options.json is None:
        show(result)
        return
    text = json.dumps(result, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123 - a name from the command line
            file.write(text)


if __name__ == "__main__":
    main()
