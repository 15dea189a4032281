"""Damaged messages, for tests of those who read them.

The damage knows what a message is made of: it changes, drops, moves and nests fields of the header, as well as bytes
and frames. So many of the messages are almost right, which is where faults hide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from opu.device import SessionConfig
from opu.remote import protocol

__all__ = ["damage", "random_message", "request_samples"]

_NUMBERS = (-(2**63), -1, 0, 1, 2**31 - 1, 2**31, 2**62, 2**63, 2**64 - 1)
_MOST_BYTES = 2**12


def request_samples() -> list[list[bytes]]:
    """Return a right message of each kind that a client sends, as frames."""
    messages: list[tuple[protocol.Request, bytes | None]] = [
        (
            protocol.Hello(request_id=1, version=protocol.PROTOCOL_VERSION, software="openopu", name="sample"),
            None,
        ),
        (protocol.OpenSession(request_id=2, config=SessionConfig(n_features=9, n_outputs=3)), None),
        (protocol.Project(request_id=3, session=1, first_frame_index=0, n_features=9, batch=2), b"\x81\x01\x06\x00"),
        (protocol.CloseSession(request_id=4, session=1), None),
        (protocol.Ping(request_id=5), None),
        (protocol.Status(request_id=6), None),
        (protocol.Bye(request_id=7), None),
    ]
    return [[bytes(frame) for frame in protocol.encode(*message)] for message in messages]


def random_message(source: random.Random, samples: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Return the frames of a message: damaged ones mostly, and sometimes nothing but random bytes.

    Parameters
    ----------
    source : random.Random
        Where chance comes from.
    samples : sequence of sequence of bytes
        Right messages to begin with.
    """
    if source.random() < 0.2:
        return [source.randbytes(source.randrange(200)) for _ in range(source.randrange(1, 6))]
    return damage(source, source.choice(samples))


def damage(source: random.Random, frames: Sequence[bytes]) -> list[bytes]:
    r"""Damage a message in one to three ways. The damage may undo itself.

    Parameters
    ----------
    source : random.Random
        Where chance comes from.
    frames : sequence of bytes
        A right message.

    Returns
    -------
    list of bytes
        At least one frame.

    Examples
    --------
    >>> damage(random.Random(3), [b"\x81\xa4type\xa4ping"]) != [b"\x81\xa4type\xa4ping"]
    True
    """
    damaged = list(frames)
    for _ in range(source.randint(1, 3)):
        damaged = source.choice(_WAYS)(source, damaged) or [b""]
    return damaged


def _change_field(source: random.Random, frames: list[bytes]) -> list[bytes]:
    """Put something else into a field of the header, or of a map in it."""
    try:
        header = msgspec.msgpack.decode(frames[0])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _change_byte(source, frames)
    place = header
    while isinstance(place, dict) and place:
        key = source.choice(list(place))
        if isinstance(place[key], dict) and source.random() < 0.7:
            place = place[key]
            continue
        _CHANGES[source.randrange(len(_CHANGES))](source, place, key)
        break
    try:
        return [msgspec.msgpack.encode(header), *frames[1:]]
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        return frames


def _drop(_: random.Random, place: dict[Any, Any], key: Any) -> None:
    del place[key]


def _replace(source: random.Random, place: dict[Any, Any], key: Any) -> None:
    place[key] = _any_value(source)


def _add(source: random.Random, place: dict[Any, Any], _: Any) -> None:
    place[source.choice(("type", "session", "unknown", "", "version"))] = _any_value(source)


def _exchange(source: random.Random, place: dict[Any, Any], key: Any) -> None:
    other = source.choice(list(place))
    place[key], place[other] = place[other], place[key]


def _nest(source: random.Random, place: dict[Any, Any], key: Any) -> None:
    for _ in range(source.choice((1, 3, 300))):
        place[key] = [place[key]]


_CHANGES: tuple[Callable[[random.Random, dict[Any, Any], Any], None], ...] = (_drop, _replace, _add, _exchange, _nest)


def _any_value(source: random.Random) -> Any:
    return source.choice(
        (
            None,
            True,
            source.choice(_NUMBERS),
            float("nan"),
            float("inf"),
            -source.random(),
            "",
            "hello",
            "\x1b[2J\u0000",
            "a" * source.randrange(_MOST_BYTES),
            source.randbytes(source.randrange(20)),
            [],
            [0, 2],
            {},
            msgspec.msgpack.Ext(source.randrange(-1, 127), b"1234"),
        )
    )


def _change_byte(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames))
    frame = bytearray(frames[number])
    if frame:
        frame[source.randrange(len(frame))] = source.randrange(256)
    return [*frames[:number], bytes(frame), *frames[number + 1 :]]


def _cut(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames))
    kept = source.randrange(len(frames[number]) + 1)
    return [*frames[:number], frames[number][:kept], *frames[number + 1 :]]


def _lengthen(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames))
    longer = frames[number] + source.randbytes(source.randrange(1, 40))
    return [*frames[:number], longer, *frames[number + 1 :]]


def _insert_frame(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames) + 1)
    return [*frames[:number], source.randbytes(source.randrange(20)), *frames[number:]]


def _drop_frame(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames))
    return [*frames[:number], *frames[number + 1 :]]


def _repeat_frame(source: random.Random, frames: list[bytes]) -> list[bytes]:
    number = source.randrange(len(frames))
    return [*frames[: number + 1], *frames[number:]]


_WAYS: tuple[Callable[[random.Random, list[bytes]], list[bytes]], ...] = (
    _change_field,
    _change_field,
    _change_field,
    _change_byte,
    _cut,
    _lengthen,
    _insert_frame,
    _drop_frame,
    _repeat_frame,
)
