"""Servers announced by multicast DNS, on the loopback interface alone."""

import socket
import sys
import time

import pytest

from opu.cli import scan as scan_module
from opu.errors import InputError, LinkError, MissingExtraError
from opu.registry import FoundDevice
from opu.remote import announce
from opu.remote.announce import Announcement, find_announced

LOOPBACK = ["127.0.0.1"]
GROUP = "224.0.0.251"


def multicast_fault():
    """Tell why multicast does not work on the loopback interface, if it does not."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            listener.bind(("", 0))
            membership = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            listener.settimeout(5)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"x", (GROUP, listener.getsockname()[1]))
            listener.recv(1)
        except OSError as error:
            return f"no multicast on the loopback interface: {error}"
    return None


FAULT = multicast_fault()
needs_multicast = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))


def announcement(name="Table 3", uri="tcp://127.0.0.1:5755", has_keys=False, model="toy device"):
    return Announcement(name, uri, model=model, has_keys=has_keys)


def find(uri):
    """Search until a server is found, a minute at most."""
    give_up_s = time.monotonic() + 60
    while time.monotonic() < give_up_s:
        for device in find_announced(0.5, LOOPBACK):
            if device.uri == uri:
                return device
    raise AssertionError(f"{uri} was not found")


@needs_multicast
def test_a_server_is_found_while_it_is_announced():
    with announcement("Table 3", "tcp://127.0.0.1:61755", has_keys=True):
        device = find("tcp://127.0.0.1:61755")
    assert device.summary.startswith("Table 3: toy device, served, with keys, protocol ")
    assert all(device.uri != "tcp://127.0.0.1:61755" for device in find_announced(0.5, LOOPBACK))


@needs_multicast
def test_a_server_that_listens_on_ipv6_is_found():
    with announcement("Six", "tcp://[::1]:61758"):
        assert find("tcp://[::1]:61758").summary.startswith("Six: ")


@needs_multicast
def test_two_servers_may_have_one_name():
    with announcement("Twin", "tcp://127.0.0.1:61756"), announcement("Twin", "tcp://127.0.0.1:61757"):
        names = {find(f"tcp://127.0.0.1:{port}").summary.partition(":")[0] for port in (61756, 61757)}
    assert len(names) == 2
    assert all(name.startswith("Twin") for name in names)


def test_a_server_of_the_loopback_interface_is_announced_there_alone():
    assert announcement(uri="tcp://127.0.0.1:1").addresses == ("127.0.0.1",)
    assert announcement(uri="tcp://[::1]:1").addresses == ("::1",)
    assert announcement(uri="tcp://192.0.2.7:1").addresses == ("192.0.2.7",)


def test_a_server_of_every_interface_is_announced_by_the_addresses_that_others_reach():
    addresses = announcement(uri="tcp://0.0.0.0:1").addresses
    assert addresses
    assert "127.0.0.1" not in addresses or addresses == ("127.0.0.1",)


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "a\x1b[2J", "a\n"])
def test_a_name_that_cannot_be_announced(name):
    with pytest.raises(InputError, match="1 to 63 bytes"):
        announcement(name)


def test_a_network_that_cannot_be_used(monkeypatch):
    def fail(**_):
        raise OSError(19, "No such device")

    monkeypatch.setattr("zeroconf.Zeroconf", fail)
    with pytest.raises(LinkError, match="Leave out --announce"), announcement():
        pass
    with pytest.raises(LinkError, match="No such device"):
        find_announced(0.0)


@pytest.fixture
def _without_zeroconf(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeroconf", None)


@pytest.mark.usefixtures("_without_zeroconf")
def test_without_the_extra_it_says_which():
    with pytest.raises(MissingExtraError, match=r"openopu\[discovery\]"):
        find_announced(0.0)
    with pytest.raises(MissingExtraError, match=r"openopu\[discovery\]"):
        announcement()


@pytest.mark.usefixtures("_without_zeroconf")
def test_scan_tells_what_it_found_and_why_not_more():
    found, fault = scan_module._search_network()
    assert found == []
    assert "openopu[discovery]" in fault


def test_what_others_announce_cannot_be_relied_on(monkeypatch):
    class Info:
        name = "\x1b[2J." + announce.SERVICE_TYPE
        port = 5755

        def __init__(self):
            self.decoded_properties = {"model": None, "keys": "\x00", "protocol": "9"}

        def parsed_addresses(self):
            return ["fd00::1", "192.0.2.7"]

    assert announce._describe(Info()) == FoundDevice("tcp://192.0.2.7:5755", "\x1b[2J: , served, protocol 9")
