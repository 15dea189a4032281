"""`opu monitor` and `opu health`."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from link_helpers import TOY_DESCRIPTION, RawClient, wait_until
from operation_helpers import busy_status, client_status, counted
from rich.console import Console

import opu
from opu.cli.monitor_picture import Look, draw, summarise
from opu.device import SessionConfig
from opu.remote.protocol import LeaseStatus
from opu.remote.server import OpuServer, ServerLimits

JSON_PAGE = Path(__file__).parents[2] / "docs/reference/json.md"
NOBODY = "tcp://127.0.0.1:1?timeout_s=0.2"


@pytest.fixture(scope="module")
def device():
    with opu.open("sim:?preset=ideal") as opened:
        yield opened


@pytest.fixture(scope="module")
def server(device):
    with OpuServer(device, "tcp://127.0.0.1:0") as running:
        yield running


def listed_fields(command):
    row = re.search(rf"^\| `opu {command} URI` \| (.+) \|$", JSON_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row[1]))


# health


def test_a_server_is_well(opu_command, server):
    outcome = opu_command("health", server.uri, "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document.keys() - {"schema", "ok", "error"} == listed_fields("health")
    assert document["answered_in_s"] > 0
    assert "is well" in outcome.err


def test_nobody_answers(opu_command):
    outcome = opu_command("health", NOBODY, "--json")
    assert outcome.status == 3
    assert outcome.document["error"]["code"] == "unreachable"


@pytest.mark.parametrize("command", ["health", "monitor"])
@pytest.mark.parametrize("uri", ["sim:", "tcp:", "nonsense"])
def test_only_servers_can_be_watched(opu_command, command, uri):
    assert opu_command(command, uri).status == 2


@pytest.mark.parametrize("observer_places", [0, 1])
def test_a_full_server_is_well(opu_command, device, observer_places):
    limits = ServerLimits(max_clients=1, observer_places=observer_places)
    with OpuServer(device, "tcp://127.0.0.1:0", limits) as server, RawClient(server.uri) as client:
        client.hello()
        outcome = opu_command("health", server.uri, "--json")
        assert outcome.status == 0
        assert outcome.document["is_full"] is (observer_places == 0)
        assert opu_command("monitor", server.uri, "--once").status == (0 if observer_places else 4)


class StuckDevice:
    """A served device that does not answer, and whose server cannot let a client go."""

    uri = "tcp://127.0.0.1:5755"

    def server_status(self):
        counters = counted()
        counters.call_began()
        status = counters.snapshot()
        vitals = msgspec.structs.replace(status.vitals, device_s=400.0)
        return busy_status(counters=msgspec.structs.replace(status, vitals=vitals))


def test_a_device_that_is_stuck(opu_command, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr("opu.cli.health.watching", lambda uri: nullcontext(StuckDevice()))
    outcome = opu_command("health", StuckDevice.uri, "--json")
    assert outcome.status == 3
    assert "has not answered for 400 s" in outcome.document["error"]["message"]
    assert opu_command("health", StuckDevice.uri, "--stuck-after", "500").status == 0


def test_it_does_not_wait_for_a_device_that_is_stuck(opu_command, toy, serve, raw):
    server = serve()
    client = raw(server.uri)
    client.hello()
    opened = client.open_session(SessionConfig(n_features=10, n_outputs=5))
    toy.gate.clear()
    for _ in range(3):
        client.project(opened.session, [[1] * 10])
    wait_until(lambda: server.snapshot().queued == 3)
    started_s = time.monotonic()
    assert opu_command("health", server.uri).status == 0  # it answers, and cannot let anybody go
    assert time.monotonic() - started_s < 30


# monitor


def test_one_picture(opu_command, server):
    outcome = opu_command("monitor", server.uri, "--once", "--interval", "0.1")
    assert outcome.status == 0
    assert "simulated bench, preset ideal" in outcome.out
    assert "frames" in outcome.out
    assert "\x1b" not in outcome.out


def test_one_object(opu_command, server):
    outcome = opu_command("monitor", server.uri, "--interval", "0.1", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document.keys() - {"schema", "ok", "error"} == listed_fields("monitor")
    assert document["status"]["clients"][0]["sessions"] == 0
    assert document["rates"]["frames_per_s"] == 0


def test_a_server_that_cannot_be_watched(opu_command):
    assert opu_command("monitor", NOBODY, "--once").status == 3


def two_looks():
    counters = counted()
    earlier = Look(10.0, busy_status(counters=counters.snapshot()))
    for _ in range(100):
        counters.accepted(n_bytes=1000)
        counters.answered(waited_s=0.003, took_s=0.015, n_frames=4, n_bytes=2**20)
    for _ in range(2):
        counters.refused("busy")
    clients = (client_status(frames=440), client_status(client_id=2, name="\x1b[2J[bold]" + "x" * 50, frames=9))
    return earlier, Look(12.0, busy_status(counters=counters.snapshot(), clients=clients))


def test_rates_and_latencies_are_those_between_two_looks():
    earlier, later = two_looks()
    rates = summarise(later, earlier)
    assert rates["frames_per_s"] == 200
    assert rates["requests_per_s"] == 50
    assert rates["frame_bytes_per_s"] == 50 * 2**20
    assert rates["refused_per_s"] == 1
    assert 0.01 <= rates["took_p99_s"] <= 0.02  # and not the 0.2 s of before
    assert 0.002 <= rates["waited_p50_s"] <= 0.005


def test_a_server_that_was_started_again_has_no_negative_rates():
    earlier, later = two_looks()
    again = summarise(Look(13.0, earlier.status), later)
    assert min(value for value in again.values() if value is not None) >= 0


def test_a_first_look_has_no_rates():
    earlier, _ = two_looks()
    assert set(summarise(earlier, earlier).values()) == {None}


def picture(width, later, earlier):
    console = Console(width=width, record=True, force_terminal=True, file=(Path("/dev/null")).open("w"))  # noqa: SIM115
    with console.file:
        console.print(draw("tcp://127.0.0.1:5755?key=anna.key", TOY_DESCRIPTION, later, earlier))
    return console.export_text(styles=False)


@pytest.mark.parametrize("width", [80, 120])
def test_a_picture_fits(width):
    earlier, later = two_looks()
    text = picture(width, later, earlier)
    assert max(map(len, text.splitlines())) <= width
    for fact in (
        "50/s",
        "100 MiB/s"[4:],
        "50 MiB/s",
        "busy 4, closed 1",
        "epoch 3, was 0 when opened",
        "1.00 %",
        "200/s",
    ):
        assert fact in text, text
    assert "anna.key" not in text
    assert "\x1b" not in text
    assert r"\x1b[2J[bold]" in text.replace("\n", "")


def test_the_busiest_client_comes_first_and_one_that_just_came_has_a_rate():
    earlier = Look(0.0, busy_status(clients=(client_status(name="old", frames=1000),)))
    clients = (client_status(name="old", frames=1010), client_status(client_id=2, name="new", frames=500))
    text = picture(80, Look(10.0, busy_status(clients=clients)), earlier)
    new, old = (line.split() for line in text.splitlines() if "│ new " in line or "│ old " in line)
    assert (new[2], new[8]) == ("new", "50")
    assert (old[2], old[8]) == ("old", "1")


def test_who_is_away_and_who_holds_the_lease():
    lease = LeaseStatus(holder="anna", note="adjusts the laser", expires_s=12.0)
    look = Look(0.0, busy_status(lease=lease, clients=(client_status(name="old", connected=False),)))
    text = picture(80, look, look)
    assert "old (away)" in text
    assert "anna, 12 s more" in text


def test_very_many_clients_do_not_fill_the_screen():
    clients = tuple(client_status(client_id=number, frames=number) for number in range(1, 101))
    look = Look(1.0, busy_status(clients=clients))
    text = picture(120, look, look)
    assert "Clients, 70 more" in text
    assert text.count("anna") == 30


def test_a_terminal_shows_pictures_until_it_is_interrupted(server):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from opu.cli import main; main()", "monitor", server.uri, "--interval", "0.1"]
    environment = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = ""
    try:
        while shown.count("Frames/s") < 3:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 65536).decode()
        process.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536).decode()
            except OSError:  # the other side is closed
                break
        assert process.wait(timeout=60) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    after = shown.rpartition("\x1b[?1049l")[2]  # the last picture stays when the screen of before is back
    assert "preset ideal" in after
    assert "Traceback" not in shown
