"""The status of a served device, for the commands that look at servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import opu
from opu.errors import UriError
from opu.uri import parse_uri

if TYPE_CHECKING:
    from opu.remote.client import RemoteDevice

__all__ = ["watching", "with_default"]

_FAREWELL_S = 1.0


@contextmanager
def watching(uri: str) -> Iterator[RemoteDevice]:
    """Connect to a server as an observer, for whom there is a place when the server is full.

    Parameters
    ----------
    uri : str
        The address of a served device. It may ask for another role.

    Yields
    ------
    RemoteDevice
        It is closed at the end, if the server answers within a second: one whose device is stuck would not.

    Raises
    ------
    UriError
        The address is not that of a server.
    OpuError
        As `opu.open`.
    """
    if parse_uri(uri).scheme != "tcp":
        raise UriError(f"No server is named by {uri!r}.", "Give the address of one: tcp://HOST:PORT.")
    from opu.remote.client import RemoteDevice
    from opu.remote.workers import Workers

    device = opu.open(with_default(uri, "role", "observer"))
    assert isinstance(device, RemoteDevice)  # noqa: S101 - the backend of tcp: opens nothing else
    try:
        yield device
    finally:
        closer = Workers(1, "opu-closer")
        closer.submit(device.close)
        closer.stop(_FAREWELL_S)


def with_default(uri: str, option: str, value: str) -> str:
    """Return an address with an option that it does not have yet.

    Examples
    --------
    >>> with_default("tcp://127.0.0.1:5755", "role", "observer")
    'tcp://127.0.0.1:5755?role=observer'
    >>> with_default("tcp://127.0.0.1:5755?role=user", "role", "observer")
    'tcp://127.0.0.1:5755?role=user'
    >>> with_default("tcp://127.0.0.1:5755?", "role", "observer")
    'tcp://127.0.0.1:5755?role=observer'
    """
    options = parse_uri(uri).options
    if option in options:
        return uri
    return f"{uri}&{option}={value}" if options else f"{uri.removesuffix('?')}?{option}={value}"
