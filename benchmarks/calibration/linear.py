"""The linear mode, and feedback through it: C13, C21."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from benchmarks.calibration.cases import Check, Estimate
from opu.calibration.feedback import cosines, feedback, random_errors
from opu.calibration.linear import fit_and_project, judge_additivity, linear_mode
from opu.calibration.recorder import Recorder, random_halves
from opu.device import GroundTruth
from opu.linear import LinearProjector, fit_linear_map
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

__all__ = ["CASES", "ESTIMATES"]

N_FEATURES, N_OUTPUTS, N_PATTERNS = 64, 512, 64
N_CLASSES, EXPECTED_ONES = 10, 2.0
SHORTCUT_RATIO = 16
AURORA = preset("aurora")


def true_projection(device, linear_map, patterns):
    """Return what a map would give without noise, but for its scale, from the matrix of the medium."""
    matrix = device.capability(GroundTruth).transmission_matrix(linear_map.config)[linear_map.pixels].astype(complex)
    fields = patterns @ matrix[:, : linear_map.n_features].T
    if linear_map.method == "pi":  # the arm is the same everywhere
        return fields.real
    anchor = matrix[:, linear_map.n_features :].sum(axis=1)
    return (np.conj(anchor) * fields).real / np.abs(anchor)


def pearson_with_truth(name, seed, *, ternary=False):
    """Project random patterns on a preset, and correlate with the truth."""
    patterns = random_halves(N_PATTERNS, N_FEATURES, seed=seed).astype(np.int8)
    if ternary:
        patterns -= random_halves(N_PATTERNS, N_FEATURES, seed=seed + 10**6).astype(np.int8)
    with SimulatedBench(preset(name), seed=seed) as device:
        linear_map = fit_linear_map(device, N_FEATURES, N_OUTPUTS, noise_key=seed)
        with LinearProjector(device, linear_map) as projector:
            output = projector.project(patterns, ternary=ternary).output
        truth = true_projection(device, linear_map, patterns)
    return float(np.corrcoef(output.ravel(), truth.ravel())[0, 1])


def c13(seed):
    """Compare linear projections with the truth, and with their own sums."""
    with SimulatedBench(AURORA, seed=seed) as device:
        own = linear_mode(device, noise_key=seed)
    single, pearson = own.quantities["single_error"], own.quantities["pearson"]
    return {
        "anchor": Check(pearson_with_truth("aurora", seed), (0.995, None), "Pearson with the truth, anchor, 2 frames"),
        "pi": Check(
            pearson_with_truth("interferometer", seed), (0.999, None), "Pearson with the truth, reference arm, 2 frames"
        ),
        "ternary": Check(
            pearson_with_truth("aurora", seed, ternary=True), (0.99, None), "Pearson with the truth, ternary, 4 frames"
        ),
        "pearson": Check(
            pearson.value, (0.995, None), "Pearson with the mean of infinitely many", uncertainty=pearson.uncertainty
        ),
        "single_error": Check(
            single.value, (None, 0.15), "additivity error of single projections", uncertainty=single.uncertainty
        ),
        "bias": Check(own.value, (None, 0.02), "additivity error without noise", uncertainty=own.uncertainty),
    }


def shortcut_cosine(seed, errors):
    """Return the mean cosine with the true feedback of `I(e+ + r) - I(e- + r)`, with an anchor 16 times as bright."""
    n_anchor = round(SHORTCUT_RATIO * float((errors > 0).sum(axis=1).mean()))
    halves = [np.pad(part, ((0, 0), (0, n_anchor)), constant_values=True) for part in (errors > 0, errors < 0)]
    anchor = np.pad(np.zeros((16, N_CLASSES), np.bool_), ((0, 0), (0, n_anchor)), constant_values=True)
    with SimulatedBench(AURORA, seed=seed) as device:
        recorder = Recorder(device, noise_key=seed)
        config = recorder.expose(recorder.config(N_CLASSES + n_anchor, N_OUTPUTS), halves[0])
        frames = recorder.take(config, np.concatenate([anchor, *halves])).frames.astype(np.float64)
        matrix = device.capability(GroundTruth).transmission_matrix(config).astype(complex)
    reference, positive, negative = np.split(frames, [16, 16 + len(errors)])
    bright = reference.mean(axis=0) > 0.1 * reference.mean()
    optical = ((positive - negative) / np.sqrt(np.maximum(reference.mean(axis=0), 1)))[:, bright]
    field = matrix[:, N_CLASSES:].sum(axis=1)
    true = errors @ (matrix[:, :N_CLASSES].T * field.conj() / np.abs(field)).real
    return float(cosines(optical, true[:, bright]).mean())


def c21(seed):
    """Compare optical feedback with that of the true matrix, and of one that the device has measured itself."""
    with SimulatedBench(AURORA, seed=seed) as device:
        result = feedback(device, noise_key=seed)
    ternary = random_errors(np.random.default_rng(seed), N_PATTERNS, N_CLASSES)
    batches = [ternary > 0, ternary]
    with SimulatedBench(AURORA, seed=seed) as device:
        recorder = Recorder(device, noise_key=seed)
        projected = fit_and_project(recorder, batches, N_OUTPUTS, noise_key=seed, expected_ones=EXPECTED_ONES)
        true_binary, true_ternary = (
            cosines(output, true_projection(device, projected.linear_map, errors)).mean()
            for output, errors in zip(projected.outputs, batches, strict=True)
        )
    binary = result.quantities["binary_cosine"]
    return {
        "true_ternary": Check(
            float(true_ternary), (0.99, None), "cosine with the true feedback, ternary errors in 4 frames"
        ),
        "true_binary": Check(
            float(true_binary), (0.99, None), "cosine with the true feedback, binary errors in 2 frames"
        ),
        "shortcut": Check(
            shortcut_cosine(seed, ternary), (0.95, None), "cosine with the true feedback, ternary errors in 2 frames"
        ),
        "ternary": Check(
            result.value, (0.99, None), "cosine that the routine states, ternary errors", uncertainty=result.uncertainty
        ),
        "binary": Check(
            binary.value, (0.99, None), "cosine that the routine states, binary errors", uncertainty=binary.uncertainty
        ),
    }


def counts_of(camera):
    """Return a function from mean photo-electrons to mean and variance of the counts.

    Photon noise is taken as normal: read noise hides the difference where there are few photons.
    """
    mean_e = np.linspace(0, 1.5 * camera.full_well_e, 4001)
    spread_dn = camera.gain_dn_per_e * np.sqrt(mean_e + camera.read_noise_e**2)
    steps = np.arange(camera.full_scale_dn) + 0.5
    largest_dn = camera.gain_dn_per_e * camera.full_well_e
    z = (camera.gain_dn_per_e * mean_e[:, np.newaxis] + camera.black_level_dn - steps) / spread_dn[:, np.newaxis]
    above = 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))) * (steps < largest_dn)
    mean_dn = above.sum(axis=1)
    variance = ((2 * np.arange(camera.full_scale_dn) + 1) * above).sum(axis=1) - mean_dn**2
    return lambda electrons: (np.interp(electrons, mean_e, mean_dn), np.interp(electrons, mean_e, variance))


_TABLES = {}


def estimate_linearity(seed):
    """Measure the linearity on a camera that is full early, and compute what it is for these patterns and pixels."""
    # Not 5000: that is half a count, and the truth would depend on how it is rounded.
    full_well_e = float(np.random.default_rng(seed).choice([3010, 4010, 5010, 6010, 8010, 10_000]))
    camera = replace(AURORA.camera, full_well_e=full_well_e)
    if full_well_e not in _TABLES:
        _TABLES[full_well_e] = counts_of(camera)
    both = random_halves(4, N_FEATURES)
    first = both & (np.arange(N_FEATURES) % 2 == 0)
    triples = np.stack([first, both & ~first, both]).reshape(-1, N_FEATURES)
    with SimulatedBench(replace(AURORA, camera=camera), seed=seed) as device:
        recorder = Recorder(device, noise_key=seed)
        projected = fit_and_project(recorder, [np.tile(triples, (64, 1))], N_OUTPUTS, noise_key=seed)
        linear_map = projected.linear_map
        n_anchor = linear_map.config.n_features - N_FEATURES
        shown = [np.column_stack([triples, np.full((len(triples), n_anchor), on)]) for on in (True, False)]
        truth = device.capability(GroundTruth)
        electrons = [truth.photoelectrons(linear_map.config, patterns)[:, linear_map.pixels] for patterns in shown]
    (lit, lit_noise), (unlit, unlit_noise) = (_TABLES[full_well_e](each) for each in electrons)
    scale = linear_map.scale_per_dn.astype(float)
    outputs = scale * ((lit - unlit) / 2 - linear_map.offset_dn)
    noise = (scale**2 * (lit_noise + unlit_noise) / 4).reshape(3, 4, -1)
    one, two, sums = outputs.reshape(3, 4, -1)
    found = judge_additivity(projected.outputs[0].reshape(64, 3, 4, -1))
    power = (sums**2).mean()
    return found, {
        "bias": math.sqrt(((one + two - sums) ** 2).mean() / power),
        "single": math.sqrt((((one + two - sums) ** 2).mean() + noise.sum(axis=0).mean()) / power),
        "pearson": math.sqrt(outputs.var() / (outputs.var() + noise.mean())),
    }


def estimate_bias(seed):
    """C13: additivity error without noise."""
    found, truth = estimate_linearity(seed)
    return Estimate(found.bias, found.bias_error, truth["bias"])


def estimate_single(seed):
    """C13: additivity error of single projections."""
    found, truth = estimate_linearity(seed)
    return Estimate(found.single, found.single_error, truth["single"])


def estimate_pearson(seed):
    """C13: correlation of a projection with its own mean."""
    found, truth = estimate_linearity(seed)
    return Estimate(found.pearson, found.pearson_error, truth["pearson"])


CASES = {"C13": c13, "C21": c21}
ESTIMATES = {"C13 bias": estimate_bias, "C13 single error": estimate_single, "C13 pearson": estimate_pearson}
