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
from opu.remote.clients import Client, OpenedSession, ProjectionJob
from opu.remote.counters import Counters
from opu.remote.gate import Peer
from opu.remote.limits import ServerLimits
from opu.remote.server import OpuServer
from opu.remote.turns import Pace, Turns

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


class Asked:
    """Turns without a server, clients that have asked, and what came of it: `outcomes` of the requests by client."""

    def __init__(self, toy, n_clients=1):
        self.outcomes, self.frames = [], []
        self.turns = Turns(
            toy,
            ServerLimits(),
            Counters(lambda: 0.0),
            lambda *_: None,
            clock=lambda: 0.0,
            projected=self.projected,
            reached=None,
        )
        pace = Pace(TOY_DESCRIPTION.timing)
        self.asked = []
        for number in range(n_clients):
            peer = Peer(name="", role="user", address="?")
            client = Client(number, name="", peer=peer, route=b"1", descriptor=-1, heard_s=0.0)
            session = toy.open_session(msgspec.structs.replace(CONFIG, noise_key=number))
            self.asked.append((client, OpenedSession(session, session.describe(), pace)))
            self.turns.join(client)
        for n_frames in (2, 4):
            pace.learn(session.project(np.ones((n_frames, 10))).provenance)

    def ask(self, number, request_id):
        client, opened = self.asked[number]
        request = protocol.Project(request_id=request_id, session=1, first_frame_index=0, n_features=10, batch=2)
        self.turns.add(client, ProjectionJob(request, opened, opu.pack(X), arrived_s=0.0))

    def projected(self, client, job, outcome):
        self.outcomes.append((client.client_id, job.request.request_id))
        self.frames.append((outcome, job.session.device_session.config))

    def check_frames(self):
        """Compare here: what an outcome's callback raises is logged, and harms nobody."""
        for outcome, config in self.frames:
            np.testing.assert_array_equal(outcome.frames, toy_frames(X, 0, config))


def test_the_server_looks_at_its_messages_after_each_call(toy):
    """A ping does not wait for a queue of brief calls."""
    asked = Asked(toy)
    for request_id in (1, 2, 3):
        asked.ask(0, request_id)
    for n_done in (1, 2, 3):
        assert asked.turns.has_work
        asked.turns.give(0.0)
        assert asked.turns.has_worked_here
        assert asked.outcomes == [(0, request_id) for request_id in range(1, n_done + 1)]
    asked.turns.give(0.0)
    assert not asked.turns.has_worked_here
    assert not asked.turns.has_work
    asked.check_frames()


def test_clients_share_brief_calls_and_a_fault_beside_one_harms_no_other(toy):
    asked = Asked(toy, n_clients=2)
    projected = asked.turns._projected

    def fail(client, job, outcome):
        projected(client, job, outcome)
        if client.client_id == 0:
            raise AssertionError("a fault of the server")

    asked.turns._projected = fail
    for request_id in (1, 2):
        for number in (0, 1):
            asked.ask(number, request_id)
        asked.turns.give(0.0)
    assert asked.outcomes == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert [sizes for _, sizes in toy.here] == [[2, 2], [2, 2]]
    assert asked.turns.wait_s(0.0) == 0
    asked.check_frames()


def test_whoever_cannot_be_given_the_frames_hears_why(toy, monkeypatch):
    asked = Asked(toy)

    def fail(parts):
        raise ValueError("a driver that words its provenance in its own way")

    monkeypatch.setattr("opu.remote.turns.merge", fail)
    outcomes = []
    asked.turns._projected = lambda client, job, outcome: outcomes.append(outcome)
    asked.ask(0, 1)
    asked.turns.give(0.0)
    assert [type(outcome) for outcome in outcomes] == [ValueError]
    assert asked.turns.queued == 0


def test_the_server_stays_awake_only_where_nothing_waits(toy, session, monkeypatch):
    project(session)
    seen = []
    stay_awake = OpuServer._stay_awake

    def note(server):
        seen.append(server._broker.has_work or not server._inbox.is_empty)
        stay_awake(server)

    monkeypatch.setattr(OpuServer, "_stay_awake", note)
    for number in range(4):
        project(session, 2 * number)
    futures = [session.submit(X, first_frame_index=0) for _ in range(16)]
    for future in futures:
        future.result(timeout=60)
    assert len(seen) >= 3
    assert not any(seen)


def test_a_device_that_knows_nothing_of_this_lets_nobody():
    with ToyDevice() as device, device.open_session(CONFIG) as session:
        assert device.describe() == TOY_DESCRIPTION
        assert device.project_here([(session, Batch(opu.pack(X), 0))]) is None
