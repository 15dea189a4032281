"""Compile the kernels of the simulator and of phase retrieval before the tests, which then find them in Numba's cache.

Under the measurement of coverage the compiler takes half as long again, and two processes of tests would both compile
what they need first. `python tests/compile_kernels.py` does it in two processes of its own.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

import opu
from opu.calibration.matrix import PhaseRetrieval
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset

GROUPS = (
    (("aurora", "explicit"), ("ideal", "explicit"), ("laboratory", "explicit"), ("interferometer", "explicit")),
    (
        ("aurora", "structured"),
        ("aurora", "matrix_free"),
        ("aurora", "gaussian"),
        ("aurora", "layered"),
        ("holography", "explicit"),
    ),
)


def use(name, medium):
    """Take frames of a small bench, with a medium that stands still and one that moves."""
    model = preset(name)
    model = replace(
        model, dmd=replace(model.dmd, rows=64, columns=64), camera=replace(model.camera, rows=64, columns=64)
    )
    moving = DriftModel(correlation_time_s=0.1, vibration_rms_rad=0.1)
    patterns = np.random.default_rng(0).integers(0, 2, (30, 100))
    for drift in (DriftModel(), moving):
        with SimulatedBench(replace(model, drift=drift), seed=7, medium=medium) as bench:
            config = opu.SessionConfig(n_features=100, n_outputs=600)
            with bench.open_session(config) as session:
                session.project(patterns)
                session.project(patterns[:2])
            bench.capability(opu.GroundTruth).photoelectrons(config, patterns)


def use_all(group):
    """Use the benches of a group."""
    for name, medium in group:
        use(name, medium)


def retrieve():
    """Retrieve the phases of a small matrix."""
    generator = np.random.default_rng(0)
    patterns = generator.random((96, 16)) < 1 / 3
    fields = patterns @ (generator.normal(size=(16, 8)) + 1j * generator.normal(size=(16, 8)))
    PhaseRetrieval().fit(patterns, np.abs(fields) ** 2)


def main():
    """Run as a command."""
    with ProcessPoolExecutor(len(GROUPS)) as pool:
        retrieved = pool.submit(retrieve)
        list(pool.map(use_all, GROUPS))
        retrieved.result()
    sys.stdout.write("kernels compiled\n")


if __name__ == "__main__":
    main()
