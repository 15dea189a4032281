"""A small HTTP server that tells how a server is doing: `/metrics` for Prometheus, `/health` for whoever restarts it.

Whoever can connect may read, and nobody can change anything. It answers one GET or HEAD for each connection, gives each
a few seconds and kilobytes, and serves a few at a time.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from opu.errors import LinkError, RefusedError, UriError
from opu.remote.metrics import CONTENT_TYPE, render

if TYPE_CHECKING:
    from opu.remote.protocol import ServerStatus

__all__ = ["MetricsServer", "parse_listen"]

_log = logging.getLogger(__name__)

_TIME_S = 5.0
_MOST_BYTES = 8192
_MOST_AT_A_TIME = 8
_TEXT = "text/plain; charset=utf-8"


def parse_listen(where: str, *, beyond_loopback: bool = False) -> tuple[str, int]:
    """Check the address at which metrics shall be read.

    Parameters
    ----------
    where : str
        `HOST:PORT`; the port 0 lets the system choose one, and `*` is every address of IPv4.
    beyond_loopback : bool
        Whether it may be an address that other machines reach.

    Returns
    -------
    tuple of (str, int)
        The number of an interface, and the port.

    Raises
    ------
    UriError
        It is of another form.
    RefusedError
        It is not on the loopback interface, and may not be beyond.

    Examples
    --------
    >>> parse_listen("localhost:9755"), parse_listen("[::1]:0")
    (('127.0.0.1', 9755), ('::1', 0))
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@]+)):([0-9]{1,5})", where)
    host = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(match[2], match[1] or match[2]) if match else ""  # noqa: S104
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if match is None or address is None or int(match[3]) > 65535:
        raise UriError(
            f"Metrics cannot be read at {where!r}.",
            "Write HOST:PORT with the number of a network interface, for example 127.0.0.1:9755, or [::1]:9755.",
        )
    if not (beyond_loopback or address.is_loopback):
        raise RefusedError(
            f"Metrics at {where!r} could be read by everybody who can reach it, the names of clients among them.",
            "Use the loopback interface, for example 127.0.0.1:9755; or allow it with --metrics-beyond-loopback.",
        )
    return host, int(match[3])


class MetricsServer:
    """Serves `/metrics` and `/health` in threads of its own.

    A context manager: `with` starts it and stops it.

    Parameters
    ----------
    address : tuple of (str, int)
        Where, as `parse_listen` returns it.
    status : callable
        Returns the status of the server. It is called from any thread.
    find_fault : callable
        Returns why the server is not well, None if it is. It is called from any thread.

    Raises
    ------
    LinkError
        The address cannot be used.
    """

    def __init__(
        self, address: tuple[str, int], status: Callable[[], ServerStatus], find_fault: Callable[[], str | None]
    ) -> None:
        self._pages = {"/metrics": self._show_metrics, "/health": self._show_health}
        self._status = status
        self._find_fault = find_fault
        try:
            self._server = _Server(address, self._answer)
        except OSError as error:
            raise LinkError(
                f"Metrics cannot be served at {address[0]}, port {address[1]}: {error.strerror}.",
                "Stop whatever listens there, or choose another port with --metrics.",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="opu-metrics", daemon=True)

    @property
    def url(self) -> str:
        """Its address, with the port that the system chose."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, path: str) -> tuple[HTTPStatus, str, str]:
        page = self._pages.get(path.partition("?")[0])
        if page is None:
            return HTTPStatus.NOT_FOUND, _TEXT, "There are /metrics and /health.\n"
        try:
            return page()
        except Exception:  # noqa: BLE001 - whatever it was, who asks must hear of it
            _log.exception("telling %s failed", path.partition("?")[0])
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, "This failed; the log of the server tells more.\n"

    def _show_metrics(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, CONTENT_TYPE, render(self._status())

    def _show_health(self) -> tuple[HTTPStatus, str, str]:
        fault = self._find_fault()
        if fault is None:
            return HTTPStatus.OK, _TEXT, "ok\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{fault}\n"


class _Server(ThreadingHTTPServer):
    """Serves a few connections at a time; more are closed at once."""

    def __init__(self, address: tuple[str, int], answer: Callable[[str], tuple[HTTPStatus, str, str]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answer = answer
        self._places = threading.BoundedSemaphore(_MOST_AT_A_TIME)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of a name that the base class would do."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left now
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request. What it reads is bounded as a whole, in time and bytes, and not line by line."""

    server: _Server
    server_version: ClassVar[str] = "openopu"  # type: ignore[misc]  # Do not tell the version of Python.
    sys_version: ClassVar[str] = ""  # type: ignore[misc]

    timeout = _TIME_S  # of the whole answer as well: that is how sendall counts

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(io.BytesIO(self._read_head()))

    def _read_head(self) -> bytes:
        """Read what comes before the body; nothing if it is too long, or takes too long."""
        deadline_s = time.monotonic() + _TIME_S
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.connection.settimeout(max(0.001, deadline_s - time.monotonic()))
            received = self.connection.recv(_MOST_BYTES)
            head += received
            if not received or len(head) > _MOST_BYTES:
                return b""
        self.connection.settimeout(_TIME_S)
        return head

    def do_GET(self) -> None:
        self._send(*self.server.answer(self.path))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse, without a copy of what was asked."""
        status = HTTPStatus(code)
        self._send(status, _TEXT, f"{status.phrase}\n")

    def _send(self, status: HTTPStatus, media_type: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write nothing: scrapes come every few seconds."""
