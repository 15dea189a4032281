"""What all tests share."""

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
