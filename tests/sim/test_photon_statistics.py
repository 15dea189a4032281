"""Photo-electrons of the compiled kernel against the Poisson law, a million draws at a time."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from opu.sim.variates import normal_pairs, poisson, small_poisson

MEANS = [0.1, 1, 5, 15.9, 16, 20, 100, 1000, 10_000]


def binned(counts, mean, least=10):
    """Merge neighbouring counts until each bin expects at least `least`; return observed and expected."""
    n = counts.size
    values = np.arange(int(counts.max()) + 1)
    cumulated = n * stats.poisson.cdf(values, mean)
    edges, last = [], 0.0
    for value, below in zip(values, cumulated, strict=True):
        if below - last >= least and n - below >= least:
            edges.append(value)
            last = below
    bounds = np.array([-1, *edges, np.inf])
    observed = np.diff(np.searchsorted(np.sort(counts, axis=None), bounds, side="right"))
    expected = n * np.diff(stats.poisson.cdf(bounds, mean))
    return observed, expected


@pytest.mark.parametrize("mean", MEANS)
def test_photon_noise_is_poisson(take, mean):
    """The seed is fixed, so the outcome is. Of nine right laws one in a thousand would fail at this limit by chance."""
    mean = float(np.float32(mean))
    counts = take(mean, key=("poisson", 1))
    assert counts.size == 10**6
    observed, expected = binned(counts, mean)
    assert expected.min() >= 10
    assert len(observed) >= 4
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("mean", MEANS)
def test_mean_and_variance_of_photon_noise(take, mean):
    counts = take(mean, key=("poisson", 2)).astype(np.float64)
    n = counts.size
    assert abs(counts.mean() - mean) < 4 * np.sqrt(mean / n)
    assert abs(counts.var() - mean) < 4 * np.sqrt((mean + 2 * mean**2) / n)


@pytest.mark.parametrize("mean", MEANS)
def test_every_draw_is_a_quantile(mean):
    """Far sharper than a law: exact below 16, and from there on but for one draw in a thousand, which is off by one."""
    words = np.random.default_rng(0).integers(0, 2**32, (3, 20_000), dtype=np.uint64)
    z, _ = normal_pairs(*words[:2])
    means = np.full(z.size, mean, np.float32)
    probability = (words[2] + 0.5) / 2**32 if mean < 16 else ndtr(z.astype(np.float64))
    error = poisson(means, z, words[2]) - stats.poisson.ppf(probability, float(means[0]))
    assert np.abs(error).max() <= (0 if mean < 16 else 1)
    assert (error != 0).mean() < 1e-3


@pytest.mark.parametrize("mean", [0.0, 1e-9, 0.3, 15.999])
def test_the_last_words_end_too(mean):
    words = np.array([0, 2**31, 2**32 - 2, 2**32 - 1], np.uint64)
    drawn = small_poisson(np.full(4, mean, np.float32), words)
    np.testing.assert_array_equal(drawn, stats.poisson.ppf((words + 0.5) / 2**32, float(np.float32(mean))))


def test_photon_and_read_noise_of_neighbours_and_frames_are_independent(take):
    """Two pixels share a call of Philox, and both noises of a pixel share their words."""
    z = (take(100, read_noise_e=0.0).astype(float) - 100) / 10
    both = (take(100, read_noise_e=30.0, black_level_dn=1000).astype(float) - 1100) - 10 * z
    read = both / 30
    n = z[:, 1:].size
    for one, other in (
        (z[:, 1:], z[:, :-1]),
        (z[1:], z[:-1]),
        (read[:, 1:], read[:, :-1]),
        (z, read),
        (z[:, 1:], read[:, :-1]),
    ):
        for power in (1, 2):
            assert abs(np.corrcoef(one.ravel() ** power, other.ravel() ** power)[0, 1]) < 4 / np.sqrt(n)


def test_a_wrong_law_fails(take):
    """The test above can see a variance that is 2 % too small."""
    counts = stats.binom.rvs(1000, 0.02, size=10**6, random_state=0)
    assert stats.chisquare(*binned(counts, 20)).pvalue < 1e-10


def test_darkness_holds_no_electrons(take):
    assert not take(0, n_frames=10).any()
