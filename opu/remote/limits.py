"""What a server grants."""

from __future__ import annotations

from dataclasses import dataclass

from opu.remote import protocol

__all__ = ["ServerLimits"]


@dataclass(frozen=True)
class ServerLimits:
    """What a server grants. `docs/protocol.md` tells clients what happens beyond.

    What is said to hold for a key holds for each client of a server without keys.

    Parameters
    ----------
    max_clients : int
        Clients at a time, but for `observer_places`.
    observer_places : int
        How many observers do not count as such, so that one can look at a server that is full.
    max_clients_of_key : int
        Those of them with one key.
    max_sessions : int
        Open sessions of one client.
    max_compiled_bytes : int
        Memory of the compiled media of the sessions of a key.
    max_cached_bytes : int
        Memory of the answers of a key that are kept until their clients have said that they have them.
    max_queued : int
        Unanswered projections of one client.
    max_queued_total : int
        Unanswered projections of all clients.
    max_queued_bytes : int
        Bytes of patterns in them.
    max_waiting : int
        Messages of one connection that the server has not looked at yet.
    max_payload_bytes : int
        The largest payload of a message.
    quantum_s : float
        About how long the device works for a client before another one's turn, which is how batches are cut while
        several clients have sessions.
    expire_s : float
        Silence after which a client is forgotten. One whose connection broke can take up its conversation until then.
    stall_s : float
        Time without progress after which a client that does not read is evicted.
    drain_s : float
        Time to answer what was accepted when the server stops.
    closing_s : float
        Time to close the sessions after that.
    handshake_s : float
        Time that a new connection may take until it can send a message.
    idle_s : float
        Time that a connection may stand without belonging to a client.
    """

    max_clients: int = 64
    observer_places: int = 4
    max_clients_of_key: int = 32
    max_sessions: int = 16
    max_compiled_bytes: int = 2**31
    max_cached_bytes: int = 2**26
    max_queued: int = 64
    max_queued_total: int = 256
    max_queued_bytes: int = 2**29
    max_waiting: int = 1024
    max_payload_bytes: int = protocol.MAX_PAYLOAD_BYTES
    quantum_s: float = 0.005
    expire_s: float = 15.0
    stall_s: float = 10.0
    drain_s: float = 5.0
    closing_s: float = 10.0
    handshake_s: float = 5.0
    idle_s: float = 30.0

    @property
    def max_unanswered(self) -> int:
        """Unanswered requests of one client, of any kind: room for those that open and close its sessions, and more."""
        return 2 * (self.max_queued + self.max_sessions)
