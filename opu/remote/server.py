"""The server: one device, shared among many clients over ZeroMQ.

One thread owns the sockets. The device works in threads of its own: projections through `Session.submit`, whose
futures wake the loop when they are done, and the opening and closing of sessions, which may take seconds, in a few
workers. So the loop never waits for the device, and answers pings and status requests while it works.

Requests wait in a queue for each client. The server keeps the device busy with two at a time and takes them from the
clients in turns.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

import msgspec
import numpy as np
import zmq

import opu
from opu.device import Device, Projection, Provenance, Session, SessionDescription, check_frame_numbers
from opu.errors import (
    BusyError,
    CapacityError,
    ClosedError,
    LinkError,
    OpuError,
    ProtocolError,
    RefusedError,
    ServerFailureError,
    UnreachableError,
    UriError,
)
from opu.patterns import PackedPatterns
from opu.remote import DEFAULT_BIND, OPEN_AGAIN, protocol
from opu.remote.inbox import Arrival, Inbox, shut_down
from opu.remote.sessions import SessionKeeper
from opu.remote.turns import Pace, merge
from opu.remote.waker import Waker
from opu.uri import parse_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpuServer", "ServerLimits", "parse_bind"]

_log = logging.getLogger(__name__)

_TICK_MS = 250
_RETRY_MS = 1
_ANSWERS_PER_TURN = 64
_DEVICE_DEPTH = 2
_OUTBOX_MESSAGES = 1024
_ON_THE_WAY_BYTES = 2**26
_ZERO_COPY_BYTES = 2**16
_ROUTER_OPTIONS = {
    zmq.ROUTER_MANDATORY: 1,  # without it a full queue drops replies without a word
    zmq.LINGER: 1000,
    zmq.RCVHWM: 0,  # never stop reading, and no ZMQ heartbeat either: opu.remote.inbox tells why
    zmq.HANDSHAKE_IVL: 5000,
}


@dataclass(frozen=True)
class ServerLimits:
    """What a server grants. `docs/protocol.md` tells clients what happens beyond.

    Parameters
    ----------
    max_clients : int
        Clients at a time.
    max_sessions : int
        Open sessions of one client.
    max_compiled_bytes : int
        Memory of their compiled media together.
    max_queued : int
        Unanswered projections of one client.
    max_queued_total : int
        Unanswered projections of all clients.
    max_queued_bytes : int
        Bytes of patterns in them.
    max_waiting : int
        Messages of one connection that the server has not looked at yet.
    max_payload_bytes : int
        The largest payload of a message.
    quantum_s : float
        About how long the device works for a client before another one's turn, which is how batches are cut while
        several clients have sessions.
    expire_s : float
        Silence after which a client is forgotten.
    stall_s : float
        Time without progress after which a client that does not read is evicted.
    drain_s : float
        Time to answer what was accepted when the server stops.
    closing_s : float
        Time to close the sessions after that.
    """

    max_clients: int = 64
    max_sessions: int = 16
    max_compiled_bytes: int = 2**31
    max_queued: int = 64
    max_queued_total: int = 256
    max_queued_bytes: int = 2**29
    max_waiting: int = 1024
    max_payload_bytes: int = protocol.MAX_PAYLOAD_BYTES
    quantum_s: float = 0.005
    expire_s: float = 15.0
    stall_s: float = 10.0
    drain_s: float = 5.0
    closing_s: float = 10.0


@dataclass(frozen=True, eq=False)
class _OpenedSession:
    device_session: Session
    description: SessionDescription
    pace: Pace


@dataclass(eq=False)
class _Projection:
    """A projection that waits for its turn, or for more turns."""

    request: protocol.Project
    session: _OpenedSession
    patterns: PackedPatterns
    n_given: int = 0  # frames that the device was asked for
    frames: NDArray[Any] | None = None  # of a batch that is cut
    parts: list[Provenance] = field(default_factory=list)
    failed: bool = False

    @property
    def n_left(self) -> int:
        """Frames that the device was not asked for yet."""
        return self.request.batch - self.n_given


_Job: TypeAlias = _Projection | protocol.CloseSession | protocol.Bye
_ClientRequest: TypeAlias = (
    protocol.OpenSession | protocol.Project | protocol.CloseSession | protocol.Ping | protocol.Status | protocol.Bye
)


@dataclass(eq=False)
class _Client:
    route: bytes
    descriptor: int
    client_id: int
    name: str
    heard_s: float
    sessions: dict[int, _OpenedSession] = field(default_factory=dict)
    opening: int = 0
    jobs: deque[_Job] = field(default_factory=deque)
    unanswered: set[int] = field(default_factory=set)
    queued: int = 0
    in_flight: int = 0
    outbox: deque[list[Any]] = field(default_factory=deque)
    moved_s: float = 0.0
    on_the_way: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    frames: int = 0
    refused: int = 0
    gone: bool = False

    def compiled_bytes(self) -> int:
        """Return the memory of the compiled media of its sessions."""
        return sum(opened.description.compiled_bytes for opened in self.sessions.values())

    def count_on_the_way(self) -> int:
        """Return how many bytes of large replies ZeroMQ has not sent yet."""
        while self.on_the_way and self.on_the_way[0][0].done:
            self.on_the_way.popleft()
        return sum(size for _, size in self.on_the_way)

    @property
    def waits_for_network(self) -> bool:
        """Whether something goes on when the network has taken more."""
        return bool(self.outbox or (self.on_the_way and self.jobs and isinstance(self.jobs[0], protocol.Bye)))

    @property
    def label(self) -> str:
        """Its name for the log, with everything that is not printable ASCII escaped."""
        return f"{self.client_id} {self.name!a}"

    def status(self) -> protocol.ClientStatus:
        return protocol.ClientStatus(
            client_id=self.client_id,
            name=self.name,
            sessions=len(self.sessions),
            frames=self.frames,
            queued=self.queued,
            refused=self.refused,
        )


def parse_bind(bind: str) -> str:
    """Check the address that a server shall listen on.

    Parameters
    ----------
    bind : str
        `tcp://HOST:PORT`; the port 0 or `*` lets the system choose one.

    Returns
    -------
    str
        The address as ZeroMQ wants it.

    Raises
    ------
    UriError
        It is of another form.
    RefusedError
        It is not on the loopback interface.

    Examples
    --------
    >>> parse_bind("tcp://localhost:5755"), parse_bind("tcp://[::1]:0")
    ('tcp://127.0.0.1:5755', 'tcp://[::1]:*')
    """
    uri = parse_uri(bind)
    host, colon, port = uri.rest.removeprefix("//").rpartition(":")
    if uri.scheme != "tcp" or uri.options or not uri.rest.startswith("//") or not host or not colon:
        raise UriError(f"Cannot listen at {bind!r}.", f"Write tcp://HOST:PORT, for example {DEFAULT_BIND}.")
    if port != "*" and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise UriError(f"The port {port!r} of {bind!r} is none.", "Use 1 to 65535, or 0 for any free one.")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback or (address.version == 6) != host.startswith("["):
        raise RefusedError(
            f"Listening at {bind!r} would let in everybody who can reach it: this version has no keys.",
            f"Listen on the loopback interface, for example {DEFAULT_BIND}, and reach it through an SSH tunnel.",
        )
    return f"tcp://{host}:{'*' if port == '*' or int(port) == 0 else int(port)}"


class OpuServer:
    """Serves a device to many clients.

    A context manager: `with` starts it in a thread and stops it. `stop` may be called from any thread and from a
    signal handler, `snapshot` from any thread. The device stays open when the server stops.

    Parameters
    ----------
    device : Device
        What is served. Nobody else should use it meanwhile.
    bind : str
        Where to listen; see `parse_bind`.
    limits : ServerLimits
        What clients are granted.

    Raises
    ------
    UriError, RefusedError
        As `parse_bind`.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
    ...     with opu.open(server.uri) as remote:
    ...         remote.describe().backend
    'tcp'
    """

    def __init__(self, device: Device, bind: str = DEFAULT_BIND, limits: ServerLimits | None = None) -> None:
        self._device = device
        self._bind = bind
        self._endpoint = parse_bind(bind)
        self._limits = limits or ServerLimits()
        self._server_id = uuid.uuid4().hex
        self._uri: str | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._clients: dict[bytes, _Client] = {}
        self._turns: deque[_Client] = deque()
        self._n_sessions = 0
        self._in_flight = 0
        self._queued = 0
        self._waiting_bytes = 0
        self._started_s = time.monotonic()
        self._rate_since = (self._started_s, 0)
        self._frames_per_s = 0.0
        self._frames = 0
        self._clients_total = 0
        self._refused = 0
        self._malformed = 0
        self._evicted = 0
        self._expired = 0

    @property
    def uri(self) -> str:
        """The address that clients open, with the port that the system chose.

        Raises
        ------
        ClosedError
            The server has not been started.
        """
        if self._uri is None:
            raise ClosedError("The server has not been started.", "Call start().")
        return self._uri

    @property
    def is_running(self) -> bool:
        """Whether the background thread of `start` is at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Listen, and serve in a background thread.

        Raises
        ------
        LinkError
            The address cannot be bound.
        """
        self._listen()
        self._thread = threading.Thread(target=self._serve, name="opu-server", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Listen, and serve in this thread until `stop` is called.

        Raises
        ------
        LinkError
            The address cannot be bound.
        """
        self._listen()
        self._serve()

    def stop(self) -> None:
        """Stop: answer or refuse what was accepted, say goodbye to the clients, close their sessions.

        Waits for the background thread, if there is one: as long as `ServerLimits` says for answers and for sessions
        to close, and a second each for the last messages and for sessions that are being opened.
        """
        self._stopping = True
        if self._uri is not None:
            self._waker.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def snapshot(self) -> protocol.ServerStatus:
        """Return what the server is doing, for display. Names of clients are texts from elsewhere: escape them."""
        return protocol.ServerStatus(
            uptime_s=time.monotonic() - self._started_s,
            frames=self._frames,
            frames_per_s=self._frames_per_s,
            queued=self._queued,
            clients_total=self._clients_total,
            refused=self._refused,
            malformed=self._malformed,
            evicted=self._evicted,
            expired=self._expired,
            clients=tuple(client.status() for client in list(self._clients.values())),
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The loop

    def _listen(self) -> None:
        if self._uri is not None:
            raise ClosedError("The server has been started before.", "Make another one.")
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.ipv6 = "[" in self._endpoint
        for option, value in _ROUTER_OPTIONS.items():
            self._router.setsockopt(option, value)
        self._inbox = Inbox(self._router, self._limits.max_waiting)
        self._router.setsockopt(zmq.MAXMSGSIZE, max(self._limits.max_payload_bytes, protocol.MAX_HEADER_BYTES))
        try:
            self._router.bind(self._endpoint)
        except zmq.ZMQError as error:
            self._router.close()
            self._context.term()
            raise LinkError(
                f"Cannot listen at {self._bind}: {error.strerror}.",
                "Stop whatever listens there, or choose another port with --bind.",
            ) from error
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._waker.receiver, zmq.POLLIN)
        self._keeper = SessionKeeper(self._device)
        self._started_s = time.monotonic()
        self._uri = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        _log.info("serving %s at %s", self._device.uri, self._uri)

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._drain()
        finally:
            for client in list(self._clients.values()):
                self._forget(client)
            self._router.close()
            self._context.term()
            self._keeper.stop(self._limits.closing_s)
            self._waker.close()
            _log.info("stopped serving at %s", self._uri)

    def _drain(self) -> None:
        deadline_s = time.monotonic() + self._limits.drain_s
        while time.monotonic() < deadline_s and any(c.unanswered or c.outbox for c in self._clients.values()):
            self._turn()
        for client in list(self._clients.values()):
            for request_id in sorted(client.unanswered):
                self._refuse(client, request_id, self._stopped())
            remedy = f"Start it again. {OPEN_AGAIN}"
            self._say_goodbye(client, protocol.Goodbye(problem=self._stopped().problem, remedy=remedy))

    def _turn(self) -> None:
        waiting = any(client.waits_for_network for client in self._clients.values())
        patience_ms = 0 if not self._inbox.is_empty else _RETRY_MS if waiting else _TICK_MS
        ready = dict(self._poller.poll(patience_ms))
        if self._waker.receiver.fileno() in ready:
            self._waker.clear()
        while self._posted:
            handler, arguments = self._posted.popleft()
            try:
                handler(*arguments)
            except Exception:  # noqa: BLE001 - a fault of one request must not stop the server
                _log.exception("%s failed", handler.__name__)
        self._receive()
        self._give_turns()
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            self._flush(client)
            if client.outbox and now_s - client.moved_s > self._limits.stall_s:
                self._evict(client)
            elif self._inbox.is_empty and now_s - client.heard_s > self._limits.expire_s:
                self._expire(client)
        self._measure_rate(now_s)

    def _measure_rate(self, now_s: float) -> None:
        since_s, frames = self._rate_since
        if now_s - since_s >= 1.0:
            self._frames_per_s = (self._frames - frames) / (now_s - since_s)
            self._rate_since = (now_s, self._frames)

    def _post(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call a handler. The only way into the loop from other threads."""
        self._posted.append((handler, arguments))
        self._waker.wake()

    # Messages in

    def _receive(self) -> None:
        """Take in what has arrived, and handle some of it."""
        for excess in self._inbox.fill():
            self._cut_off(excess)
        for arrival in self._inbox.take(_ANSWERS_PER_TURN):
            self._handle(arrival)

    def _handle(self, arrival: Arrival) -> None:
        route, frames = arrival.route, arrival.frames
        client = self._clients.get(route)
        if client is not None:
            client.heard_s = time.monotonic()
        request_id = None
        try:
            request, payload = protocol.decode_request(frames)
            request_id = request.request_id
            if isinstance(request, protocol.Hello):
                self._welcome(arrival, client, request)
            elif client is None:
                self._send_to_stranger(route, self._do_not_know())
            else:
                self._answer(client, request, payload)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            if request_id is None:
                request_id = protocol.read_request_id(frames)
            self._refuse(client or route, request_id, self._explain(client, error))

    def _answer(self, client: _Client, request: _ClientRequest, payload: memoryview | None) -> None:
        if isinstance(request, protocol.Ping):
            self._send(client, protocol.Pong(request_id=request.request_id))
        elif isinstance(request, protocol.Status):
            self._send(client, protocol.StatusReply(request_id=request.request_id, status=self.snapshot()))
        elif request.request_id in client.unanswered:
            raise ProtocolError(
                f"Request {request.request_id} has not been answered yet.", "Give every request another number."
            )
        elif isinstance(request, protocol.OpenSession):
            self._open_session(client, request)
        elif isinstance(request, protocol.Project):
            assert payload is not None  # noqa: S101 - decode_request has checked it
            self._accept(client, request, payload)
        elif len(client.jobs) > self._limits.max_queued + self._limits.max_sessions:
            raise BusyError(f"{len(client.jobs)} requests of this client wait.", "Wait for an answer.")
        else:
            client.jobs.append(request)
            client.unanswered.add(request.request_id)

    def _welcome(self, arrival: Arrival, client: _Client | None, hello: protocol.Hello) -> None:
        if self._stopping:
            raise self._stopped()
        if client is not None:
            raise ProtocolError("This client has said hello before.", "Say it once for each connection.")
        if len(self._clients) >= self._limits.max_clients:
            raise BusyError(f"The server has {len(self._clients)} clients, as many as it takes.", "Try again later.")
        welcome = protocol.Welcome(
            request_id=hello.request_id,
            version=protocol.PROTOCOL_VERSION,
            software=f"openopu {opu.__version__}",
            server_id=self._server_id,
            description=self._device.describe(),
            limits=protocol.LinkLimits(
                max_payload_bytes=self._limits.max_payload_bytes,
                max_sessions=self._limits.max_sessions,
                max_queued=self._limits.max_queued,
                expire_s=self._limits.expire_s,
            ),
        )
        self._clients_total += 1
        client = _Client(arrival.route, arrival.descriptor, self._clients_total, hello.name, time.monotonic())
        self._clients[client.route] = client
        self._turns.append(client)
        _log.info("client %s has come", client.label)
        self._send(client, welcome)

    # Sessions

    def _open_session(self, client: _Client, request: protocol.OpenSession) -> None:
        if self._stopping:
            raise self._stopped()
        if len(client.sessions) + client.opening >= self._limits.max_sessions:
            raise BusyError(
                f"This client has {self._limits.max_sessions} open sessions, as many as a client may have.",
                "Close one first.",
            )
        client.opening += 1
        client.unanswered.add(request.request_id)
        future = self._keeper.open(request.config)
        future.add_done_callback(lambda done: self._post(self._session_opened, client, request, done))

    def _session_opened(self, client: _Client, request: protocol.OpenSession, done: Future[Session]) -> None:
        client.opening -= 1
        client.unanswered.discard(request.request_id)
        session = None if done.exception() else done.result()
        if client.gone:
            if session is not None:
                self._keeper.close(session)
            return
        try:
            session = done.result()
            description = self._limit_batch(session.describe())
            self._check_compiled(client, description)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            if session is not None:
                self._keeper.close(session)
            self._refuse(client, request.request_id, self._explain(client, error))
            return
        self._n_sessions += 1
        timing = self._device.describe().timing
        client.sessions[self._n_sessions] = _OpenedSession(session, description, Pace(timing))
        opened = protocol.SessionOpened(
            request_id=request.request_id, session=self._n_sessions, description=description
        )
        self._send(client, opened)

    def _check_compiled(self, client: _Client, description: SessionDescription) -> None:
        compiled_bytes = client.compiled_bytes() + description.compiled_bytes
        if compiled_bytes > self._limits.max_compiled_bytes:
            raise CapacityError(
                f"The sessions of this client would hold {compiled_bytes / 2**20:.1f} MiB of compiled media, and a "
                f"client may hold {self._limits.max_compiled_bytes / 2**20:.1f} MiB.",
                "Close a session first, or ask for fewer features or outputs.",
            )

    def _limit_batch(self, description: SessionDescription) -> SessionDescription:
        """State a largest batch whose patterns and frames fit into a payload."""
        config = description.config
        itemsize = np.dtype(description.frame_dtype).itemsize
        row_bytes = max(config.n_outputs * itemsize, -(-config.n_features // 8))
        fitting = max(1, self._limits.max_payload_bytes // row_bytes)
        return msgspec.structs.replace(description, max_batch=min(description.max_batch, fitting))

    def _give_back(self, client: _Client, request: protocol.CloseSession) -> None:
        opened = client.sessions.pop(request.session, None)
        if opened is None:
            client.unanswered.discard(request.request_id)
            error = ClosedError(f"Session {request.session} is not open.", "It may have been closed before.")
            self._refuse(client, request.request_id, error)
            return
        future = self._keeper.close(opened.device_session)
        future.add_done_callback(lambda _: self._post(self._done, client, request.request_id))

    def _done(self, client: _Client, request_id: int) -> None:
        client.unanswered.discard(request_id)
        self._send(client, protocol.Done(request_id=request_id))

    # Projections

    def _accept(self, client: _Client, request: protocol.Project, payload: memoryview) -> None:
        if self._stopping:
            raise self._stopped()
        session = client.sessions.get(request.session)
        if session is None:
            raise ClosedError(f"Session {request.session} is not open.", "Open one first.")
        check_frame_numbers(request.first_frame_index, request.batch, session.description.max_batch)
        if client.queued >= self._limits.max_queued:
            raise BusyError(
                f"This client has {client.queued} unanswered requests, as many as a client may have.",
                "Wait for an answer, then send the request again.",
            )
        full = self._waiting_bytes + payload.nbytes > self._limits.max_queued_bytes
        if full or self._queued >= self._limits.max_queued_total:
            raise BusyError(
                f"The queue of the server is full: {self._queued} requests wait.", "Send the request again later."
            )
        client.jobs.append(_Projection(request, session, protocol.read_patterns(request, payload)))
        client.unanswered.add(request.request_id)
        client.queued += 1
        self._queued += 1
        self._waiting_bytes += payload.nbytes

    def _give_turns(self) -> None:
        """Take up jobs, one client after the other, as long as the device has room."""
        idle = 0
        while self._in_flight < _DEVICE_DEPTH and idle < len(self._turns):
            client = self._turns[0]
            self._turns.rotate(-1)
            idle = 0 if self._take_job(client) else idle + 1

    def _take_job(self, client: _Client) -> bool:
        if not client.jobs or client.outbox:
            return False
        job = client.jobs[0]
        if not isinstance(job, _Projection) and client.in_flight:
            return False
        if isinstance(job, protocol.Bye) and client.count_on_the_way():
            return False  # a client that leaves counts as one until it has read what it asked for
        if isinstance(job, _Projection):
            self._project(client, job)
            return True
        client.jobs.popleft()
        if isinstance(job, protocol.CloseSession):
            self._give_back(client, job)
        else:
            self._done(client, job.request_id)
            _log.info("client %s has left", client.label)
            self._forget(client)
        return True

    def _project(self, client: _Client, job: _Projection) -> None:
        """Give the device a batch, or the next part of one, which is the client's first job."""
        self._in_flight += 1
        client.in_flight += 1
        rows = slice(job.n_given, job.n_given + self._frames_in_turn(client, job))
        job.n_given = rows.stop
        if job.n_left == 0:
            client.jobs.popleft()
            self._waiting_bytes -= job.request.payload_bytes
        first = job.request.first_frame_index + rows.start
        patterns = PackedPatterns(job.patterns.bits[rows], job.patterns.n_features)
        try:
            future = job.session.device_session.submit(patterns, first_frame_index=first, out=_part_of(job, rows))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            future = Future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._post(self._projected, client, job, done))

    def _frames_in_turn(self, client: _Client, job: _Projection) -> int:
        """Return how many frames of a batch the device is given now: all, unless others could want their turn."""
        if not any(other.sessions for other in self._turns if other is not client):
            return job.n_left
        return min(job.n_left, job.session.pace.frames_within(self._limits.quantum_s))

    def _projected(self, client: _Client, job: _Projection, done: Future[Projection]) -> None:
        self._in_flight -= 1
        client.in_flight -= 1
        if client.gone or job.failed:
            return
        request_id = job.request.request_id
        try:
            part = done.result()
            job.session.pace.learn(part.provenance)
            job.parts.append(part.provenance)
            if job.frames is not None and not np.may_share_memory(part.frames, job.frames):
                raise ServerFailureError(
                    "The device left the buffer that it was given empty.", "Its driver is at fault."
                )
            if sum(known.n_frames for known in job.parts) < job.request.batch:
                return
            frames = part.frames if job.frames is None else job.frames
            reply, payload = _word_frames(job, Projection(frames, merge(job.parts)))
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            self._give_up(client, job)
            self._refuse(client, request_id, self._explain(client, error))
            return
        self._settle(client, request_id)
        client.frames += reply.batch
        self._frames += reply.batch
        self._send(client, reply, payload)

    def _settle(self, client: _Client, request_id: int) -> None:
        """Note that a projection is answered."""
        client.unanswered.discard(request_id)
        client.queued -= 1
        self._queued -= 1

    def _give_up(self, client: _Client, job: _Projection) -> None:
        """Forget a projection of which a part has failed."""
        job.failed = True
        self._settle(client, job.request.request_id)
        if client.jobs and client.jobs[0] is job:
            client.jobs.popleft()
            self._waiting_bytes -= job.request.payload_bytes

    # Messages out

    def _send(self, client: _Client, reply: protocol.Reply, payload: memoryview | None = None) -> None:
        if client.gone:
            return
        if not client.outbox:
            client.moved_s = time.monotonic()
        client.outbox.append(_to_frames(client.route, reply, payload))
        if len(client.outbox) > _OUTBOX_MESSAGES:
            self._evict(client)
        else:
            self._flush(client)

    def _flush(self, client: _Client) -> None:
        """Send what the network takes; the rest stays in the outbox."""
        while client.outbox and client.count_on_the_way() < _ON_THE_WAY_BYTES:
            frames = client.outbox[0]
            try:
                self._router.send_multipart(frames, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                _log.info("client %s has gone: %s", client.label, error.strerror)
                self._forget(client)
                return
            client.outbox.popleft()
            client.moved_s = time.monotonic()
            payload = frames[-1]
            if isinstance(payload, zmq.Frame) and payload.tracker is not None:
                client.on_the_way.append((payload.tracker, len(payload)))  # the frame itself would hold its memory

    def _send_to_stranger(self, route: bytes, reply: protocol.Reply) -> None:
        with contextlib.suppress(zmq.ZMQError):  # it takes the answer now, or does without
            self._router.send_multipart(_to_frames(route, reply), zmq.NOBLOCK)

    def _refuse(self, addressee: _Client | bytes, request_id: int | None, error: OpuError) -> None:
        """Answer a request of a client, or of a stranger who is known by the route alone, with an error."""
        self._refused += 1
        self._malformed += isinstance(error, ProtocolError)
        reply = protocol.error_reply(request_id, error)
        if isinstance(addressee, _Client):
            addressee.refused += 1
            self._send(addressee, reply)
        else:
            self._send_to_stranger(addressee, reply)

    def _explain(self, client: _Client | None, error: Exception) -> OpuError:
        if isinstance(error, OpuError):
            return error
        _log.error("a request of client %s failed", client.label if client else "?", exc_info=error)
        return ServerFailureError(
            f"The server met an unexpected {type(error).__name__}.", "Its log tells more; the request may be right."
        )

    def _stopped(self) -> UnreachableError:
        return UnreachableError(
            f"The server at {self._uri} was stopped.", "Repeat the request when it has been started again."
        )

    def _do_not_know(self) -> protocol.Goodbye:
        return protocol.Goodbye(
            problem=f"The server at {self._uri} does not know this client: it was restarted, or has said goodbye.",
            remedy=OPEN_AGAIN,
        )

    # Clients that go

    def _say_goodbye(self, client: _Client, goodbye: protocol.Goodbye) -> None:
        self._send(client, goodbye)
        self._forget(client)

    def _hang_up(self, route: bytes, descriptor: int, goodbye: protocol.Goodbye) -> None:
        """End a connection, so that ZeroMQ frees what it keeps for it."""
        self._router.getsockopt(zmq.EVENTS)  # has ZeroMQ notice connections that have ended
        try:
            self._router.send_multipart(_to_frames(route, goodbye), zmq.NOBLOCK)
        except zmq.Again:
            pass
        except zmq.ZMQError:
            return  # it has ended by itself, and the descriptor may be another one's
        shut_down(descriptor)

    def _cut_off(self, excess: Arrival) -> None:
        self._evicted += 1
        client = self._clients.get(excess.route)
        sent = f"more than {self._limits.max_waiting} messages waited to be read"
        _log.warning("client %s cut off: %s", client.label if client else "?", sent)
        if client is not None:
            self._forget(client)
        goodbye = protocol.Goodbye(
            problem=f"The server has cut off this connection: {sent}.", remedy=f"Wait for answers. {OPEN_AGAIN}"
        )
        self._hang_up(excess.route, excess.descriptor, goodbye)

    def _evict(self, client: _Client) -> None:
        self._evicted += 1
        _log.warning("client %s evicted: it does not read, %d replies wait", client.label, len(client.outbox))
        self._forget(client)
        goodbye = protocol.Goodbye(
            problem="The server has evicted this client because it did not read its replies.",
            remedy=f"Read what it sends. {OPEN_AGAIN}",
        )
        self._hang_up(client.route, client.descriptor, goodbye)

    def _expire(self, client: _Client) -> None:
        self._expired += 1
        silence = f"for {self._limits.expire_s:g} s"
        _log.warning("client %s expired: silent %s", client.label, silence)
        goodbye = protocol.Goodbye(problem=f"The server has not heard this client {silence}.", remedy=OPEN_AGAIN)
        if client.outbox or client.count_on_the_way():
            self._forget(client)
            self._hang_up(client.route, client.descriptor, goodbye)
        else:
            self._say_goodbye(client, goodbye)

    def _forget(self, client: _Client) -> None:
        if client.gone:
            return
        client.gone = True
        del self._clients[client.route]
        self._turns.remove(client)
        self._queued -= client.queued
        self._waiting_bytes -= sum(job.request.payload_bytes for job in client.jobs if isinstance(job, _Projection))
        client.jobs.clear()
        client.outbox.clear()
        for opened in client.sessions.values():
            self._keeper.close(opened.device_session)
        client.sessions.clear()


def _part_of(job: _Projection, rows: slice) -> NDArray[Any] | None:
    """Return where the frames of a part of a batch go; None leaves that to the device, for whole batches."""
    if rows.stop - rows.start == job.request.batch:
        return None
    if job.frames is None:
        description = job.session.description
        job.frames = np.empty((job.request.batch, description.config.n_outputs), description.frame_dtype)
    return job.frames[rows]


def _word_frames(job: _Projection, projection: Projection) -> tuple[protocol.Frames, memoryview]:
    frames = projection.frames
    description = job.session.description
    expected = (job.request.batch, description.config.n_outputs)
    if frames.shape != expected or frames.dtype.name != description.frame_dtype:
        raise ServerFailureError(
            f"The device gave {frames.dtype} frames of the shape {frames.shape} where {description.frame_dtype} of "
            f"the shape {expected} were due.",
            "Its driver is at fault.",
        )
    reply = protocol.Frames(
        request_id=job.request.request_id,
        dtype=cast("Literal['uint8', 'uint16']", description.frame_dtype),
        batch=expected[0],
        n_outputs=expected[1],
        provenance=projection.provenance,
    )
    return reply, protocol.frames_payload(frames)


def _to_frames(route: bytes, reply: protocol.Reply, payload: memoryview | None = None) -> list[Any]:
    frames: list[Any] = [route, *protocol.encode(reply)]
    if payload is not None:
        large = payload.nbytes >= _ZERO_COPY_BYTES
        frames.append(zmq.Frame(payload, track=large, copy=not large))
    return frames
