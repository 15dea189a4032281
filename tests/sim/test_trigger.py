"""The trigger line: light of neighbouring patterns, lost frames and doubled ones."""

import numpy as np
import pytest

import opu
from opu.device import Timing
from opu.errors import ConfigError
from opu.sim.drift import DriftModel
from opu.sim.reference import ReferenceModel
from opu.sim.trigger import BLANK, TriggerModel, delivery, window_shares

TIMING = Timing(readout_us=0.0, frame_overhead_us=100.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0)
# Bright, without noise: a count is a thousandth of the mean.
QUIET = {
    "bit_depth": 16,
    "gain_dn_per_e": 1.0,
    "full_well_e": np.inf,
    "shot_noise": False,
    "read_noise_e": 0.0,
    "dark_current_e_per_s": 0.0,
}
CONFIG = opu.SessionConfig(n_features=32, n_outputs=400)
PATTERNS = np.random.default_rng(0).integers(0, 2, (9, 32))


def shares(model, n_frames=2000, settle_us=15.0, exposure_us=400.0, first_frame_index=0):
    return window_shares(
        model,
        settle_us=settle_us,
        frame_us=500.0,
        exposure_us=exposure_us,
        seed=1,
        noise_key=2,
        first_frame_index=first_frame_index,
        n_frames=n_frames,
    )


def test_an_exposure_within_its_pattern_sees_nothing_else():
    assert shares(TriggerModel(latency_us=15.0)) is None
    assert shares(TriggerModel(latency_us=100.0)) is None


@pytest.mark.parametrize(
    ("latency_us", "shift", "expected"),
    [
        (0.0, 0, [0, 385 / 400, 0]),  # the mirrors settle for the first 15 us
        (120.0, 0, [0, 380 / 400, 5 / 400]),  # 15 of the last 20 us they move
        (300.0, 0, [0, 200 / 400, 185 / 400]),
        (-100.0, -1, [0, 100 / 400, 285 / 400]),
        (5050.0, 10, [0, 1, 0]),
    ],
)
def test_a_shifted_exposure_mixes_neighbours(latency_us, shift, expected):
    found = shares(TriggerModel(latency_us=latency_us), n_frames=3)
    assert found.shift == shift
    np.testing.assert_allclose(found.shares, [expected] * 3, atol=1e-6)


def test_jitter_has_its_deviation_and_repeats_with_the_frame_numbers():
    model = TriggerModel(latency_us=300.0, jitter_us=10.0)
    found = shares(model).shares
    start_us = 500 - 400 * found[:, 1]  # where the exposure begins, as far as its own pattern tells
    assert start_us.mean() == pytest.approx(300, abs=1)
    assert start_us.std() == pytest.approx(10, rel=0.05)
    again = shares(model, n_frames=50, first_frame_index=700).shares
    np.testing.assert_array_equal(again, found[700:750])


def quiet_frames(make_bench, trigger, config=CONFIG, patterns=PATTERNS, **dmd):
    with make_bench(camera=QUIET, electrons=2000, timing=TIMING, trigger=trigger, dmd=dmd) as bench:
        with bench.open_session(config) as session:
            projection = session.project(patterns)
        assert bench.describe().timing.latency_us == trigger.latency_us
    return projection


def test_frames_hold_the_ghost_of_the_next_pattern(make_bench):
    clean = quiet_frames(make_bench, TriggerModel(latency_us=50.0)).frames.astype(float)
    late = quiet_frames(make_bench, TriggerModel(latency_us=300.0)).frames.astype(float)
    after = np.concatenate([clean[1:], clean[-1:]])  # the last pattern stays
    np.testing.assert_allclose(late, 0.5 * clean + 0.5 * after, atol=1.1)


def test_ghosts_do_not_depend_on_how_a_sequence_is_computed(make_bench, monkeypatch):
    trigger = TriggerModel(latency_us=300.0, jitter_us=5.0)
    whole = quiet_frames(make_bench, trigger, settle_us=15.0)
    monkeypatch.setattr("opu.sim.table._frames_at_once", lambda *_, **__: 4)
    np.testing.assert_array_equal(quiet_frames(make_bench, trigger, settle_us=15.0).frames, whole.frames)


def test_before_the_first_pattern_all_mirrors_are_off(make_bench):
    clean = quiet_frames(make_bench, TriggerModel()).frames.astype(float)
    early = quiet_frames(make_bench, TriggerModel(latency_us=-200.0)).frames.astype(float)
    before = np.concatenate([0 * clean[:1], clean[:-1]])
    np.testing.assert_allclose(early, 0.5 * clean + 0.5 * before, atol=1.1)


@pytest.mark.parametrize("lag", [1, 3, 20])
def test_a_latency_of_whole_frames_shows_later_patterns(make_bench, lag):
    clean = quiet_frames(make_bench, TriggerModel()).frames
    late = quiet_frames(make_bench, TriggerModel(latency_us=500.0 * lag)).frames
    expected = clean[np.minimum(np.arange(9) + lag, 8)]
    np.testing.assert_array_equal(late, expected)


def test_the_reference_arm_shines_while_mirrors_move(make_bench):
    reference = ReferenceModel(uses=("pi",), electrons_per_us=5.0)
    config = opu.SessionConfig(n_features=32, n_outputs=400, reference="pi")
    with make_bench(camera=QUIET, timing=TIMING, dmd={"settle_us": 200.0}, reference=reference) as bench:
        frames = bench.open_session(config).project(np.zeros((4, 32))).frames
    assert (frames == 2000).all()


def test_drift_and_neighbours_work_from_the_first_microsecond_on(make_bench):
    drift = DriftModel(correlation_time_s=1.0)
    trigger = TriggerModel(latency_us=-100.0)
    with make_bench(camera=QUIET, timing=TIMING, drift=drift, trigger=trigger) as bench:
        assert "repeatable_noise" not in bench.describe().capabilities
        assert bench.open_session(CONFIG).project(PATTERNS[:1]).frames.any()


@pytest.mark.parametrize("wrong", [{"dropped_fraction": -0.1}, {"duplicated_fraction": 1.5}, {"jitter_us": -1.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        TriggerModel(**wrong)


def test_frames_are_lost_and_doubled_as_often_as_said():
    found = delivery(TriggerModel(dropped_fraction=0.01, duplicated_fraction=0.02), 1, 2, 0, 100_000)
    arrived = found.sources[found.sources != BLANK]
    counts = np.bincount(arrived, minlength=100_000)[: arrived[-1] + 1]
    assert (counts == 0).mean() == pytest.approx(0.01, rel=0.15)
    assert (counts == 2).mean() == pytest.approx(0.0198, rel=0.1)
    assert (np.diff(arrived) >= 0).all()
    assert found.n_dropped == pytest.approx(1000, rel=0.15)


def test_the_host_is_told_of_lost_frames_and_not_of_doubled_ones(make_bench):
    patterns = np.random.default_rng(1).integers(0, 2, (300, 32))
    clean = quiet_frames(make_bench, TriggerModel(), patterns=patterns)
    lossy = quiet_frames(make_bench, TriggerModel(dropped_fraction=0.05), patterns=patterns)
    doubled = quiet_frames(make_bench, TriggerModel(duplicated_fraction=0.05), patterns=patterns)
    assert clean.provenance.skipped_frames == doubled.provenance.skipped_frames == 0
    n_lost = lossy.provenance.skipped_frames
    assert 3 < n_lost < 30
    assert not lossy.frames[-n_lost:].any()
    place = {frame.tobytes(): i for i, frame in enumerate(clean.frames)}
    order = [place[frame.tobytes()] for frame in lossy.frames[:-n_lost]]
    assert order == sorted(set(order))
    order = [place[frame.tobytes()] for frame in doubled.frames]
    assert order == sorted(order)
    assert 280 < len(set(order)) < 297


def test_settling_costs_light(make_bench):
    clean = quiet_frames(make_bench, TriggerModel()).frames.mean()
    slow = quiet_frames(make_bench, TriggerModel(), settle_us=100.0).frames.mean()
    assert slow / clean == pytest.approx(300 / 400, rel=0.01)


def test_a_dmd_cannot_be_faster_than_its_patterns(make_bench):
    with make_bench(dmd={"pattern_us": 700.0}, timing=TIMING) as bench, bench.open_session(CONFIG) as session:
        assert session.describe().frame_us == 700.0
        assert bench.describe().timing.pattern_us == 700.0
