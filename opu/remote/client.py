"""The backend `tcp:`: a device that another process serves, like any other device.

A thread of its own owns the socket of each open device. Callers hand it requests and get futures, so that many
requests are on their way at once; replies are matched by the number of the request, and late ones are discarded.
Callbacks of futures run in that thread: they may submit, and must not wait for the device.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import zmq

import opu
from opu.device import Device, DeviceDescription, Projection, Session, SessionConfig, SessionDescription
from opu.errors import (
    AuthenticationError,
    ClosedError,
    LinkError,
    OpuError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    UriError,
    error_from_code,
)
from opu.registry import FoundDevice
from opu.remote import OPEN_AGAIN, protocol
from opu.remote.handshake import HandshakeWatch
from opu.remote.security import ClientKeys
from opu.remote.waker import Waker
from opu.remote.workers import Workers
from opu.uri import Uri, parse_host_port, parse_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.patterns import PackedPatterns

__all__ = ["RemoteDevice", "RemoteSession", "find_local", "open_remote"]

_log = logging.getLogger(__name__)

_FIND_TIMEOUT_S = 0.25
_ENCRYPTION_BYTES = 64  # an encrypted message is a little longer than what it carries
_COPY_BYTES = 2**16
_LINKED_CAPABILITIES = ("repeatable_noise",)

ResultT = TypeVar("ResultT")
Finish = Callable[[Any, memoryview | None], Any]


@dataclass(frozen=True, eq=False)
class _Pending:
    """A request and what becomes of its reply."""

    message: protocol.Request
    payload: memoryview | None
    reply_type: type[Any]
    finish: Finish
    future: Future[Any]

    def settle(self, reply: protocol.Reply, payload: memoryview | None) -> None:
        """Turn the reply into the result of the future."""
        try:
            if isinstance(reply, protocol.ErrorReply):
                raise error_from_code(reply.code, reply.problem, reply.remedy)
            if not isinstance(reply, self.reply_type):
                raise ProtocolError(
                    f"The server answered a {type(self.message).__name__} with a {type(reply).__name__}.",
                    "The server does not follow docs/protocol.md.",
                )
            result = self.finish(reply, payload)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller must hear of it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Link:
    """A connection to a server. Its thread owns the socket, finds out when the server is gone, and ends with it."""

    def __init__(self, address: str, timeout_s: float, keys: ClientKeys | None = None) -> None:
        self.address = address
        self._keys = keys
        self._timeout_s = timeout_s
        self._ping_every_s = timeout_s / 4
        self._max_queued: int | None = None
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._outgoing: deque[_Pending] = deque()
        self._pending: dict[int, _Pending] = {}
        self._projecting = 0
        self._error: OpuError | None = None
        self._ended = False
        self._pinged_s = 0.0
        self._silent_since_s: float | None = None
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name=f"opu-link {address}", daemon=True)
        self._thread.start()

    def greet(self) -> protocol.Welcome:
        """Open the conversation, and keep to what the server grants."""
        hello = protocol.Hello(
            request_id=self.next_id(),
            version=protocol.PROTOCOL_VERSION,
            software=f"openopu {opu.__version__}",
            name=protocol.shorten(f"{Path(sys.argv[0]).name or 'python'} {os.getpid()}", protocol.MAX_NAME),
        )
        return self.ask(hello, protocol.Welcome, self._welcomed)

    def next_id(self) -> int:
        """Draw the number of a new request."""
        return next(self._ids)

    def ask(self, message: protocol.Request, reply_type: type[ResultT], finish: Finish | None = None) -> ResultT:
        """Send a request and wait for its reply.

        Raises
        ------
        RefusedError
            Called from a callback: the thread that brings the reply would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise RefusedError(
                "A callback of a future waits for the device whose link runs it.", "Wait in another thread."
            )
        result: ResultT = self.request(message, None, reply_type, finish or _reply_itself).result()
        return result

    def request(
        self, message: protocol.Request, payload: memoryview | None, reply_type: type[Any], finish: Finish
    ) -> Future[Any]:
        """Send a request and return at once.

        Raises
        ------
        LinkError
            The server is gone.
        ClosedError
            The link is closed.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # what is on its way cannot be cancelled
        with self._lock:
            if self._error is not None:
                raise _copy_error(self._error)
            if self._ended:
                raise ClosedError(f"The link to {self.address} is closed.", "Open the device again.")
            self._outgoing.append(_Pending(message, payload, reply_type, finish, future))
        self._waker.wake()
        return future

    def close(self) -> None:
        """Say bye, when everything that was asked before is answered, and end the thread."""
        with contextlib.suppress(LinkError, ClosedError):
            self.ask(protocol.Bye(request_id=self.next_id()), protocol.Done)
        self._ended = True
        self._waker.wake()
        self._thread.join()

    def abandon(self) -> None:
        """Have the thread end soon, without waiting and without a lock: the garbage collector may call it anywhere."""
        self._ended = True
        self._waker.wake()

    # The thread

    def _run(self) -> None:
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        watch = HandshakeWatch(dealer, *parse_host_port(parse_uri(self.address)), self._keys is not None)
        try:
            dealer.linger = 0
            dealer.ipv6 = "[" in self.address
            dealer.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_PAYLOAD_BYTES + _ENCRYPTION_BYTES)
            dealer.rcvhwm = 0  # never stop reading: opu.remote.inbox tells why; no more comes than was asked for
            if self._keys is not None:
                self._keys.apply(dealer)
            dealer.connect(self.address)
            self._converse(dealer, watch)
        except zmq.ZMQError as error:
            self._fail(UnreachableError(f"Cannot use {self.address}: {error.strerror}.", "Check the address."))
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            _log.exception("the link to %s failed", self.address)
            self._fail(LinkError(f"The link to {self.address} failed: {error!r}.", OPEN_AGAIN))
        finally:
            self._ended = True
            watch.close()
            dealer.close()
            context.term()
            self._waker.close()
            self._fail(ClosedError(f"The link to {self.address} is closed.", "Open the device again."))

    def _converse(self, dealer: zmq.Socket[bytes], watch: HandshakeWatch) -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(watch.receiver, zmq.POLLIN)
        poller.register(self._waker.receiver, zmq.POLLIN)
        while not self._ended and self._error is None:
            ready = dict(poller.poll(max(1, round(250 * min(self._timeout_s, self._ping_every_s)))))
            if self._waker.receiver.fileno() in ready:
                self._waker.clear()
            if dealer in ready:
                self._receive(dealer)
            failure = watch.find_failure() if watch.receiver in ready or watch.is_suspicious else None
            if failure is not None:
                self._fail(failure)
                return
            self._send_outgoing(dealer)
            self._keep_alive(dealer)

    def _receive(self, dealer: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = [frame.buffer for frame in dealer.recv_multipart(zmq.NOBLOCK, copy=False)]
            except zmq.Again:
                return
            self._silent_since_s = None
            try:
                reply, payload = protocol.decode_reply(frames)
            except LinkError as error:
                self._fail_one(protocol.read_request_id(frames), error)
                continue
            if isinstance(reply, protocol.Goodbye):
                self._fail(
                    UnreachableError(f"The server at {self.address} ended the link: {reply.problem}", reply.remedy)
                )
                return
            pending = self._take(reply.request_id)
            if pending is not None:
                pending.settle(reply, payload)

    def _send_outgoing(self, dealer: zmq.Socket[bytes]) -> None:
        while self._outgoing:
            pending = self._outgoing[0]
            is_projection = isinstance(pending.message, protocol.Project)
            if is_projection and self._max_queued is not None and self._projecting >= self._max_queued:
                return  # the server would say busy
            with self._lock:
                self._outgoing.popleft()
                self._pending[pending.message.request_id] = pending
            self._projecting += is_projection
            self._send(dealer, pending.message, pending.payload)

    def _keep_alive(self, dealer: zmq.Socket[bytes]) -> None:
        now_s = time.monotonic()
        if self._silent_since_s is not None and now_s - self._silent_since_s > self._timeout_s:
            self._fail(self._unreachable())
        elif self._max_queued is not None and now_s - self._pinged_s >= self._ping_every_s:
            self._pinged_s = now_s
            self._send(dealer, protocol.Ping(request_id=self.next_id()), None)

    def _send(self, dealer: zmq.Socket[bytes], message: protocol.Request, payload: memoryview | None) -> None:
        dealer.send_multipart(protocol.encode(message, payload), zmq.NOBLOCK, copy=False)
        if self._silent_since_s is None and isinstance(message, (protocol.Hello, protocol.Ping)):
            self._silent_since_s = time.monotonic()

    def _welcomed(self, welcome: protocol.Welcome, _: memoryview | None) -> protocol.Welcome:
        self._ping_every_s = min(self._timeout_s, welcome.limits.expire_s) / 4
        self._max_queued = welcome.limits.max_queued
        return welcome

    def _take(self, request_id: int | None) -> _Pending | None:
        if request_id is None:
            return None
        with self._lock:
            pending = self._pending.pop(request_id, None)
        if pending is not None and isinstance(pending.message, protocol.Project):
            self._projecting -= 1
        return pending

    def _fail_one(self, request_id: int | None, error: OpuError) -> None:
        pending = self._take(request_id)
        if pending is not None:
            pending.future.set_exception(error)
        else:
            _log.warning("the server at %s sent what nobody can read: %s", self.address, ascii(str(error)))

    def _fail(self, error: OpuError) -> None:
        """Fail everything that waits, and everything that comes."""
        with self._lock:
            self._error = self._error or error
            waiting = [*self._pending.values(), *self._outgoing]
            self._pending.clear()
            self._outgoing.clear()
        for pending in waiting:
            pending.future.set_exception(_copy_error(self._error))

    def _unreachable(self) -> UnreachableError:
        remedy = how_to_reach(self.address)
        if self._max_queued is None:
            return UnreachableError(f"Nobody answers at {self.address} within {self._timeout_s:g} s.", remedy)
        return UnreachableError(
            f"The server at {self.address} has given no sign of life for {self._timeout_s:g} s.",
            f"{remedy} {OPEN_AGAIN}",
        )


def how_to_reach(address: str) -> str:
    """Tell what to do when nobody answers at an address.

    Parameters
    ----------
    address : str
        `tcp://HOST:PORT`.
    """
    host, port = parse_host_port(parse_uri(address))
    if _is_loopback(host):
        return f"Start it with: opu serve URI --bind {address}, or check the address."
    return (
        f"Check the address. A server without keys listens on its own machine alone: forward a port to it with "
        f"ssh -N -L {port}:127.0.0.1:{port} {host}, and open tcp://127.0.0.1:{port}."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(uri: Uri, timeout_s: float) -> None:
    """Tell a host that is unknown from one where nobody answers."""
    host, port = parse_host_port(uri)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    resolver = Workers(1, "opu-resolver")  # nothing else ends a look-up before the system gives up
    lookup = resolver.submit(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
    if resolver.stop(timeout_s):
        raise _no_lookup(uri, f"no answer within {timeout_s:g} s")
    error = lookup.exception()
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        raise _no_lookup(uri, str(error.strerror)) from error
    if error is not None:
        reason = error.strerror if isinstance(error, OSError) else "no host has such a name"
        raise UnreachableError(
            f"The host {host!r} of {uri.text!r} cannot be found: {reason}.", "Check its name, or write its number."
        ) from error


def _no_lookup(uri: Uri, reason: str) -> UnreachableError:
    return UnreachableError(
        f"The host {parse_host_port(uri)[0]!r} of {uri.text!r} cannot be looked up: {reason}.",
        "Check the network of this machine and try again, or write the number of the host.",
    )


def _reply_itself(reply: Any, _: memoryview | None) -> Any:
    return reply


def _copy_error(error: OpuError) -> OpuError:
    return type(error)(error.problem, error.remedy)  # each future raises its own, with its own traceback


class RemoteDevice(Device):
    """A device behind a server.

    When the server gives no sign of life for the time-out, everything that waits fails with `UnreachableError`, and
    the device has to be opened again.

    Parameters
    ----------
    uri : str
        The address under which it was opened.
    link : Link
        A connection that has been greeted.
    welcome : protocol.Welcome
        What the server said.
    """

    def __init__(self, uri: str, link: Link, welcome: protocol.Welcome) -> None:
        super().__init__(uri)
        self._link = link
        self._description = _describe_link(welcome.description)
        self._sessions: set[RemoteSession] = set()
        weakref.finalize(self, link.abandon)  # a device that nobody closed

    def describe(self) -> DeviceDescription:
        """Return what the device is and offers, as far as it passes the link."""
        return self._description

    def server_status(self) -> protocol.ServerStatus:
        """Ask the server what it is doing. Names of clients are texts from elsewhere: escape them.

        Raises
        ------
        UnreachableError
            The server is gone.
        """
        request = protocol.Status(request_id=self._link.next_id())
        return self._link.ask(request, protocol.StatusReply).status

    def _open_session(self, config: SessionConfig) -> RemoteSession:
        request = protocol.OpenSession(request_id=self._link.next_id(), config=config)
        opened = self._link.ask(request, protocol.SessionOpened)
        session = RemoteSession(self, self._link, opened.session, opened.description)
        self._sessions.add(session)
        return session

    def forget(self, session: RemoteSession) -> None:
        """Note that a session has been closed."""
        self._sessions.discard(session)

    def _close(self) -> None:
        for session in list(self._sessions):
            session.close()
        self._link.close()


class RemoteSession(Session):
    """A session of a device behind a server."""

    def __init__(self, device: RemoteDevice, link: Link, number: int, description: SessionDescription) -> None:
        super().__init__(description)
        self._device = device
        self._link = link
        self._number = number

    def _submit(self, packed: PackedPatterns, first_frame_index: int, out: NDArray[Any] | None) -> Future[Projection]:
        request = protocol.Project(
            request_id=self._link.next_id(),
            session=self._number,
            first_frame_index=first_frame_index,
            n_features=packed.n_features,
            batch=len(packed),
        )

        def finish(reply: protocol.Frames, payload: memoryview | None) -> Projection:
            assert payload is not None  # noqa: S101 - decode_reply has checked it
            return self._read_frames(reply, payload, request, out)

        return self._link.request(request, packed.bits.data.cast("B"), protocol.Frames, finish)

    def _read_frames(
        self, reply: protocol.Frames, payload: memoryview, request: protocol.Project, out: NDArray[Any] | None
    ) -> Projection:
        expected = (request.batch, self.config.n_outputs, self._description.frame_dtype)
        found = (reply.batch, reply.n_outputs, reply.dtype)
        if found != expected:
            raise ProtocolError(
                f"The server sent frames (batch, n_outputs, dtype) = {found} where {expected} were due.",
                "The server does not follow docs/protocol.md.",
            )
        frames = protocol.read_frames(reply, payload)
        if out is not None:
            np.copyto(out, frames)
            frames = out
        elif payload.nbytes < _COPY_BYTES or not frames.flags.aligned:
            frames = frames.copy()  # ZeroMQ keeps small messages in a buffer that they share
        return Projection(frames, reply.provenance)

    def _close(self) -> None:
        self._device.forget(self)
        with contextlib.suppress(LinkError):  # a server that is gone has closed it
            self._link.ask(protocol.CloseSession(request_id=self._link.next_id(), session=self._number), protocol.Done)


def _describe_link(description: DeviceDescription) -> DeviceDescription:
    passing = tuple(name for name in description.capabilities if name in _LINKED_CAPABILITIES)
    return msgspec.structs.replace(description, backend="tcp", capabilities=passing)


def open_remote(uri: Uri, timeout_s: float, key: str | None = None, server_key: str | None = None) -> RemoteDevice:
    """Open the device behind a server.

    Parameters
    ----------
    uri : Uri
        `tcp://HOST:PORT`.
    timeout_s : float
        How long the server may give no sign of life, in seconds.
    key, server_key : str, optional
        The file with the secret key of this client, and the public key of the server or its file.

    Returns
    -------
    RemoteDevice
        Open.

    Raises
    ------
    UriError
        The address names no host and port, or one key of the two.
    DataFileError, RefusedError
        A file with a key cannot be used.
    AuthenticationError
        The server does not admit the key, or is another one than `server_key` names.
    UnreachableError
        The host is unknown or cannot be looked up in that time, or nobody answers.
    VersionMismatchError
        The server speaks another version of the protocol.
    BusyError
        The server has as many clients as it takes.
    """
    if (key is None) != (server_key is None):
        raise UriError(
            f"The address {uri.text!r} has one of the options key and server_key.",
            "Give both, or none: a client needs to know the server as much as the server the client.",
        )
    keys = ClientKeys.read(key, server_key) if key is not None and server_key is not None else None
    _check_host(uri, timeout_s)
    link = Link(f"tcp:{uri.rest}", timeout_s, keys)
    try:
        welcome = link.greet()
    except OpuError:
        link.close()
        raise
    return RemoteDevice(uri.text, link, welcome)


def find_local(address: str) -> list[FoundDevice]:
    """Look whether a server answers at an address, for a quarter of a second.

    Parameters
    ----------
    address : str
        `tcp://HOST:PORT`.

    Returns
    -------
    list of FoundDevice
        The server, or nothing.
    """
    try:
        with open_remote(parse_uri(address), _FIND_TIMEOUT_S) as device:
            return [FoundDevice(address, f"{device.describe().model}, served")]
    except AuthenticationError:
        return [FoundDevice(address, "served to clients with keys")]
    except OpuError:
        return []
