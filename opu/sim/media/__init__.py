"""Scattering media: random complex matrices from mirrors to points of the camera plane, defined by counters.

`explicit` and `matrix_free` are the same matrix, computed in two ways; `gaussian` has Gaussian entries at the price of
speed; `structured` takes n log n operations for a million mirrors and points; `layered` is a stack of phase screens,
for the memory effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opu.sim.media.base import Medium
    from opu.sim.models import BenchModel

__all__ = ["MEDIA", "make_medium"]

MEDIA = ("explicit", "matrix_free", "gaussian", "structured", "layered")


def make_medium(name: str, seed: int, model: BenchModel) -> Medium:
    """Make a medium.

    Parameters
    ----------
    name : str
        One of `MEDIA`.
    seed : int
        From 0 to 2**64 - 1.
    model : BenchModel
        Says how large DMD and sensor are, and what phase screens there are.
    """
    if name == "matrix_free":
        from opu.sim.media.matrix_free import MatrixFreeMedium

        return MatrixFreeMedium(seed)
    if name == "gaussian":
        from opu.sim.media.gaussian import GaussianMedium

        return GaussianMedium(seed)
    if name == "structured":
        from opu.sim.media.structured import StructuredMedium

        return StructuredMedium(seed, model.n_mirrors)
    if name == "layered":
        from opu.sim.media.layered import LayeredMedium

        return LayeredMedium(seed, (model.dmd.rows, model.dmd.columns), model.camera.columns, model.screens)
    from opu.sim.media.explicit import ExplicitMedium

    return ExplicitMedium(seed)
