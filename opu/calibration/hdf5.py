"""Sealed HDF5 files: a few arrays and a page of JSON, read without trust.

HDF5 is a language of its own: links into other files, objects, filters, sizes that nothing holds. These files use none
of it. Their root has datasets of plain numbers, stored in one piece, and two attributes, `format` and `meta` (JSON).
Before the HDF5 data, in the *user block* that the format leaves to applications, stands a seal with the SHA-256 of all
that follows: damage is noticed before the HDF5 library looks at it. Any HDF5 reader can read the files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from opu.errors import DataFileError, MissingExtraError
from opu.files import aside, sync_folder, unwritable

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from opu.device import Region, SessionConfig

__all__ = ["check_target", "is_complete", "is_on_a_sensor", "read_sealed", "seal", "write_sealed"]

_SEAL = b"OpenOPU sealed HDF5 1\n"
_BLOCK_BYTES = 512  # the least that HDF5 allows
_CHUNK_BYTES = 2**20
_LARGEST_META_BYTES = 60_000  # attributes hold up to 64 KiB
_LARGEST_SIDE_PX = 2**20  # more than any sensor has

MetaT = TypeVar("MetaT")


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as missing:
        raise MissingExtraError(
            "Matrices and calibrations are HDF5 files, and h5py is not installed.",
            "Install the extra hdf5: pip install 'openopu[hdf5]'.",
        ) from missing
    module: ModuleType = h5py
    return module


def check_target(path: str | os.PathLike[str], form: str, what: str) -> None:
    """Check, before the work whose result it gets, that a file can be written, and takes the place of nothing else.

    Parameters
    ----------
    path : str or path
        The file, which need not exist.
    form : str
        What a file that is there must hold, as for `write_sealed`.
    what : str
        What that is for people: `calibration`.

    Raises
    ------
    DataFileError
        It cannot be written, is a folder, a device or a pipe, or holds something else.
    MissingExtraError
        The extra `hdf5` is not installed.
    """
    h5py = _h5py()
    target = Path(path)
    if target.exists() and not target.is_file():
        raise DataFileError(f"{os.fspath(path)!r} is no regular file.", "Name a file.")
    trial = aside(target)
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
        if target.exists():
            _check_seal(target)
            with h5py.File(target, "r") as file:
                _check_form(h5py, file, form)
    except ValueError as error:
        problem = f"The file {os.fspath(path)!r} is there, and is no {what}, or a damaged one: {error}."
        raise DataFileError(problem, "Delete it or move it away, or name another file.") from error
    except OSError as error:
        raise unwritable(path, error) from error


def _check_form(h5py: ModuleType, file: Any, form: str) -> None:
    if _text(h5py, file, "format") != form.encode():
        raise ValueError(f"its format is not {form!r}")


def write_sealed(
    path: str | os.PathLike[str], form: str, meta: msgspec.Struct, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write a file aside and rename it: under its name there is always a whole one, whoever else writes it, too.

    Parameters
    ----------
    path : str or path
        The file.
    form : str
        What it holds, with a version: `openopu.transmission_matrix/1`.
    meta : Struct
        What is not an array.
    arrays : mapping of str to ndarray
        Numbers and Booleans.

    Raises
    ------
    DataFileError
        The file cannot be written.
    MissingExtraError
        The extra `hdf5` is not installed.
    """
    h5py = _h5py()
    target = Path(path)
    try:
        written = aside(target)
        try:
            with h5py.File(written, "x", libver="v110", userblock_size=_BLOCK_BYTES) as file:
                file.attrs["format"] = np.bytes_(form)
                file.attrs["meta"] = np.bytes_(msgspec.json.encode(meta))
                for name, array in arrays.items():
                    file.create_dataset(name, data=array)
            seal(written)
            written.replace(target)
            sync_folder(target.parent)
        finally:
            written.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def seal(path: str | os.PathLike[str]) -> None:
    """Write the seal of a file into its user block, and have it all on the disk."""
    with Path(path).open("r+b") as file:
        file.seek(_BLOCK_BYTES)
        digest = _digest(file)
        file.seek(0)
        file.write((_SEAL + digest + b"\n").ljust(_BLOCK_BYTES, b"\0"))
        file.flush()
        os.fsync(file.fileno())


def _digest(file: Any) -> bytes:
    """Return the SHA-256, in hexadecimal, of the rest of a file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest().encode()


def read_sealed(
    path: str | os.PathLike[str],
    form: str,
    meta_type: type[MetaT],
    dtypes: Mapping[str, str],
    what: str,
    *,
    remedy: str = "Use a file that OpenOPU has written.",
) -> tuple[MetaT, dict[str, NDArray[Any]]]:
    """Read a file that `write_sealed` has written.

    Parameters
    ----------
    path : str or path
        The file.
    form : str
        What it must hold.
    meta_type : type
        The struct of what is not an array.
    dtypes : mapping of str to str
        The arrays that it must have, and their types.
    what : str
        What the file is for people: `The matrix`.
    remedy : str
        What to do about a file that is damaged or something else.

    Returns
    -------
    tuple of (Struct, dict of ndarray)
        The arrays may have any shape: whoever reads them checks that they fit each other.

    Raises
    ------
    DataFileError
        The file is missing, damaged, of another form, or uses more of HDF5 than these files do.
    MissingExtraError
        The extra `hdf5` is not installed.
    """
    h5py = _h5py()
    name = f"{what} {os.fspath(path)!r}"
    try:
        n_bytes = _check_seal(Path(path))
        with h5py.File(path, "r") as file:
            _check_form(h5py, file, form)
            meta = msgspec.json.decode(_text(h5py, file, "meta"), type=meta_type)
            datasets = {key: _plain_dataset(h5py, file, key, dtype) for key, dtype in dtypes.items()}
            if set(file) != set(datasets):
                raise ValueError("it holds more than it should")
            if sum(dataset.nbytes for dataset in datasets.values()) > n_bytes:
                raise ValueError("its arrays are larger than the file")
            return meta, {key: dataset[()] for key, dataset in datasets.items()}
    except OSError as error:
        if error.errno is None:  # HDF5's own
            raise _damaged(name, error, remedy) from error
        raise DataFileError(f"{name} cannot be read: {error.strerror}.", "Check the path.") from error
    except Exception as error:  # h5py and msgspec raise a dozen classes for what they do not understand
        raise _damaged(name, error, remedy) from error


def is_on_a_sensor(region: Region) -> bool:
    """Whether a region that was read can be one of a camera.

    Examples
    --------
    >>> from opu.device import Region
    >>> is_on_a_sensor(Region(0, 0, 1, 10)), is_on_a_sensor(Region(0, -1, 1, 10))
    (True, False)
    """
    spans = ((region.row, region.height), (region.column, region.width))
    return all(start >= 0 and length >= 1 and start + length <= _LARGEST_SIDE_PX for start, length in spans)


def is_complete(config: SessionConfig) -> bool:
    """Whether a configuration that was read can be the complete one of a session: with an exposure, and its pixels.

    Examples
    --------
    >>> from opu.device import Region, SessionConfig
    >>> region = Region(0, 0, 1, 10)
    >>> [
    ...     is_complete(SessionConfig(n_features=1, n_outputs=n_outputs, region=region, exposure_us=400.0))
    ...     for n_outputs in (10, 11)
    ... ]
    [True, False]
    """
    region, stride = config.region, config.stride
    if region is None or config.exposure_us is None or stride < 1 or not is_on_a_sensor(region):
        return False
    return 1 <= config.n_outputs <= -(-region.height // stride) * -(-region.width // stride)


def _damaged(name: str, error: Exception, remedy: str) -> DataFileError:
    from opu.console import plain

    reason = plain(str(error)) or type(error).__name__
    return DataFileError(f"{name} is damaged, or something else: {reason}.", remedy)


def _check_seal(path: Path) -> int:
    """Check that a file is what was sealed, and return its length; raise ValueError where it is not."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        block = file.read(_BLOCK_BYTES)
        if not block.startswith(_SEAL):
            raise ValueError("it has no seal")
        if block != (_SEAL + _digest(file) + b"\n").ljust(_BLOCK_BYTES, b"\0"):
            raise ValueError("its content is not what was sealed")
        return file.tell()


def _text(h5py: ModuleType, file: Any, name: str) -> bytes:
    """Return an attribute that is one text of a fixed length."""
    attribute = h5py.h5a.open(file.id, name.encode())
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or attribute.shape != ():
        raise ValueError(f"its attribute {name} is not a text")
    if kind.get_size() > _LARGEST_META_BYTES:
        raise ValueError(f"its attribute {name} is too long")
    return bytes(file.attrs[name])


def _plain_dataset(h5py: ModuleType, file: Any, name: str, dtype: str) -> Any:
    """Return a dataset of plain numbers that is stored in one piece in this file; nothing of it is read."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")  # noqa: TRY004 - of the file's structure
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.dtype(dtype):
        raise ValueError(f"{name} is not an array of {dtype}")
    created = dataset.id.get_create_plist()
    stored = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if created.get_layout() not in stored or created.get_nfilters() or created.get_external_count():
        raise ValueError(f"{name} is stored with filters, in pieces or elsewhere")
    return dataset
