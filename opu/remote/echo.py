"""A bare echo over ZeroMQ, the yardstick for the link.

It carries messages of the sizes of a real projection between two processes and does nothing else: no protocol, no
device, no second thread on the way. What the link takes beyond it is the link's own doing.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, cast

import zmq

from opu.errors import UnreachableError
from opu.remote import protocol

if TYPE_CHECKING:
    from opu.device import Projection
    from opu.patterns import PackedPatterns

__all__ = ["Echo", "serve_echo"]

_TIMEOUT_S = 60
_REMEDY = "Look whether this machine is out of memory or of processes."


class Echo:
    """A `DEALER` here and a `ROUTER` in a process of its own, which answers each request with a reply of fixed size.

    A context manager that starts and ends the process. For one thread.

    Parameters
    ----------
    patterns : PackedPatterns
        What a real request carries.
    projection : Projection
        What the link gave for it.

    Raises
    ------
    UnreachableError
        The process does not start, or does not answer.

    Examples
    --------
    >>> import numpy as np, opu
    >>> patterns = opu.pack(np.ones((4, 100), bool))
    >>> with opu.open("sim:?preset=ideal") as device:
    ...     with device.open_session(opu.SessionConfig(n_features=100, n_outputs=50)) as session:
    ...         projection = session.project(patterns)
    >>> with Echo(patterns, projection) as echo:
    ...     header, frames = echo.submit().result()
    >>> len(frames)
    400
    """

    def __init__(self, patterns: PackedPatterns, projection: Projection) -> None:
        request = protocol.Project(
            request_id=1, session=1, first_frame_index=0, n_features=patterns.n_features, batch=len(patterns)
        )
        frames = projection.frames
        reply = protocol.Frames(
            request_id=1,
            dtype=cast("Literal['uint8', 'uint16']", frames.dtype.name),
            batch=frames.shape[0],
            n_outputs=frames.shape[1],
            provenance=projection.provenance,
        )
        self._request = protocol.encode(request, patterns.bits.data.cast("B"))
        self._reply_bytes = (len(protocol.encode(reply)[0]), frames.nbytes)

    def __enter__(self) -> Self:
        code = f"from opu.remote.echo import serve_echo; serve_echo({self._reply_bytes})"
        self._process = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        address = self._process.stdout.readline().strip()
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.rcvtimeo = 1000 * _TIMEOUT_S
        if not address:
            self.__exit__(None, None, None)
            raise UnreachableError("The process of the echo ended before it was ready.", _REMEDY)
        self._dealer.connect(address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dealer.close()
        self._context.term()
        try:
            self._process.communicate(timeout=_TIMEOUT_S)  # closes its standard input, and so it ends
        finally:
            self._process.kill()
            self._process.wait()

    def submit(self) -> Self:
        """Send a request. Each has one reply, which `result` waits for."""
        self._dealer.send_multipart(self._request, copy=False)
        return self

    def result(self) -> list[memoryview]:
        """Wait for the next reply.

        Returns
        -------
        list of memoryview
            Its header and its frames, all zero.
        """
        try:
            return [part.buffer for part in self._dealer.recv_multipart(copy=False)]
        except zmq.Again as error:
            raise UnreachableError(f"The echo has not answered within {_TIMEOUT_S} s.", _REMEDY) from error


def serve_echo(reply_bytes: tuple[int, int]) -> None:
    """Answer every request, in a process of its own, until standard input ends. The address goes to standard output.

    Parameters
    ----------
    reply_bytes : tuple of int
        The lengths of header and frames.
    """
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    reply = [bytes(length) for length in reply_bytes]

    def answer() -> None:
        while True:
            route = router.recv_multipart(copy=False)[0]
            router.send_multipart([route, *reply], copy=False)

    threading.Thread(target=answer, daemon=True).start()
    sys.stdout.write(f"tcp://127.0.0.1:{port}\n")
    sys.stdout.flush()
    sys.stdin.read()  # it ends with the process that wants the echo, however that ends
