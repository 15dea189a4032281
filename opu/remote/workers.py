"""Threads for jobs that may take long."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Workers"]

Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Workers:
    """A few threads that carry out jobs. A process may end while they work, which those of an executor would hold up.

    Parameters
    ----------
    n_threads : int
        How many jobs are carried out at a time.
    name : str
        What the threads are called.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a job.

        Parameters
        ----------
        job : callable
            What is to be done.
        *arguments : object
            With what.

        Returns
        -------
        Future
            Its outcome.
        """
        future: Future[Any] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._jobs.put((future, job, arguments))
        return future

    def stop(self, timeout_s: float) -> int:
        """Finish what is queued. Threads that still work when the time is over end after their jobs.

        Parameters
        ----------
        timeout_s : float
            How long to wait.

        Returns
        -------
        int
            How many jobs were not finished in time.
        """
        for _ in self._threads:
            self._jobs.put(None)
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return len(self._unfinished)

    def _work(self) -> None:
        while (queued := self._jobs.get()) is not None:
            future, job, arguments = queued
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job(*arguments))
                except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
                    future.set_exception(error)
            del future, job, arguments, queued  # what they hold is not the thread's
