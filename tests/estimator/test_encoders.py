"""Encoders: bits, planes and the bounds of what they lose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opu.encoders import BitPlaneEncoder, ThresholdEncoder
from opu.errors import ConfigError, InputError, PatternDtypeError, PatternShapeError, PatternValueError

NUMBERS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-1e300, 1e300, allow_subnormal=True),
)


@given(X=NUMBERS, n_bits=st.integers(1, 24))
def test_bit_planes_lose_at_most_half_a_step(X, n_bits):
    encoder = BitPlaneEncoder(n_bits).fit(X)
    planes = encoder.transform(X)
    assert planes.shape == (n_bits, *X.shape)
    assert planes.dtype == np.int8
    assert set(np.unique(planes)) <= {-1, 0, 1}
    assert (planes.min() < 0) <= encoder.signed_ == bool((X < 0).any())
    assert (np.abs(X - encoder.decode(planes)) <= encoder.step_ / 2 * (1 + 1e-6)).all()
    assert encoder.step_ == max((np.abs(X).max() or 1.0) / (2**n_bits - 1), np.finfo(np.float64).tiny)


@given(X=NUMBERS.map(lambda X: X / 1e300), n_bits=st.integers(1, 16))
def test_a_linear_map_of_the_planes_is_the_linear_map_of_the_encoded_numbers(X, n_bits):
    encoder = BitPlaneEncoder(n_bits).fit(X)
    planes = encoder.transform(X)
    W = np.random.default_rng(0).normal(size=(X.shape[1], 3))
    np.testing.assert_allclose(encoder.decode(planes @ W), encoder.decode(planes) @ W, atol=1e-12)


def test_encoded_numbers_are_exact_where_the_step_divides_them():
    X = np.arange(-255, 256).reshape(1, -1)
    encoder = BitPlaneEncoder(8).fit(X)
    assert encoder.step_ == 1
    np.testing.assert_array_equal(encoder.decode(encoder.transform(X)), X)


def test_decoding_keeps_float32():
    encoder = BitPlaneEncoder(2).fit([[3.0]])
    decoded = encoder.decode(np.float32([[[1.5]], [[0.25]]]))
    assert decoded.dtype == np.float32
    assert decoded.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("fitted", "value", "decoded", "bounds"),
    [([[0.0, 3.0]], [[-1.0, 5.0]], [[0.0, 3.0]], "0 to 3"), ([[-3.0, 1.0]], [[-4.0, 3.5]], [[-3.0, 3.0]], "-3 to 3")],
)
def test_values_beyond_the_fitted_range_are_clipped_and_counted(fitted, value, decoded, bounds):
    encoder = BitPlaneEncoder(2).fit(fitted)
    with pytest.warns(UserWarning, match=f"2 of 2 values lie beyond the fitted range, {bounds}"):
        planes = encoder.transform(value)
    np.testing.assert_array_equal(encoder.decode(planes), decoded)


def test_automatic_threshold_of_binary_data_is_a_half():
    X = np.array([[0, 1, 0], [0, 1, 1]])
    encoder = ThresholdEncoder().fit(X)
    np.testing.assert_array_equal(encoder.threshold_, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(encoder.transform(X), X.astype(bool))
    np.testing.assert_array_equal(ThresholdEncoder().fit_transform(X.astype(bool)), X.astype(bool))


@given(X=NUMBERS.filter(lambda X: not np.isin(X, (0, 1)).all()))
def test_automatic_threshold_of_other_data_is_the_median(X):
    encoder = ThresholdEncoder().fit(X)
    np.testing.assert_array_equal(encoder.threshold_, np.median(X, axis=0))
    bits = encoder.transform(X)
    assert bits.dtype == np.bool_
    np.testing.assert_array_equal(bits, np.median(X, axis=0) < X)
    assert (bits.mean(axis=0) <= 0.5).all()


def test_threshold_by_number():
    bits = ThresholdEncoder(2).fit([[9.0]]).transform([[2.0], [2.5]])
    assert bits.tolist() == [[False], [True]]


@pytest.mark.parametrize("encoder", [ThresholdEncoder, BitPlaneEncoder])
@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        ([[0.5, np.nan]], PatternValueError, r"X\[0, 1\] is nan"),
        ([[np.inf, 0.5]], PatternValueError, r"X\[0, 0\] is inf"),
        ([0.5], PatternShapeError, r"shape \(1,\)"),
        (np.empty((0, 2)), PatternShapeError, r"shape \(0, 2\)"),
        ([["a"]], PatternDtypeError, "<U1"),
        ([[1j]], PatternDtypeError, "complex128"),
    ],
)
def test_bad_samples_are_refused_by_fit_and_transform(encoder, X, error, words):
    with pytest.raises(error, match=words):
        encoder().fit(X)
    fitted = encoder().fit([[1.0, 2.0]])
    with pytest.raises(error, match=words):
        fitted.transform(X)


@pytest.mark.parametrize("encoder", [ThresholdEncoder(), BitPlaneEncoder()])
def test_an_encoder_must_be_fitted_and_keeps_its_width(encoder):
    with pytest.raises(InputError, match="not fitted"):
        encoder.transform([[1.0]])
    fitted = encoder.fit([[1.0, 2.0]])
    with pytest.raises(PatternShapeError, match="3 features"):
        fitted.transform([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("threshold", ["median", np.nan, None, True, [0.5]])
def test_bad_thresholds_are_refused(threshold):
    with pytest.raises(ConfigError, match="threshold is"):
        ThresholdEncoder(threshold).fit([[1.0]])


@pytest.mark.parametrize("n_bits", [0, 25, 8.0, True, "8"])
def test_bad_numbers_of_bits_are_refused(n_bits):
    with pytest.raises(ConfigError, match="n_bits is"):
        BitPlaneEncoder(n_bits).fit([[1.0]])


def test_decoding_needs_a_fit_and_every_plane():
    with pytest.raises(InputError, match="not fitted"):
        BitPlaneEncoder(2).decode(np.zeros((2, 1, 1)))
    with pytest.raises(PatternShapeError, match=r"shape \(3, 1, 1\)"):
        BitPlaneEncoder(2).fit([[1.0]]).decode(np.zeros((3, 1, 1)))
