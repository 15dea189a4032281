"""The calibration routines believe a good device and disbelieve bad ones."""

import pytest

import opu
from opu.calibration import ROUTINES, calibrate, measure_throughput
from opu.device import Device, Session, failed_future
from opu.errors import CapacityError, ConfigError, DeviceError


@pytest.mark.parametrize("uri", ["sim:?preset=aurora&seed=21", "sim:?preset=interferometer&seed=23"])
def test_a_good_device_passes_everything(uri):
    skipped = {}
    with opu.open(uri) as device:
        results = calibrate(device, quick=True, on_skip=skipped.__setitem__)
    assert [result.name for result in results] + list(skipped) == list(ROUTINES)
    assert all(result.passed for result in results), [r.as_json() for r in results if not r.passed]
    assert all(result.seconds > 0 for result in results)
    assert all(result.frames > 0 for result in results if result.name != "singular_values")


class FailingSession(Session):
    """A session whose camera has come loose."""

    def _submit(self, batch):
        return failed_future(DeviceError("The camera does not answer.", "Look at its cable."))

    def _close(self):
        pass


class FailingDevice(Device):
    """A device that opens sessions, and then fails."""

    def __init__(self, inner):
        super().__init__(inner.uri)
        self.inner = inner

    def describe(self):
        return self.inner.describe()

    def _open_session(self, config):
        with self.inner.open_session(config) as session:
            return FailingSession(session.describe())

    def _close(self):
        self.inner.close()


def test_what_the_device_fails_is_a_finding():
    with FailingDevice(opu.open("sim:?preset=aurora&seed=7")) as device:
        results = calibrate(device, ["dark_frames", "singular_values"])
    assert [result.name for result in results] == ["dark_frames", "singular_values"]
    for result in results:
        assert not result.passed
        assert result.findings == ("The camera does not answer. Look at its cable.",)


def test_names_are_a_list():
    with opu.open("sim:") as device, pytest.raises(ConfigError, match="'latency', one text"):
        calibrate(device, "latency")


def test_unknown_routine_lists_the_known_ones():
    with opu.open("sim:") as device, pytest.raises(ConfigError, match=r"tea.*dark_frames") as caught:
        calibrate(device, ["tea"])
    assert caught.value.exit_status == 2


def test_throughput_counts_what_was_done():
    with opu.open("sim:?preset=ideal") as device:
        rows = measure_throughput(device, batches=(1, 8), n_features=20, n_outputs=30, seconds=0.05)
    assert [(row.where, row.batch) for row in rows] == [("in_process", 1), ("in_process", 8)]
    for row in rows:
        assert row.p50_us <= row.p99_us
        # With batches in flight the device is never slower than half the rate of one call after another.
        assert row.frames_per_s > 0.5 * row.batch / (row.p99_us * 1e-6)


def test_a_batch_that_the_device_does_not_take_is_refused_before_it_is_made():
    rows = []
    with opu.open("sim:?preset=ideal") as device, pytest.raises(CapacityError, match="1000000000 patterns"):
        measure_throughput(device, batches=(1, 10**9), n_features=20, n_outputs=30, seconds=0.01, on_result=rows.append)
    assert rows == []
