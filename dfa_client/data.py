"""Data sets of labelled images, checked against their hashes, with deterministic splits.

`digits` comes with scikit-learn (1,797 images of 8 x 8). `mnist` and `fashion-mnist` (60,000 + 10,000 images of
28 x 28, https://github.com/zalandoresearch/fashion-mnist) are read from a directory, and downloaded only where none
is given.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfa_client.seeds import Stream, generator
from opu.errors import DataFileError, InputError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DATASETS", "Dataset", "Part", "load_data"]

DATASETS = ("digits", "mnist", "fashion-mnist")
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1
_TIMEOUT_S = 30.0
_MAX_FILE_BYTES = 64 * 2**20

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_ADDRESS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
}


@dataclass(frozen=True, eq=False)
class Part:
    """Images and their classes.

    Parameters
    ----------
    images : ndarray of float32, shape (n, n_pixels)
        Brightness; its mean over all pixels of the training images is 0, its standard deviation 1.
    labels : ndarray of int64, shape (n,)
        Classes from 0.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split: learn from `train`, choose by `validation`, report `test`.

    Parameters
    ----------
    name : str
        What it is called.
    n_classes : int
        The number of classes.
    train, validation, test : Part
        The split.
    """

    name: str
    n_classes: int
    train: Part
    validation: Part
    test: Part

    @property
    def checksum(self) -> int:
        """CRC-32 of the training images and labels: tells whether a training is resumed on its own data."""
        return zlib.crc32(self.train.labels.tobytes(), zlib.crc32(self.train.images.tobytes()))


def load_data(name: str, *, seed: int = 0, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set and split it.

    Parameters
    ----------
    name : str
        `digits`, `mnist` or `fashion-mnist`.
    seed : int
        Splits the digits: a fifth of each class for the test, a tenth of the rest for the validation. The other two
        have a test set of their own, and the last tenth of the training images validates, whatever the seed.
    data_dir : path, optional
        A directory with the subdirectories `mnist` and `fashion-mnist`, which hold the four `.gz` files. Default:
        the environment variable `OPENOPU_DATA`; without it the files are downloaded once to
        `$XDG_CACHE_HOME/openopu` (`~/.cache/openopu`).

    Returns
    -------
    Dataset
        The split images.

    Raises
    ------
    InputError
        The name is unknown.
    DataFileError
        A file is missing, cannot be downloaded, or does not have the known hash.
    MissingExtraError
        The digits need scikit-learn, and it is not installed.

    Examples
    --------
    >>> digits = load_data("digits", seed=1)
    >>> len(digits.train), len(digits.validation), len(digits.test)
    (1295, 143, 359)
    """
    if name == "digits":
        return _load_digits(seed)
    if name not in _MD5:
        raise InputError(f"The data set is {name!r}.", f"Use one of {', '.join(DATASETS)}.")
    return _load_idx(name, data_dir)


def _load_digits(seed: int) -> Dataset:
    raw = _read_digits()
    images, labels = raw[:, :-1], raw[:, -1].astype(np.int64)
    order = generator(seed, Stream.SPLIT).permutation(len(labels))
    test, rest = _stratified(order, labels, TEST_FRACTION)
    validation, train = _stratified(rest, labels, VALIDATION_FRACTION)
    return _standardised("digits", *(Part(images[chosen], labels[chosen]) for chosen in (train, validation, test)))


def _read_digits() -> NDArray[np.float32]:
    """Return the digits of scikit-learn, shape (n, 65): the pixels of each image, and its class."""
    installed = find_spec("sklearn")
    if installed is None or installed.origin is None:
        raise MissingExtraError(
            "The digits come with scikit-learn, which is not installed.",
            "Install the extra 'sklearn': pip install 'openopu[sklearn]'; or use --data mnist.",
        )
    # Importing scikit-learn takes longer than a training.
    path = Path(installed.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",", dtype=np.float32)
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.column_stack([raw.data, raw.target]).astype(np.float32)


def _stratified(
    order: NDArray[np.intp], labels: NDArray[np.int64], fraction: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split indices in two, the first a fraction of each class; the order is kept."""
    first = np.zeros(len(order), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        first[members[: round(fraction * len(members))]] = True
    return order[first], order[~first]


def _load_idx(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    contents = [_read(name, file, md5, data_dir) for file, md5 in zip(_FILES, _MD5[name], strict=True)]
    train_images, train_labels, test_images, test_labels = (np.frombuffer(content, np.uint8) for content in contents)
    images = train_images[16:].reshape(-1, 784).astype(np.float32)
    labels = train_labels[8:].astype(np.int64)
    n_train = len(labels) - round(VALIDATION_FRACTION * len(labels))
    return _standardised(
        name,
        Part(images[:n_train], labels[:n_train]),
        Part(images[n_train:], labels[n_train:]),
        Part(test_images[16:].reshape(-1, 784).astype(np.float32), test_labels[8:].astype(np.int64)),
    )


def _standardised(name: str, train: Part, validation: Part, test: Part) -> Dataset:
    """Shift and scale the brightness in place, by what the training images say."""
    mean = np.float32(train.images.mean(dtype=np.float64))
    deviation = np.float32(train.images.std(dtype=np.float64))
    for part in (train, validation, test):
        np.subtract(part.images, mean, out=part.images)
        np.divide(part.images, deviation, out=part.images)
    return Dataset(name, int(train.labels.max()) + 1, train, validation, test)


def _read(name: str, file: str, md5: str, data_dir: str | os.PathLike[str] | None) -> bytes:
    """Return the verified raw content of an idx file."""
    directory = data_dir if data_dir is not None else os.environ.get("OPENOPU_DATA") or None
    if directory is not None:
        path = Path(directory) / name / f"{file}.gz"
        remedy = f"Replace it by {_ADDRESS[name]}{file}.gz, or name another directory by --data-dir."
        if not path.is_file():
            raise DataFileError(f"The file {str(path)!r} does not exist.", remedy)
    else:
        path = _cache_directory() / name / f"{file}.gz"
        remedy = "Delete it, and it will be downloaded again."
        if not path.is_file():
            _download(f"{_ADDRESS[name]}{file}.gz", path)
    return _verified(path, md5, remedy)


def _verified(path: Path, md5: str, remedy: str) -> bytes:
    try:
        with gzip.open(path) as stream:
            content = stream.read(_MAX_FILE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(
            f"The file {str(path)!r} cannot be unpacked ({error}); the MD5 of its content should be {md5}, "
            f"that of the packed file is {_md5(path.read_bytes())}.",
            remedy,
        ) from error
    found = _md5(content)
    if found != md5:
        raise DataFileError(
            f"The file {str(path)!r} is damaged: the MD5 of its content is {found}, it should be {md5}.", remedy
        )
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openopu"


def _download(address: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the addresses are ours
            content = answer.read(_MAX_FILE_BYTES)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise DataFileError(
            f"{address} cannot be downloaded to {str(path)!r}: {error}.",
            "Check the network, or name a directory that has the files by --data-dir or OPENOPU_DATA.",
        ) from error
