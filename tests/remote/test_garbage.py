"""Random bytes on the port: the server goes on to answer others, and does not grow."""

import json
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from link_helpers import RawClient, resident_mib

import opu
from opu.device import SessionConfig
from opu.remote import protocol

N = 10_000
GROWTH_LIMIT_MIB = 80  # opening sessions takes some 20 MiB now and then, and gives them back
CONFIG = SessionConfig(n_features=50, n_outputs=100)
OTHER = SessionConfig(n_features=255, n_outputs=255)
X = np.tri(20, 50, dtype=np.uint8)
VECTORS = [
    [bytes.fromhex(frame) for frame in frames]
    for frames in json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8")).values()
]
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(23, b"\x00") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


@pytest.fixture
def watched_server(served_process):
    """A server in a process of its own. Afterwards it still gives the right bytes, in time, and has not grown."""
    process, uri = served_process()
    with opu.open(uri + "?timeout_s=2") as device, device.open_session(CONFIG) as session:
        expected = session.project(X, first_frame_index=0).frames
        for _ in range(8):  # the messages below open sessions as well: each thread that does has memory of its own
            device.open_session(OTHER).close()
        before_mib = resident_mib(process.pid)

        def check():
            started_s = time.monotonic()
            np.testing.assert_array_equal(session.project(X, first_frame_index=0).frames, expected)
            assert time.monotonic() - started_s < 2
            assert process.poll() is None

        yield uri, check
        check()
        assert resident_mib(process.pid) - before_mib < GROWTH_LIMIT_MIB
        status = device.server_status()
        # This one, and two that may have said hello by chance. Those that brought a token by chance may be away.
        assert sum(client.connected for client in status.clients) <= 3
        assert status.queued == 0


def test_random_bytes_on_the_port(watched_server):
    uri, check = watched_server
    address = ("127.0.0.1", int(uri.rpartition(":")[2]))
    source = random.Random(20)
    for number in range(N):
        start = source.choice([b"", GREETING[: source.randrange(64)], GREETING, GREETING + READY])
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(start + source.randbytes(source.randrange(1, 300)))
        if number % 500 == 0:
            check()


def damaged(source, frames):
    frames = [bytearray(frame) for frame in frames]
    for _ in range(source.randrange(4)):
        frame = source.choice(frames)
        if frame:
            frame[source.randrange(len(frame))] = source.randrange(256)
    if source.random() < 0.2:
        frames.insert(source.randrange(len(frames) + 1), bytearray(source.randbytes(source.randrange(20))))
    return [bytes(frame) for frame in frames]


def read_the_rest(client):
    """Say bye until that is answered, and count the errors that still come."""
    errors = 0
    for _ in range(12):
        client.send(protocol.Bye(request_id=2**40))
        while received := client.receive():
            if isinstance(received[0], (protocol.Goodbye, protocol.Done)):
                return errors
            errors += isinstance(received[0], protocol.ErrorReply)
        # The other connection has come with the same token by chance, and so ended this one and what was on its way.
    raise AssertionError("it does not answer")


def test_random_messages(watched_server):
    uri, check = watched_server
    source = random.Random(21)
    errors = 0
    with RawClient(uri) as stranger, RawClient(uri) as known:
        known.hello()
        for number in range(N):
            client = source.choice([stranger, known])
            if source.random() < 0.5:
                frames = [source.randbytes(source.randrange(200)) for _ in range(source.randrange(1, 6))]
            else:
                frames = damaged(source, source.choice(VECTORS))
            client.socket.send_multipart(frames)
            while client.socket.poll(0):
                reply, _ = protocol.decode_reply(client.socket.recv_multipart())
                errors += isinstance(reply, protocol.ErrorReply)
            if number % 500 == 0:
                check()
        errors += sum(read_the_rest(client) for client in (stranger, known))
    assert errors > N / 4
