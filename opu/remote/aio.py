"""A device behind a server, for programs that run in an event loop of asyncio.

It carries the same conversation as the backend `tcp:` (`opu.remote.conversation`), takes the same addresses and raises
the same errors. One task of the loop owns the sockets, so there is neither a thread nor a lock; only the name of a host
is looked up in a thread. Devices, sessions and futures belong to the loop in which the device was opened. The loop has
to come round: a coroutine that computes for seconds keeps the link from telling the server that it is alive.

The sockets are plain ones of ZeroMQ whose file descriptors the loop watches, instead of those of `zmq.asyncio`: these
make a future for each message, and one that is cancelled at the wrong moment takes its message along
(https://github.com/zeromq/pyzmq/issues/1925).
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import zmq

from opu.device import (
    Batch,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    Limits,
    Projection,
    SessionConfig,
    SessionDescription,
    SettingsChange,
    check_frame_numbers,
    check_submission,
    check_whole,
    resolve_config,
)
from opu.errors import ClosedError, LeaseError, OpuError, UnsupportedError, UriError
from opu.remote import BACKEND, protocol
from opu.remote.conversation import SessionRecord, Ticket
from opu.remote.dealer import (
    connect,
    explain_fault,
    heed,
    judge_host,
    look_up,
    receive_message,
    send_message,
    start_conversation,
)
from opu.remote.handshake import ConnectionWatch
from opu.remote.holding import LEASE_S, HeldLease, SharedLease, Terms
from opu.remote.requests import (
    GONE,
    ask_for_settings,
    ask_for_status,
    ask_to_change,
    ask_to_close,
    ask_to_leave,
    ask_to_open,
    ask_to_project,
    ask_to_renew,
    ask_to_return,
    ask_to_take,
    describe_link,
    describe_settings,
    read_keys,
    reply_itself,
    wait_for_welcome,
)
from opu.remote.security import ClientKeys
from opu.remote.sockets import has_input
from opu.uri import Uri, parse_uri

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.patterns import PackedPatterns

__all__ = ["AsyncControl", "AsyncDevice", "AsyncSession", "open"]

_MESSAGES_PER_TURN = 64
_MOST_AHEAD = 2**16
_LONGEST_WAIT_S = 0.25

ResultT = TypeVar("ResultT")

_blocks: ContextVar[tuple[object, ...]] = ContextVar("opu_lease_blocks", default=())
"""The blocks of leases, of any device, that are entered here. A task has those of the one that starts it."""


class _Answer(asyncio.Future[Any]):
    """A future that says when it is cancelled, and that a ticket can settle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, withdraw: Callable[[], object] | None = None) -> None:
        super().__init__(loop=loop)
        self._withdraw = withdraw

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg):
            return False
        if self._withdraw is not None:
            self._withdraw()
        return True

    def set_running_or_notify_cancel(self) -> bool:
        self._withdraw = None  # it knows the ticket, which knows this future: a cycle would keep the frames for long
        return not self.done()


class _Link:
    """A connection to a server, and the next one when that ends. Its task owns the sockets, and ends with it.

    Parameters
    ----------
    address : str
        `tcp://HOST:PORT`.
    host_number : str
        The number of the host, as it was looked up.
    timeout_s : float
        How long the server may give no sign of life.
    reconnect_s : float
        How long to try to come back.
    keys : ClientKeys or None
        Of the client.
    role : str or None
        What the client wants to be at most.
    """

    def __init__(
        self,
        address: str,
        host_number: str,
        timeout_s: float,
        reconnect_s: float,
        *,
        keys: ClientKeys | None,
        role: protocol.Role | None,
    ) -> None:
        self.address = address
        self._host_number = host_number
        self._keys = keys
        self._conversation = start_conversation(address, timeout_s, reconnect_s, role)
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def greet(self) -> protocol.Welcome:
        """Open the conversation, and keep to what the server grants."""
        greeted = _Answer(self._loop)
        self._conversation.greet(wait_for_welcome(greeted))
        self._task = self._loop.create_task(self._run(), name=f"opu-link {self.address}")
        welcome: protocol.Welcome = await greeted
        return welcome

    @property
    def welcome(self) -> protocol.Welcome:
        """What the server said last time it was greeted."""
        welcome = self._conversation.welcome
        assert welcome is not None  # noqa: S101 - `greet` has returned
        return welcome

    @property
    def answered(self) -> int:
        """The number below which every request is answered."""
        return self._conversation.answered

    @property
    def reconnections(self) -> int:
        """How often the link has come back."""
        return self._conversation.reconnections

    def ask(
        self,
        make: Callable[[int], protocol.Request],
        reply_type: type[ResultT],
        session: SessionRecord | None = None,
        opens: SessionRecord | None = None,
    ) -> asyncio.Future[ResultT]:
        """Send a request. The server carries it out even if its future is cancelled.

        Parameters
        ----------
        make : callable
            Makes the message from its number.
        reply_type : type
            What the server has to answer.
        session : SessionRecord, optional
            The session that must be open.
        opens : SessionRecord, optional
            The session that is open when the reply comes.
        """
        answer = _Answer(self._loop)
        self._send(Ticket(make, reply_type, answer, reply_itself, session=session, opens=opens))
        return answer

    def request(self, ticket: Ticket) -> asyncio.Future[Any]:
        """Send a request that is withdrawn when its future is cancelled."""
        ticket.future = answer = _Answer(self._loop, lambda: self._cancel(ticket))
        self._send(ticket)
        return answer

    def forget(self, record: SessionRecord) -> None:
        """Note that a session has been closed."""
        self._conversation.forget(record)

    async def give_back(self, record: SessionRecord) -> None:
        """Close a session, and wait for that as long as there is a connection."""
        if self._conversation.error is not None:
            return  # the server has closed it

        def forget(done: asyncio.Future[protocol.Done]) -> None:
            self.forget(record)
            if not done.cancelled():
                done.exception()  # a server that is gone has closed it

        answer = self.ask(ask_to_close(record), protocol.Done, record)
        answer.add_done_callback(forget)
        while self._conversation.is_talking and not answer.done():
            await asyncio.wait({answer}, timeout=_LONGEST_WAIT_S)

    async def close(self) -> None:
        """Say bye, when everything that was asked before is answered, and end the task."""
        if self._conversation.error is None:
            done = _Answer(self._loop)
            self._conversation.leave(Ticket(ask_to_leave, protocol.Done, done, reply_itself))
            self._awake.set()
            with contextlib.suppress(*GONE):
                await done
        await self.end()

    async def end(self) -> None:
        """Close the sockets and end the task, whatever is still waiting."""
        self._ended = True
        self._awake.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    def abandon(self) -> None:
        """Have the task end soon, without waiting: the garbage collector may call it in any thread."""
        self._ended = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task has ended with it
            self._loop.call_soon_threadsafe(self._awake.set)

    def _send(self, ticket: Ticket) -> None:
        self._conversation.add(ticket)
        self._awake.set()

    def _cancel(self, ticket: Ticket) -> None:
        self._conversation.cancel(ticket)
        self._awake.set()

    # The task

    async def _run(self) -> None:
        context = zmq.Context()
        conversation = self._conversation
        try:
            while not self._ended and conversation.error is None:
                if conversation.has_connection or conversation.wants_connection:
                    await self._use_connection(context)
                else:
                    await self._wait()
                    conversation.look()
                self._settle()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self._fail(explain_fault(self.address, error))
        finally:
            context.term()
            self._fail(ClosedError(f"The link to {self.address} is closed.", "Open the device again."))

    async def _use_connection(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Make a connection, and use it until it ends."""
        first = self._conversation.is_greeting  # later, the conversation says when to try again
        with (
            connect(context, self.address, self._host_number, self._keys, tries_by_itself=first) as (dealer, watch),
            self._watching(dealer, watch.receiver),
        ):
            send_message(dealer, self._conversation.connected())
            await self._converse(dealer, watch)

    async def _converse(self, dealer: zmq.Socket[bytes], watch: ConnectionWatch) -> None:
        conversation = self._conversation
        n_dropped = 0
        while not self._ended and conversation.has_connection:
            self._receive(dealer)
            failure = await watch.find_failure_async()
            is_refused = conversation.is_greeting and await watch.is_refused_async()
            n_dropped = heed(conversation, dealer, watch, n_dropped=n_dropped, failure=failure, is_refused=is_refused)
            for message in conversation.messages():
                send_message(dealer, message)
            conversation.look()
            self._settle()
            # The descriptors tell of changes alone: what is there already has to be asked for.
            if has_input(dealer) or has_input(watch.receiver):
                await asyncio.sleep(0)
            else:
                await self._wait()

    def _receive(self, dealer: zmq.Socket[bytes]) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            if not has_input(dealer):
                return
            self._conversation.receive(receive_message(dealer))

    async def _wait(self) -> None:
        """Wait until something has come, is to be sent, or is due."""
        alarm = self._loop.call_later(self._conversation.patience_s(), self._awake.set)
        try:
            await self._awake.wait()
        finally:
            alarm.cancel()
        self._awake.clear()

    @contextlib.contextmanager
    def _watching(self, *sockets: zmq.Socket[Any]) -> Iterator[None]:
        descriptors = [socket.fileno() for socket in sockets]
        try:
            for descriptor in descriptors:
                self._loop.add_reader(descriptor, self._awake.set)
            yield
        finally:
            for descriptor in descriptors:
                self._loop.remove_reader(descriptor)

    def _settle(self) -> None:
        for ticket, outcome in self._conversation.take_settled():
            ticket.settle(outcome)

    def _fail(self, error: OpuError) -> None:
        self._conversation.fail(error)
        if not self._loop.is_closed():
            self._settle()


class AsyncDevice:
    """A device behind a server, for one event loop. Made by `open`; an asynchronous context manager.

    It comes back to a server as `opu.remote.client.RemoteDevice` does.

    Parameters
    ----------
    uri : str
        The address under which it was opened.
    link : _Link
        A connection that has been greeted.
    """

    def __init__(self, uri: str, link: _Link) -> None:
        self._uri = uri
        self._link = link
        self._description = describe_link(link.welcome.description)
        self._sessions: set[AsyncSession] = set()
        self._control = AsyncControl(link, self._note_settings)
        self._closed = False
        weakref.finalize(self, link.abandon)  # a device that nobody closed

    @property
    def uri(self) -> str:
        """The address under which the device was opened."""
        return self._uri

    @property
    def servers(self) -> tuple[str, ...]:
        """The `server_id` of the server, and those of the servers that stand between it and the device."""
        return self._link.welcome.servers

    @property
    def reconnections(self) -> int:
        """How often the link has come back after its connection had ended."""
        return self._link.reconnections

    def describe(self) -> DeviceDescription:
        """Return what the device is and offers, as far as it passes the link.

        The exposure is limited as this client has seen it last: when it was opened, or looked at or changed settings.
        """
        return self._description

    def capability(self, kind: type[DeviceControl]) -> AsyncControl:
        """Return the capability object of a class; `opu.device.DeviceControl` is the one that passes the link.

        Raises
        ------
        UnsupportedError
            The device has no such capability; the message lists those that it has.
        """
        if kind is not DeviceControl or DeviceControl.name not in self._description.capabilities:
            names = ", ".join(sorted(self._description.capabilities)) or "none"
            wanted = getattr(kind, "name", repr(kind))
            raise UnsupportedError(
                f"The device {self._uri} has no capability {wanted!r} for asyncio.", f"Its capabilities: {names}."
            )
        return self._control

    async def server_status(self) -> protocol.ServerStatus:
        """Ask the server what it is doing. Names of clients are texts from elsewhere: escape them.

        Raises
        ------
        UnreachableError
            The server is gone.
        ClosedError
            The device is closed.
        """
        reply = await self._link.ask(ask_for_status, protocol.StatusReply)
        return reply.status

    async def open_session(self, config: SessionConfig) -> AsyncSession:
        """Open a session; see `opu.device.Device.open_session` for what it takes and raises."""
        if self._closed:
            raise ClosedError(f"The device {self._uri} is closed.", "Open it again with opu.remote.aio.open().")
        config = resolve_config(config, self._description)
        record = SessionRecord(config)
        answer = self._link.ask(ask_to_open(config), protocol.SessionOpened, opens=record)
        try:
            opened = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda opened: self._give_back(opened, record))
            raise
        session = AsyncSession(self, self._link, record, opened.description)
        self._sessions.add(session)
        return session

    def forget(self, session: AsyncSession) -> None:
        """Note that a session has been closed."""
        self._sessions.discard(session)

    async def close(self) -> None:
        """Close the device and all its sessions. Batches that were accepted before are finished.

        When it is cancelled, the device is closed at once, and what was not finished fails.
        """
        self._closed = True
        try:
            for session in list(self._sessions):
                await session.close()
            await self._link.close()
        finally:
            await self._link.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _note_settings(self, settings: DeviceSettings) -> None:
        self._description = describe_settings(self._description, self._link.welcome.description, settings)

    def _give_back(self, answer: asyncio.Future[protocol.SessionOpened], record: SessionRecord) -> None:
        """Close a session that has been opened for somebody who does not wait any more."""
        if answer.cancelled() or answer.exception() is not None:
            return
        with contextlib.suppress(OpuError):  # the link is over, and the session with it
            closed = self._link.ask(ask_to_close(record), protocol.Done, record)
            closed.add_done_callback(lambda _: self._link.forget(record))


class AsyncControl:
    """The settings of a device behind a server, for one event loop: `opu.remote.client.RemoteControl`, to be awaited.

    Everybody may look. Operators may change, while they hold the lease of the device: for one change it is taken by
    itself, for several that belong together there is `lease`. Tasks of one device share its lease. Whoever cancels a
    change does not wait for it any more; once it was asked for, and while the lease holds, the device is changed
    nevertheless.

    Parameters
    ----------
    link : _Link
        To the server.
    note : callable
        Told of the settings whenever they are known.
    """

    def __init__(self, link: _Link, note: Callable[[DeviceSettings], None]) -> None:
        self._link = link
        self._note = note
        self._taking = asyncio.Lock()
        self._shared = SharedLease()
        self._changes: set[asyncio.Task[DeviceSettings]] = set()  # the loop itself does not keep them

    async def settings(self) -> DeviceSettings:
        """Return the settings as they are."""
        return (await self._ask(ask_for_settings)).settings

    async def limits(self) -> dict[str, Limits]:
        """Return the settings that can be changed, by name, with the ranges of their values."""
        return (await self._ask(ask_for_settings)).limits

    async def change(self, change: SettingsChange) -> DeviceSettings:
        """Change settings, all that are named or none, and return what they are now.

        Raises
        ------
        ForbiddenError, LeaseError, ConfigError, DeviceError, ClosedError
            As `opu.remote.client.RemoteControl.change`.
        """
        # In a task of its own, so that the lease is not given back before a change that was cancelled is made.
        task = asyncio.create_task(self._change(self._who(), change))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(_look_at)
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def lease(self, ttl_s: float = LEASE_S, note: str = "", *, force: bool = False) -> AsyncIterator[Self]:
        """Hold the lease of the device, so that nobody else changes it meanwhile. Within itself it is the same lease.

        Tasks that are started in the block are inside as well, so that they hear of it when the lease is lost.

        Parameters
        ----------
        ttl_s, note, force : object
            As `opu.remote.client.RemoteControl.lease` takes them.

        Yields
        ------
        AsyncControl
            This object.

        Raises
        ------
        ForbiddenError
            This client is no operator.
        LeaseError
            Somebody else has the lease.
        """
        who = self._who()
        async with self._hold(who, Terms(ttl_s, note, force)):
            _blocks.set((*_blocks.get(), who))
            try:
                yield self
            finally:
                _leave_block(who)

    async def renew(self) -> None:
        """Have the lease that is held last its full time again.

        Raises
        ------
        LeaseError
            It has run out, was taken away, or none is held.
        """
        held = self._shared.find(self._who())
        if held is None:
            raise LeaseError("No lease is held.", "Take one: async with control.lease(): ...")
        await self._renew(held)

    def _who(self) -> object:
        """Return who is inside the lease here: the block, also in tasks started in it. Otherwise somebody new."""
        return next((block for block in _blocks.get() if self._shared.is_inside(block)), object())

    async def _change(self, who: object, change: SettingsChange) -> DeviceSettings:
        async with self._hold(who, None) as held:
            while True:
                number = held.number
                try:
                    return (await self._ask(ask_to_change(number, change))).settings
                except LeaseError:
                    async with self._taking:
                        if self._shared.lose(held, number):
                            raise  # it was not taken again meanwhile

    @contextlib.asynccontextmanager
    async def _hold(self, who: object, terms: Terms | None) -> AsyncIterator[HeldLease]:
        """Hold the lease, on any terms if there are none."""
        held = await self._enter(who, terms)
        try:
            yield held
        finally:
            if self._shared.leave(who, held):
                with contextlib.suppress(*GONE, LeaseError):  # it has ended by itself
                    await self._return(held.number)

    async def _enter(self, who: object, terms: Terms | None) -> HeldLease:
        async with self._taking:  # a second number would make the first one void
            while True:
                held = self._shared.find(who)
                if held is not None and self._shared.wants_renewal(who, held, terms):
                    try:
                        await self._renew(held)
                    except LeaseError:
                        if self._shared.is_inside(who):
                            raise
                        held = None
                if held is None or not held.covers(terms):
                    held = await self._take(held, terms or Terms())
                if self._shared.enter(who, held):
                    return held

    async def _take(self, held: HeldLease | None, terms: Terms) -> HeldLease:
        """Take the lease, or take it again."""
        wanted = held.join(terms) if held is not None else terms
        asked_s = self._shared.now_s()
        answer = self._link.ask(ask_to_take(wanted), protocol.Lease)
        try:
            reply = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda taken: self._use_or_return(held, taken, wanted, asked_s))
            raise
        return self._shared.taken(held, reply.lease, wanted, asked_s)

    async def _renew(self, held: HeldLease) -> None:
        asked_s = self._shared.now_s()
        number = held.number
        try:
            await self._link.ask(ask_to_renew(number), protocol.Lease)
        except LeaseError:
            self._shared.lose(held, number)
            raise
        self._shared.renewed(held, asked_s)

    def _use_or_return(
        self, held: HeldLease | None, taken: asyncio.Future[protocol.Lease], terms: Terms, asked_s: float
    ) -> None:
        """Use a lease that was taken for somebody who does not wait any more if others hold it, or return it."""
        if taken.cancelled() or taken.exception() is not None:
            return
        number = taken.result().lease
        if held is not None and self._shared.taken_late(held, number, terms, asked_s):
            return
        with contextlib.suppress(OpuError):  # the link is over, and the lease with it
            self._return(number).add_done_callback(_look_at)

    def _return(self, lease: int) -> asyncio.Future[protocol.Done]:
        return self._link.ask(ask_to_return(lease), protocol.Done)

    async def _ask(self, make: Callable[[int], protocol.Request]) -> protocol.SettingsReply:
        reply = await self._link.ask(make, protocol.SettingsReply)
        self._note(reply.settings)
        return reply


def _leave_block(block: object) -> None:
    """Note that a block is left. Its generator may be closed in another context, which never entered it."""
    blocks = list(_blocks.get())
    with contextlib.suppress(ValueError):
        blocks.remove(block)
    _blocks.set(tuple(blocks))


def _look_at(done: asyncio.Future[Any]) -> None:
    """Look at the outcome of what nobody waits for, so that the loop does not complain."""
    if not done.cancelled():
        done.exception()


class AsyncSession:
    """A session of a device behind a server, for one event loop; an asynchronous context manager.

    Made by `AsyncDevice.open_session`.

    Parameters
    ----------
    device : AsyncDevice
        Its device.
    link : _Link
        To the server.
    record : SessionRecord
        What the link knows of it.
    description : SessionDescription
        What opening it came to.
    """

    def __init__(
        self, device: AsyncDevice, link: _Link, record: SessionRecord, description: SessionDescription
    ) -> None:
        self._device = device
        self._link = link
        self._description = description
        self._record = record
        self._next_frame_index = 0
        self._closed = False

    @property
    def config(self) -> SessionConfig:
        """The complete, immutable configuration."""
        return self._description.config

    @property
    def next_frame_index(self) -> int:
        """The number that the next frame gets unless the caller says otherwise."""
        return self._next_frame_index

    def describe(self) -> SessionDescription:
        """Return what opening the session came to."""
        return self._description

    def submit(
        self,
        patterns: ArrayLike | PackedPatterns,
        *,
        first_frame_index: int | None = None,
        out: NDArray[Any] | None = None,
        deadline_s: float | None = None,
    ) -> asyncio.Future[Projection]:
        """Queue a batch and return at once.

        To cancel the future, or a task that waits for it, withdraws the batch from the server. Frames that are not
        taken have used up their numbers.

        Parameters
        ----------
        patterns, first_frame_index, out, deadline_s : object
            As `opu.device.Session.submit` takes them.

        Returns
        -------
        asyncio.Future of Projection
            Done when the frames are there; raises what the device raised, and `DeadlineError` for a batch given up.

        Raises
        ------
        PatternShapeError, PatternDtypeError, PatternValueError, ConfigError, CapacityError, ClosedError
            As `opu.device.Session.submit`.
        """
        packed, due_s = check_submission(self._description, patterns, out, deadline_s)
        if self._closed:
            raise ClosedError("The session is closed.", "Open another one with device.open_session().")
        wanted = self._next_frame_index if first_frame_index is None else first_frame_index
        first = check_frame_numbers(wanted, len(packed), self._description.max_batch)
        batch = Batch(packed, first, out, due_s)
        answer = self._link.request(ask_to_project(self._record, self._description, batch, lambda: self._link.answered))
        self._next_frame_index = first + len(packed)
        return answer

    async def project(
        self,
        patterns: ArrayLike | PackedPatterns,
        *,
        first_frame_index: int | None = None,
        out: NDArray[Any] | None = None,
        deadline_s: float | None = None,
    ) -> Projection:
        """Project a batch and wait for the frames: `await submit(...)`."""
        return await self.submit(patterns, first_frame_index=first_frame_index, out=out, deadline_s=deadline_s)

    async def stream(
        self, batches: Iterable[ArrayLike | PackedPatterns], *, ahead: int = 4, deadline_s: float | None = None
    ) -> AsyncIterator[Projection]:
        """Project one batch after another, with some on their way while the caller works.

        Parameters
        ----------
        batches : iterable of array_like or PackedPatterns, shape (batch, n_features)
            Binary patterns. The next batch is taken when there is room for it.
        ahead : int
            How many batches are on their way at most.
        deadline_s : float, optional
            For each batch, from when it is sent.

        Yields
        ------
        Projection
            In the order of the batches. Those that are not taken are cancelled.

        Raises
        ------
        OpuError
            As `project`, at the first batch that fails.
        """
        check_whole("ahead", ahead, 1, _MOST_AHEAD)
        answers: deque[asyncio.Future[Projection]] = deque()
        try:
            for patterns in batches:
                if len(answers) == ahead:
                    yield await answers.popleft()
                answers.append(self.submit(patterns, deadline_s=deadline_s))
            while answers:
                yield await answers.popleft()
        finally:
            for answer in answers:
                if not answer.cancel():
                    answer.exception()  # nobody else will look at it

    async def close(self) -> None:
        """Close the session. Batches that were accepted before are finished."""
        if self._closed:
            return
        self._closed = True
        self._device.forget(self)
        with contextlib.suppress(*GONE):  # and has closed it
            await self._link.give_back(self._record)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def open(uri: str) -> AsyncDevice:
    """Open the device behind a server.

    Parameters
    ----------
    uri : str
        `tcp://HOST:PORT`, with the options of the backend `tcp:`.

    Returns
    -------
    AsyncDevice
        Open; close it, or use it in an `async with` statement.

    Raises
    ------
    UriError
        The address is malformed, of another scheme, or names one key of the two.
    OpuError
        As `opu.remote.client.open_remote`.

    Examples
    --------
    >>> import asyncio, opu, opu.remote.aio
    >>> from opu.remote.server import OpuServer
    >>> async def project(uri):
    ...     async with await opu.remote.aio.open(uri) as device:
    ...         async with await device.open_session(opu.SessionConfig(n_features=4, n_outputs=3)) as session:
    ...             return await session.project([[1, 0, 1, 0]])
    >>> with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
    ...     asyncio.run(project(server.uri)).frames.shape
    (1, 3)
    """
    parsed = parse_uri(uri)
    if parsed.scheme != BACKEND.scheme:
        raise UriError(
            f"The address {uri!r} is not that of a server.",
            f"Use one like {BACKEND.syntax}. Other devices have no version for asyncio: serve them (opu serve), or "
            f"call opu.open and asyncio.wrap_future(session.submit(...)).",
        )
    return await _open(parsed, **parsed.read_options(BACKEND.options))


async def _open(
    uri: Uri,
    *,
    timeout_s: float,
    reconnect_s: float,
    key: str | None,
    server_key: str | None,
    role: protocol.Role | None,
) -> AsyncDevice:
    keys = read_keys(uri, key, server_key)
    lookup = look_up(uri)
    with contextlib.suppress(OSError, UnicodeError):  # judged in the next line
        await asyncio.wait_for(asyncio.wrap_future(lookup), timeout_s)
    host_number = judge_host(uri, lookup, timeout_s)
    link = _Link(f"tcp:{uri.rest}", host_number, timeout_s, reconnect_s, keys=keys, role=role)
    try:
        await link.greet()
    except (Exception, asyncio.CancelledError):
        await link.end()
        raise
    return AsyncDevice(uri.text, link)
