"""Whether each answer belongs to its pattern: latency in frames, frames out of order, and the window of the trigger."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.faults import stuck_pixels
from opu.calibration.frame_order import PRBS_LENGTH, find_frame_faults, frame_sequence, identify_frames
from opu.calibration.frames import available_size
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding
from opu.calibration.uncertainty import student_factor
from opu.device import DeviceControl, SettingsChange
from opu.errors import RefusedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from opu.calibration.frame_order import FrameFaults, Identified
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, DeviceDescription, SessionConfig

__all__ = ["Ghost", "Plateau", "find_ghost", "find_plateau", "latency", "trigger_window"]

_GHOST_LIMIT = 0.001
_LOST_LIMIT = 0.02
_CYCLE = 8
_BRIGHT_PLACE = 3
_SLOPE = (0.15, 0.85)
_SWEEP_CYCLES = 4
_EXPOSURE_SHARES = np.array([0.5, 0.75, 1.0])
_ROUNDING_DN = 0.005
_ROUNDING_SHARE = 0.01
_LARGEST_SATURATED_SHARE = 0.02
_MOSTLY_STUCK = _MOSTLY_FULL = 0.5
_CURVATURE = 0.001
"""By how much the mean of a frame, a ghost as a share of itself, and the light of a slope may be off: counts of dim
pixels are rounded."""


def latency(
    device: Device, *, noise_key: int = 0, n_frames: int = PRBS_LENGTH, n_features: int = 64, n_outputs: int = 512
) -> CalibrationResult:
    """Measure by how many frames answers come late, and find frames that are lost, doubled or swapped.

    Eight brightnesses are shown in a sequence in which every loss, repeat and swap shows, see `frame_sequence`,
    `identify_frames` and `find_frame_faults`. The exposure is the device's default: on a device whose frames are out of
    order none could be chosen.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_frames : int
        How many frames; latencies are looked for up to a quarter of them, and up to 64.
    n_features, n_outputs : int
        The size of the session, as far as the device has it.

    Returns
    -------
    CalibrationResult
        The latency in frames, passes at 0: positive where an answer shows an earlier pattern, negative where the camera
        sees a later one. Quantities: `dropped_share`, `duplicated_share`, `swapped_share`, `unknown_share` of the
        frames, and `correlation`. A loss of the very first frames counts as latency. Data: `means_dn` of the frames,
        `sent_levels` and `received_levels` of brightness, `sources` of the places, `lags` and their `correlations`.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.trigger import latency
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = latency(device, n_frames=256)
    >>> result.value, result.passed
    (0.0, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_features, n_outputs = available_size(recorder.description, n_features, n_outputs)
    sequence = frame_sequence(n_frames, n_features)
    projection = recorder.take(_spread_pixels(recorder, n_features, n_outputs), sequence.patterns)
    means = projection.frames.mean(axis=1, dtype=np.float64)
    max_late = min(64, n_frames // 4)
    identified = identify_frames(means, sequence.levels, max_late)
    late = identified.late_frames
    faults = find_frame_faults(identified.levels, sequence.levels, late_frames=late or 0)
    places = n_frames - abs(late or 0)
    quantities = {"correlation": _correlation_quantity(identified.correlation)}
    findings = []
    if late is None:
        full_share = float((projection.frames >= recorder.description.full_scale_dn).mean())
        findings.append(_not_in_order(identified, full_share))
    else:
        quantities |= {
            "dropped_share": _share(len(faults.dropped), places, "frames that were lost"),
            "duplicated_share": _share(len(faults.duplicated), places, "frames that came twice"),
            "swapped_share": _share(2 * len(faults.swapped), places, "frames that changed places with a neighbour"),
            "unknown_share": _share(len(_strange(faults, late)), places, "frames that show none of the patterns"),
        }
        findings.extend(_order_findings(late, faults, places, projection.provenance.skipped_frames))
    value = identified.likely_late_frames if late is None else late
    return recorder.result(
        "latency",
        "frames by which answers come late",
        math.nan if value is None else value,
        "frames",
        math.nan if late is None else 0.0,
        limit=(0.0, 0.0),
        quantities=quantities,
        findings=findings,
        data={
            "means_dn": means,
            "sent_levels": sequence.levels,
            "received_levels": identified.levels,
            "sources": faults.sources,
            "lags": np.arange(-max_late, max_late + 1),
            "correlations": identified.curve,
        },
    )


def _spread_pixels(recorder: Recorder, n_features: int, n_outputs: int) -> SessionConfig:
    """Return a session of pixels a few apart, so that the grain of the speckle matters little to their mean."""
    rows, columns = recorder.description.pixels
    stride = 2 if (rows // 2) * (columns // 2) >= n_outputs else 1
    return recorder.config(n_features, n_outputs, stride=stride)


def _correlation_quantity(value: float) -> Quantity:
    return Quantity(
        value=value, unit="1", uncertainty=math.nan, summary="correlation of frame means with the brightness sent"
    )


def _share(count: int, places: int, summary: str) -> Quantity:
    error = math.sqrt(max(count, 1)) / places
    return Quantity(value=count / places, unit="1", uncertainty=error, limit=(None, 0.0), summary=summary)


def _strange(faults: FrameFaults, late: int) -> NDArray[np.int64]:
    """Return the places of frames that cannot be explained: not those that dropped frames leave empty at the end."""
    n_places = len(faults.sources)
    n_missing = max(0, len(faults.dropped) - len(faults.duplicated) + max(0, -late))
    end = n_places - n_missing
    return faults.unknown[faults.unknown < end]


def _not_in_order(identified: Identified, full_share: float) -> str:
    late = identified.likely_late_frames
    if full_share > _MOSTLY_FULL:
        return (
            f"{full_share:.1%} of the values are at full scale: the camera is overexposed, and all patterns look alike."
        )
    if late is None:
        return (
            "The frames do not follow the patterns at all: there is no light, the camera is dark, or the answers come "
            "by more frames late than were looked for."
        )
    where = f"{abs(late)} frames {'later' if late < 0 else 'earlier'}" if late else "their own places"
    return (
        f"The frames follow the patterns of {where} (correlation {identified.correlation:.2f}), but no 16 of them in a "
        "row are what was shown: an exposure meets two patterns (measure `trigger_window`), the light is unsteady, or "
        "most frames are out of order."
    )


def _examples(places: Sequence[int] | NDArray[np.int64]) -> str:
    shown = ", ".join(str(int(place)) for place in places[:4])
    return f"{shown}, ..." if len(places) > 4 else shown


def _order_findings(late: int, faults: FrameFaults, places: int, skipped_frames: int) -> list[str]:
    findings = []
    if late > 0:
        findings.append(
            f"Answers come {late} frames late: the frame of a pattern shows the one {late} before it. The frames are "
            "read from a queue that is not empty, or the camera is started too late."
        )
    if late < 0:
        findings.append(
            f"Frames show the pattern {-late} after their own: the first {-late} frames of a call are lost, or the "
            "camera opens more than a frame time after its trigger."
        )
    if len(faults.dropped):
        counted = f"The device itself counts {skipped_frames}." if skipped_frames else "The device itself counts none."
        findings.append(
            f"{len(faults.dropped) / places:.2%} of the frames are lost ({len(faults.dropped)} of {places}: patterns "
            f"{_examples(faults.dropped)}), and later ones move up. {counted}"
        )
    if len(faults.duplicated):
        findings.append(
            f"{len(faults.duplicated) / places:.2%} of the frames come twice ({len(faults.duplicated)} of {places}: "
            f"places {_examples(faults.duplicated)}), and later ones move down."
        )
    if len(faults.swapped):
        findings.append(
            f"{2 * len(faults.swapped) / places:.2%} of the frames are swapped with their neighbour "
            f"({len(faults.swapped)} pairs in {places} frames, from places {_examples(faults.swapped)})."
        )
    strange = _strange(faults, late)
    if len(strange):
        findings.append(
            f"{len(strange) / places:.2%} of the frames show none of the patterns ({len(strange)} of {places}: places "
            f"{_examples(strange)}): the light is unsteady, or frames are damaged."
        )
    return findings


@dataclass(frozen=True, eq=False)
class Ghost:
    """What frames see of the patterns beside their own.

    Parameters
    ----------
    cycle_dn : ndarray of float64, shape (n_places,)
        The mean frame of each place of the cycle.
    place : int
        The place of the brightest frame.
    light_dn, light_error_dn : float
        How much brighter it is than those far from it, and the standard error.
    before, before_error : float
        Light of the pattern before its own that a frame sees, as a share of what that pattern's own frame sees; NaN
        without light.
    after, after_error : float
        The same for the pattern after its own.
    odd_share : float
        Cycles in which a frame is another one than in most. They are left out.
    """

    cycle_dn: NDArray[np.float64]
    place: int
    light_dn: float
    light_error_dn: float
    before: float
    before_error: float
    after: float
    after_error: float
    odd_share: float


def find_ghost(means_dn: NDArray[np.float64]) -> Ghost:
    """Compare the frames beside bright ones with those farther away.

    Frames of the same dim pattern stand around each bright one, since a camera of eight bits without a black level does
    not see a thousandth of the light in the dark, and does so on top of other light.

    Parameters
    ----------
    means_dn : ndarray of float64, shape (n_cycles, n_places)
        Means of the frames, with one bright pattern in a cycle; at least five places.

    Returns
    -------
    Ghost
        With errors from the spread over the cycles. There is no light where the bright place is not 5 errors brighter.
    """
    usual_dn = np.median(means_dn, axis=0)
    place = int(usual_dn.argmax())
    odd = np.abs(means_dn - usual_dn).max(axis=1) > 0.25 * (usual_dn[place] - np.median(usual_dn))
    usual = means_dn if odd.sum() > len(means_dn) - 2 else means_dn[~odd]
    cycle_dn = usual.mean(axis=0)
    around = np.roll(usual, 2 - place, axis=1)  # before the bright one, it, and after it: places 1, 2 and 3
    far = around[:, [0, *range(4, means_dn.shape[1])]].mean(axis=1)
    (light, light_error), (after, after_error), (before, before_error) = (
        _mean_and_error(around[:, i] - far) for i in (2, 1, 3)
    )
    if not light > max(5 * light_error, 0):
        return Ghost(cycle_dn, place, *[math.nan] * 7)
    before_error = math.hypot(before_error, _ROUNDING_SHARE * before)
    after_error = math.hypot(after_error, _ROUNDING_SHARE * after)
    shares = (before / light, before_error / light, after / light, after_error / light)
    return Ghost(cycle_dn, place, light, light_error, *shares, float(odd.mean()))


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


@dataclass(frozen=True)
class Plateau:
    """The delays at which an exposure sees its own pattern alone, in microseconds; NaN where an edge was not seen.

    Parameters
    ----------
    start_us, start_error_us : float
        The least such delay, and its standard error.
    stop_us, stop_error_us : float
        The largest one, and its standard error.
    centre_error_us : float
        Standard error of the centre: less than the edges have, which an error of the scale moves apart.
    """

    start_us: float
    start_error_us: float
    stop_us: float
    stop_error_us: float
    centre_error_us: float

    @property
    def centre_us(self) -> float:
        """The delay that is safest on both sides."""
        return (self.start_us + self.stop_us) / 2


_NO_PLATEAU = Plateau(*[math.nan] * 5)


def find_plateau(delays_us: NDArray[np.float64], light: NDArray[np.float64], exposure_us: float) -> Plateau:
    """Find the edges of the window from the light of one pattern over the delay of the exposure.

    The light rises over one exposure, stays, and falls over one exposure. Each edge is where a line through its slope,
    from 15 to 85 % of the light, meets the plateau: jitter bends the corners and leaves the slopes.

    Parameters
    ----------
    delays_us : ndarray of float64, shape (n,)
        From the trigger of the bright pattern to the exposure; negative ones are exposures of earlier patterns.
    light : ndarray of float64, shape (n,)
        What it is there, in any unit.
    exposure_us : float
        The exposure, and with it how far the slopes reach.

    Returns
    -------
    Plateau
        The edges, with the standard errors of the fits.
    """
    full_light, error = float(light.max()), 0.0
    plateau = _find_edges(delays_us, light / full_light, exposure_us) if full_light > 0 else _NO_PLATEAU
    inside = light[(delays_us > plateau.start_us) & (delays_us < plateau.stop_us)]
    if len(inside) >= 2:  # the mean of the plateau, rather than its highest point
        full_light, error = float(inside.mean()), float(inside.std(ddof=1)) / math.sqrt(len(inside))
        plateau = _find_edges(delays_us, light / full_light, exposure_us)
    # An error of the scale moves the edges apart, and leaves the centre.
    scale_us = exposure_us * math.hypot(error / full_light, _CURVATURE) if full_light > 0 else math.nan
    return replace(
        plateau,
        start_error_us=math.hypot(plateau.start_error_us, scale_us),
        stop_error_us=math.hypot(plateau.stop_error_us, scale_us),
    )


def _find_edges(delays_us: NDArray[np.float64], shares: NDArray[np.float64], exposure_us: float) -> Plateau:
    full = delays_us[shares >= _SLOPE[1]]
    if len(full) == 0:
        return _NO_PLATEAU
    on_slope = (shares > _SLOPE[0]) & (shares < _SLOPE[1])
    rising = on_slope & (delays_us < full.min()) & (delays_us > full.min() - 1.5 * exposure_us)
    falling = on_slope & (delays_us > full.max()) & (delays_us < full.max() + 1.5 * exposure_us)
    start_us, start_error_us = _edge(delays_us[rising], shares[rising])
    stop_us, stop_error_us = _edge(delays_us[falling], shares[falling])
    return Plateau(start_us, start_error_us, stop_us, stop_error_us, math.hypot(start_error_us, stop_error_us) / 2)


def _edge(delays_us: NDArray[np.float64], shares: NDArray[np.float64]) -> tuple[float, float]:
    """Return the delay at which a line through points reaches 1, and its standard error."""
    n = len(delays_us)
    if n < 4 or np.ptp(shares) < 0.1:
        return math.nan, math.nan
    # The delay as a function of the share: what is wanted is its value at 1.
    x = shares - shares.mean()
    slope = float((x * delays_us).sum() / (x**2).sum())
    edge = float(delays_us.mean() + slope * (1 - shares.mean()))
    residual = delays_us - delays_us.mean() - slope * x
    square = float((x**2).sum())
    # Brighter points are noisier, and the edge hangs on them: each counts by its own residual, over what the fit has
    # left of it (MacKinnon and White, J. Econometrics 29, 305, 1985).
    weights = 1 / n + (1 - shares.mean()) * x / square
    alone = residual / (1 - 1 / n - x**2 / square)
    return edge, math.sqrt(float((weights * alone) @ (weights * alone))) * student_factor(n - 1)


def trigger_window(
    device: Device,
    *,
    noise_key: int = 0,
    n_features: int = 64,
    n_outputs: int = 512,
    n_cycles: int = 64,
    n_delays: int = 32,
    sweep_delay: bool = False,
) -> CalibrationResult:
    """Measure how much light of the patterns beside its own an exposure sees, and how far it is from seeing any.

    One pattern in eight is bright, among dim ones that are all the same: what the frames before and after it have more
    than those farther away is *ghost* light. By how much short exposures are darker than in proportion tells the time
    during which the mirrors were not at rest. With `sweep_delay`, and where the device lets the delay of its trigger be
    set (`DeviceControl`), the delay goes through a frame time and is set back: the plateau of the light is the window,
    and its centre the best delay. The delay is that of all sessions of the device: sweep it while nobody else uses it.

    Parameters
    ----------
    device : Device
        Any device. Over a link the delay is changed by operators alone; for others this measures the ghost light.
    noise_key : int
        The noise of the frames.
    n_features, n_outputs : int
        The size of the session, as far as the device has it.
    n_cycles : int
        Bright patterns for the ghost light: the cost is eight frames each.
    n_delays : int
        Delays that are tried; more, up to four times as many, where the exposure is a small part of the frame time.
    sweep_delay : bool
        Whether to move the delay of the trigger.

    Returns
    -------
    CalibrationResult
        The larger one of the ghosts of the pattern before and of the one after, as a share of the light of a pattern;
        passes up to 0.1 %. Quantities: `ghost_before`, `ghost_after`, `lost_us` of the exposure; and where the delay
        was swept `window_start_us`, `window_stop_us` (the delays between which the pattern is seen alone) and
        `best_delay_us`. Data: `cycle_dn`, the mean of the places of a cycle; `exposures_us` and their `light_dn`;
        `delays_us` from the trigger of the bright pattern and its light at them, `delayed_dn`.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.trigger import trigger_window
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     result = trigger_window(device, sweep_delay=True)
    >>> abs(result.quantities["best_delay_us"].value - 50) < 5, result.passed
    (True, True)
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_features, n_outputs = available_size(recorder.description, n_features, n_outputs)
    config = _spread_pixels(recorder, n_features, n_outputs)
    rank = np.random.default_rng(0).permutation(n_features)
    patterns = np.tile(rank < max(1, n_features // 4), (_CYCLE, 1))
    patterns[_BRIGHT_PLACE] = rank < 3 * n_features // 4
    projection = recorder.take(config, np.tile(patterns, (n_cycles, 1)))
    ghost = find_ghost(_cycle_means(projection.frames))
    saturated = _saturation(projection.frames, recorder.description)
    if saturated:
        ghost = Ghost(ghost.cycle_dn, ghost.place, *[math.nan] * 7)
    quantities = {
        "ghost_before": _ghost_quantity(ghost.before, ghost.before_error, "light of the pattern before"),
        "ghost_after": _ghost_quantity(ghost.after, ghost.after_error, "light of the pattern after"),
    }
    data: dict[str, NDArray[Any]] = {"cycle_dn": ghost.cycle_dn}
    if math.isnan(ghost.light_dn):
        findings = saturated or [
            "Bright patterns are no brighter than dim ones: there is no light, or the camera is dark."
        ]
    else:
        cycle = _Cycle(recorder, projection.provenance.config, patterns, ghost, projection.provenance.frame_us)
        exposures: dict[str, NDArray[Any]] = {}
        if "off" in recorder.description.light:
            quantities["lost_us"], exposures = _measure_lost(cycle, n_cycles)
        plateau, delays = _sweep_delay(cycle, n_delays) if sweep_delay else (None, {})
        data |= exposures | delays
        if plateau is not None:
            quantities |= _plateau_quantities(plateau)
        findings = _window_findings(ghost, quantities, cycle.exposure_us)
    worst = quantities["ghost_after" if ghost.after > ghost.before else "ghost_before"]
    return recorder.result(
        "trigger_window",
        "light of neighbouring patterns in a frame",
        worst.value,
        "1",
        worst.uncertainty,
        limit=(None, _GHOST_LIMIT),
        quantities=quantities,
        findings=findings,
        data=data,
    )


@dataclass(frozen=True, eq=False)
class _Cycle:
    """What is shown for the window, and how it looked at the delay that the device has."""

    recorder: Recorder
    config: SessionConfig
    patterns: NDArray[np.bool_]
    ghost: Ghost
    frame_us: float

    @property
    def exposure_us(self) -> float:
        return self.config.exposure_us or math.nan


def _saturation(frames: NDArray[Any], description: DeviceDescription) -> list[str]:
    """Word that the light of bright patterns is cut off, as far as pixels see it that are not stuck."""
    speckles = frames.reshape(-1, _CYCLE, frames.shape[1]).mean(axis=0, dtype=np.float64)
    stuck = stuck_pixels(frames, description.full_scale_dn)
    seen = speckles if stuck.mean() > _MOSTLY_STUCK else speckles[:, ~stuck]
    brightest = seen[seen.mean(axis=1).argmax()][np.newaxis]
    black_dn = description.black_level_dn
    return saturation_finding(
        brightest - black_dn, description.full_scale_dn - black_dn, largest_share=_LARGEST_SATURATED_SHARE
    )


def _cycle_means(frames: NDArray[Any]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = frames.mean(axis=1, dtype=np.float64).reshape(-1, _CYCLE)
    return means


def _ghost_quantity(share: float, error: float, summary: str) -> Quantity:
    return Quantity(value=share, unit="1", uncertainty=error, limit=(None, _GHOST_LIMIT), summary=summary)


def _measure_lost(cycle: _Cycle, n_repeats: int) -> tuple[Quantity, dict[str, NDArray[Any]]]:
    """Measure the part of an exposure without light: where the line of the light over the exposure meets zero."""
    shortest_us = cycle.recorder.description.exposure_us.minimum
    exposures_us = np.maximum(cycle.exposure_us * _EXPOSURE_SHARES, shortest_us)
    shown = np.repeat(cycle.patterns[_BRIGHT_PLACE][np.newaxis], n_repeats, axis=0)
    light_dn, errors_dn = np.zeros(len(exposures_us)), np.zeros(len(exposures_us))
    for i, exposure_us in enumerate(exposures_us):
        lit = msgspec.structs.replace(cycle.config, exposure_us=float(exposure_us))
        (lit_dn, lit_error), (dark_dn, dark_error) = (
            _mean_and_error(cycle.recorder.take(config, shown).frames.mean(axis=1, dtype=np.float64))
            for config in (lit, msgspec.structs.replace(lit, light="off"))
        )
        light_dn[i], errors_dn[i] = lit_dn - dark_dn, math.hypot(lit_error, dark_error)
    lost_us, error_us = _line_zero(exposures_us, light_dn, np.maximum(errors_dn, _ROUNDING_DN))
    quantity = Quantity(value=lost_us, unit="us", uncertainty=error_us, summary="part of an exposure without light")
    return quantity, {"exposures_us": exposures_us, "light_dn": light_dn}


def _line_zero(x: NDArray[np.float64], y: NDArray[np.float64], errors: NDArray[np.float64]) -> tuple[float, float]:
    """Return where a weighted line through points is zero, and its standard error; NaN where it does not rise."""
    weights = errors**-2
    total = weights.sum()
    mean_x, mean_y = (weights * x).sum() / total, (weights * y).sum() / total
    spread = (weights * (x - mean_x) ** 2).sum()
    slope = (weights * (x - mean_x) * y).sum() / spread if spread > 0 else 0.0
    if not slope > 0:
        return math.nan, math.nan
    away = mean_y / slope  # from the mean point to the zero
    return float(mean_x - away), math.sqrt(1 / total + away**2 / spread) / float(slope)


def _sweep_delay(cycle: _Cycle, n_delays: int) -> tuple[Plateau | None, dict[str, NDArray[Any]]]:
    """Find the window over the delay of the trigger; nothing where this client cannot set it."""
    try:
        control = cycle.recorder.device.capability(DeviceControl)
    except UnsupportedError:
        return None, {}
    limits, before_us = control.limits().get("trigger_delay_us"), control.settings().trigger_delay_us
    if limits is None or before_us is None:
        return None, {}
    n_settings = min(4 * n_delays, max(n_delays, math.ceil(6 * cycle.frame_us / cycle.exposure_us)))
    last_us = min(limits.maximum, limits.minimum + cycle.frame_us)
    settings_us = np.linspace(limits.minimum, last_us, n_settings, endpoint=False)
    shown = np.tile(cycle.patterns, (_SWEEP_CYCLES, 1))
    light_dn = np.empty((n_settings, _CYCLE))
    try:
        for i, setting_us in enumerate(settings_us):
            control.change(SettingsChange(trigger_delay_us=float(setting_us)))
            light_dn[i] = _cycle_means(cycle.recorder.take(cycle.config, shown).frames).mean(axis=0)
    except RefusedError:
        return None, {}  # this client may look alone, or somebody else is changing settings
    finally:
        if control.settings().trigger_delay_us != before_us:
            control.change(SettingsChange(trigger_delay_us=before_us))
    light_dn -= np.median(light_dn, axis=1, keepdims=True)  # the dim pattern, of which less is seen at some delays
    places = (np.arange(_CYCLE) - cycle.ghost.place + _CYCLE // 2) % _CYCLE - _CYCLE // 2  # from the bright one
    delays_us = (settings_us[:, np.newaxis] + cycle.frame_us * places).ravel()
    order = delays_us.argsort()
    delays_us, light = delays_us[order], light_dn.ravel()[order]
    return find_plateau(delays_us, light, cycle.exposure_us), {"delays_us": delays_us, "delayed_dn": light}


def _plateau_quantities(plateau: Plateau) -> dict[str, Quantity]:
    start, stop = "least delay at which a pattern is seen alone", "largest delay at which a pattern is seen alone"
    return {
        name: Quantity(value=value, unit="us", uncertainty=error, summary=summary)
        for name, value, error, summary in (
            ("window_start_us", plateau.start_us, plateau.start_error_us, start),
            ("window_stop_us", plateau.stop_us, plateau.stop_error_us, stop),
            ("best_delay_us", plateau.centre_us, plateau.centre_error_us, "the middle between them"),
        )
    }


def _window_findings(ghost: Ghost, quantities: dict[str, Quantity], exposure_us: float) -> list[str]:
    findings = []
    advice = "Have the camera open {}, or leave more time between frames."
    if "best_delay_us" in quantities and not math.isnan(quantities["best_delay_us"].value):
        best_us = quantities["best_delay_us"].value
        advice += f" The best delay of the trigger is {best_us:.0f} us."
    shift = ghost.place - _BRIGHT_PLACE
    if shift:
        findings.append(
            f"Frames show the pattern {abs(shift)} {'before' if shift > 0 else 'after'} their own: measure `latency`."
        )
    if ghost.odd_share > 0:
        findings.append(
            f"In {ghost.odd_share:.1%} of the rounds a frame is not the one that it is in the others: frames are out "
            "of order (measure `latency`), or the light is unsteady."
        )
    for share, error, where, remedy in (
        (ghost.before, ghost.before_error, "before", "later"),
        (ghost.after, ghost.after_error, "after", "earlier"),
    ):
        if share > _GHOST_LIMIT:
            is_noise = share <= _GHOST_LIMIT + 3 * error
            doubt = f" It may be noise: the standard error is {error:.2%}. Use more cycles, or more light."
            findings.append(
                f"{share:.2%} of the light of the pattern {where} it falls into a frame, and at most "
                f"{_GHOST_LIMIT:.1%} should.{doubt if is_noise else ' ' + advice.format(remedy)}"
            )
    lost = quantities.get("lost_us")
    if lost is not None and lost.value > _LOST_LIMIT * exposure_us + 3 * lost.uncertainty:
        findings.append(
            f"{lost.value:.0f} us of an exposure of {exposure_us:.0f} us see no light: the camera opens before the "
            f"mirrors are at rest. {advice.format('later')}"
        )
    return findings
