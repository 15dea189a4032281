"""The power of the laser: drift, noise from frame to frame, warm-up."""

import numpy as np
import pytest

import opu
from opu.errors import ConfigError
from opu.sim.laser import LaserModel, power_factors

LASER = LaserModel(electrons_per_mirror_us=1.0)


def factors(times_s, *, seed=1, noise_key=2, first_frame_index=0, **changes):
    return power_factors(
        LaserModel(electrons_per_mirror_us=1.0, **changes), seed, noise_key, first_frame_index, np.asarray(times_s)
    ).astype(float)


def test_an_ideal_laser_is_constant():
    assert (factors(np.arange(10.0)) == 1).all()


def test_slow_drift_has_its_strength_and_correlation_time():
    times_s = np.arange(0, 1000, 0.5)
    runs = np.stack([factors(times_s, seed=seed, drift_rms=0.01, drift_time_s=10.0) - 1 for seed in range(40)])
    assert runs.std() == pytest.approx(0.01, rel=0.05)
    for lag_s in (2.0, 5.0, 10.0, 20.0):
        shift = int(lag_s / 0.5)
        correlation = (runs[:, shift:] * runs[:, :-shift]).mean() / runs.var()
        assert correlation == pytest.approx(np.exp(-lag_s / 10), abs=0.03)
    np.testing.assert_array_equal(
        factors(times_s[100:120], drift_rms=0.01, drift_time_s=10.0),
        factors(times_s, drift_rms=0.01, drift_time_s=10.0)[100:120],
    )


def test_noise_is_white_and_belongs_to_the_frame_number():
    noise = factors(np.zeros(100_000), rin=0.02) - 1
    assert noise.std() == pytest.approx(0.02, rel=0.01)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02
    later = factors(np.full(50, 1e4), rin=0.02, first_frame_index=700) - 1
    np.testing.assert_array_equal(later, noise[700:750])
    assert abs(np.corrcoef(factors(np.zeros(1000), rin=0.02, noise_key=3), noise[:1000])[0, 1]) < 0.15


def test_it_warms_up():
    found = factors([0.0, 100.0, 1e5], warm_up_share=0.1, warm_up_s=100.0)
    np.testing.assert_allclose(found, [1.1, 1 + 0.1 / np.e, 1.0], rtol=1e-6)


def test_power_is_never_negative():
    assert factors(np.zeros(1000), rin=2.0).min() == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError):
        LaserModel(electrons_per_mirror_us=1.0, drift_time_s=0.0)


def test_frames_follow_the_power(make_bench):
    laser = {"rin": 0.1}
    quiet = {"bit_depth": 16, "gain_dn_per_e": 1.0, "full_well_e": np.inf, "shot_noise": False, "read_noise_e": 0.0}
    config = opu.SessionConfig(n_features=32, n_outputs=2000)
    with make_bench(camera=quiet, electrons=2000, laser=laser) as bench, bench.open_session(config) as session:
        frames = session.project(np.tile([0, 1], (50, 16))).frames.astype(float)
        model = bench.table.model.laser
    sums = frames.sum(axis=1)
    expected = power_factors(model, 7, 0, 0, np.zeros(50))
    np.testing.assert_allclose(sums / sums[0], expected / expected[0], rtol=1e-3)
