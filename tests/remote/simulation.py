"""A server and its clients in one thread, with a network, a device and a clock that do what a test says.

`World` holds one `Broker`, which can crash and be started again, and `SimulatedClient`s around real `Conversation`s.
Messages of a connection keep their order; everything else may happen in any.
"""

import random
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from link_helpers import TOY_DESCRIPTION, toy_frames

from opu import errors
from opu.device import (
    Device,
    DeviceControl,
    DeviceSettings,
    Projection,
    Provenance,
    Session,
    SessionConfig,
    SessionDescription,
    SettingsChange,
)
from opu.errors import BusyError, CapacityError, ClosedError, DeviceError, OpuError, UnreachableError
from opu.patterns import pack, unpack
from opu.remote import protocol
from opu.remote.broker import Broker
from opu.remote.clients import ProjectionJob
from opu.remote.conversation import Conversation, SessionRecord, Ticket
from opu.remote.gate import Gate, Peer
from opu.remote.limits import ServerLimits
from opu.remote.post import WireFullError, WireGoneError

N_FEATURES, N_OUTPUTS = 12, 3
TIMEOUT_S = 3.0
FRAME_S = 0.001
LARGEST_BATCH = 40
LIMITS = ServerLimits(max_clients=8, max_sessions=3, max_queued=4, max_queued_total=64, drain_s=2.0)
CODES = frozenset(kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OpuError))
FAREWELLS = frozenset({"stopped", "unknown", "expired", "evicted", "flooded", "replaced"})


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class StagedControl(DeviceControl):
    """Settings of which the exposure says who changed them."""

    def __init__(self, device, faults):
        self._device = device
        self._faults = faults
        self.changes = []

    def settings(self):
        return DeviceSettings(revision=len(self.changes), laser_power_mw=None, max_exposure_us=1000.0)

    def limits(self):
        return {"max_exposure_us": TOY_DESCRIPTION.exposure_us}

    def change(self, change):
        if self._device.parts:
            self._faults.append("settings are changed within a batch")
        self.changes.append(change)
        return self.settings()


class StagedDevice(Device):
    """Begins with nothing by itself: `finish` completes the oldest part that it was given."""

    def __init__(self, faults, begun, description=TOY_DESCRIPTION):
        super().__init__("staged:")
        self.control = StagedControl(self, faults)
        self.parts = deque()
        self.given = Counter()
        self.begun = begun
        self.compiled_bytes = 0
        self._description = description

    def describe(self):
        return self._description

    def _capabilities(self):
        return {DeviceControl: self.control}

    def _open_session(self, config):
        return StagedSession(self, config)

    def _close(self):
        pass

    def finish(self, error=None):
        session, batch, future = self.parts.popleft()
        if error is not None:
            future.set_exception(error)
            return
        frames = toy_frames(unpack(batch.patterns), batch.first_frame_index, session.config)
        if batch.out is not None:
            batch.out[:] = frames
            frames = batch.out
        future.set_result(Projection(frames, provenance_of(session, batch)))


class StagedSession(Session):
    def __init__(self, device, config):
        super().__init__(
            SessionDescription(
                session_id="always the same",
                config=config,
                frame_dtype="uint8",
                frame_us=100.0,
                mirrors_per_feature=1,
                max_batch=64,
                compiled_bytes=device.compiled_bytes,
            )
        )
        self._device = device

    def _submit(self, batch):
        future = Future()
        for row in range(len(batch.patterns)):
            self._device.given[self, batch.first_frame_index + row] += 1
        self._device.parts.append((self, batch, future))
        self._device.begun(self, batch)
        return future

    def _close(self):
        pass


def provenance_of(session, batch):
    n_frames = len(batch.patterns)
    return Provenance(
        device_id="toy",
        medium_id="toy",
        medium_epoch=0,
        session_id="always the same",
        config=session.config,
        calibration_id=None,
        first_frame_index=batch.first_frame_index,
        n_frames=n_frames,
        frame_us=100.0,
        device_start_us=0.0,
        device_us=100.0 * n_frames,
        started_unix_s=0.0,
        finished_unix_s=FRAME_S * n_frames,
        saturated_fraction=0.0,
        skipped_frames=0,
    )


class StagedKeeper:
    """Opens and closes sessions when it is told to, in any order. `held` has those that nobody gave back."""

    def __init__(self, device, faults):
        self._device = device
        self.faults = faults
        self.waiting = []
        self.held = set()

    def open(self, config):
        self.waiting.append((Future(), config, None))
        return self.waiting[-1][0]

    def close(self, session):
        if session not in self.held:
            self.faults.append("a session is given back twice")
        self.held.discard(session)
        self.waiting.append((Future(), None, session))
        return self.waiting[-1][0]

    def call(self, work, *arguments):
        self.waiting.append((Future(), lambda: work(*arguments), None))
        return self.waiting[-1][0]

    def finish(self, index=0, error=None):
        future, config, session = self.waiting.pop(index)
        if callable(config):
            future.set_result(config())
        elif session is not None:
            session.close()
            future.set_result(None)
        elif error is not None:
            future.set_exception(error)
        else:
            opened = self._device.open_session(config)
            self.held.add(opened)
            future.set_result(opened)


class OperatorGate(Gate):
    """Gives everybody the role that they ask for. `public_key` is that of whoever comes next."""

    public_key = ""

    def greet(self, message, asked=None):
        return Peer("", asked or "user", message.read_property("Peer-Address"), self.public_key)


@dataclass(frozen=True)
class Message:
    route: bytes
    frames: list
    descriptor: int = -1

    def read_property(self, name):
        return "127.0.0.1"


@dataclass
class Delivery:
    """A message on its way to a client; the network needs its memory until it is `done`."""

    frames: list
    done: bool = False


@dataclass(eq=False)
class Connection:
    client: object
    route: bytes
    descriptor: int
    to_server: deque = field(default_factory=deque)
    to_client: deque = field(default_factory=deque)
    sent: list = field(default_factory=list)
    full: bool = False
    broken: bool = False
    client_has_it: bool = True
    server_has_it: bool = True

    def lose(self):
        """Cut it: nothing passes any more. Neither side has noticed yet."""
        self.broken = True
        self.to_server.clear()
        self.drop_replies()

    def drop_replies(self):
        for delivery in self.to_client:
            delivery.done = True
        self.to_client.clear()


class Network:
    """The wire of the broker, and the connections of all clients."""

    def __init__(self, faults):
        self.faults = faults
        self.connections = []
        self._made = 0

    def connect(self, client):
        self._made += 1
        in_use = {c.descriptor for c in self.connections if c.server_has_it}
        descriptor = next(number for number in range(5, 1000) if number not in in_use)  # as an operating system does
        connection = Connection(client, b"route %d" % self._made, descriptor)
        self.connections.append(connection)
        return connection

    def at(self, route):
        for connection in self.connections:
            if connection.route == route and connection.server_has_it:
                return connection
        return None

    def send(self, route, parcel):
        connection = self.at(route)
        if connection is None:
            raise WireGoneError
        if connection.full:
            raise WireFullError
        payload = [] if parcel.payload is None else [memoryview(bytes(parcel.payload))]
        delivery = Delivery([parcel.header, *payload])
        if connection.broken or not connection.client_has_it:
            delivery.done = not connection.broken
        else:
            connection.to_client.append(delivery)
        return delivery if payload else None

    def hang_up(self, route, descriptor, parcel):
        connection = self.at(route)
        if connection is None:
            return
        if connection.descriptor != descriptor:
            self.faults.append("somebody else is cut off")
        if not connection.full:
            self.send(route, parcel)
        connection.server_has_it = False
        connection.to_server.clear()

    def forget_ended(self):
        self.connections = [
            c for c in self.connections if c.server_has_it or (c.client_has_it and c.client.connection is c)
        ]


class ModelFuture(Future):
    """A future that is cancelled as that of a client is."""

    def __init__(self, tell):
        super().__init__()
        self._tell = tell

    def cancel(self):
        if not super().cancel():
            return False
        if self._tell():
            self.set_running_or_notify_cancel()
        return True


@dataclass(eq=False)
class Wanted:
    """What a caller asked for, and what it may expect."""

    kind: str
    ticket: Ticket
    asked_s: float
    record: SessionRecord | None = None
    patterns: np.ndarray | None = None
    first: int = 0
    deadline_s: float | None = None
    cancelled: bool = False
    outcome: object = None


class SimulatedClient:
    """A client around a real conversation, with the loop of `opu.remote.client` in small steps."""

    def __init__(self, world, name, reconnect_s=30.0, seed=0, role="operator"):
        self.world = world
        self.name = name
        self.reconnect_s = reconnect_s
        self.connection = None
        self.wanted = []
        self.records = []
        self.closing = set()
        self.leases = []
        self.heard_s = self.replied_s = self.began_s = world.clock()
        self.farewell = None
        self.hung_up = False
        self.gone = False
        self.left = None
        self._settled = set()
        self.conversation = Conversation(
            address="tcp://127.0.0.1:1",
            timeout_s=TIMEOUT_S,
            reconnect_s=reconnect_s,
            how_to_reach=lambda: "Start it.",
            name=name,
            role=role,
            clock=world.clock,
            chance=random.Random(seed),
        )
        self.greeting = self._want("hello", Ticket(no_message, protocol.Welcome, Future(), reply_itself))
        self.conversation.greet(self.greeting.ticket)

    def _want(self, kind, ticket, **known):
        wanted = Wanted(kind, ticket, self.world.clock(), **known)
        self.wanted.append(wanted)
        return wanted

    @property
    def is_over(self):
        return self.gone or self.conversation.error is not None

    @property
    def pending(self):
        return [wanted for wanted in self.wanted if not wanted.ticket.future.done()]

    @property
    def open_records(self):
        return [record for record in self.records if record.error is None and record not in self.closing]

    # What callers do

    def ask(self, kind, make, reply_type, **known):
        opens = known.pop("opens", None)
        ticket = Ticket(make, reply_type, Future(), reply_itself, session=known.get("record"), opens=opens)
        return self._add(kind, ticket, **known)

    def _add(self, kind, ticket, **known):
        wanted = self._want(kind, ticket, **known)
        try:
            self.conversation.add(ticket)
        except OpuError as error:
            assert self.conversation.error is not None or wanted.record.error is not None
            ticket.future.set_exception(error)
        self.step()
        return wanted

    def open_session(self, noise_key):
        config = SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS, noise_key=noise_key)
        record = SessionRecord(config)
        wanted = self.ask(
            "open",
            lambda number: protocol.OpenSession(request_id=number, config=config),
            protocol.SessionOpened,
            opens=record,
        )
        wanted.ticket.future.add_done_callback(
            lambda future: None if future.exception() else self.records.append(record)
        )
        return wanted

    def project(self, record, n_frames, deadline_s=None, first=None):
        first = self.world.next_frames(n_frames) if first is None else first
        patterns = np.random.default_rng(first).integers(0, 2, (n_frames, N_FEATURES), np.uint8)
        due_s = np.inf if deadline_s is None else self.world.clock() + deadline_s

        def make(number):
            left_s = None if deadline_s is None else max(due_s - self.world.clock(), 1e-6)
            return protocol.Project(
                request_id=number,
                session=record.number,
                first_frame_index=first,
                n_features=N_FEATURES,
                batch=n_frames,
                answered=self.conversation.answered,
                deadline_s=left_s,
            )

        ticket = Ticket(
            make,
            protocol.Frames,
            None,
            lambda reply, payload: (reply, protocol.read_frames(reply, payload).copy()),
            payload=pack(patterns).bits.data.cast("B"),
            session=record,
            due_s=due_s,
            is_projection=True,
        )
        ticket.future = ModelFuture(lambda: self.conversation.cancel(ticket))
        return self._add("project", ticket, record=record, patterns=patterns, first=first, deadline_s=deadline_s)

    def close_session(self, record):
        self.closing.add(record)
        wanted = self.ask(
            "close",
            lambda number: protocol.CloseSession(request_id=number, session=record.number),
            protocol.Done,
            record=record,
        )
        wanted.ticket.future.add_done_callback(lambda _: self.conversation.forget(record))
        return wanted

    def cancel(self, wanted):
        wanted.cancelled = True
        cancelled = wanted.ticket.future.cancel()
        self.step()
        return cancelled

    def status(self):
        return self.ask("status", lambda number: protocol.Status(request_id=number), protocol.StatusReply)

    def take_lease(self, ttl_s, force):
        return self.ask(
            "lease",
            lambda number: protocol.TakeLease(request_id=number, ttl_s=ttl_s, force=force),
            protocol.Lease,
        )

    def renew_lease(self, lease):
        wanted = self.ask("renew", lambda number: protocol.RenewLease(request_id=number, lease=lease), protocol.Lease)
        wanted.first = lease
        return wanted

    def return_lease(self, lease):
        return self.ask("return", lambda number: protocol.ReturnLease(request_id=number, lease=lease), protocol.Done)

    def settings(self):
        return self.ask("settings", lambda number: protocol.GetSettings(request_id=number), protocol.SettingsReply)

    def change_settings(self, lease):
        change = SettingsChange(max_exposure_us=20.0 + self.world.next_frames(1) * 1e-3)  # another one each time
        wanted = self.ask(
            "change",
            lambda number: protocol.ChangeSettings(request_id=number, lease=lease, change=change),
            protocol.SettingsReply,
        )
        wanted.first = lease
        return wanted

    def leave(self):
        ticket = Ticket(lambda number: protocol.Bye(request_id=number), protocol.Done, Future(), reply_itself)
        self.left = self._want("bye", ticket)
        self.conversation.leave(ticket)
        self.step()

    def vanish(self):
        """The program ends without a farewell. What it had sent may still come."""
        self.gone = True
        self._drop_connection()

    # What carries it

    def step(self):
        if self.gone:
            return
        conversation = self.conversation
        wants_connection = conversation.has_connection or conversation.wants_connection
        if self.connection is None and wants_connection:
            self._connect()
        if self.connection is not None and conversation.has_connection:
            for frames in conversation.messages():
                self._send(frames)
        conversation.look()
        if self.connection is not None and not conversation.has_connection:
            self._drop_connection()
        self.settle()

    def _connect(self):
        if self.world.broker is None and self.conversation.is_greeting:
            return  # it waits until somebody answers
        self.connection = self.world.network.connect(self)
        hello = self.conversation.connected()
        if self.world.broker is None:
            self.connection.server_has_it = False
            self.notice_end()
        else:
            self._send(hello)

    def _send(self, frames):
        frames = [memoryview(bytes(frame)) for frame in frames]
        request, _ = protocol.decode_request(frames)
        answered = getattr(request, "answered", 0)
        numbers = [*self.conversation._pending, *(ticket.request_id for ticket in self.conversation._outgoing)]
        assert all(number is None or number >= answered for number in numbers), "it calls answered what is not"
        self.connection.sent.append(frames)
        if not self.connection.broken and self.connection.server_has_it:
            self.connection.to_server.append(frames)

    def _drop_connection(self):
        if self.connection is not None:
            self.connection.client_has_it = False
            self.connection.drop_replies()
            self.connection = None

    def receive(self, frames):
        reply, _ = protocol.decode_reply(frames)
        self.heard_s = self.world.clock()
        if isinstance(reply, protocol.Goodbye):
            assert reply.code in FAREWELLS
            assert reply.problem
            assert reply.remedy
            self.farewell = reply.code
        elif reply.request_id != self.conversation._hello_id:
            self.replied_s = self.world.clock()
        if isinstance(reply, protocol.ErrorReply):
            assert reply.code in CODES
            assert reply.problem
            assert reply.remedy
        self.conversation.receive(frames)
        self.step()

    def notice_end(self):
        if self.connection is not None and not self.conversation.is_greeting:
            self.hung_up = True
            self.conversation.hung_up()
            self._drop_connection()
            self.settle()

    def settle(self):
        for ticket, outcome in self.conversation.take_settled():
            assert ticket not in self._settled, "a request is settled twice"
            self._settled.add(ticket)
            ticket.settle(outcome)
        for wanted in self.wanted:
            if wanted.outcome is None and wanted.ticket.future.done():
                self.world.judge(self, wanted)
        self.wanted = [wanted for wanted in self.wanted if wanted.outcome is None]


class World:
    """Everything together. `judge` checks each outcome against what has happened."""

    def __init__(self, limits=LIMITS):
        self.limits = limits
        self.clock = Clock()
        self.faults = []  # what was found where an exception would be taken for one of the device
        self.network = Network(self.faults)
        self.gate = OperatorGate()
        self.clients = []
        self.broker = None
        self.happened = Counter()
        self.outcomes = Counter()
        self.last_lease = 0
        self._frames = 0
        self._starts = 0
        self.failed_frames = set()
        self.start()

    def next_frames(self, n_frames):
        self._frames += n_frames
        return self._frames - n_frames

    def join(self, reconnect_s=30.0, seed=0, role="operator"):
        client = SimulatedClient(self, f"client {len(self.clients)}", reconnect_s, seed, role)
        self.clients.append(client)
        client.step()
        return client

    # The server

    def start(self, description=TOY_DESCRIPTION):
        assert self.broker is None
        self._starts += 1
        self.posted = posted = deque()
        self.device = StagedDevice(self.faults, self._begun, description)
        self.keeper = StagedKeeper(self.device, self.faults)
        self.passed_over = Counter()
        self.stops_s = None
        self.broker = Broker(
            device=self.device,
            keeper=self.keeper,
            limits=self.limits,
            gate=self.gate,
            wire=self.network,
            post=lambda function, *arguments: posted.append((function, arguments)),
            clock=self.clock,
            servers=(f"server {self._starts}",),
            uri="tcp://127.0.0.1:1",
        )

    def stop(self):
        """Stop gracefully: what was accepted is answered, as far as time allows."""
        self.happened["stopped"] += 1
        self.stops_s = self.clock() + self.limits.drain_s
        self.broker.refuse_new()
        self.turn()

    def crash(self):
        self._end_of_server()
        for connection in self.network.connections:
            connection.lose()

    def _end_of_server(self):
        self.happened["evicted"] += self.broker.snapshot().counters.evicted
        self.broker = None
        for connection in self.network.connections:
            connection.server_has_it = False

    def turn(self):
        """One turn of the loop of the server."""
        if self.broker is None:
            return
        while self.posted:
            function, arguments = self.posted.popleft()
            function(*arguments)
        self.broker.work(all_read=True)
        if self.stops_s is not None and (self.clock() >= self.stops_s or not self.broker.owes_answers):
            self.broker.say_goodbye_to_all()
            self.broker.forget_all()
            assert not self.keeper.held or self._has_posted_sessions(), "a session is left open"
            self._end_of_server()

    def _has_posted_sessions(self):
        return any(function == self.broker._session_opened for function, _ in self.posted)

    def deliver_to_server(self, connection, n_messages=1):
        for _ in range(n_messages):
            if self.broker is None or not connection.to_server:
                return
            frames = connection.to_server.popleft()
            held = self._lease_held()
            self.broker.handle(Message(connection.route, frames, connection.descriptor))
            self._check_lease(connection, frames, held)
            self.turn()

    def deliver_to_client(self, connection, n_messages=1):
        for _ in range(n_messages):
            if not connection.to_client or connection.client.connection is not connection:
                return
            delivery = connection.to_client.popleft()
            delivery.done = True
            connection.client.receive(delivery.frames)

    def server_notices(self, connection):
        if connection.broken or (not connection.client_has_it and not connection.to_server):
            connection.server_has_it = False
            self.turn()

    def client_notices(self, connection):
        ended = connection.broken or (not connection.server_has_it and not connection.to_client)
        if ended and connection.client.connection is connection:
            connection.client.notice_end()

    def finish_part(self, error=None):
        if self.broker is not None and self.device.parts:
            if error is not None:
                _, batch, _ = self.device.parts[0]
                self.failed_frames.update(range(batch.first_frame_index, batch.first_frame_index + len(batch.patterns)))
            self.device.finish(error)
            self.turn()

    def finish_session(self, index=0, error=None):
        if self.broker is not None and self.keeper.waiting:
            self.happened["not opened"] += error is not None
            self.keeper.finish(index % len(self.keeper.waiting), error)
            self.turn()

    def refuse_session(self, index=0):
        """Fail to open a session, if it is one that waits to be opened."""
        if self.broker is not None and self.keeper.waiting:
            index %= len(self.keeper.waiting)
            is_opening = isinstance(self.keeper.waiting[index][1], SessionConfig)
            self.finish_session(index, CapacityError("The device is full.", "Wait.") if is_opening else None)

    def advance(self, seconds):
        self.clock.now_s += seconds
        self.turn()
        for client in self.clients:
            client.step()

    def live(self, seconds, step_s=0.1):
        """Leave everybody in peace for a while."""
        if self.broker is None:
            self.start()
        for connection in self.network.connections:
            connection.full = False
        end_s = self.clock() + seconds
        while self.clock() < end_s:
            for connection in list(self.network.connections):
                self.server_notices(connection)
                self.client_notices(connection)
            while self._move():
                pass
            if self.broker is None:
                self.start()
            self.network.forget_ended()
            self.advance(step_s)

    def _move(self):
        """Have everything happen that can; tell whether there was something."""
        moved = False
        for connection in list(self.network.connections):
            if self.broker is not None and connection.to_server:
                self.deliver_to_server(connection, len(connection.to_server))
                moved = True
            if connection.to_client and connection.client.connection is connection:
                self.deliver_to_client(connection, len(connection.to_client))
                moved = True
        while self.broker is not None and self.keeper.waiting:
            self.finish_session()
            moved = True
        while self.broker is not None and self.device.parts:
            self.finish_part()
            moved = True
        return moved

    # Invariants

    def _begun(self, session, batch):
        """Count how often a client that could have its turn was passed over."""
        for client in self.broker._clients.all():
            if any(opened.device_session is session for opened in client.sessions.values()):
                self.passed_over[client] = 0
            elif self._could_have_its_turn(client):
                self.passed_over[client] += 1
                if self.passed_over[client] > len(self.broker._clients):
                    self.faults.append("a client is passed over")

    @staticmethod
    def _could_have_its_turn(client):
        ready = client.route is not None and not client.outbox
        return ready and bool(client.jobs) and isinstance(client.jobs[0], ProjectionJob)

    def _lease_held(self):
        return self.broker._leases._current(self.clock())

    def _check_lease(self, connection, frames, before):
        held = self._lease_held()
        if held is None or (before is not None and before.number == held.number):
            return
        request, _ = protocol.decode_request(frames)
        assert isinstance(request, protocol.TakeLease)
        sender = self.broker._clients.at(connection.route)
        assert held.client_id == sender.client_id
        assert before is None or request.force or before.client_id == held.client_id, "two have the lease"
        assert held.number > self.last_lease, "the number of a lease comes again"
        self.last_lease = held.number

    def check(self):
        """Check what holds at any time."""
        assert not self.faults
        if self.broker is None:
            return
        clients = self.broker._clients
        turns = self.broker._turns
        assert turns.queued == sum(len(client.projections) for client in clients.all())
        jobs = [job for client in clients.all() for job in client.jobs if isinstance(job, ProjectionJob)]
        assert turns._waiting_bytes == sum(job.request.payload_bytes for job in jobs)
        assert 0 <= len(turns._in_flight) <= 2
        if not self.posted:
            assert len(turns._in_flight) == len(self.device.parts)
        assert len(turns._in_flight) >= sum(client.in_flight for client in clients.all())
        assert set(turns._order) == set(clients.all())
        assert len(turns._order) == len(clients)
        assert clients._by_route == {client.route: client for client in clients.all() if client.route is not None}
        assert set(clients._by_token.values()) == {client for client in clients.all() if client.token is not None}
        sessions = [opened.device_session for client in clients.all() for opened in client.sessions.values()]
        if not self.posted:
            assert set(sessions) == self.keeper.held, "a session is lost"
            assert len(sessions) == len(self.keeper.held), "a session belongs to two"
        for client in clients.all():
            self._check_client(client)
            if not self._could_have_its_turn(client):
                self.passed_over[client] = 0
        if self.limits.max_cached_bytes >= LIMITS.max_cached_bytes:
            assert all(count == 1 for count in self.device.given.values()), "the device is given a request twice"
            assert len(set(self.device.control.changes)) == len(self.device.control.changes), "a change is made twice"

    def _check_client(self, client):
        assert len(client.outbox) <= 1024
        assert client.route is not None or not client.outbox
        assert set(client.projections) <= client.unanswered
        assert len(client.projections) <= self.limits.max_queued
        assert len(client.sessions) + client.opening <= self.limits.max_sessions
        assert client.opening >= 0
        assert client.in_flight >= 0
        kept = client.replies
        assert kept.n_bytes == sum(parcel.n_bytes for parcel in kept._parcels.values()) <= self.limits.max_cached_bytes
        assert len(kept) <= 2048
        assert not client.unanswered & set(kept._parcels), "a request is answered and is not"

    def check_rest(self):
        """Check what holds when everybody was left in peace for long enough."""
        for client in self.clients:
            assert client.gone or not client.pending, "a request was lost"
        for client in self.broker._clients.all():
            if client.route is not None:  # or it may have left something that waits until it comes back, or expires
                assert client.in_flight == client.opening == len(client.outbox) == len(client.unanswered) == 0
                assert not client.jobs
        if self.limits.max_cached_bytes < LIMITS.max_cached_bytes:
            return
        for simulated in self.clients:
            if not simulated.is_over and len(self.broker._clients) < self.limits.max_clients:
                known = self.broker._clients.with_token(simulated.conversation._token)
                numbers = {record.number for record in simulated.open_records}
                assert known is not None, "a client is not known"
                assert set(known.sessions) == numbers, "a session is leaked"

    def check_empty(self):
        """Check that nothing is left of clients that have gone."""
        assert len(self.broker._clients) == 0
        assert not self.keeper.held
        assert not self.keeper.waiting
        assert not self.device.parts
        turns = self.broker._turns
        assert turns.queued == turns._waiting_bytes == len(turns._in_flight) == len(turns._order) == 0
        assert self.broker._leases._held is None

    def end(self):
        """Leave everybody in peace until nobody waits for anything, then have all leave, and look what is left."""
        self._live_until(lambda: not any(client.pending for client in self.clients if not client.gone))
        self.live(1.0)
        self.check_rest()
        for number, client in enumerate(self.clients):
            if not client.is_over and number % 2:
                client.leave()
            else:
                client.vanish()
        self.live(self.limits.expire_s + 2.0, step_s=0.5)
        self.check()
        self.check_empty()

    def _live_until(self, condition):
        for _ in range(100):
            if condition():
                return
            self.live(0.5)
            self.check()
        raise AssertionError("a request was lost")

    # Outcomes

    def judge(self, client, wanted):
        future = wanted.ticket.future
        if future.cancelled():
            wanted.outcome = "cancelled"
            assert wanted.cancelled
        elif future.exception() is None:
            wanted.outcome = "answered"
            self._check_answer(client, wanted, future.result())
        else:
            error = future.exception()
            wanted.outcome = type(error).__name__
            assert isinstance(error, OpuError), repr(error)
            assert error.problem
            assert error.remedy
            self._check_excuse(client, wanted, error)
        self.outcomes[wanted.kind, wanted.outcome] += 1

    def _check_answer(self, client, wanted, answer):
        if wanted.kind == "project":
            reply, frames = answer
            expected = toy_frames(wanted.patterns, wanted.first, wanted.record.config)
            assert np.array_equal(frames, expected), "wrong frames"
            assert reply.provenance.first_frame_index == wanted.first
            assert reply.provenance.n_frames == len(expected)
            assert reply.provenance.config.noise_key == wanted.record.config.noise_key
        elif wanted.kind == "lease":
            client.leases.append(answer.lease)
        elif wanted.kind == "change":
            assert wanted.first in client.leases, "settings are changed with the lease of another client"
        elif wanted.kind == "renew":
            assert answer.lease == wanted.first
        elif wanted.kind == "bye":
            assert client.conversation.error is not None or not client.pending, "bye comes before other answers"
            client.vanish()

    def _check_excuse(self, client, wanted, error):
        over = client.conversation.error
        if over is not None and type(error) is type(over) and error.problem == over.problem:
            self._check_end(client, over)
            return
        now_s = self.clock()
        match error:
            case errors.DeadlineError():
                assert wanted.deadline_s is not None
                assert now_s >= wanted.asked_s + wanted.deadline_s - 1e-5
            case errors.CapacityError():
                assert wanted.kind == "open"
                assert self.happened["not opened"]
            case errors.CancelledError():
                assert wanted.cancelled
            case errors.LeaseError():
                assert wanted.kind in {"lease", "renew", "return", "change"}
            case errors.ForbiddenError():
                assert wanted.kind in {"lease", "renew", "return", "change"}
            case DeviceError():
                frames = range(wanted.first, wanted.first + len(wanted.patterns))
                assert wanted.kind == "open" or self.failed_frames & set(frames)
            case BusyError():
                assert wanted.kind in {"open", "project", "close", "hello"}
                assert error.retry_s is not None or wanted.kind in {"open", "close"}
            case ClosedError():
                assert (
                    client.conversation._leaving or wanted.record in client.closing or wanted.record.error is not None
                )
            case _:
                raise AssertionError(f"{wanted.kind}: {error!r}")

    def _check_end(self, client, error):
        """Check that a conversation had a reason to end."""
        now_s = self.clock()
        match error:
            case ClosedError():
                assert client.conversation._leaving
            case BusyError():
                assert client.greeting.outcome != "answered"
            case UnreachableError():
                greeted = client.greeting.outcome == "answered"
                if client.farewell in {"evicted", "flooded"}:
                    return
                if greeted and client.reconnect_s and not client.conversation._leaving:
                    assert now_s - client.replied_s > client.reconnect_s, "it gave up too early"
                else:
                    silent = now_s - client.heard_s > TIMEOUT_S
                    assert silent or client.hung_up or client.farewell or self.happened["stopped"]
            case _:
                raise AssertionError(f"the conversation ended: {error!r}")


def no_message(number):
    raise AssertionError(number)


def reply_itself(reply, _):
    return reply
