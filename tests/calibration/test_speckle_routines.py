"""Grain size and statistics of the speckle: estimators on drawn speckle, and routines on benches good and bad."""

import dataclasses
import math

import numpy as np
import pytest

from opu.calibration.speckle import (
    disjoint_patterns,
    estimate_contrast,
    estimate_grain,
    evenly_lit,
    grain,
    law_distance,
    pixel_shares,
    speckle_statistics,
)
from opu.calibration.uncertainty import standard_error
from opu.device import Limits
from opu.errors import ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
from opu.sim.speckle import SpeckleModel

AURORA = preset("aurora")


def bench(seed=3, model=AURORA, **parts):
    return SimulatedBench(dataclasses.replace(model, **parts), seed=seed)


def with_grain(area_px, polarisation=1.0):
    return SpeckleModel(grain_area_px=area_px, polarisation=polarisation)


def drawn_speckle(length_px, shape=(16, 64, 64), seed=0, oversampling=6, stretch=1.0):
    """Speckle of a circular pupil, integrated over square pixels: independent of the simulator."""
    generator = np.random.default_rng(seed)
    n, height, width = shape
    size = (n, height * oversampling, width * oversampling)
    noise = generator.standard_normal(size) + 1j * generator.standard_normal(size)
    rows, columns = (np.fft.fftfreq(m) * oversampling for m in size[1:])
    pupil = np.hypot(rows[:, None] * length_px * stretch, columns * length_px) < 0.5
    intensity = np.abs(np.fft.ifft2(noise * pupil)) ** 2
    intensity /= intensity.mean()
    return intensity.reshape(n, height, oversampling, width, oversampling).mean(axis=(2, 4))


@pytest.mark.parametrize("length_px", [1.0, 2.0, 4.0])
def test_the_width_is_that_of_the_pupil_with_the_area_of_the_pixels_removed(length_px):
    frames = drawn_speckle(length_px)
    found = estimate_grain(frames, frames)
    assert found.is_resolved
    np.testing.assert_allclose(found.fwhm_px, 1.029 * length_px, rtol=0.03)
    assert (found.fwhm_error_px < 0.02 * found.fwhm_px).all()
    assert found.width_px == pytest.approx(math.sqrt(found.fwhm_px.prod()))
    assert 0 < found.width_error_px < found.fwhm_error_px.max()
    # The sum of the correlations is the area of a grain over the square of the contrast, but for its outermost part.
    shares = pixel_shares(*found.fwhm_px)
    theory = (shares**2).sum() / (0.94 * 4 * length_px**2 / math.pi)
    assert found.independent_share == pytest.approx(theory, rel=0.1)


def test_grains_need_not_be_round():
    frames = drawn_speckle(2.0, stretch=2.0)
    rows, columns = estimate_grain(frames, frames).fwhm_px
    assert rows == pytest.approx(2.058 * 2, rel=0.04)
    assert columns == pytest.approx(2.058, rel=0.04)


def test_noise_and_fixed_patterns_do_not_count_as_grain():
    generator = np.random.default_rng(1)
    frames = 20 * drawn_speckle(3.0)
    fixed = 30 * (generator.random(frames.shape[1:]) < 0.02)
    once, again = (frames + fixed + generator.normal(0, 5, frames.shape) for _ in range(2))
    found, ideal = estimate_grain(once, again), estimate_grain(frames, frames)
    np.testing.assert_allclose(found.fwhm_px, ideal.fwhm_px, rtol=0.02)
    assert found.independent_share == pytest.approx(ideal.independent_share, rel=0.05)


def test_neighbours_at_the_stride_are_independent():
    for length_px in (1.0, 1.8, 3.5):
        frames = drawn_speckle(length_px, oversampling=4)
        found = estimate_grain(frames, frames)
        thinned = frames[:, :: found.stride_px, :: found.stride_px] - 1
        neighbours = (thinned[:, 1:] * thinned[:, :-1]).mean() / (thinned**2).mean()
        assert neighbours < 0.06
        assert found.neighbour_correlation <= 0.05


def test_frames_that_do_not_vary_have_no_grain():
    assert math.isnan(estimate_grain(np.zeros((4, 16, 16)), np.zeros((4, 16, 16))).independent_share)


def test_integrated_speckle_follows_the_law_of_its_shares():
    frames = drawn_speckle(1.0, shape=(16, 64, 64))  # 0.79 of a grain in a pixel
    shares = pixel_shares(1.029, 1.029)
    assert math.sqrt((shares**2).sum()) == pytest.approx(0.710, abs=0.01)
    values = np.rint(200 * frames[:, ::3, ::3]).reshape(16, -1)
    distance, critical = law_distance(values, shares=shares)
    assert distance < 1.3 * critical
    assert law_distance(values)[0] > 0.1


def test_dependent_pixels_make_a_test_reject_what_is_right():
    """Trap: neighbours that share a grain are no further evidence."""
    frames = np.rint(100 * drawn_speckle(10.0, shape=(8, 96, 96), oversampling=2))[:, :48, :48]
    shares = pixel_shares(10.29, 10.29)
    distance, critical = law_distance(frames.reshape(8, -1), shares=shares)
    assert distance > critical
    distance, critical = law_distance(frames[:, ::12, ::12].reshape(8, -1), shares=shares)
    assert distance < critical


def test_few_mirrors_of_a_qpsk_medium_are_not_exponential():
    """Trap: the contrast is sqrt(1 - 1 / n) with n lit mirrors."""
    generator = np.random.default_rng(2)
    for n_lit, is_law in ((5, False), (100, True)):
        signs = generator.choice([-1.0, 1.0], (2, n_lit, 10, 4000))
        intensity = (signs.sum(axis=1) ** 2).sum(axis=0)
        found = estimate_contrast(intensity, intensity)
        assert found.contrast == pytest.approx(math.sqrt(1 - 1 / n_lit), abs=0.02)
        # 5 mirrors give 9 intensities; noise makes counts of them.
        counts = np.rint(40 * intensity / n_lit + generator.normal(0, 3, intensity.shape))
        distance, _ = law_distance(counts, noise_variance_dn2=9 + 1 / 12, dark_variance_dn2=9 + 1 / 12)
        assert (distance < 0.03) is is_law


def test_the_contrast_has_no_noise_in_it():
    generator = np.random.default_rng(3)
    speckle = 20 * generator.standard_exponential((16, 4000))
    once, again = (speckle + generator.normal(0, 10, speckle.shape) for _ in range(2))
    found = estimate_contrast(once, again)
    assert found.contrast == pytest.approx(1, abs=4 * found.contrast_error)
    assert np.std(once) / np.mean(once) > 1.1
    assert found.noise_variance_dn2 == pytest.approx(100, rel=0.05)


def test_standard_errors_of_few_samples_cover():
    generator = np.random.default_rng(4)
    samples = generator.standard_normal((4000, 5))
    covered = [abs(row.mean()) < 1.96 * standard_error(row) for row in samples]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_the_even_part_of_the_light_is_found():
    light = np.ones((6, 8))
    light[:2] = 0.5
    light[:, 7] = 1.5
    assert evenly_lit(light) == (2, 0, 4, 7)


def test_patterns_have_nothing_in_common():
    patterns = disjoint_patterns(8, 64)
    assert (patterns.sum(axis=0) == 1).all()
    with pytest.raises(ConfigError, match="65 patterns of 64"):
        disjoint_patterns(65, 64)


@pytest.mark.parametrize("name", ["aurora", "ideal", "generation3", "interferometer", "laboratory"])
def test_a_healthy_bench_has_no_findings(name, small_preset):
    with SimulatedBench(small_preset(name), seed=5) as device:
        size, statistics = grain(device), speckle_statistics(device)
    assert size.passed, size.findings
    assert statistics.passed, (statistics.findings, statistics.quantities)
    expected = 0.87 if name == "laboratory" else 1.0  # grains of 4 pixels, 98 % polarised
    assert statistics.value == pytest.approx(expected, abs=0.02)


def test_grains_over_several_pixels_are_named_with_the_stride():
    with bench(speckle=with_grain(16.0)) as device:
        result = grain(device)
    assert not result.passed
    [finding] = result.findings
    assert "3.6 pixels wide" in finding or "3.7 pixels wide" in finding
    assert "stride of 4" in finding
    assert result.value == pytest.approx(3.648, rel=0.05)
    assert result.quantities["effective_outputs"].value == pytest.approx(252, rel=0.2)
    assert result.data["correlation"].shape == (33, 33)


def test_independent_pixels_are_a_bound_and_not_a_number():
    with bench() as device:
        result = grain(device)
    assert math.isnan(result.uncertainty)
    assert "at most this" in result.summary
    assert result.quantities["stride"].value == 1
    assert result.quantities["effective_outputs"].value == pytest.approx(64**2, rel=0.05)


def too_bright():
    dn_per_mirror_us = 255 / 3.91 / (AURORA.n_mirrors / 32 * 400)
    return {
        "exposure_us": Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us"),
        "laser": dataclasses.replace(AURORA.laser, electrons_per_mirror_us=dn_per_mirror_us / 0.0255),
    }


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"speckle": with_grain(1.25)}, "averages over 0.8"),
        ({"speckle": with_grain(0.0, 0.0)}, "sum of 2 independent patterns"),
        ({"speckle": with_grain(4.0, 0.0)}, "sum of 2 independent patterns"),
        (too_bright(), "of the values are at 255 DN, full scale"),
        ({"camera": dataclasses.replace(AURORA.camera, full_well_e=2500.0)}, "at 64 DN, where their wells are full"),
        ({"laser": dataclasses.replace(AURORA.laser, electrons_per_mirror_us=1e-12)}, "no light"),
        (
            {"camera": dataclasses.replace(AURORA.camera, hot_fraction=0.02, hot_current_e_per_s=1e11)},
            "whatever is shown",
        ),
    ],
)
def test_faults_are_named(fault, words):
    with bench(**fault) as device:
        result = speckle_statistics(device)
    assert not result.passed
    assert len(result.findings) == 1
    assert words in result.findings[0]


def test_the_grain_of_a_dead_camera_is_unknown():
    with bench(laser=dataclasses.replace(AURORA.laser, electrons_per_mirror_us=1e-12)) as device:
        result = grain(device)
    assert math.isnan(result.value)
    assert not result.passed
    assert "no light" in result.findings[0]


def test_results_repeat_and_their_data_make_a_histogram():
    results = []
    for _ in range(2):
        with bench(seed=8) as device:
            results.append(speckle_statistics(device, noise_key=5, n_patterns=8, side_px=48))
    assert results[0].value == results[1].value
    assert results[0].frames == results[1].frames == 8 + 16 + 4 * ((results[0].frames - 24) // 4)
    data = results[0].data
    widths = np.diff(data["intensity"], append=2 * data["intensity"][-1] - data["intensity"][-2])
    assert (data["density"] * widths).sum() == pytest.approx(1, abs=0.01)
    assert np.abs(data["density"] - data["law_density"]).max() < 0.1
    assert data["picture"].shape == (48, 48)


def test_a_region_of_a_few_pixels_is_refused():
    with bench() as device, pytest.raises(ConfigError, match="side of the region is 4"):
        grain(device, side_px=4)
