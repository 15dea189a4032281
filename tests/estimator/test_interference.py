"""Linear projections by reference arms: every method is the product with the true matrix, and says what it costs."""

import numpy as np
import pytest

import opu
from opu.errors import CapacityError, ConfigError
from opu.interference import METHODS, available_methods, off_axis_field

N_FEATURES = 60
INTERFEROMETER = "sim:?preset=interferometer&seed=7"
HOLOGRAPHY = "sim:?preset=holography&seed=7"
PATTERNS = np.random.default_rng(3).integers(0, 2, (200, N_FEATURES))


@pytest.fixture(scope="module")
def interferometer():
    with opu.open(INTERFEROMETER) as device:
        yield device


@pytest.fixture(scope="module")
def holography():
    with opu.open(HOLOGRAPHY) as device:
        yield device


def project(device, patterns, n_outputs=300, **options):
    linear_map = opu.fit_linear_map(device, N_FEATURES, n_outputs, **options)
    with opu.LinearProjector(device, linear_map) as projector:
        return linear_map, projector.project(patterns).output


def explained(patterns, output):
    """The correlation of an output with the best linear function of the patterns, whatever the matrix."""
    X = patterns - patterns.mean(axis=0)
    Y = output - output.mean(axis=0)
    fit = X @ np.linalg.lstsq(X, Y, rcond=None)[0]
    # A least-squares fit with k parameters to n samples also explains k / n of the noise.
    residual = ((Y - fit) ** 2).sum() / (1 - X.shape[1] / len(X))
    return np.sqrt(1 - residual / (Y**2).sum())


def test_the_device_says_what_it_offers_and_the_best_is_taken(interferometer, holography):
    assert available_methods(interferometer.describe()) == ["pi", "anchor", "four_step", "three_step"]
    assert available_methods(holography.describe())[0] == "off_axis"
    with opu.open("sim:?preset=aurora&seed=7") as aurora:
        assert available_methods(aurora.describe()) == ["anchor"]
        with pytest.raises(ConfigError, match="This device offers anchor"):
            opu.fit_linear_map(aurora, 10, 10, method="pi")
    assert opu.fit_linear_map(interferometer, 10, 10).method == "pi"
    assert opu.fit_linear_map(holography, 10, 10).method == "off_axis"


@pytest.mark.parametrize(
    ("method", "least"), [("pi", 0.9985), ("anchor", 0.993), ("four_step", 0.9985), ("three_step", 0.998)]
)
def test_outputs_are_linear_with_unit_weights(interferometer, method, least):
    linear_map, output = project(interferometer, PATTERNS, method=method)
    assert linear_map.frames_per_pattern == METHODS[method].n_frames
    assert output.shape == (200, 300)
    assert explained(PATTERNS, output) > least
    # x W with W of unit variance: the variance over outputs is the number of ones.
    ones = PATTERNS.sum(axis=1)
    assert (output.astype(float) ** 2).mean() == pytest.approx(ones.mean(), rel=0.15)
    assert abs(output.mean()) < 5 * np.sqrt(ones.mean() / 300)


def test_phase_stepping_is_the_product_with_the_true_matrix(interferometer):
    linear_map, output = project(interferometer, PATTERNS, method="four_step")
    matrix = interferometer.capability(opu.GroundTruth).transmission_matrix(linear_map.config)[linear_map.pixels]
    mirrors = interferometer.describe().n_mirrors // N_FEATURES
    field = PATTERNS @ matrix.T / np.sqrt(mirrors / 2)
    for part, truth in zip(np.split(output, 2, axis=1), (field.real, field.imag), strict=True):
        # The arm has one phase everywhere here, 0: the quadratures are those of the matrix.
        assert np.corrcoef(part.ravel(), truth.ravel())[0, 1] > 0.998
        assert (part * truth).sum() / (truth**2).sum() == pytest.approx(1, abs=0.03)


def test_one_hologram_gives_two_outputs_a_place(holography):
    linear_map, output = project(holography, PATTERNS)
    assert linear_map.frames_per_pattern == 1
    assert len(linear_map.pixels) == 150
    assert output.shape == (200, 300)
    assert explained(PATTERNS, output) > 0.99
    assert (output.astype(float) ** 2).mean() == pytest.approx(PATTERNS.sum(axis=1).mean(), rel=0.25)
    # Real and imaginary parts are independent projections.
    real, imag = np.split(output - output.mean(axis=0), 2, axis=1)
    assert abs((real * imag).mean()) < 0.1 * (real**2).mean()


@pytest.mark.parametrize("method", ["pi", "three_step"])
def test_ternary_patterns_cost_twice_and_the_offset_cancels(interferometer, method):
    ternary = np.random.default_rng(5).integers(-1, 2, (100, N_FEATURES))
    linear_map = opu.fit_linear_map(interferometer, N_FEATURES, 200, method=method, expected_ones=N_FEATURES / 3)
    with opu.LinearProjector(interferometer, linear_map) as projector:
        positive = projector.project(ternary == 1).output
        negative = projector.project(ternary == -1).output
        before = projector.next_frame_index
        both = projector.project(ternary)
        assert projector.next_frame_index - before == projector.frames_for(ternary) == 200 * METHODS[method].n_frames
    assert np.corrcoef((positive - negative).ravel(), both.output.ravel())[0, 1] > 0.99


def test_a_map_of_every_method_survives_saving(interferometer, holography, tmp_path):
    for device, method in ((interferometer, "pi"), (interferometer, "three_step"), (holography, "off_axis")):
        linear_map, output = project(device, PATTERNS[:5], method=method, n_outputs=21)
        linear_map.save(tmp_path / "map.npz")
        loaded = opu.LinearMap.load(tmp_path / "map.npz")
        with opu.LinearProjector(device, loaded) as projector:
            np.testing.assert_array_equal(projector.project(PATTERNS[:5]).output, output)
        assert output.shape == (5, 21)


def test_frame_numbers_must_fit_the_phases(interferometer):
    linear_map = opu.fit_linear_map(interferometer, 10, 10, method="four_step")
    with pytest.raises(ConfigError, match="multiple of 4"):
        opu.LinearProjector(interferometer, linear_map, first_frame_index=1001)


def test_pixels_of_one_grain_are_not_taken_for_independent():
    """The laboratory has grains of four pixels, and uneven light: the weights still have unit variance."""
    patterns = np.random.default_rng(0).integers(0, 2, (300, 40))
    with opu.open("sim:?preset=laboratory&seed=7") as device:
        linear_map = opu.fit_linear_map(device, 40, 200)
        assert linear_map.config.stride == 3
        with opu.LinearProjector(device, linear_map) as projector:
            output = projector.project(patterns).output
    W = np.linalg.lstsq(patterns.astype(float), output, rcond=None)[0]
    assert W.var() == pytest.approx(1, rel=0.15)
    neighbours = [np.corrcoef(W[:, i], W[:, i + 1])[0, 1] for i in range(199)]
    assert abs(np.mean(neighbours)) < 0.1


def test_the_frames_of_a_pattern_stand_side_by_side(interferometer):
    """So that slow changes of the light do not come between them."""
    linear_map = opu.fit_linear_map(interferometer, N_FEATURES, 400)
    with opu.LinearProjector(interferometer, linear_map) as projector:
        frames = projector.project(PATTERNS[:10]).projection.frames[:, linear_map.pixels].astype(float)
        doubled = projector.project(PATTERNS[:10]).output
    difference = (frames[0::2] - frames[1::2]) / 4
    projected = (difference - linear_map.offset_dn) * linear_map.scale_per_dn
    assert np.corrcoef(projected.ravel(), doubled.ravel())[0, 1] > 0.99


def test_a_hologram_too_large_for_the_camera_is_refused(holography):
    with pytest.raises(CapacityError, match="fewer outputs"):
        opu.fit_linear_map(holography, 10, 2_000_000)


def test_the_estimator_takes_the_best_method(interferometer):
    X = np.random.default_rng(0).normal(size=(20, 30))
    with opu.OPU(100, device=interferometer).fit(X) as features:
        output = features.linear_transform(X)
        assert features.linear_map_.method == "pi"
    assert output.shape == (20, 100)


def test_the_reconstruction_finds_a_field_that_it_can_know():
    """A band-limited random field, without noise: exact in the middle of the image."""
    generator = np.random.default_rng(0)
    size, carrier = 128, (0.34, 0.34)
    spectrum = generator.normal(size=(2, size, size)) @ np.eye(size)
    frequency = np.hypot(np.fft.fftfreq(size)[:, np.newaxis], np.fft.fftfreq(size))
    field = np.fft.ifft2((spectrum[0] + 1j * spectrum[1]) * (frequency < 0.13)) * size
    place = np.arange(size)
    arm = 5 * np.exp(2j * np.pi * (carrier[0] * place[:, np.newaxis] + carrier[1] * place))
    images = np.abs(field + arm)[np.newaxis] ** 2
    found = off_axis_field(images, carrier)[0, 20:-20, 20:-20].ravel()
    truth = 5 * field[20:-20, 20:-20].ravel()
    agreement = np.vdot(truth, found) / np.vdot(truth, truth)
    assert abs(agreement - 1) < 0.02
    assert np.linalg.norm(found - truth) / np.linalg.norm(truth) < 0.1
    # With the conjugate carrier it is the conjugate field.
    other = off_axis_field(images, (-0.34, -0.34))[0, 20:-20, 20:-20].ravel()
    np.testing.assert_allclose(other, found.conj(), atol=1e-9)
