"""Threads for jobs that may take long."""

import subprocess
import sys
import threading
import time

import pytest

from opu.remote.workers import Workers


def test_jobs_have_outcomes():
    workers = Workers(2, "test")
    assert workers.submit(divmod, 7, 2).result(timeout=5) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        workers.submit(divmod, 7, 0).result(timeout=5)
    assert workers.submit(divmod, 9, 2).result(timeout=5) == (4, 1)
    assert workers.stop(5) == 0


def test_a_job_that_is_cancelled_in_time_is_left_out():
    gate, done = threading.Event(), []
    workers = Workers(1, "test")
    first, second, third = workers.submit(gate.wait, 30), workers.submit(done.append, 2), workers.submit(done.append, 3)
    assert second.cancel()
    gate.set()
    third.result(timeout=30)
    assert not first.cancel()
    assert done == [3]
    assert workers.stop(30) == 0


def test_what_is_queued_is_finished():
    workers = Workers(1, "test")
    futures = [workers.submit(time.sleep, 0.01) for _ in range(20)]
    assert workers.stop(5) == 0
    assert all(future.done() for future in futures)


def test_stopping_does_not_wait_longer_than_told():
    gate = threading.Event()
    workers = Workers(2, "test")
    futures = [workers.submit(gate.wait, 30) for _ in range(3)]
    started_s = time.monotonic()
    assert workers.stop(0.1) == 3
    assert time.monotonic() - started_s < 10
    gate.set()
    assert all(future.result(timeout=5) for future in futures)
    assert workers.stop(5) == 0


def test_a_job_does_not_keep_the_process():
    source = "import time; from opu.remote.workers import Workers; Workers(2, 'test').submit(time.sleep, 60)"
    subprocess.run([sys.executable, "-c", source], timeout=30, check=True)
