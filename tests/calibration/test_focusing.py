"""Foci are as bright as the theory says, with all its factors."""

import dataclasses

import numpy as np
import pytest
from matrix_helpers import exposed, true_matrix

import opu
from opu.calibration import held_out, singular_values, tracking
from opu.calibration.focusing import expected_enhancement, focusing, focusing_patterns
from opu.device import Limits
from opu.errors import ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset


def test_the_theory_is_that_of_random_matrices():
    rng = np.random.default_rng(0)
    n = 256
    for optimised, more in ((False, 1.0), (True, 1.2)):
        matrix = rng.normal(size=(400, n)) + 1j * rng.normal(size=(400, n))

        class Toy:
            background = np.zeros(400)

        Toy.matrix = matrix
        patterns = focusing_patterns(Toy, np.arange(400), optimise_phase=optimised)
        foci = np.square(np.abs((patterns * matrix).sum(axis=1))).mean()
        enhancement = foci / (n / 2 * 2)  # the mean of random halves, for entries of variance 2
        assert enhancement == pytest.approx(more * expected_enhancement(n), rel=0.06 if optimised else 0.04)


@pytest.fixture(scope="module")
def bench():
    with opu.open("sim:?preset=aurora&seed=31") as device:
        config = exposed(device)
        yield device, true_matrix(device, config, error=0.07)


def test_foci_are_as_bright_as_expected(bench):
    device, matrix = bench
    result = focusing(device, matrix=matrix)
    assert result.passed, (result.value, result.findings)
    quantities = {name: quantity.value for name, quantity in result.quantities.items()}
    assert quantities["denominator"] == pytest.approx(1, abs=0.1)
    assert quantities["expected"] / quantities["denominator"] == pytest.approx(expected_enhancement(256), rel=0.02)
    assert quantities["enhancement"] == pytest.approx(quantities["expected"], rel=0.1)
    # The denominator makes a factor of 2.
    assert quantities["enhancement"] / quantities["enhancement_over_all_on"] == pytest.approx(2, rel=0.15)
    spot, (row, column) = result.data["spot_dn"], result.data["spot_target"]
    assert spot.shape == (21, 21)
    assert spot[row, column] == spot.max() > 5 * np.sort(spot.ravel())[-2]
    assert len(result.data["enhancements"]) == 100


def test_a_better_phase_focuses_better(bench):
    device, matrix = bench
    plain, better = (focusing(device, matrix=matrix, optimise_phase=choice) for choice in (False, True))
    assert better.value / plain.value == pytest.approx(1.2, abs=0.1)


def test_errors_of_the_matrix_are_a_factor(bench):
    device, matrix = bench
    poor = true_matrix(device, matrix.config, error=0.7)
    result = focusing(device, matrix=poor)
    assert result.quantities["fidelity"].value == pytest.approx(1 / (1 + 0.7**2), abs=0.03)
    assert result.value == pytest.approx(1, abs=0.1)


def test_a_beam_and_a_finite_contrast_are_factors(small_preset):
    model = small_preset("aurora")
    dmd = dataclasses.replace(model.dmd, contrast=100.0, off_phase_rad=1.0, beam_radius_mirrors=70.0)
    laser = dataclasses.replace(
        model.laser, electrons_per_mirror_us=model.laser.electrons_per_mirror_us / dmd.light_share
    )
    with SimulatedBench(dataclasses.replace(model, dmd=dmd, laser=laser), seed=4) as device:
        config = exposed(device, n_features=128, n_outputs=900)
        matrix = true_matrix(device, config, off_phase_rad=1.0)
        result = focusing(device, matrix=matrix)
    assert result.quantities["illumination"].value < 0.95
    assert result.quantities["modulated"].value < 0.99
    assert result.quantities["fidelity"].value > 0.95
    assert result.value == pytest.approx(1, abs=0.1)


def test_a_medium_that_moved_focuses_less_and_is_named(small_preset):
    model = small_preset("aurora", drift=DriftModel(correlation_time_s=10.0))
    with SimulatedBench(model, seed=4) as device:
        config = exposed(device, n_features=64, n_outputs=400)
        matrix = true_matrix(device, config)
        while device.device_clock_us < 12e6:
            focusing(device, matrix=matrix, n_targets=2)
        result = focusing(device, matrix=matrix)
    fidelity = result.quantities["fidelity"].value
    # g1^2 of 12 s, with the scatter of few blocks.
    assert fidelity == pytest.approx(np.exp(-2 * 1.2), abs=0.08)
    assert result.quantities["enhancement"].value < 0.4 * expected_enhancement(64)
    assert "moved since it was measured" in " ".join(result.findings)


@pytest.mark.parametrize("routine", [focusing, held_out, singular_values, tracking])
def test_a_bare_array_is_no_matrix(bench, routine):
    with pytest.raises(ConfigError, match="'ndarray', and must be a TransmissionMatrix"):
        routine(bench[0], matrix=np.zeros((64, 16), np.complex64))


def test_faults_are_named_and_raise_nothing(bench):
    device, matrix = bench
    nothing = dataclasses.replace(matrix, kept=np.zeros(matrix.n_outputs, bool))
    result = focusing(device, matrix=nothing)
    assert np.isnan(result.value)
    assert result.findings
    model = preset("aurora")
    dark = dataclasses.replace(model, laser=dataclasses.replace(model.laser, electrons_per_mirror_us=1e-12))
    with SimulatedBench(dark, seed=31) as faulty:
        result = focusing(faulty, matrix=matrix)
    assert np.isnan(result.value)
    assert "no light" in " ".join(result.findings)
    slow = dataclasses.replace(model, exposure_us=Limits(minimum=300.0, maximum=100_000.0, default=400.0, unit="us"))
    with SimulatedBench(slow, seed=31) as faulty:
        result = focusing(faulty, matrix=matrix)
    assert not result.passed
    assert "saturate" in " ".join(result.findings)
