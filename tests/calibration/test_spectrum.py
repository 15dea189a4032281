"""The singular values of a random matrix lie on the law; what is not random is named."""

import numpy as np
import pytest
from matrix_helpers import exposed, true_matrix, wrap

import opu
from opu.calibration.matrix.spectrum import (
    marchenko_pastur_distribution,
    neighbour_correlation,
    random_matrix_law,
    singular_values,
    spectrum_of,
)
from opu.device import Region, SessionConfig

CONFIG = SessionConfig(n_features=128, n_outputs=400, region=Region(0, 0, 20, 20), exposure_us=400.0)


def gaussian(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@pytest.fixture(scope="module")
def device():
    with opu.open("sim:?preset=aurora&seed=31") as opened:
        yield opened


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_law_is_a_density(beta):
    s = np.linspace(1 - np.sqrt(beta), 1 + np.sqrt(beta), 20_001)
    density = random_matrix_law(s, beta)
    assert np.trapezoid(density, s) == pytest.approx(1, abs=1e-4)
    shares = np.cumsum((density[1:] + density[:-1]) / 2) * (s[1] - s[0])
    np.testing.assert_allclose(shares, marchenko_pastur_distribution(s[1:], beta), atol=1e-4)
    assert marchenko_pastur_distribution(np.array([0.0, 3.0]), beta).tolist() == [0, 1]


def test_square_matrices_have_a_quarter_circle():
    s = np.linspace(0.01, 1.99, 50)
    np.testing.assert_allclose(random_matrix_law(s, 1.0), np.sqrt(4 - s**2) / np.pi)


@pytest.mark.parametrize("shape", [(512, 256), (256, 512), (256, 256)])
def test_random_matrices_lie_on_the_law(shape):
    matrix = gaussian(*shape) * np.linspace(0.5, 2, shape[0])[:, np.newaxis]  # rows of all brightnesses
    found = spectrum_of(matrix * np.linspace(0.7, 1.3, shape[1]))
    assert found.distance < 0.014
    assert found.dark_columns == 0
    assert found.effective_columns == pytest.approx(shape[1] * 0.89, rel=0.05)


def test_the_spread_among_random_matrices_is_the_one_stated():
    found = [spectrum_of(gaussian(128, 64, seed=seed)) for seed in range(40)]
    distances = [each.distance for each in found]
    assert np.std(distances) == pytest.approx(found[0].uncertainty, rel=0.35)
    assert np.mean(distances) == pytest.approx(2 / 64, rel=0.3)


def test_unpadded_fast_transforms_are_not_random():
    # Random signs and two Hadamard transforms look Gaussian, and have all singular values alike.
    n = 256
    hadamard = np.ones((1, 1))
    while len(hadamard) < n:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, n))
    matrix = np.vstack([hadamard * signs[0] @ hadamard * signs[1], hadamard * signs[1] @ hadamard * signs[0]])
    assert spectrum_of(matrix).distance > 0.4


def test_a_good_matrix_passes(device):
    config = exposed(device, n_features=160, n_outputs=320)
    result = singular_values(device, matrix=true_matrix(device, config, error=0.07))
    assert result.passed, (result.value, result.findings)
    assert result.frames == 0
    assert len(result.data["singular_values"]) == 160
    assert np.trapezoid(result.data["law_density"], result.data["law_value"]) == pytest.approx(1, abs=0.01)


def findings(device, entries, **fields):
    result = singular_values(device, matrix=wrap(device, CONFIG, entries, **fields))
    assert not result.passed
    return " ".join(result.findings)


def test_a_low_rank_is_named(device):
    low = gaussian(400, 90) @ gaussian(90, 128, seed=1)
    assert "dimensions are missing" in findings(device, low + 0.01 * gaussian(400, 128, seed=2))
    twins = gaussian(400, 128)
    twins[:, 100:] = twins[:, :28]
    assert "dimensions are missing" in findings(device, twins)


def test_grain_over_several_pixels_is_named(device):
    fine = gaussian(22, 20, 128).reshape(440, 128)
    grain = fine[:400] + fine[1:401] + fine[20:420] + fine[21:421]
    phases = np.exp(2j * np.pi * np.random.default_rng(3).random((400, 1)))
    turned = grain * phases
    turned[::3] = turned[::3].conj()  # as a retrieval finds them
    assert "spans several pixels" in findings(device, turned)
    shared, error = neighbour_correlation(wrap(device, CONFIG, turned))
    assert shared == pytest.approx(0.25, abs=0.03)
    assert error < 0.02
    independent, error = neighbour_correlation(wrap(device, CONFIG, gaussian(400, 128)))
    assert abs(independent) < 4 * error


def test_dark_features_are_named(device):
    dark = gaussian(400, 128)
    dark[:, 5:11] *= 0.01
    assert "6 of 128 features hardly change" in findings(device, dark)


def test_rows_that_are_not_kept_are_left_out(device):
    entries = gaussian(400, 128)
    entries[300:] = 1
    kept = np.arange(400) < 300
    assert singular_values(device, matrix=wrap(device, CONFIG, entries, kept=kept)).passed
    assert "neighbouring" in findings(device, entries).lower()


def test_nothing_to_believe_is_no_error(device):
    assert "say nothing" in findings(device, gaussian(400, 128), kept=np.zeros(400, bool))
    assert "say nothing" in findings(device, np.zeros((400, 128)))
