"""How batches are cut: as much as fits a quantum, but no more calls than a device can afford."""

import math

import msgspec
import numpy as np
import pytest
from link_helpers import TOY_DESCRIPTION, ToyDevice
from test_protocol import PROVENANCE

from opu.device import Projection
from opu.remote import protocol
from opu.remote.clients import ProjectionJob
from opu.remote.counters import Counters
from opu.remote.limits import ServerLimits
from opu.remote.turns import Pace, Turns, _Call, merge


def part(n_frames, seconds, **changes):
    return msgspec.structs.replace(
        PROVENANCE, n_frames=n_frames, started_unix_s=10.0, finished_unix_s=10.0 + seconds, **changes
    )


def pace_of(**timing):
    return Pace(msgspec.structs.replace(TOY_DESCRIPTION.timing, **timing))


def test_parts_fit_the_quantum():
    pace = pace_of()
    for n_frames in (32, 50, 48):
        pace.learn(part(n_frames, n_frames * 1e-4, device_us=1e9))
    assert [pace.part_of(n_frames, 0.005) for n_frames in (1, 49, 60, 100, 1000)] == [1, 49, 60, 50, 50]
    assert pace.part_of(100, 1e-6) == 1


def test_the_parts_of_a_batch_are_of_one_size():
    pace = pace_of()
    pace.learn(part(50, 0.005, device_us=1e9))
    left, parts = 130, []
    while left:
        parts.append(pace.part_of(left, 0.005))
        left -= parts[-1]
    assert parts == [44, 43, 43]


def test_short_calls_do_not_make_a_device_look_slow():
    pace = pace_of()
    for _ in range(50):
        pace.learn(part(1, 0.0009, device_us=1e9))
        pace.learn(part(300, 0.005, device_us=1e9))
    assert 230 < pace.part_of(100_000, 0.005) < 300


def test_a_pace_is_found_however_long_a_call_takes():
    pace = pace_of()
    n_frames = pace.part_of(10**6, 0.005)
    for _ in range(60):
        pace.learn(part(n_frames, 0.002 + n_frames * 1e-5, device_us=1e9))
        n_frames = pace.part_of(10**6, 0.005)
    assert 0.002 + n_frames * 1e-5 == pytest.approx(0.005, rel=0.05)


def test_a_device_that_spends_time_on_calls_gets_longer_parts():
    books = pace_of(call_overhead_us=183_000.0)
    books.learn(part(32, 0.001, device_us=199_000.0, frame_us=500.0))  # a simulation, which only books the time
    assert books.part_of(16_000, 0.005) == 160
    spends = pace_of(call_overhead_us=183_000.0)
    spends.learn(part(32, 0.199, device_us=199_000.0, frame_us=500.0))
    assert spends.part_of(36_600, 0.005) == pytest.approx(3660, abs=1)


def test_a_device_is_configured_anew_only_where_settings_take_turns():
    pace = pace_of(reconfigure_us=10_000.0)
    pace.learn(part(10, 0.005, device_us=5000.0, frame_us=500.0))
    assert pace.part_of(4000, 0.005) == 10
    assert pace.part_of(4000, 0.005, alternates=True) == 200  # 100 ms, of which 10 ms is a tenth


def test_a_clock_that_stands_still_or_goes_back_cuts_nothing():
    pace = pace_of()
    pace.learn(part(10, 0.0))
    assert pace.part_of(10**6, 0.005) == 10**6
    pace.learn(part(10, -5.0))
    assert pace.part_of(10**6, 0.005) == 10**6


def test_merged_parts_count_everything_once():
    parts = [
        part(30, 1.0, first_frame_index=0, device_us=10.0, saturated_fraction=0.1, skipped_frames=1, medium_epoch=0),
        part(10, 2.0, first_frame_index=30, device_us=5.0, saturated_fraction=0.5, skipped_frames=2, medium_epoch=1),
    ]
    merged = merge(parts[::-1])
    assert (merged.first_frame_index, merged.n_frames, merged.device_us, merged.skipped_frames) == (0, 40, 15.0, 3)
    assert merged.saturated_fraction == pytest.approx(0.2)
    assert (merged.medium_epoch, merged.finished_unix_s) == (1, 12.0)
    assert merge(parts[:1]) is parts[0]


def turns_of(clock):
    limits = ServerLimits()
    return Turns(ToyDevice(), limits, Counters(clock), lambda *_: None, clock=clock, projected=None, reached=None)


def test_behind_a_part_of_a_batch_the_next_call_is_given_when_that_is_nearly_done():
    """So that who comes meanwhile need not wait for two parts."""
    now_s = [100.0]
    turns = turns_of(lambda: now_s[0])
    pace = pace_of()
    pace.learn(part(50, 0.005, device_us=1e9))
    assert turns.wait_s(100.0) == 0
    turns._begun_s = 100.0
    turns._in_flight.append(_Call(pace, pace.seconds_of(50), is_part=True, n_left=1))
    assert turns.wait_s(100.0) == pytest.approx(0.003)
    assert turns.wait_s(100.004) == 0
    turns._in_flight.append(_Call(pace, pace.seconds_of(50), is_part=True, n_left=1))
    assert turns.wait_s(100.004) == math.inf


def test_behind_a_whole_batch_the_next_call_is_given_at_once():
    turns = turns_of(lambda: 100.0)
    pace = pace_of()
    pace.learn(part(50, 0.005, device_us=1e9))
    turns._begun_s = 100.0
    turns._in_flight.append(_Call(pace, pace.seconds_of(50), is_part=False, n_left=1))
    assert turns.wait_s(100.0) == 0


def test_a_batch_is_whole_when_all_its_parts_are_there_in_any_order():
    turns = turns_of(lambda: 100.0)
    request = protocol.Project(request_id=1, session=1, first_frame_index=7, n_features=10, batch=6)
    job = ProjectionJob(request, session=None, patterns=None, arrived_s=0.0, frames=np.zeros((6, 5), np.uint8))
    for first, n_frames in ((10, 3), (7, 2)):
        projection = Projection(job.frames[first - 7 :][:n_frames], part(n_frames, 1.0, first_frame_index=first))
        assert turns._join_parts(job, projection) is None
    whole = turns._join_parts(job, Projection(job.frames[2:3], part(1, 1.0, first_frame_index=9)))
    assert whole.frames is job.frames
    assert (whole.provenance.first_frame_index, whole.provenance.n_frames, job.n_done) == (7, 6, 6)
