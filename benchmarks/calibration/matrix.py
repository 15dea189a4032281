"""Cases of the transmission matrix: closed-form anchors, phase retrieval, a stepped reference arm."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np

import opu
from benchmarks.calibration.cases import Check
from opu.calibration.matrix.anchors import AnchorPlan
from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.measure import transmission_matrix
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

__all__ = ["CASES", "ESTIMATES"]

SIZE = 512
ALL_INCLUDED = 0.42
"""Frames for each feature of 512 that dark level, exposure, background and probes take."""


def bench(seed, *, name="aurora", full_well_e=10_000):
    """Return a bench of 8 bits whose full well is full scale, and the same mean counts whatever the full well."""
    model = preset(name)
    ratio = full_well_e / model.camera.full_well_e
    return SimulatedBench(
        replace(
            model,
            camera=replace(model.camera, full_well_e=full_well_e, gain_dn_per_e=model.camera.gain_dn_per_e / ratio),
            laser=replace(model.laser, electrons_per_mirror_us=model.laser.electrons_per_mirror_us * ratio),
        ),
        seed=seed,
    )


def measured(device, n, method, **options):
    """Measure a matrix of n rows and columns; return it, the result, row correlations with the truth, and seconds."""
    kept = []
    started_s = time.perf_counter()
    result = transmission_matrix(device, n_features=n, n_outputs=n, method=method, on_matrix=kept.append, **options)
    seconds = time.perf_counter() - started_s
    truth = device.capability(opu.GroundTruth).transmission_matrix(kept[0].config)
    return kept[0], result, row_correlations(kept[0].matrix, truth), seconds


def c14(seed):
    checks = {}
    for n_anchors, least_kept, least_mean, most_frames in ((3, 0.8, 0.99, 4.2), (4, 0.9, 0.995, 5.2)):
        with bench(seed) as device:
            matrix, _, found, _ = measured(device, SIZE, "anchors", n_anchors=n_anchors)
        name = f"{n_anchors} anchors"
        n_frames = len(AnchorPlan(SIZE, n_anchors=n_anchors).patterns)
        if n_anchors == 3:
            checks["median_3"] = Check(float(np.median(found)), (0.995, None), f"{name}: median row correlation")
        kept = matrix.kept
        checks[f"kept_{n_anchors}"] = Check(float(kept.mean()), (least_kept, None), f"{name}: share of rows kept")
        checks[f"mean_{n_anchors}"] = Check(float(found[kept].mean()), (least_mean, None), f"{name}: mean of rows kept")
        checks[f"frames_{n_anchors}"] = Check(
            n_frames / SIZE, (None, most_frames), f"{name}: frames a feature, exposure and dark level apart"
        )
    return checks


def c15(seed, n=SIZE, most_seconds=30):
    with bench(seed) as device:
        matrix, result, found, seconds = measured(device, n, "retrieval", oversampling=6 - ALL_INCLUDED)
    checks = {
        "mean": Check(float(found.mean()), (0.995, None), "mean row correlation"),
        "good": Check(float((found >= 0.99).mean()), (0.97, None), "share of rows with 0.99 or more"),
        "worst": Check(float(found[matrix.kept].min()), (0.95, None), "worst row that is kept"),
        "kept": Check(float(matrix.kept.mean()), (0.97, None), "share of rows that are kept"),
        "held_out": Check(
            result.quantities["held_out"].value,
            (0.998, None),
            "correlation of predicted with measured frames",
            uncertainty=result.quantities["held_out"].uncertainty,
        ),
        "relative": Check(result.value, (0.99, None), "the same, relative to a perfect one", result.uncertainty),
        "frames": Check(result.quantities["frames_per_feature"].value, (None, 6), "frames a feature, all included"),
        "seconds": Check(seconds, (None, most_seconds), f"seconds for {n} x {n}, frames included"),
    }
    if n == SIZE:
        with bench(seed, full_well_e=1000) as device:
            _, result, found, _ = measured(device, n, "retrieval", oversampling=5 - ALL_INCLUDED)
        checks["mean_1ke"] = Check(float(found.mean()), (0.975, None), "mean row correlation at 1000 e-, 5 frames")
        frames = result.quantities["frames_per_feature"].value
        checks["frames_1ke"] = Check(frames, (None, 5), "frames a feature of that, all included")
    return checks


def c16(seed):
    checks = {}
    for method, steps, least_kept in (("three_step", 3, 0.985), ("four_step", 4, 0.995)):
        with bench(seed, name="interferometer") as device:
            matrix, result, found, _ = measured(device, SIZE, method)
        frames = result.quantities["frames_per_feature"].value
        checks[f"mean_{steps}"] = Check(float(found.mean()), (0.999, None), f"{steps} steps: mean row correlation")
        kept, name = matrix.kept, f"{steps} steps"
        checks[f"kept_{steps}"] = Check(float(kept.mean()), (least_kept, None), f"{name}: share of rows kept")
        checks[f"worst_{steps}"] = Check(float(found[kept].min()), (0.99, None), f"{name}: worst row that is kept")
        checks[f"frames_{steps}"] = Check(frames, (None, steps + 0.5), f"{name}: frames a feature, all included")
    return checks


CASES = {"C14": c14, "C15": c15, "C15-1024": partial(c15, n=1024, most_seconds=180), "C16": c16}
ESTIMATES = {}
