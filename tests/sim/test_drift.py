"""Drift of the medium: its law between any two times, and that it is a function of time alone."""

import math

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
