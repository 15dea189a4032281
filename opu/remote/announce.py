"""Servers that can be found on the local network: multicast DNS (RFC 6762) and its service discovery (RFC 6763).

The service type is `_openopu._tcp`. An announcement says where a server is, what it serves and whether it wants keys;
nothing in it is secret, and nothing in it can be relied on: whoever is on the network may announce anything.
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opu.errors import InputError, LinkError, MissingExtraError
from opu.registry import FoundDevice
from opu.remote.protocol import PROTOCOL_VERSION, shorten
from opu.uri import parse_host_port, parse_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zeroconf import ServiceInfo, Zeroconf

__all__ = ["SERVICE_TYPE", "Announcement", "find_announced"]

SERVICE_TYPE = "_openopu._tcp.local."

_TXT_VERSION = "1"
_MOST_NAME_BYTES = 63
_MOST_MODEL = 64
_MOST_FOUND = 256
_RESOLVE_S = 2.0  # for all together: most have told their address when they told their name


class Announcement:
    """Announces a server as long as the context lasts.

    A server that listens on the loopback interface is announced there alone.

    Parameters
    ----------
    name : str
        What people see. If somebody else has that name, a number is put behind it.
    uri : str
        Where the server listens, as `OpuServer.uri`.
    model : str
        What it serves.
    has_keys : bool
        Whether it wants keys.

    Raises
    ------
    MissingExtraError
        The package `zeroconf` is not installed.
    InputError
        The name is empty, longer than 63 bytes, or has control characters.
    """

    def __init__(self, name: str, uri: str, *, model: str, has_keys: bool) -> None:
        _import_zeroconf()
        if not (name and name.isprintable() and len(name.encode()) <= _MOST_NAME_BYTES):
            raise InputError(f"A server cannot be announced as {name!r}.", "Use 1 to 63 bytes of printable text.")
        host, self._port = parse_host_port(parse_uri(uri))
        self.addresses = _addresses_of(host)
        # There is no multicast of IPv6 on the loopback interface, and that of IPv4 tells any address.
        is_loopback = all(ipaddress.ip_address(text).is_loopback for text in self.addresses)
        self._interfaces = ["127.0.0.1"] if is_loopback else list(self.addresses)
        self._name = name
        self._properties = {
            "txtvers": _TXT_VERSION,
            "protocol": ".".join(map(str, PROTOCOL_VERSION)),
            "model": shorten(model, _MOST_MODEL),
            "keys": "yes" if has_keys else "no",
        }
        self._zeroconf: Zeroconf | None = None

    def __enter__(self) -> Self:
        import zeroconf

        info = zeroconf.ServiceInfo(
            SERVICE_TYPE,
            f"{self._name}.{SERVICE_TYPE}",
            port=self._port,
            properties=self._properties,
            server=f"openopu-{uuid.uuid4().hex[:12]}.local.",  # the name of the machine belongs to its system
            parsed_addresses=list(self.addresses),
        )
        try:
            self._zeroconf = zeroconf.Zeroconf(interfaces=self._interfaces)
            self._zeroconf.register_service(info, allow_name_change=True)
        except (OSError, zeroconf.Error) as error:
            self._close()
            raise LinkError(
                f"The server cannot be announced on {', '.join(self.addresses)}: {error!r}.",
                "Leave out --announce, or allow multicast (UDP, port 5353) there.",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._zeroconf is not None:
            self._zeroconf.close()
            self._zeroconf = None


def find_announced(seconds: float = 2.0, interfaces: Sequence[str] | None = None) -> list[FoundDevice]:
    """List the servers that announce themselves on the local network, without opening any.

    Parameters
    ----------
    seconds : float
        How long to listen.
    interfaces : sequence of str, optional
        The addresses of the network interfaces to listen on. Default: all.

    Returns
    -------
    list of FoundDevice
        Addresses that `opu.open` takes; where a server wants keys it needs them as well. The summaries are texts from
        elsewhere: escape them.

    Raises
    ------
    MissingExtraError
        The package `zeroconf` is not installed.
    LinkError
        The network cannot be listened to.
    """
    _import_zeroconf()
    import zeroconf

    names: set[str] = set()

    def note(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:  # noqa: ARG001
        if len(names) < _MOST_FOUND:
            names.add(name)

    chosen = zeroconf.InterfaceChoice.All if interfaces is None else list(interfaces)
    try:
        with zeroconf.Zeroconf(interfaces=chosen) as network:
            zeroconf.ServiceBrowser(network, SERVICE_TYPE, handlers=[note])
            time.sleep(seconds)
            deadline_s = time.monotonic() + _RESOLVE_S
            infos = [
                network.get_service_info(SERVICE_TYPE, name, max(1, round(1000 * (deadline_s - time.monotonic()))))
                for name in sorted(names)
            ]
    except (OSError, zeroconf.Error) as error:
        raise LinkError(
            f"The network cannot be searched: {error!r}.", "Allow multicast (UDP, port 5353) on this machine."
        ) from error
    return [_describe(info) for info in infos if info is not None and info.parsed_addresses() and info.port]


def _describe(info: ServiceInfo) -> FoundDevice:
    address = min(info.parsed_addresses(), key=lambda text: ":" in text)  # IPv4 first
    host = f"[{address}]" if ":" in address else address
    texts = {key: value or "" for key, value in info.decoded_properties.items()}
    name = info.name.removesuffix(f".{SERVICE_TYPE}")
    keys = ", with keys" if texts.get("keys") == "yes" else ""
    model, version = texts.get("model", "unknown"), texts.get("protocol", "?")
    return FoundDevice(f"tcp://{host}:{info.port}", f"{name}: {model}, served{keys}, protocol {version}")


def _addresses_of(host: str) -> tuple[str, ...]:
    """Return the addresses under which a server is reached that listens at one of this machine, or at all of them."""
    import ifaddr

    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return (host,)
    known = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
    beyond = tuple(text for text in known if not ipaddress.ip_address(text).is_loopback)
    return beyond or ("127.0.0.1",)


def _import_zeroconf() -> None:
    try:
        import zeroconf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Servers are announced and found on the network with the package zeroconf, which is not installed.",
            "Install the extra: pip install 'openopu[discovery]'.",
        ) from error
