"""Calls so brief that the thread of the server does the work of the device itself."""

import threading
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from link_helpers import TOY_DESCRIPTION, ToyDevice, ToySession, toy_frames, wait_until

import opu
from opu.device import Batch, SessionConfig
from opu.errors import DeviceError
from opu.remote.server import OpuServer

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.arange(20).reshape(2, 10) % 3 % 2


class OpenToy(ToyDevice):
    """A toy that any thread may work: `here` has the thread and the batches of every call that was not queued.

    `frame_s` is what a frame takes by its books, `refuses` tells it to be at work whenever it is asked, and `broken` to
    fail.
    """

    def __init__(self):
        super().__init__()
        self.here = []
        self.frame_s = 1e-4
        self.refuses = self.broken = False

    def _open_session(self, config):
        return OpenSession(self, config)

    def _project_here(self, requests):
        if self.refuses:
            return None
        if self.broken:
            raise DeviceError("The lamp is out.", "Change it.")
        self.here.append((threading.current_thread().name, [len(batch.patterns) for _, batch in requests]))
        return [session._project(session.accept(batch)) for session, batch in requests]


class OpenSession(ToySession):
    def _project(self, batch):
        projection = super()._project(batch)
        finished_unix_s = self._device.frame_s * len(batch.patterns)
        provenance = msgspec.structs.replace(projection.provenance, started_unix_s=0.0, finished_unix_s=finished_unix_s)
        return replace(projection, provenance=provenance)

    def _close(self):
        pass


@pytest.fixture
def toy():
    with OpenToy() as device:
        yield device


@pytest.fixture
def session(toy):
    with (
        OpuServer(toy, "tcp://127.0.0.1:0") as server,
        opu.open(server.uri) as device,
        device.open_session(CONFIG) as session,
    ):
        yield session


def project(session, first=0):
    projection = session.project(X, first_frame_index=first)
    np.testing.assert_array_equal(projection.frames, toy_frames(X, first, session.config))
    assert projection.provenance.first_frame_index == first


def test_the_first_call_of_a_setting_is_queued_and_then_the_server_works(toy, session):
    project(session)
    assert toy.here == []  # nothing is known of how long it takes
    project(session, 2)
    assert toy.here == [("opu-server", [2])]


def test_long_calls_are_queued(toy, session):
    toy.frame_s = 0.001
    project(session)
    project(session, 2)
    assert toy.here == []


def test_behind_a_call_that_is_queued_all_are(toy, session):
    project(session)
    toy.gate.clear()
    toy.refuses = True
    futures = [session.submit(X, first_frame_index=0)]
    wait_until(lambda: toy.waiting == 1, 60)
    toy.refuses = False
    futures.append(session.submit(X, first_frame_index=2))
    wait_until(lambda: toy._worker._work_queue.qsize() == 1, 60)
    toy.gate.set()
    for first, future in zip((0, 2), futures, strict=True):
        np.testing.assert_array_equal(future.result(timeout=60).frames, toy_frames(X, first, session.config))
    assert toy.here == []


def test_a_device_that_fails_here_fails_the_request_alone(toy, session):
    project(session)
    toy.broken = True
    with pytest.raises(DeviceError, match="The lamp is out"):
        session.project(X)
    toy.broken = False
    project(session, 4)
    assert len(toy.here) == 1


def test_who_waits_gets_a_turn_between_brief_calls(toy, session):
    """The server looks at its messages after each call: a ping does not wait for a queue of them."""
    project(session)
    futures = [session.submit(X, first_frame_index=2 * number) for number in range(32)]
    for number, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(timeout=60).frames, toy_frames(X, 2 * number, session.config))
    assert toy.here
    assert all(sizes == [2] for _, sizes in toy.here)


def test_a_device_that_knows_nothing_of_this_lets_nobody():
    with ToyDevice() as device, device.open_session(CONFIG) as session:
        assert device.describe() == TOY_DESCRIPTION
        assert device.project_here([(session, Batch(opu.pack(X), 0))]) is None
