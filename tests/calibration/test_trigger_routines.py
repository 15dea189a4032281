"""Frames out of order are found and named, and the window of the trigger is measured."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

import opu
from opu.calibration.frame_order import PRBS_LENGTH, UNKNOWN, find_frame_faults, frame_sequence, identify_frames
from opu.calibration.trigger import find_ghost, find_plateau, latency, trigger_window
from opu.device import Limits
from opu.remote.server import OpuServer
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
from opu.sim.trigger import TriggerModel
from opu.testing import Faults, FaultyDevice

AURORA = preset("aurora")
SENT = frame_sequence(100_000, 64).levels


def bench(seed=3, **fields):
    return SimulatedBench(replace(AURORA, **fields), seed=seed)


def trigger(**fields):
    return bench(trigger=TriggerModel(**fields))


def test_the_sequence_is_bright_and_dark_by_a_maximal_sequence():
    bright = np.where(SENT[:PRBS_LENGTH] >= 4, 1, -1)
    spectrum = np.abs(np.fft.fft(bright)) ** 2
    correlation = np.fft.ifft(spectrum).real.round()
    assert correlation[0] == 2047
    assert (correlation[1:] == -1).all()


def test_three_patterns_in_a_row_differ():
    for distance in (1, 2):
        assert (SENT[distance:] != SENT[:-distance]).all()
    patterns = frame_sequence(500, 64).patterns
    assert len(np.unique(patterns.sum(axis=1))) == 8


def test_clean_frames_have_no_faults():
    faults = find_frame_faults(SENT, SENT)
    assert np.array_equal(faults.sources, np.arange(len(SENT)))
    assert len(faults.dropped) == len(faults.duplicated) == len(faults.swapped) == len(faults.unknown) == 0


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_every_loss_is_found_at_its_place(share):
    lost = np.flatnonzero(np.random.default_rng(1).random(len(SENT)) < share)
    faults = find_frame_faults(np.delete(SENT, lost), SENT)
    assert np.isin(lost[lost < len(SENT) - 100], faults.dropped).mean() >= 0.999
    assert len(faults.dropped) <= len(lost)
    assert len(faults.duplicated) == len(faults.swapped) == 0


def test_every_repeat_is_found_at_its_place():
    twice = np.random.default_rng(2).random(len(SENT)) < 0.005
    sources = np.repeat(np.arange(len(SENT)), 1 + twice)[: len(SENT)]
    faults = find_frame_faults(SENT[sources], SENT)
    assert np.array_equal(faults.duplicated, np.flatnonzero(np.diff(sources) == 0) + 1)
    assert np.array_equal(faults.sources, sources)


def test_every_swap_is_found_at_its_place():
    places = 10 * np.flatnonzero(np.random.default_rng(3).random(9_000) < 0.05)
    sources = np.arange(len(SENT))
    sources[places], sources[places + 1] = places + 1, places
    faults = find_frame_faults(SENT[sources], SENT)
    assert np.array_equal(faults.swapped, places)
    assert np.array_equal(faults.sources, sources)


def test_long_gaps_and_strange_frames_are_told_apart():
    received = np.delete(SENT[:3000], np.arange(700, 790))
    received[1500] = UNKNOWN
    faults = find_frame_faults(received, SENT[:3000])
    assert len(faults.dropped) == 90
    assert faults.unknown.tolist() == [1500]
    assert np.array_equal(faults.sources[1501:1600], np.arange(1591, 1690))


def test_numbers_that_frames_carry_are_names_as_well():
    faults = find_frame_faults([2, 3, 3, 6, 5, 8], range(9), late_frames=-2)
    assert (faults.dropped.tolist(), faults.duplicated.tolist(), faults.swapped.tolist()) == ([4, 7], [2], [3])


@pytest.mark.parametrize("late", [-5, 0, 1, 32])
def test_latency_and_levels_are_read_from_noisy_means(late):
    generator = np.random.default_rng(late + 5)
    sent = SENT[:600]
    means = np.full(600, 3.0)
    source = np.arange(600) - late
    inside = (source >= 0) & (source < 600)
    means[inside] = 5 + 4 * sent[source[inside]]
    found = identify_frames(means + generator.normal(0, 0.2, 600), sent)
    assert found.late_frames == late
    assert found.correlation > 0.99
    assert (found.levels[inside] == sent[source[inside]]).all()


def test_means_without_light_have_no_latency():
    for means in (np.zeros(600), np.random.default_rng(0).normal(size=600)):
        found = identify_frames(means, SENT[:600])
        assert found.late_frames is None
        assert found.likely_late_frames is None


@pytest.mark.parametrize("late", [0, 3, 32])
def test_the_latency_of_a_device_is_exact(late):
    with FaultyDevice(bench(), Faults(late_frames=late)) as device:
        result = latency(device, n_frames=512)
    assert result.value == late
    assert result.passed == (late == 0)
    assert result.frames == 512
    if late:
        [finding] = result.findings
        assert f"{late} frames late" in finding


def test_a_loss_among_the_first_frames_is_no_latency():
    levels = np.concatenate([np.full(5, UNKNOWN), np.delete(SENT[:300], 4)])
    means = np.where(levels == UNKNOWN, 0.0, 5 + 4.0 * levels)
    found = identify_frames(means, SENT[:305])
    assert found.late_frames == 5
    assert find_frame_faults(found.levels, SENT[:305], late_frames=5).dropped.tolist() == [4]


def test_faults_are_named_with_their_share_and_places():
    faults = Faults(late_frames=4, dropped_fraction=0.004, duplicated_fraction=0.004, swapped_fraction=0.01)
    with FaultyDevice(bench(), faults, seed=5) as device:
        result = latency(device)
    said = " ".join(result.findings)
    for words in ("4 frames late", "are lost", "come twice", "swapped with their neighbour", "from places"):
        assert words in said
    assert 0 < result.quantities["swapped_share"].value < 0.03


def test_the_count_of_the_device_is_set_beside_that_of_lost_frames():
    with trigger(dropped_fraction=0.005) as device:
        result = latency(device)
    assert "The device itself counts" in result.findings[0]
    assert "none" not in result.findings[0]


def test_a_dark_camera_gives_no_latency():
    with FaultyDevice(bench(), Faults(dark_camera=True)) as device:
        result = latency(device, n_frames=256)
    assert np.isnan(result.value)
    assert "camera is dark" in result.findings[0]


def test_exposures_of_two_patterns_are_named():
    with trigger(latency_us=1700.0) as device:
        result = latency(device, n_frames=512)
    assert result.value == -3
    assert "meets two patterns" in result.findings[0]


@pytest.mark.parametrize("routine", [latency, trigger_window])
@pytest.mark.parametrize("name", ["aurora", "ideal", "laboratory"])
def test_a_healthy_device_passes(small_preset, routine, name):
    with SimulatedBench(small_preset(name), seed=11) as device:
        result = routine(device, n_outputs=256)
    assert result.passed, result
    assert not result.findings


def test_a_ghost_is_seen_on_top_of_other_light():
    cycle = np.full((200, 8), 10.0)
    cycle[:, 3], cycle[:, 4] = 40.0, 10.06
    cycle += np.random.default_rng(0).normal(0, 0.05, cycle.shape)
    ghost = find_ghost(cycle)
    assert ghost.place == 3
    assert ghost.before == pytest.approx(0.002, abs=4 * ghost.before_error)
    assert ghost.before > 5 * ghost.before_error
    assert abs(ghost.after) < 4 * ghost.after_error


def test_cycles_out_of_order_are_left_out():
    cycle = np.full((50, 8), 10.0)
    cycle[:, 3] = 40.0
    cycle[7, [3, 4]] = cycle[7, [4, 3]]
    ghost = find_ghost(cycle)
    assert (ghost.before, ghost.after) == (0.0, 0.0)
    assert ghost.odd_share == 0.02


def test_the_plateau_does_not_depend_on_where_the_delay_stands_now():
    delays = np.arange(-600.0, 600.0, 15.0)
    light = 7 * np.clip(np.minimum((delays + 370) / 400, (530 - delays) / 400), 0, 1)
    plateau = find_plateau(delays, light, 400.0)
    assert (plateau.start_us, plateau.stop_us) == pytest.approx((30.0, 130.0), abs=0.5)
    nothing = find_plateau(delays, np.zeros(len(delays)), 400.0)
    assert np.isnan(nothing.centre_us)


@pytest.mark.parametrize("latency_us", [-40.0, 0.0, 30.0, 600.0])
def test_the_window_is_where_it_is(latency_us):
    with trigger(latency_us=latency_us, jitter_us=2.0) as device:
        result = trigger_window(device, sweep_delay=True)
    best = result.quantities["best_delay_us"]
    assert best.value == pytest.approx((50 - latency_us + 250) % 500 - 250, abs=5)
    assert best.value == pytest.approx((50 - latency_us + 250) % 500 - 250, abs=5 * best.uncertainty)


def test_the_delay_is_set_back_and_the_advice_helps():
    with trigger(latency_us=-40.0) as device:
        control = device.capability(opu.DeviceControl)
        control.change(opu.SettingsChange(trigger_delay_us=1.5))
        wrong = trigger_window(device, sweep_delay=True)
        assert control.settings().trigger_delay_us == 1.5
        assert "pattern before" in wrong.findings[0]
        control.change(opu.SettingsChange(trigger_delay_us=wrong.quantities["best_delay_us"].value))
        assert trigger_window(device).passed


def test_the_delay_of_others_is_left_alone_unless_it_is_asked_for(monkeypatch):
    with bench() as device:
        moved = []
        monkeypatch.setattr(device.capability(opu.DeviceControl), "change", moved.append)
        result = trigger_window(device)
    assert moved == []
    assert set(result.quantities) == {"ghost_before", "ghost_after", "lost_us"}


def test_moving_mirrors_cost_light():
    with bench(dmd=replace(AURORA.dmd, settle_us=60.0)) as device:
        result = trigger_window(device)
    lost = result.quantities["lost_us"]
    assert lost.value == pytest.approx(60, abs=1)
    assert "60 us of an exposure of 400 us see no light" in result.findings[0]


def test_without_a_delay_to_be_set_the_ghost_is_measured(monkeypatch):
    with trigger(latency_us=140.0) as device:
        control = device.capability(opu.DeviceControl)
        monkeypatch.setattr(control, "limits", dict)
        result = trigger_window(device, sweep_delay=True)
    assert "best_delay_us" not in result.quantities
    assert result.value == pytest.approx(0.1 / 0.9, abs=0.005)
    assert "pattern after" in result.findings[0]


def test_light_that_is_out_of_order_is_no_ghost():
    with FaultyDevice(bench(), Faults(swapped_fraction=0.05)) as device:
        result = trigger_window(device)
    assert "out of order" in result.findings[0]
    assert result.value < 0.001


@pytest.mark.parametrize("light", [10, 1e4])
def test_a_camera_that_saturates_is_named_for_it(light):
    fixed = Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us")
    laser = replace(AURORA.laser, electrons_per_mirror_us=light * AURORA.laser.electrons_per_mirror_us)
    with bench(laser=laser, exposure_us=fixed) as device:
        order, window = latency(device, n_frames=512), trigger_window(device)
    assert np.isnan(window.value)
    assert "at full scale" in window.findings[0]
    assert order.passed or "overexposed" in order.findings[0]


def test_wells_that_are_full_below_full_scale_are_named():
    with bench(camera=replace(AURORA.camera, full_well_e=2000.0)) as device:
        result = trigger_window(device)
    assert np.isnan(result.value)
    assert "wells of the pixels are full" in result.findings[0]


@pytest.mark.parametrize("routine", [latency, trigger_window])
def test_a_device_of_forty_mirrors_is_measured_with_what_it_has(routine):
    light = AURORA.laser.electrons_per_mirror_us * AURORA.n_mirrors / 40
    dmd, laser = replace(AURORA.dmd, rows=5, columns=8), replace(AURORA.laser, electrons_per_mirror_us=light)
    with bench(dmd=dmd, laser=laser) as device:
        assert routine(device).passed


def test_light_that_stays_on_leaves_the_ghost(monkeypatch):
    with bench() as device:
        description = msgspec.structs.replace(device.describe(), light=("on",))
        monkeypatch.setattr(device, "describe", lambda: description)
        result = trigger_window(device)
    assert result.passed
    assert set(result.quantities) == {"ghost_before", "ghost_after"}


def test_a_ghost_above_the_limit_has_a_finding_even_if_noise_may_be_it():
    with bench(camera=replace(AURORA.camera, read_noise_e=400.0)) as device:
        result = trigger_window(device)
    assert result.value > 0.001
    assert "may be noise" in result.findings[0]


def test_darkness_has_no_window():
    with FaultyDevice(bench(), Faults(dark_camera=True)) as device:
        result = trigger_window(device)
    assert np.isnan(result.value)
    assert "no light" in result.findings[0]


def test_over_a_link_the_numbers_are_the_same_and_a_client_cannot_sweep():
    with bench() as alone:
        here = [latency(alone, n_frames=256), trigger_window(alone)]
    with OpuServer(bench(), "tcp://127.0.0.1:0") as server, opu.open(server.uri) as device:
        there = [latency(device, n_frames=256), trigger_window(device)]
        swept = trigger_window(device, sweep_delay=True)
    for one, two in zip(here, there, strict=True):
        assert (one.value, one.quantities) == (two.value, two.quantities)
    assert "best_delay_us" not in swept.quantities  # the client is no operator
