r"""How frames become a linear projection: five ways to let light interfere.

A camera sees `|E|^2`, which is not linear in the field `E`. With a reference field `r` it sees

    |E + r|^2 = |E|^2 + |r|^2 + 2 Re(conj(r) E),

and the last term is linear. A `Method` says in which frames a pattern is shown, and how `conj(r) E`, or its real part,
follows from them.

=============  =======  ==========================================  ===========================================
method         frames   the reference                               result
=============  =======  ==========================================  ===========================================
`off_axis`     1        an arm tilted against the speckle           complex: two outputs for a place
`pi`           2        an arm whose phase steps by pi              real
`anchor`       2        mirrors of the same DMD                     real; `|E|^2` of both is subtracted
`four_step`    4        an arm whose phase steps by pi / 2          complex
`three_step`   3        an arm whose phase steps by 2 pi / 3        complex
=============  =======  ==========================================  ===========================================

Best first: the fewest frames for an output, then the best ratio of signal to noise. With photon noise alone that
ratio is
`4 S / ((1 + rho)(1 + 1 / rho))` for `pi` and `2 S / ((1 + rho)(1 + 2 / rho))` for `anchor`, `S` the photo-electrons of
the pattern and `rho` the brightness of the reference relative to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.device import NO_REFERENCE, REFERENCE_STEPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import DeviceDescription, Region

__all__ = ["ANCHOR", "METHODS", "Method", "available_methods", "off_axis_field"]

ANCHOR = "anchor"
_PIXELS_AT_ONCE = 2**21
"""Of holograms; their Fourier transforms take some 60 bytes for each."""


@dataclass(frozen=True)
class Method:
    """A way to a linear projection.

    Parameters
    ----------
    name : str
        As in `METHODS`.
    reference : str
        `SessionConfig.reference` of its session.
    n_frames : int
        Frames for a binary pattern.
    is_complex : bool
        Whether it gives real and imaginary parts, two outputs for each place.
    """

    name: str
    reference: str
    n_frames: int
    is_complex: bool

    def demodulate(
        self, frames: NDArray[Any], pixels: NDArray[np.int32], region: Region, carrier: tuple[float, float] | None
    ) -> NDArray[np.float32]:
        """Compute `conj(r) E` in DN, up to what does not depend on the pattern.

        Parameters
        ----------
        frames : ndarray, shape (batch, n_frames, n_session_outputs)
            Counts: the frames of each pattern.
        pixels : ndarray of int32, shape (n_places,)
            The outputs of the session whose field is wanted.
        region : Region
            Where the outputs lie: for `off_axis` they fill it, row by row.
        carrier : tuple of two floats or None
            `DeviceDescription.reference_carrier`, for `off_axis`.

        Returns
        -------
        ndarray of float32, shape (batch, n_places) or (batch, 2 n_places)
            Real parts; then the imaginary ones, where there are any.
        """
        if self.name == "off_axis":
            if carrier is None:
                raise ValueError("off-axis holography without a carrier")
            images = frames[:, 0].reshape(len(frames), region.height, region.width)
            step = max(1, _PIXELS_AT_ONCE // (region.height * region.width))
            some = (off_axis_field(images[i : i + step], carrier) for i in range(0, len(images), step))
            return np.concatenate([_quadratures(field.reshape(len(field), -1)[:, pixels]) for field in some])
        used = frames[:, :, pixels].astype(np.float32)
        if self.name == ANCHOR:
            return (used[:, 0] - used[:, 1]) * np.float32(0.5)
        if self.name == "pi":
            return (used[:, 0] - used[:, 1]) * np.float32(0.25)
        phases = np.exp(2j * np.pi * np.arange(self.n_frames) / self.n_frames).astype(np.complex64)
        return _quadratures(np.einsum("k,bkp->bp", phases / np.float32(self.n_frames), used))


def _quadratures(field: NDArray[np.complexfloating[Any, Any]]) -> NDArray[np.float32]:
    return np.concatenate([field.real, field.imag], axis=1).astype(np.float32)


def off_axis_field(
    images: NDArray[Any], carrier: tuple[float, float], bandwidth: float | None = None
) -> NDArray[np.complex128]:
    """Reconstruct complex fields from off-axis holograms.

    The side band around the carrier is moved to the middle of the spectrum and cut out. A speckle whose pupil has the
    radius `b` in cycles per pixel needs `|carrier| >= 3 b`, so that the side band does not touch the spectrum of
    `|E|^2`, which reaches to `2 b`.

    Parameters
    ----------
    images : ndarray, shape (batch, rows, columns)
        Counts.
    carrier : tuple of two floats
        Cycles per pixel along rows and columns.
    bandwidth : float, optional
        Radius of the disc that is cut out, in cycles per pixel; default a third of the carrier.

    Returns
    -------
    ndarray of complex128, shape (batch, rows, columns)
        `conj(r) E` but for a phase that is the same in all images. A margin of about `1 / bandwidth` pixels is
        disturbed by the edges.
    """
    n_rows, n_columns = images.shape[1:]
    radius = np.hypot(*carrier) / 3 if bandwidth is None else bandwidth
    rows, columns = np.arange(n_rows)[:, np.newaxis], np.arange(n_columns)
    to_middle = np.exp(2j * np.pi * (carrier[0] * rows + carrier[1] * columns))
    disc = np.hypot(np.fft.fftfreq(n_rows)[:, np.newaxis], np.fft.fftfreq(n_columns)) <= radius
    # Without the mean the bright middle of the spectrum does not leak into the disc.
    centred = images - images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    field: NDArray[np.complex128] = np.fft.ifft2(np.fft.fft2(centred * to_middle) * disc)
    return field


METHODS = {
    method.name: method
    for method in (
        Method("off_axis", "off_axis", 1, is_complex=True),
        Method("pi", "pi", 2, is_complex=False),
        Method(ANCHOR, NO_REFERENCE, 2, is_complex=False),
        Method("four_step", "four_step", REFERENCE_STEPS["four_step"], is_complex=True),
        Method("three_step", "three_step", REFERENCE_STEPS["three_step"], is_complex=True),
    )
}
"""The methods by name, the best one first."""


def available_methods(description: DeviceDescription) -> list[str]:
    """Return the names of the methods that a device offers, the best one first."""
    return [method.name for method in METHODS.values() if method.reference in description.references]
