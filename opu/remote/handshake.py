"""What becomes of a connection, seen by a client: whether it has ended, and why its handshake failed.

A server that turns a connection away says little, and ZeroMQ tries again in silence. What it does notice it tells
through events of the socket: `HANDSHAKE_FAILED_AUTH` when the server does not admit the key, and others that leave open
which side objected to what. Then a look at the greeting of the server decides, which names its mechanism before
anything secret passes (https://rfc.zeromq.org/spec/23/). Where no attempt to connect succeeds, another look tells
whether anybody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from opu.errors import AuthenticationError

__all__ = ["REFUSED_S", "ConnectionWatch", "read_mechanism", "read_mechanism_async"]

REFUSED_S = 2.5
"""How long nobody may listen before one does not wait for a server any more: it may just be starting."""

_MONITOR = "inproc://openopu-handshake"
_FAILURES = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_AUTH
_ENDS = zmq.Event.DISCONNECTED | zmq.Event.CLOSED
_CONNECTED = zmq.Event.CONNECTED
_SUCCESS = zmq.Event.HANDSHAKE_SUCCEEDED
_TRIES = 2  # one failure may be a server that is just being stopped
_LOOK_S = 1.0
_LOOKS = 10
_SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
_OPENING = _SIGNATURE + b"\x03\x00"  # a version, and no mechanism that the server might object to
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)

_numbers = itertools.count()


class ConnectionWatch:
    """Watches a socket that is not connected yet. It belongs to the thread of the socket.

    Parameters
    ----------
    dealer : zmq.Socket
        The socket.
    host, port : str, int
        Where it will connect.
    host_number : str
        The number of the host, for looks that must not wait until a name is looked up.
    has_keys : bool
        Whether it uses keys.
    """

    def __init__(self, dealer: zmq.Socket[Any], host: str, port: int, host_number: str, has_keys: bool) -> None:
        self._dealer = dealer
        self._host, self._port = host, port
        self._host_number = host_number
        self._has_keys = has_keys
        self._failures = 0
        self._looks_left = _LOOKS
        self._failing_since_s: float | None = None
        self.has_ended = False
        """Whether the last connection, or the last attempt to make one, has ended."""
        self.n_dropped = 0
        """How many connections have ended that had been made."""
        where = f"{_MONITOR}-{next(_numbers)}"
        dealer.monitor(where, int(_FAILURES | _ENDS | _CONNECTED | _SUCCESS))
        self.receiver = dealer.context.socket(zmq.PAIR)
        self.receiver.linger = 0
        self.receiver.rcvhwm = 0  # a full queue would stop the thread of ZeroMQ that writes the events
        self.receiver.connect(where)

    def find_failure(self) -> AuthenticationError | None:
        """Read the events that have come, and look at the server if they leave the reason of a failure open.

        Returns
        -------
        AuthenticationError or None
            Why there is no hope, if there is none.
        """
        failure = self.read_events()
        if failure is not None or not self.is_suspicious:
            return failure
        return self.judge(read_mechanism(self._host, self._port))

    async def find_failure_async(self) -> AuthenticationError | None:
        """Do as `find_failure`, and leave the event loop to others during the look."""
        failure = self.read_events()
        if failure is not None or not self.is_suspicious:
            return failure
        return self.judge(await read_mechanism_async(self._host, self._port))

    def read_events(self) -> AuthenticationError | None:
        """Read the events that have come.

        Returns
        -------
        AuthenticationError or None
            Why there is no hope, if they tell that there is none.
        """
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self.receiver.recv_multipart(zmq.NOBLOCK))
                if event["event"] & _ENDS:
                    self.has_ended = True
                    self.n_dropped += event["event"] == zmq.Event.DISCONNECTED
                    if self._failing_since_s is None:
                        self._failing_since_s = time.monotonic()
                    continue
                if event["event"] == _CONNECTED:
                    self._failing_since_s = None
                    continue
                if event["event"] == _SUCCESS:
                    self.has_ended = False  # what ended before were attempts, or is counted
                    continue
                if event["event"] == zmq.Event.HANDSHAKE_FAILED_AUTH:
                    return self._not_admitted()
                # After a fault of the protocol, such as another mechanism, ZeroMQ does not try again.
                self._failures += _TRIES if event["event"] == zmq.Event.HANDSHAKE_FAILED_PROTOCOL else 1
        return None

    def judge(self, mechanism: str | None) -> AuthenticationError | None:
        """Explain the failures by what a look at the server has shown.

        Parameters
        ----------
        mechanism : str or None
            What `read_mechanism` returned.
        """
        error = self._compare(mechanism)
        # Who did not answer the look in time is looked at again: ZeroMQ may not try any more, and tell nothing new.
        self._looks_left -= 1
        if error is not None or self._looks_left == 0:
            self._failures = 0
        return error

    @property
    def is_suspicious(self) -> bool:
        """Whether a failure has been seen and not been explained."""
        return self._failures >= _TRIES

    def is_refused(self) -> bool:
        """Return whether nobody has listened for a while, which may take a look, within a second."""
        return self._fails_for_long() and _refuses(self._host_number, self._port)

    async def is_refused_async(self) -> bool:
        """Do as `is_refused`, and leave the event loop to others during the look."""
        return self._fails_for_long() and await _refuses_async(self._host_number, self._port)

    def _fails_for_long(self) -> bool:
        """Return, once in a while, whether no attempt to connect has succeeded meanwhile."""
        now_s = time.monotonic()
        if self._failing_since_s is None or now_s - self._failing_since_s < REFUSED_S:
            return False
        self._failing_since_s = now_s
        return True

    def close(self) -> None:
        """Stop watching, before the socket is closed."""
        self._dealer.disable_monitor()
        self.receiver.close()

    @property
    def _where(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def _compare(self, mechanism: str | None) -> AuthenticationError | None:
        if mechanism == "CURVE" and not self._has_keys:
            return AuthenticationError(
                f"The server at {self._where} talks to clients with keys alone, and this one has none.",
                "Make a pair with: opu keygen client - have its public key admitted, and add "
                "?key=NAME.key&server_key=server.pub to the address.",
            )
        if mechanism == "CURVE":
            return AuthenticationError(
                f"The server at {self._where} is not the one whose key was given as server_key.",
                "Ask its operator for its server.pub. If that has not changed, somebody else may be answering there.",
            )
        if mechanism == "NULL" and self._has_keys:
            return AuthenticationError(
                f"The server at {self._where} has no keys, and this client was told to use some.",
                "Have it started with --keys; or leave key and server_key out of the address, and trust the network.",
            )
        return None

    def _not_admitted(self) -> AuthenticationError:
        return AuthenticationError(
            f"The server at {self._where} does not admit the key of this client.",
            "Ask its operator to put the public key on the allow-list, or to look into the audit log for the reason.",
        )


def read_mechanism(host: str, port: int) -> str | None:
    """Read which mechanism of security a ZeroMQ socket uses, from the greeting that it sends to everybody.

    Parameters
    ----------
    host, port : str, int
        Where it listens.

    Returns
    -------
    str or None
        `NULL`, `PLAIN` or `CURVE`; None if nobody answers like that within a second.
    """
    greeting = b""
    try:
        with socket.create_connection((host, port), timeout=_LOOK_S) as connection:
            connection.sendall(_OPENING)
            while len(greeting) < _GREETING_BYTES:
                received = connection.recv(_GREETING_BYTES - len(greeting))
                if not received:
                    return None
                greeting += received
    except OSError:
        return None
    return _mechanism_of(greeting)


async def read_mechanism_async(host: str, port: int) -> str | None:
    """Do as `read_mechanism`, and leave the event loop to others meanwhile."""
    writer = None
    try:
        async with asyncio.timeout(_LOOK_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(_OPENING)
            return _mechanism_of(await reader.readexactly(_GREETING_BYTES))
    except (OSError, asyncio.IncompleteReadError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


def _refuses(host_number: str, port: int) -> bool:
    """Return whether a host says that nobody listens at a port."""
    try:
        with socket.create_connection((host_number, port), timeout=_LOOK_S):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # ZeroMQ goes on trying


async def _refuses_async(host_number: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_LOOK_S):
            _, writer = await asyncio.open_connection(host_number, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.transport.abort()
    return False


def _mechanism_of(greeting: bytes) -> str | None:
    if greeting[0] != _SIGNATURE[0] or greeting[9] != _SIGNATURE[9]:
        return None
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
