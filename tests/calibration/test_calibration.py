"""The calibration routines believe a good device and disbelieve bad ones."""

import dataclasses

import numpy as np
import pytest

import opu
from opu.calibration import ROUTINES, calibrate, measure_throughput
from opu.errors import CapacityError, ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

AURORA = preset("aurora")


def bench_with(**changes):
    """An aurora whose camera or laser differs."""
    camera = dataclasses.replace(AURORA.camera, **changes.pop("camera", {}))
    laser = dataclasses.replace(AURORA.laser, **changes.pop("laser", {}))
    return SimulatedBench(dataclasses.replace(AURORA, camera=camera, laser=laser), seed=3)


@pytest.mark.parametrize("uri", ["sim:?preset=aurora&seed=21", "sim:?preset=ideal&seed=22"])
def test_a_good_device_passes_everything(uri):
    with opu.open(uri) as device:
        results = calibrate(device)
    assert [result.name for result in results] == list(ROUTINES)
    assert all(result.passed for result in results), [r for r in results if not r.passed]
    assert all(result.frames > 0 and result.seconds > 0 and result.uncertainty >= 0 for result in results)


def test_values_are_those_of_the_model():
    with bench_with(camera={"black_level_dn": 3.0}) as device:
        dark, exposure = calibrate(device, ["dark_level", "exposure"])
    assert dark.value == pytest.approx(3.0, abs=0.02)
    # 21 counts at 400 us: full scale / 9 above the black level.
    assert exposure.value == pytest.approx(400 * (255 - 3) / 9 / 21, rel=0.06)


def test_uncertainties_cover_the_spread_between_devices():
    # The contrast of the device's own model is 1, less 0.1 % for the peaks that saturate.
    results = []
    for seed in range(8):
        with SimulatedBench(AURORA, seed=100 + seed) as device:
            results.append(ROUTINES["speckle_contrast"](device))
    pulls = [(result.value - 0.9987) / result.uncertainty for result in results]
    assert 0.3 < np.std(pulls) < 2.0
    assert abs(np.mean(pulls)) < 1.5


@pytest.mark.parametrize(
    ("fault", "routine"),
    [
        ({"laser": {"electrons_per_mirror_us": 1e-12}}, "speckle_contrast"),
        ({"laser": {"electrons_per_mirror_us": 1e-12}}, "exposure"),
        ({"laser": {"electrons_per_mirror_us": 1e-12}}, "repeat_correlation"),
        ({"camera": {"read_noise_e": 400.0}}, "repeat_correlation"),
        ({"camera": {"full_well_e": 2500.0}}, "linearity"),
        ({"camera": {"full_well_e": 2500.0}}, "speckle_contrast"),
    ],
)
def test_faults_are_found(fault, routine):
    with bench_with(**fault) as device:
        [result] = calibrate(device, [routine])
    assert not result.passed


def test_a_dark_offset_that_is_not_stated_is_found():
    with bench_with(camera={"dark_current_e_per_s": 1e5}) as device:
        [result] = calibrate(device, ["dark_level"])
    assert result.value > 0.9
    assert not result.passed


def test_unknown_routine_lists_the_known_ones():
    with opu.open("sim:") as device, pytest.raises(ConfigError, match=r"tea.*dark_level") as caught:
        calibrate(device, ["tea"])
    assert caught.value.exit_status == 2


def test_throughput_counts_what_was_done():
    with opu.open("sim:?preset=ideal") as device:
        rows = measure_throughput(device, batches=(1, 8), n_features=20, n_outputs=30, seconds=0.05)
    assert [(row.where, row.batch) for row in rows] == [("in_process", 1), ("in_process", 8)]
    for row in rows:
        assert row.p50_us <= row.p99_us
        # With batches in flight the device is never slower than half the rate of one call after another.
        assert row.frames_per_s > 0.5 * row.batch / (row.p99_us * 1e-6)


def test_a_batch_that_the_device_does_not_take_is_refused_before_it_is_made():
    rows = []
    with opu.open("sim:?preset=ideal") as device, pytest.raises(CapacityError, match="1000000000 patterns"):
        measure_throughput(device, batches=(1, 10**9), n_features=20, n_outputs=30, seconds=0.01, on_result=rows.append)
    assert rows == []
