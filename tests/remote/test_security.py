"""Who comes in, who does not, and what each of them gets. The table of `docs/security.md` is checked here."""

import contextlib
import logging
import re
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
import zmq
from link_helpers import HandConnection, toy_frames, wait_until
from test_link_faults import Impostor, frames_reply, projecting

import opu
from opu.device import SessionConfig, SettingsChange
from opu.errors import (
    BusyError,
    DataFileError,
    ForbiddenError,
    InputError,
    LeaseError,
    LinkError,
    OpuError,
    RefusedError,
    UriError,
)
from opu.remote import client as remote_client
from opu.remote import gate, protocol, security
from opu.remote.client import RemoteControl
from opu.remote.gate import Gate, Peer, TokenBucket, open_gate
from opu.remote.handshake import read_mechanism
from opu.remote.security import AllowList, ClientKeys, make_key_pair, read_key_pair, read_public_key
from opu.remote.server import OpuServer, parse_bind
from opu.testing.conformance import CHECKS

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)
PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


class Keys:
    """A directory with the keys of a server and of its clients."""

    def __init__(self, folder):
        self.folder = folder
        self.allow = folder / "allow.toml"
        self.server = self.make("server", "server")
        self.clients = []

    def make(self, kind, name):
        pair = make_key_pair(kind, name)
        security.write_key_files(pair, self.folder, "user")
        return pair

    def client(self, name, **entry):
        """Make a client and admit it; return the options of an address."""
        pair = self.make("client", name)
        self.clients.append({"name": name, "public_key": pair.public_key, "role": "user"} | entry)
        self.write()
        return self.options(name)

    def change(self, name, **entry):
        for client in self.clients:
            if client["name"] == name:
                client.update(entry)
        self.write()

    def write(self):
        text = "".join(
            "[[client]]\n"
            + "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in client.items())
            for client in self.clients
        )
        aside = self.folder / "allow.new"  # a file that is written in place can be read half-written
        aside.write_text(text)
        aside.chmod(0o644)
        aside.replace(self.allow)

    def options(self, name, server="server"):
        return f"?timeout_s=5&key={self.folder}/{name}.key&server_key={self.folder}/{server}.pub"

    def keys(self, name):
        return ClientKeys.read(f"{self.folder}/{name}.key", f"{self.folder}/server.pub")

    def gate(self):
        return open_gate(keys=self.folder)


@pytest.fixture
def keys(tmp_path):
    made = Keys(tmp_path / "keys")
    made.client("anna")
    return made


@pytest.fixture
def server(serve, keys):
    return serve(gate=keys.gate())


@pytest.fixture(autouse=True)
def _audit(caplog):
    caplog.set_level(logging.INFO, logger="opu.remote.audit")


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch):
    """The allow-list is looked at whenever it is used."""
    monkeypatch.setattr(security, "_LOOK_EVERY_S", 0.0)


def refused(uri):
    with pytest.raises(OpuError) as caught:
        opu.open(uri)
    return caught.value.code


def connection_to(server):
    return socket.create_connection(server.uri.removeprefix("tcp://").split(":"), timeout=10)


def read_to_the_end(connection):
    with contextlib.suppress(ConnectionError):
        while connection.recv(1000):
            pass


# What each of these gets

CASES = {}
WITHOUT_CURVE = "it came without CURVE, or it ended its handshake"  # one of them, by who notices first
TABLE = PAGE.split("## What each of these gets")[1].split("\n## ")[0]
ROWS = {cells[0]: cells[1:] for cells in re.findall(r"^" + r"\| ([^|]+) " * 4 + r"\|$", TABLE, re.MULTILINE)[1:]}


def case(name):
    """Register a case, which returns what the client gets, a code or other words of the page, and a line of the log."""

    def register(function):
        CASES[name] = function
        return function

    return register


@case("wrong key")
def _wrong_key(keys, server, **_):
    keys.make("client", "eve")
    return refused(server.uri + keys.options("eve")), "key not on the allow-list"


@case("wrong key of the server")
def _wrong_server_key(keys, server, **_):
    keys.make("server", "other")
    return refused(server.uri + keys.options("anna", "other")), "it took another key for the server's"


@case("no key")
def _no_key(server, **_):
    return refused(server.uri + "?timeout_s=5"), WITHOUT_CURVE


@case("revoked key")
def _revoked_key(keys, server, **_):
    keys.change("anna", revoked=True)
    return refused(server.uri + keys.options("anna")), "key revoked"


@case("key revoked while connected")
def _revoked_while_connected(keys, server, **_):
    with opu.open(server.uri + keys.options("anna")) as device:
        keys.change("anna", revoked=True)
        with pytest.raises(LinkError) as caught:
            device.open_session(CONFIG)
    assert not server.snapshot().clients
    return caught.value.code, "key revoked while it was connected"


@case("server without keys")
def _server_without_keys(keys, serve, **_):
    return refused(serve().uri + keys.options("anna")), None


@case("plain client")
def _plain_client(server, **_):
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.plain_username, dealer.plain_password = b"anna", b"secret"
    dealer.connect(server.uri)
    dealer.send(b"hello")
    assert not dealer.poll(500)
    dealer.close()
    context.term()
    return "nothing", WITHOUT_CURVE


@case("no ZeroMQ at all")
def _no_zeromq(server, serve, **_):
    for asked in (server, serve()):
        with connection_to(asked) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: optics.example\r\n\r\n" + bytes(100))
            read_to_the_end(connection)
    return "connection ends", None


@case("connection without a word")
def _no_word(server, serve, **_):
    for asked in (server, serve()):
        connection_to(asked).close()
        wait_until(lambda asked=asked: asked.snapshot().counters.turned_away["handshake_ended"] == 1)
    return "nothing", "it ended its handshake"


@case("observer who projects")
def _observer(keys, server, **_):
    keys.client("olga", role="observer")
    with opu.open(server.uri + keys.options("olga")) as device:
        assert device.describe().model == "toy device"
        assert len(device.server_status().clients) == 1
        with pytest.raises(ForbiddenError, match="'olga' has the role 'observer'") as caught:
            device.open_session(CONFIG)
    return caught.value.code, "OpenSession of an observer"


@case("user who changes settings")
def _user_who_changes(keys, server, raw, **_):
    client = raw(server.uri, keys=keys.keys("anna"))
    client.hello()
    change = SettingsChange(laser_power_mw=5.0)
    return client.ask(protocol.ChangeSettings(request_id=9, lease=1, change=change)).code, "ChangeSettings of a user"


@case("role beyond the key's")
def _role_beyond(keys, server, **_):
    keys.client("olga", role="observer")
    with opu.open(server.uri + keys.options("olga") + "&role=observer") as device:
        assert len(device.server_status().clients) == 1
    return refused(server.uri + keys.options("olga") + "&role=operator"), "it asked for the role operator"


@case("token of another key")
def _token_of_another_key(keys, server, raw, **_):
    keys.client("eve")
    hello = protocol.Hello(
        request_id=1,
        version=protocol.PROTOCOL_VERSION,
        software="test",
        name="anna",
        features=("resume",),
        token="0123456789abcdef" * 2,
    )
    owner = raw(server.uri, keys=keys.keys("anna"))
    assert isinstance(owner.ask(hello), protocol.Welcome)
    code = raw(server.uri, keys=keys.keys("eve")).ask(hello).code
    assert isinstance(owner.ask(protocol.Ping(request_id=2)), protocol.Pong)
    return code, "its token is that of another key"


@case("too many clients of one key")
def _too_many_clients(keys, serve, raw, **_):
    server = serve(gate=keys.gate(), max_clients_of_key=1)
    keys.client("fred")
    assert isinstance(raw(server.uri, keys=keys.keys("anna")).hello(), protocol.Welcome)
    refusal = raw(server.uri, keys=keys.keys("anna")).hello()
    assert refusal.retry_s > 0
    assert isinstance(raw(server.uri, keys=keys.keys("fred")).hello(), protocol.Welcome)
    return refusal.code, "1 clients have that key"


@case("too many requests")
def _too_many_requests(keys, server, **_):
    keys.client("fred", requests_per_s=0.2)
    with (
        opu.open(server.uri + keys.options("fred")) as device,  # its hello is the first
        pytest.raises(BusyError, match=r"again in [0-4]\.\d+ s") as caught,
    ):
        device.server_status()
    return caught.value.code, "more than 0.2 requests a second"


@case("old version")
def _old_version(keys, server, raw, **_):
    client = raw(server.uri, keys=keys.keys("anna"))
    hello = protocol.Hello(request_id=1, version=(0, 1), software="old", name="old")
    return client.ask(hello).code, None


@case("oversized frame")
def _oversized_frame(keys, server, raw, **_):
    client = raw(server.uri, keys=keys.keys("anna"))
    client.hello()
    client.socket.send(bytes(protocol.MAX_PAYLOAD_BYTES + 1000))

    def is_unknown():  # it has connected anew
        client.send(protocol.Ping(request_id=client.number()))
        received = client.receive(0.1)
        return received is not None and isinstance(received[0], protocol.Goodbye)

    wait_until(is_unknown)
    return "connection ends", None


@case("unknown dtype")
def _unknown_dtype(**_):
    def answer(request):
        header, payload = frames_reply(request)
        return [[msgspec.msgpack.encode(msgspec.msgpack.decode(header) | {"dtype": "object"}), payload]]

    with Impostor(projecting(answer)) as impostor, opu.open(impostor.uri) as device:
        session = device.open_session(CONFIG)
        with pytest.raises(OpuError, match="dtype") as caught:
            session.project(X)
    return caught.value.code, None


@case("half a message")
def _half_a_message(keys, server, raw, **_):
    client = raw(server.uri, keys=keys.keys("anna"))
    client.hello()
    session = client.open_session(CONFIG).session
    project = protocol.Project(request_id=99, session=session, first_frame_index=0, n_features=10, batch=2)
    return client.ask(project).code, None


@case("connection that ends within a message")
def _interrupted(serve, raw, **_):
    server = serve()
    with HandConnection(server.uri) as connection:
        connection.hello()
        wait_until(lambda: server.snapshot().clients)
        header = protocol.encode(protocol.Ping(request_id=2))[0]
        connection.socket.sendall(connection.frame(header, 1) + b"\x00\xff half of a frame")
        connection.reset()
    assert isinstance(raw(server.uri).hello(), protocol.Welcome)
    assert server.snapshot().counters.malformed == 0
    return "nothing", None


@case("slow handshake")
def _slow_handshake(keys, serve, **_):
    server = serve(gate=keys.gate(), handshake_s=0.2)
    with connection_to(server) as connection:
        connection.sendall(HandConnection.GREETING[:9])
        read_to_the_end(connection)
    return "connection ends", "its handshake took too long"


@case("idle connection")
def _idle_connection(serve, raw, **_):
    server = serve(idle_s=0.2, expire_s=60.0)
    client = raw(server.uri)
    client.hello()
    with HandConnection(server.uri) as idle:
        assert idle.read_to_the_end() == 0
    assert isinstance(client.ask(protocol.Ping(request_id=2)), protocol.Pong)
    return "connection ends", None


@case("loop of servers")
def _loop(serve, **_):
    first = serve()
    with (
        opu.open(first.uri) as near,
        OpuServer(near, "tcp://127.0.0.1:0") as relay,
        opu.open(relay.uri) as far,
    ):
        first.stop()
        with OpuServer(far, first.uri), pytest.raises(OpuError, match="a loop") as caught:
            far.open_session(CONFIG)
    return caught.value.code, None


LOOKING = {"wrong key of the server"}  # and then the client ends a handshake, to see the mechanism of the server


def reasons_counted(servers):
    """For which reasons servers have turned somebody away."""
    counts = [server.snapshot().counters.turned_away.items() for server in servers]
    return {reason for items in counts for reason, count in items if count}


@pytest.mark.parametrize("name", CASES)
def test_each_gets_what_the_page_says(name, keys, server, serve, raw, caplog):
    answer, logged, reasons = ROWS[name]
    servers = [server]

    def start(**options):
        servers.append(serve(**options))
        return servers[-1]

    found, line = CASES[name](keys=keys, server=server, serve=start, raw=raw)
    assert found in re.findall(r"`(\w+)`", answer) or found in answer
    if line is None:
        assert logged == "-"
    else:
        assert line == logged.replace("N requests", "0.2 requests").replace("N clients", "1 clients")
        wait_until(lambda: any(alternative in caplog.text for alternative in line.split(", or ")))
    expected = set(re.findall(r"`(\w+)`", reasons))
    if not reasons.startswith("-"):
        wait_until(lambda: reasons_counted(servers) & expected)
    good = server.uri + keys.options("boris")
    keys.client("boris")  # the others lose nothing
    with opu.open(good) as device, device.open_session(CONFIG) as session:
        np.testing.assert_array_equal(session.project(X, first_frame_index=7).frames, toy_frames(X, 7, CONFIG))
    looks = {"handshake_ended"} if name in LOOKING else set()
    assert reasons_counted(servers) <= expected | looks  # after a client came and left, so that all of it was counted


def test_greetings_beyond_the_rate_of_a_key_are_counted(keys, server, raw):
    keys.client("fred", requests_per_s=0.01)
    assert isinstance(raw(server.uri, keys=keys.keys("fred")).hello(), protocol.Welcome)
    assert raw(server.uri, keys=keys.keys("fred")).hello().code == "busy"
    assert server.snapshot().counters.turned_away["too_many_requests"] == 1
    assert server.snapshot().counters.turned_away["too_many_clients_of_key"] == 0


def test_who_comes_while_the_list_is_damaged_is_counted(keys, server):
    keys.allow.write_text("this is no list")
    assert refused(server.uri + keys.options("anna")) == "authentication"
    assert server.snapshot().counters.turned_away["no_allow_list"] >= 1


def test_who_comes_while_the_server_stops_is_counted(serve, toy, raw):
    server = serve(drain_s=60.0)
    busy, late = raw(server.uri), raw(server.uri)
    busy.hello()
    session = busy.open_session(CONFIG).session
    toy.gate.clear()
    busy.project(session, X)
    wait_until(lambda: server.snapshot().queued == 1)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    wait_until(lambda: server.snapshot().draining)
    assert late.hello().code == "unreachable"
    assert server.snapshot().counters.turned_away["stopping"] == 1
    toy.gate.set()
    stopping.join(60)


def test_the_page_has_a_row_for_each_case_and_no_other():
    assert list(ROWS) == list(CASES)


# Those who come in


def test_the_audit_log_names_the_key_and_the_address(keys, server, caplog):
    with opu.open(server.uri + keys.options("anna")):
        pass
    assert "admitted: key 'anna' (user), address 127.0.0.1, client '" in caplog.text


def test_a_full_payload_passes_although_encryption_makes_it_longer(keys, serve, raw, toy):
    toy._description = msgspec.structs.replace(toy.describe(), mirrors=(1024, 1024))
    server = serve(gate=keys.gate(), max_payload_bytes=2**17)
    client = raw(server.uri, keys=keys.keys("anna"))
    client.hello()
    session = client.open_session(SessionConfig(n_features=2**14, n_outputs=1)).session
    client.project(session, np.ones((64, 2**14), np.uint8))
    reply, _ = client.receive()
    assert isinstance(reply, protocol.Frames)


def test_a_client_may_be_admitted_while_the_server_runs(keys, server):
    keys.make("client", "late")
    assert refused(server.uri + keys.options("late")) == "authentication"
    keys.folder.joinpath("late.key").unlink()
    keys.folder.joinpath("late.pub").unlink()
    with opu.open(server.uri + keys.client("late")) as device:
        assert device.describe().model == "toy device"


def test_a_server_with_keys_is_found_and_not_opened(server, monkeypatch):
    monkeypatch.setattr(remote_client, "_FIND_TIMEOUT_S", 5.0)
    assert [found.summary for found in remote_client.find_local(server.uri)] == ["served to clients with keys"]


def test_a_key_given_as_text_is_percent_encoded(keys, server):
    options = f"?key={keys.folder}/anna.key&server_key={quote(keys.server.public_key, safe='')}"
    with opu.open(server.uri + options) as device:
        assert device.describe().model == "toy device"


def test_a_role_holds_from_the_moment_when_the_list_has_it(keys, server):
    with opu.open(server.uri + keys.options("anna")) as device:
        device.open_session(CONFIG).close()
        keys.change("anna", role="observer")
        with pytest.raises(ForbiddenError):
            device.open_session(CONFIG)
        keys.change("anna", role="operator")
        device.open_session(CONFIG).close()


@pytest.mark.parametrize(("text", "reason"), [("[[client]]\nname = 'x", "it is not TOML"), ("\n", "is empty")])
def test_a_damaged_list_admits_nobody_new_and_ends_nothing(keys, server, caplog, text, reason):
    with opu.open(server.uri + keys.options("anna")) as device:
        (keys.folder / "allow.new").write_text(text)
        (keys.folder / "allow.new").replace(keys.allow)
        assert refused(server.uri + keys.options("anna")) == "authentication"
        device.open_session(CONFIG).close()
        assert reason in caplog.text
        keys.write()
        with opu.open(server.uri + keys.options("anna")):
            pass


def test_a_fault_of_the_gate_lets_nobody_in(keys, server, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(AllowList, "find", fail)
    assert refused(server.uri + keys.options("anna")) == "authentication"
    monkeypatch.undo()
    with opu.open(server.uri + keys.options("anna")):
        pass


def test_a_gate_that_is_gone_lets_nobody_in(keys, serve, raw):
    """CURVE without a handler would admit everybody who knows the key of the server."""
    guard = keys.gate()
    server = serve(gate=guard)
    guard.stop()
    client = raw(server.uri, keys=keys.keys("anna"))
    client.send(protocol.Hello(request_id=1, version=protocol.PROTOCOL_VERSION, software="x", name="y"))
    assert client.receive(0.5) is None
    guard.stop = lambda: None


def test_the_command_serves_with_keys_and_writes_the_audit_log(keys, served_process):
    process, uri = served_process("sim:?preset=ideal", "tcp://127.0.0.1:0", "--keys", str(keys.folder))
    with opu.open(uri + keys.options("anna")) as device:
        assert device.describe().model == "simulated bench, preset ideal"
    assert refused(uri) == "authentication"
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert "admitted: key 'anna' (user), address 127.0.0.1" in output
    assert "refused: somebody, reason: it " in output


# Policies


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5755", "tcp://*:5755", "tcp://192.168.1.7:5755", "tcp://[::]:0"])
def test_with_keys_or_insecure_it_may_listen_anywhere(keys, bind):
    assert parse_bind(bind, keys.gate().beyond_loopback).startswith(bind[:-4])
    assert parse_bind(bind, open_gate(insecure=True).beyond_loopback)
    with pytest.raises(RefusedError, match="no keys"):
        parse_bind(bind, open_gate().beyond_loopback)


@pytest.mark.parametrize("bind", ["tcp://example.org:5755", "tcp://::1:5755", "tcp://127.1:5755"])
def test_names_are_no_addresses_to_listen_at(bind):
    with pytest.raises(UriError, match="no address of this machine"):
        parse_bind(bind, beyond_loopback=True)


def test_policies(keys):
    assert type(open_gate("off")) is type(open_gate("auto")) is Gate
    assert keys.gate().beyond_loopback
    assert open_gate("required", keys.folder / "server.key", keys.allow).beyond_loopback
    with pytest.raises(RefusedError, match="opu keygen"):
        open_gate("required")
    for contradiction in (
        {"policy": "off", "keys": keys.folder},
        {"allow": keys.allow},
        {"keys": keys.folder / "server.key"},
        {"keys": keys.folder, "insecure": True},
        {"policy": "sometimes"},
    ):
        with pytest.raises(InputError):
            open_gate(**contradiction)


# Files


def test_a_secret_stays_secret(keys):
    path = keys.folder / "anna.key"
    assert path.stat().st_mode & 0o777 == 0o600
    pair = read_key_pair(path, "client")
    assert pair.secret_key not in repr(pair)
    assert pair.secret_key not in path.with_suffix(".pub").read_text()
    assert not [other for other in keys.folder.iterdir() if other.name.startswith(".")]
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(RefusedError, match="chmod 600"):
            read_key_pair(path, "client")


def test_another_file_of_keys_is_named_for_what_it_is(keys):
    """Also where its permissions are not those of the file that is wanted."""
    secret, public, server, server_public = (
        keys.folder / name for name in ("anna.key", "anna.pub", "server.key", "server.pub")
    )
    for read, path, held, remedy in (
        (lambda path: read_key_pair(path, "client"), public, "the public keys of clients", "NAME.key"),
        (lambda path: read_key_pair(path, "client"), server_public, "the public key of a server", "NAME.key"),
        (lambda path: read_key_pair(path, "client"), server, "the secret key of a server", "opu keygen client"),
        (lambda path: read_key_pair(path, "server"), secret, "the secret key of a client", "opu keygen server"),
        (lambda path: read_public_key(str(path)), server, "the secret key of a server", "make a new pair"),
        (lambda path: read_public_key(str(path)), public, "the public keys of clients", "server.pub"),
        (AllowList, server_public, "the public key of a server", "NAME.pub"),
        (AllowList, secret, "the secret key of a client", "make a new pair"),
    ):
        with pytest.raises(DataFileError) as caught:
            read(path)
        assert f"{path.name}' holds {held}, and " in caught.value.problem
        assert remedy in caught.value.remedy


def test_a_key_given_as_its_own_file_is_not_quoted(keys):
    secret = read_key_pair(keys.folder / "anna.key", "client").secret_key
    with pytest.raises(DataFileError, match=r"NAME\.key") as caught:
        ClientKeys.read(secret, str(keys.folder / "server.pub"))
    assert secret not in str(caught.value)


def test_the_remedy_can_be_pasted(tmp_path):
    path = Keys(tmp_path / "my keys").folder / "server.key"
    path.chmod(0o644)
    with pytest.raises(RefusedError, match=r"Run: chmod 600 '.*/my keys/server\.key' - "):
        read_key_pair(path, "server")


def test_files_are_never_overwritten(keys):
    before = (keys.folder / "anna.key").read_text()
    with pytest.raises(RefusedError, match="exists"):
        keys.make("client", "anna")
    assert (keys.folder / "anna.key").read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("secret_key", "sacred_key"),
        lambda text: text.replace('"client"', '"server"'),
        lambda text: text.replace('"client"', '"thief"'),
        lambda text: text[:-5],
        lambda text: re.sub(r'public_key = "[^"]*"', f'public_key = "{"0" * 40}"', text),
        lambda text: re.sub(r'secret_key = "[^"]*"', f'secret_key = "{"~" * 40}"', text),
        lambda text: "",
        lambda text: text + "\x00",
    ],
)
def test_damaged_keys_are_refused_and_not_quoted(keys, change):
    path = keys.folder / "anna.key"
    secret = read_key_pair(path, "client").secret_key
    path.write_text(change(path.read_text()))
    with pytest.raises(DataFileError, match=r"anna\.key") as caught:
        read_key_pair(path, "client")
    assert secret not in str(caught.value)


@pytest.mark.parametrize("text", ["", "no such file", "~" * 40, "0" * 39, "#" * 40])
def test_what_is_no_public_key(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataFileError):
        read_public_key(text)


def test_a_list_that_others_can_change_is_refused(keys):
    for mode in (0o664, 0o646):
        keys.allow.chmod(mode)
        with pytest.raises(RefusedError, match="chmod go-w"):
            AllowList(keys.allow)


@pytest.mark.parametrize(
    "text",
    [
        '[[client]]\nname = "a"\n',
        '[[client]]\nname = "a"\npublic_key = "short"\n',
        f'[[client]]\nname = "a"\npublic_key = "{"~" * 40}"\n',
        f'[[client]]\nname = "a"\npublic_key = "{"0" * 40}"\nrole = "king"\n',
        f'[[client]]\nname = "a\\n"\npublic_key = "{"0" * 40}"\n',
        f'[[client]]\nname = "a"\npublic_key = "{"0" * 40}"\nrevokd = true\n',
        f'[[client]]\nname = "a"\npublic_key = "{"0" * 40}"\n[[client]]\nname = "b"\npublic_key = "{"0" * 40}"\n',
        f'[[client]]\nname = "a"\npublic_key = "{"0" * 40}"\n[[client]]\nname = "a"\npublic_key = "{"1" * 40}"\n',
        "client = 1\n",
    ],
)
def test_damaged_lists_are_refused(keys, text):
    keys.allow.write_text(text)
    with pytest.raises(DataFileError, match=r"allow\.toml"):
        AllowList(keys.allow)


@pytest.mark.parametrize("option", ["key", "server_key"])
def test_one_key_alone_is_refused(option):
    with pytest.raises(UriError, match="key and server_key"):
        opu.open(f"tcp://127.0.0.1:1?{option}=x")


# Parts


def test_a_bucket_fills_again_and_no_further():
    bucket = TokenBucket(10.0)
    assert [bucket.take(0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.take(0.1) == 0.0
    assert [bucket.take(100.0) > 0 for _ in range(12)] == [False] * 10 + [True] * 2


def test_a_flood_of_refusals_is_counted_and_not_written(caplog):
    log = gate._AuditLog()
    for _ in range(500):
        log.refused("somebody", "a flood")
    assert 50 <= caplog.text.count("a flood") < 500
    time.sleep(1.05)
    log.refused("somebody", "later")
    assert re.search(r"\d+ lines about refusals left out", caplog.text)
    assert caplog.text.count("later") == 1


def test_the_mechanism_of_a_server_is_read_from_its_greeting(server, serve):
    for found, mechanism in ((server, "CURVE"), (serve(), "NULL")):
        host, port = found.uri.removeprefix("tcp://").split(":")
        assert read_mechanism(host, int(port)) == mechanism
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert read_mechanism("127.0.0.1", port) is None


def test_what_is_repeated_is_counted_once(keys):
    keys.client("fred", requests_per_s=0.01)
    gate = keys.gate()
    peer = Peer("fred", "user", "?", keys.clients[-1]["public_key"])
    request = protocol.Status(request_id=1)
    gate.authorise(peer, request)
    gate.authorise(peer, request, is_repeated=True)
    with pytest.raises(BusyError):
        gate.authorise(peer, request)


# Settings of the device


def test_an_operator_changes_settings_and_sees_them(keys):
    keys.client("oona", role="operator")
    with (
        opu.open("sim:?preset=ideal&seed=7") as bench,
        OpuServer(bench, "tcp://127.0.0.1:0", gate=keys.gate()) as server,
    ):
        with opu.open(server.uri + keys.options("oona")) as device:
            control = device.capability(opu.DeviceControl)
            before = control.settings()
            with control.lease(note="aligning"):
                control.change(opu.SettingsChange(max_exposure_us=200.0))
                assert device.server_status().lease.note == "aligning"
            assert device.describe().exposure_us.maximum == 200.0
            assert device.server_status().lease is None
            control.change(opu.SettingsChange(max_exposure_us=before.max_exposure_us))
            assert CHECKS["device_settings_change"](device) is None
            assert control.settings().revision > before.revision + 2
        with opu.open(server.uri + keys.options("anna")) as device:
            assert device.capability(opu.DeviceControl).settings().max_exposure_us == before.max_exposure_us
            with pytest.raises(ForbiddenError, match="role 'user'"):
                device.capability(opu.DeviceControl).change(opu.SettingsChange(max_exposure_us=200.0))


def test_threads_share_the_lease_of_their_device(keys):
    """None makes the number of another one void, and the last one that leaves gives it back."""
    keys.client("oona", role="operator")
    with (
        opu.open("sim:?preset=ideal&seed=7") as bench,
        OpuServer(bench, "tcp://127.0.0.1:0", gate=keys.gate()) as server,
        opu.open(server.uri + keys.options("oona")) as device,
        ThreadPoolExecutor(4) as threads,
    ):
        control = device.capability(opu.DeviceControl)
        changes = [opu.SettingsChange(max_exposure_us=200.0 + number) for number in range(20)]
        revisions = {settings.revision for settings in threads.map(control.change, changes)}
        assert len(revisions) == 20
        assert device.server_status().lease is None
        first, second = control.lease(note="first"), control.lease(note="second")
        for held in (first, second):
            threads.submit(held.__enter__).result(60)
        threads.submit(first.__exit__, None, None, None).result(60)
        assert device.server_status().lease.note == "second"
        threads.submit(second.__exit__, None, None, None).result(60)
        assert device.server_status().lease is None


def test_a_callback_does_not_wait_for_a_thread_that_takes_the_lease(keys):
    """Which may wait for an answer that the thread of the callback brings."""
    keys.client("oona", role="operator")
    with (
        opu.open("sim:?preset=ideal&seed=7") as bench,
        OpuServer(bench, "tcp://127.0.0.1:0", gate=keys.gate()) as server,
        opu.open(server.uri + keys.options("oona")) as device,
        device.open_session(CONFIG) as session,
    ):
        control = device.capability(opu.DeviceControl)
        told = Future()

        def change(_):
            try:
                control.change(opu.SettingsChange(max_exposure_us=200.0))
            except OpuError as error:
                told.set_result(error)

        with control._taking:
            session.submit(X).add_done_callback(change)
            assert isinstance(told.result(60), RefusedError)


def test_two_operators_take_the_lease_in_turn(keys):
    keys.client("oona", role="operator")
    keys.client("otto", role="operator")
    with (
        opu.open("sim:?preset=ideal&seed=7") as bench,
        OpuServer(bench, "tcp://127.0.0.1:0", gate=keys.gate()) as server,
        opu.open(server.uri + keys.options("oona")) as one,
        opu.open(server.uri + keys.options("otto")) as other,
    ):
        first, second = (device.capability(opu.DeviceControl) for device in (one, other))
        with first.lease(note="aligning"):
            with pytest.raises(LeaseError, match="'oona' has the lease"):
                second.change(opu.SettingsChange(laser_power_mw=5.0))
            with second.lease(force=True):
                assert second.change(opu.SettingsChange(laser_power_mw=5.0)).laser_power_mw == 5.0
                with pytest.raises(LeaseError, match="'otto' has it now"):
                    first.change(opu.SettingsChange(laser_power_mw=10.0))
        assert second.settings().laser_power_mw == 5.0


def test_a_remedy_fits_the_role_that_is_missing(keys, server):
    keys.client("oona", role="operator")
    keys.client("olga", role="observer")
    for name, role, remedy in (("oona", "&role=user", "leave the role out"), ("olga", "", "for the role 'operator'")):
        with opu.open(server.uri + keys.options(name) + role) as device, pytest.raises(ForbiddenError) as caught:
            RemoteControl(device._link, lambda _: None).change(opu.SettingsChange(laser_power_mw=5.0))
        assert remedy in caught.value.remedy
