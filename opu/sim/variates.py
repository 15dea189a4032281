r"""Random variates from words of 32 random bits: pairs of normal numbers, and Poisson counts.

Two words make two independent normal numbers (G. E. P. Box and M. E. Muller, Ann. Math. Statist. 29, 1958): with `u`
uniform in (0, 1) from the first word and `v` from the second,

    r = sqrt(-2 log u),    z = (r cos 2 pi v, r sin 2 pi v).

From a mean of 16 on, the Poisson count is the quantile of the probability whose normal quantile is `z`: the floor of

    m + sqrt(m) z + 1/3 + z^2/6 - (z/36 + z^3/72) / sqrt(m) + (-8/405 + 7 z^2/810 + z^4/270) / m

(M. B. Giles, ACM TOMS 42, 2016, algorithm 955); one draw in thousands is off by one. Below, the distribution function
is summed up exactly, against a uniform word of its own.

Float arithmetic is in a fixed order, with own series for logarithm, exponential, sine and cosine, so that the compiled
functions and their NumPy twins agree to the bit. The compiled ones are simple loops over short arrays, one for each
step, which a compiler turns into vector instructions. Integers are cast back to 32 bits after every operation: Numba
would widen them, and a vector would hold half as many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "LANES",
    "SMALL_MEAN",
    "exponential",
    "fill_normal_pairs",
    "fill_poisson",
    "fill_small_poisson",
    "find_small",
    "normal_pairs",
    "poisson",
    "small_poisson",
]

SMALL_MEAN = np.float32(16.0)
"""Below this mean, counts are drawn by exact inversion."""

LANES = 16
"""Counts that `fill_small_poisson` draws side by side: the length of its scratch arrays is a multiple."""

BLOCK = 512
"""Numbers that the compiled functions work on together: they stay in the nearest cache."""

_F = np.float32
_I = np.int32
_HALF = _F(0.5)
_ONE = _F(1.0)
_BITS_31 = _I(0x7FFFFFFF)
_SCALE_31 = _F(2.0**-31)
_SQRT_HALF_BITS = _I(0x3F3504F3)
_EXPONENT = _I(23)

# -2 log(1 + f) / f for 1 + f in [sqrt(1/2), sqrt(2)), relative error 2e-7; sin(t pi / 4) and cos(t pi / 4) for t in
# [-1, 1], errors 6e-7 and 3e-8. Least-squares fits at Chebyshev nodes.
_MINUS_TWO_LN2 = _F(-1.3862943611198906)
_L0, _L1, _L2, _L3 = _F(-1.99999989e00), _F(1.00000726e00), _F(-6.66702283e-01), _F(4.99401434e-01)
_L4, _L5, _L6, _L7 = _F(-3.97971301e-01), _F(3.44940266e-01), _F(-3.24683796e-01), _F(2.02681135e-01)
_S0, _S1, _S2 = _F(7.85394228e-01), _F(-8.07139747e-02), _F(2.42708677e-03)
_C0, _C1, _C2, _C3 = _F(9.99999972e-01), _F(-3.08424253e-01), _F(1.58499130e-02), _F(-3.18878992e-04)

_Q_THIRD, _Q_SIXTH = _F(1 / 3), _F(1 / 6)
_Q_W, _Q_W3 = _F(-1 / 36), _F(-1 / 72)
_Q_0, _Q_W2, _Q_W4 = _F(-8 / 405), _F(7 / 810), _F(1 / 270)

_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9 = (1 / math.factorial(i) for i in range(2, 10))
_COLUMNS = 64
_MOST = 128
_RECIPROCALS = 1.0 / np.arange(1, _MOST + 1)
"""Of 1 to 128: no word leads to a count near that with a mean below 16."""


@intrinsic
def _bits_of(typing_context: Any, number: Any) -> Any:  # noqa: ARG001 - the signature of an intrinsic
    """Return the bits of a float32 as int32: for one number what `view` does for an array, and faster to compile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001 - the signature of an intrinsic
    """Return the float32 that has these bits, int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(inline="always", cache=True)
def _uniform(integer: Any) -> Any:  # pragma: no cover - compiled
    return (_F(_I(integer & _BITS_31)) + _HALF) * _SCALE_31


@njit(inline="always", cache=True)
def _split(bits: Any) -> Any:  # pragma: no cover - compiled
    """Split the bits of a positive float32 into exponent and bits of the mantissa, in [sqrt(1/2), sqrt(2))."""
    exponent = _I(_I(bits - _SQRT_HALF_BITS) >> _EXPONENT)
    return exponent, _I(bits - _I(exponent << _EXPONENT))


@njit(inline="always", cache=True)
def _squared_radius(exponent: Any, mantissa: Any) -> Any:  # pragma: no cover - compiled
    f = mantissa - _ONE
    f2 = f * f
    series = ((_L0 + _L1 * f) + f2 * (_L2 + _L3 * f)) + (f2 * f2) * ((_L4 + _L5 * f) + f2 * (_L6 + _L7 * f))
    return exponent * _MINUS_TWO_LN2 + f * series


@njit(inline="always", cache=True)
def _sine_and_cosine(integer: Any) -> Any:  # pragma: no cover - compiled
    """Return sine and cosine of an angle within an eighth of a turn to either side: the lower 30 bits."""
    t = _F(_I(integer << _I(2))) * _SCALE_31
    t2 = t * t
    return t * (_S0 + t2 * (_S1 + t2 * _S2)), (_C0 + t2 * _C1) + (t2 * t2) * (_C2 + t2 * _C3)


@njit(inline="always", cache=True)
def _poisson_series(mean: Any, z: Any) -> Any:  # pragma: no cover - compiled
    inverse = _ONE / mean
    deviation = np.sqrt(mean) * z
    z2 = z * z
    correction = deviation * (_Q_W + z2 * _Q_W3) + (_Q_0 + z2 * (_Q_W2 + z2 * _Q_W4))
    return ((mean + deviation) + (_Q_THIRD + z2 * _Q_SIXTH)) + inverse * correction


@njit(inline="always", cache=True)
def _exponential_of_minus(mean: Any) -> Any:  # pragma: no cover - compiled
    """Return exp(-mean) in float64, for means up to 16: a Taylor series of mean / 64 and six squarings."""
    x = mean * (-1 / 64)
    x2 = x * x
    x4 = x2 * x2
    low = (1.0 + x) + x2 * (_E2 + x * _E3)
    middle = (_E4 + x * _E5) + x2 * (_E6 + x * _E7)
    series = low + x4 * (middle + x4 * (_E8 + x * _E9))
    # A loop would keep the caller's from becoming vectors.
    series = series * series
    series = series * series
    series = series * series
    series = series * series
    series = series * series
    return series * series


@njit(cache=True, error_model="numpy")
def fill_normal_pairs(
    radius_words: Any, angle_words: Any, start: Any, first: Any, second: Any, size: Any
) -> None:  # pragma: no cover - compiled
    """Fill `first` and `second`, float32, with normal numbers from words, uint32, from `start` on.

    No array overlaps another. The lower 31 bits of the first word are `u`. Of the second, the highest bit is the sign
    of both numbers, the next one says which of them has the cosine, and the others are the angle within an eighth of a
    turn to either side.
    """
    for i in range(size):
        exponent, mantissa_bits = _split(_bits_of(_uniform(_I(radius_words[start + i]))))
        first[i] = _F(exponent)
        second[i] = _from_bits(mantissa_bits)
    for i in range(size):
        first[i] = np.sqrt(_squared_radius(first[i], second[i]))
    for i in range(size):
        integer = _I(angle_words[start + i])
        sine, cosine = _sine_and_cosine(integer)
        radius = -first[i] if integer < _I(0) else first[i]
        swapped = _I(integer << _I(1)) < _I(0)
        first[i] = radius * (sine if swapped else cosine)
        second[i] = radius * (cosine if swapped else sine)


@njit(cache=True, error_model="numpy")
def fill_poisson(mean: Any, counts: Any, size: Any) -> None:  # pragma: no cover - compiled
    """Replace the normal numbers in `counts`, float32, by Poisson counts; below a mean of 16 they mean nothing."""
    for i in range(size):
        counts[i] = np.floor(_poisson_series(mean[i], counts[i]))


@njit(cache=True)
def find_small(mean: Any, columns: Any, found: Any) -> Any:  # pragma: no cover - compiled
    """Write the places of means below 16 to `found`, in any order, and return how many there are.

    `mean` is `BLOCK` long, and so is `columns`, scratch; `found` is longer. Means are looked at in columns, most of
    which hold no small one.
    """
    least = np.empty(_COLUMNS, _F)
    for i in range(_COLUMNS):
        smallest = mean[i]
        for row in range(1, BLOCK // _COLUMNS):
            other = mean[i + row * _COLUMNS]
            smallest = other if other < smallest else smallest
        least[i] = smallest
    # No branches that depend on means: a processor cannot foresee them.
    n_columns = 0
    for i in range(_COLUMNS):
        columns[n_columns] = i
        n_columns += least[i] < SMALL_MEAN
    n = 0
    for column in range(n_columns):
        for row in range(BLOCK // _COLUMNS):
            place = columns[column] + row * _COLUMNS
            found[n] = place
            n += mean[place] < SMALL_MEAN
    return n


@njit(cache=True, error_model="numpy")
def fill_small_poisson(
    mean: Any, words: Any, found: Any, n: Any, lanes: Any, drawn: Any, counts: Any
) -> None:  # pragma: no cover - compiled
    """Overwrite the counts at the places `found` by exact ones, from the lower half of a word of 64 bits for each.

    Scratch: `lanes`, float64, of shape (4, multiple of 16), and `drawn`, int64, each at least `n` long.
    """
    end = (n + LANES - 1) // LANES * LANES
    for i in range(n):
        lanes[0, i] = mean[found[i]]
    for i in range(n):
        lanes[1, i] = (np.uint32(words[i]) + 0.5) * 2.0**-32
    for i in range(n, end):
        lanes[0, i] = 0.0
        lanes[1, i] = 0.0
    for i in range(end):
        lanes[2, i] = _exponential_of_minus(lanes[0, i])
        lanes[3, i] = lanes[2, i]
        drawn[i] = 0
    for group in range(end // LANES):
        # Unsigned, because an index that could be negative keeps a loop from becoming vectors.
        start = np.uint64(group) * np.uint64(LANES)
        # All lanes go on until the last one has arrived; those that have do not count any more. Four steps at a time,
        # as registers are nearer than memory.
        for step in range(0, _MOST, 4):
            r1, r2 = _RECIPROCALS[step], _RECIPROCALS[step + 1]
            r3, r4 = _RECIPROCALS[step + 2], _RECIPROCALS[step + 3]
            counting = np.int64(0)
            for lane in range(LANES):
                place = start + np.uint64(lane)
                m, u, p, t = lanes[0, place], lanes[1, place], lanes[2, place], lanes[3, place]
                above = np.int64(u > t)
                p = p * (m * r1)
                t = t + p
                above += np.int64(u > t)
                p = p * (m * r2)
                t = t + p
                above += np.int64(u > t)
                p = p * (m * r3)
                t = t + p
                above += np.int64(u > t)
                p = p * (m * r4)
                lanes[2, place] = p
                lanes[3, place] = t + p
                drawn[place] += above
                counting += above
            if counting == 0:
                break
    for i in range(n):
        counts[found[i]] = drawn[i]


def _squared_radii(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    exponent, mantissa_bits = _split.py_func(_uniform.py_func(_integers(words)).view(_I))
    squared: NDArray[np.float32] = _squared_radius.py_func(exponent.astype(_F), mantissa_bits.view(_F))
    return squared


def _integers(words: NDArray[np.uint64]) -> NDArray[np.int32]:
    return np.asarray(words).astype(np.uint32).view(_I)


def normal_pairs(
    radius_words: NDArray[np.uint64], angle_words: NDArray[np.uint64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make pairs of independent standard normal numbers: the NumPy twin of `fill_normal_pairs`.

    Parameters
    ----------
    radius_words, angle_words : ndarray of uint64
        Words below 2**32, of one shape.

    Returns
    -------
    tuple of two ndarray of float32
        Of that shape.
    """
    integers = _integers(angle_words)
    sine, cosine = _sine_and_cosine.py_func(integers)
    radius = np.sqrt(_squared_radii(radius_words))
    radius = np.where(integers < 0, -radius, radius)
    swapped = (integers << _I(1)) < 0
    return radius * np.where(swapped, sine, cosine), radius * np.where(swapped, cosine, sine)


def exponential(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Make exponential numbers of mean 1 from words below 2**32."""
    return _squared_radii(words) * _HALF


def poisson(mean: NDArray[np.float32], z: NDArray[np.float32], words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Make Poisson counts: the NumPy twin of `fill_poisson` and `fill_small_poisson`.

    Parameters
    ----------
    mean : ndarray of float32
        Means, not negative.
    z : ndarray of float32
        Normal numbers, used where the mean is at least 16.
    words : ndarray of uint64
        Words below 2**32, used elsewhere.

    Returns
    -------
    ndarray of float32
        Whole numbers.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counts: NDArray[np.float32] = np.floor(_poisson_series.py_func(mean, z))
    small = mean < SMALL_MEAN
    counts[small] = small_poisson(mean[small], words[small])
    return counts


def small_poisson(mean: NDArray[np.float32], words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return the Poisson quantiles of the probabilities `(words + 1/2) / 2**32`, exactly, for means below 16."""
    m = mean.astype(np.float64)
    uniform = (words + 0.5) * 2.0**-32
    probability = _exponential_of_minus.py_func(m)
    total = probability
    counts = np.zeros(m.shape, _F)
    for reciprocal in _RECIPROCALS:
        above = uniform > total
        if not above.any():
            break
        counts += above
        probability = probability * (m * reciprocal)
        total = total + probability
    return counts
