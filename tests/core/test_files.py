import os

import numpy as np
import pytest

from opu.errors import DataFileError
from opu.files import check_writable, read_arrays, sync_folder


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("precious")
    check_writable(new)
    check_writable(str(old))
    assert not new.exists()
    assert old.read_text() == "precious"


@pytest.mark.parametrize("name", ["none/x.json", "file/x.json", "", "x" * 300])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DataFileError) as caught:
        check_writable(tmp_path / name)
    assert str(tmp_path / name) in caught.value.problem


def test_arrays_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.arange(3), two=np.eye(2))
    arrays = read_arrays((tmp_path / "a.npz").read_bytes())
    assert arrays.keys() == {"one", "two"}
    np.testing.assert_array_equal(arrays["two"], np.eye(2))


def save_object(path):
    np.savez(path, one=np.array([{}], dtype=object))


def save_plain(path):
    np.save(path, np.arange(3))


@pytest.mark.parametrize(
    "save", [save_object, save_plain, lambda path: path.write_bytes(b"garbage"), lambda path: path.touch()]
)
def test_nobody_is_told_to_load_a_pickle(tmp_path, save):
    path = tmp_path / "a"
    save(path)
    [path] = tmp_path.iterdir()
    with pytest.raises(ValueError, match=r"no \.npz archive|Python objects") as caught:
        read_arrays(path.read_bytes())
    assert "allow_pickle" not in str(caught.value)


def test_a_folder_that_cannot_be_synchronised_is_no_failure_of_its_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("whole")
    for name in ("open", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            sync_folder(tmp_path)
