"""Matrices in files: what comes back is what was saved, and damaged or hostile files are refused."""

import contextlib
import dataclasses
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import h5py
import msgspec
import numpy as np
import pytest
from matrix_helpers import exposed, true_matrix, wrap

import opu
from opu.calibration.hdf5 import seal
from opu.calibration.matrix.storage import load, save
from opu.device import Region, SessionConfig
from opu.errors import DataFileError, MediumChangedError, MissingExtraError

CONFIG = SessionConfig(n_features=24, n_outputs=10, region=Region(0, 0, 1, 10), exposure_us=400.0)


class Toy:
    """As much of a device as a matrix needs."""

    uri = "toy:"

    def describe(self):
        with opu.open("sim:?preset=aurora&seed=31") as device:
            return device.describe()


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(10, 24)) + 1j * rng.normal(size=(10, 24))
    return wrap(Toy(), CONFIG, entries, laser_power_mw=10.0, kept=np.arange(10) > 2)


@pytest.fixture
def saved(matrix, tmp_path):
    path = tmp_path / "matrix.h5"
    save(matrix, path)
    return path


def test_what_is_saved_comes_back(matrix, saved):
    loaded = load(saved)
    for field in dataclasses.fields(matrix):
        one, two = getattr(matrix, field.name), getattr(loaded, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        else:
            assert one == two
    assert [path.name for path in saved.parent.iterdir()] == ["matrix.h5"]


def test_any_reader_of_hdf5_reads_it(matrix, saved):
    with h5py.File(saved) as file:
        assert file.attrs["format"] == b"openopu.transmission_matrix/1"
        assert b'"medium_id"' in file.attrs["meta"]
        np.testing.assert_array_equal(file["matrix"][()], matrix.matrix)


def test_a_matrix_of_another_medium_or_epoch_is_refused(tmp_path):
    path = tmp_path / "matrix.h5"
    with opu.open("sim:?preset=aurora&seed=31") as device, opu.open("sim:?preset=aurora&seed=32") as other:
        config = exposed(device, n_features=16, n_outputs=10)
        matrix = true_matrix(device, config)
        save(matrix, path)
        np.testing.assert_array_equal(load(path, device).matrix, matrix.matrix)
        with pytest.raises(MediumChangedError, match="Measure it again"):
            load(path, other)
        save(dataclasses.replace(matrix, medium_epoch=1), path)
        with pytest.raises(MediumChangedError, match="epoch 1"):
            load(path, device)


def test_an_interrupted_save_leaves_the_old_file(matrix, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("opu.calibration.hdf5.seal", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(DataFileError, match="No space left"):
        save(matrix, saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_synchronised_does_not_hide_that_a_file_is_saved(matrix, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("opu.files.os.open", refuse)
    save(matrix, tmp_path / "matrix.h5")
    assert load(tmp_path / "matrix.h5").n_frames == matrix.n_frames


def test_threads_that_save_at_once_do_not_disturb_each_other(matrix, tmp_path):
    path = tmp_path / "matrix.h5"
    changed = [dataclasses.replace(matrix, n_frames=number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: [save(one, path) for _ in range(5)], changed))
    assert load(path).n_frames in range(8)
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.h5"]


def test_a_saved_file_has_the_rights_of_other_files(saved, tmp_path):
    (tmp_path / "other").touch()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_file_and_name_are_on_the_disk(matrix, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    save(matrix, tmp_path / "matrix.h5")
    assert flushed == [False, True]


def test_a_missing_extra_is_named(matrix, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"openopu\[hdf5\]"):
        save(matrix, tmp_path / "matrix.h5")
    with pytest.raises(MissingExtraError):
        load(tmp_path / "matrix.h5")


def test_files_that_are_not_there_or_something_else(tmp_path):
    with pytest.raises(DataFileError, match="No such file"):
        load(tmp_path / "nothing.h5")
    with pytest.raises(DataFileError):
        load(tmp_path)
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"x" * 5000):
        path = tmp_path / "other.h5"
        path.write_bytes(content)
        with pytest.raises(DataFileError, match="no seal"):
            load(path)


def test_every_damaged_byte_is_noticed(saved):
    good = saved.read_bytes()
    rng = np.random.default_rng(1)
    for place in [*range(0, 512, 7), *rng.integers(0, len(good), 200)]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        saved.write_bytes(bad)
        with pytest.raises(DataFileError):
            load(saved)
    for length in rng.integers(0, len(good), 50):
        saved.write_bytes(good[:length])
        with pytest.raises(DataFileError):
            load(saved)
    saved.write_bytes(good + b"\0")
    with pytest.raises(DataFileError):
        load(saved)


def external(file):
    file.create_dataset("matrix", (10, 24), "complex64", external=[("/etc/hostname", 0, 1920)])


def filtered(file):
    file.create_dataset("matrix", data=np.zeros((10, 24), "complex64"), compression="gzip")


def huge(file):
    # Space is taken late: the file stays small.
    file.create_dataset("matrix", (2**20, 2**20), "complex64")


def virtual(file):
    layout = h5py.VirtualLayout((10, 24), "complex64")
    layout[:] = h5py.VirtualSource("other.h5", "matrix", (10, 24))
    file.create_virtual_dataset("matrix", layout)


def references(file):
    file.create_dataset("matrix", (10, 24), h5py.ref_dtype)


def texts(file):
    file.create_dataset("matrix", (10, 24), h5py.string_dtype())


HOSTILE = {
    "soft link": lambda file: file.__setitem__("matrix", h5py.SoftLink("/dark_dn")),
    "external link": lambda file: file.__setitem__("matrix", h5py.ExternalLink("other.h5", "/matrix")),
    "group": lambda file: file.create_group("matrix"),
    "nothing": lambda file: None,
    "another array": lambda file: (filled(file), file.create_dataset("more", data=[1])),
    "another shape": lambda file: file.create_dataset("matrix", data=np.zeros((24, 10), "complex64")),
    "another type": lambda file: file.create_dataset("matrix", data=np.zeros((10, 24), "complex128")),
    "NaN": lambda file: file.create_dataset("matrix", data=np.full((10, 24), np.nan, "complex64")),
    "empty": lambda file: file.create_dataset("matrix", data=h5py.Empty("complex64")),
} | {function.__name__: function for function in (external, filtered, huge, virtual, references, texts)}


def filled(file):
    file.create_dataset("matrix", data=np.zeros((10, 24), "complex64"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(saved, name):
    with h5py.File(saved, "r+") as file:
        del file["matrix"]
        HOSTILE[name](file)
    seal(saved)
    with pytest.raises(DataFileError):
        load(saved)


def test_hostile_attributes_are_refused(saved):
    for value in ("a text of variable length", np.bytes_(b"openopu.transmission_matrix/2"), 1, [b"one", b"two"]):
        good = saved.read_bytes()
        with h5py.File(saved, "r+") as file:
            file.attrs["format"] = value
        seal(saved)
        with pytest.raises(DataFileError):
            load(saved)
        saved.write_bytes(good)
    for meta in (b"{}", b"[", b"x" * 61_000, b'{"config": 3}'):
        with h5py.File(saved, "r+") as file:
            file.attrs["meta"] = np.bytes_(meta)
        seal(saved)
        with pytest.raises(DataFileError):
            load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"config": msgspec.structs.replace(CONFIG, stride=0)},
        {"config": msgspec.structs.replace(CONFIG, region=Region(0, 0, 1, 9))},
        {"config": msgspec.structs.replace(CONFIG, region=Region(0, 0, 1, 2**40))},
        {"dark_dn": np.full(10, np.nan, np.float32)},
        {"background": np.full(10, np.inf, np.complex64)},
    ],
)
def test_what_does_not_fit_is_refused(matrix, tmp_path, change):
    path = tmp_path / "matrix.h5"
    save(dataclasses.replace(matrix, **change), path)
    with pytest.raises(DataFileError, match="cannot be right"):
        load(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataFileError, match="no regular file"):
        load(path)


def test_damage_behind_a_good_seal_is_refused_or_harmless(saved):
    good = saved.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(512, len(good))] ^= 1 << rng.integers(8)
        saved.write_bytes(bad)
        seal(saved)
        with contextlib.suppress(DataFileError):
            assert load(saved).matrix.shape == (10, 24)
