"""The medium: the compiled matrix is the sum over mirrors, by whichever way it is computed."""

import gc
from operator import attrgetter

import numpy as np
import pytest

import opu
from opu.parts import MirrorLayout
from opu.patterns import pack
from opu.sim.medium import ExplicitMedium, compile_with_numpy, entries_with_numpy

PIXELS = np.array([0, 1, 2, 1000, 2_219_519, 2**31], dtype=np.int64)


@pytest.mark.parametrize(
    ("n_features", "n_mirrors"),
    [
        (1, 1),
        (1, 64),
        (3, 200),  # runs of 66 mirrors, two left over
        (64, 64),
        (65, 65),
        (5, 319),  # runs of 63
        (5, 320),  # of 64
        (7, 455),  # of 65
        (17, 17 * 1000 + 999),  # more than one chunk of blocks, almost a whole run left over
        (40_000, 40_000),
        (1000, 912 * 1140),
    ],
)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_kernel_and_numpy_compile_the_same_matrix(n_features, n_mirrors, seed):
    medium = ExplicitMedium(seed)
    layout = MirrorLayout(n_features, n_mirrors)
    compiled = medium.compile(layout, PIXELS)
    twin = compile_with_numpy(medium.key, PIXELS, layout)
    for name in ("matrix.real", "matrix.imag", "background_real", "background_imag"):
        mine, reference = attrgetter(name)(compiled), attrgetter(name)(twin)
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, reference, err_msg=name)
    assert compiled.matrix.real.shape == (n_features, len(PIXELS))


def test_compiled_fields_are_sums_over_the_lit_mirrors():
    layout = MirrorLayout(n_features=30, n_mirrors=1000)
    medium = ExplicitMedium(5)
    patterns = np.random.default_rng(0).integers(0, 2, (10, 30))
    mirrors = layout.expand(pack(patterns)).astype(np.int64)
    compiled = medium.compile(layout, PIXELS)
    for part, entries, background in zip(
        (compiled.matrix.real, compiled.matrix.imag),
        entries_with_numpy(medium.key, PIXELS, 1000),
        (compiled.background_real, compiled.background_imag),
        strict=True,
    ):
        assert set(np.unique(entries)) == {-1, 1}
        np.testing.assert_array_equal(patterns.astype(np.float32) @ part, mirrors @ entries.T.astype(np.int64))
        np.testing.assert_array_equal(background, entries.sum(axis=1, dtype=np.int64))


def test_photoelectrons_of_the_device_are_sums_over_all_mirrors(make_bench):
    """From the states of the mirrors, on and off, to mean electrons, without the compiled matrix."""
    patterns = np.random.default_rng(0).integers(0, 2, (4, 30))
    config = opu.SessionConfig(n_features=30, n_outputs=50, exposure_us=800)
    with make_bench(contrast=25, electrons=300.0, camera={"dark_current_e_per_s": 2000.0}) as device:
        found = device.capability(opu.GroundTruth).photoelectrons(config, patterns)
        matrix = device.capability(opu.GroundTruth).transmission_matrix(config)
        with device.open_session(config) as session:
            pixels = session.settings.pixels
        entries = entries_with_numpy(device.table.medium.key, pixels, 64 * 64)
    layout = MirrorLayout(30, 64 * 64)
    states = np.where(layout.expand(pack(patterns)), 1.0, 1 / 5)  # amplitudes
    field = states @ (entries[0] + 1j * entries[1]).T / np.sqrt(2)
    electrons_per_mirror = 300 / (64 * 64 / 2) * (800 / 400)
    np.testing.assert_allclose(found, electrons_per_mirror * np.abs(field) ** 2 + 2000 * 800e-6, rtol=1e-4, atol=1e-2)
    feature = matrix[:, 3] * np.sqrt(2)
    run = slice(3 * layout.mirrors_per_feature, 4 * layout.mirrors_per_feature)
    np.testing.assert_allclose(feature, (entries[0] + 1j * entries[1])[:, run].sum(axis=1), rtol=1e-6)


def test_the_matrix_is_the_documented_one():
    """Pinned, so that a seed names the same medium in every release and on every machine."""
    medium = ExplicitMedium(7)
    compiled = medium.compile(MirrorLayout(2, 1000), np.arange(4, dtype=np.int64))
    assert medium.medium_id == "qpsk-d59205a8cec9ec44"
    assert compiled.matrix.real.tolist() == [[6.0, -8.0, 18.0, -30.0], [4.0, 4.0, 18.0, -2.0]]
    assert compiled.matrix.imag.tolist() == [[8.0, 16.0, -16.0, 6.0], [2.0, -18.0, 14.0, -26.0]]


def test_other_seeds_and_pixels_have_uncorrelated_matrices():
    layout = MirrorLayout(1000, 10_000)
    pixels = np.arange(40, dtype=np.int64)
    compiled = [ExplicitMedium(seed).compile(layout, pixels) for seed in (0, 1)]
    rows = np.concatenate([part.T for medium in compiled for part in (medium.matrix.real, medium.matrix.imag)])
    correlation = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlation).max() < 6 / np.sqrt(1000)


def test_a_compiled_medium_is_shared_while_somebody_holds_it_and_then_freed():
    medium = ExplicitMedium(0)
    layout = MirrorLayout(10, 100)
    first = medium.prepare(layout, PIXELS)
    assert medium.prepare(MirrorLayout(10, 100), PIXELS.copy()) is first
    other = medium.prepare(MirrorLayout(5, 100), PIXELS)
    assert other is not first
    assert medium.prepare(layout, PIXELS) is first
    del first, other
    medium.prepare(MirrorLayout(2, 100), PIXELS)
    gc.collect()
    assert len(medium._compiled) == 1
