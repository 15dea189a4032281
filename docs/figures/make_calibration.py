"""Draw the figures of the calibration pages: `python docs/figures/make_calibration.py`, or with the names of some.

Each is the result of a routine on a simulated bench of device seed 7, drawn as in a health report. Needs the extra
`plots`.
"""

import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib as mpl
from threadpoolctl import threadpool_limits

from opu import calibration
from opu.calibration.report.figures import FIGURES
from opu.calibration.watch import MediumWatch
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset
from opu.sim.trigger import TriggerModel
from opu.testing import Faults, FaultyDevice

FOLDER = Path(__file__).parent / "calibration"
SEED = 7
JUMP_S = 11.5
AURORA, LABORATORY = preset("aurora"), preset("laboratory")
HOT = replace(LABORATORY, camera=replace(LABORATORY.camera, hot_fraction=1e-3))
UNSTEADY = replace(AURORA, laser=replace(AURORA.laser, drift_rms=0.01, drift_time_s=1.0, rin=0.0005))
EARLY = replace(AURORA, trigger=TriggerModel(latency_us=-40.0, jitter_us=1.0))
BENT = replace(AURORA, camera=replace(AURORA.camera, quadratic_nonlinearity=-0.03))
DRIFTING = replace(AURORA, drift=DriftModel(correlation_time_s=100.0))


def measure(routine, model=AURORA, **options):
    """Return the result of a routine on a bench."""
    with SimulatedBench(model, seed=SEED) as device:
        return routine(device, **options)


def latency():
    """Return that of a device whose frames are three late, some of them swapped."""
    with FaultyDevice(SimulatedBench(AURORA, seed=SEED), Faults(late_frames=3, swapped_fraction=0.01)) as device:
        return calibration.latency(device)


@cache
def matrix_and_result():
    """Return a transmission matrix and how it did."""
    kept = []
    result = measure(calibration.transmission_matrix, n_features=256, n_outputs=512, on_matrix=kept.append)
    return kept[0], result


def with_matrix(routine, **options):
    """Return the result of a routine on that matrix."""
    return measure(routine, matrix=matrix_and_result()[0], **options)


def tracking():
    """Return that of a medium which forgets meanwhile."""
    with SimulatedBench(DRIFTING, seed=SEED) as device:
        matrix = calibration.measure_transmission_matrix(device, n_features=64, n_outputs=256)
        return calibration.tracking(device, matrix=matrix, n_probes=6000)


def medium_watch():
    """Return that of a medium of which three tenths jump during the fourth of seven routines."""
    model = replace(AURORA, drift=DriftModel(jump_times_s=(JUMP_S,), jump_share=0.3))
    with SimulatedBench(model, seed=SEED) as device:
        watch = MediumWatch(device)
        watch.look("")
        for name in ("dark_frames", "exposure", "ones_range", "repeatability", "grain", "latency", "stability"):
            calibration.ROUTINES[name](device)
            watch.look(name)
        return watch.result()


RESULTS = {
    "dark_frames": lambda: measure(calibration.dark_frames, HOT),
    "exposure": lambda: measure(calibration.exposure),
    "ones_range": lambda: measure(calibration.ones_range, n_features=256),
    "photon_transfer": lambda: measure(calibration.photon_transfer, n_outputs=65_536),
    "linearity": lambda: measure(calibration.linearity, BENT),
    "repeatability": lambda: measure(calibration.repeatability, LABORATORY),
    "grain": lambda: measure(calibration.grain, LABORATORY),
    "speckle_statistics": lambda: measure(calibration.speckle_statistics),
    "dmd_contrast": lambda: measure(calibration.dmd_contrast, LABORATORY),
    "latency": latency,
    "trigger_window": lambda: measure(calibration.trigger_window, EARLY, sweep_delay=True),
    "stability": lambda: measure(calibration.stability, LABORATORY, duration_s=7200.0, side_px=64),
    "laser_power": lambda: measure(calibration.laser_power, UNSTEADY),
    "linear_mode": lambda: measure(calibration.linear_mode),
    "feedback": lambda: measure(calibration.feedback),
    "transmission_matrix": lambda: matrix_and_result()[1],
    "held_out": lambda: with_matrix(calibration.held_out),
    "singular_values": lambda: with_matrix(calibration.singular_values),
    "focusing": lambda: with_matrix(calibration.focusing, n_targets=200),
    "tracking": tracking,
    "medium_watch": medium_watch,
}


def make(name, folder=FOLDER):
    """Draw a figure into a folder; the same picture gives the same bytes."""
    with threadpool_limits(1, user_api="blas"):
        figure = FIGURES[name](RESULTS[name]())
    with mpl.rc_context({"svg.hashsalt": "openopu", "savefig.dpi": 110}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RESULTS:
        start_s = time.perf_counter()
        make(name)
        print(f"{FOLDER / name}.svg: {time.perf_counter() - start_s:.1f} s")
