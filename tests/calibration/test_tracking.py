"""A matrix that is followed forgets a drifting medium no faster than it must."""

import dataclasses

import msgspec
import numpy as np
import pytest
from matrix_helpers import exposed, true_matrix, wrap

import opu
from opu.calibration.matrix.tracking import MatrixTracker, tracking
from opu.calibration.matrix.validation import row_correlations
from opu.calibration.recorder import random_halves
from opu.device import Region, SessionConfig
from opu.errors import PatternShapeError
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.testing import Faults, FaultyDevice

N, M = 32, 40
CONFIG = SessionConfig(n_features=N, n_outputs=M, region=Region(0, 0, 1, M), exposure_us=400.0)


@pytest.fixture(scope="module")
def device():
    with opu.open("sim:?preset=aurora&seed=31") as opened:
        yield opened


class Medium:
    """An Ornstein-Uhlenbeck matrix of unit variance that a camera of 10,000 electrons looks at, with a background."""

    def __init__(self, tau_probes, seed=0, background=0.0):
        self.rng = np.random.default_rng(seed)
        self.keep = np.exp(-1 / tau_probes)
        self.background = background
        self.matrix = self.draw()

    def draw(self):
        return (self.rng.normal(size=(M, N)) + 1j * self.rng.normal(size=(M, N))) / np.sqrt(2)

    def offset(self):
        return self.background * self.matrix.sum(axis=1)

    def frames(self, patterns):
        """Return frames in DN of 8 bits with a mean of 28."""
        frames = []
        for pattern in patterns:
            self.matrix = self.keep * self.matrix + np.sqrt(1 - self.keep**2) * self.draw()
            mean_dn = np.square(np.abs(self.matrix @ pattern + self.offset())) * 28 / (N / 2)
            electrons = self.rng.poisson(mean_dn / 0.0255) + 7 * self.rng.normal(size=M)
            frames.append(np.clip(np.round(0.0255 * electrons), 0, 255))
        return np.array(frames)

    def measured(self, device, error):
        entries = (self.matrix + error * self.draw()) * np.sqrt(28 / (N / 2))
        offset = (self.offset() * np.sqrt(28 / (N / 2))).astype(np.complex64)
        return wrap(device, CONFIG, entries, background=offset)


def follow(medium, start, n_probes, n_looks):
    """Return the mean correlations of the tracked and of the frozen matrix at each look."""
    tracker = MatrixTracker(start, full_scale_dn=255)
    looks = []
    for look in range(n_looks):
        patterns = np.random.default_rng(look).random((n_probes // n_looks, N)) < 0.5
        tracker.partial_fit(patterns, medium.frames(patterns))
        followed = row_correlations(medium.matrix, tracker.matrix_.matrix).mean()
        looks.append((followed, row_correlations(medium.matrix, start.matrix).mean()))
    return tracker, np.array(looks)


def test_five_correlation_times_at_ten_percent_duty(device):
    # tau = 1000 N frames, of which a tenth are probes.
    tau = 100 * N
    medium = Medium(tau)
    tracker, looks = follow(medium, medium.measured(device, 0.07), 5 * tau, 20)
    assert looks[:, 0].mean() > 0.97
    assert looks[:, 0].min() > 0.96
    assert (looks[:, 0] >= looks[:, 1]).all()
    assert looks[-1, 1] < 0.3
    # It has found out how fast the medium drifts.
    assert tracker.drift_per_probe_ == pytest.approx(2 / tau, rel=0.3)
    assert tracker.n_probes_ == 5 * tau
    assert tracker.matrix_.n_frames == 6 * N + 5 * tau


def forget_by_a_factor(medium, rows, memory_probes, n_probes):
    """Return the mean correlation at the end of rows followed as by `MatrixTracker`, but with a forgetting factor."""
    covariance, noise = 0.01 * np.eye(N), 0.0128  # the noise that `MatrixTracker` finds for this camera
    patterns = (np.random.default_rng(0).random((n_probes, N)) < 0.5).astype(float)
    for pattern, counts in zip(patterns, medium.frames(patterns), strict=True):
        spread = covariance @ pattern
        variance = pattern @ spread
        gain = spread / (variance + noise)
        fields = rows @ pattern
        moduli = np.abs(fields)
        weights = moduli**2 / (moduli**2 + variance / 2)
        missing = np.sqrt(counts / 28 * N / 2) - moduli
        rows = rows + np.multiply.outer(weights * missing * fields / moduli, gain)
        covariance = (covariance - np.multiply.outer(gain, spread / 2)) / (1 - 1 / memory_probes)
    return row_correlations(medium.matrix, rows).mean()


def test_a_forgetting_factor_follows_worse(device):
    tau = 100 * N
    medium = Medium(tau)
    _, looks = follow(medium, medium.measured(device, 0.07), tau, 5)
    assert looks[-1, 0] > 0.97
    for memory in (6 * N, 8 * N, 12 * N):
        medium = Medium(tau)
        start = medium.matrix + 0.07 * medium.draw()
        assert forget_by_a_factor(medium, start, memory, tau) < 0.96


def test_a_medium_that_stands_still_is_learned_better(device):
    medium = Medium(np.inf)
    tracker, looks = follow(medium, medium.measured(device, 0.1), 60 * N, 10)
    assert (looks[:, 0] >= looks[:, 1]).all()
    assert looks[-1, 0] > 0.999
    assert tracker.drift_per_probe_ < 1e-4


def test_a_fast_drift_is_no_worse_than_a_frozen_matrix(device):
    medium = Medium(8 * N)
    _, looks = follow(medium, medium.measured(device, 0.07), 16 * N, 16)
    assert (looks[:, 0] > looks[:, 1] - 0.02).all()
    assert looks[-1, 0] > looks[-1, 1] + 0.3


def test_the_background_is_followed_too(device):
    medium = Medium(100 * N, background=0.1)
    start = medium.measured(device, 0.03)
    tracker, looks = follow(medium, start, 200 * N, 10)
    assert looks[:, 0].min() > 0.96
    found, truth = tracker.matrix_.background, medium.offset()
    turned = np.exp(-1j * np.angle((tracker.matrix_.matrix * medium.matrix.conj()).sum(axis=1)))
    assert np.corrcoef((found * turned).real, truth.real)[0, 1] > 0.9
    frozen = start.background
    assert np.corrcoef((frozen * turned).real, truth.real)[0, 1] < 0.7


def test_rows_that_are_not_kept_and_saturated_pixels_teach_nothing(device):
    medium = Medium(np.inf)
    start = dataclasses.replace(medium.measured(device, 0.1), kept=np.arange(M) >= 5)
    patterns = random_halves(30 * N, N)
    frames = medium.frames(patterns)
    frames[:, 10:15] = 255
    tracker = MatrixTracker(start, full_scale_dn=255).partial_fit(patterns, frames)
    same = np.isclose(tracker.matrix_.matrix, start.matrix).all(axis=1)
    assert same[:5].all()
    assert same[10:15].all()
    assert not same[15:].any()
    assert (tracker.matrix_.kept == start.kept).all()


def test_dark_frames_and_wrong_shapes(device):
    start = Medium(np.inf).measured(device, 0.1)
    tracker = MatrixTracker(start).partial_fit(random_halves(100, N), np.zeros((100, M)))
    assert np.isfinite(tracker.matrix_.matrix).all()
    zero = MatrixTracker(dataclasses.replace(start, matrix=np.zeros((M, N), np.complex64)))
    assert (zero.partial_fit(random_halves(3, N), np.ones((3, M))).matrix_.matrix == 0).all()
    with pytest.raises(PatternShapeError, match=r"Use \(3, 40\)"):
        tracker.partial_fit(random_halves(3, N), np.zeros((3, M + 1)))
    with pytest.raises(PatternShapeError):
        tracker.partial_fit(random_halves(3, N + 1), np.zeros((3, M)))


def test_probes_are_a_tenth_of_the_frames_and_never_the_same(device):
    tracker = MatrixTracker(Medium(np.inf).measured(device, 0.1))
    first = tracker.probes_for(900)
    assert first.shape == (100, N)
    tracker.partial_fit(first, np.ones((100, M)))
    assert not (tracker.probes_for(900) == first).all(axis=1).any()


def test_it_follows_the_simulator_and_tells_its_correlation_time(small_preset):
    frame_s = 0.005
    tau_s = 100 * 16 * frame_s
    model = small_preset("aurora", drift=DriftModel(correlation_time_s=tau_s))
    # A quarter of the mirrors: 64 blocks for each of 64 features make a smooth drift.
    full = dataclasses.replace(model, dmd=dataclasses.replace(model.dmd, rows=2 * 142, columns=2 * 114))
    timing = msgspec.structs.replace(full.timing, frame_overhead_us=4400.0, call_overhead_us=0.0, reconfigure_us=0.0)
    per_mirror = full.laser.electrons_per_mirror_us / 4
    full = dataclasses.replace(
        full, timing=timing, laser=dataclasses.replace(full.laser, electrons_per_mirror_us=per_mirror)
    )
    with SimulatedBench(full, seed=4) as device:
        config = exposed(device, n_features=16, n_outputs=100)
        result = tracking(device, matrix=true_matrix(device, config), n_probes=3000)
    assert result.passed, (result.value, result.findings)
    assert result.quantities["tracked"].value > 0.8
    assert result.value > 0.3
    assert result.quantities["correlation_time_s"].value == pytest.approx(tau_s, rel=0.4)
    assert result.data["tracked"].shape == result.data["frozen"].shape == result.data["time_s"].shape == (16,)


def test_a_still_medium_passes(device):
    config = exposed(device, n_features=48, n_outputs=60)
    result = tracking(device, matrix=true_matrix(device, config, error=0.07))
    assert result.passed, (result.value, result.findings)
    assert result.frames == 4 * 48


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(swapped_fraction=0.3), "makes it worse"),
        (Faults(late_frames=1), "correlate by only"),
        (Faults(dark_camera=True), "no light"),
    ],
    ids=str,
)
def test_a_limit_that_is_missed_has_a_finding(device, faults, said):
    matrix = true_matrix(device, exposed(device, n_features=64, n_outputs=100))
    with FaultyDevice(opu.open("sim:?preset=aurora&seed=31"), faults) as faulty:
        result = tracking(faulty, matrix=matrix)
    assert not result.passed
    assert said in result.findings[0]
