"""Measure a transmission matrix on a device, and say how far it is to be believed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.matrix.anchors import LEAST_SPREAD, AnchorPlan
from opu.calibration.matrix.matrix import TransmissionMatrix
from opu.calibration.matrix.retrieval import PhaseRetrieval, frame_correlations, retrieval_patterns
from opu.calibration.matrix.stepping import SteppingPlan
from opu.calibration.matrix.unfinished import MatrixSettings, Start, UnfinishedMatrix
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding
from opu.device import NO_REFERENCE, REFERENCE_STEPS, check_whole
from opu.errors import ConfigError, MediumChangedError, UnsupportedError
from opu.exposure import TARGET_FRACTION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.result import CalibrationResult
    from opu.device import Device, Provenance, Region, SessionConfig

__all__ = ["METHODS", "check_unfinished", "measure_transmission_matrix", "transmission_matrix"]

METHODS = ("retrieval", "anchors", "three_step", "four_step")
"""How a matrix can be measured; the last two take a reference arm."""

OnProgress = Callable[[str, int, int], object]


def _no_progress(_what: str, _done: int, _all: int) -> None:
    """Tell nobody."""


_OVERSAMPLING = 6.0
_N_ANCHORS = 3
_MAX_BYTES = 2**29
_DARK_FRAMES = 32
_PROBES = 16
_HELD_OUT = 48
_EXPOSURE_PATTERNS = 32
_ANCHOR_POLISH = 60
_CHUNK = 512
# With all frames about as bright, more light is better than fewer saturated samples: those are treated as bounds.
_BRIGHT_FRACTION = 1 / 7
# The best of a ninth to a fifth for three steps, on the simulator with 8 bits and 10,000 electrons.
_STEPPED_FRACTION = 1 / 6
_SIGNIFICANT = 5.0
_HELD_OUT_SEED = 1
_PROBE_SEED = 2
_BEGIN_ANEW = "Delete the unfinished file to begin anew."
_HOT_DN = 3.0
_LARGEST_HOT_SHARE = 0.01
_LARGEST_SATURATED_SHARE = 0.005
_LARGEST_LOST_SHARE = 0.1
_LARGEST_LOST_SHARE_OF_ANCHORS = 0.25
_LEAST_STABILITY = 0.98
# Not the noise of the frames of the measurement.
_RESUMED_NOISE = 2**61
_LIMIT = 0.99
_DIMMEST_DN = 0.5


def measure_transmission_matrix(
    device: Device,
    *,
    n_features: int = 256,
    n_outputs: int = 256,
    method: str = "auto",
    oversampling: float = _OVERSAMPLING,
    n_anchors: int = _N_ANCHORS,
    region: Region | None = None,
    stride: int = 1,
    noise_key: int = 0,
    max_bytes: int = _MAX_BYTES,
    unfinished: str | os.PathLike[str] | None = None,
    on_progress: OnProgress = _no_progress,
) -> TransmissionMatrix:
    """Measure the transmission matrix of a session.

    Parameters
    ----------
    device : Device
        Any device. It is judged by its frames alone.
    n_features, n_outputs : int
        The size of the session. Rows are independent, and there may be as many as the device has pixels; the time goes
        with `n_outputs n_features**2`, some 6 s for 512 x 512 and 50 s for 1024 x 1024 on two cores.
    method : str
        One of `METHODS`. `auto` steps the phase of a reference arm where there is one, and else retrieves phases.
    oversampling : float
        Frames for each feature, for `retrieval`: 6 is safe, 4.5 mostly enough with a good camera.
    n_anchors : int
        For `anchors`: each costs one frame for each feature more, `n_anchors + 1.2` in all.
    region, stride
        Of the session, see `SessionConfig`. Neighbouring pixels within a speckle grain have nearly the same row.
    noise_key : int
        The noise of the frames.
    max_bytes : int
        Memory for the retrieval. Beside it there are 4 bytes for each of `frames x (2 n_features + n_outputs)`.
    unfinished : str or path, optional
        A file for the frames taken and the rows finished, written meanwhile and when the work is interrupted, by
        whatever. If it is there at the beginning, the work goes on where it stopped, after 32 frames that tell whether
        the medium stood still, and are not counted; at the end it is deleted.
    on_progress : callable, optional
        Called with ("frames" or "rows", how many are done, all).

    Returns
    -------
    TransmissionMatrix
        Ready to predict: with its dark level, and a quality for each row.

    Raises
    ------
    ConfigError
        The method or a size is not possible, or the unfinished frames are those of another device, medium, epoch or
        size.
    MediumChangedError
        The unfinished frames are those of another laser power, or patterns that were shown before them look different
        now. Also where that power changes between the frames.
    UnsupportedError
        The method needs a reference arm and the device has none, or its light stays on.
    DataFileError
        The unfinished file is damaged, or cannot be written.
    MissingExtraError
        There is an unfinished file, and the extra `hdf5` is not installed.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.matrix.measure import measure_transmission_matrix
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     found = measure_transmission_matrix(device, n_features=32, n_outputs=64)
    >>> found.matrix.shape, found.method, bool(found.kept.mean() > 0.9)
    ((64, 32), 'retrieval', True)
    """
    plan = _Plan(
        recorder=Recorder(device, noise_key=noise_key),
        n_features=n_features,
        n_outputs=n_outputs,
        method=method,
        oversampling=oversampling,
        n_anchors=n_anchors,
        region=region,
        stride=stride,
        noise_key=noise_key,
        max_bytes=max_bytes,
        on_progress=on_progress,
    )
    with UnfinishedMatrix.open(unfinished, plan.settings) as kept:
        return _take(plan, kept).matrix


def transmission_matrix(
    device: Device,
    *,
    n_features: int = 256,
    n_outputs: int = 256,
    method: str = "auto",
    oversampling: float = _OVERSAMPLING,
    n_anchors: int = _N_ANCHORS,
    region: Region | None = None,
    stride: int = 1,
    noise_key: int = 0,
    max_bytes: int = _MAX_BYTES,
    unfinished: str | os.PathLike[str] | None = None,
    on_progress: OnProgress = _no_progress,
    on_matrix: Callable[[TransmissionMatrix], object] = lambda _matrix: None,
) -> CalibrationResult:
    """Measure a transmission matrix and how well it predicts frames that it was not made from.

    Forty-eight further patterns are shown twice. The value is the Pearson correlation of predicted and measured
    frames, over the rows that are kept, divided by that of a perfect prediction, which is the square root of the
    correlation of the two measurements. The limit is 0.99.

    Parameters
    ----------
    device, n_features, n_outputs, method, oversampling, n_anchors, region, stride, noise_key
        As for `measure_transmission_matrix`; sizes as far as the device has them.
    max_bytes, unfinished, on_progress
        As for `measure_transmission_matrix`.
    on_matrix : callable, optional
        Called with the `TransmissionMatrix` as soon as it is there, to keep it. The unfinished file is deleted later.

    Returns
    -------
    CalibrationResult
        The quantities are `held_out` (the correlation), `repeatability` (of the two measurements), `kept_share` of the
        rows, `residual` (the median of the relative residuals of the rows), `stability` (correlation of
        patterns shown before and after the measurement, relative to that of their repeats), `background_share`
        (intensity with all features off, relative to that of the patterns) and `frames_per_feature`.

        Data: `held_out` and `repeatability`, the correlations for each held-out pattern; `row_quality`, `kept` and
        `mean_dn`, for each row; `predicted_dn` and `measured_dn`, samples of the held-out frames, for a scatter plot.
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_features, n_outputs = available_size(recorder.description, n_features, n_outputs)
    plan = _Plan(
        recorder=recorder,
        n_features=n_features,
        n_outputs=n_outputs,
        method=method,
        oversampling=oversampling,
        n_anchors=n_anchors,
        region=region,
        stride=stride,
        noise_key=noise_key,
        max_bytes=max_bytes,
        on_progress=on_progress,
    )
    with UnfinishedMatrix.open(unfinished, plan.settings) as kept:
        taken = _take(plan, kept)
        on_matrix(taken.matrix)
        return _judge(plan, taken)


def check_unfinished(
    device: Device,
    path: str | os.PathLike[str],
    *,
    n_features: int = 256,
    n_outputs: int = 256,
    noise_key: int = 0,
) -> None:
    """Check, before other work, that `transmission_matrix` can go on with an unfinished file; none is good, too.

    Raises
    ------
    ConfigError, MediumChangedError, DataFileError, MissingExtraError
        As `measure_transmission_matrix`.
    UnsupportedError
        The device cannot measure a matrix.
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_features, n_outputs = available_size(recorder.description, n_features, n_outputs)
    plan = _Plan(recorder=recorder, n_features=n_features, n_outputs=n_outputs, noise_key=noise_key)
    UnfinishedMatrix.open(path, plan.settings)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Plan:
    """What was asked for, and the recorder of the frames. The defaults are those of the measurements."""

    recorder: Recorder
    n_features: int
    n_outputs: int
    method: str = "auto"
    oversampling: float = _OVERSAMPLING
    n_anchors: int = _N_ANCHORS
    region: Region | None = None
    stride: int = 1
    noise_key: int = 0
    max_bytes: int = _MAX_BYTES
    on_progress: OnProgress = _no_progress

    def __post_init__(self) -> None:
        check_whole("n_features", self.n_features, 2, 2**31)
        check_whole("n_outputs", self.n_outputs, 1, 2**31)
        if not (isinstance(self.oversampling, (int, float)) and 2 <= self.oversampling <= 1000):
            raise ConfigError(f"oversampling is {self.oversampling!r}.", "Use a number from 2 to 1000; 6 is safe.")
        if self.method not in ("auto", *METHODS):
            raise ConfigError(f"The method is {self.method!r}.", f"Use auto, {', '.join(METHODS)}.")
        if self.method in REFERENCE_STEPS and self.method not in self.recorder.description.references:
            raise UnsupportedError(
                f"The method {self.method} needs a reference arm that this device does not have.",
                f"It offers {', '.join(self.recorder.description.references)}; use the method retrieval.",
            )
        if "off" not in self.recorder.description.light:
            raise UnsupportedError(
                "A matrix needs the dark level, and the light of this device stays on.",
                "Use a device whose light can be switched off.",
            )

    @property
    def chosen_method(self) -> str:
        """Return the method, chosen where it was left open."""
        if self.method != "auto":
            return self.method
        stepped = [use for use in ("four_step", "three_step") if use in self.recorder.description.references]
        return stepped[0] if stepped else "retrieval"

    @property
    def settings(self) -> MatrixSettings:
        """Return to what the frames belong."""
        description = self.recorder.description
        return MatrixSettings(
            device_id=description.device_id,
            medium_id=description.medium.medium_id,
            medium_epoch=description.medium.epoch,
            calibration_id=description.calibration_id,
            n_features=self.n_features,
            n_outputs=self.n_outputs,
            method=self.chosen_method,
            oversampling=float(self.oversampling),
            n_anchors=self.n_anchors,
            region=self.region,
            stride=self.stride,
            noise_key=self.noise_key,
            n_dark=_DARK_FRAMES,
            n_first=_DARK_FRAMES + _PROBES,
        )

    def config(self, **fields: Any) -> SessionConfig:
        """Return a configuration of the wanted size."""
        return self.recorder.config(self.n_features, self.n_outputs, region=self.region, stride=self.stride, **fields)


@dataclass(frozen=True, eq=False)
class _Taken:
    """A measured matrix, and what else the frames tell."""

    matrix: TransmissionMatrix
    hot: NDArray[np.bool_]
    before: NDArray[np.float32]
    background_share: float
    saturation: list[str]
    mean_dn: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Found:
    """What a method gives."""

    matrix: NDArray[np.complex64]
    background: NDArray[np.complex64]
    row_quality: NDArray[np.float32]
    kept: NDArray[np.bool_]


def _take(plan: _Plan, kept: UnfinishedMatrix) -> _Taken:
    """Take the frames that are not kept yet, and recover the matrix."""
    recorder, method = plan.recorder, plan.chosen_method
    steps = REFERENCE_STEPS.get(method, 1)
    start, is_resumed = kept.start, kept.start is not None
    if start is None:
        start = _start(plan)
        kept.begin(start, recorder.costs)
    elif kept.costs is not None:
        recorder.go_on(kept.costs)
    dark = start.dark.astype(np.float32)
    dark_dn = dark.mean(axis=0)
    off, before = np.split(start.first.astype(np.float32) - dark_dn, [_DARK_FRAMES])
    share, has_background = _background(off, dark - dark_dn, before)
    patterns, solve = _method(plan, method, has_background)
    kept.check_patterns(patterns)
    if is_resumed and len(kept.frames) < len(patterns):
        _check_stillness(plan, start, before, dark_dn)
        if steps > 1 and len(kept.frames) > 0:
            last = slice(max(0, len(kept.frames) - _PROBES // steps * steps), len(kept.frames))
            _check_arm(plan, start, patterns[last], kept.frames[last], dark_dn)
    frames = _take_in_parts(plan, start, patterns, steps, kept)
    full_scale = recorder.description.full_scale_dn
    # In place of the counts: a second array of this size would be the largest of all.
    counts = frames.astype(np.float32)
    counts -= dark_dn
    level_dn = float(np.median(dark_dn))
    hot = _hot(dark_dn)
    some = counts[:: max(1, len(counts) // _CHUNK), ~hot]
    saturation = saturation_finding(some, full_scale - level_dn, largest_share=_LARGEST_SATURATED_SHARE)
    found = solve(patterns, counts, full_scale - dark_dn, kept)
    provenance = start.provenance
    matrix = TransmissionMatrix(
        matrix=found.matrix,
        background=found.background,
        dark_dn=dark_dn,
        row_quality=found.row_quality,
        kept=found.kept & ~hot,
        config=start.config,
        method=method,
        n_frames=recorder.frames,
        device_id=provenance.device_id,
        medium_id=provenance.medium_id,
        medium_epoch=provenance.medium_epoch,
        measured_unix_s=provenance.finished_unix_s,
        laser_power_mw=provenance.laser_power_mw,
    )
    return _Taken(matrix, hot, before, share, saturation, counts.mean(axis=0))


def _start(plan: _Plan) -> Start:
    """Choose the exposure, and take the frames before those of the patterns."""
    recorder, method = plan.recorder, plan.chosen_method
    stepped = method in REFERENCE_STEPS
    zeros = np.zeros((_DARK_FRAMES, plan.n_features), np.bool_)
    arm = method if stepped else NO_REFERENCE
    typical = _typical_patterns(plan, method)
    fraction = _STEPPED_FRACTION if stepped else TARGET_FRACTION if method == "retrieval" else _BRIGHT_FRACTION
    exposed = recorder.expose(
        plan.config(reference=arm), typical.repeat(REFERENCE_STEPS[arm], axis=0), target_fraction=fraction
    )
    dark_config = msgspec.structs.replace(exposed, light="off", reference=NO_REFERENCE)
    dark = recorder.take(dark_config, zeros)
    plain = msgspec.structs.replace(exposed, reference=NO_REFERENCE)
    with recorder.device.open_session(plain) as session:
        config = session.config
        first = recorder.take_from(session, np.concatenate([zeros, _probe_patterns(plan)]))
    return Start(exposed, config, first.provenance, dark.frames, first.frames)


def _typical_patterns(plan: _Plan, method: str) -> NDArray[np.bool_]:
    """Return patterns as bright as the brightest of a method, for the exposure."""
    if method == "retrieval":
        return retrieval_patterns(_EXPOSURE_PATTERNS, plan.n_features)
    if method == "anchors":
        return AnchorPlan(plan.n_features, n_anchors=plan.n_anchors).patterns[-_EXPOSURE_PATTERNS:]
    rng = np.random.default_rng(_PROBE_SEED)
    return rng.random((_EXPOSURE_PATTERNS // 4, plan.n_features)) < 0.5


def _probe_patterns(plan: _Plan) -> NDArray[np.bool_]:
    """Return patterns that are shown before and after, as bright as those of the retrieval."""
    return retrieval_patterns(_PROBES, plan.n_features, seed=_PROBE_SEED)


def _background(off: NDArray[np.float32], dark: NDArray[np.float32], lit: NDArray[np.float32]) -> tuple[float, bool]:
    """Return the intensity with all features off relative to that of patterns, and whether it is significant.

    The standard error is that of the mean of all pixels: of their frame means, which include what they share.
    """
    means, zero = off.mean(axis=1, dtype=np.float64), dark.mean(axis=1, dtype=np.float64)
    error = math.hypot(float(means.std(ddof=1)), float(zero.std(ddof=1))) / math.sqrt(len(means))
    mean, level = float(means.mean() - zero.mean()), float(lit.mean(dtype=np.float64))
    return (mean / level if level > 0 else math.nan), mean > _SIGNIFICANT * error


Solver = Callable[["NDArray[np.bool_]", "NDArray[np.float32]", "NDArray[np.float32]", UnfinishedMatrix], _Found]


def _method(plan: _Plan, method: str, background: bool) -> tuple[NDArray[np.bool_], Solver]:
    """Return the patterns of a method, and the function that makes a matrix of them, their counts and full scale."""
    if method in REFERENCE_STEPS:
        stepping = SteppingPlan(plan.n_features, REFERENCE_STEPS[method])

        def solve_steps(
            _patterns: NDArray[np.bool_],
            counts: NDArray[np.float32],
            saturation: NDArray[np.float32],
            _kept: UnfinishedMatrix,
        ) -> _Found:
            found = stepping.recover(counts, saturation=saturation)
            return _Found(found.matrix, found.background, found.row_quality, found.kept)

        return stepping.patterns, solve_steps
    if method == "anchors":
        anchors = AnchorPlan(plan.n_features, n_anchors=plan.n_anchors)
        return anchors.patterns, _retrieval_solver(plan, background, anchors)
    n_columns = plan.n_features + background
    patterns = retrieval_patterns(math.ceil(plan.oversampling * n_columns), plan.n_features, varied=background)
    return patterns, _retrieval_solver(plan, background, None)


def _retrieval_solver(plan: _Plan, background: bool, anchors: AnchorPlan | None) -> Solver:
    def solve(
        patterns: NDArray[np.bool_],
        counts: NDArray[np.float32],
        saturation: NDArray[np.float32],
        kept: UnfinishedMatrix,
    ) -> _Found:
        def note(done: int, rows: int) -> None:
            kept.keep_rows(retrieval.finished_)
            plan.on_progress("rows", done, rows)

        retrieval = PhaseRetrieval(background=background, max_bytes=plan.max_bytes, on_progress=note)
        plan.on_progress("rows", 0 if kept.rows is None else int(kept.rows.done.sum()), counts.shape[1])
        if anchors is None:
            retrieval.fit(patterns, counts, saturation=saturation, resume=kept.rows)
            return _Found(retrieval.matrix_, retrieval.background_, retrieval.row_quality_, retrieval.kept_)
        # The flag of a row tells whether the closed form was good enough to polish.
        retrieval.n_restarts, retrieval.n_polish = 0, _ANCHOR_POLISH
        start = anchors.recover(counts)
        initial = np.pad(start.matrix, ((0, 0), (0, int(background))))
        retrieval.fit(patterns, counts, saturation=saturation, initial=initial, resume=kept.rows)
        believed = retrieval.kept_ & (start.spread >= LEAST_SPREAD)
        return _Found(retrieval.matrix_, retrieval.background_, retrieval.row_quality_, believed)

    return solve


def _take_in_parts(
    plan: _Plan, start: Start, patterns: NDArray[np.bool_], steps: int, kept: UnfinishedMatrix
) -> NDArray[Any]:
    """Take the frames of patterns in parts, after those that are kept, and keep them."""
    size = _CHUNK // steps * steps
    done = len(kept.frames)
    plan.on_progress("frames", done, len(patterns))
    if done == len(patterns):
        return kept.frames
    frames = np.empty((len(patterns), plan.n_outputs), plan.recorder.description.frame_dtype)
    frames[:done] = kept.frames
    with plan.recorder.device.open_session(start.exposed) as session:
        while done < len(patterns):
            part = plan.recorder.take_from(session, patterns[done : done + size])
            _check_power(part.provenance, start.provenance)
            frames[done : done + size] = part.frames
            done += len(part.frames)
            kept.keep_frames(frames[:done], plan.recorder.costs)
            plan.on_progress("frames", done, len(patterns))
    return frames


def _check_power(now: Provenance, first: Provenance) -> None:
    """Check that the laser has the power of the first frames."""
    if now.laser_power_mw != first.laser_power_mw:
        raise MediumChangedError(
            f"The first frames were taken with the laser at {first.laser_power_mw} mW, and it is at "
            f"{now.laser_power_mw} mW now.",
            f"Set it to {first.laser_power_mw} mW to go on, or begin anew.",
        )


def _check_stillness(plan: _Plan, start: Start, before: NDArray[np.float32], dark_dn: NDArray[np.float32]) -> None:
    """Check by frames of patterns that were shown before that an interrupted measurement can go on.

    They are not in its books: the frames that are missing have the numbers that they would have had.
    """
    probes = _probe_patterns(plan)
    config = msgspec.structs.replace(start.config, noise_key=plan.noise_key ^ _RESUMED_NOISE)
    projection = Recorder(plan.recorder.device).take(config, np.concatenate([probes, probes]))
    present, first = projection.provenance, start.provenance
    _check_power(present, first)
    if (present.medium_id, present.medium_epoch) != (first.medium_id, first.medium_epoch):
        raise MediumChangedError(
            f"The first frames were taken through the medium {first.medium_id}, epoch {first.medium_epoch}, and it is "
            f"{present.medium_id}, epoch {present.medium_epoch}, now.",
            _BEGIN_ANEW,
        )
    now, again = np.split(projection.frames.astype(np.float32) - dark_dn, 2)
    _check_likeness(before, now, again, "medium")


def _check_arm(
    plan: _Plan, start: Start, patterns: NDArray[np.bool_], frames: NDArray[Any], dark_dn: NDArray[np.float32]
) -> None:
    """Check by patterns that were shown with the steps of the arm that it has the phase that it had."""
    config = msgspec.structs.replace(start.exposed, noise_key=plan.noise_key ^ _RESUMED_NOISE)
    recorder = Recorder(plan.recorder.device)
    now, again = (recorder.take(config, patterns).frames.astype(np.float32) - dark_dn for _ in range(2))
    _check_likeness(frames.astype(np.float32) - dark_dn, now, again, "reference arm")


def _check_likeness(
    before: NDArray[np.float32], now: NDArray[np.float32], again: NDArray[np.float32], what: str
) -> None:
    stability = _stability(before, now, again)
    if not stability >= _LEAST_STABILITY:
        raise MediumChangedError(
            f"The {what} changed since the first frames were taken: the same patterns correlate by "
            f"{stability:.3f} of their repeatability.",
            _BEGIN_ANEW,
        )


def _stability(before: NDArray[np.float32], after: NDArray[np.float32], after_again: NDArray[np.float32]) -> float:
    """Return the correlation of frames before and after relative to that of repeats."""
    return _ratio(float(frame_correlations(before, after).mean()), float(frame_correlations(after, after_again).mean()))


def _hot(dark_dn: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which pixels are far above the dark level of the others."""
    middle = float(np.median(dark_dn))
    spread = 1.4826 * float(np.median(np.abs(dark_dn - middle)))
    return dark_dn > middle + max(_HOT_DN, 8 * spread)


def _judge(plan: _Plan, taken: _Taken) -> CalibrationResult:
    """Show patterns that the matrix was not made from, and word what was found."""
    recorder, matrix = plan.recorder, taken.matrix
    frames_per_feature = recorder.frames / plan.n_features
    held_out = retrieval_patterns(_HELD_OUT, plan.n_features, seed=_HELD_OUT_SEED)
    probes = _probe_patterns(plan)
    shown = np.concatenate([held_out, probes, held_out, probes])
    projection = recorder.take(matrix.config, shown)
    counts = projection.frames.astype(np.float32) - matrix.dark_dn
    once, after, again, after_again = np.split(counts, np.cumsum([_HELD_OUT, _PROBES, _HELD_OUT]))
    kept = matrix.kept
    predicted = matrix.intensities(held_out)[:, kept]
    repeats = frame_correlations(once[:, kept], again[:, kept])
    correlations = frame_correlations(predicted, once[:, kept]) / 2 + frame_correlations(predicted, again[:, kept]) / 2
    repeatability, reached = float(repeats.mean()), float(correlations.mean())
    ceiling = math.sqrt(repeatability) if repeatability > 0 else math.nan
    stability = _stability(taken.before, after, after_again)
    error = float(correlations.std(ddof=1)) / math.sqrt(len(correlations))
    quantities = _quantities(taken, correlations, repeats, stability, frames_per_feature)
    return recorder.result(
        "transmission_matrix",
        "correlation of predicted frames with measured ones, relative to that of a perfect prediction",
        reached / ceiling,
        "1",
        error / ceiling,
        limit=(_LIMIT, None),
        quantities=quantities,
        findings=_findings(taken, stability, projection.provenance.medium_epoch, reached / ceiling, repeatability),
        data={
            "held_out": correlations,
            "repeatability": repeats,
            "row_quality": matrix.row_quality,
            "kept": kept,
            "mean_dn": taken.mean_dn,
            "predicted_dn": predicted[:, :64].ravel(),
            "measured_dn": once[:, kept][:, :64].ravel(),
        },
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else math.nan


def _quantities(
    taken: _Taken,
    correlations: NDArray[np.float64],
    repeats: NDArray[np.float64],
    stability: float,
    frames_per_feature: float,
) -> dict[str, Quantity]:
    kept, quality = taken.matrix.kept, taken.matrix.row_quality
    lit = quality[np.isfinite(quality)]
    share = float(kept.mean())

    def mean_of(values: NDArray[np.float64], summary: str) -> Quantity:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        return Quantity(value=float(values.mean()), unit="1", uncertainty=error, summary=summary)

    return {
        "held_out": mean_of(correlations, "correlation of predicted with measured frames"),
        "repeatability": mean_of(repeats, "correlation of two frames of one pattern"),
        "kept_share": Quantity(
            value=share,
            unit="1",
            uncertainty=math.sqrt(share * (1 - share) / len(kept)),
            summary="share of the rows that are believed",
        ),
        "residual": Quantity(
            value=float(np.median(lit)) if len(lit) else math.nan,
            unit="1",
            uncertainty=1.25 * float(lit.std()) / math.sqrt(len(lit)) if len(lit) else math.nan,
            summary="residual of the amplitudes of a row relative to them, median",
        ),
        "stability": Quantity(
            value=stability,
            unit="1",
            uncertainty=math.nan,
            summary="correlation of patterns before and after, relative to that of repeats",
        ),
        "background_share": Quantity(
            value=taken.background_share,
            unit="1",
            uncertainty=math.nan,
            summary="intensity with all features off, relative to that of patterns",
        ),
        "frames_per_feature": Quantity(
            value=frames_per_feature, unit="1", uncertainty=0.0, summary="frames that the matrix cost, for each feature"
        ),
    }


def _findings(taken: _Taken, stability: float, epoch_after: int, prediction: float, repeatability: float) -> list[str]:
    """Word the faults."""
    matrix = taken.matrix
    found = []
    mean_dn = float(taken.mean_dn.mean())
    if not matrix.kept.any() and mean_dn < _DIMMEST_DN:
        return [
            f"The mean of the frames is {mean_dn:.2g} DN above the dark level: no light reaches the camera. The laser "
            "or the shutter is off, or the pixels are dead."
        ]
    dark = float((np.isnan(matrix.row_quality) & ~taken.hot).mean())
    if dark > 0:
        found.append(
            f"{_percent(dark)} of the pixels saw no light in any frame: dead pixels, or the laser or the "
            "shutter is off."
        )
    hot = float(taken.hot.mean())
    if hot > _LARGEST_HOT_SHARE:
        found.append(f"{_percent(hot)} of the pixels are bright without light: hot pixels, or light that leaks in.")
    found += taken.saturation
    lost = float((~matrix.kept & ~taken.hot & np.isfinite(matrix.row_quality)).mean())
    if lost > (_LARGEST_LOST_SHARE_OF_ANCHORS if matrix.method == "anchors" else _LARGEST_LOST_SHARE):
        found.append(
            f"{_percent(lost)} of the rows could not be recovered: too few frames for each feature, frames out of "
            "order, pixels that see more than one field, or a medium that changed during the measurement."
        )
    if matrix.medium_epoch != epoch_after:
        found.append(
            f"The medium changed during the measurement: its epoch went from {matrix.medium_epoch} to {epoch_after}."
        )
    elif stability < _LEAST_STABILITY or 1 - stability > 1 - prediction > 1 - _LIMIT:
        found.append(
            f"The medium changed during the measurement: the same patterns correlate by {stability:.3f} of their "
            "repeatability before and after. Measure more quickly, or fewer features, or wait until it is stable. Or "
            "the frames are not those of their patterns (measure `latency`)."
        )
    elif math.isnan(prediction):
        found += [] if found else ["Fewer than two rows could be recovered: there is nothing to predict."]
    elif prediction < _LIMIT and not taken.saturation:
        found.append(_missed(prediction, repeatability))
    return found


def _missed(prediction: float, repeatability: float) -> str:
    """Word why predictions miss their limit, of a medium that stood still.

    Noise of the frames is averaged in a fit: the predictions lose less by it than repeats do.
    """
    said = f"The matrix predicts frames at a correlation of {prediction:.4f} of what is possible, below {_LIMIT:g}. "
    if 1 - repeatability > 1 - prediction:
        return (
            f"{said}Frames repeat at {repeatability:.4f} only: their noise is in the rows, or they are out of order. "
            "Measure `latency`; use more light, or more frames for each feature."
        )
    return (
        f"{said}Frames repeat at {repeatability:.4f} and the medium stood still, so the pixels see more than one "
        "field: grains of the speckle as small as a pixel, or light of two polarisations. Use larger grains, or a "
        "polariser; otherwise frames are out of order, or the camera is not linear."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
