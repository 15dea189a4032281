"""What a server knows of its clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from opu.device import Provenance, Session, SessionDescription
from opu.patterns import PackedPatterns
from opu.remote import protocol
from opu.remote.gate import Peer
from opu.remote.post import Outbox, ReplyCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.remote.turns import Pace

__all__ = ["Client", "Clients", "Job", "OpenedSession", "ProjectionJob"]


@dataclass(frozen=True, eq=False)
class OpenedSession:
    """A session of a client."""

    device_session: Session
    description: SessionDescription
    pace: Pace


@dataclass(eq=False)
class ProjectionJob:
    """A projection that waits for its turn, or for more turns, or for the device.

    `due_s` is when nobody is interested any more unless the device has begun. `n_given` counts the frames that the
    device was asked for, `n_done` those that it has given, and `frames` is where those of a batch go that is cut.
    """

    request: protocol.Project
    session: OpenedSession
    patterns: PackedPatterns
    arrived_s: float
    due_s: float | None = None
    begun_s: float = 0.0
    n_given: int = 0
    n_done: int = 0
    frames: NDArray[Any] | None = None
    parts: list[Provenance] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        """Frames that the device was not asked for yet."""
        return self.request.batch - self.n_given


Job: TypeAlias = ProjectionJob | protocol.CloseSession | protocol.Bye


@dataclass(eq=False)
class Client:
    """A client, connected or on its way back.

    `route` and `descriptor` name its connection; without one the route is None. `unanswered` has the numbers of the
    requests that are being worked at, `projections` the jobs of those that are projections, and `answered` is the
    number below which the client has all its answers. `knows_server` tells whether it has heard that it is welcome: it
    has asked for something. `hello_id` is the number of its last hello.
    """

    client_id: int
    name: str
    peer: Peer
    route: bytes | None
    descriptor: int
    heard_s: float
    token: str | None = None
    features: frozenset[str] = frozenset()
    sessions: dict[int, OpenedSession] = field(default_factory=dict)
    opening: int = 0
    jobs: deque[Job] = field(default_factory=deque)
    unanswered: set[int] = field(default_factory=set)
    projections: dict[int, ProjectionJob] = field(default_factory=dict)
    answered: int = 0
    knows_server: bool = False
    hello_id: int = 0
    in_flight: int = 0
    outbox: Outbox = field(default_factory=Outbox)
    replies: ReplyCache = field(default_factory=ReplyCache)
    frames: int = 0
    refused: int = 0
    gone: bool = False

    @property
    def owner(self) -> object:
        """Whom the limits are for: its key, and itself where there are no keys."""
        return self.peer.public_key or self.client_id

    @property
    def returns(self) -> bool:
        """Whether it can take up its conversation on another connection."""
        return self.token is not None

    def has_sent(self, request_id: int) -> bool:
        """Return whether a request has come before, and is being worked at or can be answered from memory."""
        return self.returns and (request_id in self.unanswered or self.replies.find(request_id) is not None)

    def compiled_bytes(self) -> int:
        """Return the memory of the compiled media of its sessions."""
        return sum(opened.description.compiled_bytes for opened in self.sessions.values())

    @property
    def waits_for_network(self) -> bool:
        """Whether something goes on when the network has taken more."""
        leaves = bool(self.jobs) and isinstance(self.jobs[0], protocol.Bye)
        return bool(self.outbox) or (leaves and self.outbox.count_on_the_way() > 0)

    @property
    def label(self) -> str:
        """Its name for the log, with everything that is not printable ASCII escaped."""
        return f"{self.client_id} {self.name!a}" + (f", key {self.peer.name!a}," if self.peer.name else "")

    def status(self) -> protocol.ClientStatus:
        """Return what others may know of it."""
        return protocol.ClientStatus(
            client_id=self.client_id,
            name=self.name,
            sessions=len(self.sessions),
            frames=self.frames,
            queued=len(self.projections),
            refused=self.refused,
            role=self.peer.role,
            connected=self.route is not None,
        )


class Clients:
    """The clients of a server, by connection and by token."""

    def __init__(self) -> None:
        self._all: dict[int, Client] = {}
        self._by_route: dict[bytes, Client] = {}
        self._by_token: dict[str, Client] = {}

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Client]:
        """Return the clients, oldest first. May be called from any thread."""
        return list(self._all.values())

    def of_owner(self, owner: object) -> Iterable[Client]:
        """Return the clients of a key."""
        return (client for client in self.all() if client.owner == owner)

    def at(self, route: bytes) -> Client | None:
        """Return the client of a connection."""
        return self._by_route.get(route)

    def with_token(self, token: str) -> Client | None:
        """Return the client that has named itself so."""
        return self._by_token.get(token)

    def add(self, client: Client) -> None:
        """Add a client that is connected."""
        assert client.route is not None  # noqa: S101 - it has just said hello
        self._all[client.client_id] = client
        self._by_route[client.route] = client
        if client.token is not None:
            self._by_token[client.token] = client

    def attach(self, client: Client, route: bytes, descriptor: int) -> None:
        """Note on which connection a client is now. What was not sent on the last one has to be asked for again."""
        self.detach(client)
        client.route, client.descriptor = route, descriptor
        self._by_route[route] = client

    def detach(self, client: Client) -> None:
        """Note that the connection of a client has ended."""
        if client.route is not None:
            del self._by_route[client.route]
        client.route, client.descriptor = None, -1
        client.outbox.clear()

    def remove(self, client: Client) -> None:
        """Forget a client."""
        client.gone = True
        self.detach(client)
        client.replies.clear()
        del self._all[client.client_id]
        if client.token is not None:
            del self._by_token[client.token]
