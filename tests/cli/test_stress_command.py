"""`opu stress`. What its clients do is tested in `tests/remote/test_stress.py`."""

import msgspec
import pytest

import opu
from opu.remote.server import OpuServer
from opu.remote.stress import Storm

SIM = "sim:?preset=ideal&seed=7"


@pytest.fixture(scope="module")
def served():
    """The address of a server."""
    with opu.open(SIM) as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        yield server.uri


def test_the_command_stresses_a_server_of_its_own(opu_command):
    ended = opu_command("stress", "--seconds", "1", "--clients", "2", "--kinds", "greedy", "--device", SIM, "--json")
    document = ended.document
    assert ended.status in (None, 0)
    assert document["ok"]
    assert document["lost"] == document["wrong"] == 0
    assert document["sent"] == document["answered"] + sum(document["refused"].values()) > 0
    assert document["refused"]["busy"] > 0
    assert document["rss_start_mib"] > 10
    assert document["rss_end_mib"] > 10
    assert document["server"]["frames"] > document["frames"]


def test_the_command_prints_a_table_of_a_served_device(opu_command, served):
    ended = opu_command("stress", served, "--seconds", "0.5", "--clients", "2", "--kinds", "vanishing")
    assert ended.status in (None, 0)
    for word in ("sent", "answered", "refused", "lost", "wrong", "vanishing"):
        assert word in ended.out


def test_another_device_is_no_reference(opu_command, served):
    ended = opu_command("stress", served, "--device", "sim:?preset=ideal&seed=8", "--json")
    assert ended.status == 2
    assert ended.document["error"]["code"] == "config"


def test_only_a_server_can_be_stressed(opu_command):
    assert opu_command("stress", "sim:").status == 2


def test_wrong_answers_make_the_status_1(opu_command, monkeypatch, served):
    run = Storm.run
    monkeypatch.setattr(Storm, "run", lambda *arguments: msgspec.structs.replace(run(*arguments), wrong=1))
    ended = opu_command("stress", served, "--seconds", "0.2", "--clients", "1", "--kinds", "", "--json")
    assert ended.status == 1
    assert not ended.document["ok"]
