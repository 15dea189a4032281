"""Small batches of several clients in one call of the device."""

import threading
from concurrent.futures import Future
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from link_helpers import ToyDevice, ToySession, toy_frames, wait_until

import opu
from opu.device import SessionConfig
from opu.errors import DeadlineError, DeviceError
from opu.remote import protocol

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(1, 10, dtype=np.uint8)
WAIT_S = 60
QUANTUM_S = 0.005


class SharingToy(ToyDevice):
    """A toy whose sessions share calls: `calls` has key, number and size of every batch of each, as they are begun.

    `bad_key` is the noise key of batches that fail, and `frame_s` what a frame takes.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.bad_key = None
        self.frame_s = 0.0

    def _open_session(self, config):
        with self._lock:
            self.open_sessions += 1
        return SharingSession(self, config)

    def _submit_together(self, requests):
        requests = [(session, session.accept(batch), Future()) for session, batch in requests]
        self._worker.submit(self._call, requests)
        return [future for _, _, future in requests]

    def _call(self, requests):
        assert self.gate.wait(WAIT_S)
        self.calls.append(
            [(session.config.noise_key, batch.first_frame_index, len(batch.patterns)) for session, batch, _ in requests]
        )
        taken_s = self.frame_s * sum(len(batch.patterns) for _, batch, _ in requests)
        for session, batch, future in requests:
            if session.config.noise_key == self.bad_key:
                future.set_exception(DeviceError("This one failed.", "Send it again."))
            else:
                projection = session._project(batch)
                provenance = msgspec.structs.replace(projection.provenance, finished_unix_s=taken_s)
                future.set_result(replace(projection, provenance=provenance))


class SharingSession(ToySession):
    can_share = True


@pytest.fixture
def toy():
    with SharingToy() as device:
        yield device
        device.gate.set()


class Users:
    """Clients with a session each, whose noise key is their number, and what they have asked."""

    def __init__(self, server, configs):
        self.server = server
        self.devices = [opu.open(server.uri) for _ in configs]
        self.sessions = [
            device.open_session(msgspec.structs.replace(config, noise_key=key))
            for key, (device, config) in enumerate(zip(self.devices, configs, strict=True))
        ]
        self.asked = []

    def ask(self, user, patterns=X, **fields):
        """Submit a batch, and wait until the server has it."""
        queued = self.server.snapshot().queued
        session = self.sessions[user]
        first = session.next_frame_index
        future = session.submit(patterns, **fields)
        self.asked.append((future, patterns, first, session.config))
        wait_until(lambda: self.server.snapshot().queued == queued + 1, WAIT_S)
        return future

    def check_answers(self, *failed):
        """Check the frames of all but some of the futures."""
        for future, patterns, first, config in self.asked:
            if future not in failed:
                projection = future.result(timeout=WAIT_S)
                np.testing.assert_array_equal(projection.frames, toy_frames(patterns, first, config))
                provenance = projection.provenance
                assert (provenance.first_frame_index, provenance.n_frames) == (first, len(patterns))
                assert provenance.device_us == 100.0 * len(patterns)


@pytest.fixture
def users(serve, toy):
    """Clients of a device that does not work until `toy.gate` is set: `users(n)`, `users(config, ...)`."""
    made = []

    def make(*configs, **limits):
        configs = [CONFIG] * configs[0] if isinstance(configs[0], int) else configs
        made.append(Users(serve(**limits), configs))
        toy.gate.clear()
        return made[-1]

    yield make
    toy.gate.set()
    for each in made:
        for device in each.devices:
            device.close()


def test_single_patterns_of_many_clients_are_one_call(users, toy):
    group = users(6)
    for user in (0, 0, 1, 2, 3, 4, 5):  # two are with the device before the others come
        group.ask(user)
    toy.gate.set()
    group.check_answers()
    assert toy.calls == [[(0, 0, 1)], [(0, 1, 1)], [(key, 0, 1) for key in range(1, 6)]]
    counters = group.server.snapshot().counters
    assert (counters.calls, counters.merged, counters.failed_calls) == (3, 4, 0)


def test_batches_of_another_setting_have_their_own_call_and_turn(users, toy):
    other = msgspec.structs.replace(CONFIG, n_outputs=6)
    group = users(CONFIG, CONFIG, CONFIG, other)
    for user in (0, 0, 1, 1, 2, 2, 3, 3):
        group.ask(user)
    toy.gate.set()
    group.check_answers()
    shared, alone = [[(1, 0, 1), (2, 0, 1)], [(1, 1, 1), (2, 1, 1)]], [[(3, 0, 1)], [(3, 1, 1)]]
    assert toy.calls[2:] == [shared[0], alone[0], shared[1], alone[1]]


def test_batches_ride_beside_a_part_of_a_large_one(users, toy):
    toy.frame_s = 0.8 * QUANTUM_S / 16.5  # parts are of four fifths of a quantum
    group = users(5)
    group.ask(0)
    group.ask(1)
    group.ask(2, np.random.default_rng(0).integers(0, 2, (64, 10), dtype=np.uint8))
    for user in (3, 4, 0):
        group.ask(user, np.repeat(X, 5, axis=0))
    toy.gate.set()
    group.check_answers()
    assert toy.calls[2] == [(2, 0, 16), (3, 0, 5), (4, 0, 5)]  # together less than a quantum and a half
    assert toy.calls[3] == [(0, 1, 5)]
    assert [first for call in toy.calls for key, first, _ in call if key == 2] == [0, 16, 32, 48]


def test_a_call_has_room_for_so_many_frames_and_requests(users, toy, monkeypatch):
    monkeypatch.setattr("opu.remote.turns._MOST_REQUESTS", 3)
    toy.frame_s = QUANTUM_S / 16
    group = users(8)
    sizes = (1, 1, 9, 6, 10, 1, 1, 1)
    for user, size in enumerate(sizes):
        group.ask(user, np.repeat(X, size, axis=0))
    toy.gate.set()
    group.check_answers()
    assert toy.calls[2] == [(2, 0, 9), (3, 0, 6), (5, 0, 1)]  # of a quantum and a half
    assert toy.calls[3][0] == (4, 0, 10)  # had no room, and kept its turn
    assert [len(call) for call in toy.calls[2:]] == [3, 3]


def test_a_ride_can_be_cancelled(users, toy):
    group = users(5)
    futures = [group.ask(user) for user in (0, 0, 1, 2, 3)]
    assert futures[3].cancel()
    wait_until(lambda: group.server.snapshot().counters.cancelled == 1, WAIT_S)
    toy.gate.set()
    group.check_answers(futures[3])
    assert toy.calls[2] == [(1, 0, 1), (3, 0, 1)]


def test_a_ride_that_is_with_the_device_can_be_cancelled(users, toy):
    group = users(4)
    futures = [group.ask(user) for user in (0, 0, 1, 2, 3)]
    begun, held = threading.Event(), threading.Event()
    call = toy._call

    def hold_third(requests):
        if len(toy.calls) == 2:
            begun.set()
            assert held.wait(WAIT_S)
        call(requests)

    toy._call = hold_third
    toy.gate.set()
    assert begun.wait(WAIT_S)
    assert futures[3].cancel()
    wait_until(lambda: group.server.snapshot().counters.cancelled == 1, WAIT_S)
    held.set()
    group.check_answers(futures[3])
    assert (2, 0, 1) in toy.calls[2]
    assert futures[3].cancelled()


def test_a_ride_that_is_late_or_fails_harms_nobody(users, toy):
    group = users(6)
    toy.bad_key = 4
    futures = [group.ask(user) for user in (0, 0, 1)]
    late = group.ask(2, deadline_s=0.05)
    futures += [group.ask(user) for user in (3, 4, 5)]
    assert isinstance(late.exception(timeout=WAIT_S), DeadlineError)
    toy.gate.set()
    assert isinstance(futures[4].exception(timeout=WAIT_S), DeviceError)
    group.check_answers(late, futures[4])
    assert [key for key, _, _ in toy.calls[2]] == [1, 3, 4, 5]
    counters = group.server.snapshot().counters
    assert (counters.calls, counters.merged, counters.late) == (3, 2, 1)


def test_a_client_that_vanishes_with_its_ride_harms_nobody(users, toy, raw):
    group = users(3, expire_s=1.0)
    group.ask(0)
    group.ask(0)
    guest = raw(group.server.uri)
    assert isinstance(guest.hello(), protocol.Welcome)
    number = guest.open_session(msgspec.structs.replace(CONFIG, noise_key=77)).session
    for user in (1, 2):
        group.ask(user)
    guest.project(number, X)
    wait_until(lambda: group.server.snapshot().queued == 5, WAIT_S)
    begun, held = threading.Event(), threading.Event()
    project = SharingSession._project

    def hold_ride(session, batch):
        if session.config.noise_key == 1:
            begun.set()
            assert held.wait(WAIT_S)
        return project(session, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SharingSession, "_project", hold_ride)
        toy.gate.set()
        assert begun.wait(WAIT_S)
        guest.socket.close()
        wait_until(lambda: len(group.server.snapshot().clients) == 3, WAIT_S)
        held.set()
        group.check_answers()
    assert [key for key, _, _ in toy.calls[2]] == [1, 2, 77]
    wait_until(lambda: toy.open_sessions == 3, WAIT_S)
    for user in range(3):
        group.sessions[user].project(X)
    assert group.server.snapshot().queued == 0


def test_a_device_that_does_not_share_gets_one_batch_at_a_time(users, toy, monkeypatch):
    monkeypatch.setattr(SharingSession, "can_share", False)
    group = users(4)
    for user in (0, 0, 1, 2, 3):
        group.ask(user)
    toy.gate.set()
    group.check_answers()
    assert [len(call) for call in toy.calls] == [1] * 5
    assert group.server.snapshot().counters.merged == 0


def test_a_device_that_refuses_a_call_refuses_each_request(users, toy, monkeypatch):
    def refuse(_):
        raise DeviceError("The bus is stuck.", "Replug it.")

    group = users(2)
    monkeypatch.setattr(toy, "_submit_together", refuse)
    futures = [session.submit(X) for session in group.sessions]
    assert all(isinstance(future.exception(timeout=WAIT_S), DeviceError) for future in futures)
    monkeypatch.undo()
    toy.gate.set()
    for session in group.sessions:
        np.testing.assert_array_equal(session.project(X).frames, toy_frames(X, 1, session.config))


def test_served_simulations_give_the_frames_that_they_give_alone(raw):
    from opu.remote.server import OpuServer

    uri = "sim:?preset=aurora&seed=7"
    config = SessionConfig(n_features=50, n_outputs=40)
    patterns = np.random.default_rng(1).integers(0, 2, (30, 50), dtype=np.uint8)
    with opu.open(uri) as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        devices = [opu.open(server.uri) for _ in range(5)]
        sessions = [d.open_session(msgspec.structs.replace(config, noise_key=key)) for key, d in enumerate(devices)]
        futures = [[session.submit(patterns[i : i + 1]) for i in range(30)] for session in sessions]
        frames = [[future.result(timeout=WAIT_S).frames for future in row] for row in futures]
        assert server.snapshot().counters.merged > 0
        for session, row in zip(sessions, frames, strict=True):
            with device.open_session(session.config) as alone:
                np.testing.assert_array_equal(np.concatenate(row), alone.project(patterns).frames)
        for each in devices:
            each.close()
