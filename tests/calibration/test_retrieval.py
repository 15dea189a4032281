"""The transmission matrix from intensities."""

import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest

import opu
from opu.calibration.focusing import focusing
from opu.calibration.matrix import projections
from opu.calibration.matrix.anchors import LEAST_SPREAD, AnchorPlan
from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.hadamard import ScrambledHadamard
from opu.calibration.matrix.measure import measure_transmission_matrix, transmission_matrix
from opu.calibration.matrix.retrieval import (
    PhaseRetrieval,
    believed_rows,
    expected_residuals,
    frame_correlations,
    retrieval_patterns,
)
from opu.calibration.matrix.spectrum import singular_values
from opu.calibration.matrix.stepping import SteppingPlan
from opu.calibration.matrix.tracking import tracking
from opu.device import Limits
from opu.errors import (
    CapacityError,
    ConfigError,
    InputError,
    PatternShapeError,
    PatternValueError,
    UnsupportedError,
)
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset
from opu.sim.speckle import SpeckleModel

N, M = 48, 96


def gaussian_matrix(seed=0, n_outputs=M, n_features=N):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n_outputs, n_features)) + 1j * rng.standard_normal((n_outputs, n_features))) / 2**0.5


def counts_of(matrix, patterns, *, background=0, seed=0, full_scale=255):
    """Return counts of a camera of 8 bits, 39 electrons a count, with a mean of a ninth of full scale."""
    intensities = np.abs(patterns @ matrix.T + background) ** 2
    scale = 255 / 9 / intensities.mean()
    electrons = np.random.default_rng(seed).poisson(intensities * scale * 39)
    return np.clip(np.rint(electrons / 39), 0, full_scale).astype(np.uint8)


@pytest.fixture(scope="module")
def data():
    matrix, patterns = gaussian_matrix(), retrieval_patterns(6 * N, N)
    return matrix, patterns, counts_of(matrix, patterns)


@pytest.fixture(scope="module")
def fitted(data):
    _, patterns, counts = data
    return PhaseRetrieval().fit(patterns, counts, saturation=255)


def test_rows_are_recovered(data, fitted):
    matrix, _, _ = data
    found = row_correlations(fitted.matrix_, matrix)
    assert fitted.matrix_.dtype == np.complex64
    assert fitted.kept_.mean() >= 0.97
    assert found[fitted.kept_].min() >= 0.99


def test_half_of_the_rows_come_out_conjugated(data, fitted):
    matrix, _, _ = data
    norms = np.linalg.norm(matrix, axis=1) * np.linalg.norm(fitted.matrix_, axis=1)
    naive = np.abs((matrix.conj() * fitted.matrix_).sum(axis=1)) / norms
    assert 0.25 < (naive < 0.7).mean() < 0.75
    assert (row_correlations(fitted.matrix_, matrix) > 0.99).mean() > 0.97


def test_unseen_frames_are_predicted(data, fitted):
    matrix, _, _ = data
    patterns = retrieval_patterns(40, N, seed=9)
    counts = counts_of(matrix, patterns, seed=9)
    assert fitted.score(patterns, counts) > 0.99
    assert fitted.predict(patterns).shape == (40, M)


@pytest.mark.parametrize("max_bytes", [2**29, 64 * 4 * 7 * 6 * N + 64 * 4 * 8 * N])
def test_batches_agree_and_progress_is_told(data, fitted, max_bytes):
    _, patterns, counts = data
    told = []
    again = PhaseRetrieval(max_bytes=max_bytes, on_progress=lambda *done: told.append(done))
    again.fit(patterns, counts, saturation=255)
    assert told[-1] == (M, M)
    assert len(told) == (1 if max_bytes == 2**29 else 2)
    assert row_correlations(again.matrix_, fitted.matrix_)[fitted.kept_].min() > 0.999


def test_the_same_batches_repeat_to_the_bit(data, fitted):
    _, patterns, counts = data
    again = PhaseRetrieval().fit(patterns, counts, saturation=255)
    np.testing.assert_array_equal(again.matrix_, fitted.matrix_)


def test_an_interrupted_fit_goes_on(data):
    _, patterns, counts = data
    small = 64 * 4 * (7 * len(patterns) + 8 * N)

    def stop(done, rows):
        raise KeyboardInterrupt

    broken = PhaseRetrieval(max_bytes=small, on_progress=stop)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(patterns, counts, saturation=255)
    assert 0 < broken.finished_.done.sum() < M
    told = []
    went_on = PhaseRetrieval(max_bytes=small, on_progress=lambda *done: told.append(done))
    went_on.fit(patterns, counts, saturation=255, resume=broken.finished_)
    at_once = PhaseRetrieval(max_bytes=small).fit(patterns, counts, saturation=255)
    assert len(told) == 1
    np.testing.assert_array_equal(went_on.matrix_, at_once.matrix_)
    with pytest.raises(ConfigError, match="other patterns"):
        PhaseRetrieval(seed=1).fit(patterns, counts, saturation=255, resume=broken.finished_)


def test_rows_of_another_saturation_or_start_are_not_gone_on_with(data, fitted):
    _, patterns, counts = data
    saturation = np.full(M, 255.0)
    PhaseRetrieval().fit(patterns, counts, saturation=saturation, resume=fitted.finished_)
    saturation[3] = 254
    for other in ({}, {"saturation": 254}, {"saturation": saturation}):
        with pytest.raises(ConfigError, match="bounds"):
            PhaseRetrieval().fit(patterns, counts, **other, resume=fitted.finished_)
    start = np.ones((M, N), np.complex128)
    with pytest.raises(ConfigError, match="starts"):
        PhaseRetrieval().fit(patterns, counts, saturation=255, initial=start, resume=fitted.finished_)
    started = PhaseRetrieval(n_polish=1, n_restarts=0).fit(patterns, counts, saturation=255, initial=start)
    other = start.copy()
    other[5, 7] = 1j
    for initial in (None, other):
        with pytest.raises(ConfigError, match="starts"):
            PhaseRetrieval(n_polish=1, n_restarts=0).fit(
                patterns, counts, saturation=255, initial=initial, resume=started.finished_
            )


@pytest.mark.parametrize("n_features", [64, 256])
def test_rows_are_lost_below_four_frames_a_feature(n_features):
    matrix = gaussian_matrix(n_features=n_features)
    found = {}
    for frames in (4, 3, 2.5):
        patterns = retrieval_patterns(int(frames * n_features), n_features)
        fitted = PhaseRetrieval().fit(patterns, counts_of(matrix, patterns), saturation=255)
        found[frames] = (row_correlations(fitted.matrix_, matrix) > 0.99).mean()
    assert found[4] == 1
    assert 0.7 < found[3] < 1
    assert found[2.5] < 0.5


def test_too_few_frames_are_seen_by_the_verdict():
    with opu.open("sim:?preset=aurora&seed=7") as device:
        result = transmission_matrix(device, n_features=256, n_outputs=64, oversampling=2.5)
    assert result.value < 0.5
    assert result.findings


def test_a_background_is_told_from_the_features():
    matrix, patterns = gaussian_matrix(), retrieval_patterns(7 * N, N, varied=True)
    background = matrix.sum(axis=1) * 0.1 * np.exp(1j)
    counts = counts_of(matrix, patterns, background=background)
    found = PhaseRetrieval(background=True).fit(patterns, counts, saturation=255)
    whole = np.column_stack([matrix, background])
    assert np.median(row_correlations(np.column_stack([found.matrix_, found.background_]), whole)) > 0.995
    ratio = np.abs(found.background_).mean() / np.abs(found.matrix_).mean()
    assert ratio == pytest.approx(np.abs(background).mean() / np.abs(matrix).mean(), rel=0.15)


def test_saturated_samples_are_lower_bounds():
    matrix, patterns = gaussian_matrix(), retrieval_patterns(6 * N, N)
    counts = np.minimum(counts_of(matrix, patterns, full_scale=255), 70)
    assert (counts == 70).mean() > 0.05
    as_bounds = PhaseRetrieval().fit(patterns, counts, saturation=70)
    as_counts = PhaseRetrieval().fit(patterns, counts)
    assert np.median(row_correlations(as_bounds.matrix_, matrix)) > 0.99
    assert np.median(row_correlations(as_bounds.matrix_, matrix)) > np.median(
        row_correlations(as_counts.matrix_, matrix)
    )


def test_rows_of_other_light_are_not_believed(data):
    _, patterns, counts = data
    counts = counts.astype(np.float32)
    counts[:, :6] = np.random.default_rng(3).exponential(28, (len(patterns), 6))
    counts[:, 6] = 0
    found = PhaseRetrieval(n_restarts=1).fit(patterns, counts, saturation=255)
    assert not found.kept_[:7].any()
    assert found.kept_[7:].mean() > 0.97
    assert np.isnan(found.row_quality_[6])
    assert not found.matrix_[6].any()


def test_the_gate_is_one_and_a_half_and_not_three():
    residuals = np.full(40, 0.1, np.float32)
    residuals[:2] = 0.2
    powers = np.linspace(1, 4, 40)
    assert not believed_rows(residuals, powers)[:2].any()
    assert believed_rows(residuals, powers)[2:].all()


def test_bright_rows_are_compared_with_bright_rows():
    powers = np.random.default_rng(0).exponential(1, 400) + 1
    residuals = np.sqrt(0.006 + 0.03 / powers).astype(np.float32)
    np.testing.assert_allclose(expected_residuals(residuals, powers), residuals, rtol=1e-3)
    brightest = int(powers.argmax())
    residuals[brightest] *= 1.6
    assert residuals[brightest] < 1.5 * np.median(residuals)
    assert list(np.flatnonzero(~believed_rows(residuals, powers))) == [brightest]


def test_frames_without_contrast_correlate_by_nothing():
    assert np.isnan(frame_correlations(np.zeros((2, 5)), np.ones((2, 5)))).all()
    assert np.isnan(frame_correlations(np.zeros((2, 0)), np.ones((2, 0)))).all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.eye(4), np.ones((3, 2))), PatternShapeError),
        ((np.ones((3, 4)), np.ones((3, 2))), PatternShapeError),
        ((np.ones((9, 4)), np.ones((9, 2))), PatternValueError),
        ((np.eye(4), np.full((4, 2), np.nan)), InputError),
    ],
)
def test_bad_data_are_refused(arguments, error):
    with pytest.raises(error):
        PhaseRetrieval().fit(*arguments)


def test_bad_parameters_are_refused(data):
    _, patterns, counts = data
    with pytest.raises(ConfigError, match="n_restarts"):
        PhaseRetrieval(n_restarts=-1)
    with pytest.raises(CapacityError):
        PhaseRetrieval(max_bytes=1000).fit(patterns, counts)
    with pytest.raises(PatternShapeError, match="initial"):
        PhaseRetrieval().fit(patterns, counts, initial=np.ones((2, 2)))


@pytest.mark.parametrize("name", ["reflect", "relax", "correct", "mismatch"])
def test_kernels_do_what_their_twins_do(name):
    rng = np.random.default_rng(1)
    fields, other = rng.standard_normal((2, 2, 5, 33)).astype(np.float32)
    targets = rng.standard_normal((5, 33)).astype(np.float32)
    fields[:, 0, 0] = targets[0, 1] = 0
    rest = {"reflect": (targets, other), "relax": (other, targets, 0.9), "correct": (targets, 0.3)}
    arguments = (fields, *rest.get(name, (targets,)))
    copies = tuple(np.copy(argument) if isinstance(argument, np.ndarray) else argument for argument in arguments)
    got = getattr(projections, name)(*arguments)
    wanted = getattr(projections, f"{name}_with_numpy")(*copies)
    for one, two in zip((*arguments, got), (*copies, wanted), strict=True):
        if one is not None:
            np.testing.assert_allclose(one, two, rtol=2e-5, atol=1e-6)


def test_no_hadamard_pattern_has_all_features_on():
    for n_features in (8, 37, 64):
        patterns = ScrambledHadamard(n_features).patterns
        assert patterns.mean(axis=1).max() < 0.9
        assert np.linalg.matrix_rank(patterns.astype(float)) == n_features


@pytest.mark.parametrize("n_features", [2, 3, 31, 32, 33])
@pytest.mark.parametrize("n_singles", [0, 4])
def test_hadamard_patterns_have_an_inverse(n_features, n_singles):
    plan = ScrambledHadamard(n_features, n_singles=n_singles)
    matrix = gaussian_matrix(n_features=n_features)
    np.testing.assert_allclose(plan.invert(matrix @ plan.patterns.T), matrix, atol=1e-12)


def test_the_inverse_of_many_patterns_takes_little_memory():
    plan = ScrambledHadamard(4096)
    fields = np.ones((64, 4096), np.complex64)
    tracemalloc.start()
    plan.invert(fields)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result takes 4 MB; a matrix of 4096 x 4096 would take 128.
    assert peak < 40e6


def test_single_patterns_make_the_first_feature_as_good_as_the_others():
    rng = np.random.default_rng(0)
    errors = []
    for n_singles in (0, 8):
        plan = ScrambledHadamard(64, n_singles=n_singles)
        noise = rng.standard_normal((2000, len(plan.patterns)))
        errors.append((plan.invert(noise).real ** 2).mean(axis=0))
    alone, helped = errors
    assert alone[0] == pytest.approx(1, rel=0.15)
    assert helped[0] == pytest.approx(1 / 9, rel=0.15)
    np.testing.assert_allclose(alone[1:], 4 / 64, rtol=0.2)
    np.testing.assert_allclose(helped[1:], 4 / 64, rtol=0.2)


def test_anchors_and_dark_anchors():
    matrix = gaussian_matrix(n_features=64)
    plan = AnchorPlan(64, n_anchors=4)
    first = plan.patterns[0]
    matrix[0, first] = 0
    for anchor in plan.patterns[1:4]:
        # Anchors of one phase: the quadrature to them is lost.
        matrix[1, anchor] = np.abs(matrix[1, anchor])
        matrix[2, anchor] = 0
    matrix[2, first] = 0
    counts = counts_of(matrix, plan.patterns).astype(np.float32)
    start = plan.recover(counts)
    assert start.spread[1:3].max() < LEAST_SPREAD
    retrieval = PhaseRetrieval(n_restarts=0, n_polish=60).fit(
        plan.patterns, counts, saturation=255, initial=start.matrix
    )
    kept = retrieval.kept_ & (start.spread >= LEAST_SPREAD)
    assert not kept[1:3].any()
    assert kept.mean() > 0.8
    assert row_correlations(retrieval.matrix_, matrix)[kept].mean() > 0.99


@pytest.mark.parametrize("n_steps", [3, 4])
@pytest.mark.parametrize("visibility", [1.0, 0.6])
def test_steps_of_a_reference(n_steps, visibility):
    matrix = gaussian_matrix()
    plan = SteppingPlan(N, n_steps)
    background = 0.05 * matrix.sum(axis=1)
    fields = plan.patterns @ matrix.T + background
    phases = np.exp(2j * np.pi * np.arange(n_steps) / n_steps)
    arm = 5 * np.tile(phases, len(fields) // n_steps)[:, np.newaxis]
    exact = np.abs(fields) ** 2 + 25 + 2 * visibility * (fields * arm.conj()).real
    found = plan.recover(exact)
    relative = np.abs((found.matrix * matrix.conj()).sum(axis=1)) / np.linalg.norm(matrix, axis=1) ** 2
    np.testing.assert_allclose(relative, 1, atol=0.05)
    assert row_correlations(found.matrix, matrix).min() > 0.9999
    np.testing.assert_allclose(np.abs(found.background), np.abs(background), atol=0.1 * np.abs(background).max())
    assert found.kept.all()


def test_a_row_that_saturates_keeps_to_what_is_likely():
    matrix = gaussian_matrix(n_features=64)
    matrix[0] += 0.3
    plan = SteppingPlan(64, 3)
    phases = np.exp(2j * np.pi * np.arange(3) / 3)
    fields = plan.patterns @ matrix.T
    arm = 6 * np.tile(phases, len(fields) // 3)[:, np.newaxis]
    intensities = np.minimum(np.abs(fields + arm) ** 2, 300)
    assert (intensities[:, 0] == 300).mean() > 0.1
    as_bounds = row_correlations(plan.recover(intensities, saturation=300).matrix, matrix)
    as_counts = row_correlations(plan.recover(intensities).matrix, matrix)
    assert as_bounds[0] > 0.999
    assert as_counts[0] < 0.99


@pytest.mark.parametrize(("method", "least_share"), [("three_step", 0.99), ("four_step", 1.0)])
def test_good_rows_of_stepped_phases_are_kept(method, least_share):
    with bench("interferometer", seed=7) as device:
        found = measure_transmission_matrix(device, n_features=128, n_outputs=256, method=method)
        truth = device.capability(opu.GroundTruth).transmission_matrix(found.config)
    assert found.kept.mean() >= least_share
    assert row_correlations(found.matrix, truth)[found.kept].min() > 0.995


def stepped_intensities(matrix, plan, arm=6.0):
    phases = np.exp(2j * np.pi * np.arange(plan.n_steps) / plan.n_steps)
    fields = plan.patterns @ matrix.T
    return np.abs(fields + arm * np.tile(phases, len(fields) // plan.n_steps)[:, np.newaxis]) ** 2


@pytest.mark.parametrize("n_steps", [3, 4])
def test_stepped_rows_have_their_size(n_steps):
    matrix, plan = gaussian_matrix(n_features=64), SteppingPlan(64, n_steps)
    found = plan.recover(stepped_intensities(matrix, plan)).matrix
    assert np.linalg.norm(found) / np.linalg.norm(matrix) == pytest.approx(1, abs=4e-4)


@pytest.mark.parametrize("n_steps", [3, 4])
def test_stepped_rows_whose_frames_are_in_disorder_are_not_kept(n_steps):
    plan = SteppingPlan(64, n_steps)
    intensities = np.random.default_rng(1).poisson(39 * stepped_intensities(gaussian_matrix(n_features=64), plan)) / 39
    # The frames of the last patterns of five rows, one late.
    late = slice(len(plan.patterns) // 2, None)
    intensities[late, :5] = np.roll(intensities[late, :5], 1, axis=0)
    kept = plan.recover(intensities).kept
    assert not kept[:5].any()
    assert kept[5:].all()


def test_three_steps_that_saturate_prove_nothing():
    matrix, plan = gaussian_matrix(n_features=64), SteppingPlan(64, 3)
    matrix[0] *= 2
    intensities = np.minimum(stepped_intensities(matrix, plan), 300)
    saturated = (intensities.reshape(-1, 3, len(matrix)) == 300).any(axis=1).mean(axis=0)
    kept = plan.recover(intensities, saturation=300).kept
    assert saturated[0] > 0.1
    assert not kept[saturated > 0.1].any()
    assert kept[saturated < 0.03].all()


def test_steps_without_any_light():
    plan = SteppingPlan(N, 4)
    found = plan.recover(np.zeros((len(plan.patterns), 5), np.float32))
    assert not found.kept.any()
    assert not found.matrix.any()


AURORA = preset("aurora")
LIGHT = AURORA.laser.electrons_per_mirror_us
FIXED = Limits(minimum=400.0, maximum=400.0, default=400.0, unit="us")


def bench(name="aurora", seed=3, **changes):
    return SimulatedBench(replace(preset(name), **changes), seed=seed)


@pytest.mark.parametrize("name", ["aurora", "ideal", "interferometer"])
def test_a_healthy_device_passes(name):
    kept = []
    with bench(name) as device:
        result = transmission_matrix(device, n_features=N, n_outputs=M, on_matrix=kept.append)
        truth = device.capability(opu.GroundTruth).transmission_matrix(kept[0].config)
    assert result.passed
    assert result.findings == ()
    assert kept[0].method == ("four_step" if name == "interferometer" else "retrieval")
    assert row_correlations(kept[0].matrix, truth)[kept[0].kept].min() > 0.98
    assert set(result.quantities) >= {"held_out", "repeatability", "kept_share", "stability"}


def test_more_anchors_keep_more_rows():
    shares, frames = [], []
    for n_anchors in (2, 4):
        with bench() as device:
            result = transmission_matrix(device, n_features=64, n_outputs=M, method="anchors", n_anchors=n_anchors)
        shares.append(result.quantities["kept_share"].value)
        frames.append(result.quantities["frames_per_feature"].value)
    assert shares[1] > max(shares[0], 0.9)
    assert frames[1] - frames[0] == pytest.approx(2, abs=0.1)
    with bench() as device, pytest.raises(ConfigError, match="n_anchors"):
        transmission_matrix(device, n_features=64, n_outputs=M, method="anchors", n_anchors=1)


def test_finite_contrast_has_a_background():
    aurora = preset("aurora")
    with bench(dmd=replace(aurora.dmd, contrast=300.0, off_phase_rad=1.0)) as device:
        kept = []
        result = transmission_matrix(device, n_features=N, n_outputs=M, on_matrix=kept.append)
    assert np.abs(kept[0].background).mean() > 0
    assert result.quantities["background_share"].value == pytest.approx(1 / 300 * N / (N / 3), rel=0.5)
    assert result.value > 0.99


def test_a_dead_laser_is_found():
    aurora = preset("aurora")
    with bench(laser=replace(aurora.laser, electrons_per_mirror_us=1e-12)) as device:
        result = transmission_matrix(device, n_features=24, n_outputs=32)
    assert np.isnan(result.value)
    assert not result.passed
    [finding] = result.findings
    assert "no light reaches the camera" in finding


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speckle": SpeckleModel(polarisation=0.7)}, "more than one field"),
        ({"speckle": SpeckleModel(grain_area_px=3.0)}, "more than one field"),
        ({"camera": replace(preset("aurora").camera, read_noise_e=250.0)}, "their noise is in the rows"),
        ({"drift": DriftModel(correlation_time_s=40.0)}, "medium changed"),
    ],
    ids=["polarisation", "grain", "noise", "drift"],
)
def test_why_predictions_miss_is_said(changes, said):
    with bench(**changes) as device:
        result = transmission_matrix(device, n_features=N, n_outputs=M)
    assert result.value < 0.99
    assert not result.passed
    assert said in result.findings[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"laser": replace(AURORA.laser, electrons_per_mirror_us=10 * LIGHT), "exposure_us": FIXED}, "at full scale"),
        ({"camera": replace(AURORA.camera, full_well_e=3000.0)}, "wells of the pixels are full"),
    ],
    ids=["light", "wells"],
)
def test_a_camera_that_saturates_is_named_for_it(changes, said):
    with bench(**changes) as device:
        result = transmission_matrix(device, n_features=N, n_outputs=M)
        following = tracking(device)
        foci = focusing(device)
    assert said in result.findings[0]
    assert not any("so the pixels see" in finding for finding in result.findings)
    assert said in following.findings[-1]
    assert said in " ".join(foci.findings)


def test_a_small_device_is_measured_with_what_it_has():
    dmd, laser = replace(AURORA.dmd, rows=5, columns=8), replace(AURORA.laser, electrons_per_mirror_us=LIGHT * 25_992)
    camera = replace(AURORA.camera, rows=15, columns=15)
    kept = []
    with bench(dmd=dmd, laser=laser, camera=camera) as device:
        result = transmission_matrix(device, on_matrix=kept.append)
        others = [routine(device, matrix=None) for routine in (singular_values, tracking, focusing)]
    assert kept[0].matrix.shape == (225, 40)
    assert result.passed
    assert not any("Ask for at most" in finding for other in others for finding in other.findings)


def test_a_medium_that_jumps_is_found():
    with bench() as device:
        still = transmission_matrix(device, n_features=N, n_outputs=M)
    # The frames of the measurement are the last call but one.
    jump_s = still.device_s - 0.43
    with bench(drift=DriftModel(jump_times_s=(jump_s,))) as device:
        result = transmission_matrix(device, n_features=N, n_outputs=M)
    assert any("medium changed" in finding for finding in result.findings)


def test_what_a_device_does_not_have_is_refused(monkeypatch):
    with bench() as device:
        with pytest.raises(UnsupportedError, match="three_step"):
            measure_transmission_matrix(device, method="three_step")
        description = msgspec.structs.replace(device.describe(), light=("on",))
        with monkeypatch.context() as patch:
            patch.setattr(device, "describe", lambda: description)
            with pytest.raises(UnsupportedError, match="stays on"):
                measure_transmission_matrix(device)
        with pytest.raises(ConfigError, match="method"):
            measure_transmission_matrix(device, method="guess")
        with pytest.raises(ConfigError, match="oversampling"):
            measure_transmission_matrix(device, oversampling=1)
