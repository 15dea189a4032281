"""Cases of the camera: dark frames, photon transfer, linearity, exposure, ones range."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

import opu
from benchmarks.calibration.cases import Check, Estimate
from opu.calibration.camera import dark_frames, linearity, photon_transfer
from opu.calibration.exposures import exposure, ones_range
from opu.calibration.recorder import random_halves
from opu.parts import selected_pixels
from opu.sim.camera import pixel_maps
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

__all__ = ["CASES", "ESTIMATES"]

AURORA = preset("aurora")
HOT = {"dsnu_e": 2.0, "hot_fraction": 1e-4, "hot_current_e_per_s": 20_000.0}
BITS = {
    8: {},
    10: {"bit_depth": 10, "gain_dn_per_e": 1023 / 10_000, "black_level_dn": 16.0},
    12: {"bit_depth": 12, "gain_dn_per_e": 4095 / 10_000, "black_level_dn": 64.0},
}
READ_NOISE_E = AURORA.camera.read_noise_e
# Of 0.64 DN at 8 bits: rounding hides no offset.
RESOLVED_NOISE_E = 25.0
# What rounding may hide of an offset at 8 bits and 7 electrons.
HIDDEN_DN = 0.3
TRUTH_PATTERNS = 64


def bench(seed, *, brightness=1.0, mirrors=(64, 64), camera=None, laser=None):
    """Return an aurora with fewer and brighter mirrors: its frames obey the same laws, and are quicker."""
    rows, columns = mirrors
    light = AURORA.laser.electrons_per_mirror_us * AURORA.n_mirrors / (rows * columns)
    model = replace(
        AURORA,
        dmd=replace(AURORA.dmd, rows=rows, columns=columns),
        laser=replace(AURORA.laser, electrons_per_mirror_us=brightness * light, **(laser or {})),
        camera=replace(AURORA.camera, **(camera or {})),
    )
    return SimulatedBench(model, seed=seed)


def maps_of(device, result):
    """Return the fixed pattern of the pixels that a result is about."""
    pixels = selected_pixels(result.provenance[0].config, device.describe().pixels)
    return pixel_maps(device.table.model.camera, device.table.seed, pixels)


def truth_dn(device, result, patterns):
    """Return mean counts above the black level before noise and saturation, as a result's last session exposes."""
    config = result.provenance[-1].config
    electrons = device.capability(opu.GroundTruth).photoelectrons(config, patterns)
    return electrons * device.table.model.camera.gain_dn_per_e * 10 ** (config.gain_db / 20)


def c1(seed):
    checks = {}
    rng = np.random.default_rng(seed)
    for bits in (8, 10):
        camera = HOT | BITS[bits] | {"black_level_dn": 16 + rng.random()}
        with bench(seed, mirrors=(1, 8), camera=camera) as device:
            result = dark_frames(device, n_outputs=10**6)
            hot = maps_of(device, result).dark_current_e_per_s > AURORA.camera.dark_current_e_per_s
            error = abs(result.value - device.describe().black_level_dn)
        found = np.zeros(len(hot), bool)
        found[result.data["hot_pixels"]] = True
        both = np.count_nonzero(found & hot)
        name = f"{bits}_bits"
        if bits == 8:
            checks["offset_hidden"] = Check(
                error,
                (None, HIDDEN_DN),
                "error of the offset, 8 bits and 7 e-, where rounding hides more than 0.02 (DN)",
                result.uncertainty,
            )
        else:
            checks[f"offset_{name}"] = Check(
                error, (None, 0.02), f"error of the offset, {bits} bits (DN)", result.uncertainty
            )
        checks |= {
            f"recall_{name}": Check(
                both / np.count_nonzero(hot), (0.99, None), f"hot pixels that were found, {bits} bits", judged="mean"
            ),
            f"precision_{name}": Check(
                both / max(np.count_nonzero(found), 1), (0.95, None), f"found pixels that are hot, {bits} bits"
            ),
        }
    camera = HOT | {"black_level_dn": 16 + rng.random(), "read_noise_e": RESOLVED_NOISE_E}
    with bench(seed, mirrors=(1, 8), camera=camera) as device:
        result = dark_frames(device, n_outputs=2**17)
        error = abs(result.value - device.describe().black_level_dn)
    checks["offset_8_bits"] = Check(
        error, (None, 0.02), "error of the offset, 8 bits, where the noise resolves it (DN)", result.uncertainty
    )
    return checks


def c2(seed):
    checks = {}
    for bits, camera in BITS.items():
        with bench(seed, camera=camera | {"prnu": 0.01}, laser={"rin": 0.01}) as device:
            result = photon_transfer(device, n_outputs=2**18, n_repeats=8)
            gain = device.table.model.camera.gain_dn_per_e
        checks[f"gain_{bits}_bits"] = Check(
            abs(result.value / gain - 1),
            (None, 0.02 if bits == 8 else 0.01),
            f"relative error of the gain, {bits} bits, 8 repeats",
            result.uncertainty / gain,
        )
        read, bound = (result.quantities[name].value / READ_NOISE_E for name in ("read_noise", "read_noise_bound"))
        if bits == 8:
            checks["read_noise_bound"] = Check(bound, (0.97, 1.5), "bound of the read noise over the truth, 8 bits")
        else:
            checks[f"read_noise_{bits}_bits"] = Check(
                abs(read - 1), (None, 0.05), f"relative error of the read noise, {bits} bits"
            )
    return checks


def c3(seed):
    with bench(seed) as device:
        straight = linearity(device)
    bent = []
    for sign in (-1, 1):
        with bench(seed, camera={"quadratic_nonlinearity": sign * 0.03}) as device:
            bent.append(linearity(device))
    return {
        "error": Check(straight.value, (None, 0.01), "linearity error of a linear camera", straight.uncertainty),
        "believed": Check(float(straight.passed), (1, None), "a linear camera passes"),
        "found": Check(
            float(not any(result.passed for result in bent)), (1, None), "a non-linearity of 3 %, up or down, is found"
        ),
    }


def c4(seed):
    rng = np.random.default_rng(seed)
    with bench(seed, brightness=10 ** rng.uniform(-1, 1)) as device:
        result = exposure(device)
        search_frames = result.quantities["search_frames"].value
        halves = rng.permuted(np.tile(np.arange(64) < 32, (TRUTH_PATTERNS, 1)), axis=1)
        light = truth_dn(device, result, halves)
        full_scale = device.describe().full_scale_dn
    return {
        "mean": Check(
            abs(9 * light.mean() / full_scale - 1), (None, 0.05), "relative error of the mean against FS / 9"
        ),
        "saturated": Check(
            (light >= full_scale - 0.5).mean() / 1e-4, (0.5, 2), "true saturated share over 1e-4, light 0.1 to 10 times"
        ),
        "rounds": Check(result.quantities["rounds"].value, (None, 3), "measurements of the search"),
        "frames": Check(search_frames, (None, 12), "frames of the search, those without light among them"),
    }


def c5(seed):
    rng = np.random.default_rng(seed)
    means, shares = [], []
    with bench(seed) as device:
        result = ones_range(device)
        full_scale = device.describe().full_scale_dn
        largest, smallest = result.value, result.quantities["smallest"].value
        for n_on in np.unique(np.geomspace(smallest, largest, 6).astype(int)):
            shown = rng.permuted(np.tile(np.arange(64) < n_on, (TRUTH_PATTERNS, 1)), axis=1)
            light = truth_dn(device, result, shown)
            predicted = {
                name: np.interp(n_on, result.data["predicted_n_on"], result.data[f"predicted_{name}"])
                for name in ("mean_dn", "saturated")
            }
            means.append(predicted["mean_dn"] / light.mean())
            if predicted["saturated"] > 1e-4:
                shares.append(predicted["saturated"] / (light >= full_scale - 0.5).mean())
    return {
        "mean": Check(np.abs(np.array(means) - 1).max(), (None, 0.05), "largest relative error of a predicted mean"),
        "saturated": Check(
            np.exp(np.abs(np.log(shares)).max()), (None, 1.5), "largest factor between predicted and true saturation"
        ),
    }


CASES = {"C1": c1, "C2": c2, "C3": c3, "C4": c4, "C5": c5}


def of(result, name, truth):
    """Return the estimate of a quantity of a result, or of its value."""
    quantity = result if name == "value" else result.quantities[name]
    return Estimate(quantity.value, quantity.uncertainty, truth)


def dark(name, bits, seed):
    camera = BITS[bits] | {"dsnu_e": 2.0}
    if bits == 8:
        black_dn = 8 + np.random.default_rng(seed).random()
        camera |= {"black_level_dn": black_dn, "read_noise_e": RESOLVED_NOISE_E}
    with bench(seed, camera=camera) as device:
        result = dark_frames(device, n_outputs=4096)
        model, maps = device.table.model.camera, maps_of(device, result)
    gain, current = model.gain_dn_per_e, model.dark_current_e_per_s
    dark_e = current * AURORA.exposure_us.default * 1e-6
    truths = {
        "value": model.black_level_dn + gain * (float(maps.offset_e.mean()) + dark_e),
        "dark_current": gain * current,
        "temporal_noise": math.sqrt(gain**2 * (model.read_noise_e**2 + dark_e) + 1 / 12),
    }
    return of(result, name, truths[name])


def hot_fraction(seed):
    with bench(seed, camera=BITS[12] | HOT | {"hot_fraction": 3e-3}) as device:
        return of(dark_frames(device, n_outputs=2**16, n_frames=32), "hot_fraction", 3e-3)


def transfer(name, bits, seed):
    with bench(seed, camera=BITS[bits], laser={"rin": 0.01}) as device:
        result = photon_transfer(device)
        model = device.table.model.camera
    capacity = (model.full_scale_dn - model.black_level_dn) / model.gain_dn_per_e
    truths = {
        "value": model.gain_dn_per_e,
        "read_noise": READ_NOISE_E,
        "saturation_capacity": capacity,
        "snr_max": math.sqrt(capacity),
    }
    return of(result, name, truths[name])


def bent(name, seed):
    """Compare with the line through the exact response to the true light of the pixels that should be looked at."""
    bend = np.random.default_rng(seed).uniform(0.02, 0.05)
    with bench(seed, camera={"quadratic_nonlinearity": bend}) as device:
        result = linearity(device)
        light = np.sort(truth_dn(device, result, random_halves(1, 64))[0])
        used_us = result.provenance[-1].config.exposure_us
    if name == "curvature":
        return of(result, name, bend)
    level = light[int(0.87 * len(light)) : int(0.895 * len(light))].mean()
    exposures_us = result.data["exposures_us"]
    straight = level * exposures_us / used_us
    exact = straight * (1 + bend * straight / 255)
    line = np.polynomial.Polynomial.fit(exposures_us, exact, 1, w=1 / exact)
    return of(result, name, np.abs(exact / line(exposures_us) - 1).mean())


def dn_per_us(model):
    """Return the mean that half of the mirrors add in a microsecond."""
    return model.laser.electrons_per_mirror_us * model.n_mirrors / 2 * model.camera.gain_dn_per_e


def exposure_time(seed):
    with bench(seed) as device:
        model = device.table.model
        result = exposure(device)
    return of(result, "value", model.camera.full_scale_dn / 9 / dn_per_us(model))


def saturated_fraction(seed):
    """Compare with what speckle of contrast 1 would have: counts from half a count below full scale on are there."""
    with bench(seed) as device:
        result = exposure(device)
        model = device.table.model
    mean_dn = dn_per_us(model) * result.provenance[-1].config.exposure_us
    return of(result, "saturated_fraction", math.exp(-(model.camera.full_scale_dn - 0.5) / mean_dn))


def ones(name, seed):
    with bench(seed) as device:
        result = ones_range(device)
        model = device.table.model
    exposure_us = result.quantities["exposure"].value
    mirrors = model.n_mirrors / 64
    per_feature = model.laser.electrons_per_mirror_us * mirrors * exposure_us * model.camera.gain_dn_per_e
    truths = {
        "value": 255 / math.log(200) / per_feature,
        "dn_per_feature": per_feature,
        "background": 0.0,
        "contrast": 1.0,
    }
    return of(result, name, truths[name])


ESTIMATES = {
    "dark_offset_8_bits": partial(dark, "value", 8),
    "dark_offset_12_bits": partial(dark, "value", 12),
    "dark_current": partial(dark, "dark_current", 12),
    "temporal_noise": partial(dark, "temporal_noise", 12),
    "hot_fraction": hot_fraction,
    "gain_8_bits": partial(transfer, "value", 8),
    "gain_12_bits": partial(transfer, "value", 12),
    "read_noise_12_bits": partial(transfer, "read_noise", 12),
    "saturation_capacity": partial(transfer, "saturation_capacity", 12),
    "snr_max": partial(transfer, "snr_max", 12),
    "linearity_error": partial(bent, "value"),
    "curvature": partial(bent, "curvature"),
    "exposure": exposure_time,
    "saturated_fraction": saturated_fraction,
    "ones_largest": partial(ones, "value"),
    "dn_per_feature": partial(ones, "dn_per_feature"),
    "ones_background": partial(ones, "background"),
    "ones_contrast": partial(ones, "contrast"),
}
