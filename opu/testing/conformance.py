"""The conformance suite: what every backend must do, whatever it is made of.

Each check is a function of an open device and raises `AssertionError`, or the device's own error, when it fails. One
that cannot be tried on a device returns why.
`opu selftest URI` runs them all; so does this project's test suite for every backend, and a third party's driver may.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np

from opu.device import (
    CONTRACT_VERSION,
    Batch,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    GroundTruth,
    Projection,
    Region,
    SessionConfig,
    SettingsChange,
)
from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    OpuError,
    PatternDtypeError,
    PatternShapeError,
    PatternValueError,
    RefusedError,
    UnsupportedError,
)
from opu.linear import LinearProjector, fit_linear_map
from opu.patterns import PackedPatterns, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import Device, Session

__all__ = ["BAD_CONFIGS", "BAD_PATTERNS", "CHECKS", "CheckResult", "fingerprint", "run_checks"]

Outcome: TypeAlias = Literal["passed", "skipped", "failed"]

N_FEATURES = 60  # not a multiple of 8, so that packing is tested
N_OUTPUTS = 101
_CONFIG = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, noise_key=11)


def _patterns(batch: int, n_features: int = N_FEATURES, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 2, (batch, n_features), dtype=np.uint8)


_NO_REPETITION = "the device does not repeat its noise"


def _repeats(device: Device) -> bool:
    return "repeatable_noise" in device.describe().capabilities


def check(condition: bool, message: str) -> None:
    """Raise AssertionError with a message unless the condition holds (also under `python -O`)."""
    if not condition:
        raise AssertionError(message)


def _expect(error_class: type[OpuError], action: Callable[[], Any], what: str) -> None:
    try:
        action()
    except error_class as error:
        check(bool(error.problem and error.remedy), f"{what}: the error does not say what is wrong and what to do")
        return
    except Exception as error:
        raise AssertionError(f"{what}: expected {error_class.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what}: expected {error_class.__name__}, nothing was raised")


def description_is_data(device: Device) -> None:
    """`describe()` is complete and survives JSON."""
    description = device.describe()
    check(description.contract_version == CONTRACT_VERSION, "another version of the contract")
    again = msgspec.json.decode(msgspec.json.encode(description), type=DeviceDescription)
    check(again == description, "the description changes on its way through JSON")
    check(description.full_scale_dn == 2**description.bit_depth - 1, "full scale does not fit the bit depth")
    check(np.dtype(description.frame_dtype).kind == "u", "frames are not unsigned integers")
    limits = description.exposure_us
    check(limits.minimum <= limits.default <= limits.maximum, "the default exposure is beyond its limits")


def frames_have_shape_and_provenance(device: Device) -> None:
    """A batch gives frames of the stated shape and dtype, and says where they come from."""
    description = device.describe()
    with device.open_session(_CONFIG) as session:
        started = time.time()
        projection = session.project(_patterns(5))
        config = session.config
    frames, provenance = projection.frames, projection.provenance
    check(frames.shape == (5, N_OUTPUTS), f"the frames have the shape {frames.shape}")
    check(frames.dtype == np.dtype(description.frame_dtype), f"the frames are {frames.dtype}")
    check(int(frames.max()) <= description.full_scale_dn, "a count is beyond full scale")
    check(float(frames.std()) > 0, "all counts are equal: there is no speckle")
    check(provenance.config == config, "the provenance has another configuration")
    check(provenance.device_id == description.device_id, "the provenance names another device")
    check(provenance.medium_id == description.medium.medium_id, "the provenance names another medium")
    check((provenance.first_frame_index, provenance.n_frames) == (0, 5), "the frames are numbered wrongly")
    timing = description.timing
    expected_us = timing.call_overhead_us + 5 * provenance.frame_us
    check(
        expected_us <= provenance.device_us <= expected_us + timing.reconfigure_us + 1e-6,
        f"booked {provenance.device_us} us, expected {expected_us} us",
    )
    check(provenance.started_unix_s <= provenance.finished_unix_s, "finished before it started")
    check(abs(provenance.started_unix_s - started) < 3600, "the clocks of device and caller differ by an hour")
    saturated = float((frames == description.full_scale_dn).mean())
    check(abs(provenance.saturated_fraction - saturated) < 1e-9, "the saturated fraction is wrong")
    check(provenance.skipped_frames == 0, "frames were skipped")


def configuration_is_completed(device: Device) -> None:
    """A session's configuration has no open field, and cannot be changed."""
    with device.open_session(_CONFIG) as session:
        config = session.config
        check(config.region is not None and config.exposure_us is not None, "open fields are left")
        check(config.n_features == N_FEATURES and config.noise_key == 11, "given fields were changed")
        check(session.describe().frame_us >= (config.exposure_us or 0), "a frame is shorter than its exposure")
        try:
            config.n_features = 3  # type: ignore[misc]
        except AttributeError:
            return
    raise AssertionError("the configuration can be changed")


def packed_equals_unpacked(device: Device) -> None:
    """Packed and unpacked patterns, of any accepted dtype, give the same frames."""
    check_repeatable = _repeats(device)
    patterns = _patterns(4)
    with device.open_session(_CONFIG) as session:
        reference = session.project(patterns, first_frame_index=0).frames
        for form in (pack(patterns), patterns.astype(bool), patterns.astype(np.float64), patterns.tolist()):
            frames = session.project(form, first_frame_index=0).frames
            same = np.array_equal(frames, reference) if check_repeatable else frames.shape == reference.shape
            check(same, f"{type(form).__name__} gives other frames")


def output_buffer_is_used(device: Device) -> None:
    """`out=` receives the frames and is the result."""
    out = np.zeros((3, N_OUTPUTS), dtype=device.describe().frame_dtype)
    with device.open_session(_CONFIG) as session:
        projection = session.project(_patterns(3), out=out)
    check(projection.frames is out, "the result is not the buffer")
    check(bool(out.any()), "the buffer was not written")


def inputs_may_be_changed_after_submit(device: Device) -> str | None:
    """`submit` has copied the patterns when it returns."""
    if not _repeats(device):
        return _NO_REPETITION
    patterns = pack(_patterns(4))
    with device.open_session(_CONFIG) as session:
        reference = session.project(patterns, first_frame_index=0).frames
        future = session.submit(patterns, first_frame_index=0)
        patterns.bits[:] = 0
        check(np.array_equal(future.result(timeout=60).frames, reference), "the patterns were not copied")
    return None


def frames_have_an_identity(device: Device) -> str | None:
    """Equal noise keys and frame numbers give equal bytes, however the batch is split; other numbers do not."""
    if not _repeats(device):
        return _NO_REPETITION
    patterns = _patterns(12)
    with device.open_session(_CONFIG) as session:
        whole = session.project(patterns, first_frame_index=2**33).frames
        parts = [session.project(patterns[i : i + 5], first_frame_index=2**33 + i).frames for i in (0, 5, 10)]
        check(np.array_equal(np.concatenate(parts), whole), "splitting the batch changes the frames")
        check(session.next_frame_index == 2**33 + 12, "the session counts its frames wrongly")
    with device.open_session(_CONFIG) as session:
        again = session.project(patterns, first_frame_index=2**33).frames
        check(np.array_equal(again, whole), "another session of the same configuration gives other frames")
    return None


def submissions_are_pipelined_in_order(device: Device) -> None:
    """Many batches may be in flight; each future gets its own answer."""
    batches = [_patterns(1 + i % 3, seed=i) for i in range(20)]
    with device.open_session(_CONFIG) as session:
        futures = [session.submit(batch) for batch in batches]
        answers = [future.result(timeout=60) for future in futures]
        starts = np.cumsum([0] + [len(batch) for batch in batches[:-1]])
        for batch, start, answer in zip(batches, starts, answers, strict=True):
            check(answer.frames.shape == (len(batch), N_OUTPUTS), "an answer has another batch's shape")
            check(answer.provenance.first_frame_index == start, "an answer has another batch's numbers")
        if _repeats(device):
            alone = session.project(batches[7], first_frame_index=int(starts[7])).frames
            check(np.array_equal(alone, answers[7].frames), "an answer has another batch's frames")


def batches_together_are_as_alone(device: Device) -> None:
    """Batches that are submitted together have the frames and the identity that they have alone."""
    sizes, first = (1, 3, 2), 2**33
    configs = [msgspec.structs.replace(_CONFIG, noise_key=11 + i) for i in range(len(sizes))]
    batches = [Batch(pack(_patterns(size, seed=i)), first + i) for i, size in enumerate(sizes)]
    with device.open_session(configs[0]) as one, device.open_session(configs[1]) as two:
        closed = device.open_session(configs[2])
        closed.close()
        *taken, refused = device.submit_together(list(zip((one, two, closed), batches, strict=True)))
        check(isinstance(refused.exception(timeout=60), ClosedError), "a closed session took a batch")
        for session, batch, future in zip((one, two), batches, taken, strict=False):
            answer = future.result(timeout=60)
            provenance = answer.provenance
            check(answer.frames.shape == (len(batch.patterns), N_OUTPUTS), "an answer has another batch's shape")
            check(provenance.config == session.config, "an answer has another session's configuration")
            check(provenance.first_frame_index == batch.first_frame_index, "an answer has another batch's numbers")
            alone = session.project(batch.patterns, first_frame_index=batch.first_frame_index).frames
            check(not _repeats(device) or np.array_equal(answer.frames, alone), "other frames than alone")


def order_in_memory_does_not_matter(device: Device) -> None:
    """Transposed and repeated arrays are patterns like others."""
    patterns = _patterns(3, seed=0)
    with device.open_session(_CONFIG) as session:
        expected = session.project(patterns, first_frame_index=0).frames
        for ordered in (np.asfortranarray(patterns), np.asfortranarray(patterns).astype(bool)):
            frames = session.project(ordered, first_frame_index=0).frames
            check(not _repeats(device) or np.array_equal(frames, expected), "other frames for another order in memory")
        check(len(session.project(np.broadcast_to(patterns[:1], patterns.shape)).frames) == 3, "frames are missing")


def batches_are_as_alone_whoever_works_the_device(device: Device) -> None:
    """Where the calling thread can do the work itself, batches have the frames and the errors of `submit_together`."""
    batch = Batch(pack(_patterns(3, seed=0)), 2**33)
    with device.open_session(_CONFIG) as session:
        closed = device.open_session(_CONFIG)
        closed.close()
        outcomes = device.project_here([(session, batch), (closed, batch)])
        if outcomes is None:
            return
        answer, refused = outcomes
        check(isinstance(refused, ClosedError), "a closed session took a batch")
        if not isinstance(answer, Projection):
            raise answer
        check(answer.provenance.config == session.config, "an answer has another session's configuration")
        check(answer.provenance.first_frame_index == 2**33, "an answer has another batch's numbers")
        alone = session.project(batch.patterns, first_frame_index=2**33).frames
        check(not _repeats(device) or np.array_equal(answer.frames, alone), "other frames than alone")


def threads_do_not_disturb_each_other(device: Device) -> None:
    """Sessions on several threads get their own answers."""
    errors: list[str] = []

    def work(thread: int) -> None:
        config = msgspec.structs.replace(_CONFIG, n_outputs=50 + thread, noise_key=thread)
        patterns = _patterns(3, seed=thread)
        try:
            with device.open_session(config) as session:
                reference = session.project(patterns, first_frame_index=0).frames
                for _ in range(5):
                    frames = session.project(patterns, first_frame_index=0).frames
                    if frames.shape != (3, 50 + thread) or (_repeats(device) and not np.array_equal(frames, reference)):
                        errors.append(f"thread {thread} got other frames")
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, it must not vanish with its thread
            errors.append(f"thread {thread}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    check(not any(thread.is_alive() for thread in threads), "a thread hangs")
    check(not errors, "; ".join(errors))


BAD_PATTERNS: dict[str, tuple[Any, type[OpuError]]] = {
    "a value of 2": (np.full((2, N_FEATURES), 2, dtype=np.uint8), PatternValueError),
    "a value of -1": (np.full((2, N_FEATURES), -1, dtype=np.int8), PatternValueError),
    "a value of 0.5": (np.full((2, N_FEATURES), 0.5), PatternValueError),
    "NaN": (np.full((2, N_FEATURES), np.nan), PatternValueError),
    "a pattern that is too narrow": (np.zeros((2, N_FEATURES - 1), dtype=np.uint8), PatternShapeError),
    "a pattern that is too wide": (np.zeros((2, N_FEATURES + 1), dtype=np.uint8), PatternShapeError),
    "one dimension": (np.zeros(N_FEATURES, dtype=np.uint8), PatternShapeError),
    "three dimensions": (np.zeros((1, 1, N_FEATURES), dtype=np.uint8), PatternShapeError),
    "an empty batch": (np.zeros((0, N_FEATURES), dtype=np.uint8), PatternShapeError),
    "no features": (np.zeros((2, 0), dtype=np.uint8), PatternShapeError),
    "complex numbers": (np.zeros((2, N_FEATURES), dtype=np.complex64), PatternDtypeError),
    "texts": (np.full((2, N_FEATURES), "1"), PatternDtypeError),
    "objects": (np.full((2, N_FEATURES), None), PatternDtypeError),
}
"""Patterns that no device takes, and the error that each gets."""

BAD_CONFIGS: dict[str, tuple[dict[str, Any], type[OpuError]]] = {
    "more features than mirrors": ({"n_features": 2**30}, CapacityError),
    "more outputs than pixels": ({"n_outputs": 2**30}, CapacityError),
    "no features": ({"n_features": 0}, ConfigError),
    "no outputs": ({"n_outputs": 0}, ConfigError),
    "an unknown layout": ({"layout": "zigzag"}, ConfigError),
    "an unknown light": ({"light": "dim"}, ConfigError),
    "a negative exposure": ({"exposure_us": -1.0}, ConfigError),
    "an exposure that is NaN": ({"exposure_us": float("nan")}, ConfigError),
    "an absurd gain": ({"gain_db": 1e6}, ConfigError),
    "a stride of 0": ({"stride": 0}, ConfigError),
    "a negative noise key": ({"noise_key": -1}, ConfigError),
    "a region beyond the camera": ({"region": Region(0, 0, 10, 2**30)}, CapacityError),
    "a region that is too small": ({"region": Region(0, 0, 2, 2)}, CapacityError),
}
"""Changes of a configuration that no device takes, and the error that each gets."""


def bad_patterns_are_refused(device: Device) -> None:
    """Each bad batch gets its error, nothing is lost, and the session goes on."""
    with device.open_session(_CONFIG) as session:
        for what, (patterns, error_class) in BAD_PATTERNS.items():
            _expect(error_class, lambda patterns=patterns: session.project(patterns), what)  # type: ignore[misc]
        bits = np.full((1, 8), 255, dtype=np.uint8)
        _expect(PatternValueError, lambda: session.project(PackedPatterns(bits, N_FEATURES)), "bits beyond the last")
        _expect(ConfigError, lambda: session.project(_patterns(1), first_frame_index=-1), "a negative frame number")
        too_many = np.zeros((session.describe().max_batch + 1, 8), dtype=np.uint8)
        _expect(CapacityError, lambda: session.project(PackedPatterns(too_many, N_FEATURES)), "too large a batch")
        dtype = device.describe().frame_dtype
        wrong_shape = np.zeros((2, N_OUTPUTS), dtype)
        _expect(PatternShapeError, lambda: session.project(_patterns(3), out=wrong_shape), "too small a buffer")
        wrong_dtype = np.zeros((3, N_OUTPUTS), np.float32)
        _expect(PatternDtypeError, lambda: session.project(_patterns(3), out=wrong_dtype), "a float buffer")
        check(session.next_frame_index == 0, "refused batches were numbered")
        check(session.project(_patterns(2)).frames.shape == (2, N_OUTPUTS), "the session does not go on")


def bad_configurations_are_refused(device: Device) -> None:
    """Each bad configuration gets its error, and the device goes on."""
    for what, (changes, error_class) in BAD_CONFIGS.items():
        config = msgspec.structs.replace(_CONFIG, **changes)
        _expect(error_class, lambda config=config: device.open_session(config), what)  # type: ignore[misc]
    _usable(device)


def _usable(device: Device) -> None:
    with device.open_session(_CONFIG) as session:
        check(session.project(_patterns(1)).frames.shape == (1, N_OUTPUTS), "the device does not go on")


def missing_capabilities_are_named(device: Device) -> None:
    """A capability that the device lacks is refused with the list of those that it has."""

    class Teleportation:
        name = "teleportation"

    _expect(UnsupportedError, lambda: device.capability(Teleportation), "an impossible capability")
    if "ground_truth" not in device.describe().capabilities:
        _expect(UnsupportedError, lambda: device.capability(GroundTruth), "the ground truth")


def closed_sessions_refuse(device: Device) -> None:
    """A closed session raises ClosedError; closing twice is fine; accepted work is finished."""
    session = device.open_session(_CONFIG)
    future = session.submit(_patterns(2))
    session.close()
    session.close()
    check(future.result(timeout=60).frames.shape == (2, N_OUTPUTS), "accepted work was dropped")
    _expect(ClosedError, lambda: session.project(_patterns(1)), "a closed session")
    _usable(device)


def light_and_exposure_work(device: Device) -> None:
    """The light off is dark; a longer exposure is brighter in proportion."""
    description = device.describe()
    limits = description.exposure_us
    means = {}
    base_us = min(limits.default / 2, limits.maximum / 2)
    settings: dict[str, dict[str, Any]] = {
        "off": {"light": "off"},
        "short": {"exposure_us": max(base_us, limits.minimum)},
        "long": {"exposure_us": max(2 * base_us, limits.minimum)},
    }
    for name, change in settings.items():
        with device.open_session(msgspec.structs.replace(_CONFIG, **change)) as session:
            frames = session.project(_patterns(64)).frames
            means[name] = float(frames.mean(dtype=np.float64)) - description.black_level_dn
    check(abs(means["off"]) < 1 + 0.05 * means["short"], f"with the light off the mean is {means['off']:.3g} DN")
    ratio = means["long"] / max(means["short"], 1e-9)
    expected = settings["long"]["exposure_us"] / settings["short"]["exposure_us"]
    check(abs(ratio / expected - 1) < 0.15, f"{expected} times the exposure gives {ratio:.3g} times the counts")


def device_settings_change(device: Device) -> str | None:
    """Settings of the device change as asked, all or none; the exposure limit binds and the laser's power shows.

    The check leaves the settings as it found them. It needs the capability `device_control`, and over a link the role
    of an operator: other clients may look alone.
    """
    if DeviceControl.name not in device.describe().capabilities:
        return "the device has no settings that can be changed"
    control = device.capability(DeviceControl)
    before, limits = control.settings(), control.limits()
    check(msgspec.json.decode(msgspec.json.encode(before), type=DeviceSettings) == before, "settings are no JSON")
    found = SettingsChange(**{name: getattr(before, name) for name in limits})
    try:
        control.change(found)
    except RefusedError as error:  # this client may look alone, or somebody else is changing them
        return error.problem
    try:
        _bad_changes_are_refused(control)
        if "max_exposure_us" in limits:
            _exposure_limit_binds(device, control)
            control.change(found)
        if "laser_power_mw" in limits:
            _power_shows(device, control)
    finally:
        after = control.change(found)
    check(msgspec.structs.replace(after, revision=before.revision) == before, "the settings cannot be restored")
    check(after.revision > before.revision, "a change is not counted")
    _usable(device)
    return None


def _bad_changes_are_refused(control: DeviceControl) -> None:
    before = control.settings()
    _expect(ConfigError, lambda: control.change(SettingsChange()), "a change that names no setting")
    limits = control.limits()
    for name, within in limits.items():
        value = getattr(before, name)
        check(within.minimum <= value <= within.maximum, f"{name} is {value}, beyond its limits")
        for bad in (within.maximum * 1.01, float("nan"), -1.0):
            # The other settings of the change are good, and must not be made without this one.
            change = SettingsChange(**{other: bad if other == name else limits[other].minimum for other in limits})
            _expect(ConfigError, lambda change=change: control.change(change), f"{name} = {bad}")  # type: ignore[misc]
    check(control.settings() == before, "a refused change has changed something")


def _exposure_limit_binds(device: Device, control: DeviceControl) -> None:
    exposure = device.describe().exposure_us
    limit_us = max(exposure.minimum, exposure.default / 2)
    if limit_us == exposure.default:
        return
    long = msgspec.structs.replace(_CONFIG, exposure_us=exposure.default)
    with device.open_session(long) as session:
        revision = control.settings().revision
        settings = control.change(SettingsChange(max_exposure_us=limit_us))
        check(settings.max_exposure_us == limit_us, f"the limit is {settings.max_exposure_us} us, not {limit_us} us")
        check(settings == control.settings(), "a change returns other settings than there are")
        check(settings.revision == revision + 1, "a change is not counted by one")
        check(device.describe().exposure_us.maximum == limit_us, "the description has another limit")
        _expect(RefusedError, lambda: session.project(_patterns(1)), "an exposure beyond the limit, in an open session")
        _expect(ConfigError, lambda: device.open_session(long), "an exposure beyond the limit")
        _usable(device)


def _power_shows(device: Device, control: DeviceControl) -> None:
    high_mw = control.settings().laser_power_mw  # no more than somebody found safe
    if not high_mw:
        return
    low_mw = max(control.limits()["laser_power_mw"].minimum, high_mw / 2)
    black_dn = device.describe().black_level_dn
    means = []
    with device.open_session(_CONFIG) as session:
        for power_mw in (high_mw, low_mw):
            control.change(SettingsChange(laser_power_mw=power_mw))
            projection = session.project(_patterns(64))
            means.append(float(projection.frames.mean(dtype=np.float64)) - black_dn)
            said_mw = projection.provenance.laser_power_mw
            check(said_mw == power_mw, f"the provenance says {said_mw} mW, and the laser is set to {power_mw} mW")
    ratio = means[1] / max(means[0], 1e-9)
    expected = low_mw / high_mw
    check(abs(ratio / expected - 1) < 0.15, f"{expected:.3g} times the power gives {ratio:.3g} times the counts")


def linear_projections_are_linear(device: Device) -> None:
    """The two-frame projection is additive within its noise, and the four-frame one is its ternary extension."""
    linear_map = fit_linear_map(device, N_FEATURES, N_OUTPUTS)
    patterns = np.zeros((16, N_FEATURES), dtype=np.int8)
    patterns[:, : N_FEATURES // 2] = _patterns(16, N_FEATURES // 2)
    others = np.zeros_like(patterns)
    others[:, N_FEATURES // 2 :] = _patterns(16, N_FEATURES - N_FEATURES // 2, seed=1)
    with LinearProjector(device, linear_map) as projector:
        one, two = projector.project(patterns).output, projector.project(others).output
        both = projector.project(patterns + others).output
        difference = projector.project(patterns - others).output
    check(_pearson(one + two, both) > 0.97, f"sums correlate at {_pearson(one + two, both):.4f}")
    check(_pearson(one - two, difference) > 0.97, f"differences correlate at {_pearson(one - two, difference):.4f}")
    mean_ones = float((patterns + others).sum(axis=1).mean())
    scale = float(both.std()) / np.sqrt(mean_ones)
    check(abs(scale - 1) < 0.15, f"the weights have a standard deviation of {scale:.3g}")


def _pearson(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    return float(np.corrcoef(one.ravel(), two.ravel())[0, 1])


CHECKS: dict[str, Callable[[Device], str | None]] = {
    function.__name__: function
    for function in (
        description_is_data,
        frames_have_shape_and_provenance,
        configuration_is_completed,
        packed_equals_unpacked,
        output_buffer_is_used,
        inputs_may_be_changed_after_submit,
        frames_have_an_identity,
        submissions_are_pipelined_in_order,
        batches_together_are_as_alone,
        batches_are_as_alone_whoever_works_the_device,
        order_in_memory_does_not_matter,
        threads_do_not_disturb_each_other,
        bad_patterns_are_refused,
        bad_configurations_are_refused,
        missing_capabilities_are_named,
        closed_sessions_refuse,
        light_and_exposure_work,
        device_settings_change,
        linear_projections_are_linear,
    )
}
"""The checks by name, in the order in which they run. What one returns is why it could not be tried."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a check: `message` says what is wrong or why it was skipped, and is empty when it passed."""

    name: str
    outcome: Outcome
    message: str
    seconds: float


def run_checks(device: Device, *, on_result: Callable[[CheckResult], None] = lambda _: None) -> list[CheckResult]:
    """Run every check on an open device.

    Parameters
    ----------
    device : Device
        It stays open.
    on_result : callable, optional
        Called with each result as soon as it is there.

    Returns
    -------
    list of CheckResult
        In the order of `CHECKS`.
    """
    results = []
    for name, function in CHECKS.items():
        started_s = time.perf_counter()
        outcome, message = _try(function, device)
        seconds = time.perf_counter() - started_s
        results.append(CheckResult(name=name, outcome=outcome, message=message, seconds=seconds))
        on_result(results[-1])
    return results


def _try(function: Callable[[Device], str | None], device: Device) -> tuple[Outcome, str]:
    try:
        reason = function(device)
    except AssertionError as error:
        return "failed", str(error)
    except Exception as error:  # noqa: BLE001 - a failing driver may raise anything, and the next check must run
        return "failed", f"{type(error).__name__}: {error}"
    return ("skipped", reason) if reason else ("passed", "")


def fingerprint(device: Device) -> str:
    """Return a hash of the frames of a fixed set of batches.

    Two addresses of one device with repeatable noise - in process and behind a server - have the same fingerprint.

    Parameters
    ----------
    device : Device
        It stays open.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    sizes = ((1, 1), (N_FEATURES, N_OUTPUTS), (1000, 3000))
    for noise_key, (n_features, n_outputs) in enumerate(sizes):
        config = SessionConfig(n_features=n_features, n_outputs=n_outputs, noise_key=noise_key)
        with device.open_session(config) as session:
            digest.update(_frames(session, n_features).tobytes())
    return digest.hexdigest()


def _frames(session: Session, n_features: int) -> NDArray[Any]:
    return session.project(_patterns(32, n_features), first_frame_index=7).frames
