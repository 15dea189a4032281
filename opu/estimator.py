"""An optical processing unit as a scikit-learn estimator: `OPU`."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

from opu.device import Device, SessionConfig
from opu.encoders import BitPlaneEncoder, ThresholdEncoder
from opu.errors import (
    ClosedError,
    ConfigError,
    LinkError,
    MediumChangedError,
    MissingExtraError,
    OpuError,
    StaleCalibrationWarning,
)
from opu.exposure import choose_exposure
from opu.linear import LinearProjector, fit_linear_map
from opu.patterns import pack
from opu.registry import open_device

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    raise MissingExtraError(
        "opu.OPU needs scikit-learn, which is not installed.",
        "Install the extra sklearn: pip install 'openopu[sklearn]'.",
    ) from missing

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.device import Provenance, Session
    from opu.linear import LinearMap

__all__ = ["OPU"]

_IN_FLIGHT = 4
_CHUNK_BYTES = 2**27
_TUNING_SAMPLES = 32
_LINEAR_KEY = 2**63

ResultT = TypeVar("ResultT")


def _pipelined(futures: Iterable[Future[ResultT]]) -> Iterator[ResultT]:
    """Yield results in order, having taken a few more futures, that is, submitted more work, before waiting."""
    waiting: deque[Future[ResultT]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) == _IN_FLIGHT:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Link:
    """The device of a fitted estimator, opened when needed, and the numbers of its next frames.

    Only the numbers survive closing, a failure of the link and pickling; sessions are opened again on the next use.
    """

    def __init__(self) -> None:
        self.next_frame_index = 0
        self.next_linear_frame_index: int | None = None
        self._lock = threading.RLock()
        self._has_warned = False
        self._reset()

    def _reset(self) -> None:
        self._device: Device | None = None
        self._session: Session | None = None
        self._projector: LinearProjector | None = None
        self._close_device: Callable[[], object] = lambda: None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other threads out; after a failure of the link let the next use open everything again."""
        with self._lock:
            try:
                yield
            except (LinkError, ClosedError):
                with suppress(OpuError):
                    self.close()
                raise

    def use(self, device: Device, *, owned: bool) -> None:
        """Take an open device; one that is owned is closed with the link."""
        self._device = device
        if owned:
            self._close_device = device.close

    def device(self, estimator: OPU) -> Device:
        """Return the device, opened, and check that its medium is the fitted one."""
        if self._device is None:
            device, owned = _open(estimator.device)
            try:
                _check_same(device, estimator)
            except MediumChangedError:
                if owned:
                    device.close()
                raise
            self.use(device, owned=owned)
            return device
        return self._device

    def note(self, provenance: Provenance, estimator: OPU) -> None:
        """Warn, once, if frames come from a device whose calibration is stale."""
        if self._has_warned or self._device is None or provenance.calibrated_unix_s is None:
            return
        age_s = provenance.finished_unix_s - provenance.calibrated_unix_s
        epoch = self._device.describe().calibrated_medium_epoch
        if age_s > estimator.max_calibration_age_s:
            reason = f"is {age_s:.0f} s old, more than max_calibration_age_s = {estimator.max_calibration_age_s:g}"
        elif epoch not in (None, provenance.medium_epoch):
            reason = f"was measured in epoch {epoch} of the medium, and this is epoch {provenance.medium_epoch}"
        else:
            return
        self._has_warned = True
        message = f"The calibration {provenance.calibration_id} of the device {reason}. Calibrate the device again."
        warnings.warn(message, StaleCalibrationWarning, stacklevel=3)

    def session(self, estimator: OPU) -> Session:
        """Return the session of `transform`."""
        if self._session is None:
            self._session = self.device(estimator).open_session(estimator.session_config_)
        return self._session

    def projector(self, estimator: OPU) -> LinearProjector:
        """Return the projector of `linear_transform`."""
        if self._projector is None:
            self._projector = LinearProjector(
                self.device(estimator), estimator.linear_map_, first_frame_index=self.next_linear_frame_index
            )
        return self._projector

    def close(self) -> None:
        """Close sessions, and the device if it is owned."""
        with self._lock, ExitStack() as last_to_first:
            last_to_first.callback(self._close_device)
            for opened in (self._session, self._projector):
                if opened is not None:
                    last_to_first.callback(opened.close)
            self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "next_frame_index": self.next_frame_index,
            "next_linear_frame_index": self.next_linear_frame_index,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._has_warned = False
        self._reset()


def _check_same(device: Device, estimator: OPU) -> None:
    """Check that a device has the medium and the calibration, and so the pixels, that an estimator was fitted with."""
    description = device.describe()
    medium = description.medium
    if (medium.medium_id, medium.epoch) != (estimator.medium_id_, estimator.medium_epoch_):
        raise MediumChangedError(
            f"The estimator was fitted through the medium {estimator.medium_id_}, epoch "
            f"{estimator.medium_epoch_}; the device {device.uri} has {medium.medium_id}, epoch {medium.epoch}.",
            "Use the device that it was fitted on, or fit it again.",
        )
    if description.calibration_id != estimator.calibration_id_:
        raise MediumChangedError(
            f"The estimator was fitted with the calibration {estimator.calibration_id_}; the device {device.uri} has "
            f"{description.calibration_id}, which may leave out other pixels.",
            "Apply the calibration that it was fitted with, or fit it again.",
        )


def _open(device: str | Device | None) -> tuple[Device, bool]:
    """Return an open device and whether it was opened here."""
    if isinstance(device, Device):
        return device, False
    if device is not None and not isinstance(device, str):
        raise ConfigError(f"device is {device!r}.", "Use an address such as 'sim:?preset=aurora', or an open device.")
    return open_device(device), True


class OPU(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Random projections through an optical processing unit, with scikit-learn's manners.

    `transform` shows `x > threshold` on the mirrors and returns what the camera counts, `|A x|^2`: nonlinear random
    features, whose kernel is `E[|a.x|^2 |a.z|^2] = |x|^2 |z|^2 + (x.z)^2` for mirrors of unit variance.
    `linear_transform` returns `x W` for real numbers, with a fixed Gaussian matrix `W`.

    Noise is drawn anew at every call: projecting the same samples twice gives two sets of frames, as on a real camera.
    On a device with repeatable noise the frames are a function of `noise_key` and of what was projected since `fit`.

    Parameters
    ----------
    n_components : int
        The width of the output: how many camera pixels are used.
    device : str, Device or None
        The address of a device, which the estimator opens in `fit` and closes itself; or an open device, which clones
        share and which stays open; or None for the environment variable `OPU_URI` and then the simulated device. A
        pickled copy knows an open device by its address.
    threshold : float or "auto"
        As `opu.encoders.ThresholdEncoder`: `transform` shows `x > threshold`.
    n_bits : int
        As `opu.encoders.BitPlaneEncoder`: bits of a number's magnitude in `linear_transform`.
    exposure_us : float or None
        Exposure time in microseconds; None chooses it at `fit`, for a mean of a ninth of full scale on the fitted data,
        and again for the brightest frames of a linear projection.
    noise_key : int
        The noise of the frames of `transform`, as in `opu.SessionConfig`. Frames of `linear_transform` have this key
        with its highest bit flipped, so that no two frames share their noise.
    max_calibration_age_s : float
        From which age on, in seconds, the calibration that is applied to the device is called stale, with a
        `StaleCalibrationWarning`; a day unless said otherwise.

    Attributes
    ----------
    n_features_in_, feature_names_in_ : int, ndarray of str
        Features seen by `fit`, and their names if they have any.
    encoder_ : ThresholdEncoder
        The fitted encoder of `transform`.
    bit_plane_encoder_ : BitPlaneEncoder
        The fitted encoder of `linear_transform`.
    session_config_ : SessionConfig
        The complete configuration of the session of `transform`.
    frame_dtype_ : str
        The dtype of a frame: `uint8` for 8-bit devices, otherwise `uint16`.
    medium_id_, medium_epoch_ : str, int
        The medium, that is, the matrix `A`.
    calibration_id_ : str or None
        The calibration that is applied to the device.
    expected_ones_ : float
        Mean number of lit features of a bit plane of the fitted data, which sizes the anchor.
    linear_map_ : LinearMap
        The matrix `W`; there after the first `linear_transform`.

    Examples
    --------
    >>> import numpy as np, opu
    >>> X = np.random.default_rng(0).normal(size=(10, 64))
    >>> with opu.OPU(n_components=100, device="sim:?preset=aurora&seed=7") as transformer:
    ...     features = transformer.fit_transform(X)
    ...     projections = transformer.linear_transform(X)
    >>> features.shape, features.dtype, projections.shape, projections.dtype
    ((10, 100), dtype('uint8'), (10, 100), dtype('float32'))
    """

    n_features_in_: int
    encoder_: ThresholdEncoder
    bit_plane_encoder_: BitPlaneEncoder
    session_config_: SessionConfig
    frame_dtype_: str
    medium_id_: str
    medium_epoch_: int
    calibration_id_: str | None
    expected_ones_: float
    linear_map_: LinearMap
    _link: _Link

    def __init__(
        self,
        n_components: int = 1000,
        *,
        device: str | Device | None = None,
        threshold: float | Literal["auto"] = "auto",
        n_bits: int = 8,
        exposure_us: float | None = None,
        noise_key: int = 0,
        max_calibration_age_s: float = 86_400.0,
    ) -> None:
        self.n_components = n_components
        self.device = device
        self.threshold = threshold
        self.n_bits = n_bits
        self.exposure_us = exposure_us
        self.noise_key = noise_key
        self.max_calibration_age_s = max_calibration_age_s

    def fit(self, X: ArrayLike, y: object = None) -> Self:  # noqa: ARG002 - scikit-learn passes y to every step
        """Open the device, learn the encoders and choose the exposure. The frame numbers start anew.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.
        y : object
            Ignored.

        Returns
        -------
        OPU
            Itself.

        Raises
        ------
        ConfigError, CapacityError
            A parameter is not valid, or more than the device offers.
        UriError, UnreachableError
            The device cannot be opened.
        """
        samples = validate_data(self, X, dtype="numeric")
        self.close()
        self.encoder_ = ThresholdEncoder(self.threshold).fit(samples)
        self.bit_plane_encoder_ = BitPlaneEncoder(self.n_bits).fit(samples)
        few = samples[:: -(-len(samples) // _TUNING_SAMPLES)]
        self.expected_ones_ = max(1.0, float((self.bit_plane_encoder_.transform(few) > 0).sum(axis=2).mean()))
        config = SessionConfig(
            n_features=samples.shape[1],
            n_outputs=_as_int(self.n_components),
            exposure_us=self.exposure_us,
            noise_key=_as_int(self.noise_key),
        )
        device, owned = _open(self.device)
        self._link = _Link()
        self._link.use(device, owned=owned)
        try:
            self._prepare(device, config, self.encoder_.transform(few))
        except BaseException:
            self.close()
            raise
        return self

    def _prepare(self, device: Device, config: SessionConfig, shown: NDArray[np.bool_]) -> None:
        description = device.describe()
        medium = description.medium
        self.medium_id_, self.medium_epoch_ = medium.medium_id, medium.epoch
        self.calibration_id_ = description.calibration_id
        if self.exposure_us is None and shown.any():
            config, self._link.next_frame_index = choose_exposure(device, config, pack(shown))
        self.session_config_ = config
        session = self._link.session(self)
        self.session_config_ = session.config
        self.frame_dtype_ = session.describe().frame_dtype
        if hasattr(self, "linear_map_"):
            del self.linear_map_  # of an earlier fit

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return camera frames of the encoded samples.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.

        Returns
        -------
        ndarray of uint8 or uint16, shape (n_samples, n_components)
            Counts from 0 to full scale (255 on an 8-bit device), which sums of their own dtype would overflow: convert
            before calculating.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        MediumChangedError
            The device was opened again and has another medium or calibration.
        LinkError, ClosedError
            The link to the device failed. The next call opens it again.
        """
        check_is_fitted(self)
        samples = validate_data(self, X, dtype="numeric", reset=False)
        frames = np.empty((len(samples), self.session_config_.n_outputs), self.frame_dtype_)
        link = self._link
        with link.in_use():
            session = link.session(self)
            rows = min(session.describe().max_batch, max(1, _CHUNK_BYTES // samples.shape[1]))
            first = link.next_frame_index
            link.next_frame_index += len(samples)

            futures = (
                session.submit(
                    self.encoder_.transform(samples[start : start + rows]),
                    first_frame_index=first + start,
                    out=frames[start : start + rows],
                )
                for start in range(0, len(samples), rows)
            )
            for projection in _pipelined(futures):
                link.note(projection.provenance, self)  # the frames are in their place
        return frames

    def linear_transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the linear projection `X W`, computed from camera frames.

        The first call fits `linear_map_`, which fixes `W`: independent Gaussian entries of zero mean and unit variance.
        A sample costs `2 n_bits` frames, or `4 n_bits` where the fitted data hold negative numbers.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers; those beyond the range of the fitted data are clipped, with a warning.

        Returns
        -------
        ndarray of float32, shape (n_samples, n_components)
            `X W`, with the noise of the camera and the rounding of the encoder.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ConfigError, CapacityError
            The device does not offer what a linear projection needs: mirrors and pixels to spare for the anchor.
        MediumChangedError
            The device was opened again and has another medium or calibration.
        LinkError, ClosedError
            The link to the device failed. The next call opens it again.
        """
        check_is_fitted(self)
        samples = validate_data(self, X, dtype="numeric", reset=False)
        encoder = self.bit_plane_encoder_
        output = np.empty((len(samples), self.session_config_.n_outputs), np.float32)
        link = self._link
        with link.in_use():
            self._fit_linear_map(link)
            projector = link.projector(self)
            frames_each = self.linear_map_.frames_per_pattern * (2 if encoder.signed_ else 1)
            patterns_at_once = max(1, projector.max_batch // frames_each)
            rows = max(1, patterns_at_once // encoder.n_bits)
            for start in range(0, len(samples), rows):
                planes = encoder.transform(samples[start : start + rows])
                flat = planes.reshape(-1, planes.shape[2])
                futures = (
                    projector.submit(flat[i : i + patterns_at_once], ternary=encoder.signed_)
                    for i in range(0, len(flat), patterns_at_once)
                )
                parts = list(_pipelined(futures))
                link.note(parts[-1].projection.provenance, self)
                projected = np.concatenate([part.output for part in parts]).reshape(*planes.shape[:2], -1)
                output[start : start + rows] = encoder.decode(projected)
            link.next_linear_frame_index = projector.next_frame_index
        return output

    def _fit_linear_map(self, link: _Link) -> None:
        if hasattr(self, "linear_map_"):
            return
        self.linear_map_ = fit_linear_map(
            link.device(self),
            self.session_config_.n_features,
            self.session_config_.n_outputs,
            expected_ones=self.expected_ones_,
            exposure_us=self.exposure_us,
            noise_key=self.session_config_.noise_key ^ _LINEAR_KEY,
        )

    def close(self) -> None:
        """Close the sessions, and the device unless it was given open. The next use opens them again."""
        if hasattr(self, "_link"):
            self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _n_features_out(self) -> int:
        return self.session_config_.n_outputs

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if isinstance(self.device, Device):
            state["device"] = self.device.uri
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True  # noise
        tags.transformer_tags.preserves_dtype = []  # counts, whatever goes in
        return tags


def _as_int(value: Any) -> Any:
    """Turn NumPy's whole numbers, which parameter searches deliver, into Python's."""
    return int(value) if isinstance(value, np.integer) else value
