"""The routines of the camera measure what the model says, and name its faults."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from opu.calibration.camera import (
    DarkFrames,
    dark_frames,
    estimate_dark_pixels,
    estimate_linearity,
    estimate_photon_transfer,
    linearity,
    photon_transfer,
)
from opu.calibration.faults import light_faults
from opu.errors import UnsupportedError
from opu.sim.camera import pixel_maps
from opu.sim.device import SimulatedBench

STUCK = {"hot_fraction": 0.02, "hot_current_e_per_s": 1e11}
CONSTANT = {"gain_dn_per_e": 1e-12}
TEN_BITS = {"bit_depth": 10, "gain_dn_per_e": 0.1023, "black_level_dn": 16.0}
TWELVE_BITS = {"bit_depth": 12, "gain_dn_per_e": 0.4095, "black_level_dn": 64.0}
ROUTINES = (dark_frames, photon_transfer, linearity)


@pytest.fixture
def bench(small_preset):
    """Return a bench with an aurora's camera or laser changed."""

    def make(camera=None, laser=None, seed=3, name="aurora"):
        model = small_preset(name)
        return SimulatedBench(
            dataclasses.replace(
                model,
                camera=dataclasses.replace(model.camera, **(camera or {})),
                laser=dataclasses.replace(model.laser, **(laser or {})),
            ),
            seed=seed,
        )

    return make


@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize("name", ["aurora", "ideal", "generation3", "interferometer", "laboratory"])
def test_a_healthy_bench_passes(bench, routine, name):
    with bench(name=name) as device:
        result = routine(device, n_outputs=4096)
    assert result.findings == ()
    assert result.passed, result


@pytest.mark.parametrize("routine", ROUTINES)
def test_a_routine_repeats_and_keeps_its_books(bench, routine):
    results = []
    for _ in range(2):
        with bench() as device:
            results.append(routine(device, n_outputs=2048, noise_key=5))
    assert results[0].value == results[1].value
    assert results[0].frames > 0
    assert results[0].device_s > 0
    assert results[0].provenance[0].config.noise_key == 5
    assert sum(array.nbytes for array in results[0].data.values()) < 400_000


def test_dark_frames_measure_offset_current_and_noise(bench):
    with bench(camera=TWELVE_BITS | {"dark_current_e_per_s": 500.0}) as device:
        result = dark_frames(device)
    assert result.value == pytest.approx(64 + 0.4095 * 500 * 400e-6, abs=4 * result.uncertainty)
    current, noise = result.quantities["dark_current"], result.quantities["temporal_noise"]
    assert current.value == pytest.approx(0.4095 * 500, abs=4 * current.uncertainty)
    assert current.uncertainty < 0.2
    assert noise.value == pytest.approx(math.sqrt((0.4095 * 7) ** 2 + 1 / 12), rel=0.01)
    assert result.data["offset_map"].shape == result.data["noise_map"].shape == (16384,)


def test_rounding_hides_the_dark_current_of_a_quiet_camera(bench):
    # 20 electrons in 0.1 s are 0.05 DN, and the noise is 0.18 DN: the counts do not see it, and the error says so.
    with bench() as device:
        current = dark_frames(device, n_outputs=2048).quantities["dark_current"]
    assert abs(current.value - 0.51) < current.uncertainty


@pytest.mark.parametrize("black_dn", [0.0, 3.5, 16.3, 16.8])
def test_rounding_hides_the_offset_of_a_quiet_camera(bench, black_dn):
    # Counts of a mean of 16.3 DN with a noise of 0.18 DN have a mean of 16.13 DN, however many there are.
    with bench(camera={"black_level_dn": black_dn}) as device:
        result = dark_frames(device, n_outputs=2048)
    dark_dn = black_dn + 0.0255 * 20 * 400e-6
    assert abs(result.value - dark_dn) < 1.96 * result.uncertainty < 0.6
    noise = result.quantities["temporal_noise"]
    assert abs(noise.value - math.sqrt((0.0255 * 7) ** 2 + 1 / 12)) < 1.96 * noise.uncertainty < 0.6
    assert result.passed


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_noise_that_is_cut_off_at_0_makes_the_offset_uncertain(bench, level):
    with bench(camera={"read_noise_e": 80.0, "black_level_dn": level}) as device:
        result = dark_frames(device, n_outputs=2048)
    assert abs(result.value - level) < 1.96 * result.uncertainty
    noise = result.quantities["temporal_noise"]
    assert abs(noise.value - math.sqrt((0.0255 * 80) ** 2 + 1 / 12)) < 1.96 * noise.uncertainty


def test_an_offset_that_the_noise_resolves_is_known_far_below_a_count(bench):
    with bench(camera={"read_noise_e": 25.0, "black_level_dn": 16.3}) as device:
        result = dark_frames(device, n_outputs=4096)
    assert result.uncertainty < 0.005
    assert result.value == pytest.approx(16.3, abs=0.005)


def test_hot_pixels_are_found_whatever_their_offset(bench):
    hot = {"hot_fraction": 2e-3, "hot_current_e_per_s": 20_000.0, "dsnu_e": 10.0}
    for camera in (hot, TEN_BITS | hot):
        with bench(camera=camera) as device:
            result = dark_frames(device, n_outputs=100_000, n_frames=32)
            is_hot = pixel_maps(device.table.model.camera, 3, np.arange(100_000) + 519 * 2040).dark_current_e_per_s > 20
        first = result.provenance[0].config.region
        assert (first.row, first.column) == (519, 0)
        found = np.zeros(100_000, bool)
        found[result.data["hot_pixels"]] = True
        assert (found & is_hot).sum() >= 0.98 * is_hot.sum()
        assert (found & is_hot).sum() >= 0.95 * found.sum()
        assert "too many hot pixels" in result.findings[0]


def test_a_pixel_that_is_off_without_light_is_a_defect():
    rng = np.random.default_rng(0)
    frames = rng.normal(20, 1, (16, 500)).round().astype(np.uint8)
    frames[:, 7] = 60
    frames[:, 9] = 255
    found = estimate_dark_pixels([DarkFrames.of(exposure_us, frames) for exposure_us in (1.0, 2.0, 3.0)], 255)
    assert np.flatnonzero(found.hot).tolist() == [7]
    assert np.flatnonzero(found.stuck).tolist() == [9]
    assert found.offset_dn == pytest.approx(20, abs=0.05)


def test_a_wrong_black_level_is_found(bench):
    with bench(camera={"black_level_dn": 5.0}) as device:
        device._description = msgspec.structs.replace(device._description, black_level_dn=0.0)
        result = dark_frames(device, n_outputs=1024)
    assert not result.passed
    assert "mean is 5 DN, and the device states a black level of 0 DN: the black level is not" in result.findings[0]
    with bench(camera={"dark_current_e_per_s": 1e5}) as device:
        result = dark_frames(device, n_outputs=1024)
    assert "dark current or stray light" in result.findings[0]


def test_a_device_whose_light_stays_on_has_no_dark_frames(bench):
    with bench() as device:
        device._description = msgspec.structs.replace(device._description, light=("on",))
        with pytest.raises(UnsupportedError, match="cannot switch its light off"):
            dark_frames(device)
        assert photon_transfer(device, n_outputs=4096).passed
        assert linearity(device, n_outputs=4096).passed


@pytest.mark.parametrize(("camera", "limit"), [({}, 0.04), (TEN_BITS, 0.02), (TWELVE_BITS, 0.02)])
def test_the_gain_follows_from_one_speckle_with_power_noise_and_uneven_pixels(bench, camera, limit):
    with bench(camera=camera | {"prnu": 0.01}, laser={"rin": 0.01}) as device:
        result = photon_transfer(device, n_outputs=32768, n_repeats=8)
        gain = device.table.model.camera.gain_dn_per_e
    assert abs(result.value / gain - 1) < min(limit, 4 * result.uncertainty / gain)
    read, bound = result.quantities["read_noise"], result.quantities["read_noise_bound"]
    capacity = result.quantities["saturation_capacity"]
    if camera:
        assert read.value == pytest.approx(7, rel=0.05)
        black = camera["black_level_dn"]
        assert capacity.value == pytest.approx((2 ** camera["bit_depth"] - 1 - black) / gain, rel=0.02)
    else:
        # 0.18 DN: rounding hides it, and a bound is stated.
        assert math.isnan(read.value)
    assert 6.9 < bound.value < 10


def test_read_noise_that_is_cut_off_at_0_has_a_bound_only(bench):
    with bench(camera=TWELVE_BITS | {"black_level_dn": 0.0}) as device:
        result = photon_transfer(device, n_outputs=32768)
    assert math.isnan(result.quantities["read_noise"].value)
    assert 7 < result.quantities["read_noise_bound"].value < 8.5
    assert result.value == pytest.approx(0.4095, rel=0.03)


def speckle(n_frames, gain, read_dn, *, n=60_000, vibration=0.0):
    """Return counts of one speckle, made by NumPy, whose mean is 28 DN, and dark ones."""
    rng = np.random.default_rng(1)
    still, moving = (rng.normal(size=(2, n)) * math.sqrt(14) for _ in range(2))
    phase = vibration * np.sin(0.3 * np.arange(n_frames))[:, np.newaxis]
    light = sum((np.cos(phase) * one + np.sin(phase) * other) ** 2 for one, other in zip(still, moving, strict=True))
    counts = gain * rng.poisson(light / gain) + rng.normal(size=light.shape) * read_dn
    dark = rng.normal(size=(8, n)) * read_dn
    return tuple(np.clip(np.floor(values + 4.5), 0, 255) for values in (counts, dark))


def test_rounding_counts_once():
    # A quantisation variance that is counted twice, or not at all, is 23 % of this dark variance.
    frames, dark = speckle(16, 0.1, 0.6)
    found = estimate_photon_transfer(frames, dark, 255)
    assert found.used[0]
    assert found.dark_variance == pytest.approx(0.6**2, rel=0.02)
    assert found.gain_dn_per_e == pytest.approx(0.1, rel=0.02)


def test_dark_frames_whose_rounding_is_the_same_everywhere_are_left_out():
    frames, dark = speckle(16, 0.1, 0.4)
    found = estimate_photon_transfer(frames, dark, 255)
    assert not found.used[0]
    assert found.dark_variance == pytest.approx(0.4**2, abs=4 * math.sqrt(found.covariance[1, 1]))


def test_bins_below_the_noise_that_rounding_needs_are_left_out():
    frames, dark = speckle(16, 0.0255, 0.18)
    found = estimate_photon_transfer(frames, dark, 255)
    assert found.gain_dn_per_e == pytest.approx(0.0255, abs=4 * found.gain_error_dn_per_e)
    assert found.mean_dn[found.used].min() > 4
    assert not found.is_resolved


def test_two_frames_and_all_bins_would_be_biased():
    frames, dark = speckle(16, 0.0255, 0.18)
    light = (frames - 4)[:2]
    means, variances = light.mean(axis=0), light.var(axis=0, ddof=1)
    bins = np.array_split(np.argsort(means)[: int(0.99 * len(means))], 40)
    x, y, errors = ([f(v[b]) for b in bins] for f, v in ((np.mean, means), (np.mean, variances), (np.std, variances)))
    naive = np.polyfit(x, y, 1, w=1 / np.maximum(errors, 1e-3))[0]
    found = estimate_photon_transfer(frames, dark, 255).gain_dn_per_e
    assert abs(found - 0.0255) < 0.5 * abs(naive - 0.0255)


def test_power_noise_between_repeats_drops_out():
    powers = np.random.default_rng(2).normal(1, 0.03, (8, 1))
    rng = np.random.default_rng(3)
    light = rng.normal(size=(2, 60_000)) * math.sqrt(14)
    counts = 0.4 * rng.poisson(powers * (light**2).sum(axis=0) / 0.4) + rng.normal(size=(8, 60_000)) * 0.8
    dark = np.floor(rng.normal(8.5, 0.8, (8, 60_000)))
    found = estimate_photon_transfer(np.clip(np.floor(counts + 8.5), 0, 255), dark, 255)
    assert found.gain_dn_per_e == pytest.approx(0.4, abs=4 * found.gain_error_dn_per_e)
    assert found.gain_error_dn_per_e < 0.004


def test_vibration_is_no_photon_noise():
    frames, dark = speckle(16, 0.1, 0.5, vibration=0.03)
    found = estimate_photon_transfer(frames, dark, 255)
    assert found.gain_dn_per_e == pytest.approx(0.1, rel=0.03)
    light = frames - dark.mean(axis=0)
    ordinary = np.polyfit(light.mean(axis=0), light.var(axis=0, ddof=1), 1)[0]
    assert ordinary > 0.115


def test_a_full_well_below_full_scale_is_found(bench):
    with bench(camera={"full_well_e": 2500.0}) as device:
        result = photon_transfer(device)
    assert "Pixels are full at 64 DN and do not reach full scale, 255 DN" in result.findings[0]
    # Pixels that are full are left out without a bias.
    assert result.value == pytest.approx(0.0255, rel=0.04)
    assert result.quantities["saturation_capacity"].value == pytest.approx(2500, rel=0.04)


@pytest.mark.parametrize(
    "camera", [{"quadratic_nonlinearity": 0.03}, {"quadratic_nonlinearity": -0.03}, {"cubic_nonlinearity": 0.03}]
)
def test_a_non_linearity_of_3_percent_is_found(bench, camera):
    with bench(camera=camera) as device:
        result = linearity(device)
    assert not result.passed
    assert "not linear" in result.findings[0]
    assert abs(result.quantities["curvature"].value) == pytest.approx(0.034, abs=0.007)


def test_linearity_knows_its_error(bench):
    results = []
    for seed in range(6):
        with bench(seed=seed) as device:
            results.append(linearity(device).quantities["curvature"])
    pulls = [result.value / result.uncertainty for result in results]
    assert 0.3 < np.sqrt(np.mean(np.square(pulls))) < 2.2
    assert all(result.uncertainty < 0.003 for result in results)


def test_linearity_weighs_relative_deviations():
    exposures = np.linspace(1, 10, 10)
    levels = 20 * exposures
    levels[0] *= 1.02
    found = estimate_linearity(exposures, levels, np.full(10, 0.01), 255)
    # A fit of absolute deviations leaves nearly all of the 2 % with the darkest level.
    assert found.deviations[0] < 0.008
    assert estimate_linearity(np.ones(10), levels, levels, 255).error is not None
    assert math.isnan(estimate_linearity(np.ones(10), levels, levels, 255).error)


def test_the_error_of_the_curvature_is_its_spread():
    rng = np.random.default_rng(0)
    exposures = np.linspace(1, 18, 10)
    straight = 12.75 * exposures
    levels, errors = straight * (1 + 0.1 * straight / 255), 0.02 * np.sqrt(straight)
    found = [estimate_linearity(exposures, rng.normal(levels, errors), errors, 255) for _ in range(1000)]
    spread = np.std([each.curvature for each in found])
    assert np.mean([each.curvature_uncertainty for each in found]) == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("routine", ROUTINES)
def test_stuck_pixels_are_named(bench, routine):
    with bench(camera=STUCK) as device:
        result = routine(device, n_outputs=8192)
    assert not result.passed
    assert "% of the pixels are at full scale in every frame, whatever is shown" in result.findings[0]
    assert float(result.findings[0].split()[0]) == pytest.approx(2, abs=0.6)


@pytest.mark.parametrize("routine", [photon_transfer, linearity])
def test_a_camera_that_sees_nothing_is_named(bench, routine):
    with bench(camera=CONSTANT) as device:
        result = routine(device, n_outputs=2048)
    assert math.isnan(result.value)
    assert "reads 0 DN" in result.findings[0]
    assert "dark whatever is shown" in result.findings[0]


@pytest.mark.parametrize("routine", [photon_transfer, linearity])
def test_a_dead_laser_is_named(bench, routine):
    with bench(laser={"electrons_per_mirror_us": 1e-12}) as device:
        result = routine(device, n_outputs=2048)
    assert not result.passed
    assert "the light makes no difference" in result.findings[0]


@pytest.mark.parametrize("routine", ROUTINES)
def test_nothing_but_full_scale_is_a_finding_and_no_error(bench, routine):
    with bench(camera=STUCK | {"hot_fraction": 1.0, "hot_current_e_per_s": 1e15}) as device:
        result = routine(device, n_outputs=1024)
    assert math.isnan(result.value)
    assert "full scale" in result.findings[0] or "255 DN" in result.findings[0]


def test_frames_without_light_to_compare_with_are_judged_alone(bench):
    with bench() as device:
        description = device.describe()
    lit = np.random.default_rng(0).exponential(28, (4, 1000)).clip(0, 255)
    assert light_faults(lit, None, description, target_dn=28.3) == []
    [fault] = light_faults((lit > 80).astype(np.uint8), None, description, target_dn=28.3)
    assert "no difference" in fault


def test_a_gain_that_is_hardly_known_is_named(bench):
    with bench(camera={"read_noise_e": 300.0}) as device:
        result = photon_transfer(device, n_outputs=2048, n_repeats=4)
    assert not result.quantities["relative_error"].passed
    assert any("is known to" in finding for finding in result.findings), result.findings
