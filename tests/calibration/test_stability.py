"""Stability, power and repeatability: estimators on drawn speckle, and routines on benches that drift and jump."""

import dataclasses
import math

import numpy as np
import pytest

from opu.calibration.recorder import Recorder
from opu.calibration.speckle import disjoint_patterns
from opu.calibration.stability import (
    Jump,
    correlations,
    estimate_drift,
    estimate_power,
    find_jumps,
    image_shift,
    laser_power,
    repeatability,
    stability,
)
from opu.device import GroundTruth, SessionConfig
from opu.errors import ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.dmd import DmdModel
from opu.sim.drift import DriftModel
from opu.sim.models import preset

FULL = preset("aurora")
SMALL = DmdModel(rows=512, columns=512)
# As bright with fewer mirrors: frames take as long.
AURORA = dataclasses.replace(
    FULL,
    dmd=SMALL,
    laser=dataclasses.replace(
        FULL.laser, electrons_per_mirror_us=FULL.laser.electrons_per_mirror_us * FULL.n_mirrors / SMALL.n_mirrors
    ),
)


def bench(seed=3, **parts):
    return SimulatedBench(dataclasses.replace(AURORA, **parts), seed=seed)


def laser(**fields):
    return dataclasses.replace(AURORA.laser, **fields)


def drifting_speckle(times, tau, seed=0, plateau=0.0, n_patterns=16, n_pixels=2000):
    """Fields that follow an Ornstein-Uhlenbeck process: intensities, shape (n_times, n_patterns, n_pixels)."""
    generator = np.random.default_rng(seed)

    def draw():
        parts = generator.standard_normal((2, n_patterns, n_pixels))
        return parts[0] + 1j * parts[1]

    fixed, field, frames = draw(), draw(), []
    for step in np.diff(times, prepend=times[0]):
        kept = math.exp(-step / tau)
        field = kept * field + math.sqrt(1 - kept**2) * draw()
        frames.append(np.abs(math.sqrt(1 - plateau) * field + math.sqrt(plateau) * fixed) ** 2)
    return np.stack(frames)


def test_the_field_is_what_is_stated_and_the_intensity_forgets_twice_as_fast():
    """Trap: an exponential fitted to the intensity has half the time constant."""
    times = np.linspace(0, 40, 25)
    frames = drifting_speckle(times, tau=100.0)
    found = estimate_drift(correlations(frames, frames), times)
    assert found.time_s == pytest.approx(100, rel=0.05)
    assert abs(found.time_s - 100) < 4 * found.time_error_s
    naive = -40 / math.log(np.corrcoef(frames[0].ravel(), frames[-1].ravel())[0, 1])
    assert naive == pytest.approx(50, rel=0.1)


def test_the_plateau_is_found_where_the_field_was_followed_to_it():
    times = np.linspace(0, 90, 25)
    frames = drifting_speckle(times, tau=20.0, plateau=0.3)
    found = estimate_drift(correlations(frames, frames), times)
    assert found.time_s == pytest.approx(20, rel=0.1)
    assert found.plateau == pytest.approx(0.3, abs=0.03)
    assert found.time_to(0.2) == math.inf
    assert found.time_to(0.99) == pytest.approx(-found.time_s * math.log(0.69 / 0.7), rel=0.01)


def test_light_that_no_pattern_changes_does_not_keep_the_correlation_up():
    times = np.linspace(0, 60, 25)
    frames = drifting_speckle(times, tau=30.0)
    fixed = 10 * np.random.default_rng(1).standard_exponential(frames.shape[-1])
    found = estimate_drift(correlations(frames + fixed, frames + fixed), times)
    assert found.time_s == pytest.approx(30, rel=0.08)


def test_noise_does_not_look_like_forgetting():
    times = np.linspace(0, 60, 20)
    generator = np.random.default_rng(2)
    frames = drifting_speckle(times, tau=1e9)
    once, again = (frames + generator.normal(0, 1, frames.shape) for _ in range(2))
    found = estimate_drift(correlations(once, again), times)
    assert found.is_bound
    assert math.isnan(found.time_error_s)
    assert found.time_s > 5000


def test_a_jump_is_known_with_the_first_probe_after_it():
    frames = np.concatenate([drifting_speckle(np.arange(8.0), 1e3, seed) for seed in (0, 1)])
    covariance = correlations(frames, frames).sum(axis=0)
    scale = np.sqrt(np.diagonal(covariance))
    intensity = covariance / np.multiply.outer(scale, scale)
    assert find_jumps(intensity[:8, :8]) == []
    for n in (9, 10, 16):
        [jump] = find_jumps(intensity[:n, :n])
        assert (jump.last, jump.first) == (7, 8)
        assert jump.field_correlation < 0.2


def test_a_fast_start_is_no_jump():
    times = np.linspace(0, 1, 12)
    field = np.exp(-np.abs(np.subtract.outer(np.exp(-times / 0.2), np.exp(-times / 0.2))))
    assert find_jumps(field**2) == []
    assert find_jumps(np.ones((3, 3))) == []


@pytest.mark.parametrize("after", range(7))
def test_a_jump_is_found_wherever_it_is_and_once(after):
    side = np.arange(8) > after
    intensity = np.where(side[:, None] == side, 0.98, 0.1)
    [jump] = find_jumps(intensity)
    assert jump == Jump(after, after + 1, pytest.approx(math.sqrt(0.1 / 0.98)))


def test_a_jump_during_a_probe_is_one_jump():
    share = np.array([0, 0, 0, 0.5, 1, 1, 1, 1])  # of the patterns, shown after it
    same = np.multiply.outer(share, share) + np.multiply.outer(1 - share, 1 - share)
    intensity = np.where(np.eye(8, dtype=bool), 1.0, 0.98 * same)
    [jump] = find_jumps(intensity)
    assert (jump.last, jump.first) == (2, 4)
    assert jump.field_correlation < 0.1


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.0, -3.0), (0.4, 1.3)])
def test_the_image_shift_is_found_to_a_fraction_of_a_pixel(shift):
    generator = np.random.default_rng(3)
    size = 64
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)
    noise = generator.standard_normal((6, size, size)) + 1j * generator.standard_normal((6, size, size))
    spectrum = noise * (np.hypot(rows, columns) < 0.15)
    moved = spectrum * np.exp(-2j * np.pi * (rows * shift[0] + columns * shift[1]))
    before, after = (np.abs(np.fft.ifft2(part))[:, :40, :40] ** 2 for part in (spectrum, moved))
    found = image_shift(before, after)
    assert found[:2] == pytest.approx(shift, abs=0.1)
    assert found[2] > 0.8


def test_an_image_without_contrast_has_no_shift():
    assert math.isnan(image_shift(np.ones((2, 16, 16)), np.ones((2, 16, 16)))[0])


def test_the_residual_of_a_correction_is_its_own_error():
    generator = np.random.default_rng(4)
    n, interval, noise = 40, 50, 5e-4
    number = np.arange(n * interval + 1)
    slow = 1 + 0.02 * np.sin(2 * np.pi * number / 1500)
    measured = slow * (1 + noise * generator.standard_normal(len(number)))
    found = estimate_power(measured, interval)
    references = np.interp(number, number[::interval], slow[::interval])
    true = np.sqrt(np.mean((slow / references - 1)[number % interval != 0] ** 2))
    assert found.residual == pytest.approx(true, abs=4 * found.residual_error)
    assert found.noise == pytest.approx(noise, rel=0.1)
    assert found.drift == pytest.approx(0.04, rel=0.03)


@pytest.mark.parametrize("name", ["aurora", "ideal", "generation3", "interferometer", "laboratory"])
def test_a_healthy_bench_has_no_findings(name, small_preset):
    with SimulatedBench(small_preset(name), seed=5) as device:
        results = [stability(device, duration_s=20.0, n_probes=12), laser_power(device), repeatability(device)]
    for result in results:
        assert result.passed, (result.name, result.value, result.findings, result.quantities)


def test_time_passes_on_the_device_and_not_on_the_wall():
    with bench() as device:
        result = stability(device, duration_s=3000.0, n_probes=8)
    assert result.data["time_s"][-1] == pytest.approx(3000, rel=0.01)
    np.testing.assert_allclose(np.diff(result.data["time_s"]), 3000 / 7, rtol=0.01)
    assert result.device_s > 3000
    assert result.seconds < 60


def test_correlation_time_and_its_finding():
    with bench(drift=DriftModel(correlation_time_s=60.0, plateau=0.1)) as device:
        result = stability(device, duration_s=180.0, n_probes=20)
    assert result.value == pytest.approx(60, rel=0.12)
    assert result.quantities["intensity_time"].value == result.value / 2
    assert result.quantities["plateau"].value == pytest.approx(0.1, abs=0.08)
    assert not result.passed
    [finding] = result.findings
    assert "forgets itself" in finding
    assert result.data["field_correlation"].shape == (20, 20)


def test_the_end_of_a_warm_up_is_found():
    drift = DriftModel(correlation_time_s=20_000.0, warm_up_renewals=1.0, warm_up_s=600.0)
    with bench(drift=drift) as device:
        result = stability(device, duration_s=3600.0, n_probes=24)
    expected_s = 600 * math.log(1 / 600 / (0.01 / 600)) - result.data["device_time_s"][0]
    assert result.quantities["warm_up_end"].value == pytest.approx(expected_s, rel=0.1)
    assert result.passed


def test_a_medium_that_jumps_midway_is_named_with_the_time():
    with bench(drift=DriftModel(jump_times_s=(30.0,))) as device:
        result = stability(device)
    [finding] = result.findings
    first_s = result.data["device_time_s"][0]
    since_s = result.data["time_s"]
    after = int(np.searchsorted(result.data["device_time_s"], 30.0))
    assert f"between {since_s[after - 1]:.4g} and {since_s[after]:.4g} s" in finding
    assert since_s[after - 1] + first_s < 30 < since_s[after] + first_s
    assert result.quantities["jumps"].value == 1
    # What lies between jumps keeps still, and is said to.
    assert result.value > 10_000
    assert not result.passed


def test_the_power_drifts_and_the_medium_does_not():
    """Trap: power and medium are two things."""
    with bench(laser=laser(drift_rms=0.08, drift_time_s=10.0)) as device:
        result = stability(device, duration_s=60.0, n_probes=20)
    assert result.quantities["power_drift"].value > 0.08
    assert result.value > 10_000
    [finding] = result.findings
    assert "power drifted" in finding


def test_the_medium_drifts_and_the_power_does_not():
    with bench(drift=DriftModel(correlation_time_s=200.0)) as device:
        result = stability(device, duration_s=300.0, n_probes=20)
    assert result.value == pytest.approx(200, rel=0.1)
    assert result.quantities["power_drift"].passed
    assert result.passed


def test_a_medium_that_is_too_fast_is_named():
    with bench(drift=DriftModel(correlation_time_s=0.5)) as device:
        result = stability(device, duration_s=10.0, n_probes=8, n_patterns=4)
    assert math.isnan(result.value)
    assert "from one probe to the next" in result.findings[0]


def test_reference_frames_correct_the_power_and_a_fast_laser_is_named():
    with bench(laser=laser(drift_rms=0.02, drift_time_s=3.0)) as device:
        result = laser_power(device)
    assert result.value < 0.002
    assert result.quantities["power_drift"].value > 0.005
    with bench(laser=laser(drift_rms=0.05, drift_time_s=0.5)) as device:
        result = laser_power(device)
    assert any("power drifted" in finding for finding in result.findings)
    assert any("faster than reference frames" in finding for finding in result.findings)
    with bench(laser=laser(rin=0.03)) as device:
        result = laser_power(device)
    assert any("from frame to frame" in finding for finding in result.findings)


@pytest.mark.parametrize("n_references", [12, 40])
def test_one_bad_reference_frame_is_named(monkeypatch, n_references):
    take = Recorder.take

    def take_with_a_flicker(recorder, config, patterns):
        projection = take(recorder, config, patterns)
        if len(projection.frames) > 500:
            projection.frames[300] = projection.frames[300] // 2
        return projection

    monkeypatch.setattr(Recorder, "take", take_with_a_flicker)
    with bench() as device:
        result = laser_power(device, n_references=n_references)
    assert result.limit == (None, 0.005)
    assert result.value > 0.05
    assert any("remain after a correction" in finding for finding in result.findings)


def test_the_noise_of_every_frame_is_none_of_what_is_left():
    generator = np.random.default_rng(4)
    found = [estimate_power(1 + 0.003 * generator.standard_normal(601), 50).residual for _ in range(200)]
    assert np.median(found) < 0.0013
    assert max(found) < 0.004


@pytest.mark.parametrize("routine", [stability, laser_power, repeatability])
def test_a_dead_laser_is_named(routine):
    with bench(laser=laser(electrons_per_mirror_us=1e-12)) as device:
        result = routine(device)
    assert not result.passed
    assert "no light" in result.findings[0]


def test_an_all_dark_camera_is_named():
    camera = dataclasses.replace(AURORA.camera, read_noise_e=0.0, dark_current_e_per_s=0.0)
    with bench(camera=camera, laser=laser(electrons_per_mirror_us=1e-12)) as device:
        results = [stability(device, duration_s=1.0, n_probes=8), laser_power(device), repeatability(device)]
    for result in results:
        assert math.isnan(result.value)
        assert not result.passed
        assert "no light" in result.findings[0]


def test_repeatability_is_that_of_noise_and_signal():
    with bench() as device:
        result = repeatability(device)
        config = result.provenance[-1].config
        electrons = device.capability(GroundTruth).photoelectrons(config, disjoint_patterns(16, 64)).astype(float)
    assert isinstance(config, SessionConfig)
    dn = AURORA.camera.gain_dn_per_e
    signal, noise = (dn * electrons).var(axis=1), (dn**2 * (49 + electrons)).mean(axis=1) + 1 / 12
    assert result.value == pytest.approx(np.mean(signal / (signal + noise)), abs=4 * result.uncertainty)
    assert result.quantities["noise_to_signal"].value == pytest.approx(1 / result.value - 1)


def test_noise_is_named():
    with bench(camera=dataclasses.replace(AURORA.camera, read_noise_e=400.0)) as device:
        result = repeatability(device)
    assert not result.passed
    assert "the noise is" in result.findings[0]


def test_sizes_that_make_no_sense_are_refused():
    with bench() as device:
        with pytest.raises(ConfigError, match="3 probes"):
            stability(device, n_probes=3)
        with pytest.raises(ConfigError, match="2 references"):
            laser_power(device, n_references=2)


def test_a_bound_that_is_too_short_is_named():
    with bench() as device:
        result = stability(device, duration_s=0.2, n_probes=8, n_patterns=4, side_px=8)
    assert result.passed or result.findings
    assert result.passed == (result.value >= 150)
