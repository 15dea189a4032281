"""The power of the laser: what it is set to, drift, noise from frame to frame, warm-up."""

import dataclasses

import msgspec
import numpy as np
import pytest

import opu
from opu.device import SettingsChange
from opu.errors import ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.laser import LaserModel, power_factors
from opu.sim.models import PRESETS
from opu.sim.trigger import TriggerModel

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


@pytest.mark.parametrize(
    "changes",
    [
        {"drift_time_s": 0.0},
        {"power_mw": 0.0, "min_power_mw": 0.0},
        {"power_mw": 0.5},
        {"power_mw": 21.0},
        {"power_mw": np.nan},
        {"min_power_mw": -1.0},
        {"max_power_mw": np.inf},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError):
        LaserModel(electrons_per_mirror_us=1.0, **changes)


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


PATTERNS = np.random.default_rng(0).integers(0, 2, (9, 300))
SHORT = opu.SessionConfig(n_features=300, n_outputs=600, noise_key=9)


def set_power(bench, power_mw):
    bench.capability(opu.DeviceControl).change(SettingsChange(laser_power_mw=power_mw))


def brighter(model, factor):
    """The model of a bench with so much more light in both arms at nominal power."""
    laser, arm = model.laser, model.reference
    return dataclasses.replace(
        model,
        laser=dataclasses.replace(laser, electrons_per_mirror_us=factor * laser.electrons_per_mirror_us),
        reference=dataclasses.replace(arm, electrons_per_us=factor * arm.electrons_per_us),
    )


BENCHES = {name: (name, {}) for name in PRESETS} | {
    "an arm that shines while mirrors move": ("interferometer", {"trigger": TriggerModel(latency_us=70.0)})
}


@pytest.mark.parametrize("factor", [0.25, 4.0])  # square roots, of the arm's amplitude, are exact
@pytest.mark.parametrize("case", BENCHES)
def test_photoelectrons_are_proportional_to_the_power(small_preset, case, factor):
    """A bench at four times the power is to the byte one that has four times the light."""
    name, fields = BENCHES[case]
    model = small_preset(name, **fields)
    model = dataclasses.replace(model, laser=dataclasses.replace(model.laser, max_power_mw=40.0))
    with SimulatedBench(model, seed=7) as bench, SimulatedBench(brighter(model, factor), seed=7) as other:
        set_power(bench, 10 * factor)
        for use in ("none", *model.reference.uses[-1:]):
            config = msgspec.structs.replace(SHORT, reference=use)
            electrons, frames = [], []
            for device in (bench, other):
                electrons.append(device.capability(opu.GroundTruth).photoelectrons(config, PATTERNS, device_time_s=5.0))
                with device.open_session(config) as session:
                    frames.append(session.project(PATTERNS).frames)
            np.testing.assert_array_equal(electrons[0], electrons[1])
            np.testing.assert_array_equal(frames[0], frames[1])


def test_the_mean_doubles_until_pixels_are_full(make_bench):
    camera = {"bit_depth": 12, "gain_dn_per_e": 0.5, "full_well_e": 10_000, "dark_current_e_per_s": 0.0}
    means_e, means_dn, saturated = [], [], []
    with make_bench(camera=camera, electrons=400, laser={"max_power_mw": 640.0}) as bench:
        for power_mw in (10.0, 20.0, 40.0, 640.0):
            set_power(bench, power_mw)
            means_e.append(bench.capability(opu.GroundTruth).photoelectrons(SHORT, PATTERNS))
            with bench.open_session(SHORT) as session:
                projection = session.project(PATTERNS)
            means_dn.append(projection.frames.mean())
            saturated.append(projection.provenance.saturated_fraction)
    np.testing.assert_array_equal(means_e[1], 2 * means_e[0])
    np.testing.assert_array_equal(means_e[3], 64 * means_e[0])
    assert means_dn[1] / means_dn[0] == pytest.approx(2, rel=0.01)
    assert means_dn[2] / means_dn[1] == pytest.approx(2, rel=0.01)
    assert means_dn[3] / means_dn[2] < 8
    assert saturated[0] == 0
    assert saturated[3] > 0.5


def test_frames_at_a_power_are_named_by_their_identity(small_preset):
    """Whatever the power was before."""
    with SimulatedBench(small_preset("aurora"), seed=7) as bench, bench.open_session(SHORT) as session:
        nominal = session.project(PATTERNS, first_frame_index=0).frames
        set_power(bench, 7.3)
        low = session.project(PATTERNS, first_frame_index=0).frames
        set_power(bench, 17)
        set_power(bench, 7.3)
        parts = [session.project(PATTERNS[i : i + 4], first_frame_index=i).frames for i in (0, 4, 8)]
        set_power(bench, 10)
        np.testing.assert_array_equal(session.project(PATTERNS, first_frame_index=0).frames, nominal)
    np.testing.assert_array_equal(np.concatenate(parts), low)
    assert not np.array_equal(low, nominal)


def test_the_power_is_what_a_bench_starts_with(make_bench):
    with make_bench(laser={"power_mw": 3.0, "max_power_mw": 4.0}) as bench:
        control = bench.capability(opu.DeviceControl)
        assert control.settings().laser_power_mw == 3
        assert control.limits()["laser_power_mw"] == opu.device.Limits(minimum=1.0, maximum=4.0, default=3.0, unit="mW")
