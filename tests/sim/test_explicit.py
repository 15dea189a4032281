"""The explicit medium: the compiled matrix is the sum over mirrors, by whichever way it is computed, at every epoch."""

import gc

import numpy as np
import pytest

import opu
from opu.parts import LAYOUTS, UNUSED_MIRROR, MirrorLayout
from opu.patterns import pack
from opu.sim.media.base import EpochTrack
from opu.sim.media.explicit import CompiledMedium, ExplicitMedium, compile_with_numpy
from opu.sim.media.qpsk import entries_with_numpy
from opu.sim.mirrors import FULL_LEVEL, STUCK_ON, MirrorMap, n_blocks

POINTS = np.array([0, 1, 2, 1000, 2_219_519, 2**31, 2**40 + 5], dtype=np.int64)


def even(layout):
    """All mirrors in full light."""
    return MirrorMap(layout.n_features, layout.features, np.ones(layout.n_mirrors, np.uint8))


def uneven(layout, full_level=FULL_LEVEL, seed=0):
    """Random light, and some mirrors that are stuck."""
    generator = np.random.default_rng(seed)
    features = layout.features.copy()
    features[generator.choice(layout.n_mirrors, 9, replace=False)] = STUCK_ON
    features[generator.choice(layout.n_mirrors, 9, replace=False)] = UNUSED_MIRROR
    levels = generator.integers(0, full_level + 1, layout.n_mirrors).astype(np.uint8)
    return MirrorMap(layout.n_features, features, levels, full_level)


def still(mirrors, n_frames):
    return EpochTrack.still(n_frames, np.zeros(n_blocks(mirrors.n_mirrors), np.uint32))


def assert_compiled(compiled, medium, mirrors, epochs):
    matrix, stuck, everything = compile_with_numpy(medium.key, mirrors, compiled.points, epochs)
    np.testing.assert_array_equal(compiled.transmission_matrix(), matrix.astype(np.complex64))
    np.testing.assert_array_equal(compiled.rest @ [1, 1j], np.stack([stuck, everything], axis=1))


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
        (3000, 3000),
        (20, 120_000),
    ],
)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_kernel_and_numpy_compile_the_same_matrix(n_features, n_mirrors, seed):
    medium = ExplicitMedium(seed)
    mirrors = even(MirrorLayout(n_features, 1, n_mirrors))
    compiled = medium.prepare(mirrors, POINTS)
    assert compiled.transmission_matrix().shape == (len(POINTS), n_features)
    assert_compiled(compiled, medium, mirrors, np.zeros(n_blocks(n_mirrors), np.uint32))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("full_level", [1, FULL_LEVEL])
def test_layouts_levels_stuck_mirrors_and_epochs_are_compiled(kind, full_level):
    medium = ExplicitMedium(3)
    mirrors = uneven(MirrorLayout(30, 37, 41, kind), full_level)
    epochs = np.random.default_rng(1).integers(0, 3, n_blocks(37 * 41)).astype(np.uint32)
    assert_compiled(CompiledMedium(medium, mirrors, POINTS, epochs), medium, mirrors, epochs)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("n_changes", [1, 60, 700])
def test_fields_of_a_drifting_sequence_are_exact_in_every_frame(kind, n_changes):
    medium = ExplicitMedium(3)
    mirrors = uneven(MirrorLayout(30, 37, 41, kind))
    generator = np.random.default_rng(n_changes)
    blocks, n_frames = n_blocks(37 * 41), 40
    epochs = [generator.integers(0, 3, blocks).astype(np.uint32) for _ in range(2)]
    track = EpochTrack(
        n_frames,
        epochs[1],
        np.sort(generator.integers(1, n_frames, n_changes)),
        generator.integers(0, blocks, n_changes),
        generator.integers(3, 9, n_changes).astype(np.uint32),
    )
    features = generator.integers(0, 2, (n_frames, 30), dtype=np.uint8)
    prepared = CompiledMedium(medium, mirrors, POINTS, epochs[0])
    found = prepared.fields(features, track)
    for frame, now in enumerate(track.by_frame()):
        matrix, stuck, everything = compile_with_numpy(medium.key, mirrors, POINTS, now)
        np.testing.assert_array_equal(found.real[frame] + 1j * found.imag[frame], matrix @ features[frame] + stuck)
        np.testing.assert_array_equal(found.all_real[frame] + 1j * found.all_imag[frame], everything)
    # In pieces, and back in time.
    for start, stop in ((25, 40), (0, 9), (9, 25)):
        part = prepared.fields(features[start:stop], track.part(start, stop))
        np.testing.assert_array_equal(part.real, found.real[start:stop])
        np.testing.assert_array_equal(np.broadcast_to(part.all_imag, part.imag.shape), found.all_imag[start:stop])


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("full_level", [1, FULL_LEVEL])
def test_bringing_the_matrix_up_to_date_draws_only_what_changed(kind, full_level, monkeypatch):
    medium = ExplicitMedium(3)
    mirrors = uneven(MirrorLayout(30, 60, 70, kind), full_level)
    assert mirrors.has_stuck_on
    generator = np.random.default_rng(1)
    epochs = generator.integers(0, 3, n_blocks(60 * 70)).astype(np.uint32)
    compiled = CompiledMedium(medium, mirrors, POINTS, epochs)
    features = generator.integers(0, 2, (3, 30), dtype=np.uint8)
    monkeypatch.setattr(CompiledMedium, "_compile", None)  # no other way than block by block
    for _ in range(4):
        epochs = epochs.copy()
        epochs[generator.choice(len(epochs), len(epochs) // 4, replace=False)] += 5
        compiled.fields(features, EpochTrack.still(3, epochs))
        assert_compiled(compiled, medium, mirrors, epochs)


def test_only_mirrors_without_a_feature_may_renew():
    medium = ExplicitMedium(3)
    layout = MirrorLayout(9, 40, 64, "centred")
    mirrors = even(layout)
    blocks = n_blocks(layout.n_mirrors)
    track = EpochTrack(
        30, np.zeros(blocks, np.uint32), np.array([4, 9]), np.array([0, blocks - 1]), np.array([1, 1], np.uint32)
    )
    assert not (layout.features[:64] >= 0).any()
    features = np.random.default_rng(0).integers(0, 2, (30, 9), dtype=np.uint8)
    found = medium.prepare(mirrors, POINTS).fields(features, track)
    np.testing.assert_array_equal(found.real, medium.prepare(mirrors, POINTS).fields(features, still(mirrors, 30)).real)
    assert (found.all_real[3] != found.all_real[4]).any()


def test_a_compilation_that_fails_is_done_again(monkeypatch):
    medium = ExplicitMedium(3)
    mirrors = uneven(MirrorLayout(30, 37, 41))
    compiled = medium.prepare(mirrors, POINTS)
    epochs = np.ones(n_blocks(37 * 41), np.uint32)
    features = np.ones((3, 30), np.uint8)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("opu.sim.media.explicit._compile", fail)
        with pytest.raises(MemoryError):
            compiled.fields(features, EpochTrack.still(3, epochs))
    found = compiled.fields(features, EpochTrack.still(3, epochs))
    fresh = CompiledMedium(medium, mirrors, POINTS, epochs).fields(features, EpochTrack.still(3, epochs))
    np.testing.assert_array_equal(found.real, fresh.real)


def test_features_too_bright_for_16_bits_are_exact():
    medium = ExplicitMedium(0)
    layout = MirrorLayout(2, 500, 800)
    mirrors = MirrorMap(2, layout.features, np.full(layout.n_mirrors, FULL_LEVEL, np.uint8), FULL_LEVEL)
    compiled = medium.prepare(mirrors, POINTS)
    assert compiled.matrix.blocks.dtype == np.int32
    assert medium.session_bytes(mirrors, len(POINTS)) == compiled.matrix.blocks.nbytes + compiled.rest.nbytes
    assert_compiled(compiled, medium, mirrors, np.zeros(n_blocks(layout.n_mirrors), np.uint32))
    found = compiled.fields(np.ones((30, 2), np.uint8), still(mirrors, 30))
    np.testing.assert_array_equal(found.real[7], compiled.transmission_matrix().real.sum(axis=1))


def test_any_block_of_entries_is_the_truth_of_the_fields():
    medium = ExplicitMedium(5)
    mirrors = even(MirrorLayout(50, 50, 50))
    epochs = np.arange(n_blocks(2500), dtype=np.uint32)
    features = np.random.default_rng(0).integers(0, 2, (6, 50), dtype=np.uint8)
    found = medium.prepare(mirrors, POINTS).fields(features, EpochTrack.still(6, epochs))
    entries = medium.entries(np.arange(2500), POINTS, epochs)
    assert entries.dtype == np.complex64
    assert set(np.unique(entries)) == {1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j}
    states = mirrors.states(features).astype(np.float64)
    np.testing.assert_array_equal(found.real + 1j * found.imag, states @ entries.T)
    chosen = np.array([2499, 3, 700])
    np.testing.assert_array_equal(medium.entries(chosen, POINTS[::-2], epochs), entries[::-2][:, chosen])


def test_photoelectrons_of_the_device_are_sums_over_all_mirrors(make_bench):
    """From the states of the mirrors, on and off, to mean electrons, without the compiled matrix."""
    patterns = np.random.default_rng(0).integers(0, 2, (4, 30))
    config = opu.SessionConfig(n_features=30, n_outputs=50, exposure_us=800)
    dmd = {"contrast": 25.0, "off_phase_rad": 0.7}
    with make_bench(dmd=dmd, electrons=300.0, camera={"dark_current_e_per_s": 2000.0}) as device:
        truth = device.capability(opu.GroundTruth)
        found = truth.photoelectrons(config, patterns)
        matrix = truth.transmission_matrix(config)
        with device.open_session(config) as session:
            pixels = session.settings.pixels
        entries = truth.entries(pixels, np.arange(64 * 64))
    layout = MirrorLayout(30, 64, 64)
    states = np.where(layout.expand(pack(patterns)), 1.0, np.exp(0.7j) / 5)  # amplitudes
    electrons_per_mirror = 300 / (64 * 64 / 2) * (800 / 400)
    expected = electrons_per_mirror * np.abs(states @ entries.T) ** 2 + 2000 * 800e-6
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    run = slice(3 * layout.mirrors_per_feature, 4 * layout.mirrors_per_feature)
    np.testing.assert_allclose(matrix[:, 3], entries[:, run].sum(axis=1), rtol=1e-6)


def test_the_matrix_is_the_documented_one():
    """Pinned, so that a seed names the same medium in every release and on every machine."""
    medium = ExplicitMedium(7)
    compiled = medium.prepare(even(MirrorLayout(2, 1, 1000)), np.arange(4, dtype=np.int64))
    assert medium.medium_id == "qpsk-d59205a8cec9ec44"
    assert compiled.matrix.real.tolist() == [[6.0, -8.0, 18.0, -30.0], [4.0, 4.0, 18.0, -2.0]]
    assert compiled.matrix.imag.tolist() == [[8.0, 16.0, -16.0, 6.0], [2.0, -18.0, 14.0, -26.0]]


def test_other_seeds_points_and_epochs_have_uncorrelated_matrices():
    mirrors = even(MirrorLayout(1000, 100, 100))
    points = np.arange(40, dtype=np.int64)
    renewed = np.ones(n_blocks(10_000), np.uint32)
    compiled = [
        ExplicitMedium(0).prepare(mirrors, points),
        ExplicitMedium(1).prepare(mirrors, points),
        CompiledMedium(ExplicitMedium(0), mirrors, points, renewed),
    ]
    rows = np.concatenate([part for one in compiled for part in (one.matrix.real.T, one.matrix.imag.T)])
    correlation = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlation).max() < 6 / np.sqrt(1000)


def test_entries_of_one_block_do_not_depend_on_the_epochs_of_others():
    epochs = np.array([0, 4, 0], np.uint32)
    mirrors = np.arange(150)
    before, after = (entries_with_numpy((np.uint64(1), np.uint64(2)), POINTS, mirrors, e) for e in (0 * epochs, epochs))
    same = (before == after).mean(axis=0)
    assert (same[:64] == 1).all()
    assert (same[128:] == 1).all()
    assert same[64:128].mean() < 0.5


def test_a_light_path_is_shared_while_somebody_holds_it_and_then_freed(make_bench):
    with make_bench() as bench:
        table = bench.table
        layout, pixels = MirrorLayout(10, 64, 64), np.arange(7, dtype=np.int64)
        first = table.prepare(layout, pixels)
        assert table.prepare(MirrorLayout(10, 64, 64), pixels.copy()) is first
        other = table.prepare(MirrorLayout(5, 64, 64), pixels)
        assert other is not first
        assert table.prepare(MirrorLayout(10, 64, 64, "macro_2d"), pixels) is not first
        assert table.prepare(layout, pixels) is first
        del first, other
        table.prepare(MirrorLayout(2, 64, 64), pixels)
        gc.collect()
        assert len(table._paths) == 1
