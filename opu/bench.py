"""A bench: the device that is assembled from parts, simulated or real."""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from bisect import bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from opu.device import (
    Batch,
    Device,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    Limits,
    Projection,
    Provenance,
    Session,
    SessionConfig,
    SessionDescription,
    SettingsChange,
    check_change,
    failed_future,
    setting_of,
)
from opu.errors import CapacityError, ClosedError, ConfigError, OpuError, RefusedError
from opu.parts import (
    AdjustableController,
    AdjustableLaser,
    CameraSettings,
    FrameNumbers,
    FrameRun,
    MirrorLayout,
    TriggerPlan,
    selected_pixels,
)
from opu.patterns import join

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from opu.parts import Camera, CameraReport, Controller, Dmd, Laser, Optics

__all__ = ["Bench", "BenchControl", "BenchParts"]

MAX_BATCH_BYTES = 2**30
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class BenchParts:
    """The parts of a bench."""

    dmd: Dmd
    camera: Camera
    laser: Laser
    controller: Controller
    optics: Optics


class Bench(Device):
    """A device assembled from parts. One thread at a time works the parts, so they need no locks of their own.

    Every bench has the capability `device_control`: a limit of the exposure, the power of an `AdjustableLaser`, and
    the delay of an `AdjustableController`.

    Parameters
    ----------
    uri : str
        The address under which it was opened.
    description : DeviceDescription
        What it is and offers, `device_control` apart.
    parts : BenchParts
        What it is made of.
    capabilities : mapping of type to object, optional
        Capability objects by their class.
    realtime : bool
        Answer no earlier than the booked device time allows: for parts that are faster than real ones.
    any_thread : bool
        Whether the parts may be worked by whichever thread, one at a time: see `Device.project_here`.
    """

    def __init__(
        self,
        uri: str,
        description: DeviceDescription,
        parts: BenchParts,
        capabilities: Mapping[type, object] | None = None,
        *,
        realtime: bool = False,
        any_thread: bool = False,
    ) -> None:
        super().__init__(uri)
        self.parts = parts
        # Once, though the description may be that of another bench.
        offers = dict.fromkeys((*description.capabilities, DeviceControl.name))
        self._description = msgspec.structs.replace(description, capabilities=tuple(offers))
        self._control = BenchControl(parts, description.exposure_us, self._queue)
        self._capability_objects = {**(capabilities or {}), DeviceControl: self._control}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opu-bench")
        self._any_thread = any_thread
        self._parts_lock = threading.Lock()  # held by the thread that works the parts
        self._queue_lock = threading.Lock()
        self._last_queued: Callable[[], Future[Any] | None] = lambda: None
        self._prepare_lock = threading.Lock()
        self._device_clock_us = 0.0
        self._opened_s = time.monotonic()
        self._realtime = realtime
        self._last_setting: SessionConfig | None = None

    def describe(self) -> DeviceDescription:
        """Return what the bench is and offers, with the exposures that its settings allow."""
        exposure, limit_us = self._description.exposure_us, self._control.settings().max_exposure_us
        if limit_us == exposure.maximum:
            return self._description
        allowed = msgspec.structs.replace(exposure, maximum=limit_us, default=min(exposure.default, limit_us))
        return msgspec.structs.replace(self._description, exposure_us=allowed)

    @property
    def can_share(self) -> bool:
        """Whether batches can have a sequence in common: where frames do not depend on those beside them."""
        return not self.parts.optics.mixes_frames

    def _capabilities(self) -> Mapping[type, object]:
        return self._capability_objects

    def _open_session(self, config: SessionConfig) -> BenchSession:
        layout = MirrorLayout(config.n_features, *self._description.mirrors, config.layout)
        pixels = selected_pixels(config, self._description.pixels)
        held_bytes = self.check_memory(layout, pixels)
        with self._prepare_lock:
            prepared = self.parts.optics.prepare(layout, pixels)
        exposure_us = config.exposure_us or self._description.exposure_us.default
        # A frame and its pattern, packed.
        frame_bytes = config.n_outputs * np.dtype(self._description.frame_dtype).itemsize + -(-config.n_features // 8)
        description = SessionDescription(
            session_id=uuid.uuid4().hex[:12],
            config=config,
            frame_dtype=self._description.frame_dtype,
            frame_us=self._description.timing.frame_us(
                exposure_us,
                rows=_rows_read(pixels, self._description.pixels[1]),
                n_features=config.n_features,
                n_outputs=config.n_outputs,
            ),
            mirrors_per_feature=layout.mirrors_per_feature,
            max_batch=max(1, min(self._description.max_batch, MAX_BATCH_BYTES // frame_bytes)),
            compiled_bytes=held_bytes,
        )
        settings = CameraSettings(pixels, exposure_us, config.gain_db)
        return BenchSession(description, self, layout, settings, prepared)

    def check_memory(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Return the memory that a session holds, in bytes.

        Raises
        ------
        CapacityError
            It is more than a session may take; the message says what would fit.
        """
        held_bytes = self.parts.optics.compiled_bytes(layout, pixels)
        n_bytes = held_bytes + self.parts.optics.computing_bytes(layout, pixels)
        limit = self._description.max_session_bytes
        if limit is not None and n_bytes > limit:
            raise CapacityError(
                f"A session of {layout.n_features} features and {len(pixels)} outputs needs {n_bytes / 2**20:.0f} "
                f"MiB of memory, and the limit is {limit / 2**20:.0f} MiB.",
                self._smaller_session(limit, layout, pixels),
            )
        return held_bytes

    def _smaller_session(self, limit: int, layout: MirrorLayout, pixels: NDArray[np.int64]) -> str:
        """Say what fits a memory limit which a session exceeds."""
        optics = self.parts.optics

        def n_bytes(n_features: int) -> int:
            fewer = replace(layout, n_features=n_features)
            return optics.compiled_bytes(fewer, pixels) + optics.computing_bytes(fewer, pixels)

        fitting = bisect_right(range(1, layout.n_features), limit, key=n_bytes)
        if fitting == 0:
            return "Ask for fewer outputs."
        return f"Ask for fewer features or outputs: at {len(pixels)} outputs {fitting} features fit."

    @property
    def device_clock_us(self) -> float:
        """Device time that has been booked so far."""
        return self._device_clock_us

    def _medium_epoch(self, device_us: float) -> int:  # noqa: ARG002 - for benches that know
        """Return how often the medium has changed for good before a device time."""
        return self._description.medium.epoch

    def enqueue(self, session: BenchSession, batch: Batch) -> Future[Projection]:
        """Queue a sequence for the thread that works the parts."""
        return self._queue(self._take_alone, session, batch)

    def _submit_together(self, requests: Sequence[tuple[Session, Batch]]) -> list[Future[Projection]]:
        if not self.can_share:
            return super()._submit_together(requests)
        accepted, futures = [], []
        for session, batch in self._own(requests):
            try:
                accepted.append(_Request(session, session.accept(batch)))
                futures.append(accepted[-1].future)
            except OpuError as error:
                futures.append(failed_future(error))
        if accepted:
            self._queue(self._take_together, accepted)
        return futures

    def _project_here(self, requests: Sequence[tuple[Session, Batch]]) -> list[Projection | Exception] | None:
        own = self._own(requests)
        # Ctrl-C, which comes to the main thread alone, must not end a sequence in the middle.
        if not self._any_thread or threading.current_thread() is threading.main_thread():
            return None
        # While a session is prepared its kernels come first, and may take long.
        if not self._prepare_lock.acquire(blocking=False):
            return None
        try:
            return self._take_if_idle(own)
        finally:
            self._prepare_lock.release()

    def _take_if_idle(self, requests: list[tuple[BenchSession, Batch]]) -> list[Projection | Exception] | None:
        if not self._parts_lock.acquire(blocking=False):
            return None
        try:
            may_begin = self._is_queue_empty() and self.can_share and not self._closed
            return self._take_here(requests) if may_begin else None
        finally:
            self._parts_lock.release()

    def _take_here(self, requests: list[tuple[BenchSession, Batch]]) -> list[Projection | Exception]:
        """Take the sequence of those batches that are not refused, and return what came of each."""
        outcomes: dict[int, Projection | Exception] = {}
        begun: dict[int, tuple[BenchSession, Batch]] = {}
        for number, (session, batch) in enumerate(requests):
            try:
                accepted = session.accept(batch)
                self._check(session, accepted)
            except OpuError as error:
                outcomes[number] = error
            else:
                begun[number] = (session, accepted)
        if begun:
            try:
                outcomes |= zip(begun, self._take_sequence(list(begun.values())), strict=True)
            except Exception as error:  # noqa: BLE001 - whatever it was, the callers must hear of it
                outcomes |= dict.fromkeys(begun, error)
        return [outcomes[number] for number in range(len(requests))]

    def _is_queue_empty(self) -> bool:
        """Whether the worker has done all that was queued, as far as one can tell; the parts are held meanwhile."""
        last = self._last_queued()
        # One that was cancelled tells nothing of those before it.
        return last is None or (last.done() and not last.cancelled())

    def _own(self, requests: Sequence[tuple[Session, Batch]]) -> list[tuple[BenchSession, Batch]]:
        """Check that the sessions of requests are this bench's."""
        own = [(session, batch) for session, batch in requests if isinstance(session, BenchSession)]
        if len(own) < len(requests) or any(session.bench is not self for session, _ in own):
            raise ConfigError("A session belongs to another device.", "Use sessions of one device.")
        return own

    def _queue(self, work: Callable[..., ResultT], *arguments: object) -> Future[ResultT]:
        """Queue work for the thread that works the parts."""
        try:
            with self._queue_lock:
                future = self._worker.submit(self._work, work, *arguments)
                self._last_queued = weakref.ref(future)  # or it would keep its frames
        except RuntimeError as error:  # the executor's way to say that it was shut down
            raise ClosedError(f"The device {self.uri} is closed.", "Open it again with opu.open().") from error
        return future

    def _work(self, work: Callable[..., ResultT], *arguments: object) -> ResultT:
        with self._parts_lock:
            return work(*arguments)

    def _take_alone(self, session: BenchSession, batch: Batch) -> Projection:
        self._check(session, batch)
        [projection] = self._take_sequence([(session, batch)])
        return projection

    def _take_together(self, requests: list[_Request]) -> None:
        """Take the sequence of those batches that are still wanted, and are not refused."""
        begun = [request for request in requests if self._begins(request)]
        # A change of the settings may have come between: frames that depend on those beside them are taken alone.
        for sequence in [begun] if self.can_share else [[request] for request in begun]:
            if sequence:
                self._take_begun(sequence)

    def _take_begun(self, begun: list[_Request]) -> None:
        try:
            projections = self._take_sequence([(request.session, request.batch) for request in begun])
        except BaseException as error:  # noqa: BLE001 - whatever it was, the callers must hear of it
            for request in begun:
                request.future.set_exception(error)
            del request, begun  # or the error would hold the futures that hold it
            return
        for request, projection in zip(begun, projections, strict=True):
            request.future.set_result(projection)

    def _begins(self, request: _Request) -> bool:
        """Whether a batch is projected now: not if it was cancelled, and not if it is refused, as its future tells."""
        if not request.future.set_running_or_notify_cancel():
            return False
        try:
            self._check(request.session, request.batch)
        except OpuError as error:
            request.future.set_exception(error)
            return False
        return True

    def _check(self, session: BenchSession, batch: Batch) -> None:
        """Check that somebody still waits for a batch, and that the settings of the device allow it."""
        batch.check_deadline()
        _check_exposure(session.settings.exposure_us, self._control.settings().max_exposure_us)

    def _take_sequence(self, requests: list[tuple[BenchSession, Batch]]) -> list[Projection]:
        """Project batches of sessions that differ in nothing but the noise key, in one call."""
        session = requests[0][0]
        description = session.describe()
        config, frame_us = description.config, description.frame_us
        patterns = join([batch.patterns for _, batch in requests])
        runs = [_run_of(session, batch) for session, batch in requests]
        lead_us = self._lead_us(config)
        device_us = lead_us + len(patterns) * frame_us
        if self._realtime:  # time passes between calls, too
            self._device_clock_us = max(self._device_clock_us, (time.monotonic() - self._opened_s) * 1e6)
        device_start_us = self._device_clock_us
        started_unix_s, started_s = time.time(), time.monotonic()
        self.parts.laser.switch(config.light == "on")
        self.parts.laser.set_reference(config.reference)
        self.parts.dmd.load(patterns, session.layout)
        self.parts.camera.arm(session.settings, runs)
        self.parts.controller.run(TriggerPlan(len(patterns), frame_us, device_start_us + lead_us))
        reports = self.parts.camera.collect()
        self._device_clock_us += device_us
        if self._realtime:
            time.sleep(max(0.0, started_s + device_us * 1e-6 - time.monotonic()))
        call = _Call(device_start_us, lead_us, started_unix_s, time.time())
        return self._word(call, requests, runs, reports)

    def _lead_us(self, config: SessionConfig) -> float:
        """Return the device time of a call before its first frame, and remember its setting."""
        timing = self._description.timing
        setting = setting_of(config)
        changes = self._last_setting is not None and setting != self._last_setting
        self._last_setting = setting
        return timing.call_overhead_us + (timing.reconfigure_us if changes else 0.0)

    def _word(
        self,
        call: _Call,
        requests: list[tuple[BenchSession, Batch]],
        runs: list[FrameRun],
        reports: list[CameraReport],
    ) -> list[Projection]:
        """Say where the frames of each run come from. The device time before the first frame is the first run's."""
        projections = []
        laser_power_mw = self._control.settings().laser_power_mw
        start_us, lead_us = call.device_start_us, call.lead_us
        for (session, _), run, report in zip(requests, runs, reports, strict=True):
            description = session.describe()
            device_us = lead_us + len(run.out) * description.frame_us
            provenance = Provenance(
                device_id=self._description.device_id,
                medium_id=self._description.medium.medium_id,
                medium_epoch=self._medium_epoch(start_us + device_us),
                session_id=description.session_id,
                config=description.config,
                calibration_id=self._description.calibration_id,
                first_frame_index=run.numbers.first_frame_index,
                n_frames=len(run.out),
                frame_us=description.frame_us,
                device_start_us=start_us,
                device_us=device_us,
                started_unix_s=call.started_unix_s,
                finished_unix_s=call.finished_unix_s,
                saturated_fraction=report.saturated_fraction,
                skipped_frames=report.skipped_frames,
                laser_power_mw=laser_power_mw,
                calibrated_unix_s=self._description.calibrated_unix_s,
            )
            projections.append(Projection(run.out, provenance))
            start_us, lead_us = start_us + device_us, 0.0
        return projections

    def _close(self) -> None:
        self._worker.shutdown(wait=True)
        with self._parts_lock:
            pass  # what another thread has begun is finished, too


@dataclass(frozen=True, eq=False)
class _Request:
    """A batch that waits for the thread that works the parts."""

    session: BenchSession
    batch: Batch
    future: Future[Projection] = field(default_factory=Future)


class _Call(NamedTuple):
    """When a call was: on the device's clock, with the time before its first frame, and on the host's."""

    device_start_us: float
    lead_us: float
    started_unix_s: float
    finished_unix_s: float


def _run_of(session: BenchSession, batch: Batch) -> FrameRun:
    """Return which frames a batch has, and where they go."""
    description = session.describe()
    config = description.config
    out = batch.out
    if out is None:
        out = np.empty((len(batch.patterns), config.n_outputs), description.frame_dtype)
    return FrameRun(FrameNumbers(config.noise_key, batch.first_frame_index), out)


def _rows_read(pixels: NDArray[np.int64], columns: int) -> int:
    """Return how many rows of the sensor are read out: from the first pixel's to the last one's."""
    return int(pixels[-1] // columns - pixels[0] // columns) + 1


def _check_exposure(exposure_us: float, limit_us: float) -> None:
    """Refuse a batch of a session that was opened before the limit was set."""
    if exposure_us > limit_us:
        raise RefusedError(
            f"The session exposes for {exposure_us:g} us, and this device has been limited to {limit_us:g} us.",
            f"Open a session of at most {limit_us:g} us, or have the limit raised.",
        )


class BenchControl(DeviceControl):
    """The settings of a bench.

    Parameters
    ----------
    parts : BenchParts
        The power of an `AdjustableLaser` and the delay of an `AdjustableController` are settings.
    exposure_us : Limits
        What the camera can do.
    queue : callable
        `queue(work, *arguments)` runs work between two batches, and returns its future.
    """

    def __init__(self, parts: BenchParts, exposure_us: Limits, queue: Callable[..., Future[DeviceSettings]]) -> None:
        self._queue = queue
        self._limits = {"max_exposure_us": msgspec.structs.replace(exposure_us, default=exposure_us.maximum)}
        # What parts are told, by the setting: these may fail.
        self._commands: dict[str, Callable[[float], None]] = {}
        if isinstance(parts.laser, AdjustableLaser):
            self._limits["laser_power_mw"] = parts.laser.power_mw
            self._commands["laser_power_mw"] = parts.laser.set_power
        if isinstance(parts.controller, AdjustableController):
            self._limits["trigger_delay_us"] = parts.controller.trigger_delay_us
            self._commands["trigger_delay_us"] = parts.controller.set_trigger_delay
        # Only the thread that works the parts replaces them, so that a batch has one set of settings.
        self._settings = DeviceSettings(
            revision=0,
            max_exposure_us=exposure_us.maximum,
            laser_power_mw=self._default("laser_power_mw"),
            trigger_delay_us=self._default("trigger_delay_us"),
        )

    def _default(self, name: str) -> float | None:
        return self._limits[name].default if name in self._limits else None

    def settings(self) -> DeviceSettings:
        """Return the settings as they are."""
        return self._settings

    def limits(self) -> dict[str, Limits]:
        """Return the settings that can be changed, with their ranges."""
        return dict(self._limits)

    def change(self, change: SettingsChange) -> DeviceSettings:
        """Change settings after the batches that were submitted before, and return what they are now."""
        return self._queue(self._change, check_change(change, self._limits)).result()

    def _change(self, values: dict[str, float]) -> DeviceSettings:
        settings = self._settings
        settings = msgspec.structs.replace(settings, revision=settings.revision + 1, **values)
        done: list[str] = []
        try:
            for name in filter(values.__contains__, self._commands):
                self._commands[name](values[name])  # what may fail comes first: all or nothing
                done.append(name)
        except BaseException:
            for name in done:
                self._commands[name](getattr(self._settings, name))
            raise
        self._settings = settings
        return settings


class BenchSession(Session):
    """A session of a bench."""

    def __init__(
        self,
        description: SessionDescription,
        bench: Bench,
        layout: MirrorLayout,
        settings: CameraSettings,
        prepared: object,
    ) -> None:
        super().__init__(description)
        self.layout = layout
        self.settings = settings
        self.prepared = prepared
        self.bench = bench

    @property
    def can_share(self) -> bool:
        """Whether batches of this session and of sessions like it cost one call."""
        return self.bench.can_share

    def _submit(self, batch: Batch) -> Future[Projection]:
        return self.bench.enqueue(self, batch)

    def _close(self) -> None:
        pass
