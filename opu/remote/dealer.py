"""How the clients reach a server: the socket, the look-up of the host, and what they tell people."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import zmq

from opu.errors import AuthenticationError, LinkError, UnreachableError
from opu.remote import OPEN_AGAIN, protocol
from opu.remote.conversation import Conversation
from opu.remote.handshake import REFUSED_S, ConnectionWatch
from opu.remote.security import ClientKeys
from opu.remote.sockets import has_input
from opu.remote.workers import Workers
from opu.uri import Uri, parse_host_port, parse_uri

__all__ = [
    "connect",
    "explain_fault",
    "heed",
    "how_to_reach",
    "judge_host",
    "look_up",
    "receive_message",
    "send_message",
    "start_conversation",
]

_log = logging.getLogger("opu.remote.client")

_NOBLOCK = int(zmq.NOBLOCK)  # enumerations are slow
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)
_ZERO_COPY_BYTES = 2**16
_ENCRYPTION_BYTES = 64  # an encrypted message is a little longer than what it carries


def start_conversation(
    address: str, timeout_s: float, reconnect_s: float, role: protocol.Role | None = None
) -> Conversation:
    """Return the conversation of this program with a server.

    Parameters
    ----------
    address : str
        `tcp://HOST:PORT`.
    timeout_s, reconnect_s, role : object
        As `Conversation` takes them.
    """
    return Conversation(
        address=address,
        timeout_s=timeout_s,
        reconnect_s=reconnect_s,
        how_to_reach=lambda: how_to_reach(address),
        name=_name_of_this_program(),
        role=role,
        clock=time.monotonic,
    )


@contextlib.contextmanager
def connect(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    host_number: str,
    keys: ClientKeys | None,
    *,
    tries_by_itself: bool,
) -> Iterator[tuple[zmq.Socket[bytes], ConnectionWatch]]:
    """Begin a connection, and close it in the end.

    Parameters
    ----------
    context : zmq.Context
        Where the sockets are made. They belong to this thread.
    address : str
        `tcp://HOST:PORT`.
    host_number : str
        The number of the host, as `judge_host` has returned it.
    keys : ClientKeys or None
        Of the client.
    tries_by_itself : bool
        Whether ZeroMQ shall try until somebody listens.

    Yields
    ------
    tuple of (zmq.Socket, ConnectionWatch)
        The socket, and what becomes of its connection.
    """
    dealer = context.socket(zmq.DEALER)
    try:
        watch = ConnectionWatch(dealer, *parse_host_port(parse_uri(address)), host_number, keys is not None)
        try:
            dealer.linger = 0
            dealer.ipv6 = "[" in address
            dealer.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_PAYLOAD_BYTES + _ENCRYPTION_BYTES)
            dealer.rcvhwm = 0  # never stop reading: opu.remote.inbox tells why; no more comes than was asked for
            dealer.sndhwm = 0  # the conversation knows how much may be on its way
            if not tries_by_itself:
                dealer.reconnect_ivl = -1
            if keys is not None:
                keys.apply(dealer)
            dealer.connect(address)
            yield dealer, watch
        finally:
            watch.close()
    finally:
        dealer.close()


def heed(
    conversation: Conversation,
    dealer: zmq.Socket[bytes],
    watch: ConnectionWatch,
    *,
    n_dropped: int,
    failure: AuthenticationError | None,
    is_refused: bool,
) -> int:
    """Tell a conversation what has become of its connection.

    Parameters
    ----------
    conversation : Conversation
        It is carried by the connection.
    dealer, watch : object
        As `connect` has yielded them.
    n_dropped : int
        How many connections had ended by the last time.
    failure : AuthenticationError or None
        Why the watch has found that there is no hope.
    is_refused : bool
        Whether it has found that nobody listens.

    Returns
    -------
    int
        How many connections have ended that the conversation knows of.
    """
    if failure is not None:
        conversation.fail(failure)
    elif is_refused and conversation.is_greeting and not has_input(dealer):  # or the server has answered meanwhile
        conversation.refused(REFUSED_S)
    elif conversation.is_greeting and watch.n_dropped > n_dropped:
        send_message(dealer, conversation.connected())  # ZeroMQ connects again, and our greeting may have been lost
        return watch.n_dropped
    elif (watch.has_ended or watch.n_dropped > n_dropped) and not conversation.is_greeting and not has_input(dealer):
        conversation.hung_up()
    return n_dropped


def send_message(dealer: zmq.Socket[bytes], message: Sequence[protocol.RawBytes]) -> None:
    """Send a message. Without a connection ZeroMQ takes none, and what is not answered is sent through the next one."""
    with contextlib.suppress(zmq.Again):
        for frame in message[:-1]:
            dealer.send(frame, _MORE)
        dealer.send(message[-1], _NOBLOCK, copy=len(message[-1]) < _ZERO_COPY_BYTES)


def receive_message(dealer: zmq.Socket[bytes]) -> list[memoryview]:
    """Receive a message that has come, in a third of the time that `recv_multipart` takes."""
    frames = [dealer.recv(_NOBLOCK, copy=False)]
    while frames[-1].more:
        frames.append(dealer.recv(_NOBLOCK, copy=False))
    return [frame.buffer for frame in frames]


def explain_fault(address: str, error: Exception) -> LinkError:
    """Tell those who wait why a link has failed."""
    if isinstance(error, zmq.ZMQError):
        return UnreachableError(f"Cannot use {address}: {error.strerror}.", "Check the address.")
    _log.error("the link to %s failed", address, exc_info=error)
    return LinkError(f"The link to {address} failed: {error!r}.", OPEN_AGAIN)


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


def look_up(uri: Uri) -> Future[Any]:
    """Begin to look up the host of an address. Nothing else than a thread ends that before the system gives up."""
    host, port = parse_host_port(uri)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    resolver = Workers(1, "opu-resolver")
    lookup = resolver.submit(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
    resolver.stop(0.0)  # when it has done that
    return lookup


def judge_host(uri: Uri, lookup: Future[Any], timeout_s: float) -> str:
    """Return the number of a host, which tells one that is unknown from one where nobody answers.

    Parameters
    ----------
    uri : Uri
        Its address.
    lookup : Future
        As `look_up` has returned it.
    timeout_s : float
        How long it was waited for.

    Returns
    -------
    str
        The first one that was found.

    Raises
    ------
    UnreachableError
        The host is unknown, or cannot be looked up.
    """
    if lookup.cancelled() or not lookup.done():
        raise _no_lookup(uri, f"no answer within {timeout_s:g} s")
    error = lookup.exception()
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        raise _no_lookup(uri, str(error.strerror)) from error
    if error is not None:
        reason = error.strerror if isinstance(error, OSError) else "no host has such a name"
        raise UnreachableError(
            f"The host {parse_host_port(uri)[0]!r} of {uri.text!r} cannot be found: {reason}.",
            "Check its name, or write its number.",
        ) from error
    number: str = lookup.result()[0][4][0]
    return number


def _no_lookup(uri: Uri, reason: str) -> UnreachableError:
    return UnreachableError(
        f"The host {parse_host_port(uri)[0]!r} of {uri.text!r} cannot be looked up: {reason}.",
        "Check the network of this machine and try again, or write the number of the host.",
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of_this_program() -> str:
    """Return what the operator of a server sees of this client."""
    return protocol.shorten(f"{Path(sys.argv[0]).name or 'python'} {os.getpid()}", protocol.MAX_NAME)
