"""Photo-electrons of the compiled kernel against the Poisson law, a million draws at a time."""

import numpy as np
import pytest
from scipy import stats

from opu.sim.camera import poisson_quantile

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
def test_every_draw_is_the_quantile_of_its_word(mean):
    """Far sharper than a law: exact below 16, and from there on but for one draw in a thousand, which is off by one."""
    words = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64)
    drawn = poisson_quantile(np.full(words.size, mean, np.float32), words)
    if mean < 16:
        probability = (words + 0.5) / 2**32
    else:  # sign and tail, as for a normal number
        tail = ((words & np.uint64(2**31 - 1)) + 0.5) / 2**32
        probability = np.where(words >> np.uint64(31), 1 - tail, tail)
    error = drawn - stats.poisson.ppf(probability, float(np.float32(mean)))
    assert np.abs(error).max() <= (0 if mean < 16 else 1)
    assert (error != 0).mean() < 1e-3


def test_a_wrong_law_fails(take):
    """The test above can see a variance that is 2 % too small."""
    counts = stats.binom.rvs(1000, 0.02, size=10**6, random_state=0)
    assert stats.chisquare(*binned(counts, 20)).pvalue < 1e-10


def test_darkness_holds_no_electrons(take):
    assert not take(0, n_frames=10).any()
