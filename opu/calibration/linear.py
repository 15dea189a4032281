"""Whether the linear projection is linear: additivity, repeatability, and what spoils them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.frames import available_size, take_dark
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.result import Quantity
from opu.device import NO_REFERENCE, check_whole
from opu.errors import ConfigError, MediumChangedError, UnsupportedError
from opu.interference import ANCHOR, available_methods
from opu.linear import LinearProjector, fit_linear_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from opu.calibration.result import CalibrationResult, Limit
    from opu.device import Device, DeviceDescription
    from opu.errors import OpuError
    from opu.linear import LinearMap

__all__ = [
    "Additivity",
    "Projected",
    "Repeats",
    "dark_level_dn",
    "fit_and_project",
    "judge_additivity",
    "linear_mode",
    "no_projection",
    "odd_projections",
    "projection_size",
]

_BIAS_LIMIT = 0.02
# A camera of 8 bits and 10,000 electrons has 12 % and 0.996, a laser with 0.2 % of noise takes them to 15 % and 0.994.
_SINGLE_LIMIT = 0.2
_PEARSON_LIMIT = 0.99
_POWER_LIMIT = 0.01
_SATURATED_LIMIT = 0.002
_OVEREXPOSED = 0.3
_DIM_ANCHOR = 0.5
_HIGH_BLACK_LEVEL = 0.2
_ODD_CORRELATION = 0.5
_LEAST_MEMORY = 0.98
_LARGEST_POWER_CHANGE = 0.5
_COVERING = 1.96
_FEWEST_REPEATS = 8
_DARK_FRAMES = 8


class Repeats:
    """Mean squares over repeats of a measurement, with and without noise.

    The product of two different repeats has no noise in its mean; the square of one has. Both, and what they are
    without any one repeat, follow from the products of all pairs.

    Parameters
    ----------
    values : ndarray of float64, shape (n_repeats, ...)
        At least three repeats.

    Examples
    --------
    >>> noisy = 2.0 + np.random.default_rng(0).normal(size=(100, 50))
    >>> repeats = Repeats(noisy)
    >>> round(float(repeats.signal), 1), round(float(repeats.total), 1)
    (4.0, 5.0)
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        flat = values.reshape(len(values), -1)
        products = flat @ flat.T / flat.shape[1]
        n, own, sums = len(products), products.diagonal(), products.sum(axis=1)
        between = sums.sum() - own.sum()
        self.signal = between / (n * (n - 1))
        self.total = own.mean()
        self.signal_without = (between - 2 * (sums - own)) / ((n - 1) * (n - 2))
        self.total_without = (own.sum() - own) / (n - 1)


def _jackknife(
    statistic: Callable[..., NDArray[np.float64]], *parts: tuple[Any, NDArray[np.float64]]
) -> tuple[float, float]:
    """Return a function of mean squares and its standard error, from what it is without each repeat."""
    value = float(statistic(*(whole for whole, _ in parts)))
    without = statistic(*(each for _, each in parts))
    n = len(without)
    return value, math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))


@dataclass(frozen=True)
class Additivity:
    """How linear repeated projections of `x1`, `x2` and `x1 + x2` are.

    Parameters
    ----------
    bias, bias_error : float
        Root mean square of `L(x1) + L(x2) - L(x1 + x2)` over that of `L(x1 + x2)`, without noise.
    single, single_error : float
        The same for single projections, with their noise.
    pearson, pearson_error : float
        Correlation of a single projection with the mean of infinitely many.
    """

    bias: float
    bias_error: float
    single: float
    single_error: float
    pearson: float
    pearson_error: float


def judge_additivity(outputs: NDArray[np.float64]) -> Additivity:
    """Compare sums of projections with projections of sums, with the noise and without.

    Noise drops out of the products of different repeats. The errors are those of a jackknife over the repeats: they say
    how much the noise moves the numbers for these patterns and pixels. That of `bias` is such that the interval of 95 %
    covers that of its square, which may reach zero.

    Parameters
    ----------
    outputs : ndarray of float64, shape (n_repeats, 3, n_pairs, n_outputs)
        `L(x1)`, `L(x2)` and `L(x1 + x2)`; at least eight repeats.

    Returns
    -------
    Additivity
        NaN where there is no signal.
    """
    difference = Repeats(outputs[:, 0] + outputs[:, 1] - outputs[:, 2])
    both = Repeats(outputs[:, 2])
    spread = Repeats(outputs - outputs.mean(axis=(1, 2, 3), keepdims=True))
    if not (both.signal > 0 and spread.signal > 0 and (both.signal_without > 0).all()):
        return Additivity(*[math.nan] * 6)
    signal = (both.signal, both.signal_without)
    square, square_error = _jackknife(np.divide, (difference.signal, difference.signal_without), signal)
    bias = math.sqrt(max(square, 0.0))
    high = math.sqrt(max(square + _COVERING * square_error, 0.0))
    low = math.sqrt(max(square - _COVERING * square_error, 0.0))
    single, single_error = _jackknife(
        lambda total, power: np.sqrt(total / power), (difference.total, difference.total_without), signal
    )
    pearson, pearson_error = _jackknife(
        lambda power, total: np.sqrt(np.maximum(power, 0) / total),
        (spread.signal, spread.signal_without),
        (spread.total, spread.total_without),
    )
    return Additivity(bias, max(high - bias, bias - low) / _COVERING, single, single_error, pearson, pearson_error)


def odd_projections(outputs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the numbers of projections that are not like the other ones of their pattern.

    A frame that was swapped, lost or doubled makes a projection of something else: it does not correlate with the
    median of its repeats, while noise leaves a correlation of far more than one half.

    Parameters
    ----------
    outputs : ndarray of float64, shape (n_repeats, n_patterns, n_outputs)
        Repeated projections.

    Returns
    -------
    ndarray of int64
        Counted in the order of time: repeat by repeat.
    """
    usual = np.median(outputs, axis=0)
    usual = usual - usual.mean(axis=-1, keepdims=True)
    each = outputs - outputs.mean(axis=-1, keepdims=True)
    spread = np.sqrt((usual**2).sum(axis=-1) * (each**2).sum(axis=-1))
    correlation = np.divide((usual * each).sum(axis=-1), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.flatnonzero(correlation < _ODD_CORRELATION)


@dataclass(frozen=True, eq=False)
class Projected:
    """What a fitted map made of batches of patterns.

    Parameters
    ----------
    linear_map : LinearMap
        The map.
    outputs : list of ndarray of float64, shape (batch, n_outputs)
        The projections of each batch.
    frames : list of ndarray, shape (n_frames, n_session_outputs)
        The frames that each batch was computed from.
    """

    linear_map: LinearMap
    outputs: list[NDArray[np.float64]]
    frames: list[NDArray[Any]]


def fit_and_project(recorder: Recorder, batches: Sequence[NDArray[Any]], n_outputs: int, **wish: Any) -> Projected:
    """Fit a linear map, project batches through it, and count all frames.

    Parameters
    ----------
    recorder : Recorder
        Of the routine.
    batches : sequence of ndarray, shape (batch, n_features)
        Values of 0 and 1, or -1, 0 and 1. Each is cut into parts that the session takes.
    n_outputs : int
        The width of the projection.
    wish : object
        What else `fit_linear_map` is to be asked.

    Raises
    ------
    UnsupportedError
        The device does not offer the method.
    ConfigError, MediumChangedError
        The device could not be used so: see `no_projection`.
    """
    available = available_methods(recorder.description)
    if wish.get("method") not in {None, *available}:
        raise UnsupportedError(f"The method is {wish['method']!r}.", f"This device offers {', '.join(available)}.")
    linear_map = fit_linear_map(recorder.device, batches[0].shape[1], n_outputs, **wish)
    outputs, frames = [], []
    with LinearProjector(recorder.device, linear_map) as projector:
        for patterns in batches:
            step = max(1, projector.max_batch // projector.frames_for(patterns) * len(patterns))
            parts = []
            for start in range(0, len(patterns), step):
                parts.append(projector.project(patterns[start : start + step]))
                recorder.count(parts[-1].projection)
            outputs.append(np.concatenate([part.output for part in parts]).astype(np.float64))
            frames.append(np.concatenate([part.projection.frames for part in parts]))
        recorder.count_unseen(linear_map.n_frames, parts[-1].projection.provenance.frame_us)
    return Projected(linear_map, outputs, frames)


def dark_level_dn(recorder: Recorder, linear_map: LinearMap) -> float:
    """Measure the mean count without light in the session of a linear map; the stated one where the light stays on."""
    dark = take_dark(recorder, msgspec.structs.replace(linear_map.config, reference=NO_REFERENCE), _DARK_FRAMES)
    return recorder.description.black_level_dn if dark is None else float(dark.mean(dtype=np.float64))


def projection_size(
    description: DeviceDescription, method: str | None, n_features: int, n_outputs: int
) -> tuple[int, int]:
    """Return how many of the wanted features and outputs a device can project.

    An anchor takes up to as many mirrors as the pattern has, and of the pixels a part is left out.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     projection_size(device.describe(), None, 64, 10**9)
    (64, 554880)
    """
    n_features, n_outputs = available_size(description, n_features, 4 * n_outputs)
    if (method or available_methods(description)[0]) == ANCHOR:
        n_features = min(n_features, description.n_mirrors // 2)
    return n_features, max(1, n_outputs // 4)


def no_projection(error: OpuError) -> str:
    """Return the finding for a device through which nothing can be projected."""
    if isinstance(error, MediumChangedError):
        return f"The projection that was fitted a moment ago does not hold any more. {error.problem}"
    return (
        f"No linear projection can be fitted: the anchor, the reference arm or the patterns are dark. {error.problem}"
    )


def linear_mode(
    device: Device,
    *,
    noise_key: int = 0,
    n_features: int = 64,
    n_outputs: int = 512,
    n_pairs: int = 4,
    n_repeats: int = 64,
    method: str | None = None,
) -> CalibrationResult:
    """Measure whether the linear projection is linear, and how well it repeats.

    For patterns `x1`, `x2` without a feature in common, `L(x1) + L(x2) = L(x1 + x2)` must hold. Single projections miss
    it by their noise. What is left of it without noise, from products of different repeats, is what saturation, a bent
    camera or a changing laser does (`judge_additivity`).

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_features, n_outputs : int
        The size of the projection, as far as the device has it.
    n_pairs : int
        Pairs of patterns, each with half of the features on together.
    n_repeats : int
        How often everything is projected, at least eight times.
    method : str, optional
        A key of `opu.interference.METHODS`; default the best one that the device offers.

    Returns
    -------
    CalibrationResult
        The additivity error without noise, relative to the output; passes up to 2 %. Quantities: `single_error`, with
        the noise of one projection (up to 20 %; 12 % are those of an 8-bit camera of 10,000 electrons); `pearson` of a
        projection with its own mean (from 0.99); `odd_share` of projections that are unlike their repeats; `memory`,
        how well repeats far apart correlate, relative to near ones; `saturated_share` of the pixel values;
        `power_noise` of the light between frames side by side, photon noise of their means included. With an anchor
        also `power_change` since the fit, `power_bias`, what that adds to the additivity error, and `anchor_ratio` of
        its light to that of a pattern. Data: `outputs_mean` and `sums_mean`, what `x1 + x2` gives and what the sum of
        both does; `outputs_single`, one projection of `x1 + x2`.

    Raises
    ------
    UnsupportedError
        The device does not offer the method.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.linear import linear_mode
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = linear_mode(device)
    >>> result.passed, result.quantities["pearson"].value > 0.99
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_features, n_outputs = projection_size(recorder.description, method, n_features, n_outputs)
    n_repeats = check_whole("n_repeats", n_repeats, _FEWEST_REPEATS, 2**20)
    both = random_halves(check_whole("n_pairs", n_pairs, 1, 2**20), check_whole("n_features", n_features, 4, 2**31))
    first = both & (np.arange(n_features) % 2 == 0)
    triples = np.stack([first, both & ~first, both])
    shown = np.tile(triples.reshape(-1, n_features), (n_repeats, 1))
    try:
        projected = fit_and_project(recorder, [shown], n_outputs, noise_key=noise_key, method=method)
    except (ConfigError, MediumChangedError) as error:
        return recorder.result(
            "linear_mode", _SUMMARY, math.nan, "1", math.nan, limit=(None, _BIAS_LIMIT), findings=[no_projection(error)]
        )
    outputs = projected.outputs[0].reshape(n_repeats, 3, n_pairs, -1)
    additivity = judge_additivity(outputs)
    odd = odd_projections(outputs.reshape(n_repeats, 3 * n_pairs, -1))
    dark_dn, full_scale_dn = dark_level_dn(recorder, projected.linear_map), recorder.description.full_scale_dn
    quantities = {
        "single_error": _quantity(
            additivity.single, additivity.single_error, (None, _SINGLE_LIMIT), "additivity error of single projections"
        ),
        "pearson": _quantity(
            additivity.pearson,
            additivity.pearson_error,
            (_PEARSON_LIMIT, None),
            "correlation of a projection with its own mean",
        ),
        "odd_share": _share_of(len(odd), n_repeats * 3 * n_pairs, "projections that are unlike their repeats"),
        "memory": _quantity(
            _memory(outputs), math.nan, (None, None), "correlation of far repeats over that of near ones"
        ),
        **_light_quantities(projected, outputs, dark_dn, full_scale_dn),
    }
    mean = outputs.mean(axis=0)
    bent = _what_bends(quantities["saturated_share"].value, dark_dn, full_scale_dn)
    return recorder.result(
        "linear_mode",
        _SUMMARY,
        additivity.bias,
        "1",
        additivity.bias_error,
        limit=(None, _BIAS_LIMIT),
        quantities=quantities,
        findings=_findings(additivity, quantities, odd, projected.linear_map, bent),
        data={"outputs_mean": mean[2], "sums_mean": mean[0] + mean[1], "outputs_single": outputs[0, 2]},
    )


_SUMMARY = "additivity error of the linear projection, noise removed"


def _quantity(value: float, error: float, limit: Limit, summary: str) -> Quantity:
    return Quantity(value=value, unit="1", uncertainty=error, limit=limit, summary=summary)


def _share_of(count: int, total: int, summary: str) -> Quantity:
    return _quantity(count / total, math.sqrt(max(count, 1)) / total, (None, 0.0), summary)


def _light_quantities(
    projected: Projected, outputs: NDArray[np.float64], dark_dn: float, full_scale_dn: int
) -> dict[str, Quantity]:
    """Return what the frames say of the light: saturation, its power, and the brightness of the anchor."""
    linear_map = projected.linear_map
    frames = projected.frames[0]
    saturated = float((frames == full_scale_dn).mean())
    n_steps, n_repeats = linear_map.frames_per_pattern, len(outputs)
    power = frames.mean(axis=1, dtype=np.float64).reshape(n_repeats, -1, n_steps) - dark_dn
    usual = power.mean(axis=0)
    noise = math.nan
    if (usual > 0).all() and n_steps > 1:
        relative = power / usual
        noise = float((relative[..., 0] - relative[..., 1]).std()) / math.sqrt(2)
    quantities = {
        "saturated_share": _quantity(saturated, 0.0, (None, None), "pixel values at full scale"),
        "power_noise": _quantity(
            noise,
            noise / math.sqrt(2 * power[..., 0].size),
            (None, None),
            "noise of the light between frames side by side",
        ),
    }
    if linear_map.method == ANCHOR:
        quantities |= _power_change(outputs, linear_map)
        pattern_dn = float(usual[:, 1].mean())
        ratio = 2 * float(linear_map.offset_dn.mean(dtype=np.float64)) / pattern_dn if pattern_dn > 0 else math.nan
        quantities["anchor_ratio"] = _quantity(ratio, math.nan, (None, None), "light of the anchor over a pattern's")
    return quantities


def _power_change(outputs: NDArray[np.float64], linear_map: LinearMap) -> dict[str, Quantity]:
    """Measure how the light has changed since the anchor alone was measured.

    What was subtracted then does not fit now, and `L(x1) + L(x2) - L(x1 + x2)` is as much of it as the light changed.
    """
    offset = (linear_map.offset_dn * linear_map.scale_per_dn).astype(np.float64)
    difference = (outputs[:, 0] + outputs[:, 1] - outputs[:, 2]).mean(axis=1)
    changes = difference @ offset / (offset @ offset)
    change, error = float(changes.mean()), float(changes.std(ddof=1)) / math.sqrt(len(changes))
    bias = abs(change) * math.sqrt(float((offset**2).mean()) / float((outputs[:, 2].mean(axis=0) ** 2).mean()))
    return {
        "power_change": _quantity(change, error, (None, None), "change of the light since the fit, from the anchor"),
        "power_bias": _quantity(
            bias, bias * error / abs(change), (None, None), "what that adds to the additivity error"
        ),
    }


def _memory(outputs: NDArray[np.float64]) -> float:
    """Return by how much repeats far apart correlate less than those near each other: 1 where nothing moves."""
    n_repeats = len(outputs)
    flat = outputs.reshape(n_repeats, -1)
    if not (np.ptp(flat, axis=1) > 0).all():
        return math.nan
    correlations: NDArray[np.float64] = np.asarray(np.corrcoef(flat))
    distance = np.abs(np.subtract.outer(np.arange(n_repeats), np.arange(n_repeats)))
    near = correlations[(distance > 0) & (distance <= n_repeats // 8)].mean()
    return float(correlations[distance >= n_repeats // 2].mean() / near) if near > 0 else math.nan


def _findings(
    additivity: Additivity,
    quantities: dict[str, Quantity],
    odd: NDArray[np.int64],
    linear_map: LinearMap,
    bent: str,
) -> list[str]:
    if math.isnan(additivity.bias):
        return ["The projections of different patterns do not differ from noise: there is no light, or no order."]
    values = {name: quantity.value for name, quantity in quantities.items()}
    if values["saturated_share"] > _OVEREXPOSED:
        return [
            f"{values['saturated_share']:.1%} of the pixel values are at full scale: the camera is overexposed, and "
            "nothing can be projected. Use less light, or a shorter exposure."
        ]
    if len(odd):
        places = ", ".join(str(int(place)) for place in odd[:4])
        return [
            f"{values['odd_share']:.2%} of the projections are of something else than their pattern ({len(odd)}: "
            f"number {places}{', ...' if len(odd) > 4 else ''}): frames are swapped or lost. Measure `latency`."
        ]
    if values["memory"] < _LEAST_MEMORY:
        return [
            f"Projections of one pattern lose {1 - values['memory']:.1%} of their correlation over the measurement: "
            "the medium or the beam moves, and a linear map does not hold. Measure `stability`."
        ]
    change = values.get("power_change", 0.0)
    if abs(change) > _LARGEST_POWER_CHANGE:
        return ["The frames of a projection are not those that it is computed from: they come late. Measure `latency`."]
    findings = []
    has_changed = (
        values.get("power_bias", 0.0) > additivity.bias / math.sqrt(2)
        and abs(change) > _POWER_LIMIT + 3 * quantities["power_change"].uncertainty
    )
    if has_changed:
        findings.append(
            f"The light has changed by {change:+.1%} since the anchor was measured, which bends every projection: let "
            "the laser warm up, or fit anew more often."
        )
    if values["power_noise"] > _POWER_LIMIT:
        findings.append(
            f"The power of the light differs by {values['power_noise']:.1%} from one frame to the next, and linear "
            "projections are differences of frames: steady the laser, or measure its power."
        )
    if values.get("anchor_ratio", 1.0) < _DIM_ANCHOR:
        findings.append(
            f"The anchor has {values['anchor_ratio']:.2f} times the light of a pattern, and should have 1 to 4 times: "
            "its mirrors are stuck, or the beam misses them."
        )
    if additivity.bias > _BIAS_LIMIT and not has_changed:
        findings.append(
            f"The projection by `{linear_map.method}` is not additive: sums miss by {additivity.bias:.2%} without any "
            f"noise, more than {_BIAS_LIMIT:.0%}. {bent}"
        )
    if not findings and not (quantities["single_error"].passed and quantities["pearson"].passed):
        findings.append(
            f"Single projections are noisy: their sums miss by {additivity.single:.1%}, and one correlates by "
            f"{additivity.pearson:.4f} with its own mean. Use more light, or the mean of several."
        )
    return findings


def _what_bends(saturated_share: float, dark_dn: float, full_scale_dn: int) -> str:
    if saturated_share > _SATURATED_LIMIT:
        return f"{saturated_share:.2%} of the pixel values are at full scale: shorten the exposure."
    if dark_dn > _HIGH_BLACK_LEVEL * full_scale_dn:
        return (
            f"The black level of {dark_dn:.3g} DN leaves few of {full_scale_dn} counts for the light, and dim "
            "pixels are rounded: lower it, or use more bits."
        )
    return "The camera is bent, or full below full scale: measure its linearity."
