"""A frame depends on its identity alone: not on batches, threads or what was taken before.

Where medium and laser drift the light belongs to a device time, too.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest

import opu
from opu.sim.device import SimulatedBench
from opu.sim.models import PRESETS

PATTERNS = np.random.default_rng(0).integers(0, 2, (23, 300))
# What a child process computes is looked at, not what it runs; tracing it takes long.
WITHOUT_COVERAGE = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
SHORT = opu.SessionConfig(n_features=300, n_outputs=600, noise_key=9)

# Benches that differ in the kernels that they use; sessions long enough that the work is split between threads.
DIGEST = """
import hashlib, dataclasses, numba, numpy as np, opu
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
patterns = np.random.default_rng(0).integers(0, 2, (64, 777))
laboratory, holography = preset("laboratory"), preset("holography")
small = {"rows": 120, "columns": 100}
benches = {
    "aurora": (preset("aurora"), "none"),
    "ideal": (preset("ideal"), "none"),
    "laboratory": (dataclasses.replace(laboratory, dmd=dataclasses.replace(laboratory.dmd, **small)), "none"),
    "holography": (dataclasses.replace(holography, dmd=dataclasses.replace(holography.dmd, **small)), "off_axis"),
}
for name, (model, reference) in benches.items():
    with SimulatedBench(model, seed=7) as device:
        config = opu.SessionConfig(n_features=777, n_outputs=3000, noise_key=2**63 + 5, reference=reference)
        frames = device.open_session(config).project(patterns, first_frame_index=2**32 - 30).frames
        assert len(np.unique(frames)) > 20
        print(name, hashlib.sha256(frames.tobytes()).hexdigest())
print(numba.get_num_threads())
"""


def test_the_number_of_threads_changes_nothing():
    answers = []
    for threads in ("1", "2", "4"):
        environment = WITHOUT_COVERAGE | {"NUMBA_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        *digests, used = run.stdout.splitlines()
        assert used == threads
        answers.append(digests)
    assert len(answers[0]) == 4
    assert answers[0] == answers[1] == answers[2]


@pytest.fixture(params=PRESETS)
def bench_and_config(request, small_preset):
    """A bench of each preset, in the use of its reference arm that shows most, and a session for it.

    Calls cost no time, so that batches that are split show each frame at the same device time.
    """
    model = small_preset(request.param)
    model = dataclasses.replace(model, timing=msgspec.structs.replace(model.timing, call_overhead_us=0.0))
    uses = ("none", *model.reference.uses)
    with SimulatedBench(model, seed=7) as bench:
        yield bench, msgspec.structs.replace(SHORT, reference=uses[-1])


def fresh(bench):
    """An equal bench at device time 0."""
    return SimulatedBench(bench.table.model, seed=7)


@pytest.mark.parametrize("split", [1, 7, 22])
def test_the_split_into_batches_changes_nothing(bench_and_config, split):
    bench, config = bench_and_config
    parts = range(0, 23, split)
    with bench.open_session(config) as session:
        whole = session.project(PATTERNS).frames
    with fresh(bench) as again, again.open_session(config) as session:
        frames = [session.project(PATTERNS[i : i + split]).frames for i in parts]
        np.testing.assert_array_equal(np.concatenate(frames), whole)
        if "repeatable_noise" in bench.describe().capabilities:
            late = [session.project(PATTERNS[i : i + split], first_frame_index=i).frames for i in reversed(parts)]
            np.testing.assert_array_equal(np.concatenate(late[::-1]), whole)


def test_the_chunks_of_a_long_batch_change_nothing(bench_and_config, monkeypatch):
    bench, config = bench_and_config
    with bench.open_session(config) as session:
        whole = session.project(PATTERNS, first_frame_index=2**32 - 7)
    monkeypatch.setattr("opu.sim.table._frames_at_once", lambda *_, **__: 5)
    with fresh(bench) as again, again.open_session(config) as session:
        chunked = session.project(PATTERNS, first_frame_index=2**32 - 7)
    np.testing.assert_array_equal(chunked.frames, whole.frames)
    assert chunked.provenance.saturated_fraction == whole.provenance.saturated_fraction


def test_other_sessions_and_outputs_change_nothing(bench_and_config):
    """A pixel's counts do not depend on which others are read out, nor on a session in between."""
    bench, config = bench_and_config
    with bench.open_session(config) as session:
        whole = session.project(PATTERNS[:5], first_frame_index=40).frames
        region = session.config.region
        part = opu.Region(region.row, region.column + 5, 1, 20)
        few = msgspec.structs.replace(config, n_outputs=20, region=part)
        with fresh(bench) as again, again.open_session(few) as other:
            np.testing.assert_array_equal(other.project(PATTERNS[:5], first_frame_index=40).frames, whole[:, 5:25])
        if "repeatable_noise" in bench.describe().capabilities:
            np.testing.assert_array_equal(session.project(PATTERNS[:5], first_frame_index=40).frames, whole)


def residuals(bench, config, first_frame_index=0):
    """Counts without their mean, which the simulator knows, in standard deviations."""
    camera = bench.table.model.camera
    mean_e = bench.capability(opu.GroundTruth).photoelectrons(config, PATTERNS)
    with bench.open_session(config) as session:
        frames = session.project(PATTERNS, first_frame_index=first_frame_index).frames
    deviation = frames - (camera.black_level_dn + camera.gain_dn_per_e * mean_e.astype(np.float64))
    return deviation / np.sqrt(camera.gain_dn_per_e**2 * (mean_e + camera.read_noise_e**2) + 1 / 12)


CAMERA = {"bit_depth": 12, "gain_dn_per_e": 1.0, "full_well_e": np.inf, "black_level_dn": 50.0}


def test_noise_differs_by_key_frame_number_and_seed_and_repeats_otherwise(make_bench):
    def config(noise_key):
        return opu.SessionConfig(n_features=300, n_outputs=1300, noise_key=noise_key)

    with make_bench(camera=CAMERA, electrons=200) as bench, make_bench(camera=CAMERA, electrons=200, seed=8) as other:
        noises = {
            "key 0": residuals(bench, config(0)),
            "key 1": residuals(bench, config(1)),
            "largest key": residuals(bench, config(2**64 - 1)),
            "later frames": residuals(bench, config(0), 23),
            "frames 2**32 later": residuals(bench, config(0), 2**32),
            "another seed": residuals(other, config(0)),
        }
        again = residuals(bench, config(0))
    np.testing.assert_array_equal(again, noises["key 0"])
    stacked = np.stack([noise.ravel() for noise in noises.values()])
    n = stacked.shape[1]
    assert np.abs(stacked.mean(axis=1)).max() < 5 / np.sqrt(n)
    assert np.abs(stacked.std(axis=1) - 1).max() < 0.03
    correlation = np.corrcoef(stacked) - np.eye(len(stacked))
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_noise_is_independent_between_pixels_and_frames(make_bench):
    with make_bench(camera=CAMERA, electrons=200) as bench:
        noise = residuals(bench, opu.SessionConfig(n_features=300, n_outputs=1300))
    n_frames, n_outputs = noise.shape
    for lag in (1, 2, 512):
        correlation = (noise[:, lag:] * noise[:, :-lag]).mean()
        assert abs(correlation) < 5 / np.sqrt(n_frames * (n_outputs - lag))
    between_frames = np.corrcoef(noise) - np.eye(n_frames)
    assert np.abs(between_frames).max() < 5 / np.sqrt(n_outputs)


def test_photon_noise_and_read_noise_are_independent(take):
    mean_e, read_e, black = 400.0, 20.0, 1000.0
    both = take(mean_e, read_noise_e=read_e, black_level_dn=black).astype(np.float64)
    photon = take(mean_e, black_level_dn=black).astype(np.float64) - black - mean_e
    read = take(mean_e, shot_noise=False, read_noise_e=read_e, black_level_dn=black).astype(np.float64) - black - mean_e
    np.testing.assert_array_equal(both, black + mean_e + photon + read)  # the very same draws
    n = photon.size
    for first, second in ((photon, read), (photon**2, read**2), (photon, read**2), (photon**2, read)):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("name", PRESETS)
def test_two_benches_of_one_seed_are_one_device(name, small_preset):
    digests = []
    for seed in (7, 7, 2**64 - 1):
        with SimulatedBench(small_preset(name), seed=seed) as bench:
            frames = bench.open_session(SHORT).project(PATTERNS).frames
            digests.append((bench.describe().medium.medium_id, hashlib.sha256(frames.tobytes()).hexdigest()))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]
