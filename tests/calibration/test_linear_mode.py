"""The linear mode is judged without its noise, and what bends it is named."""

import re
from dataclasses import replace

import numpy as np
import pytest

import opu
from opu.calibration.linear import Repeats, judge_additivity, linear_mode, odd_projections
from opu.device import Limits
from opu.errors import ConfigError, UnsupportedError
from opu.remote.server import OpuServer
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset
from opu.testing import Faults, FaultyDevice

AURORA = preset("aurora")


def bench(seed=3, **fields):
    return SimulatedBench(replace(AURORA, **fields), seed=seed)


def projections(noise, bend, seed=0, n_repeats=64):
    """Repeated projections of x1, x2 and x1 + x2 whose sums miss by a share `bend` of the last."""
    generator = np.random.default_rng(seed)
    one, two, wrong = generator.normal(size=(3, 4, 500))
    true = np.stack([one, two, one + two + bend * np.sqrt(2) * wrong])
    return true + noise * generator.normal(size=(n_repeats, *true.shape))


def test_squares_without_noise():
    repeats = Repeats(3.0 + 2 * np.random.default_rng(0).normal(size=(200, 300)))
    assert repeats.signal == pytest.approx(9, rel=0.02)
    assert repeats.total == pytest.approx(13, rel=0.02)
    values = np.random.default_rng(1).normal(size=(5, 40))
    for k in range(5):
        without = Repeats(np.delete(values, k, axis=0))
        assert Repeats(values).signal_without[k] == pytest.approx(without.signal)
        assert Repeats(values).total_without[k] == pytest.approx(without.total)


@pytest.mark.parametrize("bend", [0.0, 0.01, 0.1])
def test_noise_is_no_bias(bend):
    covered = 0
    for seed in range(40):
        found = judge_additivity(projections(0.1, bend, seed))
        truth = bend / np.sqrt(1 + bend**2)
        covered += abs(found.bias - truth) <= 1.96 * found.bias_error + 0.1 * bend  # the pairs are few
        assert found.single == pytest.approx(np.sqrt(truth**2 + 3 * 0.01 / 2), rel=0.1)
        assert found.pearson == pytest.approx((1 + 0.01 / (4 / 3)) ** -0.5, abs=1e-3)
    assert covered >= 36


def test_constant_outputs_are_no_signal():
    assert np.isnan(judge_additivity(np.zeros((8, 3, 2, 50))).bias)


def test_projections_of_something_else_are_found():
    outputs = projections(0.1, 0.0).reshape(64, 12, 500)
    assert len(odd_projections(outputs)) == 0
    outputs[5, 7] *= -1
    outputs[60, 0] = outputs[60, 3]
    assert odd_projections(outputs).tolist() == [5 * 12 + 7, 60 * 12]


@pytest.mark.parametrize("name", ["aurora", "ideal", "laboratory", "interferometer"])
def test_a_healthy_device_passes(small_preset, name):
    with SimulatedBench(small_preset(name), seed=5) as device:
        result = linear_mode(device, n_outputs=128, n_repeats=16)
    assert result.passed, result
    assert not result.findings
    assert result.frames > 16 * 24


def test_the_reference_arm_does_better_than_the_anchor(small_preset):
    with SimulatedBench(small_preset("interferometer"), seed=5) as device:
        arm, anchor = linear_mode(device), linear_mode(device, method="anchor")
        with pytest.raises(UnsupportedError, match=r"off_axis.*pi, anchor"):
            linear_mode(device, method="off_axis")
    assert arm.quantities["pearson"].value > 0.999 > anchor.quantities["pearson"].value > 0.995
    assert "power_change" not in arm.quantities


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"camera": replace(AURORA.camera, full_well_e=2500.0)}, "is not additive: sums miss by"),
        ({"camera": replace(AURORA.camera, black_level_dn=140.0)}, "black level of 140 DN leaves few"),
        ({"laser": replace(AURORA.laser, rin=0.03)}, "differs by 3.* from one frame to the next"),
        ({"laser": replace(AURORA.laser, warm_up_share=0.3, warm_up_s=2.0)}, "light has changed by -"),
        ({"laser": replace(AURORA.laser, electrons_per_mirror_us=1e-12)}, "are dark"),
        ({"drift": DriftModel(correlation_time_s=3.0)}, "the medium or the beam moves"),
        ({"drift": DriftModel(jump_times_s=(1.3,))}, "does not hold any more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_bends_it_is_named(fields, said):
    with bench(**fields) as device:
        result = linear_mode(device)
    assert not result.passed
    [finding] = result.findings
    assert re.search(said, finding), finding


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(swapped_fraction=0.02), "something else than their pattern"),
        (Faults(late_frames=1), "come late"),
        (Faults(dark_camera=True), "are dark"),
    ],
    ids=str,
)
def test_frames_that_go_wrong_are_named(faults, said):
    with FaultyDevice(bench(), faults) as device:
        result = linear_mode(device)
    assert not result.passed
    assert said in result.findings[0]


def test_an_overexposed_camera_is_named_for_it():
    fixed = Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us")
    laser = replace(AURORA.laser, electrons_per_mirror_us=1e4 * AURORA.laser.electrons_per_mirror_us)
    with bench(laser=laser, exposure_us=fixed) as device:
        [finding] = linear_mode(device, n_repeats=16).findings
    assert "overexposed" in finding


@pytest.mark.parametrize("method", [None, "anchor"])
def test_a_device_of_forty_mirrors_is_measured_with_what_it_has(method):
    light = AURORA.laser.electrons_per_mirror_us * AURORA.n_mirrors / 40
    dmd, laser = replace(AURORA.dmd, rows=5, columns=8), replace(AURORA.laser, electrons_per_mirror_us=light)
    with bench(dmd=dmd, laser=laser) as device:
        assert linear_mode(device, method=method, n_repeats=16).passed


def test_a_missed_limit_always_has_a_finding():
    with bench(camera=replace(AURORA.camera, read_noise_e=30.0)) as device:
        for result in (linear_mode(device, n_repeats=16, n_outputs=n_outputs) for n_outputs in (64, 256)):
            assert result.passed != bool(result.findings)


def test_a_dark_anchor_pixel_is_not_divided_by():
    # Trap: 9.5 % of the anchor's pixels are below a tenth of its mean, and are left out of the map.
    with bench() as device:
        result = linear_mode(device, n_outputs=2000)
    assert np.abs(result.data["outputs_single"]).max() < 8 * result.data["outputs_single"].std()


def test_bad_sizes_are_refused():
    with bench() as device, pytest.raises(ConfigError, match="n_repeats is 2"):
        linear_mode(device, n_repeats=2)


def test_over_a_link_the_numbers_are_the_same():
    with bench() as alone:
        here = linear_mode(alone, n_repeats=8)
    with OpuServer(bench(), "tcp://127.0.0.1:0") as server, opu.open(server.uri) as device:
        there = linear_mode(device, n_repeats=8)
    assert (here.value, here.quantities) == (there.value, there.quantities)
