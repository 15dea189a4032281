r"""Where the hidden layers' error signals come from: one small interface, five sources.

Back-propagation carries the error of the output back through the transposed weights of every later layer. Direct
feedback alignment (Nøkland, arXiv:1609.01596) sends it through one fixed random matrix `B` straight to each hidden
layer instead:

    delta_l = (e B_l) * f'(a_l),        e = p - y,

with `B_l` the slice of `B` that belongs to layer `l`, so that one projection serves the whole network. An optical
processing unit shows only patterns of 0 and 1, two of which make a pattern of -1, 0 and 1: there the error is
quantised first, and the light multiplies it by a matrix that nobody has to know.

=========  ===================================  ========================
name       error                                matrix
=========  ===================================  ========================
bp         full precision                       the network's own weights
shallow    none: the output layer learns alone
dfa        full precision                       digital, Gaussian
ternary    -1, 0, 1                             digital, Gaussian
optical    -1, 0, 1                             the scattering medium of a device
=========  ===================================  ========================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

import opu
from opu.errors import BusyError, ClosedError, LinkError, OpuError, UnreachableError, VersionMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfa_client.network import Network
    from opu.device import Device
    from opu.linear import LinearMap, LinearProjector

__all__ = [
    "METHODS",
    "BackPropagation",
    "DigitalFeedback",
    "Feedback",
    "OpticalFeedback",
    "Shallow",
    "make_feedback",
    "ternarise",
]

METHODS = ("bp", "shallow", "dfa", "ternary", "optical")

EXPECTED_ONES = 2.0
_RETRY_S = 0.5
_PASSING = (LinkError, BusyError, ClosedError)  # a server that stops, is away, or comes back without our session

_logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
Arrays = list["NDArray[np.float32]"]


class Feedback(Protocol):
    """A source of error signals for the hidden layers."""

    def deltas(self, network: Network, layers: Arrays, error: NDArray[np.float32]) -> Arrays:
        """Return the derivative of each sample's loss by what enters each hidden layer's tanh, or what stands for it.

        Parameters
        ----------
        network : Network
            The network that learns.
        layers : list of ndarray of float32, shape (batch, width)
            What `Network.forward` returned.
        error : ndarray of float32, shape (batch, n_classes)
            `p - y` of each sample. It must not be changed.

        Returns
        -------
        list of ndarray of float32, shape (batch, width)
            One for each hidden layer, or none at all: then the hidden layers do not learn.
        """
        ...


class BackPropagation:
    """The true gradient."""

    def deltas(self, network: Network, layers: Arrays, error: NDArray[np.float32]) -> Arrays:
        """Carry the error back through the weights; see `Feedback.deltas`."""
        found: Arrays = []
        delta = error
        for weights, activation in zip(reversed(network.weights[1:]), reversed(layers[1:-1]), strict=True):
            delta = (delta @ weights.T) * tanh_slope(activation)
            found.insert(0, delta)
        return found


class Shallow:
    """No signal: only the output layer learns. What a method must beat to be worth its light."""

    def deltas(self, network: Network, layers: Arrays, error: NDArray[np.float32]) -> Arrays:  # noqa: ARG002
        """Return no signal; see `Feedback.deltas`."""
        return []


class DigitalFeedback:
    """Direct feedback alignment with a matrix in memory.

    Parameters
    ----------
    n_classes : int
        The width of the error.
    hidden : tuple of int
        The widths of the hidden layers.
    generator : numpy.random.Generator
        Draws the matrix: independent Gaussians of zero mean and unit variance, as those of a scattering medium.
    threshold : float or None
        Where the error is quantised, see `ternarise`; None keeps its full precision.
    """

    def __init__(
        self, n_classes: int, hidden: tuple[int, ...], generator: np.random.Generator, threshold: float | None
    ) -> None:
        self.matrix = generator.standard_normal((n_classes, sum(hidden)), dtype=np.float32)
        self.threshold = threshold

    def deltas(self, network: Network, layers: Arrays, error: NDArray[np.float32]) -> Arrays:  # noqa: ARG002
        """Send the error through the matrix; see `Feedback.deltas`."""
        sent = error if self.threshold is None else ternarise(error, self.threshold).astype(np.float32)
        return share_out(sent @ self.matrix, layers)


def ternarise(error: NDArray[np.float32], threshold: float) -> NDArray[np.int8]:
    """Quantise an error to its sign where its size exceeds a threshold, and to 0 elsewhere.

    Parameters
    ----------
    error : ndarray of float32
        `p - y` of each sample: values from -1 to 1, whatever the size of the batch.
    threshold : float
        From 0 to below 1.

    Returns
    -------
    ndarray of int8
        Values -1, 0 and 1.

    Examples
    --------
    >>> ternarise(np.array([[-0.7, 0.05, 0.3]], dtype=np.float32), 0.1)
    array([[-1,  0,  1]], dtype=int8)
    """
    limit = np.float32(threshold)
    return (error > limit).astype(np.int8) - (error < -limit).astype(np.int8)


def tanh_slope(activation: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the derivative of tanh where its value is `activation`."""
    slope = activation * activation
    np.subtract(np.float32(1), slope, out=slope)
    return slope


def share_out(projection: NDArray[np.float32], layers: Arrays) -> Arrays:
    """Give each hidden layer its slice of a projection, as an error signal.

    The projection is divided by sqrt(n_classes), which makes the signal about as large as the error itself. Adam
    divides by the size of the gradient, so this scale matters only where somebody looks at the numbers.
    """
    hidden = layers[1:-1]
    scale = np.float32(1 / np.sqrt(layers[-1].shape[1]))
    bounds = np.cumsum([activation.shape[1] for activation in hidden])[:-1]
    found: Arrays = []
    for part, activation in zip(np.split(projection, bounds, axis=1), hidden, strict=True):
        slope = tanh_slope(activation)
        slope *= part
        slope *= scale
        found.append(slope)
    return found


@dataclass
class DeviceUse:
    """What was used of a device.

    Parameters
    ----------
    frames : int
        Frames whose measurement entered the training.
    device_us : float
        Device time that was booked for them, in microseconds.
    """

    frames: int = 0
    device_us: float = 0.0


class OpticalFeedback:
    """Direct feedback alignment through the light of a device.

    Every error is quantised and measured anew, with four frames a sample whatever its values, so the frame numbers
    depend on how many samples went before and on nothing else. When the link fails, the device is opened again and
    the same frame numbers are measured again: on a device with repeatable noise the training ends as if nothing
    had happened.

    Parameters
    ----------
    uri : str or None
        The device's address; None is the default of `opu.open`.
    n_classes : int
        The width of the error.
    hidden : tuple of int
        The widths of the hidden layers.
    threshold : float
        See `ternarise`.
    noise_key : int
        Names the noise of the frames; give every training its own.
    wait_s : float
        How long to wait for a device that went away, in seconds.
    linear_map : LinearMap, optional
        A projection fitted earlier, of a training that is resumed; by default one is fitted.
    first_frame_index : int, optional
        The number of the next frame, with `linear_map`.
    notify : callable
        Is told, in one line, when the link fails and when it is back; by default the log is.

    Attributes
    ----------
    linear_map : LinearMap
        The projection in use.
    next_frame_index : int
        The number that the next frame gets.
    session_id : str
        The session of the latest frames; empty before the first.

    Raises
    ------
    UnreachableError
        Nobody answers at the address, at once; or still nobody, `wait_s` after the link failed.
    MediumChangedError
        The device has another medium than the one of `linear_map`.
    """

    def __init__(
        self,
        uri: str | None,
        n_classes: int,
        hidden: tuple[int, ...],
        threshold: float,
        *,
        noise_key: int,
        wait_s: float = 60.0,
        linear_map: LinearMap | None = None,
        first_frame_index: int | None = None,
        notify: Callable[[str], None] = _logger.warning,
    ) -> None:
        self._use = DeviceUse()
        self.session_id = ""
        self._shape = (n_classes, sum(hidden))
        self._threshold = threshold
        self._noise_key = noise_key
        self._wait_s = wait_s
        self._notify = notify
        self._projector: LinearProjector | None = None
        self._device: Device | None = opu.open(uri)
        self.uri = self._device.uri
        try:
            self.linear_map = linear_map or self._patiently(self._fit)
            self.next_frame_index = self.linear_map.n_frames if first_frame_index is None else first_frame_index
            self._patiently(self._open_projector)
        except BaseException:
            self.close()
            raise

    def deltas(self, network: Network, layers: Arrays, error: NDArray[np.float32]) -> Arrays:  # noqa: ARG002
        """Send the quantised error through the light; see `Feedback.deltas`."""
        sent = ternarise(error, self._threshold)
        answer = self._patiently(lambda: self._open_projector().project(sent, ternary=True))
        provenance = answer.projection.provenance
        self.next_frame_index = provenance.first_frame_index + provenance.n_frames
        self._use.frames += provenance.n_frames
        self._use.device_us += provenance.device_us
        self.session_id = provenance.session_id
        return share_out(answer.output, layers)

    def take_use(self) -> DeviceUse:
        """Return what was used of the device since the last call; fitting the map is not in it."""
        use, self._use = self._use, DeviceUse()
        return use

    def close(self) -> None:
        """Close session and device, whatever state the link is in."""
        opened = (self._projector, self._device)
        self._projector = self._device = None
        for part in opened:
            if part is not None:
                with suppress(OpuError):
                    part.close()

    def _open_device(self) -> Device:
        if self._device is None:
            self._device = opu.open(self.uri)
        return self._device

    def _fit(self) -> LinearMap:
        return opu.fit_linear_map(
            self._open_device(), *self._shape, expected_ones=EXPECTED_ONES, noise_key=self._noise_key
        )

    def _open_projector(self) -> LinearProjector:
        if self._projector is None:
            self._projector = opu.LinearProjector(
                self._open_device(), self.linear_map, first_frame_index=self.next_frame_index
            )
        return self._projector

    def _patiently(self, action: Callable[[], ResultT]) -> ResultT:
        """Do something with the device; when the link fails, open it anew and do it again until `wait_s` are over."""
        try:
            return action()
        except VersionMismatchError:
            raise
        except _PASSING as error:
            self._notify(
                f"The link to {self.uri} failed: {error.problem} Waiting up to {self._wait_s:g} s for it. "
                "Start the server again at this address, or stop with Ctrl-C."
            )
        end = time.monotonic() + self._wait_s
        while True:
            self.close()
            time.sleep(min(_RETRY_S, max(0.0, end - time.monotonic())))
            try:
                result = action()
            except VersionMismatchError:
                raise
            except _PASSING as error:
                if time.monotonic() >= end:
                    raise UnreachableError(
                        f"{self.uri} did not come back within {self._wait_s:g} s: {error.problem}",
                        "Start the server, then train again; with --checkpoint FILE --resume nothing is lost.",
                    ) from error
            else:
                self._notify(f"The link to {self.uri} is back; the interrupted frames have been measured again.")
                return result


def make_feedback(
    method: str, n_classes: int, hidden: tuple[int, ...], threshold: float, generator: np.random.Generator
) -> Feedback:
    """Return one of the sources that need no device.

    Parameters
    ----------
    method : str
        `bp`, `shallow`, `dfa` or `ternary`.
    n_classes : int
        The width of the error.
    hidden : tuple of int
        The widths of the hidden layers.
    threshold : float
        For `ternary`, see `ternarise`.
    generator : numpy.random.Generator
        Draws the matrix.
    """
    if method == "bp":
        return BackPropagation()
    if method == "shallow":
        return Shallow()
    return DigitalFeedback(n_classes, hidden, generator, threshold if method == "ternary" else None)
