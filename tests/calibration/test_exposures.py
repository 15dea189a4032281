"""Exposure and ones range: brightness that suits speckle, from any device."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

import opu
from opu.calibration.camera import dark_frames, linearity, photon_transfer
from opu.calibration.exposures import (
    estimate_brightness,
    estimate_ones_range,
    exposure,
    ones_range,
    predicted_saturation,
)
from opu.calibration.recorder import random_halves
from opu.device import Limits
from opu.exposure import Saturation, choose_exposure
from opu.patterns import pack
from opu.sim.device import SimulatedBench

STUCK = {"hot_fraction": 0.02, "hot_current_e_per_s": 1e11}
ROUTINES = (exposure, ones_range)


@pytest.fixture
def bench(small_preset):
    """Return a bench with an aurora's camera changed, and as many times its light."""

    def make(camera=None, brightness=1.0, seed=3, name="aurora", **fields):
        model = small_preset(name, **fields)
        laser = dataclasses.replace(
            model.laser, electrons_per_mirror_us=brightness * model.laser.electrons_per_mirror_us
        )
        camera = dataclasses.replace(model.camera, **(camera or {}))
        return SimulatedBench(dataclasses.replace(model, camera=camera, laser=laser), seed=seed)

    return make


@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize("name", ["aurora", "ideal", "generation3", "interferometer", "laboratory"])
def test_a_healthy_bench_passes(bench, routine, name):
    with bench(name=name) as device:
        result = routine(device, n_outputs=4096)
    assert result.findings == ()
    assert result.passed, result


@pytest.mark.parametrize("brightness", [0.1, 0.4, 1.0, 2.0, 10.0])
def test_the_exposure_is_found_in_three_rounds(bench, brightness):
    with bench(brightness=brightness) as device:
        result = exposure(device)
    # 21 counts in 400 us with half of the mirrors on.
    truth = 400 * 255 / 9 / 21 / brightness
    assert result.passed, result
    assert result.value == pytest.approx(truth, rel=0.02)
    assert abs(result.value - truth) < 4 * result.uncertainty
    assert result.quantities["rounds"].value <= 3
    assert 5e-5 < result.quantities["saturated_fraction"].value < 2e-4
    assert result.data["histogram"].sum() == 32 * 16384


def test_gain_makes_up_for_light_that_no_exposure_does(bench):
    with bench(brightness=1 / 1000) as device:
        result = exposure(device)
        assert result.data["edges_dn"][-1] == 256
    # 540 ms are 5.4 times the longest exposure: 14.6 dB.
    assert result.quantities["gain"].value == pytest.approx(14.6, abs=0.4)
    assert result.quantities["mean_fraction"].passed
    assert not result.findings


def test_light_out_of_reach_is_named(bench):
    with bench(brightness=200) as device:
        result = exposure(device)
    assert "where pixels are full: the frames are overexposed" in result.findings[0]
    assert "10 us and 0 dB, the shortest exposure" in result.findings[1]
    assert "lower the laser power" in result.findings[1]
    with bench(brightness=1e-4) as device:
        result = exposure(device)
    assert "the longest exposure" in result.findings[0]
    assert not result.passed


def test_the_search_does_not_run_from_stuck_pixels(bench):
    patterns = pack(random_halves(8, 64))
    config = opu.SessionConfig(n_features=64, n_outputs=4096)
    chosen = []
    for camera in ({}, STUCK):
        with bench(camera=camera) as device:
            chosen.append(choose_exposure(device, config, patterns)[0].exposure_us)
    assert chosen[1] == pytest.approx(chosen[0], rel=0.01)


def test_the_search_goes_by_the_mean_and_never_by_the_brightest(bench):
    # One pixel in a thousand at full scale in some frames says nothing of the others.
    warm = {"hot_fraction": 1e-3, "hot_current_e_per_s": 2e7}
    with bench(camera=warm) as device:
        result = exposure(device)
    assert result.value == pytest.approx(540, rel=0.03)


def test_the_search_comes_down_from_far_too_bright(bench):
    config = opu.SessionConfig(n_features=64, n_outputs=4096, exposure_us=100_000.0)
    with bench() as device:
        found, n_frames = choose_exposure(device, config, pack(random_halves(4, 64)))
    assert found.exposure_us == pytest.approx(540, rel=0.05)
    assert n_frames <= 5 * 8


FIXED = {
    "exposure_us": Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us"),
    "gain_db": Limits(minimum=0.0, maximum=0.0, default=0.0, unit="dB"),
}


def test_the_search_measures_darkness(bench):
    # The device states a black level of 0.
    config = opu.SessionConfig(n_features=64, n_outputs=4096)
    for gain_db in (0.0, 6.0):
        with bench(camera={"black_level_dn": 60.0}) as device:
            device._description = msgspec.structs.replace(device.describe(), black_level_dn=0.0)
            asked = msgspec.structs.replace(config, gain_db=gain_db)
            found, _ = choose_exposure(device, asked, pack(random_halves(4, 64)))
        assert found.exposure_us == pytest.approx(540 * 195 / 255 / 10 ** (gain_db / 20), rel=0.05)


@pytest.mark.parametrize("routine", [exposure, ones_range, photon_transfer, linearity])
def test_a_wrong_black_level_is_no_fault_of_the_light(bench, routine):
    with bench(camera={"black_level_dn": 60.0}) as device:
        device._description = msgspec.structs.replace(device.describe(), black_level_dn=0.0)
        result = routine(device, n_outputs=4096)
    assert result.findings == ()
    assert result.passed, result


def test_a_device_whose_light_stays_on_is_exposed_by_the_stated_black_level(bench):
    with bench(camera={"black_level_dn": 16.0}) as device:
        device._description = msgspec.structs.replace(device.describe(), light=("on",))
        result = exposure(device)
    assert result.quantities["rounds"].value <= 3
    assert result.value == pytest.approx(540 * 239 / 255, rel=0.03)
    assert result.passed, result


def test_advice_follows_the_sign_of_the_deviation(bench):
    with bench(**FIXED) as device:
        [finding] = exposure(device).findings
    assert "the longest exposure, the mean is 8.1 % of full scale, where 11 % were wanted: raise the laser" in finding
    with bench(brightness=2.0, **FIXED) as device:
        [finding] = exposure(device).findings
    assert "the shortest exposure, the mean is 16 % of full scale, where 11 % were wanted: lower the laser" in finding


@pytest.mark.parametrize("routine", [exposure, ones_range, photon_transfer, linearity])
@pytest.mark.parametrize("brightness", [10.0, 1e4])
def test_overexposed_frames_are_a_finding(bench, routine, brightness):
    with bench(brightness=brightness, **FIXED) as device:
        result = routine(device, n_outputs=4096)
    assert not result.passed
    assert "overexposed" in result.findings[0] or "at full scale in every frame" in result.findings[0]
    if routine is not photon_transfer:
        assert math.isnan(result.value)


@pytest.mark.parametrize("routine", [exposure, ones_range, photon_transfer, linearity])
def test_a_full_well_below_full_scale_is_a_finding(bench, routine):
    with bench(camera={"full_well_e": 3000.0}) as device:
        result = routine(device, n_outputs=4096)
    [finding] = result.findings
    assert finding.startswith("Pixels are full at 77 DN and do not reach full scale, 255 DN")
    assert not result.passed


def test_the_search_sees_through_full_wells(bench):
    config = opu.SessionConfig(n_features=64, n_outputs=4096, exposure_us=5000.0)
    with bench(camera={"full_well_e": 3000.0}) as device:
        found, _ = choose_exposure(device, config, pack(random_halves(4, 64)))
    assert found.exposure_us == pytest.approx(540, rel=0.1)


@pytest.mark.parametrize("contrast", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("mean_dn", [0.3, 2.0, 28.0])
def test_light_that_is_not_cut_off_has_no_full_well(contrast, mean_dn):
    rng = np.random.default_rng(0)
    shape = 1 / contrast**2
    for n_frames, n_outputs in ((4, 64), (8, 1024), (4, 16384)):
        light = rng.gamma(shape, mean_dn / shape, (n_frames, n_outputs // 16)).repeat(16, axis=1)
        counts = (light + rng.normal(0, 0.2, light.shape)).round().clip(0, 255)
        assert Saturation.of(counts, 0.0, 255).count_dn == 255


BAD = {
    "dim": {"brightness": 1e-4},
    "dimmer": {"brightness": 1e-6},
    "bright": {"brightness": 200.0},
    "gain needed": {"brightness": 1 / 300},
    "noisy": {"camera": {"read_noise_e": 400.0}},
    "cut off": {"camera": {"black_level_dn": 0.0, "read_noise_e": 100.0}},
    "full well": {"camera": {"full_well_e": 3000.0}},
    "smaller full well": {"camera": {"full_well_e": 500.0}},
    "dark current": {"camera": {"dark_current_e_per_s": 5e6}},
    "bent": {"camera": {"quadratic_nonlinearity": 0.1}},
    "black level": {"camera": {"black_level_dn": 230.0}},
}


@pytest.mark.parametrize("n_outputs", [1, 2, 1024])
@pytest.mark.parametrize("name", BAD)
def test_what_does_not_pass_is_explained(bench, name, n_outputs):
    for routine in (dark_frames, exposure, ones_range, photon_transfer, linearity):
        with bench(**BAD[name]) as device:
            result = routine(device, n_outputs=n_outputs)
        assert result.passed or result.findings, result


def test_too_few_features_are_explained(bench):
    with bench(camera={"read_noise_e": 300.0}) as device:
        result = ones_range(device, n_features=8)
    assert not result.passed
    assert result.findings


def test_the_search_keeps_a_gain_that_was_asked_for(bench):
    config = opu.SessionConfig(n_features=64, n_outputs=4096, gain_db=6.0)
    with bench() as device:
        found, _ = choose_exposure(device, config, pack(random_halves(4, 64)))
    assert found.gain_db == 6.0
    assert found.exposure_us == pytest.approx(540 / 10 ** (6 / 20), rel=0.05)


def test_the_error_of_a_mean_counts_grains_and_shared_features():
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(200):
        weights = rng.exponential(1, (64, 16, 16))  # grains of 4 x 4 pixels alike, on rows of 64 pixels
        grains = np.repeat(np.repeat(weights, 4, axis=1), 4, axis=2).reshape(64, -1)
        patterns = random_halves(8, 64, seed=int(rng.integers(2**31)))
        found = estimate_brightness(28 * (patterns @ grains) / 32, 0.0, 1e9)
        means.append(found.mean_dn)
        errors.append(found.error_dn)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.3)


def test_a_saturated_share_of_few_clusters_is_as_uncertain_as_they_are_few():
    frames = np.full((32, 4000), 20)
    frames[:, :50] = 255
    rng = np.random.default_rng(0)
    # 50 pixels that are bright in all frames are 50 values, and not 1600.
    alike = estimate_brightness(rng.permutation(frames, axis=1), 0.0, 255.0)
    single = estimate_brightness(rng.permuted(frames, axis=1), 0.0, 255.0)
    assert alike.saturated == single.saturated == 50 / 4000
    assert alike.saturated_error == pytest.approx(alike.saturated / math.sqrt(50), rel=0.15)
    assert single.saturated_error == pytest.approx(single.saturated / math.sqrt(1600), rel=0.25)
    none = estimate_brightness(np.minimum(rng.poisson(20, (32, 4000)), 254), 0.0, 255.0)
    assert none.saturated == 0
    assert 3 <= 1.96 * none.saturated_error * frames.size + 0.01 < 4
    assert single.saturated_error >= 1 / frames.size


def test_the_error_of_a_saturated_share_is_its_spread():
    rng = np.random.default_rng(0)
    halves = random_halves(32, 64).astype(float)
    shares, errors = [], []
    for _ in range(100):
        fields = (rng.normal(size=(2000, 64)) + 1j * rng.normal(size=(2000, 64))) @ halves.T / 8
        found = estimate_brightness((np.abs(fields) ** 2).T, 0.0, 5.0)
        shares.append(found.saturated)
        errors.append(found.saturated_error)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.2)
    assert min(errors) >= 1 / (32 * 2000)
    assert np.mean(errors) > 1.2 * math.sqrt(np.mean(shares) / (32 * 2000))


def test_saturation_of_speckle_of_any_contrast():
    rng = np.random.default_rng(0)
    for contrast in (1.0, 0.71, 0.5):
        shape = 1 / contrast**2
        drawn = rng.gamma(shape, 60 / shape, 2_000_000)
        assert predicted_saturation(60.0, contrast, 200.0) == pytest.approx((drawn > 200).mean(), rel=0.05)


def test_the_ones_range_predicts_means_and_saturation(bench):
    rng = np.random.default_rng(5)
    with bench() as device:
        result = ones_range(device)
        config = result.provenance[-1].config
        truth = device.capability(opu.GroundTruth)
        for n_on in (8, 24, 54):
            shown = rng.permuted(np.tile(np.arange(64) < n_on, (32, 1)), axis=1)
            light = truth.photoelectrons(config, shown) * 0.0255
            predicted = np.interp(n_on, result.data["predicted_n_on"], result.data["predicted_mean_dn"])
            assert predicted == pytest.approx(light.mean(), rel=0.05)
        share = np.interp(54, result.data["predicted_n_on"], result.data["predicted_saturated"])
        assert 1 / 1.5 < share / (light > 254.5).mean() < 1.5
    assert result.quantities["contrast"].value == pytest.approx(1, abs=0.03)
    assert abs(result.quantities["background"].value) < 4 * result.quantities["background"].uncertainty


def test_the_background_of_a_finite_contrast_is_seen(bench, small_preset):
    model = small_preset("aurora")
    model = dataclasses.replace(model, dmd=dataclasses.replace(model.dmd, contrast=30.0))
    with SimulatedBench(model, seed=3) as device:
        background = ones_range(device).quantities["background"]
    assert background.value > 4 * background.uncertainty


def test_the_smallest_number_has_a_noise_of_a_tenth():
    rng = np.random.default_rng(1)
    n_on = np.array([8.0, 16.0, 32.0])
    light = rng.exponential(1, (3, 1, 20_000)) * n_on[:, np.newaxis, np.newaxis]
    frames = light + rng.normal(size=(3, 6, 20_000)) * 0.5
    found = estimate_ones_range(n_on, frames, 0.0, 255.0)
    assert found.smallest == pytest.approx(5, rel=0.1)
    assert found.largest == pytest.approx(255 / math.log(200), rel=0.05)
    assert found.mean_dn(10) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("routine", ROUTINES)
def test_stuck_pixels_are_named_and_left_out(bench, routine):
    values = []
    for camera in ({}, STUCK):
        with bench(camera=camera) as device:
            result = routine(device)
        values.append(result.value)
    assert "at full scale in every frame, whatever is shown" in result.findings[0]
    assert values[1] == pytest.approx(values[0], rel=0.02)


@pytest.mark.parametrize("routine", ROUTINES)
def test_a_camera_that_sees_nothing_is_named(bench, routine):
    with bench(camera={"gain_dn_per_e": 1e-12}) as device:
        result = routine(device, n_outputs=2048)
    assert math.isnan(result.value)
    assert "dark whatever is shown" in result.findings[0]
    result.as_json()


@pytest.mark.parametrize("routine", ROUTINES)
def test_a_dead_laser_is_named(bench, routine):
    with bench(brightness=1e-12) as device:
        result = routine(device, n_outputs=2048)
    assert not result.passed
    assert "the light makes no difference" in result.findings[0]


@pytest.mark.parametrize("routine", ROUTINES)
def test_nothing_but_full_scale_is_a_finding_and_no_error(bench, routine):
    with bench(camera={"hot_fraction": 1.0, "hot_current_e_per_s": 1e15}) as device:
        result = routine(device, n_outputs=1024)
    assert math.isnan(result.value)
    assert "255 DN" in result.findings[0]
