"""`opu serve`."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from link_helpers import RawClient

import opu
from opu.device import SessionConfig

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
    assert (report["frames"], report["clients_total"], report["refused"]) == (3, 2, 0)


def test_what_was_accepted_before_a_signal_is_answered_or_refused(served_process):
    process, uri = served_process()
    with opu.open(uri) as remote, remote.open_session(SessionConfig(n_features=100, n_outputs=2000)) as session:
        futures = [session.submit(np.ones((100, 100), np.uint8)) for _ in range(30)]
        futures[0].result()
        process.terminate()
        outcomes = [future.exception(timeout=20) for future in futures]
    assert process.wait(timeout=20) == 0
    assert all(error is None or isinstance(error, opu.errors.UnreachableError) for error in outcomes)


@pytest.mark.parametrize(
    ("arguments", "status", "code", "words"),
    [
        (["sim:", "--bind", "tcp://0.0.0.0:5755"], 4, "refused", "0.0.0.0:5755"),
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
