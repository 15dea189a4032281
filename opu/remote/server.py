"""The server: one device, shared among many clients over ZeroMQ.

One thread owns the sockets. The device works in threads of its own: projections through `Session.submit`, whose
futures wake the loop when they are done, and the opening and closing of sessions, which may take seconds, in a few
workers. So the loop does not wait for the device, and answers pings and status requests while it works. Calls of less
than a millisecond are the exception: where the device allows it the loop does their work itself, which is quicker than
to hand it on. What the messages mean is the business of `opu.remote.broker`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import zmq

from opu.device import Device
from opu.errors import ClosedError, LinkError, RefusedError, UriError
from opu.remote import DEFAULT_BIND, protocol
from opu.remote.broker import Broker
from opu.remote.client import RemoteDevice
from opu.remote.connections import Connections
from opu.remote.gate import Gate, how_to_make_keys
from opu.remote.inbox import Inbox, shut_down
from opu.remote.limits import ServerLimits
from opu.remote.post import Parcel, Tracker, WireFullError, WireGoneError
from opu.remote.sessions import SessionKeeper
from opu.remote.sockets import has_input
from opu.remote.waker import Waker
from opu.uri import parse_uri

__all__ = ["OpuServer", "ServerLimits", "parse_bind"]

_log = logging.getLogger(__name__)

_TICK_MS = 250
_RETRY_MS = 1
_ANSWERS_PER_TURN = 64
_ZERO_COPY_BYTES = 2**16
_NOBLOCK = int(zmq.NOBLOCK)  # enumerations are slow
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
_MAX_SERVERS = 4
_AWAKE_S = 0.0003
_yield_core: Callable[[], object] = getattr(os, "sched_yield", partial(time.sleep, 0))
_ROUTER_OPTIONS = {
    zmq.ROUTER_MANDATORY: 1,  # without it a full queue drops replies without a word
    zmq.LINGER: 1000,
    zmq.RCVHWM: 0,  # never stop reading, and no ZMQ heartbeat either: opu.remote.inbox tells why
}


def parse_bind(bind: str, beyond_loopback: bool = False) -> str:
    """Check the address that a server shall listen on.

    Parameters
    ----------
    bind : str
        `tcp://HOST:PORT`; the port 0 or `*` lets the system choose one.
    beyond_loopback : bool
        Whether it may be an address that other machines reach.

    Returns
    -------
    str
        The address as ZeroMQ wants it.

    Raises
    ------
    UriError
        It is of another form.
    RefusedError
        It is not on the loopback interface, and may not be beyond.

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
    is_address = address is not None and (address.version == 6) == host.startswith("[")
    if not beyond_loopback and not (is_address and address is not None and address.is_loopback):
        raise RefusedError(
            f"Listening at {bind!r} with no keys would let in everybody who can reach it.",
            f"{how_to_make_keys()} Without keys listen on the loopback interface, for example {DEFAULT_BIND}; or trust "
            f"everybody on that network, with --insecure.",
        )
    if not is_address and host != "*":
        raise UriError(
            f"Cannot listen at {bind!r}: {host!r} is no address of this machine.",
            "Write the number of a network interface, [in brackets] if it has colons, or * for all of IPv4.",
        )
    return f"tcp://{host}:{'*' if port == '*' or int(port) == 0 else int(port)}"


class _RouterWire:
    """Sends through a `ROUTER`, and never waits."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router

    def send(self, route: bytes, parcel: Parcel) -> Tracker | None:
        """Send a reply; see `opu.remote.post.Wire`."""
        send, payload = self._router.send, parcel.payload
        try:
            send(route, _MORE)
            if payload is None:
                send(parcel.header, _NOBLOCK)
                return None
            send(parcel.header, _MORE)
            large = payload.nbytes >= _ZERO_COPY_BYTES
            tracker = send(payload, _NOBLOCK, copy=not large, track=large)
        except zmq.Again as error:
            raise WireFullError from error
        except zmq.ZMQError as error:
            raise WireGoneError(error.strerror) from error
        return tracker if large else None

    def hang_up(self, route: bytes, descriptor: int, parcel: Parcel) -> None:
        """End a connection, so that ZeroMQ frees what it keeps for it."""
        self._router.getsockopt(zmq.EVENTS)  # has ZeroMQ notice connections that have ended
        with contextlib.suppress(WireFullError):
            try:
                self.send(route, parcel)
            except WireGoneError:
                return  # it has ended by itself, and the descriptor may be another one's
        shut_down(descriptor)


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
    gate : Gate
        Who may come in, as `opu.remote.gate.open_gate` makes it. Default: everybody on this machine.

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

    def __init__(
        self,
        device: Device,
        bind: str = DEFAULT_BIND,
        limits: ServerLimits | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._device = device
        self._bind = bind
        self._gate = gate or Gate()
        self._endpoint = parse_bind(bind, self._gate.beyond_loopback)
        self._limits = limits or ServerLimits()
        self._servers: tuple[str, ...] = (uuid.uuid4().hex,)
        if isinstance(device, RemoteDevice):
            self._servers += device.servers
            device.serve_as(self._servers[0])
        if len(self._servers) > _MAX_SERVERS:
            raise RefusedError(
                f"{len(self._servers) - 1} servers stand between this one and the device.",
                f"Serve something nearer to it: {_MAX_SERVERS} in a row are the most.",
            )
        self._uri: str | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

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
        to close, and a second each for the last messages, for sessions that are being opened and for settings.
        """
        self._stopping = True
        if self._uri is not None:
            self._waker.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def snapshot(self) -> protocol.ServerStatus:
        """Return what the server is doing, for display. Names of clients are texts from elsewhere: escape them.

        Raises
        ------
        ClosedError
            The server has not been started.
        """
        if self._uri is None:
            raise ClosedError("The server has not been started.", "Call start().")
        return self._broker.snapshot()

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
        largest = max(self._limits.max_payload_bytes, protocol.MAX_HEADER_BYTES)
        self._router.setsockopt(zmq.MAXMSGSIZE, largest + self._gate.overhead_bytes)
        self._router.setsockopt(zmq.HANDSHAKE_IVL, max(1, round(1000 * self._limits.handshake_s)))
        self._gate.start(self._context, self._router)
        self._connections = Connections(self._router, self._limits.idle_s, self._gate.note_failure)
        try:
            self._router.bind(self._endpoint)
        except zmq.ZMQError as error:
            self._connections.close()
            self._router.close()
            self._gate.stop()
            self._context.term()
            raise LinkError(
                f"Cannot listen at {self._bind}: {error.strerror}.",
                "Stop whatever listens there, or choose another port with --bind.",
            ) from error
        self._waker = Waker()
        self._poller = zmq.Poller()
        for source in (self._router, self._connections.receiver, self._waker.receiver):
            self._poller.register(source, zmq.POLLIN)
        self._keeper = SessionKeeper(self._device)
        uri = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._broker = Broker(
            device=self._device,
            keeper=self._keeper,
            limits=self._limits,
            gate=self._gate,
            wire=_RouterWire(self._router),
            post=self._post,
            clock=time.monotonic,
            servers=self._servers,
            uri=uri,
        )
        self._uri = uri
        _log.info("serving %s at %s", self._device.uri, uri)

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._drain()
        finally:
            self._broker.forget_all()
            self._connections.close()
            self._router.close()
            self._gate.stop()
            self._context.term()
            self._keeper.stop(self._limits.closing_s)
            self._waker.close()
            _log.info("stopped serving at %s", self._uri)

    def _drain(self) -> None:
        _log.info("stopping: %d projections are not answered yet", self._broker.snapshot().queued)
        self._broker.refuse_new()
        deadline_s = time.monotonic() + self._limits.drain_s
        while time.monotonic() < deadline_s and self._broker.owes_answers:
            self._turn()
        self._broker.say_goodbye_to_all()

    def _turn(self) -> None:
        if self._broker.has_worked_here and not self._broker.has_work and self._inbox.is_empty:
            self._stay_awake()
        ready = dict(self._poller.poll(self._patience_ms()))
        if self._waker.receiver.fileno() in ready:
            self._waker.clear()
        while self._posted:
            handler, arguments = self._posted.popleft()
            _try(handler, *arguments)
        for excess in self._inbox.fill(is_readable=self._router in ready):
            _try(self._broker.cut_off, excess)
        for arrival in self._inbox.take(_ANSWERS_PER_TURN):
            _try(self._broker.handle, arrival)
        _try(self._broker.work, self._inbox.is_empty)
        if self._connections.receiver in ready:
            self._connections.read_events()
        for descriptor in self._connections.find_idle(self._broker.has_client_at):
            shut_down(descriptor)

    def _stay_awake(self) -> None:
        """Wait a little for the next message without going to sleep, while nobody else wants the core.

        Whoever was answered at once may ask again at once. To wake a core, and to fill its caches again, takes as long
        as to answer: on a virtual machine the round trip was 0.61 ms with this, and 0.78 ms without.
        """
        until_s = time.monotonic() + _AWAKE_S
        while not (has_input(self._router) or self._posted or self._stopping) and time.monotonic() < until_s:
            _yield_core()

    def _patience_ms(self) -> int:
        if not self._inbox.is_empty:
            return 0
        if self._broker.waits_for_network:
            return _RETRY_MS
        return math.ceil(min(_TICK_MS, 1000 * self._broker.patience_s()))

    def _post(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Have the loop call a handler. The only way into the loop from other threads."""
        self._posted.append((handler, arguments))
        self._waker.wake()


def _try(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function whose fault must not end the server."""
    try:
        function(*arguments)
    except Exception:  # noqa: BLE001 - whatever it was, the others are served on
        _log.exception("%s failed", function.__name__)
