"""A connection to a server that speaks ZMTP 3.0 by hand, for tests of what a library would not do.

No library reads for it, sends what it was not asked to send, or tidies up when it ends. ZMTP is specified in
https://rfc.zeromq.org/spec/23/; only the `NULL` mechanism is spoken, that is, no keys.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from opu.errors import LinkError
from opu.remote import protocol
from opu.uri import parse_host_port, parse_uri

__all__ = ["GREETING", "READY", "RawConnection", "zmtp_frame"]

GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


def zmtp_frame(content: protocol.RawBytes, flags: int = 0) -> bytes:
    r"""Return a frame with its header.

    Parameters
    ----------
    content : bytes-like
        What it holds.
    flags : int
        1 when another frame of the message follows, 4 for a command.

    Examples
    --------
    >>> zmtp_frame(b"abc", 1)
    b'\x01\x03abc'
    """
    if len(content) < 256:
        return bytes([flags, len(content)]) + content
    return bytes([flags | _LONG]) + struct.pack(">Q", len(content)) + content


READY = zmtp_frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER", _COMMAND)


class RawConnection:
    """A client's connection, for one thread.

    A context manager that closes it without a farewell.

    Parameters
    ----------
    uri : str
        `tcp://HOST:PORT`.
    timeout_s : float
        The longest wait for the network, each time.
    receive_bytes : int, optional
        The receive buffer to ask the system for. A small one makes a client that does not read felt sooner.
    greet : bool
        Whether to carry out the handshake of ZMTP.

    Raises
    ------
    OSError
        The connection cannot be opened, was ended by the other side, or time ran out.
    """

    def __init__(
        self, uri: str, timeout_s: float = 10.0, *, receive_bytes: int | None = None, greet: bool = True
    ) -> None:
        host, port = parse_host_port(parse_uri(uri))
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_bytes is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self._socket.connect((host, port))
            if greet:
                self._greet()
        except OSError:
            self._socket.close()
            raise
        self._last_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def number(self) -> int:
        """Draw the number of a new request."""
        self._last_id += 1
        return self._last_id

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def send_frames(self, frames: Sequence[protocol.RawBytes]) -> None:
        """Send a message of any frames."""
        last = len(frames) - 1
        self.send_bytes(b"".join(zmtp_frame(frame, _MORE * (place < last)) for place, frame in enumerate(frames)))

    def send(self, message: protocol.Request, payload: protocol.RawBytes | None = None) -> None:
        """Send a request."""
        self.send_frames(protocol.encode(message, payload))

    def receive(self) -> tuple[protocol.Reply, memoryview | None]:
        """Wait for a reply.

        Raises
        ------
        LinkError
            It does not follow the protocol.
        """
        frames: list[bytes] = []
        more = True
        while more:
            flags = self._read(1)[0]
            length = struct.unpack(">Q", self._read(8))[0] if flags & _LONG else self._read(1)[0]
            if length > protocol.MAX_PAYLOAD_BYTES:
                raise LinkError(f"The server announced a frame of {length} bytes.", "It is no server of OpenOPU.")
            content = self._read(length)
            if not flags & _COMMAND:
                frames.append(content)
                more = bool(flags & _MORE)
        return protocol.decode_reply(frames)

    def is_readable(self, timeout_s: float) -> bool:
        """Wait until something can be read, and say whether it can."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def ask(self, message: protocol.Request) -> protocol.Reply:
        """Send a request without payload and wait for the next reply, whatever it answers."""
        self.send(message)
        return self.receive()[0]

    def hello(self, name: str) -> protocol.Reply:
        """Introduce the client by a name, and return what the server says to it."""
        version = protocol.PROTOCOL_VERSION
        return self.ask(protocol.Hello(request_id=self.number(), version=version, software="openopu", name=name))

    def reset(self) -> None:
        """End the connection as the system does for a process that was killed while something was on its way."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _greet(self) -> None:
        self._socket.sendall(GREETING)
        self._read(64)
        self._socket.sendall(READY)
        _, length = self._read(2)
        self._read(length)

    def _read(self, n_bytes: int) -> bytes:
        received = bytearray(n_bytes)
        view = memoryview(received)
        while view:
            taken = self._socket.recv_into(view)
            if not taken:
                raise ConnectionResetError("the other side has ended the connection")
            view = view[taken:]
        return bytes(received)
