"""What all tests share."""

import sys

import hypothesis
import pytest

from opu.registry import backends

hypothesis.settings.register_profile("openopu", deadline=None, max_examples=100)
hypothesis.settings.load_profile("openopu")


@pytest.fixture(autouse=True)
def _no_device_from_outside(monkeypatch):
    """A test opens the device that it names, whatever the shell says."""
    monkeypatch.delenv("OPU_URI", raising=False)


@pytest.fixture
def fresh_backends():
    """The list of backends is read once in a process; a test that changes what is installed has it read again."""
    backends.cache_clear()
    yield
    backends.cache_clear()


@pytest.fixture
def install_backend(tmp_path, monkeypatch, fresh_backends):
    """Install a backend of a third party for one test: `install_backend("name", "module:object", source)`."""

    module_names = []

    def install(scheme, target, source=None):
        module_names.append(target.partition(":")[0])
        information = tmp_path / f"third_party_{scheme}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-party-{scheme}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[opu.backends]\n{scheme} = {target}\n")
        if source is not None:
            (tmp_path / f"{module_names[-1]}.py").write_text(source)
        backends.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for name in module_names:
        sys.modules.pop(name, None)
