"""The server, seen by clients that have no manners."""

import socket
import threading
import time

import msgspec
import numpy as np
import pytest
from link_helpers import toy_frames, wait_until

import opu
from opu.device import SessionConfig
from opu.errors import DeviceError, LinkError, RefusedError, UriError
from opu.remote import protocol
from opu.remote.server import OpuServer, ServerLimits, parse_bind

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)


def error_of(reply, code):
    assert isinstance(reply, protocol.ErrorReply), reply
    assert reply.code == code, reply
    return reply.problem


def greeted(client, config=CONFIG):
    """Say hello and open a session; return its number."""
    assert isinstance(client.hello(), protocol.Welcome)
    return client.open_session(config).session


# Where it listens


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://0.0.0.0:5755",
        "tcp://*:5755",
        "tcp://192.168.1.7:5755",
        "tcp://[::]:5755",
        "tcp://[2001:db8::1]:5755",
        "tcp://example.org:5755",
        "tcp://localhost.example.org:5755",
        "tcp://127.1:5755",
        "tcp://127.0.0.1.:5755",
        "tcp://::1:5755",
        "tcp://[127.0.0.1]:5755",
    ],
)
def test_it_listens_on_loopback_only(toy, bind):
    with pytest.raises(RefusedError, match="no keys") as caught:
        OpuServer(toy, bind)
    assert bind in caught.value.problem
    assert "opu keygen server" in caught.value.remedy
    assert "--insecure" in caught.value.remedy
    assert caught.value.exit_status == 4


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:1e3",
        "tcp://127.0.0.1:٣",
        "tcp:127.0.0.1:5755",
        "tcp://:5755",
        "tcp://127.0.0.1:5755?timeout_s=1",
        "ipc:///tmp/opu",
        "inproc://opu",
        "127.0.0.1:5755",
        "",
    ],
)
def test_malformed_addresses_are_named(toy, bind):
    with pytest.raises(UriError) as caught:
        OpuServer(toy, bind)
    assert repr(bind) in caught.value.problem


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "tcp://localhost:0", "tcp://127.255.0.3:0", "tcp://[::1]:0"])
def test_loopback_addresses_work(serve, bind):
    server = serve(bind)
    assert parse_bind(server.uri) == server.uri
    with opu.open(server.uri) as remote:
        assert remote.describe().device_id == "toy"


def test_an_address_in_use_is_named(serve, toy):
    server = serve()
    with pytest.raises(LinkError, match="in use") as caught:
        OpuServer(toy, server.uri).start()
    assert server.uri in caught.value.problem


def test_it_starts_once(serve):
    server = serve()
    with pytest.raises(opu.OpuError, match="started before"):
        server.start()
    server.stop()
    server.stop()


# Messages


def test_a_conversation(serve, raw):
    client = raw(serve().uri)
    session = greeted(client)
    number = client.project(session, X, first=7)
    reply, payload = client.receive()
    assert (reply.request_id, reply.batch, reply.n_outputs, reply.dtype) == (number, 3, 5, "uint8")
    np.testing.assert_array_equal(protocol.read_frames(reply, payload), toy_frames(X, 7, CONFIG))
    assert isinstance(client.ask(protocol.CloseSession(request_id=50, session=session)), protocol.Done)
    assert isinstance(client.ask(protocol.Ping(request_id=51)), protocol.Pong)
    assert isinstance(client.ask(protocol.Bye(request_id=52)), protocol.Done)
    assert isinstance(client.ask(protocol.Ping(request_id=53)), protocol.Goodbye)


def test_strangers_are_told_to_open_the_device_again(serve, raw):
    client = raw(serve().uri)
    for message in (protocol.Ping(request_id=1), protocol.Status(request_id=2), protocol.Bye(request_id=3)):
        assert isinstance(client.ask(message), protocol.Goodbye)
    client.project(1, X)
    assert isinstance(client.receive()[0], protocol.Goodbye)


def test_another_version_is_answered_with_both(serve, raw):
    server = serve()
    client = raw(server.uri)
    hello = {"type": "hello", "request_id": 9, "version": (0, 3), "software": "later", "name": "x", "new": [1]}
    client.socket.send(msgspec.msgpack.encode(hello))
    reply, _ = client.receive()
    assert (reply.request_id, reply.code) == (9, "version")
    assert "0.3" in reply.problem
    assert "1.0" in reply.problem
    assert server.snapshot().clients == ()
    assert isinstance(client.hello(), protocol.Welcome)


def test_an_error_with_a_name_that_is_no_text_reaches_its_client(serve, toy):
    """Python has lone surrogates where the name of a file is not UTF-8, and no message can hold them."""
    toy.error = DeviceError("Cannot read '/data/\udcff'.", "Rename it.")
    with opu.open(serve().uri) as device, device.open_session(CONFIG) as session:
        future = session.submit(X)
        with pytest.raises(DeviceError, match=r"Cannot read '/data/\\udcff'"):
            future.result(timeout=60)


def test_hello_is_said_once(serve, raw):
    client = raw(serve().uri)
    client.hello()
    assert "before" in error_of(client.hello(), "protocol")
    assert isinstance(client.ask(protocol.Ping(request_id=99)), protocol.Pong)


@pytest.mark.parametrize(
    ("first", "n_features", "batch", "patterns", "code", "complaint"),
    [
        (0, 9, None, X[:, :9], "pattern_shape", "9 features, the session has 10"),
        (0, 10, None, np.ones((3, 16)), "pattern_value", "beyond the last of 10"),
        (2**62, 10, None, X, "config", "first_frame_index is 4611686018427387904"),
        (0, 10, None, np.zeros((65, 10)), "capacity", "65 patterns"),
        (0, 10, 4, X, "protocol", "6 bytes where its header promises 8"),
    ],
)
def test_bad_projections_fail_as_in_process(serve, raw, first, n_features, batch, patterns, code, complaint):
    client = raw(serve().uri)
    session = greeted(client)
    number = client.project(session, patterns, first, n_features, batch)
    reply, _ = client.receive()
    assert reply.request_id == number
    assert complaint in error_of(reply, code)
    client.project(session, X)
    assert isinstance(client.receive()[0], protocol.Frames)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"n_features": 2000}, "capacity"),
        ({"n_outputs": 10**7}, "capacity"),
        ({"n_features": -1}, "config"),
        ({"light": "dim"}, "config"),
        ({"layout": "x" * 1000}, "config"),
        ({"n_features": "ten"}, "protocol"),
        ({"region": [0, 0, 1, 1]}, "protocol"),
    ],
)
def test_bad_configurations_fail_as_in_process(serve, raw, changes, code):
    client = raw(serve().uri)
    client.hello()
    config = msgspec.to_builtins(CONFIG) | changes
    client.socket.send(msgspec.msgpack.encode({"type": "open_session", "request_id": 5, "config": config}))
    reply, _ = client.receive()
    assert reply.request_id == 5
    error_of(reply, code)
    assert isinstance(client.open_session(CONFIG), protocol.SessionOpened)


def test_sessions_of_others_are_out_of_reach(serve, raw):
    server = serve()
    one, other = raw(server.uri), raw(server.uri)
    session = greeted(one)
    other.hello()
    other.project(session, X)
    assert f"Session {session}" in error_of(other.receive()[0], "closed")
    error_of(other.ask(protocol.CloseSession(request_id=9, session=session)), "closed")
    one.project(session, X)
    assert isinstance(one.receive()[0], protocol.Frames)


def test_a_closed_session_refuses(serve, raw):
    client = raw(serve().uri)
    session = greeted(client)
    assert isinstance(client.ask(protocol.CloseSession(request_id=90, session=session)), protocol.Done)
    client.project(session, X)
    error_of(client.receive()[0], "closed")


def test_the_number_of_an_unanswered_request_is_taken(serve, toy, raw):
    client = raw(serve().uri)
    session = greeted(client)
    toy.gate.clear()
    number = client.project(session, X)
    client.last_id -= 1
    client.project(session, X)
    assert f"Request {number}" in error_of(client.receive()[0], "protocol")
    toy.gate.set()
    assert isinstance(client.receive()[0], protocol.Frames)


# Limits


def test_full_queues_say_busy(serve, toy, raw):
    server = serve(max_queued=5, max_queued_total=8)
    toy.gate.clear()
    clients = [raw(server.uri), raw(server.uri)]
    sessions = [greeted(client) for client in clients]
    sent, refused = [], []
    for client, session, n_refused in zip(clients, sessions, [4, 6], strict=True):
        sent.append([client.project(session, X) for _ in range(9)])
        refused.append([client.receive()[0] for _ in range(n_refused)])
    assert "5 unanswered requests" in error_of(refused[0][0], "busy")
    assert "queue of the server is full" in error_of(refused[1][0], "busy")
    assert server.snapshot().queued == 8
    toy.gate.set()
    for client, session, numbers, busy in zip(clients, sessions, sent, refused, strict=True):
        answered = [client.receive()[0] for _ in range(9 - len(busy))]
        assert all(isinstance(reply, protocol.Frames) for reply in answered)
        assert sorted(reply.request_id for reply in [*answered, *busy]) == numbers
        client.project(session, X)
        assert isinstance(client.receive()[0], protocol.Frames)


def test_the_bytes_in_the_queue_are_bounded(serve, toy, raw):
    server = serve(max_queued_bytes=20)
    toy.gate.clear()
    client = raw(server.uri)
    session = greeted(client)
    for n_queued in (1, 2):  # these go to the device
        client.project(session, X)
        wait_until(lambda n_queued=n_queued: server.snapshot().queued == n_queued)
    for _ in range(4):  # six bytes each
        client.project(session, X)
    assert "queue of the server is full" in error_of(client.receive()[0], "busy")
    toy.gate.set()
    assert [type(client.receive()[0]) for _ in range(5)] == [protocol.Frames] * 5


def test_sessions_and_clients_are_bounded(serve, raw):
    server = serve(max_sessions=2, max_clients=2)
    clients = [raw(server.uri) for _ in range(3)]
    sessions = [greeted(client) for client in clients[:2]]
    clients[0].open_session(CONFIG)
    assert "2 open sessions" in error_of(clients[0].open_session(CONFIG), "busy")
    assert "2 clients" in error_of(clients[2].hello(), "busy")
    clients[0].ask(protocol.CloseSession(request_id=90, session=sessions[0]))
    assert isinstance(clients[0].open_session(CONFIG), protocol.SessionOpened)
    clients[1].ask(protocol.Bye(request_id=90))
    wait_until(lambda: len(server.snapshot().clients) == 1)
    assert isinstance(clients[2].hello(), protocol.Welcome)


def hello(raw_client, role, token=None):
    features = ("resume",) if token else ()
    message = protocol.Hello(
        request_id=raw_client.number(),
        version=protocol.PROTOCOL_VERSION,
        software="test",
        name=role,
        role=role,
        features=features,
        token=token,
    )
    return raw_client.ask(message)


def test_a_full_server_can_be_looked_at(serve, raw):
    """A few places are for observers, and an observer in one of them does not become a user."""
    server = serve(max_clients=1, observer_places=2)
    assert isinstance(hello(raw(server.uri), "user"), protocol.Welcome)
    assert "1 clients" in error_of(hello(raw(server.uri), "user"), "busy")
    observer = raw(server.uri)
    assert isinstance(hello(observer, "observer", "0123456789abcdef" * 2), protocol.Welcome)
    assert isinstance(hello(raw(server.uri), "observer"), protocol.Welcome)
    assert "role 'observer'" in error_of(hello(raw(server.uri), "observer"), "busy")
    assert "role 'user'" in error_of(hello(raw(server.uri), "user", "0123456789abcdef" * 2), "busy")
    assert isinstance(hello(raw(server.uri), "observer", "0123456789abcdef" * 2), protocol.Welcome)
    assert server.snapshot().counters.turned_away["too_many_clients"] == 3
    assert [client.role for client in server.snapshot().clients] == ["user", "observer", "observer"]


def test_observers_leave_their_places_to_users_who_come_back(serve, raw):
    server = serve(max_clients=1, observer_places=1)
    token = "fedcba9876543210" * 2
    assert isinstance(hello(raw(server.uri), "user", token), protocol.Welcome)
    assert isinstance(hello(raw(server.uri), "observer"), protocol.Welcome)
    assert isinstance(hello(raw(server.uri), "user", token), protocol.Welcome)


def test_observers_do_not_take_the_places_of_users(serve, raw):
    """Whoever comes first: only those observers count that are more than have places of their own."""
    server = serve(max_clients=2, observer_places=2)
    for _ in range(3):
        assert isinstance(hello(raw(server.uri), "observer"), protocol.Welcome)
    assert isinstance(hello(raw(server.uri), "user"), protocol.Welcome)
    assert "role 'user'" in error_of(hello(raw(server.uri), "user"), "busy")
    assert "role 'observer'" in error_of(hello(raw(server.uri), "observer"), "busy")


def test_the_compiled_memory_of_a_client_is_bounded(serve, toy, raw):
    server = serve(max_compiled_bytes=5 * 2**20)
    toy.compiled_bytes = 2 * 2**20
    one, other = raw(server.uri), raw(server.uri)
    first = greeted(one)
    one.open_session(CONFIG)
    refusal = one.open_session(CONFIG)
    assert "6.0 MiB" in error_of(refusal, "capacity")
    assert "may hold 5.0 MiB" in refusal.problem
    assert "Close a session" in refusal.remedy
    wait_until(lambda: toy.open_sessions == 2)
    assert isinstance(other.hello(), protocol.Welcome)
    assert isinstance(other.open_session(CONFIG), protocol.SessionOpened)
    one.ask(protocol.CloseSession(request_id=90, session=first))
    assert isinstance(one.open_session(CONFIG), protocol.SessionOpened)


def test_a_client_may_have_as_many_simulated_sessions_as_promised(raw):
    limits = ServerLimits(expire_s=120)
    with opu.open("sim:?preset=aurora") as device, OpuServer(device, "tcp://127.0.0.1:0", limits) as server:
        client = raw(server.uri)
        client.hello()
        for key in range(limits.max_sessions):
            config = SessionConfig(n_features=784, n_outputs=1000, noise_key=key)
            client.send(protocol.OpenSession(request_id=100 + key, config=config))
        replies = [client.receive(timeout_s=60)[0] for _ in range(limits.max_sessions)]
        assert [reply for reply in replies if not isinstance(reply, protocol.SessionOpened)] == []


def test_too_large_messages_end_the_connection_unread(serve, raw):
    server = serve(max_payload_bytes=100_000)
    large, other = raw(server.uri), raw(server.uri)
    greeted(large)
    session = greeted(other)
    large.socket.send_multipart([b"header", bytes(100_001)])
    other.project(session, X)
    assert isinstance(other.receive()[0], protocol.Frames)
    assert large.receive(0.2) is None


def test_control_requests_of_a_client_that_floods_are_bounded(serve, toy, raw):
    server = serve(max_queued=2, max_sessions=2)
    client = raw(server.uri)
    session = greeted(client)
    toy.gate.clear()
    client.project(session, X)
    for number in range(100, 200):
        client.send(protocol.CloseSession(request_id=number, session=77))
    error_of(client.receive()[0], "busy")
    toy.gate.set()
    replies = [client.receive()[0] for _ in range(100)]
    assert sorted(type(reply).__name__ for reply in replies) == ["ErrorReply"] * 99 + ["Frames"]


# Turns


def test_clients_take_turns(serve, toy, raw):
    server = serve()
    toy.gate.clear()
    clients = [raw(server.uri), raw(server.uri)]
    sessions = [greeted(c, msgspec.structs.replace(CONFIG, noise_key=key)) for key, c in enumerate(clients)]
    for index in range(10):
        clients[0].project(sessions[0], X, first=index)
    wait_until(lambda: server.snapshot().queued == 10)
    for index in range(3):
        clients[1].project(sessions[1], X, first=index)
    wait_until(lambda: server.snapshot().queued == 13)
    toy.gate.set()
    wait_until(lambda: server.snapshot().queued == 0)
    order = [key for key, _ in toy.projected]
    assert order[:2] == [0, 0]  # with the device before the other came
    assert sorted(order[2:8]) == [0, 0, 0, 1, 1, 1]
    assert [first for key, first in toy.projected if key == 0] == list(range(10))


def test_a_large_batch_makes_way_for_others_and_its_frames_are_the_same(serve, toy, raw):
    server = serve()
    greedy, modest = raw(server.uri), raw(server.uri)
    long, short = greeted(greedy), greeted(modest, msgspec.structs.replace(CONFIG, noise_key=1))
    patterns = np.random.default_rng(0).integers(0, 2, (64, 10))
    toy.delay_s = 0.02  # for a part: the first ones have 16 frames, and the quantum is 5 ms
    toy.gate.clear()
    greedy.project(long, patterns, first=100)
    wait_until(lambda: server.snapshot().queued == 1)
    modest.project(short, X, first=7)
    wait_until(lambda: server.snapshot().queued == 2)
    toy.gate.set()
    reply, frames = greedy.receive()
    np.testing.assert_array_equal(np.frombuffer(frames, np.uint8).reshape(64, -1), toy_frames(patterns, 100, CONFIG))
    assert reply.provenance.n_frames == 64
    assert reply.provenance.first_frame_index == 100
    assert reply.provenance.device_us == 6400
    keys = [key for key, _ in toy.projected]
    assert keys.index(1) < len(keys) - 1  # not behind everything
    starts = [first for key, first in toy.projected if key == 0]
    assert starts[:2] == [100, 116]
    assert starts == sorted(starts)
    assert server.snapshot().queued == 0


def test_a_client_alone_keeps_its_batches_whole(serve, toy, raw):
    client = raw(serve().uri)
    client.project(greeted(client), np.ones((64, 10)), first=3)
    client.receive()
    assert toy.projected == [(0, 3)]


def test_a_batch_of_which_a_part_fails_is_refused_once(serve, toy, raw):
    server = serve()
    client, other = raw(server.uri), raw(server.uri)
    session = greeted(client)
    greeted(other)
    toy.error = DeviceError("The laser is off.", "Switch it on.")
    client.project(session, np.ones((64, 10)))
    refusal = client.receive()[0]
    assert refusal.code == "device"
    toy.error = None
    client.project(session, X)
    assert type(client.receive()[0]).__name__ == "Frames"
    assert server.snapshot().queued == 0
    assert server.snapshot().counters.refusals == 1


# Clients that vanish, sleep, or do not read


def test_a_silent_client_expires(serve, toy, raw):
    server = serve(expire_s=0.3)
    client = raw(server.uri)
    greeted(client)
    wait_until(lambda: toy.open_sessions == 1)
    reply, _ = client.receive()
    assert isinstance(reply, protocol.Goodbye)
    assert "0.3 s" in reply.problem
    wait_until(lambda: toy.open_sessions == 0)
    assert (server.snapshot().counters.expired, server.snapshot().clients) == (1, ())
    assert isinstance(client.hello(), protocol.Welcome)


def test_a_client_that_pings_does_not_expire(serve):
    server = serve(expire_s=0.8)
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        time.sleep(1.7)
        assert session.project(X).frames.shape == (3, 5)
    assert server.snapshot().counters.expired == 0


def test_a_client_that_vanishes_leaves_nothing(serve, toy, raw):
    server = serve(expire_s=0.6)
    toy.delay_s = 0.02
    client = raw(server.uri)
    session = greeted(client)
    for _ in range(20):
        client.project(session, X)
    wait_until(lambda: server.snapshot().queued > 10)
    client.socket.close()
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as other:
        for index in range(10):
            np.testing.assert_array_equal(other.project(X).frames, toy_frames(X, 3 * index, CONFIG))
    wait_until(lambda: toy.open_sessions == 0 and server.snapshot().clients == ())  # the polite one leaves as well
    assert server.snapshot().queued == 0


def test_a_session_that_opens_for_a_client_that_has_gone_is_closed(serve, toy, raw):
    server = serve(expire_s=0.1)
    toy.open_delay_s = 1.0
    client = raw(server.uri)
    client.hello()
    client.send(protocol.OpenSession(request_id=2, config=CONFIG))
    wait_until(lambda: server.snapshot().clients == (), 60)
    wait_until(lambda: toy.opened == 1 and toy.open_sessions == 0, 60)


def test_bye_is_answered_after_a_session_that_is_being_opened(serve, toy, raw):
    server = serve()
    toy.open_delay_s = 0.1
    client = raw(server.uri)
    client.hello()
    client.send(protocol.OpenSession(request_id=2, config=CONFIG))
    client.send(protocol.Bye(request_id=3))
    assert [type(client.receive(60)[0]) for _ in range(2)] == [protocol.SessionOpened, protocol.Done]
    wait_until(lambda: toy.open_sessions == 0, 60)


def test_a_client_that_never_reads_is_evicted_and_others_lose_nothing(serve, raw, caplog):
    server = serve(stall_s=0.5, max_queued=1000, max_queued_total=1000, expire_s=60.0)
    wide = SessionConfig(n_features=10, n_outputs=100_000)
    lazy = raw(server.uri, receive_limit=1)
    session = greeted(lazy, wide)
    for _ in range(500):  # 150 MB of replies, more than all buffers on the way take
        lazy.project(session, X)
    with opu.open(server.uri) as remote, remote.open_session(wide) as other:
        rounds = 0
        while server.snapshot().counters.evicted == 0:
            np.testing.assert_array_equal(
                other.project(X, first_frame_index=rounds).frames, toy_frames(X, rounds, wide)
            )
            rounds += 1
            assert rounds < 5000
        assert other.project(X).frames.shape == (3, 100_000)
        assert [client.name for client in server.snapshot().clients] != ["raw"]
        assert server.snapshot().counters.refusals == 0
    assert "evicted" in caplog.text
    assert server.snapshot().queued == 0


# Stopping


def test_stopping_answers_what_was_accepted(serve, toy, raw):
    server = serve(drain_s=10.0)
    toy.delay_s = 0.01
    client = raw(server.uri)
    session = greeted(client)
    numbers = [client.project(session, X) for _ in range(20)]
    wait_until(lambda: server.snapshot().queued + server.snapshot().counters.frames // 3 == 20)
    server.stop()
    replies = [client.receive()[0] for _ in range(21)]
    assert [reply.request_id for reply in replies[:20]] == numbers
    assert all(isinstance(reply, protocol.Frames) for reply in replies[:20])
    assert isinstance(replies[20], protocol.Goodbye)
    assert toy.open_sessions == 0


def test_stopping_refuses_what_it_has_no_time_for(serve, toy, raw):
    server = serve(drain_s=0.2)
    toy.delay_s = 0.05
    client = raw(server.uri)
    session = greeted(client)
    numbers = [client.project(session, X) for _ in range(30)]
    wait_until(lambda: server.snapshot().queued + server.snapshot().counters.frames // 3 == 30)
    started_s = time.monotonic()
    server.stop()
    assert time.monotonic() - started_s < 3
    replies = [client.receive()[0] for _ in range(31)]
    assert sorted(reply.request_id for reply in replies[:30]) == numbers
    kinds = {type(reply) for reply in replies[:30]}
    assert kinds == {protocol.Frames, protocol.ErrorReply}
    for reply in replies[:30]:
        if isinstance(reply, protocol.ErrorReply):
            assert "was stopped" in error_of(reply, "unreachable")


def no_session_threads():
    return not any(thread.name.startswith("opu-server-session") for thread in threading.enumerate())


def test_stopping_does_not_wait_for_sessions_that_are_being_opened(serve, toy, raw, caplog):
    server = serve(drain_s=0.2)
    client = raw(server.uri)
    greeted(client)
    toy.open_delay_s = 5.0
    for number in range(70, 75):  # one more than the server opens at a time
        client.send(protocol.OpenSession(request_id=number, config=CONFIG))
    assert isinstance(client.ask(protocol.Ping(request_id=80)), protocol.Pong)
    started_s = time.monotonic()
    server.stop()
    assert time.monotonic() - started_s < 4
    assert toy.open_sessions == 0  # those that hang do not keep others from being closed
    assert "sessions still being opened: 5;" in caplog.text
    assert "was stopped" in error_of(client.receive()[0], "unreachable")
    wait_until(no_session_threads)
    assert toy.open_sessions == 0


def test_a_session_that_opens_when_the_server_listens_no_more_is_closed(serve, toy, raw, monkeypatch):
    server = serve(drain_s=0.2)
    toy.open_delay_s = 0.5
    say_goodbye = server._broker.say_goodbye_to_all

    def say_goodbye_late():
        wait_until(lambda: toy.open_sessions == 1 and server._posted)
        say_goodbye()

    monkeypatch.setattr(server._broker, "say_goodbye_to_all", say_goodbye_late)
    client = raw(server.uri)
    client.hello()
    client.send(protocol.OpenSession(request_id=70, config=CONFIG))
    assert isinstance(client.ask(protocol.Ping(request_id=71)), protocol.Pong)
    server.stop()
    assert "was stopped" in error_of(client.receive()[0], "unreachable")
    assert toy.open_sessions == 0


def test_stopping_waits_for_sessions_that_close_slowly(serve, toy, raw):
    server = serve()
    client = raw(server.uri)
    greeted(client)
    client.open_session(CONFIG)
    toy.close_delay_s = 1.6
    server.stop()
    assert toy.open_sessions == 0


def test_stopping_does_not_wait_for_ever_for_sessions_to_close(serve, toy, raw, caplog):
    server = serve(closing_s=0.2)
    client = raw(server.uri)
    greeted(client)
    for _ in range(5):
        client.open_session(CONFIG)
    toy.close_delay_s = 2.0
    started_s = time.monotonic()
    server.stop()
    assert time.monotonic() - started_s < 1.8
    assert "sessions still being closed: 6;" in caplog.text
    wait_until(no_session_threads)


def test_while_it_stops_new_requests_are_refused(serve, toy, raw):
    server = serve(drain_s=60.0)
    client = raw(server.uri)
    session = greeted(client)
    toy.gate.clear()
    first = client.project(session, X)
    wait_until(lambda: server.snapshot().queued == 1)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    wait_until(lambda: server.snapshot().draining)
    error_of(client.ask(protocol.OpenSession(request_id=70, config=CONFIG)), "unreachable")
    client.project(session, X)
    error_of(client.receive()[0], "unreachable")
    error_of(raw(server.uri).hello(), "unreachable")
    toy.gate.set()
    assert client.receive()[0].request_id == first
    stopper.join(60)
    assert not server.is_running


def test_it_serves_in_the_foreground(toy):
    server = OpuServer(toy, "tcp://127.0.0.1:0")
    with pytest.raises(opu.OpuError, match="not been started"):
        server.uri  # noqa: B018
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server._uri is not None)
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        np.testing.assert_array_equal(session.project(X).frames, toy_frames(X, 0, CONFIG))
    server.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_device_that_fails_to_describe_itself_is_a_failure_of_the_server(serve, toy, raw, monkeypatch):
    client = raw(serve().uri)
    with monkeypatch.context() as patch:
        patch.setattr(toy, "describe", lambda: 1 / 0)
        assert "ZeroDivisionError" in error_of(client.hello(), "server_failure")
    assert isinstance(client.hello(), protocol.Welcome)


def test_a_session_that_fails_to_describe_itself_is_closed(serve, toy, raw, monkeypatch):
    client = raw(serve().uri)
    client.hello()
    with monkeypatch.context() as patch:
        patch.setattr("link_helpers.ToySession.describe", lambda _: 1 / 0)
        assert "ZeroDivisionError" in error_of(client.open_session(CONFIG), "server_failure")
    wait_until(lambda: toy.open_sessions == 0)


def test_a_client_that_has_left_is_refused_nothing(serve, toy, raw, monkeypatch):
    server = serve(expire_s=0.2)
    toy.open_delay_s = 0.6
    monkeypatch.setattr("link_helpers.ToySession.describe", lambda _: 1 / 0)
    client = raw(server.uri)
    client.hello()
    client.send(protocol.OpenSession(request_id=70, config=CONFIG))
    wait_until(lambda: server.snapshot().counters.expired == 1)
    wait_until(lambda: toy.opened == 1 and toy.open_sessions == 0)
    server.stop()
    assert server.snapshot().counters.refusals == 0


def test_a_session_that_cannot_be_closed_harms_nobody(serve, raw, monkeypatch, caplog):
    client = raw(serve().uri)
    session = greeted(client)
    with monkeypatch.context() as patch:
        patch.setattr("link_helpers.ToySession._close", lambda _: 1 / 0)
        assert isinstance(client.ask(protocol.CloseSession(request_id=90, session=session)), protocol.Done)
    assert "closing a session failed" in caplog.text
    assert isinstance(client.open_session(CONFIG), protocol.SessionOpened)


def test_a_server_may_serve_a_remote_device(serve):
    with opu.open(serve().uri) as remote, OpuServer(remote, "tcp://127.0.0.1:0") as second, opu.open(second.uri) as far:
        with far.open_session(CONFIG) as session:
            futures = [session.submit(X) for _ in range(20)]
            for index, future in enumerate(futures):
                np.testing.assert_array_equal(future.result().frames, toy_frames(X, 3 * index, CONFIG))
        with far.open_session(CONFIG) as session, pytest.raises(opu.errors.CapacityError):
            session.project(np.zeros((65, 10)))


# Garbage that reads like a name


def test_names_cannot_steer_the_log(serve, raw, caplog):
    caplog.set_level("INFO", "opu.remote.server")
    raw(serve().uri).hello("\x1b[31m<script>\n[bold]é")
    assert r"'\x1b[31m<script>\n[bold]\xe9'" in caplog.text


def test_a_port_scan_does_no_harm(serve):
    server = serve()
    address = ("127.0.0.1", int(server.uri.rpartition(":")[2]))
    for _ in range(50):
        socket.create_connection(address, timeout=5).close()
    with opu.open(server.uri) as remote:
        assert remote.describe().device_id == "toy"


def test_bye_is_said_once(serve, toy, raw):
    client = raw(serve().uri)
    session = greeted(client)
    toy.gate.clear()
    first = client.project(session, X)
    client.send(protocol.Bye(request_id=81))
    assert "before" in error_of(client.ask(protocol.Bye(request_id=82)), "protocol")
    toy.gate.set()
    assert client.receive()[0].request_id == first
    assert client.receive()[0] == protocol.Done(request_id=81)


@pytest.mark.parametrize("name", ["handle", "work"])
def test_a_fault_of_the_broker_does_not_end_the_server(serve, raw, monkeypatch, caplog, name):
    server = serve()
    faults = []

    def fail(*_):
        faults.append(1)
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(server._broker, name, fail)
        raw(server.uri).send(protocol.Ping(request_id=1))
        wait_until(lambda: faults)
    assert isinstance(raw(server.uri).hello(), protocol.Welcome)
    assert "a bug" in caplog.text
