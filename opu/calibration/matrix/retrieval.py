"""The transmission matrix from intensities alone: phase retrieval on binary patterns.

A row `a` of the matrix has `P` intensities `I = |X a + b|^2` of `P` known binary patterns, the rows of `X`. Written in
an orthonormal basis of the columns of `X`, the fields of all patterns that some row can have are a subspace, and those
with the measured amplitudes another set; a field in both is looked for, for hundreds of rows by two matrix products a
step:

1. *Relaxed averaged alternating reflections* (Luke, Inverse Problems 21, 37, 2005) from a random field. Plain
   alternating projections (Gerchberg-Saxton) stop in local minima for four rows in ten at 6 patterns a feature; these
   reflections leave them (`python -m benchmarks.retrieval`).
2. A *polish*: alternating projections with the weight `I / (I + I_dim)` for each sample. The amplitude of a dark sample
   is known badly: read and quantisation noise are large beside the slope of the square root.
3. *Restarts* of the rows whose residual stands out, from other random fields and with more steps.

Saturated samples are lower bounds in all of it. Each row is known up to its phase and, since patterns are real, up to
complex conjugation.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from opu.calibration.matrix.projections import correct, mismatch, reflect, relax
from opu.device import check_whole
from opu.errors import CapacityError, ConfigError, InputError, PatternShapeError, PatternValueError
from opu.patterns import PackedPatterns, as_array, as_packed, pack, unpack

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "FinishedRows",
    "PhaseRetrieval",
    "believed_rows",
    "expected_residuals",
    "frame_correlations",
    "relative_residuals",
    "retrieval_patterns",
]

LARGEST_RESIDUAL_RATIO = 1.5
"""Rows whose residual is above this multiple of that of rows as bright are not believed; 3 would let rows through that
correlate by a half with the truth."""
LARGEST_RESIDUAL = 0.25
"""Relative. Rows without any phase have 0.3 and more at 4 patterns a feature, and 0.46 with very many."""
NEGLIGIBLE_RESIDUAL = 0.005
"""Relative. What a camera without noise leaves is how far the polish has come, and tells nothing."""
_BETA = 0.9
_RESTART_GROWTH = 2
_DIM_SHARE = 0.15
_RANK_TOLERANCE = 1e-6
_SMALLEST_BATCH = 64
_LARGEST_BATCH = 256
"""An interruption loses the work on a batch. All rows at once would take some 6 % less time."""
_SHARE = 1 / 3
_VARIED_SHARES = (0.2, 0.45)
_ROWS_FOR_A_FIT = 16


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """What an interrupted fit leaves: give it to the next one.

    Parameters
    ----------
    done : ndarray of bool, shape (n_outputs,)
        The rows that are finished.
    coefficients : ndarray of complex64, shape (n_outputs, n_features + background)
        Their rows; of the others zeros.
    residuals : ndarray of float32, shape (n_outputs,)
        Root mean square residual of the amplitudes, in the square root of the unit of the intensities.
    fingerprint : int
        Of the data and parameters that they belong to.
    """

    done: NDArray[np.bool_]
    coefficients: NDArray[np.complex64]
    residuals: NDArray[np.float32]
    fingerprint: int


class _Design:
    """The patterns in an orthonormal basis: `fields = coefficients @ basis.T`, `basis.T @ basis = P`.

    Without the change of basis the direction in which all features are on, which is `n_features` times as bright as
    the others, would make every descent slow.
    """

    def __init__(self, patterns: NDArray[np.float32]) -> None:
        n_patterns = len(patterns)
        # Whole numbers below 2**24: float32 products are exact.
        gram = (patterns.T @ patterns).astype(np.float64)
        try:
            lower = np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            lower = np.zeros_like(gram)
        new_share = np.diag(lower) ** 2 / np.maximum(np.diag(gram), 1)
        if new_share.min() < _RANK_TOLERANCE:
            raise PatternValueError(
                f"The {n_patterns} patterns do not determine {gram.shape[0]} columns: in every pattern, column "
                f"{int(new_share.argmin())} follows from those before it.",
                "Use random patterns; with background=True their numbers of ones must differ.",
            )
        self.to_features = np.linalg.inv(lower) * math.sqrt(n_patterns)
        self.to_basis = lower / math.sqrt(n_patterns)
        self.basis = patterns @ self.to_features.T.astype(np.float32)
        self.n_patterns, self.n_columns = self.basis.shape

    def forward(self, coefficients: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the fields of rows, shape (2, n_rows, n_patterns)."""
        np.matmul(coefficients, self.basis.T, out=out)

    def backward(self, fields: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the coefficients of the nearest fields that rows can have, shape (2, n_rows, n_columns)."""
        found: NDArray[np.float32] = fields @ self.basis
        found /= np.float32(self.n_patterns)
        return found


class PhaseRetrieval:
    """Recover a transmission matrix from the intensities of binary patterns.

    Parameters
    ----------
    background : bool
        Whether light falls on the camera with all features off (finite contrast of the DMD, a constant coherent field):
        a further column that is always on. The patterns must then differ in their numbers of ones.
    n_iterations : int
        Reflections from the first random field; each restart makes twice as many.
    n_polish : int
        Steps of the polish.
    n_restarts : int
        How often rows with large residuals are started again.
    seed : int
        Of the random fields.
    max_bytes : int
        Memory for the work on a batch of rows, beside patterns, intensities and the result.
    on_progress : callable, optional
        Called with (finished rows, all rows) after every batch. When it raises, `finished_` holds what was done.

    Attributes
    ----------
    matrix_ : ndarray of complex64, shape (n_outputs, n_features)
        In the square root of the unit of the intensities; zeros for a row that has no light.
    background_ : ndarray of complex64, shape (n_outputs,)
        The field with all features off, with the phase of its row.
    row_quality_ : ndarray of float32, shape (n_outputs,)
        Root mean square residual of the amplitudes, relative to that of the amplitudes; NaN for a row without light.
    kept_ : ndarray of bool, shape (n_outputs,)
        Which rows to believe: `believed_rows`.
    finished_ : FinishedRows
        For `fit(resume=...)`.

    Notes
    -----
    The random fields of a row depend on the seed and its number alone. In batches of the same sizes, with the same
    number of BLAS threads, a fit repeats to the bit. Otherwise products are rounded differently, which the reflections
    amplify: converged rows then agree within a small part of their statistical error, and a row that is hard to
    recover may be recovered in one split and not in another.

    A step costs two products of `n_outputs x n_features x n_patterns` complex by real numbers. Memory: `max_bytes`,
    and 4 bytes for each of `n_patterns x (2 n_features + n_outputs)`.

    References
    ----------
    D. R. Luke, Relaxed averaged alternating reflections for diffraction imaging, Inverse Problems 21, 37 (2005).
    Amplitude residuals and restarts: R. Gerchberg and W. Saxton, Optik 35, 237 (1972).

    Examples
    --------
    >>> import numpy as np
    >>> from opu.calibration.matrix.comparison import row_correlations
    >>> rng = np.random.default_rng(0)
    >>> matrix = rng.standard_normal((64, 24)) + 1j * rng.standard_normal((64, 24))
    >>> patterns = rng.integers(0, 2, (192, 24))
    >>> retrieval = PhaseRetrieval().fit(patterns, np.abs(patterns @ matrix.T) ** 2)
    >>> bool(retrieval.kept_.all()), bool(row_correlations(retrieval.matrix_, matrix).min() > 0.999)
    (True, True)
    """

    def __init__(
        self,
        *,
        background: bool = False,
        n_iterations: int = 80,
        n_polish: int = 25,
        n_restarts: int = 3,
        seed: int = 0,
        max_bytes: int = 2**29,
        on_progress: Callable[[int, int], object] = lambda _done, _all: None,
    ) -> None:
        self.background = background
        self.n_iterations = check_whole("n_iterations", n_iterations, 1, 2**31)
        self.n_polish = check_whole("n_polish", n_polish, 1, 2**31)
        self.n_restarts = check_whole("n_restarts", n_restarts, 0, 2**31)
        self.seed = check_whole("seed", seed, 0, 2**64)
        self.max_bytes = check_whole("max_bytes", max_bytes, 1, 2**62)
        self.on_progress = on_progress
        self.matrix_: NDArray[np.complex64]
        self.background_: NDArray[np.complex64]
        self.row_quality_: NDArray[np.float32]
        self.kept_: NDArray[np.bool_]
        self.finished_: FinishedRows

    def fit(
        self,
        patterns: ArrayLike | PackedPatterns,
        intensities: ArrayLike,
        *,
        saturation: ArrayLike = math.inf,
        initial: ArrayLike | None = None,
        resume: FinishedRows | None = None,
    ) -> Self:
        """Recover the matrix.

        Parameters
        ----------
        patterns : array_like or PackedPatterns, shape (n_patterns, n_features)
            Binary patterns; six for each feature, or at least four.
        intensities : array_like, shape (n_patterns, n_outputs)
            Counts above the dark level; those below zero count as zero.
        saturation : array_like, a number or shape (n_outputs,)
            From which intensity on a sample is a lower bound.
        initial : array_like of complex, shape (n_outputs, n_features + background), optional
            Where the first round starts; it polishes only.
        resume : FinishedRows, optional
            What an interrupted fit of the same data, `saturation` and `initial` left: its rows are not computed again.

        Returns
        -------
        PhaseRetrieval
            Itself.

        Raises
        ------
        PatternShapeError
            There are fewer patterns than columns, or shapes do not fit.
        PatternValueError
            The patterns do not determine the matrix.
        InputError
            An intensity is no finite number.
        CapacityError
            A batch of rows does not fit the memory.
        ConfigError
            The rows to resume are those of other data.
        """
        packed = patterns if isinstance(patterns, PackedPatterns) else pack(patterns)
        counts = _checked_intensities(intensities, len(packed))
        design = self._design(packed)
        bounds = np.broadcast_to(np.asarray(saturation, np.float32), counts.shape[1:])
        starts = None if initial is None else _checked_start(initial, counts.shape[1], design.n_columns)
        self.finished_ = self._begin(packed, counts, bounds, starts, resume)
        done = self.finished_.done
        waiting = np.flatnonzero(~done)
        for rows in np.array_split(waiting, max(1, -(-len(waiting) // self._batch_rows(design)))):
            if len(rows) == 0:
                continue
            start = None if starts is None else starts[rows]
            targets = _targets(counts[:, rows], bounds[rows])
            found, residuals = _Rows(design, targets, rows, self).recover(start)
            self.finished_.coefficients[rows], self.finished_.residuals[rows] = found, residuals
            done[rows] = True
            self.on_progress(int(done.sum()), len(done))
        self._conclude(counts)
        return self

    def predict(self, patterns: ArrayLike | PackedPatterns) -> NDArray[np.float32]:
        """Return the intensities of patterns, shape (n_patterns, n_outputs)."""
        shown = unpack(as_packed(patterns, self.matrix_.shape[1])).astype(np.float32)
        real = shown @ self.matrix_.real.T + self.background_.real
        imaginary = shown @ self.matrix_.imag.T + self.background_.imag
        predicted: NDArray[np.float32] = real**2 + imaginary**2
        return predicted

    def score(self, patterns: ArrayLike | PackedPatterns, intensities: ArrayLike) -> float:
        """Return how well the intensities of patterns are predicted.

        The Pearson correlation over the rows that are kept, averaged over the patterns; NaN where there is none.
        """
        predicted, measured = self.predict(patterns)[:, self.kept_], as_array(intensities)[:, self.kept_]
        return float(np.mean(frame_correlations(predicted, measured)))

    def _design(self, packed: PackedPatterns) -> _Design:
        shown = unpack(packed).astype(np.float32)
        if self.background:
            shown = np.concatenate([shown, np.ones((len(shown), 1), np.float32)], axis=1)
        if len(shown) < shown.shape[1]:
            raise PatternShapeError(
                f"There are {len(shown)} patterns for {shown.shape[1]} columns.",
                f"Show about {6 * shown.shape[1]}; with fewer than {4 * shown.shape[1]} rows are lost.",
            )
        return _Design(shown)

    def _batch_rows(self, design: _Design) -> int:
        """Return the rows of a batch. Each takes targets, three pairs of planes of fields and four of coefficients."""
        per_row = 4 * (7 * design.n_patterns + 8 * design.n_columns)
        rows = int(self.max_bytes // per_row)
        if rows < _SMALLEST_BATCH:
            raise CapacityError(
                f"A batch of {_SMALLEST_BATCH} rows takes {_SMALLEST_BATCH * per_row} bytes, "
                f"max_bytes is {self.max_bytes}.",
                f"Allow at least {_SMALLEST_BATCH * per_row} bytes.",
            )
        return min(rows, _LARGEST_BATCH)

    def _begin(
        self,
        packed: PackedPatterns,
        counts: NDArray[np.float32],
        bounds: NDArray[np.float32],
        starts: NDArray[np.complex128] | None,
        resume: FinishedRows | None,
    ) -> FinishedRows:
        settings = f"{self.background},{self.n_iterations},{self.n_polish},{self.n_restarts},{self.seed}"
        fingerprint = zlib.crc32(settings.encode())
        for data in (packed.bits, counts, bounds, *([] if starts is None else [starts])):
            fingerprint = zlib.crc32(np.ascontiguousarray(data).data, fingerprint)
        n_outputs, n_columns = counts.shape[1], packed.n_features + self.background
        if resume is None:
            return FinishedRows(
                np.zeros(n_outputs, np.bool_),
                np.zeros((n_outputs, n_columns), np.complex64),
                np.zeros(n_outputs, np.float32),
                fingerprint,
            )
        if resume.fingerprint != fingerprint or resume.coefficients.shape != (n_outputs, n_columns):
            raise ConfigError(
                "The rows to resume belong to other patterns, intensities, bounds, starts or parameters.",
                "Give the same data to an estimator with the same parameters, or begin anew.",
            )
        return FinishedRows(resume.done.copy(), resume.coefficients.copy(), resume.residuals.copy(), fingerprint)

    def _conclude(self, counts: NDArray[np.float32]) -> None:
        coefficients, residuals = self.finished_.coefficients, self.finished_.residuals
        width = coefficients.shape[1] - self.background
        self.matrix_ = np.ascontiguousarray(coefficients[:, :width])
        self.background_ = coefficients[:, width] if self.background else np.zeros(len(coefficients), np.complex64)
        powers = np.maximum(counts, 0).mean(axis=0, dtype=np.float64)
        self.row_quality_ = relative_residuals(residuals, powers)
        self.kept_ = believed_rows(residuals, powers)


class _Rows:
    """A batch of rows on its way through rounds of reflections and polish."""

    def __init__(
        self, design: _Design, targets: NDArray[np.float32], numbers: NDArray[np.intp], settings: PhaseRetrieval
    ) -> None:
        self.design, self.targets, self.numbers, self.settings = design, targets, numbers, settings
        self.powers = (targets.astype(np.float64) ** 2).mean(axis=1)
        self.dim = _DIM_SHARE * float(self.powers.mean())

    def recover(self, initial: NDArray[np.complex128] | None) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Return the rows, and the root mean square residuals of their amplitudes."""
        every = np.arange(len(self.numbers))
        n_iterations = self.settings.n_iterations
        if initial is None:
            found = self._round(every, 0, n_iterations)
        else:
            planes = np.stack([initial.real, initial.imag]) @ self.design.to_basis
            found = self._polish(planes.astype(np.float32), self.targets)
        residuals = self._residuals(found, self.targets)
        for attempt in range(1, self.settings.n_restarts + 1):
            bad = np.flatnonzero(~believed_rows(residuals, self.powers) & (self.powers > 0))
            if len(bad) == 0:
                break
            again = self._round(bad, attempt, n_iterations * _RESTART_GROWTH ** min(attempt, 2))
            left = self._residuals(again, self.targets[bad])
            better = left < residuals[bad]
            found[:, bad[better]], residuals[bad[better]] = again[:, better], left[better]
        rows = found.astype(np.float64) @ self.design.to_features
        return (rows[0] + 1j * rows[1]).astype(np.complex64), residuals

    def _round(self, chosen: NDArray[np.intp], attempt: int, n_iterations: int) -> NDArray[np.float32]:
        """Look for rows from random fields; return their coefficients."""
        design, targets = self.design, self.targets[chosen]
        coefficients = np.stack(
            [
                np.random.default_rng((self.settings.seed, attempt, int(self.numbers[row]))).standard_normal(
                    (2, design.n_columns), np.float32
                )
                for row in chosen
            ],
            axis=1,
        )
        coefficients *= np.sqrt(self.powers[chosen] / (2 * design.n_columns))[:, np.newaxis].astype(np.float32)
        fields, other = (np.empty((2, *targets.shape), np.float32) for _ in range(2))
        design.forward(coefficients, fields)
        for _ in range(n_iterations):
            reflect(fields, targets, other)
            design.forward(design.backward(other), other)
            relax(fields, other, targets, _BETA)
        return self._polish(design.backward(fields), targets, other)

    def _polish(
        self,
        coefficients: NDArray[np.float32],
        targets: NDArray[np.float32],
        fields: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the coefficients at the nearest weighted least-squares fit of the amplitudes."""
        work = np.empty((2, *targets.shape), np.float32) if fields is None else fields
        for _ in range(self.settings.n_polish):
            self.design.forward(coefficients, work)
            correct(work, targets, self.dim)
            coefficients = coefficients + self.design.backward(work)
        return coefficients

    def _residuals(self, coefficients: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
        fields = np.empty((2, *targets.shape), np.float32)
        self.design.forward(coefficients, fields)
        residuals: NDArray[np.float32] = np.sqrt(mismatch(fields, targets)).astype(np.float32)
        return residuals


def relative_residuals(residuals: NDArray[np.float32], powers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return residuals of amplitudes relative to the root mean square amplitude; NaN for a row without light."""
    relative: NDArray[np.float32] = np.divide(
        residuals, np.sqrt(powers), out=np.full(len(powers), np.nan), where=powers > 0
    ).astype(np.float32)
    return relative


def believed_rows(residuals: NDArray[np.float32], powers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows to believe by the residuals of their amplitudes.

    A row is out when its residual is above 1.5 times what rows of its brightness have, or above a quarter of its
    amplitude. Read and quantisation noise weigh less in bright rows: a bright row that has lost one quadrature has the
    residual of a good row of the usual brightness.

    Parameters
    ----------
    residuals : ndarray, shape (n_rows,)
        Root mean square residual of the amplitudes.
    powers : ndarray, shape (n_rows,)
        Mean intensity of the rows.

    Returns
    -------
    ndarray of bool, shape (n_rows,)
        False for rows without light.

    Examples
    --------
    >>> believed_rows(np.array([0.1, 0.1, 0.1, 0.2]), np.array([1.0, 1.0, 4.0, 1.0]))
    array([ True,  True,  True, False])
    """
    believed: NDArray[np.bool_] = powers > 0
    lit = np.flatnonzero(believed)
    if len(lit):
        expected = expected_residuals(residuals[lit], powers[lit])
        ratio = residuals[lit] / np.maximum(expected, NEGLIGIBLE_RESIDUAL * np.sqrt(powers[lit]))
        relative = relative_residuals(residuals, powers)[lit]
        believed[lit] = (ratio <= LARGEST_RESIDUAL_RATIO) & (relative <= LARGEST_RESIDUAL)
    return believed


def expected_residuals(residuals: NDArray[np.float32], powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the residuals that rows of such brightness have, fitted to most of the rows; all of them have light.

    The squares are `p + q / power + r * power`: photon noise, read and quantisation noise, and errors in proportion to
    the intensity. None is negative. Rows that stand out are left out of the next fit.
    """
    expected = np.full(len(powers), float(np.median(residuals)))
    scale = float(np.median(powers))
    terms = np.stack([np.ones(len(powers)), scale / powers, powers / scale], axis=1)
    for _ in range(4):
        good = (residuals > 0) & (residuals <= LARGEST_RESIDUAL_RATIO * expected)
        if good.sum() < _ROWS_FOR_A_FIT:
            break
        squares = residuals[good].astype(np.float64) ** 2
        expected = np.sqrt(terms @ _non_negative_fit(terms[good] / squares[:, np.newaxis]))
    return expected


def _non_negative_fit(relative_terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the parts, none below zero, with which terms add up to 1 best: the best of all choices of terms."""
    n_terms = relative_terms.shape[1]
    best, least = np.zeros(n_terms), math.inf
    for chosen in (list(c) for n in range(1, n_terms + 1) for c in itertools.combinations(range(n_terms), n)):
        parts, *_ = np.linalg.lstsq(relative_terms[:, chosen], np.ones(len(relative_terms)), rcond=None)
        error = float(((relative_terms[:, chosen] @ parts - 1) ** 2).sum())
        if (parts >= 0).all() and error < least:
            least = error
            best = np.zeros(n_terms)
            best[chosen] = parts
    return best


def frame_correlations(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Return the Pearson correlation of two frames for each pattern, shape (n_patterns,); NaN without any contrast.

    Parameters
    ----------
    one, other : array_like, shape (n_patterns, n_outputs)
        Intensities.
    """
    first, second = (np.asarray(frames, np.float64) for frames in (one, other))
    if first.shape[1] == 0:
        return np.full(len(first), np.nan)
    first, second = (frames - frames.mean(axis=1, keepdims=True) for frames in (first, second))
    spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    found: NDArray[np.float64] = np.divide(
        (first * second).sum(axis=1), spread, out=np.full(len(spread), np.nan), where=spread > 0
    )
    return found


def _checked_intensities(intensities: ArrayLike, n_patterns: int) -> NDArray[np.float32]:
    counts = as_array(intensities)
    if counts.dtype.kind not in "uif" or counts.ndim != 2 or len(counts) != n_patterns or counts.shape[1] == 0:
        raise PatternShapeError(
            f"The intensities are {counts.dtype} of the shape {counts.shape}.",
            f"Use real numbers of the shape ({n_patterns}, n_outputs), a row for each pattern.",
        )
    found: NDArray[np.float32] = counts.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise InputError("An intensity is no finite number.", "Leave pixels without a count out.")
    return found


def _checked_start(initial: ArrayLike, n_outputs: int, n_columns: int) -> NDArray[np.complex128]:
    start = np.asarray(initial, np.complex128)
    if start.shape != (n_outputs, n_columns):
        raise PatternShapeError(
            f"The initial matrix has the shape {start.shape}.", f"Use ({n_outputs}, {n_columns}), background included."
        )
    return start


def _targets(counts: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return amplitudes of rows, shape (n_rows, n_patterns); below zero where a sample is saturated."""
    amplitudes = np.sqrt(np.maximum(counts, 0))
    return np.ascontiguousarray(np.where(counts >= bounds, -amplitudes, amplitudes).T)


def retrieval_patterns(n_patterns: int, n_features: int, *, varied: bool = False, seed: int = 0) -> NDArray[np.bool_]:
    """Return random patterns that suit phase retrieval, shape (n_patterns, n_features).

    Each feature is on with a probability of a third. What all patterns have in common is a field of constant phase,
    and where it is much brighter than what differs, the quadrature to it hardly shows in the intensities. The ratio of
    the two is `p / (1 - p)` on average, with an exponential distribution over the rows: half as large for a third as
    for a half, and rows with ten times the average exist.

    Parameters
    ----------
    n_patterns, n_features : int
        The shape.
    varied : bool
        Draw the probability for each pattern from 0.2 to 0.45, so that the numbers of ones differ by more than chance:
        this tells a background, which is always on, from the sum of all features.
    seed : int
        Of the patterns.

    Examples
    --------
    >>> retrieval_patterns(1000, 90).mean().round(2)
    np.float64(0.33)
    """
    rng = np.random.default_rng(seed)
    share = rng.uniform(*_VARIED_SHARES, (n_patterns, 1)) if varied else _SHARE
    return rng.random((n_patterns, n_features), np.float32) < share
