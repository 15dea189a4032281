"""The device contract: what every OPU can do, whatever it is made of and wherever it stands.

A `Device` is opened by address (`opu.open`), states what it is (`describe`) and opens sessions. A `Session` has
an immutable configuration and turns batches of binary patterns into camera frames. Everything else - linear
projections, encodings, feedback for training - is computed by the host from those frames, and is therefore the
same on every backend.

Promises
--------
Threads
    Every public method of a device and of a session may be called from any thread. Batches submitted to one
    session are projected in the order of submission; between sessions there is no order but that of `submit_together`.
Buffers
    `submit` has copied the patterns when it returns. Frames that it returns belong to the caller. A buffer given
    as `out` is written until the future is done and must not be touched before; then it *is* the result.
Frames
    A frame has an identity: `(noise_key, frame index)`. A session numbers its frames from 0; a caller that numbers
    them itself gets, on a device whose capabilities include `repeatable_noise`, the same bytes for the same
    number at the same settings of the device, whatever the size of the batches, the thread count or the transport,
    as long as the trigger is not delayed beyond what the device was opened with.
Settings
    What belongs to the device and to no session (`DeviceSettings`) changes between two batches, never within one.
Closing
    `close` may be called twice. What was accepted before is finished first; what comes after raises `ClosedError`.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

import msgspec
import numpy as np

from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    DeadlineError,
    OpuError,
    PatternDtypeError,
    PatternShapeError,
    UnsupportedError,
)
from opu.patterns import PackedPatterns, as_packed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CONTRACT_VERSION",
    "NO_REFERENCE",
    "REFERENCE_STEPS",
    "Batch",
    "Device",
    "DeviceControl",
    "DeviceDescription",
    "DeviceSettings",
    "GroundTruth",
    "Limits",
    "MediumDescription",
    "MirrorDuty",
    "Projection",
    "Provenance",
    "Region",
    "Session",
    "SessionConfig",
    "SessionDescription",
    "SettingsChange",
    "SpeedTier",
    "Timing",
    "check_change",
    "check_frame_numbers",
    "check_out",
    "check_submission",
    "check_whole",
    "failed_future",
    "resolve_config",
    "setting_of",
]

CONTRACT_VERSION = 1
FRAME_INDEX_LIMIT = 2**62
NOISE_KEY_LIMIT = 2**64
NO_REFERENCE = "none"
REFERENCE_STEPS = {NO_REFERENCE: 1, "pi": 2, "three_step": 3, "four_step": 4, "off_axis": 1}
"""Ways to use a reference arm, and how many phases each goes through."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The range of a setting, and what it is when nobody asks."""

    minimum: float
    maximum: float
    default: float
    unit: str


class SpeedTier(msgspec.Struct, frozen=True, kw_only=True):
    """The shortest time from frame to frame for sessions up to a size: a device may slow down for larger ones."""

    n_features: int
    n_outputs: int
    frame_us: float


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What a call costs in device time.

    A call of `n` frames takes `call_overhead_us + n * frame_us(...)`, and `reconfigure_us` more when the
    device last worked with another configuration. `latency_us` passes between a trigger and its exposure.

    A camera reads out the rows of the region: `readout_us + rows * row_readout_us`. The mirrors need
    `pattern_us` for each pattern. `tiers` are ordered from small to large; sessions beyond the last one take its time.
    """

    readout_us: float
    frame_overhead_us: float
    call_overhead_us: float
    latency_us: float
    reconfigure_us: float
    row_readout_us: float = 0.0
    pattern_us: float = 0.0
    tiers: tuple[SpeedTier, ...] = ()

    def frame_us(self, exposure_us: float, *, rows: int = 0, n_features: int = 0, n_outputs: int = 0) -> float:
        """Time from one frame to the next, in microseconds.

        `max(exposure, readout) + overhead`, and no less than mirrors and tier allow.

        Parameters
        ----------
        exposure_us : float
            Exposure time.
        rows : int
            Height of the camera region.
        n_features, n_outputs : int
            Size of the session, for the tier.
        """
        camera_us = max(exposure_us, self.readout_us + rows * self.row_readout_us) + self.frame_overhead_us
        return max(camera_us, self.pattern_us, self._tier_us(n_features, n_outputs))

    def _tier_us(self, n_features: int, n_outputs: int) -> float:
        for tier in self.tiers:
            if n_features <= tier.n_features and n_outputs <= tier.n_outputs:
                return tier.frame_us
        return self.tiers[-1].frame_us if self.tiers else 0.0


class MediumDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The scattering medium.

    `medium_id` names the transmission matrix, and `epoch` counts how often it has changed for good. `min_ones` is
    the number of lit *mirrors* from which on the field has the statistics of the stated `law`.
    """

    medium_id: str
    epoch: int
    law: str
    min_ones: int


class Region(msgspec.Struct, frozen=True):
    """A rectangle of camera pixels: first row and column, height and width."""

    row: int
    column: int
    height: int
    width: int


class DeviceDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is and what it offers, as JSON-able data.

    Shapes are `(rows, columns)`. `full_scale_dn` is the largest value of a pixel in digital numbers (DN, counts).
    `dmd_contrast` is the intensity ratio of a mirror that is on to one that is off, None where it is infinite or
    unknown. `max_session_bytes` limits the memory that a session and one projection of it may take on the
    device, None is no limit.
    `speckle_grain_px` is the correlation area of the speckle in pixel areas, 0 for independent pixels, None if unknown.
    `references` are the ways in which a reference arm can be used (`REFERENCE_STEPS`), and `reference_carrier` is the
    tilt of that arm in cycles per pixel, along rows and columns.
    `calibration_id` names the calibration that is applied to the device, `calibrated_unix_s` is when it was measured,
    and `calibrated_medium_epoch` the epoch of the medium then; None without any. Sessions that name no region have the
    `default_region` where they fit in, rows in the middle of the sensor otherwise, and the `default_stride`.
    `pixels_left_out` is how many pixels of the sensor sessions never report, because they are no good.
    """

    contract_version: int
    device_id: str
    model: str
    backend: str
    mirrors: tuple[int, int]
    pixels: tuple[int, int]
    bit_depth: int
    frame_dtype: str
    full_scale_dn: int
    black_level_dn: float
    layouts: tuple[str, ...]
    light: tuple[str, ...]
    exposure_us: Limits
    gain_db: Limits
    timing: Timing
    medium: MediumDescription
    capabilities: tuple[str, ...]
    max_batch: int
    max_session_bytes: int | None = None
    dmd_contrast: float | None = None
    speckle_grain_px: float | None = None
    references: tuple[str, ...] = (NO_REFERENCE,)
    reference_carrier: tuple[float, float] | None = None
    calibration_id: str | None = None
    calibrated_unix_s: float | None = None
    calibrated_medium_epoch: int | None = None
    default_region: Region | None = None
    default_stride: int = 1
    pixels_left_out: int = 0
    versions: dict[str, str] = {}

    @property
    def n_mirrors(self) -> int:
        """The number of mirrors of the DMD."""
        return self.mirrors[0] * self.mirrors[1]

    @property
    def frame_us(self) -> float:
        """Time from one frame to the next at the default exposure, in microseconds."""
        return self.timing.frame_us(self.exposure_us.default)


class SessionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a session uses the device. Immutable: another configuration is another session.

    Parameters
    ----------
    n_features : int
        The width of a pattern.
    n_outputs : int
        How many camera pixels a frame reports: the first ones of the region, row by row.
    layout : str
        How features lie on the mirrors. `lined`: each feature fills an equal run of consecutive mirrors, row by
        row; mirrors that are left over stay off.
    region : Region or None
        Where the pixels are taken from; None is the device's default: where none was calibrated, the least number of
        whole rows in the middle of the sensor.
    stride : int
        Take every `stride`-th pixel of every `stride`-th row of the region. Without a region, 1 stands for the
        device's default, written or not: where that is another number, only a session that names its region can have
        a stride of 1.
    exposure_us : float or None
        Exposure time in microseconds; None is the device's default.
    gain_db : float
        Camera gain in decibels of amplitude (20 dB multiply the counts by 10). Without an exposure, 0 stands for the
        device's default, written or not: where that is another number, only a session that names its exposure can have
        a gain of 0.
    light : str
        `on` or `off`. With finite DMD contrast all-mirrors-off is not dark; `off` is.
    reference : str
        How a reference arm meets the light, a key of `REFERENCE_STEPS`. Its phase is `2 pi / steps` times the frame
        number: a pattern that is shown for as many frames, from a multiple of the steps on, sees each phase once.
    noise_key : int
        Names the noise of this session's frames, from 0 to 2**64 - 1: on a device with repeatable noise, equal keys
        and frame numbers give equal bytes. Give concurrent experiments different keys.
    """

    n_features: int
    n_outputs: int
    layout: str = "lined"
    region: Region | None = None
    stride: int = 1
    exposure_us: float | None = None
    gain_db: float = 0.0
    light: str = "on"
    reference: str = NO_REFERENCE
    noise_key: int = 0


class SessionDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What opening a session came to: its complete configuration, its limit and its cost.

    `max_batch` is the largest batch that this session takes, at most the device's: frames of a batch are in memory
    at once. `compiled_bytes` is the memory that the session holds on the device while it is open.
    """

    session_id: str
    config: SessionConfig
    frame_dtype: str
    frame_us: float
    mirrors_per_feature: int
    max_batch: int
    compiled_bytes: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where frames come from.

    Device time (`device_us`, `device_start_us`) is what the device books for the call and when it started on the
    device's own clock; `started_unix_s` and `finished_unix_s` are wall-clock times of the device's host.
    `laser_power_mw` is the power that the laser was set to, None where it is unknown. `calibration_id` names the
    calibration that was applied to the device, and `calibrated_unix_s` is when that was measured; None without any.
    """

    device_id: str
    medium_id: str
    medium_epoch: int
    session_id: str
    config: SessionConfig
    calibration_id: str | None
    first_frame_index: int
    n_frames: int
    frame_us: float
    device_start_us: float
    device_us: float
    started_unix_s: float
    finished_unix_s: float
    saturated_fraction: float
    skipped_frames: int
    laser_power_mw: float | None = None
    calibrated_unix_s: float | None = None


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a device and to no session.

    Parameters
    ----------
    revision : int
        How many changes have been made since the device was opened.
    laser_power_mw : float or None
        The power that the laser is set to, in milliwatts; None where it is unknown.
    max_exposure_us : float
        A safety limit for exposures, in microseconds: sessions with longer ones are not opened, and batches of those
        that are open already are refused. The camera's own maximum where nobody has set less.
    trigger_delay_us : float or None
        How much later than at its trigger the camera opens, in microseconds, on top of `Timing.latency_us`; None where
        it is unknown.
    """

    revision: int
    laser_power_mw: float | None
    max_exposure_us: float
    trigger_delay_us: float | None = None


class SettingsChange(msgspec.Struct, frozen=True, kw_only=True):
    """New values of some `DeviceSettings`; None leaves a setting as it is."""

    laser_power_mw: float | None = None
    max_exposure_us: float | None = None
    trigger_delay_us: float | None = None


@dataclass(frozen=True, eq=False)
class Projection:
    """The answer to a batch.

    Parameters
    ----------
    frames : ndarray of uint8 or uint16, shape (batch, n_outputs)
        Camera counts: `|A x|^2` as the camera saw it.
    provenance : Provenance
        Where they come from.
    """

    frames: NDArray[Any]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on its way to a driver.

    Parameters
    ----------
    patterns : PackedPatterns
        What is shown.
    first_frame_index : int
        The number of the first frame.
    out : ndarray or None
        Where the frames go, if the caller cares.
    due_s : float
        When the device must have begun, on the clock `time.monotonic`; infinite without a deadline.
    """

    patterns: PackedPatterns
    first_frame_index: int
    out: NDArray[Any] | None = None
    due_s: float = math.inf

    def check_deadline(self) -> None:
        """Check, when the device is about to begin, that somebody still waits.

        Raises
        ------
        DeadlineError
            The deadline has passed.
        """
        late_s = time.monotonic() - self.due_s
        if late_s > 0:
            raise DeadlineError(
                f"The device came to the batch {late_s:.3f} s after its deadline.",
                "Grant more time, or send fewer and smaller batches.",
            )


def check_whole(name: str, value: object, minimum: int, limit: int) -> int:
    """Return a whole number, NumPy's included, as an int.

    Parameters
    ----------
    name : str
        What it is, for people.
    value : object
        What was given.
    minimum, limit : int
        The range: `limit` is the first number above it.

    Raises
    ------
    ConfigError
        It is no whole number, or outside.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and minimum <= value < limit:
        return int(value)
    raise ConfigError(f"{name} is {value!r}.", f"Use a whole number from {minimum} to {limit - 1}.")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}.", f"This device offers {', '.join(map(repr, choices))}.")


def _require_within(name: str, value: object, limits: Limits) -> float:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    number = float(value) if is_number else float("nan")  # type: ignore[arg-type]
    if not limits.minimum <= number <= limits.maximum:
        raise ConfigError(f"{name} is {value!r}.", f"Use {limits.minimum:g} to {limits.maximum:g} {limits.unit}.")
    return number


def _middle_rows(config: SessionConfig, description: DeviceDescription) -> Region:
    rows, columns = description.pixels
    per_row = -(-columns // config.stride)
    n_pixels = config.n_outputs + description.pixels_left_out
    height = min(rows, (-(-n_pixels // per_row) - 1) * config.stride + 1)
    return Region((rows - height) // 2, 0, height, columns)


def _check_region(region: Region | None, config: SessionConfig, pixels: tuple[int, int]) -> Region:
    rows, columns = pixels
    if not isinstance(region, Region):
        raise ConfigError(f"region is {region!r}.", "Use opu.Region(row, column, height, width), or None.")
    region = Region(
        row=check_whole("region.row", region.row, 0, 2**31),
        column=check_whole("region.column", region.column, 0, 2**31),
        height=check_whole("region.height", region.height, 1, 2**31),
        width=check_whole("region.width", region.width, 1, 2**31),
    )
    if region.row + region.height > rows or region.column + region.width > columns:
        raise CapacityError(
            f"{region} reaches beyond the camera.", f"The camera has {rows} rows and {columns} columns."
        )
    available = _count_pixels(region, config.stride)
    if config.n_outputs > available:
        raise CapacityError(
            f"n_outputs is {config.n_outputs}, more than the {available} pixels of {region} with "
            f"stride {config.stride}.",
            f"Ask for at most {available} outputs, or a larger region.",
        )
    return region


def resolve_config(config: SessionConfig, description: DeviceDescription) -> SessionConfig:
    """Check a configuration against a device and fill in what it leaves open.

    Parameters
    ----------
    config : SessionConfig
        What was asked for.
    description : DeviceDescription
        What there is.

    Returns
    -------
    SessionConfig
        The same with `region` and `exposure_us` set, and the device's default stride and gain where a session without
        a region says 1, and one without an exposure says 0.

    Raises
    ------
    ConfigError
        A field has a value that the device does not offer.
    CapacityError
        There are more features than mirrors, or more outputs than pixels.
    """
    if not isinstance(config, SessionConfig):
        raise ConfigError(f"The configuration is {config!r}.", "Use opu.SessionConfig(n_features=..., n_outputs=...).")
    config = msgspec.structs.replace(
        config,
        n_features=check_whole("n_features", config.n_features, 1, 2**31),
        n_outputs=check_whole("n_outputs", config.n_outputs, 1, 2**31),
        stride=check_whole("stride", config.stride, 1, 2**31),
        noise_key=check_whole("noise_key", config.noise_key, 0, NOISE_KEY_LIMIT),
    )
    _require_choice("layout", config.layout, description.layouts)
    _require_choice("light", config.light, description.light)
    _require_choice("reference", config.reference, description.references)
    rows, columns = description.pixels
    if config.n_features > description.n_mirrors:
        raise CapacityError(
            f"n_features is {config.n_features}, more than the {description.n_mirrors} mirrors.",
            f"Ask for at most {description.n_mirrors} features.",
        )
    if config.n_outputs > rows * columns:
        raise CapacityError(
            f"n_outputs is {config.n_outputs}, more than the {rows * columns} pixels of the camera.",
            f"Ask for at most {rows * columns} outputs.",
        )
    if config.region is None:
        config = _with_default_region(config, description)
    exposure, gain = config.exposure_us, config.gain_db
    if exposure is None:
        exposure = description.exposure_us.default
        gain = description.gain_db.default if gain == 0 else gain
    return msgspec.structs.replace(
        config,
        region=_check_region(config.region, config, description.pixels),
        exposure_us=_require_within("exposure_us", exposure, description.exposure_us),
        gain_db=_require_within("gain_db", gain, description.gain_db),
    )


def _with_default_region(config: SessionConfig, description: DeviceDescription) -> SessionConfig:
    if config.stride == 1:
        config = msgspec.structs.replace(config, stride=description.default_stride)
    region, n_pixels = description.default_region, config.n_outputs + description.pixels_left_out
    if region is None or _count_pixels(region, config.stride) < n_pixels:
        region = _middle_rows(config, description)
    return msgspec.structs.replace(config, region=region)


def _count_pixels(region: Region, stride: int) -> int:
    return -(-region.height // stride) * -(-region.width // stride)


def check_change(change: SettingsChange, limits: Mapping[str, Limits]) -> dict[str, float]:
    """Check a change of settings against what a device allows.

    Parameters
    ----------
    change : SettingsChange
        What was asked for.
    limits : mapping of str to Limits
        The settings that can be changed, with their ranges: `DeviceControl.limits()`.

    Returns
    -------
    dict of str to float
        The new values by the names of their settings.

    Raises
    ------
    ConfigError
        A value is out of its range, its setting cannot be changed on this device, or there is none at all.

    Examples
    --------
    >>> power = Limits(minimum=1, maximum=20, default=10, unit="mW")
    >>> check_change(SettingsChange(laser_power_mw=5), {"laser_power_mw": power})
    {'laser_power_mw': 5.0}
    """
    if not isinstance(change, SettingsChange):
        raise ConfigError(f"The change is {change!r}.", "Use opu.SettingsChange(laser_power_mw=..., ...).")
    offer = f"This device lets you change {', '.join(limits) or 'nothing'}."
    wanted = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    if not wanted:
        raise ConfigError("The change names no setting.", offer)
    for name, value in wanted.items():
        if name not in limits:
            raise ConfigError(f"{name} cannot be set to {value!r}: it is fixed or unknown.", offer)
    return {name: _require_within(name, value, limits[name]) for name, value in wanted.items()}


def check_out(out: object, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Check a caller's output buffer.

    Parameters
    ----------
    out : object
        What the caller gave.
    shape : tuple of int
        `(batch, n_outputs)`.
    dtype : str
        The device's frame dtype.

    Returns
    -------
    ndarray
        The buffer itself.

    Raises
    ------
    PatternDtypeError, PatternShapeError
        It is not a writable, C-contiguous array of that shape and dtype.
    """
    if not isinstance(out, np.ndarray) or out.dtype != np.dtype(dtype):
        found = getattr(out, "dtype", type(out).__name__)
        raise PatternDtypeError(f"The output buffer is {found}.", f"Use a NumPy array of {dtype}.")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise PatternShapeError(
            f"The output buffer has the shape {out.shape}, C-contiguous: {out.flags.c_contiguous}, "
            f"writable: {out.flags.writeable}.",
            f"Use numpy.empty({shape}, {dtype!r}).",
        )
    return out


def setting_of(config: SessionConfig) -> SessionConfig:
    """Return a configuration without what makes no difference to the parts: a noise key is a name, not a setting."""
    return msgspec.structs.replace(config, noise_key=0)


def check_frame_numbers(first_frame_index: object, n_frames: int, max_batch: int) -> int:
    """Check the size of a batch and the number of its first frame, and return that number.

    Raises
    ------
    ConfigError
        The number is not a whole number from 0 to 2**62.
    CapacityError
        The batch is larger than the session takes at once.
    """
    first = check_whole("first_frame_index", first_frame_index, 0, FRAME_INDEX_LIMIT)
    if n_frames > max_batch:
        raise CapacityError(f"The batch has {n_frames} patterns.", f"Send at most {max_batch} patterns at a time.")
    return first


def _due_s(deadline_s: float | None) -> float:
    if deadline_s is None:
        return math.inf
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, (int, float, np.number)) or not deadline_s > 0:
        raise ConfigError(f"The deadline is {deadline_s!r} s.", "Use a positive number of seconds, or None.")
    return time.monotonic() + float(deadline_s)


def check_submission(
    description: SessionDescription,
    patterns: ArrayLike | PackedPatterns,
    out: NDArray[Any] | None,
    deadline_s: float | None,
) -> tuple[PackedPatterns, float]:
    """Check what a session is asked to project.

    Parameters
    ----------
    description : SessionDescription
        Of the session.
    patterns, out, deadline_s : object
        As `Session.submit` takes them.

    Returns
    -------
    tuple of (PackedPatterns, float)
        The patterns, which share no memory with what was given, and when the batch is due (`Batch.due_s`).

    Raises
    ------
    PatternShapeError, PatternDtypeError, PatternValueError
        The patterns or the buffer cannot be used.
    ConfigError
        The deadline is no positive number.
    """
    due_s = _due_s(deadline_s)
    packed = as_packed(patterns, description.config.n_features)
    if out is not None:
        check_out(out, (len(packed), description.config.n_outputs), description.frame_dtype)
    return packed, due_s


class Session(ABC):
    """A configured use of a device. Made by `Device.open_session`; a context manager.

    Drivers implement `_submit` and `_close`. See the module's promises on threads, buffers and frames.
    """

    def __init__(self, description: SessionDescription) -> None:
        self._description = description
        self._next_frame_index = 0
        self._submit_lock = threading.Lock()
        self._closed = False

    @property
    def config(self) -> SessionConfig:
        """The complete, immutable configuration."""
        return self._description.config

    @property
    def can_share(self) -> bool:
        """Whether batches of this session and of sessions like it cost one call: see `Device.submit_together`."""
        return False

    @property
    def next_frame_index(self) -> int:
        """The number that the next frame gets unless the caller says otherwise."""
        return self._next_frame_index

    def describe(self) -> SessionDescription:
        """Return what opening the session came to."""
        return self._description

    def submit(
        self,
        patterns: ArrayLike | PackedPatterns,
        *,
        first_frame_index: int | None = None,
        out: NDArray[Any] | None = None,
        deadline_s: float | None = None,
    ) -> Future[Projection]:
        """Queue a batch and return at once.

        The future can be cancelled until the device begins, and over a link until the answer comes. Frames that are not
        taken have used up their numbers.

        Parameters
        ----------
        patterns : array_like or PackedPatterns, shape (batch, n_features)
            Binary patterns. They are copied before this method returns.
        first_frame_index : int, optional
            The number of the first frame; the next ones count up. Default: the session's own counter.
        out : ndarray, shape (batch, n_outputs), optional
            Where the frames go: C-contiguous, writable, of the frame dtype.
        deadline_s : float, optional
            Give the batch up unless the device begins with it within this time, in seconds.

        Returns
        -------
        concurrent.futures.Future of Projection
            Done when the frames are there; raises what the device raised, and `DeadlineError` for a batch given up.

        Raises
        ------
        PatternShapeError, PatternDtypeError, PatternValueError
            The patterns or the buffer cannot be used; nothing was queued.
        ConfigError
            The deadline is no positive number.
        CapacityError
            The batch is larger than `SessionDescription.max_batch`.
        ClosedError
            The session is closed.
        """
        packed, due_s = check_submission(self._description, patterns, out, deadline_s)
        with self._submit_lock:
            wanted = self._next_frame_index if first_frame_index is None else first_frame_index
            first = self._check_open(wanted, len(packed))
            future = self._submit(Batch(packed, first, out, due_s))
            self._next_frame_index = first + len(packed)
        return future

    def accept(self, batch: Batch) -> Batch:
        """Check a batch as `submit` does, count its frames and return it with a copy of its patterns.

        For drivers that override `Device._submit_together` or `_project_here`.
        """
        packed, _ = check_submission(self._description, batch.patterns, batch.out, None)
        with self._submit_lock:
            first = self._check_open(batch.first_frame_index, len(packed))
            self._next_frame_index = first + len(packed)
        return Batch(packed, first, batch.out, batch.due_s)

    def _check_open(self, first_frame_index: object, n_frames: int) -> int:
        """Return the number of a batch's first frame if the session takes it now. Called under the session's lock."""
        if self._closed:
            raise ClosedError("The session is closed.", "Open another one with device.open_session().")
        return check_frame_numbers(first_frame_index, n_frames, self._description.max_batch)

    def project(
        self,
        patterns: ArrayLike | PackedPatterns,
        *,
        first_frame_index: int | None = None,
        out: NDArray[Any] | None = None,
        deadline_s: float | None = None,
    ) -> Projection:
        """Project a batch and wait for the frames: `submit(...).result()`."""
        return self.submit(patterns, first_frame_index=first_frame_index, out=out, deadline_s=deadline_s).result()

    def close(self) -> None:
        """Close the session. Batches that were accepted before are finished."""
        with self._submit_lock:
            if self._closed:
                return
            self._closed = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _submit(self, batch: Batch) -> Future[Projection]:
        """Queue a checked batch. Called under the session's lock, so the order of calls is the order of work.

        A driver calls `Batch.check_deadline` when the device begins with it.
        """

    @abstractmethod
    def _close(self) -> None:
        """Give back what the session holds. Called once."""


def _check_shared_call(requests: Sequence[tuple[Session, Batch]]) -> None:
    """Check that one call can take batches of several sessions."""
    if len(requests) > 1 and len({setting_of(session.config) for session, _ in requests}) > 1:
        raise ConfigError(
            f"The configurations of {len(requests)} batches for one call differ.",
            "Use sessions that differ in nothing but the noise key.",
        )
    n_frames = sum(len(batch.patterns) for _, batch in requests)
    limit = min((session.describe().max_batch for session, _ in requests), default=0)
    if n_frames > limit:
        raise CapacityError(
            f"The batches for one call have {n_frames} patterns.", f"Send at most {limit} patterns at a time."
        )


def _submit_alone(session: Session, batch: Batch) -> Future[Projection]:
    # A deadline that has passed is the device's to find out, as it would be a moment later.
    deadline_s = None if math.isinf(batch.due_s) else max(batch.due_s - time.monotonic(), 1e-9)
    try:
        return session.submit(
            batch.patterns, first_frame_index=batch.first_frame_index, out=batch.out, deadline_s=deadline_s
        )
    except OpuError as error:
        return failed_future(error)


def failed_future(error: Exception) -> Future[Projection]:
    """Return the future of a batch that cannot be taken."""
    future: Future[Projection] = Future()
    future.set_exception(error)
    return future


class GroundTruth(ABC):
    """Capability `ground_truth`: what only a simulator knows."""

    name: ClassVar[str] = "ground_truth"

    @abstractmethod
    def transmission_matrix(self, config: SessionConfig) -> NDArray[np.complex64]:
        """Return the matrix over features, shape (n_outputs, n_features), unit variance per lit mirror.

        For the medium as it is before it drifts. Raises `UnsupportedError` where a pixel sees more than one field.
        """

    @abstractmethod
    def entries(self, outputs: ArrayLike, mirrors: ArrayLike, *, device_time_s: float = 0.0) -> NDArray[np.complex64]:
        """Return any block of the medium itself: from mirrors to pixels, shape (len(outputs), len(mirrors)).

        Unit variance, at a device time in seconds; pixels and mirrors are counted row by row over sensor and DMD.
        """

    @abstractmethod
    def photoelectrons(
        self, config: SessionConfig, patterns: ArrayLike, *, device_time_s: float = 0.0
    ) -> NDArray[np.float32]:
        """Return the mean photo-electrons of every pixel before any noise, shape (batch, n_outputs).

        With medium and laser as they are at a device time, in seconds.
        """


class MirrorDuty(ABC):
    """Capability `mirror_duty`: how long each mirror has been landed on.

    Long one-sided landing harms the hinges; makers advise to keep near one half.
    """

    name: ClassVar[str] = "mirror_duty"

    @abstractmethod
    def landed_on_share(self) -> NDArray[np.float64]:
        """Return the share of the pattern time that mirrors were on, shape (rows, columns); NaN before any pattern."""


class DeviceControl(ABC):
    """Capability `device_control`: the settings that belong to the device and to no session.

    Whoever changes them changes them for every session. All methods may be called from any thread.
    """

    name: ClassVar[str] = "device_control"

    @abstractmethod
    def settings(self) -> DeviceSettings:
        """Return the settings as they are."""

    @abstractmethod
    def limits(self) -> dict[str, Limits]:
        """Return the settings that can be changed, by name, with the ranges of their values.

        The default is the value that a device was opened with.
        """

    @abstractmethod
    def change(self, change: SettingsChange) -> DeviceSettings:
        """Change settings, all that are named or none, and return what they are now.

        Batches that were submitted before have been projected when this method returns, under the old settings; later
        ones have the new ones. So do not call it from a callback of a future: the device would wait for itself.

        Raises
        ------
        ConfigError
            A value is out of range, its setting cannot be changed on this device, or none is named.
        DeviceError
            A part of the device failed; no setting has changed.
        ClosedError
            The device is closed.
        """


CapabilityT = TypeVar("CapabilityT")


class Device(ABC):
    """An optical processing unit. Made by `opu.open`; a context manager.

    Drivers implement `describe`, `_open_session`, `_close`, and `_capabilities` where they have any.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._closed = False
        self._close_lock = threading.Lock()

    @property
    def uri(self) -> str:
        """The address under which the device was opened."""
        return self._uri

    @abstractmethod
    def describe(self) -> DeviceDescription:
        """Return what the device is and offers."""

    def open_session(self, config: SessionConfig) -> Session:
        """Open a session.

        Parameters
        ----------
        config : SessionConfig
            What is wanted; fields left open are filled in from the device's defaults.

        Returns
        -------
        Session
            Ready for patterns.

        Raises
        ------
        ConfigError
            A field has a value that the device does not offer; the message lists what it does.
        CapacityError
            More features than mirrors, more outputs than pixels, or more memory than allowed.
        ClosedError
            The device is closed.
        """
        if self._closed:
            raise ClosedError(f"The device {self._uri} is closed.", "Open it again with opu.open().")
        return self._open_session(resolve_config(config, self.describe()))

    def submit_together(self, requests: Sequence[tuple[Session, Batch]]) -> list[Future[Projection]]:
        """Queue batches of several sessions that differ in nothing but the noise key, and return at once.

        A device on which the sessions can share (`Session.can_share`) takes them as one sequence, in this order, and
        books one call; others take them one by one. Each batch has the frames that it has alone at that device time,
        and a provenance of its own: the call's cost is the first one's, so that the sum of `device_us` is that of the
        call.

        Parameters
        ----------
        requests : sequence of (Session, Batch)
            Sessions of this device, and what to project in each; a session may occur more than once. Together no more
            frames than any of the sessions takes at once.

        Returns
        -------
        list of concurrent.futures.Future of Projection
            One for each batch. A batch that is malformed, late or cancelled, or whose session is closed, fails alone,
            with the errors of `Session.submit`; where the device itself fails, all fail that it had begun with.

        Raises
        ------
        ConfigError
            The sessions differ in more than the noise key, or one is another device's; nothing was queued.
        CapacityError
            There are too many frames for one call; nothing was queued.
        ClosedError
            The device is closed.
        """
        _check_shared_call(requests)
        return self._submit_together(requests)

    def project_here(self, requests: Sequence[tuple[Session, Batch]]) -> list[Projection | Exception] | None:
        """Do the work of `submit_together` in this thread, where that is possible now.

        To hand a batch to another thread and its frames back takes as long as a small batch does. This is for who would
        wait for it anyway, and knows that it is small.

        Parameters
        ----------
        requests : sequence of (Session, Batch)
            As for `submit_together`.

        Returns
        -------
        list of Projection or Exception, or None
            The outcome of each batch. None where the device does not let this thread work it, as the main thread never
            may, or is at work or closed: nothing was done.

        Raises
        ------
        ConfigError, CapacityError
            As `submit_together`.
        """
        _check_shared_call(requests)
        return self._project_here(requests)

    def _submit_together(self, requests: Sequence[tuple[Session, Batch]]) -> list[Future[Projection]]:
        """Queue batches that one call could take. Drivers whose sessions can share override this."""
        return [_submit_alone(session, batch) for session, batch in requests]

    def _project_here(
        self,
        requests: Sequence[tuple[Session, Batch]],  # noqa: ARG002 - for drivers that can
    ) -> list[Projection | Exception] | None:
        """Project batches that one call can take. Drivers that any thread may work override this."""
        return None

    def capability(self, kind: Callable[..., CapabilityT]) -> CapabilityT:
        """Return the capability object of a class such as `GroundTruth`.

        (The type of `kind` is that of any class; `type[...]` would exclude abstract ones for type checkers.)

        Raises
        ------
        UnsupportedError
            The device has no such capability; the message lists those that it has.
        """
        found = self._capabilities().get(cast("type", kind))
        if found is None:
            names = ", ".join(sorted(self.describe().capabilities)) or "none"
            wanted = getattr(kind, "name", repr(kind))
            raise UnsupportedError(
                f"The device {self._uri} has no capability {wanted!r}.", f"Its capabilities: {names}."
            )
        return cast("CapabilityT", found)

    def close(self) -> None:
        """Close the device and all its sessions. Batches that were accepted before are finished."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the device itself: a handle to hardware cannot be doubled, and clones of estimators share it."""
        return self

    def _capabilities(self) -> Mapping[type, object]:
        return {}

    @abstractmethod
    def _open_session(self, config: SessionConfig) -> Session:
        """Open a session with a checked, complete configuration."""

    @abstractmethod
    def _close(self) -> None:
        """Finish accepted work and give everything back. Called once."""
