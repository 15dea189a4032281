"""Holding back Ctrl-C while the main thread has a message in its hands."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enumerations, which takes ten times as long
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["undisturbed"]

_SIGINT = int(signal.SIGINT)


class _Undisturbed:
    """Has `SIGINT` wait for the end of a `with` block of the main thread. Blocks may be nested.

    `KeyboardInterrupt` is raised between any two steps of the main thread: between two frames of a message, or when a
    reply has been taken from a socket and its future does not know it yet, which would then wait for ever. The other
    threads are never interrupted. A block must not wait for anything.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._before: Any = None
        self._has_come = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if self._depth == 0:
            self._before = _signal.getsignal(_SIGINT)
            if self._before is not None:  # None is a handler of C code, which could not be put back
                _signal.signal(_SIGINT, self._note)
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._depth -= 1
        if self._depth == 0 and self._before is not None:
            _signal.signal(_SIGINT, self._before)
            if self._has_come:
                self._has_come = False
                signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._has_come = True


undisturbed = _Undisturbed()
"""One for the process, as there is one handler of a signal."""
