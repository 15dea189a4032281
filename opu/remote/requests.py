"""What the clients ask, and how they read the answers: the same for the blocking one and for that of asyncio."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.device import (
    Batch,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    Projection,
    SessionConfig,
    SessionDescription,
    SettingsChange,
)
from opu.errors import ClosedError, LinkError, MediumChangedError, ProtocolError, UriError
from opu.remote import protocol
from opu.remote.conversation import Promise, SessionRecord, Ticket
from opu.remote.holding import Terms
from opu.remote.security import ClientKeys
from opu.uri import Uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "GONE",
    "ask_for_settings",
    "ask_for_status",
    "ask_to_change",
    "ask_to_close",
    "ask_to_leave",
    "ask_to_open",
    "ask_to_project",
    "ask_to_renew",
    "ask_to_return",
    "ask_to_take",
    "describe_link",
    "describe_settings",
    "read_keys",
    "reply_itself",
    "wait_for_welcome",
]

GONE = (LinkError, ClosedError, MediumChangedError)
"""What a request ends with when the server that it was for is not there any more."""

_LINKED_CAPABILITIES = ("repeatable_noise", DeviceControl.name)
_COPY_BYTES = 2**16
_LEAST_TIME_S, _MOST_TIME_S = 1e-6, 86400.0


def wait_for_welcome(promise: Promise) -> Ticket:
    """Return the ticket of a greeting, which the conversation says by itself."""

    def make(number: int) -> protocol.Request:
        raise AssertionError(number)

    return Ticket(make, protocol.Welcome, promise, reply_itself)


def ask_to_project(
    record: SessionRecord, description: SessionDescription, batch: Batch, answered: Callable[[], int]
) -> Ticket:
    """Make the request of a projection.

    Parameters
    ----------
    record : SessionRecord
        The session.
    description : SessionDescription
        What it came to.
    batch : Batch
        What is to be projected.
    answered : callable
        Returns the number below which every request is answered.
    """
    packed = batch.patterns

    def make(number: int) -> protocol.Project:
        assert record.number is not None  # noqa: S101 - the conversation waits until it is open
        return protocol.Project(
            request_id=number,
            session=record.number,
            first_frame_index=batch.first_frame_index,
            n_features=packed.n_features,
            batch=len(packed),
            answered=answered(),
            deadline_s=_time_left_s(batch.due_s),
        )

    def finish(reply: protocol.Frames, payload: memoryview | None) -> Projection:
        assert payload is not None  # noqa: S101 - decode_reply has checked it
        return _read_projection(reply, payload, description, len(packed), batch.out)

    return Ticket(
        make,
        protocol.Frames,
        Future(),
        finish,
        payload=packed.bits.data.cast("B"),
        session=record,
        due_s=batch.due_s,
        is_projection=True,
    )


def ask_to_open(config: SessionConfig) -> Callable[[int], protocol.OpenSession]:
    """Return what makes the request for a session."""
    return lambda number: protocol.OpenSession(request_id=number, config=config)


def ask_for_status(number: int) -> protocol.Status:
    """Make the request for what the server is doing."""
    return protocol.Status(request_id=number)


def ask_for_settings(number: int) -> protocol.GetSettings:
    """Make the request for the settings of the device."""
    return protocol.GetSettings(request_id=number)


def ask_to_leave(number: int) -> protocol.Bye:
    """Make the last request."""
    return protocol.Bye(request_id=number)


def ask_to_change(lease: int, change: SettingsChange) -> Callable[[int], protocol.ChangeSettings]:
    """Return what makes the request for a change of settings, under a lease."""
    return lambda number: protocol.ChangeSettings(request_id=number, lease=lease, change=change)


def ask_to_renew(lease: int) -> Callable[[int], protocol.RenewLease]:
    """Return what makes the request for more time under a lease."""
    return lambda number: protocol.RenewLease(request_id=number, lease=lease)


def ask_to_return(lease: int) -> Callable[[int], protocol.ReturnLease]:
    """Return what makes the request to give a lease back."""
    return lambda number: protocol.ReturnLease(request_id=number, lease=lease)


def ask_to_take(terms: Terms) -> Callable[[int], protocol.TakeLease]:
    """Return what makes the request for the lease of the device."""
    return lambda number: protocol.TakeLease(request_id=number, ttl_s=terms.ttl_s, note=terms.note, force=terms.force)


def ask_to_close(record: SessionRecord) -> Callable[[int], protocol.CloseSession]:
    """Return what makes the request to give a session back."""

    def make(number: int) -> protocol.CloseSession:
        assert record.number is not None  # noqa: S101 - the conversation waits until it is open
        return protocol.CloseSession(request_id=number, session=record.number)

    return make


def reply_itself(reply: Any, _: memoryview | None) -> Any:
    """Return a reply as the result of its request."""
    return reply


def describe_link(description: DeviceDescription) -> DeviceDescription:
    """Return the description of a device as far as it passes the link, with those of its capabilities that do."""
    passing = tuple(name for name in description.capabilities if name in _LINKED_CAPABILITIES)
    return msgspec.structs.replace(description, backend="tcp", capabilities=passing)


def describe_settings(
    description: DeviceDescription, welcomed: DeviceDescription, settings: DeviceSettings
) -> DeviceDescription:
    """Return a description with the limit of exposures as the settings have it now.

    Parameters
    ----------
    description : DeviceDescription
        What is known of the device.
    welcomed : DeviceDescription
        What the server said of it when it was greeted.
    settings : DeviceSettings
        The settings.
    """
    limit_us = settings.max_exposure_us
    default_us = min(welcomed.exposure_us.default, limit_us)
    exposure = msgspec.structs.replace(welcomed.exposure_us, maximum=limit_us, default=default_us)
    return msgspec.structs.replace(description, exposure_us=exposure)


def read_keys(uri: Uri, key: str | None, server_key: str | None) -> ClientKeys | None:
    """Read the keys that an address names.

    Raises
    ------
    UriError
        It names one of the two.
    DataFileError, RefusedError
        A file with a key cannot be used.
    """
    if (key is None) != (server_key is None):
        raise UriError(
            f"The address {uri.text!r} has one of the options key and server_key.",
            "Give both, or none: a client needs to know the server as much as the server the client.",
        )
    return ClientKeys.read(key, server_key) if key is not None and server_key is not None else None


def _time_left_s(due_s: float) -> float | None:
    """Return what is left of a deadline, as the message has it: at least a little, for the server to say no."""
    return None if due_s == math.inf else min(max(due_s - time.monotonic(), _LEAST_TIME_S), _MOST_TIME_S)


def _read_projection(
    reply: protocol.Frames,
    payload: memoryview,
    description: SessionDescription,
    batch: int,
    out: NDArray[Any] | None,
) -> Projection:
    expected = (batch, description.config.n_outputs, description.frame_dtype)
    found = (reply.batch, reply.n_outputs, reply.dtype)
    if found != expected:
        raise ProtocolError(
            f"The server sent frames (batch, n_outputs, dtype) = {found} where {expected} were due.",
            "The server does not follow docs/protocol.md.",
        )
    frames = protocol.read_frames(reply, payload)
    if out is not None:
        np.copyto(out, frames)
        frames = out
    elif payload.nbytes < _COPY_BYTES or not frames.flags.aligned:
        frames = frames.copy()  # ZeroMQ keeps small messages in a buffer that they share
    return Projection(frames, reply.provenance)
