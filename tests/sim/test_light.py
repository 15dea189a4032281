"""Photo-electrons that a medium computes without writing fields are those of its fields, to the bit."""

import dataclasses

import numba
import numpy as np
import pytest

from opu.errors import ConfigError
from opu.parts import MirrorLayout
from opu.sim.dmd import DmdModel, mirror_map
from opu.sim.laser import LaserModel
from opu.sim.light import light_electrons_with_numpy
from opu.sim.media import make_medium
from opu.sim.media.base import EpochTrack
from opu.sim.mirrors import n_blocks
from opu.sim.models import preset

POINTS = np.concatenate([np.arange(700), np.arange(5000, 5100)])
SCALE = 1e-3


@pytest.fixture(scope="module", params=["explicit", "structured"])
def prepared(request):
    model = dataclasses.replace(
        preset("ideal"),
        dmd=DmdModel(rows=64, columns=64),
        camera=dataclasses.replace(preset("ideal").camera, rows=100, columns=100),
    )
    mirrors = mirror_map(model.dmd, MirrorLayout(100, 64, 64), 7)
    medium = make_medium(request.param, 7, model)
    assert medium.ends_in_light(mirrors)
    return medium.prepare(mirrors, POINTS)


def arm_of(n_rows):
    if n_rows == 0:
        return None
    normal = np.random.default_rng(1).normal(size=(2, n_rows, len(POINTS)))
    return (100 * (normal[0] + 1j * normal[1])).astype(np.complex64)


@pytest.mark.parametrize("off", [0, 0.03 - 0.01j])
@pytest.mark.parametrize("arm", ["no arm", "an arm", "an arm of steps"])
@pytest.mark.parametrize("n_frames", [1, 3, 40])
def test_light_is_that_of_the_fields(prepared, off, arm, n_frames):
    features = np.random.default_rng(n_frames).integers(0, 2, (n_frames, 100), dtype=np.uint8)
    steps = arm_of({"no arm": 0, "an arm": 1, "an arm of steps": n_frames}[arm])
    out = np.empty((n_frames, len(POINTS)), np.float32)
    for epoch in (0, 5, 0):  # what the medium remembers belongs to its epoch
        track = EpochTrack.still(n_frames, np.full(n_blocks(64 * 64), epoch, np.uint32))
        expected = light_electrons_with_numpy(prepared.fields(features, track), off, steps, SCALE)
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            out.fill(np.nan)
            prepared.light_electrons(features, track, off, steps, SCALE, out)
            np.testing.assert_array_equal(out, expected)
    assert expected.std() > 0


def test_light_too_faint_for_a_number_is_none(prepared):
    out = np.ones((40, len(POINTS)), np.float32)
    features = np.ones((40, 100), np.uint8)
    prepared.light_electrons(features, EpochTrack.still(40, np.zeros(64, np.uint32)), 0, None, 1e-50, out)
    assert (out == 0).all()


@pytest.mark.parametrize("power", [0.0, -1.0, np.inf, np.nan])
def test_a_laser_without_a_positive_power_is_refused(power):
    with pytest.raises(ConfigError, match="electrons"):
        LaserModel(electrons_per_mirror_us=power)
