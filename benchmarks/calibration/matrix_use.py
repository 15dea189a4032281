"""What is done with a matrix: validation (C17), singular values (C18), focusing (C19), tracking (C20).

Good matrices are measured. Those that are tracked, and poor ones, are those of the ground truth with an error, because
a medium that drifts while it is measured is another matter.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

import opu
from benchmarks.calibration.cases import Check, Estimate
from benchmarks.calibration.true_matrix import exposed, true_matrix
from opu.calibration.focusing import expected_enhancement, focusing
from opu.calibration.matrix.measure import measure_transmission_matrix
from opu.calibration.matrix.spectrum import singular_values
from opu.calibration.matrix.tracking import PROBE_DUTY, MatrixTracker
from opu.calibration.matrix.validation import held_out, row_correlations
from opu.parts import MirrorLayout, selected_pixels
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset

__all__ = ["CASES", "ESTIMATES"]

ERROR = 0.07  # relative: a row correlation of 0.9976
LOOKS = 10


def measured(device, seed, **sizes):
    """Return a measured matrix."""
    return measure_transmission_matrix(device, noise_key=seed, **sizes)


def fidelity(device, matrix):
    """Return the mean squared row correlation with the ground truth."""
    truth = device.capability(opu.GroundTruth).transmission_matrix(matrix.config)
    return float(np.square(row_correlations(truth, matrix.matrix)).mean())


def validation(seed):
    """C17: frames that were not used tell a right matrix from a wrong one."""
    with opu.open(f"sim:?preset=aurora&seed={seed}") as device:
        good = measured(device, seed, n_features=256, n_outputs=512)
        poor = true_matrix(device, good.config, error=0.3, seed=seed)
        found, failed = (held_out(device, matrix=matrix, noise_key=seed) for matrix in (good, poor))
        return {
            "held_out": Check(
                found.value,
                (0.99, None),
                "held-out Pearson correlation over the root of the repeatability",
                found.uncertainty,
            ),
            "over_repeatability": Check(
                found.quantities["pearson_over_repeatability"].value, (0.99, None), "the same over the repeatability"
            ),
            "error": Check(
                found.value - fidelity(device, good), (-0.005, 0.005), "difference from the true squared correlation"
            ),
            "error_of_poor": Check(
                failed.value - fidelity(device, poor), (-0.02, 0.02), "the same for a row correlation of 0.958"
            ),
            "poor_is_named": Check(float(len(failed.findings)), (1, None), "findings for that matrix"),
        }


def spectrum(seed):
    """C18: singular values on the law, and what is not random is named."""
    with opu.open(f"sim:?preset=aurora&seed={seed}") as device:
        matrix = measured(device, seed, n_features=256, n_outputs=512)
        twins = matrix.matrix.copy()
        twins[:, 200:] = twins[:, :56]
        grain = matrix.matrix.copy()
        grain[:, :] += np.roll(grain, 1, axis=0)
        good, low, coarse = (
            singular_values(device, matrix=replace(matrix, matrix=entries)) for entries in (matrix.matrix, twins, grain)
        )
        return {
            "distance": Check(good.value, (None, 0.02), "Kolmogorov-Smirnov distance", good.uncertainty),
            "false_findings": Check(float(len(good.findings)), (None, 0), "findings for a good matrix"),
            "low_rank_is_named": Check(
                float(any("dimensions are missing" in finding for finding in low.findings)), (1, None), "low rank named"
            ),
            "grain_is_named": Check(
                float(any("spans several pixels" in finding for finding in coarse.findings)), (1, None), "grain named"
            ),
        }


def foci(seed):
    """C19: enhancement against the theory with the true correlation."""
    with opu.open(f"sim:?preset=aurora&seed={seed}") as device:
        matrix = measured(device, seed, n_features=256, n_outputs=512)
        found = focusing(device, matrix=matrix, noise_key=seed)
        enhancement = found.quantities["enhancement"].value
        expected = 1 + (expected_enhancement(256) - 1) * fidelity(device, matrix)
        return {
            "over_theory": Check(
                enhancement / expected,
                (0.9, 1.1),
                "enhancement over 1 + (N/2 - 1)/pi |corr|^2, mean of 100 targets, against random half-on patterns",
                found.uncertainty,
            ),
            "over_expected": Check(found.value, (0.9, 1.1), "the same with the measured factors", found.uncertainty),
            "denominator": Check(
                enhancement / found.quantities["enhancement_over_all_on"].value,
                (1.7, 2.3),
                "enhancement against half-on over that against all-on",
            ),
        }


def drifting_bench(n_features, seed):
    """Return a bench with a correlation time of 1000 N frames of which only the probes are shown, and a time to look.

    The frames between the probes are time that passes.
    """
    model = preset("aurora")
    frame_us = model.timing.frame_us(model.exposure_us.default)
    timing = msgspec.structs.replace(
        model.timing,
        frame_overhead_us=model.timing.frame_overhead_us + (1 / PROBE_DUTY - 1) * frame_us,
        call_overhead_us=0.0,
        reconfigure_us=0.0,
    )
    drift = DriftModel(correlation_time_s=1000 * n_features * frame_us * 1e-6)
    return SimulatedBench(replace(model, timing=timing, drift=drift), seed=seed), drift.correlation_time_s


def rows_at(device, config, n_rows, time_s):
    """Return rows of the true matrix at a device time."""
    truth, description = device.capability(opu.GroundTruth), device.describe()
    layout = MirrorLayout(config.n_features, *description.mirrors)
    mirrors = np.arange(layout.n_features * layout.mirrors_per_feature)
    pixels = selected_pixels(config, description.pixels)[:n_rows]
    rows = [truth.entries([pixel], mirrors, device_time_s=time_s)[0] for pixel in pixels]
    return np.stack([row.reshape(layout.n_features, -1).sum(axis=1) for row in rows])


def following(seed):
    """C20: tracking over five correlation times at a probe duty of 10 %."""
    n_features, n_rows = 64, 8
    bench, tau_s = drifting_bench(n_features, seed)
    with bench as device:
        config = exposed(device, n_features=n_features, n_outputs=48)
        matrix = true_matrix(device, config, error=ERROR, seed=seed)
        tracker = MatrixTracker(matrix, full_scale_dn=device.describe().full_scale_dn)
        followed, frozen = [], []
        with device.open_session(config) as session:
            n_probes = int(5 * tau_s / (session.describe().frame_us * 1e-6))
            for part in range(LOOKS):
                patterns = np.random.default_rng([seed, part]).random((n_probes // LOOKS, n_features)) < 0.5
                projection = session.project(patterns)
                tracker.partial_fit(patterns, projection.frames)
                provenance = projection.provenance
                now_s = (provenance.device_start_us + provenance.device_us) * 1e-6
                truth = rows_at(device, config, n_rows, now_s)
                followed.append(row_correlations(truth, tracker.matrix_.matrix[:n_rows]).mean())
                frozen.append(row_correlations(truth, matrix.matrix[:n_rows]).mean())
        probe_s = session.describe().frame_us * 1e-6
        return {
            "correlation": Check(float(np.mean(followed)), (0.97, None), "field correlation over 5 tau"),
            "lowest": Check(min(followed), (0.96, None), f"lowest of {LOOKS} looks"),
            "frozen": Check(frozen[-1], (None, 0.3), "field correlation of the frozen matrix at the end"),
            "gain": Check(float(np.min(np.subtract(followed, frozen))), (0, None), "least gain over the frozen matrix"),
            "correlation_time": Check(
                2 / tracker.drift_per_probe_ * probe_s / tau_s, (0.8, 1.25), "correlation time found over the true one"
            ),
        }


def estimate_fidelity(seed):
    """Return what the validation states of a matrix, and the truth over many patterns."""
    with opu.open(f"sim:?preset=aurora&seed={seed}") as device:
        config = exposed(device, n_features=64, n_outputs=100)
        matrix = true_matrix(device, config, error=0.2, seed=seed)
        found = held_out(device, matrix=matrix, noise_key=seed)
        patterns = np.random.default_rng(seed).random((3000, 64)).argsort(axis=1) < 32
        true = device.capability(opu.GroundTruth).photoelectrons(config, patterns)
        predicted = matrix.intensities(patterns)
        one, two = predicted - predicted.mean(axis=0), true - true.mean(axis=0)
        truth = float((one * two).sum() / np.sqrt(np.square(one).sum() * np.square(two).sum()))
        return Estimate(found.value, found.uncertainty, truth)


def estimate_focus(seed):
    """Return the enhancement over the expected one, which is 1."""
    with opu.open(f"sim:?preset=aurora&seed={seed}") as device:
        config = exposed(device, n_features=128, n_outputs=256)
        found = focusing(device, matrix=true_matrix(device, config, error=ERROR, seed=seed), noise_key=seed)
        return Estimate(found.value, found.uncertainty, 1.0)


CASES = {"C17": validation, "C18": spectrum, "C19": foci, "C20": following}
ESTIMATES = {"held_out": estimate_fidelity, "focusing": estimate_focus}
