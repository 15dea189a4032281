"""Philox4x32-10: the published known answers, and keys that keep purposes apart."""

import itertools

import numpy as np
import pytest

from opu.sim.counters import derive_key, philox, philox_words

# From the file kat_vectors of the Random123 library by the authors of the generator.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert philox(*map(np.uint64, counter), *map(np.uint64, key)) == answer
    key = tuple(map(np.uint64, key))
    assert tuple(int(word) for word in philox_words(counter, key)) == answer


def test_numpy_runs_many_counters_at_once():
    counters = tuple(np.array([[vector[0][i]] for vector in KNOWN_ANSWERS[:1]] * 2) for i in range(4))
    words = philox_words(counters, (np.uint64(0), np.uint64(0)))
    for word, answer in zip(words, KNOWN_ANSWERS[0][2], strict=True):
        assert word.tolist() == [[answer], [answer]]


def test_compiled_and_numpy_agree_on_random_counters():
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, (200, 4), dtype=np.uint64)
    key = derive_key("test", 1)
    words = np.stack(philox_words(tuple(counters.T), key), axis=1)
    assert [philox(*counter, *key) for counter in counters] == [tuple(row) for row in words.tolist()]


def test_keys_differ_by_purpose_and_by_every_number():
    numbers = [(), (0,), (1,), (2**63,), (2**64 - 1,), (0, 0), (0, 1), (1, 0), (2**32, 0)]
    keys = [derive_key(purpose, *n) for purpose, n in itertools.product(("camera", "medium"), numbers)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= int(word) < 2**32 for key in keys for word in key)
