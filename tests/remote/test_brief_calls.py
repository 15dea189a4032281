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
from opu.remote import protocol
from opu.remote.broker import Broker
from opu.remote.server import OpuServer
from opu.remote.turns import Turns

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
    can_share = True

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


def test_the_server_looks_at_its_messages_after_each_call(toy, session, monkeypatch):
    """A ping does not wait for a queue of brief calls, nor do these for whatever may come."""
    project(session)
    events = []
    give, stay_awake = Turns.give, OpuServer._stay_awake
    monkeypatch.setattr(Turns, "give", lambda turns, now_s: (events.append(len(toy.here)), give(turns, now_s)))
    monkeypatch.setattr(OpuServer, "_stay_awake", lambda server: (events.append("awake"), stay_awake(server)))
    toy.gate.clear()
    toy.refuses = True
    blocking = session.submit(X)
    wait_until(lambda: toy.waiting == 1, 60)
    futures = [session.submit(X, first_frame_index=2 * number) for number in range(4, 12)]
    wait_until(lambda: session._device.server_status().queued == 9, 60)
    toy._worker.submit(lambda: setattr(toy, "refuses", False))
    toy.gate.set()
    for number, future in enumerate(futures, start=4):
        np.testing.assert_array_equal(future.result(timeout=60).frames, toy_frames(X, 2 * number, session.config))
    blocking.result(timeout=60)
    assert len(toy.here) >= 6
    counts = [event for event in events if event != "awake"]
    assert max(np.diff(counts)) == 1
    assert "awake" not in events[: events.index(len(toy.here) - 1)]


def test_brief_calls_are_shared_and_a_client_that_fails_harms_no_other(toy, monkeypatch):
    other = msgspec.structs.replace(CONFIG, noise_key=1)
    with (
        OpuServer(toy, "tcp://127.0.0.1:0") as server,
        opu.open(server.uri) as one,
        opu.open(server.uri) as two,
        one.open_session(CONFIG) as first,
        two.open_session(other) as second,
    ):
        first.project(X)
        first.project(np.concatenate([X, X]))  # four frames are known to be brief, too
        toy.here.clear()
        send = Broker._send

        def fail(broker, client, reply, *arguments, **more):
            if client.client_id == 1 and isinstance(reply, protocol.Frames):
                raise AssertionError("a fault of the server")
            send(broker, client, reply, *arguments, **more)

        monkeypatch.setattr(Broker, "_send", fail)
        toy.gate.clear()
        toy.refuses = True
        queued = [second.submit(X), second.submit(X)]
        wait_until(lambda: toy.waiting == 1, 60)
        lost = first.submit(X, first_frame_index=6)
        answered = second.submit(X, first_frame_index=8)
        wait_until(lambda: two.server_status().queued == 4, 60)
        toy._worker.submit(lambda: setattr(toy, "refuses", False))
        toy.gate.set()
        np.testing.assert_array_equal(answered.result(timeout=60).frames, toy_frames(X, 8, second.config))
        assert all(future.result(timeout=60) for future in queued)
        assert toy.here == [("opu-server", [2, 2])]
        assert not lost.done()
        assert server.snapshot().counters.vitals.device_s is None  # nothing is with the device any more
        lost.cancel()


def test_a_device_that_knows_nothing_of_this_lets_nobody():
    with ToyDevice() as device, device.open_session(CONFIG) as session:
        assert device.describe() == TOY_DESCRIPTION
        assert device.project_here([(session, Batch(opu.pack(X), 0))]) is None
