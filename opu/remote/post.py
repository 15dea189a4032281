"""Replies on their way: what a client has not been sent yet, and what it has not said to have yet."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from opu.remote import protocol

__all__ = ["Outbox", "Parcel", "ReplyCache", "Tracker", "Wire", "WireFullError", "WireGoneError"]

_ON_THE_WAY_BYTES = 2**26
_MAX_CACHED_REPLIES = 2048


class WireFullError(Exception):
    """The network does not take more for this route now."""


class WireGoneError(Exception):
    """There is no such connection any more."""


class Tracker(Protocol):
    """Tells when the network needs the memory of a message no more."""

    @property
    def done(self) -> bool:
        """Whether it does not."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """An encoded reply.

    Parameters
    ----------
    header : bytes
        Its first frame.
    payload : memoryview or None
        Its second one.
    """

    header: bytes
    payload: memoryview | None = None

    @staticmethod
    def of(reply: protocol.Reply, payload: memoryview | None = None) -> Parcel:
        """Encode a reply."""
        return Parcel(bytes(protocol.encode(reply)[0]), payload)

    @property
    def n_bytes(self) -> int:
        """Its length."""
        return len(self.header) + (0 if self.payload is None else self.payload.nbytes)


class Wire(Protocol):
    """What carries replies: the socket of a server, or a stand-in that loses and delays them."""

    def send(self, route: bytes, parcel: Parcel) -> Tracker | None:
        """Send without waiting.

        Returns
        -------
        Tracker or None
            For large replies, when their memory is free.

        Raises
        ------
        WireFullError
            Not now.
        WireGoneError
            Never.
        """

    def hang_up(self, route: bytes, descriptor: int, parcel: Parcel) -> None:
        """Send a last message if the network takes it at once, and end the connection."""


class Outbox:
    """The replies that one client has not been sent yet, in their order."""

    def __init__(self) -> None:
        self._parcels: deque[Parcel] = deque()
        self._on_the_way: deque[tuple[Tracker, int]] = deque()
        self.moved_s = 0.0

    def __len__(self) -> int:
        return len(self._parcels)

    def put(self, parcel: Parcel, now_s: float) -> None:
        """Add a reply."""
        if not self._parcels:
            self.moved_s = now_s
        self._parcels.append(parcel)

    def flush(self, wire: Wire, route: bytes, now_s: float) -> None:
        """Send what the network takes; the rest stays.

        Raises
        ------
        WireGoneError
            The connection has ended.
        """
        while self._parcels and self.count_on_the_way() < _ON_THE_WAY_BYTES:
            parcel = self._parcels[0]
            try:
                tracker = wire.send(route, parcel)
            except WireFullError:
                return
            self._parcels.popleft()
            self.moved_s = now_s
            if tracker is not None:
                self._on_the_way.append((tracker, parcel.n_bytes))

    def count_on_the_way(self) -> int:
        """Return how many bytes of large replies the network still needs."""
        while self._on_the_way and self._on_the_way[0][0].done:
            self._on_the_way.popleft()
        return sum(size for _, size in self._on_the_way)

    def clear(self) -> None:
        """Forget everything: the connection has ended."""
        self._parcels.clear()
        self._on_the_way.clear()


class ReplyCache:
    """The replies that a client may ask for again because it has not said that it has them."""

    def __init__(self) -> None:
        self._parcels: dict[int, Parcel] = {}  # in the order in which they were kept
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._parcels)

    def find(self, request_id: int) -> Parcel | None:
        """Return the reply to a request, if it is kept."""
        return self._parcels.get(request_id)

    def keep(self, request_id: int, parcel: Parcel, room_bytes: int) -> None:
        """Keep a reply, and give up the oldest ones that do not fit beside it.

        Parameters
        ----------
        request_id : int
            The request that it answers.
        parcel : Parcel
            The reply.
        room_bytes : int
            How much may be kept altogether.
        """
        if request_id in self._parcels:
            self._drop(request_id)  # a request that is refused before anybody looks whether it was answered before
        self._parcels[request_id] = parcel
        self.n_bytes += parcel.n_bytes
        while self._parcels and (self.n_bytes > room_bytes or len(self._parcels) > _MAX_CACHED_REPLIES):
            self._drop(next(iter(self._parcels)))

    def acknowledge(self, answered: int) -> None:
        """Forget the replies to all requests with numbers below one."""
        for request_id in [number for number in self._parcels if number < answered]:
            self._drop(request_id)

    def clear(self) -> None:
        """Forget everything."""
        self._parcels.clear()
        self.n_bytes = 0

    def _drop(self, request_id: int) -> None:
        self.n_bytes -= self._parcels.pop(request_id).n_bytes
