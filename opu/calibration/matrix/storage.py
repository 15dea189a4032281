"""Transmission matrices in files, see `opu.calibration.hdf5`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.hdf5 import is_complete, read_sealed, write_sealed
from opu.calibration.matrix.matrix import TransmissionMatrix
from opu.device import SessionConfig
from opu.errors import DataFileError, MediumChangedError

if TYPE_CHECKING:
    from opu.device import Device

__all__ = ["FORMAT", "check_medium", "load", "save"]

FORMAT = "openopu.transmission_matrix/1"
_DTYPES = {
    "matrix": "complex64",
    "background": "complex64",
    "dark_dn": "float32",
    "row_quality": "float32",
    "kept": "bool",
}


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a saved matrix holds beside its arrays."""

    config: SessionConfig
    method: str
    n_frames: int
    device_id: str
    medium_id: str
    medium_epoch: int
    measured_unix_s: float
    laser_power_mw: float | None


def save(matrix: TransmissionMatrix, path: str | os.PathLike[str]) -> None:
    """Save a matrix as HDF5; the file is written aside and renamed.

    Parameters
    ----------
    matrix : TransmissionMatrix
        What was measured.
    path : str or path
        The file.

    Raises
    ------
    DataFileError
        The file cannot be written.
    MissingExtraError
        The extra `hdf5` is not installed.
    """
    meta = _Meta(**{name: getattr(matrix, name) for name in _Meta.__struct_fields__})
    arrays = {name: np.asarray(getattr(matrix, name), dtype) for name, dtype in _DTYPES.items()}
    write_sealed(path, FORMAT, meta, arrays)


def load(path: str | os.PathLike[str], device: Device | None = None) -> TransmissionMatrix:
    """Load a saved matrix, and check that it still holds.

    Parameters
    ----------
    path : str or path
        The file.
    device : Device, optional
        The device on which it will be used.

    Returns
    -------
    TransmissionMatrix
        What was saved.

    Raises
    ------
    MediumChangedError
        The medium of the device is not the one that was measured, or has changed for good since.
    DataFileError
        The file is missing, damaged, or no transmission matrix.
    MissingExtraError
        The extra `hdf5` is not installed.
    """
    meta, arrays = read_sealed(path, FORMAT, _Meta, _DTYPES, "The matrix")
    fields: dict[str, Any] = {**arrays, **msgspec.structs.asdict(meta)}
    matrix = TransmissionMatrix(**fields)
    if wrong := _inconsistent(matrix):
        raise DataFileError(
            f"The matrix {os.fspath(path)!r} is damaged: its {', '.join(wrong)} cannot be right.", "Measure it again."
        )
    if device is not None:
        check_medium(matrix, device)
    return matrix


def check_medium(matrix: TransmissionMatrix, device: Device) -> None:
    """Check that a matrix is that of a device's medium as it is.

    Raises
    ------
    MediumChangedError
        It is not.
    """
    medium = device.describe().medium
    if (medium.medium_id, medium.epoch) != (matrix.medium_id, matrix.medium_epoch):
        raise MediumChangedError(
            f"The matrix was measured through the medium {matrix.medium_id}, epoch {matrix.medium_epoch}; the device "
            f"{device.uri} has {medium.medium_id}, epoch {medium.epoch}.",
            "Measure it again.",
        )


def _inconsistent(matrix: TransmissionMatrix) -> list[str]:
    """Return the names of the parts of a matrix that do not fit each other."""
    config = matrix.config
    n_outputs = config.n_outputs
    vectors = {name: getattr(matrix, name) for name in ("background", "dark_dn", "row_quality", "kept")}
    fitting = {
        "config": is_complete(config),
        "matrix": matrix.matrix.shape == (n_outputs, config.n_features) and bool(np.isfinite(matrix.matrix).all()),
        **{name: array.shape == (n_outputs,) for name, array in vectors.items()},
        "n_frames": matrix.n_frames >= 0,
        "measured_unix_s": bool(np.isfinite(matrix.measured_unix_s)),
    }
    for name in ("background", "dark_dn"):
        fitting[name] &= bool(np.isfinite(vectors[name]).all())
    return [name for name, fits in fitting.items() if not fits]
