"""Connections that end, and clients that come back: nothing is lost, and nothing is done twice."""

import time
from concurrent.futures import CancelledError as FutureCancelled

import msgspec
import numpy as np
import pytest
from link_helpers import TOY_DESCRIPTION, ToyDevice, toy_frames, wait_until

import opu
from opu.device import SessionConfig
from opu.errors import BusyError, ClosedError, ConfigError, DeadlineError, MediumChangedError, UnreachableError
from opu.remote.relay import Relay
from opu.remote.server import OpuServer, ServerLimits

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)


@pytest.fixture
def relayed(serve):
    """Serve the toy device behind a relay: `relayed()` gives `(server, relay)`."""
    relays = []

    def start(**limits):
        server = serve(**limits)
        relay = Relay(server.uri)
        relay.__enter__()
        relays.append(relay)
        return server, relay

    yield start
    for relay in relays:
        relay.__exit__(None, None, None)


# Connections that end


def test_what_was_asked_is_done_once(relayed, toy):
    """The device works on while the client is away, and its answer is kept for it."""
    server, relay = relayed()
    with opu.open(relay.uri) as remote, remote.open_session(CONFIG) as session:
        toy.gate.clear()
        futures = [session.submit(X) for _ in range(5)]
        wait_until(lambda: server.snapshot().queued == 5)
        relay.cut()
        wait_until(lambda: remote.reconnections == 1)
        toy.gate.set()
        for number, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(60).frames, toy_frames(X, 3 * number, CONFIG))
        assert sorted(first for _, first in toy.projected) == [0, 3, 6, 9, 12]
        counters = server.snapshot().counters
        assert (counters.welcomed, counters.resumed) == (1, 1)


def test_an_answer_that_went_astray_is_given_again(relayed, toy):
    _, relay = relayed()
    with opu.open(relay.uri) as remote, remote.open_session(CONFIG) as session:
        for number in range(50):
            future = session.submit(X)
            if number % 3 == 0:
                relay.cut()
            np.testing.assert_array_equal(future.result(60).frames, toy_frames(X, 3 * number, CONFIG))
    assert sorted(first for _, first in toy.projected) == list(range(0, 150, 3))


def test_sessions_are_opened_and_closed_once(relayed, toy):
    _, relay = relayed()
    with opu.open(relay.uri) as remote:
        for _ in range(20):
            relay.cut()
            session = remote.open_session(CONFIG)
            relay.cut()
            session.close()
        wait_until(lambda: toy.open_sessions == 0)
    assert toy.opened == 20


def test_a_greeting_that_was_lost_is_said_again(relayed):
    _, relay = relayed()
    for _ in range(20):
        relay.cut()
        with opu.open(relay.uri + "?timeout_s=60") as remote:
            assert remote.describe().device_id == "toy"


def test_who_stays_away_is_forgotten(relayed, toy):
    server, relay = relayed(expire_s=0.4)
    remote = opu.open(relay.uri + "?reconnect_s=0")
    session = remote.open_session(CONFIG)
    relay.cut()
    wait_until(lambda: server.snapshot().counters.expired == 1)
    wait_until(lambda: toy.open_sessions == 0)
    with pytest.raises(UnreachableError, match="is gone"):
        session.project(X)
    remote.close()


# Servers that are started again


def restart(toy, server, device=None):
    server.stop()
    return OpuServer(device or toy, server.uri, ServerLimits(drain_s=0.5))


def test_a_server_that_is_stopped_and_started_again(serve, toy):
    server = serve()
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        session.project(X)
        with restart(toy, server) as again:
            np.testing.assert_array_equal(session.project(X).frames, toy_frames(X, 3, CONFIG))
            assert again.snapshot().counters.resumed == 0
            assert (toy.opened, toy.open_sessions) == (2, 1)
            session.close()


def test_a_session_that_cannot_be_opened_again_fails_alone(serve, toy):
    server = serve()
    with opu.open(server.uri) as remote:
        small, large = (remote.open_session(SessionConfig(n_features=10, n_outputs=n)) for n in (5, 9))
        server.stop()
        with OpuServer(StingyDevice(), server.uri):
            np.testing.assert_array_equal(small.project(X).frames, toy_frames(X, 0, small.config))
            with pytest.raises(ClosedError, match="could not be opened again"):
                large.project(X)
            with pytest.raises(ClosedError, match="could not be opened again"):
                large.submit(X)
            assert small.project(X).frames.shape == (3, 5)


class StingyDevice(ToyDevice):
    def _open_session(self, config):
        if config.n_outputs > 5:
            raise ConfigError("So many outputs are too many.", "Use 5.")
        return super()._open_session(config)


def test_another_device_is_not_taken_for_the_same(serve, toy):
    server = serve()
    other = ToyDevice(msgspec.structs.replace(TOY_DESCRIPTION, device_id="toy 2"))
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session, restart(toy, server, other):
        with pytest.raises(MediumChangedError, match="toy 2"):
            session.project(X)
        with pytest.raises(MediumChangedError, match="toy 2"):
            remote.open_session(CONFIG)


def test_a_server_that_stays_away_is_given_up(serve):
    server = serve()
    remote = opu.open(server.uri + "?reconnect_s=0.3")
    session = remote.open_session(CONFIG)
    server.stop()
    started_s = time.monotonic()
    with pytest.raises(UnreachableError, match=r"no coming back for 0\.3 s") as caught:
        session.project(X)
    assert time.monotonic() - started_s < 30
    assert "opu serve" in caught.value.remedy
    remote.close()


def test_closing_does_not_wait_for_a_server_that_is_away(serve, toy):
    server = serve()
    remote = opu.open(server.uri)
    session = remote.open_session(CONFIG)
    toy.gate.clear()
    future = session.submit(X)
    wait_until(lambda: server.snapshot().queued == 1)
    toy.gate.set()
    server.stop()
    started_s = time.monotonic()
    remote.close()
    assert time.monotonic() - started_s < 10
    assert future.done()


# Cancelling and deadlines


@pytest.fixture(params=["in process", "link"])
def device(request, toy, serve):
    if request.param == "in process":
        yield toy
        return
    with opu.open(serve().uri) as remote:
        yield remote


def test_what_was_cancelled_is_not_done(device, toy):
    with device.open_session(CONFIG) as session:
        toy.gate.clear()
        first, *others = [session.submit(X) for _ in range(6)]
        wait_until(lambda: toy.waiting == 1)
        assert others[-1].cancel()
        assert others[-2].cancel()
        with pytest.raises(FutureCancelled):
            others[-1].result(60)
        toy.gate.set()
        for number, future in enumerate([first, *others[:-2]]):
            np.testing.assert_array_equal(future.result(60).frames, toy_frames(X, 3 * number, CONFIG))
        assert not first.cancel()
        np.testing.assert_array_equal(session.project(X).frames, toy_frames(X, 18, CONFIG))
    assert sorted(first for _, first in toy.projected) == [0, 3, 6, 9, 18]


def test_the_server_counts_what_was_cancelled(serve, toy):
    server = serve()
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        toy.gate.clear()
        futures = [session.submit(X) for _ in range(4)]
        wait_until(lambda: server.snapshot().queued == 4)
        assert all(future.cancel() for future in futures)
        wait_until(lambda: server.snapshot().counters.cancelled == 4)
        assert server.snapshot().queued == 0
        toy.gate.set()
        assert session.project(X).frames.shape == (3, 5)


def test_a_batch_that_is_not_begun_in_time_is_given_up(device, toy):
    with device.open_session(CONFIG) as session:
        toy.gate.clear()
        blocking = [session.submit(X) for _ in range(2)]
        late, patient = session.submit(X, deadline_s=0.05), session.submit(X, deadline_s=600.0)
        time.sleep(0.2)
        toy.gate.set()
        with pytest.raises(DeadlineError):
            late.result(60)
        assert patient.result(60).frames.shape == (3, 5)
        assert all(future.result(60) for future in blocking)
    assert sorted(first for _, first in toy.projected) == [0, 3, 9]


@pytest.mark.parametrize("deadline_s", [0, -1.0, float("nan"), "1", True])
def test_a_deadline_is_a_positive_number(device, deadline_s):
    with device.open_session(CONFIG) as session, pytest.raises(ConfigError, match="deadline"):
        session.submit(X, deadline_s=deadline_s)


def test_a_deadline_passes_while_the_server_is_away(serve, toy):
    server = serve()
    remote = opu.open(server.uri)
    session = remote.open_session(CONFIG)
    server.stop()
    with pytest.raises(DeadlineError, match="no connection"):
        session.project(X, deadline_s=0.2)
    remote.close()


def test_busy_says_when_to_try_again(serve, toy):
    server = serve(max_queued=2, max_queued_total=1)
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        toy.gate.clear()
        first = session.submit(X)
        wait_until(lambda: server.snapshot().queued == 1)
        with pytest.raises(BusyError) as caught:
            session.submit(X).result(60)
        assert 0 < caught.value.retry_s <= 10
        toy.gate.set()
        assert first.result(60)
