r"""Cascades of fast Walsh-Hadamard transforms, at the speed of the machine.

A cascade is the complex matrix

    C = H T4 H (c G T3) H T2 H

with `H` the unnormalised Walsh-Hadamard transform of size P, a power of two from `ROW` on, `T2` to `T4` diagonals of
quarter turns (1, i, -1 or -i: an exchange of real and imaginary part and changes of sign, exact), `G` a diagonal of
16-bit gains and `c` a scale. Indices that differ by a multiple of `ROW` are imaginary together in `T2`. The input are
whole numbers of at most `LARGEST_INPUT`, so the first transform is one of integers; seven real transforms in all.

Transforms of a million numbers are bound by the caches, not by the arithmetic: 2**20 floats do not fit into L2, and
strides of powers of two fall on a few cache lines. Hence

- the numbers lie in rows of 4096, a whole row and a few floats apart, so that columns spread over the cache;
- stages of strides below 4096 run along rows, the others down groups of columns, where a cache line is eight complex
  or sixteen real columns; both fit into L1;
- neighbouring transforms share passes over the memory: rows of the first; columns of the first, `T2`, columns of the
  second; rows of the second, `G T3`, rows of the third; columns of the third, `T4`, columns of the fourth; rows of the
  fourth. Five passes do the work of eight, and the diagonals cost no pass of their own;
- a column is real or imaginary as a whole after `T2`, so the columns of the second transform are real ones;
- butterflies of eight rows at a time are made of explicit vectors of eight lanes (LLVM instructions, portable): plain
  loops take eight times as long.

The second and the fourth transform take their stages from the largest stride to the smallest, the third the other way
round. So the order of the additions is fixed, whatever the vectors, passes and threads of a machine: every result is,
to the bit, that of `Cascade.apply_with_numpy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from opu.hadamard import walsh_hadamard
from opu.sim.light import BLIND, Sight, put_electrons
from opu.sim.memory import aligned_empty
from opu.sim.mirrors import STUCK_ON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "LARGEST_INPUT",
    "ROW",
    "Cascade",
    "Readout",
    "Scratch",
    "Source",
    "swap_digits",
]

ROW = 4096
"""The smallest size of a cascade: numbers in a row of the working memory."""

LARGEST_INPUT = 15
"""Absolute inputs are at most this, so that sums of 8 fit into 8 bits and sums of 2048 into 16."""

_LANES = 8
_LINE = 2 * _LANES  # eight real parts, then their imaginary parts: a cache line
_TILE = _LANES * _LANES
_BLOCK = 8 * _TILE
_PITCH = 2 * ROW + _LINE  # floats from a row of the working memory to the next
_HALF = ROW // 2
_SHORT_PITCH = ROW + 32

# ---------------------------------------------------------------------------------------------------------------------
# Vectors: what the intrinsics below are made of. `b` is the builder of LLVM instructions.

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_INTS = ir.VectorType(_I32, _LANES)
_SHORTS = ir.VectorType(_I16, _LANES)
_WIDE_SHORTS = ir.VectorType(_I16, 2 * _LANES)
_WIDE_BYTES = ir.VectorType(_I8, 2 * _LANES)
_WIDEST_BYTES = ir.VectorType(_I8, 4 * _LANES)
_SIGN_BITS = ir.Constant(_INTS, [-(2**31)] * _LANES)


def _load(b: Any, data: Any, offset: Any, kind: Any = _FLOATS) -> Any:
    vector = b.load(b.bitcast(b.gep(data, [offset]), kind.as_pointer()))
    vector.align = 1
    return vector


def _store(b: Any, vector: Any, data: Any, offset: Any) -> Any:
    instruction = b.store(vector, b.bitcast(b.gep(data, [offset]), vector.type.as_pointer()))
    instruction.align = 1
    return instruction


def _steps(b: Any, start: Any, step: Any, count: int) -> list[Any]:
    """Return the offsets start, start + step, ..."""
    offsets = [start]
    while len(offsets) < count:
        offsets.append(b.add(offsets[-1], step if isinstance(step, ir.Value) else ir.Constant(_I64, step)))
    return offsets


def _shuffle(b: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _ascending(radix: int) -> list[int]:
    return [1 << stage for stage in range(radix.bit_length() - 1)]


def _descending(radix: int) -> list[int]:
    return _ascending(radix)[::-1]


def _butterflies(b: Any, vectors: list[Any], strides: Sequence[int]) -> list[Any]:
    """Replace vectors i and i + stride by their sum and difference, one stage after another."""
    vectors = list(vectors)
    whole = isinstance(vectors[0].type.element, ir.IntType)
    plus, minus = (b.add, b.sub) if whole else (b.fadd, b.fsub)
    for stride in strides:
        for i in range(len(vectors)):
            if not i & stride:
                first, second = vectors[i], vectors[i + stride]
                vectors[i], vectors[i + stride] = plus(first, second), minus(first, second)
    return vectors


def _lane_butterflies(b: Any, vector: Any, stride: int) -> Any:
    """Do one stage between the lanes of a vector of integers."""
    lanes = range(vector.type.count)
    other = _shuffle(b, vector, vector, [i ^ stride for i in lanes])
    total, difference = b.add(vector, other), b.sub(other, vector)
    return _shuffle(b, total, difference, [i + len(lanes) if i & stride else i for i in lanes])


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight lanes."""
    pairs = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        pairs.append(_shuffle(b, first, second, [0, 8, 1, 9, 4, 12, 5, 13]))
        pairs.append(_shuffle(b, first, second, [2, 10, 3, 11, 6, 14, 7, 15]))
    fours = []
    for start in (0, 4):
        for i in (start, start + 1):
            fours.append(_shuffle(b, pairs[i], pairs[i + 2], [0, 1, 8, 9, 4, 5, 12, 13]))
            fours.append(_shuffle(b, pairs[i], pairs[i + 2], [2, 3, 10, 11, 6, 7, 14, 15]))
    low = [_shuffle(b, fours[i], fours[i + 4], [0, 1, 2, 3, 8, 9, 10, 11]) for i in range(4)]
    high = [_shuffle(b, fours[i], fours[i + 4], [4, 5, 6, 7, 12, 13, 14, 15]) for i in range(4)]
    return low + high


def _tile_down(b: Any, vectors: list[Any]) -> list[Any]:
    """Do the stages of strides 32 to 1 on 64 numbers; leaves them with the two octal digits of their index swapped."""
    return _butterflies(b, _transposed(b, _butterflies(b, vectors, _descending(8))), _descending(8))


def _tile_up(b: Any, vectors: list[Any]) -> list[Any]:
    """Do the stages of strides 1 to 32 on what `_tile_down` leaves, and bring it back into order."""
    return _butterflies(b, _transposed(b, _butterflies(b, vectors, _ascending(8))), _ascending(8))


def _splat(b: Any, word: Any) -> Any:
    vector = b.insert_element(ir.Constant(_INTS, ir.Undefined), word, ir.Constant(_I32, 0))
    return _shuffle(b, vector, vector, [0] * _LANES)


def _bits_at(b: Any, data: Any, offset: Any) -> Any:
    """Load the 32 bits at an element of an array into every lane."""
    word = b.load(b.bitcast(b.gep(data, [offset]), _I32.as_pointer()))
    word.align = 1
    return _splat(b, word)


def _as_sign(b: Any, bits: Any, first: int) -> Any:
    """Move bit `first + i` of lane i to the place of the sign; the other bits of the result mean nothing."""
    return b.shl(bits, ir.Constant(_INTS, [31 - first - i for i in range(_LANES)]))


def _negated(b: Any, vector: Any, sign: Any) -> Any:
    """Negate the lanes whose sign bit is set."""
    return b.bitcast(b.xor(b.bitcast(vector, _INTS), b.and_(sign, _SIGN_BITS)), _FLOATS)


def _chosen(b: Any, sign: Any, one: Any, other: Any) -> Any:
    """Take the lanes of `one` where the sign bit is set."""
    return b.select(b.icmp_signed("<", sign, ir.Constant(_INTS, [0] * _LANES)), one, other)


def _turned(b: Any, real: Any, imag: Any, bits: Any) -> tuple[Any, Any]:
    """Multiply by quarter turns: in `bits` a byte that says which lanes to negate and one that says which times i."""
    negative, exchanged = _as_sign(b, bits, 0), _as_sign(b, bits, _LANES)
    first, second = _chosen(b, exchanged, imag, real), _chosen(b, exchanged, real, imag)
    return _negated(b, first, b.xor(negative, exchanged)), _negated(b, second, negative)


def _intrinsic(emit: Any) -> Any:
    """Make a function for compiled code of `emit(builder, *arguments)`; an array arrives as pointer to its data."""

    @intrinsic
    def function(_context: Any, *arguments: Any) -> Any:
        kinds = types.StarArgTuple(arguments)

        def generate(context: Any, b: Any, _signature: Any, values: Any) -> Any:
            found = [b.extract_value(values[0], i) for i in range(len(kinds))]
            emit(
                b,
                *(
                    context.make_array(kind)(context, b, value).data if isinstance(kind, types.Array) else value
                    for kind, value in zip(kinds, found, strict=True)
                ),
            )
            return context.get_dummy_value()

        return types.void(kinds), generate

    return function


# ---------------------------------------------------------------------------------------------------------------------
# What compiled code calls. Offsets count elements of the array before them.


@_intrinsic
def _fill(b: Any, bytes_: Any, offset: Any, value: Any) -> None:
    """Set 16 bytes."""
    vector = b.insert_element(ir.Constant(_WIDE_BYTES, ir.Undefined), b.trunc(value, _I8), ir.Constant(_I32, 0))
    _store(b, _shuffle(b, vector, vector, [0] * 16), bytes_, offset)


@_intrinsic
def _fill_from(b: Any, bytes_: Any, offset: Any, states: Any, start: Any) -> None:
    """Set 16 bytes to -1 where the states are 1."""
    nothing = ir.Constant(_WIDE_BYTES, [0] * 16)
    _store(b, b.sub(nothing, _load(b, states, start, _WIDE_BYTES)), bytes_, offset)


@_intrinsic
def _first_stages(b: Any, lit: Any, offset: Any, amplitudes: Any, start: Any) -> None:
    """Give 8 x 32 numbers, `_HALF // 8` apart, their amplitudes where they are lit; butterflies between the eight."""
    offsets, starts = _steps(b, offset, _HALF // 8, 8), _steps(b, start, _HALF // 8, 8)
    numbers = [
        b.and_(_load(b, lit, place, _WIDEST_BYTES), _load(b, amplitudes, origin, _WIDEST_BYTES))
        for place, origin in zip(offsets, starts, strict=True)
    ]
    for vector, place in zip(_butterflies(b, numbers, _ascending(8)), offsets, strict=True):
        _store(b, vector, lit, place)


@_intrinsic
def _short_stages(b: Any, lit: Any, offset: Any, shorts: Any, start: Any) -> None:
    """Do the stages of strides 1 to 64 on 128 bytes, to 16 bits."""
    numbers = [b.sext(_load(b, lit, place, _WIDE_BYTES), _WIDE_SHORTS) for place in _steps(b, offset, 16, 8)]
    for stride in _ascending(16):
        numbers = [_lane_butterflies(b, vector, stride) for vector in numbers]
    for vector, place in zip(_butterflies(b, numbers, _ascending(8)), _steps(b, start, 16, 8), strict=True):
        _store(b, vector, shorts, place)


@_intrinsic
def _short_pair(b: Any, shorts: Any, offset: Any) -> None:
    """Do the stage of stride 128 on 2 x 16 numbers of 16 bits."""
    offsets = _steps(b, offset, 128, 2)
    pair = _butterflies(b, [_load(b, shorts, place, _WIDE_SHORTS) for place in offsets], [1])
    for vector, place in zip(pair, offsets, strict=True):
        _store(b, vector, shorts, place)


def _widening(operation: str) -> Any:
    @_intrinsic
    def function(b: Any, shorts: Any, low: Any, high: Any, work: Any, offset: Any) -> None:
        """Add or subtract two lines of numbers of 16 bits, to 32 bits."""
        for part in (0, _LANES):
            step = ir.Constant(_I64, part)
            first, second = (b.sext(_load(b, shorts, b.add(place, step), _SHORTS), _INTS) for place in (low, high))
            _store(b, getattr(b, operation)(first, second), work, b.add(offset, step))

    return function


_widen_sum, _widen_difference = _widening("add"), _widening("sub")


def _lines(order: Any, kind: Any = _FLOATS) -> Any:
    @_intrinsic
    def function(b: Any, work: Any, offset: Any, stride: Any) -> None:
        """Butterflies between eight lines."""
        for part in (0, _LANES):
            places = _steps(b, b.add(offset, ir.Constant(_I64, part)), stride, 8)
            vectors = _butterflies(b, [_load(b, work, place, kind) for place in places], order(8))
            for vector, place in zip(vectors, places, strict=True):
                _store(b, vector, work, place)

    return function


_up, _down, _integers_up = _lines(_ascending), _lines(_descending), _lines(_ascending, _INTS)


def _signing(radix: int) -> Any:
    @_intrinsic
    def function(b: Any, work: Any, offset: Any, stride: Any, signs: Any, start: Any) -> None:
        """Last stages of the first transform, signs, first stages of the second, between `radix` lines of numbers."""
        bits = [_bits_at(b, signs, place) for place in _steps(b, start, 1, radix)]
        for part in (0, _LANES):
            places = _steps(b, b.add(offset, ir.Constant(_I64, part)), stride, radix)
            whole = _butterflies(b, [_load(b, work, place, _INTS) for place in places], _ascending(radix))
            signed = [
                _negated(b, b.sitofp(x, _FLOATS), _as_sign(b, sign, part)) for x, sign in zip(whole, bits, strict=True)
            ]
            for vector, place in zip(_butterflies(b, signed, _descending(radix)), places, strict=True):
                _store(b, vector, work, place)

    return function


_sign_1, _sign_2, _sign_4 = (_signing(radix) for radix in (1, 2, 4))


def _turning(radix: int) -> Any:
    @_intrinsic
    def function(b: Any, work: Any, offset: Any, stride: Any, turns: Any, start: Any) -> None:
        """Last stages of the third transform, quarter turns, first stages of the fourth, between `radix` lines."""
        places = _steps(b, offset, stride, radix)
        places_imag = [b.add(place, ir.Constant(_I64, _LANES)) for place in places]
        bits = [_bits_at(b, turns, place) for place in _steps(b, start, 1, radix)]
        real, imag = (
            _butterflies(b, [_load(b, work, place) for place in part], _ascending(radix))
            for part in (places, places_imag)
        )
        pairs = [_turned(b, *parts) for parts in zip(real, imag, bits, strict=True)]
        for part, offsets in enumerate((places, places_imag)):
            lines = _butterflies(b, [pair[part] for pair in pairs], _descending(radix))
            for vector, place in zip(lines, offsets, strict=True):
                _store(b, vector, work, place)

    return function


_turn_1, _turn_2, _turn_4 = (_turning(radix) for radix in (1, 2, 4))


@_intrinsic
def _enter_row(b: Any, work: Any, offset: Any, axes: Any, byte: Any, row: Any, place: Any) -> None:
    """Make eight times eight numbers, `_BLOCK` apart, real or imaginary; butterflies between the eight, to lines."""
    numbers = [_load(b, work, origin) for origin in _steps(b, offset, _BLOCK, 8)]
    imaginary = [_as_sign(b, _bits_at(b, axes, origin), 0) for origin in _steps(b, byte, _BLOCK // _LANES, 8)]
    nothing = ir.Constant(_FLOATS, [0.0] * _LANES)
    real = [_chosen(b, choice, nothing, x) for x, choice in zip(numbers, imaginary, strict=True)]
    imag = [_chosen(b, choice, x, nothing) for x, choice in zip(numbers, imaginary, strict=True)]
    for part, vectors in ((0, real), (_LANES, imag)):
        places = _steps(b, b.add(place, ir.Constant(_I64, part)), 2 * _BLOCK, 8)
        for vector, target in zip(_butterflies(b, vectors, _descending(8)), places, strict=True):
            _store(b, vector, row, target)


@_intrinsic
def _leave_row(b: Any, row: Any, place: Any, work: Any, offset: Any) -> None:
    """Butterflies between eight lines, `_BLOCK` numbers apart, to another array."""
    for part in (0, _LANES):
        origins, targets = (
            _steps(b, b.add(start, ir.Constant(_I64, part)), 2 * _BLOCK, 8) for start in (place, offset)
        )
        vectors = _butterflies(b, [_load(b, row, origin) for origin in origins], _ascending(8))
        for vector, target in zip(vectors, targets, strict=True):
            _store(b, vector, work, target)


@_intrinsic
def _gain_tile(b: Any, work: Any, offset: Any, exchanges: Any, gains: Any, start: Any, scale: Any) -> None:
    """Last stages of the second transform, the diagonal between, first stages of the third, on 64 numbers."""
    places = _steps(b, offset, _LINE, 8)
    places_imag = [b.add(place, ir.Constant(_I64, _LANES)) for place in places]
    real, imag = (_tile_down(b, [_load(b, work, place) for place in part]) for part in (places, places_imag))
    scales = b.bitcast(_splat(b, b.bitcast(scale, _I32)), _FLOATS)
    first_byte = b.udiv(start, ir.Constant(_I64, _LANES))
    pairs = []
    for x, y, place, byte in zip(real, imag, _steps(b, start, _LANES, 8), _steps(b, first_byte, 1, 8), strict=True):
        gain = b.fmul(b.sitofp(_load(b, gains, place, _SHORTS), _FLOATS), scales)
        exchanged = _as_sign(b, _bits_at(b, exchanges, byte), 0)
        first, second = _chosen(b, exchanged, y, x), _chosen(b, exchanged, x, y)
        pairs.append((_negated(b, b.fmul(first, gain), exchanged), b.fmul(second, gain)))
    for part, offsets in enumerate((places, places_imag)):
        for vector, place in zip(_tile_up(b, [pair[part] for pair in pairs]), offsets, strict=True):
            _store(b, vector, work, place)


@_intrinsic
def _last_tile(b: Any, work: Any, offset: Any, finished: Any, start: Any) -> None:
    """Last stages of the fourth transform on 64 numbers, real or imaginary parts, to another array."""
    vectors = _tile_down(b, [_load(b, work, place) for place in _steps(b, offset, _LINE, 8)])
    for vector, place in zip(vectors, _steps(b, start, _LANES, 8), strict=True):
        _store(b, vector, finished, place)


@_intrinsic
def _stream(b: Any, source: Any, start: Any, target: Any, offset: Any) -> None:
    """Copy eight floats, past the caches where the address is a multiple of 32: nobody reads them soon."""
    vector = _load(b, source, start)
    address = b.ptrtoint(b.gep(target, [offset]), _I64)
    aligned = b.icmp_unsigned("==", b.and_(address, ir.Constant(_I64, 31)), ir.Constant(_I64, 0))
    with b.if_else(aligned) as (then, otherwise):
        with then:
            instruction = _store(b, vector, target, offset)
            instruction.align = 32
            instruction.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(_I32, 1)]))
        with otherwise:
            _store(b, vector, target, offset)


@_intrinsic
def _prefetch(b: Any, data: Any, offset: Any) -> None:
    """Bring the line with an element into the second-level cache."""
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = b.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    read, second_level, of_data = (ir.Constant(_I32, value) for value in (0, 2, 1))
    b.call(function, [b.bitcast(b.gep(data, [offset]), pointer), read, second_level, of_data])


@_intrinsic
def _fence(b: Any) -> None:
    """Make what was streamed visible to other threads."""
    b.fence("seq_cst")


# ---------------------------------------------------------------------------------------------------------------------
# The five passes, each for one row or one group of eight columns.


@njit(cache=True)
def _light(features: Any, frame: Any, pieces: Any, first: Any, last: Any, lit: Any) -> None:  # pragma: no cover
    # Writes 16 bytes at a time, up to 15 too many: the next piece writes over them, and `lit` is as much longer.
    start_of_frame = frame * features.shape[1]
    for piece in range(first, last):
        start, length, count, feature = pieces[piece]
        place = np.int64(start)
        if length == 1 and feature >= 0:
            done = np.int64(0)
            while done + 16 <= count:
                _fill_from(lit, place + done, features, start_of_frame + feature + done)
                done += 16
            for i in range(done, count):
                lit[place + i] = -np.int64(features[frame, feature + i])
        else:
            for i in range(count):
                state = np.int64(features[frame, feature + i]) if feature >= 0 else np.int64(feature == STUCK_ON)
                for part in range(0, length, 16):
                    _fill(lit, place + part, -state)
                place += length


@njit(cache=True)
def _first_row(lit: Any, amplitudes: Any, first: Any, row: Any, shorts: Any) -> None:  # pragma: no cover - compiled
    # All stages of the row but that of stride 2048, whose sums may need more than 16 bits.
    for half in range(0, ROW, _HALF):
        for place in range(half, half + _HALF // 8, 32):
            _first_stages(lit, place, amplitudes, first + row * ROW + place)
    start = row * _SHORT_PITCH
    for place in range(0, ROW, 128):
        _short_stages(lit, place, shorts, start + place)
    for pair in range(start, start + ROW, 256):
        for place in range(pair, pair + 128, 16):
            _short_pair(shorts, place)


@njit(cache=True)
def _real_columns(shorts: Any, work: Any, group: Any, n_rows: Any, signs: Any) -> None:  # pragma: no cover - compiled
    # Sixteen columns of real numbers, which lie in the second half of the rows.
    column = group * _LINE
    line, start = ROW + column, group * n_rows
    for row in range(n_rows):
        place = row * _SHORT_PITCH + column
        if column < _HALF:
            _widen_sum(shorts, place, place + _HALF, work, line + row * _PITCH)
        else:
            _widen_difference(shorts, place - _HALF, place, work, line + row * _PITCH)
    span = np.int64(1)
    while span * 8 <= n_rows:
        for high in range(0, n_rows, 8 * span):
            for row in range(high, high + span):
                _integers_up(work, line + row * _PITCH, span * _PITCH)
        span *= 8
    radix = n_rows // span
    for row in range(span):
        place, stride, sign = line + row * _PITCH, span * _PITCH, start + radix * row
        if radix == 4:
            _sign_4(work, place, stride, signs, sign)
        elif radix == 2:
            _sign_2(work, place, stride, signs, sign)
        else:
            _sign_1(work, place, stride, signs, sign)
        _fetch_columns(work, line, group, row, radix)
    _come_down(work, line, span, n_rows)


@njit(cache=True)
def _complex_columns(work: Any, group: Any, n_rows: Any, turns: Any) -> None:  # pragma: no cover - compiled
    # Eight rows at a time; what is left of the number of rows, 1, 2 or 4, goes with the quarter turns.
    line, start = group * _LINE, group * n_rows
    span = np.int64(1)
    while span * 8 <= n_rows:
        for high in range(0, n_rows, 8 * span):
            for row in range(high, high + span):
                _up(work, line + row * _PITCH, span * _PITCH)
        span *= 8
    radix = n_rows // span
    for row in range(span):
        place, stride, turn = line + row * _PITCH, span * _PITCH, start + radix * row
        if radix == 4:
            _turn_4(work, place, stride, turns, turn)
        elif radix == 2:
            _turn_2(work, place, stride, turns, turn)
        else:
            _turn_1(work, place, stride, turns, turn)
        _fetch_columns(work, line, group, row, radix)
    _come_down(work, line, span, n_rows)


@njit(cache=True)
def _fetch_columns(work: Any, line: Any, group: Any, row: Any, radix: Any) -> None:  # pragma: no cover - compiled
    # No hardware foresees strides from row to row. Four groups fetch the next four, each of them a quarter of the rows:
    # lines that are neighbours in memory come sooner together.
    quarter = group % 4
    if quarter * radix % 4 == 0:
        place = line + (row * radix + quarter * radix // 4) * _PITCH + (4 - quarter) * _LINE
        for other in range(place, place + 4 * _LINE, _LINE):
            _prefetch(work, other)


@njit(cache=True)
def _fetch_row(work: Any, row: Any, block: Any) -> None:  # pragma: no cover - compiled
    # An eighth of a row.
    place = row * _PITCH + 2 * _BLOCK * block
    for other in range(place, place + 2 * _BLOCK, _LINE):
        _prefetch(work, other)


@njit(cache=True)
def _come_down(work: Any, line: Any, span: Any, n_rows: Any) -> None:  # pragma: no cover - compiled
    while span > 1:
        span //= 8
        for high in range(0, n_rows, 8 * span):
            for row in range(high, high + span):
                _down(work, line + row * _PITCH, span * _PITCH)


@njit(cache=True)
def _middle_row(
    work: Any, row: Any, axes: Any, exchanges: Any, gains: Any, scale: Any, lines: Any
) -> None:  # pragma: no cover - compiled
    start = row * _PITCH
    for column in range(0, _BLOCK, _LANES):
        _enter_row(work, start + ROW + column, axes, column // _LANES, lines, 2 * column)
    for block in range(0, ROW, _BLOCK):
        _fetch_row(work, row + 1, block // _BLOCK)
        begin = 2 * block
        for place in range(begin, begin + 2 * _TILE, _LINE):
            _down(lines, place, 2 * _TILE)
        for tile in range(0, _BLOCK, _TILE):
            _gain_tile(lines, begin + 2 * tile, exchanges, gains, row * ROW + block + tile, scale)
        for place in range(begin, begin + 2 * _TILE, _LINE):
            _up(lines, place, 2 * _TILE)
    for place in range(0, 2 * _BLOCK, _LINE):
        _leave_row(lines, place, work, start + place)


@njit(cache=True)
def _last_row(
    work: Any,
    row: Any,
    pieces: Any,
    bounds: Any,
    frame: Any,
    on: Any,
    beside: Any,
    electrons_per_intensity: Any,
    first_out: Any,
    second_out: Any,
    finished: Any,
    electrons: Any,
) -> None:  # pragma: no cover - compiled
    start, first = row * _PITCH, row * (ROW // _BLOCK)
    if bounds[first] == bounds[first + ROW // _BLOCK]:
        return
    for place in range(start, start + 2 * _BLOCK, _LINE):
        _down(work, place, 2 * _BLOCK)
    for block in range(ROW // _BLOCK):
        _fetch_row(work, row + 1, block)
        if bounds[first + block] == bounds[first + block + 1]:
            continue
        begin = start + 2 * _BLOCK * block
        for place in range(begin, begin + 2 * _TILE, _LINE):
            _down(work, place, 2 * _TILE)
        for tile in range(0, _BLOCK, _TILE):
            _last_tile(work, begin + 2 * tile, finished, tile)
            _last_tile(work, begin + 2 * tile + _LANES, finished, _BLOCK + tile)
        for piece in range(bounds[first + block], bounds[first + block + 1]):
            origin, length, place = pieces[piece]
            if electrons_per_intensity >= 0:
                imag = finished[_BLOCK:]
                put_electrons(
                    finished, imag, origin, length, on, beside, frame, place, electrons_per_intensity, electrons, 0
                )
                _read_out(electrons, 0, length, first_out, frame, place)
            else:
                _read_out(finished, origin, length, first_out, frame, place)
                _read_out(finished, origin + _BLOCK, length, second_out, frame, place)


@njit(cache=True)
def _read_out(finished: Any, start: Any, length: Any, out: Any, frame: Any, place: Any) -> None:  # pragma: no cover
    target = frame * out.shape[1] + place
    done = np.int64(0)
    while done + _LANES <= length:
        _stream(finished, start + done, out, target + done)
        done += _LANES
    for i in range(done, length):
        out[frame, place + i] = finished[start + i]


@njit(parallel=True, cache=True)
def _apply(
    features: Any,
    sources: Any,
    source_bounds: Any,
    amplitudes: Any,
    versions: Any,
    signs_2: Any,
    axes_2: Any,
    exchanges: Any,
    gains: Any,
    scale: Any,
    turns_4: Any,
    readouts: Any,
    readout_bounds: Any,
    shorts: Any,
    work: Any,
    on: Any,
    beside: Any,
    electrons_per_intensity: Any,
    first_out: Any,
    second_out: Any,
) -> None:  # pragma: no cover - compiled
    # With negative electrons per intensity the fields themselves are wanted: real parts in `first_out`, imaginary parts
    # in `second_out`.
    # A thread does whole frames. Threads that shared a frame, which then stays in L3, would save a tenth of the time of
    # a machine that has nothing else to do, and wait for each other on any other.
    n_rows, n_frames, n_threads = len(source_bounds) - 1, len(first_out), len(work)
    for thread in prange(n_threads):
        my_shorts, my_work = shorts[thread], work[thread]
        lit = np.empty(ROW + 16, np.int8)
        lines = np.empty(2 * ROW, np.float32)
        finished = np.empty(2 * _BLOCK, np.float32)
        electrons = np.empty(_BLOCK, np.float32)
        for frame in range(thread * n_frames // n_threads, (thread + 1) * n_frames // n_threads):
            for row in range(n_rows):
                _light(features, frame, sources, source_bounds[row], source_bounds[row + 1], lit)
                _first_row(lit, amplitudes, versions[frame] * n_rows * ROW, row, my_shorts)
            for group in range(ROW // _LINE):
                _real_columns(my_shorts, my_work, group, n_rows, signs_2)
            for row in range(n_rows):
                _middle_row(my_work, row, axes_2, exchanges, gains, scale, lines)
            for group in range(ROW // _LANES):
                _complex_columns(my_work, group, n_rows, turns_4)
            for row in range(n_rows):
                _last_row(
                    my_work,
                    row,
                    readouts,
                    readout_bounds,
                    frame,
                    on,
                    beside,
                    electrons_per_intensity,
                    first_out,
                    second_out,
                    finished,
                    electrons,
                )
        _fence()


# ---------------------------------------------------------------------------------------------------------------------


def swap_digits(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exchange the two lowest octal digits of indices: where the outputs of a cascade lie.

    Examples
    --------
    >>> swap_digits(np.array([0o4321]))  # 0o4312
    array([2250])
    """
    low = indices % _LANES
    middle = indices // _LANES % _LANES
    return indices + (low - middle) * (_LANES - 1)


@dataclass(frozen=True, eq=False)
class Source:
    """Where the inputs of a cascade come from: which feature of a pattern switches each of them.

    Parameters
    ----------
    pieces : ndarray of int32, shape (n_pieces, 4)
        In the order of the inputs, none across the end of a row: start in the row, length of a run, number of runs,
        feature of the first run. The runs follow one another, and so do their features.
    bounds : ndarray of int64, shape (n_rows + 1,)
        The pieces of each row.
    """

    pieces: NDArray[np.int32]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, features: NDArray[np.int32], size: int) -> Source:
        """Make a source of the features of the first inputs, given as in `MirrorMap.features`."""
        inputs = np.arange(len(features))
        edge = np.append(features[1:] != features[:-1], True) | (inputs % ROW == ROW - 1)
        stops = np.flatnonzero(edge) + 1
        starts = np.append(0, stops[:-1])
        lengths, shown, columns = stops - starts, features[starts].astype(np.int64), starts % ROW
        follows = (lengths[1:] == lengths[:-1]) & (shown[1:] == shown[:-1] + 1) & (shown[:-1] >= 0) & (columns[1:] > 0)
        heads = np.flatnonzero(np.append(True, ~follows))
        counts = np.diff(np.append(heads, len(starts)))
        pieces = np.stack([columns[heads], lengths[heads], counts, shown[heads]], axis=1).astype(np.int32)
        bounds = np.searchsorted(starts[heads], np.arange(size // ROW + 1) * ROW).astype(np.int64)
        return cls(pieces, bounds)

    @classmethod
    def everything(cls, size: int) -> Source:
        """Make a source in which every input is its amplitude."""
        return cls.of(np.full(size, STUCK_ON, np.int32), size)


@dataclass(frozen=True, eq=False)
class Readout:
    """Which outputs of a cascade are wanted, and where they go.

    Parameters
    ----------
    pieces : ndarray of int64, shape (n_pieces, 3)
        In the order of the positions, none across the end of a block of 512: start in the block, length, first place.
    bounds : ndarray of int64, shape (size // 512 + 1,)
        The pieces of each block.
    """

    pieces: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, positions: NDArray[np.int64], places: NDArray[np.int64], size: int) -> Readout:
        """Make a readout that brings the output at each position to a place; positions may come more than once."""
        order = np.lexsort((places, positions))
        positions, places = positions[order], places[order]
        follows = (np.diff(positions) == 1) & (np.diff(places) == 1) & (positions[1:] % _BLOCK > 0)
        heads = np.flatnonzero(np.append(True, ~follows))
        lengths = np.diff(np.append(heads, len(positions)))
        pieces = np.stack([positions[heads] % _BLOCK, lengths, places[heads]], axis=1).astype(np.int64)
        bounds = np.searchsorted(positions[heads], np.arange(size // _BLOCK + 1) * _BLOCK).astype(np.int64)
        return cls(pieces, bounds)


@dataclass(frozen=True, eq=False)
class Scratch:
    """Working memory for cascades of one size, about ten bytes for each number and thread.

    Parameters
    ----------
    shorts : ndarray of int16, shape (n_threads, ...)
    work : ndarray of float32, shape (n_threads, ...)
    """

    shorts: NDArray[np.int16]
    work: NDArray[np.float32]

    @classmethod
    def make(cls, size: int, n_threads: int) -> Scratch:
        """Allocate it for as many frames at a time."""
        n_rows = size // ROW
        shorts = aligned_empty((n_threads, n_rows * _SHORT_PITCH), np.int16)
        return cls(shorts, aligned_empty((n_threads, n_rows * _PITCH), np.float32))

    @staticmethod
    def n_bytes(size: int, n_threads: int) -> int:
        """Return how many bytes `make` takes."""
        return n_threads * (size // ROW) * (2 * _SHORT_PITCH + 4 * _PITCH)


@dataclass(frozen=True, eq=False)
class Cascade:
    """The matrix of the module's description, with its diagonals packed for the kernel.

    Parameters
    ----------
    size : int
        P.
    signs_2 : ndarray of uint16, shape (P // 16 + 1,)
        The signs of `T2`, a bit for each number, in the order in which the columns are worked on.
    axes_2 : ndarray of uint8, shape (ROW // 8 + 4,)
        Which columns `T2` makes imaginary.
    exchanges : ndarray of uint8, shape (P // 8 + 4,)
        Multiplications by i in `T3`; its negations are the signs of the gains.
    gains : ndarray of int16, shape (P,)
        `G`. Like `exchanges` in the order in which the kernel meets it, that is with digits swapped.
    scale : numpy.float32
        `c`.
    turns_4 : ndarray of uint16, shape (P // 8 + 1,)
        The turns of `T4`, a word for eight numbers, in the order in which the columns are worked on: in the low byte a
        bit for each that is negated, in the high byte one for each that is multiplied by i.
    """

    size: int
    signs_2: NDArray[np.uint16]
    axes_2: NDArray[np.uint8]
    exchanges: NDArray[np.uint8]
    gains: NDArray[np.int16]
    scale: np.float32
    turns_4: NDArray[np.uint16]

    @classmethod
    def pack(
        cls,
        turns_2: tuple[NDArray[np.uint8], NDArray[np.uint8]],
        turns_3: NDArray[np.uint8],
        turns_4: NDArray[np.uint8],
        gains: NDArray[np.int16],
        scale: np.float32,
    ) -> Cascade:
        """Pack diagonals, for a size that is a power of two from `ROW` on.

        Parameters
        ----------
        turns_2 : two ndarray of uint8, shape (P,) and (ROW,)
            Signs of `T2`, 1 for minus, and 1 for every column (index modulo `ROW`) that is multiplied by i.
        turns_3, turns_4 : ndarray of uint8, shape (P,)
            The powers of i, 0 to 3, of `T3` and `T4`.
        gains : ndarray of int16, shape (P,)
            `G`, not negative. `T3` and `G` at the place `e` belong to the index `swap_digits(e)`.
        scale : numpy.float32
            `c`.
        """
        signs, axes = turns_2
        negated, exchanged = (_pack_bits(bits) for bits in (turns_4 >> np.uint8(1), turns_4 & np.uint8(1)))
        return cls(
            size=len(gains),
            signs_2=_in_column_order(_pack_bits(signs).view("<u2").astype(np.uint16), len(gains)),
            axes_2=_with_margin(_pack_bits(axes)),
            exchanges=_with_margin(_pack_bits(turns_3 & np.uint8(1))),
            gains=np.where(turns_3 >= 2, -gains, gains),
            scale=scale,
            turns_4=_in_column_order(negated | (exchanged.astype(np.uint16) << np.uint16(8)), len(gains)),
        )

    def turns(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the powers of i of `T2` to `T4`, shape (P,) each, by index."""
        words_2, words_4 = (_in_index_order(words, self.size) for words in (self.signs_2, self.turns_4))
        signs = _unpack_bits(words_2.astype("<u2").view(np.uint8), self.size)
        axes = np.tile(_unpack_bits(self.axes_2, ROW), self.size // ROW)
        negated, exchanged = (_unpack_bits((words_4 >> shift).astype(np.uint8), self.size) for shift in (0, 8))
        turns_3 = _unpack_bits(self.exchanges, self.size) + 2 * (self.gains < 0)
        return axes + 2 * signs, turns_3[swap_digits(np.arange(self.size))].astype(np.uint8), exchanged + 2 * negated

    def apply(
        self,
        features: NDArray[np.uint8],
        source: Source,
        amplitudes: NDArray[np.int8],
        versions: NDArray[np.int64],
        readout: Readout,
        out: tuple[NDArray[np.float32], NDArray[np.float32]],
        scratch: Scratch,
        seen: Sight = BLIND,
    ) -> None:
        """Multiply a sequence of inputs by the matrix; the caller holds `numba_lock`.

        Parameters
        ----------
        features : ndarray of uint8, shape (n_frames, n_features)
            Patterns of 0 and 1, in the order of C.
        source : Source
            Which feature switches which input.
        amplitudes : ndarray of int8, shape (n_versions, P)
            The inputs where they are on: whole numbers from -15 to 15.
        versions : ndarray of int64, shape (n_frames,)
            Which amplitudes a frame has.
        readout : Readout
            Which outputs are wanted. The output at position `q` belongs to the index `swap_digits(q)`.
        out : two ndarray of float32, shape (n_frames, n_places)
            Receive real and imaginary parts, in the order of C; only the places of `readout` are written.
        scratch : Scratch
            Working memory, for this size; as many threads work as it has parts.
        seen : Sight
            How a camera sees the product: the first array of `out` receives photo-electrons, the other is not used.
            Without it, they receive the product.
        """
        n_threads = min(len(scratch.work), len(out[0]))
        _apply(
            features,
            source.pieces,
            source.bounds,
            amplitudes,
            versions,
            self.signs_2,
            self.axes_2,
            self.exchanges,
            self.gains,
            self.scale,
            self.turns_4,
            readout.pieces,
            readout.bounds,
            scratch.shorts[:n_threads],
            scratch.work[:n_threads],
            seen.on,
            seen.beside,
            seen.electrons_per_intensity,
            *out,
        )

    def row(self, position: int) -> NDArray[np.complex64]:
        """Return the row of the matrix for the output at a position, shape (P,): from the left factor to the right."""
        swapped = swap_digits(np.arange(self.size))
        turns_2, turns_3, turns_4 = (_QUARTERS[turns] for turns in self.turns())
        parity = np.bitwise_count(np.arange(self.size) & swapped[position]) & 1
        row: NDArray[np.complex64] = np.where(parity, -turns_4, turns_4)
        _transform(row)
        row *= turns_3 * (np.abs(self.gains)[swapped].astype(np.float32) * self.scale)
        _transform(row)
        row *= turns_2
        _transform(row)
        return row

    def apply_with_numpy(self, inputs: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Multiply, slowly, in NumPy: the twin of the kernel.

        Parameters
        ----------
        inputs : ndarray of int64, shape (n_frames, P)
            What the features leave of the amplitudes.

        Returns
        -------
        tuple of two ndarray of float32, shape (n_frames, P)
            Real and imaginary parts, by position.
        """
        swapped = swap_digits(np.arange(self.size))
        turns_2, turns_3, turns_4 = self.turns()
        gains = np.abs(self.gains)[swapped].astype(np.float32) * self.scale
        first = walsh_hadamard(inputs, descending=False).astype(np.float32)
        real, imag = _turn_with_numpy(first, np.zeros_like(first), turns_2)
        real, imag = (walsh_hadamard(part, descending=True) * gains for part in (real, imag))
        real, imag = _turn_with_numpy(real, imag, turns_3)
        real, imag = (walsh_hadamard(part, descending=False) for part in (real, imag))
        real, imag = _turn_with_numpy(real, imag, turns_4)
        real, imag = (walsh_hadamard(part, descending=True)[:, swapped] for part in (real, imag))
        return real, imag


_QUARTERS = np.array([1, 1j, -1, -1j], np.complex64)


@njit(cache=True)
def _transform(values: Any) -> None:  # pragma: no cover - compiled
    # In place, without haste.
    stride = np.int64(1)
    while stride < len(values):
        for start in range(0, len(values), 2 * stride):
            for i in range(start, start + stride):
                first, second = values[i], values[i + stride]
                values[i], values[i + stride] = first + second, first - second
        stride *= 2


def _pack_bits(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.packbits(bits, bitorder="little")


def _unpack_bits(bytes_: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return np.unpackbits(bytes_, bitorder="little", count=count)


def _with_margin(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Append what the kernel, which reads four bytes at each, reads too much."""
    return np.append(bits, np.zeros(4, np.uint8))


def _column_order(n_words: int, size: int) -> NDArray[np.int64]:
    """Return the words for groups of columns, given row by row, in the order in which the columns are worked on."""
    n_rows = size // ROW
    span = 8 ** ((n_rows.bit_length() - 1) // 3)
    return np.arange(n_words).reshape(n_rows // span, span, n_words // n_rows).transpose(2, 1, 0).ravel()


def _in_column_order(words: NDArray[np.uint16], size: int) -> NDArray[np.uint16]:
    return np.append(words[_column_order(len(words), size)], np.uint16(0))  # the kernel reads four bytes at each


def _in_index_order(words: NDArray[np.uint16], size: int) -> NDArray[np.uint16]:
    ordered = np.empty(len(words) - 1, np.uint16)
    ordered[_column_order(len(ordered), size)] = words[:-1]
    return ordered


def _turn_with_numpy(
    real: NDArray[np.float32], imag: NDArray[np.float32], turns: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    first, second = np.where(turns & 1, imag, real), np.where(turns & 1, real, imag)
    return np.where((turns == 1) | (turns == 2), -first, first), np.where(turns >= 2, -second, second)
