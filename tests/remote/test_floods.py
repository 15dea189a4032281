"""Peers that send more than anybody could answer, or read nothing: the server outlives them, and does not grow."""

import contextlib
import time

import numpy as np
import zmq
from link_helpers import HandConnection, resident_mib, toy_frames, wait_until

import opu
from opu.device import SessionConfig
from opu.remote import protocol
from opu.remote.inbox import Inbox

CONFIG = SessionConfig(n_features=10, n_outputs=5)
WIDE = SessionConfig(n_features=10, n_outputs=100_000)
X = np.eye(3, 10, dtype=np.uint8)
BITS = np.packbits(X, axis=1, bitorder="little").tobytes()
PING_OF_ZMTP = HandConnection.frame(b"\x04PING\x00\x00", 4)
STATUS = HandConnection.frame(protocol.encode(protocol.Status(request_id=2))[0])
GROWTH_LIMIT_MIB = 100


def greeted(server, config):
    """Connect by hand, say hello and open a session."""
    connection = HandConnection(server.uri)
    connection.hello()
    connection.send(protocol.OpenSession(request_id=2, config=config))
    wait_until(lambda: [client.sessions for client in server.snapshot().clients] == [1])
    return connection


def project(connection, request_id):
    message = protocol.Project(request_id=request_id, session=1, first_frame_index=0, n_features=10, batch=3)
    connection.send(message, BITS)


def test_peers_that_flood_and_reset_do_not_end_the_server(served_process):
    """ZeroMQ asserts when it answers a ping on a connection that was reset while it had stopped reading."""
    process, uri = served_process()
    with opu.open(uri + "?timeout_s=10") as device, device.open_session(CONFIG) as session:
        for _ in range(3):
            flooders = [HandConnection(uri) for _ in range(20)]
            for flooder in flooders:
                flooder.socket.settimeout(0.01)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    flooder.socket.sendall((STATUS + PING_OF_ZMTP) * 3000)
            for flooder in flooders:
                flooder.reset()
            assert session.project(X).frames.shape == (3, 5)
    assert process.poll() is None


def test_frames_that_no_message_has_are_skipped():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.bind("inproc://inbox")
        dealer.connect("inproc://inbox")
        dealer.send_multipart([b""] * 10_000)
        dealer.send_multipart([b"header", b"payload"])
        inbox = Inbox(router, max_waiting=10)
        n_fills = 0
        while not inbox.is_empty or not n_fills:
            assert not list(inbox.fill(is_readable=bool(router.poll(0))))
            n_fills += 1
            if inbox._drained:
                break
        assert n_fills > 2, "others have their turn in between"
        assert [arrival.frames for arrival in inbox.take(10)] == [[b""] * 3, [b"header", b"payload"]]


def test_a_flood_costs_little_memory(served_process):
    process, uri = served_process()
    with opu.open(uri + "?timeout_s=10") as device, device.open_session(CONFIG) as session:
        session.project(X)
        before_mib = resident_mib(process.pid)
        with HandConnection(uri) as flooder, contextlib.suppress(ConnectionError):
            for _ in range(100):
                flooder.socket.sendall(HandConnection.frame(b"") * 100_000)
        assert session.project(X).frames.shape == (3, 5)
        assert resident_mib(process.pid) - before_mib < GROWTH_LIMIT_MIB
        assert device.server_status().counters.cut_off == 1


def test_a_sender_of_too_many_messages_is_cut_off_and_others_lose_nothing(serve, toy, caplog):
    server = serve(max_waiting=50)
    with opu.open(server.uri) as remote, remote.open_session(CONFIG) as session:
        with greeted_beside(server) as flooder:
            flooder.socket.sendall(STATUS * 20_000)
            wait_until(lambda: server.snapshot().counters.cut_off == 1)
            for index in range(10):
                np.testing.assert_array_equal(session.project(X).frames, toy_frames(X, 3 * index, CONFIG))
            flooder.read_to_the_end()
        assert [client.name for client in server.snapshot().clients] != ["by hand"]
        assert len(server.snapshot().clients) == 1
    assert "more than 50 messages" in caplog.text


def greeted_beside(server):
    connection = HandConnection(server.uri)
    connection.hello()
    wait_until(lambda: len(server.snapshot().clients) == 2)
    return connection


def test_an_evicted_client_loses_its_connection(serve):
    """Otherwise what it does not read would stay in memory for as long as it likes."""
    server = serve(stall_s=0.3, expire_s=60.0)
    with greeted(server, WIDE) as lazy:
        for request_id in range(3, 3 + 64):
            project(lazy, request_id)
        wait_until(lambda: server.snapshot().queued == 0)
        request_id = 100
        while not server.snapshot().counters.evicted:
            project(lazy, request_id)
            request_id += 1
            time.sleep(0.001)
        lazy.read_to_the_end()


def test_a_client_that_only_asks_and_never_reads_is_evicted(serve, caplog):
    server = serve(stall_s=0.3, expire_s=60.0, max_waiting=10**7)
    with HandConnection(server.uri, receive_bytes=4096) as lazy, contextlib.suppress(ConnectionError):
        lazy.hello()
        while not server.snapshot().counters.evicted:
            lazy.socket.sendall(STATUS * 500)
            time.sleep(0.05)
    assert "it does not read" in caplog.text


def test_a_silent_client_that_does_not_read_loses_its_connection(serve):
    server = serve(expire_s=0.5)
    with greeted(server, WIDE) as lazy:
        for request_id in range(3, 3 + 64):  # 19 MB: more than the system keeps, and less than the server lets wait
            project(lazy, request_id)
        wait_until(lambda: server.snapshot().counters.expired == 1)
        assert lazy.read_to_the_end() < 64 * 300_000


def test_a_client_that_leaves_counts_as_one_until_it_has_read(serve):
    server = serve()
    with greeted(server, WIDE) as leaving:
        for request_id in range(3, 3 + 64):
            project(leaving, request_id)
        leaving.send(protocol.Bye(request_id=2000))
        wait_until(lambda: server.snapshot().counters.frames == 64 * 3)
        time.sleep(0.5)
        assert len(server.snapshot().clients) == 1
        n_bytes = 0
        while n_bytes < 64 * 300_000:
            n_bytes += len(leaving.socket.recv(2**20))
        wait_until(lambda: server.snapshot().clients == ())
