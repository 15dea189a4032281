"""Output that waits for nobody: a server must not stop because nobody reads what it prints."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PatientStream", "never_waiting"]

_WAITING_TEXTS = 1000
_FAREWELL_S = 1.0


def _tell_left_out(n_lines: int) -> str:
    return f"... {n_lines} lines left out: nobody read"


class PatientStream:
    """A stream of text that never makes its writer wait: while nobody reads, it leaves out what comes, and counts it.

    A thread writes to the descriptor, and not to the stream: what hangs there holds no lock that the end of the process
    needs.

    Parameters
    ----------
    target : file
        The stream whose descriptor is written to.
    tell_left_out : callable
        Words how many lines were left out.
    """

    def __init__(self, target: IO[str], tell_left_out: Callable[[int], str] = _tell_left_out) -> None:
        self._word_left_out = tell_left_out
        self.encoding = getattr(target, "encoding", "utf-8")
        self._descriptor = target.fileno()
        self._texts: deque[str] = deque()
        self._left_out = 0
        self._finished = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_out, name="opu-serve-console", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Have a text written, or leave it out."""
        with self._changed:
            if len(self._texts) < _WAITING_TEXTS:
                self._texts.append(self._tell_left_out() + text)
            else:
                self._left_out += 1
            self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: it may take a while."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        return os.isatty(self._descriptor)

    def finish(self) -> None:
        """Wait for what has been written, but not long."""
        with self._changed:
            self._finished = True
            self._changed.notify()
        self._thread.join(_FAREWELL_S)

    def _tell_left_out(self) -> str:
        left_out, self._left_out = self._left_out, 0
        return f"{self._word_left_out(left_out)}\n" if left_out else ""

    def _next(self) -> str | None:
        """Wait for a text. What was left out at the very end is told by a last one, and then there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts or self._finished)
            return self._texts.popleft() if self._texts else self._tell_left_out() or None

    def _write_out(self) -> None:
        while (text := self._next()) is not None:
            data = text.encode(self.encoding, errors="replace")
            try:
                while data:
                    data = data[self._write_some(data) :]
            except OSError:
                return  # the reader has gone

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody has set the descriptor to non-blocking
            select.select([], [self._descriptor], [])
            return 0


@contextmanager
def never_waiting(console: Console, tell_left_out: Callable[[int], str] = _tell_left_out) -> Iterator[None]:
    """Have the console never make anybody wait who prints.

    Parameters
    ----------
    console : rich.console.Console
        Which one, as long as the context lasts.
    tell_left_out : callable
        Words how many lines were left out.
    """
    target = console.file
    stream = PatientStream(target, tell_left_out)
    console.file = cast("IO[str]", stream)
    try:
        yield
    finally:
        stream.finish()
        console.file = target
