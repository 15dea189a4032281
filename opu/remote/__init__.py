"""The link: one device, shared over the network.

`docs/protocol.md` specifies the messages. `opu.remote.protocol` encodes and checks them and opens no socket,
`opu.remote.server` serves a device, and `opu.remote.client` is the backend `tcp:`, a device like any other.
`opu.remote.aio` is the same for programs that run in an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opu.registry import Backend, FoundDevice
from opu.uri import Uri, UriOption

if TYPE_CHECKING:
    from opu.device import Device

__all__ = ["BACKEND", "DEFAULT_BIND", "OPEN_AGAIN"]

DEFAULT_BIND = "tcp://127.0.0.1:5755"
OPEN_AGAIN = "Call close(), then open the device again."

_SHORTEST_S, _LONGEST_S = 0.01, 86400.0
_ROLES = ("observer", "user", "operator")


def _seconds(text: str) -> float:
    value = float(text)
    if not _SHORTEST_S <= value <= _LONGEST_S:
        raise ValueError(f"it is not from {_SHORTEST_S:g} to {_LONGEST_S:g}")
    return value


def _seconds_or_none(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LONGEST_S:
        raise ValueError(f"it is not from 0 to {_LONGEST_S:g}")
    return value


def _role(text: str) -> str:
    if text not in _ROLES:
        raise ValueError(f"it is none of {', '.join(_ROLES)}")
    return text


def _make(uri: Uri, options: dict[str, Any]) -> Device:
    from opu.remote.client import open_remote

    return open_remote(uri, **options)


def _find() -> list[FoundDevice]:
    from opu.remote.client import find_local

    return find_local(DEFAULT_BIND)


BACKEND = Backend(
    scheme="tcp",
    summary="A device that another process serves (opu serve)",
    syntax="tcp://127.0.0.1:5755?timeout_s=5",
    options=[
        UriOption(
            "timeout_s",
            _seconds,
            5.0,
            f"seconds without a sign of life before the server counts as gone, {_SHORTEST_S:g} to {_LONGEST_S:g}",
        ),
        UriOption(
            "reconnect_s",
            _seconds_or_none,
            30.0,
            f"seconds to try to come back when the connection has ended, 0 (not at all) to {_LONGEST_S:g}",
        ),
        UriOption("role", _role, None, f"what this client wants to be at most: {', '.join(_ROLES)}"),
        UriOption("key", str, None, "file with the secret key of this client (opu keygen client)"),
        UriOption("server_key", str, None, "public key of the server: the file that opu keygen server wrote, or Z85"),
    ],
    make=_make,
    find=_find,
)
