"""Grain, pixel area and polarisation: the speckle of a circular pupil on square pixels."""

import tracemalloc

import numba
import numpy as np
import pytest
from scipy.special import j1

from opu.errors import CapacityError, ConfigError, InputError
from opu.sim.counters import derive_key, philox_words
from opu.sim.speckle import SECOND_POLARISATION, SpeckleModel, intensity_with_numpy
from opu.sim.variates import normal_pairs

TABLE = {0.05: 0.979, 0.20: 0.910, 0.79: 0.710, 3.1: 0.439, 12.6: 0.245}
"""Contrast after integration over `r` grains of a circular pupil, from independent simulations."""


def square_region(side, columns=1000, row=0, column=0):
    return ((row + np.arange(side))[:, np.newaxis] * columns + column + np.arange(side)).ravel()


def white_noise(points, n_frames, seed=0):
    """Standard circular Gaussian fields that depend on the number of the point and of the frame alone."""
    low, high = points.astype(np.uint64) & np.uint64(0xFFFFFFFF), points.astype(np.uint64) >> np.uint64(32)
    words = philox_words((low, high, np.arange(n_frames)[:, np.newaxis], 0), derive_key("test of grain", seed))
    return tuple(z * np.float32(np.sqrt(0.5)) for z in normal_pairs(*words[:2]))


def frames(model, n_frames, side, seed=0):
    sampling = model.arrange(square_region(side), 1000)
    return sampling.intensity(*white_noise(sampling.points, n_frames, seed)).reshape(n_frames, side, side)


def coherence(distance, grain_area):
    """|mu|^2 of a circular pupil at a distance in pixels: mu = 2 J1(v) / v, v = pi distance / L, A_c = 4 L^2 / pi."""
    v = np.maximum(np.pi * distance / np.sqrt(np.pi / 4 * grain_area), 1e-9)
    return (2 * j1(v) / v) ** 2


def pixel_covariance(grain_area, lag=(0, 0)):
    """Covariance of the intensities of two pixels, mean 1: |mu|^2 averaged over both of them."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x, w = nodes / 2, weights / 2
    differences = x[:, np.newaxis] - x
    pairs = np.outer(w, w)
    # Along an axis only differences count; sort them into one vector with their weights.
    flat, share = differences.ravel(), pairs.ravel()
    distance = np.hypot((flat + lag[0])[:, np.newaxis], flat + lag[1])
    return share @ coherence(distance, grain_area) @ share


def stencil_covariance(stencil):
    """Covariance of a pixel's intensity, mean 1, by the weights of the stencil, averaged over its period."""
    total = 0.0
    for table in stencil.weights.astype(np.float64):
        flat = table.reshape(len(table), -1)
        total += stencil.quadrature @ (flat @ flat.T) ** 2 @ stencil.quadrature
    return total / len(stencil.weights)


@pytest.mark.parametrize("r", [0.01, 0.05, 0.1, 0.2, 0.4, 0.79, 1.5, 3.1, 6.0, 12.6, 25.0, 50.0])
def test_contrast_of_the_stencil_is_that_of_the_pupil(r):
    expected = np.sqrt(pixel_covariance(1 / r))
    found = np.sqrt(stencil_covariance(SpeckleModel(grain_area_px=1 / r).stencil))
    assert found == pytest.approx(expected, rel=0.006)
    if r in TABLE:
        assert found == pytest.approx(TABLE[r], rel=0.02)
        # A pupil that is a fifth wider would be noticed.
        other = np.sqrt(stencil_covariance(SpeckleModel(grain_area_px=1 / r / 1.44).stencil))
        assert other < expected * (1 - 0.006)


@pytest.mark.parametrize(
    ("r", "side", "n_frames"), [(0.05, 100, 60), (0.20, 80, 32), (0.79, 64, 16), (3.1, 64, 8), (12.6, 40, 8)]
)
def test_contrast_of_pixels_follows_the_table(r, side, n_frames):
    taken = frames(SpeckleModel(grain_area_px=1 / r), n_frames, side)
    assert taken.std() / taken.mean() == pytest.approx(TABLE[r], rel=0.02)
    # At least 8000 grains, or pixels.
    assert taken.mean() == pytest.approx(1, abs=0.04 * TABLE[r])


def test_neighbouring_pixels_are_correlated_as_the_pupil_says():
    taken = frames(SpeckleModel(grain_area_px=4), 100, 100)
    taken -= taken.mean()
    variance = np.mean(taken**2)
    for lag in range(6):
        expected = pixel_covariance(4, (0, lag)) / pixel_covariance(4)
        for pair in ((taken[:, :, lag:], taken[:, :, : 100 - lag]), (taken[:, lag:], taken[:, : 100 - lag])):
            assert np.mean(pair[0] * pair[1]) / variance == pytest.approx(expected, abs=0.025)
    wrong = pixel_covariance(5, (0, 1)) / pixel_covariance(5)
    assert abs(wrong - pixel_covariance(4, (0, 1)) / pixel_covariance(4)) > 0.025


def test_the_correlation_area_is_that_of_the_pupil():
    """`A_c = integral of |mu|^2 dA = (lambda z)^2 / pupil area = 4 L^2 / pi` with `L = lambda z / D`."""
    step = 0.001
    radius = np.arange(0, 400, step)
    assert np.sum(coherence(radius, 4 / np.pi) * 2 * np.pi * radius) * step == pytest.approx(4 / np.pi, rel=0.002)


@pytest.mark.parametrize(("grain_area", "side"), [(2.0, 17), (9.0, 31)])
def test_the_covariance_of_the_intensity_adds_up_to_the_correlation_area(grain_area, side):
    """But for the outer rings, which the stencil leaves out: 5 % of the area."""
    sampling = SpeckleModel(grain_area_px=grain_area).arrange(square_region(side), 1000)
    stencil = sampling.stencil
    response = np.zeros((side * side, len(stencil.quadrature), len(sampling.points)), np.float32)
    for pixel, row in np.ndindex(side * side, stencil.width):
        window = sampling.starts[pixel, row] + np.arange(stencil.width)
        response[pixel][:, window] = stencil.weights[sampling.phases[pixel], :, row]
    shares = np.tile(stencil.quadrature, side * side)
    sums = []
    for row, column in np.ndindex(stencil.period, stencil.period):
        middle = response[(side // 2 + row) * side + side // 2 + column]
        sums.append(shares @ (response.reshape(len(shares), -1) @ middle.T) ** 2 @ stencil.quadrature)
    assert np.mean(sums) == pytest.approx(0.953 * grain_area, rel=0.01)


@pytest.mark.parametrize("polarisation", [0.0, 0.5, 0.9, 1.0])
def test_contrast_with_two_polarisations(polarisation):
    expected = np.sqrt((1 + polarisation**2) / 2)
    plain = frames(SpeckleModel(polarisation=polarisation), 10, 80)
    assert plain.mean() == pytest.approx(1, abs=0.02)
    assert plain.std() / plain.mean() == pytest.approx(expected, rel=0.02)
    grained = frames(SpeckleModel(polarisation=polarisation, grain_area_px=1.5), 20, 64)
    assert grained.mean() == pytest.approx(1, abs=0.02)
    contrast = np.sqrt(pixel_covariance(1.5))
    assert grained.std() / grained.mean() == pytest.approx(expected * contrast, rel=0.02)


@pytest.mark.parametrize("model", [{"grain_area_px": 20.0}, {"grain_area_px": 1.0}, {"polarisation": 0.3}])
def test_a_pixel_does_not_depend_on_which_others_are_read(model):
    model = SpeckleModel(**model)
    pixels = square_region(12, row=30, column=20)
    whole = model.arrange(pixels, 1000)
    intensity = whole.intensity(*white_noise(whole.points, 3))
    chosen = np.random.default_rng(0).permutation(len(pixels))[:17]
    part = model.arrange(pixels[chosen], 1000)
    assert len(part.points) < len(whole.points)
    assert set(part.points) < set(whole.points)
    np.testing.assert_array_equal(part.intensity(*white_noise(part.points, 3)), intensity[:, chosen])


@pytest.mark.parametrize("grain_area", [0.1, 0.3, 1.0, 4.0, 20.0, 1000.0])
def test_light_is_spread_evenly(grain_area):
    """Unit gain for every pixel of a period: each sample has unit energy, each pixel the mean of its samples."""
    stencil = SpeckleModel(grain_area_px=grain_area).stencil
    np.testing.assert_allclose(np.sum(stencil.weights.astype(float) ** 2, axis=(2, 3)), 1, rtol=1e-6)
    assert stencil.quadrature.sum() == pytest.approx(1, rel=1e-6)
    pixels = np.arange(0, 1000 * 1000, 999_999)
    sampling = SpeckleModel(grain_area_px=grain_area).arrange(pixels, 1000)
    fields = white_noise(sampling.points, 2)
    np.testing.assert_array_equal(sampling.intensity(*fields), intensity_with_numpy(sampling, *fields))


@pytest.mark.parametrize("n_steps", [1, 3, 4, 70])
@pytest.mark.parametrize("n_frames", [2, 33, 70])
def test_the_steps_of_an_arm_come_again(n_frames, n_steps):
    sampling = SpeckleModel(grain_area_px=5.0, polarisation=0.5).arrange(square_region(9)[:77], 1000)
    real, imag = white_noise(sampling.points, n_frames)
    n_samples = 77 * len(sampling.stencil.quadrature)
    arm = np.random.default_rng(0).normal(size=(2, n_steps, n_samples)).astype(np.float32)
    steps = (arm[0] + 1j * arm[1]).astype(np.complex64)
    expected = intensity_with_numpy(sampling, real, imag, steps[np.arange(n_frames) % n_steps])
    np.testing.assert_array_equal(sampling.intensity(real, imag, steps[:n_frames]), expected)


@pytest.mark.parametrize("n_frames", [1, 31, 33, 70])
@pytest.mark.parametrize(
    "model", [{}, {"polarisation": 0.2}, {"grain_area_px": 5.0}, {"grain_area_px": 1.0, "polarisation": 0.5}]
)
def test_kernel_and_numpy_agree_to_the_bit_for_any_threads_and_split(model, n_frames):
    sampling = SpeckleModel(**model).arrange(square_region(9)[:77], 1000)
    real, imag = white_noise(sampling.points, n_frames)
    expected = intensity_with_numpy(sampling, real, imag)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(sampling.intensity(real, imag), expected)
    split = n_frames // 3
    parts = [sampling.intensity(real[part], imag[part]) for part in (slice(0, split), slice(split, None))]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(sampling.intensity(real, imag), expected)
    finally:
        numba.set_num_threads(threads)


def test_without_grain_points_are_pixels():
    pixels = np.array([7, 3, 2_219_519])
    plain = SpeckleModel().arrange(pixels, 2040)
    assert plain.is_plain
    np.testing.assert_array_equal(plain.points, pixels)
    real, imag = white_noise(pixels, 4)
    np.testing.assert_array_equal(plain.intensity(real, imag), real * real + imag * imag)
    unpolarised = SpeckleModel(polarisation=0).arrange(pixels, 2040)
    assert not unpolarised.is_plain
    np.testing.assert_array_equal(unpolarised.points, np.concatenate([pixels, pixels + SECOND_POLARISATION]))
    assert not SpeckleModel(grain_area_px=1).arrange(pixels, 2040).is_plain


@pytest.mark.parametrize("model", [{}, {"grain_area_px": 3.0}, {"grain_area_px": 0.1, "polarisation": 0.5}])
def test_memory_is_known_before_it_is_taken(model):
    model = SpeckleModel(**model)
    pixels = square_region(60, columns=2040)
    stated = model.arrange_bytes(pixels, 2040)
    n_points = model.n_points(pixels, 2040)
    field = np.ones((33, n_points), np.float32)
    first = model.arrange(pixels[:1], 2040)
    first.intensity(*white_noise(first.points, 1))  # compiled before anything is measured
    tracemalloc.start()
    sampling = model.arrange(pixels, 2040)
    out = sampling.intensity(field, field)
    taken = tracemalloc.get_traced_memory()[1] - out.nbytes
    tracemalloc.stop()
    assert len(np.unique(sampling.points)) == len(sampling.points) == n_points
    assert 0.4 * stated < taken < stated + 100_000


@pytest.mark.parametrize(
    "wrong", [{"grain_area_px": -1}, {"grain_area_px": 0.01}, {"grain_area_px": 1001}, {"polarisation": 1.1}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="Use 0"):
        SpeckleModel(**wrong)


def test_a_sensor_with_too_many_points_is_refused():
    with pytest.raises(CapacityError, match="smaller sensor"):
        SpeckleModel(grain_area_px=0.02).arrange(np.array([10**11]), 1000)


def test_a_field_at_other_points_is_refused():
    sampling = SpeckleModel(grain_area_px=3).arrange(square_region(4), 1000)
    real, imag = white_noise(sampling.points, 2)
    for wrong in ((real[:, 1:], imag[:, 1:]), (real, imag[:1])):
        with pytest.raises(InputError, match="points"):
            sampling.intensity(*wrong)
