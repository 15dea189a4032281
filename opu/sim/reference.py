r"""The reference arm: light that goes around the medium and meets the speckle on the camera.

Its intensity is::

    I = |E + r exp(i (phi_i + 2 pi k . u))|^2

with `u` the place of the pixel (row, column), `k` the carrier in cycles per pixel, and the phase `phi_i = 2 pi i / n`
of frame number `i`, for `n` steps. A session chooses how it is used:

=============  ========================================================================
`pi`           two phases, 0 and pi: `(I_0 - I_1) / (4 |r|) = Re(E conj(r)) / |r|`
`three_step`   `1/3 sum_k exp(2 pi i k / 3) I_k = E conj(r)`, complex
`four_step`    `1/4 sum_k exp(2 pi i k / 4) I_k = E conj(r)`, complex
`off_axis`     one phase: the field stands in the side band around the carrier
=============  ========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.device import NO_REFERENCE, REFERENCE_STEPS
from opu.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ReferenceModel", "reference_field"]


@dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    """A reference arm.

    Parameters
    ----------
    uses : tuple of str
        What it can do, of `opu.device.REFERENCE_STEPS`; empty without an arm.
    electrons_per_us : float
        Mean photo-electrons that it gives a pixel in a microsecond.
    carrier_cycles_per_px : tuple of two floats
        Its tilt against the speckle: fringes along rows and columns.
    """

    uses: tuple[str, ...] = ()
    electrons_per_us: float = 0.0
    carrier_cycles_per_px: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        known = [use for use in REFERENCE_STEPS if use != NO_REFERENCE]
        if not set(self.uses) <= set(known) or not self.electrons_per_us >= 0:
            raise ConfigError(
                f"The reference arm has the uses {self.uses} and {self.electrons_per_us} electrons/us.",
                f"Use {', '.join(known)}, and electrons from 0 on.",
            )


def reference_field(
    model: ReferenceModel,
    use: str,
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    first_frame_index: int,
    n_frames: int,
) -> NDArray[np.complex64]:
    """Return the field of the arm, in units of the square root of photo-electrons per microsecond.

    Parameters
    ----------
    model : ReferenceModel
        The arm.
    use : str
        A key of `opu.device.REFERENCE_STEPS`.
    rows, columns : ndarray of float64, shape (n_points,)
        Where, in pixels.
    first_frame_index, n_frames : int
        The frames.

    Returns
    -------
    ndarray of complex64, shape (n_frames, n_points), or (1, n_points) where all frames have one phase
    """
    n_steps = REFERENCE_STEPS[use]
    carrier = model.carrier_cycles_per_px
    along = np.sqrt(model.electrons_per_us) * np.exp(2j * np.pi * (carrier[0] * rows + carrier[1] * columns))
    number = first_frame_index % n_steps + np.arange(n_frames if n_steps > 1 else 1)
    # Exact for two and four steps: the powers of -1 and of i.
    step = np.round(np.exp(2j * np.pi * np.arange(n_steps) / n_steps), 15)
    field: NDArray[np.complex64] = (step[number % n_steps][:, np.newaxis] * along).astype(np.complex64)
    return field
