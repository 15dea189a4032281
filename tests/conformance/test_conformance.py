"""The same suite for every backend: in process and behind a server."""

import pytest

import opu
from opu.testing import CHECKS, fingerprint

IN_PROCESS = ["sim:?preset=aurora&seed=7", "sim:?preset=ideal&seed=7"]


@pytest.fixture(scope="module", params=IN_PROCESS)
def device(request):
    with opu.open(request.param) as opened:
        yield opened


@pytest.mark.parametrize("name", CHECKS)
def test_in_process(device, name):
    CHECKS[name](device)


def test_two_devices_of_one_seed_have_one_fingerprint():
    with opu.open(IN_PROCESS[0]) as one, opu.open(IN_PROCESS[0]) as two, opu.open("sim:?seed=8") as other:
        assert fingerprint(one) == fingerprint(two)
        assert fingerprint(one) != fingerprint(other)
