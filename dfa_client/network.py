r"""A multilayer perceptron in NumPy: tanh hidden layers, a softmax output, cross-entropy, Adam.

Array order: a batch is `(batch, width)`, rows first; weights are `(inputs, outputs)`, so a layer computes
`a = h W + b`. All numbers are float32. The parameters of all layers lie in one vector, layer by layer, which makes the
optimiser and a checkpoint one array each; weights and biases are views of it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Adam", "Network", "cosine_rate"]

_EVALUATION_BATCH = 1000


class Network:
    """A multilayer perceptron.

    Parameters
    ----------
    sizes : sequence of int
        The widths of input, hidden layers and output.
    generator : numpy.random.Generator
        Draws the weights: Gaussian with a variance of 1 / inputs; the biases are 0. The output layer starts at 0:
        every class is equally likely at first, and the alignment of direct feedback starts from no wrong direction.

    Attributes
    ----------
    parameters : ndarray of float32, shape (n_parameters,)
        Everything that is learned.
    weights : list of ndarray of float32, shape (inputs, outputs)
        Views of `parameters`, one for each layer.
    biases : list of ndarray of float32, shape (outputs,)
        Views of `parameters`, one for each layer.

    Examples
    --------
    >>> network = Network((64, 32, 10), np.random.default_rng(0))
    >>> network.parameters.size == 64 * 32 + 32 + 32 * 10 + 10
    True
    """

    def __init__(self, sizes: tuple[int, ...], generator: np.random.Generator) -> None:
        self.sizes = sizes
        self.parameters = np.zeros(count_parameters(sizes), dtype=np.float32)
        self.weights, self.biases = layer_views(self.parameters, sizes)
        for weights in self.weights[:-1]:
            weights[:] = generator.standard_normal(weights.shape, dtype=np.float32) / np.float32(
                math.sqrt(len(weights))
            )

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths of the hidden layers."""
        return self.sizes[1:-1]

    @property
    def output_start(self) -> int:
        """Where the parameters of the output layer begin."""
        return self.parameters.size - count_parameters(self.sizes[-2:])

    def forward(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Compute every layer.

        Parameters
        ----------
        images : ndarray of float32, shape (batch, inputs)
            The input.

        Returns
        -------
        list of ndarray of float32, shape (batch, width)
            The input, the hidden layers after their tanh, and the logits.
        """
        layers = [images]
        for weights, bias in zip(self.weights, self.biases, strict=True):
            layers.append(layers[-1] @ weights)
            layers[-1] += bias
            if len(layers) < len(self.sizes):
                np.tanh(layers[-1], out=layers[-1])
        return layers

    def gradient(
        self, layers: list[NDArray[np.float32]], deltas: list[NDArray[np.float32]], out: NDArray[np.float32]
    ) -> None:
        """Compute the gradient of the mean loss from the error signal of each layer.

        Parameters
        ----------
        layers : list of ndarray of float32, shape (batch, width)
            What `forward` returned.
        deltas : list of ndarray of float32, shape (batch, outputs)
            The derivative of each sample's loss by what enters the nonlinearity, for the *last* layers of the
            network: one alone trains the output layer only.
        out : ndarray of float32, shape (n_parameters,)
            Where the gradient goes; the part of layers without a delta is left as it is.
        """
        weights, biases = layer_views(out, self.sizes)
        for delta, inputs, into, bias in zip(
            reversed(deltas), reversed(layers[:-1]), reversed(weights), reversed(biases), strict=False
        ):
            share = delta * np.float32(1 / len(delta))
            np.matmul(inputs.T, share, out=into)
            np.sum(share, axis=0, out=bias)

    def accuracy(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Return the fraction of images whose most likely class is their label."""
        correct = 0
        for start in range(0, len(images), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            correct += count_correct(self.forward(images[part])[-1], labels[part])
        return correct / len(images)


def count_parameters(sizes: tuple[int, ...]) -> int:
    """Return how many weights and biases a network has."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


def layer_views(
    vector: NDArray[np.float32], sizes: tuple[int, ...]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return the weights and the biases of each layer as views of a parameter vector."""
    weights, biases, start = [], [], 0
    for inputs, outputs in pairwise(sizes):
        middle = start + inputs * outputs
        weights.append(vector[start:middle].reshape(inputs, outputs))
        biases.append(vector[middle : middle + outputs])
        start = middle + outputs
    return weights, biases


def count_correct(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    """Return how many rows of the logits are largest at their label."""
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


def softmax_error(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
    """Return the summed cross-entropy of a batch and the error `p - y` of each sample.

    Parameters
    ----------
    logits : ndarray of float32, shape (batch, n_classes)
        The output of the network.
    labels : ndarray of int64, shape (batch,)
        The true classes.

    Returns
    -------
    tuple of (float, ndarray of float32, shape (batch, n_classes))
        The sum of `-log p[label]`, and its derivative by the logits.
    """
    rows = np.arange(len(labels))
    error = logits - logits.max(axis=1, keepdims=True)
    loss = -float(error[rows, labels].sum(dtype=np.float64))
    np.exp(error, out=error)
    total = error.sum(axis=1, keepdims=True)
    loss += float(np.log(total).sum(dtype=np.float64))
    error /= total
    error[rows, labels] -= 1
    return loss, error


def cosine_rate(learning_rate: float, step: int, n_steps: int) -> float:
    """Return the learning rate of a step: from `learning_rate` at step 0 down to 0 after the last, half a cosine."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / n_steps))


class Adam:
    """The optimiser Adam (Kingma and Ba, arXiv:1412.6980), in place and without allocation.

    Parameters
    ----------
    n_parameters : int
        The length of the parameter vector.

    Attributes
    ----------
    first_moment, second_moment : ndarray of float32, shape (n_parameters,)
        Running means of the gradient and of its square.
    n_steps : int
        How many steps have been made.

    Notes
    -----
    The vector is worked on in pieces that stay in the processor's cache through all the operations of a step.
    """

    BETA1 = 0.9
    BETA2 = 0.999
    EPSILON = 1e-8
    _PIECE = 16384

    def __init__(self, n_parameters: int) -> None:
        self.first_moment = np.zeros(n_parameters, dtype=np.float32)
        self.second_moment = np.zeros(n_parameters, dtype=np.float32)
        self.n_steps = 0
        self._scratch = np.empty(self._PIECE, dtype=np.float32)

    def step(
        self, parameters: NDArray[np.float32], gradient: NDArray[np.float32], learning_rate: float, start: int = 0
    ) -> None:
        """Change the parameters from `start` on.

        Parameters
        ----------
        parameters, gradient : ndarray of float32, shape (n_parameters,)
            What is learned, changed in place, and the gradient of the loss.
        learning_rate : float
            The learning rate of this step.
        start : int
            Parameters before this one are left alone.
        """
        self.n_steps += 1
        unbias = math.sqrt(1 - self.BETA2**self.n_steps)
        rate = np.float32(learning_rate * unbias / (1 - self.BETA1**self.n_steps))
        epsilon = np.float32(self.EPSILON * unbias)
        for first in range(start, len(parameters), self._PIECE):
            piece = slice(first, first + self._PIECE)
            part, mean, square = gradient[piece], self.first_moment[piece], self.second_moment[piece]
            scratch = self._scratch[: len(part)]
            mean *= np.float32(self.BETA1)
            np.multiply(part, np.float32(1 - self.BETA1), out=scratch)
            mean += scratch
            square *= np.float32(self.BETA2)
            np.multiply(part, part, out=scratch)
            scratch *= np.float32(1 - self.BETA2)
            square += scratch
            np.sqrt(square, out=scratch)
            scratch += epsilon
            np.divide(mean, scratch, out=scratch)
            scratch *= rate
            parameters[piece] -= scratch
