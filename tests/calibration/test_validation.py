"""Comparisons of matrices forget phases and conjugation; held-out frames tell a right matrix from a wrong one."""

import dataclasses

import msgspec
import numpy as np
import pytest
from matrix_helpers import exposed, true_matrix

import opu
from opu.calibration.matrix.validation import compare_intensities, held_out, normalised_error, row_correlations
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel


def gaussian(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def test_phases_and_conjugation_of_rows_make_no_difference():
    truth = gaussian(200, 64)
    turned = truth * np.exp(1j * np.arange(200)[:, np.newaxis])
    turned[1::2] = turned[1::2].conj()
    assert row_correlations(truth, turned).min() == pytest.approx(1)
    assert normalised_error(truth, 0.3 * turned) == pytest.approx(0, abs=1e-12)
    # A score without the conjugation finds half of the rows wrong.
    naive = np.abs((truth.conj() * turned).sum(axis=1)) / np.square(np.abs(truth)).sum(axis=1)
    assert (naive < 0.5).mean() == 0.5


def test_noise_lowers_the_correlation_as_it_should():
    truth = gaussian(400, 256)
    noisy = truth + 0.2 * gaussian(400, 256, seed=1)
    assert row_correlations(truth, noisy).mean() == pytest.approx((1 + 0.2**2) ** -0.5, abs=2e-3)
    assert normalised_error(truth, noisy) == pytest.approx(0.2**2 / (1 + 0.2**2), rel=0.03)
    assert row_correlations(truth, gaussian(400, 256, seed=2)).mean() < 0.15


def test_zero_rows_and_constant_frames_are_no_warnings():
    assert (row_correlations(np.zeros((2, 3)), np.ones((2, 3))) == 0).all()
    assert normalised_error(np.ones((2, 3)), np.zeros((2, 3))) == 1
    found = compare_intensities(np.ones((5, 4)), np.zeros((2, 5, 4)))
    assert np.isnan([found.pearson, found.repeatability, found.disattenuated, found.uncertainty]).all()


def test_disattenuation_takes_the_noise_away():
    rng = np.random.default_rng(5)
    true = rng.exponential(size=(2000, 50))
    noisy = true + 0.8 * rng.normal(size=(2, 2000, 50))
    found = compare_intensities(true, noisy)
    assert found.pearson < 0.8
    assert found.disattenuated == pytest.approx(1, abs=5 * found.uncertainty)


def test_counts_at_full_scale_are_no_measurement():
    rng = np.random.default_rng(7)
    true = rng.exponential(size=(2000, 50))
    measured = np.minimum(true + 0.1 * rng.normal(size=(2, 2000, 50)), 4)
    assert compare_intensities(true, measured).disattenuated < 0.99
    found = compare_intensities(true, measured, 4)
    assert found.disattenuated == pytest.approx(1, abs=5 * found.uncertainty)
    assert found.uncertainty < 1e-3
    assert found.left_out_share == pytest.approx((measured >= 4).any(axis=0).mean())


@pytest.mark.parametrize("factor", [3, 10])
def test_overexposed_frames_are_named(bench, factor):
    device, config = bench
    matrix = true_matrix(device, config)
    brighter = dataclasses.replace(
        matrix,
        matrix=matrix.matrix * np.float32(factor**0.5),
        background=matrix.background * np.float32(factor**0.5),
        config=msgspec.structs.replace(config, exposure_us=factor * config.exposure_us),
    )
    result = held_out(device, matrix=brighter)
    assert not result.passed
    assert "saturated" in result.findings[0]
    assert result.quantities["left_out_share"].value > 0.03
    assert not result.quantities["left_out_share"].passed


def test_uncertainties_cover_the_spread():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(60):
        true = rng.exponential(size=(40, 30))
        predicted = true + 0.3 * rng.normal(size=true.shape)
        found.append(compare_intensities(predicted, true + 0.5 * rng.normal(size=(2, *true.shape))))
    spread = np.std([each.disattenuated for each in found])
    assert spread / np.mean([each.uncertainty for each in found]) == pytest.approx(1, abs=0.3)


@pytest.fixture(scope="module")
def bench():
    with opu.open("sim:?preset=aurora&seed=31") as device:
        yield device, exposed(device)


def test_a_right_matrix_passes(bench):
    device, config = bench
    result = held_out(device, matrix=true_matrix(device, config))
    assert result.passed, result.findings
    assert result.value == pytest.approx(1, abs=0.002)
    assert result.quantities["pearson"].value > 0.995
    assert 0 < result.quantities["left_out_share"].value < 0.005
    assert result.quantities["pearson_over_repeatability"].value >= result.value
    assert result.frames == 100
    assert result.data["predicted_dn"].shape == result.data["measured_dn"].shape == (50, 64)


def test_a_matrix_that_is_not_given_is_measured(bench):
    device, _ = bench
    result = held_out(device)
    assert result.passed, result.findings
    assert result.frames > 6 * 128


def test_the_value_is_the_square_of_the_field_correlation(bench):
    device, config = bench
    matrix = true_matrix(device, config, error=0.3)
    result = held_out(device, matrix=matrix)
    assert result.value == pytest.approx(1 / (1 + 0.3**2), abs=0.01)
    assert not result.passed
    assert "predicts new frames" in result.findings[0]


def test_rows_that_are_not_kept_are_not_counted(bench):
    device, config = bench
    matrix = true_matrix(device, config)
    spoiled = matrix.matrix.copy()
    spoiled[:40] = spoiled[40:80]
    kept = np.arange(config.n_outputs) >= 40
    good = held_out(device, matrix=dataclasses.replace(matrix, matrix=spoiled, kept=kept))
    assert good.passed
    assert good.quantities["kept"].value == pytest.approx(0.9)
    bad = held_out(device, matrix=dataclasses.replace(matrix, kept=np.zeros(config.n_outputs, bool)))
    assert np.isnan(bad.value)
    assert "Only 0.0%" in bad.findings[0]


def test_a_dark_camera_and_a_noisy_one_are_named(bench, small_preset):
    device, config = bench
    matrix = true_matrix(device, config)
    model = small_preset("aurora")
    dark = dataclasses.replace(model, laser=dataclasses.replace(model.laser, electrons_per_mirror_us=1e-12))
    noisy = dataclasses.replace(model, camera=dataclasses.replace(model.camera, read_noise_e=3000.0))
    for other, word in ((dark, "no light"), (noisy, "correlate at only")):
        with SimulatedBench(other, seed=31) as faulty:
            result = held_out(faulty, matrix=matrix, n_patterns=20)
        assert not result.passed
        assert any(word in finding for finding in result.findings), result.findings


def test_a_medium_that_jumped_is_named(small_preset):
    model = small_preset("aurora", drift=DriftModel(jump_times_s=(2.0,)))
    with SimulatedBench(model, seed=3) as device:
        config = exposed(device, n_features=64, n_outputs=100)
        matrix = true_matrix(device, config)
        while device.describe().medium.epoch == 0:
            held_out(device, matrix=matrix, n_patterns=10)
        result = held_out(device, matrix=matrix)
    assert result.value < 0.5
    assert "epoch 1" in result.findings[0]


def test_a_limit_that_is_missed_by_little_has_a_finding(bench):
    device, config = bench
    result = held_out(device, matrix=true_matrix(device, config, error=0.14))
    assert 0.95 < result.value < 0.99
    assert "more than one" in result.findings[0]
