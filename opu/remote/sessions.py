"""Opening and closing the sessions of a device, which may take seconds each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from opu.device import Device, Session, SessionConfig
from opu.remote.workers import Workers

__all__ = ["SessionKeeper"]

_log = logging.getLogger("opu.remote.server")  # it works for the server, whose log `opu serve` shows

ResultT = TypeVar("ResultT")

_THREADS = 4
_CALLERS = 2
_OPENING_S = 1.0


class SessionKeeper:
    """Opens and closes sessions in threads, and knows those that nobody has closed yet.

    Opening, closing and everything else have threads of their own: a device that hangs while it opens sessions must not
    keep others from being closed, nor its settings from being changed, for which all projections wait.

    Parameters
    ----------
    device : Device
        Whose sessions they are.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._openers = Workers(_THREADS, "opu-server-session-opener")
        self._closers = Workers(_THREADS, "opu-server-session-closer")
        self._callers = Workers(_CALLERS, "opu-server-caller")
        self._lock = threading.Lock()
        self._open: set[Session] = set()
        self._stopped = False

    def open(self, config: SessionConfig) -> Future[Session]:
        """Open a session.

        Parameters
        ----------
        config : SessionConfig
            What is wanted.

        Returns
        -------
        Future of Session
            Done when it is open; raises what the device raised.
        """
        return self._openers.submit(self._open_one, config)

    def call(self, work: Callable[..., ResultT], *arguments: object) -> Future[ResultT]:
        """Do something else with the device that may take a while.

        Parameters
        ----------
        work : callable
            What is to be done.
        *arguments : object
            With what.

        Returns
        -------
        Future
            Its outcome.
        """
        return self._callers.submit(work, *arguments)

    def close(self, session: Session) -> Future[None]:
        """Close a session. An error is logged and harms nobody.

        Parameters
        ----------
        session : Session
            One that this object has opened.

        Returns
        -------
        Future
            Done when it is closed.
        """
        with self._lock:
            self._open.discard(session)
        return self._closers.submit(_close_one, session)

    def stop(self, closing_s: float) -> None:
        """Close the sessions that are open, whether anybody has learnt of them or not.

        Sessions that are still being opened get a second, and so do calls. What is left behind then closes itself when
        it has opened, unless the process has ended.

        Parameters
        ----------
        closing_s : float
            How long to wait for closing.
        """
        self._callers.stop(_OPENING_S)
        n_opening = self._openers.stop(_OPENING_S)
        with self._lock:
            self._stopped = True
            left = list(self._open)
        for session in left:
            self.close(session)
        n_closing = self._closers.stop(closing_s)
        for n_left, what in ((n_opening, "opened"), (n_closing, "closed")):
            if n_left:
                _log.warning("sessions still being %s: %d; the server does not wait for them", what, n_left)

    def _open_one(self, config: SessionConfig) -> Session:
        session = self._device.open_session(config)
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._open.add(session)
        if stopped:
            _close_one(session)
        return session


def _close_one(session: Session) -> None:
    try:
        session.close()
    except Exception:  # noqa: BLE001 - nobody waits for it any more
        _log.exception("closing a session failed")
