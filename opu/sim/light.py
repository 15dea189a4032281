r"""From the fields of the medium to the field on the camera, and its photo-electrons.

Mirrors that are off still throw the amplitude `eps` (complex), so with `F` the field of the mirrors that are on, `G`
that of all mirrors and `r` a reference arm the camera sees

    E = (1 - eps) F + eps G + r.

Float32 arithmetic in a fixed order; the compiled kernel and its NumPy twin agree to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.threads import KernelTurn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.sim.media.base import Fields

__all__ = [
    "BLIND",
    "Sight",
    "light_electrons",
    "light_electrons_with_numpy",
    "off_field",
    "put_electrons",
    "put_light",
    "sight",
    "total_field",
]

_F = np.float32
_POINT_NS = 1.0
"""Time of a thread for a value."""


def off_field(off_amplitude: complex, all_real: Any, all_imag: Any) -> NDArray[np.complex64] | None:
    """Return `eps G`, what mirrors that are off throw, of the shape of `G`; None without such light."""
    if off_amplitude == 0:
        return None
    field: NDArray[np.complex64] = np.complex64(off_amplitude) * (all_real + 1j * all_imag)
    return field


def _sum(first: NDArray[np.complex64] | None, second: NDArray[np.complex64] | None) -> NDArray[np.complex64] | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def total_field(
    fields: Fields, off_amplitude: complex, arm: NDArray[np.complex64] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return real and imaginary part of `E`, shape (n_frames, n_points); parameters as of `light_electrons`."""
    beside = _sum(off_field(off_amplitude, fields.all_real, fields.all_imag), arm)
    if beside is None:
        return fields.real, fields.imag
    on = np.complex64(1 - off_amplitude)
    real = fields.real * on.real - fields.imag * on.imag + beside.real
    imag = fields.imag * on.real + fields.real * on.imag + beside.imag
    return real, imag


@dataclass(frozen=True, eq=False)
class Sight:
    """How the camera sees a field.

    Parameters
    ----------
    on : numpy.complex64
        `1 - eps`, what the field of the mirrors that are on is multiplied by.
    beside : ndarray of complex64, shape (n_frames, 1 or 0, n_points)
        `eps G + r`; no row where it is 0.
    electrons_per_intensity : numpy.float32
        Photo-electrons for `|E|^2 = 1`; negative where the field itself is wanted.
    """

    on: np.complex64
    beside: NDArray[np.complex64]
    electrons_per_intensity: np.float32

    def of_frames(self, frames: slice) -> Sight:
        """Return the one of some frames."""
        return self if len(self.beside) < 2 else replace(self, beside=self.beside[frames])


BLIND = Sight(np.complex64(0), np.zeros((0, 1), np.complex64), _F(-1))
"""No camera: fields themselves are wanted."""


def sight(
    off_amplitude: complex,
    off: NDArray[np.complex64] | None,
    arm: NDArray[np.complex64] | None,
    electrons_per_intensity: float,
) -> Sight:
    """Return how the camera sees the field; parameters as of `light_electrons`, `off` being the `off_field`."""
    beside = _sum(off, arm)
    rows = np.zeros((0, 1), np.complex64) if beside is None else beside
    return Sight(np.complex64(1 - off_amplitude), rows, _F(electrons_per_intensity))


@njit(inline="always", cache=True)
def put_electrons(
    real: Any,
    imag: Any,
    at: Any,
    n: Any,
    on: Any,
    beside: Any,
    frame: Any,
    point: Any,
    electrons_per_intensity: Any,
    out: Any,
    target: Any,
) -> None:  # pragma: no cover - compiled
    """Compute photo-electrons of the `n` points of a frame from `point` on, to `out[target]` and following.

    Their fields lie from `real[at]` and `imag[at]` on. All arrays but `beside` are flat.
    """
    # Unsigned places: an index that could be negative keeps a loop from becoming vectors.
    at, target = np.uint64(at), np.uint64(target)
    if len(beside) == 0:
        for i in range(np.uint64(n)):
            x, y = real[at + i], imag[at + i]
            out[target + i] = (x * x + y * y) * electrons_per_intensity
    else:
        row, place = np.uint64(frame) % np.uint64(len(beside)), np.uint64(point)
        for i in range(np.uint64(n)):
            other = beside[row, place + i]
            x = real[at + i] * on.real - imag[at + i] * on.imag + other.real
            y = imag[at + i] * on.real + real[at + i] * on.imag + other.imag
            out[target + i] = (x * x + y * y) * electrons_per_intensity


@njit(parallel=True, cache=True)
def _light_electrons(
    real: Any, imag: Any, n_points: Any, on: Any, beside: Any, electrons_per_intensity: Any, out: Any
) -> None:  # pragma: no cover - compiled
    for frame in prange(len(out) // n_points):
        at = frame * n_points
        put_electrons(real, imag, at, n_points, on, beside, frame, 0, electrons_per_intensity, out, at)


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
    fields : Fields
        `F` and `G`, at `n_points`.
    off_amplitude : complex
        `eps`.
    arm : ndarray of complex64, shape (n_frames or 1, n_points), optional
        `r`.
    electrons_per_intensity : float
        Photo-electrons for `|E|^2 = 1`.
    out : ndarray of float32, shape (n_frames, n_points)
        Receives them.
    """
    seen = sight(
        off_amplitude, off_field(off_amplitude, fields.all_real, fields.all_imag), arm, electrons_per_intensity
    )
    put_light(fields.real, fields.imag, seen, out)


def put_light(real: NDArray[np.float32], imag: NDArray[np.float32], seen: Sight, out: NDArray[np.float32]) -> None:
    """Compute the mean photo-electrons of fields, shape (n_frames, n_points) as `out`."""
    with KernelTurn(_POINT_NS * out.size):
        _light_electrons(
            real.reshape(-1),
            imag.reshape(-1),
            out.shape[1],
            seen.on,
            seen.beside,
            seen.electrons_per_intensity,
            out.reshape(-1),
        )


def light_electrons_with_numpy(
    fields: Fields, off_amplitude: complex, arm: NDArray[np.complex64] | None, electrons_per_intensity: float
) -> NDArray[np.float32]:
    """Compute photo-electrons as `light_electrons`, in NumPy: the twin of the kernel, shape (n_frames, n_points)."""
    real, imag = total_field(fields, off_amplitude, arm)
    electrons: NDArray[np.float32] = (real * real + imag * imag) * _F(electrons_per_intensity)
    return electrons
