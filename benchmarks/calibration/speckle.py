"""Speckle, stability, laser power and mirrors: cases C6, C7, C8, C9 and C12."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from benchmarks.calibration.cases import Check, Estimate
from opu.calibration.mirrors import dmd_contrast
from opu.calibration.speckle import disjoint_patterns, grain, speckle_statistics
from opu.calibration.stability import find_jumps, laser_power, repeatability, stability
from opu.device import GroundTruth, Limits
from opu.sim.device import SimulatedBench
from opu.sim.dmd import DmdModel
from opu.sim.drift import DriftModel
from opu.sim.laser import power_factors
from opu.sim.models import preset
from opu.sim.speckle import SpeckleModel

__all__ = ["CASES", "ESTIMATES", "simulated_correlation"]

AURORA = preset("aurora")
GRAIN_PX = 4.0
COARSE_PX = 16.0
FWHM_PER_LENGTH = 1.0215
"""Of the speckle that the simulator makes, whose point spread function ends at a dark ring; a full one has 1.029."""
SMALL_DMD = DmdModel(rows=512, columns=512)
WARM_RATE_PER_S = 0.01 / 600
JUMP_S = 41.0


def run(routine, model, seed, **sizes):
    """Run a routine on a bench."""
    with SimulatedBench(model, seed=seed) as device:
        return routine(device, **sizes)


def grain_width_px(area_px):
    """Return the width of a grain of an area of 4 L^2 / pi."""
    return FWHM_PER_LENGTH * math.sqrt(math.pi / 4 * area_px)


@lru_cache(maxsize=4)
def simulated_correlation(area_px, reach):
    """Return the correlation of the intensity of pixels by lag, shape (2 reach + 1, 2 reach + 1), as simulated.

    From the weights with which the simulator adds up points; a mean over the places of pixels among the points.
    """
    stencil = SpeckleModel(grain_area_px=area_px).stencil
    side, n_samples = stencil.width, len(stencil.quadrature)
    places = np.arange(-reach, stencil.period + reach)
    starts = stencil.window_start(places + stencil.period * (reach + 1))
    starts -= starts.min()
    grid = int(starts.max()) + side

    def weights(row, column):
        phase = (places[row] % stencil.period) * stencil.period + places[column] % stencil.period
        placed = np.zeros((n_samples, grid, grid), np.float32)
        placed[:, starts[row] : starts[row] + side, starts[column] : starts[column] + side] = stencil.weights[phase]
        return placed.reshape(n_samples, -1)

    covariance = np.zeros((2 * reach + 1, 2 * reach + 1))
    for phase in range(min(stencil.period, 3)):
        middle = reach + phase
        own = weights(middle, middle)
        for i in range(2 * reach + 1):
            for j in range(2 * reach + 1):
                common = (own @ weights(i + phase, j + phase).T) ** 2
                covariance[i, j] += stencil.quadrature @ common @ stencil.quadrature
    return covariance / covariance[reach, reach]


def effective_outputs(area_px, n_pixels):
    """Return `M_eff` of the simulator."""
    reach = math.ceil(2.5 * math.sqrt(area_px))
    return n_pixels / simulated_correlation(area_px, reach).sum()


def with_grain(area_px):
    """Return an aurora with grain."""
    return replace(AURORA, speckle=SpeckleModel(grain_area_px=area_px))


def grain_case(seed):
    """C6."""
    result = run(grain, with_grain(GRAIN_PX), seed)
    found = result.quantities
    width_px, outputs = grain_width_px(GRAIN_PX), effective_outputs(GRAIN_PX, 64**2)
    stride = int(found["stride"].value)
    # That of a neighbour along a row, the nearest that is left.
    true_neighbours = simulated_correlation(GRAIN_PX, stride)[stride, 0]
    neighbours = found["neighbour_correlation"]
    return {
        "width": Check(
            result.value / width_px - 1, (-0.05, 0.05), "error of the width of the grain", result.uncertainty / width_px
        ),
        "effective_outputs": Check(
            found["effective_outputs"].value / outputs - 1,
            (-0.1, 0.1),
            "error of the effective number of outputs",
            found["effective_outputs"].uncertainty / outputs,
        ),
        "neighbours": Check(true_neighbours, (None, 0.05), "true correlation of neighbours at the stride"),
        "neighbours_error": Check(
            neighbours.value - true_neighbours, (-0.02, 0.02), "error of the stated one", neighbours.uncertainty
        ),
    }


def too_bright():
    """Return a bench whose camera has one exposure, at which 2 % of the pixels saturate: exp(-3.91)."""
    dn_per_mirror_us = 255 / 3.91 / (AURORA.n_mirrors / 32 * AURORA.exposure_us.default)
    return replace(
        AURORA,
        exposure_us=Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us"),
        laser=replace(AURORA.laser, electrons_per_mirror_us=dn_per_mirror_us / AURORA.camera.gain_dn_per_e),
    )


def named(result, words):
    """Return 1 where a routine did not pass and named the fault."""
    return float(not result.passed and any(words in finding for finding in result.findings))


def statistics_case(seed):
    """C7."""
    result = run(speckle_statistics, AURORA, seed)
    blurred = run(speckle_statistics, with_grain(1 / 0.8), seed)
    two = run(speckle_statistics, replace(AURORA, speckle=SpeckleModel(polarisation=0.0)), seed)
    saturated = run(speckle_statistics, too_bright(), seed)
    return {
        "contrast": Check(result.value - 1, (-0.02, 0.02), "error of the contrast", result.uncertainty),
        "grains": Check(result.quantities["independent_values"].value, (22_500, None), "independent grains"),
        "findings": Check(len(result.findings), (None, 0), "findings on a bench without faults"),
        "pixels": Check(named(blurred, "averages over"), (1, None), "pixels of 0.8 grains named"),
        "modes": Check(named(two, "independent patterns"), (1, None), "two modes named"),
        "saturation": Check(named(saturated, "saturated"), (1, None), "2 % of saturated pixels named"),
    }


def drifting(**drift):
    """Return an aurora that changes."""
    return replace(AURORA, drift=DriftModel(**drift))


def warm_up_end_s(model, start_s):
    """Return when a warm-up adds 1 % in ten minutes to the decay, after a time of the device."""
    drift = model.drift
    excess = drift.warm_up_renewals / drift.warm_up_s / WARM_RATE_PER_S
    return drift.warm_up_s * math.log(excess) - start_s


def probes_until_known(result):
    """Return how many probes after the jump it took to know it, by what was known at each."""
    intensity = result.data["field_correlation"] ** 2
    first_after = int(np.searchsorted(result.data["device_time_s"], JUMP_S))
    for n in range(4, len(intensity) + 1):
        # It may have happened during the probe before, or after.
        if any(abs(jump.last - first_after + 1) <= 1 for jump in find_jumps(intensity[:n, :n])):
            return n - first_after
    return math.inf


def stability_case(seed):
    """C8."""
    slow = run(stability, drifting(correlation_time_s=60.0, plateau=0.1), seed, duration_s=240.0)
    model = drifting(correlation_time_s=20_000.0, warm_up_renewals=1.0, warm_up_s=600.0)
    warm = run(stability, model, seed, duration_s=3600.0)
    warm_up = warm.quantities["warm_up_end"]
    end_s = warm_up_end_s(model, warm.data["device_time_s"][0])
    jumped = run(stability, drifting(jump_times_s=(JUMP_S,)), seed)
    still = run(stability, AURORA, seed)
    return {
        "time": Check(slow.value / 60 - 1, (-0.1, 0.1), "error of the correlation time", slow.uncertainty / 60),
        "intensity_time": Check(
            slow.quantities["intensity_time"].value / 30 - 1, (-0.1, 0.1), "error of that of the intensity"
        ),
        "warm_up_end": Check(
            warm_up.value / end_s - 1, (-0.1, 0.1), "error of the end of the warm-up", warm_up.uncertainty / end_s
        ),
        "jump": Check(probes_until_known(jumped), (None, 2), "probes after which a jump is known"),
        "jump_named": Check(named(jumped, "jumped"), (1, None), "a jump named"),
        "jumps": Check(still.quantities["jumps"].value, (None, 0), "jumps of a medium that keeps still"),
    }


UNSTEADY = replace(AURORA, laser=replace(AURORA.laser, drift_rms=0.02, drift_time_s=3.0))


def true_powers(model, seed, result):
    """Return the power of every frame of a `laser_power` relative to its mean, without noise from frame to frame."""
    last = result.provenance[-1]
    start_us = last.device_start_us + last.device_us - last.n_frames * last.frame_us
    times_s = (start_us + last.frame_us * np.arange(last.n_frames)) * 1e-6
    powers = power_factors(replace(model.laser, rin=0.0), seed, 0, last.first_frame_index, times_s).astype(np.float64)
    return powers / powers.mean()


def true_residual(powers, result, interval=50):
    """Return what the correction really left, root mean square."""
    references = result.data["power"] / result.data["corrected"]
    left = (powers / references)[:-1].reshape(-1, interval)[:, 1:] - 1
    return float(np.sqrt((left**2).mean()))


def power_case(seed):
    """C9."""
    result = run(laser_power, UNSTEADY, seed)
    powers = true_powers(UNSTEADY, seed, result)
    return {
        "residual": Check(true_residual(powers, result), (None, 0.002), "what the correction left"),
        "stated": Check(result.value, (None, 0.002), "what the routine states", result.uncertainty),
        "drift": Check(float(np.ptp(powers)), (0.015, None), "drift that was there, peak to peak", judged="mean"),
    }


def with_contrast(contrast, **camera):
    """Return an aurora whose mirrors are not quite off."""
    dmd = replace(AURORA.dmd, contrast=contrast, off_phase_rad=1.0)
    return replace(AURORA, dmd=dmd, camera=replace(AURORA.camera, **camera))


def mirrors_case(seed):
    """C12."""
    checks = {}
    for contrast in (100, 1000, 3000):
        result = run(dmd_contrast, with_contrast(float(contrast)), seed)
        checks[f"contrast_{contrast}"] = Check(
            result.value / contrast - 1,
            (-0.1, 0.1),
            f"error of a contrast of {contrast}",
            result.uncertainty / contrast,
        )
    low = run(dmd_contrast, with_contrast(100.0), seed)
    none = run(dmd_contrast, AURORA, seed)
    checks["low_named"] = Check(named(low, "contrast of the mirrors is low"), (1, None), "a contrast of 100 named")
    checks["bound"] = Check(none.value, (3000, None), "lower bound without a background")
    return checks


CASES = {
    "C6": grain_case,
    "C7": statistics_case,
    "C8": stability_case,
    "C9": power_case,
    "C12": mirrors_case,
}


def estimate(found, truth):
    """Return what was stated beside the truth."""
    return Estimate(found.value, found.uncertainty, truth)


def grain_width(seed):
    return estimate(run(grain, with_grain(COARSE_PX), seed), grain_width_px(COARSE_PX))


def grain_outputs(seed):
    result = run(grain, with_grain(COARSE_PX), seed)
    return estimate(result.quantities["effective_outputs"], effective_outputs(COARSE_PX, 64**2))


def contrast(seed):
    return estimate(run(speckle_statistics, AURORA, seed), 1.0)


def correlation_time(seed):
    model = replace(drifting(correlation_time_s=60.0, plateau=0.1), dmd=SMALL_DMD)
    return estimate(run(stability, model, seed, duration_s=180.0, n_probes=20), 60.0)


def warm_up_end(seed):
    model = drifting(correlation_time_s=20_000.0, warm_up_renewals=1.0, warm_up_s=600.0)
    result = run(stability, replace(model, dmd=SMALL_DMD), seed, duration_s=3600.0, n_probes=20)
    return estimate(result.quantities["warm_up_end"], warm_up_end_s(model, result.data["device_time_s"][0]))


def with_fewer_mirrors(model):
    """Return a bench that is as bright with fewer mirrors: it is simulated in less time."""
    per_mirror = model.laser.electrons_per_mirror_us * model.n_mirrors / SMALL_DMD.n_mirrors
    return replace(model, dmd=SMALL_DMD, laser=replace(model.laser, electrons_per_mirror_us=per_mirror))


def expected_residual(laser, seed, frame_s, interval=50):
    """Return what a straight line between reference frames leaves of the drift of this laser, root mean square.

    Over 200 intervals that are none of the routine's.
    """
    times_s = 100 + frame_s * np.arange(200 * interval + 1)
    powers = power_factors(replace(laser, rin=0.0), seed, 0, 0, times_s).astype(np.float64)
    number = np.arange(len(powers))
    left = powers / np.interp(number, number[::interval], powers[::interval]) - 1
    return math.sqrt((left[number % interval > 0] ** 2).mean())


def noise_of(model, electrons):
    """Return mean and variance of counts."""
    camera = model.camera
    dn = camera.gain_dn_per_e
    return dn * electrons, dn**2 * (camera.read_noise_e**2 + electrons) + 1 / 12


def measured_power(model, seed):
    """Return a `laser_power`, and the noise of its sums from frame to frame: of photons, camera and laser."""
    with SimulatedBench(model, seed=seed) as device:
        result = laser_power(device)
        half = np.zeros((1, 64), np.bool_)
        half[0, :32] = True
        electrons = device.capability(GroundTruth).photoelectrons(result.provenance[-1].config, half).astype(float)
    mean, variance = noise_of(model, electrons)
    return result, math.hypot(model.laser.rin, math.sqrt(variance.sum()) / mean.sum())


def power_residual(seed):
    model = with_fewer_mirrors(UNSTEADY)
    result = run(laser_power, model, seed)
    return estimate(result, expected_residual(model.laser, seed, result.provenance[-1].frame_us * 1e-6))


def power_drift(seed):
    result = run(laser_power, UNSTEADY, seed)
    means = true_powers(UNSTEADY, seed, result)[:-1].reshape(-1, 50).mean(axis=1)
    return estimate(result.quantities["power_drift"], float(np.ptp(means)))


def power_noise(seed):
    result, noise = measured_power(replace(AURORA, laser=replace(AURORA.laser, rin=0.002)), seed)
    return estimate(result.quantities["power_noise"], noise)


def repeated(seed):
    """Compare with what speckle of contrast 1 and that brightness would have on average over media."""
    with SimulatedBench(AURORA, seed=seed) as device:
        result = repeatability(device)
        config = result.provenance[-1].config
        electrons = (
            device.capability(GroundTruth).photoelectrons(config, disjoint_patterns(16, 64)).mean(dtype=np.float64)
        )
    mean, variance = noise_of(AURORA, electrons)
    return estimate(result, mean**2 / (mean**2 + variance))


def mirror_contrast(seed):
    """Use a camera whose dark level can be seen: with a black level, and noise of more than half a count."""
    return estimate(run(dmd_contrast, with_contrast(1000.0, black_level_dn=8.0, read_noise_e=25.0), seed), 1000.0)


ESTIMATES = {
    "grain_width": grain_width,
    "effective_outputs": grain_outputs,
    "speckle_contrast": contrast,
    "correlation_time": correlation_time,
    "warm_up_end": warm_up_end,
    "power_residual": power_residual,
    "power_drift": power_drift,
    "power_noise": power_noise,
    "repeatability": repeated,
    "dmd_contrast": mirror_contrast,
}
