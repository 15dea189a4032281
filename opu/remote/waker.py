"""Waking a thread that polls sockets."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Waker"]


class Waker:
    """A pair of sockets: one end is polled by a thread, the other wakes it. A ZeroMQ socket belongs to one thread."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)

    def wake(self) -> None:
        """Wake the thread. May be called from any thread, from a signal handler, and after `close`."""
        with contextlib.suppress(OSError):  # full: the thread is awake; closed: it has ended
            self._sender.send(b"\0")

    def clear(self) -> None:
        """Forget the calls so far. May be called after `close`."""
        with contextlib.suppress(OSError):  # empty, or closed
            self.receiver.recv(4096)

    def close(self) -> None:
        """Give the sockets back."""
        self._sender.close()
        self.receiver.close()
