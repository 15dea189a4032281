r"""From the field at independent points to the mean intensity of camera pixels: grain, pixel area, polarisation.

*Grain.* The field behind a scattering medium, seen through a circular pupil of diameter D at the distance z, is
circular complex Gaussian with the correlation::

    mu(x) = 2 J1(v) / v,    v = pi |x| / L,    L = lambda z / D

(Goodman, Speckle Phenomena in Optics, chapter on autocorrelation and power spectrum). The correlation area
`A_c = integral of |mu|^2 = (lambda z)^2 / (pi D^2 / 4) = 4 L^2 / pi` is the size of a grain.

*Pixel.* A pixel of area A averages the intensity over `r = A / A_c` grains (fill factor 1). Its contrast is::

    C^2 = 1 / A^2  double integral over the pixel of |mu(x - x')|^2 dx dx'

*Polarisation.* Light of the degree of polarisation P is the sum of two independent speckle patterns, with the shares
(1 + P) / 2 and (1 - P) / 2 of the power: the contrast is multiplied by sqrt((1 + P^2) / 2).

How it is computed: the pupil limits the field to spatial frequencies below 1 / (2 L), so white noise on a grid of
points not farther apart than L, filtered by the amplitude point spread function `2 J1(v) / v`, has the correlation mu
at any place between them; the points stand for the degrees of freedom of the light, and only they come from the medium.
The intensity is computed at Gauss-Legendre nodes and summed up over each pixel. The point spread function ends at its
second dark ring, and the pupil is taken 7 % wider to make up for that: the contrast is then within 0.6 % of the
integral above for r up to 50, and `|mu|^2` within 0.01 everywhere; what is missing is the faint outer part of the
correlation, 5 % of its area.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.errors import CapacityError, ConfigError, InputError
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["SECOND_POLARISATION", "SpeckleModel", "SpeckleSampling", "Stencil", "intensity_with_numpy"]

SECOND_POLARISATION = 2**40
"""The points of the second polarisation are those of the first, and this many more."""

SMALLEST_GRAIN_PX = 0.02
LARGEST_GRAIN_PX = 1000.0
"""Limits of the grain area, in pixel areas: tables grow with the grains, and with the number of them in a pixel."""

_SECOND_DARK_RING = 7.015586669815619
_PUPIL_SCALE = 1.07
_POINT_SPACING = 0.8
_LANES = 32
_OUTPUTS = 64
_UNROLL = 4


@dataclass(frozen=True, eq=False)
class Stencil:
    """How the intensity of a pixel follows from the points around it.

    The pattern of pixels and points repeats after `period` pixels, which are `period_points` points, in rows and in
    columns. A pixel sees a square window of points.

    Parameters
    ----------
    period, period_points : int
        Pixels and points of a period.
    first : ndarray of int64, shape (period,)
        The first point of the window of each pixel of a period, counted from the first point of the period.
    weights : ndarray of float32, shape (period * period, n_samples, width, width)
        For each pixel of a period, row by row, and each sample of the field in it: the weights of the points of the
        window. Their squares add up to 1; beyond the second dark ring they are 0.
    quadrature : ndarray of float32, shape (n_samples,)
        Weights of the samples in the mean over the pixel; they add up to 1.
    nodes : ndarray of float64, shape (sqrt(n_samples),)
        Where the samples lie along the side of the pixel, from 0 to 1.
    """

    period: int
    period_points: int
    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    quadrature: NDArray[np.float32]
    nodes: NDArray[np.float64]

    @property
    def width(self) -> int:
        """Rows and columns of a window, in points."""
        return int(self.weights.shape[-1])

    @property
    def halo(self) -> int:
        """How many points lie before the first row, or column, of the sensor."""
        return max(0, -int(self.first.min()))

    @cached_property
    def taps(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The weights other than 0: row and column in the window, shape (n_phases, n_samples, n_taps, 2), and weight.

        In the order of the window; filled up with weights of 0 to one number, a multiple of 4, for all samples.
        """
        lit = self.weights != 0
        n_taps = -(-int(lit.sum(axis=(2, 3)).max()) // _UNROLL) * _UNROLL
        places = np.zeros((*lit.shape[:2], n_taps, 2), np.int32)
        weights = np.zeros(places.shape[:-1], np.float32)
        for sample in np.ndindex(lit.shape[:2]):
            row, column = np.nonzero(lit[sample])
            places[sample][: len(row), 0] = row
            places[sample][: len(row), 1] = column
            weights[sample][: len(row)] = self.weights[sample][row, column]
        return places, weights

    def window_start(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first row (column) of points that pixels in these rows (columns) see, counted with the halo."""
        return positions // self.period * self.period_points + self.first[positions % self.period] + self.halo


def _bessel_j1(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return J1 for arguments up to 8: the mean of cos(t - v sin t) for t from 0 to pi, by 16 steps to 1e-13."""
    values = np.zeros_like(v)
    for t in np.arange(1, 16) * (np.pi / 16):  # the two ends cancel
        values += np.cos(t - v * np.sin(t))
    return values / 16


def _point_spread(distance: NDArray[np.float64], airy_length: float) -> NDArray[np.float64]:
    """Return 2 J1(v) / v up to the second dark ring, 0 beyond; distances in units of those of `airy_length`."""
    v = np.pi * distance / airy_length
    inside = v < _SECOND_DARK_RING
    near = np.maximum(np.where(inside, v, 1.0), 1e-6)
    return np.where(inside, 2 * _bessel_j1(near) / near, 0.0)


def _spacing(longest: float) -> tuple[int, int]:
    """Return pixels and points of a period, the points at most `longest` pixels apart, in small numbers."""
    most = 2 * max(1, int(np.ceil(1 / longest)))
    candidates = [(int(points * longest), points) for points in range(1, most + 1)]
    return max(candidates, key=lambda period: (period[0] / period[1], -period[1]))


@lru_cache(maxsize=8)
def _stencil(grain_area_px: float) -> Stencil:
    """Make the stencil of a grain area."""
    if grain_area_px == 0:
        one = np.ones((1, 1, 1, 1), np.float32)
        return Stencil(1, 1, np.zeros(1, np.int64), one, one.ravel(), np.full(1, 0.5))
    airy_length = np.sqrt(np.pi / 4 * grain_area_px)
    period, points = _spacing(_POINT_SPACING * airy_length)
    # The pixel spans 1 / airy_length cycles of the highest frequency of the intensity; nodes for all of them.
    nodes, quadrature = np.polynomial.legendre.leggauss(int(np.ceil(1.5 + 2 / airy_length)))
    samples = np.arange(period)[:, np.newaxis] + (nodes + 1) / 2
    stencil_length = airy_length / _PUPIL_SCALE
    reach = _SECOND_DARK_RING / np.pi * stencil_length
    first = np.ceil((samples[:, 0] - reach) * points / period - 0.5).astype(np.int64)
    last = np.floor((samples[:, -1] + reach) * points / period - 0.5).astype(np.int64)
    window = first[:, np.newaxis] + np.arange((last - first).max() + 1)
    square = ((window + 0.5) * period / points)[:, np.newaxis] - samples[..., np.newaxis]
    # Axes: row and column of the pixel, of the sample, of the point.
    distance = np.hypot(square[:, None, :, None, :, None], square[None, :, None, :, None, :])
    weights = _point_spread(distance, stencil_length)
    weights /= np.sqrt(np.sum(weights**2, axis=(4, 5), keepdims=True))
    n_samples, width = len(nodes) ** 2, window.shape[1]
    return Stencil(
        period,
        points,
        first,
        weights.reshape(period * period, n_samples, width, width).astype(np.float32),
        (np.outer(quadrature, quadrature) / 4).astype(np.float32).ravel(),
        (nodes + 1) / 2,
    )


@dataclass(frozen=True, kw_only=True)
class SpeckleModel:
    r"""The grain and the polarisation of the speckle on a camera.

    Parameters
    ----------
    grain_area_px : float
        Correlation area `A_c = (lambda z)^2 / pupil area` for a circular pupil, in pixel areas, from 0.02 to 1000;
        its inverse is the `r` of the tables. 0: every pixel is a grain of its own, fully resolved.
    polarisation : float
        Degree of polarisation P, 0 to 1: the intensity is `(1 + P) / 2 * I1 + (1 - P) / 2 * I2` of two independent
        fields, and a resolved pattern has the contrast sqrt((1 + P^2) / 2).

    Raises
    ------
    opu.errors.ConfigError
        If a number is out of range.

    Notes
    -----
    Source: J. W. Goodman, Speckle Phenomena in Optics; the formulas stand at the head of this module.
    """

    grain_area_px: float = 0.0
    polarisation: float = 1.0

    def __post_init__(self) -> None:
        if self.grain_area_px != 0 and not SMALLEST_GRAIN_PX <= self.grain_area_px <= LARGEST_GRAIN_PX:
            raise ConfigError(
                f"The area of a speckle grain is {self.grain_area_px:g} pixels.",
                f"Use {SMALLEST_GRAIN_PX:g} to {LARGEST_GRAIN_PX:g}, or 0 for independent pixels.",
            )
        if not 0 <= self.polarisation <= 1:
            raise ConfigError(f"The degree of polarisation is {self.polarisation:g}.", "Use 0 to 1.")

    @property
    def stencil(self) -> Stencil:
        """The weights of points in pixels; made once, and kept for the grain areas used last."""
        return _stencil(float(self.grain_area_px))

    @property
    def gains(self) -> NDArray[np.float32]:
        """The shares of the polarisations in the intensity: one number, 1, for polarised light, otherwise two."""
        if self.polarisation == 1:
            return np.ones(1, np.float32)
        return np.array([(1 + self.polarisation) / 2, (1 - self.polarisation) / 2], np.float32)

    def n_points(self, pixels: NDArray[np.int64], columns: int) -> int:
        """Return how many points `arrange` will ask of the medium, without holding them."""
        if self.grain_area_px == 0:
            return len(pixels) * len(self.gains)
        count = sum(int(needed.sum()) for _row, _seen, needed in _Grid(self.stencil, pixels, columns).rows())
        return count * len(self.gains)

    def arrange_bytes(self, pixels: NDArray[np.int64], columns: int) -> int:
        """Return the memory that `arrange` and then `intensity` take at the most, in bytes, without taking it.

        What `intensity` is given and what it returns are not counted.
        """
        stencil = self.stencil
        points = self.n_points(pixels, columns)
        tables = len(pixels) * (4 * stencil.width + 4 + 5 * 8)
        return 2 * 8 * points + tables + 4 * stencil.weights.nbytes + 2 * 4 * _LANES * points

    def arrange(self, pixels: NDArray[np.int64], columns: int) -> SpeckleSampling:
        """Find the points that pixels need.

        Parameters
        ----------
        pixels : ndarray of int64, shape (n_outputs,)
            Different pixels, `row * columns + column`.
        columns : int
            Columns of the sensor.

        Returns
        -------
        SpeckleSampling
            A point has its number by its place on the sensor, so that the light on a pixel does not depend on which
            others are read.

        Raises
        ------
        opu.errors.CapacityError
            If the sensor has more points than there are numbers for them.
        """
        stencil, gains = self.stencil, self.gains
        if self.grain_area_px == 0:
            points = pixels
            starts = np.arange(len(pixels), dtype=np.int32)[:, np.newaxis]
        else:
            points, starts = _Grid(stencil, pixels, columns).arrange()
        if len(points) and points.max() >= SECOND_POLARISATION:
            raise CapacityError(
                f"The speckle on the sensor has more than {SECOND_POLARISATION} points.",
                "Use a smaller sensor or larger grains.",
            )
        if len(gains) > 1:
            points = np.concatenate([points, points + SECOND_POLARISATION])
        row, column = np.divmod(pixels, columns)
        phases = (row % stencil.period * stencil.period + column % stencil.period).astype(np.int32)
        return SpeckleSampling(points, stencil, gains, phases, starts, row, column)


class _Grid:
    """The points that some pixels need, found row by row: the memory is that of the result."""

    def __init__(self, stencil: Stencil, pixels: NDArray[np.int64], columns: int) -> None:
        self.stencil = stencil
        row, column = np.divmod(pixels, columns)
        self.top, self.left = stencil.window_start(row), stencil.window_start(column)
        # The same for every region of the sensor.
        self.n_columns = int(stencil.window_start(np.arange(columns)).max()) + stencil.width

    def rows(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
        """Yield rows of points: the number, the pixels whose windows reach it, and which of its points they see."""
        width = self.stencil.width
        order = np.argsort(self.top, kind="stable")
        tops = self.top[order]
        for row in np.unique(np.unique(tops)[:, np.newaxis] + np.arange(width)):
            seen = order[np.searchsorted(tops, row - width, "right") : np.searchsorted(tops, row, "right")]
            steps = np.zeros(self.n_columns + 1, np.int64)
            starts = np.unique(self.left[seen])
            steps[starts] += 1
            steps[starts + width] -= 1
            yield int(row), seen, np.cumsum(steps)[:-1] > 0

    def arrange(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the numbers of the points, and where in them each row of each pixel's window starts."""
        starts = np.empty((len(self.top), self.stencil.width), np.int32)
        parts = [np.zeros(0, np.int64)]
        count = 0
        for row, seen, needed in self.rows():
            rank = np.cumsum(needed) - 1
            starts[seen, row - self.top[seen]] = count + rank[self.left[seen]]
            parts.append(row * self.n_columns + np.flatnonzero(needed))
            count += len(parts[-1])
        return np.concatenate(parts), starts


@dataclass(frozen=True, eq=False)
class SpeckleSampling:
    """The points that some pixels need, and how the intensity of the pixels follows from them.

    Parameters
    ----------
    points : ndarray of int64, shape (n_points,)
        Different points, independent of each other in the medium. With two polarisations the second half are those of
        the second.
    stencil : Stencil
        Weights of points in pixels.
    gains : ndarray of float32, shape (1,) or (2,)
        Shares of the polarisations in the intensity.
    phases : ndarray of int32, shape (n_outputs,)
        Which pixel of a period of the stencil each pixel is.
    starts : ndarray of int32, shape (n_outputs, width)
        Where in `points` each row of a pixel's window starts.
    rows, columns : ndarray of int64, shape (n_outputs,)
        The pixels.
    """

    points: NDArray[np.int64]
    stencil: Stencil
    gains: NDArray[np.float32]
    phases: NDArray[np.int32]
    starts: NDArray[np.int32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def is_plain(self) -> bool:
        """Whether each pixel is a point, and its intensity the squared field there."""
        return self.stencil.width == 1 and len(self.gains) == 1

    @property
    def coefficients(self) -> NDArray[np.float32]:
        """Weight of each sample of each polarisation in the intensity, shape (n_polarisations, n_samples)."""
        return np.outer(self.gains, self.stencil.quadrature).astype(np.float32)

    def sample_places(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return row and column of each sample of each pixel, in pixels, shape (n_outputs * n_samples,)."""
        rows, columns = np.meshgrid(self.stencil.nodes, self.stencil.nodes, indexing="ij")
        return (
            (self.rows[:, np.newaxis] + rows.ravel()).ravel(),
            (self.columns[:, np.newaxis] + columns.ravel()).ravel(),
        )

    def intensity(
        self, real: NDArray[np.float32], imag: NDArray[np.float32], arm: NDArray[np.complex64] | None = None
    ) -> NDArray[np.float32]:
        """Return the mean intensity of each pixel.

        Parameters
        ----------
        real, imag : ndarray of float32, shape (n_frames, n_points)
            The field at the points.
        arm : ndarray of complex64, shape (n_steps, n_outputs * n_samples), optional
            A field that is added at the samples, in the first polarisation: light that goes around the medium. Frame
            `i` sees row `i mod n_steps`.

        Returns
        -------
        ndarray of float32, shape (n_frames, n_outputs)
            Its mean over media is the mean of the squared field of a point.

        Raises
        ------
        opu.errors.InputError
            If the field has another number of points.
        """
        if real.shape[1:] != self.points.shape or imag.shape != real.shape:
            raise InputError(
                f"Fields of the shapes {real.shape} and {imag.shape} came for {len(self.points)} points.",
                "Give one column for each of `points`.",
            )
        out = np.empty((len(real), len(self.starts)), np.float32)
        coefficients = self.coefficients
        buffer = np.empty(2 * len(self.points) * min(_LANES, len(real)), np.float32)
        shape = (-1, len(self.starts), len(self.stencil.quadrature))
        light = np.zeros((0, 1, 1), np.complex64) if arm is None else arm.reshape(shape)
        with numba_lock:
            for start in range(0, len(real), _LANES):
                frames = slice(start, start + _LANES)
                width = 2 * len(real[frames])
                lanes = buffer[: len(self.points) * width].reshape(len(self.points), width)
                _interleave(real[frames], imag[frames], lanes)
                beside = light[frames] if len(light) == len(real) else np.roll(light, -start, axis=0)
                _detect(lanes, self.starts, self.phases, *self.stencil.taps, coefficients, beside, out[frames])
        return out


@njit(parallel=True, cache=True)
def _interleave(real: Any, imag: Any, lanes: Any) -> None:  # pragma: no cover - compiled
    # Frames side by side: they are what `_detect` has in its vector registers.
    n_frames, n_points = real.shape
    n_blocks = (n_points + _OUTPUTS - 1) // _OUTPUTS
    for block in prange(n_blocks):
        for point in range(block * _OUTPUTS, min(n_points, (block + 1) * _OUTPUTS)):
            for lane in range(n_frames):
                lanes[point, lane] = real[lane, point]
                lanes[point, n_frames + lane] = imag[lane, point]


@njit(parallel=True, cache=True)
def _detect(
    lanes: Any, starts: Any, phases: Any, places: Any, weights: Any, coefficients: Any, arm: Any, out: Any
) -> None:  # pragma: no cover - compiled
    n_frames, n_outputs = out.shape
    n_polarisations, n_samples = coefficients.shape
    n_taps = weights.shape[2]
    half = len(lanes) // n_polarisations
    n_blocks = (n_outputs + _OUTPUTS - 1) // _OUTPUTS
    for block in prange(n_blocks):
        field = np.empty(2 * n_frames, np.float32)
        total = np.empty(n_frames, np.float32)
        for output in range(block * _OUTPUTS, min(n_outputs, (block + 1) * _OUTPUTS)):
            phase = phases[output]
            window = starts[output]
            total[:] = np.float32(0)
            for polarisation in range(n_polarisations):
                shift = polarisation * half
                for sample in range(n_samples):
                    place = places[phase, sample]
                    weight = weights[phase, sample]
                    field[:] = np.float32(0)
                    # Four at a time: the sums go through memory a quarter as often.
                    for tap in range(0, n_taps, _UNROLL):
                        a = lanes[window[place[tap, 0]] + place[tap, 1] + shift]
                        b = lanes[window[place[tap + 1, 0]] + place[tap + 1, 1] + shift]
                        c = lanes[window[place[tap + 2, 0]] + place[tap + 2, 1] + shift]
                        d = lanes[window[place[tap + 3, 0]] + place[tap + 3, 1] + shift]
                        w_a, w_b, w_c, w_d = weight[tap], weight[tap + 1], weight[tap + 2], weight[tap + 3]
                        for lane in range(2 * n_frames):
                            half_sum = (field[lane] + w_a * a[lane]) + w_b * b[lane]
                            field[lane] = (half_sum + w_c * c[lane]) + w_d * d[lane]
                    if len(arm) > 0 and polarisation == 0:
                        for lane in range(n_frames):
                            light = arm[lane % len(arm), output, sample]
                            field[lane] += light.real
                            field[n_frames + lane] += light.imag
                    coefficient = coefficients[polarisation, sample]
                    for lane in range(n_frames):
                        total[lane] += coefficient * (
                            field[lane] * field[lane] + field[n_frames + lane] * field[n_frames + lane]
                        )
            for lane in range(n_frames):
                out[lane, output] = total[lane]


def intensity_with_numpy(
    sampling: SpeckleSampling,
    real: NDArray[np.float32],
    imag: NDArray[np.float32],
    arm: NDArray[np.complex64] | None = None,
) -> NDArray[np.float32]:
    """Return the intensity as `SpeckleSampling.intensity`, slowly, in NumPy: the twin of the kernel."""
    stencil, coefficients = sampling.stencil, sampling.coefficients
    total = np.zeros((len(real), len(sampling.starts)), np.float32)
    half = len(sampling.points) // len(coefficients)
    for polarisation, row_of_coefficients in enumerate(coefficients):
        for sample, coefficient in enumerate(row_of_coefficients):
            sum_real, sum_imag = np.zeros_like(total), np.zeros_like(total)
            for row, column in np.ndindex(stencil.width, stencil.width):
                weight = stencil.weights[sampling.phases, sample, row, column]
                points = sampling.starts[:, row] + column + polarisation * half
                sum_real += weight * real[:, points]
                sum_imag += weight * imag[:, points]
            if arm is not None and polarisation == 0:
                light = arm.reshape(len(arm), total.shape[1], -1)[:, :, sample]
                sum_real += light.real
                sum_imag += light.imag
            total += coefficient * (sum_real * sum_real + sum_imag * sum_imag)
    return total
