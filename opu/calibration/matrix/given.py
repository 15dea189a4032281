"""The matrix that a routine is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opu.calibration.matrix.matrix import TransmissionMatrix
from opu.calibration.matrix.measure import measure_transmission_matrix
from opu.errors import ConfigError

if TYPE_CHECKING:
    from opu.calibration.recorder import Recorder

__all__ = ["given_or_measured"]


def given_or_measured(
    matrix: TransmissionMatrix | None, recorder: Recorder, noise_key: int, n_features: int, n_outputs: int
) -> TransmissionMatrix:
    """Return a matrix that was given, or measure one and count its frames.

    Raises
    ------
    ConfigError
        What was given is no `TransmissionMatrix`.
    """
    if isinstance(matrix, TransmissionMatrix):
        return matrix
    if matrix is not None:
        raise ConfigError(
            f"The matrix is of the type {type(matrix).__name__!r}, and must be a TransmissionMatrix.",
            "Give what measure_transmission_matrix or load returns, which knows its session, medium and dark level.",
        )
    found = measure_transmission_matrix(
        recorder.device, n_features=n_features, n_outputs=n_outputs, noise_key=noise_key
    )
    recorder.frames += found.n_frames
    return found
