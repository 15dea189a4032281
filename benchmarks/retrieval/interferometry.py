"""Numerical interferometry: a matrix from distances to anchors.

S. Gupta, R. Gribonval, L. Daudet, I. Dokmanic: "Don't take it lightly: Phasing optical random projections with unknown
operators", NeurIPS 2019, and "Fast optical system identification by numerical interferometry", ICASSP 2020.

Anchors are patterns that contain all probes, so that anchor minus probe is a pattern too, and its intensity the squared
distance of two points in the complex plane: the fields of the anchor and of the probe. Anchors are nested, for the
distances between them. The positions of the anchors follow from these by multidimensional scaling, with the origin as
one more point, the fields of the probes by multilateration, and the matrix from those by the inverse of the probes. The
authors can refine the positions by gradient descent, without distances that a coarse camera shows as 0; that is left
out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from opu.calibration.matrix.hadamard import ScrambledHadamard

__all__ = ["Design", "equal_frames", "measured", "published"]

EXPOSURE_PATTERNS = 32
SINGLES = 8
"""How often the first feature is shown alone, too: with as many probes as features its column of the inverse holds a
fifth of the noise of a row otherwise."""


@dataclass(frozen=True, eq=False)
class Design:
    """What is shown: `probes`, shape (n_probes, n_features), each `repeats` times with each anchor and alone.

    Anchors add parts of `n_features` mirrors beside the features. The distances between two points are shown
    `between_repeats` times.
    """

    probes: np.ndarray
    n_anchors: int
    repeats: int
    between_repeats: int

    @property
    def width(self):
        """Return the width of the patterns: features, and as many mirrors for anchors."""
        return 2 * self.probes.shape[1]

    @property
    def n_frames(self):
        """Return the frames of the design."""
        shown, between = self.shown()
        return self.repeats * sum(map(len, shown)) + self.between_repeats * len(between)

    @property
    def points(self):
        """Return the origin, which shows probes alone, and the anchors, each with more mirrors than the one before."""
        n_features = self.probes.shape[1]
        rows = np.zeros((self.n_anchors + 1, self.width), np.bool_)
        rows[1:, :n_features] = True
        for k, row in enumerate(rows[1:]):
            row[n_features : n_features + k * n_features // (self.n_anchors - 1)] = True
        return rows

    @property
    def pairs(self):
        """Return the indices of two different points, for each pair of them."""
        return np.triu_indices(self.n_anchors + 1, 1)

    def shown(self):
        """Return for each point the patterns of its distances to the probes, and those between the points."""
        wide = np.pad(self.probes, ((0, 0), (0, self.width - self.probes.shape[1])))
        first, second = self.pairs
        return [point ^ wide for point in self.points], self.points[first] ^ self.points[second]

    def recover(self, squares, between):
        """Return the matrix, shape (n_outputs, n_features).

        `squares`, shape (n_points, n_probes, n_outputs), are those of the distances to the probes, and `between`,
        shape (n_pairs, n_outputs), those between the points, in the same unit.
        """
        first, second = self.pairs
        n_points, n_outputs = self.n_anchors + 1, between.shape[1]
        table = np.zeros((n_outputs, n_points, n_points))
        table[:, first, second] = table[:, second, first] = between.T
        fields = multilaterated(positions(table), squares.transpose(2, 0, 1))
        return fields @ np.linalg.pinv(self.probes.astype(np.float64)).T


def published(n_features):
    """Return the design of a published run on a device: random probes, 1.5 a feature, 20 anchors, each frame twice."""
    return Design(published_probes(n_features), 20, repeats=2, between_repeats=2)


def published_probes(n_features):
    return np.random.default_rng(0).random((3 * n_features // 2, n_features)) < 0.5


def equal_frames(n_features, n_frames):
    """Return a design for a number of frames: well-conditioned probes, and as many anchors as there are frames for.

    What is left goes into the distances between the anchors, whose errors are those of whole rows. Hadamard patterns
    are the best conditioned of all binary ones; on circulant ones, which the authors take, an inverse is quick. Where
    there are as many of them as features, the first feature is shown alone, too.
    """
    probes = ScrambledHadamard(n_features, n_singles=SINGLES).patterns

    def left(n_anchors):
        return n_frames - (n_anchors + 1) * len(probes), n_anchors * (n_anchors + 1) // 2

    n_anchors = max((n for n in range(2, 21) if left(n)[0] >= left(n)[1]), default=None)
    if n_anchors is None:
        raise SystemExit(f"{n_frames} frames are too few for two anchors of {len(probes)} probes each.")
    frames, n_pairs = left(n_anchors)
    return Design(probes, n_anchors, repeats=1, between_repeats=frames // n_pairs)


def positions(squares):
    """Return points of the complex plane from their squared distances, shape (n_outputs, n, n), the first at 0."""
    n = squares.shape[1]
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ squares @ centring)
    planes = vectors[:, :, -2:] * np.sqrt(np.maximum(values[:, np.newaxis, -2:], 0))
    points = planes[:, :, 1] + 1j * planes[:, :, 0]
    return points - points[:, :1]


def multilaterated(anchors, squares):
    """Return points from their squared distances to the anchors.

    `anchors` have the shape (n_outputs, n), `squares` (n_outputs, n, n_points): the linear system in the real and
    imaginary part of a point and its square.
    """
    ones = np.ones_like(anchors.real)
    system = np.stack([-2 * anchors.real, -2 * anchors.imag, ones], axis=2)
    solved = np.linalg.pinv(system) @ (squares - (np.abs(anchors) ** 2)[:, :, np.newaxis])
    return solved[:, 0] + 1j * solved[:, 1]


def measured(recorder, config, design):
    """Measure a matrix; return it and the computing time in seconds.

    Anchors differ in brightness: each point has an exposure of its own, and so has each number of ones between points.
    """
    shown, between = design.shown()
    squares = np.stack([mean_rate(recorder, config, patterns, design.repeats) for patterns in shown])
    pairs = np.empty((len(between), config.n_outputs))
    n_on = between.sum(axis=1)
    for number in np.unique(n_on):
        alike = n_on == number
        pairs[alike] = mean_rate(recorder, config, between[alike], design.between_repeats)
    started_s = time.perf_counter()
    matrix = design.recover(squares, pairs)
    return matrix, time.perf_counter() - started_s


def mean_rate(recorder, config, patterns, repeats):
    """Return mean counts a microsecond, at the exposure for a ninth of full scale."""
    exposed = recorder.expose(config, np.resize(patterns, (EXPOSURE_PATTERNS, patterns.shape[1])))
    frames = recorder.take(exposed, np.tile(patterns, (repeats, 1))).frames.astype(np.float64)
    return frames.reshape(repeats, len(patterns), -1).mean(axis=0) / exposed.exposure_us
