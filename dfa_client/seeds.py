"""Random generators: every use of chance in a training has one of its own, all derived from one seed.

A generator that one part draws from can thus never disturb another part, and what depends on the epoch (the order of
the samples) is recreated from the seed and the epoch's number alone.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["Stream", "generator", "noise_key"]


class Stream(IntEnum):
    """What chance is used for."""

    SPLIT = 0
    WEIGHTS = 1
    ORDER = 2
    FEEDBACK = 3
    NOISE = 4


def generator(seed: int, stream: Stream, *which: int) -> np.random.Generator:
    """Return the generator of one stream.

    Parameters
    ----------
    seed : int
        The seed of the training, 0 or more.
    stream : Stream
        What it is for.
    which : int
        Which one of several, for example the epoch.

    Examples
    --------
    >>> int(generator(7, Stream.ORDER, 3).integers(1000)) == int(generator(7, Stream.ORDER, 3).integers(1000))
    True
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *which)))


def noise_key(seed: int, trial: int) -> int:
    """Return a 64-bit key that names the noise of one run's frames.

    Parameters
    ----------
    seed : int
        The seed of the training.
    trial : int
        0 for the training itself; other numbers for the runs that tune it, so that they meet other noise.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(Stream.NOISE, trial))
    return int(sequence.generate_state(1, np.uint64)[0])
