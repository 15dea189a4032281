r"""Linear projections from intensities alone.

A camera sees `I(x) = |a x + c|^2` (`c` the background that mirrors which are off still throw; zero for infinite DMD
contrast). Show a pattern twice, alone and together with a fixed *anchor* `r` on mirrors of its own. Then

    (I(x + r) - I(x) - I(r) + I(0)) / 2 = Re(conj(a r) (a x)),

exactly linear in `x`, with `I(r)` and the all-off frame `I(0)` measured once: two frames for each binary pattern.
For a ternary pattern `x = p - n` the constants cancel and four frames, `p + r, p, n + r, n`, are enough.
Divided by `|a r|` of each pixel the weights are independent real Gaussians. Pixels where the anchor is dark (below a
tenth of its mean: 9.5 % of them) would divide by little and are left out, once and for all, in the saved `LinearMap`.
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

from opu.device import Projection, SessionConfig
from opu.errors import ConfigError, DataFileError, MediumChangedError, PatternShapeError, PatternValueError
from opu.exposure import choose_exposure
from opu.patterns import PackedPatterns, pack

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.device import Device, Session

__all__ = ["LinearMap", "LinearProjection", "LinearProjector", "fit_linear_map"]

DARK_FRACTION = 0.1
BRIGHTNESS_RATIO = 2.0
# A tenth of full scale, a little less than for single frames: a saturated pixel spoils a difference of frames.
_BRIGHT_FRACTION = 1 / 10
_ANCHOR_REPEATS = 128
_EXPOSURE_PATTERNS = 32
_SPARE_PIXELS = 1.25
_FORMAT = "openopu.linear_map/1"


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear projection, fitted once and then fixed: it *is* the matrix `W`.

    The output of a projection is `x W`, with `W` of shape (n_features, n_outputs), independent entries of zero mean
    and unit variance. `W` itself is never known; what is saved names it.

    Parameters
    ----------
    config : SessionConfig
        The session that measures it, its features being the pattern's followed by the anchor's.
    n_features : int
        The width of a pattern.
    pixels : ndarray of int32, shape (n_outputs,)
        Which of the session's outputs are used: those where the anchor is bright enough.
    anchor_dn : ndarray of float32, shape (n_outputs,)
        Mean frame of the anchor alone, I(r), in DN.
    background_dn : ndarray of float32, shape (n_outputs,)
        Mean frame with all mirrors off, I(0), in DN.
    feature_dn : float
        Mean intensity that one lit feature adds, in DN: the scale of the output.
    medium_id, medium_epoch : str, int
        The medium through which it was measured.
    n_frames : int
        What fitting cost.
    """

    config: SessionConfig
    n_features: int
    pixels: NDArray[np.int32]
    anchor_dn: NDArray[np.float32]
    background_dn: NDArray[np.float32]
    feature_dn: float
    medium_id: str
    medium_epoch: int
    n_frames: int

    @property
    def n_outputs(self) -> int:
        """The width of the output."""
        return len(self.pixels)

    @property
    def weights_scale(self) -> NDArray[np.float32]:
        """Factor from `Re(conj(a r) (a x))` in DN to unit variance, shape (n_outputs,).

        `1 / (|a r| sqrt(g / 2))`, with `g = feature_dn` the mean of `|a|^2` of a feature.
        """
        anchor = np.maximum(self.anchor_dn - self.background_dn.mean(), np.float32(1e-6))
        scale: NDArray[np.float32] = (1 / np.sqrt(anchor * (self.feature_dn / 2))).astype(np.float32)
        return scale

    def to_bytes(self) -> bytes:
        """Return the map as the content of a `.npz` file."""
        meta = msgspec.json.encode(
            {
                "format": _FORMAT,
                "config": self.config,
                "n_features": self.n_features,
                "feature_dn": self.feature_dn,
                "medium_id": self.medium_id,
                "medium_epoch": self.medium_epoch,
                "n_frames": self.n_frames,
            }
        )
        buffer = io.BytesIO()
        np.savez(
            buffer,
            meta=np.frombuffer(meta, np.uint8),
            pixels=self.pixels,
            anchor_dn=self.anchor_dn,
            background_dn=self.background_dn,
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
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                meta = msgspec.json.decode(data["meta"].tobytes())
                if meta["format"] != _FORMAT:
                    raise DataFileError(f"The linear map has the format {meta['format']!r}.", f"Use {_FORMAT}.")
                return cls(
                    msgspec.convert(meta["config"], SessionConfig),
                    meta["n_features"],
                    data["pixels"].astype(np.int32),
                    data["anchor_dn"].astype(np.float32),
                    data["background_dn"].astype(np.float32),
                    meta["feature_dn"],
                    meta["medium_id"],
                    meta["medium_epoch"],
                    meta["n_frames"],
                )
        except DataFileError:
            raise
        except Exception as error:  # numpy, zipfile, zlib and msgspec raise a dozen classes for damaged content
            raise DataFileError(
                f"The linear map cannot be read: {error}.", "Fit it again with opu.fit_linear_map()."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the map; the file is written aside and renamed."""
        target = Path(path)
        aside = target.with_name(f"{target.name}.{os.getpid()}.part")
        aside.write_bytes(self.to_bytes())
        aside.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearMap:
        """Load a saved map.

        Raises
        ------
        DataFileError
            The file is missing, damaged, or no linear map.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataFileError(
                f"The linear map {os.fspath(path)!r} cannot be read: {error}.", "Check the path."
            ) from error
        return cls.from_bytes(content)


def _anchored(patterns: NDArray[np.bool_], n_anchor: int, anchor_on: bool) -> NDArray[np.bool_]:
    anchor = np.full((len(patterns), n_anchor), anchor_on)
    return np.concatenate([patterns, anchor], axis=1)


def fit_linear_map(
    device: Device,
    n_features: int,
    n_outputs: int,
    *,
    expected_ones: float | None = None,
    exposure_us: float | None = None,
    noise_key: int = 0,
) -> LinearMap:
    """Fit a linear projection: choose anchor, exposure and pixels, and measure the anchor.

    Parameters
    ----------
    device : Device
        Any device.
    n_features : int
        The width of the patterns that will be projected.
    n_outputs : int
        The width of the projection.
    expected_ones : float, optional
        How many features a pattern typically lights (for ternary patterns: its positive or its negative part);
        default half of them. The anchor is made `2` times as bright, near the optimum of the signal-to-noise ratio.
    exposure_us : float, optional
        Exposure time in microseconds; by default it is chosen for a mean of a tenth of full scale in the
        brightest frames.
    noise_key : int
        The noise of the frames, as in `SessionConfig`.

    Returns
    -------
    LinearMap
        What `LinearProjector` needs.

    Raises
    ------
    ConfigError, CapacityError
        The device does not offer what is asked.

    Notes
    -----
    With shot noise alone the ratio is `SNR = 2 S / ((1 + rho)(1 + 2 / rho))` for an anchor `rho` times as bright as
    the pattern: best at sqrt(2), flat from 1 to 4.
    """
    ones = n_features / 2 if expected_ones is None else expected_ones
    if n_features < 1 or not 0 < ones <= n_features:
        raise ConfigError(
            f"n_features is {n_features} and expected_ones is {ones}.", "Use 0 < expected_ones <= n_features."
        )
    n_anchor = math.ceil(BRIGHTNESS_RATIO * ones)
    available = math.prod(device.describe().pixels)
    config = SessionConfig(
        n_features=n_features + n_anchor,
        n_outputs=max(n_outputs, min(available, math.ceil(_SPARE_PIXELS * n_outputs) + 32)),
        exposure_us=exposure_us,
        noise_key=noise_key,
    )
    n_frames = 0
    if exposure_us is None:
        bright = _bright_patterns(n_features, ones, n_anchor)
        config, n_frames = choose_exposure(device, config, bright, target_fraction=_BRIGHT_FRACTION)
    with device.open_session(config) as session:
        constants = np.zeros((2 * _ANCHOR_REPEATS, config.n_features), dtype=np.bool_)
        constants[:_ANCHOR_REPEATS, n_features:] = True
        projection = session.project(constants, first_frame_index=n_frames)
        config = session.config
    anchor = projection.frames[:_ANCHOR_REPEATS].mean(axis=0, dtype=np.float64)
    background = projection.frames[_ANCHOR_REPEATS:].mean(axis=0, dtype=np.float64)
    above = anchor - background.mean()
    usable = np.flatnonzero(above >= DARK_FRACTION * above.mean())[:n_outputs]
    if above.mean() <= 0 or len(usable) < n_outputs:
        raise ConfigError(
            f"Only {len(usable)} of {config.n_outputs} pixels see the anchor, at a mean of {above.mean():.3g} DN.",
            f"Check the light, raise the exposure, or ask for fewer than {n_outputs} outputs.",
        )
    return LinearMap(
        config=config,
        n_features=n_features,
        pixels=usable.astype(np.int32),
        anchor_dn=anchor[usable].astype(np.float32),
        background_dn=background[usable].astype(np.float32),
        feature_dn=float(above.mean() / n_anchor),
        medium_id=projection.provenance.medium_id,
        medium_epoch=projection.provenance.medium_epoch,
        n_frames=n_frames + len(constants),
    )


def _bright_patterns(n_features: int, ones: float, n_anchor: int) -> PackedPatterns:
    """Patterns as bright as the brightest frames of a projection: typical ones, with the anchor."""
    generator = np.random.default_rng(0)
    order = generator.random((_EXPOSURE_PATTERNS, n_features)).argsort(axis=1)
    return pack(_anchored(order < round(ones), n_anchor, anchor_on=True))


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
        The device has another medium than the one through which the map was fitted.

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
        medium = device.describe().medium
        if (medium.medium_id, medium.epoch) != (linear_map.medium_id, linear_map.medium_epoch):
            raise MediumChangedError(
                f"The linear map was fitted through the medium {linear_map.medium_id}, epoch "
                f"{linear_map.medium_epoch}; the device {device.uri} has {medium.medium_id}, epoch {medium.epoch}.",
                "Use the device that it was fitted on, or fit it again with opu.fit_linear_map().",
            )
        self.linear_map = linear_map
        self._first_frame_index = linear_map.n_frames if first_frame_index is None else first_frame_index
        self._scale = linear_map.weights_scale
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
        """Return how many frames a batch costs: two a pattern, four where a value is negative."""
        return len(patterns) * (4 if (patterns < 0).any() else 2)

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
            Use four frames a pattern even where no value is negative; default: where one is.

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
        n_anchor = self.linear_map.config.n_features - self.linear_map.n_features
        parts = [positive]
        if ternary or (ternary is None and negative.any()):
            parts.append(negative)
        elif negative.any():
            raise PatternValueError("A value is -1 and ternary is False.", "Use ternary=True.")
        shown = np.concatenate([_anchored(part, n_anchor, anchor_on=on) for part in parts for on in (True, False)])
        frames = self._session.submit(shown, first_frame_index=self._first_frame_index)
        self._first_frame_index += len(shown)
        return _then(frames, lambda projection: self._combine(projection, len(parts)))

    def _split(self, patterns: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        array = np.asarray(patterns)
        if array.ndim != 2 or array.shape[1] != self.linear_map.n_features:
            raise PatternShapeError(
                f"The patterns have the shape {array.shape}.", f"Use (batch, {self.linear_map.n_features})."
            )
        if array.dtype.kind in "if":
            wrong = ~np.isin(array, (-1, 0, 1))
            if wrong.any():
                raise PatternValueError(f"The value {array[wrong][0]} is none of -1, 0, 1.", "Encode the values first.")
            return array > 0, array < 0
        pack(array)  # raises for what is neither Boolean nor 0 and 1
        return array.astype(np.bool_), np.zeros(array.shape, dtype=np.bool_)

    def _combine(self, projection: Projection, n_parts: int) -> LinearProjection:
        used = projection.frames[:, self.linear_map.pixels].astype(np.float32)
        with_anchor, alone, *negative = np.split(used, 2 * n_parts)
        difference = with_anchor - alone
        if negative:
            difference -= negative[0] - negative[1]
        else:
            difference -= self.linear_map.anchor_dn - self.linear_map.background_dn
        return LinearProjection(difference * (self._scale * np.float32(0.5)), projection)

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
