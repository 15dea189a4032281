"""The structured medium: exact sums of its entries, and the laws of a matrix of independent Gaussian entries."""

import dataclasses
import tracemalloc

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from opu.errors import ConfigError
from opu.parts import UNUSED_MIRROR
from opu.sim.counters import derive_key, philox_words
from opu.sim.hadamard import ROW, Cascade
from opu.sim.media import structured
from opu.sim.media.base import EpochTrack
from opu.sim.media.structured import StructuredMedium
from opu.sim.mirrors import FULL_LEVEL, STUCK_ON, MirrorMap, n_blocks
from opu.testing import media_laws

NAMES = ("real", "imag", "all_real", "all_imag")
# Several point blocks, in no order, some of them twice.
POINTS = np.array([5, 4, 4095, 4096, 12_000, 2**40 + 1, 2**62 - 1, 5, *range(8200, 8300)], dtype=np.int64)

PINNED = [
    [(-0.8672929406166077 + 0.5690929889678955j), (0.1449848711490631 + 0.17841435968875885j)],
    [(0.7074908018112183 - 0.963691234588623j), (0.5819911956787109 - 0.15707631409168243j)],
    [(-0.2719852030277252 - 0.2607549726963043j), (-0.4852287769317627 - 0.22578847408294678j)],
]


@pytest.fixture(autouse=True)
def one_blas_thread():
    """Threads of BLAS would only wait for each other on a busy machine."""
    with threadpool_limits(1, user_api="blas"):
        yield


def even(n_features, n_mirrors):
    """Runs of equally many mirrors, in full light."""
    features = (np.arange(n_mirrors) // (n_mirrors // n_features)).astype(np.int32)
    features[features >= n_features] = UNUSED_MIRROR
    return MirrorMap(n_features, features, np.ones(n_mirrors, np.uint8))


def uneven(n_features, n_mirrors):
    """Random light, and some mirrors that are stuck."""
    generator = np.random.default_rng(n_mirrors)
    mirrors = even(n_features, n_mirrors)
    for state in (STUCK_ON, UNUSED_MIRROR):
        mirrors.features[generator.choice(n_mirrors, n_mirrors // 50, replace=False)] = state
    levels = generator.integers(0, FULL_LEVEL + 1, n_mirrors).astype(np.uint8)
    return MirrorMap(n_features, mirrors.features, levels, FULL_LEVEL)


def patterns(n_frames, n_features):
    return np.random.default_rng(0).integers(0, 2, (n_frames, n_features), dtype=np.uint8)


def still(mirrors, n_frames, epoch=0):
    return EpochTrack.still(n_frames, np.full(n_blocks(mirrors.n_mirrors), epoch, np.uint32))


def moving(mirrors, n_frames):
    """Changes in some of the frames, more than are worked on together, with any epochs."""
    generator = np.random.default_rng(n_frames)
    blocks, n_changes = n_blocks(mirrors.n_mirrors), 2 * n_frames // 3
    return EpochTrack(
        n_frames,
        generator.integers(0, 2**32, blocks).astype(np.uint32),
        np.sort(generator.integers(1, n_frames, n_changes)),
        generator.integers(0, blocks, n_changes),
        generator.integers(0, 2**32, n_changes).astype(np.uint32),
    )


def matrix_of(medium, mirrors, points):
    """Return the complex matrix over features, of mean square 1."""
    features = np.eye(mirrors.n_features, dtype=np.uint8)
    fields = medium.prepare(mirrors, points).fields(features, still(mirrors, len(features)))
    return (fields.real + 1j * fields.imag).T / np.sqrt(mirrors.n_mirrors // mirrors.n_features)


def assert_close(found, expected):
    """Compare to the rounding of float32, on the scale of the numbers."""
    scale = np.sqrt(np.mean(np.abs(expected) ** 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * scale)


# Exactness


@pytest.mark.parametrize("track", [still, moving])
@pytest.mark.parametrize(("n_features", "n_mirrors"), [(3900, 4000), (390, 4000), (7, 1000), (700, 9000)])
def test_fields_are_sums_over_lit_mirrors(n_features, n_mirrors, track):
    medium, mirrors, n_frames = StructuredMedium(3, n_mirrors), uneven(n_features, n_mirrors), 25
    features, epochs_of_frames = patterns(n_frames, n_features), track(mirrors, n_frames)
    found = medium.prepare(mirrors, POINTS).fields(features, epochs_of_frames)
    assert len(found.all_real) == (1 if track is still else n_frames)
    lit = mirrors.states(features) * mirrors.levels.astype(np.float64)
    for frame, epochs in enumerate(epochs_of_frames.by_frame()):
        if frame % 6:
            continue
        entries = medium.entries(np.arange(n_mirrors), POINTS, epochs).astype(np.complex128)
        assert_close(found.real[frame] + 1j * found.imag[frame], entries @ lit[frame])
        row = frame % len(found.all_real)
        assert_close(found.all_real[row] + 1j * found.all_imag[row], entries @ mirrors.levels.astype(np.float64))
    assert {getattr(found, name).dtype for name in NAMES} == {np.dtype(np.float32)}


def test_entries_are_those_of_the_description():
    """From counters to entries in NumPy, by the text of the module."""
    seed, size, number, epoch = 7, ROW, 3, 11
    key = derive_key("structured medium", seed, size, number)

    def bits(words):
        packed = (words[0] | (words[1] << np.uint64(32))).astype("<u8").view(np.uint8)
        return np.unpackbits(packed, bitorder="little").astype(np.int64)

    turns = []
    for stream in (1, 2, 3):
        words = philox_words((np.arange(size // 64), 0, stream, 0), key)
        turns.append((bits(words[:2]).astype(np.uint8), bits(words[2:]).astype(np.uint8)))
    words = np.stack(philox_words((np.arange(size // 4), 0, 4, 0), key), axis=1).ravel()
    gains = structured._quarter_circle(size)[np.argsort(words, kind="stable")]
    scale = np.float32(1 / (size * np.sqrt(np.sum(gains.astype(np.float64) ** 2))))
    turns_2, turns_3, turns_4 = turns[0], 2 * turns[1][0] + turns[1][1], 2 * turns[2][0] + turns[2][1]
    signs = 1 - 2 * bits(philox_words((np.arange(size // 64), epoch, 0, 0), key)[:2])
    mirrors = np.array([4095, 0, 64, 1000])
    inputs = np.zeros((len(mirrors), size), np.int64)
    inputs[np.arange(len(mirrors)), mirrors] = signs[mirrors]
    real, imag = Cascade.pack(turns_2, turns_3, turns_4, gains, scale).apply_with_numpy(inputs)
    epochs = np.full(size // 64, epoch, np.uint32)
    found = StructuredMedium(seed, size).entries(mirrors, number * size + np.arange(size), epochs)
    np.testing.assert_array_equal(found, (real + 1j * imag).T)


def test_the_matrix_is_the_documented_one():
    """Pinned, so that a seed names the same medium in every release and on every machine."""
    medium = StructuredMedium(7, 1000)
    assert medium.medium_id == "structured-df308e14de22dbb7-4096"
    entries = medium.entries(np.array([0, 999]), np.array([0, 4096, 2**40]))
    assert entries.tolist() == PINNED


@pytest.mark.parametrize("n_mirrors", [1000, 912 * 1140])
def test_entries_by_rows_and_by_columns_agree(n_mirrors):
    medium = StructuredMedium(1, n_mirrors)
    points = np.array([3, medium.size + 9, 4])
    mirrors = np.arange(n_mirrors)[:: n_mirrors // 70]
    epochs = np.arange(n_blocks(n_mirrors)).astype(np.uint32)
    rows = medium.entries(mirrors, points, epochs)
    assert_close(medium.entries(mirrors[:40], points, epochs), rows[:, :40])
    assert abs(np.mean(np.abs(rows) ** 2) - 1) < 0.3


def test_entries_take_any_order_and_repetition():
    medium = StructuredMedium(1, 4096)
    mirrors, points = np.array([7, 4000, 7, 0]), np.array([9, 8, 9])
    block = medium.entries(mirrors, points)
    for i, point in enumerate(points):
        for j, mirror in enumerate(mirrors):
            assert block[i, j] == medium.entries(np.array([mirror]), np.array([point]))[0, 0]


def test_mean_square_of_all_entries_is_the_stated_one():
    medium = StructuredMedium(1, 4096)
    cascade = structured._cascade(medium.seed, medium.size, 0)
    # Four transforms of norm sqrt(P) each, and unitary diagonals.
    total = medium.size**4 * float(cascade.scale) ** 2 * np.sum(cascade.gains.astype(np.float64) ** 2)
    assert total / medium.size**2 == pytest.approx(StructuredMedium.variance, rel=1e-6)


def test_gains_follow_the_quarter_circle_law_on_every_machine():
    for size in (2**12, 2**20, 2**22):
        gains = structured._quarter_circle(size) / ((2**15 - 1) / 2)
        assert np.all(np.diff(gains) >= 0)
        assert np.mean(gains**2) == pytest.approx(1, abs=1e-3)
        distribution = (gains * np.sqrt(4 - gains**2) / 2 + 2 * np.arcsin(gains / 2)) / np.pi
        np.testing.assert_allclose(distribution, (np.arange(size) + 0.5) / size, atol=2e-5)
        # No value half-way between two gains is where the last bits of an arc sine could move it past a quantile.
        half = (2 * np.arange(2**15 - 1) + 1) / (2**15 - 1)
        places = (half * np.sqrt(4 - half**2) / 2 + 2 * np.arcsin(half / 2)) / np.pi * size - 0.5
        assert np.abs(places - np.round(places)).min() / size > 1e-13


# Reproducibility


def test_bytes_do_not_depend_on_batches_or_threads():
    mirrors = uneven(500, 9000)
    features, track = patterns(40, 500), moving(mirrors, 40)
    medium = StructuredMedium(3, 9000)
    whole = medium.prepare(mirrors, POINTS).fields(features, track)
    limit = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one_thread = StructuredMedium(3, 9000).prepare(mirrors, POINTS).fields(features, track)
    finally:
        numba.set_num_threads(limit)
    prepared = medium.prepare(mirrors, POINTS)
    cuts = [(31, 40), (0, 1), (1, 31)]  # not in order
    parts = {start: prepared.fields(features[start:stop], track.part(start, stop)) for start, stop in cuts}
    for name in NAMES:
        rows = [
            np.broadcast_to(getattr(parts[start], name), (stop - start, len(POINTS))) for start, stop in sorted(cuts)
        ]
        assert np.concatenate(rows).tobytes() == getattr(whole, name).tobytes()
        assert getattr(one_thread, name).tobytes() == getattr(whole, name).tobytes()


def test_fields_do_not_depend_on_the_company_of_points():
    mirrors = even(30, 2000)
    medium = StructuredMedium(3, 2000)
    features = patterns(3, 30)
    together = medium.prepare(mirrors, POINTS).fields(features, still(mirrors, 3))
    for i, point in enumerate(POINTS[:8]):
        alone = medium.prepare(mirrors, np.array([point])).fields(features, still(mirrors, 3))
        for name in NAMES:
            np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(together, name)[:, i])


def test_no_frames_have_no_fields():
    mirrors = even(3, 100)
    fields = StructuredMedium(0, 100).prepare(mirrors, POINTS).fields(np.zeros((0, 3), np.uint8), still(mirrors, 0))
    assert fields.real.shape == (0, len(POINTS))
    assert fields.all_real.shape == (1, len(POINTS))


def test_returned_fields_stay_as_they_are():
    mirrors = even(30, 2000)
    prepared = StructuredMedium(3, 2000).prepare(mirrors, POINTS)
    first = prepared.fields(patterns(3, 30), still(mirrors, 3))
    copy = dataclasses.replace(first, **{name: getattr(first, name).copy() for name in NAMES})
    prepared.fields(1 - patterns(3, 30), still(mirrors, 3, epoch=1))
    for name in NAMES:
        np.testing.assert_array_equal(getattr(first, name), getattr(copy, name))


def test_memory_of_fields_is_used_again_when_nobody_holds_it():
    mirrors = even(30, 2000)
    prepared = StructuredMedium(3, 2000).prepare(mirrors, POINTS)

    def address(held):
        fields = prepared.fields(patterns(3, 30), still(mirrors, 3))
        held.append(fields.imag[1:][:, 5])  # a view of a view
        return fields.real.ctypes.data

    held = []
    first, second = address(held), address(held)
    assert first != second
    expected = held[1].copy()
    np.testing.assert_array_equal(held[0], expected)
    del held[1]
    addresses = {address([]) for _ in range(3)}
    assert addresses == {second}
    np.testing.assert_array_equal(held[0], expected)


# Laws

CASES = {
    "features of 8": (even(512, 4096), np.arange(1024)),
    "few of many points": (even(512, 4096), np.random.default_rng(0).permutation(4096)[:1024]),
    "padded": (even(512, 1024), np.arange(2048, 3072)),
    "much larger": (even(512, 2**17), np.arange(1024)),
    "all points": (even(256, 4096), np.arange(4096)),
    "single mirrors": (even(4096, 4096), np.arange(1024)),
}


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def matrix(request):
    mirrors, points = CASES[request.param]
    medium = StructuredMedium(11, mirrors.n_mirrors)
    if mirrors.n_features > 512:
        return medium.entries(np.arange(512), points)
    return matrix_of(medium, mirrors, points)


def test_singular_values_follow_marchenko_and_pastur(matrix):
    assert media_laws.singular_value_distance(matrix) <= 0.02
    assert media_laws.singular_value_distance(matrix.real) <= 0.02
    assert media_laws.singular_value_distance(media_laws.stacked(matrix)) <= 0.02


def test_entries_are_circular_gaussian(matrix):
    assert np.mean(np.abs(matrix) ** 2) == pytest.approx(StructuredMedium.variance, abs=0.01)
    assert media_laws.kurtosis(matrix) == pytest.approx(2, abs=0.03)
    assert media_laws.circularity(matrix) <= 3 / np.sqrt(matrix.size)


def test_rows_are_independent(matrix):
    limit = 3 / np.sqrt(matrix.shape[1])
    some = matrix[:1024]
    for correlations in (media_laws.row_correlations(some), media_laws.pseudo_correlations(some)):
        assert np.sqrt(np.mean(correlations**2)) == pytest.approx(limit / 3, rel=0.02)
        assert np.mean(correlations > limit) < 2 * np.exp(-9)
        assert correlations.max() < 5 / 3 * limit


def sparse(n_patterns, n_features, ones):
    generator = np.random.default_rng(ones)
    rows = np.zeros((n_patterns, n_features), np.uint8)
    for row in rows:
        row[generator.choice(n_features, ones, replace=False)] = 1
    return rows


@pytest.mark.parametrize("ones", [1, 5, 20, 500])
@pytest.mark.parametrize("n_mirrors", [1000, 65_000])
def test_contrast_is_that_of_developed_speckle_from_the_first_mirror_on(n_mirrors, ones):
    assert StructuredMedium.min_ones == 1
    mirrors = even(1000, n_mirrors)
    medium = StructuredMedium(2, n_mirrors)
    features = sparse(100, 1000, ones)
    fields = medium.prepare(mirrors, np.arange(4096)).fields(features, still(mirrors, len(features)))
    intensity = fields.real**2 + fields.imag**2
    contrast = np.mean(intensity.std(axis=1) / intensity.mean(axis=1))
    assert contrast == pytest.approx(1, abs=0.01)


def blocks_of_matrices(n_seeds):
    """Blocks of 128 points and 64 features from whole matrices."""
    mirrors = even(512, 4096)
    for seed in range(n_seeds):
        matrix = matrix_of(StructuredMedium(seed, 4096), mirrors, np.arange(2048))
        for row in range(0, 2048, 128):
            for column in range(0, 512, 64):
                yield matrix[row : row + 128, column : column + 64]


def test_kernel_of_intensities_scatters_like_that_of_a_gaussian_matrix():
    assert media_laws.kernel_error_ratio(blocks_of_matrices(6)) == pytest.approx(1, abs=0.1)


def altered(monkeypatch, alter):
    """Return the matrix of all points and 256 features with other diagonals: `alter(*diagonals)` returns them."""
    drawn = []

    def pack(*diagonals):
        drawn.append(True)
        return original(*alter(*diagonals))

    original = Cascade.pack
    monkeypatch.setattr(structured.Cascade, "pack", pack)
    structured._cascade.cache_clear()
    matrix = matrix_of(StructuredMedium(11, 4096), even(256, 4096), np.arange(4096))
    structured._cascade.cache_clear()
    assert drawn
    return matrix


def test_equal_gains_look_gaussian_and_are_refused(monkeypatch):
    """Without the quarter-circle law the matrix is that of random signs and transforms alone: nearly unitary."""
    matrix = altered(monkeypatch, lambda *d: (*d[:3], np.full_like(d[3], 16_000), d[4]))
    assert media_laws.kurtosis(matrix) == pytest.approx(2, abs=0.03)
    assert media_laws.circularity(matrix) < 0.01
    assert media_laws.singular_value_distance(matrix) > 0.4


def test_a_chain_that_stays_real_too_long_is_refused(monkeypatch):
    """With signs for the second diagonal the complex matrix is right, its real part and its conjugate are not."""
    matrix = altered(monkeypatch, lambda *d: ((d[0][0], 0 * d[0][1]), *d[1:]))
    assert media_laws.singular_value_distance(matrix) <= 0.02
    assert media_laws.singular_value_distance(matrix.real) > 0.02
    pseudo = media_laws.pseudo_correlations(matrix[:1024])
    assert np.sqrt(np.mean(pseudo**2) * matrix.shape[1]) > 1.02


def test_too_few_phases_are_refused(monkeypatch):
    """Without turns the matrix is real."""
    matrix = altered(monkeypatch, lambda *d: ((d[0][0], 0 * d[0][1]), d[1] & 2, d[2] & 2, *d[3:]))
    assert media_laws.kurtosis(matrix) > 2.9
    assert media_laws.circularity(matrix) > 0.9


def test_the_laws_tell_gaussian_matrices_from_others():
    generator = np.random.default_rng(0)
    parts = generator.standard_normal((2, 1024, 512), dtype=np.float32)
    gaussian = parts[0] + 1j * parts[1]
    assert media_laws.singular_value_distance(gaussian) < 0.01
    assert media_laws.singular_value_distance(gaussian.real) < 0.01
    weights = generator.standard_exponential(512, dtype=np.float32) ** 0.5
    assert media_laws.singular_value_distance(gaussian * weights) > 0.05
    assert media_laws.kurtosis(gaussian) == pytest.approx(2, abs=0.02)
    assert media_laws.kurtosis(gaussian * weights) > 3
    blocks = [gaussian[i : i + 128, j : j + 64] / np.sqrt(2) for i in range(0, 1024, 128) for j in range(0, 512, 64)]
    assert media_laws.kernel_error_ratio(blocks) == pytest.approx(1, abs=0.3)
    assert media_laws.kernel_error_ratio([1.2 * block for block in blocks]) > 3


def test_other_seeds_and_point_blocks_have_other_matrices():
    mirrors = even(1000, 4000)
    rows = []
    for seed in (0, 1):
        for start in (0, 4096, 8192):
            rows.append(matrix_of(StructuredMedium(seed, 4000), mirrors, start + np.arange(20)))
    correlations = media_laws.row_correlations(np.concatenate(rows))
    assert correlations.max() < 5 / np.sqrt(1000)
    assert StructuredMedium(0, 4000).medium_id != StructuredMedium(1, 4000).medium_id
    assert StructuredMedium(0, 4000).medium_id != StructuredMedium(0, 5000).medium_id


# Drift


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_correlation_of_the_field_is_the_share_of_the_light_that_has_not_changed(share):
    mirrors = even(2048, 4096)
    blocks = n_blocks(4096)
    n_changed = int(share * blocks)
    track = EpochTrack(
        2,
        np.zeros(blocks, np.uint32),
        np.ones(n_changed, np.int64),
        np.random.default_rng(0).permutation(blocks)[:n_changed],
        np.ones(n_changed, np.uint32),
    )
    features = np.repeat(sparse(1, 2048, 1024), 2, axis=0)
    fields = StructuredMedium(4, 4096).prepare(mirrors, np.arange(8 * 4096)).fields(features, track)
    field = fields.real + 1j * fields.imag
    correlation = np.vdot(field[0], field[1]) / np.linalg.norm(field[0]) / np.linalg.norm(field[1])
    assert correlation == pytest.approx(1 - share, abs=0.05)
    assert np.mean(np.abs(field[1]) ** 2) == pytest.approx(2048, rel=0.05)


def test_a_renewed_column_keeps_its_modulus():
    """As the module states: signs are all that is drawn anew."""
    medium, mirrors, points = StructuredMedium(4, 4096), np.arange(4096), np.arange(10)
    before = medium.entries(mirrors, points)
    after = medium.entries(mirrors, points, np.ones(64, np.uint32))
    signs = np.where(after[0] == before[0], 1, -1)
    np.testing.assert_array_equal(after, before * signs)
    assert abs(np.mean(signs)) < 4 / np.sqrt(4096)


# Sessions


def test_memory_is_bounded_by_what_was_announced():
    mirrors = even(1000, 2**17)
    medium, points = StructuredMedium(8, 2**17), np.arange(2**17)
    tracemalloc.start()
    try:
        prepared = medium.prepare(mirrors, points)
        _size, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert peak <= medium.session_bytes(mirrors, len(points))
        fields = prepared.fields(patterns(2, 1000), still(mirrors, 2))
        _size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    out = sum(getattr(fields, name).nbytes for name in NAMES)
    assert peak <= medium.session_bytes(mirrors, len(points)) + out


def test_what_does_not_fit_is_refused():
    medium = StructuredMedium(0, 1000)
    with pytest.raises(ConfigError, match=r"999 mirrors, the medium of 1000"):
        medium.prepare(even(3, 999), POINTS)
    bright = dataclasses.replace(even(3, 1000), levels=np.full(1000, 16, np.uint8))
    with pytest.raises(ConfigError, match=r"level 16.*up to 15"):
        medium.prepare(bright, POINTS)
