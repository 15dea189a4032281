"""The connections of a server, as ZeroMQ tells of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

__all__ = ["Connections"]

_MONITOR = "inproc://openopu-connections"
_FAILURES = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_AUTH
_ENDS = zmq.Event.DISCONNECTED | zmq.Event.CLOSED
_LOOK_S = 1.0


class Connections:
    """Knows which connections are open, and which of them belong to nobody for too long.

    It belongs to the thread of the socket.

    Parameters
    ----------
    router : zmq.Socket
        A socket that is not bound yet.
    idle_s : float
        How long a connection may stand without belonging to a client.
    note_failure : callable
        Told of each handshake that failed.
    """

    def __init__(
        self, router: zmq.Socket[Any], idle_s: float, note_failure: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._router = router
        self._idle_s = idle_s
        self._note_failure = note_failure
        self._idle_since_s: dict[int, float] = {}
        self._looked_s = time.monotonic()
        router.monitor(_MONITOR, int(zmq.Event.ACCEPTED | _ENDS | _FAILURES))
        self.receiver = router.context.socket(zmq.PAIR)
        self.receiver.linger = 0
        self.receiver.rcvhwm = 0  # a full queue would stop the thread of ZeroMQ that writes the events
        self.receiver.connect(_MONITOR)

    def find_idle(self, has_client: Callable[[int], bool]) -> Iterator[int]:
        """Look from time to time for connections that nobody uses.

        Parameters
        ----------
        has_client : callable
            Tells whether a client speaks through a connection.

        Yields
        ------
        int
            The file descriptor of a connection to be ended.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < min(_LOOK_S, self._idle_s):
            return
        self._looked_s = now_s
        for descriptor, since_s in list(self._idle_since_s.items()):
            if has_client(descriptor):
                self._idle_since_s[descriptor] = now_s
            elif now_s - since_s > self._idle_s:
                del self._idle_since_s[descriptor]
                yield descriptor

    def read_events(self) -> None:
        """Take note of what has happened, when `receiver` says that something has."""
        now_s = time.monotonic()
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self.receiver.recv_multipart(zmq.NOBLOCK))
                if event["event"] & _FAILURES:
                    self._note_failure(event)
                elif event["event"] & _ENDS:
                    self._idle_since_s.pop(int(event["value"]), None)
                else:  # accepted; the event of a handshake that succeeded does not name its connection
                    self._idle_since_s[int(event["value"])] = now_s

    def close(self) -> None:
        """Stop listening to events, before the socket is closed."""
        self._router.disable_monitor()
        self.receiver.close()
