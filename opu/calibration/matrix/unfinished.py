"""What an interrupted measurement of a matrix leaves in a file, so that the next one goes on from there."""

from __future__ import annotations

import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from opu.calibration.hdf5 import is_complete, read_sealed, write_sealed
from opu.calibration.matrix.retrieval import FinishedRows
from opu.calibration.recorder import Costs
from opu.device import Provenance, Region, SessionConfig
from opu.errors import ConfigError, DataFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMAT", "MatrixSettings", "Start", "UnfinishedMatrix"]

_Identity = tuple[int, int, int]

FORMAT = "openopu.unfinished_matrix/1"
_DTYPES = {
    "dark": "uint16",
    "first": "uint16",
    "frames": "uint16",
    "done": "bool",
    "coefficients": "complex64",
    "residuals": "float32",
}
_WORK_PER_SAVE = 10.0
"""The file is written anew after this multiple of the time that the last writing took: a large one less often."""


class MatrixSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To what the frames of a measurement belong; frames of others are not mixed with them."""

    device_id: str
    medium_id: str
    medium_epoch: int
    calibration_id: str | None
    n_features: int
    n_outputs: int
    method: str
    oversampling: float
    n_anchors: int
    region: Region | None
    stride: int
    noise_key: int
    n_dark: int
    n_first: int


class _StartMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    exposed: SessionConfig
    config: SessionConfig
    provenance: Provenance


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    settings: MatrixSettings
    start: _StartMeta
    costs: Costs
    patterns_crc32: int
    rows_fingerprint: int


@dataclass(frozen=True, eq=False)
class Start:
    """What is measured before the patterns of a matrix.

    Parameters
    ----------
    exposed : SessionConfig
        That of the patterns.
    config : SessionConfig
        The complete one of a session without a reference arm.
    provenance : Provenance
        Of `first`.
    dark : ndarray, shape (n_dark, n_outputs)
        Frames without light.
    first : ndarray, shape (n_first, n_outputs)
        Frames with all features off, and of patterns that are shown again at the end.
    """

    exposed: SessionConfig
    config: SessionConfig
    provenance: Provenance
    dark: NDArray[Any]
    first: NDArray[Any]


class UnfinishedMatrix:
    """The frames taken and the rows finished so far, kept in a file if one is named.

    A context: whatever ends it early, all is saved; at its end the file is deleted. A file that something else has put
    in its place, such as another measurement with the same file, is neither replaced nor deleted. Writing that fails
    meanwhile is tried again later.

    Parameters
    ----------
    path : path or None
        The file.
    settings : MatrixSettings
        Of the measurement.

    Attributes
    ----------
    start : Start or None
        None before it is measured.
    frames : ndarray, shape (n_taken, n_outputs)
        Of the patterns, the first ones.
    rows : FinishedRows or None
        None before the first batch of rows.
    costs : Costs or None
        The books with the last of the frames.
    """

    def __init__(self, path: Path | None, settings: MatrixSettings) -> None:
        self.path = path
        self.settings = settings
        self.start: Start | None = None
        self.frames: NDArray[Any] = np.zeros((0, settings.n_outputs), np.uint16)
        self.rows: FinishedRows | None = None
        self.costs: Costs | None = None
        self._patterns_crc32 = 0
        self._is_saved = True
        self._due_s = 0.0
        self._written: _Identity | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, settings: MatrixSettings) -> Self:
        """Read the file, if there is one.

        Raises
        ------
        ConfigError
            Its frames belong to another device, medium or epoch, or were taken for other settings.
        DataFileError
            It is damaged, or something else.
        MissingExtraError
            The extra `hdf5` is not installed.
        """
        unfinished = cls(None if path is None else Path(path), settings)
        if unfinished.path is not None and unfinished.path.exists():
            unfinished._read(unfinished.path)
        return unfinished

    def begin(self, start: Start, costs: Costs) -> None:
        """Keep what was measured before the patterns.

        Raises
        ------
        DataFileError
            The file cannot be written, or there is another one by now.
        """
        self.start, self.costs = start, costs
        self._is_saved = False
        self.save()

    def check_patterns(self, patterns: NDArray[np.bool_]) -> None:
        """Check that the frames in the file are those of these patterns.

        Raises
        ------
        ConfigError
            They are not.
        """
        crc32 = zlib.crc32(np.packbits(patterns, axis=1).data)
        if len(self.frames) > 0 and (crc32 != self._patterns_crc32 or len(self.frames) > len(patterns)):
            raise ConfigError(
                f"The frames in {str(self.path)!r} are those of other patterns: another version has shown them.",
                self._remedy,
            )
        self._patterns_crc32 = crc32

    def keep_frames(self, frames: NDArray[Any], costs: Costs) -> None:
        """Keep all frames of the patterns so far."""
        self.frames, self.costs = frames, costs
        self._note()

    def keep_rows(self, rows: FinishedRows) -> None:
        """Keep all rows so far."""
        self.rows = rows
        self._note()

    def save(self) -> None:
        """Write the file, if there is anything new to keep.

        Raises
        ------
        DataFileError
            It cannot be written, or there is another one by now.
        """
        if self.path is None or self.start is None or self.costs is None or self._is_saved:
            return
        started_s = time.monotonic()
        try:
            self._write(self.path, self.start, self.costs)
        finally:
            now_s = time.monotonic()
            self._due_s = now_s + _WORK_PER_SAVE * (now_s - started_s)
        self._is_saved = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self.save()
        elif self.path is not None and self._written is not None and _identity(self.path) == self._written:
            self.path.unlink(missing_ok=True)

    @property
    def _remedy(self) -> str:
        return f"Measure as before to go on, or delete {str(self.path)!r} to begin anew."

    def _note(self) -> None:
        self._is_saved = False
        if time.monotonic() >= self._due_s:
            # What is lost by that is told where it is lost: at an early end.
            with suppress(DataFileError):
                self.save()

    def _write(self, path: Path, start: Start, costs: Costs) -> None:
        present = _identity(path)
        if present is not None and present != self._written:
            raise DataFileError(
                f"Something else has written {str(path)!r} during this measurement.",
                "Name a file for each measurement.",
            )
        rows = self.rows
        meta = _Meta(
            settings=self.settings,
            start=_StartMeta(exposed=start.exposed, config=start.config, provenance=start.provenance),
            costs=costs,
            patterns_crc32=self._patterns_crc32,
            rows_fingerprint=0 if rows is None else rows.fingerprint,
        )
        arrays = {
            "dark": start.dark,
            "first": start.first,
            "frames": self.frames,
            "done": np.zeros(0) if rows is None else rows.done,
            "coefficients": np.zeros((0, 0)) if rows is None else rows.coefficients,
            "residuals": np.zeros(0) if rows is None else rows.residuals,
        }
        write_sealed(
            path, FORMAT, meta, {name: array.astype(_DTYPES[name], copy=False) for name, array in arrays.items()}
        )
        self._written = _identity(path)

    def _read(self, path: Path) -> None:
        self._written = _identity(path)
        delete = "Delete it to begin anew."
        meta, arrays = read_sealed(path, FORMAT, _Meta, _DTYPES, "The unfinished matrix", remedy=delete)
        self._check_settings(meta.settings)
        if wrong := _inconsistent(meta, arrays):
            raise DataFileError(
                f"The unfinished matrix {str(path)!r} is damaged: its {', '.join(wrong)} cannot be right.",
                delete,
            )
        start = meta.start
        self.start = Start(start.exposed, start.config, start.provenance, arrays["dark"], arrays["first"])
        self.costs = meta.costs
        self.frames = arrays["frames"]
        self._patterns_crc32 = meta.patterns_crc32
        if len(arrays["done"]):
            self.rows = FinishedRows(arrays["done"], arrays["coefficients"], arrays["residuals"], meta.rows_fingerprint)

    def _check_settings(self, saved: MatrixSettings) -> None:
        """Check that the frames of the file are of the device, the medium and the settings of this measurement."""
        differing = [
            (name, getattr(saved, name), getattr(self.settings, name))
            for name in MatrixSettings.__struct_fields__
            if getattr(saved, name) != getattr(self.settings, name)
        ]
        if not differing:
            return
        text = ", ".join(f"{name} was {old} and is {new}" for name, old, new in differing)
        raise ConfigError(f"The frames in {str(self.path)!r} belong to another measurement: {text}.", self._remedy)


def _identity(path: Path) -> _Identity | None:
    """Return what tells a file from another of its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _inconsistent(meta: _Meta, arrays: dict[str, NDArray[Any]]) -> list[str]:
    """Return the names of the parts of a file that do not fit each other."""
    n_outputs, n_features = meta.settings.n_outputs, meta.settings.n_features
    n_rows = len(arrays["done"]) if arrays["done"].ndim == 1 else -1
    coefficients = arrays["coefficients"]
    configs = (meta.start.exposed, meta.start.config)
    fitting = {
        "config": is_complete(meta.start.config)
        and all((config.n_features, config.n_outputs) == (n_features, n_outputs) for config in configs),
        "dark": arrays["dark"].shape == (meta.settings.n_dark, n_outputs),
        "first": arrays["first"].shape == (meta.settings.n_first, n_outputs),
        "frames": arrays["frames"].ndim == 2 and arrays["frames"].shape[1] == n_outputs,
        "done": n_rows in (0, n_outputs),
        "coefficients": n_rows == 0
        or (coefficients.shape in ((n_rows, n_features), (n_rows, n_features + 1)) and _is_finite(coefficients)),
        "residuals": arrays["residuals"].shape == (n_rows,) and _is_finite(arrays["residuals"]),
        "costs": min(meta.costs.frames, meta.costs.next_frame_index) >= 0,
    }
    return [name for name, fits in fitting.items() if not fits]


def _is_finite(array: NDArray[Any]) -> bool:
    return bool(np.isfinite(array).all())
