"""Acceptance A1 and A3 to A5: from the device every medium looks like independent complex Gaussian entries.

512 features of 128 mirrors, above the `min_ones` of every medium, and pixels four apart, because the far field of phase
screens has a grain. Gaussian entries need no sums to be Gaussian, and are slow: 8 mirrors for each feature.
"""

import numpy as np
import pytest
from scipy import stats

import opu
from opu.sim.media import MEDIA
from opu.testing import media_laws

QUIET = {"bit_depth": 16, "gain_dn_per_e": 1.0, "full_well_e": np.inf, "shot_noise": False, "read_noise_e": 0.0}
CONFIG = opu.SessionConfig(n_features=512, n_outputs=8192, stride=4, region=opu.Region(100, 200, 512, 512))


@pytest.fixture(scope="module", params=MEDIA)
def bench(request, make_bench):
    side = 64 if request.param == "gaussian" else 256
    with make_bench(dmd={"rows": side, "columns": side}, camera=QUIET, electrons=1300, medium=request.param) as bench:
        assert bench.describe().medium.min_ones <= side**2 // 512
        yield bench


@pytest.fixture(scope="module")
def matrix(bench):
    mirrors = bench.describe().n_mirrors // 512
    return bench.capability(opu.GroundTruth).transmission_matrix(CONFIG) / np.sqrt(mirrors)


def test_singular_values_follow_marchenko_and_pastur(matrix):
    for rows in (matrix[:1024], matrix[1024:1536], media_laws.stacked(matrix[:512])):
        assert media_laws.singular_value_distance(rows) <= 0.02


def test_entries_are_circular_gaussian_with_unit_variance(matrix):
    assert np.mean(np.abs(matrix) ** 2) == pytest.approx(1, abs=0.02)
    assert media_laws.kurtosis(matrix) == pytest.approx(2, abs=0.03)
    assert media_laws.circularity(matrix) <= 3 / np.sqrt(matrix.size)


def test_rows_are_uncorrelated(matrix):
    for correlations in (media_laws.row_correlations(matrix[:500]), media_laws.pseudo_correlations(matrix[:500])):
        # Their mean square is 1 / N, and exp(-9) of them exceed 3 / sqrt(N): 15 of 124,750.
        assert np.mean(correlations**2) * 512 == pytest.approx(1, abs=0.03)
        assert np.sum(correlations > 3 / np.sqrt(512)) < 60


def test_the_kernel_of_intensities_scatters_as_that_of_a_gaussian_matrix(matrix):
    assert media_laws.kernel_error_ratio(np.split(matrix, 256)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ones", [5, 20, 256])
def test_intensity_is_exponential_with_contrast_one(bench, ones):
    patterns = np.random.default_rng(ones).random((13, 512)).argsort(axis=1) < ones
    electrons = bench.capability(opu.GroundTruth).photoelectrons(CONFIG, patterns)
    contrast = (electrons.std(axis=1) / electrons.mean(axis=1)).mean()
    assert contrast == pytest.approx(1, abs=0.01)  # over 106,496 pixels
    p_values = [stats.kstest(frame / frame.mean(), "expon").pvalue for frame in electrons]
    assert min(p_values) > 0.01 / 13


def test_the_truth_of_a_feature_is_the_sum_of_the_entries_of_its_mirrors(bench, matrix):
    with bench.open_session(CONFIG) as session:
        pixels = session.settings.pixels[:5]
        mirrors = np.flatnonzero(session.layout.features == 77)
    entries = bench.capability(opu.GroundTruth).entries(pixels, mirrors)
    np.testing.assert_allclose(entries.sum(axis=1) / np.sqrt(len(mirrors)), matrix[:5, 77], rtol=1e-3, atol=1e-3)
