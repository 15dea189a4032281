"""A measured transmission matrix, and what must be known to use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.device import SessionConfig

__all__ = ["TransmissionMatrix"]


@dataclass(frozen=True, eq=False, repr=False)
class TransmissionMatrix:
    """The transmission matrix of a session: from features to camera pixels.

    A camera sees intensities of binary patterns, so every row is known only up to a phase and, where no reference
    arm steps its phase, up to *complex conjugation*: `a` and `conj(a)` give the same intensities for every pattern.

    Parameters
    ----------
    matrix : ndarray of complex64, shape (n_outputs, n_features)
        In square roots of DN: `abs(matrix @ x + background) ** 2` is the mean count above the dark level.
    background : ndarray of complex64, shape (n_outputs,)
        The field with all features off, with the phase of its row; zero for infinite DMD contrast.
    dark_dn : ndarray of float32, shape (n_outputs,)
        The dark level of each pixel, in DN.
    row_quality : ndarray of float32, shape (n_outputs,)
        Relative residual of the amplitudes, of each row: less is better.
    kept : ndarray of bool, shape (n_outputs,)
        Which rows to believe.
    config : SessionConfig
        The complete configuration of the session that it belongs to.
    method : str
        How it was measured.
    n_frames : int
        What it cost.
    device_id, medium_id, medium_epoch : str, str, int
        Where it was measured, and the medium.
    measured_unix_s : float
        When.
    laser_power_mw : float or None
        The laser power at which it was measured, None where it is unknown.
    """

    matrix: NDArray[np.complex64]
    background: NDArray[np.complex64]
    dark_dn: NDArray[np.float32]
    row_quality: NDArray[np.float32]
    kept: NDArray[np.bool_]
    config: SessionConfig
    method: str
    n_frames: int
    device_id: str
    medium_id: str
    medium_epoch: int
    measured_unix_s: float
    laser_power_mw: float | None = None

    @property
    def n_outputs(self) -> int:
        """The number of camera pixels."""
        return len(self.matrix)

    @property
    def n_features(self) -> int:
        """The width of a pattern."""
        return int(self.matrix.shape[1])

    def __repr__(self) -> str:
        size = f"{self.n_outputs} x {self.n_features}"
        return (
            f"TransmissionMatrix({size}, {self.method}, {self.kept.sum()} rows kept, {self.device_id}, "
            f"medium {self.medium_id}, epoch {self.medium_epoch})"
        )

    def fields(self, patterns: ArrayLike) -> NDArray[np.complex64]:
        """Return the field of patterns, shape (batch, n_outputs), in square roots of DN."""
        shown = np.asarray(patterns, dtype=np.float32)
        found: NDArray[np.complex64] = (shown @ self.matrix.real.T + 1j * (shown @ self.matrix.imag.T)).astype(
            np.complex64
        ) + self.background
        return found

    def intensities(self, patterns: ArrayLike) -> NDArray[np.float32]:
        """Return the mean counts of patterns above the dark level, shape (batch, n_outputs), in DN."""
        fields = self.fields(patterns)
        return fields.real**2 + fields.imag**2
