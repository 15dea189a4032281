"""What belongs to the device and not to a session: the laser's power, and a limit of the exposure."""

import dataclasses
import threading
import time

import msgspec
import numpy as np
import pytest

import opu
from opu.bench import Bench
from opu.device import Batch, DeviceControl, DeviceSettings, Limits, Provenance, SettingsChange, check_change
from opu.errors import ClosedError, ConfigError, DeviceError, RefusedError, UnsupportedError
from opu.parts import AdjustableLaser
from opu.patterns import pack

URI = "sim:?preset=aurora&seed=3"
CONFIG = opu.SessionConfig(n_features=20, n_outputs=30)
OPENED = DeviceSettings(revision=0, laser_power_mw=10.0, max_exposure_us=100_000.0, trigger_delay_us=0.0)
PATTERNS = np.random.default_rng(0).integers(0, 2, (6, 20), dtype=np.uint8)
WAIT_S = 60


@pytest.fixture
def device():
    with opu.open(URI) as device:
        yield device


@pytest.fixture
def control(device):
    return device.capability(DeviceControl)


class Gate:
    """The laser of a bench that waits, when a sequence begins, until it is opened."""

    def __init__(self, laser):
        self._laser = laser
        self.reached, self.opened = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._laser, name)

    def switch(self, on):
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        self._laser.switch(on)


@pytest.fixture
def gate(device):
    device.parts = dataclasses.replace(device.parts, laser=Gate(device.parts.laser))
    yield device.parts.laser
    device.parts.laser.opened.set()


class PlainLaser:
    """A light of fixed power."""

    def __init__(self, laser):
        self.switch, self.set_reference = laser.switch, laser.set_reference


def test_a_device_begins_with_what_its_parts_have(device, control):
    assert control.settings() == OPENED
    assert control.limits() == {
        "max_exposure_us": Limits(minimum=10.0, maximum=100_000.0, default=100_000.0, unit="us"),
        "laser_power_mw": Limits(minimum=1.0, maximum=20.0, default=10.0, unit="mW"),
        "trigger_delay_us": Limits(minimum=0.0, maximum=2000.0, default=0.0, unit="us"),
    }
    assert device.describe().capabilities.count("device_control") == 1


def test_a_change_leaves_what_it_does_not_name(control):
    first = control.change(SettingsChange(laser_power_mw=5))
    assert first == control.settings() == msgspec.structs.replace(OPENED, revision=1, laser_power_mw=5.0)
    second = control.change(SettingsChange(max_exposure_us=1000))
    assert second == control.settings() == msgspec.structs.replace(first, revision=2, max_exposure_us=1000.0)
    assert control.change(SettingsChange(max_exposure_us=1000)).revision == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (SettingsChange(), r"names no setting.*max_exposure_us, laser_power_mw"),
        (SettingsChange(laser_power_mw=20.5), r"laser_power_mw is 20\.5.*Use 1 to 20 mW"),
        (SettingsChange(laser_power_mw=0.0), r"laser_power_mw is 0\.0.*1 to 20 mW"),
        (SettingsChange(laser_power_mw=float("nan")), r"laser_power_mw is nan.*1 to 20 mW"),
        (SettingsChange(laser_power_mw="5"), r"laser_power_mw is '5'.*1 to 20 mW"),
        (SettingsChange(laser_power_mw=True), r"laser_power_mw is True.*1 to 20 mW"),
        (SettingsChange(max_exposure_us=1e6), r"max_exposure_us is 1000000\.0.*10 to 100000 us"),
        (SettingsChange(max_exposure_us=-1, laser_power_mw=5), r"max_exposure_us is -1.*10 to 100000 us"),
        (SettingsChange(max_exposure_us=1000, laser_power_mw=50), r"laser_power_mw is 50.*1 to 20 mW"),
        ({"laser_power_mw": 5}, r"the change is \{.*SettingsChange"),
    ],
    ids=str,
)
def test_a_bad_change_changes_nothing(control, change, said):
    with pytest.raises(ConfigError, match=f"(?i){said}"):
        control.change(change)
    assert control.settings() == OPENED


def test_what_cannot_be_changed_is_named():
    limits = {"max_exposure_us": Limits(minimum=1, maximum=2, default=2, unit="us")}
    with pytest.raises(ConfigError, match=r"laser_power_mw cannot be set to 5.*lets you change max_exposure_us"):
        check_change(SettingsChange(laser_power_mw=5), limits)
    with pytest.raises(ConfigError, match="lets you change nothing"):
        check_change(SettingsChange(laser_power_mw=5), {})


def test_a_laser_of_fixed_power_has_none(device):
    parts = dataclasses.replace(device.parts, laser=PlainLaser(device.parts.laser))
    assert not isinstance(parts.laser, AdjustableLaser)
    with Bench("fixed:", device.describe(), parts) as bench, bench.open_session(CONFIG) as session:
        control = bench.capability(DeviceControl)
        assert list(control.limits()) == ["max_exposure_us", "trigger_delay_us"]
        assert control.settings().laser_power_mw is None
        assert session.project(PATTERNS).provenance.laser_power_mw is None
        with pytest.raises(ConfigError, match="laser_power_mw cannot be set to 5"):
            control.change(SettingsChange(laser_power_mw=5))
        assert control.change(SettingsChange(max_exposure_us=100)).max_exposure_us == 100
        with pytest.raises(UnsupportedError, match="device_control"):
            bench.capability(opu.GroundTruth)


def test_a_laser_that_fails_leaves_all_settings(device):
    laser = device.parts.laser

    class Stubborn(PlainLaser):
        power_mw = laser.power_mw

        def set_power(self, power_mw):
            raise DeviceError("The laser does not answer.", "Switch it on.")

    with Bench("stubborn:", device.describe(), dataclasses.replace(device.parts, laser=Stubborn(laser))) as bench:
        control = bench.capability(DeviceControl)
        before = control.settings()
        with pytest.raises(DeviceError, match="does not answer"):
            control.change(SettingsChange(laser_power_mw=5, max_exposure_us=100))
        assert control.settings() == before
        assert bench.describe().exposure_us == device.describe().exposure_us


def test_a_delayed_camera_sees_the_next_pattern(device, control):
    patterns = np.zeros((4, 20), dtype=np.uint8)
    patterns[2] = 1
    with device.open_session(CONFIG) as session:
        before = session.project(patterns, first_frame_index=0).frames
        assert session.can_share
        assert control.change(SettingsChange(trigger_delay_us=300)).trigger_delay_us == 300
        assert not session.can_share
        delayed = session.project(patterns, first_frame_index=0).frames
        control.change(SettingsChange(trigger_delay_us=0))
        again = session.project(patterns, first_frame_index=0).frames
    assert not before[1].any()
    # An exposure of 400 us in frames of 500 us: half of it is after the next trigger.
    assert delayed[1].mean() == pytest.approx(delayed[2].mean(), rel=0.1)
    assert np.array_equal(before, again)


def test_batches_that_wait_for_a_delay_are_taken_alone(device, control, gate):
    with device.open_session(CONFIG) as session:
        first = session.submit(PATTERNS, first_frame_index=0)
        assert gate.reached.wait(WAIT_S)
        thread = threading.Thread(target=control.change, args=(SettingsChange(trigger_delay_us=300),), daemon=True)
        thread.start()
        while device._worker._work_queue.qsize() == 0:
            time.sleep(0.01)
        together = device.submit_together([(session, Batch(pack(PATTERNS), 0)), (session, Batch(pack(PATTERNS), 0))])
        gate.opened.set()
        thread.join(WAIT_S)
        one, two = (future.result(WAIT_S).frames for future in together)
        assert np.array_equal(one, two)
        assert not np.array_equal(one, first.result(WAIT_S).frames)


def test_a_trigger_that_fails_leaves_the_laser_as_it_was(device):
    class Stubborn:
        trigger_delay_us = device.parts.controller.trigger_delay_us

        def run(self, plan):
            raise AssertionError("nothing was to be run")

        def set_trigger_delay(self, delay_us):
            raise DeviceError("The controller does not answer.", "Switch it on.")

    with Bench("stubborn:", device.describe(), dataclasses.replace(device.parts, controller=Stubborn())) as bench:
        control = bench.capability(DeviceControl)
        before = control.settings()
        with pytest.raises(DeviceError, match="does not answer"):
            control.change(SettingsChange(laser_power_mw=5, trigger_delay_us=10))
        assert control.settings() == before
        assert device.table.laser_power_mw == before.laser_power_mw


def test_the_limit_of_the_exposure_binds_new_sessions(device, control):
    control.change(SettingsChange(max_exposure_us=200))
    assert device.describe().exposure_us == Limits(minimum=10.0, maximum=200.0, default=200.0, unit="us")
    with pytest.raises(ConfigError, match=r"exposure_us is 400.*Use 10 to 200 us"):
        device.open_session(msgspec.structs.replace(CONFIG, exposure_us=400.0))
    with device.open_session(CONFIG) as session:
        assert session.config.exposure_us == 200
        session.project(PATTERNS)
    control.change(SettingsChange(max_exposure_us=5000))
    assert device.describe().exposure_us == Limits(minimum=10.0, maximum=5000.0, default=400.0, unit="us")


def test_open_sessions_do_not_escape_the_limit(device, control):
    short = msgspec.structs.replace(CONFIG, exposure_us=200.0)
    with device.open_session(CONFIG) as session, device.open_session(short) as allowed:
        before = session.project(PATTERNS, first_frame_index=0).frames
        control.change(SettingsChange(max_exposure_us=200))
        clock_us = device.device_clock_us
        with pytest.raises(RefusedError, match=r"exposes for 400 us.*limited to 200 us.*at most 200 us"):
            session.project(PATTERNS)
        assert device.device_clock_us == clock_us
        assert allowed.project(PATTERNS).provenance.n_frames == len(PATTERNS)
        control.change(SettingsChange(max_exposure_us=100_000))
        np.testing.assert_array_equal(session.project(PATTERNS, first_frame_index=0).frames, before)


def in_turn(device, work, *arguments):
    """Run blocking work in a thread, and return the thread when the work stands in the device's queue."""
    queue = device._worker._work_queue
    n_waiting = queue.qsize()
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    give_up_s = time.monotonic() + WAIT_S
    while queue.qsize() == n_waiting:
        assert time.monotonic() < give_up_s
        time.sleep(0.001)
    return thread


def test_a_change_comes_between_the_batches_before_and_after_it(device, control, gate):
    """The device is held at the first of many batches, and changes are made while they wait."""
    powers_mw = (10.0, 4.0, 18.0)
    made = []
    threads = []
    with device.open_session(CONFIG) as session:
        batches = [[session.submit(PATTERNS) for _ in range(8)]]
        assert gate.reached.wait(WAIT_S)
        for power_mw in powers_mw[1:]:
            change = SettingsChange(laser_power_mw=power_mw)
            threads.append(in_turn(device, lambda change=change: made.append(control.change(change))))
            batches.append([session.submit(PATTERNS) for _ in range(8)])
        assert made == []  # it is the turn of the first batch
        gate.opened.set()
        answers = [[future.result(WAIT_S) for future in some] for some in batches]
    for thread in threads:
        thread.join(WAIT_S)
    made.sort(key=lambda settings: settings.revision)  # the threads may tell in another order
    assert [settings.laser_power_mw for settings in made] == [4.0, 18.0]
    for power_mw, some in zip(powers_mw, answers, strict=True):
        assert {answer.provenance.laser_power_mw for answer in some} == {power_mw}
        with opu.open(URI) as always, always.open_session(CONFIG) as session:
            always.capability(DeviceControl).change(SettingsChange(laser_power_mw=power_mw))
            for answer in some:
                first = answer.provenance.first_frame_index
                np.testing.assert_array_equal(session.project(PATTERNS, first_frame_index=first).frames, answer.frames)


def test_a_limit_refuses_the_batches_that_come_after_it(device, control, gate):
    with device.open_session(CONFIG) as session:
        before = [session.submit(PATTERNS) for _ in range(3)]
        assert gate.reached.wait(WAIT_S)
        thread = in_turn(device, control.change, SettingsChange(max_exposure_us=100.0))
        after = [session.submit(PATTERNS) for _ in range(3)]
        gate.opened.set()
        assert all(future.result(WAIT_S).provenance.n_frames == len(PATTERNS) for future in before)
        for future in after:
            with pytest.raises(RefusedError, match="limited to 100 us"):
                future.result(WAIT_S)
    thread.join(WAIT_S)


def test_many_threads_change_project_and_look(device, control):
    """Every batch has one power, that of its provenance, and every change is counted."""
    errors, answers = [], []
    n_changes = 25

    def change(powers_mw):
        for power_mw in powers_mw:
            settings = control.change(SettingsChange(laser_power_mw=power_mw, max_exposure_us=1000 * power_mw))
            if settings.laser_power_mw != power_mw:
                errors.append(f"asked for {power_mw}, got {settings}")

    def project():
        with device.open_session(CONFIG) as session:
            for _ in range(n_changes):
                answers.append(session.project(PATTERNS, first_frame_index=0))

    def look():
        for _ in range(20 * n_changes):
            settings = control.settings()
            if settings.revision and settings.max_exposure_us != 1000 * settings.laser_power_mw:
                errors.append(f"half of a change: {settings}")
            device.describe()

    works = [(change, [2.0, 4.0] * n_changes), (change, [8.0, 16.0] * n_changes), (project,), (project,), (look,)]

    def run(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - it must not vanish with its thread
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert control.settings().revision == 4 * n_changes
    expected = {}
    for power_mw in {answer.provenance.laser_power_mw for answer in answers}:
        control.change(SettingsChange(laser_power_mw=power_mw))
        with device.open_session(CONFIG) as session:
            expected[power_mw] = session.project(PATTERNS, first_frame_index=0).frames
    assert len(answers) == 2 * n_changes
    for answer in answers:
        np.testing.assert_array_equal(answer.frames, expected[answer.provenance.laser_power_mw])


def test_a_closed_device_is_not_changed():
    device = opu.open(URI)
    control = device.capability(DeviceControl)
    control.change(SettingsChange(laser_power_mw=5))
    device.close()
    with pytest.raises(ClosedError, match=r"closed.*opu\.open"):
        control.change(SettingsChange(laser_power_mw=6))
    assert control.settings().laser_power_mw == 5


def test_a_change_that_waits_when_the_device_is_closed_is_made(device, control, gate):
    with device.open_session(CONFIG) as session:
        session.submit(PATTERNS)
        assert gate.reached.wait(WAIT_S)
        made = []
        thread = in_turn(device, lambda: made.append(control.change(SettingsChange(laser_power_mw=5))))
        closing = threading.Thread(target=device.close)
        closing.start()
        gate.opened.set()
        closing.join(WAIT_S)
        thread.join(WAIT_S)
    assert made == [control.settings()]
    assert made[0].laser_power_mw == 5


def test_an_older_provenance_still_decodes(device):
    with device.open_session(CONFIG) as session:
        provenance = session.project(PATTERNS).provenance
    stored = msgspec.to_builtins(provenance)
    assert stored.pop("laser_power_mw") == 10
    assert msgspec.convert(stored, Provenance) == msgspec.structs.replace(provenance, laser_power_mw=None)
