"""Files that users name: tried before the work whose result they get, and read without trust."""

from __future__ import annotations

import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.errors import DataFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["aside", "check_writable", "read_arrays", "sync_folder", "unwritable"]

_ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")


def unwritable(path: str | os.PathLike[str], error: OSError) -> DataFileError:
    """Return the error that says why a file cannot be written."""
    return DataFileError(
        f"The file {os.fspath(path)!r} cannot be written: {error.strerror or error}.",
        "Name a file in a directory that exists, with enough space and the right to write there.",
    )


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, and leave it as it is.

    Parameters
    ----------
    path : str or path
        The file, which need not exist.

    Raises
    ------
    DataFileError
        It cannot be written.
    """
    target = Path(path)
    try:
        is_new = not target.exists()
        with target.open("ab"):
            pass
        if is_new:
            target.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def aside(target: Path) -> Path:
    """Return a name that nobody else has, beside a file, under which it is written before it gets its own."""
    return target.with_name(f".{secrets.token_hex(8)}.part")


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, too, where it can be: those of files that were written and renamed.

    No error is raised: the files are there. Only a loss of power could still undo their names, on a file system that
    does not synchronise folders, or in a folder that may not be read.
    """
    if os.name != "posix":
        return  # elsewhere folders cannot be opened
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the arrays of a `.npz` file.

    Parameters
    ----------
    content : bytes
        What the file holds.

    Returns
    -------
    dict of ndarray
        The arrays by name.

    Raises
    ------
    ValueError
        It is no such file, or holds Python objects. Damaged ones raise a dozen other classes.
    """
    # What does not look like an archive, NumPy would take for a pickle, and advise to load it as one.
    if not content.startswith(_ZIP_SIGNATURES):
        raise ValueError("it is no .npz archive")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except ValueError as error:
                raise ValueError(f"its array {name!r} is damaged, or holds Python objects") from error
    return arrays
