"""What was learned of a device, applied to it: a device of the same contract that uses it by itself.

A `Calibration` is made from the results of routines, saved, and applied to the device that it was measured on. The
sessions of the `CalibratedDevice` begin with its region, stride, exposure and gain, leave out hot pixels, and say in
every result which calibration that was, and of when.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from opu.calibration.faults import STUCK_SHARE
from opu.calibration.hdf5 import is_complete, is_on_a_sensor, read_sealed, write_sealed
from opu.calibration.result import is_within
from opu.device import (
    Batch,
    Device,
    DeviceDescription,
    GroundTruth,
    Limits,
    Projection,
    Region,
    Session,
    SessionConfig,
    SessionDescription,
    failed_future,
    resolve_config,
)
from opu.errors import CapacityError, ConfigError, DataFileError, MediumChangedError, OpuError
from opu.parts import selected_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from opu.calibration.result import CalibrationResult
    from opu.device import CapabilityT

__all__ = ["APPLIED", "FORMAT", "CalibratedDevice", "Calibration", "apply", "left_out"]

APPLIED = ("dark_frames", "exposure", "grain")
"""The routines of whose results a calibration is made."""

FORMAT = "openopu.calibration/1"
_DTYPES = {"hot_pixels": "int32", "dark_dn": "float32"}
_ID_DIGITS = 16
# With more of them, what is left of the sensor is not to be believed either.
_MOST_BAD_PIXELS = 0.05
# Wider than any sensor, so that one number names a pixel on all of them.
_WIDE = 2**31


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a saved calibration holds beside its arrays."""

    measured_unix_s: float
    device_id: str
    medium_id: str
    medium_epoch: int
    dark_config: SessionConfig | None
    region: Region | None
    stride: int
    exposure_us: float | None
    gain_db: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """What was learned of a device.

    Parameters
    ----------
    measured_unix_s : float
        When: the end of the last measurement.
    device_id, medium_id, medium_epoch : str, str, int
        Of what.
    hot_pixels : ndarray of int32, shape (n, 2)
        Row and column, on the sensor, of the pixels that are not to be used. Beyond the pixels of `dark_config` nobody
        has looked.
    dark_dn : ndarray of float32, shape (n,)
        The dark level of each output of the session `dark_config`, in DN.
    dark_config : SessionConfig or None
        That session's complete configuration; None where nobody has looked.
    region : Region or None
        Where the pixels are known; None where nobody has looked.
    stride : int
        So many pixels apart they are independent.
    exposure_us : float or None
        The exposure that suits a random half of the features; None where nobody has looked.
    gain_db : float
        The gain that goes with it.

    Examples
    --------
    >>> made = {"measured_unix_s": 1.75e9, "device_id": "bench 1", "medium_id": "paint", "medium_epoch": 0}
    >>> one, other = Calibration(**made, exposure_us=500.0), Calibration(**made, exposure_us=510.0)
    >>> len(one.id), one.id == Calibration(**made, exposure_us=500.0).id, one.id == other.id
    (16, True, False)
    """

    measured_unix_s: float
    device_id: str
    medium_id: str
    medium_epoch: int
    hot_pixels: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    dark_dn: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    dark_config: SessionConfig | None = None
    region: Region | None = None
    stride: int = 1
    exposure_us: float | None = None
    gain_db: float = 0.0

    @cached_property
    def id(self) -> str:
        """A name that follows from the content: the first digits of its SHA-256."""
        digest = hashlib.sha256(msgspec.json.encode(self._meta()))
        for array in self._arrays().values():
            digest.update(array.tobytes())
        return digest.hexdigest()[:_ID_DIGITS]

    def dark_levels(self, config: SessionConfig) -> NDArray[np.float32]:
        """Return the dark level of each output of a session.

        Parameters
        ----------
        config : SessionConfig
            The complete configuration of a session of the calibrated device, as `Session.config` has it.

        Returns
        -------
        ndarray of float32, shape (n_outputs,)
            In DN; NaN where it was not measured: hot pixels are not known there either. Where dark current counts, it
            is that of the exposure and gain of `dark_config`.
        """
        inner, good = self.with_hot_pixels(config)
        numbers = _pixel_numbers(inner)[good]
        if self.dark_config is None:
            return np.full(len(numbers), np.nan, np.float32)
        known = _pixel_numbers(self.dark_config)
        nearest = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        return np.where(known[nearest] == numbers, self.dark_dn[nearest], np.float32(np.nan))

    def with_hot_pixels(self, config: SessionConfig) -> tuple[SessionConfig, NDArray[np.bool_]]:
        """Return the configuration of a session that has enough pixels when the hot ones are left out.

        Parameters
        ----------
        config : SessionConfig
            What is wanted without them; complete.

        Returns
        -------
        tuple of (SessionConfig, ndarray of bool)
            The same with as many outputs as it takes, and which of them are good: as many as were wanted.

        Raises
        ------
        CapacityError
            The region has too few good pixels.
        """
        n_outputs = config.n_outputs
        while True:
            inner = msgspec.structs.replace(config, n_outputs=n_outputs)
            numbers = _pixel_numbers(inner)
            good = ~np.isin(numbers, self.hot_numbers)
            n_missing = config.n_outputs - int(good.sum())
            if n_missing == 0:
                return inner, good
            if len(numbers) < n_outputs:
                raise CapacityError(
                    f"{config.region} with stride {config.stride} has {len(numbers)} pixels, and {good.sum()} of them "
                    f"are not hot; n_outputs is {config.n_outputs}.",
                    f"Ask for at most {good.sum()} outputs, or a larger region.",
                )
            n_outputs += n_missing

    @classmethod
    def from_results(cls, results: Iterable[CalibrationResult]) -> Calibration:
        """Make a calibration of what routines have found.

        Taken are the data `hot_pixels` and `stuck_pixels` (numbers of outputs) and `offset_map` of `dark_frames`, the
        value of `exposure` and its quantity `gain`, and the quantity `stride` of `grain`. Results that did not pass are
        left out, but for dark frames with up to 5 % of bad pixels: see `left_out`. The region has the rows at which
        `dark_frames` has looked from end to end, so that sessions begin with pixels that are known.

        Parameters
        ----------
        results : iterable of CalibrationResult
            All of one device.

        Returns
        -------
        Calibration
            Of the epoch of the medium that the last of those that were taken has seen.

        Raises
        ------
        ConfigError
            None of the results can be taken, or those come from several devices or media, or from a device to which
            a calibration was applied.
        """
        results = list(results)
        reasons = left_out(results)
        by_name = {result.name: result for result in results if result.name in APPLIED and result.name not in reasons}
        if not by_name:
            raise ConfigError(
                "None of the results can be applied.",
                " ".join(f"{name}: {reason}" for name, reason in reasons.items()),
            )
        where = [provenance for result in by_name.values() for provenance in result.provenance]
        if len({(one.device_id, one.medium_id) for one in where}) != 1:
            raise ConfigError(
                f"The results come from {len({one.device_id for one in where})} devices, or several media.",
                "Use results of routines that have taken frames of one device.",
            )
        if any(one.calibration_id is not None for one in where):
            raise ConfigError(
                "The results come from a device to which a calibration is applied.",
                "Calibrate the device without its calibration: outputs are numbered without hot pixels there.",
            )
        last = max(where, key=lambda one: one.finished_unix_s)
        return cls(
            measured_unix_s=last.finished_unix_s,
            device_id=last.device_id,
            medium_id=last.medium_id,
            medium_epoch=last.medium_epoch,
            **_of_dark_frames(by_name.get("dark_frames")),
            **_of_exposure(by_name.get("exposure")),
            **_of_grain(by_name.get("grain")),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the calibration as HDF5; the file is written aside and renamed.

        Raises
        ------
        DataFileError
            The file cannot be written.
        MissingExtraError
            The extra `hdf5` is not installed.
        """
        write_sealed(path, FORMAT, self._meta(), self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Load a saved calibration.

        Raises
        ------
        DataFileError
            The file is missing, damaged, or no calibration.
        MissingExtraError
            The extra `hdf5` is not installed.
        """
        meta, arrays = read_sealed(path, FORMAT, _Meta, _DTYPES, "The calibration")
        fields: dict[str, Any] = {**arrays, **msgspec.structs.asdict(meta)}
        calibration = cls(**fields)
        if wrong := calibration._inconsistent():
            raise DataFileError(
                f"The calibration {os.fspath(path)!r} is damaged: its {', '.join(wrong)} cannot be right.",
                "Make it again.",
            )
        return calibration

    @cached_property
    def hot_numbers(self) -> NDArray[np.int64]:
        """The hot pixels, each as one number."""
        numbers: NDArray[np.int64] = self.hot_pixels.astype(np.int64) @ np.array([_WIDE, 1])
        return numbers

    @cached_property
    def black_level_dn(self) -> float | None:
        """The mean dark level of the pixels that are not hot, in DN; None where nobody has looked."""
        if self.dark_config is None:
            return None
        good = ~np.isin(_pixel_numbers(self.dark_config), self.hot_numbers)
        return float(self.dark_dn[good].mean(dtype=np.float64)) if good.any() else None

    def _meta(self) -> _Meta:
        return _Meta(**{name: getattr(self, name) for name in _Meta.__struct_fields__})

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in _DTYPES.items()}

    def _inconsistent(self) -> list[str]:
        """Return the names of the parts that cannot be right."""
        n_dark = 0 if self.dark_config is None else self.dark_config.n_outputs
        fitting = {
            "measured_unix_s": math.isfinite(self.measured_unix_s),
            "hot_pixels": self.hot_pixels.ndim == 2
            and self.hot_pixels.shape[1] == 2
            and bool((self.hot_pixels >= 0).all()),
            "dark_config": self.dark_config is None or is_complete(self.dark_config),
            "dark_dn": self.dark_dn.shape == (n_dark,) and bool(np.isfinite(self.dark_dn).all()),
            "region": self.region is None or is_on_a_sensor(self.region),
            "stride": self.stride >= 1,
            "exposure_us": self.exposure_us is None or 0 < self.exposure_us < math.inf,
            "gain_db": math.isfinite(self.gain_db),
        }
        return [name for name, fits in fitting.items() if not fits]


def _pixel_numbers(config: SessionConfig) -> NDArray[np.int64]:
    """Return a number for each pixel of a complete configuration, row by row on any sensor."""
    return selected_pixels(config, (_WIDE, _WIDE))


def left_out(results: Iterable[CalibrationResult]) -> dict[str, str]:
    """Return what a calibration is not made of.

    Parameters
    ----------
    results : iterable of CalibrationResult
        Of routines.

    Returns
    -------
    dict of str to str
        Why, by the name of the routine, for those of `APPLIED` that were not measured or did not pass. Dark frames
        whose offset is within its limit are taken with up to 5 % of hot and stuck pixels: to leave these out is what a
        calibration is for.

    Examples
    --------
    >>> left_out([])["grain"]
    'It was not measured.'
    """
    by_name = {result.name: result for result in results}
    reasons = {name: _reason_to_leave_out(by_name.get(name)) for name in APPLIED}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason_to_leave_out(result: CalibrationResult | None) -> str:
    if result is None:
        return "It was not measured."
    if not (_knows_its_bad_pixels(result) or result.passed):
        return " ".join(result.findings) or "It could not be measured, or missed a limit."
    return "" if result.provenance else "It does not say where its frames come from."


def _knows_its_bad_pixels(result: CalibrationResult) -> bool:
    """Whether a result is of dark frames whose only fault is pixels that a calibration leaves out."""
    if result.name != "dark_frames" or "offset_map" not in result.data:
        return False
    n_pixels = result.data["offset_map"].size
    shares = [result.data[name].size / n_pixels for name in ("hot_pixels", "stuck_pixels") if name in result.data]
    n_explained = sum(share > STUCK_SHARE for share in shares)
    is_few = sum(shares) <= _MOST_BAD_PIXELS
    return is_few and len(result.findings) <= n_explained and is_within(result.value, result.limit)


def _of_dark_frames(result: CalibrationResult | None) -> dict[str, Any]:
    """Return what the routine `dark_frames` has to say, as fields of a calibration."""
    found: dict[str, Any] = {}
    if result is None:
        return found
    # Of sessions with several exposures, on the same pixels, the map is that of the middle one.
    configs = sorted((one.config for one in result.provenance), key=lambda config: config.exposure_us or 0.0)
    config = configs[len(configs) // 2]
    bad = [result.data[name] for name in ("hot_pixels", "stuck_pixels") if name in result.data]
    if bad:
        numbers = _pixel_numbers(config)[np.unique(np.concatenate(bad).astype(np.int64))]
        found["hot_pixels"] = np.stack(np.divmod(numbers, _WIDE), axis=1).astype(np.int32)
    offset = result.data.get("offset_map")
    if offset is not None and offset.size == config.n_outputs:
        found["dark_dn"], found["dark_config"] = offset.astype(np.float32).ravel(), config
        found["region"] = _rows_seen(config)
    return found


def _rows_seen(config: SessionConfig) -> Region | None:
    """Return the part of a session's region that its outputs fill: whole rows, or what there is of the first one."""
    region = config.region
    if region is None:
        return None
    n_rows = config.n_outputs // -(-region.width // config.stride)
    if n_rows == 0:
        return Region(region.row, region.column, 1, (config.n_outputs - 1) * config.stride + 1)
    height = min((n_rows - 1) * config.stride + 1, region.height)
    return Region(region.row, region.column, height, region.width)


def _of_exposure(result: CalibrationResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    gain = result.quantities.get("gain")
    return {"exposure_us": result.value, "gain_db": 0.0 if gain is None or math.isnan(gain.value) else gain.value}


def _of_grain(result: CalibrationResult | None) -> dict[str, Any]:
    stride = None if result is None else result.quantities.get("stride")
    return {"stride": round(stride.value)} if stride is not None and stride.value >= 1 else {}


def apply(device: Device, calibration: Calibration) -> CalibratedDevice:
    """Apply a calibration to the device that it was measured on.

    The medium may have changed for good since: the dark levels and the hot pixels are the camera's. `opu.OPU` warns of
    it.

    Parameters
    ----------
    device : Device
        Open. It may be used beside the calibrated one, and is closed with it.
    calibration : Calibration
        What was learned.

    Returns
    -------
    CalibratedDevice
        A device of the same contract.

    Raises
    ------
    ConfigError
        The calibration is of another device, or does not fit this one, or one is applied already.
    MediumChangedError
        The calibration is of another medium.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     medium = device.describe().medium
    ...     learned = Calibration(
    ...         measured_unix_s=1.75e9,
    ...         device_id=device.describe().device_id,
    ...         medium_id=medium.medium_id,
    ...         medium_epoch=medium.epoch,
    ...         exposure_us=500.0,
    ...     )
    ...     session = apply(device, learned).open_session(opu.SessionConfig(n_features=64, n_outputs=10))
    ...     provenance = session.project([[1] * 64]).provenance
    >>> session.config.exposure_us, provenance.calibration_id == learned.id, provenance.calibrated_unix_s
    (500.0, True, 1750000000.0)
    """
    description = device.describe()
    if description.calibration_id is not None:
        raise ConfigError(
            f"The calibration {description.calibration_id} is applied to the device {device.uri} already.",
            "Apply the other one to the device without.",
        )
    if calibration.device_id != description.device_id:
        raise ConfigError(
            f"The calibration is that of the device {calibration.device_id!r}, and this one is "
            f"{description.device_id!r}.",
            "Calibrate this device.",
        )
    if calibration.medium_id != description.medium.medium_id:
        raise MediumChangedError(
            f"The calibration was measured through the medium {calibration.medium_id}; the device {device.uri} has "
            f"{description.medium.medium_id}.",
            "Calibrate the device again.",
        )
    # Raises if region, stride, exposure or gain are not to be had here.
    one = SessionConfig(
        n_features=1,
        n_outputs=1,
        region=calibration.region,
        stride=calibration.stride,
        exposure_us=calibration.exposure_us,
        gain_db=calibration.gain_db,
    )
    resolve_config(one, description)
    return CalibratedDevice(device, calibration)


class CalibratedDevice(Device):
    """A device with a calibration applied. Made by `apply`.

    Sessions that name no region have its region, and its stride instead of 1; those that name no exposure have its
    exposure, and its gain instead of 0 dB. So a stride of 1 takes a region, and a gain of 0 dB an exposure. Outputs are
    the first pixels of the region that are not hot. Frames are raw counts.

    Parameters
    ----------
    device : Device
        The device, which is closed with this one.
    calibration : Calibration
        What was learned of it.
    """

    def __init__(self, device: Device, calibration: Calibration) -> None:
        super().__init__(device.uri)
        self.device = device
        self.calibration = calibration

    def describe(self) -> DeviceDescription:
        """Return what the device is and offers, with its calibration."""
        description, calibration = self.device.describe(), self.calibration
        exposure_us, gain_db, black_dn = calibration.exposure_us, description.gain_db, calibration.black_level_dn
        return msgspec.structs.replace(
            description,
            calibration_id=calibration.id,
            calibrated_unix_s=calibration.measured_unix_s,
            calibrated_medium_epoch=calibration.medium_epoch,
            default_region=calibration.region,
            default_stride=calibration.stride,
            pixels_left_out=len(calibration.hot_pixels),
            exposure_us=_with_default(description.exposure_us, exposure_us),
            gain_db=gain_db if exposure_us is None else _with_default(gain_db, calibration.gain_db),
            black_level_dn=description.black_level_dn if black_dn is None else black_dn,
        )

    def inner_config(self, config: SessionConfig) -> tuple[SessionConfig, NDArray[np.bool_]]:
        """Return what the device is asked for, and which of its outputs are used: see `Calibration.with_hot_pixels`."""
        return self.calibration.with_hot_pixels(resolve_config(config, self.describe()))

    def _open_session(self, config: SessionConfig) -> CalibratedSession:
        inner_config, good = self.calibration.with_hot_pixels(config)  # which raises where there are too few
        inner = self.device.open_session(inner_config)
        description = msgspec.structs.replace(inner.describe(), config=config)
        return CalibratedSession(description, self, inner, None if good.all() else np.flatnonzero(good))

    def _submit_together(self, requests: Sequence[tuple[Session, Batch]]) -> list[Future[Projection]]:
        own = [(session, batch) for session, batch in requests if isinstance(session, CalibratedSession)]
        if len(own) < len(requests) or any(session.device is not self for session, _ in own):
            raise ConfigError("A session belongs to another device.", "Use sessions of one device.")
        futures: list[Future[Projection] | None] = []
        accepted: list[tuple[CalibratedSession, Batch]] = []
        for session, batch in own:
            try:
                accepted.append((session, session.accept(batch)))
                futures.append(None)
            except OpuError as error:
                futures.append(failed_future(error))
        inner = self.device.submit_together(
            [(session.inner, session.inner_batch(batch)) for session, batch in accepted]
        )
        answers = iter(
            [session.answer(batch, future) for (session, batch), future in zip(accepted, inner, strict=True)]
        )
        return [next(answers) if future is None else future for future in futures]

    def capability(self, kind: Callable[..., CapabilityT]) -> CapabilityT:
        """Return the capability object of a class such as `GroundTruth`: that of the device, without hot pixels."""
        found = self.device.capability(kind)
        return cast("CapabilityT", CalibratedTruth(self, found)) if isinstance(found, GroundTruth) else found

    def _close(self) -> None:
        self.device.close()


def _with_default(limits: Limits, default: float | None) -> Limits:
    """Return limits with another default, as far as they allow it."""
    if default is None:
        return limits
    return msgspec.structs.replace(limits, default=min(max(default, limits.minimum), limits.maximum))


class CalibratedSession(Session):
    """A session of a calibrated device.

    Parameters
    ----------
    description : SessionDescription
        As its user sees it.
    device : CalibratedDevice
        Whose it is.
    inner : Session
        Takes the frames.
    used : ndarray of int or None
        Which outputs of the inner session are not hot; None where none is.
    """

    def __init__(
        self, description: SessionDescription, device: CalibratedDevice, inner: Session, used: NDArray[np.intp] | None
    ) -> None:
        super().__init__(description)
        self.device = device
        self.inner = inner
        self._used = used
        self._full_scale_dn = device.describe().full_scale_dn

    @property
    def can_share(self) -> bool:
        """Whether batches of this session and of sessions like it cost one call."""
        return self.inner.can_share

    def inner_batch(self, batch: Batch) -> Batch:
        """Return a batch as the inner session takes it: frames with hot pixels do not fit the caller's buffer."""
        return batch if self._used is None else replace(batch, out=None)

    def answer(self, batch: Batch, inner: Future[Projection]) -> Future[Projection]:
        """Return the future of a batch, given that of the inner session."""
        return _Answer(inner, lambda projection: self._without_hot_pixels(projection, batch.out))

    def _submit(self, batch: Batch) -> Future[Projection]:
        asked = self.inner_batch(batch)
        inner = self.inner.submit(
            asked.patterns,
            first_frame_index=asked.first_frame_index,
            out=asked.out,
            # A deadline that has passed is the device's to find out.
            deadline_s=None if math.isinf(asked.due_s) else max(asked.due_s - time.monotonic(), 1e-9),
        )
        return self.answer(batch, inner)

    def _without_hot_pixels(self, projection: Projection, out: NDArray[Any] | None) -> Projection:
        calibration = self.device.calibration
        frames, provenance = projection.frames, projection.provenance
        saturated = provenance.saturated_fraction
        if self._used is not None:
            frames = np.take(frames, self._used, axis=1, out=out)
            saturated = float((frames >= self._full_scale_dn).mean())
        provenance = msgspec.structs.replace(
            provenance,
            config=self.config,
            saturated_fraction=saturated,
            calibration_id=calibration.id,
            calibrated_unix_s=calibration.measured_unix_s,
        )
        return Projection(frames, provenance)

    def _close(self) -> None:
        self.inner.close()


class _Answer(Future[Projection]):
    """A future that is made of another one, and cancels it when it is cancelled."""

    def __init__(self, source: Future[Projection], convert: Callable[[Projection], Projection]) -> None:
        super().__init__()
        self._source = source
        self._convert = convert
        source.add_done_callback(self._settle)

    def cancel(self) -> bool:
        """Do without the answer, unless the device has begun."""
        return self._source.cancel()

    def _settle(self, source: Future[Projection]) -> None:
        if source.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        self.set_running_or_notify_cancel()
        try:
            self.set_result(self._convert(source.result()))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self.set_exception(error)


class CalibratedTruth(GroundTruth):
    """What a simulator knows of the pixels that are not hot.

    Parameters
    ----------
    device : CalibratedDevice
        Whose configurations are meant.
    truth : GroundTruth
        That of the device without its calibration.
    """

    def __init__(self, device: CalibratedDevice, truth: GroundTruth) -> None:
        self._device = device
        self._truth = truth

    def transmission_matrix(self, config: SessionConfig) -> NDArray[np.complex64]:
        """Return the matrix over features, shape (n_outputs, n_features)."""
        inner, good = self._device.inner_config(config)
        return self._truth.transmission_matrix(inner)[good]

    def entries(self, outputs: ArrayLike, mirrors: ArrayLike, *, device_time_s: float = 0.0) -> NDArray[np.complex64]:
        """Return any block of the medium itself."""
        return self._truth.entries(outputs, mirrors, device_time_s=device_time_s)

    def photoelectrons(
        self, config: SessionConfig, patterns: ArrayLike, *, device_time_s: float = 0.0
    ) -> NDArray[np.float32]:
        """Return the mean photo-electrons of every output, shape (batch, n_outputs)."""
        inner, good = self._device.inner_config(config)
        return self._truth.photoelectrons(inner, patterns, device_time_s=device_time_s)[:, good]
