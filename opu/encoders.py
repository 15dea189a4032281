r"""Encoders: numbers to the binary or ternary patterns that a DMD can show.

`ThresholdEncoder` keeps one bit of a number, for the nonlinear features `|A x|^2`. `BitPlaneEncoder` keeps `n_bits`
and a sign, for linear projections: a linear map of the planes, added up with powers of two, is the linear map of the
numbers, so that

    x W = step * sum_k 2**k (t_k W),        x ~ step * sum_k 2**k t_k,        t_k in {-1, 0, 1}.

Encoders have scikit-learn's manners without needing it: `fit` learns attributes that end in an underscore and returns
the encoder.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from opu.errors import ConfigError, InputError, PatternDtypeError, PatternShapeError, PatternValueError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["BitPlaneEncoder", "ThresholdEncoder"]

MAX_BITS = 24
"""More planes than float32 has bits of mantissa would add nothing to a projection."""


def _as_samples(X: ArrayLike) -> NDArray[Any]:
    array = np.asarray(X)
    if array.dtype.kind not in "buif":
        raise PatternDtypeError(f"The samples have the dtype {array.dtype}.", "Use real numbers.")
    if array.ndim != 2 or array.size == 0:
        raise PatternShapeError(
            f"The samples have the shape {array.shape}.", "Use (n_samples, n_features), with at least one of each."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise PatternValueError(
            f"X[{row}, {column}] is {array[row, column]}.", "Replace or leave out what is not finite before encoding."
        )
    return array


def _check_fitted(encoder: object, array: NDArray[Any]) -> None:
    n_features = getattr(encoder, "n_features_in_", None)
    if n_features is None:
        raise InputError(f"This {type(encoder).__name__} is not fitted.", "Call fit() first.")
    if array.shape[1] != n_features:
        raise PatternShapeError(
            f"The samples have {array.shape[1]} features.", f"The encoder was fitted on {n_features}."
        )


class ThresholdEncoder:
    """One bit for each feature: `x > threshold`.

    Parameters
    ----------
    threshold : float or "auto"
        A number for all features, or `auto`: 0.5 where the fitted data hold nothing but 0 and 1, otherwise the median
        of each feature, which lights half of the mirrors on average.

    Attributes
    ----------
    threshold_ : ndarray of float64, shape (n_features,)
        The threshold of each feature.
    n_features_in_ : int
        Features seen by `fit`.

    Examples
    --------
    >>> ThresholdEncoder().fit_transform([[0.0, 5.0], [1.0, 6.0], [2.0, 9.0]])
    array([[False, False],
           [False, False],
           [ True,  True]])
    """

    threshold_: NDArray[np.float64]
    n_features_in_: int

    def __init__(self, threshold: float | Literal["auto"] = "auto") -> None:
        self.threshold = threshold

    def fit(self, X: ArrayLike) -> Self:
        """Learn the thresholds.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.

        Returns
        -------
        ThresholdEncoder
            Itself.

        Raises
        ------
        ConfigError
            The threshold is neither a finite number nor `auto`.
        PatternDtypeError, PatternShapeError, PatternValueError
            The samples are not real, not two-dimensional, empty, or not finite.
        """
        array = _as_samples(X)
        self.threshold_ = np.full(array.shape[1], 0.5)
        if isinstance(self.threshold, str) and self.threshold == "auto":
            if not ((array == 0) | (array == 1)).all():
                self.threshold_ = np.median(array, axis=0).astype(np.float64)
        else:
            self.threshold_[:] = self._number()
        self.n_features_in_ = array.shape[1]
        return self

    def _number(self) -> float:
        number = self.threshold
        if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not np.isfinite(number):
            raise ConfigError(f"threshold is {number!r}.", "Use a finite number, or 'auto'.")
        return float(number)

    def transform(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return the bits.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.

        Returns
        -------
        ndarray of bool, shape (n_samples, n_features)
            `X > threshold_`.

        Raises
        ------
        InputError
            The encoder is not fitted.
        PatternDtypeError, PatternShapeError, PatternValueError
            As `fit`, or another number of features.
        """
        array = _as_samples(X)
        _check_fitted(self, array)
        bits: NDArray[np.bool_] = array > self.threshold_
        return bits

    def fit_transform(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return `fit(X).transform(X)`."""
        return self.fit(X).transform(X)

    def __repr__(self) -> str:
        return f"ThresholdEncoder(threshold={self.threshold!r})"


class BitPlaneEncoder:
    r"""Bit planes of numbers, sign and magnitude, which a linear map can pass one by one.

    With `step = max |X| / (2**n_bits - 1)` of the fitted data, a number becomes `q = round(|x| / step)`, and plane `k`
    is `sign(x)` times bit `k` of `q`. Within the fitted range `|x - step * sum_k 2**k t_k| <= step / 2`. Because the
    step is one for all features, any linear map of the planes recombines exactly (`decode`).

    Parameters
    ----------
    n_bits : int
        Bits of the magnitude, 1 to 24.

    Attributes
    ----------
    scale_ : float
        The largest magnitude in the fitted data, or 1 where all of them are 0.
    step_ : float
        The size of the lowest bit.
    signed_ : bool
        Whether the fitted data hold a negative number. If not, the planes are binary, and cost a linear projection two
        frames instead of four.
    n_features_in_ : int
        Features seen by `fit`.

    Warns
    -----
    UserWarning
        `transform` met values beyond the fitted range, `-scale_` (0 where nothing was negative) to `scale_`. They are
        clipped to it; the warning says how many.

    Examples
    --------
    >>> encoder = BitPlaneEncoder(n_bits=2).fit([[-1.5, 0.4, 3.0]])
    >>> encoder.step_
    1.0
    >>> planes = encoder.transform([[-1.0, 0.4, 3.0]])
    >>> planes
    array([[[-1,  0,  1]],
    <BLANKLINE>
           [[ 0,  0,  1]]], dtype=int8)
    >>> encoder.decode(planes)
    array([[-1.,  0.,  3.]])
    """

    scale_: float
    step_: float
    signed_: bool
    n_features_in_: int

    def __init__(self, n_bits: int = 8) -> None:
        self.n_bits = n_bits

    def fit(self, X: ArrayLike) -> Self:
        """Learn the scale.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.

        Returns
        -------
        BitPlaneEncoder
            Itself.

        Raises
        ------
        ConfigError
            `n_bits` is not a whole number from 1 to 24.
        PatternDtypeError, PatternShapeError, PatternValueError
            The samples are not real, not two-dimensional, empty, or not finite.
        """
        if isinstance(self.n_bits, bool) or not isinstance(self.n_bits, int | np.integer):
            raise ConfigError(f"n_bits is {self.n_bits!r}.", f"Use a whole number from 1 to {MAX_BITS}.")
        if not 1 <= self.n_bits <= MAX_BITS:
            raise ConfigError(f"n_bits is {self.n_bits}.", f"Use 1 to {MAX_BITS}.")
        array = _as_samples(X)
        lowest, highest = float(array.min()), float(array.max())
        self.signed_ = lowest < 0
        self.scale_ = max(-lowest, highest) or 1.0
        # The smallest normal number keeps the quotient finite where the data are smaller still.
        self.step_ = max(self.scale_ / self._levels, float(np.finfo(np.float64).tiny))
        self.n_features_in_ = array.shape[1]
        return self

    @property
    def _levels(self) -> int:
        return int(2 ** int(self.n_bits) - 1)

    def transform(self, X: ArrayLike) -> NDArray[np.int8]:
        """Return the bit planes, lowest first.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features)
            Real, finite numbers.

        Returns
        -------
        ndarray of int8, shape (n_bits, n_samples, n_features)
            Values -1, 0 and 1; without -1 where `signed_` is False.

        Raises
        ------
        InputError
            The encoder is not fitted.
        PatternDtypeError, PatternShapeError, PatternValueError
            As `fit`, or another number of features.
        """
        array = _as_samples(X)
        _check_fitted(self, array)
        lowest = -self.scale_ if self.signed_ else 0.0
        outside = int(((array < lowest) | (array > self.scale_)).sum())
        if outside:
            warnings.warn(
                f"{outside} of {array.size} values lie beyond the fitted range, {lowest:g} to {self.scale_:g}, and are "
                "clipped to it. Fit on data that cover the range.",
                UserWarning,
                stacklevel=2,
            )
        inside = np.clip(array.astype(np.float64), lowest, self.scale_)
        magnitude = np.rint(np.abs(inside) / self.step_).astype(np.int32)
        sign = np.where(inside < 0, np.int8(-1), np.int8(1))
        planes = np.empty((self.n_bits, *array.shape), np.int8)
        for k in range(self.n_bits):
            planes[k] = ((magnitude >> k) & 1).astype(np.int8) * sign
        return planes

    def fit_transform(self, X: ArrayLike) -> NDArray[np.int8]:
        """Return `fit(X).transform(X)`."""
        return self.fit(X).transform(X)

    def decode(self, projections: ArrayLike) -> NDArray[Any]:
        """Recombine what a linear map made of the planes.

        Parameters
        ----------
        projections : array_like, shape (n_bits, n_samples, n_outputs)
            The projection of each plane; the planes themselves give the encoded numbers back.

        Returns
        -------
        ndarray, shape (n_samples, n_outputs)
            `step * sum_k 2**k projections[k]`, of the dtype of the projections if it is a floating-point one, float64
            otherwise. The order of summation is fixed.

        Raises
        ------
        InputError
            The encoder is not fitted.
        PatternShapeError
            There are not `n_bits` projections.
        """
        if not hasattr(self, "step_"):
            raise InputError("This BitPlaneEncoder is not fitted.", "Call fit() first.")
        array = np.asarray(projections)
        if array.ndim < 1 or len(array) != self.n_bits:
            raise PatternShapeError(
                f"The projections have the shape {array.shape}.", f"Use ({self.n_bits}, n_samples, n_outputs)."
            )
        dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        total = array[-1].astype(dtype)
        for plane in array[-2::-1]:
            total = total * dtype.type(2) + plane
        decoded: NDArray[Any] = total * dtype.type(self.step_)
        return decoded

    def __repr__(self) -> str:
        return f"BitPlaneEncoder(n_bits={self.n_bits!r})"
