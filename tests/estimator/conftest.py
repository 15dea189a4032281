"""Small simulated benches, quick to compile."""

import dataclasses

import pytest

from opu.sim.device import SimulatedBench
from opu.sim.dmd import DmdModel
from opu.sim.laser import LaserModel
from opu.sim.models import preset


@pytest.fixture(scope="session")
def make_bench():
    """Make an ideal bench of 128 x 128 mirrors, as bright with all of them on as the preset with its million."""
    ideal = preset("ideal")
    light = ideal.laser.electrons_per_mirror_us * ideal.n_mirrors / 128**2

    def make(**dmd):
        model = dataclasses.replace(
            ideal, dmd=DmdModel(rows=128, columns=128, **dmd), laser=LaserModel(electrons_per_mirror_us=light)
        )
        return SimulatedBench(model, seed=3)

    return make


@pytest.fixture(scope="session")
def bench(make_bench):
    with make_bench() as device:
        yield device
