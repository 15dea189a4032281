"""Checkpoints: a training put down between two steps, to be taken up by another process.

A checkpoint is a `.npz` file without pickle. It is written aside, flushed to the disk and renamed, so at every moment
the file of the given name is a whole one, the old or the new. What chance decides is not stored but recreated from
the seed, the epoch and the number of the next frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dfa_client.settings import TrainingSettings
from opu.errors import DataFileError
from opu.files import read_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Checkpoint", "EpochRecord", "Tally", "load_checkpoint", "save_checkpoint"]

_FORMAT = "openopu.checkpoint/1"


class EpochRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in an epoch.

    `loss` is the mean cross-entropy in nats and `train_accuracy` the fraction that was right, both over the epoch's
    batches as they came, before each was learned from. `seconds` is wall-clock time of the learning alone. `frames`
    and `device_s` are what a device measured for it and booked. `alignment_deg` are the angles between the feedback's
    gradient and the true one in degrees, one for each hidden layer, averaged over the steps; None where nobody
    asked, or no angle is defined.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    seconds: float
    frames: int
    device_s: float
    alignment_deg: list[float | None] | None


class Tally(msgspec.Struct, kw_only=True):
    """The sums of an epoch that is under way."""

    n_samples: int = 0
    n_correct: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    frames: int = 0
    device_us: float = 0.0
    angle_sums: list[float] = msgspec.field(default_factory=list)
    angle_counts: list[int] = msgspec.field(default_factory=list)


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    settings: TrainingSettings
    data_checksum: int
    n_steps: int
    next_frame_index: int
    tally: Tally
    records: list[EpochRecord]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The whole state of a training between two steps.

    Parameters
    ----------
    settings : TrainingSettings
        What is trained.
    data_checksum : int
        `Dataset.checksum` of the training images.
    n_steps : int
        Steps made so far, over all epochs.
    parameters, first_moment, second_moment : ndarray of float32, shape (n_parameters,)
        The network and the state of Adam.
    next_frame_index : int
        The number of the next frame; 0 without a device.
    linear_map : bytes
        The feedback matrix of a device as `LinearMap.to_bytes` gives it; empty without a device.
    tally : Tally
        The sums of the epoch that is under way.
    records : list of EpochRecord
        The epochs that are over.
    """

    settings: TrainingSettings
    data_checksum: int
    n_steps: int
    parameters: NDArray[np.float32]
    first_moment: NDArray[np.float32]
    second_moment: NDArray[np.float32]
    next_frame_index: int = 0
    linear_map: bytes = b""
    tally: Tally = field(default_factory=Tally)
    records: list[EpochRecord] = field(default_factory=list)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Save a checkpoint in place of an older one, which stays readable until the new one is on the disk.

    Raises
    ------
    DataFileError
        The file cannot be written.
    """
    meta = _Meta(
        format=_FORMAT,
        settings=checkpoint.settings,
        data_checksum=checkpoint.data_checksum,
        n_steps=checkpoint.n_steps,
        next_frame_index=checkpoint.next_frame_index,
        tally=checkpoint.tally,
        records=checkpoint.records,
    )
    target = Path(path)
    aside = target.with_name(f"{target.name}.part")
    try:
        with aside.open("wb") as stream:
            np.savez(
                stream,
                meta=np.frombuffer(msgspec.json.encode(meta), np.uint8),
                parameters=checkpoint.parameters,
                first_moment=checkpoint.first_moment,
                second_moment=checkpoint.second_moment,
                linear_map=np.frombuffer(checkpoint.linear_map, np.uint8),
            )
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise DataFileError(
            f"The checkpoint {str(target)!r} cannot be written: {error}.",
            "Name a file in a directory that exists, with enough space.",
        ) from error


def _sync_directory(directory: Path) -> None:
    """Put the new name on the disk, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a checkpoint.

    Raises
    ------
    DataFileError
        The file is missing, damaged, or no checkpoint.
    """
    name = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataFileError(
            f"The checkpoint {name!r} cannot be read: {error}.",
            "Check the path; to begin a new training leave --resume out.",
        ) from error
    try:
        arrays = read_arrays(content)
        meta = msgspec.json.decode(arrays["meta"].tobytes(), type=_Meta)
        if meta.format != _FORMAT:
            raise ValueError(f"its format is {meta.format!r}, not {_FORMAT!r}")
        return Checkpoint(
            settings=meta.settings,
            data_checksum=meta.data_checksum,
            n_steps=meta.n_steps,
            parameters=arrays["parameters"],
            first_moment=arrays["first_moment"],
            second_moment=arrays["second_moment"],
            next_frame_index=meta.next_frame_index,
            linear_map=arrays["linear_map"].tobytes(),
            tally=meta.tally,
            records=meta.records,
        )
    except Exception as error:  # numpy, zipfile, zlib and msgspec raise a dozen classes for damaged content
        raise DataFileError(
            f"The checkpoint {name!r} is damaged, or no checkpoint: {error}.",
            "Use an older copy, or begin a new training without --resume.",
        ) from error
