"""Work of the device that is done by the thread that asks for it."""

import dataclasses
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

import opu
from opu.device import Batch, Projection
from opu.errors import ConfigError, DeadlineError, DeviceError
from opu.sim.device import SimulatedBench
from opu.sim.trigger import TriggerModel

CONFIG = opu.SessionConfig(n_features=300, n_outputs=600)
PATTERNS = opu.pack(np.random.default_rng(0).integers(0, 2, (5, 300)))


def project_here(bench, *requests):
    """Have another thread than the main one do the work, which Ctrl-C could end in the middle."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(bench.project_here, list(requests)).result(timeout=60)


@pytest.fixture
def bench(small_preset):
    with SimulatedBench(small_preset("aurora"), seed=7) as bench:
        yield bench


@pytest.fixture
def session(bench):
    with bench.open_session(CONFIG) as session:
        yield session


def test_the_calling_thread_does_the_work(bench, session, monkeypatch):
    threads = []
    run = type(bench.parts.controller).run
    monkeypatch.setattr(
        type(bench.parts.controller),
        "run",
        lambda controller, plan: (threads.append(threading.current_thread().name), run(controller, plan)),
    )
    out = np.zeros((5, 600), np.uint8)
    [outcome] = project_here(bench, (session, Batch(PATTERNS, 3, out)))
    assert "opu-bench" not in threads[0]
    assert outcome.frames is out
    assert session.next_frame_index == 8
    expected = session.project(PATTERNS, first_frame_index=3)
    assert "opu-bench" in threads[1]
    np.testing.assert_array_equal(outcome.frames, expected.frames)
    assert outcome.provenance.n_frames == 5
    assert expected.provenance.device_start_us == outcome.provenance.device_start_us + outcome.provenance.device_us


def test_what_cannot_be_taken_fails_alone(bench, session):
    late, narrow, good = Batch(PATTERNS, 0, due_s=0.0), Batch(opu.pack([[1] * 9]), 0), Batch(PATTERNS, 0)
    refused, malformed, taken = project_here(bench, (session, late), (session, narrow), (session, good))
    assert isinstance(refused, DeadlineError)
    assert isinstance(malformed, opu.errors.PatternShapeError)
    assert isinstance(taken, Projection)
    assert project_here(bench) == []
    with bench.open_session(opu.SessionConfig(n_features=300, n_outputs=9)) as other, pytest.raises(ConfigError):
        project_here(bench, (session, good), (other, good))


def test_when_the_device_fails_all_fail_that_it_had_begun_with(bench, session, monkeypatch):
    def fail(controller, plan):
        raise DeviceError("The controller is dead.", "Switch it on.")

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.parts.controller), "run", fail)
        outcomes = project_here(bench, (session, Batch(PATTERNS, 0)), (session, Batch(PATTERNS, 5)))
    assert [str(outcome) for outcome in outcomes] == [str(DeviceError("The controller is dead.", "Switch it on."))] * 2
    assert isinstance(project_here(bench, (session, Batch(PATTERNS, 0)))[0], Projection)


def test_nothing_is_done_while_the_device_is_at_work(bench, session):
    gate, begun = threading.Event(), threading.Event()
    first = bench._queue(lambda: (begun.set(), gate.wait(60)))
    assert begun.wait(60)
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is None
    waiting = session.submit(PATTERNS)
    cancelled = session.submit(PATTERNS)
    assert cancelled.cancel()  # the last one is over, and those before it are not
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is None
    gate.set()
    assert isinstance(first, Future)
    waiting.result(timeout=60)
    session.project(PATTERNS)
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is not None


def test_the_queue_waits_for_work_that_is_done_here(bench, session, monkeypatch):
    begun, gate = threading.Event(), threading.Event()
    run = type(bench.parts.controller).run

    def wait(controller, plan):
        begun.set()
        assert gate.wait(60)
        run(controller, plan)

    monkeypatch.setattr(type(bench.parts.controller), "run", wait)
    outcomes = []
    here = threading.Thread(target=lambda: outcomes.extend(bench.project_here([(session, Batch(PATTERNS, 0))])))
    here.start()
    assert begun.wait(60)
    monkeypatch.setattr(type(bench.parts.controller), "run", run)
    queued = session.submit(PATTERNS, first_frame_index=0)
    closing = threading.Thread(target=bench.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()  # what was begun is finished
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is None
    gate.set()
    here.join(60)
    closing.join(60)
    assert not closing.is_alive()
    np.testing.assert_array_equal(queued.result(timeout=60).frames, outcomes[0].frames)
    assert queued.result().provenance.device_start_us >= outcomes[0].provenance.device_us


def test_the_main_thread_does_nothing_itself(bench, session):
    assert bench.project_here([(session, Batch(PATTERNS, 0))]) is None


def test_nothing_is_done_while_a_session_is_prepared(bench, session):
    with bench._prepare_lock:
        assert project_here(bench, (session, Batch(PATTERNS, 0))) is None
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is not None


def test_a_device_that_takes_its_time_or_mixes_frames_or_is_closed_lets_nobody(small_preset):
    with SimulatedBench(small_preset("aurora"), seed=7, realtime=True) as bench:
        assert project_here(bench, (bench.open_session(CONFIG), Batch(PATTERNS, 0))) is None
    mixing = dataclasses.replace(small_preset("aurora"), trigger=TriggerModel(dropped_fraction=0.3))
    with SimulatedBench(mixing, seed=7) as bench:
        assert project_here(bench, (bench.open_session(CONFIG), Batch(PATTERNS, 0))) is None
    bench = SimulatedBench(small_preset("aurora"), seed=7)
    session = bench.open_session(CONFIG)
    bench.close()
    assert project_here(bench, (session, Batch(PATTERNS, 0))) is None
