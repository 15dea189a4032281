"""A relay that carries the connections of others and cuts them off when told to: for stress, and tests of returning."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

from opu.remote.waker import Waker
from opu.uri import parse_host_port, parse_uri

__all__ = ["Relay"]

_CHUNK_BYTES = 2**18
_LISTEN_BACKLOG = 64


class Relay:
    """Listens on the loopback interface, and carries what comes to a server and back. A context manager.

    Parameters
    ----------
    address : str
        Of the server, `tcp://HOST:PORT`.
    """

    def __init__(self, address: str) -> None:
        self._target = parse_host_port(parse_uri(address))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG)
        self._listener.settimeout(None)
        self.uri = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        """What clients open."""
        self._others: dict[socket.socket, socket.socket] = {}
        self._wanted_cuts = 0
        self._ended = False
        self._waker = Waker()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._waker.receiver, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="opu-relay", daemon=True)

    def cut(self) -> None:
        """End all connections, whatever is on its way. New ones are carried again."""
        self._wanted_cuts += 1
        self._waker.wake()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._waker.wake()
        self._thread.join()

    def _run(self) -> None:
        done_cuts = 0
        while not self._ended:
            for key, _ in self._selector.select():
                if key.fileobj is self._waker.receiver:
                    self._waker.clear()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._others:
                    self._carry(key.fileobj)
            if done_cuts != self._wanted_cuts:
                done_cuts = self._wanted_cuts
                self._end_all()
        self._end_all()
        self._selector.close()
        self._listener.close()
        self._waker.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._others[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _carry(self, source: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK_BYTES)
            if data:
                self._others[source].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._end(source)

    def _end_all(self) -> None:
        while self._others:
            self._end(next(iter(self._others)))

    def _end(self, one: socket.socket) -> None:
        for connection in (one, self._others[one]):
            del self._others[connection]
            self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.close()
