r"""Linear projections from intensities alone.

Every OPU can do it with mirrors of its own. A camera sees `I(x) = |a x + c|^2` (`c` the background that mirrors which
are off still throw; zero for infinite DMD contrast). Show a pattern twice, alone and together with a fixed *anchor* `r`
on mirrors of its own. Then

    (I(x + r) - I(x) - I(r) + I(0)) / 2 = Re(conj(a r) (a x)),

exactly linear in `x`, with `I(r)` and the all-off frame `I(0)` measured once: two frames for each binary pattern.
For a ternary pattern `x = p - n` the constants cancel and four frames, `p + r, p, n + r, n`, are enough.
Divided by `|a r|` of each pixel the weights are independent real Gaussians. Pixels where the anchor is dark (below a
tenth of its mean: 9.5 % of them) would divide by little and are left out, once and for all, in the saved `LinearMap`.

A device with a reference arm does better, see `opu.interference`; the fit takes the best method that the device offers.
"""

from __future__ import annotations

import io
import math
import os
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from opu.device import NO_REFERENCE, Projection, Region, SessionConfig, check_whole
from opu.errors import (
    CapacityError,
    ConfigError,
    DataFileError,
    MediumChangedError,
    PatternShapeError,
    PatternValueError,
)
from opu.exposure import choose_exposure
from opu.files import read_arrays, unwritable
from opu.interference import ANCHOR, METHODS, Method, available_methods
from opu.patterns import as_array, pack

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.device import Device, DeviceDescription, Session

__all__ = ["LinearMap", "LinearProjection", "LinearProjector", "fit_linear_map"]

DARK_FRACTION = 0.1
BRIGHTNESS_RATIO = 2.0
# A tenth of full scale, a little less than for single frames: a saturated pixel spoils a difference of frames.
_BRIGHT_FRACTION = 1 / 10
_ANCHOR_REPEATS = 128
_EXPOSURE_PATTERNS = 32
_SCALE_PATTERNS = 64
_SPARE_PIXELS = 1.25
# Off-axis: the field is known at places this many pixels apart, and not near the edges of the region.
_HOLOGRAM_STEP = 5
_HOLOGRAM_MARGIN = 12
# Frames of a binary or a ternary pattern, whatever the method, start at a multiple of this.
_ALIGNMENT = 24
_FORMAT = "openopu.linear_map/2"
_FLOAT_MAX = float(np.finfo(np.float32).max)


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a saved map holds beside its arrays."""

    format: str
    config: SessionConfig
    method: str
    n_features: int
    carrier: tuple[float, float] | None
    medium_id: str
    medium_epoch: int
    n_frames: int
    laser_power_mw: float | None = None
    calibration_id: str | None = None


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear projection, fitted once and then fixed: it *is* the matrix `W`.

    The output of a projection is `x W`, with `W` of shape (n_features, n_outputs), independent entries of zero mean
    and unit variance. `W` itself is never known; what is saved names it.

    Parameters
    ----------
    config : SessionConfig
        The session that measures it; with the method `anchor` its features are the pattern's followed by the anchor's.
    method : str
        How the light interferes, a key of `opu.interference.METHODS`.
    n_features : int
        The width of a pattern.
    pixels : ndarray of int32, shape (n_places,)
        Which of the session's outputs are used: those where the reference is bright enough.
    offset_dn : ndarray of float32, shape (n_outputs,)
        What the method gives for a pattern of zeros, in DN.
    scale_per_dn : ndarray of float32, shape (n_outputs,)
        From there to unit variance: output = scale_per_dn * (method's result - offset_dn).
    carrier : tuple of two floats or None
        Of the reference arm, for `off_axis`.
    medium_id, medium_epoch : str, int
        The medium through which it was measured.
    n_frames : int
        What fitting cost.
    laser_power_mw : float or None
        The laser power at which it was measured, None where it is unknown.
    calibration_id : str or None
        The calibration of the device on which it was measured, None without any: it may leave out pixels.
    """

    config: SessionConfig
    method: str
    n_features: int
    pixels: NDArray[np.int32]
    offset_dn: NDArray[np.float32]
    scale_per_dn: NDArray[np.float32]
    carrier: tuple[float, float] | None
    medium_id: str
    medium_epoch: int
    n_frames: int
    laser_power_mw: float | None = None
    calibration_id: str | None = None

    @property
    def n_outputs(self) -> int:
        """The width of the output."""
        return len(self.scale_per_dn)

    @property
    def frames_per_pattern(self) -> int:
        """What a binary pattern costs; a ternary one costs twice as many."""
        return METHODS[self.method].n_frames

    def to_bytes(self) -> bytes:
        """Return the map as the content of a `.npz` file."""
        meta = _Meta(
            format=_FORMAT,
            config=self.config,
            method=self.method,
            n_features=self.n_features,
            carrier=self.carrier,
            medium_id=self.medium_id,
            medium_epoch=self.medium_epoch,
            n_frames=self.n_frames,
            laser_power_mw=self.laser_power_mw,
            calibration_id=self.calibration_id,
        )
        buffer = io.BytesIO()
        np.savez(
            buffer,
            meta=np.frombuffer(msgspec.json.encode(meta), np.uint8),
            pixels=self.pixels,
            offset_dn=self.offset_dn,
            scale_per_dn=self.scale_per_dn,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> LinearMap:
        """Undo `to_bytes`.

        Raises
        ------
        DataFileError
            The content is damaged, or no linear map.
        """
        return cls._from_bytes(content, "The linear map")

    @classmethod
    def _from_bytes(cls, content: bytes, name: str) -> LinearMap:
        try:
            arrays = read_arrays(content)
            meta = msgspec.json.decode(arrays["meta"].tobytes(), type=_Meta)
            if meta.format != _FORMAT:
                raise ValueError(f"its format is {meta.format!r}, not {_FORMAT!r}")
            linear_map = cls(
                config=meta.config,
                method=meta.method,
                n_features=meta.n_features,
                pixels=arrays["pixels"],
                offset_dn=arrays["offset_dn"],
                scale_per_dn=arrays["scale_per_dn"],
                carrier=meta.carrier,
                medium_id=meta.medium_id,
                medium_epoch=meta.medium_epoch,
                n_frames=meta.n_frames,
                laser_power_mw=meta.laser_power_mw,
                calibration_id=meta.calibration_id,
            )
            _check_consistent(linear_map)
        except Exception as error:  # numpy, zipfile, zlib and msgspec raise a dozen classes for damaged content
            raise DataFileError(
                f"{name} is damaged, or no linear map: {error}.", "Fit it again with opu.fit_linear_map()."
            ) from error
        return linear_map

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the map; the file is written aside and renamed.

        Raises
        ------
        DataFileError
            The file cannot be written.
        """
        target = Path(path)
        aside = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            aside.write_bytes(self.to_bytes())
            aside.replace(target)
        except OSError as error:
            raise unwritable(path, error) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearMap:
        """Load a saved map.

        Raises
        ------
        DataFileError
            The file is missing, damaged, or no linear map.
        """
        name = f"The linear map {os.fspath(path)!r}"
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataFileError(f"{name} cannot be read: {error.strerror}.", "Check the path.") from error
        return cls._from_bytes(content, name)


def _check_consistent(linear_map: LinearMap) -> None:
    """Check that the parts of a map fit each other; raise ValueError where they do not."""
    config, method, pixels = linear_map.config, METHODS[linear_map.method], linear_map.pixels
    n_outputs = linear_map.scale_per_dn.size
    n_places = -(-n_outputs // 2) if method.is_complex else n_outputs
    n_anchor = config.n_features - linear_map.n_features
    fitting = {
        "config": config.region is not None and config.exposure_us is not None,
        "method": method.reference == config.reference,
        "n_features": linear_map.n_features > 0 and (n_anchor > 0 if method.name == ANCHOR else n_anchor == 0),
        "pixels": _is_vector(pixels, n_places, np.int32, 0, config.n_outputs - 1),
        "offset_dn": _is_vector(linear_map.offset_dn, n_outputs, np.float32, -_FLOAT_MAX, _FLOAT_MAX),
        "scale_per_dn": n_outputs > 0 and _is_vector(linear_map.scale_per_dn, n_outputs, np.float32, 0.0, _FLOAT_MAX),
        "carrier": (linear_map.carrier is not None) == (method.name == "off_axis"),
        "n_frames": linear_map.n_frames >= 0,
    }
    wrong = [name for name, fits in fitting.items() if not fits]
    if wrong:
        raise ValueError(f"its {', '.join(wrong)} cannot be right")


def _is_vector(array: NDArray[Any], length: int, dtype: type, low: float, high: float) -> bool:
    """Tell whether an array is a vector with every value in a range, which no NaN is."""
    return array.dtype == dtype and array.shape == (length,) and bool(((low <= array) & (array <= high)).all())


def _anchored(patterns: NDArray[np.bool_], n_anchor: int, anchor_on: bool) -> NDArray[np.bool_]:
    anchor = np.full((len(patterns), n_anchor), anchor_on)
    return np.concatenate([patterns, anchor], axis=1)


def _shown(method: Method, patterns: NDArray[np.bool_], n_anchor: int) -> NDArray[np.bool_]:
    """Return what the mirrors show for each pattern, shape (batch, frames of the method, features of the session)."""
    if method.name == ANCHOR:
        return np.stack([_anchored(patterns, n_anchor, anchor_on=on) for on in (True, False)], axis=1)
    return patterns[:, np.newaxis].repeat(method.n_frames, axis=1)


def _aligned(frame_index: int) -> int:
    return -(-frame_index // _ALIGNMENT) * _ALIGNMENT


def fit_linear_map(
    device: Device,
    n_features: int,
    n_outputs: int,
    *,
    method: str | None = None,
    expected_ones: float | None = None,
    exposure_us: float | None = None,
    noise_key: int = 0,
) -> LinearMap:
    """Fit a linear projection: choose method, exposure and pixels, and measure the reference.

    Parameters
    ----------
    device : Device
        Any device.
    n_features : int
        The width of the patterns that will be projected.
    n_outputs : int
        The width of the projection.
    method : str, optional
        A key of `opu.interference.METHODS`; default the best one that the device offers.
    expected_ones : float, optional
        How many features a pattern typically lights (for ternary patterns: its positive or its negative part);
        default half of them. An anchor is made `2` times as bright, near the optimum of the signal-to-noise ratio.
    exposure_us : float, optional
        Exposure time in microseconds; by default it is chosen for a mean of a tenth of full scale in the
        brightest frames.
    noise_key : int
        The noise of the frames, as in `SessionConfig`.

    Returns
    -------
    LinearMap
        What `LinearProjector` needs. `frames_per_pattern` says what a projection costs.

    Raises
    ------
    ConfigError, CapacityError
        The device does not offer what is asked.

    Notes
    -----
    With shot noise alone the ratio is `SNR = 2 S / ((1 + rho)(1 + 2 / rho))` for an anchor `rho` times as bright as
    the pattern: best at sqrt(2), flat from 1 to 4.
    """
    n_features = check_whole("n_features", n_features, 1, 2**31)
    n_outputs = check_whole("n_outputs", n_outputs, 1, 2**31)
    ones = n_features / 2 if expected_ones is None else expected_ones
    if not (isinstance(ones, (int, float, np.integer, np.floating)) and 0 < ones <= n_features):
        raise ConfigError(f"expected_ones is {ones!r}.", f"Use a number above 0, up to n_features = {n_features}.")
    available = available_methods(device.describe())
    chosen = available[0] if method is None else method
    if chosen not in available:
        raise ConfigError(f"The method is {chosen!r}.", f"This device offers {', '.join(available)}.")
    wish = _Wish(METHODS[chosen], n_features, n_outputs, ones, exposure_us, noise_key)
    return _fit_anchor(device, wish) if chosen == ANCHOR else _fit_arm(device, wish)


@dataclass(frozen=True)
class _Wish:
    """What a fit is asked for."""

    method: Method
    n_features: int
    n_outputs: int
    ones: float
    exposure_us: float | None
    noise_key: int


def _fit_anchor(device: Device, wish: _Wish) -> LinearMap:
    n_features, n_outputs, ones = wish.n_features, wish.n_outputs, wish.ones
    n_anchor = math.ceil(BRIGHTNESS_RATIO * ones)
    description = device.describe()
    stride = _independent_pixels(description)
    available = math.prod(-(-side // stride) for side in description.pixels)
    config = SessionConfig(
        n_features=n_features + n_anchor,
        n_outputs=max(n_outputs, min(available, math.ceil(_SPARE_PIXELS * n_outputs) + 32)),
        stride=stride,
        exposure_us=wish.exposure_us,
        noise_key=wish.noise_key,
    )
    n_frames = 0
    if wish.exposure_us is None:
        brightest = _anchored(_typical_patterns(n_features, ones, _EXPOSURE_PATTERNS), n_anchor, anchor_on=True)
        config, n_frames = choose_exposure(device, config, pack(brightest), target_fraction=_BRIGHT_FRACTION)
    typical = _typical_patterns(n_features, ones, _SCALE_PATTERNS)
    constants = np.zeros((2 * _ANCHOR_REPEATS, config.n_features), dtype=np.bool_)
    constants[:_ANCHOR_REPEATS, n_features:] = True
    shown = _shown(wish.method, np.concatenate([typical, typical]), n_anchor).reshape(-1, config.n_features)
    n_frames = _aligned(n_frames)
    with device.open_session(config) as session:
        projection = session.project(np.concatenate([constants, shown]), first_frame_index=n_frames)
        config = session.config
    frames = projection.frames
    anchor = frames[:_ANCHOR_REPEATS].mean(axis=0, dtype=np.float64)
    background = frames[_ANCHOR_REPEATS : len(constants)].mean(axis=0, dtype=np.float64)
    above = anchor - background.mean()
    bright = _bright_pixels(above, np.arange(len(above)), n_outputs)
    pixels = bright[:n_outputs]
    pairs = frames[len(constants) :].reshape(2 * len(typical), wish.method.n_frames, -1)
    result = wish.method.demodulate(pairs, bright, _known_region(config), None).astype(np.float64)
    offset = (anchor - background)[bright] / 2
    power = _power_of_a_feature(typical, (result - offset) / np.sqrt(above[bright]))
    return LinearMap(
        config=config,
        method=wish.method.name,
        n_features=n_features,
        pixels=pixels,
        offset_dn=offset[:n_outputs].astype(np.float32),
        scale_per_dn=(1 / np.sqrt(above[pixels] * power)).astype(np.float32),
        carrier=None,
        medium_id=projection.provenance.medium_id,
        medium_epoch=projection.provenance.medium_epoch,
        n_frames=_aligned(n_frames + len(frames)),
        laser_power_mw=projection.provenance.laser_power_mw,
        calibration_id=projection.provenance.calibration_id,
    )


def _power_of_a_feature(typical: NDArray[np.bool_], results: NDArray[np.float64]) -> float:
    """Return what a feature adds to the mean square of a method's result, shape (2 n_patterns, n_outputs).

    Each pattern was measured twice: the product has no noise in its mean. Differences from the mean over the patterns
    make the most of them, since the patterns have half of their features in common.
    """
    x = typical.astype(np.float64)
    once, again = np.split(results, 2)
    if (x != x[0]).any():
        x, once, again = (values - values.mean(axis=0) for values in (x, once, again))
    power = float((once * again).mean() / (x**2).sum(axis=1).mean())
    if power <= 0:
        raise ConfigError(
            "The light of the mirrors cannot be told from noise.", "Check the light, or raise the exposure."
        )
    return power


def _fit_arm(device: Device, wish: _Wish) -> LinearMap:
    method, n_features, n_outputs = wish.method, wish.n_features, wish.n_outputs
    description = device.describe()
    n_places = -(-n_outputs // 2) if method.is_complex else n_outputs
    config, candidates = _arm_session(wish, n_places, description)
    n_frames = 0
    typical = _typical_patterns(n_features, wish.ones, _SCALE_PATTERNS)
    if wish.exposure_us is None:
        shown = pack(typical[:_EXPOSURE_PATTERNS])
        config, n_frames = choose_exposure(device, config, shown, target_fraction=_BRIGHT_FRACTION)
    # All mirrors off, for the brightness of the arm and for the offset; then each typical pattern twice.
    still = np.zeros((_ANCHOR_REPEATS, n_features), dtype=np.bool_)
    patterns = np.concatenate([still, typical, typical])
    with device.open_session(msgspec.structs.replace(config, light="off", reference=NO_REFERENCE)) as session:
        dark_dn = session.project(still, first_frame_index=n_frames).frames.mean(dtype=np.float64)
        n_frames = _aligned(n_frames + len(still))
    with device.open_session(config) as session:
        steps = _shown(method, patterns, 0).reshape(-1, n_features)
        projection = session.project(steps, first_frame_index=n_frames)
        config = session.config
    frames = projection.frames.reshape(len(patterns), method.n_frames, -1)
    arm = frames[: len(still)].mean(axis=(0, 1), dtype=np.float64) - dark_dn
    bright = _bright_pixels(arm, candidates, n_places)
    region = _known_region(config)
    result = method.demodulate(frames, bright, region, description.reference_carrier).astype(np.float64)
    offset = result[: len(still)].mean(axis=0)
    # The brightness of the arm varies over the pixels, the scale of the medium does not.
    amplitude = np.tile(np.sqrt(arm[bright]), 2 if method.is_complex else 1)
    power = _power_of_a_feature(typical, (result[len(still) :] - offset) / amplitude)
    n_bright, pixels = len(bright), bright[:n_places]
    used = np.arange(n_places)
    keep = np.concatenate([used, n_bright + used])[:n_outputs] if method.is_complex else used
    return LinearMap(
        config=config,
        method=method.name,
        n_features=n_features,
        pixels=pixels,
        offset_dn=offset[keep].astype(np.float32),
        scale_per_dn=(1 / (amplitude[keep] * np.sqrt(power))).astype(np.float32),
        carrier=description.reference_carrier if method.name == "off_axis" else None,
        medium_id=projection.provenance.medium_id,
        medium_epoch=projection.provenance.medium_epoch,
        n_frames=_aligned(n_frames + len(steps)),
        laser_power_mw=projection.provenance.laser_power_mw,
        calibration_id=projection.provenance.calibration_id,
    )


def _arm_session(wish: _Wish, n_places: int, description: DeviceDescription) -> tuple[SessionConfig, NDArray[np.int64]]:
    """Return the session of a method with a reference arm, and which of its outputs can be used."""
    config = SessionConfig(
        n_features=wish.n_features,
        n_outputs=n_places,
        exposure_us=wish.exposure_us,
        noise_key=wish.noise_key,
        stride=1 if wish.method.name == "off_axis" else _independent_pixels(description),
        reference=wish.method.reference,
    )
    rows, columns = description.pixels
    if wish.method.name != "off_axis":
        available = -(-rows // config.stride) * -(-columns // config.stride)
        n_outputs = max(n_places, min(available, math.ceil(_SPARE_PIXELS * n_places) + 32))
        return msgspec.structs.replace(config, n_outputs=n_outputs), np.arange(n_outputs)
    wanted = math.ceil(_SPARE_PIXELS * n_places) + 32
    height = min(rows, _HOLOGRAM_STEP * (math.isqrt(wanted) + 1) + 2 * _HOLOGRAM_MARGIN)
    per_column = -(-(height - 2 * _HOLOGRAM_MARGIN) // _HOLOGRAM_STEP)
    width = _HOLOGRAM_STEP * -(-wanted // max(1, per_column)) + 2 * _HOLOGRAM_MARGIN
    if per_column < 1 or width > columns:
        raise CapacityError(
            f"{n_places} places of a hologram need {width} columns of {height} rows.",
            f"The camera has {rows} rows and {columns} columns: ask for fewer outputs, or use another method.",
        )
    region = Region((rows - height) // 2, (columns - width) // 2, height, width)
    row = np.arange(_HOLOGRAM_MARGIN, height - _HOLOGRAM_MARGIN, _HOLOGRAM_STEP)
    column = np.arange(_HOLOGRAM_MARGIN, width - _HOLOGRAM_MARGIN, _HOLOGRAM_STEP)
    candidates = (row[:, np.newaxis] * width + column).ravel()
    return msgspec.structs.replace(config, n_outputs=height * width, region=region), candidates


def _independent_pixels(description: DeviceDescription) -> int:
    """Return how many pixels apart the speckle is independent: the first dark ring of a circular pupil.

    That is `1.22 L`, with a correlation area of `4 L^2 / pi` (see `opu.sim.speckle`).
    """
    return max(1, math.ceil(1.22 * math.sqrt(math.pi / 4 * (description.speckle_grain_px or 0.0))))


def _known_region(config: SessionConfig) -> Region:
    if config.region is None:
        raise ValueError("the configuration is not resolved: its region is None")
    return config.region


def _bright_pixels(above_dn: NDArray[np.float64], candidates: NDArray[np.int64], n_places: int) -> NDArray[np.int32]:
    """Return the pixels that the reference lights well enough, at least `n_places`."""
    mean_dn = above_dn.mean()
    usable = candidates[above_dn[candidates] >= DARK_FRACTION * mean_dn]
    if mean_dn <= 0 or len(usable) < n_places:
        raise ConfigError(
            f"Only {len(usable)} of {len(candidates)} pixels see the reference, at a mean of {mean_dn:.3g} DN.",
            f"Check the light, raise the exposure, or ask for fewer than {n_places} outputs.",
        )
    pixels: NDArray[np.int32] = usable.astype(np.int32)
    return pixels


def _typical_patterns(n_features: int, ones: float, n_patterns: int) -> NDArray[np.bool_]:
    """Return random patterns that light as many features as expected."""
    generator = np.random.default_rng(0)
    order = generator.random((n_patterns, n_features)).argsort(axis=1)
    return order < max(1, round(ones))


@dataclass(frozen=True, eq=False)
class LinearProjection:
    """The answer of a linear projection.

    Parameters
    ----------
    output : ndarray of float32, shape (batch, n_outputs)
        `x W`.
    projection : Projection
        The frames from which it was computed, with their provenance.
    """

    output: NDArray[np.float32]
    projection: Projection


class LinearProjector:
    """Projects patterns through a fitted `LinearMap` on an open device; a context manager.

    Parameters
    ----------
    device : Device
        The device; it must have the medium of the map.
    linear_map : LinearMap
        The fitted projection.
    first_frame_index : int, optional
        The number of the first frame that it measures; default: after those that the fit used.

    Raises
    ------
    MediumChangedError
        The device has another medium than the one through which the map was fitted. Projections raise it when the
        medium has changed for good since, or the laser has another power.
    ConfigError
        `first_frame_index` is no multiple of the frames of a pattern.

    Examples
    --------
    >>> import numpy as np, opu
    >>> device = opu.open("sim:?preset=ideal&seed=7")
    >>> linear_map = opu.fit_linear_map(device, n_features=64, n_outputs=8)
    >>> with opu.LinearProjector(device, linear_map) as projector:
    ...     y = projector.project(np.eye(3, 64)).output
    >>> y.shape
    (3, 8)
    >>> device.close()
    """

    def __init__(self, device: Device, linear_map: LinearMap, *, first_frame_index: int | None = None) -> None:
        description = device.describe()
        medium = description.medium
        if medium.medium_id != linear_map.medium_id:
            raise MediumChangedError(
                f"The linear map was fitted through the medium {linear_map.medium_id}; the device {device.uri} has "
                f"{medium.medium_id}.",
                "Use the device that it was fitted on, or fit it again with opu.fit_linear_map().",
            )
        if description.calibration_id != linear_map.calibration_id:
            raise MediumChangedError(
                f"The linear map was fitted with the calibration {linear_map.calibration_id}; the device {device.uri} "
                f"has {description.calibration_id}, which may leave out other pixels.",
                "Apply the calibration that it was fitted with, or fit it again with opu.fit_linear_map().",
            )
        n_steps = METHODS[linear_map.method].n_frames
        if first_frame_index is not None and first_frame_index % n_steps:
            raise ConfigError(
                f"first_frame_index is {first_frame_index}, and a pattern takes {n_steps} frames.",
                f"Use a multiple of {n_steps}: the phase of a reference follows the number of the frame.",
            )
        self.linear_map = linear_map
        self._first_frame_index = linear_map.n_frames if first_frame_index is None else first_frame_index
        self._method = METHODS[linear_map.method]
        self._region = _known_region(linear_map.config)
        self._session: Session = device.open_session(linear_map.config)

    @property
    def next_frame_index(self) -> int:
        """The number that the next frame gets."""
        return self._first_frame_index

    @property
    def max_batch(self) -> int:
        """The largest number of frames that one submission may take, see `frames_for`."""
        return self._session.describe().max_batch

    def frames_for(self, patterns: NDArray[Any]) -> int:
        """Return how many frames a batch costs: those of the method, twice where a value is negative."""
        return len(patterns) * self.linear_map.frames_per_pattern * (2 if (patterns < 0).any() else 1)

    def project(self, patterns: ArrayLike, *, ternary: bool | None = None) -> LinearProjection:
        """Project patterns and wait: `submit(...).result()`."""
        return self.submit(patterns, ternary=ternary).result()

    def submit(self, patterns: ArrayLike, *, ternary: bool | None = None) -> Future[LinearProjection]:
        """Queue a batch of binary or ternary patterns.

        Parameters
        ----------
        patterns : array_like, shape (batch, n_features)
            Values -1, 0 and 1.
        ternary : bool, optional
            Treat the patterns as ternary even where no value is negative; default: where one is.

        Returns
        -------
        concurrent.futures.Future of LinearProjection
            `patterns @ W`.

        Raises
        ------
        PatternShapeError, PatternValueError, PatternDtypeError
            The patterns cannot be used; nothing was queued.
        """
        positive, negative = self._split(patterns)
        parts = [positive]
        if ternary or (ternary is None and negative.any()):
            parts.append(negative)
        elif negative.any():
            raise PatternValueError("A value is -1 and ternary is False.", "Use ternary=True.")
        n_anchor = self.linear_map.config.n_features - self.linear_map.n_features
        # The frames of a pattern stand side by side, so that slow changes of the light do not come between them.
        shown = np.stack([_shown(self._method, part, n_anchor) for part in parts], axis=1)
        flat = shown.reshape(-1, shown.shape[-1])
        frames = self._session.submit(flat, first_frame_index=self._first_frame_index)
        self._first_frame_index += len(flat)
        return _then(frames, lambda projection: self._combine(projection, len(parts)))

    def _split(self, patterns: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        array = as_array(patterns)
        if array.ndim != 2 or array.shape[1] != self.linear_map.n_features:
            raise PatternShapeError(
                f"The patterns have the shape {array.shape}.", f"Use (batch, {self.linear_map.n_features})."
            )
        if array.dtype.kind in "if":
            wrong = (array != 0) & (array != 1) & (array != -1)
            if wrong.any():
                raise PatternValueError(f"The value {array[wrong][0]} is none of -1, 0, 1.", "Encode the values first.")
            return array > 0, array < 0
        pack(array)  # raises for what is neither Boolean nor 0 and 1
        return array.astype(np.bool_), np.zeros(array.shape, dtype=np.bool_)

    def _combine(self, projection: Projection, n_parts: int) -> LinearProjection:
        linear_map = self.linear_map
        epoch = projection.provenance.medium_epoch
        if epoch != linear_map.medium_epoch:
            raise MediumChangedError(
                f"The medium {linear_map.medium_id} has changed: the linear map was fitted in its epoch "
                f"{linear_map.medium_epoch}, and this is {epoch}.",
                "Fit the map again with opu.fit_linear_map().",
            )
        power_mw, fitted_mw = projection.provenance.laser_power_mw, linear_map.laser_power_mw
        if None not in {power_mw, fitted_mw} and power_mw != fitted_mw:
            raise MediumChangedError(
                f"The laser is set to {power_mw:g} mW, and the linear map was fitted at {fitted_mw:g} mW.",
                "Fit the map again with opu.fit_linear_map(), or have the power set back.",
            )
        frames = projection.frames.reshape(-1, self._method.n_frames, projection.frames.shape[1])
        found = self._method.demodulate(frames, linear_map.pixels, self._region, linear_map.carrier)
        parts = found.reshape(-1, n_parts, found.shape[1])[:, :, : linear_map.n_outputs]
        difference = parts[:, 0] - (parts[:, 1] if n_parts == 2 else linear_map.offset_dn)
        return LinearProjection(difference * linear_map.scale_per_dn, projection)

    def close(self) -> None:
        """Close the session; the device stays open."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _then(source: Future[Projection], convert: Any) -> Future[LinearProjection]:
    """Return a future of the converted result; a failure, or a cancellation, passes through."""
    target: Future[LinearProjection] = Future()
    target.set_running_or_notify_cancel()

    def settle(done: Future[Projection]) -> None:
        try:
            target.set_result(convert(done.result()))
        except BaseException as error:  # noqa: BLE001 - whoever waits for the target must see it
            target.set_exception(error)

    source.add_done_callback(settle)
    return target
