"""Data sets: their splits, and what happens to damaged, missing and unreachable files."""

import gzip
import http.server
import re
import shutil
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import dfa_client.data
from dfa_client import load_data
from opu.errors import DataFileError, InputError, MissingExtraError


def rows(*parts):
    return {image.tobytes() for part in parts for image in part.images}


def test_digits_are_split_by_class_and_seed(digits):
    sizes = [len(part) for part in (digits.train, digits.validation, digits.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == pytest.approx(0.2 * 1797, abs=5)
    for part, fraction in ((digits.test, 0.2), (digits.validation, 0.08)):
        total = sum(np.bincount(each.labels, minlength=10) for each in (digits.train, digits.validation, digits.test))
        assert (abs(np.bincount(part.labels, minlength=10) - fraction * total) <= 1).all()
    assert not rows(digits.test) & rows(digits.train, digits.validation)
    assert not rows(digits.validation) & rows(digits.train)
    again, other = load_data("digits", seed=0), load_data("digits", seed=1)
    np.testing.assert_array_equal(again.test.images, digits.test.images)
    assert again.checksum == digits.checksum != other.checksum
    assert len(rows(other.test) & rows(digits.test)) < 150


def test_brightness_is_standardised_by_the_training_images(digits):
    assert digits.train.images.dtype == np.float32
    assert digits.train.images.mean() == pytest.approx(0, abs=1e-5)
    assert digits.train.images.std() == pytest.approx(1, abs=1e-5)
    assert digits.test.images.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_images(name, data_directory):
    data = load_data(name, seed=3, data_dir=data_directory)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54_000, 6_000, 10_000]
    assert data.train.images.shape == (54_000, 784)
    assert data.n_classes == 10
    assert (np.bincount(data.test.labels) > 800).all()


def test_the_environment_names_the_directory(data_directory, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENOPU_DATA", str(tmp_path))
    with pytest.raises(DataFileError, match="does not exist") as caught:
        load_data("mnist")
    assert str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz") in caught.value.problem
    assert "--data-dir" in caught.value.remedy
    assert len(load_data("mnist", data_dir=data_directory).test) == 10_000


def damage_content(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[1000] ^= 1
    path.write_bytes(gzip.compress(bytes(content), 1))


def damage_packing(path):
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 255
    path.write_bytes(bytes(packed))


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("damage", [damage_content, damage_packing, cut, lambda path: path.write_bytes(b"hello")])
def test_damaged_files_are_named_with_both_hashes(damage, data_directory, tmp_path):
    shutil.copytree(Path(data_directory) / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.chmod(0o644)
    damage(path)
    with pytest.raises(DataFileError) as caught:
        load_data("mnist", data_dir=tmp_path)
    assert str(path) in caught.value.problem
    assert "27ae3e4e09519cfbb04c329615203637" in caught.value.problem
    assert len(re.findall(r"\b[0-9a-f]{32}\b", caught.value.problem)) == 2
    assert "--data-dir" in caught.value.remedy


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'cifar'.*digits, mnist, fashion-mnist"):
        load_data("cifar")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"openopu\[sklearn\]"):
        load_data("digits")


def test_the_digits_are_those_of_scikit_learn(digits, monkeypatch):
    """Read from its file, or by its own function where the file is elsewhere."""
    raw = dfa_client.data._read_digits()
    np.testing.assert_array_equal(raw[:, :-1], load_digits().data)
    np.testing.assert_array_equal(raw[:, -1], load_digits().target)
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "digits.csv.gz")
    assert load_data("digits", seed=0).checksum == digits.checksum


# Downloads


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Serve a directory on this machine as the place where MNIST comes from."""
    (tmp_path / "web").mkdir()
    handler = type("_Handler", (_Quiet,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path / "web"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("OPENOPU_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(dfa_client.data._ADDRESS, "mnist", f"http://127.0.0.1:{server.server_port}/")
    yield tmp_path / "web", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_are_downloaded_once(mirror, data_directory, tmp_path):
    web, handler = mirror
    for path in (Path(data_directory) / "mnist").glob("*.gz"):
        shutil.copyfile(path, web / path.name)
    assert len(load_data("mnist").test) == 10_000
    assert len(load_data("mnist").test) == 10_000
    assert handler.asked == 4
    assert len(list((tmp_path / "cache" / "openopu" / "mnist").iterdir())) == 4


def test_a_damaged_download_is_refused(mirror, tmp_path):
    web, _ = mirror
    (web / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"no images"))
    with pytest.raises(DataFileError, match="damaged") as caught:
        load_data("mnist")
    assert "downloaded again" in caught.value.remedy


def test_a_failed_download_says_where_the_files_may_come_from(mirror):
    with pytest.raises(DataFileError, match=r"127\.0\.0\.1.*404") as caught:
        load_data("mnist")
    assert "OPENOPU_DATA" in caught.value.remedy
