"""The fast transform is the product with the matrix, in either order of its stages."""

import numpy as np
import pytest

from opu.hadamard import walsh_hadamard


@pytest.mark.parametrize("order", [1, 2, 64])
@pytest.mark.parametrize("descending", [False, True])
def test_it_is_the_product_with_the_matrix_of_parities(order, descending):
    index = np.arange(order)
    matrix = 1 - 2 * (np.bitwise_count(index[:, np.newaxis] & index) & 1).astype(np.int64)
    identity = np.eye(order, dtype=np.int64)
    np.testing.assert_array_equal(walsh_hadamard(identity, descending=descending), matrix)
    np.testing.assert_array_equal(identity, np.eye(order))


def test_the_order_of_stages_shows_in_the_last_bits():
    """Otherwise equal bits would say nothing about the order of additions."""
    values = np.random.default_rng(0).standard_normal((1, 4096)).astype(np.float32)
    up, down = (walsh_hadamard(values, descending=descending) for descending in (False, True))
    assert 0 < np.abs(up - down).max() < 1e-4
