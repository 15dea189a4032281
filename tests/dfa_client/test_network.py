"""The network against finite differences, the optimiser against its published formulas."""

import math
import tracemalloc

import numpy as np
import pytest

from dfa_client import Adam, BackPropagation, Network, cosine_rate
from dfa_client.network import softmax_error

SIZES = (6, 5, 4, 3)


@pytest.fixture
def network():
    network = Network(SIZES, np.random.default_rng(1))
    network.weights[-1][:] = np.random.default_rng(2).standard_normal((4, 3))  # it starts at 0
    for bias in network.biases:
        bias[:] = 0.1
    return network


def mean_loss(network, images, labels):
    """The loss in double precision, written apart from the network."""
    h = images.astype(np.float64)
    for number, (weights, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        h = h @ weights.astype(np.float64) + bias
        if number < len(network.weights) - 1:
            h = np.tanh(h)
    p = np.exp(h) / np.exp(h).sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean()


def test_back_propagation_is_the_derivative_of_the_loss(network):
    generator = np.random.default_rng(3)
    images = generator.standard_normal((8, 6), dtype=np.float32)
    labels = generator.integers(0, 3, 8)
    layers = network.forward(images)
    loss, error = softmax_error(layers[-1], labels)
    assert loss / 8 == pytest.approx(mean_loss(network, images, labels), rel=1e-5)
    gradient = np.empty_like(network.parameters)
    network.gradient(layers, [*BackPropagation().deltas(network, layers, error), error], gradient)
    step = np.float32(1e-3)
    for place in range(network.parameters.size):
        before = network.parameters[place]
        network.parameters[place] = before + step
        above = mean_loss(network, images, labels)
        network.parameters[place] = before - step
        below = mean_loss(network, images, labels)
        network.parameters[place] = before
        assert gradient[place] == pytest.approx((above - below) / (2 * step), abs=2e-4)


def test_a_delta_for_the_last_layer_alone_leaves_the_other_gradients_as_they_are(network):
    layers = network.forward(np.ones((2, 6), dtype=np.float32))
    _, error = softmax_error(layers[-1], np.array([0, 1]))
    kept = error.copy()
    gradient = np.full_like(network.parameters, 7)
    network.gradient(layers, [error], gradient)
    assert (gradient[: network.output_start] == 7).all()
    assert (gradient[network.output_start :] != 7).all()
    np.testing.assert_array_equal(error, kept)


def test_parameters_are_one_vector_that_the_layers_view(network):
    network.parameters[:] = np.arange(network.parameters.size)
    assert network.weights[0][0, 0] == 0
    assert network.biases[0][0] == 30
    assert network.weights[1][0, 0] == 35
    assert network.output_start == 6 * 5 + 5 + 5 * 4 + 4
    assert network.weights[2][0, 0] == network.output_start


def test_every_class_is_equally_likely_at_first():
    network = Network(SIZES, np.random.default_rng(0))
    loss, error = softmax_error(network.forward(np.ones((1, 6), dtype=np.float32))[-1], np.array([2]))
    assert loss == pytest.approx(math.log(3))
    np.testing.assert_allclose(error, [[1 / 3, 1 / 3, -2 / 3]], rtol=1e-6)


def test_the_loss_of_extreme_logits_is_finite():
    logits = np.array([[1e30, -1e30, 0], [-1e4, 1e4, 1e4]], dtype=np.float32)
    loss, error = softmax_error(logits, np.array([0, 2]))
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(error, [[0, 0, 0], [0, 0.5, -0.5]], atol=1e-6)


def test_accuracy_counts_over_all_batches(network):
    images = np.random.default_rng(4).standard_normal((2345, 6), dtype=np.float32)
    labels = network.forward(images)[-1].argmax(axis=1)
    assert network.accuracy(images, labels) == 1
    labels[:469] += 1
    assert network.accuracy(images, labels % 3) == pytest.approx(1 - 469 / 2345)


def test_adam_follows_its_formulas():
    """Algorithm 1 of the paper, in double precision, over a vector of several pieces."""
    generator = np.random.default_rng(5)
    n = 40_000
    parameters = generator.standard_normal(n).astype(np.float32)
    expected, m, v = parameters.astype(np.float64), np.zeros(n), np.zeros(n)
    adam = Adam(n)
    for t in range(1, 6):
        gradient = (generator.standard_normal(n) * 10.0 ** generator.integers(-4, 3, n)).astype(np.float32)
        adam.step(parameters, gradient, 0.01)
        g = gradient.astype(np.float64)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        expected -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(parameters, expected, atol=2e-6)
    assert adam.n_steps == 5


def test_adam_leaves_what_lies_before_its_start():
    parameters = np.ones(100, dtype=np.float32)
    Adam(100).step(parameters, np.ones(100, dtype=np.float32), 0.1, start=60)
    assert (parameters[:60] == 1).all()
    np.testing.assert_allclose(parameters[60:], 0.9, rtol=1e-5)


def test_adam_allocates_nothing_that_grows_with_the_network():
    n = 1_000_000
    parameters, gradient, adam = np.ones(n, np.float32), np.ones(n, np.float32), Adam(n)
    adam.step(parameters, gradient, 0.1)
    traced_before = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        adam.step(parameters, gradient, 0.1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not traced_before:
            tracemalloc.stop()
    assert peak - before < 20_000


def test_the_learning_rate_falls_along_half_a_cosine():
    rates = [cosine_rate(0.1, step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0, abs=1e-15)
    assert rates == sorted(rates, reverse=True)
