"""Which frame is which: a sequence of patterns that tells, and what became of it on its way.

The patterns have eight brightnesses, so that the means of the frames are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PRBS_LENGTH",
    "UNKNOWN",
    "FrameFaults",
    "FrameSequence",
    "Identified",
    "find_frame_faults",
    "frame_sequence",
    "identify_frames",
]

UNKNOWN = -1
"""A frame that shows none of the patterns, or whose source is not known."""

N_LEVELS = 8
PRBS_LENGTH = 2**11 - 1
_TAPS = (11, 9)
_BLOCK = 128
_LEAST_CORRELATION = 0.45
_ALIGNED = 16
_WINDOW = 32
_LONGEST_GAP = 32
_LONG_GAP_COST = 16.0
_SETTLED = 8
_UNKNOWN_COST = 2.5
"""Of a frame in the place of another one, or too many. More than a loss and a repeat side by side: a frame that shows
its neighbour's pattern is those, and not damaged."""


@dataclass(frozen=True, eq=False)
class FrameSequence:
    """Patterns whose brightness tells which they are.

    Parameters
    ----------
    levels : ndarray of int64, shape (n_frames,)
        Brightness levels, from 0 to `N_LEVELS - 1`. The upper half of the levels is bright and the lower half dark, by
        a pseudo-random binary sequence of `2**11 - 1`; three in a row always differ.
    patterns : ndarray of bool, shape (n_frames, n_features)
        The patterns: nested sets of features, in number proportional to the level plus one.
    """

    levels: NDArray[np.int64]
    patterns: NDArray[np.bool_]


def frame_sequence(n_frames: int, n_features: int) -> FrameSequence:
    """Return a sequence of patterns in which every loss, repeat and swap shows.

    Examples
    --------
    >>> sequence = frame_sequence(2047, 64)
    >>> int((sequence.levels >= 4).sum()), bool((sequence.levels[1:] != sequence.levels[:-1]).all())
    (1024, True)
    """
    generator = np.random.default_rng(0)
    bright = np.resize(_binary_sequence(), n_frames)
    digits = _restless_digits(n_frames, generator)
    levels = bright * (N_LEVELS // 2) + digits
    # Three quarters of the features for the brightest, so that little of the speckle saturates.
    n_on = np.maximum(1, np.round(0.75 * n_features * np.arange(1, N_LEVELS + 1) / N_LEVELS))
    rank = generator.permutation(n_features)
    return FrameSequence(levels, (rank < n_on[:, np.newaxis])[levels])


def _restless_digits(n_digits: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return random digits each of which differs from the two before it."""
    digits = [0, 1]
    for choice in generator.integers(0, N_LEVELS // 2 - 2, n_digits).tolist():
        others = [digit for digit in range(N_LEVELS // 2) if digit not in digits[-2:]]
        digits.append(others[choice])
    return np.array(digits[2:], dtype=np.int64)


def _binary_sequence() -> NDArray[np.int64]:
    """Return one period of the maximal sequence of the register with the polynomial x^11 + x^9 + 1."""
    bits = [1] * max(_TAPS)
    while len(bits) < PRBS_LENGTH:
        bits.append(bits[-_TAPS[0]] ^ bits[-_TAPS[1]])
    return np.array(bits, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Identified:
    """Frames with names.

    Parameters
    ----------
    levels : ndarray of int64, shape (n_frames,)
        The brightness level of each frame, `UNKNOWN` where it is none.
    late_frames : int or None
        By how many frames the first ones that could be told come late, None where no part of the sequence was found.
    correlation : float
        Of the frame means with the brightness that was sent, in the block of frames where it is best; NaN for none.
    curve : ndarray of float64, shape (2 max_late + 1,)
        The correlation over the lags from `-max_late` to `max_late`, in the first block in which it is clear.
    centres : ndarray of float64, shape (N_LEVELS,)
        The mean of the frames of each level; NaN where unknown.
    """

    levels: NDArray[np.int64]
    late_frames: int | None
    correlation: float
    curve: NDArray[np.float64]
    centres: NDArray[np.float64]

    @property
    def likely_late_frames(self) -> int | None:
        """The lag of the best correlation, which mixtures of two patterns have, too; None where nothing was found."""
        if math.isnan(self.correlation):
            return None
        return int(np.nanargmax(self.curve)) - len(self.curve) // 2


def identify_frames(means: NDArray[np.float64], sent: NDArray[np.int64], max_late: int = 64) -> Identified:
    """Tell which level of brightness each frame shows, and by how many frames the answers come late.

    The means are correlated with the levels that were sent, block by block, since losses and repeats move the rest of a
    sequence. The best lag of each block says which level its frames have; the median of each level then names every
    frame. The latency is the lag at which the first 16 successive frames with names are those that were sent.

    Parameters
    ----------
    means : ndarray of float64, shape (n_frames,)
        The mean of each frame.
    sent : ndarray of int64, shape (n_frames,)
        The levels of `frame_sequence`.
    max_late : int
        The largest latency that is looked for, in frames; a negative one is a camera that sees later patterns.

    Returns
    -------
    Identified
        What the frames are.
    """
    lags = np.arange(-max_late, max_late + 1)
    n_frames = len(means)
    unknown = np.full(n_frames, UNKNOWN)
    no_centres = np.full(N_LEVELS, np.nan)
    expected, best, curve = unknown.copy(), math.nan, np.full(len(lags), np.nan)
    around = 0
    for start in range(0, n_frames, _BLOCK):
        block = slice(start, min(start + _BLOCK, n_frames))
        correlations = _lag_correlations(means[block], sent, start, around + lags)
        if not np.nanmax(correlations, initial=-1.0) >= _LEAST_CORRELATION:
            continue
        if math.isnan(best):
            curve = correlations
        best = float(np.nanmax([best, np.nanmax(correlations)]))
        around += int(lags[np.nanargmax(correlations)])
        source = np.arange(block.start, block.stop) - around
        inside = (source >= 0) & (source < n_frames)
        expected[block][inside] = sent[source[inside]]
    if math.isnan(best):
        return Identified(unknown, None, best, curve, no_centres)
    centres = np.array([np.median(means[expected == k]) if (expected == k).any() else np.nan for k in range(N_LEVELS)])
    levels = _nearest(means, centres)
    return Identified(levels, _first_lag(levels, sent, max_late), best, curve, centres)


def _lag_correlations(
    means: NDArray[np.float64], sent: NDArray[np.int64], start: int, lags: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the Pearson correlations of a block of means with what was sent so many frames before; NaN for none."""
    source = start + np.arange(len(means)) - lags[:, np.newaxis]
    inside = (source >= 0) & (source < len(sent))
    expected = np.where(inside, sent[np.clip(source, 0, len(sent) - 1)], 0).astype(np.float64)
    n_inside = inside.sum(axis=1)
    counted = np.maximum(n_inside, 1)[:, np.newaxis]
    x = np.where(inside, expected - expected.sum(axis=1, keepdims=True) / counted, 0.0)
    y = np.where(inside, means, 0.0)
    y = np.where(inside, y - y.sum(axis=1, keepdims=True) / counted, 0.0)
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    known = (n_inside >= _BLOCK // 4) & (spread > 0)
    return np.where(known, (x * y).sum(axis=1) / np.where(known, spread, 1.0), np.nan)


def _nearest(means: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Name the level of each mean; one that lies farther from all than half of the least step between them has none."""
    known = np.flatnonzero(~np.isnan(centres))
    if len(known) < 2:
        return np.full(len(means), UNKNOWN)
    tolerance = np.diff(np.sort(centres[known])).min() / 2
    distance = np.abs(means[:, np.newaxis] - centres[known])
    nearest = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) <= tolerance, known[nearest], UNKNOWN)


def _first_lag(levels: NDArray[np.int64], sent: NDArray[np.int64], max_late: int) -> int | None:
    """Return the lag of the first frames, None where no run of frames is a part of what was sent."""
    found = _first_run(levels, sent, max_late)
    if found is None:
        return None
    # From there back to the beginning, so that a loss among the first frames is one, and no latency.
    place, lag = found
    end, source_end = place + _ALIGNED, place - lag + _ALIGNED
    back = find_frame_faults(levels[:end][::-1], sent[:source_end][::-1]).sources[::-1]
    sources = np.where(back == UNKNOWN, UNKNOWN, source_end - 1 - back)
    [in_order] = np.nonzero((sources[:-1] != UNKNOWN) & (np.diff(sources) == 1))
    first = int(in_order[0])
    return first - int(sources[first])


def _first_run(levels: NDArray[np.int64], sent: NDArray[np.int64], max_late: int) -> tuple[int, int] | None:
    """Return the place of the first run of frames that is a part of what was sent, and its lag."""
    runs = []
    for lag in range(-max_late, max_late + 1):
        received, expected = levels[max(lag, 0) :], sent[max(-lag, 0) :]
        n_both = min(len(received), len(expected))
        if n_both < _ALIGNED:
            continue
        equal = received[:n_both] == expected[:n_both]
        [whole] = np.nonzero(np.convolve(equal, np.ones(_ALIGNED, dtype=np.int64), "valid") == _ALIGNED)
        if len(whole):
            runs.append((int(whole[0]) + max(lag, 0), lag))
    return min(runs, default=None)


@dataclass(frozen=True, eq=False)
class FrameFaults:
    """What became of a sequence of frames.

    Parameters
    ----------
    sources : ndarray of int64, shape (n_received,)
        Which frame that was sent stands at each place, `UNKNOWN` for none.
    dropped : ndarray of int64
        Numbers of frames that were sent and never arrived, though later ones did.
    duplicated : ndarray of int64
        Places at which the frame of the place before stands again.
    swapped : ndarray of int64
        Places whose frame has changed places with that of the next one.
    unknown : ndarray of int64
        Places at which no frame stands that was sent there.
    """

    sources: NDArray[np.int64]
    dropped: NDArray[np.int64]
    duplicated: NDArray[np.int64]
    swapped: NDArray[np.int64]
    unknown: NDArray[np.int64]


def find_frame_faults(received: ArrayLike, sent: ArrayLike, *, late_frames: int = 0) -> FrameFaults:
    """Find where frames were lost, doubled or swapped on their way.

    Both are sequences of names: levels of brightness (`identify_frames`), or numbers that the frames carry in any other
    way. Where they agree nothing is done. Around a disagreement the least number of losses, repeats, swaps and damaged
    frames is found that explains the next frames: the edit distance with transpositions of Damerau (Comm. ACM 7, 171,
    1964), along a band. A loss is told from its neighbours only where their names differ.

    Parameters
    ----------
    received : array_like of int, shape (n_received,)
        The names of the frames that came; negative ones for frames that are none of them.
    sent : array_like of int, shape (n_sent,)
        The names of the frames that were sent, not negative.
    late_frames : int
        By how many frames the answers come late; a negative number says that the first ones are missing.

    Returns
    -------
    FrameFaults
        What became of them. Frames at the end that did not come are not counted as lost.

    Examples
    --------
    >>> find_frame_faults([0, 1, 3, 4, 4, 5, 7, 6, 8, 9], range(10)).dropped
    array([2])
    >>> faults = find_frame_faults([0, 1, 3, 4, 4, 5, 7, 6, 8, 9], range(10))
    >>> faults.duplicated, faults.swapped
    (array([4]), array([6]))
    """
    received, sent = np.asarray(received, np.int64), np.asarray(sent, np.int64)
    sources = np.full(len(received), UNKNOWN)
    found: dict[str, list[int]] = {name: [] for name in ("drop", "duplicate", "swap", "unknown")}
    place, source = max(late_frames, 0), max(-late_frames, 0)
    while place < len(received) and source < len(sent):
        n_both = min(len(received) - place, len(sent) - source)
        [wrong] = np.nonzero(received[place : place + n_both] != sent[source : source + n_both])
        n_equal = int(wrong[0]) if len(wrong) else n_both
        sources[place : place + n_equal] = np.arange(source, source + n_equal)
        place, source = place + n_equal, source + n_equal
        if n_equal == n_both:
            break
        for step in _explain(received, sent, place, source):
            if step == "drop":
                found[step].append(source)
                source += 1
                continue
            if step != "match":
                found["unknown" if step == "stray" else step].append(place)
            if step == "swap":
                sources[place : place + 2] = source + 1, source
                place, source = place + 2, source + 2
                continue
            if step in {"match", "duplicate"}:
                sources[place] = source if step == "match" else source - 1
            place, source = place + 1, source + (step in {"match", "unknown"})
    found["unknown"].extend(range(place, len(received)))
    dropped, duplicated, swapped, unknown = (np.array(places, dtype=np.int64) for places in found.values())
    return FrameFaults(sources, dropped, duplicated, swapped, unknown)


def _explain(received: NDArray[np.int64], sent: NDArray[np.int64], place: int, source: int) -> list[str]:
    """Return the cheapest steps from a disagreement to where the sequences agree again for a while."""
    s = sent[source : source + _WINDOW + _LONGEST_GAP]
    r = received[place : place + _WINDOW]
    # In front of both what was there before, so that a repeat of it can be told.
    before_r = received[place - 1] if place else UNKNOWN
    before_s = sent[source - 1] if source else UNKNOWN
    last_sent = np.concatenate([[before_s], s])
    last_received = np.concatenate([[before_r], r])
    drops = np.arange(len(s) + 1, dtype=np.float64)
    cost = np.full((len(r) + 1, len(s) + 1), np.inf)
    cost[0] = drops
    for i in range(1, len(r) + 1):
        row = cost[i - 1] + _UNKNOWN_COST
        row[1:] = np.minimum(row[1:], cost[i - 1, :-1] + np.where(r[i - 1] == s, 0.0, _UNKNOWN_COST))
        if r[i - 1] == last_received[i - 1] != UNKNOWN:
            row = np.where(last_sent == r[i - 1], np.minimum(row, cost[i - 1] + 1), row)
        if i > 1:
            swaps = (r[i - 1] == s[:-1]) & (r[i - 2] == s[1:])
            row[2:] = np.where(swaps, np.minimum(row[2:], cost[i - 2, :-2] + 1), row[2:])
        cost[i] = np.minimum.accumulate(row - drops) + drops
    if cost[-1].min() > _LONG_GAP_COST:
        n_lost = _gap(received[place : place + _ALIGNED], sent[source:])
        if n_lost:
            return ["drop"] * n_lost
    return _settled(_trace(cost, r, s, last_received, last_sent))


def _gap(received: NDArray[np.int64], sent: NDArray[np.int64]) -> int:
    """Return how many frames before the next run of received ones were lost together; 0 where that run is nowhere."""
    if len(received) < _ALIGNED or len(sent) < _ALIGNED:
        return 0
    [found] = np.nonzero((np.lib.stride_tricks.sliding_window_view(sent, _ALIGNED) == received).all(axis=1))
    return int(found[0]) if len(found) else 0


def _trace(
    cost: NDArray[np.float64],
    r: NDArray[np.int64],
    s: NDArray[np.int64],
    last_received: NDArray[np.int64],
    last_sent: NDArray[np.int64],
) -> list[str]:
    """Return the steps of the cheapest way, from the first one on."""
    i, j = len(r), int(cost[-1].argmin())
    steps = []
    while i or j:
        now = cost[i, j]
        if i and j and now == cost[i - 1, j - 1] and r[i - 1] == s[j - 1]:
            step, i, j = "match", i - 1, j - 1
        elif i > 1 and j > 1 and now == cost[i - 2, j - 2] + 1 and r[i - 1] == s[j - 2] and r[i - 2] == s[j - 1]:
            step, i, j = "swap", i - 2, j - 2
        elif i and now == cost[i - 1, j] + 1 and r[i - 1] == last_received[i - 1] == last_sent[j]:
            step, i = "duplicate", i - 1
        elif j and now == cost[i, j - 1] + 1:
            step, j = "drop", j - 1
        elif i and j and now == cost[i - 1, j - 1] + _UNKNOWN_COST:
            step, i, j = "unknown", i - 1, j - 1
        else:
            step, i = "stray", i - 1
        steps.append(step)
    return steps[::-1]


def _settled(steps: list[str]) -> list[str]:
    """Return the steps until some matches have followed one another; half of them where they never do."""
    n_matches = 0
    for number, step in enumerate(steps, 1):
        n_matches = n_matches + 1 if step == "match" else 0
        if n_matches == _SETTLED:
            return steps[:number]
    return steps if len(steps) < _WINDOW else steps[: len(steps) // 2]
