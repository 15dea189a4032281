"""Drift of the medium: its law between any two times, and that it is a function of time alone."""

import dataclasses
import math
import threading

import msgspec
import numpy as np
import pytest

import opu
from opu.errors import ConfigError, MediumChangedError
from opu.sim.drift import DriftModel, epochs_at, track, vibration_angle
from opu.sim.media.base import EpochTrack

N_BLOCKS = 16_245


def unchanged(model, earlier_s, later_s, seed=3):
    """The share of blocks with the same entries at two times: the correlation of the field."""
    return (epochs_at(model, seed, N_BLOCKS, earlier_s) == epochs_at(model, seed, N_BLOCKS, later_s)).mean()


@pytest.mark.parametrize("plateau", [0.0, 0.3])
@pytest.mark.parametrize("start_s", [0.0, 7.0, 1234.5])
@pytest.mark.parametrize("lag_s", [0.0, 1.0, 10.0, 40.0])
def test_the_unchanged_share_falls_exponentially_from_any_time(start_s, lag_s, plateau):
    model = DriftModel(correlation_time_s=10.0, plateau=plateau)
    expected = (1 - plateau) * math.exp(-lag_s / 10) + plateau
    assert unchanged(model, start_s, start_s + lag_s) == pytest.approx(expected, abs=0.012)
    assert model.correlation(start_s, start_s + lag_s) == pytest.approx(expected)


def test_warm_up_renews_fast_at_first():
    model = DriftModel(correlation_time_s=1000.0, warm_up_renewals=1.0, warm_up_s=50.0)
    for earlier_s, later_s in ((0, 50), (50, 100), (500, 550)):
        lag = 0.05 + math.exp(-earlier_s / 50) - math.exp(-later_s / 50)
        assert unchanged(model, earlier_s, later_s) == pytest.approx(math.exp(-lag), abs=0.012)


def test_a_jump_renews_a_share_at_once_and_for_good():
    model = DriftModel(jump_times_s=(5.0, 8.0), jump_share=0.4)
    assert unchanged(model, 0.0, 4.99) == 1
    assert unchanged(model, 4.99, 5.0) == pytest.approx(0.6, abs=0.015)
    assert unchanged(model, 5.0, 7.9) == 1
    assert unchanged(model, 0.0, 100.0) == pytest.approx(0.36, abs=0.015)


def test_events_after_a_jump_are_not_undone_by_it():
    model = DriftModel(correlation_time_s=10.0, jump_times_s=(5.0,))
    assert unchanged(model, 4.9, 5.1) == 0
    assert unchanged(model, 5.1, 15.1) == pytest.approx(math.exp(-1), abs=0.012)


MODELS = [
    DriftModel(correlation_time_s=2.0, plateau=0.2),
    DriftModel(correlation_time_s=5.0, jump_times_s=(3.5, 3.6), jump_share=0.3),
    DriftModel(jump_times_s=(4.0,), jump_share=0.5),
    DriftModel(warm_up_renewals=3.0, warm_up_s=2.0),
]


@pytest.mark.parametrize("model", MODELS)
def test_a_track_is_the_state_at_every_time_and_its_parts_are_tracks(model):
    times_s = 3.0 + 0.07 * np.arange(40)
    whole = track(model, 3, 500, times_s)
    assert (whole.frames >= 1).all()
    for time_s, epochs in zip(times_s, whole.by_frame(), strict=True):
        np.testing.assert_array_equal(epochs, epochs_at(model, 3, 500, time_s))
    for start, stop in ((0, 13), (13, 40), (39, 40)):
        part = track(model, 3, 500, times_s[start:stop])
        other = whole.part(start, stop)
        for one, two in zip(part.by_frame(), other.by_frame(), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_still_medium_has_a_still_track():
    found = track(DriftModel(), 3, 500, np.arange(10.0))
    assert isinstance(found, EpochTrack)
    assert not found.initial.any()
    assert len(found.frames) == 0


def test_seeds_and_blocks_renew_on_their_own():
    model = DriftModel(correlation_time_s=1.0)
    one, other = (epochs_at(model, seed, N_BLOCKS, 0.7) != 0 for seed in (3, 4))
    agreement = (one == other).mean()
    p = 1 - math.exp(-0.7)
    assert agreement == pytest.approx(p**2 + (1 - p) ** 2, abs=0.02)
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03


def test_vibration_has_its_strength_and_its_band():
    model = DriftModel(vibration_rms_rad=0.1, vibration_hz=(20.0, 200.0))
    times_s = np.arange(0, 20, 1e-3)
    angle = vibration_angle(model, 3, times_s)
    assert angle.std() == pytest.approx(0.1, rel=0.05)
    spectrum = np.abs(np.fft.rfft(angle)) ** 2
    frequency_hz = np.fft.rfftfreq(len(times_s), 1e-3)
    inside = (frequency_hz > 19) & (frequency_hz < 201)
    assert spectrum[inside].sum() > 0.99 * spectrum.sum()


@pytest.mark.parametrize(
    "wrong",
    [
        {"correlation_time_s": 0.0},
        {"plateau": 1.5},
        {"jump_share": -1.0},
        {"jump_times_s": (2.0, 1.0)},
        {"warm_up_s": 0},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        DriftModel(**wrong)


# A frame a second, and mirrors enough that the share of unchanged blocks is close to its mean.
SMALL = opu.SessionConfig(n_features=20, n_outputs=200)
SLOW = opu.device.Timing(
    readout_us=0.0, frame_overhead_us=999_600.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0
)
BRIGHT = {"bit_depth": 16, "gain_dn_per_e": 1.0, "full_well_e": np.inf, "shot_noise": False, "read_noise_e": 0.0}


@pytest.mark.parametrize("medium", ["explicit", "matrix_free", "structured"])
def test_speckle_of_one_pattern_decorrelates_as_g1_squared(make_bench, medium):
    """Acceptance A7: field correlation within 0.01 of exp(-t / tau), intensity of exp(-2 t / tau)."""
    tau_s, lags = 8.0, np.arange(9)
    model = DriftModel(correlation_time_s=tau_s)
    dmd = {"rows": 1024, "columns": 512}
    pattern = np.tile(np.random.default_rng(0).integers(0, 2, 256), (9, 1))
    config = opu.SessionConfig(n_features=256, n_outputs=4000)
    options = {"timing": SLOW, "camera": BRIGHT, "drift": model, "medium": medium, "electrons": 2000}
    with make_bench(dmd=dmd, **options) as bench, bench.open_session(config) as session:
        frames = session.project(pattern).frames.astype(float)
        path = bench.table.prepare(session.layout, session.settings.pixels)
        g1 = np.zeros((24, 3))
        for start, row in enumerate(g1):  # over many starts, long after each other
            fields = []
            for lag in (0.0, 0.5, 1.0):
                now = epochs_at(model, 7, 1024 * 512 // 64, (5 * start + lag) * tau_s)
                found = path.medium.fields(pattern[:1].astype(np.uint8), EpochTrack.still(1, now))
                fields.append((found.real + 1j * found.imag)[0])
            row[:] = [np.vdot(fields[0], f).real / np.linalg.norm(fields[0]) / np.linalg.norm(f) for f in fields]
    # 4,096 lit blocks and 4,000 pixels: a standard error of about 0.014 for one start.
    np.testing.assert_allclose(g1.mean(axis=0), np.exp([0, -0.5, -1]), atol=0.01)
    np.testing.assert_allclose((g1**2).mean(axis=0), np.exp([0, -1, -2]), atol=0.01)
    shares = [(epochs_at(model, 7, 8192, 0.0) == epochs_at(model, 7, 8192, lag)).mean() for lag in lags]
    np.testing.assert_allclose(shares, np.exp(-lags / tau_s), atol=0.01)
    intensity = [np.corrcoef(frames[0], frame)[0, 1] for frame in frames]
    np.testing.assert_allclose(intensity, np.exp(-2 * lags / tau_s), atol=0.05)


def test_a_jump_of_the_medium_ends_a_linear_map(make_bench):
    timing = opu.device.Timing(
        readout_us=0.0, frame_overhead_us=0.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0
    )
    patterns = np.random.default_rng(0).integers(0, 2, (30, 20))
    with make_bench(drift=DriftModel(jump_times_s=(2.0,)), timing=timing) as bench:
        linear_map = opu.fit_linear_map(bench, 20, 100)
        with opu.LinearProjector(bench, linear_map) as projector, bench.open_session(SMALL) as session:
            before = projector.project(patterns).output
            assert bench.describe().medium.epoch == linear_map.medium_epoch == 0
            while session.project(np.ones((500, 20))).provenance.device_start_us < 2e6:
                pass
            with pytest.raises(MediumChangedError, match=r"epoch 0, and this is 1"):
                projector.project(patterns)
        assert bench.describe().medium.epoch == 1
        renewed = opu.fit_linear_map(bench, 20, 100)
        assert renewed.medium_epoch == 1
        with opu.LinearProjector(bench, renewed) as projector:
            after = projector.project(patterns).output
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.3


def test_the_truth_follows_the_drift(make_bench):
    model = DriftModel(correlation_time_s=1.0)
    config = opu.SessionConfig(n_features=32, n_outputs=500)
    with make_bench(drift=model) as bench:
        truth = bench.capability(opu.GroundTruth)
        pattern = np.ones((1, 32))
        early, late = (truth.photoelectrons(config, pattern, device_time_s=time_s)[0] for time_s in (0.0, 30.0))
        with bench.open_session(config) as session:
            pixels = session.settings.pixels
        entries = truth.entries(pixels, np.arange(4096), device_time_s=30.0)
    field = np.abs(entries.sum(axis=1)) ** 2
    assert abs(np.corrcoef(early, late)[0, 1]) < 0.25
    assert np.corrcoef(field, late)[0, 1] > 0.9999


# Frames of 50 ms, on a medium that is another one after a few calls.
RESTLESS = DriftModel(correlation_time_s=2.0, jump_times_s=(1.0, 2.5), jump_share=0.3, vibration_rms_rad=0.2)
CALLS = opu.device.Timing(
    readout_us=0.0, frame_overhead_us=49_600.0, call_overhead_us=100_000.0, latency_us=0.0, reconfigure_us=50_000.0
)
WIDE = opu.SessionConfig(n_features=40, n_outputs=300, region=opu.Region(100, 100, 20, 20))
SESSIONS = {
    "wide": WIDE,
    "wide, half the exposure": msgspec.structs.replace(WIDE, exposure_us=200.0),  # on the same light path
    "narrow": opu.SessionConfig(n_features=17, n_outputs=90, region=opu.Region(100, 100, 10, 20)),
}


def restless(make_bench, medium, drift=RESTLESS):
    """A bench that drifts, jumps and vibrates, with a camera that counts the mean electrons."""
    camera = BRIGHT | {"dark_current_e_per_s": 0.0}
    dmd = {"rows": 32, "columns": 32, "contrast": 100.0, "stuck_on_fraction": 0.01}
    return make_bench(drift=drift, timing=CALLS, camera=camera, dmd=dmd, medium=medium, electrons=2000)


def batch(config, n_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (n_frames, config.n_features))


def truth_of(bench, config, patterns, provenance):
    """What the ground truth says of the frames of a call, each at its own device time."""
    truth = bench.capability(opu.GroundTruth)
    lead_us = provenance.device_us - provenance.n_frames * provenance.frame_us
    times_s = (provenance.device_start_us + lead_us + provenance.frame_us * np.arange(len(patterns))) * 1e-6
    mean_e = [
        truth.photoelectrons(config, pattern[np.newaxis], device_time_s=time_s)[0]
        for pattern, time_s in zip(patterns, times_s, strict=True)
    ]
    return np.floor(np.stack(mean_e) + 0.5)


@pytest.mark.parametrize("vibration_rms_rad", [0.2, 0.0])  # without it, media that can end in light do so
@pytest.mark.parametrize("medium", ["explicit", "matrix_free", "gaussian", "structured", "layered"])
def test_sessions_see_one_medium_at_the_time_of_one_clock(make_bench, medium, vibration_rms_rad):
    drift = dataclasses.replace(RESTLESS, vibration_rms_rad=vibration_rms_rad)
    with restless(make_bench, medium, drift) as bench:
        sessions = {name: bench.open_session(config) for name, config in SESSIONS.items()}
        clock_us, epochs = 0.0, []
        for call, name in enumerate(["wide", "narrow", "wide, half the exposure", "narrow", "wide", "narrow"] * 2):
            patterns = batch(SESSIONS[name], 3, call)
            projection = sessions[name].project(patterns)
            frames, provenance = projection.frames, projection.provenance
            assert provenance.device_start_us == clock_us
            clock_us += provenance.device_us
            assert bench.device_clock_us == clock_us
            jumped = sum(jump_s <= clock_us * 1e-6 for jump_s in RESTLESS.jump_times_s)
            assert provenance.medium_epoch == bench.describe().medium.epoch == jumped
            epochs.append(jumped)
            assert frames.std() > 100
            np.testing.assert_array_equal(frames, truth_of(bench, SESSIONS[name], patterns, provenance))
    assert set(epochs) == {0, 1, 2}


@pytest.mark.parametrize("medium", ["explicit", "matrix_free", "structured"])
def test_what_other_sessions_did_before_does_not_matter(make_bench, medium):
    """The light belongs to a device time, however the clock came there."""
    last = batch(WIDE, 4)
    found = []
    for before in (["wide", "narrow", "wide"], ["narrow", "wide", "wide"], ["narrow"] * 4):
        with restless(make_bench, medium) as bench:
            sessions = {name: bench.open_session(config) for name, config in SESSIONS.items()}
            for name in before:
                sessions[name].project(batch(SESSIONS[name], 5))
            idle = sessions["narrow"]  # brings the clock to the same time, with the bench set up for it
            frame_us = idle.project(batch(SESSIONS["narrow"], 1)).provenance.frame_us
            left_us = 4e6 - bench.device_clock_us - CALLS.call_overhead_us
            idle.project(batch(SESSIONS["narrow"], int(left_us / frame_us)))
            found.append((bench.device_clock_us, sessions["wide"].project(last, first_frame_index=7)))
    clocks_us = [clock_us for clock_us, _ in found]
    assert clocks_us[0] == clocks_us[1] == clocks_us[2]
    for _, projection in found[1:]:
        np.testing.assert_array_equal(projection.frames, found[0][1].frames)
        assert projection.provenance.medium_epoch == found[0][1].provenance.medium_epoch


def test_sessions_of_several_threads_share_the_clock(make_bench):
    with restless(make_bench, "explicit") as bench:
        found = []

        def work(name, seed):
            patterns = batch(SESSIONS[name], 2, seed)
            with bench.open_session(SESSIONS[name]) as session:
                found.extend((name, patterns, session.project(patterns)) for _ in range(4))

        threads = [threading.Thread(target=work, args=(name, seed)) for seed, name in enumerate(SESSIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert len(found) == 12
        clock_us = 0.0
        for name, patterns, projection in sorted(found, key=lambda one: one[2].provenance.device_start_us):
            frames, provenance = projection.frames, projection.provenance
            assert provenance.device_start_us == clock_us
            clock_us += provenance.device_us
            np.testing.assert_array_equal(frames, truth_of(bench, SESSIONS[name], patterns, provenance))
        assert bench.device_clock_us == clock_us
