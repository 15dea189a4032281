"""Optical feedback is compared with what the device's own matrix gives."""

from dataclasses import replace

import numpy as np
import pytest

from opu.calibration.feedback import cosines, feedback, regress_matrix
from opu.device import Limits
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset
from opu.testing import Faults, FaultyDevice

AURORA = preset("aurora")


def bench(seed=3, **fields):
    return SimulatedBench(replace(AURORA, **fields), seed=seed)


def test_a_matrix_is_found_beside_a_constant():
    generator = np.random.default_rng(0)
    matrix, patterns = generator.normal(size=(6, 30)), generator.integers(0, 2, (40, 6))
    assert regress_matrix(patterns, patterns @ matrix + 5.0) == pytest.approx(matrix)


def test_a_cosine_with_nothing_is_none():
    assert np.isnan(cosines(np.zeros((1, 3)), np.ones((1, 3))))


@pytest.mark.parametrize("name", ["aurora", "ideal", "laboratory", "interferometer"])
def test_a_healthy_device_passes(small_preset, name):
    with SimulatedBench(small_preset(name), seed=5) as device:
        result = feedback(device, n_outputs=128)
    assert result.passed, result
    assert not result.findings


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"camera": replace(AURORA.camera, full_well_e=2500.0)}, "wells of the pixels are full"),
        ({"camera": replace(AURORA.camera, read_noise_e=100.0)}, "too noisy"),
        ({"laser": replace(AURORA.laser, electrons_per_mirror_us=1e-12)}, "dark"),
        ({"drift": DriftModel(correlation_time_s=3.0)}, "the medium"),
        ({"drift": DriftModel(jump_times_s=(1.6,))}, "does not hold any more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_spoils_it_is_named(fields, said):
    with bench(**fields) as device:
        result = feedback(device)
    assert not result.passed
    assert said in result.findings[0]


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(swapped_fraction=0.03), "swapped or lost"),
        (Faults(late_frames=1), "swapped or lost"),
        (Faults(dropped_fraction=0.002), "swapped or lost"),
        (Faults(dark_camera=True), "dark"),
    ],
    ids=str,
)
def test_frames_that_go_wrong_are_named(faults, said):
    with FaultyDevice(bench(), faults) as device:
        result = feedback(device)
    assert not result.passed
    assert said in result.findings[0]


def test_a_camera_that_saturates_is_named_for_it():
    fixed = Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us")
    laser = replace(AURORA.laser, electrons_per_mirror_us=1e4 * AURORA.laser.electrons_per_mirror_us)
    with bench(laser=laser, exposure_us=fixed) as device:
        [finding] = feedback(device, n_outputs=128).findings
    assert "at full scale" in finding


def test_more_outputs_than_pixels_are_those_that_there_are():
    with bench(camera=replace(AURORA.camera, rows=16, columns=16)) as device:
        result = feedback(device)
    assert result.data["optical"].shape == (64,)
    assert result.passed != bool(result.findings)


def test_drift_of_the_power_spoils_binary_errors_more_than_ternary_ones():
    # Trap: what was subtracted once does not fit any more; the two halves of a ternary error are measured side by side.
    with bench(laser=replace(AURORA.laser, drift_rms=0.05, drift_time_s=0.5)) as device:
        result = feedback(device)
    assert result.value > 0.995 > result.quantities["binary_cosine"].value
