"""Messages that have come to a server and that it has not looked at yet.

ZeroMQ stops reading from a connection whose queue is full. When the other end of such a connection resets it, the
library takes note, and ends the whole process when it next sends a ping there or answers one that was waiting: it
asserts `!_io_error` in `stream_engine_base.cpp` (seen in version 4.3.5). So the queues of the server's socket have no
bound, and ZeroMQ never stops. Instead the server takes messages out much faster than it answers them, counts those
that wait, and cuts off a sender of whom too many do.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from opu.remote.sockets import has_input

__all__ = ["Arrival", "Inbox", "shut_down"]

_READS_PER_FILL = 4096
_READ_AHEAD_BYTES = 2**26
_DISCARD_BYTES = 2**20
_MOST_PARTS = 3  # a message has two; by the third one it is seen to be none
_NOBLOCK = int(zmq.NOBLOCK)


@dataclass(frozen=True, eq=False)
class Arrival:
    """A message as it came.

    Parameters
    ----------
    route : bytes
        Names the connection.
    parts : list of zmq.Frame
        The frames of the message.
    """

    route: bytes
    parts: list[zmq.Frame]

    @property
    def frames(self) -> list[memoryview]:
        """Views of the frames."""
        return [part.buffer for part in self.parts]

    @property
    def n_bytes(self) -> int:
        """Their length."""
        return sum(map(len, self.parts))

    def read_property(self, name: str) -> str:
        """Return what ZeroMQ knows of the sender, such as its `Peer-Address`; `?` where it knows nothing."""
        try:
            return str(self.parts[-1].get(name))
        except zmq.ZMQError:
            return "?"

    @property
    def descriptor(self) -> int:
        """The file descriptor of the connection, as long as it lasts; -1 where it is unknown."""
        try:
            return int(self.parts[-1].get(zmq.SRCFD))
        except zmq.ZMQError:
            return -1


class Inbox:
    """Takes messages from a `ROUTER` as fast as they come, and hands them out in their order.

    Parameters
    ----------
    router : zmq.Socket
        Without a bound on what it receives.
    max_waiting : int
        Messages of one sender that may wait here.
    """

    def __init__(self, router: zmq.Socket[bytes], max_waiting: int) -> None:
        self._router = router
        self._max_waiting = max_waiting
        self._arrivals: deque[Arrival] = deque()
        self._waiting: Counter[bytes] = Counter()
        self._waiting_bytes = 0
        self._ignored: set[bytes] = set()
        self._drained = True
        self._has_surplus = False

    @property
    def is_empty(self) -> bool:
        """Whether everything that came has been handed out."""
        return self._drained and not self._arrivals

    def fill(self, *, is_readable: bool) -> Iterator[Arrival]:
        """Take what has come.

        Parameters
        ----------
        is_readable : bool
            Whether something has.

        Yields
        ------
        Arrival
            The message with which a sender exceeded its bound. What waits from this connection has been dropped, and
            so is what still comes.
        """
        if not is_readable:
            self._note_drained()
            return
        self._drained = False
        for _ in range(_READS_PER_FILL):
            if self._waiting_bytes > _READ_AHEAD_BYTES:
                return
            if self._has_surplus:
                self._skip_part()
                continue
            if not has_input(self._router):
                self._note_drained()
                return
            route, parts = self._receive()
            if route in self._ignored:
                continue
            arrival = Arrival(route, parts)
            if self._waiting[route] < self._max_waiting:
                self._arrivals.append(arrival)
                self._count(arrival, 1)
            else:
                self._ignore(route)
                yield arrival

    def take(self, n_messages: int) -> Iterator[Arrival]:
        """Hand out messages, the oldest first.

        Parameters
        ----------
        n_messages : int
            At most this many.

        Yields
        ------
        Arrival
            A message.
        """
        for _ in range(min(n_messages, len(self._arrivals))):
            arrival = self._arrivals.popleft()
            self._count(arrival, -1)
            yield arrival

    def _note_drained(self) -> None:
        self._drained = True
        self._ignored.clear()

    def _receive(self) -> tuple[bytes, list[zmq.Frame]]:
        """Receive the route and the frames of a message, in a fifth of the time that `recv_multipart` takes.

        A message of millions of frames takes two bytes for each on the network, and some hundred here: more than a
        message can have are skipped, a read each, so that others are not kept waiting.
        """
        receive = self._router.recv
        route = receive(_NOBLOCK)
        parts = [receive(_NOBLOCK, copy=False)]
        while parts[-1].more and len(parts) < _MOST_PARTS:
            parts.append(receive(_NOBLOCK, copy=False))
        self._has_surplus = parts[-1].more
        return route, parts

    def _skip_part(self) -> None:
        self._has_surplus = self._router.recv(_NOBLOCK, copy=False).more

    def _ignore(self, route: bytes) -> None:
        self._ignored.add(route)
        dropped = [arrival for arrival in self._arrivals if arrival.route == route]
        self._arrivals = deque(arrival for arrival in self._arrivals if arrival.route != route)
        for arrival in dropped:
            self._count(arrival, -1)

    def _count(self, arrival: Arrival, change: int) -> None:
        self._waiting[arrival.route] += change
        self._waiting_bytes += change * arrival.n_bytes
        if not self._waiting[arrival.route]:
            del self._waiting[arrival.route]


def shut_down(descriptor: int) -> None:
    """End a connection of ZeroMQ, which has no call for that. ZeroMQ notices, and frees what it keeps for it."""
    with (
        contextlib.suppress(OSError, ValueError),  # it has ended by itself, or is unknown
        socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as connection,
    ):
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # and nothing lingers
        connection.shutdown(socket.SHUT_RDWR)
        while connection.recv(_DISCARD_BYTES):  # or ZeroMQ would read what is left
            pass
