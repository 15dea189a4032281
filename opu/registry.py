"""Opening devices by address, and the list of backends that can be.

A backend is an entry point in the group `opu.backends` whose name is the scheme and whose value is a `Backend`.
One that cannot be imported is listed with the reason and does not disturb the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from opu.device import CONTRACT_VERSION, Device
from opu.errors import UriError
from opu.uri import Uri, UriOption, parse_uri

__all__ = ["DEFAULT_URI", "Backend", "FoundDevice", "UnavailableBackend", "backends", "open_device", "scan"]

DEFAULT_URI = "sim:?preset=aurora"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundDevice:
    """A device that a backend found: an address that `opu.open` takes, and a line for people."""

    uri: str
    summary: str


@dataclass(frozen=True)
class Backend:
    """A way to reach devices.

    Parameters
    ----------
    scheme : str
        The scheme of its addresses.
    summary : str
        One line for people.
    syntax : str
        An example address.
    options : sequence of UriOption
        The keys that its addresses may carry.
    make : callable
        Makes an open device from an address and its converted options.
    find : callable
        Lists devices that are there now, without opening them.
    contract_version : int
        The version of the device contract that it was written for.
    """

    scheme: str
    summary: str
    syntax: str
    options: Sequence[UriOption]
    make: Callable[[Uri, dict[str, Any]], Device]
    find: Callable[[], list[FoundDevice]]
    contract_version: int = CONTRACT_VERSION


@dataclass(frozen=True)
class UnavailableBackend:
    """A backend that is installed and cannot be used, with the reason."""

    scheme: str
    reason: str


@cache
def backends() -> tuple[Backend | UnavailableBackend, ...]:
    """List the installed backends by scheme, those that cannot be imported with the reason.

    Returns
    -------
    tuple of Backend or UnavailableBackend
        Sorted by scheme.
    """
    found: list[Backend | UnavailableBackend] = []
    for point in sorted(entry_points(group="opu.backends"), key=lambda point: point.name):
        try:
            backend = point.load()
        except Exception as error:  # noqa: BLE001 - a third party's import may raise anything
            found.append(UnavailableBackend(point.name, f"{point.value}: {type(error).__name__}: {error}"))
            continue
        if not isinstance(backend, Backend):
            found.append(UnavailableBackend(point.name, f"{point.value} is not an opu.registry.Backend"))
        elif backend.contract_version != CONTRACT_VERSION:
            found.append(
                UnavailableBackend(
                    point.name,
                    f"written for version {backend.contract_version} of the device contract, this is "
                    f"{CONTRACT_VERSION}: install a matching release",
                )
            )
        else:
            found.append(backend)
    return tuple(found)


def open_device(uri: str | None = None) -> Device:
    """Open a device. Users call it as `opu.open`.

    Parameters
    ----------
    uri : str, optional
        Its address, for example `sim:?preset=aurora&seed=7` or `tcp://127.0.0.1:5755`. Default: the environment
        variable `OPU_URI`, and where that is empty too, the simulated device `sim:?preset=aurora`.

    Returns
    -------
    Device
        Open; close it, or use it in a `with` statement.

    Raises
    ------
    UriError
        The address is malformed, or its scheme or an option is unknown; the message lists the known ones.
    UnreachableError
        The address names a server, and nobody answers.

    Examples
    --------
    >>> import opu
    >>> with opu.open("sim:?preset=ideal&seed=7") as device:
    ...     device.describe().model
    'simulated bench, preset ideal'
    """
    if uri is not None:
        return _open(uri)
    text = os.environ.get("OPU_URI")
    if not text:
        return _open(DEFAULT_URI)
    try:
        return _open(text)
    except UriError as error:
        raise UriError(f"The environment variable OPU_URI: {error.problem}", error.remedy) from error


def _open(text: str) -> Device:
    parsed = parse_uri(text)
    for backend in backends():
        if backend.scheme != parsed.scheme:
            continue
        if isinstance(backend, UnavailableBackend):
            raise UriError(f"The backend of {text!r} cannot be used: {backend.reason}.", "See opu info.")
        return backend.make(parsed, parsed.read_options(backend.options))
    known = ", ".join(backend.scheme for backend in backends())
    raise UriError(f"Unknown scheme {parsed.scheme!r} in {text!r}.", f"Known schemes: {known}.")


def scan() -> list[FoundDevice]:
    """List the devices that the backends find, without opening any.

    Returns
    -------
    list of FoundDevice
        Addresses that `opu.open` takes.
    """
    found = []
    for backend in backends():
        if isinstance(backend, Backend):
            try:
                found.extend(backend.find())
            except Exception:  # noqa: BLE001 - a third party's search may raise anything, and must not end the others
                _log.warning("the backend %s: could not search", backend.scheme, exc_info=True)
    return found
