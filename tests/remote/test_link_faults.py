"""What a client does when the other side is absent, dies, or talks nonsense."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import zmq
from link_helpers import TOY_DESCRIPTION, wait_until

import opu
from opu.device import SessionConfig
from opu.errors import (
    ClosedError,
    LinkError,
    ProtocolError,
    ServerFailureError,
    UnreachableError,
    UriError,
    VersionMismatchError,
)
from opu.remote import BACKEND, aio, client, handshake, protocol
from opu.remote.conversation import Conversation
from opu.remote.dealer import how_to_reach
from opu.remote.handshake import REFUSED_S, ConnectionWatch
from opu.remote.server import parse_bind
from opu.remote.sockets import has_input

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Nobody there


@pytest.mark.parametrize("listening", [False, True])
def test_nobody_answers(listening):
    """Neither where nothing listens nor where something else does."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if listening:
            other.listen()
        started_s = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            opu.open(f"tcp://127.0.0.1:{port}?timeout_s=0.4")
    assert 0.35 < time.monotonic() - started_s < 2
    assert f"tcp://127.0.0.1:{port}" in caught.value.problem
    assert "0.4 s" in caught.value.problem
    assert "opu serve" in caught.value.remedy
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("host", ["host.invalid", "x" * 70])
def test_an_unknown_host_is_named(host, monkeypatch):
    def find_none(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host == "host.invalid":  # what a machine without a network says of it differs
        monkeypatch.setattr(socket, "getaddrinfo", find_none)
    with pytest.raises(UnreachableError, match=f"{host}.* cannot be found") as caught:
        opu.open(f"tcp://{host}:5755?timeout_s=0.3")
    assert "opu serve" not in caught.value.remedy


def test_a_resolver_that_has_no_answer_for_now_is_not_an_unknown_host(monkeypatch):
    def fail(*_):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UnreachableError, match=r"optics\.example.* cannot be looked up: Temporary failure") as caught:
        opu.open("tcp://optics.example:5755")
    assert "network" in caught.value.remedy


def test_a_resolver_that_does_not_answer_is_waited_for_no_longer_than_told(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: gate.wait(10))
    started_s = time.monotonic()
    with pytest.raises(UnreachableError, match=r"optics\.example.* cannot be looked up: no answer within 0\.2 s"):
        opu.open("tcp://optics.example:5755?timeout_s=0.2")
    assert time.monotonic() - started_s < 5
    gate.set()
    wait_until(lambda: not any(thread.name.startswith("opu-resolver") for thread in threading.enumerate()))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]"])
def test_a_server_is_to_be_started_where_one_may_listen(host):
    address = f"tcp://{host}:5755"
    assert f"opu serve URI --bind {address}" in how_to_reach(address)
    assert parse_bind(address)


@pytest.mark.parametrize("host", ["192.0.2.7", "optics.example", "[2001:db8::1]"])
def test_elsewhere_a_server_is_reached_through_a_tunnel(host):
    remedy = how_to_reach(f"tcp://{host}:5755")
    assert "opu serve" not in remedy
    assert f"ssh -N -L 5755:127.0.0.1:5755 {host.strip('[]')}" in remedy


@pytest.mark.parametrize("seconds", ["0", "-1", "0.001", "1e9", "86401", "inf", "nan", "soon"])
def test_a_time_out_has_a_range(seconds):
    with pytest.raises(UriError, match=f"timeout_s='{seconds}'") as caught:
        opu.open(f"tcp://127.0.0.1:5755?timeout_s={seconds}")
    assert "0.01 to 86400" in caught.value.remedy


def test_the_longest_time_out_works(serve):
    with opu.open(serve().uri + "?timeout_s=86400") as remote:
        assert remote.describe().device_id == "toy"


@pytest.mark.parametrize(
    "uri",
    [
        "tcp:",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:5755?colour=red",
    ],
)
def test_malformed_addresses_fail_at_once(uri):
    with pytest.raises(UriError):
        opu.open(uri)


def test_a_server_that_starts_late_is_found(serve):
    """And not taken for one that has gone, because nobody listened at first."""
    port = free_port()
    threading.Timer(0.5, serve, [f"tcp://127.0.0.1:{port}"]).start()
    with opu.open(f"tcp://127.0.0.1:{port}?timeout_s=10&reconnect_s=0") as remote:
        assert remote.describe().device_id == "toy"
        assert remote.server_status().clients[0].connected
        assert remote.reconnections == 0


def test_find_tells_what_answers(serve):
    server = serve()
    assert [(found.uri, found.summary) for found in client.find_local(server.uri)] == [
        (server.uri, "toy device, served")
    ]
    server.stop()
    started_s = time.monotonic()
    assert client.find_local(server.uri) == []
    assert time.monotonic() - started_s < 1
    assert BACKEND.find() in ([], client.find_local("tcp://127.0.0.1:5755"))


@pytest.mark.parametrize("opener", [opu.open, lambda uri: asyncio.run(aio.open(uri))], ids=["blocking", "asyncio"])
def test_nobody_listens(opener):
    """The system says so, and then one does not wait for the whole time."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        uri = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        started_s = time.monotonic()
        with pytest.raises(UnreachableError, match=f"Nobody listens at {uri}") as caught:
            opener(f"{uri}?timeout_s=100&reconnect_s=100")
    assert time.monotonic() - started_s < 50
    assert "opu serve" in caught.value.remedy


def test_who_comes_back_waits_for_somebody_to_listen(serve):
    """Longer than who opens a device, because there was a server."""
    port = free_port()
    server = serve(f"tcp://127.0.0.1:{port}")
    with opu.open(f"{server.uri}?timeout_s=60&reconnect_s=60") as remote, remote.open_session(CONFIG) as session:
        server.stop()
        time.sleep(2 * REFUSED_S)
        serve(f"tcp://127.0.0.1:{port}")
        assert session.project(X).frames.shape == (3, 5)
        assert remote.reconnections == 1


# The server dies


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_fails_everything_that_waits(served_process, number):
    process, uri = served_process()
    remote = opu.open(uri + "?timeout_s=1&reconnect_s=0")
    session = remote.open_session(SessionConfig(n_features=100, n_outputs=2000))
    futures = [session.submit(np.ones((1000, 100), np.uint8)) for _ in range(100)]
    assert futures[0].result().frames.shape == (1000, 2000)
    assert not futures[-1].done()
    os.kill(process.pid, number)
    started_s = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        futures[-1].result(timeout=10)
    assert time.monotonic() - started_s < 4
    assert uri in caught.value.problem
    assert ("no sign of life for 1 s" if number == signal.SIGSTOP else "is gone") in caught.value.problem
    assert "opu serve" in caught.value.remedy
    assert "close()" in caught.value.remedy
    assert all(future.done() for future in futures)
    for attempt in (lambda: session.project(np.ones((1, 100))), lambda: remote.open_session(CONFIG)):
        with pytest.raises(UnreachableError, match=r"no sign of life|is gone"):
            attempt()
    started_s = time.monotonic()
    remote.close()
    assert time.monotonic() - started_s < 1
    with pytest.raises(ClosedError):
        remote.open_session(CONFIG)


def test_a_restarted_server_is_come_back_to(served_process):
    """Its sessions are opened again, and the same frames have the same bytes."""
    process, uri = served_process()
    with opu.open(uri) as remote, remote.open_session(CONFIG) as session:
        servers = remote.servers
        before = session.project(X, first_frame_index=5).frames
        process.kill()
        process.wait()
        future = session.submit(X, first_frame_index=5)
        served_process(bind=uri)
        np.testing.assert_array_equal(future.result(timeout=60).frames, before)
        assert (session.next_frame_index, remote.reconnections) == (8, 1)
        assert remote.servers != servers


def test_a_caller_who_waits_comes_back_to_a_restarted_server(served_process):
    """Who brings the replies of the link gives that up when the connection ends, and who comes then does not begin."""
    process, uri = served_process("sim:?preset=ideal&seed=7&realtime=1")
    with opu.open(uri) as remote, remote.open_session(CONFIG) as session, ThreadPoolExecutor(2) as pool:
        x = np.ones((2000, 10), np.uint8)
        waiting = pool.submit(session.project, x, first_frame_index=5)
        wait_until(lambda: remote.server_status().queued == 1)
        process.kill()
        process.wait()
        wait_until(lambda: not remote._link._conversation.has_connection)
        coming = pool.submit(session.project, X, first_frame_index=7)
        served_process("sim:?preset=ideal&seed=7", uri)
        np.testing.assert_array_equal(coming.result(timeout=60).frames, session.project(X, first_frame_index=7).frames)
        assert waiting.result(timeout=60).frames.shape == (2000, 5)
        assert remote.reconnections == 1


def test_a_server_that_stops_says_so(serve, toy):
    server = serve(drain_s=0.1)
    remote = opu.open(server.uri + "?reconnect_s=0")
    session = remote.open_session(CONFIG)
    toy.gate.clear()
    future = session.submit(X)
    wait_until(lambda: server.snapshot().queued == 1)
    server.stop()
    with pytest.raises(UnreachableError, match="was stopped"):
        future.result(timeout=5)
    with pytest.raises(UnreachableError, match=r"ended the link.*was stopped.*close\(\)"):
        wait_until(lambda: session.submit(X).result(timeout=5) is None)
    remote.close()


# The server talks nonsense


class Impostor:
    """A server whose answers are functions of the requests: `answers` gives a list of messages for each."""

    def __init__(self, answers):
        self._answers = answers
        self._ended = False
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self.uri = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended = True
        self._thread.join()
        self._router.close()
        self._context.term()

    def _serve(self):
        while not self._ended:
            if self._router.poll(50):
                route, *frames = self._router.recv_multipart()
                request, _ = protocol.decode_request(frames)
                for answer in self._answers(request) or []:
                    self._router.send_multipart([route, *answer])


def welcome(request, **changes):
    fields = msgspec.to_builtins(
        protocol.Welcome(
            request_id=request.request_id,
            version=protocol.PROTOCOL_VERSION,
            software="impostor",
            server_id="1",
            description=TOY_DESCRIPTION,
            limits=protocol.LinkLimits(max_payload_bytes=1000, max_sessions=1, max_queued=8, expire_s=10.0),
        )
    )
    return [msgspec.msgpack.encode(fields | changes)]


def polite(request):
    """Answer everything but projections as a server does."""
    if isinstance(request, protocol.Hello):
        return [welcome(request)]
    if isinstance(request, protocol.OpenSession):
        description = opu.device.SessionDescription(
            session_id="1",
            config=request.config,
            frame_dtype="uint8",
            frame_us=1.0,
            mirrors_per_feature=1,
            max_batch=64,
            compiled_bytes=0,
        )
        return [
            protocol.encode(protocol.SessionOpened(request_id=request.request_id, session=1, description=description))
        ]
    if isinstance(request, protocol.Ping):
        return [protocol.encode(protocol.Pong(request_id=request.request_id))]
    if isinstance(request, (protocol.CloseSession, protocol.Bye)):
        return [protocol.encode(protocol.Done(request_id=request.request_id))]
    return []


def frames_reply(request, value=1, **changes):
    """Answer a projection with frames of one value."""
    provenance = opu.device.Provenance(
        device_id="impostor",
        medium_id="none",
        medium_epoch=0,
        session_id="1",
        config=CONFIG,
        calibration_id=None,
        first_frame_index=0,
        n_frames=3,
        frame_us=1.0,
        device_start_us=0.0,
        device_us=0.0,
        started_unix_s=0.0,
        finished_unix_s=0.0,
        saturated_fraction=0.0,
        skipped_frames=0,
    )
    fields = {"request_id": request.request_id, "dtype": "uint8", "batch": 3, "n_outputs": 5} | changes
    reply = protocol.Frames(provenance=provenance, **fields)
    return protocol.encode(reply, bytes([value]) * reply.payload_bytes)


def projecting(answer):
    return lambda request: answer(request) if isinstance(request, protocol.Project) else polite(request)


@pytest.mark.parametrize("version", [(0, 2), (1, 1), (2, 0)])
def test_a_server_of_another_version_is_refused(version):
    with (
        Impostor(lambda request: [welcome(request, version=version, news=1)]) as server,
        pytest.raises(VersionMismatchError) as caught,
    ):
        opu.open(server.uri + "?timeout_s=0.3")
    assert f"{version[0]}.{version[1]}" in caught.value.problem
    assert "client version 1.0" in caught.value.problem


def test_a_server_that_refuses_our_version_is_quoted(serve, monkeypatch):
    server = serve()
    hello = Conversation.connected
    monkeypatch.setattr(Conversation, "connected", lambda conversation: aged(hello(conversation)))

    def aged(frames):
        fields = msgspec.msgpack.decode(frames[0]) | {"version": (0, 0)}
        return [msgspec.msgpack.encode(fields)]

    with pytest.raises(VersionMismatchError, match=r"client speaks version 0\.0 .* server version 1\.0"):
        opu.open(server.uri)


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: [frames_reply(request, batch=2)],
        lambda request: [frames_reply(request, n_outputs=6)],
        lambda request: [frames_reply(request, dtype="uint16")],
        lambda request: [frames_reply(request)[:1]],
        lambda request: [[frames_reply(request)[0], b"short"]],
        lambda request: [protocol.encode(protocol.Done(request_id=request.request_id))],
        lambda request: [[msgspec.msgpack.encode({"type": "gift", "request_id": request.request_id})]],
    ],
)
def test_answers_that_break_the_protocol_fail_their_request_alone(answer):
    answers = [answer, lambda request: [frames_reply(request, value=9)]]

    def next_answer(request):
        return answers.pop(0)(request)

    with Impostor(projecting(next_answer)) as server, opu.open(server.uri) as remote:
        session = remote.open_session(CONFIG)
        with pytest.raises(ProtocolError):
            session.project(X)
        assert (session.project(X).frames == 9).all()


@pytest.mark.parametrize("nonsense", [[b""], [b"\xc1" * 100], [os.urandom(50)] * 5, [b"", b""]])
def test_nonsense_is_ignored(nonsense):
    def answer(request):
        return [nonsense, frames_reply(request)]

    with Impostor(projecting(answer)) as server, opu.open(server.uri) as remote:
        assert (remote.open_session(CONFIG).project(X).frames == 1).all()


def test_late_and_repeated_answers_are_discarded():
    asked = []

    def answer(request):
        asked.append(request)
        late = [frames_reply(earlier, value=200) for earlier in asked[:-1]]
        stray = frames_reply(request, value=201, request_id=10**6)
        return [*late, stray, frames_reply(request, value=len(asked)), frames_reply(request, value=202)]

    with Impostor(projecting(answer)) as server, opu.open(server.uri) as remote:
        session = remote.open_session(CONFIG)
        for value in (1, 2, 3):
            assert (session.project(X).frames == value).all()


def test_unknown_error_codes_are_failures_of_the_server():
    def answer(request):
        error = protocol.ErrorReply(
            request_id=request.request_id, code="eval", problem="\x1b[31m{0!r}%s<script>", remedy="__import__('os')"
        )
        return [protocol.encode(error)]

    with Impostor(projecting(answer)) as server, opu.open(server.uri) as remote:
        session = remote.open_session(CONFIG)
        with pytest.raises(ServerFailureError) as caught:
            session.project(X)
    assert "'eval'" in caught.value.problem
    assert caught.value.problem.endswith("\x1b[31m{0!r}%s<script>")
    assert caught.value.remedy == "__import__('os')"


def test_a_server_that_falls_silent_after_hello_is_gone():
    with Impostor(lambda request: [welcome(request)] if isinstance(request, protocol.Hello) else []) as server:
        for reconnect_s, complaint in ((0, "no sign of life for 0.3 s"), (0.5, "no coming back for 0.5 s")):
            remote = opu.open(f"{server.uri}?timeout_s=0.3&reconnect_s={reconnect_s}")
            with pytest.raises(UnreachableError, match=complaint):
                remote.open_session(CONFIG)
            remote.close()


def test_a_fault_of_the_link_fails_what_waits(monkeypatch, sim_server):
    remote = opu.open(sim_server.uri)

    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(client.Link, "_receive", fail)
    with pytest.raises(LinkError, match="a bug"):
        remote.open_session(CONFIG)
    remote.close()


def test_a_fault_of_a_callback_harms_nobody(sim_server, caplog):
    called = Future()

    def callback(_):
        called.set_result(None)
        raise ZeroDivisionError("a bug of the caller")

    with opu.open(sim_server.uri) as remote, remote.open_session(CONFIG) as session:
        session.submit(X).add_done_callback(callback)
        called.result(timeout=60)
        assert session.project(X).frames.shape == (3, 5)
    assert "a bug of the caller" in caplog.text


def test_a_forked_process_does_not_touch_the_link_of_its_parent(serve):
    """It would wait for ever, for a thread that is not there, or take what is the parent's."""
    script = """
import os, sys
import opu
with opu.open(sys.argv[1]) as device, device.open_session(opu.SessionConfig(n_features=10, n_outputs=5)) as session:
    before = session.project([[1] * 10], first_frame_index=0).frames
    child = os.fork()
    if child == 0:
        try:
            session.project([[1] * 10])
        except opu.errors.ClosedError as error:
            session.close()
            device.close()
            os._exit(7 if "after forking" in error.remedy else 8)
        os._exit(9)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    after = session.project([[1] * 10], first_frame_index=0).frames
    sys.exit(0 if status == 7 and (before == after).all() else 10 + status)
"""
    command = [sys.executable, "-c", script, serve().uri]
    ended = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_was_pending_at_a_fork_fails_in_the_child_alone(serve, toy):
    """Nobody there brings the answer. The callbacks of the parent are not called there either."""
    script = """
import concurrent.futures, os, signal, sys
import opu
with opu.open(sys.argv[1]) as device, device.open_session(opu.SessionConfig(n_features=10, n_outputs=5)) as session:
    futures = [session.submit([[1] * 10]) for _ in range(3)]
    called = []
    futures[0].add_done_callback(called.append)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        concurrent.futures.wait(futures)
        errors = [future.exception() for future in futures]
        good = all(isinstance(error, opu.errors.ClosedError) and "after forking" in error.remedy for error in errors)
        os._exit(7 if good and len(set(map(id, errors))) == 3 and not called else 8)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    frames = [future.result(60).frames.shape for future in futures]
    sys.exit(0 if frames == [(1, 5)] * 3 and called == futures[:1] else 9)
"""
    toy.gate.clear()
    command = [sys.executable, "-c", script, serve().uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "7\n"
            toy.gate.set()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("opener", [opu.open, aio.open], ids=["blocking", "asyncio"])
def test_a_look_that_comes_late_harms_no_link_that_was_greeted(opener, serve, monkeypatch):
    """The server may have started, and answered, while one looked whether anybody listens."""

    def look_late(watch):
        wait_until(lambda: has_input(watch._dealer), 60)
        return True

    async def look_late_async(watch):
        return look_late(watch)

    monkeypatch.setattr(ConnectionWatch, "is_refused", look_late)
    monkeypatch.setattr(ConnectionWatch, "is_refused_async", look_late_async)
    uri = serve().uri

    async def look():
        async with await aio.open(uri) as device:
            return await device.server_status()

    if opener is aio.open:
        assert asyncio.run(look()).clients
        return
    with opu.open(uri) as device:
        assert device.server_status().clients


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many files"), OSError(errno.EAFNOSUPPORT, "no IPv6")])
def test_a_look_that_fails_tells_nothing(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(handshake.socket, "socket", fail)
    assert not handshake._refuses("::1", 1)


def test_looks_do_not_look_up_a_name(monkeypatch):
    """The system may take longer for that than a look may."""
    hosts = []
    refuses = handshake._refuses

    def note(host, port):
        hosts.append(host)
        return refuses(host, port)

    monkeypatch.setattr(handshake, "_refuses", note)
    with pytest.raises(UnreachableError, match="Nobody listens at tcp://localhost"):
        opu.open(f"tcp://localhost:{free_port()}?timeout_s=100")
    assert hosts == ["127.0.0.1"]


def test_what_was_settled_before_a_fork_stays_so_in_the_child(serve):
    """Also in a callback, which is called before the link lets go of the future."""
    script = """
import os, signal, sys, threading
import opu
with opu.open(sys.argv[1]) as device, device.open_session(opu.SessionConfig(n_features=10, n_outputs=5)) as session:
    statuses, forked = [], threading.Event()

    def fork(future):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(7 if future.result().frames.shape == (1, 5) else 8)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        forked.set()

    session.submit([[1] * 10]).add_done_callback(fork)
    forked.wait(60)
    sys.exit(0 if statuses == [7] else 9)
"""
    command = [sys.executable, "-c", script, serve().uri]
    ended = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_who_disowns_a_future_that_was_cancelled_leaves_it_so():
    future = client._LinkFuture(link=None, ticket="waits")
    Future.cancel(future)
    future.disown(ClosedError("The link is closed.", "Open it after forking."))
    assert future.cancelled()
