"""Fully developed speckle: the field is circular complex Gaussian, whatever number of mirrors is lit."""

import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

import opu

N_FEATURES = 1000


@pytest.fixture(scope="module")
def ideal():
    with opu.open("sim:?preset=ideal&seed=11") as device:
        yield device


@pytest.fixture(scope="module")
def speckle(ideal):
    """Frames of 10,000 pixels, eight with each number of lit features, all equally bright."""
    generator = np.random.default_rng(0)
    frames = {}
    for ones in (5, 20, 500):
        order = generator.random((8, N_FEATURES)).argsort(axis=1)
        # Twice as far from saturation as the preset: 65535 = 48 means.
        config = opu.SessionConfig(n_features=N_FEATURES, n_outputs=10_000, exposure_us=200 * 500 / ones)
        with ideal.open_session(config) as session:
            frames[ones] = session.project(order < ones).frames.astype(np.float64)
    return frames


@pytest.mark.parametrize("ones", [5, 20, 500])
def test_contrast_is_one(speckle, ones):
    frames = speckle[ones]
    contrast = frames.std(axis=1) / frames.mean(axis=1)
    assert contrast.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("ones", [5, 20, 500])
def test_intensity_is_exponential(speckle, ones):
    for frame in speckle[ones]:
        # The standard error of a mean over 10,000 pixels is 1 %.
        assert frame.mean() == pytest.approx(65535 / 48, rel=0.04)
        assert stats.kstest(frame / frame.mean(), "expon").pvalue > 1e-4


@pytest.mark.parametrize("n_on", [2, 5, 50])
def test_contrast_of_a_few_mirrors(make_bench, n_on):
    """One mirror for each feature: the contrast of `n` unit phasors is sqrt(1 - 1 / n), 0.99 at `min_ones`."""
    patterns = np.zeros((40, 64 * 64))
    for frame, pattern in enumerate(patterns):
        pattern[frame * n_on : (frame + 1) * n_on] = 1
    with make_bench(camera={"dark_current_e_per_s": 0.0}) as bench:
        assert bench.describe().medium.min_ones == 50
        config = opu.SessionConfig(n_features=64 * 64, n_outputs=4000)
        mean_e = bench.capability(opu.GroundTruth).photoelectrons(config, patterns)
    contrast = mean_e.std(axis=1) / mean_e.mean(axis=1)
    assert contrast.mean() == pytest.approx(np.sqrt(1 - 1 / n_on), abs=0.01)


def test_mean_of_aurora_is_21_counts_with_half_of_the_mirrors_on():
    patterns = np.random.default_rng(0).permuted(np.tile([0, 1], (50, N_FEATURES // 2)), axis=1)
    with opu.open("sim:?preset=aurora&seed=7") as device:
        session = device.open_session(opu.SessionConfig(n_features=N_FEATURES, n_outputs=2000))
        frames = session.project(patterns).frames
    assert frames.dtype == np.uint8
    assert 20 <= frames.mean() <= 22
    assert frames.std() / frames.mean() == pytest.approx(1, abs=0.06)


@pytest.fixture(scope="module")
def matrix(ideal):
    """The compiled matrix of 1024 outputs and 512 features, in units of the standard deviation of a feature."""
    config = opu.SessionConfig(n_features=512, n_outputs=1024)
    mirrors = ideal.describe().n_mirrors // 512
    return ideal.capability(opu.GroundTruth).transmission_matrix(config) / np.sqrt(mirrors)


def test_the_matrix_is_circular_with_unit_variance_for_each_lit_mirror(matrix):
    n = matrix.size
    assert matrix.shape == (1024, 512)
    assert abs(matrix.mean()) < 5 / np.sqrt(n)
    assert np.mean(np.abs(matrix) ** 2) == pytest.approx(1, abs=5 / np.sqrt(n))
    # The pseudo-variance E[t^2] vanishes: real and imaginary part have equal variances and no correlation.
    assert abs(np.mean(matrix**2)) < 5 * np.sqrt(2 / n)
    for part in (matrix.real, matrix.imag):
        assert stats.kstest(part.ravel() * np.sqrt(2), "norm").statistic < 0.02  # integers of one parity: steps of 0.06
        assert abs(stats.kurtosis(part, axis=None)) < 5 * np.sqrt(24 / n)


def test_rows_and_columns_are_uncorrelated(matrix):
    for rows in (matrix, matrix.T):
        n, width = rows.shape
        normalised = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        squares = np.abs(normalised @ normalised.conj().T)[np.triu_indices(n, 1)] ** 2 * width
        # Squared correlations of independent Gaussian rows are exponential with mean 1.
        assert squares.mean() == pytest.approx(1, abs=0.02)
        assert squares.max() < np.log(len(squares)) + 9


def marchenko_pastur(values, ratio):
    """Distribution function of the eigenvalues of A^H A / n, A of n x (ratio n) with unit variance."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    angle = np.linspace(0, np.pi, 20_001)
    grid = low + (high - low) * (1 - np.cos(angle)) / 2
    density = np.sqrt((high - grid) * (grid - low)) / (2 * np.pi * ratio * grid)
    slope = density * (high - low) / 2 * np.sin(angle)
    cumulated = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(angle))])
    assert cumulated[-1] == pytest.approx(1, abs=1e-6)
    return np.interp(values, grid, cumulated)


def test_singular_values_follow_marchenko_pastur(matrix):
    with threadpool_limits(1):  # the threads of a busy machine's BLAS wait for each other, for seconds
        eigenvalues = np.linalg.eigvalsh(matrix.conj().T @ matrix / len(matrix))
    distance = stats.kstest(eigenvalues, lambda values: marchenko_pastur(values, 0.5)).statistic
    assert distance <= 0.02
