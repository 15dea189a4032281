"""Batches of several sessions in one call: the bytes that they have alone, and books that add up."""

import dataclasses
import threading
import time

import msgspec
import numpy as np
import pytest

import opu
from opu.device import Batch
from opu.errors import CapacityError, ClosedError, ConfigError, DeadlineError, DeviceError, RefusedError
from opu.parts import CameraSettings, FrameNumbers, FrameRun, MirrorLayout, TriggerPlan
from opu.sim.device import SimulatedBench
from opu.sim.models import PRESETS
from opu.sim.trigger import TriggerModel

SIZES, FIRST, KEYS = (1, 7, 2, 1, 12), (0, 2**32 - 3, 5, 5, 1), (9, 2**63 + 5, 9, 8, 0)
PATTERNS = np.random.default_rng(0).integers(0, 2, (sum(SIZES), 300))
CONFIG = opu.SessionConfig(n_features=300, n_outputs=600)
MIXED = TriggerModel(dropped_fraction=0.3)


def batches():
    """Patterns, number of the first frame and noise key, of each batch."""
    return list(zip(np.split(PATTERNS, np.cumsum(SIZES)[:-1]), FIRST, KEYS, strict=True))


def open_sessions(bench, config=CONFIG):
    return [bench.open_session(msgspec.structs.replace(config, noise_key=key)) for key in KEYS]


def submit(bench, sessions, **fields):
    requests = [
        (session, Batch(opu.pack(patterns), first, **fields))
        for session, (patterns, first, _) in zip(sessions, batches(), strict=True)
    ]
    return bench.submit_together(requests)


def alone(bench, config=CONFIG):
    """The projections of all batches one after the other, on an equal bench at device time 0."""
    with SimulatedBench(bench.table.model, seed=7) as again:
        return [
            session.project(patterns, first_frame_index=first)
            for session, (patterns, first, _) in zip(open_sessions(again, config), batches(), strict=True)
        ]


def assert_same_frames(futures, expected):
    for future, projection in zip(futures, expected, strict=True):
        frames = future.result(timeout=60).frames
        np.testing.assert_array_equal(frames, projection.frames)


def without_overhead(model):
    """The model with calls that cost no time, so that frames have the same device times in one call and in many."""
    return dataclasses.replace(model, timing=msgspec.structs.replace(model.timing, call_overhead_us=0.0))


@pytest.fixture(params=PRESETS)
def bench(request, small_preset):
    with SimulatedBench(without_overhead(small_preset(request.param)), seed=7) as bench:
        yield bench


@pytest.fixture
def aurora(small_preset):
    with SimulatedBench(small_preset("aurora"), seed=7) as bench:
        yield bench


@pytest.fixture
def hold():
    """Hold the thread that works the parts: `hold(bench)`; `hold.set()` lets it go on."""
    gate = threading.Event()
    gate.hold = lambda bench: bench._queue(gate.wait, 60)
    yield gate
    gate.set()


# Frames


@pytest.mark.parametrize("at_once", [None, 5])
def test_frames_are_those_that_they_are_alone(bench, at_once, monkeypatch):
    if at_once:  # chunks that hold parts of runs, and several
        monkeypatch.setattr("opu.sim.table._frames_at_once", lambda *_, **__: at_once)
    for reference in ("none", *bench.table.model.reference.uses):
        config = msgspec.structs.replace(CONFIG, reference=reference)
        with SimulatedBench(bench.table.model, seed=7) as together:
            sessions = open_sessions(together, config)
            assert all(session.can_share for session in sessions)
            futures = submit(together, sessions)
            expected = alone(together, config)
            assert_same_frames(futures, expected)
        for future, projection in zip(futures, expected, strict=True):
            provenance = future.result().provenance
            assert provenance.saturated_fraction == projection.provenance.saturated_fraction
            assert (provenance.device_start_us, provenance.device_us) == pytest.approx(
                (projection.provenance.device_start_us, projection.provenance.device_us)
            )


def test_darkness_is_shared_as_well(bench):
    config = msgspec.structs.replace(CONFIG, light="off")
    assert_same_frames(submit(bench, open_sessions(bench, config)), alone(bench, config))


def test_buffers_are_the_results(aurora):
    sessions = open_sessions(aurora)
    outs = [np.zeros((size, 600), np.uint8) for size in SIZES]
    requests = [
        (session, Batch(opu.pack(patterns), first, out))
        for session, (patterns, first, _), out in zip(sessions, batches(), outs, strict=True)
    ]
    futures = aurora.submit_together(requests)
    assert all(future.result(timeout=60).frames is out for future, out in zip(futures, outs, strict=True))
    assert_same_frames(futures, alone(aurora))


def test_patterns_are_copied_and_a_session_may_come_twice(aurora, hold):
    hold.hold(aurora)
    patterns = opu.pack(PATTERNS[:2])
    with aurora.open_session(CONFIG) as session:
        futures = aurora.submit_together([(session, Batch(patterns, 4)), (session, Batch(patterns, 6))])
        assert session.next_frame_index == 8
        patterns.bits[:] = 0
        hold.set()
        whole = session.project(np.tile(PATTERNS[:2], (2, 1)), first_frame_index=4).frames
        np.testing.assert_array_equal(np.concatenate([future.result(timeout=60).frames for future in futures]), whole)


def test_where_frames_are_mixed_every_batch_has_a_call_of_its_own(small_preset):
    model = dataclasses.replace(without_overhead(small_preset("aurora")), trigger=MIXED)
    with SimulatedBench(model, seed=7) as bench:
        sessions = open_sessions(bench)
        assert not any(session.can_share for session in sessions)
        futures = submit(bench, sessions)
        expected = alone(bench)
        assert_same_frames(futures, expected)
        skipped = [future.result().provenance.skipped_frames for future in futures]
    assert skipped == [projection.provenance.skipped_frames for projection in expected]
    assert sum(skipped) > 0


MIXING = {
    "lost": MIXED,
    "doubled": TriggerModel(duplicated_fraction=0.1),
    "late": TriggerModel(latency_us=150.0),
    "unsteady": TriggerModel(jitter_us=1.0),
}


@pytest.mark.parametrize("trigger", MIXING.values(), ids=MIXING)
def test_a_camera_whose_frames_mix_takes_one_run(small_preset, trigger):
    runs = [FrameRun(FrameNumbers(0, 0), np.empty((1, 600), np.uint8)) for _ in range(2)]
    with SimulatedBench(small_preset("aurora", trigger=trigger), seed=7) as bench:
        dmd = bench.table.model.dmd
        bench.parts.dmd.load(opu.pack(PATTERNS[:2]), MirrorLayout(300, dmd.rows, dmd.columns))
        bench.parts.camera.arm(CameraSettings(np.arange(600), 400.0, 0.0), runs)
        with pytest.raises(DeviceError, match="2 runs"):
            bench.parts.controller.run(TriggerPlan(2, 500.0, 0.0))


# Books


def test_the_books_of_a_call_add_up(aurora):
    timing = aurora.describe().timing
    sessions = open_sessions(aurora)
    first = aurora.open_session(msgspec.structs.replace(CONFIG, n_outputs=10)).project(PATTERNS[:1]).provenance
    provenances = [future.result(timeout=60).provenance for future in submit(aurora, sessions)]
    frame_us = provenances[0].frame_us
    lead_us = timing.call_overhead_us + timing.reconfigure_us
    assert [p.n_frames for p in provenances] == list(SIZES)
    assert [p.device_us for p in provenances] == [lead_us + frame_us, *(size * frame_us for size in SIZES[1:])]
    assert aurora.device_clock_us == first.device_us + sum(p.device_us for p in provenances)
    start_us = first.device_us
    for session, provenance, number in zip(sessions, provenances, FIRST, strict=True):
        assert provenance.session_id == session.describe().session_id
        assert provenance.config == session.config
        assert (provenance.first_frame_index, provenance.device_start_us) == (number, start_us)
        start_us += provenance.device_us
    assert len({(p.started_unix_s, p.finished_unix_s) for p in provenances}) == 1
    duty = aurora.capability(opu.MirrorDuty).landed_on_share()
    assert np.isfinite(duty).all()


def test_the_epoch_of_a_batch_is_that_of_its_own_frames(small_preset):
    model = without_overhead(small_preset("aurora"))
    drift = dataclasses.replace(model.drift, jump_times_s=(0.002,), jump_share=0.5)
    with SimulatedBench(dataclasses.replace(model, drift=drift), seed=7) as bench:
        futures = submit(bench, open_sessions(bench))
        assert_same_frames(futures, alone(bench))
        assert [future.result().provenance.medium_epoch for future in futures] == [0, 1, 1, 1, 1]


# Failures


def test_a_batch_fails_alone(aurora, hold):
    expected = alone(aurora)
    sessions = open_sessions(aurora)
    sessions[3].close()
    hold.hold(aurora)
    requests = [
        (session, Batch(opu.pack(patterns), first, due_s=time.monotonic() if number == 1 else np.inf))
        for number, (session, (patterns, first, _)) in enumerate(zip(sessions, batches(), strict=True))
    ]
    futures = aurora.submit_together(requests)
    assert futures[0].cancel()
    assert isinstance(futures[3].exception(timeout=0), ClosedError)
    hold.set()
    assert isinstance(futures[1].exception(timeout=60), DeadlineError)
    assert futures[0].cancelled()
    for number in (2, 4):
        np.testing.assert_array_equal(futures[number].result(timeout=60).frames, expected[number].frames)
    timing = aurora.describe().timing
    assert futures[2].result().provenance.device_us == timing.call_overhead_us + 2 * 500.0  # it has become the first


def test_nothing_is_projected_if_nobody_waits(aurora, hold):
    hold.hold(aurora)
    futures = submit(aurora, open_sessions(aurora))
    assert all(future.cancel() for future in futures)
    hold.set()
    aurora.open_session(CONFIG).project(PATTERNS[:1])
    assert aurora.device_clock_us == aurora.describe().timing.call_overhead_us + 500.0


def test_a_limit_of_the_exposure_binds_every_batch(aurora):
    sessions = open_sessions(aurora)
    aurora.capability(opu.DeviceControl).change(opu.SettingsChange(max_exposure_us=100.0))
    assert all(isinstance(future.exception(timeout=60), RefusedError) for future in submit(aurora, sessions))


def test_a_device_that_fails_fails_all_that_it_had_begun_with(aurora, monkeypatch):
    sessions = open_sessions(aurora)
    error = DeviceError("The bus is stuck.", "Replug it.")

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(aurora.table, "fire", fail)
        assert all(future.exception(timeout=60) is error for future in submit(aurora, sessions))
    expected = alone(aurora)
    assert_same_frames(submit(aurora, sessions), expected)


def test_what_cannot_be_one_call_is_refused(aurora, small_preset):
    one = aurora.open_session(CONFIG)
    other = aurora.open_session(msgspec.structs.replace(CONFIG, gain_db=1.0))
    batch = Batch(opu.pack(PATTERNS), 0)
    with pytest.raises(ConfigError, match="2 batches"):
        aurora.submit_together([(one, batch), (other, batch)])
    with SimulatedBench(small_preset("aurora"), seed=7) as elsewhere:
        stranger = elsewhere.open_session(CONFIG)
        with pytest.raises(ConfigError, match="another device"):
            aurora.submit_together([(one, batch), (stranger, batch)])
    many = Batch(opu.pack(np.ones((10_001, 300))), 0)
    with pytest.raises(CapacityError, match="20002 patterns"):
        aurora.submit_together([(one, many), (one, many)])
    [narrow] = aurora.submit_together([(one, Batch(opu.pack(PATTERNS[:, :9]), 0))])
    assert isinstance(narrow.exception(timeout=60), opu.OpuError)
    assert aurora.submit_together([]) == []
    assert one.next_frame_index == 0
    aurora.close()
    with pytest.raises(ClosedError):
        aurora.submit_together([(one, batch)])
