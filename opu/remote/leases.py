"""The lease of a device: who may change what belongs to it and not to a session.

One holder at a time, for a limited time, so that a holder that has died does not keep others out. The number of a
lease is a fencing token: numbers only grow, also over restarts of the server, and a change that names an older one is
refused, however late it arrives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from opu.errors import LeaseError
from opu.remote.protocol import LeaseStatus

__all__ = ["Leases"]

_NUMBERS_PER_S = 2**16


@dataclass(frozen=True)
class _Held:
    number: int
    client_id: int
    holder: str
    note: str
    ttl_s: float
    expires_s: float


class Leases:
    """Gives the lease of one device, and knows who has it.

    Times are on a clock that never goes back.

    Examples
    --------
    >>> leases = Leases()
    >>> number = leases.take(1, "anna", 30.0, "aligning", force=False, now_s=0.0)
    >>> leases.check(number, 1, now_s=29.0)
    >>> leases.take(2, "boris", 30.0, "", force=False, now_s=29.0)
    Traceback (most recent call last):
    ...
    opu.errors.LeaseError: 'anna' has the lease of the device for 1 s more (note: 'aligning'). Wait, or take it...
    >>> leases.take(2, "boris", 30.0, "", force=False, now_s=30.5) > number
    True
    """

    def __init__(self) -> None:
        self._last = int(time.time() * _NUMBERS_PER_S)
        self._held: _Held | None = None

    def take(self, client_id: int, holder: str, ttl_s: float, note: str, *, force: bool, now_s: float) -> int:
        """Take the lease.

        Parameters
        ----------
        client_id : int
            The client that wants it.
        holder, note : str
            Who that is and what for, for others to see.
        ttl_s : float
            How long it lasts unless it is renewed.
        force : bool
            Take it away from whoever has it.
        now_s : float
            The time.

        Returns
        -------
        int
            The number of the lease.

        Raises
        ------
        LeaseError
            Somebody has it.
        """
        held = self._current(now_s)
        if held is not None and held.client_id != client_id and not force:
            raise LeaseError(
                f"{held.holder!r} has the lease of the device for {held.expires_s - now_s:.0f} s more "
                f"(note: {held.note!r}).",
                "Wait, or take it by force (force=True, --force) if its holder cannot give it back.",
            )
        self._last += 1
        self._held = _Held(self._last, client_id, holder, note, ttl_s, now_s + ttl_s)
        return self._last

    def renew(self, number: int, client_id: int, now_s: float) -> None:
        """Have a lease last its full time again.

        Raises
        ------
        LeaseError
            It has run out, was given back or was taken away.
        """
        held = self._check(number, client_id, now_s)
        self._held = _Held(number, client_id, held.holder, held.note, held.ttl_s, now_s + held.ttl_s)

    def give_back(self, number: int, client_id: int, now_s: float) -> None:
        """End a lease.

        Raises
        ------
        LeaseError
            It had ended before.
        """
        self._check(number, client_id, now_s)
        self._held = None

    def check(self, number: int, client_id: int, now_s: float) -> None:
        """Check that a client may change the device.

        Raises
        ------
        LeaseError
            Its lease has run out, was given back or was taken away.
        """
        self._check(number, client_id, now_s)

    def drop(self, client_id: int) -> None:
        """Forget the lease of a client that has gone."""
        if self._held is not None and self._held.client_id == client_id:
            self._held = None

    def status(self, now_s: float) -> LeaseStatus | None:
        """Return who has the lease, if anybody. May be called from any thread."""
        held = self._current(now_s)
        if held is None:
            return None
        return LeaseStatus(holder=held.holder, note=held.note, expires_s=held.expires_s - now_s)

    def _current(self, now_s: float) -> _Held | None:
        held = self._held  # left as it is: another thread that only looks would take away what has just been given
        return held if held is not None and now_s < held.expires_s else None

    def _check(self, number: int, client_id: int, now_s: float) -> _Held:
        held = self._current(now_s)
        if held is None or (held.number, held.client_id) != (number, client_id):
            now = "nobody has it now" if held is None else f"{held.holder!r} has it now"
            raise LeaseError(
                f"Lease {number} does not hold: it ran out, was given back or was taken away; {now}.",
                "Take the lease again, and look at the settings before you change them.",
            )
        return held
