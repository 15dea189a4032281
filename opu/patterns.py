"""Binary patterns: checked once, packed eight features to a byte.

Array order, for the whole project: a batch of patterns is `(batch, n_features)`, rows first; images are
`(row, column)`. In packed patterns feature `k` is bit `k % 8` (least significant first) of byte `k // 8`,
and the bits beyond the last feature are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.errors import PatternDtypeError, PatternShapeError, PatternValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["PackedPatterns", "as_array", "as_packed", "join", "pack", "unpack"]


@dataclass(frozen=True, eq=False)
class PackedPatterns:
    """A batch of binary patterns, eight features to a byte.

    Parameters
    ----------
    bits : ndarray of uint8, shape (batch, ceil(n_features / 8))
        Feature `k` is bit `k % 8` (least significant first) of byte `k // 8`. C-contiguous; the bits beyond
        the last feature must be 0.
    n_features : int
        The number of features in a pattern.

    Raises
    ------
    PatternDtypeError
        `bits` is not an array of uint8.
    PatternShapeError
        `bits` does not have the shape that `n_features` asks for, or holds no pattern.
    PatternValueError
        A bit beyond the last feature is set.

    Examples
    --------
    >>> packed = pack([[1, 0, 0, 0, 0, 0, 0, 0, 1]])
    >>> packed.bits
    array([[1, 1]], dtype=uint8)
    >>> len(packed), packed.n_features
    (1, 9)
    """

    bits: NDArray[np.uint8]
    n_features: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, np.ndarray) or self.bits.dtype != np.uint8:
            found = getattr(self.bits, "dtype", type(self.bits).__name__)
            raise PatternDtypeError(f"Packed patterns are {found}.", "Use a NumPy array of uint8.")
        width = -(-self.n_features // 8)
        if self.bits.ndim != 2 or self.bits.shape[1] != width or self.n_features < 1:
            raise PatternShapeError(
                f"Packed patterns of {self.n_features} features have the shape {self.bits.shape}.",
                f"Use the shape (batch, {width}).",
            )
        if len(self.bits) == 0:
            raise PatternShapeError("The batch is empty.", "Send at least one pattern.")
        spare = width * 8 - self.n_features
        if spare and np.any(self.bits[:, -1] >> (8 - spare)):
            raise PatternValueError(
                f"A bit beyond the last of {self.n_features} features is set.",
                "Set the unused high bits of the last byte to 0.",
            )

    def __len__(self) -> int:
        return len(self.bits)


def as_array(patterns: ArrayLike) -> NDArray[Any]:
    """Return patterns as an array of whatever shape and dtype.

    Raises
    ------
    PatternShapeError
        They are no array: nested sequences of unequal lengths, for example.
    """
    try:
        return np.asarray(patterns)
    except (TypeError, ValueError) as error:
        raise PatternShapeError(f"The patterns make no array: {error}", "Give every row the same length.") from error


def pack(patterns: ArrayLike) -> PackedPatterns:
    """Check binary patterns and pack them.

    Parameters
    ----------
    patterns : array_like, shape (batch, n_features)
        Values 0 and 1, as booleans, integers or floating-point numbers.

    Returns
    -------
    PackedPatterns
        A copy: the caller may change its array at once.

    Raises
    ------
    PatternDtypeError
        The dtype is neither boolean, integer nor floating point.
    PatternShapeError
        The array is not two-dimensional, or empty, or none at all.
    PatternValueError
        A value is neither 0 nor 1 (NaN included); the message says which and where.

    Examples
    --------
    >>> unpack(pack([[0, 1, 1]]))
    array([[0, 1, 1]], dtype=uint8)
    """
    array = as_array(patterns)
    if array.dtype.kind not in "buif":
        raise PatternDtypeError(
            f"The patterns have the dtype {array.dtype}.", "Use booleans, or numbers that are 0 or 1."
        )
    if array.ndim != 2:
        raise PatternShapeError(
            f"The patterns have the shape {array.shape}.",
            "Use (batch, n_features); a single pattern is patterns[np.newaxis].",
        )
    if array.size == 0:
        raise PatternShapeError(
            f"The batch is empty: its shape is {array.shape}.", "Send at least one pattern with one feature."
        )
    _check_binary(array)
    # NumPy keeps the order of a transposed array, and patterns are sent row by row.
    bits = np.ascontiguousarray(np.packbits(array.astype(np.bool_, copy=False), axis=1, bitorder="little"))
    return PackedPatterns(bits, array.shape[1])


def _check_binary(array: NDArray[Any]) -> None:
    if array.dtype == np.bool_:
        return
    if array.dtype == np.uint8 and array.max() <= 1:
        return
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise PatternValueError(
            f"patterns[{row}, {column}] is {array[row, column]}, and {int(wrong.sum())} of {array.size} values "
            "are neither 0 nor 1.",
            "A DMD shows binary patterns: encode the values first, for example with opu.encoders.",
        )


def unpack(packed: PackedPatterns) -> NDArray[np.uint8]:
    """Undo `pack`.

    Parameters
    ----------
    packed : PackedPatterns
        The patterns.

    Returns
    -------
    ndarray of uint8, shape (batch, n_features)
        Values 0 and 1, C-contiguous.
    """
    return np.unpackbits(packed.bits, axis=1, count=packed.n_features, bitorder="little")


def join(batches: Sequence[PackedPatterns]) -> PackedPatterns:
    """Return several batches of one width as one, in this order; a single one itself.

    Examples
    --------
    >>> len(join([pack([[0, 1]]), pack([[1, 1], [0, 0]])]))
    3
    """
    if len(batches) == 1:
        return batches[0]
    return PackedPatterns(np.concatenate([batch.bits for batch in batches]), batches[0].n_features)


def as_packed(patterns: ArrayLike | PackedPatterns, n_features: int) -> PackedPatterns:
    """Check patterns of either form against the width that a session expects.

    Parameters
    ----------
    patterns : array_like or PackedPatterns, shape (batch, n_features)
        Binary patterns, packed or not.
    n_features : int
        The width of the session.

    Returns
    -------
    PackedPatterns
        The patterns, packed. Packed ones are copied, so that the caller may change them at once.

    Raises
    ------
    PatternShapeError
        The width is another one.
    PatternDtypeError, PatternValueError
        As `pack`.
    """
    if isinstance(patterns, PackedPatterns):
        packed = PackedPatterns(np.array(patterns.bits, order="C"), patterns.n_features)
    else:
        packed = pack(patterns)
    if packed.n_features != n_features:
        raise PatternShapeError(
            f"The patterns have {packed.n_features} features, the session has {n_features}.",
            f"Send patterns of {n_features} features, or open a session with n_features={packed.n_features}.",
        )
    return packed
