"""The backend `tcp:`: a device that another process serves, like any other device.

A thread of its own owns the socket of each open device. Callers hand it requests and get futures, so that many
requests are on their way at once; what is said is the business of `opu.remote.conversation`.
Callbacks of futures run in that thread: they may submit, and must not wait for the device.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from opu.device import (
    Batch,
    Device,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    Limits,
    Projection,
    Session,
    SessionConfig,
    SessionDescription,
    SettingsChange,
)
from opu.errors import (
    AuthenticationError,
    ClosedError,
    LeaseError,
    OpuError,
    RefusedError,
)
from opu.registry import FoundDevice
from opu.remote import protocol
from opu.remote.conversation import Outcome, SessionRecord, Ticket, copy_error
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
from opu.remote.undisturbed import undisturbed
from opu.remote.waker import Waker
from opu.uri import Uri, parse_uri

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.patterns import PackedPatterns


__all__ = ["RemoteDevice", "RemoteSession", "find_local", "open_remote"]

_FIND_TIMEOUT_S = 0.25
_LONGEST_WAIT_MS = 250
_UNSETTLED = ("PENDING", "RUNNING")  # states of a future: without its lock nothing else tells

ResultT = TypeVar("ResultT")


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _disown_all() -> None:
    for link in list(_links):
        link.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


class _LinkFuture(Future[Any]):
    """A future whose answer comes through a link. It can be cancelled as long as it has not come."""

    def __init__(self, link: Link, ticket: Ticket) -> None:
        super().__init__()
        self._link = link
        self._ticket: Ticket | None = ticket  # until the future is settled

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the answer, and bring it oneself where one may."""
        ticket = self._ticket
        if ticket is not None:
            self._link.bring(ticket)
        return super().result(timeout)

    def cancel(self) -> bool:
        """Do without the answer. What the device does for it may come to nothing."""
        ticket = self._ticket
        if not super().cancel():
            return False
        if ticket is not None and self._link.cancel(ticket):
            self.set_running_or_notify_cancel()
        return True

    def set_running_or_notify_cancel(self) -> bool:
        """Begin to settle the future."""
        is_wanted = super().set_running_or_notify_cancel()
        if not is_wanted:
            self._part()
        return is_wanted

    def set_result(self, result: Any) -> None:
        """Settle the future with a result."""
        super().set_result(result)
        self._part()

    def set_exception(self, exception: BaseException | None) -> None:
        """Settle the future with the reason why there is no result."""
        super().set_exception(exception)
        self._part()

    def disown(self, error: OpuError) -> None:
        """Fail in a forked process, unless it is settled: nobody there brings the answer.

        Another thread may have held its lock, and is not there to give it back; its callbacks are those of the parent.
        """
        if self._state in _UNSETTLED:
            super().__init__()
            self.set_exception(copy_error(error))
        else:
            self._condition = threading.Condition()

    def _part(self) -> None:
        self._ticket = None  # it knows this future: a cycle would keep the frames for long


class Link:
    """A connection to a server, and the next one when that ends.

    A thread looks after it: it makes the connection, notices when that ends, and brings the replies. A caller who waits
    for a reply does the thread's work meanwhile, because handing a request and its reply from thread to thread takes as
    long as the network does. The lock is held by whoever uses the conversation or the socket.

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
        self._lock = threading.Lock()
        self._conversation = start_conversation(address, timeout_s, reconnect_s, role)
        self._ended = False
        self._waker = Waker()
        self._connection: _Connection | None = None
        self._attendant: int | None = None  # the thread of a caller who brings the replies
        self._watching = False  # whether the link's own thread does
        self._attendant_waker = Waker()
        self._futures: weakref.WeakSet[_LinkFuture] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, name=f"opu-link {address}", daemon=True)
        _links.add(self)

    def greet(self) -> protocol.Welcome:
        """Open the conversation, and keep to what the server grants."""
        greeted: Future[protocol.Welcome] = Future()
        self._conversation.greet(wait_for_welcome(greeted))
        self._thread.start()
        return greeted.result()

    @property
    def welcome(self) -> protocol.Welcome:
        """What the server said last time it was greeted."""
        welcome = self._conversation.welcome
        assert welcome is not None  # noqa: S101 - `greet` has returned
        return welcome

    @property
    def answered(self) -> int:
        """The number below which every request is answered. For whoever holds the lock."""
        return self._conversation.answered

    @property
    def reconnections(self) -> int:
        """How often the link has come back."""
        return self._conversation.reconnections

    def refuse(self, server_id: str) -> None:
        """Have nothing to do with servers that get their device from one: it is served through this link."""
        self._conversation.refuse_server = server_id

    def ask(
        self,
        make: Callable[[int], protocol.Request],
        reply_type: type[ResultT],
        session: SessionRecord | None = None,
        opens: SessionRecord | None = None,
        interrupted: Callable[[Future[ResultT]], object] | None = None,
    ) -> ResultT:
        """Send a request and wait for its reply.

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
        interrupted : callable, optional
            Told of the future when the wait is interrupted and the server carries the request out nevertheless.

        Raises
        ------
        RefusedError
            Called from a callback: the thread that brings the reply would wait for itself.
        """
        future: Future[ResultT] = Future()
        ticket = Ticket(make, reply_type, future, reply_itself, session=session, opens=opens)
        try:
            with self.attending():
                self.send(ticket)
                self.bring(ticket)
            return future.result()
        except KeyboardInterrupt:
            with undisturbed, self._lock:
                is_sent = self._conversation.has_taken(ticket)
            if interrupted is not None and is_sent:
                interrupted(future)
            raise

    def request(self, ticket: Ticket) -> Future[Any]:
        """Send a request whose future can be cancelled, and return that at once.

        Raises
        ------
        OpuError
            The server is gone, or the link is closed.
        """
        ticket.future = future = _LinkFuture(self, ticket)
        self._futures.add(future)
        self.send(ticket)
        return future

    def send(self, ticket: Ticket) -> None:
        """Send a request and return at once."""
        with undisturbed:
            with self._lock:
                self._conversation.add(ticket)
                self._transmit()
                unattended = not self._watching and self._attendant is None
            if unattended:
                self._waker.wake()

    def attending(self) -> _Attending:
        """Bring the replies oneself meanwhile, if nobody else does: whoever sends and waits need not wake the thread.

        Raises
        ------
        RefusedError
            Called from a callback: whoever brings the reply would wait for itself.
        """
        self.check_waiter()
        return _Attending(self)

    def attend(self) -> None:
        """Bring the replies from now on, if nobody else does."""
        if self._attendant is None:
            with undisturbed, self._lock:
                if self._attendant is None:
                    self._attendant = threading.get_ident()

    def check_waiter(self) -> None:
        """Check that this thread may wait for the link.

        Raises
        ------
        RefusedError
            It is the one that brings the replies, and runs a callback.
        """
        if self.is_in_callback:
            raise RefusedError(
                "A callback of a future waits for the device whose link runs it.", "Wait in another thread."
            )

    @property
    def is_in_callback(self) -> bool:
        """Whether this thread is the one that brings the replies."""
        return threading.get_ident() in {self._thread.ident, self._attendant}

    @property
    def error(self) -> OpuError | None:
        """Why the link is over."""
        return self._conversation.error

    def attend_no_more(self) -> None:
        """Leave the replies to the thread again."""
        with undisturbed:
            with self._lock:
                if self._attendant != threading.get_ident():
                    return
                self._attendant = None
                unattended = self._conversation.waits and not self._watching
            if unattended:
                self._waker.wake()

    def bring(self, ticket: Ticket) -> None:
        """Bring replies until that to a request is there or the connection has ended, if this thread attends."""
        if self._attendant != threading.get_ident():
            return
        connection = self._connection
        while not ticket.future.done():
            if connection is not None:
                connection.wait_for_arrivals()
            with undisturbed:
                try:
                    with self._lock:
                        is_over = connection is None or self._connection is not connection
                        if not is_over:
                            self._receive()
                except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                    self._break(error)
                self._settle()
                if is_over:
                    self.attend_no_more()  # the thread of the link makes another connection
                    return

    def give_back(self, make: Callable[[int], protocol.Request], session: SessionRecord) -> None:
        """Close a session, and wait for that as long as there is a connection."""
        if self._conversation.error is not None:
            return  # the server has closed it
        future: Future[Any] = Future()
        future.add_done_callback(lambda _: self.forget(session))
        ticket = Ticket(make, protocol.Done, future, reply_itself, session=session)
        with self.attending():
            self.send(ticket)
            self.bring(ticket)
        while self._conversation.is_talking and not future.done():
            futures.wait([future], _LONGEST_WAIT_MS / 1000)

    def close_unwanted(self, record: SessionRecord) -> None:
        """Close a session that has been opened for somebody who does not wait any more."""
        if record.number is None:
            return  # it has not been opened, after all
        closed = self.tell(ask_to_close(record), record)
        closed.add_done_callback(lambda _: self.forget(record))

    def tell(
        self, make: Callable[[int], protocol.Request], session: SessionRecord | None = None
    ) -> Future[protocol.Done]:
        """Send a request that gives something back, for which nobody waits; in vain if the link is over."""
        future: Future[protocol.Done] = Future()
        with contextlib.suppress(OpuError):  # the link is over, and what was to be given back with it
            self.send(Ticket(make, protocol.Done, future, reply_itself, session=session))
        return future

    def forget(self, record: SessionRecord) -> None:
        """Note that a session is being closed."""
        with self._lock:
            self._conversation.forget(record)

    def close(self) -> None:
        """Say bye, when everything that was asked before is answered, and end the thread."""
        done: Future[protocol.Done] = Future()
        ticket = Ticket(ask_to_leave, protocol.Done, done, reply_itself)
        with self.attending():
            with undisturbed, self._lock:
                is_over = self._conversation.error is not None
                if not is_over:
                    self._conversation.leave(ticket)
                    self._transmit()
            if not is_over:  # nothing else would end the wait
                self.bring(ticket)
        self._waker.wake()
        if not is_over:
            with contextlib.suppress(*GONE):
                done.result()
        self._ended = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join()

    def abandon(self) -> None:
        """Have the thread end soon, without waiting and without a lock: the garbage collector may call it anywhere."""
        self._ended = True
        self._waker.wake()

    def disown(self) -> None:
        """Have nothing more to do with the connection, without a word: in a forked process it is the parent's.

        What waits for an answer there fails.
        """
        self._lock = threading.Lock()  # it may have been held by a thread that is not here
        self._connection = None
        self._conversation.error = ClosedError(
            f"The link to {self.address} belongs to the process that has opened it.", "Open the device after forking."
        )
        for future in list(self._futures):
            future.disown(self._conversation.error)

    def cancel(self, ticket: Ticket) -> bool:
        """Do without the answer to a request; see `Conversation.cancel`."""
        with undisturbed, self._lock:
            to_be_told = self._conversation.cancel(ticket)
            self._transmit()
        return to_be_told

    # With the lock

    def _transmit(self) -> None:
        """Send what is to be sent. Afterwards ZeroMQ tells only whoever asks that something has come."""
        connection = self._connection
        if connection is None:
            return
        dealer = connection.dealer
        for message in self._conversation.messages():
            send_message(dealer, message)
        if has_input(dealer):
            (self._waker if self._attendant is None else self._attendant_waker).wake()

    def _receive(self) -> None:
        """Take in what has come, and send what it makes possible."""
        connection = self._connection
        if connection is None:
            return
        dealer = connection.dealer
        while has_input(dealer):
            self._conversation.receive(receive_message(dealer))
            if not self._conversation.waits:
                return  # whatever else has come can wait: `_transmit` sees it, or the thread does
        self._transmit()

    # The thread

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._ended and self._conversation.error is None:
                if self._conversation.has_connection or self._conversation.wants_connection:
                    self._use_connection(context)
                else:
                    self._wait_apart()
                self._settle()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self._break(error)
        finally:
            self._ended = True
            self._fail(ClosedError(f"The link to {self.address} is closed.", "Open the device again."))
            context.term()
            self._waker.close()
            self._attendant_waker.close()

    def _wait_apart(self) -> None:
        poller = zmq.Poller()
        poller.register(self._waker.receiver, zmq.POLLIN)
        poller.poll(max(1, round(1000 * self._conversation.patience_s())))
        self._waker.clear()
        with self._lock:
            self._conversation.look()

    def _use_connection(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Make a connection, and use it until it ends."""
        first = self._conversation.is_greeting  # later, the conversation says when to try again
        with connect(context, self.address, self._host_number, self._keys, tries_by_itself=first) as (dealer, watch):
            try:
                with self._lock:
                    send_message(dealer, self._conversation.connected())
                    self._connection = _Connection(dealer, self._attendant_waker)
                self._converse(self._connection, watch)
            finally:
                with self._lock:
                    self._connection = None
                    self._watching = False
                self._attendant_waker.wake()

    def _converse(self, connection: _Connection, watch: ConnectionWatch) -> None:
        conversation = self._conversation
        n_dropped = 0
        idle, working = zmq.Poller(), zmq.Poller()
        for source in (watch.receiver, self._waker.receiver):
            idle.register(source, zmq.POLLIN)
            working.register(source, zmq.POLLIN)
        working.register(connection.descriptor, zmq.POLLIN)
        while not self._ended and conversation.has_connection:
            with self._lock:
                self._watching = self._attendant is None
            poller = working if self._watching else idle
            ready = dict(poller.poll(max(1, round(1000 * conversation.patience_s()))))
            if self._waker.receiver.fileno() in ready:
                self._waker.clear()
            failure = watch.find_failure() if watch.receiver in ready or watch.is_suspicious else None
            is_refused = conversation.is_greeting and watch.is_refused()
            with self._lock:
                if self._attendant is None or watch.has_ended:
                    self._receive()
                n_dropped = heed(
                    conversation, connection.dealer, watch, n_dropped=n_dropped, failure=failure, is_refused=is_refused
                )
                conversation.look()
                self._transmit()
            self._settle()

    def _settle(self) -> None:
        """Set the futures that are due, without the lock: their callbacks may do anything but wait for the link."""
        with self._lock:
            settled = self._conversation.take_settled()
        _settle(settled)

    def _break(self, error: Exception) -> None:
        """End the link because of a fault of its own."""
        self._fail(explain_fault(self.address, error))

    def _fail(self, error: OpuError) -> None:
        with self._lock:
            self._conversation.fail(error)
        self._settle()


class _Connection:
    """A socket, and what to wait for to know that something has come. ZeroMQ tells that once, and not again."""

    def __init__(self, dealer: zmq.Socket[bytes], attendant_waker: Waker) -> None:
        self.dealer = dealer
        self.descriptor: int = dealer.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._waker = attendant_waker
        self._arrivals = select.poll()
        self._arrivals.register(self.descriptor, select.POLLIN)
        self._arrivals.register(attendant_waker.receiver, select.POLLIN)

    def wait_for_arrivals(self) -> None:
        """Wait until something may have come, or the caller who waits is woken, but not long."""
        for descriptor, _ in self._arrivals.poll(_LONGEST_WAIT_MS):
            if descriptor != self.descriptor:
                self._waker.clear()


class _Attending:
    """While a caller brings the replies. A generator would take three times as long."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> None:
        try:
            self._link.attend()
        except BaseException:
            self._link.attend_no_more()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._link.attend_no_more()
        except BaseException:  # Ctrl-C before it had begun
            self._link.attend_no_more()
            raise


def _settle(settled: list[tuple[Ticket, Outcome]]) -> None:
    for ticket, outcome in settled:
        ticket.settle(outcome)


class RemoteDevice(Device):
    """A device behind a server.

    When the connection ends, or the server gives no sign of life for `timeout_s`, the link tries to come back for
    `reconnect_s`, and goes on where it was: what was not answered is sent again, and on a server that was restarted the
    sessions are opened again. What cannot go on fails: with `UnreachableError` when nobody answers in that time, with
    `MediumChangedError` when the server has another device or medium by then. The device has to be opened again after
    that.

    Parameters
    ----------
    uri : str
        The address under which it was opened.
    link : Link
        A connection that has been greeted.
    welcome : protocol.Welcome
        What the server said.
    """

    def __init__(self, uri: str, link: Link, welcome: protocol.Welcome) -> None:
        super().__init__(uri)
        self._link = link
        self._description = describe_link(welcome.description)
        self._sessions: set[RemoteSession] = set()
        self._control = RemoteControl(link, self._note_settings)
        weakref.finalize(self, link.abandon)  # a device that nobody closed

    def describe(self) -> DeviceDescription:
        """Return what the device is and offers, as far as it passes the link.

        The exposure is limited as this client has seen it last: when it was opened, or looked at or changed settings.
        """
        return self._description

    @property
    def servers(self) -> tuple[str, ...]:
        """The `server_id` of the server, and those of the servers that stand between it and the device."""
        return self._link.welcome.servers

    @property
    def reconnections(self) -> int:
        """How often the link has come back after its connection had ended."""
        return self._link.reconnections

    def serve_as(self, server_id: str) -> None:
        """Note which server this device is served by, so that the link refuses to close a loop."""
        self._link.refuse(server_id)

    def server_status(self) -> protocol.ServerStatus:
        """Ask the server what it is doing. Names of clients are texts from elsewhere: escape them.

        Raises
        ------
        UnreachableError
            The server is gone.
        """
        return self._link.ask(ask_for_status, protocol.StatusReply).status

    def _open_session(self, config: SessionConfig) -> RemoteSession:
        record = SessionRecord(config)
        opened = self._link.ask(
            ask_to_open(config),
            protocol.SessionOpened,
            opens=record,
            interrupted=lambda future: future.add_done_callback(lambda _: self._link.close_unwanted(record)),
        )
        session = RemoteSession(self, self._link, record, opened.description)
        self._sessions.add(session)
        return session

    def _note_settings(self, settings: DeviceSettings) -> None:
        self._description = describe_settings(self._description, self._link.welcome.description, settings)

    def _capabilities(self) -> Mapping[type, object]:
        return {DeviceControl: self._control} if DeviceControl.name in self._description.capabilities else {}

    def forget(self, session: RemoteSession) -> None:
        """Note that a session has been closed."""
        self._sessions.discard(session)

    def _close(self) -> None:
        for session in list(self._sessions):
            session.close()
        self._link.close()


class RemoteControl(DeviceControl):
    """The settings of a device behind a server.

    Everybody may look. Operators may change, while they hold the lease of the device: for one change it is taken by
    itself, for several that belong together there is `lease`. Threads that use one device share its lease. Whoever
    interrupts a change does not wait for it any more; once it was asked for, and while the lease holds, the device is
    changed nevertheless.

    Parameters
    ----------
    link : Link
        To the server.
    note : callable
        Told of the settings whenever they are known.
    """

    def __init__(self, link: Link, note: Callable[[DeviceSettings], None]) -> None:
        self._link = link
        self._note = note
        self._taking = threading.Lock()  # held over what is asked of the server, by whoever may wait
        self._shared = SharedLease()

    def settings(self) -> DeviceSettings:
        """Return the settings as they are."""
        return self._ask(ask_for_settings).settings

    def limits(self) -> dict[str, Limits]:
        """Return the settings that can be changed, by name, with the ranges of their values."""
        return self._ask(ask_for_settings).limits

    def change(self, change: SettingsChange) -> DeviceSettings:
        """Change settings, all that are named or none, and return what they are now.

        Raises
        ------
        ForbiddenError
            This client is no operator.
        LeaseError
            Somebody else has the lease, or the one that is held has run out.
        ConfigError, DeviceError, ClosedError
            As in process.
        """
        with self._hold(None) as held:
            while True:
                number = held.number
                try:
                    return self._ask(
                        ask_to_change(number, change), lambda future: self._hold_until_done(held, future)
                    ).settings
                except LeaseError:
                    if not self._is_replaced(held, number):
                        raise

    @contextlib.contextmanager
    def lease(self, ttl_s: float = LEASE_S, note: str = "", *, force: bool = False) -> Iterator[RemoteControl]:
        """Hold the lease of the device, so that nobody else changes it meanwhile. Within itself it is the same lease.

        Where another thread holds it for less time or with another note, or `force` is given, it is taken again for all
        of them. When it is lost, whoever is inside gets `LeaseError` for each change until the block is left.
        Other threads are not inside, also if they are started in the block: they share the lease, and take another one
        when it is lost.

        Parameters
        ----------
        ttl_s : float
            How long it lasts at least unless `renew` is called, in seconds.
        note : str
            What for, for others to see.
        force : bool
            Take it away from whoever has it.

        Yields
        ------
        RemoteControl
            This object.

        Raises
        ------
        ForbiddenError
            This client is no operator.
        LeaseError
            Somebody else has the lease.
        """
        with self._hold(Terms(ttl_s, note, force)):
            yield self

    def renew(self) -> None:
        """Have the lease that is held last its full time again.

        Raises
        ------
        LeaseError
            It has run out, was taken away, or none is held.
        """
        self._check_link()
        held = self._shared.find(threading.get_ident())
        if held is None:
            raise LeaseError("No lease is held.", "Take one: with control.lease(): ...")
        self._renew(held)

    @contextlib.contextmanager
    def _hold(self, terms: Terms | None) -> Iterator[HeldLease]:
        """Hold the lease, on any terms if there are none."""
        self._check_link()
        who = threading.get_ident()
        held = self._enter(who, terms)
        try:
            yield held
        finally:
            self._leave(who, held)

    def _check_link(self) -> None:
        """Check that this thread may use the locks."""
        if self._link.error is not None:
            raise copy_error(self._link.error)  # also in a forked process, where nobody gives the locks back
        self._link.check_waiter()  # whoever takes the lease may wait for this thread

    def _enter(self, who: int, terms: Terms | None) -> HeldLease:
        with self._taking:  # a second number would make the first one void
            while True:
                held = self._shared.find(who)
                if held is not None and self._shared.wants_renewal(who, held, terms):
                    try:
                        self._renew(held)
                    except LeaseError:
                        if self._shared.is_inside(who):
                            raise
                        held = None
                if held is None or not held.covers(terms):
                    held = self._take(held, terms or Terms())
                if self._shared.enter(who, held):
                    return held

    def _take(self, held: HeldLease | None, terms: Terms) -> HeldLease:
        """Take the lease, or take it again."""
        wanted = held.join(terms) if held is not None else terms
        asked_s = self._shared.now_s()
        reply = self._link.ask(
            ask_to_take(wanted),
            protocol.Lease,
            interrupted=lambda future: future.add_done_callback(
                lambda taken: self._use_or_return(held, taken, wanted, asked_s)
            ),
        )
        return self._shared.taken(held, reply.lease, wanted, asked_s)

    def _use_or_return(
        self, held: HeldLease | None, taken: Future[protocol.Lease], terms: Terms, asked_s: float
    ) -> None:
        """Use a lease that was taken for somebody who does not wait any more if others hold it, or return it."""
        if taken.exception() is not None:
            return
        number = taken.result().lease
        if held is None or not self._shared.taken_late(held, number, terms, asked_s):
            self._link.tell(ask_to_return(number))

    def _renew(self, held: HeldLease) -> None:
        asked_s = self._shared.now_s()
        number = held.number
        try:
            self._link.ask(ask_to_renew(number), protocol.Lease)
        except LeaseError:
            self._shared.lose(held, number)
            raise
        self._shared.renewed(held, asked_s)

    def _leave(self, who: object, held: HeldLease) -> None:
        if self._link.error is not None or not self._shared.leave(who, held):
            return
        if self._link.is_in_callback:
            self._link.tell(ask_to_return(held.number))
            return
        with contextlib.suppress(*GONE, LeaseError):  # it has ended by itself
            self._link.ask(ask_to_return(held.number), protocol.Done)

    def _hold_until_done(self, held: HeldLease, future: Future[Any]) -> None:
        """Have a request hold the lease whose caller does not wait any more: without it the server would refuse it."""
        if self._shared.enter(future, held):
            future.add_done_callback(lambda _: self._leave(future, held))

    def _is_replaced(self, held: HeldLease, number: int) -> bool:
        """Return whether a lease that does not hold any more was taken again meanwhile; otherwise it is lost."""
        with self._taking:
            return not self._shared.lose(held, number)

    def _ask(
        self,
        make: Callable[[int], protocol.Request],
        interrupted: Callable[[Future[protocol.SettingsReply]], object] | None = None,
    ) -> protocol.SettingsReply:
        reply = self._link.ask(make, protocol.SettingsReply, interrupted=interrupted)
        self._note(reply.settings)
        return reply


class RemoteSession(Session):
    """A session of a device behind a server."""

    def __init__(
        self, device: RemoteDevice, link: Link, record: SessionRecord, description: SessionDescription
    ) -> None:
        super().__init__(description)
        self._device = device
        self._link = link
        self._record = record

    def _submit(self, batch: Batch) -> Future[Projection]:
        return self._link.request(ask_to_project(self._record, self._description, batch, lambda: self._link.answered))

    def project(
        self,
        patterns: ArrayLike | PackedPatterns,
        *,
        first_frame_index: int | None = None,
        out: NDArray[Any] | None = None,
        deadline_s: float | None = None,
    ) -> Projection:
        """Project a batch and wait for the frames: `submit(...).result()`, by the shortest way."""
        with self._link.attending():
            return super().project(patterns, first_frame_index=first_frame_index, out=out, deadline_s=deadline_s)

    def _close(self) -> None:
        self._device.forget(self)
        with contextlib.suppress(*GONE):  # and has closed it
            self._link.give_back(ask_to_close(self._record), self._record)


def open_remote(
    uri: Uri,
    timeout_s: float,
    *,
    reconnect_s: float = 0.0,
    key: str | None = None,
    server_key: str | None = None,
    role: protocol.Role | None = None,
) -> RemoteDevice:
    """Open the device behind a server.

    Parameters
    ----------
    uri : Uri
        `tcp://HOST:PORT`.
    timeout_s : float
        How long the server may give no sign of life, in seconds.
    reconnect_s : float
        How long to try to come back when the connection has ended, in seconds; 0: not at all.
    key, server_key : str, optional
        The file with the secret key of this client, and the public key of the server or its file.
    role : str, optional
        What this client wants to be at most: `observer`, `user` or `operator`.

    Returns
    -------
    RemoteDevice
        Open.

    Raises
    ------
    UriError
        The address names no host and port, or one key of the two.
    DataFileError, RefusedError
        A file with a key cannot be used.
    AuthenticationError
        The server does not admit the key, or is another one than `server_key` names.
    UnreachableError
        The host is unknown or cannot be looked up in that time, or nobody answers. Where nobody listens, that is known
        after some three seconds, however long `timeout_s` is: to wait for a server that starts later, open it again.
    VersionMismatchError
        The server speaks another version of the protocol.
    BusyError
        The server has as many clients as it takes.
    ForbiddenError
        The role is more than the server grants.
    """
    keys = read_keys(uri, key, server_key)
    lookup = look_up(uri)
    futures.wait([lookup], timeout_s)
    host_number = judge_host(uri, lookup, timeout_s)
    link = Link(f"tcp:{uri.rest}", host_number, timeout_s, reconnect_s, keys=keys, role=role)
    try:
        welcome = link.greet()
    except OpuError:
        link.close()
        raise
    except BaseException:
        link.abandon()  # whoever is interrupted does not wait, and nobody else would end it
        raise
    return RemoteDevice(uri.text, link, welcome)


def find_local(address: str) -> list[FoundDevice]:
    """Look whether a server answers at an address, for a quarter of a second.

    Parameters
    ----------
    address : str
        `tcp://HOST:PORT`.

    Returns
    -------
    list of FoundDevice
        The server, or nothing.
    """
    try:
        with open_remote(parse_uri(address), _FIND_TIMEOUT_S) as device:
            return [FoundDevice(address, f"{device.describe().model}, served")]
    except AuthenticationError:
        return [FoundDevice(address, "served to clients with keys")]
    except OpuError:
        return []
