"""What the routines that measure light make of small devices, of saturation, stuck pixels and light that stays on."""

import dataclasses
import functools
import math

import msgspec
import numpy as np
import pytest

from opu.calibration.light import judge_light, probe_size
from opu.calibration.mirrors import dmd_contrast
from opu.calibration.saturation import saturated_share
from opu.calibration.speckle import estimate_grain, grain, speckle_statistics
from opu.calibration.stability import image_shift, laser_power, repeatability, stability
from opu.device import Limits
from opu.errors import UnsupportedError
from opu.sim.device import SimulatedBench
from opu.sim.dmd import DmdModel
from opu.sim.models import preset

FULL = preset("aurora")
AURORA = dataclasses.replace(
    FULL,
    dmd=DmdModel(rows=128, columns=128),
    laser=dataclasses.replace(
        FULL.laser, electrons_per_mirror_us=FULL.laser.electrons_per_mirror_us * FULL.n_mirrors / 128**2
    ),
)
ROUTINES = {
    "grain": functools.partial(grain, n_patterns=32),
    "speckle_statistics": speckle_statistics,
    "stability": functools.partial(stability, duration_s=5.0, n_probes=8),
    "laser_power": functools.partial(laser_power, n_references=8),
    "repeatability": repeatability,
    "dmd_contrast": dmd_contrast,
}
every_routine = pytest.mark.parametrize("name", ROUTINES)


def bench(model=AURORA, **parts):
    return SimulatedBench(dataclasses.replace(model, **parts), seed=3)


def camera(**fields):
    return dataclasses.replace(AURORA.camera, **fields)


def brighter(factor):
    """A bench of one exposure, with so much more light."""
    per_mirror = AURORA.laser.electrons_per_mirror_us * factor
    return bench(
        exposure_us=Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us"),
        laser=dataclasses.replace(AURORA.laser, electrons_per_mirror_us=per_mirror),
    )


def of_mirrors(rows, columns):
    per_mirror = AURORA.laser.electrons_per_mirror_us * AURORA.n_mirrors / (rows * columns)
    return bench(
        dmd=DmdModel(rows=rows, columns=columns),
        laser=dataclasses.replace(AURORA.laser, electrons_per_mirror_us=per_mirror),
    )


@every_routine
def test_a_small_device_is_measured_with_what_it_has(name):
    for device in (of_mirrors(16, 16), bench(camera=camera(rows=30, columns=30))):
        with device:
            result = ROUTINES[name](device)
        assert result.passed, (result.value, result.findings, result.quantities)


@every_routine
def test_a_device_of_40_mirrors_is_measured_or_left_out(name):
    with of_mirrors(5, 8) as device:
        if name == "speckle_statistics":
            with pytest.raises(UnsupportedError, match="40 mirrors"):
                ROUTINES[name](device)
        else:
            result = ROUTINES[name](device)
            assert result.passed, (result.value, result.findings, result.quantities)


@every_routine
def test_a_device_of_ten_mirrors_is_refused_in_words(name):
    with of_mirrors(2, 5) as device, pytest.raises(UnsupportedError, match="10 mirrors"):
        ROUTINES[name](device)


@every_routine
@pytest.mark.parametrize(("rows", "columns"), [(1, 2000), (2000, 1), (4, 4), (1, 1)])
def test_a_narrow_camera_raises_no_raw_error(name, rows, columns):
    with bench(camera=camera(rows=rows, columns=columns)) as device:
        if name in ("grain", "speckle_statistics"):
            with pytest.raises(UnsupportedError, match=f"camera has {rows} x {columns} pixels"):
                ROUTINES[name](device)
        else:
            result = ROUTINES[name](device)
            assert result.passed or result.findings, (result.value, result.quantities)


def test_the_estimators_know_images_that_are_too_narrow():
    frames = np.random.default_rng(0).standard_exponential((4, 1, 2000))
    assert math.isnan(estimate_grain(frames, frames).independent_share)
    assert math.isnan(image_shift(frames, frames)[0])
    frames = frames[:, :, :64].reshape(4, 8, 8)
    assert estimate_grain(frames, frames).correlation.shape == (5, 5)


@every_routine
@pytest.mark.parametrize("factor", [300.0, 1e4])
def test_an_overexposed_camera_is_named_and_nothing_else(name, factor):
    with brighter(factor) as device:
        result = ROUTINES[name](device)
    assert math.isnan(result.value)
    assert not result.passed
    [finding] = result.findings
    assert "saturated" in finding


@every_routine
def test_a_full_well_below_full_scale_is_seen(name):
    per_mirror = AURORA.laser.electrons_per_mirror_us * 1.5
    laser = dataclasses.replace(AURORA.laser, electrons_per_mirror_us=per_mirror)
    with bench(camera=camera(full_well_e=2000.0), laser=laser) as device:
        result = ROUTINES[name](device)
    assert math.isnan(result.value)
    assert not result.passed
    [finding] = result.findings
    assert "51 DN, where their wells are full" in finding


@every_routine
@pytest.mark.parametrize("share", [0.02, 0.25])
def test_stuck_pixels_are_named(name, share):
    with bench(camera=camera(hot_fraction=share, hot_current_e_per_s=1e11)) as device:
        result = ROUTINES[name](device)
    assert not result.passed
    assert "whatever is shown" in result.findings[0]


@every_routine
def test_a_light_that_stays_on_is_no_fault(name):
    with bench() as device:
        device._description = msgspec.structs.replace(device._description, light=("on",))
        if name == "repeatability":  # which needs no dark frames
            assert ROUTINES[name](device).passed
        else:
            with pytest.raises(UnsupportedError, match="cannot switch its light off"):
                ROUTINES[name](device)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.25])
def test_stuck_pixels_do_not_flatter_the_repeatability(share):
    """What repeats whatever is shown is no signal."""
    faults = {"hot_fraction": share, "hot_current_e_per_s": 1e11} if share else {}
    with bench(camera=camera(read_noise_e=400.0, **faults)) as device:
        result = repeatability(device)
    assert result.value == pytest.approx(0.915, abs=0.02)


def test_speckle_has_no_plateau_at_any_brightness_and_cut_off_speckle_has():
    generator = np.random.default_rng(0)
    for mean_dn in (1.5, 5.0, 28.0):
        for n_pixels in (64, 900, 4096):
            light = np.rint(mean_dn * generator.standard_exponential((1, n_pixels)))
            assert saturated_share(light) == 0
            cut = np.minimum(light, 2 * mean_dn)
            if n_pixels > 100 and mean_dn > 2:
                assert saturated_share(cut) > 0.05
    assert saturated_share(np.zeros((1, 100))) == 0


def test_a_device_is_asked_for_what_it_has():
    for (rows, columns), expected in {(128, 128): (64, 64), (16, 64): (64, 16), (5, 8): (40, 3)}.items():
        with of_mirrors(rows, columns) as device:
            assert probe_size(device.describe(), 64) == expected


def test_stuck_pixels_are_known_without_dark_frames():
    with bench() as device:
        description = device.describe()
    lit = 20 * np.random.default_rng(1).standard_exponential((8, 500))
    lit[:, 7] = 255
    seen = judge_light(lit, None, description)
    assert not seen.working[7]
    assert seen.working.sum() == 499
    assert "stuck" in seen.findings[0]


def test_the_uncertainty_of_the_laser_power_is_what_noise_keys_differ_by():
    laser = dataclasses.replace(AURORA.laser, rin=0.002)
    results = []
    for noise_key in range(10):
        with bench(laser=laser, camera=camera(rows=32, columns=32)) as device:
            results.append(laser_power(device, noise_key=noise_key, n_references=16))
    spread = np.std([result.value for result in results], ddof=1)
    stated = np.median([result.uncertainty for result in results])
    assert 0.5 < stated / spread < 2


def test_the_light_of_a_dead_laser_has_an_even_part_without_pixels():
    laser = dataclasses.replace(AURORA.laser, electrons_per_mirror_us=1e-12)
    with bench(laser=laser) as device:
        result = grain(device)
    assert result.data["even_region"][2:].tolist() == [0, 0]
    assert math.isnan(result.quantities["stride"].value)
