"""Cascades of Walsh-Hadamard transforms: the kernel and its NumPy twin agree to the bit, however the work is cut."""

import numba
import numpy as np
import pytest

from opu.hadamard import walsh_hadamard
from opu.parts import UNUSED_MIRROR
from opu.sim.hadamard import (
    LARGEST_INPUT,
    ROW,
    Cascade,
    Readout,
    Scratch,
    Source,
    aligned_empty,
    swap_digits,
)
from opu.sim.mirrors import STUCK_ON
from opu.sim.threads import numba_lock

SIZES = [ROW * 2**k for k in range(5)]  # one row of numbers; 2, 4 and 8 of them; and 16, eight and two at a time


def make_cascade(size, seed=0):
    generator = np.random.default_rng([size, seed])
    turns_2 = generator.integers(0, 2, size, dtype=np.uint8), generator.integers(0, 2, ROW, dtype=np.uint8)
    turns_3, turns_4 = (generator.integers(0, 4, size, dtype=np.uint8) for _ in range(2))
    gains = generator.integers(0, 2**15, size).astype(np.int16)
    return Cascade.pack(turns_2, turns_3, turns_4, gains, np.float32(2.0**-40))


def make_inputs(size, n_features, run, n_frames, seed=1):
    """Features in runs, with mirrors that are stuck among them: patterns, what shows what, amplitudes."""
    generator = np.random.default_rng([size, run, seed])
    shown = np.full(size - 77, UNUSED_MIRROR, np.int32)
    shown[: n_features * run] = np.repeat(np.arange(n_features), run)
    shown[generator.choice(len(shown), 20, replace=False)] = [STUCK_ON, UNUSED_MIRROR] * 10
    amplitudes = np.zeros((2, size), np.int8)
    amplitudes[:, : len(shown)] = generator.integers(-LARGEST_INPUT, LARGEST_INPUT + 1, (2, len(shown)))
    return generator.integers(0, 2, (n_frames, n_features), dtype=np.uint8), shown, amplitudes


def inputs_with_numpy(features, shown, amplitudes):
    extended = np.pad(features, ((0, 0), (0, 2)))
    extended[:, STUCK_ON] = 1
    inputs = np.zeros((len(features), len(amplitudes)), np.int64)
    inputs[:, : len(shown)] = extended[:, shown] * amplitudes[: len(shown)]
    return inputs


def apply(cascade, features, shown, amplitudes, versions, positions, n_threads=2):
    size = cascade.size
    out = tuple(np.full((len(features), len(positions)), np.nan, np.float32) for _ in range(2))
    readout = Readout.of(positions, np.arange(len(positions)), size)
    with numba_lock:
        source, scratch = Source.of(shown, size), Scratch.make(size, n_threads)
        cascade.apply(features, source, amplitudes, versions, readout, out, scratch)
    return out


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", [1, 2, 17, 1000])
def test_kernel_and_numpy_apply_the_same_cascade(size, run):
    cascade = make_cascade(size)
    features, shown, amplitudes = make_inputs(size, (size - 77) // run, run, n_frames=3)
    found = apply(cascade, features, shown, amplitudes[:1], np.zeros(3, np.int64), np.arange(size))
    expected = cascade.apply_with_numpy(inputs_with_numpy(features, shown, amplitudes[0]))
    assert np.abs(expected).min() > 0
    for part, twin in zip(found, expected, strict=True):
        assert_same_bits(part, twin)


@pytest.mark.parametrize("size", [2**18, 2**20])
def test_kernel_and_numpy_agree_at_full_size(size):
    cascade = make_cascade(size)
    features, shown, amplitudes = make_inputs(size, size - 77, 1, n_frames=1)
    found = apply(cascade, features, shown, amplitudes[:1], np.zeros(1, np.int64), np.arange(size))
    expected = cascade.apply_with_numpy(inputs_with_numpy(features, shown, amplitudes[0]))
    for part, twin in zip(found, expected, strict=True):
        assert_same_bits(part, twin)


def test_the_twin_is_the_product_of_its_factors():
    size = ROW
    cascade = make_cascade(size)
    index = np.arange(size, dtype=np.uint16)
    hadamard = 1.0 - 2 * (np.bitwise_count(index[:, np.newaxis] & index) & 1)
    generator = np.random.default_rng([size, 0])
    turn_2 = (1.0 - 2 * generator.integers(0, 2, size, dtype=np.uint8)) * 1j ** generator.integers(0, 2, ROW, np.uint8)
    turn_3, turn_4 = (1j ** generator.integers(0, 4, size, dtype=np.uint8) for _ in range(2))
    gains = generator.integers(0, 2**15, size)
    order = swap_digits(np.arange(size))
    inputs = np.random.default_rng(5).integers(-15, 16, (2, size))
    field = (inputs @ hadamard * turn_2) @ hadamard
    field = ((field * (gains * turn_3)[order] * 2.0**-40) @ hadamard * turn_4) @ hadamard
    real, imag = cascade.apply_with_numpy(inputs)
    scale = np.sqrt(np.mean(np.abs(field) ** 2))
    np.testing.assert_allclose(real + 1j * imag, field[:, order], rtol=0, atol=5e-6 * scale)
    row = cascade.row(1234)
    np.testing.assert_allclose(inputs @ row, field[:, order[1234]], rtol=0, atol=5e-6 * scale)


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_bytes_do_not_depend_on_threads_or_batches(n_threads):
    size = 2 * ROW
    cascade = make_cascade(size)
    features, shown, amplitudes = make_inputs(size, 500, 16, n_frames=7)
    versions = np.array([0, 0, 1, 1, 0, 1, 0])
    positions = np.arange(size)
    expected = apply(cascade, features, shown, amplitudes, versions, positions, n_threads=1)
    limit = numba.get_num_threads()
    numba.set_num_threads(min(n_threads, limit))
    try:
        whole = apply(cascade, features, shown, amplitudes, versions, positions, n_threads)
        singly = [
            apply(cascade, features[i : i + 1], shown, amplitudes, versions[i : i + 1], positions, n_threads)
            for i in range(7)
        ]
    finally:
        numba.set_num_threads(limit)
    for part in range(2):
        assert_same_bits(whole[part], expected[part])
        assert_same_bits(np.concatenate([frame[part] for frame in singly]), expected[part])


def test_sums_stay_in_range_with_all_inputs_as_large_as_they_may_be():
    size = ROW
    cascade = make_cascade(size)
    corner = walsh_hadamard(np.eye(size, dtype=np.int64)[[0, 1, 2047, 4095]], descending=False)
    for signs in corner:
        for amplitude in (LARGEST_INPUT, -LARGEST_INPUT):
            inputs = (amplitude * signs).astype(np.int8)[np.newaxis]
            all_on = np.full(size, STUCK_ON, np.int32)
            nothing = np.zeros((1, 1), np.uint8)
            found = apply(cascade, nothing, all_on, inputs, np.zeros(1, np.int64), np.arange(size))
            for part, twin in zip(found, cascade.apply_with_numpy(inputs.astype(np.int64)), strict=True):
                assert_same_bits(part, twin)


POSITIONS = {
    "one": np.array([4095]),
    "window": np.concatenate([np.arange(start, start + 100) for start in range(1000, 8000, 777)]),
    "scattered": np.random.default_rng(0).permutation(2 * ROW)[:501],
    "twice": np.array([5, 6, 7, 6, 5, 6, 7, 511, 512]),
    "backwards": np.arange(2 * ROW)[::-1],
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_any_outputs_can_be_read_out(positions):
    size = 2 * ROW
    cascade = make_cascade(size)
    features, shown, amplitudes = make_inputs(size, 100, 80, n_frames=2)
    versions = np.zeros(2, np.int64)
    whole = apply(cascade, features, shown, amplitudes, versions, np.arange(size))
    some = apply(cascade, features, shown, amplitudes, versions, positions)
    for part, complete in zip(some, whole, strict=True):
        assert_same_bits(part, complete[:, positions])


def test_a_readout_leaves_other_places_alone():
    size = ROW
    out = tuple(np.full((1, 10), -1.0, np.float32) for _ in range(2))
    readout = Readout.of(np.array([100, 101]), np.array([7, 3]), size)
    with numba_lock:
        make_cascade(size).apply(
            np.zeros((1, 1), np.uint8),
            Source.everything(size),
            np.ones((1, size), np.int8),
            np.zeros(1, np.int64),
            readout,
            out,
            Scratch.make(size, 1),
        )
    for part in out:
        assert (np.flatnonzero(part[0] != -1) == [3, 7]).all()


def test_pieces_of_a_source_are_few_and_say_what_was_given():
    size = 2 * ROW
    shown = np.repeat(np.arange(800), 10).astype(np.int32)
    assert len(Source.of(shown, size).pieces) == 4  # the feature across the end of the first row is two runs of 6 and 4
    shown[5000] = STUCK_ON
    source = Source.of(shown, size)
    found = np.full(size, UNUSED_MIRROR)
    for row, (first, last) in enumerate(zip(source.bounds[:-1], source.bounds[1:], strict=True)):
        for start, length, count, feature in source.pieces[first:last]:
            features = (
                np.repeat(feature + np.arange(count), length) if feature >= 0 else np.full(length * count, feature)
            )
            found[row * ROW + start : row * ROW + start + length * count] = features
    np.testing.assert_array_equal(found[: len(shown)], shown)


def test_aligned_arrays_start_at_cache_lines():
    for shape in ((3,), (5, 7)):
        array = aligned_empty(shape, np.float32)
        assert array.shape == shape
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0


def test_scratch_says_how_much_it_takes():
    scratch = Scratch.make(2**16, 3)
    assert Scratch.n_bytes(2**16, 3) == scratch.shorts.nbytes + scratch.work.nbytes < 3 * 11 * 2**16
