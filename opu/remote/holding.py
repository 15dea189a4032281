"""The lease that a client holds, shared by its threads or tasks. What is asked of the server is not decided here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opu.errors import LeaseError

__all__ = ["LEASE_S", "HeldLease", "SharedLease", "Terms"]

LEASE_S = 30.0
"""How long a lease lasts unless its holder says otherwise or renews it."""


@dataclass(frozen=True)
class Terms:
    """What a lease is taken for: how long it lasts unless it is renewed, what for, and whether by force."""

    ttl_s: float = LEASE_S
    note: str = ""
    force: bool = False


@dataclass(eq=False)
class HeldLease:
    """A lease, from when it is taken until it ends, also while it is taken again on other terms.

    `due_s` is when it runs out, on a clock that never goes back, and a little before the server thinks so. `holders`
    has whoever is inside, once for each block.
    """

    number: int
    terms: Terms
    due_s: float
    holders: list[object] = field(default_factory=list)
    has_ended: bool = False

    def covers(self, terms: Terms | None) -> bool:
        """Return whether it need not be taken again for some terms; None: for any."""
        if terms is None:
            return True
        return not terms.force and terms.ttl_s <= self.terms.ttl_s and terms.note in {"", self.terms.note}

    def join(self, terms: Terms) -> Terms:
        """Return the terms that do for those inside and for others as well."""
        return Terms(max(terms.ttl_s, self.terms.ttl_s), terms.note or self.terms.note, terms.force)


class SharedLease:
    """Who is inside which lease of a client.

    A lease that has ended stays that of those who are inside, so that each of them hears of it; whoever comes then
    takes another one. May be used by several threads.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds, and never less than before.

    Examples
    --------
    >>> shared = SharedLease()
    >>> shared.find("anna") is None
    True
    >>> held = shared.taken(None, 7, Terms(), shared.now_s())
    >>> shared.enter("anna", held)
    True
    >>> shared.find("boris") is held
    True
    >>> shared.leave("anna", held)
    True
    >>> shared.find("boris") is None
    True
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now_s = clock
        self._lock = threading.Lock()
        self._leases: list[HeldLease] = []  # those that somebody is inside, the last one may still hold

    def find(self, who: object) -> HeldLease | None:
        """Return the lease that somebody is inside, or would share.

        Raises
        ------
        LeaseError
            The one that `who` is inside has ended.
        """
        with self._lock:
            own = self._own(who)
            if own is not None:
                if own.has_ended:
                    raise LeaseError(f"Lease {own.number} has ended.", "Leave the block, and take another one.")
                return own
            last = self._leases[-1] if self._leases else None
            if last is not None and self.now_s() >= last.due_s:
                last.has_ended = True
            return None if last is None or last.has_ended else last

    def is_inside(self, who: object) -> bool:
        """Return whether somebody is inside a lease."""
        with self._lock:
            return self._own(who) is not None

    def wants_renewal(self, who: object, held: HeldLease, terms: Terms | None) -> bool:
        """Return whether the server is to be asked if a lease still holds, before somebody shares it.

        That is so when it is past half its time, and before it is taken again, which would hide that it was lost.
        """
        is_old = held.due_s - self.now_s() < held.terms.ttl_s / 2
        return not held.covers(terms) or (is_old and not self.is_inside(who))

    def enter(self, who: object, held: HeldLease) -> bool:
        """Note that somebody is inside a lease, unless it has ended meanwhile, and return which."""
        with self._lock:
            if held.has_ended:
                return False
            if held not in self._leases:
                self._leases.append(held)
            held.holders.append(who)
            return True

    def leave(self, who: object, held: HeldLease) -> bool:
        """Note that somebody has left a lease, and return whether that has to be given back: by the last one.

        Also if it seems to have ended, because only the server knows. It refuses a number that does not hold.
        """
        with self._lock:
            held.holders.remove(who)
            if held.holders:
                return False
            self._leases.remove(held)
            held.has_ended = True
            return True

    def taken(self, held: HeldLease | None, number: int, terms: Terms, asked_s: float) -> HeldLease:
        """Note that the lease was taken, or one that is held taken again, and return it."""
        if held is None:
            return HeldLease(number, terms, asked_s + terms.ttl_s)
        with self._lock:
            held.number, held.terms, held.due_s = number, terms, asked_s + terms.ttl_s
        return held

    def taken_late(self, held: HeldLease, number: int, terms: Terms, asked_s: float) -> bool:
        """Note that a lease was taken again for somebody who does not wait any more, and return whether it is used.

        That is so if others hold it still.
        """
        with self._lock:
            if held.has_ended:
                return False
            held.number, held.terms, held.due_s = number, terms, asked_s + terms.ttl_s
            return True

    def renewed(self, held: HeldLease, asked_s: float) -> None:
        """Note that a lease lasts its full time again."""
        with self._lock:
            held.due_s = asked_s + held.terms.ttl_s

    def lose(self, held: HeldLease, number: int) -> bool:
        """Note that a number does not hold any more, and return whether it was that of the lease still."""
        with self._lock:
            if held.number != number:
                return False
            held.has_ended = True
            return True

    def _own(self, who: object) -> HeldLease | None:
        return next((held for held in self._leases if who in held.holders), None)
