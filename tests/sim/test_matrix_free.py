"""The media that store nothing: exact sums over the entries that they state, and entries of the law that they state."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from opu.parts import UNUSED_MIRROR
from opu.sim.counters import derive_key, philox_words
from opu.sim.media.base import EpochTrack
from opu.sim.media.explicit import ExplicitMedium
from opu.sim.media.gaussian import GaussianMedium, gaussian_entries_with_numpy
from opu.sim.media.matrix_free import MatrixFreeMedium
from opu.sim.media.qpsk import entries_with_numpy
from opu.sim.media.qpsk_vectors import CHUNK, N_SHARED, begin_words, end_words
from opu.sim.mirrors import BLOCK, FULL_LEVEL, STUCK_ON, MirrorMap, n_blocks

MEDIA = (MatrixFreeMedium, GaussianMedium)
TWINS = {MatrixFreeMedium: entries_with_numpy, GaussianMedium: gaussian_entries_with_numpy}
NAMES = ("real", "imag", "all_real", "all_imag")
# More than one task of 16 points, some of them of another high word, or none at all.
POINTS = np.array([0, 1, 2, 1000, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**62 - 1, *range(5000, 5010)], dtype=np.int64)


def even(n_features, n_mirrors):
    """Runs of equally many mirrors, in full light."""
    features = (np.arange(n_mirrors) // (n_mirrors // n_features)).astype(np.int32)
    features[features >= n_features] = UNUSED_MIRROR
    return MirrorMap(n_features, features, np.ones(n_mirrors, np.uint8))


def uneven(n_features, n_mirrors, full_level=FULL_LEVEL):
    """Random light, and some mirrors that are stuck."""
    generator = np.random.default_rng(n_mirrors)
    mirrors = even(n_features, n_mirrors)
    for state in (STUCK_ON, UNUSED_MIRROR):
        mirrors.features[generator.choice(n_mirrors, n_mirrors // 50, replace=False)] = state
    levels = generator.integers(0, full_level + 1, n_mirrors).astype(np.uint8)
    return MirrorMap(n_features, mirrors.features, levels, full_level)


def patterns(n_frames, n_features, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (n_frames, n_features), dtype=np.uint8)


def still(mirrors, n_frames, epoch=0):
    return EpochTrack.still(n_frames, np.full(n_blocks(mirrors.n_mirrors), epoch, np.uint32))


def moving(mirrors, n_frames, n_changes, seed=0):
    """Epochs that change at random, several times in a frame and for a block, to any value."""
    generator = np.random.default_rng(seed)
    blocks = n_blocks(mirrors.n_mirrors)
    return EpochTrack(
        n_frames,
        generator.integers(0, 2**32, blocks).astype(np.uint32),
        np.sort(generator.integers(1, n_frames, n_changes)),
        generator.integers(0, blocks, n_changes),
        generator.integers(0, 2**32, n_changes).astype(np.uint32),
    )


def assert_sums(medium, mirrors, features, track, found):
    """Compare fields with sums over mirrors in NumPy, frame by frame."""
    states = mirrors.states(features) * mirrors.levels.astype(np.float64)
    for frame, epochs in enumerate(track.by_frame()):
        entries = TWINS[type(medium)](medium.key, POINTS, np.arange(mirrors.n_mirrors), epochs)
        field, background = entries @ states[frame], entries @ mirrors.levels.astype(np.float64)
        row = frame if len(found.all_real) > 1 else 0
        for part, expected in (
            (found.real[frame], field.real),
            (found.imag[frame], field.imag),
            (found.all_real[row], background.real),
            (found.all_imag[row], background.imag),
        ):
            assert part.dtype == np.float32
            np.testing.assert_array_equal(part, expected.astype(np.float32))


def assert_same(one, other):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_the_matrix_is_that_of_the_explicit_medium(seed):
    mirrors = even(30, 3000)
    media = MatrixFreeMedium(seed), ExplicitMedium(seed)
    assert media[0].medium_id == media[1].medium_id
    assert (media[0].law, media[0].min_ones, media[0].variance) == (
        media[1].law,
        media[1].min_ones,
        media[1].variance,
    )
    features = patterns(20, 30)
    assert_same(*(medium.prepare(mirrors, POINTS).fields(features, still(mirrors, 20)) for medium in media))
    columns = np.array([0, 2999, 64])
    np.testing.assert_array_equal(*(medium.entries(columns, POINTS) for medium in media))


def test_the_matrix_is_the_documented_one():
    """The numbers that pin the explicit medium: those of features of 500 mirrors."""
    mirrors = even(2, 1000)
    found = MatrixFreeMedium(7).prepare(mirrors, np.arange(4)).fields(np.eye(2, dtype=np.uint8), still(mirrors, 2))
    assert found.real.tolist() == [[6.0, -8.0, 18.0, -30.0], [4.0, 4.0, 18.0, -2.0]]
    assert found.imag.tolist() == [[8.0, 16.0, -16.0, 6.0], [2.0, -18.0, 14.0, -26.0]]


SMALL = [(1, 1), (1, 64), (3, 65), (3, 200), (65, 65), (9, 8 * BLOCK), (9, 8 * BLOCK + 1)]  # a Gaussian chunk, and more
LARGE = [(17, CHUNK * BLOCK - 1), (17, CHUNK * BLOCK + 5 * BLOCK + 1)]  # a QPSK chunk, and more


@pytest.mark.parametrize(
    ("make", "n_features", "n_mirrors"),
    [(make, *size) for make in MEDIA for size in SMALL] + [(MatrixFreeMedium, *size) for size in LARGE],
)
def test_fields_are_sums_over_the_lit_mirrors(make, n_features, n_mirrors):
    medium, mirrors, features = make(3), even(n_features, n_mirrors), patterns(3, n_features)
    track = still(mirrors, 3, epoch=2**32 - 1)
    assert_sums(medium, mirrors, features, track, medium.prepare(mirrors, POINTS).fields(features, track))


@pytest.mark.parametrize("make", MEDIA)
@pytest.mark.parametrize("full_level", [1, FULL_LEVEL])
@pytest.mark.parametrize("n_changes", [0, 40, 500])
def test_levels_stuck_mirrors_and_changing_epochs_are_exact_in_every_frame(make, full_level, n_changes):
    medium, mirrors, features = make(3), uneven(30, 1500, full_level), patterns(13, 30)
    track = moving(mirrors, 13, n_changes)
    prepared = medium.prepare(mirrors, POINTS)
    found = prepared.fields(features, track)
    assert_sums(medium, mirrors, features, track, found)
    # In pieces, and back in time.
    for start, stop in ((9, 13), (0, 4), (4, 9)):
        part = prepared.fields(features[start:stop], track.part(start, stop))
        np.testing.assert_array_equal(part.real, found.real[start:stop])
        np.testing.assert_array_equal(part.imag, found.imag[start:stop])
        all_imag = np.broadcast_to(found.all_imag, found.imag.shape)[start:stop]
        np.testing.assert_array_equal(np.broadcast_to(part.all_imag, part.imag.shape), all_imag)


@pytest.mark.parametrize("make", MEDIA)
@pytest.mark.parametrize("n_changes", [0, 300])
def test_long_sequences_are_those_of_their_frames(make, n_changes):
    mirrors, n_frames = uneven(10, 700), 300  # more than are worked on at once
    features, track = patterns(n_frames, 10), moving(mirrors, n_frames, n_changes)
    whole = make(3).prepare(mirrors, POINTS).fields(features, track)
    assert len(whole.all_real) == (n_frames if n_changes else 1)
    one_by_one = make(3).prepare(mirrors, POINTS)
    for frame in (0, 1, 31, 32, 127, 128, 255, 256, 299):
        part = one_by_one.fields(features[frame : frame + 1], track.part(frame, frame + 1))
        np.testing.assert_array_equal(part.real[0], whole.real[frame])
        np.testing.assert_array_equal(part.all_real[0], whole.all_real[frame if n_changes else 0])


@pytest.mark.parametrize("make", MEDIA)
def test_the_field_of_all_mirrors_follows_the_epochs_and_belongs_to_the_caller(make):
    mirrors, features = even(5, 500), patterns(2, 5)
    prepared = make(0).prepare(mirrors, POINTS)
    for epoch in (0, 0, 1, 0):
        found = prepared.fields(features, still(mirrors, 2, epoch))
        assert_same(found, make(0).prepare(mirrors, POINTS).fields(features, still(mirrors, 2, epoch)))
        found.all_real[:] = np.nan


@pytest.mark.parametrize("make", MEDIA)
def test_any_block_of_entries_is_the_same(make):
    medium = make(5)
    epochs = np.random.default_rng(0).integers(0, 2**32, 40).astype(np.uint32)
    entries = medium.entries(np.arange(2500), POINTS, epochs)
    assert entries.dtype == np.complex64
    assert entries.shape == (len(POINTS), 2500)
    chosen = np.array([2499, 3, 700, 3])
    np.testing.assert_array_equal(medium.entries(chosen, POINTS[::-2], epochs), entries[::-2][:, chosen])
    zeros = medium.entries(chosen, POINTS)
    np.testing.assert_array_equal(medium.entries(chosen, POINTS, np.zeros(40, np.uint32)), zeros)
    assert (zeros != entries[:, chosen]).any()


def test_words_of_many_blocks_are_those_of_philox():
    generator = np.random.default_rng(0)
    shared, words = np.zeros((N_SHARED, CHUNK), np.uint64), np.zeros((2, CHUNK), np.uint64)
    for first, size in ((0, CHUNK), (1000, 1), (2**31, 13)):
        low, high, *key = (np.uint64(word) for word in generator.integers(0, 2**32, 4))
        blocks = np.arange(first, first + size)
        epochs = generator.integers(0, 2**32, size).astype(np.uint32)
        begin_words(first, high, epochs, *key, shared)
        end_words(size, low, shared, *key, words)
        a, b, c, d = philox_words((blocks, low, epochs, high), tuple(key))
        np.testing.assert_array_equal(words[0, :size], a | (b << np.uint64(32)))
        np.testing.assert_array_equal(words[1, :size], c | (d << np.uint64(32)))


@pytest.mark.parametrize("make", MEDIA)
@pytest.mark.parametrize("full_level", [1, FULL_LEVEL])
def test_a_session_takes_the_memory_that_it_states(make, full_level):
    n_frames, points = 170, np.arange(3)
    mirrors = uneven(10, 200_000, full_level)
    features, prepared = patterns(n_frames, 10), make(0).prepare(mirrors, points)
    prepared.fields(features[:1], still(mirrors, 1))  # compiled, and the maps of the mirrors made
    stated = make(0).session_bytes(mirrors, len(points))
    tracemalloc.start()
    try:
        fields = prepared.fields(features, still(mirrors, n_frames, epoch=1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    extra = peak - 2 * fields.real.nbytes
    assert 0.8 * stated < extra < stated + 500_000


# Long enough that the kernels split the work between threads.
DIGEST = """
import hashlib, numba, numpy as np
from opu.sim.media.base import EpochTrack
from opu.sim.media.gaussian import GaussianMedium
from opu.sim.media.matrix_free import MatrixFreeMedium
from opu.sim.mirrors import MirrorMap, n_blocks
generator = np.random.default_rng(0)
features = generator.integers(-2, 20, 5000).astype(np.int32)
mirrors = MirrorMap(20, features, generator.integers(0, 16, 5000).astype(np.uint8), 15)
track = EpochTrack(9, np.zeros(n_blocks(5000), np.uint32), np.arange(1, 9), np.arange(8) * 9, np.arange(8, dtype="u4"))
for medium in (MatrixFreeMedium(7), GaussianMedium(7)):
    fields = medium.prepare(mirrors, np.arange(300)).fields(generator.integers(0, 2, (9, 20), dtype=np.uint8), track)
    digest = hashlib.sha256()
    for part in (fields.real, fields.imag, fields.all_real, fields.all_imag):
        assert len(np.unique(part)) > 100
        digest.update(part.tobytes())
    print(medium.medium_id, digest.hexdigest())
print(numba.get_num_threads())
"""


def test_the_number_of_threads_changes_nothing():
    answers = []
    for threads in ("1", "2", "4"):
        # What a child process computes is looked at, not what it runs; tracing it takes long.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        environment["NUMBA_NUM_THREADS"] = threads
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        *digests, used = run.stdout.splitlines()
        assert used == threads
        answers.append(digests)
    assert len(answers[0]) == 2
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("make", MEDIA)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_renewing_a_share_of_the_blocks_leaves_the_rest_of_the_correlation(make, share):
    mirrors, points = even(1, 40 * BLOCK), np.arange(4000)
    renewed = np.arange(round(share * 40), dtype=np.int64)
    track = EpochTrack(
        2, np.zeros(40, np.uint32), np.ones(len(renewed), np.int64), renewed, np.ones(len(renewed), np.uint32)
    )
    found = make(1).prepare(mirrors, points).fields(np.ones((2, 1), np.uint8), track)
    before, after = found.real + 1j * found.imag
    correlation = np.vdot(before, after) / np.sqrt(np.vdot(before, before).real * np.vdot(after, after).real)
    assert abs(correlation - (1 - share)) < 4 / np.sqrt(len(points))
    power = (np.abs(after) ** 2).mean() / (make.variance * mirrors.n_mirrors)
    assert abs(power - 1) < 4 / np.sqrt(len(points))


def entries_in_every_direction(make):
    """Entries along mirrors, points, epochs and seeds, each along the last axis, shape (4, 60, 1000)."""
    few, many = np.arange(60), np.arange(1000)
    by_epoch = [make(0).entries(few, few[:1], np.array([epoch], np.uint32))[0] for epoch in many]
    by_seed = [make(seed).entries(few, few[:1])[0] for seed in many]
    return np.stack(
        [make(0).entries(many, few), make(0).entries(few, many).T, np.transpose(by_epoch), np.transpose(by_seed)]
    )


def largest_correlation(rows):
    return np.abs(np.corrcoef(rows)[np.triu_indices(len(rows), 1)]).max()


@pytest.mark.parametrize("make", MEDIA)
def test_entries_are_circular_and_uncorrelated(make):
    entries = entries_in_every_direction(make)
    assert abs(entries.mean()) < 4 * np.sqrt(make.variance / entries.size)
    assert abs((np.abs(entries) ** 2).mean() - make.variance) < 4 * make.variance / np.sqrt(entries.size)
    assert abs((entries**2).mean()) < 4 * 2 * make.variance / np.sqrt(entries.size)
    for direction in entries:
        parts = np.concatenate([direction.real, direction.imag])
        assert largest_correlation(parts) < 6 / np.sqrt(1000)
        if make is GaussianMedium:  # the squares of the others are all 1
            assert largest_correlation(parts**2) < 8 / np.sqrt(1000)
            assert largest_correlation(np.abs(direction)) < 6 / np.sqrt(1000)


def departure_from_gaussian(entries):
    """Kolmogorov-Smirnov distances of both parts, of modulus squared and phase, in units of the 1 % limit."""
    laws = (
        (entries.real, scipy.stats.norm.cdf),
        (entries.imag, scipy.stats.norm.cdf),
        (np.abs(entries) ** 2 / 2, scipy.stats.expon.cdf),
        (np.angle(entries) / (2 * np.pi) + 0.5, scipy.stats.uniform.cdf),
    )
    limit = 1.63 / np.sqrt(entries.size)
    return [scipy.stats.ks_1samp(values.ravel(), law).statistic / limit for values, law in laws]


def test_gaussian_entries_are_gaussian_and_qpsk_ones_are_not():
    mirrors, points = np.arange(2000), np.arange(150)
    entries = GaussianMedium(1).entries(mirrors, points)
    assert max(departure_from_gaussian(entries)) < 1
    assert abs((np.abs(entries) ** 4).mean() / 4 - 2) < 0.05
    assert min(departure_from_gaussian(MatrixFreeMedium(1).entries(mirrors, points))) > 10
    far = np.abs(np.stack([entries.real, entries.imag])) > 4
    assert abs(far.sum() - 2 * entries.size * 2 * scipy.stats.norm.sf(4)) < 5 * np.sqrt(38)


@pytest.mark.parametrize("make", MEDIA)
def test_speckle_is_fully_developed_from_min_ones_on(make):
    mirrors, points = even(make.min_ones, make.min_ones), np.arange(100_000)
    found = make(2).prepare(mirrors, points).fields(np.ones((1, make.min_ones), np.uint8), still(mirrors, 1))
    intensity = found.real[0].astype(np.float64) ** 2 + found.imag[0].astype(np.float64) ** 2
    assert abs(intensity.std() / intensity.mean() - 1) < 0.01 + 4 / np.sqrt(len(points))


def test_media_have_names_of_their_own():
    names = [make(seed).medium_id for make in MEDIA for seed in (0, 1, 2**64 - 1)]
    assert len(set(names)) == len(names)
    assert MatrixFreeMedium(0).key == derive_key("medium", 0)
