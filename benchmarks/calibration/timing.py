"""Frames out of order, and the window of the trigger: C10, C11."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.calibration.cases import Check, Estimate
from opu.calibration.trigger import latency, trigger_window
from opu.sim.device import SimulatedBench
from opu.sim.models import preset
from opu.sim.trigger import TriggerModel
from opu.testing import Faults, FaultyDevice

__all__ = ["CASES", "ESTIMATES"]

AURORA = preset("aurora")
FRAMES, CLEAN_FRAMES, LATENCY_FRAMES = 2047, 10_235, 512
LATENCIES = range(33)
KINDS = ("dropped", "duplicated", "swapped")


def found_faults(seed, faults):
    """Return how many faults of each kind a device had in the frames that came, and which share was found."""
    with FaultyDevice(SimulatedBench(AURORA, seed=seed), faults, seed=seed) as device:
        sources = device.sources(0, 0, FRAMES)
        result = latency(device, n_frames=FRAMES, noise_key=0)
    arrived = sources[sources >= 0]
    step = np.diff(arrived)
    injected = {
        "dropped": arrived.max() + 1 - len(np.unique(arrived)),
        "duplicated": (step == 0).sum(),
        "swapped": 2 * (step == -1).sum(),
    }
    found = {name: round(result.quantities[f"{name}_share"].value * FRAMES) for name in KINDS}
    return injected, found


def c10(seed):
    """Compare latency, losses, repeats and swaps with what was injected; a clean device has none."""
    wrong = 0
    for late in LATENCIES:
        with FaultyDevice(SimulatedBench(AURORA, seed=seed), Faults(late_frames=late)) as device:
            wrong += latency(device, n_frames=LATENCY_FRAMES, noise_key=seed).value != late
    with SimulatedBench(AURORA, seed=seed) as device:
        clean = latency(device, n_frames=CLEAN_FRAMES, noise_key=seed)
    checks = {
        "latency": Check(float(wrong), (0, 0), "latencies of 0 to 32 frames, of 33, that were found wrong"),
        "false_alarms": Check(
            sum(clean.quantities[f"{name}_share"].value for name in (*KINDS, "unknown")) * CLEAN_FRAMES,
            (0, 0),
            f"faults that were found in {CLEAN_FRAMES} clean frames",
        ),
    }
    for name in KINDS:
        injected, found = found_faults(seed, Faults(**{f"{name}_fraction": 0.005}))
        missed = abs(injected[name] - found[name]) + sum(found[other] for other in KINDS if other != name)
        share = 1 - missed / max(injected[name], 1)  # there may be none
        checks[name] = Check(share, (0.999, None), f"{name} frames that were found, of 0.5 %", judged="mean")
    return checks


def bench_with_latency(latency_us, seed, jitter_us=0.0):
    """Return a bench whose camera opens so much later than the trigger."""
    return SimulatedBench(replace(AURORA, trigger=TriggerModel(latency_us=latency_us, jitter_us=jitter_us)), seed=seed)


def window_of(latency_us):
    """Return the delays between which an exposure of aurora sees its own pattern alone."""
    frame_us, exposure_us = AURORA.timing.frame_us(400.0), 400.0
    return AURORA.dmd.settle_us - latency_us, frame_us - exposure_us - latency_us


def c11(seed):
    """Measure the centre of the window, and the ghost at the best delay."""
    latency_us = float(np.random.default_rng(seed).uniform(-60, 40))
    with bench_with_latency(latency_us, seed, jitter_us=1.0) as device:
        window = trigger_window(device, sweep_delay=True).quantities["best_delay_us"]
    with bench_with_latency(latency_us + window.value, seed) as device:
        aligned = trigger_window(device)
    centre_us = float(np.mean(window_of(latency_us)))
    return {
        "centre": Check(
            window.value - centre_us,
            (-5.0, 5.0),
            "error of the plateau's centre, in us",
            uncertainty=window.uncertainty,
        ),
        "ghost": Check(
            aligned.value, (None, 0.001), "ghost of a neighbour at the best delay", uncertainty=aligned.uncertainty
        ),
    }


def estimate_window(name, seed):
    """Measure the window of a camera that opens a little too early, and compare a number with the truth."""
    latency_us = -float(np.random.default_rng(seed).uniform(0.5, 20.0))
    with bench_with_latency(latency_us, seed) as device:
        result = trigger_window(device, noise_key=seed, sweep_delay=True)
    start_us, stop_us = window_of(latency_us)
    ghost = -latency_us / 400
    truth = {
        "ghost_before": ghost / (1 - ghost),
        "best_delay_us": (start_us + stop_us) / 2,
        "window_start_us": start_us,
        "window_stop_us": stop_us,
    }
    quantity = result.quantities[name]
    return Estimate(quantity.value, quantity.uncertainty, truth[name])


def estimate_ghost(seed):
    """C11: light of the pattern before."""
    return estimate_window("ghost_before", seed)


def estimate_centre(seed):
    """C11: the best delay."""
    return estimate_window("best_delay_us", seed)


def estimate_start(seed):
    """C11: the first delay of the window."""
    return estimate_window("window_start_us", seed)


def estimate_stop(seed):
    """C11: the last delay of the window."""
    return estimate_window("window_stop_us", seed)


def estimate_lost(seed):
    """C11: the part of an exposure without light, while mirrors settle."""
    settle_us = float(np.random.default_rng(seed).uniform(5.0, 60.0))
    with SimulatedBench(replace(AURORA, dmd=replace(AURORA.dmd, settle_us=settle_us)), seed=seed) as device:
        lost = trigger_window(device, noise_key=seed).quantities["lost_us"]
    return Estimate(lost.value, lost.uncertainty, settle_us)


CASES = {"C10": c10, "C11": c11}
ESTIMATES = {
    "C11 ghost": estimate_ghost,
    "C11 best delay": estimate_centre,
    "C11 window start": estimate_start,
    "C11 window stop": estimate_stop,
    "C11 lost time": estimate_lost,
}
