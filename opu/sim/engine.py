"""Multiplying binary patterns by a small-integer matrix, exactly.

Every row that a pattern lights is added up; nothing is multiplied. Batches share the work ("Method of Four Russians",
Arlazarov et al. 1970): for five features at a time a table of the 32 possible sums is made once, and each pattern then
adds one table row instead of up to five matrix rows. Entries and partial sums are 16-bit integers, sixteen to a vector
register; a segment of features ends before a sum could leave their range. The inner loops are explicit vectors (LLVM
instructions, portable). This takes less than half of the time of the two float32 BLAS products that it replaces, and
uses no threads but Numba's. Making the tables costs as much as adding the rows of some twenty patterns, so that smaller
batches add the rows themselves.

Sums of integers below 2**24 are exact in float32, so the result is the one of any other engine, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from opu.sim.light import BLIND, Sight, put_electrons, put_light
from opu.sim.threads import KernelTurn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IntegerMatrix", "block_shape"]

OUTPUTS = 64
"""Outputs in a block: a row of a block is 64 real and 64 imaginary parts, 256 bytes."""

_LANES = 16
_GROUP = 5
_TABLES = 4
_STEP = _GROUP * _TABLES
_SMALL_BATCH = 20
_LARGE_BATCH = 512
_PIECE = 5 * _STEP
"""Features whose rows are added together: 25 KiB of a block, which stay in the nearest cache for all patterns."""

_LIMIT = np.iinfo(np.int16).max
_ROW_NS = 4.0
"""Time of a thread for adding a row of a block or of a table, or making one of a table."""


def block_shape(n_features: int, n_outputs: int) -> tuple[int, int, int]:
    """Return the shape of the blocks of a matrix: (blocks, features rounded up, 128)."""
    return -(-n_outputs // OUTPUTS), -(-n_features // _STEP) * _STEP, 2 * OUTPUTS


@dataclass(frozen=True, eq=False)
class IntegerMatrix:
    """A complex matrix of small integers, in the order in which it is used.

    Parameters
    ----------
    blocks : ndarray of int16 or int32, shape (n_blocks, padded_features, 128)
        `blocks[b, f]` holds the real parts of outputs `64 b` to `64 b + 63`, then the imaginary ones. What lies beyond
        the last feature and the last output is 0. 32 bits are slower: a batch does not share work then.
    n_features, n_outputs : int
        The size of the matrix.
    largest : int, optional
        No part of an entry is further from 0. A matrix that is used once need not be looked through for it.
    """

    blocks: NDArray[np.int16] | NDArray[np.int32]
    n_features: int
    n_outputs: int
    largest: int | None = None

    @property
    def real(self) -> NDArray[np.float32]:
        """The real part, shape (n_features, n_outputs)."""
        return self._part(0)

    @property
    def imag(self) -> NDArray[np.float32]:
        """The imaginary part, shape (n_features, n_outputs)."""
        return self._part(OUTPUTS)

    def _part(self, start: int) -> NDArray[np.float32]:
        rows = self.blocks[:, : self.n_features, start : start + OUTPUTS].transpose(1, 0, 2)
        return rows.reshape(self.n_features, -1)[:, : self.n_outputs].astype(np.float32)

    def multiply(self, features: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return `features @ matrix`.

        Parameters
        ----------
        features : ndarray of uint8, shape (batch, n_features)
            Values 0 and 1.

        Returns
        -------
        tuple of two ndarray of float32, shape (batch, n_outputs)
            Real and imaginary parts: whole numbers.
        """
        real = np.empty((len(features), self.n_outputs), dtype=np.float32)
        imag = np.empty_like(real)
        if self._is_narrow:
            self._sum(features, BLIND, real, imag)
        else:
            with KernelTurn(_ROW_NS * features.size * len(self.blocks)):
                _sum_wide_rows(features, self.blocks, real, imag)
        return real, imag

    def light_electrons(self, features: NDArray[np.uint8], seen: Sight, out: NDArray[np.float32]) -> None:
        """Compute the photo-electrons of `features @ matrix`, which need not be kept.

        Parameters
        ----------
        features : ndarray of uint8, shape (batch, n_features)
            Values 0 and 1.
        seen : Sight
            How the camera sees the products.
        out : ndarray of float32, shape (batch, n_outputs)
            Receives the electrons.
        """
        if self._is_narrow:
            self._sum(features, seen, out, out)
        else:
            put_light(*self.multiply(features), seen, out)

    @cached_property
    def _is_narrow(self) -> bool:
        """Whether 16 bits hold the sums over a step of features."""
        return self.blocks.dtype == np.int16 and bool(self._bounds.max() <= _LIMIT)

    def _sum(
        self, features: NDArray[np.uint8], seen: Sight, first: NDArray[np.float32], second: NDArray[np.float32]
    ) -> None:
        for start in range(0, len(features), _LARGE_BATCH):
            rows = slice(start, start + _LARGE_BATCH)
            some, part = features[rows], seen.of_frames(rows)
            to = part.on, part.beside, part.electrons_per_intensity, first[rows].reshape(-1), second[rows].reshape(-1)
            if len(some) > _SMALL_BATCH:
                codes = self._codes(some)
                n_rows = (1 << _GROUP) * self.blocks.shape[1] // _GROUP + codes.size
                with KernelTurn(_ROW_NS * n_rows * len(self.blocks)):
                    _sum_tables(codes, self.blocks, self._bounds, self.n_outputs, *to)
            else:
                with KernelTurn(_ROW_NS * some.size / 2 * len(self.blocks)):
                    _sum_rows(some, self.blocks, self._pieces, self.n_outputs, *to)

    @cached_property
    def _pieces(self) -> NDArray[np.int64]:
        """Where to divide the features: sums over a piece fit into 16 bits, shape (n_pieces + 1,)."""
        stops, reach = [0], 0
        for step, bound in enumerate(self._bounds):
            reach += bound
            if step and (reach > _LIMIT or step * _STEP - stops[-1] == _PIECE):
                stops.append(step * _STEP)
                reach = bound
        return np.array([*stops, self.n_features])

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """How far the sums over each step of features can be from 0, whatever the pattern, shape (n_steps,)."""
        n_steps = self.blocks.shape[1] // _STEP
        if self.largest is not None and _STEP * self.largest <= _LIMIT:
            return np.full(n_steps, _STEP * self.largest)
        bounds = np.zeros(n_steps, np.int64)
        for block in self.blocks:
            # The size of -2**15 is 2**15 as an unsigned number.
            sizes = np.abs(block).view(np.uint16).reshape(n_steps, _STEP, 2 * OUTPUTS)
            np.maximum(bounds, sizes.sum(axis=1, dtype=np.int32).max(axis=1), out=bounds)
        return bounds

    def _codes(self, features: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the table row of each group of five features, shape (n_groups, batch)."""
        lit = np.zeros((self.blocks.shape[1], len(features)), np.uint8)
        lit[: self.n_features] = features.T
        codes = np.zeros((len(lit) // _GROUP, len(features)), np.uint8)
        for place in reversed(range(_GROUP)):  # whole rows at a time
            codes += codes
            codes += lit[place::_GROUP]
        return codes


# Compiling a kernel takes much longer than loading one: loops over single numbers, rather than over slices, and no more
# of them than needed, keep that short.


_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(ir.IntType(16), _LANES)


def _vectors(builder: Any, data: Any, place: Any) -> list[Any]:
    """Return the addresses of the vectors of a row that starts at an element of an array of int16."""
    starts = [builder.add(place, ir.Constant(_INT64, i)) for i in range(0, 2 * OUTPUTS, _LANES)]
    return [builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer()) for start in starts]


def _loads(builder: Any, data: Any, place: Any) -> list[Any]:
    return [builder.load(address, align=2) for address in _vectors(builder, data, place)]


@intrinsic
def _add_feature(typing_context: Any, blocks: Any, row: Any, tables: Any, without: Any, with_row: Any) -> Any:  # noqa: ARG001 - the types stand in the signature
    """Write `tables[without] + blocks[row]` to `tables[with_row]`; rows by the place of their first element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        blocks, row, tables, without, with_row = arguments
        source = context.make_array(signature.args[0])(context, builder, blocks).data
        table = context.make_array(signature.args[2])(context, builder, tables).data
        pairs = zip(_loads(builder, source, row), _loads(builder, table, without), strict=True)
        for pair, address in zip(pairs, _vectors(builder, table, with_row), strict=True):
            builder.store(builder.add(*pair), address, align=2)
        return context.get_dummy_value()

    return types.void(blocks, types.int64, tables, types.int64, types.int64), generate


@intrinsic
def _add_sums(typing_context: Any, tables: Any, a: Any, b: Any, c: Any, d: Any, sums: Any, place: Any) -> Any:  # noqa: ARG001 - the types stand in the signature
    """Add the rows `a` to `d` of `tables` to a row of `sums`, in 16 bits.

    Numba's loops over the row do the same and take up to a third longer: they check and start anew for every row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tables, *rows, sums, place = arguments
        table = context.make_array(signature.args[0])(context, builder, tables).data
        target = context.make_array(signature.args[5])(context, builder, sums).data
        parts = [_vectors(builder, table, row) for row in rows]
        for addresses in zip(*parts, _vectors(builder, target, place), strict=True):
            first, second, third, fourth, total = (builder.load(address, align=2) for address in addresses)
            both = builder.add(builder.add(first, second), builder.add(third, fourth))
            builder.store(builder.add(total, both), addresses[-1], align=2)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(tables, whole, whole, whole, whole, sums, whole), generate


@njit(inline="always", cache=True)
def _row(array: Any, first: Any, second: Any) -> Any:  # pragma: no cover - compiled
    """Return the place of the first element of a row of an array of three dimensions."""
    return np.int64((np.int64(first) * array.shape[1] + np.int64(second)) * array.shape[2])


@njit(parallel=True, cache=True)
def _sum_wide_rows(features: Any, blocks: Any, real: Any, imag: Any) -> None:  # pragma: no cover - compiled
    batch, n_features = features.shape
    for block in prange(blocks.shape[0]):
        total = np.empty(2 * OUTPUTS, np.int32)
        start = block * OUTPUTS
        size = min(OUTPUTS, real.shape[1] - start)
        for pattern in range(batch):
            for i in range(2 * OUTPUTS):
                total[i] = 0
            for feature in range(n_features):
                if features[pattern, feature]:
                    for i in range(2 * OUTPUTS):
                        total[i] += blocks[block, feature, i]
            for i in range(size):
                real[pattern, start + i] = total[i]
                imag[pattern, start + i] = total[OUTPUTS + i]


@njit(inline="always", cache=True)
def _widen(sums: Any, totals: Any, begins: Any) -> None:  # pragma: no cover - compiled
    """Move sums to the totals of 32 bits; the first ones start them."""
    # Unsigned places: an index that could be negative keeps a loop from becoming vectors.
    for pattern in range(np.uint64(len(sums))):
        for i in range(np.uint64(2 * OUTPUTS)):
            totals[pattern, i] = np.float32(sums[pattern, i]) + (np.float32(0) if begins else totals[pattern, i])
            sums[pattern, i] = 0


@njit(inline="always", cache=True)
def _put_totals(
    totals: Any,
    block: Any,
    n_outputs: Any,
    on: Any,
    beside: Any,
    electrons_per_intensity: Any,
    first: Any,
    second: Any,
) -> None:  # pragma: no cover - compiled
    """Write what the totals of a block are wanted for.

    With negative electrons per intensity the sums themselves are wanted: real parts in `first`, imaginary ones in
    `second`.
    """
    real = totals.reshape(-1)
    imag = real[OUTPUTS:]
    start = np.uint64(block * OUTPUTS)
    size = min(np.uint64(OUTPUTS), np.uint64(n_outputs) - start)
    for pattern in range(np.uint64(len(totals))):
        at = pattern * np.uint64(2 * OUTPUTS)
        target = pattern * np.uint64(n_outputs) + start
        if electrons_per_intensity >= 0:
            put_electrons(real, imag, at, size, on, beside, pattern, start, electrons_per_intensity, first, target)
        else:
            for i in range(size):
                first[target + i] = real[at + i]
                second[target + i] = imag[at + i]


@njit(parallel=True, cache=True)
def _sum_rows(
    features: Any,
    blocks: Any,
    pieces: Any,
    n_outputs: Any,
    on: Any,
    beside: Any,
    electrons_per_intensity: Any,
    first: Any,
    second: Any,
) -> None:  # pragma: no cover - compiled
    # pieces: see `IntegerMatrix._pieces`; the rest as of `_put_totals`.
    batch = len(features)
    n_pieces = len(pieces) - 1
    lit = np.empty((n_pieces, batch, 1 + _PIECE), np.uint8)  # how many features of a piece are lit, and which ones
    for piece in range(n_pieces):
        for pattern in range(batch):
            n = 0
            for feature in range(pieces[piece], pieces[piece + 1]):
                lit[piece, pattern, 1 + n] = feature - pieces[piece]
                n += features[pattern, feature]  # no branch, which the processor would guess wrong half of the time
            lit[piece, pattern, 0] = n
    for block in prange(blocks.shape[0]):
        sums = np.zeros((batch, 2 * OUTPUTS), np.int16)
        totals = np.empty((batch, 2 * OUTPUTS), np.float32)
        for piece in range(n_pieces):
            start = pieces[piece]
            for pattern in range(batch):
                n_lit = np.int64(lit[piece, pattern, 0])
                place = np.int64(pattern) * 2 * OUTPUTS
                for i in range(4, 1 + n_lit, 4):
                    _add_sums(
                        blocks,
                        _row(blocks, block, start + lit[piece, pattern, i - 3]),
                        _row(blocks, block, start + lit[piece, pattern, i - 2]),
                        _row(blocks, block, start + lit[piece, pattern, i - 1]),
                        _row(blocks, block, start + lit[piece, pattern, i]),
                        sums,
                        place,
                    )
                for i in range(1 + n_lit - n_lit % 4, 1 + n_lit):
                    _add_feature(blocks, _row(blocks, block, start + lit[piece, pattern, i]), sums, place, place)
            _widen(sums, totals, piece == 0)
        _put_totals(totals, block, n_outputs, on, beside, electrons_per_intensity, first, second)


@njit(parallel=True, cache=True)
def _sum_tables(
    codes: Any,
    blocks: Any,
    bounds: Any,
    n_outputs: Any,
    on: Any,
    beside: Any,
    electrons_per_intensity: Any,
    first: Any,
    second: Any,
) -> None:  # pragma: no cover - compiled
    batch = codes.shape[1]
    n_steps = len(bounds)
    for block in prange(blocks.shape[0]):
        sums = np.empty((batch, 2 * OUTPUTS), np.int16)
        totals = np.empty((batch, 2 * OUTPUTS), np.float32)
        tables = np.empty((_TABLES, 1 << _GROUP, 2 * OUTPUTS), np.int16)
        for pattern in range(batch):
            for i in range(2 * OUTPUTS):
                sums[pattern, i] = 0
        for table in range(_TABLES):
            for i in range(2 * OUTPUTS):
                tables[table, 0, i] = 0
        reach = 0
        begins = True
        for step in range(n_steps):
            for table in range(_TABLES):
                feature = step * _STEP + table * _GROUP
                top = 1  # the highest bit of the code, which stands for the feature
                for code in range(1, 1 << _GROUP):
                    if code == 2 * top:
                        top = code
                        feature += 1
                    _add_feature(
                        blocks,
                        _row(blocks, block, feature),
                        tables,
                        _row(tables, table, code - top),
                        _row(tables, table, code),
                    )
            group = step * _TABLES
            for pattern in range(batch):
                _add_sums(
                    tables,
                    _row(tables, 0, codes[group, pattern]),
                    _row(tables, 1, codes[group + 1, pattern]),
                    _row(tables, 2, codes[group + 2, pattern]),
                    _row(tables, 3, codes[group + 3, pattern]),
                    sums,
                    np.int64(pattern) * 2 * OUTPUTS,
                )
            reach += bounds[step]
            if step + 1 == n_steps or reach + bounds[step + 1] > _LIMIT:
                _widen(sums, totals, begins)
                begins = False
                reach = 0
        _put_totals(totals, block, n_outputs, on, beside, electrons_per_intensity, first, second)
