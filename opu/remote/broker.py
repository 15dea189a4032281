"""What a server does with the messages of its clients. It opens no socket, starts no thread and reads no clock.

Messages come in through `handle`, answers leave through a `Wire`, the time is a callable, and what other threads have
to tell arrives through `post`. So tests can have it live through losses, delays, repetitions and restarts in no time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar, cast

import msgspec
import numpy as np

import opu
from opu.device import (
    Device,
    DeviceControl,
    Projection,
    Session,
    SessionDescription,
    check_frame_numbers,
    setting_of,
)
from opu.errors import (
    AuthenticationError,
    BusyError,
    CancelledError,
    CapacityError,
    ClosedError,
    DeadlineError,
    ForbiddenError,
    OpuError,
    ProtocolError,
    ServerFailureError,
    UnreachableError,
    UnsupportedError,
    VersionMismatchError,
)
from opu.remote import OPEN_AGAIN, protocol
from opu.remote.clients import Client, Clients, OpenedSession, ProjectionJob
from opu.remote.counters import Counters
from opu.remote.gate import Gate, Incoming, Peer
from opu.remote.leases import Leases
from opu.remote.limits import ServerLimits
from opu.remote.post import Parcel, Wire, WireFullError, WireGoneError
from opu.remote.turns import Pace, Turns

if TYPE_CHECKING:
    from opu.device import SessionConfig

__all__ = ["Broker", "Keeper"]

_log = logging.getLogger("opu.remote.server")  # it works for the server, whose log `opu serve` shows

ResultT = TypeVar("ResultT")

_OUTBOX_MESSAGES = 1024
_COME_AGAIN_S = 1.0
_UNKEPT = (protocol.Pong, protocol.StatusReply)

_NumberedRequest: TypeAlias = (
    protocol.OpenSession
    | protocol.Project
    | protocol.CloseSession
    | protocol.TakeLease
    | protocol.RenewLease
    | protocol.ReturnLease
    | protocol.GetSettings
    | protocol.ChangeSettings
    | protocol.Bye
)


class Keeper(Protocol):
    """Opens and closes sessions elsewhere, as `opu.remote.sessions.SessionKeeper` does."""

    def open(self, config: SessionConfig) -> Future[Session]:
        """Open a session."""

    def close(self, session: Session) -> Future[None]:
        """Close one."""

    def call(self, work: Callable[..., ResultT], *arguments: object) -> Future[ResultT]:
        """Do something else with the device."""


class Broker:
    """Answers the clients of one device.

    Parameters
    ----------
    device : Device
        What is served.
    keeper : Keeper
        Opens and closes its sessions.
    limits : ServerLimits
        What clients are granted.
    gate : Gate
        Who may do what.
    wire : Wire
        Carries the replies.
    post : callable
        `post(function, *arguments)` has the thread of the broker call a function soon. May be called from any thread.
    clock : callable
        Returns the time in seconds, and never less than before.
    servers : tuple of str
        The `server_id` of this server, and those of the servers that stand between it and the device.
    uri : str
        Where it listens, for messages to people.
    """

    def __init__(
        self,
        *,
        device: Device,
        keeper: Keeper,
        limits: ServerLimits,
        gate: Gate,
        wire: Wire,
        post: Callable[..., None],
        clock: Callable[[], float],
        servers: tuple[str, ...],
        uri: str,
    ) -> None:
        self._device = device
        self._keeper = keeper
        self._limits = limits
        self._gate = gate
        self._wire = wire
        self._post = post
        self._clock = clock
        self._servers = servers
        self._uri = uri
        self._clients = Clients()
        self._counters = Counters(clock, gate.turned_away)
        self._turns = Turns(
            device, limits, self._counters, post, clock=clock, projected=self._projected, reached=self._reached
        )
        self._paces: weakref.WeakValueDictionary[SessionConfig, Pace] = weakref.WeakValueDictionary()
        self._leases = Leases()
        self._n_sessions = 0
        self._started_s = clock()
        self._rate_since = (self._started_s, 0)
        self._frames_per_s = 0.0
        self._n_clients = 0
        self._stopping = False

    # What the server calls

    def handle(self, message: Incoming) -> None:
        """Answer a message."""
        client = self._clients.at(message.route)
        if client is not None:
            client.heard_s = self._clock()
        frames = message.frames
        request_id = None
        try:
            request, payload = protocol.decode_request(frames)
            request_id = request.request_id
            if isinstance(request, protocol.Hello):
                self._welcome(message, client, request)
            elif client is None:
                self._send_to_stranger(message.route, self._do_not_know())
            else:
                self._gate.authorise(client.peer, request, is_repeated=client.has_sent(request.request_id))
                self._answer(client, request, payload)
        except AuthenticationError as error:
            self._turn_out(message, client, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            if isinstance(error, VersionMismatchError):
                self._gate.turned_away.count("version")
            if request_id is None:
                request_id = protocol.read_request_id(frames)
            self._refuse(client or message.route, request_id, self._explain(client, error))

    def work(self, all_read: bool) -> None:
        """Give the device work, send what the network takes, and part from clients that have gone.

        Parameters
        ----------
        all_read : bool
            Whether every message that has come was handled: silence counts only then.
        """
        now_s = self._clock()
        self._counters.beat()
        self._turns.give(now_s)
        for client in self._clients.all():
            self._flush(client)
            if client.outbox and now_s - client.outbox.moved_s > self._limits.stall_s:
                self._evict(client)
            elif all_read and now_s - client.heard_s > self._limits.expire_s:
                self._expire(client)
        self._measure_rate(now_s)

    def patience_s(self) -> float:
        """Return how long there is nothing to do if nothing comes."""
        return self._turns.wait_s(self._clock()) if self._turns.has_work else math.inf

    @property
    def has_worked_here(self) -> bool:
        """Whether the last `work` did the work of the device itself."""
        return self._turns.has_worked_here

    @property
    def has_work(self) -> bool:
        """Whether a client waits for its turn."""
        return self._turns.has_work

    @property
    def waits_for_network(self) -> bool:
        """Whether something goes on when the network has taken more."""
        return any(client.waits_for_network for client in self._clients.all())

    @property
    def owes_answers(self) -> bool:
        """Whether a client that is connected waits for something."""
        return any(c.route is not None and (c.unanswered or c.outbox) for c in self._clients.all())

    def refuse_new(self) -> None:
        """Refuse what comes from now on, because the server stops."""
        self._stopping = True

    def say_goodbye_to_all(self) -> None:
        """Refuse what is left, and part from every client. Those that come back ask the next server."""
        for client in self._clients.all():
            for request_id in sorted(client.unanswered) if not client.returns else ():
                self._refuse(client, request_id, self._stopped())
            remedy = f"Start it again. {OPEN_AGAIN}"
            goodbye = protocol.Goodbye(code="stopped", problem=self._stopped().problem, remedy=remedy)
            self._say_goodbye(client, goodbye)

    def forget_all(self) -> None:
        """Close the sessions of every client that is left."""
        for client in self._clients.all():
            self._forget(client)

    def cut_off(self, excess: Incoming) -> None:
        """End a connection that has sent more than a client may have waiting."""
        self._counters.cut_off()
        client = self._clients.at(excess.route)
        sent = f"more than {self._limits.max_waiting} messages waited to be read"
        _log.warning("client %s cut off: %s", client.label if client else "?", sent)
        if client is not None:
            self._forget(client)
        goodbye = protocol.Goodbye(
            code="flooded",
            problem=f"The server has cut off this connection: {sent}.",
            remedy=f"Wait for answers. {OPEN_AGAIN}",
        )
        self._wire.hang_up(excess.route, excess.descriptor, Parcel.of(goodbye))

    def has_client_at(self, descriptor: int) -> bool:
        """Whether a connection belongs to a client."""
        return any(client.descriptor == descriptor for client in self._clients.all())

    def snapshot(self) -> protocol.ServerStatus:
        """Return what the server is doing. May be called from any thread."""
        now_s = self._clock()
        return protocol.ServerStatus(
            uptime_s=now_s - self._started_s,
            frames_per_s=self._frames_per_s,
            queued=self._turns.queued,
            draining=self._stopping,
            lease=self._leases.status(now_s),
            clients=tuple(client.status() for client in self._clients.all()),
            counters=self._counters.snapshot(),
        )

    def _measure_rate(self, now_s: float) -> None:
        since_s, frames = self._rate_since
        if now_s - since_s >= 1.0:
            self._frames_per_s = (self._counters.frames - frames) / (now_s - since_s)
            self._rate_since = (now_s, self._counters.frames)

    # Requests

    def _answer(self, client: Client, request: protocol.Request, payload: memoryview | None) -> None:
        client.knows_server = True
        if isinstance(request, protocol.Ping):
            self._acknowledge(client, request.answered)
            self._send(client, protocol.Pong(request_id=request.request_id))
        elif isinstance(request, protocol.Status):
            self._send(client, protocol.StatusReply(request_id=request.request_id, status=self.snapshot()))
        elif self._is_new(client, request.request_id):
            self._take_up(client, cast("_NumberedRequest | protocol.Cancel", request), payload)

    def _is_new(self, client: Client, request_id: int) -> bool:
        """Tell a new request from one that is asked again, and answer that."""
        if request_id in client.unanswered:
            if client.returns:
                return False  # its answer comes when it is ready
            raise ProtocolError(
                f"Request {request_id} has not been answered yet.", "Give every request another number."
            )
        kept = client.replies.find(request_id)
        if kept is not None:
            self._counters.repeated()
            self._post_parcel(client, kept)
            return False
        if request_id < client.answered:
            raise ProtocolError(
                f"Request {request_id} comes again, and the client has said that it has the answers to all below "
                f"{client.answered}.",
                "Number requests upwards, and repeat those alone that are not answered.",
            )
        return True

    def _take_up(self, client: Client, request: _NumberedRequest | protocol.Cancel, payload: memoryview | None) -> None:
        if self._stopping and client.returns and isinstance(request, (protocol.OpenSession, protocol.Project)):
            return  # it asks the next server: an error would be the end of what a crash is not
        if len(client.unanswered) >= self._limits.max_unanswered and not isinstance(request, protocol.Cancel):
            raise BusyError(f"{len(client.unanswered)} requests of this client wait.", "Wait for an answer.")
        if isinstance(request, protocol.OpenSession):
            self._open_session(client, request)
        elif isinstance(request, protocol.Project):
            assert payload is not None  # noqa: S101 - decode_request has checked it
            self._accept(client, request, payload)
        elif isinstance(request, protocol.Cancel):
            self._require(client, "cancel")
            self._cancel(client, request)
        elif isinstance(request, (protocol.GetSettings, protocol.ChangeSettings)):
            self._settings(client, request)
        elif isinstance(request, (protocol.TakeLease, protocol.RenewLease, protocol.ReturnLease)):
            self._require(client, "lease")
            self._lease(client, request)
        elif isinstance(request, protocol.Bye) and any(isinstance(job, protocol.Bye) for job in client.jobs):
            raise ProtocolError("This client has said bye before.", "Say it once, and wait for the answer.")
        else:
            client.jobs.append(request)
            client.unanswered.add(request.request_id)

    def _acknowledge(self, client: Client, answered: int) -> None:
        """Note that a client has the answers to all requests with numbers below one."""
        if answered > client.answered:
            client.answered = answered
            client.replies.acknowledge(answered)

    def _require(self, client: Client, feature: str) -> None:
        if feature not in client.features:
            agreed = ", ".join(sorted(client.features)) or "none"
            raise UnsupportedError(
                f"The feature {feature!r} has not been agreed on.", f"Name it in hello; agreed are: {agreed}."
            )

    # Clients that come

    def _welcome(self, message: Incoming, client: Client | None, hello: protocol.Hello) -> None:
        if self._stopping:
            self._gate.turned_away.count("stopping")
            raise self._stopped()
        features = frozenset(hello.features) & frozenset(protocol.FEATURES)
        token = hello.token if "resume" in features else None
        if client is not None and (token is None or client.token != token):
            raise ProtocolError("This client has said hello before.", "Say it once for each connection.")
        known = self._clients.with_token(token) if token is not None else None
        if known is not None and hello.request_id < known.hello_id:
            raise ProtocolError(
                "This client has said hello on another connection since.", "Number requests upwards, also hello."
            )
        description = self._device.describe()
        peer = self._gate.greet(message, hello.role)
        if known is not None:
            client = self._resume(known, message, peer)
        else:
            client = Client(
                client_id=self._n_clients + 1,
                name=hello.name,
                peer=peer,
                route=message.route,
                descriptor=message.descriptor,
                heard_s=self._clock(),
                token=token,
                features=features,
            )
            self._admit(client)
        self._gate.note_admission(client.peer, hello.name)
        client.hello_id = hello.request_id
        welcome = protocol.Welcome(
            request_id=hello.request_id,
            version=protocol.agree_on_version(hello.version, "client"),
            software=f"openopu {opu.__version__}",
            server_id=self._servers[0],
            description=description,
            limits=protocol.LinkLimits(
                max_payload_bytes=self._limits.max_payload_bytes,
                max_sessions=self._limits.max_sessions,
                max_queued=self._limits.max_queued,
                expire_s=self._limits.expire_s,
            ),
            features=tuple(sorted(client.features)),
            # A client whose first welcome was lost takes another server for the one that it resumes with.
            resumed=known is not None and known.knows_server,
            role=client.peer.role,
            servers=self._servers,
        )
        self._send(client, welcome, keep=False)

    def _admit(self, client: Client) -> None:
        """Let a new client in."""
        self._check_place([*self._peers(), client.peer], client.peer)
        n_of_key = sum(1 for _ in self._clients.of_owner(client.owner))
        if n_of_key >= self._limits.max_clients_of_key:
            self._gate.turn_away("too_many_clients_of_key", client.peer, f"{n_of_key} clients have that key")
            raise BusyError(
                f"The key {client.peer.name!r} has {n_of_key} clients, as many as a key may have.",
                "Close one first.",
                _COME_AGAIN_S,
            )
        self._n_clients += 1
        self._counters.welcomed()
        self._clients.add(client)
        self._turns.join(client)
        _log.info("client %s has come", client.label, extra={"client": client.client_id})

    def _peers(self) -> list[Peer]:
        return [client.peer for client in self._clients.all()]

    def _check_place(self, peers: list[Peer], peer: Peer) -> None:
        """Check that there are places for some peers, one of them new: a few observers have places of their own."""
        n_observers = sum(peer.role == "observer" for peer in peers)
        if len(peers) - min(n_observers, self._limits.observer_places) > self._limits.max_clients:
            self._gate.turn_away("too_many_clients", peer, f"the server has {len(self._clients)} clients")
            raise BusyError(
                f"The server has {len(self._clients)} clients, as many as it takes of the role {peer.role!r}.",
                "Try again later.",
                _COME_AGAIN_S,
            )

    def _resume(self, client: Client, message: Incoming, peer: Peer) -> Client:
        """Have a client go on where its last connection ended."""
        if peer.public_key != client.peer.public_key:
            self._gate.turn_away("token", peer, "its token is that of another key")
            raise ForbiddenError("The token belongs to a client with another key.", "Draw a token of your own.")
        if client.peer.role == "observer":
            others = [other for other in self._peers() if other is not client.peer]
            self._check_place([*others, peer], peer)  # its place may be one that only observers have
        if client.route == message.route:
            return client  # it was not sure that its first hello had arrived
        left, descriptor = client.route, client.descriptor
        self._clients.attach(client, message.route, message.descriptor)
        client.peer = peer
        client.heard_s = self._clock()
        self._counters.resumed()
        if left is not None and descriptor != message.descriptor:  # or the old connection has ended, and is reused
            goodbye = protocol.Goodbye(
                code="replaced", problem="This client has come back on another connection.", remedy=OPEN_AGAIN
            )
            self._wire.hang_up(left, descriptor, Parcel.of(goodbye))
        _log.info("client %s is back", client.label, extra={"client": client.client_id})
        return client

    # Sessions

    def _open_session(self, client: Client, request: protocol.OpenSession) -> None:
        if self._stopping:
            raise self._stopped()
        if len(client.sessions) + client.opening >= self._limits.max_sessions:
            raise BusyError(
                f"This client has {self._limits.max_sessions} open sessions, as many as a client may have.",
                "Close one first.",
            )
        client.opening += 1
        client.unanswered.add(request.request_id)
        future = self._keeper.open(request.config)
        future.add_done_callback(lambda done: self._post(self._session_opened, client, request, done))

    def _session_opened(self, client: Client, request: protocol.OpenSession, done: Future[Session]) -> None:
        client.opening -= 1
        client.unanswered.discard(request.request_id)
        session = None if done.exception() else done.result()
        if client.gone:
            if session is not None:
                self._keeper.close(session)
            return
        try:
            session = done.result()
            description = self._limit_batch(session.describe())
            self._check_compiled(client, description)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            if session is not None:
                self._keeper.close(session)
            self._refuse(client, request.request_id, self._explain(client, error))
            return
        self._n_sessions += 1
        client.sessions[self._n_sessions] = OpenedSession(session, description, self._pace_of(description.config))
        opened = protocol.SessionOpened(
            request_id=request.request_id, session=self._n_sessions, description=description
        )
        self._send(client, opened)

    def _pace_of(self, config: SessionConfig) -> Pace:
        """Return what sessions know together that differ in nothing but the noise."""
        setting = setting_of(config)
        pace = self._paces.get(setting)
        if pace is None:
            pace = self._paces[setting] = Pace(self._device.describe().timing)
        return pace

    def _check_compiled(self, client: Client, description: SessionDescription) -> None:
        held_bytes = sum(other.compiled_bytes() for other in self._clients.of_owner(client.owner))
        compiled_bytes = held_bytes + description.compiled_bytes
        if compiled_bytes > self._limits.max_compiled_bytes:
            whose = f"key {client.peer.name!r}" if client.peer.public_key else "client"
            raise CapacityError(
                f"The sessions of this {whose} would hold {compiled_bytes / 2**20:.1f} MiB of compiled media, and they "
                f"may hold {self._limits.max_compiled_bytes / 2**20:.1f} MiB.",
                "Close a session first, or ask for fewer features or outputs.",
            )

    def _limit_batch(self, description: SessionDescription) -> SessionDescription:
        """State a largest batch whose patterns and frames fit into a payload."""
        config = description.config
        itemsize = np.dtype(description.frame_dtype).itemsize
        row_bytes = max(config.n_outputs * itemsize, -(-config.n_features // 8))
        fitting = max(1, self._limits.max_payload_bytes // row_bytes)
        return msgspec.structs.replace(description, max_batch=min(description.max_batch, fitting))

    def _reached(self, client: Client, request: protocol.CloseSession | protocol.Bye) -> None:
        """Carry out what comes after everything that the client asked before."""
        if isinstance(request, protocol.CloseSession):
            self._give_back(client, request)
        else:
            self._done(client, request.request_id)
            _log.info("client %s has left", client.label, extra={"client": client.client_id})
            self._forget(client)

    def _give_back(self, client: Client, request: protocol.CloseSession) -> None:
        opened = client.sessions.pop(request.session, None)
        if opened is None:
            client.unanswered.discard(request.request_id)
            error = ClosedError(f"Session {request.session} is not open.", "It may have been closed before.")
            self._refuse(client, request.request_id, error)
            return
        future = self._keeper.close(opened.device_session)
        future.add_done_callback(lambda _: self._post(self._done, client, request.request_id))

    def _done(self, client: Client, request_id: int) -> None:
        client.unanswered.discard(request_id)
        self._send(client, protocol.Done(request_id=request_id))

    # Projections

    def _accept(self, client: Client, request: protocol.Project, payload: memoryview) -> None:
        if self._stopping:
            raise self._stopped()
        session = client.sessions.get(request.session)
        if session is None:
            raise ClosedError(f"Session {request.session} is not open.", "Open one first.")
        check_frame_numbers(request.first_frame_index, request.batch, session.description.max_batch)
        now_s = self._clock()
        due_s = None
        if request.deadline_s is not None:
            self._require(client, "deadline")
            due_s = now_s + request.deadline_s
        patterns = protocol.read_patterns(request, payload)
        self._turns.add(client, ProjectionJob(request, session, patterns, now_s, due_s))
        client.unanswered.add(request.request_id)
        self._counters.accepted(payload.nbytes)
        self._acknowledge(client, request.answered)

    def _projected(self, client: Client, job: ProjectionJob, outcome: Projection | Exception) -> None:
        request_id = job.request.request_id
        client.unanswered.discard(request_id)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            reply, payload = _word_frames(job, outcome)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            if isinstance(error, DeadlineError):
                self._counters.late()
            self._refuse(client, request_id, self._explain(client, error))
            return
        self._counters.answered(
            waited_s=job.begun_s - job.arrived_s,
            took_s=self._clock() - job.arrived_s,
            n_frames=reply.batch,
            n_bytes=payload.nbytes,
        )
        client.frames += reply.batch
        self._send(client, reply, payload)

    def _cancel(self, client: Client, request: protocol.Cancel) -> None:
        job = client.projections.get(request.target)
        if job is not None:
            self._turns.withdraw(client, job)
            client.unanswered.discard(request.target)
            self._counters.cancelled()
            error = CancelledError(
                f"Request {request.target} was cancelled by its client.", "Send it again if it is wanted."
            )
            self._refuse(client, request.target, error)
        self._send(client, protocol.Done(request_id=request.request_id))

    # The lease

    def _lease(self, client: Client, request: protocol.TakeLease | protocol.RenewLease | protocol.ReturnLease) -> None:
        now_s = self._clock()
        if isinstance(request, protocol.ReturnLease):
            self._leases.give_back(request.lease, client.client_id, now_s)
            self._send(client, protocol.Done(request_id=request.request_id))
            return
        if isinstance(request, protocol.TakeLease):
            holder = client.peer.name or client.name
            number = self._leases.take(
                client.client_id, holder, request.ttl_s, request.note, force=request.force, now_s=now_s
            )
        else:
            number = request.lease
            self._leases.renew(number, client.client_id, now_s)
        status = self._leases.status(now_s)
        assert status is not None  # noqa: S101 - it has just been taken
        self._send(client, protocol.Lease(request_id=request.request_id, lease=number, status=status))

    # Settings of the device

    def _settings(self, client: Client, request: protocol.GetSettings | protocol.ChangeSettings) -> None:
        control = self._device.capability(DeviceControl)

        def answer(done: Future[protocol.SettingsReply]) -> None:
            self._post(self._settings_known, client, request.request_id, done)

        def get() -> protocol.SettingsReply:
            return protocol.SettingsReply(
                request_id=request.request_id, settings=control.settings(), limits=control.limits()
            )

        def change() -> protocol.SettingsReply:
            assert isinstance(request, protocol.ChangeSettings)  # noqa: S101 - nothing else is put off
            control.change(request.change)
            return get()

        def begin() -> Future[protocol.SettingsReply]:
            assert isinstance(request, protocol.ChangeSettings)  # noqa: S101 - nothing else is put off
            changed: Future[protocol.SettingsReply] = Future()
            try:
                # Meanwhile the lease may have been taken away, or the key has lost its role.
                self._gate.authorise(client.peer, request, is_repeated=True)
                self._leases.check(request.lease, client.client_id, self._clock())
            except OpuError as error:
                changed.set_exception(error)
            else:
                changed = self._keeper.call(change)
            changed.add_done_callback(answer)
            return changed

        if isinstance(request, protocol.ChangeSettings):
            self._require(client, "lease")
            self._leases.check(request.lease, client.client_id, self._clock())
            self._turns.interrupt(begin)
        else:
            self._keeper.call(get).add_done_callback(answer)
        client.unanswered.add(request.request_id)

    def _settings_known(self, client: Client, request_id: int, done: Future[protocol.SettingsReply]) -> None:
        client.unanswered.discard(request_id)
        try:
            reply = done.result()
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must hear of it
            self._refuse(client, request_id, self._explain(client, error))
        else:
            self._send(client, reply)

    # Messages out

    def _send(
        self, client: Client, reply: protocol.Reply, payload: memoryview | None = None, *, keep: bool = True
    ) -> None:
        if client.gone:
            return
        parcel = Parcel.of(reply, payload)
        request_id = getattr(reply, "request_id", None)
        if keep and client.returns and request_id is not None and not isinstance(reply, _UNKEPT):
            others = sum(o.replies.n_bytes for o in self._clients.of_owner(client.owner) if o is not client)
            client.replies.keep(request_id, parcel, self._limits.max_cached_bytes - others)
        self._post_parcel(client, parcel)

    def _post_parcel(self, client: Client, parcel: Parcel) -> None:
        if client.route is None:
            return  # it asks again when it is back
        client.outbox.put(parcel, self._clock())
        if len(client.outbox) > _OUTBOX_MESSAGES:
            self._evict(client)
        else:
            self._flush(client)

    def _flush(self, client: Client) -> None:
        if client.route is None:
            return
        try:
            client.outbox.flush(self._wire, client.route, self._clock())
        except WireGoneError as error:
            if client.returns and not self._stopping:
                _log.info("client %s is disconnected: %s", client.label, error, extra={"client": client.client_id})
                self._clients.detach(client)
            else:
                _log.info("client %s has gone: %s", client.label, error, extra={"client": client.client_id})
                self._forget(client)

    def _send_to_stranger(self, route: bytes, reply: protocol.Reply) -> None:
        with contextlib.suppress(WireFullError, WireGoneError):  # it takes the answer now, or does without
            self._wire.send(route, Parcel.of(reply))

    def _refuse(self, addressee: Client | bytes, request_id: int | None, error: OpuError) -> None:
        """Answer a request of a client, or of a stranger who is known by the route alone, with an error."""
        self._counters.refused(error.code)
        if isinstance(error, ProtocolError):
            self._counters.malformed()
        reply = protocol.error_reply(request_id, error)
        if isinstance(addressee, Client):
            addressee.refused += 1
            self._send(addressee, reply)
        else:
            self._send_to_stranger(addressee, reply)

    def _explain(self, client: Client | None, error: Exception) -> OpuError:
        if isinstance(error, OpuError):
            return error
        _log.error("a request of client %s failed", client.label if client else "?", exc_info=error)
        return ServerFailureError(
            f"The server met an unexpected {type(error).__name__}.", "Its log tells more; the request may be right."
        )

    def _stopped(self) -> UnreachableError:
        return UnreachableError(
            f"The server at {self._uri} was stopped.", "Repeat the request when it has been started again."
        )

    def _do_not_know(self) -> protocol.Goodbye:
        return protocol.Goodbye(
            code="unknown",
            problem=f"The server at {self._uri} does not know this client: it was restarted, or has said goodbye.",
            remedy=OPEN_AGAIN,
        )

    # Clients that go

    def _say_goodbye(self, client: Client, goodbye: protocol.Goodbye) -> None:
        self._send(client, goodbye)
        self._forget(client)

    def _turn_out(self, message: Incoming, client: Client | None, error: AuthenticationError) -> None:
        """End the connection of a peer that is not admitted any more."""
        if client is not None:
            self._forget(client)
        goodbye = protocol.Goodbye(code="revoked", problem=error.problem, remedy=error.remedy)
        self._wire.hang_up(message.route, message.descriptor, Parcel.of(goodbye))

    def _evict(self, client: Client) -> None:
        self._counters.evicted()
        _log.warning(
            "client %s evicted: it does not read, %d replies wait",
            client.label,
            len(client.outbox),
            extra={"client": client.client_id},
        )
        goodbye = protocol.Goodbye(
            code="evicted",
            problem="The server has evicted this client because it did not read its replies.",
            remedy=f"Read what it sends. {OPEN_AGAIN}",
        )
        self._end(client, goodbye)

    def _expire(self, client: Client) -> None:
        self._counters.expired()
        silence = f"for {self._limits.expire_s:g} s"
        _log.warning("client %s expired: silent %s", client.label, silence, extra={"client": client.client_id})
        goodbye = protocol.Goodbye(
            code="expired", problem=f"The server has not heard this client {silence}.", remedy=OPEN_AGAIN
        )
        if client.outbox or client.outbox.count_on_the_way():
            self._end(client, goodbye)
        else:
            self._say_goodbye(client, goodbye)

    def _end(self, client: Client, goodbye: protocol.Goodbye) -> None:
        """Forget a client and end its connection, which frees what it has not read."""
        route, descriptor = client.route, client.descriptor
        self._forget(client)
        if route is not None:
            self._wire.hang_up(route, descriptor, Parcel.of(goodbye))

    def _forget(self, client: Client) -> None:
        if client.gone:
            return
        self._clients.remove(client)
        self._turns.leave(client)
        self._leases.drop(client.client_id)
        for opened in client.sessions.values():
            self._keeper.close(opened.device_session)
        client.sessions.clear()


def _word_frames(job: ProjectionJob, projection: Projection) -> tuple[protocol.Frames, memoryview]:
    frames = projection.frames
    description = job.session.description
    expected = (job.request.batch, description.config.n_outputs)
    if frames.shape != expected or frames.dtype.newbyteorder("=") != description.frame_dtype:
        raise ServerFailureError(
            f"The device gave {frames.dtype} frames of the shape {frames.shape} where {description.frame_dtype} of "
            f"the shape {expected} were due.",
            "Its driver is at fault.",
        )
    reply = protocol.Frames(
        request_id=job.request.request_id,
        dtype=cast("Literal['uint8', 'uint16']", description.frame_dtype),
        batch=expected[0],
        n_outputs=expected[1],
        provenance=projection.provenance,
    )
    return reply, protocol.frames_payload(frames)
