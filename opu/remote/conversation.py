"""A client's side of the conversation with a server, without sockets, threads or clocks.

Callers add *tickets*, requests with what becomes of their replies. The conversation says what is to be sent and when,
takes in what comes, and knows what to do when a connection ends: it asks for another one after a random pause that
grows from try to try, tells the server who it is, and repeats what is not answered. A server that was not restarted
goes on where it was and answers from memory what it has answered before; on one that was, the sessions are opened
again. The blocking client and that for asyncio both carry its messages.
"""

from __future__ import annotations

import enum
import itertools
import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import opu
from opu.device import SessionConfig
from opu.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    LinkError,
    MediumChangedError,
    OpuError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    VersionMismatchError,
    error_from_code,
)
from opu.remote import OPEN_AGAIN, protocol

__all__ = ["Conversation", "Outcome", "Promise", "SessionRecord", "Ticket", "copy_error"]

_log = logging.getLogger("opu.remote.client")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_COME_BACK = ("stopped", "unknown", "expired")
_LONGEST_PATIENCE_S = 0.25

_MOST_TRIES = 20

Finish: TypeAlias = Callable[[Any, memoryview | None], Any]
Outcome: TypeAlias = tuple[protocol.Reply, memoryview | None] | OpuError
_DONE: Outcome = (protocol.Done(request_id=0), None)


class _Phase(enum.Enum):
    GREETING = enum.auto()  # the first connection, until the server answers
    TALKING = enum.auto()
    APART = enum.auto()  # no connection, and a pause until the next try
    RETURNING = enum.auto()  # another connection, until the server answers
    OVER = enum.auto()


class Promise(Protocol):
    """The side of a future that is told the outcome."""

    def done(self) -> bool:
        """Return whether it has been told, or nobody wants to know."""

    def set_running_or_notify_cancel(self) -> bool:
        """Return whether somebody still wants the outcome."""

    def set_result(self, result: Any, /) -> None:
        """Set the result."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Set the reason why there is none."""


@dataclass(eq=False)
class SessionRecord:
    """A session as the client knows it.

    `number` is the server's, None while the session has to be opened, or opened again; `error` is why that has failed.
    """

    config: SessionConfig
    number: int | None = None
    error: OpuError | None = None


@dataclass(eq=False)
class Ticket:
    """A request and what becomes of its reply.

    Parameters
    ----------
    make : callable
        Makes the message from the number of the request, whenever it is sent.
    reply_type : type
        What the server has to answer.
    future : Promise
        Gets the outcome: a future of `concurrent.futures`, or what behaves like one.
    finish : callable
        Makes the result of the reply and its payload.
    payload : memoryview, optional
        What is sent behind the message.
    session : SessionRecord, optional
        The session that must be open.
    opens : SessionRecord, optional
        The session that is open when the reply comes. From then on it is opened again whenever the server is another
        one, until `Conversation.forget`.
    due_s : float
        When nobody is interested any more.
    is_projection : bool
        Whether it counts as one of the projections that the server lets a client have.
    request_id : int or None
        Its number, once it has one.
    """

    make: Callable[[int], protocol.Request]
    reply_type: type[Any]
    future: Promise
    finish: Finish
    payload: memoryview | None = None
    session: SessionRecord | None = None
    opens: SessionRecord | None = None
    due_s: float = math.inf
    is_projection: bool = False
    request_id: int | None = None

    def settle(self, outcome: Outcome) -> None:
        """Turn a reply, or what came instead of one, into the outcome of the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            if isinstance(outcome, OpuError):
                raise copy_error(outcome)
            reply, payload = outcome
            if not isinstance(reply, self.reply_type):
                raise ProtocolError(
                    f"The server answered with a {type(reply).__name__} where a {self.reply_type.__name__} was due.",
                    "The server does not follow docs/protocol.md.",
                )
            result = self.finish(reply, payload)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller must hear of it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Conversation:
    """What a client says, hears and waits for. Not for several threads at once.

    Parameters
    ----------
    address : str
        Of the server, for messages to people.
    timeout_s : float
        How long the server may give no sign of life.
    reconnect_s : float
        How long to try to come back when a connection has ended; 0: not at all.
    how_to_reach : callable
        Tells people what to do when nobody answers.
    name : str
        What the operator of the server sees.
    role : str, optional
        What the client wants to be at most.
    clock : callable
        Returns the time in seconds, and never less than before.
    chance : random.Random, optional
        Draws the pauses.
    """

    def __init__(
        self,
        *,
        address: str,
        timeout_s: float,
        reconnect_s: float,
        how_to_reach: Callable[[], str],
        name: str,
        role: protocol.Role | None,
        clock: Callable[[], float],
        chance: random.Random | None = None,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._how_to_reach = how_to_reach
        self._name = name
        self._role = role
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - nothing depends on it but when to try again
        self._token = secrets.token_hex(16)
        self._phase = _Phase.GREETING
        self._next_id = 1
        self._hello_id = -1
        self._greeting: Ticket | None = None
        self._outgoing: deque[Ticket] = deque()
        self._pending: dict[int, Ticket] = {}
        self._projecting = 0
        self._settled: deque[tuple[Ticket, Outcome]] = deque()
        self._sessions: dict[SessionRecord, None] = {}  # in the order in which they were opened
        self._to_reopen: deque[tuple[int, SessionRecord]] = deque()
        self._reopening: dict[int, SessionRecord] = {}
        self._features: frozenset[str] = frozenset()
        self._max_queued = 1
        self._ping_every_s = timeout_s / 4
        self._pinged_s = 0.0
        self._silent_since_s: float | None = None
        self._apart_since_s: float | None = None
        self._next_try_s = 0.0
        self._cause = self._trouble = ""
        self._tries = 0
        self._leaving = False
        self.refuse_server: str | None = None
        """The `server_id` of a server that must not stand behind this link, because it is served through it."""
        self.welcome: protocol.Welcome | None = None
        self.error: OpuError | None = None
        """Why it is over."""
        self.reconnections = 0

    # What callers do

    def greet(self, ticket: Ticket) -> None:
        """Have the first answer of the server settle a ticket."""
        self._greeting = ticket

    def add(self, ticket: Ticket) -> None:
        """Send a request, now or as soon as there is a connection.

        Raises
        ------
        OpuError
            The conversation is over, or the session could not be opened again.
        """
        error = self.error or (ticket.session.error if ticket.session is not None else None)
        if error is not None:
            raise copy_error(error)
        self._outgoing.append(ticket)

    def has_taken(self, ticket: Ticket) -> bool:
        """Return whether a ticket has been added, so that its future is told of an outcome."""
        return ticket.request_id is not None or ticket in self._outgoing

    def cancel(self, ticket: Ticket) -> bool:
        """Do without the answer to a request.

        Returns
        -------
        bool
            Whether its future has to be told; otherwise that happens when the answer comes, or has happened.
        """
        is_pending = ticket.request_id is not None and self._pending.get(ticket.request_id) is ticket
        if ticket in self._outgoing:
            self._outgoing.remove(ticket)
        elif is_pending and "cancel" in self._features:
            self._take(ticket.request_id)
        else:
            return False
        if ticket.request_id is not None:
            cancelling = _cancelling(ticket.request_id)
            cancelling.request_id = self._draw_id()  # those behind it may have one, too: see `answered`
            self._outgoing.appendleft(cancelling)
        return True

    def forget(self, record: SessionRecord) -> None:
        """Note that a session has been closed."""
        self._sessions.pop(record, None)

    def leave(self, ticket: Ticket) -> None:
        """Say bye when everything else is answered; at once if there is no connection."""
        self._leaving = True
        self._outgoing.append(ticket)
        if self._phase is not _Phase.TALKING:
            self.fail(ClosedError(f"The link to {self._address} is closed.", "Open the device again."))

    # What carries it

    def connected(self) -> list[protocol.RawBytes]:
        """Return the first message of a new connection, or of the first one again."""
        if self._phase is _Phase.APART:
            self._phase = _Phase.RETURNING
        if self._phase is not _Phase.GREETING or self._silent_since_s is None:  # or it is the same one, once more
            self._hello_id = self._draw_id()
            self._silent_since_s = self._clock()
        hello = protocol.Hello(
            request_id=self._hello_id,
            version=protocol.PROTOCOL_VERSION,
            software=f"openopu {opu.__version__}",
            name=self._name,
            features=protocol.FEATURES,
            token=self._token,
            role=self._role,
        )
        return protocol.encode(hello)

    @property
    def has_connection(self) -> bool:
        """Whether there is one, or one is being made."""
        return self._phase is not _Phase.APART and self._phase is not _Phase.OVER

    @property
    def wants_connection(self) -> bool:
        """Whether it is time to connect again."""
        return self._phase is _Phase.APART and self._clock() >= self._next_try_s

    @property
    def is_talking(self) -> bool:
        """Whether the server answers."""
        return self._phase is _Phase.TALKING

    @property
    def is_greeting(self) -> bool:
        """Whether the server has not answered yet, ever: then one waits for it, whatever the network says."""
        return self._phase is _Phase.GREETING

    def patience_s(self) -> float:
        """Return how long nothing has to be done if nothing comes."""
        if self._phase is _Phase.APART:
            return min(max(self._next_try_s - self._clock(), 0.001), _LONGEST_PATIENCE_S)
        return min(self._timeout_s / 4, self._ping_every_s / 4, _LONGEST_PATIENCE_S)

    def receive(self, frames: Sequence[protocol.RawBytes]) -> None:
        """Take in a message."""
        if not self.has_connection:
            return
        self._silent_since_s = None
        try:
            reply, payload = protocol.decode_reply(frames)
        except VersionMismatchError as error:
            self.fail(error)
        except LinkError as error:
            self._fail_one(protocol.read_request_id(frames), error)
        else:
            self._take_reply(reply, payload)

    def messages(self) -> Iterator[list[protocol.RawBytes]]:
        """Yield what is to be sent now. Each is taken as sent."""
        if self._phase is not _Phase.TALKING:
            return
        while self._to_reopen:
            number, record = self._to_reopen.popleft()
            self._reopening[number] = record
            yield protocol.encode(protocol.OpenSession(request_id=number, config=record.config))
        while self._outgoing and self._may_be_sent(self._outgoing[0]):
            ticket = self._outgoing.popleft()
            if ticket.request_id is None:
                ticket.request_id = self._draw_id()
            self._pending[ticket.request_id] = ticket
            self._projecting += ticket.is_projection
            yield protocol.encode(ticket.make(ticket.request_id), ticket.payload)
        now_s = self._clock()
        if now_s - self._pinged_s >= self._ping_every_s:
            self._pinged_s = now_s
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            yield protocol.encode(protocol.Ping(request_id=self._draw_id(), answered=self.answered))

    def look(self) -> None:
        """See whether the server has been silent for too long, and whether deadlines have passed."""
        now_s = self._clock()
        silent_s = 0.0 if self._silent_since_s is None else now_s - self._silent_since_s
        if self.has_connection and silent_s > self._timeout_s:
            self.lost(self._unreachable())
        if self._phase in {_Phase.APART, _Phase.RETURNING}:
            assert self._apart_since_s is not None  # noqa: S101 - `lost` has set it
            if now_s - self._apart_since_s > self._reconnect_s:
                self.fail(self._gave_up())
            self._drop_overdue(now_s)

    def hung_up(self) -> None:
        """Note that the connection has ended, or could not be made."""
        remedy = f"{self._how_to_reach()} {OPEN_AGAIN}"
        self.lost(UnreachableError(f"The server at {self._address} is gone.", remedy))

    def refused(self, refused_s: float) -> None:
        """Note that nobody has listened for so long, and give up."""
        self.fail(
            UnreachableError(
                f"Nobody listens at {self._address}: connections have been refused for {refused_s:g} s.",
                self._how_to_reach(),
            )
        )

    def lost(self, error: OpuError) -> None:
        """Note that the connection has ended, or has to be ended: try again, or give up."""
        if not self.has_connection:
            return
        if self._phase is _Phase.GREETING or self._leaving or not self._reconnect_s:
            self.fail(error)
            return
        now_s = self._clock()
        self._phase = _Phase.APART
        self._silent_since_s = None
        self._trouble = error.problem
        if self._apart_since_s is None:
            self._apart_since_s = now_s
            self._cause = error.problem
            _log.warning("%s Trying to come back for %g s.", error.problem, self._reconnect_s)
        pause_s = self._chance.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._tries))
        if isinstance(error, BusyError) and error.retry_s is not None:
            pause_s += error.retry_s
        self._tries = min(self._tries + 1, _MOST_TRIES)
        self._next_try_s = now_s + pause_s

    def fail(self, error: OpuError) -> None:
        """End the conversation: everything that waits fails, and everything that comes."""
        self._phase = _Phase.OVER
        self.error = self.error or error
        waiting = [*self._pending.values(), *self._outgoing]
        if self._greeting is not None:
            waiting.append(self._greeting)
            self._greeting = None
        self._pending.clear()
        self._outgoing.clear()
        for ticket in waiting:
            # Who gives something back to a server that is gone has what they want.
            given_back = self._leaving and ticket.reply_type is protocol.Done
            self._settled.append((ticket, _DONE if given_back else self.error))

    @property
    def waits(self) -> bool:
        """Whether any request is not settled yet."""
        return bool(self._pending or self._outgoing or self._reopening)

    def take_settled(self) -> list[tuple[Ticket, Outcome]]:
        """Return the tickets to be settled now, with no lock held: callbacks of their futures may do anything."""
        settled = list(self._settled)
        self._settled.clear()
        return settled

    @property
    def answered(self) -> int:
        """The number below which every request is answered."""
        numbered = itertools.takewhile(lambda ticket: ticket.request_id is not None, self._outgoing)
        numbers = [ticket.request_id for ticket in numbered if ticket.request_id is not None]
        to_reopen = (number for number, _ in self._to_reopen)
        return min([*self._pending, *numbers, *self._reopening, *to_reopen], default=self._next_id)

    def _draw_id(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number

    def _may_be_sent(self, ticket: Ticket) -> bool:
        if ticket.session is not None and ticket.session.number is None:
            return False  # it is being opened again
        return not ticket.is_projection or self._projecting < self._max_queued  # beyond, the server would say busy

    # Greetings and partings

    def _take_reply(self, reply: protocol.Reply, payload: memoryview | None) -> None:
        if isinstance(reply, protocol.Goodbye):
            self._part(reply)
            return
        if reply.request_id == self._hello_id:
            self._take_welcome(reply)
            return
        self._apart_since_s, self._tries = None, 0  # a server that greets and does no more is not back
        if reply.request_id in self._reopening:
            self._reopened(self._reopening.pop(reply.request_id), reply)
        else:
            ticket = self._take(reply.request_id)
            if ticket is not None:
                if ticket.opens is not None and isinstance(reply, protocol.SessionOpened):
                    # At once, not when its caller has learnt of it: the server may be another one by then.
                    ticket.opens.config, ticket.opens.number = reply.description.config, reply.session
                    self._sessions[ticket.opens] = None
                outcome = _as_error(reply) if isinstance(reply, protocol.ErrorReply) else (reply, payload)
                self._settled.append((ticket, outcome))

    def _take_welcome(self, reply: protocol.Reply) -> None:
        if self._phase is _Phase.TALKING:
            return
        if isinstance(reply, protocol.Welcome):
            objection = self._objection(reply)
            if objection is None:
                self._begin(reply)
            else:
                self.fail(objection)
        elif isinstance(reply, protocol.ErrorReply):
            error = _as_error(reply)
            comes_again = isinstance(error, (BusyError, UnreachableError)) and self._phase is _Phase.RETURNING
            (self.lost if comes_again else self.fail)(error)
        else:
            self.fail(
                ProtocolError(
                    f"The server answered hello with a {type(reply).__name__}.",
                    "The server does not follow docs/protocol.md.",
                )
            )

    def _objection(self, welcome: protocol.Welcome) -> OpuError | None:
        """Return why one cannot go on with this server."""
        if self.refuse_server in welcome.servers:
            return RefusedError(
                f"The server at {self._address} gets its device from the one that would serve it: a loop.",
                "Have one of the two serve a device of its own.",
            )
        if self.welcome is None:
            return None
        before, now = self.welcome.description, welcome.description
        if (before.device_id, before.medium.medium_id) != (now.device_id, now.medium.medium_id):
            return MediumChangedError(
                f"The server at {self._address} came back with the device {now.device_id!r} and the medium "
                f"{now.medium.medium_id!r} instead of {before.device_id!r} and {before.medium.medium_id!r}.",
                "Frames before and after do not belong together: open the device again, and fit anew what was fitted.",
            )
        return None

    def _begin(self, welcome: protocol.Welcome) -> None:
        self._features = frozenset(welcome.features)
        self._ping_every_s = min(self._timeout_s, welcome.limits.expire_s) / 4
        self._max_queued = welcome.limits.max_queued
        self._pinged_s = self._clock()
        if self._phase is _Phase.RETURNING:
            self._go_on(welcome)
        self._phase = _Phase.TALKING
        self.welcome = welcome
        if self._greeting is not None:
            self._settled.append((self._greeting, (welcome, None)))
            self._greeting = None

    def _go_on(self, welcome: protocol.Welcome) -> None:
        """Repeat what is not answered, and open the sessions again where the server does not know them."""
        self.reconnections += 1
        restarted = "" if welcome.resumed else ", and does not know this client: it was restarted, or took it for gone"
        _log.warning("The server at %s is back%s.", self._address, restarted)
        self._outgoing.extendleft(self._pending[number] for number in sorted(self._pending, reverse=True))
        self._pending.clear()
        self._projecting = 0
        if welcome.resumed:
            self._to_reopen.extendleft(self._reopening.items())
        else:
            for record in self._sessions:
                record.number = None
            self._to_reopen = deque((self._draw_id(), record) for record in self._sessions)
        self._reopening = {}

    def _reopened(self, record: SessionRecord, reply: protocol.Reply) -> None:
        if isinstance(reply, protocol.SessionOpened):
            record.number = reply.session
            return
        reason = _as_error(reply) if isinstance(reply, protocol.ErrorReply) else type(reply).__name__
        record.error = ClosedError(
            f"The session could not be opened again when the server at {self._address} was back: {reason}",
            "Open another one with device.open_session().",
        )
        self._sessions.pop(record, None)
        for ticket in [ticket for ticket in self._outgoing if ticket.session is record]:
            self._outgoing.remove(ticket)
            self._settled.append((ticket, record.error))

    def _part(self, goodbye: protocol.Goodbye) -> None:
        error = UnreachableError(f"The server at {self._address} ended the link: {goodbye.problem}", goodbye.remedy)
        if goodbye.code in _COME_BACK:
            self.lost(error)
        else:
            self.fail(error)

    def _gave_up(self) -> UnreachableError:
        return UnreachableError(
            f"{self._cause} There was no coming back for {self._reconnect_s:g} s. The last try: {self._trouble}",
            f"{self._how_to_reach()} {OPEN_AGAIN}",
        )

    def _unreachable(self) -> UnreachableError:
        remedy = self._how_to_reach()
        if self._phase is _Phase.GREETING:
            return UnreachableError(f"Nobody answers at {self._address} within {self._timeout_s:g} s.", remedy)
        return UnreachableError(
            f"The server at {self._address} has given no sign of life for {self._timeout_s:g} s.",
            f"{remedy} {OPEN_AGAIN}",
        )

    # Tickets

    def _drop_overdue(self, now_s: float) -> None:
        """Give up, while there is no connection, what nobody is interested in any more."""
        error = DeadlineError(
            f"The deadline passed while there was no connection to {self._address}.", "Send it again if it is wanted."
        )
        overdue = [ticket for ticket in self._pending.values() if ticket.due_s < now_s]
        for ticket in overdue:
            self._take(ticket.request_id)
        overdue += [ticket for ticket in self._outgoing if ticket.due_s < now_s]
        self._outgoing = deque(ticket for ticket in self._outgoing if ticket.due_s >= now_s)
        self._settled.extend((ticket, error) for ticket in overdue)

    def _take(self, request_id: int | None) -> Ticket | None:
        ticket = None if request_id is None else self._pending.pop(request_id, None)
        if ticket is not None:
            self._projecting -= ticket.is_projection
        return ticket

    def _fail_one(self, request_id: int | None, error: OpuError) -> None:
        ticket = self._take(request_id)
        if ticket is not None:
            self._settled.append((ticket, error))
        elif request_id == self._hello_id and self._phase is not _Phase.TALKING:
            self.fail(error)
        else:
            _log.warning("the server at %s sent what nobody can read: %s", self._address, ascii(str(error)))


def copy_error(error: OpuError) -> OpuError:
    """Return the same error once more: each future raises its own, with its own traceback."""
    return error_from_code(error.code, error.problem, error.remedy, getattr(error, "retry_s", None))


def _as_error(reply: protocol.ErrorReply) -> OpuError:
    return error_from_code(reply.code, reply.problem, reply.remedy, reply.retry_s)


def _cancelling(target: int) -> Ticket:
    return Ticket(
        make=lambda number: protocol.Cancel(request_id=number, target=target),
        reply_type=protocol.Done,
        future=Future(),
        finish=lambda _, __: None,
    )
