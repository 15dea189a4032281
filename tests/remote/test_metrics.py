"""The metrics as Prometheus reads them, and the HTTP server that gives them out."""

import contextlib
import http.client
import re
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest
from operation_helpers import busy_status, client_status
from prometheus_client.parser import text_string_to_metric_families

from opu.errors import LinkError, RefusedError, UriError
from opu.remote import metrics_server
from opu.remote.counters import REASONS
from opu.remote.metrics import CONTENT_TYPE, METRICS, list_metrics, render
from opu.remote.metrics_server import MetricsServer, parse_listen
from opu.remote.protocol import ServerStatus

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"
LOOPBACK = ("127.0.0.1", 0)


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text):
    """All samples by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_is_written_and_can_be_read():
    found = families(render(busy_status()))
    for metric in METRICS:
        family = found[metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.summary)
        assert all(set(metric.labels) <= set(sample.labels) for sample in family.samples)
    assert len(found) == len(METRICS)


def test_names_follow_the_conventions():
    for metric in METRICS:
        assert metric.name.startswith("openopu_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not {"ms", "us", "mib", "percent"} & set(metric.name.split("_"))
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_every_reason_of_a_refused_admission_is_told_and_explained():
    name = "openopu_admissions_refused_total"
    found = {key[1][1]: value for key, value in samples(render(busy_status())).items() if key[0] == name}
    assert found == dict.fromkeys(REASONS, 0) | {"key_unknown": 2}
    explained = re.findall(
        r"^\| `(\w+)` \| ", PAGE.read_text(encoding="utf-8").split("## Why admission")[1], re.MULTILINE
    )
    assert explained == list(REASONS)


def test_a_server_of_before_tells_no_reasons():
    status = msgspec.to_builtins(busy_status())
    del status["counters"]["turned_away"]
    assert "openopu_admissions_refused_total" not in render(msgspec.convert(status, ServerStatus))


def test_numbers_arrive():
    found = samples(render(busy_status()))
    assert found["openopu_requests_refused_total", ("code", "busy")] == 2
    assert found[("openopu_requests_answered_total",)] == 3
    assert found[("openopu_frames_total",)] == 6
    assert found[("openopu_clients",)] == 1
    assert found["openopu_client_frames_total", ("client_id", "1"), ("name", "anna")] == 40
    assert found[("openopu_medium_epoch",)] == 3


def test_a_histogram_ends_in_its_count():
    found = samples(render(busy_status()))
    buckets = [
        (float(key[1][1]), value) for key, value in found.items() if key[0] == "openopu_request_duration_seconds_bucket"
    ]
    assert [count for _, count in sorted(buckets)] == sorted(count for _, count in buckets)
    assert max(buckets) == (float("inf"), 3)
    assert found[("openopu_request_duration_seconds_count",)] == 3
    assert found[("openopu_request_duration_seconds_sum",)] == pytest.approx(0.6)


@pytest.mark.parametrize("name", ['a"b\\c', "a\nopenopu_frames_total 1", "\x1b[2J\r\u2028\x85", "Ünï", "}", '{a="b"}'])
def test_a_name_from_elsewhere_stays_within_its_label(name):
    text = render(busy_status(clients=(client_status(name=name),)))
    assert text.count("\n") == len(text.splitlines())
    shown = {dict(key[1:])["name"] for key in samples(text) if key[0] == "openopu_client_sessions"}
    assert len(shown) == 1
    if name.isprintable():
        assert shown == {name}


def test_many_clients_do_not_flood_who_collects():
    clients = tuple(client_status(client_id=number, name="x" * 64) for number in range(1, 200))
    found = samples(render(busy_status(clients=clients)))
    assert sum(key[0] == "openopu_client_sessions" for key in found) == 64
    assert found[("openopu_clients",)] == 199


def test_a_server_that_has_done_nothing_gives_what_it_knows(serve):
    found = samples(render(serve().snapshot()))
    assert found[("openopu_frames_total",)] == 0
    assert found[("openopu_uptime_seconds",)] >= 0
    assert ("openopu_medium_epoch",) not in found


def test_the_documentation_lists_every_metric():
    assert list_metrics() in PAGE.read_text(encoding="utf-8")


# The HTTP server


@pytest.mark.parametrize(
    ("where", "address"),
    [("127.0.0.1:9755", ("127.0.0.1", 9755)), ("localhost:0", ("127.0.0.1", 0)), ("[::1]:1", ("::1", 1))],
)
def test_addresses_of_the_loopback_interface(where, address):
    assert parse_listen(where) == address


@pytest.mark.parametrize("where", ["*:9755", "0.0.0.0:9755", "192.0.2.1:9755", "[::]:9755"])
def test_other_machines_read_nothing_unless_they_may(where):
    with pytest.raises(RefusedError, match="--metrics-beyond-loopback"):
        parse_listen(where)
    assert parse_listen(where, beyond_loopback=True)[1] == 9755


@pytest.mark.parametrize(
    "where", ["", "9755", "127.0.0.1", "127.0.0.1:70000", "::1:9", "example:1", "[127.0.0.1", "a/b:1"]
)
def test_what_is_no_address(where):
    with pytest.raises(UriError, match=r"127\.0\.0\.1:9755"):
        parse_listen(where, beyond_loopback=True)


@pytest.fixture
def faults():
    return []


@pytest.fixture
def http_server(faults):
    with MetricsServer(LOOPBACK, busy_status, lambda: faults[-1] if faults else None) as server:
        yield server


def port_of(server):
    return int(server.url.rpartition(":")[2])


def ask(server, path="/metrics", method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read().decode()


def test_metrics_are_served(http_server):
    answer, text = ask(http_server, "/metrics?collect=all")
    assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
    assert len(families(text)) == len(METRICS)


def test_a_head_has_no_body(http_server):
    answer, text = ask(http_server, method="HEAD")
    assert (answer.status, text) == (200, "")
    assert int(answer.headers["Content-Length"]) > 1000


def test_health_is_served(http_server, faults):
    assert ask(http_server, "/health")[1] == "ok\n"
    faults.append("the device has not answered for 400 s")
    answer, text = ask(http_server, "/health")
    assert (answer.status, text) == (503, "the device has not answered for 400 s\n")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/metrics", 501), ("GET", "/", 404), ("GET", "/../x", 404)]
)
def test_there_is_nothing_else(http_server, method, path, status):
    answer, text = ask(http_server, path, method)
    assert answer.status == status
    assert path not in text or path == "/"


def test_it_does_not_tell_the_version_of_python(http_server):
    assert "Python" not in ask(http_server)[0].headers["Server"]


def test_a_fault_of_its_own_is_told_and_logged(caplog):
    def fail():
        raise ValueError("secret")

    with MetricsServer(LOOPBACK, fail, fail) as server:
        answer, text = ask(server)
    assert answer.status == 500
    assert "secret" not in text
    assert "secret" in caplog.text


def closes(connection):
    """Whether the other side ends a connection without an answer."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_request_without_end_is_cut_off(http_server):
    with socket.create_connection(("127.0.0.1", port_of(http_server)), timeout=60) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
        assert closes(connection)
    assert ask(http_server)[0].status == 200


def test_who_drips_gets_a_few_seconds_in_all(http_server, monkeypatch):
    monkeypatch.setattr(metrics_server, "_TIME_S", 0.5)
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port_of(http_server)), timeout=60) as connection:
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    connection.sendall(b"G")

        dripper = threading.Thread(target=drip)
        dripper.start()
        assert closes(connection)
        stop.set()
        dripper.join(60)
    assert time.monotonic() - started_s >= 0.4


def test_who_holds_connections_leaves_the_server_alive(http_server, monkeypatch):
    monkeypatch.setattr(metrics_server, "_TIME_S", 0.5)
    idle = [socket.create_connection(("127.0.0.1", port_of(http_server)), timeout=60) for _ in range(20)]
    assert all(closes(connection) for connection in idle)
    for connection in idle:
        connection.close()
    give_up_s = time.monotonic() + 60
    while time.monotonic() < give_up_s:  # the places are given back a moment after the connections are closed
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert ask(http_server, "/health")[1] == "ok\n"
            return
    pytest.fail("it does not answer any more")


def test_a_system_without_threads_for_a_while_leaves_the_server_alive(http_server, monkeypatch):
    def cannot_start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot_start)
        for _ in range(2 * metrics_server._MOST_AT_A_TIME):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(http_server, "/health")
    assert ask(http_server, "/health")[1] == "ok\n"


def test_a_port_that_is_taken(http_server):
    with pytest.raises(LinkError, match="--metrics"):
        MetricsServer(("127.0.0.1", port_of(http_server)), busy_status, lambda: None)


def test_nothing_goes_to_standard_error(http_server, capfd):
    ask(http_server)
    ask(http_server, "/nowhere")
    with socket.create_connection(("127.0.0.1", port_of(http_server)), timeout=60) as connection:
        connection.sendall(b"\x00\x01\x02\r\n\r\n")
        connection.recv(1000)
    assert capfd.readouterr().err == ""
