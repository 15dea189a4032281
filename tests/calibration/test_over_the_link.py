"""A device that is served has the numbers that it has in process."""

import math

import msgspec
import pytest

import opu
from opu.calibration import check_health
from opu.remote.server import OpuServer

SIM = "sim:?preset=aurora&seed=31"


def numbers(report):
    """Everything that was measured, without how long it took here."""
    found = {}
    for result in report.results:
        for name, quantity in {"": result, **result.quantities}.items():
            found[result.name, name] = (quantity.value, quantity.uncertainty, quantity.passed)
        found[result.name, "frames"] = result.frames
        found[result.name, "findings"] = result.findings
    return found


def same(one, other):
    """Whether two results are equal: times are differences of larger ones, which round."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return one == other


@pytest.mark.timeout(300)
def test_a_served_device_has_the_same_numbers():
    with opu.open(SIM) as device:
        here = check_health(device, quick=True)
    with opu.open(SIM) as device, OpuServer(device, "tcp://127.0.0.1:0") as server, opu.open(server.uri) as remote:
        there = check_health(remote, quick=True)
    assert msgspec.to_builtins(there.device.medium) == msgspec.to_builtins(here.device.medium)
    expected, found = numbers(here), numbers(there)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not same(expected[key], found[key])] == []
