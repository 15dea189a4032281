r"""The speckle itself: how large its grains are, and whether its intensities follow the law that all else assumes.

Both routines light disjoint groups of mirrors, so that their speckles are independent, and take every frame twice: a
*covariance between the two* has no noise in its mean. What they assume about the optics is a circular pupil, whose
speckle has the intensity correlation (Goodman, Speckle Phenomena in Optics)::

    |mu(x)|^2 = |2 J1(v) / v|^2,    v = pi |x| / L,    L = lambda z / D,    FWHM = 1.029 L,    A_c = 4 L^2 / pi

and pixels of fill factor 1. A camera sees it averaged over the areas of two pixels, that is, convolved with a triangle
of two pixels in both directions: `C(d)`. The intensity of a pixel is a sum of independent exponential ones, whose
shares are the eigenvalues of `mu` over the pixel (Goodman, section on the exact density of integrated intensity).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opu.calibration.light import FEWEST_LIT, PROBE_FEATURES, judge_light, probe_size, require_dark
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity
from opu.calibration.saturation import SATURATED_SPECKLE
from opu.calibration.uncertainty import jackknife_error, quantity, standard_error, student_factor
from opu.device import Region
from opu.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.light import SeenLight
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, DeviceDescription, SessionConfig

__all__ = [
    "ContrastEstimate",
    "GrainEstimate",
    "SpeckleFrames",
    "central_region",
    "disjoint_patterns",
    "estimate_contrast",
    "estimate_grain",
    "evenly_lit",
    "from_everywhere",
    "grain",
    "law_distance",
    "pixel_shares",
    "record_speckle",
    "speckle_statistics",
    "without_light",
]

SPECKLE_FRACTION = 1 / 12
"""Mean of the frames as a fraction of full scale: 6 pixels in a million saturate, which no statistic notices."""
SIDE_PX = 64
N_PATTERNS = 32
N_DARK = 8

_INDEPENDENT = 0.05
_SEVERAL_PX = 2.5
_ENVELOPE_BLOCK_PX = 8
_EVEN = 0.2
_SMALLEST_SIDE_PX = 8
_DIMMEST_DN = 1.0
_FWHM_PER_LENGTH = 1.028993969962188
_THIRD_DARK_RING = 3.2383
_LARGEST_V = 40.0
_SAMPLES_PER_VALUE = 8
_CRITICAL = 1.50


def central_region(description: DeviceDescription, side_px: int) -> Region:
    """Return the square in the middle of the camera, or as much of it as the camera has."""
    if side_px < _SMALLEST_SIDE_PX:
        raise ConfigError(f"The side of the region is {side_px} pixels.", f"Use at least {_SMALLEST_SIDE_PX}.")
    rows, columns = description.pixels
    height, width = min(side_px, rows), min(side_px, columns)
    return Region((rows - height) // 2, (columns - width) // 2, height, width)


def disjoint_patterns(n_patterns: int, n_features: int) -> NDArray[np.bool_]:
    """Return patterns that have no feature in common, shape (n_patterns, n_features): their speckles are independent.

    Feature `i` is on in pattern `i mod n_patterns`, so that each pattern is spread over the mirrors.

    Examples
    --------
    >>> disjoint_patterns(2, 4).astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    if not 2 <= n_patterns <= n_features:
        raise ConfigError(
            f"{n_patterns} patterns of {n_features} features are asked for.", f"Use 2 to {n_features} patterns."
        )
    patterns: NDArray[np.bool_] = np.arange(n_patterns)[:, np.newaxis] == np.arange(n_features) % n_patterns
    return patterns


def from_everywhere(patterns: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return about eight of some disjoint patterns, from all over the mirrors: these need not be lit evenly."""
    return patterns[:: max(1, len(patterns) // 8)]


@dataclass(frozen=True, eq=False)
class SpeckleFrames:
    """Independent speckles, each taken twice.

    Parameters
    ----------
    once, again : ndarray of float64, shape (n_patterns, height, width)
        Two frames of each pattern, above the dark map, in DN.
    dark_dn : ndarray of float64, shape (height, width)
        Mean of the frames without light.
    dark_variance_dn2 : float
        Variance of a pixel from frame to frame without light.
    seen : SeenLight
        Stuck pixels and saturation.
    full_scale_dn : int
        Of the device.
    exposure_us : float
        Of the frames.
    """

    once: NDArray[np.float64]
    again: NDArray[np.float64]
    dark_dn: NDArray[np.float64]
    dark_variance_dn2: float
    seen: SeenLight
    full_scale_dn: int
    exposure_us: float

    @property
    def mean_dn(self) -> float:
        """Mean of the light on the pixels that work, in DN; 0 where there are none."""
        working = self.seen.working.reshape(self.dark_dn.shape)
        return float((self.once[:, working].mean() + self.again[:, working].mean()) / 2) if working.any() else 0.0

    @property
    def is_lit(self) -> bool:
        """Whether there is light enough to speak of."""
        return self.mean_dn >= _DIMMEST_DN

    def findings(self) -> list[str]:
        """Say what is wrong with the light on the camera."""
        if self.seen.findings:
            return list(self.seen.findings)
        if not self.is_lit:
            return [
                f"The camera sees no light: at an exposure of {self.exposure_us:g} us the mean is {self.mean_dn:.2g} "
                "DN above the dark frames. Check laser, shutter, mirrors and camera."
            ]
        return []


def record_speckle(
    recorder: Recorder,
    *,
    n_patterns: int = N_PATTERNS,
    side_px: int = SIDE_PX,
    target_fraction: float = SPECKLE_FRACTION,
) -> SpeckleFrames:
    """Take independent speckles on the middle of the camera, each twice, at an exposure found for them.

    Parameters
    ----------
    recorder : Recorder
        Takes the frames: `2 n_patterns`, 8 dark ones, and those of the exposure.
    n_patterns, side_px : int
        How many patterns, as far as there are mirrors (`probe_size`), and the side of the region.
    target_fraction : float
        The mean as a fraction of full scale.

    Raises
    ------
    UnsupportedError
        The light cannot be switched off, or mirrors or pixels are too few.
    """
    require_dark(recorder.description)
    if min(recorder.description.pixels) < _SMALLEST_SIDE_PX:
        rows, columns = recorder.description.pixels
        raise UnsupportedError(
            f"The camera has {rows} x {columns} pixels: too few in one direction to tell how neighbours depend.",
            f"Use a camera of at least {_SMALLEST_SIDE_PX} pixels in both directions.",
        )
    n_features, n_patterns = probe_size(recorder.description, n_patterns)
    region = central_region(recorder.description, side_px)
    shape = (-1, region.height, region.width)
    patterns = disjoint_patterns(n_patterns, n_features)
    config = recorder.config(n_features, region.height * region.width, region=region)
    config = recorder.expose(config, from_everywhere(patterns), target_fraction=target_fraction)
    dark = recorder.take(without_light(config), np.zeros((N_DARK, n_features), np.bool_)).frames.reshape(shape)
    lit = recorder.take(config, np.concatenate([patterns, patterns])).frames.reshape(shape)
    dark_dn = dark.mean(axis=0, dtype=np.float64)
    once, again = np.split(lit - dark_dn, 2)
    mean = (lit[:n_patterns] + lit[n_patterns:].astype(np.float64)) / 2
    return SpeckleFrames(
        once=once,
        again=again,
        dark_dn=dark_dn,
        dark_variance_dn2=float(dark.var(axis=0, ddof=1, dtype=np.float64).mean()),
        seen=judge_light(mean.reshape(n_patterns, -1), dark.reshape(N_DARK, -1), recorder.description),
        full_scale_dn=recorder.description.full_scale_dn,
        exposure_us=float(config.exposure_us or recorder.description.exposure_us.default),
    )


def without_light(config: SessionConfig) -> SessionConfig:
    """Return a configuration with the light off."""
    return msgspec.structs.replace(config, light="off")


@lru_cache(maxsize=1)
def _airy() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 2 J1(v) / v for v from 0 on; J1 is the mean of cos(t - v sin t) for t from 0 to pi."""
    v = np.linspace(0, _LARGEST_V, 4001)
    t = np.arange(1, 64) * (np.pi / 64)  # the two ends cancel
    j1 = np.cos(t - np.multiply.outer(v, np.sin(t))).sum(axis=1) / 64
    amplitude = np.ones_like(v)
    amplitude[1:] = 2 * j1[1:] / v[1:]
    return v, amplitude


def _field_correlation(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `mu` at distances in units of `L`."""
    v, amplitude = _airy()
    found: NDArray[np.float64] = np.interp(np.pi * distance, v, amplitude, right=0.0)
    return found


@lru_cache(maxsize=1)
def _triangle() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nodes and weights of an integral over the triangle function, from -1 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = (nodes + 1) / 2
    return np.concatenate([half - 1, half]), np.concatenate([weights * half, weights * (1 - half)]) / 2


def _camera_correlation(lags: NDArray[np.int64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `C` at lags (row, column), shape (n, 2), for the lengths `L` along rows and columns."""
    nodes, weights = _triangle()
    row, column = (lags[:, axis, np.newaxis] + nodes for axis in (0, 1))
    distance = np.hypot(row[:, :, np.newaxis] / lengths[0], column[:, np.newaxis, :] / lengths[1])
    seen = _field_correlation(distance) ** 2
    integral: NDArray[np.float64] = np.einsum("nij,i,j->n", seen, weights, weights)
    return integral


_NO_LAG = np.zeros((1, 2), np.int64)


def _relative_correlation(lags: NDArray[np.int64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    with_zero = _camera_correlation(np.concatenate([_NO_LAG, lags]), lengths)
    relative: NDArray[np.float64] = with_zero[1:] / with_zero[0]
    return relative


def pixel_shares(fwhm_rows_px: float, fwhm_columns_px: float) -> NDArray[np.float64]:
    """Return the shares of the independent exponential intensities that add up in a pixel, shape (n,).

    The contrast that the pixel leaves is the root of the sum of their squares.

    Parameters
    ----------
    fwhm_rows_px, fwhm_columns_px : float
        Width of the grain along rows and columns.

    Examples
    --------
    >>> [round(float(np.sqrt((pixel_shares(width, width) ** 2).sum())), 2) for width in (1.0, 8.0)]
    [0.7, 0.99]
    """
    nodes, weights = np.polynomial.legendre.leggauss(12)
    row, column = (axis.ravel() for axis in np.meshgrid(nodes / 2, nodes / 2, indexing="ij"))
    distance = np.hypot(
        np.subtract.outer(row, row) / (fwhm_rows_px / _FWHM_PER_LENGTH),
        np.subtract.outer(column, column) / (fwhm_columns_px / _FWHM_PER_LENGTH),
    )
    weight = np.sqrt(np.outer(weights, weights).ravel()) / 2
    shares = np.linalg.eigvalsh(weight[:, np.newaxis] * _field_correlation(distance) * weight)
    large = shares[shares > 1e-4]
    found: NDArray[np.float64] = large / large.sum()
    return found


def _contrast_of(shares: NDArray[np.float64]) -> float:
    return math.sqrt(float((shares**2).sum()))


@dataclass(frozen=True, eq=False)
class GrainEstimate:
    """How the intensities of neighbouring pixels depend on each other.

    Parameters
    ----------
    fwhm_px, fwhm_error_px : ndarray of float64, shape (2,)
        Full width at half maximum of the correlation of the intensity along rows and along columns, the area of the
        pixels removed; where the grain is not resolved the largest that cannot be excluded, with an error of NaN.
    width_px, width_error_px : float
        Geometric mean of both, and its standard error: errors along rows and columns have a part in common.
    is_resolved : bool
        Whether neighbouring pixels have anything in common.
    stride_px : int
        From which distance on, along rows and columns, pixels count as independent.
    neighbour_correlation, neighbour_error : float
        The larger correlation of two pixels at that distance, and its standard error.
    independent_share, independent_error : float
        `M_eff / M = 1 / (1 + sum of the correlations with all other pixels)`, and its standard error.
    correlation, correlation_error : ndarray of float64, shape (2 reach + 1, 2 reach + 1)
        The correlation by lag, that of lag 0 in the middle, and its standard error.
    """

    fwhm_px: NDArray[np.float64]
    fwhm_error_px: NDArray[np.float64]
    width_px: float
    width_error_px: float
    is_resolved: bool
    stride_px: int
    neighbour_correlation: float
    neighbour_error: float
    independent_share: float
    independent_error: float
    correlation: NDArray[np.float64]
    correlation_error: NDArray[np.float64]

    @property
    def reach(self) -> int:
        """The largest lag."""
        return len(self.correlation) // 2


def _covariances(once: NDArray[np.float64], again: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Return the covariances between pixels of the two frames by lag, shape (n_patterns, 2 reach + 1, 2 reach + 1).

    The mean of the patterns is taken off each pixel, which removes the envelope of the light and fixed patterns, and
    then the mean of each frame: with it the mean covariance over all pairs of pixels, which is given back.
    """
    height, width = once.shape[1:]
    spectra = []
    for frames in (once, again):
        deviation = frames - frames.mean(axis=0)
        deviation -= deviation.mean(axis=(1, 2), keepdims=True)
        spectra.append(np.fft.rfft2(deviation, (2 * height, 2 * width)))
    sums = np.fft.irfft2(spectra[0].conj() * spectra[1], (2 * height, 2 * width))
    lag = np.arange(-reach, reach + 1)
    sums = sums[:, lag[:, np.newaxis], lag]
    pairs = np.multiply.outer(height - np.abs(lag), width - np.abs(lag))
    found = (sums + sums[:, ::-1, ::-1]) / (2 * pairs)
    n_pixels = height * width
    total = found.sum(axis=(1, 2), keepdims=True) / (1 - found[0].size / n_pixels)
    restored: NDArray[np.float64] = found + total / n_pixels
    return restored


def estimate_grain(once: NDArray[np.float64], again: NDArray[np.float64]) -> GrainEstimate:
    """Estimate the size of the grains from two frames of each of several independent speckles.

    The model of a circular pupil is fitted to the correlation along both axes, up to where it falls below a half: what
    is beyond depends more on the rim of the pupil than on the width, and is mostly noise. The effective number of
    pixels is a sum of what was measured, up to the third dark ring, beyond which 6 % of its area would lie. Standard
    errors come from leaving out one pattern at a time.

    Parameters
    ----------
    once, again : ndarray, shape (n_patterns, height, width)
        Above the dark level; at least three patterns.

    Returns
    -------
    GrainEstimate
        Of NaN where the frames do not vary, or are less than 8 pixels high or wide.
    """
    if min(once.shape[1:]) < _SMALLEST_SIDE_PX:
        return _no_grain(2)
    reach = max(2, min(once.shape[1:]) // 4)
    covariances = _covariances(np.asarray(once, np.float64), np.asarray(again, np.float64), reach)
    total = covariances.sum(axis=0)
    power = float(total[reach, reach])
    if not power > 0:
        return _no_grain(reach)
    without_one = total - covariances
    correlation = total / power
    one_less = without_one / without_one[:, reach, reach][:, np.newaxis, np.newaxis]
    n = len(one_less)
    error = np.std(one_less, axis=0, ddof=1) * (n - 1) / math.sqrt(n) * student_factor(n)
    fwhm, fwhm_error, width_error, is_resolved = _fit_width(correlation, one_less, error)
    stride = _stride(correlation, error)
    at_stride = [(reach + stride, reach), (reach, reach + stride)]
    place = max(at_stride, key=lambda place: correlation[place])
    share, share_error = _independent_share(correlation, one_less, float(fwhm.max()))
    return GrainEstimate(
        fwhm_px=fwhm,
        fwhm_error_px=fwhm_error,
        width_px=math.sqrt(float(fwhm.prod())),
        width_error_px=width_error,
        is_resolved=is_resolved,
        stride_px=stride,
        neighbour_correlation=float(correlation[place]),
        neighbour_error=float(error[place]),
        independent_share=share,
        independent_error=share_error,
        correlation=correlation,
        correlation_error=error,
    )


def _no_grain(reach: int) -> GrainEstimate:
    nothing, size = np.full(2, math.nan), 2 * reach + 1
    empty = np.full((size, size), math.nan)
    nan = math.nan
    return GrainEstimate(nothing, nothing, nan, nan, False, 1, nan, nan, nan, nan, empty, empty)


def _axes(correlation: NDArray[np.float64], last: int) -> NDArray[np.float64]:
    """Return the correlations at the lags 1 to `last` along rows, then along columns: shape (..., 2 last)."""
    reach = correlation.shape[-1] // 2
    along = slice(reach + 1, reach + 1 + last)
    return np.concatenate([correlation[..., along, reach], correlation[..., reach, along]], axis=-1)


def _fit_width(
    correlation: NDArray[np.float64], one_less: NDArray[np.float64], error: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, bool]:
    """Return the widths along rows and columns, their errors and that of their mean, and whether they are no bounds."""
    reach = len(correlation) // 2
    neighbours, neighbour_errors = _axes(correlation, 1), _axes(error, 1)
    candidates = np.geomspace(0.15, 2.0 * reach, 80)
    if (neighbours < 4 * neighbour_errors).all():
        bound = float(np.mean(neighbours) + 1.96 * np.mean(neighbour_errors))
        first = np.array([[1, 0]])
        shown = [float(_relative_correlation(first, np.full(2, length))[0]) for length in candidates]
        largest = candidates[max(1, int(np.searchsorted(shown, bound))) - 1] * _FWHM_PER_LENGTH
        return np.full(2, largest), np.full(2, math.nan), math.nan, False
    profile = _axes(correlation, reach).reshape(2, -1).mean(axis=0)
    faded = np.flatnonzero(profile < 0.5)
    last = int(faded[0]) + 1 if len(faded) else reach
    distance = np.arange(1, last + 1)
    lags = np.zeros((2 * last, 2), np.int64)
    lags[:last, 0] = lags[last:, 1] = distance
    measured = _axes(correlation, last)

    def misfit(length: float) -> float:
        return float(((_relative_correlation(lags, np.full(2, length)) - measured) ** 2).sum())

    logs = np.full(2, math.log(min(candidates, key=misfit)))
    for _ in range(8):
        model, slope = _relative_correlation(lags, np.exp(logs)), _slopes(lags, logs)
        # No further than the scale of the length: the start is within a few per cent.
        logs += np.clip(np.linalg.pinv(slope) @ (measured - model), -0.3, 0.3)
    widths = _FWHM_PER_LENGTH * np.exp(logs)
    # One pattern less changes little: a step from here tells the change of the fit.
    changes = (_axes(one_less, last) - measured) @ np.linalg.pinv(_slopes(lags, logs)).T
    width_error = math.sqrt(float(widths.prod())) * jackknife_error(changes.mean(axis=1))
    return widths, widths * [jackknife_error(change) for change in changes.T], width_error, True


def _slopes(lags: NDArray[np.int64], logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the derivatives of the model by the logarithms of its two lengths, shape (n, 2)."""
    step = 1e-3 * np.eye(2)
    columns = [
        (_relative_correlation(lags, np.exp(logs + side)) - _relative_correlation(lags, np.exp(logs - side))) / 2e-3
        for side in step
    ]
    return np.stack(columns, axis=1)


def _stride(correlation: NDArray[np.float64], error: NDArray[np.float64]) -> int:
    """Return the lag from which on neither axis correlates by more than 0.05, or two standard errors if those are more.

    Where none is, the largest lag.
    """
    reach = len(correlation) // 2
    measured = _axes(correlation, reach).reshape(2, -1).max(axis=0)
    allowed = np.maximum(_INDEPENDENT, 2 * _axes(error, reach).reshape(2, -1).max(axis=0))
    dependent = np.flatnonzero(measured > allowed)
    return min(reach, int(dependent[-1]) + 2) if len(dependent) else 1


def _independent_share(
    correlation: NDArray[np.float64], one_less: NDArray[np.float64], fwhm_px: float
) -> tuple[float, float]:
    reach = len(correlation) // 2
    radius = min(reach, math.ceil(_THIRD_DARK_RING * fwhm_px / _FWHM_PER_LENGTH + 0.5))
    lag = np.arange(-reach, reach + 1)
    near = np.hypot(lag[:, np.newaxis], lag) <= radius
    share = 1 / float(correlation[near].sum())
    return share, jackknife_error(1 / one_less[:, near].sum(axis=1))


def evenly_lit(envelope: NDArray[np.float64], tolerance: float = _EVEN) -> tuple[int, int, int, int]:
    """Return the largest rectangle in which the light is within a tolerance of its median.

    As first row, first column, height and width; the whole where there is none.

    Examples
    --------
    >>> light = np.ones((4, 5))
    >>> light[:, 0] = 0.1
    >>> evenly_lit(light)
    (0, 1, 4, 4)
    """
    bad = np.abs(envelope - np.median(envelope)) > tolerance * np.median(envelope)
    counts = np.pad(bad.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows, columns = envelope.shape
    best = (0, 0, 0, 0)
    for top in range(rows):
        for bottom in range(top + 1, rows + 1):
            strip = counts[bottom] - counts[top]
            for left in range(columns):
                right = int(np.searchsorted(strip, strip[left], "right")) - 1
                if (bottom - top) * (right - left) > best[2] * best[3]:
                    best = (top, left, bottom - top, right - left)
    return best if best[2] else (0, 0, rows, columns)


_NO_ENVELOPE = np.full((1, 1), math.nan)


def _envelope(frames: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the light by blocks of 8 x 8 pixels relative to its mean, and its variation beyond that of the speckle."""
    n, height, width = frames.shape
    size = _ENVELOPE_BLOCK_PX
    rows, columns = height // size, width // size
    cut = frames[:, : rows * size, : columns * size].reshape(n, rows, size, columns, size).mean(axis=(2, 4))
    blocks = cut.mean(axis=0)
    mean = blocks.mean()
    noise = cut.var(axis=0, ddof=1).mean() / n
    return blocks / mean, math.sqrt(max(float(blocks.var() - noise), 0.0)) / float(mean)


def grain(
    device: Device, *, noise_key: int = 0, n_patterns: int = PROBE_FEATURES, side_px: int = SIDE_PX
) -> CalibrationResult:
    """Measure the size of the speckle grains, and how far apart pixels are independent.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    n_patterns : int
        Independent speckles, 3 to 64, each taken twice; fewer on a device of few mirrors.
    side_px : int
        Side of the region in the middle of the camera.

    Returns
    -------
    CalibrationResult
        The width of the grains (FWHM of the correlation of the intensity, geometric mean of both axes) in pixels;
        passes up to 2.5. An upper bound, with an uncertainty of NaN, where neighbouring pixels are independent.
        `quantities`: `fwhm_rows`, `fwhm_columns`, `stride` (pixels as far apart are independent),
        `neighbour_correlation` (of pixels that far apart), `effective_outputs` (`M_eff` of the region),
        `envelope_variation`. `data`: `correlation` and `correlation_error` by lag, shape (2 reach + 1, 2 reach + 1);
        `envelope`, the light by blocks of 8 x 8 pixels; `region` and `even_region`, first row and column, height and
        width, of what was measured and of the part of it that is lit evenly. Without light, or with light that the
        camera cuts off, all are NaN and that part is empty: its height and width are 0.

    Raises
    ------
    UnsupportedError
        The device cannot switch its light off, or has fewer than 24 mirrors or 8 pixels in a direction.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.speckle import grain
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = grain(device)
    >>> result.quantities["stride"].value, result.passed
    (1.0, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    speckle = record_speckle(recorder, n_patterns=n_patterns, side_px=side_px)
    findings = speckle.findings()
    is_sound = not findings
    found = estimate_grain(speckle.once, speckle.again) if is_sound else _no_grain(2)
    region = central_region(recorder.description, side_px)
    n_pixels = region.height * region.width
    envelope, variation = _envelope((speckle.once + speckle.again) / 2) if is_sound else (_NO_ENVELOPE, math.nan)
    even = np.array(evenly_lit(envelope) if is_sound else (0, 0, 0, 0)) * _ENVELOPE_BLOCK_PX
    if not findings and found.is_resolved and found.width_px > _SEVERAL_PX:
        findings.append(
            f"The grain of the speckle is {found.width_px:.1f} pixels wide: neighbouring pixels are not independent, "
            f"and {n_pixels} of them count as {found.independent_share * n_pixels:.0f}. Use a stride of "
            f"{found.stride_px}, or a wider aperture."
        )
    if not findings and variation > _EVEN:
        findings.append(
            f"The light varies by {variation:.0%} over the region: use the part that is lit evenly, or widen the beam "
            "on the camera."
        )
    bound = "" if found.is_resolved else ", not resolved: at most this"
    quantities = {
        "fwhm_rows": quantity(found.fwhm_px[0], found.fwhm_error_px[0], "px", f"width along a column{bound}"),
        "fwhm_columns": quantity(found.fwhm_px[1], found.fwhm_error_px[1], "px", f"width along a row{bound}"),
        "stride": Quantity(
            value=float(found.stride_px) if is_sound else math.nan,
            unit="px",
            uncertainty=math.nan,
            summary="distance from which on pixels are independent",
            is_setting=True,
        ),
        "neighbour_correlation": quantity(
            found.neighbour_correlation, found.neighbour_error, "1", "correlation of pixels at that distance"
        ),
        "effective_outputs": quantity(
            found.independent_share * n_pixels,
            found.independent_error * n_pixels,
            "1",
            f"independent outputs that {n_pixels} neighbouring pixels count for",
        ),
        "envelope_variation": quantity(
            variation, math.nan, "1", "variation of the light over the region", limit=(None, _EVEN)
        ),
    }
    return recorder.result(
        "grain",
        f"width of the speckle grain{bound}",
        found.width_px,
        "px",
        found.width_error_px,
        limit=(None, _SEVERAL_PX),
        quantities=quantities,
        findings=findings,
        data={
            "correlation": found.correlation,
            "correlation_error": found.correlation_error,
            "envelope": envelope,
            "region": np.array([region.row, region.column, region.height, region.width]),
            "even_region": np.array([region.row, region.column, 0, 0]) + even,
        },
    )


@dataclass(frozen=True)
class ContrastEstimate:
    """The contrast of speckle.

    Parameters
    ----------
    contrast, contrast_error : float
        Standard deviation over mean, the noise of the camera removed, and its standard error.
    n_independent : float
        Independent values that it was computed from.
    noise_variance_dn2 : float
        Mean variance of a pixel from frame to frame.
    """

    contrast: float
    contrast_error: float
    n_independent: float
    noise_variance_dn2: float


def estimate_contrast(
    once: NDArray[np.float64], again: NDArray[np.float64], *, independent_share: float = 1.0
) -> ContrastEstimate:
    """Estimate the contrast from two frames of each of several independent speckles.

    For each pattern the covariance of the two frames over the pixels replaces the variance, so that noise drops out.
    The standard error is that of the mean over the patterns: it needs no independent pixels.

    Parameters
    ----------
    once, again : ndarray, shape (n_patterns, ...)
        Above the dark level.
    independent_share : float
        `M_eff / M` of the pixels, for the count of independent values.
    """
    n = len(once)
    first, second = once.reshape(n, -1), again.reshape(n, -1)
    means = (first.mean(axis=1) + second.mean(axis=1)) / 2
    products = (first * second).mean(axis=1) - first.mean(axis=1) * second.mean(axis=1)
    noise = float(((first - second) ** 2).mean() / 2)
    n_independent = first.size * independent_share
    if not (means > 0).all() or products.mean() <= 0:
        return ContrastEstimate(math.nan, math.nan, n_independent, noise)
    squares = products / means**2
    contrast = math.sqrt(float(squares.mean()))
    return ContrastEstimate(contrast, standard_error(squares) / (2 * contrast), n_independent, noise)


_ONE_SHARE = np.ones(1)


def law_distance(
    values_dn: NDArray[np.float64],
    *,
    shares: NDArray[np.float64] = _ONE_SHARE,
    noise_variance_dn2: float = 0.0,
    dark_variance_dn2: float = 0.0,
    full_scale_dn: float = math.inf,
) -> tuple[float, float]:
    """Compare counts with the law of speckle, seen by a camera with noise and whole counts.

    The law is the exponential one, or that of a sum of exponential intensities where pixels average. It has the mean
    of the values of each pattern. A sample of it, eight times as large, gets the noise of the camera and is rounded as
    the counts were; the answer is the Kolmogorov-Smirnov distance of the two.

    Parameters
    ----------
    values_dn : ndarray, shape (n_patterns, n)
        Counts above the dark level, of *independent* pixels: a test with neighbours that share a grain rejects
        everything.
    shares : ndarray, shape (n_shares,)
        Of the exponential intensities that add up in a pixel: `pixel_shares`.
    noise_variance_dn2, dark_variance_dn2 : float
        Mean variance of a pixel from frame to frame, with and without light.
    full_scale_dn : float
        Where counts end, above the dark level.

    Returns
    -------
    tuple of (float, float)
        The distance, and the one that a thousandth of samples of the exponential law itself exceed when their mean is
        fitted: `1.50 / sqrt(n)` by simulation of 60,000 samples (Lilliefors's test; 1.28 for a hundredth), and 6 % more
        for the size of the sample of the law.
    """
    n_patterns, n = values_dn.shape
    means = values_dn.mean(axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    drawn = np.zeros((n_patterns, _SAMPLES_PER_VALUE * n))
    for share in shares:
        drawn += share * generator.standard_exponential(drawn.shape)
    drawn *= means
    read_variance = max(dark_variance_dn2 - 1 / 12, 0.0)
    shot_variance = max(noise_variance_dn2 - 1 / 12 - read_variance, 0.0)
    noise = np.sqrt(read_variance + shot_variance * drawn / means.mean())
    counts = np.clip(np.rint(drawn + noise * generator.standard_normal(drawn.shape)), None, full_scale_dn)
    # Between whole counts, where neither distribution has a step.
    edges = np.arange(min(values_dn.min(), 0.0) - 0.5, min(counts.max(), 20 * float(means.max())) + 1)
    edges = edges[:: max(1, len(edges) // 2000)]
    found, law = (np.searchsorted(np.sort(part.ravel()), edges) / part.size for part in (values_dn, counts))
    return float(np.abs(found - law).max()), _CRITICAL * 1.06 / math.sqrt(values_dn.size)


_LIMIT_DISTANCE = 0.03
_LIMIT_MODES = (0.92, 1.08)
_LIMIT_CONTRAST = (0.8, 1.04)


def speckle_statistics(
    device: Device,
    *,
    noise_key: int = 0,
    n_patterns: int = N_PATTERNS,
    side_px: int = SIDE_PX,
    target_fraction: float = SPECKLE_FRACTION,
) -> CalibrationResult:
    """Measure the contrast of the speckle and compare its intensities with the exponential law.

    Fully developed, polarised, coherent speckle that the pixels resolve has contrast 1. Pixels that average over a part
    of a grain lower it, by as much as the size of the grain says; what is missing beyond that is the number of
    independent patterns that add up.

    Parameters
    ----------
    device : Device
        Any device that can switch its light off.
    noise_key : int
        The noise of the frames.
    n_patterns : int
        Independent speckles, 3 to 64, each taken twice; fewer on a device of few mirrors.
    side_px : int
        Side of the region in the middle of the camera.
    target_fraction : float
        The mean as a fraction of full scale.

    Returns
    -------
    CalibrationResult
        The contrast, noise removed; passes from 0.8 (pixels of half a grain) to 1.04. `quantities`:
        `pixel_contrast` (what the pixels leave, by the size of the grain), `modes` (independent patterns that add up),
        `law_distance` (Kolmogorov-Smirnov distance from the law, on independent pixels), `independent_values`,
        `saturated_share`. `data`: `picture`, a frame; `intensity`, `density` and `law_density`, the histogram over
        intensity in units of the mean, and the exponential law in the same bins. NaN without light, and with light
        that the camera cuts off.

    Raises
    ------
    UnsupportedError
        The device cannot switch its light off, or has fewer than 192 mirrors or 8 pixels in a direction.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.speckle import speckle_statistics
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = speckle_statistics(device)
    >>> abs(result.value - 1) < 0.02, result.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    if recorder.description.n_mirrors < 3 * FEWEST_LIT:
        raise UnsupportedError(
            f"The device {recorder.description.device_id} has {recorder.description.n_mirrors} mirrors: their speckle "
            "is not fully developed.",
            f"Use a device of at least {3 * FEWEST_LIT} mirrors.",
        )
    speckle = record_speckle(recorder, n_patterns=n_patterns, side_px=side_px, target_fraction=target_fraction)
    findings = speckle.findings()
    found = _statistics(speckle)
    if not findings:
        findings = _speckle_findings(found)
    contrast = found.contrast
    quantities = {
        "pixel_contrast": quantity(found.pixel_contrast, math.nan, "1", "contrast that the area of the pixels leaves"),
        "modes": quantity(found.modes, found.modes_error, "1", "independent patterns that add up", limit=_LIMIT_MODES),
        "law_distance": quantity(
            found.distance,
            math.nan,
            "1",
            "distance from the law of speckle",
            limit=(None, max(_LIMIT_DISTANCE, found.critical_distance)),
        ),
        "independent_values": quantity(contrast.n_independent, math.nan, "1", "independent grains that were seen"),
        "saturated_share": quantity(
            speckle.seen.saturated_share, math.nan, "1", "share at the highest count", limit=(None, SATURATED_SPECKLE)
        ),
    }
    return recorder.result(
        "speckle_statistics",
        "contrast of the speckle, noise removed",
        contrast.contrast,
        "1",
        contrast.contrast_error,
        limit=_LIMIT_CONTRAST,
        quantities=quantities,
        findings=findings,
        data={"picture": (speckle.once[0] + speckle.dark_dn).astype(np.float32), **_histogram(speckle)},
    )


@dataclass(frozen=True)
class _Statistics:
    contrast: ContrastEstimate
    grain: GrainEstimate
    pixel_contrast: float
    may_blur: bool
    distance: float
    critical_distance: float

    @property
    def modes(self) -> float:
        return (self.pixel_contrast / self.contrast.contrast) ** 2

    @property
    def modes_error(self) -> float:
        return 2 * self.modes * self.contrast.contrast_error / self.contrast.contrast


def _statistics(speckle: SpeckleFrames) -> _Statistics:
    if speckle.findings():
        unknown = ContrastEstimate(math.nan, math.nan, 0.0, math.nan)
        return _Statistics(unknown, _no_grain(2), math.nan, False, math.nan, math.nan)
    found = estimate_grain(speckle.once, speckle.again)
    contrast = estimate_contrast(speckle.once, speckle.again, independent_share=found.independent_share)
    if math.isnan(contrast.contrast):
        return _Statistics(contrast, found, math.nan, False, math.nan, math.nan)
    shares = pixel_shares(*found.fwhm_px)
    # Where more contrast is seen than pixels of this grain leave, they do not average: they are points. A grain that is
    # not resolved would leave next to none.
    may_blur = contrast.contrast < 1.1 * _contrast_of(shares)
    if not (found.is_resolved and may_blur):
        shares = _ONE_SHARE
    distance, critical = law_distance(
        speckle.once[:, :: found.stride_px, :: found.stride_px].reshape(len(speckle.once), -1),
        shares=shares,
        noise_variance_dn2=contrast.noise_variance_dn2,
        dark_variance_dn2=speckle.dark_variance_dn2,
        full_scale_dn=speckle.full_scale_dn - float(speckle.dark_dn.mean()),
    )
    return _Statistics(contrast, found, _contrast_of(shares), may_blur, distance, critical)


def _speckle_findings(found: _Statistics) -> list[str]:
    contrast = found.contrast.contrast
    if math.isnan(contrast):
        return ["Two frames of one pattern have nothing in common: what the camera sees is noise."]
    findings = []
    if found.pixel_contrast < _LIMIT_CONTRAST[0]:
        grains = math.pi / 4 * _FWHM_PER_LENGTH**2 / float(found.grain.fwhm_px.prod())
        findings.append(
            f"A pixel averages over {grains:.2g} grains of the speckle, which are "
            f"{found.grain.fwhm_px.mean():.2f} pixels wide: that leaves a contrast of {found.pixel_contrast:.2f}. "
            "Make the grains larger with a smaller aperture or a longer distance."
        )
    if found.modes > _LIMIT_MODES[1]:
        blurred = "; or pixels that average over many grains" if found.may_blur and not found.grain.is_resolved else ""
        findings.append(
            f"The speckle is the sum of {found.modes:.2g} independent patterns: its contrast is {contrast:.2f} where a "
            f"single one has {found.pixel_contrast:.2f}. A second polarisation, several modes of the laser, few lit "
            f"mirrors, or a medium that moves during an exposure{blurred}."
        )
    if not findings and (found.modes < _LIMIT_MODES[0] or contrast > _LIMIT_CONTRAST[1]):
        findings.append(
            f"The contrast is {contrast:.2f}, more than the {found.pixel_contrast:.2f} of fully developed speckle: "
            "light that varies over the region, or pixels with an offset of their own."
        )
    if not findings and found.distance > max(_LIMIT_DISTANCE, found.critical_distance):
        findings.append(
            f"The intensities do not follow the law of speckle, from which their distribution is {found.distance:.3f} "
            "away: too few lit mirrors, a camera that is not linear, or light that bypasses the medium."
        )
    return findings


def _histogram(speckle: SpeckleFrames) -> dict[str, NDArray[np.float64]]:
    """Return the histogram over intensity in units of the mean, in bins of whole counts, up to eight means."""
    mean = speckle.mean_dn
    if not speckle.is_lit:
        return {}
    width_dn = max(1, round(mean / 16))
    edges = (np.arange(0, max(2, math.ceil(8 * mean / width_dn))) * width_dn - 0.5) / mean
    values = speckle.once.ravel() / mean
    counts = np.histogram(values, edges)[0]
    law = -np.diff(np.exp(-np.maximum(edges, 0)))
    widths = np.diff(edges)
    return {
        "intensity": (edges[1:] + edges[:-1]) / 2,
        "density": counts / (values.size * widths),
        "law_density": law / widths,
    }
