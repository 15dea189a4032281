"""`opu serve`."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from link_helpers import RawClient, wait_until

import opu
from opu.cli.patient import PatientStream
from opu.device import SessionConfig
from opu.remote import protocol
from opu.remote.limits import ServerLimits

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)
COMMAND = [sys.executable, "-c", "from opu.cli import main; main()", "serve"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_reports(served_process, number, tmp_path):
    process, uri = served_process("sim:?preset=ideal", "tcp://127.0.0.1:0", "--json", str(tmp_path / "end.json"))
    with RawClient(uri) as hostile:
        hostile.hello("\x1b[2J<script>[bold]")
        with opu.open(uri) as remote, remote.open_session(CONFIG) as session:
            assert session.project(X).frames.shape == (3, 5)
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "\x1b" not in output
    assert r"'\x1b[2J<script>[bold]' has come" in output
    assert "Frames: 3, clients: 2, refused requests: 0" in output
    report = json.loads((tmp_path / "end.json").read_text())
    assert (report["schema"], report["ok"], report["error"]) == ("openopu.serve/1", True, None)
    assert (report["uri"], report["device"], report["pid"]) == (uri, "sim:?preset=ideal", process.pid)
    assert (report["frames"], report["welcomed"], report["refused"]) == (3, 2, {})


def test_what_was_accepted_before_a_signal_is_answered_or_refused(served_process):
    process, uri = served_process()
    wide = SessionConfig(n_features=100, n_outputs=2000)
    with opu.open(f"{uri}?reconnect_s=0") as remote, remote.open_session(wide) as session:
        futures = [session.submit(np.ones((100, 100), np.uint8)) for _ in range(30)]
        futures[0].result()
        process.terminate()
        outcomes = [future.exception(timeout=20) for future in futures]
    assert process.wait(timeout=20) == 0
    assert all(error is None or isinstance(error, opu.errors.UnreachableError) for error in outcomes)


def test_an_output_that_nobody_reads_does_not_stop_it(served_process):
    process, uri = served_process()
    with RawClient(uri) as client:
        for _ in range(400):  # some 250 kB of log, four times what a pipe holds
            assert isinstance(client.hello("\x1b" * 64), protocol.Welcome)
            assert isinstance(client.ask(protocol.Bye(request_id=client.number())), protocol.Done)
    process.terminate()
    assert process.wait(timeout=20) == 0


def test_it_tells_how_much_it_left_out(served_process):
    process, uri = served_process()
    with RawClient(uri) as client:
        for _ in range(1500):
            client.hello("\x1b" * 64)
            client.ask(protocol.Bye(request_id=client.number()))
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert re.search(r"\.\.\. [0-9]+ lines left out", output)
    assert "clients: 1500" in output


class Pipe:
    """A pipe with a patient stream at one end."""

    def __init__(self, *, blocking=True):
        self._reader, writer = os.pipe()
        os.set_blocking(writer, blocking)
        self._target = os.fdopen(writer, "w", encoding="utf-8")
        self._read = b""
        self.stream = PatientStream(self._target)

    def read(self, n_bytes):
        """Read so many bytes, or somewhat more."""
        while len(self._read) < n_bytes:
            assert select.select([self._reader], [], [], 10)[0]
            self._read += os.read(self._reader, 4096)

    def finish(self):
        """Finish the stream, and return all lines that came."""
        reader = threading.Thread(target=self._read_to_the_end)
        reader.start()
        self.stream.finish()
        self._target.close()
        reader.join(timeout=10)
        os.close(self._reader)
        return self._read.decode().splitlines()

    def _read_to_the_end(self):
        while read := os.read(self._reader, 65536):
            self._read += read


LONG = "x" * 1000


def numbers_up_to(lines):
    """Check that lines are numbered and that notes stand where some are missing; return the next number."""
    number = 0
    for line in lines:
        if left_out := re.fullmatch(r"\.\.\. ([0-9]+) lines left out: nobody read", line):
            number += int(left_out[1])
        else:
            assert line == f"{number} {LONG}"
            number += 1
    return number


def test_a_pipe_that_does_not_block_gets_everything():
    pipe = Pipe(blocking=False)
    for number in range(500):  # several times what a pipe holds
        pipe.stream.write(f"{number} {LONG}\n")
    time.sleep(0.05)  # the pipe is full by now
    pipe.read(400_000)
    lines = pipe.finish()
    assert len(lines) == 500
    assert numbers_up_to(lines) == 500


def test_what_was_left_out_is_told_where_it_is_missing():
    pipe = Pipe()
    for number in range(1500):
        pipe.stream.write(f"{number} {LONG}\n")
    pipe.read(300_000)  # makes room
    pipe.stream.write(f"1500 {LONG}\n")
    lines = pipe.finish()
    assert lines[-1].startswith("1500")
    assert numbers_up_to(lines) == 1501


def test_what_was_left_out_at_the_end_is_told():
    pipe = Pipe()
    for number in range(1500):
        pipe.stream.write(f"{number} {LONG}\n")
    lines = pipe.finish()
    assert lines[-1].startswith("...")
    assert numbers_up_to(lines) == 1500


@pytest.fixture
def slow_server():
    """Start `opu serve` for a device that takes a minute to open a session, and begin to open one."""
    source = (
        "import opu, link_helpers\n"
        "toy = link_helpers.ToyDevice()\n"
        "toy.open_delay_s = 60\n"
        "opu.open = lambda uri: toy\n"
        "from opu.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", source, "serve", "toy:", "--bind", "tcp://127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    uri = process.stdout.readline().split()[-1]
    with RawClient(uri) as client:
        client.hello()
        client.send(protocol.OpenSession(request_id=client.number(), config=CONFIG))
        assert isinstance(client.ask(protocol.Ping(request_id=client.number())), protocol.Pong)
        yield process, client
    process.kill()
    process.communicate()


def test_a_signal_ends_it_while_a_session_is_being_opened(slow_server):
    process, client = slow_server
    process.terminate()
    reply, _ = client.receive(timeout_s=15)
    assert (reply.request_id, reply.code) == (2, "unreachable")
    assert process.wait(timeout=10) == 0
    assert "sessions still being opened: 1;" in process.stdout.read()


def test_the_same_signal_again_ends_it_at_once(slow_server):
    process, client = slow_server
    process.terminate()
    wait_until(lambda: client.hello().code == "unreachable")
    process.terminate()
    assert process.wait(timeout=3) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "status", "code", "words"),
    [
        (["sim:", "--bind", "tcp://0.0.0.0:5755"], 4, "refused", "0.0.0.0:5755"),
        (["sim:", "--policy", "required"], 4, "refused", "none were given"),
        (["sim:", "--keys", "no/such.key", "--allow", "x"], 2, "data_file", "no/such.key"),
        (["sim:", "--bind", "tcp://127.0.0.1:http"], 2, "uri", "'http'"),
        (["sim:?colour=red", "--bind", "tcp://127.0.0.1:0"], 2, "uri", "colour"),
        (["tcp://127.0.0.1:1?timeout_s=0.2", "--bind", "tcp://127.0.0.1:0"], 3, "unreachable", "127.0.0.1:1"),
    ],
)
def test_bad_input_ends_with_its_status(arguments, status, code, words):
    ended = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == status
    document = json.loads(ended.stdout)
    assert (document["ok"], document["error"]["code"]) == (False, code)
    assert words in document["error"]["message"]
    assert words in ended.stderr.replace("\n", "")


@pytest.mark.parametrize(("options", "quantum_s"), [([], ServerLimits.quantum_s), (["--quantum-ms", "20"], 0.02)])
def test_the_quantum_is_chosen(options, quantum_s):
    source = (
        "import opu.remote.server\n"
        "def refuse(device, bind, limits, gate):\n"
        "    raise opu.errors.RefusedError(f'The quantum is {limits.quantum_s} s.', 'This is a test.')\n"
        "opu.remote.server.OpuServer = refuse\n"
        "from opu.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", source, "serve", "sim:?preset=ideal", *options, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(ended.stdout)["error"]["message"] == f"The quantum is {quantum_s} s."


@pytest.mark.parametrize("quantum_ms", ["0", "-5", "nan", "1e9"])
def test_a_quantum_that_cannot_be(opu_command, quantum_ms):
    assert opu_command("serve", "sim:?preset=ideal", "--quantum-ms", quantum_ms).status == 2


def test_a_terminal_shows_clients_queue_and_rate(tmp_path):
    """On a terminal the picture is drawn again and again, and names of clients cannot steer it."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    process = subprocess.Popen(
        [*COMMAND, "sim:?preset=ideal", "--bind", "tcp://127.0.0.1:0"], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown, hostile, asked_to_stop = "", None, False
    try:
        with contextlib.suppress(OSError):  # the terminal is closed when the process ends
            while received := os.read(ours, 65536):
                shown += re.sub(r"\x1b\[[0-9;]*m", "", received.decode(errors="replace"))
                found = re.search(r"Serving .* at (tcp://127\.0\.0\.1:\d+)", shown)
                if found and hostile is None:
                    hostile = RawClient(found[1])
                    hostile.hello("\x1b[2J<script>[bold]")
                if "Clients: 1, queue: 0" in shown and "│ 0" in shown and not asked_to_stop:
                    asked_to_stop = True
                    process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        if hostile is not None:
            hostile.__exit__()
    assert r"│ \x1b[2J<script>[bold]" in shown
    assert "\x1b[2J" not in shown
    assert "In queue" in shown
    assert "rate: 0 frames/s" in shown
    assert "Stopped after" in shown
