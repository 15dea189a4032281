"""The words of QPSK entries for many blocks of mirrors and many points, on vectors: the inner loop without a matrix.

The words are those of `opu.sim.media.qpsk`, from `philox((block, point low, epoch, point high), key)`. Two things make
them cheap here.

Some of the ten rounds are shared. A round maps the words `(x, r, y, l)` of the state, with round keys `k` and `j`, to

    (high(M1 y) ^ r ^ k, low(M1 y), high(M0 x) ^ l ^ j, low(M0 x)),

so that the low word of the point enters one word in the first round, by an exclusive or, two in the second, three in
the third and all four in the fourth. What remains of a block and its epoch, five words, is computed once for all
points whose high word is the same: `begin_words`. `end_words` does the rest for a point, 63 operations instead of 80.

And the rounds of three vectors, four blocks each, are interleaved. A round is a chain of operations each of which
waits for the one before; what one vector leaves idle of the processor, another one uses. Numba's loops interleave
too little, so that this loop body is written with LLVM's generic vectors, which every processor has or imitates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from opu.sim.counters import MULTIPLIER_0, MULTIPLIER_1, WEYL_0, WEYL_1, WORD_BITS, WORD_MASK

__all__ = ["CHUNK", "N_SHARED", "begin_words", "end_words"]

_LANES = 4
_VECTORS = 3
_STEP = _LANES * _VECTORS

CHUNK = 32 * _STEP
"""Blocks of mirrors whose words are made together: what belongs to them stays in the fastest cache."""

N_SHARED = 5
"""Words for each block that all points share."""

_ROUNDS = 10


@njit(cache=True)
def begin_words(
    first: Any, high: Any, epochs: Any, k0: Any, k1: Any, shared: Any
) -> None:  # pragma: no cover - compiled
    """Compute what blocks of mirrors, from `first` on, share between points.

    Parameters
    ----------
    first : int
        The first block.
    high : uint64
        The high word of the points.
    epochs : ndarray of uint32, shape (size,), size at most CHUNK
        The epochs of the blocks.
    k0, k1 : uint64
        The key, words below 2**32.
    shared : ndarray of uint64, shape (N_SHARED, CHUNK)
        Receives the words.
    """
    k0_1, k1_1 = (k0 + WEYL_0) & WORD_MASK, (k1 + WEYL_1) & WORD_MASK
    k0_2, k1_2 = (k0_1 + WEYL_0) & WORD_MASK, (k1_1 + WEYL_1) & WORD_MASK
    k1_3 = (k1_2 + WEYL_1) & WORD_MASK
    for i in range(len(epochs)):
        product_0 = MULTIPLIER_0 * np.uint64(first + i)
        product_1 = MULTIPLIER_1 * np.uint64(epochs[i])
        shared[0, i] = (product_1 >> WORD_BITS) ^ k0
        shared[1, i] = (product_0 & WORD_MASK) ^ k1_1
        right = product_1 & WORD_MASK
        product_1 = MULTIPLIER_1 * ((product_0 >> WORD_BITS) ^ high ^ k1)
        shared[2, i] = (product_1 & WORD_MASK) ^ k0_2
        product_0 = MULTIPLIER_0 * ((product_1 >> WORD_BITS) ^ right ^ k0_1)
        shared[3, i] = (product_0 >> WORD_BITS) ^ k1_2
        shared[4, i] = (product_0 & WORD_MASK) ^ k1_3


class _Vectors(NamedTuple):
    """Some vectors of 64-bit lanes in the making: an operation is written for one after the other.

    Words are the low halves of lanes. The high halves hold whatever the operations leave there: multiplication does
    not read them.
    """

    builder: Any
    values: tuple[Any, ...]

    def _with(self, values: Any) -> _Vectors:
        return self._replace(values=tuple(values))

    def times(self, multiplier: np.uint64) -> _Vectors:
        words = [self.builder.and_(value, _splat_constant(WORD_MASK)) for value in self.values]
        return self._with(self.builder.mul(word, _splat_constant(multiplier)) for word in words)

    def high(self) -> _Vectors:
        return self._with(self.builder.lshr(value, _splat_constant(WORD_BITS)) for value in self.values)

    def xor(self, other: _Vectors) -> _Vectors:
        return self._with(self.builder.xor(*pair) for pair in zip(self.values, other.values, strict=True))

    def joined(self, upper: _Vectors) -> _Vectors:
        """Return 64-bit words, the lower halves from here and the upper halves from `upper`."""
        lower = [self.builder.and_(value, _splat_constant(WORD_MASK)) for value in self.values]
        raised = [self.builder.shl(value, _splat_constant(WORD_BITS)) for value in upper.values]
        return self._with(self.builder.or_(*pair) for pair in zip(lower, raised, strict=True))


_INT64 = ir.IntType(64)
_INT32 = ir.IntType(32)
_VECTOR = ir.VectorType(_INT64, _LANES)


def _splat_constant(number: np.uint64) -> Any:
    return ir.Constant(_VECTOR, [int(number)] * _LANES)


def _splat(builder: Any, number: Any) -> _Vectors:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    everywhere = ir.Constant(ir.VectorType(_INT32, _LANES), [0] * _LANES)
    return _Vectors(builder, (builder.shuffle_vector(first, undefined, everywhere),) * _VECTORS)


def _places(builder: Any, data: Any, row: int, column: Any) -> list[Any]:
    """Return the addresses of vectors from `column` on in a row of an array of shape (..., CHUNK)."""
    starts = [ir.Constant(_INT64, row * CHUNK + i * _LANES) for i in range(_VECTORS)]
    places = [builder.gep(data, [builder.add(column, start)]) for start in starts]
    return [builder.bitcast(place, _VECTOR.as_pointer()) for place in places]


def _emit_rounds(builder: Any, shared: list[_Vectors], low: _Vectors, k0: Any, k1: Any) -> tuple[_Vectors, _Vectors]:
    """Write the rounds from the second to the tenth; return the words of the real and of the imaginary parts."""
    keys = []
    for number in range(_ROUNDS):
        weyl_0, weyl_1 = (ir.Constant(_INT64, number * int(weyl)) for weyl in (WEYL_0, WEYL_1))
        keys.append((_splat(builder, builder.add(k0, weyl_0)), _splat(builder, builder.add(k1, weyl_1))))
    left_product = shared[0].xor(low).times(MULTIPLIER_0)
    y, left = left_product.high().xor(shared[1]), left_product
    right_product = y.times(MULTIPLIER_1)
    x, right, y = right_product.high().xor(shared[2]), right_product, left.xor(shared[3])
    for number in range(3, _ROUNDS):
        left_product, right_product = x.times(MULTIPLIER_0), y.times(MULTIPLIER_1)
        x = right_product.high().xor(right.xor(keys[number][0]))
        y = left_product.high().xor(shared[4] if number == 3 else left.xor(keys[number][1]))
        left, right = left_product, right_product
    return x.joined(right), y.joined(left)


@intrinsic
def _end_some_words(typing_context: Any, start: Any, low: Any, shared: Any, k0: Any, k1: Any, words: Any) -> Any:  # noqa: ARG001 - the types stand in the signature
    """Finish the words of the blocks `start` to `start + _STEP - 1` of a chunk."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, low, shared, k0, k1, words = arguments
        source = context.make_array(signature.args[2])(context, builder, shared).data
        target = context.make_array(signature.args[5])(context, builder, words).data
        known = [
            _Vectors(builder, tuple(builder.load(place, align=8) for place in _places(builder, source, row, start)))
            for row in range(N_SHARED)
        ]
        for row, vectors in enumerate(_emit_rounds(builder, known, _splat(builder, low), k0, k1)):
            for value, place in zip(vectors.values, _places(builder, target, row, start), strict=True):
                builder.store(value, place, align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.uint64, shared, types.uint64, types.uint64, words), generate


@njit(cache=True)
def end_words(size: Any, low: Any, shared: Any, k0: Any, k1: Any, words: Any) -> None:  # pragma: no cover - compiled
    """Compute the words of a point from what `begin_words` has prepared.

    Parameters
    ----------
    size : int
        Blocks of the chunk.
    low : uint64
        The low word of the point.
    shared : ndarray of uint64, shape (N_SHARED, CHUNK)
        From `begin_words`.
    k0, k1 : uint64
        The key.
    words : ndarray of uint64, shape (2, CHUNK)
        Receives the words of the real and of the imaginary parts; beyond `size` it may be overwritten.
    """
    for start in range(0, size, _STEP):
        _end_some_words(start, low, shared, k0, k1, words)
