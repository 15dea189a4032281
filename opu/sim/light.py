r"""From the fields of the medium to the field on the camera, and its photo-electrons.

Mirrors that are off still throw the amplitude `eps` (complex), so with `F` the field of the mirrors that are on, `G`
that of all mirrors and `r` a reference arm the camera sees

    E = (1 - eps) F + eps G + r.

Float32 arithmetic in a fixed order; the compiled kernel and its NumPy twin agree to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.sim.media.base import Fields

__all__ = ["beside_the_pattern", "light_electrons", "light_electrons_with_numpy", "total_field"]

_F = np.float32


def beside_the_pattern(
    fields: Fields, off_amplitude: complex, arm: NDArray[np.complex64] | None
) -> NDArray[np.complex64] | None:
    """Return `eps G + r`, what does not depend on the pattern.

    Parameters
    ----------
    fields : Fields
        `F` and `G`, at `n_points`.
    off_amplitude : complex
        `eps`.
    arm : ndarray of complex64, shape (n_frames or 1, n_points), optional
        `r`.

    Returns
    -------
    ndarray of complex64, shape (n_frames or 1, n_points), or None
        None where it is 0.
    """
    if off_amplitude == 0:
        return arm
    off: NDArray[np.complex64] = np.complex64(off_amplitude) * (fields.all_real + 1j * fields.all_imag)
    return off if arm is None else off + arm


def total_field(
    fields: Fields, off_amplitude: complex, arm: NDArray[np.complex64] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return real and imaginary part of `E`, shape (n_frames, n_points); parameters as `beside_the_pattern`."""
    beside = beside_the_pattern(fields, off_amplitude, arm)
    if beside is None:
        return fields.real, fields.imag
    on = np.complex64(1 - off_amplitude)
    real = fields.real * on.real - fields.imag * on.imag + beside.real
    imag = fields.imag * on.real + fields.real * on.imag + beside.imag
    return real, imag


@njit(parallel=True, cache=True)
def _light_electrons(
    real: Any, imag: Any, on: Any, beside: Any, electrons_per_intensity: Any, out: Any
) -> None:  # pragma: no cover - compiled
    n_frames, n_points = real.shape
    for frame in prange(n_frames):
        if len(beside) == 0:
            for i in range(n_points):
                x, y = real[frame, i], imag[frame, i]
                out[frame, i] = (x * x + y * y) * electrons_per_intensity
        else:
            row = beside[frame % len(beside)]
            for i in range(n_points):
                x = real[frame, i] * on.real - imag[frame, i] * on.imag + row[i].real
                y = imag[frame, i] * on.real + real[frame, i] * on.imag + row[i].imag
                out[frame, i] = (x * x + y * y) * electrons_per_intensity


def light_electrons(
    fields: Fields,
    off_amplitude: complex,
    arm: NDArray[np.complex64] | None,
    electrons_per_intensity: float,
    out: NDArray[np.float32],
) -> None:
    """Compute the mean photo-electrons of every point.

    Parameters
    ----------
    fields, off_amplitude, arm
        As `beside_the_pattern`.
    electrons_per_intensity : float
        Photo-electrons for `|E|^2 = 1`.
    out : ndarray of float32, shape (n_frames, n_points)
        Receives them.
    """
    beside = beside_the_pattern(fields, off_amplitude, arm)
    rows = np.zeros((0, 1), np.complex64) if beside is None else beside
    with numba_lock:
        _light_electrons(
            fields.real, fields.imag, np.complex64(1 - off_amplitude), rows, _F(electrons_per_intensity), out
        )


def light_electrons_with_numpy(
    fields: Fields, off_amplitude: complex, arm: NDArray[np.complex64] | None, electrons_per_intensity: float
) -> NDArray[np.float32]:
    """Compute photo-electrons as `light_electrons`, in NumPy: the twin of the kernel, shape (n_frames, n_points)."""
    real, imag = total_field(fields, off_amplitude, arm)
    electrons: NDArray[np.float32] = (real * real + imag * imag) * _F(electrons_per_intensity)
    return electrons
