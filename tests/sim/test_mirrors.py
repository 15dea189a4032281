"""The mirrors: layouts, illumination, stuck ones, blaze, contrast, and how long they were on."""

import math

import numpy as np
import pytest

import opu
from opu.parts import LAYOUTS, UNUSED_MIRROR, MirrorLayout
from opu.patterns import pack
from opu.sim.dmd import DMD_CHIPS, Blaze, DmdModel, mirror_map
from opu.sim.mirrors import BLOCK, FULL_LEVEL, STUCK_ON


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("n_features", [1, 3, 28, 784, 1000, 64 * 40])
def test_every_feature_has_equally_many_mirrors_of_its_own(kind, n_features):
    layout = MirrorLayout(n_features, 64, 40, kind)
    features = layout.features
    assert features.shape == (64 * 40,)
    counts = np.bincount(features[features != UNUSED_MIRROR], minlength=n_features)
    assert (counts == layout.mirrors_per_feature).all()
    assert kind != "centred" or layout.mirrors_per_feature == 1


def test_macropixels_are_squares_in_the_order_of_an_image():
    image = MirrorLayout(784, 1140, 912, "macro_2d").features.reshape(1140, 912)
    lit = np.argwhere(image != UNUSED_MIRROR)
    top, left = lit.min(axis=0)
    assert (lit.max(axis=0) + 1 - (top, left)).tolist() == [28 * 32, 28 * 32]
    assert abs((1140 - 28 * 32) / 2 - top) <= 1
    np.testing.assert_array_equal(image[top : top + 896 : 32, left : left + 896 : 32], np.arange(784).reshape(28, 28))
    assert (image[top : top + 32, left : left + 32] == 0).all()


def test_centred_features_lie_in_the_middle():
    image = MirrorLayout(100, 64, 64, "centred").features.reshape(64, 64)
    np.testing.assert_array_equal(image[27:37, 27:37], np.arange(100).reshape(10, 10))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_real_dmd_gets_the_states_that_the_simulator_computes_with(kind):
    layout = MirrorLayout(30, 20, 33, kind)
    patterns = np.random.default_rng(0).integers(0, 2, (5, 30), dtype=np.uint8)
    mirrors = mirror_map(DmdModel(rows=20, columns=33), layout, seed=0)
    states = mirrors.states(patterns)
    np.testing.assert_array_equal(layout.expand(pack(patterns)), states)
    words = mirrors.state_words(patterns)
    assert words.shape == (5, -(-20 * 33 // BLOCK))
    bits = (words[:, :, np.newaxis] >> np.arange(BLOCK, dtype=np.uint64)) & np.uint64(1)
    np.testing.assert_array_equal(bits.reshape(5, -1)[:, : 20 * 33], states)


def test_the_beam_is_gaussian_and_has_an_effective_number_of_mirrors():
    dmd = DmdModel(rows=400, columns=300, beam_radius_mirrors=80.0)
    levels, full_level = dmd.levels()
    amplitude = levels.reshape(400, 300) / full_level
    assert full_level == FULL_LEVEL
    row, column = (np.arange(n) - (n - 1) / 2 for n in (400, 300))
    exact = np.exp(-(row[:, np.newaxis] ** 2 + column**2) / 80.0**2)
    assert np.abs(amplitude - exact).max() <= 0.5 / FULL_LEVEL + 1e-6
    # Of an unclipped beam: (pi w^2 / 2)^2 / (pi w^2 / 4) = pi w^2.
    assert dmd.effective_mirrors == pytest.approx(math.pi * 80**2, rel=0.02)
    assert DmdModel(rows=7, columns=11).effective_mirrors == 77


def test_level_planes_add_up_to_the_levels():
    mirrors = mirror_map(DmdModel(rows=30, columns=41, beam_radius_mirrors=12.0), MirrorLayout(9, 30, 41), seed=0)
    bits = (mirrors.level_planes[:, :, np.newaxis] >> np.arange(BLOCK, dtype=np.uint64)) & np.uint64(1)
    levels = (bits.reshape(len(bits), -1) * (1 << np.arange(len(bits)))[:, np.newaxis]).sum(axis=0)
    np.testing.assert_array_equal(levels[: 30 * 41], mirrors.levels)
    assert (levels[30 * 41 :] == 0).all()


def test_light_falls_off_to_the_edge_and_the_law_of_the_speckle_stays(make_bench):
    patterns = np.zeros((2, 64))
    patterns[0, 31], patterns[1, 0] = 1, 1  # a run in the middle, one at the edge
    config = opu.SessionConfig(n_features=64, n_outputs=20_000)
    with make_bench(dmd={"beam_radius_mirrors": 30.0}, camera={"dark_current_e_per_s": 0.0}) as bench:
        electrons = bench.capability(opu.GroundTruth).photoelectrons(config, patterns)
        half = np.random.default_rng(0).permuted(np.tile([0, 1], (4, 32)), axis=1)
        speckle = bench.capability(opu.GroundTruth).photoelectrons(config, half)
        levels = bench.table.mirrors(MirrorLayout(64, 64, 64)).levels.reshape(64, 64).astype(float)
    power = (levels**2).sum(axis=1)
    assert electrons[1].mean() / electrons[0].mean() == pytest.approx(power[0] / power[31], rel=0.05)
    assert (speckle.std(axis=1) / speckle.mean(axis=1)).mean() == pytest.approx(1, abs=0.02)


def test_stuck_mirrors_do_not_follow_the_pattern():
    dmd = DmdModel(rows=300, columns=300, stuck_on_fraction=0.01, stuck_off_fraction=0.02)
    mirrors = mirror_map(dmd, MirrorLayout(100, 300, 300), seed=4)
    assert (mirrors.features == STUCK_ON).mean() == pytest.approx(0.01, rel=0.15)
    assert (mirrors.features == UNUSED_MIRROR).mean() == pytest.approx(0.02, rel=0.15)
    np.testing.assert_array_equal(mirrors.features, mirror_map(dmd, MirrorLayout(100, 300, 300), seed=4).features)
    assert (mirrors.features != mirror_map(dmd, MirrorLayout(100, 300, 300), seed=5).features).mean() > 0.02


def test_stuck_mirrors_throw_light_into_dark_frames(make_bench):
    config = opu.SessionConfig(n_features=64, n_outputs=20_000)
    with make_bench(dmd={"stuck_on_fraction": 0.05}, electrons=1000, camera={"dark_current_e_per_s": 0.0}) as bench:
        dark = bench.capability(opu.GroundTruth).photoelectrons(config, np.zeros((1, 64)))
        stuck = bench.table.mirrors(MirrorLayout(64, 64, 64)).features == STUCK_ON
    assert dark.mean() == pytest.approx(2 * 1000 * stuck.mean(), rel=0.03)


@pytest.mark.parametrize("contrast", [100, 1000, 10_000])
def test_finite_contrast_costs_sparse_patterns_most(make_bench, contrast):
    """Acceptance A8: correlation of the intensity with that at infinite contrast, for 50, 10 and 2 % of the mirrors on.

    In closed form: the fields `A x` and `A x + eps A (1 - x)` have the correlation `1 / sqrt(1 + (1 / f - 1) /
    contrast)`.
    """
    n_features = 4096
    patterns = np.repeat([0.5, 0.1, 0.02], 12)[:, np.newaxis] * n_features
    patterns = np.random.default_rng(1).random((36, n_features)).argsort(axis=1) < patterns
    config = opu.SessionConfig(n_features=n_features, n_outputs=3000)
    intensities = []
    for ratio in (contrast, np.inf):
        with make_bench(dmd={"contrast": ratio}, camera={"dark_current_e_per_s": 0.0}) as bench:
            intensities.append(bench.capability(opu.GroundTruth).photoelectrons(config, patterns))
    found = [np.corrcoef(one, other)[0, 1] for one, other in zip(*intensities, strict=True)]
    for share, mean in zip((0.5, 0.1, 0.02), np.reshape(found, (3, 12)).mean(axis=1), strict=True):
        assert mean == pytest.approx(1 / (1 + (1 / share - 1) / contrast), abs=0.01)


def test_blaze_numbers():
    """A blaze number of 1 has the order in the middle of its envelope, of 0 four equal ones."""
    pitch_um, tilt = 7.6, math.radians(12)
    orders = 4 * pitch_um / math.sqrt(2) * math.sin(tilt) * math.cos(tilt - math.radians(24))
    good, bad = (Blaze(pitch_um=pitch_um, wavelength_um=orders / n) for n in (8, 9))
    assert good.number == pytest.approx(1)
    assert good.efficiency == pytest.approx(1)
    assert bad.number == pytest.approx(0, abs=1e-9)
    assert bad.efficiency == pytest.approx((2 / math.pi) ** 4)  # sinc(1/2) in amplitude, twice, squared


def test_the_blaze_dims_the_light(make_bench):
    config = opu.SessionConfig(n_features=64, n_outputs=2000)
    blaze = Blaze(pitch_um=7.6, wavelength_um=0.532)
    means = []
    for dmd in ({}, {"blaze": blaze}):
        with make_bench(dmd=dmd, camera={"dark_current_e_per_s": 0.0}) as bench:
            means.append(bench.capability(opu.GroundTruth).photoelectrons(config, np.ones((1, 64))).mean())
    assert means[1] / means[0] == pytest.approx(blaze.efficiency, rel=1e-5)


def test_the_landed_duty_of_each_mirror_is_kept(make_bench):
    with make_bench(dmd={"stuck_on_fraction": 0.01}) as bench:
        duty = bench.capability(opu.MirrorDuty)
        assert np.isnan(duty.landed_on_share()).all()
        with bench.open_session(opu.SessionConfig(n_features=2, n_outputs=5)) as session:
            session.project([[1, 0]] * 3 + [[1, 1]])
        share = duty.landed_on_share()
        features = bench.table.mirrors(MirrorLayout(2, 64, 64)).features.reshape(64, 64)
        assert (share[features == 0] == 1).all()
        assert (share[features == 1] == 0.25).all()
        assert (share[features == STUCK_ON] == 1).all()
        # In another layout, and for twice as long each.
        other = opu.SessionConfig(n_features=4096, n_outputs=5, exposure_us=900.0)
        with bench.open_session(other) as session:
            session.project(np.zeros((2, 4096)))
        assert duty.landed_on_share()[features == 0].mean() == pytest.approx(0.5)


@pytest.mark.parametrize(("bound", "value"), [("_DUTY_BYTES", 100), ("_LAYOUTS_COUNTED", 2)])
def test_the_duty_of_many_layouts_takes_the_memory_of_few(make_bench, monkeypatch, bound, value):
    monkeypatch.setattr(f"opu.sim.table.{bound}", value)
    n_features = (2, 4, 8, 2, 16, 32)  # a layout may come back when its times are those of the mirrors
    with make_bench(dmd={"stuck_on_fraction": 0.01}) as bench:
        expected = np.zeros((64, 64))
        for number in n_features:
            with bench.open_session(opu.SessionConfig(n_features=number, n_outputs=5)) as session:
                pattern = np.arange(number) % 2
                session.project(pattern[np.newaxis])
            features = bench.table.mirrors(MirrorLayout(number, 64, 64)).features.reshape(64, 64)
            expected += np.where(features >= 0, pattern[features], features == STUCK_ON)
        assert len(bench.table._on_time_us) < 4
        assert bench.table._on_time_bytes == sum(times_us.nbytes for times_us in bench.table._on_time_us.values())
        share = bench.capability(opu.MirrorDuty).landed_on_share()
        np.testing.assert_allclose(share, expected / len(n_features), rtol=1e-12)


def test_chips_have_the_sizes_of_their_data_sheets():
    assert {name: (chip.columns, chip.rows) for name, chip in DMD_CHIPS.items()} == {
        "dlp4500": (912, 1140),
        "dlp7000": (1024, 768),
        "dlp650lnir": (1280, 800),
        "dlp9000": (2560, 1600),
        "dlp9500": (1920, 1080),
    }
