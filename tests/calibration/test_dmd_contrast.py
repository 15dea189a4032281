"""Contrast of the mirrors: the estimator on drawn frames, and the routine on benches good and bad."""

import dataclasses
import math

import numpy as np
import pytest

from opu.calibration.mirrors import dmd_contrast, estimate_mirror_contrast
from opu.errors import ConfigError
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

AURORA = preset("aurora")


def bench(contrast=math.inf, seed=3, **parts):
    dmd = dataclasses.replace(AURORA.dmd, rows=285, columns=228, contrast=contrast, off_phase_rad=1.0)
    per_mirror = AURORA.laser.electrons_per_mirror_us * 16
    laser = dataclasses.replace(AURORA.laser, electrons_per_mirror_us=per_mirror)
    return SimulatedBench(dataclasses.replace(AURORA, **{"dmd": dmd, "laser": laser} | parts), seed=seed)


@pytest.mark.parametrize("contrast", [100.0, 1000.0, 3000.0])
def test_the_contrast_is_found(contrast):
    with bench(contrast) as device:
        result = dmd_contrast(device)
    assert result.value == pytest.approx(contrast, rel=0.05)
    assert abs(result.value - contrast) < 3 * result.uncertainty
    # The background has the speckle of the mirrors: one field, eps times.
    assert result.quantities["background_coherence"].value == pytest.approx(1, abs=0.01)
    assert result.quantities["background"].value == pytest.approx(1 / contrast, rel=0.05)


def test_the_error_of_the_contrast_is_its_spread():
    rng = np.random.default_rng(0)
    found = [
        estimate_mirror_contrast(*(rng.normal(mean, 4.0, (16, 64)) for mean in (60.0, 8.0, 20.0, 8.0)))
        for _ in range(1000)
    ]
    values, errors = np.array([(each.contrast, each.contrast_error) for each in found]).T
    assert 0.93 < np.mean(np.abs(values - 52 / 12) < 1.96 * errors) < 0.97
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_grain_and_few_pixels_do_not_matter_since_the_speckle_is_the_same():
    from opu.sim.speckle import SpeckleModel

    with bench(1000.0, speckle=SpeckleModel(grain_area_px=16.0)) as device:
        result = dmd_contrast(device, side_px=32)
    assert result.value == pytest.approx(1000, rel=0.05)


def test_where_nothing_is_seen_there_is_a_lower_bound():
    with bench() as device:
        result = dmd_contrast(device)
    assert math.isnan(result.uncertainty)
    assert "at least this" in result.summary
    assert result.value > 10_000
    assert result.passed


def test_a_low_contrast_is_named_with_what_it_does_to_sparse_patterns():
    """Trap: sparse inputs suffer most from a finite contrast."""
    with bench(100.0) as device:
        result = dmd_contrast(device)
    assert not result.passed
    [finding] = result.findings
    assert "contrast of the mirrors is low" in finding
    assert "0.67 with what they should be" in finding
    assert "speckle of the mirrors" in finding


def test_stray_light_is_told_from_mirrors():
    generator = np.random.default_rng(0)
    lit = 20 * generator.standard_exponential((1, 4000))
    stray = 0.5 * generator.standard_exponential((1, 4000))

    def taken(light):
        return light + generator.normal(8, 0.6, (16, 4000))

    found = estimate_mirror_contrast(taken(lit), taken(0), taken(stray), taken(0))
    assert found.contrast == pytest.approx(40, rel=0.1)
    assert abs(found.coherence) < 4 * found.coherence_error
    found = estimate_mirror_contrast(taken(lit), taken(0), taken(lit / 40), taken(0))
    assert found.contrast == pytest.approx(40, rel=0.02)
    assert found.coherence == pytest.approx(1, abs=0.05)


def test_what_rounding_hides_is_in_the_uncertainty():
    lit, nothing = np.full((8, 100), 100.0), np.zeros((8, 100))
    # A background of a third of a count is rounded away.
    found = estimate_mirror_contrast(lit, nothing, nothing, nothing, exposure_ratio=10.0)
    assert found.is_bound
    assert found.contrast < 10 * 100 / 0.33
    found = estimate_mirror_contrast(lit, nothing, np.full((8, 100), 2.0), nothing)
    assert found.contrast_error / found.contrast > 0.1


@pytest.mark.parametrize("name", ["aurora", "ideal", "generation3", "interferometer", "laboratory"])
def test_a_healthy_bench_has_no_findings(name, small_preset):
    with SimulatedBench(small_preset(name), seed=5) as device:
        result = dmd_contrast(device)
    assert result.passed, (result.value, result.findings)


def test_a_dead_laser_is_named():
    with bench(laser=dataclasses.replace(AURORA.laser, electrons_per_mirror_us=1e-12)) as device:
        result = dmd_contrast(device)
    assert math.isnan(result.value)
    assert not result.passed
    assert "no light with all mirrors on" in result.findings[0]


def test_too_few_frames_are_refused():
    with bench() as device, pytest.raises(ConfigError, match="2 frames of each kind"):
        dmd_contrast(device, n_frames=2)
