"""The gate of a server: who may come in, and what they may do.

CURVE alone lets in everybody who knows the server's public key. So a server with keys has a handler of the ZeroMQ
Authentication Protocol (https://rfc.zeromq.org/spec/27/), which ZeroMQ asks about the key of each connection before a
single message passes, and ZeroMQ is told to refuse connections while there is none. It is not the handler of pyzmq:
that one starts an event loop, has no roles, and does not notice by itself that its files have changed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import zmq
from zmq.utils import z85

from opu.errors import AuthenticationError, BusyError, DataFileError, ForbiddenError, InputError, RefusedError
from opu.remote import protocol
from opu.remote.counters import Reason, TurnedAway
from opu.remote.protocol import Role
from opu.remote.security import AllowedClient, AllowList, KeyPair, read_key_pair
from opu.remote.waker import Waker

__all__ = ["AUDIT_LOG", "Gate", "Incoming", "KeyGate", "Peer", "Policy", "TokenBucket", "open_gate"]

Policy = Literal["off", "auto", "required"]

AUDIT_LOG = "opu.remote.audit"
_audit = logging.getLogger(AUDIT_LOG)
_log = logging.getLogger(__name__)

_DOMAIN = b"openopu"
_ZAP_VERSION = b"1.0"
_ZAP_FRAMES = 9
_LINES_PER_S = 50
_CURVE_OVERHEAD_BYTES = 64  # a CURVE message has 33 bytes more than what it carries
_OTHER_MECHANISM = 0x11000002
_CRYPTOGRAPHIC = 0x11000001
_ROLE_OF_ALL: Role = "user"
_ROLES: tuple[Role, ...] = ("observer", "user", "operator")
_OBSERVING = (
    protocol.Hello,
    protocol.Status,
    protocol.GetSettings,
    protocol.Ping,
    protocol.Cancel,
    protocol.Bye,
)
_OPERATING = (protocol.TakeLease, protocol.RenewLease, protocol.ReturnLease, protocol.ChangeSettings)
_UNCOUNTED = (protocol.Ping, protocol.Cancel, protocol.CloseSession, protocol.Bye)  # signs of life, and what gives back


class Incoming(Protocol):
    """A message as it came."""

    @property
    def route(self) -> bytes:
        """Names the connection."""

    @property
    def frames(self) -> list[memoryview]:
        """The frames of the message."""

    @property
    def descriptor(self) -> int:
        """The file descriptor of the connection, as long as it lasts; -1 where it is unknown."""

    def read_property(self, name: str) -> str:
        """Return what the network knows of the sender."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection.

    Parameters
    ----------
    name : str
        The name of its key in the allow-list; empty without keys.
    role : str
        `observer`, `user` or `operator`: what its key allows, or what it asked for if that is less.
    address : str
        Of its machine.
    public_key : str
        Z85; empty without keys.
    """

    name: str
    role: Role
    address: str
    public_key: str = ""

    def __str__(self) -> str:
        key = f"key {self.name!a} ({self.role})" if self.public_key else "no key"
        return f"{key}, address {self.address}"


class TokenBucket:
    """Lets so many requests a second pass, and as many at once after a second of silence.

    Parameters
    ----------
    per_s : float
        Requests a second.
    """

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s)
        self._tokens = self._most
        self._filled_s: float | None = None

    def take(self, now_s: float) -> float:
        """Count a request.

        Parameters
        ----------
        now_s : float
            The time on a clock that never goes back.

        Returns
        -------
        float
            0 if it may pass, otherwise the seconds until one may.

        Examples
        --------
        >>> bucket = TokenBucket(2.0)
        >>> [bucket.take(now_s) for now_s in (0.0, 0.0, 0.0, 0.5)]
        [0.0, 0.0, 0.5, 0.0]
        """
        elapsed_s = 0.0 if self._filled_s is None else now_s - self._filled_s
        self._filled_s = now_s
        self._tokens = min(self._most, self._tokens + elapsed_s * self.per_s)
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.per_s
        self._tokens -= 1.0
        return 0.0


class _Floodgate:
    """Lets so many lines of a kind through in a second, and tells how many it left out."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._second_s = 0.0
        self._lines = 0

    def lets_through(self) -> bool:
        now_s = time.monotonic()
        left_out = 0
        with self._lock:
            if now_s - self._second_s >= 1.0:
                left_out = self._lines - _LINES_PER_S
                self._second_s, self._lines = now_s, 0
            self._lines += 1
            is_too_much = self._lines > _LINES_PER_S
        if left_out > 0:
            _audit.warning("%d lines about %s left out", left_out, self._kind)
        return not is_too_much


class _AuditLog:
    """Writes who came and who was refused."""

    def __init__(self) -> None:
        self._admissions, self._refusals = _Floodgate("admissions"), _Floodgate("refusals")

    def admitted(self, who: object, what: str) -> None:
        if self._admissions.lets_through():
            _audit.info("admitted: %s, %s", who, what, extra=_fields(who))

    def refused(self, who: object, reason: str) -> None:
        if self._refusals.lets_through():
            _audit.warning("refused: %s, reason: %s", who, reason, extra=_fields(who) | {"reason": reason})


def _fields(who: object) -> dict[str, str]:
    """Return what programs that read the log want to know of somebody."""
    if not isinstance(who, Peer):
        return {}
    return {"key": who.name, "role": who.role, "address": who.address}


class Gate:
    """A gate without keys: everybody who reaches the address comes in, as a user.

    Parameters
    ----------
    beyond_loopback : bool
        Whether a server may have such a gate at an address that other machines reach.
    """

    overhead_bytes = 0
    """How much longer messages are on the wire than what they carry."""

    def __init__(self, beyond_loopback: bool = False) -> None:
        self.beyond_loopback = beyond_loopback
        self.turned_away = TurnedAway()
        self._audit = _AuditLog()

    def start(self, context: zmq.Context[Any], router: zmq.Socket[Any]) -> None:
        """Guard a socket that is not bound yet."""

    def stop(self) -> None:
        """End, after the socket has been closed and before its context is."""

    def greet(self, message: Incoming, asked: Role | None = None) -> Peer:
        """Say who sent a `hello`.

        Raises
        ------
        AuthenticationError
            Its key has been revoked since it connected.
        ForbiddenError
            It asks for a role that its key does not have.
        BusyError
            Its key has sent too many requests.
        """
        return self._grant(Peer("", _ROLE_OF_ALL, message.read_property("Peer-Address")), asked)

    def note_admission(self, peer: Peer, name: str) -> None:
        """Write to the audit log that a client has been let in."""
        self._audit.admitted(peer, f"client {name!a}")

    def turn_away(self, reason: Reason, who: object, words: str) -> None:
        """Count somebody who is not let in, and write it to the audit log.

        Parameters
        ----------
        reason : str
            For the metrics, one of `opu.remote.counters.REASONS`.
        who : Peer or str
            Who it is, as far as that is known.
        words : str
            For people.
        """
        self.turned_away.count(reason)
        self._audit.refused(who, words)

    def authorise(self, peer: Peer, request: protocol.Request, *, is_repeated: bool = False) -> None:
        """Check whether a peer may ask this now.

        Parameters
        ----------
        peer : Peer
            Who asks.
        request : Request
            For what.
        is_repeated : bool
            Whether it came before and was counted then.

        Raises
        ------
        AuthenticationError
            Its key has been revoked.
        ForbiddenError
            Its role does not allow it.
        BusyError
            Its key has sent too many requests.
        """
        del is_repeated  # nothing is counted here
        self._check_role(peer, peer.role, request, peer.role)

    def note_failure(self, event: Mapping[str, Any]) -> None:
        """Count a handshake that failed.

        Parameters
        ----------
        event : mapping
            What ZeroMQ told of it.
        """
        reason, _, _ = _name_failure(int(event["value"]))
        self.turned_away.count(reason)

    def _grant(self, peer: Peer, asked: Role | None) -> Peer:
        """Return somebody in the role that it asks for, which may be less than its own and not more."""
        if asked is None:
            return peer
        if _ROLES.index(asked) > _ROLES.index(peer.role):
            self.turn_away("role", peer, f"it asked for the role {asked}")
            raise ForbiddenError(
                f"The role {asked!r} was asked for, and this client may be {peer.role!r} at most.",
                "Leave the role out, or ask the operator of the server for it.",
            )
        return replace(peer, role=asked)

    def _check_role(self, peer: Peer, role: Role, request: protocol.Request, allowed: Role) -> None:
        """Check a role that was asked for, where the key would allow another one."""
        kind = type(request).__name__
        needed: Role = "operator" if isinstance(request, _OPERATING) else "user"
        if isinstance(request, _OBSERVING) or _ROLES.index(role) >= _ROLES.index(needed):
            return
        article = "an" if role == "observer" else "a"
        self._audit.refused(peer, f"{kind} of {article} {role}")
        whose = f"The key {peer.name!r}" if peer.public_key else "This client"
        if _ROLES.index(allowed) >= _ROLES.index(needed):
            remedy = "Its key allows more: leave the role out of the address."
        elif peer.public_key:
            remedy = f"Ask the operator of the server for the role {needed!r}."
        else:
            remedy = f"It needs the role {needed!r}; a server without keys knows observers and users alone."
        raise ForbiddenError(f"{whose} has the role {role!r}, which may not send {kind}.", remedy)


class KeyGate(Gate):
    """A gate with keys: only clients of the allow-list come in, and what passes is encrypted.

    Parameters
    ----------
    pair : KeyPair
        The server's.
    allow_list : AllowList
        Its clients.
    """

    overhead_bytes = _CURVE_OVERHEAD_BYTES

    def __init__(self, pair: KeyPair, allow_list: AllowList) -> None:
        super().__init__(beyond_loopback=True)
        self._pair = pair
        self._allow_list = allow_list
        self._buckets: dict[str, TokenBucket] = {}
        self._stopping = False

    def start(self, context: zmq.Context[Any], router: zmq.Socket[Any]) -> None:
        """Guard a socket that is not bound yet."""
        self._zap = context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        router.curve_server = True
        router.curve_secretkey = self._pair.secret_key.encode()
        router.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing handler lets everybody in
        self._waker = Waker()
        self._thread = threading.Thread(target=self._guard, name="opu-server-gate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the socket has been closed and before its context is."""
        self._stopping = True
        self._waker.wake()
        self._thread.join()
        self._zap.close()
        self._waker.close()

    def greet(self, message: Incoming, asked: Role | None = None) -> Peer:
        """Say who sent a `hello`, by the allow-list as it is now."""
        key, address = message.read_property("User-Id"), message.read_property("Peer-Address")
        listed = self._allow_list.find(key)
        entry = self._check_key(Peer(listed.name if listed is not None else "?", "observer", address, key))
        peer = self._grant(Peer(entry.name, entry.role, address, key), asked)
        try:
            self._count(peer, entry.requests_per_s)
        except BusyError:
            self.turned_away.count("too_many_requests")
            raise
        return peer

    def authorise(self, peer: Peer, request: protocol.Request, *, is_repeated: bool = False) -> None:
        """Check whether a peer may ask this now, by the allow-list as it is now."""
        entry = self._check_key(peer)
        self._check_role(peer, min(entry.role, peer.role, key=_ROLES.index), request, entry.role)
        if not is_repeated and not isinstance(request, _UNCOUNTED):
            self._count(peer, entry.requests_per_s)

    def note_failure(self, event: Mapping[str, Any]) -> None:
        """Count a handshake that failed before there was a key, and write it to the audit log.

        ZeroMQ does not say whose it was.
        """
        if event["event"] != zmq.Event.HANDSHAKE_FAILED_AUTH:  # _judge has written who that was
            self.turn_away(*_name_failure(int(event["value"])))

    def _check_key(self, peer: Peer) -> AllowedClient:
        entry = self._allow_list.find(peer.public_key)
        if entry is None or entry.revoked:
            self.turn_away("key_revoked", peer, "key revoked while it was connected")
            raise AuthenticationError(
                "The server does not admit the key of this client any more.", "Ask its operator for admission."
            )
        return entry

    def _count(self, peer: Peer, per_s: float) -> None:
        bucket = self._buckets.get(peer.public_key)
        if bucket is None or bucket.per_s != per_s:
            bucket = self._buckets[peer.public_key] = TokenBucket(per_s)
        wait_s = bucket.take(time.monotonic())
        if wait_s:
            self._audit.refused(peer, f"more than {per_s:g} requests a second")
            raise BusyError(
                f"The key {peer.name!r} has sent more than {per_s:g} requests a second.",
                f"Send the request again in {max(wait_s, 0.001):.3f} s.",
                wait_s,
            )

    # The thread

    def _guard(self) -> None:
        poller = zmq.Poller()
        for source in (self._zap, self._waker.receiver):
            poller.register(source, zmq.POLLIN)
        while not self._stopping:
            poller.poll()
            try:
                self._answer_all()
            except Exception:  # noqa: BLE001 - the gate stays guarded whatever happens
                _log.exception("the gate met an unexpected error")

    def _answer_all(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._zap.recv_multipart(zmq.NOBLOCK)
                if len(frames) >= 4:
                    self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        """Tell ZeroMQ whether a key may come in."""
        route, request_id = frames[0], frames[3]
        try:
            user_id = self._judge(frames)
        except Exception:  # noqa: BLE001 - who cannot be judged does not come in
            _log.exception("a connection cannot be judged")
            user_id = None
        verdict = [b"200", b"OK", user_id.encode()] if user_id else [b"400", b"not admitted", b""]
        self._zap.send_multipart([route, b"", _ZAP_VERSION, request_id, *verdict, b""], zmq.NOBLOCK)

    def _judge(self, frames: list[bytes]) -> str | None:
        """Return the key as the name of the peer, or None and write the reason to the audit log."""
        address = frames[5].decode("ascii", "replace") if len(frames) > 5 else "?"
        where = f"address {address!s}"
        if len(frames) != _ZAP_FRAMES or frames[2] != _ZAP_VERSION or frames[7] != b"CURVE" or len(frames[8]) != 32:
            self.turn_away("mechanism", where, "it brought no CURVE key")
            return None
        key = z85.encode(frames[8]).decode("ascii")
        entry = self._allow_list.find(key)
        if entry is None:
            self.turn_away("key_unknown", f"key {key}, {where}", "key not on the allow-list")
        elif entry.revoked:
            self.turn_away("key_revoked", f"key {entry.name!a}, {where}", "key revoked")
        elif self._allow_list.fault is not None:
            self.turn_away("no_allow_list", f"key {entry.name!a}, {where}", f"no allow-list: {self._allow_list.fault}")
        else:
            return key
        return None


def open_gate(
    policy: Policy = "auto", keys: Path | None = None, allow: Path | None = None, insecure: bool = False
) -> Gate:
    """Make the gate of a server.

    Parameters
    ----------
    policy : str
        `auto`: keys where they are given, and nowhere but on the loopback interface without; `required`: never without;
        `off`: without.
    keys : Path, optional
        The secret key of the server, or a directory with `server.key` and `allow.toml`.
    allow : Path, optional
        The allow-list.
    insecure : bool
        Whether to listen without keys at addresses that other machines reach.

    Returns
    -------
    Gate
        For one server.

    Raises
    ------
    InputError
        The settings contradict each other.
    RefusedError
        Keys are required, and none are given; or others can read the key or change the list.
    DataFileError
        A file is missing or damaged.
    """
    if policy not in {"off", "auto", "required"}:
        raise InputError(f"The policy {policy!r} is unknown.", "Use off, auto or required.")
    if policy == "off" and (keys or allow):
        raise InputError("Keys or an allow-list were given, and the policy 'off' ignores them.", "Use 'auto'.")
    if policy == "required" and keys is None:
        raise RefusedError("The policy 'required' serves nobody without keys, and none were given.", how_to_make_keys())
    if keys is None and allow is not None:
        raise InputError("An allow-list without a key of the server guards nothing.", how_to_make_keys())
    if keys is None:
        return Gate(beyond_loopback=insecure)
    if insecure:
        raise InputError("A server with keys is not insecure.", "Leave out --insecure, or --keys.")
    if not keys.exists():
        raise DataFileError(f"There is no {str(keys)!r}, file or directory.", how_to_make_keys())
    if keys.is_dir():
        keys, allow = keys / "server.key", allow or keys / "allow.toml"
    if allow is None:
        raise InputError(
            "Keys without an allow-list would let in everybody who knows the public key of the server.",
            "Name the list with --allow; its entries are the files NAME.pub of opu keygen client.",
        )
    return KeyGate(read_key_pair(keys, "server"), AllowList(allow))


def how_to_make_keys() -> str:
    """Tell how to make keys."""
    return (
        "Make keys with: opu keygen server --to keys, and with: opu keygen client --name NAME for each client; put the "
        "NAME.pub of each into keys/allow.toml, and serve with --keys keys. docs/security.md tells more."
    )


def _name_failure(value: int) -> tuple[Reason, str, str]:
    """Return why a handshake failed and whose it was, as a server with keys tells it. ZeroMQ does not say who."""
    if value == _OTHER_MECHANISM:
        return "mechanism", "somebody", "it came without CURVE"
    if value == _CRYPTOGRAPHIC:
        return "server_key", "somebody", "it took another key for the server's"
    if value == zmq.EAGAIN:
        return "handshake_timeout", "somebody", "its handshake took too long"
    return "handshake_ended", "somebody", "it ended its handshake"
