import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from opu.errors import PatternDtypeError, PatternShapeError, PatternValueError
from opu.patterns import PackedPatterns, as_packed, pack, unpack

BINARY = array_shapes(min_dims=2, max_dims=2, max_side=40).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


@given(BINARY)
def test_unpack_undoes_pack(patterns):
    packed = pack(patterns)
    assert packed.bits.shape == (len(patterns), -(-patterns.shape[1] // 8))
    np.testing.assert_array_equal(unpack(packed), patterns)


@given(BINARY, st.sampled_from([np.bool_, np.int8, np.uint16, np.int64, np.float32, np.float64]))
def test_every_dtype_packs_to_the_same_bits(patterns, dtype):
    np.testing.assert_array_equal(pack(patterns.astype(dtype)).bits, pack(patterns).bits)


@given(BINARY)
def test_the_layout_of_the_bits_is_the_documented_one(patterns):
    packed = pack(patterns)
    for feature in range(patterns.shape[1]):
        np.testing.assert_array_equal(packed.bits[:, feature // 8] >> (feature % 8) & 1, patterns[:, feature])
    used = patterns.sum(axis=1)
    np.testing.assert_array_equal(np.bitwise_count(packed.bits).sum(axis=1), used)


def test_the_order_of_the_array_in_memory_does_not_matter():
    patterns = np.arange(24).reshape(4, 6) % 2
    for ordered in (np.asfortranarray(patterns), np.ascontiguousarray(patterns.T).T, patterns.astype(bool).T.copy().T):
        np.testing.assert_array_equal(pack(ordered).bits, pack(patterns).bits)
        assert pack(ordered).bits.flags.c_contiguous
    assert pack(np.broadcast_to(patterns[:1], (4, 6))).bits.flags.c_contiguous
    np.testing.assert_array_equal(unpack(pack(patterns[::-1, ::2])), patterns[::-1, ::2])


def test_pack_copies():
    patterns = np.zeros((2, 8), np.uint8)
    packed = pack(patterns)
    patterns[:] = 1
    assert packed.bits.sum() == 0


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan, np.inf, 255])
def test_a_value_other_than_0_and_1_is_named_with_its_place(value):
    patterns = np.zeros((3, 4))
    patterns[1, 2] = value
    with pytest.raises(PatternValueError) as caught:
        pack(patterns)
    assert f"patterns[1, 2] is {patterns[1, 2]}" in caught.value.problem
    assert "1 of 12" in caught.value.problem


def test_a_uint8_above_1_is_refused_too():
    with pytest.raises(PatternValueError, match="is 3"):
        pack(np.full((2, 2), 3, np.uint8))


@pytest.mark.parametrize("patterns", [[["a"]], [[1j]], [[None]], np.zeros((1, 1), "M8[s]")])
def test_a_dtype_that_is_no_number_is_refused(patterns):
    with pytest.raises(PatternDtypeError, match="dtype"):
        pack(patterns)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2), (0, 4), (4, 0)])
def test_a_shape_that_is_no_batch_is_refused(shape):
    with pytest.raises(PatternShapeError) as caught:
        pack(np.zeros(shape))
    assert str(shape) in caught.value.problem


def test_what_makes_no_array_is_refused():
    with pytest.raises(PatternShapeError, match=r"make no array.*same length"):
        pack([[0, 1], [1]])


def test_packed_patterns_check_what_they_are_given():
    with pytest.raises(PatternDtypeError, match="int64"):
        PackedPatterns(np.zeros((1, 1), np.int64), 8)
    with pytest.raises(PatternDtypeError, match="list"):
        PackedPatterns([[0]], 8)
    with pytest.raises(PatternShapeError, match=r"\(1, 2\)"):
        PackedPatterns(np.zeros((1, 2), np.uint8), 8)
    with pytest.raises(PatternShapeError):
        PackedPatterns(np.zeros((0, 1), np.uint8), 8)
    with pytest.raises(PatternValueError):
        PackedPatterns(np.array([[0b10000]], np.uint8), 4)


def test_as_packed_takes_both_forms_and_copies_both():
    patterns = np.eye(3, 9, dtype=np.uint8)
    packed = pack(patterns)
    again = as_packed(packed, 9)
    np.testing.assert_array_equal(again.bits, as_packed(patterns, 9).bits)
    packed.bits[:] = 0
    np.testing.assert_array_equal(unpack(again), patterns)


def test_as_packed_names_both_widths():
    with pytest.raises(PatternShapeError, match=r"9 features.*10"):
        as_packed(np.zeros((1, 9)), 10)
