from pathlib import Path

import numpy as np
import pytest

import opu
from opu.device import CONTRACT_VERSION
from opu.errors import DataFileError, UriError
from opu.registry import DEFAULT_URI, Backend, UnavailableBackend, backends

EXAMPLES = Path(__file__).parents[2] / "examples"


def backend_of(scheme):
    return next(backend for backend in backends() if backend.scheme == scheme)


@pytest.fixture
def matrix_backend(install_backend, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    install_backend("matrix", "matrix_backend:BACKEND")


def measured_matrix(path, shape=(60, 40)):
    generator = np.random.default_rng(1)
    matrix = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)
    np.save(path, matrix)
    return matrix


def test_the_own_backends_are_there_and_usable():
    own = {backend.scheme: backend for backend in backends()}
    assert {"sim", "tcp"} <= own.keys()
    for backend in own.values():
        assert isinstance(backend, Backend), backend
        assert backend.syntax.startswith(f"{backend.scheme}:")


def test_a_third_party_adds_a_backend(matrix_backend, tmp_path):
    path = tmp_path / "slab.npy"
    matrix = measured_matrix(path)
    patterns = np.random.default_rng(2).integers(0, 2, (5, 60))
    with opu.open(f"matrix:{path}?mean_dn=10") as device:
        assert device.describe().medium.medium_id == "slab"
        with device.open_session(opu.SessionConfig(n_features=60, n_outputs=40)) as session:
            frames = session.project(patterns).frames
    intensity = np.abs(patterns @ matrix) ** 2
    expected = 10 * intensity / (np.mean(np.abs(matrix) ** 2) * 30)
    np.testing.assert_allclose(frames, np.clip(expected, 0, 255), atol=0.51)


def test_errors_of_a_third_party_are_as_any_other(matrix_backend, tmp_path):
    with pytest.raises(DataFileError, match=r"none\.npy"):
        opu.open(f"matrix:{tmp_path / 'none.npy'}")
    np.save(tmp_path / "row.npy", np.ones(3))
    with pytest.raises(DataFileError, match=r"row\.npy"):
        opu.open(f"matrix:{tmp_path / 'row.npy'}")
    with pytest.raises(UriError, match="matrix: knows mean_dn"):
        opu.open("matrix:slab.npy?mean=3")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('no driver for this kernel')", "RuntimeError: no driver for this kernel"),
        ("OTHER = 1", "AttributeError"),
        ("BACKEND = 'a text'", "is not an opu.registry.Backend"),
    ],
)
def test_a_backend_that_cannot_be_imported_is_listed_with_the_reason(install_backend, source, reason):
    install_backend("broken", "broken_backend:BACKEND", source)
    broken = backend_of("broken")
    assert isinstance(broken, UnavailableBackend)
    assert "broken_backend:BACKEND" in broken.reason
    assert reason in broken.reason
    assert isinstance(backend_of("sim"), Backend)
    with pytest.raises(UriError, match="cannot be used: broken_backend:BACKEND") as caught:
        opu.open("broken:")
    assert reason in caught.value.problem


def test_a_backend_for_another_contract_version_names_both(install_backend):
    source = (
        "from opu.registry import Backend\n"
        f"BACKEND = Backend('old', '', 'old:', (), None, list, contract_version={CONTRACT_VERSION + 1})\n"
    )
    install_backend("old", "old_backend:BACKEND", source)
    old = backend_of("old")
    assert isinstance(old, UnavailableBackend)
    assert f"version {CONTRACT_VERSION + 1}" in old.reason
    assert f"this is {CONTRACT_VERSION}" in old.reason


def test_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(UriError, match=r"Unknown scheme 'warp'.*Known schemes: .*sim, .*tcp"):
        opu.open("warp://somewhere")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UriError, match=r"Unknown option 'sped'.*preset.*seed"):
        opu.open("sim:?sped=7")


def test_the_default_address_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPU_URI", "sim:?preset=ideal&seed=5")
    with opu.open() as device:
        assert device.uri == "sim:?preset=ideal&seed=5"


def test_an_empty_variable_names_no_device(monkeypatch):
    monkeypatch.setenv("OPU_URI", "")
    with opu.open() as device:
        assert device.uri == DEFAULT_URI


def test_a_bad_address_from_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("OPU_URI", "aurora")
    with pytest.raises(UriError, match="OPU_URI: The address 'aurora' has no scheme"):
        opu.open()


@pytest.mark.parametrize("uri", [1, b"sim:", Path("sim:")])
def test_an_address_is_a_text(uri):
    with pytest.raises(UriError, match="The address is"):
        opu.open(uri)


def test_without_any_address_a_simulated_device_opens():
    with opu.open() as device:
        assert device.describe().backend == "sim"


def test_scan_lists_addresses_that_open():
    found = opu.scan()
    assert any(device.uri.startswith("sim:") for device in found)
    for device in found:
        opu.open(device.uri).close()


@pytest.mark.parametrize("error", ["opu.errors.DeviceError('The bus is stuck.', 'Replug it.')", "OSError('no bus')"])
def test_a_search_that_fails_finds_nothing_and_disturbs_nobody(install_backend, error):
    source = (
        "import opu.errors\n"
        "from opu.registry import Backend\n"
        "def find():\n"
        f"    raise {error}\n"
        "BACKEND = Backend('stuck', '', 'stuck:', (), None, find)\n"
    )
    install_backend("stuck", "stuck_backend:BACKEND", source)
    assert any(device.uri.startswith("sim:") for device in opu.scan())
