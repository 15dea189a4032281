"""Random variates: the numbers are those of the formulas, and independent."""

import numpy as np
import pytest
from scipy import stats

from opu.sim.variates import exponential, normal_pairs

EXTREMES = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint64)


def random_words(shape):
    return np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint64)


def expected_pairs(radius_words, angle_words):
    uniform = ((radius_words % 2**31).astype(np.float64) + 0.5) / 2**31
    # The angle: an eighth of a turn to either side, swapped and mirrored by the two highest bits.
    t = ((angle_words * 4) % 2**32).astype(np.uint32).view(np.int32) / 2**31 * np.pi / 4
    swapped, negative = (angle_words >> np.uint64(30)) % 2 == 1, angle_words >> np.uint64(31) == 1
    radius = np.where(negative, -1, 1) * np.sqrt(-2 * np.log(uniform))
    return radius * np.where(swapped, np.sin(t), np.cos(t)), radius * np.where(swapped, np.cos(t), np.sin(t))


def test_pairs_are_those_of_the_formula():
    # Near `u = 1` float32 rounds it: radii near 0 are coarse.
    far = np.geomspace(1, 2**31 - 1, 5000).astype(np.uint64)
    for radius_words, angle_words, atol in (
        (random_words(10**5), random_words(10**5)[::-1], 2e-5),
        (far, random_words(5000), 3e-5),
        (np.repeat(EXTREMES, 5), np.tile(EXTREMES, 5), 3e-5),
    ):
        pairs = normal_pairs(radius_words, angle_words)
        assert pairs[0].dtype == pairs[1].dtype == np.float32
        np.testing.assert_allclose(pairs, expected_pairs(radius_words, angle_words), rtol=1e-6, atol=atol)
    assert np.hypot(*normal_pairs(np.zeros(1, np.uint64), random_words(1))) == pytest.approx(6.66, abs=0.01)


def test_pairs_are_normal_and_independent():
    n = 10**6
    first, second = (z.astype(np.float64) for z in normal_pairs(*random_words((2, n))))
    for z in (first, second):
        assert abs(z.mean()) < 4 / np.sqrt(n)
        assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
        assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / n)
        assert stats.kstest(z, "norm").pvalue > 1e-4
    for power in (1, 2):
        assert abs(np.corrcoef(first**power, second**power)[0, 1]) < 4 / np.sqrt(n)
    # Uniform directions: a pair that shared its word, or lacked a sign, would leave sectors empty.
    sectors = np.histogram(np.arctan2(second, first), bins=64, range=(-np.pi, np.pi))[0]
    assert stats.chisquare(sectors).pvalue > 1e-4


def test_exponential_numbers():
    words = random_words(10**5)
    np.testing.assert_allclose(exponential(words), -np.log(((words % 2**31) + 0.5) / 2**31), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", EXTREMES)
def test_no_word_makes_a_number_that_is_none(word):
    words = np.full(5, word)
    for number in (*normal_pairs(words, EXTREMES), *normal_pairs(EXTREMES, words), exponential(words)):
        assert np.isfinite(number).all()
    assert (exponential(words) >= 0).all()
