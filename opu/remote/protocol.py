"""The messages of the link, as `docs/protocol.md` specifies them.

Nothing here opens a socket: a message comes in and goes out as a list of frames, a small MessagePack header and, for
patterns and camera frames, the raw bytes of one array. Server, clients and fuzzers share this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from opu.device import (
    DeviceDescription,
    DeviceSettings,
    Limits,
    Provenance,
    SessionConfig,
    SessionDescription,
    SettingsChange,
)
from opu.errors import BusyError, OpuError, ProtocolError, VersionMismatchError
from opu.patterns import PackedPatterns
from opu.remote.counters import CountersStatus

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FEATURES",
    "MAX_HEADER_BYTES",
    "MAX_PAYLOAD_BYTES",
    "PROTOCOL_VERSION",
    "Bye",
    "Cancel",
    "ChangeSettings",
    "ClientStatus",
    "CloseSession",
    "Done",
    "ErrorReply",
    "Frames",
    "GetSettings",
    "Goodbye",
    "Hello",
    "Lease",
    "LeaseStatus",
    "LinkLimits",
    "OpenSession",
    "Ping",
    "Pong",
    "Project",
    "RenewLease",
    "Reply",
    "Request",
    "ReturnLease",
    "Role",
    "ServerStatus",
    "SessionOpened",
    "SettingsReply",
    "Status",
    "StatusReply",
    "TakeLease",
    "Welcome",
    "agree_on_version",
    "decode_reply",
    "decode_request",
    "encode",
    "error_reply",
    "frames_payload",
    "read_frames",
    "read_patterns",
    "read_request_id",
    "shorten",
]

PROTOCOL_VERSION = (1, 0)
FEATURES = ("cancel", "deadline", "lease", "resume")
"""What client and server may agree on beyond the basic messages; `docs/protocol.md` says what each means."""

MAX_HEADER_BYTES = 2**16
MAX_PAYLOAD_BYTES = 2**28
MAX_NAME = 64
MAX_TEXT = 2000

Version = tuple[int, int]
RawBytes: TypeAlias = bytes | memoryview
Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Token = Annotated[str, Meta(min_length=32, max_length=MAX_NAME)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Role = Literal["observer", "user", "operator"]

_DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2")}


def _tag(class_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name).lower()


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=_tag):
    pass


class _Numbered(_Message, frozen=True, kw_only=True):
    request_id: Natural


class Hello(_Numbered, frozen=True, kw_only=True):
    """A client opens the conversation, or takes it up again."""

    version: Version
    software: Name
    name: Name
    features: tuple[Name, ...] = ()
    token: Token | None = None
    role: Role | None = None


class OpenSession(_Numbered, frozen=True, kw_only=True):
    """A client wants a session."""

    config: SessionConfig


class Project(_Numbered, frozen=True, kw_only=True):
    """A client sends a batch of patterns; the payload holds their packed bits."""

    session: Natural
    first_frame_index: Natural
    n_features: Count
    batch: Count
    answered: Natural = 0
    deadline_s: Seconds | None = None

    @property
    def payload_bytes(self) -> int:
        """The length that the payload must have."""
        return self.batch * -(-self.n_features // 8)


class Cancel(_Numbered, frozen=True, kw_only=True):
    """A client does without the answer to an earlier request."""

    target: Natural


class CloseSession(_Numbered, frozen=True, kw_only=True):
    """A client gives a session back."""

    session: Natural


class Ping(_Numbered, frozen=True, kw_only=True):
    """A client is alive, and asks whether the server is."""

    answered: Natural = 0


class Status(_Numbered, frozen=True, kw_only=True):
    """A client asks what the server is doing."""


class TakeLease(_Numbered, frozen=True, kw_only=True):
    """An operator wants to change what belongs to the device."""

    ttl_s: Seconds
    note: Name = ""
    force: bool = False


class RenewLease(_Numbered, frozen=True, kw_only=True):
    """An operator needs its lease for longer."""

    lease: Natural


class GetSettings(_Numbered, frozen=True, kw_only=True, tag="settings"):
    """A client asks what belongs to the device and not to a session."""


class ChangeSettings(_Numbered, frozen=True, kw_only=True):
    """An operator changes it, for everybody."""

    lease: Natural
    change: SettingsChange


class ReturnLease(_Numbered, frozen=True, kw_only=True):
    """An operator gives its lease back."""

    lease: Natural


class Bye(_Numbered, frozen=True, kw_only=True):
    """A client leaves."""


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a server grants to a client."""

    max_payload_bytes: Count
    max_sessions: Count
    max_queued: Count
    expire_s: Annotated[float, Meta(gt=0)]


class Welcome(_Numbered, frozen=True, kw_only=True):
    """The answer to `Hello`."""

    version: Version
    software: Name
    server_id: Name
    description: DeviceDescription
    limits: LinkLimits
    features: tuple[Name, ...] = ()
    resumed: bool = False
    role: Role = "user"
    servers: tuple[Name, ...] = ()


class SessionOpened(_Numbered, frozen=True, kw_only=True, tag="session"):
    """The answer to `OpenSession`."""

    session: Natural
    description: SessionDescription


class Frames(_Numbered, frozen=True, kw_only=True):
    """The answer to `Project`; the payload holds the camera frames."""

    dtype: Literal["uint8", "uint16"]
    batch: Count
    n_outputs: Count
    provenance: Provenance

    @property
    def payload_bytes(self) -> int:
        """The length that the payload must have."""
        return self.batch * self.n_outputs * _DTYPES[self.dtype].itemsize


class Done(_Numbered, frozen=True, kw_only=True):
    """The answer to `CloseSession` and `Bye`."""


class Pong(_Numbered, frozen=True, kw_only=True):
    """The answer to `Ping`."""


class LeaseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who may change the device. Holder and note are texts from elsewhere: escape them."""

    holder: Name
    note: Name
    expires_s: float


class Lease(_Numbered, frozen=True, kw_only=True):
    """The answer to `TakeLease` and `RenewLease`."""

    lease: Natural
    status: LeaseStatus


class SettingsReply(_Numbered, frozen=True, kw_only=True, tag="device_settings"):
    """The answer to `GetSettings` and `ChangeSettings`."""

    settings: DeviceSettings
    limits: dict[str, Limits]


class ClientStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One client of a server. Its name is a text from elsewhere: escape it before it is shown."""

    client_id: Natural
    name: Name
    sessions: Natural
    frames: Natural
    queued: Natural
    refused: Natural
    role: Role = "user"
    connected: bool = True


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is doing. `docs/protocol.md` explains the counters under `server_status`."""

    uptime_s: float
    frames_per_s: float
    queued: Natural
    draining: bool
    lease: LeaseStatus | None
    clients: tuple[ClientStatus, ...]
    counters: CountersStatus


class StatusReply(_Numbered, frozen=True, kw_only=True, tag="server_status"):
    """The answer to `Status`."""

    status: ServerStatus


class ErrorReply(_Message, frozen=True, kw_only=True, tag="error"):
    """The answer to a request that was not carried out; `code` names the exception."""

    request_id: Natural | None
    code: Name
    problem: Text
    remedy: Text
    retry_s: Annotated[float, Meta(ge=0)] | None = None


class Goodbye(_Message, frozen=True, kw_only=True):
    """The server ends the conversation; `code` tells whether it makes sense to come back."""

    code: Name
    problem: Text
    remedy: Text


Request: TypeAlias = (
    Hello
    | OpenSession
    | Project
    | Cancel
    | CloseSession
    | Ping
    | Status
    | TakeLease
    | RenewLease
    | ReturnLease
    | GetSettings
    | ChangeSettings
    | Bye
)
Reply: TypeAlias = (
    Welcome | SessionOpened | Frames | Done | Pong | StatusReply | Lease | SettingsReply | ErrorReply | Goodbye
)


class _Greeting(msgspec.Struct, frozen=True):
    """What `hello` and `welcome` look like in every version of the protocol."""

    type: Literal["hello", "welcome"]
    version: Version


class _Header(msgspec.Struct, frozen=True):
    request_id: Natural | None = None


_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_greeting_decoder = msgspec.msgpack.Decoder(_Greeting)
_header_decoder = msgspec.msgpack.Decoder(_Header)

# ValueError stands for texts that are not UTF-8, RecursionError for absurdly nested fields that nobody knows.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def shorten(text: str, length: int = MAX_TEXT) -> str:
    """Cut a text to what a message may hold, and escape what UTF-8 has no code for, as in names of files.

    Examples
    --------
    >>> shorten("abcdef", 4)
    'abc…'
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= length else text[: length - 1] + "…"


def agree_on_version(version: Version, speaker: Literal["client", "server"]) -> Version:
    """Find the version of the protocol in which two sides talk.

    Parameters
    ----------
    version : tuple of int
        The version in the first message of the other side.
    speaker : str
        Which side the other one is.

    Returns
    -------
    tuple of int
        The older one of the two.

    Raises
    ------
    VersionMismatchError
        They do not fit; the message names both and the side to update.

    Examples
    --------
    >>> agree_on_version((1, 7), "client")
    (1, 0)
    """
    ours = PROTOCOL_VERSION
    if version[0] == ours[0] and not (speaker == "server" and version > ours):
        return min(version, ours)
    listener = "server" if speaker == "client" else "client"
    older = speaker if version < ours else listener
    raise VersionMismatchError(
        f"The {speaker} speaks version {version[0]}.{version[1]} of the protocol, "
        f"the {listener} version {ours[0]}.{ours[1]}.",
        f"Update openopu on the side of the {older}, or install the same release on both.",
    )


def encode(message: Request | Reply, payload: RawBytes | None = None) -> list[RawBytes]:
    r"""Encode a message.

    Parameters
    ----------
    message : Request or Reply
        The message.
    payload : bytes-like, optional
        The raw array of a `Project` or `Frames`.

    Returns
    -------
    list of bytes-like
        The frames of the message. The payload is passed on, not copied.

    Examples
    --------
    >>> encode(Ping(request_id=1))
    [b'\x83\xa4type\xa4ping\xaarequest_id\x01\xa8answered\x00']
    """
    header = _encoder.encode(message)
    return [header] if payload is None else [header, payload]


def decode_request(frames: Sequence[RawBytes]) -> tuple[Request, memoryview | None]:
    """Decode and check a message from a client.

    Parameters
    ----------
    frames : sequence of bytes-like
        The frames of the message, without the routing frame.

    Returns
    -------
    tuple of (Request, memoryview or None)
        The message, and its payload as a view.

    Raises
    ------
    ProtocolError
        The message does not follow the protocol.
    VersionMismatchError
        It is the `Hello` of a client that speaks another version.
    """
    header, payload = _split(frames)
    try:
        message = _request_decoder.decode(header)
    except _UNREADABLE as error:
        raise _unreadable(header, error) from error
    if isinstance(message, Hello):
        agree_on_version(message.version, "client")
    _check_payload(message, payload)
    return message, payload


def decode_reply(frames: Sequence[RawBytes]) -> tuple[Reply, memoryview | None]:
    """Decode and check a message from a server.

    Parameters
    ----------
    frames : sequence of bytes-like
        The frames of the message.

    Returns
    -------
    tuple of (Reply, memoryview or None)
        The message, and its payload as a view.

    Raises
    ------
    ProtocolError
        The message does not follow the protocol.
    VersionMismatchError
        It is the `Welcome` of a server that speaks another version.
    """
    header, payload = _split(frames)
    try:
        message = _reply_decoder.decode(header)
    except _UNREADABLE as error:
        raise _unreadable(header, error) from error
    if isinstance(message, Welcome):
        agree_on_version(message.version, "server")
    _check_payload(message, payload)
    return message, payload


def read_request_id(frames: Sequence[RawBytes]) -> int | None:
    """Read the number of a request that could not be decoded, to answer it nevertheless.

    Returns
    -------
    int or None
        None where even that is unreadable.
    """
    try:
        return _header_decoder.decode(_split(frames)[0]).request_id
    except (*_UNREADABLE, ProtocolError):
        return None


def read_patterns(message: Project, payload: memoryview) -> PackedPatterns:
    """View the payload of a `Project` as patterns, without a copy.

    Raises
    ------
    PatternValueError
        A bit beyond the last feature is set.
    """
    bits = np.frombuffer(payload, np.uint8).reshape(message.batch, -1)
    return PackedPatterns(bits, message.n_features)


def frames_payload(frames: NDArray[Any]) -> memoryview:
    """View camera frames as the payload of a `Frames`, without a copy where the memory layout allows.

    Parameters
    ----------
    frames : ndarray of uint8 or uint16
        The frames.
    """
    dtype = frames.dtype.newbyteorder("<")
    return np.ascontiguousarray(frames, dtype).data.cast("B")


def read_frames(message: Frames, payload: memoryview) -> NDArray[Any]:
    """View the payload of a `Frames` as an array, without a copy.

    Returns
    -------
    ndarray of uint8 or uint16, shape (batch, n_outputs)
        It shares the memory of the payload.
    """
    flat: NDArray[Any] = np.frombuffer(payload, _DTYPES[message.dtype])
    return flat.reshape(message.batch, message.n_outputs)


def error_reply(request_id: int | None, error: OpuError) -> ErrorReply:
    """Word an exception for the other side."""
    return ErrorReply(
        request_id=request_id,
        code=error.code,
        problem=shorten(error.problem),
        remedy=shorten(error.remedy),
        retry_s=error.retry_s if isinstance(error, BusyError) else None,
    )


def _split(frames: Sequence[RawBytes]) -> tuple[RawBytes, memoryview | None]:
    if not 1 <= len(frames) <= 2:
        raise ProtocolError(f"A message has {len(frames)} frames.", "Send a header and at most one payload.")
    header = frames[0]
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"A header has {len(header)} bytes.", f"A header has at most {MAX_HEADER_BYTES} bytes; arrays go behind it."
        )
    return header, memoryview(frames[1]) if len(frames) == 2 else None


def _check_payload(message: Request | Reply, payload: memoryview | None) -> None:
    expected = message.payload_bytes if isinstance(message, (Project, Frames)) else None
    found = None if payload is None else payload.nbytes
    if found == expected:
        return
    kind = _tag(type(message).__name__)
    if expected is None:
        raise ProtocolError(f"A message {kind!r} carries a payload of {found} bytes.", "It carries none.")
    raise ProtocolError(
        f"The payload of a message {kind!r} has {found or 0} bytes where its header promises {expected}.",
        "Send all rows of the batch, packed and in C order.",
    )


def _unreadable(header: RawBytes, error: Exception) -> ProtocolError | VersionMismatchError:
    """Tell a greeting in another version from a message that nobody understands."""
    try:
        greeting = _greeting_decoder.decode(header)
        agree_on_version(greeting.version, "client" if greeting.type == "hello" else "server")
    except VersionMismatchError as mismatch:
        return mismatch
    except _UNREADABLE:
        pass
    return ProtocolError(
        f"A message cannot be read: {shorten(str(error), 200)}.", "docs/protocol.md describes the messages."
    )
