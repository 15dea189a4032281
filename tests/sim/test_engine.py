"""The engine adds rows exactly, whatever the batch, the size and the range of the entries."""

import dataclasses

import numpy as np
import pytest

from opu.sim.engine import OUTPUTS, IntegerMatrix, block_shape
from opu.sim.light import light_electrons_with_numpy, off_field, sight
from opu.sim.media.base import Fields


def matrix_of(real, imag):
    n_features, n_outputs = real.shape
    blocks = np.zeros(block_shape(n_features, n_outputs), dtype=np.int16)
    for output in range(n_outputs):
        block, column = divmod(output, OUTPUTS)
        blocks[block, :n_features, column] = real[:, output]
        blocks[block, :n_features, OUTPUTS + column] = imag[:, output]
    return IntegerMatrix(blocks, n_features, n_outputs)


@pytest.mark.parametrize("batch", [1, 20, 21, 700])
@pytest.mark.parametrize(("n_features", "n_outputs"), [(1, 1), (20, 64), (21, 65), (333, 130)])
def test_products_are_exact(batch, n_features, n_outputs):
    generator = np.random.default_rng(n_features)
    real, imag = generator.integers(-300, 300, (2, n_features, n_outputs))
    features = generator.integers(0, 2, (batch, n_features), dtype=np.uint8)
    matrix = matrix_of(real, imag)
    np.testing.assert_array_equal(matrix.real, real)
    np.testing.assert_array_equal(matrix.imag, imag)
    found_real, found_imag = matrix.multiply(features)
    assert found_real.dtype == np.float32
    np.testing.assert_array_equal(found_real, features.astype(np.int64) @ real)
    np.testing.assert_array_equal(found_imag, features.astype(np.int64) @ imag)


@pytest.mark.parametrize("batch", [3, 30])
def test_sums_beyond_sixteen_bits_are_exact(batch):
    # All entries of a column have one sign: the sums reach 32 times the range of a 16-bit integer.
    real = np.full((400, 70), 2621)
    imag = np.full((400, 70), -2621)
    features = np.ones((batch, 400), dtype=np.uint8)
    found_real, found_imag = matrix_of(real, imag).multiply(features)
    np.testing.assert_array_equal(found_real, np.full((batch, 70), 400 * 2621))
    np.testing.assert_array_equal(found_imag, np.full((batch, 70), -400 * 2621))


@pytest.mark.parametrize("batch", [3, 30])
@pytest.mark.parametrize("entry", [1638, 1639, 32767, -32768])
def test_steps_that_fill_sixteen_bits_alone_are_exact(entry, batch):
    real = np.full((60, 3), entry)  # 20 * 1638 = 32760 is the most that a step may reach
    features = np.ones((batch, 60), dtype=np.uint8)
    found_real, _ = matrix_of(real, np.zeros_like(real)).multiply(features)
    np.testing.assert_array_equal(found_real, np.full((batch, 3), 60 * entry))


@pytest.mark.parametrize("batch", [3, 30])
@pytest.mark.parametrize("largest", [1638, 2000, 32767])
def test_entries_of_known_range_are_added_exactly(batch, largest):
    generator = np.random.default_rng(largest)
    real, imag = generator.choice([-largest, 0, largest], (2, 240, 70))
    features = generator.integers(0, 2, (batch, 240), dtype=np.uint8)
    known = dataclasses.replace(matrix_of(real, imag), largest=largest)
    found_real, found_imag = known.multiply(features)
    np.testing.assert_array_equal(found_real, features.astype(np.int64) @ real)
    np.testing.assert_array_equal(found_imag, features.astype(np.int64) @ imag)


@pytest.mark.parametrize("batch", [3, 40, 600])
@pytest.mark.parametrize("beside", ["nothing", "a row", "a row for each frame"])
def test_photo_electrons_are_those_of_the_products(batch, beside):
    generator = np.random.default_rng(batch)
    real, imag = generator.integers(-300, 300, (2, 50, 130))
    features = generator.integers(0, 2, (batch, 50), dtype=np.uint8)
    matrix = matrix_of(real, imag)
    fields = Fields(*matrix.multiply(features), *np.ones((2, 1, 130), np.float32))
    off = 0 if beside == "nothing" else 0.02 - 0.01j
    shape = (batch if beside.endswith("frame") else 1, 130)
    arm = generator.normal(size=shape).astype(np.complex64) if off else None
    out = np.empty((batch, 130), np.float32)
    matrix.light_electrons(features, sight(off, off_field(off, fields.all_real, fields.all_imag), arm, 1e-3), out)
    np.testing.assert_array_equal(out, light_electrons_with_numpy(fields, off, arm, 1e-3))
