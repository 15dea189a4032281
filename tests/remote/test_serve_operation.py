"""What `opu serve` offers to the people who run it: a log for programs, metrics and health."""

import json
import logging
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from link_helpers import RawClient
from operation_helpers import busy_status, counted
from rich.console import Console

from opu.cli.serve import _telling_metrics
from opu.cli.server_log import LogFormat, format_json, open_log

SIM = "sim:?preset=ideal"
COMMAND = [sys.executable, "-c", "from opu.cli import main; main()", "serve", SIM, "--bind", "tcp://127.0.0.1:0"]


def read(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_server_with_metrics_and_a_log_for_programs():
    command = [*COMMAND, "--metrics", "127.0.0.1:0", "--log", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        serving, metrics = (json.loads(process.stdout.readline()) for _ in range(2))
        assert (serving["device"], serving["pid"]) == (SIM, process.pid)
        assert read(metrics["url"] + "/health") == (200, "ok\n")
        with RawClient(serving["uri"]) as hostile:
            hostile.hello('\x1b[2J\x9b1m\n{"level": "FATAL"}')
            status, text = read(metrics["url"] + "/metrics")
        assert status == 200
        assert "\nopenopu_clients 1\n" in text
        process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert output.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", output)
    lines = [json.loads(line) for line in output.splitlines()]
    assert all(list(line)[:4] == ["time", "level", "logger", "event"] for line in lines)
    assert {line["level"] for line in lines} == {"INFO"}
    assert any("has come" in line["event"] for line in lines)
    assert (lines[-1]["frames"], lines[-1]["clients"]) == (0, 1)


@pytest.mark.parametrize(
    ("options", "status", "problem"),
    [
        (["--metrics", "0.0.0.0:9755"], 4, "--metrics-beyond-loopback"),
        (["--metrics", "nonsense"], 2, "127.0.0.1:9755"),
        (["--announce", "x" * 64], 2, "1 to 63 bytes"),
    ],
)
def test_options_that_cannot_be(options, status, problem):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert problem in " ".join(done.stderr.split())


class CountingServer:
    """What the metrics want of a server."""

    def __init__(self):
        self.is_running = True
        self.counters = counted()
        self.draining = False

    def snapshot(self):
        return busy_status(counters=self.counters.snapshot(), draining=self.draining)


def test_health_follows_the_signs_of_life():
    server = CountingServer()
    with _telling_metrics(server, ("127.0.0.1", 0), 0.0) as url:
        assert read(f"{url}/health") == (200, "ok\n")
        server.counters.call_began()
        assert read(f"{url}/health") == (503, "the device has not answered for 0 s\n")
        server.counters.call_failed()
        assert read(f"{url}/health") == (200, "ok\n")
        server.draining = True
        assert read(f"{url}/health") == (503, "the server is being stopped\n")
        assert "\nopenopu_draining 1\n" in read(f"{url}/metrics")[1]
        server.is_running = False
        assert read(f"{url}/health") == (503, "the loop of the server has ended\n")


def log_line(**fields):
    record = logging.LogRecord("opu.remote.server", logging.WARNING, "file.py", 1, "client %s", ("1",), None)
    record.__dict__.update(fields)
    return json.loads(format_json(record))


def test_fields_of_a_record_become_fields_of_its_line():
    line = log_line(client="1 'anna'", request_id=7, key="anna")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "WARNING",
        "logger": "opu.remote.server",
        "event": "client 1",
        "client": "1 'anna'",
        "request_id": 7,
        "key": "anna",
    }


def test_a_field_cannot_stand_for_the_event():
    assert log_line(event="forged", level="DEBUG")["event"] == "client 1"
    assert log_line(event="forged", level="DEBUG")["level"] == "WARNING"


def test_a_field_that_json_does_not_know_becomes_text():
    assert log_line(client=b"\x00route")["client"] == r"b'\x00route'"


def test_a_fault_is_written_with_its_trace(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as file, open_log(Console(file=file), LogFormat.json) as server_log, server_log.collect():
        try:
            raise ValueError("the bus is stuck")
        except ValueError:
            logging.getLogger("opu.remote.server").exception("a request failed")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["level"], line["event"]) == ("ERROR", "a request failed")
    assert "ValueError: the bus is stuck" in line["exception"]


def test_what_nobody_read_is_told_in_json(tmp_path):
    from opu.cli.server_log import _left_out_as_json

    line = json.loads(_left_out_as_json(12))
    assert (line["level"], line["left_out"], line["event"]) == ("WARNING", 12, "12 lines left out: nobody read")


def test_loggers_are_left_as_they_were(tmp_path):
    logger = logging.getLogger("opu.remote.server")
    before = (logger.level, list(logger.handlers))
    with (tmp_path / "log").open("w") as file, open_log(Console(file=file), LogFormat.text) as log, log.collect():
        assert len(logger.handlers) == len(before[1]) + 1
    assert (logger.level, logger.handlers) == before
