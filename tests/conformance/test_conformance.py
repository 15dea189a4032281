"""The same suite for every backend and every preset: in process and behind a server."""

from contextlib import ExitStack

import msgspec
import numpy as np
import pytest

import opu
from opu.device import SettingsChange
from opu.remote.server import OpuServer
from opu.sim.device import SimulatedBench
from opu.sim.models import PRESETS
from opu.testing import CHECKS, fingerprint, run_checks

SIMULATED = ["sim:?preset=aurora&seed=7", "sim:?preset=ideal&seed=7"]


DEVICES = [(name, False) for name in PRESETS] + [("aurora", True), ("ideal", True), ("laboratory", True)]


NEED_REPETITION = {"inputs_may_be_changed_after_submit", "frames_have_an_identity"}


@pytest.fixture(scope="module", params=DEVICES, ids=str)
def device(request, small_preset):
    name, served = request.param
    with ExitStack() as stack:
        opened = stack.enter_context(SimulatedBench(small_preset(name), seed=7))
        if served:
            server = stack.enter_context(OpuServer(opened, "tcp://127.0.0.1:0"))
            opened = stack.enter_context(opu.open(server.uri))
        yield opened


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(device, name, request):
    reason = CHECKS[name](device)
    if name in NEED_REPETITION and "laboratory" in request.node.name:  # whose frames depend on the time
        assert reason == "the device does not repeat its noise"
    elif name == "device_settings_change" and device.describe().backend == "tcp":
        assert "role 'user'" in reason  # without keys nobody is an operator
    else:
        assert reason is None


@pytest.mark.parametrize("uri", SIMULATED)
def test_the_bytes_agree_over_the_link(uri):
    with opu.open(uri) as local, OpuServer(local, "tcp://127.0.0.1:0") as server, opu.open(server.uri) as remote:
        assert fingerprint(remote) == fingerprint(local)


def test_devices_of_one_seed_have_one_fingerprint_and_others_another():
    with opu.open(SIMULATED[0]) as one, opu.open(SIMULATED[0]) as two, opu.open("sim:?seed=8") as other:
        assert fingerprint(one) == fingerprint(two)
        assert fingerprint(one) != fingerprint(other)


def test_the_estimator_gives_the_same_over_the_link():
    X = np.random.default_rng(0).normal(size=(20, 6))
    with opu.open(SIMULATED[0]) as local, OpuServer(local, "tcp://127.0.0.1:0") as server:
        outputs = []
        for uri in (SIMULATED[0], server.uri):
            with opu.OPU(n_components=40, device=uri).fit(X) as estimator:
                outputs.append((estimator.transform(X), estimator.linear_transform(X)))
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])


class Broken:
    """A device that fails in one way; everything else is passed on."""

    def __init__(self, device, **replaced):
        self._device = device
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._device, name)


def test_the_suite_finds_a_device_that_repeats_old_frames():
    with opu.open(SIMULATED[0]) as good:
        memory = {}

        def open_session(config):
            session = good.open_session(config)
            submit = session.submit

            def cached(patterns, *, first_frame_index=None, out=None):
                key = (config, len(patterns))
                if key not in memory:
                    memory[key] = submit(patterns, first_frame_index=first_frame_index, out=out)
                return memory[key]

            session.submit = cached
            return session

        failed = {r.name for r in run_checks(Broken(good, open_session=open_session)) if r.outcome == "failed"}
    assert {"submissions_are_pipelined_in_order", "linear_projections_are_linear"} <= failed


def test_the_suite_finds_a_device_that_takes_anything():
    class Lenient:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    with opu.open(SIMULATED[0]) as good:
        results = run_checks(Broken(good, open_session=lambda config: Lenient()))
    failed = {result.name for result in results if result.outcome == "failed"}
    assert "bad_configurations_are_refused" in failed
    assert all(result.message for result in results if result.outcome == "failed")


class Control(opu.DeviceControl):
    """The settings of a good device, with a change that goes wrong: `go_wrong(good, change)`."""

    def __init__(self, good, go_wrong):
        self._good, self._go_wrong = good, go_wrong

    def settings(self):
        return self._good.settings()

    def limits(self):
        return self._good.limits()

    def change(self, change):
        return self._go_wrong(self._good, change)


def clipped(control, change):
    """Take any number, and make what is possible of it."""
    wanted = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    for name, value in wanted.items():
        limits = control.limits()[name]
        wanted[name] = min(max(value, limits.minimum), limits.maximum)
    return control.change(SettingsChange(**wanted))


def without_light(control, change):
    """Note the power, and leave the laser as it is."""
    if change.laser_power_mw is None:
        return control.change(change)
    settings = control.change(msgspec.structs.replace(change, laser_power_mw=control.settings().laser_power_mw))
    return msgspec.structs.replace(settings, laser_power_mw=change.laser_power_mw)


def without_limit(control, change):
    """Confirm a limit of the exposure, and set none."""
    if change.max_exposure_us is None:
        return control.change(change)
    return msgspec.structs.replace(control.settings(), max_exposure_us=change.max_exposure_us)


@pytest.mark.parametrize("go_wrong", [clipped, without_light, without_limit])
def test_the_suite_finds_settings_that_do_not_change_as_asked(go_wrong):
    with opu.open(SIMULATED[0]) as good:
        control = Control(good.capability(opu.DeviceControl), go_wrong)

        def capability(kind):
            return control if kind is opu.DeviceControl else good.capability(kind)

        results = run_checks(Broken(good, capability=capability))
    assert [result.name for result in results if result.outcome == "failed"] == ["device_settings_change"]


def test_the_suite_leaves_the_settings_as_they_were():
    with opu.open(SIMULATED[0]) as device:
        control = device.capability(opu.DeviceControl)
        before = control.change(SettingsChange(laser_power_mw=7.5, max_exposure_us=1234))
        assert CHECKS["device_settings_change"](device) is None
        assert msgspec.structs.replace(control.settings(), revision=before.revision) == before


def test_what_a_client_may_not_try_is_skipped_and_not_passed():
    with (
        opu.open(SIMULATED[0]) as bench,
        OpuServer(bench, "tcp://127.0.0.1:0") as server,
        opu.open(server.uri) as device,
    ):
        results = {result.name: result for result in run_checks(device)}
    skipped = results.pop("device_settings_change")
    assert skipped.outcome == "skipped"
    assert "role 'user'" in skipped.message
    assert {(result.outcome, result.message) for result in results.values()} == {("passed", "")}


def test_what_a_device_does_not_have_is_skipped():
    with opu.open(SIMULATED[0]) as good:
        poor = msgspec.structs.replace(good.describe(), capabilities=())
        device = Broken(good, describe=lambda: poor)
        for name in ("inputs_may_be_changed_after_submit", "frames_have_an_identity", "device_settings_change"):
            assert CHECKS[name](device), name
